//! Publishes as commits: a group of publishes becomes one file and one entry of the log.

use std::sync::Arc;

use arrow_array::RecordBatch;
use serde_json::{Map, Value, json};
use tokio::time::Instant;
use trellis_proto::{Code, DatasetSpec, Error, Result, pb, spec::Evolved, time::SECOND_NS};

use super::accepted::Accepted;
use crate::{
    clock::JUMP_MAX_NS,
    error::lost_task,
    files::{FILE_ROWS_MAX, WrittenFile, join_exact, write_file},
    table::{Actions, Snapshot},
    write::{
        request::{Right, Waiting},
        writer::{CONFLICTS_MAX, Writer, create},
    },
};

impl Writer {
    pub(crate) async fn commit_group(&mut self, group: Vec<Waiting>) {
        let mut waiting = group;
        while !waiting.is_empty() {
            waiting = self.commit_some(waiting).await;
        }
    }

    /// Commits the publishes that may go together, and returns the others for the next commit.
    async fn commit_some(&mut self, group: Vec<Waiting>) -> Vec<Waiting> {
        let mut waiting = group;
        for _ in 0..CONFLICTS_MAX {
            let snapshot = match self.look().await {
                Ok(snapshot) => snapshot,
                Err(error) => {
                    refuse_all(waiting, &error);
                    return Vec::new();
                }
            };
            if let Some(Err(error)) = snapshot.as_ref().map(|snapshot| snapshot.check_stays()) {
                refuse_all(waiting, &error);
                return Vec::new();
            }
            let now_ns = match self.commit_time(snapshot.as_deref()) {
                Ok(now_ns) => now_ns,
                Err(error) => {
                    refuse_all(waiting, &error.dataset(&self.table.name));
                    return Vec::new();
                }
            };
            let (accepted, later) = self.judge(snapshot.as_deref(), waiting, now_ns).await;
            if accepted.is_empty() {
                return later;
            }
            match self.commit_rows(snapshot.as_deref(), &accepted).await {
                Ok(Some(version)) => {
                    self.acknowledge(accepted, version).await;
                    return later;
                }
                Ok(None) => {
                    waiting = Vec::new();
                    for a in accepted {
                        let mut replies = a.replies.into_iter();
                        if let Some(first) = replies.next() {
                            // The others sent the same run. Their clients ask again, and are answered as duplicates then.
                            waiting.push((a.publish, first));
                        }
                        for other in replies {
                            let _ = other.send(Err(Error::new(
                                Code::Unavailable,
                                "another publish of this run id was on its way",
                            )));
                        }
                    }
                    waiting.extend(later);
                }
                Err(error) => {
                    for reply in accepted.into_iter().flat_map(|a| a.replies) {
                        let _ = reply.send(Err(error.clone()));
                    }
                    return later;
                }
            }
        }
        let error = Error::new(
            Code::Unavailable,
            format!("{} is being written by somebody else: lost {CONFLICTS_MAX} commits", self.table.name),
        );
        refuse_all(waiting, &error.dataset(&self.table.name));
        Vec::new()
    }

    /// The time by which a commit's knowledge times are chosen. Warns if those of the dataset are ahead of it already.
    ///
    /// # Errors
    /// The clock has jumped ahead.
    fn commit_time(&self, snapshot: Option<&Snapshot>) -> Result<i64> {
        let clock = &self.table.context.clock;
        let now_ns = clock.for_commit().inspect_err(|_| self.metrics.clock_alarms.add(1, &[]))?;
        let ahead = snapshot.map_or(0, |before| before.known_through.saturating_sub(now_ns));
        if ahead > JUMP_MAX_NS {
            self.metrics.clock_alarms.add(1, &[]);
            let name = &self.table.name;
            clock.warn(&format!(
                "the newest knowledge time of {name} is {} s ahead of this shard's clock, and later rows become known later \
                 still: a clock was wrong once, or this one is behind",
                ahead / SECOND_NS
            ));
        }
        Ok(now_ns)
    }

