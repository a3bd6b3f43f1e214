//! The log of changes, and its watchers.
//!
//! Changes have consecutive numbers within one life of the process. The newest ones are kept in a ring, so that a watcher that
//! lost its stream can go on where it was. A watcher never blocks anybody: if its queue is full, or if it does not acknowledge in
//! time, it is disconnected, and treats its chunks as unconfirmed. So a publish waits for watchers for a bounded time.
//!
//! A watcher names the datasets that it is interested in, and is handed their changes alone. Each name is answered with the dataset's
//! description as of one position of the log; every later change of the dataset follows. A name without a dataset is answered, too,
//! and the making of the dataset is a change. What a watcher has named is forgotten with its stream.
//!
//! A watcher is waited for from its first acknowledgement on. A watcher that was disconnected and comes back, or that never
//! acknowledges, is so not waited for a second time. "Acknowledged" means that every watcher of the dataset that has acknowledged
//! before has applied the change.
//!
//! A version becomes visible, its description is kept, and its change gets its number under one lock. A watcher that names a dataset
//! is answered under the same lock. So nobody is told of a knowledge time before the change that brought it.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use trellis_fabric::bound::Bound;
use trellis_proto::{Code, Error, Result, pb};

/// Most changes that are kept for watchers that come back.
const RING_CHANGES_MAX: usize = 4_096;
/// Most bytes of the changes that are kept.
const RING_BYTES_MAX: usize = 64 << 20;
/// Bytes of a change beside its rows and spans: the description of its dataset.
const CHANGE_BYTES: usize = 1 << 10;
/// News queued for one watcher before it is disconnected.
const QUEUE_NEWS_MAX: usize = 1_024;
/// Most datasets of one watcher: more than a grid has, with the names that a head is asked for and that do not exist.
const DATASETS_MAX: usize = 1 << 17;
static DATASETS: Bound = Bound::new("shard.watched_datasets");

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
    /// The watchers of each dataset that has any.
    interested: HashMap<Arc<str>, HashMap<u64, Handed>>,
}

/// The number of the newest change of a dataset that a watcher was handed; 0: none yet.
type Handed = u64;

#[derive(Debug)]
struct Kept {
    change: Arc<pb::Change>,
    pushed: Instant,
}

#[derive(Debug)]
struct Watcher {
    name: String,
    queue: mpsc::Sender<News>,
    datasets: HashSet<Arc<str>>,
    applied: u64,
    /// It has acknowledged: publishes wait for it.
    acknowledges: bool,
}

/// What a watcher is handed, in the order of the log.
#[derive(Debug)]
pub(crate) enum News {
    Change(Arc<pb::Change>),
    Subscribed(Box<pb::Subscribed>),
}

impl News {
    /// The position of the watcher when it has it.
    pub(crate) fn seq(&self) -> u64 {
        match self {
            Self::Change(change) => change.seq,
            Self::Subscribed(subscribed) => subscribed.seq,
        }
    }
}

/// A watcher's end of the log. Dropping it ends the subscription.
#[derive(Debug)]
pub(crate) struct Subscription {
    log: Arc<WatchLog>,
    id: u64,
    /// The stream goes on after this position.
    pub(crate) seq: u64,
    /// What comes before the queue: the changes that it has missed, or the answers for the datasets that it has named.
    pub(crate) first: Vec<News>,
    pub(crate) queue: mpsc::Receiver<News>,
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
    /// watcher of the dataset. Returns whether it is news. Never waits.
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

