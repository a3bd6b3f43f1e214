//! A head with a fake shard: the test sets its rows and faults, and it records the calls.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use arrow_array::{
    Array, ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, TimestampNanosecondArray,
};
use arrow_flight::{
    FlightData, Ticket, flight_service_client::FlightServiceClient, utils::batches_to_flight_data,
};
use futures::{FutureExt, Stream, StreamExt, stream};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming, transport::Channel};
use trellis_head::{Config, Head};
use trellis_proto::{
    ChunkSpan, Code, DatasetName, DatasetSpec, Error, FieldName, FieldType,
    fetch::{Answer, ChunkBatch, ChunkFailure, ChunkRun},
    pb::{self, shard_server},
    spec::FieldSpec,
    time::DAY_NS,
};

pub const DATASET: &str = "equities.daily";

/// One row: event time, knowledge time, and the seed of its values; `None` if they are missing.
pub type Row = (i64, i64, Option<i64>);

pub fn spec() -> DatasetSpec {
    let field =
        |name, data_type| FieldSpec { name: FieldName::new(name).unwrap(), data_type, nullable: true };
    let fields = vec![
        field("close", FieldType::Float64),
        field("volume", FieldType::Int64),
        field("note", FieldType::String),
    ];
    DatasetSpec::new(DatasetName::new(DATASET).unwrap(), fields, ChunkSpan::new(64 * DAY_NS).unwrap())
        .unwrap()
}

/// The values of rows, made in the same way for the shard and for the expected answers.
pub fn values(seeds: &[Option<i64>], field: &str) -> ArrayRef {
    let seeds = seeds.iter().copied();
    match field {
        "close" => Arc::new(seeds.map(|s| s.map(|s| s as f64 / 4.0)).collect::<Float64Array>()),
        "volume" => Arc::new(seeds.map(|s| s.map(|s| s * 100)).collect::<Int64Array>()),
        "note" => Arc::new(seeds.map(|s| s.map(|s| "n".repeat(s as usize % 7))).collect::<StringArray>()),
        other => panic!("no field {other}"),
    }
}

pub fn times(values: impl Iterator<Item = i64>) -> ArrayRef {
    Arc::new(TimestampNanosecondArray::from_iter_values(values).with_timezone("UTC"))
}

#[derive(Default)]
struct State {
    series: BTreeMap<String, Vec<Row>>,
    /// Symbols whose chunks cannot be read.
    broken: BTreeSet<String>,
    fetches: Vec<pb::FetchRequest>,
    /// The client address of each fetch: one for each connection.
    fetched_from: Vec<SocketAddr>,
    rows_fetched: u64,
    publishes: Vec<Published>,
    /// The ledger: the errors for the next records, and the records that it has taken.
    ledger_refusals: VecDeque<Error>,
    recorded: Vec<pb::RunRecord>,
    syncs: u64,
    /// Version and knowledge time in the shard's answers.
    version: u64,
    known_through: i64,
    /// Position in the log, and its watchers.
    seq: u64,
    /// Watchers so far.
    watched: u64,
    followers: Vec<Follower>,
    away: bool,
}

/// A watcher's end of the log.
struct Follower {
    number: u64,
    events: mpsc::UnboundedSender<pb::WatchEvent>,
    /// The position of its last event.
    at: u64,
    follows: bool,
}

impl Follower {
    /// Returns whether the watcher is there.
    fn tell(&mut self, seq: u64, event: pb::watch_event::Event) -> bool {
        let after = std::mem::replace(&mut self.at, seq);
        self.events.send(pb::WatchEvent { after, event: Some(event) }).is_ok()
    }
}

/// The end of a publish.
#[derive(Debug, Clone, PartialEq)]
pub enum Published {
    /// The stream ended well, after this many Arrow messages.
    Whole { unit: String, messages: u64 },
    /// The stream broke off.
    Broken,
}

/// A shard that owns everything.
#[derive(Clone)]
pub struct FakeShard {
    state: Arc<Mutex<State>>,
    /// Fetches wait while this is `true`.
    hold: watch::Sender<bool>,
    /// Changes of datasets and records wait while this is `true`.
    hold_writes: watch::Sender<bool>,
    /// Changes of datasets that have come.
    changes: watch::Sender<u64>,
}

