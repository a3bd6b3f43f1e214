//! From the errors of the libraries below to the grid's one error.
//!
//! A message names the file and has the system's own words. Whether a write may be tried again depends on the operating system's
//! error number. The libraries wrap it several layers deep, so it is searched for in the chain of sources.

use std::{error::Error as StdError, io};

use parquet::errors::ParquetError;
use trellis_proto::{Code, Error};

/// A failed read or write of `path`.
pub(crate) fn store_error(doing: &str, path: &str, error: &(dyn StdError + 'static)) -> Error {
    let text = chain_text(error);
    match io_cause(error) {
        Some(cause) if is_full(cause) => Error::new(
            Code::StorageFull,
            format!("{doing} {path}: the storage takes no writes: {cause}"),
        )
        .hint(
            "free space or make the folder writable; the shard goes on serving reads and recovers by itself",
        ),
        _ => Error::new(Code::Unavailable, format!("{doing} {path}: {text}")),
    }
}

/// The file `path` cannot be read back.
pub(crate) fn corrupt(path: &str, why: impl std::fmt::Display) -> Error {
    Error::new(Code::DataCorrupt, format!("{path} cannot be read: {why}")).hint(
        "restore the file, or remove what refers to it with a Delta Lake tool; other data is not affected",
    )
}

/// A failure to read or decode the Parquet file `path`: the store's if an I/O error is at the bottom, else the file's.
pub(crate) fn parquet_error(path: &str, error: &ParquetError) -> Error {
    match io_cause(error) {
        Some(cause) if cause.kind() == io::ErrorKind::NotFound => corrupt(path, "the file is missing"),
        Some(_) => store_error("reading", path, error),
        None => match error {
            ParquetError::General(why) => corrupt(path, why),
            _ => corrupt(path, error),
        },
    }
}

/// A bug: Arrow refused what was built here.
pub(crate) fn internal(doing: &str, error: impl std::fmt::Display) -> Error {
    Error::new(Code::Internal, format!("{doing}: {error}"))
}

/// A background task that did not come back.
pub(crate) fn lost_task(doing: &str, error: tokio::task::JoinError) -> Error {
    Error::new(Code::Internal, format!("{doing} ended early: {error}"))
}

fn io_cause<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a io::Error> {
    let mut next = Some(error);
    let mut found = None;
    // Only the innermost I/O error has the number. No library wraps it in more than eight layers.
    for _ in 0..8 {
        let Some(current) = next else { break };
        if let Some(cause) = current.downcast_ref::<io::Error>() {
            found = Some(cause);
        }
        next = current.source();
    }
    found
}

fn is_full(cause: &io::Error) -> bool {
    matches!(
        cause.kind(),
        io::ErrorKind::StorageFull
            | io::ErrorKind::ReadOnlyFilesystem
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::PermissionDenied
    )
}

fn chain_text(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = cause.source();
    }
    text
}
