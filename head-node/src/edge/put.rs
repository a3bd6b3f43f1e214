//! `DoPut`: a publish, passed on to the dataset's home shard as it arrives.
//!
//! The head collects nothing: it takes a message from the publisher when the shard has room for it. The difficult case is a publisher
//! that breaks off. The end of the stream means "this is all of it", and gRPC makes it easy to take a break for an end: tonic's server
//! hands a request stream that was *cancelled* to its handler as one that ended. On the side of the publisher [`Watched`] tells the two
//! apart. On the side of the shard a publish is whole only with its [`PublishEnd`](pb::PublishEnd), which a broken publish never gets.
//! The call to the shard is made by a task of its own, because the handler is dropped when its client leaves, and the head needs the
//! shard's answer to tell the other shards.
//!
//! The head passes the shard's acknowledgement or error on to the client. An acknowledgement means that the rows are durable. Before it
//! passes one on, the head tells the other shards, so that a later read from any shard sees the rows, and records the publish in the
//! ledger.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use arrow_flight::{FlightData, PutResult};
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use http_body::{Frame, SizeHint};
use prost::Message;
use tokio::sync::oneshot;
use tonic::{Request, Status, Streaming, body::Body};
use tracing::Instrument;
use trellis_fabric::channel::UNIT;
use trellis_proto::{
    Code, DatasetName, Error, Result, Side,
    pb::{self, publish_message},
    runs,
};

use crate::{error, head::HeadNode, ledger::Origin, shards::Shard};

/// Path of the method.
pub(crate) const PATH: &str = "/arrow.flight.protocol.FlightService/DoPut";

/// Longest time of a publish on its way to the shard and through its commit: the largest import takes 9 minutes at the least speed that
/// clients count on, and its commit may wait for a change that writes every file of the dataset anew.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// A publisher that has sent nothing for this long has hung. Until then the rows that it has sent take memory on the shard.
const PUBLISHER_SILENCE_MAX: Duration = Duration::from_secs(60);

/// Relays one publish whose body has been [`watched`]; returns the shard's acknowledgement.
pub(crate) async fn relay(
    head: &Arc<HeadNode>,
    request: Request<Streaming<FlightData>>,
) -> Result<PutResult> {
    if head.is_draining() {
        return Err(error::draining(head.id()));
    }
    let origin = Origin::of(&request);
    let (metadata, extensions, mut messages) = request.into_parts();
    let ending =
        extensions.get::<Ending>().cloned().ok_or_else(|| Error::new(Code::Internal, "unwatched publish"))?;
    let first = match next(&mut messages).await {
        Ok(Some(first)) => first,
        Ok(None) => return Err(invalid("the publish is empty")),
        Err(status) => return Err(Error::from_status(&status)),
    };
    let mut header = header(&first)?;
    if let Some(unit) = metadata.get(UNIT.as_str()) {
        check_unit(&header, unit.to_str().unwrap_or_default())?;
    }
    let dataset = DatasetName::new(&header.dataset)?;
    let home = head.engine().live_home(&dataset).await?;
    let (broken, broke) = oneshot::channel();
    // The shard does not use the publisher's record. The head's record does not use the dataset's spec.
    let record = header.record.take();
    let said = pb::PublishHeader { record, spec: None, ..header.clone() };
    let messages = outgoing(header, first, messages, ending, broken);
    let relayed = publish(head.clone(), dataset, (said, origin), home, messages, broke).in_current_span();
    let ack = tokio::spawn(relayed)
        .await
        .map_err(|_| Error::new(Code::Internal, "the relay of a publish failed"))??;
    Ok(PutResult { app_metadata: ack.encode_to_vec().into() })
}

async fn publish(
    head: Arc<HeadNode>,
    dataset: DatasetName,
    (header, origin): (pb::PublishHeader, Origin),
    home: Arc<Shard>,
    messages: impl Stream<Item = pb::PublishMessage> + Send + 'static,
    mut broke: oneshot::Receiver<Status>,
) -> Result<pb::PublishAck> {
    let mut shard = home.fetch_client(0);
    match home.answer("commit a publish", PUBLISH_TIMEOUT, shard.publish(messages)).await {
        Ok(ack) => {
            let ack = ack.into_inner();
            let record = runs::published(&header, &ack, &origin.done());
            let synced = head.engine().sync_others(&dataset, ack.version);
            let (_, recorded) = tokio::join!(synced, head.ledger().record(record));
            Ok(pb::PublishAck { recorded, ..ack })
        }
        // the error that broke the publish, rather than the shard's error about the break
        Err(error) => Err(broke.try_recv().map_or(error, |status| Error::from_status(&status))),
    }
}

fn invalid(why: impl Into<String>) -> Error {
    Error::new(Code::InvalidRequest, why)
}

