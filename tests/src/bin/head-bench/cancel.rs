//! Readers that leave while a shard is slow: gates hold the answers of the shards.
//!
//! First, one cold series after another. Each reader arrives while the one before still waits, or just after it has left; all
//! but the last leave at random moments. Measured: upstream calls for each series. Expected: one, however many leave.
//!
//! Then a wide read for which one shard sends nothing, and whose only reader leaves. Measured: the time until nothing is in
//! flight, and the cost of reading everything again. Expected: the fetch is cancelled after the grace of 250 ms, and no chunk
//! that had arrived is fetched twice.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tokio::task::JoinHandle;
use trellis_proto::pb;
use trellis_tests::rng::Rng;

use crate::{
    Bench, SHARDS,
    figure::Figure,
    head::Head,
    load::{self, milliseconds},
    market::{Ask, CLOSE, DAYS, sessions},
};

const SEED: u64 = 23;
const SERIES: usize = 16;
const LEADERS: usize = 12;
/// Longest time that a leader stays once it waits.
const STAY_MS: usize = 30;
/// Longest time without a reader: less than the head's grace.
const GAP_MS: usize = 120;
/// The part of the wide read that has arrived when its reader leaves.
const ARRIVED_BYTES: u64 = 1 << 20;
/// Longest wait for the head.
const PATIENCE: Duration = Duration::from_secs(20);
const CACHE: &str = "512MiB";

fn hold(bench: &Bench) {
    (0..SHARDS).for_each(|shard| bench.grid.gate(shard).hold());
}

fn open(bench: &Bench) {
    (0..SHARDS).for_each(|shard| bench.grid.gate(shard).open());
}

/// Asks the head for its counters until they are as expected.
async fn until(head: &Head, what: &str, met: impl Fn(&pb::HeadStats) -> bool) -> Result<pb::HeadStats> {
    let began = Instant::now();
    let client = head.client().await?;
    loop {
        let stats = client.stats().await?.pop().context("no counters")?;
        if met(&stats) {
            return Ok(stats);
        }
        ensure!(began.elapsed() < PATIENCE, "never: {what}; {stats:?}");
    }
}

fn waiting(stats: &pb::HeadStats) -> u64 {
    stats.chunks_fetched + stats.chunks_joined
}

async fn pause(rng: &mut Rng, most_ms: usize) {
    tokio::time::sleep(Duration::from_millis(rng.below(most_ms) as u64)).await;
}

/// The upstream calls of a series that `LEADERS` readers left, and the rows that came.
async fn leave(bench: &Bench, head: &Head, symbol: usize, rng: &mut Rng) -> Result<(u64, u64)> {
    let pool = head.connect("cancel", 1).await?;
    let ask = || bench.market.ticket(Ask { symbol, start: start_of(symbol), end: DAYS }, CLOSE);
    let before = head.stats().await?;
    hold(bench);
    let mut here: Option<JoinHandle<_>> = None;
    for _ in 0..=LEADERS {
        let known = waiting(&head.stats().await?);
        if let Some(leader) = here.take_if(|_| rng.once_in(3)) {
            leader.abort();
            pause(rng, GAP_MS).await;
        }
        let next = tokio::spawn(load::read(pool.get(), ask()?));
        until(head, "the next reader waits", |stats| waiting(stats) > known).await?;
        pause(rng, STAY_MS).await;
        if let Some(leader) = here.replace(next) {
            leader.abort();
        }
    }
    open(bench);
    let (_, receipt) = here.context("the last reader")?.await??;
    let after = head.stats().await?;
    ensure!(receipt.rows == sessions(start_of(symbol), DAYS), "the last reader has {} rows", receipt.rows);
    Ok((after.upstream_calls - before.upstream_calls, after.rows_fetched - before.rows_fetched))
}

/// The reads of different series have different lengths.
fn start_of(symbol: usize) -> i64 {
    symbol as i64 * 64
}

pub(crate) async fn run(bench: &Bench) -> Result<Vec<Figure>> {
    let market = &bench.market;
    let head = bench.gated_head(CACHE).await?;
    let mut rng = Rng::new(SEED);
    let (mut calls, mut rows) = (Vec::new(), Vec::new());
    for symbol in 0..SERIES {
        let left = leave(bench, &head, symbol, &mut rng).await;
        open(bench);
        let (called, came) = left?;
        calls.push(called);
        rows.push(came);
    }
    drop(head);

    let head = bench.gated_head(CACHE).await?;
    let pool = head.connect("cancel", 1).await?;
    bench.grid.gate(0).hold();
    let reader = tokio::spawn(load::read(pool.get(), market.ticket_of_all()?));
    let come =
        until(&head, "a part of the answer has come", |stats| stats.bytes_fetched > ARRIVED_BYTES).await;
    reader.abort();
    let left = Instant::now();
    let quiet = until(&head, "nothing is in flight", |stats| stats.in_flight_bytes == 0).await;
    let quiet_ms = milliseconds(left);
    open(bench);
    let (come, quiet) = (come?, quiet?);
    let (_, receipt) = load::read(pool.get(), market.ticket_of_all()?).await?;
    let fetched = head.stats().await?.rows_fetched;
    let all = sessions(0, DAYS) * market.symbols as u64;
    ensure!(receipt.rows == all, "{} rows instead of {all}", receipt.rows);

    let most = calls.iter().max().copied().unwrap_or_default();
    Ok(vec![
        Figure::lower("cancel: upstream calls for a series that its leaders left", most as f64, "calls")
            .bar(1.0)
            .detail(json!({
                "seed": SEED, "series": SERIES, "leaders_that_left": LEADERS, "calls": calls, "rows": rows,
                "taken": "the worst series",
            })),
        Figure::lower("cancel: nothing in flight after the last reader left", quiet_ms, "ms").detail(
            json!({"grace_ms": 250, "bytes_in_flight": come.in_flight_bytes, "rows_that_had_come": quiet.rows_fetched}),
        ),
        Figure::lower(
            "cancel: rows fetched by the left and the second read / rows",
            fetched as f64 / all as f64,
            "x",
        )
        .bar(1.03)
        .peer("every row once")
        .detail(json!({"rows_fetched": fetched, "rows": all})),
    ])
}
