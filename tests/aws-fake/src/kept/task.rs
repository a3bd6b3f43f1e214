//! A task, and the order of its states.

use std::sync::Arc;
use std::time::Duration;

use super::definition::{Capacity, Definition, Revision, Tags};
use crate::time::mix;

/// The states of a task, in the order of its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Status {
    Provisioning,
    Pending,
    Activating,
    Running,
    Deactivating,
    Stopping,
    Deprovisioning,
    Stopped,
}

impl Status {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Status::Provisioning => "PROVISIONING",
            Status::Pending => "PENDING",
            Status::Activating => "ACTIVATING",
            Status::Running => "RUNNING",
            Status::Deactivating => "DEACTIVATING",
            Status::Stopping => "STOPPING",
            Status::Deprovisioning => "DEPROVISIONING",
            Status::Stopped => "STOPPED",
        }
    }

    /// What `pendingCount` counts.
    pub(crate) fn is_pending(self) -> bool {
        self < Status::Running
    }
}

/// The service of a task.
#[derive(Clone, Debug)]
pub(crate) struct Owner {
    pub(crate) service: Arc<str>,
    pub(crate) serial: u64,
    pub(crate) deployment: u64,
}

/// Why a task ends.
#[derive(Clone, Debug)]
pub(crate) struct End {
    pub(crate) code: &'static str,
    pub(crate) reason: String,
    pub(crate) exit: Option<i32>,
    /// The task failed; nobody ended it.
    pub(crate) failed: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub(crate) id: u64,
    pub(crate) revision: Arc<Revision>,
    pub(crate) owner: Option<Owner>,
    pub(crate) group: String,
    pub(crate) started_by: Option<String>,
    pub(crate) overrides: Option<serde_json::Value>,
    pub(crate) tags: Tags,
    pub(crate) provider: Arc<str>,
    pub(crate) capacity: Capacity,
    pub(crate) status: Status,
    /// The desired status is STOPPED.
    pub(crate) ending: Option<End>,
    /// Counts as healthy for the scheduler.
    pub(crate) settled: bool,
    /// Of the container's health check, if it has one.
    pub(crate) healthy: Option<bool>,
    pub(crate) version: u32,
    pub(crate) created: Duration,
    pub(crate) started: Option<Duration>,
    pub(crate) stopping: Option<Duration>,
    pub(crate) stopped: Option<Duration>,
}

impl Task {
    pub(crate) fn definition(&self) -> &Arc<Definition> {
        &self.revision.definition
    }

    /// 32 hex digits.
    pub(crate) fn hex(&self) -> String {
        hex(self.id)
    }

    pub(crate) fn zone(&self) -> char {
        ['a', 'b', 'c'][(mix(self.id) % 3) as usize]
    }

    /// A private address, a function of the task.
    pub(crate) fn address(&self) -> String {
        let [.., a, b, c] = self.id.to_be_bytes();
        format!("10.{a}.{b}.{c}")
    }

    pub(crate) fn desired(&self) -> &'static str {
        if self.ending.is_some() { "STOPPED" } else { "RUNNING" }
    }
}

/// The id of a task as AWS shows one. The second half is the number itself, hidden by a constant, so it can be read back.
pub(crate) fn hex(id: u64) -> String {
    format!("{:016x}{:016x}", mix(id), id ^ HIDE)
}

const HIDE: u64 = 0x5bd1_e995_7b93_b1c7;

/// The number of a task that was named by its id or its ARN.
pub(crate) fn number(name: &str) -> Option<u64> {
    let id = name.rsplit('/').next()?;
    if id.len() != 32 || !id.is_ascii() {
        return None;
    }
    let number = u64::from_str_radix(&id[16..], 16).ok()? ^ HIDE;
    (hex(number) == id).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_leads_back_to_its_task() {
        for id in [0, 1, 77, u64::MAX] {
            assert_eq!(number(&format!("arn:aws:ecs:eu-central-1:1:task/peony/{}", hex(id))), Some(id));
        }
        assert_eq!(number("arn:aws:ecs:eu-central-1:1:task/peony/0123456789abcdef0123456789abcdef"), None);
    }
}