impl FakeShard {
    pub fn new(series: BTreeMap<String, Vec<Row>>) -> Self {
        let state = State { series, version: 7, known_through: KNOWN_THROUGH, seq: 1, ..State::default() };
        Self {
            state: Arc::new(Mutex::new(state)),
            hold: watch::Sender::new(false),
            hold_writes: watch::Sender::new(false),
            changes: watch::Sender::new(0),
        }
    }
    pub fn break_symbol(&self, symbol: &str) {
        self.state.lock().unwrap().broken.insert(symbol.to_owned());
    }
    pub fn mend(&self) {
        self.state.lock().unwrap().broken.clear();
    }
    /// Tells heads that rows of a symbol have changed, but not which ones.
    pub fn touch(&self, symbol: &str) {
        let mut state = self.state.lock().unwrap();
        let ts = || state.series[symbol].iter().map(|row| row.0);
        let (start_ns, end_ns) = (ts().min().unwrap(), ts().max().unwrap() + 1);
        state.version += 1;
        state.known_through += 1;
        state.seq += 1;
        let seq = state.seq;
        let change = pb::watch_event::Event::Change(pb::Change {
            seq,
            dataset: DATASET.into(),
            version: state.version,
            known_at_min_ns: state.known_through,
            known_at_max_ns: state.known_through,
            spans: vec![pb::SymbolSpan { symbol: symbol.into(), start_ns, end_ns }],
            ..pb::Change::default()
        });
        state.followers.retain_mut(|follower| !follower.follows || follower.tell(seq, change.clone()));
    }
    /// The log breaks, and there is no other.
    pub fn go_away(&self) {
        let mut state = self.state.lock().unwrap();
        state.away = true;
        state.followers.clear();
    }
    /// Follow it again.
    pub fn come_back(&self) {
        self.state.lock().unwrap().away = false;
    }
    pub fn hold(&self, hold: bool) {
        self.hold.send_replace(hold);
    }
    /// Changes of datasets, and records, wait.
    pub fn hold_writes(&self, hold: bool) {
        self.hold_writes.send_replace(hold);
    }
    /// Waits until this many changes of datasets have arrived.
    pub async fn changed(&self, changes: u64) {
        let mut come = self.changes.subscribe();
        come.wait_for(|come| *come >= changes).await.unwrap();
    }
    /// The ledger refuses the next records with these errors, one after the other.
    pub fn refuse_records(&self, refusals: impl IntoIterator<Item = Error>) {
        self.state.lock().unwrap().ledger_refusals.extend(refusals);
    }
    /// The records of the ledger.
    pub fn recorded(&self) -> Vec<pb::RunRecord> {
        self.state.lock().unwrap().recorded.clone()
    }
    /// The records of the ledger, once there are this many.
    pub async fn recorded_in_the_end(&self, records: usize) -> Vec<pb::RunRecord> {
        let all = async {
            while self.recorded().len() < records {
                tokio::task::yield_now().await;
            }
            self.recorded()
        };
        tokio::time::timeout(Duration::from_secs(60), all).await.expect("it is recorded")
    }
    async fn writes_may(&self) {
        let mut hold = self.hold_writes.subscribe();
        let _gone = hold.wait_for(|hold| !hold).await;
    }
    async fn change(&self, dataset: String) -> Result<Response<pb::DatasetChange>, Status> {
        self.changes.send_modify(|come| *come += 1);
        self.writes_may().await;
        Ok(Response::new(pb::DatasetChange { dataset, version: 9, files_rewritten: 0 }))
    }
    pub fn fetches(&self) -> Vec<pb::FetchRequest> {
        self.state.lock().unwrap().fetches.clone()
    }
    pub fn fetched_from(&self) -> Vec<SocketAddr> {
        self.state.lock().unwrap().fetched_from.clone()
    }
    pub fn rows_fetched(&self) -> u64 {
        self.state.lock().unwrap().rows_fetched
    }
    pub fn publishes(&self) -> Vec<Published> {
        self.state.lock().unwrap().publishes.clone()
    }

    fn description(&self) -> pb::DatasetDescription {
        let state = self.state.lock().unwrap();
        let ts = || state.series.values().flatten().map(|row| row.0);
        pb::DatasetDescription {
            spec: Some((&spec()).into()),
            version: state.version,
            known_through_ns: state.known_through,
            watermark_ns: None,
            first_ts_ns: ts().min(),
            last_ts_ns: ts().max(),
            rows: state.series.values().map(|rows| rows.len() as u64).sum(),
            symbols: state.series.len() as u64,
            home: "shard-0".into(),
            ..pb::DatasetDescription::default()
        }
    }

