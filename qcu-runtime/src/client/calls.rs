//! Every question but a read: descriptions, symbols, leases, publishes, dataset changes, the ledger, counters.

use std::time::{Duration, Instant};

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use futures::future::join_all;
use trellis_fabric::{channel::PeerChannel, clock::now_ns, limited};
use trellis_proto::{
    Code, DatasetName, Error, Result, Symbol, TimeRange, pb, pb::head_client::HeadClient, runs::LEDGER,
};

use super::{failure::of_status, grid::Client, put};

/// How long [`Client::stats`] waits for each head: a head that is away must not hold up a table of the others.
const STATS_TIMEOUT: Duration = Duration::from_secs(2);
/// What a connection moves at the least; a publish has so much more time for its bytes.
const PUBLISH_BYTES_PER_SECOND: u64 = 4 << 20;

impl Client {
    /// What the datasets are and how far they have come: all, or one.
    ///
    /// # Errors
    /// `UnknownDataset`, or the last retryable error at the deadline.
    pub async fn describe(&self, dataset: Option<&DatasetName>) -> Result<Vec<pb::DatasetDescription>> {
        let request =
            pb::DescribeRequest { dataset: dataset.map(DatasetName::to_string).unwrap_or_default() };
        let key = request.dataset.clone();
        let call = |mut head: HeadClient<PeerChannel>, request| async move { head.describe(request).await };
        Ok(self.ask(&key, self.end(), request, call).await?.datasets)
    }

    /// The symbols of a dataset, sorted.
    ///
    /// # Errors
    /// As [`Client::describe`].
    pub async fn symbols(&self, dataset: &DatasetName) -> Result<Vec<Symbol>> {
        self.symbols_by(dataset, self.end()).await
    }

    pub(super) async fn symbols_by(&self, dataset: &DatasetName, deadline: Instant) -> Result<Vec<Symbol>> {
        let request = pb::SymbolsRequest { dataset: dataset.to_string() };
        let call = |mut head: HeadClient<PeerChannel>, request| async move { head.symbols(request).await };
        let reply = self.ask(dataset.as_str(), deadline, request, call).await?;
        reply.symbols.into_iter().map(Symbol::new).collect()
    }

    /// Midnights (nanoseconds UTC) of the sessions in `range` for which the dataset has rows, ascending.
    ///
    /// # Errors
    /// As [`Client::describe`].
    pub async fn sessions(&self, dataset: &DatasetName, range: TimeRange) -> Result<Vec<i64>> {
        let request =
            pb::SessionsRequest { dataset: dataset.to_string(), start_ns: range.start, end_ns: range.end };
        let call = |mut head: HeadClient<PeerChannel>, request| async move { head.sessions(request).await };
        Ok(self.ask(dataset.as_str(), self.end(), request, call).await?.sessions_ns)
    }

    /// Publishes rows; returns when they are durable and visible.
    ///
    /// Sent again, with the same run id, after every retryable failure: the shard acknowledges a run id it has already
    /// committed, so the rows are there once however often they travelled. `batches` may be empty only if the schema is
    /// that of one batch without rows; all must share one schema.
    ///
    /// The head records it in the ledger, with what the header's `record` says; see [`pb::PublishAck::recorded`].
    ///
    /// # Errors
    /// `Fenced`, `Conflict`, `BadRows` and others for good; the last retryable error at the deadline, after which the
    /// publish may or may not have happened.
    pub async fn publish(
        &self,
        mut header: pb::PublishHeader,
        batches: Vec<RecordBatch>,
    ) -> Result<pb::PublishAck> {
        let schema: SchemaRef = match batches.first() {
            Some(batch) => batch.schema(),
            None => {
                return Err(Error::new(Code::BadRows, "a publish without a schema").dataset(&header.dataset));
            }
        };
        if header.run_id.is_empty() {
            return Err(Error::new(Code::InvalidRequest, "a publish needs a run id").dataset(&header.dataset));
        }
        // however often it is sent, and by which head it is recorded: one row of the ledger
        let record = header.record.get_or_insert_default();
        if record.started_ns == 0 {
            record.started_ns = now_ns();
        }
        let (heads, key, deadline) = (&self.heads, header.dataset.clone(), self.end());
        let messages = tokio::task::spawn_blocking(move || put::messages(&header, &schema, &batches))
            .await
            .map_err(|e| Error::new(Code::Internal, format!("encoding a publish: {e}")))??;
        let bytes = messages.bytes();
        let attempt = |head: String, left: Duration| {
            let messages = messages.clone();
            async move { put::do_put(heads.channel(&head, bytes)?, messages, left).await }
        };
        let limit = self.attempt + Duration::from_secs(bytes / PUBLISH_BYTES_PER_SECOND);
        heads.call(&key, None, deadline, limit, attempt).await
    }

