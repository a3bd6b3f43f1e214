//! The supervisor of one unit: configuration, telemetry, and working until a signal.

use std::process::ExitCode;

use trellis_fabric::{
    alloc::MiMalloc,
    env::{self, Env},
    shutdown,
    telemetry::Telemetry,
};
use trellis_proto::Code;
use trellis_qcu::{
    config::{Config, VARS},
    service,
};

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

const ABOUT: &str =
    "One Trellis unit: holds its lease, runs its strategy when it is due, publishes the results.";

fn main() -> ExitCode {
    let mode = env::cli("qcu", ABOUT, VARS);
    let config = env::resolve("qcu", mode, Config::from_env(Env::from_process(VARS)));
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("qcu: cannot start its threads: {error}");
            return ExitCode::from(Code::Unavailable.exit_code());
        }
    };
    let ended = runtime.block_on(async {
        let telemetry = Telemetry::init("trellis-qcu", &config.unit.manifest.unit);
        let ended = service::run(config, shutdown::signal()).await;
        telemetry.shutdown().await;
        ended
    });
    // what still blocks a thread (a merge, a digest) is not waited for
    runtime.shutdown_background();
    match ended {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("qcu: {error}");
            ExitCode::from(error.code().exit_code())
        }
    }
}
