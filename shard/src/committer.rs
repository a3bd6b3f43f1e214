//! The one task that commits to a dataset: publishes, imports, ledger rows, leases, rewrites, one after the other.
//!
//! What arrives while a commit is on its way to the disk waits in the queue, and publishes go together as the next commit:
//! one file, one log entry, two syncs, however many there are. There is no timer, so a lone publish waits for nobody.
//! Leases go through the same queue, so that a grant and a publish have an order.
//!
//! A commit is a compare-and-swap at the version that all checks were made against. Who loses (another shard that believes
//! to be home, a person with another tool) looks at the new version and checks everything again: the epoch, the run ids,
//! the knowledge times. So no clock and no belief about who is home carries any weight; the table's order of versions does.
//!
//! What a publish must satisfy, and how a group of them becomes a commit, stands in [`crate::publish`].

use std::{sync::Arc, time::Duration};

use serde_json::{Map, json};
use tokio::sync::{mpsc, oneshot};
use trellis_proto::{Code, DatasetSpec, Error, Result, pb, spec::Evolved};

use crate::{
    delta::{Actions, Committed, LogFile},
    error::internal,
    evolve::Change,
    file::WrittenFile,
    lease::{Acquire, Grant, Holder, Lease},
    metrics::Metrics,
    publish::{Publish, Waiting},
    schema::{self, Life},
    table::{self, PUBLISHER, RELEASED, Snapshot, Table, WATERMARK},
};

/// Commands that wait for one dataset's committer; beyond it publishers are told to come back.
pub(crate) const QUEUE_MAX: usize = 4_096;
/// Publishes in one commit: bounds the log entry, to which each adds about 500 bytes.
const GROUP_MAX: usize = 1_024;
/// Rows in one commit of several publishes: bounds what a publish waits for the ones that it was grouped with.
const GROUP_ROWS_MAX: usize = 1 << 20;
/// Commits lost in a row before the publisher is told to come back. Only another writer of the same table can cause one.
pub(crate) const CONFLICTS_MAX: usize = 16;

/// Files that replace others with the same rows.
#[derive(Debug)]
pub(crate) struct Rewrite {
    pub(crate) removes: Vec<LogFile>,
    pub(crate) adds: Vec<WrittenFile>,
}

/// A request for the lease. What it may be answered, by code: [`Code::Conflict`] while another instance holds it, which passes
/// by itself; [`Code::PermissionDenied`] if it is another unit's output, and [`Code::InvalidRequest`] if the dataset has another
/// schema, which do not; [`Code::Unavailable`] while it is not known whether another instance still lives, and if the table was
/// changed under the request too often, which asking again settles.
#[derive(Debug)]
pub(crate) struct Acquisition {
    pub(crate) holder: Holder,
    pub(crate) ttl: Duration,
    pub(crate) take_over: bool,
    /// Makes the dataset if it is not there; if it is, must match.
    pub(crate) spec: Option<Arc<DatasetSpec>>,
}

#[derive(Debug)]
enum Command {
    Publish(Box<Publish>, oneshot::Sender<Result<pb::PublishAck>>),
    Acquire(Acquisition, oneshot::Sender<Result<Grant>>),
    Renew { holder: Holder, epoch: u64, ttl: Duration, reply: oneshot::Sender<Result<Grant>> },
    Release { holder: Holder, epoch: u64, reply: oneshot::Sender<Result<()>> },
    Rewrite(Rewrite, oneshot::Sender<Result<bool>>),
    Change(Change, oneshot::Sender<Result<pb::DatasetChange>>),
}

/// The way to a dataset's committer. The task ends when the last handle is dropped and the queue is empty.
#[derive(Debug, Clone)]
pub(crate) struct Committer {
    queue: mpsc::Sender<Command>,
}