    fn run(&self, index: usize, range: &pb::ChunkRange) -> pb::FetchReply {
        let spec = spec();
        let mut state = self.state.lock().unwrap();
        let answer = if state.broken.contains(&range.symbol) {
            let error =
                Error::new(Code::Unavailable, "the disk is away").shard("shard-0").symbol(&range.symbol);
            Answer::Failures(vec![ChunkFailure { range: index, chunks: range.first..range.end, error }])
        } else {
            let all = state.series.get(&range.symbol).cloned().unwrap_or_default();
            let mut by_chunk: BTreeMap<i64, Vec<Row>> = BTreeMap::new();
            for row in all.iter() {
                by_chunk.entry(spec.chunk.chunk_of(row.0)).or_default().push(*row);
            }
            let of_chunk = |k: i64| by_chunk.get(&k).map_or(&[][..], Vec::as_slice);
            let chunk_rows = (range.first..range.end).map(|k| of_chunk(k).len() as u32).collect();
            let rows_of: Vec<Row> =
                (range.first..range.end).flat_map(|k| of_chunk(k).iter().copied()).collect();
            state.rows_fetched += rows_of.len() as u64;
            let positions: Vec<usize> = range.fields.iter().map(|name| spec.field(name).unwrap().0).collect();
            let seeds: Vec<Option<i64>> = rows_of.iter().map(|row| row.2).collect();
            let mut columns = vec![times(rows_of.iter().map(|r| r.0)), times(rows_of.iter().map(|r| r.1))];
            columns.extend(range.fields.iter().map(|field| values(&seeds, field)));
            let schema = spec.chunk_schema(&positions);
            let batch = RecordBatch::try_new(schema.clone(), columns).unwrap();
            let data = batches_to_flight_data(&schema, vec![batch]).unwrap().pop().unwrap();
            Answer::Batch(ChunkBatch {
                runs: vec![ChunkRun { range: index, first: range.first, chunk_rows }],
                version: state.version,
                known_through: state.known_through,
                watermark: None,
                seq: state.seq,
                header: data.data_header,
                body: data.data_body,
                retracted: bytes::Bytes::new(),
            })
        };
        answer.into()
    }
}

pub const KNOWN_THROUGH: i64 = 1_000_000;

