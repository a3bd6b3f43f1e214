//! The run ledger, as a unit sees it: the head records what is published; attempts that it did not are recorded here, soon,
//! and kept while they cannot be.

use std::{collections::VecDeque, time::Duration};

use trellis_proto::{Result, pb};

use crate::client::Client;

/// Records kept while the grid is away; a unit makes a few a day.
const PENDING_MAX: usize = 1_000;
/// A run must not wait long for its own record.
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

    /// Records an attempt, and what could not be recorded before. A failure is logged; the record stays for the next time.
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

    /// Records what could not be recorded before, if there is any.
    pub(crate) async fn catch_up(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        if let Err(error) = self.send(APPEND_TIMEOUT).await {
            tracing::warn!(%error, pending = self.pending.len(), "runs could not be recorded yet");
        }
    }

    /// Records what could not be recorded yet, for at most `limit`: the process is about to end, and with it what is pending.
    pub(crate) async fn flush(&mut self, limit: Duration) {
        if self.pending.is_empty() {
            return;
        }
        if let Err(error) = self.send(limit).await {
            tracing::error!(%error, runs = self.pending.len(), "runs are missing from the ledger");
        }
    }

    /// Sends what is pending. Refused together, the records are sent one by one: those that are refused for good would keep
    /// all others away.
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
