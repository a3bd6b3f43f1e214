//! The client with fake heads that answer, break off, answer wrongly, or do not exist.

use std::time::{Duration, Instant};

use arrow_array::{RecordBatch, cast::AsArray, types::Int32Type};
use trellis_fabric::channel::CONNECTIONS_MAX;
use trellis_proto::{Code, Error, SeriesQuery, Symbols, TimeRange, pb};
use trellis_qcu::client::{Client, ClientOptions};

use crate::fake::{FakeHead, Fault, Row, closed_port, rows_of, world};

const SYMBOLS: [&str; 8] = ["AAPL", "AMZN", "BRK.B", "FB", "GOOG", "IBM", "TSLA", "é"];

fn prices() -> Vec<Row> {
    SYMBOLS
        .iter()
        .enumerate()
        .flat_map(|(i, s)| (0..5).map(move |t| ((*s).to_owned(), t, (i * 10) as f64 + t as f64)))
        .collect()
}

fn query(symbols: &[&str]) -> SeriesQuery {
    SeriesQuery::new("equities.daily".parse().unwrap(), Symbols::new(symbols).unwrap())
}

fn quick() -> ClientOptions {
    ClientOptions { deadline: Duration::from_secs(10), ..ClientOptions::default() }
}

async fn grid(heads: usize) -> (Vec<FakeHead>, Client) {
    let world = world(&[("equities.daily", "close", prices())]);
    let mut all = vec![];
    for _ in 0..heads {
        all.push(FakeHead::start(&world).await);
    }
    let addrs: Vec<&str> = all.iter().map(|head| head.addr.as_str()).collect();
    let options = ClientOptions { unit: Some("mom".into()), ..quick() };
    let client = Client::connect(&format!("static://{}", addrs.join(",")), options).await.unwrap();
    (all, client)
}

fn unavailable() -> Error {
    Error::new(Code::Unavailable, "the shard is away").shard("s1")
}

#[tokio::test]
async fn a_read_is_split_over_the_heads_and_merged_in_the_order_of_symbols() {
    let (heads, client) = grid(3).await;
    let answer = client.read(&query(&SYMBOLS)).await.unwrap();
    assert_eq!(rows_of(&answer.batches), prices());
    let mut asked: Vec<String> = vec![];
    for head in &heads {
        for query in head.asked() {
            let Symbols::List(symbols) = query.symbols else { panic!("a part names its symbols") };
            asked.extend(symbols.iter().map(ToString::to_string));
        }
    }
    asked.sort();
    assert_eq!(asked, SYMBOLS, "each symbol is asked of one head");
    assert!(answer.receipts.len() > 1);
    assert_eq!(answer.receipt().rows, 40);
    let dictionaries = answer.batches.iter().map(|b| b.column(0).as_dictionary::<Int32Type>().values().len());
    assert!(dictionaries.into_iter().all(|n| n == SYMBOLS.len()), "one dictionary");
    assert!(heads.iter().all(|head| head.units().iter().all(|unit| unit == "mom")));
}

#[tokio::test]
async fn the_same_symbol_always_goes_to_the_same_head() {
    let (heads, client) = grid(3).await;
    for _ in 0..5 {
        client.read(&query(&["AMZN"])).await.unwrap();
    }
    let mut counts: Vec<usize> = heads.iter().map(|head| head.asked().len()).collect();
    counts.sort_unstable();
    assert_eq!(counts, [0, 0, 5]);
}

#[tokio::test]
async fn every_symbol_means_the_symbols_there_are() {
    let (heads, client) = grid(2).await;
    let answer = client.read(&query(&["*"])).await.unwrap();
    assert_eq!(rows_of(&answer.batches), prices());
    assert!(heads.iter().all(|head| head.asked().iter().all(|q| q.symbols != Symbols::All)));
    let (one, alone) = grid(1).await;
    assert_eq!(rows_of(&alone.read(&query(&["*"])).await.unwrap().batches), prices());
    assert_eq!(one[0].asked()[0].symbols, Symbols::All, "a single head needs no list");
}

/// Sets how many heads serve the dataset.
fn spread_over(heads: &[FakeHead], spread: u32) {
    heads[0].world().datasets.get_mut("equities.daily").unwrap().spread = spread;
}

/// How many heads were asked for rows since these were asked `before`.
fn asked_since(heads: &[FakeHead], before: &[usize]) -> usize {
    heads.iter().zip(before).filter(|(head, before)| head.asked().len() > **before).count()
}

fn asked(heads: &[FakeHead]) -> Vec<usize> {
    heads.iter().map(|head| head.asked().len()).collect()
}

fn calls(heads: &[FakeHead], method: &str) -> usize {
    heads.iter().map(|head| head.calls(method)).sum()
}

