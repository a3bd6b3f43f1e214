//! What all parts of the engine share: registries, counters, and the thin edge between a series' claim map and the rest.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use trellis_fabric::channel::ChannelOptions;
use trellis_proto::{Code, DatasetName, Error, Result, placement::OwnershipMap};

use crate::{
    cache::Cache,
    claims::{Abandoned, FlightId, Generation, Token},
    datasets::Table,
    memory::Memory,
    metrics::Waits,
    series::{Cell, Fx},
    shards::Shard,
};

/// Settings of the engine.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Name of this head, as shards see it.
    pub head_id: String,
    /// Everything in memory together: cached, in flight, held by readers.
    pub budget_bytes: u64,
    /// How long a fetch goes on after its last reader has left.
    pub grace: Duration,
}

impl EngineConfig {
    /// A fetch that nobody waits for goes on this long: a client that retries at once finds it still under way.
    pub const GRACE: Duration = Duration::from_millis(250);

    /// The default settings of a head of this name.
    #[must_use]
    pub fn new(head_id: impl Into<String>, budget_bytes: u64) -> Self {
        Self { head_id: head_id.into(), budget_bytes, grace: Self::GRACE }
    }
}

/// Counters since the head started.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) upstream_calls: AtomicU64,
    pub(crate) bytes_fetched: AtomicU64,
    pub(crate) invalidations: AtomicU64,
    pub(crate) poisoned_flights: AtomicU64,
    pub(crate) stale_answers: AtomicU64,
    pub(crate) shed: AtomicU64,
    pub(crate) confirms: AtomicU64,
    pub(crate) flights_cancelled: AtomicU64,
}

/// The ownership map, or why there is none.
#[derive(Debug)]
pub(crate) struct Ownership {
    /// Grows with every change.
    pub(crate) epoch: u64,
    pub(crate) map: Result<OwnershipMap>,
}

#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) config: EngineConfig,
    pub(crate) channels: ChannelOptions,
    pub(crate) memory: Arc<Memory>,
    pub(crate) cache: Cache,
    pub(crate) counters: Counters,
    pub(crate) waits: Waits,
    tables: RwLock<HashMap<DatasetName, Arc<Table>>>,
    shards: RwLock<BTreeMap<String, Arc<Shard>>>,
    ownership: RwLock<Arc<Ownership>>,
    /// Datasets that were dropped, and the version that ended each: what is told of an earlier one is old news.
    dropped: Mutex<HashMap<DatasetName, u64>>,
    /// Datasets that no shard knew a moment ago.
    pub(crate) unknown: Mutex<HashMap<DatasetName, tokio::time::Instant>>,
    /// One round of descriptions at a time; why the last one was not whole.
    pub(crate) describing: tokio::sync::Mutex<Option<Error>>,
    /// Rounds begun.
    pub(crate) rounds: AtomicU64,
    /// Changes with every change of shards, their links, or the map.
    pub(crate) changed: watch::Sender<u64>,
    ids: AtomicU64,
    runtime: tokio::runtime::Handle,
    #[cfg(test)]
    pub(crate) panic_on_arrival: std::sync::atomic::AtomicBool,
}

impl Core {
    pub(crate) fn new(config: EngineConfig) -> Arc<Self> {
        let memory = Memory::new(config.budget_bytes);
        let none = Error::new(Code::Unavailable, "no shard has been found yet");
        Arc::new(Self {
            channels: ChannelOptions::of_unit(config.head_id.as_str()),
            cache: Cache::new(&memory),
            memory,
            config,
            counters: Counters::default(),
            waits: Waits::new(),
            tables: RwLock::default(),
            shards: RwLock::default(),
            ownership: RwLock::new(Arc::new(Ownership { epoch: 0, map: Err(none) })),
            dropped: Mutex::default(),
            unknown: Mutex::default(),
            describing: tokio::sync::Mutex::default(),
            rounds: AtomicU64::new(0),
            changed: watch::Sender::new(0),
            ids: AtomicU64::new(1),
            runtime: tokio::runtime::Handle::current(),
            #[cfg(test)]
            panic_on_arrival: std::sync::atomic::AtomicBool::new(false),
        })
    }

    /// The clock of recency.
    pub(crate) fn now(&self) -> u32 {
        self.memory.now()
    }

    pub(crate) fn next_flight(&self) -> FlightId {
        self.ids.fetch_add(1, Relaxed)
    }
    pub(crate) fn next_token(&self) -> Token {
        self.ids.fetch_add(1, Relaxed)
    }
    pub(crate) fn next_generation(&self) -> Generation {
        self.ids.fetch_add(1, Relaxed)
    }

    pub(crate) fn table(&self, name: &DatasetName) -> Option<Arc<Table>> {
        self.tables.read().get(name).cloned()
    }

    pub(crate) fn tables(&self) -> Vec<Arc<Table>> {
        self.tables.read().values().cloned().collect()
    }

