//! Deployed units as processes: a test starts `qcu` with a Python child for some sessions, kills it at points of a run, and
//! starts it again for the sessions that it has not reported, as an orchestrator does.
//!
//! The strategy returns its input. So every publish of a unit must be one whole publish of its input: the newest one at the
//! knowledge time at which the unit read. If a unit dies between its publish and the report, its next process gets the
//! acknowledgement; if the input was corrected meanwhile, it publishes the correction.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, ExitStatus},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{mpsc, watch};
use trellis_proto::{
    DatasetName,
    runs::LEDGER,
    time::{format_time, parse_time},
};
use trellis_qcu::client::Client;

use crate::{
    moments::{Moment, Watcher},
    processes::{command, spawn, static_url, tail},
    rng::Rng,
    tables::{Commit, StoredRow},
    traffic::{FIELDS, Output, Pulse, ROWS, Recorded, Seen, look, midnight, parts, session_of},
};

/// Most sessions of one start. A process is usually killed within a few; one that is not should also end and start again.
const SESSIONS_MAX: usize = 4;
/// How long the lease of a killed unit lasts, if its next process does not take over.
const TTL_MS: &str = "2000";
/// Retries of a run: more than there are outages in its time.
const RETRIES: u32 = 20;
/// How long a unit may be silent. A run takes seconds, whatever is killed.
const SILENCE_MAX: Duration = Duration::from_secs(150);
/// The file that the child makes when the strategy has been called.
const CALLED: &str = "called";
/// Exit codes that are allowed: success; the grid could not be reached; another process of the unit took the lease.
const EXITS: [i32; 3] = [0, 4, 5];

/// The points in the life of a run, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// Any time.
    Any,
    /// The strategy has been called, and nothing has been published.
    Called,
    /// The publish has been sent, and its rows are being written.
    Sent,
    /// The publish has been committed, and the acknowledgement is on its way.
    Committed,
    /// The publish has been acknowledged, and the run will be recorded next.
    Recording,
}

impl Point {
    /// Every point, in order.
    pub const ALL: [Self; 5] = [Self::Any, Self::Called, Self::Sent, Self::Committed, Self::Recording];
}

/// A line on the stdout of `qcu`.
#[derive(Debug, Deserialize)]
struct Line {
    #[serde(default)]
    ready: bool,
    #[serde(default)]
    run: String,
    #[serde(default)]
    session: String,
    #[serde(default)]
    outcome: String,
    error: Option<String>,
    version: Option<u64>,
    duplicate: Option<bool>,
}

/// A run that the unit has reported as succeeded.
#[derive(Debug, Clone)]
struct Report {
    session: usize,
    run_id: String,
    version: u64,
}

/// A unit that copies a dataset, session by session.
#[derive(Debug)]
pub struct Unit {
    name: String,
    dataset: DatasetName,
    input: Arc<Output>,
    folder: PathBuf,
    log: PathBuf,
    process: Mutex<Option<Child>>,
    reports: Mutex<Vec<Report>>,
    starts: AtomicU64,
    found: AtomicU64,
    gave_up: AtomicU64,
}

impl Unit {
    /// Deploys a unit that copies the rows of `input` to `dataset`. Its files are in a new folder below `folder`.
    ///
    /// # Errors
    /// When its files cannot be written.
    pub fn deploy(folder: &Path, dataset: &str, input: &Arc<Output>) -> Result<Self> {
        let name = dataset.replace('.', "-");
        let log = folder.join(format!("{name}.log"));
        let folder = folder.join(&name);
        let package = folder.join("python/trellis");
        fs::create_dir_all(&package)?;
        fs::write(package.join("__init__.py"), "")?;
        fs::write(package.join("_child.py"), include_str!("copy_child.py"))?;
        let fields: BTreeMap<&str, &str> = FIELDS.iter().map(|field| (*field, "float64")).collect();
        let manifest = json!({
            "version": 1, "unit": name, "module": "copy.py", "function": "copy",
            "schedule": {"kind": "manual"}, "calendar": "24/7", "timeout": "60s", "retries": RETRIES,
            "inputs": [{"name": "px", "dataset": input.name(), "fields": FIELDS}],
            "output": {"dataset": dataset, "fields": fields}, "code_digest": "sha256:1",
        });
        fs::write(folder.join("unit.json"), manifest.to_string())?;
        Ok(Self {
            name,
            dataset: DatasetName::new(dataset)?,
            input: input.clone(),
            folder,
            log,
            process: Mutex::default(),
            reports: Mutex::default(),
            starts: AtomicU64::new(0),
            found: AtomicU64::new(0),
            gave_up: AtomicU64::new(0),
        })
    }

