//! What an operator sees of a start and a stop: `--check` and the start judge a configuration alike, and the log of a healthy process has
//! no warning.
#![allow(clippy::unwrap_used)] // a test may panic

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};
use trellis_proto::{Code, time::parse_time};
use trellis_tests::{
    grid::{import, spec},
    oracle::Row,
    processes::{Node, binary, client, signal, static_url},
};

/// Longest wait for a call. An idle machine needs a hundredth of it.
const PATIENCE: Duration = Duration::from_secs(60);
const SESSION: &str = "2016-08-10";
/// The exit code of a configuration that is wrong.
const REFUSED: i32 = 2;

/// A unit whose strategy returns its input: the child is a script that needs only Python.
fn bundle(folder: &Path) -> String {
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
    let file = folder.join("unit.json");
    std::fs::write(&file, unit.to_string()).unwrap();
    file.display().to_string()
}

/// A process that is killed when it is dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // both fail only if it has already ended
        let _ = (self.0.kill(), self.0.wait());
    }
}

fn command(program: &str, env: &[(&str, &str)]) -> Command {
    let mut command = Command::new(binary(program).unwrap());
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).envs(env.iter().copied());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Starts a program. `None`: it has read its configuration and opened what it needs, and was then killed. Otherwise its exit code.
fn start(program: &str, env: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut process = Process(command(program, env).spawn().unwrap());
    let mut told = String::new();
    for line in BufReader::new(process.0.stderr.take().unwrap()).lines() {
        let line = line.unwrap();
        told += &format!("{line}\n");
        if line.contains(" starts: version ") {
            return (None, told);
        }
    }
    (Some(process.0.wait().unwrap().code().unwrap()), told)
}

/// What becomes of a configuration.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Verdict {
    /// It is valid, and the program starts.
    Starts,
    /// It is wrong.
    Refused,
    /// It is valid, and something else on the machine is in the way.
    Hindered,
}

