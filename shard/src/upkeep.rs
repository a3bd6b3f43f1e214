//! The work that a shard does by itself: it looks for commits of others, merges small files, writes checkpoints, and removes files
//! that nobody needs.
//!
//! Checkpoints and compactions follow commits: each round takes the datasets that had some. All else goes over all datasets in turns, at
//! a fixed rate, so a shard at rest does the same work however many datasets it has.
//!
//! Only the home of a dataset writes. Readers never notice: a replaced file stays for a retention that is far longer than any read,
//! in this process or another. A compaction is a compare-and-swap that succeeds only while all replaced files are still in the
//! table. So two compactions cannot both succeed and double the rows.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt;
use object_store::ObjectStoreExt;
use tokio::time::Instant;
use trellis_proto::{DatasetName, Result};

use crate::{
    catalog::Turn,
    error::store_error,
    files::{DataFile, MERGE_COPIES, read_all, sweep_staged, write_file},
    scrub::scrub,
    shard::Shard,
    table::{CHECKPOINT_COMMITS_MIN, Snapshot, Table},
    write::{Rewrite, finish_rename},
};

/// Polls between two listings of the lake, which find datasets that others made.
const DISCOVER_POLLS: u32 = 10;
/// Looks at once: a look at a remote store is one round trip.
const LOOKS_PARALLEL: usize = 16;
/// Datasets whose upkeep is done at once. They share the memory for work on files.
const UPKEEP_PARALLEL: usize = 4;
/// Most bytes of files that are merged at once: a file that is merged again and again costs no more than that each time.
const COMPACT_BYTES_MAX: u64 = 64 << 20;
/// Most files that are merged at once: each has a reader and a footer in memory meanwhile. More steps follow.
const COMPACT_FILES_MAX: usize = 256;
/// The part of the memory for work on files that one merge may take, one of this many: the rest is for reads.
const COMPACT_PART: u64 = 2;
/// Age at which a staged file of an unfinished write is removed.
const STAGED_AGE: Duration = Duration::from_secs(3_600);
/// Time between two files of descriptions for the next life of the shard. The shard writes a few hundred bytes of each dataset, all
/// in one file. If the newest file is missing, the next start opens the tables that have changed since the file before it.
const LEAVE_EVERY: Duration = Duration::from_secs(600);
/// Time between two rounds of searches for old files: few datasets are not searched again and again.
const SEARCH_ROUND: Duration = Duration::from_secs(3_600);

/// The background tasks.
#[derive(Debug)]
pub(crate) struct Upkeep {
    tasks: Vec<tokio::task::JoinHandle<()>>,
    shard: Arc<Shard>,
}

impl Upkeep {
    pub(crate) fn start(shard: Arc<Shard>) -> Self {
        let tasks = vec![
            tokio::spawn(poll(shard.clone())),
            tokio::spawn(maintain(shard.clone())),
            tokio::spawn(search(shard.clone())),
            tokio::spawn(scrub(shard.clone())),
        ];
        Self { tasks, shard }
    }

    /// Ends the tasks where they are. The next start repeats unfinished work (a merged file, a checkpoint), and a committer finishes
    /// the commit that it has begun.
    pub(crate) async fn stop(self) {
        for task in self.tasks {
            task.abort();
            let _ = task.await;
        }
        leave(&self.shard).await;
    }
}

/// Looks for commits of others, so that watchers hear of them. A read looks by itself.
async fn poll(shard: Arc<Shard>) {
    let mut polls = 0_u32;
    let mut turn = Turn::default();
    // A dataset that cannot be read is reported once, not ten times a second.
    let mut reported: HashMap<DatasetName, String> = HashMap::new();
    loop {
        tokio::time::sleep(shard.config.poll).await;
        if polls.is_multiple_of(DISCOVER_POLLS)
            && let Err(error) = shard.catalog.discover().await
        {
            tracing::warn!(%error, "the lake cannot be listed");
        }
        polls = polls.wrapping_add(1);
        shard.catalog.close_idle();
        let looked: Vec<_> = futures::stream::iter(shard.catalog.turn(&mut turn, shard.config.looks))
            .map(|name| async {
                let look = shard.catalog.look(&name).await;
                (name, look)
            })
            .buffer_unordered(LOOKS_PARALLEL)
            .collect()
            .await;
        for (name, look) in looked {
            match look {
                Ok(()) => {
                    reported.remove(&name);
                }
                Err(error) => {
                    let text = error.to_string();
                    if reported.get(&name) != Some(&text) {
                        tracing::error!(dataset = %name, %error, "a dataset does not read");
                        reported.insert(name, text);
                    }
                }
            }
        }
    }
}

