//! The working set changes completely, with a cache that holds neither the old nor the new one whole.
//!
//! The reads are those of the herd with all fields, first of one half of the symbols, then of the other. Measured: the chunks
//! fetched after the change, compared with a cold head that starts with the second half; and the number of reads until the
//! hit rate is back at 90 %.
//!
//! Expected: 1.0, because the least recently used chunks, the old set, go first. (With eviction by frequency they would stay:
//! a model of TinyLFU missed 5.8 times more after such a change.)

use anyhow::Result;
use bytes::Bytes;
use serde_json::json;
use trellis_tests::rng::Rng;

use crate::{
    Bench,
    figure::Figure,
    load::{self, Pool},
    market::{self, ALL, DAYS, Zipf},
};

const SEED: u64 = 22;
/// Reads of each half.
const REQUESTS: usize = 3_000;
/// The chunks of a half have about 37 MiB.
const CACHE: &str = "16MiB";
/// Reads in one window. Each window has one hit rate.
const WINDOW: usize = 100;
/// The hit rate before the change is the mean of this many windows.
const BEFORE: usize = 10;
/// The part of the earlier hit rate that counts as recovered.
const RECOVERED: f64 = 0.9;
const LANES: usize = 4;

/// Hit rates, window by window.
async fn hit_rates(pool: &Pool, tickets: &[Bytes]) -> Result<Vec<f64>> {
    let mut rates = Vec::new();
    for window in tickets.chunks(WINDOW) {
        rates.push(load::closed(pool, window, LANES).await?.whole()?.hit_rate());
    }
    Ok(rates)
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

pub(crate) async fn run(bench: &Bench) -> Result<Vec<Figure>> {
    let market = &bench.market;
    let half = market.symbols / 2;
    let (mut rng, zipf) = (Rng::new(SEED), Zipf::new(half));
    let mut tickets = |first: usize| -> Result<Vec<Bytes>> {
        (0..REQUESTS)
            .map(|_| {
                let symbol = first + zipf.draw(&mut rng);
                market.ticket(market::window(&mut rng, symbol, DAYS), ALL)
            })
            .collect()
    };
    let (old, new) = (tickets(0)?, tickets(half)?);

    let head = bench.head(CACHE).await?;
    let pool = head.connect("shift", LANES).await?;
    let before = hit_rates(&pool, &old).await?;
    let at_shift = head.stats().await?.chunks_fetched;
    let after = hit_rates(&pool, &new).await?;
    let fetched = head.stats().await?.chunks_fetched - at_shift;

    let cold = bench.head(CACHE).await?;
    let from_cold = hit_rates(&cold.connect("shift", LANES).await?, &new).await?;
    let cold_fetched = cold.stats().await?.chunks_fetched;

    let rate = mean(&before[before.len().saturating_sub(BEFORE)..]);
    let recovery = |rates: &[f64]| {
        let windows = rates.iter().position(|now| *now >= RECOVERED * rate).map_or(rates.len(), |at| at + 1);
        windows * WINDOW
    };
    Ok(vec![
        Figure::lower("shift: chunks fetched after the change / from cold", fetched as f64 / cold_fetched as f64, "x")
            .bar(1.1)
            .peer("a head that begins with the second half")
            .detail(json!({
                "seed": SEED, "requests": REQUESTS, "cache": CACHE, "fetched": fetched, "cold_fetched": cold_fetched,
            })),
        Figure::lower("shift: requests until the hit rate is 90 % of before", recovery(&after) as f64, "requests")
            .peer("a head that begins with the second half")
            .detail(json!({
                "from_cold": recovery(&from_cold), "hit_rate_before": rate,
                "hit_rate_at_the_end": mean(&after[after.len().saturating_sub(BEFORE)..]), "window": WINDOW,
            })),
    ])
}
