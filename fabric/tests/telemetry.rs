//! Telemetry to a real OTLP receiver. One test in its own process, because telemetry is installed once per process.
#![allow(missing_docs, clippy::unwrap_used)] // a test may panic

mod service;

use std::time::Duration;

use service::{NAME, Probe, Server, streaming, unary};
use tracing::Instrument as _;
use trellis_fabric::{
    serve::Options,
    telemetry::{self, Dropped, KeyValue, Settings, Telemetry},
    testing::{OtlpReceiver, Received, ReceivedSpan, opentelemetry_proto::tonic::metrics::v1::metric::Data},
};

const WAIT_MAX: Duration = Duration::from_secs(30);
const LONG: Duration = Duration::from_secs(60);

fn span<'a>(received: &'a Received, name: &str, kind: &str) -> Option<&'a ReceivedSpan> {
    let kind = match kind {
        "internal" => 1,
        "server" => 2,
        _ => 3,
    };
    received.spans.iter().find(|span| span.name == name && span.raw.kind == kind)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_trace_runs_through_all_processes_and_logs_and_metrics_come_with_it() {
    let receiver = OtlpReceiver::start().unwrap();
    let settings = Settings::read(|name| match name {
        "OTEL_EXPORTER_OTLP_ENDPOINT" => Some(receiver.endpoint()),
        // every request has a span
        "OTEL_TRACES_SAMPLER" => Some("parentbased_always_on".to_owned()),
        _ => None,
    });
    let telemetry = Telemetry::init_with("trellis-probe", "probe-0", &settings);
    // as a program that embeds the grid may do
    let again = Telemetry::init("something-else", "x");
    assert!(telemetry::exporting());

    let far = Server::start(LONG).await;
    let near = Server::of(
        Probe { next: Some(far.channel()), ..Probe::default() },
        LONG,
        Options { endless: Vec::new(), ..Options::default() },
    )
    .await;

    let counter = telemetry::meter("probe").u64_counter("trellis.probe.calls").with_unit("{call}").build();
    let run = tracing::info_span!(target: "trellis", "run", session = "2016-08-10");
    let trace_id = async {
        tracing::info!(target: "trellis", answer = 42, "in the run");
        assert_eq!(unary(near.channel(), "Relay", "hello").await.unwrap(), "hello");
        counter.add(3, &[KeyValue::new("kind", "relay")]);
        telemetry::trace_id()
    }
    .instrument(run)
    .await;

    // a call outside of any span that fails, and a call whose answer is abandoned
    let status = unary(near.channel(), "Panic", "").await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Internal);
    let mut ticks = streaming(near.channel(), "Tick").await.unwrap();
    ticks.message().await.unwrap();
    drop(ticks);
    let status = unary(near.channel(), "NameOfTheClientsChoice", "").await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unimplemented);

    // the span of the abandoned answer ends when the server notices it
    near.stop.send(()).unwrap();
    near.ended.await.unwrap().unwrap();
    telemetry.shutdown().await;
    again.shutdown().await;
    assert!(!telemetry::exporting());

    let relay = format!("{NAME}/Relay");
    let echo = format!("{NAME}/Echo");
    let arrived = receiver
        .until(WAIT_MAX, |received| {
            let all = span(received, "run", "internal").is_some()
                && received.spans.iter().filter(|span| span.name.ends_with("/Tick")).count() == 2
                && received.metric("trellis.probe.calls").is_some()
                && received.logs.iter().any(|log| log.body == "in the run");
            all.then(|| received.clone())
        })
        .await
        .unwrap_or_else(|received| panic!("not all arrived: {received:#?}"));

    // run -> client -> server -> client -> server, one trace
    let chain =
        [("run", "internal"), (&relay, "client"), (&relay, "server"), (&echo, "client"), (&echo, "server")];
    let chain =
        chain.map(|(name, kind)| span(&arrived, name, kind).unwrap_or_else(|| panic!("no {kind} {name}")));
    assert_eq!(chain[0].parent_span_id, "");
    for pair in chain.windows(2) {
        assert_eq!(pair[1].parent_span_id, pair[0].span_id, "{} under {}", pair[1].name, pair[0].name);
    }
    assert!(chain.iter().all(|span| span.trace_id == trace_id));
    assert_eq!(chain[0].attributes["session"], "2016-08-10");
    let server = &chain[4].attributes;
    assert_eq!(server["rpc.system.name"], "grpc");
    assert_eq!(server["rpc.method"], echo);
    assert_eq!(server["rpc.response.status_code"], "OK");
    assert!(!server.contains_key("error.type"));
    assert_eq!(server["trellis.unit"], "probe-unit");

    let failed = span(&arrived, &format!("{NAME}/Panic"), "server").unwrap();
    assert_eq!(failed.attributes["rpc.response.status_code"], "INTERNAL");
    assert_eq!(failed.attributes["error.type"], "INTERNAL");
    assert_eq!(failed.raw.status.as_ref().unwrap().code, 2, "an error");
    assert_ne!(failed.trace_id, trace_id);
    let abandoned = |kind| span(&arrived, &format!("{NAME}/Tick"), kind).unwrap();
    for kind in ["client", "server"] {
        assert_eq!(abandoned(kind).attributes["rpc.response.status_code"], "CANCELLED", "{kind}");
    }
    assert_eq!(abandoned("client").raw.status.as_ref().unwrap().code, 2, "an error of the client");
    assert_ne!(abandoned("server").raw.status.as_ref().map_or(0, |status| status.code), 2);
    let unknown = span(&arrived, "grpc", "server").unwrap();
    assert_eq!(unknown.attributes["rpc.method"], "_OTHER");
    assert_eq!(unknown.attributes["rpc.method_original"], format!("{NAME}/NameOfTheClientsChoice"));

    for end in ["client", "server"] {
        let durations = arrived.metric(&format!("rpc.{end}.call.duration")).unwrap();
        assert_eq!(durations.unit, "s");
        let relayed = [("rpc.method", relay.as_str()), ("rpc.response.status_code", "OK")];
        assert_eq!(durations.count(&relayed), 1, "{end}: {durations:?}");
        let panicked = [("rpc.system.name", "grpc"), ("error.type", "INTERNAL")];
        assert_eq!(durations.count(&panicked), 1, "{end}: {durations:?}");
        assert!(matches!(durations.raw.data, Some(Data::ExponentialHistogram(_))), "{durations:?}");
    }
    let server = arrived.metric("rpc.server.call.duration").unwrap();
    assert_eq!(server.count(&[("rpc.method", "_OTHER")]), 1, "a name of the client's choice is no attribute");

    let resource = &chain[0].resource;
    assert_eq!(resource["service.name"], "trellis-probe");
    assert_eq!(resource["service.instance.id"], "probe-0");
    let log = arrived.logs.iter().find(|log| log.body == "in the run").unwrap();
    assert_eq!(log.trace_id, trace_id);
    assert_eq!((log.attributes["answer"].as_str(), log.severity.as_str()), ("42", "INFO"));
    let calls = arrived.metric("trellis.probe.calls").unwrap();
    assert_eq!((calls.total(&[("kind", "relay")]), calls.unit.as_str()), (Some(3.0), "{call}"));
    assert_eq!(arrived.metric("trellis.telemetry.dropped").unwrap().total(&[]), Some(0.0));
    assert_eq!(telemetry::dropped(), Dropped::default());
}
