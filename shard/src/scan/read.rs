//! Reads a wave: every file once, with just the rows and columns that the wave needs.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use arrow_array::{Array, BooleanArray, Int64Array, RecordBatch, cast::AsArray, types::Int64Type};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use futures::StreamExt;
use trellis_proto::{Code, DatasetSpec, Error, Result};

use super::plan::{Piece, RangeRequest};
use crate::{
    error::internal,
    files::{
        DataFile, KNOWN_AT_NS, RETRACTED, TS_NS, Tally, exact_column, retractions, wire_field, wire_time,
    },
    table::Snapshot,
};

/// Files that one call reads at once.
const FILES_PARALLEL: usize = 4;

/// The rows of each piece of a wave, in the order of the files; or the reason why they cannot be read.
pub(super) type Decoded = Vec<Result<Vec<FileRows>>>;

/// Rows of one piece from one file, in the chunk schema of the piece's fields. If the file has retractions, `retracted` is the last
/// column.
#[derive(Debug)]
pub(super) struct FileRows {
    pub(super) rows: RecordBatch,
    /// Whether they are sorted by (ts, known_at).
    pub(super) sorted: bool,
}

pub(super) async fn read_wave(
    snapshot: &Arc<Snapshot>,
    requests: &[RangeRequest],
    wave: &[Piece],
    tally: &Arc<Tally>,
) -> Decoded {
    let chunk = snapshot.spec.chunk;
    let mut decoded: Decoded = wave.iter().map(|_| Ok(Vec::new())).collect();
    let mut by_symbol: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (i, piece) in wave.iter().enumerate() {
        by_symbol.entry(&requests[piece.request].symbol).or_default().push(i);
    }
    let times: Vec<(i64, i64)> = wave.iter().map(|piece| piece.times(chunk)).collect();
    let span = times.iter().fold((i64::MAX, i64::MIN), |all, t| (all.0.min(t.0), all.1.max(t.1)));

    // Choose the rows of each file before anything is read.
    let mut reads = Vec::new();
    for file in &snapshot.files {
        if file.index.rows == 0 || file.index.last_ts < span.0 || file.index.first_ts >= span.1 {
            continue;
        }
        let mut targets: Vec<(usize, Range<u32>)> = Vec::new();
        for (symbol, pieces) in &by_symbol {
            for run in file.index.runs_of(symbol) {
                for &i in pieces {
                    if run.last_ts >= times[i].0 && run.first_ts < times[i].1 {
                        targets.push((i, run.start..run.end));
                    }
                }
            }
        }
        if !targets.is_empty() {
            reads.push((file.clone(), targets));
        }
    }
    let mut results = futures::stream::iter(reads)
        .map(|(file, targets)| {
            let (snapshot, times) = (snapshot.clone(), &times);
            async move {
                let rows = read_file(&snapshot.spec, &file, requests, wave, times, &targets, tally).await;
                (targets, rows)
            }
        })
        .buffered(FILES_PARALLEL);
    while let Some((targets, rows)) = results.next().await {
        match rows {
            Ok(parts) => {
                for (i, part) in parts {
                    if let Ok(all) = &mut decoded[i] {
                        all.push(part);
                    }
                }
            }
            Err(error) => {
                for (i, _) in targets {
                    decoded[i] = Err(error.clone());
                }
            }
        }
    }
    decoded
}