async fn maintain(shard: Arc<Shard>) {
    let mut seen = HashMap::new();
    let mut left = Instant::now();
    loop {
        round(&shard, &mut seen).await;
        if left.elapsed() >= LEAVE_EVERY {
            leave(&shard).await;
            left = Instant::now();
        }
        tokio::time::sleep(shard.config.upkeep.every).await;
    }
}

/// Leaves the descriptions for the next life of this shard, which can do without them.
async fn leave(shard: &Shard) {
    if let Err(error) = shard.catalog.leave().await {
        tracing::warn!(%error, "the descriptions of the datasets were not left for the next start");
    }
}

/// Writes checkpoints of the tables that had commits, and merges their small files. `seen`: those tables at their last look.
async fn round(shard: &Arc<Shard>, seen: &mut HashMap<DatasetName, LastLook>) {
    let names = shard.take_upkeep();
    let looks: Vec<_> = names.into_iter().map(|name| (seen.remove(&name), name)).collect();
    // Before the slow steps: an opening reads all entries after the checkpoint.
    let looked: Vec<_> = futures::stream::iter(looks)
        .map(|(last, name)| async move {
            let look = checkpoint(shard, &name, last).await;
            let look = look.unwrap_or_else(|error| {
                tracing::warn!(dataset = %name, %error, "no checkpoint was written, or old log entries not removed");
                Look { last, rests: false }
            });
            (name, look)
        })
        .buffer_unordered(UPKEEP_PARALLEL)
        .collect()
        .await;
    let names: Vec<DatasetName> = looked.iter().map(|(name, _)| name.clone()).collect();
    for (name, look) in looked {
        if !look.rests {
            shard.needs_upkeep(&name);
            seen.extend(look.last.map(|last| (name, last)));
        }
    }
    futures::stream::iter(names).for_each_concurrent(UPKEEP_PARALLEL, |name| merge(shard, name)).await;
}

/// Goes on with a rename that was begun, and merges small files. A step that fails is tried again in the next round. Correctness needs
/// none of them.
async fn merge(shard: &Arc<Shard>, name: DatasetName) {
    let table = shard.catalog.table(&name);
    let snapshot = match table.refresh().await {
        Ok(Some(snapshot)) => snapshot,
        Ok(None) => return,
        // the looks report it
        Err(_) => {
            shard.needs_upkeep(&name);
            return;
        }
    };
    let (catalog, committers) = (&shard.catalog, &shard.committers);
    if let Some(Ok(to)) = snapshot.moving().map(DatasetName::new)
        && let Err(error) =
            finish_rename(catalog, committers, &table, &to, String::new(), String::new()).await
    {
        tracing::warn!(dataset = %name, %to, %error, "a rename was not finished");
        shard.needs_upkeep(&name);
    }
    if let Err(error) = compact_all(shard, &table, snapshot).await {
        tracing::warn!(dataset = %name, %error, "compaction failed");
        shard.needs_upkeep(&name);
    }
}

/// Searches for old files, one dataset after the other, without end.
async fn search(shard: Arc<Shard>) {
    loop {
        let mut last = None;
        while let Some(name) = shard.catalog.next(&mut last) {
            if shard.check_home(&name).is_err() {
                tokio::task::yield_now().await;
                continue;
            }
            tokio::time::sleep(shard.config.upkeep.search_every).await;
            let table = shard.catalog.table(&name);
            // The files of a dropped dataset stay until another dataset takes its table: old versions can be read.
            let removed = match table.refresh().await {
                Ok(Some(snapshot)) if !snapshot.life.dropped => remove_unneeded(&shard, &table).await,
                Ok(_) => Ok(0),
                Err(error) => Err(error),
            };
            if let Err(error) = removed {
                tracing::warn!(dataset = %name, %error, "old files were not removed");
            }
        }
        tokio::time::sleep(SEARCH_ROUND).await;
    }
}

