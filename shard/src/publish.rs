//! Rows on their way into a table: who may publish them, what they must satisfy, and how a group becomes one commit.
//!
//! Every publish of a group is judged against one version of the table, and against those before it in the group. Those
//! that may be committed get their knowledge times and go as one file and one log entry; see [`crate::committer`] for when
//! a commit is lost.
//!
//! A publish of a session is the truth whole: what it lacks of the session is retracted in the same commit, with its knowledge
//! time. Which rows these are is decided when it is judged; see [`crate::live`].

use std::{
    collections::{BTreeSet, HashMap},
    ops::Range,
    sync::Arc,
    time::Duration,
};

use arrow_array::{RecordBatch, cast::AsArray, types::Int64Type};
use serde_json::{Map, Value, json};
use tokio::{sync::oneshot, time::Instant};
use trellis_proto::{
    Code, DatasetSpec, Error, Result, Symbol, pb,
    spec::Evolved,
    time::{SECOND_NS, format_time},
};

use crate::{
    append::{self, Rows},
    committer::{CONFLICTS_MAX, Task, create, grant_actions},
    delta::Actions,
    error::internal,
    file::{FILE_ROWS_MAX, WrittenFile, write_file},
    lease::{Acquire, Grant, Holder},
    live::{self, Key, Newest, Whose},
    schema::{self, KNOWN_AT_NS},
    table::{self, CommittedRun, IMPORTED, RELEASED, SessionKey, Snapshot, WATERMARK},
    wire,
};

/// What may be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Right {
    /// The holder of the lease with this epoch.
    Session { unit: String, epoch: u64 },
    /// Who may be granted the lease now: taken, used and given back in one commit.
    Once { holder: Holder, take_over: bool },
    /// It is no unit's output. With a knowledge time of its own, or that of the commit.
    Import { known_at: Option<i64> },
    /// The shard itself.
    Ledger,
}

/// What a publish means to rows that are there already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Its rows stand for themselves: a row of the same key is corrected, others stay.
    Adds,
    /// Its rows are all that holds of these event times. With a partition: all that holds of what the partition has published.
    Replaces(Range<i64>),
    /// Its rows are keys: what the dataset has there no longer holds.
    Retracts,
}

/// Checked rows on their way into the table.
#[derive(Debug)]
pub(crate) struct Publish {
    pub(crate) right: Right,
    /// What the rows were checked against; the table is made with it if it is not there.
    pub(crate) spec: Arc<DatasetSpec>,
    pub(crate) rows: Rows,
    /// Empty: not idempotent.
    pub(crate) run_id: String,
    pub(crate) digest: String,
    /// Which session and partition it publishes; `None` of imports and the ledger.
    pub(crate) session: Option<SessionKey>,
    pub(crate) watermark: Option<i64>,
    pub(crate) effect: Effect,
    /// For people: goes into the commit's metadata.
    pub(crate) note: Value,
}

impl Publish {
    /// Whether it goes into a commit of its own. An import with its own knowledge time, or one that retracts, is checked against
    /// what is known of its symbols, and what it would be grouped with is not known yet. A publish with its own lease fences the
    /// others.
    pub(crate) fn goes_alone(&self) -> bool {
        matches!(self.right, Right::Import { known_at: Some(_) } | Right::Once { .. })
            || self.effect == Effect::Retracts
    }

    /// What a partition's publish stands for; `None` for all others.
    fn partition(&self) -> Option<&SessionKey> {
        self.session.as_ref().filter(|key| !key.partition.is_empty())
    }
}

/// Who waits for an acknowledgement.
pub(crate) type Reply = oneshot::Sender<Result<pb::PublishAck>>;
/// A publish that is not judged yet.
pub(crate) type Waiting = (Box<Publish>, Reply);

/// A publish that goes into the next commit.
struct Accepted {
    publish: Box<Publish>,
    known_at: i64,
    /// The epoch that is granted and given back with it.
    once: Option<Grant>,
    /// The rows that it takes back, if it replaces any.
    retracted: Vec<Key>,
    /// Least and greatest event time of its rows.
    span: Option<(i64, i64)>,
    /// Who waits for it: its publisher, and any that sent the same run id meanwhile.
    replies: Vec<Reply>,
}

/// How long before the midnight (UTC) of its date a session may be published: then that date begins, in the zone furthest east. Who
/// publishes further ahead has mistaken the date, and the unit of the output would take all sessions up to that one as published.
const SESSION_AHEAD_NS: i64 = 14 * 3_600 * SECOND_NS;

impl Accepted {
    /// What is stored: its rows, and what it retracts.
    fn exact(&self, spec: &DatasetSpec) -> Result<Vec<RecordBatch>> {
        if self.publish.effect == Effect::Retracts {
            return Ok(vec![append::retractions(spec, &self.publish.rows.keys()?, self.known_at)?]);
        }
        let mut parts = vec![self.publish.rows.exact(spec, self.known_at)?];
        if !self.retracted.is_empty() {
            parts.push(append::retractions(spec, &self.retracted, self.known_at)?);
        }
        Ok(parts)
    }

