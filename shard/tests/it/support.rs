//! A shard in this process, a client of it, and rows in a form that tests compare easily.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use arrow_array::{
    Array, ArrayRef, Float64Array, RecordBatch, StringArray, TimestampNanosecondArray,
    cast::AsArray,
    types::{Float64Type, TimestampNanosecondType},
};
use arrow_ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteContext, IpcWriteOptions};
use arrow_schema::Schema;
use bytes::Bytes;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpListener,
    process::{Child, Command},
    sync::oneshot,
    task::JoinHandle,
};
use tonic::transport::Channel;
use trellis_proto::{
    ChunkSpan, DatasetName, DatasetSpec, Error, FieldType, Result,
    fetch::{Answer, Awaited, ChunkRun},
    name::FieldName,
    pb::{self, shard_client::ShardClient},
    spec::FieldSpec,
    time::DAY_NS,
};
use trellis_shard::Config;

/// A row: symbol, ts, value.
pub(crate) type Row = (&'static str, i64, f64);

/// A shard that serves.
pub(crate) struct Served {
    pub(crate) client: ShardClient<Channel>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<()>>,
}

impl Served {
    pub(crate) async fn start(config: Config) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(trellis_shard::run(config, listener, async {
            let _ = stopped.await;
        }));
        Self { client: connect(&address.to_string()).await, stop: Some(stop), task }
    }

    /// One shard that owns all of a lake.
    pub(crate) async fn local(lake: &Path) -> Self {
        Self::start(config(lake)).await
    }

    pub(crate) async fn stop(mut self) {
        drop(self.client);
        self.stop.take().unwrap().send(()).unwrap();
        self.task.await.unwrap().unwrap();
    }
}

pub(crate) fn config(lake: &Path) -> Config {
    Config { apply_wait: Duration::from_secs(2), ..Config::local(lake).unwrap() }
}

pub(crate) async fn connect(address: &str) -> ShardClient<Channel> {
    // The shard opens its lake before it accepts connections; the connection waits in the backlog.
    let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    ShardClient::new(channel).max_decoding_message_size(64 << 20).max_encoding_message_size(64 << 20)
}

/// The real binary on a lake, and its address.
pub(crate) async fn spawn(lake: impl AsRef<OsStr>, variables: &[(&str, String)]) -> (Child, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shard"));
    // a program refuses the variables of a test run, such as TRELLIS_KILLS
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("TRELLIS_")) {
            command.env_remove(name);
        }
    }
    let mut child = command
        .env("TRELLIS_LAKE", lake)
        .env("TRELLIS_LOG", "warn")
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let ready: serde_json::Value = serde_json::from_str(&lines.next_line().await.unwrap().unwrap()).unwrap();
    assert_eq!((ready["ready"].as_bool(), ready["role"].as_str()), (Some(true), Some("shard")));
    (child, ready["listen"].as_str().unwrap().to_owned())
}

/// A dataset with one nullable float field, `value`, and chunks of 64 days.
pub(crate) fn spec(dataset: &str) -> DatasetSpec {
    let field =
        FieldSpec { name: FieldName::new("value").unwrap(), data_type: FieldType::Float64, nullable: true };
    DatasetSpec::new(DatasetName::new(dataset).unwrap(), vec![field], ChunkSpan::new(64 * DAY_NS).unwrap())
        .unwrap()
}

pub(crate) fn batch<S: AsRef<str>>(rows: &[(S, i64, f64)]) -> RecordBatch {
    let ts = TimestampNanosecondArray::from_iter_values(rows.iter().map(|r| r.1)).with_timezone("UTC");
    RecordBatch::try_from_iter([
        ("symbol", Arc::new(StringArray::from_iter_values(rows.iter().map(|r| r.0.as_ref()))) as ArrayRef),
        ("ts", Arc::new(ts) as ArrayRef),
        ("value", Arc::new(Float64Array::from_iter_values(rows.iter().map(|r| r.2))) as ArrayRef),
    ])
    .unwrap()
}

