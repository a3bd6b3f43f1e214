//! The methods that the services of the head call.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::future::join_all;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Status;
use trellis_fabric::{channel::PeerChannel, discovery::Peers, retry::up_to};
use trellis_proto::{
    Code, DatasetName, Error, Result, Symbol,
    name::nearest,
    pb::{self, shard_client::ShardClient},
    placement,
};

use super::{
    core::Core,
    describe::LIVE_WAIT,
    reading::{ReadQuery, Reading},
    waits::Waits,
};
use crate::{
    follow::{Follower, follow_peers},
    held::{Dataset, Holdings, Table},
    limits::OpenRequest,
    shards::{Link, Shard, Shards},
    stats::{DatasetCounts, EngineStats},
};

/// For this long, with jitter, the head answers that a dataset is unknown without asking the shards again: a client that polls for a
/// dataset must not cause a question to every shard each time. A dataset that is made meanwhile is announced by its shard.
const UNKNOWN_TTL: Duration = Duration::from_millis(500);
/// Longest wait of a publish for another shard to serve its version. After that the head no longer trusts that shard's log.
const SYNC_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest time for listing the symbols or sessions of one shard.
const LIST_TIMEOUT: Duration = Duration::from_secs(30);
/// Datasets that an unknown name is compared with: a fleet has tens of thousands, and comparing takes a microsecond each.
const NEAREST_DATASETS_MAX: usize = 4_096;

/// Settings of the engine.
#[derive(Debug, Clone)]
pub(crate) struct EngineConfig {
    /// Name of this head, as shards see it.
    pub(crate) head_id: String,
    /// Bytes of everything in memory together: cached, in flight, held by readers.
    pub(crate) budget_bytes: u64,
    /// How long a fetch goes on after its last reader has left.
    pub(crate) grace: Duration,
}

/// The engine of one head node. Clones are the same engine; its tasks end with the last of them.
#[derive(Debug, Clone)]
pub(crate) struct Engine {
    pub(super) core: Arc<Core>,
    _stop: Arc<DropGuard>,
}

impl Engine {
    /// Starts following the shards at `peers`. Needs a Tokio runtime; does not wait.
    pub(crate) fn start(config: EngineConfig, peers: watch::Receiver<Peers>) -> Self {
        let follower = Arc::new(Follower {
            shards: Arc::new(Shards::new()),
            holdings: Arc::new(Holdings::new(config.budget_bytes, config.grace)),
            head_id: config.head_id,
            confirms: AtomicU64::new(0),
        });
        let stop = CancellationToken::new();
        tokio::spawn(follow_peers(Arc::clone(&follower), peers, stop.clone()));
        Self { core: Arc::new(Core::new(follower)), _stop: Arc::new(stop.drop_guard()) }
    }

