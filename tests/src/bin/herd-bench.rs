//! A herd on a cold head: many overlapping requests within a tenth of a second.
//!
//! `herd-bench HEAD-NODE-BINARY [REQUESTS]` starts eight shards in this process and one head node as a process of its own
//! (so that its memory is its own), loads 500 symbols of ten years of daily rows, and releases REQUESTS (20,000) requests
//! inside 100 ms: symbols by Zipf(1.0); 70 % end now and look back one month to ten years, 30 % are walk-forward windows of
//! one to three years. Prints one line of JSON.
//!
//! Expected from a model of the strategy: upstream rows 1.02 of the minimal union (chunks of 64 days round up), fewer than
//! 300 upstream calls.

use std::{
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use arrow_flight::{Ticket, flight_service_client::FlightServiceClient};
use futures::TryStreamExt;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};
use tonic::transport::Channel;
use trellis_proto::{
    SeriesQuery, Symbols, TimeRange, pb,
    time::{DAY_NS, parse_time},
};
use trellis_qcu::client::{Client, ClientOptions};
use trellis_tests::{
    grid::{Grid, import, spec},
    oracle::Row,
    rng::Rng,
};

const SHARDS: usize = 8;
const SYMBOLS: usize = 500;
const DAYS: i64 = 3_652;
const CONNECTIONS: usize = 16;
const RELEASE: Duration = Duration::from_millis(100);
/// Room for all of the market's rows and what is on its way to readers.
const CACHE: &str = "512MiB";

struct Head {
    process: Child,
    addr: String,
}

impl Head {
    async fn start(binary: &str, shards: &str) -> Result<Self> {
        let mut process = Command::new(binary)
            .env("TRELLIS_SHARDS", shards)
            .env("TRELLIS_CACHE_BYTES", CACHE)
            .env("TRELLIS_LOG", "warn")
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {binary}"))?;
        let stdout = process.stdout.take().context("stdout")?;
        let line =
            BufReader::new(stdout).lines().next_line().await?.context("the head node did not start")?;
        let ready: Value = serde_json::from_str(&line)?;
        Ok(Self {
            process,
            addr: ready["listen"].as_str().context("no address in the ready line")?.to_owned(),
        })
    }

    async fn client(&self) -> Result<Client> {
        Ok(Client::connect(&format!("grpc://{}", self.addr), ClientOptions::default()).await?)
    }

    /// Peak resident bytes.
    fn peak(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id().context("pid")?))?;
        let line = status.lines().find(|line| line.starts_with("VmHWM")).context("VmHWM")?;
        Ok(1024 * line.split_whitespace().nth(1).context("kB")?.parse::<u64>()?)
    }
}

fn market(symbol: usize, first: i64) -> Vec<Row> {
    (0..DAYS)
        .filter(|day| (day + 3) % 7 < 5)
        .map(|day| Row {
            symbol: format!("S{symbol:03}"),
            ts: first + day * DAY_NS,
            known_at: 0,
            values: vec![Some(day as f64 + symbol as f64 / 1000.0), Some(day as f64)],
        })
        .collect()
}

/// The symbol of rank r is asked for with weight 1 / r.
fn zipf() -> Vec<f64> {
    let mut sum = 0.0;
    let mut cumulative: Vec<f64> = (1..=SYMBOLS)
        .map(|rank| {
            sum += 1.0 / rank as f64;
            sum
        })
        .collect();
    cumulative.iter_mut().for_each(|c| *c /= sum);
    cumulative
}

fn requests(rng: &mut Rng, n: usize, first: i64) -> Vec<(usize, i64, i64)> {
    let (zipf, now) = (zipf(), DAYS);
    (0..n)
        .map(|_| {
            let at = (rng.bits() >> 11) as f64 / (1u64 << 53) as f64;
            let symbol = zipf.partition_point(|c| *c < at).min(SYMBOLS - 1);
            let (start, end) = if rng.below(10) < 7 {
                (now - (30 + rng.below(DAYS as usize - 30) as i64), now)
            } else {
                let length = 365 + rng.below(730) as i64;
                let start = rng.below((DAYS - length) as usize) as i64;
                (start, start + length)
            };
            (symbol, first + start * DAY_NS, first + end * DAY_NS)
        })
        .collect()
}

/// Reads an answer to its end without decoding it: what is measured is the head, not this process.
async fn drain(channel: Channel, ticket: bytes::Bytes) -> Result<u64> {
    let mut client = FlightServiceClient::new(channel).max_decoding_message_size(64 << 20);
    let mut stream = client.do_get(Ticket { ticket }).await?.into_inner();
    let mut bytes = 0;
    while let Some(message) = stream.try_next().await? {
        bytes += message.data_body.len() as u64;
    }
    Ok(bytes)
}

