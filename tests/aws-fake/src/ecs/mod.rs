//! ECS.

pub(crate) mod clusters;
pub(crate) mod definitions;
pub(crate) mod deployments;
pub(crate) mod events;
pub(crate) mod life;
pub(crate) mod lists;
pub(crate) mod runs;
pub(crate) mod scheduler;
pub(crate) mod services;
pub(crate) mod show;
pub(crate) mod state;
pub(crate) mod tags;
pub(crate) mod task;
pub(crate) mod updates;

use std::sync::Arc;

use serde_json::Value;

use crate::fail::{Answer, Fail};
use crate::time::Ctx;
use state::{Cluster, Region};

/// Answers a call.
pub(crate) fn handle(ctx: &mut Ctx, region: &mut Region, op: &str, body: &Value) -> Answer {
    match op {
        "CreateCluster" => clusters::create(ctx, region, body),
        "DescribeClusters" => clusters::describe(region, body),
        "ListClusters" => clusters::list(region, body),
        "DescribeCapacityProviders" => clusters::providers(region, body),
        "PutAccountSettingDefault" => clusters::setting(ctx, region, body),
        "RegisterTaskDefinition" => definitions::register(ctx, region, body),
        "DeregisterTaskDefinition" => definitions::deregister(ctx, region, body),
        "DescribeTaskDefinition" => definitions::describe(ctx, region, body),
        "ListTaskDefinitions" => definitions::list(region, body),
        "CreateService" => services::create(ctx, region, body),
        "UpdateService" => updates::update(ctx, region, body),
        "DeleteService" => updates::delete(ctx, region, body),
        "DescribeServices" => lists::describe(ctx, region, body),
        "ListServices" => lists::list(ctx, region, body),
        "ListServicesByNamespace" => lists::by_namespace(ctx, region, body),
        "ListServiceDeployments" => deployments::list(ctx, region, body),
        "DescribeServiceDeployments" => deployments::describe(ctx, region, body),
        "RunTask" => runs::run(ctx, region, body),
        "StopTask" => runs::stop(ctx, region, body),
        "ListTasks" => runs::list(region, body),
        "DescribeTasks" => runs::describe(ctx, region, body),
        "TagResource" => tags::tag(ctx, region, body),
        "UntagResource" => tags::untag(ctx, region, body),
        "ListTagsForResource" => tags::list(region, body),
        _ => Err(Fail::not_faked(format!("ECS {op}"))),
    }
}

/// The last part of an ARN or a name, and whether the ARN is of this account and Region.
pub(crate) fn short<'a>(region: &Region, kind: &str, name: &'a str) -> Option<&'a str> {
    match name.strip_prefix("arn:") {
        None => Some(name),
        Some(_) => {
            let path = name.strip_prefix(&region.arn(kind, ""))?;
            path.rsplit('/').next()
        }
    }
}

/// A cluster by its name or ARN.
pub(crate) fn cluster<'a>(region: &'a Region, name: Option<&str>) -> Result<&'a Cluster, Fail> {
    let name = short(region, "cluster", name.unwrap_or("default")).ok_or_else(Fail::cluster)?;
    region.clusters.get(name).ok_or_else(Fail::cluster)
}

/// The name of a cluster that exists.
pub(crate) fn cluster_name(region: &Region, name: Option<&str>) -> Result<Arc<str>, Fail> {
    cluster(region, name).map(|cluster| cluster.name.clone())
}

/// A page of `limit` from what comes after `token`. The token is the last key of the page before.
pub(crate) fn page<K, V>(
    items: impl Iterator<Item = (K, V)>,
    limit: usize,
    token: impl Fn(&K) -> String,
) -> (Vec<V>, Option<String>) {
    let mut out = Vec::new();
    let mut last = None;
    for (key, value) in items {
        if out.len() == limit {
            return (out, last);
        }
        last = Some(token(&key));
        out.push(value);
    }
    (out, None)
}

/// The size of a page, between 1 and `most`.
pub(crate) fn limit(asked: Option<i64>, default: usize, most: usize) -> Result<usize, Fail> {
    match asked {
        None => Ok(default),
        Some(asked) if (1..=most as i64).contains(&asked) => Ok(asked as usize),
        Some(_) => Err(Fail::invalid(format!("maxResults must be between 1 and {most}."))),
    }
}
