//! The event that tells watchers of a commit.

use std::sync::Arc;

use arrow_array::{ArrayRef, BooleanArray, RecordBatch, cast::AsArray, types::Int64Type};
use trellis_proto::{Result, pb};

use super::{context::Context, snapshot::Snapshot, touched::Touched};
use crate::{
    error::internal,
    files::{DataFile, EXACT_KEYS, join_exact, wire_time},
    wire,
};

/// Rows travel with the change if their columns have at most this many bytes: one burst of network packets, far below the cost
/// of a fetch from every head.
const INLINE_BYTES_MAX: usize = 64 << 10;

/// The new rows of an event.
#[derive(Debug, Default)]
pub(crate) struct Inline {
    /// Header and body of an Arrow message.
    header: bytes::Bytes,
    body: bytes::Bytes,
    /// One bit for each row: whether it is a retraction.
    retracted: bytes::Bytes,
}

/// The event for a commit, with `rows` if there are any. The watch log numbers it.
pub(crate) fn event(
    context: &Context,
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
        // The rows are not known: every answer counts as touched.
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
        description: Some(next.describe(context)),
        data_header: rows.header,
        data_body: rows.body,
        retracted: rows.retracted,
    }
}

/// The new rows of owned symbols; `None` if they are many.
pub(crate) async fn inline_rows(
    context: &Context,
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
                .map(|s| s.map(|s| context.owns.owns(spec.dataset.as_str(), s)))
                .collect();
            let kept = arrow_select::filter::filter_record_batch(&rows, &owned)
                .map_err(|e| internal("filtering a change's rows", e))?;
            parts.push(kept);
        }
    }
    let exact = join_exact(spec, &parts)?;
    if exact.num_rows() == 0 || exact.get_array_memory_size() > 2 * INLINE_BYTES_MAX {
        return Ok(None);
    }
    let time = |column: usize| wire_time(exact.column(column).as_primitive::<Int64Type>());
    let mut columns: Vec<ArrayRef> = vec![exact.column(0).clone(), time(1), time(2)];
    columns.extend_from_slice(&exact.columns()[EXACT_KEYS..]);
    let rows = RecordBatch::try_new(spec.change_schema(), columns)
        .map_err(|e| internal("building a change's rows", e))?;
    let (header, body) = wire::encode(&rows)?;
    Ok(Some(Inline { header, body, retracted: wire::bits(exact.column(3).as_boolean()) }))
}
