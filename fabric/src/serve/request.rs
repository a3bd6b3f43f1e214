//! Wraps each request: it has a place in the gate until HTTP/2 has its last byte, it is observed while telemetry is exported,
//! and its panics are caught.
//!
//! A panic in a handler would reset the stream, which looks to the client like a lost connection. Here it becomes `INTERNAL`, and
//! only the server's log has its message.

use std::{
    any::Any,
    convert::Infallible,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::FutureExt as _;
use http::{HeaderMap, Request, Response, Uri};
use http_body::{Frame, SizeHint};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use super::arriving::{Arrivals, Arriving, SMALL_MESSAGE_BYTES_MAX};
use crate::{
    channel::MESSAGE_BYTES_MAX,
    gate::{Gate, Guard},
    rpc::{self, Kind, Observation},
};

/// Services that answer until the end and for which the drain does not wait: probes watch health for ever.
const UNGATED: [&str; 2] = ["/grpc.health.", "/grpc.reflection."];

#[derive(Clone)]
pub(super) struct RequestLayer {
    pub(super) gate: Gate,
    pub(super) arrivals: Arc<Arrivals>,
    pub(super) draining: CancellationToken,
    /// Paths of methods whose answers have no end.
    pub(super) endless: Arc<[String]>,
    /// Paths of methods whose requests may have long messages.
    pub(super) large: Arc<[String]>,
}

impl<S> Layer<S> for RequestLayer {
    type Service = RequestService<S>;

    fn layer(&self, inner: S) -> RequestService<S> {
        RequestService { inner, shared: self.clone() }
    }
}

#[derive(Clone)]
pub(super) struct RequestService<S> {
    inner: S,
    shared: RequestLayer,
}

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

impl<S> Service<Request<Body>> for RequestService<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Answer {
        let is_in = |paths: &[String]| paths.iter().any(|path| path == request.uri().path());
        let endless = is_in(&self.shared.endless);
        let most = if is_in(&self.shared.large) { MESSAGE_BYTES_MAX } else { SMALL_MESSAGE_BYTES_MAX };
        let arrivals = self.shared.arrivals.clone();
        let request = request.map(|body| Body::new(Arriving::new(body, arrivals, most)));
        let path = request.uri().path();
        if UNGATED.iter().any(|prefix| path.starts_with(prefix)) {
            return Box::pin(self.inner.call(request));
        }
        let Ok(guard) = self.shared.gate.enter(path.to_owned()) else {
            return Box::pin(std::future::ready(Ok(draining().into_http())));
        };
        let endless = endless.then(|| self.shared.draining.clone());
        let observation = Observation::begin(Kind::Server, request.uri(), request.headers());
        // shares the request's bytes; only the message after a panic needs the path
        let uri = request.uri().clone();
        let call = AssertUnwindSafe(self.inner.call(request)).catch_unwind();
        let answer = async move {
            let response = match call.await {
                Ok(Ok(response)) => response,
                Ok(Err(infallible)) => match infallible {},
                Err(panic) => panicked(uri.path(), &*panic).into_http(),
            };
            let drain = match endless {
                Some(draining) => Drain::Ends(Box::pin(draining.cancelled_owned())),
                None => Drain::Waits,
            };
            Ok(response.map(|inner| Body::new(Guarded { inner, drain, uri, guard: Some(guard) })))
        };
        match observation {
            None => Box::pin(answer),
            Some(observation) => Box::pin(async move {
                let span = observation.span().clone();
                let observed = tracing::Instrument::instrument(answer, span).await;
                observed.map(|response| rpc::observe(response, Some(observation)))
            }),
        }
    }
}

/// An answer's body inside the gate.
struct Guarded {
    inner: Body,
    drain: Drain,
    uri: Uri,
    /// `None` after a panic, or after the end of an endless answer: no frame follows.
    guard: Option<Guard>,
}

/// What a drain means to an answer.
enum Drain {
    /// The drain waits for it.
    Waits,
    /// It has no end, so the drain ends it with a retryable status.
    Ends(Pin<Box<WaitForCancellationFutureOwned>>),
}

impl Guarded {
    fn end_with(&mut self, status: Status) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.guard = None;
        let mut trailers = HeaderMap::new();
        match status.add_header(&mut trailers) {
            Ok(()) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
            Err(status) => Poll::Ready(Some(Err(status))),
        }
    }
}

impl http_body::Body for Guarded {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.guard.is_none() {
            return Poll::Ready(None);
        }
        if let Drain::Ends(cancelled) = &mut this.drain
            && cancelled.as_mut().poll(cx).is_ready()
        {
            return this.end_with(draining());
        }
        match catch_unwind(AssertUnwindSafe(|| Pin::new(&mut this.inner).poll_frame(cx))) {
            Ok(polled) => polled,
            Err(panic) => {
                let status = panicked(this.uri.path(), &*panic);
                this.end_with(status)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.guard.is_none() || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

fn draining() -> Status {
    Status::unavailable("this server is shutting down; ask another one")
}

fn panicked(path: &str, panic: &(dyn Any + Send)) -> Status {
    let text =
        panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    tracing::error!(method = path, panic = text.unwrap_or("(no text)"), "a request handler panicked");
    Status::internal("the server failed on this request; its log has the reason")
}
