//! A head over real gRPC, with a fake shard whose answers the test sets: the view of any Flight client.

// clippy lets tests unwrap, but not what tests call
#![allow(clippy::unwrap_used)]

// each test binary uses its own part of it
#[allow(dead_code, unreachable_pub, missing_docs)]
mod support;

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use arrow_array::cast::AsArray;
use arrow_flight::{
    Action, Criteria, FlightData, FlightDescriptor, Ticket, decode::FlightRecordBatchStream,
    flight_descriptor::DescriptorType,
};
use arrow_schema::Schema;
use futures::{StreamExt, TryStreamExt, future::try_join_all, stream};
use prost::Message;
use support::{DATASET, Grid, KNOWN_THROUGH, Published, Row, batches, closes, daily, minutes, receipt, spec};
use tonic::Request;
use trellis_proto::{
    Code, DatasetName, Error, FieldName, SeriesQuery, Symbols, TimeRange, pb, ticket, time::DAY_NS,
};

fn one_symbol() -> BTreeMap<String, Vec<Row>> {
    BTreeMap::from([("AMZN".to_owned(), daily(3_650, 0))])
}

/// The right answer, computed from the rows.
fn oracle(series: &BTreeMap<String, Vec<Row>>, query: &SeriesQuery) -> Vec<(String, i64, Option<f64>)> {
    let mut answer = Vec::new();
    for (symbol, rows) in series {
        let asked = match &query.symbols {
            Symbols::All => true,
            Symbols::List(list) => list.iter().any(|s| s.as_str() == symbol),
        };
        if !asked {
            continue;
        }
        let mut latest: BTreeMap<i64, (i64, Option<i64>)> = BTreeMap::new();
        for (ts, known, seed) in rows {
            let seen = query.as_of.is_none_or(|as_of| *known <= as_of) && query.range.contains(*ts);
            if seen && latest.get(ts).is_none_or(|(best, _)| known > best) {
                latest.insert(*ts, (*known, *seed));
            }
        }
        answer.extend(
            latest.into_iter().map(|(ts, (_, seed))| (symbol.clone(), ts, seed.map(|s| s as f64 / 4.0))),
        );
    }
    answer
}

fn query(symbols: &[&str]) -> SeriesQuery {
    let mut query = SeriesQuery::new(DatasetName::new(DATASET).unwrap(), Symbols::new(symbols).unwrap());
    query.fields = vec![FieldName::new("close").unwrap()];
    query
}

#[tokio::test]
async fn a_json_ticket_is_answered_with_exactly_the_rows_cold_and_warm() {
    let series = one_symbol();
    let grid = Grid::start(series.clone()).await;
    let ticket = format!(
        r#"{{"dataset": "{DATASET}", "fields": ["close"], "symbols": ["AMZN"], "start": "2001-03-01", "end": "2007-01-01"}}"#
    );
    let want = oracle(&series, &ticket::decode(ticket.as_bytes()).unwrap());
    assert!(want.len() > 2_000);

    let cold = grid.get(ticket.clone()).await.unwrap();
    assert_eq!(closes(&cold), want);
    let said = receipt(&cold);
    assert_eq!((said.rows, said.chunks_hit, said.head.as_str()), (want.len() as u64, 0, "head-0"));
    assert_eq!((said.version_min, said.version_max, said.known_through_ns), (7, 7, KNOWN_THROUGH));
    assert_eq!(said.shards, ["shard-0"]);
    assert!(!said.stale);

    let calls = grid.shard.fetches().len();
    let warm = grid.get(ticket).await.unwrap();
    assert_eq!(closes(&warm), want);
    let said = receipt(&warm);
    assert_eq!((said.chunks_fetched, said.chunks_joined, said.rows_fetched), (0, 0, 0));
    assert_eq!(said.queued_us, 0, "nobody was before it");
    assert_eq!(grid.shard.fetches().len(), calls, "a hit asks no shard");
    assert_eq!(warm.len(), 3, "schema, dictionary, rows");
}

#[tokio::test]
async fn a_hit_whose_chunks_are_large_enough_to_be_shared_is_whole() {
    let series = BTreeMap::from([("AMZN".to_owned(), minutes(12_000))]);
    let grid = Grid::start(series.clone()).await;
    let query = query(&["AMZN"]);
    for chunks_hit in [0, 1] {
        let answer = grid.get(ticket::encode(&query)).await.unwrap();
        assert_eq!(closes(&answer), oracle(&series, &query));
        assert_eq!(receipt(&answer).chunks_hit, chunks_hit);
    }
}

