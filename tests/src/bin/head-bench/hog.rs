//! One unit that reads everything over and over (the hog), beside eight light units with small reads.
//!
//! Measured: the p99 of the light units with the hog, compared with the p99 without it, in alternation. There are three hogs:
//! one sends wide reads and one a flood of small reads, both of cached rows, so that only the head is shared; the third sends
//! wide reads of ranges that are not cached, beside light units that read a new chunk each time.
//!
//! Expected: at most 1.5 for wide answers, whose messages take turns by bytes. The hog's client is half of the machine's work.
//! It runs on a thread of the lowest priority, so that it costs the light units as little as a client on another machine.
//!
//! Control: the same hog reads from another head on this machine, which the light units do not use. The change of their p99 is
//! then the effect of sharing the machine (two cores, time slices, memory bandwidth; for cold reads also the shards). Fairness
//! inside a head can hardly do better.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use bytes::Bytes;
use futures::future::try_join_all;
use serde_json::json;
use trellis_fabric::channel::ChannelOptions;
use trellis_proto::{Error, ticket};

use crate::{
    Bench,
    figure::{Figure, median},
    head::Head,
    load::{self, Load, Pool},
    market::{ALL, Ask, CLOSE, DAYS},
};

const LIGHT_UNITS: usize = 8;
const LIGHT_DAYS: i64 = 365;
const ROUNDS: usize = 5;
/// Tasks of a hog with wide reads, and of one with small reads.
const WIDE_LANES: usize = 4;
const SMALL_LANES: usize = 64;
/// The lowest priority that Linux has.
const LOWEST_PRIORITY: i32 = 19;
/// Days between two cold reads of a symbol: the length of a chunk.
const CHUNK_DAYS: i64 = 64;

/// The rate of the light units, the duration, and the budget of the heads.
#[derive(Clone, Copy)]
struct Pace {
    cache: &'static str,
    /// Reads a second of each light unit.
    rate: f64,
    span: Duration,
}

const WARM: Pace = Pace { cache: "512MiB", rate: 40.0, span: Duration::from_secs(2) };
/// The cache holds less than the hog reads, so that each read needs a shard.
const COLD: Pace = Pace { cache: "16MiB", rate: 10.0, span: Duration::from_secs(4) };

/// A hog's client: a thread with its own runtime.
struct Hog {
    stop: Arc<AtomicBool>,
    read: Arc<Read>,
    thread: std::thread::JoinHandle<Result<()>>,
}

/// Counts of a hog's reads.
#[derive(Default)]
struct Read {
    bytes: AtomicU64,
    chunks: AtomicU64,
    chunks_hit: AtomicU64,
    shed: AtomicU64,
}

impl Read {
    /// Counts one answer. A refusal because of no room is an answer.
    fn add(&self, outcome: load::Outcome) -> Result<()> {
        match outcome {
            Ok((bytes, receipt)) => {
                self.bytes.fetch_add(bytes, Relaxed);
                self.chunks_hit.fetch_add(receipt.chunks_hit, Relaxed);
                let chunks = receipt.chunks_hit + receipt.chunks_joined + receipt.chunks_fetched;
                self.chunks.fetch_add(chunks, Relaxed);
            }
            Err(status) => {
                let error = Error::from_status(&status);
                if !error.retryable() {
                    return Err(error).context("a read of the hog failed");
                }
                self.shed.fetch_add(1, Relaxed);
            }
        }
        Ok(())
    }

    fn hit_rate(&self) -> f64 {
        self.chunks_hit.load(Relaxed) as f64 / self.chunks.load(Relaxed) as f64
    }

    fn mib_per_second(&self, span: Duration) -> f64 {
        self.bytes.load(Relaxed) as f64 / span.as_secs_f64() / f64::from(1 << 20)
    }
}

impl Hog {
    /// Starts one task for each of `lanes`. Each reads its ticket over and over on its own connection.
    fn start(head: &Head, lanes: &[Bytes]) -> Result<Self> {
        let (stop, read) = (Arc::new(AtomicBool::new(false)), Arc::new(Read::default()));
        let (stopped, counted) = (stop.clone(), read.clone());
        let (addr, lanes) = (head.addr.clone(), lanes.to_vec());
        let thread = std::thread::Builder::new().name("hog".to_owned()).spawn(move || {
            // SAFETY: changes the priority of the calling thread only, as Linux takes 0 for it.
            if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, LOWEST_PRIORITY) } != 0 {
                return Err(std::io::Error::last_os_error()).context("setpriority");
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let pool = Pool::connect(&addr, &ChannelOptions::of_unit("hog"), lanes.len())?;
                let lane = |ticket: Bytes| async {
                    let ticket = ticket;
                    while !stopped.load(Relaxed) {
                        counted.add(load::read(pool.get(), ticket.clone()).await)?;
                    }
                    anyhow::Ok(())
                };
                try_join_all(lanes.into_iter().map(lane)).await?;
                Ok(())
            })
        })?;
        Ok(Self { stop, read, thread })
    }

    /// Ends the hog. Returns the counts of its reads.
    async fn stop(self) -> Result<Arc<Read>> {
        self.stop.store(true, Relaxed);
        let ended = tokio::task::spawn_blocking(|| self.thread.join()).await?;
        ended.map_err(|_| anyhow::anyhow!("the hog panicked"))??;
        Ok(self.read)
    }
}

