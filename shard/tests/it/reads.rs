//! The answers to a fetch.

use proptest::prelude::*;
use trellis_proto::{Code, fetch::Answer, pb};

use crate::support::*;

const OLDEST: pb::FetchOrder = pb::FetchOrder::OldestFirst;
const NEWEST: pb::FetchOrder = pb::FetchOrder::NewestFirst;

#[tokio::test(flavor = "multi_thread")]
async fn imported_rows_are_read_back_whole_and_in_order() {
    let lake = tempfile::tempdir().unwrap();
    let mut served = Served::local(lake.path()).await;
    let rows: Vec<Row> =
        vec![("B", day(3), 3.0), ("A", day(-7000), 1.0), ("A", day(17_000), 2.0), ("A", day(-6999), 1.5)];
    let ack = import(&mut served.client, "equities.daily", &rows).await.unwrap();
    assert_eq!((ack.version, ack.rows, ack.duplicate), (0, 4, false));

    let ranges = vec![range("equities.daily", "A"), range("equities.daily", "B")];
    let fetched = fetch(&mut served.client, ranges, NEWEST).await;
    assert_eq!(fetched[0].latest(), [(day(-7000), 1.0), (day(-6999), 1.5), (day(17_000), 2.0)]);
    assert_eq!(fetched[1].latest(), [(day(3), 3.0)]);
    for one in &fetched {
        assert_eq!(one.runs.iter().map(|r| r.chunk_rows.len()).sum::<usize>(), 920);
        assert!(one.rows.iter().all(|r| r.1 == ack.known_at_ns));
        assert_eq!(one.known_through, ack.known_at_ns);
    }

    let described = served
        .client
        .describe(pb::ShardDescribeRequest { ownership_only: false })
        .await
        .unwrap()
        .into_inner();
    let dataset = &described.datasets[0];
    assert_eq!((dataset.rows, dataset.symbols, dataset.version), (4, 2, 0));
    assert_eq!((dataset.first_ts_ns, dataset.last_ts_ns), (Some(day(-7000)), Some(day(17_000))));
    let symbols = pb::SymbolsRequest { dataset: "equities.daily".to_owned() };
    assert_eq!(served.client.symbols(symbols).await.unwrap().into_inner().symbols, ["A", "B"]);
    let sessions = pb::SessionsRequest {
        dataset: "equities.daily".to_owned(),
        start_ns: Some(day(-6999)),
        end_ns: Some(day(17_000)),
    };
    assert_eq!(
        served.client.sessions(sessions).await.unwrap().into_inner().sessions_ns,
        [day(-6999), day(3)]
    );
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_range_fails_alone_and_says_why() {
    let lake = tempfile::tempdir().unwrap();
    let mut served = Served::local(lake.path()).await;
    import(&mut served.client, "equities.daily", &[("AMZN", 0, 1.0), ("AAPL", 0, 1.0)]).await.unwrap();
    let with = |change: &dyn Fn(&mut pb::ChunkRange)| {
        let mut range = range("equities.daily", "AMZN");
        change(&mut range);
        range
    };
    let ranges = vec![
        with(&|_| {}),
        with(&|r| r.dataset = "equities.dayly".to_owned()),
        with(&|r| r.symbol = "AMZM".to_owned()),
        with(&|r| r.fields = vec!["valeu".to_owned()]),
        with(&|r| r.end = i64::MAX),
        with(&|r| r.fields = vec!["value".to_owned(); 2]),
        with(&|r| r.fields = vec!["value".to_owned(); 100_000]),
    ];
    let fetched = fetch(&mut served.client, ranges, OLDEST).await;
    assert_eq!(fetched[0].latest(), [(0, 1.0)]);
    let expected = [
        (Code::UnknownDataset, "did you mean equities.daily?"),
        (Code::UnknownSymbol, "did you mean AMZN?"),
        (Code::UnknownField, "did you mean value?"),
        (Code::InvalidRequest, ""),
        (Code::InvalidRequest, ""),
        (Code::TooLarge, ""),
    ];
    for (one, (code, hint)) in fetched[1..].iter().zip(expected) {
        assert_eq!((one.failures.len(), one.rows.len()), (1, 0));
        assert_eq!((one.failures[0].code(), one.failures[0].hint_text()), (code, hint));
    }
    let stale = pb::FetchRequest { ranges: vec![], order: 0, epoch: 7 };
    let status = served.client.fetch(stale).await.unwrap_err();
    assert_eq!(trellis_proto::Error::from_status(&status).code(), Code::StaleEpoch);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_file_is_named_and_hurts_only_what_is_in_it() {
    let lake = tempfile::tempdir().unwrap();
    let mut served = Served::local(lake.path()).await;
    import(&mut served.client, "d.a", &[("A", 0, 1.0)]).await.unwrap();
    let broken = data_files(lake.path(), "d.a").remove(0);
    import(&mut served.client, "d.a", &[("B", day(700), 2.0)]).await.unwrap();
    std::fs::write(&broken, b"PAR1 this is not Parquet PAR1").unwrap();
    let fetched = fetch(&mut served.client, vec![range("d.a", "A"), range("d.a", "B")], OLDEST).await;
    let error = &fetched[0].failures[0];
    assert_eq!(error.code(), Code::DataCorrupt, "{error}");
    assert!(error.message().contains(broken.file_name().unwrap().to_str().unwrap()), "{error}");
    assert_eq!(fetched[1].latest(), [(day(700), 2.0)]);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_answers_only_for_the_symbols_that_it_owns() {
    let lake = tempfile::tempdir().unwrap();
    let url = trellis_shard::config::lake_url(&lake.path().to_string_lossy()).unwrap();
    let mut shards = Vec::new();
    for i in 0..2 {
        shards.push(Served::start(trellis_shard::Config::one_of(url.clone(), i, 2).unwrap()).await);
    }
    let symbols: Vec<String> = (0..20).map(|i| format!("S{i}")).collect();
    let rows: Vec<(&str, i64, f64)> = symbols.iter().map(|s| (s.as_str(), 0, 1.0)).collect();
    let mut refused = 0;
    for shard in &mut shards {
        match import(&mut shard.client, "d.a", &rows).await {
            Ok(_) => {}
            Err(error) => {
                assert_eq!(error.code(), Code::StaleEpoch);
                refused += 1;
            }
        }
    }
    assert_eq!(refused, 1, "exactly one shard is home");
    // The other shard sees the commit with its next read.
    let mut owned = Vec::new();
    for shard in &mut shards {
        let ranges = symbols.iter().map(|s| range("d.a", s)).collect();
        let fetched = fetch(&mut shard.client, ranges, OLDEST).await;
        for one in &fetched {
            assert!(one.rows.len() == 1 || one.failures[0].code() == Code::StaleEpoch);
        }
        let request = pb::SymbolsRequest { dataset: "d.a".to_owned() };
        let listed = shard.client.symbols(request).await.unwrap().into_inner().symbols;
        assert_eq!(listed.len(), fetched.iter().filter(|f| f.failures.is_empty()).count());
        owned.extend(listed);
    }
    owned.sort();
    let mut all = symbols.clone();
    all.sort();
    assert_eq!(owned, all);
    for shard in shards {
        shard.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nested_pattern_is_answered_by_its_owner_and_not_by_the_shard_with_the_wider_one() {
    let lake = tempfile::tempdir().unwrap();
    let url = trellis_shard::config::lake_url(&lake.path().to_string_lossy()).unwrap();
    let ids = || vec!["shard-0".to_owned(), "shard-1".to_owned()];
    let start = async |id: &str, owns: &str| {
        let owns = trellis_shard::config::parse_owns(owns).unwrap();
        Served::start(trellis_shard::Config::new(id, url.clone(), owns, ids())).await
    };
    let slot = u32::from(trellis_proto::placement::symbol_slot("A"));
    // The wide one owns a part of the nested pattern as well, and "A" is in the other part.
    let wide = format!(r#"[{{"dataset": "*"}}, {{"dataset": "d.*", "slots": [0, {slot}]}}]"#);
    let nested = format!(r#"[{{"dataset": "d.*", "slots": [{slot}, 65536]}}]"#);
    let (mut wide, mut nested) = (start("shard-0", &wide).await, start("shard-1", &nested).await);
    for dataset in ["d.a", "e.a"] {
        let home = trellis_proto::placement::home(&ids(), dataset).unwrap().to_owned();
        let client = if home == "shard-0" { &mut wide.client } else { &mut nested.client };
        import(client, dataset, &[("A", 0, 1.0)]).await.unwrap();
    }
    let (a, b) = (wide.client.clone(), nested.client.clone());
    for (dataset, mut owner, mut other) in [("d.a", b.clone(), a.clone()), ("e.a", a, b)] {
        let fetched = fetch(&mut owner, vec![range(dataset, "A")], OLDEST).await;
        assert_eq!(fetched[0].latest(), [(0, 1.0)], "{dataset}");
        let fetched = fetch(&mut other, vec![range(dataset, "A")], OLDEST).await;
        assert_eq!(fetched[0].failures[0].code(), Code::StaleEpoch, "{dataset}");
    }
    wide.stop().await;
    nested.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_series_comes_in_bounded_messages_newest_first() {
    let lake = tempfile::tempdir().unwrap();
    let mut served = Served::local(lake.path()).await;
    let n = 400_000_i64;
    let minute = 60_000_000_000;
    let start = day(10_000);
    let rows: Vec<(&str, i64, f64)> = (0..n).map(|i| ("A", start + i * minute, i as f64)).collect();
    import(&mut served.client, "fx.minute", &rows).await.unwrap();
    for order in [NEWEST, OLDEST] {
        let fetched = fetch(&mut served.client, vec![range("fx.minute", "A")], order).await.remove(0);
        assert_eq!(fetched.latest().len(), n as usize);
        let firsts: Vec<i64> = fetched.runs.iter().map(|r| r.first).collect();
        let mut sorted = firsts.clone();
        sorted.sort_unstable();
        if order == NEWEST {
            sorted.reverse();
        }
        assert_eq!(firsts, sorted);
        assert!(fetched.runs.len() > 3);
        // a chunk is 92,160 rows of 24 bytes; runs are whole chunks
        assert!(fetched.runs.iter().all(|r| r.rows() <= 92_160));
    }
    served.stop().await;
}

/// Most rows of a message.
const BATCH_BYTES: usize = 768 << 10;

#[tokio::test(flavor = "multi_thread")]
async fn many_short_series_are_a_few_messages_and_a_lone_one_is_one() {
    let lake = tempfile::tempdir().unwrap();
    let mut served = Served::local(lake.path()).await;
    let symbols: Vec<String> = (0..500).map(|i| format!("S{i:03}")).collect();
    let year = 17_000..17_252;
    let rows: Vec<(&str, i64, f64)> =
        symbols.iter().flat_map(|s| year.clone().map(move |n| (s.as_str(), day(n), n as f64))).collect();
    import(&mut served.client, "equities.daily", &rows).await.unwrap();
    let of = |s: &String| pb::ChunkRange { first: 265, end: 270, ..range("equities.daily", s) };
    let all = || symbols.iter().map(of).collect();
    let wide = answers(&mut served.client, all(), NEWEST).await;
    let bodies = wide.iter().map(|answer| match answer {
        Answer::Batch(batch) => (batch.runs.len(), batch.header.len() + batch.body.len()),
        Answer::Failures(failures) => panic!("{failures:?}"),
    });
    let (runs, bytes): (Vec<usize>, Vec<usize>) = bodies.unzip();
    // a row has 24 bytes; 126,000 rows need little more, and full messages are full
    assert_eq!((wide.len(), runs.iter().sum::<usize>()), (4, symbols.len()));
    assert!(bytes.iter().sum::<usize>() < 500 * 252 * 24 * 101 / 100, "{bytes:?}");
    assert!(bytes.iter().all(|bytes| *bytes < BATCH_BYTES), "{bytes:?}");
    assert!(bytes[..3].iter().all(|bytes| *bytes > BATCH_BYTES * 95 / 100), "{bytes:?}");
    for one in fetch(&mut served.client, all(), OLDEST).await {
        assert!(one.rows.iter().map(|row| row.0).eq(year.clone().map(day)));
    }
    let lone = answers(&mut served.client, vec![of(&symbols[7])], NEWEST).await;
    assert_eq!(lone.len(), 1);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_file_fails_its_series_among_many_in_one_message() {
    let lake = tempfile::tempdir().unwrap();
    let mut served = Served::local(lake.path()).await;
    let symbols: Vec<String> = (0..100).map(|i| format!("S{i:03}")).collect();
    let (whole, broken) = symbols.split_at(60);
    import(&mut served.client, "d.a", &broken.iter().map(|s| (s, 0, 1.0)).collect::<Vec<_>>()).await.unwrap();
    let file = data_files(lake.path(), "d.a").remove(0);
    import(&mut served.client, "d.a", &whole.iter().map(|s| (s, 0, 1.0)).collect::<Vec<_>>()).await.unwrap();
    std::fs::write(&file, b"PAR1 this is not Parquet PAR1").unwrap();
    let mut ranges: Vec<pb::ChunkRange> = symbols.iter().map(|s| range("d.a", s)).collect();
    ranges.extend((0..100).map(|i| range("d.a", &format!("T{i:03}"))));
    let all = answers(&mut served.client, ranges, NEWEST).await;
    let (mut read, mut failed) = (0, [0, 0]);
    for answer in &all {
        match answer {
            Answer::Batch(batch) => {
                assert!(batch.runs.iter().all(|run| run.range < whole.len() && run.rows() == 1));
                read += batch.runs.len();
            }
            Answer::Failures(failures) => {
                for failure in failures {
                    let unknown = failure.range >= symbols.len();
                    assert!(failure.range >= whole.len());
                    let code = if unknown { Code::UnknownSymbol } else { Code::DataCorrupt };
                    assert_eq!(failure.error.code(), code);
                    failed[usize::from(unknown)] += 1;
                }
            }
        }
    }
    assert_eq!((all.len(), read, failed), (3, whole.len(), [broken.len(), 100]));
    served.stop().await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    /// For random imports in random portions, every range gives the rows of the oracle.
    #[test]
    fn a_scan_agrees_with_a_sorted_list(
        imports in proptest::collection::vec(
            proptest::collection::btree_map((0..6u8, -40..40i64), -1e6..1e6f64, 1..60), 1..6),
        asks in proptest::collection::vec((0..6u8, -6..6i64, 1..8i64), 1..20),
        newest in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let lake = tempfile::tempdir().unwrap();
            let mut served = Served::local(lake.path()).await;
            let step = day(9);
            let mut oracle: Vec<(String, i64, i64, f64)> = Vec::new();
            for rows in &imports {
                let rows: Vec<(String, i64, f64)> =
                    rows.iter().map(|((s, t), v)| (format!("S{s}"), t * step + 1, *v)).collect();
                let ack = import(&mut served.client, "d.a", &rows).await.unwrap();
                oracle.extend(rows.into_iter().map(|(s, t, v)| (s, t, ack.known_at_ns, v)));
            }
            oracle.sort_by(|a, b| (&a.0, a.1, a.2).cmp(&(&b.0, b.1, b.2)));
            let ranges: Vec<pb::ChunkRange> = asks.iter().map(|(s, first, len)| pb::ChunkRange {
                first: *first, end: first + len, ..range("d.a", &format!("S{s}"))
            }).collect();
            let order = if newest { NEWEST } else { OLDEST };
            let fetched = fetch(&mut served.client, ranges.clone(), order).await;
            for (range, mut one) in ranges.iter().zip(fetched) {
                if !oracle.iter().any(|r| r.0 == range.symbol) {
                    assert_eq!(one.failures[0].code(), Code::UnknownSymbol);
                    continue;
                }
                let span = 64 * day(1);
                let expected: Vec<(i64, i64, f64)> = oracle.iter()
                    .filter(|r| r.0 == range.symbol && (range.first * span..range.end * span).contains(&r.1))
                    .map(|r| (r.1, r.2, r.3)).collect();
                one.runs.sort_by_key(|r| r.first);
                one.rows.sort_by_key(|r| (r.0, r.1));
                assert_eq!(one.rows, expected);
                let mut next = range.first;
                for run in &one.runs {
                    for &rows in &run.chunk_rows {
                        let chunk = next * span..(next + 1) * span;
                        assert_eq!(rows as usize, expected.iter().filter(|r| chunk.contains(&r.0)).count());
                        next += 1;
                    }
                }
                assert_eq!(next, range.end);
            }
            served.stop().await;
        });
    }
}
