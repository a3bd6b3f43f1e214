//! What one file holds: which rows belong to which symbol, and their bounds. Pure.
//!
//! Files are sorted by (symbol, ts, known_at), so a symbol is one run of rows and a read decodes just those. The index
//! is made from the rows when a file is written, and stored in the file's footer where it is small beside the data;
//! files without it (small ones, other writers') are indexed by reading three columns. A file that another tool wrote in
//! another order has several runs of a symbol and `sorted` unset: correct, only slower.

use arrow_array::{Array, Int64Array, StringArray};
use serde::{Deserialize, Serialize};
use trellis_proto::{Symbol, time::DAY_NS};

/// Key of the index in a file's footer.
pub(crate) const FOOTER_KEY: &str = "trellis.index";
/// The index goes into the footer if a run has at least so many rows on average: one costs about 60 bytes there.
pub(crate) const FOOTER_RUN_ROWS_MIN: usize = 64;

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
    /// Days since 1970 that any row falls on, ascending.
    pub(crate) days: Vec<i64>,
    pub(crate) rows: u64,
    /// Bounds of event time; meaningless without rows.
    pub(crate) first_ts: i64,
    pub(crate) last_ts: i64,
    /// Bounds of knowledge time; meaningless without rows.
    pub(crate) known_min: i64,
    pub(crate) known_max: i64,
}

impl FileIndex {
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
            rows: 0,
            sorted: true,
            last: None,
            known: (i64::MAX, i64::MIN),
        }
    }
}

impl Builder {
    /// Adds rows. A symbol that is not a valid one makes the file unreadable: the error says which.
    pub(crate) fn push(
        &mut self,
        symbols: &StringArray,
        ts: &Int64Array,
        known_at: &Int64Array,
    ) -> trellis_proto::Result<()> {
        for i in 0..symbols.len() {
            let (symbol, ts, known_at) = (symbols.value(i), ts.value(i), known_at.value(i));
            let row = self.rows as u32;
            self.rows += 1;
            self.known = (self.known.0.min(known_at), self.known.1.max(known_at));
            let day = ts.div_euclid(DAY_NS);
            if self.days.last() != Some(&day) {
                self.days.push(day);
            }
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
        // A sorted file visits its days once per symbol.
        if self.days.len() > 1 << 16 {
            self.days.sort_unstable();
            self.days.dedup();
        }
        Ok(())
    }

    /// The index.
    pub(crate) fn finish(mut self) -> FileIndex {
        self.runs.sort_by(|a, b| (&a.symbol, a.start).cmp(&(&b.symbol, b.start)));
        self.days.sort_unstable();
        self.days.dedup();
        FileIndex {
            sorted: self.sorted,
            rows: self.rows,
            first_ts: self.runs.iter().map(|r| r.first_ts).min().unwrap_or(i64::MAX),
            last_ts: self.runs.iter().map(|r| r.last_ts).max().unwrap_or(i64::MIN),
            known_min: self.known.0,
            known_max: self.known.1,
            runs: self.runs,
            days: self.days,
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
    fn rows_in_another_order_are_indexed_as_several_runs() {
        let index = index(&[("B", 2, 1), ("A", 1, 1), ("B", 1, 1)]);
        assert!(!index.sorted);
        assert_eq!(index.runs_of("B").len(), 2);
        assert!(!super::tests::index(&[("A", 2, 1), ("A", 1, 1)]).sorted);
        assert!(!super::tests::index(&[("A", 1, 2), ("A", 1, 1)]).sorted);
    }
}
