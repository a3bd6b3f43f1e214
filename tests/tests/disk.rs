//! Disks that are full, read-only or lose the end of a file: acknowledged rows stay, reads go on, other calls are refused
//! with the file and the reason, and no process needs a restart when the disk works again.
#![allow(clippy::unwrap_used)] // a test may panic

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use trellis_proto::{Code, Error, pb};
use trellis_qcu::client::Client;
use trellis_tests::{
    disk::{Disk, truncate},
    processes::{Cluster, client},
    rng::Rng,
    skip::skipped,
    tables::{check_log, commits, foreign_rows},
    traffic::{Door, FIELDS, Output, PATIENCE},
};

/// Size of the disk, in bytes.
const DISK_BYTES: usize = 16 << 20;
/// How long a publish to a broken disk is retried at first. It is retried for twice as long whenever the machine was too slow for an
/// answer.
const SHORT: Duration = Duration::from_millis(1_000);
/// The test leaves 0, 1, 2 ... pages free, below this number; a publish needs fewer.
const PAGES: usize = 12;

/// A grid with one shard and one head, and one output in it.
struct Unit {
    output: Output,
    client: Client,
    hasty: Client,
    patience: Duration,
    lease: Option<pb::Lease>,
    rng: Rng,
}

impl Unit {
    async fn of(heads: &[SocketAddr], dataset: &str, door: Door) -> Self {
        let output = Output::new(dataset, door);
        let patient = client(heads, output.unit(), PATIENCE).await.unwrap();
        let lease = output.lease(&patient, 0).await.unwrap();
        let hasty = patient.with_deadline(SHORT);
        let mut unit = Self { output, client: patient, hasty, patience: SHORT, lease, rng: Rng::seeded(11) };
        unit.publish().await;
        unit
    }

    /// Publishes, and expects an acknowledgement.
    async fn publish(&mut self) {
        let (n, session) = self.output.begin(&mut self.rng).await;
        let ack = self.output.publish(&self.client, n, session, self.lease.as_ref()).await.unwrap();
        self.output.acknowledged(n, ack).await.unwrap();
    }

    /// Publishes; the publish may be refused.
    async fn try_publish(&mut self) -> Result<(), Error> {
        let (n, session) = self.output.begin(&mut self.rng).await;
        loop {
            let error = match self.output.publish(&self.hasty, n, session, self.lease.as_ref()).await {
                Ok(ack) => {
                    self.output.acknowledged(n, ack).await.unwrap();
                    return Ok(());
                }
                Err(error) => error.downcast_ref::<Error>().unwrap_or_else(|| panic!("{error:?}")).clone(),
            };
            // a shard that has just started may not be followed yet, and a slow one has not answered
            let no_answer = matches!(error.code(), Code::DeadlineExceeded | Code::Unavailable);
            if !no_answer || self.patience >= PATIENCE {
                return Err(error);
            }
            self.patience *= 2;
            self.hasty = self.client.with_deadline(self.patience);
        }
    }

    /// Checks that every acknowledged publish is read as it was published, as of its own time.
    async fn check_reads(&self) {
        for (n, run) in self.output.runs().await.iter().enumerate() {
            let Some(ack) = &run.ack else { continue };
            let look = self.output.look(&self.client, run.session, Some(ack.known_at_ns)).await;
            let rows = look.unwrap_or_else(|e| panic!("publish {n} of {}: {e}", self.output.name())).0;
            assert_eq!(self.output.whole(run.session, &rows).await.unwrap(), Some(n));
        }
    }

    async fn check_stored(&self, lake: &Path) {
        let table = lake.join(self.output.name());
        let committed = check_log(&commits(&table).unwrap()).unwrap();
        for (n, run) in self.output.runs().await.iter().enumerate() {
            if let Some(ack) = &run.ack {
                assert_eq!(committed.get(&self.output.run_id(n)), Some(&ack.version), "publish {n}");
            }
        }
        if let Some(tables) = foreign_rows(&[table], &FIELDS).unwrap() {
            self.output.check_stored(&tables[0]).await.unwrap();
        }
    }

    async fn read_error(&self) -> Error {
        self.output.look(&self.hasty, 0, None).await.map(|(rows, _)| rows).unwrap_err()
    }
}

fn staged(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for folder in [folder.to_owned(), folder.join("_delta_log")] {
        let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        found.extend(paths.filter(|path| path.to_string_lossy().ends_with(".staged")));
    }
    found
}

