//! One series of one dataset: its claim map under its lock, and its routes.

use std::{ops::Range, sync::Arc};

use parking_lot::{Mutex, MutexGuard};
use trellis_proto::Symbol;

use super::{
    asked::AskedRanges,
    chunk::Chunk,
    claims::{ClaimMap, Effects, SlotId},
    part::Part,
    waiter::WaiterRef,
};

/// The effects of a claim map of chunks.
pub(crate) type SeriesEffects = Effects<Arc<Chunk>, WaiterRef>;

/// A series. Made when it is first asked for, and kept: a few hundred bytes for each symbol that was ever asked for.
#[derive(Debug)]
pub(crate) struct Series {
    pub(crate) symbol: Symbol,
    state: Mutex<SeriesState>,
}

/// The part of a series that is under its lock.
#[derive(Debug, Default)]
pub(crate) struct SeriesState {
    pub(crate) claims: ClaimMap<Arc<Chunk>, WaiterRef>,
    pub(crate) asked: AskedRanges,
    routes: Option<KnownRoutes>,
}

/// The routes of a series as of one state of the ownership map.
#[derive(Debug)]
struct KnownRoutes {
    epoch: u64,
    routes: Arc<[Route]>,
}

/// A run of chunks with one owner.
#[derive(Debug, Clone)]
pub(crate) struct Route {
    pub(crate) chunks: Range<i64>,
    /// The owner's part of the dataset.
    pub(crate) part: Arc<Part>,
}

impl Series {
    pub(crate) fn new(symbol: Symbol) -> Self {
        Self { symbol, state: Mutex::default() }
    }

    /// The lock is held for microseconds, never across an await, and never while the cache is called.
    pub(crate) fn lock(&self) -> MutexGuard<'_, SeriesState> {
        self.state.lock()
    }

    pub(crate) fn evict(&self, chunk: i64, slot: SlotId) -> Option<Arc<Chunk>> {
        self.lock().claims.evict(chunk, slot)
    }

    pub(crate) fn has(&self, chunk: i64, slot: SlotId) -> bool {
        self.lock().claims.has(chunk, slot)
    }

    /// The routes that were kept at this epoch of the ownership map.
    pub(super) fn routes_at(&self, epoch: u64) -> Option<Arc<[Route]>> {
        let state = self.lock();
        state.routes.as_ref().filter(|known| known.epoch == epoch).map(|known| Arc::clone(&known.routes))
    }

    /// Keeps the routes until the ownership map changes.
    pub(super) fn keep_routes(&self, epoch: u64, routes: &Arc<[Route]>) {
        self.lock().routes = Some(KnownRoutes { epoch, routes: Arc::clone(routes) });
    }
}
