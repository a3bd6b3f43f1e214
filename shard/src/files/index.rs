//! The index of one file: which rows belong to which symbol, and their bounds. Pure.
//!
//! Files are sorted by (symbol, ts, known_at), so the rows of a symbol are one run, and a read decodes just those. The index is made
//! when a file is written. The footer of the file has it if it is small beside the data. Other files (small ones, and those of
//! other tools) are indexed by reading three columns. A file that another tool wrote in another order has several runs of a
//! symbol, and `sorted` is false: reads are correct and slower.

use arrow_array::{Array, BooleanArray, Int64Array, StringArray};
use serde::{Deserialize, Serialize};
use trellis_proto::{Symbol, time::DAY_NS};

/// Key of the index in a file's footer.
pub(crate) const FOOTER_KEY: &str = "trellis.index";
/// The index goes into the footer if a run has at least this many rows on average: a run costs about 60 bytes there.
pub(crate) const FOOTER_RUN_ROWS_MIN: usize = 64;

/// Estimated bytes of a symbol's name in memory.
const SYMBOL_BYTES: usize = 32;

/// Consecutive rows `[start, end)` of one symbol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) symbol: Symbol,
    pub(crate) start: u32,
    pub(crate) end: u32,
    /// Least and greatest event time.
    pub(crate) first_ts: i64,
    pub(crate) last_ts: i64,
}

/// The index of one file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct FileIndex {
    /// Sorted by (symbol, start).
    pub(crate) runs: Vec<Run>,
    /// Whether rows are sorted by (symbol, ts, known_at).
    pub(crate) sorted: bool,
    /// Days since 1970 on which there are rows, ascending.
    pub(crate) days: Vec<i64>,
    /// Days on which there are retractions; none in most files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) retracted_days: Vec<i64>,
    /// Days with retractions on which no row of this file holds; empty if the file is not sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) gone_days: Vec<i64>,
    pub(crate) rows: u64,
    /// Bounds of event time; meaningless without rows.
    pub(crate) first_ts: i64,
    pub(crate) last_ts: i64,
    /// Bounds of knowledge time; meaningless without rows.
    pub(crate) known_min: i64,
    pub(crate) known_max: i64,
}

impl FileIndex {
    /// Whether any row is a retraction.
    pub(crate) fn retracts(&self) -> bool {
        !self.retracted_days.is_empty()
    }

    /// The knowledge time of all rows, if they have one in common.
    pub(crate) fn known_at(&self) -> Option<i64> {
        (self.known_min == self.known_max).then_some(self.known_min)
    }

    /// About how many bytes it takes in memory.
    pub(crate) fn bytes(&self) -> usize {
        let days = self.days.len() + self.retracted_days.len() + self.gone_days.len();
        self.runs.len() * (size_of::<Run>() + SYMBOL_BYTES) + days * size_of::<i64>()
    }

    /// The runs of `symbol`.
    pub(crate) fn runs_of(&self, symbol: &str) -> &[Run] {
        let start = self.runs.partition_point(|r| r.symbol.as_str() < symbol);
        let len = self.runs[start..].partition_point(|r| r.symbol.as_str() == symbol);
        &self.runs[start..start + len]
    }
}

/// Builds an index from batches of rows in file order.
#[derive(Debug)]
pub(crate) struct Builder {
    runs: Vec<Run>,
    days: Vec<i64>,
    retracted_days: Vec<i64>,
    /// Days on which the last version of a key is a row.
    held_days: Vec<i64>,
    /// Whether the last row is a retraction.
    retracted: bool,
    rows: u64,
    sorted: bool,
    last: Option<(i64, i64)>,
    known: (i64, i64),
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            runs: Vec::new(),
            days: Vec::new(),
            retracted_days: Vec::new(),
            held_days: Vec::new(),
            retracted: false,
            rows: 0,
            sorted: true,
            last: None,
            known: (i64::MAX, i64::MIN),
        }
    }
}

impl Builder {
    /// Adds rows.
    ///
    /// # Errors
    /// An invalid symbol, which makes the file unreadable.
    pub(crate) fn push(
        &mut self,
        symbols: &StringArray,
        ts: &Int64Array,
        known_at: &Int64Array,
        retracted: Option<&BooleanArray>,
    ) -> trellis_proto::Result<()> {
        for i in retracted.iter().flat_map(|retracted| retracted.values().set_indices()) {
            let day = ts.value(i).div_euclid(DAY_NS);
            if self.retracted_days.last() != Some(&day) {
                self.retracted_days.push(day);
            }
        }
        for i in 0..symbols.len() {
            let (symbol, ts, known_at) = (symbols.value(i), ts.value(i), known_at.value(i));
            let row = self.rows as u32;
            self.rows += 1;
            self.known = (self.known.0.min(known_at), self.known.1.max(known_at));
            let day = ts.div_euclid(DAY_NS);
            if self.days.last() != Some(&day) {
                self.days.push(day);
            }
            let same =
                |run: &Run| run.symbol.as_str() == symbol && self.last.is_some_and(|last| last.0 == ts);
            if !self.runs.last().is_some_and(same) {
                self.settle();
            }
            self.retracted = retracted.is_some_and(|retracted| retracted.value(i));
            match self.runs.last_mut() {
                Some(run) if run.symbol.as_str() == symbol => {
                    self.sorted &= self.last.is_none_or(|last| last <= (ts, known_at));
                    run.end = row + 1;
                    run.first_ts = run.first_ts.min(ts);
                    run.last_ts = run.last_ts.max(ts);
                }
                previous => {
                    self.sorted &= previous.is_none_or(|run| run.symbol.as_str() < symbol);
                    let symbol = Symbol::new(symbol)?;
                    self.runs.push(Run { symbol, start: row, end: row + 1, first_ts: ts, last_ts: ts });
                }
            }
            self.last = Some((ts, known_at));
        }
        // A sorted file has its days once for each symbol.
        for days in [&mut self.days, &mut self.retracted_days, &mut self.held_days] {
            if days.len() > 1 << 16 {
                days.sort_unstable();
                days.dedup();
            }
        }
        Ok(())
    }

