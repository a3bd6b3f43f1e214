//! The parts that make an engine.

use std::sync::Arc;

use super::{describe::Describer, fetch::Fetcher, traces::Flights, waits::Waits};
use crate::{follow::Follower, held::Holdings, shards::Shards};

/// The parts that make an engine, shared by its reads.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) shards: Arc<Shards>,
    pub(super) holdings: Arc<Holdings>,
    pub(super) follower: Arc<Follower>,
    pub(super) fetcher: Arc<Fetcher>,
    pub(super) describer: Describer,
    pub(super) waits: Arc<Waits>,
    pub(super) flights: Arc<Flights>,
}

impl Core {
    pub(super) fn new(follower: Arc<Follower>) -> Self {
        let (shards, holdings) = (Arc::clone(&follower.shards), Arc::clone(&follower.holdings));
        let waits = Arc::new(Waits::new());
        Self {
            fetcher: Arc::new(Fetcher::new(Arc::clone(&shards), Arc::clone(&holdings), Arc::clone(&waits))),
            shards,
            holdings,
            follower,
            describer: Describer::default(),
            waits,
            flights: Arc::default(),
        }
    }
}
