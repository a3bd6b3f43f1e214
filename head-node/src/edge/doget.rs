//! `DoGet`: from a ticket to a streamed answer, by an HTTP body of our own.
//!
//! tonic's server streaming would encode each message with prost into a buffer of its own: one more copy of the body, and no buffer could
//! be shared. So this file answers HTTP/2 requests itself, inside tonic's server, with bytes that are gRPC messages already. All other
//! methods of Flight go through the generated service.
//!
//! Everything that the first message needs is read before the response begins. Up to then an error is a response of its own; after that
//! it is in the trailers, so that no client takes a part of an answer for the whole. A hit is read without any wait. A message is framed
//! in a turn of its unit, and the turn lasts until the message is written to the socket: so a unit that floods the head waits for turns,
//! and does not fill the run queue of the head's threads.
//!
//! While few answers wait for their readers, the first message is framed with the response and leaves with it. Each further message is
//! framed when hyper asks for it, which is while the one before waits for the reader's window. While many answers wait, a message is
//! framed when its reader has room for it. So a slow reader holds at most one message, and of a short answer none.

mod account;
mod pump;
mod request;

use std::{pin::pin, sync::Arc, time::Instant};

use futures::stream;
use http::{HeaderValue, Response, header::CONTENT_TYPE};
use http_body::Frame;
use http_body_util::StreamBody;
use tonic::{Status, body::Body};
use tracing::Instrument;
use trellis_proto::{Code, Result, SeriesQuery};

use self::{
    account::Account,
    pump::{Pump, Sent},
};
use crate::{error, head::HeadNode, stats::Outcome};

/// Most times that the head plans a request while its dataset changes. Then the request fails.
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

/// Reads the request, plans it, and makes the first message.
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
    // the headers need not take memory while the answer waits
    drop(parts);
    let query = request::query(body).await?;
    // Pinned here: passed by value, it would take room in each future that it passes through.
    let asked = pin!(async {
        let mut planned = 1;
        loop {
            match planned_once(&head, &query, &unit, deadline, account, planned > 1).await {
                // The dataset's spec has changed since the plan was made. Nothing is sent yet, so the request is planned again.
                Err(error) if error.code() == Code::StaleSchema && planned < PLANS_MAX => planned += 1,
                other => return other,
            }
        }
    });
    request::within(deadline, asked).await
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
