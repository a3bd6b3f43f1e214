//! The Delta log of one table: open it, read one entry, commit at a known version, write a checkpoint, remove old entries. Only
//! this file uses the Delta kernel (released under the name `buoyant_kernel`).
//!
//! Opening and checkpoints go through the kernel, which knows every form that other tools write. Commits do not: a writer must
//! commit at exactly the version that it has checked, or not at all. So this file puts an entry if it is absent, and a writer that
//! was too late looks at the new version first. Entries are read one by one, so the shard knows exactly what each version changed.
//!
//! Entries and checkpoints are compared with their checksums in each read, also in those of the kernel ([`Summed`]).
//!
//! If the entry is there already, its writer may still be this shard: a client of an object store asks again by itself after an
//! error of the server, and then finds its own entry. So every commit has an id, and its entry has that id.

use std::{
    collections::{BTreeSet, HashMap},
    num::NonZero,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use delta_kernel::{
    DeltaResult, Engine,
    scan::{StatsOptions, state::ScanFile},
    snapshot::{Snapshot, SnapshotRef},
};
use delta_kernel_default_engine::{DefaultEngineBuilder, executor::tokio::TokioMultiThreadExecutor};
use futures::{StreamExt, stream};
use object_store::{ObjectStoreExt, PutMode, PutOptions, PutPayload, path::Path};
use parquet::arrow::{
    ProjectionMask,
    arrow_reader::{ArrowReaderMetadata, ParquetRecordBatchReaderBuilder},
};
use tokio::runtime::{Handle, RuntimeFlavor};
use trellis_proto::{Code, DatasetName, Error, Result};

use super::{
    entry::{Actions, Definition, Entry, Txn, decoded, parse_entry},
    listing::{LOG_FOLDER, Listing},
    summed::{Differs, Summed, checkpoint_file, list_log},
};
use crate::{
    error::{corrupt, lost_task, parquet_error, store_error},
    files::{Checked, FileRef, Folder},
};

/// An entry that is older than this when a table is opened was synced by its writer, or by the disk itself, long ago. So a start does
/// not sync every folder.
const RECENT_MS: i64 = 3_600_000;

/// Log entries and checkpoints that one call of the kernel reads at once. Its default is a thousand: after a thousand commits, one call had
/// as many files open, and a gigabyte of buffers for them.
const KERNEL_FILES: NonZero<usize> = NonZero::new(16).expect("not 0");
/// Lines of entries that the kernel decodes at once. It reserves three kilobytes for each.
const KERNEL_LINES: NonZero<usize> = NonZero::new(256).expect("not 0");
/// Bytes that a call of the kernel takes: those buffers, and about a kilobyte for each file of a table.
const KERNEL_CALL_BYTES: u64 = 32 << 20;

/// The log of one table.
#[derive(Debug, Clone)]
pub(crate) struct Log {
    pub(crate) folder: Folder,
    dataset: DatasetName,
    /// How many versions are known to be durable.
    durable: Arc<AtomicU64>,
}

/// The whole state of a table at a version.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) version: u64,
    pub(crate) definition: Definition,
    pub(crate) files: Vec<FileRef>,
    pub(crate) txns: HashMap<String, Txn>,
    /// Version of the checkpoint that it was read from; 0 without one.
    pub(crate) checkpoint: u64,
}

/// Whether a commit took place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Committed {
    Yes,
    /// Another writer has committed this version. These actions will never be part of it.
    Taken,
}

const GONE_HINT: &str =
    "restore the folder; if it was removed on purpose, restart the shards, and the name is free";

fn entry_path(version: u64) -> Path {
    Path::from(format!("_delta_log/{version:020}.json"))
}

impl Log {
    pub(crate) fn new(dataset: &DatasetName, folder: Folder) -> Self {
        Self { folder, dataset: dataset.clone(), durable: Arc::default() }
    }

    /// Whether there is a table.
    pub(crate) async fn exists(&self) -> Result<bool> {
        Ok(self.listing().await?.newest().is_some())
    }

    /// Loads the newest state. Its log entry is durable when this returns. `None`: there is no table.
    ///
    /// # Errors
    /// [`Code::DataCorrupt`] naming the log entry that cannot be read.
    pub(crate) async fn open(&self, now_ms: i64) -> Result<Option<State>> {
        let listing = self.listing().await?;
        match listing.newest() {
            Some(newest) => self.state(&listing, newest, now_ms).await.map(Some),
            None => Ok(None),
        }
    }

