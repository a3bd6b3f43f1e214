//! The Tokio runtime of the process's connections, and how a Python thread waits for it.
//!
//! The runtime has no threads of its own: a thread that waits for an answer drives the connections itself, and so is not
//! woken by another that was woken by the answer. A runtime with workers has two such hand-overs in each read, and
//! between two cores of a virtual machine one takes 30 us and more. Threads that wait at the
//! same time share the driving. While nobody waits, the *keeper* does: it answers pings, follows discovery, notices what
//! broke. It takes over after a quiet [`KEEPER_TICK`], so that reads in a row do not have to take the connections back.
//!
//! An embedded grid, which works whether anybody waits or not, runs on a runtime with workers.
//!
//! Rules, each bought with somebody's deadlock:
//! * every wait is *detached* from the interpreter, or no other Python thread runs and a future that needs one hangs;
//! * while it waits, a thread looks for signals a few times a second. Python's own handler only sets a flag; without
//!   the look Ctrl-C would be noticed when the read returns. There is no handler of ours: other libraries' handlers
//!   keep working;
//! * a runtime does not survive `fork`: its threads are not in the child, and its locks may be held for ever. What was
//!   made before says so when it is used in the child; new connections there get a runtime of their own. The copies of
//!   the old are leaked, since even dropping them would wait for the missing threads;
//! * it ends before the interpreter does (`atexit`). No task holds a Python object, so none can outlive it.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread::JoinHandle,
    time::Duration,
};

use pyo3::prelude::*;
use tokio::{
    runtime::{Builder, Handle, Runtime},
    sync::Notify,
    time::{Instant, MissedTickBehavior},
};
use trellis_fabric::telemetry::{Settings, Telemetry};
use trellis_proto::{Code, Error};

use crate::error::{OrRaise, Result, local};

/// How often a waiting thread looks for signals: a person does not notice 50 ms after Ctrl-C, and the look costs a
/// microsecond.
const SIGNAL_TICK: Duration = Duration::from_millis(50);

/// How long the end waits for tasks that are inside a blocking call.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(2);

/// Threads of an embedded grid: it encodes and decodes on them, and more than this would take cores from the computation that
/// it feeds.
const WORKERS_MAX: usize = 4;

/// The keeper drives when no thread has waited for so long. Longer than a notebook's loop pauses between two reads; shorter
/// than anything that happens unasked may be late.
const KEEPER_TICK: Duration = Duration::from_millis(100);

/// The runtime of the connections, with whoever drives it.
pub(crate) struct Connections {
    runtime: Runtime,
    /// How many waits there have been, and how many there are.
    entered: AtomicU64,
    inside: AtomicU64,
    /// A thread waits, or it is the end: the keeper lets go.
    wanted: Notify,
    ended: AtomicBool,
}

impl Connections {
    fn start() -> std::io::Result<(Arc<Self>, JoinHandle<()>)> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let this = Arc::new(Self {
            runtime,
            entered: AtomicU64::new(0),
            inside: AtomicU64::new(0),
            wanted: Notify::new(),
            ended: AtomicBool::new(false),
        });
        let kept = Arc::clone(&this);
        let keeper = std::thread::Builder::new().name("trellis-io".into()).spawn(move || kept.keep())?;
        Ok((this, keeper))
    }

    fn keep(&self) {
        let mut seen = None;
        while !self.ended.load(SeqCst) {
            let entered = self.entered.load(SeqCst);
            if self.inside.load(SeqCst) == 0 && seen == Some(entered) {
                self.runtime.block_on(self.wanted.notified());
            } else {
                seen = Some(entered);
                std::thread::park_timeout(KEEPER_TICK);
            }
        }
    }

    /// Waits for `future` on this thread, and drives the connections meanwhile unless another thread does.
    fn block_on<F: Future>(&self, future: F) -> F::Output {
        struct Inside<'a>(&'a AtomicU64);
        impl Drop for Inside<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, SeqCst);
            }
        }
        self.inside.fetch_add(1, SeqCst);
        let _inside = Inside(&self.inside);
        self.entered.fetch_add(1, SeqCst);
        self.wanted.notify_one();
        self.runtime.block_on(future)
    }
}

struct Owned {
    pid: u32,
    connections: Arc<Connections>,
    keeper: JoinHandle<()>,
    /// Of embedded grids; from the first one on.
    services: Option<Runtime>,
    telemetry: Option<Telemetry>,
}

enum State {
    NotStarted,
    Running(Box<Owned>),
    Ended,
}

static STATE: Mutex<State> = Mutex::new(State::NotStarted);

/// Looks at what this process has, started at the first call.
fn owned<T>(py: Python<'_>, look: impl FnOnce(&mut Owned) -> PyResult<T>) -> PyResult<T> {
    // The lock is held for the start of threads at most, never while waiting, so it needs no detaching.
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    let ours = matches!(&*state, State::Running(owned) if owned.pid == std::process::id());
    if !ours && !matches!(*state, State::Ended) {
        let (connections, keeper) = Connections::start()?;
        let telemetry = telemetry(&connections.runtime);
        let owned = Owned { pid: std::process::id(), connections, keeper, services: None, telemetry };
        // of a parent before the fork
        std::mem::forget(std::mem::replace(&mut *state, State::Running(Box::new(owned))));
    }
    match &mut *state {
        State::Running(owned) => look(owned),
        State::NotStarted | State::Ended => {
            Err(local(py, "Closed", "Trellis was shut down: the interpreter is exiting", ""))
        }
    }
}

