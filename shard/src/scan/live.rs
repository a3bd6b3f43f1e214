//! The rows of a dataset that hold now: of each (symbol, ts) the newest version, unless that is a retraction. A publish of a whole
//! session retracts those of them that it lacks.
//!
//! Rows are read only for a publish that may replace some. The files' indexes tell whether it may, so a new session reads nothing.
//! For the others, the key columns of the session's rows are read, and no values.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::Arc,
};

use arrow_array::{RecordBatch, cast::AsArray, types::Int64Type};
use futures::{StreamExt, TryStreamExt};
use trellis_proto::{Result, Symbol, time::DAY_NS};

use crate::{
    error::{corrupt, internal, lost_task},
    files::{DataFile, FileIndex, KNOWN_AT_NS, RETRACTED, TS_NS, retractions},
    table::Snapshot,
};

/// Bytes of a key while the shard looks for the newest versions: its part of the columns, and an entry of the map.
const KEY_BYTES: u64 = 128;

/// Files read at once; each takes some reads of the store.
const FILES_PARALLEL: usize = 4;

/// Symbol and event time.
pub(crate) type Key = (Symbol, i64);

/// Which rows a publish may retract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Retractable<'a> {
    /// All rows: the publish has the whole session.
    All,
    /// Rows with these knowledge times: the times of the earlier publishes of the partition.
    KnownAt(&'a BTreeSet<i64>),
}

/// The newest version of each key: its knowledge time, and whether it is a retraction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Newest(BTreeMap<Key, (i64, bool)>);

impl Newest {
    /// Adds a version.
    pub(crate) fn learn(&mut self, key: Key, known_at: i64, retracted: bool) {
        let newest = self.0.entry(key).or_insert((known_at, retracted));
        if known_at >= newest.0 {
            *newest = (known_at, retracted);
        }
    }

    /// Whether a row holds at this key.
    pub(crate) fn holds(&self, key: &Key) -> bool {
        self.0.get(key).is_some_and(|(_, retracted)| !retracted)
    }

    /// The midnights of the days on which any row holds.
    pub(crate) fn days(&self) -> BTreeSet<i64> {
        let holds = self.0.iter().filter(|(_, (_, retracted))| !retracted);
        holds.map(|((_, ts), _)| midnight(ts.div_euclid(DAY_NS))).collect()
    }

    /// The rows that hold and that a publish of `rows` lacks, sorted.
    pub(crate) fn lacking(&self, rows: &BTreeSet<Key>, retractable: Retractable<'_>) -> Vec<Key> {
        let own = |known_at: &i64| match retractable {
            Retractable::All => true,
            Retractable::KnownAt(times) => times.contains(known_at),
        };
        let gone = self
            .0
            .iter()
            .filter(|(key, (known_at, retracted))| !retracted && own(known_at) && !rows.contains(*key));
        gone.map(|(key, _)| key.clone()).collect()
    }

    /// Reads the rows of a snapshot with event times in `range`, of the symbols that `of` accepts.
    pub(crate) async fn read(
        snapshot: &Snapshot,
        range: &Range<i64>,
        of: impl Fn(&Symbol) -> bool,
    ) -> Result<Self> {
        let (mut reads, mut rows) = (Vec::new(), 0);
        for file in snapshot.files.iter().filter(|file| file_touches(&file.index, range)) {
            let runs = file.index.runs.iter();
            let mut wanted: Vec<(Symbol, Range<u32>)> = runs
                .filter(|run| run.last_ts >= range.start && run.first_ts < range.end && of(&run.symbol))
                .map(|run| (run.symbol.clone(), run.start..run.end))
                .collect();
            wanted.sort_by_key(|(_, rows)| rows.start);
            rows += wanted.iter().map(|(_, rows)| rows.len() as u64).sum::<u64>();
            reads.push(versions(file.clone(), wanted, range.clone()));
        }
        let _share = match snapshot.files.first() {
            Some(file) => Some(file.budget.take(rows.saturating_mul(KEY_BYTES)).await),
            None => None,
        };
        let parts: Vec<KeyRows> = futures::stream::iter(reads).buffered(FILES_PARALLEL).try_collect().await?;
        let range = range.clone();
        let learn = move || {
            let mut newest = Self::default();
            for part in parts {
                part.learn(&range, &mut newest)?;
            }
            Ok(newest)
        };
        tokio::task::spawn_blocking(learn).await.map_err(|e| lost_task("reading keys", e))?
    }
}

