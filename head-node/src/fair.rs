//! Whose turn it is, by bytes.
//!
//! Large answers compete for two things: the bytes they pin in memory while they are read, and the transport. A unit that
//! asks for everything at once would get nearly all of both if turns were given in order of arrival. Here a limited number
//! of bytes is out at any time, and what waits is served by deficit round robin over *units*: each unit in turn may
//! spend a quantum, what it does not spend it keeps while it waits, so that ten thousand requests of one unit and one of
//! another come to the same share. Weighing by requests instead would favour whoever asks for the larger messages.
//!
//! Nobody waits while the limit is not reached, and small answers do not come here at all: they are made in one go and
//! would spend longer in the queue than in the making.
//!
//! A turn ends when its holder drops it or when its lease runs out: a reader who stalls with a message in its hands must
//! not keep others from sending theirs. Where leases are long, one unit may hold a share at most, so that until then its
//! slow readers block only itself.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::oneshot, time::Instant};

/// What a unit may spend before the next one's turn: the largest message, so that each visit serves one.
const QUANTUM_BYTES: u64 = 1 << 20;

/// Limits of one resource.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Bytes out at any time. One turn is always given, however large.
    pub(crate) bytes: u64,
    /// Of these, bytes of one unit.
    pub(crate) unit_bytes: u64,
    /// After this time a turn counts as ended.
    pub(crate) lease: Option<Duration>,
}

/// Deficit round robin over units: who of those waiting is next. Pure.
#[derive(Debug)]
struct RoundRobin<T> {
    units: HashMap<Arc<str>, Waiting<T>>,
    /// Units with something waiting, in the order of their turns.
    round: VecDeque<Arc<str>>,
}

#[derive(Debug)]
struct Waiting<T> {
    deficit: u64,
    queue: VecDeque<(u64, T)>,
}

impl<T> RoundRobin<T> {
    fn new() -> Self {
        Self { units: HashMap::new(), round: VecDeque::new() }
    }

    fn is_empty(&self) -> bool {
        self.round.is_empty()
    }

    fn push(&mut self, unit: &Arc<str>, bytes: u64, item: T) {
        let waiting = self.units.entry(unit.clone()).or_insert_with(|| {
            self.round.push_back(unit.clone());
            Waiting { deficit: 0, queue: VecDeque::new() }
        });
        waiting.queue.push_back((bytes, item));
    }

    /// The next item whose unit may have it; `None` if no unit's first item is allowed.
    fn pop(&mut self, allowed: impl Fn(&Arc<str>, u64) -> bool) -> Option<(Arc<str>, u64, T)> {
        let mut refused = 0;
        while refused < self.round.len() {
            let unit = self.round.front()?.clone();
            let waiting = self.units.get_mut(&unit)?;
            let bytes = waiting.queue.front()?.0;
            if !allowed(&unit, bytes) {
                refused += 1;
                self.round.rotate_left(1);
                continue;
            }
            if waiting.deficit < bytes {
                waiting.deficit += QUANTUM_BYTES;
                self.round.rotate_left(1);
                refused = 0;
                continue;
            }
            let (bytes, item) = waiting.queue.pop_front()?;
            waiting.deficit -= bytes;
            if waiting.queue.is_empty() {
                // a unit with nothing waiting saves nothing for later
                self.units.remove(&unit);
                self.round.pop_front();
            }
            return Some((unit, bytes, item));
        }
        None
    }
}