    /// Rows that it takes back.
    fn retracts(&self) -> usize {
        if self.publish.effect == Effect::Retracts { self.publish.rows.len() } else { self.retracted.len() }
    }

    /// Whether it has or retracts rows on event times of `range`.
    fn touches(&self, range: &Range<i64>) -> bool {
        self.span.is_some_and(|(first, last)| first < range.end && range.start <= last)
            || self.retracted.iter().any(|key| range.contains(&key.1))
    }

    /// Tells what will hold when it is committed.
    fn tell(&self, range: &Range<i64>, newest: &mut Newest) -> Result<()> {
        for key in self.publish.rows.keys()?.into_iter().filter(|key| range.contains(&key.1)) {
            newest.learn(key, self.known_at, false);
        }
        for key in self.retracted.iter().filter(|key| range.contains(&key.1)) {
            newest.learn(key.clone(), self.known_at, true);
        }
        Ok(())
    }
}

/// What holds of the ranges that publishes of a group replace, as it will be after those that were accepted.
type Ranges = Vec<(Range<i64>, Newest)>;

/// Whether a publish goes into the next commit.
enum Verdict {
    Accept(Option<Grant>),
    /// Already committed: this acknowledgement again.
    Duplicate(pb::PublishAck),
    Refuse(Error),
}

impl Task {
    pub(crate) async fn commit_group(&mut self, group: Vec<Waiting>) {
        let mut waiting = group;
        while !waiting.is_empty() {
            waiting = self.commit_some(waiting).await;
        }
    }

    /// Commits those that may go together; the rest comes after.
    async fn commit_some(&mut self, group: Vec<Waiting>) -> Vec<Waiting> {
        let mut waiting = group;
        for _ in 0..CONFLICTS_MAX {
            let snapshot = match self.look().await {
                Ok(snapshot) => snapshot,
                Err(error) => {
                    refuse_all(waiting, &error);
                    return Vec::new();
                }
            };
            if let Some(Err(error)) = snapshot.as_ref().map(|snapshot| snapshot.check_stays()) {
                refuse_all(waiting, &error);
                return Vec::new();
            }
            let (accepted, later) = self.judge(snapshot.as_deref(), waiting).await;
            if accepted.is_empty() {
                return later;
            }
            match self.commit_rows(snapshot.as_deref(), &accepted).await {
                Ok(Some(version)) => {
                    self.acknowledge(accepted, version).await;
                    return later;
                }
                Ok(None) => {
                    waiting = Vec::new();
                    for a in accepted {
                        let mut replies = a.replies.into_iter();
                        if let Some(first) = replies.next() {
                            // The others asked for the same run: they are answered as its duplicates next time, or not at all;
                            // their clients ask again.
                            waiting.push((a.publish, first));
                        }
                        for other in replies {
                            let _ = other.send(Err(Error::new(
                                Code::Unavailable,
                                "another publish of this run id was on its way",
                            )));
                        }
                    }
                    waiting.extend(later);
                }
                Err(error) => {
                    for reply in accepted.into_iter().flat_map(|a| a.replies) {
                        let _ = reply.send(Err(error.clone()));
                    }
                    return later;
                }
            }
        }
        let error = Error::new(
            Code::Unavailable,
            format!("{} is being written by somebody else: lost {CONFLICTS_MAX} commits", self.table.name),
        );
        refuse_all(waiting, &error.dataset(&self.table.name));
        Vec::new()
    }