    /// Follows these datasets after position `from`, if it is given and the ring still reaches back to it; else from now on, and `answer`
    /// gives the present description of each, or says why there is none.
    ///
    /// # Errors
    /// [`Code::TooLarge`] if there are too many.
    pub(crate) fn subscribe(
        self: &Arc<Self>,
        name: &str,
        from: Option<u64>,
        datasets: &[String],
        answer: impl Fn(&str) -> Result<pb::DatasetDescription>,
    ) -> Result<Subscription> {
        if datasets.len() > DATASETS_MAX {
            return Err(too_many());
        }
        let (sender, queue) = mpsc::channel(QUEUE_NEWS_MAX);
        let mut state = self.state.lock();
        let oldest = state.oldest();
        let resumed = from.filter(|from| (oldest..=state.seq).contains(from));
        let seq = resumed.unwrap_or(state.seq);
        let id = state.next_watcher;
        state.next_watcher += 1;
        let watcher = Watcher {
            name: name.to_owned(),
            queue: sender,
            datasets: HashSet::new(),
            applied: seq,
            acknowledges: false,
        };
        state.watchers.insert(id, watcher);
        let first = if resumed.is_some() {
            datasets.iter().for_each(|dataset| state.enter(id, dataset));
            state.missed(id, seq)
        } else {
            let subscribed = datasets.iter().map(|dataset| state.answer(id, dataset, answer(dataset)));
            subscribed.map(|subscribed| News::Subscribed(Box::new(subscribed))).collect()
        };
        Ok(Subscription { log: self.clone(), id, seq, first, queue })
    }

