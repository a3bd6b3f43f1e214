//! Measures a head node under load: overlap, memory, freshness and fairness, each compared with its bar.
//!
//! `head-bench HEAD-NODE-BINARY [SCENARIO...]` starts eight shards in this process over a lake in a temporary folder, fills
//! it with 500 symbols of ten years of daily rows, and runs the scenarios (all of them if none is named), each with its
//! own heads. A head is a process, so that its memory can be measured. Every figure is one line of JSON on stdout; progress
//! and problems are on stderr. It exits with 1 if a scenario did not finish.
//!
//! | file | subject |
//! | --- | --- |
//! | `figure` | a figure and its JSON |
//! | `market` | the rows, the reads, the minimal union |
//! | `head` | a head as a process, its memory and counters |
//! | `load` | reading to the end and timing it |
//! | `idle`, `herd`, `steady`, `shift`, `scan`, `cancel`, `slow_readers`, `hog`, `capacity` | one scenario each; its first lines say the measurement and the expected result |
//!
//! Heads, shards and clients share the machine's cores. Times are therefore compared inside one run only: with a floor that
//! moves the same bytes with the same clients, or with the same load before the disturbance.

mod cancel;
mod capacity;
mod figure;
mod head;
mod herd;
mod hog;
mod idle;
mod load;
mod market;
mod scan;
mod shift;
mod slow_readers;
mod steady;

use std::{process::ExitCode, time::Instant};

use anyhow::{Context, Result, bail};
use futures::future::BoxFuture;
use trellis_fabric::alloc::MiMalloc;
use trellis_tests::grid::Grid;

use crate::{
    figure::Figure,
    head::Head,
    market::{DAYS, Market},
};

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

const USAGE: &str = "usage: head-bench HEAD-NODE-BINARY [SCENARIO...]";
const SHARDS: usize = 8;

/// The state at the start of every scenario: shards with the market, and no head.
pub(crate) struct Bench {
    binary: String,
    grid: Grid,
    market: Market,
}

impl Bench {
    async fn prepare(binary: String) -> Result<Self> {
        let began = Instant::now();
        let bench =
            Self { binary, grid: Grid::start(0, SHARDS).await?, market: Market::new("equities.daily", 500)? };
        let head = bench.head("512MiB").await?;
        bench.market.import_history(&head.client().await?, DAYS).await?;
        eprintln!("the market is loaded: {:.1} s", began.elapsed().as_secs_f64());
        Ok(bench)
    }

    /// A head that knows the datasets and no rows.
    async fn head(&self, cache: &str) -> Result<Head> {
        Head::start(&self.binary, &self.grid.shards_direct(), cache).await
    }

    /// Like [`Self::head`], with a gate between it and each shard.
    async fn gated_head(&self, cache: &str) -> Result<Head> {
        let gates: Vec<String> = (0..SHARDS).map(|i| self.grid.gate(i).addr().to_string()).collect();
        Head::start(&self.binary, &format!("static://{}", gates.join(",")), cache).await
    }
}

type Scenario = for<'a> fn(&'a Bench) -> BoxFuture<'a, Result<Vec<Figure>>>;

const SCENARIOS: [(&str, Scenario); 9] = [
    ("idle", |bench| Box::pin(idle::run(bench))),
    ("herd", |bench| Box::pin(herd::run(bench))),
    ("steady", |bench| Box::pin(steady::run(bench))),
    ("shift", |bench| Box::pin(shift::run(bench))),
    ("scan", |bench| Box::pin(scan::run(bench))),
    ("cancel", |bench| Box::pin(cancel::run(bench))),
    ("slow-readers", |bench| Box::pin(slow_readers::run(bench))),
    ("hog", |bench| Box::pin(hog::run(bench))),
    ("capacity", |bench| Box::pin(capacity::run(bench))),
];

async fn run(binary: String, asked: &[String]) -> Result<bool> {
    let known = |name: &String| SCENARIOS.iter().any(|(scenario, _)| scenario == name);
    if let Some(unknown) = asked.iter().find(|name| !known(name)) {
        let names: Vec<&str> = SCENARIOS.iter().map(|(name, _)| *name).collect();
        bail!("there is no scenario {unknown}; the scenarios are {}", names.join(", "));
    }
    let bench = Bench::prepare(binary).await?;
    let mut whole = true;
    for (name, scenario) in SCENARIOS {
        if !asked.is_empty() && !asked.iter().any(|asked| asked == name) {
            continue;
        }
        let began = Instant::now();
        match scenario(&bench).await {
            Ok(figures) => figures.iter().try_for_each(Figure::print)?,
            Err(error) => {
                eprintln!("{name}: {error:#}");
                whole = false;
            }
        }
        eprintln!("{name}: {:.1} s", began.elapsed().as_secs_f64());
    }
    bench.grid.stop().await?;
    Ok(whole)
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    let binary = arguments.next().context(USAGE)?;
    let scenarios: Vec<String> = arguments.collect();
    let whole = run(binary, &scenarios).await?;
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
