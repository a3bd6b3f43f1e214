//! No acknowledged write is lost or doubled, however often shards, heads and units are killed. Processes get SIGKILL at
//! every point of a commit and of a run.
//!
//! Publishers, importers, readers and deployed units work while processes are killed. The killer waits for an event: a
//! publish is sent or acknowledged, a strategy is called, or a file of a commit appears in a table's folder. At the end the
//! test compares the log, the rows of a foreign reader and the answers of the grid with the records.
//!
//! `TRELLIS_KILLS`: number of kills, default 80. `TRELLIS_READERS`: number of readers, default 3. `TRELLIS_SEED`: seed of
//! the choices; the timing still differs from run to run.
#![allow(clippy::unwrap_used)] // a test may panic

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::watch, task::JoinSet, time::timeout};
use trellis_tests::{
    moments::{Moment, Watcher},
    processes::{Cluster, client},
    rng::Rng,
    tables::{Commit, StoredRow, check_log, commits, foreign_rows, live_files},
    traffic::{self, Door, FIELDS, Output, PATIENCE, Pulse, ROWS},
    units::{Point, Unit},
};

/// Some minutes. Each process is killed at each of its moments several times.
const KILLS: usize = 80;
const READERS: usize = 3;
/// One in this many acknowledged publishes is read again at the end; all of them are checked in the log and the files.
const ASKED_AGAIN: usize = 8;
/// Longest wait for a chosen moment. After a kill a publish may wait one second for a head that does not apply its changes,
/// and two for a shard that starts, and the next publish again.
const MOMENT_MAX: Duration = Duration::from_secs(60);
/// Number of small files from which a starting shard merges them, by default.
const COMPACT_FILES: usize = 64;

/// The event at which a process was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// A publish had been sent, and nothing was written.
    Sent,
    /// A publish had been acknowledged.
    Acknowledged,
    /// A commit was being made.
    Commit(Moment),
    /// A compaction was being made.
    Compaction(Moment),
}

/// Fields are dropped in this order: units before the grid that they need.
struct Mix {
    units: Vec<Arc<Unit>>,
    cluster: Cluster,
    outputs: Vec<Arc<Output>>,
    pulse: Arc<Pulse>,
    tasks: JoinSet<anyhow::Result<()>>,
    stop: watch::Sender<bool>,
    rng: Rng,
    /// How often which process was killed at which event.
    killed: BTreeMap<(&'static str, String), usize>,
    kills: usize,
}

#[test]
fn what_was_acknowledged_is_there_once_whoever_is_killed_and_whenever() {
    let kills = number("TRELLIS_KILLS", KILLS);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let started = Instant::now();
    runtime.block_on(async {
        let mut mix = Mix::start().await;
        while mix.kills < kills {
            mix.kill_one().await;
        }
        println!("{} kills in {:.1?}", mix.kills, started.elapsed());
        mix.quiet().await;
        println!("{}", mix.pulse.summary());
        for unit in &mix.units {
            println!("{}", unit.summary());
        }
        for ((who, at), times) in &mix.killed {
            println!("{times:4} {who} killed at {at}");
        }
        mix.check().await;
        println!("checked after {:.1?}", started.elapsed());
    });
}

fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap())
}

