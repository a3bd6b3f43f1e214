//! The spans that past commits of a table touched. Heads ask whether the chunks that they hold are still up to date.
//!
//! Commits from this process's time are remembered as the watchers were told of them. Older ones are read back from the log when
//! a head asks, which heads do after a shard's restart: otherwise a restart would make every head fetch everything again. Of an
//! old entry, the statistics of its files are left: least and greatest symbol and event time of each. (The files themselves may
//! have been merged since.) By these bounds a chunk may count as touched although it is not, if a file has a few symbols far apart.
//! The opposite never happens. For a session, which has all symbols of a day, the answer is exact to the chunk.
//!
//! Rejected: to compare the knowledge times of the files with those of the held chunks. It needs no log, but a merged file is as
//! new as its newest row, and an import with its own knowledge time may be older than a held chunk.

use std::collections::VecDeque;

use super::{
    entry::{Entry, Region},
    touched::Touched,
};

/// Most commits that are remembered or read back; chunks from before them are fetched again. To read so many entries of one or two
/// kilobytes from an object store, sixteen at once, takes seconds.
const COMMITS_MAX: usize = 4_096;

/// The spans that the commits after `floor` touched.
#[derive(Debug, Default)]
pub(crate) struct History {
    floor: u64,
    /// By version, ascending.
    commits: VecDeque<(u64, PastCommit)>,
}

/// The spans that one commit touched.
#[derive(Debug)]
enum PastCommit {
    /// Exactly these: the watchers were told of them.
    Told(Touched),
    /// Nothing outside of these bounds, which the log has.
    Logged(Vec<Region>),
}

impl PastCommit {
    fn of(entry: Entry) -> Self {
        if !entry.data_change && !entry.redefined {
            return Self::Told(Touched::Nothing);
        }
        match entry.regions {
            Some(regions) if entry.removes.is_empty() && !entry.redefined => Self::Logged(regions),
            _ => Self::Told(Touched::Everything),
        }
    }

    fn overlaps(&self, symbol: &str, start: i64, end: i64) -> bool {
        match self {
            Self::Told(touched) => touched.overlaps(symbol, start, end),
            Self::Logged(regions) => regions.iter().any(|r| {
                (r.first_symbol.as_str()..=r.last_symbol.as_str()).contains(&symbol)
                    && r.first_ts < end
                    && start <= r.last_ts
            }),
        }
    }
}

impl History {
    /// Begins anew: the table was loaded at `version`.
    pub(crate) fn begin(&mut self, version: u64) {
        *self = Self { floor: version, commits: VecDeque::new() };
    }

    /// How many commits are remembered.
    pub(crate) fn len(&self) -> usize {
        self.commits.len()
    }

    /// Adds one commit, or several that were read at once, up to `version`.
    pub(crate) fn push(&mut self, version: u64, touched: Touched) {
        self.commits.push_back((version, PastCommit::Told(touched)));
        while self.commits.len() > COMMITS_MAX {
            if let Some((oldest, _)) = self.commits.pop_front() {
                self.floor = oldest;
            }
        }
    }

    /// The versions after `version` that are not remembered, newest first, as many as fit.
    pub(crate) fn missing(&self, version: u64) -> impl Iterator<Item = u64> + use<> {
        let room = COMMITS_MAX.saturating_sub(self.commits.len());
        (version.saturating_add(1)..=self.floor).rev().take(room)
    }

    /// Adds an entry that was read back. `false`: it is not the next missing one.
    pub(crate) fn recall(&mut self, version: u64, entry: Entry) -> bool {
        if version != self.floor || version == 0 {
            return false;
        }
        self.floor = version - 1;
        self.commits.push_front((version, PastCommit::of(entry)));
        true
    }

    /// Whether `[start, end)` of `symbol` is as it was at `version`; `false` if that is not known.
    pub(crate) fn unchanged_since(&self, version: u64, symbol: &str, start: i64, end: i64) -> bool {
        let later = self.commits.iter().rev().take_while(|(changed, _)| *changed > version);
        version >= self.floor && !later.into_iter().any(|(_, past)| past.overlaps(symbol, start, end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::entry::parse_entry;

    fn entry(symbols: [&str; 2], ts: [i64; 2]) -> Entry {
        let stats = serde_json::json!({
            "minValues": {"symbol": symbols[0], "ts_ns": ts[0]}, "maxValues": {"symbol": symbols[1], "ts_ns": ts[1]},
        });
        let add = serde_json::json!({"add": {"path": "p", "size": 1, "dataChange": true, "stats": stats.to_string()}});
        let info = serde_json::json!({"commitInfo": {"trellisCommit": "c", "trellisLines": 2}});
        parse_entry(format!("{info}\n{add}\n").as_bytes()).unwrap()
    }

    #[test]
    fn what_was_committed_before_is_read_back_from_the_log() {
        let mut history = History::default();
        history.begin(3);
        assert!(!history.unchanged_since(1, "A", 0, 10), "not known");
        assert_eq!(history.missing(1).collect::<Vec<_>>(), [3, 2]);
        assert!(!history.recall(2, entry(["A", "A"], [0, 0])), "out of order");
        assert!(history.recall(3, entry(["B", "D"], [10, 19])));
        assert!(history.recall(2, entry(["A", "A"], [0, 9])));
        assert!(history.unchanged_since(2, "A", 0, 100));
        assert!(!history.unchanged_since(1, "A", 9, 100));
        assert!(history.unchanged_since(1, "A", 10, 100));
        assert!(!history.unchanged_since(1, "C", 19, 20), "it may be in a file from B to D");
        assert!(history.unchanged_since(1, "C", 20, 30));
        assert!(!history.unchanged_since(0, "C", 20, 30), "further back is not known");
    }

    #[test]
    fn an_entry_of_another_tool_says_nothing_of_what_it_touched() {
        let mut foreign = entry(["A", "A"], [0, 0]);
        foreign.regions = None;
        let mut history = History::default();
        history.begin(1);
        assert!(history.recall(1, foreign));
        assert!(!history.unchanged_since(0, "Z", 50, 60));
    }

    #[test]
    fn what_does_not_fit_is_forgotten_from_the_oldest_on() {
        let mut history = History::default();
        history.begin(10);
        for version in 11..=10 + COMMITS_MAX as u64 {
            history.push(version, Touched::Nothing);
        }
        assert!(history.unchanged_since(10, "A", 0, 1));
        assert_eq!(history.missing(0).count(), 0);
        history.push(11 + COMMITS_MAX as u64, Touched::Nothing);
        assert!(!history.unchanged_since(10, "A", 0, 1));
        assert!(history.unchanged_since(11, "A", 0, 1));
    }
}
