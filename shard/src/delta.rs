//! The Delta log of one table: open, read one entry, commit at a known version, checkpoint, remove what is no longer
//! needed. The only file that knows the Delta kernel (`buoyant_kernel` is the name that its releases have).
//!
//! Opening and checkpointing go through the kernel, which knows every form that other tools write. Commits do not: a
//! fenced writer must commit at exactly the version it has checked, or not at all. So an entry is put-if-absent at
//! `version + 1` here, and who loses looks again before anything else. Entries are followed one by one for the same
//! reason: what changed between two versions is known exactly.
//!
//! "It is there already" need not mean that somebody else has won: a client of an object store asks again by itself when
//! the server answered with an error, and then finds its own entry. So every commit has an id, which its entry carries.
//!
//! `txn` actions carry what must survive log clean-up, because checkpoints keep them: see [`crate::table`].

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use delta_kernel::{
    DeltaResult, Engine,
    scan::{StatsOptions, state::ScanFile},
    snapshot::{Snapshot, SnapshotRef},
};
use delta_kernel_default_engine::{DefaultEngineBuilder, executor::tokio::TokioMultiThreadExecutor};
use futures::{StreamExt, stream};
use object_store::{DynObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, path::Path};
use parquet::arrow::{
    ProjectionMask,
    arrow_reader::{ArrowReaderMetadata, ParquetRecordBatchReaderBuilder},
};
use serde_json::{Map, Value, json};
use tokio::runtime::{Handle, RuntimeFlavor};
use trellis_proto::{Code, DatasetName, DatasetSpec, Error, Result};

use crate::{
    error::{corrupt, lost_task, parquet_error, store_error},
    schema::{self, Life, SYMBOL, TS_NS},
    store::Folder,
};

/// The log of one table.
#[derive(Debug, Clone)]
pub(crate) struct Log {
    pub(crate) folder: Folder,
    dataset: DatasetName,
}

/// A data file as the log knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogFile {
    pub(crate) path: String,
    pub(crate) size: u64,
}

/// What a file may hold, by its statistics in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Region {
    /// Least and greatest, both included.
    pub(crate) first_symbol: String,
    pub(crate) last_symbol: String,
    pub(crate) first_ts: i64,
    pub(crate) last_ts: i64,
}

/// The newest value of one application's transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Txn {
    pub(crate) version: i64,
    pub(crate) updated_ms: i64,
}

/// A table's whole state at a version.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) version: u64,
    pub(crate) definition: Definition,
    pub(crate) files: Vec<LogFile>,
    pub(crate) txns: HashMap<String, Txn>,
}

/// What the log says of the table itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Definition {
    pub(crate) id: String,
    pub(crate) name: Option<String>,
    pub(crate) properties: HashMap<String, String>,
    pub(crate) schema: String,
    pub(crate) created_ms: i64,
}

/// One entry of the log.
#[derive(Debug, Default)]
pub(crate) struct Entry {
    pub(crate) adds: Vec<LogFile>,
    pub(crate) removes: Vec<String>,
    pub(crate) txns: Vec<(String, Txn)>,
    /// Whether rows were added or removed, rather than moved between files.
    pub(crate) data_change: bool,
    /// The committer's wall clock, if it says.
    pub(crate) committed_ms: Option<i64>,
    /// The commit's id, if it was made here or by another shard.
    commit: Option<String>,
    /// What the added files hold. Other tools cut and round their statistics, so only of an entry that a shard made.
    pub(crate) regions: Option<Vec<Region>>,
    /// The table itself became another one (schema, properties, protocol, deletion vectors): load it anew.
    pub(crate) redefined: bool,
}

/// Whether a commit took place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Committed {
    Yes,
    /// Somebody else has committed this version, so these actions never will be.
    Taken,
}

/// What a commit does, in Delta's own terms.
#[derive(Debug)]
pub(crate) struct Actions {
    /// Tells this commit from any other.
    id: String,
    lines: Vec<Value>,
}

