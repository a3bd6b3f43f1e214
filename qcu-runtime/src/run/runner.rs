//! One run of a unit for one session: read, compute, check, publish, record.
//!
//! The steps of an attempt: the runner reads the inputs while the child still imports the strategy. It hands them over in sealed
//! memfds, checks the result, makes sure that the lease still holds, and publishes the rows under the run's id. The head records
//! the publish in the ledger; the runner records an attempt that published nothing.
//!
//! The id stands for unit, session, code and input rows ([`super::prefetch::run_id`]) and for the deployment. So a process that is
//! killed at any point and started again publishes once: the shard acknowledges the publish that it already has, or takes the new
//! one. A new deployment, even of the same code, has other ids: its rows are a correction, or the same rows again.
//!
//! The runner tries again only after a failure that may pass: a crash, a timeout, an exception, a grid that is away. It does not try
//! again after rows that do not fit or a refused publish. All attempts of a run share its id; the ledger counts them.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use arrow_array::RecordBatch;
use chrono::NaiveDate;
use tokio::sync::watch;
use tracing::{Instrument, Span, field, info_span};
use trellis_fabric::{clock::now_ns, retry::Pauses, telemetry};
use trellis_proto::{Code, DatasetSpec, Error, Result, Side, pb, runs, time::format_time};

use super::{
    identity::beside,
    lease::{HeldLease, LeaseRequest},
    ledger::Ledger,
    prefetch::{Prefetched, prefetch},
    report::Report,
    status::{PROGRESS_EVERY, Status, StatusSink, first_line},
};
use crate::{
    child::{
        CHILD_MODULE, Child, ChildCommand, Finished, InputHeader, Limits, Outcome, Progress, Request,
        Returned, Usage, receipt_json, write_table,
    },
    client::Client,
    metrics::{self, Step},
    unit::{Manifest, check_output},
};

/// Pause before the second attempt; it doubles from attempt to attempt.
pub(crate) const RETRY_MIN: Duration = Duration::from_secs(1);
/// Longest pause between attempts.
const RETRY_MAX: Duration = Duration::from_secs(60);
/// A child that still holds more than this part (one half) of its memory after a run gets no further run.
const KEPT_MEMORY_SHARE: u64 = 2;
/// Most characters of a traceback, or of the last lines, in an error. The end says the most, so the beginning is cut.
const ERROR_CHARS_MAX: usize = 4_000;
/// A deployed unit, and how to start its child.
#[derive(Debug, Clone)]
pub struct Unit {
    /// Its manifest.
    pub manifest: Arc<Manifest>,
    /// Folder of the strategy's source.
    pub bundle: PathBuf,
    /// Python interpreter.
    pub python: PathBuf,
    /// Arguments that make the interpreter the child; [`Unit::child_arguments`].
    pub arguments: Vec<String>,
    /// Pause before the second attempt; it doubles from attempt to attempt.
    pub retry_min: Duration,
    /// Name of the deployment, the same after a restart. If it is empty, only the code separates deployments.
    pub deployment: String,
}

impl Unit {
    /// `-m trellis._child`
    #[must_use]
    pub fn child_arguments() -> Vec<String> {
        vec!["-m".to_owned(), CHILD_MODULE.to_owned()]
    }
}

/// Why an attempt failed.
#[derive(Debug)]
struct Failure {
    outcome: pb::RunOutcome,
    error: Error,
    retryable: bool,
}

impl Failure {
    /// A failure before the publish.
    fn of(error: Error) -> Self {
        Self { outcome: pb::RunOutcome::Failed, retryable: error.retryable(), error }
    }

    /// A failure of the lease or the publish: the shard refused, unless it could only not be reached.
    fn publishing(error: Error) -> Self {
        let retryable = error.retryable();
        let outcome = if retryable { pb::RunOutcome::Failed } else { pb::RunOutcome::Refused };
        Self { outcome, error, retryable }
    }
}

