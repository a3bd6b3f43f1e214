//! The log of changes, and its watchers.
//!
//! Changes have consecutive numbers within one life of the process. The newest ones are kept in a ring, so that a watcher that
//! lost its stream can go on where it was. A watcher never blocks anybody: if its queue is full, or if it does not acknowledge in
//! time, it is disconnected, and treats its chunks as unconfirmed. So a publish waits for watchers for a bounded time.
//!
//! A watcher is waited for from its first acknowledgement on. A watcher that was disconnected and comes back, or that never
//! acknowledges, is so not waited for a second time. "Acknowledged" means that every watcher that has acknowledged before has
//! applied the change.
//!
//! A version becomes visible, its description is kept, and its change gets its number under one lock. So nobody is told of a
//! knowledge time before the change that brought it.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use trellis_proto::pb;

/// Most changes that are kept for watchers that come back.
const RING_CHANGES_MAX: usize = 4_096;
/// Most bytes of the changes that are kept.
const RING_BYTES_MAX: usize = 64 << 20;
/// Bytes of a change beside its rows and spans: the description of its dataset.
const CHANGE_BYTES: usize = 1 << 10;
/// Changes queued for one watcher before it is disconnected.
const QUEUE_CHANGES_MAX: usize = 1_024;
/// The watch log.
#[derive(Debug)]
pub(crate) struct WatchLog {
    state: Mutex<State>,
    /// Changes whenever a watcher acknowledges or leaves.
    progress: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    /// Number of the newest change; 0: none yet.
    seq: u64,
    ring: VecDeque<Kept>,
    ring_bytes: usize,
    next_watcher: u64,
    watchers: HashMap<u64, Watcher>,
}

#[derive(Debug)]
struct Kept {
    change: Arc<pb::Change>,
    pushed: Instant,
}

#[derive(Debug)]
struct Watcher {
    name: String,
    queue: mpsc::Sender<Arc<pb::Change>>,
    applied: u64,
    /// It has acknowledged: publishes wait for it.
    acknowledges: bool,
}

/// A watcher's end of the log. Dropping it ends the subscription.
#[derive(Debug)]
pub(crate) struct Subscription {
    log: Arc<WatchLog>,
    id: u64,
    /// The stream goes on after this position.
    pub(crate) seq: u64,
    pub(crate) missed: Vec<Arc<pb::Change>>,
    pub(crate) queue: mpsc::Receiver<Arc<pb::Change>>,
}

impl WatchLog {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), progress: watch::Sender::new(0) })
    }

    /// Number of the newest change.
    pub(crate) fn seq(&self) -> u64 {
        self.state.lock().seq
    }

    #[cfg(test)]
    pub(crate) fn watchers(&self) -> usize {
        self.state.lock().watchers.len()
    }

    /// Makes a version of a dataset visible by `show`. If that says that it is news, numbers its change, keeps it, and hands it to every
    /// watcher. Returns whether it is news. Never waits.
    pub(crate) fn install(&self, change: pb::Change, show: impl FnOnce() -> bool) -> bool {
        let mut late = Vec::new();
        let (seq, news) = {
            let mut state = self.state.lock();
            let news = show();
            if news {
                state.push(change, Instant::now(), &mut late);
            }
            (state.seq, news)
        };
        for name in late {
            tracing::warn!(head = name, seq, "disconnected a watcher: its queue is full");
        }
        self.progress.send_modify(|n| *n += 1);
        news
    }

    /// Follows the log after position `from` if it is given and the ring still reaches back to it, else from now on.
    pub(crate) fn subscribe(self: &Arc<Self>, name: &str, from: Option<u64>) -> Subscription {
        let (sender, queue) = mpsc::channel(QUEUE_CHANGES_MAX);
        let mut state = self.state.lock();
        let oldest = state.oldest();
        let seq = from.filter(|from| (oldest..=state.seq).contains(from)).unwrap_or(state.seq);
        let missed =
            state.ring.iter().skip((seq - oldest) as usize).map(|kept| kept.change.clone()).collect();
        let id = state.next_watcher;
        state.next_watcher += 1;
        let watcher = Watcher { name: name.to_owned(), queue: sender, applied: seq, acknowledges: false };
        state.watchers.insert(id, watcher);
        Subscription { log: self.clone(), id, seq, missed, queue }
    }

    /// Waits until every watcher that acknowledges has applied the log up to `seq`. Those that have not within `patience` of the change
    /// are disconnected.
    pub(crate) async fn wait_applied(&self, seq: u64, patience: Duration) {
        let mut progress = self.progress.subscribe();
        let overdue_at = self.state.lock().pushed(seq) + patience;
        loop {
            progress.borrow_and_update();
            let (waits, late) = self.state.lock().judge(seq, overdue_at <= Instant::now());
            if !late.is_empty() {
                self.progress.send_modify(|n| *n += 1);
            }
            for (name, applied) in late {
                tracing::warn!(
                    head = name,
                    applied,
                    seq,
                    patience_ms = patience.as_millis() as u64,
                    "disconnected a watcher: it did not apply a change in time, and is not waited for until it acknowledges again"
                );
            }
            if !waits {
                return;
            }
            // a watcher that leaves or acknowledges wakes this
            let _ = tokio::time::timeout_at(overdue_at, progress.changed()).await;
        }
    }

    /// Takes an acknowledgement. The first one of a watcher returns the end of the log: later changes wait for the watcher.
    fn acknowledge(&self, id: u64, applied: u64) -> Option<u64> {
        let first = {
            let mut state = self.state.lock();
            let end = state.seq;
            let watcher = state.watchers.get_mut(&id)?;
            watcher.applied = watcher.applied.max(applied);
            (!std::mem::replace(&mut watcher.acknowledges, true)).then_some(end)
        };
        self.progress.send_modify(|n| *n += 1);
        first
    }
}

