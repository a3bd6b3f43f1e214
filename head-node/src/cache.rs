//! Which slots stay: the only file that knows the eviction engine (moka).
//!
//! The claim maps hold the chunks; moka decides which to let go, by recency and by bytes. It is used in one way only: every
//! insertion has a key of its own, nothing is overwritten, nothing is loaded through it. (Measured on 0.12.16: overwriting live
//! keys under LRU loses capacity for good, `get_with` restarts a load for each cancelled caller, and a load in flight overwrites a
//! later invalidation. TinyLFU refused large entries for ever and missed 5.8 times more after a shift of the working set.)
//!
//! **Ballast.** The budget is for everything in memory, and moka's capacity cannot be changed, so what is in flight or pinned by
//! readers is put into it as weight without content: entries of one quantum each. The cache shrinks while they are there and grows
//! back when they go. If recency drops a piece of ballast, it is put back, newest.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use moka::{notification::RemovalCause, policy::EvictionPolicy};
use parking_lot::Mutex;

use crate::{
    claims::SlotId,
    memory::{Memory, SLOT_BYTES},
    series::Cell,
};

/// The budget in pieces of ballast: the fineness with which the cache gives way.
const BALLAST_PARTS: u64 = 256;
/// How often the engine is asked to work off what is over the budget, at most, before the next insertion goes on anyway.
const WORK_ROUNDS: usize = 8;

#[derive(Debug, Clone)]
enum Entry {
    Slot { cell: Arc<Cell>, chunk: i64, bytes: u32 },
    Ballast { bytes: u32 },
}

/// The eviction engine, and the room that it leaves for what is not cached.
#[derive(Debug)]
pub(crate) struct Cache {
    engine: moka::sync::Cache<SlotId, Entry>,
    memory: Arc<Memory>,
    ids: AtomicU64,
    quantum: u64,
    ballast: Arc<Mutex<Vec<SlotId>>>,
    evictions: Arc<AtomicU64>,
}

impl Cache {
    pub(crate) fn new(memory: &Arc<Memory>) -> Self {
        let ballast: Arc<Mutex<Vec<SlotId>>> = Arc::default();
        let evictions: Arc<AtomicU64> = Arc::default();
        let (dropped, counted, accounts) = (Arc::clone(&ballast), Arc::clone(&evictions), Arc::clone(memory));
        let engine = moka::sync::Cache::builder()
            .max_capacity(memory.budget())
            .eviction_policy(EvictionPolicy::lru())
            .weigher(|_, entry: &Entry| match entry {
                Entry::Slot { bytes, .. } | Entry::Ballast { bytes } => *bytes,
            })
            .eviction_listener(move |id, entry, cause| {
                if cause != RemovalCause::Size {
                    return;
                }
                match entry {
                    Entry::Slot { cell, chunk, .. } => {
                        if let Some(payload) = cell.evict(chunk, *id) {
                            accounts.dropped(payload.bytes());
                            counted.fetch_add(1, Relaxed);
                        }
                    }
                    Entry::Ballast { .. } => dropped.lock().retain(|ballast| ballast != id.as_ref()),
                }
            })
            .build();
        let quantum = (memory.budget() / BALLAST_PARTS).clamp(1, u64::from(u32::MAX));
        Self { engine, memory: Arc::clone(memory), ids: AtomicU64::new(1), quantum, ballast, evictions }
    }

    /// An id for an insertion.
    pub(crate) fn next_id(&self) -> SlotId {
        self.ids.fetch_add(1, Relaxed)
    }

    /// A slot has been put into a series. The caller must not hold any series' lock: room may have to be made.
    pub(crate) fn insert(&self, cell: &Arc<Cell>, chunk: i64, id: SlotId, bytes: u64) {
        let bytes = u32::try_from(bytes + SLOT_BYTES).unwrap_or(u32::MAX);
        self.engine.insert(id, Entry::Slot { cell: Arc::clone(cell), chunk, bytes });
        // whoever removed the slot before it was known here could not say so
        if !cell.has(chunk, id) {
            self.engine.invalidate(&id);
        }
    }

