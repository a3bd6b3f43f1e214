//! The head node's process.

use std::process::ExitCode;

use trellis_fabric::{
    alloc,
    env::format_bytes,
    process::{self, LISTEN_HINT, Program, Start},
    serve, shutdown,
};
use trellis_head::{
    Head,
    config::{Process, VARS},
};
use trellis_proto::{Code, Error};

const PROGRAM: Program = Program {
    name: "head-node",
    about: "A Trellis head node: answers reads of time series from its cache and from the shards.",
    service: "trellis-head",
    vars: VARS,
};

fn main() -> ExitCode {
    alloc::bound();
    let exit_code = |error: &Error| error.code().exit_code();
    process::run(PROGRAM, Process::from_env, |process| &process.head.id, exit_code, head_node)
}

async fn head_node(process: Process, start: Start) -> Result<u8, Error> {
    let Process { head, listen } = process;
    let (listener, address) =
        process::listen(listen).await.map_err(|why| Error::new(Code::Unavailable, why).hint(LISTEN_HINT))?;
    let id = head.id.clone();
    let parts = [
        ("address", address.to_string()),
        ("memory", format_bytes(head.cache_bytes)),
        ("shards", head.shards_url.clone()),
        ("state folder", head.state.clone().unwrap_or_else(|| "none".to_owned())),
    ];
    let head = Head::start(head)?;
    start.tell(&parts);
    let ready = head.ready();
    tokio::spawn(async move {
        // a head refuses reads of what it has not found yet
        ready.await;
        serve::print_ready("head", &id, address);
    });
    head.serve(listener, shutdown::signal()).await.map(|()| 0)
}
