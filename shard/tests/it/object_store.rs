//! A lake in an object store: two real shards and the real client, over HTTP, against moto's S3.
//!
//! It runs if `moto_server` is in `.venv/bin` or on the PATH. `make` does not install it (`pip install 'moto[server]'`),
//! because it has 300 MB.

use std::{io::Write as _, path::Path, process::Stdio};

use futures::future::join_all;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
};
use trellis_proto::Code;

use crate::support::*;

/// A server with one empty bucket named `lake`.
struct Store {
    address: String,
    _server: Child,
}

impl Store {
    /// `None`: it is not installed.
    async fn start() -> Option<Self> {
        let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.venv/bin/moto_server");
        let program = if beside.exists() { beside.as_path() } else { Path::new("moto_server") };
        let mut server = Command::new(program)
            .args(["-H", "127.0.0.1", "-p", "0"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .ok()?;
        let mut lines = BufReader::new(server.stderr.take().unwrap()).lines();
        let address = loop {
            let line = lines.next_line().await.unwrap().expect("it says where it listens");
            if let Some((_, address)) = line.split_once("Running on http://") {
                break address.trim().to_owned();
            }
        };
        // The server writes a line for each request, which must be read.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let mut line = TcpStream::connect(&address).await.unwrap();
        let request = format!(
            "PUT /lake HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        line.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        line.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        Some(Self { address, _server: server })
    }

    /// A shard that takes itself for the owner of the whole lake.
    async fn shard(&self) -> (Child, String) {
        let variables = [
            ("AWS_ENDPOINT", format!("http://{}", self.address)),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ACCESS_KEY_ID", "test".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "test".to_owned()),
        ];
        spawn("s3://lake/tables", &variables).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_shards_commit_to_one_table_in_an_object_store() {
    let Some(store) = Store::start().await else {
        // not by a macro, whose lines the test runner keeps from the output; tests/run.py counts them
        let told = "\nskipped: two_shards_commit_to_one_table_in_an_object_store: there is no moto_server (pip install 'moto[server]')";
        let _ = writeln!(std::io::stderr(), "{told}");
        return;
    };
    let (one, two) = tokio::join!(store.shard(), store.shard());
    let mut clients = [connect(&one.1).await, connect(&two.1).await];

    // Both shards commit at once: conditional puts decide which is first, and no rows are lost.
    let importers = (0..20_i64).map(|n| {
        let mut client = clients[n as usize % 2].clone();
        async move { import(&mut client, "d.a", &[("A", n, n as f64)]).await.unwrap().version }
    });
    let versions = join_all(importers).await;
    let all: Vec<(i64, f64)> = (0..20).map(|n| (n, n as f64)).collect();
    for client in &mut clients {
        assert_eq!(read(client, "d.a", "A").await, all);
    }
    assert!(*versions.iter().max().unwrap() >= 1, "{versions:?}");

    // A lease of one shard fences publishes at the other.
    let old = acquire(&mut clients[0], "signals.mom", "old", false).await.unwrap();
    let new = acquire(&mut clients[1], "signals.mom", "new", true).await.unwrap();
    let rows = [batch(&[("A", day(1), 1.0)])];
    let header = |unit: &str, epoch, run: &str| session_header("signals.mom", unit, epoch, run, "1970-01-02");
    let fenced = send(&mut clients[0], header("old", old.epoch, "r1"), &rows).await.unwrap_err();
    assert_eq!(fenced.code(), Code::Fenced);
    let ack = send(&mut clients[0], header("new", new.epoch, "r2"), &rows).await.unwrap();
    let again = send(&mut clients[1], header("new", new.epoch, "r2"), &rows).await.unwrap();
    assert!(again.duplicate && again.version == ack.version);

    // The store has everything: a new shard needs nothing else.
    drop((one, two));
    let next = store.shard().await;
    let mut client = connect(&next.1).await;
    assert_eq!(read(&mut client, "d.a", "A").await, all);
    assert_eq!(read(&mut client, "signals.mom", "A").await, [(day(1), 1.0)]);
}
