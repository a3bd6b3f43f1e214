//! Reading chunks: from ranges to chunk runs.
//!
//! All ranges of a call are planned together, so that a row group that holds forty of the symbols asked for is read once,
//! not forty times. A call may ask for more than fits in memory, so it is cut into *waves* of bounded size: by symbol, in
//! the order of the files, and a series that is too long for one wave also by time. Within a wave every file is read once,
//! in parallel, with just the rows and columns that are wanted; then the wave's runs are cut, framed and sent while the
//! next wave is not yet read. A client that reads slowly therefore holds one wave and a short queue, no more.
//!
//! Rejected: one stream per file that merges on the fly. It bounds memory better, but a range's rows come from all files,
//! so every range would wait for the slowest stream, and decoding would be tied to the client's pace.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use arrow_array::{Array, BooleanArray, Int64Array, RecordBatch, cast::AsArray, types::Int64Type};
use arrow_schema::{DataType, Field, Schema};
use futures::StreamExt;
use tokio::sync::mpsc;
use trellis_proto::{ChunkSpan, Code, DatasetSpec, Error, Result, TimeRange, pb};

use crate::{
    error::{internal, lost_task},
    file::DataFile,
    schema::{self, KNOWN_AT_NS, TS_NS},
    table::Snapshot,
    wire,
};

/// Decoded bytes of a wave. Large enough that a row group is rarely shared by two waves, small enough that dozens of calls
/// fit into memory.
const WAVE_BYTES: u64 = 32 << 20;
/// A run is sent when it has so many bytes; messages of 256 KiB to 1 MiB move best.
const RUN_BYTES: usize = 768 << 10;
/// A single chunk may be no larger: a message must fit into what every client accepts (64 MiB).
const CHUNK_BYTES_MAX: usize = 56 << 20;
/// Files read at once by one call.
const FILES_PARALLEL: usize = 4;
/// Chunks of one range: a run's row counts are listed one by one.
pub(crate) const CHUNKS_MAX: i64 = 1 << 20;

/// One range of a call, checked against its dataset.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    /// Position in the request.
    pub(crate) range: u32,
    pub(crate) symbol: String,
    /// Positions in the spec.
    pub(crate) fields: Vec<usize>,
    /// Chunks `[first, end)`, at most [`CHUNKS_MAX`].
    pub(crate) first: i64,
    pub(crate) end: i64,
}

/// A part of an ask that is read in one wave.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Piece {
    /// Position among the asks.
    ask: usize,
    first: i64,
    end: i64,
}

impl Piece {
    /// Event times `[from, to)`.
    fn times(&self, chunk: ChunkSpan) -> (i64, i64) {
        (chunk.start(self.first), chunk.end(self.end - 1))
    }
}

/// Reads every ask from one snapshot and sends the replies. Returns early when nobody receives them any more.
///
/// Cancel safe: what is dropped is not read.
pub(crate) async fn scan(
    snapshot: Arc<Snapshot>,
    asks: Vec<Ask>,
    order: pb::FetchOrder,
    seq: u64,
    out: &mpsc::Sender<Result<pb::FetchReply, tonic::Status>>,
) -> u64 {
    let mut rows = 0;
    let asks: Arc<[Ask]> = asks.into();
    for wave in plan(&snapshot, &asks, order) {
        let decoded = read_wave(&snapshot, &asks, &wave).await;
        let replies = {
            let (snapshot, asks) = (snapshot.clone(), asks.clone());
            tokio::task::spawn_blocking(move || cut_wave(&snapshot, &asks, &wave, decoded, order, seq)).await
        };
        let replies = match replies {
            Ok(replies) => replies,
            Err(error) => {
                let _ = out.send(Err(lost_task("cutting chunks", error).into())).await;
                return rows;
            }
        };
        for (reply, count) in replies {
            rows += count;
            if out.send(Ok(reply)).await.is_err() {
                return rows;
            }
        }
    }
    rows
}

