//! The one task that commits to a dataset: publishes, imports, ledger rows, leases and rewrites, one after the other.
//!
//! Requests that arrive while a commit is on its way to the disk wait in a queue. The publishes among them become the next commit
//! together: one file, one log entry and two syncs, however many publishes there are. There is no timer, so a lone publish is
//! committed at once. Leases go through the same queue, so that a grant and a publish have an order.
//!
//! A commit is a compare-and-swap at the version that all checks were made against. If another writer was faster (another shard
//! that takes itself for the home, or a person with another tool), the committer looks at the new version and checks everything
//! again: the epoch, the run ids, the knowledge times. So correctness needs no clock, and no agreement on the home; it needs the
//! order of the table's versions alone.
//!
//! A committer ends when its queue is empty, so that a dataset at rest has none. What it leaves is the lease, whose renewals are in
//! memory alone. Requests enter a queue, and a committer ends, under one lock: so no request waits in the queue of a committer that
//! has ended, and there is one committer of a dataset at a time.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use serde_json::Map;
use tokio::sync::{
    mpsc::{self, error::TrySendError},
    oneshot,
};
use trellis_fabric::bound::Bound;
use trellis_proto::{Code, DatasetName, Error, Result, pb};

use super::{
    lease::Lease,
    request::{Acquisition, Change, Publish, Rewrite, Waiting},
    writer::{CONFLICTS_MAX, Writer},
};
use crate::{
    metrics::Metrics,
    table::{Actions, Committed, Grant, Holder, Table},
};

/// Most requests in the queue of one dataset; further ones are refused as overload.
const QUEUE_MAX: usize = 4_096;

static QUEUE: Bound = Bound::new("shard.commit_queue");

/// Most publishes in one commit: each adds about 500 bytes to the log entry.
const GROUP_MAX: usize = 1_024;

/// Most rows in one commit of several publishes: bounds how long a small publish waits for the others of its group.
const GROUP_ROWS_MAX: usize = 1 << 20;

#[derive(Debug)]
enum Command {
    Publish(Box<Publish>, oneshot::Sender<Result<pb::PublishAck>>),
    Acquire(Acquisition, oneshot::Sender<Result<Grant>>),
    Renew { holder: Holder, epoch: u64, ttl: Duration, reply: oneshot::Sender<Result<Grant>> },
    Release { holder: Holder, epoch: u64, reply: oneshot::Sender<Result<()>> },
    Rewrite(Rewrite, oneshot::Sender<Result<bool>>),
    Change(Change, oneshot::Sender<Result<pb::DatasetChange>>),
}

/// The committers of a shard's datasets.
#[derive(Debug, Clone)]
pub(crate) struct Committers {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    apply_wait: Duration,
    metrics: Arc<Metrics>,
    desks: Mutex<HashMap<DatasetName, Desk>>,
}

/// Where the requests to one dataset arrive.
#[derive(Debug, Default)]
struct Desk {
    /// The queue of the committer that runs.
    queue: Option<mpsc::Sender<Command>>,
    /// The lease as the last committer left it.
    lease: Lease,
}

impl Committers {
    /// `apply_wait`: how long an acknowledgement waits for the watchers.
    pub(crate) fn new(apply_wait: Duration, metrics: Arc<Metrics>) -> Self {
        Self { shared: Arc::new(Shared { apply_wait, metrics, desks: Mutex::default() }) }
    }

    /// The committer of `table`.
    pub(crate) fn of(&self, table: &Arc<Table>) -> Committer {
        Committer { shared: self.shared.clone(), table: table.clone() }
    }
}

