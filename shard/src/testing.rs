//! For tests: a shard without its gRPC edge, over a store that can be made to fail and that remembers what was read.

use std::{
    io,
    ops::Range,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{
            AtomicUsize,
            Ordering::{self, Relaxed},
        },
    },
    time::Duration,
};

use arrow_array::types::{Float64Type, TimestampNanosecondType};
use arrow_array::{Array, ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, cast::AsArray};
use bytes::Bytes;
use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use object_store::{
    CopyOptions, GetOptions, GetRange, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, path::Path,
};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use trellis_proto::{
    ChunkSpan, DatasetName, DatasetSpec, FieldType, Result,
    fetch::{Answer, Awaited, ChunkBatch},
    name::FieldName,
    pb,
    spec::FieldSpec,
    time::DAY_NS,
};

use crate::{
    clock::WallClock,
    config::Config,
    files::{DurableLocal, Lake},
    scan,
    shard::Shard,
    table::{Holder, SessionKey, Snapshot, Table},
    watch_log::{News, Subscription},
    write::{Acquisition, Effect, Publish, Right, Rows, rows_schema},
};

/// The one dataset of these tests: a float field `value`, chunks of 64 days.
pub(crate) const DATASET: &str = "d.a";

/// A watcher of the dataset, from now on.
pub(crate) async fn follow(shard: &Shard) -> Subscription {
    let unknown = shard.catalog.know(DATASET).await.err().map(|error| (DATASET.to_owned(), error));
    shard.subscribe(&watch_start(), &unknown.into_iter().collect()).unwrap()
}

/// How a watcher of the dataset begins.
pub(crate) fn watch_start() -> pb::WatchStart {
    pb::WatchStart { datasets: vec![DATASET.to_owned()], ..pb::WatchStart::default() }
}

impl Subscription {
    /// The changes that wait in the queue.
    pub(crate) fn changes(&mut self) -> Vec<Arc<pb::Change>> {
        let news = std::iter::from_fn(|| self.queue.try_recv().ok());
        news.filter_map(|news| match news {
            News::Change(change) => Some(change),
            News::Subscribed(_) => None,
        })
        .collect()
    }
}

/// When a write fails: before it takes place, or after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    Before,
    After,
    /// It takes place, its answer is lost, and the store's client asks again by itself.
    Again,
}

/// A store that fails on demand.
#[derive(Debug)]
pub(crate) struct Probe {
    inner: DurableLocal,
    fault: Mutex<Option<(&'static str, io::ErrorKind, When)>>,
    reads: Mutex<Vec<(String, Range<u64>)>>,
    requests: AtomicUsize,
    open: Arc<Open>,
}

/// How many requests have a file open: now, and at most until now.
#[derive(Debug, Default)]
struct Open {
    now: AtomicUsize,
    most: AtomicUsize,
}

/// One request that has a file open, until it is dropped.
struct Opened(Arc<Open>);

impl Drop for Opened {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Probe {
    /// Requests so far.
    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Relaxed)
    }

    fn inner(&self) -> &DurableLocal {
        self.requests.fetch_add(1, Relaxed);
        &self.inner
    }

    /// Writes of paths that contain `part` fail from now on.
    pub(crate) fn fail(&self, part: &'static str, kind: io::ErrorKind, when: When) {
        *self.fault.lock() = Some((part, kind, when));
    }

    fn opened(&self) -> Opened {
        let now = self.open.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.open.most.fetch_max(now, Ordering::SeqCst);
        Opened(self.open.clone())
    }

    /// Most files that were open at once.
    pub(crate) fn most_open(&self) -> usize {
        self.open.most.load(Ordering::SeqCst)
    }

    pub(crate) fn heal(&self) {
        *self.fault.lock() = None;
    }

    pub(crate) fn forget(&self) {
        self.reads.lock().clear();
    }

    /// Ranges read of paths that contain `part`: how many, and their bytes.
    pub(crate) fn reads(&self, part: &str) -> (usize, u64) {
        let reads = self.reads.lock();
        let found: Vec<_> = reads.iter().filter(|(path, _)| path.contains(part)).collect();
        (found.len(), found.iter().map(|(_, range)| range.end - range.start).sum())
    }

