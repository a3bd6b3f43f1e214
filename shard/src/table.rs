//! One dataset: an immutable snapshot of what its table holds, swapped whole, and the way from one version to the next.
//!
//! Every commit, our own included, becomes visible in one way: [`Table::refresh`] reads the next log entry, builds the next
//! snapshot and tells the watchers. So there is one order of events for everybody, and a commit of another shard is no
//! special case. Before it answers, a read looks whether a next entry exists; looks that wait for each other are shared.
//!
//! What must outlive the process and log clean-up stands in `txn` actions, which checkpoints keep:
//!
//! | application id                     | version               |
//! | ---------------------------------- | --------------------- |
//! | `trellis-publisher`                | the newest epoch      |
//! | `trellis-holder [unit, instance, ttl_ms]` | the epoch it was granted; an empty unit is nobody |
//! | `trellis-released`                 | the newest epoch that was given back |
//! | `trellis-run [id, digest, known_at_ns, rows, session, partition, retracted]` | the table's version; no session of imports |
//! | `trellis-imported`                 | the version of the newest import |
//! | `trellis-altered`                  | the version of the newest change of the dataset by hand |
//! | `trellis-watermark`                | nanoseconds           |

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt, TryStreamExt};
use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;
use trellis_proto::{Code, DatasetName, DatasetSpec, Error, Result, Symbol, pb};

use crate::{
    change,
    clock::WallClock,
    delta::{Definition, Entry, Log, LogFile, State, Txn},
    file::DataFile,
    history::History,
    index::FileIndex,
    lease::{Grant, Holder, Stored, TTL_DEFAULT},
    ownership::Ownership,
    schema::{self, Life},
    watch::WatchLog,
};

/// Application id of the epoch.
pub(crate) const PUBLISHER: &str = "trellis-publisher";
/// Application id of the epoch that was given back.
pub(crate) const RELEASED: &str = "trellis-released";
/// Application id of the newest import.
pub(crate) const IMPORTED: &str = "trellis-imported";
/// Application id of the newest change by hand.
pub(crate) const ALTERED: &str = "trellis-altered";
const HOLDER: &str = "trellis-holder ";
const RUN: &str = "trellis-run ";
/// Application id of the watermark.
pub(crate) const WATERMARK: &str = "trellis-watermark";

/// Files opened at once when a table is loaded.
const OPEN_PARALLEL: usize = 16;
/// Entries of the log read at once when it is asked what was committed before this process began.
const READ_PARALLEL: usize = 16;

/// What a shard's tables have in common.
#[derive(Debug)]
pub(crate) struct Shared {
    /// The shard's name.
    pub(crate) shard: String,
    /// All shards' names.
    pub(crate) shards: Vec<String>,
    pub(crate) owns: Ownership,
    pub(crate) watch: Arc<WatchLog>,
    /// Only ever moves knowledge times forward; see [`Snapshot::known_through`].
    pub(crate) clock: WallClock,
}

impl Shared {
    /// The shard that commits to `dataset`.
    pub(crate) fn home(&self, dataset: &str) -> &str {
        trellis_proto::placement::home(&self.shards, dataset).unwrap_or(&self.shard)
    }
}

/// What a table holds at one version.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) version: u64,
    pub(crate) spec: Arc<DatasetSpec>,
    pub(crate) life: Life,
    /// Tells this spec from those before and after it, see [`DatasetSpec::fingerprint`].
    pub(crate) schema: u64,
    /// As the log has it.
    pub(crate) definition: Arc<Definition>,
    /// Whether the table has the column `retracted`: those that were made before there were retractions get it with their
    /// first.
    pub(crate) retractable: bool,
    pub(crate) files: Vec<Arc<DataFile>>,
    /// The symbols that have rows, if only retracted ones, and that this shard owns.
    pub(crate) symbols: Arc<BTreeSet<Symbol>>,
    /// Every later ordinary commit has a greater knowledge time.
    pub(crate) known_through: i64,
    pub(crate) watermark: Option<i64>,
    pub(crate) lease: Stored,
    /// When this process learned of the lease's epoch, by [`Table::now`].
    pub(crate) lease_learned: Duration,
    /// Version of the newest import: publishes before it may not be what is there.
    pub(crate) imported: Option<u64>,
    /// Version of the newest change by hand: neither publishes nor imports before it need be what is there.
    pub(crate) altered: Option<u64>,
}

