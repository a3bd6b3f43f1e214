//! Every question but a read: descriptions, symbols, leases, publishes, dataset changes, the ledger, counters.

use std::time::Duration;

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use futures::stream::{self, StreamExt as _};
use tokio::time::Instant;
use trellis_fabric::{channel::PeerChannel, clock::now_ns, limited};
use trellis_proto::{
    Code, DatasetName, Error, Result, Symbol, TimeRange, pb, pb::head_client::HeadClient, runs::LEDGER,
};

use super::{failure::of_status, grid::Client, put};

/// How long [`Client::stats`] waits for each head: a head that is away must not delay the table of the others.
const STATS_TIMEOUT: Duration = Duration::from_secs(2);
/// Most heads that [`Client::stats`] asks at once. Of thousands, each that is not asked otherwise needs a new connection.
const STATS_AT_ONCE: usize = 64;
/// The least that a connection moves. An attempt of a publish gets that much more time for its bytes.
const PUBLISH_BYTES_PER_SECOND: u64 = 4 << 20;

impl Client {
    /// Describes all datasets, or one: the schema, and how far the rows reach.
    ///
    /// # Errors
    /// `UnknownDataset`, or the last retryable error at the deadline.
    pub async fn describe(&self, dataset: Option<&DatasetName>) -> Result<Vec<pb::DatasetDescription>> {
        let request =
            pb::DescribeRequest { dataset: dataset.map(DatasetName::to_string).unwrap_or_default() };
        let key = request.dataset.clone();
        let call = |mut head: HeadClient<PeerChannel>, request| async move { head.describe(request).await };
        let reply = self.ask(&key, self.end(), request, call).await?;
        self.heads.told_map(reply.heads_version);
        Ok(reply.datasets)
    }

    /// The symbols of a dataset, sorted.
    ///
    /// # Errors
    /// Those of [`Client::describe`].
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
    /// Those of [`Client::describe`].
    pub async fn sessions(&self, dataset: &DatasetName, range: TimeRange) -> Result<Vec<i64>> {
        let request =
            pb::SessionsRequest { dataset: dataset.to_string(), start_ns: range.start, end_ns: range.end };
        let call = |mut head: HeadClient<PeerChannel>, request| async move { head.sessions(request).await };
        Ok(self.ask(dataset.as_str(), self.end(), request, call).await?.sessions_ns)
    }

    /// Publishes rows; returns when they are durable and visible.
    ///
    /// After a retryable failure the client sends the publish again with the same run id. The shard acknowledges a run id that it has
    /// already committed, so the rows are stored once, however often they travel. `batches` has at least one batch, which may
    /// have no rows; all batches share one schema.
    ///
    /// The head records the publish in the ledger, together with the header's `record`; see [`pb::PublishAck::recorded`].
    ///
    /// # Errors
    /// Final: `Fenced`, `Conflict`, `BadRows` and others. At the deadline: the last retryable error; the publish may or may not
    /// have happened.
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
        // the start is the key of the record: every attempt, through whatever head, makes the same row of the ledger
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

    /// Takes the right to publish to a dataset. Makes the dataset if the request has a spec and there is no such dataset.
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

    /// Prolongs a lease. Its time counts from the request on.
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
    /// `Fenced` if the caller no longer held the lease; then there is nothing to give back.
    pub async fn release_lease(&self, request: pb::ReleaseLeaseRequest) -> Result<()> {
        let key = request.dataset.clone();
        let call =
            |mut head: HeadClient<PeerChannel>, request| async move { head.release_lease(request).await };
        self.ask(&key, self.end(), request, call).await.map(|_| ())
    }

    /// Changes a dataset's fields or settings. Returns when every head reads the changed dataset. A second call with the same id gets the
    /// same answer.
    ///
    /// # Errors
    /// `PermissionDenied` while the dataset is a unit's output, `UnknownField`, `InvalidRequest` for an impossible change, `Conflict`
    /// naming a stored value that the wider type cannot hold.
    pub async fn alter_dataset(&self, request: pb::AlterDatasetRequest) -> Result<pb::DatasetChange> {
        let key = request.dataset.clone();
        let call =
            |mut head: HeadClient<PeerChannel>, request| async move { head.alter_dataset(request).await };
        self.ask_at_length(&key, request, call).await
    }

    /// Drops a dataset. Returns when no head reads it any more.
    ///
    /// # Errors
    /// Those of [`Client::alter_dataset`].
    pub async fn drop_dataset(&self, request: pb::DropDatasetRequest) -> Result<pb::DatasetChange> {
        let key = request.dataset.clone();
        let call =
            |mut head: HeadClient<PeerChannel>, request| async move { head.drop_dataset(request).await };
        self.ask_at_length(&key, request, call).await
    }

    /// Gives a dataset another name. Returns when every head reads it under the new name.
    ///
    /// # Errors
    /// Those of [`Client::alter_dataset`]; `Conflict` if the name is taken.
    pub async fn rename_dataset(&self, request: pb::RenameDatasetRequest) -> Result<pb::DatasetChange> {
        let key = request.dataset.clone();
        let call =
            |mut head: HeadClient<PeerChannel>, request| async move { head.rename_dataset(request).await };
        self.ask_at_length(&key, request, call).await
    }

    /// Appends to the run ledger. Returns when the records are durable.
    ///
    /// # Errors
    /// The last retryable error at the deadline.
    pub async fn record_runs(&self, runs: Vec<pb::RunRecord>) -> Result<pb::RecordRunsReply> {
        let call =
            |mut head: HeadClient<PeerChannel>, request| async move { head.record_runs(request).await };
        self.ask(LEDGER, self.end(), pb::RecordRunsRequest { runs }, call).await
    }

    /// Counters of every head that answers, in the order of [`Client::heads`]. The list leaves out a head that is away.
    ///
    /// # Errors
    /// `Unavailable` if none answers.
    pub async fn stats(&self) -> Result<Vec<pb::HeadStats>> {
        let all = self.heads.all();
        let replies = all.iter().cloned().map(|head| async move {
            let head = head.as_str();
            let mut client = limited!(HeadClient::new(self.heads.channel(head, 0)?));
            match tokio::time::timeout(STATS_TIMEOUT, client.stats(pb::StatsRequest {})).await {
                Ok(reply) => reply.map(tonic::Response::into_inner).map_err(|status| of_status(&status)),
                Err(_) => Err(Error::new(Code::Unavailable, format!("head {head} does not answer"))),
            }
        });
        let replies: Vec<Result<pb::HeadStats>> =
            stream::iter(replies).buffered(STATS_AT_ONCE).collect().await;
        let mut stats = Vec::new();
        let mut last = Error::new(Code::Unavailable, self.heads.nobody());
        for reply in replies {
            match reply {
                Ok(one) => stats.push(one),
                Err(error) => last = error,
            }
        }
        if stats.is_empty() { Err(last) } else { Ok(stats) }
    }
}