    fn check(&self, location: &Path, now: When) -> object_store::Result<()> {
        match *self.fault.lock() {
            Some((part, kind, when)) if when == now && location.as_ref().contains(part) => {
                Err(object_store::Error::Generic { store: "Probe", source: Box::new(io::Error::from(kind)) })
            }
            _ => Ok(()),
        }
    }
}

impl std::fmt::Display for Probe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Probe")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Probe {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> object_store::Result<PutResult> {
        let _open = self.opened();
        self.check(location, When::Before)?;
        let put = self.inner().put_opts(location, payload.clone(), opts.clone()).await?;
        self.check(location, When::After)?;
        match self.check(location, When::Again) {
            Ok(()) => Ok(put),
            Err(_) => self.inner().put_opts(location, payload, opts).await,
        }
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.inner().put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        if let Some(GetRange::Bounded(range)) = &options.range {
            self.reads.lock().push((location.to_string(), range.clone()));
        }
        let open = self.opened();
        let mut got = self.inner().get_opts(location, options).await?;
        // The file stays open as long as the answer.
        let payload = std::mem::replace(&mut got.payload, GetResultPayload::Stream(stream::empty().boxed()));
        got.payload = match payload {
            GetResultPayload::File(file, path) => {
                let whole = GetResult {
                    payload: GetResultPayload::File(file, path),
                    meta: got.meta.clone(),
                    range: got.range.clone(),
                    attributes: got.attributes.clone(),
                };
                let bytes = whole.into_stream().inspect(move |_| _ = &open);
                GetResultPayload::Stream(bytes.boxed())
            }
            other => other,
        };
        Ok(got)
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> object_store::Result<Vec<Bytes>> {
        self.reads.lock().extend(ranges.iter().map(|range| (location.to_string(), range.clone())));
        let _open = self.opened();
        self.inner().get_ranges(location, ranges).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        self.inner().delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner().list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.inner().list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        self.inner().copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> object_store::Result<()> {
        self.inner().rename_opts(from, to, options).await
    }
}

/// A shard that owns everything, with one dataset.
pub(crate) struct Grid {
    pub(crate) shard: Arc<Shard>,
    pub(crate) probe: Arc<Probe>,
    lake: tempfile::TempDir,
    clock: WallClock,
}

