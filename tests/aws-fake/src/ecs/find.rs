//! Things by their names or ARNs.

use std::sync::Arc;

use crate::fail::Fail;
use crate::kept::{Cluster, Definition, Region};

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

/// A definition by its family (the newest active revision), `family:revision` or ARN.
pub(crate) fn definition<'a>(region: &'a Region, name: &str) -> Result<&'a Arc<Definition>, Fail> {
    let unknown = || Fail::client("Unable to describe task definition.");
    let name = short(region, "task-definition", name).ok_or_else(unknown)?;
    match name.split_once(':') {
        None => {
            let revisions = region.families.get(name).ok_or_else(unknown)?;
            revisions.iter().rev().find(|each| each.deregistered.is_none()).ok_or_else(unknown)
        }
        Some((family, revision)) => {
            let revision: usize = revision.parse().map_err(|_| unknown())?;
            region.families.get(family).and_then(|all| all.get(revision.wrapping_sub(1))).ok_or_else(unknown)
        }
    }
}
