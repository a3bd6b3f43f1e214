//! The stream of one watcher: the changes that it missed, those that come, and a heartbeat when nothing comes.

use std::{sync::Arc, time::Duration};

use tokio::sync::mpsc;
use tonic::{Status, Streaming};
use trellis_proto::{Code, Error, pb};

use crate::shard::Shard;

/// Idle time after which a watcher is told that nothing happened.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Events of one watcher between the log and the transport.
const WATCH_QUEUE: usize = 16;

/// Sends one watcher the changes after its position. The stream ends when the watcher closes its side or does not keep up.
pub(super) async fn watch(
    shard: Arc<Shard>,
    mut requests: Streaming<pb::WatchRequest>,
) -> Result<mpsc::Receiver<Result<pb::WatchEvent, Status>>, Status> {
    let Some(pb::watch_request::Request::Start(start)) =
        requests.message().await?.and_then(|message| message.request)
    else {
        return Err(Error::new(Code::InvalidRequest, "a watch begins with its start").into());
    };
    let (out, events) = mpsc::channel(WATCH_QUEUE);
    // Subscribe before the headers of the answer go out: a watcher that has them misses nothing.
    let mut subscription = shard.subscribe(&start);
    let acknowledge = subscription.acknowledger();
    tokio::spawn(async move {
        let hello = pb::watch_event::Event::Hello(shard.hello(subscription.seq));
        let missed = std::mem::take(&mut subscription.missed);
        let first = std::iter::once(hello)
            .chain(missed.iter().map(|change| pb::watch_event::Event::Change((**change).clone())));
        for event in first {
            if out.send(Ok(pb::WatchEvent { event: Some(event) })).await.is_err() {
                return;
            }
        }
        let mut seq = missed.last().map_or(subscription.seq, |change| change.seq);
        // The watcher's first acknowledgement is answered when it has all changes that have not waited for it.
        let mut answer_at = None;
        shard.metrics.watchers.add(1, &[]);
        loop {
            if answer_at.take_if(|end| seq >= *end).is_some() {
                let event = pb::watch_event::Event::Heartbeat(shard.heartbeat(seq));
                if out.send(Ok(pb::WatchEvent { event: Some(event) })).await.is_err() {
                    break;
                }
            }
            tokio::select! {
                change = subscription.queue.recv() => {
                    let Some(change) = change else {
                        let late = Error::new(Code::Unavailable, "disconnected for not keeping up with the watch log")
                            .hint("connect again, and confirm what is held");
                        let _ = out.send(Err(late.into())).await;
                        break;
                    };
                    seq = change.seq;
                    let event = pb::watch_event::Event::Change((*change).clone());
                    if out.send(Ok(pb::WatchEvent { event: Some(event) })).await.is_err() {
                        break;
                    }
                }
                message = requests.message() => match message {
                    Ok(Some(pb::WatchRequest { request: Some(pb::watch_request::Request::Applied(applied)) })) => {
                        answer_at = acknowledge(applied).or(answer_at);
                    }
                    Ok(Some(_)) => {}
                    // The watcher closed its side, or is gone.
                    Ok(None) | Err(_) => break,
                },
                () = tokio::time::sleep(HEARTBEAT) => {
                    let event = pb::watch_event::Event::Heartbeat(shard.heartbeat(seq));
                    if out.send(Ok(pb::WatchEvent { event: Some(event) })).await.is_err() {
                        break;
                    }
                }
                () = out.closed() => break,
            }
        }
        shard.metrics.watchers.add(-1, &[]);
    });
    Ok(events)
}
