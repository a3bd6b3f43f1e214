//! W3C trace context, in and out, and spans that belong together although none encloses the other. While nothing is exported it costs
//! one relaxed load.

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::{
    Context,
    propagation::{Extractor, Injector, TextMapPropagator},
    trace::{SpanContext, TraceContextExt},
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::sampling::{exporting, traced};

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
    SpanRef::of_current().map(|link| link.0.trace_id().to_string()).unwrap_or_default()
}

/// Names a span, for another one that is caused by it or was served by it. Unlike a handle of the span, it does not keep the span open.
#[derive(Clone, Debug, PartialEq)]
pub struct SpanRef(SpanContext);

impl SpanRef {
    /// The span that encloses the caller. `None` while nothing is exported and outside of a span.
    pub fn of_current() -> Option<Self> {
        if traced() { Self::of(&tracing::Span::current()) } else { None }
    }

    /// This span; `None` if it is disabled.
    pub fn of(span: &tracing::Span) -> Option<Self> {
        let context = span.context();
        let named = context.span().span_context().clone();
        named.is_valid().then_some(Self(named))
    }

    /// Makes `span` a child of the named one. `span` has just been made and has no parent.
    pub fn adopt(&self, span: &tracing::Span) {
        adopt(span, Context::new().with_remote_span_context(self.0.clone()));
    }

    /// Adds to `span` a link to the named one.
    pub fn add_to(&self, span: &tracing::Span) {
        span.add_link(self.0.clone());
    }
}

/// Makes `span` a child of `parent`, if `parent` has a span.
pub(crate) fn adopt(span: &tracing::Span, parent: Context) {
    if parent.has_active_span() {
        // fails only if no exporter takes this span; then there is nothing to link
        let _ = span.set_parent(parent);
    }
}

/// Gives a span another name. To record `otel.name` does nothing in a span whose context was asked for.
pub(crate) fn rename(span: &tracing::Span, name: &'static str) {
    span.context().span().update_name(name);
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
