//! `apply`, `roll`, `drain`, `status`: an engine at work.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use tokio::time::Instant;
use trellis_proto::Code;

use super::{
    args::Apply,
    folder::{Cli, LEDGER},
    output::{EXIT_USAGE, Failure, say},
    show::{Status, Summary, eta},
};
use crate::{
    aws::{Aws, Door, deployer_role},
    definition,
    desired::{Desired, Grid, Kind},
    ledger::{Entry, Ledger, Observed},
    plan::{ChangeKind, Plan, plan},
    reconcile::{Engine, Mode, Outcome, Seen, Selection, Target},
    run,
    scheduled::Timetable,
    unit_files,
};

/// A `fleet` that stays reads its files anew after this. Whoever runs the pipeline waits so long for a change at most.
const KEEP: Duration = Duration::from_secs(3_600);
/// A clock may be ahead by this much.
const AHEAD_NS: i64 = 300 * 1_000_000_000;
/// Names in a sentence about services that would go.
const NAMES_SHOWN: usize = 5;

impl Cli {
    pub(super) async fn apply(
        &self,
        desired: &Desired,
        how: Apply,
        roll: Option<(Selection, i64)>,
    ) -> Result<u8, Failure> {
        let _alone = self.alone()?;
        let aws = self.aws(desired).await?;
        let ledger = match self.ledger()? {
            Some(ledger) => ledger,
            None => self.ledger_of_tags(desired, &aws).await?,
        };
        let plan = plan(desired, &ledger);
        if !plan.is_applicable() {
            return Err(inapplicable(&plan));
        }
        refuse_unnamed(&desired.grid, &ledger)?;
        refuse_dates(&ledger, &plan.ledger, now_ns())?;
        if !how.yes {
            refuse_loss(&plan)?;
        }
        let target = scheduled(desired, &plan)?;
        // before the ledger, which says which are there
        self.put_unit_files(desired, &ledger).await?;
        // written first: a `fleet` that is started again then decides the same
        let path = self.dir.join(LEDGER);
        plan.ledger.write(&path).map_err(|error| {
            Failure::input(format!("the ledger {} cannot be written: {error}", path.display()))
        })?;
        let mode = Mode {
            change: true,
            remove: how.yes,
            keep: how.keep,
            again: how.retry_failed,
            ignore_failed: how.ignore_failed,
            shards_at_once: how.shards_at_once.max(1),
            roll,
        };
        let start = Instant::now();
        let mut engine = Engine::new(target, mode, BTreeMap::new(), Duration::ZERO);
        let work = run::run(&mut engine, &aws, start, |engine| say(&eta(&engine.progress())));
        // one that stays reads its files anew after a while
        let ended = if how.keep { tokio::time::timeout(KEEP, work).await.ok() } else { Some(work.await) };
        let outcome = ended.unwrap_or_else(|| Outcome::Done(engine.unsettled()));
        let summary = Summary::new(&engine, &outcome, start.elapsed());
        self.tell(&summary);
        Ok(exit_code(&outcome))
    }

    /// Puts the files by which the tasks of new deployments find their bundles.
    async fn put_unit_files(&self, desired: &Desired, ledger: &Ledger) -> Result<(), Failure> {
        let files = unit_files::missing(desired, ledger);
        let owner = desired.grid.accounts.iter().find(|account| account.kind == Kind::Core);
        let Some(owner) = owner.filter(|_| !files.is_empty()) else { return Ok(()) };
        let role = deployer_role(&desired.grid.grid, &owner.place);
        let unavailable = |why: String| Failure::new(Code::Unavailable.exit_code(), why);
        let keys = Door::of_process().keys(&owner.place, &role).await.map_err(unavailable)?;
        say(&format!("puts the files of {} units to {}", files.len(), definition::unit_files(desired)));
        let put = unit_files::put(files, &desired.grid.region, keys, &role).await;
        put.map_err(|(exit, why)| Failure::new(exit, why))
    }

    /// Looks at everything. Changes nothing.
    async fn survey(&self, target: Target, aws: &Aws) -> Result<Engine, Failure> {
        let mode = Mode { change: false, ..Mode::default() };
        let start = Instant::now();
        let mut engine = Engine::new(target, mode, BTreeMap::new(), Duration::ZERO);
        match run::run(&mut engine, aws, start, |_| {}).await {
            Outcome::Unavailable(why) => Err(Failure::new(Code::Unavailable.exit_code(), why)),
            _ => Ok(engine),
        }
    }

    /// Without a file the services themselves tell where they are.
    async fn ledger_of_tags(&self, desired: &Desired, aws: &Aws) -> Result<Ledger, Failure> {
        let nothing =
            Target { services: Vec::new(), ..Target::new(desired, &plan(desired, &Ledger::default())) };
        let engine = self.survey(nothing, aws).await?;
        if let Some(why) = engine.unlisted() {
            return Err(Failure::new(
                Code::Unavailable.exit_code(),
                format!("there is no ledger, and {why}"),
            ));
        }
        let observed = engine.rows().filter_map(|row| {
            let Seen::Present(present) = row.seen else { return None };
            Some(Observed {
                service: row.name,
                place: row.place,
                cluster: row.cluster,
                family: crate::call::family(&present.definition).to_owned(),
                provider: present.provider,
                tags: present.tags,
            })
        });
        let (ledger, problems) = Ledger::from_tags(&desired.grid.grid, observed);
        problems.iter().for_each(|problem| say(problem));
        say(&format!("no ledger; made one from the tags of {} services", ledger.len()));
        Ok(ledger)
    }