    /// Waits until every watcher of a dataset that acknowledges by now has applied the changes of the dataset so far. Those that have not
    /// within `patience` of the newest of these changes are disconnected.
    pub(crate) fn applied(
        self: &Arc<Self>,
        dataset: &str,
        patience: Duration,
    ) -> impl Future<Output = ()> + Send + 'static {
        let log = self.clone();
        let mut progress = log.progress.subscribe();
        let (awaited, overdue_at) = {
            let state = log.state.lock();
            let awaited = state.awaited(dataset);
            let newest = awaited.iter().map(|(_, handed)| *handed).max();
            (awaited, newest.map_or_else(Instant::now, |newest| state.pushed(newest)) + patience)
        };
        async move {
            loop {
                progress.borrow_and_update();
                let (waits, late) = log.state.lock().judge(&awaited, overdue_at <= Instant::now());
                if !late.is_empty() {
                    log.progress.send_modify(|n| *n += 1);
                }
                for (name, applied, seq) in late {
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
    }

    /// Takes an acknowledgement. Returns whether it is the first one of a watcher: later changes wait for the watcher.
    fn acknowledge(&self, id: u64, applied: u64) -> bool {
        let first = {
            let mut state = self.state.lock();
            let Some(watcher) = state.watchers.get_mut(&id) else { return false };
            watcher.applied = watcher.applied.max(applied);
            !std::mem::replace(&mut watcher.acknowledges, true)
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
        let Some(interested) = self.interested.get_mut(change.dataset.as_str()) else { return };
        let mut full = Vec::new();
        for (id, handed) in interested {
            let watcher = self.watchers.get(id);
            match watcher.map(|watcher| watcher.queue.try_send(News::Change(change.clone()))) {
                Some(Ok(())) => *handed = change.seq,
                _ => full.push(*id),
            }
        }
        late.extend(full.into_iter().filter_map(|id| Some(self.remove(id)?.name)));
    }

    /// The changes of a watcher's datasets after a position that the ring has.
    fn missed(&mut self, id: u64, seq: u64) -> Vec<News> {
        let after = (seq - self.oldest()) as usize;
        let mut missed = Vec::new();
        for kept in self.ring.iter().skip(after) {
            let change = &kept.change;
            let interested = self.interested.get_mut(change.dataset.as_str());
            if let Some(handed) = interested.and_then(|interested| interested.get_mut(&id)) {
                *handed = change.seq;
                missed.push(News::Change(change.clone()));
            }
        }
        missed
    }

    /// A watcher is handed the changes of a dataset from now on.
    fn enter(&mut self, id: u64, dataset: &str) {
        let Some(watcher) = self.watchers.get_mut(&id) else { return };
        let known = self.interested.get_key_value(dataset).map(|(name, _)| name.clone());
        let name = known.unwrap_or_else(|| dataset.into());
        watcher.datasets.insert(name.clone());
        self.interested.entry(name).or_default().entry(id).or_default();
    }

    /// Answers a watcher that has named a dataset, and hands it the changes from now on, unless the dataset does not open.
    fn answer(&mut self, id: u64, dataset: &str, said: Result<pb::DatasetDescription>) -> pb::Subscribed {
        let seq = self.seq;
        let full = self.watchers.get(&id).is_some_and(|watcher| {
            watcher.datasets.len() >= DATASETS_MAX && !watcher.datasets.contains(dataset)
        });
        let said = if full { Err(too_many().dataset(dataset)) } else { said };
        if said.as_ref().err().is_none_or(|error| error.code() == Code::UnknownDataset) {
            self.enter(id, dataset);
        }
        let answer = match said {
            Ok(description) => pb::subscribed::Answer::Description(description),
            Err(error) => pb::subscribed::Answer::Error(error.into()),
        };
        pb::Subscribed { dataset: dataset.to_owned(), seq, answer: Some(answer) }
    }

    /// A watcher is handed the changes of a dataset no more.
    fn leave(&mut self, id: u64, dataset: &str) {
        if let Some(watcher) = self.watchers.get_mut(&id) {
            watcher.datasets.remove(dataset);
        }
        self.uninterested(id, dataset);
    }

    fn uninterested(&mut self, id: u64, dataset: &str) {
        if let Some(interested) = self.interested.get_mut(dataset) {
            interested.remove(&id);
            if interested.is_empty() {
                self.interested.remove(dataset);
            }
        }
    }

    fn remove(&mut self, id: u64) -> Option<Watcher> {
        let watcher = self.watchers.remove(&id)?;
        watcher.datasets.iter().for_each(|dataset| self.uninterested(id, dataset));
        Some(watcher)
    }

    /// When a change was pushed. If the ring does not have the change any more, the time of the oldest change that it has.
    fn pushed(&self, seq: u64) -> Instant {
        let kept = self.ring.get(seq.saturating_sub(self.oldest() + 1) as usize);
        kept.map_or_else(Instant::now, |kept| kept.pushed)
    }

    /// The watchers of a dataset that a publish waits for, each with the number of the change that it has to apply.
    fn awaited(&self, dataset: &str) -> Vec<(u64, Handed)> {
        let interested = self.interested.get(dataset).into_iter().flatten();
        let behind = interested.filter(|(id, handed)| {
            self.watchers.get(id).is_some_and(|watcher| watcher.acknowledges && watcher.applied < **handed)
        });
        behind.map(|(id, handed)| (*id, *handed)).collect()
    }

    /// Whether a publish waits for one of these. If that is overdue nobody is waited for: the watchers that have not applied their changes
    /// are disconnected, and returned by name, with their positions and the changes.
    fn judge(&mut self, awaited: &[(u64, Handed)], overdue: bool) -> (bool, Vec<(String, u64, u64)>) {
        let behind = |(id, handed): &&(u64, Handed)| {
            self.watchers.get(id).is_some_and(|watcher| watcher.applied < *handed)
        };
        if !overdue {
            return (awaited.iter().any(|of| behind(&of)), Vec::new());
        }
        let late: Vec<_> = awaited.iter().filter(behind).copied().collect();
        let gone = late.into_iter().filter_map(|(id, handed)| Some((self.remove(id)?, handed)));
        (false, gone.map(|(watcher, handed)| (watcher.name, watcher.applied, handed)).collect())
    }
}

impl Subscription {
    /// A handle that acknowledges for this watcher. It returns whether it is the first acknowledgement: later changes wait for it.
    pub(crate) fn acknowledger(&self) -> impl Fn(u64) -> bool + Send + 'static {
        let (log, id) = (self.log.clone(), self.id);
        move |applied| log.acknowledge(id, applied)
    }

    /// Follows one more dataset. `answer` gives its present description, or says why there is none. The answer is in the queue.
    pub(crate) fn follow(&self, dataset: &str, answer: impl FnOnce() -> Result<pb::DatasetDescription>) {
        let mut state = self.log.state.lock();
        if !state.watchers.contains_key(&self.id) {
            return;
        }
        let subscribed = News::Subscribed(Box::new(state.answer(self.id, dataset, answer())));
        let watcher = state.watchers.get(&self.id);
        if watcher.is_some_and(|watcher| watcher.queue.try_send(subscribed).is_err()) {
            state.remove(self.id);
        }
    }

    /// Follows these datasets no more.
    pub(crate) fn leave(&self, datasets: &[String]) {
        let mut state = self.log.state.lock();
        datasets.iter().for_each(|dataset| state.leave(self.id, dataset));
    }

    /// The position of a watcher that has been sent everything up to `sent`. If nothing waits for it in the queue, that is the end of the
    /// log: nothing that concerns it has come since.
    pub(crate) fn position(&self, sent: u64) -> u64 {
        let state = self.log.state.lock();
        if self.queue.is_empty() && state.watchers.contains_key(&self.id) { state.seq } else { sent }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.log.state.lock().remove(self.id);
        self.log.progress.send_modify(|n| *n += 1);
    }
}

fn too_many() -> Error {
    DATASETS.hit();
    Error::new(Code::TooLarge, format!("a watcher of more than {DATASETS_MAX} datasets"))
}

/// Bytes of a change in memory, about.
fn bytes_of(change: &pb::Change) -> usize {
    let spans = change.spans.iter().map(|span| size_of_val(span) + span.symbol.len());
    CHANGE_BYTES + change.data_body.len() + change.retracted.len() + spans.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    impl WatchLog {
        fn push_to(&self, dataset: &str) -> u64 {
            let change = pb::Change { dataset: dataset.to_owned(), ..pb::Change::default() };
            self.install(change, || true);
            self.seq()
        }

        fn push(&self) -> u64 {
            self.push_to("d")
        }

        /// A watcher of the dataset `d`.
        fn watch(self: &Arc<Self>, name: &str, from: Option<u64>) -> Subscription {
            self.subscribe(name, from, &["d".to_owned()], described).unwrap()
        }
    }

    fn described(dataset: &str) -> Result<pb::DatasetDescription> {
        Ok(pb::DatasetDescription { home: dataset.to_owned(), ..pb::DatasetDescription::default() })
    }

    fn none(dataset: &str) -> Result<pb::DatasetDescription> {
        Err(Error::new(Code::UnknownDataset, "none").dataset(dataset))
    }

    /// What has come for a watcher: the dataset and the position of each.
    fn come(watcher: &mut Subscription) -> Vec<(String, u64)> {
        let queued = std::iter::from_fn(|| watcher.queue.try_recv().ok());
        let first = std::mem::take(&mut watcher.first);
        let named = |news: News| match &news {
            News::Change(change) => (change.dataset.clone(), news.seq()),
            News::Subscribed(answer) => (format!("+{}", answer.dataset), news.seq()),
        };
        first.into_iter().chain(queued).map(named).collect()
    }

    /// How long a publish of the dataset `d` waits for the watchers.
    async fn waited(log: &Arc<WatchLog>) -> Duration {
        let start = Instant::now();
        log.applied("d", PATIENCE).await;
        start.elapsed()
    }

    const PATIENCE: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_when_every_watcher_has_applied() {
        let log = WatchLog::new();
        let (a, b) = (log.watch("a", None), log.watch("b", None));
        let (a, b) = (a.acknowledger(), b.acknowledger());
        assert!(a(0) && b(0));
        let seq = log.push();
        let waiting = tokio::spawn({
            let log = log.clone();
            async move { waited(&log).await }
        });
        assert!(!a(seq), "not the first one");
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        b(seq);
        assert_eq!(waiting.await.unwrap(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_publish_waits_for_the_watchers_of_its_dataset_alone() {
        let log = WatchLog::new();
        let other = log.subscribe("other", None, &["e".to_owned()], described).unwrap();
        let left = log.watch("left", None);
        other.acknowledger()(0);
        left.acknowledger()(0);
        left.leave(&["d".to_owned()]);
        log.push_to("e");
        log.push();
        assert_eq!(waited(&log).await, Duration::ZERO);
        assert_eq!(log.watchers(), 2);
        left.follow("d", || described("d"));
        log.push();
        assert_eq!(waited(&log).await, PATIENCE, "it is interested again");
        assert_eq!(log.watchers(), 1, "the other one stays, although it is behind with a dataset of its own");
    }

    #[tokio::test(start_paused = true)]
    async fn a_watcher_of_three_of_ten_thousand_datasets_is_handed_three_changes_and_delays_three_publishes()
    {
        let log = WatchLog::new();
        let names: Vec<String> = (0..10_000).map(|i| format!("d{i}")).collect();
        let mut watcher = log.subscribe("a", None, &names[..3], described).unwrap();
        watcher.first.clear();
        watcher.acknowledger()(0);
        let mut delayed = Vec::new();
        for name in &names {
            let seq = log.push_to(name);
            let mut applied = std::pin::pin!(log.applied(name, PATIENCE));
            if futures::poll!(&mut applied).is_pending() {
                delayed.push(name.clone());
                watcher.acknowledger()(seq);
            }
        }
        assert_eq!(delayed, names[..3]);
        assert_eq!(come(&mut watcher).len(), 3);
        assert_eq!(log.watchers(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_watcher_that_has_just_named_a_dataset_has_nothing_to_apply() {
        let log = WatchLog::new();
        let watcher = log.watch("a", None);
        watcher.acknowledger()(0);
        log.push_to("other");
        watcher.leave(&["d".to_owned()]);
        watcher.follow("d", || described("d"));
        assert_eq!(waited(&log).await, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_is_for_the_changes_before_it() {
        let log = WatchLog::new();
        let watcher = log.watch("a", None);
        watcher.acknowledger()(0);
        let seq = log.push();
        let wait = log.applied("d", PATIENCE);
        log.push();
        watcher.acknowledger()(seq);
        let began = Instant::now();
        wait.await;
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_watcher_that_applies_too_late_is_disconnected() {
        let log = WatchLog::new();
        let mut slow = log.watch("slow", None);
        slow.acknowledger()(0);
        log.push();
        assert_eq!(waited(&log).await, PATIENCE);
        assert_eq!(log.watchers(), 0);
        assert_eq!(slow.queue.recv().await.unwrap().seq(), 1);
        assert!(slow.queue.recv().await.is_none());
        log.push();
        assert_eq!(waited(&log).await, Duration::ZERO, "nobody waits for it again");
        assert_eq!(slow.position(1), 1, "it is told of no change that it was not handed");
    }

    #[tokio::test(start_paused = true)]
    async fn the_patience_with_a_watcher_counts_from_the_change_whoever_gives_up_waiting() {
        let log = WatchLog::new();
        let slow = log.watch("slow", None);
        slow.acknowledger()(0);
        log.push();
        // a caller whose own deadline is shorter than the patience
        let left = tokio::time::timeout(PATIENCE / 2, waited(&log)).await;
        assert!(left.is_err() && log.watchers() == 1);
        log.push_to("e");
        assert_eq!(waited(&log).await, PATIENCE / 2);
        assert_eq!(log.watchers(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_watcher_that_has_not_acknowledged_is_not_waited_for_until_it_does() {
        let log = WatchLog::new();
        log.push();
        let back = log.watch("back", Some(0));
        log.push();
        assert_eq!(waited(&log).await, Duration::ZERO);
        assert_eq!(log.watchers(), 1, "and is not disconnected");
        assert!(back.acknowledger()(0));
        assert_eq!(waited(&log).await, PATIENCE);
        assert_eq!(log.watchers(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_watcher_that_comes_back_is_waited_for_with_what_it_has_missed() {
        let log = WatchLog::new();
        log.push();
        let back = log.watch("back", Some(0));
        back.acknowledger()(0);
        assert_eq!(waited(&log).await, PATIENCE);
    }

    #[test]
    fn a_version_becomes_visible_under_the_lock_under_which_its_change_gets_its_number() {
        let log = WatchLog::new();
        log.install(pb::Change::default(), || {
            assert!(log.state.is_locked(), "a version is visible, and its change has no number");
            true
        });
        assert_eq!(log.seq(), 1);
        let answer = |dataset: &str| {
            assert!(log.state.is_locked(), "a change may come between the description and its position");
            described(dataset)
        };
        let watcher = log.subscribe("a", None, &["d".to_owned()], answer).unwrap();
        watcher.follow("e", || answer("e"));
    }

    #[test]
    fn a_watcher_with_a_full_queue_is_disconnected_and_nobody_waits() {
        let log = WatchLog::new();
        let slow = log.watch("slow", None);
        for _ in 0..=QUEUE_NEWS_MAX {
            log.push_to("e");
        }
        assert_eq!(log.watchers(), 1, "the changes of other datasets take no room");
        for _ in 0..=QUEUE_NEWS_MAX {
            log.push();
        }
        assert_eq!(log.watchers(), 0);
        drop(slow);
        assert!(log.state.lock().interested.is_empty(), "what it had named is forgotten");
    }

    #[test]
    fn a_watcher_that_comes_back_gets_what_it_missed_of_its_datasets() {
        let log = WatchLog::new();
        for i in 0..10 {
            log.push_to(["d", "e"][i % 2]);
        }
        let mut back = log.watch("a", Some(7));
        assert_eq!((back.seq, come(&mut back)), (7, vec![("d".to_owned(), 9)]));
        assert_eq!(back.position(9), 10, "the newest change is none of its own");
        for _ in 0..RING_CHANGES_MAX {
            log.push_to("e");
        }
        assert_eq!(come(&mut back), []);
        assert_eq!(
            back.position(10),
            log.seq(),
            "so it can go on from here, however many changes others have had"
        );
        let mut too_late = log.watch("b", Some(7));
        let end = 10 + RING_CHANGES_MAX as u64;
        assert_eq!((too_late.seq, come(&mut too_late)), (end, vec![("+d".to_owned(), end)]));
        let other_life = log.watch("c", Some(1 << 40));
        assert_eq!(other_life.seq, log.seq());
    }

    #[test]
    fn a_name_without_a_dataset_is_followed_and_one_that_does_not_open_is_not() {
        let log = WatchLog::new();
        let mut watcher = log.subscribe("a", None, &["d".to_owned()], none).unwrap();
        watcher.follow("e", || Err(Error::new(Code::DataCorrupt, "torn")));
        come(&mut watcher);
        log.push_to("d");
        log.push_to("e");
        assert_eq!(come(&mut watcher), [("d".to_owned(), 1)]);
    }

    #[test]
    fn a_watcher_of_too_many_datasets_is_refused_the_next_one_and_keeps_the_others() {
        let log = WatchLog::new();
        let names: Vec<String> = (0..=DATASETS_MAX).map(|i| format!("d{i}")).collect();
        let refused = log.subscribe("a", None, &names, none).unwrap_err();
        assert_eq!(refused.code(), Code::TooLarge);
        assert_eq!(log.watchers(), 0);
        let mut watcher = log.subscribe("a", None, &names[1..], none).unwrap();
        watcher.first.clear();
        watcher.follow("d1", || none("d1"));
        watcher.follow("d0", || none("d0"));
        let answered = |news| match news {
            Ok(News::Subscribed(answer)) => match answer.answer {
                Some(pb::subscribed::Answer::Error(error)) => Error::from(error).code(),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        };
        assert_eq!(answered(watcher.queue.try_recv()), Code::UnknownDataset);
        assert_eq!(answered(watcher.queue.try_recv()), Code::TooLarge);
        for name in ["d0", "d1"] {
            log.push_to(name);
        }
        assert_eq!(come(&mut watcher), [("d1".to_owned(), 2)]);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Change(usize),
        Follow(usize),
        Leave(usize),
        Take,
        Lose,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let dataset = 0..3usize;
        prop::collection::vec(
            prop_oneof![
                4 => dataset.clone().prop_map(Step::Change),
                2 => dataset.clone().prop_map(Step::Follow),
                1 => dataset.prop_map(Step::Leave),
                2 => Just(Step::Take),
                1 => Just(Step::Lose),
            ],
            1..80,
        )
    }

    proptest! {
        /// Against a watcher that keeps the version of each of its datasets: a description is never older than the changes before it,
        /// no change is left out or comes twice, also over a lost stream, and no position promises more than was sent.
        #[test]
        fn a_watcher_knows_every_version_of_its_datasets_and_none_of_others(steps in steps()) {
            const NAMES: [&str; 3] = ["a", "b", "c"];
            let log = WatchLog::new();
            let mut versions: BTreeMap<String, u64> = NAMES.iter().map(|name| ((*name).to_owned(), 0)).collect();
            let describe = |versions: &BTreeMap<String, u64>, name: &str| -> Result<pb::DatasetDescription> {
                Ok(pb::DatasetDescription { version: versions[name], ..Default::default() })
            };
            let mut watcher = log.subscribe("w", None, &[], |name| describe(&versions, name)).unwrap();
            let mut known: BTreeMap<String, u64> = BTreeMap::new();
            let mut asked: Vec<String> = Vec::new();
            let mut at = watcher.seq;
            let take = |watcher: &mut Subscription, known: &mut BTreeMap<String, u64>, asked: &mut Vec<String>, at: &mut u64| {
                let first = std::mem::take(&mut watcher.first);
                let queued: Vec<News> = std::iter::from_fn(|| watcher.queue.try_recv().ok()).collect();
                for news in first.into_iter().chain(queued) {
                    prop_assert!(news.seq() >= *at, "the log goes on");
                    *at = news.seq();
                    match news {
                        News::Change(change) => {
                            if let Some(version) = known.get_mut(&change.dataset) {
                                prop_assert_eq!(*version + 1, change.version);
                                *version = change.version;
                            }
                        }
                        News::Subscribed(answer) => {
                            let Some(pb::subscribed::Answer::Description(said)) = answer.answer else {
                                panic!("described")
                            };
                            // an answer to somebody who has left meanwhile is of no use
                            if let Some(i) = asked.iter().position(|name| *name == answer.dataset) {
                                asked.remove(i);
                                known.insert(answer.dataset, said.version);
                            }
                        }
                    }
                }
                *at = watcher.position(*at);
                Ok(())
            };
            for step in steps {
                match step {
                    Step::Change(dataset) => {
                        let name = NAMES[dataset];
                        let version = versions[name] + 1;
                        let change = pb::Change { dataset: name.to_owned(), version, ..Default::default() };
                        log.install(change, || versions.insert(name.to_owned(), version).is_some());
                    }
                    Step::Follow(dataset) => {
                        let name = NAMES[dataset];
                        if !known.contains_key(name) && !asked.iter().any(|asked| asked == name) {
                            asked.push(name.to_owned());
                            watcher.follow(name, || describe(&versions, name));
                        }
                    }
                    Step::Leave(dataset) => {
                        let name = NAMES[dataset];
                        // what is on its way is taken first, as a head that left would skip it
                        take(&mut watcher, &mut known, &mut asked, &mut at)?;
                        known.remove(name);
                        watcher.leave(&[name.to_owned()]);
                    }
                    Step::Take => {
                        take(&mut watcher, &mut known, &mut asked, &mut at)?;
                        for (name, version) in &known {
                            prop_assert_eq!(versions[name], *version);
                        }
                    }
                    Step::Lose => {
                        asked.clear();
                        let names: Vec<String> = known.keys().cloned().collect();
                        watcher = log.subscribe("w", Some(at), &names, |name| describe(&versions, name)).unwrap();
                        prop_assert_eq!(watcher.seq, at, "the ring reaches back");
                    }
                }
            }
            take(&mut watcher, &mut known, &mut asked, &mut at)?;
            for (name, version) in &known {
                prop_assert_eq!(versions[name], *version);
            }
            prop_assert_eq!(at, log.seq());
        }
    }
}