impl Shared {
    /// Puts a command into the queue of the table's committer, and starts it if none runs.
    fn send(self: &Arc<Self>, table: &Arc<Table>, command: Command) -> Result<()> {
        let mut desks = self.desks.lock();
        let desk = desks.entry(table.name.clone()).or_default();
        let queue = desk.queue.get_or_insert_with(|| {
            let (queue, commands) = mpsc::channel(QUEUE_MAX);
            let writer = Writer {
                table: table.clone(),
                apply_wait: self.apply_wait,
                metrics: self.metrics.clone(),
                lease: std::mem::take(&mut desk.lease),
            };
            tokio::spawn(writer.run(self.clone(), commands));
            queue
        });
        queue.try_send(command).map_err(|e| match e {
            TrySendError::Full(_) => {
                QUEUE.hit();
                Error::new(Code::Overloaded, format!("{QUEUE_MAX} commits to this dataset are waiting"))
            }
            TrySendError::Closed(_) => Error::new(Code::Internal, "the committer has ended"),
        })
    }

    /// The next command. `None`: there is none, and the committer ends, which leaves its lease.
    fn next(&self, writer: &mut Writer, commands: &mut mpsc::Receiver<Command>) -> Option<Command> {
        if let Ok(command) = commands.try_recv() {
            return Some(command);
        }
        let mut desks = self.desks.lock();
        if let Ok(command) = commands.try_recv() {
            return Some(command);
        }
        match std::mem::take(&mut writer.lease) {
            lease @ Lease::Held { .. } => {
                desks.insert(writer.table.name.clone(), Desk { queue: None, lease });
            }
            // The table says the same.
            Lease::Never | Lease::Released { .. } => drop(desks.remove(&writer.table.name)),
        }
        None
    }
}

/// A handle of a dataset's committer, whether or not it runs.
#[derive(Debug, Clone)]
pub(crate) struct Committer {
    shared: Arc<Shared>,
    table: Arc<Table>,
}

impl Committer {
    /// Commits rows. Returns when they are on the disk and every connected watcher has applied them.
    ///
    /// A call that is dropped before its turn does nothing; one that is dropped later may still commit. With a run id it is safe to ask
    /// again.
    pub(crate) async fn publish(&self, publish: Publish) -> Result<pb::PublishAck> {
        self.ask(|reply| Command::Publish(Box::new(publish), reply)).await?
    }

    pub(crate) async fn acquire(&self, acquisition: Acquisition) -> Result<Grant> {
        self.ask(|reply| Command::Acquire(acquisition, reply)).await?
    }

    pub(crate) async fn renew(&self, holder: Holder, epoch: u64, ttl: Duration) -> Result<Grant> {
        self.ask(|reply| Command::Renew { holder, epoch, ttl, reply }).await?
    }

    pub(crate) async fn release(&self, holder: Holder, epoch: u64) -> Result<()> {
        self.ask(|reply| Command::Release { holder, epoch, reply }).await?
    }

    /// Replaces files by others with the same rows. `false`: a file to replace is not in the table any more.
    pub(crate) async fn rewrite(&self, rewrite: Rewrite) -> Result<bool> {
        self.ask(|reply| Command::Rewrite(rewrite, reply)).await?
    }

    /// Changes the dataset. Returns when every connected watcher has applied the change.
    pub(crate) async fn change(&self, change: Change) -> Result<pb::DatasetChange> {
        self.ask(|reply| Command::Change(change, reply)).await?
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        self.shared.send(&self.table, command(reply))?;
        answer.await.map_err(|_| {
            Error::new(Code::Unavailable, "the shard stopped before it answered; the outcome is not known")
                .hint("ask again with the same run id")
        })
    }
}

