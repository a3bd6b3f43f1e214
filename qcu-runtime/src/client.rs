//! The client of a grid: finds the heads, splits a request over them, merges the answers, tries again elsewhere.
//!
//! * `client/heads.rs`: which heads there are, their connections, the retry loop.
//! * `client/get.rs`, `client/deframe.rs`: one read on one head; the receive loop.
//! * `client/merge.rs`, `client/answer.rs`: the answers of several heads as one. Pure.
//! * `client/put.rs`: one publish on one head.
//!
//! Two times bound every call: [`ClientOptions::attempt`] one attempt, and [`ClientOptions::deadline`] all of them together.
//! Only errors that [`Error::retryable`] says may pass are tried again. Reads change nothing, and a publish carries its run
//! id, so both may be sent twice. Every future may be dropped at any point; a dropped publish may or may not have happened.

mod answer;
mod deframe;
mod get;
mod heads;
mod merge;
mod put;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use futures::future::{join_all, try_join_all};
use tonic::{Request, metadata::MetadataMap};
use trellis_fabric::{channel::ChannelOptions, channel::PeerChannel, discovery, limited};
use trellis_proto::{
    Code, DatasetName, Error, Result, SeriesQuery, Symbol, Symbols, TimeRange, pb,
    pb::head_client::HeadClient, placement, runs::LEDGER,
};

pub use answer::Answer;
pub(crate) use heads::jittered;
use heads::{Heads, of_status};

use crate::run::now_ns;

/// How long [`Client::stats`] waits for each head: a head that is away must not hold up a table of the others.
const STATS_TIMEOUT: Duration = Duration::from_secs(2);
/// What a connection moves at the least; a publish has so much more time for its bytes.
const PUBLISH_BYTES_PER_SECOND: u64 = 4 << 20;
/// First pause while heads disagree about a dataset's symbols, which lasts as long as a publish takes to reach them all; doubles.
const DISAGREE_MIN: Duration = Duration::from_millis(20);
/// Longest such pause.
const DISAGREE_MAX: Duration = Duration::from_millis(500);

/// How a client behaves. `ClientOptions::default()` suits a person; a unit names itself.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// Name of the unit on whose behalf calls are made; for fairness and telemetry.
    pub unit: Option<String>,
    /// How long [`Client::connect`] looks for a head that answers.
    pub connect_timeout: Duration,
    /// All attempts of one call together.
    pub deadline: Duration,
    /// One attempt of a question or a publish: a head that has not answered for so long has lost it, or its shard has. A
    /// publish that is sent again while the first is still at work is acknowledged with it. Not of a read, whose size nobody
    /// knows yet.
    pub attempt: Duration,
    /// How to know that the grid has ended and nobody comes back at its address. A grid far away may always come back.
    pub ended: Option<Ended>,
}

/// Says whether a grid has ended for good. Asked whenever every head has failed: a call then ends at once, and not at its
/// deadline.
#[derive(Clone)]
pub struct Ended(Arc<dyn Fn() -> bool + Send + Sync>);

impl Ended {
    /// `ask` must not block.
    #[must_use]
    pub fn new(ask: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(ask))
    }

    pub(crate) fn now(&self) -> bool {
        (self.0)()
    }
}

impl std::fmt::Debug for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ended")
    }
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            unit: None,
            connect_timeout: Duration::from_secs(5),
            deadline: Duration::from_secs(60),
            // a publish waits for a disk, two seconds for other shards, five for a head that does not keep up
            attempt: Duration::from_secs(10),
            ended: None,
        }
    }
}

/// A connection to a grid. Clones share everything; made and used inside a Tokio runtime.
#[derive(Clone)]
pub struct Client {
    heads: Heads,
    deadline: Duration,
    attempt: Duration,
}

impl Client {
    /// Finds the heads and waits until one answers.
    ///
    /// `url`: `grpc://host:port` (one head), `static://a:1,b:2`, or `dns://name[:port]`, whose changes are followed.
    ///
    /// # Errors
    /// `InvalidRequest` for a URL of no known form, `Unavailable` if no head answers within `connect_timeout`.
    pub async fn connect(url: &str, options: ClientOptions) -> Result<Self> {
        let client = Self::lazy(url, &options)?;
        let deadline = Instant::now() + options.connect_timeout;
        let nobody = |why: &str| {
            Error::new(Code::Unavailable, format!("no head node answers at {url}: {why}"))
                .hint("is the grid running (`trellis up`), and is TRELLIS_URL its address?")
        };
        if !client.heads.found(options.connect_timeout).await {
            return Err(nobody("discovery finds none"));
        }
        let hello = |mut head: HeadClient<PeerChannel>, request| async move { head.stats(request).await };
        match client.ask("", deadline, pb::StatsRequest {}, hello).await {
            Ok(_) => Ok(client),
            Err(error) if error.retryable() => Err(nobody(error.message())),
            Err(error) => Err(error),
        }
    }

