//! The rules of a simulation: a plain list of the publishes that were sent and accepted, with which the entries of the log are
//! compared, one by one as they appear.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use trellis_proto::pb;

use super::disk::Disk;
use crate::{table::SessionKey, write::Effect};

/// Where the one dataset of a simulation lies.
pub(super) const FOLDER: &str = "lake/d.a";

/// Symbol, event time, value.
pub(super) type Row = (String, i64, f64);
/// Event time, knowledge time, value; a retraction has none.
pub(super) type Known = (i64, i64, Option<f64>);

/// A publish as it is sent.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Sent {
    pub(super) rows: Vec<Row>,
    pub(super) effect: Effect,
    pub(super) partition: String,
}

impl Sent {
    /// Which session and partition it is of; `None` of imports.
    pub(super) fn session(&self) -> Option<SessionKey> {
        let Effect::Replaces(range) = &self.effect else { return None };
        Some(SessionKey { session: range.start.to_string(), partition: self.partition.clone() })
    }
}

/// A publish that the table has.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Accepted {
    pub(super) run: String,
    pub(super) version: usize,
    pub(super) known_at: i64,
    /// The rows and retractions that it wrote, by the rules and the rows that held when it was accepted.
    wrote: Vec<(String, Known)>,
}

/// The answer to a read.
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
        view.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
    }
}

/// The list.
#[derive(Debug, Default)]
pub(super) struct Model {
    sent: BTreeMap<String, Sent>,
    /// The rows that hold, each with the partition that wrote it.
    holds: BTreeMap<(String, i64), String>,
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
    /// The newest version that anybody outside knows: from a read, from an acknowledgement, or as a watcher.
    told: Option<usize>,
}

/// Most looks that are kept, to be compared with later ones.
const LOOKS_MAX: usize = 40;

impl Model {
    pub(super) fn new() -> Self {
        Self { known_max: i64::MIN, claimed: i64::MIN, ..Self::default() }
    }

    /// After a cut of the power the log is as it is. It has everything that anybody outside knows.
    pub(super) fn begin_again(&mut self, disk: &Disk) {
        let before = std::mem::replace(self, Self::new());
        self.sent = before.sent;
        self.observe(disk);
        assert!(
            self.newest() >= before.told,
            "the newest version is {:?} after a cut of the power; somebody was told of {:?}",
            self.newest(),
            before.told
        );
        (self.acknowledged, self.claimed) = (before.acknowledged, before.claimed);
        (self.looks, self.told) = (before.looks, before.told);
    }

    /// A publish is on its way.
    pub(super) fn sends(&mut self, run: &str, sent: Sent) {
        self.sent.insert(run.to_owned(), sent);
    }

    pub(super) fn sent(&self, run: &str) -> Sent {
        self.sent[run].clone()
    }