fn connections(py: Python<'_>) -> PyResult<Arc<Connections>> {
    owned(py, |owned| Ok(Arc::clone(&owned.connections)))
}

/// Where an embedded grid runs.
pub(crate) fn services(py: Python<'_>) -> PyResult<Handle> {
    owned(py, |owned| {
        if let Some(runtime) = &owned.services {
            return Ok(runtime.handle().clone());
        }
        let workers = std::thread::available_parallelism().map_or(1, usize::from).clamp(2, WORKERS_MAX);
        let runtime = Builder::new_multi_thread()
            .worker_threads(workers)
            .thread_name("trellis-grid")
            .enable_all()
            .build()?;
        Ok(owned.services.insert(runtime).handle().clone())
    })
}

/// Exports traces and metrics where the environment names a collector. A notebook is no service: without one, nothing is
/// installed, and with one, stderr stays with what a person must act on.
fn telemetry(runtime: &Runtime) -> Option<Telemetry> {
    let mut settings = Settings::from_process();
    if !settings.exports() {
        return None;
    }
    settings.log_filter.get_or_insert_with(|| "warn".to_owned());
    let _inside = runtime.enter();
    Some(Telemetry::init_with("trellis-python", &std::process::id().to_string(), &settings))
}

/// The error for what was made before a fork and used after it.
pub(crate) fn forked(py: Python<'_>) -> PyErr {
    local(
        py,
        "ForkedProcess",
        "this grid was connected before os.fork(), and connections do not survive it",
        "call trellis.connect() in the child; start workers with multiprocessing.get_context(\"spawn\")",
    )
}

/// Waits for `future` without holding the interpreter. Ctrl-C ends the wait with KeyboardInterrupt and drops the future.
pub(crate) fn wait<T, F>(py: Python<'_>, future: F) -> PyResult<T>
where
    T: Send,
    F: Future<Output = Result<T>> + Send,
{
    wait_telling(py, |_| Ok(()), future)
}

/// As [`wait`]; `tick` is called in Python a few times a second meanwhile.
pub(crate) fn wait_telling<T, F>(
    py: Python<'_>,
    tick: impl Fn(Python<'_>) -> PyResult<()> + Send,
    future: F,
) -> PyResult<T>
where
    T: Send,
    F: Future<Output = Result<T>> + Send,
{
    let connections = connections(py)?;
    py.detach(|| connections.block_on(interruptible(future, tick)))?.or_raise(py)
}

async fn interruptible<T>(
    future: impl Future<Output = T>,
    tell: impl Fn(Python<'_>) -> PyResult<()>,
) -> PyResult<T> {
    tokio::pin!(future);
    let mut tick = tokio::time::interval_at(Instant::now() + SIGNAL_TICK, SIGNAL_TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            biased;
            done = &mut future => return Ok(done),
            _ = tick.tick() => match Python::try_attach(|py| py.check_signals().and_then(|()| tell(py))) {
                Some(looked) => looked?,
                // The interpreter is ending and this is a daemon thread: nobody waits for the answer any more.
                None => std::future::pending().await,
            },
        }
    }
}

/// Runs blocking work (files, CPU) without holding the interpreter and without the runtime.
pub(crate) fn detached<T: Send>(py: Python<'_>, work: impl FnOnce() -> Result<T> + Send) -> PyResult<T> {
    py.detach(work).or_raise(py)
}

/// An error for what cannot happen unless we are wrong.
pub(crate) fn bug(what: impl std::fmt::Display) -> Error {
    Error::new(Code::Internal, what.to_string())
}

/// Ends the runtime: called at exit, after everything that runs on it was told to stop. Waits two seconds at most, and three
/// more for a collector that does not take the last telemetry.
#[pyfunction]
pub(crate) fn shutdown(py: Python<'_>) {
    let ended = std::mem::replace(&mut *STATE.lock().unwrap_or_else(PoisonError::into_inner), State::Ended);
    if let State::Running(owned) = ended {
        if owned.pid != std::process::id() {
            std::mem::forget(owned);
            return;
        }
        py.detach(|| {
            let Owned { connections, keeper, services, telemetry, .. } = *owned;
            if let Some(telemetry) = telemetry {
                connections.block_on(telemetry.shutdown());
            }
            if let Some(services) = services {
                services.shutdown_timeout(SHUTDOWN_WAIT);
            }
            connections.ended.store(true, SeqCst);
            connections.wanted.notify_one();
            keeper.thread().unpark();
            // it has nothing left to do but to see that it is the end
            let _ = keeper.join();
            match Arc::try_unwrap(connections) {
                Ok(connections) => connections.runtime.shutdown_timeout(SHUTDOWN_WAIT),
                // a daemon thread is still inside a wait: it dies with the process
                Err(shared) => std::mem::forget(shared),
            }
        });
    }
}
