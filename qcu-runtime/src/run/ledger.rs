//! The unit's side of the run ledger. The head records every publish; this file records the attempts that published nothing, and
//! keeps the records while the grid is away.

use std::{collections::VecDeque, time::Duration};

use trellis_proto::{Result, pb};

use crate::client::Client;

/// Most records that a unit keeps while the grid is away; it makes a few each day.
const PENDING_MAX: usize = 1_000;
/// How long a run waits for its own record.
const APPEND_TIMEOUT: Duration = Duration::from_secs(5);

/// Appends attempts to `trellis.runs`.
#[derive(Debug)]
pub(crate) struct Ledger {
    client: Client,
    pending: VecDeque<pb::RunRecord>,
}

impl Ledger {
    pub(crate) fn new(client: Client) -> Self {
        Self { client, pending: VecDeque::new() }
    }

    /// Records an attempt and all pending ones. A failure is logged, and the records stay pending.
    pub(crate) async fn append(&mut self, record: pb::RunRecord) {
        if self.pending.len() == PENDING_MAX {
            let lost = self.pending.pop_front();
            tracing::error!(
                run_id = lost.map(|run| run.run_id),
                "a run is missing from the ledger: it is away for too long"
            );
        }
        self.pending.push_back(record);
        self.catch_up().await;
    }

    /// Records the pending attempts, if there are any.
    pub(crate) async fn catch_up(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        if let Err(error) = self.send(APPEND_TIMEOUT).await {
            tracing::warn!(%error, pending = self.pending.len(), "runs could not be recorded yet");
        }
    }

    /// Records the pending attempts, for at most `limit`. It is the last chance: the process is about to end.
    pub(crate) async fn flush(&mut self, limit: Duration) {
        if self.pending.is_empty() {
            return;
        }
        if let Err(error) = self.send(limit).await {
            tracing::error!(%error, runs = self.pending.len(), "runs are missing from the ledger");
        }
    }

    /// Sends the pending records together. If the shard refuses them, sends them one by one, so that a bad record does not keep the
    /// others out.
    async fn send(&mut self, limit: Duration) -> Result<()> {
        let client = self.client.with_deadline(limit);
        match client.record_runs(self.pending.iter().cloned().collect()).await {
            Ok(_) => self.pending.clear(),
            Err(error) if error.retryable() => return Err(error),
            Err(_) => {
                while let Some(record) = self.pending.front() {
                    match client.record_runs(vec![record.clone()]).await {
                        Ok(_) => {}
                        Err(error) if error.retryable() => return Err(error),
                        Err(error) => {
                            tracing::error!(%error, run_id = record.run_id, "a run is missing from the ledger");
                        }
                    }
                    self.pending.pop_front();
                }
            }
        }
        Ok(())
    }
}
