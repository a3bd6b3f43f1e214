//! A scripted shard: it has the rows of a test, holds answers back, fails on request, and records its calls.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
};

use arrow_array::{ArrayRef, Float64Array, RecordBatch, StringArray, TimestampNanosecondArray};
use arrow_ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteContext, IpcWriteOptions};
use bytes::Bytes;
use futures::Stream;
use parking_lot::Mutex;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc, watch},
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream, UnboundedReceiverStream};
use tonic::{Request, Response, Status, Streaming};
use trellis_proto::{
    ChunkSpan, Code, DatasetSpec, Error, FieldType,
    fetch::{Answer, ChunkBatch, ChunkFailure, ChunkRun},
    pb,
    pb::shard_server::{Shard, ShardServer},
    spec::FieldSpec,
    time::DAY_NS,
};

pub(super) const DATASET: &str = "equities.daily";
/// Days of a chunk.
pub(super) const SPAN: i64 = 64;

/// A row: day, knowledge time.
pub(super) type Row = (i64, i64);

/// The value of a column in a row: different for each row, version and column.
pub(super) fn value(column: usize, row: Row) -> f64 {
    row.0 as f64 + row.1 as f64 * 1e-3 + column as f64 * 1e6
}

pub(super) fn spec() -> DatasetSpec {
    let field = |name: &str| FieldSpec {
        name: name.parse().unwrap(),
        data_type: FieldType::Float64,
        nullable: false,
    };
    let span = ChunkSpan::new(SPAN * DAY_NS).unwrap();
    DatasetSpec::new(DATASET.parse().unwrap(), vec![field("close"), field("open"), field("volume")], span)
        .unwrap()
}

/// The same dataset with its first two fields exchanged.
fn spec_swapped(swapped: bool) -> DatasetSpec {
    let mut spec = spec();
    if swapped {
        spec.fields.swap(0, 1);
    }
    spec
}

/// Changes an answer before it is sent, so that it breaks the contract.
pub(super) type Spoil = fn(&mut Vec<Answer>);

#[derive(Debug, Default)]
struct State {
    incarnation: u64,
    epoch: u64,
    owns: Vec<pb::Ownership>,
    rows: BTreeMap<String, Vec<Row>>,
    version: u64,
    known_through: i64,
    seq: u64,
    /// (version, symbol, first day, last day)
    commits: Vec<(u64, String, i64, i64)>,
    watchers: Vec<mpsc::UnboundedSender<Result<pb::WatchEvent, Status>>>,
    fetches: Vec<pb::FetchRequest>,
    confirms: Vec<pb::ConfirmRequest>,
    describes: usize,
    unopened: Vec<pb::ErrorDetail>,
    syncs: usize,
    /// Events that watchers have not been told, if they are withheld.
    withheld: Option<Vec<pb::WatchEvent>>,
    /// How often the first two fields have been exchanged.
    changes: u64,
    /// For a chunk, how many of the next answers fail, and with which code.
    failures: HashMap<(String, i64), (usize, Code)>,
    /// All chunks with the same fields come in one message; otherwise each chunk in its own.
    together: bool,
    /// Applied to the next answer.
    spoil: Option<Spoil>,
    down: bool,
}

impl State {
    fn tell(&mut self, event: pb::WatchEvent) {
        match &mut self.withheld {
            Some(withheld) => withheld.push(event),
            None => self.watchers.retain(|watcher| watcher.send(Ok(event.clone())).is_ok()),
        }
    }
}

/// The shard.
#[derive(Debug, Clone)]
pub(super) struct Fake {
    id: Arc<str>,
    state: Arc<Mutex<State>>,
    /// Permits to send one message each.
    gate: Arc<Semaphore>,
    /// Calls of Fetch so far.
    asked: watch::Sender<usize>,
    /// Fetches whose caller went away.
    cancelled: watch::Sender<usize>,
    /// Calls of Confirm wait.
    confirms_held: watch::Sender<bool>,
    /// It answers no call and tells no news, as a process that is stopped.
    frozen: watch::Sender<bool>,
    /// Calls of Symbols so far.
    listed: watch::Sender<usize>,
    /// Last position that a watcher acknowledged.
    applied: watch::Sender<u64>,
    pub(super) addr: SocketAddr,
}

fn everything() -> pb::Ownership {
    owns(0, 65_536)
}