impl Actions {
    pub(crate) fn new(operation: &str, info: Map<String, Value>, now_ms: i64) -> Self {
        let mut commit = Map::from_iter([
            ("timestamp".to_owned(), json!(now_ms)),
            ("operation".to_owned(), json!(operation)),
            ("operationParameters".to_owned(), json!({})),
            ("engineInfo".to_owned(), json!(concat!("trellis-shard:", env!("CARGO_PKG_VERSION")))),
        ]);
        commit.extend(info);
        let id = uuid::Uuid::new_v4().simple().to_string();
        commit.insert(COMMIT_KEY.to_owned(), json!(id));
        Self { id, lines: vec![json!({"commitInfo": commit})] }
    }

    /// The table itself: in its first entry, and in one that makes a dropped one another dataset.
    pub(crate) fn create(&mut self, spec: &DatasetSpec, life: &Life, now_ms: i64) {
        let definition = Definition {
            id: uuid::Uuid::new_v4().to_string(),
            name: Some(spec.dataset.to_string()),
            properties: schema::properties(spec, life).into_iter().collect(),
            schema: schema::delta_schema(spec),
            created_ms: now_ms,
        };
        self.begin(&definition, life.since == 0);
    }

    /// As [`Self::create`]; `new`: there is no table yet.
    pub(crate) fn begin(&mut self, definition: &Definition, new: bool) {
        if new {
            self.lines.push(json!({"protocol": {"minReaderVersion": 1, "minWriterVersion": 2}}));
        }
        self.metadata(definition);
    }

    /// The same table with another definition. What other tools have set stays.
    pub(crate) fn redefine(&mut self, before: &Definition, spec: &DatasetSpec, life: &Life) {
        let mut now = before.clone();
        now.properties.extend(schema::properties(spec, life));
        now.schema = schema::delta_schema(spec);
        self.metadata(&now);
    }

    fn metadata(&mut self, of: &Definition) {
        self.lines.push(json!({"metaData": {
            "id": of.id,
            "name": of.name,
            "format": {"provider": "parquet", "options": {}},
            "schemaString": of.schema,
            "partitionColumns": [],
            "createdTime": of.created_ms,
            "configuration": of.properties,
        }}));
    }

    pub(crate) fn add(&mut self, file: &LogFile, stats: &Value, data_change: bool, now_ms: i64) {
        self.lines.push(json!({"add": {
            "path": file.path,
            "partitionValues": {},
            "size": file.size,
            "modificationTime": now_ms,
            "dataChange": data_change,
            "stats": stats.to_string(),
        }}));
    }

    pub(crate) fn remove(&mut self, file: &LogFile, data_change: bool, now_ms: i64) {
        self.lines.push(json!({"remove": {
            "path": file.path,
            "deletionTimestamp": now_ms,
            "dataChange": data_change,
            "extendedFileMetadata": true,
            "partitionValues": {},
            "size": file.size,
        }}));
    }

    pub(crate) fn txn(&mut self, app: &str, version: i64, now_ms: i64) {
        self.lines.push(json!({"txn": {"appId": app, "version": version, "lastUpdated": now_ms}}));
    }

    /// The entry's bytes. The first line says how many there are: a cut between two lines leaves lines that read.
    fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut lines = self.lines.clone();
        lines[0]["commitInfo"][LINES_KEY] = json!(self.lines.len());
        for line in &lines {
            out.extend_from_slice(line.to_string().as_bytes());
            out.push(b'\n');
        }
        out
    }
}

/// In an entry's `commitInfo`: the number of its lines.
const LINES_KEY: &str = "trellisLines";
/// In an entry's `commitInfo`: the commit's id.
const COMMIT_KEY: &str = "trellisCommit";

fn entry_path(version: u64) -> Path {
    Path::from(format!("_delta_log/{version:020}.json"))
}

