//! The span of one RPC, at either end: from its headers to the last frame of its answer.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Response};
use http_body::{Frame, SizeHint};
use tonic::{Code, Status, body::Body};
use tracing::{Span, field::Empty};

/// Metadata with the name of the unit that calls.
pub const UNIT: HeaderName = HeaderName::from_static("trellis-unit");

/// The target of these spans, for filters.
const TARGET: &str = "trellis::rpc";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Client,
    Server,
}

/// A span for the call of `path` (`/package.Service/Method`), named and attributed by OpenTelemetry's RPC
/// conventions.
pub(crate) fn span(kind: Kind, path: &str, headers: &HeaderMap) -> Span {
    let name = path.strip_prefix('/').unwrap_or(path);
    let (service, method) = name.split_once('/').unwrap_or((name, ""));
    let kind = match kind {
        Kind::Client => "client",
        Kind::Server => "server",
    };
    let span = tracing::info_span!(
        target: TARGET,
        "rpc",
        otel.name = name,
        otel.kind = kind,
        otel.status_code = Empty,
        rpc.system = "grpc",
        rpc.service = service,
        rpc.method = method,
        rpc.grpc.status_code = Empty,
        trellis.unit = Empty,
    );
    if let Some(unit) = headers.get(UNIT).and_then(|unit| unit.to_str().ok()) {
        span.record("trellis.unit", unit);
    }
    span
}

/// Records how a call ended.
pub(crate) fn record(span: &Span, code: Code) {
    span.record("rpc.grpc.status_code", code as i32);
    if code != Code::Ok {
        span.record("otel.status_code", "ERROR");
    }
}

/// Keeps `span` until the answer's last frame, and records its status.
pub(crate) fn observe(response: Response<Body>, span: Span) -> Response<Body> {
    // nothing is exported, or a filter disables the span
    if span.is_disabled() {
        return response;
    }
    if let Some(status) = Status::from_header_map(response.headers()) {
        // the answer has headers only
        record(&span, status.code());
        return response;
    }
    response.map(|inner| Body::new(Observed { inner, span, ended: false }))
}

/// An answer's body under its span.
struct Observed {
    inner: Body,
    span: Span,
    ended: bool,
}

impl http_body::Body for Observed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let polled = this.span.in_scope(|| Pin::new(&mut this.inner).poll_frame(cx));
        let code = match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                let trailers = frame.trailers_ref();
                trailers.map(|t| Status::from_header_map(t).map_or(Code::Unknown, |status| status.code()))
            }
            Poll::Ready(Some(Err(status))) => Some(status.code()),
            _ => None,
        };
        if let Some(code) = code {
            this.ended = true;
            record(&this.span, code);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Observed {
    fn drop(&mut self) {
        if !self.ended {
            record(&self.span, Code::Cancelled);
        }
    }
}
