//! Sorting and joining rows.

use std::sync::Arc;

use arrow_array::{RecordBatch, UInt32Array};
use arrow_ord::sort::{SortColumn, lexsort_to_indices};
use trellis_proto::{DatasetSpec, Result};

use super::{file::DataFile, schema::exact_schema};
use crate::error::{internal, lost_task};

/// The rows in ascending order of the columns at `key`.
pub(crate) fn sort_by_key(rows: &RecordBatch, key: &[usize]) -> Result<RecordBatch> {
    let order = sort_order(rows, key)?;
    arrow_select::take::take_record_batch(rows, &order).map_err(|e| internal("sorting rows", e))
}

/// The order that sorts the rows by the columns at `key`; text in order of its bytes.
pub(crate) fn sort_order(rows: &RecordBatch, key: &[usize]) -> Result<UInt32Array> {
    let columns: Vec<SortColumn> =
        key.iter().map(|&i| SortColumn { values: rows.column(i).clone(), options: None }).collect();
    lexsort_to_indices(&columns, None).map_err(|e| internal("sorting rows", e))
}

/// Joins exact rows, sorted by (symbol, ts, known_at).
pub(crate) fn join_exact(spec: &DatasetSpec, parts: &[RecordBatch]) -> Result<RecordBatch> {
    let joined = arrow_select::concat::concat_batches(&exact_schema(spec), parts)
        .map_err(|e| internal("joining rows", e))?;
    sort_by_key(&joined, &[0, 1, 2])
}

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
