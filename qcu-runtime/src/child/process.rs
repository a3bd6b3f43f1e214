//! One process that the supervisor started: it waits for the end, kills the process group, reaps the process and measures its use.

use std::{
    io,
    os::{fd::OwnedFd, unix::process::ExitStatusExt},
    process::ExitStatus,
    time::Duration,
};

use tokio::{
    io::{Interest, unix::AsyncFd},
    time::timeout,
};

use super::{ipc::watch, outcome::Usage};

/// How long the supervisor waits for the end after SIGKILL, which takes effect at once unless the process hangs in the kernel.
const KILL_WAIT: Duration = Duration::from_secs(5);

/// A process that the supervisor started. It is ended and reaped at the latest when this is dropped.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) pid: libc::pid_t,
    pidfd: AsyncFd<OwnedFd>,
    state: State,
    seen: Usage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Not reaped: `pid` still names this process.
    Running,
    /// Reaped: `pid` may name another process.
    Over(ExitStatus),
}

impl Process {
    pub(super) fn new(pid: libc::pid_t, pidfd: OwnedFd) -> io::Result<Self> {
        match watch(pidfd, Interest::READABLE) {
            Ok(pidfd) => Ok(Self { pid, pidfd, state: State::Running, seen: Usage::default() }),
            Err(error) => {
                kill_group(pid);
                reap_in_background(pid);
                Err(error)
            }
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.state != State::Running
    }

    /// Returns when the process has ended. Cancel safe.
    pub(super) async fn ended(&self) {
        if self.is_over() {
            return;
        }
        // a pidfd stays readable after the process has ended; after an error nothing more can be learnt
        _ = self.pidfd.readable().await.map(|mut ready| ready.retain_ready());
    }

    /// Ends the process group and reaps the process. `None` if the end does not show in time.
    pub(super) async fn end(&mut self) -> Option<ExitStatus> {
        if let State::Over(status) = self.state {
            return Some(status);
        }
        self.look();
        // also if the process has ended by itself: processes that it started are in its group
        kill_group(self.pid);
        timeout(KILL_WAIT, self.ended()).await.ok()?;
        let (status, user_us, system_us) = reap(self.pid)?;
        self.state = State::Over(status);
        self.seen = Usage { user_us, system_us, ..self.seen };
        Some(status)
    }

    /// Returns the anonymous memory now, and notes the largest resident memory.
    pub(super) fn look(&mut self) -> u64 {
        let (most, anonymous) = memory(self.pid);
        self.seen.rss_max_bytes = self.seen.rss_max_bytes.max(most);
        anonymous
    }

    /// What the process has used since its start.
    pub(super) fn usage(&mut self) -> Usage {
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

/// The largest resident memory of a living process, and its anonymous memory now, in bytes.
pub(super) fn memory(pid: libc::pid_t) -> (u64, u64) {
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
    // the program's name, in brackets, may hold any text; the fields 3, 4, ... come after it
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    // SAFETY: no memory is involved.
    let ticks = u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).ok().filter(|ticks| *ticks > 0)?;
    let us = |field: usize| Some(fields.get(field)?.parse::<u64>().ok()? * 1_000_000 / ticks);
    Some((us(11)?, us(12)?))
}

/// Sends SIGKILL to the process group that `pid` leads. The process must not be reaped yet, so that `pid` still names it.
pub(super) fn kill_group(pid: libc::pid_t) {
    // SAFETY: no memory is involved.
    unsafe { libc::kill(-pid, libc::SIGKILL) };
}

/// Reaps an ended process: its status and processor time. `None` if it has not ended.
fn reap(pid: libc::pid_t) -> Option<(ExitStatus, u64, u64)> {
    let (ended, status, usage) = wait(pid, libc::WNOHANG);
    let us = |time: libc::timeval| u64::try_from(time.tv_sec * 1_000_000 + time.tv_usec).unwrap_or(0);
    (ended == pid).then(|| (ExitStatus::from_raw(status), us(usage.ru_utime), us(usage.ru_stime)))
}

/// Reaps a killed process in the background.
pub(super) fn reap_in_background(pid: libc::pid_t) {
    // if there is no thread, the process stays a zombie until this process ends: one entry in a table
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
