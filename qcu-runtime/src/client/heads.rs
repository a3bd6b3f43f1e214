//! The heads that a client knows, which of them answer, and how a call goes on to the next head.
//!
//! A request goes to the head that rendezvous hashing names, so that all requests for a series meet on one head. The client
//! passes over a head that has just failed for a short while, so that not every call fails there first. If all heads have
//! failed, the client tries all of them: then the cause is more likely on its own side.

use std::{
    collections::HashMap,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::{Instant, sleep, timeout};
use trellis_fabric::{
    channel::{ChannelOptions, PeerChannel, Pool},
    discovery::Watch,
    retry::Pauses,
};
use trellis_proto::{Code, Error, Result, placement};

use super::{failure::unreachable, options::Ended};

/// How long the client passes over a head that it could not reach: shorter than any failover, longer than a burst of calls.
const PENALTY: Duration = Duration::from_secs(2);
/// First pause after every head has failed once; it doubles from round to round.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// Longest pause between rounds: the client notices within this time that a grid is back.
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// Discovered heads and their connections. Clones share them.
#[derive(Clone)]
pub(crate) struct Heads {
    inner: Arc<Inner>,
}

struct Inner {
    watch: Watch,
    options: ChannelOptions,
    ended: Option<Ended>,
    state: Mutex<State>,
    /// Bytes of the last read, 0 before the first.
    last_read: AtomicU64,
}

#[derive(Default)]
struct State {
    pools: HashMap<String, Pool>,
    away_until: HashMap<String, Instant>,
}

impl Heads {
    pub(crate) fn new(watch: Watch, options: ChannelOptions, ended: Option<Ended>) -> Self {
        let (state, last_read) = (Mutex::default(), AtomicU64::default());
        Self { inner: Arc::new(Inner { watch, options, ended, state, last_read }) }
    }

    /// Waits until discovery has found a head, at most for `limit`. Returns whether it has. Cancel safe.
    pub(crate) async fn found(&self, limit: Duration) -> bool {
        let mut peers = self.inner.watch.peers.clone();
        matches!(timeout(limit, peers.wait_for(|peers| !peers.is_empty())).await, Ok(Ok(_)))
    }

    /// Every head that discovery knows now, sorted.
    pub(crate) fn all(&self) -> Vec<String> {
        let mut heads: Vec<String> =
            self.inner.watch.peers.borrow().iter().map(|peer| peer.addr.to_string()).collect();
        heads.sort_unstable();
        heads.dedup();
        heads
    }

    /// What to say if there is no head to ask.
    pub(crate) fn nobody(&self) -> String {
        let why = self.inner.watch.trouble.last().map(|why| format!(": {why}")).unwrap_or_default();
        format!("discovery finds no head{why}")
    }

    /// The heads to place requests on: those that have not just failed, or all if all have.
    pub(crate) fn live(&self) -> Vec<String> {
        let all = self.all();
        let now = Instant::now();
        let mut state = self.inner.state.lock();
        state.away_until.retain(|_, until| *until > now);
        // a head that has left the grid needs no connections any more
        state.pools.retain(|addr, _| all.binary_search(addr).is_ok());
        let live: Vec<String> =
            all.iter().filter(|head| !state.away_until.contains_key(*head)).cloned().collect();
        if live.is_empty() { all } else { live }
    }

    /// Passes over the head for a while, and doubts that it is still there.
    pub(crate) fn mark_away(&self, head: &str) {
        self.inner.watch.doubt.raise(head);
        self.inner.state.lock().away_until.insert(head.to_owned(), Instant::now() + PENALTY);
    }

    /// A connection to `head` for a call that will move about `bytes`, 0 if unknown. The connection is made at its first call.
    pub(crate) fn channel(&self, head: &str, bytes: u64) -> Result<PeerChannel> {
        let mut state = self.inner.state.lock();
        if let Some(pool) = state.pools.get(head) {
            return Ok(pool.get(bytes));
        }
        let pool = Pool::connect(head, &self.inner.options).map_err(|e| unreachable(&e))?;
        Ok(state.pools.entry(head.to_owned()).or_insert(pool).get(bytes))
    }

    /// As [`Self::channel`], for a read. The size of its answer is unknown, so the client expects that of the last read: large reads that
    /// begin together then do not all begin on one connection.
    pub(crate) fn read_channel(&self, head: &str) -> Result<PeerChannel> {
        self.channel(head, self.inner.last_read.load(Relaxed))
    }

    /// Notes how many bytes a read has brought.
    pub(crate) fn has_read(&self, bytes: u64) {
        self.inner.last_read.store(bytes, Relaxed);
    }

    /// Calls `attempt` with one head after another: `first` before the others, which come in the order of `key`. It goes on, round
    /// after round, until an attempt succeeds or fails for good, or `deadline` passes. An attempt may take at most `limit`, and at
    /// most the time that is left; it is told how much that is. Dropping the future drops the attempt.
    ///
    /// # Errors
    /// A final error of an attempt. At the deadline, or when the grid has ended: the last retryable error, with the number of
    /// attempts. An attempt that ran out of time does not replace an earlier error, which says more; the error then names the head
    /// that was late.
    pub(crate) async fn call<T, F, Fut>(
        &self,
        key: &str,
        first: Option<&str>,
        deadline: Instant,
        limit: Duration,
        mut attempt: F,
    ) -> Result<T>
    where
        F: FnMut(String, Duration) -> Fut,
        Fut: Future<Output = Result<T>>,
    {
        let mut attempts = 0_u32;
        let mut pauses = Pauses::new(BACKOFF_MIN, BACKOFF_MAX);
        let mut last = Error::new(Code::Unavailable, self.nobody());
        // the head that the newest attempt has waited for in vain, if an earlier one was answered
        let mut late: Option<String> = None;
        loop {
            let live = self.live();
            let mut ranked = placement::rank(&live, key);
            // a stable sort: the others keep their order
            ranked.sort_by_key(|head| Some(*head) != first);
            for head in ranked {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(gave_up(last, attempts, late.as_deref()));
                }
                attempts += 1;
                let left = left.min(limit);
                match timeout(left, attempt(head.to_owned(), left)).await {
                    Ok(Ok(done)) => return Ok(done),
                    Ok(Err(error)) if error.retryable() => {
                        tracing::debug!(head, %error, attempts, "call failed; trying on");
                        if error.code() == Code::Unavailable {
                            self.mark_away(head);
                        }
                        // running out of time says less than an earlier answer
                        if attempts == 1 || error.code() != Code::DeadlineExceeded {
                            (last, late) = (error, None);
                        } else {
                            late = Some(head.to_owned());
                        }
                    }
                    Ok(Err(error)) => return Err(error),
                    Err(_) => {
                        self.mark_away(head);
                        if attempts == 1 {
                            let late = format!("head {head} did not answer in time");
                            last = Error::new(Code::DeadlineExceeded, late);
                        } else {
                            late = Some(head.to_owned());
                        }
                    }
                }
            }
            if self.inner.ended.as_ref().is_some_and(Ended::now) {
                return Err(gave_up(last, attempts, late.as_deref()));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            sleep(pauses.next_pause().min(left)).await;
        }
    }
}

/// The error of a call without an answer. `late`: the head that has not answered the newest attempt in time.
fn gave_up(last: Error, attempts: u32, late: Option<&str>) -> Error {
    if attempts <= 1 {
        return last;
    }
    let late =
        late.map(|head| format!("; head {head} did not answer the last one in time")).unwrap_or_default();
    let message = format!("{} ({attempts} attempts{late})", last.message());
    let hint = last.hint_text().to_owned();
    let (dataset, symbol, shard) = last.place();
    let mut error = Error::new(last.code(), message).hint(hint).side(last.whose());
    if !dataset.is_empty() {
        error = error.dataset(dataset);
    }
    if !symbol.is_empty() {
        error = error.symbol(symbol);
    }
    if !shard.is_empty() {
        error = error.shard(shard);
    }
    error
}

#[cfg(test)]
mod tests {
    use trellis_fabric::discovery::Peer;

    use super::*;

    #[tokio::test]
    async fn a_call_ends_when_the_grid_has_ended_whatever_its_deadline() {
        let (_sender, peers) =
            tokio::sync::watch::channel(Arc::from([Peer { addr: "127.0.0.1:9".to_owned() }]));
        let rounds = Arc::new(AtomicU64::new(0));
        let asked = rounds.clone();
        let ended = Ended::new(move || asked.fetch_add(1, Relaxed) == 1);
        let heads = Heads::new(peers.into(), ChannelOptions::default(), Some(ended));
        let attempt = |_, _| async { Err::<(), _>(Error::new(Code::Unavailable, "refused")) };
        let deadline = Instant::now() + Duration::from_secs(100_000);
        let error = heads.call("k", None, deadline, Duration::MAX, attempt).await.unwrap_err();
        assert_eq!(error.message(), "refused (2 attempts)");
        assert_eq!(rounds.load(Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_that_runs_out_of_time_does_not_hide_what_an_earlier_one_was_answered() {
        let (_sender, peers) =
            tokio::sync::watch::channel(Arc::from([Peer { addr: "127.0.0.1:9".to_owned() }]));
        let heads = Heads::new(peers.into(), ChannelOptions::default(), None);
        let mut attempts = 0;
        let attempt = |_, _| {
            attempts += 1;
            let first = attempts == 1;
            async move {
                if !first {
                    std::future::pending::<()>().await;
                }
                Err::<(), _>(Error::new(Code::StorageFull, "the disk is full"))
            }
        };
        let deadline = Instant::now() + Duration::from_millis(500);
        let error = heads.call("k", None, deadline, Duration::MAX, attempt).await.unwrap_err();
        let told = "the disk is full (2 attempts; head 127.0.0.1:9 did not answer the last one in time)";
        assert_eq!((error.code(), error.message()), (Code::StorageFull, told));
    }

    #[test]
    fn giving_up_keeps_what_the_last_error_said() {
        let last = Error::new(Code::Overloaded, "too much").hint("later").dataset("a.b").shard("s-1");
        let error = gave_up(last, 3, None);
        assert_eq!(error.code(), Code::Overloaded);
        assert_eq!(error.message(), "too much (3 attempts)");
        assert_eq!(error.place(), ("a.b", "", "s-1"));
        assert_eq!(error.hint_text(), "later");
    }
}
