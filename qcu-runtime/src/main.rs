//! The supervisor of one unit.

use std::process::ExitCode;

use trellis_fabric::{
    alloc::MiMalloc,
    env::format_bytes,
    process::{self, Program, Start},
    shutdown,
};
use trellis_proto::Error;
use trellis_qcu::{
    config::{Config, VARS},
    service,
};

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

const PROGRAM: Program = Program {
    name: "qcu",
    about: "One Trellis unit: holds its lease, runs its strategy when it is due, publishes the results.",
    service: "trellis-qcu",
    vars: VARS,
};

fn main() -> ExitCode {
    let exit_code = |error: &Error| error.code().exit_code();
    process::run(PROGRAM, Config::from_env, |config| &config.unit.manifest.unit, exit_code, qcu)
}

async fn qcu(config: Config, start: Start) -> Result<u8, Error> {
    let unit = &config.unit;
    start.tell(&[
        ("heads", config.url.clone()),
        ("output", unit.manifest.output.dataset.to_string()),
        ("memory", format_bytes(unit.manifest.memory.0)),
        ("folder", unit.bundle.display().to_string()),
        ("python", unit.python.display().to_string()),
    ]);
    service::run(config, shutdown::signal()).await
}
