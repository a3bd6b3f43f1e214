//! What a commit means to those who hold chunks: which spans it touched, and the event that tells them.

use std::sync::Arc;

use arrow_array::{ArrayRef, BooleanArray, RecordBatch, cast::AsArray, types::Int64Type};
use trellis_proto::{Result, Symbol, pb};

use crate::{
    error::internal,
    file::DataFile,
    schema::{self, EXACT_KEYS},
    table::{Shared, Snapshot},
    watch::{INLINE_BYTES_MAX, SPANS_MAX},
    wire,
};

/// The event times that a commit touched, as far as this shard owns them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Touched {
    Nothing,
    /// Sorted by symbol; `[start, end)`.
    Spans(Vec<(Symbol, i64, i64)>),
    /// Too much to list, or not known.
    Everything,
}

impl Touched {
    /// What the rows of new files touch.
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

/// New rows as they travel with an event.
#[derive(Debug, Default)]
pub(crate) struct Inline {
    /// Header and body of an Arrow message.
    header: bytes::Bytes,
    body: bytes::Bytes,
    /// Which of them are retractions.
    retracted: bytes::Bytes,
}

/// The event for a commit, with its rows if they are given; its number is given when it is pushed.
pub(crate) fn event(
    shared: &Shared,
    next: &Snapshot,
    touched: &Touched,
    added: &[Arc<DataFile>],
    rows: Option<Inline>,
) -> pb::Change {
    let filled = || added.iter().filter(|f| f.index.rows > 0);
    let rows = rows.unwrap_or_default();
    let everything = *touched == Touched::Everything;
    let known_at_max_ns = filled().map(|f| f.index.known_max).max().unwrap_or(next.known_through);
    let known_at_min_ns = match filled().map(|f| f.index.known_min).min() {
        Some(least) => least,
        // Nothing is known of the rows: no answer may be taken to be untouched.
        None if everything => i64::MIN,
        None => next.known_through,
    };
    let spans = match touched {
        Touched::Spans(spans) => spans
            .iter()
            .map(|(symbol, start_ns, end_ns)| pb::SymbolSpan {
                symbol: symbol.to_string(),
                start_ns: *start_ns,
                end_ns: *end_ns,
            })
            .collect(),
        Touched::Nothing | Touched::Everything => Vec::new(),
    };
    pb::Change {
        seq: 0,
        dataset: next.spec.dataset.to_string(),
        version: next.version,
        known_at_min_ns,
        known_at_max_ns,
        spans,
        everything,
        description: Some(next.describe(shared)),
        data_header: rows.header,
        data_body: rows.body,
        retracted: rows.retracted,
    }
}

/// The new rows of owned symbols, if they are few.
pub(crate) async fn inline_rows(
    shared: &Shared,
    next: &Snapshot,
    touched: &Touched,
    added: &[Arc<DataFile>],
) -> Result<Option<Inline>> {
    if !matches!(touched, Touched::Spans(_)) {
        return Ok(None);
    }
    let spec = &next.spec;
    let width: usize = 32 + spec.fields.iter().map(|f| f.data_type.width()).sum::<usize>();
    let rows: u64 = added.iter().map(|f| f.index.rows).sum();
    if (rows as usize).saturating_mul(width) > INLINE_BYTES_MAX {
        return Ok(None);
    }
    let mut parts = Vec::new();
    for file in added {
        for rows in file.read_exact(spec).await? {
            let owned: BooleanArray = rows
                .column(0)
                .as_string::<i32>()
                .iter()
                .map(|s| s.map(|s| shared.owns.owns(spec.dataset.as_str(), s)))
                .collect();
            let kept = arrow_select::filter::filter_record_batch(&rows, &owned)
                .map_err(|e| internal("filtering a change's rows", e))?;
            parts.push(kept);
        }
    }
    let exact = arrow_select::concat::concat_batches(&schema::exact_schema(spec), &parts)
        .map_err(|e| internal("joining a change's rows", e))?;
    let exact = if added.len() > 1 { wire::sort_by_key(&exact, &[0, 1, 2])? } else { exact };
    if exact.num_rows() == 0 || exact.get_array_memory_size() > 2 * INLINE_BYTES_MAX {
        return Ok(None);
    }
    let time = |column: usize| schema::wire_time(exact.column(column).as_primitive::<Int64Type>());
    let mut columns: Vec<ArrayRef> = vec![exact.column(0).clone(), time(1), time(2)];
    columns.extend_from_slice(&exact.columns()[EXACT_KEYS..]);
    let rows = RecordBatch::try_new(spec.change_schema(), columns)
        .map_err(|e| internal("building a change's rows", e))?;
    let (header, body) = wire::encode(&rows)?;
    Ok(Some(Inline { header, body, retracted: wire::bits(exact.column(3).as_boolean()) }))
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
