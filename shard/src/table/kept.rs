//! What a shard keeps of a dataset, whether or not its table is open: the last description, and when it learned of the lease. These
//! are a few hundred bytes.

use std::time::Duration;

use parking_lot::Mutex;
use trellis_proto::pb;

/// What is kept of a dataset.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The description of the newest version that watchers know. A table that is opened again goes on from there.
    described: Option<Box<pb::DatasetDescription>>,
    /// The dataset was there when the shard started, and nobody was told that there is none. So the first look at its table is no news.
    listed: bool,
    /// The description that the last life of the shard has left. In this life the shard has told nobody of it.
    left: Option<Box<pb::DatasetDescription>>,
    /// The newest epoch of the lease, and when the shard learned of it.
    lease: Option<(u64, Duration)>,
}

impl Kept {
    /// What is kept of a dataset that the shard found when it started.
    pub(crate) fn listed(left: Option<pb::DatasetDescription>) -> Self {
        Self { state: Mutex::new(State { listed: true, left: left.map(Box::new), ..State::default() }) }
    }

    /// The version of the description that the last life of the shard has left, if the shard has told nobody of any version
    /// in this life.
    pub(crate) fn left(&self) -> Option<u64> {
        let state = self.state.lock();
        state.left.as_ref().filter(|_| state.described.is_none()).map(|left| left.version)
    }

    /// Takes what the last life of the shard has described for the description: that version is the newest one. Returns whether there
    /// is a description now.
    pub(crate) fn take_left(&self) -> bool {
        let mut state = self.state.lock();
        let left = state.left.take();
        state.described = state.described.take().or(left);
        state.described.is_some()
    }

    /// The version of the description.
    pub(crate) fn version(&self) -> Option<u64> {
        self.state.lock().described.as_ref().map(|described| described.version)
    }

    pub(crate) fn description(&self) -> Option<pb::DatasetDescription> {
        self.state.lock().described.as_deref().cloned()
    }

    /// A version becomes visible.
    pub(super) fn describe(&self, description: Box<pb::DatasetDescription>) {
        self.state.lock().described = Some(description);
    }

    /// The table was opened, and this is what it is. Returns whether that is news to anybody.
    pub(super) fn opened(&self, description: Box<pb::DatasetDescription>) -> bool {
        let mut state = self.state.lock();
        let news = match &state.described {
            Some(told) => told.version != description.version,
            None => !state.listed,
        };
        state.described = Some(description);
        state.left = None;
        news
    }

    /// Somebody was told that there is no such dataset, or was given a list without it.
    pub(crate) fn passed_over(&self) {
        let mut state = self.state.lock();
        state.listed = false;
        state.left = None;
    }

    /// Whether there is a dataset of this name, as far as the shard knows.
    pub(crate) fn is_there(&self) -> bool {
        let state = self.state.lock();
        state.described.as_ref().map_or(state.listed, |described| !described.dropped)
    }

    /// Whether nothing is known but the name.
    pub(crate) fn is_empty(&self) -> bool {
        let state = self.state.lock();
        state.described.is_none() && !state.listed
    }

    /// When the shard learned of an epoch of the lease; `now`, if it did not know of it before.
    pub(super) fn learned(&self, epoch: u64, now: Duration) -> Duration {
        let mut state = self.state.lock();
        match state.lease {
            Some((known, at)) if known == epoch => at,
            _ => state.lease.insert((epoch, now)).1,
        }
    }
}
