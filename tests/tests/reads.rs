//! A read through heads and shards gives exactly the rows of the oracle, and overlapping requests need one fetch of their
//! union.
#![allow(clippy::unwrap_used)] // a test may panic

use std::time::{Duration, Instant};

use arrow_array::{
    Array, RecordBatch,
    cast::AsArray,
    types::{Float64Type, Int32Type, TimestampNanosecondType},
};
use trellis_proto::{
    Code, DatasetSpec, FieldName, SeriesQuery, Symbols, TimeRange,
    time::{DAY_NS, parse_time},
};
use trellis_qcu::client::{Answer, Client};
use trellis_tests::{
    grid::{Grid, import, retract, spec},
    oracle::{Oracle, Row},
    rng::Rng,
};

/// Most polls of a condition that another task makes true. They take seconds; then the test fails and names the condition.
const POLLS: usize = 20_000;

/// Polls until `met` is true.
async fn until<F: Future<Output = bool>>(what: &str, mut met: impl FnMut() -> F) {
    for _ in 0..POLLS {
        if met().await {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("never: {what}");
}

/// One price for each business day of `years` years from 2006-08-10 on.
fn daily(symbol: &str, years: i64) -> Vec<Row> {
    let first = parse_time("2006-08-10").unwrap();
    (0..years * 365 + years / 4)
        .filter(|day| (day + 3) % 7 < 5)
        .map(|day| Row {
            symbol: symbol.to_owned(),
            ts: first + day * DAY_NS,
            known_at: 0,
            values: vec![Some(100.0 + day as f64), Some(day as f64)],
        })
        .collect()
}

fn ask(spec: &DatasetSpec, symbols: &[&str], fields: &[&str], start: &str, end: &str) -> SeriesQuery {
    let mut query = SeriesQuery::new(spec.dataset.clone(), Symbols::new(symbols).unwrap());
    query.fields = fields.iter().map(|f| FieldName::new(f).unwrap()).collect();
    query.range = TimeRange::new(Some(parse_time(start).unwrap()), Some(parse_time(end).unwrap())).unwrap();
    query
}

/// The answer as rows, for comparison.
fn rows(answer: &Answer) -> Vec<Row> {
    let mut rows = Vec::new();
    for batch in &answer.batches {
        rows.extend((0..batch.num_rows()).map(|i| row(batch, i)));
    }
    rows
}

fn row(batch: &RecordBatch, i: usize) -> Row {
    let symbols = batch.column(0).as_dictionary::<Int32Type>();
    let symbol = symbols.values().as_string::<i32>().value(symbols.keys().value(i) as usize).to_owned();
    let ts = batch.column(1).as_primitive::<TimestampNanosecondType>().value(i);
    let last = batch.num_columns() - 1;
    let has_known_at = batch.schema().field(last).name() == "known_at";
    let known_at =
        if has_known_at { batch.column(last).as_primitive::<TimestampNanosecondType>().value(i) } else { 0 };
    let values = (2..batch.num_columns() - usize::from(has_known_at))
        .map(|c| batch.column(c).as_primitive::<Float64Type>())
        .map(|column| column.is_valid(i).then(|| column.value(i)))
        .collect();
    Row { symbol, ts, known_at, values }
}

async fn prices(grid: &Grid) -> (Client, DatasetSpec) {
    let client = grid.client().await.unwrap();
    let spec = spec("equities.daily", &["close", "volume"]);
    import(&client, &spec, &daily("AMZN", 10), None, "amzn").await.unwrap();
    (client, spec)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_years_then_five_years_cost_one_fetch_of_ten() {
    let grid = Grid::start(1, 1).await.unwrap();
    let (client, spec) = prices(&grid).await;
    let ten = client.read(&ask(&spec, &["AMZN"], &["close"], "2006-08-10", "2016-08-10")).await.unwrap();
    let five = client.read(&ask(&spec, &["AMZN"], &["close"], "2011-08-10", "2016-08-10")).await.unwrap();
    assert!(five.rows() > 1_200 && ten.rows() > 2 * five.rows() - 10);
    let stats = client.stats().await.unwrap().remove(0);
    assert_eq!(stats.upstream_calls, 1);
    assert_eq!((stats.rows_fetched, stats.rows_union), (ten.rows() as u64, ten.rows() as u64));
    assert_eq!(five.receipt().rows_fetched, 0);
    grid.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_years_then_ten_years_fetch_only_what_is_missing() {
    let grid = Grid::start(1, 1).await.unwrap();
    let (client, spec) = prices(&grid).await;
    let five = client.read(&ask(&spec, &["AMZN"], &["close"], "2011-08-10", "2016-08-10")).await.unwrap();
    let ten = client.read(&ask(&spec, &["AMZN"], &["close"], "2006-08-10", "2016-08-10")).await.unwrap();
    let stats = client.stats().await.unwrap().remove(0);
    assert_eq!(stats.upstream_calls, 2);
    assert_eq!(stats.rows_fetched, ten.rows() as u64, "no row is fetched twice");
    // Whole chunks are fetched, so at most one chunk of 64 days more than asked for.
    let beyond = five.receipt().rows_fetched - five.rows() as u64;
    assert!(beyond <= 46, "{beyond} rows beyond the five years");
    grid.stop().await.unwrap();
}

/// Both requests run at the same time: the gate holds the shard's answer until the second has joined.
async fn overlapping_in_flight(first: (&str, &str), second: (&str, &str)) {
    let grid = Grid::start(1, 1).await.unwrap();
    let (client, spec) = prices(&grid).await;
    // The head knows the catalogue before the gate closes, so that only the rows wait.
    client.describe(None).await.unwrap();
    client.read(&ask(&spec, &["AMZN"], &["volume"], "2016-08-01", "2016-08-02")).await.unwrap();
    let before = client.stats().await.unwrap().remove(0);

    grid.gate(0).hold();
    let spawn = |(start, end): (&str, &str)| {
        let (client, query) = (client.clone(), ask(&spec, &["AMZN"], &["close"], start, end));
        tokio::spawn(async move { client.read(&query).await })
    };
    let (one, counter) = (spawn(first), client.clone());
    until("the first request is in flight", || async {
        counter.stats().await.unwrap()[0].chunks_fetched > before.chunks_fetched
    })
    .await;
    let two = spawn(second);
    until("the second request has joined", || async {
        counter.stats().await.unwrap()[0].chunks_joined > before.chunks_joined
    })
    .await;
    grid.gate(0).open();
    let (one, two) = (one.await.unwrap().unwrap(), two.await.unwrap().unwrap());

    let after = client.stats().await.unwrap().remove(0);
    let union = one.rows().max(two.rows()) as u64;
    // The first read above fetched one chunk of `volume` and none of `close`.
    assert_eq!(after.rows_fetched - before.rows_fetched, union, "the union, once");
    assert_eq!(one.receipt().rows_fetched + two.receipt().rows_fetched, union);
    grid.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_five_year_request_joins_the_ten_year_flight() {
    overlapping_in_flight(("2006-08-10", "2016-08-10"), ("2011-08-10", "2016-08-10")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ten_year_request_joins_the_five_year_flight_and_claims_the_rest() {
    overlapping_in_flight(("2011-08-10", "2016-08-10"), ("2006-08-10", "2016-08-10")).await;
}

/// Random corrections, then random reads through two heads and three shards: open ends, empty ranges, times before, between
/// and after corrections, any subset of fields and symbols.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_random_reads_agree_with_a_sorted_list_of_rows() {
    const READS: usize = 2_000;
    let mut rng = Rng::seeded(0x5eed_0001);
    let grid = Grid::start(2, 3).await.unwrap();
    let clients = clients(&grid).await;
    let client = &clients[0];
    let spec = spec("equities.daily", &["open", "close", "volume"]);
    let symbols: Vec<String> = (0..12).map(|i| format!("SYM{i}")).collect();
    let (first, days) = (parse_time("2015-01-01").unwrap(), 400);
    let mut oracle = Oracle::new(&["open", "close", "volume"]);

    // Round 0 is the history. Later rounds correct some rows and add a few; each is known a day after the one before.
    let learned = parse_time("2020-01-01").unwrap();
    for round in 0..6i64 {
        let mut batch = Vec::new();
        for (i, symbol) in symbols.iter().enumerate() {
            let listed = (i as i64) * 11; // symbols that start late
            for day in listed..days + round {
                let new = day >= days + round - 1;
                if round > 0 && !new && !rng.once_in(40) || round == 0 && rng.once_in(9) {
                    continue;
                }
                let mut value = || (!rng.once_in(30)).then(|| (rng.below(100_000) as f64) / 100.0);
                let values = vec![value(), value(), value()];
                let known_at = learned + round * DAY_NS;
                batch.push(Row { symbol: symbol.clone(), ts: first + day * DAY_NS, known_at, values });
            }
        }
        let ack = import(client, &spec, &batch, Some(learned + round * DAY_NS), &format!("round {round}"))
            .await
            .unwrap();
        assert_eq!(ack.rows, batch.len() as u64);
        // Some rows are retracted half a day later; a later round brings some of these back.
        let known_at = learned + round * DAY_NS + DAY_NS / 2;
        let gone: Vec<(String, i64)> =
            batch.iter().filter(|_| rng.once_in(12)).map(|row| (row.symbol.clone(), row.ts)).collect();
        batch.into_iter().for_each(|row| oracle.learn(row));
        if !gone.is_empty() {
            let run = format!("retraction {round}");
            let ack = retract(client, &spec, &gone, Some(known_at), &run).await.unwrap();
            assert_eq!(ack.retracted, gone.len() as u64);
        }
        gone.iter().for_each(|(symbol, ts)| oracle.retract(symbol, *ts, known_at));

        for _ in 0..READS / 6 {
            let mut query = question(&mut rng, &spec, &symbols, first, days);
            if rng.once_in(2) {
                let offset = rng.below(16) as i64 * DAY_NS / 2 - DAY_NS + rng.below(3) as i64 - 1;
                query.as_of = Some(learned + offset);
            }
            let answer =
                rng.pick(&clients).read(&query).await.unwrap_or_else(|error| panic!("{query:?}: {error:?}"));
            assert_eq!(rows(&answer), expected(&oracle, &query), "{query:?}");
        }
    }
    let stats = client.stats().await.unwrap();
    let (fetched, asked) = stats.iter().fold((0, 0), |(f, a), s| (f + s.rows_fetched, a + s.rows_asked));
    println!("{asked} rows asked, {fetched} fetched");
    grid.stop().await.unwrap();
}

/// The right answer of a read.
fn expected(oracle: &Oracle, query: &SeriesQuery) -> Vec<Row> {
    let asked: Vec<String> = match &query.symbols {
        Symbols::All => oracle.symbols(),
        Symbols::List(list) => list.iter().map(|s| s.to_string()).collect(),
    };
    let fields: Vec<String> = match query.fields.is_empty() {
        true => oracle.fields.clone(),
        false => query.fields.iter().map(|f| f.to_string()).collect(),
    };
    let mut expected = oracle.read(&asked, &fields, query.range, query.as_of);
    if !query.known_at {
        expected.iter_mut().for_each(|row| row.known_at = 0);
    }
    expected
}

/// A read of the latest.
fn question(rng: &mut Rng, spec: &DatasetSpec, symbols: &[String], first: i64, days: i64) -> SeriesQuery {
    let mut query = SeriesQuery::new(spec.dataset.clone(), Symbols::All);
    if !rng.once_in(6) {
        let some: Vec<&String> = symbols.iter().filter(|_| rng.once_in(3)).collect();
        query.symbols = Symbols::new(some).unwrap_or(Symbols::All);
    }
    query.fields = spec.fields.iter().filter(|_| !rng.once_in(2)).map(|f| f.name.clone()).collect();
    let mut time = || {
        let day = first + (rng.below(days as usize + 60) as i64 - 30) * DAY_NS;
        // Bounds are on rows and between rows.
        (!rng.once_in(5)).then(|| if rng.once_in(3) { day + 1 } else { day })
    };
    let (a, b) = (time(), time());
    query.range = TimeRange::new(a, b).or_else(|_| TimeRange::new(b, a)).unwrap();
    if rng.once_in(10) {
        query.range.end = query.range.start;
    }
    query.known_at = rng.once_in(3);
    query
}

/// Corrections go on while change events are lost, connections are cut and shards restart. A read may be refused for a while,
/// but its answer is right, as of now and of any earlier time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_answer_is_wrong_while_events_are_lost_and_shards_start_again() {
    const ROUNDS: usize = 28;
    const READS: usize = 12;
    const SHARDS: usize = 3;
    /// A read that its shard does not answer is given up, after as much time as this machine needs for ten reads of everything.
    const PATIENCE_MIN: Duration = Duration::from_millis(250);
    let mut rng = Rng::by_chance();
    let mut grid = Grid::start(2, SHARDS).await.unwrap();
    let clients = clients(&grid).await;
    let client = &clients[0];
    let mut readers = clients.clone();
    let spec = spec("equities.daily", &["open", "close", "volume"]);
    let symbols: Vec<String> = (0..12).map(|i| format!("SYM{i}")).collect();
    let (first, days) = (parse_time("2015-01-01").unwrap(), 400);
    let mut oracle = Oracle::new(&["open", "close", "volume"]);
    // The knowledge time of each correction, and counts of the reads.
    let (mut known, mut told) = (Vec::new(), [0_usize; 2]);

    for round in 0..ROUNDS {
        let mut batch = Vec::new();
        for symbol in &symbols {
            for day in 0..days {
                if round > 0 && !rng.once_in(100) {
                    continue;
                }
                let values = (0..3).map(|_| Some(rng.below(100_000) as f64 / 100.0)).collect();
                batch.push(Row { symbol: symbol.clone(), ts: first + day * DAY_NS, known_at: 0, values });
            }
        }
        let past: Vec<SeriesQuery> = (0..if round == 0 { 0 } else { READS })
            .map(|_| SeriesQuery {
                as_of: Some(rng.pick(&known) - rng.below(2) as i64),
                ..question(&mut rng, &spec, &symbols, first, days)
            })
            .collect();
        // During the correction its event is held and lost, a connection is cut, or a shard restarts; reads as of the past go on.
        let shard = rng.below(SHARDS);
        let run = format!("round {round}");
        let correction = import(client, &spec, &batch, None, &run);
        let ack = match rng.below(4) {
            _ if round == 0 => correction.await,
            0 => {
                grid.gate(shard).hold();
                let lose = async {
                    check(&readers, &oracle, &past, &mut told).await;
                    grid.gate(shard).cut();
                    grid.gate(shard).open();
                };
                tokio::join!(correction, lose).0
            }
            1 => {
                grid.gate(shard).cut();
                let heal = async {
                    check(&readers, &oracle, &past, &mut told).await;
                    grid.gate(shard).open();
                };
                tokio::join!(correction, heal).0
            }
            2 => {
                let restart = async { grid.restart_shard(shard).await.unwrap() };
                tokio::join!(correction, check(&readers, &oracle, &past, &mut told), restart).0
            }
            _ => tokio::join!(correction, check(&readers, &oracle, &past, &mut told)).0,
        };
        let known_at = ack.unwrap().known_at_ns;
        let gone: Vec<(String, i64)> =
            batch.iter().filter(|_| rng.once_in(20)).map(|row| (row.symbol.clone(), row.ts)).collect();
        batch.into_iter().for_each(|row| oracle.learn(Row { known_at, ..row }));
        if round == 0 {
            let (began, all) = (Instant::now(), SeriesQuery::new(spec.dataset.clone(), Symbols::All));
            client.read(&all).await.unwrap();
            let patience = (began.elapsed() * 10).max(PATIENCE_MIN);
            readers = clients.iter().map(|client| client.with_deadline(patience)).collect();
        }
        known.push(known_at);
        // Its events may be lost with the next cut connection.
        if !gone.is_empty() {
            let run = format!("retraction {round}");
            let known_at = retract(client, &spec, &gone, None, &run).await.unwrap().known_at_ns;
            gone.iter().for_each(|(symbol, ts)| oracle.retract(symbol, *ts, known_at));
            known.push(known_at);
        }

        // Events may still be on their way to heads that have reconnected, or may never come.
        let line_is_cut = rng.once_in(3);
        let shard = rng.below(SHARDS);
        if line_is_cut {
            grid.gate(shard).cut();
        }
        let queries: Vec<SeriesQuery> = (0..READS)
            .map(|_| SeriesQuery {
                as_of: rng.once_in(2).then(|| *rng.pick(&known)),
                ..question(&mut rng, &spec, &symbols, first, days)
            })
            .collect();
        check(&readers, &oracle, &queries, &mut told).await;
        grid.gate(shard).open();
    }

    // With all connections open, every read is answered again.
    let queries: Vec<SeriesQuery> = (0..READS)
        .map(|_| SeriesQuery {
            as_of: rng.once_in(2).then(|| *rng.pick(&known)),
            ..question(&mut rng, &spec, &symbols, first, days)
        })
        .collect();
    let [answered, refused] = told;
    check(&clients, &oracle, &queries, &mut told).await;
    assert_eq!(told, [answered + READS, refused]);
    println!("{answered} answered, {refused} refused");
    assert!(answered > refused, "{answered} answered, {refused} refused");
    grid.stop().await.unwrap();
}

/// A client of all heads, and one of each: a small dataset has one head, and the others must not be wrong about it.
async fn clients(grid: &Grid) -> Vec<Client> {
    vec![grid.client().await.unwrap(), grid.client_of(0).await.unwrap(), grid.client_of(1).await.unwrap()]
}

/// Sends all reads at once, over one client after the other. Answers must equal the oracle's, and errors must be temporary. Counts both.
async fn check(clients: &[Client], oracle: &Oracle, queries: &[SeriesQuery], told: &mut [usize; 2]) {
    let asked = queries.iter().zip(clients.iter().cycle()).map(|(query, client)| client.read(query));
    let answers = futures::future::join_all(asked).await;
    for (query, answer) in queries.iter().zip(answers) {
        match &answer {
            Ok(answer) => {
                // the latest means: as of the time in the receipt
                let as_of = query.as_of.or(Some(answer.receipt().known_through_ns));
                let then = SeriesQuery { as_of, ..query.clone() };
                assert_eq!(rows(answer), expected(oracle, &then), "{query:?}");
            }
            Err(error) => assert!(error.retryable(), "{query:?}: {error:?}"),
        }
        told[usize::from(answer.is_err())] += 1;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_questions_are_refused_with_the_right_code_and_the_grid_goes_on() {
    let grid = Grid::start(2, 3).await.unwrap();
    let (client, spec) = prices(&grid).await;
    let good = ask(&spec, &["AMZN"], &["close"], "2006-08-10", "2016-08-10");

    let mut wrong = good.clone();
    wrong.dataset = "equities.dialy".parse().unwrap();
    let error = client.read(&wrong).await.unwrap_err();
    assert_eq!(error.code(), Code::UnknownDataset);
    assert!(error.to_string().contains("equities.daily"), "says what was meant: {error}");

    let mut wrong = good.clone();
    wrong.fields = vec![FieldName::new("clsoe").unwrap()];
    let error = client.read(&wrong).await.unwrap_err();
    assert_eq!(error.code(), Code::UnknownField);
    assert!(error.to_string().contains("close"), "says what was meant: {error}");

    let mut wrong = good.clone();
    wrong.symbols = Symbols::new(["AMZM"]).unwrap();
    let error = client.read(&wrong).await.unwrap_err();
    assert_eq!(error.code(), Code::UnknownSymbol);
    assert!(error.to_string().contains("AMZN"), "says what was meant: {error}");

    let mut wrong = good.clone();
    wrong.rows_max = 100;
    assert_eq!(client.read(&wrong).await.unwrap_err().code(), Code::TooLarge);

    assert_eq!(client.read(&good).await.unwrap().rows(), daily("AMZN", 10).len());
    grid.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_is_away_fails_fast_by_name_and_never_leaves_a_hole() {
    let mut grid = Grid::start(1, 1).await.unwrap();
    let (client, spec) = prices(&grid).await;
    let cached = ask(&spec, &["AMZN"], &["close"], "2015-08-10", "2016-08-10");
    let before = client.read(&cached).await.unwrap();
    grid.stop_shard(0).await.unwrap();

    // None of these five years is cached.
    let missing = ask(&spec, &["AMZN"], &["close"], "2006-08-10", "2011-08-10");
    let started = tokio::time::Instant::now();
    let error = client_deadline(&grid).await.read(&missing).await.unwrap_err();
    assert!(error.retryable(), "{error:?}");
    assert_eq!(error.code(), Code::Unavailable, "{error:?}");
    assert!(error.to_string().contains("shard-0"), "names the shard: {error}");
    assert!(started.elapsed() < Duration::from_secs(10));

    // The earlier answer is still right as of its own time.
    let mut then = cached.clone();
    then.as_of = Some(before.receipt().known_through_ns);
    assert_eq!(rows(&client.read(&then).await.unwrap()), rows(&before));

    let mut stale = cached.clone();
    stale.allow_stale = true;
    let answer = client.read(&stale).await.unwrap();
    assert!(answer.receipt().stale, "labelled");
    assert_eq!(rows(&answer), rows(&before));

    grid.restart_shard(0).await.unwrap();
    let end = missing.range.end.unwrap();
    let expected = daily("AMZN", 10).iter().filter(|row| row.ts < end).count();
    assert_eq!(client.read(&missing).await.unwrap().rows(), expected);
    grid.stop().await.unwrap();
}

/// A client with a short deadline.
async fn client_deadline(grid: &Grid) -> Client {
    let options =
        trellis_qcu::client::ClientOptions { deadline: Duration::from_secs(3), ..Default::default() };
    Client::connect(&format!("static://{}", grid.head(0)), options).await.unwrap()
}