impl Writer {
    async fn run(mut self, shared: Arc<Shared>, mut commands: mpsc::Receiver<Command>) {
        let mut next = None;
        while let Some(command) = next.take().or_else(|| shared.next(&mut self, &mut commands)) {
            match command {
                // Its publisher has left before its turn.
                Command::Publish(_, reply) if reply.is_closed() => {}
                Command::Publish(publish, reply) => {
                    let (group, other) = gather((publish, reply), &mut commands);
                    next = other;
                    self.commit_group(group).await;
                }
                Command::Acquire(acquisition, reply) => {
                    let _ = reply.send(self.acquire(acquisition).await);
                }
                Command::Renew { holder, epoch, ttl, reply } => {
                    let _ = reply.send(self.renew(&holder, epoch, ttl).await);
                }
                Command::Release { holder, epoch, reply } => {
                    let _ = reply.send(self.release(&holder, epoch).await);
                }
                Command::Rewrite(rewrite, reply) => {
                    let _ = reply.send(self.rewrite(rewrite).await);
                }
                Command::Change(change, reply) => {
                    let changed = self.change(&change).await;
                    self.reply_when_applied(vec![(reply, changed)]);
                }
            }
        }
    }

    async fn rewrite(&mut self, rewrite: Rewrite) -> Result<bool> {
        for _ in 0..CONFLICTS_MAX {
            let snapshot = match self.look().await {
                Ok(snapshot) => snapshot,
                Err(error) => {
                    self.discard(&rewrite.adds).await;
                    return Err(error);
                }
            };
            let all_there = snapshot.as_ref().is_some_and(|s| {
                s.moving().is_none()
                    && rewrite.removes.iter().all(|r| s.files.iter().any(|f| f.file.path == r.path))
            });
            let (Some(snapshot), true) = (snapshot, all_there) else {
                self.discard(&rewrite.adds).await;
                return Ok(false);
            };
            let now_ms = self.table.context.clock.now_ms();
            let mut actions = Actions::new("OPTIMIZE", Map::new(), now_ms);
            for file in &rewrite.removes {
                actions.remove(file, false, now_ms);
            }
            for file in &rewrite.adds {
                self.table.wrote(&file.file.path, file.index.clone());
                actions.add(&file.file, &file.stats, false, now_ms);
            }
            // Not through `commit`, which would remove the files: they are as good for the next version.
            match self.table.log.commit(snapshot.version + 1, &actions).await {
                Ok(Committed::Yes) => {
                    self.look().await?;
                    return Ok(true);
                }
                Ok(Committed::Taken) => {}
                Err(error) => return Err(self.failed(snapshot.version + 1, &rewrite.adds, error).await),
            }
        }
        self.discard(&rewrite.adds).await;
        Ok(false)
    }
}