/// What a look at a table's checkpoint found.
#[derive(Debug, Clone, Copy)]
struct Look {
    last: Option<LastLook>,
    /// There is no need of another look before the next commit.
    rests: bool,
}

/// A table at its last look, for the decision whether it needs a checkpoint.
#[derive(Debug, Clone, Copy)]
struct LastLook {
    /// Version of the newest one.
    checkpoint: u64,
    /// Version of the table at the last look; `None`: this is the first.
    version: Option<u64>,
}

impl LastLook {
    /// Whether the table needs a checkpoint at `version`: after many commits, or after some if there was none since the last look.
    /// The first look counts as such, because all commits before it are from before this process began.
    fn due(self, version: u64, commits: u64) -> bool {
        let since = version.saturating_sub(self.checkpoint);
        let rests = self.version.is_none_or(|before| before == version);
        since >= commits || rests && since >= CHECKPOINT_COMMITS_MIN.min(commits)
    }
}

/// Writes a checkpoint if one is due, and then removes entries that nobody needs any more. `last`: the look before, if it was in the last
/// round.
async fn checkpoint(shard: &Shard, name: &DatasetName, last: Option<LastLook>) -> Result<Look> {
    let table = shard.catalog.table(name);
    let Some(snapshot) = table.refresh().await? else { return Ok(Look { last: None, rests: true }) };
    let log = &table.log;
    let seen = match last {
        Some(seen) => seen,
        None => LastLook { checkpoint: log.last_checkpoint().await?, version: None },
    };
    let upkeep = &shard.config.upkeep;
    let version = snapshot.version;
    if !seen.due(version, upkeep.checkpoint_commits) {
        let rests = seen.version == Some(version) || version == seen.checkpoint;
        return Ok(Look { last: Some(LastLook { version: Some(version), ..seen }), rests });
    }
    log.checkpoint(version).await?;
    let oldest = table.context.clock.now_ms() - upkeep.log_retention.as_millis() as i64;
    log.forget_entries(version, oldest).await?;
    Ok(Look { last: Some(LastLook { checkpoint: version, version: Some(version) }), rests: false })
}

/// Merges small files, step by step, until few are left. Each step makes one of at least two.
async fn compact_all(shard: &Shard, table: &Arc<Table>, snapshot: Arc<Snapshot>) -> Result<()> {
    let mut next = Some(snapshot);
    while let Some(snapshot) = next.take() {
        if compact(shard, table, &snapshot).await? {
            next = table.snapshot();
        }
    }
    Ok(())
}

/// Merges small files into one. `false`: there was no need, or another writer replaced one of them meanwhile.
pub(crate) async fn compact(shard: &Shard, table: &Arc<Table>, snapshot: &Snapshot) -> Result<bool> {
    let upkeep = &shard.config.upkeep;
    let mut small: Vec<&Arc<DataFile>> =
        snapshot.files.iter().filter(|f| f.file.size < upkeep.compact_bytes).collect();
    if small.len() < upkeep.compact_files.max(2) {
        return Ok(false);
    }
    // The oldest event times first: they change least.
    small.sort_by_key(|f| f.index.first_ts);
    let budget = &table.log.folder.budget;
    let (mut bytes, mut decoded, mut few) = (0, 0, 0);
    small.retain(|f| {
        few += 1;
        bytes += f.file.size;
        decoded += f.decoded_bytes(&snapshot.spec) * MERGE_COPIES;
        few <= COMPACT_FILES_MAX && bytes <= COMPACT_BYTES_MAX && decoded <= budget.bytes() / COMPACT_PART
    });
    if small.len() < 2 {
        return Ok(false);
    }
    let _share =
        budget.take(small.iter().map(|f| f.decoded_bytes(&snapshot.spec) * MERGE_COPIES).sum()).await;
    let rows = read_all(&snapshot.spec, &small).await?;
    let file = write_file(&table.log.folder, &snapshot.spec, rows, snapshot.retractable).await?;
    let removes: Vec<_> = small.iter().map(|f| f.file.clone()).collect();
    let count = removes.len() as u64;
    let done = shard.committers.of(table).rewrite(Rewrite { removes, adds: vec![file] }).await?;
    if done {
        shard.metrics.files_compacted.add(count, &[]);
    }
    Ok(done)
}

