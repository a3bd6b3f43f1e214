//! The order of use of all slots. While everything in memory is over the budget, the slot that was used least recently is evicted.
//!
//! The claim maps hold the chunks; the cache holds only the order. Every insertion has a key of its own, so no entry is ever overwritten.
//! The cache asks the gauges whether to evict ([`Memory::is_over`]). So bytes in flight and pinned bytes take room from the cache and
//! give it back, and it need not be told.
//!
//! The rejected choice is moka, a concurrent cache with a capacity of its own. Bytes outside the cache had to be entries without content,
//! and moka's bookkeeping was half of the work of a full head for each chunk that came. Its eviction by frequency (TinyLFU) refused large
//! entries for ever, and missed 5.8 times more after a change of the working set.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use lru::LruCache;
use parking_lot::Mutex;

use super::{claims::SlotId, series::Series};
use crate::limits::Memory;

/// Where a slot is.
#[derive(Debug)]
struct Place {
    series: Arc<Series>,
    chunk: i64,
}

/// The slots of all series in the order of their use.
#[derive(Debug)]
pub(crate) struct Cache {
    slots: Mutex<LruCache<SlotId, Place>>,
    memory: Arc<Memory>,
    ids: AtomicU64,
    evictions: AtomicU64,
}

impl Cache {
    pub(crate) fn new(memory: &Arc<Memory>) -> Self {
        Self {
            slots: Mutex::new(LruCache::unbounded()),
            memory: Arc::clone(memory),
            ids: AtomicU64::new(1),
            evictions: AtomicU64::new(0),
        }
    }

    /// The id of a new insertion.
    pub(crate) fn next_id(&self) -> SlotId {
        self.ids.fetch_add(1, Relaxed)
    }

    /// Adds a slot that has been put into a series and counted. May evict, so the caller must not hold the lock of any series.
    pub(crate) fn insert(&self, series: &Arc<Series>, chunk: i64, id: SlotId) {
        self.slots.lock().put(id, Place { series: Arc::clone(series), chunk });
        // a slot may have been taken out of its series before this call
        if !series.has(chunk, id) {
            self.remove(id);
        }
        self.make_room();
    }

    /// Removes a slot that has been taken out of its series.
    pub(crate) fn remove(&self, id: SlotId) {
        let _ = self.slots.lock().pop(&id);
    }

    /// Makes these slots the most recently used.
    pub(crate) fn touch(&self, ids: &[SlotId]) {
        if ids.is_empty() {
            return;
        }
        let mut slots = self.slots.lock();
        for id in ids {
            slots.promote(id);
        }
    }

    /// Evicts slots until everything together is within the budget, or none is left. The caller must not hold the lock of any series.
    pub(crate) fn make_room(&self) {
        while self.memory.is_over() {
            let Some((id, Place { series, chunk })) = self.slots.lock().pop_lru() else { return };
            if let Some(payload) = series.evict(chunk, id) {
                self.memory.dropped(payload.bytes());
                self.evictions.fetch_add(1, Relaxed);
            }
        }
    }