impl Committer {
    /// Starts the committer of `table`.
    pub(crate) fn start(table: Arc<Table>, apply_wait: Duration, metrics: Arc<Metrics>) -> Self {
        let (queue, commands) = mpsc::channel(QUEUE_MAX);
        let task = Task { table, apply_wait, metrics, lease: Lease::Never };
        tokio::spawn(task.run(commands));
        Self { queue }
    }

    /// Commits rows; acknowledged when they are on the disk and every connected watcher has applied them.
    ///
    /// Not cancel safe: a dropped call may still commit. The run id makes asking again safe.
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

    /// Replaces files by others with the same rows; `false`: one of them is not in the table any more.
    pub(crate) async fn rewrite(&self, rewrite: Rewrite) -> Result<bool> {
        self.ask(|reply| Command::Rewrite(rewrite, reply)).await?
    }

    /// Makes the dataset another one; acknowledged when every connected watcher has applied it.
    pub(crate) async fn change(&self, change: Change) -> Result<pb::DatasetChange> {
        self.ask(|reply| Command::Change(change, reply)).await?
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        self.queue.try_send(command(reply)).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => {
                Error::new(Code::Overloaded, format!("{QUEUE_MAX} commits to this dataset are waiting"))
            }
            mpsc::error::TrySendError::Closed(_) => Error::new(Code::Internal, "the committer has ended"),
        })?;
        answer.await.map_err(|_| {
            Error::new(Code::Unavailable, "the shard stopped before it answered; the outcome is not known")
                .hint("ask again with the same run id")
        })
    }
}

/// The committer itself.
pub(crate) struct Task {
    pub(crate) table: Arc<Table>,
    pub(crate) apply_wait: Duration,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) lease: Lease,
}

