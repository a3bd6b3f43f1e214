//! The engine against a scripted shard on loopback.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use arrow_flight::{Ticket, flight_service_client::FlightServiceClient};
use bytes::Bytes;
use futures::{FutureExt as _, future::join_all};
use tokio::sync::watch;
use trellis_fabric::{
    channel::{self, ChannelOptions},
    discovery::{Peer, Peers},
};
use trellis_proto::{
    Code, DatasetName, Error, Result, Symbol,
    fetch::{Answer, ChunkBatch},
    pb::{self, FetchOrder},
    time::DAY_NS,
};

use super::{
    facade::{Engine, EngineConfig},
    fake::*,
    reading::{ReadCounts, ReadQuery, Reading, SYNC_WAIT, SeriesChunks},
};
use crate::{
    answer::{KnownAt, Source, Values},
    follow::IDLE_MAX,
    held::{ISLAND_ROWS_MAX, Payload, model},
    shards::{Link, Shard},
};

const TEN_YEARS: i64 = 3_650;
const BUDGET: u64 = 64 << 20;

async fn engine_with(fakes: &[&Fake], budget: u64) -> Engine {
    let peers: Peers = fakes.iter().map(|fake| Peer { addr: fake.addr.to_string() }).collect();
    let (sender, receiver) = watch::channel(peers);
    tokio::spawn(async move { sender.closed().await });
    let config =
        EngineConfig { head_id: "head-0".into(), budget_bytes: budget, grace: Duration::from_millis(1) };
    Engine::start(config, receiver.into())
}

async fn start(symbols: &[&str], days: i64) -> (Fake, Engine) {
    let fake = Fake::start("shard-0", symbols, days).await;
    let engine = engine_with(&[&fake], BUDGET).await;
    engine.ready().await;
    (fake, engine)
}

/// Shards whose logs are followed.
fn live(engine: &Engine) -> usize {
    let live = |shard: &&Arc<Shard>| matches!(&*shard.link.borrow(), Link::Live);
    engine.core.shards.all().iter().filter(live).count()
}

/// Rows of `[start, end)`, in days, of some fields (positions) of one symbol.
#[derive(Clone)]
struct Q {
    symbols: Vec<&'static str>,
    fields: Vec<usize>,
    start: i64,
    end: i64,
    as_of: Option<i64>,
    allow_stale: bool,
    deadline: Option<std::time::Instant>,
}

fn q(symbol: &'static str, start: i64, end: i64) -> Q {
    Q { symbols: vec![symbol], fields: vec![0], start, end, as_of: None, allow_stale: false, deadline: None }
}

async fn reading(engine: &Engine, q: &Q) -> Reading {
    let dataset = engine.dataset(&DATASET.parse().unwrap()).await.unwrap();
    engine
        .read(ReadQuery {
            dataset,
            symbols: q.symbols.iter().map(|s| s.parse().unwrap()).collect(),
            fields: q.fields.clone(),
            start: q.start * DAY_NS,
            end: q.end * DAY_NS,
            as_of: q.as_of,
            behind: Arc::default(),
            allow_stale: q.allow_stale,
            unit: "test".into(),
            deadline: q.deadline,
            order: FetchOrder::NewestFirst,
        })
        .unwrap()
}

/// The rows of a series up to the cut, checked column by column: (day, known_at).
fn rows(q: &Q, cut: i64, series: &SeriesChunks) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for chunk in &series.chunks {
        assert!(chunk.rows() > 0);
        for i in 0..chunk.rows() as usize {
            let known_at = match chunk.known_at() {
                KnownAt::Constant(at) => *at,
                KnownAt::PerRow(at) => at[i],
            };
            let row = (chunk.ts()[i] / DAY_NS, known_at);
            for field in &q.fields {
                let Values::Fixed(values) = &chunk.column(*field).values else { panic!("floats") };
                assert_eq!(values.typed_data::<f64>()[i], value(*field, row));
            }
            if row.0 >= q.start && row.0 < q.end && known_at <= cut {
                rows.push(row);
            }
        }
    }
    rows
}

async fn finish(q: &Q, reading: &mut Reading) -> Result<Vec<Vec<Row>>> {
    let mut all = Vec::new();
    while let Some(series) = reading.next().await {
        let series = series?;
        all.push(rows(q, reading.cut().unwrap(), &series));
    }
    Ok(all)
}

async fn read(engine: &Engine, q: &Q) -> Result<Vec<Row>> {
    let mut reading = reading(engine, q).await;
    Ok(finish(q, &mut reading).await?.remove(0))
}

/// Starts a read in the background.
async fn spawn(engine: &Engine, q: &Q) -> tokio::task::JoinHandle<(Result<Vec<Row>>, ReadCounts)> {
    let mut reading = reading(engine, q).await;
    let q = q.clone();
    tokio::spawn(async move {
        let rows = finish(&q, &mut reading).await.map(|mut all| all.remove(0));
        (rows, reading.counts().clone())
    })
}

/// Polls a read once, so that its claims are made.
async fn begin(engine: &Engine, q: &Q) -> Reading {
    let mut reading = reading(engine, q).await;
    let first = futures::poll!(Box::pin(reading.next()));
    assert!(first.is_pending());
    reading
}

fn days(start: i64, end: i64) -> Vec<Row> {
    (start..end).map(|day| (day, 1)).collect()
}

/// Chunks asked for in each call, of all symbols.
fn chunks_asked(fake: &Fake) -> Vec<i64> {
    fake.fetches().iter().map(|fetch| fetch.ranges.iter().map(|r| r.end - r.first).sum()).collect()
}