/// One resource, shared fairly. Clones are the same resource.
#[derive(Debug, Clone)]
pub(crate) struct Fair {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    limits: Limits,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Turns out, oldest first.
    out: VecDeque<Out>,
    bytes: u64,
    of_units: HashMap<Arc<str>, u64>,
    waiting: RoundRobin<oneshot::Sender<Turn>>,
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
    shared: Arc<Shared>,
    id: u64,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let granted = {
            let mut state = self.shared.state.lock();
            state.end(|out| out.id == self.id);
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

impl State {
    /// Ends the first turn that `which` picks.
    fn end(&mut self, which: impl Fn(&Out) -> bool) -> bool {
        let Some(at) = self.out.iter().position(which) else { return false };
        let Some(out) = self.out.remove(at) else { return false };
        self.bytes -= out.bytes;
        if let Some(of_unit) = self.of_units.get_mut(&out.unit) {
            *of_unit -= out.bytes;
            if *of_unit == 0 {
                self.of_units.remove(&out.unit);
            }
        }
        true
    }

    fn allows(&self, limits: &Limits, unit: &Arc<str>, bytes: u64) -> bool {
        let of_unit = self.of_units.get(unit).copied().unwrap_or(0);
        (self.out.is_empty() || self.bytes + bytes <= limits.bytes)
            && (of_unit == 0 || of_unit + bytes <= limits.unit_bytes)
    }

    fn begin(&mut self, shared: &Arc<Shared>, unit: Arc<str>, bytes: u64) -> Turn {
        let id = self.next_id;
        self.next_id += 1;
        self.bytes += bytes;
        *self.of_units.entry(unit.clone()).or_insert(0) += bytes;
        let ends = shared.limits.lease.map(|lease| Instant::now() + lease);
        self.out.push_back(Out { id, unit, bytes, ends });
        Turn { shared: shared.clone(), id }
    }

    fn grant(&mut self, shared: &Arc<Shared>) -> Granted {
        let mut granted = Vec::new();
        loop {
            let mut waiting = std::mem::replace(&mut self.waiting, RoundRobin::new());
            let next = waiting.pop(|unit, bytes| self.allows(&shared.limits, unit, bytes));
            self.waiting = waiting;
            let Some((unit, bytes, waiter)) = next else { return granted };
            if !waiter.is_closed() {
                granted.push((waiter, self.begin(shared, unit, bytes)));
            }
        }
    }

    /// Ends turns whose lease has run out.
    fn expire(&mut self, now: Instant) {
        while self.end(|out| out.ends.is_some_and(|ends| ends <= now)) {}
    }
}

impl Fair {
    pub(crate) fn new(limits: Limits) -> Self {
        let state = State {
            out: VecDeque::new(),
            bytes: 0,
            of_units: HashMap::new(),
            waiting: RoundRobin::new(),
            next_id: 0,
        };
        Self { shared: Arc::new(Shared { limits, state: Mutex::new(state) }) }
    }

    /// A turn at once, if nobody waits and the limits allow it.
    pub(crate) fn try_turn(&self, unit: &Arc<str>, bytes: u64) -> Option<Turn> {
        let mut state = self.shared.state.lock();
        let free = state.waiting.is_empty() && state.allows(&self.shared.limits, unit, bytes);
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
            state.waiting.push(unit, bytes, waiter);
            state.grant(&self.shared)
        };
        deliver(granted);
        loop {
            let next_end = self.shared.state.lock().out.front().and_then(|out| out.ends);
            tokio::select! {
                turn = &mut turn => match turn {
                    Ok(turn) => return turn,
                    // the queue lives as long as `self` and drops a waiter only after it has left
                    Err(_) => std::future::pending().await,
                },
                () = sleep_until(next_end) => {
                    let granted = {
                        let mut state = self.shared.state.lock();
                        state.expire(Instant::now());
                        state.grant(&self.shared)
                    };
                    deliver(granted);
                }
            }
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

    fn limits(bytes: u64, unit_bytes: u64) -> Limits {
        Limits { bytes, unit_bytes, lease: None }
    }

    #[test]
    fn bytes_are_shared_evenly_whatever_the_sizes_and_numbers() {
        let mut queue = RoundRobin::new();
        let (hog, light) = (unit("hog"), unit("light"));
        for i in 0..1_000 {
            queue.push(&hog, MIB, i);
        }
        for i in 0..40 {
            queue.push(&light, 100 * KIB, i);
        }
        let (mut of_hog, mut of_light) = (0, 0);
        while of_light < 40 * 100 * KIB {
            let (unit, bytes, _) = queue.pop(|_, _| true).unwrap();
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

    #[tokio::test(start_paused = true)]
    async fn a_stalled_turn_ends_with_its_lease() {
        let fair = Fair::new(Limits { lease: Some(Duration::from_millis(5)), ..limits(MIB, MIB) });
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
            let mut queue = RoundRobin::new();
            let names: Vec<Arc<str>> = ["a", "b", "c", "d", "e"].map(unit).into();
            for (i, (who, bytes)) in items.iter().enumerate() {
                queue.push(&names[*who], *bytes, i);
            }
            let mut last = HashMap::new();
            let mut count = 0;
            while let Some((who, bytes, i)) = queue.pop(|_, _| true) {
                prop_assert_eq!((&who, bytes), (&names[items[i].0], items[i].1));
                prop_assert!(last.insert(who, i).is_none_or(|before| before < i));
                count += 1;
            }
            prop_assert_eq!(count, items.len());
            prop_assert!(queue.is_empty() && queue.units.is_empty());
        }
    }
}