    /// Takes the right to publish to a dataset, and makes the dataset if the request has a spec and it is not there.
    ///
    /// # Errors
    /// `Conflict` while another instance holds it (the message says who and for how long), `PermissionDenied` if it is another
    /// unit's output, `InvalidRequest` if the dataset has another schema.
    pub async fn acquire_lease(&self, request: pb::AcquireLeaseRequest) -> Result<pb::Lease> {
        let key = request.dataset.clone();
        let call =
            |mut head: HeadClient<PeerChannel>, request| async move { head.acquire_lease(request).await };
        self.ask(&key, self.end(), request, call).await
    }

    /// Prolongs a lease. The time counts from when it was asked for.
    ///
    /// # Errors
    /// `Fenced` if the lease is lost.
    pub async fn renew_lease(&self, request: pb::RenewLeaseRequest) -> Result<pb::Lease> {
        let key = request.dataset.clone();
        let call =
            |mut head: HeadClient<PeerChannel>, request| async move { head.renew_lease(request).await };
        self.ask(&key, self.end(), request, call).await
    }

    /// Gives a lease back.
    ///
    /// # Errors
    /// `Fenced` if it was no longer held, which is as good.
    pub async fn release_lease(&self, request: pb::ReleaseLeaseRequest) -> Result<()> {
        let key = request.dataset.clone();
        let call =
            |mut head: HeadClient<PeerChannel>, request| async move { head.release_lease(request).await };
        self.ask(&key, self.end(), request, call).await.map(|_| ())
    }

    /// Changes what a dataset is; returns when every head reads it so. Sent again with the same id, it is answered again.
    ///
    /// # Errors
    /// `PermissionDenied` while the dataset is a unit's output, `UnknownField`, `InvalidRequest` for a change that cannot be
    /// made, `Conflict` naming a stored value that the wider type does not hold.
    pub async fn alter_dataset(&self, request: pb::AlterDatasetRequest) -> Result<pb::DatasetChange> {
        let key = request.dataset.clone();
        let call =
            |mut head: HeadClient<PeerChannel>, request| async move { head.alter_dataset(request).await };
        self.ask_at_length(&key, request, call).await
    }

    /// Ends a dataset; returns when no head reads it any more.
    ///
    /// # Errors
    /// As of [`Client::alter_dataset`].
    pub async fn drop_dataset(&self, request: pb::DropDatasetRequest) -> Result<pb::DatasetChange> {
        let key = request.dataset.clone();
        let call =
            |mut head: HeadClient<PeerChannel>, request| async move { head.drop_dataset(request).await };
        self.ask_at_length(&key, request, call).await
    }

    /// Gives a dataset another name; returns when every head reads it under that one.
    ///
    /// # Errors
    /// As of [`Client::alter_dataset`]; `Conflict` if the name is taken.
    pub async fn rename_dataset(&self, request: pb::RenameDatasetRequest) -> Result<pb::DatasetChange> {
        let key = request.dataset.clone();
        let call =
            |mut head: HeadClient<PeerChannel>, request| async move { head.rename_dataset(request).await };
        self.ask_at_length(&key, request, call).await
    }

    /// Appends to the run ledger; returns when it is durable.
    ///
    /// # Errors
    /// The last retryable error at the deadline.
    pub async fn record_runs(&self, runs: Vec<pb::RunRecord>) -> Result<pb::RecordRunsReply> {
        let call =
            |mut head: HeadClient<PeerChannel>, request| async move { head.record_runs(request).await };
        self.ask(LEDGER, self.end(), pb::RecordRunsRequest { runs }, call).await
    }

    /// Counters of every head that answers, in the order of [`Client::heads`]. A head that is away is left out.
    ///
    /// # Errors
    /// `Unavailable` if none answers.
    pub async fn stats(&self) -> Result<Vec<pb::HeadStats>> {
        let all = self.heads.all();
        let replies = join_all(all.iter().map(|head| async move {
            let mut client = limited!(HeadClient::new(self.heads.channel(head, 0)?));
            match tokio::time::timeout(STATS_TIMEOUT, client.stats(pb::StatsRequest {})).await {
                Ok(reply) => reply.map(tonic::Response::into_inner).map_err(|status| of_status(&status)),
                Err(_) => Err(Error::new(Code::Unavailable, format!("head {head} does not answer"))),
            }
        }))
        .await;
        let mut stats = Vec::new();
        let mut last = Error::new(Code::Unavailable, "discovery knows no head node");
        for reply in replies {
            match reply {
                Ok(one) => stats.push(one),
                Err(error) => last = error,
            }
        }
        if stats.is_empty() { Err(last) } else { Ok(stats) }
    }
}
