//! kill -9 of the real binary: acknowledged publishes are kept, other publishes are whole or absent.

use trellis_proto::pb;

use crate::support::*;

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_publishes_survive_kill_9() {
    let lake = tempfile::tempdir().unwrap();
    let mut acknowledged: Vec<(i64, f64)> = Vec::new();
    let mut sent = 0_i64;
    for round in 0..6 {
        let (mut child, address) = spawn(lake.path(), &[]).await;
        let mut client = connect(&address).await;
        let lease = acquire(&mut client, "signals.mom", "mom", true).await.unwrap();
        // Four publishers at once; the shard is killed during their publishes.
        let (done, mut acks) = tokio::sync::mpsc::channel(64);
        let mut tasks = Vec::new();
        for publisher in 0..4_i64 {
            let (mut client, done, first) = (client.clone(), done.clone(), sent);
            tasks.push(tokio::spawn(async move {
                for i in 0..1_000 {
                    let n = first + i * 4 + publisher;
                    let run = format!("r{n}");
                    let header = session_header("signals.mom", "mom", lease.epoch, &run, "1970-01-02");
                    // each publish is a partition of the session, so none replaces another
                    let header = pb::PublishHeader { partition: run, ..header };
                    let rows: Vec<(String, i64, f64)> =
                        (0..3).map(|s| (format!("S{s}"), day(1) + n, n as f64)).collect();
                    match send(&mut client, header, &[batch(&rows)]).await {
                        Ok(_) => {
                            if done.send(n).await.is_err() {
                                return;
                            }
                        }
                        Err(_) => return,
                    }
                }
            }));
        }
        drop(done);
        for _ in 0..20 + round * 7 {
            let n = acks.recv().await.unwrap();
            acknowledged.push((day(1) + n, n as f64));
        }
        child.start_kill().unwrap();
        child.wait().await.unwrap();
        // Publishes that were acknowledged before the connection broke count, too.
        while let Some(n) = acks.recv().await {
            acknowledged.push((day(1) + n, n as f64));
        }
        for task in tasks {
            task.await.unwrap();
        }
        sent += 4_000;
    }
    let (mut child, address) = spawn(lake.path(), &[]).await;
    let mut client = connect(&address).await;
    acknowledged.sort_by_key(|a| a.0);
    let ranges = (0..3).map(|s| range("signals.mom", &format!("S{s}"))).collect();
    let fetched = fetch(&mut client, ranges, pb::FetchOrder::OldestFirst).await;
    for one in &fetched {
        // Every publish is whole: each symbol has the same rows, and no row is there twice.
        assert_eq!(one.rows, fetched[0].rows);
        assert_eq!(one.latest().len(), one.rows.len());
        let rows = one.latest();
        for ack in &acknowledged {
            assert!(rows.binary_search_by_key(&ack.0, |r| r.0).is_ok(), "lost {ack:?}");
        }
    }
    child.start_kill().unwrap();
    child.wait().await.unwrap();
}
