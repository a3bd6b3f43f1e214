//! The engine's face: what the services of a head node ask of it.
//!
//! | module | subject |
//! | --- | --- |
//! | `claims` | pure: who has, fetches and waits for which chunk |
//! | `chunk` | a chunk's rows in one allocation |
//! | `series`, `datasets` | what is held of a series and of a dataset |
//! | `cache`, `memory` | what stays, and the one budget |
//! | `shards`, `watch`, `changes` | who the shards are, their logs, applying a change |
//! | `fetch`, `flight` | asking shards, waiting for chunks |
//! | `reading` | one read |
//! | `union` | what has been asked for so far |

use std::sync::{Arc, atomic::Ordering::Relaxed};
use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use futures::future::join_all;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use trellis_fabric::{channel::PeerChannel, discovery::Peers};
use trellis_proto::{Code, DatasetName, Error, Result, Symbol, name::nearest, pb, placement};

use crate::{
    claims::Standing,
    datasets::Table,
    memory::Request,
    metrics::Waits,
    shards::{self, Link, Shard},
    state::Core,
};
pub use crate::{
    datasets::Dataset,
    reading::{Ask, ReadCounts, Reading, SeriesChunks},
    state::EngineConfig,
};

/// A channel to a shard.
pub type ShardChannel = PeerChannel;

/// How long a dataset that no shard knows stays unknown without asking again, with jitter: a client that polls for a dataset must not
/// turn every poll into a question to every shard. A dataset that is made meanwhile is announced by its shard.
const UNKNOWN_TTL: Duration = Duration::from_millis(500);
/// A publish waits for another shard to serve its version at most so long; the shard's chunks are unconfirmed after that.
const SYNC_TIMEOUT: Duration = Duration::from_secs(2);
/// Listing the symbols or sessions of one shard.
const LIST_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a listing waits for a shard that is being brought up to date.
const LIVE_WAIT: Duration = Duration::from_secs(5);

/// Figures since the head started.
#[derive(Debug, Clone, Default)]
pub struct EngineStats {
    /// Rows received from shards, all known versions counted.
    pub rows_fetched: u64,
    /// Rows in the union of all ranges asked for so far.
    pub rows_union: u64,
    /// Chunks of answers that were there.
    pub chunks_hit: u64,
    /// Chunks of answers that others had asked for.
    pub chunks_joined: u64,
    /// Chunks of answers that had to be asked for.
    pub chunks_fetched: u64,
    /// Fetch calls.
    pub upstream_calls: u64,
    /// Message bytes received by them.
    pub bytes_fetched: u64,
    /// Bytes in the cache.
    pub resident_bytes: u64,
    /// Bytes reserved for what has been asked for.
    pub in_flight_bytes: u64,
    /// Bytes that only readers hold.
    pub pinned_bytes: u64,
    /// What these three may be together.
    pub budget_bytes: u64,
    /// Chunks closed or patched by changes.
    pub invalidations: u64,
    /// Flights that a change overtook.
    pub poisoned_flights: u64,
    /// Flights that everybody left.
    pub cancelled_flights: u64,
    /// Answers marked stale.
    pub stale_answers: u64,
    /// Chunks let go for room.
    pub evictions: u64,
    /// Claims refused for want of memory.
    pub shed: u64,
    /// Batched checks after lost logs.
    pub confirms: u64,
    /// By dataset, sorted by name.
    pub datasets: Vec<DatasetCounts>,
    /// Shards by name, and whether each is followed.
    pub shards: Vec<(String, bool)>,
}

/// The part of [`EngineStats`] that one dataset has.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct DatasetCounts {
    pub dataset: DatasetName,
    pub rows_fetched: u64,
    pub rows_union: u64,
    pub chunks_hit: u64,
    pub chunks_joined: u64,
    pub chunks_fetched: u64,
    pub upstream_calls: u64,
}

/// The engine of one head node. Clones are the same engine; its tasks end with the last of them.
#[derive(Debug, Clone)]
pub struct Engine {
    core: Arc<Core>,
    _stop: Arc<DropGuard>,
}

