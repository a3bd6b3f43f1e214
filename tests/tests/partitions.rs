//! Two publishers of one output, and two shards that both believe to be its home. The test cuts connections, pauses
//! processes for longer than a lease, sets their wall clocks minutes apart, and kills them. In all cases epochs are accepted
//! in the order of their grants, and a read as of a time always gives the same rows.
//!
//! A table has two homes if a task was replaced but still runs. The choices are seeded (`TRELLIS_SEED`, `TRELLIS_STEPS`); the
//! processes are real, so the timing differs from run to run.
#![allow(clippy::unwrap_used)] // a test may panic

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tempfile::TempDir;
use trellis_proto::{Code, Error, pb};
use trellis_qcu::client::Client;
use trellis_tests::{
    clock::{self, Clock},
    gate::Gate,
    moments::{Moment, Watcher},
    processes::{Node, client},
    rng::Rng,
    tables::{check_log, commits, foreign_rows},
    traffic::{Door, FIELDS, Output, PATIENCE, Seen},
};

const STEPS: usize = 400;
/// How long a step may wait for a process that is cut off or paused.
const STEP: Duration = Duration::from_millis(250);
/// Life of a lease: a publisher that misses a few steps loses it.
const TTL_MS: u32 = 200;
/// Offsets of the clocks, in seconds.
const SKEW_MAX: i64 = 600;
const DATASET: &str = "signals.one";

/// Two sides with a publisher, a head and a shard each, and gates between them.
struct Sides {
    output: Arc<Output>,
    shards: Vec<Node>,
    clocks: Option<Vec<Clock>>,
    _heads: Vec<Node>,
    /// The gates that the heads call shards through; each may lead to either shard.
    to_shard: Vec<Gate>,
    /// The gates that the publishers call heads through.
    to_head: Vec<Gate>,
    clients: Vec<Client>,
    folder: TempDir,
}

impl Sides {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let lake = folder.path().join("lake");
        std::fs::create_dir(&lake).unwrap();
        let library = clock::library(folder.path()).unwrap();
        let (mut shards, mut clocks, mut heads) = (Vec::new(), Vec::new(), Vec::new());
        let (mut to_shard, mut to_head, mut clients) = (Vec::new(), Vec::new(), Vec::new());
        let output = Output::new(DATASET, Door::Session);
        for side in 0..2 {
            // Both shards are shard 0 of 1.
            let mut shard = Node::shard(&lake, 0, 1, folder.path()).unwrap();
            if let Some(library) = &library {
                let file = folder.path().join(format!("clock-{side}"));
                clocks.push(Clock::of(&mut shard, library, file).unwrap());
            }
            shard.start().unwrap();
            to_shard.push(Gate::to(shard.addr()).await.unwrap());
            shards.push(shard);
            let mut head = Node::head(side, &[to_shard[side].addr()], folder.path()).unwrap();
            head.start().unwrap();
            to_head.push(Gate::to(head.addr()).await.unwrap());
            heads.push(head);
            clients.push(client(&[to_head[side].addr()], output.unit(), PATIENCE).await.unwrap());
        }
        let clocks = library.map(|_| clocks);
        Self { output: Arc::new(output), shards, clocks, _heads: heads, to_shard, to_head, clients, folder }
    }

    fn table(&self) -> std::path::PathBuf {
        self.folder.path().join("lake").join(DATASET)
    }

    async fn acquire(&self, client: &Client, side: usize, take_over: bool) -> Result<pb::Lease, Error> {
        let request = pb::AcquireLeaseRequest {
            dataset: DATASET.into(),
            unit: self.output.unit().into(),
            instance: format!("side-{side}"),
            take_over,
            ttl_ms: TTL_MS,
            spec: Some((&self.output.spec).into()),
        };
        client.acquire_lease(request).await
    }

    fn addrs(&self) -> Vec<SocketAddr> {
        self.to_head.iter().map(Gate::addr).collect()
    }

    /// The log and the rows at the end.
    async fn check(&self) {
        let commits = commits(&self.table()).unwrap();
        let committed = check_log(&commits).unwrap();
        let mut known_at = BTreeMap::new();
        for (n, run) in self.output.runs().await.iter().enumerate() {
            if let Some(ack) = &run.ack {
                assert_eq!(committed.get(&self.output.run_id(n)), Some(&ack.version), "publish {n}");
                known_at.insert(ack.version, ack.known_at_ns);
            }
        }
        let times: Vec<i64> = known_at.into_values().collect();
        assert!(times.is_sorted(), "a later version became known earlier: {times:?}");
        if let Some(tables) = foreign_rows(&[self.table()], &FIELDS).unwrap() {
            self.output.check_stored(&tables[0]).await.unwrap();
        }
    }
}

