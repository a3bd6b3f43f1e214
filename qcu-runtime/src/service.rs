//! The process `qcu`: holds the lease, runs what is due, and ends in order.
//!
//! One loop, one run at a time. The loop asks the grid how far the datasets have come, and [`crate::unit`] decides from the
//! answer which session is due. Between two looks the loop sleeps: until the next close, or for a pause that doubles up to
//! [`POLL_MAX`]. After a session has failed in all its attempts, the loop waits for [`FAILED_PAUSE`] before it runs the session again:
//! somebody may correct the inputs meanwhile.
//!
//! Losing the lease: a person may publish over a running unit, or another process of the unit may take the lease over. The unit
//! reports this, publishes nothing, and waits until the lease is free again. It never takes the lease over itself: two processes
//! would take it from each other for ever. When it has the lease again, it looks again at what is due, so a session that was
//! published meanwhile stays as it is. The process ends only if the output belongs to another unit now, or to nobody.
//!
//! The end: after the signal, the loop starts no run. The running one gets the drain's time less [`LAST_WORDS`]. In those last
//! moments the process cancels and records the run, and gives the lease back.

use std::{
    io::Write as _,
    time::{Duration, Instant},
};

use chrono::NaiveDate;
use futures::{
    FutureExt as _,
    future::{BoxFuture, try_join_all},
};
use tokio::time::{sleep, timeout};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use trellis_fabric::{
    clock::now_ns,
    retry::{Pauses, jittered},
};
use trellis_proto::{Code, DatasetName, Error, Result, TimeRange, time::DAY_NS};

use crate::{
    bundle::tell_differences,
    client::{Client, ClientOptions},
    config::Config,
    run::{
        HeldLease, LeaseRequest, Report, Runner, Status, StatusSink, first_line, new_instance, utc_seconds,
    },
    unit::{
        Coverage, Due, Manifest, Published, Schedule, ScheduleFacts, catch_up_from, date_of, due,
        midnight_ns, named_is_ready,
    },
};

/// First pause between two looks at the grid; doubles while nothing changes.
const POLL_MIN: Duration = Duration::from_millis(200);
/// Longest pause between two looks: a unit notices an event at most this late. With it, ten thousand waiting units ask each of a
/// hundred heads twenty times a second.
const POLL_MAX: Duration = Duration::from_secs(5);
/// A session that failed in all its attempts is tried again after this time.
const FAILED_PAUSE: Duration = Duration::from_secs(600);
/// Part of the drain for recording a cancelled run and giving the lease back; never more than half of the drain.
const LAST_WORDS: Duration = Duration::from_millis(2_500);
/// Longest time of one question to the grid, all attempts together. If the grid is away for longer, the next look asks again.
const CALL_DEADLINE: Duration = Duration::from_secs(120);

/// Runs the unit until `shutdown` resolves. With [`Config::exit_when_done`] it ends after its named sessions. Returns the exit code,
/// which says how the runs ended.
///
/// # Errors
/// The unit cannot work at all: there is no grid, or no lease.
pub fn run(
    config: Config,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> BoxFuture<'static, Result<u8>> {
    run_until(config, shutdown.boxed())
}

/// The work of [`run`]. Its types are fixed and its future is boxed here: so this crate compiles it, and not each program that polls it.
fn run_until(config: Config, mut shutdown: BoxFuture<'static, ()>) -> BoxFuture<'static, Result<u8>> {
    async move {
        // it asks Python, which takes a moment; it ends with the work
        let _told = config.fetched.is_some().then(|| {
            let (python, folder) = (config.unit.python.clone(), config.unit.bundle.clone());
            AbortOnDropHandle::new(tokio::spawn(tell_differences(python, folder)))
        });
        let stop = CancellationToken::new();
        let mut service = tokio::select! {
            service = Service::start(&config, stop.clone()) => service?,
            () = &mut shutdown => return Ok(0),
        };
        let ended = {
            let mut work = std::pin::pin!(service.work());
            tokio::select! {
                ended = &mut work => Some(ended),
                () = &mut shutdown => {
                    stop.cancel();
                    let last_words = LAST_WORDS.min(config.drain / 2);
                    timeout(config.drain - last_words, work).await.ok()
                }
            }
        };
        if ended.is_none() {
            service.cut_short().await;
        }
        let patience = if stop.is_cancelled() { LAST_WORDS / 4 } else { CALL_DEADLINE };
        service.runner.flush_ledger(patience).await;
        service.lease.release().await;
        ended.unwrap_or(Ok(0))
    }
    .boxed()
}

struct Service<'a> {
    config: &'a Config,
    client: Client,
    runner: Runner,
    lease: HeldLease,
    stop: CancellationToken,
    status: StatusSink,
    running: Option<NaiveDate>,
    /// Why the shard refused the last publish, if the lease was lost.
    fenced: Option<Error>,
    /// Who took the output over since the last run, and when.
    taken_over: Option<String>,
}

