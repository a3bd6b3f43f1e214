//! The metrics and traces of a head, as a real OTLP receiver gets them. One test in its own process, because telemetry is installed once
//! per process.

// clippy lets tests unwrap, but not what tests call
#![allow(clippy::unwrap_used)]

// each test binary uses its own part of it
#[allow(dead_code, unreachable_pub, missing_docs)]
mod support;

use std::{collections::BTreeMap, time::Duration};

use arrow_flight::Ticket;
use support::{DATASET, Grid, daily, minutes};
use tonic::Request;
use trellis_fabric::{
    telemetry::{Settings, Telemetry},
    testing::{OtlpReceiver, Received, ReceivedSpan},
};
use trellis_proto::pb;

/// Longest wait for the head to do what the test wants. An idle machine needs a hundredth of it.
const PATIENCE: Duration = Duration::from_secs(60);

fn ask(symbol: &str, rest: &str) -> String {
    format!(r#"{{"dataset": "{DATASET}", "symbols": ["{symbol}"], "fields": ["close"]{rest}}}"#)
}

/// Asks the head for its counters until they are as expected.
async fn until(grid: &Grid, met: impl Fn(&pb::HeadStats) -> bool) {
    let mut head = grid.head().await;
    let mut stats = pb::HeadStats::default();
    let asked = async {
        while !met(&stats) {
            stats = head.stats(pb::StatsRequest {}).await.unwrap().into_inner();
            tokio::task::yield_now().await;
        }
    };
    let ended = tokio::time::timeout(PATIENCE, asked).await;
    assert!(ended.is_ok(), "the counters stay at {stats:?}");
}

/// Reads until a read ends as expected.
async fn read_until(grid: &Grid, expected: impl Fn(bool) -> bool) {
    let asked = async {
        while !expected(grid.get(ask("AMZN", "")).await.is_ok()) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.unwrap();
}

/// How many waits in one of the head's queues have been recorded.
fn waits(received: &Received, queue: &str) -> u64 {
    received.metric("trellis.head.queue.duration").map_or(0, |waits| waits.count(&[("trellis.queue", queue)]))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_head_counts_arrives_at_a_collector() {
    let receiver = OtlpReceiver::start().unwrap();
    let settings = Settings::read(|name| match name {
        "OTEL_EXPORTER_OTLP_ENDPOINT" => Some(receiver.endpoint()),
        // every request has a span
        "OTEL_TRACES_SAMPLER" => Some("parentbased_always_on".to_owned()),
        _ => None,
    });
    let telemetry = Telemetry::init_with("trellis-head", "head-0", &settings);
    let series = BTreeMap::from([
        ("AMZN".to_owned(), daily(3_650, 0)),
        ("MSFT".to_owned(), daily(3_650, 1)),
        ("NVDA".to_owned(), minutes(450_000)),
    ]);
    let grid = Grid::start_with(series, |config| config.cache_bytes = 64 << 20).await;

    for _ in ["cold", "warm"] {
        grid.get(ask("AMZN", "")).await.unwrap();
    }
    // two reads on one flight, which a change overtakes
    grid.shard.hold(true);
    let overtaken = async {
        // joined, and asked of the shard: a change overtakes no flight that is still queued
        until(&grid, |stats| stats.chunks_joined > 0 && stats.upstream_calls == 2).await;
        grid.shard.touch("MSFT");
        until(&grid, |stats| stats.poisoned_flights > 0).await;
        grid.shard.hold(false);
    };
    let (first, second, ()) = futures::join!(grid.get(ask("MSFT", "")), grid.get(ask("MSFT", "")), overtaken);
    assert!(first.is_ok() && second.is_ok());
    // a change of cached rows, which are then read again
    grid.shard.touch("AMZN");
    until(&grid, |stats| stats.invalidations > 0).await;
    grid.get(ask("AMZN", "")).await.unwrap();
    // a reader that stops with its unit's whole share, and one that gives up waiting for a part of it
    let wide = || {
        let mut request = Request::new(Ticket::new(ask("*", "")));
        request.metadata_mut().insert("trellis-unit", "wide".parse().unwrap());
        request
    };
    let flight = grid.stock_flight().await;
    let stopped = flight.clone().do_get(wide()).await.unwrap();
    let mut impatient = wide();
    impatient.metadata_mut().insert("grpc-timeout", "80m".parse().unwrap());
    assert!(flight.clone().do_get(impatient).await.is_err());
    until(&grid, |stats| stats.requests == 6).await;
    // a read without a shard
    grid.shard.go_away();
    read_until(&grid, |answered| !answered).await;
    grid.get(ask("AMZN", r#", "allow_stale": true"#)).await.unwrap();
    grid.shard.come_back();
    read_until(&grid, |answered| answered).await;
    // and a read whose rows are on their way
    grid.shard.hold(true);
    let mut fetching = flight.clone();
    let volume = ask("MSFT", "").replace("close", "volume");
    let fetching = tokio::spawn(async move { fetching.do_get(Ticket::new(volume)).await });
    until(&grid, |stats| stats.in_flight_bytes > 0).await;
    telemetry.shutdown().await;
    fetching.abort();
    drop(stopped);

    let received = receiver.received();
    let total =
        |name, attributes: &[(&str, &str)]| received.metric(name).and_then(|metric| metric.total(attributes));
    let counted: [(&str, &[(&str, &str)]); 12] = [
        ("trellis.head.chunks", &[("trellis.source", "hit")]),
        ("trellis.head.chunks", &[("trellis.source", "joined")]),
        ("trellis.head.chunks", &[("trellis.source", "fetched")]),
        ("trellis.head.upstream.rows", &[]),
        ("trellis.head.upstream.calls", &[]),
        ("trellis.head.memory", &[("trellis.state", "resident")]),
        ("trellis.head.memory", &[("trellis.state", "in_flight")]),
        ("trellis.head.memory", &[("trellis.state", "pinned")]),
        ("trellis.head.invalidations", &[]),
        ("trellis.head.flights.poisoned", &[]),
        ("trellis.head.reads", &[("trellis.dataset", DATASET)]),
        ("trellis.head.reads.stale", &[]),
    ];
    for (name, attributes) in counted {
        let value = total(name, attributes);
        assert!(value.is_some_and(|value| value > 0.0), "{name} {attributes:?}: {value:?}");
    }
    let sources = ["hit", "joined", "fetched"].map(|source| {
        let metric = received.metric("trellis.head.read.duration").unwrap();
        metric.count(&[("trellis.source", source), ("trellis.outcome", "served")])
    });
    assert!(sources.iter().all(|reads| *reads > 0), "{sources:?}");

    // the read that joined a flight names the call that served it, which is below the read that claimed
    let joined =
        |span: &&ReceivedSpan| span.attributes.get("trellis.chunks.joined").is_some_and(|n| n != "0");
    let joined = received.spans.iter().find(joined).unwrap();
    let linked = |span: &&ReceivedSpan| joined.raw.links.iter().any(|link| link.span_id == span.raw.span_id);
    let call = received.spans.iter().find(linked).unwrap_or_else(|| panic!("no link: {joined:#?}"));
    assert_eq!((joined.name.as_str(), call.name.as_str()), ("read", "fetch"));
    assert_eq!(joined.attributes["trellis.dataset"], DATASET);
    let claimed = received.spans.iter().find(|span| span.span_id == call.parent_span_id).unwrap();
    assert_eq!(claimed.name, "read");
    assert_ne!(claimed.trace_id, joined.trace_id, "the two requests have nothing else in common");

    let (fetched, asked) = (total("trellis.head.upstream.rows", &[]), total("trellis.head.rows.union", &[]));
    assert!(fetched.unwrap() > asked.unwrap(), "AMZN was fetched twice: {fetched:?} {asked:?}");
    for queue in ["admission", "shard"] {
        assert!(waits(&received, queue) > 0, "{queue}: {:?}", received.metric("trellis.head.queue.duration"));
    }
    for name in ["trellis.head.confirms", "trellis.head.claims.shed", "trellis.head.evictions"] {
        assert!(total(name, &[]).is_some(), "{name}");
    }
}
