//! What following the shards needs: the shards, what the head holds of them, and the names of the datasets that it follows.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::AtomicU64},
};

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::time::Instant;
use trellis_proto::{DatasetName, Error};

use crate::{held::Holdings, shards::Shards};

/// Follows the logs of the shards.
#[derive(Debug)]
pub(crate) struct Follower {
    pub(crate) shards: Arc<Shards>,
    pub(crate) holdings: Arc<Holdings>,
    pub(crate) interest: Interest,
    /// Name of this head, as shards see it.
    pub(crate) head_id: String,
    /// Batched checks so far.
    pub(crate) confirms: AtomicU64,
}

/// The names of the datasets that the head follows, with its tables and without.
#[derive(Debug, Default)]
pub(crate) struct Interest {
    names: RwLock<HashMap<DatasetName, Asked>>,
}

/// When a dataset was asked for.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) at: Instant,
    /// There was no such dataset, and until then the head says so again.
    pub(super) unknown: Option<(Instant, Error)>,
}

impl Interest {
    /// While this is held, no dataset is left.
    pub(super) fn kept(&self) -> RwLockReadGuard<'_, HashMap<DatasetName, Asked>> {
        self.names.read()
    }

    pub(super) fn all(&self) -> RwLockWriteGuard<'_, HashMap<DatasetName, Asked>> {
        self.names.write()
    }

    pub(super) fn ask(&self, dataset: &DatasetName) {
        let asked = Asked { at: Instant::now(), unknown: None };
        self.names.write().insert(dataset.clone(), asked);
    }
}