pub(super) fn owns(start: u32, end: u32) -> pb::Ownership {
    pb::Ownership {
        dataset_pattern: "*".into(),
        symbols: Some(pb::ownership::Symbols::HashRange(pb::HashRange { start, end })),
        start_ns: None,
        end_ns: None,
    }
}

pub(super) fn encode(batch: &RecordBatch) -> (Bytes, Bytes) {
    let mut tracker = DictionaryTracker::new(true);
    let (_, data) = IpcDataGenerator::default()
        .encode(batch, &mut tracker, &IpcWriteOptions::default(), &mut IpcWriteContext::default())
        .unwrap();
    (data.ipc_message.into(), data.arrow_data.into())
}

fn times(times: impl Iterator<Item = i64>) -> ArrayRef {
    Arc::new(TimestampNanosecondArray::from_iter_values(times).with_timezone("UTC"))
}

impl Fake {
    /// A shard of this name that owns everything, with `days` rows of each symbol, known at 1.
    pub(super) async fn start(id: &str, symbols: &[&str], days: i64) -> Self {
        let rows =
            symbols.iter().map(|s| ((*s).to_owned(), (0..days).map(|day| (day, 1)).collect())).collect();
        let state = State {
            incarnation: 1,
            epoch: 1,
            owns: vec![everything()],
            rows,
            version: 1,
            known_through: 100,
            ..State::default()
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let fake = Self {
            id: id.into(),
            state: Arc::new(Mutex::new(state)),
            gate: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)),
            asked: watch::Sender::new(0),
            cancelled: watch::Sender::new(0),
            confirms_held: watch::Sender::new(false),
            frozen: watch::Sender::new(false),
            listed: watch::Sender::new(0),
            applied: watch::Sender::new(0),
            addr: listener.local_addr().unwrap(),
        };
        let serve = tonic::transport::Server::builder()
            .add_service(ShardServer::new(fake.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(serve);
        fake
    }

    /// From now on these are the datasets that it cannot open.
    pub(super) fn set_unopened(&self, errors: impl IntoIterator<Item = Error>) {
        self.state.lock().unopened = errors.into_iter().map(Into::into).collect();
    }
    pub(super) fn set_owns(&self, owns: Vec<pb::Ownership>) {
        self.state.lock().owns = owns;
    }
    /// From now on requests of the old epoch are refused.
    pub(super) fn next_epoch(&self) {
        self.state.lock().epoch += 1;
    }
    /// Answers wait for [`Self::release`].
    pub(super) fn hold(&self) {
        self.gate.forget_permits(self.gate.available_permits());
    }
    pub(super) fn release(&self, chunks: usize) {
        self.gate.add_permits(chunks);
    }
    pub(super) fn release_all(&self) {
        self.gate.add_permits(1 << 20);
    }
    pub(super) fn fail(&self, symbol: &str, chunk: i64, times: usize, code: Code) {
        self.state.lock().failures.insert((symbol.to_owned(), chunk), (times, code));
    }
    /// From now on all chunks with the same fields come in one message.
    pub(super) fn together(&self) {
        self.state.lock().together = true;
    }
    /// The next answer breaks the contract.
    pub(super) fn spoil(&self, spoil: Spoil) {
        self.state.lock().spoil = Some(spoil);
    }
    pub(super) fn fetches(&self) -> Vec<pb::FetchRequest> {
        self.state.lock().fetches.clone()
    }
    pub(super) fn confirms(&self) -> Vec<pb::ConfirmRequest> {
        self.state.lock().confirms.iter().filter(|confirm| !confirm.held.is_empty()).cloned().collect()
    }
    /// Whether calls of Confirm wait, from now on.
    pub(super) fn hold_confirms(&self, held: bool) {
        self.confirms_held.send_replace(held);
    }
    /// From now on it answers no call, or answers again.
    pub(super) fn freeze(&self, frozen: bool) {
        self.frozen.send_replace(frozen);
    }
    pub(super) async fn listed(&self, calls: usize) {
        self.listed.subscribe().wait_for(|listed| *listed >= calls).await.unwrap();
    }
    pub(super) fn lists(&self) -> usize {
        *self.listed.borrow()
    }
    async fn thawed(&self) {
        self.frozen.subscribe().wait_for(|frozen| !frozen).await.unwrap();
    }
    /// From now on watchers are told of commits only when a sync asks for it.
    pub(super) fn withhold(&self) {
        self.state.lock().withheld = Some(Vec::new());
    }
    pub(super) fn known_through(&self) -> i64 {
        self.state.lock().known_through
    }
    pub(super) fn syncs(&self) -> usize {
        self.state.lock().syncs
    }
    pub(super) fn describes(&self) -> usize {
        self.state.lock().describes
    }
    pub(super) async fn asked(&self, calls: usize) {
        self.asked.subscribe().wait_for(|asked| *asked >= calls).await.unwrap();
    }
    pub(super) async fn cancelled(&self, calls: usize) {
        self.cancelled.subscribe().wait_for(|cancelled| *cancelled >= calls).await.unwrap();
    }

    /// Commits rows, and tells the watchers; the change has the rows if `inline`.
    pub(super) fn commit(&self, symbol: &str, days: &[i64], inline: bool) -> u64 {
        let known_at = self.state.lock().known_through + 10;
        self.commit_at(known_at, symbol, days, inline)
    }

    /// As [`Self::commit`], with this knowledge time.
    pub(super) fn commit_at(&self, known_at: i64, symbol: &str, days: &[i64], inline: bool) -> u64 {
        let mut state = self.state.lock();
        state.version += 1;
        state.seq += 1;
        state.known_through = known_at;
        let rows = state.rows.entry(symbol.to_owned()).or_default();
        rows.extend(days.iter().map(|day| (*day, known_at)));
        rows.sort_unstable();
        let (first, last) = (*days.iter().min().unwrap(), *days.iter().max().unwrap());
        let commit = (state.version, symbol.to_owned(), first, last);
        state.commits.push(commit);
        let (data_header, data_body) = if inline {
            let mut columns: Vec<ArrayRef> = vec![
                Arc::new(StringArray::from_iter_values(days.iter().map(|_| symbol))),
                times(days.iter().map(|day| day * DAY_NS)),
                times(days.iter().map(|_| known_at)),
            ];
            for column in 0..3 {
                let values = days.iter().map(|day| value(column, (*day, known_at)));
                columns.push(Arc::new(Float64Array::from_iter_values(values)));
            }
            encode(&RecordBatch::try_new(spec().change_schema(), columns).unwrap())
        } else {
            Default::default()
        };
        let change = pb::Change {
            seq: state.seq,
            dataset: DATASET.into(),
            version: state.version,
            known_at_min_ns: known_at,
            known_at_max_ns: known_at,
            spans: vec![pb::SymbolSpan {
                symbol: symbol.into(),
                start_ns: first * DAY_NS,
                end_ns: last * DAY_NS + 1,
            }],
            everything: false,
            description: Some(state.description()),
            data_header,
            data_body,
            retracted: Bytes::new(),
        };
        let event = pb::WatchEvent { event: Some(pb::watch_event::Event::Change(change)) };
        state.tell(event);
        state.seq
    }

    /// Exchanges the first two fields.
    pub(super) fn swap_fields(&self) -> u64 {
        let mut state = self.state.lock();
        state.version += 1;
        state.seq += 1;
        state.changes += 1;
        let change = pb::Change {
            seq: state.seq,
            dataset: DATASET.into(),
            version: state.version,
            known_at_min_ns: i64::MIN,
            known_at_max_ns: state.known_through,
            everything: true,
            description: Some(state.description()),
            ..pb::Change::default()
        };
        let event = pb::WatchEvent { event: Some(pb::watch_event::Event::Change(change)) };
        state.tell(event);
        state.seq
    }

    /// Drops the dataset.
    pub(super) fn drop_dataset_now(&self) -> u64 {
        let mut state = self.state.lock();
        state.version += 1;
        state.seq += 1;
        let description = pb::DatasetDescription { dropped: true, ..state.description() };
        let change = pb::Change {
            seq: state.seq,
            dataset: DATASET.into(),
            version: state.version,
            everything: true,
            description: Some(description),
            ..pb::Change::default()
        };
        let event = pb::WatchEvent { event: Some(pb::watch_event::Event::Change(change)) };
        state.tell(event);
        state.seq
    }

    /// Sees a commit of another shard, which touches no chunk of this one.
    pub(super) fn learn(&self, known_at: i64) {
        let mut state = self.state.lock();
        if known_at <= state.known_through {
            return;
        }
        state.version += 1;
        state.seq += 1;
        state.known_through = known_at;
        let change = pb::Change {
            seq: state.seq,
            dataset: DATASET.into(),
            version: state.version,
            known_at_min_ns: known_at,
            known_at_max_ns: known_at,
            description: Some(state.description()),
            ..pb::Change::default()
        };
        let event = pb::WatchEvent { event: Some(pb::watch_event::Event::Change(change)) };
        state.tell(event);
    }

    /// Waits until a watcher has applied everything up to `seq`.
    pub(super) async fn applied(&self, seq: u64) {
        self.applied.subscribe().wait_for(|applied| *applied >= seq).await.unwrap();
    }

    /// The rows that a read of `[start, end)`, in days, as of `as_of` must return: every version, as the chunks have them.
    pub(super) fn truth(&self, symbol: &str, start: i64, end: i64, as_of: i64) -> Vec<Row> {
        let state = self.state.lock();
        let rows = state.rows[symbol].iter();
        rows.filter(|row| row.0 >= start && row.0 < end && row.1 <= as_of).copied().collect()
    }

    /// Breaks the log. `restart`: the shard comes back as a new process.
    pub(super) fn lose_log(&self, restart: bool) {
        let mut state = self.state.lock();
        if restart {
            state.incarnation += 1;
            state.seq = 0;
        }
        state.watchers.clear();
    }

    /// Skips a number of the log.
    pub(super) fn skip(&self) {
        self.state.lock().seq += 1;
    }

    /// Refuses all calls, and breaks the log.
    pub(super) fn go_away(&self) {
        let mut state = self.state.lock();
        state.down = true;
        state.watchers.clear();
    }
    pub(super) fn come_back(&self) {
        self.state.lock().down = false;
    }

    fn check_up(&self) -> Result<(), Status> {
        match self.state.lock().down {
            true => Err(Status::unavailable("down, as the test wants")),
            false => Ok(()),
        }
    }
}

impl State {
    fn description(&self) -> pb::DatasetDescription {
        let days = self.rows.values().flatten().map(|row| row.0);
        pb::DatasetDescription {
            spec: Some((&spec_swapped(self.changes % 2 == 1)).into()),
            schema: 1 + self.changes,
            version: self.version,
            known_through_ns: self.known_through,
            watermark_ns: None,
            first_ts_ns: days.clone().min().map(|day| day * DAY_NS),
            last_ts_ns: days.max().map(|day| day * DAY_NS),
            rows: self.rows.values().map(|rows| rows.len() as u64).sum(),
            symbols: self.rows.len() as u64,
            home: String::new(),
            ..pb::DatasetDescription::default()
        }
    }

