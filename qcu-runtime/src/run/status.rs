//! The status that a unit reports while it works: a person sees from it what the unit waits for, and why there is no result.
//!
//! The process writes three kinds of JSON lines to its stdout:
//!
//! ```text
//! {"ready": true, "role": "qcu", "id": "mom_12_1"}     once: it holds the lease and works
//! {"status": {"state": "waiting", "note": "...", ..}}   whenever what it does has changed
//! {"run": "..", "session": "..", "outcome": "..", ..}   a run has ended, all attempts considered (`Report::to_json`)
//! ```
//!
//! A status has the fields `state`, `note` (one line for people) and `at` (its time). Some states add `session` (the one that runs or
//! comes next), `attempt` and `attempts` (which of how many), `next_at` (when the unit acts by itself), `progress` (`done`,
//! `total`, `note`, from the strategy), `taken_over` (who published over the unit since its last run) and `error` (one line). The states:
//!
//! | state | the unit |
//! | --- | --- |
//! | `starting` | takes the lease of its output |
//! | `waiting` | has nothing to do before a time, or until others have published |
//! | `running` | runs a session |
//! | `retrying` | waits for the next attempt after a failed one |
//! | `failing` | waits a long time, because a session failed in all its attempts |
//! | `unreachable` | cannot ask the grid |
//! | `fenced` | waits for its lease, because somebody has taken it over |
//! | `idle` | has no schedule, and runs only named sessions |
//!
//! A unit does not repeat a status, and reports progress alone at most every [`PROGRESS_EVERY`]. So it writes a few lines for each run,
//! however often its strategy reports progress.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, NaiveDate, SecondsFormat, Utc};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use crate::{child::Progress, unit::Due};

/// Shortest time between two lines that differ only in the progress: nobody reads faster.
pub(crate) const PROGRESS_EVERY: Duration = Duration::from_secs(1);
/// Most characters of an error's first line; the log and the ledger have all of it.
const LINE_CHARS_MAX: usize = 300;

/// What a unit does now.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Status {
    /// The unit takes the lease.
    Starting {
        /// The dataset of the lease.
        output: String,
    },
    /// No session is due yet.
    Waiting {
        /// What the unit waits for; never [`Due::Run`].
        due: Due,
        /// Who took the output over since the last run, and when. By now this unit owns the output again.
        taken_over: Option<String>,
    },
    /// A session runs.
    Running {
        /// Which.
        session: NaiveDate,
        /// The number of the attempt, from 1.
        attempt: u32,
        /// Most attempts.
        attempts: u32,
        /// The strategy's last progress.
        progress: Option<Progress>,
    },
    /// An attempt failed.
    Retrying {
        /// The session of the attempt.
        session: NaiveDate,
        /// The next attempt.
        attempt: u32,
        /// Most attempts.
        attempts: u32,
        /// When it begins, nanoseconds UTC.
        at_ns: i64,
        /// What went wrong.
        error: String,
    },
    /// A session failed for now.
    Failing {
        /// Which.
        session: NaiveDate,
        /// Attempts that were made.
        attempts: u32,
        /// When it is tried again, nanoseconds UTC.
        at_ns: i64,
        /// What went wrong.
        error: String,
    },
    /// Somebody has taken the lease over.
    Fenced {
        /// Who, and when.
        error: String,
    },
    /// The grid does not answer.
    Unreachable {
        /// Why.
        error: String,
    },
}