/// Cuts the asks into waves. Pure but for the snapshot's indexes.
fn plan(snapshot: &Snapshot, asks: &[Ask], order: pb::FetchOrder) -> Vec<Vec<Piece>> {
    let spec = &snapshot.spec;
    // (slice of time, symbol) decides which wave: all symbols' newest slices come before the next ones.
    let mut pieces: Vec<(usize, &str, Piece, u64)> = Vec::new();
    for (i, ask) in asks.iter().enumerate() {
        let width = row_width(spec, &ask.fields) as u64;
        let (from, to) = (spec.chunk.start(ask.first), spec.chunk.end(ask.end - 1));
        let found = estimate(snapshot, &ask.symbol, from, to);
        let slices = (found.rows * width).div_ceil(WAVE_BYTES).max(1) as i64;
        let lowest = spec.chunk.chunk_of(found.first_ts.clamp(from, to)).clamp(ask.first, ask.end - 1);
        let highest = spec.chunk.chunk_of(found.last_ts.clamp(from, to)).clamp(lowest, ask.end - 1) + 1;
        let slices = slices.min(highest - lowest);
        let bound = |k: i64| lowest + (highest - lowest) * k / slices;
        for k in 0..slices {
            let first = if k == 0 { ask.first } else { bound(k) };
            let end = if k == slices - 1 { ask.end } else { bound(k + 1) };
            let slice = match order {
                pb::FetchOrder::NewestFirst => slices - 1 - k,
                pb::FetchOrder::OldestFirst => k,
            };
            let bytes = found.rows * width / slices as u64;
            pieces.push((slice as usize, &ask.symbol, Piece { ask: i, first, end }, bytes));
        }
    }
    pieces.sort_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)));
    let mut waves: Vec<Vec<Piece>> = Vec::new();
    let mut room = 0;
    for (_, _, piece, bytes) in pieces {
        match waves.last_mut() {
            Some(wave) if bytes <= room => {
                room -= bytes;
                wave.push(piece);
            }
            _ => {
                room = WAVE_BYTES.saturating_sub(bytes);
                waves.push(vec![piece]);
            }
        }
    }
    waves
}

struct Estimate {
    rows: u64,
    first_ts: i64,
    last_ts: i64,
}

/// Rows of `symbol` in `[from, to)`, taking them to be spread evenly over each run.
fn estimate(snapshot: &Snapshot, symbol: &str, from: i64, to: i64) -> Estimate {
    let mut all = Estimate { rows: 0, first_ts: i64::MAX, last_ts: i64::MIN };
    for run in snapshot.files.iter().flat_map(|f| f.index.runs_of(symbol)) {
        let (first, last) = (run.first_ts.max(from), run.last_ts.min(to.saturating_sub(1)));
        if first > last {
            continue;
        }
        let share = (last as f64 - first as f64 + 1.0) / (run.last_ts as f64 - run.first_ts as f64 + 1.0);
        all.rows += (f64::from(run.end - run.start) * share.min(1.0)).ceil() as u64;
        all.first_ts = all.first_ts.min(first);
        all.last_ts = all.last_ts.max(last);
    }
    if all.rows == 0 {
        (all.first_ts, all.last_ts) = (from, from);
    }
    all
}

fn row_width(spec: &DatasetSpec, fields: &[usize]) -> usize {
    16 + fields.iter().map(|&f| spec.fields[f].data_type.width()).sum::<usize>()
}

/// Rows found for the pieces of a wave: for each piece the parts in file order, or why not.
type Decoded = Vec<Result<Vec<Part>>>;

/// Rows of one piece out of one file: `ts_ns`, `known_at_ns`, the piece's fields in wire types.
#[derive(Debug)]
struct Part {
    rows: RecordBatch,
    /// Whether they are sorted by (ts, known_at).
    sorted: bool,
}

