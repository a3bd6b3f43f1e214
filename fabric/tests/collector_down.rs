//! A collector that accepts connections and never answers, by HTTP and by gRPC. One test in its own process.
#![allow(missing_docs, clippy::unwrap_used)] // a test may panic

mod service;

use std::time::{Duration, Instant};

use service::{Server, unary};
use trellis_fabric::telemetry::{self, SHUTDOWN_MAX, Settings, Telemetry};

/// Far more than the queues hold.
const ITEMS: u64 = 20_000;

#[tokio::test]
async fn a_collector_that_hangs_costs_telemetry_and_nothing_else() {
    let hole = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", hole.local_addr().unwrap());
    let settings = Settings::read(|name| match name {
        "OTEL_EXPORTER_OTLP_ENDPOINT" => Some(endpoint.clone()),
        // each protocol has its own way to hang
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL" => Some("http/protobuf".to_owned()),
        // every request has a span
        "OTEL_TRACES_SAMPLER" => Some("parentbased_always_on".to_owned()),
        // these log lines are for the exporter, not for the output of the test
        "TRELLIS_LOG" => Some("off".to_owned()),
        _ => None,
    });
    let telemetry = Telemetry::init_with("trellis-probe", "probe-0", &settings);
    assert!(telemetry::exporting());

    let server = Server::start(Duration::from_secs(1)).await;
    for i in 0..ITEMS {
        let span = tracing::info_span!(target: "trellis", "work", i);
        let _entered = span.enter();
        tracing::info!(target: "trellis", "at work");
    }
    assert_eq!(unary(server.channel(), "Echo", "still serving").await.unwrap(), "still serving");
    let dropped = telemetry::dropped();
    assert!(dropped.spans > ITEMS / 2 && dropped.spans <= ITEMS, "{dropped:?}");
    assert!(dropped.logs > ITEMS / 2 && dropped.logs <= ITEMS, "{dropped:?}");

    let started = Instant::now();
    telemetry.shutdown().await;
    let took = started.elapsed();
    // a busy machine takes longer than the bound
    assert!(took < 10 * SHUTDOWN_MAX, "the end took {took:?}");
}
