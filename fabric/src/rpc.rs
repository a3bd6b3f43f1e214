//! One RPC as telemetry sees it, at either end: its span and its duration, from its headers to the last frame of its answer.
//!
//! Names and attributes are those of OpenTelemetry's stable conventions for RPC. The metric of clients has no `server.address`: a unit
//! may call thousands of heads, and the method says which kind of service was called.

use std::{
    pin::Pin,
    sync::OnceLock,
    task::{Context as Polled, Poll},
    time::Instant,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Response, Uri};
use http_body::{Frame, SizeHint};
use opentelemetry::{Context, metrics::Histogram, trace::TraceContextExt as _};
use tonic::{Code, Status, body::Body};
use tracing::{Span, field::Empty};

use crate::telemetry::{self, KeyValue};

/// Metadata with the name of the unit that calls.
pub const UNIT: HeaderName = HeaderName::from_static("trellis-unit");

/// The target of these spans, for filters.
const TARGET: &str = "trellis::rpc";

/// The method of a call that the server does not know. Its name is the client's choice, so it must not be an attribute of a metric.
const OTHER: &str = "_OTHER";

/// The name of such a call's span.
const OTHER_SPAN: &str = "grpc";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Client,
    Server,
}

/// A call that is observed. It ends once: with the code of its answer, or as cancelled when it is dropped.
#[derive(Debug)]
pub(crate) struct Observation {
    kind: Kind,
    /// Its path is `/package.Service/Method`.
    uri: Uri,
    span: Span,
    started: Instant,
    ended: bool,
}

impl Observation {
    /// Begins to observe a call. `None` while nothing is exported. A server's span continues the caller's trace.
    pub(crate) fn begin(kind: Kind, uri: &Uri, headers: &HeaderMap) -> Option<Self> {
        let exporting = telemetry::exporting();
        if !exporting && !telemetry::measuring() {
            return None;
        }
        let span = if exporting { span(kind, method(uri), headers) } else { Span::none() };
        // the clone shares the request's bytes
        Some(Self { kind, uri: uri.clone(), span, started: Instant::now(), ended: false })
    }

    /// The span. It is disabled while no traces are exported.
    pub(crate) fn span(&self) -> &Span {
        &self.span
    }

    /// The call has ended. Only its first end counts.
    pub(crate) fn end(&mut self, code: Code) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let known = !(self.kind == Kind::Server && code == Code::Unimplemented);
        let method = method(&self.uri);
        let failed = is_error(self.kind, code);
        let text = code_text(code);
        let span = &self.span;
        if !span.is_disabled() {
            span.record("rpc.response.status_code", text);
            if failed {
                span.record("otel.status_code", "ERROR");
                span.record("error.type", text);
            }
            // recorded here and nowhere else: a second value would be a second attribute of the same name
            span.record("rpc.method", if known { method } else { OTHER });
            if !known {
                telemetry::rename(span, OTHER_SPAN);
                span.record("rpc.method_original", method);
            }
        }
        if !telemetry::measuring() {
            return;
        }
        let method = if known { method.to_owned() } else { OTHER.to_owned() };
        let mut attributes = vec![
            KeyValue::new("rpc.system.name", "grpc"),
            KeyValue::new("rpc.method", method),
            KeyValue::new("rpc.response.status_code", text),
        ];
        if failed {
            attributes.push(KeyValue::new("error.type", text));
        }
        duration(self.kind).record(self.started.elapsed().as_secs_f64(), &attributes);
    }
}

impl Drop for Observation {
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}

/// `package.Service/Method`.
fn method(uri: &Uri) -> &str {
    uri.path().strip_prefix('/').unwrap_or(uri.path())
}

