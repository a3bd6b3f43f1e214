//! What goes with every call: `traceparent`, and the unit in whose name it is made.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use http::{HeaderValue, Request, Response};
use tonic::body::Body;
use tower::Service;

use crate::{
    rpc::{self, Kind, UNIT},
    telemetry,
};

/// A channel that adds trace context and unit to every call, and a client span while traces are exported.
#[derive(Clone, Debug)]
pub struct Traced<S> {
    inner: S,
    unit: Option<HeaderValue>,
}

impl<S> Traced<S> {
    /// Wraps `inner`. A unit that cannot be a header value (it is not a valid unit name either) is left out.
    pub fn new(inner: S, unit: Option<&str>) -> Self {
        Self { inner, unit: unit.and_then(|unit| HeaderValue::from_str(unit).ok()) }
    }
}

impl<S> Service<Request<Body>> for Traced<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Unpin,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Call<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        if let Some(unit) = &self.unit
            && !request.headers().contains_key(UNIT)
        {
            request.headers_mut().insert(UNIT, unit.clone());
        }
        if !telemetry::exporting() {
            return Call { inner: self.inner.call(request), span: None };
        }
        let span = rpc::span(Kind::Client, request.uri().path(), request.headers());
        telemetry::write_context(&span, request.headers_mut());
        let inner = span.in_scope(|| self.inner.call(request));
        Call { inner, span: Some(span) }
    }
}

/// One call through [`Traced`]. Dropping it cancels the call.
#[derive(Debug)]
pub struct Call<F> {
    inner: F,
    /// `None` while nothing is exported, and once the response is there: then its body holds the span.
    span: Option<tracing::Span>,
}

impl<F, E> Future for Call<F>
where
    F: Future<Output = Result<Response<Body>, E>> + Unpin,
{
    type Output = Result<Response<Body>, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let Some(span) = &this.span else { return Pin::new(&mut this.inner).poll(cx) };
        let polled = span.in_scope(|| Pin::new(&mut this.inner).poll(cx));
        match std::task::ready!(polled) {
            Ok(response) => {
                let span = this.span.take().unwrap_or_else(tracing::Span::none);
                Poll::Ready(Ok(rpc::observe(response, span)))
            }
            Err(error) => {
                rpc::record(span, tonic::Code::Unavailable);
                Poll::Ready(Err(error))
            }
        }
    }
}