    /// Answers ranges with the same fields.
    fn batch(&self, ranges: &[pb::ChunkRange], chunks: &[(usize, i64)]) -> ChunkBatch {
        let ask = &ranges[chunks[0].0];
        let (mut rows, mut runs): (Vec<Row>, _) = (Vec::new(), Vec::new());
        for (range, chunk) in chunks.iter().copied() {
            let before = rows.len();
            let all = self.rows.get(&ranges[range].symbol).into_iter().flatten();
            rows.extend(all.filter(|row| row.0.div_euclid(SPAN) == chunk));
            runs.push(ChunkRun { range, first: chunk, chunk_rows: vec![(rows.len() - before) as u32] });
        }
        let spec = spec();
        // the values of a column follow from its name
        let fields: Vec<usize> = ask.fields.iter().map(|name| spec.field(name).unwrap().0).collect();
        let mut columns =
            vec![times(rows.iter().map(|row| row.0 * DAY_NS)), times(rows.iter().map(|row| row.1))];
        for field in &fields {
            columns
                .push(Arc::new(Float64Array::from_iter_values(rows.iter().map(|row| value(*field, *row)))));
        }
        let (header, body) = encode(&RecordBatch::try_new(spec.chunk_schema(&fields), columns).unwrap());
        ChunkBatch {
            runs,
            version: self.version,
            known_through: self.known_through,
            watermark: None,
            seq: self.seq,
            header,
            body,
            retracted: Bytes::new(),
        }
    }
}

type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Shard for Fake {
    async fn describe(
        &self,
        request: Request<pb::ShardDescribeRequest>,
    ) -> Result<Response<pb::ShardDescription>, Status> {
        self.thawed().await;
        self.check_up()?;
        let mut state = self.state.lock();
        state.describes += 1;
        Ok(Response::new(pb::ShardDescription {
            shard: self.id.to_string(),
            epoch: state.epoch,
            owns: state.owns.clone(),
            incarnation: state.incarnation.to_string(),
            datasets: if request.get_ref().ownership_only { Vec::new() } else { vec![state.description()] },
            unopened: state.unopened.clone(),
        }))
    }

    async fn symbols(
        &self,
        _request: Request<pb::SymbolsRequest>,
    ) -> Result<Response<pb::SymbolsReply>, Status> {
        self.listed.send_modify(|listed| *listed += 1);
        self.thawed().await;
        self.check_up()?;
        let state = self.state.lock();
        Ok(Response::new(pb::SymbolsReply {
            symbols: state.rows.keys().cloned().collect(),
            version: state.version,
        }))
    }

    async fn sessions(
        &self,
        _request: Request<pb::SessionsRequest>,
    ) -> Result<Response<pb::SessionsReply>, Status> {
        Ok(Response::new(pb::SessionsReply { sessions_ns: vec![0, DAY_NS] }))
    }

    type FetchStream = Events<pb::FetchReply>;

    async fn fetch(&self, request: Request<pb::FetchRequest>) -> Result<Response<Self::FetchStream>, Status> {
        self.thawed().await;
        self.check_up()?;
        let request = request.into_inner();
        let mut answers = Vec::new();
        {
            let mut state = self.state.lock();
            if request.epoch != state.epoch {
                return Err(Error::new(Code::StaleEpoch, "another epoch").into());
            }
            state.fetches.push(request.clone());
            let apart = !state.together;
            let mut together: BTreeMap<&[String], Vec<(usize, i64)>> = BTreeMap::new();
            for (index, ask) in request.ranges.iter().enumerate() {
                let mut chunks: Vec<i64> = (ask.first..ask.end).collect();
                if request.order() == pb::FetchOrder::NewestFirst {
                    chunks.reverse();
                }
                if ask.schema != 1 + state.changes {
                    let error = Error::new(Code::StaleSchema, "planned before the fields changed");
                    answers.push(Answer::Failures(vec![ChunkFailure {
                        range: index,
                        chunks: ask.first..ask.end,
                        error,
                    }]));
                    continue;
                }
                for chunk in chunks {
                    let failing =
                        state.failures.get_mut(&(ask.symbol.clone(), chunk)).filter(|(times, _)| *times > 0);
                    match failing {
                        Some((times, code)) => {
                            *times -= 1;
                            answers.push(Answer::Failures(vec![ChunkFailure {
                                range: index,
                                chunks: chunk..chunk + 1,
                                error: Error::new(*code, "as the test wants"),
                            }]));
                        }
                        None if apart => {
                            answers.push(Answer::Batch(state.batch(&request.ranges, &[(index, chunk)])));
                        }
                        None => together.entry(&ask.fields).or_default().push((index, chunk)),
                    }
                }
            }
            let together = together.values().map(|chunks| state.batch(&request.ranges, chunks));
            answers.extend(together.map(Answer::Batch));
            if let Some(spoil) = state.spoil.take() {
                spoil(&mut answers);
            }
        }
        self.asked.send_modify(|asked| *asked += 1);
        let (sender, receiver) = mpsc::channel(1);
        let (gate, cancelled) = (Arc::clone(&self.gate), self.cancelled.clone());
        tokio::spawn(async move {
            for answer in answers {
                tokio::select! {
                    permit = gate.acquire() => permit.unwrap().forget(),
                    () = sender.closed() => {
                        cancelled.send_modify(|n| *n += 1);
                        return;
                    }
                }
                if sender.send(Ok(answer.into())).await.is_err() {
                    cancelled.send_modify(|n| *n += 1);
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    type WatchStream = Events<pb::WatchEvent>;

    async fn watch(
        &self,
        request: Request<Streaming<pb::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        self.thawed().await;
        self.check_up()?;
        let mut requests = request.into_inner();
        let first = requests.message().await?.and_then(|request| request.request);
        let Some(pb::watch_request::Request::Start(start)) = first else {
            return Err(Status::invalid_argument("a watch begins with a start"));
        };
        let (sender, receiver) = mpsc::unbounded_channel();
        {
            let mut state = self.state.lock();
            let resumes = start.incarnation == state.incarnation.to_string() && start.seq == state.seq;
            let hello = pb::WatchHello {
                shard: self.id.to_string(),
                incarnation: state.incarnation.to_string(),
                seq: if resumes { start.seq } else { state.seq },
                ownership_epoch: state.epoch,
            };
            let _ = sender.send(Ok(pb::WatchEvent { event: Some(pb::watch_event::Event::Hello(hello)) }));
            state.watchers.push(sender.clone());
        }
        let (applied, state) = (self.applied.clone(), Arc::clone(&self.state));
        // the first acknowledgement is answered; this must not keep a log open that the test loses
        let mut answer = Some(sender.downgrade());
        drop(sender);
        tokio::spawn(async move {
            while let Ok(Some(request)) = requests.message().await {
                if let Some(pb::watch_request::Request::Applied(seq)) = request.request {
                    applied.send_modify(|applied| *applied = seq);
                    if let Some(sender) = answer.take().and_then(|sender| sender.upgrade()) {
                        let state = state.lock();
                        let seq = state.seq - state.withheld.as_ref().map_or(0, Vec::len) as u64;
                        let heartbeat = pb::Heartbeat { seq, ownership_epoch: state.epoch };
                        let event = pb::watch_event::Event::Heartbeat(heartbeat);
                        let _ = sender.send(Ok(pb::WatchEvent { event: Some(event) }));
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(receiver))))
    }

    async fn confirm(
        &self,
        request: Request<pb::ConfirmRequest>,
    ) -> Result<Response<pb::ConfirmReply>, Status> {
        self.check_up()?;
        let request = request.into_inner();
        self.state.lock().confirms.push(request.clone());
        self.confirms_held.subscribe().wait_for(|held| !held).await.unwrap();
        let state = self.state.lock();
        let unchanged = request
            .held
            .iter()
            .map(|held| {
                !state.commits.iter().any(|(version, symbol, first, last)| {
                    *version > held.version
                        && *symbol == held.symbol
                        && first.div_euclid(SPAN) < held.end
                        && last.div_euclid(SPAN) >= held.first
                })
            })
            .collect();
        Ok(Response::new(pb::ConfirmReply {
            unchanged,
            seq: state.seq,
            known_through_ns: state.known_through,
        }))
    }

    async fn sync(&self, request: Request<pb::SyncRequest>) -> Result<Response<pb::SyncReply>, Status> {
        self.thawed().await;
        self.check_up()?;
        let seq = {
            let mut state = self.state.lock();
            state.syncs += 1;
            let withheld = state.withheld.take().unwrap_or_default();
            let any = !withheld.is_empty();
            withheld.into_iter().for_each(|event| state.tell(event));
            any.then_some(state.seq)
        };
        if let Some(seq) = seq {
            self.applied(seq).await;
        }
        Ok(Response::new(pb::SyncReply { version: request.get_ref().version }))
    }

    async fn acquire_lease(
        &self,
        _: Request<pb::AcquireLeaseRequest>,
    ) -> Result<Response<pb::Lease>, Status> {
        Err(Status::unimplemented("not a head's"))
    }
    async fn renew_lease(&self, _: Request<pb::RenewLeaseRequest>) -> Result<Response<pb::Lease>, Status> {
        Err(Status::unimplemented("not a head's"))
    }
    async fn release_lease(
        &self,
        _: Request<pb::ReleaseLeaseRequest>,
    ) -> Result<Response<pb::ReleaseLeaseReply>, Status> {
        Err(Status::unimplemented("not a head's"))
    }
    async fn publish(
        &self,
        _: Request<Streaming<pb::PublishMessage>>,
    ) -> Result<Response<pb::PublishAck>, Status> {
        Err(Status::unimplemented("not a head's"))
    }
    async fn alter_dataset(
        &self,
        _: Request<pb::AlterDatasetRequest>,
    ) -> Result<Response<pb::DatasetChange>, Status> {
        Err(Status::unimplemented("not of this fake"))
    }
    async fn drop_dataset(
        &self,
        _: Request<pb::DropDatasetRequest>,
    ) -> Result<Response<pb::DatasetChange>, Status> {
        Err(Status::unimplemented("not of this fake"))
    }
    async fn rename_dataset(
        &self,
        _: Request<pb::RenameDatasetRequest>,
    ) -> Result<Response<pb::DatasetChange>, Status> {
        Err(Status::unimplemented("not of this fake"))
    }
    async fn record_runs(
        &self,
        _: Request<pb::RecordRunsRequest>,
    ) -> Result<Response<pb::RecordRunsReply>, Status> {
        Err(Status::unimplemented("not a head's"))
    }
}
