//! The Python child: starting it, handing it a run, and surviving whatever the strategy does.
//!
//! * `supervisor/spawn.rs`: exec, from one thread for ever.
//! * `supervisor/logs.rs`: stdout and stderr, line by line.
//!
//! Process 1 is ours, and the strategy runs in a child, because a strategy may crash in C, loop for ever or take all the
//! memory there is, and each of these must end as a reported run, with the lease, telemetry and drain alive. Whatever
//! happens is one [`Outcome`]. A child that did anything but answer is ended with its whole process group and never used
//! again; one that answered may be given the next run.
//!
//! Memory is limited by looking at it every [`MEMORY_POLL`], not by `RLIMIT_AS`: numerical libraries reserve far more
//! address space than they touch, and some abort when they cannot. Only anonymous pages count: a table mapped from a
//! memfd is shared with us. Not covered: processes that the strategy starts in a session of their own.

mod logs;
mod spawn;

use std::{
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::process::ExitStatusExt,
    },
    process::ExitStatus,
    time::Duration,
};

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use tokio::{
    io::{Interest, unix::AsyncFd},
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};
use tracing::Span;

pub use spawn::ChildCommand;

use crate::{
    ipc::{Channel, Packet, read_table, watch},
    protocol::{Done, Progress, Raised, Reply, Request},
};
use logs::Logs;

/// How often the child's memory is looked at: a process that touches 1 GB/s overshoots by 20 MB.
pub const MEMORY_POLL: Duration = Duration::from_millis(20);
/// How long importing a strategy may take: pandas, polars and pyarrow together take two seconds on a busy machine.
pub const LOAD_TIMEOUT: Duration = Duration::from_secs(120);
/// A child whose channel closed is about to end; after this it is ended.
const CLOSE_GRACE: Duration = Duration::from_secs(1);
/// SIGKILL takes effect at once unless the process hangs in the kernel; nobody waits longer for its last statistics.
const KILL_WAIT: Duration = Duration::from_secs(5);
/// After the end of a child, its last lines are waited for so long (a process it left behind may hold the pipes open).
const LAST_LINES_WAIT: Duration = Duration::from_millis(250);

/// How an attempt in the child ended. Every way there is.
#[derive(Debug)]
pub enum Outcome {
    /// The strategy returned a table. It fits the protocol; whether it fits the unit is not checked yet.
    Returned(Returned),
    /// The strategy (or its import) raised.
    Raised(Raised),
    /// The process ended by itself without an answer.
    Exited {
        /// Its exit code.
        code: i32,
    },
    /// A signal that we did not send ended the process.
    Killed {
        /// Its number.
        signal: i32,
    },
    /// No answer in time.
    TimedOut {
        /// The limit.
        after: Duration,
    },
    /// More memory than allowed.
    OutOfMemory {
        /// What it had.
        bytes: u64,
        /// What it was allowed.
        limit: u64,
    },
    /// The child answered something that is not in the protocol.
    Protocol {
        /// What.
        violation: String,
    },
    /// The operating system failed us: no process, no descriptor.
    System {
        /// How.
        error: io::Error,
    },
}

/// A table that a strategy returned. The batches keep its memory mapped.
#[derive(Debug, Clone)]
pub struct Returned {
    /// Of the batches.
    pub schema: SchemaRef,
    /// The rows.
    pub batches: Vec<RecordBatch>,
}

/// What one attempt may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// From handing the run over to the answer.
    pub time: Duration,
    /// Anonymous memory.
    pub memory_bytes: u64,
}

/// What one attempt took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processor time in the strategy, microseconds.
    pub user_us: u64,
    /// Processor time in the kernel for it, microseconds.
    pub system_us: u64,
    /// Largest resident memory seen.
    pub rss_max_bytes: u64,
}

/// A run's end.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub outcome: Outcome,
    /// What it took.
    pub usage: Usage,
    /// The last lines it printed; for the error of a crash.
    pub tail: Vec<String>,
    /// Lines that were not recorded because there were too many.
    pub lines_dropped: u64,
}

impl Outcome {
    /// Whether another attempt may end differently. One that returned, spoke nonsense or ran out of the same memory will not.
    #[must_use]
    pub fn retryable(&self) -> bool {
        match self {
            Self::Raised(raised) => raised.class != "MemoryError",
            Self::Exited { .. } | Self::Killed { .. } | Self::TimedOut { .. } | Self::System { .. } => true,
            Self::Returned(_) | Self::OutOfMemory { .. } | Self::Protocol { .. } => false,
        }
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Returned(_) => write!(f, "returned"),
            Self::Raised(raised) => write!(f, "raised {}: {}", raised.class, raised.message),
            Self::Exited { code } => write!(f, "ended the process with exit code {code}"),
            Self::Killed { signal } => write!(f, "was ended by {}", signal_name(*signal)),
            Self::TimedOut { after } => write!(f, "did not return within {after:?}"),
            Self::OutOfMemory { bytes, limit } => {
                write!(f, "used {} MiB of memory; {} MiB are allowed", bytes >> 20, limit >> 20)
            }
            Self::Protocol { violation } => write!(f, "broke the child protocol: {violation}"),
            Self::System { error } => write!(f, "could not be run: {error}"),
        }
    }
}

