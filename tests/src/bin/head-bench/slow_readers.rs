//! A herd beside readers that stop: readers of wide answers stop after the first message, readers of one series before it.
//! Each has the small flow-control windows of a stock client, so unread messages stay at the head.
//!
//! Measured: the peak of the process's resident set, compared with the budget: of the whole process, and above its idle memory
//! (the bar is for the latter). It includes cached, in-flight and pinned chunks, framed messages that no client takes,
//! connections, and the allocator's losses.
//!
//! Expected: within the budget, because chunks that a reader holds take room from the cache, and large answers wait for
//! admission.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use tokio::task::JoinSet;
use trellis_fabric::channel::ChannelOptions;
use trellis_tests::rng::Rng;

use crate::{
    Bench,
    figure::Figure,
    load,
    market::{self, ALL, Ask, DAYS, Zipf},
};

const SEED: u64 = 24;
const CACHE: &str = "128MiB";
/// Units with one wide reader each that stops after the first message.
const WIDE: usize = 16;
/// Readers of ten years of one symbol that stop before the first message...
const NARROW: usize = 400;
/// ...on so many connections.
const NARROW_CONNECTIONS: usize = 40;
const HERD: usize = 5_000;
const RELEASE: Duration = Duration::from_millis(500);
const CONNECTIONS: usize = 16;
/// The default window of HTTP/2.
const STOCK_WINDOW_BYTES: u32 = 65_535;

fn stock(unit: String) -> ChannelOptions {
    ChannelOptions {
        stream_window_bytes: STOCK_WINDOW_BYTES,
        connection_window_bytes: STOCK_WINDOW_BYTES,
        ..ChannelOptions::of_unit(unit)
    }
}

pub(crate) async fn run(bench: &Bench) -> Result<Vec<Figure>> {
    let market = &bench.market;
    let head = bench.head(CACHE).await?;
    let herd = head.connect("herd", CONNECTIONS).await?;
    let idle = head.resident()?;
    head.forget_peak()?;

    let mut stopped = JoinSet::new();
    for reader in 0..WIDE {
        let pool = head.connect_with(&stock(format!("wide-{reader}")), 1).await?;
        let ticket = market.ticket_of_all()?;
        stopped.spawn(async move {
            let mut answer = load::open(pool.get(), ticket).await?;
            answer.message().await?;
            std::future::pending::<()>().await;
            drop(answer);
            anyhow::Ok(())
        });
    }
    let narrow = head.connect_with(&stock("narrow".to_owned()), NARROW_CONNECTIONS).await?;
    for reader in 0..NARROW {
        let ticket = market.ticket(Ask { symbol: reader % market.symbols, start: 0, end: DAYS }, ALL)?;
        let channel = narrow.get();
        stopped.spawn(async move {
            let answer = load::open(channel, ticket).await?;
            std::future::pending::<()>().await;
            drop(answer);
            anyhow::Ok(())
        });
    }

    let (mut rng, zipf) = (Rng::new(SEED), Zipf::new(market.symbols));
    let tickets = (0..HERD)
        .map(|_| {
            let symbol = zipf.draw(&mut rng);
            market.ticket(market::window(&mut rng, symbol, DAYS), ALL)
        })
        .collect::<Result<Vec<_>>>()?;
    let load = load::burst(&herd, &tickets, RELEASE).await?;
    let (peak, stats) = (head.peak()?, head.stats().await?);
    // a reader that could not be opened holds nothing
    let mut refused = 0;
    while let Some(ended) = stopped.try_join_next() {
        refused += usize::from(ended?.is_err());
    }
    stopped.shutdown().await;

    let (budget, above) = (stats.budget_bytes as f64, peak.saturating_sub(idle) as f64);
    Ok(vec![
        Figure::lower("slow readers: peak memory above the idle head's / budget", above / budget, "x")
            .bar(1.05)
            .peer("the budget")
            .detail(json!({
                "seed": SEED, "wide": WIDE, "narrow": NARROW, "refused": refused, "herd": HERD, "herd_shed": load.shed,
                "herd_p99_ms": load.quantile(0.99), "idle_bytes": idle, "peak_bytes": peak,
                "budget_bytes": stats.budget_bytes, "resident_bytes": stats.resident_bytes,
                "in_flight_bytes": stats.in_flight_bytes, "pinned_bytes": stats.pinned_bytes,
                "counted": "VmHWM of the head's process, less its VmRSS when idle with all connections of the herd open",
            })),
        Figure::lower("slow readers: peak memory of the whole process / budget", peak as f64 / budget, "x")
            .peer("the budget")
            .detail(json!({"idle_of_budget": idle as f64 / budget})),
        Figure::higher("slow readers: herd answered", load.reads() as f64 / HERD as f64, "x")
            .detail(json!({"shed": load.shed, "p50_ms": load.quantile(0.5), "p99_ms": load.quantile(0.99)})),
    ])
}
