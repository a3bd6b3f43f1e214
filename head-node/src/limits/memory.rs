//! One budget for everything that a head keeps in memory.
//!
//! There are three gauges: *resident* (chunks in the claim maps), *in flight* (bytes reserved before a shard is asked), and *pinned*
//! (chunks that were evicted or never stored, but that readers still hold). A chunk's payload counts itself from its allocation until
//! its last reader drops it. So pinned bytes are a difference, without bookkeeping per reader:
//! `pinned = live payloads - resident payloads`. Each piece of an answer counts itself in the same way, from its framing until the
//! transport has let go of it. So does each request, for its own cost: a thousand readers that stop reading hold a thousand of both.
//!
//! Bytes in flight and pinned bytes take their room from the cache.
//!
//! A reservation that does not fit waits. After some time it is granted as a *read through*: its chunks go to their readers and not into
//! the cache. If there is no room for that either, it is refused. Reservations are served in order of arrival among those that fit.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{sync::Notify, time::Instant};
use trellis_fabric::bound::Bound;
use trellis_proto::{Code, Error, Result};

static MEMORY: Bound = Bound::new("head.memory");
static REQUESTS: Bound = Bound::new("head.requests");

/// Bytes in flight and pinned bytes may take at most this part of the budget. The rest stays with the cache: otherwise a burst of cold
/// reads would empty it for data that is read once.
const TRANSIT_SHARE: (u64, u64) = (1, 2);
/// The same limit for reads through, so that a head with many pinned bytes still serves.
const THROUGH_SHARE: (u64, u64) = (3, 4);
/// Answers are framed before the transport asks for them as long as the pieces that it holds take at most this part of the budget.
const AHEAD_SHARE: (u64, u64) = (1, 16);
/// Open requests may take this part of the budget. More are refused: a request that waited here would itself take room.
const REQUESTS_SHARE: (u64, u64) = (1, 2);
/// Bytes that a request takes by itself, from its headers to its trailers: the streams of hyper and h2, the plan, the answer's future.
/// Measured: 6 KiB while a request waits for its reader, up to 13 KiB while it waits for chunks.
const REQUEST_BYTES: u64 = 12 << 10;
/// How long a reservation waits for room before it may become a read through.
const STORE_WAIT: Duration = Duration::from_millis(500);
/// How long it waits after that before it is refused.
const THROUGH_WAIT: Duration = Duration::from_millis(1500);

/// The budget has this many parts. Each time that the head has inserted the bytes of one part, the clock of recency goes on by one.
/// Within one tick a slot in use is made the newest only once: order matters only when something is evicted. A clock by time was
/// rejected: hits would pay for it even when nothing is inserted, and a scan that fills a small cache within one tick would evict
/// slots that are in use.
const RECENCY_PARTS: u64 = 64;

/// The gauges of one head. All in bytes.
#[derive(Debug)]
pub(crate) struct Memory {
    budget: u64,
    live: AtomicU64,
    resident: AtomicU64,
    slots: AtomicU64,
    /// Sum of the bytes of all payloads that were ever stored, bookkeeping included.
    inserted: AtomicU64,
    in_flight: AtomicU64,
    requests: AtomicU64,
    held: AtomicU64,
    room: Notify,
}

