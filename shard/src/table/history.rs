//! The spans that past commits of a table touched. Heads ask whether the chunks that they hold are still up to date.
//!
//! The shard remembers the commits since its start as it told the watchers of them. It reads older ones back from the log when a
//! head asks for them. Heads ask after a restart of the shard: otherwise they would all fetch everything again. An old entry has
//! only the statistics of its files: the least and the greatest symbol and event time of each. (The files themselves may have been
//! merged since.) By these bounds a chunk may count as touched although it is not, if a file has a few symbols far apart. The
//! opposite never happens. For a session, which has all symbols of a day, the answer is exact to the chunk.
//!
//! Rejected: to compare the knowledge times of the files with those of the held chunks. That needs no log, but it is wrong
//! twice. A merged file is as new as its newest row, so chunks would count as touched although they are not. An import may name
//! its own knowledge time, which may be earlier than that of a held chunk: such a chunk would not count as touched.

use std::collections::VecDeque;

use super::{
    delta::{Entry, Region},
    touched::Touched,
};

/// Most commits that are remembered or read back; chunks from before them are fetched again. To read this many entries of one or
/// two kilobytes from an object store, sixteen at once, takes seconds.
const COMMITS_MAX: usize = 4_096;

/// Most spans that are remembered exactly; of older commits with spans only the bounds are. A thousand outputs of five hundred symbols
/// would otherwise take twenty megabytes for each session that is published to all of them.
const SPANS_MAX: usize = 1_024;

/// The spans that the commits after `floor` touched.
#[derive(Debug, Default)]
pub(crate) struct History {
    floor: u64,
    /// The commits by version, ascending.
    commits: VecDeque<(u64, PastCommit)>,
    /// Versions up to this one have bounds alone.
    coarse: u64,
    /// Spans of the commits after `coarse`.
    spans: usize,
}

/// The spans that one commit touched.
#[derive(Debug)]
enum PastCommit {
    /// The commit touched exactly these spans, and the watchers know them.
    Told(Touched),
    /// The commit touched nothing outside of these bounds, which the log has.
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

    /// How many spans it has.
    fn spans(&self) -> usize {
        match self {
            Self::Told(Touched::Spans(spans)) => spans.len(),
            Self::Told(Touched::Nothing | Touched::Everything) | Self::Logged(_) => 0,
        }
    }

    /// Forgets the spans, and keeps their bounds.
    fn coarsen(&mut self) {
        let Self::Told(Touched::Spans(spans)) = self else { return };
        let (Some(first), Some(last)) = (spans.first(), spans.last()) else { return };
        let region = Region {
            first_symbol: first.0.to_string(),
            last_symbol: last.0.to_string(),
            first_ts: spans.iter().map(|span| span.1).min().unwrap_or(i64::MIN),
            // The greatest time itself, which may be that of the end of time.
            last_ts: spans.iter().map(|span| span.2).max().unwrap_or(i64::MAX).saturating_sub(1),
        };
        *self = Self::Logged(vec![region]);
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
        *self = Self { floor: version, coarse: version, ..Self::default() };
    }

    /// How many commits are remembered.
    pub(crate) fn len(&self) -> usize {
        self.commits.len()
    }

    /// Adds one commit, or several that were read at once, up to `version`.
    pub(crate) fn push(&mut self, version: u64, touched: Touched) {
        let commit = PastCommit::Told(touched);
        self.spans += commit.spans();
        self.commits.push_back((version, commit));
        if self.spans > SPANS_MAX {
            let after = self.commits.partition_point(|(version, _)| *version <= self.coarse);
            for (version, commit) in self.commits.range_mut(after..) {
                if self.spans <= SPANS_MAX {
                    break;
                }
                self.spans -= commit.spans();
                commit.coarsen();
                self.coarse = *version;
            }
        }
        while self.commits.len() > COMMITS_MAX {
            if let Some((oldest, commit)) = self.commits.pop_front() {
                self.floor = oldest;
                self.spans -= commit.spans();
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
    use crate::table::delta::parse_entry;

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
    fn of_old_commits_the_bounds_are_left_and_no_chunk_that_was_touched_counts_as_untouched() {
        let symbol = |i: i64| trellis_proto::Symbol::new(format!("S{i:04}")).unwrap();
        let commit = |k: i64| Touched::Spans((0..100).map(|i| (symbol(i), 10 * k, 10 * k + 5)).collect());
        let mut history = History::default();
        history.begin(0);
        for k in 1..=3_000 {
            history.push(k as u64, commit(k));
            let exact: usize = history.commits.iter().map(|(_, commit)| commit.spans()).sum();
            assert!(exact == history.spans && exact <= SPANS_MAX, "{exact}");
        }
        for k in [1, 2_000, 2_999, 3_000] {
            assert!(!history.unchanged_since(k as u64 - 1, "S0099", 10 * k + 4, 10 * k + 5));
            assert!(history.unchanged_since(0, "S0099", 10 * k + 5, 10 * k + 10), "between two sessions");
            assert!(history.unchanged_since(0, "S0100", 10 * k, 10 * k + 5), "a symbol of none");
        }
        // One commit with more spans than are kept, and one to the end of time.
        history.push(3_001, Touched::Spans((0..2_000).map(|i| (symbol(i), 0, i64::MAX)).collect()));
        assert_eq!(history.spans, 0);
        assert!(!history.unchanged_since(3_000, "S0500", i64::MAX - 1, i64::MAX));
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
