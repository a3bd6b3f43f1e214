//! One trace shows where a run's time went, from the strategy through the unit and a head to a shard. Four real processes
//! send it to an OTLP collector endpoint.
#![allow(clippy::unwrap_used)] // a test may panic

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::Stdio,
    time::Duration,
};

use serde_json::json;
use trellis_fabric::{
    clock::now_ns,
    testing::{Attributes, OtlpReceiver, Received, ReceivedSpan},
};
use trellis_proto::{Code, time::parse_time};
use trellis_tests::{
    grid::{import, spec},
    oracle::Row,
    processes::{Node, binary, client, static_url},
    skip::skipped,
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

/// Service and name of each span, from the outside to the inside.
type Way<'a> = &'a [(&'a str, &'a str)];

/// The way of a read from a strategy's run to the store.
const READ: Way = &[
    ("trellis-qcu", "run"),
    ("trellis-qcu", "read inputs"),
    ("trellis-qcu", "arrow.flight.protocol.FlightService/DoGet"),
    ("trellis-head", "arrow.flight.protocol.FlightService/DoGet"),
    ("trellis-head", "read"),
    ("trellis-head", "fetch"),
    ("trellis-head", "trellis.v1.Shard/Fetch"),
    ("trellis-shard", "trellis.v1.Shard/Fetch"),
    ("trellis-shard", "scan"),
    ("trellis-shard", "get"),
];

/// The way of what the run publishes.
const PUBLISH: Way = &[
    ("trellis-qcu", "run"),
    ("trellis-qcu", "publish"),
    ("trellis-qcu", "arrow.flight.protocol.FlightService/DoPut"),
    ("trellis-head", "arrow.flight.protocol.FlightService/DoPut"),
    ("trellis-head", "trellis.v1.Shard/Publish"),
    ("trellis-shard", "trellis.v1.Shard/Publish"),
];

/// The spans of a way, when all have come. Each is the parent of the next.
fn along(way: Way, received: &Received) -> Option<Vec<ReceivedSpan>> {
    let is = |span: &ReceivedSpan, service: &str, name: &str| {
        span.resource["service.name"] == service && span.name == name
    };
    let (service, name) = way[0];
    let mut found: Vec<Vec<&ReceivedSpan>> = received
        .spans
        .iter()
        .filter(|span| is(span, service, name) && span.parent_span_id.is_empty())
        .map(|span| vec![span])
        .collect();
    for &(service, name) in &way[1..] {
        let children = found.iter().flat_map(|above| {
            let below = received.spans.iter().filter(|span| {
                is(span, service, name)
                    && above.last().is_some_and(|parent| {
                        parent.span_id == span.parent_span_id && parent.trace_id == span.trace_id
                    })
            });
            below.map(|span| [&above[..], &[span]].concat())
        });
        found = children.collect();
    }
    found.first().map(|spans| spans.iter().map(|span| (*span).clone()).collect())
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

    let began = now_ns();
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

    let (read, published) = receiver
        .until(PATIENCE, |received| along(READ, received).zip(along(PUBLISH, received)))
        .await
        .unwrap_or_else(|received| {
            let seen = received
                .spans
                .iter()
                .map(|s| (&s.resource["service.name"], &s.name, &s.span_id, &s.parent_span_id));
            panic!("no trace goes all the way: {:#?}", seen.collect::<Vec<_>>())
        });
    assert_eq!(read[0].span_id, published[0].span_id, "one run reads and publishes");
    let [.., read, fetch, _, _, scan, get] = &read[..] else { panic!("{read:?}") };
    let text = |span: &ReceivedSpan, attribute: &str| span.attributes[attribute].clone();
    for (attribute, value) in
        [("trellis.rows", "1"), ("trellis.chunks.fetched", "1"), ("trellis.outcome", "served")]
    {
        assert_eq!(text(read, attribute), value, "{attribute}");
    }
    assert_eq!((text(fetch, "trellis.shard"), text(fetch, "trellis.claims")), ("shard-0".into(), "1".into()));
    for (attribute, value) in [("trellis.files", "1"), ("trellis.row_groups", "1"), ("trellis.rows", "1")] {
        assert_eq!(text(scan, attribute), value, "{attribute}");
    }
    assert!(text(scan, "trellis.bytes").parse::<u64>().unwrap() > 0);
    assert!(text(get, "trellis.path").contains("equities.daily/part-"), "{get:?}");

    let succeeded = receiver.until(PATIENCE, |received| received.metric("trellis.run.last_success").cloned());
    let succeeded = succeeded.await.unwrap_or_else(|received| panic!("{:#?}", received.metrics));
    assert_eq!(succeeded.resource["service.instance.id"], "echo");
    let seconds = began as f64 * 1e-9..=now_ns() as f64 * 1e-9;
    assert!(seconds.contains(&succeeded.total(&[]).unwrap()), "{succeeded:?} is not in {seconds:?}");

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

/// A real OpenTelemetry Collector that passes everything on to `receiver`. It ends when dropped.
struct Collector {
    process: std::process::Child,
    grpc: String,
    http: String,
}

impl Collector {
    /// `None`, and a line that says so, without the variable `OTELCOL`: the path of a collector with the receiver `otlp` and the
    /// exporter `otlp_http`.
    fn start(receiver: &OtlpReceiver, folder: &Path) -> Option<Self> {
        let Some(binary) = std::env::var_os("OTELCOL") else {
            skipped("OTELCOL does not name an OpenTelemetry Collector");
            return None;
        };
        let [grpc, http] = [(), ()].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        let [grpc, http] = [grpc, http].map(|port| port.local_addr().unwrap().to_string());
        let pipeline = json!({"receivers": ["otlp"], "exporters": ["otlp_http"]});
        let config = json!({
            "receivers": {"otlp": {"protocols": {"grpc": {"endpoint": &grpc}, "http": {"endpoint": &http}}}},
            "exporters": {"otlp_http": {"endpoint": receiver.endpoint()}},
            "service": {
                "telemetry": {"metrics": {"level": "none"}},
                "pipelines": {"traces": &pipeline, "metrics": &pipeline, "logs": &pipeline},
            },
        });
        let file = folder.join("collector.json");
        std::fs::write(&file, config.to_string()).unwrap();
        let mut process = std::process::Command::new(binary)
            .arg(format!("--config={}", file.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines().map_while(Result::ok);
        let mut told = Vec::new();
        while !told.last().is_some_and(|line: &String| line.contains("Everything is ready")) {
            told.push(lines.next().unwrap_or_else(|| panic!("the collector ended: {told:#?}")));
        }
        // it must not block on a full pipe
        std::thread::spawn(move || lines.for_each(drop));
        Some(Self { process, grpc: format!("http://{grpc}"), http: format!("http://{http}") })
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        // both fail only if it has already ended
        let _ = (self.process.kill(), self.process.wait());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_collector_takes_traces_metrics_and_logs_by_grpc_and_by_http() {
    let receiver = OtlpReceiver::start().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let Some(collector) = Collector::start(&receiver, folder.path()) else { return };
    let lake = folder.path().join("lake");
    std::fs::create_dir(&lake).unwrap();
    let mut shard = Node::shard(&lake, 0, 1, folder.path()).unwrap();
    shard.set("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.grpc);
    let mut head = Node::head(0, &[shard.addr()], folder.path()).unwrap();
    head.set("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.http);
    head.set("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf");
    for node in [&mut shard, &mut head] {
        node.set("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip");
        // the import has no caller with a trace
        node.set("OTEL_TRACES_SAMPLER", "parentbased_always_on");
        node.start().unwrap();
    }
    let client = client(&[head.addr()], "loader", PATIENCE).await.unwrap();
    let row = Row {
        symbol: "AMZN".into(),
        ts: parse_time(SESSION).unwrap(),
        known_at: 0,
        values: vec![Some(768.5)],
    };
    import(&client, &spec("equities.daily", &["close"]), &[row], None, "prices").await.unwrap();
    // what is still queued is pushed at the end
    for node in [&mut head, &mut shard] {
        assert!(node.stop().unwrap().success());
        assert!(!node.log().unwrap().contains("telemetry was lost"), "{}", node.log().unwrap());
    }

    for service in ["trellis-shard", "trellis-head"] {
        let arrived = receiver.until(PATIENCE, |received| {
            let of = |resource: &Attributes| resource["service.name"] == service;
            let durations = received.metrics.iter().any(|metric| {
                of(&metric.resource)
                    && metric.name == "rpc.server.call.duration"
                    && metric.count(&[("rpc.response.status_code", "OK")]) > 0
            });
            let logged = received.logs.iter().any(|log| of(&log.resource));
            (durations && logged && received.spans.iter().any(|span| of(&span.resource))).then_some(())
        });
        arrived.await.unwrap_or_else(|received| panic!("not all of {service} arrived: {received:#?}"));
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