    pub(super) async fn status(&self, desired: &Desired) -> Result<u8, Failure> {
        let aws = self.aws(desired).await?;
        let ledger = match self.ledger()? {
            Some(ledger) => ledger,
            None => self.ledger_of_tags(desired, &aws).await?,
        };
        let plan = plan(desired, &ledger);
        // what a cluster that is not there yet should run cannot be compared
        if !plan.openings.is_empty() {
            return Err(inapplicable(&plan));
        }
        let engine = self.survey(scheduled(desired, &plan)?, &aws).await?;
        let status = Status::new(&engine, &plan);
        self.tell(&status);
        Ok(if status.is_as_wanted() { 0 } else { Code::Conflict.exit_code() })
    }
}

fn now_ns() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)
}

/// The aim of a plan now: units whose task exists only for a session have it if it is time, and lose or get it later.
fn scheduled(desired: &Desired, plan: &Plan) -> Result<Target, Failure> {
    let mut target = Target::new(desired, plan);
    let now_ns = now_ns();
    let timetable = Timetable::around(desired, &plan.services, now_ns).map_err(Failure::input)?;
    timetable.uncovered.iter().for_each(|sentence| say(&format!("{sentence}; nothing starts then")));
    for service in &mut target.services {
        service.desired = timetable.desired(&service.name, now_ns).unwrap_or(service.desired);
        // a unit that was deployed on a machine whose clock is ahead would else start again until that moment comes
        service.deployed_after_ms = service.deployed_after_ms.map(|ms| ms.min(now_ns / 1_000_000));
    }
    let until_ns = now_ns.saturating_add(i64::try_from(KEEP.as_nanos()).unwrap_or(i64::MAX));
    target.schedule = timetable
        .events(now_ns, until_ns)
        .into_iter()
        .map(|event| {
            let after = Duration::from_nanos(u64::try_from(event.at_ns - now_ns).unwrap_or_default());
            (after, event.service, event.desired)
        })
        .collect();
    Ok(target)
}

/// A cluster that `grid.json` no longer names is not looked at. What ran there would be started elsewhere, and go on where it is.
fn refuse_unnamed(grid: &Grid, ledger: &Ledger) -> Result<(), Failure> {
    let named = |entry: &Entry| {
        grid.retired.contains(&entry.cluster)
            || entry.place.region == grid.region
                && grid
                    .flowers
                    .iter()
                    .any(|flower| flower.flower == entry.cluster && flower.account == entry.place.account)
    };
    match ledger.entries().find(|entry| !named(entry)) {
        None => Ok(()),
        Some(Entry { service, cluster, place, .. }) => Err(Failure::input(format!(
            "{service} still runs in the cluster {cluster} of {} in {}, which grid.json no longer names: put the cluster back with \
             \"drain\": true, or list it in `retired` if it is gone",
            place.account, place.region
        ))),
    }
}

/// A task that began after its unit was deployed stays. So a file with an older date than the last one would change nothing, and one from
/// the future would start the unit again and again until that moment.
fn refuse_dates(before: &Ledger, after: &Ledger, now_ns: i64) -> Result<(), Failure> {
    for entry in after.entries() {
        let Some(new) = entry.deployed_ns else { continue };
        let old = before.get(&entry.service).and_then(|old| old.deployed_ns);
        let why = if old.is_some_and(|old| new < old) {
            "is older than that of the deployment before it, so its task would stay as it is"
        } else if new > now_ns.saturating_add(AHEAD_NS) {
            "is in the future, so the unit would be started again and again until then"
        } else {
            continue;
        };
        return Err(Failure::input(format!(
            "{}: `deployed_ns` {why}: set it to the present time, or deploy the unit again",
            entry.service
        )));
    }
    Ok(())
}

fn refuse_loss(plan: &Plan) -> Result<(), Failure> {
    let gone = |kind| plan.changes.iter().filter(move |change| change.kind == kind);
    let mut lines = Vec::new();
    for (kind, word) in
        [(ChangeKind::Remove, "deleted"), (ChangeKind::Move, "stopped here and started elsewhere")]
    {
        let names: Vec<&str> = gone(kind).map(|change| change.service.as_str()).collect();
        if !names.is_empty() {
            let more = if names.len() > NAMES_SHOWN { ", ..." } else { "" };
            let shown = names[..names.len().min(NAMES_SHOWN)].join(", ");
            lines.push(format!("{} services would be {word}: {shown}{more}", names.len()));
        }
    }
    if lines.is_empty() {
        return Ok(());
    }
    lines.push("nothing was done; `fleet plan` shows them all; run again with --yes".to_owned());
    Err(Failure { exit: EXIT_USAGE, lines })
}

/// A plan that must not be applied, and why.
pub(super) fn inapplicable(plan: &Plan) -> Failure {
    let mut lines: Vec<String> =
        plan.refused.iter().map(|refusal| format!("{}: {}", refusal.service, refusal.why)).collect();
    if !plan.openings.is_empty() {
        lines.push(format!(
            "{} clusters must be created first with cfn/cluster.yaml, and be named in grid.json; the plan lists them",
            plan.openings.len()
        ));
    }
    lines.push("nothing of this plan can be applied".to_owned());
    Failure { exit: Code::InvalidRequest.exit_code(), lines }
}

fn exit_code(outcome: &Outcome) -> u8 {
    match outcome {
        Outcome::Done(problems) if problems.is_empty() => 0,
        // a service that does not start has a wrong file, image or role
        Outcome::Done(_) | Outcome::Stopped(..) => Code::InvalidRequest.exit_code(),
        Outcome::Unavailable(_) => Code::Unavailable.exit_code(),
    }
}