impl Snapshot {
    /// Rows of all files.
    pub(crate) fn rows(&self) -> u64 {
        self.files.iter().map(|f| f.index.rows).sum()
    }

    /// Least and greatest event time of any row.
    pub(crate) fn bounds(&self) -> Option<(i64, i64)> {
        let filled = || self.files.iter().filter(|f| f.index.rows > 0);
        let first = filled().map(|f| f.index.first_ts).min()?;
        let last = filled().map(|f| f.index.last_ts).max()?;
        Some((first, last))
    }

    /// As it is told to heads.
    pub(crate) fn describe(&self, shared: &Shared) -> pb::DatasetDescription {
        let bounds = self.bounds();
        pb::DatasetDescription {
            spec: Some(pb::DatasetSpec::from(self.spec.as_ref())),
            version: self.version,
            known_through_ns: self.known_through,
            watermark_ns: self.watermark,
            first_ts_ns: bounds.map(|b| b.0),
            last_ts_ns: bounds.map(|b| b.1),
            rows: self.rows(),
            symbols: self.symbols.len() as u64,
            home: shared.home(self.spec.dataset.as_str()).to_owned(),
            schema: self.schema,
            dropped: self.life.dropped,
        }
    }
}

/// The snapshot, unless its dataset was dropped.
pub(crate) fn live(snapshot: &Option<Arc<Snapshot>>) -> Option<&Arc<Snapshot>> {
    snapshot.as_ref().filter(|snapshot| !snapshot.life.dropped)
}

/// A run id that has been committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CommittedRun {
    pub(crate) digest: String,
    pub(crate) version: u64,
    pub(crate) known_at: i64,
    pub(crate) rows: u64,
    pub(crate) retracted: u64,
    /// Of a publish of a session.
    pub(crate) session: Option<SessionKey>,
}

impl CommittedRun {
    /// Knowledge time of a change by hand, which brings no rows.
    pub(crate) const OF_CHANGE: i64 = i64::MIN;

    /// Whether it is no run, but a change of the dataset by hand.
    fn is_change(&self) -> bool {
        self.known_at == Self::OF_CHANGE
    }
}

/// A run as it is kept with the table: id, digest, knowledge time, rows, session, partition, retracted rows. Those of earlier
/// releases end sooner.
#[derive(serde::Deserialize)]
struct StoredRun(
    String,
    String,
    i64,
    u64,
    #[serde(default)] Option<String>,
    #[serde(default)] Option<String>,
    #[serde(default)] u64,
);

/// Committed runs by their ids, and of each session the newest.
#[derive(Debug, Default)]
struct CommittedRuns {
    by_id: HashMap<String, CommittedRun>,
    newest: HashMap<SessionKey, String>,
    /// When the publishes of each partition became known. Of a publish without a partition nothing needs to be kept.
    partitions: HashMap<SessionKey, BTreeSet<i64>>,
    /// When the newest publish of any partition of a session became known.
    partitioned: HashMap<String, i64>,
    /// The newest import of each content.
    imports: HashMap<String, String>,
}

impl CommittedRuns {
    /// Forgets the runs of a dataset that was dropped.
    fn forget_dropped(&mut self) {
        let mut before = std::mem::take(self);
        before.by_id.retain(|_, run| run.is_change());
        self.by_id = before.by_id;
    }

    /// Runs come in no order where a table is loaded whole.
    fn add(&mut self, id: String, run: CommittedRun) {
        // An import that was made again after a change by hand.
        if self.by_id.get(&id).is_some_and(|known| known.version > run.version) {
            return;
        }
        if let Some(key) = &run.session {
            let newest = self.newest.get(key).and_then(|id| self.by_id.get(id));
            if newest.is_none_or(|newest| newest.known_at < run.known_at) {
                self.newest.insert(key.clone(), id.clone());
            }
            if !key.partition.is_empty() {
                self.partitions.entry(key.clone()).or_default().insert(run.known_at);
                let newest = self.partitioned.entry(key.session.clone()).or_insert(run.known_at);
                *newest = run.known_at.max(*newest);
            }
        } else if !run.is_change() {
            let newest = self.imports.get(&run.digest).and_then(|id| self.by_id.get(id));
            if newest.is_none_or(|newest| newest.known_at < run.known_at) {
                self.imports.insert(run.digest.clone(), id.clone());
            }
        }
        self.by_id.insert(id, run);
    }

