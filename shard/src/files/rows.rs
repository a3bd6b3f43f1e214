//! Sorting and joining rows.

use std::{cmp::Ordering, sync::Arc};

use arrow_array::{
    Array as _, ArrayRef, RecordBatch, StringArray, UInt32Array,
    cast::AsArray,
    types::{Int64Type, TimestampNanosecondType},
};
use trellis_proto::{DatasetSpec, Result};

use super::{file::DataFile, schema::exact_schema};
use crate::error::{internal, lost_task};

/// The rows in ascending order of the columns at `key`.
pub(crate) fn sort_by_key(rows: &RecordBatch, key: &[usize]) -> Result<RecordBatch> {
    let order = sort_order(rows, key)?;
    arrow_select::take::take_record_batch(rows, &order).map_err(|e| internal("sorting rows", e))
}

/// The order that sorts the rows by the columns at `key`; text in order of its bytes. Rows that are sorted already cost one comparison
/// each.
pub(crate) fn sort_order(rows: &RecordBatch, key: &[usize]) -> Result<UInt32Array> {
    let keys = key.iter().map(|&i| KeyColumn::of(rows.column(i))).collect::<Result<Vec<_>>>()?;
    let mut order: Vec<u32> = (0..rows.num_rows() as u32).collect();
    order.sort_by(|&a, &b| {
        let mut by_column = keys.iter().map(|key| key.compare(a as usize, b as usize));
        by_column.find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
    });
    Ok(order.into())
}

/// A column of a key. It has no nulls.
enum KeyColumn<'a> {
    Symbol(&'a StringArray),
    /// Nanoseconds.
    Time(&'a [i64]),
}

impl<'a> KeyColumn<'a> {
    fn of(column: &'a ArrayRef) -> Result<Self> {
        if let Some(symbols) = column.as_string_opt() {
            Ok(Self::Symbol(symbols))
        } else if let Some(time) = column.as_primitive_opt::<Int64Type>() {
            Ok(Self::Time(time.values()))
        } else if let Some(time) = column.as_primitive_opt::<TimestampNanosecondType>() {
            Ok(Self::Time(time.values()))
        } else {
            Err(internal("sorting rows", column.data_type()))
        }
    }

    fn compare(&self, a: usize, b: usize) -> Ordering {
        match self {
            Self::Symbol(symbols) => symbols.value(a).cmp(symbols.value(b)),
            Self::Time(ns) => ns[a].cmp(&ns[b]),
        }
    }
}

/// Joins exact rows, sorted by (symbol, ts, known_at).
pub(crate) fn join_exact(spec: &DatasetSpec, parts: &[RecordBatch]) -> Result<RecordBatch> {
    let joined = arrow_select::concat::concat_batches(&exact_schema(spec), parts)
        .map_err(|e| internal("joining rows", e))?;
    sort_by_key(&joined, &[0, 1, 2])
}

/// Copies of the rows of merged files at once: as they are decoded, joined, sorted, and encoded.
pub(crate) const MERGE_COPIES: u64 = 4;

/// All rows of some files, exact, sorted by (symbol, ts, known_at).
pub(crate) async fn read_all(spec: &Arc<DatasetSpec>, files: &[&Arc<DataFile>]) -> Result<RecordBatch> {
    let mut parts = Vec::new();
    for file in files {
        parts.extend(file.read_exact(spec).await?);
    }
    let spec = spec.clone();
    let join = move || join_exact(&spec, &parts);
    tokio::task::spawn_blocking(join).await.map_err(|e| lost_task("merging files", e))?
}