/// Whether a file has rows on any day of `range`.
pub(crate) fn file_touches(index: &FileIndex, range: &Range<i64>) -> bool {
    let Some(last) = range.end.checked_sub(1).filter(|last| *last >= range.start) else { return false };
    let (first, last) = (range.start.div_euclid(DAY_NS), last.div_euclid(DAY_NS));
    let at = index.days.partition_point(|day| *day < first);
    index.days.get(at).is_some_and(|day| *day <= last)
}

/// First nanosecond of a day, saturating at the ends of time: another tool's table may have rows on the first day there is, whose
/// midnight lies before it.
fn midnight(day: i64) -> i64 {
    day.saturating_mul(DAY_NS)
}

/// The midnights of the sessions of which any row holds, ascending. The indexes of the files have most of them. Rows are read only
/// for days that the file with the newest knowledge times does not decide.
pub(crate) async fn sessions(snapshot: &Snapshot) -> Result<BTreeSet<i64>> {
    let mut days: BTreeSet<i64> = snapshot.files.iter().flat_map(|f| f.index.days.iter().copied()).collect();
    let doubtful: BTreeSet<i64> =
        snapshot.files.iter().flat_map(|f| f.index.retracted_days.iter().copied()).collect();
    let mut unknown = BTreeSet::new();
    for &day in &doubtful {
        let of_day =
            || snapshot.files.iter().map(|f| &f.index).filter(|i| i.days.binary_search(&day).is_ok());
        let Some(newest) = of_day().max_by_key(|index| index.known_max) else { continue };
        let older = of_day().filter(|index| index.known_max < newest.known_min).count();
        let last = newest.sorted && older + 1 == of_day().count();
        match newest.gone_days.binary_search(&day) {
            // Rows that hold in the newest file hold.
            Err(_) if last => {}
            Ok(_) if last && older == 0 => drop(days.remove(&day)),
            _ => drop(unknown.insert(day)),
        }
    }
    // Days that follow each other are read together.
    let mut spans: Vec<Range<i64>> = Vec::new();
    for &day in &unknown {
        match spans.last_mut() {
            Some(span) if span.end == day => span.end = day + 1,
            _ => spans.push(day..day + 1),
        }
    }
    for span in spans {
        let range = midnight(span.start)..midnight(span.end);
        let hold = Newest::read(snapshot, &range, |_| true).await?.days();
        days.retain(|day| !span.contains(day) || hold.contains(&midnight(*day)));
    }
    Ok(days.into_iter().map(midnight).collect())
}

/// Key columns of some rows of a file.
struct KeyRows {
    file: Arc<DataFile>,
    /// The symbols, whose rows follow each other in `batches`.
    wanted: Vec<(Symbol, Range<u32>)>,
    batches: Vec<RecordBatch>,
}

async fn versions(
    file: Arc<DataFile>,
    runs: Vec<(Symbol, Range<u32>)>,
    range: Range<i64>,
) -> Result<KeyRows> {
    let mut wanted = Vec::with_capacity(runs.len());
    for (symbol, rows) in runs {
        let rows = file.narrow(rows.start, rows.end, range.start, range.end).await?;
        if !rows.is_empty() {
            wanted.push((symbol, rows));
        }
    }
    let mut batches = Vec::new();
    if !wanted.is_empty() {
        let mut columns = vec![TS_NS.to_owned()];
        columns.extend(file.index.known_at().is_none().then(|| KNOWN_AT_NS.to_owned()));
        columns.extend(file.index.retracts().then(|| RETRACTED.to_owned()));
        let rows = wanted.iter().map(|(_, rows)| rows.start as usize..rows.end as usize).collect();
        batches = file.read(&columns, Some(rows)).await?;
    }
    Ok(KeyRows { file, wanted, batches })
}

