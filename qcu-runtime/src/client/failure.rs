//! Failures of a call as the grid's errors.

use tonic::Status;
use trellis_fabric::channel::Unreachable;
use trellis_proto::{Code, Error};

pub(crate) fn unreachable(error: &Unreachable) -> Error {
    Error::new(Code::Unavailable, error.to_string()).hint("is the grid running, and is this its address?")
}

/// The error of a status. If the transport made the status (nobody answered, or the connection broke), the error says so,
/// whatever code the transport chose.
pub(crate) fn of_status(status: &Status) -> Error {
    match std::error::Error::source(status) {
        Some(cause) if status.details().is_empty() => of_transport(cause),
        _ => Error::from_status(status),
    }
}

/// The error of a failed transport.
pub(crate) fn of_transport(error: &(dyn std::error::Error + 'static)) -> Error {
    let mut text = error.to_string();
    let mut next = Some(error);
    while let Some(cause) = next {
        // the channel, too, keeps to the deadline that the call states
        if cause.is::<tonic::TimeoutExpired>() {
            return Error::new(Code::DeadlineExceeded, "the head did not answer in time");
        }
        if let Some(io) = cause.downcast_ref::<std::io::Error>() {
            // the words of the operating system; the layers around repeat them in other words
            return Error::new(Code::Unavailable, format!("the connection to the head failed: {io}"));
        }
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = cause.source();
    }
    Error::new(Code::Unavailable, format!("the connection to the head failed: {text}"))
}
