//! What all tables of a shard share.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::AtomicBool},
};

use parking_lot::Mutex;
use tokio::time::Instant;
use trellis_proto::DatasetName;

use super::unopened::Unopened;
use crate::{clock::WallClock, ownership::Ownership, watch_log::WatchLog};

/// The shard as its tables see it.
#[derive(Debug)]
pub(crate) struct Context {
    /// The shard's name.
    pub(crate) shard: String,
    /// The names of all shards.
    pub(crate) shards: Vec<String>,
    pub(crate) owns: Ownership,
    pub(crate) watch: Arc<WatchLog>,
    pub(crate) unopened: Unopened,
    /// Most bytes of one symbol's rows in one chunk.
    pub(crate) chunk_bytes_max: usize,
    /// A commit takes its knowledge time from it, and never an earlier one than the commit before.
    pub(crate) clock: WallClock,
    /// The zero of the clock that leases are counted by.
    pub(crate) started: Instant,
    /// The datasets that this shard is home to and that may need a checkpoint or a compaction: those with commits since the upkeep
    /// last took them.
    pub(crate) upkeep: Mutex<BTreeSet<DatasetName>>,
    /// A description has changed since the shard has left them for its next life.
    pub(crate) changed: AtomicBool,
}

impl Context {
    /// The upkeep shall look at a dataset, if this shard is its home.
    pub(crate) fn needs_upkeep(&self, dataset: &DatasetName) {
        if self.home(dataset.as_str()) == self.shard {
            self.upkeep.lock().insert(dataset.clone());
        }
    }

    /// The shard that commits to `dataset`.
    pub(crate) fn home(&self, dataset: &str) -> &str {
        trellis_proto::placement::home(&self.shards, dataset).unwrap_or(&self.shard)
    }
}