async fn read_wave(snapshot: &Arc<Snapshot>, asks: &[Ask], wave: &[Piece]) -> Decoded {
    let chunk = snapshot.spec.chunk;
    let mut decoded: Decoded = wave.iter().map(|_| Ok(Vec::new())).collect();
    let mut by_symbol: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (i, piece) in wave.iter().enumerate() {
        by_symbol.entry(&asks[piece.ask].symbol).or_default().push(i);
    }
    let times: Vec<(i64, i64)> = wave.iter().map(|piece| piece.times(chunk)).collect();
    let span = times.iter().fold((i64::MAX, i64::MIN), |all, t| (all.0.min(t.0), all.1.max(t.1)));

    // Which rows of which file, before anything is read.
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
                let rows = read_file(&snapshot.spec, &file, asks, wave, times, &targets).await;
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
    asks: &[Ask],
    wave: &[Piece],
    times: &[(i64, i64)],
    targets: &[(usize, Range<u32>)],
) -> Result<Vec<(usize, Part)>> {
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
        narrowed.iter().flat_map(|(i, _)| asks[wave[*i].ask].fields.clone()).collect();
    fields.sort_unstable();
    fields.dedup();
    let mut columns = vec![TS_NS.to_owned(), KNOWN_AT_NS.to_owned()];
    columns.extend(fields.iter().map(|&f| schema::exact_column(&spec.fields[f])));
    let ranges = union(narrowed.iter().map(|(_, rows)| rows.start as usize..rows.end as usize).collect());
    let batches = file.read(&columns, Some(ranges.clone())).await?;

    let mut parts = Vec::with_capacity(narrowed.len());
    for (i, rows) in narrowed {
        let piece_fields = &asks[wave[i].ask].fields;
        for slice in slices(&batches, &ranges, rows.start as usize..rows.end as usize) {
            let slice = in_times(&slice, times[i], file.index.sorted)?;
            if slice.num_rows() > 0 {
                let rows = wire_rows(spec, &fields, piece_fields, &slice)?;
                parts.push((i, Part { rows, sorted: file.index.sorted }));
            }
        }
    }
    Ok(parts)
}

/// Ascending, disjoint, not adjacent.
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

/// The rows `wanted` of a file, of which `batches` hold the rows `ranges` one after the other.
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

