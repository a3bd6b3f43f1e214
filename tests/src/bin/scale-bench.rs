//! Measures a shard with many small datasets.
//!
//! `scale-bench LAKE SECONDS COUNT...` makes a lake in the folder `LAKE` and lets it grow: for each count of datasets, the shard is
//! started anew over it, with a head. Each figure is one line of JSON. A dataset has one import of 50 rows. The binaries are taken
//! from the program's folder. The lake is not removed, for the reason that `publish-bench` gives.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use arrow_array::{ArrayRef, Float64Array, RecordBatch, StringArray, TimestampNanosecondArray};
use futures::{StreamExt, TryStreamExt};
use serde_json::{Value, json};
use trellis_fabric::{alloc::MiMalloc, channel::MESSAGE_BYTES_MAX};
use trellis_proto::{
    pb::{self, shard_client::ShardClient},
    time::DAY_NS,
};
use trellis_qcu::client::Client;
use trellis_tests::{
    grid::spec,
    processes::{Cluster, client, processor_time},
    publisher::{FIRST_SESSION, Publisher, symbols},
};

/// Imports at once while the lake grows.
const IMPORTS: usize = 32;
/// Rows of a dataset that nobody uses.
const ROWS: usize = 50;
/// How long an import, or the answer to a head, may take.
const PATIENCE: Duration = Duration::from_secs(600);
/// After the publishes the shard writes checkpoints and merges files. It rests when it has used less than [`REST_SHARE`] of a core for this
/// long.
const REST: Duration = Duration::from_secs(15);
/// See [`REST`].
const REST_SHARE: f64 = 0.05;
/// Longest wait for the shard to rest.
const REST_WAIT: Duration = Duration::from_secs(600);
/// The bars: a publish with many datasets beside one with few; bytes of an idle dataset; seconds to ready; idle share of a core.
const PUBLISH_BAR: f64 = 1.2;
const BYTES_BAR: f64 = 8_192.0;
const READY_BAR: f64 = 5.0;
const IDLE_BAR: f64 = 0.02;

async fn import(client: &Client, i: usize) -> Result<()> {
    let spec = spec(&format!("many.d_{i}"), &["score"]);
    let header = pb::PublishHeader {
        dataset: spec.dataset.to_string(),
        kind: pb::PublishKind::Import.into(),
        run_id: format!("import-{i}"),
        spec: Some((&spec).into()),
        ..Default::default()
    };
    let names = StringArray::from_iter_values((0..ROWS).map(|row| format!("S{:03}", row % 10)));
    let times = (0..ROWS).map(|row| FIRST_SESSION + (row / 10) as i64 * DAY_NS);
    let ts = TimestampNanosecondArray::from_iter_values(times).with_timezone("UTC");
    let scores = Float64Array::from_iter_values((0..ROWS).map(|row| row as f64));
    let columns: Vec<ArrayRef> = vec![Arc::new(names), Arc::new(ts), Arc::new(scores)];
    let rows = RecordBatch::try_new(spec.rows_schema(), columns)?;
    client.publish(header, vec![rows]).await?;
    Ok(())
}

/// Makes the datasets `from..to`.
async fn grow(lake: &Path, from: usize, to: usize) -> Result<()> {
    let cluster = Cluster::start_over(lake, 1, 1)?;
    let client = client(&cluster.head_addrs(), "bench", PATIENCE).await?;
    let client = &client;
    futures::stream::iter(from..to)
        .map(|i| async move { import(client, i).await })
        .buffer_unordered(IMPORTS)
        .try_collect::<()>()
        .await
}

/// Resident bytes of a process.
fn resident(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1_024.0)
}

/// The share of a core that a process uses for this long.
async fn share(pid: u32, span: Duration) -> Result<f64> {
    let (before, began) = (processor_time(pid)?, Instant::now());
    tokio::time::sleep(span).await;
    Ok((processor_time(pid)? - before) / began.elapsed().as_secs_f64())
}