    /// Name of the unit.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Name of the dataset that it publishes to.
    #[must_use]
    pub fn dataset(&self) -> &str {
        self.dataset.as_str()
    }

    /// The dataset that it reads.
    #[must_use]
    pub fn input(&self) -> &str {
        self.input.name()
    }

    /// Number of runs reported so far.
    #[must_use]
    pub fn runs(&self) -> usize {
        locked(&self.reports).len()
    }

    /// One line of counts.
    #[must_use]
    pub fn summary(&self) -> String {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        format!(
            "unit {}: started {} times, {} runs reported ({} of them published by an earlier process), gave up {} times",
            self.name,
            load(&self.starts),
            self.runs(),
            load(&self.found),
            load(&self.gave_up)
        )
    }

    /// Runs the sessions of its input, new ones first, until told to stop; it then finishes the sessions that it has begun.
    ///
    /// # Errors
    /// A refusal, except for an old epoch; an exit code that is not allowed.
    pub async fn work(
        self: Arc<Self>,
        heads: Vec<SocketAddr>,
        mut rng: Rng,
        stop: watch::Receiver<bool>,
        pulse: Arc<Pulse>,
    ) -> Result<()> {
        let mut asked = BTreeSet::new();
        let mut acknowledged = pulse.acknowledged();
        while !*stop.borrow() {
            let due = self.due(&mut asked, &mut rng).await;
            if due.is_empty() {
                acknowledged.changed().await?;
                continue;
            }
            self.run(&heads, due, &mut rng).await.with_context(|| self.name.clone())?;
        }
        Ok(())
    }

    /// Sessions that have not been run. If there are none, one is run again: it may have been corrected.
    async fn due(&self, asked: &mut BTreeSet<usize>, rng: &mut Rng) -> Vec<usize> {
        let runs = self.input.runs().await;
        let there: BTreeSet<usize> =
            runs.iter().filter(|run| run.ack.is_some()).map(|run| run.session).collect();
        let new: Vec<usize> = there.difference(asked).copied().take(SESSIONS_MAX).collect();
        asked.extend(&new);
        if new.is_empty() && !there.is_empty() {
            let there: Vec<usize> = there.into_iter().collect();
            return vec![*rng.pick(&there)];
        }
        new
    }

