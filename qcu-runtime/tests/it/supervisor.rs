//! Every way in which a child can end, with real Python processes.

use std::{path::PathBuf, sync::Arc, time::Duration};

use arrow_array::{
    ArrayRef, DictionaryArray, Float64Array, RecordBatch, StringArray, TimestampNanosecondArray,
    types::Int32Type,
};
use tracing::Span;
use trellis_qcu::child::{Child, ChildCommand, Finished, Limits, Outcome, Progress, Request, write_table};

const GENEROUS: Limits = Limits { time: Duration::from_secs(60), memory_bytes: 1 << 30 };

pub(crate) fn script() -> String {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/it/child.py").display().to_string()
}

fn command() -> ChildCommand {
    ChildCommand {
        program: "python3".into(),
        arguments: vec![script()],
        directory: Some(std::env::temp_dir()),
        threads: 2,
    }
}

fn load(module: &str) -> Request {
    Request::Load { bundle: "/b".into(), module: module.into(), unit: "u".into(), function: "f".into() }
}

fn request(mode: &str) -> Request {
    Request::Run {
        session: "2016-08-10".into(),
        run_id: "r".into(),
        as_of: "2016-08-11".into(),
        partition: mode.into(),
        inputs: vec![],
    }
}

fn table() -> RecordBatch {
    let names: ArrayRef = Arc::new(StringArray::from(vec!["AMZN"]));
    let symbol = DictionaryArray::<Int32Type>::try_new(vec![0, 0].into(), names).unwrap();
    let ts = TimestampNanosecondArray::from(vec![1, 2]).with_timezone("UTC");
    let close = Float64Array::from(vec![1.5, 2.5]);
    let columns: [(&str, ArrayRef); 3] =
        [("symbol", Arc::new(symbol)), ("ts", Arc::new(ts)), ("close", Arc::new(close))];
    RecordBatch::try_from_iter(columns).unwrap()
}

async fn child() -> Child {
    let child = Child::start(command()).await.unwrap();
    child.load(&load("m.py"), GENEROUS.memory_bytes, Span::none()).await.unwrap()
}

async fn run(mode: &str, limits: Limits) -> (Finished, Option<Child>) {
    run_seeing(mode, limits, |_| {}).await
}

async fn run_seeing(mode: &str, limits: Limits, progress: impl FnMut(Progress)) -> (Finished, Option<Child>) {
    let input = table();
    let fd = write_table(&input.schema(), &[input]).unwrap();
    child().await.run(&request(mode), &[fd], limits, Span::none(), progress).await
}

fn is_gone(pid: u32) -> bool {
    // the entry of a zombie stays until its parent (here process 1) reaps it
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z')),
        Err(_) => true,
    }
}

