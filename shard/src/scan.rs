//! Reading chunks: from ranges to chunk runs.
//!
//! All ranges of a call are planned together, so that a row group that holds forty of the symbols asked for is read once,
//! not forty times. A call may ask for more than fits in memory, so it is cut into *waves* of bounded size: by symbol, in
//! the order of the files, and a series that is too long for one wave also by time. Within a wave every file is read once,
//! in parallel, with just the rows and columns that are wanted; then the wave's runs are cut, framed and sent while the
//! next wave is not yet read. A client that reads slowly therefore holds one wave and a short queue, no more.
//!
//! All runs of a wave are ready at the same moment. Those with the same fields go together as one record batch, up to
//! [`BATCH_BYTES`]: five hundred short series are a few messages, encoded and decoded as that many batches, and a lone
//! series goes at once. No timer decides, and nothing waits for the next wave.
//!
//! Which rows are retractions is read only of files that have any. On the way such rows have one column more, the last; it
//! leaves the record batch as bits beside it.
//!
//! Rejected: one stream per file that merges on the fly. It bounds memory better, but a range's rows come from all files,
//! so every range would wait for the slowest stream, and decoding would be tied to the client's pace.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use arrow_array::{
    Array, BooleanArray, Int64Array, RecordBatch,
    cast::AsArray,
    types::{Int64Type, TimestampNanosecondType},
};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::mpsc;
use trellis_proto::{
    ChunkSpan, Code, DatasetSpec, Error, Result, TimeRange,
    fetch::{Answer, ChunkBatch, ChunkFailure, ChunkRun},
    pb,
};

use crate::{
    error::{internal, lost_task},
    file::{self, DataFile},
    schema::{self, KNOWN_AT_NS, RETRACTED, TS_NS},
    table::Snapshot,
    wire,
};

/// Decoded bytes of a wave. Large enough that a row group is rarely shared by two waves, small enough that dozens of calls
/// fit into memory.
const WAVE_BYTES: u64 = 32 << 20;
/// Rows of a message, at most, unless a single chunk has more: messages of 256 KiB to 1 MiB move best.
const BATCH_BYTES: usize = 768 << 10;
/// Failures of a message, at most: of some hundred bytes each.
const FAILURES_MAX: usize = 1_024;
/// A single chunk may be no larger: a message must fit into what every client accepts (64 MiB).
const CHUNK_BYTES_MAX: usize = 56 << 20;
/// Files read at once by one call.
const FILES_PARALLEL: usize = 4;
/// Columns of a chunk schema before the fields.
const CHUNK_KEYS: usize = 2;
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

/// Rows of one piece out of one file, in the dataset's chunk schema of the piece's fields; with `retracted` after them if the
/// file has retractions.
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
    // most files are one commit's: what its index says of every row is not decoded
    let learnt = file.index.known_at();
    let retracts = file.index.retracts();
    let mut columns = vec![TS_NS.to_owned()];
    columns.extend(learnt.is_none().then(|| KNOWN_AT_NS.to_owned()));
    columns.extend(retracts.then(|| RETRACTED.to_owned()));
    columns.extend(fields.iter().map(|&f| schema::exact_column(&spec.fields[f])));
    let ranges = union(narrowed.iter().map(|(_, rows)| rows.start as usize..rows.end as usize).collect());
    let mut batches = file.read(&columns, Some(ranges.clone())).await?;
    if let Some(learnt) = learnt {
        batches = batches.iter().map(|rows| with_known_at(rows, learnt)).collect::<Result<_>>()?;
    }

    let mut parts = Vec::with_capacity(narrowed.len());
    let mut shapes: Vec<(&[usize], SchemaRef)> = Vec::new();
    for (i, rows) in narrowed {
        let wanted: &[usize] = &asks[wave[i].ask].fields;
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
                parts.push((i, Part { rows, sorted: file.index.sorted }));
            }
        }
    }
    Ok(parts)
}

/// A chunk schema with `retracted` after its columns.
fn with_column(schema: &Schema) -> SchemaRef {
    let retracted = Arc::new(Field::new(RETRACTED, DataType::Boolean, false));
    Arc::new(Schema::new(schema.fields().iter().cloned().chain([retracted]).collect::<Vec<_>>()))
}

/// Rows with so many columns without `retracted`, with it: what comes from a file without retractions is none.
fn with_retracted(rows: &RecordBatch, columns: usize) -> Result<RecordBatch> {
    if rows.num_columns() > columns {
        return Ok(rows.clone());
    }
    let none = Arc::new(BooleanArray::from(vec![false; rows.num_rows()]));
    let all = rows.columns().iter().cloned().chain([none as _]).collect();
    RecordBatch::try_new(with_column(&rows.schema()), all).map_err(|e| internal("telling retractions", e))
}

/// Joins rows with so many columns without `retracted`; with it, if any of them has it.
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