    /// The table of a dataset as described by a shard, made if it is new. A later version with another spec makes another table;
    /// an earlier one changes nothing, and its rows are not to be read with the table's spec. `None`: the dataset is dropped.
    ///
    /// # Errors
    /// [`Code::Conflict`] if it is there with another spec at the same version; [`Code::InvalidRequest`] if the description is not
    /// valid.
    pub(crate) fn table_of(
        self: &Arc<Self>,
        said: &trellis_proto::pb::DatasetDescription,
    ) -> Result<Option<Arc<Table>>> {
        let spec = crate::datasets::spec_of(said)?;
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
                None => Some(Table::new(spec.clone(), said.schema, said.version)),
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

    /// Frees what is held of a table that nobody will ask again. Those who read it have what they took.
    fn let_go(&self, table: &Table) {
        for cell in table.all_cells() {
            let mut fx = Fx::default();
            cell.lock().series.clear(&mut fx);
            for (id, payload) in fx.removed {
                self.memory.dropped(payload.bytes());
                self.cache.remove(id);
            }
        }
    }

    pub(crate) fn shards(&self) -> Vec<Arc<Shard>> {
        self.shards.read().values().cloned().collect()
    }

    pub(crate) fn shard(&self, id: &str) -> Option<Arc<Shard>> {
        self.shards.read().get(id).cloned()
    }

    pub(crate) fn ownership(&self) -> Arc<Ownership> {
        Arc::clone(&self.ownership.read())
    }

    /// A shard has been found, or found again.
    pub(crate) fn add_shard(&self, shard: &Arc<Shard>) {
        let before = self.shards.write().insert(shard.id.to_string(), Arc::clone(shard));
        if let Some(before) = before.filter(|before| before.addr != shard.addr) {
            tracing::warn!(shard = %shard.id, was = before.addr, now = shard.addr, "a shard has moved");
        }
        self.rebuild_ownership();
    }

    /// A shard is no longer among the peers.
    pub(crate) fn remove_shard(&self, shard: &Arc<Shard>) {
        {
            let mut shards = self.shards.write();
            if !shards.get(&*shard.id).is_some_and(|known| Arc::ptr_eq(known, shard)) {
                return;
            }
            shards.remove(&*shard.id);
        }
        for table in self.tables() {
            table.forget(shard);
        }
        self.rebuild_ownership();
    }

    /// Builds the map anew. A map with a hole or an overlap serves nobody: half an answer, or one of two, would look whole.
    pub(crate) fn rebuild_ownership(&self) {
        let mut ownership = self.ownership.write();
        let was_whole = ownership.map.is_ok();
        let owns: Vec<_> = self.shards().iter().map(|shard| (shard.id.to_string(), shard.owns())).collect();
        let map = OwnershipMap::build(&owns).map_err(|error| {
            // at a start it becomes whole shard by shard; reads say it as long as it is not
            if was_whole {
                tracing::error!(%error, shards = owns.len(), "the shards do not own everything exactly once");
            } else {
                tracing::warn!(%error, shards = owns.len(), "the shards found so far do not own everything exactly once");
            }
            Error::new(
                Code::Unavailable,
                format!("the shards do not own everything exactly once: {}", error.message()),
            )
            .hint("try again; if it stays, look at what the shards are configured to own")
        });
        *ownership = Arc::new(Ownership { epoch: ownership.epoch + 1, map });
        drop(ownership);
        self.notify();
    }

    /// Something that somebody may be waiting for has changed.
    pub(crate) fn notify(&self) {
        self.changed.send_modify(|n| *n += 1);
    }

    /// Does what a claim map has asked for. The caller holds no series' lock.
    pub(crate) fn settle(self: &Arc<Self>, cell: &Arc<Cell>, shard: &Arc<Shard>, fx: Fx) {
        for waiter in &fx.broken {
            waiter.broke();
        }
        for waiter in &fx.wake {
            waiter.settled();
        }
        // what comes and goes in one step is inserted first, so that no removal is early
        for (_, _, payload) in &fx.inserted {
            self.memory.stored(payload.bytes());
        }
        for (chunk, id, _) in &fx.inserted {
            self.cache.insert(cell, *chunk, *id);
        }
        for (id, payload) in &fx.removed {
            self.memory.dropped(payload.bytes());
            self.cache.remove(*id);
        }
        self.counters.invalidations.fetch_add(fx.touched, Relaxed);
        self.counters.poisoned_flights.fetch_add(fx.poisoned, Relaxed);
        for left in fx.abandoned {
            self.abandon(cell, shard, left);
        }
    }

    /// Cancels a flight after the grace, unless somebody joins it.
    fn abandon(self: &Arc<Self>, cell: &Arc<Cell>, shard: &Arc<Shard>, left: Abandoned) {
        let (core, cell, shard) = (Arc::clone(self), Arc::clone(cell), Arc::clone(shard));
        self.runtime.spawn(async move {
            tokio::time::sleep(core.config.grace).await;
            let expired = cell.lock().series.expire(left);
            if expired {
                core.counters.flights_cancelled.fetch_add(1, Relaxed);
                shard.flights_cancelled.notify_waiters();
            }
        });
    }

    pub(crate) fn runtime(&self) -> &tokio::runtime::Handle {
        &self.runtime
    }
}
