//! Clusters, their capacity providers, settings of the account.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{find, show, tags};
use crate::fail::{Answer, Fail, read};
use crate::kept::{Cluster, Region};
use crate::page::{limit, page};
use crate::time::Ctx;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Create {
    cluster_name: Option<String>,
    #[serde(default)]
    tags: Vec<tags::Tag>,
    #[serde(default)]
    capacity_providers: Vec<String>,
    #[serde(default)]
    #[allow(dead_code)]
    default_capacity_provider_strategy: Value,
    #[serde(default)]
    #[allow(dead_code)]
    settings: Value,
    #[serde(default)]
    #[allow(dead_code)]
    configuration: Value,
}

pub(crate) fn create(ctx: &mut Ctx, region: &mut Region, body: &Value) -> Answer {
    let asked: Create = read(body)?;
    let name = asked.cluster_name.unwrap_or_else(|| "default".into());
    let wellformed = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    if name.is_empty() || name.len() > 255 || !wellformed {
        return Err(Fail::invalid("Invalid clusterName."));
    }
    if let Some(odd) = asked.capacity_providers.iter().find(|name| !name.starts_with("FARGATE")) {
        return Err(Fail::not_faked(format!(
            "the capacity provider {odd}: World::cluster makes Managed Instances providers"
        )));
    }
    let tags = tags::checked(asked.tags)?;
    if !region.clusters.contains_key(name.as_str()) {
        make(ctx, region, &name, BTreeSet::new());
        if let Some(cluster) = region.clusters.get_mut(name.as_str()) {
            cluster.tags = tags;
        }
        ctx.changed = true;
    }
    let cluster = find::cluster(region, Some(&name))?;
    Ok(json!({"cluster": shown(region, cluster, true)}))
}

/// A cluster and what its CloudFormation stack makes beside it: the queue of its events.
pub(crate) fn make(ctx: &Ctx, region: &mut Region, name: &str, managed: BTreeSet<String>) {
    region.queues.make(format!("{}-{name}-events", ctx.set.grid));
    region
        .clusters
        .entry(name.into())
        .or_insert_with(|| Cluster::new(name.into(), Default::default(), managed));
}

