//! One dataset, version by version. Its newest snapshot is immutable, and is replaced whole.
//!
//! Every commit, our own included, becomes visible in one way: [`Table::refresh`] reads the next log entry, builds the next
//! snapshot and tells the watchers. So everybody sees one order of events, and a commit of another shard is no special case.
//! Every read first looks for a next entry. Reads that arrive at the same time share one look.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures::{StreamExt, TryStreamExt};
use parking_lot::{Mutex, RwLock};
use trellis_fabric::single::{Lost, Single};
use trellis_proto::{Code, DatasetName, Error, Result, Symbol, pb};

use super::{
    change,
    context::Context,
    delta::{Definition, Entry, Log, State, Txn},
    history::History,
    kept::Kept,
    lease::StoredLease,
    runs::{CommittedRun, CommittedRuns, NamedRun, SessionKey},
    snapshot::Snapshot,
    touched::Touched,
    txns::{altered_of, imported_of, lease_of, runs_of, watermark_of},
};
use crate::files::{DataFile, FileIndex, FileRef, has_retracted_column, spec_of};

/// Files opened at once when a table is loaded.
const OPEN_PARALLEL: usize = 16;
/// Log entries read at once when a head asks about commits from before this process began.
const READ_PARALLEL: usize = 16;
/// Most versions that a table may be behind when it is opened again. It then goes on from the version that watchers know, and each
/// version in between is one read. If it is further behind, the shard tells watchers that everything has changed.
const BEHIND_MAX: u64 = 64;
/// Fewest commits for a checkpoint of a table that rests. The checkpoint saves the next opening from reading them one by one. Many
/// tables get one commit a day, and would not reach the number for a busy table for months. A smaller number would not pay: to read
/// eight entries takes about as long as to read a checkpoint.
pub(crate) const CHECKPOINT_COMMITS_MIN: u64 = 8;
/// Estimated bytes of an open table without its files: with mimalloc a process with 5,900 open tables of one small file each took 1.4 GB.
/// With the present allocator it is less: a shard that had published to 1,000 tables took 114 MB in all.
const TABLE_BYTES: usize = 224 << 10;
/// Estimated bytes of one remembered run, and of one remembered commit.
const RUN_BYTES: usize = 256;
const COMMIT_BYTES: usize = 128;
/// Estimated bytes of one symbol.
const SYMBOL_BYTES: usize = 48;

/// The table of one dataset.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) name: DatasetName,
    pub(crate) log: Log,
    pub(crate) context: Arc<Context>,
    /// The newest snapshot; `None`: there is no table yet.
    current: RwLock<Option<Arc<Snapshot>>>,
    /// The looks at the log: one is under way at a time.
    looks: Single<Result<Option<Arc<Snapshot>>>>,
    runs: Mutex<CommittedRuns>,
    history: Mutex<History>,
    /// Held while older entries are read. Every head asks at the same time, and one reading answers all.
    recalling: tokio::sync::Mutex<()>,
    /// Indexes of files that this shard wrote and whose commit is not applied yet: they need not be read back.
    written: Mutex<HashMap<String, Arc<FileIndex>>>,
    /// What stays when the table is closed.
    kept: Arc<Kept>,
}

impl Table {
    pub(crate) fn new(name: &DatasetName, log: Log, context: Arc<Context>, kept: Arc<Kept>) -> Self {
        Self {
            name: name.clone(),
            log,
            context,
            current: RwLock::default(),
            looks: Single::default(),
            runs: Mutex::default(),
            history: Mutex::default(),
            recalling: tokio::sync::Mutex::default(),
            written: Mutex::default(),
            kept,
        }
    }

    /// The time on the clock that leases are counted by.
    pub(crate) fn now(&self) -> Duration {
        self.context.started.elapsed()
    }

    /// About how many bytes the open table takes.
    pub(crate) fn bytes(&self) -> usize {
        let snapshot = self.snapshot().map_or(0, |snapshot| snapshot.bytes);
        let (runs, commits) = (self.runs.lock().len(), self.history.lock().len());
        TABLE_BYTES + snapshot + runs * RUN_BYTES + commits * COMMIT_BYTES
    }

