//! Task definitions, and the revisions that deploy them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

pub(crate) type Tags = BTreeMap<String, String>;

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