    /// Loads the state of `version`. `None`: it is not there, or it is more than `behind` versions from the newest one.
    ///
    /// # Errors
    /// Those of [`Self::open`].
    pub(crate) async fn open_at(&self, version: u64, behind: u64, now_ms: i64) -> Result<Option<State>> {
        let listing = self.listing().await?;
        match listing.newest() {
            Some(newest) if (version..=version.saturating_add(behind)).contains(&newest) => {
                self.state(&listing, version, now_ms).await.map(Some)
            }
            _ => Ok(None),
        }
    }

    async fn state(&self, listing: &Arc<Listing>, version: u64, now_ms: i64) -> Result<State> {
        let written =
            listing.files.iter().filter(|file| file.version == version).map(|file| file.modified_ms);
        if written.max().is_none_or(|at| at > now_ms.saturating_sub(RECENT_MS)) {
            self.settle(version).await?;
        }
        let checkpoint = listing.checkpoint_before(version).map_or(0, |(checkpoint, _)| checkpoint);
        // Before the kernel reads the entries. The kernel takes an empty entry for one without actions. If such an entry were
        // restored between the kernel's look and ours, only ours would have it.
        let txns = self.transactions(listing, version).await?;
        let (definition, files) = self.load(listing, version).await?;
        Ok(State { version, definition, files, txns, checkpoint })
    }

