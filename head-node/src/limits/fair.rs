//! Turns for units, shared fairly by bytes.
//!
//! Answers compete for two resources: the memory that large answers pin while they are read, and the transport with the cores that feed
//! it. Fetches compete for the calls to a shard; they use [`FairQueue`] alone. If turns were given in order of arrival, a unit that asks
//! for everything at once would get nearly all of each resource.
//!
//! [`Fair`] limits the bytes that are out at any time. Items that wait are served by start-time fair queueing over *units*. The start
//! tag of an item is the finish tag of its unit's item before it, but never less than the start tag of the item served last. Its finish
//! tag is its start tag plus its bytes. The item with the least start tag is next. So a unit with ten thousand requests and a unit with
//! one get the same share of bytes, and a unit that is new to the queue waits for no unit that has had its share.
//!
//! Two other ways were rejected. Sharing by requests favours units with larger messages. Deficit round robin gives the same shares in
//! the long run, but a new unit waits for a quantum of each unit before it, and a quantum must be as large as a message.
//!
//! Nobody waits while the limits are not reached. There is a limit per unit, too: bytes that are out before a new unit comes are not in
//! its way in the queue, but the cores have to send them first.
//!
//! A turn ends when its holder drops it, or when its lease runs out: a reader that stalls with a message must not keep other readers
//! waiting. Where leases are long, a unit's limit is a part of the whole, so that its slow readers delay only that unit.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::oneshot, time::Instant};

/// Units without waiting items that are kept before those with an old finish tag are removed.
const IDLE_UNITS_KEPT: usize = 64;

/// The lane of a queue that has only one.
const LANE: usize = 0;

/// The limits of one resource.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TurnLimits {
    /// Bytes out at any time. One turn is always given, however large.
    pub(crate) bytes: u64,
    /// Bytes of one unit that are out at any time. A unit always gets one turn, however large.
    pub(crate) unit_bytes: u64,
    /// Added to the bytes of each turn, for its fixed cost.
    pub(crate) turn_bytes: u64,
    /// A turn ends after this time, even if its holder keeps it. `None`: never.
    pub(crate) lease: Option<Duration>,
}

/// Whether an item may have its turn now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Granted,
    /// Its unit has reached its limit. Items of other units may go before it.
    UnitFull,
    /// The resource is used up. No other item goes before this one: otherwise large items would wait for ever while small ones pass.
    Full,
}

/// Start-time fair queueing over units: decides which waiting item is next. Pure.
///
/// A queue may have several lanes; items of different lanes are never served together. A unit has one share over all lanes. Within a
/// lane its items stay in order.
#[derive(Debug)]
pub(crate) struct FairQueue<T, const LANES: usize = 1> {
    units: HashMap<Arc<str>, Waiting<T, LANES>>,
    /// In each lane the first item of each unit: start tag, arrival number, unit.
    first: [BTreeSet<(u64, u64, Arc<str>)>; LANES],
    /// Start tag of the item served last.
    now: u64,
    arrived: u64,
}

/// The waiting items of one unit.
#[derive(Debug)]
struct Waiting<T, const LANES: usize> {
    /// Finish tag of the unit's item served last, which is the start tag of its next item.
    finish: u64,
    items: [VecDeque<Item<T>>; LANES],
}

impl<T, const LANES: usize> Waiting<T, LANES> {
    fn is_empty(&self) -> bool {
        self.items.iter().all(VecDeque::is_empty)
    }
}

#[derive(Debug)]
struct Item<T> {
    arrival: u64,
    bytes: u64,
    item: T,
}

