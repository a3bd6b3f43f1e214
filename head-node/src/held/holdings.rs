//! All datasets by name, the memory and the cache, and carrying out the effects of a claim map.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::runtime::Handle;
use trellis_proto::{DatasetName, Result, pb::DatasetDescription};

use super::{
    cache::Cache,
    claims::{Abandoned, FlightId, Token},
    datasets::{Table, TableCounters},
    series::{Series, SeriesEffects},
    tables::{Described, Tables},
};
use crate::{limits::Memory, shards::Shard};

/// Everything that the head holds.
#[derive(Debug)]
pub(crate) struct Holdings {
    pub(crate) memory: Arc<Memory>,
    pub(crate) cache: Cache,
    tables: Tables,
    /// How long an abandoned flight goes on.
    grace: Duration,
    /// Counts up for the ids of flights and tokens. No id is used again.
    ids: AtomicU64,
    runtime: Handle,
    /// Chunks closed or patched by changes.
    pub(crate) invalidations: AtomicU64,
    pub(crate) poisoned_flights: AtomicU64,
    pub(crate) cancelled_flights: AtomicU64,
    /// The counters of all datasets together.
    pub(crate) counters: Arc<TableCounters>,
}

impl Holdings {
    /// Holds nothing yet, and at most `budget_bytes`. Needs a Tokio runtime.
    pub(crate) fn new(budget_bytes: u64, grace: Duration) -> Self {
        let memory = Memory::new(budget_bytes);
        let counters = Arc::default();
        Self {
            cache: Cache::new(&memory),
            memory,
            tables: Tables::new(&counters),
            grace,
            ids: AtomicU64::new(1),
            runtime: Handle::current(),
            invalidations: AtomicU64::new(0),
            poisoned_flights: AtomicU64::new(0),
            cancelled_flights: AtomicU64::new(0),
            counters,
        }
    }

    pub(crate) fn next_flight(&self) -> FlightId {
        self.ids.fetch_add(1, Relaxed)
    }
    pub(crate) fn next_token(&self) -> Token {
        self.ids.fetch_add(1, Relaxed)
    }

    pub(crate) fn table(&self, name: &DatasetName) -> Option<Arc<Table>> {
        self.tables.get(name)
    }

    /// The tables of the datasets that the head follows.
    pub(crate) fn tables(&self) -> &Tables {
        &self.tables
    }

    /// As [`Tables::take`], and lets go of what a table held that no later read uses. `None`: the dataset is dropped.
    ///
    /// # Errors
    /// As [`Tables::take`].
    pub(crate) fn table_of(&self, said: &DatasetDescription) -> Result<Option<Arc<Table>>> {
        let Described { now, before } = self.tables.take(said)?;
        if let Some(before) = before {
            tracing::info!(dataset = %before.name, version = said.version, dropped = now.is_none(), "a dataset has changed");
            self.let_go(&before);
        }
        Ok(now)
    }

    /// Frees the ready chunks of a table that no later read uses. Reads that have taken chunks keep them.
    fn let_go(&self, table: &Table) {
        for series in table.all_series() {
            let mut effects = SeriesEffects::default();
            series.lock().claims.clear(&mut effects);
            for (id, payload) in effects.removed {
                self.memory.dropped(payload.bytes());
                self.cache.remove(id);
            }
        }
    }

    /// Carries out the effects of a claim map. The caller holds no series' lock.
    pub(crate) fn settle(self: &Arc<Self>, series: &Arc<Series>, shard: &Arc<Shard>, effects: SeriesEffects) {
        for waiter in &effects.broken {
            waiter.broke();
        }
        for waiter in &effects.wake {
            waiter.settled();
        }
        // A slot may be inserted and removed by one change: all insertions first, so that no removal comes too early.
        for (_, _, payload) in &effects.inserted {
            self.memory.stored(payload.bytes());
        }
        for (chunk, id, _) in &effects.inserted {
            self.cache.insert(series, *chunk, *id);
        }
        for (id, payload) in &effects.removed {
            self.memory.dropped(payload.bytes());
            self.cache.remove(*id);
        }
        self.invalidations.fetch_add(effects.touched, Relaxed);
        self.poisoned_flights.fetch_add(effects.poisoned, Relaxed);
        for left in effects.abandoned {
            self.abandon(series, shard, left);
        }
    }

    /// Gives a flight up after the grace, unless a reader joins it meanwhile.
    fn abandon(self: &Arc<Self>, series: &Arc<Series>, shard: &Arc<Shard>, left: Abandoned) {
        let (holdings, series, shard) = (Arc::clone(self), Arc::clone(series), Arc::clone(shard));
        self.runtime.spawn(async move {
            tokio::time::sleep(holdings.grace).await;
            let expired = series.lock().claims.expire(left);
            if expired {
                holdings.cancelled_flights.fetch_add(1, Relaxed);
                shard.flights_cancelled.notify_waiters();
            }
        });
    }
}