    /// Starts processes for `due` until each session has been reported as published.
    async fn run(&self, heads: &[SocketAddr], mut due: Vec<usize>, rng: &mut Rng) -> Result<()> {
        while !due.is_empty() {
            // Most new processes take the lease over, because the old one is known to be dead; some wait
            // until the lease has ended.
            let mut lines = self.start(heads, &due, !rng.once_in(4))?;
            loop {
                let line = tokio::time::timeout(SILENCE_MAX, lines.recv()).await;
                let Some(line) = line.with_context(|| format!("silent for {SILENCE_MAX:?}"))? else { break };
                // A killed process may leave a part of its last line.
                let Ok(line) = serde_json::from_str::<Line>(&line) else { continue };
                if let Some(report) = self.report(line)? {
                    due.retain(|session| *session != report.session);
                    locked(&self.reports).push(report);
                }
            }
            let status = self.ended().await?;
            let killed = status.signal() == Some(libc::SIGKILL);
            let passes = status.code().is_some_and(|code| EXITS.contains(&code));
            ensure!(killed || passes, "ended with {status}:\n{}", tail(&self.log)?);
            if !killed && !status.success() {
                self.gave_up.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    fn report(&self, line: Line) -> Result<Option<Report>> {
        // other lines are statuses
        if line.ready || line.outcome.is_empty() {
            return Ok(None);
        }
        let session = session_of(parse_time(&line.session)?);
        if line.outcome == "succeeded" {
            self.found.fetch_add(line.duplicate.unwrap_or_default().into(), Ordering::Relaxed);
            let version = line.version.context("a success without a version")?;
            return Ok(Some(Report { session, run_id: line.run, version }));
        }
        let error = line.error.unwrap_or_default();
        let refused = line.outcome == "refused" && !error.contains("fenced by epoch");
        ensure!(!refused, "session {}: {error}", line.session);
        Ok(None)
    }

    fn start(
        &self,
        heads: &[SocketAddr],
        due: &[usize],
        take_over: bool,
    ) -> Result<mpsc::UnboundedReceiver<String>> {
        let sessions: Vec<String> = due.iter().map(|session| format_time(midnight(*session))).collect();
        let env = [
            ("PYTHONPATH", self.folder.join("python").to_string_lossy().into_owned()),
            ("TRELLIS_UNIT_FILE", self.folder.join("unit.json").to_string_lossy().into_owned()),
            ("TRELLIS_URL", static_url(heads)),
            ("TRELLIS_SESSIONS", sessions.join(",")),
            ("TRELLIS_EXIT_WHEN_DONE", "true".to_owned()),
            ("TRELLIS_TAKE_OVER", take_over.to_string()),
            ("TRELLIS_LEASE_TTL_MS", TTL_MS.to_owned()),
            ("TRELLIS_LOG", "warn".to_owned()),
        ];
        let env = env.map(|(name, value)| (name.to_owned(), value));
        let mut child = spawn(command("qcu", &env, &self.log)?)?;
        let out = child.stdout.take().context("stdout is piped")?;
        *locked(&self.process) = Some(child);
        self.starts.fetch_add(1, Ordering::Relaxed);
        let (sender, lines) = mpsc::unbounded_channel();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(lines)
    }

    /// Sends SIGKILL to `qcu`. Returns whether it ran.
    pub fn kill(&self) -> bool {
        match &mut *locked(&self.process) {
            Some(child) => matches!(child.try_wait(), Ok(None)) && child.kill().is_ok(),
            None => false,
        }
    }

    /// The status of a process whose output has ended.
    async fn ended(&self) -> Result<ExitStatus> {
        let Some(mut child) = locked(&self.process).take() else { bail!("nobody has been started") };
        Ok(tokio::task::spawn_blocking(move || child.wait()).await??)
    }

    /// Blocks until a run reaches `point`, for at most `limit`. Returns whether a run has reached it.
    ///
    /// # Errors
    /// Any error of the system.
    pub fn wait(&self, point: Point, lake: &Path, limit: Duration) -> Result<bool> {
        let table = || Watcher::of([lake.join(self.dataset()).as_path()]);
        // The grant of a lease is also a commit, but without rows.
        let committed = || -> Result<bool> {
            let table = table()?;
            Ok(table.wait(Moment::RowsWritten, limit)? && table.wait(Moment::Committed, limit)?)
        };
        Ok(match point {
            Point::Any => true,
            Point::Called => Watcher::of_folder(&self.folder)?.wait_for(|name| name == CALLED, limit)?,
            Point::Sent => table()?.wait(Moment::WritingRows, limit)?,
            Point::Committed => committed()?,
            Point::Recording => {
                committed()?
                    && Watcher::of([lake.join(LEDGER).as_path()])?.wait(Moment::WritingRows, limit)?
            }
        })
    }

    /// Compares the stored rows of the unit's dataset with its log, its reports and its input: each session that was asked for
    /// must be there, and each publish once and whole, with the rows that the input had when it was read.
    ///
    /// # Errors
    /// The first publish that breaks this rule.
    pub fn check_stored(&self, log: &[Commit], rows: &[StoredRow], input: &[StoredRow]) -> Result<()> {
        let (stored, input) = (publishes(rows)?, publishes(input)?);
        let mut of_session: BTreeMap<usize, Vec<(&str, Option<i64>)>> = BTreeMap::new();
        for run in log.iter().flat_map(|commit| &commit.runs) {
            let session = session_of(parse_time(&run.session)?);
            of_session.entry(session).or_default().push((&run.run_id, run.read_as_of));
        }
        for (session, runs) in &of_session {
            let Some(stored) = stored.get(session) else { bail!("session {session} has no rows") };
            ensure!(
                stored.len() == runs.len(),
                "session {session}: {} publishes in the log, {} in the files",
                runs.len(),
                stored.len()
            );
            let mut contents = BTreeSet::new();
            // Knowledge times grow with every commit.
            for ((run_id, read_as_of), rows) in runs.iter().zip(stored.values()) {
                let read_as_of = read_as_of.with_context(|| format!("{run_id} does not say what it read"))?;
                let newest = input.get(session).and_then(|all| all.range(..=read_as_of).next_back());
                let (_, expected) = newest.with_context(|| format!("{run_id} read nothing"))?;
                let same = expected.len() == rows.len()
                    && expected
                        .iter()
                        .zip(rows)
                        .all(|(e, r)| (&e.symbol, e.ts, e.n, e.x) == (&r.symbol, r.ts, r.n, r.x));
                ensure!(
                    same && rows.len() == ROWS,
                    "session {session}, run {run_id}: stored {}, read {}",
                    parts(rows),
                    parts(expected)
                );
                let content = rows[0].n as usize;
                ensure!(
                    contents.insert(content),
                    "session {session}: the input's {content} was published twice"
                );
            }
        }
        ensure!(
            stored.len() == of_session.len(),
            "{} sessions in the files, {} in the log",
            stored.len(),
            of_session.len()
        );
        let versions = versions(log);
        for report in locked(&self.reports).iter() {
            ensure!(
                versions.get(report.run_id.as_str()) == Some(&report.version),
                "session {}: run {} was reported as version {}, and is {:?}",
                report.session,
                report.run_id,
                report.version,
                versions.get(report.run_id.as_str())
            );
        }
        Ok(())
    }

    /// Compares the ledger with the log and the reports: each reported run must be recorded with the version that it
    /// committed, and no other success may be.
    ///
    /// # Errors
    /// The first run that is missing or wrong.
    pub fn check_recorded(&self, log: &[Commit], ledger: &[Recorded]) -> Result<()> {
        let versions = versions(log);
        let mut recorded = BTreeSet::new();
        for record in ledger.iter().filter(|r| r.unit == self.name && r.outcome == "succeeded") {
            let version = versions.get(record.run_id.as_str()).copied();
            ensure!(
                version.is_some() && version == record.version,
                "the ledger has {record:?}, the log version {version:?}"
            );
            recorded.insert(record.run_id.as_str());
        }
        for report in locked(&self.reports).iter() {
            ensure!(
                recorded.contains(report.run_id.as_str()),
                "run {} of session {} was reported, but is not in the ledger",
                report.run_id,
                report.session
            );
        }
        Ok(())
    }

    /// Compares reads of the grid with the stored rows, for one in `one_in` publishes.
    ///
    /// # Errors
    /// Any error of the grid, or the first publish that it reads otherwise.
    pub async fn check_read(
        &self,
        client: &Client,
        rows: &[StoredRow],
        rng: &mut Rng,
        one_in: usize,
    ) -> Result<()> {
        for (session, publishes) in publishes(rows)? {
            for (known_at, expected) in publishes {
                if !rng.once_in(one_in) {
                    continue;
                }
                let (read, _) = look(client, &self.dataset, session, Some(known_at)).await?;
                ensure!(
                    read == expected,
                    "session {session} as of {known_at}: read {}, stored {}",
                    parts(&read),
                    parts(&expected)
                );
            }
        }
        Ok(())
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let tail = tail(&self.log).unwrap_or_else(|error| format!("(its log does not read: {error})"));
            eprintln!("--- the end of the log of unit {}:\n{tail}", self.name);
        }
    }
}

/// Stored rows by session and knowledge time, in the order of their symbols.
fn publishes(rows: &[StoredRow]) -> Result<BTreeMap<usize, BTreeMap<i64, Vec<Seen>>>> {
    let mut publishes: BTreeMap<usize, BTreeMap<i64, Vec<Seen>>> = BTreeMap::new();
    for row in rows {
        let seen = Seen::stored(row)?;
        publishes.entry(session_of(seen.ts)).or_default().entry(seen.known_at).or_default().push(seen);
    }
    for rows in publishes.values_mut().flat_map(BTreeMap::values_mut) {
        rows.sort_by(|a, b| a.symbol.cmp(&b.symbol));
    }
    Ok(publishes)
}

/// The version that each run committed.
fn versions(log: &[Commit]) -> BTreeMap<&str, u64> {
    let runs = log.iter().flat_map(|commit| commit.runs.iter().map(move |run| (run, commit.version)));
    runs.map(|(run, version)| (run.run_id.as_str(), version)).collect()
}

/// Ignores poison: a thread that panicked while it held the lock has already failed the test.
fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