impl<T, const LANES: usize> FairQueue<T, LANES> {
    pub(crate) fn new() -> Self {
        let first = std::array::from_fn(|_| BTreeSet::new());
        Self { units: HashMap::new(), first, now: 0, arrived: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.first.iter().all(BTreeSet::is_empty)
    }

    fn has(&self, unit: &Arc<str>) -> bool {
        !self.is_empty() && self.units.get(unit).is_some_and(|waiting| !waiting.is_empty())
    }

    /// The lane of the next item; `None`: the queue is empty.
    pub(crate) fn next_lane(&self) -> Option<usize> {
        let first = self.first.iter().enumerate().filter_map(|(lane, first)| Some((first.first()?, lane)));
        first.min().map(|(_, lane)| lane)
    }

    pub(crate) fn push(&mut self, lane: usize, unit: &Arc<str>, bytes: u64, item: T) {
        let (now, arrival) = (self.now, self.arrived);
        self.arrived += 1;
        let waiting = self
            .units
            .entry(unit.clone())
            .or_insert_with(|| Waiting { finish: now, items: std::array::from_fn(|_| VecDeque::new()) });
        if waiting.is_empty() {
            waiting.finish = waiting.finish.max(now);
        }
        if waiting.items[lane].is_empty() {
            self.first[lane].insert((waiting.finish, arrival, unit.clone()));
        }
        waiting.items[lane].push_back(Item { arrival, bytes, item });
    }

    /// Takes the next item of a lane that `verdict` grants: its unit, its bytes, itself.
    ///
    /// # Errors
    /// `true` if the resource is used up for the next item; `false` if no item waits but those of units at their limit.
    pub(crate) fn pop(
        &mut self,
        lane: usize,
        verdict: impl Fn(&Arc<str>, u64) -> Verdict,
    ) -> Result<(Arc<str>, u64, T), bool> {
        let mut found = None;
        for tagged in &self.first[lane] {
            let Some(item) = self.units.get(&tagged.2).and_then(|waiting| waiting.items[lane].front()) else {
                continue;
            };
            match verdict(&tagged.2, item.bytes) {
                Verdict::Granted => {
                    found = Some(tagged.clone());
                    break;
                }
                Verdict::UnitFull => {}
                Verdict::Full => return Err(true),
            }
        }
        let (start, _, unit) = found.ok_or(false)?;
        let waiting = self.units.get_mut(&unit).ok_or(false)?;
        for (first, items) in self.first.iter_mut().zip(&waiting.items) {
            if let Some(front) = items.front() {
                first.remove(&(start, front.arrival, unit.clone()));
            }
        }
        let Item { bytes, item, .. } = waiting.items[lane].pop_front().ok_or(false)?;
        self.now = self.now.max(start);
        waiting.finish = start + bytes;
        for (first, items) in self.first.iter_mut().zip(&waiting.items) {
            if let Some(front) = items.front() {
                first.insert((waiting.finish, front.arrival, unit.clone()));
            }
        }
        self.forget();
        Ok((unit, bytes, item))
    }

    /// Removes units whose finish tag has no effect any more.
    fn forget(&mut self) {
        let waiting: usize = self.first.iter().map(BTreeSet::len).sum();
        if waiting == 0 {
            self.units.clear();
            self.now = 0;
        } else if self.units.len() > 2 * waiting + IDLE_UNITS_KEPT {
            let now = self.now;
            self.units.retain(|_, waiting| !waiting.is_empty() || waiting.finish > now);
        }
    }
}

/// One resource, shared fairly. Clones are the same resource.
#[derive(Debug, Clone)]
pub(crate) struct Fair {
    resource: Arc<Resource>,
}

#[derive(Debug)]
struct Resource {
    limits: TurnLimits,
    state: Mutex<Turns>,
    /// Held by the one waiter that watches the leases. If each waiter did, every lease that runs out would wake all of them.
    watch: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Turns {
    /// Turns that are out, oldest first.
    out: VecDeque<Out>,
    bytes: u64,
    of_units: HashMap<Arc<str>, u64>,
    waiting: FairQueue<oneshot::Sender<Turn>>,
    /// The next item waits because the resource is used up.
    full: bool,
    next_id: u64,
}

#[derive(Debug)]
struct Out {
    id: u64,
    unit: Arc<str>,
    bytes: u64,
    ends: Option<Instant>,
}

/// The permission to have some bytes out. It ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    resource: Arc<Resource>,
    id: u64,
}

impl Turn {
    /// Whether its lease has not run out.
    pub(crate) fn is_out(&self) -> bool {
        self.resource.state.lock().place(self.id).is_ok()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let granted = {
            let mut state = self.resource.state.lock();
            state.end(self.id);
            state.grant(&self.resource)
        };
        deliver(granted);
    }
}

type Granted = Vec<(oneshot::Sender<Turn>, Turn)>;

/// Hands turns to their waiters. Called without the lock: the turn of a waiter that has left is dropped here, which takes the lock.
fn deliver(granted: Granted) {
    for (waiter, turn) in granted {
        let _left = waiter.send(turn);
    }
}

impl Turns {
    fn place(&self, id: u64) -> Result<usize, usize> {
        // ids ascend in the order in which turns began
        self.out.binary_search_by_key(&id, |out| out.id)
    }