    /// Writes the rows and commits them. `None`: another writer has committed this version.
    async fn commit_rows(&self, snapshot: Option<&Snapshot>, accepted: &[Accepted]) -> Result<Option<u64>> {
        let Some(first) = accepted.first() else { return Ok(None) };
        let spec = &first.publish.spec;
        let live = snapshot.filter(|s| !s.life.dropped);
        let evolution = match live.filter(|before| before.spec != *spec) {
            Some(before) => {
                let evolved = Evolved::by_name(&before.spec, DatasetSpec::clone(spec));
                Some((before, self.evolution(before, evolved).await?))
            }
            None => None,
        };
        // Every commit that defines the table gives it the column `retracted`.
        let defined = evolution.is_some() || live.is_none_or(|s| s.retractable);
        let redefined = live.filter(|_| !defined && accepted.iter().any(|a| a.retracts() > 0));
        let mut files = match self.write(spec, accepted, defined || redefined.is_some()).await {
            Ok(files) => files,
            Err(error) => {
                if let Some((_, evolution)) = &evolution {
                    self.discard(&evolution.adds).await;
                }
                return Err(error);
            }
        };
        let now_ms = self.table.context.clock.now_ms();
        let version = snapshot.map_or(0, |s| s.version + 1);
        let notes: Vec<&Value> = accepted.iter().map(|a| &a.publish.note).collect();
        let info = Map::from_iter([("trellis".to_owned(), json!(notes))]);
        let mut actions = Actions::new("WRITE", info, now_ms);
        if let Some((before, evolution)) = &evolution {
            evolution.describe(&mut actions, before, now_ms);
        }
        if live.is_none() {
            // A table is complete up to the time at which it was made. So the entry says that this table was made before its
            // first rows became known.
            let first_known = accepted.iter().map(|a| a.known_at).min().unwrap_or(0);
            create(&mut actions, snapshot, spec, now_ms.min(first_known.div_euclid(1_000_000) - 1));
        }
        if let Some(before) = redefined {
            actions.redefine(&before.definition, spec, &before.life);
        }
        for file in &files {
            actions.add(&file.file, &file.stats, true, now_ms);
        }
        for a in accepted.iter().filter(|a| !a.publish.run_id.is_empty()) {
            actions.run(&a.publish.run_id, &a.committed(version), now_ms);
        }
        if accepted.iter().any(|a| matches!(a.publish.right, Right::Import { .. })) {
            actions.imported(version, now_ms);
        }
        // A publish with its own lease is alone in its commit.
        if let Some(grant) = accepted.iter().find_map(|a| a.once.as_ref()) {
            actions.grant(grant, now_ms);
            actions.release(grant.epoch, now_ms);
        }
        let before = live.and_then(|s| s.watermark);
        let watermark = accepted.iter().filter_map(|a| a.publish.watermark).max();
        if watermark.is_some_and(|watermark| before.is_none_or(|before| watermark > before)) {
            actions.watermark(watermark, now_ms);
        }
        files.extend(evolution.into_iter().flat_map(|(_, evolution)| evolution.adds));
        self.commit(version, &actions, &files).await
    }

    async fn write(
        &self,
        spec: &Arc<DatasetSpec>,
        accepted: &[Accepted],
        retractable: bool,
    ) -> Result<Vec<WrittenFile>> {
        let started = Instant::now();
        let parts = accepted.iter().map(|a| a.exact(spec)).collect::<Result<Vec<_>>>()?;
        let parts: Vec<RecordBatch> = parts.into_iter().flatten().collect();
        let rows = tokio::task::spawn_blocking({
            let spec = spec.clone();
            move || match parts.as_slice() {
                // a single publish is sorted
                [only] => Ok(only.clone()),
                parts => join_exact(&spec, parts),
            }
        })
        .await
        .map_err(|e| lost_task("sorting rows", e))??;
        let mut files = Vec::new();
        for start in (0..rows.num_rows()).step_by(FILE_ROWS_MAX) {
            let part = rows.slice(start, FILE_ROWS_MAX.min(rows.num_rows() - start));
            match write_file(&self.table.log.folder, spec, part, retractable).await {
                Ok(file) => files.push(file),
                Err(error) => {
                    self.discard(&files).await;
                    return Err(error.dataset(&self.table.name));
                }
            }
        }
        self.metrics.write.record(started.elapsed().as_secs_f64(), &[]);
        Ok(files)
    }

    /// Makes the commit visible, then answers once the watchers have applied it. The next group does not wait for the watchers.
    async fn acknowledge(&mut self, accepted: Vec<Accepted>, version: u64) {
        if let Err(error) = self.look().await {
            // The commit is durable, but this shard cannot serve it. So it is not acknowledged.
            for reply in accepted.into_iter().flat_map(|a| a.replies) {
                let _ = reply.send(Err(error.clone()));
            }
            return;
        }
        self.metrics.commits.add(1, &[]);
        self.metrics.publishes.add(accepted.len() as u64, &[]);
        let mut acks = Vec::new();
        for a in accepted {
            let ack = pb::PublishAck {
                dataset: self.table.name.to_string(),
                version,
                known_at_ns: a.known_at,
                rows: a.publish.rows.len() as u64,
                duplicate: false,
                shard: self.table.context.shard.clone(),
                retracted: a.retracts() as u64,
                epoch: a.once.as_ref().map_or(0, |grant| grant.epoch),
                ..pb::PublishAck::default()
            };
            let duplicates = std::iter::once(false).chain(std::iter::repeat(true));
            acks.extend(
                a.replies
                    .into_iter()
                    .zip(duplicates.map(|duplicate| pb::PublishAck { duplicate, ..ack.clone() })),
            );
        }
        self.acknowledge_when_applied(acks);
    }
}