/// Seconds until the shard has described every dataset.
async fn describe(shard: &str, count: usize) -> Result<f64> {
    let mut client =
        ShardClient::connect(format!("http://{shard}")).await?.max_decoding_message_size(MESSAGE_BYTES_MAX);
    let began = Instant::now();
    let ask = client.describe(pb::ShardDescribeRequest { ownership_only: false });
    let said = tokio::time::timeout(PATIENCE, ask).await??.into_inner();
    ensure!(said.datasets.len() >= count, "{} datasets of {count} are described", said.datasets.len());
    Ok(began.elapsed().as_secs_f64())
}

/// What one count of datasets gave.
struct Measured {
    count: usize,
    publish_ms: f64,
    resident: f64,
}

fn tell(name: String, value: f64, unit: &str, bar: Option<f64>, detail: &Value) {
    let figure = json!({
        "name": name, "value": value, "unit": unit, "bar": bar, "better": "lower", "peer": "", "detail": detail,
    });
    println!("{figure}");
}

async fn measure(lake: &Path, count: usize, span: Duration, least: Option<&Measured>) -> Result<Measured> {
    let mut cluster = Cluster::start_over(lake, 0, 1)?;
    cluster.shards[0].stop()?;
    let began = Instant::now();
    cluster.shards[0].start()?;
    let ready = began.elapsed().as_secs_f64();
    let addr = cluster.shards[0].addr().to_string();
    let first = describe(&addr, count).await?;
    let again = describe(&addr, count).await?;
    cluster.add_head()?;

    let mut publisher = Publisher::set_up(&cluster.head_addrs(), count, symbols()).await?;
    let mut taken = publisher.publish_until(Instant::now() + span).await?;
    ensure!(!taken.is_empty(), "nothing was published");
    taken.sort_by(f64::total_cmp);
    let publish_ms = taken[taken.len() / 2] * 1e3;

    let pid = cluster.shards[0].pid().context("the shard runs")?;
    let published = Instant::now();
    while share(pid, REST).await? > REST_SHARE && published.elapsed() < REST_WAIT {}
    let rests = published.elapsed().saturating_sub(REST).as_secs_f64();
    let idle = share(pid, span).await?;
    let resident = resident(pid)?;

    let named = |what: &str| format!("{count} datasets, {what}");
    let ratio = least.map(|least| publish_ms / least.publish_ms);
    tell(named("publish p50"), publish_ms, "ms", None, &json!({"publishes": taken.len()}));
    if let (Some(least), Some(ratio)) = (least, ratio) {
        let of_one = (resident - least.resident) / (count - least.count) as f64;
        tell(named("publish p50 / with few"), ratio, "x", Some(PUBLISH_BAR), &json!({}));
        tell(named("resident, each dataset"), of_one, "B", Some(BYTES_BAR), &json!({"resident": resident}));
    }
    tell(named("start to ready"), ready, "s", Some(READY_BAR), &json!({}));
    // the shard that made the datasets was killed, and so it left no descriptions
    tell(named("first list of all after a crash"), first, "s", None, &json!({}));
    tell(named("list of all"), again, "s", None, &json!({}));
    tell(named("from the last publish to rest"), rests, "s", None, &json!({}));
    tell(named("idle, share of a core"), idle, "", Some(IDLE_BAR), &json!({"seconds": span.as_secs_f64()}));
    cluster.shards[0].stop()?;
    Ok(Measured { count, publish_ms, resident })
}

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [lake, seconds, counts @ ..] = arguments.as_slice() else {
        bail!("usage: scale-bench LAKE SECONDS COUNT...")
    };
    let lake = Path::new(lake);
    let span = Duration::from_secs_f64(seconds.parse().context("SECONDS")?);
    let mut counts = counts.iter().map(|count| count.parse()).collect::<Result<Vec<usize>, _>>()?;
    counts.sort_unstable();
    std::fs::create_dir_all(lake)?;
    let (mut made, mut least) = (0, None);
    for count in counts {
        grow(lake, made, count).await?;
        made = count;
        let measured = measure(lake, count, span, least.as_ref()).await?;
        least.get_or_insert(measured);
    }
    Ok(())
}