fn newest(folder: &Path, extension: &str) -> PathBuf {
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<PathBuf> = paths
        .filter(|path| path.extension().is_some_and(|e| e == extension))
        .filter(|path| !path.file_name().unwrap().to_string_lossy().starts_with('.'))
        .collect();
    paths.sort_by_key(|path| (fs::metadata(path).unwrap().modified().unwrap(), path.clone()));
    paths.pop().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_publishes_keeps_reads_and_needs_no_restart() {
    let Some(disk) = Disk::mount(DISK_BYTES).unwrap() else {
        return files_that_may_not_grow().await;
    };
    println!("a full disk: a tmpfs of {DISK_BYTES} bytes");
    let mut cluster = Cluster::start_over(disk.path(), 1, 1).unwrap();
    let mut unit = Unit::of(&cluster.head_addrs(), "signals.full", Door::Session).await;

    let mut refused = 0;
    for pages in (0..PAGES).chain((0..PAGES).rev()) {
        disk.fill_but(pages).unwrap();
        match unit.try_publish().await {
            Ok(()) => {}
            Err(error) => {
                refused += 1;
                assert_eq!(error.code(), Code::StorageFull, "with {pages} pages left: {error:?}");
                assert!(error.retryable() && error.message().contains("signals.full"), "{error:?}");
            }
        }
        unit.check_reads().await;
    }
    assert!(refused > 0, "the disk was never full");
    disk.fill_but(0).unwrap();
    let error = unit.try_publish().await.unwrap_err();
    println!("refused {refused} times, at last with: {error}");

    // A shard that starts on a full disk serves the stored rows.
    cluster.shards[0].kill();
    cluster.shards[0].start().unwrap();
    unit.check_reads().await;
    assert_eq!(unit.try_publish().await.unwrap_err().code(), Code::StorageFull);

    disk.free().unwrap();
    unit.publish().await;
    unit.check_reads().await;
    unit.check_stored(disk.path()).await;
    assert_eq!(staged(&disk.path().join("signals.full")), Vec::<PathBuf>::new(), "left behind");
    drop(cluster);
}

/// The same without a mounted disk: the size of the shard's files is limited.
async fn files_that_may_not_grow() {
    println!("a full disk: RLIMIT_FSIZE of the shard instead");
    let cluster = Cluster::start(1, 1, &[]).unwrap();
    let mut unit = Unit::of(&cluster.head_addrs(), "signals.full", Door::Session).await;
    let mut refused = 0;
    for bytes in (0..PAGES).map(|step| step as u64 * 512) {
        cluster.shards[0].limit_running(Some(bytes)).unwrap();
        if let Err(error) = unit.try_publish().await {
            refused += 1;
            assert!(error.retryable(), "{error:?}");
        }
        unit.check_reads().await;
    }
    assert!(refused > 0, "no file was ever too large");
    cluster.shards[0].limit_running(None).unwrap();
    unit.publish().await;
    unit.check_reads().await;
    unit.check_stored(cluster.lake()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_lake_serves_reads_and_says_why_it_takes_no_publishes() {
    let Some(disk) = Disk::mount(DISK_BYTES).unwrap() else {
        assert!(std::env::var("CI").is_err(), "CI can mount a disk");
        skipped("a read-only folder needs a mount of its own (mode bits do not bind root)");
        return;
    };
    let mut cluster = Cluster::start_over(disk.path(), 1, 1).unwrap();
    let mut unit = Unit::of(&cluster.head_addrs(), "signals.sealed", Door::Session).await;
    for restarted in [false, true] {
        disk.set_read_only(true).unwrap();
        if restarted {
            cluster.shards[0].kill();
            cluster.shards[0].start().unwrap();
        }
        let error = unit.try_publish().await.unwrap_err();
        assert_eq!(error.code(), Code::StorageFull, "{error:?}");
        assert!(error.message().to_lowercase().contains("read-only"), "{error}");
        unit.check_reads().await;
        disk.set_read_only(false).unwrap();
        unit.publish().await;
    }
    unit.check_reads().await;
    unit.check_stored(disk.path()).await;
    drop(cluster);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_torn_data_file_is_named_and_harms_no_other_dataset() {
    let mut cluster = Cluster::start(1, 1, &[]).unwrap();
    let mut torn = Unit::of(&cluster.head_addrs(), "signals.torn", Door::Session).await;
    let mut sound = Unit::of(&cluster.head_addrs(), "prices.sound", Door::Import).await;
    torn.publish().await;

    cluster.shards[0].kill();
    let file = newest(&cluster.table("signals.torn"), "parquet");
    let bytes = fs::read(&file).unwrap();
    for keep in [bytes.len() - 1, bytes.len() / 2, 4, 0] {
        truncate(&file, keep as u64).unwrap();
        cluster.shards[0].start().unwrap();
        // The head may have cached rows; a new head has none.
        cluster.heads[0].kill();
        cluster.heads[0].start().unwrap();
        let error = torn.read_error().await;
        let name = file.file_name().unwrap().to_string_lossy();
        assert_eq!(error.code(), Code::DataCorrupt, "cut to {keep} bytes: {error:?}");
        assert!(error.message().contains(&*name), "cut to {keep} bytes: {error}");
        sound.check_reads().await;
        sound.publish().await;

        // After the file is restored, reads work without a restart.
        fs::write(&file, &bytes).unwrap();
        torn.check_reads().await;
        torn.publish().await;
        cluster.shards[0].kill();
    }
    cluster.shards[0].start().unwrap();
    torn.check_reads().await;
    torn.check_stored(cluster.lake()).await;
    sound.check_stored(cluster.lake()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_truncated_log_entry_is_refused_and_never_answered_around() {
    let mut cluster = Cluster::start(1, 1, &[]).unwrap();
    let mut torn = Unit::of(&cluster.head_addrs(), "signals.torn", Door::Session).await;
    let mut sound = Unit::of(&cluster.head_addrs(), "prices.sound", Door::Import).await;
    torn.publish().await;

    let entry = newest(&cluster.table("signals.torn").join("_delta_log"), "json");
    let bytes = fs::read(&entry).unwrap();
    let first_line = bytes.iter().position(|&b| b == b'\n').unwrap() + 1;
    for keep in [bytes.len() - 2, bytes.len() / 2, first_line, 0] {
        cluster.shards[0].kill();
        truncate(&entry, keep as u64).unwrap();
        cluster.shards[0].start().unwrap();
        cluster.heads[0].kill();
        cluster.heads[0].start().unwrap();
        let error = torn.read_error().await;
        let name = entry.file_name().unwrap().to_string_lossy();
        assert_eq!(error.code(), Code::DataCorrupt, "cut to {keep} bytes: {error:?}");
        assert!(error.message().contains(&*name), "cut to {keep} bytes: {error}");
        let list = torn.client.describe(None).await.unwrap_err();
        assert_eq!((list.code(), list.place().0), (Code::DataCorrupt, "signals.torn"), "{list:?}");
        // The version before is still there, but an answer from it would lack the last acknowledged publish.
        let refused = torn.try_publish().await.unwrap_err();
        assert_eq!(refused.code(), Code::DataCorrupt, "cut to {keep} bytes: {refused:?}");
        sound.check_reads().await;
        sound.publish().await;

        fs::write(&entry, &bytes).unwrap();
        torn.check_reads().await;
        assert_eq!(torn.client.describe(None).await.unwrap().len(), 3, "the two, and the ledger");
    }
    torn.publish().await;
    torn.check_reads().await;
    torn.check_stored(cluster.lake()).await;
    sound.check_stored(cluster.lake()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_unfinished_write_leaves_is_no_part_of_the_table() {
    let mut cluster = Cluster::start(1, 1, &[]).unwrap();
    let mut unit = Unit::of(&cluster.head_addrs(), "signals.left", Door::Session).await;
    cluster.shards[0].kill();
    let table = cluster.table("signals.left");
    let whole = fs::read(newest(&table, "parquet")).unwrap();
    let entry = newest(&table.join("_delta_log"), "json");
    let next: u64 = entry.file_stem().unwrap().to_string_lossy().parse::<u64>().unwrap() + 1;
    fs::write(table.join("part-ffff.parquet"), &whole[..whole.len() / 2]).unwrap();
    fs::write(table.join(".part-eeee.parquet.77.staged"), &whole[..10]).unwrap();
    fs::write(table.join("_delta_log").join(format!(".{next:020}.json.77.staged")), b"{\"commitInfo\":{")
        .unwrap();
    cluster.shards[0].start().unwrap();
    unit.check_reads().await;
    unit.publish().await;
    unit.check_reads().await;
    unit.check_stored(cluster.lake()).await;
}