    /// The newest publish of a session and partition, if nobody has published any other part of the session since.
    fn newest(&self, key: &SessionKey) -> Option<CommittedRun> {
        let of = |key: &SessionKey| self.by_id.get(self.newest.get(key)?);
        let newest = of(key)?;
        let whole = of(&SessionKey { session: key.session.clone(), partition: String::new() });
        let since = whole.map(|run| run.known_at).max(self.partitioned.get(&key.session).copied());
        since.is_none_or(|since| since <= newest.known_at).then(|| newest.clone())
    }
}

/// One dataset.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) name: DatasetName,
    pub(crate) log: Log,
    pub(crate) shared: Arc<Shared>,
    /// `None`: there is no table (yet).
    current: RwLock<Option<Arc<Snapshot>>>,
    /// Refreshes one after the other; holds how many arrivals the last one covered.
    refreshing: tokio::sync::Mutex<u64>,
    arrivals: AtomicU64,
    runs: Mutex<CommittedRuns>,
    history: Mutex<History>,
    /// Reads of older entries one after the other: every head asks at once, and one reading answers all.
    recalling: tokio::sync::Mutex<()>,
    /// Indexes of files written here whose commit has not been applied yet: saves reading them back.
    written: Mutex<HashMap<String, Arc<FileIndex>>>,
    /// Origin of the leases' clock.
    opened: Instant,
}

/// Whether a refresh that finds a table where there was none tells the watchers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Announce {
    Yes,
    No,
}

impl Table {
    pub(crate) fn new(name: &DatasetName, log: Log, shared: Arc<Shared>) -> Self {
        Self {
            name: name.clone(),
            log,
            shared,
            current: RwLock::default(),
            refreshing: tokio::sync::Mutex::default(),
            arrivals: AtomicU64::new(0),
            runs: Mutex::default(),
            history: Mutex::default(),
            recalling: tokio::sync::Mutex::default(),
            written: Mutex::default(),
            opened: Instant::now(),
        }
    }

    /// The time that leases are counted by.
    pub(crate) fn now(&self) -> Duration {
        self.opened.elapsed()
    }

