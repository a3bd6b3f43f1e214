//! An account in a Region.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::cluster::Cluster;
use super::definition::{Capacity, Definition};
use super::map::CloudMap;
use super::queue::Queues;
use crate::buckets::{Bucket, Category};
use crate::settings::Quotas;

/// An account in a Region, with all that it holds.
#[derive(Debug)]
pub(crate) struct Region {
    pub(crate) index: usize,
    pub(crate) account: Arc<str>,
    pub(crate) name: Arc<str>,
    pub(crate) quotas: Quotas,
    pub(crate) buckets: BTreeMap<Category, Bucket>,
    pub(crate) clusters: BTreeMap<Arc<str>, Cluster>,
    pub(crate) families: BTreeMap<Arc<str>, Vec<Arc<Definition>>>,
    pub(crate) used: Used,
    pub(crate) launches: Bucket,
    pub(crate) map: CloudMap,
    pub(crate) queues: Queues,
    pub(crate) account_settings: BTreeMap<String, String>,
}

impl Region {
    pub(crate) fn arn(&self, kind: &str, rest: &str) -> String {
        format!("arn:aws:ecs:{}:{}:{kind}/{rest}", self.name, self.account)
    }

    /// The id of the Cloud Map service that an ARN names, if it is of this account and Region.
    pub(crate) fn registry(&self, arn: &str) -> Option<Arc<str>> {
        let prefix = format!("arn:aws:servicediscovery:{}:{}:service/", self.name, self.account);
        self.map.services.get(arn.strip_prefix(&prefix)?).map(|service| service.id.clone())
    }
}

/// vCPUs in use, in CPU units (1024 a vCPU), by kind of capacity.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Used {
    pub(crate) fargate: u64,
    pub(crate) spot: u64,
    pub(crate) managed: u64,
}

impl Used {
    pub(crate) fn of(&mut self, kind: Capacity) -> &mut u64 {
        match kind {
            Capacity::Fargate => &mut self.fargate,
            Capacity::Spot => &mut self.spot,
            Capacity::Managed => &mut self.managed,
        }
    }
}