    /// Notes that the last row is the last version of its key.
    fn settle(&mut self) {
        let Some((ts, _)) = self.last.filter(|_| !self.retracted) else { return };
        let day = ts.div_euclid(DAY_NS);
        if self.held_days.last() != Some(&day) {
            self.held_days.push(day);
        }
    }

    /// The index.
    pub(crate) fn finish(mut self) -> FileIndex {
        self.settle();
        self.runs.sort_by(|a, b| (&a.symbol, a.start).cmp(&(&b.symbol, b.start)));
        for days in [&mut self.days, &mut self.retracted_days, &mut self.held_days] {
            days.sort_unstable();
            days.dedup();
        }
        let held = |day: &i64| self.held_days.binary_search(day).is_ok();
        let gone_days = self.retracted_days.iter().copied().filter(|day| self.sorted && !held(day)).collect();
        FileIndex {
            sorted: self.sorted,
            rows: self.rows,
            first_ts: self.runs.iter().map(|r| r.first_ts).min().unwrap_or(i64::MAX),
            last_ts: self.runs.iter().map(|r| r.last_ts).max().unwrap_or(i64::MIN),
            known_min: self.known.0,
            known_max: self.known.1,
            runs: self.runs,
            days: self.days,
            retracted_days: self.retracted_days,
            gone_days,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(rows: &[(&str, i64, i64)]) -> FileIndex {
        let mut builder = Builder::default();
        for part in rows.chunks(3) {
            builder
                .push(
                    &StringArray::from_iter_values(part.iter().map(|r| r.0)),
                    &Int64Array::from_iter_values(part.iter().map(|r| r.1)),
                    &Int64Array::from_iter_values(part.iter().map(|r| r.2)),
                    None,
                )
                .unwrap();
        }
        builder.finish()
    }

    #[test]
    fn a_symbol_of_a_sorted_file_is_one_run() {
        let index = index(&[("A", -1, 9), ("A", 5, 9), ("B", 2, 8), ("B", 2, 9), ("C", DAY_NS, 1)]);
        assert!(index.sorted);
        assert_eq!(index.runs.len(), 3);
        let b = &index.runs_of("B")[0];
        assert_eq!((b.start, b.end, b.first_ts, b.last_ts), (2, 4, 2, 2));
        assert!(index.runs_of("AA").is_empty());
        assert_eq!(index.days, [-1, 0, 1]);
        assert_eq!((index.first_ts, index.last_ts, index.known_min, index.known_max), (-1, DAY_NS, 1, 9));
    }

    #[test]
    fn a_day_on_which_every_rows_last_version_is_a_retraction_is_gone() {
        // symbol, day, knowledge time, whether it is a retraction
        let index = |rows: &[(&str, i64, i64, bool)]| {
            let mut builder = Builder::default();
            for part in rows.chunks(2) {
                builder
                    .push(
                        &StringArray::from_iter_values(part.iter().map(|r| r.0)),
                        &Int64Array::from_iter_values(part.iter().map(|r| r.1 * DAY_NS)),
                        &Int64Array::from_iter_values(part.iter().map(|r| r.2)),
                        Some(&part.iter().map(|r| Some(r.3)).collect()),
                    )
                    .unwrap();
            }
            builder.finish()
        };
        let days = |rows: &[(&str, i64, i64, bool)]| {
            let index = index(rows);
            (index.days, index.retracted_days, index.gone_days)
        };
        let none: Vec<i64> = Vec::new();
        assert_eq!(days(&[("A", 0, 1, false), ("A", 1, 1, false)]), (vec![0, 1], none.clone(), none.clone()));
        assert_eq!(days(&[("A", 0, 1, false), ("A", 0, 2, true)]), (vec![0], vec![0], vec![0]));
        assert_eq!(days(&[("A", 0, 1, true), ("A", 0, 2, false)]), (vec![0], vec![0], none.clone()));
        let two = [("A", 0, 2, true), ("A", 1, 2, true), ("B", 0, 1, false), ("B", 1, 2, true)];
        assert_eq!(days(&two), (vec![0, 1], vec![0, 1], vec![1]));
        let unsorted = [("B", 0, 2, true), ("A", 0, 2, true)];
        assert_eq!(days(&unsorted), (vec![0], vec![0], none));
    }

    #[test]
    fn rows_in_another_order_are_indexed_as_several_runs() {
        let index = index(&[("B", 2, 1), ("A", 1, 1), ("B", 1, 1)]);
        assert!(!index.sorted);
        assert_eq!(index.runs_of("B").len(), 2);
        assert!(!super::tests::index(&[("A", 2, 1), ("A", 1, 1)]).sorted);
        assert!(!super::tests::index(&[("A", 1, 2), ("A", 1, 1)]).sorted);
    }
}
