//! Services and their deployments.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::definition::{Revision, Tags};

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