fn signal_name(signal: i32) -> String {
    let name = match signal {
        libc::SIGSEGV => "SIGSEGV, a crash in native code",
        libc::SIGABRT => "SIGABRT, an abort in native code",
        libc::SIGBUS => "SIGBUS, a crash in native code",
        libc::SIGILL => "SIGILL, an instruction this processor does not have",
        libc::SIGFPE => "SIGFPE, an arithmetic trap",
        libc::SIGKILL => "SIGKILL, perhaps the kernel's out-of-memory killer",
        libc::SIGTERM => "SIGTERM",
        _ => return format!("signal {signal}"),
    };
    name.to_owned()
}

/// A running child. Dropping it ends it and its process group.
#[derive(Debug)]
pub struct Child {
    process: Process,
    channel: Channel,
    logs: Logs,
    readers: [JoinHandle<()>; 2],
}

impl Child {
    /// Starts one. The strategy is not imported yet.
    ///
    /// # Errors
    /// Of the operating system: no such program, no descriptors.
    pub async fn start(command: ChildCommand) -> io::Result<Self> {
        let spawned = spawn::spawn(command).await?;
        // from here on the process is ended if anything below fails
        let process = Process::new(spawned.pid, spawned.pidfd)?;
        let channel = Channel::new(spawned.channel)?;
        let logs = Logs::default();
        let readers = [logs.follow("stdout", spawned.stdout)?, logs.follow("stderr", spawned.stderr)?];
        Ok(Self { process, channel, logs, readers })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid.unsigned_abs()
    }