#[tokio::test]
async fn random_questions_are_answered_as_the_oracle_answers_them() {
    let symbols = ["A", "AMZN", "B", "IBM", "ZZ"];
    let series: BTreeMap<String, Vec<Row>> = symbols
        .iter()
        .enumerate()
        .map(|(i, symbol)| (symbol.to_string(), daily(400 + 300 * i as i64, i as i64 * 7)[i * 50..].to_vec()))
        .collect();
    let grid = Grid::start(series.clone()).await;
    // a small random generator; the seed is the name of the test
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = |n: i64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as i64 % n
    };
    let begin = 10_957 * DAY_NS;
    for round in 0..150 {
        let mut query = query(&["*"]);
        if random(3) > 0 {
            let chosen: Vec<&str> = symbols.iter().copied().filter(|_| random(2) == 0).collect();
            query.symbols = Symbols::new(if chosen.is_empty() { vec!["B"] } else { chosen }).unwrap();
        }
        let mut bound =
            || (random(4) > 0).then(|| begin + random(1_800) * DAY_NS - 3 * DAY_NS + random(3) - 1);
        let (a, b) = (bound(), bound());
        query.range = match (a, b) {
            (Some(a), Some(b)) => TimeRange { start: Some(a.min(b)), end: Some(a.max(b)) },
            (start, end) => TimeRange { start, end },
        };
        query.as_of = [None, Some(9), Some(10), Some(15), Some(20), Some(99)][random(6) as usize];
        let answer = grid.get(ticket::encode(&query)).await.unwrap();
        assert_eq!(closes(&answer), oracle(&series, &query), "round {round}: {query:?}");
        let said = receipt(&answer);
        let rows: usize = batches(&answer).iter().map(|b| b.num_rows()).sum();
        assert_eq!(said.rows, rows as u64);
        assert_eq!(said.as_of_ns, query.as_of);
    }
}

#[tokio::test]
async fn fields_come_in_the_order_asked_with_known_at_last() {
    let grid = Grid::start(one_symbol()).await;
    let ticket = format!(
        r#"{{"dataset": "{DATASET}", "fields": ["note", "close"], "symbols": "AMZN", "end": "2000-01-10", "known_at": true}}"#
    );
    let answer = batches(&grid.get(ticket).await.unwrap());
    let names: Vec<String> = answer[0].schema().fields().iter().map(|f| f.name().clone()).collect();
    assert_eq!(names, ["symbol", "ts", "note", "close", "known_at"]);
    let known = answer[0].column(4).as_primitive::<arrow_array::types::TimestampNanosecondType>();
    assert_eq!(known.values().to_vec(), [10, 10, 10, 20, 10, 10, 10, 10, 10], "the fourth day was corrected");
    assert!(answer[0].column(2).is_null(5) && answer[0].column(3).is_null(5));
}

#[tokio::test]
async fn five_hundred_symbols_come_in_a_few_messages() {
    let series: BTreeMap<String, Vec<Row>> = (0..500).map(|i| (format!("S{i:03}"), daily(252, i))).collect();
    let grid = Grid::start(series.clone()).await;
    let ask = query(&["*"]);
    for _ in ["cold", "warm"] {
        let answer = grid.get(ticket::encode(&ask)).await.unwrap();
        assert!(answer.len() <= 2 + 6, "{} messages", answer.len());
        assert_eq!(closes(&answer), oracle(&series, &ask));
    }
}