    /// The newest snapshot that is known; may be behind the log.
    pub(crate) fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.current.read().clone()
    }

    /// The snapshot with everything that was committed before this call, by whomever.
    ///
    /// # Errors
    /// The log or a file in it does not read; the snapshot stays what it was.
    pub(crate) async fn refresh(&self) -> Result<Option<Arc<Snapshot>>> {
        self.refresh_and(Announce::Yes).await
    }

    /// As [`Self::refresh`], without telling the watchers of a table that was not known: at start.
    pub(crate) async fn load(&self) -> Result<Option<Arc<Snapshot>>> {
        self.refresh_and(Announce::No).await
    }

    async fn refresh_and(&self, announce: Announce) -> Result<Option<Arc<Snapshot>>> {
        let ticket = self.arrivals.fetch_add(1, Ordering::SeqCst) + 1;
        let mut covered = self.refreshing.lock().await;
        if *covered >= ticket {
            // A look that began after this call did has ended: it saw all that this one must see.
            return Ok(self.snapshot());
        }
        let covers = self.arrivals.load(Ordering::SeqCst);
        loop {
            let Some(current) = self.snapshot() else {
                let Some(state) = self.log.open().await? else { break };
                let (next, runs) = self.build(state, None).await?;
                self.history.lock().begin(next.version);
                let event = match announce {
                    Announce::Yes => Some(self.event(&next, &change::Touched::Everything, &[]).await),
                    Announce::No => None,
                };
                self.install(next, runs, event);
                continue;
            };
            match self.log.read(current.version + 1).await? {
                None => break,
                Some(entry) => self.apply(&current, entry).await?,
            }
        }
        *covered = covers;
        Ok(self.snapshot())
    }

    /// Remembers the index of a file that was just written here, for the refresh that will find it.
    pub(crate) fn wrote(&self, path: &str, index: Arc<FileIndex>) {
        self.written.lock().insert(path.to_owned(), index);
    }

    /// Forgets the index of a file; should it become part of the table, it is opened like any other.
    pub(crate) fn forget(&self, path: &str) {
        self.written.lock().remove(path);
    }

    /// Forgets a file that was written but not committed, and removes it.
    pub(crate) async fn discard(&self, path: &str) {
        use object_store::ObjectStoreExt;
        self.forget(path);
        // Nobody refers to it; what cannot be removed now is swept later.
        let _ = self.log.folder.files.delete(&object_store::path::Path::from(path)).await;
    }

    /// The commit of a run id, if there was one.
    pub(crate) fn run(&self, id: &str) -> Option<CommittedRun> {
        self.runs.lock().by_id.get(id).cloned()
    }

    /// The newest publish of a session and partition, if nobody has published any other part of the session since.
    pub(crate) fn newest_run(&self, key: &SessionKey) -> Option<CommittedRun> {
        self.runs.lock().newest(key)
    }

    /// The newest import of the content with this digest.
    pub(crate) fn newest_import(&self, digest: &str) -> Option<CommittedRun> {
        let runs = self.runs.lock();
        runs.imports.get(digest).and_then(|id| runs.by_id.get(id)).cloned()
    }

    /// When the publishes of a session and partition became known.
    pub(crate) fn published(&self, key: &SessionKey) -> BTreeSet<i64> {
        self.runs.lock().partitions.get(key).cloned().unwrap_or_default()
    }

    /// Every commit of a run id.
    pub(crate) fn all_runs(&self) -> Vec<(String, CommittedRun)> {
        self.runs.lock().by_id.iter().map(|(id, run)| (id.clone(), run.clone())).collect()
    }

    /// Whether `[start, end)` of `symbol` is as it was at `version`; `false` also if that cannot be told.
    pub(crate) fn unchanged_since(&self, version: u64, symbol: &str, start: i64, end: i64) -> bool {
        self.history.lock().unchanged_since(version, symbol, start, end)
    }

    /// Learns from the log what was committed after `version`, as far as that is not remembered. What does not read, or
    /// is not there any more, stays unknown.
    pub(crate) async fn recall(&self, version: u64) {
        let _one = self.recalling.lock().await;
        let missing = self.history.lock().missing(version);
        let mut entries = futures::stream::iter(missing)
            .map(|version| async move { (version, self.log.read(version).await) })
            .buffered(READ_PARALLEL);
        while let Some((version, entry)) = entries.next().await {
            let Ok(Some(entry)) = entry else { return };
            if !self.history.lock().recall(version, entry) {
                return;
            }
        }
    }

    async fn apply(&self, current: &Snapshot, entry: Entry) -> Result<()> {
        let version = current.version + 1;
        let known = |path: &String| current.files.iter().any(|f| f.file.path == *path);
        if entry.redefined || !entry.removes.iter().all(known) {
            let state = self.log.open().await?.ok_or_else(|| {
                Error::new(Code::DataCorrupt, format!("the table of {} is gone", self.name))
                    .dataset(&self.name)
            })?;
            let (next, runs) = self.build(state, Some(current)).await?;
            let event = self.event(&next, &change::Touched::Everything, &[]).await;
            self.history.lock().push(next.version, change::Touched::Everything);
            self.install(next, runs, Some(event));
            return Ok(());
        }
        let added = self.open_files(entry.adds, None).await?;
        let gone: BTreeSet<&str> = entry.removes.iter().map(String::as_str).collect();
        let mut files: Vec<_> =
            current.files.iter().filter(|f| !gone.contains(f.file.path.as_str())).cloned().collect();
        files.extend(added.iter().cloned());
        let symbols = if entry.data_change && !gone.is_empty() {
            Arc::new(self.owned_symbols(&files))
        } else if entry.data_change {
            let new: Vec<Symbol> =
                self.owned_symbols(&added).into_iter().filter(|s| !current.symbols.contains(s)).collect();
            if new.is_empty() {
                current.symbols.clone()
            } else {
                Arc::new(current.symbols.iter().cloned().chain(new).collect())
            }
        } else {
            current.symbols.clone()
        };
        let txns: HashMap<String, Txn> = entry.txns.into_iter().collect();
        let runs = runs_of(&txns, &current.life);
        let lease = lease_of(&txns, &current.lease);
        let known_through = known_through(current.known_through, &added, &runs);
        let next = Arc::new(Snapshot {
            version,
            spec: current.spec.clone(),
            life: current.life,
            schema: current.schema,
            definition: current.definition.clone(),
            retractable: current.retractable,
            files,
            symbols,
            known_through,
            watermark: watermark_of(&txns).or(current.watermark),
            lease_learned: self.learned(&lease, Some(current)),
            lease,
            imported: version_of(&txns, IMPORTED).or(current.imported),
            altered: version_of(&txns, ALTERED).or(current.altered),
        });
        let touched = if !entry.data_change {
            change::Touched::Nothing
        } else if gone.is_empty() {
            change::Touched::by(&added, |symbol| self.shared.owns.owns(self.name.as_str(), symbol))
        } else {
            change::Touched::Everything
        };
        let added = if entry.data_change { added } else { Vec::new() };
        let event = self.event(&next, &touched, &added).await;
        self.history.lock().push(version, touched);
        self.install(next, runs, Some(event));
        Ok(())
    }

    /// Builds a snapshot from a whole state; files that `before` has are taken from it.
    async fn build(&self, state: State, before: Option<&Snapshot>) -> Result<(Arc<Snapshot>, Vec<FoundRun>)> {
        let definition = state.definition;
        let (spec, life) = schema::spec_of(&self.name, &definition.properties, &definition.schema)?;
        let files = self.open_files(state.files, before).await?;
        let created = definition.created_ms.saturating_mul(1_000_000);
        let runs = runs_of(&state.txns, &life);
        let lease = lease_of(&state.txns, &Stored::Never);
        let next = Arc::new(Snapshot {
            version: state.version,
            symbols: Arc::new(self.owned_symbols(&files)),
            known_through: known_through(before.map_or(created, |b| b.known_through), &files, &runs),
            watermark: watermark_of(&state.txns),
            lease_learned: self.learned(&lease, before),
            lease,
            imported: version_of(&state.txns, IMPORTED).filter(|version| *version >= life.since),
            altered: version_of(&state.txns, ALTERED).filter(|version| *version >= life.since),
            schema: spec.fingerprint(life.revision),
            retractable: schema::retractable(&spec, &definition.schema),
            spec: Arc::new(spec),
            life,
            definition: Arc::new(definition),
            files,
        });
        Ok((next, runs))
    }

    fn learned(&self, lease: &Stored, before: Option<&Snapshot>) -> Duration {
        match before {
            Some(before) if before.lease.epoch() == lease.epoch() => before.lease_learned,
            Some(_) | None => self.now(),
        }
    }

    async fn open_files(&self, files: Vec<LogFile>, before: Option<&Snapshot>) -> Result<Vec<Arc<DataFile>>> {
        let held: HashMap<&str, &Arc<DataFile>> =
            before.map(|b| b.files.iter().map(|f| (f.file.path.as_str(), f)).collect()).unwrap_or_default();
        futures::stream::iter(files)
            .map(|file| {
                let held = held.get(file.path.as_str()).map(|f| Arc::clone(f));
                let written = self.written.lock().get(&file.path).cloned();
                async move {
                    if let Some(held) = held {
                        return Ok(held);
                    }
                    if let Some(index) = written {
                        return Ok(Arc::new(DataFile::new(&self.log, file, index)));
                    }
                    let opened = DataFile::open(&self.log, file).await;
                    opened.map(Arc::new).map_err(|e| e.dataset(&self.name))
                }
            })
            .buffered(OPEN_PARALLEL)
            .try_collect()
            .await
    }

    fn owned_symbols(&self, files: &[Arc<DataFile>]) -> BTreeSet<Symbol> {
        let all: BTreeSet<&Symbol> =
            files.iter().flat_map(|f| f.index.runs.iter().map(|r| &r.symbol)).collect();
        all.into_iter().filter(|s| self.shared.owns.owns(self.name.as_str(), s.as_str())).cloned().collect()
    }

    /// What the watchers are told of a version. Its rows travel with it if they can be read; who fetches them learns why not.
    async fn event(&self, next: &Snapshot, touched: &change::Touched, added: &[Arc<DataFile>]) -> pb::Change {
        let rows = change::inline_rows(&self.shared, next, touched, added).await.unwrap_or_else(|error| {
            tracing::warn!(dataset = %self.name, version = next.version, %error, "a change is told without its rows");
            None
        });
        change::event(&self.shared, next, touched, added, rows)
    }

    /// Makes a version visible and tells the watchers. All at once, with everything awaited before: a caller that leaves
    /// on the way, or a file that does not read, leaves both undone, and the next refresh does both. A version that was
    /// visible untold would never be told. The watchers come last: a read that has seen the watch log at this change's
    /// number has its rows.
    fn install(&self, next: Arc<Snapshot>, runs: Vec<FoundRun>, event: Option<pb::Change>) {
        {
            let mut known = self.runs.lock();
            if self.current.read().as_ref().is_some_and(|before| before.life.since != next.life.since) {
                known.forget_dropped();
            }
            runs.into_iter().for_each(|(id, run)| known.add(id, run));
        }
        {
            let mut written = self.written.lock();
            if !written.is_empty() {
                next.files.iter().for_each(|f| drop(written.remove(&f.file.path)));
            }
        }
        *self.current.write() = Some(next);
        if let Some(event) = event {
            self.shared.watch.push(event);
        }
    }
}

