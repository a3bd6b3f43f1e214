//! The bytes of requests that have not arrived whole.
//!
//! tonic reserves the whole length that a message claims, in its first five bytes, and waits for the rest without limit. Here a message
//! is collected until it is whole, in memory that grows with what has arrived, that is counted over all requests, and for a bounded time.
//! A message that arrives in one piece, as nearly all do, passes as it is.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http_body::{Frame, SizeHint};
use tokio::time::Sleep;
use tonic::{Status, body::Body};

use crate::channel::MESSAGE_BYTES_MAX;

/// Most bytes of messages of requests at once, in one server: four of the longest. The handler that gets a message counts what it keeps
/// of it.
pub(super) const ARRIVING_BYTES_MAX: usize = 4 * MESSAGE_BYTES_MAX;

/// How long a message may take from its first byte to its last. The longest one then moves 1 MiB a second.
const MESSAGE_WAIT: Duration = Duration::from_secs(60);

/// Largest message of a request to a method that is not in [`Options::large`](super::Options::large). The longest is a ticket: 4 MiB, and
/// some bytes around it.
pub const SMALL_MESSAGE_BYTES_MAX: usize = (4 << 20) + (64 << 10);

/// Bytes before a message: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;

/// A bound on the messages of all requests.
#[derive(Debug)]
pub(super) struct Arrivals {
    taken: AtomicUsize,
    most: usize,
}

impl Arrivals {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { taken: AtomicUsize::new(0), most })
    }
}

/// The body of a request, message by message.
pub(super) struct Arriving {
    body: Body,
    arrivals: Arc<Arrivals>,
    /// The bytes of this body that [`Arrivals`] counts now.
    counted: usize,
    /// Bytes of its longest message.
    most: usize,
    /// The beginning of a message.
    part: BytesMut,
    /// The wait for the next message ends at this time.
    late: Option<Pin<Box<Sleep>>>,
    /// No message has come yet. Each request has one.
    first: bool,
}

impl Arriving {
    /// Messages of more than `most` bytes are refused as soon as their length is there.
    pub(super) fn new(body: Body, arrivals: Arc<Arrivals>, most: usize) -> Self {
        Self { body, arrivals, counted: 0, most, part: BytesMut::new(), late: None, first: true }
    }

    /// Counts `bytes` instead of those before.
    fn count(&mut self, bytes: usize) -> Result<(), Status> {
        let Self { arrivals, counted, .. } = self;
        if bytes > *counted {
            let more = |taken: usize| Some(taken + bytes - *counted).filter(|all| *all <= arrivals.most);
            if arrivals.taken.fetch_update(Relaxed, Relaxed, more).is_err() {
                let most = arrivals.most;
                return Err(Status::resource_exhausted(format!(
                    "requests of {most} bytes are arriving already; try again in a moment"
                )));
            }
        } else {
            arrivals.taken.fetch_sub(*counted - bytes, Relaxed);
        }
        *counted = bytes;
        Ok(())
    }

    /// What of `data` can go on: the messages that are whole with it.
    fn whole(&mut self, data: Bytes) -> Result<Option<Bytes>, Status> {
        if self.part.is_empty() && passes(&data, self.most)? == data.len() {
            self.count(data.len())?;
            return Ok(Some(data));
        }
        let has = self.part.len() + data.len();
        if has > self.part.capacity() {
            // The length of the message is known with its first five bytes. Until then, and beyond it, the memory doubles.
            let begin = if self.part.is_empty() { &data } else { &self.part[..] };
            let claimed = length(begin).map_or(0, |length| PREFIX_BYTES + length);
            let room = if claimed < has { 2 * has } else { claimed.min(2 * has) };
            // Before the memory is taken.
            self.count(room)?;
            self.part.reserve(room - self.part.len());
        }
        self.part.extend_from_slice(&data);
        let whole = passes(&self.part, self.most)?;
        if whole == self.part.len() {
            // An empty rest would keep the memory of the whole.
            return Ok(Some(std::mem::take(&mut self.part).freeze()));
        }
        Ok((whole > 0).then(|| self.part.split_to(whole).freeze()))
    }
}

