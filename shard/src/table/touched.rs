//! The event times that a commit touched. Pure.

use std::sync::Arc;

use trellis_proto::Symbol;

use crate::files::DataFile;

/// Longest list of spans in one change; beyond it the change says `everything`.
const SPANS_MAX: usize = 2_000;

/// The event times that a commit touched, of the symbols that this shard owns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Touched {
    Nothing,
    /// Sorted by symbol; `[start, end)`.
    Spans(Vec<(Symbol, i64, i64)>),
    /// Too many spans to list, or not known.
    Everything,
}

impl Touched {
    /// The spans of the rows in new files.
    pub(crate) fn by(added: &[Arc<DataFile>], owned: impl Fn(&str) -> bool) -> Self {
        let mut spans: Vec<(Symbol, i64, i64)> = added
            .iter()
            .flat_map(|f| &f.index.runs)
            .filter(|run| owned(run.symbol.as_str()))
            .map(|run| (run.symbol.clone(), run.first_ts, run.last_ts.saturating_add(1)))
            .collect();
        spans.sort_unstable();
        spans.dedup_by(|next, kept| {
            let same = next.0 == kept.0;
            if same {
                kept.2 = kept.2.max(next.2);
            }
            same
        });
        match spans.len() {
            0 => Self::Nothing,
            n if n > SPANS_MAX => Self::Everything,
            _ => Self::Spans(spans),
        }
    }

    /// Whether `[start, end)` of `symbol` was touched.
    pub(crate) fn overlaps(&self, symbol: &str, start: i64, end: i64) -> bool {
        match self {
            Self::Nothing => false,
            Self::Everything => true,
            Self::Spans(spans) => spans
                .binary_search_by(|span| span.0.as_str().cmp(symbol))
                .is_ok_and(|i| spans[i].1 < end && start < spans[i].2),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_overlaps_half_open() {
        let touched =
            Touched::Spans(vec![(Symbol::new("A").unwrap(), 10, 20), (Symbol::new("B").unwrap(), 0, 1)]);
        assert!(touched.overlaps("A", 19, 30));
        assert!(!touched.overlaps("A", 20, 30));
        assert!(!touched.overlaps("A", 0, 10));
        assert!(!touched.overlaps("C", 0, 100));
        assert!(Touched::Everything.overlaps("C", 0, 1));
    }
}