/// The light units: the connection of each, and its next read.
struct Light<'a> {
    units: Vec<Pool>,
    next: &'a (dyn Fn(usize) -> Result<Bytes> + Sync),
    pace: Pace,
}

impl Light<'_> {
    async fn reads(&self) -> Result<Load> {
        let Pace { rate, span, .. } = self.pace;
        let units = self.units.iter().enumerate();
        let units = units.map(|(unit, pool)| load::paced(pool, rate, span, move |_| (self.next)(unit)));
        Ok(load::together(try_join_all(units).await?))
    }
}

/// The light units of `head` without a hog, with it at `other`, and with it at their own head.
async fn beside(name: &str, lanes: &[Bytes], light: &Light<'_>, head: &Head, other: &Head) -> Result<Figure> {
    let span = light.pace.span;
    let (mut ratios, mut controls, mut times) = (Vec::new(), Vec::new(), Vec::new());
    let (mut hogged, mut hogged_other, mut hog_hits) = (Vec::new(), Vec::new(), Vec::new());
    let (mut light_hits, mut light_shed, mut hog_shed) = (Vec::new(), 0, 0);
    for _ in 0..ROUNDS {
        let alone = light.reads().await?;
        let hog = Hog::start(other, lanes)?;
        let control = light.reads().await?;
        hogged_other.push(hog.stop().await?.mib_per_second(span));
        let hog = Hog::start(head, lanes)?;
        let both = light.reads().await?;
        let read = hog.stop().await?;
        hogged.push(read.mib_per_second(span));
        hog_hits.push(read.hit_rate());
        hog_shed += read.shed.load(Relaxed);
        ratios.push(both.quantile(0.99) / alone.quantile(0.99));
        controls.push(control.quantile(0.99) / alone.quantile(0.99));
        light_hits.push(both.hit_rate());
        light_shed += alone.shed + control.shed + both.shed;
        times.push([&alone, &control, &both].map(|load| (load.quantile(0.5), load.quantile(0.99))));
    }
    Ok(Figure::lower(&format!("hog of {name}: p99 of light units / without"), median(ratios.clone()), "x")
        .bar(1.5)
        .peer("the same light units without the hog; control: with the hog at another head")
        .detail(json!({
            "light_units": LIGHT_UNITS, "reads_per_second_each": light.pace.rate, "cache": light.pace.cache,
            "hog_tasks": lanes.len(), "hog_client": format!("one thread, niced to {LOWEST_PRIORITY}"), "ratios": ratios,
            "control_hog_at_another_head": median(controls.clone()), "control_ratios": controls,
            "hog_mib_per_second": hogged, "control_hog_mib_per_second": hogged_other, "hog_hit_rate": hog_hits,
            "hog_shed": hog_shed, "light_hit_rate": light_hits, "light_shed": light_shed,
            "p50_p99_ms_alone_control_beside": times,
        })))
}

async fn units(head: &Head) -> Result<Vec<Pool>> {
    let units = (0..LIGHT_UNITS).map(|unit| async move { head.connect(&format!("light-{unit}"), 1).await });
    try_join_all(units).await
}

pub(crate) async fn run(bench: &Bench) -> Result<Vec<Figure>> {
    let market = &bench.market;
    let (head, other) = (bench.head(WARM.cache).await?, bench.head(WARM.cache).await?);
    let all = market.ticket_of_all()?;
    for head in [&head, &other] {
        load::read(head.connect("warm", 1).await?.get(), all.clone()).await?;
    }
    let same = |unit| market.ticket(Ask { symbol: unit, start: DAYS - LIGHT_DAYS, end: DAYS }, CLOSE);
    let light = Light { units: units(&head).await?, next: &same, pace: WARM };
    let flood = market.ticket(Ask { symbol: LIGHT_UNITS, start: 0, end: DAYS }, ALL)?;
    let mut figures = Vec::new();
    for (name, lanes) in
        [("wide questions", vec![all; WIDE_LANES]), ("a flood of small ones", vec![flood; SMALL_LANES])]
    {
        figures.push(beside(name, &lanes, &light, &head, &other).await?);
    }

    // The hog has one half of the symbols, in four parts, and the light units the other, a chunk for each read.
    let (head, other) = (bench.head(COLD.cache).await?, bench.head(COLD.cache).await?);
    let half = market.symbols / 2;
    let part = (market.symbols - half).div_ceil(WIDE_LANES);
    let asked = AtomicUsize::new(0);
    let fresh = |_| {
        let n = asked.fetch_add(1, Relaxed);
        let day = (n / half) as i64 * CHUNK_DAYS % DAYS;
        Ok(ticket::encode(&market.query_chunk(n % half, day, CLOSE)?))
    };
    let light = Light { units: units(&head).await?, next: &fresh, pace: COLD };
    let lanes = (half..market.symbols)
        .step_by(part)
        .map(|first| market.ticket_of(first..(first + part).min(market.symbols)));
    let lanes = lanes.collect::<Result<Vec<_>>>()?;
    figures.push(beside("cold wide questions", &lanes, &light, &head, &other).await?);
    Ok(figures)
}
