//! The binary `qcu` with a grid of fake heads and real child processes.

use std::{
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::{sleep, timeout},
};
use trellis_proto::{Code, Error, pb, time::DAY_NS};

use crate::{
    fake::{FakeHead, Fault, Row, World, world},
    supervisor::until_gone,
};

/// Longest wait of a test. Ten times what is needed, because the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);
/// Midnight of 2016-08-10.
const SESSION_NS: i64 = 17_023 * DAY_NS;

struct Qcu {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

/// A unit in a new folder, whose strategy is the function of that name in the test's child.
struct Bundle {
    folder: tempfile::TempDir,
}

impl Bundle {
    fn new(function: &str, change: impl FnOnce(&mut Value)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let package = folder.path().join("python/trellis");
        std::fs::create_dir_all(&package).unwrap();
        std::fs::write(package.join("__init__.py"), "").unwrap();
        std::fs::copy(crate::supervisor::script(), package.join("_child.py")).unwrap();
        let mut unit = json!({
            "version": 1, "unit": "mom", "module": "mom.py", "function": function,
            "schedule": {"kind": "manual"}, "calendar": "XNYS", "timeout": "60s",
            "inputs": [{"name": "px", "dataset": "equities.daily", "fields": ["close"]}],
            "output": {"dataset": "signals.mom", "fields": {"close": "float64"}},
            "code_digest": "sha256:1",
        });
        change(&mut unit);
        std::fs::write(folder.path().join("unit.json"), unit.to_string()).unwrap();
        Self { folder }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn start(&self, heads: &[&FakeHead], environment: &[(&str, &str)]) -> Qcu {
        let addrs: Vec<&str> = heads.iter().map(|head| head.addr.as_str()).collect();
        let mut process = Command::new(env!("CARGO_BIN_EXE_qcu"))
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("PYTHONPATH", self.path().join("python"))
            .env("TRELLIS_URL", format!("static://{}", addrs.join(",")))
            .env("TRELLIS_UNIT_FILE", self.path().join("unit.json"))
            .env("TRELLIS_LOG", "warn")
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        Qcu { process, lines }
    }
}

impl Qcu {
    /// The next line that is not a status.
    async fn line(&mut self) -> Value {
        loop {
            let line = self.any_line().await;
            if line.get("status").is_none() {
                return line;
            }
        }
    }

    async fn any_line(&mut self) -> Value {
        let line = timeout(PATIENCE, self.lines.next_line()).await.unwrap().unwrap().unwrap();
        serde_json::from_str(&line).unwrap()
    }

    /// The next status for which `is` holds.
    async fn status(&mut self, is: impl Fn(&Value) -> bool) -> Value {
        loop {
            let mut line = self.any_line().await;
            if line.get("status").is_some_and(&is) {
                return line["status"].take();
            }
        }
    }

    async fn ready(&mut self) {
        assert_eq!(self.line().await, json!({"ready": true, "role": "qcu", "id": "mom"}));
    }

    async fn exit_code(&mut self) -> i32 {
        timeout(PATIENCE, self.process.wait()).await.unwrap().unwrap().code().unwrap_or(-1)
    }