/// What the ledger records of an attempt, filled in step by step.
#[derive(Debug, Clone, Default)]
struct Attempt {
    number: u32,
    started_ns: i64,
    run_id: String,
    inputs: Vec<pb::InputReceipt>,
    epoch: u64,
    usage: Usage,
    ack: Option<pb::PublishAck>,
}

/// Runs sessions of one unit, one after another. It keeps the child from run to run while the child answers.
#[derive(Debug)]
pub(crate) struct Runner {
    client: Client,
    unit: Unit,
    spec: DatasetSpec,
    child: Option<Child>,
    ledger: Ledger,
    status: StatusSink,
}

impl Runner {
    /// `status` gets each attempt, and the strategy's progress.
    ///
    /// # Errors
    /// `InvalidRequest` for a manifest that [`Manifest::check`] refuses too.
    pub(crate) fn new(client: Client, unit: Unit, status: StatusSink) -> Result<Self> {
        let spec = unit.manifest.output_spec()?;
        let ledger = Ledger::new(client.clone());
        Ok(Self { client, unit, spec, child: None, ledger, status })
    }

    /// Runs one session, with retries, and publishes under `lease`. It never fails: the report and the ledger say how the run ended.
    /// Dropping the future ends the child. A publish that was under way may or may not have happened; call
    /// [`Runner::cancelled`] to record the run.
    pub(crate) async fn run(&mut self, session: NaiveDate, partition: &str, lease: &HeldLease) -> Report {
        let manifest = self.unit.manifest.clone();
        let begun = Instant::now();
        let mut attempts = 0;
        let mut pauses = Pauses::new(self.unit.retry_min, RETRY_MAX);
        let (attempts_max, status) = (manifest.retries + 1, self.status.clone());
        loop {
            attempts += 1;
            let running =
                |progress| Status::Running { session, attempt: attempts, attempts: attempts_max, progress };
            status.report(running(None));
            let span = info_span!(
                "run",
                unit = %manifest.unit,
                session = %session,
                attempt = attempts,
                run_id = field::Empty,
                outcome = field::Empty
            );
            let mut attempt = Attempt { number: attempts, started_ns: now_ns(), ..Attempt::default() };
            let (started, (progress, newest)) = (Instant::now(), watch::channel(None));
            let result = {
                let work =
                    self.attempt(session, partition, lease, &mut attempt, progress).instrument(span.clone());
                tokio::select! {
                    result = work => result,
                    () = report_progress(&status, newest, running) => unreachable!("it never ends"),
                }
            };
            let (outcome, error) = match &result {
                Ok(()) => (pb::RunOutcome::Succeeded, None),
                Err(failure) => (failure.outcome, Some(failure.error.clone())),
            };
            span.record("outcome", runs::outcome_name(outcome));
            metrics::attempt_ended(outcome, started.elapsed());
            metrics::used(attempt.usage.user_us, attempt.usage.system_us, attempt.usage.rss_max_bytes);
            if attempt.ack.as_ref().is_some_and(|ack| ack.recorded) {
                self.ledger.catch_up().instrument(span.clone()).await;
            } else {
                let record = pb::RunRecord {
                    outcome: outcome.into(),
                    error: error.as_ref().map(ToString::to_string).unwrap_or_default(),
                    trace_id: span.in_scope(telemetry::trace_id),
                    ..self.record(session, partition, &attempt)
                };
                self.ledger.append(record).instrument(span.clone()).await;
            }

            let again = matches!(&result, Err(failure) if failure.retryable) && attempts <= manifest.retries;
            span.in_scope(|| match (&error, again) {
                (None, _) => tracing::info!(rows = attempt.ack.as_ref().map(|ack| ack.rows), "run succeeded"),
                (Some(error), true) => tracing::warn!(%error, "run failed; trying again"),
                (Some(error), false) => tracing::error!(%error, "run failed"),
            });
            if !again {
                return Report {
                    unit: manifest.unit.clone(),
                    session,
                    run_id: attempt.run_id,
                    outcome,
                    error,
                    ack: attempt.ack,
                    attempts,
                    elapsed: begun.elapsed(),
                    finished_ns: now_ns(),
                };
            }
            let wait = pauses.next_pause();
            status.report(Status::Retrying {
                session,
                attempt: attempts + 1,
                attempts: attempts_max,
                at_ns: now_ns() + wait.as_nanos() as i64,
                error: error.as_ref().map(|error| first_line(error.message())).unwrap_or_default(),
            });
            tokio::time::sleep(wait).await;
        }
    }

