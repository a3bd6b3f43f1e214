//! One shard's part of one dataset, and how far it is known.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::SeqCst},
};

use parking_lot::Mutex;
use trellis_proto::{Result, pb};

use super::claims::Standing;
use crate::shards::Shard;

/// One shard's part of one dataset, and how far it is known.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) shard: Arc<Shard>,
    standing: Mutex<Standing>,
    described: Mutex<Described>,
    pub(crate) catch_up: SharedCall,
}

/// A call that serves all callers that asked for it before it began. One call is under way at a time.
#[derive(Debug, Default)]
pub(crate) struct SharedCall {
    begun: AtomicU64,
    /// Number of the last call that succeeded. Locked while a call is under way.
    answered: tokio::sync::Mutex<u64>,
}

impl SharedCall {
    /// Returns when a call that began after this one was asked for has succeeded, or when the caller's own call has failed. Cancel
    /// safe.
    ///
    /// # Errors
    /// The error of the caller's own `call`.
    pub(crate) async fn share<F: Future<Output = Result<()>>>(&self, call: impl FnOnce() -> F) -> Result<()> {
        let before = self.begun.load(SeqCst);
        let mut answered = self.answered.lock().await;
        if *answered <= before {
            let number = self.begun.fetch_add(1, SeqCst) + 1;
            call().await?;
            *answered = number;
        }
        Ok(())
    }
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
            catch_up: SharedCall::default(),
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