impl Status {
    /// The word for it.
    #[must_use]
    pub(crate) fn state(&self) -> &'static str {
        match self {
            Self::Starting { .. } => "starting",
            Self::Waiting { due: Due::Never, .. } => "idle",
            Self::Waiting { .. } => "waiting",
            Self::Running { .. } => "running",
            Self::Retrying { .. } => "retrying",
            Self::Failing { .. } => "failing",
            Self::Fenced { .. } => "fenced",
            Self::Unreachable { .. } => "unreachable",
        }
    }

    /// The value of `status`, but for `at`.
    #[must_use]
    pub(crate) fn fields(&self) -> Map<String, Value> {
        let mut fields = Map::new();
        let mut put = |name: &str, value: Value| fields.insert(name.to_owned(), value);
        put("state", json!(self.state()));
        put("note", json!(self.to_string()));
        match self {
            Self::Starting { .. } => {}
            Self::Waiting { due, taken_over } => {
                if let Some(by) = taken_over {
                    put("taken_over", json!(by));
                }
                if let Some(session) = next_session(due) {
                    put("session", json!(session.to_string()));
                }
                if let Due::At { at_ns, .. } = due {
                    put("next_at", json!(utc_seconds(*at_ns)));
                }
            }
            Self::Running { session, attempt, attempts, progress } => {
                put("session", json!(session.to_string()));
                put("attempt", json!(attempt));
                put("attempts", json!(attempts));
                if let Some(Progress { done, total, note, .. }) = progress {
                    put("progress", json!({"done": done, "total": total, "note": note}));
                }
            }
            Self::Retrying { session, attempt, attempts, at_ns, error } => {
                put("session", json!(session.to_string()));
                put("attempt", json!(attempt));
                put("attempts", json!(attempts));
                put("next_at", json!(utc_seconds(*at_ns)));
                put("error", json!(error));
            }
            Self::Failing { session, attempts, at_ns, error } => {
                put("session", json!(session.to_string()));
                put("attempt", json!(attempts));
                put("attempts", json!(attempts));
                put("next_at", json!(utc_seconds(*at_ns)));
                put("error", json!(error));
            }
            Self::Fenced { error } | Self::Unreachable { error } => {
                put("error", json!(error));
            }
        }
        fields
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Starting { output } => write!(f, "takes the lease of {output}"),
            Self::Waiting { due, taken_over: Some(by) } => {
                let waiting = Self::Waiting { due: due.clone(), taken_over: None };
                write!(f, "{waiting}; its output was taken over meanwhile: {by}")
            }
            Self::Waiting { due, taken_over: None } => match due {
                // while the session runs, the status is `Running`
                Due::Run(session) => write!(f, "{session} is due"),
                Due::At { session, at_ns } => {
                    write!(f, "waits for {session}, which is due at {}", utc_seconds(*at_ns))
                }
                Due::Input { session, input, dataset, reached } => {
                    write!(f, "waits for {dataset} (input {input}) to reach {session}; ")?;
                    match reached {
                        Some(reached) => write!(f, "it has come to {reached}"),
                        None => f.write_str("it has no rows"),
                    }
                }
                Due::Upstream { session, units } => {
                    write!(f, "waits for {} to publish ", units.join(", "))?;
                    match session {
                        Some(session) => write!(f, "{session}"),
                        None => f.write_str("a new session"),
                    }
                }
                Due::Never => f.write_str("has no schedule: runs what is deployed with --session"),
            },
            Self::Running { session, attempt, attempts, progress } => {
                write!(f, "runs {session}")?;
                if *attempt > 1 {
                    write!(f, ", attempt {attempt} of {attempts}")?;
                }
                let Some(progress) = progress else { return Ok(()) };
                match (progress.done, progress.total) {
                    (Some(done), Some(total)) => write!(f, ": {done} of {total}")?,
                    (Some(done), None) => write!(f, ": {done} done")?,
                    _ => {}
                }
                match &progress.note {
                    Some(note) => write!(f, ": {}", first_line(note)),
                    None => Ok(()),
                }
            }
            Self::Retrying { session, attempt, attempts, at_ns, error } => {
                write!(
                    f,
                    "attempt {attempt} of {attempts} at {session} begins at {}: {error}",
                    utc_seconds(*at_ns)
                )
            }
            Self::Failing { session, attempts, at_ns, error } => {
                let times = if *attempts == 1 { "once".to_owned() } else { format!("{attempts} times") };
                write!(f, "{session} failed {times}, and is tried again at {}: {error}", utc_seconds(*at_ns))
            }
            Self::Fenced { error } => write!(f, "waits until its lease is free again: {error}"),
            Self::Unreachable { error } => write!(f, "cannot ask the grid: {error}"),
        }
    }
}

fn next_session(due: &Due) -> Option<NaiveDate> {
    match due {
        Due::Run(session) | Due::At { session, .. } | Due::Input { session, .. } => Some(*session),
        Due::Upstream { session, .. } => *session,
        Due::Never => None,
    }
}

/// A time for people: UTC, to the second.
pub(crate) fn utc_seconds(ns: i64) -> String {
    DateTime::<Utc>::from_timestamp_nanos(ns).to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// An error in one line.
#[must_use]
pub(crate) fn first_line(text: &str) -> String {
    let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    if line.chars().count() <= LINE_CHARS_MAX {
        return line.to_owned();
    }
    line.chars().take(LINE_CHARS_MAX - 1).chain(['…']).collect()
}

/// Takes the statuses of a unit. The default one drops them. Clones share one receiver.
#[derive(Clone, Default)]
pub(crate) struct StatusSink(Option<Arc<Sink>>);

struct Sink {
    last: Mutex<Option<Status>>,
    say: Box<dyn Fn(&Status) + Send + Sync>,
}

impl StatusSink {
    /// Calls `say` whenever the status has changed.
    #[must_use]
    pub(crate) fn new(say: impl Fn(&Status) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(Sink { last: Mutex::default(), say: Box::new(say) })))
    }

    /// Reports the status, unless it is the same as before.
    pub(crate) fn report(&self, status: Status) {
        let Some(sink) = &self.0 else { return };
        let mut last = sink.last.lock();
        if last.as_ref() != Some(&status) {
            (sink.say)(&status);
            *last = Some(status);
        }
    }
}