/// A run that was committed, with its id.
type FoundRun = (String, CommittedRun);

/// The runs of the dataset, and not those of one that was dropped before it was made. Changes by hand stay
/// known: a client that asks for its drop again must not drop the dataset that has the name now.
fn runs_of(txns: &HashMap<String, Txn>, life: &Life) -> Vec<FoundRun> {
    let runs = txns.iter().filter_map(|(app, txn)| parse_run(app, txn));
    runs.filter(|(_, run)| run.version >= life.since || run.is_change()).collect()
}

/// The watermark, if there is one: a dataset that is made under the name of a dropped one begins with none.
fn watermark_of(txns: &HashMap<String, Txn>) -> Option<i64> {
    txns.get(WATERMARK).map(|txn| txn.version).filter(|watermark| *watermark > i64::MIN)
}

/// A publish without rows has a knowledge time as well, which its publisher was told: nothing may become known before it.
fn known_through(before: i64, files: &[Arc<DataFile>], runs: &[FoundRun]) -> i64 {
    let rows = files.iter().filter(|f| f.index.rows > 0).map(|f| f.index.known_max);
    rows.chain(runs.iter().map(|(_, run)| run.known_at)).fold(before, i64::max)
}

/// The application id that carries a grant's holder.
pub(crate) fn holder_txn(grant: &Grant) -> String {
    let holder = (&grant.holder.unit, &grant.holder.instance, grant.ttl.as_millis() as u64);
    format!("{HOLDER}{}", serde_json::json!(holder))
}

