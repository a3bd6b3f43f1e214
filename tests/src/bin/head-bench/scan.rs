//! A small hot set under light load, while one client reads all rows through a cache that holds a fifth of them: once as one
//! wide read, once symbol by symbol, as a careless backtest does.
//!
//! Measured: hit rate of the hot set during the scan, and its p99 during against before.
//!
//! Expected: the head does not cache the wide scan, because it sees its size. The scan by symbols looks like ordinary reads;
//! the hot set stays because it is used more often than the scan fills the cache.
//!
//! Control: the same scan through another head, which the readers of the hot set do not use. It shows the effect of sharing
//! the machine.

use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use serde_json::json;

use crate::{
    Bench,
    figure::{Figure, median},
    load::{self, Load, Pool},
    market::{ALL, Ask, DAYS},
};

const CACHE: &str = "16MiB";
const HOT_SYMBOLS: usize = 10;
const HOT_DAYS: i64 = 5 * 365;
const RATE: f64 = 200.0;
const SPAN: Duration = Duration::from_secs(3);
const ROUNDS: usize = 3;

/// Reads `tickets` round and round, one after the other. Returns how many were read.
async fn scan(pool: &Pool, tickets: &[Bytes], span: Duration) -> Result<usize> {
    let mut read = 0;
    let endless = async {
        for ticket in tickets.iter().cycle() {
            load::read(pool.get(), ticket.clone()).await?;
            read += 1;
        }
        anyhow::Ok(())
    };
    match tokio::time::timeout(span, endless).await {
        Ok(failed) => failed.map(|()| read),
        Err(_) => Ok(read),
    }
}

pub(crate) async fn run(bench: &Bench) -> Result<Vec<Figure>> {
    let market = &bench.market;
    let of = |symbol, start| market.ticket(Ask { symbol, start, end: DAYS }, ALL);
    let hot = (0..HOT_SYMBOLS).map(|symbol| of(symbol, DAYS - HOT_DAYS)).collect::<Result<Vec<_>>>()?;
    let wide = vec![market.ticket_of_all()?];
    let one_by_one = (HOT_SYMBOLS..market.symbols).map(|symbol| of(symbol, 0)).collect::<Result<Vec<_>>>()?;

    let head = bench.head(CACHE).await?;
    let other = bench.head(CACHE).await?;
    let (light, scanner) = (head.connect("light", 2).await?, head.connect("scanner", 1).await?);
    let elsewhere = other.connect("scanner", 1).await?;
    let load =
        || async { load::paced(&light, RATE, SPAN, |i| Ok(hot[i % hot.len()].clone())).await?.whole() };
    let mut figures = Vec::new();
    for (name, tickets) in [("one wide question", wide), ("symbol after symbol", one_by_one)] {
        let (mut ratios, mut hit_rates, mut reads) = (Vec::new(), Vec::new(), Vec::new());
        let (mut controls, mut times) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            load::closed(&light, &hot, 1).await?.whole()?;
            let before: Load = load().await?;
            let (control, _) = tokio::try_join!(load(), scan(&elsewhere, &tickets, SPAN))?;
            let (during, scanned) = tokio::try_join!(load(), scan(&scanner, &tickets, SPAN))?;
            ratios.push(during.quantile(0.99) / before.quantile(0.99));
            controls.push(control.quantile(0.99) / before.quantile(0.99));
            hit_rates.push(during.hit_rate() / before.hit_rate());
            times.push([&before, &control, &during].map(|load| (load.quantile(0.5), load.quantile(0.99))));
            reads.push(scanned);
        }
        let stats = head.stats().await?;
        figures.push(
            Figure::higher(
                &format!("scan, {name}: hit rate of the hot set / before"),
                median(hit_rates.clone()),
                "x",
            )
            .bar(0.95)
            .peer("the same load before the scan")
            .detail(json!({
                "rounds": hit_rates, "cache": CACHE, "scanner_reads": reads, "evictions": stats.evictions,
            })),
        );
        figures.push(
            Figure::lower(&format!("scan, {name}: p99 of the hot set / before"), median(ratios.clone()), "x")
                .bar(1.5)
                .peer("the same load before the scan")
                .detail(json!({
                    "ratios": ratios, "control_scan_at_another_head": median(controls.clone()),
                    "control_ratios": controls, "p50_p99_ms_before_control_during": times,
                })),
        );
    }
    Ok(figures)
}
