//! One process that is stopped or dead beside others that work: what does not need it goes on, and what needs it says so.
//!
//! A stopped process (SIGSTOP) is the harder case: its connections stay, and the kernel takes what is sent to it.
#![allow(clippy::unwrap_used)] // a test may panic

use std::time::Duration;

use trellis_proto::{Code, DatasetSpec, Error, SeriesQuery, Symbols, placement::symbol_slot};
use trellis_qcu::client::Client;
use trellis_tests::{
    grid::{import, spec},
    oracle::Row,
    processes::{Cluster, client},
    traffic::PATIENCE,
};

const SHARDS: usize = 3;
/// How long a call may take that needs no other process than those that work: longer than any of them may be late, and shorter than the
/// 30 seconds after which a connection to a stopped process is given up.
const AT_ONCE: Duration = Duration::from_secs(15);

fn prices() -> DatasetSpec {
    spec("equities.daily", &["close"])
}

/// Symbols that the shard with this index owns.
fn symbols_of(shard: usize) -> Vec<String> {
    let names = (0..).map(|i| format!("S{i}"));
    names.filter(|name| (usize::from(symbol_slot(name)) * SHARDS) >> 16 == shard).take(3).collect()
}

async fn fill(client: &Client, run: usize) {
    let symbols = (0..SHARDS).flat_map(symbols_of);
    let row = |symbol| Row { symbol, ts: run as i64, known_at: 0, values: vec![Some(1.0)] };
    let rows: Vec<Row> = symbols.map(row).collect();
    import(client, &prices(), &rows, None, &format!("run-{run}")).await.unwrap();
}

/// Rows of one symbol.
async fn rows(client: &Client, symbol: &str) -> Result<usize, Error> {
    let answer = client.read(&SeriesQuery::new(prices().dataset, Symbols::new([symbol])?)).await?;
    Ok(answer.batches.iter().map(|batch| batch.num_rows()).sum())
}

#[tokio::test]
async fn while_one_shard_is_stopped_or_dead_the_symbols_of_the_others_are_read() {
    let mut cluster = Cluster::start(1, SHARDS, &[]).unwrap();
    let heads = cluster.head_addrs();
    let patient = client(&heads, "reader", PATIENCE).await.unwrap();
    fill(&patient, 0).await;
    let hasty = patient.with_deadline(AT_ONCE);
    let away = 1;
    let addr = cluster.shards[away].addr().to_string();
    let [of_away, of_others] = [symbols_of(away), [symbols_of(0), symbols_of(2)].concat()];

    // a head that knows all shards, and symbols that nobody has asked for yet
    cluster.shards[away].pause().unwrap();
    assert_eq!(rows(&hasty, &of_others[0]).await.unwrap(), 1);
    let error = rows(&hasty, &of_away[0]).await.unwrap_err();
    assert_eq!((error.code(), error.place().2), (Code::Unavailable, "shard-1"), "{error}");
    assert!(error.message().contains(&addr), "{error}");

    // a head that starts: first while the shard is stopped, then while it is dead
    for (symbol, name_of_away) in of_away.iter().enumerate().skip(1) {
        cluster.heads[0].kill();
        cluster.heads[0].start().unwrap();
        for shard in [0, 2] {
            assert_eq!(rows(&hasty, &symbols_of(shard)[symbol]).await.unwrap(), 1);
        }
        let error = rows(&hasty, name_of_away).await.unwrap_err();
        assert_eq!((error.code(), error.place().2), (Code::Unavailable, addr.as_str()), "{error}");
        cluster.shards[away].kill();
    }

    cluster.shards[away].start().unwrap();
    for symbol in &of_away {
        assert_eq!(rows(&patient, symbol).await.unwrap(), 1);
    }
}

/// Reads of everything that each head was asked, by the head's address.
async fn requests(client: &Client) -> Vec<u64> {
    client.stats().await.unwrap().iter().map(|head| head.requests).collect()
}

