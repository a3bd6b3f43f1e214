//! The Python child: starts it, hands it a run, and survives everything that the strategy does.
//!
//! The strategy runs in a child process because it may crash in C, loop for ever or take all memory. Each of these must end as a
//! reported run, while `qcu` keeps the lease, the telemetry and the drain. Every end is one [`Outcome`]. If the child did not answer
//! as the protocol says, the supervisor ends it with its whole process group. A child that answered may get the next run.
//!
//! The supervisor limits memory by looking at it every [`MEMORY_POLL`], and not by `RLIMIT_AS`: numerical libraries reserve far more
//! address space than they touch, and some abort if they cannot. Only anonymous pages count, because a table that is mapped
//! from a memfd is shared with `qcu`. The limit does not cover processes that the strategy starts in a session of their own.

use std::{
    io,
    os::{fd::OwnedFd, unix::process::ExitStatusExt},
    time::Duration,
};

use futures::FutureExt as _;
use tokio::{
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};
use tracing::Span;

use super::{
    ipc::{Channel, Packet, read_table},
    logs::Logs,
    outcome::{Finished, Limits, Outcome, Returned, Usage},
    process::{Process, memory},
    protocol::{Done, Progress, Reply, Request},
    spawn::{self, ChildCommand},
};

/// How often the supervisor looks at the child's memory. A process that touches 1 GB/s exceeds its limit by 20 MB.
const MEMORY_POLL: Duration = Duration::from_millis(20);
/// Longest time to import a strategy. The import of pandas, polars and pyarrow together takes two seconds on a busy machine.
const LOAD_TIMEOUT: Duration = Duration::from_secs(120);
/// After its channel has closed, a child has this long to end by itself.
const CLOSE_GRACE: Duration = Duration::from_secs(1);
/// How long the supervisor waits for the last lines of an ended child: a process that it left behind may hold the pipes open.
const LAST_LINES_WAIT: Duration = Duration::from_millis(250);

/// A running child. Dropping it ends it and its process group.
#[derive(Debug)]
pub struct Child {
    process: Process,
    channel: Channel,
    logs: Logs,
    readers: [JoinHandle<()>; 2],
    /// Whether it took the last request.
    taken: bool,
}

impl Child {
    /// Starts a child. It has not imported the strategy yet.
    ///
    /// # Errors
    /// The operating system's: no such program, no descriptors.
    pub async fn start(command: ChildCommand) -> io::Result<Self> {
        let spawned = spawn::spawn(command).await?;
        // `process` ends the child if anything below fails
        let process = Process::new(spawned.pid, spawned.pidfd)?;
        let channel = Channel::new(spawned.channel)?;
        let logs = Logs::default();
        let readers = [logs.follow("stdout", spawned.stdout)?, logs.follow("stderr", spawned.stderr)?];
        Ok(Self { process, channel, logs, readers, taken: true })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid.unsigned_abs()
    }

    /// Anonymous memory that it holds now.
    #[must_use]
    pub fn anonymous_bytes(&self) -> u64 {
        memory(self.process.pid).1
    }

    /// Imports the strategy. `Ok` gives the child back, ready for [`Child::run`].
    ///
    /// # Errors
    /// How the import ended, if it did not succeed. The child has ended.
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
            Ok((Done::Loaded, _)) => {
                self.logs.leave();
                Ok(self)
            }
            Ok((done, _)) => {
                let violation = format!("answered {done:?} to load");
                Err(Box::new(self.finish(Outcome::Protocol { violation }, before).await.0))
            }
            Err(outcome) => Err(Box::new(self.finish(outcome, before).await.0)),
        }
    }

    /// Hands over a run with its tables and waits for the end. Gives the child back if it can take another run.
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

    /// Sends one request and waits for its final reply.
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
        self.taken = true;
        loop {
            let Self { process, channel, .. } = self;
            let event = tokio::select! {
                // first the packet: a reply counts even if the process ended right after it
                biased;
                packet = channel.receive(), if sent => Event::Packet(packet),
                result = channel.send(&text, tables), if !sent => Event::Sent(result),
                () = process.ended() => Event::Ended,
                () = sleep_until(deadline) => Event::Late,
                _ = memory.tick() => Event::Look,
            };
            match event {
                Event::Sent(Ok(())) => sent = true,
                Event::Sent(Err(error)) if is_closed(&error) => {
                    self.taken = false;
                    return Err(self.closed().await);
                }
                Event::Sent(Err(error)) => return Err(Outcome::System { error }),
                Event::Packet(Ok(Some(packet))) => match reply(&packet) {
                    Ok(Reply::Progress(step)) => progress(step),
                    Ok(Reply::Error { error }) => return Err(Outcome::Raised(error)),
                    Ok(Reply::Ok(done)) => return Ok((done, packet.fds)),
                    Err(violation) => return Err(Outcome::Protocol { violation }),
                },
                Event::Packet(Ok(None)) => return Err(self.closed().await),
                Event::Packet(Err(error)) if is_closed(&error) => {
                    // the kernel resets a channel whose other end was closed with a packet in it that nobody read
                    self.taken = false;
                    return Err(self.closed().await);
                }
                Event::Packet(Err(error)) => return Err(Outcome::Protocol { violation: error.to_string() }),
                Event::Ended => {
                    let last = if sent { self.channel.receive().now_or_never() } else { None };
                    self.taken = sent && !matches!(last, Some(Err(error)) if is_closed(&error));
                    return Err(self.closed().await);
                }
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

    /// Finds out how the child ended, after its channel has closed or the process has gone.
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

    /// Sums up a run. Ends the child unless it may take another run.
    async fn finish(mut self, outcome: Outcome, before: Usage) -> (Finished, Option<Self>) {
        let usable = matches!(outcome, Outcome::Returned(_) | Outcome::Raised(_)) && !self.process.is_over();
        let after = if usable {
            // the child has flushed its last lines before it replied: their readers run now
            tokio::task::yield_now().await;
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
        let finished = Finished {
            outcome,
            usage,
            tail: self.logs.tail(),
            lines_dropped: self.logs.dropped(),
            taken: self.taken,
        };
        self.logs.leave();
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
    // on a thread that may block and panic: it reads every byte, and Arrow may panic on a malformed table
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
