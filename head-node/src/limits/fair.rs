//! Whose turn it is, by bytes.
//!
//! Answers compete for two things: the bytes that large ones pin in memory while they are read, and the transport with the
//! cores that feed it; and chunks that are not there compete for calls to their shard ([`the queue of each shard`], which uses the queue
//! alone). A unit that asks for everything at once would get nearly all of each if turns were given in order of arrival. Here a
//! limited number of bytes is out at any time, and what waits is served by start-time fair queueing over *units*: each item's
//! start tag is its unit's finish tag before it (but never earlier than what is being served), its finish tag is that plus what
//! it costs, and the least start tag is next. So ten thousand requests of one unit and one of another come to the same share,
//! and who comes to the queue for the first time waits for nobody who has had its share.
//! Weighing by requests instead would favour whoever asks for the larger messages; deficit round robin, which is the same in
//! the long run, lets a newcomer wait for a quantum of each unit before it, and the quantum has to be as large as a message.
//!
//! Nobody waits while the limits are not reached. They are per unit too: what is out before a newcomer is not its queue, but
//! the cores have it to do first.
//!
//! A turn ends when its holder drops it or when its lease runs out: a reader who stalls with a message in its hands must
//! not keep others from sending theirs. Where leases are long, one unit may hold a share at most, so that until then its
//! slow readers block only itself.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::oneshot, time::Instant};

/// Tags of units that have nothing waiting are kept while they matter; how many of those that do not may be kept before
/// they are looked for.
const IDLE_UNITS_KEPT: usize = 64;

/// The only lane of what is all served alike.
const LANE: usize = 0;

/// TurnLimits of one resource.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TurnLimits {
    /// Bytes out at any time. One turn is always given, however large.
    pub(crate) bytes: u64,
    /// Of these, bytes of one unit. It always has one turn, however large.
    pub(crate) unit_bytes: u64,
    /// What a turn counts for beside its bytes.
    pub(crate) turn_bytes: u64,
    /// After this time a turn counts as ended.
    pub(crate) lease: Option<Duration>,
}

/// Whether an item may have its turn now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Granted,
    /// Its unit has its share; others may go before it.
    UnitFull,
    /// Nothing is left. Nobody goes before it, or what is large would wait for ever beside what is small.
    Full,
}

/// Start-time fair queueing over units: who of those waiting is next. Pure.
///
/// Items of several lanes cannot be served together. Each unit has its one share of all lanes, and in each its own order.
#[derive(Debug)]
pub(crate) struct FairQueue<T, const LANES: usize = 1> {
    units: HashMap<Arc<str>, Waiting<T, LANES>>,
    /// In each lane the first item of each unit that has any: its start tag, its place in the order of arrival.
    first: [BTreeSet<(u64, u64, Arc<str>)>; LANES],
    /// Start tag of what was served last.
    now: u64,
    arrived: u64,
}

#[derive(Debug)]
struct Waiting<T, const LANES: usize> {
    /// Finish tag of the item served last, start tag of the next.
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

    /// The lane of the item that is next.
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

    /// The next item of a lane that may have its turn, or whether one was met for which nothing is left.
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

    /// Drops tags that say nothing any more.
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
    shared: Arc<Resource>,
}

#[derive(Debug)]
struct Resource {
    limits: TurnLimits,
    state: Mutex<Turns>,
    /// One of those waiting watches the leases, or each lease that runs out would wake them all.
    watch: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Turns {
    /// Turns out, oldest first.
    out: VecDeque<Out>,
    bytes: u64,
    of_units: HashMap<Arc<str>, u64>,
    waiting: FairQueue<oneshot::Sender<Turn>>,
    /// Somebody waits for whom nothing is left.
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

/// Permission to have some bytes out. Ends when dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    shared: Arc<Resource>,
    id: u64,
}

impl Turn {
    /// Whether it still counts: its lease may have run out.
    pub(crate) fn is_out(&self) -> bool {
        self.shared.state.lock().place(self.id).is_ok()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let granted = {
            let mut state = self.shared.state.lock();
            state.end(self.id);
            state.grant(&self.shared)
        };
        deliver(granted);
    }
}

type Granted = Vec<(oneshot::Sender<Turn>, Turn)>;

/// Outside of the lock: a turn whose waiter has left is dropped here, which takes the lock again.
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

    /// Ends a turn, unless its lease has.
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

