//! A client that finds eight of twelve heads by DNS, as Cloud Map answers, places its reads among all twelve. The DNS server is real.
#![allow(clippy::unwrap_used)] // a test may panic

use std::{collections::BTreeSet, time::Duration};

use trellis_proto::{SeriesQuery, Symbols, placement};
use trellis_qcu::client::Client;
use trellis_tests::{
    grid::{Grid, import, spec},
    oracle::Row,
};

#[allow(dead_code)] // this test needs a part of it
#[path = "../../fabric/tests/it/knot.rs"]
mod knot;
mod skip {
    pub(crate) use trellis_tests::skip::skipped;
}

const HEADS: usize = 12;
/// Most records in an answer of Cloud Map.
const ANSWERED: usize = 8;
/// So many that no head is without one: one in twelve misses all of them once in 6,000 runs, and the ports are new in each run.
const DATASETS: usize = 100;
/// Longer than a change of DNS and two questions for the map take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// The records of two names: `all`, by which heads find each other, and `head`, by which clients find some.
fn zone(heads: &[String]) -> String {
    let record = |name: &str, addr: &String| {
        let (_, port) = addr.rsplit_once(':').unwrap();
        format!("{name} SRV 0 0 {port} ns\n")
    };
    let all = heads.iter().map(|addr| record("all", addr));
    all.chain(heads.iter().take(ANSWERED).map(|addr| record("head", addr))).collect()
}

fn query(dataset: &str) -> SeriesQuery {
    SeriesQuery::new(dataset.parse().unwrap(), Symbols::new(["AMZN"]).unwrap())
}

/// The head that served a read of the dataset.
async fn served_by(client: &Client, dataset: &str) -> String {
    client.read(&query(dataset)).await.unwrap().receipt().head
}

/// Reads until the client knows exactly these heads. Each read may tell it that its map is old.
async fn knows(client: &Client, heads: &[String]) {
    let learns = async {
        while client.heads() != heads {
            client.read(&query("tests.d0")).await.unwrap();
            tokio::task::yield_now().await;
        }
    };
    let found = tokio::time::timeout(PATIENCE, learns).await;
    assert!(found.is_ok(), "the client knows {:?} and not {heads:?}", client.heads());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_dns_tells_eight_heads_of_twelve_meets_the_others_on_all_twelve() {
    let Some(mut knot) = knot::Knot::start("") else { return };
    let grid = Grid::start_with_map(HEADS, 1, Some(knot.url("all"))).await.unwrap();
    let mut heads: Vec<String> = (0..HEADS).map(|i| grid.head(i).to_string()).collect();
    heads.sort_unstable();
    knot.replace(&zone(&heads));

    let knows_all = grid.client().await.unwrap();
    let row = Row { symbol: "AMZN".to_owned(), ts: 0, known_at: 0, values: vec![Some(1.0)] };
    let datasets: Vec<String> = (0..DATASETS).map(|i| format!("tests.d{i}")).collect();
    for dataset in &datasets {
        import(&knows_all, &spec(dataset, &["x"]), std::slice::from_ref(&row), None, dataset).await.unwrap();
    }

    let by_dns = grid.connect(&knot.url("head")).await.unwrap();
    knows(&by_dns, &heads).await;
    let mut used = BTreeSet::new();
    for dataset in &datasets {
        let head = served_by(&by_dns, dataset).await;
        assert_eq!(head, served_by(&knows_all, dataset).await, "both clients meet on one head");
        used.insert(head);
    }
    assert_eq!(used.len(), HEADS);

    // one head of those that only the map has leaves
    let gone = heads.remove(HEADS - 1);
    knot.replace(&zone(&heads));
    knows(&by_dns, &heads).await;
    for dataset in &datasets {
        let index = (0..HEADS).find(|i| grid.head(*i).to_string() == placement::rank(&heads, dataset)[0]);
        assert_eq!(served_by(&by_dns, dataset).await, format!("head-{}", index.unwrap()));
    }
    assert!(!by_dns.heads().contains(&gone));
    grid.stop().await.unwrap();
}