    /// Waits until the shards own everything exactly once and each has been followed. Cancel safe.
    pub(crate) async fn ready(&self) {
        let mut changed = self.core.shards.changes();
        loop {
            let live = |shard: &Arc<Shard>| matches!(&*shard.link.borrow(), Link::Live);
            if self.core.shards.ownership().map.is_ok() && self.core.shards.all().iter().all(live) {
                return;
            }
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// A dataset as of now. If no shard has described it, the shards are asked for their datasets once.
    ///
    /// # Errors
    /// [`Code::UnknownDataset`]; [`Code::Unavailable`] if a shard that might know it cannot be asked.
    pub(crate) async fn dataset(&self, name: &DatasetName) -> Result<Arc<Dataset>> {
        Ok(self.table(name).await?.described())
    }

    /// A dataset with every commit from before the call applied, and the shards that could not be asked whether they have more. A read at
    /// a knowledge time that this head has not reached needs this: it must have every row that another head has answered at the same
    /// time. Each shard is asked by one call at a time; all callers that come meanwhile share the next one. Cancel safe.
    ///
    /// # Errors
    /// As [`Self::dataset`].
    pub(crate) async fn caught_up(&self, name: &DatasetName) -> Result<(Arc<Dataset>, Vec<Arc<str>>)> {
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
        // a commit may have changed the dataset's spec, so that it has another table
        Ok((self.table(name).await?.described(), behind))
    }

    /// Every dataset, sorted by name. Waits for shards that have not described their datasets yet.
    ///
    /// # Errors
    /// [`Code::Unavailable`] while the shards do not own everything exactly once, or if a shard is away: the head may not know
    /// all of that shard's datasets.
    pub(crate) async fn datasets(&self) -> Result<Vec<Arc<Dataset>>> {
        self.core.shards.ownership().map.as_ref().map_err(Clone::clone)?;
        let shards = self.core.shards.all();
        join_all(shards.iter().map(|shard| shard.live(LIVE_WAIT)))
            .await
            .into_iter()
            .collect::<Result<()>>()?;
        let mut datasets: Vec<_> =
            self.core.holdings.tables().iter().map(|table| table.described()).collect();
        datasets.sort_by(|a, b| a.spec.dataset.cmp(&b.spec.dataset));
        Ok(datasets)
    }

    /// The symbols of a dataset, sorted. Kept until a change may have added one.
    ///
    /// # Errors
    /// As [`Self::dataset`]; [`Code::Unavailable`] if a shard cannot be asked.
    pub(crate) async fn symbols(&self, name: &DatasetName) -> Result<Arc<[Symbol]>> {
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
    pub(crate) async fn sessions(
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

    /// A read. It begins when it is polled.
    ///
    /// # Errors
    /// [`Code::UnknownDataset`]; [`Code::StaleSchema`] if the dataset has another spec by now, so that the read must be planned again.
    pub(crate) fn read(&self, query: ReadQuery) -> Result<Reading> {
        let name = &query.dataset.spec.dataset;
        let table = self.core.holdings.table(name).ok_or_else(|| self.unknown_dataset(name))?;
        if !Arc::ptr_eq(&table.spec, &query.dataset.spec) {
            return Err(Error::new(
                Code::StaleSchema,
                format!("the fields of {name} have changed meanwhile"),
            )
            .dataset(name)
            .hint("ask again"));
        }
        Ok(Reading::new(Arc::clone(&self.core), table, query))
    }

    /// The shard that commits to a dataset (which need not exist yet), and a channel to it.
    ///
    /// # Errors
    /// [`Code::Unavailable`] if it is not there.
    pub(crate) async fn home_channel(&self, dataset: &DatasetName) -> Result<(String, PeerChannel)> {
        let home = self.home(dataset)?;
        home.live(LIVE_WAIT).await.map_err(|error| error.dataset(dataset))?;
        Ok((home.id.to_string(), home.channel()))
    }

    fn home(&self, dataset: &DatasetName) -> Result<Arc<Shard>> {
        // with a shard missing, the hash would choose another home
        self.core.shards.ownership().map.as_ref().map_err(Clone::clone)?;
        let said = self
            .core
            .holdings
            .table(dataset)
            .map(|table| table.dataset().home.clone())
            .filter(|home| !home.is_empty());
        let ids: Vec<String> = self.core.shards.all().iter().map(|shard| shard.id.to_string()).collect();
        let id = match &said {
            Some(id) => Some(id.as_str()),
            None => placement::home(&ids, dataset.as_str()),
        };
        id.and_then(|id| self.core.shards.get(id)).ok_or_else(|| {
            Error::new(Code::Unavailable, format!("the home shard of {dataset} is not there"))
                .dataset(dataset)
        })
    }

    /// Waits until every shard but the dataset's home serves `dataset` at `version` or newer, at most [`SYNC_TIMEOUT`]. Returns the shards
    /// that do not by then; everything held from those is unconfirmed until their logs have been checked.
    pub(crate) async fn sync_others(&self, dataset: &DatasetName, version: u64) -> Vec<String> {
        let home = self.home(dataset).map(|home| home.id.to_string()).unwrap_or_default();
        self.sync(dataset, version, &home).await
    }

    /// As [`Self::sync_others`], but waits for the dataset's home, too: for a commit that another shard made.
    pub(crate) async fn sync_all(&self, dataset: &DatasetName, version: u64) -> Vec<String> {
        self.sync(dataset, version, "").await
    }

    async fn sync(&self, dataset: &DatasetName, version: u64, but: &str) -> Vec<String> {
        let others = self.core.shards.all().into_iter().filter(|shard| *shard.id != *but);
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
    pub(crate) fn open_request(&self) -> Result<OpenRequest> {
        self.core.holdings.memory.open_request()
    }

    pub(crate) fn waits(&self) -> &Waits {
        &self.core.waits
    }

    /// Whether so many bytes of an answer may be framed before the transport asks for them.
    pub(crate) fn has_room_ahead(&self, bytes: u64) -> bool {
        self.core.holdings.memory.has_room_ahead(bytes)
    }

    /// Waits until there is room to frame so many bytes of an answer.
    ///
    /// # Errors
    /// [`Code::Overloaded`].
    pub(crate) async fn room(&self, bytes: u64) -> Result<()> {
        self.core.holdings.memory.room(bytes).await
    }

    /// Counts a piece of an answer as pinned until the transport has let go of it, and keeps `with` as long. Evicts if needed.
    pub(crate) fn hold<T: Send + 'static>(&self, bytes: Bytes, with: T) -> Bytes {
        let held = self.core.holdings.memory.hold(bytes, with);
        self.core.holdings.cache.make_room();
        held
    }

    /// Figures of each dataset as of now, sorted by name.
    pub(crate) fn dataset_counts(&self) -> Vec<DatasetCounts> {
        let tables = self.core.holdings.tables();
        let mut datasets: Vec<DatasetCounts> = tables
            .iter()
            .map(|table| {
                let counters = &table.counters;
                DatasetCounts {
                    dataset: table.name.clone(),
                    rows_fetched: counters.rows_fetched.load(Relaxed),
                    rows_union: counters.rows_union.load(Relaxed),
                    chunks_joined: counters.chunks_joined.load(Relaxed),
                    chunks_fetched: counters.chunks_fetched.load(Relaxed),
                    upstream_calls: counters.upstream_calls.load(Relaxed),
                }
            })
            .collect();
        datasets.sort_by(|a, b| a.dataset.cmp(&b.dataset));
        datasets
    }

    /// Figures of all datasets together as of now. Its cost does not grow with their number.
    pub(crate) fn stats(&self) -> EngineStats {
        let Core { holdings, follower, fetcher, .. } = &*self.core;
        holdings.cache.make_room();
        let counters = &holdings.counters;
        EngineStats {
            rows_fetched: counters.rows_fetched.load(Relaxed),
            rows_union: counters.rows_union.load(Relaxed),
            chunks_joined: counters.chunks_joined.load(Relaxed),
            chunks_fetched: counters.chunks_fetched.load(Relaxed),
            upstream_calls: fetcher.upstream_calls.load(Relaxed),
            bytes_fetched: fetcher.bytes_fetched.load(Relaxed),
            resident_bytes: holdings.memory.resident(),
            in_flight_bytes: holdings.memory.in_flight(),
            pinned_bytes: holdings.memory.pinned(),
            budget_bytes: holdings.memory.budget(),
            invalidations: holdings.invalidations.load(Relaxed),
            poisoned_flights: holdings.poisoned_flights.load(Relaxed),
            cancelled_flights: holdings.cancelled_flights.load(Relaxed),
            evictions: holdings.cache.evictions(),
            shed: fetcher.shed.load(Relaxed),
            confirms: follower.confirms.load(Relaxed),
        }
    }

    async fn table(&self, name: &DatasetName) -> Result<Arc<Table>> {
        if let Some(table) = self.core.holdings.table(name) {
            return Ok(table);
        }
        let fresh = |at: &Instant| *at > Instant::now();
        if self.core.unknown.lock().get(name).is_some_and(fresh) {
            return Err(self.unknown_dataset(name));
        }
        let refused = self.core.describer.describe_all(&self.core.shards, &self.core.holdings).await;
        if let Some(table) = self.core.holdings.table(name) {
            return Ok(table);
        }
        self.core.shards.ownership().map.as_ref().map_err(Clone::clone)?;
        if let Some(error) = refused {
            return Err(error.dataset(name));
        }
        // A shard does not describe a dataset that it cannot open. It says why when the head asks it for the dataset's symbols.
        let (home, channel) = self.home_channel(name).await?;
        let ask = pb::SymbolsRequest { dataset: name.to_string() };
        if let Err(status) = ShardClient::new(channel).symbols(ask).await {
            let error = Error::from_status(&status).shard(&home);
            if error.code() != Code::UnknownDataset {
                return Err(error);
            }
        }
        let mut unknown_names = self.core.unknown.lock();
        unknown_names.retain(|_, at| fresh(at));
        let ttl = UNKNOWN_TTL * 3 / 4 + up_to(UNKNOWN_TTL / 2);
        unknown_names.insert(name.clone(), Instant::now() + ttl);
        Err(self.unknown_dataset(name))
    }

    fn unknown_dataset(&self, name: &DatasetName) -> Error {
        let error = Error::new(Code::UnknownDataset, format!("there is no dataset {name}")).dataset(name);
        let tables = self.core.holdings.tables();
        let described = tables.iter().take(NEAREST_DATASETS_MAX).map(|table| table.described());
        let known: Vec<DatasetName> = described.map(|dataset| dataset.spec.dataset.clone()).collect();
        match nearest(name.as_str(), known.iter().map(DatasetName::as_str)) {
            Some(near) => error.hint(format!("did you mean {near}?")),
            None => error,
        }
    }

    /// Asks every shard, also those that have not described the dataset: it may have come a moment ago. The answer of a shard that does
    /// not know the dataset is empty.
    async fn each<T: Default, F>(&self, ask: impl Fn(ShardClient<PeerChannel>) -> F) -> Result<Vec<T>>
    where
        F: Future<Output = Result<T, Status>>,
    {
        self.core.shards.ownership().map.as_ref().map_err(Clone::clone)?;
        let asked = self.core.shards.all().into_iter().map(|shard| {
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

/// A shard's answer, or an error after [`SYNC_TIMEOUT`].
async fn within_sync<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T> {
    match tokio::time::timeout(SYNC_TIMEOUT, call).await {
        Ok(answer) => answer.map_err(|status| Error::from_status(&status)),
        Err(_) => Err(Error::new(Code::DeadlineExceeded, "the shard did not answer in time")),
    }
}