/// Rows of a file with their knowledge time put in as the second column.
fn with_known_at(rows: &RecordBatch, known_at: i64) -> Result<RecordBatch> {
    let mut fields = rows.schema().fields().to_vec();
    fields.insert(1, Arc::new(Field::new(KNOWN_AT_NS, DataType::Int64, false)));
    let mut columns = rows.columns().to_vec();
    columns.insert(1, Arc::new(Int64Array::from(vec![known_at; rows.num_rows()])));
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
        .map_err(|e| internal("putting in the knowledge time", e))
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
    let mut columns = vec![schema::wire_time(times_of(rows)?), schema::wire_time(known_at)];
    let keys = if file.index.retracts() { 3 } else { 2 };
    for &wanted in wanted {
        let position =
            read.binary_search(&wanted).map_err(|_| internal("picking columns", "one was not read"))?;
        columns.push(schema::wire_field(&spec.fields[wanted], rows.column(keys + position))?);
    }
    if file.index.retracts() {
        columns.push(Arc::new(file::retractions(&file.name, rows.column(2))?));
    }
    RecordBatch::try_new(Arc::clone(schema), columns)
        .map_err(|e| Error::new(Code::DataCorrupt, format!("rows do not fit the dataset: {e}")))
}

/// Joins each piece's parts, cuts them into runs, and frames those together. In the order to be sent; with rows of each.
fn cut_wave(
    snapshot: &Snapshot,
    asks: &[Ask],
    wave: &[Piece],
    decoded: Decoded,
    order: pb::FetchOrder,
    seq: u64,
) -> Vec<(pb::FetchReply, u64)> {
    let mut runs: Vec<CutRun> = Vec::new();
    let mut failures: Vec<ChunkFailure> = Vec::new();
    for (piece, parts) in wave.iter().zip(decoded) {
        match parts.and_then(|parts| join(&snapshot.spec, &asks[piece.ask].fields, parts)) {
            Ok(rows) => runs.extend(cut(&rows, snapshot.spec.chunk, piece)),
            Err(error) => {
                failures.push(failure(snapshot, &asks[piece.ask], piece.first..piece.end, &error));
            }
        }
    }
    match order {
        pb::FetchOrder::NewestFirst => runs.sort_by_key(|run| std::cmp::Reverse(run.chunks().end)),
        pb::FetchOrder::OldestFirst => runs.sort_by_key(|run| run.chunks().end),
    }
    let mut replies = Vec::new();
    for runs in together(runs, |ask| &asks[ask].fields) {
        match frame(snapshot, asks, &runs, seq) {
            Ok(batch) => {
                let rows = batch.rows();
                replies.push((Answer::Batch(batch).into(), rows));
            }
            Err(error) => failures
                .extend(runs.iter().map(|run| failure(snapshot, &asks[run.ask], run.chunks(), &error))),
        }
    }
    // first: whoever waits for these chunks alone need not wait for the others
    failed(failures).map(|reply| (reply, 0)).chain(replies).collect()
}

fn failure(snapshot: &Snapshot, ask: &Ask, chunks: Range<i64>, error: &Error) -> ChunkFailure {
    let chunk = snapshot.spec.chunk;
    let range = TimeRange { start: Some(chunk.start(chunks.start)), end: Some(chunk.end(chunks.end - 1)) };
    let error = error.clone().dataset(&snapshot.spec.dataset).symbol(&ask.symbol).range(range);
    ChunkFailure { range: ask.range as usize, chunks, error }
}

/// Why a range is not read at all.
pub(crate) fn refused(position: u32, range: &pb::ChunkRange, error: Error) -> ChunkFailure {
    ChunkFailure { range: position as usize, chunks: range.first..range.end, error }
}

/// The replies that say why chunks could not be read.
pub(crate) fn failed(failures: Vec<ChunkFailure>) -> impl Iterator<Item = pb::FetchReply> {
    let mut failures = failures.into_iter();
    std::iter::from_fn(move || {
        let some: Vec<_> = failures.by_ref().take(FAILURES_MAX).collect();
        (!some.is_empty()).then(|| Answer::Failures(some).into())
    })
}

/// All rows of a piece, sorted by (ts, known_at).
fn join(spec: &DatasetSpec, fields: &[usize], mut parts: Vec<Part>) -> Result<RecordBatch> {
    if parts.is_empty() {
        return Ok(RecordBatch::new_empty(spec.chunk_schema(fields)));
    }
    let key = |rows: &RecordBatch, row: usize| -> (i64, i64) {
        let value = |column: usize| rows.column(column).as_primitive::<TimestampNanosecondType>().value(row);
        (value(0), value(1))
    };
    parts.sort_by_key(|part| key(&part.rows, 0));
    // Sessions follow each other, so files rarely overlap in time; then joining them is sorting them.
    let ordered = parts.iter().all(|part| part.sorted)
        && parts
            .windows(2)
            .all(|pair| key(&pair[0].rows, pair[0].rows.num_rows() - 1) <= key(&pair[1].rows, 0));
    let joined = concat(parts.iter().map(|part| &part.rows), CHUNK_KEYS + fields.len())?;
    if ordered { Ok(joined) } else { wire::sort_by_key(&joined, &[0, 1]) }
}