    /// The newest snapshot that this shard knows. It may be behind the log.
    pub(crate) fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.current.read().clone()
    }

    /// The snapshot with everything that any writer committed before this call.
    ///
    /// # Errors
    /// The log, or a file that it names, cannot be read. The snapshot then stays as it was.
    pub(crate) async fn refresh(self: &Arc<Self>) -> Result<Option<Arc<Snapshot>>> {
        let table = Arc::clone(self);
        // All who come while a look is under way share the next one, which sees everything that was committed before they came.
        let look = self.looks.fresh(|| async move { table.look().await.map(|()| table.snapshot()) }).await;
        look.unwrap_or_else(|Lost| {
            let what = format!("a look at the log of {} ended without a result", self.name);
            Err(Error::new(Code::Internal, what))
        })
    }

    async fn look(&self) -> Result<()> {
        let looked = self.follow_log().await;
        match &looked {
            Err(error) if self.kept.version().is_none() => {
                self.context.unopened.add(&self.name, error.clone());
            }
            _ => self.context.unopened.remove(&self.name),
        }
        looked
    }

    /// Applies the log's next entries, one after the other, until there is none.
    async fn follow_log(&self) -> Result<()> {
        loop {
            let Some(current) = self.snapshot() else {
                let Some((next, runs)) = self.open().await? else { break };
                let event = self.event(&next, &Touched::Everything, &[]).await;
                self.history.lock().begin(next.version);
                self.install(next, runs, event, Kept::opened);
                continue;
            };
            match self.log.read(current.version + 1).await? {
                None => break,
                Some(entry) => {
                    self.log.settle(current.version + 1).await?;
                    self.apply(&current, entry).await?;
                }
            }
        }
        Ok(())
    }

    /// Opens the table at the version that watchers know, so that the commits since are told one by one; at the newest version, if that
    /// is not possible or nobody knows any. `None`: there is no table.
    async fn open(&self) -> Result<Option<(Arc<Snapshot>, Vec<NamedRun>)>> {
        let now_ms = self.context.clock.now_ms();
        let told = self.kept.version();
        if let Some(told) = told {
            // What fails here fails below as well, or is of no more concern: a file that the newest version does not have.
            if let Ok(Some(state)) = self.log.open_at(told, BEHIND_MAX, now_ms).await
                && let Ok(opened) = self.built(state).await
            {
                return Ok(Some(opened));
            }
        }
        match self.log.open(now_ms).await? {
            Some(state) => self.built(state).await.map(Some),
            None if told.is_some() => Err(self.log.gone()),
            None => Ok(None),
        }
    }

    async fn built(&self, state: State) -> Result<(Arc<Snapshot>, Vec<NamedRun>)> {
        let entries = state.version.saturating_sub(state.checkpoint);
        let (next, runs) = self.build(state, None).await?;
        // The last life of the shard, or the last time that the table was open, ended before the upkeep came.
        if entries >= CHECKPOINT_COMMITS_MIN || next.moving().is_some() {
            self.context.needs_upkeep(&self.name);
        }
        Ok((next, runs))
    }

    /// Keeps the index of a file that this shard wrote, for the refresh that finds its commit.
    pub(crate) fn wrote(&self, path: &str, index: Arc<FileIndex>) {
        self.written.lock().insert(path.to_owned(), index);
    }

    /// Forgets the index of a file. If the file becomes part of the table, it is opened like any other.
    pub(crate) fn forget(&self, path: &str) {
        self.written.lock().remove(path);
    }

    /// How many files have an index that waits for a commit.
    #[cfg(test)]
    pub(crate) fn uncommitted(&self) -> usize {
        self.written.lock().len()
    }

    /// Forgets a file that was written but not committed, and removes it.
    pub(crate) async fn discard(&self, path: &str) {
        use object_store::ObjectStoreExt;
        self.forget(path);
        // No version refers to the file. If it cannot be removed now, the upkeep removes it.
        let _ = self.log.folder.files.delete(&object_store::path::Path::from(path)).await;
    }

    /// The commit of a run id, if there was one.
    pub(crate) fn run(&self, id: &str) -> Option<CommittedRun> {
        self.runs.lock().get(id)
    }

    /// The newest publish of a session and partition, if nobody has published any other part of the session since.
    pub(crate) fn newest_run(&self, key: &SessionKey) -> Option<CommittedRun> {
        self.runs.lock().newest(key)
    }

    /// The newest import of the content with this digest.
    pub(crate) fn newest_import(&self, digest: &str) -> Option<CommittedRun> {
        self.runs.lock().newest_import(digest)
    }

    /// The knowledge times of the publishes of a session and partition.
    pub(crate) fn published(&self, key: &SessionKey) -> BTreeSet<i64> {
        self.runs.lock().published(key)
    }

    /// Every commit of a run id.
    pub(crate) fn all_runs(&self) -> Vec<NamedRun> {
        self.runs.lock().all()
    }

    /// Whether `[start, end)` of `symbol` is as it was at `version`; `false` if that is not known.
    pub(crate) fn unchanged_since(&self, version: u64, symbol: &str, start: i64, end: i64) -> bool {
        self.history.lock().unchanged_since(version, symbol, start, end)
    }

    /// Reads from the log which spans were touched after `version`, as far as the history lacks them. Entries that are gone or
    /// cannot be read stay unknown.
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
            let state = self.log.open(self.context.clock.now_ms()).await?.ok_or_else(|| {
                Error::new(Code::DataCorrupt, format!("the table of {} is gone", self.name))
                    .dataset(&self.name)
            })?;
            let (next, runs) = self.build(state, Some(current)).await?;
            let event = self.event(&next, &Touched::Everything, &[]).await;
            self.history.lock().push(next.version, Touched::Everything);
            self.install(next, runs, event, told);
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
        let bytes = bytes_of(&current.definition, &files, symbols.len());
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
            lease_learned: self.kept.learned(lease.epoch(), self.now()),
            lease,
            bytes,
            imported: imported_of(&txns).or(current.imported),
            altered: altered_of(&txns).or(current.altered),
        });
        let touched = if !entry.data_change {
            Touched::Nothing
        } else if gone.is_empty() {
            Touched::by(&added, |symbol| self.context.owns.owns(self.name.as_str(), symbol))
        } else {
            Touched::Everything
        };
        let added = if entry.data_change { added } else { Vec::new() };
        let event = self.event(&next, &touched, &added).await;
        self.history.lock().push(version, touched);
        self.install(next, runs, event, told);
        Ok(())
    }

    /// Builds a snapshot from a whole state. Files that `before` has are not opened again.
    async fn build(&self, state: State, before: Option<&Snapshot>) -> Result<(Arc<Snapshot>, Vec<NamedRun>)> {
        let definition = state.definition;
        let (spec, life) = spec_of(&self.name, &definition.properties, &definition.schema)?;
        let files = self.open_files(state.files, before).await?;
        let created = definition.created_ms.saturating_mul(1_000_000);
        let runs = runs_of(&state.txns, &life);
        let lease = lease_of(&state.txns, &StoredLease::Never);
        let symbols = self.owned_symbols(&files);
        let next = Arc::new(Snapshot {
            version: state.version,
            bytes: bytes_of(&definition, &files, symbols.len()),
            symbols: Arc::new(symbols),
            known_through: known_through(before.map_or(created, |b| b.known_through), &files, &runs),
            watermark: watermark_of(&state.txns),
            lease_learned: self.kept.learned(lease.epoch(), self.now()),
            lease,
            imported: imported_of(&state.txns).filter(|version| *version >= life.since),
            altered: altered_of(&state.txns).filter(|version| *version >= life.since),
            schema: spec.fingerprint(life.revision),
            retractable: has_retracted_column(&spec, &definition.schema),
            spec: Arc::new(spec),
            life,
            definition: Arc::new(definition),
            files,
        });
        Ok((next, runs))
    }

    async fn open_files(&self, files: Vec<FileRef>, before: Option<&Snapshot>) -> Result<Vec<Arc<DataFile>>> {
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
                        return Ok(Arc::new(DataFile::new(&self.log.folder, file, index)));
                    }
                    let opened = DataFile::open(&self.log.folder, file).await;
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
        all.into_iter().filter(|s| self.context.owns.owns(self.name.as_str(), s.as_str())).cloned().collect()
    }

    /// The event for the watchers. If the rows cannot be read it goes without them; a fetch then says why.
    async fn event(&self, next: &Snapshot, touched: &Touched, added: &[Arc<DataFile>]) -> pb::Change {
        let rows = change::inline_rows(&self.context, next, touched, added).await.unwrap_or_else(|error| {
            tracing::warn!(dataset = %self.name, version = next.version, %error, "a change is told without its rows");
            None
        });
        change::event(&self.context, next, touched, added, rows)
    }

    /// Makes a version visible and tells the watchers, without an await in between: otherwise watchers might never be told of a visible
    /// version. A file that cannot be read leaves both undone, and the next look does both. The watchers come last: a read that saw this change's number in the watch log has its rows.
    /// `keep` keeps the description, and says whether the watchers are told.
    fn install(
        &self,
        next: Arc<Snapshot>,
        runs: Vec<NamedRun>,
        event: pb::Change,
        keep: impl FnOnce(&Kept, Box<pb::DatasetDescription>) -> bool,
    ) {
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
        let described = Box::new(next.describe(&self.context));
        let show = || {
            *self.current.write() = Some(next);
            keep(&self.kept, described)
        };
        let news = self.context.watch.install(event, show);
        self.context.changed.store(true, Ordering::SeqCst);
        if news {
            self.context.needs_upkeep(&self.name);
        }
    }
}

