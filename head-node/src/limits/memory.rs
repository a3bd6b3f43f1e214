//! One budget for everything that a head keeps in memory.
//!
//! Three gauges: *resident* (what the claim maps hold), *in flight* (reserved before a shard is asked), *pinned* (evicted
//! or never stored, but still held by readers). The payload of a chunk counts itself from its allocation to its last
//! reader's drop, so that pinned bytes are a difference and need no bookkeeping per reader:
//! `pinned = live payloads - resident payloads`. So do each piece of an answer, from its framing until the transport has
//! let go of it, and each request, for what it takes by itself: a thousand readers that stop reading hold a thousand of both.
//!
//! What is not resident takes room from the cache, never beside it.
//!
//! A reservation that does not fit waits; then it gets a pass to read through, without a place in the cache; then it is
//! refused. Waiting is first come, first served within what fits.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{sync::Notify, time::Instant};
use trellis_proto::{Code, Error, Result};

/// What is in flight and pinned may take at most this part of the budget; the rest stays with the cache, or a burst of
/// cold reads would empty it for data that each is read once.
const TRANSIT_SHARE: (u64, u64) = (1, 2);
/// Reads through may take the transit share up to this part, so that a cache full of pinned bytes still serves.
const THROUGH_SHARE: (u64, u64) = (3, 4);
/// Answers may be framed before the transport has asked for them while those that it has not let go of take at most this part.
const AHEAD_SHARE: (u64, u64) = (1, 16);
/// Requests may take this part. They wait outside beyond it: one that waits in here for room takes some.
const REQUESTS_SHARE: (u64, u64) = (1, 2);
/// What a request takes by itself, from its headers to its trailers: hyper's and h2's stream, the plan, the answer's future. 6 to 13
/// KiB were measured, less when it waits for its reader and more when it waits for chunks.
const REQUEST_BYTES: u64 = 12 << 10;
/// How long a reservation waits for room before it becomes a read through.
const STORE_WAIT: Duration = Duration::from_millis(500);
/// How long a read through waits before it is refused.
const THROUGH_WAIT: Duration = Duration::from_millis(1500);

/// How fine recency is, as a part of the budget. A slot in use is made the newest at most once while so much is inserted: order
/// matters only when something has to go. By time instead, a hit would pay for it even when nothing comes, and a scan that turns
/// a small cache over within the unit would push out what is in use all along.
const RECENCY_PARTS: u64 = 64;

/// The gauges of one head. All in bytes.
#[derive(Debug)]
pub(crate) struct Memory {
    budget: u64,
    live: AtomicU64,
    resident: AtomicU64,
    slots: AtomicU64,
    /// Everything that was ever stored, bookkeeping included.
    inserted: AtomicU64,
    in_flight: AtomicU64,
    requests: AtomicU64,
    held: AtomicU64,
    room: Notify,
}

/// Bookkeeping of one slot: its entry in the series' map and in the order of use. Measured with a counting allocator: 148 to 203 in
/// series of 7 to 2,000 chunks. A series with a single one takes 777, as a map's first node has room for eleven.
pub(crate) const SLOT_BYTES: u64 = 208;

impl Memory {
    pub(crate) fn new(budget: u64) -> Arc<Self> {
        Arc::new(Self {
            budget,
            live: AtomicU64::new(0),
            resident: AtomicU64::new(0),
            slots: AtomicU64::new(0),
            inserted: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            held: AtomicU64::new(0),
            room: Notify::new(),
        })
    }

    /// Everything together may take this much.
    pub(crate) fn budget(&self) -> u64 {
        self.budget
    }

    /// What the claim maps hold, bookkeeping included.
    pub(crate) fn resident(&self) -> u64 {
        // Two tasks count a slot, one when it is stored and one when it is dropped. The second may come first: then the sum is
        // below zero for a moment.
        let slots = self.slots.load(Relaxed).wrapping_mul(SLOT_BYTES);
        (self.resident.load(Relaxed).wrapping_add(slots) as i64).max(0).unsigned_abs()
    }

    /// Reserved for what shards have been asked for.
    pub(crate) fn in_flight(&self) -> u64 {
        self.in_flight.load(Relaxed)
    }

