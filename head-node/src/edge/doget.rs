//! `DoGet`: from a ticket to a streamed answer, by an HTTP body of our own.
//!
//! tonic's server streaming would encode each message with prost into its own buffer: one copy of the body more than
//! framing makes, and no buffer could be shared. So this path answers HTTP/2 requests itself, inside tonic's server,
//! with bytes that are gRPC messages already. All other methods of Flight go through the generated service.
//!
//! Before the response everything is read that the first message needs: until then an error is a response of its own;
//! after that it is in the trailers, so that no client takes a part of an answer for the whole. What is cached is read
//! without waiting anywhere. A message is framed when it is its unit's turn, and the turn lasts until the message is
//! written to the socket: a unit that floods the head waits here, not in the run queue of its threads before everybody
//! else.
//!
//! As long as few answers wait for their readers, the first message is framed with the response, and leaves with it, and
//! each further one when hyper asks for it, which is while the one before waits for the reader's window. Otherwise a message
//! is framed when the reader has room for it, so that a slow reader holds at most one, and nothing of a short answer.

mod pump;
mod request;

use std::{
    pin::{Pin, pin},
    sync::Arc,
    time::Instant,
};

use futures::stream;
use http::{HeaderValue, Response, header::CONTENT_TYPE};
use http_body::Frame;
use http_body_util::StreamBody;
use tonic::{Status, body::Body};
use tracing::{Instrument, Span, field::Empty};
use trellis_fabric::telemetry;
use trellis_proto::{Code, Error, Result, SeriesQuery};

use self::pump::{Pump, Sent};
use crate::{
    engine::WaitQueue,
    error,
    head::HeadNode,
    limits::OpenRequest,
    stats::{Answer, DatasetStats, Outcome},
};

/// How often a request is planned before its reader is told that the dataset keeps changing.
const PLANS_MAX: u32 = 4;

/// Path of the method.
pub(crate) const PATH: &str = "/arrow.flight.protocol.FlightService/DoGet";

/// Answers one request.
pub(crate) async fn serve(head: Arc<HeadNode>, request: http::Request<Body>) -> Response<Body> {
    let mut account = Account::open(head.clone());
    let span = account.span.clone();
    let pump = match begin(head, request, &mut account).instrument(span).await {
        Ok(pump) => pump,
        Err(error) => {
            account.outcome = Outcome::Failed(error.code());
            return error::response(&error);
        }
    };
    let pieces = stream::unfold((pump, account), |(mut pump, mut account)| async {
        let span = account.span.clone();
        let frame = match pump.next(&mut account).instrument(span).await? {
            Sent::Data(bytes) => Frame::data(bytes),
            Sent::End(trailers) => Frame::trailers(trailers),
        };
        Some((Ok::<_, Status>(frame), (pump, account)))
    });
    let mut response = Response::new(Body::new(StreamBody::new(pieces)));
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
    account.request = Some(head.engine().open_request()?);
    let (parts, body) = request.into_parts();
    let unit = request::unit(&parts.headers)?;
    let deadline = request::timeout(&parts.headers)?.map(|timeout| account.started + timeout);
    // of no use while the answer waits
    drop(parts);
    let query = request::query(body).await?;
    // pinned here: passed by value, it would have room in each future that it goes through
    let asked = pin!(async {
        let mut planned = 1;
        loop {
            match planned_once(&head, &query, &unit, deadline, account, planned > 1).await {
                // a dataset's spec has changed under the plan: before anything is sent, another plan is as good
                Err(error) if error.code() == Code::StaleSchema && planned < PLANS_MAX => planned += 1,
                other => return other,
            }
        }
    });
    within(deadline, asked).await
}

async fn planned_once(
    head: &Arc<HeadNode>,
    query: &SeriesQuery,
    unit: &Arc<str>,
    deadline: Option<Instant>,
    account: &mut Account,
    again: bool,
) -> Result<Box<Pump>> {
    let mut dataset = head.engine().dataset(&query.dataset).await?;
    let mut behind = Vec::new();
    if again || query.as_of.is_some_and(|as_of| as_of > dataset.known_through) {
        (dataset, behind) = head.engine().caught_up(&query.dataset).await?;
    }
    account.dataset = Some(head.stats().dataset(&query.dataset));
    let plan = head.plan(&dataset, query).await?;
    let asked = (dataset, behind.into());
    let mut pump = Box::new(Pump::new(head.clone(), asked, query.clone(), plan, unit.clone(), deadline));
    pump.begin(account).await?;
    Ok(pump)
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

/// What a request takes of the head's memory, and what its answer adds to the head's counters, its metrics and its span: when it is
/// closed, or when it is dropped, however it ended.
struct Account {
    head: Arc<HeadNode>,
    request: Option<OpenRequest>,
    closed: bool,
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
        Self {
            head,
            request: None,
            closed: false,
            dataset: None,
            started,
            answer,
            outcome: Outcome::Left,
            span,
        }
    }

    /// Waits for a turn in one of the head's queues.
    async fn queue<F: Future>(&mut self, queue: WaitQueue, turn: Pin<&mut F>) -> F::Output {
        let (turn, waited) = self.head.engine().waits().of(queue, turn).await;
        self.answer.queued += waited;
        turn
    }

    /// Adds it up, once: before its last byte leaves, so that whoever has read an answer finds it counted.
    fn close(&mut self) {
        if std::mem::replace(&mut self.closed, true) {
            return;
        }
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

impl Drop for Account {
    fn drop(&mut self) {
        self.close();
    }
}