    /// Whether somebody has committed `version`.
    ///
    /// # Errors
    /// The store cannot say.
    pub(crate) async fn has(&self, version: u64) -> Result<bool> {
        let path = entry_path(version);
        match self.folder.files.head(&path).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(e) => Err(store_error("looking at", &self.folder.file_name(path.as_ref()), &e)),
        }
    }

    /// Says that there was a table, and is none.
    pub(crate) fn gone(&self) -> Error {
        let what = format!("the table of {} is gone", self.dataset);
        Error::new(Code::DataCorrupt, what).dataset(&self.dataset).hint(GONE_HINT)
    }

    /// Calls the kernel with the table as of `version`, on a blocking thread. The kernel uses the runtime that it was called
    /// from, and panics if that ends first. So a shard that stops waits for the call.
    async fn calling<T: Send + 'static>(
        &self,
        listing: &Arc<Listing>,
        version: u64,
        call: impl FnOnce(&SnapshotRef, &dyn Engine) -> DeltaResult<T> + Send + 'static,
    ) -> Result<DeltaResult<T>> {
        let (root, url) = (self.folder.root.clone(), self.folder.url.clone());
        let store = Summed::new(root, listing.clone());
        let share = self.folder.budget.take(KERNEL_CALL_BYTES + listing.checkpoint_bytes(version)).await;
        let called = self.folder.calls.spawn_blocking(move || {
            let _share = share;
            let engine = engine(store);
            let snapshot = Snapshot::builder_for(url).at_version(version).build(engine.as_ref())?;
            call(&snapshot, engine.as_ref())
        });
        match called.await {
            Ok(called) => Ok(called),
            // The kernel and its Parquet reader panic at some damaged files of other tools, which have no checksums.
            Err(error) if error.is_panic() => Err(self.refuse(error)),
            Err(error) => Err(lost_task("reading or writing the log", error)),
        }
    }

    /// The log cannot be read.
    fn refuse(&self, why: impl std::fmt::Display) -> Error {
        corrupt(&self.folder.file_name(LOG_FOLDER), why).dataset(&self.dataset)
    }

    async fn load(&self, listing: &Arc<Listing>, newest: u64) -> Result<(Definition, Vec<FileRef>)> {
        let (definition, found) = match self.calling(listing, newest, whole).await? {
            Ok(loaded) => loaded,
            Err(error) => {
                // The kernel does not say which entry is broken. Mostly it is the newest one.
                for version in listing.entries().rev() {
                    self.read(version).await?;
                }
                for part in listing.checkpoint_before(newest).map_or_else(Vec::new, |(_, parts)| parts) {
                    self.checked(listing, part).await?;
                }
                return Err(self.refuse(error));
            }
        };
        let mut files = Vec::with_capacity(found.len());
        for file in found {
            let path = decoded(&file.path).map_err(|e| self.refuse(e))?;
            if file.deletions {
                return Err(Error::new(
                    Code::DataCorrupt,
                    format!("{} has a deletion vector, which is not supported", self.folder.file_name(&path)),
                )
                .dataset(&self.dataset)
                .hint("rewrite the table without deletion vectors (OPTIMIZE or PURGE in the tool that made them)"));
            }
            files.push(FileRef { path, size: file.size });
        }
        Ok((definition, files))
    }

    /// Reads the entry of `version`; `None`: nobody has committed it.
    ///
    /// # Errors
    /// [`Code::DataCorrupt`] naming an entry that is not whole.
    pub(crate) async fn read(&self, version: u64) -> Result<Option<Entry>> {
        let path = entry_path(version);
        let bytes = match self.folder.files.get(&path).await {
            Ok(found) => found
                .bytes()
                .await
                .map_err(|e| store_error("reading", &self.folder.file_name(path.as_ref()), &e))?,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(e) => return Err(store_error("reading", &self.folder.file_name(path.as_ref()), &e)),
        };
        parse_entry(&bytes).map(Some).map_err(|why| {
            corrupt(&self.folder.file_name(path.as_ref()), format!("the log entry is not whole: {why}"))
                .dataset(&self.dataset)
        })
    }

    /// Returns when the entry of `version`, which can be seen, stays whatever happens to the machine. The shard tells nobody of
    /// the version before that.
    pub(crate) async fn settle(&self, version: u64) -> Result<()> {
        if self.durable.load(Relaxed) > version {
            return Ok(());
        }
        let path = entry_path(version);
        let settled = self.folder.settle(&path).await;
        settled.map_err(|e| store_error("syncing", &self.folder.file_name(path.as_ref()), &e))?;
        self.durable.fetch_max(version + 1, Relaxed);
        Ok(())
    }

    /// Commits `actions` as `version`, if nobody has. The entry is durable when this returns.
    ///
    /// After an error the commit may have taken place, or may still take place: the answer may be lost, or the request may still
    /// be on its way.
    ///
    /// After [`Code::DataCorrupt`] the commit has not taken place: the entry before `version` is gone, and so is the table.
    pub(crate) async fn commit(&self, version: u64, actions: &Actions) -> Result<Committed> {
        if let Some(before) = version.checked_sub(1) {
            self.check_there(before).await?;
        }
        let path = entry_path(version);
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match self.folder.files.put_opts(&path, PutPayload::from(actions.bytes()), options).await {
            Ok(_) => {
                self.durable.fetch_max(version + 1, Relaxed);
                Ok(Committed::Yes)
            }
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                let there = self.read(version).await?;
                if !there.is_some_and(|entry| entry.is_of(actions)) {
                    return Ok(Committed::Taken);
                }
                self.settle(version).await?;
                Ok(Committed::Yes)
            }
            Err(e) => Err(store_error("committing", &self.folder.file_name(path.as_ref()), &e)),
        }
    }

    /// Refuses to follow an entry that is gone: somebody has removed the table's folder. A new entry would be alone.
    async fn check_there(&self, version: u64) -> Result<()> {
        if self.has(version).await? {
            return Ok(());
        }
        let name = self.folder.file_name(entry_path(version).as_ref());
        let what = format!("{name} is gone, and with it the table of {}: nothing was written", self.dataset);
        Err(Error::new(Code::DataCorrupt, what).dataset(&self.dataset).hint(GONE_HINT))
    }

    /// Writes a checkpoint of `version`: the next start then reads only the entries after it.
    pub(crate) async fn checkpoint(&self, version: u64) -> Result<()> {
        let listing = self.listing().await?;
        let written =
            self.calling(&listing, version, |snapshot, engine| snapshot.checkpoint(engine, None).map(|_| ()));
        written
            .await?
            .map_err(|e| store_error("writing a checkpoint of", &self.folder.file_name(LOG_FOLDER), &e))
    }

    /// A file of a checkpoint, compared with the checksums beside it if it has any.
    async fn checked(&self, listing: &Listing, path: &Path) -> Result<(Bytes, Checked)> {
        checkpoint_file(self.folder.files.as_ref(), listing, path).await.map_err(|error| {
            let name = self.folder.file_name(path.as_ref());
            match &error {
                object_store::Error::Generic { source, .. } if source.is::<Differs>() => {
                    corrupt(&name, source).dataset(&self.dataset)
                }
                _ => store_error("reading", &name, &error),
            }
        })
    }

    /// Compares every file of the log with its checksum, and tells `found` what came of it. Calls `pause` before each read. A file
    /// that goes meanwhile is left out.
    ///
    /// # Errors
    /// The log cannot be listed.
    pub(crate) async fn check<F: Future<Output = ()>>(
        &self,
        pause: impl Fn() -> F,
        mut found: impl FnMut(Result<Checked>),
    ) -> Result<()> {
        let listing = self.listing().await?;
        for version in listing.entries() {
            pause().await;
            match self.read(version).await {
                Ok(Some(entry)) if entry.sealed => found(Ok(Checked::Whole)),
                Ok(Some(_)) => found(Ok(Checked::NoChecksums)),
                Ok(None) => {}
                Err(error) => found(Err(error)),
            }
        }
        for path in listing.checkpoints().into_values().flatten() {
            pause().await;
            let checked = self.checked(&listing, path).await.map(|(_, checked)| checked);
            let gone = || async { self.folder.files.head(path).await };
            if checked.is_ok() || !matches!(gone().await, Err(object_store::Error::NotFound { .. })) {
                found(checked);
            }
        }
        Ok(())
    }

    /// Version of the newest checkpoint; 0 without one.
    pub(crate) async fn last_checkpoint(&self) -> Result<u64> {
        Ok(self.listing().await?.checkpoint().map_or(0, |c| c.0))
    }

    /// Removes entries and checkpoints from before `before_ms` that no version needs any more; `newest` is the version that the
    /// shard serves. Returns how many files it removed.
    pub(crate) async fn forget_entries(&self, newest: u64, before_ms: i64) -> Result<usize> {
        let listing = self.listing().await?;
        let gone: Vec<Path> = listing.superfluous(newest, before_ms).map(|file| file.path.clone()).collect();
        let count = gone.len();
        let mut removed = self.folder.files.delete_stream(stream::iter(gone).map(Ok).boxed());
        while let Some(one) = removed.next().await {
            match one {
                // Another shard has removed it.
                Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                Err(e) => return Err(store_error("cleaning", &self.folder.file_name(LOG_FOLDER), &e)),
            }
        }
        Ok(count)
    }

    /// The files whose removal was committed at or after `since_ms`. A read that began before may still need them.
    ///
    /// Entries are kept longer than files, so a file that no entry names was removed long ago.
    pub(crate) async fn recently_removed(&self, since_ms: i64) -> Result<BTreeSet<String>> {
        let mut removed = BTreeSet::new();
        for version in self.listing().await?.entries().rev() {
            let Some(entry) = self.read(version).await? else { break };
            if entry.committed_ms.is_some_and(|at| at < since_ms) {
                break;
            }
            removed.extend(entry.removes);
        }
        Ok(removed)
    }

    /// The newest transaction of each application, from the last checkpoint and the entries after it.
    async fn transactions(&self, listing: &Listing, newest: u64) -> Result<HashMap<String, Txn>> {
        let mut txns = HashMap::new();
        let mut next = 0;
        if let Some((checkpoint, parts)) = listing.checkpoint_before(newest) {
            for part in parts {
                txns.extend(self.checkpoint_transactions(listing, part).await?);
            }
            next = checkpoint + 1;
        }
        for version in next..=newest {
            let entry = self.read(version).await?.ok_or_else(|| {
                corrupt(&self.folder.file_name(entry_path(version).as_ref()), "the log entry is missing")
                    .dataset(&self.dataset)
            })?;
            txns.extend(entry.txns);
        }
        Ok(txns)
    }

    async fn checkpoint_transactions(&self, listing: &Listing, path: &Path) -> Result<Vec<(String, Txn)>> {
        use arrow_array::{Array, cast::AsArray, types::Int64Type};
        let name = self.folder.file_name(path.as_ref());
        let (bytes, _) = self.checked(listing, path).await?;
        let read = move || -> Result<Vec<(String, Txn)>, parquet::errors::ParquetError> {
            let metadata = ArrowReaderMetadata::load(&bytes, Default::default())?;
            let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(bytes, metadata);
            let Some(root) =
                builder.parquet_schema().root_schema().get_fields().iter().position(|f| f.name() == "txn")
            else {
                return Ok(Vec::new());
            };
            let mask = ProjectionMask::roots(builder.parquet_schema(), [root]);
            let mut txns = Vec::new();
            for batch in builder.with_projection(mask).build()? {
                let batch = batch?;
                let rows = batch.column(0).as_struct();
                let (Some(apps), Some(versions)) =
                    (rows.column_by_name("appId"), rows.column_by_name("version"))
                else {
                    continue;
                };
                let (Some(apps), Some(versions)) =
                    (apps.as_string_opt::<i32>(), versions.as_primitive_opt::<Int64Type>())
                else {
                    continue;
                };
                let updated =
                    rows.column_by_name("lastUpdated").and_then(|c| c.as_primitive_opt::<Int64Type>());
                for i in (0..rows.len()).filter(|&i| rows.is_valid(i) && apps.is_valid(i)) {
                    let updated_ms = updated.filter(|u| u.is_valid(i)).map_or(0, |u| u.value(i));
                    txns.push((apps.value(i).to_owned(), Txn { version: versions.value(i), updated_ms }));
                }
            }
            Ok(txns)
        };
        tokio::task::spawn_blocking(read)
            .await
            .map_err(|e| lost_task("reading a checkpoint", e))?
            .map_err(|e| parquet_error(&name, &e))
    }

    async fn listing(&self) -> Result<Arc<Listing>> {
        let listed = list_log(self.folder.files.as_ref(), &Path::from(LOG_FOLDER)).await;
        listed.map(Arc::new).map_err(|e| store_error("listing", &self.folder.file_name(LOG_FOLDER), &e))
    }
}