#[tokio::test]
async fn a_read_of_everything_asks_the_heads_of_its_dataset_and_none_fails_while_one_of_them_is_killed() {
    let mut cluster = Cluster::start(5, 1, &[]).unwrap();
    let client = client(&cluster.head_addrs(), "reader", PATIENCE).await.unwrap();
    let large = spec("ticks.large", &["a", "b", "c", "d", "e", "f"]);
    let row = |i: i64| Row {
        symbol: format!("S{:02}", i % 16),
        ts: i / 16 * 1_000_000_000,
        known_at: 0,
        values: vec![Some(i as f64); 6],
    };
    // 64 bytes a row: a little more than 8 MiB
    let rows: Vec<Row> = (0..132_000).map(row).collect();
    fill(&client, 0).await;
    let known_at = import(&client, &large, &rows, None, "large").await.unwrap().known_at_ns;

    // as of a time: each head then answers at once, whatever the others have applied
    let everything =
        |dataset| SeriesQuery { as_of: Some(known_at), ..SeriesQuery::new(dataset, Symbols::All) };
    for (dataset, heads) in [(prices().dataset, 1), (large.dataset.clone(), 2)] {
        let before = requests(&client).await;
        for _ in 0..3 {
            let answer = client.read(&everything(dataset.clone())).await.unwrap();
            assert_eq!((answer.receipts.len(), answer.receipt().spread), (heads, heads as u32), "{dataset}");
        }
        let asked: Vec<u64> =
            requests(&client).await.iter().zip(before).map(|(now, was)| now - was).collect();
        assert_eq!(asked.iter().filter(|asked| **asked == 3).count(), heads, "{dataset}: {asked:?}");
        assert_eq!(asked.iter().sum::<u64>(), 3 * heads as u64, "{dataset}: {asked:?}");
    }

    let served = client.read(&everything(large.dataset.clone())).await.unwrap().receipts.remove(0).head;
    let (read, mut reads) = tokio::sync::mpsc::channel(1);
    let query = SeriesQuery::new(large.dataset.clone(), Symbols::All);
    let reader = tokio::spawn(async move {
        let answer = async || client.read(&query).await.unwrap().rows();
        while read.send(answer().await).await.is_ok() {}
    });
    assert_eq!(reads.recv().await, Some(rows.len()));
    cluster.heads.iter_mut().find(|head| head.id() == served).unwrap().kill();
    for _ in 0..5 {
        assert_eq!(reads.recv().await, Some(rows.len()));
    }
    drop(reads);
    reader.await.unwrap();
}

#[tokio::test]
async fn a_stopped_head_delays_one_publish_of_a_dataset_that_it_follows_and_is_named_by_every_shard_once() {
    let cluster = Cluster::start(2, SHARDS, &[]).unwrap();
    let heads = cluster.head_addrs();
    let reader = client(&heads[1..], "reader", PATIENCE).await.unwrap();
    let client = client(&heads[..1], "loader", PATIENCE).await.unwrap();
    fill(&client, 0).await;
    cluster.heads[1].pause().unwrap();
    fill(&client, 1).await;
    for shard in &cluster.shards {
        let log = shard.log().unwrap();
        assert!(!log.contains("did not apply a change in time"), "the head was asked for nothing: {log}");
    }
    cluster.heads[1].resume().unwrap();
    rows(&reader, &symbols_of(0)[0]).await.unwrap();
    cluster.heads[1].pause().unwrap();
    for run in 2..5 {
        fill(&client, run).await;
    }
    for shard in &cluster.shards {
        let log = shard.log().unwrap();
        let named = log.lines().filter(|line| line.contains("it did not apply a change in time"));
        let named: Vec<&str> = named.collect();
        assert!(named.len() == 1 && named[0].contains("head-1"), "{}: {named:?}", shard.id());
    }
    let log = cluster.heads[0].log().unwrap();
    assert!(!log.contains("does not serve a commit yet"), "no shard was late: {log}");
    cluster.heads[1].resume().unwrap();
}