fn shown(region: &Region, cluster: &Cluster, with_tags: bool) -> Value {
    let mut providers = vec!["FARGATE".to_owned(), "FARGATE_SPOT".to_owned()];
    providers.extend(cluster.managed.iter().cloned());
    json!({
        "clusterArn": region.arn("cluster", &cluster.name),
        "clusterName": &*cluster.name,
        "status": "ACTIVE",
        "registeredContainerInstancesCount": 0,
        "runningTasksCount": cluster.running,
        "pendingTasksCount": cluster.pending,
        "activeServicesCount": cluster.active,
        "statistics": [],
        "tags": if with_tags { show::tags(&cluster.tags) } else { json!([]) },
        "settings": [{"name": "containerInsights", "value": "disabled"}],
        "capacityProviders": providers,
        "defaultCapacityProviderStrategy": [{"capacityProvider": "FARGATE", "weight": 1, "base": 0}],
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Describe {
    #[serde(default)]
    clusters: Vec<String>,
    #[serde(default)]
    include: Vec<String>,
}

/// Clusters of one DescribeClusters.
const DESCRIBED: usize = 100;

pub(crate) fn describe(region: &Region, body: &Value) -> Answer {
    let asked: Describe = read(body)?;
    let names = if asked.clusters.is_empty() { vec!["default".into()] } else { asked.clusters };
    if names.len() > DESCRIBED {
        return Err(Fail::invalid("Clusters cannot have more than 100 elements."));
    }
    let with_tags = asked.include.iter().any(|each| each == "TAGS");
    let (mut clusters, mut failures) = (Vec::new(), Vec::new());
    for name in names {
        match find::cluster(region, Some(&name)) {
            Ok(cluster) => clusters.push(shown(region, cluster, with_tags)),
            Err(_) => failures.push(missing(region, "cluster", &name)),
        }
    }
    Ok(json!({"clusters": clusters, "failures": failures}))
}

/// What Describe calls say of something that is not there.
pub(crate) fn missing(region: &Region, kind: &str, name: &str) -> Value {
    let arn = if name.starts_with("arn:") { name.to_owned() } else { region.arn(kind, name) };
    json!({"arn": arn, "reason": "MISSING"})
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct List {
    next_token: Option<String>,
    max_results: Option<i64>,
}

pub(crate) fn list(region: &Region, body: &Value) -> Answer {
    let asked: List = read(body)?;
    let after = asked.next_token.unwrap_or_default();
    let items = region
        .clusters
        .keys()
        .filter(|name| ***name > *after)
        .map(|name| (name, region.arn("cluster", name)));
    let (arns, next) = page(items, limit(asked.max_results, 100, 100)?, |name| name.to_string());
    Ok(json!({"clusterArns": arns, "nextToken": next}))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Providers {
    #[serde(default)]
    capacity_providers: Vec<String>,
    cluster: Option<String>,
    #[serde(default)]
    #[allow(dead_code)]
    include: Vec<String>,
    #[allow(dead_code)]
    max_results: Option<i64>,
    #[allow(dead_code)]
    next_token: Option<String>,
}

pub(crate) fn providers(region: &Region, body: &Value) -> Answer {
    let asked: Providers = read(body)?;
    let shown = |name: &str, cluster: Option<&str>| {
        let kind = match name {
            "FARGATE" | "FARGATE_SPOT" => name,
            _ => "MANAGED_INSTANCES",
        };
        let mut out = json!({
            "capacityProviderArn": region.arn("capacity-provider", name),
            "name": name, "status": "ACTIVE", "type": kind,
        });
        if let Some(cluster) = cluster {
            out["cluster"] = json!(region.arn("cluster", cluster));
        }
        out
    };
    let of = asked.cluster.as_deref().map(|name| find::cluster(region, Some(name))).transpose()?;
    let clusters: Vec<&Cluster> = of.map_or_else(|| region.clusters.values().collect(), |one| vec![one]);
    let mut known = vec![shown("FARGATE", None), shown("FARGATE_SPOT", None)];
    for cluster in clusters {
        known.extend(cluster.managed.iter().map(|name| shown(name, Some(&cluster.name))));
    }
    if asked.capacity_providers.is_empty() {
        return Ok(json!({"capacityProviders": known, "failures": []}));
    }
    let (mut found, mut failures) = (Vec::new(), Vec::new());
    for name in &asked.capacity_providers {
        let wanted = find::short(region, "capacity-provider", name);
        match known.iter().find(|each| each["name"].as_str() == wanted) {
            Some(each) => found.push(each.clone()),
            None => failures.push(missing(region, "capacity-provider", name)),
        }
    }
    Ok(json!({"capacityProviders": found, "failures": failures}))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Setting {
    name: String,
    value: String,
}

/// Names of settings that AWS knows.
const SETTINGS: [&str; 11] = [
    "serviceLongArnFormat",
    "taskLongArnFormat",
    "containerInstanceLongArnFormat",
    "awsvpcTrunking",
    "containerInsights",
    "fargateFIPSMode",
    "tagResourceAuthorization",
    "fargateTaskRetirementWaitPeriod",
    "guardDutyActivate",
    "defaultLogDriverMode",
    "fargateEventWindows",
];

pub(crate) fn setting(ctx: &mut Ctx, region: &mut Region, body: &Value) -> Answer {
    let asked: Setting = read(body)?;
    if !SETTINGS.contains(&asked.name.as_str()) {
        return Err(Fail::invalid(format!("Invalid account setting name: {}", asked.name)));
    }
    let before = region.account_settings.insert(asked.name.clone(), asked.value.clone());
    ctx.changed = before.as_ref() != Some(&asked.value);
    let principal = format!("arn:aws:iam::{}:root", region.account);
    Ok(
        json!({"setting": {"name": asked.name, "value": asked.value, "principalArn": principal, "type": "user"}}),
    )
}
