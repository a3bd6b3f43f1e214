//! A cluster with its services and tasks.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use serde_json::Value;

use super::definition::{Capacity, Tags};
use super::service::Service;
use super::task::Task;

#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) name: Arc<str>,
    pub(crate) tags: Tags,
    /// Managed Instances providers of this cluster.
    pub(crate) managed: BTreeSet<String>,
    pub(crate) services: BTreeMap<Arc<str>, Service>,
    /// Names that ListServices shows: ACTIVE ones.
    pub(crate) active: usize,
    pub(crate) tasks: BTreeMap<u64, Task>,
    /// `(family, task)`, to list by family.
    pub(crate) by_family: BTreeSet<(Arc<str>, u64)>,
    /// Tasks whose desired status is STOPPED.
    pub(crate) ended: BTreeSet<u64>,
    pub(crate) running: usize,
    pub(crate) pending: usize,
    pub(crate) provisioning: usize,
    /// Services that wait for a free place in PROVISIONING.
    pub(crate) waiting: VecDeque<(Arc<str>, u64)>,
    /// Client tokens of RunTask: what was asked for, and the tasks.
    pub(crate) run_tokens: BTreeMap<String, (Arc<Value>, Vec<u64>)>,
}

impl Cluster {
    pub(crate) fn new(name: Arc<str>, tags: Tags, managed: BTreeSet<String>) -> Self {
        Self {
            name,
            tags,
            managed,
            services: BTreeMap::new(),
            active: 0,
            tasks: BTreeMap::new(),
            by_family: BTreeSet::new(),
            ended: BTreeSet::new(),
            running: 0,
            pending: 0,
            provisioning: 0,
            waiting: VecDeque::new(),
            run_tokens: BTreeMap::new(),
        }
    }

    /// The kind of capacity behind a provider that this cluster may use.
    pub(crate) fn capacity(&self, provider: &str) -> Option<Capacity> {
        match provider {
            "FARGATE" => Some(Capacity::Fargate),
            "FARGATE_SPOT" => Some(Capacity::Spot),
            name => self.managed.contains(name).then_some(Capacity::Managed),
        }
    }
}
