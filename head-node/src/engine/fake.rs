//! A scripted shard: it has the rows of a test, holds answers back, fails on request, and records its calls.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
};

use arrow_array::{ArrayRef, Float64Array, RecordBatch, StringArray, TimestampNanosecondArray};
use arrow_ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteContext, IpcWriteOptions};
use bytes::Bytes;
use futures::Stream;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc, watch},
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream, UnboundedReceiverStream};
use tonic::{Request, Response, Status, Streaming};
use trellis_proto::{
    ChunkSpan, Code, DatasetSpec, Error, FieldType,
    fetch::{Answer, ChunkBatch, ChunkFailure, ChunkRun},
    pb::{
        self,
        shard_server::{Shard, ShardServer},
        watch_event::Event,
        watch_request::Request as Asked,
    },
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
    watchers: Vec<Watcher>,
    /// Watchers so far.
    watched: u64,
    /// Datasets that watchers have named so far, each as often as it was.
    subscribed: Vec<String>,
    /// The dataset is dropped.
    dropped: bool,
    /// So many of the next questions for a dataset are answered with an error of the store.
    refuses: usize,
    others: BTreeMap<String, Other>,
    /// First acknowledgements are not answered.
    answers_held: bool,
    /// Bytes of the events of watchers that are gone.
    bytes_gone: usize,
    fetches: Vec<pb::FetchRequest>,
    confirms: Vec<pb::ConfirmRequest>,
    unopened: Vec<pb::ErrorDetail>,
    syncs: usize,
    /// Events that watchers have not been told, if they are withheld.
    withheld: Option<Vec<pb::Change>>,
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

/// A watcher's end of the log.
#[derive(Debug)]
struct Watcher {
    number: u64,
    events: mpsc::UnboundedSender<Result<pb::WatchEvent, Status>>,
    /// The position of its last event.
    at: u64,
    follows: BTreeSet<String>,
    /// Its last acknowledgement.
    applied: Option<u64>,
    /// Bytes of the events that it was sent.
    bytes: usize,
}

impl Watcher {
    /// Returns whether the watcher is there.
    fn tell(&mut self, seq: u64, event: Event) -> bool {
        let event = pb::WatchEvent { after: std::mem::replace(&mut self.at, seq), event: Some(event) };
        self.bytes += event.encoded_len();
        self.events.send(Ok(event)).is_ok()
    }
}

/// A dataset beside the one of the rows. It has the same rows.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Other {
    pub(super) version: u64,
    pub(super) dropped: bool,
}

impl State {
    fn lose_watchers(&mut self) {
        self.bytes_gone += self.watchers.drain(..).map(|watcher| watcher.bytes).sum::<usize>();
    }

    fn tell(&mut self, change: pb::Change) {
        match &mut self.withheld {
            Some(withheld) => withheld.push(change),
            None => self.watchers.retain_mut(|watcher| {
                !watcher.follows.contains(&change.dataset)
                    || watcher.tell(change.seq, Event::Change(change.clone()))
            }),
        }
    }

    /// The position up to which watchers have been told.
    fn told(&self) -> u64 {
        self.seq - self.withheld.as_ref().map_or(0, Vec::len) as u64
    }