    /// Ends a turn, unless its lease has ended it already.
    fn end(&mut self, id: u64) {
        let Ok(at) = self.place(id) else { return };
        let Some(out) = self.out.remove(at) else { return };
        self.bytes -= out.bytes;
        if let Some(of_unit) = self.of_units.get_mut(&out.unit) {
            *of_unit -= out.bytes;
            if *of_unit == 0 {
                self.of_units.remove(&out.unit);
            }
        }
    }

    fn verdict(&self, limits: &TurnLimits, unit: &Arc<str>, bytes: u64) -> Verdict {
        let of_unit = self.of_units.get(unit).copied().unwrap_or(0);
        if of_unit > 0 && of_unit + bytes > limits.unit_bytes {
            Verdict::UnitFull
        } else if self.bytes > 0 && self.bytes + bytes > limits.bytes {
            Verdict::Full
        } else {
            Verdict::Granted
        }
    }

    fn begin(&mut self, resource: &Arc<Resource>, unit: Arc<str>, bytes: u64) -> Turn {
        let id = self.next_id;
        self.next_id += 1;
        self.bytes += bytes;
        match self.of_units.get_mut(&unit) {
            Some(of_unit) => *of_unit += bytes,
            None => drop(self.of_units.insert(unit.clone(), bytes)),
        }
        let ends = resource.limits.lease.map(|lease| Instant::now() + lease);
        self.out.push_back(Out { id, unit, bytes, ends });
        Turn { resource: Arc::clone(resource), id }
    }

    fn grant(&mut self, resource: &Arc<Resource>) -> Granted {
        let mut granted = Vec::new();
        if self.waiting.is_empty() {
            return granted;
        }
        loop {
            let mut waiting = std::mem::replace(&mut self.waiting, FairQueue::new());
            let next = waiting.pop(LANE, |unit, bytes| self.verdict(&resource.limits, unit, bytes));
            self.waiting = waiting;
            match next {
                Ok((unit, bytes, waiter)) if !waiter.is_closed() => {
                    granted.push((waiter, self.begin(resource, unit, bytes)));
                }
                Ok(_) => {}
                Err(full) => {
                    self.full = full;
                    return granted;
                }
            }
        }
    }

    /// Ends turns whose lease has run out.
    fn expire(&mut self, now: Instant) {
        while let Some(oldest) = self.out.front()
            && oldest.ends.is_some_and(|ends| ends <= now)
        {
            self.end(oldest.id);
        }
    }
}

impl Fair {
    pub(crate) fn new(limits: TurnLimits) -> Self {
        let state = Turns {
            out: VecDeque::new(),
            bytes: 0,
            of_units: HashMap::new(),
            waiting: FairQueue::new(),
            full: false,
            next_id: 0,
        };
        let (state, watch) = (Mutex::new(state), tokio::sync::Mutex::new(()));
        Self { resource: Arc::new(Resource { limits, state, watch }) }
    }

    /// A turn at once, if the limits allow it and no waiting item must go before it.
    pub(crate) fn try_turn(&self, unit: &Arc<str>, bytes: u64) -> Option<Turn> {
        let bytes = bytes + self.resource.limits.turn_bytes;
        let mut state = self.resource.state.lock();
        // items of other units that wait do so because their units are at their limit
        let free = !state.full
            && !state.waiting.has(unit)
            && state.verdict(&self.resource.limits, unit, bytes) == Verdict::Granted;
        free.then(|| state.begin(&self.resource, unit.clone(), bytes))
    }