    /// Whether it can still be asked. One that ended by itself between two runs cannot.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        !self.process.is_over() && !self.process.has_ended()
    }

    /// Anonymous memory that it holds now.
    #[must_use]
    pub fn anonymous_bytes(&self) -> u64 {
        memory(self.process.pid).1
    }

    /// Imports the strategy. `Ok` gives the child back, ready for [`Child::run`].
    ///
    /// # Errors
    /// Anything but a confirmation; the child is gone.
    pub async fn load(
        mut self,
        request: &Request,
        memory_bytes: u64,
        span: Span,
    ) -> Result<Self, Box<Finished>> {
        let limits = Limits { time: LOAD_TIMEOUT, memory_bytes };
        self.logs.begin(span);
        let before = self.process.usage();
        match self.ask(request, &[], limits, |_| {}).await {
            Ok((Done::Loaded, _)) => Ok(self),
            Ok((done, _)) => {
                let violation = format!("answered {done:?} to load");
                Err(Box::new(self.finish(Outcome::Protocol { violation }, before).await.0))
            }
            Err(outcome) => Err(Box::new(self.finish(outcome, before).await.0)),
        }
    }

    /// Hands over a run with its tables and waits for its end. Gives the child back if it can take another run.
    ///
    /// Dropping the future ends the child.
    pub async fn run(
        mut self,
        request: &Request,
        tables: &[OwnedFd],
        limits: Limits,
        span: Span,
        progress: impl FnMut(Progress),
    ) -> (Finished, Option<Self>) {
        self.logs.begin(span);
        let before = self.process.usage();
        let outcome = match self.ask(request, tables, limits, progress).await {
            Ok((Done::Result { columns }, mut fds)) => match fds.pop() {
                Some(table) if fds.is_empty() => read_returned(table, columns).await,
                _ => Outcome::Protocol { violation: "a result comes with exactly one table".to_owned() },
            },
            Ok((Done::Loaded, _)) => Outcome::Protocol { violation: "answered loaded to run".to_owned() },
            Err(outcome) => outcome,
        };
        self.finish(outcome, before).await
    }

    /// One question and its final answer.
    async fn ask(
        &mut self,
        request: &Request,
        tables: &[OwnedFd],
        limits: Limits,
        mut progress: impl FnMut(Progress),
    ) -> Result<(Done, Vec<OwnedFd>), Outcome> {
        let deadline = Instant::now() + limits.time;
        let text = serde_json::to_vec(request)
            .map_err(|e| Outcome::System { error: io::Error::new(io::ErrorKind::InvalidInput, e) })?;
        let mut memory = interval(MEMORY_POLL);
        memory.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut sent = false;
        loop {
            let Self { process, channel, .. } = self;
            let event = tokio::select! {
                // an answer counts even if the process ended right after it
                biased;
                packet = channel.receive(), if sent => Event::Packet(packet),
                result = channel.send(&text, tables), if !sent => Event::Sent(result),
                () = process.ended() => Event::Ended,
                () = sleep_until(deadline) => Event::Late,
                _ = memory.tick() => Event::Look,
            };
            match event {
                Event::Sent(Ok(())) => sent = true,
                Event::Sent(Err(error)) if is_closed(&error) => return Err(self.closed().await),
                Event::Sent(Err(error)) => return Err(Outcome::System { error }),
                Event::Packet(Ok(Some(packet))) => match reply(&packet) {
                    Ok(Reply::Progress(step)) => progress(step),
                    Ok(Reply::Error { error }) => return Err(Outcome::Raised(error)),
                    Ok(Reply::Ok(done)) => return Ok((done, packet.fds)),
                    Err(violation) => return Err(Outcome::Protocol { violation }),
                },
                Event::Packet(Ok(None)) => return Err(self.closed().await),
                Event::Packet(Err(error)) if is_closed(&error) => return Err(self.closed().await),
                Event::Packet(Err(error)) => return Err(Outcome::Protocol { violation: error.to_string() }),
                Event::Ended => return Err(self.closed().await),
                Event::Late => return Err(Outcome::TimedOut { after: limits.time }),
                Event::Look => {
                    let bytes = self.process.look();
                    if bytes > limits.memory_bytes {
                        return Err(Outcome::OutOfMemory { bytes, limit: limits.memory_bytes });
                    }
                }
            }
        }
    }

    /// The channel is closed or the process gone: says how it ended.
    async fn closed(&mut self) -> Outcome {
        match timeout(CLOSE_GRACE, self.process.ended()).await {
            Ok(()) => {}
            Err(_) => {
                return Outcome::Protocol { violation: "closed its channel without an answer".to_owned() };
            }
        }
        match self.process.end().await {
            Some(status) => match (status.code(), status.signal()) {
                (Some(code), _) => Outcome::Exited { code },
                (None, signal) => Outcome::Killed { signal: signal.unwrap_or(0) },
            },
            None => Outcome::System { error: io::Error::other("the child's end cannot be seen") },
        }
    }

    /// Closes the books of a run; ends the child unless it may take another.
    async fn finish(mut self, outcome: Outcome, before: Usage) -> (Finished, Option<Self>) {
        let usable = matches!(outcome, Outcome::Returned(_) | Outcome::Raised(_)) && !self.process.is_over();
        let after = if usable {
            self.process.usage()
        } else {
            self.process.end().await;
            let [stdout, stderr] = &mut self.readers;
            let last_lines = async { _ = tokio::join!(stdout, stderr) };
            _ = timeout(LAST_LINES_WAIT, last_lines).await;
            self.process.usage()
        };
        let usage = Usage {
            user_us: after.user_us.saturating_sub(before.user_us),
            system_us: after.system_us.saturating_sub(before.system_us),
            rss_max_bytes: after.rss_max_bytes,
        };
        let finished =
            Finished { outcome, usage, tail: self.logs.tail(), lines_dropped: self.logs.dropped() };
        (finished, usable.then_some(self))
    }
}

enum Event {
    Sent(io::Result<()>),
    Packet(io::Result<Option<Packet>>),
    Ended,
    Late,
    Look,
}

fn is_closed(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::NotConnected
    )
}

fn reply(packet: &Packet) -> Result<Reply, String> {
    const SHOWN: usize = 200;
    serde_json::from_slice(&packet.text).map_err(|_| {
        let text = String::from_utf8_lossy(&packet.text);
        format!("not a reply: {}", text.chars().take(SHOWN).collect::<String>())
    })
}

async fn read_returned(table: OwnedFd, columns: Vec<String>) -> Outcome {
    // on a thread of its own: it reads every byte, and Arrow may panic on a malformed one
    let read = tokio::task::spawn_blocking(move || read_table(&table)).await;
    let (schema, batches) = match read {
        Ok(Ok(table)) => table,
        Ok(Err(error)) => return Outcome::Protocol { violation: format!("the result's table: {error}") },
        Err(_) => return Outcome::Protocol { violation: "the result's table is malformed".to_owned() },
    };
    let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    if names != columns {
        let violation = format!("the result says columns {columns:?}, but its table has {names:?}");
        return Outcome::Protocol { violation };
    }
    Outcome::Returned(Returned { schema, batches })
}

