//! The size of the cache: ten million chunks go through a cache that holds less than half of the rows that are read.
//!
//! Each read has a random symbol, all its days and one field; the last reads have one chunk, so that almost nothing is in
//! flight. Measured: the resident bytes at the end, compared with the budget.
//!
//! Expected: 0.99 to 1.0, except for the bytes that the last read had in flight.

use anyhow::{Result, ensure};
use bytes::Bytes;
use serde_json::json;
use trellis_proto::{Symbols, ticket};
use trellis_tests::rng::Rng;

use crate::{
    Bench,
    figure::Figure,
    load,
    market::{self, CLOSE, DAYS},
};

const SEED: u64 = 23;
const CHUNKS: u64 = 10_000_000;
/// The chunks of one field of all symbols have about 40 MiB.
const CACHE: &str = "16MiB";
/// Symbols of one read: about 1.3 MiB in chunks.
const SYMBOLS: usize = 16;
/// Reads between two checks of the counters.
const ROUND: usize = 500;
const LANES: usize = 2;
/// Single chunks that are read at the end: more than a read had in flight.
const FILLING: usize = 4_000;

pub(crate) async fn run(bench: &Bench) -> Result<Vec<Figure>> {
    let market = &bench.market;
    let mut rng = Rng::new(SEED);
    let mut ticket = || -> Result<Bytes> {
        let symbols = Symbols::new((0..SYMBOLS).map(|_| market::name(rng.below(market.symbols))))?;
        Ok(ticket::encode(&market.query(symbols, CLOSE, 0, DAYS)?))
    };
    let head = bench.head(CACHE).await?;
    let pool = head.connect("capacity", LANES).await?;
    let mut hit_rate = f64::NAN;
    while head.stats().await?.chunks_fetched < CHUNKS {
        let tickets = (0..ROUND).map(|_| ticket()).collect::<Result<Vec<_>>>()?;
        hit_rate = load::closed(&pool, &tickets, LANES).await?.whole()?.hit_rate();
    }
    // chunk by chunk, because the last large read had more in flight, and room for it
    for _ in 0..FILLING {
        let (symbol, day) = (rng.below(market.symbols), rng.below(DAYS as usize) as i64);
        load::read(pool.get(), ticket::encode(&market.query_chunk(symbol, day, CLOSE)?)).await?;
    }
    let stats = head.stats().await?;
    ensure!(stats.resident_bytes <= stats.budget_bytes, "more than the budget is resident");
    let usable = stats.resident_bytes as f64 / stats.budget_bytes as f64;
    Ok(vec![
        Figure::higher("capacity: resident bytes / budget, after 10^7 insertions", usable, "x")
            .bar(0.98)
            .peer("the budget")
            .detail(json!({
                "seed": SEED, "fetched": stats.chunks_fetched, "evictions": stats.evictions,
                "resident_bytes": stats.resident_bytes, "budget_bytes": stats.budget_bytes, "hit_rate": hit_rate,
            })),
    ])
}