impl Log {
    pub(crate) fn new(dataset: &DatasetName, folder: Folder) -> Self {
        Self { folder, dataset: dataset.clone() }
    }

    /// What an error message calls a file of this table.
    pub(crate) fn file_name(&self, path: &str) -> String {
        match self.folder.url.to_file_path() {
            Ok(dir) => dir.join(path).to_string_lossy().into_owned(),
            Err(()) => format!("{}{path}", self.folder.url),
        }
    }

    /// Whether there is a table.
    pub(crate) async fn exists(&self) -> Result<bool> {
        Ok(self.listing().await?.newest().is_some())
    }

    /// Loads the newest state; `None`: there is no table.
    ///
    /// # Errors
    /// [`Code::DataCorrupt`] naming the log entry that does not read.
    pub(crate) async fn open(&self) -> Result<Option<State>> {
        let listing = self.listing().await?;
        let Some(newest) = listing.newest() else { return Ok(None) };
        // Before the kernel reads them: an empty entry is one without actions to it, so one that is restored between its look and
        // ours would be whole here and missing there.
        let txns = self.transactions(&listing, newest).await?;
        let (definition, files) = self.load(&listing, newest).await?;
        Ok(Some(State { version: newest, definition, files, txns }))
    }

    /// Calls the kernel with the table as of `version`, on a thread that may wait. A shard that stops waits for the end of the
    /// call: the kernel waits for the runtime that it was called from, and panics if that ends first.
    async fn calling<T: Send + 'static>(
        &self,
        version: u64,
        call: impl FnOnce(&SnapshotRef, &dyn Engine) -> DeltaResult<T> + Send + 'static,
    ) -> Result<DeltaResult<T>> {
        let (root, url) = (self.folder.root.clone(), self.folder.url.clone());
        let called = self.folder.calls.spawn_blocking(move || {
            let engine = engine(root);
            let snapshot = Snapshot::builder_for(url).at_version(version).build(engine.as_ref())?;
            call(&snapshot, engine.as_ref())
        });
        called.await.map_err(|e| lost_task("reading or writing the log", e))
    }

    async fn load(&self, listing: &Listing, newest: u64) -> Result<(Definition, Vec<LogFile>)> {
        let refuse =
            |why: &dyn std::fmt::Display| corrupt(&self.file_name("_delta_log"), why).dataset(&self.dataset);
        let (definition, found) = match self.calling(newest, whole).await? {
            Ok(loaded) => loaded,
            Err(error) => {
                // The kernel does not say which entry it stumbled over; the usual one is the newest.
                for version in listing.entries().rev() {
                    self.read(version).await?;
                }
                return Err(refuse(&error));
            }
        };
        let mut files = Vec::with_capacity(found.len());
        for file in found {
            let path = decoded(&file.path).map_err(|e| refuse(&e))?;
            if file.deletions {
                return Err(Error::new(
                    Code::DataCorrupt,
                    format!("{} has a deletion vector, which is not supported", self.file_name(&path)),
                )
                .dataset(&self.dataset)
                .hint("rewrite the table without deletion vectors (OPTIMIZE or PURGE in the tool that made them)"));
            }
            files.push(LogFile { path, size: file.size });
        }
        Ok((definition, files))
    }

    /// Reads the entry of `version`; `None`: it has not been committed.
    ///
    /// # Errors
    /// [`Code::DataCorrupt`] naming the entry, if it is not whole.
    pub(crate) async fn read(&self, version: u64) -> Result<Option<Entry>> {
        let path = entry_path(version);
        let bytes = match self.folder.files.get(&path).await {
            Ok(found) => {
                found.bytes().await.map_err(|e| store_error("reading", &self.file_name(path.as_ref()), &e))?
            }
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(e) => return Err(store_error("reading", &self.file_name(path.as_ref()), &e)),
        };
        parse_entry(&bytes).map(Some).map_err(|why| {
            corrupt(&self.file_name(path.as_ref()), format!("the log entry is not whole: {why}"))
                .dataset(&self.dataset)
        })
    }

    /// Commits `actions` as `version`, if nobody has. On the disk, or in the store's own guarantee, when it returns.
    ///
    /// After an error the commit may have taken place, or may still do so: the answer may have been lost, or the request
    /// may be on its way.
    pub(crate) async fn commit(&self, version: u64, actions: &Actions) -> Result<Committed> {
        let path = entry_path(version);
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match self.folder.files.put_opts(&path, PutPayload::from(actions.bytes()), options).await {
            Ok(_) => Ok(Committed::Yes),
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                let there = self.read(version).await?;
                let ours = there.is_some_and(|entry| entry.commit.as_ref() == Some(&actions.id));
                Ok(if ours { Committed::Yes } else { Committed::Taken })
            }
            Err(e) => Err(store_error("committing", &self.file_name(path.as_ref()), &e)),
        }
    }

    /// Writes a checkpoint of `version`, so that the next start need not read every entry.
    pub(crate) async fn checkpoint(&self, version: u64) -> Result<()> {
        let written = self.calling(version, |snapshot, engine| snapshot.checkpoint(engine, None).map(|_| ()));
        written.await?.map_err(|e| store_error("writing a checkpoint of", &self.file_name("_delta_log"), &e))
    }

    /// Version of the newest checkpoint; 0 without one.
    pub(crate) async fn last_checkpoint(&self) -> Result<u64> {
        Ok(self.listing().await?.checkpoint().map_or(0, |c| c.0))
    }

    /// Removes entries and checkpoints from before `before_ms` that a later checkpoint has made superfluous; `newest` is the
    /// version that is served. Returns how many.
    pub(crate) async fn forget_entries(&self, newest: u64, before_ms: i64) -> Result<usize> {
        let listing = self.listing().await?;
        let gone: Vec<Path> = listing.superfluous(newest, before_ms).map(|part| part.path.clone()).collect();
        let count = gone.len();
        let mut removed = self.folder.files.delete_stream(stream::iter(gone).map(Ok).boxed());
        while let Some(one) = removed.next().await {
            match one {
                // Another shard has removed it.
                Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                Err(e) => return Err(store_error("cleaning", &self.file_name("_delta_log"), &e)),
            }
        }
        Ok(count)
    }

    /// The files whose removal was committed at or after `since_ms`: whoever began to read before may still need them.
    ///
    /// Entries are kept for longer than files are, so what no entry mentions was removed long ago.
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

    /// The newest value of every application's transaction, from the last checkpoint and the entries after it.
    async fn transactions(&self, listing: &Listing, newest: u64) -> Result<HashMap<String, Txn>> {
        let mut txns = HashMap::new();
        let mut next = 0;
        if let Some((version, parts)) = listing.checkpoint() {
            for part in parts {
                txns.extend(self.checkpoint_transactions(part).await?);
            }
            next = version + 1;
        }
        for version in next..=newest {
            let entry = self.read(version).await?.ok_or_else(|| {
                corrupt(&self.file_name(entry_path(version).as_ref()), "the log entry is missing")
                    .dataset(&self.dataset)
            })?;
            txns.extend(entry.txns);
        }
        Ok(txns)
    }

    async fn checkpoint_transactions(&self, path: &Path) -> Result<Vec<(String, Txn)>> {
        use arrow_array::{Array, cast::AsArray, types::Int64Type};
        let name = self.file_name(path.as_ref());
        let found = self.folder.files.get(path).await.map_err(|e| store_error("reading", &name, &e))?;
        let bytes = found.bytes().await.map_err(|e| store_error("reading", &name, &e))?;
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

    async fn listing(&self) -> Result<Listing> {
        let prefix = Path::from("_delta_log");
        let mut listed = self.folder.files.list(Some(&prefix));
        let mut parts = Vec::new();
        while let Some(meta) = listed.next().await {
            let meta = meta.map_err(|e| store_error("listing", &self.file_name("_delta_log"), &e))?;
            // Other tools have folders of their own in there.
            let name = meta
                .location
                .prefix_match(&prefix)
                .and_then(|mut rest| rest.next().filter(|_| rest.next().is_none()));
            if let Some((version, kind)) = name.and_then(|name| part_of(name.as_ref())) {
                let modified_ms = meta.last_modified.timestamp_millis();
                parts.push(Part { version, kind, path: meta.location, modified_ms });
            }
        }
        parts.sort_unstable_by(|a, b| (a.version, &a.path).cmp(&(b.version, &b.path)));
        Ok(Listing { parts })
    }
}

