//! The Delta log of one table: open, read one entry, commit at a known version, checkpoint, remove what is no longer
//! needed. The only file that knows the `deltalake-core` library.
//!
//! Opening and checkpointing go through the library, which knows every form that other tools write. Commits do not: its
//! commit loop retries at whatever version is free, while a fenced writer must commit at exactly the version it has
//! checked, or not at all. So an entry is put-if-absent at `version + 1` here, and who loses looks again before anything
//! else. Entries are followed one by one for the same reason: what changed between two versions is known exactly.
//!
//! "It is there already" need not mean that somebody else has won: a client of an object store asks again by itself when
//! the server answered with an error, and then finds its own entry. So every commit has an id, which its entry carries.
//!
//! `txn` actions carry what must survive log clean-up, because checkpoints keep them: see [`crate::table`].

use std::{
    collections::{BTreeSet, HashMap},
    future::Future,
};

use deltalake_core::{DeltaTable, checkpoints, logstore::LogStoreRef};
use futures::{StreamExt, TryStreamExt};
use object_store::{ObjectStoreExt, PutMode, PutOptions, PutPayload, path::Path};
use parquet::arrow::{
    ProjectionMask,
    arrow_reader::{ArrowReaderMetadata, ParquetRecordBatchReaderBuilder},
};
use serde_json::{Map, Value, json};
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
    store: LogStoreRef,
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
        let store = deltalake_core::logstore::default_logstore(
            folder.files.clone(),
            folder.root.clone(),
            &folder.url,
            &Default::default(),
        );
        Self { folder, dataset: dataset.clone(), store }
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
        // Before the library reads them: an empty entry is one without actions to it, so one that is restored between its look and
        // ours would be whole here and missing there.
        let txns = self.transactions(&listing, newest).await?;
        let log = self.clone();
        let (definition, files) = self.calling(async move { log.load(&listing, newest).await }).await??;
        Ok(Some(State { version: newest, definition, files, txns }))
    }

    /// Runs a call of the library as a task of its own, whose end a shard that stops waits for: the library blocks a thread on the
    /// runtime that it was called from, and panics if that ends first.
    async fn calling<T: Send + 'static>(&self, call: impl Future<Output = T> + Send + 'static) -> Result<T> {
        self.folder.calls.spawn(call).await.map_err(|e| lost_task("reading the log", e))
    }

    async fn load(&self, listing: &Listing, newest: u64) -> Result<(Definition, Vec<LogFile>)> {
        let mut table = DeltaTable::new(self.store.clone());
        if let Err(error) = table.load_version(newest).await {
            // The library does not say which entry it stumbled over; the usual one is the newest.
            for &version in listing.entries.iter().rev() {
                self.read(version).await?;
            }
            return Err(corrupt(&self.file_name("_delta_log"), error).dataset(&self.dataset));
        }
        let load = |error: deltalake_core::DeltaTableError| {
            corrupt(&self.file_name("_delta_log"), error).dataset(&self.dataset)
        };
        let snapshot = table.snapshot().map_err(load)?.snapshot();
        let metadata = snapshot.metadata();
        let definition = Definition {
            id: metadata.id().to_owned(),
            name: metadata.name().map(str::to_owned),
            properties: metadata.configuration().clone(),
            schema: serde_json::to_string(snapshot.schema().as_ref())
                .map_err(|e| corrupt(&self.file_name("_delta_log"), e).dataset(&self.dataset))?,
            created_ms: metadata.created_time().unwrap_or(0),
        };
        let views: Vec<_> =
            snapshot.file_views(self.store.as_ref(), None).try_collect().await.map_err(load)?;
        let mut files = Vec::with_capacity(views.len());
        for view in &views {
            if view.deletion_vector_descriptor().is_some() {
                return Err(Error::new(
                    Code::DataCorrupt,
                    format!("{} has a deletion vector, which is not supported", self.file_name(&view.path())),
                )
                .dataset(&self.dataset)
                .hint("rewrite the table without deletion vectors (OPTIMIZE or PURGE in the tool that made them)"));
            }
            files.push(LogFile {
                path: view.object_store_path().to_string(),
                size: view.size().unsigned_abs(),
            });
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
        let mut table = DeltaTable::new(self.store.clone());
        let written = self.calling(async move {
            table.load_version(version).await?;
            checkpoints::create_checkpoint(&table, None).await
        });
        written.await?.map_err(|e| store_error("writing a checkpoint of", &self.file_name("_delta_log"), &e))
    }

    /// Version of the newest checkpoint; 0 without one.
    pub(crate) async fn last_checkpoint(&self) -> Result<u64> {
        Ok(self.listing().await?.checkpoint.map_or(0, |c| c.0))
    }

    /// Removes log entries from before `before_ms` that a checkpoint before then has made superfluous.
    pub(crate) async fn forget_entries(&self, version: u64, before_ms: i64) -> Result<usize> {
        let store = self.store.clone();
        let cleaned = self.calling(async move {
            checkpoints::cleanup_expired_logs_for(version, store.as_ref(), before_ms, None).await
        });
        cleaned.await?.map_err(|e| store_error("cleaning", &self.file_name("_delta_log"), &e))
    }

    /// The files whose removal was committed at or after `since_ms`: whoever began to read before may still need them.
    ///
    /// Entries are kept for longer than files are, so what no entry mentions was removed long ago.
    pub(crate) async fn recently_removed(&self, since_ms: i64) -> Result<BTreeSet<String>> {
        let mut removed = BTreeSet::new();
        for version in self.listing().await?.entries.into_iter().rev() {
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
        if let Some((version, parts)) = &listing.checkpoint {
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
        let mut listing = Listing::default();
        let mut checkpoints: Vec<(u64, Path)> = Vec::new();
        while let Some(meta) = listed.next().await {
            let meta = meta.map_err(|e| store_error("listing", &self.file_name("_delta_log"), &e))?;
            let Some(name) = meta.location.filename() else { continue };
            let Some(version) = name.get(..20).and_then(|digits| digits.parse::<u64>().ok()) else {
                continue;
            };
            match &name[20..] {
                ".json" => listing.entries.push(version),
                rest if rest.starts_with(".checkpoint") && rest.ends_with(".parquet") => {
                    checkpoints.push((version, meta.location));
                }
                _ => {}
            }
        }
        listing.entries.sort_unstable();
        if let Some(version) = checkpoints.iter().map(|c| c.0).max() {
            let parts = checkpoints.into_iter().filter(|c| c.0 == version).map(|c| c.1).collect();
            listing.checkpoint = Some((version, parts));
        }
        Ok(listing)
    }
}

/// What lies in `_delta_log`.
#[derive(Debug, Default)]
struct Listing {
    entries: Vec<u64>,
    checkpoint: Option<(u64, Vec<Path>)>,
}

impl Listing {
    fn newest(&self) -> Option<u64> {
        self.entries.last().copied().max(self.checkpoint.as_ref().map(|c| c.0))
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
    Path::from_url_path(encoded).map(|p| p.to_string()).map_err(|e| format!("line {}: {e}", line + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

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
