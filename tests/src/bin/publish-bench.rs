//! Times publishes up to their acknowledgement, through a new head and a new shard.
//!
//! `publish-bench PUBLISHERS SECONDS LAKE` starts both over the folder `LAKE`, with an output and a connection for each
//! publisher. Each publishes results of 500 rows, one session after the other, as soon as the last one is acknowledged. Each
//! figure is one line of JSON. The binaries are taken from the program's folder. The lake is not removed: after thousands of
//! files were removed, ext4 makes files slowly for minutes (it does not reuse their inodes), which would slow the next target.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use arrow_array::{ArrayRef, Float64Array, RecordBatch, StringArray, TimestampNanosecondArray};
use futures::{StreamExt, TryStreamExt};
use serde_json::json;
use trellis_fabric::alloc::MiMalloc;
use trellis_proto::{
    DatasetSpec, pb,
    time::{DAY_NS, format_time},
};
use trellis_qcu::client::Client;
use trellis_tests::{
    grid::spec,
    processes::{Cluster, client},
};

/// Rows of one result.
const ROWS: usize = 500;
/// Midnight of the first session, 2016-01-01.
const FIRST_SESSION: i64 = 16_801 * DAY_NS;
/// Publishers that are set up at once.
const SET_UP_PARALLEL: usize = 32;
/// Life of a lease: longer than any run, so that no lease is renewed.
const TTL_MS: u32 = 3_600_000;
/// How long a publish may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Publishes of each publisher before the clock runs.
const WARM_UP: usize = 2;
/// Limit of file descriptors: a thousand publishers with two connections each need more than the usual limit.
const FILES: u64 = 8_192;

struct Publisher {
    client: Client,
    spec: DatasetSpec,
    unit: String,
    lease: pb::Lease,
    symbols: ArrayRef,
    next: usize,
}

impl Publisher {
    async fn set_up(heads: &[std::net::SocketAddr], i: usize, symbols: ArrayRef) -> Result<Self> {
        let unit = format!("unit-{i}");
        let client = client(heads, &unit, PATIENCE).await?;
        let spec = spec(&format!("signals.out_{i}"), &["score"]);
        let request = pb::AcquireLeaseRequest {
            dataset: spec.dataset.to_string(),
            unit: unit.clone(),
            instance: "bench".to_owned(),
            take_over: false,
            ttl_ms: TTL_MS,
            spec: Some((&spec).into()),
        };
        let lease = client.acquire_lease(request).await?;
        let mut publisher = Self { client, spec, unit, lease, symbols, next: 0 };
        for _ in 0..WARM_UP {
            publisher.publish().await?;
        }
        Ok(publisher)
    }

    /// Publishes the next session.
    async fn publish(&mut self) -> Result<()> {
        let n = self.next;
        self.next += 1;
        let midnight = FIRST_SESSION + n as i64 * DAY_NS;
        let header = pb::PublishHeader {
            dataset: self.spec.dataset.to_string(),
            kind: pb::PublishKind::Session.into(),
            session: format_time(midnight),
            run_id: format!("{}-{n}", self.unit),
            unit: self.unit.clone(),
            instance: self.lease.instance.clone(),
            epoch: self.lease.epoch,
            ..Default::default()
        };
        let ts = TimestampNanosecondArray::from_value(midnight, ROWS).with_timezone("UTC");
        let scores = Float64Array::from_iter_values((0..ROWS).map(|i| ((n * ROWS + i) as f64).sin()));
        let columns: Vec<ArrayRef> = vec![self.symbols.clone(), Arc::new(ts), Arc::new(scores)];
        let rows = RecordBatch::try_new(self.spec.rows_schema(), columns)?;
        let ack = self.client.publish(header, vec![rows]).await?;
        ensure!(ack.rows == ROWS as u64 && !ack.duplicate, "acknowledged as {ack:?}");
        Ok(())
    }

