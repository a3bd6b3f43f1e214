//! Tests that this machine cannot run.

use std::io::Write as _;

/// Counts the test of this thread as skipped. The line is not written by a macro, whose lines the test runner keeps from the output;
/// `tests/run.py` counts it.
pub(crate) fn skipped(why: &str) {
    let test = std::thread::current().name().unwrap_or_default().to_owned();
    let _ = writeln!(std::io::stderr(), "\nskipped: {test}: {why}");
}