    /// Slots evicted so far.
    pub(crate) fn evictions(&self) -> u64 {
        self.evictions.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::super::{
        chunk::{Chunk, Stamp},
        claims::{ColumnSet, Standing},
        series::SeriesEffects,
    };
    use super::*;
    use crate::limits::SLOT_BYTES;

    const STANDING: Standing = Standing { generation: 1, known_through: 1 };
    const STAMP: Stamp = Stamp { columns: ColumnSet(1), version: 1, known_through: 1 };
    const WRITERS: usize = 4;
    /// Slots that fit into the budget. A chunk without rows counts as one slot.
    const SLOTS: u64 = 4_096;
    /// Chunks of one writer: more than fit, so that insertions and evictions never end.
    const CHUNKS: u64 = SLOTS;
    /// A hundred times the slots that fit. (The benches put ten million chunks into a head.)
    const INSERTIONS: u64 = 400_000;

    fn put(cache: &Cache, series: &Arc<Series>, chunk: i64) -> SlotId {
        let (memory, mut effects) = (&cache.memory, SeriesEffects::default());
        let mut next = || cache.next_id();
        series.lock().claims.plant(chunk, Chunk::empty(memory, STAMP), &STANDING, &mut next, &mut effects);
        let Some((at, id, payload)) = effects.inserted.pop() else {
            panic!("chunk {chunk} is there already")
        };
        memory.stored(payload.bytes());
        cache.insert(series, at, id);
        id
    }

    fn series() -> Arc<Series> {
        Arc::new(Series::new("AMZN".parse().unwrap()))
    }

    #[test]
    fn the_slot_used_least_recently_is_evicted_first() {
        let cache = Cache::new(&Memory::new(3 * SLOT_BYTES));
        let series = series();
        let ids: Vec<SlotId> = (0..3).map(|chunk| put(&cache, &series, chunk)).collect();
        cache.touch(&ids[..1]);
        let fourth = put(&cache, &series, 3);
        let held = |chunk: i64, id| series.has(chunk, id);
        assert_eq!(
            [held(0, ids[0]), held(1, ids[1]), held(2, ids[2]), held(3, fourth)],
            [true, false, true, true]
        );
        assert_eq!(cache.evictions(), 1);
    }

    #[test]
    fn bytes_outside_the_cache_take_room_and_give_it_back() {
        let memory = Memory::new(10 * SLOT_BYTES);
        let (cache, series) = (Cache::new(&memory), series());
        for chunk in 0..10 {
            put(&cache, &series, chunk);
        }
        memory.allocated(4 * SLOT_BYTES);
        cache.make_room();
        assert_eq!(memory.resident(), 6 * SLOT_BYTES);
        memory.freed(4 * SLOT_BYTES);
        for chunk in 20..30 {
            put(&cache, &series, chunk);
        }
        assert_eq!(memory.resident(), memory.budget());
        memory.allocated(11 * SLOT_BYTES);
        cache.make_room();
        assert_eq!(memory.resident(), 0, "there is no more to give");
    }

    #[test]
    fn a_slot_that_was_removed_before_it_is_added_leaves_nothing_behind() {
        let cache = Cache::new(&Memory::new(10 * SLOT_BYTES));
        cache.insert(&series(), 0, cache.next_id());
        assert!(cache.slots.lock().is_empty());
    }

    /// Chunks come, are used, changed (their slot removed, another inserted) and let go, by several writers at once.
    #[test]
    fn capacity_does_not_shrink_however_many_chunks_come_and_go() {
        let memory = Memory::new(SLOTS * SLOT_BYTES);
        let cache = Cache::new(&memory);
        thread::scope(|scope| {
            for writer in 0..WRITERS as u64 {
                let (cache, memory) = (&cache, &memory);
                scope.spawn(move || {
                    let series = series();
                    let mut held = vec![0; CHUNKS as usize];
                    // a linear congruence (Knuth): the order matters, chance does not
                    let mut state = writer;
                    for _ in 0..INSERTIONS / WRITERS as u64 {
                        state = state
                            .wrapping_mul(6_364_136_223_846_793_005)
                            .wrapping_add(1_442_695_040_888_963_407);
                        let chunk = ((state >> 33) % CHUNKS) as usize;
                        if let Some(payload) = series.evict(chunk as i64, held[chunk]) {
                            memory.dropped(payload.bytes());
                            cache.remove(held[chunk]);
                        }
                        held[chunk] = put(cache, &series, chunk as i64);
                        cache.touch(&[held[((state >> 17) % CHUNKS) as usize]]);
                    }
                });
            }
        });
        let (resident, budget) = (memory.resident(), memory.budget());
        assert!(budget - resident < WRITERS as u64 * SLOT_BYTES, "{resident} of {budget}");
        assert_eq!(
            cache.slots.lock().len() as u64 * SLOT_BYTES,
            resident,
            "nothing is known that is not there"
        );
    }
}