    /// Records the pending attempts, for at most `limit`, before the process ends.
    pub(crate) async fn flush_ledger(&mut self, limit: Duration) {
        self.ledger.flush(limit).await;
    }

    /// Records that the end of this process cut the run of `session` short.
    pub(crate) async fn cancelled(&mut self, session: NaiveDate, partition: &str) -> Report {
        let error = Error::new(Code::Cancelled, format!("the run of {session} was cut short by a shutdown"));
        let attempt = Attempt { number: 1, started_ns: now_ns(), ..Attempt::default() };
        let record = pb::RunRecord {
            outcome: pb::RunOutcome::Cancelled.into(),
            error: error.to_string(),
            ..self.record(session, partition, &attempt)
        };
        self.ledger.append(record).await;
        Report {
            unit: self.unit.manifest.unit.clone(),
            session,
            run_id: String::new(),
            outcome: pb::RunOutcome::Cancelled,
            error: Some(error),
            ack: None,
            attempts: 1,
            elapsed: Duration::ZERO,
            finished_ns: now_ns(),
        }
    }

    fn record(&self, session: NaiveDate, partition: &str, attempt: &Attempt) -> pb::RunRecord {
        pb::RunRecord {
            run_id: attempt.run_id.clone(),
            unit: self.unit.manifest.unit.clone(),
            session: session.to_string(),
            partition: partition.to_owned(),
            attempt: attempt.number,
            started_ns: attempt.started_ns,
            finished_ns: now_ns(),
            epoch: attempt.epoch,
            code_digest: self.unit.manifest.code_digest.clone(),
            inputs: attempt.inputs.clone(),
            output_dataset: self.spec.dataset.to_string(),
            output_version: attempt.ack.as_ref().map(|ack| ack.version),
            rows: attempt.ack.as_ref().map_or(0, |ack| ack.rows),
            user_us: attempt.usage.user_us,
            system_us: attempt.usage.system_us,
            rss_max_bytes: attempt.usage.rss_max_bytes,
            ..Default::default()
        }
    }

    async fn attempt(
        &mut self,
        session: NaiveDate,
        partition: &str,
        lease: &HeldLease,
        attempt: &mut Attempt,
        progress: watch::Sender<Option<Progress>>,
    ) -> Result<(), Failure> {
        let manifest = self.unit.manifest.clone();
        // without the lease the work is worthless: look before the work, and again after it
        attempt.epoch = lease.epoch().map_err(Failure::publishing)?;

        let kept = self.child.take();
        let reused = kept.is_some();
        let reading = async {
            let began = Instant::now();
            let read = prefetch(&self.client, &manifest, session, partition, None).await;
            metrics::step_ended(Step::Read, began.elapsed());
            read
        };
        let reading = reading.instrument(info_span!("read inputs"));
        let starting = ready_child(&self.unit, kept).instrument(info_span!("start child"));
        let (read, child) = tokio::join!(reading, starting);
        let mut read = read.map_err(Failure::of)?;
        if !self.unit.deployment.is_empty() {
            read.run_id = format!("{}-{}", read.run_id, self.unit.deployment);
        }
        Span::current().record("run_id", &read.run_id);
        attempt.run_id.clone_from(&read.run_id);
        attempt.inputs = read.receipts();

        let finished = match child {
            Ok(child) => {
                let began = Instant::now();
                let computing = self.compute(child, reused, session, partition, &read, progress);
                let computed = computing.instrument(info_span!("compute")).await;
                metrics::step_ended(Step::Compute, began.elapsed());
                let (finished, kept) = computed.map_err(Failure::of)?;
                // memory that a strategy keeps counts against its next run, so such a child is not used again
                let limit = manifest.memory.0 / KEPT_MEMORY_SHARE;
                self.child = kept.filter(|child| child.anonymous_bytes() <= limit);
                finished
            }
            Err(finished) => *finished,
        };
        attempt.usage = finished.usage;
        if finished.lines_dropped > 0 {
            tracing::warn!(
                lines = finished.lines_dropped,
                "the strategy printed too much; lines were dropped"
            );
        }
        let returned = match finished.outcome {
            Outcome::Returned(returned) => returned,
            outcome => return Err(strategy_failure(&manifest, session, &outcome, &finished.tail)),
        };
        let rows = checked(&manifest, &self.spec, session, returned).await.map_err(Failure::of)?;

        attempt.epoch = lease.epoch().map_err(Failure::publishing)?;
        let began = Instant::now();
        let ack = publish(&self.client, &manifest, session, partition, &read, attempt, lease.request(), rows);
        let ack = ack.instrument(info_span!("publish")).await;
        metrics::step_ended(Step::Publish, began.elapsed());
        match ack {
            Ok(ack) => attempt.ack = Some(ack),
            Err(error) => {
                attempt.started_ns = beside(attempt.started_ns);
                return Err(Failure::publishing(error));
            }
        }
        Ok(())
    }