#[tokio::test]
async fn wrong_requests_are_refused_with_what_to_do() {
    let grid = Grid::start(one_symbol()).await;
    let json = |rest: &str| format!(r#"{{"dataset": "{DATASET}", {rest}}}"#);
    let cases = [
        ("garbage".to_owned(), Code::InvalidRequest, "SeriesRequest"),
        (String::new(), Code::InvalidRequest, "SeriesRequest"),
        (r#"{"dataset": "equities.dayly", "symbols": ["*"]}"#.to_owned(), Code::UnknownDataset, ""),
        (json(r#""symbols": ["AMZM"]"#), Code::UnknownSymbol, "did you mean AMZN?"),
        (json(r#""symbols": ["AMZN"], "fields": ["Close"]"#), Code::InvalidRequest, ""),
        (json(r#""symbols": ["AMZN"], "fields": ["clos"]"#), Code::UnknownField, "did you mean close?"),
        (
            json(r#""symbols": ["AMZN"], "start": "2010-01-01", "end": "2009-01-01""#),
            Code::InvalidRequest,
            "",
        ),
        (json(r#""symbols": [], "fields": ["close"]"#), Code::InvalidRequest, ""),
        (json(r#""symbols": ["AMZN"], "limit": 5"#), Code::InvalidRequest, ""),
        (json(r#""symbols": ["AMZN"], "rows_max": 100"#), Code::TooLarge, "parts"),
    ];
    for (ticket, code, hint) in cases {
        let error = grid.get(ticket.clone()).await.unwrap_err();
        assert_eq!(error.code(), code, "{ticket}: {error:?}");
        assert!(error.hint_text().contains(hint), "{ticket}: {error:?}");
        assert!(!error.retryable());
    }
    assert_eq!(
        receipt(&grid.get(ticket::encode(&query(&["AMZN"]))).await.unwrap()).rows,
        3_650,
        "it still serves"
    );
}

#[tokio::test]
async fn an_answer_longer_than_the_limit_is_refused_unread_or_cut_short_by_an_error() {
    let grid = Grid::start_with(one_symbol(), |config| config.answer_bytes_max = 10_000).await;
    let error = grid.get(ticket::encode(&query(&["AMZN"]))).await.unwrap_err();
    assert_eq!(error.code(), Code::TooLarge);
    assert!(grid.shard.fetches().is_empty(), "refused before anything was read");
}

#[tokio::test]
async fn no_rows_are_an_answer() {
    let grid = Grid::start(one_symbol()).await;
    for range in
        [r#""start": "1950-01-01", "end": "1960-01-01""#, r#""start": "2001-01-01", "end": "2001-01-01""#]
    {
        let ticket =
            format!(r#"{{"dataset": "{DATASET}", "fields": ["close"], "symbols": ["AMZN"], {range}}}"#);
        let answer = grid.get(ticket).await.unwrap();
        assert_eq!(closes(&answer), []);
        assert_eq!((receipt(&answer).rows, receipt(&answer).known_through_ns), (0, KNOWN_THROUGH));
    }
}

#[tokio::test]
async fn a_failure_before_the_first_row_is_the_whole_response() {
    let grid = Grid::start(one_symbol()).await;
    grid.shard.break_symbol("AMZN");
    let error = grid.get(ticket::encode(&query(&["AMZN"]))).await.unwrap_err();
    assert_eq!((error.code(), error.retryable()), (Code::Unavailable, true));
    let (dataset, symbol, shard) = error.place();
    assert_eq!((dataset, symbol, shard), (DATASET, "AMZN", "shard-0"));
    grid.shard.mend();
    assert!(grid.get(ticket::encode(&query(&["AMZN"]))).await.is_ok());
}

#[tokio::test]
async fn a_failure_in_the_middle_is_an_error_after_the_rows_before_it() {
    let series: BTreeMap<String, Vec<Row>> = (0..60).map(|i| (format!("S{i:02}"), daily(3_650, i))).collect();
    let grid = Grid::start(series).await;
    grid.shard.break_symbol("S59");
    let mut flight = grid.flight().await;
    let mut stream = flight.do_get(Ticket::new(ticket::encode(&query(&["*"])))).await.unwrap().into_inner();
    let mut messages = 0;
    let failure = loop {
        match stream.message().await {
            Ok(Some(_)) => messages += 1,
            Ok(None) => panic!("a part of an answer passed for the whole"),
            Err(status) => break Error::from_status(&status),
        }
    };
    assert!(messages > 3);
    assert_eq!((failure.code(), failure.place().1), (Code::Unavailable, "S59"));
}

#[tokio::test]
async fn a_deadline_ends_the_wait_for_a_shard() {
    let grid = Grid::start(one_symbol()).await;
    grid.shard.hold(true);
    let mut request = Request::new(Ticket::new(ticket::encode(&query(&["AMZN"]))));
    request.metadata_mut().insert("grpc-timeout", "80m".parse().unwrap());
    let status = grid.flight().await.do_get(request).await.unwrap_err();
    assert!(matches!(status.code(), tonic::Code::DeadlineExceeded | tonic::Code::Cancelled), "{status:?}");
    grid.shard.hold(false);
    assert!(grid.get(ticket::encode(&query(&["AMZN"]))).await.is_ok());
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_leaves_nothing_pinned() {
    let series: BTreeMap<String, Vec<Row>> = (0..60).map(|i| (format!("S{i:02}"), daily(3_650, i))).collect();
    let grid = Grid::start(series).await;
    let mut flight = grid.flight().await;
    let mut stream = flight.do_get(Ticket::new(ticket::encode(&query(&["*"])))).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();
    drop(stream);
    drop(flight);
    let mut head = grid.head().await;
    let settled = async {
        loop {
            let stats = head.stats(pb::StatsRequest {}).await.unwrap().into_inner();
            if stats.requests == 1 && stats.pinned_bytes == 0 && stats.in_flight_bytes == 0 {
                return stats;
            }
            tokio::task::yield_now().await;
        }
    };
    let stats = tokio::time::timeout(Duration::from_secs(20), settled).await.expect("nothing stays pinned");
    assert_eq!(stats.requests_failed, 0, "leaving is no failure");
}

#[tokio::test]
async fn readers_that_stop_hold_their_requests_and_not_their_answers() {
    // Not more on one connection with a small window: its DATA frames would shrink to single bytes, which h2 takes for an attack.
    const READERS: u64 = 80;
    const BUDGET: u64 = 16 << 20;
    let series = one_symbol();
    let grid = Grid::start_with(series.clone(), |config| config.cache_bytes = BUDGET).await;
    let mut query = query(&["AMZN"]);
    query.fields.clear();
    let want = oracle(&series, &query);
    let whole = receipt(&grid.get(ticket::encode(&query)).await.unwrap()).bytes;
    let flight = grid.stock_flight().await;
    let mut stopped = Vec::new();
    for _ in 0..READERS {
        let mut flight = flight.clone();
        stopped.push(flight.do_get(Ticket::new(ticket::encode(&query))).await.unwrap().into_inner());
    }
    let stats = grid.head().await.stats(pb::StatsRequest {}).await.unwrap().into_inner();
    let (requests, ahead) = (READERS * (16 << 10), BUDGET / 16);
    assert!(READERS * whole > 2 * (requests + ahead), "{whole} bytes each would show");
    assert!(stats.pinned_bytes <= requests + ahead + 2 * whole, "{} are pinned", stats.pinned_bytes);
    for messages in try_join_all(stopped.into_iter().map(|answer| answer.try_collect())).await.unwrap() {
        let messages: Vec<FlightData> = messages;
        assert_eq!(closes(&messages), want);
    }
}

#[tokio::test]
async fn readers_of_wide_answers_that_stop_hold_one_message_each() {
    const READERS: u64 = 6;
    const BUDGET: u64 = 28 << 20;
    const MESSAGE: u64 = 512 << 10;
    let series: BTreeMap<String, Vec<Row>> = (0..30).map(|i| (format!("S{i:02}"), daily(3_650, i))).collect();
    let grid = Grid::start_with(series.clone(), |config| config.cache_bytes = BUDGET).await;
    let query = query(&["*"]);
    grid.get(ticket::encode(&query)).await.unwrap();
    let mut stopped = Vec::new();
    for reader in 0..READERS {
        let mut flight = grid.stock_flight().await;
        let mut request = Request::new(Ticket::new(ticket::encode(&query)));
        // large answers of one unit wait for each other
        request.metadata_mut().insert("trellis-unit", format!("unit-{reader}").parse().unwrap());
        let mut stream = flight.do_get(request).await.unwrap().into_inner();
        let mut messages = Vec::new();
        // schema and dictionary are sent with the first rows
        while messages.len() < 3 {
            messages.push(stream.message().await.unwrap().unwrap());
        }
        stopped.push((messages, stream));
    }
    // whole calls of another kind: a transport that asks for too much has time to do it
    let mut head = grid.head().await;
    let held = READERS * (MESSAGE + (16 << 10)) + BUDGET / 16;
    for _ in 0..20 {
        let pinned = head.stats(pb::StatsRequest {}).await.unwrap().into_inner().pinned_bytes;
        assert!(pinned < held, "{pinned} bytes are pinned: more than {held}");
    }
    let (mut messages, stream) = stopped.swap_remove(0);
    drop(stopped);
    messages.extend(stream.try_collect::<Vec<FlightData>>().await.unwrap());
    assert_eq!(closes(&messages), oracle(&series, &query));
}

#[tokio::test]
async fn a_receipt_says_how_long_the_answer_stood_in_queues() {
    let series = BTreeMap::from([("AMZN".to_owned(), minutes(450_000))]);
    let grid = Grid::start_with(series, |config| config.cache_bytes = 64 << 20).await;
    let ask = ticket::encode(&query(&["AMZN"]));
    let mut first = grid.stock_flight().await.do_get(Ticket::new(ask.clone())).await.unwrap().into_inner();
    // two answers of this size exceed a unit's share
    let mut flight = grid.flight().await;
    let mut same_connection = flight.clone();
    let second = flight.do_get(Ticket::new(ask));
    let passed = async {
        let mut few = query(&["AMZN"]);
        few.range.end = Some(10_958 * DAY_NS);
        // this read comes after the second and is small: when it is answered, the second still waits
        let answer = same_connection.do_get(Ticket::new(ticket::encode(&few))).await.unwrap().into_inner();
        answer.try_collect::<Vec<FlightData>>().await.unwrap();
        while first.message().await.unwrap().is_some() {}
    };
    let (second, ()) = futures::join!(second, passed);
    let second: Vec<FlightData> = second.unwrap().into_inner().try_collect().await.unwrap();
    let said = receipt(&second);
    assert_eq!(said.rows, 450_000);
    assert!(0 < said.queued_us && said.queued_us <= said.elapsed_us, "{said:?}");
}

#[tokio::test]
async fn an_answer_that_gets_no_room_ends_with_its_error_and_not_inside_a_message() {
    let grid = Grid::start_with(one_symbol(), |config| config.cache_bytes = 4 << 20).await;
    let ask = ticket::encode(&query(&["AMZN"]));
    grid.get(ask.clone()).await.unwrap();
    let mut stopped = Vec::new();
    // more than there is room for, each on its own connection
    for _ in 0..60 {
        let mut flight = grid.stock_flight().await;
        stopped.push((flight.do_get(Ticket::new(ask.clone())).await.unwrap().into_inner(), flight));
    }
    let mut flight = grid.flight().await;
    let mut request = Request::new(Ticket::new(ask.clone()));
    request.metadata_mut().insert("grpc-timeout", "200m".parse().unwrap());
    let mut answer = flight.do_get(request).await.unwrap().into_inner();
    let error = loop {
        match answer.message().await {
            Ok(Some(message)) => assert!(message.data_body.len() < 1_000, "schema and dictionary at most"),
            Ok(None) => panic!("an answer without its rows"),
            Err(status) => break Error::from_status(&status),
        }
    };
    assert_eq!((error.code(), error.retryable()), (Code::DeadlineExceeded, true), "{error:?}");
    drop(stopped);
    assert!(grid.get(ask).await.is_ok(), "when the readers have left there is room");
}

#[tokio::test]
async fn flights_are_listed_with_their_schemas() {
    let grid = Grid::start(one_symbol()).await;
    let mut flight = grid.flight().await;
    let all: Vec<_> =
        flight.list_flights(Criteria::default()).await.unwrap().into_inner().try_collect().await.unwrap();
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].flight_descriptor.as_ref().unwrap().path, [DATASET]);
    let schema = all[0].clone().try_decode_schema().unwrap();
    assert_eq!(schema, *spec().answer_schema(&[0, 1, 2], false));

    let none = flight.list_flights(Criteria { expression: "fx.".into() }).await.unwrap().into_inner();
    assert_eq!(none.count().await, 0);

    let info =
        flight.get_flight_info(FlightDescriptor::new_path(vec![DATASET.into()])).await.unwrap().into_inner();
    let ticket = info.endpoint[0].ticket.clone().unwrap();
    let rows = flight.do_get(ticket).await.unwrap().into_inner();
    let rows = FlightRecordBatchStream::new_from_flight_data(rows.map_err(Into::into));
    let rows: usize = rows.map(|batch| batch.unwrap().num_rows()).collect::<Vec<_>>().await.iter().sum();
    assert_eq!(rows, 3_650);

    let command = FlightDescriptor::new_cmd(format!(
        r#"{{"dataset": "{DATASET}", "fields": ["note"], "symbols": "*"}}"#
    ));
    let schema = Schema::try_from(flight.get_schema(command).await.unwrap().into_inner()).unwrap();
    assert_eq!(schema, *spec().answer_schema(&[2], false));

    let unknown =
        flight.get_flight_info(FlightDescriptor::new_path(vec!["no.such".into()])).await.unwrap_err();
    assert_eq!(Error::from_status(&unknown).code(), Code::UnknownDataset);
    let poll = flight.poll_flight_info(FlightDescriptor::default()).await.unwrap_err();
    assert_eq!(poll.code(), tonic::Code::Unimplemented);

    let symbols = flight.do_action(Action::new("symbols", DATASET)).await.unwrap().into_inner();
    let symbols: Vec<_> = symbols.map(|result| result.unwrap().body).collect().await;
    assert_eq!(symbols, ["AMZN"]);
}

fn publish(unit: &str, epoch: u64, batches: usize) -> Vec<FlightData> {
    let header =
        pb::PublishHeader { dataset: "signals.mom".into(), unit: unit.into(), epoch, ..Default::default() };
    let mut descriptor = FlightDescriptor::new_cmd(header.encode_to_vec());
    descriptor.r#type = DescriptorType::Cmd.into();
    let mut first = FlightData::new().with_data_header(b"schema".to_vec()).with_data_body(vec![]);
    first.flight_descriptor = Some(descriptor);
    let rest = (0..batches).map(|i| {
        FlightData::new().with_data_header(b"batch".to_vec()).with_data_body(vec![i as u8; 1 << 20])
    });
    std::iter::once(first).chain(rest).collect()
}

#[tokio::test]
async fn a_publish_is_streamed_to_the_home_shard_and_its_word_comes_back() {
    let grid = Grid::start(one_symbol()).await;
    let mut flight = grid.flight().await;
    let reply = flight.do_put(stream::iter(publish("mom", 3, 12))).await.unwrap().into_inner();
    let results: Vec<_> = reply.try_collect().await.unwrap();
    let ack = pb::PublishAck::decode(results[0].app_metadata.clone()).unwrap();
    assert_eq!((ack.version, ack.rows, ack.shard.as_str()), (8, 5, "shard-0"));
    assert_eq!(grid.shard.publishes(), [Published::Whole { unit: "mom".into(), messages: 13 }]);

    let fenced = flight.do_put(stream::iter(publish("mom", 1, 0))).await.unwrap_err();
    let fenced = Error::from_status(&fenced);
    assert_eq!((fenced.code(), fenced.message()), (Code::Fenced, "fenced by epoch 2"));

    let mut request = Request::new(stream::iter(publish("mom", 3, 0)));
    request.metadata_mut().insert("trellis-unit", "other".parse().unwrap());
    let refused = flight.do_put(request).await.unwrap_err();
    assert_eq!(Error::from_status(&refused).code(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_publisher_that_breaks_off_publishes_nothing() {
    let grid = Grid::start(one_symbol()).await;
    let mut flight = grid.flight().await;
    let (sent, received) = tokio::sync::mpsc::channel(1);
    let put = tokio::spawn(async move {
        let messages = tokio_stream::wrappers::ReceiverStream::new(received);
        flight.do_put(messages).await.map(|_| ())
    });
    for message in publish("mom", 3, 2) {
        sent.send(message).await.unwrap();
    }
    // the publisher dies: the stream never ends
    put.abort();
    let noticed = async {
        while grid.shard.publishes().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), noticed).await.expect("the shard hears of it");
    assert_eq!(grid.shard.publishes(), [Published::Broken]);
    drop(sent);
}

async fn put(grid: &Grid, messages: Vec<FlightData>) -> Result<pb::PublishAck, Error> {
    let mut flight = grid.flight().await;
    let reply = flight.do_put(stream::iter(messages)).await.map_err(|status| Error::from_status(&status))?;
    let results: Vec<_> = reply.into_inner().try_collect().await.unwrap();
    Ok(pb::PublishAck::decode(results[0].app_metadata.clone()).unwrap())
}

#[tokio::test]
async fn a_publish_is_in_the_ledger_before_it_is_acknowledged_and_a_refused_one_is_not() {
    let grid = Grid::start(one_symbol()).await;
    assert!(put(&grid, publish("mom", 3, 1)).await.unwrap().recorded);
    let [run]: [pb::RunRecord; 1] = grid.shard.recorded().try_into().unwrap();
    assert_eq!((run.unit.as_str(), run.output_dataset.as_str(), run.epoch), ("mom", "signals.mom", 3));
    assert_eq!((run.outcome(), run.output_version, run.rows), (pb::RunOutcome::Succeeded, Some(8), 5));
    assert!(run.started_ns > 0 && run.finished_ns >= run.started_ns && !run.run_id.is_empty());
    assert!(run.code_digest.contains("127.0.0.1:"), "who it was: {}", run.code_digest);
    assert_eq!(put(&grid, publish("mom", 1, 1)).await.unwrap_err().code(), Code::Fenced);
    assert_eq!(grid.shard.recorded().len(), 1);
}

#[tokio::test]
async fn a_publish_whose_record_the_ledger_refuses_is_acknowledged_all_the_same() {
    let grid = Grid::start(one_symbol()).await;
    grid.shard.refuse_records([Error::new(Code::InvalidRequest, "not such a record")]);
    let ack = put(&grid, publish("mom", 3, 1)).await.unwrap();
    assert_eq!((ack.version, ack.recorded), (8, false));
    assert!(grid.shard.recorded().is_empty());
}

#[tokio::test]
async fn a_ledger_that_is_away_holds_up_no_publish_and_has_it_when_it_is_back() {
    let grid = Grid::start(one_symbol()).await;
    grid.shard.hold_writes(true);
    let ack = put(&grid, publish("mom", 3, 1)).await.unwrap();
    assert_eq!((ack.version, ack.recorded), (8, false));
    // The ledger takes this record, and refuses the next one.
    grid.shard.refuse_records([Error::new(Code::Unavailable, "the disk is away")]);
    grid.shard.hold_writes(false);
    let recorded = grid.shard.recorded_in_the_end(1).await;
    assert_eq!((recorded.len(), recorded[0].unit.as_str()), (1, "mom"));
}

#[tokio::test]
async fn a_publish_is_recorded_though_its_publisher_dies_after_the_commit() {
    let grid = Grid::start(one_symbol()).await;
    grid.shard.hold_writes(true);
    let mut flight = grid.flight().await;
    let put =
        tokio::spawn(async move { flight.do_put(stream::iter(publish("mom", 3, 1))).await.map(|_| ()) });
    while grid.shard.publishes().is_empty() {
        tokio::task::yield_now().await;
    }
    put.abort();
    assert!(put.await.unwrap_err().is_cancelled());
    grid.shard.hold_writes(false);
    assert_eq!(grid.shard.recorded_in_the_end(1).await[0].unit, "mom");
}

#[tokio::test]
async fn changes_of_a_dataset_and_the_end_of_an_ownership_are_in_the_ledger() {
    let grid = Grid::start(one_symbol()).await;
    let mut head = grid.head().await;
    let dataset = "signals.mom".to_owned();
    let alter = pb::AlterDatasetRequest {
        dataset: dataset.clone(),
        id: "a1".into(),
        by: "me".into(),
        drop: vec!["x".into()],
        ..Default::default()
    };
    assert_eq!(head.alter_dataset(alter.clone()).await.unwrap().into_inner().version, 9);
    let rename =
        pb::RenameDatasetRequest { dataset: dataset.clone(), to: "signals.mum".into(), ..Default::default() };
    head.rename_dataset(rename).await.unwrap();
    head.drop_dataset(pb::DropDatasetRequest { dataset: dataset.clone(), ..Default::default() })
        .await
        .unwrap();
    let lease = |unit: &str| pb::AcquireLeaseRequest {
        dataset: dataset.clone(),
        unit: unit.into(),
        ..Default::default()
    };
    head.acquire_lease(lease("mom")).await.unwrap();
    head.acquire_lease(lease("")).await.unwrap();
    let recorded = grid.shard.recorded();
    let units: Vec<&str> = recorded.iter().map(|run| run.unit.as_str()).collect();
    assert_eq!(units, ["alter:signals.mom", "rename:signals.mom", "drop:signals.mom", "release:signals.mom"]);
    assert_eq!((recorded[0].run_id.as_str(), recorded[0].output_version), ("a1", Some(9)));
    assert_eq!(recorded[1].output_dataset, "signals.mum");

    // the client leaves before the shard has answered
    grid.shard.hold_writes(true);
    let asked = tokio::spawn(async move { head.alter_dataset(alter).await.map(|_| ()) });
    grid.shard.changed(4).await;
    asked.abort();
    assert!(asked.await.unwrap_err().is_cancelled());
    grid.shard.hold_writes(false);
    assert_eq!(grid.shard.recorded_in_the_end(5).await[4].unit, "alter:signals.mom");
}

#[tokio::test]
async fn questions_about_datasets_and_leases_are_answered() {
    let grid = Grid::start(one_symbol()).await;
    let mut head = grid.head().await;
    let described = head.describe(pb::DescribeRequest::default()).await.unwrap().into_inner().datasets;
    assert_eq!(described.len(), 1);
    assert_eq!((described[0].version, described[0].symbols), (7, 1));
    let symbols = pb::SymbolsRequest { dataset: DATASET.into() };
    assert_eq!(head.symbols(symbols).await.unwrap().into_inner().symbols, ["AMZN"]);
    let sessions = pb::SessionsRequest { dataset: DATASET.into(), ..Default::default() };
    assert_eq!(head.sessions(sessions).await.unwrap().into_inner().sessions_ns.len(), 3_650);

    let acquire = |unit: &str| pb::AcquireLeaseRequest {
        dataset: "signals.mom".into(),
        unit: unit.into(),
        ..Default::default()
    };
    assert_eq!(head.acquire_lease(acquire("mom")).await.unwrap().into_inner().epoch, 3);
    let fenced = Error::from_status(&head.acquire_lease(acquire("late")).await.unwrap_err());
    assert_eq!((fenced.code(), fenced.message()), (Code::Fenced, "fenced by epoch 4, held by early"));
    let runs = pb::RecordRunsRequest { runs: vec![pb::RunRecord::default(); 2] };
    assert_eq!(head.record_runs(runs).await.unwrap().into_inner().version, 2);
    let unknown = head.describe(pb::DescribeRequest { dataset: "no.such".into() }).await.unwrap_err();
    assert_eq!(Error::from_status(&unknown).code(), Code::UnknownDataset);
}

#[tokio::test]
async fn ten_years_and_five_years_cost_one_fetch_of_the_union() {
    for five_first in [false, true] {
        let grid = Grid::start(one_symbol()).await;
        let ten = ticket::encode(&query(&["AMZN"]));
        let mut five = query(&["AMZN"]);
        five.range.start = Some((10_957 + 1_800) * DAY_NS);
        let five = ticket::encode(&five);
        grid.shard.hold(true);
        let (first, second) = if five_first { (five, ten) } else { (ten, five) };
        let (a, b) = tokio::join!(grid.get(first), async {
            // the first read is in flight
            while grid.shard.fetches().is_empty() {
                tokio::task::yield_now().await;
            }
            let second = grid.get(second);
            tokio::pin!(second);
            let soon = tokio::time::sleep(Duration::from_millis(50));
            tokio::select! {
                answer = &mut second => return answer,
                () = soon => grid.shard.hold(false),
            }
            second.await
        });
        let rows = daily(3_650, 0).len() as u64;
        assert_eq!(grid.shard.rows_fetched(), rows, "each row once");
        let stats = grid.head().await.stats(pb::StatsRequest {}).await.unwrap().into_inner();
        assert_eq!((stats.requests, stats.rows_fetched, stats.rows_union), (2, rows, rows));
        assert_eq!(stats.rows_asked, receipt(&a.unwrap()).rows + receipt(&b.unwrap()).rows);
        assert!(stats.chunks_joined > 0);
        assert_eq!(stats.datasets.len(), 1);
        assert_eq!(stats.datasets[0].requests, 2);
    }
}

#[tokio::test]
async fn small_fetches_share_a_connection_and_large_ones_at_once_do_not() {
    const LARGE: usize = 3;
    let names: Vec<String> = (0..90).map(|i| format!("S{i:02}")).collect();
    let series = names.iter().map(|name| (name.clone(), daily(3_650, 0))).collect();
    let grid = Grid::start(series).await;
    let (small, large) = names.split_at(6);
    for name in small {
        grid.get(ticket::encode(&query(&[name]))).await.unwrap();
    }
    let from = grid.shard.fetched_from();
    assert!(from.len() == small.len() && from.iter().all(|addr| *addr == from[0]), "{from:?}");

    grid.shard.hold(true);
    let mut reads = Vec::new();
    for names in large.chunks(large.len() / LARGE) {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let before = grid.shard.fetches().len();
        let mut read = Box::pin(grid.get(ticket::encode(&query(&names))));
        while grid.shard.fetches().len() == before {
            assert!(futures::poll!(&mut read).is_pending());
            tokio::task::yield_now().await;
        }
        reads.push(read);
    }
    let from: HashSet<_> = grid.shard.fetched_from().split_off(small.len()).into_iter().collect();
    assert_eq!(from.len(), LARGE, "each on its own: {from:?}");
    grid.shard.hold(false);
    assert!(futures::future::join_all(reads).await.iter().all(Result::is_ok));
}

#[tokio::test]
async fn what_is_in_flight_when_the_head_stops_is_finished_and_new_requests_are_retryable() {
    let mut grid = Grid::start(one_symbol()).await;
    grid.shard.hold(true);
    let channel = grid.channel().await;
    let flight = arrow_flight::flight_service_client::FlightServiceClient::new(channel);
    let ticket = ticket::encode(&query(&["AMZN"]));
    let (mut early, mut late) = (flight.clone(), flight);
    let first = early.do_get(Ticket::new(ticket.clone()));
    tokio::pin!(first);
    assert!(tokio::time::timeout(Duration::from_millis(100), &mut first).await.is_err(), "held");
    grid.stop();
    let refused = async {
        loop {
            match late.do_get(Ticket::new(ticket.clone())).await {
                Err(status) => return Error::from_status(&status),
                Ok(_) => tokio::task::yield_now().await,
            }
        }
    };
    let refused = tokio::time::timeout(Duration::from_secs(5), refused);
    let (first, refused) = tokio::join!(
        async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            grid.shard.hold(false);
            first.await
        },
        refused
    );
    let refused = refused.expect("new requests are refused");
    assert!(refused.retryable(), "{refused:?}");
    let messages: Vec<_> = first.unwrap().into_inner().try_collect().await.unwrap();
    assert_eq!(receipt(&messages).rows, 3_650);
    grid.stopped().await.unwrap();
}