    /// Accepts a publish: of each key it brings a row, or takes it back.
    fn accept(&mut self, run: String, version: usize, known_at: i64) {
        let sent = &self.sent[&run];
        let keys = || sent.rows.iter().map(|(symbol, ts, _)| (symbol.clone(), *ts));
        let mut wrote = Vec::new();
        match &sent.effect {
            Effect::Retracts => {
                for key in keys() {
                    let held = self.holds.remove(&key);
                    assert!(held.is_some(), "version {version}: {run} retracts {key:?}, which does not hold");
                    wrote.push((key.0, (key.1, known_at, None)));
                }
            }
            Effect::Adds | Effect::Replaces(_) => {
                let mut by = String::new();
                if let Effect::Replaces(range) = &sent.effect {
                    let partition = &sent.partition;
                    by.clone_from(partition);
                    let gone = self.holds.iter().filter(|((symbol, ts), writer)| {
                        range.contains(ts)
                            && (partition.is_empty() || *writer == partition)
                            && keys().all(|key| key != (symbol.clone(), *ts))
                    });
                    let gone: Vec<_> = gone.map(|(key, _)| key.clone()).collect();
                    for key in gone {
                        self.holds.remove(&key);
                        wrote.push((key.0, (key.1, known_at, None)));
                    }
                }
                for (symbol, ts, value) in &sent.rows {
                    self.holds.insert((symbol.clone(), *ts), by.clone());
                    wrote.push((symbol.clone(), (*ts, known_at, Some(*value))));
                }
            }
        }
        self.accepted.push(Accepted { run, version, known_at, wrote });
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
                let stored: Value = serde_json::from_str(run).unwrap();
                let run = stored[0].as_str().unwrap().to_owned();
                let (known_at, rows) = (stored[2].as_i64().unwrap(), stored[3].as_u64().unwrap() as usize);
                assert_eq!(txn["version"].as_u64(), Some(version as u64));
                assert_eq!(rows, self.sent[&run].rows.len(), "version {version}: {run}");
                assert!(self.accepted.iter().all(|a| a.run != run), "version {version}: {run} is doubled");
                runs.push((run, known_at));
            }
        }
        runs.sort_by_key(|run| run.1);
        for (run, at) in runs {
            assert!(at > self.known_max, "version {version}: known at {at}, after {}", self.known_max);
            assert!(at > self.claimed, "version {version}: known at {at}, claimed through {}", self.claimed);
            self.known_max = at;
            self.accept(run, version, at);
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
            for (symbol, row) in &run.wrote {
                rows.entry(symbol.clone()).or_default().push(*row);
            }
        }
        for rows in rows.values_mut() {
            rows.sort_by_key(|row| (row.0, row.1));
        }
        rows
    }

    /// Checks an acknowledged publish: the table has it exactly once. From now on every read must have it.
    pub(super) fn acknowledged(&mut self, run: &str, ack: &pb::PublishAck) {
        let Some(found) = self.accepted.iter().find(|a| a.run == run) else {
            panic!("{run} was acknowledged with version {}, and the table does not have it", ack.version)
        };
        assert_eq!((found.version as u64, found.known_at), (ack.version, ack.known_at_ns), "{run}");
        assert_eq!(ack.rows as usize, self.sent[run].rows.len(), "{run}");
        let retracted = found.wrote.iter().filter(|(_, row)| row.2.is_none()).count();
        assert_eq!(ack.retracted as usize, retracted, "{run}");
        self.told = self.told.max(Some(found.version));
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
        self.told = self.told.max(Some(look.version));
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
        let rows: Vec<_> = there.flat_map(|a| &a.wrote).collect();
        match symbol {
            Some(symbol) => assert!(rows.iter().all(|row| row.0 != symbol), "{symbol} has rows"),
            None => assert_eq!(floor, None, "there is a table"),
        }
    }

    /// A shard said that a symbol is as it was at a version, when at least `floor` had been committed.
    pub(super) fn unchanged(&self, symbol: &str, since: usize, floor: Option<usize>) {
        for run in self.accepted.iter().filter(|a| a.version > since && Some(a.version) <= floor) {
            let touches = run.wrote.iter().any(|row| row.0 == symbol);
            assert!(!touches, "{symbol} has changed at version {}, since {since}", run.version);
        }
    }

    /// A shard has told a watcher of a version.
    pub(super) fn told(&mut self, change: &pb::Change) {
        self.told = self.told.max(Some(change.version as usize));
        let runs = self.accepted.iter().filter(|a| a.version as u64 == change.version);
        for (symbol, (ts, ..)) in runs.flat_map(|run| &run.wrote) {
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
            let found = self.accepted.iter().find(|a| a.run == *run).unwrap();
            for (symbol, row) in &found.wrote {
                let times = look.rows[symbol].iter().filter(|there| *there == row).count();
                assert_eq!(times, 1, "{run}: {symbol} {row:?}");
            }
        }
    }
}

/// The path of a log entry.
pub(super) fn entry_path(version: usize) -> String {
    format!("{FOLDER}/_delta_log/{version:020}.json")
}