/// A session that failed after all its attempts.
struct Failed {
    session: NaiveDate,
    attempts: u32,
    error: String,
    again: Instant,
    again_ns: i64,
}

impl Failed {
    fn of(report: &Report) -> Option<Self> {
        let error = first_line(report.error.as_ref()?.message());
        let (again, again_ns) = (Instant::now() + FAILED_PAUSE, now_ns() + FAILED_PAUSE.as_nanos() as i64);
        Some(Self { session: report.session, attempts: report.attempts, error, again, again_ns })
    }

    fn status(&self) -> Status {
        Status::Failing {
            session: self.session,
            attempts: self.attempts,
            at_ns: self.again_ns,
            error: self.error.clone(),
        }
    }
}

impl<'a> Service<'a> {
    async fn start(config: &'a Config, stop: CancellationToken) -> Result<Self> {
        let options = ClientOptions {
            unit: Some(config.unit.manifest.unit.clone()),
            connect_timeout: config.connect,
            deadline: CALL_DEADLINE,
            ..ClientOptions::default()
        };
        let client = Client::connect(&config.url, options).await?;
        let status = StatusSink::new(|status| {
            let mut fields = status.fields();
            fields.insert("at".to_owned(), utc_seconds(now_ns()).into());
            say(&serde_json::json!({ "status": fields }));
        });
        let runner = Runner::new(client.clone(), config.unit.clone(), status.clone())?;
        status.report(Status::Starting { output: config.unit.manifest.output.dataset.to_string() });
        let lease = acquire(config, &client, &new_instance()).await?;
        // a unit's name needs no escaping; the fields have the order of every ready line of the grid
        say(&format_args!(
            "{{\"ready\": true, \"role\": \"qcu\", \"id\": \"{}\"}}",
            config.unit.manifest.unit
        ));
        Ok(Self {
            config,
            client,
            runner,
            lease,
            stop,
            status,
            running: None,
            fenced: None,
            taken_over: None,
        })
    }

    async fn work(&mut self) -> Result<u8> {
        if self.config.sessions.is_empty() {
            self.follow_schedule().await
        } else {
            self.named_sessions().await
        }
    }

    async fn named_sessions(&mut self) -> Result<u8> {
        let mut exit = 0;
        for &session in &self.config.sessions {
            if !self.until_ready(session).await? || !self.hold().await? {
                return Ok(exit);
            }
            let report = self.run_session(session).await;
            exit = exit.max(report.exit_code());
        }
        if !self.config.exit_when_done {
            self.stop.cancelled().await;
        }
        Ok(exit)
    }

    /// Waits until the units upstream have published `session` and the inputs reach it. Returns false if the process is to end.
    async fn until_ready(&mut self, session: NaiveDate) -> Result<bool> {
        let mut pauses = Pauses::new(POLL_MIN, POLL_MAX);
        loop {
            if self.stop.is_cancelled() {
                return Ok(false);
            }
            let manifest = &self.config.unit.manifest;
            match self.facts_of(session).await {
                Ok(facts) => match named_is_ready(manifest, &facts, session)? {
                    Due::Run(_) => return Ok(true),
                    due => self.status.report(self.waiting(due)),
                },
                Err(error) if error.retryable() => {
                    tracing::warn!(%error, "the grid cannot be asked");
                    self.status.report(Status::Unreachable { error: first_line(error.message()) });
                }
                Err(error) => return Err(error),
            }
            self.pause(pauses.next_pause()).await;
        }
    }