impl std::fmt::Debug for StatusSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StatusSink")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::child::ProgressOp;

    fn day(text: &str) -> NaiveDate {
        text.parse().unwrap()
    }

    fn progress(done: Option<f64>, total: Option<f64>, note: Option<&str>) -> Option<Progress> {
        Some(Progress { op: ProgressOp::Progress, done, total, note: note.map(str::to_owned) })
    }

    fn running(attempt: u32, progress: Option<Progress>) -> Status {
        Status::Running { session: day("2016-08-10"), attempt, attempts: 4, progress }
    }

    /// 2016-08-11T20:20:00Z
    const EVENING: i64 = 1_470_946_800_000_000_000;

    #[test]
    fn every_state_says_in_one_line_what_the_unit_waits_for() {
        let due = |due| Status::Waiting { due, taken_over: None };
        let cases = [
            (Status::Starting { output: "signals.mom".into() }, "starting", "takes the lease of signals.mom"),
            (
                due(Due::At { session: day("2016-08-11"), at_ns: EVENING }),
                "waiting",
                "waits for 2016-08-11, which is due at 2016-08-11T20:20:00Z",
            ),
            (
                due(Due::Input {
                    session: day("2016-08-10"),
                    input: "px".into(),
                    dataset: "equities.daily".parse().unwrap(),
                    reached: Some(day("2016-08-09")),
                }),
                "waiting",
                "waits for equities.daily (input px) to reach 2016-08-10; it has come to 2016-08-09",
            ),
            (
                due(Due::Upstream { session: Some(day("2016-08-10")), units: vec!["mom_12_1".into()] }),
                "waiting",
                "waits for mom_12_1 to publish 2016-08-10",
            ),
            (
                Status::Waiting {
                    due: Due::At { session: day("2016-08-11"), at_ns: EVENING },
                    taken_over: Some("fenced by epoch 2: unit mom (ada) took over at 2016-08-10".into()),
                },
                "waiting",
                "waits for 2016-08-11, which is due at 2016-08-11T20:20:00Z; its output was taken over meanwhile: fenced by epoch 2: \
                 unit mom (ada) took over at 2016-08-10",
            ),
            (due(Due::Never), "idle", "has no schedule: runs what is deployed with --session"),
            (running(1, None), "running", "runs 2016-08-10"),
            (
                running(2, progress(Some(3.0), Some(10.0), Some("pairs\nand more"))),
                "running",
                "runs 2016-08-10, attempt 2 of 4: 3 of 10: pairs",
            ),
            (
                Status::Retrying {
                    session: day("2016-08-10"),
                    attempt: 2,
                    attempts: 4,
                    at_ns: EVENING,
                    error: "it raised".into(),
                },
                "retrying",
                "attempt 2 of 4 at 2016-08-10 begins at 2016-08-11T20:20:00Z: it raised",
            ),
            (
                Status::Failing {
                    session: day("2016-08-10"),
                    attempts: 4,
                    at_ns: EVENING,
                    error: "it raised".into(),
                },
                "failing",
                "2016-08-10 failed 4 times, and is tried again at 2016-08-11T20:20:00Z: it raised",
            ),
            (
                Status::Fenced { error: "fenced by epoch 2".into() },
                "fenced",
                "waits until its lease is free again: fenced by epoch 2",
            ),
            (Status::Unreachable { error: "nobody".into() }, "unreachable", "cannot ask the grid: nobody"),
        ];
        for (status, state, note) in cases {
            assert_eq!((status.state(), status.to_string().as_str()), (state, note));
            let fields = status.fields();
            assert_eq!((&fields["state"], &fields["note"]), (&json!(state), &json!(note)));
        }
    }

    #[test]
    fn a_status_has_the_documented_fields() {
        let fields = running(2, progress(Some(3.0), None, None)).fields();
        let expected = json!({
            "state": "running", "note": "runs 2016-08-10, attempt 2 of 4: 3 done", "session": "2016-08-10",
            "attempt": 2, "attempts": 4, "progress": {"done": 3.0, "total": null, "note": null},
        });
        assert_eq!(Value::Object(fields), expected);
    }

    #[test]
    fn the_same_is_not_said_twice() {
        let said = Arc::new(Mutex::new(vec![]));
        let heard = said.clone();
        let sink = StatusSink::new(move |status| heard.lock().push(status.to_string()));
        for status in [running(1, None), running(1, None), running(2, None), running(1, None)] {
            sink.clone().report(status);
        }
        assert_eq!(*said.lock(), ["runs 2016-08-10", "runs 2016-08-10, attempt 2 of 4", "runs 2016-08-10"]);
        StatusSink::default().report(running(1, None));
    }

    #[test]
    fn an_error_is_cut_to_one_line_and_never_inside_a_character() {
        assert_eq!(first_line("\n  a: b\nTraceback"), "a: b");
        assert_eq!(first_line(&"ü".repeat(1_000)).chars().count(), LINE_CHARS_MAX);
        assert_eq!(first_line(""), "");
    }
}