    /// Waits for a turn. Cancel safe: a caller that leaves loses its place in the queue, and nothing else changes.
    pub(crate) async fn turn(&self, unit: &Arc<str>, bytes: u64) -> Turn {
        if let Some(turn) = self.try_turn(unit, bytes) {
            return turn;
        }
        let (waiter, mut turn) = oneshot::channel();
        let granted = {
            let mut state = self.resource.state.lock();
            state.waiting.push(LANE, unit, bytes + self.resource.limits.turn_bytes, waiter);
            state.grant(&self.resource)
        };
        deliver(granted);
        let watched = async {
            let _watching = self.resource.watch.lock().await;
            loop {
                let next_end = self.resource.state.lock().out.front().and_then(|out| out.ends);
                sleep_until(next_end).await;
                let granted = {
                    let mut state = self.resource.state.lock();
                    state.expire(Instant::now());
                    state.grant(&self.resource)
                };
                deliver(granted);
            }
        };
        tokio::select! {
            biased;
            turn = &mut turn => match turn {
                Ok(turn) => turn,
                // does not happen: the queue lives as long as `self`, and drops only waiters that have left
                Err(_) => std::future::pending().await,
            },
            () = watched => std::future::pending().await,
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;

    fn unit(name: &str) -> Arc<str> {
        name.into()
    }

    fn limits(bytes: u64, unit_bytes: u64) -> TurnLimits {
        TurnLimits { bytes, unit_bytes, turn_bytes: 0, lease: None }
    }

    #[test]
    fn bytes_are_shared_evenly_whatever_the_sizes_and_numbers() {
        let mut queue = FairQueue::<_>::new();
        let (hog, light) = (unit("hog"), unit("light"));
        for i in 0..1_000 {
            queue.push(LANE, &hog, MIB, i);
        }
        for i in 0..40 {
            queue.push(LANE, &light, 100 * KIB, i);
        }
        let (mut of_hog, mut of_light) = (0, 0);
        while of_light < 40 * 100 * KIB {
            let (unit, bytes, _) = queue.pop(LANE, |_, _| Verdict::Granted).unwrap();
            if unit == hog { of_hog += bytes } else { of_light += bytes }
        }
        assert!(of_hog <= of_light + 2 * MIB, "{of_hog} of the hog beside {of_light}");
    }

    #[tokio::test]
    async fn nobody_waits_below_the_limit_and_one_turn_is_always_given() {
        let fair = Fair::new(limits(MIB, MIB));
        let a = unit("a");
        let large = fair.try_turn(&a, 50 * MIB).expect("the only one");
        assert!(fair.try_turn(&unit("b"), 1).is_none());
        drop(large);
        let first = fair.try_turn(&a, MIB / 2).expect("free");
        let second = fair.try_turn(&a, MIB / 2).expect("free");
        assert!(fair.try_turn(&unit("b"), 1).is_none());
        drop((first, second));
        assert!(fair.try_turn(&unit("b"), 1).is_some());
    }

    #[tokio::test]
    async fn a_light_unit_is_next_however_many_of_a_hog_wait() {
        let fair = Fair::new(limits(MIB, MIB));
        let (hog, light) = (unit("hog"), unit("light"));
        let held = fair.turn(&hog, MIB).await;
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for unit in [&hog, &hog, &hog, &hog, &hog, &hog, &light] {
            let (fair, unit, order) = (fair.clone(), unit.clone(), order.clone());
            tasks.push(tokio::spawn(async move {
                let _turn = fair.turn(&unit, MIB).await;
                order.lock().push(unit);
                tokio::task::yield_now().await;
            }));
            tokio::task::yield_now().await;
        }
        drop(held);
        for task in tasks {
            task.await.unwrap();
        }
        let place = order.lock().iter().position(|unit| *unit == light).unwrap();
        assert!(place <= 2, "the light unit came {place} places later");
    }

    #[tokio::test]
    async fn one_units_slow_readers_leave_room_for_others() {
        let fair = Fair::new(limits(4 * MIB, 2 * MIB));
        let (slow, other) = (unit("slow"), unit("other"));
        let _held = [fair.turn(&slow, MIB).await, fair.turn(&slow, MIB).await];
        let third = fair.turn(&slow, MIB);
        tokio::pin!(third);
        assert!(futures::poll!(&mut third).is_pending());
        // it waits, but other units go before it
        let _theirs =
            tokio::time::timeout(Duration::from_secs(9), fair.turn(&other, MIB)).await.expect("room");
        drop(_held);
        third.await;
    }

    #[tokio::test]
    async fn a_flood_of_small_ones_is_kept_to_its_share_and_a_newcomer_goes_at_once() {
        let fair = Fair::new(TurnLimits { turn_bytes: 64 * KIB, ..limits(4 * MIB, 2 * MIB) });
        let (hog, light) = (unit("hog"), unit("light"));
        let out: Vec<_> = std::iter::from_fn(|| fair.try_turn(&hog, KIB)).collect();
        assert_eq!(out.len(), 31, "65 KiB each");
        let waiting = fair.turn(&hog, KIB);
        tokio::pin!(waiting);
        assert!(futures::poll!(&mut waiting).is_pending());
        assert!(fair.try_turn(&hog, 0).is_none(), "nobody passes those of the same unit");
        assert!(fair.try_turn(&light, KIB).is_some());
    }

    #[tokio::test]
    async fn small_turns_do_not_pass_a_large_one_for_ever() {
        let fair = Fair::new(limits(2 * MIB, 2 * MIB));
        let held = fair.turn(&unit("a"), MIB).await;
        let unit_of_large = unit("large");
        let large = fair.turn(&unit_of_large, 2 * MIB);
        tokio::pin!(large);
        assert!(futures::poll!(&mut large).is_pending());
        assert!(fair.try_turn(&unit("small"), 1).is_none(), "there is room, but it is kept");
        drop(held);
        large.await;
    }

    #[tokio::test]
    async fn small_turns_do_not_pass_a_large_one_of_their_own_unit() {
        let fair = Fair::new(limits(4 * MIB, 2 * MIB));
        let unit = unit("unit");
        let held = fair.turn(&unit, MIB).await;
        let large = fair.turn(&unit, 2 * MIB);
        tokio::pin!(large);
        assert!(futures::poll!(&mut large).is_pending());
        assert!(fair.try_turn(&unit, KIB).is_none(), "there is room for it, and it came later");
        drop(held);
        large.await;
    }

    #[test]
    fn a_new_unit_waits_for_no_unit_that_has_had_its_share() {
        let mut queue = FairQueue::<_>::new();
        let (hog, light) = (unit("hog"), unit("light"));
        for i in 0..10 {
            queue.push(LANE, &hog, MIB, i);
        }
        for i in 0..3 {
            assert_eq!(queue.pop(LANE, |_, _| Verdict::Granted), Ok((hog.clone(), MIB, i)));
        }
        queue.push(LANE, &light, KIB, 100);
        assert_eq!(queue.pop(LANE, |_, _| Verdict::Granted), Ok((light, KIB, 100)));
    }

    #[test]
    fn a_unit_in_two_lanes_has_one_share_and_in_each_its_own_order() {
        let mut queue = FairQueue::<_, 2>::new();
        let (both, one) = (unit("both"), unit("one"));
        for i in 0..8 {
            queue.push(i % 2, &both, MIB, i);
            queue.push(1, &one, MIB, 10 + i);
        }
        assert_eq!(queue.next_lane(), Some(0));
        assert_eq!(queue.pop(0, |_, _| Verdict::Granted), Ok((both.clone(), MIB, 0)));
        // what the unit got in one lane counts in the other
        for i in [10, 1, 11, 12, 3] {
            assert_eq!(queue.pop(1, |_, _| Verdict::Granted).map(|(_, _, i)| i), Ok(i));
        }
        assert_eq!(queue.next_lane(), Some(0));
        assert_eq!(queue.pop(0, |_, _| Verdict::Granted), Ok((both, MIB, 2)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stalled_turn_ends_with_its_lease() {
        let fair = Fair::new(TurnLimits { lease: Some(Duration::from_millis(5)), ..limits(MIB, MIB) });
        let stalled = fair.turn(&unit("slow"), MIB).await;
        let before = Instant::now();
        let _turn = fair.turn(&unit("fast"), MIB).await;
        assert_eq!(before.elapsed().as_millis(), 5);
        drop(stalled);
        assert!(fair.try_turn(&unit("other"), 1).is_none(), "the stalled turn is not given back twice");
    }

    #[tokio::test]
    async fn a_waiter_that_leaves_blocks_nobody() {
        let fair = Fair::new(limits(MIB, MIB));
        let (a, b) = (unit("a"), unit("b"));
        let held = fair.turn(&a, MIB).await;
        {
            let left = fair.turn(&b, MIB);
            tokio::pin!(left);
            assert!(futures::poll!(&mut left).is_pending());
        }
        let next = fair.turn(&a, MIB);
        tokio::pin!(next);
        assert!(futures::poll!(&mut next).is_pending());
        drop(held);
        next.await;
        assert_eq!(fair.resource.state.lock().out.len(), 0);
    }

    proptest! {
        #[test]
        fn everything_pushed_comes_out_once_in_each_units_order(items in prop::collection::vec((0usize..5, 1u64..3 * MIB), 0..200)) {
            let mut queue = FairQueue::<_>::new();
            let names: Vec<Arc<str>> = ["a", "b", "c", "d", "e"].map(unit).into();
            for (i, (unit, bytes)) in items.iter().enumerate() {
                queue.push(LANE, &names[*unit], *bytes, i);
            }
            let mut last = HashMap::new();
            let mut count = 0;
            while let Ok((unit, bytes, i)) = queue.pop(LANE, |_, _| Verdict::Granted) {
                prop_assert_eq!((&unit, bytes), (&names[items[i].0], items[i].1));
                prop_assert!(last.insert(unit, i).is_none_or(|before| before < i));
                count += 1;
            }
            prop_assert_eq!(count, items.len());
            prop_assert!(queue.is_empty() && queue.units.is_empty());
        }
    }
}