#[test]
fn a_check_accepts_what_the_start_accepts_and_nothing_else() {
    use Verdict::{Hindered, Refused, Starts};
    let folder = tempfile::tempdir().unwrap();
    let unit = bundle(folder.path());
    let lake = folder.path().join("lake").display().to_string();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let nobody = "static://127.0.0.1:9";
    let head = [("TRELLIS_ID", "head-0"), ("TRELLIS_SHARDS", nobody)];
    let shard = [("TRELLIS_LAKE", lake.as_str())];
    let qcu = [("TRELLIS_URL", nobody), ("TRELLIS_UNIT_FILE", unit.as_str())];
    let everywhere: [(&[(&str, &str)], Verdict); 5] = [
        (&[], Starts),
        (&[("TRELLIS_LOG", "info,trellis_head=debug")], Starts),
        (&[("TRELLIS_LOG", "head=loud")], Refused),
        (&[("TRELLIS_DRAIN_MS", "18446744073709551615")], Refused),
        (&[("TRELLIS_LOG_FORMAT", "xml")], Refused),
    ];
    let of_servers: [(&[(&str, &str)], Verdict); 4] = [
        (&[("TRELLIS_LISTEN", "localhost:7400")], Refused),
        (&[("TRELLIS_LISTEN", "7400")], Refused),
        // an address for examples: no machine has it
        (&[("TRELLIS_LISTEN", "192.0.2.1:7400")], Refused),
        (&[("TRELLIS_LISTEN", taken.as_str())], Hindered),
    ];
    let of_heads: [(&[(&str, &str)], Verdict); 6] = [
        (&[("TRELLIS_SHARDS", "shard-0:7400")], Refused),
        (&[("TRELLIS_SHARDS", "http://shard-0:7400")], Refused),
        (&[("TRELLIS_SHARDS", "static://shard-0")], Refused),
        (&[("TRELLIS_SHARDS", "static://a:1,b:0")], Refused),
        (&[("TRELLIS_SHARDS", "dns://10.0.0.1:7400")], Refused),
        (&[("TRELLIS_ID", "Head 0")], Refused),
    ];
    let of_shards: [(&[(&str, &str)], Verdict); 15] = [
        (&[("TRELLIS_LAKE", unit.as_str())], Refused),
        (&[("TRELLIS_LAKE", "ftp://lake")], Refused),
        (&[("TRELLIS_SHARD_COUNT", "0")], Refused),
        (&[("TRELLIS_SHARD_COUNT", "3"), ("TRELLIS_SHARD_INDEX", "3")], Refused),
        (&[("TRELLIS_SHARD_COUNT", "2"), ("TRELLIS_SHARD_IDS", "a,b")], Starts),
        (&[("TRELLIS_SHARD_COUNT", "2"), ("TRELLIS_SHARD_IDS", "a,a")], Refused),
        (&[("TRELLIS_SHARD_COUNT", "2"), ("TRELLIS_SHARD_IDS", "a,b"), ("TRELLIS_ID", "c")], Refused),
        (&[("TRELLIS_SHARD_IDS", "a,b")], Refused),
        (&[("TRELLIS_OWNS", "[{}]"), ("TRELLIS_SHARD_IDS", "a,b")], Starts),
        (&[("TRELLIS_OWNS", "[{}]"), ("TRELLIS_SHARD_COUNT", "4000000000")], Refused),
        (&[("TRELLIS_OWNS", "[]")], Refused),
        (&[("TRELLIS_OWNS", r#"[{"slots": [5, 3]}]"#)], Refused),
        (&[("TRELLIS_OWNS", r#"[{"dataset": "a*b"}]"#)], Refused),
        (&[("TRELLIS_OWNS", r#"[{"start": "2020-01-01", "end": "2019-01-01"}]"#)], Refused),
        (&[("TRELLIS_SHARD_CONT", "2")], Refused),
    ];
    let of_units: [(&[(&str, &str)], Verdict); 5] = [
        (&[("TRELLIS_URL", "head-0:7400")], Refused),
        (&[("TRELLIS_URL", "http://head-0:7400")], Refused),
        (&[("TRELLIS_UNIT_FILE", "/no/such/unit.json")], Refused),
        (&[("TRELLIS_TAKE_OVER", "yes")], Refused),
        (&[("TRELLIS_SESSIONS", "2016-08-13")], Refused),
    ];
    type Variables<'a> = &'a [(&'a str, &'a str)];
    type Program<'a> = (&'a str, Variables<'a>, Vec<&'a (Variables<'a>, Verdict)>);
    let programs: [Program<'_>; 3] = [
        ("head-node", &head, everywhere.iter().chain(&of_servers).chain(&of_heads).collect()),
        ("shard", &shard, everywhere.iter().chain(&of_servers).chain(&of_shards).collect()),
        ("qcu", &qcu, everywhere.iter().chain(&of_units).collect()),
    ];
    for (program, base, rows) in programs {
        for (more, expected) in rows {
            // a later variable replaces an earlier one
            let env = [base, *more].concat();
            let mut check = command(program, &env);
            let checked = check.arg("--check").output().unwrap().status.code().unwrap();
            let (started, told) = start(program, &env);
            let verdict = match (checked, started) {
                (0, None) => Starts,
                (REFUSED, Some(REFUSED)) => Refused,
                (0, Some(code)) if code == i32::from(Code::Unavailable.exit_code()) => Hindered,
                other => panic!("{program} {more:?}: check and start end with {other:?}\n{told}"),
            };
            assert_eq!(verdict, *expected, "{program} {more:?}\n{told}");
        }
    }
}

/// Fails if a log has anything but what the grid's own crates say they do.
fn assert_calm(program: &str, log: &str) {
    assert!(!log.is_empty(), "{program} says that it starts");
    for line in log.lines() {
        let told: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{program}: {line}"));
        assert_eq!(told["level"], "INFO", "{program}: {line}");
        assert!(told["target"].as_str().unwrap().starts_with("trellis"), "{program}: {line}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_healthy_start_warns_of_nothing_and_a_stop_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    let unit = bundle(folder.path());
    let lake = folder.path().join("lake");
    std::fs::create_dir(&lake).unwrap();
    let mut shards = [0, 1].map(|index| Node::shard(&lake, index, 2, folder.path()).unwrap());
    let mut head = Node::head(0, &[shards[0].addr(), shards[1].addr()], folder.path()).unwrap();
    for node in shards.iter_mut().chain([&mut head]) {
        node.set("TRELLIS_LOG_FORMAT", "json");
        node.start().unwrap();
    }
    let url = static_url(&[head.addr()]);
    let grid = client(&[head.addr()], "loader", PATIENCE).await.unwrap();
    let ts = parse_time(SESSION).unwrap();
    let row = Row { symbol: "AMZN".into(), ts, known_at: 0, values: vec![Some(768.5)] };
    import(&grid, &spec("equities.daily", &["close"]), &[row], None, "prices").await.unwrap();

    // the unit reads the row and publishes it
    let python = folder.path().join("python").display().to_string();
    let env = [
        ("PYTHONPATH", python.as_str()),
        ("TRELLIS_URL", &url),
        ("TRELLIS_UNIT_FILE", &unit),
        ("TRELLIS_SESSIONS", SESSION),
        ("TRELLIS_LOG_FORMAT", "json"),
    ];
    let mut qcu = Process(command("qcu", &env).spawn().unwrap());
    let mut told = String::new();
    for line in BufReader::new(qcu.0.stderr.take().unwrap()).lines() {
        let line = line.unwrap();
        told += &format!("{line}\n");
        if line.contains("run succeeded") {
            signal(qcu.0.id(), libc::SIGTERM).unwrap();
        }
    }
    assert!(qcu.0.wait().unwrap().success(), "{told}");
    assert!(told.contains("run succeeded"), "{told}");
    assert_calm("qcu", &told);

    for node in [&mut head].into_iter().chain(&mut shards) {
        assert!(node.stop().unwrap().success());
        assert_calm(node.id(), &node.log().unwrap());
    }
}