impl Engine {
    /// Starts following the shards at `peers`. Needs a Tokio runtime; does not wait.
    #[must_use]
    pub fn start(config: EngineConfig, peers: watch::Receiver<Peers>) -> Self {
        let core = Core::new(config);
        let stop = CancellationToken::new();
        tokio::spawn(shards::follow_peers(Arc::clone(&core), peers, stop.clone()));
        Self { core, _stop: Arc::new(stop.drop_guard()) }
    }

    /// Waits until the shards own everything exactly once and each has been followed. Cancel safe.
    pub async fn ready(&self) {
        let mut changed = self.core.changed.subscribe();
        loop {
            let live = |shard: &Arc<Shard>| matches!(&*shard.link.borrow(), Link::Live);
            if self.core.ownership().map.is_ok() && self.core.shards().iter().all(live) {
                return;
            }
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// A dataset as of now. One that no shard has spoken of is asked for once.
    ///
    /// # Errors
    /// [`Code::UnknownDataset`]; [`Code::Unavailable`] if a shard that might know it cannot be asked.
    pub async fn dataset(&self, name: &DatasetName) -> Result<Arc<Dataset>> {
        Ok(self.table(name).await?.described())
    }

    /// A dataset with everything applied that had been committed before the call, and the shards that could not be asked for
    /// it. A read at a knowledge time that this head has not reached needs that: what another head has answered at the same
    /// time must be in it. The shards are asked by one call at a time; whoever comes meanwhile shares the next. Cancel safe.
    ///
    /// # Errors
    /// As [`Self::dataset`].
    pub async fn caught_up(&self, name: &DatasetName) -> Result<(Arc<Dataset>, Vec<Arc<str>>)> {
        let table = self.table(name).await?;
        let asked = table.parts().into_iter().map(|part| async move {
            let mut client = part.shard.client();
            let sync = || async move {
                let ask = pb::SyncRequest { dataset: name.to_string(), version: 0 };
                within_sync(client.sync(ask)).await.map(drop)
            };
            let error = part.catch_up.share(sync).await.err()?;
            tracing::warn!(shard = %part.shard.id, dataset = %name, %error, "a shard does not say what is newest");
            part.shard.suspect.notify_one();
            Some(Arc::clone(&part.shard.id))
        });
        let behind = join_all(asked).await.into_iter().flatten().collect();
        // what was committed may have made it another one
        Ok((self.table(name).await?.described(), behind))
    }

    /// Every dataset, sorted by name. Waits for shards that have not told yet what they have.
    ///
    /// # Errors
    /// [`Code::Unavailable`] while the shards do not own everything exactly once, or if a shard is away: the head may not know
    /// all of that shard's datasets.
    pub async fn datasets(&self) -> Result<Vec<Arc<Dataset>>> {
        self.core.ownership().map.as_ref().map_err(Clone::clone)?;
        let shards = self.core.shards();
        join_all(shards.iter().map(|shard| shard.live(LIVE_WAIT)))
            .await
            .into_iter()
            .collect::<Result<()>>()?;
        let mut datasets: Vec<_> = self.core.tables().iter().map(|table| table.described()).collect();
        datasets.sort_by(|a, b| a.spec.dataset.cmp(&b.spec.dataset));
        Ok(datasets)
    }

    /// The symbols of a dataset, sorted. Kept until a change may have added one.
    ///
    /// # Errors
    /// As [`Self::dataset`]; [`Code::Unavailable`] if a shard cannot be asked.
    pub async fn symbols(&self, name: &DatasetName) -> Result<Arc<[Symbol]>> {
        let table = self.table(name).await?;
        if let (_, Some(list)) = table.symbols() {
            return Ok(list);
        }
        let _listing = table.listing.lock().await;
        let (stamp, known) = table.symbols();
        if let Some(list) = known {
            return Ok(list);
        }
        let lists = self.each(|mut client| {
            let ask = pb::SymbolsRequest { dataset: name.to_string() };
            async move { Ok(client.symbols(ask).await?.into_inner().symbols) }
        });
        let mut symbols = BTreeSet::new();
        for list in lists.await? {
            for symbol in list {
                symbols.insert(Symbol::try_from(symbol)?);
            }
        }
        let list: Arc<[Symbol]> = symbols.into_iter().collect();
        table.set_symbols(stamp, &list);
        Ok(list)
    }

    /// The sessions (midnights, UTC) in `[start, end)` that have rows, ascending.
    ///
    /// # Errors
    /// As [`Self::symbols`].
    pub async fn sessions(
        &self,
        name: &DatasetName,
        start: Option<i64>,
        end: Option<i64>,
    ) -> Result<Vec<i64>> {
        self.table(name).await?;
        let lists = self.each(|mut client| {
            let ask = pb::SessionsRequest { dataset: name.to_string(), start_ns: start, end_ns: end };
            async move { Ok(client.sessions(ask).await?.into_inner().sessions_ns) }
        });
        let sessions: BTreeSet<i64> = lists.await?.into_iter().flatten().collect();
        Ok(sessions.into_iter().collect())
    }

    /// Begins a read. Nothing happens until it is polled.
    ///
    /// # Errors
    /// [`Code::UnknownDataset`] if the dataset is not this engine's, [`Code::StaleSchema`] if it has another spec by now: to be
    /// planned anew.
    pub fn read(&self, ask: Ask) -> Result<Reading> {
        let name = &ask.dataset.spec.dataset;
        let table = self.core.table(name).ok_or_else(|| unknown(&self.core, name))?;
        if !Arc::ptr_eq(&table.spec, &ask.dataset.spec) {
            return Err(Error::new(
                Code::StaleSchema,
                format!("the fields of {name} have changed meanwhile"),
            )
            .dataset(name)
            .hint("ask again"));
        }
        Ok(Reading::new(Arc::clone(&self.core), table, ask))
    }

    /// The shard that commits to a dataset (which need not exist yet), and a channel to it.
    ///
    /// # Errors
    /// [`Code::Unavailable`] if it is not there.
    pub async fn home_channel(&self, dataset: &DatasetName) -> Result<(String, ShardChannel)> {
        let home = self.home(dataset)?;
        home.live(LIVE_WAIT).await.map_err(|error| error.dataset(dataset))?;
        Ok((home.id.to_string(), home.channel()))
    }

    fn home(&self, dataset: &DatasetName) -> Result<Arc<Shard>> {
        // with a shard missing, the hash would choose another home
        self.core.ownership().map.as_ref().map_err(Clone::clone)?;
        let said = self
            .core
            .table(dataset)
            .map(|table| table.dataset().home.clone())
            .filter(|home| !home.is_empty());
        let ids: Vec<String> = self.core.shards().iter().map(|shard| shard.id.to_string()).collect();
        let id = match &said {
            Some(id) => Some(id.as_str()),
            None => placement::home(&ids, dataset.as_str()),
        };
        id.and_then(|id| self.core.shard(id)).ok_or_else(|| {
            Error::new(Code::Unavailable, format!("the home shard of {dataset} is not there"))
                .dataset(dataset)
        })
    }

    /// Waits until every other shard serves `dataset` at `version` or newer, at most [`SYNC_TIMEOUT`]. A shard that does not is not waited
    /// for: what is held from it is unconfirmed until its log has been checked. Returns the shards that did not.
    pub async fn sync_others(&self, dataset: &DatasetName, version: u64) -> Vec<String> {
        let home = self.home(dataset).map(|home| home.id.to_string()).unwrap_or_default();
        self.sync(dataset, version, &home).await
    }

    /// As [`Self::sync_others`], also of the dataset's home: the commit was another shard's.
    pub async fn sync_all(&self, dataset: &DatasetName, version: u64) -> Vec<String> {
        self.sync(dataset, version, "").await
    }

    async fn sync(&self, dataset: &DatasetName, version: u64, but: &str) -> Vec<String> {
        let others = self.core.shards().into_iter().filter(|shard| *shard.id != *but);
        let synced = others.map(|shard| async move {
            let mut client = shard.client();
            let ask = client.sync(pb::SyncRequest { dataset: dataset.to_string(), version });
            within_sync(ask).await.err().map(|error| (shard, error))
        });
        let mut late = Vec::new();
        for (shard, error) in join_all(synced).await.into_iter().flatten() {
            tracing::warn!(shard = %shard.id, %dataset, version, %error, "a shard does not serve a commit yet");
            shard.suspect.notify_one();
            late.push(shard.id.to_string());
        }
        late
    }

    /// Counts a request while it is open.
    ///
    /// # Errors
    /// [`Code::Overloaded`].
    pub(crate) fn open_request(&self) -> Result<Request> {
        self.core.memory.open_request()
    }

    pub(crate) fn waits(&self) -> &Waits {
        &self.core.waits
    }

    /// Whether so many bytes of an answer may be made before the transport has asked for them.
    pub(crate) fn has_room_ahead(&self, bytes: u64) -> bool {
        self.core.memory.has_room_ahead(bytes)
    }

    /// Waits until so many bytes of an answer may be made.
    ///
    /// # Errors
    /// [`Code::Overloaded`].
    pub(crate) async fn room(&self, bytes: u64) -> Result<()> {
        self.core.memory.room(bytes).await
    }

    /// Counts a piece of an answer until the transport has let go of it, and keeps `with` so long; the cache gives way to it.
    pub(crate) fn hold<T: Send + 'static>(&self, bytes: Bytes, with: T) -> Bytes {
        let held = self.core.memory.hold(bytes, with);
        self.core.cache.make_room();
        held
    }

    /// Figures as of now.
    #[must_use]
    pub fn stats(&self) -> EngineStats {
        let core = &self.core;
        core.cache.make_room();
        let mut datasets: Vec<DatasetCounts> = core
            .tables()
            .iter()
            .map(|table| {
                let counters = &table.counters;
                DatasetCounts {
                    dataset: table.name.clone(),
                    rows_fetched: counters.rows_fetched.load(Relaxed),
                    rows_union: counters.rows_union.load(Relaxed),
                    chunks_hit: counters.chunks_hit.load(Relaxed),
                    chunks_joined: counters.chunks_joined.load(Relaxed),
                    chunks_fetched: counters.chunks_fetched.load(Relaxed),
                    upstream_calls: counters.upstream_calls.load(Relaxed),
                }
            })
            .collect();
        datasets.sort_by(|a, b| a.dataset.cmp(&b.dataset));
        let sum = |of: fn(&DatasetCounts) -> u64| datasets.iter().map(of).sum();
        EngineStats {
            rows_fetched: sum(|d| d.rows_fetched),
            rows_union: sum(|d| d.rows_union),
            chunks_hit: sum(|d| d.chunks_hit),
            chunks_joined: sum(|d| d.chunks_joined),
            chunks_fetched: sum(|d| d.chunks_fetched),
            upstream_calls: core.counters.upstream_calls.load(Relaxed),
            bytes_fetched: core.counters.bytes_fetched.load(Relaxed),
            resident_bytes: core.memory.resident(),
            in_flight_bytes: core.memory.in_flight(),
            pinned_bytes: core.memory.pinned(),
            budget_bytes: core.memory.budget(),
            invalidations: core.counters.invalidations.load(Relaxed),
            poisoned_flights: core.counters.poisoned_flights.load(Relaxed),
            cancelled_flights: core.counters.flights_cancelled.load(Relaxed),
            stale_answers: core.counters.stale_answers.load(Relaxed),
            evictions: core.cache.evictions(),
            shed: core.counters.shed.load(Relaxed),
            confirms: core.counters.confirms.load(Relaxed),
            shards: core
                .shards()
                .iter()
                .map(|shard| (shard.id.to_string(), matches!(&*shard.link.borrow(), Link::Live)))
                .collect(),
            datasets,
        }
    }

    async fn table(&self, name: &DatasetName) -> Result<Arc<Table>> {
        if let Some(table) = self.core.table(name) {
            return Ok(table);
        }
        let fresh = |at: &tokio::time::Instant| *at > tokio::time::Instant::now();
        if self.core.unknown.lock().get(name).is_some_and(fresh) {
            return Err(unknown(&self.core, name));
        }
        let refused = describe_all(&self.core).await;
        if let Some(table) = self.core.table(name) {
            return Ok(table);
        }
        self.core.ownership().map.as_ref().map_err(Clone::clone)?;
        if let Some(error) = refused {
            return Err(error.dataset(name));
        }
        // A dataset that cannot be opened is not described; its shard says why when it is asked for it.
        let (home, channel) = self.home_channel(name).await?;
        let ask = pb::SymbolsRequest { dataset: name.to_string() };
        if let Err(status) = pb::shard_client::ShardClient::new(channel).symbols(ask).await {
            let error = Error::from_status(&status).shard(&home);
            if error.code() != Code::UnknownDataset {
                return Err(error);
            }
        }
        let mut unknown_names = self.core.unknown.lock();
        unknown_names.retain(|_, at| fresh(at));
        let ttl = UNKNOWN_TTL.mul_f64(0.75 + shards::jitter() / 2.0);
        unknown_names.insert(name.clone(), tokio::time::Instant::now() + ttl);
        Err(unknown(&self.core, name))
    }

    /// Asks every shard, also those that have not been heard to have a part of the dataset: it may have come a moment ago. One that
    /// does not know the dataset has nothing of it.
    async fn each<T: Default, F>(
        &self,
        ask: impl Fn(pb::shard_client::ShardClient<PeerChannel>) -> F,
    ) -> Result<Vec<T>>
    where
        F: Future<Output = Result<T, tonic::Status>>,
    {
        self.core.ownership().map.as_ref().map_err(Clone::clone)?;
        let asked = self.core.shards().into_iter().map(|shard| {
            let answer = ask(shard.client());
            async move {
                shard.live(LIVE_WAIT).await?;
                match tokio::time::timeout(LIST_TIMEOUT, answer).await {
                    Ok(Ok(answer)) => Ok(answer),
                    Ok(Err(status)) => match Error::from_status(&status) {
                        error if error.code() == Code::UnknownDataset => Ok(T::default()),
                        error => Err(error.shard(&shard.id)),
                    },
                    Err(_) => Err(shard.away("it did not answer in time")),
                }
            }
        });
        join_all(asked).await.into_iter().collect()
    }
}

/// Asks every shard which datasets it has. Any number who ask while a round is under way share the next one. Returns the error of a
/// shard that could not be asked.
pub(crate) async fn describe_all(core: &Arc<Core>) -> Option<Error> {
    let before = core.rounds.load(Relaxed);
    let mut last = core.describing.lock().await;
    if core.rounds.load(Relaxed) > before {
        // begun after this question, and over by now
        return last.clone();
    }
    core.rounds.fetch_add(1, Relaxed);
    let asked = core.shards().into_iter().map(|shard| async move {
        shard.live(LIVE_WAIT).await?;
        let said = shard.describe(false).await?;
        Ok::<_, Error>((shard, said))
    });
    let mut refused = None;
    let mut found = false;
    for answer in join_all(asked).await {
        match answer {
            Ok((shard, said)) => {
                for said in &said.datasets {
                    let Ok(Some(table)) = core.table_of(said) else { continue };
                    if table.part(&shard.id).is_none() {
                        // The knowledge time as described may cover changes that are still on their way in the log, but nothing of
                        // this dataset is held yet, so there is nothing that they could be missing from.
                        let standing =
                            Standing { generation: shard.generation(), known_through: said.known_through_ns };
                        table.describe(&shard, standing, said);
                        found = true;
                    }
                }
            }
            Err(error) => refused = Some(error),
        }
    }
    if found {
        core.rebuild_ownership();
    }
    last.clone_from(&refused);
    refused
}

/// What a shard answers within [`SYNC_TIMEOUT`].
async fn within_sync<T>(call: impl Future<Output = std::result::Result<T, tonic::Status>>) -> Result<T> {
    match tokio::time::timeout(SYNC_TIMEOUT, call).await {
        Ok(answer) => answer.map_err(|status| Error::from_status(&status)),
        Err(_) => Err(Error::new(Code::DeadlineExceeded, "the shard did not answer in time")),
    }
}

/// Datasets that an unknown name is compared with: a fleet has tens of thousands, and comparing takes a microsecond each.
const NEAREST_DATASETS_MAX: usize = 4_096;

fn unknown(core: &Core, name: &DatasetName) -> Error {
    let error = Error::new(Code::UnknownDataset, format!("there is no dataset {name}")).dataset(name);
    let tables = core.tables();
    let described = tables.iter().take(NEAREST_DATASETS_MAX).map(|table| table.described());
    let known: Vec<DatasetName> = described.map(|dataset| dataset.spec.dataset.clone()).collect();
    match nearest(name.as_str(), known.iter().map(DatasetName::as_str)) {
        Some(near) => error.hint(format!("did you mean {near}?")),
        None => error,
    }
}

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;