impl Grid {
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        Self::start(change, WallClock::system()).await
    }

    pub(crate) async fn with_clock(clock: WallClock) -> Self {
        Self::start(|_| {}, clock).await
    }

    async fn start(change: impl FnOnce(&mut Config), clock: WallClock) -> Self {
        let lake = tempfile::tempdir().unwrap();
        let mut config = Config::local(lake.path()).unwrap();
        change(&mut config);
        let (shard, probe) = open(config, clock.clone()).await;
        Self { shard, probe, lake, clock }
    }

    /// The same lake, another life.
    pub(crate) async fn restart(self) -> Self {
        let (shard, probe) = open(self.shard.config.clone(), self.clock.clone()).await;
        Self { shard, probe, ..self }
    }

    /// Another life beside this one.
    pub(crate) async fn beside(&self) -> Arc<Shard> {
        open(self.shard.config.clone(), self.clock.clone()).await.0
    }

    /// The folder of the dataset.
    pub(crate) fn path(&self) -> PathBuf {
        self.lake.path().join(DATASET)
    }

    pub(crate) fn data_files(&self) -> usize {
        let files = std::fs::read_dir(self.path()).unwrap();
        files.filter(|f| f.as_ref().unwrap().path().extension().is_some_and(|e| e == "parquet")).count()
    }

    pub(crate) fn table(&self) -> Arc<Table> {
        self.shard.catalog.entry(&DatasetName::new(DATASET).unwrap())
    }

    pub(crate) async fn import(&self, rows: &[(&str, i64, f64)]) -> Result<pb::PublishAck> {
        self.commit(Right::Import { known_at: None }, "", rows, None, Effect::Adds, None).await
    }

    /// Retracts rows.
    pub(crate) async fn retract(&self, rows: &[(&str, i64)]) -> Result<pb::PublishAck> {
        let rows: Vec<_> = rows.iter().map(|(symbol, ts)| (*symbol, *ts, 0.0)).collect();
        self.commit(Right::Import { known_at: None }, "", &rows, None, Effect::Retracts, None).await
    }

    /// Publishes rows; a session is the event times that they have.
    pub(crate) async fn publish(
        &self,
        unit: &str,
        epoch: u64,
        run_id: &str,
        rows: &[(&str, i64, f64)],
    ) -> Result<pb::PublishAck> {
        let (first, last) = (rows.iter().map(|r| r.1).min(), rows.iter().map(|r| r.1).max());
        let range = first.unwrap_or(0)..last.map_or(0, |last| last + 1);
        let right = Right::Session { unit: unit.to_owned(), epoch };
        self.commit(right, run_id, rows, last.map(|last| last + 1), Effect::Replaces(range), None).await
    }

    /// Publishes the rows of a session, of one partition of it if that has a name.
    pub(crate) async fn publish_session(
        &self,
        unit: &str,
        epoch: u64,
        run_id: &str,
        rows: &[(&str, i64, f64)],
        session: Range<i64>,
        partition: &str,
    ) -> Result<pb::PublishAck> {
        let watermark = rows.iter().map(|r| r.1 + 1).max();
        let right = Right::Session { unit: unit.to_owned(), epoch };
        let key = SessionKey { session: session.start.to_string(), partition: partition.to_owned() };
        self.commit(right, run_id, rows, watermark, Effect::Replaces(session), Some(key)).await
    }

    async fn commit(
        &self,
        right: Right,
        run_id: &str,
        rows: &[(&str, i64, f64)],
        watermark: Option<i64>,
        effect: Effect,
        session: Option<SessionKey>,
    ) -> Result<pb::PublishAck> {
        let publish = publish(right, run_id, rows, watermark, effect, session);
        self.shard.committers.of(&self.table()).publish(publish).await
    }

    pub(crate) async fn lease(&self, unit: &str) {
        let asked = Acquisition {
            holder: Holder { unit: unit.to_owned(), instance: "1".to_owned() },
            ttl: Duration::from_secs(60),
            take_over: true,
            spec: Some(Arc::new(spec())),
        };
        self.shard.committers.of(&self.table()).acquire(asked).await.unwrap();
    }

    pub(crate) fn range(symbol: &str, first: i64, end: i64) -> pb::ChunkRange {
        let fields = vec!["value".to_owned()];
        pb::ChunkRange {
            dataset: DATASET.to_owned(),
            symbol: symbol.to_owned(),
            fields,
            first,
            end,
            ..pb::ChunkRange::default()
        }
    }

    /// Rows (ts, value) of ranges, in the order they come.
    pub(crate) async fn fetch(&self, ranges: Vec<pb::ChunkRange>) -> Vec<(i64, f64)> {
        let (out, replies) = mpsc::channel(1);
        let request = oldest_first(ranges);
        let (shard, asked) = (self.shard.clone(), request.clone());
        tokio::spawn(async move { shard.fetch(request, &out).await });
        collect(&asked, replies).await
    }

    /// All rows of a symbol.
    pub(crate) async fn rows(&self, symbol: &str) -> Vec<(i64, f64)> {
        self.fetch(vec![Self::range(symbol, 0, 2)]).await
    }

    /// As of a snapshot that may be an old one.
    pub(crate) async fn rows_at(&self, snapshot: Arc<Snapshot>, symbol: &str) -> Vec<(i64, f64)> {
        let (out, replies) = mpsc::channel(1);
        let request =
            scan::RangeRequest { position: 0, symbol: symbol.to_owned(), fields: vec![0], first: 0, end: 2 };
        tokio::spawn(async move {
            scan::read_chunks(snapshot, vec![request], pb::FetchOrder::OldestFirst, 0, &out).await.unwrap();
        });
        collect(&oldest_first(vec![Self::range(symbol, 0, 2)]), replies).await
    }
}

fn oldest_first(ranges: Vec<pb::ChunkRange>) -> pb::FetchRequest {
    pb::FetchRequest { ranges, order: pb::FetchOrder::OldestFirst.into(), epoch: 1 }
}

