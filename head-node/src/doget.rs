//! `DoGet`: from a ticket to a streamed answer, by an HTTP body of our own.
//!
//! tonic's server streaming would encode each message with prost into its own buffer: one copy of the body more than
//! framing makes, and no buffer could be shared. So this path answers HTTP/2 requests itself, inside tonic's server,
//! with bytes that are gRPC messages already. All other methods of Flight go through the generated service.
//!
//! Two ways through. A *hit* that fits one message is answered in one go: nothing is awaited between the plan and the
//! last byte, and schema, dictionary, rows and receipt leave as one piece. Anything else is *pumped*: a message is
//! framed when the transport asks for one, and waits for its unit's turn. hyper asks for the next one while the first still
//! waits for the reader's window, so a slow reader holds two messages and the chunks of a step. Until the first message is
//! framed an error is a response of its own; after that it is in the trailers, so that no client takes a part of an answer
//! for the whole.

mod pump;
mod request;

use std::{
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use bytes::Bytes;
use futures::stream;
use http::{HeaderValue, Response, header::CONTENT_TYPE};
use http_body::Frame;
use http_body_util::StreamBody;
use tonic::{Status, body::Body};
use tracing::{Instrument, Span, field::Empty};
use trellis_fabric::telemetry;
use trellis_proto::{Error, Result};

use self::pump::{Pump, Sent};
use crate::{
    error,
    head::HeadNode,
    stats::{Answer, DatasetStats, Outcome},
};

/// Path of the method.
pub(crate) const PATH: &str = "/arrow.flight.protocol.FlightService/DoGet";

/// Answers one request.
pub(crate) async fn serve(head: Arc<HeadNode>, request: http::Request<Body>) -> Response<Body> {
    let mut account = Account::open(head.clone());
    let span = account.span.clone();
    let mut pump = match begin(head, request, &mut account).instrument(span).await {
        Ok(pump) => pump,
        Err(error) => {
            account.outcome = Outcome::Failed(error.code());
            return error::response(&error);
        }
    };
    let mut response = Response::new(match pump.whole() {
        Some(bytes) => Body::new(Whole { data: Some(bytes), ended: false }),
        None => {
            Body::new(StreamBody::new(stream::unfold((pump, account), |(mut pump, mut account)| async {
                let span = account.span.clone();
                let frame = match pump.next(&mut account).instrument(span).await? {
                    Sent::Data(bytes) => Frame::data(bytes),
                    Sent::End(trailers) => Frame::trailers(trailers),
                };
                Some((Ok::<_, Status>(frame), (pump, account)))
            })))
        }
    });
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// Everything up to the first message.
async fn begin(
    head: Arc<HeadNode>,
    request: http::Request<Body>,
    account: &mut Account,
) -> Result<Box<Pump>> {
    if head.is_draining() {
        return Err(error::draining(head.id()));
    }
    let (parts, body) = request.into_parts();
    let unit = request::unit(&parts.headers)?;
    let deadline = request::timeout(&parts.headers)?.map(|timeout| account.started + timeout);
    let query = request::query(body).await?;
    // pinned here: passed by value, it would have room in each future that it goes through
    let asked = pin!(async {
        let mut dataset = head.engine().dataset(&query.dataset).await?;
        let mut behind = Vec::new();
        if query.as_of.is_some_and(|as_of| as_of > dataset.known_through) {
            (dataset, behind) = head.engine().caught_up(&query.dataset).await?;
        }
        account.dataset = Some(head.stats().dataset(&query.dataset));
        let plan = head.plan(&dataset, &query).await?;
        let mut pump =
            Box::new(Pump::new(head.clone(), (dataset, behind.into()), query, plan, unit, deadline));
        if !pump.hit(account)? {
            pump.first(account).await?;
        }
        Ok(pump)
    });
    within(deadline, asked).await
}

/// `future`, or [`error::deadline`] if it takes too long.
async fn within<T, F>(deadline: Option<Instant>, future: Pin<&mut F>) -> Result<T>
where
    F: Future<Output = Result<T, Error>>,
{
    match deadline {
        None => future.await,
        Some(at) => {
            tokio::time::timeout_at(at.into(), future).await.unwrap_or_else(|_| Err(error::deadline()))
        }
    }
}

/// What an answer adds to the head's counters, its metrics and its span; added when dropped, however it ended.
struct Account {
    head: Arc<HeadNode>,
    dataset: Option<Arc<DatasetStats>>,
    started: Instant,
    answer: Answer,
    outcome: Outcome,
    span: Span,
}

impl Account {
    fn open(head: Arc<HeadNode>) -> Self {
        let span = if telemetry::exporting() {
            tracing::info_span!(
                target: "trellis::read",
                "read",
                trellis.dataset = Empty,
                trellis.rows = Empty,
                trellis.bytes = Empty,
                trellis.chunks.hit = Empty,
                trellis.chunks.joined = Empty,
                trellis.chunks.fetched = Empty,
                trellis.outcome = Empty,
            )
        } else {
            Span::none()
        };
        let (answer, started) = (Answer::default(), Instant::now());
        Self { head, dataset: None, started, answer, outcome: Outcome::Left, span }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let took = self.started.elapsed();
        let Self { answer, span, .. } = self;
        self.head.stats().add(self.dataset.as_deref(), answer, self.outcome, took);
        self.head.metrics().answered(self.dataset.as_deref(), self.outcome, took);
        if !span.is_disabled() {
            span.record("trellis.rows", answer.rows);
            span.record("trellis.bytes", answer.bytes);
            span.record("trellis.chunks.hit", answer.chunks_hit);
            span.record("trellis.chunks.joined", answer.chunks_joined);
            span.record("trellis.chunks.fetched", answer.chunks_fetched);
            span.record("trellis.outcome", self.outcome.name());
        }
    }
}

/// An answer of one piece.
struct Whole {
    data: Option<Bytes>,
    ended: bool,
}

impl http_body::Body for Whole {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(bytes) = self.data.take() {
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        self.ended = true;
        Poll::Ready(Some(Ok(Frame::trailers(error::trailers_ok()))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}