/// A publisher's own view.
#[derive(Default)]
struct Believed {
    lease: Option<pb::Lease>,
}

fn error_of(error: anyhow::Error) -> Error {
    error.downcast_ref::<Error>().unwrap_or_else(|| panic!("{error:?}")).clone()
}

/// The only errors that a publisher with an old epoch may get.
fn assert_expected(error: &Error) {
    let expected = error.retryable() || matches!(error.code(), Code::Fenced | Code::Conflict);
    assert!(expected, "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn epochs_are_accepted_in_order_and_the_past_stays_whatever_is_cut_asleep_or_set() {
    let started = Instant::now();
    let steps = std::env::var("TRELLIS_STEPS").map_or(STEPS, |text| text.parse().unwrap());
    let mut rng = Rng::seeded(23);
    let mut sides = Sides::start().await;
    let clients: Vec<Client> = sides.clients.iter().map(|client| client.with_deadline(STEP)).collect();
    let mut believed = [Believed::default(), Believed::default()];
    let mut asleep: Option<usize> = None;
    let mut looks: Vec<(usize, i64, Vec<Seen>)> = Vec::new();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();

    for step in 0..steps {
        let side = rng.below(2);
        if rng.once_in(3)
            && let Some(sleeper) = asleep.take()
        {
            sides.shards[sleeper].resume().unwrap();
        }
        let mut count = |what: &str| *counts.entry(what.to_owned()).or_default() += 1;
        match rng.below(20) {
            0..=3 => match sides.acquire(&clients[side], side, rng.once_in(2)).await {
                Ok(lease) => {
                    count("granted");
                    believed[side].lease = Some(lease);
                }
                Err(error) => {
                    count(&format!("not granted: {:?}", error.code()));
                    assert_expected(&error);
                }
            },
            4 => {
                let Some(lease) = &believed[side].lease else { continue };
                let renewed = clients[side]
                    .renew_lease(pb::RenewLeaseRequest {
                        dataset: DATASET.into(),
                        unit: lease.unit.clone(),
                        instance: lease.instance.clone(),
                        epoch: lease.epoch,
                        ttl_ms: TTL_MS,
                    })
                    .await;
                if let Err(error) = renewed {
                    assert_expected(&error);
                }
            }
            5..=11 => {
                let Some(lease) = believed[side].lease.clone() else { continue };
                let (n, session) = sides.output.begin(&mut rng).await;
                match sides.output.publish(&clients[side], n, session, Some(&lease)).await {
                    Ok(ack) => {
                        count("published");
                        sides.output.acknowledged(n, ack).await.unwrap();
                    }
                    Err(error) => {
                        let error = error_of(error);
                        count(&format!("not published: {:?}", error.code()));
                        assert_expected(&error);
                    }
                }
            }
            12 if rng.once_in(2) => {
                let gate = if rng.once_in(2) { &sides.to_shard[side] } else { &sides.to_head[side] };
                gate.cut();
                count("line cut");
            }
            12 | 13 => {
                for side in 0..2 {
                    sides.to_shard[side].open();
                    sides.to_head[side].open();
                }
            }
            14 => {
                // Switches this side's head to one of the shards; its present connection is cut first.
                let target = sides.shards[rng.below(2)].addr();
                sides.to_shard[side].cut();
                sides.to_shard[side].retarget(target);
                sides.to_shard[side].open();
                count("led to another shard");
            }
            15 => {
                if let Some(clocks) = &sides.clocks {
                    let seconds = rng.below(2 * SKEW_MAX as usize) as i64 - SKEW_MAX;
                    clocks[side].set(seconds).unwrap();
                    count("clock set");
                }
            }
            16 if asleep.is_none() => {
                sides.shards[side].pause().unwrap();
                asleep = Some(side);
                count("put to sleep");
            }
            17 if rng.once_in(3) && asleep != Some(side) => {
                sides.shards[side].kill();
                sides.shards[side].start().unwrap();
                count("killed");
            }
            16..=18 => {
                let sessions = sides.output.runs().await.len();
                if sessions == 0 {
                    continue;
                }
                let session = sides.output.runs().await[rng.below(sessions)].session;
                if let Ok((rows, receipt)) = sides.output.look(&clients[side], session, None).await {
                    count("looked");
                    sides.output.whole(session, &rows).await.unwrap();
                    looks.push((session, receipt.known_through_ns, rows));
                }
            }
            _ => {
                if looks.is_empty() {
                    continue;
                }
                let (session, as_of, before) = rng.pick(&looks);
                if let Ok((rows, _)) = sides.output.look(&clients[side], *session, Some(*as_of)).await {
                    count("looked again");
                    assert_eq!(rows, *before, "step {step}: session {session} as of {as_of}");
                }
            }
        }
    }

    if let Some(sleeper) = asleep {
        sides.shards[sleeper].resume().unwrap();
    }
    for side in 0..2 {
        sides.to_shard[side].open();
        sides.to_head[side].open();
    }
    // With all connections open again, all earlier reads give the same rows on both sides, and each side can take over and
    // publish.
    for side in 0..2 {
        for (session, as_of, before) in &looks {
            let (rows, _) = sides.output.look(&sides.clients[side], *session, Some(*as_of)).await.unwrap();
            assert_eq!(rows, *before, "healed, side {side}: session {session} as of {as_of}");
        }
        let lease = sides.acquire(&sides.clients[side], side, true).await.unwrap();
        let (n, session) = sides.output.begin(&mut rng).await;
        let ack = sides.output.publish(&sides.clients[side], n, session, Some(&lease)).await.unwrap();
        sides.output.acknowledged(n, ack).await.unwrap();
    }
    sides.check().await;
    println!("{steps} steps in {:.1?}: {counts:?}", started.elapsed());
}

/// The holder's shard is paused in the middle of a commit for longer than any lease. Meanwhile another epoch is granted and
/// publishes. Then the paused shard goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_slept_through_a_take_over_commits_nothing_of_the_old_epoch_after_it() {
    let sides = Sides::start().await;
    let mut rng = Rng::seeded(29);
    for moment in Moment::ALL {
        let old = sides.acquire(&sides.clients[0], 0, true).await.unwrap();
        let (n, session) = sides.output.begin(&mut rng).await;
        let watcher = Watcher::of([sides.table().as_path()]).unwrap();
        let publish = tokio::spawn({
            let (output, client, old) = (sides.output.clone(), sides.clients[0].clone(), old.clone());
            async move { output.publish(&client, n, session, Some(&old)).await }
        });
        assert!(watcher.wait(moment, PATIENCE).unwrap(), "{moment:?} came");
        sides.shards[0].pause().unwrap();

        let new = sides.acquire(&sides.clients[1], 1, true).await.unwrap();
        assert!(new.epoch > old.epoch);
        let (m, session) = sides.output.begin(&mut rng).await;
        let ack = sides.output.publish(&sides.clients[1], m, session, Some(&new)).await.unwrap();
        let taken_over = ack.version;
        sides.output.acknowledged(m, ack).await.unwrap();

        sides.shards[0].resume().unwrap();
        match publish.await.unwrap() {
            // It had committed before the pause, or at least before the other publisher did.
            Ok(ack) => {
                assert!(ack.version < taken_over, "{moment:?}: {} after {taken_over}", ack.version);
                sides.output.acknowledged(n, ack).await.unwrap();
            }
            Err(error) => {
                let error = error_of(error);
                assert_eq!(error.code(), Code::Fenced, "{moment:?}: {error:?}");
                let by = format!("fenced by epoch {}", new.epoch);
                assert!(error.message().contains(&by), "{moment:?}: {error}");
            }
        }
        // The paused side sees the publish that was made meanwhile.
        let (rows, _) = sides.output.look(&sides.clients[0], session, None).await.unwrap();
        assert_eq!(sides.output.whole(session, &rows).await.unwrap(), Some(m));
    }
    sides.check().await;
}