/// A grid of five heads with one dataset. It has enough symbols to give some to each head that serves it, whatever the port
/// of the head.
async fn wide_grid() -> (Vec<FakeHead>, Client, Vec<Row>) {
    let (heads, client) = grid(5).await;
    let rows: Vec<Row> = (0..256).map(|i| (format!("S{i:03}"), 0, f64::from(i))).collect();
    heads[0].world().datasets.get_mut("equities.daily").unwrap().rows = rows.clone();
    (heads, client, rows)
}

#[tokio::test]
async fn a_dataset_of_one_head_is_asked_of_that_head_without_a_list() {
    let (heads, client, rows) = wide_grid().await;
    spread_over(&heads, 1);
    for _ in 0..3 {
        assert_eq!(rows_of(&client.read(&query(&["*"])).await.unwrap().batches), rows);
    }
    for symbol in ["S000", "S100", "S200"] {
        client.read(&query(&[symbol])).await.unwrap();
    }
    let mut counts = asked(&heads);
    counts.sort_unstable();
    assert_eq!(counts, [0, 0, 0, 0, 6]);
    let whole = heads.iter().flat_map(FakeHead::asked).filter(|query| query.symbols == Symbols::All).count();
    assert_eq!((whole, calls(&heads, "Symbols")), (3, 0));
    assert_eq!(calls(&heads, "Describe"), 1, "the client asks once how many heads there are");
}

#[tokio::test]
async fn a_client_takes_the_spread_of_an_answer_for_its_next_read_and_no_row_depends_on_it() {
    let (heads, client, rows) = wide_grid().await;
    spread_over(&heads, 1);
    let read = async |heads_asked: usize| {
        let before = asked(&heads);
        assert_eq!(rows_of(&client.read(&query(&["*"])).await.unwrap().batches), rows);
        assert_eq!(asked_since(&heads, &before), heads_asked);
    };
    read(1).await;
    for (old, new) in [(1, 2), (2, 4), (4, 1)] {
        spread_over(&heads, new);
        read(old).await;
        read(new as usize).await;
    }
    assert_eq!(calls(&heads, "Describe"), 1);
}

#[tokio::test]
async fn reads_go_on_while_the_heads_of_a_dataset_fail_one_after_the_other() {
    let (heads, client, rows) = wide_grid().await;
    spread_over(&heads, 2);
    for working in (1..=5).rev() {
        let before = asked(&heads);
        assert_eq!(rows_of(&client.read(&query(&["*"])).await.unwrap().batches), rows);
        let serving = asked(&heads).iter().zip(&before).position(|(now, before)| now > before).unwrap();
        if working > 1 {
            heads[serving].fail((0..10_000).map(|_| Fault::Refuse(unavailable())));
        }
    }
}

#[tokio::test]
async fn a_symbol_that_one_head_lists_and_another_does_not_know_yet_is_asked_for_again() {
    let (heads, client) = grid(2).await;
    let unknown = || Error::new(Code::UnknownSymbol, "equities.daily has no symbol TSLA").symbol("TSLA");
    heads[0].fail_on("DoGet", (0..2).map(|_| Fault::Refuse(unknown())));
    assert_eq!(rows_of(&client.read(&query(&["*"])).await.unwrap().batches), prices());

    heads.iter().for_each(|head| head.fail_on("DoGet", [Fault::Refuse(unknown())]));
    let named = client.read(&query(&SYMBOLS)).await.unwrap_err();
    assert_eq!(named.code(), Code::UnknownSymbol, "a symbol that the caller named is refused at once");

    heads.iter().for_each(|head| head.fail_on("DoGet", (0..1_000).map(|_| Fault::Refuse(unknown()))));
    let error = client.with_deadline(Duration::from_millis(300)).read(&query(&["*"])).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{error}");
}

#[tokio::test]
async fn parts_of_one_answer_are_read_again_as_of_the_least_that_all_heads_know() {
    // enough symbols that rendezvous hashing gives each head some, whatever its port
    let symbols: Vec<String> = (0..64).map(|i| format!("S{i:02}")).collect();
    let rows: Vec<Row> = symbols.iter().map(|symbol| (symbol.clone(), 0, 1.0)).collect();
    let world = world(&[("equities.daily", "close", rows.clone())]);
    let heads = [FakeHead::start(&world).await, FakeHead::start(&world).await];
    let url = format!("static://{},{}", heads[0].addr, heads[1].addr);
    let client = Client::connect(&url, quick()).await.unwrap();
    heads[0].knows_through(5_000);
    heads[1].knows_through(7_000);
    let all = query(&symbols.iter().map(String::as_str).collect::<Vec<_>>());
    let answer = client.read(&all).await.unwrap();
    assert_eq!(rows_of(&answer.batches), rows);
    let asked = |head: &FakeHead| head.asked().iter().map(|query| query.as_of).collect::<Vec<_>>();
    assert_eq!(asked(&heads[0]), [None]);
    assert_eq!(asked(&heads[1]), [None, Some(5_000)], "the head that is ahead goes back");
    let receipt = answer.receipt();
    assert_eq!((receipt.known_through_ns, receipt.as_of_ns), (5_000, None));

    heads[1].knows_through(5_000);
    client.read(&all).await.unwrap();
    assert_eq!(asked(&heads[1]).len(), 3, "heads that agree are asked once");
}