/// How the kernel reads and writes: on the runtime that it is called from, if that has a thread for it while this one waits.
/// Else (tests that control the order of everything) on a thread of its own.
fn engine(store: Arc<DynObjectStore>) -> Box<dyn Engine> {
    let builder = DefaultEngineBuilder::new(store);
    let runtime = Handle::current();
    match runtime.runtime_flavor() {
        RuntimeFlavor::MultiThread => {
            Box::new(builder.with_task_executor(Arc::new(TokioMultiThreadExecutor::new(runtime))).build())
        }
        _ => Box::new(builder.build()),
    }
}

/// A data file as the kernel finds it.
struct Found {
    /// Encoded as a URL.
    path: String,
    size: u64,
    /// Some of its rows are deleted.
    deletions: bool,
}

/// All that a snapshot says. Refuses tables that need what the kernel cannot read.
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

/// A file of the log that states are read from.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    version: u64,
    kind: Kind,
    path: Path,
    modified_ms: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Entry,
    /// One of so many files that together are a checkpoint.
    Checkpoint {
        of: usize,
    },
}

/// What a file in `_delta_log` is, by its name.
fn part_of(name: &str) -> Option<(u64, Kind)> {
    let (digits, rest) = name.split_at_checked(20)?;
    let version = digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())??;
    let kind = match rest.split('.').collect::<Vec<_>>()[..] {
        ["", "json"] => Kind::Entry,
        // Of Delta's second kind if it has an id.
        ["", "checkpoint", "parquet"] | ["", "checkpoint", _, "parquet"] => Kind::Checkpoint { of: 1 },
        ["", "checkpoint", _, of, "parquet"] => Kind::Checkpoint { of: of.parse().ok()? },
        _ => return None,
    };
    Some((version, kind))
}

