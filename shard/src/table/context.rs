//! What all tables of a shard share.

use std::sync::Arc;

use super::watch_log::WatchLog;
use crate::{clock::WallClock, ownership::Ownership};

/// The shard as its tables see it.
#[derive(Debug)]
pub(crate) struct Context {
    /// The shard's name.
    pub(crate) shard: String,
    /// The names of all shards.
    pub(crate) shards: Vec<String>,
    pub(crate) owns: Ownership,
    pub(crate) watch: Arc<WatchLog>,
    /// Most bytes of one symbol's rows in one chunk.
    pub(crate) chunk_bytes_max: usize,
    /// A commit takes its knowledge time from it, and never an earlier one than the commit before.
    pub(crate) clock: WallClock,
}

impl Context {
    /// The shard that commits to `dataset`.
    pub(crate) fn home(&self, dataset: &str) -> &str {
        trellis_proto::placement::home(&self.shards, dataset).unwrap_or(&self.shard)
    }
}