impl Mix {
    async fn start() -> Self {
        let mut rng = Rng::seeded(5);
        let cluster = Cluster::start(2, 2, &[("TRELLIS_LOG", "warn")]).unwrap();
        let doors = [
            ("signals.one", Door::Session),
            ("signals.two", Door::Session),
            ("signals.three", Door::Session),
            ("prices.four", Door::Import),
            ("prices.five", Door::Import),
        ];
        let outputs: Vec<Arc<Output>> =
            doors.into_iter().map(|(name, door)| Arc::new(Output::new(name, door))).collect();
        // Each unit reads a dataset that a publisher or an importer writes.
        let copies = [("signals.six", &outputs[0]), ("signals.seven", &outputs[3])];
        let deploy = |(dataset, input)| Arc::new(Unit::deploy(cluster.folder(), dataset, input).unwrap());
        let units: Vec<Arc<Unit>> = copies.into_iter().map(deploy).collect();
        let (stop, stopped) = watch::channel(false);
        let (pulse, heads, mut tasks) = (Arc::new(Pulse::default()), cluster.head_addrs(), JoinSet::new());
        for output in &outputs {
            tasks.spawn(output.clone().work(heads.clone(), rng.fork(), stopped.clone(), pulse.clone()));
        }
        for unit in &units {
            tasks.spawn(unit.clone().work(heads.clone(), rng.fork(), stopped.clone(), pulse.clone()));
        }
        // Every table exists before the first kill, because the killer watches their folders.
        let mut acknowledged = pulse.acknowledged();
        let all = async {
            for output in &outputs {
                while output.runs().await.iter().all(|run| run.ack.is_none()) {
                    acknowledged.changed().await.unwrap();
                }
            }
            while units.iter().any(|unit| unit.runs() == 0) {
                acknowledged.changed().await.unwrap();
            }
        };
        timeout(PATIENCE, all).await.expect("every publisher begins");
        for _ in 0..number("TRELLIS_READERS", READERS) {
            let (outputs, heads) = (outputs.clone(), heads.clone());
            tasks.spawn(traffic::read(outputs, heads, rng.fork(), stopped.clone(), pulse.clone()));
        }
        Self { units, cluster, outputs, pulse, tasks, stop, rng, killed: BTreeMap::new(), kills: 0 }
    }

    /// Waits for a moment, kills a process and starts it again.
    async fn kill_one(&mut self) {
        self.check_tasks();
        if self.rng.once_in(8) && self.kill_in_compaction().await {
            return;
        }
        if self.rng.once_in(5) {
            return self.kill_unit();
        }
        let output = self.rng.pick(&self.outputs).clone();
        let at = match self.rng.below(6) {
            0 => At::Sent,
            1 => At::Acknowledged,
            _ => At::Commit(*self.rng.pick(&Moment::ALL)),
        };
        // Kills the shard that commits, another shard, or a head; sometimes a shard and a head.
        let home = self.cluster.home(output.name());
        let (shard, head) = match self.rng.below(10) {
            0..=5 => (Some(home), None),
            6 => (Some(1 - home), None),
            7..=8 => (None, Some(self.rng.below(2))),
            _ => (Some(home), Some(self.rng.below(2))),
        };
        self.wait_for(at, &output).await;
        if let Some(shard) = shard {
            self.cluster.shards[shard].kill();
            self.count(if shard == home { "home shard" } else { "other shard" }, at);
        }
        if let Some(head) = head {
            self.cluster.heads[head].kill();
            self.count("head", at);
        }
        self.cluster.start_all().unwrap();
    }

    async fn wait_for(&mut self, at: At, output: &Output) {
        let came = match at {
            At::Sent | At::Acknowledged => {
                let mut counter = if at == At::Sent { self.pulse.sent() } else { self.pulse.acknowledged() };
                timeout(MOMENT_MAX, counter.changed()).await.is_ok()
            }
            At::Commit(moment) | At::Compaction(moment) => {
                let watcher = Watcher::of([self.cluster.table(output.name()).as_path()]).unwrap();
                // Blocks this thread, which has no other work, so that the kill is not late.
                watcher.wait(moment, MOMENT_MAX).unwrap()
            }
        };
        self.check_tasks();
        assert!(came, "{at:?} of {} did not come within {MOMENT_MAX:?}", output.name());
    }

