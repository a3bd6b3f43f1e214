//! The heads that a client knows, which of them answer, and how a call moves on when one does not.
//!
//! Requests go to the head that rendezvous hashing names, so that all requests for a series meet on one head. A head
//! that just failed is passed over for a short while instead of failing every call anew; if all failed they are all
//! tried, because then the likelier cause is here.

use std::{
    collections::HashMap,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tonic::Status;
use trellis_fabric::{
    channel::{ChannelOptions, PeerChannel, Pool, Unreachable},
    discovery::Peer,
};
use trellis_proto::{Code, Error, Result, placement};

use super::Ended;

/// How long a head that could not be reached is passed over. Shorter than any failover, longer than a burst of calls.
const PENALTY: Duration = Duration::from_secs(2);
/// First pause after every head has failed once; doubles from round to round.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// Longest pause between rounds: a grid that comes back is noticed within it.
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// Discovered heads and their connections. Clones share them.
#[derive(Clone)]
pub(crate) struct Heads {
    inner: Arc<Inner>,
}

struct Inner {
    peers: watch::Receiver<Arc<[Peer]>>,
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
    pub(crate) fn new(
        peers: watch::Receiver<Arc<[Peer]>>,
        options: ChannelOptions,
        ended: Option<Ended>,
    ) -> Self {
        let (state, last_read) = (Mutex::default(), AtomicU64::default());
        Self { inner: Arc::new(Inner { peers, options, ended, state, last_read }) }
    }

    /// Waits until discovery has found somebody, at most `limit`.
    pub(crate) async fn found(&self, limit: Duration) -> bool {
        let mut peers = self.inner.peers.clone();
        matches!(timeout(limit, peers.wait_for(|peers| !peers.is_empty())).await, Ok(Ok(_)))
    }

    /// Every head that discovery knows now, sorted.
    pub(crate) fn all(&self) -> Vec<String> {
        let mut heads: Vec<String> =
            self.inner.peers.borrow().iter().map(|peer| peer.addr.to_string()).collect();
        heads.sort_unstable();
        heads.dedup();
        heads
    }

    /// The heads to place requests on: known, and not just seen failing (or all, if all were).
    pub(crate) fn live(&self) -> Vec<String> {
        let all = self.all();
        let now = Instant::now();
        let mut state = self.inner.state.lock();
        state.away_until.retain(|_, until| *until > now);
        // heads that left for good take their connections with them
        state.pools.retain(|addr, _| all.binary_search(addr).is_ok());
        let live: Vec<String> =
            all.iter().filter(|head| !state.away_until.contains_key(*head)).cloned().collect();
        if live.is_empty() { all } else { live }
    }

    /// The head is passed over for a while.
    pub(crate) fn mark_away(&self, head: &str) {
        self.inner.state.lock().away_until.insert(head.to_owned(), Instant::now() + PENALTY);
    }

    /// A connection to `head`, made at its first call, for a call that is to move `bytes`; 0 if nobody knows.
    pub(crate) fn channel(&self, head: &str, bytes: u64) -> Result<PeerChannel> {
        let mut state = self.inner.state.lock();
        if let Some(pool) = state.pools.get(head) {
            return Ok(pool.get(bytes));
        }
        let pool = Pool::connect(head, &self.inner.options).map_err(|e| unreachable(&e))?;
        Ok(state.pools.entry(head.to_owned()).or_insert(pool).get(bytes))
    }

    /// As [`Self::channel`], for a read. Nobody knows its size beforehand; it is expected to be that of the last one, so that
    /// large reads that begin together do not all begin on one connection.
    pub(crate) fn read_channel(&self, head: &str) -> Result<PeerChannel> {
        self.channel(head, self.inner.last_read.load(Relaxed))
    }

    /// A read has brought so many bytes.
    pub(crate) fn has_read(&self, bytes: u64) {
        self.inner.last_read.store(bytes, Relaxed);
    }

    /// Calls `attempt` with one head after another, `first` before the others (which come in the order of `key`), round
    /// after round, until it succeeds, fails for good, or `deadline` passes. An attempt may take `limit`, and no more than
    /// is left, which it is told. Dropping the future drops the attempt.
    ///
    /// # Errors
    /// The attempt's own error if it is final; the last retryable one that says more than that there was no time, with the number
    /// of attempts, at the deadline or the grid's end.
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
        let mut pause = BACKOFF_MIN;
        let mut last = Error::new(Code::Unavailable, "discovery knows no head node");
        loop {
            let live = self.live();
            let mut ranked = placement::rank(&live, key);
            // stable: the others keep their order
            ranked.sort_by_key(|head| Some(*head) != first);
            for head in ranked {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(gave_up(last, attempts));
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
                        // one that ran out of time says less than what an earlier one was answered
                        if attempts == 1 || error.code() != Code::DeadlineExceeded {
                            last = error;
                        }
                    }
                    Ok(Err(error)) => return Err(error),
                    Err(_) => {
                        self.mark_away(head);
                        if attempts == 1 {
                            let late = format!("head {head} did not answer in time");
                            last = Error::new(Code::DeadlineExceeded, late);
                        }
                    }
                }
            }
            if self.inner.ended.as_ref().is_some_and(Ended::now) {
                return Err(gave_up(last, attempts));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            sleep(jittered(pause).min(left)).await;
            pause = (pause * 2).min(BACKOFF_MAX);
        }
    }
}