    /// A slot has been removed from its series.
    pub(crate) fn remove(&self, id: SlotId) {
        self.engine.invalidate(&id);
    }

    /// A slot has been used.
    pub(crate) fn touch(&self, id: SlotId) {
        let _ = self.engine.get(&id);
    }

    /// Fits the ballast to what is in flight and pinned, and makes room if everything together is over the budget.
    pub(crate) fn settle(&self) {
        for _ in 0..WORK_ROUNDS {
            self.fit_ballast();
            if self.memory.resident() + self.memory.transit() <= self.memory.budget() {
                return;
            }
            self.engine.run_pending_tasks();
        }
    }

    fn fit_ballast(&self) {
        let target = (self.memory.transit().div_ceil(self.quantum)).min(BALLAST_PARTS) as usize;
        loop {
            let mut ballast = self.ballast.lock();
            if ballast.len() == target {
                return;
            }
            if ballast.len() > target {
                let id = ballast.pop();
                drop(ballast);
                if let Some(id) = id {
                    self.engine.invalidate(&id);
                }
            } else {
                let id = self.next_id();
                ballast.push(id);
                // the engine may call the listener, which takes this lock
                drop(ballast);
                self.engine.insert(id, Entry::Ballast { bytes: self.quantum as u32 });
            }
        }
    }

    /// Slots that were let go for room.
    pub(crate) fn evictions(&self) -> u64 {
        self.evictions.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::{
        chunk::{Chunk, Stamp},
        claims::{ColumnSet, Standing},
        series::Fx,
    };

    const STANDING: Standing = Standing { generation: 1, known_through: 1 };
    const STAMP: Stamp = Stamp { columns: ColumnSet(1), version: 1, known_through: 1 };
    const WRITERS: usize = 4;
    /// Slots that fit. Chunks without rows weigh as much as a slot.
    const SLOTS: u64 = 4_096;
    /// Chunks of one writer: more than fit, so that insertions and evictions never end.
    const CHUNKS: u64 = SLOTS;
    /// A hundred times what fits. (The benches put ten million chunks into a head.)
    const INSERTIONS: u64 = 400_000;

    /// Chunks come, are used, changed (their slot removed, another inserted) and let go, by several writers at once.
    #[test]
    fn capacity_does_not_shrink_however_many_chunks_come_and_go() {
        let memory = Memory::new(SLOTS * SLOT_BYTES);
        let cache = Cache::new(&memory);
        thread::scope(|scope| {
            for writer in 0..WRITERS as u64 {
                let (cache, memory) = (&cache, &memory);
                scope.spawn(move || {
                    let cell = Arc::new(Cell::new("AMZN".parse().unwrap()));
                    let mut held = vec![0; CHUNKS as usize];
                    // a linear congruence (Knuth): the order matters, chance does not
                    let mut state = writer;
                    for _ in 0..INSERTIONS / WRITERS as u64 {
                        state = state
                            .wrapping_mul(6_364_136_223_846_793_005)
                            .wrapping_add(1_442_695_040_888_963_407);
                        let chunk = ((state >> 33) % CHUNKS) as usize;
                        if let Some(payload) = cell.evict(chunk as i64, held[chunk]) {
                            memory.dropped(payload.bytes());
                            cache.remove(held[chunk]);
                        }
                        let mut fx = Fx::default();
                        let payload = Chunk::empty(memory, STAMP);
                        let mut next = || cache.next_id();
                        cell.lock().series.plant(chunk as i64, payload, &STANDING, &mut next, &mut fx);
                        for (at, id, payload) in fx.inserted {
                            memory.stored(payload.bytes());
                            cache.insert(&cell, at, id, payload.bytes());
                            held[chunk] = id;
                        }
                        cache.touch(held[((state >> 17) % CHUNKS) as usize]);
                    }
                });
            }
        });
        cache.settle();
        let (resident, budget) = (memory.resident() as f64, memory.budget() as f64);
        assert!(resident <= budget, "{resident} of {budget}");
        assert!(resident >= 0.98 * budget, "{resident} of {budget}");
    }
}
