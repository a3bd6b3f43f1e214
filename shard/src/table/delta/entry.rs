//! One entry of the Delta log: the actions that a commit writes, and how they read back. Pure.

use std::collections::HashMap;

use object_store::path::Path;
use serde_json::{Map, Value, json};
use trellis_proto::DatasetSpec;

use crate::files::{
    CHECKSUM_LEN, FileRef, Life, SYMBOL, TS_NS, checksum_text, delta_schema, table_properties,
};

/// How an entry of a shard begins. The checksum of all bytes after it follows, as text.
const OPENING: &[u8] = br#"{"commitInfo":{"trellisChecksum":""#;

/// In an entry's `commitInfo`: its checksum.
const CHECKSUM_KEY: &[u8] = br#""trellisChecksum":""#;

/// In an entry's `commitInfo`: the number of its lines. Entries of earlier releases have it in place of a checksum.
const LINES_KEY: &str = "trellisLines";

/// In an entry's `commitInfo`: the commit's id.
const COMMIT_KEY: &str = "trellisCommit";

/// Bounds of the rows of a file, by its statistics in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Region {
    /// Least and greatest values; both occur.
    pub(crate) first_symbol: String,
    pub(crate) last_symbol: String,
    pub(crate) first_ts: i64,
    pub(crate) last_ts: i64,
}

/// The newest transaction of one application.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Txn {
    pub(crate) version: i64,
    pub(crate) updated_ms: i64,
}

/// The definition of a table.
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
    pub(crate) adds: Vec<FileRef>,
    pub(crate) removes: Vec<String>,
    pub(crate) txns: Vec<(String, Txn)>,
    /// Whether rows were added or removed, rather than moved between files.
    pub(crate) data_change: bool,
    /// The wall clock of the committer; `None` if the entry does not have it.
    pub(crate) committed_ms: Option<i64>,
    /// The commit's id, if a shard made it.
    commit: Option<String>,
    /// Bounds of the added files, if a shard made the entry. Other tools cut and round their statistics.
    pub(crate) regions: Option<Vec<Region>>,
    /// Whether it has a checksum, with which it agrees.
    pub(crate) sealed: bool,
    /// The definition of the table changed (schema, properties, protocol, deletion vectors): load the table anew.
    pub(crate) redefined: bool,
}

impl Entry {
    /// Whether these actions made this entry.
    pub(super) fn is_of(&self, actions: &Actions) -> bool {
        self.commit.as_ref() == Some(&actions.id)
    }
}

/// The actions of a commit, in Delta's terms.
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

    /// Adds the definition of the table. The first entry of a table has one, and so has the entry by which a new dataset
    /// takes the table of a dropped one.
    pub(crate) fn create(&mut self, spec: &DatasetSpec, life: &Life, now_ms: i64) {
        let definition = Definition {
            id: uuid::Uuid::new_v4().to_string(),
            name: Some(spec.dataset.to_string()),
            properties: table_properties(spec, life).into_iter().collect(),
            schema: delta_schema(spec),
            created_ms: now_ms,
        };
        self.begin(&definition, life.since == 0);
    }

    /// Like [`Self::create`], but with a given definition. `new`: there is no table yet.
    pub(crate) fn begin(&mut self, definition: &Definition, new: bool) {
        if new {
            self.lines.push(json!({"protocol": {"minReaderVersion": 1, "minWriterVersion": 2}}));
        }
        self.metadata(definition);
    }

    /// Gives the table another definition. Properties that other tools have set stay.
    pub(crate) fn redefine(&mut self, before: &Definition, spec: &DatasetSpec, life: &Life) {
        let mut now = before.clone();
        now.properties.extend(table_properties(spec, life));
        now.schema = delta_schema(spec);
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

    pub(crate) fn add(&mut self, file: &FileRef, stats: &Value, data_change: bool, now_ms: i64) {
        self.lines.push(json!({"add": {
            "path": file.path,
            "partitionValues": {},
            "size": file.size,
            "modificationTime": now_ms,
            "dataChange": data_change,
            "stats": stats.to_string(),
        }}));
    }

    pub(crate) fn remove(&mut self, file: &FileRef, data_change: bool, now_ms: i64) {
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

    /// The bytes of the entry, which begins with the checksum of all that follows it.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut rest = b"\"".to_vec();
        for (i, line) in self.lines.iter().enumerate() {
            let text = line.to_string();
            match text.strip_prefix(r#"{"commitInfo":{"#).filter(|_| i == 0) {
                Some(info) => rest.extend([b",", info.as_bytes()].concat()),
                None => rest.extend(text.as_bytes()),
            }
            rest.push(b'\n');
        }
        [OPENING, checksum_text(&rest).as_bytes(), &rest].concat()
    }
}

