//! All datasets by name, the memory and the cache, and carrying out the effects of a claim map.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::{Mutex, RwLock};
use tokio::runtime::Handle;
use trellis_proto::{Code, DatasetName, Error, Result, name::Suggest, pb::DatasetDescription};

use super::{
    cache::Cache,
    claims::{Abandoned, FlightId, Token},
    datasets::{Table, TableCounters, spec_of},
    series::{Series, SeriesEffects},
};
use crate::{limits::Memory, shards::Shard};

/// Everything that the head holds.
#[derive(Debug)]
pub(crate) struct Holdings {
    pub(crate) memory: Arc<Memory>,
    pub(crate) cache: Cache,
    tables: RwLock<HashMap<DatasetName, Arc<Table>>>,
    /// Datasets that were dropped, with the version that ended each. A description of an earlier version is out of date.
    dropped: Mutex<HashMap<DatasetName, u64>>,
    /// How long an abandoned flight goes on.
    grace: Duration,
    /// Of flights and tokens: never reused.
    ids: AtomicU64,
    runtime: Handle,
    /// Chunks closed or patched by changes.
    pub(crate) invalidations: AtomicU64,
    pub(crate) poisoned_flights: AtomicU64,
    pub(crate) cancelled_flights: AtomicU64,
    /// Of all datasets together.
    pub(crate) counters: Arc<TableCounters>,
}

impl Holdings {
    /// Holds nothing yet, and at most `budget_bytes`. Needs a Tokio runtime.
    pub(crate) fn new(budget_bytes: u64, grace: Duration) -> Self {
        let memory = Memory::new(budget_bytes);
        Self {
            cache: Cache::new(&memory),
            memory,
            tables: RwLock::default(),
            dropped: Mutex::default(),
            grace,
            ids: AtomicU64::new(1),
            runtime: Handle::current(),
            invalidations: AtomicU64::new(0),
            poisoned_flights: AtomicU64::new(0),
            cancelled_flights: AtomicU64::new(0),
            counters: Arc::default(),
        }
    }

    pub(crate) fn next_flight(&self) -> FlightId {
        self.ids.fetch_add(1, Relaxed)
    }
    pub(crate) fn next_token(&self) -> Token {
        self.ids.fetch_add(1, Relaxed)
    }

    pub(crate) fn table(&self, name: &DatasetName) -> Option<Arc<Table>> {
        self.tables.read().get(name).cloned()
    }

    /// The known dataset with the name nearest to a wrong one.
    pub(crate) fn nearest(&self, wrong: &DatasetName) -> Option<String> {
        let tables = self.tables.read();
        Suggest::default().nearest(wrong.as_str(), tables.keys().map(DatasetName::as_str)).map(str::to_owned)
    }

    pub(crate) fn tables(&self) -> Vec<Arc<Table>> {
        self.tables.read().values().cloned().collect()
    }

    /// The table of a dataset as a shard describes it, made if it is new. A later version with another spec makes another table. An
    /// earlier version changes nothing, and its rows must not be read with the table's spec. `None`: the dataset is dropped.
    ///
    /// # Errors
    /// [`Code::Conflict`] if the dataset is known with another spec at the same version; [`Code::InvalidRequest`] if the description
    /// is not valid.
    pub(crate) fn table_of(&self, said: &DatasetDescription) -> Result<Option<Arc<Table>>> {
        let spec = spec_of(said)?;
        let is = |table: &Table| table.schema == said.schema && *table.spec == spec;
        if let Some(table) = self.table(&spec.dataset).filter(|table| is(table) && !said.dropped) {
            return Ok(Some(table));
        }
        let (before, now) = {
            let mut tables = self.tables.write();
            let mut dropped = self.dropped.lock();
            if dropped.get(&spec.dataset).is_some_and(|end| said.version <= *end) {
                return Ok(None);
            }
            let before = tables.get(&spec.dataset).cloned();
            let now = match &before {
                Some(table) if said.dropped && said.version < table.dataset().version => {
                    return Ok(Some(Arc::clone(table)));
                }
                _ if said.dropped => None,
                Some(table) if is(table) || said.version < table.dataset().version => {
                    return Ok(Some(Arc::clone(table)));
                }
                Some(table) if said.version == table.dataset().version => {
                    let message = format!("shards disagree on what {} is", spec.dataset);
                    return Err(Error::new(Code::Conflict, message).dataset(&spec.dataset));
                }
                Some(table) => Some(table.redefined(spec.clone(), said.schema, said.version)),
                None => Some(Table::new(spec.clone(), said.schema, said.version, &self.counters)),
            };
            let now = now.map(Arc::new);
            match &now {
                Some(table) => {
                    dropped.remove(&spec.dataset);
                    tables.insert(spec.dataset.clone(), Arc::clone(table));
                }
                None => {
                    dropped.insert(spec.dataset.clone(), said.version);
                    tables.remove(&spec.dataset);
                }
            }
            (before, now)
        };
        if let Some(before) = before {
            tracing::info!(dataset = %spec.dataset, version = said.version, dropped = now.is_none(), "a dataset has changed");
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