/// What lies in `_delta_log`, by version.
#[derive(Debug)]
struct Listing {
    parts: Vec<Part>,
}

impl Listing {
    /// The versions of the entries, in order.
    fn entries(&self) -> impl DoubleEndedIterator<Item = u64> + '_ {
        self.parts.iter().filter(|part| part.kind == Kind::Entry).map(|part| part.version)
    }

    /// The files of each checkpoint. One that is not all there is none: whoever writes it has not ended.
    fn checkpoints(&self) -> BTreeMap<u64, Vec<&Path>> {
        let mut found: BTreeMap<(u64, usize), Vec<&Path>> = BTreeMap::new();
        for part in &self.parts {
            if let Kind::Checkpoint { of } = part.kind {
                found.entry((part.version, of)).or_default().push(&part.path);
            }
        }
        let all_there = found.into_iter().filter(|((_, of), files)| files.len() >= *of);
        all_there.map(|((version, _), files)| (version, files)).collect()
    }

    /// The newest checkpoint.
    fn checkpoint(&self) -> Option<(u64, Vec<&Path>)> {
        self.checkpoints().pop_last()
    }

    fn newest(&self) -> Option<u64> {
        self.entries().next_back().max(self.checkpoint().map(|c| c.0))
    }

    /// What nobody needs who reads `newest`, or a version with a file from `before_ms` or later, or any version after one of
    /// them: all before the last checkpoint that each of these can be read from.
    fn superfluous(&self, newest: u64, before_ms: i64) -> impl Iterator<Item = &Part> {
        let recent = self.parts.iter().filter(|part| part.modified_ms >= before_ms).map(|part| part.version);
        let first = recent.fold(newest, u64::min);
        let from = self.checkpoints().range(..=first).next_back().map_or(0, |(version, _)| *version);
        self.parts.iter().filter(move |part| part.version < from)
    }
}