/// The decisions. Pure.
impl State {
    /// The position after which the ring has every change.
    fn oldest(&self) -> u64 {
        self.seq - self.ring.len() as u64
    }

    fn push(&mut self, mut change: pb::Change, now: Instant, late: &mut Vec<String>) {
        self.seq += 1;
        change.seq = self.seq;
        let change = Arc::new(change);
        self.ring_bytes += bytes_of(&change);
        self.ring.push_back(Kept { change: change.clone(), pushed: now });
        while self.ring.len() > RING_CHANGES_MAX || self.ring_bytes > RING_BYTES_MAX {
            let Some(oldest) = self.ring.pop_front() else { break };
            self.ring_bytes -= bytes_of(&oldest.change);
        }
        self.watchers.retain(|_, watcher| {
            let taken = watcher.queue.try_send(change.clone()).is_ok();
            if !taken {
                late.push(watcher.name.clone());
            }
            taken
        });
    }

    /// When a change was pushed; of one that is not kept any more, the time of the oldest that is.
    fn pushed(&self, seq: u64) -> Instant {
        let kept = self.ring.get(seq.saturating_sub(self.oldest() + 1) as usize);
        kept.map_or_else(Instant::now, |kept| kept.pushed)
    }

    /// Whether a publish waits for a watcher to apply `seq`. If that is overdue nobody is waited for: the watchers that have not applied it
    /// are disconnected, and returned by name, with their positions.
    fn judge(&mut self, seq: u64, overdue: bool) -> (bool, Vec<(String, u64)>) {
        let behind = |watcher: &Watcher| watcher.acknowledges && watcher.applied < seq;
        if !overdue {
            return (self.watchers.values().any(behind), Vec::new());
        }
        let late: Vec<u64> =
            self.watchers.iter().filter(|(_, watcher)| behind(watcher)).map(|(id, _)| *id).collect();
        let gone = late.iter().filter_map(|id| self.watchers.remove(id));
        (false, gone.map(|watcher| (watcher.name, watcher.applied)).collect())
    }
}

impl Subscription {
    /// A handle that acknowledges for this watcher. The first acknowledgement returns the end of the log: later changes wait for it.
    pub(crate) fn acknowledger(&self) -> impl Fn(u64) -> Option<u64> + Send + 'static {
        let (log, id) = (self.log.clone(), self.id);
        move |applied| log.acknowledge(id, applied)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.log.state.lock().watchers.remove(&self.id);
        self.log.progress.send_modify(|n| *n += 1);
    }
}