    fn signal(&self, signal: libc::c_int) {
        let pid = libc::pid_t::try_from(self.process.id().unwrap()).unwrap();
        // SAFETY: the call touches no memory, and the process has not been reaped.
        unsafe { libc::kill(pid, signal) };
    }
}

fn prices() -> Arc<Mutex<World>> {
    let row =
        |symbol: &str, day: i64, close: f64| -> Row { (symbol.into(), SESSION_NS + day * DAY_NS, close) };
    let rows = vec![
        row("AMZN", -1, 760.0),
        row("AMZN", 0, 768.5),
        row("AMZN", 1, 771.25),
        row("IBM", 0, 162.0),
        row("IBM", 1, 163.5),
    ];
    world(&[("equities.daily", "close", rows)])
}

const ONCE: [(&str, &str); 2] = [("TRELLIS_SESSIONS", "2016-08-10"), ("TRELLIS_EXIT_WHEN_DONE", "true")];

async fn until<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = look() {
                return found;
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, found).await.unwrap()
}

async fn child_pid(bundle: &Bundle) -> u32 {
    let file = bundle.path().join("child.pid");
    until(|| std::fs::read_to_string(&file).ok()?.parse().ok()).await
}

#[tokio::test]
async fn a_run_that_could_not_be_recorded_is_recorded_before_the_process_ends() {
    let head = FakeHead::start(&prices()).await;
    head.world().ledger_away = true;
    head.fail_on("RecordRuns", [Fault::Hang]);
    let bundle = Bundle::new("echo", |_| {});
    let mut qcu = bundle.start(&[&head], &ONCE);
    qcu.ready().await;
    assert_eq!(qcu.line().await["outcome"], "succeeded");
    assert_eq!(qcu.exit_code().await, 0);
    assert_eq!((head.calls("RecordRuns"), head.world().runs.len()), (2, 1));
}

#[tokio::test]
async fn named_sessions_are_run_published_and_recorded() {
    let world = prices();
    let (a, b) = (FakeHead::start(&world).await, FakeHead::start(&world).await);
    let bundle = Bundle::new("echo", |_| {});
    let sessions = [("TRELLIS_SESSIONS", "2016-08-10,2016-08-11"), ("TRELLIS_EXIT_WHEN_DONE", "true")];
    let mut qcu = bundle.start(&[&a, &b], &sessions);
    qcu.ready().await;
    for session in ["2016-08-10", "2016-08-11"] {
        let line = qcu.line().await;
        assert_eq!((&line["session"], &line["outcome"]), (&json!(session), &json!("succeeded")), "{line}");
        assert_eq!((&line["rows"], &line["attempts"]), (&json!(2), &json!(1)));
    }
    assert_eq!(qcu.exit_code().await, 0);

    assert_eq!(a.calls("RecordRuns") + b.calls("RecordRuns"), 0, "the head records what it publishes");
    let world = world.lock().unwrap();
    let (header, rows, _) = &world.published[0];
    assert_eq!((header.session.as_str(), header.unit.as_str(), header.epoch), ("2016-08-10", "mom", 1));
    assert_eq!(header.kind(), pb::PublishKind::Session);
    assert_eq!(rows, &[("AMZN".into(), SESSION_NS, 768.5), ("IBM".into(), SESSION_NS, 162.0)]);
    assert_eq!(header.inputs[0].name, "px");
    assert!(header.inputs[0].as_of_ns > 0, "the read was pinned");
    assert_eq!(world.runs.len(), 2);
    let run = &world.runs[0];
    assert_eq!((run.outcome(), run.rows, run.output_version), (pb::RunOutcome::Succeeded, 2, Some(1)));
    assert_eq!((&run.run_id, run.attempt, run.epoch), (&header.run_id, 1, 1));
    assert_eq!((run.inputs.len(), run.code_digest.as_str()), (1, "sha256:1"));
    assert!(run.rss_max_bytes > 0 && run.finished_ns >= run.started_ns);
    assert_eq!(world.leases["signals.mom"], (None, 1), "the lease was given back");
}

#[tokio::test]
async fn a_unit_started_again_finds_its_publish_acknowledged_and_a_correction_is_a_new_run() {
    let world = prices();
    let head = FakeHead::start(&world).await;
    let bundle = Bundle::new("echo", |_| {});
    let mut runs = vec![];
    for corrected in [false, false, true] {
        if corrected {
            let mut world = head.world();
            let dataset = world.datasets.get_mut("equities.daily").unwrap();
            dataset.rows.iter_mut().find(|row| row.1 == SESSION_NS).unwrap().2 += 1.0;
        }
        let mut qcu = bundle.start(&[&head], &ONCE);
        qcu.ready().await;
        runs.push(qcu.line().await);
        assert_eq!(qcu.exit_code().await, 0);
    }
    assert_eq!((&runs[0]["duplicate"], &runs[1]["duplicate"]), (&json!(false), &json!(true)));
    assert_eq!(runs[0]["run"], runs[1]["run"]);
    assert_ne!(runs[0]["run"], runs[2]["run"]);
    assert_eq!(head.world().published.len(), 2);
}

#[tokio::test]
async fn a_strategy_that_raises_is_tried_again_recorded_and_told() {
    let world = prices();
    let head = FakeHead::start(&world).await;
    let bundle = Bundle::new("raise", |unit| unit["retries"] = json!(1));
    let mut qcu = bundle.start(&[&head], &ONCE);
    qcu.ready().await;
    let line = qcu.line().await;
    assert_eq!((&line["outcome"], &line["attempts"]), (&json!("failed"), &json!(2)));
    let error = line["error"].as_str().unwrap();
    assert!(
        error.contains("mom for 2016-08-10 raised KeyError: 'close'") && error.contains("Traceback"),
        "{error}"
    );
    assert_eq!(qcu.exit_code().await, 3);
    let world = world.lock().unwrap();
    let attempts: Vec<u32> = world.runs.iter().map(|run| run.attempt).collect();
    assert_eq!(attempts, [1, 2]);
    assert!(world.runs.iter().all(|run| run.outcome() == pb::RunOutcome::Failed && !run.run_id.is_empty()));
    assert!(world.published.is_empty());
}

#[tokio::test]
async fn a_unit_says_what_it_does_from_its_start_to_the_end_of_its_attempts() {
    let world = prices();
    let head = FakeHead::start(&world).await;
    let bundle = Bundle::new("raise", |unit| unit["retries"] = json!(1));
    let mut qcu = bundle.start(&[&head], &ONCE);
    let mut told = vec![];
    loop {
        let line = qcu.any_line().await;
        if line.get("outcome").is_some() {
            assert!(line["error_line"].as_str().unwrap().ends_with("raised KeyError: 'close'"), "{line}");
            assert_eq!(line["exit_code"], json!(3));
            assert!(line["finished_at"].as_str().unwrap().ends_with('Z'));
            break;
        }
        if let Some(status) = line.get("status") {
            assert!(status["at"].as_str().unwrap().ends_with('Z') && status["note"].is_string(), "{status}");
            told.push((status["state"].as_str().unwrap().to_owned(), status["attempt"].as_u64()));
        }
    }
    let expected = [("starting", None), ("running", Some(1)), ("retrying", Some(2)), ("running", Some(2))];
    assert_eq!(told, expected.map(|(state, attempt)| (state.to_owned(), attempt)));
}

#[tokio::test]
async fn a_strategys_progress_is_told() {
    let world = prices();
    let head = FakeHead::start(&world).await;
    let bundle = Bundle::new("echo", |_| {});
    let mut qcu = bundle.start(&[&head], &ONCE);
    let told = qcu.status(|status| status.get("progress").is_some()).await;
    assert_eq!(told["progress"], json!({"done": 1.0, "total": 2.0, "note": "half"}));
    assert_eq!(told["note"], json!("runs 2016-08-10: 1 of 2: half"));
    assert_eq!(qcu.line().await["outcome"], "succeeded");
}

#[tokio::test]
async fn a_scheduled_unit_whose_attempts_failed_says_that_it_is_failing_and_when_it_tries_again() {
    let day =
        i64::try_from(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos())
            .unwrap()
            .div_euclid(DAY_NS);
    let world = world(&[("equities.daily", "close", vec![("A".into(), (day + 1) * DAY_NS, 1.0)])]);
    let head = FakeHead::start(&world).await;
    let bundle = Bundle::new("raise", |unit| {
        unit["retries"] = json!(0);
        unit["schedule"] = json!({"kind": "at_close", "calendar": "XNYS", "delay": "20m"});
    });
    let mut qcu = bundle.start(&[&head], &[]);
    qcu.ready().await;
    assert_eq!(qcu.line().await["outcome"], "failed");
    let told = qcu.status(|status| status["state"] == "failing").await;
    assert!(told["error"].as_str().unwrap().ends_with("raised KeyError: 'close'"), "{told}");
    assert!(told["next_at"].as_str() > told["at"].as_str(), "{told}");
}

#[tokio::test]
async fn rows_that_do_not_fit_are_not_published_and_not_tried_again() {
    let world = prices();
    let head = FakeHead::start(&world).await;
    let change = |unit: &mut Value| {
        unit["retries"] = json!(3);
        unit["output"]["fields"] = json!({"score": "float64"});
    };
    let bundle = Bundle::new("echo", change);
    let mut qcu = bundle.start(&[&head], &ONCE);
    qcu.ready().await;
    let line = qcu.line().await;
    let error = line["error"].as_str().unwrap();
    assert!(
        error.contains("column `close` is not declared") && error.contains("`score` is missing"),
        "{error}"
    );
    assert_eq!(line["attempts"], json!(1));
    assert_eq!(qcu.exit_code().await, 3);
    assert!(head.world().published.is_empty());
}

#[tokio::test]
async fn a_crash_is_a_recorded_run_and_the_next_session_is_run() {
    let world = prices();
    let head = FakeHead::start(&world).await;
    let sessions = [("TRELLIS_SESSIONS", "2016-08-10,2016-08-11"), ("TRELLIS_EXIT_WHEN_DONE", "true")];
    let bundle = Bundle::new("segv", |_| {});
    let mut qcu = bundle.start(&[&head], &sessions);
    qcu.ready().await;
    for _ in 0..2 {
        let line = qcu.line().await;
        let error = line["error"].as_str().unwrap();
        assert!(error.contains("SIGSEGV") && error.contains("about to crash"), "{error}");
    }
    assert_eq!(qcu.exit_code().await, 3);
    assert_eq!(head.world().runs.len(), 2);
}

#[tokio::test]
async fn a_child_that_ended_or_kept_much_memory_is_replaced_before_the_next_session() {
    for function in ["echo_and_exit", "hoard_and_echo"] {
        let world = prices();
        let head = FakeHead::start(&world).await;
        let sessions = [("TRELLIS_SESSIONS", "2016-08-10,2016-08-11"), ("TRELLIS_EXIT_WHEN_DONE", "true")];
        let bundle = Bundle::new(function, |unit| unit["memory"] = json!("350M"));
        let mut qcu = bundle.start(&[&head], &sessions);
        qcu.ready().await;
        for _ in 0..2 {
            let line = qcu.line().await;
            assert_eq!(
                (&line["outcome"], &line["attempts"]),
                (&json!("succeeded"), &json!(1)),
                "{function}: {line}"
            );
        }
        assert_eq!(qcu.exit_code().await, 0);
    }
}

#[tokio::test]
async fn a_unit_after_another_waits_for_its_session() {
    let world = prices();
    let head = FakeHead::start(&world).await;
    let bundle = Bundle::new("echo", |unit| {
        unit["schedule"] = json!({"kind": "after", "units": [{"unit": "up", "dataset": "signals.up"}]});
    });
    let mut qcu = bundle.start(&[&head], &ONCE);
    qcu.ready().await;
    let waits = qcu.status(|status| status["state"] == "waiting").await;
    assert_eq!(
        (&waits["note"], &waits["session"]),
        (&json!("waits for up to publish 2016-08-10"), &json!("2016-08-10"))
    );
    assert!(head.world().runs.is_empty());
    let up = crate::fake::Dataset {
        field: "v".into(),
        version: 1,
        watermark_ns: Some(SESSION_NS + DAY_NS),
        spread: 1,
        rows: vec![],
    };
    head.world().datasets.insert("signals.up".into(), up);
    assert_eq!(qcu.line().await["outcome"], json!("succeeded"));
    assert_eq!(qcu.exit_code().await, 0);
}

#[tokio::test]
async fn a_named_session_waits_for_its_inputs() {
    let world = prices();
    let late: Vec<Row> = {
        let mut world = world.lock().unwrap();
        let prices = world.datasets.get_mut("equities.daily").unwrap();
        prices.rows.extract_if(.., |row| row.1 >= SESSION_NS).collect()
    };
    let head = FakeHead::start(&world).await;
    let bundle = Bundle::new("echo", |_| {});
    let mut qcu = bundle.start(&[&head], &ONCE);
    qcu.ready().await;
    let waits = qcu.status(|status| status["state"] == "waiting").await;
    let told = "waits for equities.daily (input px) to reach 2016-08-10; it has come to 2016-08-09";
    assert_eq!(waits["note"], json!(told));
    assert!(head.world().runs.is_empty() && head.world().published.is_empty());
    head.world().datasets.get_mut("equities.daily").unwrap().rows.extend(late);
    let done = qcu.line().await;
    assert_eq!((&done["outcome"], &done["attempts"]), (&json!("succeeded"), &json!(1)));
    assert_eq!(qcu.exit_code().await, 0);
}

#[tokio::test]
async fn by_schedule_the_newest_closed_session_is_run_once() {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let now = i64::try_from(now.as_nanos()).unwrap();
    let today = now.div_euclid(DAY_NS) * DAY_NS;
    // the next session is due at midnight, or at noon if midnight is near: no other one becomes due during the test
    let near_midnight = (now - today - DAY_NS / 2).abs() > DAY_NS / 4;
    let delay = if near_midnight { "720m" } else { "0s" };
    let rows = (0..3).map(|ago| ("AMZN".into(), today - ago * DAY_NS, 1.0)).collect();
    let world = world(&[("equities.daily", "close", rows)]);
    let head = FakeHead::start(&world).await;
    let bundle = Bundle::new("echo", |unit| {
        unit["calendar"] = json!("24/7");
        unit["schedule"] = json!({"kind": "at_close", "calendar": "24/7", "delay": delay});
    });
    let mut qcu = bundle.start(&[&head], &[("TRELLIS_LEASE_TTL_MS", "1000")]);
    qcu.ready().await;
    assert_eq!(qcu.line().await["outcome"], json!("succeeded"));
    let before = head.calls("Describe");
    // it has checked again and found no due session
    until(|| (head.calls("Describe") > before + 1).then_some(())).await;
    assert_eq!(head.world().published.len(), 1);
    // a person takes the output over, publishes, and releases it
    head.world().leases.insert("signals.mom".into(), (None, 2));
    let told = qcu.status(|status| status.get("taken_over").is_some()).await;
    assert_eq!((&told["state"], &told["taken_over"]), (&json!("waiting"), &json!("fenced by epoch 2")));
    qcu.signal(libc::SIGTERM);
    assert_eq!(qcu.exit_code().await, 0);
    assert_eq!(head.world().leases["signals.mom"].0, None);
}

#[tokio::test]
async fn a_drain_cuts_an_endless_run_short_in_time_records_it_and_gives_the_lease_back() {
    let world = prices();
    let head = FakeHead::start(&world).await;
    let bundle = Bundle::new("loop", |_| {});
    let mut qcu = bundle.start(&[&head], &[("TRELLIS_SESSIONS", "2016-08-10"), ("TRELLIS_DRAIN_MS", "1000")]);
    qcu.ready().await;
    let child = child_pid(&bundle).await;
    qcu.signal(libc::SIGTERM);
    assert_eq!(qcu.line().await["outcome"], json!("cancelled"));
    assert_eq!(qcu.exit_code().await, 0);
    until_gone(child).await;
    assert_eq!(head.world().runs[0].outcome(), pb::RunOutcome::Cancelled);
    assert_eq!(head.world().leases["signals.mom"].0, None);
}

#[tokio::test]
async fn a_killed_unit_leaves_no_child() {
    let world = prices();
    let head = FakeHead::start(&world).await;
    let bundle = Bundle::new("loop", |_| {});
    let mut qcu = bundle.start(&[&head], &ONCE);
    qcu.ready().await;
    let child = child_pid(&bundle).await;
    qcu.signal(libc::SIGKILL);
    assert_eq!(qcu.exit_code().await, -1);
    until_gone(child).await;
}

#[tokio::test]
async fn a_unit_whose_lease_is_taken_over_publishes_nothing_and_waits() {
    let world = prices();
    let head = FakeHead::start(&world).await;
    let bundle = Bundle::new("wait", |_| {});
    let environment = [("TRELLIS_SESSIONS", "2016-08-10"), ("TRELLIS_LEASE_TTL_MS", "1000")];
    let mut qcu = bundle.start(&[&head], &environment);
    qcu.ready().await;
    child_pid(&bundle).await;
    let environment = [ONCE[0], ONCE[1], ("TRELLIS_TAKE_OVER", "true")];
    let other = Bundle::new("echo", |unit| unit["code_digest"] = json!("2"));
    let mut rival = other.start(&[&head], &environment);
    rival.ready().await;
    assert_eq!(rival.line().await["outcome"], json!("succeeded"));
    assert_eq!(rival.exit_code().await, 0);
    std::fs::write(bundle.path().join("go"), "").unwrap();
    assert_eq!(qcu.line().await["outcome"], json!("refused"));
    qcu.signal(libc::SIGTERM);
    assert_eq!(qcu.exit_code().await, 5);
    assert_eq!(head.world().published.len(), 1);
}

#[tokio::test]
async fn a_unit_that_a_person_publishes_over_goes_on_with_the_next_session_under_the_next_epoch() {
    let world = prices();
    let head = FakeHead::start(&world).await;
    let bundle = Bundle::new("wait", |_| {});
    let sessions = [("TRELLIS_SESSIONS", "2016-08-10,2016-08-11"), ("TRELLIS_EXIT_WHEN_DONE", "true")];
    let mut qcu = bundle.start(&[&head], &[sessions[0], sessions[1], ("TRELLIS_LEASE_TTL_MS", "1000")]);
    qcu.ready().await;
    child_pid(&bundle).await;
    // the lease was taken, used and released
    head.world().leases.insert("signals.mom".into(), (None, 2));
    std::fs::write(bundle.path().join("go"), "").unwrap();
    let line = qcu.line().await;
    assert_eq!((&line["session"], &line["outcome"]), (&json!("2016-08-10"), &json!("refused")));
    assert!(line["error"].as_str().unwrap().contains("fenced by epoch 2"), "{line}");
    let told = qcu.status(|status| status["state"] == "fenced").await;
    assert_eq!(told["note"], json!("waits until its lease is free again: fenced by epoch 2"));
    let line = qcu.line().await;
    assert_eq!((&line["session"], &line["outcome"]), (&json!("2016-08-11"), &json!("succeeded")));
    assert_eq!(qcu.exit_code().await, 5);
    let published: Vec<_> =
        head.world().published.iter().map(|(header, ..)| (header.session.clone(), header.epoch)).collect();
    assert_eq!(published, [("2016-08-11".to_owned(), 3)]);
}

#[tokio::test]
async fn a_lease_is_renewed_again_and_again_while_a_run_goes_on() {
    let world = prices();
    let head = FakeHead::start(&world).await;
    let bundle = Bundle::new("wait", |_| {});
    let mut qcu = bundle.start(&[&head], &[ONCE[0], ONCE[1], ("TRELLIS_LEASE_TTL_MS", "1000")]);
    qcu.ready().await;
    // one renewal may fail without an effect
    let away = Error::new(Code::Unavailable, "the shard restarts");
    head.fail_on("RenewLease", [Fault::Refuse(away)]);
    until(|| (head.calls("RenewLease") > 5).then_some(())).await;
    std::fs::write(bundle.path().join("go"), "").unwrap();
    assert_eq!(qcu.line().await["outcome"], json!("succeeded"));
    assert_eq!(qcu.exit_code().await, 0);
    assert_eq!(head.world().published[0].0.epoch, 1);
}

#[tokio::test]
async fn a_record_that_the_ledger_refuses_does_not_keep_others_away() {
    let world = prices();
    let head = FakeHead::start(&world).await;
    head.world().ledger_away = true;
    // with other pending records, and alone
    let refused = || Fault::Refuse(Error::new(Code::InvalidRequest, "no"));
    head.fail_on("RecordRuns", [refused(), refused()]);
    let bundle = Bundle::new("echo", |_| {});
    let sessions = [("TRELLIS_SESSIONS", "2016-08-10,2016-08-11"), ("TRELLIS_EXIT_WHEN_DONE", "true")];
    let mut qcu = bundle.start(&[&head], &sessions);
    assert_eq!(qcu.exit_code().await, 0);
    let runs: Vec<String> = head.world().runs.iter().map(|run| run.session.clone()).collect();
    assert_eq!(runs, ["2016-08-11"]);
}

#[tokio::test]
async fn a_lease_that_stays_held_is_a_conflict() {
    let world = prices();
    let head = FakeHead::start(&world).await;
    head.world().leases.insert("signals.mom".into(), (Some("somebody".into()), 7));
    let bundle = Bundle::new("echo", |_| {});
    let mut qcu = bundle.start(&[&head], &[ONCE[0], ("TRELLIS_LEASE_WAIT_MS", "1")]);
    assert_eq!(qcu.exit_code().await, 5);
    assert!(head.world().runs.is_empty());
}

#[tokio::test]
async fn a_dataset_with_other_fields_is_a_conflict_at_once() {
    let world = prices();
    let head = FakeHead::start(&world).await;
    let bundle = Bundle::new("echo", |unit| unit["output"]["dataset"] = json!("equities.daily"));
    let mut qcu = bundle.start(&[&head], &ONCE);
    qcu.ready().await;
    drop(qcu);
    let bundle = Bundle::new("echo", |unit| {
        unit["output"] = json!({"dataset": "equities.daily", "fields": {"open": "float64"}});
    });
    assert_eq!(bundle.start(&[&head], &ONCE).exit_code().await, 5);
}

#[tokio::test]
async fn a_head_that_loses_acknowledgements_does_not_double_a_publish() {
    let world = prices();
    let (a, b) = (FakeHead::start(&world).await, FakeHead::start(&world).await);
    for head in [&a, &b] {
        head.fail_on("DoPut", [Fault::LoseAck]);
    }
    let bundle = Bundle::new("echo", |_| {});
    let mut qcu = bundle.start(&[&a, &b], &ONCE);
    qcu.ready().await;
    let line = qcu.line().await;
    assert_eq!((&line["outcome"], &line["duplicate"]), (&json!("succeeded"), &json!(true)));
    assert_eq!(qcu.exit_code().await, 0);
    let world = world.lock().unwrap();
    assert_eq!((world.published.len(), world.runs.len()), (1, 1));
}

#[tokio::test]
async fn a_publish_that_is_done_and_said_to_have_failed_is_recorded_as_both() {
    let world = prices();
    let head = FakeHead::start(&world).await;
    let refusal = Error::new(Code::DataCorrupt, "the answer was garbled");
    head.fail_on("DoPut", [Fault::Misreport(refusal)]);
    let bundle = Bundle::new("echo", |_| {});
    let mut qcu = bundle.start(&[&head], &ONCE);
    qcu.ready().await;
    assert_eq!(qcu.line().await["outcome"], json!("refused"));
    qcu.exit_code().await;
    let world = world.lock().unwrap();
    let outcomes: Vec<_> = world.runs.iter().map(pb::RunRecord::outcome).collect();
    assert_eq!(outcomes, [pb::RunOutcome::Succeeded, pb::RunOutcome::Refused]);
    assert_eq!(world.runs[0].run_id, world.runs[1].run_id);
}

#[tokio::test]
async fn wrong_configuration_is_told_whole_and_check_does_not_start() {
    let bundle = Bundle::new("echo", |unit| unit["output"]["fields"] = json!({"close": "decimal"}));
    let output = |arguments: &[&str], file: &Path| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_qcu"));
        command.args(arguments).env_clear().env("TRELLIS_UNIT_FILE", file).env("TRELLIS_SESSION", "x");
        command.output().unwrap()
    };
    let wrong = output(&[], &bundle.path().join("unit.json"));
    let told = String::from_utf8(wrong.stderr).unwrap();
    assert_eq!(wrong.status.code(), Some(2), "{told}");
    for part in ["output.fields.close", "TRELLIS_URL", "did you mean TRELLIS_SESSIONS"] {
        assert!(told.contains(part), "{part} not in {told}");
    }
    let help = output(&["--help"], Path::new("x"));
    let help = String::from_utf8(help.stdout).unwrap();
    for var in trellis_qcu::config::VARS {
        assert!(help.contains(var.name), "{}", var.name);
    }
}