/// How the kernel reads and writes: on the runtime that it is called from, if that runtime has several threads. In tests that
/// control the order of all events it has one, and the kernel uses a thread of its own.
fn engine(store: Summed) -> Box<dyn Engine> {
    let builder = DefaultEngineBuilder::new(Arc::new(store))
        .with_buffer_size(KERNEL_FILES)
        .with_batch_size(KERNEL_LINES);
    let runtime = Handle::current();
    match runtime.runtime_flavor() {
        RuntimeFlavor::MultiThread => {
            Box::new(builder.with_task_executor(Arc::new(TokioMultiThreadExecutor::new(runtime))).build())
        }
        _ => Box::new(builder.build()),
    }
}

/// A data file as the kernel lists it.
struct Found {
    /// Encoded as in a URL.
    path: String,
    size: u64,
    /// It has a deletion vector: some of its rows are deleted.
    deletions: bool,
}

/// The definition and the files of a snapshot. Refuses tables with features that the kernel cannot read.
fn whole(snapshot: &SnapshotRef, engine: &dyn Engine) -> DeltaResult<(Definition, Vec<Found>)> {
    let metadata = snapshot.table_configuration().metadata();
    let definition = Definition {
        id: metadata.id().to_owned(),
        name: metadata.name().map(str::to_owned),
        properties: metadata.configuration().clone(),
        schema: serde_json::to_string(snapshot.schema().as_ref())?,
        created_ms: metadata.created_time().unwrap_or(0),
    };
    let scan =
        snapshot.clone().scan_builder().with_stats(StatsOptions::none()).without_row_transforms().build()?;
    let mut files = Vec::new();
    for batch in scan.scan_metadata(engine)? {
        files = batch?.visit_scan_files(files, |files: &mut Vec<Found>, file: ScanFile| {
            files.push(Found {
                path: file.path,
                size: file.size.unsigned_abs(),
                deletions: file.dv_info.has_vector(),
            });
        })?;
    }
    Ok((definition, files))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use object_store::memory::InMemory;
    use parking_lot::Mutex;
    use serde_json::{Value, json};
    use trellis_proto::Error;

    use super::{super::listing::log_file, *};
    use crate::{
        clock::WallClock,
        files::{DurableLocal, Lake, Settle},
        shard::Shard,
        testing::Grid,
    };

    /// A disk that cannot make the names in `stuck` durable.
    #[derive(Debug, Default)]
    struct Names {
        stuck: Mutex<Vec<u64>>,
    }

    #[async_trait::async_trait]
    impl Settle for Names {
        async fn settle(&self, location: &Path) -> object_store::Result<()> {
            let stuck = self
                .stuck
                .lock()
                .iter()
                .any(|version| location.as_ref().ends_with(entry_path(*version).as_ref()));
            if stuck {
                Err(object_store::Error::Generic { store: "disk", source: "it hangs".into() })
            } else {
                Ok(())
            }
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_entry_of_another_shard_is_not_believed_before_it_is_durable() {
        let grid = Grid::new().await;
        grid.import(&[("A", 0, 1.0)]).await.unwrap();
        let names = Arc::new(Names::default());
        let config = grid.shard.config.clone();
        let open = async || -> Result<Arc<Shard>, Error> {
            let lake = Lake::over(Arc::new(DurableLocal::default()), Some(names.clone()), &config.lake)?;
            Shard::over(config.clone(), lake, WallClock::system()).await
        };
        let table = open().await.unwrap().catalog.entry(&grid.table().name);
        table.refresh().await.unwrap();
        let version = || table.snapshot().unwrap().version;

        grid.import(&[("A", 1, 1.0)]).await.unwrap();
        *names.stuck.lock() = vec![1];
        table.refresh().await.unwrap_err();
        assert_eq!(version(), 0, "nobody is told of version 1");
        // nor by a shard that starts
        let starts = open().await.unwrap().catalog.entry(&grid.table().name);
        starts.refresh().await.unwrap_err();
        assert!(starts.snapshot().is_none());
        names.stuck.lock().clear();
        table.refresh().await.unwrap();
        assert_eq!(version(), 1);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn old_entries_and_checkpoints_go_when_a_later_checkpoint_covers_them() {
        let grid = Grid::new().await;
        for ts in 0..4 {
            grid.import(&[("A", ts, 1.0)]).await.unwrap();
        }
        let log = grid.table().log.clone();
        let folder = grid.path().join("_delta_log");
        let names = || {
            let files = std::fs::read_dir(&folder).unwrap();
            let mut names: Vec<_> =
                files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
            names.retain(|name| log_file(name).is_some() && !name.starts_with('.'));
            names.sort();
            names.iter().map(|name| name.trim_start_matches('0').to_owned()).collect::<Vec<_>>()
        };
        let before = log.open(0).await.unwrap().unwrap();
        log.checkpoint(2).await.unwrap();
        assert_eq!(log.forget_entries(3, 1).await.unwrap(), 0, "all of them are recent");
        let age = || {
            for file in std::fs::read_dir(&folder).unwrap() {
                let file = std::fs::File::options().write(true).open(file.unwrap().path()).unwrap();
                file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
            }
        };
        age();
        assert_eq!(log.forget_entries(1, 1).await.unwrap(), 0, "version 1 has no checkpoint");
        assert_eq!(log.forget_entries(3, 1).await.unwrap(), 2);
        assert_eq!(names(), ["2.checkpoint.parquet", "2.json", "3.json"]);
        log.checkpoint(3).await.unwrap();
        age();
        assert_eq!(log.forget_entries(3, 1).await.unwrap(), 3, "the checkpoint's checksum goes with it");
        assert_eq!(names(), ["3.checkpoint.parquet", "3.json"]);
        let after = log.open(0).await.unwrap().unwrap();
        assert_eq!((after.version, &after.definition, &after.txns), (3, &before.definition, &before.txns));
        let paths = |state: &State| state.files.iter().map(|file| file.path.clone()).collect::<BTreeSet<_>>();
        assert_eq!(paths(&after), paths(&before));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_stops_waits_for_the_kernels_calls() {
        let grid = Grid::new().await;
        grid.import(&[("A", 0, 1.0)]).await.unwrap();
        let log = grid.table().log.clone();
        let (entered, leave) =
            (Arc::new(tokio::sync::Barrier::new(2)), Arc::new(tokio::sync::Barrier::new(2)));
        let (inside, last) = (entered.clone(), leave.clone());
        let call = tokio::spawn(async move {
            let waits = move |_: &SnapshotRef, _: &dyn Engine| {
                Handle::current().block_on(async { tokio::join!(inside.wait(), last.wait()) });
                Ok(())
            };
            log.calling(&log.listing().await?, 0, waits).await
        });
        entered.wait().await;
        // the caller is gone, and its call goes on
        call.abort();
        let mut settled = std::pin::pin!(grid.shard.catalog.lake.settle());
        assert!(futures::poll!(settled.as_mut()).is_pending());
        leave.wait().await;
        settled.await;
    }

    /// A second read of a file may find other bytes than the first.
    #[tokio::test(flavor = "multi_thread")]
    async fn the_kernel_reads_only_bytes_that_were_written() {
        let grid = Grid::new().await;
        for ts in 0..3 {
            grid.import(&[("A", ts, 1.0)]).await.unwrap();
        }
        let mut log = grid.table().log.clone();
        log.checkpoint(1).await.unwrap();
        log.open(0).await.unwrap().unwrap();
        let there = log.folder.root.clone();
        let table = Path::from_url_path(log.folder.url.path()).unwrap();
        let paths: Vec<Path> = there.list(Some(&table)).map(|meta| meta.unwrap().location).collect().await;
        for damaged in [".checkpoint.parquet", "2.json"] {
            let store = InMemory::new();
            for path in &paths {
                let mut bytes = there.get(path).await.unwrap().bytes().await.unwrap().to_vec();
                if path.as_ref().ends_with(damaged) {
                    let middle = bytes.len() / 2;
                    bytes[middle] ^= 1;
                }
                store.put(path, bytes.into()).await.unwrap();
            }
            log.folder.root = Arc::new(store);
            let error = log.open(0).await.unwrap_err();
            assert_eq!(error.code(), Code::DataCorrupt);
            assert!(error.message().contains("checksum differs"), "{damaged}: {error}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_log_at_which_the_kernel_panics_is_refused_by_name() {
        let grid = Grid::new().await;
        grid.import(&[("A", 0, 1.0)]).await.unwrap();
        let log = &grid.table().log;
        let panics = |_: &SnapshotRef, _: &dyn Engine| -> DeltaResult<()> { panic!("offset out of range") };
        let error = log.calling(&log.listing().await.unwrap(), 0, panics).await.unwrap_err();
        assert_eq!(error.code(), Code::DataCorrupt);
        assert!(
            error.message().contains("_delta_log") && error.message().contains("offset out of range"),
            "{error}"
        );
        log.open(0).await.unwrap().unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_other_tools_have_made_is_read_or_refused_by_name() {
        let grid = Grid::new().await;
        grid.import(&[("A", 0, 1.0)]).await.unwrap();
        let log = grid.table().log.clone();
        let open = async |actions: &[Value]| {
            let lines: Vec<String> = actions.iter().map(Value::to_string).collect();
            let entry = grid.path().join("_delta_log/00000000000000000001.json");
            std::fs::write(entry, lines.join("\n")).unwrap();
            log.open(0).await.map(|state| state.unwrap().files)
        };
        let needs = |feature: &str| {
            json!({"protocol": {
                "minReaderVersion": 3,
                "minWriterVersion": 7,
                "readerFeatures": [feature],
                "writerFeatures": [feature],
            }})
        };
        let mut add = json!({"add": {
            "path": "a%20file.parquet",
            "partitionValues": {},
            "size": 7,
            "modificationTime": 7,
            "dataChange": true,
        }});
        let files = open(&[add.clone()]).await.unwrap();
        assert!(files.contains(&FileRef { path: "a file.parquet".to_owned(), size: 7 }), "{files:?}");
        let error = open(&[needs("aFeatureOfTomorrow")]).await.unwrap_err();
        assert_eq!(error.code(), Code::DataCorrupt, "{error}");
        assert!(error.message().contains("aFeatureOfTomorrow"), "{error}");
        assert!(open(&[needs("deletionVectors"), add.clone()]).await.is_ok());
        add["add"]["deletionVector"] = json!({
            "storageType": "u",
            "pathOrInlineDv": "vBn[lx{q8@P<9BNH/isA",
            "offset": 1,
            "sizeInBytes": 36,
            "cardinality": 2,
        });
        let error = open(&[needs("deletionVectors"), add]).await.unwrap_err();
        assert_eq!(error.code(), Code::DataCorrupt, "{error}");
        assert!(error.message().contains("a file.parquet has a deletion vector"), "{error}");
    }
}
