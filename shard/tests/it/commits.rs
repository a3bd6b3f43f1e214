//! Publishes, imports, leases and the ledger: accepted, refused, and kept over restarts.

use std::sync::Arc;

use arrow_array::{
    ArrayRef, DictionaryArray, Int32Array, RecordBatch, StringArray, StringViewArray,
    TimestampNanosecondArray, builder::make_view,
};
use arrow_buffer::Buffer;
use futures::future::join_all;
use trellis_proto::{Code, FieldType, pb};

use crate::support::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_published_once_and_corrected_by_publishing_again() {
    let lake = tempfile::tempdir().unwrap();
    let mut served = Served::local(lake.path()).await;
    let client = &mut served.client;
    let lease = acquire(client, "signals.mom", "mom", false).await.unwrap();
    assert_eq!((lease.epoch, lease.unit.as_str()), (1, "mom"));
    let rows = [batch(&[("A", day(1), 1.0), ("B", day(1), 2.0)])];
    let header = |run: &str| session_header("signals.mom", "mom", 1, run, "1970-01-02");
    let first = send(client, header("r1"), &rows).await.unwrap();
    assert_eq!((first.rows, first.duplicate), (2, false));
    let again = send(client, header("r1"), &rows).await.unwrap();
    assert_eq!(again, pb::PublishAck { duplicate: true, ..first.clone() });
    let other = [batch(&[("A", day(1), 9.0)])];
    let refused = send(client, header("r1"), &other).await.unwrap_err();
    assert_eq!(refused.code(), Code::Conflict, "{refused}");

    let correction = send(client, header("r2"), &other).await.unwrap();
    assert!(correction.known_at_ns > first.known_at_ns);
    let fetched = fetch(client, vec![range("signals.mom", "A")], pb::FetchOrder::OldestFirst).await.remove(0);
    assert_eq!(fetched.rows, [(day(1), first.known_at_ns, 1.0), (day(1), correction.known_at_ns, 9.0)]);
    assert_eq!(fetched.watermark, Some(day(2)));

    // All of this survives a restart.
    served.stop().await;
    let mut served = Served::local(lake.path()).await;
    let client = &mut served.client;
    let again = send(client, header("r1"), &rows).await.unwrap();
    assert_eq!(again, pb::PublishAck { duplicate: true, ..first });
    assert_eq!(send(client, header("r1"), &other).await.unwrap_err().code(), Code::Conflict);
    assert_eq!(read(client, "signals.mom", "A").await, [(day(1), 9.0)]);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_epoch_is_fenced_across_take_over_and_restart() {
    let lake = tempfile::tempdir().unwrap();
    let mut served = Served::local(lake.path()).await;
    acquire(&mut served.client, "signals.mom", "old", false).await.unwrap();
    let held = acquire(&mut served.client, "signals.mom", "new", false).await.unwrap_err();
    assert_eq!(held.code(), Code::PermissionDenied);
    assert!(held.message().starts_with("signals.mom is the output of unit old (epoch 1, since "), "{held}");
    let taken = acquire(&mut served.client, "signals.mom", "new", true).await.unwrap();
    assert_eq!(taken.epoch, 2);
    let rows = [batch(&[("A", day(1), 1.0)])];
    for _ in 0..2 {
        let zombie = session_header("signals.mom", "old", 1, "r1", "1970-01-02");
        let refused = send(&mut served.client, zombie, &rows).await.unwrap_err();
        assert_eq!(refused.code(), Code::Fenced);
        assert!(
            refused.message().starts_with("fenced by epoch 2: unit new (new-1) took over at "),
            "{refused}"
        );
        served.stop().await;
        served = Served::local(lake.path()).await;
    }
    // The table has the owner, but not the last renewal of the lease. So another instance of the unit is refused until the
    // holder is heard of, or a whole time to live has passed.
    let held = acquire(&mut served.client, "signals.mom", "old", false).await.unwrap_err();
    assert_eq!(held.code(), Code::PermissionDenied);
    let held = acquire_as(&mut served.client, &spec("signals.mom"), "new", "new-2", false).await.unwrap_err();
    assert_eq!(held.code(), Code::Unavailable, "{held}");
    let renewed = pb::RenewLeaseRequest {
        dataset: "signals.mom".to_owned(),
        unit: "new".to_owned(),
        instance: "new-1".to_owned(),
        epoch: 2,
        ttl_ms: 60_000,
    };
    assert_eq!(served.client.renew_lease(renewed).await.unwrap().into_inner().epoch, 2);
    let held = acquire_as(&mut served.client, &spec("signals.mom"), "new", "new-2", false).await.unwrap_err();
    assert_eq!(held.code(), Code::Conflict, "{held}");
    let good = session_header("signals.mom", "new", 2, "r2", "1970-01-02");
    send(&mut served.client, good, &rows).await.unwrap();
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_is_held_and_a_schema_that_differs_are_told_apart() {
    let lake = tempfile::tempdir().unwrap();
    let mut served = Served::local(lake.path()).await;
    let client = &mut served.client;
    acquire(client, "signals.mom", "mom", false).await.unwrap();
    let held = acquire_as(client, &spec("signals.mom"), "mom", "mom-2", false).await.unwrap_err();
    assert_eq!(held.code(), Code::Conflict);
    assert!(
        held.message()
            .starts_with("signals.mom is published by a running process of unit mom (mom-1, since "),
        "{held}"
    );
    let mut other = spec("signals.mom");
    other.fields[0].data_type = FieldType::String;
    for take_over in [false, true] {
        let refused = acquire_with(client, &other, "rev", take_over).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidRequest);
        assert!(refused.message().starts_with("signals.mom exists with another schema: "), "{refused}");
    }
    served.stop().await;
}

fn release_of(lease: &pb::Lease) -> pb::ReleaseLeaseRequest {
    pb::ReleaseLeaseRequest {
        dataset: lease.dataset.clone(),
        unit: lease.unit.clone(),
        instance: lease.instance.clone(),
        epoch: lease.epoch,
    }
}

/// Ends the ownership of the dataset's unit.
async fn end_ownership(
    client: &mut pb::shard_client::ShardClient<tonic::transport::Channel>,
    dataset: &str,
    take_over: bool,
) -> trellis_proto::Result<pb::Lease> {
    let request = pb::AcquireLeaseRequest {
        dataset: dataset.to_owned(),
        instance: "ada".to_owned(),
        take_over,
        ..pb::AcquireLeaseRequest::default()
    };
    let granted = client.acquire_lease(request).await;
    granted.map(tonic::Response::into_inner).map_err(|s| trellis_proto::Error::from_status(&s))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_into_a_units_output_is_refused_until_somebody_ends_its_ownership() {
    let lake = tempfile::tempdir().unwrap();
    let mut served = Served::local(lake.path()).await;
    let lease = acquire(&mut served.client, "signals.mom", "mom", false).await.unwrap();
    for step in ["it runs", "it gave the lease back", "the shard was started again"] {
        let refused = import(&mut served.client, "signals.mom", &[("A", 0, 1.0)]).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{step}");
        assert!(refused.message().starts_with("signals.mom is the output of unit mom "), "{refused}");
        match step {
            "it runs" => {
                let running = end_ownership(&mut served.client, "signals.mom", false).await.unwrap_err();
                assert_eq!(running.code(), Code::Conflict, "{running}");
                served.client.release_lease(release_of(&lease)).await.unwrap();
            }
            "it gave the lease back" => {
                served.stop().await;
                served = Served::local(lake.path()).await;
            }
            _ => {}
        }
    }
    let ended = end_ownership(&mut served.client, "signals.mom", false).await.unwrap();
    assert_eq!((ended.epoch, ended.unit.as_str()), (2, ""));
    assert_eq!(end_ownership(&mut served.client, "signals.mom", false).await.unwrap().epoch, 2, "once");
    import(&mut served.client, "signals.mom", &[("A", 0, 1.0)]).await.unwrap();
    served.stop().await;
    let mut served = Served::local(lake.path()).await;
    import(&mut served.client, "signals.mom", &[("A", 0, 2.0)]).await.unwrap();
    // The former unit is told who ended the ownership, and any unit may be the next.
    let old = session_header("signals.mom", "mom", 1, "r", "1970-01-01");
    let refused = send(&mut served.client, old, &[batch(&[("A", 0, 1.0)])]).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().starts_with("fenced by epoch 2: ada ended "), "{refused}");
    assert_eq!(acquire(&mut served.client, "signals.mom", "rev", false).await.unwrap().epoch, 3);
    let running = end_ownership(&mut served.client, "signals.mom", true).await.unwrap();
    assert_eq!(running.epoch, 4);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_far_in_the_future_is_refused() {
    let lake = tempfile::tempdir().unwrap();
    let mut served = Served::local(lake.path()).await;
    let client = &mut served.client;
    let today = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs() / 86_400;
    for (ahead, taken) in [(0, true), (2, false), (1_000, false)] {
        let (n, run) = (i64::try_from(today + ahead).unwrap(), format!("r{ahead}"));
        let session = trellis_proto::time::format_time(day(n));
        let header = pb::PublishHeader { session, ..once("mom", &run, false) };
        match send(client, header, &[batch(&[("A", day(n), 1.0)])]).await {
            Ok(_) => assert!(taken, "{ahead}"),
            Err(refused) => {
                assert!(!taken, "{refused}");
                assert_eq!(refused.code(), Code::InvalidRequest);
                assert!(refused.hint_text().contains("is the date right?"), "{refused}");
            }
        }
    }
    served.stop().await;
}

/// A publish that takes its own lease.
fn once(unit: &str, run: &str, take_over: bool) -> pb::PublishHeader {
    pb::PublishHeader {
        instance: format!("{run} of {unit}"),
        spec: Some(pb::DatasetSpec::from(&spec("signals.mom"))),
        once: Some(pb::PublishOnce { take_over }),
        ..session_header("signals.mom", unit, 0, run, "1970-01-02")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_is_given_back_is_free_for_every_later_life_of_the_shard() {
    let lake = tempfile::tempdir().unwrap();
    let rows = |value: f64| [batch(&[("A", day(1), value)])];
    for life in 1..4_u8 {
        let mut served = Served::local(lake.path()).await;
        let instance = format!("mom-{life}");
        let lease =
            acquire_as(&mut served.client, &spec("signals.mom"), "mom", &instance, false).await.unwrap();
        assert_eq!(lease.epoch, 2 * u64::from(life) - 1);
        let newer = newest_version(lake.path(), "signals.mom");
        served.client.release_lease(release_of(&lease)).await.unwrap();
        served.client.release_lease(release_of(&lease)).await.unwrap();
        assert_eq!(newest_version(lake.path(), "signals.mom"), newer + 1, "given back once");
        let run = format!("r{life}");
        send(&mut served.client, once("mom", &run, false), &rows(f64::from(life))).await.unwrap();
        served.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publish_with_its_own_lease_is_one_commit_and_leaves_the_lease_free() {
    let lake = tempfile::tempdir().unwrap();
    let mut served = Served::local(lake.path()).await;
    let client = &mut served.client;
    let rows = |value: f64| [batch(&[("A", day(1), value)])];
    for (version, value) in [(0, 1.0), (1, 2.0), (2, 1.0)] {
        let ack = send(client, once("mom", &format!("r{version}"), false), &rows(value)).await.unwrap();
        assert_eq!((ack.version, ack.duplicate), (version, false), "A, B and A again are three versions");
        let again = send(client, once("mom", &format!("again{version}"), false), &rows(value)).await.unwrap();
        assert_eq!((again.version, again.duplicate), (version, true), "the same rows are one");
    }
    let foreign = send(client, once("rev", "r", false), &rows(3.0)).await.unwrap_err();
    assert_eq!(foreign.code(), Code::PermissionDenied);
    // A publish over a running process of the unit needs take_over; the process is told who did it.
    let lease = acquire(client, "signals.mom", "mom", false).await.unwrap();
    let refused = send(client, once("mom", "r3", false), &rows(4.0)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Conflict, "{refused}");
    let taken = send(client, once("mom", "r4", true), &rows(5.0)).await.unwrap();
    let header = session_header("signals.mom", "mom", lease.epoch, "r5", "1970-01-02");
    let fenced = send(client, header, &rows(6.0)).await.unwrap_err();
    assert_eq!(fenced.code(), Code::Fenced);
    assert!(fenced.message().contains("unit mom (r4 of mom) took over at "), "{fenced}");
    // The lease was released at once: the unit goes on with the next epoch.
    let next = acquire(client, "signals.mom", "mom", false).await.unwrap();
    assert_eq!(next.epoch, lease.epoch + 2);
    assert_eq!(read(client, "signals.mom", "A").await, [(day(1), 5.0)]);
    // The owner changes by a commit, even without rows.
    let taken_by_other = send(client, once("rev", "r6", true), &rows(5.0)).await.unwrap();
    assert!(taken_by_other.version > taken.version && !taken_by_other.duplicate);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_rows_after_an_import_are_a_correction() {
    let lake = tempfile::tempdir().unwrap();
    let mut served = Served::local(lake.path()).await;
    let client = &mut served.client;
    let rows = [batch(&[("A", day(1), 1.0)])];
    send(client, once("mom", "r1", false), &rows).await.unwrap();
    end_ownership(client, "signals.mom", false).await.unwrap();
    import(client, "signals.mom", &[("A", day(1), 9.0)]).await.unwrap();
    let ack = send(client, once("mom", "r2", false), &rows).await.unwrap();
    assert!(!ack.duplicate);
    assert_eq!(read(client, "signals.mom", "A").await, [(day(1), 1.0)]);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_import_leaves_the_dataset_as_it_was() {
    let lake = tempfile::tempdir().unwrap();
    let mut served = Served::local(lake.path()).await;
    let client = &mut served.client;
    // The dataset was not even made.
    let twice = import(client, "d.a", &[("A", 0, 1.0), ("A", 0, 2.0)]).await.unwrap_err();
    assert_eq!(twice.code(), Code::BadRows);
    assert_eq!(twice.message(), "rows 0 and 1: both are A at 1970-01-01");
    let gone = client.symbols(pb::SymbolsRequest { dataset: "d.a".to_owned() }).await.unwrap_err();
    assert_eq!(trellis_proto::Error::from_status(&gone).code(), Code::UnknownDataset);
    assert!(!lake.path().join("d.a").exists());

    import(client, "d.a", &[("A", 0, 1.0)]).await.unwrap();
    let mut other = spec("d.a");
    other.fields[0].data_type = FieldType::String;
    let refused = send(client, import_header(&other), &[batch(&[("A", 1, 1.0)])]).await.unwrap_err();
    assert_eq!(refused.code(), Code::Conflict);
    assert!(refused.message().contains("its field value is float64, not string"), "{refused}");
    // The stream breaks off: it ends without its last message.
    let mut cut = messages(import_header(&spec("d.a")), &[batch(&[("A", 1, 1.0)])]);
    cut.pop();
    let refused = client.publish(tokio_stream::iter(cut)).await.unwrap_err();
    let refused = trellis_proto::Error::from_status(&refused);
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert_eq!(refused.message(), "the publish broke off before its end");
    assert_eq!(read(client, "d.a", "A").await, [(0, 1.0)]);
    assert_eq!(data_files(lake.path(), "d.a").len(), 1);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_explicit_knowledge_time_must_be_later_than_what_its_symbols_have() {
    let lake = tempfile::tempdir().unwrap();
    let mut served = Served::local(lake.path()).await;
    let client = &mut served.client;
    let at = |known_at: i64| pb::PublishHeader { known_at_ns: Some(known_at), ..import_header(&spec("d.a")) };
    send(client, at(1_000), &[batch(&[("A", 0, 1.0)])]).await.unwrap();
    send(client, at(500), &[batch(&[("B", 0, 1.0)])]).await.unwrap();
    for known_at in [999, 1_000] {
        let refused = send(client, at(known_at), &[batch(&[("A", 5, 1.0)])]).await.unwrap_err();
        assert_eq!(refused.code(), Code::Conflict, "{refused}");
    }
    send(client, at(1_001), &[batch(&[("A", 0, 2.0), ("B", 0, 2.0)])]).await.unwrap();
    let future = send(client, at(i64::MAX / 2), &[batch(&[("A", 0, 2.0)])]).await.unwrap_err();
    assert_eq!(future.code(), Code::InvalidRequest);
    let fetched = fetch(client, vec![range("d.a", "A")], pb::FetchOrder::OldestFirst).await.remove(0);
    assert_eq!(fetched.rows, [(0, 1_000, 1.0), (0, 1_001, 2.0)]);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_publishes_at_once_are_all_committed() {
    let lake = tempfile::tempdir().unwrap();
    let mut served = Served::local(lake.path()).await;
    acquire(&mut served.client, "signals.mom", "mom", false).await.unwrap();
    let publishes = (0..200).map(|i| {
        let mut client = served.client.clone();
        async move {
            let header = session_header("signals.mom", "mom", 1, &format!("r{i}"), "1970-01-02");
            let header = pb::PublishHeader { partition: format!("p{}", i % 10), ..header };
            send(&mut client, header, &[batch(&[(format!("S{}", i % 10), day(1), f64::from(i))])])
                .await
                .unwrap()
        }
    });
    let acks = join_all(publishes).await;
    let known: std::collections::BTreeSet<i64> = acks.iter().map(|a| a.known_at_ns).collect();
    assert_eq!(known.len(), 200, "each has a knowledge time of its own");
    let mut rows = 0;
    for i in 0..10 {
        let one = fetch(
            &mut served.client,
            vec![range("signals.mom", &format!("S{i}"))],
            pb::FetchOrder::OldestFirst,
        );
        rows += one.await[0].rows.len();
    }
    assert_eq!(rows, 200);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_run_sent_twice_at_once_is_committed_once() {
    let lake = tempfile::tempdir().unwrap();
    let mut served = Served::local(lake.path()).await;
    acquire(&mut served.client, "signals.mom", "mom", false).await.unwrap();
    let publishes = (0..20).map(|_| {
        let mut client = served.client.clone();
        async move {
            let header = session_header("signals.mom", "mom", 1, "r1", "1970-01-02");
            send(&mut client, header, &[batch(&[("A", day(1), 1.0)])]).await.unwrap()
        }
    });
    let acks = join_all(publishes).await;
    assert_eq!(acks.iter().filter(|a| !a.duplicate).count(), 1);
    assert!(acks.iter().all(|a| a.version == acks[0].version));
    let one = fetch(&mut served.client, vec![range("signals.mom", "A")], pb::FetchOrder::OldestFirst).await;
    assert_eq!(one[0].rows.len(), 1);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_shards_that_both_believe_to_be_home_lose_nothing() {
    let lake = tempfile::tempdir().unwrap();
    let mut a = Served::local(lake.path()).await;
    let mut b = Served::local(lake.path()).await;
    import(&mut a.client, "d.a", &[("A", 0, 0.0)]).await.unwrap();
    let imports = (1..41).map(|i| {
        let mut client = if i % 2 == 0 { a.client.clone() } else { b.client.clone() };
        async move { import(&mut client, "d.a", &[("A", day(i), i as f64)]).await.unwrap().known_at_ns }
    });
    let known = join_all(imports).await;
    let expected: Vec<(i64, f64)> = (0..41).map(|i| (day(i), i as f64)).collect();
    assert_eq!(read(&mut a.client, "d.a", "A").await, expected);
    assert_eq!(read(&mut b.client, "d.a", "A").await, expected);
    let different: std::collections::BTreeSet<i64> = known.into_iter().collect();
    assert_eq!(different.len(), 40);
    // A lease that one shard grants fences the epoch that the other one knows.
    let release = |epoch| pb::ReleaseLeaseRequest {
        dataset: "d.a".to_owned(),
        unit: "x".to_owned(),
        instance: "x-1".to_owned(),
        epoch,
    };
    assert_eq!(acquire(&mut a.client, "d.a", "x", false).await.unwrap().epoch, 1);
    assert_eq!(acquire(&mut b.client, "d.a", "y", true).await.unwrap().epoch, 2);
    let header = session_header("d.a", "x", 1, "r", "1970-01-01");
    let refused = send(&mut a.client, header, &[batch(&[("A", 5, 1.0)])]).await.unwrap_err();
    assert_eq!(refused.code(), Code::Fenced);
    a.client.release_lease(release(1)).await.unwrap();
    a.stop().await;
    b.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ledger_is_a_dataset_that_only_the_grid_writes() {
    let lake = tempfile::tempdir().unwrap();
    let mut served = Served::local(lake.path()).await;
    let client = &mut served.client;
    let record = |unit: &str, started: i64| pb::RunRecord {
        run_id: format!("{unit}-{started}"),
        unit: unit.to_owned(),
        session: "2016-08-10".to_owned(),
        started_ns: started,
        finished_ns: started + 5,
        outcome: pb::RunOutcome::Failed.into(),
        error: "boom".to_owned(),
        ..pb::RunRecord::default()
    };
    let runs = vec![record("mom", 10), record("combo", 20), record("mom", 30)];
    client.record_runs(pb::RecordRunsRequest { runs: runs.clone() }).await.unwrap();
    client.record_runs(pb::RecordRunsRequest { runs: vec![runs[0].clone()] }).await.unwrap();
    let symbols = client.symbols(pb::SymbolsRequest { dataset: "trellis.runs".to_owned() }).await.unwrap();
    assert_eq!(symbols.into_inner().symbols, ["combo", "mom"]);
    let ledger = pb::ChunkRange { fields: vec![], ..range("trellis.runs", "mom") };
    let fetched = fetch(client, vec![ledger], pb::FetchOrder::OldestFirst).await.remove(0);
    assert_eq!(fetched.latest().iter().map(|r| r.0).collect::<Vec<_>>(), [10, 30]);
    let refused = import(client, "trellis.runs", &[("A", 0, 1.0)]).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publish_whose_dictionary_would_become_gigabytes_is_refused_before_it_does() {
    const TEXT_BYTES: usize = 16 << 20;
    let lake = tempfile::tempdir().unwrap();
    let (child, address) = spawn(lake.path(), &[]).await;
    let mut client = connect(&address).await;
    let mut spec = spec("d.a");
    spec.fields[0].data_type = FieldType::String;
    let batch = |rows: usize, text: ArrayRef| {
        let ts = TimestampNanosecondArray::from_iter_values(0..rows as i64).with_timezone("UTC");
        RecordBatch::try_from_iter_with_nullable([
            ("symbol", Arc::new(StringArray::from(vec!["A"; rows])) as ArrayRef, false),
            ("ts", Arc::new(ts) as ArrayRef, false),
            ("value", text, true),
        ])
        .unwrap()
    };
    // 1.6 GB, and 25 GB.
    for rows in [100, 1_600] {
        let text = Arc::new(StringArray::from(vec!["x".repeat(TEXT_BYTES)]));
        let dictionary = DictionaryArray::new(Int32Array::from(vec![0; rows]), text);
        // Each view shows the same bytes.
        let bytes = Buffer::from("x".repeat(TEXT_BYTES).into_bytes());
        let shown = make_view(bytes.as_slice(), 0, 0);
        let views = StringViewArray::new(vec![shown; rows].into(), vec![bytes], None);
        for text in [Arc::new(dictionary) as ArrayRef, Arc::new(views)] {
            let refused = send(&mut client, import_header(&spec), &[batch(rows, text)]).await.unwrap_err();
            assert_eq!(refused.code(), Code::TooLarge, "{refused}");
            assert!(refused.message().contains("the import has more than 1073741824 bytes"), "{refused}");
        }
    }
    // A dictionary that is small when it is expanded is not refused.
    let few = DictionaryArray::new(Int32Array::from(vec![0; 3]), Arc::new(StringArray::from(vec!["x"])));
    send(&mut client, import_header(&spec), &[batch(3, Arc::new(few))]).await.unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id().unwrap())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 512 << 10, "the shard took {peak} kB");
}