    /// Answers those that cannot be committed, and gives the others their knowledge times. One for which the dataset has to
    /// become a wider one is committed alone, so that it is refused alone if that cannot be; what comes after it is returned.
    async fn judge(
        &self,
        snapshot: Option<&Snapshot>,
        waiting: Vec<Waiting>,
    ) -> (Vec<Accepted>, Vec<Waiting>) {
        let now_ns = self.table.shared.clock.now_ns();
        let mut next_known_at = now_ns.max(snapshot.map_or(i64::MIN, |s| s.known_through.saturating_add(1)));
        let mut accepted: Vec<Accepted> = Vec::new();
        let mut by_run: HashMap<String, usize> = HashMap::new();
        let mut ranges = Ranges::new();
        let snapshot = snapshot.filter(|s| !s.life.dropped);
        let mut spec: Option<Arc<DatasetSpec>> = snapshot.map(|s| s.spec.clone());
        let mut waiting = waiting.into_iter();
        let mut later = Vec::new();
        for (mut publish, reply) in waiting.by_ref() {
            if let Some(&twin) = by_run.get(&publish.run_id) {
                if accepted[twin].publish.digest == publish.digest {
                    accepted[twin].replies.push(reply);
                } else {
                    let _ = reply.send(Err(self.other_content(&publish.run_id)));
                }
                continue;
            }
            let fitted = match &spec {
                // keys have no fields
                Some(have) if publish.effect == Effect::Retracts => {
                    publish.spec = have.clone();
                    Ok(false)
                }
                Some(have) if **have != *publish.spec => fit(have, &mut publish).await,
                _ => Ok(false),
            };
            let widens = fitted.as_ref().is_ok_and(|widens| *widens);
            if widens && !accepted.is_empty() {
                later.push((publish, reply));
                break;
            }
            let verdict = match fitted {
                Ok(_) => self.verdict(snapshot, &accepted, &publish, now_ns).await,
                Err(error) => Verdict::Refuse(error),
            };
            let retracted = match verdict {
                Verdict::Accept(_) => self.replaced(snapshot, &accepted, &mut ranges, &publish).await,
                Verdict::Duplicate(_) | Verdict::Refuse(_) => Ok(Vec::new()),
            };
            let (verdict, retracted) = match retracted {
                Ok(retracted) => (verdict, retracted),
                Err(error) => (Verdict::Refuse(error), Vec::new()),
            };
            match verdict {
                Verdict::Accept(once) => {
                    let known_at = match publish.right {
                        Right::Import { known_at: Some(explicit) } => explicit,
                        Right::Import { known_at: None }
                        | Right::Session { .. }
                        | Right::Once { .. }
                        | Right::Ledger => {
                            // Each publish of a group has its own, so that two corrections of one row keep their order.
                            next_known_at += 1;
                            next_known_at - 1
                        }
                    };
                    if !publish.run_id.is_empty() {
                        by_run.insert(publish.run_id.clone(), accepted.len());
                    }
                    spec.get_or_insert_with(|| publish.spec.clone());
                    let span = publish.rows.span();
                    let new = Accepted { publish, known_at, once, retracted, span, replies: vec![reply] };
                    for (range, newest) in ranges.iter_mut().filter(|(range, _)| new.touches(range)) {
                        // The rows' symbols have been looked at when they came.
                        let _ = new.tell(range, newest);
                    }
                    accepted.push(new);
                    if widens {
                        break;
                    }
                }
                Verdict::Duplicate(ack) => self.acknowledge_when_applied(vec![(reply, ack)]),
                Verdict::Refuse(error) => {
                    let _ = reply.send(Err(error.dataset(&self.table.name)));
                }
            }
        }
        later.extend(waiting);
        (accepted, later)
    }

    /// The rows that a publish takes back because it replaces them, after those that were accepted before it. Nothing is read
    /// unless there may be any.
    async fn replaced(
        &self,
        snapshot: Option<&Snapshot>,
        accepted: &[Accepted],
        ranges: &mut Ranges,
        publish: &Publish,
    ) -> Result<Vec<Key>> {
        let range = match &publish.effect {
            Effect::Adds => return Ok(Vec::new()),
            Effect::Retracts => return self.check_held(snapshot, &publish.rows).await.map(|()| Vec::new()),
            Effect::Replaces(range) => range,
        };
        let own = publish.partition().map(|key| {
            let mut own = self.table.published(key);
            own.extend(accepted.iter().filter(|a| a.publish.partition() == Some(key)).map(|a| a.known_at));
            own
        });
        let stored = snapshot.is_some_and(|s| s.files.iter().any(|file| live::touches(&file.index, range)));
        let there = stored || accepted.iter().any(|a| a.touches(range));
        if !there || own.as_ref().is_some_and(BTreeSet::is_empty) {
            return Ok(Vec::new());
        }
        let at = match ranges.iter().position(|(known, _)| known == range) {
            Some(at) => at,
            None => {
                let mut newest = match snapshot {
                    Some(snapshot) if stored => Newest::read(snapshot, range, |_| true).await?,
                    _ => Newest::default(),
                };
                for a in accepted {
                    a.tell(range, &mut newest)?;
                }
                ranges.push((range.clone(), newest));
                ranges.len() - 1
            }
        };
        let whose = own.as_ref().map_or(Whose::Everybodys, Whose::Of);
        let gone = ranges[at].1.lacking(&publish.rows.keys()?, whose);
        if !gone.is_empty() {
            self.check_retractable(&publish.spec)?;
        }
        Ok(gone)
    }