pub(crate) async fn until_gone(pid: u32) {
    let end = tokio::time::Instant::now() + Duration::from_secs(10);
    while !is_gone(pid) {
        assert!(tokio::time::Instant::now() < end, "process {pid} is still there");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_result_comes_back_in_place_and_the_child_takes_another_run() {
    let mut seen = vec![];
    let (finished, child) = run_seeing("echo", GENEROUS, |step| seen.push(step.note)).await;
    let Outcome::Returned(returned) = finished.outcome else { panic!("{}", finished.outcome) };
    assert_eq!(returned.batches, [table()]);
    assert_eq!(seen, [Some("half".to_owned())]);
    assert!(finished.usage.rss_max_bytes > 1 << 20);

    let (again, child) = child.unwrap().run(&request("raise"), &[], GENEROUS, Span::none(), |_| {}).await;
    let Outcome::Raised(raised) = &again.outcome else { panic!("{}", again.outcome) };
    assert_eq!((raised.class.as_str(), raised.message.as_str()), ("KeyError", "'close'"));
    let pid = child.as_ref().unwrap().pid();
    drop(child);
    until_gone(pid).await;
}

#[tokio::test]
async fn a_child_that_ended_between_two_runs_has_not_taken_the_second() {
    let (first, child) = run("echo", GENEROUS).await;
    assert!(first.taken);
    let child = child.unwrap();
    let pid = child.pid();
    // SAFETY: no memory is involved.
    unsafe { libc::kill(pid.cast_signed(), libc::SIGKILL) };
    until_gone(pid).await;
    let (second, child) = child.run(&request("echo"), &[], GENEROUS, Span::none(), |_| {}).await;
    assert!(matches!(second.outcome, Outcome::Killed { signal: 9 }), "{}", second.outcome);
    assert!(!second.taken && child.is_none());

    let (crashed, _) = run("segv", GENEROUS).await;
    assert!(crashed.taken, "it crashed in the run");
}

#[tokio::test]
async fn a_strategy_that_cannot_be_imported_says_why() {
    let child = Child::start(command()).await.unwrap();
    let error = child.load(&load("missing.py"), GENEROUS.memory_bytes, Span::none()).await.unwrap_err();
    let Outcome::Raised(raised) = &error.outcome else { panic!("{}", error.outcome) };
    assert_eq!(raised.class, "ModuleNotFoundError");
}

#[tokio::test]
async fn no_such_interpreter_is_an_error_at_once() {
    let command = ChildCommand { program: "/no/such/python".into(), ..command() };
    assert_eq!(Child::start(command).await.unwrap_err().kind(), std::io::ErrorKind::NotFound);
}

#[tokio::test]
async fn a_crash_in_native_code_is_reported_with_the_last_lines() {
    let (finished, child) = run("segv", GENEROUS).await;
    assert!(matches!(finished.outcome, Outcome::Killed { signal: 11 }), "{}", finished.outcome);
    assert!(finished.tail.iter().any(|line| line == "about to crash"), "{:?}", finished.tail);
    assert!(child.is_none() && finished.outcome.retryable());
}

#[tokio::test]
async fn an_exit_code_is_reported() {
    let (finished, child) = run("exit 3", GENEROUS).await;
    assert!(matches!(finished.outcome, Outcome::Exited { code: 3 }), "{}", finished.outcome);
    assert!(child.is_none());
}

#[tokio::test]
async fn an_endless_loop_ends_at_the_deadline() {
    let limits = Limits { time: Duration::from_millis(500), ..GENEROUS };
    let (finished, child) = run("loop", limits).await;
    assert!(matches!(finished.outcome, Outcome::TimedOut { .. }), "{}", finished.outcome);
    assert!(child.is_none());
    assert!(finished.usage.user_us + finished.usage.system_us > 100_000, "{:?}", finished.usage);
}

#[tokio::test]
async fn what_a_strategy_started_ends_with_it() {
    let limits = Limits { time: Duration::from_secs(2), ..GENEROUS };
    let mut sleeper = None;
    let (finished, _) = run_seeing("grandchild", limits, |step| sleeper = step.note).await;
    assert!(matches!(finished.outcome, Outcome::TimedOut { .. }), "{}", finished.outcome);
    until_gone(sleeper.unwrap().parse().unwrap()).await;
}

#[tokio::test]
async fn memory_beyond_the_limit_is_caught_before_it_is_the_machines() {
    let limits = Limits { memory_bytes: 200 << 20, ..GENEROUS };
    let (finished, child) = run("memory", limits).await;
    let Outcome::OutOfMemory { bytes, limit } = finished.outcome else { panic!("{}", finished.outcome) };
    assert_eq!(limit, 200 << 20);
    assert!(bytes < 2 << 30, "caught at {} MiB", bytes >> 20);
    assert!(child.is_none());
    let (polite, _) = run("memory error", GENEROUS).await;
    assert!(!polite.outcome.retryable());
}

#[tokio::test]
async fn whatever_is_not_the_protocol_is_a_violation_and_ends_the_child() {
    for (mode, why) in [
        ("unsealed", "not sealed"),
        ("not arrow", "the result's table"),
        ("no table", "exactly one table"),
        ("other columns", "says columns"),
        ("garbage", "not json"),
        ("loaded again", "loaded"),
    ] {
        let (finished, child) = run(mode, GENEROUS).await;
        let Outcome::Protocol { violation } = &finished.outcome else {
            panic!("{mode}: {}", finished.outcome)
        };
        assert!(violation.contains(why), "{mode}: {violation}");
        assert!(child.is_none(), "{mode}");
    }
}

#[tokio::test]
async fn a_child_that_closes_its_channel_and_lingers_is_ended() {
    let (finished, _) = run("close", GENEROUS).await;
    assert!(matches!(finished.outcome, Outcome::Protocol { .. }), "{}", finished.outcome);
}

#[tokio::test]
async fn a_cancelled_run_leaves_no_process() {
    let child = child().await;
    let pid = child.pid();
    let endless = request("loop");
    let running = child.run(&endless, &[], GENEROUS, Span::none(), |_| {});
    tokio::time::timeout(Duration::from_millis(100), running).await.unwrap_err();
    until_gone(pid).await;
}

#[tokio::test]
async fn the_child_holds_no_credentials_and_knows_its_cores() {
    let (finished, _) = run("environment", GENEROUS).await;
    let Outcome::Raised(raised) = &finished.outcome else { panic!("{}", finished.outcome) };
    assert_eq!((raised.class.as_str(), raised.message.as_str()), ("none", "2"));
}
