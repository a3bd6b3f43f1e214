//! Times publishes up to their acknowledgement, through a new head and a new shard.
//!
//! `publish-bench PUBLISHERS SECONDS LAKE` starts both over the folder `LAKE`, with an output and a connection for each
//! publisher. Each publishes results of 500 rows, one session after the other, as soon as the last one is acknowledged. Each
//! figure is one line of JSON. The binaries are taken from the program's folder. The lake is not removed: after thousands of
//! files were removed, ext4 makes files slowly for minutes (it does not reuse their inodes), which would slow the next target.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use futures::{StreamExt, TryStreamExt};
use serde_json::json;
use trellis_fabric::alloc::MiMalloc;
use trellis_tests::{
    processes::{Cluster, processor_time},
    publisher::{Publisher, ROWS, symbols},
};

/// Publishers that are set up at once.
const SET_UP_PARALLEL: usize = 32;
/// Limit of file descriptors: a thousand publishers with two connections each need more than the usual limit.
const FILES: u64 = 8_192;

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

fn at(sorted: &[f64], part: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * part).round() as usize]
}

async fn run(publishers: usize, span: Duration, lake: &Path) -> Result<()> {
    allow_files()?;
    std::fs::create_dir_all(lake)?;
    let cluster = Cluster::start_over(lake, 1, 1)?;
    let heads = cluster.head_addrs();
    let symbols = symbols();
    let set_up = (0..publishers).map(|i| Publisher::set_up(&heads, i, symbols.clone()));
    let all: Vec<Publisher> = futures::stream::iter(set_up).buffered(SET_UP_PARALLEL).try_collect().await?;

    let pids = [&cluster.shards[0], &cluster.heads[0]].map(|node| node.pid().unwrap_or_default());
    let used = || pids.map(processor_time).into_iter().collect::<Result<Vec<_>>>();
    let before = used()?;
    let started = Instant::now();
    let tasks: Vec<_> = all
        .into_iter()
        .map(|mut publisher| tokio::spawn(async move { publisher.publish_until(started + span).await }))
        .collect();
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