/// Bookkeeping of one slot: its entry in the series' map and in the order of use. Measured with a counting allocator: 148 to 203 bytes
/// in series of 7 to 2,000 chunks. A series with a single chunk takes 777, because the first node of a map has room for eleven.
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

    /// The limit of everything together.
    pub(crate) fn budget(&self) -> u64 {
        self.budget
    }

    /// Bytes in the claim maps, bookkeeping included.
    pub(crate) fn resident(&self) -> u64 {
        // One task counts a slot in, another counts it out. The second may be faster: then the sum is below zero for a moment.
        let slots = self.slots.load(Relaxed).wrapping_mul(SLOT_BYTES);
        (self.resident.load(Relaxed).wrapping_add(slots) as i64).max(0).unsigned_abs()
    }

    /// Bytes reserved for chunks that shards have been asked for.
    pub(crate) fn in_flight(&self) -> u64 {
        self.in_flight.load(Relaxed)
    }

    /// Bytes that only readers hold.
    pub(crate) fn pinned(&self) -> u64 {
        self.live.load(Relaxed).saturating_sub(self.resident.load(Relaxed))
    }

    /// Bytes that take room from the cache.
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

    /// The clock of recency, see [`RECENCY_PARTS`].
    pub(crate) fn now(&self) -> u32 {
        // The clock begins at 1, because 0 means "never used". It does not wrap in the life of a head.
        (self.inserted.load(Relaxed) / (self.budget / RECENCY_PARTS).max(1)) as u32 + 1
    }

    /// A payload has been taken out of its slot.
    pub(crate) fn dropped(&self, bytes: u64) {
        self.slots.fetch_sub(1, Relaxed);
        self.resident.fetch_sub(bytes, Relaxed);
    }

    /// Reserves `bytes` before a shard is asked for them; waits if there is no room. A reservation larger than the share is granted when
    /// nothing else is in flight and it fits beside the pinned bytes: otherwise it could never be granted. Cancel safe.
    ///
    /// # Errors
    /// [`Code::Overloaded`] after [`STORE_WAIT`] and [`THROUGH_WAIT`] together.
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
        MEMORY.hit();
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
    /// [`Code::Overloaded`] if there is still no room after as long as a reservation waits.
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
        // the room that was freed may be enough for another waiter, too
        self.room.notify_one();
        Ok(())
    }

    /// Whether `bytes` of an answer may be made before the transport has asked for them.
    pub(crate) fn has_room_ahead(&self, bytes: u64) -> bool {
        let ahead = self.held.load(Relaxed) + bytes <= self.budget / AHEAD_SHARE.1 * AHEAD_SHARE.0;
        ahead && self.has_room(bytes)
    }

    /// The same bytes, counted as pinned until the transport has let go of them; `with` is kept as long. (Bytes that a chunk owns are
    /// counted twice when the chunk is no longer in the cache.)
    pub(crate) fn hold<T: Send + 'static>(self: &Arc<Self>, bytes: Bytes, with: T) -> Bytes {
        let count = bytes.len() as u64;
        self.allocated(count);
        self.held.fetch_add(count, Relaxed);
        Bytes::from_owner(Held { bytes, memory: Arc::clone(self), _with: with })
    }

    /// Counts a request while it is open.
    ///
    /// # Errors
    /// [`Code::Overloaded`] if too many requests are open for the budget.
    pub(crate) fn open_request(self: &Arc<Self>) -> Result<OpenRequest> {
        let request = OpenRequest { memory: Arc::clone(self) };
        self.allocated(REQUEST_BYTES);
        let open = self.requests.fetch_add(1, Relaxed) + 1;
        if open * REQUEST_BYTES <= self.budget / REQUESTS_SHARE.1 * REQUESTS_SHARE.0 {
            return Ok(request);
        }
        REQUESTS.hit();
        let why = format!(
            "the head has {open} requests at once, which is all that {} bytes are enough for",
            self.budget
        );
        Err(Error::new(Code::Overloaded, why).hint("try again; if it happens often, give the head more memory (TRELLIS_CACHE_BYTES), or start more heads"))
    }

    /// Whether everything together is over the budget, so that the cache must evict.
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

/// Room for bytes on their way from a shard. What is left of it is given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    memory: Arc<Memory>,
    bytes: u64,
    /// Whether the chunks may be stored. False: a read through.
    pub(crate) store: bool,
}

impl Reservation {
    /// A part of the reserved bytes has come; its chunks count themselves from here on.
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
    async fn freed_room_wakes_as_many_waiters_as_it_is_enough_for() {
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