/// What the checksum of an entry says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sealed {
    Yes,
    /// Another tool or an earlier release wrote the entry, without a checksum.
    No,
}

/// Compares the bytes of an entry with its checksum.
pub(super) fn check_entry(bytes: &[u8]) -> Result<Sealed, String> {
    let differ = || "its bytes are not those that were written: the checksum differs".to_owned();
    match bytes.strip_prefix(OPENING).and_then(|rest| rest.split_at_checked(CHECKSUM_LEN)) {
        Some((sum, rest)) if checksum_text(rest).as_bytes() == sum => Ok(Sealed::Yes),
        Some(_) => Err(differ()),
        // The opening itself is damaged.
        None if bytes.windows(CHECKSUM_KEY.len()).any(|part| part == CHECKSUM_KEY) => Err(differ()),
        None => Ok(Sealed::No),
    }
}

/// Parses one entry: a JSON object in each line. The error is a clause for a message.
pub(crate) fn parse_entry(bytes: &[u8]) -> Result<Entry, String> {
    let sealed = check_entry(bytes)?;
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
            entry.adds.push(FileRef { path: file_path(add, i)?, size });
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
    if sealed == Sealed::No && expected.is_none() && entry.commit.is_some() {
        return Err("a shard wrote it, and it has no checksum".to_owned());
    }
    entry.sealed = sealed == Sealed::Yes;
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

/// A data file's path; the log has it encoded as in a URL.
pub(super) fn decoded(path: &str) -> Result<String, object_store::path::Error> {
    Path::from_url_path(path).map(|p| p.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_reads_back_as_it_was_committed() {
        let mut actions = Actions::new("WRITE", Map::new(), 7);
        let file = FileRef { path: "part-1.parquet".to_owned(), size: 12 };
        actions.add(&file, &json!({"numRecords": 1}), true, 7);
        actions.remove(&FileRef { path: "part-0.parquet".to_owned(), size: 1 }, false, 7);
        actions.txn("app", 3, 7);
        let entry = parse_entry(&actions.bytes()).unwrap();
        assert_eq!(entry.adds, [file]);
        assert_eq!(entry.removes, ["part-0.parquet"]);
        assert_eq!(entry.txns, [("app".to_owned(), Txn { version: 3, updated_ms: 7 })]);
        assert!(entry.data_change && !entry.redefined);
    }

    #[test]
    fn an_entry_that_is_cut_or_has_a_flipped_bit_is_refused() {
        let mut actions = Actions::new("WRITE", Map::new(), 7);
        actions.txn("app", 3, 7);
        let mut bytes = actions.bytes();
        assert!(parse_entry(&bytes).unwrap().sealed);
        for cut in 0..bytes.len() {
            assert!(parse_entry(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        for bit in 0..8 * bytes.len() {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(parse_entry(&bytes).is_err(), "bit {bit}: {}", String::from_utf8_lossy(&bytes));
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        assert_eq!(parse_entry(b"").unwrap_err(), "it is empty");
    }

    #[test]
    fn an_entry_of_an_earlier_release_or_another_tool_is_read_without_a_checksum() {
        let line = |info: Value| format!("{}\n", json!({"commitInfo": info}));
        let txn = json!({"txn": {"appId": "app", "version": 3}});
        let earlier = line(json!({"trellisLines": 2, "trellisCommit": "c"}));
        let entry = parse_entry(format!("{earlier}{txn}\n").as_bytes()).unwrap();
        assert!(!entry.sealed && entry.txns.len() == 1);
        assert!(parse_entry(earlier.as_bytes()).unwrap_err().starts_with("line 2: the end"));
        let other = line(json!({"engineInfo": "delta-rs"}));
        assert!(!parse_entry(format!("{other}{txn}\n").as_bytes()).unwrap().sealed);
    }
}
