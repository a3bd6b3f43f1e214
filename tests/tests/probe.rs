//! A container's health check asks the program itself: `head-node --probe`, `shard --probe`, and `--probe-ready`.
#![allow(clippy::unwrap_used)] // a test may panic

use std::{net::TcpListener, process::Output, time::Duration};

use trellis_tests::processes::{Node, binary};

/// Longest wait for a program. An idle machine needs a hundredth of it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `program --probe` as a health check does: in the container's environment, of which it needs only the address.
fn probe(program: &str, listen: &str) -> Output {
    ask(program, "--probe", listen)
}

fn ask(program: &str, question: &str, listen: &str) -> Output {
    let mut command = std::process::Command::new(binary(program).unwrap());
    command.arg(question).env_clear().env("TRELLIS_LISTEN", listen).output().unwrap()
}

#[test]
fn a_server_that_serves_is_healthy_and_one_that_is_gone_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let lake = folder.path().join("lake");
    std::fs::create_dir(&lake).unwrap();
    let mut shard = Node::shard(&lake, 0, 1, folder.path()).unwrap();
    let mut head = Node::head(0, &[shard.addr()], folder.path()).unwrap();
    for (program, node) in [("shard", &mut shard), ("head-node", &mut head)] {
        node.start().unwrap();
        let listen = node.addr().to_string();
        let healthy = probe(program, &listen);
        assert!(healthy.status.success(), "{healthy:?}");
        assert_eq!(String::from_utf8(healthy.stdout).unwrap(), format!("{program}: {listen} serves\n"));
        // the container's address is the one of all interfaces
        let everywhere = listen.replace("127.0.0.1", "0.0.0.0");
        assert!(probe(program, &everywhere).status.success());
    }
    let listen = head.addr().to_string();
    head.kill();
    let gone = probe("head-node", &listen);
    assert_eq!(gone.status.code(), Some(1), "{gone:?}");
    assert!(String::from_utf8(gone.stderr).unwrap().contains(&listen));
}

#[test]
fn a_head_lives_before_it_follows_its_shards_and_is_ready_when_it_does() {
    let folder = tempfile::tempdir().unwrap();
    let lake = folder.path().join("lake");
    std::fs::create_dir(&lake).unwrap();
    let mut shard = Node::shard(&lake, 0, 1, folder.path()).unwrap();
    let mut head = Node::head(0, &[shard.addr()], folder.path()).unwrap();
    let listen = head.addr().to_string();
    head.launch().unwrap();
    until(|| probe("head-node", &listen).status.success());
    let early = ask("head-node", "--probe-ready", &listen);
    assert_eq!(early.status.code(), Some(1), "{early:?}");
    let told = String::from_utf8(early.stderr).unwrap();
    assert_eq!(told, format!("head-node: {listen} is not ready: it answers NOT_SERVING\n"));

    shard.start().unwrap();
    head.wait_ready().unwrap();
    until(|| ask("head-node", "--probe-ready", &listen).status.success());
    let ready = ask("shard", "--probe-ready", &shard.addr().to_string());
    assert_eq!(String::from_utf8(ready.stdout).unwrap(), format!("shard: {} is ready\n", shard.addr()));
    // without its shard it still answers from memory
    shard.kill();
    assert!(ask("head-node", "--probe-ready", &listen).status.success());
}

/// Asks again until the answer is yes, for as long as a busy machine may need.
fn until(mut yes: impl FnMut() -> bool) {
    let began = std::time::Instant::now();
    while !yes() {
        assert!(began.elapsed() < PATIENCE, "not within {PATIENCE:?}");
    }
}

#[test]
fn a_server_that_does_not_answer_is_unhealthy_in_time() {
    // it accepts, and never says a word
    let frozen = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = frozen.local_addr().unwrap().to_string();
    let late = probe("shard", &listen);
    assert_eq!(late.status.code(), Some(1), "{late:?}");
    assert_eq!(String::from_utf8(late.stderr).unwrap(), format!("shard: {listen} did not answer in 2 s\n"));
}

#[test]
fn a_probe_that_cannot_know_the_address_says_so() {
    let unknown = probe("shard", "127.0.0.1:0");
    assert_eq!(unknown.status.code(), Some(2), "{unknown:?}");
    assert!(String::from_utf8(unknown.stderr).unwrap().contains("a probe needs a fixed port"));
}