/// Bytes of a change in memory, about.
fn bytes_of(change: &pb::Change) -> usize {
    let spans = change.spans.iter().map(|span| size_of_val(span) + span.symbol.len());
    CHANGE_BYTES + change.data_body.len() + change.retracted.len() + spans.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    impl WatchLog {
        fn push(&self) -> u64 {
            let change = pb::Change { dataset: "d".to_owned(), ..pb::Change::default() };
            self.install(change, || true);
            self.seq()
        }
    }

    /// How long a publish of a change waits for the watchers.
    async fn waited(log: &WatchLog, seq: u64) -> Duration {
        let start = Instant::now();
        log.wait_applied(seq, PATIENCE).await;
        start.elapsed()
    }

    const PATIENCE: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_when_every_watcher_has_applied() {
        let log = WatchLog::new();
        let (a, b) = (log.subscribe("a", None), log.subscribe("b", None));
        let (a, b) = (a.acknowledger(), b.acknowledger());
        assert_eq!((a(0), b(0)), (Some(0), Some(0)));
        let seq = log.push();
        let waiting = tokio::spawn({
            let log = log.clone();
            async move { waited(&log, seq).await }
        });
        assert_eq!(a(seq), None);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        b(seq);
        assert_eq!(waiting.await.unwrap(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_watcher_that_applies_too_late_is_disconnected() {
        let log = WatchLog::new();
        let mut slow = log.subscribe("slow", None);
        slow.acknowledger()(0);
        let seq = log.push();
        assert_eq!(waited(&log, seq).await, PATIENCE);
        assert_eq!(log.watchers(), 0);
        assert_eq!(slow.queue.recv().await.unwrap().seq, 1);
        assert!(slow.queue.recv().await.is_none());
        let next = log.push();
        assert_eq!(waited(&log, next).await, Duration::ZERO, "nobody waits for it again");
    }

    #[tokio::test(start_paused = true)]
    async fn the_patience_with_a_watcher_counts_from_the_change_whoever_gives_up_waiting() {
        let log = WatchLog::new();
        let slow = log.subscribe("slow", None);
        slow.acknowledger()(0);
        let seq = log.push();
        // a caller whose own deadline is shorter than the patience
        let left = tokio::time::timeout(PATIENCE / 2, waited(&log, seq)).await;
        assert!(left.is_err() && log.watchers() == 1);
        assert_eq!(waited(&log, seq).await, PATIENCE / 2);
        assert_eq!(log.watchers(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_watcher_that_has_not_acknowledged_is_not_waited_for_until_it_does() {
        let log = WatchLog::new();
        log.push();
        let back = log.subscribe("back", Some(0));
        let seq = log.push();
        assert_eq!(waited(&log, seq).await, Duration::ZERO);
        assert_eq!(log.watchers(), 1, "and is not disconnected");
        assert_eq!(back.acknowledger()(0), Some(2), "it may miss the changes up to here, and no later one");
        assert_eq!(waited(&log, seq).await, PATIENCE);
        assert_eq!(log.watchers(), 0);
    }

    #[test]
    fn a_version_becomes_visible_under_the_lock_under_which_its_change_gets_its_number() {
        let log = WatchLog::new();
        log.install(pb::Change::default(), || {
            assert!(log.state.is_locked(), "a version is visible, and its change has no number");
            true
        });
        assert_eq!(log.seq(), 1);
    }

    #[test]
    fn a_watcher_with_a_full_queue_is_disconnected_and_nobody_waits() {
        let log = WatchLog::new();
        let _slow = log.subscribe("slow", None);
        for _ in 0..=QUEUE_CHANGES_MAX {
            log.push();
        }
        assert_eq!(log.watchers(), 0);
    }

    #[test]
    fn a_watcher_that_comes_back_gets_what_it_missed() {
        let log = WatchLog::new();
        for _ in 0..10 {
            log.push();
        }
        let back = log.subscribe("a", Some(7));
        assert_eq!(back.seq, 7);
        assert_eq!(back.missed.iter().map(|c| c.seq).collect::<Vec<_>>(), [8, 9, 10]);
        for _ in 0..RING_CHANGES_MAX {
            log.push();
        }
        let too_late = log.subscribe("b", Some(7));
        assert_eq!((too_late.seq, too_late.missed.len()), (10 + RING_CHANGES_MAX as u64, 0));
        let other_life = log.subscribe("c", Some(1 << 40));
        assert_eq!(other_life.seq, log.seq());
    }
}
