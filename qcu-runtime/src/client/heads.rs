//! The heads that a client knows, which of them answer, and how a call goes on to the next head.
//!
//! They are those of a head's [map](super::map), or those that discovery finds.
//!
//! A request goes to the head that [`placement`] names, so that all requests for a series meet on one head. The client passes over a head
//! that has just failed for a short while, so that not every call fails there first. If all heads have failed, the client tries all of
//! them: then the cause is more likely on its own side.

use std::{
    collections::HashMap,
    future::Future,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use trellis_fabric::{
    channel::{ChannelOptions, PeerChannel, Pool},
    discovery::{Peers, Watch},
    limited,
    retry::{Pauses, up_to},
};
use trellis_proto::{Code, Error, Result, pb, pb::head_client::HeadClient, placement};

use super::{
    failure::unreachable,
    map::{ASK_EVERY, Answer, HeadMap, has},
    options::Ended,
};

/// How long the client passes over a head that it could not reach: shorter than any failover, longer than a burst of calls.
const PENALTY: Duration = Duration::from_secs(2);
/// First pause after every head has failed once; it doubles from round to round.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// Longest time of one question for the map. It is one small answer of a head that has it in memory.
const MAP_TIMEOUT: Duration = Duration::from_secs(2);
/// Most heads that one question for the map goes to, one after another.
const MAP_ATTEMPTS: usize = 3;
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
    /// Random, so that clients ask different heads for the map.
    key: String,
    state: Mutex<State>,
    /// Bytes of the last read, 0 before the first.
    last_read: AtomicU64,
}

struct State {
    /// What discovery said when `found` was made.
    peers: Peers,
    /// Every head that discovery knows, sorted. Made once for each change: there may be thousands.
    found: Arc<[String]>,
    map: HeadMap,
    pools: HashMap<String, Pool>,
    away_until: HashMap<String, Instant>,
}

impl Heads {
    /// `map`: whether discovery may find only some of the heads, so that the client asks them for all.
    pub(crate) fn new(watch: Watch, map: bool, options: ChannelOptions, ended: Option<Ended>) -> Self {
        let peers = watch.peers.borrow().clone();
        let found = addrs(&peers);
        let state =
            State { peers, found, map: HeadMap::new(map), pools: HashMap::new(), away_until: HashMap::new() };
        let (state, last_read) = (Mutex::new(state), AtomicU64::default());
        Self { inner: Arc::new(Inner { watch, options, ended, key: random_name(), state, last_read }) }
    }

    /// Waits until discovery has found a head, at most for `limit`. Returns whether it has. Cancel safe.
    pub(crate) async fn found(&self, limit: Duration) -> bool {
        let mut peers = self.inner.watch.peers.clone();
        matches!(timeout(limit, peers.wait_for(|peers| !peers.is_empty())).await, Ok(Ok(_)))
    }

    /// Every head that the client knows now, sorted.
    pub(crate) fn all(&self) -> Arc<[String]> {
        let peers = self.inner.watch.peers.borrow().clone();
        self.inner.state.lock().follow(peers)
    }

    /// What to say if there is no head to ask.
    pub(crate) fn nobody(&self) -> String {
        let why = self.inner.watch.trouble.last().map(|why| format!(": {why}")).unwrap_or_default();
        format!("discovery finds no head{why}")
    }

    /// The heads to place requests on: those that have not just failed; if all of a map have, those that discovery finds; or all if all
    /// have.
    pub(crate) fn live(&self) -> Arc<[String]> {
        let peers = self.inner.watch.peers.borrow().clone();
        let now = Instant::now();
        let mut state = self.inner.state.lock();
        let all = state.follow(peers);
        state.away_until.retain(|_, until| *until > now);
        if state.away_until.is_empty() {
            return all;
        }
        let live = |heads: &[String]| -> Arc<[String]> {
            heads.iter().filter(|head| !state.away_until.contains_key(*head)).cloned().collect()
        };
        [live(&all), live(&state.found)].into_iter().find(|live| !live.is_empty()).unwrap_or(all)
    }

    /// Passes over the head for a while, and doubts that it is still there.
    pub(crate) fn mark_away(&self, head: &str) {
        self.inner.watch.doubt.raise(head);
        {
            let mut state = self.inner.state.lock();
            state.away_until.insert(head.to_owned(), Instant::now() + PENALTY);
            state.map.missed(head);
        }
        self.follow_map();
    }

