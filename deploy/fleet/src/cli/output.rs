//! Where the program's words go: an answer to stdout, everything else to stderr, and a failure with its exit code.

use std::io::{ErrorKind, Write as _};

use trellis_proto::Code;

/// A failure of the program.
#[derive(Debug)]
pub struct Failure {
    /// Its exit code.
    pub exit: u8,
    /// What is wrong, and what to do; a line each.
    pub lines: Vec<String>,
}

impl Failure {
    pub(super) fn new(exit: u8, line: impl Into<String>) -> Self {
        Self { exit, lines: vec![line.into()] }
    }

    pub(super) fn input(line: impl Into<String>) -> Self {
        Self::new(Code::InvalidRequest.exit_code(), line)
    }
}

/// What clap ends with, too.
pub(super) const EXIT_USAGE: u8 = 2;

/// Writes an answer to stdout. A reader that has left, as `head` does, wants no more of it.
pub(super) fn print(answer: &str) {
    match std::io::stdout().write_all(answer.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            say(&format!("cannot write the answer: {error}"));
        }
        _ => {}
    }
}

/// Writes a line about what goes on to stderr. Nobody need read it.
pub(super) fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "fleet: {line}");
}
