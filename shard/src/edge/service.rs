//! The calls of `trellis.v1.Shard`: wire types in, a call of the shard, wire types out.

use std::{pin::Pin, sync::Arc};

use futures::{Stream, StreamExt, stream};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use trellis_proto::{Error, pb};

use super::{receive, watch::watch};
use crate::{shard::Shard, write::Pending};

/// Messages of one fetch that wait for its client. A slow client holds these and one wave.
const FETCH_QUEUE: usize = 4;

/// The gRPC service.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    shard: Arc<Shard>,
    pending: Arc<Pending>,
}

impl Service {
    pub(crate) fn new(shard: Arc<Shard>) -> Self {
        let pending = Pending::new(shard.config.limits.pending_bytes_max);
        Self { shard, pending }
    }
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
        let (ended, end) = oneshot::channel();
        let shard = self.shard.clone();
        let span = tracing::Span::current();
        tokio::spawn(tracing::Instrument::instrument(
            async move {
                tokio::select! {
                    // The client left: nothing more is read for it.
                    () = out.closed() => {}
                    fetched = shard.fetch(request, &out) => if let Err(untaken) = fetched {
                        let _ = ended.send(Status::from(Error::from(untaken)));
                    }
                }
            },
            span,
        ));
        // Without an error at its end the answer would seem whole.
        let end = stream::once(end).filter_map(|status| std::future::ready(status.ok().map(Err)));
        Ok(Response::new(ReceiverStream::new(replies).chain(end).boxed()))
    }

    async fn watch(&self, request: Request<Streaming<pb::WatchRequest>>) -> Reply<Self::WatchStream> {
        let events = watch(self.shard.clone(), request.into_inner()).await?;
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
        Ok(Response::new(receive::publish(&self.shard, &self.pending, request.into_inner()).await?))
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