/// Removes data files that the table has not had for the retention: replaced files, and files of writes that never committed.
/// Returns how many.
pub(crate) async fn remove_unneeded(shard: &Shard, table: &Arc<Table>) -> Result<usize> {
    sweep_staged(&table.log.folder.url, STAGED_AGE).await;
    let retention = shard.config.upkeep.retention;
    // The age of a replaced file counts from its replacement, which the log has. That of an uncommitted file is its own.
    let oldest = table.context.clock.now_ms() - retention.as_millis() as i64;
    let kept: BTreeSet<String> = table.log.recently_removed(oldest).await?;
    let Some(snapshot) = table.refresh().await? else { return Ok(0) };
    let live: BTreeSet<&str> = snapshot.files.iter().map(|f| f.file.path.as_str()).collect();
    let mut listed = table.log.folder.files.list(None);
    let mut removed = 0;
    while let Some(meta) = listed.next().await {
        let meta = meta.map_err(|e| store_error("listing", table.log.folder.url.as_str(), &e))?;
        let path = meta.location.as_ref();
        let is_data = path.ends_with(".parquet") && !path.starts_with('_') && !path.starts_with('.');
        let old = meta.last_modified.timestamp_millis() < oldest;
        if is_data && old && !live.contains(path) && !kept.contains(path) {
            let done = table.log.folder.files.delete(&meta.location).await;
            done.map_err(|e| store_error("removing", &table.log.folder.file_name(path), &e))?;
            removed += 1;
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{Config, Upkeep as Settings},
        files::REQUESTS_MAX,
        testing::{Grid, When},
    };

    fn settings() -> Settings {
        Settings { compact_files: 4, retention: Duration::ZERO, ..Settings::default() }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn compaction_changes_files_and_no_answer() {
        let grid = Grid::with(|config| config.upkeep = settings()).await;
        for i in 0..10_i64 {
            grid.import(&[("A", i, i as f64), ("B", 100 - i, 1.0)]).await.unwrap();
        }
        // A correction, so that one row has two versions.
        grid.import(&[("A", 3, 33.0)]).await.unwrap();
        let before = (grid.rows("A").await, grid.rows("B").await);
        assert_eq!(before.0.len(), 11);
        let table = grid.table();
        let old = table.snapshot().unwrap();
        // Somebody who began to read before goes on reading the old files.
        assert!(compact(&grid.shard, &table, &old).await.unwrap());
        let new = table.snapshot().unwrap();
        assert_eq!((old.files.len(), new.files.len(), new.rows()), (11, 1, old.rows()));
        assert!(new.files[0].index.sorted);
        assert_eq!((grid.rows("A").await, grid.rows("B").await), before);
        assert_eq!(grid.rows_at(old.clone(), "A").await, before.0);
        // The same compaction from the same base does nothing, and leaves nothing.
        assert!(!compact(&grid.shard, &table, &old).await.unwrap());
        assert_eq!(table.refresh().await.unwrap().unwrap().rows(), old.rows());
        assert!(table.unchanged_since(old.version, "A", 0, 100), "no watcher loses a chunk");

        // With the retention over, the replaced files go; the table is as it was, also after a restart.
        assert_eq!(remove_unneeded(&grid.shard, &table).await.unwrap(), 11);
        assert_eq!((grid.rows("A").await, grid.rows("B").await), before);
        let grid = grid.restart().await;
        assert_eq!((grid.rows("A").await, grid.rows("B").await), before);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn fifteen_hundred_commits_of_one_row_are_merged_and_checkpointed_within_the_memory_and_few_open_files()
     {
        const COMMITS: usize = 1_500;
        let work = 64 << 20;
        let grid = Grid::with(|config| config.limits.work_bytes_max = work).await;
        for i in 0..COMMITS as i64 {
            grid.import(&[("A", i, i as f64)]).await.unwrap();
        }
        let table = grid.table();
        let old = table.snapshot().unwrap();
        assert_eq!(old.files.len(), COMMITS);
        let before = grid.rows("A").await;
        assert_eq!(before.len(), COMMITS);
        checkpoint(&grid.shard, &table.name, None).await.unwrap();
        let mut steps = 0;
        let mut now = old.clone();
        while compact(&grid.shard, &table, &now).await.unwrap() {
            let left = table.snapshot().unwrap();
            assert!(now.files.len() - left.files.len() < COMPACT_FILES_MAX);
            (now, steps) = (left, steps + 1);
        }
        assert!(now.files.len() < grid.shard.config.upkeep.compact_files, "{}", now.files.len());
        assert_eq!(grid.rows("A").await, before);
        let folder = &table.log.folder;
        println!(
            "{COMMITS} commits: {steps} steps to {} files; at once {} open, {} of {work} bytes of work, {} bytes of footers",
            now.files.len(),
            grid.probe.most_open(),
            folder.budget.peak(),
            folder.footers.bytes(),
        );
        assert!(grid.probe.most_open() <= REQUESTS_MAX);
        assert!(folder.budget.peak() <= work);
        assert_eq!(folder.budget.taken(), 0);
        drop((old, now));
        let grid = grid.restart().await;
        assert_eq!(grid.rows("A").await, before);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_compaction_that_dies_at_any_point_loses_and_doubles_nothing() {
        for (part, when) in [
            (".parquet", When::Before),
            (".parquet", When::After),
            ("_delta_log", When::Before),
            ("_delta_log", When::After),
        ] {
            let grid = Grid::with(|config| config.upkeep = settings()).await;
            for i in 0..5_i64 {
                grid.import(&[("A", i, i as f64)]).await.unwrap();
            }
            let before = grid.rows("A").await;
            let table = grid.table();
            grid.probe.fail(part, std::io::ErrorKind::Other, when);
            let base = table.snapshot().unwrap();
            assert!(compact(&grid.shard, &table, &base).await.is_err());
            assert_eq!(table.uncommitted(), 0, "{part} {when:?}");
            let grid = grid.restart().await;
            assert_eq!(grid.rows("A").await, before, "{part} {when:?}");
            let table = grid.table();
            let _ = compact(&grid.shard, &table, &table.snapshot().unwrap()).await.unwrap();
            assert_eq!(grid.rows("A").await, before);
            // The files that the dead shard left behind are removed.
            remove_unneeded(&grid.shard, &table).await.unwrap();
            assert_eq!(grid.data_files(), 1);
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn replaced_files_stay_for_the_retention() {
        let grid = Grid::with(|config| {
            config.upkeep = Settings { retention: Duration::from_secs(3_600), ..settings() };
        })
        .await;
        for i in 0..5_i64 {
            grid.import(&[("A", i, 0.0)]).await.unwrap();
        }
        let table = grid.table();
        let old = table.snapshot().unwrap();
        assert!(compact(&grid.shard, &table, &old).await.unwrap());
        assert_eq!(remove_unneeded(&grid.shard, &table).await.unwrap(), 0);
        assert_eq!(grid.rows_at(old, "A").await.len(), 5);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_table_that_rests_gets_a_checkpoint_long_before_a_busy_one() {
        let grid = Grid::new().await;
        let mut seen = HashMap::new();
        let mut looks = Vec::new();
        // Seven commits, then two at a time between two looks, then none.
        for commits in [7, 0, 2, 2, 2, 0, 0] {
            for _ in 0..commits {
                grid.import(&[("A", 0, 1.0)]).await.unwrap();
            }
            round(&grid.shard, &mut seen).await;
            looks.push(grid.table().log.last_checkpoint().await.unwrap());
        }
        // The first look after a rest counts as a rest: seven commits, of which the first makes the table, are too few for it, and nine
        // are not.
        assert_eq!(looks, [0, 0, 8, 8, 8, 8, 8]);
        // A shard that lives for one look only.
        for i in 0..CHECKPOINT_COMMITS_MIN as i64 {
            grid.import(&[("A", i, 1.0)]).await.unwrap();
        }
        let table = grid.table();
        round(&grid.shard, &mut HashMap::new()).await;
        assert_eq!(table.log.last_checkpoint().await.unwrap(), table.snapshot().unwrap().version);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_upkeep_looks_at_the_datasets_that_had_commits_and_at_no_others() {
        let grid = Grid::new().await;
        let mut seen = HashMap::new();
        let due = || grid.shard.context_upkeep();
        assert!(due().is_empty());
        for ts in 0..3 {
            grid.import(&[("A", ts, 1.0)]).await.unwrap();
        }
        assert_eq!(due().len(), 1);
        round(&grid.shard, &mut seen).await;
        assert_eq!(due().len(), 1, "whether it rests is seen at the next look");
        round(&grid.shard, &mut seen).await;
        assert!(due().is_empty() && seen.is_empty(), "it rests");
        // Another life opens the table, which has too few commits for a checkpoint; a fourth life finds one more than that.
        let grid = grid.restart().await;
        grid.rows("A").await;
        assert!(grid.shard.context_upkeep().is_empty());
        for ts in 3..=CHECKPOINT_COMMITS_MIN as i64 {
            grid.import(&[("A", ts, 1.0)]).await.unwrap();
        }
        let grid = grid.restart().await;
        grid.rows("A").await;
        assert_eq!(grid.shard.context_upkeep().len(), 1, "the last life ended before its upkeep came");
        round(&grid.shard, &mut HashMap::new()).await;
        assert_eq!(grid.table().log.last_checkpoint().await.unwrap(), CHECKPOINT_COMMITS_MIN);
    }

    /// The datasets `d.n0`, `d.n1` and so on, as copies of the first one.
    fn copy_dataset(grid: &Grid, count: usize) {
        for i in 0..count {
            let to = grid.path().with_file_name(format!("d.n{i}"));
            for folder in ["", "_delta_log"] {
                std::fs::create_dir_all(to.join(folder)).unwrap();
                for file in std::fs::read_dir(grid.path().join(folder)).unwrap().map(|file| file.unwrap()) {
                    if file.file_type().unwrap().is_file() {
                        std::fs::copy(file.path(), to.join(folder).join(file.file_name())).unwrap();
                    }
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_shard_at_rest_asks_a_remote_store_at_most_once_a_second_however_many_datasets_there_are() {
        for datasets in [1, 60] {
            let grid = Grid::with(|config| {
                let lake = format!("s3://bucket{}", config.lake.path());
                *config = Config::new(
                    &config.id,
                    lake.parse().unwrap(),
                    config.owns.clone(),
                    config.shards.clone(),
                );
            })
            .await;
            grid.import(&[("A", 0, 1.0)]).await.unwrap();
            copy_dataset(&grid, datasets - 1);
            let grid = grid.restart().await;
            assert_eq!(grid.shard.describe(false).await.unwrap().datasets.len(), datasets);
            let (upkeep, before) = (Upkeep::start(grid.shard.clone()), grid.probe.requests());
            let hour = Duration::from_secs(3_600);
            tokio::time::sleep(hour).await;
            upkeep.stop().await;
            let asked = grid.probe.requests() - before;
            assert!(asked > 1_000, "it looks: {asked}");
            assert!(asked <= hour.as_secs() as usize, "{asked} requests with {datasets} datasets");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_checkpoint_keeps_run_ids_epochs_and_the_watermark() {
        let grid = Grid::new().await;
        grid.lease("mom").await;
        for i in 0..6 {
            grid.publish("mom", 1, &format!("r{i}"), &[("A", i, i as f64)]).await.unwrap();
        }
        let table = grid.table();
        let snapshot = table.snapshot().unwrap();
        table.log.checkpoint(snapshot.version).await.unwrap();
        grid.publish("mom", 1, "r6", &[("A", 6, 6.0)]).await.unwrap();
        // The entries from before the checkpoint are removed.
        for version in 0..snapshot.version {
            std::fs::remove_file(grid.path().join(format!("_delta_log/{version:020}.json"))).unwrap();
        }
        let grid = grid.restart().await;
        let table = grid.table().clone();
        for i in 0..7 {
            assert_eq!(table.run(&format!("r{i}")).unwrap().rows, 1);
        }
        let now = table.snapshot().unwrap();
        assert_eq!((now.lease.epoch(), now.lease.owner()), (1, Some("mom")));
        assert_eq!(now.watermark, Some(7));
        assert_eq!(grid.rows("A").await.len(), 7);
    }
}
