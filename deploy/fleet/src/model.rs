//! What the other files share: a service as it should be, and where it is.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a service is for. Waves of a roll follow this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// An OpenTelemetry collector.
    Collector,
    /// A shard.
    Shard,
    /// A head node.
    Head,
    /// A QCU: one deployed strategy.
    Unit,
}

impl Role {
    /// As in names of services and in classes.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Collector => "collector",
            Self::Shard => "shard",
            Self::Head => "head",
            Self::Unit => "unit",
        }
    }

    /// The role of a word.
    #[must_use]
    pub fn of(word: &str) -> Option<Self> {
        [Self::Collector, Self::Shard, Self::Head, Self::Unit].into_iter().find(|role| role.word() == word)
    }
}

/// An account in a Region: the unit in which AWS counts API rates and most quotas.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Place {
    /// Twelve digits.
    pub account: String,
    /// As AWS names it: `eu-central-1`.
    pub region: String,
}

/// One ECS service as it should be. ECS runs one task of it, or none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// `GRID-ROLE-NAME`: the name of the service in its cluster, and the identity of what runs in it. At most 255 characters.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// Its account and Region.
    #[serde(flatten)]
    pub place: Place,
    /// The cluster: the name of a flower.
    pub cluster: String,
    /// The zone that it must run in, so that it is apart from the others that hold the same series; none: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// The family of its task definition, `GRID-FLOWER-ROLE-SIZE-DEFINITION`. It ends with the field `definition`, so the ARN that
    /// DescribeServices answers tells it without another call. Units of the same flower, size and architecture share one.
    pub family: String,
    /// The first 16 hex digits of the SHA-256 of the rendered task definition, by which a registered revision is found again.
    pub definition: String,
    /// The capacity provider: `FARGATE`, `FARGATE_SPOT`, or `FLOWER-general` and the like.
    pub provider: String,
    /// 0 or 1.
    pub desired: u32,
    /// The name of its Cloud Map service, without the namespace; none if nobody connects to it.
    pub registry: Option<String>,
    /// Seconds after the start in which ECS does not believe an unhealthy task; none without a health check.
    pub grace_seconds: Option<u32>,
    /// Its newest deployment must have begun at or after this (milliseconds since 1970); none: any deployment will do. A unit's
    /// definition does not name its bundle, so another bundle is a new deployment of the same definition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deployed_after_ms: Option<i64>,
    /// Tags, ours and the reader's. Together with the name they are enough to rebuild the ledger.
    pub tags: BTreeMap<String, String>,
}