async fn until(what: &str, mut met: impl FnMut() -> bool) {
    for _ in 0..1_000_000 {
        if met() {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("never: {what}");
}

/// Waits until the shards are as a test wants.
async fn when(engine: &Engine, met: impl Fn() -> bool) {
    let mut changed = engine.core.shards.changes();
    while !met() {
        changed.changed().await.unwrap();
    }
}

#[tokio::test]
async fn a_list_of_datasets_names_those_that_a_shard_cannot_open() {
    let fake = Fake::start("shard-0", &["A"], 10).await;
    let engine = engine_with(&[&fake], BUDGET).await;
    when(&engine, || live(&engine) == 1).await;
    let broken = |name: &str, code, why: &str| Error::new(code, why).dataset(name);
    fake.set_unopened([
        broken("signals.torn", Code::DataCorrupt, "00000000000000000001.json has 3 bytes"),
        broken("signals.cut", Code::DataCorrupt, "the same"),
    ]);
    let error = engine.datasets().await.unwrap_err();
    assert_eq!((error.code(), error.place()), (Code::DataCorrupt, ("signals.torn", "", "shard-0")));
    for told in ["signals.torn", "00000000000000000001.json has 3 bytes", "signals.cut"] {
        assert!(error.message().contains(told), "{error}");
    }
    assert!(error.hint_text().contains("move its folder"), "{error:?}");
    // the others can be read
    assert_eq!(read(&engine, &q("A", 0, 10)).await.unwrap(), days(0, 10));
    fake.set_unopened([broken("signals.torn", Code::Unavailable, "the store is away")]);
    let error = engine.datasets().await.unwrap_err();
    assert!(error.retryable() && error.hint_text().contains("try again"), "{error:?}");
    fake.set_unopened([]);
    assert_eq!(engine.datasets().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_list_of_datasets_is_whole_or_an_error() {
    let fake = Fake::start("shard-0", &["A"], 10).await;
    let engine = engine_with(&[&fake], BUDGET).await;
    let mut refused = 0;
    let list = loop {
        match engine.datasets().await {
            Ok(list) => break list,
            Err(error) => {
                assert_eq!(error.code(), Code::Unavailable, "{error}");
                refused += 1;
                tokio::task::yield_now().await;
            }
        }
    };
    assert_eq!(list.len(), 1, "the first answer, after {refused} errors");
    fake.go_away();
    until("the shard is away", || matches!(&*engine.core.shards.all()[0].link.borrow(), Link::Away(_))).await;
    let error = engine.datasets().await.unwrap_err();
    assert_eq!((error.code(), error.place().2), (Code::Unavailable, "shard-0"));
}

#[tokio::test]
async fn a_five_year_read_joins_the_ten_year_flight() {
    let (fake, engine) = start(&["AMZN"], TEN_YEARS).await;
    fake.hold();
    let ten = spawn(&engine, &q("AMZN", 0, TEN_YEARS)).await;
    fake.asked(1).await;
    let five_q = q("AMZN", 1825, TEN_YEARS);
    let mut five = begin(&engine, &five_q).await;
    fake.release_all();
    assert_eq!(ten.await.unwrap().0.unwrap(), days(0, TEN_YEARS));
    assert_eq!(finish(&five_q, &mut five).await.unwrap()[0], days(1825, TEN_YEARS));
    assert_eq!(fake.fetches().len(), 1);
    let counts = five.counts();
    assert_eq!((counts.hit, counts.fetched, counts.rows_fetched), (0, 0, 0));
    assert_eq!(counts.joined, 58 - 1825 / SPAN as u64);
    let stats = engine.stats();
    assert_eq!((stats.rows_fetched, stats.rows_union), (TEN_YEARS as u64, TEN_YEARS as u64));
}

#[tokio::test]
async fn a_ten_year_read_claims_only_what_the_five_year_flight_leaves() {
    let (fake, engine) = start(&["AMZN"], TEN_YEARS).await;
    fake.hold();
    let five = spawn(&engine, &q("AMZN", 1825, TEN_YEARS)).await;
    fake.asked(1).await;
    let ten = spawn(&engine, &q("AMZN", 0, TEN_YEARS)).await;
    fake.asked(2).await;
    fake.release_all();
    assert_eq!(five.await.unwrap().0.unwrap(), days(1825, TEN_YEARS));
    assert_eq!(ten.await.unwrap().0.unwrap(), days(0, TEN_YEARS));
    assert_eq!(chunks_asked(&fake), [30, 28]);
    assert_eq!(engine.stats().rows_fetched, TEN_YEARS as u64);
}

#[tokio::test]
async fn columns_are_claimed_like_time() {
    let (fake, engine) = start(&["AMZN"], 640).await;
    fake.hold();
    let close = spawn(&engine, &q("AMZN", 0, 640)).await;
    fake.asked(1).await;
    let both = spawn(&engine, &Q { fields: vec![0, 1], ..q("AMZN", 0, 640) }).await;
    fake.asked(2).await;
    fake.release_all();
    assert_eq!(close.await.unwrap().0.unwrap(), days(0, 640));
    assert_eq!(both.await.unwrap().0.unwrap(), days(0, 640));
    let asked: Vec<Vec<String>> = fake.fetches().iter().map(|f| f.ranges[0].fields.clone()).collect();
    assert_eq!(asked, [["close"], ["open"]]);
    // the slot has all columns now: a read of both is a hit
    let mut again = reading(&engine, &Q { fields: vec![1, 0], ..q("AMZN", 0, 640) }).await;
    assert_eq!(again.try_all_ready().unwrap().len(), 1);
}

#[tokio::test]
async fn an_island_is_read_again_if_that_costs_less_than_a_second_range() {
    assert_eq!(SPAN as u64, ISLAND_ROWS_MAX, "a chunk of a row a day is as much as an island may be");
    // (a row is added by a correction; another column of the island is in flight; the chunks that are fetched)
    let cases: [(bool, bool, &[_]); 3] =
        [(false, false, &[(0, 10)]), (true, false, &[(0, 4), (5, 10)]), (false, true, &[(0, 4), (5, 10)])];
    for (corrected, going, ranges) in cases {
        let fake = Fake::start("shard-0", &["AMZN"], 640).await;
        if corrected {
            fake.commit("AMZN", &[300], false);
        }
        let engine = engine_with(&[&fake], BUDGET).await;
        engine.ready().await;
        read(&engine, &q("AMZN", 256, 320)).await.unwrap();
        fake.hold();
        let mut others = Vec::new();
        if going {
            others.push(begin(&engine, &Q { fields: vec![1], ..q("AMZN", 256, 320) }).await);
            fake.asked(2).await;
        }
        let all = spawn(&engine, &q("AMZN", 0, 640)).await;
        fake.asked(2 + others.len()).await;
        fake.release_all();
        assert_eq!(all.await.unwrap().0.unwrap(), fake.truth("AMZN", 0, 640, i64::MAX));
        let asked = fake.fetches().pop().unwrap().ranges;
        assert_eq!(asked.iter().map(|r| (r.first, r.end)).collect::<Vec<_>>(), ranges);
    }
}

#[tokio::test]
async fn that_there_is_nothing_is_asked_for_once() {
    let fake = Fake::start("shard-0", &["AMZN"], 640).await;
    // a symbol listed late: its other chunks lie within the dataset's bounds, and are empty
    fake.commit("NVDA", &[600], false);
    let engine = engine_with(&[&fake], BUDGET).await;
    engine.ready().await;
    for (symbol, days, rows) in [("NVDA", (0, 640), 1), ("NVDA", (0, 500), 0), ("MSFT", (0, 640), 0)] {
        let q = q(symbol, days.0, days.1);
        assert_eq!(read(&engine, &q).await.unwrap().len(), rows);
        let mut again = reading(&engine, &q).await;
        assert_eq!(again.try_all_ready().unwrap().len(), 1, "an answer from memory");
        assert_eq!(again.counts().hit, 10.min(days.1 as u64 / SPAN as u64 + 1));
    }
    assert_eq!(chunks_asked(&fake), [10, 10]);
}

#[tokio::test]
async fn a_small_answer_is_asked_for_newest_first_and_a_large_one_in_the_order_in_which_it_is_sent() {
    let fake = Fake::start("shard-0", &["AMZN"], 60_000).await;
    fake.together();
    let config = crate::Config::new("head-0", format!("static://{}", fake.addr));
    let head = crate::Head::start(config).unwrap();
    head.ready().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(head.serve(listener, std::future::pending()));
    let channel = channel::connect(&address, &ChannelOptions::of_unit("test")).unwrap();
    let mut client = FlightServiceClient::new(channel);
    for start in [59_500, 0] {
        let ticket = format!(
            r#"{{"dataset": "{DATASET}", "fields": ["close"], "symbols": ["AMZN"], "start": {}}}"#,
            start * DAY_NS
        );
        let mut answer = client.do_get(Ticket { ticket: ticket.into() }).await.unwrap().into_inner();
        while answer.message().await.unwrap().is_some() {}
    }
    let orders: Vec<_> = fake.fetches().iter().map(pb::FetchRequest::order).collect();
    assert_eq!(orders, [FetchOrder::NewestFirst, FetchOrder::OldestFirst]);
}

#[tokio::test]
async fn however_many_leaders_leave_there_is_one_call() {
    let (fake, engine) = start(&["AMZN"], 640).await;
    fake.hold();
    let mut leaders = vec![begin(&engine, &q("AMZN", 0, 640)).await];
    fake.asked(1).await;
    for _ in 0..20 {
        let next = begin(&engine, &q("AMZN", 0, 640)).await;
        leaders.remove(0);
        leaders.push(next);
    }
    fake.release_all();
    assert_eq!(finish(&q("AMZN", 0, 640), &mut leaders[0]).await.unwrap()[0], days(0, 640));
    assert_eq!(fake.fetches().len(), 1);
}

#[tokio::test]
async fn a_fetch_that_everybody_left_is_cancelled_and_what_came_stays() {
    let (fake, engine) = start(&["AMZN"], 640).await;
    fake.hold();
    let reading = begin(&engine, &q("AMZN", 0, 640)).await;
    fake.asked(1).await;
    fake.release(3);
    until("three chunks have come", || engine.stats().rows_fetched == 3 * SPAN as u64).await;
    drop(reading);
    fake.cancelled(1).await;
    until("the reservation is given back", || engine.stats().in_flight_bytes == 0).await;
    fake.release_all();
    assert_eq!(read(&engine, &q("AMZN", 0, 640)).await.unwrap(), days(0, 640));
    assert_eq!(chunks_asked(&fake), [10, 7]);
    assert_eq!(engine.stats().cancelled_flights, 1);
}

#[tokio::test]
async fn chunks_left_by_their_readers_in_a_call_that_goes_on_are_not_fetched_again() {
    let (fake, engine) = start(&["AMZN", "MSFT"], 640).await;
    fake.hold();
    let leaving = begin(&engine, &Q { symbols: vec!["AMZN", "MSFT"], ..q("", 0, 640) }).await;
    fake.asked(1).await;
    let (amzn, msft) = (q("AMZN", 0, 640), q("MSFT", 0, 640));
    let mut staying = begin(&engine, &msft).await;
    drop(leaving);
    until("the grace of the other is over", || engine.stats().cancelled_flights == 1).await;
    fake.release(3);
    until("three chunks have come", || engine.stats().rows_fetched == 3 * SPAN as u64).await;
    let mut coming = begin(&engine, &amzn).await;
    fake.release_all();
    assert_eq!(finish(&amzn, &mut coming).await.unwrap()[0], days(0, 640));
    assert_eq!(finish(&msft, &mut staying).await.unwrap()[0], days(0, 640));
    let counts = coming.counts();
    assert_eq!((counts.hit, counts.joined, counts.fetched), (3, 7, 0));
    assert_eq!(chunks_asked(&fake), [20]);
}

#[tokio::test]
async fn a_call_ends_when_the_last_who_waits_for_any_of_it_is_served() {
    let (fake, engine) = start(&["AMZN", "MSFT"], 640).await;
    fake.hold();
    let leaving = begin(&engine, &Q { symbols: vec!["AMZN", "MSFT"], ..q("", 0, 640) }).await;
    fake.asked(1).await;
    let amzn = q("AMZN", 0, 640);
    let mut staying = begin(&engine, &amzn).await;
    drop(leaving);
    until("the grace of the other is over", || engine.stats().cancelled_flights == 1).await;
    fake.release(10);
    assert_eq!(finish(&amzn, &mut staying).await.unwrap()[0], days(0, 640));
    fake.cancelled(1).await;
    until("the reservation is given back", || engine.stats().in_flight_bytes == 0).await;
    fake.release_all();
    assert_eq!(read(&engine, &q("MSFT", 0, 640)).await.unwrap(), days(0, 640));
    assert_eq!(chunks_asked(&fake), [20, 10]);
}

#[tokio::test]
async fn a_claim_that_its_readers_left_while_it_was_queued_is_not_fetched() {
    let (fake, engine) = start(&["AMZN", "GOOG", "MSFT", "NVDA"], 64).await;
    fake.hold();
    let mut going = Vec::new();
    for (calls, symbol) in [(1, "AMZN"), (2, "GOOG"), (3, "MSFT")] {
        going.push(spawn(&engine, &q(symbol, 0, 64)).await);
        fake.asked(calls).await;
    }
    drop(begin(&engine, &q("NVDA", 0, 64)).await);
    until("its grace is over", || engine.stats().cancelled_flights == 1).await;
    fake.release_all();
    for reader in going {
        assert_eq!(reader.await.unwrap().0.unwrap(), days(0, 64));
    }
    until("all calls have ended", || engine.stats().in_flight_bytes == 0).await;
    assert_eq!(engine.stats().upstream_calls, 3);
    assert_eq!(read(&engine, &q("NVDA", 0, 64)).await.unwrap(), days(0, 64));
    assert_eq!(chunks_asked(&fake), [1, 1, 1, 1]);
}

#[tokio::test]
async fn a_chunk_that_cannot_be_read_fails_only_who_needs_it() {
    let (fake, engine) = start(&["AMZN"], 640).await;
    fake.hold();
    fake.fail("AMZN", 2, 1, Code::DataCorrupt);
    let all = spawn(&engine, &q("AMZN", 0, 640)).await;
    fake.asked(1).await;
    let late_q = q("AMZN", 320, 640);
    let mut late = begin(&engine, &late_q).await;
    fake.release_all();
    let error = all.await.unwrap().0.unwrap_err();
    assert_eq!((error.code(), error.place()), (Code::DataCorrupt, (DATASET, "AMZN", "shard-0")));
    assert_eq!(finish(&late_q, &mut late).await.unwrap()[0], days(320, 640));
    // the shard can read it now: only that chunk is fetched
    assert_eq!(read(&engine, &q("AMZN", 0, 640)).await.unwrap(), days(0, 640));
    assert_eq!(chunks_asked(&fake), [10, 1]);
}

#[tokio::test]
async fn a_failure_that_passes_is_not_seen_and_only_its_chunk_is_asked_again() {
    let (fake, engine) = start(&["AMZN"], 640).await;
    fake.fail("AMZN", 2, 2, Code::Unavailable);
    assert_eq!(read(&engine, &q("AMZN", 0, 640)).await.unwrap(), days(0, 640));
    assert_eq!(chunks_asked(&fake), [10, 1, 1]);
    fake.fail("MSFT", 0, 9, Code::Unavailable);
    let error = read(&engine, &q("MSFT", 0, 64)).await.unwrap_err();
    assert!(error.retryable() && error.place().2 == "shard-0");
}

#[tokio::test]
async fn a_read_that_is_late_says_what_its_shard_answered_last() {
    let (fake, engine) = start(&["AMZN"], 64).await;
    fake.hold();
    fake.fail("AMZN", 0, usize::MAX, Code::StorageFull);
    let reading = begin(&engine, &q("AMZN", 0, 64)).await;
    fake.asked(1).await;
    assert_eq!(reading.late().code(), Code::DeadlineExceeded, "nothing has failed yet");
    fake.release(1);
    fake.asked(2).await;
    let error = reading.late();
    assert_eq!((error.code(), error.place()), (Code::StorageFull, (DATASET, "AMZN", "shard-0")));
    assert!(error.message().contains("the read's deadline passed"), "{error}");
}

#[tokio::test]
async fn a_change_over_a_flight_is_seen_by_later_readers_only() {
    let (fake, engine) = start(&["AMZN"], 640).await;
    fake.hold();
    let before = spawn(&engine, &q("AMZN", 576, 640)).await;
    fake.asked(1).await;
    let seq = fake.commit("AMZN", &[600], false);
    fake.applied(seq).await;
    let after = spawn(&engine, &q("AMZN", 576, 640)).await;
    fake.asked(2).await;
    fake.release_all();
    assert_eq!(before.await.unwrap().0.unwrap(), days(576, 640), "as of its beginning");
    let mut corrected = days(576, 640);
    corrected.insert(25, (600, 110));
    assert_eq!(after.await.unwrap().0.unwrap(), corrected);
    assert_eq!(read(&engine, &q("AMZN", 576, 640)).await.unwrap(), corrected);
    assert_eq!(fake.fetches().len(), 2);
    assert_eq!(engine.stats().poisoned_flights, 1);
    // an answer of the past has not changed
    let past = Q { as_of: Some(105), ..q("AMZN", 576, 640) };
    assert_eq!(read(&engine, &past).await.unwrap(), days(576, 640));
}

#[tokio::test]
async fn a_read_of_the_past_joins_what_was_asked_for_before_the_log_was_lost() {
    let (fake, engine) = start(&["AMZN"], 640).await;
    fake.hold();
    let _first = begin(&engine, &q("AMZN", 0, 640)).await;
    fake.asked(1).await;
    let answered = fake.subscribed().len();
    fake.lose_log(true);
    fake.commit("AMZN", &[3], false);
    until("the log is followed again", || fake.subscribed().len() > answered && live(&engine) == 1).await;

    let past = |as_of| Q { as_of: Some(as_of), ..q("AMZN", 0, 640) };
    let (mut known, mut unknown) = (begin(&engine, &past(100)).await, begin(&engine, &past(105)).await);
    fake.release_all();
    assert_eq!(finish(&past(100), &mut known).await.unwrap()[0], days(0, 640));
    assert_eq!(finish(&past(105), &mut unknown).await.unwrap()[0], days(0, 640));
    assert_eq!((known.counts().joined, known.counts().fetched), (10, 0));
    assert_eq!((unknown.counts().joined, unknown.counts().fetched), (0, 10));
}

#[tokio::test]
async fn readers_of_now_cost_no_calls_while_the_tail_grows() {
    let (fake, engine) = start(&["AMZN"], 630).await;
    let mut expected = days(0, 630);
    assert_eq!(read(&engine, &q("AMZN", 0, 10_000)).await.unwrap(), expected);
    // also over the end of the chunk at 640
    for day in 630..700 {
        let seq = fake.commit("AMZN", &[day], true);
        fake.applied(seq).await;
        expected.push((day, 100 + (day - 629) * 10));
        assert_eq!(read(&engine, &q("AMZN", 0, 10_000)).await.unwrap(), expected);
    }
    assert_eq!(fake.fetches().len(), 1);
    // also a correction of an old row
    let seq = fake.commit("AMZN", &[5], true);
    fake.applied(seq).await;
    expected.insert(6, (5, 100 + 71 * 10));
    assert_eq!(read(&engine, &q("AMZN", 0, 10_000)).await.unwrap(), expected);
    assert_eq!(fake.fetches().len(), 1);
}

#[tokio::test]
async fn a_read_at_a_knowledge_time_that_is_not_reached_catches_up_first() {
    let (fake, engine) = start(&["AMZN"], TEN_YEARS).await;
    let name = DATASET.parse().unwrap();
    let before = engine.dataset(&name).await.unwrap().known_through;
    // a commit that another head has answered, and this head has not been told of yet
    fake.withhold();
    fake.commit("AMZN", &[600], true);
    let at = fake.known_through();
    assert_eq!(engine.dataset(&name).await.unwrap().known_through, before);

    let (dataset, behind) = engine.caught_up(&name).await.unwrap();
    assert_eq!((dataset.known_through, behind.len()), (at, 0));
    let q = Q { as_of: Some(at), ..q("AMZN", 590, 610) };
    assert_eq!(read(&engine, &q).await.unwrap(), fake.truth("AMZN", 590, 610, at));
}

#[tokio::test]
async fn many_that_must_catch_up_share_the_question() {
    let (fake, engine) = start(&["AMZN"], TEN_YEARS).await;
    let name: DatasetName = DATASET.parse().unwrap();
    fake.withhold();
    let asked: Vec<_> = (0..100).map(|_| engine.caught_up(&name)).collect();
    for (_, behind) in join_all(asked).await.into_iter().map(Result::unwrap) {
        assert!(behind.is_empty());
    }
    assert!(fake.syncs() <= 2, "the one under way, and the next: {}", fake.syncs());
}

#[tokio::test]
async fn a_change_without_rows_closes_exactly_the_touched_chunks() {
    let (fake, engine) = start(&["AMZN"], 640).await;
    read(&engine, &q("AMZN", 0, 640)).await.unwrap();
    let seq = fake.commit("AMZN", &[70, 130], false);
    fake.applied(seq).await;
    assert_eq!(read(&engine, &q("AMZN", 0, 640)).await.unwrap().len(), 642);
    assert_eq!(chunks_asked(&fake), [10, 2]);
    // reads of an earlier knowledge time are still answered from memory
    assert_eq!(read(&engine, &Q { as_of: Some(100), ..q("AMZN", 0, 640) }).await.unwrap(), days(0, 640));
    assert_eq!(fake.fetches().len(), 2);
}

#[tokio::test]
async fn after_a_restart_of_the_shard_one_check_finds_what_has_changed() {
    let (fake, engine) = start(&["AMZN", "MSFT"], 640).await;
    read(&engine, &q("AMZN", 0, 640)).await.unwrap();
    read(&engine, &q("MSFT", 0, 640)).await.unwrap();
    fake.go_away();
    until("the loss is noticed", || live(&engine) == 0).await;
    fake.lose_log(true);
    fake.commit("MSFT", &[3], false);
    fake.come_back();
    until("the log is followed again", || live(&engine) == 1).await;
    assert_eq!(fake.confirms().len(), 1);
    assert_eq!(read(&engine, &q("AMZN", 0, 640)).await.unwrap(), days(0, 640));
    assert_eq!(fake.fetches().len(), 2, "AMZN had not changed");
    assert_eq!(read(&engine, &q("MSFT", 0, 640)).await.unwrap().len(), 641);
    let asked: i64 = chunks_asked(&fake)[2..].iter().sum();
    assert!(asked <= 10, "at most the run that was asked about: {asked}");
}

#[tokio::test]
async fn a_gap_in_the_log_is_noticed() {
    let (fake, engine) = start(&["AMZN"], 640).await;
    read(&engine, &q("AMZN", 0, 640)).await.unwrap();
    fake.skip();
    let confirms = fake.confirms().len();
    fake.commit("AMZN", &[3], true);
    until("what is held has been checked", || fake.confirms().len() > confirms && live(&engine) == 1).await;
    assert_eq!(read(&engine, &q("AMZN", 0, 640)).await.unwrap().len(), 641);
}

#[tokio::test]
async fn a_log_that_goes_on_where_it_was_lost_needs_no_check() {
    let (fake, engine) = start(&["AMZN"], 640).await;
    read(&engine, &q("AMZN", 0, 640)).await.unwrap();
    fake.lose_log(false);
    // the next commit may come before or after the head is back; both must be right
    until("the log is followed again", || live(&engine) == 1).await;
    assert_eq!(read(&engine, &q("AMZN", 0, 640)).await.unwrap(), days(0, 640));
    assert_eq!((fake.confirms().len(), fake.fetches().len()), (0, 1));
}

#[tokio::test]
async fn while_a_shard_is_away_only_the_past_and_the_tolerant_are_served() {
    let (fake, engine) = start(&["AMZN"], 640).await;
    read(&engine, &q("AMZN", 0, 640)).await.unwrap();
    fake.go_away();
    let strict = q("AMZN", 0, 640);
    until("the shard is away", || matches!(&*engine.core.shards.all()[0].link.borrow(), Link::Away(_))).await;
    tokio::time::pause();
    let began = tokio::time::Instant::now();
    let error = read(&engine, &strict).await.unwrap_err();
    assert_eq!(began.elapsed(), Duration::ZERO, "it is told at once");
    tokio::time::resume();
    assert_eq!(
        (error.code(), error.place(), error.retryable()),
        (Code::Unavailable, (DATASET, "", "shard-0"), true)
    );
    let detail = pb::ErrorDetail::from(error);
    assert_eq!((detail.start_ns, detail.end_ns), (Some(0), Some(640 * DAY_NS)));
    assert_eq!(read(&engine, &Q { as_of: Some(100), ..strict.clone() }).await.unwrap(), days(0, 640));
    let tolerant = Q { allow_stale: true, ..strict.clone() };
    let (answer, counts) = spawn(&engine, &tolerant).await.await.unwrap();
    assert_eq!(answer.unwrap(), days(0, 640));
    assert!(counts.stale && counts.known_through == Some(100));
    // never a hole: a read of chunks that are not in memory is refused all the same
    assert!(read(&engine, &Q { fields: vec![1], ..tolerant }).await.is_err());
    fake.come_back();
    until("the shard is back", || live(&engine) == 1).await;
    assert_eq!(read(&engine, &strict).await.unwrap(), days(0, 640));
    assert_eq!(fake.fetches().len(), 1);
}

#[tokio::test]
async fn a_read_with_allow_stale_waits_a_while_for_a_syncing_shard_and_is_then_served() {
    let (fake, engine) = start(&["AMZN"], 640).await;
    read(&engine, &q("AMZN", 0, 640)).await.unwrap();
    fake.hold_confirms(true);
    fake.lose_log(true);
    until("what is held is being checked", || fake.confirms().len() == 1).await;
    tokio::time::pause();
    let strict = spawn(&engine, &q("AMZN", 0, 640)).await;
    let tolerant = spawn(&engine, &Q { allow_stale: true, ..q("AMZN", 0, 640) }).await;
    tokio::task::yield_now().await;
    tokio::time::advance(SYNC_WAIT - Duration::from_millis(1)).await;
    assert!(!strict.is_finished() && !tolerant.is_finished(), "the check may be over at any moment");
    // tokio rounds timers to milliseconds
    tokio::time::advance(Duration::from_millis(2)).await;
    until("both have waited long enough", || strict.is_finished() && tolerant.is_finished()).await;
    let error = strict.await.unwrap().0.unwrap_err();
    assert_eq!((error.code(), error.place().2), (Code::Unavailable, "shard-0"));
    let (answer, counts) = tolerant.await.unwrap();
    assert_eq!(answer.unwrap(), days(0, 640));
    assert!(counts.stale && counts.known_through == Some(100));
    tokio::time::resume();
    fake.hold_confirms(false);
    assert_eq!(read(&engine, &q("AMZN", 0, 640)).await.unwrap(), days(0, 640));
    assert_eq!(fake.fetches().len(), 1);
}

#[tokio::test]
async fn a_wide_read_is_one_call_a_shard() {
    let names: Vec<&'static str> =
        (0..300).map(|i| -> &'static str { Box::leak(format!("S{i:03}").into_boxed_str()) }).collect();
    let a = Fake::start("shard-a", &names, 256).await;
    let b = Fake::start("shard-b", &names, 256).await;
    a.set_owns(vec![owns(0, 30_000)]);
    b.set_owns(vec![owns(30_000, 65_536)]);
    let engine = engine_with(&[&a, &b], BUDGET).await;
    until("both shards own everything together", || live(&engine) == 2).await;
    let wide = Q { symbols: names.clone(), ..q("", 0, 256) };
    let mut reading = reading(&engine, &wide).await;
    let all = finish(&wide, &mut reading).await.unwrap();
    assert_eq!(all.len(), 300);
    assert!(all.iter().all(|rows| *rows == days(0, 256)));
    assert_eq!((a.fetches().len(), b.fetches().len()), (1, 1));
    assert_eq!(a.fetches()[0].ranges.len() + b.fetches()[0].ranges.len(), 300);
    assert_eq!(reading.counts().shards.len(), 2);
}

#[tokio::test]
async fn of_many_series_in_one_message_each_has_its_own_fate() {
    let (fake, engine) = start(&["AMZN", "MSFT", "NVDA"], 640).await;
    fake.together();
    fake.hold();
    fake.fail("MSFT", 2, 1, Code::DataCorrupt);
    let wide = Q { symbols: vec!["AMZN", "MSFT", "NVDA"], ..q("", 0, 640) };
    let _wide = begin(&engine, &wide).await;
    fake.asked(1).await;
    let failing = q("MSFT", 128, 192);
    let mut failing_reading = begin(&engine, &failing).await;
    let others = [q("AMZN", 0, 640), q("NVDA", 0, 640), q("MSFT", 192, 640)];
    let mut joined = Vec::new();
    for other in &others {
        joined.push(begin(&engine, other).await);
    }
    // the reader gets the error while other rows are still on their way
    fake.release(1);
    let error = finish(&failing, &mut failing_reading).await.unwrap_err();
    assert_eq!((error.code(), error.place().1), (Code::DataCorrupt, "MSFT"));
    fake.release_all();
    for (other, reading) in others.iter().zip(&mut joined) {
        assert_eq!(finish(other, reading).await.unwrap()[0], days(other.start, other.end));
    }
    assert_eq!(chunks_asked(&fake), [30]);
    assert_eq!(read(&engine, &q("MSFT", 0, 640)).await.unwrap(), days(0, 640));
    assert_eq!(chunks_asked(&fake), [30, 1]);
}

#[tokio::test]
async fn rows_that_are_not_of_their_chunk_fail_its_readers_alone() {
    let (fake, engine) = start(&["AMZN", "MSFT"], 640).await;
    fake.together();
    fake.hold();
    // AMZN is asked for first: the two newest chunks of it
    fake.spoil(|answers| {
        let Answer::Batch(batch) = &mut answers[0] else { panic!("all in one") };
        let (a, b) = (batch.runs[0].first, batch.runs[1].first);
        (batch.runs[0].first, batch.runs[1].first) = (b, a);
    });
    let both = Q { symbols: vec!["AMZN", "MSFT"], ..q("", 0, 640) };
    let _both = begin(&engine, &both).await;
    fake.asked(1).await;
    let (whole, part, hit) = (q("MSFT", 0, 640), q("AMZN", 0, 512), q("AMZN", 512, 640));
    let mut whole_reading = begin(&engine, &whole).await;
    let mut part_reading = begin(&engine, &part).await;
    let mut hit_reading = begin(&engine, &hit).await;
    fake.release_all();
    assert_eq!(finish(&whole, &mut whole_reading).await.unwrap()[0], days(0, 640));
    assert_eq!(finish(&part, &mut part_reading).await.unwrap()[0], days(0, 512));
    let error = finish(&hit, &mut hit_reading).await.unwrap_err();
    assert_eq!((error.code(), error.place()), (Code::DataCorrupt, (DATASET, "AMZN", "shard-0")));
    assert!(error.message().contains("lies outside it"), "{error}");
}

#[tokio::test]
async fn a_shard_that_breaks_the_contract_is_refused_and_nobody_waits() {
    let (fake, engine) = start(&["AMZN"], 640).await;
    fn batch(answers: &mut [Answer]) -> &mut ChunkBatch {
        let Answer::Batch(batch) = &mut answers[0] else { panic!("rows") };
        batch
    }
    let spoilt: [(Spoil, &str); 6] = [
        (|answers| answers[1] = answers[0].clone(), "have been answered"),
        (|answers| batch(answers).runs[0].range = 9, "range 9 of a request for 1"),
        (|answers| batch(answers).runs[0].chunk_rows.push(0), "were not asked for"),
        (|answers| batch(answers).runs[0].chunk_rows[0] += 1, "64 rows came for chunks that have 65"),
        (|answers| batch(answers).header = Bytes::from_static(b"not Arrow"), "not an Arrow message"),
        (|answers| drop(batch(answers).body.split_off(16)), "goes on after its body ends"),
    ];
    for (spoil, why) in spoilt {
        fake.spoil(spoil);
        let error = read(&engine, &q("AMZN", 0, 640)).await.unwrap_err();
        assert_eq!((error.code(), error.place().2), (Code::DataCorrupt, "shard-0"));
        assert!(error.message().contains(why), "{error}");
    }
    // a shard whose answer is too short is asked again
    fake.spoil(|answers| drop(answers.pop()));
    assert_eq!(read(&engine, &q("AMZN", 0, 640)).await.unwrap(), days(0, 640));
}

/// Two shards that divide the ring at [`BORDER`]. Each has all rows of its symbols.
async fn divided() -> (Fake, Fake) {
    let a = Fake::start("shard-a", &OF_A, 64).await;
    let b = Fake::start("shard-b", &OF_B, 64).await;
    a.set_owns(vec![owns(0, BORDER)]);
    b.set_owns(vec![owns(BORDER, 65_536)]);
    (a, b)
}

const BORDER: u32 = 50_000;
/// Symbols of the first and of the second of two [`divided`] shards, by their slots.
const OF_A: [&str; 2] = ["BRK.B", "EURUSD"];
const OF_B: [&str; 2] = ["AAPL", "AMZN"];

fn symbols(names: &[&str]) -> Vec<Symbol> {
    names.iter().map(|name| name.parse().unwrap()).collect()
}

async fn list(engine: &Engine, names: &[&str]) -> Result<Vec<String>> {
    let listed = engine.symbols_with(&DATASET.parse().unwrap(), &symbols(names)).await?;
    Ok(listed.iter().map(Symbol::to_string).collect())
}

#[tokio::test]
async fn what_no_shard_owns_is_not_read_and_the_rest_is() {
    let (a, b) = divided().await;
    a.set_owns(vec![owns(0, BORDER - 1)]);
    b.set_owns(vec![owns(BORDER, 60_000)]);
    let engine = engine_with(&[&a, &b], BUDGET).await;
    when(&engine, || live(&engine) == 2).await;
    assert_eq!(read(&engine, &q("AAPL", 0, 64)).await.unwrap(), days(0, 64));
    let error = read(&engine, &q("AMZN", 0, 64)).await.unwrap_err();
    assert!(error.retryable() && error.message().contains("owns all of AMZN of equities.daily"), "{error}");
    for refused in
        [engine.datasets().await.map(drop), engine.symbols(&DATASET.parse().unwrap()).await.map(drop)]
    {
        let error = refused.unwrap_err();
        assert!(error.retryable() && error.message().contains("nobody owns the hash range"), "{error}");
    }
}

#[tokio::test]
async fn what_two_shards_own_is_not_read_and_neither_is_the_rest() {
    let (a, b) = divided().await;
    b.set_owns(vec![owns(BORDER - 1, 65_536)]);
    let engine = engine_with(&[&a, &b], BUDGET).await;
    when(&engine, || live(&engine) == 2).await;
    let error = read(&engine, &q("AAPL", 0, 64)).await.unwrap_err();
    assert!(error.retryable() && error.message().contains("both own"), "{error}");
}

#[tokio::test]
async fn a_head_that_starts_while_a_shard_is_away_serves_the_others_and_names_that_one() {
    let (a, b) = divided().await;
    b.go_away();
    let engine = engine_with(&[&a, &b], BUDGET).await;
    engine.ready().await;
    assert_eq!(list(&engine, &["EURUSD"]).await.unwrap(), OF_A);
    assert_eq!(read(&engine, &q("EURUSD", 0, 64)).await.unwrap(), days(0, 64));
    let addr = b.addr.to_string();
    for error in [
        list(&engine, &["EURUSD", "AMZN"]).await.unwrap_err(),
        read(&engine, &q("AMZN", 0, 64)).await.unwrap_err(),
    ] {
        assert_eq!((error.code(), error.place()), (Code::Unavailable, (DATASET, "AMZN", addr.as_str())));
        assert!(error.message().contains(&format!("the shard at {addr} is away: down")), "{error}");
    }
    assert!(engine.symbols(&DATASET.parse().unwrap()).await.unwrap_err().message().contains(&addr));
    b.come_back();
    when(&engine, || live(&engine) == 2).await;
    assert_eq!(list(&engine, &["EURUSD", "AMZN"]).await.unwrap().len(), 4);
    assert_eq!(read(&engine, &q("AMZN", 0, 64)).await.unwrap(), days(0, 64));
    assert_eq!(engine.symbols(&DATASET.parse().unwrap()).await.unwrap().len(), 4);
}

#[tokio::test]
async fn a_shard_that_hangs_is_waited_for_by_those_alone_who_need_it_and_by_them_together() {
    let (a, b) = divided().await;
    let engine = engine_with(&[&a, &b], BUDGET).await;
    when(&engine, || live(&engine) == 2).await;
    // both have said what the dataset is
    engine.dataset(&DATASET.parse().unwrap()).await.unwrap();
    b.freeze(true);
    let ask = |engine: &Engine| {
        let engine = engine.clone();
        tokio::spawn(async move { list(&engine, &["AMZN"]).await })
    };
    let (first, second) = (ask(&engine), ask(&engine));
    b.listed(1).await;
    // a symbol that nobody has asked for before
    assert_eq!(list(&engine, &["EURUSD"]).await.unwrap(), OF_A);
    assert_eq!(read(&engine, &q("EURUSD", 0, 64)).await.unwrap(), days(0, 64));
    assert!(!first.is_finished() && !second.is_finished());
    tokio::time::pause();
    let began = tokio::time::Instant::now();
    let (first, second) = (first.await.unwrap().unwrap_err(), second.await.unwrap().unwrap_err());
    assert_eq!((first.code(), first.place().2), (Code::Unavailable, "shard-b"));
    assert_eq!(first, second);
    assert_eq!(b.lists(), 1, "one question for both");
    assert!(began.elapsed() <= Duration::from_secs(11), "{:?}", began.elapsed());
    tokio::time::resume();
    b.freeze(false);
    when(&engine, || live(&engine) == 2).await;
    assert_eq!(list(&engine, &["AMZN"]).await.unwrap().len(), 4, "the failure is not remembered");
}

#[tokio::test]
async fn a_log_that_is_silent_is_lost_and_the_shard_away_if_it_does_not_answer() {
    let (fake, engine) = start(&["AMZN"], 64).await;
    fake.freeze(true);
    tokio::time::pause();
    let began = tokio::time::Instant::now();
    let shard = engine.core.shards.all().remove(0);
    let error = shard.gone().await;
    assert_eq!((error.code(), error.place().2), (Code::Unavailable, "shard-0"));
    assert!(error.message().contains("did not say who it is"), "{error}");
    assert!(began.elapsed() <= Duration::from_secs(11), "{:?}", began.elapsed());
}

#[tokio::test]
async fn two_processes_under_one_name_are_refused_until_one_of_them_has_ended() {
    let (a, b) = divided().await;
    let other = Fake::start("shard-b", &OF_B, 64).await;
    other.set_owns(vec![owns(BORDER, 65_536)]);
    other.lose_log(true);
    let engine = engine_with(&[&a, &b, &other], BUDGET).await;
    when(&engine, || live(&engine) >= 1).await;
    let refused = || async {
        let error = read(&engine, &q("AMZN", 0, 64)).await.err()?;
        Some(error).filter(|error| error.message().contains("two processes are shard shard-b"))
    };
    let error = loop {
        if let Some(error) = refused().await {
            break error;
        }
    };
    for addr in [b.addr, other.addr] {
        assert!(error.message().contains(&addr.to_string()), "{error}");
    }
    assert_eq!(
        read(&engine, &q("EURUSD", 0, 64)).await.unwrap(),
        days(0, 64),
        "other shards are not concerned"
    );
    other.go_away();
    when(&engine, || live(&engine) == 2).await;
    assert_eq!(read(&engine, &q("AMZN", 0, 64)).await.unwrap(), days(0, 64));
}

#[tokio::test]
async fn a_series_may_be_divided_by_time_between_shards() {
    let a = Fake::start("shard-a", &["AMZN"], 640).await;
    let b = Fake::start("shard-b", &["AMZN"], 640).await;
    let border = 5 * SPAN * DAY_NS;
    a.set_owns(vec![pb::Ownership { end_ns: Some(border), ..owns(0, 65_536) }]);
    b.set_owns(vec![pb::Ownership { start_ns: Some(border), ..owns(0, 65_536) }]);
    let engine = engine_with(&[&a, &b], BUDGET).await;
    until("both shards are followed", || live(&engine) == 2).await;
    assert_eq!(read(&engine, &q("AMZN", 10, 630)).await.unwrap(), days(10, 630));
    assert_eq!((chunks_asked(&a), chunks_asked(&b)), (vec![5], vec![5]));
    let mut again = reading(&engine, &q("AMZN", 300, 400)).await;
    assert_eq!(rows(&q("AMZN", 300, 400), 100, &again.try_all_ready().unwrap()[0]), days(300, 400));
}

fn owner<'a>(symbol: &str, a: &'a Fake, b: &'a Fake) -> &'a Fake {
    if trellis_proto::placement::symbol_slot(symbol) < 30_000 { a } else { b }
}

/// Readers, corrections, lost logs, restarts, absences and failures at once, on two threads. Every answer must be the cut through all
/// commits at the knowledge time of its receipt.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_disturbance_makes_an_answer_wrong() {
    let seed = model::seed();
    model::say(&format!("as_of under disturbance: seed {seed}"));
    let names = ["AAA", "BBB", "CCC", "DDD", "EEE", "FFF", "GGG", "HHH"];
    let a = Fake::start("shard-a", &names, 640).await;
    let b = Fake::start("shard-b", &names, 640).await;
    a.set_owns(vec![owns(0, 30_000)]);
    b.set_owns(vec![owns(30_000, 65_536)]);
    let engine = engine_with(&[&a, &b], 1 << 20).await;
    until("both shards are followed", || live(&engine) == 2).await;

    let readers: Vec<_> = (0..6u64)
        .map(|reader| {
            let engine = engine.clone();
            tokio::spawn(async move {
                let mut rng = model::Rng(seed.wrapping_add(reader));
                let mut answers: Vec<(&'static str, Q, i64, Vec<Row>)> = Vec::new();
                for _ in 0..250 {
                    let name = names[rng.below(names.len() as u64) as usize];
                    let start = rng.below(640) as i64;
                    let mut q = q(name, start, start + 1 + rng.below(700) as i64);
                    q.fields = [vec![0], vec![1], vec![2, 0], vec![0, 1, 2]][rng.below(4) as usize].clone();
                    q.as_of = rng.one_in(3).then(|| rng.below(4_000) as i64);
                    q.allow_stale = rng.one_in(4);
                    let mut reading = reading(&engine, &q).await;
                    if rng.one_in(5) {
                        // polled once, then dropped
                        let _ = futures::poll!(Box::pin(reading.next()));
                        continue;
                    }
                    match finish(&q, &mut reading).await {
                        Ok(mut all) => {
                            answers.push((name, q, reading.cut().unwrap(), all.pop().unwrap_or_default()))
                        }
                        Err(error) => {
                            assert!(error.retryable(), "{error}");
                            for _ in 0..1_000 {
                                tokio::task::yield_now().await;
                            }
                        }
                    }
                    tokio::task::yield_now().await;
                }
                answers
            })
        })
        .collect();
    let (fakes, done) = ([a.clone(), b.clone()], engine.clone());
    let (mut step, mut known_at) = (seed, 100);
    while !readers.iter().all(|reader| reader.is_finished()) {
        step = step.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (fake, what) = (&fakes[(step >> 60) as usize & 1], (step >> 33) % 100);
        match what {
            0..=19 => {
                let (name, day) = (names[(step >> 50) as usize & 7], (step >> 40) as i64 % 700);
                known_at += 10;
                owner(name, &a, &b).commit_at(known_at, name, &[day, day + 3], what % 2 == 0);
            }
            // the other shard sees the commit later
            20..=39 => fake.learn(known_at),
            40..=41 => fake.lose_log(false),
            42 => fake.lose_log(true),
            43 if (step >> 20) % 4 == 0 => fake.go_away(),
            44..=58 => fake.come_back(),
            59..=65 => {
                let chunk = (step >> 40) as i64 % 10;
                fake.fail(names[(step >> 50) as usize & 7], chunk, 1, Code::Unavailable);
            }
            66 => fake.skip(),
            _ => {}
        }
        for _ in 0..200 {
            tokio::task::yield_now().await;
        }
    }
    let mut checked = 0;
    for reader in readers {
        for (name, q, cut, answer) in reader.await.unwrap() {
            let owner = owner(name, &a, &b);
            assert_eq!(
                answer,
                owner.truth(name, q.start, q.end, cut),
                "{name} [{}, {}) at {cut}",
                q.start,
                q.end
            );
            checked += 1;
        }
    }
    let stats = done.stats();
    println!("{checked} answers; {stats:?}");
    assert!(checked > 300, "{checked} answers");
    for fake in [&a, &b] {
        fake.come_back();
        fake.learn(known_at);
    }
    until("both shards are followed", || live(&engine) == 2).await;
    // in the end every reader sees every commit
    for name in names {
        let truth = owner(name, &a, &b).truth(name, 0, 800, i64::MAX);
        let mut answer = Vec::new();
        for _ in 0..1_000 {
            if answer == truth {
                break;
            }
            answer = read(&engine, &q(name, 0, 800)).await.unwrap_or_default();
        }
        assert_eq!(answer.len(), truth.len());
        assert_eq!(answer, truth);
    }
}

#[tokio::test]
async fn a_stale_epoch_is_learnt_and_the_chunks_asked_for_once_more() {
    let (fake, engine) = start(&["AMZN"], 640).await;
    fake.next_epoch();
    assert_eq!(read(&engine, &q("AMZN", 0, 640)).await.unwrap(), days(0, 640));
    assert_eq!(fake.fetches().len(), 1);
}

#[tokio::test]
async fn a_fetch_that_panics_fails_its_readers_at_once() {
    let (fake, engine) = start(&["AMZN"], 640).await;
    engine.core.fetcher.panic_on_arrival.store(true, Ordering::Relaxed);
    let error = read(&engine, &q("AMZN", 0, 640)).await.unwrap_err();
    assert_eq!(error.code(), Code::Internal);
    engine.core.fetcher.panic_on_arrival.store(false, Ordering::Relaxed);
    assert_eq!(read(&engine, &q("AMZN", 0, 640)).await.unwrap(), days(0, 640));
    assert_eq!(fake.fetches().len(), 2);
}

#[tokio::test]
async fn a_fetch_that_panics_over_a_failure_fails_its_readers_at_once() {
    let (fake, engine) = start(&["AMZN"], 640).await;
    fake.fail("AMZN", 2, 1, Code::Unavailable);
    engine.core.fetcher.panic_on_arrival.store(true, Ordering::Relaxed);
    let deadline = Some(std::time::Instant::now() + Duration::from_secs(20));
    let only = Q { deadline, ..q("AMZN", 128, 192) };
    assert_eq!(read(&engine, &only).await.unwrap_err().code(), Code::Internal);
    engine.core.fetcher.panic_on_arrival.store(false, Ordering::Relaxed);
    assert_eq!(read(&engine, &only).await.unwrap(), days(128, 192));
}

#[tokio::test]
async fn a_deadline_ends_the_read_and_not_the_flight_of_others() {
    let (fake, engine) = start(&["AMZN"], 640).await;
    fake.hold();
    let patient = spawn(&engine, &q("AMZN", 0, 640)).await;
    fake.asked(1).await;
    let hasty = Q { deadline: Some(std::time::Instant::now()), ..q("AMZN", 0, 640) };
    assert_eq!(read(&engine, &hasty).await.unwrap_err().code(), Code::DeadlineExceeded);
    fake.release_all();
    assert_eq!(patient.await.unwrap().0.unwrap(), days(0, 640));
    assert_eq!(fake.fetches().len(), 1);
}

#[tokio::test]
async fn an_unknown_dataset_is_asked_for_once_by_many() {
    let (fake, engine) = start(&["AMZN"], 64).await;
    let name: DatasetName = "no.such".parse().unwrap();
    for error in join_all((0..50).map(|_| engine.dataset(&name))).await {
        let error = error.unwrap_err();
        assert_eq!(error.code(), Code::UnknownDataset);
        assert!(error.hint_text().contains(DATASET), "what the shard suggests: {error:?}");
    }
    assert_eq!(fake.subscribed(), ["no.such"], "all who come before the answer ask together");
    // for a while the answer is remembered
    tokio::time::pause();
    engine.core.follower.note_unknown(&name, &Error::new(Code::UnknownDataset, "as before"));
    let remembered = std::pin::pin!(engine.dataset(&name)).now_or_never();
    assert_eq!(remembered.unwrap().unwrap_err().code(), Code::UnknownDataset);
    tokio::time::resume();
    assert_eq!(fake.subscribed().len(), 1);
    assert_eq!(engine.symbols(&DATASET.parse().unwrap()).await.unwrap().len(), 1);
    let seq = fake.commit("ZZZ", &[3], true);
    fake.applied(seq).await;
    assert_eq!(
        engine.symbols(&DATASET.parse().unwrap()).await.unwrap().len(),
        2,
        "the change brought one more"
    );
}

#[tokio::test]
async fn everything_together_stays_within_the_budget() {
    let names: Vec<&'static str> =
        (0..120).map(|i| -> &'static str { Box::leak(format!("S{i:03}").into_boxed_str()) }).collect();
    let fake = Fake::start("shard-0", &names, TEN_YEARS).await;
    let budget = 4 << 20;
    let engine = engine_with(&[&fake], budget).await;
    engine.ready().await;
    let within = |engine: &Engine| {
        let stats = engine.stats();
        let all = stats.resident_bytes + stats.in_flight_bytes + stats.pinned_bytes;
        assert!(all <= budget + budget / 20, "{all} of {budget}: {stats:?}");
        stats
    };
    // a slow reader holds its chunks while other reads go on
    let mut held = Vec::new();
    let slow = Q { symbols: names[..8].to_vec(), ..q("", 0, TEN_YEARS) };
    let mut reading_slowly = reading(&engine, &slow).await;
    held.push(reading_slowly.next().await.unwrap().unwrap());
    for name in &names[8..] {
        assert_eq!(read(&engine, &q(name, 0, TEN_YEARS)).await.unwrap(), days(0, TEN_YEARS));
        within(&engine);
    }
    let stats = within(&engine);
    assert!(stats.evictions > 1_000, "{stats:?}");
    assert!(stats.resident_bytes > budget * 9 / 10, "the cache is full: {stats:?}");
    assert!(stats.pinned_bytes > 0, "the slow reader's chunks were let go of: {stats:?}");
    assert_eq!(rows(&q(names[0], 0, TEN_YEARS), 100, &held[0]), days(0, TEN_YEARS));
    drop((held, reading_slowly));
    assert_eq!(engine.stats().pinned_bytes, 0);
}

/// Two hundred symbols, and an engine in which a read of all of them is too large to be stored.
async fn where_all_is_a_scan() -> (Vec<&'static str>, Fake, Engine) {
    let names: Vec<&'static str> =
        (0..200).map(|i| -> &'static str { Box::leak(format!("S{i:03}").into_boxed_str()) }).collect();
    let fake = Fake::start("shard-0", &names, TEN_YEARS).await;
    let engine = engine_with(&[&fake], 4 << 20).await;
    engine.ready().await;
    (names, fake, engine)
}

#[tokio::test]
async fn a_scan_takes_from_the_cache_the_columns_that_are_there() {
    let (names, fake, engine) = where_all_is_a_scan().await;
    read(&engine, &q("S100", 0, TEN_YEARS)).await.unwrap();
    let scan = Q { symbols: names.clone(), fields: vec![0, 1], ..q("", 0, TEN_YEARS) };
    let all = finish(&scan, &mut reading(&engine, &scan).await).await.unwrap();
    assert!(all.iter().all(|rows| *rows == days(0, TEN_YEARS)));
    let asked: Vec<_> = fake.fetches().into_iter().flat_map(|f| f.ranges).collect();
    let of_hot = asked.iter().filter(|range| range.symbol == "S100").map(|range| range.fields.len());
    assert_eq!(of_hot.collect::<Vec<_>>(), [1, 1], "close, and then open alone");
}

#[tokio::test]
async fn a_scan_leaves_the_hot_set_where_it_is() {
    let (names, _fake, engine) = where_all_is_a_scan().await;
    let hot = q("S000", 0, TEN_YEARS);
    read(&engine, &hot).await.unwrap();
    let calls = engine.stats().upstream_calls;
    let scan = Q { symbols: names[1..].to_vec(), ..q("", 0, TEN_YEARS) };
    let mut scanning = reading(&engine, &scan).await;
    assert_eq!(finish(&scan, &mut scanning).await.unwrap().len(), 199);
    assert!(engine.stats().upstream_calls > calls);
    assert!(reading(&engine, &hot).await.try_all_ready().is_some());
    // the last call ends after its last chunk
    until("everything is given back", || {
        let stats = engine.stats();
        stats.pinned_bytes == 0 && stats.in_flight_bytes == 0
    })
    .await;
}

/// The values of the first field, and the figures of the read.
async fn first_field(engine: &Engine, q: &Q) -> Result<Vec<f64>> {
    let mut reading = reading(engine, q).await;
    let mut found = Vec::new();
    while let Some(series) = reading.next().await {
        for chunk in &series?.chunks {
            let Values::Fixed(values) = &chunk.column(0).values else { panic!("floats") };
            found.extend_from_slice(values.typed_data::<f64>());
        }
    }
    Ok(found)
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_of_old_fields_never_answer_reads_of_new_ones() {
    let (fake, engine) = start(&["A"], 10).await;
    let q = q("A", 0, 10);
    let of = |column: usize| (0..10).map(|day| value(column, (day, 1))).collect::<Vec<f64>>();
    assert_eq!(first_field(&engine, &q).await.unwrap(), of(0));
    for column in [1, 0, 1] {
        fake.applied(fake.swap_fields()).await;
        assert_eq!(first_field(&engine, &q).await.unwrap(), of(column));
        assert_eq!(first_field(&engine, &q).await.unwrap(), of(column), "held");
    }
    assert_eq!(fake.fetches().len(), 4);
    let datasets = engine.dataset_counts();
    assert_eq!(datasets.len(), 1);
    assert_eq!(datasets[0].chunks_fetched, 4, "the counters go on");
    assert_eq!(engine.stats().chunks_fetched, 4, "each chunk counts once for the head");
    // no chunk of the old fields is held any more
    until("it is counted", || engine.stats().resident_bytes > 0).await;
    let one = engine.stats().resident_bytes;
    fake.applied(fake.swap_fields()).await;
    first_field(&engine, &q).await.unwrap();
    // readers are woken before their chunks are counted
    until("the same is held again", || engine.stats().resident_bytes == one).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_is_ahead_of_the_plan_has_it_made_anew() {
    let (fake, engine) = start(&["A"], 10).await;
    let q = q("A", 0, 10);
    fake.withhold();
    let mut old = reading(&engine, &q).await;
    fake.swap_fields();
    let refused = old.next().await.unwrap().unwrap_err();
    assert_eq!(refused.code(), Code::StaleSchema);
    assert!(refused.retryable());
    assert_eq!(fake.fetches().len(), 1, "the same plan is not sent again");
    engine.caught_up(&DATASET.parse().unwrap()).await.unwrap();
    assert_eq!(first_field(&engine, &q).await.unwrap()[0], value(1, (0, 1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_dataset_is_unknown_until_it_is_made_again() {
    let (fake, engine) = start(&["A"], 10).await;
    let q = q("A", 0, 10);
    first_field(&engine, &q).await.unwrap();
    let before = engine.dataset(&DATASET.parse().unwrap()).await.unwrap();
    fake.applied(fake.drop_dataset_now()).await;
    while engine.stats().resident_bytes != 0 {
        tokio::task::yield_now().await;
    }
    assert!(engine.datasets().await.unwrap().is_empty());
    let ask = ReadQuery {
        dataset: before,
        symbols: vec!["A".parse().unwrap()],
        fields: vec![0],
        start: 0,
        end: DAY_NS,
        as_of: None,
        behind: Arc::default(),
        allow_stale: false,
        unit: "test".into(),
        deadline: None,
        order: FetchOrder::NewestFirst,
    };
    assert_eq!(engine.read(ask).unwrap_err().code(), Code::UnknownDataset);
    fake.applied(fake.swap_fields()).await;
    assert_eq!(first_field(&engine, &q).await.unwrap()[0], value(1, (0, 1)));
}

fn other(i: usize) -> DatasetName {
    format!("other.n{i:05}").parse().unwrap()
}

/// Reads a dataset beside the one of the rows: their number.
async fn read_other(engine: &Engine, name: &DatasetName) -> Result<usize> {
    let ask = ReadQuery {
        dataset: engine.dataset(name).await?,
        symbols: vec!["A".parse().unwrap()],
        fields: vec![0],
        start: 0,
        end: 10 * DAY_NS,
        as_of: None,
        behind: Arc::default(),
        allow_stale: false,
        unit: "test".into(),
        deadline: None,
        order: FetchOrder::NewestFirst,
    };
    let mut reading = engine.read(ask)?;
    let mut found = 0;
    while let Some(series) = reading.next().await {
        found += series?.chunks.iter().map(|chunk| chunk.rows() as usize).sum::<usize>();
    }
    Ok(found)
}

/// What a head costs that reads three of `count` datasets while each of them changes, and its log is lost once: the datasets that it
/// knows and follows, and the bytes that its shard sends it.
async fn cost_of_three(count: usize) -> (usize, usize, BTreeSet<String>, usize) {
    let fake = Fake::start("shard-0", &["A"], 10).await;
    fake.make_others((0..count).map(|i| other(i).to_string()));
    let engine = engine_with(&[&fake], BUDGET).await;
    engine.ready().await;
    assert_eq!(fake.followed().len(), 0, "it was asked for nothing yet");
    for i in 0..3 {
        assert_eq!(read_other(&engine, &other(i)).await.unwrap(), 10);
    }
    for i in 0..count {
        let (seq, version) = fake.touch(other(i).as_str(), false);
        if i < 3 {
            fake.applied(seq).await;
            assert_eq!(engine.dataset(&other(i)).await.unwrap().version, version);
        } else {
            assert!(fake.acknowledges(other(i).as_str(), seq), "this head delays no publish of the others");
        }
    }
    fake.lose_log(true);
    until("the log is followed again", || fake.sessions() == 2 && live(&engine) == 1).await;
    for i in 0..3 {
        assert_eq!(read_other(&engine, &other(i)).await.unwrap(), 10);
    }
    let bytes = fake.told_bytes();
    assert_eq!(engine.datasets().await.unwrap().len(), count + 1, "a list has all");
    let known = engine.core.holdings.tables().len();
    (known, engine.core.follower.names(), fake.followed(), bytes)
}

#[tokio::test]
async fn what_a_head_costs_that_reads_three_datasets_does_not_grow_with_the_ten_thousand_that_there_are() {
    let (known, names, followed, bytes) = cost_of_three(10_000).await;
    assert_eq!((known, names), (3, 3));
    assert_eq!(followed, (0..3).map(|i| other(i).to_string()).collect());
    let (_, _, _, of_three) = cost_of_three(3).await;
    // the numbers in the events are longer
    assert!(bytes < of_three + of_three / 10, "{bytes} bytes, and {of_three} if there are only three");
}

#[tokio::test]
async fn a_dataset_that_nobody_asks_for_is_left_unless_something_of_it_is_held() {
    let fake = Fake::start("shard-0", &["A"], 10).await;
    fake.make_others((0..2).map(|i| other(i).to_string()));
    let engine = engine_with(&[&fake], BUDGET).await;
    engine.ready().await;
    let (held, known, none) = (other(0), other(1), other(2));
    read_other(&engine, &held).await.unwrap();
    engine.dataset(&known).await.unwrap();
    engine.dataset(&none).await.unwrap_err();
    assert_eq!((engine.core.follower.names(), fake.followed().len()), (3, 3));
    let later = |times: u32| tokio::time::Instant::now() + times * (IDLE_MAX + Duration::from_secs(1));
    engine.core.follower.look(later(0));
    assert_eq!(engine.core.follower.names(), 3, "they were asked for just now");
    engine.core.follower.look(later(1));
    until("the shard is told", || fake.followed() == BTreeSet::from([held.to_string()])).await;
    assert_eq!((engine.core.follower.names(), engine.core.holdings.tables().len()), (1, 1));

    // what has happened meanwhile is not missed
    let (seq, version) = fake.touch(known.as_str(), false);
    assert!(fake.acknowledges(known.as_str(), seq), "nobody waits for this head");
    fake.touch(none.as_str(), false);
    assert_eq!(engine.dataset(&known).await.unwrap().version, version);
    assert_eq!(engine.dataset(&none).await.unwrap().version, 1);
    assert_eq!(read_other(&engine, &known).await.unwrap(), 10);

    // one that is asked for again and again stays, although nothing of it is held
    for times in 1..4 {
        engine.dataset(&none).await.unwrap();
        engine.core.follower.look(later(times));
        assert_eq!(engine.core.follower.names(), 3);
    }
}

#[tokio::test]
async fn a_head_is_live_when_its_acknowledgement_is_answered_and_not_by_any_heartbeat() {
    let (fake, engine) = start(&["A"], 10).await;
    read(&engine, &q("A", 0, 10)).await.unwrap();
    fake.hold_answers(true);
    fake.lose_log(true);
    until("the new session acknowledges", || fake.sessions() == 2 && fake.acknowledged()).await;
    fake.beat();
    fake.applied(fake.commit("A", &[3], true)).await;
    assert_eq!(live(&engine), 0, "a publish may have been acknowledged without this head");
    fake.hold_answers(false);
    fake.applied(fake.commit("A", &[4], true)).await;
    until("the answer has come", || live(&engine) == 1).await;
}

#[tokio::test]
async fn a_shard_that_could_not_describe_a_dataset_is_asked_again_before_its_symbols_count() {
    let (a, b) = divided().await;
    a.refuse(1);
    let engine = engine_with(&[&a, &b], BUDGET).await;
    engine.ready().await;
    assert_eq!(engine.dataset(&DATASET.parse().unwrap()).await.unwrap().version, 1, "the other one has it");
    let all = || async {
        let listed = engine.symbols(&DATASET.parse().unwrap()).await.unwrap();
        listed.iter().map(Symbol::to_string).collect::<BTreeSet<_>>()
    };
    assert_eq!(all().await.len(), 4);
    let seq = a.commit("TSLA", &[3], true);
    until("it is acknowledged", || a.acknowledges(DATASET, seq)).await;
    assert!(all().await.contains("TSLA"), "a list has what was acknowledged before it");
}

#[tokio::test]
async fn a_step_of_a_long_scan_keeps_its_dataset() {
    let fake = Fake::start("shard-0", &["A"], 10).await;
    fake.make_others((0..1).map(|i| other(i).to_string()));
    let engine = engine_with(&[&fake], BUDGET).await;
    engine.ready().await;
    let dataset = engine.dataset(&other(0)).await.unwrap();
    let step = || {
        let ask = ReadQuery {
            dataset: Arc::clone(&dataset),
            symbols: vec!["A".parse().unwrap()],
            fields: vec![0],
            start: 0,
            end: 10 * DAY_NS,
            as_of: None,
            behind: Arc::default(),
            allow_stale: false,
            unit: "test".into(),
            deadline: None,
            order: FetchOrder::NewestFirst,
        };
        engine.read(ask).map(drop)
    };
    let later = |times: u32| tokio::time::Instant::now() + times * (IDLE_MAX + Duration::from_secs(1));
    for times in 0..4 {
        step().unwrap();
        engine.core.follower.look(later(times));
    }
    engine.core.follower.look(later(5));
    assert_eq!(step().unwrap_err().code(), Code::UnknownDataset, "nobody has asked for it since");
}

#[tokio::test]
async fn a_head_that_came_back_to_a_dataset_takes_nothing_older_for_the_latest() {
    let (fake, engine) = start(&["A"], 10).await;
    let q = q("A", 0, 10);
    read(&engine, &q).await.unwrap();
    fake.commit_unseen("A", &[3]);
    until("the head has the answer", || {
        engine.core.holdings.table(&DATASET.parse().unwrap()).unwrap().parts()[0].version() == 2
    })
    .await;
    assert_eq!(read(&engine, &q).await.unwrap(), fake.truth("A", 0, 10, i64::MAX));
}

#[tokio::test]
async fn names_without_a_dataset_are_bounded() {
    let (fake, engine) = start(&["A"], 10).await;
    for i in 0..5_000 {
        assert_eq!(engine.dataset(&other(i)).await.unwrap_err().code(), Code::UnknownDataset);
        assert!(engine.core.follower.names() <= 4_097);
    }
    until("the shard is told", || fake.followed().len() <= 4_097).await;
}

/// Datasets that are made, changed, dropped and made again while the head asks for them, leaves them, and loses its log. Whenever a
/// change is acknowledged, the next question sees it.
#[tokio::test]
async fn whatever_races_an_acknowledged_change_is_seen_by_the_next_question() {
    const DATASETS: usize = 4;
    let mut rng = model::Rng(model::seed());
    model::say(&format!("interest under disturbance: seed {}", rng.0));
    let fake = Fake::start("shard-0", &["A"], 10).await;
    let engine = engine_with(&[&fake], BUDGET).await;
    engine.ready().await;
    let mut truth: BTreeMap<DatasetName, Option<u64>> = BTreeMap::new();
    let mut asking = Vec::new();
    let mut seen = 0;
    for _ in 0..600 {
        let name = other(rng.below(DATASETS as u64) as usize);
        match rng.below(10) {
            0..=3 => {
                let exists = truth.get(&name).is_some_and(Option::is_some);
                let drops = exists && rng.one_in(4);
                let (seq, version) = fake.touch(name.as_str(), drops);
                truth.insert(name.clone(), (!drops).then_some(version));
                until("it is acknowledged", || fake.acknowledges(name.as_str(), seq)).await;
            }
            // a question that is under way during what comes next
            4 | 5 => {
                let (engine, name) = (engine.clone(), name.clone());
                asking.push(tokio::spawn(async move { engine.dataset(&name).await.map(|_| ()) }));
            }
            6 => engine.core.follower.look(tokio::time::Instant::now() + IDLE_MAX * 2),
            7 => {
                let sessions = fake.sessions();
                fake.lose_log(rng.one_in(2));
                if rng.one_in(2) {
                    // while the log is lost nobody waits for this head
                    let (_, version) = fake.touch(name.as_str(), false);
                    truth.insert(name.clone(), Some(version));
                }
                until("the log is followed again", || fake.sessions() > sessions && live(&engine) == 1).await;
            }
            _ => {}
        }
        for _ in 0..rng.below(20) {
            tokio::task::yield_now().await;
        }
        if rng.one_in(2) {
            let expected = truth.get(&name).copied().flatten();
            match (engine.dataset(&name).await, expected) {
                (Ok(dataset), Some(version)) => {
                    assert_eq!(dataset.version, version, "{name}");
                    seen += 1;
                }
                (Err(error), None) => assert_eq!(error.code(), Code::UnknownDataset, "{name}"),
                (answer, expected) => panic!("{name}: {answer:?}, and it is {expected:?}"),
            }
        }
    }
    for asked in asking {
        if let Err(error) = asked.await.unwrap() {
            assert!(error.retryable() || error.code() == Code::UnknownDataset, "{error}");
        }
    }
    assert!(seen > 100, "{seen}");
}
