//! A channel that adds `traceparent` and the unit's name to every call, counts the bytes of answers for the
//! [`Pool`](super::Pool), and gives transport errors one code.
//!
//! tonic derives the code of a transport error from its innermost cause: a call that races with GOAWAY is `CANCELLED`, a connection
//! that is lost in the middle of an answer is `UNKNOWN` or `INTERNAL`, a client's own timeout is `CANCELLED`. A caller that retries by
//! code would take the loss of a peer for a bug or for its own cancellation. So every error that the peer did not send
//! itself becomes `UNAVAILABLE`, or `DEADLINE_EXCEEDED` for a timeout, with tonic's error as its source.

use std::{
    error::Error as _,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body::{Frame, SizeHint};
use tonic::{Code, Status, body::Body, codegen::StdError};
use tower::Service;

use super::{failure::Reason, load::InFlight};
use crate::{
    rpc::{self, Kind, Observation, UNIT},
    telemetry,
};

/// A channel that adds trace context and unit to every call. Calls are observed while telemetry is exported.
#[derive(Clone, Debug)]
pub struct Traced<S> {
    inner: S,
    unit: Option<HeaderValue>,
    in_flight: Option<Arc<InFlight>>,
}

impl<S> Traced<S> {
    /// Wraps `inner`. Leaves out a unit that cannot be a header value; such a name is no valid unit name either.
    pub fn new(inner: S, unit: Option<&str>) -> Self {
        let unit = unit.and_then(|unit| HeaderValue::from_str(unit).ok());
        Self { inner, unit, in_flight: None }
    }

    /// Counts the bytes of its answers in `in_flight`, until the channel and its answers are dropped.
    pub(super) fn counted(self, in_flight: InFlight) -> Self {
        Self { in_flight: Some(Arc::new(in_flight)), ..self }
    }
}

impl<S> Service<Request<Body>> for Traced<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Error: Into<StdError>,
    S::Future: Unpin,
{
    type Response = Response<Body>;
    type Error = Status;
    type Future = Call<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        self.inner.poll_ready(cx).map_err(lost)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        if let Some(unit) = &self.unit
            && !request.headers().contains_key(UNIT)
        {
            request.headers_mut().insert(UNIT, unit.clone());
        }
        let in_flight = self.in_flight.clone();
        let observation = Observation::begin(Kind::Client, request.uri(), request.headers());
        let Some(observation) = observation else {
            return Call { inner: self.inner.call(request), in_flight, observation: None };
        };
        telemetry::write_context(observation.span(), request.headers_mut());
        let inner = observation.span().in_scope(|| self.inner.call(request));
        Call { inner, in_flight, observation: Some(observation) }
    }
}

/// One call through [`Traced`]. Dropping it cancels the call.
#[derive(Debug)]
pub struct Call<F> {
    inner: F,
    in_flight: Option<Arc<InFlight>>,
    /// `None` while nothing is exported. The answer's body takes it over.
    observation: Option<Observation>,
}

impl<F, E> Future for Call<F>
where
    F: Future<Output = Result<Response<Body>, E>> + Unpin,
    E: Into<StdError>,
{
    type Output = Result<Response<Body>, Status>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let inner = Pin::new(&mut this.inner);
        let polled = match &this.observation {
            Some(observation) => observation.span().in_scope(|| inner.poll(cx)),
            None => inner.poll(cx),
        };
        Poll::Ready(match ready!(polled) {
            Ok(response) => {
                let in_flight = this.in_flight.take();
                let response = response.map(|inner| Body::new(Answer { inner, in_flight }));
                Ok(rpc::observe(response, this.observation.take()))
            }
            Err(error) => {
                let status = lost(error);
                if let Some(observation) = &mut this.observation {
                    observation.end(status.code());
                }
                Err(status)
            }
        })
    }
}

/// The status of a call that failed on the way.
fn lost(error: impl Into<StdError>) -> Status {
    of_transport(Status::from_error(error.into()))
}

/// Gives a transport error its code. Only a status that was made on this side has a source.
fn of_transport(status: Status) -> Status {
    let Some(source) = status.source() else { return status };
    let reason = Reason::of(source);
    let code = match reason {
        Reason::TimedOut if status.code() == Code::Cancelled => Code::DeadlineExceeded,
        _ => Code::Unavailable,
    };
    let message = match code {
        Code::DeadlineExceeded => "no answer before the deadline".to_owned(),
        _ => format!("{reason}: {}", status.message()),
    };
    let mut told = Status::new(code, message);
    told.set_source(Arc::new(status));
    told
}

/// The body of an answer: counts its bytes, and gives transport errors their code.
struct Answer {
    inner: Body,
    in_flight: Option<Arc<InFlight>>,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        if let (Some(in_flight), Poll::Ready(Some(Ok(frame)))) = (&self.in_flight, &polled)
            && let Some(data) = frame.data_ref()
        {
            in_flight.arrived(data.len() as u64);
        }
        polled.map(|frame| frame.map(|result| result.map_err(of_transport)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
