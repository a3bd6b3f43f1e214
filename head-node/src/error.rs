//! Errors that more than one room makes, and errors at the gRPC edge: as a whole response, or as the trailers of a response that has begun.

use http::{HeaderMap, HeaderValue, Response};
use tonic::{Status, body::Body};
use trellis_proto::{Code, Error};

/// A response with only the error.
pub(crate) fn response(error: &Error) -> Response<Body> {
    Status::from(error.clone()).into_http()
}

/// The trailers of a response without an error.
pub(crate) fn trailers_ok() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
    trailers
}

/// The trailers of a response that has begun and cannot go on.
pub(crate) fn trailers(error: &Error) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    if Status::from(error.clone()).add_header(&mut trailers).is_err() {
        // HTTP cannot carry the message; the code still says what kind of error it is
        trailers.clear();
        trailers.insert(Status::GRPC_STATUS, HeaderValue::from(error.code().grpc() as i32));
    }
    trailers
}

/// The error of a request that comes while the head is shutting down.
pub(crate) fn draining(head: &str) -> Error {
    Error::new(Code::Unavailable, format!("{head} is shutting down")).hint("ask another head")
}

/// The error of a request whose deadline has passed.
pub(crate) fn deadline() -> Error {
    Error::new(Code::DeadlineExceeded, "the answer was not ready before the request's deadline")
}

/// The error of everybody who waited for a call that has ended without a result.
pub(crate) fn lost(what: &str) -> Error {
    Error::new(
        Code::Internal,
        format!("the question for {what} ended without a result, by a bug in the head node"),
    )
}