async fn read_file(
    spec: &DatasetSpec,
    file: &DataFile,
    requests: &[RangeRequest],
    wave: &[Piece],
    times: &[(i64, i64)],
    targets: &[(usize, Range<u32>)],
    tally: &Arc<Tally>,
) -> Result<Vec<(usize, FileRows)>> {
    let mut narrowed: Vec<(usize, Range<u32>)> = Vec::with_capacity(targets.len());
    for (i, rows) in targets {
        let rows = file.narrow(rows.start, rows.end, times[*i].0, times[*i].1).await?;
        if !rows.is_empty() {
            narrowed.push((*i, rows));
        }
    }
    if narrowed.is_empty() {
        return Ok(Vec::new());
    }
    let mut fields: Vec<usize> =
        narrowed.iter().flat_map(|(i, _)| requests[wave[*i].request].fields.clone()).collect();
    fields.sort_unstable();
    fields.dedup();
    // All rows of most files have one knowledge time, and the index has it: that column is not decoded.
    let learnt = file.index.known_at();
    let retracts = file.index.retracts();
    let mut columns = vec![TS_NS.to_owned()];
    columns.extend(learnt.is_none().then(|| KNOWN_AT_NS.to_owned()));
    columns.extend(retracts.then(|| RETRACTED.to_owned()));
    columns.extend(fields.iter().map(|&f| exact_column(&spec.fields[f])));
    let ranges = union(narrowed.iter().map(|(_, rows)| rows.start as usize..rows.end as usize).collect());
    let mut batches = file.read_for(&columns, Some(ranges.clone()), tally).await?;
    if let Some(learnt) = learnt {
        batches = batches.iter().map(|rows| with_known_at(rows, learnt)).collect::<Result<_>>()?;
    }

    let mut parts = Vec::with_capacity(narrowed.len());
    let mut shapes: Vec<(&[usize], SchemaRef)> = Vec::new();
    for (i, rows) in narrowed {
        let wanted: &[usize] = &requests[wave[i].request].fields;
        let schema = match shapes.iter().find(|(fields, _)| *fields == wanted) {
            Some((_, schema)) => Arc::clone(schema),
            None => {
                let schema = spec.chunk_schema(wanted);
                let schema = if retracts { with_column(&schema) } else { schema };
                shapes.push((wanted, Arc::clone(&schema)));
                schema
            }
        };
        for slice in slices(&batches, &ranges, rows.start as usize..rows.end as usize) {
            let slice = in_times(&slice, times[i], file.index.sorted)?;
            if slice.num_rows() > 0 {
                let rows = wire_rows(spec, file, &fields, wanted, &schema, &slice)?;
                parts.push((i, FileRows { rows, sorted: file.index.sorted }));
            }
        }
    }
    Ok(parts)
}

/// A chunk schema with `retracted` as its last column.
pub(super) fn with_column(schema: &Schema) -> SchemaRef {
    let retracted = Arc::new(Field::new(RETRACTED, DataType::Boolean, false));
    Arc::new(Schema::new(schema.fields().iter().cloned().chain([retracted]).collect::<Vec<_>>()))
}

/// Puts the knowledge time in as the second column.
fn with_known_at(rows: &RecordBatch, known_at: i64) -> Result<RecordBatch> {
    let mut fields = rows.schema().fields().to_vec();
    fields.insert(1, Arc::new(Field::new(KNOWN_AT_NS, DataType::Int64, false)));
    let mut columns = rows.columns().to_vec();
    columns.insert(1, Arc::new(Int64Array::from(vec![known_at; rows.num_rows()])));
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
        .map_err(|e| internal("putting in the knowledge time", e))
}

/// The union of the ranges: ascending, disjoint and not adjacent.
fn union(mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    ranges.sort_by_key(|r| r.start);
    let mut out: Vec<Range<usize>> = Vec::new();
    for range in ranges {
        match out.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => out.push(range),
        }
    }
    out
}

/// The rows `wanted` of a file. `batches` have the rows `ranges` of it, one after the other.
fn slices(batches: &[RecordBatch], ranges: &[Range<usize>], wanted: Range<usize>) -> Vec<RecordBatch> {
    let mut ordinal = 0;
    for range in ranges {
        if range.contains(&wanted.start) {
            ordinal += wanted.start - range.start;
            break;
        }
        ordinal += range.len();
    }
    let (mut skip, mut take) = (ordinal, wanted.len());
    let mut out = Vec::new();
    for batch in batches {
        if take == 0 {
            break;
        }
        if skip >= batch.num_rows() {
            skip -= batch.num_rows();
            continue;
        }
        let len = take.min(batch.num_rows() - skip);
        out.push(batch.slice(skip, len));
        take -= len;
        skip = 0;
    }
    out
}

