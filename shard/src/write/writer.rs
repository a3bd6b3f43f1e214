//! One dataset's writer: the newest state that it has seen, and a commit at the next version. The other files of this room give
//! it the kinds of commits that there are.

use std::{sync::Arc, time::Duration};

use tokio::sync::oneshot;
use trellis_proto::{Code, DatasetSpec, Result};

use super::lease::Lease;
use crate::{
    files::{Life, WrittenFile},
    metrics::Metrics,
    table::{Actions, Committed, Snapshot, Table},
};

/// Commits lost in a row before the publisher is told to come back. Only another writer of the same table can cause one.
pub(super) const CONFLICTS_MAX: usize = 16;

/// Commits to one dataset. Used by its committer alone, one commit after the other.
pub(super) struct Writer {
    pub(super) table: Arc<Table>,
    /// How long an acknowledgement waits for the watchers.
    pub(super) apply_wait: Duration,
    pub(super) metrics: Arc<Metrics>,
    pub(super) lease: Lease,
}

impl Writer {
    /// The newest state, with the lease brought up to it.
    pub(super) async fn look(&mut self) -> Result<Option<Arc<Snapshot>>> {
        let snapshot = self.table.refresh().await?;
        if let Some(snapshot) = &snapshot {
            self.lease = self.lease.caught_up(snapshot.lease_learned, &snapshot.lease);
        }
        Ok(snapshot)
    }

    /// Commits; `None`: somebody else has committed this version. The files that `actions` add are removed only where it is
    /// certain that they are not, and will not become, part of the table; others are swept when they have been in no
    /// version for the retention.
    pub(super) async fn commit(
        &self,
        version: u64,
        actions: &Actions,
        files: &[WrittenFile],
    ) -> Result<Option<u64>> {
        for file in files {
            self.table.wrote(&file.file.path, file.index.clone());
        }
        match self.table.log.commit(version, actions).await {
            Ok(Committed::Yes) => Ok(Some(version)),
            Ok(Committed::Taken) => {
                self.metrics.conflicts.add(1, &[]);
                self.discard(files).await;
                Ok(None)
            }
            Err(error) => {
                // A disk that takes no writes has answered; any other error leaves the outcome open.
                let refused = error.code() == Code::StorageFull;
                if refused && matches!(self.table.log.read(version).await, Ok(None)) {
                    self.discard(files).await;
                } else {
                    files.iter().for_each(|file| self.table.forget(&file.file.path));
                }
                Err(error.dataset(&self.table.name))
            }
        }
    }

    /// Removes files that were written and that no version of the table will have.
    pub(super) async fn discard(&self, files: &[WrittenFile]) {
        for file in files {
            self.table.discard(&file.file.path).await;
        }
    }

    /// Answers once every connected watcher has applied what was committed so far. Whatever comes next does not wait for them.
    pub(super) fn reply_when_applied<T: Send + 'static>(&self, replies: Vec<(oneshot::Sender<T>, T)>) {
        let (watch, patience) = (self.table.context.watch.clone(), self.apply_wait);
        let seq = watch.seq();
        tokio::spawn(async move {
            watch.wait_applied(seq, patience).await;
            for (reply, answer) in replies {
                let _ = reply.send(answer);
            }
        });
    }
}

/// The actions that make the dataset: its table, or another one of the table of a dropped dataset.
pub(super) fn create(actions: &mut Actions, dropped: Option<&Snapshot>, spec: &DatasetSpec, now_ms: i64) {
    let Some(dropped) = dropped else { return actions.create(spec, &Life::default(), now_ms) };
    let life = Life { revision: dropped.life.revision + 1, since: dropped.version + 1, dropped: false };
    actions.create(spec, &life, now_ms);
    if dropped.watermark.is_some() {
        actions.watermark(None, now_ms);
    }
}
