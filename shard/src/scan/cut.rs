//! Makes messages from the rows of a wave: rows are cut at chunk boundaries into runs, and runs go together as record batches.

use std::ops::Range;

use arrow_array::{Array, BooleanArray, RecordBatch, cast::AsArray, types::TimestampNanosecondType};
use arrow_schema::SchemaRef;
use bytes::Bytes;
use trellis_proto::{
    ChunkSpan, Code, DatasetSpec, Error, Result, TimeRange,
    fetch::{Answer, ChunkBatch, ChunkFailure, ChunkRun},
    pb,
};

use super::{
    plan::{Piece, RangeRequest},
    read::{Decoded, FileRows, with_column},
};
use crate::{error::internal, files::sort_by_key, metrics, table::Snapshot, wire};

/// Most bytes of rows in a message, unless a single chunk has more: messages of 256 KiB to 1 MiB are the fastest.
const BATCH_BYTES: usize = 768 << 10;

/// Most failures in a message; each has a few hundred bytes.
const FAILURES_MAX: usize = 1_024;

/// Most bytes of a single chunk: every client accepts messages of 64 MiB.
const CHUNK_BYTES_MAX: usize = 56 << 20;

/// Columns of a chunk schema before the fields.
const CHUNK_KEYS: usize = 2;

/// Joins the rows of each piece, cuts them into runs and frames these. Returns the messages in order, each with its number of rows.
pub(super) fn cut_wave(
    snapshot: &Snapshot,
    requests: &[RangeRequest],
    wave: &[Piece],
    decoded: Decoded,
    order: pb::FetchOrder,
    seq: u64,
) -> Vec<(pb::FetchReply, u64)> {
    let mut runs: Vec<CutRun> = Vec::new();
    let mut failures: Vec<ChunkFailure> = Vec::new();
    for (piece, parts) in wave.iter().zip(decoded) {
        match parts.and_then(|parts| join(&snapshot.spec, &requests[piece.request].fields, parts)) {
            Ok((rows, left_out)) => {
                if left_out > 0 {
                    metrics::rows_doubled(left_out as u64);
                    let (dataset, symbol) = (&snapshot.spec.dataset, &requests[piece.request].symbol);
                    tracing::warn!(%dataset, symbol, left_out, "{DOUBLED}");
                }
                runs.extend(cut(&rows, snapshot.spec.chunk, piece));
            }
            Err(error) => {
                failures.push(failure(snapshot, &requests[piece.request], piece.first..piece.end, &error));
            }
        }
    }
    match order {
        pb::FetchOrder::NewestFirst => runs.sort_by_key(|run| std::cmp::Reverse(run.chunks().end)),
        pb::FetchOrder::OldestFirst => runs.sort_by_key(|run| run.chunks().end),
    }
    let mut replies = Vec::new();
    for runs in together(runs, |request| &requests[request].fields) {
        match frame(snapshot, requests, &runs, seq) {
            Ok(batch) => {
                let rows = batch.rows();
                replies.push((Answer::Batch(batch).into(), rows));
            }
            Err(error) => failures.extend(
                runs.iter().map(|run| failure(snapshot, &requests[run.request], run.chunks(), &error)),
            ),
        }
    }
    // Failures go first: a reader that waits for these chunks alone does not wait for the others.
    failed(failures).map(|reply| (reply, 0)).chain(replies).collect()
}

fn failure(snapshot: &Snapshot, request: &RangeRequest, chunks: Range<i64>, error: &Error) -> ChunkFailure {
    let chunk = snapshot.spec.chunk;
    let range = TimeRange { start: Some(chunk.start(chunks.start)), end: Some(chunk.end(chunks.end - 1)) };
    let error = error.clone().dataset(&snapshot.spec.dataset).symbol(&request.symbol).range(range);
    ChunkFailure { range: request.position as usize, chunks, error }
}

/// The failure of a range that the shard does not read.
pub(crate) fn refused(position: u32, range: &pb::ChunkRange, error: Error) -> ChunkFailure {
    ChunkFailure { range: position as usize, chunks: range.first..range.end, error }
}

/// The messages for failures.
pub(crate) fn failed(failures: Vec<ChunkFailure>) -> impl Iterator<Item = pb::FetchReply> {
    let mut failures = failures.into_iter();
    std::iter::from_fn(move || {
        let some: Vec<_> = failures.by_ref().take(FAILURES_MAX).collect();
        (!some.is_empty()).then(|| Answer::Failures(some).into())
    })
}

/// What is logged of rows that were left out.
const DOUBLED: &str =
    "rows of one symbol have the same ts and the same known_at; of each such group the last one is served";

