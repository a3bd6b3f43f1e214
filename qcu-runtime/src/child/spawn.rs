//! Starts the child: exec, in a process group of its own, and ended when `qcu` ends.
//!
//! `PR_SET_PDEATHSIG` fires when the *thread* that started the child ends, not the process. So one thread that lives as long as
//! the process starts all children. A thread of a pool (`spawn_blocking`) would kill its children when the pool shrinks.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::PathBuf,
    process::{Command, Stdio},
    sync::{OnceLock, mpsc},
};

use tokio::sync::oneshot;

use super::{
    ipc::{cvt, socket_pair},
    process::{kill_group, reap_in_background},
    protocol::CHANNEL_FD,
};

/// The command line of the child.
#[derive(Debug, Clone)]
pub struct ChildCommand {
    /// Python interpreter.
    pub program: PathBuf,
    /// Arguments.
    pub arguments: Vec<String>,
    /// Folder to start in.
    pub directory: Option<PathBuf>,
    /// Cores that the child may keep busy. Numerical libraries give their thread pools this size, unless the environment
    /// says otherwise.
    pub threads: u32,
}

/// Prefixes of variables that must not reach a strategy: it reads only the inputs of its run, and must hold no credentials.
const WITHHELD: [&str; 3] = ["TRELLIS_", "AWS_", "OTEL_"];

/// Variables from which numerical libraries take the size of their thread pools.
const THREAD_VARIABLES: [&str; 6] = [
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "POLARS_MAX_THREADS",
    "RAYON_NUM_THREADS",
];

/// A child that was just started.
pub(super) struct Spawned {
    pub(super) pid: libc::pid_t,
    /// Readable once the child has ended.
    pub(super) pidfd: OwnedFd,
    pub(super) channel: OwnedFd,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
}

type Job = (ChildCommand, oneshot::Sender<io::Result<Spawned>>);

/// Starts a child. If the future is dropped before it is ready, the child is ended again.
pub(super) async fn spawn(command: ChildCommand) -> io::Result<Spawned> {
    static SPAWNER: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
    let spawner = match SPAWNER.get() {
        Some(spawner) => spawner,
        None => {
            let (sender, jobs) = mpsc::channel::<Job>();
            // if two callers race, one of the two threads gets no sender and ends; it has started nothing
            std::thread::Builder::new().name("qcu-spawner".to_owned()).spawn(move || spawner(&jobs))?;
            SPAWNER.get_or_init(|| sender)
        }
    };
    let (reply, spawned) = oneshot::channel();
    let gone = || io::Error::other("the thread that starts children is gone");
    spawner.send((command, reply)).map_err(|_| gone())?;
    spawned.await.map_err(|_| gone())?
}

fn spawner(jobs: &mpsc::Receiver<Job>) {
    let _occupied = occupy_channel_fd();
    for (command, reply) in jobs {
        if let Err(Ok(unwanted)) = reply.send(start(&command)) {
            kill_group(unwanted.pid);
            reap_in_background(unwanted.pid);
        }
    }
}

/// Makes sure that descriptor 3 is taken in this process. The standard library reports a failed exec through a pipe of its own. If
/// that pipe had the number 3, the channel would replace it in the child.
fn occupy_channel_fd() -> Option<OwnedFd> {
    let null = File::open("/dev/null").ok()?;
    // SAFETY: a plain fcntl; the new descriptor is checked and owned at once.
    unsafe {
        let fd = cvt(libc::fcntl(null.as_raw_fd(), libc::F_DUPFD_CLOEXEC, CHANNEL_FD)).ok()?;
        Some(OwnedFd::from_raw_fd(fd))
    }
}

fn start(what: &ChildCommand) -> io::Result<Spawned> {
    let (ours, theirs) = socket_pair()?;
    let theirs_raw = theirs.as_raw_fd();
    let parent = libc::pid_t::try_from(std::process::id()).map_err(io::Error::other)?;

    let mut command = Command::new(&what.program);
    command.args(&what.arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.process_group(0);
    if let Some(directory) = &what.directory {
        command.current_dir(directory);
    }
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| WITHHELD.iter().any(|prefix| name.starts_with(prefix))) {
            command.env_remove(name);
        }
    }
    for name in THREAD_VARIABLES {
        if std::env::var_os(name).is_none() {
            command.env(name, what.threads.max(1).to_string());
        }
    }
    // the lines of a strategy must reach the log before a crash
    command.env("PYTHONUNBUFFERED", "1");
    // SAFETY: between fork and exec only async-signal-safe calls are made, and nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            cvt(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong, 0, 0, 0))?;
            if libc::getppid() != parent {
                // the parent died before the line above
                libc::_exit(127);
            }
            let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            cvt(libc::setrlimit(libc::RLIMIT_CORE, &none))?;
            if theirs_raw == CHANNEL_FD {
                cvt(libc::fcntl(CHANNEL_FD, libc::F_SETFD, 0))?;
            } else {
                cvt(libc::dup2(theirs_raw, CHANNEL_FD))?;
            }
            Ok(())
        });
    }
    let mut child = command.spawn()?;
    drop(theirs);
    let pid = libc::pid_t::try_from(child.id()).map_err(io::Error::other)?;
    let pipes = (child.stdout.take(), child.stderr.take());
    // SAFETY: pidfd_open has no memory arguments; the child is not reaped, so the id is still its own.
    let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let pidfd = libc::c_int::try_from(pidfd).map_err(io::Error::other).and_then(cvt);
    match (pidfd, pipes) {
        (Ok(pidfd), (Some(stdout), Some(stderr))) => Ok(Spawned {
            pid,
            // SAFETY: the descriptor was just made and nobody else has it.
            pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
            channel: ours,
            stdout: stdout.into(),
            stderr: stderr.into(),
        }),
        (pidfd, _) => {
            let error = pidfd.err().unwrap_or_else(|| io::Error::other("the child has no pipes"));
            kill_group(pid);
            reap_in_background(pid);
            Err(error)
        }
    }
}
