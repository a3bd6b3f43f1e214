//! A dataset that many read gets copies of its heads while they read: each reader keeps to one copy, and no answer is wrong.
#![allow(clippy::unwrap_used)] // a test may panic

use std::collections::{BTreeMap, BTreeSet};

use trellis_proto::{SeriesQuery, Symbols, pb, placement};
use trellis_qcu::client::{Client, ClientOptions};
use trellis_tests::{
    grid::{Grid, import, spec},
    oracle::Row,
};

const HEADS: usize = 6;
const READERS: usize = 60;
const COPIES: u32 = 3;
const DATASET: &str = "tests.universe";
const ROWS: i64 = 10;

async fn readers(grid: &Grid) -> Vec<Client> {
    let heads: Vec<String> = (0..HEADS).map(|i| grid.head(i).to_string()).collect();
    let url = format!("static://{}", heads.join(","));
    let mut readers = Vec::new();
    for reader in 0..READERS {
        let options = ClientOptions { unit: Some(format!("unit-{reader}")), ..Default::default() };
        readers.push(Client::connect(&url, options).await.unwrap());
    }
    readers
}

/// The head that served a read by each reader, and the rows that all heads fetched for the reads. Each answer must be whole.
async fn read_by_all(readers: &[Client]) -> (Vec<String>, u64) {
    let query = SeriesQuery::new(DATASET.parse().unwrap(), Symbols::new(["AMZN"]).unwrap());
    let (mut heads, mut fetched) = (Vec::new(), 0);
    for reader in readers {
        let receipt = reader.read(&query).await.unwrap().receipt();
        assert_eq!(receipt.rows, ROWS as u64);
        heads.push(receipt.head);
        fetched += receipt.rows_fetched;
    }
    (heads, fetched)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_share_the_copies_of_a_dataset_from_the_read_after_the_change_on() {
    let grid = Grid::start(HEADS, 1).await.unwrap();
    let readers = readers(&grid).await;
    let row = |day| Row { symbol: "AMZN".to_owned(), ts: day, known_at: 0, values: vec![Some(1.0)] };
    let rows: Vec<Row> = (0..ROWS).map(row).collect();
    import(&readers[0], &spec(DATASET, &["x"]), &rows, None, "first").await.unwrap();

    let (before, fetched) = read_by_all(&readers).await;
    assert_eq!(BTreeSet::from_iter(&before).len(), 1, "a small dataset has one head");
    assert_eq!(fetched, ROWS as u64);

    let change = pb::AlterDatasetRequest {
        dataset: DATASET.to_owned(),
        id: "copies".to_owned(),
        copies: Some(COPIES),
        ..Default::default()
    };
    readers[0].alter_dataset(change).await.unwrap();
    // the first answer after the change tells each reader of it
    let (_, first) = read_by_all(&readers).await;
    let (after, second) = read_by_all(&readers).await;
    let (again, third) = read_by_all(&readers).await;
    assert_eq!(after, again, "a reader keeps to its copy");
    let mut shared: BTreeMap<&str, usize> = BTreeMap::new();
    for head in &after {
        *shared.entry(head).or_default() += 1;
    }
    assert_eq!(shared.len(), COPIES as usize, "{shared:?}");
    let addrs: Vec<String> = (0..HEADS).map(|i| grid.head(i).to_string()).collect();
    let named = placement::heads_of(&addrs, DATASET, COPIES).into_iter().map(|addr| {
        let index = addrs.iter().position(|one| one == addr).unwrap();
        format!("head-{index}")
    });
    assert_eq!(BTreeSet::from_iter(named), shared.keys().map(|head| (*head).to_owned()).collect());
    let all = first + second + third;
    assert!(all <= u64::from(COPIES) * ROWS as u64, "each head fetches the rows at most once: {all}");
    let described = readers[0].describe(Some(&DATASET.parse().unwrap())).await.unwrap();
    assert_eq!((described[0].copies, described[0].spread), (COPIES, 1));
    grid.stop().await.unwrap();
}
