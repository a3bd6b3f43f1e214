//! One unit that asks for everything, over and over, beside eight light units of small reads.
//!
//! Measured: p99 of the light units with the hog against without, in alternation. Two hogs: one of wide questions, one of a
//! flood of small ones. Everything is cached, so that heads and not shards are shared.
//!
//! Expected: 1.5 at most for wide answers, whose messages take turns by bytes. The hog's own client is the other half of the
//! machine's work here; it runs on a thread of the lowest priority, so that it costs the light units no more than it would on
//! a machine of its own.
//!
//! Control: the same hog reads from another head on this machine, with which the light units have nothing to do. What that
//! does to their p99 is the machine's part (two cores, the kernel's time slices, memory bandwidth), and about the least that
//! fairness inside a head can reach here.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use bytes::Bytes;
use futures::future::try_join_all;
use serde_json::json;

use crate::{
    Bench,
    figure::{Figure, median},
    head::Head,
    load::{self, Pool},
    market::{ALL, Ask, CLOSE, DAYS},
};

const CACHE: &str = "512MiB";
const LIGHT_UNITS: usize = 8;
/// Reads a second of each light unit.
const RATE: f64 = 40.0;
const LIGHT_DAYS: i64 = 365;
const SPAN: Duration = Duration::from_secs(2);
const ROUNDS: usize = 5;
/// The lowest priority that Linux has.
const LOWEST_PRIORITY: i32 = 19;

/// A hog's client: a thread of its own with a runtime of its own.
struct Hog {
    stop: Arc<AtomicBool>,
    bytes: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<Result<()>>,
}

impl Hog {
    /// `lanes` tasks that read `ticket` over and over, each over a connection of its own.
    fn start(head: &Head, ticket: Bytes, lanes: usize) -> Result<Self> {
        let (stop, bytes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted, addr) = (stop.clone(), bytes.clone(), head.addr.clone());
        let thread = std::thread::Builder::new().name("hog".to_owned()).spawn(move || {
            // SAFETY: changes the priority of the calling thread only, as Linux takes 0 for it.
            if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, LOWEST_PRIORITY) } != 0 {
                return Err(std::io::Error::last_os_error()).context("setpriority");
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let options = trellis_fabric::channel::ChannelOptions::of_unit("hog");
                let pool = Pool::connect(&addr, &options, lanes)?;
                let lane = |_| async {
                    while !stopped.load(Relaxed) {
                        counted.fetch_add(load::read(pool.get(), ticket.clone()).await?.0, Relaxed);
                    }
                    anyhow::Ok(())
                };
                try_join_all((0..lanes).map(lane)).await?;
                Ok(())
            })
        })?;
        Ok(Self { stop, bytes, thread })
    }

    /// Ends it. Returns the bytes that it has read.
    async fn stop(self) -> Result<u64> {
        self.stop.store(true, Relaxed);
        let ended = tokio::task::spawn_blocking(|| self.thread.join()).await?;
        ended.map_err(|_| anyhow::anyhow!("the hog panicked"))??;
        Ok(self.bytes.load(Relaxed))
    }
}

pub(crate) async fn run(bench: &Bench) -> Result<Vec<Figure>> {
    let market = &bench.market;
    let (head, other) = (bench.head(CACHE).await?, bench.head(CACHE).await?);
    let all = market.ticket_of_all()?;
    let mut light = Vec::new();
    for unit in 0..LIGHT_UNITS {
        let ask = Ask { symbol: unit, start: DAYS - LIGHT_DAYS, end: DAYS };
        light.push((head.connect(&format!("light-{unit}"), 1).await?, market.ticket(ask, CLOSE)?));
    }
    for head in [&head, &other] {
        load::read(head.connect("warm", 1).await?.get(), all.clone()).await?;
    }

    let flood = market.ticket(Ask { symbol: LIGHT_UNITS, start: 0, end: DAYS }, ALL)?;
    // name, what the hog asks, in how many tasks
    let hogs = [("wide questions", all, 4), ("a flood of small ones", flood, 64)];
    let mut figures = Vec::new();
    for (name, ticket, lanes) in hogs {
        let (mut ratios, mut controls, mut times) = (Vec::new(), Vec::new(), Vec::new());
        let (mut hogged, mut hogged_other) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let alone = reads(&light).await?;
            let hog = Hog::start(&other, ticket.clone(), lanes)?;
            let control = reads(&light).await?;
            hogged_other.push(mib_per_second(hog.stop().await?));
            let hog = Hog::start(&head, ticket.clone(), lanes)?;
            let beside = reads(&light).await?;
            hogged.push(mib_per_second(hog.stop().await?));
            ratios.push(beside.1 / alone.1);
            controls.push(control.1 / alone.1);
            times.push([alone, control, beside]);
        }
        figures.push(
            Figure::lower(&format!("hog of {name}: p99 of light units / without"), median(ratios.clone()), "x")
                .bar(1.5)
                .peer("the same light units without the hog")
                .detail(json!({
                    "light_units": LIGHT_UNITS, "reads_per_second_each": RATE, "hog_tasks": lanes, "ratios": ratios,
                    "control_hog_at_another_head": median(controls.clone()), "control_ratios": controls,
                    "hog_mib_per_second": hogged, "control_hog_mib_per_second": hogged_other,
                    "p50_p99_ms_alone_control_beside": times,
                })),
        );
    }
    Ok(figures)
}

fn mib_per_second(bytes: u64) -> f64 {
    bytes as f64 / SPAN.as_secs_f64() / f64::from(1 << 20)
}

/// p50 and p99 over all light units, milliseconds.
async fn reads(light: &[(Pool, Bytes)]) -> Result<(f64, f64)> {
    let units = light.iter().map(|(pool, ticket)| load::paced(pool, RATE, SPAN, |_| Ok(ticket.clone())));
    let load = load::together(try_join_all(units).await?).whole()?;
    Ok((load.quantile(0.5), load.quantile(0.99)))
}
