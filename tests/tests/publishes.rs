//! A publish through a head is committed whole or not at all. Every head has it when it is acknowledged. A dataset has one
//! publisher at a time. A publish never changes what was known before.
#![allow(clippy::unwrap_used)] // a test may panic

use arrow_array::{
    Float64Array, RecordBatch,
    cast::AsArray,
    types::{Float64Type, TimestampNanosecondType},
};
use trellis_proto::{
    Code, DatasetSpec, SeriesQuery, Symbols, TimeRange, pb,
    time::{DAY_NS, parse_time},
};
use trellis_qcu::client::{Answer, Client};
use trellis_tests::{
    grid::{Grid, batch, import, retract, spec},
    oracle::Row,
    rng::Rng,
    traffic::ledger,
};

const SESSION: &str = "2016-08-10";

fn scores(values: &[(&str, f64)]) -> Vec<Row> {
    let ts = parse_time(SESSION).unwrap();
    values
        .iter()
        .map(|(symbol, score)| Row { symbol: (*symbol).into(), ts, known_at: 0, values: vec![Some(*score)] })
        .collect()
}

async fn lease(
    client: &Client,
    spec: &DatasetSpec,
    instance: &str,
    take_over: bool,
) -> trellis_proto::Result<pb::Lease> {
    client
        .acquire_lease(pb::AcquireLeaseRequest {
            dataset: spec.dataset.to_string(),
            unit: "test".into(),
            instance: instance.into(),
            take_over,
            ttl_ms: 30_000,
            spec: Some(spec.into()),
        })
        .await
}

fn header(spec: &DatasetSpec, lease: &pb::Lease, run_id: &str) -> pb::PublishHeader {
    pb::PublishHeader {
        dataset: spec.dataset.to_string(),
        kind: pb::PublishKind::Session.into(),
        session: SESSION.into(),
        run_id: run_id.into(),
        unit: lease.unit.clone(),
        instance: lease.instance.clone(),
        epoch: lease.epoch,
        ..Default::default()
    }
}

async fn publish(
    client: &Client,
    spec: &DatasetSpec,
    lease: &pb::Lease,
    run_id: &str,
    values: &[(&str, f64)],
) -> trellis_proto::Result<pb::PublishAck> {
    client.publish(header(spec, lease, run_id), vec![batch(spec, &scores(values)).unwrap()]).await
}

async fn read(client: &Client, spec: &DatasetSpec, as_of: Option<i64>) -> Vec<f64> {
    let mut query = SeriesQuery::new(spec.dataset.clone(), Symbols::All);
    query.as_of = as_of;
    values(&client.read(&query).await.unwrap())
}

fn values(answer: &Answer) -> Vec<f64> {
    let column = |b: &RecordBatch| b.column(2).as_primitive::<Float64Type>().values().to_vec();
    answer.batches.iter().flat_map(column).collect()
}