/// The rows whose `ts_ns` (the first column) lies in `[from, to)`.
fn in_times(rows: &RecordBatch, (from, to): (i64, i64), sorted: bool) -> Result<RecordBatch> {
    let ts = times_of(rows)?;
    if sorted {
        let start = ts.values().partition_point(|t| *t < from);
        let end = ts.values().partition_point(|t| *t < to);
        return Ok(rows.slice(start, end - start));
    }
    let keep: BooleanArray = ts.values().iter().map(|t| Some((from..to).contains(t))).collect();
    arrow_select::filter::filter_record_batch(rows, &keep).map_err(|e| internal("filtering rows", e))
}

fn times_of(rows: &RecordBatch) -> Result<&Int64Array> {
    rows.column(0).as_primitive_opt::<Int64Type>().ok_or_else(|| {
        Error::new(Code::DataCorrupt, format!("ts_ns is {}, expected int64", rows.column(0).data_type()))
    })
}

/// Picks the fields of one piece from rows that were read for several pieces. Columns stay slices; they are copied once, later.
fn wire_rows(
    spec: &DatasetSpec,
    file: &DataFile,
    read: &[usize],
    wanted: &[usize],
    schema: &SchemaRef,
    rows: &RecordBatch,
) -> Result<RecordBatch> {
    let known_at = rows.column(1).as_primitive_opt::<Int64Type>().ok_or_else(|| {
        Error::new(
            Code::DataCorrupt,
            format!("known_at_ns is {}, expected int64", rows.column(1).data_type()),
        )
    })?;
    let mut columns = vec![wire_time(times_of(rows)?), wire_time(known_at)];
    let keys = if file.index.retracts() { 3 } else { 2 };
    for &wanted in wanted {
        let position =
            read.binary_search(&wanted).map_err(|_| internal("picking columns", "one was not read"))?;
        columns.push(wire_field(&spec.fields[wanted], rows.column(keys + position))?);
    }
    if file.index.retracts() {
        columns.push(Arc::new(retractions(&file.name, rows.column(2))?));
    }
    RecordBatch::try_new(Arc::clone(schema), columns)
        .map_err(|e| Error::new(Code::DataCorrupt, format!("rows do not fit the dataset: {e}")))
}

#[cfg(test)]
mod tests {
    use arrow_array::{ArrayRef, types::TimestampNanosecondType};

    use super::*;

    fn rows(ts: &[i64]) -> RecordBatch {
        let ts: ArrayRef = wire_time(&Int64Array::from(ts.to_vec()));
        RecordBatch::try_from_iter([("ts", ts.clone()), ("known_at", ts)]).unwrap()
    }

    fn times(rows: &RecordBatch) -> &[i64] {
        rows.column(0).as_primitive::<TimestampNanosecondType>().values()
    }

    #[test]
    fn overlapping_and_adjacent_row_ranges_are_read_once() {
        assert_eq!(union(vec![8..9, 0..3, 3..5, 2..4]), [0..5, 8..9]);
    }

    #[test]
    fn wanted_rows_are_found_in_what_was_read() {
        let batches = [rows(&[10, 11, 12, 13]), rows(&[14, 20, 21]), rows(&[22, 23])];
        let ranges = [10..15, 20..24];
        let values = |wanted: Range<usize>| -> Vec<i64> {
            slices(&batches, &ranges, wanted).iter().flat_map(|b| times(b).to_vec()).collect()
        };
        assert_eq!(values(12..15), [12, 13, 14]);
        assert_eq!(values(20..24), [20, 21, 22, 23]);
        assert_eq!(values(10..11), [10]);
    }
}