    /// As [`Client::connect`], without waiting: the first call finds out.
    ///
    /// # Errors
    /// `InvalidRequest` for a URL of no known form.
    pub fn lazy(url: &str, options: &ClientOptions) -> Result<Self> {
        let peers = discovery::watch(url, &discovery::Options::default())
            .map_err(|e| {
                let hint = if url.contains("://") || !url.contains(':') {
                    "use grpc://HOST:PORT, static://HOST:PORT,HOST:PORT or dns://NAME, in Python also embedded:///FOLDER"
                        .to_owned()
                } else {
                    format!("grpc://{url}")
                };
                Error::new(Code::InvalidRequest, format!("`{url}` does not name a grid: {e}")).hint(hint)
            })?;
        let channel = options.unit.as_deref().map_or_else(ChannelOptions::default, ChannelOptions::of_unit);
        let ClientOptions { deadline, attempt, .. } = *options;
        Ok(Self { heads: Heads::new(peers, channel, options.ended.clone()), deadline, attempt })
    }

    /// This client with another deadline for each call.
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self { heads: self.heads.clone(), deadline, attempt: self.attempt }
    }

    /// Addresses of the heads that discovery knows now, sorted.
    #[must_use]
    pub fn heads(&self) -> Vec<String> {
        self.heads.all()
    }

    /// Reads the rows of `query`, split over the heads by symbol, in the order of (symbol, ts).
    ///
    /// # Errors
    /// What a head answers (unknown names, too large, ...), or the last retryable error at the deadline. Never a part of
    /// the rows.
    pub async fn read(&self, query: &SeriesQuery) -> Result<Answer> {
        let deadline = self.end();
        let mut pause = DISAGREE_MIN;
        loop {
            let error = match self.read_once(query, deadline).await {
                // One head listed the symbol, another has yet to hear of it: its publish is on its way.
                Err(error) if error.code() == Code::UnknownSymbol && query.symbols == Symbols::All => error,
                // One head answered before the dataset was changed, another after.
                Err(error) if error.code() == Code::StaleSchema => error,
                other => return other,
            };
            if Instant::now() + pause >= deadline {
                let why = format!("the heads disagree about what {} is: {}", query.dataset, error.message());
                return Err(Error::new(Code::Unavailable, why).dataset(&query.dataset));
            }
            tokio::time::sleep(jittered(pause)).await;
            pause = (pause * 2).min(DISAGREE_MAX);
        }
    }

    async fn read_once(&self, query: &SeriesQuery, deadline: Instant) -> Result<Answer> {
        let queries = self.split(query, deadline).await?;
        let parts = try_join_all(queries.iter().map(|query| self.read_part(query, deadline))).await?;
        let parts = match query.as_of {
            None => self.aligned(&queries, parts, deadline).await?,
            Some(_) => parts,
        };
        let (parts, receipts): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        let rows: u64 = receipts.iter().map(|receipt: &pb::Receipt| receipt.rows).sum();
        if query.rows_max > 0 && rows > query.rows_max {
            return Err(Error::new(
                Code::TooLarge,
                format!("the answer has {rows} rows; at most {} were asked for", query.rows_max),
            )
            .hint("ask for fewer symbols or a shorter range")
            .dataset(&query.dataset));
        }
        let whole = if parts.len() > 1 {
            // a merge copies every row: not on a thread that serves others
            tokio::task::spawn_blocking(move || merge::merge(parts))
                .await
                .map_err(|e| Error::new(Code::Internal, format!("merging answers: {e}")))??
        } else {
            merge::merge(parts)?
        };
        Ok(Answer { schema: whole.schema, batches: whole.batches, receipts })
    }

    /// One query for each head that owns some of the symbols.
    async fn split(&self, query: &SeriesQuery, deadline: Instant) -> Result<Vec<SeriesQuery>> {
        let heads = self.heads.live();
        if heads.len() < 2 {
            return Ok(vec![query.clone()]);
        }
        let listed;
        let symbols = match &query.symbols {
            Symbols::List(symbols) => symbols,
            Symbols::All => {
                listed = self.symbols_by(&query.dataset, deadline).await?;
                &listed
            }
        };
        let mut by_head: BTreeMap<&str, Vec<Symbol>> = BTreeMap::new();
        for symbol in symbols {
            if let Some(head) = placement::head_of(&heads, query.dataset.as_str(), symbol.as_str()) {
                by_head.entry(head).or_default().push(symbol.clone());
            }
        }
        if by_head.is_empty() {
            // a dataset without symbols still has a schema to answer with
            return Ok(vec![query.clone()]);
        }
        let part = |symbols| SeriesQuery { symbols: Symbols::List(symbols), ..query.clone() };
        let pieces = by_head.into_values().flat_map(|symbols| {
            let pieces = symbols.chunks(trellis_proto::query::SYMBOLS_MAX).map(<[Symbol]>::to_vec);
            pieces.collect::<Vec<_>>()
        });
        Ok(pieces.map(part).collect())
    }

    /// The parts of a latest answer as of one knowledge time, the least that all heads had: while a publish is on its way some heads
    /// have applied it and others have not, and together they would show half of it. What was acknowledged before the read began is
    /// on every head, and so in the answer either way, unless a shard could not be reached when it was acknowledged. Stale parts
    /// have no common time to go back to and stay as they are.
    async fn aligned(
        &self,
        queries: &[SeriesQuery],
        parts: Vec<(merge::Part, pb::Receipt)>,
        deadline: Instant,
    ) -> Result<Vec<(merge::Part, pb::Receipt)>> {
        let least = parts.iter().map(|(_, receipt)| receipt.known_through_ns).min();
        let stale = parts.iter().any(|(_, receipt)| receipt.stale);
        let Some(known_through) = least.filter(|_| !stale) else { return Ok(parts) };
        let again = queries.iter().zip(parts).map(|(query, (part, receipt))| async move {
            if receipt.known_through_ns == known_through {
                return Ok((part, receipt));
            }
            let past = SeriesQuery { as_of: Some(known_through), ..query.clone() };
            let (part, second) = self.read_part(&past, deadline).await?;
            let merged = pb::Receipt {
                as_of_ns: None,
                known_through_ns: known_through,
                // what the first read caused; the second finds it in the head's memory
                chunks_hit: receipt.chunks_hit,
                chunks_joined: receipt.chunks_joined,
                chunks_fetched: receipt.chunks_fetched,
                rows_fetched: receipt.rows_fetched + second.rows_fetched,
                elapsed_us: receipt.elapsed_us + second.elapsed_us,
                queued_us: receipt.queued_us + second.queued_us,
                ..second
            };
            Ok((part, merged))
        });
        try_join_all(again).await
    }

    async fn read_part(&self, query: &SeriesQuery, deadline: Instant) -> Result<(merge::Part, pb::Receipt)> {
        // all symbols of a part have the head that `split` chose for them
        let symbol = match &query.symbols {
            Symbols::List(symbols) => symbols.first().map_or("", Symbol::as_str),
            Symbols::All => "",
        };
        let heads = &self.heads;
        let live = heads.live();
        let owner = placement::head_of(&live, query.dataset.as_str(), symbol);
        let attempt = |head: String, left: Duration| async move {
            let (part, receipt) =
                get::do_get(heads.read_channel(&head)?, MetadataMap::new(), query, left).await?;
            heads.has_read(receipt.bytes);
            Ok((part, receipt))
        };
        heads.call(query.dataset.as_str(), owner, deadline, Duration::MAX, attempt).await
    }

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

    async fn symbols_by(&self, dataset: &DatasetName, deadline: Instant) -> Result<Vec<Symbol>> {
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

    fn end(&self) -> Instant {
        Instant::now() + self.deadline
    }

    /// One unary question, asked of the heads in the order of `key` until one answers.
    async fn ask<Q, A, F, Fut>(&self, key: &str, deadline: Instant, question: Q, call: F) -> Result<A>
    where
        Q: Clone,
        F: Fn(HeadClient<PeerChannel>, Request<Q>) -> Fut,
        Fut: Future<Output = Result<tonic::Response<A>, tonic::Status>>,
    {
        self.ask_within(key, deadline, self.attempt, question, call).await
    }

    /// As [`Self::ask`], of what may take as long as the caller waits: every file of a dataset is written anew.
    async fn ask_at_length<Q, A, F, Fut>(&self, key: &str, question: Q, call: F) -> Result<A>
    where
        Q: Clone,
        F: Fn(HeadClient<PeerChannel>, Request<Q>) -> Fut,
        Fut: Future<Output = Result<tonic::Response<A>, tonic::Status>>,
    {
        self.ask_within(key, self.end(), Duration::MAX, question, call).await
    }

    async fn ask_within<Q, A, F, Fut>(
        &self,
        key: &str,
        deadline: Instant,
        limit: Duration,
        question: Q,
        call: F,
    ) -> Result<A>
    where
        Q: Clone,
        F: Fn(HeadClient<PeerChannel>, Request<Q>) -> Fut,
        Fut: Future<Output = Result<tonic::Response<A>, tonic::Status>>,
    {
        let heads = &self.heads;
        let attempt = |head: String, left: Duration| {
            let mut request = Request::new(question.clone());
            request.set_timeout(left);
            let client = heads.channel(&head, 0).map(|channel| limited!(HeadClient::new(channel)));
            let reply = client.map(|client| call(client, request));
            async move { Ok(reply?.await.map_err(|status| of_status(&status))?.into_inner()) }
        };
        heads.call(key, None, deadline, limit, attempt).await
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("heads", &self.heads()).field("deadline", &self.deadline).finish()
    }
}

/// Answers as heads send them, for the tests of other modules.
#[cfg(test)]
pub(crate) mod testing {
    pub(crate) use super::merge::tests::{Row, part};
}
