//! What the program tells people, and programs.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::Serialize;

use crate::{
    plan::Plan,
    reconcile::{Engine, FAILED_RATIO_MAX, Outcome, Progress, Seen, Step},
};

/// Lines about services that are shown; `--json` has all.
const LINES_SHOWN: usize = 20;

/// What to do about a reason that ECS gives: the runbook's list.
pub(super) fn advice(reason: &str) -> Option<&'static str> {
    let known = [
        (
            "CannotPullContainer",
            "the digest is not in the repository, or the execution role is another account's",
        ),
        ("ResourceInitializationError", "an endpoint is missing, or the secret cannot be read"),
        ("OutOfMemory", "it needs more memory than its class gives"),
        ("exit code: 137", "it needs more memory than its class gives"),
        ("exit code: 2", "its configuration is wrong: the last line in its log names the variable"),
        ("health check", "its --probe fails: look at its log of the minute before"),
        ("Capacity is unavailable", "wait, or move the unit from FARGATE_SPOT to FARGATE"),
        ("vCPU", "the quota of vCPUs is used up: ask for more"),
    ];
    known.iter().find(|(part, _)| reason.contains(part)).map(|(_, advice)| *advice)
}

fn minutes(time: Duration) -> String {
    let seconds = time.as_secs();
    format!("{}:{:02} min", seconds / 60, seconds % 60)
}

/// One line of progress.
pub(super) fn eta(progress: &Progress) -> String {
    let Progress { wanted, settled, moving, failed, extra, changes_left, per_second, left } = progress;
    let mut line = format!("{settled} of {wanted} as wanted, {moving} starting, {failed} failed");
    if *extra > 0 {
        line += &format!(", {extra} to go");
    }
    if *changes_left > 0 {
        line +=
            &format!("; {changes_left} changes left at {per_second:.1} a second, {} to send", minutes(*left));
    }
    line
}

/// How it ended.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    outcome: &'static str,
    wanted: usize,
    as_wanted: usize,
    seconds: f64,
    calls: BTreeMap<&'static str, u64>,
    calls_throttled: u64,
    changes_wasted: u64,
    stops: Vec<String>,
    problems: Vec<(String, String)>,
    unavailable: Option<String>,
}

impl Summary {
    pub(super) fn new(engine: &Engine, outcome: &Outcome, took: Duration) -> Self {
        let (progress, tally) = (engine.progress(), engine.tally().clone());
        let (word, stops, problems, unavailable) = match outcome {
            Outcome::Done(problems) if problems.is_empty() => ("done", vec![], vec![], None),
            Outcome::Done(problems) => ("done, with problems", vec![], problems.clone(), None),
            Outcome::Stopped(stops, problems) => ("stopped", stops.clone(), problems.clone(), None),
            Outcome::Unavailable(why) => ("unavailable", vec![], vec![], Some(why.clone())),
        };
        let stops = stops.iter().map(|stop| {
            format!(
                "{}: {} of {} services of the wave {} failed, more than {} percent",
                stop.group,
                stop.failed,
                stop.decided,
                stop.stage,
                FAILED_RATIO_MAX * 100.0
            )
        });
        Self {
            outcome: word,
            wanted: progress.wanted,
            as_wanted: progress.settled,
            seconds: took.as_secs_f64(),
            calls: tally.calls,
            calls_throttled: tally.throttled,
            changes_wasted: tally.wasted,
            stops: stops.collect(),
            problems,
            unavailable,
        }
    }
}

fn lines(f: &mut fmt::Formatter<'_>, problems: &[(String, String)]) -> fmt::Result {
    for (name, why) in problems.iter().take(LINES_SHOWN) {
        write!(f, "{name}: {why}")?;
        match advice(why) {
            Some(advice) => writeln!(f, "; {advice}")?,
            None => writeln!(f)?,
        }
    }
    if problems.len() > LINES_SHOWN {
        writeln!(f, "... and {} more; --json has all", problems.len() - LINES_SHOWN)?;
    }
    Ok(())
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        lines(f, &self.problems)?;
        for stop in &self.stops {
            writeln!(f, "stopped: {stop}")?;
        }
        if !self.stops.is_empty() {
            writeln!(
                f,
                "repair or remove what failed, then apply again; --retry-failed starts broken deployments once more, \
                 --ignore-failed goes on without them"
            )?;
        }
        if let Some(why) = &self.unavailable {
            writeln!(f, "{why}; nothing is lost: run it again")?;
        }
        let calls: u64 = self.calls.values().sum();
        writeln!(
            f,
            "{}: {} of {} services as wanted after {}, {calls} calls, {} of them throttled",
            self.outcome,
            self.as_wanted,
            self.wanted,
            minutes(Duration::from_secs_f64(self.seconds)),
            self.calls_throttled
        )
    }
}

/// AWS beside the files.
#[derive(Debug, Serialize)]
pub(super) struct Status {
    clusters: BTreeMap<String, BTreeMap<&'static str, Counts>>,
    problems: Vec<(String, String)>,
    /// Why the plan cannot be applied.
    refused: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Counts {
    wanted: usize,
    as_wanted: usize,
    starting: usize,
    missing: usize,
    different: usize,
    failed: usize,
    extra: usize,
}

impl Status {
    pub(super) fn new(engine: &Engine, plan: &Plan) -> Self {
        let mut clusters: BTreeMap<String, BTreeMap<&'static str, Counts>> = BTreeMap::new();
        let mut problems = Vec::new();
        for row in engine.rows() {
            let counts = clusters.entry(row.cluster.clone()).or_default().entry(row.role.word()).or_default();
            counts.wanted += usize::from(row.wanted);
            let mut problem = |why: String| problems.push((row.name.clone(), why));
            match (&row.step, &row.seen) {
                (Step::Settled, Seen::Present(seen)) if row.wanted && seen.running < seen.desired => {
                    counts.starting += 1;
                    problem("has no running task".into());
                }
                (Step::Settled, _) => counts.as_wanted += usize::from(row.wanted),
                (Step::Failed(why) | Step::Refused(why), _) => {
                    counts.failed += 1;
                    problem(why.clone());
                }
                (_, Seen::Present(_)) if !row.wanted => {
                    counts.extra += 1;
                    problem("is in no file".into());
                }
                (Step::Update(_), _) => {
                    counts.different += 1;
                    problem("is not as the files say".into());
                }
                (Step::Wait(_), Seen::Present(_)) => counts.starting += 1,
                _ => {
                    counts.missing += 1;
                    problem("does not exist".into());
                }
            }
        }
        let refused = plan.refused.iter().map(|refusal| format!("{}: {}", refusal.service, refusal.why));
        Self { clusters, problems, refused: refused.collect() }
    }

    pub(super) fn is_as_wanted(&self) -> bool {
        self.problems.is_empty() && self.refused.is_empty()
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<16} {:<10} {:>7} {:>9} {:>8} {:>7} {:>9} {:>6} {:>5}",
            "cluster", "role", "wanted", "as wanted", "starting", "missing", "different", "failed", "extra"
        )?;
        for (cluster, roles) in &self.clusters {
            for (role, c) in roles {
                writeln!(
                    f,
                    "{cluster:<16} {role:<10} {:>7} {:>9} {:>8} {:>7} {:>9} {:>6} {:>5}",
                    c.wanted, c.as_wanted, c.starting, c.missing, c.different, c.failed, c.extra
                )?;
            }
        }
        lines(f, &self.problems)?;
        self.refused.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}