/// Every version of an open table is told.
fn told(kept: &Kept, description: Box<pb::DatasetDescription>) -> bool {
    kept.describe(description);
    true
}

/// About how many bytes the parts of a snapshot take.
fn bytes_of(definition: &Definition, files: &[Arc<DataFile>], symbols: usize) -> usize {
    let properties = definition.properties.iter().map(|(key, value)| key.len() + value.len() + 64);
    let files = files.iter().map(|file| file.bytes());
    definition.schema.len() + properties.sum::<usize>() + files.sum::<usize>() + symbols * SYMBOL_BYTES
}

/// The knowledge time through which the dataset is complete. A publish without rows counts: its publisher was told its time.
fn known_through(before: i64, files: &[Arc<DataFile>], runs: &[NamedRun]) -> i64 {
    let rows = files.iter().filter(|f| f.index.rows > 0).map(|f| f.index.known_max);
    rows.chain(runs.iter().map(|(_, run)| run.known_at)).fold(before, i64::max)
}

#[cfg(test)]
mod tests {
    use crate::{
        testing::{Grid, follow},
        watch_log::News,
    };

    #[tokio::test]
    async fn a_look_goes_on_when_the_caller_that_began_it_leaves() {
        let grid = Grid::new().await;
        grid.import(&[("A", 0, 0.0)]).await.unwrap();
        let other = grid.beside().await;
        let (table, _) = other.catalog.find("d.a").await.unwrap();
        let mut watcher = follow(&other).await;
        assert!(watcher.changes().is_empty());
        let made = grid.import(&[("A", 0, 1.0)]).await.unwrap();
        assert!(
            futures::poll!(Box::pin(table.refresh())).is_pending(),
            "it began the look, and is dropped here"
        );
        let Some(News::Change(change)) = watcher.queue.recv().await else { panic!("no change was told") };
        assert_eq!(change.version, made.version);
        assert_eq!(table.snapshot().unwrap().version, made.version);
    }
}
