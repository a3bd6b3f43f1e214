//! The writer of one dataset: it looks at the newest version and commits the next one. Other files of this room add the kinds of
//! commits.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;
use trellis_proto::{Code, DatasetSpec, Error, Result};

use super::lease::Lease;
use crate::{
    files::{Life, WrittenFile},
    metrics::Metrics,
    table::{Actions, Committed, Snapshot, Table},
};

/// Most attempts at one commit. An attempt is lost only to another writer of the same table.
pub(super) const CONFLICTS_MAX: usize = 16;

/// Commits to one dataset, one commit after the other.
pub(super) struct Writer {
    pub(super) table: Arc<Table>,
    /// How long an acknowledgement waits until the watchers have applied the commit.
    pub(super) apply_wait: Duration,
    pub(super) metrics: Arc<Metrics>,
    pub(super) lease: Lease,
}

impl Writer {
    /// The newest version, after the lease has been brought up to it.
    pub(super) async fn look(&mut self) -> Result<Option<Arc<Snapshot>>> {
        let snapshot = self.table.refresh().await?;
        if let Some(snapshot) = &snapshot {
            self.lease = self.lease.caught_up(snapshot.lease_learned, &snapshot.lease);
        }
        Ok(snapshot)
    }

    /// Commits `actions` as `version`. `None`: another writer has committed this version.
    ///
    /// If the commit fails, `files` are removed only if they certainly never become part of the table. The upkeep removes the
    /// others after the retention.
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
            Err(error) => Err(self.failed(version, files, error).await),
        }
    }

    /// The error of a commit that failed, after its files are forgotten or removed.
    pub(super) async fn failed(&self, version: u64, files: &[WrittenFile], error: Error) -> Error {
        // After two errors the commit has surely not taken place: the disk takes no writes, or the table is gone. After
        // any other error the outcome is open.
        let refused = matches!(error.code(), Code::StorageFull | Code::DataCorrupt);
        if refused && matches!(self.table.log.read(version).await, Ok(None)) {
            self.discard(files).await;
        } else {
            files.iter().for_each(|file| self.table.forget(&file.file.path));
        }
        error.dataset(&self.table.name)
    }

    /// Removes files that were written and never become part of the table.
    pub(super) async fn discard(&self, files: &[WrittenFile]) {
        for file in files {
            self.table.discard(&file.file.path).await;
        }
    }

    /// Answers once every connected watcher of the dataset has applied its commits so far. The next commit does not wait for the watchers.
    pub(super) fn reply_when_applied<T: Send + 'static>(&self, replies: Vec<(oneshot::Sender<T>, T)>) {
        let applied = self.table.context.watch.applied(self.table.name.as_str(), self.apply_wait);
        let (metrics, committed) = (self.metrics.clone(), Instant::now());
        tokio::spawn(async move {
            applied.await;
            metrics.apply.record(committed.elapsed().as_secs_f64(), &[]);
            for (reply, answer) in replies {
                let _ = reply.send(answer);
            }
        });
    }
}

/// Adds the actions that make a dataset: a new table, or the next dataset in the table of a dropped one.
pub(super) fn create(actions: &mut Actions, dropped: Option<&Snapshot>, spec: &DatasetSpec, now_ms: i64) {
    let Some(dropped) = dropped else { return actions.create(spec, &Life::default(), now_ms) };
    let life = Life { revision: dropped.life.revision + 1, since: dropped.version + 1, dropped: false };
    actions.create(spec, &life, now_ms);
    if dropped.watermark.is_some() {
        actions.watermark(None, now_ms);
    }
}
