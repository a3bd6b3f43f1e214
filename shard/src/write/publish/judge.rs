//! Whether a publish goes into the next commit: who may publish, what its rows must satisfy, and what it takes back.
//!
//! Every publish of a group is judged against one version of the table, and against those before it in the group. A publish of a
//! session is the truth whole: the rows of the session that it lacks are retracted in the same commit, with its knowledge time.

use std::{
    collections::{BTreeSet, HashMap},
    ops::Range,
    sync::Arc,
    time::Duration,
};

use arrow_array::{cast::AsArray, types::Int64Type};
use trellis_proto::{
    Code, DatasetSpec, Error, Result, Symbol, pb,
    spec::Evolved,
    time::{SECOND_NS, format_time},
};

use super::{accepted::Accepted, room::check_room};
use crate::{
    error::lost_task,
    files::{KNOWN_AT_NS, RETRACTED, check_spec, spec_difference},
    scan::{Key, Newest, Retractable, file_touches},
    table::{CommittedRun, Grant, Holder, Snapshot},
    write::{
        evolve::wider,
        lease::Acquire,
        request::{Effect, Publish, Reply, Right, Waiting},
        rows::{PROBLEMS_MAX, Rows},
        writer::Writer,
    },
};

/// A session may be published from this long before the midnight (UTC) of its date on: then the date begins in the zone furthest
/// east. An earlier publish has a wrong date, and the unit would take all sessions before that date as published.
const SESSION_AHEAD_NS: i64 = 14 * 3_600 * SECOND_NS;

/// The newest rows of each range that a publish of the group replaces, with the accepted publishes applied.
type Ranges = Vec<(Range<i64>, Newest)>;

/// Whether a publish goes into the next commit.
enum Verdict {
    Accept(Option<Grant>),
    /// The run is committed already: its acknowledgement.
    Duplicate(pb::PublishAck),
    Refuse(Error),
}

impl Writer {
    /// Answers the publishes that cannot be committed, and gives the others their knowledge times, from `now_ns` on. A publish that needs
    /// a wider dataset is committed alone, so that it is refused alone if the dataset cannot become wider. The publishes after it are
    /// returned as well, not judged.
    pub(super) async fn judge(
        &self,
        snapshot: Option<&Snapshot>,
        waiting: Vec<Waiting>,
        now_ns: i64,
    ) -> (Vec<Accepted>, Vec<Waiting>) {
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
                // Keys have no fields.
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
            let room = match (&verdict, &retracted) {
                (Verdict::Accept(_), Ok(retracted)) => {
                    let most = self.table.context.chunk_bytes_max;
                    check_room(snapshot, &accepted, &publish, retracted, most).await
                }
                _ => Ok(()),
            };
            let (verdict, retracted) = match room.and(retracted) {
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
                            // Each publish has its own knowledge time, so that two corrections of one row keep their order.
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
                        // This fails only for an invalid symbol, and the symbols were checked when the rows came.
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

    /// The rows that a publish retracts because it replaces their session, with the accepted publishes applied. Reads files only
    /// if they may have such rows.
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
        let stored = snapshot.is_some_and(|s| s.files.iter().any(|file| file_touches(&file.index, range)));
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
        let retractable = own.as_ref().map_or(Retractable::All, Retractable::KnownAt);
        let gone = ranges[at].1.lacking(&publish.rows.keys()?, retractable);
        if !gone.is_empty() {
            self.check_retractable(&publish.spec)?;
        }
        Ok(gone)
    }

    /// Refuses to retract a row that does not hold: the request means another row.
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
        let named = missing.iter().take(PROBLEMS_MAX);
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

    /// Refuses to retract rows of a dataset that was made before there were retractions and has a field `retracted`.
    fn check_retractable(&self, spec: &DatasetSpec) -> Result<()> {
        check_spec(spec).map_err(|_| {
            Error::new(
                Code::Conflict,
                format!("{} has a field {}, so no row of it can be retracted", self.table.name, RETRACTED),
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
        // Run ids are checked before the epoch: a publish that was acknowledged once is acknowledged again, even after a
        // take-over. The runs of a dropped dataset do not count for the dataset that has its name now.
        let may_be_known = snapshot.is_some() && !publish.run_id.is_empty();
        // An import from before a change by hand does not count: the change may have removed its rows.
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

    /// The epoch for a publish with its own lease.
    fn once(&self, holder: &Holder, take_over: bool, now_ns: i64) -> Result<Grant> {
        let (name, now) = (self.table.name.as_str(), self.table.now());
        match self.lease.acquire(name, now, now_ns, holder, Duration::ZERO, take_over)? {
            Acquire::Commit(grant) => Ok(grant),
            // The holder has a lease already, and gives it back with this one.
            Acquire::Already(lease) => Ok(Grant {
                epoch: lease.epoch() + 1,
                holder: holder.clone(),
                since_ns: now_ns,
                ttl: Duration::ZERO,
            }),
        }
    }

    /// The newest import of the same rows, if this import adds nothing to it. It does add something if rows of the same symbols
    /// and times were written since (then it corrects them), or if the dataset was changed by hand since (then rows may lack what
    /// the import has). Decided from the indexes of the files alone: a file that also has newer rows counts as newer.
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

    /// The last publish of the same session, if it had the same rows and nothing has changed them since. Another attempt with these
    /// rows adds nothing. An older publish does not count: to go back to its rows is a correction.
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
        // A take-over is committed whatever the rows are.
        (last.digest == publish.digest && still && snapshot.lease.owner() == Some(unit)).then_some(last)
    }

    fn ack_again(&self, run: &CommittedRun) -> pb::PublishAck {
        pb::PublishAck {
            dataset: self.table.name.to_string(),
            version: run.version,
            known_at_ns: run.known_at,
            rows: run.rows,
            duplicate: true,
            shard: self.table.context.shard.clone(),
            retracted: run.retracted,
            ..pb::PublishAck::default()
        }
    }

    /// Acknowledges publishes once every watcher has applied the newest version. That holds for duplicates as well: a watcher may
    /// not have applied the first commit yet.
    pub(super) fn acknowledge_when_applied(&self, acks: Vec<(Reply, pb::PublishAck)>) {
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

/// Brings a publish into the form of the dataset, or of the wider dataset that it needs. `true`: the dataset must become wider.
///
/// # Errors
/// [`Code::Conflict`] if no wider dataset holds both, or if this kind of publish may not make it wider.
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
        // An older shard writes fewer fields than newer ones.
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
    let wider = wider(have, &publish.spec).map_err(|error| error.hint(&*way))?;
    if wider.is_some() && matches!(publish.right, Right::Session { .. }) {
        let why = spec_difference(have, &publish.spec).unwrap_or_else(|| "the two differ".to_owned());
        return Err(refuse(why));
    }
    let now = Arc::new(wider.as_ref().map_or_else(|| have.clone(), |evolved| evolved.spec.clone()));
    if now.fields != publish.spec.fields {
        let (rows, old, to) = (publish.rows.clone(), publish.spec.clone(), now.clone());
        let fitted = tokio::task::spawn_blocking(move || {
            rows.evolved(&old, &Evolved::by_name(&old, DatasetSpec::clone(&to)))
        });
        publish.rows = fitted.await.map_err(|e| lost_task("converting rows", e))??;
    }
    publish.spec = now;
    Ok(wider.is_some())
}

/// Refuses an explicit knowledge time unless it is later than every row of the same symbols: it would change what was known in
/// the past.
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