type Replies<T> = std::pin::Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl shard_server::Shard for FakeShard {
    async fn describe(
        &self,
        request: Request<pb::ShardDescribeRequest>,
    ) -> Result<Response<pb::ShardDescription>, Status> {
        let all = pb::HashRange { start: 0, end: 65_536 };
        let owns = pb::Ownership {
            dataset_pattern: "*".into(),
            symbols: Some(pb::ownership::Symbols::HashRange(all)),
            start_ns: None,
            end_ns: None,
        };
        let datasets = if request.into_inner().ownership_only { vec![] } else { vec![self.description()] };
        Ok(Response::new(pb::ShardDescription {
            shard: "shard-0".into(),
            epoch: 1,
            owns: vec![owns],
            incarnation: "first".into(),
            datasets,
            unopened: Vec::new(),
        }))
    }

    async fn symbols(&self, _: Request<pb::SymbolsRequest>) -> Result<Response<pb::SymbolsReply>, Status> {
        let state = self.state.lock().unwrap();
        let symbols = state.series.keys().cloned().collect();
        Ok(Response::new(pb::SymbolsReply { symbols, version: state.version }))
    }

    async fn sessions(&self, _: Request<pb::SessionsRequest>) -> Result<Response<pb::SessionsReply>, Status> {
        let state = self.state.lock().unwrap();
        let days: BTreeSet<i64> =
            state.series.values().flatten().map(|r| r.0.div_euclid(DAY_NS) * DAY_NS).collect();
        Ok(Response::new(pb::SessionsReply { sessions_ns: days.into_iter().collect() }))
    }

    type FetchStream = Replies<pb::FetchReply>;
    async fn fetch(&self, request: Request<pb::FetchRequest>) -> Result<Response<Self::FetchStream>, Status> {
        let from = request.remote_addr().unwrap();
        let request = request.into_inner();
        {
            let mut state = self.state.lock().unwrap();
            state.fetches.push(request.clone());
            state.fetched_from.push(from);
        }
        let (shard, mut hold) = (self.clone(), self.hold.subscribe());
        let replies = stream::once(async move {
            let _gone = hold.wait_for(|hold| !hold).await;
        })
        .flat_map(move |()| {
            let shard = shard.clone();
            stream::iter(request.ranges.clone().into_iter().enumerate())
                .map(move |(i, range)| Ok(shard.run(i, &range)))
        });
        Ok(Response::new(replies.boxed()))
    }

    type WatchStream = Replies<pb::WatchEvent>;
    async fn watch(
        &self,
        mut request: Request<Streaming<pb::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        use pb::{watch_event::Event, watch_request::Request as Asked};
        let first = request.get_mut().message().await?.and_then(|request| request.request);
        let Some(Asked::Start(start)) = first else { return Err(Status::invalid_argument("no start")) };
        let mut requests = request.into_inner();
        let description = self.description();
        let answer = move |dataset: &str, seq: u64| {
            let answer = if dataset == DATASET {
                pb::subscribed::Answer::Description(description.clone())
            } else {
                let unknown = Error::new(Code::UnknownDataset, format!("there is no dataset {dataset:?}"));
                pb::subscribed::Answer::Error(unknown.hint(format!("did you mean {DATASET}?")).into())
            };
            Event::Subscribed(pb::Subscribed { dataset: dataset.to_owned(), seq, answer: Some(answer) })
        };
        let (events, log) = mpsc::unbounded_channel();
        let number = {
            let mut state = self.state.lock().unwrap();
            if state.away {
                return Err(Status::unavailable("away"));
            }
            let seq = state.seq;
            let hello = pb::WatchHello {
                shard: "shard-0".into(),
                incarnation: "first".into(),
                seq,
                ownership_epoch: 1,
            };
            events.send(pb::WatchEvent { after: 0, event: Some(Event::Hello(hello)) }).unwrap();
            let follows = start.datasets.iter().any(|dataset| dataset == DATASET);
            state.watched += 1;
            let mut follower = Follower { number: state.watched, events, at: seq, follows };
            if start.incarnation != "first" || start.seq != seq {
                for dataset in &start.datasets {
                    follower.tell(seq, answer(dataset, seq));
                }
            }
            state.followers.push(follower);
            state.watched
        };
        let shard = self.clone();
        let tell = move |told: &dyn Fn(&mut Follower, u64)| {
            let mut state = shard.state.lock().unwrap();
            let seq = state.seq;
            let follower = state.followers.iter_mut().find(|follower| follower.number == number);
            follower.map(|follower| told(follower, seq)).is_some()
        };
        tokio::spawn(async move {
            let mut answers = true;
            loop {
                let beat = |follower: &mut Follower, seq: u64| {
                    let heartbeat = pb::Heartbeat { seq, ownership_epoch: 1, answers };
                    follower.tell(seq, Event::Heartbeat(heartbeat));
                };
                let asked = tokio::time::timeout(Duration::from_millis(200), requests.message()).await;
                let there = match asked {
                    Err(_) if answers => true,
                    Err(_) => tell(&beat),
                    Ok(Ok(Some(request))) => match request.request {
                        Some(Asked::Applied(_)) if answers => {
                            let there = tell(&beat);
                            answers = false;
                            there
                        }
                        Some(Asked::Subscribe(names)) => tell(&|follower, seq| {
                            for dataset in &names.datasets {
                                follower.follows |= dataset == DATASET;
                                follower.tell(seq, answer(dataset, seq));
                            }
                        }),
                        Some(Asked::Unsubscribe(names)) => tell(&|follower, _| {
                            follower.follows &= !names.datasets.iter().any(|dataset| dataset == DATASET);
                        }),
                        _ => true,
                    },
                    Ok(_) => false,
                };
                if !there {
                    return;
                }
            }
        });
        Ok(Response::new(tokio_stream::wrappers::UnboundedReceiverStream::new(log).map(Ok).boxed()))
    }

    async fn confirm(
        &self,
        request: Request<pb::ConfirmRequest>,
    ) -> Result<Response<pb::ConfirmReply>, Status> {
        let unchanged = request.into_inner().held.iter().map(|_| true).collect();
        let state = self.state.lock().unwrap();
        let (seq, known_through_ns) = (state.seq, state.known_through);
        Ok(Response::new(pb::ConfirmReply { unchanged, seq, known_through_ns }))
    }

    async fn sync(&self, request: Request<pb::SyncRequest>) -> Result<Response<pb::SyncReply>, Status> {
        self.state.lock().unwrap().syncs += 1;
        Ok(Response::new(pb::SyncReply { version: request.into_inner().version }))
    }

    async fn acquire_lease(
        &self,
        request: Request<pb::AcquireLeaseRequest>,
    ) -> Result<Response<pb::Lease>, Status> {
        let request = request.into_inner();
        if request.unit == "late" {
            let fenced =
                Error::new(Code::Fenced, "fenced by epoch 4, held by early").dataset(&request.dataset);
            return Err(fenced.into());
        }
        Ok(Response::new(pb::Lease {
            dataset: request.dataset,
            unit: request.unit,
            epoch: 3,
            ..Default::default()
        }))
    }
    async fn renew_lease(
        &self,
        request: Request<pb::RenewLeaseRequest>,
    ) -> Result<Response<pb::Lease>, Status> {
        let epoch = request.into_inner().epoch;
        Ok(Response::new(pb::Lease { epoch, ..Default::default() }))
    }
    async fn release_lease(
        &self,
        _: Request<pb::ReleaseLeaseRequest>,
    ) -> Result<Response<pb::ReleaseLeaseReply>, Status> {
        Ok(Response::new(pb::ReleaseLeaseReply {}))
    }

    async fn publish(
        &self,
        request: Request<Streaming<pb::PublishMessage>>,
    ) -> Result<Response<pb::PublishAck>, Status> {
        // recorded if the publish is dropped half-way
        struct Note(FakeShard, Published);
        impl Drop for Note {
            fn drop(&mut self) {
                self.0.state.lock().unwrap().publishes.push(self.1.clone());
            }
        }
        let mut note = Note(self.clone(), Published::Broken);
        let mut messages = request.into_inner();
        let (mut header, mut count) = (None, 0);
        loop {
            match messages.message().await?.and_then(|message| message.message) {
                Some(pb::publish_message::Message::Header(h)) => header = Some(h),
                Some(pb::publish_message::Message::Ipc(_)) => count += 1,
                Some(pb::publish_message::Message::End(end)) if end.messages == count => break,
                other => return Err(Status::invalid_argument(format!("no end after {count}: {other:?}"))),
            }
        }
        let header = header.ok_or_else(|| Status::invalid_argument("no header"))?;
        if header.epoch == 1 {
            return Err(Error::new(Code::Fenced, "fenced by epoch 2").dataset(&header.dataset).into());
        }
        note.1 = Published::Whole { unit: header.unit, messages: count };
        let dataset = header.dataset;
        Ok(Response::new(pb::PublishAck {
            dataset,
            version: 8,
            rows: 5,
            shard: "shard-0".into(),
            ..Default::default()
        }))
    }

    async fn alter_dataset(
        &self,
        request: Request<pb::AlterDatasetRequest>,
    ) -> Result<Response<pb::DatasetChange>, Status> {
        self.change(request.into_inner().dataset).await
    }
    async fn drop_dataset(
        &self,
        request: Request<pb::DropDatasetRequest>,
    ) -> Result<Response<pb::DatasetChange>, Status> {
        self.change(request.into_inner().dataset).await
    }
    async fn rename_dataset(
        &self,
        request: Request<pb::RenameDatasetRequest>,
    ) -> Result<Response<pb::DatasetChange>, Status> {
        self.change(request.into_inner().to).await
    }
    async fn record_runs(
        &self,
        request: Request<pb::RecordRunsRequest>,
    ) -> Result<Response<pb::RecordRunsReply>, Status> {
        self.writes_may().await;
        let mut state = self.state.lock().unwrap();
        if let Some(refusal) = state.ledger_refusals.pop_front() {
            return Err(refusal.into());
        }
        state.recorded.extend(request.into_inner().runs);
        Ok(Response::new(pb::RecordRunsReply { version: state.recorded.len() as u64 }))
    }
}