    /// A head's answer has named the version of its map.
    pub(crate) fn told_map(&self, version: u64) {
        self.inner.state.lock().map.told(version);
        self.follow_map();
    }

    /// Asks for the map in the background, if it is time to.
    fn follow_map(&self) {
        if let Some(known) = self.inner.state.lock().map.ask(Instant::now().into_std()) {
            let heads = self.clone();
            tokio::spawn(async move { heads.ask_map(known).await });
        }
    }

    /// Asks for the map for the first time, so that the first requests are already placed among all heads. Gives up at `deadline`:
    /// then they are placed among those that discovery finds.
    pub(crate) async fn first_map(&self, deadline: Instant) {
        let known = self.inner.state.lock().map.ask(Instant::now().into_std());
        if let Some(known) = known {
            _ = timeout_at(deadline, self.ask_map(known)).await;
        }
    }

    /// Asks one of the heads that discovery finds: they are there now, whatever has become of those in the map.
    async fn ask_map(&self, known_version: u64) {
        // ends the question also if the caller leaves
        let mut asking = Asking { heads: self, answer: None };
        let mut without_map = 0;
        let found = {
            let peers = self.inner.watch.peers.borrow().clone();
            let mut state = self.inner.state.lock();
            state.follow(peers);
            Arc::clone(&state.found)
        };
        for head in placement::rank(&found, &self.inner.key).into_iter().take(MAP_ATTEMPTS) {
            let Ok(channel) = self.channel(head, 0) else { continue };
            let mut client = limited!(HeadClient::new(channel));
            match timeout(MAP_TIMEOUT, client.heads(pb::HeadsRequest { known_version })).await {
                Ok(Ok(reply)) => {
                    let pb::HeadsReply { version, heads } = reply.into_inner();
                    if version != 0 {
                        asking.answer = Some(Answer { version, heads });
                        return;
                    }
                    // it has just started, and has found nobody yet; or nobody has told it where the heads are
                    without_map += 1;
                }
                // a head of an earlier release
                Ok(Err(status)) if status.code() == tonic::Code::Unimplemented => without_map += 1,
                Ok(Err(status)) => tracing::debug!(head, %status, "no map of the heads"),
                Err(_) => tracing::debug!(head, "no map of the heads in time"),
            }
        }
        if without_map > 0 && without_map == found.len().min(MAP_ATTEMPTS) {
            asking.answer = Some(Answer { version: 0, heads: Vec::new() });
        }
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

    /// Like [`Self::channel`], for a read. The size of its answer is unknown, so the client expects that of the last read: large reads that
    /// begin together then do not all begin on one connection.
    pub(crate) fn read_channel(&self, head: &str) -> Result<PeerChannel> {
        self.channel(head, self.inner.last_read.load(Relaxed))
    }

    /// Notes how many bytes a read has brought.
    pub(crate) fn has_read(&self, bytes: u64) {
        self.inner.last_read.store(bytes, Relaxed);
    }

    /// Calls `attempt` with one head after another: `first` before the others, which come in the order of `key`. A head that has just
    /// failed is not the first. The client goes on, round after round, until an attempt succeeds or fails for good, or `deadline` passes.
    /// An attempt may take at most `limit`, and at most the time that is left. The client passes that time to `attempt`. Dropping the
    /// future drops the attempt.
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
            let (all, live) = (self.all(), self.live());
            let first = first.filter(|head| has(&live, head));
            // the order of thousands of heads is only made if the first has failed
            let others = std::iter::once_with(|| placement::rank(&live, key)).flatten();
            for head in first.into_iter().chain(others.filter(|head| Some(*head) != first)) {
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
                // the rest of an outdated list may be thousands of heads that have gone
                if !Arc::ptr_eq(&all, &self.all()) {
                    break;
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

/// A question for the map. It ends when this is dropped.
struct Asking<'a> {
    heads: &'a Heads,
    answer: Option<Answer>,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let mut state = self.heads.inner.state.lock();
        let State { map, found, .. } = &mut *state;
        map.answered(self.answer.take(), found, Instant::now().into_std(), up_to(ASK_EVERY));
        state.forget_pools();
    }
}

impl State {
    /// Takes what discovery says now. Returns the heads to use.
    fn follow(&mut self, peers: Peers) -> Arc<[String]> {
        if !Arc::ptr_eq(&self.peers, &peers) {
            (self.found, self.peers) = (addrs(&peers), peers);
            self.map.found_others();
            self.forget_pools();
        }
        Arc::clone(self.map.heads().unwrap_or(&self.found))
    }

    /// A head that has left the grid needs no connections any more.
    fn forget_pools(&mut self) {
        let (found, map) = (&self.found, self.map.heads());
        self.pools.retain(|addr, _| has(found, addr) || map.is_some_and(|map| has(map, addr)));
    }
}

/// A name that no other client has.
pub(super) fn random_name() -> String {
    format!("{:x}", RandomState::new().build_hasher().finish())
}

/// The addresses, sorted.
fn addrs(peers: &Peers) -> Arc<[String]> {
    let mut addrs: Vec<String> = peers.iter().map(|peer| peer.addr.clone()).collect();
    addrs.sort_unstable();
    addrs.dedup();
    addrs.into()
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
        let heads = Heads::new(peers.into(), false, ChannelOptions::default(), Some(ended));
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
        let heads = Heads::new(peers.into(), false, ChannelOptions::default(), None);
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

    #[tokio::test]
    async fn a_call_goes_to_the_head_it_is_placed_on_and_then_to_the_others_in_their_order() {
        let peers: Peers = (1..=5).map(|i| Peer { addr: format!("127.0.0.{i}:9") }).collect();
        let (sender, watched) = tokio::sync::watch::channel(peers);
        let ended = Ended::new(|| true);
        let heads = Heads::new(watched.into(), false, ChannelOptions::default(), Some(ended));
        let asked = async |first: Option<&str>| {
            let asked = Mutex::new(Vec::new());
            let attempt = |head: String, _| {
                asked.lock().push(head);
                async { Err::<(), _>(Error::new(Code::Overloaded, "busy")) }
            };
            let deadline = Instant::now() + Duration::from_secs(100_000);
            heads.call("k", first, deadline, Duration::MAX, attempt).await.unwrap_err();
            asked.into_inner()
        };
        let all = heads.live();
        let ranked = placement::rank(&all, "k");
        assert_eq!(asked(None).await, ranked);
        let rest = [ranked[3], ranked[0], ranked[1], ranked[2], ranked[4]];
        assert_eq!(asked(Some(ranked[3])).await, rest);
        heads.mark_away(ranked[3]);
        assert_eq!(asked(Some(ranked[3])).await, [ranked[0], ranked[1], ranked[2], ranked[4]]);

        let fewer: Peers = [Peer { addr: ranked[1].to_owned() }].into();
        sender.send(fewer).unwrap();
        assert_eq!(*heads.live(), [ranked[1].to_owned()], "as discovery says now");
    }

    #[tokio::test]
    async fn while_all_heads_of_a_map_are_away_a_call_goes_to_those_that_discovery_finds() {
        let found: Peers = (1..=2).map(|i| Peer { addr: format!("127.0.0.{i}:9") }).collect();
        let (_sender, watched) = tokio::sync::watch::channel(found);
        let heads = Heads::new(watched.into(), true, ChannelOptions::default(), None);
        {
            let mut state = heads.inner.state.lock();
            let State { map, found, .. } = &mut *state;
            map.ask(Instant::now().into_std()).unwrap();
            let all = ["127.0.0.1:9", "127.0.0.3:9", "127.0.0.4:9"].map(str::to_owned);
            let answer = Answer { version: 1, heads: all.to_vec() };
            map.answered(Some(answer), found, Instant::now().into_std(), Duration::ZERO);
        }
        assert_eq!(heads.live().len(), 3);
        for head in ["127.0.0.1:9", "127.0.0.3:9"] {
            heads.mark_away(head);
        }
        assert_eq!(heads.live()[..], ["127.0.0.4:9"]);
        heads.mark_away("127.0.0.4:9");
        assert_eq!(heads.live()[..], ["127.0.0.2:9"], "found, and not in the map");
        heads.mark_away("127.0.0.2:9");
        assert_eq!(heads.live().len(), 3, "all have failed: the cause may be here");
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
