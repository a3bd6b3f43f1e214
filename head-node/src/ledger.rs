//! The run ledger. The head records each write that it passes on: after the home shard has acknowledged the write, and before
//! the head answers the writer.
//!
//! So a write that was acknowledged is in the ledger although its writer dies. A ledger that is away neither undoes a write nor
//! stops it: after [`ANSWER_WAIT`] the head answers the writer, says that the record is missing, and goes on trying.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{Semaphore, oneshot},
    time,
};
use tonic::Request;
use tracing::Instrument;
use trellis_fabric::{bound::Bound, channel::UNIT, clock::now_ns, retry::Pauses, telemetry};
use trellis_proto::{
    DatasetName, Result, pb,
    runs::{LEDGER, Seen},
};

use crate::engine::Engine;

/// Longest wait of a writer for its record: as long as for a shard that is late to serve its rows. `PublishAck.recorded` promises it to
/// clients.
const ANSWER_WAIT: Duration = Duration::from_secs(2);
/// Longest time for telling the other shards of a record. A shard that is not told finds it with its next look at the table.
const SEEN_WAIT: Duration = Duration::from_millis(500);
/// Longest time of one attempt: a shard that has not answered by then has probably lost the call.
const APPEND_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after the first failed attempt; it doubles.
const RETRY_MIN: Duration = Duration::from_millis(250);
/// Longest pause between attempts.
const RETRY_MAX: Duration = Duration::from_secs(15);
/// The head tries for this long to append a record: in that time a lost shard is started again, and opens its tables.
const KEPT: Duration = Duration::from_secs(10 * 60);
/// Most records that a head keeps while the ledger is away: one publish of each of 40,000 units, and some more.
const KEPT_MAX: usize = 50_000;

static RECORDS: Bound = Bound::new("head.ledger_records");

/// The origin of a write: its caller, its time, its trace.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    by: String,
    at_ns: i64,
    trace_id: String,
}

impl Origin {
    pub(crate) fn of<T>(request: &Request<T>) -> Self {
        let unit = request.metadata().get(UNIT.as_str()).and_then(|unit| unit.to_str().ok());
        let from = request.remote_addr().map(|addr| addr.to_string());
        let by = [unit.map(str::to_owned), from].into_iter().flatten().collect::<Vec<_>>().join(" at ");
        Self { by, at_ns: now_ns(), trace_id: telemetry::trace_id() }
    }

    /// The origin of a write that was done just now.
    pub(crate) fn done(&self) -> Seen<'_> {
        Seen { by: &self.by, asked_ns: self.at_ns, answered_ns: now_ns(), trace_id: &self.trace_id }
    }
}

/// The ledger, as this head writes it.
#[derive(Debug)]
pub(crate) struct Ledger {
    engine: Engine,
    /// Room for the records that wait to be appended.
    kept: Semaphore,
}

impl Ledger {
    pub(crate) fn new(engine: Engine) -> Arc<Self> {
        Arc::new(Self { engine, kept: Semaphore::new(KEPT_MAX) })
    }

    /// Appends records: durable when it returns, and visible unless a shard hangs.
    ///
    /// # Errors
    /// The error of the ledger's home shard.
    pub(crate) async fn append(&self, runs: Vec<pb::RunRecord>) -> Result<pb::RecordRunsReply> {
        let ledger = DatasetName::new(LEDGER)?;
        let home = self.engine.live_home(&ledger).await?;
        let mut shard = home.client();
        let recorded = shard.record_runs(pb::RecordRunsRequest { runs });
        let reply = home.answer("record a run", APPEND_TIMEOUT, recorded).await?.into_inner();
        // The record is durable. The head does not wait twice for a shard that hangs: it has waited for the shard in the write itself.
        let _ = time::timeout(SEEN_WAIT, self.engine.sync_others(&ledger, reply.version)).await;
        Ok(reply)
    }

    /// Records a write that is done. `false`: the first attempt failed, or has not ended within [`ANSWER_WAIT`]; the head goes on
    /// trying.
    pub(crate) async fn record(self: &Arc<Self>, record: pb::RunRecord) -> bool {
        let (tell, told) = oneshot::channel();
        tokio::spawn(keep_appending(Arc::clone(self), record, tell).in_current_span());
        matches!(time::timeout(ANSWER_WAIT, told).await, Ok(Ok(true)))
    }
}

/// Appends a record, again and again while that may help. Tells whether the first attempt succeeded.
async fn keep_appending(ledger: Arc<Ledger>, record: pb::RunRecord, tell: oneshot::Sender<bool>) {
    let begun = Instant::now();
    let (mut tell, mut kept, mut warned) = (Some(tell), None, false);
    let mut pauses = Pauses::new(RETRY_MIN, RETRY_MAX);
    loop {
        let appended = ledger.append(vec![record.clone()]).await;
        if let Some(tell) = tell.take() {
            // the writer may have been answered without it meanwhile
            let _ = tell.send(appended.is_ok());
        }
        let Err(error) = appended else { return };
        if kept.is_none() {
            kept = ledger.kept.try_acquire().ok();
            if kept.is_none() {
                RECORDS.hit();
            }
        }
        if !error.retryable() || kept.is_none() || begun.elapsed() > KEPT {
            tracing::error!(%error, unit = record.unit, run_id = record.run_id, "a write cannot be recorded in the ledger");
            return;
        }
        // Once for a record: while its shard is away, thousands may wait and try again.
        if !std::mem::replace(&mut warned, true) {
            tracing::warn!(%error, unit = record.unit, run_id = record.run_id, "a write is not in the ledger yet");
        }
        time::sleep(pauses.next_pause()).await;
    }
}
