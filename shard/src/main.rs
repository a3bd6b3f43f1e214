//! The shard's process: environment, telemetry, build, serve until a signal, drain.

use std::process::ExitCode;

use tokio::net::TcpListener;
use trellis_fabric::{alloc::MiMalloc, env, serve, shutdown, telemetry::Telemetry};
use trellis_shard::{Config, config::VARIABLES};

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> anyhow::Result<ExitCode> {
    let mode = env::cli(
        "shard",
        "serves chunks of a lake's datasets, and commits what is published to them",
        VARIABLES,
    );
    let (config, listen) = env::resolve("shard", mode, Config::from_env(env::Env::from_process(VARIABLES)));
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(serve_until_signal(config, &listen))
}

async fn serve_until_signal(config: Config, listen: &str) -> anyhow::Result<ExitCode> {
    let telemetry = Telemetry::init("trellis-shard", &config.id);
    let listener = match TcpListener::bind(listen).await {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(listen, %error, "the address cannot be listened on");
            telemetry.shutdown().await;
            return Ok(ExitCode::from(2));
        }
    };
    let (id, address) = (config.id.clone(), listener.local_addr()?);
    let ready = move || serve::print_ready("shard", &id, address);
    let ended = trellis_shard::run_and(config, listener, shutdown::signal(), ready).await;
    let code = match &ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the shard cannot serve");
            ExitCode::from(error.code().exit_code())
        }
    };
    telemetry.shutdown().await;
    Ok(code)
}