async fn client_of(grid: &Grid, head: usize) -> Client {
    grid.client_of(head).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_acknowledged_publish_and_its_correction_are_on_every_head_at_once() {
    let grid = Grid::start(2, 3).await.unwrap();
    let (one, two) = (client_of(&grid, 0).await, client_of(&grid, 1).await);
    let spec = spec("signals.mom", &["score"]);
    let lease = lease(&one, &spec, "a", false).await.unwrap();

    let first = publish(&one, &spec, &lease, "run-1", &[("A", 1.0), ("B", 2.0), ("C", 3.0)]).await.unwrap();
    for client in [&one, &two] {
        assert_eq!(read(client, &spec, None).await, [1.0, 2.0, 3.0]);
    }
    // Both heads have cached the rows: the corrections below must reach the caches.
    for round in 0..20 {
        let value = f64::from(round);
        let ack =
            publish(&one, &spec, &lease, &format!("fix-{round}"), &[("A", 1.0), ("B", value), ("C", 3.0)])
                .await
                .unwrap();
        assert!(ack.version > first.version && ack.known_at_ns > first.known_at_ns);
        for client in [&two, &one] {
            assert_eq!(read(client, &spec, None).await, [1.0, value, 3.0], "round {round}");
            assert_eq!(read(client, &spec, Some(first.known_at_ns)).await, [1.0, 2.0, 3.0], "the past stays");
            assert!(read(client, &spec, Some(first.known_at_ns - 1)).await.is_empty(), "before it was known");
        }
    }
    grid.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_published_again_is_the_new_truth_whole_on_every_head_and_the_past_stays() {
    let grid = Grid::start(2, 3).await.unwrap();
    let (one, two) = (client_of(&grid, 0).await, client_of(&grid, 1).await);
    // a retraction has no values, even of required fields
    let mut spec = spec("signals.mom", &["score"]);
    spec.fields[0].nullable = false;
    let lease = lease(&one, &spec, "a", false).await.unwrap();
    let mut rng = Rng::seeded(11);
    let symbols = ["A", "B", "C", "D", "E", "F"];
    // The rows of each publish, and its knowledge time.
    let mut published: Vec<(i64, Vec<f64>)> = Vec::new();
    let mut retracted = 0;
    for round in 0..30 {
        let mut rows: Vec<(&str, f64)> = Vec::new();
        for symbol in symbols {
            if !rng.once_in(3) {
                rows.push((symbol, rng.below(1_000) as f64));
            }
        }
        if rng.once_in(8) {
            rows.clear();
        }
        let ack = publish(&one, &spec, &lease, &format!("run-{round}"), &rows).await.unwrap();
        assert_eq!(ack.rows, rows.len() as u64);
        retracted += ack.retracted;
        published.push((ack.known_at_ns, rows.iter().map(|row| row.1).collect()));
        for client in [&two, &one] {
            assert_eq!(read(client, &spec, None).await, published[round].1, "round {round}");
            let (known_at, then) = rng.pick(&published);
            assert_eq!(read(client, &spec, Some(*known_at)).await, *then, "round {round}, the past stays");
        }
        let sessions = two.sessions(&spec.dataset, TimeRange::default()).await.unwrap();
        let there = if rows.is_empty() { vec![] } else { vec![parse_time(SESSION).unwrap()] };
        assert_eq!(sessions, there, "round {round}");
    }
    assert!(retracted > 20, "{retracted}");
    // sending the newest run once more retracts nothing
    let (known_at, rows) = published.last().unwrap();
    let again = [("A", 1.0)];
    publish(&one, &spec, &lease, "last", &again).await.unwrap();
    let first = publish(&one, &spec, &lease, "last", &again).await.unwrap();
    assert!(first.duplicate);
    assert_eq!(read(&two, &spec, None).await, [1.0]);
    assert_eq!(read(&two, &spec, Some(*known_at)).await, *rows);
    grid.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_published_again_takes_back_its_own_rows_only() {
    let grid = Grid::start(1, 2).await.unwrap();
    let client = grid.client().await.unwrap();
    let spec = spec("signals.mom", &["score"]);
    let lease = lease(&client, &spec, "a", false).await.unwrap();
    let publish = async |run: &str, partition: &str, values: &[(&str, f64)]| {
        let header = pb::PublishHeader { partition: partition.into(), ..header(&spec, &lease, run) };
        client.publish(header, vec![batch(&spec, &scores(values)).unwrap()]).await.unwrap().retracted
    };
    assert_eq!(publish("1", "eu", &[("A", 1.0), ("B", 2.0)]).await, 0);
    assert_eq!(publish("2", "us", &[("C", 3.0), ("D", 4.0)]).await, 0);
    assert_eq!(publish("3", "eu", &[("B", 5.0)]).await, 1);
    assert_eq!(read(&client, &spec, None).await, [5.0, 3.0, 4.0]);
    assert_eq!(publish("4", "", &[("D", 6.0)]).await, 2);
    assert_eq!(read(&client, &spec, None).await, [6.0]);
    grid.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retraction_of_what_is_not_there_is_refused_by_name() {
    let grid = Grid::start(1, 2).await.unwrap();
    let client = grid.client().await.unwrap();
    let spec = spec("prices.daily", &["close"]);
    import(&client, &spec, &scores(&[("A", 1.0), ("B", 2.0)]), None, "i").await.unwrap();
    let ts = parse_time(SESSION).unwrap();
    let retract = async |run: &str, keys: &[(&str, i64)]| {
        let keys: Vec<_> = keys.iter().map(|(symbol, ts)| ((*symbol).to_owned(), *ts)).collect();
        let done = retract(&client, &spec, &keys, None, run).await;
        done.map_err(|error| error.downcast::<trellis_proto::Error>().unwrap())
    };
    let error = retract("r1", &[("A", ts), ("A", ts + 1), ("C", ts)]).await.unwrap_err();
    assert_eq!(error.code(), Code::BadRows);
    assert!(
        error.message().starts_with("prices.daily has no row of A at 2016-08-10T00:00:00.000000001Z; C at")
    );
    assert_eq!(read(&client, &spec, None).await, [1.0, 2.0]);
    assert_eq!(retract("r2", &[("A", ts)]).await.unwrap().retracted, 1);
    assert!(retract("r2", &[("A", ts)]).await.unwrap().duplicate);
    assert!(retract("r3", &[("A", ts)]).await.unwrap().duplicate, "it is gone already");
    assert_eq!(read(&client, &spec, None).await, [2.0]);
    // the grid knows a symbol without rows and returns none
    let mut query = SeriesQuery::new(spec.dataset.clone(), Symbols::new(["A"]).unwrap());
    query.known_at = true;
    assert_eq!(client.read(&query).await.unwrap().rows(), 0);
    grid.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_publisher_that_was_superseded_is_fenced() {
    let grid = Grid::start(1, 2).await.unwrap();
    let client = grid.client().await.unwrap();
    let spec = spec("signals.mom", &["score"]);
    let old = lease(&client, &spec, "a", false).await.unwrap();
    publish(&client, &spec, &old, "run-1", &[("A", 1.0)]).await.unwrap();

    let error = lease(&client, &spec, "b", false).await.unwrap_err();
    assert_eq!(error.code(), Code::Conflict, "{error:?}");
    let new = lease(&client, &spec, "b", true).await.unwrap();
    assert!(new.epoch > old.epoch);

    let error = publish(&client, &spec, &old, "run-2", &[("A", 2.0)]).await.unwrap_err();
    assert_eq!(error.code(), Code::Fenced, "{error:?}");
    assert!(error.to_string().contains(&format!("fenced by epoch {}", new.epoch)), "{error}");
    publish(&client, &spec, &new, "run-3", &[("A", 3.0)]).await.unwrap();
    assert_eq!(read(&client, &spec, None).await, [3.0]);
    grid.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_epoch_survives_the_restart_of_the_shard() {
    let mut grid = Grid::start(1, 1).await.unwrap();
    let client = grid.client().await.unwrap();
    let spec = spec("signals.mom", &["score"]);
    let old = lease(&client, &spec, "a", false).await.unwrap();
    let new = lease(&client, &spec, "b", true).await.unwrap();
    publish(&client, &spec, &new, "run-1", &[("A", 1.0)]).await.unwrap();
    grid.restart_shard(0).await.unwrap();

    let error = publish(&client, &spec, &old, "run-2", &[("A", 2.0)]).await.unwrap_err();
    assert_eq!(error.code(), Code::Fenced, "{error:?}");
    publish(&client, &spec, &new, "run-3", &[("A", 3.0)]).await.unwrap();
    assert_eq!(read(&client, &spec, None).await, [3.0]);
    grid.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_run_is_acknowledged_again_and_another_content_is_refused() {
    let grid = Grid::start(1, 2).await.unwrap();
    let client = grid.client().await.unwrap();
    let spec = spec("signals.mom", &["score"]);
    let lease = lease(&client, &spec, "a", false).await.unwrap();
    let ack = publish(&client, &spec, &lease, "run-1", &[("A", 1.0)]).await.unwrap();

    let again = publish(&client, &spec, &lease, "run-1", &[("A", 1.0)]).await.unwrap();
    assert!(again.duplicate);
    assert_eq!((again.version, again.known_at_ns), (ack.version, ack.known_at_ns));
    let error = publish(&client, &spec, &lease, "run-1", &[("A", 2.0)]).await.unwrap_err();
    assert_eq!(error.code(), Code::Conflict, "{error:?}");
    assert_eq!(read(&client, &spec, None).await, [1.0]);
    grid.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publish_that_does_not_fit_leaves_the_dataset_as_it_was() {
    let grid = Grid::start(1, 2).await.unwrap();
    let client = grid.client().await.unwrap();
    let spec = spec("signals.mom", &["score"]);
    let lease = lease(&client, &spec, "a", false).await.unwrap();
    publish(&client, &spec, &lease, "run-1", &[("A", 1.0)]).await.unwrap();

    let good = batch(&spec, &scores(&[("A", 2.0), ("A", 3.0)])).unwrap();
    let error = client.publish(header(&spec, &lease, "run-2"), vec![good.clone()]).await.unwrap_err();
    assert_eq!(error.code(), Code::BadRows, "the key A twice: {error:?}");

    let other = trellis_tests::grid::spec("signals.mom", &["weight"]);
    let wrong = RecordBatch::try_new(
        other.rows_schema(),
        vec![
            good.column(0).clone(),
            good.column(1).clone(),
            std::sync::Arc::new(Float64Array::from(vec![1.0, 2.0])),
        ],
    )
    .unwrap();
    let error = client.publish(header(&spec, &lease, "run-3"), vec![wrong]).await.unwrap_err();
    assert_eq!(error.code(), Code::BadRows, "{error:?}");
    assert!(error.to_string().contains("weight") && error.to_string().contains("score"), "{error}");

    let ts = good.column(1).as_primitive::<TimestampNanosecondType>().value(0) + DAY_NS;
    let tomorrow = Row { symbol: "A".into(), ts, known_at: 0, values: vec![Some(1.0)] };
    let error = client
        .publish(header(&spec, &lease, "run-4"), vec![batch(&spec, &[tomorrow]).unwrap()])
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::BadRows, "a row of another session: {error:?}");

    assert_eq!(read(&client, &spec, None).await, [1.0]);
    grid.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_write_to_a_dataset_is_in_the_ledger_once_and_no_refused_one_is() {
    let grid = Grid::start(2, 3).await.unwrap();
    let (one, two) = (client_of(&grid, 0).await, client_of(&grid, 1).await);
    let signals = spec("signals.mom", &["score"]);
    let lease = lease(&one, &signals, "a", false).await.unwrap();
    publish(&one, &signals, &lease, "run-1", &[("A", 1.0)]).await.unwrap();
    publish(&one, &signals, &lease, "run-1", &[("A", 2.0)]).await.unwrap_err();
    let once = pb::PublishHeader {
        epoch: 0,
        instance: "b".into(),
        run_id: "run-2".into(),
        spec: Some((&signals).into()),
        once: Some(pb::PublishOnce { take_over: true }),
        ..header(&signals, &lease, "")
    };
    let rows = vec![batch(&signals, &scores(&[("A", 3.0)])).unwrap()];
    let ack = one.publish(once, rows).await.unwrap();
    assert!(ack.recorded && ack.epoch > lease.epoch, "{ack:?}");
    let release = pb::AcquireLeaseRequest {
        dataset: "signals.mom".into(),
        instance: "me".into(),
        ..Default::default()
    };
    one.acquire_lease(release).await.unwrap();

    let prices = spec("prices.old", &["close"]);
    import(&two, &prices, &scores(&[("A", 1.0)]), None, "import-1").await.unwrap();
    let (dataset, id) = ("prices.old".to_owned(), "by-hand".to_owned());
    let alter = pb::AlterDatasetRequest {
        dataset: dataset.clone(),
        id: id.clone(),
        calendar: Some("XNYS".into()),
        ..Default::default()
    };
    two.alter_dataset(alter).await.unwrap();
    let to = "prices.new".to_owned();
    let rename = pb::RenameDatasetRequest { dataset, id: id.clone(), to: to.clone(), ..Default::default() };
    two.rename_dataset(rename).await.unwrap();
    two.drop_dataset(pb::DropDatasetRequest { dataset: to, id, ..Default::default() }).await.unwrap();

    let mut recorded: Vec<_> =
        ledger(&one).await.unwrap().into_iter().map(|run| (run.unit, run.run_id, run.outcome)).collect();
    recorded.sort();
    let of = |unit: &str, run_id: &str| (unit.to_owned(), run_id.to_owned(), "succeeded".to_owned());
    let released = format!("release-{}", ack.epoch + 1);
    let expected = [
        of("alter:prices.old", "by-hand"),
        of("drop:prices.new", "by-hand"),
        of("import:prices.old", "import-1"),
        of("release:signals.mom", &released),
        of("rename:prices.old", "by-hand"),
        of("test", "run-1"),
        of("test", "run-2"),
    ];
    assert_eq!(recorded, expected);
    grid.stop().await.unwrap();
}
