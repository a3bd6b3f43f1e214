//! The head node's process: configuration, telemetry, a listener, and serving until a signal.

use std::process::ExitCode;

use tokio::net::TcpListener;
use trellis_fabric::{
    alloc,
    env::{self, Env},
    serve, shutdown,
    telemetry::Telemetry,
};
use trellis_head::{
    Head,
    config::{Process, VARS},
};
use trellis_proto::{Code, Error};

const ABOUT: &str = "A Trellis head node: answers reads of time series from its cache and from the shards.";

fn main() -> ExitCode {
    alloc::bound();
    let mode = env::cli("head-node", ABOUT, VARS);
    let process = env::resolve("head-node", mode, Process::from_env(Env::from_process(VARS)));
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("head-node: cannot start its threads: {error}");
            return ExitCode::from(Code::Unavailable.exit_code());
        }
    };
    match runtime.block_on(head_node(process)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("head-node: {error}");
            ExitCode::from(error.code().exit_code())
        }
    }
}

async fn head_node(process: Process) -> Result<(), Error> {
    let Process { head, listen } = process;
    let telemetry = Telemetry::init("trellis-head", &head.id);
    let listener = TcpListener::bind(listen).await.map_err(|error| {
        Error::new(Code::Unavailable, format!("cannot listen on {listen}: {error}"))
            .hint("set TRELLIS_LISTEN to a free address; port 0 takes any")
    })?;
    let address = listener.local_addr().map_err(|error| Error::new(Code::Internal, error.to_string()))?;
    let id = head.id.clone();
    let head = Head::start(head)?;
    let ready = head.ready();
    tokio::spawn(async move {
        // before its shards are there a head only refuses
        ready.await;
        serve::print_ready("head", &id, address);
    });
    let served = head.serve(listener, shutdown::signal()).await;
    telemetry.shutdown().await;
    served
}
