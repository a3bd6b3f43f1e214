//! DescribeServices, ListServices, ListServicesByNamespace.

use std::ops::Bound;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{clusters, find, show};
use crate::fail::{Answer, Fail, read};
use crate::kept::{Region, State};
use crate::page::{limit, page};
use crate::time::Ctx;

/// Services of one DescribeServices.
const DESCRIBED: usize = 10;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Describe {
    cluster: Option<String>,
    services: Vec<String>,
    #[serde(default)]
    include: Vec<String>,
}

pub(crate) fn describe(ctx: &Ctx, region: &Region, body: &Value) -> Answer {
    let asked: Describe = read(body)?;
    let cluster = find::cluster(region, asked.cluster.as_deref())?;
    if asked.services.is_empty() {
        return Err(Fail::invalid("Services cannot be empty."));
    }
    if asked.services.len() > DESCRIBED {
        return Err(Fail::invalid("Services cannot have more than 10 elements."));
    }
    let with_tags = asked.include.iter().any(|each| each == "TAGS");
    let (mut found, mut failures) = (Vec::new(), Vec::new());
    for name in &asked.services {
        let service = find::short(region, "service", name).and_then(|name| cluster.services.get(name));
        match service.and_then(|service| service.seen(ctx.now)) {
            Some(service) => found.push(show::service(ctx, region, cluster, service, with_tags)),
            None if name.starts_with("arn:") => failures.push(clusters::missing(region, "service", name)),
            None => failures.push(clusters::missing(region, "service", &format!("{}/{name}", cluster.name))),
        }
    }
    Ok(json!({"services": found, "failures": failures}))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct List {
    cluster: Option<String>,
    next_token: Option<String>,
    max_results: Option<i64>,
    launch_type: Option<String>,
    scheduling_strategy: Option<String>,
}

pub(crate) fn list(ctx: &Ctx, region: &Region, body: &Value) -> Answer {
    let asked: List = read(body)?;
    let cluster = find::cluster(region, asked.cluster.as_deref())?;
    if asked.launch_type.is_some()
        || asked.scheduling_strategy.as_deref().is_some_and(|kind| kind != "REPLICA")
    {
        return Err(Fail::not_faked("filters of ListServices"));
    }
    let from = match asked.next_token.as_deref() {
        Some(token) => Bound::Excluded(token),
        None => Bound::Unbounded,
    };
    let services = cluster.services.range::<str, _>((from, Bound::Unbounded));
    let seen =
        services.filter(|(_, service)| service.seen(ctx.now).is_some_and(|seen| seen.state == State::Active));
    let items = seen.map(|(name, _)| (name, region.arn("service", &format!("{}/{name}", cluster.name))));
    let (arns, next) = page(items, limit(asked.max_results, 10, 100)?, |name| name.to_string());
    Ok(json!({"serviceArns": arns, "nextToken": next}))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Namespace {
    namespace: String,
    #[allow(dead_code)]
    next_token: Option<String>,
    #[allow(dead_code)]
    max_results: Option<i64>,
}

/// AWS lists services that use Service Connect in the namespace. The fake has none of them.
pub(crate) fn by_namespace(_ctx: &Ctx, region: &Region, body: &Value) -> Answer {
    let asked: Namespace = read(body)?;
    if !region.map.has_namespace(&asked.namespace) {
        return Err(Fail::new("NamespaceNotFoundException", 400, "The specified namespace cannot be found."));
    }
    Ok(json!({"serviceArns": []}))
}
