//! The program `fleet`.

use std::process::ExitCode;

use clap::Parser as _;
use trellis_fleet::cli::{self, Args};

fn main_with(args: Args) -> u8 {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(cli::main(args)),
        Err(error) => {
            eprintln!("fleet: cannot start its thread: {error}");
            trellis_proto::Code::Unavailable.exit_code()
        }
    }
}

fn main() -> ExitCode {
    // clap ends with 2 by itself
    ExitCode::from(main_with(Args::parse()))
}