/// A publish and the publishes behind it in the queue, up to the first request of another kind.
fn gather(first: Waiting, commands: &mut mpsc::Receiver<Command>) -> (Vec<Waiting>, Option<Command>) {
    let mut rows = first.0.rows.len();
    let mut group = vec![first];
    while group.len() < GROUP_MAX && rows < GROUP_ROWS_MAX && !group[0].0.goes_alone() {
        match commands.try_recv() {
            Ok(Command::Publish(_, reply)) if reply.is_closed() => {}
            Ok(Command::Publish(publish, reply)) if !publish.goes_alone() => {
                rows += publish.rows.len();
                group.push((publish, reply));
            }
            Ok(other) => return (group, Some(other)),
            Err(_) => break,
        }
    }
    (group, None)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use futures::future::join_all;

    use super::*;
    use crate::{
        files::{FileRef, WrittenFile},
        testing::{Grid, publish},
        write::{Effect, Pending, Right},
    };

    #[tokio::test]
    async fn ten_thousand_datasets_that_could_not_be_made_leave_no_names() {
        const NAMES: usize = 10_000;
        let grid = Grid::new().await;
        grid.import(&[("A", 0, 1.0)]).await.unwrap();
        grid.probe.fail("_delta_log", std::io::ErrorKind::StorageFull, crate::testing::When::Before);
        let (catalog, committers) = (&grid.shard.catalog, &grid.shard.committers);
        for i in 0..NAMES {
            let spec = trellis_proto::DatasetSpec {
                dataset: DatasetName::new(format!("d.x{i}")).unwrap(),
                ..crate::testing::spec()
            };
            let request = pb::AcquireLeaseRequest {
                dataset: spec.dataset.to_string(),
                unit: "mom".to_owned(),
                instance: "1".to_owned(),
                spec: Some((&spec).into()),
                ..Default::default()
            };
            assert_eq!(grid.shard.acquire_lease(request).await.unwrap_err().code(), Code::StorageFull);
        }
        while !committers.shared.desks.lock().is_empty() {
            tokio::task::yield_now().await;
        }
        catalog.close_all();
        assert!(catalog.open_tables().is_empty());
        assert_eq!(catalog.names(), 1, "only the dataset which is there");
    }

    #[tokio::test]
    async fn a_rewrite_of_ten_thousand_files_that_fails_keeps_the_index_of_none() {
        let grid = Grid::new().await;
        grid.import(&[("A", 0, 1.0)]).await.unwrap();
        let table = grid.table();
        let now = table.snapshot().unwrap();
        let adds = (0..10_000).map(|i| WrittenFile {
            file: FileRef { path: format!("part-{i}.parquet"), size: 1 },
            index: now.files[0].index.clone(),
            stats: serde_json::Value::Null,
        });
        let rewrite = Rewrite { removes: vec![now.files[0].file.clone()], adds: adds.collect() };
        grid.probe.fail("_delta_log", std::io::ErrorKind::Other, crate::testing::When::Before);
        assert!(grid.shard.committers.of(&table).rewrite(rewrite).await.is_err());
        assert_eq!(table.uncommitted(), 0);
    }

    #[tokio::test]
    async fn ten_thousand_publishers_that_left_leave_neither_rows_nor_bytes() {
        let grid = Grid::new().await;
        grid.import(&[("A", 0, 1.0)]).await.unwrap();
        let committer = grid.shard.committers.of(&grid.table());
        let pending = Pending::new(QUEUE_MAX);
        for round in 0..10_000 / QUEUE_MAX + 1 {
            for i in 0..QUEUE_MAX {
                let mut held = pending.held();
                held.add(1).unwrap();
                let import =
                    publish(Right::Import { known_at: None }, "", &[("A", 1, 2.0)], None, Effect::Adds, None);
                let mut left = Box::pin(committer.publish(Publish { _held: Some(held), ..import }));
                assert!(futures::poll!(&mut left).is_pending(), "{round} {i}");
            }
            assert!(pending.held().add(1).is_err());
            // Nobody is behind these requests in the queue, so one look of the committer drops them all.
            while pending.held().add(QUEUE_MAX).is_err() {
                tokio::task::yield_now().await;
            }
        }
        assert_eq!(grid.table().snapshot().unwrap().version, 0, "nothing was committed");
        assert_eq!(grid.rows("A").await, [(0, 1.0)]);
    }

    // On one thread, so the committer does not run before the test waits.
    #[tokio::test]
    async fn a_publish_whose_publisher_left_counts_until_its_turn_and_is_not_committed() {
        let grid = Grid::new().await;
        grid.import(&[("A", 0, 1.0)]).await.unwrap();
        let committer = grid.shard.committers.of(&grid.table());
        let pending = Pending::new(10);
        for behind in [false, true] {
            let mut held = pending.held();
            held.add(8).unwrap();
            let import = |ts| {
                publish(Right::Import { known_at: None }, "", &[("A", ts, 2.0)], None, Effect::Adds, None)
            };
            let mut first = Box::pin(committer.publish(import(2)));
            if behind {
                assert!(futures::poll!(&mut first).is_pending());
            }
            let mut left = Box::pin(committer.publish(Publish { _held: Some(held), ..import(1) }));
            assert!(futures::poll!(&mut left).is_pending());
            drop(left);
            assert_eq!(
                pending.held().add(3).unwrap_err().code(),
                Code::Overloaded,
                "its rows are in the queue"
            );
            first.await.unwrap();
            pending.held().add(10).unwrap();
            let times: std::collections::BTreeSet<i64> =
                grid.rows("A").await.iter().map(|row| row.0).collect();
            assert_eq!(times, [0, 2].into());
        }
    }

    impl Committers {
        fn running(&self) -> usize {
            self.shared.desks.lock().values().filter(|desk| desk.queue.is_some()).count()
        }
    }

    fn holder(instance: &str) -> Holder {
        Holder { unit: "mom".to_owned(), instance: instance.to_owned() }
    }

    const TTL: Duration = Duration::from_secs(60);

    async fn ask(grid: &Grid, instance: &str) -> Result<Grant> {
        let asked = Acquisition { holder: holder(instance), ttl: TTL, take_over: false, spec: None };
        grid.shard.committers.of(&grid.table()).acquire(asked).await
    }

    /// Everybody who runs ends, and the table is closed.
    async fn rest(grid: &Grid) {
        while grid.shard.committers.running() > 0 {
            tokio::task::yield_now().await;
        }
        grid.shard.catalog.close_all();
        assert!(grid.shard.catalog.open_tables().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewed_lease_outlives_the_committer_and_the_open_table() {
        let grid = Grid::new().await;
        grid.lease("mom").await;
        rest(&grid).await;
        tokio::time::advance(TTL - Duration::from_secs(10)).await;
        grid.shard.committers.of(&grid.table()).renew(holder("1"), 1, TTL).await.unwrap();
        rest(&grid).await;
        tokio::time::advance(TTL - Duration::from_secs(10)).await;
        assert_eq!(ask(&grid, "2").await.unwrap_err().code(), Code::Conflict, "it was renewed, and runs");
        rest(&grid).await;
        tokio::time::advance(Duration::from_secs(11)).await;
        assert_eq!(ask(&grid, "2").await.unwrap().epoch, 2, "and it runs out");
    }

    #[tokio::test(start_paused = true)]
    async fn a_table_that_is_opened_again_gives_the_holder_of_before_no_second_time_to_live() {
        let grid = Grid::new().await;
        grid.lease("mom").await;
        let grid = grid.restart().await;
        rest(&grid).await;
        tokio::time::advance(TTL / 2).await;
        assert_eq!(ask(&grid, "2").await.unwrap_err().code(), Code::Unavailable, "it may live");
        rest(&grid).await;
        tokio::time::advance(TTL / 2).await;
        assert_eq!(ask(&grid, "2").await.unwrap().epoch, 2, "it does not");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn no_request_meets_a_committer_that_has_ended() {
        let grid = Arc::new(Grid::new().await);
        grid.lease("mom").await;
        let askers: Vec<_> = (0..4)
            .map(|_| {
                let grid = grid.clone();
                tokio::spawn(async move {
                    for _ in 0..200 {
                        // Nobody's lease: it is answered after a look at the log.
                        grid.shard.committers.of(&grid.table()).release(holder("?"), 7).await.unwrap();
                    }
                })
            })
            .collect();
        for asker in askers {
            asker.await.unwrap();
        }
        while grid.shard.committers.running() > 0 {
            tokio::task::yield_now().await;
        }
    }

    /// On one thread all publishes are in the queue before the committer looks into it.
    #[tokio::test]
    async fn publishes_that_wait_for_each_other_are_one_commit() {
        let grid = Grid::new().await;
        grid.lease("mom").await;
        let publishes = (0..200).map(|i| {
            let (grid, symbol, run, partition) =
                (&grid, format!("S{}", i % 10), format!("r{i}"), format!("p{}", i % 10));
            async move {
                let rows = [(symbol.as_str(), 5, f64::from(i))];
                grid.publish_session("mom", 1, &run, &rows, 0..10, &partition).await.unwrap().version
            }
        });
        let versions: BTreeSet<u64> = join_all(publishes).await.into_iter().collect();
        assert_eq!(versions.len(), 1, "{versions:?}");
    }
}