/// All rows of a piece, sorted by (ts, known_at), and how many others were left out.
fn join(spec: &DatasetSpec, fields: &[usize], mut parts: Vec<FileRows>) -> Result<(RecordBatch, usize)> {
    if parts.is_empty() {
        return Ok((RecordBatch::new_empty(spec.chunk_schema(fields)), 0));
    }
    let key = |rows: &RecordBatch, row: usize| -> (i64, i64) {
        let value = |column: usize| rows.column(column).as_primitive::<TimestampNanosecondType>().value(row);
        (value(0), value(1))
    };
    parts.sort_by_key(|part| key(&part.rows, 0));
    // Files rarely overlap in time, because sessions follow each other. Joined in order they are sorted.
    let ordered = parts.iter().all(|part| part.sorted)
        && parts
            .windows(2)
            .all(|pair| key(&pair[0].rows, pair[0].rows.num_rows() - 1) <= key(&pair[1].rows, 0));
    let joined = concat(parts.iter().map(|part| &part.rows), CHUNK_KEYS + fields.len())?;
    undoubled(if ordered { joined } else { sort_by_key(&joined, &[0, 1])? })
}

/// Leaves out each row that is followed by one with the same (ts, known_at): such versions have no order, and a head refuses a chunk
/// that has them. No shard writes them any more; other tools and earlier releases may have.
fn undoubled(rows: RecordBatch) -> Result<(RecordBatch, usize)> {
    let times = |column: usize| rows.column(column).as_primitive::<TimestampNanosecondType>().values();
    let (ts, known_at) = (times(0), times(1));
    let doubled = |i: usize| ts[i] == ts[i + 1] && known_at[i] == known_at[i + 1];
    let pairs = rows.num_rows().saturating_sub(1);
    if !(0..pairs).any(doubled) {
        return Ok((rows, 0));
    }
    let keep: BooleanArray = (0..rows.num_rows()).map(|i| Some(i == pairs || !doubled(i))).collect();
    let kept = arrow_select::filter::filter_record_batch(&rows, &keep)
        .map_err(|e| internal("leaving out rows", e))?;
    let left_out = rows.num_rows() - kept.num_rows();
    Ok((kept, left_out))
}

/// Adds the column `retracted` to rows that have just the first `columns` columns: none of them is a retraction.
fn with_retracted(rows: &RecordBatch, columns: usize) -> Result<RecordBatch> {
    if rows.num_columns() > columns {
        return Ok(rows.clone());
    }
    let none = std::sync::Arc::new(BooleanArray::from(vec![false; rows.num_rows()]));
    let all = rows.columns().iter().cloned().chain([none as _]).collect();
    RecordBatch::try_new(with_column(&rows.schema()), all).map_err(|e| internal("telling retractions", e))
}

/// Joins rows. They have `columns` columns, and `retracted` beyond those if any of them has it.
fn concat<'a>(parts: impl Iterator<Item = &'a RecordBatch> + Clone, columns: usize) -> Result<RecordBatch> {
    let joined = |schema: &SchemaRef, parts: &mut dyn Iterator<Item = &RecordBatch>| {
        arrow_select::concat::concat_batches(schema, parts).map_err(|e| internal("joining chunks", e))
    };
    if parts.clone().all(|rows| rows.num_columns() == columns) {
        let Some(first) = parts.clone().next() else {
            return Err(internal("joining chunks", "there are none"));
        };
        return joined(&first.schema(), &mut parts.into_iter());
    }
    let parts = parts.map(|rows| with_retracted(rows, columns)).collect::<Result<Vec<_>>>()?;
    joined(&parts[0].schema(), &mut parts.iter())
}

/// Adjacent chunks of one range.
struct CutRun {
    /// Position among the requests.
    request: usize,
    first: i64,
    chunk_rows: Vec<u32>,
    rows: RecordBatch,
    /// Bytes in a message: of the rows, and of the row counts (there may be many chunks without rows).
    bytes: usize,
}

impl CutRun {
    fn chunks(&self) -> Range<i64> {
        self.first..self.first + self.chunk_rows.len() as i64
    }
}

