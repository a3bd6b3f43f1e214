//! The one Tokio runtime of the process, and how a Python thread waits for it.
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
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use pyo3::prelude::*;
use tokio::{
    runtime::{Builder, Runtime},
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

/// Threads of the runtime. A client needs one; an embedded grid encodes and decodes on them too, and more than this
/// would take cores from the computation that it feeds.
const WORKERS_MAX: usize = 4;

struct Owned {
    pid: u32,
    runtime: Arc<Runtime>,
    telemetry: Option<Telemetry>,
}

enum State {
    NotStarted,
    Running(Owned),
    Ended,
}

static STATE: Mutex<State> = Mutex::new(State::NotStarted);

/// The runtime, started at the first call.
pub(crate) fn runtime(py: Python<'_>) -> PyResult<Arc<Runtime>> {
    // The lock is held for the start of threads at most, never while waiting, so it needs no detaching.
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    match &*state {
        State::Running(owned) if owned.pid == std::process::id() => Ok(Arc::clone(&owned.runtime)),
        State::Ended => Err(local(py, "Closed", "Trellis was shut down: the interpreter is exiting", "")),
        State::NotStarted | State::Running(_) => {
            let workers = std::thread::available_parallelism().map_or(1, usize::from).clamp(2, WORKERS_MAX);
            let runtime = Builder::new_multi_thread()
                .worker_threads(workers)
                .thread_name("trellis-io")
                .enable_all()
                .build()?;
            let runtime = Arc::new(runtime);
            let telemetry = telemetry(&runtime);
            let owned = Owned { pid: std::process::id(), runtime: Arc::clone(&runtime), telemetry };
            std::mem::forget(std::mem::replace(&mut *state, State::Running(owned)));
            Ok(runtime)
        }
    }
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
    let runtime = runtime(py)?;
    py.detach(|| runtime.block_on(interruptible(future, tick)))?.or_raise(py)
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
            if let Some(telemetry) = owned.telemetry {
                owned.runtime.block_on(telemetry.shutdown());
            }
            match Arc::try_unwrap(owned.runtime) {
                Ok(runtime) => runtime.shutdown_timeout(SHUTDOWN_WAIT),
                // a daemon thread is still inside a wait: it dies with the process
                Err(shared) => std::mem::forget(shared),
            }
        });
    }
}