/// How many of `bytes` go on: those of the whole messages, the first of which begins with the first byte.
///
/// # Errors
/// A message is longer than `most`.
fn passes(bytes: &[u8], most: usize) -> Result<usize, Status> {
    let mut at = 0;
    while let Some(length) = length(&bytes[at..]) {
        if length > most {
            let text = format!("a message of {length} bytes; this call takes at most {most}");
            return Err(Status::out_of_range(text));
        }
        let end = at + PREFIX_BYTES + length;
        if end > bytes.len() {
            break;
        }
        at = end;
    }
    Ok(at)
}

/// The length that a message claims, if its first bytes are there.
fn length(bytes: &[u8]) -> Option<usize> {
    let &[_, a, b, c, d] = bytes.get(..PREFIX_BYTES)? else { return None };
    Some(u32::from_be_bytes([a, b, c, d]) as usize)
}

impl http_body::Body for Arriving {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        // The handler asks for more, so it has done with the message before.
        this.count(if this.part.is_empty() { 0 } else { this.counted })?;
        loop {
            let Poll::Ready(polled) = Pin::new(&mut this.body).poll_frame(cx) else {
                if this.first || !this.part.is_empty() {
                    let late = this.late.get_or_insert_with(|| Box::pin(tokio::time::sleep(MESSAGE_WAIT)));
                    if late.as_mut().poll(cx).is_ready() {
                        let text = format!(
                            "the request did not arrive in {} s; send it again",
                            MESSAGE_WAIT.as_secs()
                        );
                        return Poll::Ready(Some(Err(Status::deadline_exceeded(text))));
                    }
                }
                return Poll::Pending;
            };
            let frame = match polled {
                Some(Ok(frame)) => frame,
                // The reader of messages tells that this one is not whole.
                None if !this.part.is_empty() => {
                    return Poll::Ready(Some(Ok(Frame::data(this.part.split().freeze()))));
                }
                other => return Poll::Ready(other),
            };
            let data = match frame.into_data() {
                Ok(data) => data,
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            };
            if let Some(whole) = this.whole(data)? {
                (this.late, this.first) = (None, false);
                return Poll::Ready(Some(Ok(Frame::data(whole))));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.part.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        self.arrivals.taken.fetch_sub(self.counted, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures::{StreamExt as _, channel::mpsc};
    use http_body_util::{BodyExt as _, StreamBody};
    use proptest::prelude::*;

    use super::*;

    type Sender = mpsc::UnboundedSender<Result<Frame<Bytes>, Status>>;

    fn arriving(arrivals: &Arc<Arrivals>) -> (Sender, Arriving) {
        let (sender, frames) = mpsc::unbounded();
        (
            sender,
            Arriving::new(Body::new(StreamBody::new(frames.boxed())), arrivals.clone(), MESSAGE_BYTES_MAX),
        )
    }

    fn message(length: u32, sent: usize) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend(length.to_be_bytes());
        bytes.resize(PREFIX_BYTES + sent, 7);
        bytes
    }

    fn send(sender: &Sender, bytes: Vec<u8>) {
        sender.unbounded_send(Ok(Frame::data(bytes.into()))).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_takes_what_has_arrived_of_it_and_not_what_it_claims() {
        let arrivals = Arrivals::new(10_000);
        let mut claims = Vec::new();
        for _ in 0..500 {
            let (sender, mut body) = arriving(&arrivals);
            send(&sender, message(MESSAGE_BYTES_MAX as u32, 0));
            assert!(futures::poll!(body.frame()).is_pending());
            claims.push((sender, body));
        }
        assert!(arrivals.taken.load(Relaxed) <= 10_000);
        // One that sends more than there is room for is refused, and the others go on.
        send(&claims[0].0, vec![7; 10_000]);
        let refused = claims[0].1.frame().await.unwrap().unwrap_err();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        drop(claims);
        assert_eq!(arrivals.taken.load(Relaxed), 0);
    }

    #[tokio::test]
    async fn a_message_that_is_too_long_is_refused_by_its_length_and_nothing_is_reserved() {
        let arrivals = Arrivals::new(10_000);
        for length in [SMALL_MESSAGE_BYTES_MAX as u32 + 1, MESSAGE_BYTES_MAX as u32, u32::MAX] {
            let (sender, frames) = mpsc::unbounded();
            let body = Body::new(StreamBody::new(frames.boxed()));
            let mut body = Arriving::new(body, arrivals.clone(), SMALL_MESSAGE_BYTES_MAX);
            // The message comes in two pieces, and neither piece has its whole length.
            let claim = message(length, 0);
            send(&sender, claim[..3].to_vec());
            assert!(futures::poll!(body.frame()).is_pending());
            send(&sender, claim[3..].to_vec());
            let refused = body.frame().await.unwrap().unwrap_err();
            assert_eq!(refused.code(), tonic::Code::OutOfRange);
            assert!(body.part.capacity() <= 16, "{refused}");
        }
    }

    #[tokio::test]
    async fn a_long_message_counts_its_length_and_not_twice_that() {
        const LENGTH: usize = 9_000;
        let arrivals = Arrivals::new(PREFIX_BYTES + LENGTH);
        let (sender, mut body) = arriving(&arrivals);
        let whole = message(LENGTH as u32, LENGTH);
        for piece in whole.chunks(5_000) {
            send(&sender, piece.to_vec());
        }
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), whole);
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_does_not_arrive_in_time_is_refused_and_a_stream_may_pause_between_messages() {
        let arrivals = Arrivals::new(10_000);
        for sent in [0, 1, 100] {
            let (sender, mut body) = arriving(&arrivals);
            if sent > 0 {
                send(&sender, message(100, sent)[..sent].to_vec());
            }
            let late = body.frame().await.unwrap().unwrap_err();
            assert_eq!(late.code(), tonic::Code::DeadlineExceeded, "{sent}");
        }
        let (sender, mut body) = arriving(&arrivals);
        send(&sender, message(100, 100));
        body.frame().await.unwrap().unwrap();
        assert!(tokio::time::timeout(10 * MESSAGE_WAIT, body.frame()).await.is_err());
        send(&sender, message(3, 3));
        body.frame().await.unwrap().unwrap();
    }

    proptest! {
        #[test]
        fn whatever_its_pieces_a_body_arrives_whole_and_each_piece_ends_with_a_message(
            lengths in prop::collection::vec(0..300_usize, 0..8),
            cuts in prop::collection::vec(1..200_usize, 1..20),
            lost in 0..20_usize,
        ) {
            let mut all: Vec<u8> = lengths.iter().flat_map(|&length| message(length as u32, length)).collect();
            let ends: Vec<usize> = lengths.iter().scan(0, |at, length| { *at += PREFIX_BYTES + length; Some(*at) }).collect();
            all.truncate(all.len().saturating_sub(lost));
            let arrivals = Arrivals::new(1 << 20);
            let (sender, mut body) = arriving(&arrivals);
            let (mut rest, mut cuts) = (all.as_slice(), cuts.iter().cycle());
            while !rest.is_empty() {
                let (piece, after) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
                send(&sender, piece.to_vec());
                rest = after;
            }
            drop(sender);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let mut arrived = Vec::new();
            runtime.block_on(async {
                while let Some(frame) = body.frame().await {
                    arrived.extend_from_slice(&frame.unwrap().into_data().unwrap());
                    assert!(ends.contains(&arrived.len()) || arrived.len() == all.len());
                }
            });
            prop_assert_eq!(&arrived, &all);
            drop(body);
            prop_assert_eq!(arrivals.taken.load(Relaxed), 0);
        }
    }
}
