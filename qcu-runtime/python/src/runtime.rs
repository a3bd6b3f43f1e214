//! The Tokio runtime of the process's connections, and how a Python thread waits for it.
//!
//! The runtime has no threads of its own: a thread that waits for an answer drives the connections itself. A runtime with workers would
//! wake a worker, which then wakes the waiting thread: two hand-overs in each read, each of 30 us and more between two cores of a
//! virtual machine. Threads that wait at the same time share the driving. While no thread waits, the *keeper* drives: it
//! answers pings, follows discovery, and notices broken connections. It takes over only after [`KEEPER_TICK`] without a wait, so
//! that reads in a row do not have to take the connections back.
//!
//! An embedded grid must work also while no thread waits, so it runs on a runtime with workers.
//!
//! Rules, each of which prevents a deadlock:
//! * Every wait is *detached* from the interpreter. Otherwise no other Python thread runs, and a future that needs one hangs.
//! * A waiting thread looks for signals a few times each second. Python's own handler only sets a flag, so without the look Ctrl-C
//!   would wait for the read to return. The module installs no handler, so the handlers of other libraries keep working.
//! * A runtime does not survive `fork`: the child has none of its threads, and its locks may be held for ever. An object from before
//!   the fork raises an error in the child; new connections there get their own runtime. The child leaks the copies of the
//!   old one, because even dropping them would wait for the missing threads.
//! * The runtime ends before the interpreter does (`atexit`). No task holds a Python object, so none can outlive the interpreter.

use std::{
    pin::{Pin, pin},
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

/// How often a waiting thread looks for signals: a person does not notice 50 ms after Ctrl-C, and a look costs a microsecond.
const SIGNAL_TICK: Duration = Duration::from_millis(50);

/// How long the end waits for tasks that are inside a blocking call.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(2);

/// Most threads of an embedded grid. It encodes and decodes on them; more would take cores from the computation that reads from it.
const WORKERS_MAX: usize = 4;

/// The keeper drives after no thread has waited for this long: longer than the pause between two reads of a notebook's loop, and
/// short enough for pings and discovery.
const KEEPER_TICK: Duration = Duration::from_millis(100);

/// The runtime of the connections, and the threads that drive it.
pub(crate) struct Connections {
    runtime: Runtime,
    /// Number of waits so far, and of waits now.
    entered: AtomicU64,
    inside: AtomicU64,
    /// Tells the keeper to let go: a thread waits, or it is the end.
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

    /// Waits for `future` on this thread. Meanwhile it drives the connections, unless another thread does.
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
    /// The runtime of embedded grids; made for the first one.
    services: Option<Runtime>,
    telemetry: Option<Telemetry>,
}

enum State {
    NotStarted,
    Running(Box<Owned>),
    Ended,
}

static STATE: Mutex<State> = Mutex::new(State::NotStarted);

/// Looks at this process's runtime. The first call starts it.
fn owned<T>(py: Python<'_>, look: impl FnOnce(&mut Owned) -> PyResult<T>) -> PyResult<T> {
    // The lock is held for the start of threads at most, never while waiting, so it needs no detaching.
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    let ours = matches!(&*state, State::Running(owned) if owned.pid == std::process::id());
    if !ours && !matches!(*state, State::Ended) {
        let (connections, keeper) = Connections::start()?;
        let telemetry = telemetry(&connections.runtime);
        let owned = Owned { pid: std::process::id(), connections, keeper, services: None, telemetry };
        // the old one may be the parent's, from before a fork
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

/// The runtime of embedded grids.
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

/// Exports traces and metrics if the environment names a collector. A notebook is no service: without a collector nothing is installed,
/// and with one, stderr has only warnings and errors.
fn telemetry(runtime: &Runtime) -> Option<Telemetry> {
    let mut settings = Settings::from_process();
    if !settings.exports() {
        return None;
    }
    settings.log_filter.get_or_insert_with(|| "warn".to_owned());
    let _inside = runtime.enter();
    Some(Telemetry::init_with("trellis-python", &std::process::id().to_string(), &settings))
}

/// The error for an object that was made before a fork and used after it.
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

/// Like [`wait`], but calls `tick` in Python a few times each second while it waits.
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
    py.detach(move || connections.block_on(interruptible(pin!(future), Box::new(tick))))?.or_raise(py)
}

/// Its future is behind a pointer, so that the runtime is compiled once for each type of answer, and not for each call.
async fn interruptible<T>(
    mut future: Pin<&mut (dyn Future<Output = T> + Send)>,
    tell: Box<dyn Fn(Python<'_>) -> PyResult<()> + '_>,
) -> PyResult<T> {
    let mut tick = tokio::time::interval_at(Instant::now() + SIGNAL_TICK, SIGNAL_TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            biased;
            done = &mut future => return Ok(done),
            _ = tick.tick() => match Python::try_attach(|py| py.check_signals().and_then(|()| tell(py))) {
                Some(looked) => looked?,
                // the interpreter is ending and this is a daemon thread: no thread waits for the answer any more
                None => std::future::pending().await,
            },
        }
    }
}

/// Runs blocking work (files, CPU) without holding the interpreter and without the runtime.
pub(crate) fn detached<T: Send>(py: Python<'_>, work: impl FnOnce() -> Result<T> + Send) -> PyResult<T> {
    py.detach(work).or_raise(py)
}

/// The error for a fault of this module.
pub(crate) fn bug(what: impl std::fmt::Display) -> Error {
    Error::new(Code::Internal, what.to_string())
}

/// Ends the runtime. Python calls it at exit, after everything that runs on the runtime was told to stop. It waits at most two seconds,
/// and three more for a collector that does not take the last telemetry.
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
            // the keeper only has to see that it is the end
            let _ = keeper.join();
            match Arc::try_unwrap(connections) {
                Ok(connections) => connections.runtime.shutdown_timeout(SHUTDOWN_WAIT),
                // a daemon thread is still inside a wait: it dies with the process
                Err(shared) => std::mem::forget(shared),
            }
        });
    }
}