/// The messages of a publish.
pub(crate) fn messages(header: pb::PublishHeader, batches: &[RecordBatch]) -> Vec<pb::PublishMessage> {
    let ipc = |(data_header, data_body): (Vec<u8>, Vec<u8>)| pb::PublishMessage {
        message: Some(pb::publish_message::Message::Ipc(pb::IpcMessage {
            data_header: data_header.into(),
            data_body: data_body.into(),
        })),
    };
    let mut out = vec![pb::PublishMessage { message: Some(pb::publish_message::Message::Header(header)) }];
    let options = IpcWriteOptions::default();
    let generator = IpcDataGenerator::default();
    let mut tracker = DictionaryTracker::new(true);
    let schema =
        generator.schema_to_bytes_with_dictionary_tracker(&batches[0].schema(), &mut tracker, &options);
    out.push(ipc((schema.ipc_message, schema.arrow_data)));
    for batch in batches {
        let (dictionaries, data) =
            generator.encode(batch, &mut tracker, &options, &mut IpcWriteContext::default()).unwrap();
        out.extend(dictionaries.into_iter().map(|d| ipc((d.ipc_message, d.arrow_data))));
        out.push(ipc((data.ipc_message, data.arrow_data)));
    }
    let end = pb::PublishEnd { messages: out.len() as u64 - 1 };
    out.push(pb::PublishMessage { message: Some(pb::publish_message::Message::End(end)) });
    out
}

pub(crate) fn import_header(spec: &DatasetSpec) -> pb::PublishHeader {
    pb::PublishHeader {
        dataset: spec.dataset.to_string(),
        kind: pb::PublishKind::Import.into(),
        spec: Some(pb::DatasetSpec::from(spec)),
        ..pb::PublishHeader::default()
    }
}

pub(crate) async fn send(
    client: &mut ShardClient<Channel>,
    header: pb::PublishHeader,
    batches: &[RecordBatch],
) -> Result<pb::PublishAck> {
    let messages = tokio_stream::iter(messages(header, batches));
    client.publish(messages).await.map(tonic::Response::into_inner).map_err(|s| Error::from_status(&s))
}

pub(crate) async fn import<S: AsRef<str>>(
    client: &mut ShardClient<Channel>,
    dataset: &str,
    rows: &[(S, i64, f64)],
) -> Result<pb::PublishAck> {
    send(client, import_header(&spec(dataset)), &[batch(rows)]).await
}

pub(crate) async fn acquire(
    client: &mut ShardClient<Channel>,
    dataset: &str,
    unit: &str,
    take_over: bool,
) -> Result<pb::Lease> {
    acquire_with(client, &spec(dataset), unit, take_over).await
}

pub(crate) async fn acquire_with(
    client: &mut ShardClient<Channel>,
    spec: &DatasetSpec,
    unit: &str,
    take_over: bool,
) -> Result<pb::Lease> {
    acquire_as(client, spec, unit, &format!("{unit}-1"), take_over).await
}

pub(crate) async fn acquire_as(
    client: &mut ShardClient<Channel>,
    spec: &DatasetSpec,
    unit: &str,
    instance: &str,
    take_over: bool,
) -> Result<pb::Lease> {
    let request = pb::AcquireLeaseRequest {
        dataset: spec.dataset.to_string(),
        unit: unit.to_owned(),
        instance: instance.to_owned(),
        take_over,
        ttl_ms: 60_000,
        spec: Some(pb::DatasetSpec::from(spec)),
    };
    client.acquire_lease(request).await.map(tonic::Response::into_inner).map_err(|s| Error::from_status(&s))
}

pub(crate) fn session_header(
    dataset: &str,
    unit: &str,
    epoch: u64,
    run_id: &str,
    day: &str,
) -> pb::PublishHeader {
    pb::PublishHeader {
        dataset: dataset.to_owned(),
        kind: pb::PublishKind::Session.into(),
        session: day.to_owned(),
        run_id: run_id.to_owned(),
        unit: unit.to_owned(),
        instance: format!("{unit}-1"),
        epoch,
        ..pb::PublishHeader::default()
    }
}

/// A range over all chunks that any test writes to: 1950 to 2100.
pub(crate) fn range(dataset: &str, symbol: &str) -> pb::ChunkRange {
    pb::ChunkRange {
        dataset: dataset.to_owned(),
        symbol: symbol.to_owned(),
        fields: vec!["value".to_owned()],
        first: -120,
        end: 800,
        schema: 0,
    }
}

/// Rows of one range, (ts, known_at, value), in the order of their arrival; or the failures.
#[derive(Debug, Default)]
pub(crate) struct Fetched {
    pub(crate) rows: Vec<(i64, i64, f64)>,
    pub(crate) runs: Vec<ChunkRun>,
    /// As of the last of the runs.
    pub(crate) known_through: i64,
    pub(crate) watermark: Option<i64>,
    pub(crate) failures: Vec<Error>,
}