/// A process that we started: its end is awaited, seen once, and made sure of.
#[derive(Debug)]
struct Process {
    pid: libc::pid_t,
    pidfd: AsyncFd<OwnedFd>,
    state: State,
    seen: Usage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Not reaped: `pid` is ours.
    Running,
    /// Reaped; `pid` may be somebody else's.
    Over(ExitStatus),
}

impl Process {
    fn new(pid: libc::pid_t, pidfd: OwnedFd) -> io::Result<Self> {
        match watch(pidfd, Interest::READABLE) {
            Ok(pidfd) => Ok(Self { pid, pidfd, state: State::Running, seen: Usage::default() }),
            Err(error) => {
                kill_group(pid);
                reap_in_background(pid);
                Err(error)
            }
        }
    }

    fn is_over(&self) -> bool {
        self.state != State::Running
    }

    /// Returns when the process has ended. Cancel safe.
    async fn ended(&self) {
        if self.is_over() {
            return;
        }
        // a pidfd is readable for good once the process has ended; an error means that nothing can be known any more
        _ = self.pidfd.readable().await.map(|mut ready| ready.retain_ready());
    }

    /// Ends the process group, if it has not ended, and reaps the process. `None` if that cannot be seen in time.
    async fn end(&mut self) -> Option<ExitStatus> {
        if let State::Over(status) = self.state {
            return Some(status);
        }
        self.look();
        // also after the process has ended by itself: what it started is in its group
        kill_group(self.pid);
        timeout(KILL_WAIT, self.ended()).await.ok()?;
        let (status, user_us, system_us) = reap(self.pid)?;
        self.state = State::Over(status);
        self.seen = Usage { user_us, system_us, ..self.seen };
        Some(status)
    }

    /// Whether it has ended, though it may not be reaped yet.
    fn has_ended(&self) -> bool {
        let mut poll = libc::pollfd { fd: self.pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one descriptor, which is open; no waiting.
        unsafe { libc::poll(&mut poll, 1, 0) == 1 }
    }

    /// Anonymous memory now; remembers the most resident memory.
    fn look(&mut self) -> u64 {
        let (most, anonymous) = memory(self.pid);
        self.seen.rss_max_bytes = self.seen.rss_max_bytes.max(most);
        anonymous
    }

    /// What it has used since it started.
    fn usage(&mut self) -> Usage {
        if !self.is_over() {
            self.look();
            if let Some((user_us, system_us)) = processor_time(self.pid) {
                self.seen = Usage { user_us, system_us, ..self.seen };
            }
        }
        self.seen
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.is_over() {
            kill_group(self.pid);
            reap_in_background(self.pid);
        }
    }
}

/// The most resident memory a living process had, and its anonymous memory now, in bytes.
fn memory(pid: libc::pid_t) -> (u64, u64) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib << 10)
    };
    (field("VmHWM:").unwrap_or(0), field("RssAnon:").unwrap_or(0))
}

/// Processor time of a living process, in microseconds.
fn processor_time(pid: libc::pid_t) -> Option<(u64, u64)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // the name, in brackets, may hold anything; after it come fields 3, 4, ...
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    // SAFETY: no memory is involved.
    let ticks = u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).ok().filter(|ticks| *ticks > 0)?;
    let us = |field: usize| Some(fields.get(field)?.parse::<u64>().ok()? * 1_000_000 / ticks);
    Some((us(11)?, us(12)?))
}

/// SIGKILL to the process group that `pid` leads. Only for a process that is not reaped, so that the id is its own.
fn kill_group(pid: libc::pid_t) {
    // SAFETY: no memory is involved.
    unsafe { libc::kill(-pid, libc::SIGKILL) };
}

/// Status and processor time of a process that has ended. `None` if it has not.
fn reap(pid: libc::pid_t) -> Option<(ExitStatus, u64, u64)> {
    let (ended, status, usage) = wait(pid, libc::WNOHANG);
    let us = |time: libc::timeval| u64::try_from(time.tv_sec * 1_000_000 + time.tv_usec).unwrap_or(0);
    (ended == pid).then(|| (ExitStatus::from_raw(status), us(usage.ru_utime), us(usage.ru_stime)))
}

/// Reaps a process that has been killed, without anybody waiting for it.
fn reap_in_background(pid: libc::pid_t) {
    // without a thread it stays a zombie until we end: an entry in a table, no more
    _ = std::thread::Builder::new().name("qcu-reaper".to_owned()).spawn(move || wait(pid, 0));
}

fn wait(pid: libc::pid_t, flags: libc::c_int) -> (libc::pid_t, libc::c_int, libc::rusage) {
    let mut status = 0;
    // SAFETY: rusage is plain data, for which zeros are valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: both pointers are valid for the call.
        let ended = unsafe { libc::wait4(pid, &mut status, flags, &mut usage) };
        if ended >= 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return (ended, status, usage);
        }
    }
}