/// The clock of the shard that commits is ten minutes ahead, then ten minutes behind: knowledge times only grow, and reads as
/// of a time stay the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_set_back_does_not_set_knowledge_back() {
    let sides = Sides::start().await;
    let Some(clocks) = &sides.clocks else { return };
    let mut rng = Rng::seeded(37);
    let lease = sides.acquire(&sides.clients[0], 0, true).await.unwrap();
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
    let mut looks: Vec<(usize, i64, Vec<Seen>)> = Vec::new();
    let mut last = i64::MIN;
    for offset in [SKEW_MAX, -SKEW_MAX, 0] {
        clocks[0].set(offset).unwrap();
        for _ in 0..5 {
            let (n, session) = sides.output.begin(&mut rng).await;
            let ack = sides.output.publish(&sides.clients[0], n, session, Some(&lease)).await.unwrap();
            assert!(ack.known_at_ns > last, "{} after {last}", ack.known_at_ns);
            last = ack.known_at_ns;
            // Knowledge times follow the clock forward, but never back.
            assert!(last / 1_000_000_000 > now() + SKEW_MAX / 2, "with the clock at {offset} s");
            sides.output.acknowledged(n, ack).await.unwrap();
            let (rows, receipt) = sides.output.look(&sides.clients[0], session, None).await.unwrap();
            assert_eq!(sides.output.whole(session, &rows).await.unwrap(), Some(n));
            looks.push((session, receipt.known_through_ns, rows));
        }
        for (session, as_of, before) in &looks {
            for client in &sides.clients {
                let (rows, _) = sides.output.look(client, *session, Some(*as_of)).await.unwrap();
                assert_eq!(rows, *before, "session {session} as of {as_of}");
            }
        }
    }
    sides.check().await;
}