fn gave_up(last: Error, attempts: u32) -> Error {
    if attempts <= 1 {
        return last;
    }
    let message = format!("{} ({attempts} attempts)", last.message());
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

/// Half to all of `pause`, so that clients that failed together do not come back together.
pub(crate) fn jittered(pause: Duration) -> Duration {
    let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), Instant::now());
    pause.mul_f64(0.5 + 0.5 * (random as f64 / u64::MAX as f64))
}

pub(crate) fn unreachable(error: &Unreachable) -> Error {
    Error::new(Code::Unavailable, error.to_string()).hint("is the grid running, and is this its address?")
}

/// The error in a status. One that the transport made (nobody answered, or the connection broke) says so, whatever code
/// the transport chose for it.
pub(crate) fn of_status(status: &Status) -> Error {
    match std::error::Error::source(status) {
        Some(cause) if status.details().is_empty() => of_transport(cause),
        _ => Error::from_status(status),
    }
}

/// The error in a transport's failure.
pub(crate) fn of_transport(error: &(dyn std::error::Error + 'static)) -> Error {
    let mut text = error.to_string();
    let mut next = Some(error);
    while let Some(cause) = next {
        // the channel keeps to the deadline that the call states, too
        if cause.is::<tonic::TimeoutExpired>() {
            return Error::new(Code::DeadlineExceeded, "the head did not answer in time");
        }
        if let Some(io) = cause.downcast_ref::<std::io::Error>() {
            // what the system says; the layers around it repeat it in their own words
            return Error::new(Code::Unavailable, format!("the connection to the head failed: {io}"));
        }
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = cause.source();
    }
    Error::new(Code::Unavailable, format!("the connection to the head failed: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_stays_between_half_and_all() {
        for _ in 0..100 {
            let pause = jittered(Duration::from_secs(4));
            assert!((Duration::from_secs(2)..=Duration::from_secs(4)).contains(&pause));
        }
    }

    #[tokio::test]
    async fn a_call_ends_when_the_grid_has_ended_whatever_its_deadline() {
        let (_sender, peers) = watch::channel(Arc::from([Peer { addr: "127.0.0.1:9".to_owned() }]));
        let rounds = Arc::new(AtomicU64::new(0));
        let asked = rounds.clone();
        let ended = Ended::new(move || asked.fetch_add(1, Relaxed) == 1);
        let heads = Heads::new(peers, ChannelOptions::default(), Some(ended));
        let attempt = |_, _| async { Err::<(), _>(Error::new(Code::Unavailable, "refused")) };
        let deadline = Instant::now() + Duration::from_secs(100_000);
        let error = heads.call("k", None, deadline, Duration::MAX, attempt).await.unwrap_err();
        assert_eq!(error.message(), "refused (2 attempts)");
        assert_eq!(rounds.load(Relaxed), 2);
    }

    #[tokio::test]
    async fn an_attempt_that_runs_out_of_time_does_not_hide_what_an_earlier_one_was_answered() {
        let (_sender, peers) = watch::channel(Arc::from([Peer { addr: "127.0.0.1:9".to_owned() }]));
        let heads = Heads::new(peers, ChannelOptions::default(), None);
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
        assert_eq!((error.code(), error.message()), (Code::StorageFull, "the disk is full (2 attempts)"));
    }

    #[test]
    fn giving_up_keeps_what_the_last_error_said() {
        let last = Error::new(Code::Overloaded, "too much").hint("later").dataset("a.b").shard("s-1");
        let error = gave_up(last, 3);
        assert_eq!(error.code(), Code::Overloaded);
        assert_eq!(error.message(), "too much (3 attempts)");
        assert_eq!(error.place(), ("a.b", "", "s-1"));
        assert_eq!(error.hint_text(), "later");
    }
}