fn percentile(sorted: &[f64], p: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * p) as usize]
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let binary = arguments.next().context("usage: herd-bench HEAD-NODE-BINARY [REQUESTS]")?;
    let n: usize = arguments.next().map_or(Ok(20_000), |text| text.parse())?;

    let grid = Grid::start(0, SHARDS).await?;
    let shards = grid.shards_direct();
    let spec = spec("equities.daily", &["close", "volume"]);
    let first = parse_time("2008-02-08")?;
    {
        let head = Head::start(&binary, &shards).await?;
        let rows: Vec<Row> = (0..SYMBOLS).flat_map(|symbol| market(symbol, first)).collect();
        import(&head.client().await?, &spec, &rows, None, "market").await?;
    }

    let mut rng = Rng::seeded(20);
    let asked = requests(&mut rng, n, first);
    let query = |symbol: usize, start, end| -> Result<SeriesQuery> {
        let mut query = SeriesQuery::new(spec.dataset.clone(), Symbols::new([format!("S{symbol:03}")])?);
        query.fields = vec!["close".parse()?];
        query.range = TimeRange::new(Some(start), Some(end))?;
        Ok(query)
    };

    // The floor: a cold head, and one reader that asks once for each symbol's union, all at the same time.
    let head = Head::start(&binary, &shards).await?;
    let client = head.client().await?;
    client.describe(None).await?;
    let mut floor = Vec::new();
    for symbol in 0..SYMBOLS {
        let ranges = asked.iter().filter(|(s, ..)| *s == symbol);
        let (start, end) = ranges.fold((i64::MAX, i64::MIN), |(a, b), (_, s, e)| (a.min(*s), b.max(*e)));
        if start < end {
            floor.push(trellis_proto::ticket::encode(&query(symbol, start, end)?));
        }
    }
    let channel = Channel::from_shared(format!("http://{}", head.addr))?.tcp_nodelay(true).connect().await?;
    let began = Instant::now();
    futures::future::try_join_all(floor.into_iter().map(|ticket| drain(channel.clone(), ticket))).await?;
    let union_ms = began.elapsed().as_secs_f64() * 1e3;
    drop(head);

    let head = Head::start(&binary, &shards).await?;
    let client = head.client().await?;
    client.describe(None).await?;
    let mut channels = Vec::new();
    for _ in 0..CONNECTIONS {
        channels
            .push(Channel::from_shared(format!("http://{}", head.addr))?.tcp_nodelay(true).connect().await?);
    }
    let tickets: Vec<bytes::Bytes> = asked
        .iter()
        .map(|&(symbol, start, end)| Ok(trellis_proto::ticket::encode(&query(symbol, start, end)?)))
        .collect::<Result<_>>()?;
    let calm = head.peak()?;
    let began = Instant::now();
    let failed = Arc::new(failures::Counter::default());
    let tasks: Vec<_> = tickets
        .into_iter()
        .enumerate()
        .map(|(i, ticket)| {
            let (channel, failed) = (channels[i % CONNECTIONS].clone(), failed.clone());
            let at = began + RELEASE.mul_f64(i as f64 / n as f64);
            tokio::spawn(async move {
                tokio::time::sleep_until(at.into()).await;
                let bytes = drain(channel, ticket).await.inspect_err(|error| failed.note(error)).unwrap_or(0);
                (at.elapsed().as_secs_f64() * 1e3, bytes)
            })
        })
        .collect();
    let (mut taken, mut bytes) = (Vec::new(), 0);
    for task in tasks {
        let (ms, sent) = task.await?;
        taken.push(ms);
        bytes += sent;
    }
    let total_ms = began.elapsed().as_secs_f64() * 1e3;
    if let Some(first) = failed.first() {
        bail!("{} of {n} requests failed; the first: {first}", failed.count());
    }
    taken.sort_by(f64::total_cmp);
    let stats: pb::HeadStats = client.stats().await?.remove(0);
    println!(
        "{}",
        json!({
            "requests": n, "rows_asked": stats.rows_asked, "rows_fetched": stats.rows_fetched, "rows_union": stats.rows_union,
            "amplification": stats.rows_fetched as f64 / stats.rows_union as f64, "upstream_calls": stats.upstream_calls,
            "p50_ms": percentile(&taken, 0.5), "p99_ms": percentile(&taken, 0.99), "total_ms": total_ms, "union_ms": union_ms,
            "answer_bytes": bytes, "peak_bytes": head.peak()?, "calm_bytes": calm, "budget_bytes": stats.budget_bytes,
        })
    );
    drop(head);
    grid.stop().await
}

/// Failures of many tasks: how many, and what the first was.
mod failures {
    use std::sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    };

    #[derive(Default)]
    pub(crate) struct Counter {
        count: AtomicUsize,
        first: OnceLock<String>,
    }

    impl Counter {
        pub(crate) fn note(&self, error: &anyhow::Error) {
            self.count.fetch_add(1, Ordering::Relaxed);
            // Only the first stays.
            let _ = self.first.set(format!("{error:#}"));
        }

        pub(crate) fn count(&self) -> usize {
            self.count.load(Ordering::Relaxed)
        }

        pub(crate) fn first(&self) -> Option<&str> {
            self.first.get().map(String::as_str)
        }
    }
}