async fn open(config: Config, clock: WallClock) -> (Arc<Shard>, Arc<Probe>) {
    let probe = Arc::new(Probe {
        inner: DurableLocal::default(),
        fault: Mutex::default(),
        reads: Mutex::default(),
        requests: AtomicUsize::new(0),
        open: Arc::default(),
    });
    let lake = Lake::over(probe.clone(), None, &config.lake).unwrap();
    let shard = Shard::over(config, lake, clock).await.unwrap();
    // Most tests begin with an open table. If it does not open, they see that later.
    let _ = shard.catalog.find_any(DATASET).await;
    (shard, probe)
}

pub(crate) fn spec() -> DatasetSpec {
    let field =
        FieldSpec { name: FieldName::new("value").unwrap(), data_type: FieldType::Float64, nullable: true };
    DatasetSpec::new(DatasetName::new(DATASET).unwrap(), vec![field], ChunkSpan::new(64 * DAY_NS).unwrap())
        .unwrap()
}

/// An entry of the log as an earlier release wrote it, without a checksum.
pub(crate) fn of_earlier_release(entry: &str) -> String {
    let (_, rest) = entry.split_once(',').unwrap();
    format!("{{\"commitInfo\":{{\"trellisLines\":{},{rest}", entry.lines().count())
}

/// A row of a range: range, ts, known_at, value. A retraction has no value.
pub(crate) type RangeRow = (usize, i64, i64, Option<f64>);

/// The rows of a batch about [`spec`]'s field.
pub(crate) fn rows_of(batch: &ChunkBatch) -> Vec<RangeRow> {
    let message = arrow_ipc::root_as_message(&batch.header).unwrap();
    let rows = arrow_ipc::reader::read_record_batch(
        &arrow_buffer::Buffer::from(batch.body.clone()),
        message.header_as_record_batch().unwrap(),
        spec().chunk_schema(&[0]),
        &std::collections::HashMap::new(),
        None,
        &message.version(),
    )
    .unwrap();
    assert_eq!(rows.num_rows() as u64, batch.rows());
    let time = |i: usize| rows.column(i).as_primitive::<TimestampNanosecondType>();
    let (ts, known_at, values) = (time(0), time(1), rows.column(2).as_primitive::<Float64Type>());
    let ranges = batch.runs.iter().flat_map(|run| std::iter::repeat_n(run.range, run.rows() as usize));
    let retracted = |row: usize| batch.retracted.get(row / 8).is_some_and(|bits| bits >> (row % 8) & 1 == 1);
    let value = |row: usize| {
        assert_eq!(values.is_null(row), retracted(row), "a retraction has no value, and a row has one");
        (!retracted(row)).then(|| values.value(row))
    };
    ranges.enumerate().map(|(i, range)| (range, ts.value(i), known_at.value(i), value(i))).collect()
}

/// Rows (ts, value) of the answer to `request`, in the order they come, retractions as NaN.
async fn collect(
    request: &pb::FetchRequest,
    mut replies: mpsc::Receiver<Result<pb::FetchReply, tonic::Status>>,
) -> Vec<(i64, f64)> {
    let mut awaited = Awaited::of(request);
    let mut rows = Vec::new();
    while let Some(reply) = replies.recv().await {
        match awaited.accept(reply.unwrap()).unwrap() {
            Answer::Batch(batch) => {
                rows.extend(
                    rows_of(&batch).into_iter().map(|(_, ts, _, value)| (ts, value.unwrap_or(f64::NAN))),
                );
            }
            Answer::Failures(failures) => panic!("{failures:?}"),
        }
    }
    assert!(awaited.is_empty());
    rows
}

/// A publish of these rows that nobody has sent.
pub(crate) fn publish(
    right: Right,
    run_id: &str,
    rows: &[(&str, i64, f64)],
    watermark: Option<i64>,
    effect: Effect,
    session: Option<SessionKey>,
) -> Publish {
    let spec = Arc::new(spec());
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(rows.iter().map(|r| r.0))),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.1))),
        Arc::new(Float64Array::from_iter_values(rows.iter().map(|r| r.2))),
    ];
    let rows = Rows::trusted(&RecordBatch::try_new(rows_schema(&spec), columns).unwrap()).unwrap();
    let digest = rows.digest(run_id).unwrap();
    let note = serde_json::Value::Null;
    let run_id = run_id.to_owned();
    Publish { right, spec, rows, run_id, digest, session, watermark, effect, note, _held: None }
}