/// Parses one entry: a JSON object in each line. The reason why not is a clause for an error message.
pub(crate) fn parse_entry(bytes: &[u8]) -> Result<Entry, String> {
    let text = std::str::from_utf8(bytes).map_err(|e| e.to_string())?;
    let mut entry = Entry::default();
    let mut lines = 0;
    let mut expected = None;
    let mut regions = Some(Vec::new());
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let action: Value = serde_json::from_str(line).map_err(|e| format!("line {}: {e}", i + 1))?;
        lines += 1;
        if let Some(add) = action.get("add") {
            entry.data_change |= add["dataChange"].as_bool().unwrap_or(true);
            entry.redefined |= add.get("deletionVector").is_some_and(|dv| !dv.is_null());
            let size =
                add["size"].as_u64().ok_or_else(|| format!("line {}: a file without a size", i + 1))?;
            entry.adds.push(LogFile { path: file_path(add, i)?, size });
            regions = regions.zip(region(add)).map(|(mut all, one)| {
                all.push(one);
                all
            });
        } else if let Some(remove) = action.get("remove") {
            entry.data_change |= remove["dataChange"].as_bool().unwrap_or(true);
            entry.removes.push(file_path(remove, i)?);
        } else if let Some(txn) = action.get("txn") {
            let (Some(app), Some(version)) = (txn["appId"].as_str(), txn["version"].as_i64()) else {
                return Err(format!("line {}: a transaction without an application or version", i + 1));
            };
            let updated_ms = txn["lastUpdated"].as_i64().unwrap_or(0);
            entry.txns.push((app.to_owned(), Txn { version, updated_ms }));
        } else if action.get("metaData").is_some() || action.get("protocol").is_some() {
            entry.redefined = true;
        } else if let Some(info) = action.get("commitInfo") {
            expected = info[LINES_KEY].as_u64();
            entry.commit = info[COMMIT_KEY].as_str().map(str::to_owned);
            entry.committed_ms = info["timestamp"].as_i64();
        }
    }
    if let Some(expected) = expected.filter(|&expected| expected != lines) {
        return Err(format!("line {}: the end, after {lines} of {expected} lines", lines + 1));
    }
    if lines == 0 {
        return Err("it is empty".to_owned());
    }
    entry.regions = regions.filter(|_| entry.commit.is_some());
    Ok(entry)
}

fn region(add: &Value) -> Option<Region> {
    let stats: Value = serde_json::from_str(add["stats"].as_str()?).ok()?;
    let (least, greatest) = (&stats["minValues"], &stats["maxValues"]);
    Some(Region {
        first_symbol: least[SYMBOL].as_str()?.to_owned(),
        last_symbol: greatest[SYMBOL].as_str()?.to_owned(),
        first_ts: least[TS_NS].as_i64()?,
        last_ts: greatest[TS_NS].as_i64()?,
    })
}

fn file_path(action: &Value, line: usize) -> Result<String, String> {
    let encoded =
        action["path"].as_str().ok_or_else(|| format!("line {}: a file without a path", line + 1))?;
    decoded(encoded).map_err(|e| format!("line {}: {e}", line + 1))
}