/// The application id that carries a committed run; `session`: of which session and partition it is.
pub(crate) fn run_txn(
    id: &str,
    digest: &str,
    known_at: i64,
    rows: u64,
    session: Option<&SessionKey>,
    retracted: u64,
) -> String {
    let (session, partition) = session.map(|key| (&key.session, &key.partition)).unzip();
    format!("{RUN}{}", serde_json::json!((id, digest, known_at, rows, session, partition, retracted)))
}

/// What a publish of a session replaces: the last one with the same key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct SessionKey {
    /// A date, as it was published.
    pub(crate) session: String,
    pub(crate) partition: String,
}

fn parse_run(app: &str, txn: &Txn) -> Option<FoundRun> {
    let StoredRun(id, digest, known_at, rows, session, partition, retracted) =
        serde_json::from_str(app.strip_prefix(RUN)?).ok()?;
    let session = session.zip(partition).map(|(session, partition)| SessionKey { session, partition });
    let version = txn.version.unsigned_abs();
    Some((id, CommittedRun { digest, version, known_at, rows, retracted, session }))
}

fn version_of(txns: &HashMap<String, Txn>, app: &str) -> Option<u64> {
    txns.get(app).map(|txn| txn.version.unsigned_abs())
}

/// The lease after these transactions; `before` them it was another.
fn lease_of(txns: &HashMap<String, Txn>, before: &Stored) -> Stored {
    let released = txns.get(RELEASED).map(|txn| txn.version.unsigned_abs());
    let grant = match (grant_of(txns), before) {
        (Some(grant), _) => grant,
        (None, Stored::Held(grant)) => grant.clone(),
        (None, Stored::Never | Stored::Released(_)) => return before.clone(),
    };
    if grant.holder.unit.is_empty() || released == Some(grant.epoch) {
        Stored::Released(grant)
    } else {
        Stored::Held(grant)
    }
}