fn header(first: &FlightData) -> Result<pb::PublishHeader> {
    const HINT: &str = "the descriptor's command is a trellis.v1.PublishHeader";
    let descriptor = first.flight_descriptor.as_ref();
    let command = descriptor.map(|descriptor| descriptor.cmd.as_ref()).filter(|command| !command.is_empty());
    let command = command.ok_or_else(|| invalid("the first message has no command").hint(HINT))?;
    pb::PublishHeader::decode(command)
        .map_err(|error| invalid(format!("the command cannot be read: {error}")).hint(HINT))
}

/// Checks that the caller is the unit of the header. Imports name no unit.
fn check_unit(header: &pb::PublishHeader, caller: &str) -> Result<()> {
    if header.unit.is_empty() || header.unit == caller {
        return Ok(());
    }
    let message = format!("{caller} publishes in the name of {}", header.unit);
    Err(Error::new(Code::PermissionDenied, message).dataset(&header.dataset))
}

/// The messages that are left to pass on to the shard.
enum Remaining {
    Messages { messages: Streaming<FlightData>, ending: Ending, broken: oneshot::Sender<Status>, sent: u64 },
    Nothing,
}

/// The messages for the shard. If the publisher's stream breaks, there is no `PublishEnd` among them, and `broken` gets the error.
fn outgoing(
    header: pb::PublishHeader,
    first: FlightData,
    messages: Streaming<FlightData>,
    ending: Ending,
    broken: oneshot::Sender<Status>,
) -> impl Stream<Item = pb::PublishMessage> + Send + 'static {
    let first = ipc(first);
    let sent = u64::from(first.is_some());
    let begin = [Some(publish_message::Message::Header(header)), first].into_iter().flatten();
    let rest = stream::unfold(Remaining::Messages { messages, ending, broken, sent }, |rest| async {
        let Remaining::Messages { mut messages, ending, broken, sent } = rest else { return None };
        let status = loop {
            match next(&mut messages).await {
                Ok(Some(message)) => {
                    if let Some(message) = ipc(message) {
                        return Some((
                            message,
                            Remaining::Messages { messages, ending, broken, sent: sent + 1 },
                        ));
                    }
                }
                Ok(None) if ending.is_well() => {
                    let end = pb::PublishEnd { messages: sent };
                    return Some((publish_message::Message::End(end), Remaining::Nothing));
                }
                Ok(None) => break Status::cancelled("the publisher left"),
                Err(status) => break status,
            }
        };
        let _receiver_left = broken.send(status);
        None
    });
    stream::iter(begin).chain(rest).map(|message| pb::PublishMessage { message: Some(message) })
}

/// The publisher's next message.
async fn next(messages: &mut Streaming<FlightData>) -> Result<Option<FlightData>, Status> {
    tokio::time::timeout(PUBLISHER_SILENCE_MAX, messages.message()).await.unwrap_or_else(|_| {
        let message = format!("the publisher has sent nothing for {PUBLISHER_SILENCE_MAX:?}");
        Err(Error::new(Code::DeadlineExceeded, message).side(Side::Caller).into())
    })
}

/// A Flight message without its Flight parts; `None` if it has no Arrow in it.
fn ipc(message: FlightData) -> Option<publish_message::Message> {
    let FlightData { data_header, data_body, .. } = message;
    (!data_header.is_empty())
        .then(|| publish_message::Message::Ipc(pb::IpcMessage { data_header, data_body }))
}

/// Whether the body of a request has ended, rather than broken off.
#[derive(Debug, Clone, Default)]
struct Ending(Arc<AtomicBool>);

impl Ending {
    fn is_well(&self) -> bool {
        self.0.load(Relaxed)
    }
}

/// Watches the end of this request's body for [`relay`].
pub(crate) fn watched(request: http::Request<Body>) -> http::Request<Body> {
    let (mut parts, body) = request.into_parts();
    let ending = Ending::default();
    parts.extensions.insert(ending.clone());
    http::Request::from_parts(parts, Body::new(Watched { body, ending }))
}

/// A body that records its end.
struct Watched {
    body: Body,
    ending: Ending,
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(None) = polled {
            self.ending.0.store(true, Relaxed);
        }
        polled
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_publishes_in_its_own_name_only() {
        let header = |unit: &str| pb::PublishHeader { unit: unit.into(), ..Default::default() };
        assert!(check_unit(&header("mom"), "mom").is_ok());
        assert!(check_unit(&header(""), "loader").is_ok());
        assert_eq!(check_unit(&header("mom"), "other").unwrap_err().code(), Code::PermissionDenied);
    }

    #[test]
    fn a_publish_without_a_header_is_refused() {
        assert_eq!(header(&FlightData::new()).unwrap_err().code(), Code::InvalidRequest);
    }
}