/// Cuts a piece's rows at chunk boundaries into runs of at most [`BATCH_BYTES`], or one chunk if that has more.
fn cut(rows: &RecordBatch, chunk: ChunkSpan, piece: &Piece) -> Vec<CutRun> {
    let ts = rows.column(0).as_primitive::<TimestampNanosecondType>().values();
    let mut counts = vec![0_u32; (piece.end - piece.first) as usize];
    let mut row = 0;
    while let Some(&at) = ts.get(row) {
        // One division and some comparisons for each chunk, not a division for each row.
        let k = chunk.chunk_of(at);
        let end = chunk.end(k);
        // The greatest time is in the last chunk, and not after it.
        let after = ts[row..].partition_point(|t| *t < end || *t == at);
        counts[(k - piece.first) as usize] += after as u32;
        row += after;
    }
    let width = (slice_bytes(rows) / rows.num_rows().max(1)).max(1);
    let mut runs = Vec::new();
    let (mut start, mut from, mut row) = (0, 0, 0);
    for i in 0..counts.len() {
        row += counts[i] as usize;
        let next = counts.get(i + 1).copied().unwrap_or(0) as usize;
        let full = (row - from + next) * width > BATCH_BYTES;
        if i + 1 == counts.len() || (full && row > from) {
            let chunk_rows = counts[start..=i].to_vec();
            runs.push(CutRun {
                request: piece.request,
                first: piece.first + start as i64,
                bytes: (row - from) * width + size_of_val(chunk_rows.as_slice()),
                chunk_rows,
                rows: rows.slice(from, row - from),
            });
            (start, from) = (i + 1, row);
        }
    }
    runs
}

/// Bytes of the rows, not of the buffers that they are slices of.
fn slice_bytes(rows: &RecordBatch) -> usize {
    rows.columns().iter().map(|c| c.to_data().get_slice_memory_size().unwrap_or(0)).sum()
}

/// Divides runs into batches. A batch has runs of one set of fields, in the order given, and at most [`BATCH_BYTES`] (or one run
/// that has more).
fn together<'a>(runs: Vec<CutRun>, fields: impl Fn(usize) -> &'a [usize]) -> Vec<Vec<CutRun>> {
    struct Open<'a> {
        fields: &'a [usize],
        bytes: usize,
        runs: Vec<CutRun>,
    }
    let mut full = Vec::new();
    // There are few: a head requests for one set of fields, or for two if it has some of them already.
    let mut open: Vec<Open<'a>> = Vec::new();
    for run in runs {
        let fields = fields(run.request);
        let at = open.iter().position(|open| open.fields == fields).unwrap_or_else(|| {
            open.push(Open { fields, bytes: 0, runs: Vec::new() });
            open.len() - 1
        });
        let into = &mut open[at];
        if !into.runs.is_empty() && into.bytes + run.bytes > BATCH_BYTES {
            full.push(std::mem::take(&mut into.runs));
            into.bytes = 0;
        }
        into.bytes += run.bytes;
        into.runs.push(run);
    }
    full.extend(open.into_iter().map(|open| open.runs));
    full
}

/// Runs of the same fields as one record batch.
fn frame(snapshot: &Snapshot, requests: &[RangeRequest], runs: &[CutRun], seq: u64) -> Result<ChunkBatch> {
    let Some(first) = runs.first() else { return Err(internal("framing rows", "there are no runs")) };
    // A run that large is alone in its batch.
    if first.bytes > CHUNK_BYTES_MAX {
        let (dataset, symbol) = (&snapshot.spec.dataset, &requests[first.request].symbol);
        let what = format!("a chunk of {dataset} {symbol} is {} bytes", first.bytes);
        return Err(Error::new(Code::TooLarge, what).hint("import the dataset with a smaller chunk"));
    }
    let columns = CHUNK_KEYS + requests[first.request].fields.len();
    let mut rows = concat(runs.iter().map(|run| &run.rows), columns)?;
    let retracted = if rows.num_columns() > columns {
        wire::bits(rows.remove_column(columns).as_boolean())
    } else {
        Bytes::new()
    };
    let (header, body) = wire::encode(&rows)?;
    let runs = runs.iter().map(|run| ChunkRun {
        range: requests[run.request].position as usize,
        first: run.first,
        chunk_rows: run.chunk_rows.clone(),
    });
    Ok(ChunkBatch {
        runs: runs.collect(),
        version: snapshot.version,
        known_through: snapshot.known_through,
        watermark: snapshot.watermark,
        seq,
        header,
        body,
        retracted,
    })
}

#[cfg(test)]
mod tests {
    use arrow_array::{ArrayRef, Int64Array};

    use super::*;
    use crate::{files::wire_time, testing::Grid};

    fn rows(ts: &[i64]) -> RecordBatch {
        let ts: ArrayRef = wire_time(&Int64Array::from(ts.to_vec()));
        RecordBatch::try_from_iter([("ts", ts.clone()), ("known_at", ts)]).unwrap()
    }

    fn times(rows: &RecordBatch) -> &[i64] {
        rows.column(0).as_primitive::<TimestampNanosecondType>().values()
    }