/// The span of a call; a disabled one if the call is not traced.
fn span(kind: Kind, method: &str, headers: &HeaderMap) -> Span {
    let (kind, caller) = match kind {
        Kind::Client if telemetry::traced() => ("client", None),
        Kind::Client => ("client", Some(Context::new())),
        Kind::Server => ("server", Some(telemetry::parent_of(headers))),
    };
    if caller.as_ref().is_some_and(|caller| !telemetry::has_span(caller.span().span_context())) {
        return Span::none();
    }
    let span = tracing::info_span!(
        target: TARGET,
        "rpc",
        otel.name = method,
        otel.kind = kind,
        otel.status_code = Empty,
        rpc.system.name = "grpc",
        rpc.method = Empty,
        rpc.method_original = Empty,
        rpc.response.status_code = Empty,
        "error.type" = Empty,
        trellis.unit = Empty,
    );
    if let Some(unit) = headers.get(UNIT).and_then(|unit| unit.to_str().ok()) {
        span.record("trellis.unit", unit);
    }
    if let Some(caller) = caller {
        telemetry::adopt(&span, caller);
    }
    span
}

/// The durations of calls at one end. Made at the first call after metrics are exported, because earlier instruments do nothing.
fn duration(kind: Kind) -> &'static Histogram<f64> {
    static CLIENT: OnceLock<Histogram<f64>> = OnceLock::new();
    static SERVER: OnceLock<Histogram<f64>> = OnceLock::new();
    let (instrument, name, about) = match kind {
        Kind::Client => (
            &CLIENT,
            "rpc.client.call.duration",
            "Time of an outgoing call, up to its answer's last message.",
        ),
        Kind::Server => (
            &SERVER,
            "rpc.server.call.duration",
            "Time of an incoming call, up to its answer's last message.",
        ),
    };
    instrument.get_or_init(|| {
        let meter = telemetry::meter("trellis-fabric");
        meter.f64_histogram(name).with_unit("s").with_description(about).build()
    })
}

/// Whether a code is an error. To a client every code but `OK` is; to a server only those that are its own fault.
fn is_error(kind: Kind, code: Code) -> bool {
    match kind {
        Kind::Client => code != Code::Ok,
        Kind::Server => matches!(
            code,
            Code::Unknown
                | Code::DeadlineExceeded
                | Code::Unimplemented
                | Code::Internal
                | Code::Unavailable
                | Code::DataLoss
        ),
    }
}

/// The code's name in gRPC.
fn code_text(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// Keeps `observation` until the answer's last frame.
pub(crate) fn observe(response: Response<Body>, observation: Option<Observation>) -> Response<Body> {
    let Some(mut observation) = observation else { return response };
    if let Some(status) = Status::from_header_map(response.headers()) {
        // the answer has headers only
        observation.end(status.code());
        return response;
    }
    response.map(|inner| Body::new(Observed { inner, observation }))
}

/// An answer's body under observation.
struct Observed {
    inner: Body,
    observation: Observation,
}

impl http_body::Body for Observed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Polled<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let polled = this.observation.span.in_scope(|| Pin::new(&mut this.inner).poll_frame(cx));
        let code = match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                let trailers = frame.trailers_ref();
                trailers.map(|t| Status::from_header_map(t).map_or(Code::Unknown, |status| status.code()))
            }
            Poll::Ready(Some(Err(status))) => Some(status.code()),
            _ => None,
        };
        if let Some(code) = code {
            this.observation.end(code);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_servers_own_faults_are_its_errors() {
        let codes = (0..17).map(Code::from);
        let faults: Vec<&str> =
            codes.clone().filter(|code| is_error(Kind::Server, *code)).map(code_text).collect();
        assert_eq!(
            faults,
            ["UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"]
        );
        assert_eq!(codes.filter(|code| !is_error(Kind::Client, *code)).collect::<Vec<_>>(), [Code::Ok]);
    }

    #[test]
    fn a_method_is_named_with_its_service() {
        assert_eq!(method(&Uri::from_static("/trellis.v1.Shard/Fetch")), "trellis.v1.Shard/Fetch");
        assert_eq!(method(&Uri::from_static("http://s:1/trellis.v1.Shard/Fetch")), "trellis.v1.Shard/Fetch");
    }
}