#[tokio::test]
async fn an_answer_without_rows_has_a_schema_and_a_receipt() {
    let (_heads, client) = grid(2).await;
    let nothing = SeriesQuery { range: TimeRange::new(Some(100), Some(200)).unwrap(), ..query(&SYMBOLS) };
    let answer = client.read(&nothing).await.unwrap();
    assert_eq!((answer.rows(), answer.batches.len()), (0, 0));
    assert_eq!(answer.schema.field(2).name(), "close");
    assert_eq!(answer.receipt().rows, 0);
}

#[tokio::test]
async fn a_head_that_is_away_is_replaced_by_another() {
    let world = world(&[("equities.daily", "close", prices())]);
    let head = FakeHead::start(&world).await;
    let url = format!("static://{},{}", head.addr, closed_port().await);
    let client = Client::connect(&url, quick()).await.unwrap();
    let answer = client.read(&query(&SYMBOLS)).await.unwrap();
    assert_eq!(rows_of(&answer.batches), prices());
    let before = head.asked().len();
    client.read(&query(&SYMBOLS)).await.unwrap();
    assert_eq!(head.asked().len(), before + 1, "the head that is away is passed over for a while");
}

#[tokio::test]
async fn an_answer_that_breaks_in_the_middle_is_asked_again_and_no_row_is_doubled() {
    for broken in [Fault::After(2, unavailable()), Fault::Truncate(3), Fault::Truncate(1), Fault::Truncate(0)]
    {
        let (heads, client) = grid(1).await;
        heads[0].fail([broken]);
        let answer = client.read(&query(&SYMBOLS)).await.unwrap();
        assert_eq!(rows_of(&answer.batches), prices());
        assert_eq!(heads[0].asked().len(), 2);
    }
}

#[tokio::test]
async fn a_final_error_is_told_at_once_as_the_head_said_it() {
    let (heads, client) = grid(1).await;
    let error = Error::new(Code::UnknownField, "no field clsoe")
        .hint("did you mean close?")
        .dataset("equities.daily");
    heads[0].fail([Fault::Refuse(error.clone())]);
    assert_eq!(client.read(&query(&["AMZN"])).await.unwrap_err(), error);
    let unknown = client.read(&SeriesQuery::new("no.such".parse().unwrap(), Symbols::All)).await.unwrap_err();
    assert_eq!(unknown.code(), Code::UnknownDataset);
}

#[tokio::test]
async fn attempts_end_at_the_deadline_with_the_last_error() {
    let (heads, client) = grid(1).await;
    let client = client.with_deadline(Duration::from_millis(400));
    heads[0].fail((0..1_000).map(|_| Fault::Refuse(unavailable())));
    let started = Instant::now();
    let error = client.read(&query(&["AMZN"])).await.unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(5));
    assert_eq!((error.code(), error.place().2), (Code::Unavailable, "s1"));
    assert!(error.message().contains("attempts"), "{error}");
}