/// A head that loses its connection to the shard during a publish does not know the outcome. The same publish through another
/// head gets the acknowledgement.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publish_whose_acknowledgement_was_cut_off_is_acknowledged_through_another_head() {
    let sides = Sides::start().await;
    let mut rng = Rng::seeded(31);
    sides.to_shard[1].retarget(sides.shards[0].addr());
    let lease = sides.acquire(&sides.clients[0], 0, true).await.unwrap();
    let both = client(&sides.addrs(), sides.output.unit(), PATIENCE).await.unwrap();
    let mut duplicates = 0;
    for moment in Moment::ALL {
        // The client may ask either head first; the other one still has its connection.
        for side in 0..2 {
            let (n, session) = sides.output.begin(&mut rng).await;
            let watcher = Watcher::of([sides.table().as_path()]).unwrap();
            let publish = tokio::spawn({
                let (output, both, lease) = (sides.output.clone(), both.clone(), lease.clone());
                async move { output.publish(&both, n, session, Some(&lease)).await }
            });
            assert!(watcher.wait(moment, PATIENCE).unwrap(), "{moment:?} came");
            sides.to_shard[side].cut();
            let ack = publish.await.unwrap().unwrap();
            duplicates += usize::from(ack.duplicate);
            sides.output.acknowledged(n, ack).await.unwrap();
            sides.to_shard[side].open();
        }
    }
    println!("{duplicates} of 8 had been committed before they were asked for again");
    sides.check().await;
}