impl Task {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut next = None;
        loop {
            let command = match next.take() {
                Some(command) => command,
                None => match commands.recv().await {
                    Some(command) => command,
                    None => return,
                },
            };
            match command {
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

    /// The newest state, with the lease brought up to it.
    pub(crate) async fn look(&mut self) -> Result<Option<Arc<Snapshot>>> {
        let snapshot = self.table.refresh().await?;
        if let Some(snapshot) = &snapshot {
            self.lease = self.lease.caught_up(snapshot.lease_learned, &snapshot.lease);
        }
        Ok(snapshot)
    }

    /// Commits; `None`: somebody else has committed this version. The files that `actions` add are removed only where it is
    /// certain that they are not, and will not become, part of the table; others are swept when they have been in no
    /// version for the retention.
    pub(crate) async fn commit(
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
    pub(crate) async fn discard(&self, files: &[WrittenFile]) {
        for file in files {
            self.table.discard(&file.file.path).await;
        }
    }

    async fn acquire(&mut self, asked: Acquisition) -> Result<Grant> {
        for _ in 0..CONFLICTS_MAX {
            let snapshot = self.look().await?;
            if let Some(snapshot) = &snapshot {
                snapshot.check_stays()?;
            }
            let mut evolved = None;
            let spec = match (table::live(&snapshot), &asked.spec) {
                (Some(snapshot), Some(spec)) => {
                    evolved = self.declared(&snapshot.spec, spec)?;
                    snapshot.spec.clone()
                }
                (Some(snapshot), None) => snapshot.spec.clone(),
                (None, Some(spec)) => spec.clone(),
                (None, None) => {
                    return Err(Error::new(
                        Code::UnknownDataset,
                        format!("there is no dataset {}", self.table.name),
                    )
                    .dataset(&self.table.name)
                    .hint("give its spec with the request for the lease, to make it"));
                }
            };
            let now_ns = self.table.shared.clock.now_ms() * 1_000_000;
            let name = self.table.name.as_str();
            let now = self.table.now();
            let step = self.lease.acquire(name, now, now_ns, &asked.holder, asked.ttl, asked.take_over);
            let grant = match step.map_err(|e| e.dataset(name))? {
                Acquire::Already(lease) if evolved.is_none() => {
                    self.lease = lease;
                    return self.granted();
                }
                // granted once more with what it declares now
                Acquire::Already(_) => Grant {
                    epoch: self.lease.epoch() + 1,
                    holder: asked.holder.clone(),
                    since_ns: now_ns,
                    ttl: asked.ttl,
                },
                Acquire::Commit(grant) => grant,
            };
            let evolution = match (table::live(&snapshot), evolved) {
                (Some(before), Some(evolved)) => Some((before, self.evolution(before, evolved).await?)),
                _ => None,
            };
            let version = snapshot.as_ref().map_or(0, |s| s.version + 1);
            let now_ms = now_ns / 1_000_000;
            let info = Map::from_iter([(
                "trellis".to_owned(),
                json!({"lease": {"unit": grant.holder.unit, "instance": grant.holder.instance, "epoch": grant.epoch,
                    "ttl_ms": grant.ttl.as_millis() as u64}}),
            )]);
            let mut actions = Actions::new("GRANT", info, now_ms);
            if let Some((before, evolution)) = &evolution {
                evolution.describe(&mut actions, before, now_ms);
            }
            if table::live(&snapshot).is_none() {
                create(&mut actions, snapshot.as_deref(), &spec, now_ms);
            }
            grant_actions(&mut actions, &grant, now_ms);
            let written = evolution.as_ref().map_or(&[][..], |(_, evolution)| evolution.adds.as_slice());
            if self.commit(version, &actions, written).await?.is_some() {
                self.look().await?;
                // If the look found a still larger epoch, the grant is history already.
                if self.lease.epoch() <= grant.epoch {
                    self.lease = Lease::granted(self.table.now(), grant);
                    return self.granted();
                }
            }
        }
        Err(Error::new(Code::Unavailable, "others are asking for this lease too; try again")
            .dataset(&self.table.name))
    }

    async fn renew(&mut self, holder: &Holder, epoch: u64, ttl: Duration) -> Result<Grant> {
        self.look().await?;
        let renewed = self.lease.renew(self.table.now(), holder, epoch, ttl);
        self.lease = renewed.map_err(|e| e.dataset(&self.table.name))?;
        self.granted()
    }

    /// What is answered to who asked: granted to nobody, it is given back at once.
    fn granted(&self) -> Result<Grant> {
        match &self.lease {
            Lease::Held { grant, expires, .. } => {
                Ok(Grant { ttl: expires.saturating_sub(self.table.now()), ..grant.clone() })
            }
            Lease::Released { grant } => Ok(Grant { ttl: Duration::ZERO, ..grant.clone() }),
            Lease::Never => Err(internal("granting a lease", "it is not held")),
        }
    }

    /// Gives the lease back, durably: a shard that starts later need not wait for a holder that has ended.
    async fn release(&mut self, holder: &Holder, epoch: u64) -> Result<()> {
        for _ in 0..CONFLICTS_MAX {
            let snapshot = self.look().await?;
            let (Some(snapshot), Some(released)) = (snapshot, self.lease.release(holder, epoch)) else {
                return Ok(());
            };
            let now_ms = self.table.shared.clock.now_ms();
            let info = json!({"release": {"unit": holder.unit, "instance": holder.instance, "epoch": epoch}});
            let mut actions = Actions::new("RELEASE", Map::from_iter([("trellis".to_owned(), info)]), now_ms);
            actions.txn(RELEASED, epoch as i64, now_ms);
            let committed = self.commit(snapshot.version + 1, &actions, &[]).await;
            if matches!(committed, Ok(None)) {
                continue;
            }
            // Whatever became of the commit, its holder is done with it.
            self.lease = released;
            committed?;
            self.look().await?;
            return Ok(());
        }
        Err(Error::new(
            Code::Unavailable,
            "the lease is not given back: others write to the table; try again",
        )
        .dataset(&self.table.name))
    }

    async fn rewrite(&mut self, rewrite: Rewrite) -> Result<bool> {
        for _ in 0..CONFLICTS_MAX {
            let snapshot = self.look().await?;
            let all_there = snapshot.as_ref().is_some_and(|s| {
                s.moving().is_none()
                    && rewrite.removes.iter().all(|r| s.files.iter().any(|f| f.file.path == r.path))
            });
            let (Some(snapshot), true) = (snapshot, all_there) else {
                self.discard(&rewrite.adds).await;
                return Ok(false);
            };
            let now_ms = self.table.shared.clock.now_ms();
            let mut actions = Actions::new("OPTIMIZE", Map::new(), now_ms);
            for file in &rewrite.removes {
                actions.remove(file, false, now_ms);
            }
            for file in &rewrite.adds {
                self.table.wrote(&file.file.path, file.index.clone());
                actions.add(&file.file, &file.stats, false, now_ms);
            }
            // Not through `commit`: a lost race leaves the rewritten files good for the next version.
            match self.table.log.commit(snapshot.version + 1, &actions).await? {
                Committed::Yes => {
                    self.look().await?;
                    return Ok(true);
                }
                Committed::Taken => {}
            }
        }
        self.discard(&rewrite.adds).await;
        Ok(false)
    }

    /// What the dataset must become to be what a unit declares; `None`: it is so already.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] if the declaration leaves something out, is narrower or another one. Not a conflict, as it is for
    /// rows: who asks for a lease waits for a conflict to pass.
    pub(crate) fn declared(&self, have: &DatasetSpec, given: &DatasetSpec) -> Result<Option<Evolved>> {
        let refuse = |why: &str| {
            Error::new(Code::InvalidRequest, why).dataset(&self.table.name).hint(
                "declare the fields that the dataset has, and more if need be; publish to another dataset; or change this one \
                 with `trellis dataset alter`",
            )
        };
        let evolved = Self::wider(have, given).map_err(|error| refuse(error.message()))?;
        let now = evolved.as_ref().map_or(have, |evolved| &evolved.spec);
        if now.agrees_with(given) {
            return Ok(evolved);
        }
        let why = schema::difference(now, given).unwrap_or_else(|| "it is another one".to_owned());
        Err(refuse(&format!("{} exists with another schema: {why}", self.table.name)))
    }

    /// Answers once every connected watcher has applied what was committed so far. Whatever comes next does not wait for them.
    pub(crate) fn reply_when_applied<T: Send + 'static>(&self, replies: Vec<(oneshot::Sender<T>, T)>) {
        let (watch, patience) = (self.table.shared.watch.clone(), self.apply_wait);
        let seq = watch.seq();
        tokio::spawn(async move {
            watch.wait_applied(seq, patience).await;
            for (reply, answer) in replies {
                let _ = reply.send(answer);
            }
        });
    }
}

/// A publish, and everything that queued up behind it, up to the first command of another kind.
fn gather(first: Waiting, commands: &mut mpsc::Receiver<Command>) -> (Vec<Waiting>, Option<Command>) {
    let mut rows = first.0.rows.len();
    let mut group = vec![first];
    while group.len() < GROUP_MAX && rows < GROUP_ROWS_MAX && !group[0].0.goes_alone() {
        match commands.try_recv() {
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

/// The actions that grant an epoch.
pub(crate) fn grant_actions(actions: &mut Actions, grant: &Grant, now_ms: i64) {
    actions.txn(PUBLISHER, grant.epoch as i64, now_ms);
    actions.txn(&table::holder_txn(grant), grant.epoch as i64, now_ms);
}

/// The actions that make the dataset: its table, or another one of the table of a dropped dataset.
pub(crate) fn create(actions: &mut Actions, dropped: Option<&Snapshot>, spec: &DatasetSpec, now_ms: i64) {
    let Some(dropped) = dropped else { return actions.create(spec, &Life::default(), now_ms) };
    let life = Life { revision: dropped.life.revision + 1, since: dropped.version + 1, dropped: false };
    actions.create(spec, &life, now_ms);
    if dropped.watermark.is_some() {
        actions.txn(WATERMARK, i64::MIN, now_ms);
    }
}
