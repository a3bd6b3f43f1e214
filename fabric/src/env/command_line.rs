//! The command line of a program: `--help`, `--check`, `--probe`, `--probe-ready` and `--version`. The environment configures the rest.

use std::fmt::Write as _;

use super::{
    problem::ConfigError,
    var::{LISTEN, Presence, Var},
};

/// Exit code for usage and configuration errors.
const EXIT_USAGE: i32 = 2;

/// What a probe asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// Whether the server listens. If it does not, the cluster starts its container again.
    Lives,
    /// Whether it can do its work, too. Others wait for it.
    Ready,
}

/// What the process is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Run.
    Run,
    /// Only check the configuration: see [`resolve`].
    Check,
    /// Only ask the server that listens on [`LISTEN`].
    Probe(Question),
}

#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Mode(Mode),
    Help,
    Version,
    Unknown(String),
}

/// Reads the command line of the program `bin`. Does not return for `--help` and `--version` (exit code 0), nor for unknown arguments
/// (exit code 2).
pub fn cli(bin: &str, about: &str, table: &[Var]) -> Mode {
    match asked(listens(table), std::env::args().skip(1)) {
        Asked::Mode(mode) => mode,
        Asked::Help => {
            print!("{}", help(bin, about, table));
            std::process::exit(0)
        }
        Asked::Version => {
            println!("{bin} {}", env!("CARGO_PKG_VERSION"));
            std::process::exit(0)
        }
        Asked::Unknown(argument) => {
            let probe = if listens(table) { ", --probe, --probe-ready" } else { "" };
            eprintln!(
                "{bin}: unknown argument {argument:?}; it takes --help, --check{probe} and --version, and is configured by \
                 environment variables"
            );
            std::process::exit(EXIT_USAGE)
        }
    }
}

/// Returns the configuration if it is valid and the process is to run.
///
/// Otherwise it does not return. Problems go to stderr, one on each line, with exit code 2. A valid configuration under `--check` is
/// told on stdout, with exit code 0.
pub fn resolve<C>(bin: &str, mode: Mode, config: Result<C, ConfigError>) -> C {
    match (config, mode) {
        (Ok(config), Mode::Check) => {
            // it may have files of its own to remove, and exit() drops nothing
            drop(config);
            println!("{bin}: configuration is valid");
            std::process::exit(0)
        }
        (Ok(config), _) => config,
        (Err(error), _) => {
            eprintln!("{bin}: the configuration has {} problem(s):", error.problems().len());
            for problem in error.problems() {
                eprintln!("  {problem}");
            }
            std::process::exit(EXIT_USAGE)
        }
    }
}

/// Whether the program is a server.
fn listens(table: &[Var]) -> bool {
    table.iter().any(|var| var.name == LISTEN.name)
}

fn asked(server: bool, arguments: impl Iterator<Item = String>) -> Asked {
    let mut mode = Mode::Run;
    for argument in arguments {
        match argument.as_str() {
            "--help" | "-h" => return Asked::Help,
            "--version" | "-V" => return Asked::Version,
            "--check" => mode = Mode::Check,
            "--probe" if server => mode = Mode::Probe(Question::Lives),
            "--probe-ready" if server => mode = Mode::Probe(Question::Ready),
            _ => return Asked::Unknown(argument),
        }
    }
    Asked::Mode(mode)
}

fn help(bin: &str, about: &str, table: &[Var]) -> String {
    let width = table.iter().map(|var| var.name.len()).max().unwrap_or(0);
    let (usage, probe) = if listens(table) {
        (
            " | --probe | --probe-ready",
            "  --probe        ask the server that runs here whether it lives, and exit: 0 yes, 1 no\n  --probe-ready  ask it \
             whether it is ready for requests, and exit likewise\n",
        )
    } else {
        ("", "")
    };
    let mut text = format!(
        "{bin}: {about}\n\nUsage: {bin} [--check{usage} | --help | --version]\n\n  \
         --check        validate the configuration and exit: 0 valid, 2 not\n{probe}\nEnvironment:\n"
    );
    for var in table {
        // writing to a String cannot fail
        let _ = write!(text, "  {:width$}  {}", var.name, var.meaning);
        let _ = match var.presence {
            Presence::Required => writeln!(text, " [required]"),
            Presence::Optional => writeln!(text, " [optional]"),
            Presence::Default(default) => writeln!(text, " [default: {default}]"),
        };
    }
    text.push_str(
        "\nTelemetry is pushed by OTLP when OTEL_EXPORTER_OTLP_ENDPOINT is set, and follows the other standard\n\
         OTEL_* variables. Any other TRELLIS_* variable is refused.\n",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(arguments: &[&str]) -> Asked {
        asked(true, arguments.iter().map(|a| (*a).to_owned()))
    }

    #[test]
    fn arguments_are_few() {
        assert_eq!(of(&[]), Asked::Mode(Mode::Run));
        assert_eq!(of(&["--check"]), Asked::Mode(Mode::Check));
        assert_eq!(of(&["--check", "-h"]), Asked::Help);
        assert_eq!(of(&["--version"]), Asked::Version);
        assert_eq!(of(&["serve"]), Asked::Unknown("serve".to_owned()));
        assert_eq!(of(&["--probe"]), Asked::Mode(Mode::Probe(Question::Lives)));
        assert_eq!(of(&["--probe-ready"]), Asked::Mode(Mode::Probe(Question::Ready)));
        let of_a_unit = asked(false, ["--probe".to_owned()].into_iter());
        assert_eq!(of_a_unit, Asked::Unknown("--probe".to_owned()), "a unit has no server to ask");
    }

    #[test]
    fn help_lists_every_variable_with_default_and_meaning() {
        let table = [
            Var::required("TRELLIS_ID", "the name"),
            Var::or("TRELLIS_LISTEN", "127.0.0.1:0", "the address"),
            Var::optional("TRELLIS_X", "an extra"),
        ];
        assert!(!help("qcu", "runs a unit", &table[..1]).contains("--probe"));
        let text = help("shard", "serves chunks", &table);
        assert!(text.contains("[--check | --probe | --probe-ready | --help | --version]"), "{text}");
        for line in [
            "  TRELLIS_ID      the name [required]\n",
            "  TRELLIS_LISTEN  the address [default: 127.0.0.1:0]\n",
            "  TRELLIS_X       an extra [optional]\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }
}
