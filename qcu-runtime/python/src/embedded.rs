//! A grid inside this process: one shard and one head node, with the code of the services, on loopback.
//!
//! It uses loopback and no function calls, so that a read takes the same path as in production (tickets, admission, framing, errors):
//! a strategy that works here works there, and a second process can join. Loopback costs a fraction of a millisecond.

use std::{
    future::Future,
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use pyo3::prelude::*;
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};
use tokio_util::task::AbortOnDropHandle;
use trellis_proto::{Code, Error};
use trellis_qcu::client::{Client, ClientOptions};

use crate::{
    error::Result,
    runtime::{bug, services, wait},
};

/// Longest time until the grid serves. A lake with a long log takes seconds to open.
const READY_WAIT: Duration = Duration::from_secs(30);
/// How long each service may take to finish its calls.
const STOP_WAIT: Duration = Duration::from_secs(5);

/// A running grid. Its publishes are durable when they are acknowledged, so ending without `stop` loses nothing.
#[pyclass(frozen, module = "trellis._trellis")]
pub(crate) struct Embedded {
    url: String,
    pid: u32,
    // stopped in this order: the head, which asks, before the shard, which answers
    services: Mutex<Vec<Service>>,
}

/// One service as a task.
struct Service {
    name: &'static str,
    shutdown: oneshot::Sender<()>,
    task: JoinHandle<Result<()>>,
}

impl Service {
    fn spawn<F: Future<Output = Result<()>> + Send + 'static>(
        name: &'static str,
        run: impl FnOnce(oneshot::Receiver<()>) -> F,
    ) -> Self {
        let (shutdown, told) = oneshot::channel();
        Self { name, shutdown, task: tokio::spawn(run(told)) }
    }

    async fn stop(self) {
        let _ = self.shutdown.send(());
        let abort = self.task.abort_handle();
        match tokio::time::timeout(STOP_WAIT, self.task).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::warn!(service = self.name, %error, "embedded service ended badly"),
            Ok(Err(error)) => tracing::warn!(service = self.name, %error, "embedded service panicked"),
            Err(_) => {
                tracing::warn!(service = self.name, "embedded service did not end in time");
                abort.abort();
            }
        }
    }

    /// Waits until the service ends by itself, and says why.
    async fn failure(&mut self) -> Error {
        match (&mut self.task).await {
            Ok(Ok(())) => bug(format!("the embedded {} ended by itself", self.name)),
            Ok(Err(error)) => error,
            Err(error) => bug(format!("the embedded {} panicked: {error}", self.name)),
        }
    }
}

/// Resolves when the sender sends, or is dropped.
async fn told(receiver: oneshot::Receiver<()>) {
    let _ = receiver.await;
}

async fn listener() -> Result<(TcpListener, String)> {
    let bound = async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        Ok::<_, std::io::Error>((listener, address))
    };
    bound.await.map_err(|e| Error::new(Code::Unavailable, format!("no port on 127.0.0.1: {e}")))
}

async fn start(lake: PathBuf) -> Result<(String, Vec<Service>)> {
    let config = trellis_shard::Config::local(&lake)?;
    let (shard_listener, shard_address) = listener().await?;
    let (head_listener, head_address) = listener().await?;
    let shard = Service::spawn("shard", |rx| trellis_shard::run(config, shard_listener, told(rx)));
    let config = trellis_head::Config::new("head-0", format!("static://{shard_address}"));
    let head = Service::spawn("head node", |rx| trellis_head::run(config, head_listener, told(rx)));
    let url = format!("grpc://{head_address}");

    let mut services = vec![head, shard];
    let options = ClientOptions { connect_timeout: READY_WAIT, ..ClientOptions::default() };
    let started = {
        let (head, shard) = services.split_at_mut(1);
        tokio::select! {
            ready = Client::connect(&url, options) => ready.map(|_| ()),
            error = head[0].failure() => Err(error),
            error = shard[0].failure() => Err(error),
        }
    };
    match started {
        Ok(()) => Ok((url, services)),
        Err(error) => {
            for service in services.into_iter().filter(|s| !s.task.is_finished()) {
                service.stop().await;
            }
            Err(error)
        }
    }
}

#[pymethods]
impl Embedded {
    /// Starts a grid over the lake in the folder `lake`, which is made if it is not there.
    #[new]
    fn new(py: Python<'_>, lake: PathBuf) -> PyResult<Self> {
        let started = AbortOnDropHandle::new(services(py)?.spawn(start(lake)));
        let (url, services) = wait(py, async { started.await.map_err(bug)? })?;
        Ok(Self { url, pid: std::process::id(), services: Mutex::new(services) })
    }

    /// The URL of the grid.
    #[getter]
    fn url(&self) -> &str {
        &self.url
    }

    /// Ends the grid. Running calls may finish, for at most ten seconds. A second call does nothing.
    fn stop(&self, py: Python<'_>) -> PyResult<()> {
        if self.pid != std::process::id() {
            return Ok(());
        }
        let services = std::mem::take(&mut *self.services.lock().unwrap_or_else(PoisonError::into_inner));
        wait(py, async {
            for service in services {
                service.stop().await;
            }
            Ok(())
        })
    }

    /// Forgets the services in a forked child. They belong to the parent, and their tasks do not exist here.
    fn forget(&self) {
        std::mem::forget(std::mem::take(&mut *self.services.lock().unwrap_or_else(PoisonError::into_inner)));
    }
}