    /// Hands the inputs to the child and waits for its answer.
    async fn compute(
        &self,
        child: Child,
        kept: bool,
        session: NaiveDate,
        partition: &str,
        read: &Prefetched,
        progress: watch::Sender<Option<Progress>>,
    ) -> Result<(Finished, Option<Child>)> {
        let manifest = &self.unit.manifest;
        let inputs = read.inputs.iter().map(|input| InputHeader {
            name: input.name.clone(),
            receipt: receipt_json(&input.answer.receipt()),
            window: input.window.clone(),
        });
        let request = Request::Run {
            session: session.to_string(),
            run_id: read.run_id.clone(),
            as_of: read.as_of_ns.map(format_time).unwrap_or_default(),
            partition: partition.to_owned(),
            inputs: inputs.collect(),
        };
        let answers: Vec<_> = read.inputs.iter().map(|input| input.answer.clone()).collect();
        let tables = tokio::task::spawn_blocking(move || {
            answers
                .iter()
                .map(|answer| write_table(&answer.schema, &answer.batches))
                .collect::<Result<Vec<_>, _>>()
        });
        let tables = tables
            .await
            .map_err(|e| Error::new(Code::Internal, format!("writing the inputs: {e}")))?
            .map_err(|e| Error::new(Code::Unavailable, format!("the inputs do not fit into memory: {e}")))?;
        let limits = Limits { time: manifest.timeout()?, memory_bytes: manifest.memory.0 };
        let mut report = |step: Progress| {
            tracing::info!(done = step.done, total = step.total, note = step.note, "progress");
            progress.send_replace(Some(step));
        };
        let (finished, child) = child.run(&request, &tables, limits, Span::current(), &mut report).await;
        if finished.taken || !kept {
            return Ok((finished, child));
        }
        // It ended by itself between two runs. That is no attempt: the strategy has not begun.
        match ready_child(&self.unit, None).await {
            Ok(child) => Ok(child.run(&request, &tables, limits, Span::current(), &mut report).await),
            Err(finished) => Ok((*finished, None)),
        }
    }
}

/// Reports the strategy's progress, at most one every [`PROGRESS_EVERY`]. Never ends.
async fn report_progress(
    status: &StatusSink,
    mut newest: watch::Receiver<Option<Progress>>,
    running: impl Fn(Option<Progress>) -> Status,
) {
    while newest.changed().await.is_ok() {
        let progress = newest.borrow_and_update().clone();
        status.report(running(progress));
        tokio::time::sleep(PROGRESS_EVERY).await;
    }
    std::future::pending().await
}

