//! A working day in twenty seconds: two heads, random overlapping requests, and a publisher that adds sessions and corrects
//! old rows all the time, through one head or the other.
//!
//! It has two parts. In *mix*, the reads are those of the herd, and both heads start cold. Measured: the rows fetched, compared
//! with the union of the rows read and the rows changed; the time from sending a correction until each head answers with it,
//! read back to back; corrections that a head lacked after their acknowledgement; and the chunks that changes touched,
//! compared with the changed chunks. In *now*, all readers read the last weeks only, while sessions and corrections of the
//! last days are published. Measured: upstream calls.
//!
//! Expected: 1.02 of the union; a correction is visible after a durable commit, tens of milliseconds; no upstream call in
//! *now*, because the watch log extends the newest chunk.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use arrow_array::{cast::AsArray, types::Float64Type};
use futures::future::{try_join, try_join3};
use serde_json::json;
use tokio::time::{Instant as Moment, MissedTickBehavior, interval};
use trellis_proto::{SeriesQuery, pb};
use trellis_qcu::client::Client;
use trellis_tests::rng::Rng;

use crate::{
    Bench,
    figure::Figure,
    head::Head,
    load::{self, Load, Pool, milliseconds, quantile},
    market::{self, Ask, CLOSE, DAYS, Market, Union, Zipf},
};

const SEED: u64 = 21;
const SYMBOLS: usize = 200;
/// Days at the market's end that are published while the scenario runs.
const TO_COME: i64 = 140;
const MIX: Duration = Duration::from_secs(12);
const NOW: Duration = Duration::from_secs(6);
/// Reads a second at each head.
const RATE: f64 = 200.0;
/// Time between two publishes; sessions and corrections take turns.
const PUBLISH_EVERY: Duration = Duration::from_millis(120);
/// Days that readers of *now* read, and days of their corrections.
const NOW_DAYS: i64 = 30;
const CORRECTED_DAYS: i64 = 10;
const CONNECTIONS: usize = 4;
/// Position of the checked field, in an answer and in published rows.
const CLOSE_READ: usize = 2;
const CLOSE_PUBLISHED: usize = 5;

/// One head, and the union of its reads.
struct Side {
    head: Head,
    client: Client,
    pool: Pool,
    asked: Mutex<Union>,
}

impl Side {
    async fn new(bench: &Bench) -> Result<Self> {
        let head = bench.head("512MiB").await?;
        Ok(Self {
            client: head.client().await?,
            pool: head.connect("steady", CONNECTIONS).await?,
            asked: Mutex::new(Union::new(SYMBOLS, DAYS)),
            head,
        })
    }

    /// Milliseconds since `sent` until this head answers with `value`.
    async fn visible(&self, query: &SeriesQuery, value: f64, sent: Instant) -> Result<f64> {
        while !self.answers(query, value).await? {}
        Ok(milliseconds(sent))
    }

