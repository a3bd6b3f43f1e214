//! What must be true, checked against the store itself: the log's entries, one by one as they appear, beside a plain list
//! of what was sent and what was accepted.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use trellis_proto::pb;

use super::disk::Disk;

/// Where the one dataset of a simulation lies.
pub(super) const FOLDER: &str = "lake/d.a";

/// Symbol, event time, value.
pub(super) type Row = (String, i64, f64);
/// Event time, knowledge time, value.
pub(super) type Known = (i64, i64, f64);

/// A publish that the table has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Accepted {
    pub(super) run: String,
    pub(super) version: usize,
    pub(super) known_at: i64,
}

/// What a read saw.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Look {
    pub(super) version: usize,
    pub(super) known_through: i64,
    /// Every known version of every row, by symbol.
    pub(super) rows: BTreeMap<String, Vec<Known>>,
}

impl Look {
    /// The rows as of a knowledge time: of each event time the newest that was known.
    fn as_of(&self, known: i64) -> BTreeMap<(&str, i64), f64> {
        let mut view = BTreeMap::new();
        for (symbol, rows) in &self.rows {
            for (ts, _, value) in rows.iter().filter(|row| row.1 <= known) {
                view.insert((symbol.as_str(), *ts), *value);
            }
        }
        view
    }
}

/// The list.
#[derive(Debug, Default)]
pub(super) struct Model {
    sent: BTreeMap<String, Vec<Row>>,
    accepted: Vec<Accepted>,
    acknowledged: BTreeSet<String>,
    /// Entries of the log that have been seen.
    versions: usize,
    live: BTreeSet<String>,
    epoch: u64,
    known_max: i64,
    /// The greatest knowledge time of which a read was told that nothing at or before it would come.
    claimed: i64,
    looks: Vec<Look>,
}

/// Looks kept to be compared with later ones.
const LOOKS_MAX: usize = 40;

impl Model {
    pub(super) fn new() -> Self {
        Self { known_max: i64::MIN, claimed: i64::MIN, ..Self::default() }
    }

    /// A publish is on its way.
    pub(super) fn sends(&mut self, run: &str, rows: Vec<Row>) {
        self.sent.insert(run.to_owned(), rows);
    }

    pub(super) fn rows_of(&self, run: &str) -> &[Row] {
        &self.sent[run]
    }

    /// The newest version of the table; `None`: there is no table.
    pub(super) fn newest(&self) -> Option<usize> {
        self.versions.checked_sub(1)
    }

    /// Looks at what the log has gained, and that nothing which the table needs is gone.
    pub(super) fn observe(&mut self, disk: &Disk) {
        let mut removes = false;
        while let Some(entry) = disk.read(&entry_path(self.versions)) {
            removes |= self.append(std::str::from_utf8(&entry).unwrap());
            self.versions += 1;
        }
        for file in &self.live {
            assert!(disk.holds(&format!("{FOLDER}/{file}")), "the table has {file}, which is gone");
        }
        assert!(
            !disk.holds(&entry_path(self.versions + 1)),
            "version {} follows a hole{}",
            self.versions + 1,
            if removes { ", after a compaction" } else { "" }
        );
    }

    fn append(&mut self, entry: &str) -> bool {
        let version = self.versions;
        let actions: Vec<Value> = entry.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let of = |kind: &str| actions.iter().filter_map(|a| a.get(kind)).cloned().collect::<Vec<_>>();
        let mut runs = Vec::new();
        let before = self.epoch;
        for txn in of("txn") {
            let app = txn["appId"].as_str().unwrap();
            if app == "trellis-publisher" {
                let epoch = txn["version"].as_u64().unwrap();
                assert!(epoch > self.epoch, "version {version}: epoch {epoch} after {}", self.epoch);
                self.epoch = epoch;
            } else if let Some(run) = app.strip_prefix("trellis-run ") {
                let (run, _, known_at, rows): (String, String, i64, usize) =
                    serde_json::from_str(run).unwrap();
                assert_eq!(txn["version"].as_u64(), Some(version as u64));
                assert_eq!(rows, self.sent[&run].len(), "version {version}: {run}");
                assert!(self.accepted.iter().all(|a| a.run != run), "version {version}: {run} is doubled");
                runs.push(Accepted { run, version, known_at });
            }
        }
        runs.sort_by_key(|run| run.known_at);
        for run in runs {
            let at = run.known_at;
            assert!(at > self.known_max, "version {version}: known at {at}, after {}", self.known_max);
            assert!(at > self.claimed, "version {version}: known at {at}, claimed through {}", self.claimed);
            self.known_max = at;
            self.accepted.push(run);
        }
        for note in of("commitInfo").iter().filter_map(|info| info["trellis"].as_array()).flatten() {
            if let Some(epoch) = note["epoch"].as_u64() {
                assert_eq!(
                    epoch, before,
                    "version {version} was published with an epoch that is not the newest"
                );
            }
        }
        for add in of("add") {
            self.live.insert(add["path"].as_str().unwrap().to_owned());
        }
        let removes = of("remove");
        for remove in &removes {
            let path = remove["path"].as_str().unwrap();
            assert!(self.live.remove(path), "version {version} removes {path}, which is not there");
        }
        !removes.is_empty()
    }