impl KeyRows {
    fn learn(&self, range: &Range<i64>, newest: &mut Newest) -> Result<()> {
        let index = &self.file.index;
        let rows: usize = self.batches.iter().map(RecordBatch::num_rows).sum();
        if rows != self.wanted.iter().map(|(_, rows)| rows.len()).sum::<usize>() {
            return Err(internal("reading keys", "other rows came than were asked for"));
        }
        let mut symbols =
            self.wanted.iter().flat_map(|(symbol, rows)| std::iter::repeat_n(symbol, rows.len()));
        for batch in &self.batches {
            let time = |column: usize| {
                let times = batch.column(column).as_primitive_opt::<Int64Type>();
                times.ok_or_else(|| corrupt(&self.file.name, "ts_ns or known_at_ns is not int64"))
            };
            let ts = time(0)?;
            let known_at = if index.known_at().is_none() { Some(time(1)?) } else { None };
            let retracted = match index.retracts() {
                true => Some(retractions(&self.file.name, batch.column(batch.num_columns() - 1))?),
                false => None,
            };
            for (row, symbol) in (0..batch.num_rows()).zip(&mut symbols) {
                if !range.contains(&ts.value(row)) {
                    continue;
                }
                let known_at = known_at.map_or(index.known_min, |known_at| known_at.value(row));
                let retracted = retracted.as_ref().is_some_and(|retracted| retracted.value(row));
                newest.learn((symbol.clone(), ts.value(row)), known_at, retracted);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        config::Upkeep,
        testing::{Grid, When, of_earlier_release},
        upkeep::compact,
    };

    fn key(symbol: u8, ts: i64) -> Key {
        (Symbol::new(["A", "B", "C"][usize::from(symbol)]).unwrap(), ts)
    }

    /// The plain definition: a key holds if the version of the greatest knowledge time is no retraction.
    fn oracle(versions: &[(Key, i64, bool)], rows: &BTreeSet<Key>, own: Option<&BTreeSet<i64>>) -> Vec<Key> {
        let mut gone: Vec<Key> = Vec::new();
        for (key, known_at, retracted) in versions {
            let newest = versions.iter().filter(|other| other.0 == *key).all(|other| other.1 <= *known_at);
            let own = own.is_none_or(|own| own.contains(known_at));
            if newest && !retracted && own && !rows.contains(key) {
                gone.push(key.clone());
            }
        }
        gone.sort();
        gone
    }

    proptest! {
        #[test]
        fn what_a_publish_takes_back_is_the_oracles(
            versions in prop::collection::vec((0u8..3, 0i64..3, prop::bool::weighted(0.3)), 0..20),
            rows in prop::collection::btree_set((0u8..3, 0i64..3), 0..6),
            own in prop::option::of(prop::collection::btree_set(0i64..20, 0..10)),
            shuffled in any::<prop::sample::Index>(),
        ) {
            let mut versions: Vec<(Key, i64, bool)> = versions.into_iter().enumerate()
                .map(|(at, (symbol, ts, retracted))| (key(symbol, ts), at as i64, retracted)).collect();
            let rows: BTreeSet<Key> = rows.into_iter().map(|(symbol, ts)| key(symbol, ts)).collect();
            let mut newest = Newest::default();
            // files are not read in the order of knowledge
            let middle = if versions.is_empty() { 0 } else { shuffled.index(versions.len()) };
            versions.rotate_left(middle);
            for (key, known_at, retracted) in &versions {
                newest.learn(key.clone(), *known_at, *retracted);
            }
            let retractable = own.as_ref().map_or(Retractable::All, Retractable::KnownAt);
            prop_assert_eq!(newest.lacking(&rows, retractable), oracle(&versions, &rows, own.as_ref()));
        }
    }

    const DAY: i64 = DAY_NS;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_session_published_again_holds_what_it_has_now_and_an_empty_one_nothing() {
        let grid = Grid::new().await;
        grid.lease("mom").await;
        let publish = async |run: &str, rows: &[(&str, i64, f64)]| {
            grid.publish_session("mom", 1, run, rows, 0..DAY, "").await.unwrap()
        };
        let first = publish("r1", &[("A", 0, 1.0), ("B", 0, 2.0), ("C", 0, 3.0)]).await;
        assert_eq!(first.retracted, 0);
        let second = publish("r2", &[("A", 0, 7.0), ("B", 0, 2.0)]).await;
        assert_eq!((second.rows, second.retracted), (2, 1));
        let again = publish("r2", &[("A", 0, 7.0), ("B", 0, 2.0)]).await;
        assert_eq!((again.rows, again.retracted, again.duplicate), (2, 1, true));
        // the old version stays, the newest one says that it is gone
        let c = grid.rows("C").await;
        assert_eq!((c.len(), c[0], c[1].0), (2, (0, 3.0), 0));
        assert!(c[1].1.is_nan());
        assert_eq!(grid.rows("A").await, [(0, 1.0), (0, 7.0)]);
        // A retracted row is not retracted again, and may come back.
        assert_eq!(publish("r3", &[("C", 0, 4.0)]).await.retracted, 2);
        assert_eq!(grid.rows("C").await.last(), Some(&(0, 4.0)));
        assert_eq!(publish("r4", &[]).await.retracted, 1);
        assert_eq!(sessions(&grid.table().snapshot().unwrap()).await.unwrap(), BTreeSet::new());
        // all of it is in the files, too
        let grid = grid.restart().await;
        assert_eq!(sessions(&grid.table().snapshot().unwrap()).await.unwrap(), BTreeSet::new());
        assert_eq!(grid.rows("C").await.len(), 4);
        assert_eq!(grid.publish_session("mom", 1, "r4", &[], 0..DAY, "").await.unwrap().retracted, 1);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_new_session_reads_no_rows_and_a_corrected_one_only_its_keys() {
        let grid = Grid::with(|config| {
            config.upkeep = Upkeep { compact_files: 2, ..Upkeep::default() };
        })
        .await;
        grid.lease("mom").await;
        let symbols: Vec<String> = (0..2_000).map(|i| format!("S{i:04}")).collect();
        let rows = |day: i64| -> Vec<(&str, i64, f64)> {
            symbols.iter().map(|s| (s.as_str(), day * DAY, day as f64)).collect()
        };
        for day in 0..4 {
            let range = day * DAY..(day + 1) * DAY;
            grid.probe.forget();
            grid.publish_session("mom", 1, &format!("r{day}"), &rows(day), range, "").await.unwrap();
            // the one read is that of the rows for the watchers
            let (reads, _) = grid.probe.reads(".parquet");
            assert!(reads <= 6, "{reads} reads for a new session");
        }
        let table = grid.table();
        assert!(compact(&grid.shard, &table, &table.snapshot().unwrap()).await.unwrap());
        let few = &rows(2)[..1_500];
        let ack = grid.publish_session("mom", 1, "again", few, 2 * DAY..3 * DAY, "").await.unwrap();
        assert_eq!((ack.rows, ack.retracted), (1_500, 500));
        assert_eq!(grid.rows("S1700").await.iter().filter(|row| row.1.is_nan()).count(), 1);
        assert_eq!(grid.rows("S0100").await.iter().filter(|row| row.1.is_nan()).count(), 0);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_partition_takes_back_what_it_published_itself_and_nobody_elses() {
        let grid = Grid::new().await;
        grid.lease("mom").await;
        let publish = async |grid: &Grid, run: &str, partition: &str, rows: &[(&str, i64, f64)]| {
            grid.publish_session("mom", 1, run, rows, 0..DAY, partition).await.unwrap().retracted
        };
        assert_eq!(publish(&grid, "r1", "eu", &[("A", 0, 1.0), ("B", 0, 1.0)]).await, 0);
        assert_eq!(publish(&grid, "r2", "us", &[("C", 0, 1.0), ("D", 0, 1.0)]).await, 0);
        assert_eq!(publish(&grid, "r3", "us", &[("A", 0, 2.0), ("C", 0, 2.0)]).await, 1);
        // A row that the other partition has written since is no longer its own, after a restart too.
        let grid = grid.restart().await;
        assert_eq!(publish(&grid, "r4", "eu", &[]).await, 1);
        assert_eq!(grid.rows("A").await, [(0, 1.0), (0, 2.0)]);
        assert!(grid.rows("B").await[1].1.is_nan());
        // A publish without a partition replaces the whole session.
        assert_eq!(publish(&grid, "r5", "", &[("A", 0, 3.0)]).await, 1);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_an_empty_publish_retracts_is_not_retracted_again_by_the_next_of_its_commit() {
        let grid = Grid::new().await;
        grid.lease("mom").await;
        for round in 0..6 {
            let day = round * DAY;
            let publish = async |run: &str, rows: &[(&str, i64, f64)], day: i64| {
                let run = format!("{round}-{run}");
                grid.publish_session("mom", 1, &run, rows, day..day + DAY, "").await.unwrap().retracted
            };
            publish("first", &[("A", day, 1.0)], day).await;
            // while another session is committed, both wait, and go into one commit
            let (elsewhere, here) = ([("A", day + 100 * DAY, 1.0)], [("B", day, 1.0)]);
            let retracted = tokio::join!(
                publish("other", &elsewhere, day + 100 * DAY),
                publish("empty", &[], day),
                publish("next", &here, day),
            );
            assert_eq!(retracted, (0, 1, 0));
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn publishes_of_one_commit_replace_each_other_as_if_one_came_after_the_other() {
        let grid = Arc::new(Grid::new().await);
        grid.lease("mom").await;
        for round in 0..6 {
            let day = round * DAY;
            // all but the first wait together while it is committed
            let publishes = (0..8_i64).map(|i| {
                let grid = grid.clone();
                async move {
                    let symbols = ["A", "B", "C", "D"];
                    let rows: Vec<_> = (0..3)
                        .map(|k| (symbols[((i + k) % 4) as usize], day + k, (i * 10 + k) as f64))
                        .collect();
                    let run = format!("r{round}-{i}");
                    grid.publish_session("mom", 1, &run, &rows, day..day + DAY, "").await.unwrap()
                }
            });
            let acks = futures::future::join_all(publishes).await;
            let versions: BTreeSet<u64> = acks.iter().map(|ack| ack.version).collect();
            assert!(versions.len() < acks.len(), "some went together");
            let last = acks.iter().map(|ack| ack.known_at_ns).max().unwrap();
            let snapshot = grid.table().snapshot().unwrap();
            let newest = Newest::read(&snapshot, &(day..day + DAY), |_| true).await.unwrap();
            let holds: Vec<_> = newest.0.values().filter(|(_, retracted)| !retracted).collect();
            assert!(holds.len() == 3 && holds.iter().all(|(known_at, _)| *known_at == last), "{newest:?}");
            let retracted: u64 = acks.iter().map(|ack| ack.retracted).sum();
            assert!(retracted > 0);
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_import_retracts_rows_that_hold_and_names_those_that_do_not() {
        let grid = Grid::new().await;
        grid.import(&[("A", 0, 1.0), ("A", DAY, 2.0), ("B", 0, 3.0)]).await.unwrap();
        assert_eq!(grid.retract(&[("A", DAY), ("B", 0)]).await.unwrap().retracted, 2);
        assert!(grid.rows("B").await[1].1.is_nan());
        let days = sessions(&grid.table().snapshot().unwrap()).await.unwrap();
        assert_eq!(days, BTreeSet::from([0]));
        let refused = grid.retract(&[("A", 0), ("A", 1), ("B", 0)]).await.unwrap_err();
        assert_eq!(refused.code(), trellis_proto::Code::BadRows);
        assert!(
            refused.message().contains("A at 1970-01-01T00:00:00.000000001Z; B at 1970-01-01"),
            "{refused}"
        );
        assert_eq!(grid.rows("A").await.len(), 3, "nothing was retracted");
        let symbols = grid.table().snapshot().unwrap().symbols.len();
        assert_eq!(symbols, 2, "a symbol with nothing but retracted rows is known");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_table_of_before_gets_the_column_with_its_first_retraction() {
        let grid = Grid::new().await;
        grid.lease("mom").await;
        // The table as releases made it that had no retractions.
        let entry = grid.path().join("_delta_log/00000000000000000000.json");
        let text = std::fs::read_to_string(&entry).unwrap();
        let column = r#"{\"metadata\":{},\"name\":\"retracted\",\"nullable\":true,\"type\":\"boolean\"},"#;
        assert!(text.contains(column), "{text}");
        std::fs::write(&entry, of_earlier_release(&text.replace(column, ""))).unwrap();
        let grid = grid.restart().await;
        let retractable = |grid: &Grid| grid.table().snapshot().unwrap().retractable;
        grid.publish("mom", 1, "r1", &[("A", 0, 1.0), ("B", 0, 2.0)]).await.unwrap();
        grid.publish("mom", 1, "r2", &[("A", 0, 1.5), ("B", 0, 2.5)]).await.unwrap();
        assert!(!retractable(&grid));
        // A shard that dies on the way leaves a table that is whole, with the column or without.
        grid.probe.fail("_delta_log", std::io::ErrorKind::Other, When::Before);
        grid.publish("mom", 1, "r3", &[("A", 0, 3.0)]).await.unwrap_err();
        let grid = grid.restart().await;
        assert!(!retractable(&grid));
        assert_eq!(grid.publish("mom", 1, "r3", &[("A", 0, 3.0)]).await.unwrap().retracted, 1);
        assert!(retractable(&grid));
        let grid = grid.restart().await;
        assert!(retractable(&grid));
        let b = grid.rows("B").await;
        assert_eq!((b.len(), b[1], b[2].1.is_nan()), (3, (0, 2.5), true));
        let table = grid.table();
        let state = table.log.open(0).await.unwrap().unwrap();
        let properties = &state.definition.properties;
        assert_eq!(properties.len(), 2, "{properties:?}");
        let grid = grid.restart().await;
        grid.publish("mom", 1, "r4", &[("A", 0, 4.0), ("B", 0, 5.0)]).await.unwrap();
        assert_eq!(grid.rows("B").await.last(), Some(&(0, 5.0)));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_sessions_that_there_are_follow_from_the_rows_whatever_files_they_are_in() {
        let grid = Grid::with(|config| {
            config.upkeep = Upkeep { compact_files: 3, ..Upkeep::default() };
        })
        .await;
        grid.import(&[("A", 0, 1.0), ("B", DAY, 1.0), ("A", 2 * DAY, 1.0)]).await.unwrap();
        let mut seed = 7_u64;
        let mut below = |n: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % n
        };
        let mut empty = 0;
        for step in 0..120 {
            let (day, symbol) = (below(4) as i64 * DAY, ["A", "B"][below(2) as usize]);
            match below(6) {
                0 | 1 => drop(grid.import(&[(symbol, day, f64::from(step))]).await.unwrap()),
                // Most of the rows to retract do not hold.
                2..=4 => drop(grid.retract(&[(symbol, day)]).await),
                _ => {
                    let table = grid.table();
                    compact(&grid.shard, &table, &table.snapshot().unwrap()).await.unwrap();
                }
            }
            let snapshot = grid.table().snapshot().unwrap();
            let all = Newest::read(&snapshot, &(0..10 * DAY), |_| true).await.unwrap().days();
            assert_eq!(sessions(&snapshot).await.unwrap(), all, "step {step}");
            empty += usize::from(all.len() < 4);
        }
        assert!(empty > 20, "{empty} times a session was gone");
    }
}