    /// Held by readers and by nobody else.
    pub(crate) fn pinned(&self) -> u64 {
        self.live.load(Relaxed).saturating_sub(self.resident.load(Relaxed))
    }

    /// What takes room from the cache.
    pub(crate) fn transit(&self) -> u64 {
        self.in_flight() + self.pinned()
    }

    /// A payload has been allocated.
    pub(crate) fn allocated(&self, bytes: u64) {
        self.live.fetch_add(bytes, Relaxed);
    }

    /// The last reader of a payload is gone.
    pub(crate) fn freed(&self, bytes: u64) {
        self.live.fetch_sub(bytes, Relaxed);
        self.room.notify_one();
    }

    /// A payload has been put into a slot.
    pub(crate) fn stored(&self, bytes: u64) {
        self.slots.fetch_add(1, Relaxed);
        self.resident.fetch_add(bytes, Relaxed);
        self.inserted.fetch_add(bytes + SLOT_BYTES, Relaxed);
    }

    /// The cache's own clock: goes on with what is inserted, see [`RECENCY_PARTS`].
    pub(crate) fn now(&self) -> u32 {
        // from 1: 0 is "never touched"; wraps after more insertions than a head lives
        (self.inserted.load(Relaxed) / (self.budget / RECENCY_PARTS).max(1)) as u32 + 1
    }

    /// A slot is gone.
    pub(crate) fn dropped(&self, bytes: u64) {
        self.slots.fetch_sub(1, Relaxed);
        self.resident.fetch_sub(bytes, Relaxed);
    }

    /// Reserves `bytes` for what is about to be asked for, waiting for room if there is none. A single reservation larger than the
    /// share is granted when nothing else is in flight and it fits beside what is pinned: it could never be granted otherwise. Cancel safe.
    ///
    /// # Errors
    /// [`Code::Overloaded`] after [`STORE_WAIT`] and [`THROUGH_WAIT`].
    pub(crate) async fn reserve(self: &Arc<Self>, bytes: u64) -> Result<Reservation> {
        let begin = Instant::now();
        loop {
            let waited = begin.elapsed();
            let store = waited < STORE_WAIT;
            let share = if store { TRANSIT_SHARE } else { THROUGH_SHARE };
            if self.try_reserve(bytes, self.budget / share.1 * share.0) {
                return Ok(Reservation { memory: Arc::clone(self), bytes, store });
            }
            let until = if store { STORE_WAIT } else { STORE_WAIT + THROUGH_WAIT };
            if waited >= until {
                return Err(self.full(bytes));
            }
            let _ = tokio::time::timeout(until - waited, self.room.notified()).await;
        }
    }

    fn full(&self, bytes: u64) -> Error {
        let (in_flight, pinned) = (self.in_flight(), self.pinned());
        let why = format!(
            "the head has no memory for {bytes} bytes more: {in_flight} in flight, {pinned} held by slow readers, of {}",
            self.budget
        );
        Error::new(Code::Overloaded, why).hint("try again, or read less at once")
    }

    /// Whether `bytes` of an answer may be made now.
    pub(crate) fn has_room(&self, bytes: u64) -> bool {
        self.transit() + bytes <= self.budget / THROUGH_SHARE.1 * THROUGH_SHARE.0
    }

    /// Waits until `bytes` of an answer may be made. Cancel safe.
    ///
    /// # Errors
    /// [`Code::Overloaded`] if slow readers hold all there is for as long as a reservation waits.
    pub(crate) async fn room(&self, bytes: u64) -> Result<()> {
        if self.has_room(bytes) {
            return Ok(());
        }
        let until = Instant::now() + STORE_WAIT + THROUGH_WAIT;
        while !self.has_room(bytes) {
            let freed = tokio::time::timeout_at(until, self.room.notified()).await;
            if freed.is_err() && !self.has_room(bytes) {
                return Err(self.full(bytes));
            }
        }
        // what was freed may be enough for the next one too
        self.room.notify_one();
        Ok(())
    }

