//! Publishes small results into a thousand outputs for a long time, reads them, and looks whether the head or the shard grows.
//!
//! `soak-bench SECONDS LAKE` starts one head and one shard over the folder `LAKE`. The binaries are taken from the program's folder. The
//! program prints a line for each tenth of the time: memory, file descriptors and threads of both processes, and the 99th percentile of
//! publishes (which the shard commits) and of reads (which the head answers). Then it prints a line of JSON for each figure.

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use arrow_array::{ArrayRef, Float64Array, RecordBatch, StringArray, TimestampNanosecondArray};
use futures::{StreamExt, TryStreamExt, future::try_join_all};
use serde_json::json;
use trellis_fabric::alloc::MiMalloc;
use trellis_proto::{
    DatasetSpec, SeriesQuery, Symbols, TimeRange, pb,
    time::{DAY_NS, format_time},
};
use trellis_qcu::client::Client;
use trellis_tests::{
    grid::spec,
    processes::{Cluster, client},
    publisher::FIRST_SESSION,
};

/// Outputs, each a dataset.
const OUTPUTS: usize = 1_000;
/// Rows of one result.
const ROWS: usize = 10;
/// Publishers at once, each with its part of the outputs.
const LANES: usize = 16;
/// Outputs that are made at once.
const SET_UP_PARALLEL: usize = 16;
/// Sessions that a read reaches back.
const LOOKBACK: i64 = 30;
/// The one unit of all outputs, and its instance.
const UNIT: (&str, &str) = ("soak", "bench");
/// Life of the leases: a holder whose lease has run out may go on, because nobody else asks.
const TTL_MS: u32 = 3_600_000;
/// How long a call may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Lines of the table.
const PARTS: u32 = 10;
/// Looks at the processes in each part.
const LOOKS: u32 = 4;
/// Growth, after the first tenth, that is no growth: the allocator's share.
const GROWTH_BAR: f64 = 1.25;

/// Seconds of each call.
#[derive(Default)]
struct Taken {
    publishes: Vec<f64>,
    reads: Vec<f64>,
}

struct Lane {
    client: Client,
    outputs: Vec<Output>,
    symbols: ArrayRef,
    taken: Arc<Mutex<Taken>>,
}

struct Output {
    spec: DatasetSpec,
    epoch: u64,
    next: i64,
}

impl Output {
    async fn make(client: &Client, i: usize) -> Result<Self> {
        let spec = spec(&format!("signals.soak_{i}"), &["score"]);
        let request = pb::AcquireLeaseRequest {
            dataset: spec.dataset.to_string(),
            unit: UNIT.0.to_owned(),
            instance: UNIT.1.to_owned(),
            take_over: false,
            ttl_ms: TTL_MS,
            spec: Some((&spec).into()),
        };
        let epoch = client.acquire_lease(request).await?.epoch;
        Ok(Self { spec, epoch, next: 0 })
    }
}

impl Lane {
    /// Publishes the next session of one output after the other, and reads it back, until `end`.
    async fn run(mut self, end: Instant) -> Result<()> {
        loop {
            for output in &mut self.outputs {
                if Instant::now() >= end {
                    return Ok(());
                }
                let midnight = FIRST_SESSION + output.next * DAY_NS;
                output.next += 1;
                let header = pb::PublishHeader {
                    dataset: output.spec.dataset.to_string(),
                    kind: pb::PublishKind::Session.into(),
                    session: format_time(midnight),
                    run_id: format!("{}-{}", output.spec.dataset, output.next),
                    unit: UNIT.0.to_owned(),
                    instance: UNIT.1.to_owned(),
                    epoch: output.epoch,
                    ..Default::default()
                };
                let ts = TimestampNanosecondArray::from_value(midnight, ROWS).with_timezone("UTC");
                let scores =
                    Float64Array::from_iter_values((0..ROWS).map(|i| (midnight as f64 + i as f64).sin()));
                let columns: Vec<ArrayRef> = vec![self.symbols.clone(), Arc::new(ts), Arc::new(scores)];
                let rows = RecordBatch::try_new(output.spec.rows_schema(), columns)?;
                let began = Instant::now();
                let ack = self.client.publish(header, vec![rows]).await?;
                let published = began.elapsed().as_secs_f64();
                ensure!(ack.rows == ROWS as u64 && !ack.duplicate, "acknowledged as {ack:?}");
                let range =
                    TimeRange::new(Some(midnight - (LOOKBACK - 1) * DAY_NS), Some(midnight + DAY_NS))?;
                let query =
                    SeriesQuery { range, ..SeriesQuery::new(output.spec.dataset.clone(), Symbols::All) };
                let began = Instant::now();
                let answer = self.client.read(&query).await?;
                let read = began.elapsed().as_secs_f64();
                let expected = ROWS as i64 * output.next.min(LOOKBACK);
                ensure!(answer.rows() == expected as usize, "{} rows of {expected}", answer.rows());
                let mut taken = self.taken.lock().unwrap_or_else(|e| e.into_inner());
                taken.publishes.push(published);
                taken.reads.push(read);
            }
        }
    }
}

/// What a process holds.
#[derive(Debug, Clone, Copy, Default)]
struct Holds {
    rss_mb: f64,
    files: usize,
    threads: usize,
}

