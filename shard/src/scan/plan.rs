//! From the ranges of a call to waves of bounded size. Pure but for the snapshot's indexes.

use trellis_proto::{ChunkSpan, DatasetSpec, pb};

use crate::table::Snapshot;

/// Decoded bytes of a wave: large enough that two waves rarely read the same row group, small enough that dozens of calls fit into
/// memory.
const WAVE_BYTES: u64 = 32 << 20;

/// Bytes of the rows of one file in one piece beside the rows themselves: a record batch, and a buffer for each column. It counts where
/// there are very many small files.
const PART_BYTES: u64 = 2 << 10;

/// Most chunks of one range: an answer lists the row count of each.
pub(crate) const CHUNKS_MAX: i64 = 1 << 20;

/// One range of a call, checked against its dataset.
#[derive(Debug, Clone)]
pub(crate) struct RangeRequest {
    /// Position in the request.
    pub(crate) position: u32,
    pub(crate) symbol: String,
    /// Positions in the spec.
    pub(crate) fields: Vec<usize>,
    /// Chunks `[first, end)`, at most [`CHUNKS_MAX`].
    pub(crate) first: i64,
    pub(crate) end: i64,
}

/// A part of a range that is read in one wave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    /// Position among the requests.
    pub(super) request: usize,
    pub(super) first: i64,
    pub(super) end: i64,
}

impl Piece {
    /// Event times `[from, to)`.
    pub(super) fn times(&self, chunk: ChunkSpan) -> (i64, i64) {
        (chunk.start(self.first), chunk.end(self.end - 1))
    }
}

/// What is read together.
#[derive(Debug)]
pub(super) struct Wave {
    pub(super) pieces: Vec<Piece>,
    /// Estimated bytes of the rows of the wave, decoded.
    pub(super) bytes: u64,
}

/// Cuts the ranges into waves.
pub(super) fn plan(snapshot: &Snapshot, requests: &[RangeRequest], order: pb::FetchOrder) -> Vec<Wave> {
    let spec = &snapshot.spec;
    // Ordered by slice of time, then symbol: the newest slices of all symbols come before the older ones, or the reverse.
    let mut pieces: Vec<(usize, &str, Piece, u64)> = Vec::new();
    for (i, request) in requests.iter().enumerate() {
        let width = row_width(spec, &request.fields) as u64;
        let (from, to) = (spec.chunk.start(request.first), spec.chunk.end(request.end - 1));
        let found = estimate(snapshot, &request.symbol, from, to);
        let all = found.rows * width + found.parts * PART_BYTES;
        let slices = all.div_ceil(WAVE_BYTES).max(1) as i64;
        let lowest =
            spec.chunk.chunk_of(found.first_ts.clamp(from, to)).clamp(request.first, request.end - 1);
        let highest = spec.chunk.chunk_of(found.last_ts.clamp(from, to)).clamp(lowest, request.end - 1) + 1;
        let slices = slices.min(highest - lowest);
        let bound = |k: i64| lowest + (highest - lowest) * k / slices;
        for k in 0..slices {
            let first = if k == 0 { request.first } else { bound(k) };
            let end = if k == slices - 1 { request.end } else { bound(k + 1) };
            let slice = match order {
                pb::FetchOrder::NewestFirst => slices - 1 - k,
                pb::FetchOrder::OldestFirst => k,
            };
            let bytes = all / slices as u64;
            pieces.push((slice as usize, &request.symbol, Piece { request: i, first, end }, bytes));
        }
    }
    pieces.sort_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)));
    let mut waves: Vec<Wave> = Vec::new();
    for (_, _, piece, bytes) in pieces {
        match waves.last_mut() {
            Some(wave) if wave.bytes + bytes <= WAVE_BYTES => {
                wave.bytes += bytes;
                wave.pieces.push(piece);
            }
            _ => waves.push(Wave { pieces: vec![piece], bytes }),
        }
    }
    waves
}

struct Estimate {
    rows: u64,
    /// Runs that have them.
    parts: u64,
    first_ts: i64,
    last_ts: i64,
}

/// An estimate of the rows of `symbol` in `[from, to)`: as if the rows of each run were spread evenly.
fn estimate(snapshot: &Snapshot, symbol: &str, from: i64, to: i64) -> Estimate {
    let mut all = Estimate { rows: 0, parts: 0, first_ts: i64::MAX, last_ts: i64::MIN };
    for run in snapshot.files.iter().flat_map(|f| f.index.runs_of(symbol)) {
        let (first, last) = (run.first_ts.max(from), run.last_ts.min(to.saturating_sub(1)));
        if first > last {
            continue;
        }
        let share = (last as f64 - first as f64 + 1.0) / (run.last_ts as f64 - run.first_ts as f64 + 1.0);
        all.rows += (f64::from(run.end - run.start) * share.min(1.0)).ceil() as u64;
        all.parts += 1;
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
