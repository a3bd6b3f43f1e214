//! W3C trace context, in and out.
//!
//! All of it costs one relaxed load and nothing else while nothing is exported.

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::{
    Context,
    propagation::{Extractor, Injector, TextMapPropagator},
    trace::TraceContextExt,
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::exporting;

/// The header of the W3C trace context.
pub const TRACEPARENT: &str = "traceparent";

/// Writes the current span's `traceparent` (and `tracestate`) into gRPC metadata.
pub fn inject(metadata: &mut tonic::metadata::MetadataMap) {
    if exporting() {
        let mut headers = std::mem::take(metadata).into_headers();
        write_context(&tracing::Span::current(), &mut headers);
        *metadata = tonic::metadata::MetadataMap::from_headers(headers);
    }
}

/// Writes the current span's `traceparent` (and `tracestate`) into HTTP headers.
pub fn inject_headers(headers: &mut HeaderMap) {
    if exporting() {
        write_context(&tracing::Span::current(), headers);
    }
}

/// The caller's context; an empty one if there is none, it is malformed, or nothing is exported.
pub fn parent_of(headers: &HeaderMap) -> Context {
    if !exporting() || !headers.contains_key(TRACEPARENT) {
        return Context::new();
    }
    TraceContextPropagator::new().extract_with_context(&Context::new(), &Headers(headers))
}

/// The current span's `traceparent`, to hand to a process that is not reached by gRPC (by an environment
/// variable, say). `None` while nothing is exported or outside of a span.
pub fn traceparent() -> Option<String> {
    if !exporting() {
        return None;
    }
    let mut headers = HeaderMap::new();
    write_context(&tracing::Span::current(), &mut headers);
    headers.get(TRACEPARENT).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

/// The current span's trace: 32 hex digits, or nothing while nothing is exported.
pub fn trace_id() -> String {
    traceparent().unwrap_or_default().split('-').nth(1).unwrap_or_default().to_owned()
}

/// The counterpart of [`traceparent`]: makes `span` a child of the given one. Does nothing if it is
/// malformed.
pub fn set_parent(span: &tracing::Span, traceparent: &str) {
    if let Ok(value) = HeaderValue::from_str(traceparent) {
        let mut headers = HeaderMap::new();
        headers.insert(TRACEPARENT, value);
        adopt(span, parent_of(&headers));
    }
}

/// Makes `span` a child of `parent`, if that is one.
pub(crate) fn adopt(span: &tracing::Span, parent: Context) {
    if parent.has_active_span() {
        // fails only where no exporter listens to this span: then there is nothing to link
        let _ = span.set_parent(parent);
    }
}

pub(crate) fn write_context(span: &tracing::Span, headers: &mut HeaderMap) {
    TraceContextPropagator::new().inject_context(&span.context(), &mut HeadersMut(headers));
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

struct HeadersMut<'a>(&'a mut HeaderMap);

impl Injector for HeadersMut<'_> {
    fn set(&mut self, key: &str, value: String) {
        // an empty tracestate says nothing
        if value.is_empty() {
            return;
        }
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(key.as_bytes()), HeaderValue::from_str(&value))
        {
            self.0.insert(name, value);
        }
    }
}
