//! `trellis.v1.Head`: questions about datasets, and writes that the head passes on to a dataset's home shard.

use std::{sync::Arc, time::Duration};

use tonic::{Request, Response, Status};
use tracing::Instrument;
use trellis_fabric::channel::PeerChannel;
use trellis_proto::{
    Code, DatasetName, Error, Result, Symbol, TimeRange,
    pb::{self, head_server, shard_client::ShardClient},
    runs::{self, Seen},
};

use crate::{error, head::HeadNode, ledger::Origin, shards::Shard};

/// Longest time for a lease: a commit of a few hundred bytes, which may wait for another commit.
const LEASE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time for a change of a dataset: it may write every file anew, a terabyte at 300 MB a second.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(3_600);

/// The calls of a shard.
type Client = ShardClient<PeerChannel>;

/// The service.
pub(crate) struct Service {
    head: Arc<HeadNode>,
}

impl Service {
    pub(crate) fn new(head: Arc<HeadNode>) -> Self {
        Self { head }
    }

    fn admit(&self) -> Result<()> {
        if self.head.is_draining() { Err(error::draining(self.head.id())) } else { Ok(()) }
    }

    /// The home shard of a dataset, which need not exist yet.
    async fn home(&self, dataset: &str) -> Result<Arc<Shard>> {
        self.admit()?;
        self.head.engine().live_home(&DatasetName::new(dataset)?).await
    }

    /// Has the home shard change a dataset. Before the client gets the answer, the other shards know of the change, and the ledger has a
    /// record of it.
    async fn change<F>(
        &self,
        dataset: &str,
        origin: Origin,
        ask: impl FnOnce(Client) -> F,
        record: impl FnOnce(&pb::DatasetChange, &Seen<'_>) -> pb::RunRecord + Send + 'static,
    ) -> Result<Response<pb::DatasetChange>, Status>
    where
        F: Future<Output = Result<Response<pb::DatasetChange>, Status>> + Send + 'static,
    {
        let (home, head) = (self.home(dataset).await?, self.head.clone());
        let answer = ask(home.client());
        let old = DatasetName::new(dataset)?;
        to_its_end(async move {
            let change = pass(home.answer("change a dataset", CHANGE_TIMEOUT, answer).await)?;
            let record = record(change.get_ref(), &origin.done());
            let (new, version) = (DatasetName::new(&change.get_ref().dataset)?, change.get_ref().version);
            let synced = async {
                if new == old {
                    head.engine().sync_others(&old, version).await;
                } else {
                    // The old name has ended. The home of the new name may be another shard, which has to learn of it.
                    head.engine().sync_others(&old, 0).await;
                    head.engine().sync_all(&new, version).await;
                }
            };
            tokio::join!(synced, head.ledger().record(record));
            Ok(change)
        })
        .await
    }
}

/// A shard's answer as the head's, without the shard's metadata.
fn pass<T>(answer: Result<Response<T>>) -> Result<Response<T>, Status> {
    Ok(Response::new(answer?.into_inner()))
}

/// Goes on with a write even if its client leaves: the other shards and the ledger must learn of it.
async fn to_its_end<T: Send + 'static>(
    write: impl Future<Output = Result<T, Status>> + Send + 'static,
) -> Result<T, Status> {
    let ended = tokio::spawn(write.in_current_span()).await;
    ended.map_err(|_| Error::new(Code::Internal, "the relay of a write failed"))?
}

#[tonic::async_trait]
impl head_server::Head for Service {
    async fn describe(
        &self,
        request: Request<pb::DescribeRequest>,
    ) -> Result<Response<pb::DescribeReply>, Status> {
        self.admit()?;
        let request = request.into_inner();
        let datasets = if request.dataset.is_empty() {
            self.head.engine().datasets().await?.to_vec()
        } else {
            vec![self.head.engine().dataset(&DatasetName::new(&request.dataset)?).await?]
        };
        let datasets = datasets.iter().map(|dataset| dataset.as_ref().into()).collect();
        let heads_version = self.head.members().version();
        Ok(Response::new(pb::DescribeReply { datasets, heads_version }))
    }

    async fn symbols(
        &self,
        request: Request<pb::SymbolsRequest>,
    ) -> Result<Response<pb::SymbolsReply>, Status> {
        self.admit()?;
        let name = DatasetName::new(request.into_inner().dataset)?;
        let dataset = self.head.engine().dataset(&name).await?;
        let symbols = self.head.engine().symbols(&name).await?;
        let symbols = symbols.iter().map(Symbol::to_string).collect();
        Ok(Response::new(pb::SymbolsReply { symbols, version: dataset.version }))
    }