/// Returns the kept child, or a new one that has imported the strategy.
async fn ready_child(unit: &Unit, kept: Option<Child>) -> Result<Child, Box<Finished>> {
    if let Some(child) = kept {
        return Ok(child);
    }
    let manifest = &unit.manifest;
    let command = ChildCommand {
        program: unit.python.clone(),
        arguments: unit.arguments.clone(),
        directory: Some(unit.bundle.clone()),
        threads: manifest.cpu.ceil() as u32,
    };
    let load = Request::Load {
        bundle: unit.bundle.display().to_string(),
        module: manifest.module.clone(),
        unit: manifest.unit.clone(),
        function: manifest.function.clone(),
    };
    match Child::start(command).await {
        Ok(child) => child.load(&load, manifest.memory.0, Span::current()).await,
        Err(error) => Err(Box::new(Finished {
            outcome: Outcome::System {
                error: std::io::Error::new(
                    error.kind(),
                    format!("cannot start {} in {}: {error}", unit.python.display(), unit.bundle.display()),
                ),
            },
            usage: Usage::default(),
            tail: Vec::new(),
            lines_dropped: 0,
            taken: false,
        })),
    }
}

fn strategy_failure(manifest: &Manifest, session: NaiveDate, outcome: &Outcome, tail: &[String]) -> Failure {
    let what = match outcome {
        Outcome::TimedOut { .. } => pb::RunOutcome::TimedOut,
        Outcome::OutOfMemory { .. } => pb::RunOutcome::OutOfMemory,
        Outcome::Raised(raised) if raised.class == "MemoryError" => pb::RunOutcome::OutOfMemory,
        _ => pb::RunOutcome::Failed,
    };
    let evidence = match outcome {
        Outcome::Raised(raised) => raised.traceback.clone(),
        _ => tail.join("\n"),
    };
    let skipped = evidence.chars().count().saturating_sub(ERROR_CHARS_MAX);
    let evidence: String = evidence.chars().skip(skipped).collect();
    let code = match outcome {
        Outcome::System { .. } => Code::Unavailable,
        _ => Code::InvalidRequest,
    };
    let mut error =
        Error::new(code, format!("{} for {session} {outcome}", manifest.unit)).side(Side::Strategy);
    if !evidence.is_empty() {
        error = error.hint(format!("its last words:\n{evidence}"));
    }
    Failure { outcome: what, retryable: outcome.retryable(), error }
}

/// Checks the returned rows on a thread of its own: many rows take long.
async fn checked(
    manifest: &Arc<Manifest>,
    spec: &DatasetSpec,
    session: NaiveDate,
    returned: Returned,
) -> Result<RecordBatch> {
    let (manifest, spec) = (manifest.clone(), spec.clone());
    let check = move || check_output(&manifest.unit, &spec, session, &returned.schema, &returned.batches);
    tokio::task::spawn_blocking(check)
        .await
        .map_err(|e| Error::new(Code::Internal, format!("checking the result: {e}")))?
}

#[allow(clippy::too_many_arguments)]
async fn publish(
    client: &Client,
    manifest: &Manifest,
    session: NaiveDate,
    partition: &str,
    read: &Prefetched,
    attempt: &Attempt,
    granted: &LeaseRequest,
    rows: RecordBatch,
) -> Result<pb::PublishAck> {
    let record = pb::RunRecord {
        attempt: attempt.number,
        started_ns: attempt.started_ns,
        user_us: attempt.usage.user_us,
        system_us: attempt.usage.system_us,
        rss_max_bytes: attempt.usage.rss_max_bytes,
        trace_id: telemetry::trace_id(),
        ..Default::default()
    };
    let header = pb::PublishHeader {
        dataset: manifest.output.dataset.to_string(),
        kind: pb::PublishKind::Session.into(),
        session: session.to_string(),
        partition: partition.to_owned(),
        run_id: read.run_id.clone(),
        unit: granted.unit.clone(),
        instance: granted.instance.clone(),
        epoch: attempt.epoch,
        code_digest: manifest.code_digest.clone(),
        inputs: read.receipts(),
        record: Some(record),
        ..Default::default()
    };
    client.publish(header, vec![rows]).await.map_err(|error| {
        if error.code() == Code::Conflict && error.hint_text().is_empty() {
            return error.hint(
                "the same deployment has already published other rows for the same inputs: is the strategy a pure function?",
            );
        }
        error
    })
}
