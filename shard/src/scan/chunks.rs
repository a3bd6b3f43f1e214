//! Answers a call: from its ranges to messages of chunk runs.
//!
//! All ranges of a call are planned together, so that a row group with forty of the symbols is read once and not forty times. A
//! call may ask for more than memory has room for. So it is cut into *waves* of bounded size: by symbol, in the order of the files,
//! and by time if a series is too long for one wave. Within a wave every file is read once, in parallel, with the rows and columns
//! that the wave needs. The rows are then cut into runs, framed and sent before the next wave is read. So a slow client holds one
//! wave and a short queue. A wave has a share of the shard's memory for work on files until its client has taken it. A client that takes
//! nothing for long loses the rest of its fetch, so that it does not keep its share from others.
//!
//! All runs of a wave are ready at the same moment. Runs with the same fields go together as one record batch, up to a bound: five
//! hundred short series are a few messages. A lone series goes at once. There is no timer, and no run waits for the next wave.
//!
//! The column `retracted` is read only from files that have retractions. It is the last column of their rows; the answer has it as
//! bits beside the record batch.
//!
//! Rejected: one stream per file, merged on the fly. It bounds memory better. But a range has rows in all files, so every range
//! would wait for the slowest stream, and files would be decoded at the client's pace.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::sync::mpsc;
use tracing::{Instrument as _, Span, field::Empty};
use trellis_fabric::telemetry;
use trellis_proto::{Code, Error, Result, pb};

use super::{
    cut::cut_wave,
    plan::{RangeRequest, Wave, plan},
    read::read_wave,
};
use crate::{error::lost_task, files::Tally, table::Snapshot};

/// Copies of a wave's rows at once: as they are decoded, joined, and framed.
const WAVE_COPIES: u64 = 3;

/// How long a message may wait for its client. A head first makes room for what it asks for. So a head that takes nothing for this long
/// has hung. Heads give up a shard that sends nothing for the same time.
const TAKE_WAIT: Duration = Duration::from_secs(60);

/// The client has taken nothing for [`TAKE_WAIT`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Untaken;

impl From<Untaken> for Error {
    fn from(_: Untaken) -> Self {
        let what = format!("the fetch was ended: its answers were not taken for {} s", TAKE_WAIT.as_secs());
        Self::new(Code::Unavailable, what)
    }
}

/// Answers every range from one snapshot, and returns how many rows it sent. Stops when nobody receives the answers any more.
///
/// Cancel safe: the waves that remain are not read.
///
/// # Errors
/// [`Untaken`].
pub(crate) async fn read_chunks(
    snapshot: Arc<Snapshot>,
    requests: Vec<RangeRequest>,
    order: pb::FetchOrder,
    seq: u64,
    out: &mpsc::Sender<Result<pb::FetchReply, tonic::Status>>,
) -> Result<u64, Untaken> {
    if !telemetry::traced() {
        return read_waves(snapshot, requests, order, seq, out, &Arc::default()).await;
    }
    let span = tracing::info_span!(
        target: "trellis::scan",
        "scan",
        trellis.dataset = %snapshot.spec.dataset,
        trellis.ranges = requests.len(),
        trellis.files = Empty,
        trellis.row_groups = Empty,
        trellis.bytes = Empty,
        trellis.rows = Empty,
    );
    let scanned = Scanned { tally: Arc::default(), span };
    let rows = read_waves(snapshot, requests, order, seq, out, &scanned.tally);
    let rows = rows.instrument(scanned.span.clone()).await;
    if let Ok(rows) = rows {
        scanned.span.record("trellis.rows", rows);
    }
    rows
}

/// What a scan has read goes to its span, also if nobody waits for its end.
struct Scanned {
    tally: Arc<Tally>,
    span: Span,
}

impl Drop for Scanned {
    fn drop(&mut self) {
        self.span.record("trellis.files", self.tally.files.load(Relaxed));
        self.span.record("trellis.row_groups", self.tally.row_groups.load(Relaxed));
        self.span.record("trellis.bytes", self.tally.bytes.load(Relaxed));
    }
}

async fn read_waves(
    snapshot: Arc<Snapshot>,
    requests: Vec<RangeRequest>,
    order: pb::FetchOrder,
    seq: u64,
    out: &mpsc::Sender<Result<pb::FetchReply, tonic::Status>>,
    tally: &Arc<Tally>,
) -> Result<u64, Untaken> {
    let mut rows = 0;
    let requests: Arc<[RangeRequest]> = requests.into();
    for Wave { pieces: wave, bytes } in plan(&snapshot, &requests, order) {
        let mut share = match snapshot.files.first() {
            Some(file) => Some(file.budget.take(bytes.saturating_mul(WAVE_COPIES)).await),
            None => None,
        };
        let decoded = read_wave(&snapshot, &requests, &wave, tally).await;
        let replies = {
            let (snapshot, requests) = (snapshot.clone(), requests.clone());
            tokio::task::spawn_blocking(move || cut_wave(&snapshot, &requests, &wave, decoded, order, seq))
                .await
        };
        let replies = match replies {
            Ok(replies) => replies,
            Err(error) => {
                let _ = out.send(Err(lost_task("cutting chunks", error).into())).await;
                return Ok(rows);
            }
        };
        if let Some(share) = &mut share {
            share.shrink(replies.iter().map(|(reply, _)| bytes_of(reply)).sum());
        }
        for (reply, count) in replies {
            rows += count;
            match tokio::time::timeout(TAKE_WAIT, out.send(Ok(reply))).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Ok(rows),
                Err(_) => return Err(Untaken),
            }
        }
    }
    Ok(rows)
}

/// Bytes of a message beside its rows: about those of the failures in one, and of the row counts.
const REPLY_BYTES: u64 = 4 << 10;

/// Bytes of a message that waits, about.
fn bytes_of(reply: &pb::FetchReply) -> u64 {
    let rows = match &reply.reply {
        Some(pb::fetch_reply::Reply::Batch(batch)) => batch.data_body.len() + batch.retracted.len(),
        Some(pb::fetch_reply::Reply::Failures(_)) | None => 0,
    };
    REPLY_BYTES + rows as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Grid;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_has_a_share_of_the_memory_for_a_minute_and_then_none() {
        let grid = Grid::new().await;
        let rows: Vec<(&str, i64, f64)> =
            (0..200_000).map(|i| ("A", i * 165_888_000_000, i as f64)).collect();
        grid.import(&rows).await.unwrap();
        let request = pb::FetchRequest {
            ranges: vec![Grid::range("A", 0, 7)],
            order: pb::FetchOrder::OldestFirst.into(),
            epoch: 1,
        };
        let budget = grid.table().log.folder.budget.clone();
        let (out, mut replies) = mpsc::channel(1);
        let fetch = tokio::spawn({
            let shard = grid.shard.clone();
            async move { shard.fetch(request, &out).await }
        });
        let first = replies.recv().await.unwrap().unwrap();
        let taken = budget.taken();
        assert!(taken >= bytes_of(&first), "{taken}");
        assert!(taken < budget.peak(), "the share is as large as what waits: {taken} of {}", budget.peak());
        assert_eq!(fetch.await.unwrap(), Err(Untaken));
        assert_eq!(budget.taken(), 0);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_scan_reads_the_pages_that_it_needs_once() {
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