    /// Whether `bytes` of an answer may be made before the transport has asked for them.
    pub(crate) fn has_room_ahead(&self, bytes: u64) -> bool {
        let ahead = self.held.load(Relaxed) + bytes <= self.budget / AHEAD_SHARE.1 * AHEAD_SHARE.0;
        ahead && self.has_room(bytes)
    }

    /// The same bytes, counted as held by a reader until the transport has let go of them, and `with` them what is to be kept
    /// so long. (Those that are a chunk's own are counted once more when the chunk is not in the cache any longer.)
    pub(crate) fn hold<T: Send + 'static>(self: &Arc<Self>, bytes: Bytes, with: T) -> Bytes {
        let count = bytes.len() as u64;
        self.allocated(count);
        self.held.fetch_add(count, Relaxed);
        Bytes::from_owner(Held { bytes, memory: Arc::clone(self), _with: with })
    }

    /// Counts a request while it is open.
    ///
    /// # Errors
    /// [`Code::Overloaded`] if there are too many for the budget.
    pub(crate) fn open_request(self: &Arc<Self>) -> Result<OpenRequest> {
        let request = OpenRequest { memory: Arc::clone(self) };
        self.allocated(REQUEST_BYTES);
        let open = self.requests.fetch_add(1, Relaxed) + 1;
        if open * REQUEST_BYTES <= self.budget / REQUESTS_SHARE.1 * REQUESTS_SHARE.0 {
            return Ok(request);
        }
        let why = format!(
            "the head has {open} requests at once, which is all that {} bytes are enough for",
            self.budget
        );
        Err(Error::new(Code::Overloaded, why).hint("try again; if it happens often, give the head more memory (TRELLIS_CACHE_BYTES), or start more heads"))
    }

    /// Whether the cache has to give way.
    pub(crate) fn is_over(&self) -> bool {
        self.resident() + self.transit() > self.budget
    }

    fn try_reserve(&self, bytes: u64, limit: u64) -> bool {
        let pinned = self.pinned();
        self.in_flight
            .fetch_update(Relaxed, Relaxed, |in_flight| {
                let alone = in_flight == 0 && bytes + pinned <= self.budget;
                (alone || in_flight + pinned + bytes <= limit).then_some(in_flight + bytes)
            })
            .is_ok()
    }
}

/// A piece of an answer on its way out.
#[derive(Debug)]
struct Held<T> {
    bytes: Bytes,
    memory: Arc<Memory>,
    _with: T,
}

impl<T> AsRef<[u8]> for Held<T> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl<T> Drop for Held<T> {
    fn drop(&mut self) {
        let count = self.bytes.len() as u64;
        self.memory.held.fetch_sub(count, Relaxed);
        self.memory.freed(count);
    }
}

/// A request that is open.
#[derive(Debug)]
pub(crate) struct OpenRequest {
    memory: Arc<Memory>,
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        self.memory.requests.fetch_sub(1, Relaxed);
        self.memory.freed(REQUEST_BYTES);
    }
}

/// Room for bytes that are on their way. Gives back what is left when dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    memory: Arc<Memory>,
    bytes: u64,
    /// Whether what comes may be stored.
    pub(crate) store: bool,
}