    /// All rows of the table at a version.
    fn rows_at(&self, version: usize) -> BTreeMap<String, Vec<Known>> {
        let mut rows: BTreeMap<String, Vec<Known>> = BTreeMap::new();
        for run in self.accepted.iter().filter(|run| run.version <= version) {
            for (symbol, ts, value) in &self.sent[&run.run] {
                rows.entry(symbol.clone()).or_default().push((*ts, run.known_at, *value));
            }
        }
        for rows in rows.values_mut() {
            rows.sort_by_key(|row| (row.0, row.1));
        }
        rows
    }

    /// A shard acknowledged a publish: the table has it, once, and from now on every read does.
    pub(super) fn acknowledged(&mut self, run: &str, ack: &pb::PublishAck) {
        let Some(found) = self.accepted.iter().find(|a| a.run == run) else {
            panic!("{run} was acknowledged with version {}, and the table does not have it", ack.version)
        };
        assert_eq!((found.version as u64, found.known_at), (ack.version, ack.known_at_ns), "{run}");
        assert_eq!(ack.rows as usize, self.sent[run].len(), "{run}");
        self.acknowledged.insert(run.to_owned());
    }

    /// A read that began when `floor` was the newest version.
    pub(super) fn looked(&mut self, look: Look, floor: Option<usize>) {
        assert!(Some(look.version) >= floor, "a read of version {}, begun at {floor:?}", look.version);
        assert!(Some(look.version) <= self.newest());
        assert_eq!(look.rows, self.rows_at(look.version), "version {}", look.version);
        let known = look.rows.values().flatten().map(|row| row.1).max();
        assert!(known.is_none_or(|known| known <= look.known_through), "more is known than is claimed");
        let later = self.accepted.iter().filter(|a| a.version > look.version).map(|a| a.known_at).min();
        assert!(later.is_none_or(|later| later > look.known_through), "claimed through {later:?}");
        self.claimed = self.claimed.max(look.known_through);
        for before in &self.looks {
            let known = before.known_through.min(look.known_through);
            assert_eq!(look.as_of(known), before.as_of(known), "as of {known}");
        }
        if self.looks.len() < LOOKS_MAX {
            self.looks.push(look);
        }
    }

    /// A read found no dataset, or no symbol.
    pub(super) fn found_nothing(&self, floor: Option<usize>, symbol: Option<&str>) {
        let there = self.accepted.iter().filter(|a| Some(a.version) <= floor);
        let rows: Vec<_> = there.flat_map(|a| &self.sent[&a.run]).collect();
        match symbol {
            Some(symbol) => assert!(rows.iter().all(|row| row.0 != symbol), "{symbol} has rows"),
            None => assert_eq!(floor, None, "there is a table"),
        }
    }

    /// A shard said that a symbol is as it was at a version, when at least `floor` had been committed.
    pub(super) fn unchanged(&self, symbol: &str, since: usize, floor: Option<usize>) {
        for run in self.accepted.iter().filter(|a| a.version > since && Some(a.version) <= floor) {
            let touches = self.sent[&run.run].iter().any(|row| row.0 == symbol);
            assert!(!touches, "{symbol} has changed at version {}, since {since}", run.version);
        }
    }

    /// A watcher was told of a version.
    pub(super) fn told(&self, change: &pb::Change) {
        let runs = self.accepted.iter().filter(|a| a.version as u64 == change.version);
        for (symbol, ts, _) in runs.flat_map(|run| &self.sent[&run.run]) {
            let spanned = |s: &pb::SymbolSpan| s.symbol == *symbol && (s.start_ns..s.end_ns).contains(ts);
            assert!(
                change.everything || change.spans.iter().any(spanned),
                "version {} touches {symbol} at {ts}, its change does not say so",
                change.version
            );
        }
    }

    /// Whether every row that was ever acknowledged is in `look`.
    pub(super) fn all_acknowledged_in(&self, look: &Look) {
        for run in &self.acknowledged {
            let at = self.accepted.iter().find(|a| a.run == *run).map(|a| a.known_at).unwrap();
            for (symbol, ts, value) in &self.sent[run] {
                let times = look.rows[symbol].iter().filter(|row| **row == (*ts, at, *value)).count();
                assert_eq!(times, 1, "{run}: {symbol} at {ts}");
            }
        }
    }
}

/// The path of a log entry.
pub(super) fn entry_path(version: usize) -> String {
    format!("{FOLDER}/_delta_log/{version:020}.json")
}