/// A data file's path, which the log has encoded as a URL.
fn decoded(path: &str) -> Result<String, object_store::path::Error> {
    Path::from_url_path(path).map(|p| p.to_string())
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use proptest::prelude::*;

    use super::*;
    use crate::testing::Grid;

    fn is_checkpoint(parts: &[Part], version: u64) -> bool {
        let here: Vec<_> = parts.iter().filter(|part| part.version == version).collect();
        here.iter().any(|part| part.kind == Kind::Checkpoint { of: 1 })
            || here.iter().filter(|part| part.kind == Kind::Checkpoint { of: 2 }).count() == 2
    }

    /// Whether there is a way to `version`: a checkpoint, or the empty table, and every entry after it.
    fn readable(parts: &[Part], version: u64) -> bool {
        let entry = |of: u64| parts.iter().any(|part| part.kind == Kind::Entry && part.version == of);
        (0..=version).all(entry)
            || (0..=version).any(|from| is_checkpoint(parts, from) && (from + 1..=version).all(entry))
    }

    proptest! {
        /// A file goes only if every version that may still be read has a checkpoint to begin with that comes after it. So
        /// all these versions can be read that could before, whichever of those files are gone already.
        #[test]
        fn what_goes_from_the_log_is_what_no_version_needs_that_may_be_read(
            files in prop::collection::btree_map((0u64..8, 0usize..4), 0i64..6, 0..24),
            newest in 0u64..9,
            before_ms in 0i64..7,
            left in prop::collection::vec(any::<bool>(), 24),
        ) {
            let named = |((version, what), modified_ms): ((u64, usize), i64)| {
                let end = match what {
                    0 => ".json",
                    1 => ".checkpoint.parquet",
                    2 => ".checkpoint.0000000001.0000000002.parquet",
                    _ => ".checkpoint.0000000002.0000000002.parquet",
                };
                let name = format!("{version:020}{end}");
                let (version, kind) = part_of(&name).unwrap();
                Part { version, kind, path: Path::from(name), modified_ms }
            };
            let parts: Vec<Part> = files.into_iter().map(named).collect();
            let recent = |of: u64| parts.iter().any(|part| part.version <= of && part.modified_ms >= before_ms);
            let read: Vec<u64> = (0..=newest).filter(|version| *version == newest || recent(*version)).collect();
            let needless = |part: &&Part| {
                read.iter().all(|version| (part.version + 1..=*version).any(|from| is_checkpoint(&parts, from)))
            };
            let expected: Vec<&Part> = parts.iter().filter(needless).collect();
            let listing = Listing { parts: parts.clone() };
            let gone: Vec<&Part> = listing.superfluous(newest, before_ms).collect();
            prop_assert_eq!(&gone, &expected);
            let mut left = left.into_iter();
            let rest: Vec<Part> = parts.iter()
                .filter(|part| !gone.contains(part) || left.next().unwrap_or(false)).cloned().collect();
            for version in read {
                prop_assert!(!readable(&parts, version) || readable(&rest, version), "version {}", version);
            }
        }
    }

    #[test]
    fn a_file_of_the_log_is_what_its_name_says() {
        let of = |rest: &str| part_of(&format!("00000000000000000012{rest}"));
        assert_eq!(of(".json"), Some((12, Kind::Entry)));
        assert_eq!(of(".checkpoint.parquet"), Some((12, Kind::Checkpoint { of: 1 })));
        let id = ".checkpoint.80a083e8-7026-4e79-81be-64bd76c43a11.parquet";
        assert_eq!(of(id), Some((12, Kind::Checkpoint { of: 1 })));
        assert_eq!(of(".checkpoint.0000000003.0000000010.parquet"), Some((12, Kind::Checkpoint { of: 10 })));
        for other in [".crc", ".00000000000000000014.compacted.json", ".checkpoint", "0.json", ""] {
            assert_eq!(of(other), None, "{other}");
        }
        assert_eq!(part_of("+0000000000000000012.json"), None);
        assert_eq!(part_of("_last_checkpoint"), None);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn old_entries_and_checkpoints_go_when_a_later_checkpoint_covers_them() {
        let grid = Grid::new().await;
        for ts in 0..4 {
            grid.import(&[("A", ts, 1.0)]).await.unwrap();
        }
        let log = grid.dataset().table.log.clone();
        let folder = grid.path().join("_delta_log");
        let names = || {
            let files = std::fs::read_dir(&folder).unwrap();
            let mut names: Vec<_> =
                files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
            names.retain(|name| part_of(name).is_some());
            names.sort();
            names.iter().map(|name| name.trim_start_matches('0').to_owned()).collect::<Vec<_>>()
        };
        let before = log.open().await.unwrap().unwrap();
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
        assert_eq!(log.forget_entries(3, 1).await.unwrap(), 2);
        assert_eq!(names(), ["3.checkpoint.parquet", "3.json"]);
        let after = log.open().await.unwrap().unwrap();
        assert_eq!((after.version, &after.definition, &after.txns), (3, &before.definition, &before.txns));
        let paths = |state: &State| state.files.iter().map(|file| file.path.clone()).collect::<BTreeSet<_>>();
        assert_eq!(paths(&after), paths(&before));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_stops_waits_for_the_kernels_calls() {
        let grid = Grid::new().await;
        grid.import(&[("A", 0, 1.0)]).await.unwrap();
        let log = grid.dataset().table.log.clone();
        let (entered, leave) =
            (Arc::new(tokio::sync::Barrier::new(2)), Arc::new(tokio::sync::Barrier::new(2)));
        let (inside, last) = (entered.clone(), leave.clone());
        let call = tokio::spawn(async move {
            let waits = move |_: &SnapshotRef, _: &dyn Engine| {
                Handle::current().block_on(async { tokio::join!(inside.wait(), last.wait()) });
                Ok(())
            };
            log.calling(0, waits).await
        });
        entered.wait().await;
        // the caller is gone, and its call goes on
        call.abort();
        let mut settled = std::pin::pin!(grid.shard.catalog.lake.settle());
        assert!(futures::poll!(settled.as_mut()).is_pending());
        leave.wait().await;
        settled.await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_other_tools_have_made_is_read_or_refused_by_name() {
        let grid = Grid::new().await;
        grid.import(&[("A", 0, 1.0)]).await.unwrap();
        let log = grid.dataset().table.log.clone();
        let open = async |actions: &[Value]| {
            let lines: Vec<String> = actions.iter().map(Value::to_string).collect();
            let entry = grid.path().join("_delta_log/00000000000000000001.json");
            std::fs::write(entry, lines.join("\n")).unwrap();
            log.open().await.map(|state| state.unwrap().files)
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
        assert!(files.contains(&LogFile { path: "a file.parquet".to_owned(), size: 7 }), "{files:?}");
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

    #[test]
    fn an_entry_reads_back_as_it_was_committed() {
        let mut actions = Actions::new("WRITE", Map::new(), 7);
        let file = LogFile { path: "part-1.parquet".to_owned(), size: 12 };
        actions.add(&file, &json!({"numRecords": 1}), true, 7);
        actions.remove(&LogFile { path: "part-0.parquet".to_owned(), size: 1 }, false, 7);
        actions.txn("app", 3, 7);
        let entry = parse_entry(&actions.bytes()).unwrap();
        assert_eq!(entry.adds, [file]);
        assert_eq!(entry.removes, ["part-0.parquet"]);
        assert_eq!(entry.txns, [("app".to_owned(), Txn { version: 3, updated_ms: 7 })]);
        assert!(entry.data_change && !entry.redefined);
    }

    #[test]
    fn a_torn_entry_says_at_which_line() {
        let mut actions = Actions::new("WRITE", Map::new(), 7);
        actions.txn("app", 3, 7);
        let bytes = actions.bytes();
        for cut in 1..bytes.len() - 1 {
            assert!(parse_entry(&bytes[..cut]).unwrap_err().starts_with("line "), "cut at {cut}");
        }
        assert_eq!(parse_entry(b"").unwrap_err(), "it is empty");
    }
}
