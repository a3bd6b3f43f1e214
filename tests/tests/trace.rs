//! One trace tells where a run's time went: from the strategy's run through the unit and a head to a shard, received by a
//! real OTLP collector endpoint from four real processes.
#![allow(clippy::unwrap_used)] // a test may panic

use std::{collections::BTreeSet, path::Path, process::Stdio, time::Duration};

use serde_json::json;
use trellis_fabric::testing::{OtlpReceiver, Received};
use trellis_proto::time::parse_time;
use trellis_tests::{
    grid::{import, spec},
    oracle::Row,
    processes::{Node, binary, client, static_url},
};

/// Four processes start, run and push; a tenth of it on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);
const SESSION: &str = "2016-08-10";

/// A unit whose strategy gives its input back: the child is a script that needs nothing but Python.
fn bundle(folder: &Path) {
    let package = folder.join("python/trellis");
    std::fs::create_dir_all(&package).unwrap();
    std::fs::write(package.join("__init__.py"), "").unwrap();
    let child = concat!(env!("CARGO_MANIFEST_DIR"), "/../qcu-runtime/tests/it/child.py");
    std::fs::copy(child, package.join("_child.py")).unwrap();
    let unit = json!({
        "version": 1, "unit": "echo", "module": "echo.py", "function": "echo",
        "schedule": {"kind": "manual"}, "calendar": "XNYS", "timeout": "60s",
        "inputs": [{"name": "px", "dataset": "equities.daily", "fields": ["close"]}],
        "output": {"dataset": "signals.echo", "fields": {"close": "float64"}},
        "code_digest": "sha256:1",
    });
    std::fs::write(folder.join("unit.json"), unit.to_string()).unwrap();
}

/// The services that a trace went through, if one went through all of them.
fn whole_trace(received: &Received) -> Option<BTreeSet<String>> {
    let service = |span: &trellis_fabric::testing::ReceivedSpan| span.resource["service.name"].clone();
    let runs =
        received.spans.iter().filter(|span| service(span) == "trellis-qcu" && span.parent_span_id.is_empty());
    runs.map(|run| received.trace(&run.trace_id).into_iter().map(service).collect::<BTreeSet<_>>())
        .find(|services| services.len() == 3)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_trace_runs_from_a_strategys_run_to_the_shard() {
    let receiver = OtlpReceiver::start().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let lake = folder.path().join("lake");
    std::fs::create_dir(&lake).unwrap();
    bundle(folder.path());

    let mut shard = Node::shard(&lake, 0, 1, folder.path()).unwrap();
    let mut head = Node::head(0, &[shard.addr()], folder.path()).unwrap();
    for node in [&mut shard, &mut head] {
        node.set("OTEL_EXPORTER_OTLP_ENDPOINT", &receiver.endpoint()).set("OTEL_BSP_SCHEDULE_DELAY", "50");
        node.start().unwrap();
    }
    let client = client(&[head.addr()], "loader", PATIENCE).await.unwrap();
    let spec = spec("equities.daily", &["close"]);
    let ts = parse_time(SESSION).unwrap();
    let row = Row { symbol: "AMZN".into(), ts, known_at: 0, values: vec![Some(768.5)] };
    import(&client, &spec, &[row], None, "prices").await.unwrap();

    let qcu = tokio::process::Command::new(binary("qcu").unwrap())
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("PYTHONPATH", folder.path().join("python"))
        .env("TRELLIS_URL", static_url(&[head.addr()]))
        .env("TRELLIS_UNIT_FILE", folder.path().join("unit.json"))
        .envs([("TRELLIS_SESSIONS", SESSION), ("TRELLIS_EXIT_WHEN_DONE", "true")])
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .output();
    let out = tokio::time::timeout(PATIENCE, qcu).await.unwrap().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));

    let services = match receiver.until(PATIENCE, whole_trace).await {
        Ok(services) => services,
        Err(received) => panic!("no trace has all three services: {:#?}", received.spans),
    };
    assert_eq!(services, ["trellis-head", "trellis-qcu", "trellis-shard"].map(String::from).into());
}
