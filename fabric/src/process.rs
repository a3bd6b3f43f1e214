//! The shape of every program: one `main` for the head node, the shard and the unit.
//!
//! The steps: read the command line; read and check the whole configuration; start the threads; install telemetry; do the program's own
//! work, which logs the start line once everything is built; end. Telemetry is flushed on every way out: after a signal, an error
//! and a panic. An error goes to the log, and stderr has it as the last line.

use std::{fmt, io, net::SocketAddr, panic::AssertUnwindSafe, process::ExitCode, time::Instant};

use futures::FutureExt as _;
use tokio::net::TcpListener;

use crate::{
    env::{ConfigError, Env, LISTEN, Mode, Presence, Var, cli, resolve},
    probe,
    telemetry::{self, Settings, Telemetry},
};

/// What Rust programs end with after a panic.
const EXIT_PANIC: u8 = 101;
/// A machine without threads or memory for the runtime: the same as for a grid that cannot be reached, because a restart may help.
const EXIT_NO_RUNTIME: u8 = 4;

/// A program of the grid.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// Name of the binary: `head-node`.
    pub name: &'static str,
    /// What it does, for `--help`.
    pub about: &'static str,
    /// Its service name in telemetry: `trellis-head`.
    pub service: &'static str,
    /// Every environment variable that it knows.
    pub vars: &'static [Var],
}

/// Runs a program to its end. Does not return for `--help`, `--version`, `--check` and an invalid configuration: see [`cli`] and
/// [`resolve`]. With `--probe` and `--probe-ready` it only asks the server that runs here, and reads no other part of the
/// configuration.
///
/// `configure` reads and checks the whole environment. `instance` is the name of this process. `work` gets the configuration
/// and a [`Start`]; it ends with an exit code, or with an error, whose exit code `exit_code` knows.
pub fn run<C, E, F>(
    program: Program,
    configure: impl FnOnce(Env) -> Result<C, ConfigError>,
    instance: impl FnOnce(&C) -> &str,
    exit_code: impl FnOnce(&E) -> u8,
    work: impl FnOnce(C, Start) -> F,
) -> ExitCode
where
    E: fmt::Display,
    F: Future<Output = Result<u8, E>>,
{
    let (name, began) = (program.name, Instant::now());
    let mode = cli(name, program.about, program.vars);
    if let Mode::Probe(question) = mode {
        let listen = std::env::var(LISTEN.name).unwrap_or_else(|_| match LISTEN.presence {
            Presence::Default(address) => address.to_owned(),
            Presence::Required | Presence::Optional => String::new(),
        });
        return probe::run(name, &listen, question);
    }
    let config = resolve(name, mode, configure(Env::from_process(program.vars)));
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("{name}: cannot start its threads: {error}");
            return ExitCode::from(EXIT_NO_RUNTIME);
        }
    };
    let (code, last_words) = runtime.block_on(async {
        let settings = Settings::from_process();
        let instance = instance(&config).to_owned();
        let telemetry = Telemetry::init_with(program.service, &instance, &settings);
        let start = Start { program: name, instance, telemetry: settings.endpoints(), began };
        let worked = AssertUnwindSafe(async { work(config, start).await }).catch_unwind().await;
        let ended = match worked {
            Ok(Ok(code)) => (code, None),
            Ok(Err(error)) => (exit_code(&error), Some(error.to_string())),
            // the panic hook has told where
            Err(_) => (EXIT_PANIC, Some("it panicked".to_owned())),
        };
        if let Some(error) = &ended.1 {
            tracing::error!(error, "the process ends");
        }
        telemetry.shutdown().await;
        ended
    });
    // the process does not wait for a thread that still blocks: the drain is over
    runtime.shutdown_background();
    if let Some(error) = last_words {
        eprintln!("{name}: {error}");
    }
    ExitCode::from(code)
}

/// The hint of a server whose address [`listen`] cannot bind.
pub const LISTEN_HINT: &str = "set TRELLIS_LISTEN to a free address; port 0 takes any";

/// Binds the address that a server listens on. Returns it with the port that the system chose.
///
/// # Errors
/// Says which address cannot be bound, and why: it is taken, or not of this machine.
pub async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), String> {
    let bound = async {
        let listener = TcpListener::bind(address).await?;
        let bound = listener.local_addr()?;
        Ok::<_, io::Error>((listener, bound))
    };
    bound.await.map_err(|error| format!("cannot listen on {address}: {error}"))
}

/// Tells the start line.
#[derive(Clone, Debug)]
pub struct Start {
    program: &'static str,
    instance: String,
    telemetry: String,
    /// When the program began.
    began: Instant,
}

impl Start {
    /// Logs one line with everything that the program resolved. `parts` are the program's own, name and value, in the order in which
    /// a reader wants them. Call it when the program is built, before it serves.
    pub fn tell(&self, parts: &[(&str, String)]) {
        tracing::info!("{}", self.line(env!("CARGO_PKG_VERSION"), cores(), parts));
        telemetry::meter("trellis-fabric")
            .f64_gauge("trellis.process.start.duration")
            .with_unit("s")
            .with_description("Time from the program's start until it was built and could serve.")
            .build()
            .record(self.began.elapsed().as_secs_f64(), &[]);
    }

    fn line(&self, version: &str, cores: usize, parts: &[(&str, String)]) -> String {
        let Self { program, instance, telemetry, .. } = self;
        let mut line = format!("{program} {instance} starts: version {version}");
        for (name, value) in parts {
            line.push_str(&format!(", {name} {value}"));
        }
        line.push_str(&format!(", cores {cores}, telemetry {telemetry}"));
        line
    }
}

/// Cores that this process may use.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_line_states_every_part_in_order() {
        let start = Start {
            program: "head-node",
            instance: "head-0".to_owned(),
            telemetry: "http://collector:4317".to_owned(),
            began: Instant::now(),
        };
        let parts = [("address", "127.0.0.1:7400".to_owned()), ("memory", "512MiB".to_owned())];
        assert_eq!(
            start.line("0.1.0", 2, &parts),
            "head-node head-0 starts: version 0.1.0, address 127.0.0.1:7400, memory 512MiB, cores 2, telemetry \
             http://collector:4317"
        );
    }

    #[tokio::test]
    async fn a_port_of_zero_becomes_the_one_that_is_bound_and_a_taken_one_is_an_error() {
        let (listener, address) = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        assert_ne!(address.port(), 0);
        let error = listen(address).await.unwrap_err();
        assert!(error.starts_with(&format!("cannot listen on {address}: ")), "{error}");
        drop(listener);
    }
}
