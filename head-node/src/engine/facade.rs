//! The methods that the services of the head call.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::future::join_all;
use tokio_util::sync::{CancellationToken, DropGuard};
use trellis_fabric::{discovery::Watch, single::Lost};
use trellis_proto::{Code, DatasetName, Error, Result, Symbol, pb, placement};

use super::{
    core::Core,
    reading::{ReadQuery, Reading},
    waits::Waits,
};
use crate::{
    error::lost,
    follow::{Follower, Interest, LIVE_WAIT, follow_peers},
    held::{Dataset, Holdings, Table},
    limits::OpenRequest,
    shards::{Shard, Shards},
    stats::{DatasetCounts, EngineStats},
};

/// Longest wait of a publish for another shard to serve its version. After that the head no longer trusts that shard's log.
const SYNC_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest time for listing the symbols or sessions of one shard: it may have to open the table of a dataset that it has not read yet.
const LIST_TIMEOUT: Duration = Duration::from_secs(10);

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
    /// Starts following the shards of `watch`. Needs a Tokio runtime; does not wait.
    pub(crate) fn start(config: EngineConfig, watch: Watch) -> Self {
        let follower = Arc::new(Follower {
            shards: Arc::new(Shards::new()),
            holdings: Arc::new(Holdings::new(config.budget_bytes, config.grace)),
            interest: Interest::default(),
            head_id: config.head_id,
            confirms: AtomicU64::new(0),
        });
        let stop = CancellationToken::new();
        tokio::spawn(follow_peers(Arc::clone(&follower), watch, stop.clone()));
        tokio::spawn(Arc::clone(&follower).leave_unused(stop.clone()));
        Self { core: Arc::new(Core::new(follower)), _stop: Arc::new(stop.drop_guard()) }
    }

    /// Waits until each peer has been reached and followed, or has failed once. So a head that starts while a shard is away serves the
    /// others. Cancel safe.
    pub(crate) async fn ready(&self) {
        let mut changed = self.core.shards.changes();
        while !self.core.shards.settled() {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// What [`Self::ready`] still waits for, for people.
    pub(crate) fn waits_for(&self) -> String {
        self.core.shards.missing()
    }

    /// A dataset as of now. From the first question on the head follows it.
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
    /// Those of [`Self::dataset`].
    pub(crate) async fn caught_up(&self, name: &DatasetName) -> Result<(Arc<Dataset>, Vec<Arc<str>>)> {
        let table = self.table(name).await?;
        let asked = table.parts().into_iter().map(|part| async move {
            let shard = Arc::clone(&part.shard);
            let ask = pb::SyncRequest { dataset: name.to_string(), version: 0 };
            let sync = || async move {
                shard.answer("say what is newest", SYNC_TIMEOUT, shard.client().sync(ask)).await.map(drop)
            };
            let error = part.catch_up.fresh(sync).await.unwrap_or_else(|_| Err(lost("what is newest"))).err()?;
            tracing::warn!(shard = %part.shard.id, dataset = %name, %error, "a shard does not say what is newest");
            part.shard.suspect.notify_one();
            Some(Arc::clone(&part.shard.id))
        });
        let behind = join_all(asked).await.into_iter().flatten().collect();
        // a commit may have changed the dataset's spec, so that it has another table
        Ok((self.table(name).await?.described(), behind))
    }

    /// Every dataset, sorted by name. Every shard is asked, and the head keeps nothing of the answer.
    ///
    /// # Errors
    /// [`Code::Unavailable`] while the shards do not own everything exactly once, or if a shard is away: it may have datasets that no
    /// other shard has. If a shard cannot open a dataset, an error that names it, with the code of the reason.
    pub(crate) async fn datasets(&self) -> Result<Arc<[Arc<Dataset>]>> {
        self.core.shards.whole()?;
        self.core.describer.describe_all(&self.core.shards).await
    }

    /// All symbols of a dataset, sorted. Kept until a change may have added one.
    ///
    /// # Errors
    /// Those of [`Self::dataset`]; [`Code::Unavailable`] if a shard cannot be asked.
    pub(crate) async fn symbols(&self, name: &DatasetName) -> Result<Arc<[Symbol]>> {
        let table = self.table(name).await?;
        let epoch = self.core.shards.ownership().epoch;
        if let Some(list) = table.symbols().whole(epoch) {
            return Ok(list);
        }
        self.core.shards.whole()?;
        self.complete(&table, &self.core.shards.serving(name)).await?;
        let shards = self.core.shards.all();
        self.list(&table, &shards).await?;
        let mut symbols = table.symbols();
        symbols.note_whole(epoch, shards.iter().map(|shard| &*shard.id));
        Ok(symbols.listed())
    }

    /// The symbols of a dataset that are known, sorted, with all of `asked` that there are. Only the shards that own one of them are asked,
    /// and only for one that was never listed.
    ///
    /// # Errors
    /// Those of [`Self::dataset`]; [`Code::Unavailable`] if a shard that may have one of them cannot be asked.
    pub(crate) async fn symbols_with(&self, name: &DatasetName, asked: &[Symbol]) -> Result<Arc<[Symbol]>> {
        let table = self.table(name).await?;
        let listed = table.symbols().listed();
        let unknown: Vec<&Symbol> =
            asked.iter().filter(|symbol| listed.binary_search(symbol).is_err()).collect();
        if unknown.is_empty() {
            return Ok(listed);
        }
        let ownership = self.core.shards.ownership();
        let mut owners: BTreeMap<&str, &Symbol> = BTreeMap::new();
        for symbol in unknown {
            for (_, owner) in self.core.shards.owners(&ownership, name, symbol)? {
                owners.entry(owner).or_insert(symbol);
            }
        }
        let found = owners.keys().map(|id| {
            self.core.shards.get(id).ok_or_else(|| {
                Error::new(Code::Unavailable, format!("shard {id} has left the grid")).dataset(name).shard(id)
            })
        });
        let shards = found.collect::<Result<Vec<_>>>()?;
        self.complete(&table, &shards).await?;
        self.list(&table, &shards).await?;
        // While a shard is away, its list may lack a symbol.
        for (shard, symbol) in shards.iter().zip(owners.values()) {
            shard.live(LIVE_WAIT).await.map_err(|error| error.dataset(name).symbol(symbol))?;
        }
        Ok(table.symbols().listed())
    }

    /// Asks for a dataset again if one of these shards has not described it. Such a shard tells no changes of it, so a list of its symbols
    /// would be taken for the newest for ever.
    async fn complete(&self, table: &Table, shards: &[Arc<Shard>]) -> Result<()> {
        if shards.iter().all(|shard| table.part(&shard.id).is_some()) {
            return Ok(());
        }
        self.core.follower.follow_dataset(&table.name).await
    }

    /// Has each shard list its symbols, unless its list is the newest.
    async fn list(&self, table: &Arc<Table>, shards: &[Arc<Shard>]) -> Result<()> {
        let outdated: Vec<_> = {
            let mut symbols = table.symbols();
            let outdated = shards.iter().filter(|shard| !symbols.is_newest(&shard.id)).cloned();
            let outdated: Vec<Arc<Shard>> = outdated.collect();
            outdated.into_iter().map(|shard| (symbols.listing(&shard.id), shard)).collect()
        };
        let listed = outdated.into_iter().map(|((stamp, listing), shard)| async move {
            loop {
                let ask = || list_symbols(Arc::clone(table), Arc::clone(&shard));
                match listing.join(ask).await {
                    // it began before a change that this call must see
                    Ok((began, _)) if began < stamp => {}
                    Ok((_, listed)) => return listed.map_err(|error| error.dataset(&table.name)),
                    Err(Lost) => return Err(lost("the symbols")),
                }
            }
        });
        join_all(listed).await.into_iter().collect()
    }

    /// The sessions (midnights, UTC) in `[start, end)` that have rows, ascending.
    ///
    /// # Errors
    /// Those of [`Self::symbols`].
    pub(crate) async fn sessions(
        &self,
        name: &DatasetName,
        start: Option<i64>,
        end: Option<i64>,
    ) -> Result<Vec<i64>> {
        self.table(name).await?;
        let ask = pb::SessionsRequest { dataset: name.to_string(), start_ns: start, end_ns: end };
        let sessions: BTreeSet<i64> = self.sessions_of_all(ask).await?.into_iter().flatten().collect();
        Ok(sessions.into_iter().collect())
    }

    /// A read. It begins when it is polled.
    ///
    /// # Errors
    /// [`Code::UnknownDataset`]; [`Code::StaleSchema`] if the dataset has another spec by now, so that the read must be planned again.
    pub(crate) fn read(&self, query: ReadQuery) -> Result<Reading> {
        let name = &query.dataset.spec.dataset;
        let table = self.core.holdings.table(name).ok_or_else(|| unknown_dataset(name))?;
        if !Arc::ptr_eq(&table.spec, &query.dataset.spec) {
            return Err(Error::new(
                Code::StaleSchema,
                format!("the fields of {name} have changed meanwhile"),
            )
            .dataset(name)
            .hint("ask again"));
        }
        // a scan may take longer than a dataset that nobody asks for is kept
        table.ask();
        Ok(Reading::new(Arc::clone(&self.core), table, query))
    }

    /// The shard that commits to a dataset, which need not exist yet.
    ///
    /// # Errors
    /// [`Code::Unavailable`] if it is not there.
    pub(crate) async fn live_home(&self, dataset: &DatasetName) -> Result<Arc<Shard>> {
        let home = self.home(dataset)?;
        home.live(LIVE_WAIT).await.map_err(|error| error.dataset(dataset))?;
        Ok(home)
    }

    fn home(&self, dataset: &DatasetName) -> Result<Arc<Shard>> {
        let shards = &self.core.shards;
        let said = self.core.holdings.table(dataset).map(|table| table.dataset().home.clone());
        let id = match said.filter(|home| !home.is_empty()) {
            Some(home) => home,
            None => {
                // with a shard missing, the hash would choose another home
                shards.whole()?;
                let ids: Vec<String> = shards.all().iter().map(|shard| shard.id.to_string()).collect();
                placement::home(&ids, dataset.as_str()).unwrap_or_default().to_owned()
            }
        };
        match shards.get(&id) {
            Some(home) => Ok(home),
            None => {
                shards.whole().map_err(|error| error.dataset(dataset))?;
                let message = format!("the home shard of {dataset}, {id}, is not there");
                Err(Error::new(Code::Unavailable, message).dataset(dataset).shard(id))
            }
        }
    }

    /// Waits until every shard but the dataset's home serves `dataset` at `version` or newer, but not longer than [`SYNC_TIMEOUT`].
    /// Returns the shards that do not serve it then. Everything that the head holds from those shards is unconfirmed until it has checked
    /// their logs.
    pub(crate) async fn sync_others(&self, dataset: &DatasetName, version: u64) -> Vec<String> {
        let home = self.home(dataset).map(|home| home.id.to_string()).unwrap_or_default();
        self.sync(dataset, version, &home).await
    }

    /// Like [`Self::sync_others`], but waits for the dataset's home, too: for a commit that another shard made.
    pub(crate) async fn sync_all(&self, dataset: &DatasetName, version: u64) -> Vec<String> {
        self.sync(dataset, version, "").await
    }

    async fn sync(&self, dataset: &DatasetName, version: u64, but: &str) -> Vec<String> {
        let others = self.core.shards.all().into_iter().filter(|shard| *shard.id != *but);
        let synced = others.map(|shard| async move {
            let mut client = shard.client();
            let ask = client.sync(pb::SyncRequest { dataset: dataset.to_string(), version });
            let synced = shard.answer("serve a commit", SYNC_TIMEOUT, ask).await;
            synced.err().map(|error| (shard, error))
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

    /// Whether `bytes` of an answer may be framed before the transport asks for them.
    pub(crate) fn has_room_ahead(&self, bytes: u64) -> bool {
        self.core.holdings.memory.has_room_ahead(bytes)
    }

    /// Waits until there is room to frame `bytes` of an answer.
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

    /// Figures of each dataset that the head follows as of now, sorted by name.
    pub(crate) fn dataset_counts(&self) -> Vec<DatasetCounts> {
        let tables = self.core.holdings.tables().all();
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
        let Core { shards, holdings, follower, .. } = &*self.core;
        if let Some(table) = holdings.table(name) {
            table.ask();
            return Ok(table);
        }
        if let Some(error) = follower.known_as_unknown(name) {
            return Err(error);
        }
        let asked = follower.follow_dataset(name).await;
        // a shard that cannot be asked now is asked again by who needs its part
        if let Some(table) = holdings.table(name) {
            table.ask();
            return Ok(table);
        }
        shards.whole()?;
        let error = match asked {
            Err(error) if error.code() != Code::UnknownDataset => return Err(error),
            Err(error) => unknown_dataset(name).hint(error.hint_text()),
            Ok(()) => unknown_dataset(name),
        };
        follower.note_unknown(name, &error);
        Err(error)
    }

    /// The sessions that each shard lists, also those that have not described the dataset: it may have come a moment ago.
    async fn sessions_of_all(&self, ask: pb::SessionsRequest) -> Result<Vec<Vec<i64>>> {
        self.core.shards.whole()?;
        let asked = self.core.shards.all().into_iter().map(|shard| {
            let ask = ask.clone();
            async move {
                shard.live(LIVE_WAIT).await?;
                match shard.answer("list the sessions", LIST_TIMEOUT, shard.client().sessions(ask)).await {
                    Ok(said) => Ok(said.into_inner().sessions_ns),
                    Err(error) if error.code() == Code::UnknownDataset => Ok(Vec::new()),
                    Err(error) => Err(error),
                }
            }
        });
        join_all(asked).await.into_iter().collect()
    }
}

fn unknown_dataset(name: &DatasetName) -> Error {
    Error::new(Code::UnknownDataset, format!("there is no dataset {name}")).dataset(name)
}

/// Takes the newest list of a shard's symbols. Says how new it is. A shard that does not know the dataset has none: the dataset may have
/// come a moment ago.
async fn list_symbols(table: Arc<Table>, shard: Arc<Shard>) -> (u64, Result<()>) {
    let (stamp, _) = table.symbols().listing(&shard.id);
    let listed = async {
        shard.live(LIVE_WAIT).await?;
        let ask = pb::SymbolsRequest { dataset: table.name.to_string() };
        let symbols = match shard.answer("list its symbols", LIST_TIMEOUT, shard.client().symbols(ask)).await
        {
            Ok(said) => said.into_inner().symbols,
            Err(error) if error.code() == Code::UnknownDataset => Vec::new(),
            Err(error) => return Err(error),
        };
        let symbols = symbols.into_iter().map(Symbol::try_from).collect::<Result<Vec<_>>>()?;
        table.symbols().take(&shard.id, stamp, symbols);
        Ok(())
    };
    let listed = listed.await;
    (stamp, listed)
}
