//! One series of one dataset in this head: its claim map under its lock, and who owns which part of it.

use std::{ops::Range, sync::Arc};

use parking_lot::{Mutex, MutexGuard};
use trellis_proto::{Code, Error, Result, Symbol};

use crate::{
    chunk::Chunk,
    claims::{Effects, Series, SlotId},
    datasets::{Part, Table},
    flight::WaiterRef,
    state::Core,
    union::Asked,
};

pub(crate) type Fx = Effects<Arc<Chunk>, WaiterRef>;

/// A series. Made when it is first asked for, and kept: a few hundred bytes for each symbol that anybody asked for.
#[derive(Debug)]
pub(crate) struct Cell {
    pub(crate) symbol: Symbol,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
pub(crate) struct Inner {
    pub(crate) series: Series<Arc<Chunk>, WaiterRef>,
    pub(crate) asked: Asked,
    routes: Option<Routes>,
}

/// Which shard is asked for which chunks, in order, as of one state of the ownership map.
#[derive(Debug, Clone)]
pub(crate) struct Routes {
    epoch: u64,
    pub(crate) legs: Arc<[Leg]>,
}

/// A run of chunks with one owner.
#[derive(Debug, Clone)]
pub(crate) struct Leg {
    pub(crate) chunks: Range<i64>,
    pub(crate) part: Arc<Part>,
}

impl Cell {
    pub(crate) fn new(symbol: Symbol) -> Self {
        Self { symbol, inner: Mutex::default() }
    }

    /// The lock is held for microseconds, never while waiting, and never while the cache is told anything.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    pub(crate) fn evict(&self, chunk: i64, slot: SlotId) -> Option<Arc<Chunk>> {
        self.lock().series.evict(chunk, slot)
    }

    pub(crate) fn has(&self, chunk: i64, slot: SlotId) -> bool {
        self.lock().series.has(chunk, slot)
    }

    /// The owners as of now. Kept until the ownership map changes.
    ///
    /// # Errors
    /// [`Code::Unavailable`] while there is no valid map, or an owner has not described the dataset.
    pub(crate) fn legs(&self, core: &Core, table: &Table) -> Result<Arc<[Leg]>> {
        let ownership = core.ownership();
        {
            let inner = self.lock();
            if let Some(routes) = &inner.routes
                && routes.epoch == ownership.epoch
            {
                return Ok(Arc::clone(&routes.legs));
            }
        }
        let map = ownership.map.as_ref().map_err(Clone::clone)?;
        let owners = map.owners(table.name.as_str(), self.symbol.as_str(), trellis_proto::TimeRange::ALL);
        if owners.is_empty() {
            return Err(Error::new(Code::Unavailable, format!("no shard owns {}", self.symbol))
                .dataset(&table.name)
                .symbol(&self.symbol));
        }
        let span = table.spec.chunk;
        let mut legs = Vec::with_capacity(owners.len());
        for (range, shard) in owners {
            let aligned = |t: i64| span.start(span.chunk_of(t)) == t;
            if !range.start.is_none_or(aligned) || !range.end.is_none_or(aligned) {
                return Err(Error::new(
                    Code::Conflict,
                    format!("the part of shard {shard} begins or ends inside a chunk of {}", table.name),
                )
                .dataset(&table.name)
                .shard(shard));
            }
            let part = table.part(shard).ok_or_else(|| {
                Error::new(Code::Unavailable, format!("shard {shard} does not know {} yet", table.name))
                    .dataset(&table.name)
                    .shard(shard)
            })?;
            let start = range.start.map_or(i64::MIN, |t| span.chunk_of(t));
            let end = range.end.map_or(i64::MAX, |t| span.chunk_of(t));
            legs.push(Leg { chunks: start..end, part });
        }
        let legs: Arc<[Leg]> = legs.into();
        self.lock().routes = Some(Routes { epoch: ownership.epoch, legs: Arc::clone(&legs) });
        Ok(legs)
    }

    /// The chunks of this series that a shard owns.
    ///
    /// # Errors
    /// As [`Self::legs`].
    pub(crate) fn owned_by(&self, core: &Core, table: &Table, shard: &str) -> Result<Vec<Range<i64>>> {
        let legs = self.legs(core, table)?;
        Ok(legs.iter().filter(|leg| *leg.part.shard.id == *shard).map(|leg| leg.chunks.clone()).collect())
    }
}