/// Adjacent chunks of one ask.
struct CutRun {
    /// Position among the asks.
    ask: usize,
    first: i64,
    chunk_rows: Vec<u32>,
    rows: RecordBatch,
    /// What they take of a message: themselves, and the counts (chunks without rows are many, sometimes).
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
        // one division and some comparisons for each chunk, not a division for each row
        let k = chunk.chunk_of(at);
        let end = chunk.end(k);
        // the last nanosecond there is ends no chunk, but lies in one
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
                ask: piece.ask,
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

/// Bytes of the rows themselves, not of the buffers that they are slices of.
fn slice_bytes(rows: &RecordBatch) -> usize {
    rows.columns().iter().map(|c| c.to_data().get_slice_memory_size().unwrap_or(0)).sum()
}

/// Divides runs into batches: of one set of fields, of at most [`BATCH_BYTES`] (or one run, if that has more). Each has
/// its runs in the order given; a batch is sent when the next run of its fields does not fit.
fn together<'a>(runs: Vec<CutRun>, fields: impl Fn(usize) -> &'a [usize]) -> Vec<Vec<CutRun>> {
    struct Open<'a> {
        fields: &'a [usize],
        bytes: usize,
        runs: Vec<CutRun>,
    }
    let mut full = Vec::new();
    // few: a head asks for one set of fields, or two where it has some of them already
    let mut open: Vec<Open<'a>> = Vec::new();
    for run in runs {
        let fields = fields(run.ask);
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
fn frame(snapshot: &Snapshot, asks: &[Ask], runs: &[CutRun], seq: u64) -> Result<ChunkBatch> {
    let Some(first) = runs.first() else { return Err(internal("framing rows", "there are no runs")) };
    // one that large is alone
    if first.bytes > CHUNK_BYTES_MAX {
        let (dataset, symbol) = (&snapshot.spec.dataset, &asks[first.ask].symbol);
        let what = format!("a chunk of {dataset} {symbol} is {} bytes", first.bytes);
        return Err(Error::new(Code::TooLarge, what).hint("import the dataset with a smaller chunk"));
    }
    let columns = CHUNK_KEYS + asks[first.ask].fields.len();
    let mut rows = concat(runs.iter().map(|run| &run.rows), columns)?;
    let retracted = if rows.num_columns() > columns {
        wire::bits(rows.remove_column(columns).as_boolean())
    } else {
        Bytes::new()
    };
    let (header, body) = wire::encode(&rows)?;
    let runs = runs.iter().map(|run| ChunkRun {
        range: asks[run.ask].range as usize,
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
    use arrow_array::ArrayRef;

    use super::*;

    fn rows(ts: &[i64]) -> RecordBatch {
        let ts: ArrayRef = schema::wire_time(&Int64Array::from(ts.to_vec()));
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

    #[test]
    fn every_chunk_is_in_exactly_one_run() {
        let span = ChunkSpan::new(1_000_000_000).unwrap();
        let ts: Vec<i64> = (0..400_000).map(|i| -100_000_000_000 + i * 700_000).collect();
        let runs = cut(&rows(&ts), span, &Piece { ask: 0, first: -110, end: 300 });
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
        let none = cut(&rows(&[]), span, &Piece { ask: 0, first: 5, end: 8 });
        assert_eq!((none.len(), none[0].chunk_rows.clone()), (1, vec![0, 0, 0]));
        // the last chunk there is ends with time itself
        let last = span.chunk_of(i64::MAX);
        let ends = [i64::MAX - 1, i64::MAX - 1, i64::MAX, i64::MAX];
        let all = cut(&rows(&ends), span, &Piece { ask: 0, first: last, end: last + 1 });
        assert_eq!((all.len(), all[0].chunk_rows.clone()), (1, vec![4]));
    }

    #[test]
    fn runs_go_together_by_fields_in_order_and_within_the_bound() {
        let fields: [&[usize]; 3] = [&[0], &[0, 1], &[0]];
        let run = |ask: usize, first: i64, bytes: usize| CutRun {
            ask,
            first,
            chunk_rows: vec![1],
            rows: rows(&[first]),
            bytes,
        };
        let half = BATCH_BYTES / 2;
        let sent = |runs: Vec<CutRun>| -> Vec<Vec<(usize, i64)>> {
            let batches = together(runs, |ask| fields[ask]);
            batches.iter().map(|batch| batch.iter().map(|run| (run.ask, run.first)).collect()).collect()
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
            "one symbol, all of its time: 5000 rows, 4 reads, 33 KiB\n\
             one symbol, its last chunk: 8 rows, 4 reads, 33 KiB\n\
             two neighbours: 10000 rows, 6 reads, 49 KiB\n\
             every symbol: 200000 rows, 8 reads, 789 KiB\n"
        );
    }
}