impl Fetched {
    /// The rows as of the latest knowledge.
    pub(crate) fn latest(&self) -> Vec<(i64, f64)> {
        let mut latest = BTreeMap::new();
        let mut rows = self.rows.clone();
        rows.sort_by_key(|r| (r.0, r.1));
        for (ts, _, value) in rows {
            latest.insert(ts, value);
        }
        latest.into_iter().collect()
    }
}

/// The answer for each range. Every chunk must be answered exactly once.
pub(crate) async fn fetch(
    client: &mut ShardClient<Channel>,
    ranges: Vec<pb::ChunkRange>,
    order: pb::FetchOrder,
) -> Vec<Fetched> {
    let mut out: Vec<Fetched> = ranges.iter().map(|_| Fetched::default()).collect();
    for answer in answers(client, ranges.clone(), order).await {
        match answer {
            Answer::Batch(batch) => {
                let fields = ranges[batch.runs[0].range].fields.len();
                let (ts, known_at, value) = decode(&batch.header, &batch.body, fields);
                assert_eq!(batch.rows(), ts.len() as u64);
                let mut rows =
                    (0..ts.len()).map(|i| (ts[i], known_at[i], value.get(i).copied().unwrap_or(0.0)));
                for run in batch.runs {
                    let into = &mut out[run.range];
                    into.rows.extend(rows.by_ref().take(run.rows() as usize));
                    into.runs.push(run);
                    (into.known_through, into.watermark) = (batch.known_through, batch.watermark);
                }
            }
            Answer::Failures(failures) => {
                failures.into_iter().for_each(|failure| out[failure.range].failures.push(failure.error));
            }
        }
    }
    out
}

/// The messages of a fetch.
pub(crate) async fn answers(
    client: &mut ShardClient<Channel>,
    ranges: Vec<pb::ChunkRange>,
    order: pb::FetchOrder,
) -> Vec<Answer> {
    let request = pb::FetchRequest { ranges, order: order.into(), epoch: 1 };
    let mut awaited = Awaited::of(&request);
    let mut stream = client.fetch(request).await.unwrap().into_inner();
    let mut answers = Vec::new();
    while let Some(reply) = stream.message().await.unwrap() {
        answers.push(awaited.accept(reply).unwrap());
    }
    assert!(awaited.is_empty(), "{} chunks were not answered", awaited.chunks());
    answers
}

pub(crate) async fn read(client: &mut ShardClient<Channel>, dataset: &str, symbol: &str) -> Vec<(i64, f64)> {
    let mut all = fetch(client, vec![range(dataset, symbol)], pb::FetchOrder::OldestFirst).await;
    let fetched = all.remove(0);
    assert!(fetched.failures.is_empty(), "{:?}", fetched.failures);
    fetched.latest()
}

fn decode(header: &Bytes, body: &Bytes, fields: usize) -> (Vec<i64>, Vec<i64>, Vec<f64>) {
    let message = arrow_ipc::root_as_message(header).unwrap();
    let schema = {
        let names = &["value"][..fields];
        let spec = spec("d.d");
        let positions: Vec<usize> = names.iter().map(|n| spec.field(n).unwrap().0).collect();
        spec.chunk_schema(&positions)
    };
    let rows = arrow_ipc::reader::read_record_batch(
        &arrow_buffer::Buffer::from(body.clone()),
        message.header_as_record_batch().unwrap(),
        Arc::<Schema>::clone(&schema),
        &std::collections::HashMap::new(),
        None,
        &message.version(),
    )
    .unwrap();
    let time = |i: usize| rows.column(i).as_primitive::<TimestampNanosecondType>().values().to_vec();
    let values = match fields {
        0 => Vec::new(),
        _ => {
            let column = rows.column(2).as_primitive::<Float64Type>();
            assert_eq!(column.null_count(), 0);
            column.values().to_vec()
        }
    };
    (time(0), time(1), values)
}

/// The newest entry of a dataset's log.
pub(crate) fn newest_version(lake: &Path, dataset: &str) -> u64 {
    let entries = std::fs::read_dir(lake.join(dataset).join("_delta_log")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter_map(|name| name.strip_suffix(".json")?.parse().ok()).max().unwrap()
}

/// The data files of a dataset on the disk.
pub(crate) fn data_files(lake: &Path, dataset: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(lake.join(dataset))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "parquet"))
        .collect();
    files.sort();
    files
}

/// Midnight of a day since 1970.
pub(crate) fn day(n: i64) -> i64 {
    n * DAY_NS
}