    async fn answers(&self, query: &SeriesQuery, value: f64) -> Result<bool> {
        let answer = self.client.read(query).await?;
        let batch =
            answer.batches.iter().find(|batch| batch.num_rows() > 0).context("a correction has no row")?;
        Ok(batch.column(CLOSE_READ).as_primitive::<Float64Type>().value(0) == value)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // a panic of another task ends the bench anyway
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The publishes of one part of the day.
#[derive(Default)]
struct Published {
    sessions: u64,
    corrections: u64,
    /// (symbol, chunk) pairs that changed, counted for each publish.
    chunks: u64,
    /// Corrected rows that had been read before, over both heads.
    rows_changed: u64,
    /// Milliseconds until visible, of each correction at each head, ascending.
    visible: Vec<f64>,
    /// Answers with the old row after the acknowledgement.
    late: u64,
}

struct Day<'a> {
    market: &'a Market,
    sides: &'a [Side; 2],
    /// The day after the last session.
    now: AtomicI64,
    publishes: AtomicU64,
}

impl Day<'_> {
    /// Publishes for `span`; corrects any row, or only those of the last days.
    async fn publish(&self, mut rng: Rng, span: Duration, recent: Option<i64>) -> Result<Published> {
        let until = Moment::now() + span;
        let mut ticks = interval(PUBLISH_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut published = Published::default();
        while ticks.tick().await < until {
            let run = self.publishes.fetch_add(1, SeqCst);
            match run % 2 {
                0 => self.session(run, &mut published).await?,
                _ => self.correct(run, &mut rng, recent, &mut published).await?,
            }
        }
        published.visible.sort_by(f64::total_cmp);
        Ok(published)
    }

    /// The head through which a publish goes.
    fn through(&self, run: u64) -> &Client {
        &self.sides[(run / 2 % 2) as usize].client
    }

    async fn session(&self, run: u64, published: &mut Published) -> Result<()> {
        let now = self.now.load(SeqCst);
        let day = (now..).find(|day| market::is_session(*day)).context("no session")?;
        let rows = self.market.rows(0..SYMBOLS, day..day + 1, 0.0)?;
        self.market.import(self.through(run), &format!("session {day}"), vec![rows]).await?;
        self.now.store(day + 1, SeqCst);
        published.sessions += 1;
        published.chunks += SYMBOLS as u64;
        Ok(())
    }

    async fn correct(
        &self,
        run: u64,
        rng: &mut Rng,
        recent: Option<i64>,
        published: &mut Published,
    ) -> Result<()> {
        let now = self.now.load(SeqCst);
        let (first, symbol) = (recent.map_or(0, |days| now - days), rng.below(SYMBOLS));
        let day = loop {
            let day = first + rng.below((now - first) as usize) as i64;
            if market::is_session(day) {
                break day;
            }
        };
        let rows = self.market.rows(symbol..symbol + 1, day..day + 1, run as f64)?;
        let value = rows.column(CLOSE_PUBLISHED).as_primitive::<Float64Type>().value(0);
        let ask = Ask { symbol, start: day, end: day + 1 };
        let query = self.market.query_one(ask, CLOSE)?;
        for side in self.sides {
            let mut asked = lock(&side.asked);
            published.rows_changed += u64::from(asked.has(symbol, day));
            asked.add(ask);
        }
        let sent = Instant::now();
        let publish = async {
            self.market.import(self.through(run), &format!("correction {run}"), vec![rows]).await?;
            let mut late = 0;
            for side in self.sides {
                late += u64::from(!side.answers(&query, value).await?);
            }
            Ok(late)
        };
        let [one, two] = self.sides;
        let visible = try_join(one.visible(&query, value, sent), two.visible(&query, value, sent));
        let (late, (one, two)) = try_join(publish, visible).await?;
        published.corrections += 1;
        published.chunks += 1;
        published.late += late;
        published.visible.extend([one, two]);
        Ok(())
    }

    /// Reads from one head for `span`: all days, or only the last ones.
    async fn read(&self, side: &Side, mut rng: Rng, span: Duration, recent: Option<i64>) -> Result<Load> {
        let zipf = Zipf::new(SYMBOLS);
        let ticket = |_| {
            let (now, symbol) = (self.now.load(SeqCst), zipf.draw(&mut rng));
            let ask = match recent {
                Some(days) => Ask { symbol, start: now - days, end: now },
                None => market::window(&mut rng, symbol, now),
            };
            lock(&side.asked).add(ask);
            self.market.ticket(ask, CLOSE)
        };
        load::paced(&side.pool, RATE, span, ticket).await?.whole()
    }
}

async fn stats(sides: &[Side; 2]) -> Result<[pb::HeadStats; 2]> {
    Ok([sides[0].head.stats().await?, sides[1].head.stats().await?])
}

fn sum(stats: &[pb::HeadStats; 2], of: fn(&pb::HeadStats) -> u64) -> u64 {
    stats.iter().map(of).sum()
}

pub(crate) async fn run(bench: &Bench) -> Result<Vec<Figure>> {
    let market = Market::new("steady.daily", SYMBOLS)?;
    market.import_history(&bench.head("16MiB").await?.client().await?, DAYS - TO_COME).await?;
    let sides = [Side::new(bench).await?, Side::new(bench).await?];
    let mut rng = Rng::new(SEED);
    let day = Day {
        market: &market,
        sides: &sides,
        now: AtomicI64::new(DAYS - TO_COME),
        publishes: AtomicU64::new(0),
    };

    let (published, one, two) = try_join3(
        day.publish(rng.fork(), MIX, None),
        day.read(&sides[0], rng.fork(), MIX, None),
        day.read(&sides[1], rng.fork(), MIX, None),
    )
    .await?;
    let mixed = stats(&sides).await?;
    let union: u64 = sides.iter().map(|side| lock(&side.asked).rows()).sum();
    let fetched = sum(&mixed, |stats| stats.rows_fetched);
    let needed = union + published.rows_changed;

    // the cached rows of readers of *now*
    for side in &sides {
        for symbol in 0..SYMBOLS {
            let now = day.now.load(SeqCst);
            let ask = Ask { symbol, start: now - 2 * NOW_DAYS, end: now };
            load::read(side.pool.get(), market.ticket(ask, CLOSE)?).await?;
        }
    }
    let before = stats(&sides).await?;
    let (published_now, one_now, two_now) = try_join3(
        day.publish(rng.fork(), NOW, Some(CORRECTED_DAYS)),
        day.read(&sides[0], rng.fork(), NOW, Some(NOW_DAYS)),
        day.read(&sides[1], rng.fork(), NOW, Some(NOW_DAYS)),
    )
    .await?;
    let after = stats(&sides).await?;

    let touched = sum(&after, |stats| stats.invalidations);
    let changed = sides.len() as u64 * (published.chunks + published_now.chunks);
    let mut visible = [published.visible, published_now.visible].concat();
    visible.sort_by(f64::total_cmp);
    Ok(vec![
        Figure::lower("steady: upstream rows / union asked and changed", fetched as f64 / needed as f64, "x")
            .bar(1.03)
            .peer("union of the rows asked for, and corrected rows")
            .detail(json!({
                "seed": SEED, "heads": sides.len(), "reads": one.reads() + two.reads(), "rows_asked": one.rows + two.rows,
                "rows_union": union, "rows_changed": published.rows_changed, "rows_fetched": fetched,
                "calls": sum(&mixed, |stats| stats.upstream_calls), "read_p50_ms": one.quantile(0.5),
                "read_p99_ms": one.quantile(0.99), "sessions": published.sessions, "corrections": published.corrections,
            })),
        Figure::lower(
            "steady: upstream calls of readers of now",
            (sum(&after, |stats| stats.upstream_calls) - sum(&before, |stats| stats.upstream_calls)) as f64,
            "calls",
        )
        .bar(0.0)
        .detail(json!({
            "reads": one_now.reads() + two_now.reads(), "sessions": published_now.sessions,
            "corrections": published_now.corrections, "read_p99_ms": one_now.quantile(0.99),
        })),
        Figure::lower("steady: correction visible on both heads, p99", quantile(&visible, 0.99), "ms")
            .bar(1000.0)
            .detail(json!({
                "p50_ms": quantile(&visible, 0.5), "max_ms": quantile(&visible, 1.0), "observations": visible.len(),
                "counted": "from sending the correction to a head's first answer with it, the durable commit included",
            })),
        Figure::lower("steady: heads late after an acknowledgement", (published.late + published_now.late) as f64, "")
            .bar(0.0)
            .detail(json!({"corrections": published.corrections + published_now.corrections})),
        Figure::lower("steady: chunks touched / chunks changed", touched as f64 / changed as f64, "x")
            .bar(1.05)
            .peer("chunks that the publishes changed, at each head")
            .detail(json!({
                "touched": touched, "changed": changed, "poisoned_flights": sum(&after, |stats| stats.poisoned_flights),
                "counted": "a change of a chunk that a head does not hold touches nothing there",
            })),
    ])
}
