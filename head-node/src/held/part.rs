//! One shard's part of one dataset, and how far it is known.

use std::sync::Arc;

use parking_lot::Mutex;
use trellis_fabric::single::Single;
use trellis_proto::{Result, pb};

use super::claims::Standing;
use crate::shards::Shard;

/// One shard's part of one dataset, and how far it is known.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) shard: Arc<Shard>,
    standing: Mutex<Standing>,
    described: Mutex<Described>,
    /// The calls that ask the shard for everything that it has committed.
    pub(crate) catch_up: Single<Result<()>>,
}

/// One shard's description of a dataset.
#[derive(Debug, Clone, Default)]
pub(super) struct Described {
    pub(super) version: u64,
    pub(super) watermark: Option<i64>,
    pub(super) first_ts: Option<i64>,
    pub(super) last_ts: Option<i64>,
    pub(super) rows: u64,
    pub(super) symbols: u64,
    pub(super) home: String,
}

impl Part {
    pub(super) fn new(shard: &Arc<Shard>, standing: Standing, described: Described) -> Self {
        Self {
            shard: Arc::clone(shard),
            standing: Mutex::new(standing),
            described: Mutex::new(described),
            catch_up: Single::default(),
        }
    }

    pub(crate) fn standing(&self) -> Standing {
        *self.standing.lock()
    }

    /// A new gapless stretch of the shard's log begins, with this standing.
    pub(crate) fn begin(&self, standing: Standing) {
        *self.standing.lock() = standing;
    }

    /// All commits up to this knowledge time have been applied.
    pub(crate) fn advance(&self, known_through: i64) {
        let mut standing = self.standing.lock();
        standing.known_through = standing.known_through.max(known_through);
    }

    /// Takes the shard's description, unless a newer one has come already.
    pub(super) fn describe(&self, said: &pb::DatasetDescription) {
        let mut described = self.described.lock();
        if said.version >= described.version {
            *described = Described {
                version: said.version,
                watermark: said.watermark_ns,
                first_ts: said.first_ts_ns,
                last_ts: said.last_ts_ns,
                rows: said.rows,
                symbols: said.symbols,
                home: said.home.clone(),
            };
        }
    }

    /// The version that the shard has described last.
    pub(crate) fn version(&self) -> u64 {
        self.described.lock().version
    }

    pub(super) fn described(&self) -> Described {
        self.described.lock().clone()
    }

    pub(crate) fn watermark(&self) -> Option<i64> {
        self.described.lock().watermark
    }

    /// The greatest event time of any row that the shard has described.
    pub(crate) fn last_ts(&self) -> Option<i64> {
        self.described.lock().last_ts
    }
}
