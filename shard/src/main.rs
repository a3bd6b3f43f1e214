//! The shard's process.

use std::{net::SocketAddr, process::ExitCode};

use trellis_fabric::{
    alloc,
    env::format_bytes,
    process::{self, LISTEN_HINT, Program, Start},
    serve, shutdown,
};
use trellis_proto::{Code, Error};
use trellis_shard::{Config, config::VARIABLES};

const PROGRAM: Program = Program {
    name: "shard",
    about: "serves chunks of a lake's datasets, and commits what is published to them",
    service: "trellis-shard",
    vars: VARIABLES,
};

fn main() -> ExitCode {
    alloc::bound();
    let exit_code = |error: &Error| error.code().exit_code();
    process::run(PROGRAM, Config::from_env, |(config, _)| &config.id, exit_code, shard)
}

async fn shard((config, listen): (Config, SocketAddr), start: Start) -> Result<u8, Error> {
    let (listener, address) =
        process::listen(listen).await.map_err(|why| Error::new(Code::Unavailable, why).hint(LISTEN_HINT))?;
    let id = config.id.clone();
    let parts = [
        ("address", address.to_string()),
        ("lake", config.lake.to_string()),
        ("shards", config.shards.join(" ")),
        ("memory for publishes", format_bytes(config.limits.pending_bytes_max as u64)),
    ];
    let ready = move || {
        start.tell(&parts);
        serve::print_ready("shard", &id, address);
    };
    trellis_shard::run_and(config, listener, shutdown::signal(), ready).await.map(|()| 0)
}