    fn begin(&mut self, shared: &Arc<Resource>, unit: Arc<str>, bytes: u64) -> Turn {
        let id = self.next_id;
        self.next_id += 1;
        self.bytes += bytes;
        match self.of_units.get_mut(&unit) {
            Some(of_unit) => *of_unit += bytes,
            None => drop(self.of_units.insert(unit.clone(), bytes)),
        }
        let ends = shared.limits.lease.map(|lease| Instant::now() + lease);
        self.out.push_back(Out { id, unit, bytes, ends });
        Turn { shared: shared.clone(), id }
    }

    fn grant(&mut self, shared: &Arc<Resource>) -> Granted {
        let mut granted = Vec::new();
        if self.waiting.is_empty() {
            return granted;
        }
        loop {
            let mut waiting = std::mem::replace(&mut self.waiting, FairQueue::new());
            let next = waiting.pop(LANE, |unit, bytes| self.verdict(&shared.limits, unit, bytes));
            self.waiting = waiting;
            match next {
                Ok((unit, bytes, waiter)) if !waiter.is_closed() => {
                    granted.push((waiter, self.begin(shared, unit, bytes)));
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
        Self { shared: Arc::new(Resource { limits, state, watch }) }
    }

    /// A turn at once, if the limits allow it and nobody waits who would have to be first.
    pub(crate) fn try_turn(&self, unit: &Arc<str>, bytes: u64) -> Option<Turn> {
        let bytes = bytes + self.shared.limits.turn_bytes;
        let mut state = self.shared.state.lock();
        // others who wait have their share out
        let free = !state.full
            && !state.waiting.has(unit)
            && state.verdict(&self.shared.limits, unit, bytes) == Verdict::Granted;
        free.then(|| state.begin(&self.shared, unit.clone(), bytes))
    }

    /// A turn when it is the unit's. Cancel safe: who leaves loses only the place in the queue.
    pub(crate) async fn turn(&self, unit: &Arc<str>, bytes: u64) -> Turn {
        if let Some(turn) = self.try_turn(unit, bytes) {
            return turn;
        }
        let (waiter, mut turn) = oneshot::channel();
        let granted = {
            let mut state = self.shared.state.lock();
            state.waiting.push(LANE, unit, bytes + self.shared.limits.turn_bytes, waiter);
            state.grant(&self.shared)
        };
        deliver(granted);
        let watched = async {
            let _watching = self.shared.watch.lock().await;
            loop {
                let next_end = self.shared.state.lock().out.front().and_then(|out| out.ends);
                sleep_until(next_end).await;
                let granted = {
                    let mut state = self.shared.state.lock();
                    state.expire(Instant::now());
                    state.grant(&self.shared)
                };
                deliver(granted);
            }
        };
        tokio::select! {
            biased;
            turn = &mut turn => match turn {
                Ok(turn) => turn,
                // the queue lives as long as `self` and drops a waiter only after it has left
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
        for who in [&hog, &hog, &hog, &hog, &hog, &hog, &light] {
            let (fair, who, order) = (fair.clone(), who.clone(), order.clone());
            tasks.push(tokio::spawn(async move {
                let _turn = fair.turn(&who, MIB).await;
                order.lock().push(who);
                tokio::task::yield_now().await;
            }));
            tokio::task::yield_now().await;
        }
        drop(held);
        for task in tasks {
            task.await.unwrap();
        }
        let place = order.lock().iter().position(|who| *who == light).unwrap();
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
        // it waits, but not before others
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
    async fn what_is_small_does_not_pass_for_ever_what_is_large() {
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
    async fn what_is_small_does_not_pass_what_is_large_of_its_own_unit() {
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
    fn who_comes_first_waits_for_nobody_who_has_had_a_share() {
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
        // what it had of the one lane counts in the other
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
    async fn who_leaves_the_queue_blocks_nobody() {
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
        assert_eq!(fair.shared.state.lock().out.len(), 0);
    }

    proptest! {
        #[test]
        fn everything_pushed_comes_out_once_in_each_units_order(items in prop::collection::vec((0usize..5, 1u64..3 * MIB), 0..200)) {
            let mut queue = FairQueue::<_>::new();
            let names: Vec<Arc<str>> = ["a", "b", "c", "d", "e"].map(unit).into();
            for (i, (who, bytes)) in items.iter().enumerate() {
                queue.push(LANE, &names[*who], *bytes, i);
            }
            let mut last = HashMap::new();
            let mut count = 0;
            while let Ok((who, bytes, i)) = queue.pop(LANE, |_, _| Verdict::Granted) {
                prop_assert_eq!((&who, bytes), (&names[items[i].0], items[i].1));
                prop_assert!(last.insert(who, i).is_none_or(|before| before < i));
                count += 1;
            }
            prop_assert_eq!(count, items.len());
            prop_assert!(queue.is_empty() && queue.units.is_empty());
        }
    }
}
