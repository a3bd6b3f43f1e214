//! A herd on a cold head: 20,000 overlapping requests within a tenth of a second, symbols by Zipf(1.0) over 500, 70 % ending
//! now with one month to ten years of lookback, 30 % walk-forward windows.
//!
//! Measured: upstream rows and calls, compared with the minimal union of the reads (counted here, not by the head); the times
//! from each read's release to its last byte; and the peak of the head's memory, of the whole process and above its idle
//! memory (the bar is for the latter). Two floors for the time:
//!
//! * *the minimal union*: a cold head and readers that together read each row of the union once;
//! * *the same answers from memory*: the same herd once more, when everything is cached.
//!
//! Expected: 1.02 of the minimal union, because chunks of 64 days round up; calls far below the 2,244 of a model without
//! group commit. The herd's answers are about ten times its union, and on one machine they share cores and memory bandwidth
//! with clients and shards, so no head can reach the first floor here. The second ratio shows the cost of cold reads without
//! the cost of sending the answers.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use trellis_tests::rng::Rng;

use crate::{
    Bench,
    figure::{Figure, greatest, median},
    load::{self, Load},
    market::{self, CLOSE, DAYS, Union, Zipf},
};

const REQUESTS: usize = 20_000;
const RELEASE: Duration = Duration::from_millis(100);
const CONNECTIONS: usize = 16;
/// Number of rounds, each with its own herd and heads.
const ROUNDS: u64 = 3;
const SEED: u64 = 20;
const CACHE: &str = "512MiB";

struct Round {
    rows_asked: u64,
    rows_union: u64,
    rows_fetched: u64,
    calls: u64,
    union_ms: f64,
    cold: Load,
    hot: Load,
    base: u64,
    peak: u64,
    budget: u64,
}

async fn round(bench: &Bench, seed: u64) -> Result<Round> {
    let market = &bench.market;
    let (mut rng, zipf) = (Rng::new(seed), Zipf::new(market.symbols));
    let mut union = Union::new(market.symbols, DAYS);
    let (mut tickets, mut rows_asked) = (Vec::with_capacity(REQUESTS), 0);
    for _ in 0..REQUESTS {
        let symbol = zipf.draw(&mut rng);
        let ask = market::window(&mut rng, symbol, DAYS);
        union.add(ask);
        rows_asked += market::sessions(ask.start, ask.end);
        tickets.push(market.ticket(ask, CLOSE)?);
    }

    let floor = union.asks().into_iter().map(|ask| market.ticket(ask, CLOSE)).collect::<Result<Vec<_>>>()?;
    let head = bench.head(CACHE).await?;
    let pool = head.connect("floor", CONNECTIONS).await?;
    let union_ms = load::burst(&pool, &floor, Duration::ZERO).await?.whole()?.span_ms;
    drop((pool, head));

    let head = bench.head(CACHE).await?;
    let pool = head.connect("herd", CONNECTIONS).await?;
    let base = head.resident()?;
    head.forget_peak()?;
    let cold = load::burst(&pool, &tickets, RELEASE).await?.whole()?;
    let (peak, stats) = (head.peak()?, head.stats().await?);
    let hot = load::burst(&pool, &tickets, RELEASE).await?.whole()?;
    ensure!(cold.rows == rows_asked && hot.rows == rows_asked, "an answer has a hole");
    Ok(Round {
        rows_asked,
        rows_union: union.rows(),
        rows_fetched: stats.rows_fetched,
        calls: stats.upstream_calls,
        union_ms,
        cold,
        hot,
        base,
        peak,
        budget: stats.budget_bytes,
    })
}

pub(crate) async fn run(bench: &Bench) -> Result<Vec<Figure>> {
    let mut rounds = Vec::new();
    for seed in SEED..SEED + ROUNDS {
        rounds.push(round(bench, seed).await?);
    }
    let each = |of: fn(&Round) -> f64| rounds.iter().map(of).collect::<Vec<f64>>();
    let amplification = each(|r| r.rows_fetched as f64 / r.rows_union as f64);
    let calls = each(|r| r.calls as f64);
    let (p50, p99) = (each(|r| r.cold.quantile(0.5)), each(|r| r.cold.quantile(0.99)));
    let (hot_p50, hot_p99) = (each(|r| r.hot.quantile(0.5)), each(|r| r.hot.quantile(0.99)));
    let union_ms = each(|r| r.union_ms);
    let p50_of_union = each(|r| r.cold.quantile(0.5) / r.union_ms);
    let of_union = each(|r| r.cold.quantile(0.99) / r.union_ms);
    let of_hot = each(|r| r.cold.quantile(0.99) / r.hot.quantile(0.99));
    let memory = each(|r| r.peak.saturating_sub(r.base) as f64 / r.budget as f64);
    let whole = each(|r| r.peak as f64 / r.budget as f64);
    let first = &rounds[0];
    Ok(vec![
        Figure::lower("herd: upstream rows / minimal union", greatest(amplification), "x")
            .bar(1.03)
            .peer("minimal union of the rows asked for")
            .detail(json!({
                "requests": REQUESTS, "seed": SEED, "rounds": ROUNDS, "taken": "the worst round",
                "rows_asked": first.rows_asked, "rows_union": first.rows_union, "rows_fetched": first.rows_fetched,
            })),
        Figure::lower("herd: upstream calls", greatest(calls.clone()), "calls")
            .bar(300.0)
            .detail(json!({"rounds": calls, "taken": "the worst round"})),
        Figure::lower("herd: p50 / moving the minimal union", median(p50_of_union.clone()), "x")
            .peer("a cold head asked once for each row of the union")
            .detail(json!({"p50_ms": p50, "union_ms": union_ms, "ratios": p50_of_union, "hot_p50_ms": hot_p50})),
        Figure::lower("herd: p99 / moving the minimal union", median(of_union.clone()), "x")
            .bar(1.1)
            .peer("a cold head asked once for each row of the union")
            .detail(json!({
                "p99_ms": p99, "union_ms": union_ms, "ratios": of_union,
                "answer_bytes": first.cold.bytes, "answers_of_union": first.rows_asked as f64 / first.rows_union as f64,
            })),
        Figure::lower("herd: p99 / the same answers from memory", median(of_hot.clone()), "x")
            .bar(1.1)
            .peer("the same herd on the same head, everything cached")
            .detail(json!({"p99_ms": p99, "hot_p99_ms": hot_p99, "ratios": of_hot})),
        Figure::lower("herd: peak memory above the idle head's / budget", greatest(memory.clone()), "x")
            .bar(1.05)
            .peer("the budget")
            .detail(json!({
                "rounds": memory, "base_bytes": first.base, "peak_bytes": first.peak, "budget_bytes": first.budget,
                "counted": "greatest resident set of the head's process during the cold herd, less that of the idle head",
            })),
        Figure::lower("herd: peak memory of the whole process / budget", greatest(whole.clone()), "x")
            .peer("the budget")
            .detail(json!({"rounds": whole})),
    ])
}