    /// Kills a unit at a point of a run, sometimes together with the server that it talks to. The unit's runner starts it again.
    fn kill_unit(&mut self) {
        let unit = self.rng.pick(&self.units).clone();
        let point = *self.rng.pick(&Point::ALL);
        let came = unit.wait(point, self.cluster.lake(), MOMENT_MAX).unwrap();
        if unit.kill() {
            self.count("unit", point);
        }
        if self.rng.once_in(4) {
            let home = self.cluster.home(unit.dataset());
            self.cluster.shards[home].kill();
            self.count("home shard of a unit", point);
        }
        self.check_tasks();
        assert!(came, "{point:?} of unit {} did not come within {MOMENT_MAX:?}", unit.name());
        self.cluster.start_all().unwrap();
    }

    /// Starts the home shard of a table with many small files, which it merges first, and kills it meanwhile. `false`: no
    /// table has enough small files.
    async fn kill_in_compaction(&mut self) -> bool {
        let lake = self.cluster.lake().to_owned();
        let due = |output: &Output| live_files(&commits(&lake.join(output.name())).unwrap()) >= COMPACT_FILES;
        let Some(output) = self.outputs.iter().find(|output| due(output)).cloned() else { return false };
        // While its publisher pauses, only the compaction writes.
        let still = output.hold_still().await;
        let home = self.cluster.home(output.name());
        let moment = *self.rng.pick(&Moment::ALL);
        self.cluster.shards[home].kill();
        self.count("home shard", At::Sent);
        if !due(&output) {
            // The shard merged them before the kill.
            self.cluster.shards[home].start().unwrap();
            return true;
        }
        let watcher = Watcher::of([self.cluster.table(output.name()).as_path()]).unwrap();
        self.cluster.shards[home].launch().unwrap();
        let came = watcher.wait(moment, MOMENT_MAX).unwrap();
        assert!(came, "{} was not compacted within {MOMENT_MAX:?}", output.name());
        self.cluster.shards[home].kill();
        self.count("home shard", At::Compaction(moment));
        self.cluster.shards[home].start().unwrap();
        drop(still);
        true
    }

    fn count(&mut self, who: &'static str, at: impl Debug) {
        *self.killed.entry((who, format!("{at:?}"))).or_default() += 1;
        self.kills += 1;
    }

    /// Checks that no task has failed and no process has ended by itself.
    fn check_tasks(&mut self) {
        if let Some(ended) = self.tasks.try_join_next() {
            panic!("after {} kills: {ended:?}", self.kills);
        }
        for node in self.cluster.shards.iter_mut().chain(&mut self.cluster.heads) {
            if let Some(status) = node.crashed() {
                panic!("{} ended by itself: {status}", node.id());
            }
        }
    }

    /// Lets every task finish its work, then stops every server.
    async fn quiet(&mut self) {
        self.check_tasks();
        self.stop.send_replace(true);
        let all = async {
            while let Some(ended) = self.tasks.join_next().await {
                ended.unwrap().unwrap();
            }
        };
        timeout(2 * PATIENCE, all).await.expect("everybody ends");
        // After the drain nothing is in flight.
        for node in self.cluster.heads.iter_mut().chain(&mut self.cluster.shards) {
            let status = node.stop().unwrap();
            assert!(status.success(), "{} ended with {status}:\n{}", node.id(), node.tail());
        }
    }

    async fn check(&mut self) {
        let tables = self.outputs.iter().map(|output| output.name());
        let tables: Vec<String> =
            tables.chain(self.units.iter().map(|unit| unit.dataset())).map(str::to_owned).collect();
        let stored = self.foreign(&tables);
        let mut logs = BTreeMap::new();
        for name in tables {
            let log = commits(&self.cluster.table(&name)).unwrap();
            check_log(&log).unwrap();
            logs.insert(name, log);
        }
        if let Some(stored) = &stored {
            for output in &self.outputs {
                output.check_stored(&stored[output.name()]).await.unwrap();
            }
            for unit in &self.units {
                unit.check_stored(&logs[unit.dataset()], &stored[unit.dataset()], &stored[unit.input()])
                    .unwrap();
            }
        }
        self.cluster.start_all().unwrap();
        self.check_grid(&logs).await;
        self.check_units(&logs, stored.as_ref()).await;
    }