    #[test]
    fn every_chunk_is_in_exactly_one_run() {
        let span = ChunkSpan::new(1_000_000_000).unwrap();
        let ts: Vec<i64> = (0..400_000).map(|i| -100_000_000_000 + i * 700_000).collect();
        let runs = cut(&rows(&ts), span, &Piece { request: 0, first: -110, end: 300 });
        assert!(runs.len() > 3);
        assert_eq!(runs.iter().map(|r| r.chunk_rows.len()).sum::<usize>(), 410);
        assert_eq!(runs.iter().map(|r| r.rows.num_rows()).sum::<usize>(), ts.len());
        let mut next = -110;
        for run in &runs {
            assert_eq!(run.first, next);
            let mut row = 0;
            for &count in &run.chunk_rows {
                for &ts in &times(&run.rows)[row..row + count as usize] {
                    assert_eq!(span.chunk_of(ts), next);
                }
                row += count as usize;
                next += 1;
            }
            assert_eq!(row, run.rows.num_rows());
            assert!(row * 16 <= BATCH_BYTES);
        }
        let none = cut(&rows(&[]), span, &Piece { request: 0, first: 5, end: 8 });
        assert_eq!((none.len(), none[0].chunk_rows.clone()), (1, vec![0, 0, 0]));
        // the last chunk there is ends with time itself
        let last = span.chunk_of(i64::MAX);
        let ends = [i64::MAX - 1, i64::MAX - 1, i64::MAX, i64::MAX];
        let all = cut(&rows(&ends), span, &Piece { request: 0, first: last, end: last + 1 });
        assert_eq!((all.len(), all[0].chunk_rows.clone()), (1, vec![4]));
    }

    #[test]
    fn runs_go_together_by_fields_in_order_and_within_the_bound() {
        let fields: [&[usize]; 3] = [&[0], &[0, 1], &[0]];
        let run = |request: usize, first: i64, bytes: usize| CutRun {
            request,
            first,
            chunk_rows: vec![1],
            rows: rows(&[first]),
            bytes,
        };
        let half = BATCH_BYTES / 2;
        let sent = |runs: Vec<CutRun>| -> Vec<Vec<(usize, i64)>> {
            let batches = together(runs, |request| fields[request]);
            batches.iter().map(|batch| batch.iter().map(|run| (run.request, run.first)).collect()).collect()
        };
        assert_eq!(sent(vec![]), Vec::<Vec<(usize, i64)>>::new());
        assert_eq!(sent(vec![run(0, 9, 1)]), [[(0, 9)]]);
        // exactly full, then one byte more
        let runs = vec![run(0, 9, half), run(2, 8, half), run(0, 7, half + 1), run(2, 6, half)];
        assert_eq!(sent(runs), [vec![(0, 9), (2, 8)], vec![(0, 7)], vec![(2, 6)]]);
        // other fields do not cut what goes together, and what is too large goes alone
        let runs = vec![run(0, 9, 1), run(1, 8, 1), run(2, 7, 1), run(1, 6, 3 * BATCH_BYTES), run(1, 5, 1)];
        assert_eq!(sent(runs), [vec![(1, 8)], vec![(1, 6)], vec![(0, 9), (2, 7)], vec![(1, 5)]]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn of_rows_without_an_order_the_last_is_served_and_all_others_are() {
        let grid = Grid::new().await;
        // These rows come past the door, as an earlier release let them.
        grid.import(&[("A", 1, 1.0), ("A", 1, 2.0), ("A", 1, 3.0), ("A", 2, 4.0)]).await.unwrap();
        grid.import(&[("A", 1, 5.0)]).await.unwrap();
        assert_eq!(grid.rows("A").await, [(1, 3.0), (1, 5.0), (2, 4.0)]);
        let (kept, left_out) = undoubled(rows(&[1, 1, 2, 3, 3, 3])).unwrap();
        assert_eq!((times(&kept).to_vec(), left_out), (vec![1, 2, 3], 3));
        assert_eq!(undoubled(rows(&[])).unwrap().1, 0);
    }

    #[test]
    fn failures_go_together_within_the_bound() {
        let failure = |range: usize| ChunkFailure {
            range,
            chunks: 0..1,
            error: Error::new(Code::Unavailable, "the disk is away"),
        };
        let replies: Vec<_> = failed((0..FAILURES_MAX + 1).map(failure).collect()).collect();
        let counts = replies.iter().map(|reply| match &reply.reply {
            Some(pb::fetch_reply::Reply::Failures(failures)) => failures.failures.len(),
            _ => 0,
        });
        assert_eq!(counts.collect::<Vec<_>>(), [FAILURES_MAX, 1]);
        assert_eq!(failed(Vec::new()).count(), 0);
    }
}