    /// Publishes until `end`. Returns the time of each publish in seconds.
    async fn publish_until(mut self, end: Instant) -> Result<Vec<f64>> {
        let mut taken = Vec::new();
        while Instant::now() < end {
            let at = Instant::now();
            self.publish().await?;
            taken.push(at.elapsed().as_secs_f64());
        }
        Ok(taken)
    }
}

/// Raises the limit of this process and of its children.
fn allow_files() -> Result<()> {
    // SAFETY: plain system calls; `limit` outlives both.
    unsafe {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        ensure!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0, "the limit of files is not told");
        limit.rlim_cur = limit.rlim_cur.max(FILES).min(limit.rlim_max);
        ensure!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) == 0, "the limit of files stays");
    }
    Ok(())
}

/// Seconds of processor time that a process has used.
fn processor_time(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may contain anything; the fields from the third on follow it.
    let (_, fields) = stat.rsplit_once(')').context("no name in /proc/.../stat")?;
    let ticks: u64 = fields.split_whitespace().skip(11).take(2).filter_map(|f| f.parse::<u64>().ok()).sum();
    // SAFETY: the call touches no memory.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    Ok(ticks as f64 / per_second as f64)
}

fn at(sorted: &[f64], part: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * part).round() as usize]
}

async fn run(publishers: usize, span: Duration, lake: &Path) -> Result<()> {
    allow_files()?;
    std::fs::create_dir_all(lake)?;
    let cluster = Cluster::start_over(lake, 1, 1)?;
    let heads = cluster.head_addrs();
    let symbols: ArrayRef = Arc::new(StringArray::from_iter_values((0..ROWS).map(|i| format!("S{i:03}"))));
    let set_up = (0..publishers).map(|i| Publisher::set_up(&heads, i, symbols.clone()));
    let all: Vec<Publisher> = futures::stream::iter(set_up).buffered(SET_UP_PARALLEL).try_collect().await?;

    let pids = [&cluster.shards[0], &cluster.heads[0]].map(|node| node.pid().unwrap_or_default());
    let used = || pids.map(processor_time).into_iter().collect::<Result<Vec<_>>>();
    let before = used()?;
    let started = Instant::now();
    let tasks: Vec<_> =
        all.into_iter().map(|publisher| tokio::spawn(publisher.publish_until(started + span))).collect();
    let mut taken = Vec::new();
    for task in tasks {
        taken.extend(task.await??);
    }
    let seconds = started.elapsed().as_secs_f64();
    let after = used()?;
    taken.sort_by(f64::total_cmp);
    ensure!(!taken.is_empty(), "nothing was published");

    let ms_each = |i: usize| (after[i] - before[i]) * 1e3 / taken.len() as f64;
    let detail = json!({
        "publishers": publishers, "rows": ROWS, "publishes": taken.len(), "seconds": seconds,
        "shard_cpu_ms": ms_each(0), "head_cpu_ms": ms_each(1),
    });
    let figures = [
        ("acknowledged publishes/s", taken.len() as f64 / seconds, "1/s", "higher", detail),
        ("p50 to acknowledgement", at(&taken, 0.5) * 1e3, "ms", "lower", json!({})),
        ("p99 to acknowledgement", at(&taken, 0.99) * 1e3, "ms", "lower", json!({})),
    ];
    for (name, value, unit, better, detail) in figures {
        let figure = json!({
            "name": format!("trellis, publishers {publishers}, {name}"), "value": value, "unit": unit,
            "bar": null, "better": better, "peer": "", "detail": detail,
        });
        println!("{figure}");
    }
    Ok(())
}

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [publishers, seconds, lake] = arguments.as_slice() else {
        bail!("usage: publish-bench PUBLISHERS SECONDS LAKE")
    };
    let publishers: usize = publishers.parse().context("PUBLISHERS")?;
    ensure!(publishers > 0, "PUBLISHERS is 0");
    run(publishers, Duration::from_secs_f64(seconds.parse().context("SECONDS")?), Path::new(lake)).await
}
