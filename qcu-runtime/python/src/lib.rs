//! The extension module `trellis._trellis`: the grid's Rust under the Python package `trellis`.
//!
//! It is thin: it parses arguments, releases the interpreter, calls the crates that do the work, and returns Arrow or plain values.
//! Docstrings, defaults and conveniences are in the Python files of the package, and only those call this module.
//!
//! | file | subject |
//! | --- | --- |
//! | `runtime` | the Tokio runtime of the connections; waiting without the interpreter; Ctrl-C; fork; the end |
//! | `client` | reads and questions |
//! | `run` | a strategy's run in this process: inputs, checks, publish |
//! | `import` | files into a dataset |
//! | `submit` | bundles of strategies, packed and put into S3 |
//! | `doctor` | the check of a lake's files |
//! | `embedded` | a grid inside this process |
//! | `arrow` | `Rows`: tables for Python by the Arrow C interface, and as sealed memfds |
//! | `columns` | rows from Python's own values |
//! | `wide` | rows as a matrix; pure |
//! | `cells` | rows as text, CSV, JSON; pure |
//! | `dict` | replies as dicts |
//! | `error` | the grid's errors as exceptions |

mod arrow;
mod cells;
mod client;
mod columns;
mod dict;
mod doctor;
mod embedded;
mod error;
mod import;
mod run;
mod runtime;
mod submit;
mod wide;

use pyo3::prelude::*;
use trellis_fabric::alloc::MiMalloc;

use crate::error::OrRaise;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Nanoseconds of a time in ISO 8601, also beyond 64 bits. `name` is the name of the argument, for the error.
#[pyfunction]
fn parse_time(py: Python<'_>, text: &str, name: &str) -> PyResult<i128> {
    trellis_proto::time::parse_ns(text).map_err(|e| named(&e, name)).or_raise(py)
}

/// Refuses an integer that is probably meant in another unit than nanoseconds.
#[pyfunction]
fn check_integer_time(py: Python<'_>, number: i128, name: &str) -> PyResult<()> {
    trellis_proto::time::check_integer(number).map_err(|e| named(&e, name)).or_raise(py)
}

fn named(error: &trellis_proto::Error, name: &str) -> trellis_proto::Error {
    trellis_proto::Error::new(error.code(), format!("{name}: {}", error.message())).hint(error.hint_text())
}

/// A time in ISO 8601, UTC: a date if it is a midnight, otherwise a date-time.
#[pyfunction]
fn format_time(ns: i64) -> String {
    trellis_proto::time::format_time(ns)
}

/// Nanoseconds of "20m", "1.5h", "64d".
#[pyfunction]
fn parse_duration(py: Python<'_>, text: &str) -> PyResult<i64> {
    trellis_proto::time::parse_duration(text).or_raise(py)
}

/// Whether the day of that midnight is a session of the calendar.
#[pyfunction]
fn is_session(py: Python<'_>, calendar: &str, midnight_ns: i64) -> PyResult<bool> {
    let calendar = trellis_qcu::unit::Calendar::named(calendar).or_raise(py)?;
    Ok(trellis_qcu::unit::date_of(midnight_ns).is_some_and(|date| calendar.is_session(date)))
}

#[pymodule(gil_used = false)]
mod _trellis {
    use pyo3::prelude::*;

    #[pymodule_export]
    use super::{
        arrow::{Rows, map_table, rows_of_ipc, table_to_fd},
        check_integer_time,
        client::Client,
        columns::make_rows,
        doctor::check_lake,
        embedded::Embedded,
        error::error_codes,
        format_time,
        import::import_files,
        is_session, parse_duration, parse_time,
        run::{
            Prefetched, check_manifest, check_output, end_ownership, prefetch, publish_run, record_failed,
        },
        runtime::shutdown,
        submit::{pack_bundle, put_object},
    };

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
