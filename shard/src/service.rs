//! The gRPC edge: wire types in, calls, wire types out. No decisions.

use std::{collections::BTreeMap, pin::Pin, sync::Arc, time::Duration};

use futures::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use trellis_proto::{Code, Error, pb};

use crate::{receive, shard::Shard};

/// Idle time after which a watcher is told that nothing happened.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Messages of one fetch that wait for its client: with the wave behind them, what a slow client holds.
const FETCH_QUEUE: usize = 4;
/// Events of one watcher between the log and the transport.
const WATCH_QUEUE: usize = 16;

/// `trellis.v1.Shard`.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    pub(crate) shard: Arc<Shard>,
}

type Reply<T> = Result<Response<T>, Status>;
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl pb::shard_server::Shard for Service {
    type FetchStream = Answers<pb::FetchReply>;
    type WatchStream = Answers<pb::WatchEvent>;

    async fn describe(&self, request: Request<pb::ShardDescribeRequest>) -> Reply<pb::ShardDescription> {
        Ok(Response::new(self.shard.describe(request.get_ref().ownership_only).await?))
    }

    async fn symbols(&self, request: Request<pb::SymbolsRequest>) -> Reply<pb::SymbolsReply> {
        Ok(Response::new(self.shard.symbols(&request.get_ref().dataset).await?))
    }

    async fn sessions(&self, request: Request<pb::SessionsRequest>) -> Reply<pb::SessionsReply> {
        Ok(Response::new(self.shard.sessions(request.get_ref()).await?))
    }

    async fn fetch(&self, request: Request<pb::FetchRequest>) -> Reply<Self::FetchStream> {
        let request = request.into_inner();
        self.shard.check_fetch(&request)?;
        let (out, replies) = mpsc::channel(FETCH_QUEUE);
        let shard = self.shard.clone();
        let span = tracing::Span::current();
        tokio::spawn(tracing::Instrument::instrument(
            async move {
                tokio::select! {
                    // The client left: what is not read yet never is.
                    () = out.closed() => {}
                    () = shard.fetch(request, &out) => {}
                }
            },
            span,
        ));
        Ok(Response::new(ReceiverStream::new(replies).boxed()))
    }

    async fn watch(&self, request: Request<Streaming<pb::WatchRequest>>) -> Reply<Self::WatchStream> {
        let mut requests = request.into_inner();
        let Some(pb::watch_request::Request::Start(start)) =
            requests.message().await?.and_then(|message| message.request)
        else {
            return Err(Error::new(Code::InvalidRequest, "a watch begins with its start").into());
        };
        let (out, events) = mpsc::channel(WATCH_QUEUE);
        let shard = self.shard.clone();
        // Subscribed before the answer's headers go out: whoever has those misses nothing.
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
            shard.metrics.watchers.add(1, &[]);
            loop {
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
                            acknowledge(applied);
                        }
                        Ok(Some(_)) => {}
                        // It closed its side, or is gone.
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
        Ok(Response::new(ReceiverStream::new(events).boxed()))
    }

    async fn confirm(&self, request: Request<pb::ConfirmRequest>) -> Reply<pb::ConfirmReply> {
        Ok(Response::new(self.shard.confirm(request.get_ref()).await?))
    }

    async fn sync(&self, request: Request<pb::SyncRequest>) -> Reply<pb::SyncReply> {
        Ok(Response::new(self.shard.sync(request.get_ref()).await?))
    }

    async fn acquire_lease(&self, request: Request<pb::AcquireLeaseRequest>) -> Reply<pb::Lease> {
        Ok(Response::new(self.shard.acquire_lease(request.into_inner()).await?))
    }

    async fn renew_lease(&self, request: Request<pb::RenewLeaseRequest>) -> Reply<pb::Lease> {
        Ok(Response::new(self.shard.renew_lease(request.into_inner()).await?))
    }

    async fn release_lease(&self, request: Request<pb::ReleaseLeaseRequest>) -> Reply<pb::ReleaseLeaseReply> {
        self.shard.release_lease(request.into_inner()).await?;
        Ok(Response::new(pb::ReleaseLeaseReply {}))
    }

    async fn publish(&self, request: Request<Streaming<pb::PublishMessage>>) -> Reply<pb::PublishAck> {
        Ok(Response::new(receive::publish(&self.shard, request.into_inner()).await?))
    }

    async fn alter_dataset(&self, request: Request<pb::AlterDatasetRequest>) -> Reply<pb::DatasetChange> {
        Ok(Response::new(self.shard.alter_dataset(request.into_inner()).await?))
    }

    async fn drop_dataset(&self, request: Request<pb::DropDatasetRequest>) -> Reply<pb::DatasetChange> {
        Ok(Response::new(self.shard.drop_dataset(request.into_inner()).await?))
    }

    async fn rename_dataset(&self, request: Request<pb::RenameDatasetRequest>) -> Reply<pb::DatasetChange> {
        Ok(Response::new(self.shard.rename_dataset(request.into_inner()).await?))
    }

    async fn record_runs(&self, request: Request<pb::RecordRunsRequest>) -> Reply<pb::RecordRunsReply> {
        Ok(Response::new(self.shard.record_runs(&request.get_ref().runs).await?))
    }
}

/// Ranges by dataset, with their positions in the request.
pub(crate) fn by_dataset(ranges: Vec<pb::ChunkRange>) -> BTreeMap<String, Vec<(u32, pb::ChunkRange)>> {
    let mut groups: BTreeMap<String, Vec<(u32, pb::ChunkRange)>> = BTreeMap::new();
    for (i, range) in ranges.into_iter().enumerate() {
        groups.entry(range.dataset.clone()).or_default().push((i as u32, range));
    }
    groups
}