    /// Refuses to retract what does not hold: whoever asks means another row.
    async fn check_held(&self, snapshot: Option<&Snapshot>, rows: &Rows) -> Result<()> {
        let spec = match snapshot {
            Some(snapshot) => &snapshot.spec,
            None => {
                return Err(Error::new(
                    Code::UnknownDataset,
                    format!("there is no dataset {}", self.table.name),
                ));
            }
        };
        self.check_retractable(spec)?;
        let keys = rows.keys()?;
        let symbols: BTreeSet<&Symbol> = keys.iter().map(|(symbol, _)| symbol).collect();
        let newest = match (snapshot, rows.span()) {
            (Some(snapshot), Some((first, last))) => {
                let range = first..last.saturating_add(1);
                Newest::read(snapshot, &range, |symbol| symbols.contains(symbol)).await?
            }
            _ => Newest::default(),
        };
        let missing: Vec<&Key> = keys.iter().filter(|key| !newest.holds(key)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let named = missing.iter().take(append::PROBLEMS_MAX);
        let named: Vec<String> =
            named.map(|(symbol, ts)| format!("{symbol} at {}", format_time(*ts))).collect();
        let more = match missing.len() - named.len() {
            0 => String::new(),
            more => format!("; and {more} more"),
        };
        let what = format!("{} has no row of {}{more}", self.table.name, named.join("; "));
        Err(Error::new(Code::BadRows, what)
            .hint("a retraction names the symbol and the exact time of a row that is read now; nothing was retracted"))
    }

    /// A dataset of before there were retractions may have a field of that name.
    fn check_retractable(&self, spec: &DatasetSpec) -> Result<()> {
        schema::check_spec(spec).map_err(|_| {
            Error::new(
                Code::Conflict,
                format!(
                    "{} has a field {}, so no row of it can be retracted",
                    self.table.name,
                    schema::RETRACTED
                ),
            )
            .hint("rename the field")
        })
    }

    async fn verdict(
        &self,
        snapshot: Option<&Snapshot>,
        accepted: &[Accepted],
        publish: &Publish,
        now_ns: i64,
    ) -> Verdict {
        // Before the epoch: a publish that was acknowledged once is acknowledged again, even after a take-over.
        // Not so after the dataset was dropped: the runs of that one are not this one's.
        let may_be_known = snapshot.is_some() && !publish.run_id.is_empty();
        // Nor what an import brought before a change by hand, which may have taken it away.
        let altered =
            snapshot.and_then(|s| s.altered).filter(|_| matches!(publish.right, Right::Import { .. }));
        let known = self.table.run(&publish.run_id).filter(|_| may_be_known);
        if let Some(run) = known.filter(|run| altered.is_none_or(|altered| altered < run.version)) {
            if run.digest != publish.digest {
                return Verdict::Refuse(self.other_content(&publish.run_id));
            }
            return Verdict::Duplicate(self.ack_again(&run));
        }
        if let Effect::Replaces(range) = &publish.effect
            && range.start > now_ns.saturating_add(SESSION_AHEAD_NS)
        {
            let what = format!("the session {} lies in the future", format_time(range.start));
            return Verdict::Refuse(Error::new(Code::InvalidRequest, what).hint(
                "is the date right? A session can be published from 14 hours before its midnight in UTC on: then it begins in the east",
            ));
        }
        let unowned = || match snapshot {
            Some(snapshot) => snapshot.lease.check_unowned(self.table.name.as_str()),
            None => Ok(()),
        };
        let allowed = match &publish.right {
            Right::Session { unit, epoch } => self.lease.check_publish(unit, *epoch).map(|()| None),
            Right::Once { holder, take_over } => self.once(holder, *take_over, now_ns).map(Some),
            Right::Import { known_at } => match (unowned(), known_at, snapshot) {
                (Err(owned), _, _) => Err(owned),
                (Ok(()), Some(known_at), _) if *known_at > now_ns => Err(Error::new(
                    Code::InvalidRequest,
                    format!("the knowledge time {} lies in the future", format_time(*known_at)),
                )),
                (Ok(()), Some(known_at), Some(snapshot)) => {
                    check_known_later(snapshot, &publish.rows, *known_at).await.map(|()| None)
                }
                (Ok(()), Some(_), None) | (Ok(()), None, _) => Ok(None),
            },
            Right::Ledger => Ok(None),
        };
        match allowed {
            Ok(once) => match self
                .unchanged(snapshot, accepted, publish)
                .or_else(|| self.imported_before(snapshot, accepted, publish))
            {
                Some(run) => Verdict::Duplicate(self.ack_again(&run)),
                None => Verdict::Accept(once),
            },
            Err(error) => Verdict::Refuse(error),
        }
    }

    /// The epoch that a publish with its own lease gets.
    fn once(&self, holder: &Holder, take_over: bool, now_ns: i64) -> Result<Grant> {
        let (name, now) = (self.table.name.as_str(), self.table.now());
        match self.lease.acquire(name, now, now_ns, holder, Duration::ZERO, take_over)? {
            Acquire::Commit(grant) => Ok(grant),
            // It holds a lease of its own, and gives it back with this one.
            Acquire::Already(lease) => Ok(Grant {
                epoch: lease.epoch() + 1,
                holder: holder.clone(),
                since_ns: now_ns,
                ttl: Duration::ZERO,
            }),
        }
    }

    /// The newest import of the same rows, if nothing of their symbols and times was written since: another attempt that brings
    /// them adds nothing. If something was, it goes back to rows of before, and is a correction; if the dataset was changed by
    /// hand since, its rows may lack what the file has. Decided from the indexes of
    /// the files alone: a file that also has newer rows counts as newer.
    fn imported_before(
        &self,
        snapshot: Option<&Snapshot>,
        accepted: &[Accepted],
        publish: &Publish,
    ) -> Option<CommittedRun> {
        let snapshot = snapshot?;
        if !accepted.is_empty() || publish.right != (Right::Import { known_at: None }) {
            return None;
        }
        let last = self.table.newest_import(&publish.digest)?;
        if snapshot.altered.is_some_and(|altered| last.version <= altered) {
            return None;
        }
        let newer: Vec<_> =
            snapshot.files.iter().filter(|f| f.index.rows > 0 && f.index.known_max > last.known_at).collect();
        let written_since = publish.rows.spans().into_iter().any(|(symbol, first, end)| {
            let runs = newer.iter().flat_map(|file| file.index.runs_of(&symbol));
            runs.into_iter().any(|run| run.first_ts <= end && first <= run.last_ts)
        });
        (!written_since).then_some(last)
    }

    /// The last publish of the same session, if it had the same rows and they are still what the session is. Another attempt
    /// that computes them again adds nothing. Compared with the last one only: going back to rows of before is a correction.
    fn unchanged(
        &self,
        snapshot: Option<&Snapshot>,
        accepted: &[Accepted],
        publish: &Publish,
    ) -> Option<CommittedRun> {
        let (snapshot, session) = (snapshot?, publish.session.as_ref()?);
        if accepted.iter().any(|a| a.publish.session.as_ref().is_some_and(|s| s.session == session.session)) {
            return None;
        }
        let unit = match &publish.right {
            Right::Session { unit, .. } | Right::Once { holder: Holder { unit, .. }, .. } => unit,
            Right::Import { .. } | Right::Ledger => return None,
        };
        let last = self.table.newest_run(session)?;
        let still = [snapshot.imported, snapshot.altered].iter().flatten().all(|other| *other < last.version);
        // who takes an output over commits that, whatever the rows
        (last.digest == publish.digest && still && snapshot.lease.owner() == Some(unit)).then_some(last)
    }

    fn ack_again(&self, run: &CommittedRun) -> pb::PublishAck {
        pb::PublishAck {
            dataset: self.table.name.to_string(),
            version: run.version,
            known_at_ns: run.known_at,
            rows: run.rows,
            duplicate: true,
            shard: self.table.shared.shard.clone(),
            retracted: run.retracted,
            ..pb::PublishAck::default()
        }
    }

    /// Writes and commits; `None`: somebody else has committed this version.
    async fn commit_rows(&self, snapshot: Option<&Snapshot>, accepted: &[Accepted]) -> Result<Option<u64>> {
        let Some(first) = accepted.first() else { return Ok(None) };
        let spec = &first.publish.spec;
        let live = snapshot.filter(|s| !s.life.dropped);
        let evolution = match live.filter(|before| before.spec != *spec) {
            Some(before) => {
                let evolved = Evolved::by_name(&before.spec, DatasetSpec::clone(spec));
                Some((before, self.evolution(before, evolved).await?))
            }
            None => None,
        };
        // Whatever defines the table gives it the column.
        let defined = evolution.is_some() || live.is_none_or(|s| s.retractable);
        let redefined = live.filter(|_| !defined && accepted.iter().any(|a| a.retracts() > 0));
        let mut files = match self.write(spec, accepted, defined || redefined.is_some()).await {
            Ok(files) => files,
            Err(error) => {
                if let Some((_, evolution)) = &evolution {
                    self.discard(&evolution.adds).await;
                }
                return Err(error);
            }
        };
        let now_ms = self.table.shared.clock.now_ms();
        let version = snapshot.map_or(0, |s| s.version + 1);
        let notes: Vec<&Value> = accepted.iter().map(|a| &a.publish.note).collect();
        let info = Map::from_iter([("trellis".to_owned(), json!(notes))]);
        let mut actions = Actions::new("WRITE", info, now_ms);
        if let Some((before, evolution)) = &evolution {
            evolution.describe(&mut actions, before, now_ms);
        }
        if live.is_none() {
            // An empty table claims the time it was made as known, so it was made before its first rows became known.
            let first_known = accepted.iter().map(|a| a.known_at).min().unwrap_or(0);
            create(&mut actions, snapshot, spec, now_ms.min(first_known.div_euclid(1_000_000) - 1));
        }
        if let Some(before) = redefined {
            actions.redefine(&before.definition, spec, &before.life);
        }
        for file in &files {
            actions.add(&file.file, &file.stats, true, now_ms);
        }
        for a in accepted.iter().filter(|a| !a.publish.run_id.is_empty()) {
            let rows = a.publish.rows.len() as u64;
            let (run, session) = (&a.publish.run_id, a.publish.session.as_ref());
            let app = table::run_txn(run, &a.publish.digest, a.known_at, rows, session, a.retracts() as u64);
            actions.txn(&app, version as i64, now_ms);
        }
        if accepted.iter().any(|a| matches!(a.publish.right, Right::Import { .. })) {
            actions.txn(IMPORTED, version as i64, now_ms);
        }
        // Whoever it came with is alone in its commit.
        if let Some(grant) = accepted.iter().find_map(|a| a.once.as_ref()) {
            grant_actions(&mut actions, grant, now_ms);
            actions.txn(RELEASED, grant.epoch as i64, now_ms);
        }
        let before = live.and_then(|s| s.watermark);
        let watermark = accepted.iter().filter_map(|a| a.publish.watermark).max();
        if let Some(watermark) = watermark.filter(|w| before.is_none_or(|before| *w > before)) {
            actions.txn(WATERMARK, watermark, now_ms);
        }
        files.extend(evolution.into_iter().flat_map(|(_, evolution)| evolution.adds));
        self.commit(version, &actions, &files).await
    }

    async fn write(
        &self,
        spec: &Arc<DatasetSpec>,
        accepted: &[Accepted],
        retractable: bool,
    ) -> Result<Vec<WrittenFile>> {
        let started = Instant::now();
        let parts = accepted.iter().map(|a| a.exact(spec)).collect::<Result<Vec<_>>>()?;
        let parts: Vec<RecordBatch> = parts.into_iter().flatten().collect();
        let rows = tokio::task::spawn_blocking({
            let spec = spec.clone();
            move || merge(&spec, parts)
        })
        .await
        .map_err(|e| crate::error::lost_task("sorting rows", e))??;
        let mut files = Vec::new();
        for start in (0..rows.num_rows()).step_by(FILE_ROWS_MAX) {
            let part = rows.slice(start, FILE_ROWS_MAX.min(rows.num_rows() - start));
            match write_file(&self.table.log, spec, part, retractable).await {
                Ok(file) => files.push(file),
                Err(error) => {
                    self.discard(&files).await;
                    return Err(error.dataset(&self.table.name));
                }
            }
        }
        self.metrics.write_ms.record(started.elapsed().as_secs_f64() * 1e3, &[]);
        Ok(files)
    }

    /// Makes the commit visible, then answers once the watchers have it. The next group does not wait for them.
    async fn acknowledge(&mut self, accepted: Vec<Accepted>, version: u64) {
        if let Err(error) = self.look().await {
            // It is committed and durable, but this shard cannot serve it: not visible, so not acknowledged.
            for reply in accepted.into_iter().flat_map(|a| a.replies) {
                let _ = reply.send(Err(error.clone()));
            }
            return;
        }
        self.metrics.commits.add(1, &[]);
        self.metrics.publishes.add(accepted.len() as u64, &[]);
        let mut acks = Vec::new();
        for a in accepted {
            let ack = pb::PublishAck {
                dataset: self.table.name.to_string(),
                version,
                known_at_ns: a.known_at,
                rows: a.publish.rows.len() as u64,
                duplicate: false,
                shard: self.table.shared.shard.clone(),
                retracted: a.retracts() as u64,
                epoch: a.once.as_ref().map_or(0, |grant| grant.epoch),
                ..pb::PublishAck::default()
            };
            let duplicates = std::iter::once(false).chain(std::iter::repeat(true));
            acks.extend(
                a.replies
                    .into_iter()
                    .zip(duplicates.map(|duplicate| pb::PublishAck { duplicate, ..ack.clone() })),
            );
        }
        self.acknowledge_when_applied(acks);
    }

    /// Acknowledges what this shard serves, once every watcher has applied it: also a publish that is acknowledged again,
    /// because those who were there the first time may not have yet.
    fn acknowledge_when_applied(&self, acks: Vec<(Reply, pb::PublishAck)>) {
        self.reply_when_applied(acks.into_iter().map(|(reply, ack)| (reply, Ok(ack))).collect());
    }

    fn other_content(&self, run_id: &str) -> Error {
        Error::new(Code::Conflict, format!("the run {run_id} has been published with other rows"))
            .dataset(&self.table.name)
            .hint(
                "a unit's run for the same inputs and code must give the same rows: is the strategy a pure function? If the \
                 other rows are right, deploy it again",
            )
    }
}

/// Makes a publish one of the dataset that there is, or that must be; `true`: the dataset must become a wider one.
///
/// # Errors
/// [`Code::Conflict`] if there is no such dataset, or nobody may make it for this publish.
async fn fit(have: &DatasetSpec, publish: &mut Publish) -> Result<bool> {
    let dataset = &have.dataset;
    let way = match publish.right {
        Right::Session { .. } | Right::Once { .. } => format!(
            "a unit may add fields to its output and widen them. To rename a field or leave one out: `trellis dataset release \
             {dataset}`, then `trellis dataset alter {dataset} --rename-field OLD=NEW` or `--drop-field F`, and publish again; or \
             publish to another dataset"
        ),
        Right::Import { .. } | Right::Ledger => format!(
            "give it the schema that it has, use another dataset, or change it: `trellis dataset alter {dataset}`"
        ),
    };
    let refuse = |why: String| {
        Error::new(Code::Conflict, format!("{dataset} exists with another schema: {why}"))
            .dataset(dataset)
            .hint(&*way)
    };
    let may_lack = match publish.right {
        Right::Session { .. } | Right::Once { .. } | Right::Import { .. } => false,
        // of an older shard, beside newer ones
        Right::Ledger => true,
    };
    if let Some(lacks) = have.fields.iter().find(|f| publish.spec.field(f.name.as_str()).is_none())
        && !may_lack
    {
        return Err(refuse(format!(
            "it has the field `{} {}`, which is not given",
            lacks.name, lacks.data_type
        )));
    }
    let wider = Task::wider(have, &publish.spec).map_err(|error| error.hint(&*way))?;
    if wider.is_some() && matches!(publish.right, Right::Session { .. }) {
        let why = schema::difference(have, &publish.spec).unwrap_or_else(|| "it is another one".to_owned());
        return Err(refuse(why));
    }
    let now = Arc::new(wider.as_ref().map_or_else(|| have.clone(), |evolved| evolved.spec.clone()));
    if now.fields != publish.spec.fields {
        let (rows, old, to) = (publish.rows.clone(), publish.spec.clone(), now.clone());
        let fitted = tokio::task::spawn_blocking(move || {
            rows.evolved(&old, &Evolved::by_name(&old, DatasetSpec::clone(&to)))
        });
        publish.rows = fitted.await.map_err(|e| crate::error::lost_task("converting rows", e))??;
    }
    publish.spec = now;
    Ok(wider.is_some())
}

fn refuse_all(waiting: Vec<Waiting>, error: &Error) {
    for (_, reply) in waiting {
        let _ = reply.send(Err(error.clone()));
    }
}

/// Joins publishes into one set of rows, sorted by (symbol, ts, known_at).
fn merge(spec: &DatasetSpec, mut parts: Vec<RecordBatch>) -> Result<RecordBatch> {
    if parts.len() == 1
        && let Some(only) = parts.pop()
    {
        return Ok(only);
    }
    let joined = arrow_select::concat::concat_batches(&schema::exact_schema(spec), &parts)
        .map_err(|e| internal("joining publishes", e))?;
    wire::sort_by_key(&joined, &[0, 1, 2])
}

/// Refuses an explicit knowledge time that is not later than all that the dataset has for the same symbols: it would
/// change what was known in the past.
async fn check_known_later(snapshot: &Snapshot, rows: &Rows, known_at: i64) -> Result<()> {
    for file in snapshot.files.iter().filter(|f| f.index.rows > 0 && f.index.known_max >= known_at) {
        for (symbol, _) in rows.symbols() {
            for run in file.index.runs_of(&symbol) {
                let range = run.start as usize..run.end as usize;
                let read = file.read(&[KNOWN_AT_NS.to_owned()], Some(vec![range])).await?;
                let latest = read
                    .iter()
                    .filter_map(|b| b.column(0).as_primitive_opt::<Int64Type>())
                    .flat_map(|known| known.values().iter().copied())
                    .max();
                if let Some(latest) = latest.filter(|latest| *latest >= known_at) {
                    return Err(Error::new(
                        Code::Conflict,
                        format!(
                            "the knowledge time {} is not later than {}, at which rows of {symbol} became known",
                            format_time(known_at),
                            format_time(latest)
                        ),
                    )
                    .symbol(&symbol)
                    .hint("give a later knowledge time, or none for the time of the import"));
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        io::ErrorKind,
        sync::atomic::{AtomicI64, Ordering},
    };

    use super::*;
    use crate::clock::WallClock;
    use crate::testing::{Grid, When};

    #[tokio::test(flavor = "multi_thread")]
    async fn a_full_disk_refuses_writes_keeps_reads_and_recovers_by_itself() {
        let grid = Grid::new().await;
        grid.import(&[("A", 0, 1.0)]).await.unwrap();
        for kind in [ErrorKind::StorageFull, ErrorKind::ReadOnlyFilesystem, ErrorKind::PermissionDenied] {
            for part in [".parquet", "_delta_log"] {
                grid.probe.fail(part, kind, When::Before);
                let refused = grid.import(&[("A", 1, 2.0)]).await.unwrap_err();
                assert_eq!(refused.code(), Code::StorageFull, "{refused}");
                assert!(refused.retryable());
                assert_eq!(grid.rows("A").await, [(0, 1.0)]);
                assert_eq!(grid.data_files(), 1, "what was not committed was removed");
                grid.probe.heal();
            }
        }
        grid.import(&[("A", 1, 2.0)]).await.unwrap();
        assert_eq!(grid.rows("A").await, [(0, 1.0), (1, 2.0)]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_commit_whose_outcome_was_not_seen_is_found_by_its_run_id() {
        let grid = Grid::new().await;
        grid.lease("mom").await;
        // The entry is in place, but the disk said that it could not sync the folder.
        grid.probe.fail("_delta_log", ErrorKind::Other, When::After);
        let unknown = grid.publish("mom", 1, "r1", &[("A", 0, 1.0)]).await.unwrap_err();
        assert_eq!(unknown.code(), Code::Unavailable);
        grid.probe.heal();
        let ack = grid.publish("mom", 1, "r1", &[("A", 0, 1.0)]).await.unwrap();
        assert!(ack.duplicate);
        assert_eq!(grid.rows("A").await, [(0, 1.0)]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_commit_that_finds_its_own_entry_has_taken_place() {
        let grid = Grid::with(|config| config.upkeep.compact_files = 2).await;
        grid.probe.fail("_delta_log", ErrorKind::Other, When::Again);
        grid.lease("mom").await;
        for i in 0..3 {
            let ack = grid.publish("mom", 1, &format!("r{i}"), &[("A", i, 1.0)]).await.unwrap();
            assert!(!ack.duplicate);
        }
        assert_eq!(grid.rows("A").await.len(), 3);
        let dataset = grid.dataset();
        let snapshot = dataset.table.snapshot().unwrap();
        assert!(crate::upkeep::compact(&grid.shard, &dataset, &snapshot).await.unwrap());
        grid.probe.heal();
        let grid = grid.restart().await;
        assert_eq!(grid.rows("A").await.len(), 3);
        assert_eq!(grid.dataset().table.snapshot().unwrap().files.len(), 1);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_shard_that_dies_at_any_point_leaves_a_publish_whole_or_absent() {
        let rows = [("A", 0, 1.0), ("B", 0, 1.0)];
        for (part, when, there) in [
            (".parquet", When::Before, false),
            (".parquet", When::After, false),
            ("_delta_log", When::Before, false),
            ("_delta_log", When::After, true),
        ] {
            let grid = Grid::new().await;
            grid.lease("mom").await;
            // Whatever the shard would do after this point it does not get to do: its next life is another process.
            grid.probe.fail(part, ErrorKind::Other, when);
            grid.publish("mom", 1, "r1", &rows).await.unwrap_err();
            let grid = grid.restart().await;
            let committed = grid.dataset().table.run("r1").is_some();
            assert_eq!(committed, there, "{part} {when:?}");
            assert_eq!(grid.dataset().table.snapshot().unwrap().rows(), if there { 2 } else { 0 });
            let ack = grid.publish("mom", 1, "r1", &rows).await.unwrap();
            assert_eq!(ack.duplicate, there);
            assert_eq!((grid.rows("A").await, grid.rows("B").await), (vec![(0, 1.0)], vec![(0, 1.0)]));
        }
    }

    #[tokio::test]
    async fn a_publish_that_is_acknowledged_again_waits_for_the_watchers_too() {
        let grid = Arc::new(Grid::new().await);
        grid.lease("mom").await;
        let mut watcher = grid.shard.subscribe(&pb::WatchStart::default());
        let publish = |run: &'static str, ts| {
            let grid = grid.clone();
            tokio::spawn(async move { grid.publish("mom", 1, run, &[("A", ts, 1.0)]).await.unwrap() })
        };
        let first = publish("r1", 0);
        watcher.queue.recv().await.unwrap();
        let again = publish("r1", 0);
        let later = publish("r2", 1);
        // Queued behind it: whatever is answered at once has been by now.
        let change = watcher.queue.recv().await.unwrap();
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(!first.is_finished() && !again.is_finished() && !later.is_finished());
        watcher.acknowledger()(change.seq);
        assert!(!first.await.unwrap().duplicate);
        assert!(again.await.unwrap().duplicate);
        assert!(!later.await.unwrap().duplicate);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_torn_newest_entry_is_named_and_only_its_dataset_is_refused() {
        let grid = Grid::new().await;
        grid.import(&[("A", 0, 1.0)]).await.unwrap();
        grid.import(&[("A", 1, 1.0)]).await.unwrap();
        let newest = grid.path().join("_delta_log/00000000000000000001.json");
        let whole = std::fs::read(&newest).unwrap();
        for cut in [0, 10, whole.len() / 2, whole.iter().position(|b| *b == b'\n').unwrap() + 1] {
            std::fs::write(&newest, &whole[..cut]).unwrap();
            let torn = grid.beside().await;
            let error = torn.catalog.find("d.a").await.unwrap_err();
            assert_eq!(error.code(), Code::DataCorrupt, "{error}");
            assert!(error.message().contains("00000000000000000001.json"), "{error}");
        }
        std::fs::write(&newest, &whole).unwrap();
        assert_eq!(grid.restart().await.rows("A").await.len(), 2);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn knowledge_times_grow_whatever_the_clock_does_and_with_empty_publishes_too() {
        let now = Arc::new(AtomicI64::new(1_000_000_000_000));
        let clock = now.clone();
        let mut grid = Grid::with_clock(WallClock::of(move || clock.load(Ordering::SeqCst))).await;
        grid.lease("mom").await;
        let mut last = i64::MIN;
        for (i, step) in
            [0, 5_000_000_000, -60_000_000_000, 0, 1, -1, 0, 90_000_000_000].into_iter().enumerate()
        {
            now.fetch_add(step, Ordering::SeqCst);
            let rows = [("A", i as i64, 0.0)];
            let rows = if i % 2 == 0 { &rows[..] } else { &[] };
            let ack = grid.publish("mom", 1, &format!("r{i}"), rows).await.unwrap();
            assert!(ack.known_at_ns > last, "{i}: {} after {last}", ack.known_at_ns);
            last = ack.known_at_ns;
            assert_eq!(grid.dataset().table.snapshot().unwrap().known_through, last);
            grid = grid.restart().await;
            assert_eq!(grid.dataset().table.snapshot().unwrap().known_through, last);
        }
    }
}
