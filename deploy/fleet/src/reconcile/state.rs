//! What an engine remembers of services, clusters and definitions.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use serde_json::Value;

use super::{
    step::{Name, Seen, Step, Wish},
    waves::{Spot, Standing},
};
use crate::model::Role;

pub(super) struct Entry {
    pub(super) cluster: usize,
    pub(super) name: String,
    pub(super) role: Role,
    pub(super) wish: Wish,
    pub(super) seen: Seen,
    pub(super) step: Step,
    pub(super) standing: Standing,
    pub(super) spot: Option<Spot>,
    /// A call about it is under way.
    pub(super) busy: bool,
    /// When a change of ours was answered last.
    pub(super) wrote: Option<Duration>,
    /// When it was described last.
    pub(super) looked: Option<Duration>,
    /// Nothing is done for it before.
    pub(super) hold: Duration,
    /// Its place among the timers.
    pub(super) timer: Option<Duration>,
    /// Its place among what is ready.
    pub(super) ready: Option<Order>,
    pub(super) in_look: bool,
    pub(super) in_sweep: bool,
    /// Since when it waits for its deployment.
    pub(super) waiting: Option<Duration>,
    /// Looks since it began to wait.
    pub(super) checks: u32,
    /// Failures in a row.
    pub(super) tries: u32,
    /// Changes of ours in this run.
    pub(super) changes: u32,
    /// It was as wanted once, so what it needs now is a repair.
    pub(super) was_settled: bool,
    /// A deployment that was broken off was begun again.
    pub(super) redone: bool,
    /// AWS's last word against it.
    pub(super) refused: Option<String>,
    /// What ECS or a task said last.
    pub(super) note: String,
}

/// What goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Order {
    /// 0 for repairs.
    pub(super) lane: u8,
    pub(super) rank: u8,
    pub(super) spot: Option<Spot>,
}

pub(super) enum Listing {
    /// From then on.
    Due(Duration),
    /// Under way: the next page, whether it was asked for, and the names so far.
    Pages { page: Option<String>, busy: bool, names: HashSet<String> },
    /// AWS does not let us look.
    Refused(String),
}

pub(super) enum Registries {
    Unasked,
    Services(String),
    Known(BTreeMap<String, String>),
    Refused(String),
}

pub(super) enum Queue {
    Unasked,
    Absent,
    Url(String),
}

pub(super) struct Cluster {
    pub(super) place: usize,
    pub(super) name: String,
    pub(super) listing: Listing,
    pub(super) listed_once: bool,
    pub(super) registries: Registries,
    pub(super) registries_busy: bool,
    /// A service here needs a registry.
    pub(super) registers: bool,
    pub(super) queue: Queue,
    pub(super) queue_busy: bool,
    pub(super) poll: Duration,
    pub(super) forget: VecDeque<Vec<String>>,
    pub(super) look: BTreeSet<usize>,
    pub(super) look_since: Duration,
    pub(super) sweep: BTreeSet<usize>,
    /// Entries that wait for ECS.
    pub(super) moving: usize,
}

/// A place that does not answer is left alone for a while.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pause {
    /// Since when nothing was answered.
    pub(super) since: Option<Duration>,
    pub(super) until: Duration,
    pub(super) tries: u32,
}

pub(super) struct Definition {
    pub(super) body: Arc<Value>,
    pub(super) state: Name,
    /// Asked for, and AWS has none.
    pub(super) missing: bool,
    pub(super) waiting: Vec<usize>,
}
