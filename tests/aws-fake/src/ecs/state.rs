//! What ECS keeps: clusters, task definitions, services, tasks.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::task::Task;
use crate::buckets::{Bucket, Category};
use crate::cloudmap::CloudMap;
use crate::settings::Quotas;
use crate::sqs::Queues;

pub(crate) type Tags = BTreeMap<String, String>;

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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Capacity {
    Fargate,
    Spot,
    Managed,
}

impl Capacity {
    /// As `launchType` and `compatibilities` name it.
    pub(crate) fn launch_type(self) -> &'static str {
        match self {
            Capacity::Managed => "MANAGED_INSTANCES",
            _ => "FARGATE",
        }
    }
}

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

/// A registered task definition. What it says is kept as it came.
#[derive(Debug)]
pub(crate) struct Definition {
    pub(crate) family: Arc<str>,
    pub(crate) revision: u32,
    pub(crate) body: Value,
    pub(crate) tags: Tags,
    pub(crate) registered: Duration,
    pub(crate) deregistered: Option<Duration>,
    /// CPU units, and MiB.
    pub(crate) size: (u64, u64),
    pub(crate) awsvpc: bool,
    pub(crate) compatible: Vec<String>,
    pub(crate) health_check: bool,
    pub(crate) stop_timeout: Duration,
}

impl Definition {
    pub(crate) fn name(&self) -> String {
        format!("{}:{}", self.family, self.revision)
    }

    pub(crate) fn arm(&self) -> bool {
        self.body["runtimePlatform"]["cpuArchitecture"] == "ARM64"
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Active,
    Draining,
    Inactive,
}

impl State {
    pub(crate) fn name(self) -> &'static str {
        match self {
            State::Active => "ACTIVE",
            State::Draining => "DRAINING",
            State::Inactive => "INACTIVE",
        }
    }
}

/// What a deployment deploys. A change of one of these makes a new deployment.
#[derive(Clone, Debug)]
pub(crate) struct Revision {
    pub(crate) definition: Arc<Definition>,
    /// `(provider, weight, base)`. Empty for a launch type.
    pub(crate) strategy: Vec<(String, u32, u32)>,
    pub(crate) launch_type: Option<String>,
    pub(crate) network: Value,
    pub(crate) registries: Value,
    pub(crate) platform_version: String,
}

impl Revision {
    pub(crate) fn same(&self, other: &Self) -> bool {
        self.definition.name() == other.definition.name()
            && self.strategy == other.strategy
            && self.launch_type == other.launch_type
            && self.network == other.network
            && self.registries == other.registries
            && self.platform_version == other.platform_version
    }

    /// The Cloud Map service that its tasks register in.
    pub(crate) fn registry(&self) -> Option<&str> {
        self.registries.get(0)?.get("registryArn")?.as_str()
    }
}

/// What applies to a service as a whole.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Policy {
    pub(crate) minimum: u32,
    pub(crate) maximum: u32,
    pub(crate) breaker: Option<Breaker>,
    /// As it came, for answers.
    pub(crate) configuration: Value,
    pub(crate) rebalancing: bool,
    pub(crate) grace: Option<u32>,
    pub(crate) propagate: String,
    pub(crate) managed_tags: bool,
    pub(crate) execute: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Breaker {
    pub(crate) rollback: bool,
    pub(crate) reset: bool,
    pub(crate) threshold: Threshold,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Threshold {
    Count(u32),
    /// Of the desired count, between 3 and 200.
    Bounded(u32),
    /// Of the desired count, at least 1.
    Unbounded(u32),
}

impl Breaker {
    pub(crate) fn failures(&self, desired: u32) -> u32 {
        match self.threshold {
            Threshold::Count(count) => count,
            Threshold::Bounded(percent) => (desired * percent).div_ceil(100).clamp(3, 200),
            Threshold::Unbounded(percent) => (desired * percent).div_ceil(100).max(1),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rollout {
    InProgress,
    Completed,
    Failed,
}

#[derive(Clone, Debug)]
pub(crate) struct Deployment {
    pub(crate) id: u64,
    pub(crate) revision: Arc<Revision>,
    pub(crate) created: Duration,
    pub(crate) updated: Duration,
    pub(crate) finished: Option<Duration>,
    pub(crate) failed: u32,
    /// Tasks that failed one after the other. The circuit breaker counts them.
    pub(crate) in_a_row: u32,
    pub(crate) rollout: Rollout,
    pub(crate) reason: String,
    pub(crate) rollback: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Service {
    pub(crate) name: Arc<str>,
    /// Tells a service from an earlier one of the same name.
    pub(crate) serial: u64,
    pub(crate) state: State,
    pub(crate) created: Duration,
    pub(crate) desired: u32,
    pub(crate) policy: Policy,
    pub(crate) tags: Tags,
    /// The primary first.
    pub(crate) deployments: Vec<Deployment>,
    /// The revision of the last completed deployment, to which the circuit breaker rolls back.
    pub(crate) good: Option<Arc<Revision>>,
    pub(crate) tasks: Vec<u64>,
    /// Its last stopped tasks.
    pub(crate) past: VecDeque<u64>,
    /// The newest first.
    pub(crate) events: VecDeque<(Duration, u64, String)>,
    /// The client token it was made with, and what was asked for.
    pub(crate) token: Option<(String, Arc<Value>)>,
    pub(crate) steady: bool,
    /// The scheduler does not start a task before.
    pub(crate) not_before: Duration,
    pub(crate) retry: Duration,
    /// What readers see until a time, instead of this: the state before the last write. `None` inside: it did not exist.
    pub(crate) shadow: Option<(Duration, Option<Box<Service>>)>,
}

impl Service {
    /// What a reader sees now.
    pub(crate) fn seen(&self, now: Duration) -> Option<&Service> {
        match &self.shadow {
            Some((until, before)) if now < *until => before.as_deref(),
            _ => Some(self),
        }
    }

    /// Events that DescribeServices shows, and stopped tasks that ListTasks shows.
    const EVENTS: usize = 100;
    pub(crate) const PAST: usize = 100;

    pub(crate) fn say(&mut self, now: Duration, serial: u64, text: impl std::fmt::Display) {
        self.events.push_front((now, serial, format!("(service {}) {text}", self.name)));
        self.events.truncate(Self::EVENTS);
    }
}
