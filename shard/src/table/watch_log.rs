//! The log of changes, and its watchers.
//!
//! Changes have consecutive numbers within one life of the process. The newest ones are kept in a ring, so that a watcher that
//! lost its stream can go on where it was. A watcher never blocks anybody: if its queue is full, or if it does not acknowledge in
//! time, it is disconnected, and treats its chunks as unconfirmed. So a publish waits for watchers for a bounded time, and
//! "acknowledged" means that every *connected* watcher has applied the change.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use trellis_proto::pb;

/// Most changes that are kept for watchers that come back.
const RING_CHANGES_MAX: usize = 4_096;
/// Most bytes of rows that are kept with them.
const RING_BYTES_MAX: usize = 64 << 20;
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
    ring: VecDeque<Arc<pb::Change>>,
    ring_bytes: usize,
    next_watcher: u64,
    watchers: HashMap<u64, Watcher>,
}

#[derive(Debug)]
struct Watcher {
    name: String,
    queue: mpsc::Sender<Arc<pb::Change>>,
    applied: u64,
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

    /// Numbers a change, keeps it, and hands it to every watcher. Never waits.
    pub(crate) fn push(&self, mut change: pb::Change) -> u64 {
        let mut late = Vec::new();
        let seq = {
            let mut state = self.state.lock();
            state.seq += 1;
            change.seq = state.seq;
            let change = Arc::new(change);
            state.ring_bytes += change.data_body.len();
            state.ring.push_back(change.clone());
            while state.ring.len() > RING_CHANGES_MAX || state.ring_bytes > RING_BYTES_MAX {
                let Some(oldest) = state.ring.pop_front() else { break };
                state.ring_bytes -= oldest.data_body.len();
            }
            state.watchers.retain(|_, watcher| {
                let taken = watcher.queue.try_send(change.clone()).is_ok();
                if !taken {
                    late.push(watcher.name.clone());
                }
                taken
            });
            state.seq
        };
        for name in late {
            tracing::warn!(head = name, seq, "disconnected a watcher: its queue is full");
        }
        self.progress.send_modify(|n| *n += 1);
        seq
    }

    /// Follows the log after position `from` if it is given and the ring still reaches back to it, else from now on.
    pub(crate) fn subscribe(self: &Arc<Self>, name: &str, from: Option<u64>) -> Subscription {
        let (sender, queue) = mpsc::channel(QUEUE_CHANGES_MAX);
        let mut state = self.state.lock();
        let oldest = state.seq - state.ring.len() as u64;
        let seq = from.filter(|from| (oldest..=state.seq).contains(from)).unwrap_or(state.seq);
        let missed = state.ring.iter().skip((seq - oldest) as usize).cloned().collect();
        let id = state.next_watcher;
        state.next_watcher += 1;
        state.watchers.insert(id, Watcher { name: name.to_owned(), queue: sender, applied: seq });
        Subscription { log: self.clone(), id, seq, missed, queue }
    }

    /// Waits until every watcher has applied the log up to `seq`; those that have not after `patience` are disconnected.
    pub(crate) async fn wait_applied(&self, seq: u64, patience: Duration) {
        let mut progress = self.progress.subscribe();
        let all_applied = async {
            loop {
                progress.borrow_and_update();
                if self.state.lock().watchers.values().all(|w| w.applied >= seq) {
                    return;
                }
                if progress.changed().await.is_err() {
                    return;
                }
            }
        };
        if tokio::time::timeout(patience, all_applied).await.is_ok() {
            return;
        }
        self.state.lock().watchers.retain(|_, watcher| {
            let applied = watcher.applied >= seq;
            if !applied {
                tracing::warn!(
                    head = watcher.name,
                    applied = watcher.applied,
                    seq,
                    "disconnected a watcher: it did not apply a change in time"
                );
            }
            applied
        });
        self.progress.send_modify(|n| *n += 1);
    }

    fn acknowledge(&self, id: u64, applied: u64) {
        if let Some(watcher) = self.state.lock().watchers.get_mut(&id) {
            watcher.applied = watcher.applied.max(applied);
        }
        self.progress.send_modify(|n| *n += 1);
    }
}

impl Subscription {
    /// A handle that acknowledges for this watcher.
    pub(crate) fn acknowledger(&self) -> impl Fn(u64) + Send + 'static {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn change() -> pb::Change {
        pb::Change { dataset: "d".to_owned(), ..pb::Change::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_when_every_watcher_has_applied() {
        let log = WatchLog::new();
        let (a, b) = (log.subscribe("a", None), log.subscribe("b", None));
        let seq = log.push(change());
        let waiting = tokio::spawn({
            let log = log.clone();
            async move {
                let start = tokio::time::Instant::now();
                log.wait_applied(seq, Duration::from_secs(5)).await;
                start.elapsed()
            }
        });
        a.acknowledger()(seq);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        b.acknowledger()(seq);
        assert_eq!(waiting.await.unwrap(), Duration::ZERO);
        assert_eq!(log.watchers(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_watcher_that_applies_too_late_is_disconnected() {
        let log = WatchLog::new();
        let mut slow = log.subscribe("slow", None);
        let seq = log.push(change());
        log.wait_applied(seq, Duration::from_secs(5)).await;
        assert_eq!(log.watchers(), 0);
        assert_eq!(slow.queue.recv().await.unwrap().seq, 1);
        assert!(slow.queue.recv().await.is_none());
    }

    #[test]
    fn a_watcher_with_a_full_queue_is_disconnected_and_nobody_waits() {
        let log = WatchLog::new();
        let _slow = log.subscribe("slow", None);
        for _ in 0..=QUEUE_CHANGES_MAX {
            log.push(change());
        }
        assert_eq!(log.watchers(), 0);
    }

    #[test]
    fn a_watcher_that_comes_back_gets_what_it_missed() {
        let log = WatchLog::new();
        for _ in 0..10 {
            log.push(change());
        }
        let back = log.subscribe("a", Some(7));
        assert_eq!(back.seq, 7);
        assert_eq!(back.missed.iter().map(|c| c.seq).collect::<Vec<_>>(), [8, 9, 10]);
        for _ in 0..RING_CHANGES_MAX {
            log.push(change());
        }
        let too_late = log.subscribe("b", Some(7));
        assert_eq!((too_late.seq, too_late.missed.len()), (10 + RING_CHANGES_MAX as u64, 0));
        let other_life = log.subscribe("c", Some(1 << 40));
        assert_eq!(other_life.seq, log.seq());
    }
}