impl Holds {
    fn of(pid: u32) -> Result<Self> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let number = |name: &str| -> Result<f64> {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .context("a line of /proc/.../status")?;
            Ok(line.trim().trim_end_matches(" kB").parse()?)
        };
        Ok(Self {
            rss_mb: number("VmRSS:")? / 1024.0,
            files: std::fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
            threads: number("Threads:")? as usize,
        })
    }

    fn most(self, other: Self) -> Self {
        Self {
            rss_mb: self.rss_mb.max(other.rss_mb),
            files: self.files.max(other.files),
            threads: self.threads.max(other.threads),
        }
    }
}

fn p99_ms(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds.get((seconds.len().max(1) - 1) * 99 / 100).map_or(0.0, |s| s * 1e3)
}

/// A tenth of the time.
#[derive(Debug)]
struct Part {
    publishes: usize,
    publish_p99_ms: f64,
    read_p99_ms: f64,
    /// The most of the shard and of the head.
    holds: [Holds; 2],
}

const NAMES: [&str; 2] = ["shard", "head"];

async fn run(span: Duration, lake: &Path) -> Result<()> {
    std::fs::create_dir_all(lake)?;
    let cluster = Cluster::start_over(lake, 1, 1)?;
    let heads = cluster.head_addrs();
    let symbols: ArrayRef = Arc::new(StringArray::from_iter_values((0..ROWS).map(|i| format!("S{i:02}"))));
    let maker = client(&heads, UNIT.0, PATIENCE).await?;
    let made = futures::stream::iter((0..OUTPUTS).map(|i| Output::make(&maker, i))).buffered(SET_UP_PARALLEL);
    let mut outputs: Vec<Output> = made.try_collect().await?;
    let taken: Arc<Mutex<Taken>> = Arc::default();
    let started = Instant::now();
    let mut lanes = Vec::new();
    for lane in 0..LANES {
        let part = outputs.split_off(outputs.len() - outputs.len() / (LANES - lane));
        let client = client(&heads, UNIT.0, PATIENCE).await?;
        let lane = Lane { client, outputs: part, symbols: symbols.clone(), taken: taken.clone() };
        lanes.push(tokio::spawn(lane.run(started + span)));
    }
    let pids = [&cluster.shards[0], &cluster.heads[0]].map(|node| node.pid().unwrap_or_default());
    println!(
        "{OUTPUTS} outputs, results of {ROWS} rows, {LANES} publishers; each line has the most of its time"
    );
    println!(
        "{:>6} {:>9} {:>11} {:>9} | {:>9} {:>6} {:>7} | {:>8} {:>6} {:>7}",
        "s",
        "publishes",
        "publish p99",
        "read p99",
        "shard MB",
        "files",
        "threads",
        "head MB",
        "files",
        "threads"
    );
    let mut parts: Vec<Part> = Vec::new();
    for part in 0..PARTS {
        let mut holds = [Holds::default(); 2];
        for look in 1..=LOOKS {
            let at = started + span * (part * LOOKS + look) / (PARTS * LOOKS);
            tokio::time::sleep_until(at.into()).await;
            for (most, pid) in holds.iter_mut().zip(pids) {
                *most = most.most(Holds::of(pid)?);
            }
        }
        let Taken { publishes, reads } =
            std::mem::take(&mut *taken.lock().unwrap_or_else(|e| e.into_inner()));
        let part = Part {
            publishes: publishes.len(),
            publish_p99_ms: p99_ms(publishes),
            read_p99_ms: p99_ms(reads),
            holds,
        };
        let [shard, head] = holds;
        println!(
            "{:>6.0} {:>9} {:>8.1} ms {:>6.1} ms | {:>9.0} {:>6} {:>7} | {:>8.0} {:>6} {:>7}",
            started.elapsed().as_secs_f64(),
            part.publishes,
            part.publish_p99_ms,
            part.read_p99_ms,
            shard.rss_mb,
            shard.files,
            shard.threads,
            head.rss_mb,
            head.files,
            head.threads,
        );
        parts.push(part);
    }
    for lane in try_join_all(lanes).await? {
        lane?;
    }
    figures(&parts, span);
    Ok(())
}

/// Prints the last tenth, and how it compares with the second: in the first, caches fill.
fn figures(parts: &[Part], span: Duration) {
    let (Some(second), Some(last)) = (parts.get(1), parts.last()) else { return };
    let print = |name: String, value: f64, unit: &str, bar: Option<f64>| {
        let detail = json!({ "outputs": OUTPUTS, "rows": ROWS, "seconds": span.as_secs_f64() });
        println!(
            "{}",
            json!({ "name": name, "value": value, "unit": unit, "bar": bar, "better": "lower", "peer": "", "detail": detail })
        );
    };
    for (i, name) in NAMES.into_iter().enumerate() {
        let (early, late) = (second.holds[i], last.holds[i]);
        print(format!("{name}, memory"), late.rss_mb, "MB", None);
        print(format!("{name}, file descriptors"), late.files as f64, "", None);
        print(format!("{name}, threads"), late.threads as f64, "", None);
        print(
            format!("{name}, memory in the last tenth / in the second"),
            late.rss_mb / early.rss_mb,
            "x",
            Some(GROWTH_BAR),
        );
        let files = late.files as f64 / early.files as f64;
        print(
            format!("{name}, file descriptors in the last tenth / in the second"),
            files,
            "x",
            Some(GROWTH_BAR),
        );
    }
    print("publish, p99".to_owned(), last.publish_p99_ms, "ms", None);
    print("read, p99".to_owned(), last.read_p99_ms, "ms", None);
}

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [seconds, lake] = arguments.as_slice() else { bail!("usage: soak-bench SECONDS LAKE") };
    run(Duration::from_secs_f64(seconds.parse().context("SECONDS")?), Path::new(lake)).await
}