impl Reservation {
    /// A part of what was reserved has come (and counts itself now).
    pub(crate) fn arrived(&mut self, bytes: u64) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        self.memory.in_flight.fetch_sub(bytes, Relaxed);
        self.memory.room.notify_one();
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.arrived(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_reservation_waits_for_room_then_reads_through_then_is_refused() {
        let memory = Memory::new(1000);
        let first = memory.reserve(500).await.unwrap();
        assert!(first.store);
        let through = memory.reserve(200).await.unwrap();
        assert!(!through.store, "half of the budget is taken: read through");
        let refused = memory.reserve(200).await.unwrap_err();
        assert_eq!(refused.code(), Code::Overloaded);
        assert!(refused.retryable());
        drop(first);
        assert!(memory.reserve(200).await.unwrap().store);
    }

    #[test]
    fn a_slot_that_is_counted_out_before_it_is_counted_in_is_no_slot() {
        let memory = Memory::new(1_000);
        memory.dropped(400);
        assert_eq!((memory.resident(), memory.is_over()), (0, false));
        memory.stored(400);
        assert_eq!(memory.resident(), 0);
    }

    #[test]
    fn recency_goes_on_with_what_is_inserted() {
        let memory = Memory::new(64 * (SLOT_BYTES + 680));
        assert_eq!(memory.now(), 1);
        memory.stored(680);
        memory.dropped(680);
        assert_eq!(memory.now(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn pinned_bytes_count_against_the_same_share() {
        let memory = Memory::new(1000);
        memory.allocated(400);
        assert_eq!(memory.pinned(), 400);
        let _other = memory.reserve(50).await.unwrap();
        assert!(!memory.reserve(200).await.unwrap().store);
        memory.stored(400);
        assert_eq!(memory.pinned(), 0);
        assert!(memory.reserve(200).await.unwrap().store);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_freed_wakes_as_many_as_it_is_enough_for() {
        let memory = Memory::new(1000);
        let piece = memory.hold(Bytes::from(vec![0; 750]), ());
        let started = Instant::now();
        let waiting = (0..3).map(|_| memory.room(100));
        let (rooms, ()) = tokio::join!(futures::future::join_all(waiting), async { drop(piece) });
        assert!(rooms.iter().all(Result::is_ok));
        assert_eq!(started.elapsed(), Duration::ZERO, "none of them waited for its time to be over");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_made_when_slow_readers_leave_room_for_it_or_refused() {
        let memory = Memory::new(1000);
        let piece = memory.hold(Bytes::from(vec![0; 700]), ());
        assert_eq!((memory.pinned(), memory.has_room(50), memory.has_room(51)), (700, true, false));
        assert_eq!(memory.room(100).await.unwrap_err().code(), Code::Overloaded);
        let part = piece.slice(10..20);
        drop(piece);
        assert_eq!(memory.pinned(), 700, "a part keeps the whole");
        let (room, ()) = tokio::join!(memory.room(100), async { drop(part) });
        room.unwrap();
        assert_eq!(memory.pinned(), 0);
    }

    #[tokio::test]
    async fn a_turn_lasts_until_the_transport_has_let_go_of_the_last_piece() {
        use super::super::fair::{Fair, TurnLimits};
        let memory = Memory::new(1000);
        let fair = Fair::new(TurnLimits { bytes: 100, unit_bytes: 100, turn_bytes: 0, lease: None });
        let unit: Arc<str> = "unit".into();
        let turn = Arc::new(fair.try_turn(&unit, 100).expect("the first"));
        let pieces = [b"head", b"body"].map(|piece| memory.hold(Bytes::from_static(piece), turn.clone()));
        drop(turn);
        let [head, body] = pieces;
        drop(head);
        assert!(fair.try_turn(&unit, 1).is_none(), "a piece is not sent");
        drop(body);
        assert!(fair.try_turn(&unit, 1).is_some());
    }

    #[test]
    fn answers_are_made_ahead_only_while_few_wait_for_their_readers() {
        let memory = Memory::new(1600);
        let piece = memory.hold(Bytes::from(vec![0; 60]), ());
        assert!(memory.has_room_ahead(40) && !memory.has_room_ahead(41));
        assert!(memory.has_room(1000), "when the transport asks");
        drop(piece);
        assert!(memory.has_room_ahead(100));
    }

    #[test]
    fn requests_are_counted_and_refused_when_they_alone_take_half() {
        let memory = Memory::new(4 * REQUEST_BYTES);
        let open = [memory.open_request().unwrap(), memory.open_request().unwrap()];
        assert_eq!(memory.pinned(), 2 * REQUEST_BYTES);
        assert_eq!(memory.open_request().unwrap_err().code(), Code::Overloaded);
        drop(open);
        assert_eq!(memory.pinned(), 0, "a refused one takes nothing");
        memory.open_request().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn one_reservation_larger_than_the_share_goes_alone() {
        let memory = Memory::new(1000);
        let alone = memory.reserve(900).await.unwrap();
        assert!(memory.reserve(10).await.is_err());
        drop(alone);
        assert!(memory.reserve(1001).await.is_err());
    }
}