/// Picks a piece's fields out of what was read for several pieces. Columns stay slices: the copy comes once, at the end.
fn wire_rows(
    spec: &DatasetSpec,
    read: &[usize],
    wanted: &[usize],
    rows: &RecordBatch,
) -> Result<RecordBatch> {
    let mut fields =
        vec![Field::new(TS_NS, DataType::Int64, false), Field::new(KNOWN_AT_NS, DataType::Int64, false)];
    let mut columns = vec![rows.column(0).clone(), rows.column(1).clone()];
    for &wanted in wanted {
        let field = &spec.fields[wanted];
        let position =
            read.binary_search(&wanted).map_err(|_| internal("picking columns", "one was not read"))?;
        columns.push(schema::wire_field(field, rows.column(2 + position))?);
        fields.push(Field::new(field.name.as_str(), field.data_type.to_arrow(), field.nullable));
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
        .map_err(|e| Error::new(Code::DataCorrupt, format!("rows do not fit the dataset: {e}")))
}

/// Joins each piece's parts, cuts them into runs, and frames those. In the order to be sent; with rows of each.
fn cut_wave(
    snapshot: &Snapshot,
    asks: &[Ask],
    wave: &[Piece],
    decoded: Decoded,
    order: pb::FetchOrder,
    seq: u64,
) -> Vec<(pb::FetchReply, u64)> {
    let chunk = snapshot.spec.chunk;
    let mut replies: Vec<(i64, pb::FetchReply, u64)> = Vec::new();
    for (piece, parts) in wave.iter().zip(decoded) {
        let ask = &asks[piece.ask];
        let runs = parts
            .and_then(|parts| join(&snapshot.spec, &ask.fields, parts))
            .map(|rows| cut(&rows, chunk, piece.first, piece.end));
        let runs = match runs {
            Ok(runs) => runs,
            Err(error) => {
                replies.push((piece.end, failure(snapshot, ask, piece.first, piece.end, &error), 0));
                continue;
            }
        };
        for run in runs {
            let end = run.first + run.rows.len() as i64;
            let count = run.batch.num_rows() as u64;
            let framed = if run.bytes > CHUNK_BYTES_MAX {
                Err(Error::new(
                    Code::TooLarge,
                    format!("a chunk of {} {} is {} bytes", snapshot.spec.dataset, ask.symbol, run.bytes),
                )
                .hint("import the dataset with a smaller chunk"))
            } else {
                frame(&run.batch)
            };
            let reply = match framed {
                Ok((data_header, data_body)) => pb::FetchReply {
                    reply: Some(pb::fetch_reply::Reply::Run(pb::ChunkRun {
                        range: ask.range,
                        first: run.first,
                        rows: run.rows,
                        version: snapshot.version,
                        known_through_ns: snapshot.known_through,
                        watermark_ns: snapshot.watermark,
                        seq,
                        data_header,
                        data_body,
                    })),
                },
                Err(error) => failure(snapshot, ask, run.first, end, &error),
            };
            replies.push((end, reply, count));
        }
    }
    match order {
        pb::FetchOrder::NewestFirst => replies.sort_by_key(|reply| std::cmp::Reverse(reply.0)),
        pb::FetchOrder::OldestFirst => replies.sort_by_key(|reply| reply.0),
    }
    replies.into_iter().map(|(_, reply, rows)| (reply, rows)).collect()
}

fn failure(snapshot: &Snapshot, ask: &Ask, first: i64, end: i64, error: &Error) -> pb::FetchReply {
    let chunk = snapshot.spec.chunk;
    let range = TimeRange { start: Some(chunk.start(first)), end: Some(chunk.end(end - 1)) };
    let error = error.clone().dataset(&snapshot.spec.dataset).symbol(&ask.symbol).range(range);
    failed(ask.range, first, end, error)
}

/// The reply that says why chunks could not be read.
pub(crate) fn failed(range: u32, first: i64, end: i64, error: Error) -> pb::FetchReply {
    pb::FetchReply {
        reply: Some(pb::fetch_reply::Reply::Failure(pb::ChunkFailure {
            range,
            first,
            end,
            error: Some(error.into()),
        })),
    }
}

/// All rows of a piece, sorted by (ts, known_at), in buffers of exactly their size.
fn join(spec: &DatasetSpec, fields: &[usize], mut parts: Vec<Part>) -> Result<RecordBatch> {
    let Some(first) = parts.first() else {
        let wire = spec.chunk_schema(fields);
        let mut empty =
            vec![Field::new(TS_NS, DataType::Int64, false), Field::new(KNOWN_AT_NS, DataType::Int64, false)];
        empty.extend(wire.fields().iter().skip(2).map(|f| f.as_ref().clone()));
        return Ok(RecordBatch::new_empty(Arc::new(Schema::new(empty))));
    };
    let schema = first.rows.schema();
    let key = |rows: &RecordBatch, row: usize| -> (i64, i64) {
        let value = |column: usize| rows.column(column).as_primitive::<Int64Type>().value(row);
        (value(0), value(1))
    };
    parts.sort_by_key(|part| key(&part.rows, 0));
    // Sessions follow each other, so files rarely overlap in time; then joining them is sorting them.
    let ordered = parts.iter().all(|part| part.sorted)
        && parts
            .windows(2)
            .all(|pair| key(&pair[0].rows, pair[0].rows.num_rows() - 1) <= key(&pair[1].rows, 0));
    let rows: Vec<&RecordBatch> = parts.iter().map(|part| &part.rows).collect();
    let joined =
        arrow_select::concat::concat_batches(&schema, rows).map_err(|e| internal("joining chunks", e))?;
    if ordered { Ok(joined) } else { wire::sort_by_key(&joined, &[0, 1]) }
}

struct CutRun {
    first: i64,
    rows: Vec<u32>,
    batch: RecordBatch,
    bytes: usize,
}

/// Cuts the rows of chunks `[first, end)` at chunk boundaries into runs of about [`RUN_BYTES`].
fn cut(rows: &RecordBatch, chunk: ChunkSpan, first: i64, end: i64) -> Vec<CutRun> {
    let mut counts = vec![0_u32; (end - first) as usize];
    for &ts in rows.column(0).as_primitive::<Int64Type>().values() {
        counts[(chunk.chunk_of(ts) - first) as usize] += 1;
    }
    let width = (slice_bytes(rows) / rows.num_rows().max(1)).max(1);
    let mut runs = Vec::new();
    let (mut start, mut from, mut row) = (0, 0, 0);
    for i in 0..counts.len() {
        row += counts[i] as usize;
        let next = counts.get(i + 1).copied().unwrap_or(0) as usize;
        let full = (row - from + next) * width > RUN_BYTES;
        if i + 1 == counts.len() || (full && row > from) {
            runs.push(CutRun {
                first: first + start as i64,
                rows: counts[start..=i].to_vec(),
                batch: rows.slice(from, row - from),
                bytes: (row - from) * width,
            });
            (start, from) = (i + 1, row);
        }
    }
    runs
}

/// Bytes of the rows themselves, not of the buffers that they are slices of.
fn slice_bytes(rows: &RecordBatch) -> usize {
    rows.columns().iter().map(|c| c.to_data().get_slice_memory_size().unwrap_or(0)).sum()
}

fn frame(rows: &RecordBatch) -> Result<(bytes::Bytes, bytes::Bytes)> {
    let mut columns = vec![
        schema::wire_time(rows.column(0).as_primitive::<Int64Type>()),
        schema::wire_time(rows.column(1).as_primitive::<Int64Type>()),
    ];
    columns.extend_from_slice(&rows.columns()[2..]);
    let mut fields = vec![
        Field::new("ts", trellis_proto::spec::time_type(), false),
        Field::new("known_at", trellis_proto::spec::time_type(), false),
    ];
    fields.extend(rows.schema().fields().iter().skip(2).map(|f| f.as_ref().clone()));
    let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
        .map_err(|e| internal("building a chunk run", e))?;
    wire::encode(&batch)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(ts: &[i64]) -> RecordBatch {
        let ts: arrow_array::ArrayRef = Arc::new(Int64Array::from(ts.to_vec()));
        RecordBatch::try_from_iter([(TS_NS, ts.clone()), (KNOWN_AT_NS, ts)]).unwrap()
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
            slices(&batches, &ranges, wanted)
                .iter()
                .flat_map(|b| b.column(0).as_primitive::<Int64Type>().values().to_vec())
                .collect()
        };
        assert_eq!(values(12..15), [12, 13, 14]);
        assert_eq!(values(20..24), [20, 21, 22, 23]);
        assert_eq!(values(10..11), [10]);
    }

    #[test]
    fn every_chunk_is_in_exactly_one_run() {
        let span = ChunkSpan::new(1_000_000_000).unwrap();
        let ts: Vec<i64> = (0..400_000).map(|i| -100_000_000_000 + i * 700_000).collect();
        let runs = cut(&rows(&ts), span, -110, 300);
        assert!(runs.len() > 3);
        assert_eq!(runs.iter().map(|r| r.rows.len()).sum::<usize>(), 410);
        assert_eq!(runs.iter().map(|r| r.batch.num_rows()).sum::<usize>(), ts.len());
        let mut next = -110;
        for run in &runs {
            assert_eq!(run.first, next);
            next += run.rows.len() as i64;
            assert_eq!(run.rows.iter().sum::<u32>() as usize, run.batch.num_rows());
            assert!(run.bytes <= RUN_BYTES);
        }
        let none = cut(&rows(&[]), span, 5, 8);
        assert_eq!((none.len(), none[0].rows.clone()), (1, vec![0, 0, 0]));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_scan_reads_the_pages_that_it_needs_once() {
        use crate::testing::Grid;

        // 40 symbols of 5,000 rows: four row groups; a page is 4,096 rows.
        let grid = Grid::new().await;
        let symbols: Vec<String> = (0..40).map(|i| format!("S{i:02}")).collect();
        let rows: Vec<(&str, i64, f64)> = symbols
            .iter()
            .flat_map(|s| (0..5_000).map(move |i| (s.as_str(), i * 86_400_000_000_000, i as f64)))
            .collect();
        grid.import(&rows).await.unwrap();
        // The footer is read once and kept.
        grid.fetch(vec![Grid::range("S00", 0, 1)]).await;
        let mut report = String::new();
        for (what, wanted, chunks) in [
            ("one symbol, all of its time", vec!["S07"], (0, 80)),
            // Two pages: the first one's bounds are widened by the neighbour that it begins with.
            ("one symbol, its last chunk", vec!["S07"], (78, 79)),
            ("two neighbours", vec!["S07", "S08"], (0, 80)),
            ("every symbol", symbols.iter().map(String::as_str).collect(), (0, 80)),
        ] {
            let ranges = wanted.iter().map(|s| Grid::range(s, chunks.0, chunks.1)).collect();
            grid.probe.forget();
            let rows = grid.fetch(ranges).await.len();
            let (reads, bytes) = grid.probe.reads(".parquet");
            report += &format!("{what}: {rows} rows, {reads} reads, {} KiB\n", bytes.div_ceil(1024));
        }
        assert_eq!(
            report,
            "one symbol, all of its time: 5000 rows, 6 reads, 33 KiB\n\
             one symbol, its last chunk: 8 rows, 6 reads, 33 KiB\n\
             two neighbours: 10000 rows, 9 reads, 49 KiB\n\
             every symbol: 200000 rows, 12 reads, 791 KiB\n"
        );
    }
}