fn grant_of(txns: &HashMap<String, Txn>) -> Option<Grant> {
    let newest = txns.get(PUBLISHER)?;
    let holder = txns.iter().filter(|(_, txn)| txn.version == newest.version).find_map(|(app, txn)| {
        let (unit, instance, ttl_ms): (String, String, u64) =
            serde_json::from_str(app.strip_prefix(HOLDER)?).ok()?;
        Some((Holder { unit, instance }, Duration::from_millis(ttl_ms), txn.updated_ms))
    });
    // An epoch without a holder was committed by another tool; it fences all the same.
    let (holder, ttl, since_ms) = holder.unwrap_or_else(|| {
        (
            Holder { unit: "unknown".to_owned(), instance: "unknown".to_owned() },
            TTL_DEFAULT,
            newest.updated_ms,
        )
    });
    Some(Grant {
        epoch: newest.version.unsigned_abs(),
        holder,
        since_ns: since_ms.saturating_mul(1_000_000),
        ttl,
    })
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        task::{Poll, ready},
    };

    use super::*;
    use crate::testing::Grid;

    #[tokio::test]
    async fn a_caller_that_leaves_while_a_version_is_read_leaves_it_neither_visible_nor_untold() {
        let grid = Grid::new().await;
        grid.import(&[("A", 0, 0.0)]).await.unwrap();
        let other = grid.beside().await;
        let (dataset, _) = other.catalog.find("d.a").await.unwrap();
        let mut watcher = other.subscribe(&pb::WatchStart::default());
        let mut told = None;
        let mut left_before_the_end = 0;
        for polls in 0..30_usize {
            grid.import(&[("A", 0, polls as f64)]).await.unwrap();
            {
                let mut refresh = pin!(dataset.table.refresh());
                let mut left = polls;
                left_before_the_end += std::future::poll_fn(|cx| {
                    if left == 0 {
                        return Poll::Ready(1);
                    }
                    left -= 1;
                    ready!(refresh.as_mut().poll(cx)).unwrap();
                    Poll::Ready(0)
                })
                .await;
            }
            while let Ok(change) = watcher.queue.try_recv() {
                told = Some(change.version);
            }
            let visible = dataset.table.snapshot().map(|s| s.version);
            assert!(told.or(Some(0)) >= visible, "{visible:?} after {polls} polls, told of {told:?}");
        }
        assert!(left_before_the_end > 5);
    }

    #[test]
    fn a_grant_and_a_run_read_back_from_their_transactions() {
        let grant = Grant {
            epoch: 4,
            holder: Holder { unit: "mom".to_owned(), instance: "host:1 \"x\"".to_owned() },
            since_ns: 5_000_000,
            ttl: Duration::from_millis(700),
        };
        let old = Grant { epoch: 3, ..grant.clone() };
        let txn = |version| Txn { version, updated_ms: 5 };
        let txns = HashMap::from([
            (PUBLISHER.to_owned(), txn(4)),
            (
                holder_txn(&Grant { holder: Holder { unit: "old".to_owned(), ..old.holder.clone() }, ..old }),
                txn(3),
            ),
            (holder_txn(&grant), txn(4)),
        ]);
        assert_eq!(lease_of(&txns, &Stored::Never), Stored::Held(grant.clone()));
        let given_back = HashMap::from([(RELEASED.to_owned(), txn(4))]);
        assert_eq!(lease_of(&given_back, &Stored::Held(grant.clone())), Stored::Released(grant.clone()));
        let an_older_one = HashMap::from([(RELEASED.to_owned(), txn(3))]);
        assert_eq!(lease_of(&an_older_one, &Stored::Held(grant.clone())), Stored::Held(grant.clone()));
        let mut all = txns;
        all.extend(given_back);
        assert_eq!(lease_of(&all, &Stored::Never), Stored::Released(grant));

        let of_run = |retracted, session| CommittedRun {
            digest: "ab".to_owned(),
            version: 12,
            known_at: -3,
            rows: 9,
            retracted,
            session,
        };
        let id = "r \"1\"".to_owned();
        let key = SessionKey { session: "2016-08-10".to_owned(), partition: "\"p".to_owned() };
        for session in [None, Some(key.clone())] {
            let app = run_txn(&id, "ab", -3, 9, session.as_ref(), 2);
            assert_eq!(parse_run(&app, &txn(12)), Some((id.clone(), of_run(2, session))));
        }
        let before = format!("{RUN}{}", serde_json::json!((&id, "ab", -3, 9)));
        assert_eq!(parse_run(&before, &txn(12)), Some((id.clone(), of_run(0, None))), "as it was once");
        let before = format!("{RUN}{}", serde_json::json!((&id, "ab", -3, 9, &key.session, &key.partition)));
        assert_eq!(parse_run(&before, &txn(12)), Some((id, of_run(0, Some(key)))), "as it was once");
    }
}