/// A head that serves, with a fake shard.
pub struct Grid {
    pub shard: FakeShard,
    pub address: SocketAddr,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    served: tokio::task::JoinHandle<trellis_proto::Result<()>>,
}

impl Grid {
    pub async fn start(series: BTreeMap<String, Vec<Row>>) -> Self {
        Self::start_with(series, |_| {}).await
    }

    pub async fn start_with(series: BTreeMap<String, Vec<Row>>, change: impl FnOnce(&mut Config)) -> Self {
        let shard = FakeShard::new(series);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let shard_address = listener.local_addr().unwrap();
        let server = tonic::transport::Server::builder().add_service(
            shard_server::ShardServer::new(shard.clone())
                .max_decoding_message_size(64 << 20)
                .max_encoding_message_size(64 << 20),
        );
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));

        let mut config = Config::new("head-0", format!("static://{shard_address}"));
        change(&mut config);
        let head = Head::start(config).unwrap();
        head.ready().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let served = tokio::spawn(head.serve(listener, async {
            let _dropped = stopped.await;
        }));
        Self { shard, address, stop: Some(stop), served }
    }

    pub async fn channel(&self) -> Channel {
        Channel::from_shared(format!("http://{}", self.address)).unwrap().connect().await.unwrap()
    }
    pub async fn flight(&self) -> FlightServiceClient<Channel> {
        FlightServiceClient::new(self.channel().await).max_decoding_message_size(64 << 20)
    }
    /// A client with the default windows of HTTP/2: messages that it does not read soon stay at the head.
    pub async fn stock_flight(&self) -> FlightServiceClient<Channel> {
        let endpoint = Channel::from_shared(format!("http://{}", self.address)).unwrap();
        let endpoint = endpoint.initial_stream_window_size(65_535).initial_connection_window_size(65_535);
        FlightServiceClient::new(endpoint.connect().await.unwrap()).max_decoding_message_size(64 << 20)
    }
    pub async fn head(&self) -> pb::head_client::HeadClient<Channel> {
        pb::head_client::HeadClient::new(self.channel().await)
    }

    /// Tells the head to stop.
    pub fn stop(&mut self) {
        self.stop.take();
    }
    pub async fn stopped(self) -> trellis_proto::Result<()> {
        drop(self.stop);
        self.served.await.unwrap()
    }

    /// All messages of an answer.
    pub async fn get(&self, ticket: impl Into<bytes::Bytes>) -> Result<Vec<FlightData>, Error> {
        let mut flight = self.flight().await;
        let stream =
            flight.do_get(Ticket::new(ticket)).await.map_err(|status| Error::from_status(&status))?;
        let messages: Vec<Result<FlightData, Status>> = stream.into_inner().collect().await;
        messages.into_iter().map(|message| message.map_err(|status| Error::from_status(&status))).collect()
    }
}

