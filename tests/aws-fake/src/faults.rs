//! What goes wrong on request.

use std::collections::BTreeMap;
use std::time::Duration;

/// How a task of a family fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failing {
    /// The image is not there: the task stops in PENDING.
    NoImage,
    /// The process ends with this code a second after it began to run.
    Exits(i32),
    /// The process runs, and its health check never answers.
    Unhealthy,
}

/// A rule of faults; see the methods of `World` that set them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults {
    pub(crate) events_lost: f64,
    pub(crate) events_twice: f64,
    /// By family: how, and what share of its tasks.
    pub(crate) failing: BTreeMap<String, (Failing, f64)>,
    /// By account (empty: all): what is left of its rates.
    pub(crate) throttle: BTreeMap<String, f64>,
    /// A share of answers is lost after the call was applied.
    pub(crate) answers_lost: f64,
    /// The next calls with these names are applied, and their answers are lost.
    pub(crate) lose_next: Vec<String>,
    /// By account (empty: all): until when nothing answers.
    pub(crate) away: BTreeMap<String, Duration>,
}

impl Faults {
    pub(crate) fn factor(&self, account: &str) -> f64 {
        let one = |key: &str| self.throttle.get(key).copied().unwrap_or(1.0);
        one(account) * one("")
    }

    pub(crate) fn is_away(&self, account: &str, now: Duration) -> bool {
        [account, ""].iter().any(|key| self.away.get(*key).is_some_and(|until| now < *until))
    }
}