fn refuse_all(waiting: Vec<Waiting>, error: &Error) {
    for (_, reply) in waiting {
        let _ = reply.send(Err(error.clone()));
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::ErrorKind,
        sync::atomic::{AtomicI64, Ordering},
    };

    use super::*;
    use crate::clock::WallClock;
    use crate::testing::{Grid, When, follow};

    #[tokio::test(flavor = "multi_thread")]
    async fn a_full_disk_refuses_writes_keeps_reads_and_recovers_by_itself() {
        let grid = Grid::new().await;
        grid.import(&[("A", 0, 1.0)]).await.unwrap();
        for kind in [ErrorKind::StorageFull, ErrorKind::ReadOnlyFilesystem, ErrorKind::PermissionDenied] {
            for part in [".parquet", "_delta_log"] {
                grid.probe.fail(part, kind, When::Before);
                let refused = grid.import(&[("A", 1, 2.0)]).await.unwrap_err();
                assert_eq!(refused.code(), Code::StorageFull, "{refused}");
                assert!(refused.retryable());
                assert_eq!(grid.rows("A").await, [(0, 1.0)]);
                assert_eq!(grid.data_files(), 1, "what was not committed was removed");
                grid.probe.heal();
            }
        }
        grid.import(&[("A", 1, 2.0)]).await.unwrap();
        assert_eq!(grid.rows("A").await, [(0, 1.0), (1, 2.0)]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_commit_whose_outcome_was_not_seen_is_found_by_its_run_id() {
        let grid = Grid::new().await;
        grid.lease("mom").await;
        // The entry is in place, but the disk said that it could not sync the folder.
        grid.probe.fail("_delta_log", ErrorKind::Other, When::After);
        let unknown = grid.publish("mom", 1, "r1", &[("A", 0, 1.0)]).await.unwrap_err();
        assert_eq!(unknown.code(), Code::Unavailable);
        grid.probe.heal();
        let ack = grid.publish("mom", 1, "r1", &[("A", 0, 1.0)]).await.unwrap();
        assert!(ack.duplicate);
        assert_eq!(grid.rows("A").await, [(0, 1.0)]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_commit_that_finds_its_own_entry_has_taken_place() {
        let grid = Grid::with(|config| config.upkeep.compact_files = 2).await;
        grid.probe.fail("_delta_log", ErrorKind::Other, When::Again);
        grid.lease("mom").await;
        for i in 0..3 {
            let ack = grid.publish("mom", 1, &format!("r{i}"), &[("A", i, 1.0)]).await.unwrap();
            assert!(!ack.duplicate);
        }
        assert_eq!(grid.rows("A").await.len(), 3);
        let table = grid.table();
        let snapshot = table.snapshot().unwrap();
        assert!(crate::upkeep::compact(&grid.shard, &table, &snapshot).await.unwrap());
        grid.probe.heal();
        let grid = grid.restart().await;
        assert_eq!(grid.rows("A").await.len(), 3);
        assert_eq!(grid.table().snapshot().unwrap().files.len(), 1);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_shard_that_dies_at_any_point_leaves_a_publish_whole_or_absent() {
        let rows = [("A", 0, 1.0), ("B", 0, 1.0)];
        for (part, when, there) in [
            (".parquet", When::Before, false),
            (".parquet", When::After, false),
            ("_delta_log", When::Before, false),
            ("_delta_log", When::After, true),
        ] {
            let grid = Grid::new().await;
            grid.lease("mom").await;
            // The shard does nothing after this point: its next life is another process.
            grid.probe.fail(part, ErrorKind::Other, when);
            grid.publish("mom", 1, "r1", &rows).await.unwrap_err();
            let grid = grid.restart().await;
            let committed = grid.table().run("r1").is_some();
            assert_eq!(committed, there, "{part} {when:?}");
            assert_eq!(grid.table().snapshot().unwrap().rows(), if there { 2 } else { 0 });
            let ack = grid.publish("mom", 1, "r1", &rows).await.unwrap();
            assert_eq!(ack.duplicate, there);
            assert_eq!((grid.rows("A").await, grid.rows("B").await), (vec![(0, 1.0)], vec![(0, 1.0)]));
        }
    }

    #[tokio::test]
    async fn a_publish_that_is_acknowledged_again_waits_for_the_watchers_too() {
        let grid = Arc::new(Grid::new().await);
        grid.lease("mom").await;
        let mut watcher = follow(&grid.shard).await;
        watcher.acknowledger()(watcher.seq);
        let publish = |run: &'static str, ts| {
            let grid = grid.clone();
            tokio::spawn(async move { grid.publish("mom", 1, run, &[("A", ts, 1.0)]).await.unwrap() })
        };
        let first = publish("r1", 0);
        watcher.queue.recv().await.unwrap();
        let again = publish("r1", 0);
        let later = publish("r2", 1);
        // The third change is queued: an answer that does not wait for watchers has come by now.
        let change = watcher.queue.recv().await.unwrap();
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(!first.is_finished() && !again.is_finished() && !later.is_finished());
        watcher.acknowledger()(change.seq());
        assert!(!first.await.unwrap().duplicate);
        assert!(again.await.unwrap().duplicate);
        assert!(!later.await.unwrap().duplicate);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_torn_newest_entry_is_named_and_only_its_dataset_is_refused() {
        let grid = Grid::new().await;
        grid.import(&[("A", 0, 1.0)]).await.unwrap();
        grid.import(&[("A", 1, 1.0)]).await.unwrap();
        let newest = grid.path().join("_delta_log/00000000000000000001.json");
        let whole = std::fs::read(&newest).unwrap();
        for cut in [0, 10, whole.len() / 2, whole.iter().position(|b| *b == b'\n').unwrap() + 1] {
            std::fs::write(&newest, &whole[..cut]).unwrap();
            let torn = grid.beside().await;
            let error = torn.catalog.find("d.a").await.unwrap_err();
            assert_eq!(error.code(), Code::DataCorrupt, "{error}");
            assert!(error.message().contains("00000000000000000001.json"), "{error}");
        }
        std::fs::write(&newest, &whole).unwrap();
        assert_eq!(grid.restart().await.rows("A").await.len(), 2);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_clock_that_jumps_ahead_marks_no_row_as_known_in_the_future() {
        let now = Arc::new(AtomicI64::new(1_000_000_000_000));
        let clock = now.clone();
        let grid = Grid::with_clock(WallClock::of(move || clock.load(Ordering::SeqCst))).await;
        grid.import(&[("A", 0, 1.0)]).await.unwrap();
        let year = 365 * 86_400 * SECOND_NS;
        now.fetch_add(year, Ordering::SeqCst);
        let refused = grid.import(&[("A", 1, 1.0)]).await.unwrap_err();
        assert_eq!((refused.code(), refused.retryable()), (Code::Unavailable, true), "{refused}");
        assert_eq!(grid.rows("A").await, [(0, 1.0)]);
        now.fetch_sub(year, Ordering::SeqCst);
        let ack = grid.import(&[("A", 1, 1.0)]).await.unwrap();
        assert!(ack.known_at_ns <= now.load(Ordering::SeqCst) + 1);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_publish_into_a_removed_folder_is_refused_and_leaves_nothing() {
        let grid = Grid::new().await;
        for ts in 0..3 {
            grid.import(&[("A", ts, 1.0)]).await.unwrap();
        }
        std::fs::remove_dir_all(grid.path()).unwrap();
        for _ in 0..2 {
            let refused = grid.import(&[("A", 9, 1.0)]).await.unwrap_err();
            assert_eq!(refused.code(), Code::DataCorrupt, "{refused}");
            assert!(refused.message().contains("00000000000000000002.json"), "{refused}");
            assert_eq!(grid.data_files(), 0);
            assert!(!grid.path().join("_delta_log").exists());
        }
        // The next life knows nothing of it, and the name is free.
        let grid = grid.restart().await;
        assert_eq!(grid.import(&[("A", 9, 1.0)]).await.unwrap().version, 0);
        assert_eq!(grid.rows("A").await, [(9, 1.0)]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn knowledge_times_grow_whatever_the_clock_does_and_with_empty_publishes_too() {
        let now = Arc::new(AtomicI64::new(1_000_000_000_000));
        let clock = now.clone();
        let mut grid = Grid::with_clock(WallClock::of(move || clock.load(Ordering::SeqCst))).await;
        grid.lease("mom").await;
        let mut last = i64::MIN;
        for (i, step) in
            [0, 5_000_000_000, -60_000_000_000, 0, 1, -1, 0, 90_000_000_000].into_iter().enumerate()
        {
            now.fetch_add(step, Ordering::SeqCst);
            let rows = [("A", i as i64, 0.0)];
            let rows = if i % 2 == 0 { &rows[..] } else { &[] };
            let ack = grid.publish("mom", 1, &format!("r{i}"), rows).await.unwrap();
            assert!(ack.known_at_ns > last, "{i}: {} after {last}", ack.known_at_ns);
            last = ack.known_at_ns;
            assert_eq!(grid.table().snapshot().unwrap().known_through, last);
            grid = grid.restart().await;
            assert_eq!(grid.table().snapshot().unwrap().known_through, last);
        }
    }
}
