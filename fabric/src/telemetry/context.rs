//! W3C trace context, in and out. While nothing is exported it costs one relaxed load.

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::{
    Context,
    propagation::{Extractor, Injector, TextMapPropagator},
    trace::TraceContextExt,
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::exporting::exporting;

/// The header of the W3C trace context.
const TRACEPARENT: &str = "traceparent";

/// The caller's context. It is empty if the headers have none, it is malformed, or nothing is exported.
pub(crate) fn parent_of(headers: &HeaderMap) -> Context {
    if !exporting() || !headers.contains_key(TRACEPARENT) {
        return Context::new();
    }
    read_context(headers)
}

fn read_context(headers: &HeaderMap) -> Context {
    TraceContextPropagator::new().extract_with_context(&Context::new(), &Headers(headers))
}

/// The id of the current span's trace: 32 hex digits, or empty while nothing is exported and outside of a span.
pub fn trace_id() -> String {
    if !exporting() {
        return String::new();
    }
    let context = tracing::Span::current().context();
    let span = context.span().span_context().clone();
    if span.is_valid() { span.trace_id().to_string() } else { String::new() }
}

/// Makes `span` a child of `parent`, if `parent` has a span.
pub(crate) fn adopt(span: &tracing::Span, parent: Context) {
    if parent.has_active_span() {
        // fails only if no exporter takes this span; then there is nothing to link
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
        // an empty tracestate carries nothing
        if value.is_empty() {
            return;
        }
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(key.as_bytes()), HeaderValue::from_str(&value))
        {
            self.0.insert(name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_is_read_and_a_malformed_one_is_none() {
        let parent = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(TRACEPARENT, HeaderValue::from_str(text).unwrap());
            read_context(&headers)
        };
        let context = parent(&format!("00-{}-{}-01", "ab".repeat(16), "cd".repeat(8)));
        let span = context.span().span_context().clone();
        assert_eq!(span.trace_id().to_string(), "ab".repeat(16));
        assert_eq!(span.span_id().to_string(), "cd".repeat(8));
        assert!(!parent("nonsense").has_active_span());
    }
}