    /// What a watcher is told that names a dataset.
    fn answer(&mut self, dataset: &str) -> pb::Subscribed {
        self.subscribed.push(dataset.to_owned());
        if self.refuses > 0 {
            self.refuses -= 1;
            let refused = Error::new(Code::Unavailable, "the store does not answer");
            let answer = Some(pb::subscribed::Answer::Error(refused.into()));
            return pb::Subscribed { dataset: dataset.to_owned(), seq: self.told(), answer };
        }
        let described = match dataset {
            DATASET => Some(self.description()),
            _ => self.other(dataset),
        };
        let answer = match described {
            Some(description) => pb::subscribed::Answer::Description(description),
            None => {
                let unknown = Error::new(Code::UnknownDataset, format!("there is no dataset {dataset:?}"));
                pb::subscribed::Answer::Error(unknown.hint(format!("did you mean {DATASET}?")).into())
            }
        };
        pb::Subscribed { dataset: dataset.to_owned(), seq: self.told(), answer: Some(answer) }
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
    /// It answers no call and sends no change, like a process that is stopped.
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
    /// From now on it tells watchers of commits only when a sync asks for it.
    pub(super) fn withhold(&self) {
        self.state.lock().withheld = Some(Vec::new());
    }
    pub(super) fn known_through(&self) -> i64 {
        self.state.lock().known_through
    }
    pub(super) fn syncs(&self) -> usize {
        self.state.lock().syncs
    }
    /// The datasets that watchers have named so far, each as often as it was.
    pub(super) fn subscribed(&self) -> Vec<String> {
        self.state.lock().subscribed.clone()
    }
    /// From now on so many questions for a dataset are answered with an error of the store.
    pub(super) fn refuse(&self, questions: usize) {
        self.state.lock().refuses = questions;
    }
    /// Commits rows while no watcher follows the dataset, and then answers a watcher that has named it again.
    pub(super) fn commit_unseen(&self, symbol: &str, days: &[i64]) {
        self.withhold();
        self.commit(symbol, days, true);
        let mut state = self.state.lock();
        state.withheld = None;
        let (answer, seq) = (state.answer(DATASET), state.told());
        state.watchers.retain_mut(|watcher| watcher.tell(seq, Event::Subscribed(answer.clone())));
    }
    /// Whether an acknowledgement gets no answer, from now on.
    pub(super) fn hold_answers(&self, held: bool) {
        self.state.lock().answers_held = held;
    }
    /// Tells the watchers that nothing has happened.
    pub(super) fn beat(&self) {
        let mut state = self.state.lock();
        let (seq, ownership_epoch) = (state.told(), state.epoch);
        let heartbeat = pb::Heartbeat { seq, ownership_epoch, answers: false };
        state.watchers.retain_mut(|watcher| watcher.tell(seq, Event::Heartbeat(heartbeat)));
    }
    /// The datasets that a watcher follows.
    pub(super) fn followed(&self) -> BTreeSet<String> {
        self.state.lock().watchers.iter().flat_map(|watcher| watcher.follows.clone()).collect()
    }
    /// Bytes of all events so far.
    pub(super) fn told_bytes(&self) -> usize {
        let state = self.state.lock();
        state.bytes_gone + state.watchers.iter().map(|watcher| watcher.bytes).sum::<usize>()
    }
    /// Whether every watcher has acknowledged something.
    pub(super) fn acknowledged(&self) -> bool {
        self.state.lock().watchers.iter().all(|watcher| watcher.applied.is_some())
    }
    /// Sessions of its log so far.
    pub(super) fn sessions(&self) -> u64 {
        self.state.lock().watched
    }
    /// Whether a publish of a dataset is acknowledged: every watcher of it that acknowledges has applied the log up to `seq`.
    pub(super) fn acknowledges(&self, dataset: &str, seq: u64) -> bool {
        let state = self.state.lock();
        let mut followers = state.watchers.iter().filter(|watcher| watcher.follows.contains(dataset));
        followers.all(|watcher| watcher.applied.is_none_or(|applied| applied >= seq))
    }
    /// Commits to a dataset beside the one of the rows, or makes it. Returns the position and the version.
    pub(super) fn touch(&self, dataset: &str, dropped: bool) -> (u64, u64) {
        let mut state = self.state.lock();
        state.seq += 1;
        state.known_through += 10;
        let other = state.others.entry(dataset.to_owned()).or_default();
        *other = Other { version: other.version + 1, dropped };
        let version = other.version;
        let change = pb::Change {
            seq: state.seq,
            dataset: dataset.to_owned(),
            version,
            known_at_min_ns: state.known_through,
            known_at_max_ns: state.known_through,
            everything: true,
            description: state.other(dataset),
            ..pb::Change::default()
        };
        state.tell(change);
        (state.seq, version)
    }
    /// Has these datasets, too.
    pub(super) fn make_others(&self, names: impl Iterator<Item = String>) {
        let others = names.map(|name| (name, Other { version: 1, dropped: false }));
        self.state.lock().others.extend(others);
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

    /// Like [`Self::commit`], with this knowledge time.
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
        state.tell(change);
        state.seq
    }

    /// Exchanges the first two fields.
    pub(super) fn swap_fields(&self) -> u64 {
        let mut state = self.state.lock();
        state.version += 1;
        state.seq += 1;
        state.changes += 1;
        state.dropped = false;
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
        state.tell(change);
        state.seq
    }

    /// Drops the dataset.
    pub(super) fn drop_dataset_now(&self) -> u64 {
        let mut state = self.state.lock();
        state.version += 1;
        state.seq += 1;
        state.dropped = true;
        let description = state.description();
        let change = pb::Change {
            seq: state.seq,
            dataset: DATASET.into(),
            version: state.version,
            everything: true,
            description: Some(description),
            ..pb::Change::default()
        };
        state.tell(change);
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
        state.tell(change);
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
        state.lose_watchers();
    }

    /// Loses an event on its way to the watchers.
    pub(super) fn skip(&self) {
        let mut state = self.state.lock();
        state.seq += 1;
        let seq = state.seq;
        state.watchers.iter_mut().for_each(|watcher| watcher.at = seq);
    }

    /// Refuses all calls, and breaks the log.
    pub(super) fn go_away(&self) {
        let mut state = self.state.lock();
        state.down = true;
        state.lose_watchers();
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
    fn other(&self, name: &str) -> Option<pb::DatasetDescription> {
        let Other { version, dropped } = *self.others.get(name)?;
        let said = self.description();
        let spec = said.spec.map(|spec| pb::DatasetSpec { dataset: name.to_owned(), ..spec });
        Some(pb::DatasetDescription { spec, version, dropped, ..said })
    }

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
            dropped: self.dropped,
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
        let state = self.state.lock();
        Ok(Response::new(pb::ShardDescription {
            shard: self.id.to_string(),
            epoch: state.epoch,
            owns: state.owns.clone(),
            incarnation: state.incarnation.to_string(),
            datasets: match request.get_ref().ownership_only {
                true => Vec::new(),
                false => {
                    let others = state.others.keys().filter_map(|name| state.other(name));
                    others.chain([state.description()]).collect()
                }
            },
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
        let Some(Asked::Start(start)) = first else {
            return Err(Status::invalid_argument("a watch begins with a start"));
        };
        let (events, receiver) = mpsc::unbounded_channel();
        let number = {
            let mut state = self.state.lock();
            let resumes = start.incarnation == state.incarnation.to_string() && start.seq == state.told();
            let seq = state.told();
            let hello = pb::WatchHello {
                shard: self.id.to_string(),
                incarnation: state.incarnation.to_string(),
                seq,
                ownership_epoch: state.epoch,
            };
            let _ = events.send(Ok(pb::WatchEvent { after: 0, event: Some(Event::Hello(hello)) }));
            state.watched += 1;
            let follows = start.datasets.iter().cloned().collect();
            let number = state.watched;
            let mut watcher = Watcher { number, events, at: seq, follows, applied: None, bytes: 0 };
            if !resumes {
                for dataset in &start.datasets {
                    let answer = state.answer(dataset);
                    watcher.tell(seq, Event::Subscribed(answer));
                }
            }
            state.watchers.push(watcher);
            state.watched
        };
        let fake = self.clone();
        tokio::spawn(async move {
            let mut answers = true;
            while let Ok(Some(request)) = requests.message().await {
                fake.thawed().await;
                let mut state = fake.state.lock();
                let (told, epoch) = (state.told(), state.epoch);
                let is = |watcher: &&mut Watcher| watcher.number == number;
                match request.request {
                    Some(Asked::Applied(seq)) => {
                        fake.applied.send_modify(|applied| *applied = seq);
                        let answers = !state.answers_held && std::mem::take(&mut answers);
                        if let Some(watcher) = state.watchers.iter_mut().find(is) {
                            watcher.applied = Some(seq);
                        }
                        if answers && let Some(watcher) = state.watchers.iter_mut().find(is) {
                            let heartbeat = pb::Heartbeat { seq: told, ownership_epoch: epoch, answers };
                            watcher.tell(told, Event::Heartbeat(heartbeat));
                        }
                    }
                    Some(Asked::Subscribe(names)) => {
                        for dataset in names.datasets {
                            let answer = state.answer(&dataset);
                            if let Some(watcher) = state.watchers.iter_mut().find(is) {
                                watcher.follows.insert(dataset);
                                watcher.tell(told, Event::Subscribed(answer));
                            }
                        }
                    }
                    Some(Asked::Unsubscribe(names)) => {
                        if let Some(watcher) = state.watchers.iter_mut().find(is) {
                            watcher.follows.retain(|dataset| !names.datasets.contains(dataset));
                        }
                    }
                    Some(Asked::Start(_)) | None => {}
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
            withheld.into_iter().for_each(|change| state.tell(change));
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
