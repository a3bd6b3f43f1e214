//! One trace shows where a run's time went, from the strategy through the unit and a head to a shard. Four real processes
//! send it to an OTLP collector endpoint.
#![allow(clippy::unwrap_used)] // a test may panic

use std::{collections::BTreeSet, path::Path, process::Stdio, time::Duration};

use serde_json::json;
use trellis_fabric::testing::{OtlpReceiver, Received};
use trellis_proto::{Code, time::parse_time};
use trellis_tests::{
    grid::{import, spec},
    oracle::Row,
    processes::{Node, binary, client, static_url},
};

/// Time for four processes to start, run and push. An idle machine needs a tenth of it.
const PATIENCE: Duration = Duration::from_secs(60);
const SESSION: &str = "2016-08-10";

/// A unit whose strategy returns its input: the child is a script that needs only Python.
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
    let head_addr = head.addr();
    let client = client(&[head_addr], "loader", PATIENCE).await.unwrap();
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

    let starts =
        ["head-node head-0 starts: version ", "shard shard-0 starts: version ", "qcu echo starts: version "];
    let told = receiver.until(PATIENCE, |received| {
        let told = |start| received.logs.iter().any(|log| log.body.starts_with(start));
        starts.iter().all(|start| told(*start)).then(|| received.logs.clone())
    });
    let told = told.await.unwrap_or_else(|received| panic!("a start line is missing: {:#?}", received.logs));
    let head = told.iter().find(|log| log.body.starts_with(starts[0])).unwrap();
    for part in
        [format!("address {}", head_addr), static_url(&[shard.addr()]), "memory ".into(), receiver.endpoint()]
    {
        assert!(head.body.contains(&part), "{part} is not in: {}", head.body);
    }
}

/// Runs a program that cannot start: its exit code and what it writes to stderr.
async fn failed_start(program: &str, env: &[(&str, &str)]) -> (i32, String) {
    let process = tokio::process::Command::new(binary(program).unwrap())
        .env_clear()
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .output();
    let out = tokio::time::timeout(PATIENCE, process).await.unwrap().unwrap();
    assert!(out.stdout.is_empty(), "{program} is not ready");
    (out.status.code().unwrap(), String::from_utf8(out.stderr).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_cannot_start_says_why_last_and_has_pushed_its_telemetry() {
    let receiver = OtlpReceiver::start().unwrap();
    let folder = tempfile::tempdir().unwrap();
    bundle(folder.path());
    let (lake, unit) =
        (folder.path().display().to_string(), folder.path().join("unit.json").display().to_string());
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    let nobody = "static://127.0.0.1:9";
    let endpoint = receiver.endpoint();
    let otlp = ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str());

    let refused = format!("cannot listen on {listen}: ");
    let away = format!("no head node answers at {nobody}: ");
    let head = [otlp, ("TRELLIS_LISTEN", &listen), ("TRELLIS_ID", "head-0"), ("TRELLIS_SHARDS", nobody)];
    let shard = [otlp, ("TRELLIS_LISTEN", &listen), ("TRELLIS_LAKE", &lake)];
    let qcu = [otlp, ("TRELLIS_URL", nobody), ("TRELLIS_UNIT_FILE", &unit), ("TRELLIS_CONNECT_MS", "200")];
    type Variables<'a> = &'a [(&'a str, &'a str)];
    let programs: [(&str, Variables<'_>, &str, &str); 3] = [
        ("head-node", &head, "trellis-head", &refused),
        ("shard", &shard, "trellis-shard", &refused),
        ("qcu", &qcu, "trellis-qcu", &away),
    ];
    for (program, env, service, why) in programs {
        let (code, stderr) = failed_start(program, env).await;
        assert_eq!(code, i32::from(Code::Unavailable.exit_code()), "{stderr}");
        let last = stderr.lines().last().unwrap();
        assert!(last.starts_with(&format!("{program}: ")) && stderr.contains(why), "{stderr}");
        // it has ended: what it did not push before is lost
        let received = receiver.received();
        let pushed = received.logs.iter().any(|log| {
            log.resource["service.name"] == service
                && log.attributes.get("error").is_some_and(|e| e.contains(why))
        });
        assert!(pushed, "{program} did not push its error: {:#?}", received.logs);
    }
}