    async fn sessions(
        &self,
        request: Request<pb::SessionsRequest>,
    ) -> Result<Response<pb::SessionsReply>, Status> {
        self.admit()?;
        let request = request.into_inner();
        let name = DatasetName::new(&request.dataset)?;
        let TimeRange { start, end } = TimeRange::new(request.start_ns, request.end_ns)?;
        let sessions_ns = self.head.engine().sessions(&name, start, end).await?;
        Ok(Response::new(pb::SessionsReply { sessions_ns }))
    }

    async fn stats(&self, _: Request<pb::StatsRequest>) -> Result<Response<pb::HeadStats>, Status> {
        Ok(Response::new(self.head.describe_stats()))
    }

    // a head that ends answers, too: the client has to learn where the others are
    async fn heads(&self, request: Request<pb::HeadsRequest>) -> Result<Response<pb::HeadsReply>, Status> {
        Ok(Response::new(self.head.members().reply(request.into_inner().known_version)))
    }

    async fn acquire_lease(
        &self,
        request: Request<pb::AcquireLeaseRequest>,
    ) -> Result<Response<pb::Lease>, Status> {
        let origin = Origin::of(&request);
        let request = request.into_inner();
        let (home, head) = (self.home(&request.dataset).await?, self.head.clone());
        to_its_end(async move {
            let mut client = home.client();
            let acquired = client.acquire_lease(request.clone());
            let granted = pass(home.answer("grant a lease", LEASE_TIMEOUT, acquired).await)?;
            // A lease alone writes no rows, and is not recorded. The end of an ownership is.
            if request.unit.is_empty() {
                head.ledger().record(runs::released(&request, granted.get_ref(), &origin.done())).await;
            }
            Ok(granted)
        })
        .await
    }

    async fn renew_lease(
        &self,
        request: Request<pb::RenewLeaseRequest>,
    ) -> Result<Response<pb::Lease>, Status> {
        let request = request.into_inner();
        let home = self.home(&request.dataset).await?;
        pass(home.answer("renew a lease", LEASE_TIMEOUT, home.client().renew_lease(request)).await)
    }

    async fn release_lease(
        &self,
        request: Request<pb::ReleaseLeaseRequest>,
    ) -> Result<Response<pb::ReleaseLeaseReply>, Status> {
        let request = request.into_inner();
        let home = self.home(&request.dataset).await?;
        pass(home.answer("release a lease", LEASE_TIMEOUT, home.client().release_lease(request)).await)
    }

    async fn alter_dataset(
        &self,
        request: Request<pb::AlterDatasetRequest>,
    ) -> Result<Response<pb::DatasetChange>, Status> {
        let origin = Origin::of(&request);
        let (said, request) = (request.get_ref().clone(), request.into_inner());
        let alter = |mut home: Client| async move { home.alter_dataset(request).await };
        let dataset = said.dataset.clone();
        self.change(&dataset, origin, alter, move |change, seen| runs::altered(&said, change, seen)).await
    }

    async fn drop_dataset(
        &self,
        request: Request<pb::DropDatasetRequest>,
    ) -> Result<Response<pb::DatasetChange>, Status> {
        let origin = Origin::of(&request);
        let (said, request) = (request.get_ref().clone(), request.into_inner());
        let drop = |mut home: Client| async move { home.drop_dataset(request).await };
        let dataset = said.dataset.clone();
        self.change(&dataset, origin, drop, move |change, seen| runs::dropped(&said, change, seen)).await
    }

    async fn rename_dataset(
        &self,
        request: Request<pb::RenameDatasetRequest>,
    ) -> Result<Response<pb::DatasetChange>, Status> {
        let origin = Origin::of(&request);
        let (said, request) = (request.get_ref().clone(), request.into_inner());
        let rename = |mut home: Client| async move { home.rename_dataset(request).await };
        let dataset = said.dataset.clone();
        self.change(&dataset, origin, rename, move |change, seen| runs::renamed(&said, change, seen)).await
    }

    async fn record_runs(
        &self,
        request: Request<pb::RecordRunsRequest>,
    ) -> Result<Response<pb::RecordRunsReply>, Status> {
        self.admit()?;
        Ok(Response::new(self.head.ledger().append(request.into_inner().runs).await?))
    }
}