    async fn follow_schedule(&mut self) -> Result<u8> {
        let mut pauses = Pauses::new(POLL_MIN, POLL_MAX);
        let mut failed: Option<Failed> = None;
        let mut before = None;
        // the lease first: another holder may have published the session that would be due
        while self.hold().await? {
            let due = match self.due().await {
                Ok(due) => due,
                Err(error) if error.retryable() => {
                    tracing::warn!(%error, "the grid cannot be asked what is due");
                    self.status.report(Status::Unreachable { error: first_line(error.message()) });
                    self.pause(jittered(POLL_MAX)).await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            if before.as_ref() != Some(&due) {
                tracing::info!(?due, "schedule");
                pauses.reset();
                before = Some(due.clone());
            }
            let failed_now = failed.as_ref().filter(|failed| {
                matches!(due, Due::Run(session) if session == failed.session) && Instant::now() < failed.again
            });
            if let Some(failed) = failed_now {
                self.status.report(failed.status());
                self.pause(jittered(POLL_MAX)).await;
                continue;
            }
            if let Due::Run(session) = due {
                let report = self.run_session(session).await;
                failed = Failed::of(&report).filter(|_| self.fenced.is_none());
                before = None;
                continue;
            }
            self.status.report(self.waiting(due.clone()));
            match due {
                Due::At { at_ns, .. } => {
                    let wait =
                        Duration::from_nanos(u64::try_from(at_ns.saturating_sub(now_ns())).unwrap_or(0));
                    // in short sleeps, so that the unit notices when somebody sets the clock
                    self.pause(wait.min(POLL_MAX)).await;
                }
                Due::Never => self.stop.cancelled().await,
                _ => {
                    self.pause(pauses.next_pause()).await;
                }
            }
        }
        Ok(0)
    }

    fn waiting(&self, due: Due) -> Status {
        Status::Waiting { due, taken_over: self.taken_over.clone() }
    }

    /// What a session that a person named waits for.
    async fn facts_of(&self, session: NaiveDate) -> Result<ScheduleFacts> {
        let upstream = self.published(Some(session)).await?;
        Ok(ScheduleFacts { inputs: self.inputs().await?, upstream, ..ScheduleFacts::default() })
    }

    /// How far each input has come.
    async fn inputs(&self) -> Result<Vec<Coverage>> {
        let inputs = self.config.unit.manifest.inputs.iter().map(|input| input.dataset.clone());
        self.progress(&inputs.collect::<Vec<_>>()).await
    }

    async fn due(&self) -> Result<Due> {
        let manifest = &self.config.unit.manifest;
        let output = [manifest.output.dataset.clone()];
        // the output first: the unit then sees a publish that lands in between twice, and never misses it
        let output = self.progress(&output).await?;
        let facts = ScheduleFacts {
            output: output.first().copied().unwrap_or_default(),
            inputs: self.inputs().await?,
            upstream: self.published(None).await?,
        };
        due(manifest, &facts, now_ns())
    }

    /// How far each dataset has come. A dataset that does not exist has not begun.
    async fn progress(&self, datasets: &[DatasetName]) -> Result<Vec<Coverage>> {
        try_join_all(datasets.iter().map(|dataset| async move {
            match self.client.describe(Some(dataset)).await {
                Ok(found) => Ok(found.first().map(Coverage::of).unwrap_or_default()),
                Err(error) if error.code() == Code::UnknownDataset => Ok(Coverage::default()),
                Err(error) => Err(error),
            }
        }))
        .await
    }

    /// What each unit upstream has published: for `session` only, or for every session that the unit may catch up with.
    async fn published(&self, session: Option<NaiveDate>) -> Result<Vec<Published>> {
        let manifest = &self.config.unit.manifest;
        let calendar = manifest.calendar()?;
        let datasets = upstream(manifest);
        let progress = self.progress(&datasets).await?;
        try_join_all(datasets.iter().zip(progress).map(|(dataset, progress)| async move {
            let newest = progress.newest(calendar);
            let from = session.or_else(|| newest.and_then(|newest| catch_up_from(calendar, newest)));
            let range = TimeRange {
                start: from.and_then(midnight_ns),
                end: session.and_then(|session| midnight_ns(session)?.checked_add(DAY_NS)),
            };
            // a dataset without rows may not exist
            let sessions = match newest {
                Some(_) => self.client.sessions(dataset, range).await?,
                None => Vec::new(),
            };
            Ok(Published { progress, sessions: sessions.into_iter().filter_map(date_of).collect() })
        }))
        .await
    }

    /// Makes sure that the unit holds the lease: asks for it again if it ran out or was lost. Returns false if the process is to end.
    ///
    /// # Errors
    /// The output belongs to another unit now, or to nobody.
    async fn hold(&mut self) -> Result<bool> {
        let Some(lost) = self.fenced.take().or_else(|| self.lease.epoch().err()) else {
            return Ok(!self.stop.is_cancelled());
        };
        match lost.code() {
            Code::Fenced => {
                tracing::warn!(error = lost.message(), "the unit waits until the lease is free again");
                self.taken_over = Some(first_line(lost.message()));
                self.status.report(Status::Fenced { error: first_line(lost.message()) });
            }
            _ if lost.retryable() => {
                let output = self.config.unit.manifest.output.dataset.to_string();
                self.status.report(Status::Starting { output });
            }
            _ => return Err(lost),
        }
        let mut pauses = Pauses::new(POLL_MIN, POLL_MAX);
        while !self.stop.is_cancelled() {
            match self.lease.again().await {
                Ok(lease) => {
                    self.lease = lease;
                    return Ok(true);
                }
                Err(error) if error.code() == Code::Conflict || error.retryable() => {
                    tracing::info!(%error, "waiting for the lease");
                }
                Err(error) => return Err(error),
            }
            self.pause(pauses.next_pause()).await;
        }
        Ok(false)
    }

    /// Runs one session and prints its report.
    async fn run_session(&mut self, session: NaiveDate) -> Report {
        self.running = Some(session);
        self.taken_over = None;
        let report = self.runner.run(session, "", &self.lease).await;
        self.running = None;
        self.fenced = report.error.clone().filter(|error| error.code() == Code::Fenced);
        say(&report.to_json());
        report
    }

    /// Records the run that is still going on when the drain is over.
    async fn cut_short(&mut self) {
        if let Some(session) = self.running.take() {
            tracing::warn!(%session, "the run is cut short");
            let recorded = timeout(LAST_WORDS / 2, self.runner.cancelled(session, "")).await;
            if let Ok(report) = recorded {
                say(&report.to_json());
            }
        }
    }

    async fn pause(&self, time: Duration) {
        tokio::select! {
            () = sleep(time) => {}
            () = self.stop.cancelled() => {}
        }
    }
}

async fn acquire(config: &Config, client: &Client, instance: &str) -> Result<HeldLease> {
    let request = LeaseRequest {
        unit: config.unit.manifest.unit.clone(),
        instance: instance.to_owned(),
        spec: config.unit.manifest.output_spec()?,
        take_over: config.take_over,
        ttl: config.lease_ttl,
    };
    HeldLease::acquire(client, request, config.lease_wait).await
}

fn upstream(manifest: &Manifest) -> Vec<DatasetName> {
    match &manifest.schedule {
        Schedule::After { units } => units.iter().map(|up| up.dataset.clone()).collect(),
        Schedule::AtClose { .. } | Schedule::Manual => Vec::new(),
    }
}

/// Prints one line of JSON to stdout, for the process that started this one. `run/status.rs` lists the kinds of lines. The unit goes on
/// working if stdout is closed.
fn say(line: &dyn std::fmt::Display) {
    let mut out = std::io::stdout().lock();
    _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