    /// The rows that foreign readers find in the tables, if such readers are installed. They also open the ledger.
    fn foreign(&self, tables: &[String]) -> Option<BTreeMap<String, Vec<StoredRow>>> {
        let folders: Vec<_> = tables.iter().map(|name| self.cluster.table(name)).collect();
        let rows = foreign_rows(&folders, &FIELDS).unwrap()?;
        foreign_rows(&[self.cluster.table("trellis.runs")], &[]).unwrap();
        Some(tables.iter().cloned().zip(rows).collect())
    }

    /// Checks that the grid's answers agree with the log, and with each run as of its own knowledge time.
    async fn check_grid(&mut self, logs: &BTreeMap<String, Vec<Commit>>) {
        for output in &self.outputs {
            let committed = check_log(&logs[output.name()]).unwrap();
            let client = client(&self.cluster.head_addrs(), output.unit(), PATIENCE).await.unwrap();
            let runs = output.runs().await;
            for id in committed.keys() {
                assert!((0..runs.len()).any(|n| output.run_id(n) == *id), "{id} was never published");
            }
            let lease = output.lease(&client, usize::MAX).await.unwrap();
            for (n, run) in runs.iter().enumerate() {
                let version = committed.get(&output.run_id(n)).copied();
                if let Some(ack) = &run.ack {
                    assert_eq!(version, Some(ack.version), "{} {n} is not where it was said", output.name());
                    if !self.rng.once_in(ASKED_AGAIN) {
                        continue;
                    }
                }
                // A publish without an answer is a duplicate if it was committed; if not, it is published now.
                let again = output.publish(&client, n, run.session, lease.as_ref()).await.unwrap();
                assert_eq!(again.duplicate, version.is_some(), "{} {n}", output.name());
                if let Some(ack) = &run.ack {
                    assert_eq!((again.version, again.known_at_ns), (ack.version, ack.known_at_ns));
                }
                let as_of = Some(again.known_at_ns);
                let (rows, _) = output.look(&client, run.session, as_of).await.unwrap();
                assert_eq!(output.whole(run.session, &rows).await.unwrap(), Some(n), "{}", output.name());
            }
            let described = client.describe(Some(&output.spec.dataset)).await.unwrap();
            assert_eq!(described[0].rows, (runs.len() * ROWS) as u64, "rows of {}", output.name());
        }
    }

    /// Checks that the ledger has every publish that was acknowledged as recorded, and every reported run. Rows of units are
    /// read as they are stored.
    async fn check_units(
        &mut self,
        logs: &BTreeMap<String, Vec<Commit>>,
        stored: Option<&BTreeMap<String, Vec<StoredRow>>>,
    ) {
        let client = client(&self.cluster.head_addrs(), "checker", PATIENCE).await.unwrap();
        let ledger = traffic::ledger(&client).await.unwrap();
        for output in &self.outputs {
            let recorded: BTreeSet<_> = ledger
                .iter()
                .filter(|listed| listed.unit == output.unit() && listed.outcome == "succeeded")
                .map(|listed| (listed.run_id.clone(), listed.version))
                .collect();
            for (n, run) in output.runs().await.iter().enumerate() {
                if let Some(ack) = run.ack.as_ref().filter(|ack| ack.recorded) {
                    let id = output.run_id(n);
                    assert!(recorded.contains(&(id.clone(), Some(ack.version))), "{id} is not in the ledger");
                }
            }
        }
        for unit in &self.units {
            unit.check_recorded(&logs[unit.dataset()], &ledger).unwrap();
            if let Some(stored) = stored {
                let rows = &stored[unit.dataset()];
                unit.check_read(&client, rows, &mut self.rng, ASKED_AGAIN).await.unwrap();
            }
        }
    }
}