#[tokio::test]
async fn a_head_that_hangs_costs_the_deadline_and_no_more() {
    let (heads, client) = grid(1).await;
    heads[0].fail([Fault::Hang]);
    let error = client.with_deadline(Duration::from_millis(300)).read(&query(&["AMZN"])).await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn a_question_or_publish_that_a_head_has_lost_is_put_to_another() {
    let world = world(&[("equities.daily", "close", prices())]);
    let heads = [FakeHead::start(&world).await, FakeHead::start(&world).await];
    let url = format!("static://{},{}", heads[0].addr, heads[1].addr);
    let options = ClientOptions { attempt: Duration::from_millis(200), ..quick() };
    let client = Client::connect(&url, options).await.unwrap();
    let rows = client.read(&query(&["AMZN"])).await.unwrap().batches;
    heads.iter().for_each(|head| head.fail_on("Describe", [Fault::Hang]));
    assert_eq!(client.describe(None).await.unwrap().len(), 1);
    heads.iter().for_each(|head| head.fail_on("DoPut", [Fault::Hang]));
    let header =
        pb::PublishHeader { dataset: "signals.mom".into(), run_id: "r1".into(), ..Default::default() };
    assert_eq!(client.publish(header, rows).await.unwrap().rows, 5);
}

#[tokio::test]
async fn an_answer_larger_than_asked_for_is_refused_over_all_heads() {
    let (_heads, client) = grid(3).await;
    let error = client.read(&SeriesQuery { rows_max: 39, ..query(&SYMBOLS) }).await.unwrap_err();
    assert_eq!(error.code(), Code::TooLarge);
    assert!(client.read(&SeriesQuery { rows_max: 40, ..query(&SYMBOLS) }).await.is_ok());
}

#[tokio::test]
async fn nobody_there_is_told_at_once_with_what_to_do() {
    let url = format!("grpc://{}", closed_port().await);
    let options = ClientOptions { connect_timeout: Duration::from_millis(300), ..quick() };
    let error = Client::connect(&url, options).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert!(error.to_string().contains(&url) && error.to_string().contains("trellis up"), "{error}");
    assert!(error.message().contains("Connection refused") && !error.message().contains("::"), "{error}");
    for url in ["ftp://x", "", "grpc://"] {
        assert_eq!(Client::connect(url, quick()).await.unwrap_err().code(), Code::InvalidRequest, "{url}");
    }
}

#[tokio::test]
async fn questions_are_answered_by_any_head() {
    let (heads, client) = grid(2).await;
    let dataset = "equities.daily".parse().unwrap();
    heads[0].fail([Fault::Refuse(unavailable())]);
    heads[1].fail([Fault::Refuse(unavailable())]);
    assert_eq!(client.describe(None).await.unwrap().len(), 1);
    assert_eq!(client.symbols(&dataset).await.unwrap().len(), SYMBOLS.len());
    assert_eq!(client.sessions(&dataset, TimeRange::ALL).await.unwrap(), [0]);
    let stats = client.stats().await.unwrap();
    assert_eq!(stats.iter().map(|s| s.head.clone()).collect::<Vec<_>>(), client.heads());
}

#[tokio::test]
async fn a_publish_is_sent_until_it_is_acknowledged_and_happens_once() {
    let (heads, client) = grid(2).await;
    let rows: Vec<RecordBatch> = client.read(&query(&["AMZN", "FB"])).await.unwrap().batches;
    for head in &heads {
        head.fail([Fault::LoseAck]);
    }
    let header =
        pb::PublishHeader { dataset: "signals.mom".into(), run_id: "r1".into(), ..Default::default() };
    let ack = client.publish(header.clone(), rows).await.unwrap();
    assert!(ack.duplicate, "the first commit lost its acknowledgement");
    assert_eq!(heads[0].world().published.len(), 1);
    assert_eq!(heads[0].world().published[0].1.len(), 10);

    let none = client.publish(header.clone(), vec![]).await.unwrap_err();
    assert_eq!(none.code(), Code::BadRows);
    let fenced = client.publish(
        pb::PublishHeader { epoch: 9, ..header },
        vec![client.read(&query(&["FB"])).await.unwrap().batches[0].clone()],
    );
    assert_eq!(fenced.await.unwrap_err().code(), Code::Fenced);
}

#[tokio::test]
async fn one_read_after_the_other_takes_one_connection() {
    let (heads, client) = grid(1).await;
    for _ in 0..16 {
        client.read(&query(&["AMZN"])).await.unwrap();
        client.symbols(&"equities.daily".parse().unwrap()).await.unwrap();
    }
    assert_eq!(heads[0].connections(), 1);
}

#[tokio::test]
async fn large_reads_at_once_are_spread_over_a_few_connections() {
    const READS: usize = 8;
    let (heads, client) = grid(1).await;
    let head = &heads[0];
    let large: Vec<Row> = (0..100_000).map(|t| ("AMZN".to_owned(), t, t as f64)).collect();
    head.world().datasets.get_mut("equities.daily").unwrap().rows = large.clone();
    let query = query(&["AMZN"]);
    client.read(&query).await.unwrap();
    assert_eq!(head.connections(), 1);

    head.fail_on("DoGet", (0..READS).map(|_| Fault::Hold(4)));
    let read = || {
        let (client, query) = (client.clone(), query.clone());
        tokio::spawn(async move { client.read(&query).await })
    };
    let reads: Vec<_> = (0..READS).map(|_| read()).collect();
    head.held(READS as u32).await;
    assert_eq!(head.connections(), CONNECTIONS_MAX);
    head.release(READS);
    for read in reads {
        assert_eq!(rows_of(&read.await.unwrap().unwrap().batches), large);
    }
    client.read(&query).await.unwrap();
    assert_eq!(head.connections(), CONNECTIONS_MAX, "those that are open are used");
}