/// One row a minute from 2000-01-01 on.
pub fn minutes(rows: i64) -> Vec<Row> {
    let start = 10_957 * DAY_NS;
    (0..rows).map(|i| (start + i * 60_000_000_000, 0, Some(i))).collect()
}

/// Rows of `days` consecutive days from 2000-01-01 on: known at 10, and every 17th row corrected at 20.
pub fn daily(days: i64, seed: i64) -> Vec<Row> {
    let start = 10_957 * DAY_NS;
    let mut rows = Vec::new();
    for day in 0..days {
        let ts = start + day * DAY_NS;
        let value = (day % 23 != 5).then_some(seed + day);
        rows.push((ts, 10, value));
        if day % 17 == 3 {
            rows.push((ts, 20, Some(seed + day + 1_000)));
        }
    }
    rows
}

pub fn batches(messages: &[FlightData]) -> Vec<RecordBatch> {
    use arrow_flight::decode::{DecodedPayload, FlightDataDecoder};
    let mut decoder =
        FlightDataDecoder::new(stream::iter(messages.iter().cloned().map(Ok).collect::<Vec<_>>()));
    let mut batches = Vec::new();
    while let Some(message) = decoder.next().now_or_never().expect("nothing to wait for") {
        if let DecodedPayload::RecordBatch(batch) = message.unwrap().payload {
            batches.push(batch);
        }
    }
    batches
}

pub fn receipt(messages: &[FlightData]) -> pb::Receipt {
    let metadata = messages.last().unwrap().app_metadata.clone();
    prost::Message::decode(metadata).unwrap()
}

/// Symbol, event time and `close` of all rows, in order.
pub fn closes(messages: &[FlightData]) -> Vec<(String, i64, Option<f64>)> {
    use arrow_array::cast::AsArray;
    let mut rows = Vec::new();
    for batch in batches(messages) {
        let symbols = arrow_cast::cast(batch.column(0), &arrow_schema::DataType::Utf8).unwrap();
        let ts = batch.column(1).as_primitive::<arrow_array::types::TimestampNanosecondType>();
        let close = batch.column(2).as_primitive::<arrow_array::types::Float64Type>();
        for i in 0..batch.num_rows() {
            let value = close.is_valid(i).then(|| close.value(i));
            rows.push((symbols.as_string::<i32>().value(i).to_owned(), ts.value(i), value));
        }
    }
    rows
}
