//! The datasets of the lake. The shard knows the name of each dataset, and what it has told heads of it. It opens a table when
//! somebody asks for the dataset, and closes it when nobody has asked for a while. There is one open table of a dataset at a time.
//! So the shard tells watchers of each version once, and in order.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use futures::StreamExt;
use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;
use trellis_proto::{Code, DatasetName, Error, Result, name::Suggest, pb};

use super::{
    left,
    opened::{Opened, turn as turn_of},
};
use crate::{
    files::Lake,
    table::{CHECKPOINT_COMMITS_MIN, Context, Kept, Log, Snapshot, Table},
};

/// Tables opened at once for a list of all datasets. An opening takes megabytes for a moment, and the allocator keeps some of them.
const OPEN_PARALLEL: usize = 8;
/// Most estimated bytes of all open tables: about 4,500 tables with few files.
const OPEN_BYTES_MAX: usize = 1 << 30;
/// The shard closes a table that nobody has used for this long. To open it again takes milliseconds in a folder, and a few
/// requests to a remote store.
const OPEN_IDLE_MAX: Duration = Duration::from_secs(600);
/// After a listing of the lake, the shard makes the next one only after this many times the time that the listing took.
const LISTING_SHARE: u32 = 100;
/// In a remote store a listing takes one request for each thousand names. For each of these requests the shard waits this
/// long before the next listing.
const LISTING_PAGE_PAUSE: Duration = Duration::from_secs(10);
const LISTING_PAGE: usize = 1_000;

/// All datasets.
#[derive(Debug)]
pub(crate) struct Catalog {
    pub(crate) lake: Lake,
    context: Arc<Context>,
    datasets: RwLock<BTreeMap<DatasetName, Dataset>>,
    opened: Mutex<Opened<Arc<Table>>>,
    /// Held while the lake is listed.
    listing: tokio::sync::Mutex<Listing>,
    arrivals: AtomicU64,
    /// Held while tables are opened for a list. Those who ask at the same time share the work.
    describing: tokio::sync::Mutex<()>,
}

/// The last listing of the lake.
#[derive(Debug, Default)]
struct Listing {
    /// How many arrivals it covered: callers that come at the same time share one.
    covered: u64,
    /// The upkeep does not list the lake again before.
    not_before: Option<Instant>,
}

/// One dataset.
#[derive(Debug, Default)]
struct Dataset {
    kept: Arc<Kept>,
    /// The table, while anybody has it.
    table: Weak<Table>,
}

/// A position in the turns of the looks.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    opened: Option<DatasetName>,
    all: Option<DatasetName>,
    looks: usize,
}

impl Catalog {
    pub(crate) fn new(lake: Lake, context: Arc<Context>) -> Self {
        let opened = Mutex::new(Opened::new(OPEN_BYTES_MAX, OPEN_IDLE_MAX));
        let (datasets, listing, arrivals, describing) = Default::default();
        Self { lake, context, datasets, opened, listing, arrivals, describing }
    }

    /// Learns the names of the datasets that are there when the shard starts, and what its last life has left of them.
    ///
    /// # Errors
    /// The lake cannot be listed.
    pub(crate) async fn load(&self) -> Result<()> {
        let names = self.lake.datasets().await?;
        let left = self.read_left().await.unwrap_or_else(|error| {
            tracing::warn!(%error, "what the last life of this shard has left does not read: the first list of datasets takes longer");
            Vec::new()
        });
        let named = |said: pb::DatasetDescription| Some((said.spec.as_ref()?.dataset.clone(), said));
        let mut left: HashMap<String, pb::DatasetDescription> = left.into_iter().filter_map(named).collect();
        let listed = |name: DatasetName| {
            let kept = Arc::new(Kept::listed(left.remove(name.as_str())));
            (name, Dataset { kept, table: Weak::new() })
        };
        self.datasets.write().extend(names.into_iter().map(listed));
        Ok(())
    }

    async fn read_left(&self) -> Result<Vec<pb::DatasetDescription>> {
        let file = self.lake.read_own(&left::file_name(&self.context)).await?;
        Ok(file.and_then(|file| left::decode(&self.context, &file)).unwrap_or_default())
    }

    /// Leaves the descriptions for the next life of this shard, if any has changed since the last call. Those of datasets that may need a
    /// checkpoint or the end of a rename are left out: the next life opens their tables, and so finds what is to be done.
    ///
    /// # Errors
    /// The store takes no file.
    pub(crate) async fn leave(&self) -> Result<()> {
        if !self.context.changed.swap(false, SeqCst) {
            return Ok(());
        }
        let busy = self.context.upkeep.lock().clone();
        let datasets: Vec<_> = {
            let datasets = self.datasets.read();
            let due = |now: Arc<Snapshot>| now.version >= CHECKPOINT_COMMITS_MIN || now.moving().is_some();
            let snapshot = |dataset: &Dataset| dataset.table.upgrade()?.snapshot();
            let resting = datasets
                .iter()
                .filter(|(name, dataset)| !busy.contains(*name) || !snapshot(dataset).is_none_or(due));
            resting.filter_map(|(_, dataset)| dataset.kept.description()).collect()
        };
        let file = left::encode(&self.context, datasets);
        self.lake.write_own(&left::file_name(&self.context), file).await.inspect_err(|_| {
            self.context.changed.store(true, SeqCst);
        })
    }

    /// The dataset and its newest snapshot.
    ///
    /// # Errors
    /// [`Code::UnknownDataset`], or the reason why it cannot be read.
    pub(crate) async fn find(&self, name: &str) -> Result<(Arc<Table>, Arc<Snapshot>)> {
        self.find_with(name, &mut Suggest::default()).await
    }

    /// Like [`Self::find`], for a request that names many datasets and has one bound for all of its hints.
    pub(crate) async fn find_with(
        &self,
        name: &str,
        suggest: &mut Suggest,
    ) -> Result<(Arc<Table>, Arc<Snapshot>)> {
        let (table, snapshot) = self.find_any_with(name, suggest).await?;
        if snapshot.life.dropped {
            return Err(self.unknown(name, suggest));
        }
        Ok((table, snapshot))
    }

    fn unknown(&self, name: &str, suggest: &mut Suggest) -> Error {
        let error = Error::new(Code::UnknownDataset, format!("there is no dataset {name:?}")).dataset(name);
        let datasets = self.datasets.read();
        let there = datasets.iter().filter(|(_, dataset)| dataset.kept.is_there());
        match suggest.nearest(name, there.map(|(name, _)| name.as_str())) {
            Some(near) => error.hint(format!("did you mean {near}?")),
            None => error,
        }
    }

    /// Like [`Self::find`], and also finds a dropped dataset.
    pub(crate) async fn find_any(&self, name: &str) -> Result<(Arc<Table>, Arc<Snapshot>)> {
        self.find_any_with(name, &mut Suggest::default()).await
    }

    async fn find_any_with(&self, name: &str, suggest: &mut Suggest) -> Result<(Arc<Table>, Arc<Snapshot>)> {
        let valid = DatasetName::new(name).map_err(|e| {
            let error = Error::new(Code::UnknownDataset, format!("there is no dataset {name:?}"));
            error.dataset(name).hint(e.message())
        })?;
        // Look before it is kept: a made-up name is not kept.
        let known = self.datasets.read().contains_key(&valid);
        if !known && !self.log(&valid).exists().await? {
            return Err(self.unknown(name, suggest));
        }
        let table = self.entry(&valid);
        let snapshot = table.refresh().await?;
        self.used(&table);
        snapshot.map(|snapshot| (table, snapshot)).ok_or_else(|| self.unknown(name, suggest))
    }

    /// The table of a dataset, even if it is not there yet. It stays open for a while.
    pub(crate) fn entry(&self, name: &DatasetName) -> Arc<Table> {
        let table = self.table(name);
        self.used(&table);
        table
    }

    /// Like [`Self::entry`], and closes with the last of those who have it.
    pub(crate) fn table(&self, name: &DatasetName) -> Arc<Table> {
        if let Some(table) = self.open_table(name) {
            return table;
        }
        let mut datasets = self.datasets.write();
        let dataset = datasets.entry(name.clone()).or_default();
        if let Some(table) = dataset.table.upgrade() {
            return table;
        }
        let table = Table::new(name, self.log(name), self.context.clone(), dataset.kept.clone());
        let table = Arc::new(table);
        dataset.table = Arc::downgrade(&table);
        table
    }

    fn open_table(&self, name: &DatasetName) -> Option<Arc<Table>> {
        self.datasets.read().get(name)?.table.upgrade()
    }

    fn used(&self, table: &Arc<Table>) {
        let now = self.context.started.elapsed();
        let closed = self.opened.lock().used(&table.name, table, table.bytes(), now);
        self.closed(closed);
    }

    /// Closes the tables that nobody has used for long.
    pub(crate) fn close_idle(&self) {
        let closed = self.opened.lock().close_idle(self.context.started.elapsed());
        self.closed(closed);
    }

    /// Closes every table that nobody else has.
    #[cfg(test)]
    pub(crate) fn close_all(&self) {
        let closed = self.opened.lock().close_idle(Duration::MAX);
        self.closed(closed);
    }

    fn closed(&self, closed: Vec<(DatasetName, Arc<Table>)>) {
        for (name, table) in closed {
            drop(table);
            self.forget(&name);
        }
    }

    /// Forgets a name of which nothing is known and whose table nobody has: a write to it has failed.
    fn forget(&self, name: &DatasetName) {
        let nothing = |dataset: &Dataset| dataset.kept.is_empty() && dataset.table.strong_count() == 0;
        if self.datasets.read().get(name).is_some_and(nothing) {
            let mut datasets = self.datasets.write();
            if datasets.get(name).is_some_and(nothing) {
                datasets.remove(name);
            }
        }
    }

    /// How many datasets are known here.
    pub(crate) fn len(&self) -> usize {
        self.datasets.read().len()
    }

    /// The name after `last`.
    pub(crate) fn next(&self, last: &mut Option<DatasetName>) -> Option<DatasetName> {
        let datasets = self.datasets.read();
        let from = last.as_ref().map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        let next = datasets.range::<DatasetName, _>((from, std::ops::Bound::Unbounded)).next();
        *last = next.map(|(name, _)| name.clone());
        last.clone()
    }

    /// The newest version of any dataset of which the shard has told a head or watcher.
    #[cfg(test)]
    pub(crate) fn newest_told(&self) -> Option<u64> {
        self.datasets.read().values().filter_map(|dataset| dataset.kept.version()).max()
    }

    /// How many names are kept.
    #[cfg(test)]
    pub(crate) fn names(&self) -> usize {
        self.datasets.read().len()
    }

    /// The open tables.
    #[cfg(test)]
    pub(crate) fn open_tables(&self) -> Vec<Arc<Table>> {
        self.datasets.read().values().filter_map(|dataset| dataset.table.upgrade()).collect()
    }

    /// The names of the next `count` looks: of the datasets that were used lately and of all, in turns. There are more looks at the
    /// former, if they are few.
    pub(crate) fn turn(&self, turn: &mut Turn, count: usize) -> Vec<DatasetName> {
        turn.looks = turn.looks.wrapping_add(1);
        // One look at a time alternates.
        let lately = if turn.looks.is_multiple_of(2) { count / 2 } else { count.div_ceil(2) };
        let mut names = self.opened.lock().turn(&mut turn.opened, lately);
        let mut all = turn_of(&self.datasets.read(), &mut turn.all, count - names.len());
        all.retain(|name| !names.contains(name));
        names.extend(all);
        names
    }

    /// Looks for a commit that watchers do not know yet, and tells them.
    ///
    /// # Errors
    /// The log, or a file that it names, cannot be read.
    pub(crate) async fn look(&self, name: &DatasetName) -> Result<()> {
        if let Some(table) = self.open_table(name) {
            return table.refresh().await.map(|_| ());
        }
        let told = self.datasets.read().get(name).and_then(|dataset| dataset.kept.version());
        let Some(told) = told else {
            // Nobody was told anything of a dataset without a description. One that did not open may open by now, or be gone.
            if self.context.unopened.has(name) {
                self.table(name).refresh().await?;
                self.forget(name);
            }
            return Ok(());
        };
        if self.log(name).has(told + 1).await? {
            self.entry(name).refresh().await?;
        }
        Ok(())
    }

    /// Looks for datasets that another shard or tool has made, unless the last listing of the lake was too dear for another one.
    ///
    /// # Errors
    /// Those of [`Self::list`].
    pub(crate) async fn discover(&self) -> Result<()> {
        if self.listing.lock().await.not_before.is_some_and(|at| Instant::now() < at) {
            return Ok(());
        }
        self.list().await
    }

    /// Looks for datasets that another shard or tool has made, and tells the watchers of them.
    ///
    /// # Errors
    /// The lake cannot be listed.
    async fn list(&self) -> Result<()> {
        let ticket = self.arrivals.fetch_add(1, SeqCst) + 1;
        let mut listing = self.listing.lock().await;
        if listing.covered >= ticket {
            return Ok(());
        }
        let covers = self.arrivals.load(SeqCst);
        let began = Instant::now();
        let names = self.lake.datasets().await?;
        let pages = if self.lake.is_remote() { names.len() / LISTING_PAGE } else { 0 };
        let pause = (began.elapsed() * LISTING_SHARE).max(LISTING_PAGE_PAUSE * pages as u32);
        listing.not_before = Some(Instant::now() + pause);
        for name in names {
            if !self.datasets.read().contains_key(&name)
                && let Err(error) = self.find(name.as_str()).await
                && error.code() != Code::UnknownDataset
            {
                tracing::warn!(dataset = %name, %error, "a new dataset does not open");
            }
        }
        listing.covered = covers;
        Ok(())
    }

    /// The descriptions of all datasets, and the reasons for those that do not [open](crate::table::Unopened). Opens the tables that
    /// were not described yet.
    ///
    /// # Errors
    /// The lake cannot be listed.
    pub(crate) async fn descriptions(&self) -> Result<(Vec<pb::DatasetDescription>, Vec<pb::ErrorDetail>)> {
        self.list().await?;
        let _one = self.describing.lock().await;
        let described = |dataset: &Dataset| dataset.kept.version().is_some();
        let missing: Vec<DatasetName> = {
            let datasets = self.datasets.read();
            datasets.iter().filter(|(_, of)| !described(of)).map(|(name, _)| name.clone()).collect()
        };
        futures::stream::iter(missing).for_each_concurrent(OPEN_PARALLEL, |name| self.describe(name)).await;
        // Before the list: one that opens meanwhile is in both, and not in neither.
        let unopened = self.context.unopened.told();
        let datasets = self.datasets.read();
        Ok((datasets.values().filter_map(|dataset| dataset.kept.description()).collect(), unopened))
    }

    async fn describe(&self, name: DatasetName) {
        let kept = self.datasets.read().get(&name).map(|dataset| dataset.kept.clone());
        match (self.look_at(&name, kept.as_deref()).await, kept) {
            (Ok(true), _) | (_, None) => {}
            // A folder without a table.
            (Ok(false), Some(kept)) => {
                kept.passed_over();
                self.forget(&name);
            }
            // One broken dataset must not hide the others.
            (Err(error), Some(kept)) => {
                kept.passed_over();
                tracing::error!(dataset = %name, %error, "a dataset does not open");
            }
        }
    }

    /// Has the description of a dataset kept, if there is the dataset. Returns whether there is. Opens the table only if something has
    /// happened to it since the last life of the shard.
    async fn look_at(&self, name: &DatasetName, kept: Option<&Kept>) -> Result<bool> {
        if let Some((kept, version)) = kept.and_then(|kept| Some((kept, kept.left()?))) {
            let log = self.log(name);
            // The entry says that it is the same table.
            if let (Ok(true), Ok(false)) = (log.has(version).await, log.has(version + 1).await)
                && kept.take_left()
            {
                return Ok(true);
            }
        }
        Ok(self.table(name).refresh().await?.is_some())
    }

    /// Has the description of a dataset kept that somebody is about to follow.
    ///
    /// # Errors
    /// [`Code::UnknownDataset`], or the reason why it does not open.
    pub(crate) async fn know(&self, name: &str) -> Result<()> {
        let unknown = || self.unknown(name, &mut Suggest::default());
        let valid = DatasetName::new(name).map_err(|error| unknown().hint(error.message()))?;
        let kept = self.datasets.read().get(&valid).map(|dataset| dataset.kept.clone());
        if kept.as_ref().is_some_and(|kept| kept.version().is_some()) {
            return Ok(());
        }
        // Look before it is kept: a made-up name is not kept.
        if kept.is_none() && !self.log(&valid).exists().await? {
            return Err(unknown());
        }
        let table = self.table(&valid);
        let there = self.look_at(&valid, kept.as_deref()).await;
        if table.snapshot().is_some() {
            // reads follow soon
            self.used(&table);
        }
        drop(table);
        match there {
            Ok(true) => Ok(()),
            Ok(false) => {
                self.forget(&valid);
                Err(unknown())
            }
            Err(error) => Err(error.dataset(name)),
        }
    }

    /// The answer for somebody who follows a dataset from now on: its description; `why` there is none, if nothing is kept of it. Called
    /// under the lock of the watch log.
    pub(crate) fn told(&self, name: &str, why: Option<&Error>) -> Result<pb::DatasetDescription> {
        let kept = self.datasets.read().get(name).map(|dataset| dataset.kept.clone());
        if let Some(description) = kept.as_ref().and_then(|kept| kept.description()) {
            return Ok(description);
        }
        if let Some(error) = why.filter(|error| error.code() != Code::UnknownDataset) {
            return Err(error.clone());
        }
        // The first look at its table will be news.
        if let Some(kept) = kept {
            kept.passed_over();
        }
        Err(why.cloned().unwrap_or_else(|| self.unknown(name, &mut Suggest::default())))
    }

    fn log(&self, name: &DatasetName) -> Log {
        Log::new(name, self.lake.folder(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::WallClock,
        files::{DurableLocal, Lake},
        shard::Shard,
        testing::{DATASET, Grid, follow},
        upkeep,
        watch_log::{News, Subscription},
    };

    /// A shard that has opened no table.
    async fn idle(grid: &Grid) -> Arc<Shard> {
        let config = grid.shard.config.clone();
        let lake = Lake::over(Arc::new(DurableLocal::default()), None, &config.lake).unwrap();
        Shard::over(config, lake, WallClock::system()).await.unwrap()
    }

    /// As [`idle`], and a watcher of the dataset.
    async fn shard(grid: &Grid) -> (Arc<Shard>, Subscription) {
        let shard = idle(grid).await;
        let watcher = follow(&shard).await;
        (shard, watcher)
    }

    /// The description of the dataset at the beginning of a stream.
    fn said(watcher: &mut Subscription) -> Result<pb::DatasetDescription> {
        match watcher.first.pop() {
            Some(News::Subscribed(answer)) => match answer.answer.unwrap() {
                pb::subscribed::Answer::Description(said) => Ok(said),
                pb::subscribed::Answer::Error(error) => Err(error.into()),
            },
            other => panic!("{other:?}"),
        }
    }

    fn told(watcher: &mut Subscription) -> Vec<Arc<pb::Change>> {
        watcher.changes()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_table_that_was_closed_goes_on_from_what_watchers_know() {
        let grid = Grid::with(|config| {
            config.upkeep.compact_files = 2;
            config.upkeep.retention = Duration::ZERO;
        })
        .await;
        grid.import(&[("A", 0, 1.0)]).await.unwrap();
        let (other, mut watcher) = shard(&grid).await;
        let name = DATASET.parse().unwrap();
        for ts in 1..=3 {
            other.catalog.find(DATASET).await.unwrap();
            assert!(told(&mut watcher).is_empty(), "nothing has happened");
            other.catalog.close_all();
            assert!(other.catalog.open_tables().is_empty());
            for ts in [ts, 10 + ts] {
                grid.import(&[("B", ts, 1.0)]).await.unwrap();
            }
            if ts == 2 {
                grid.table().log.checkpoint(grid.table().snapshot().unwrap().version).await.unwrap();
            }
            other.catalog.look(&name).await.unwrap();
            let spans: Vec<_> = told(&mut watcher).iter().flat_map(|change| change.spans.clone()).collect();
            let span = |ts| pb::SymbolSpan { symbol: "B".to_owned(), start_ns: ts, end_ns: ts + 1 };
            assert_eq!(spans, [span(ts), span(10 + ts)]);
        }
        // The version that watchers know cannot be read any more.
        other.catalog.close_all();
        let (table, version) = (grid.table(), grid.table().snapshot().unwrap().version);
        assert!(upkeep::compact(&grid.shard, &table, &table.snapshot().unwrap()).await.unwrap());
        upkeep::remove_unneeded(&grid.shard, &table).await.unwrap();
        other.catalog.look(&name).await.unwrap();
        let changes = told(&mut watcher);
        assert_eq!(changes.len(), 1);
        assert!(changes[0].everything && changes[0].version == version + 1, "{changes:?}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_dataset_is_news_to_those_who_were_told_that_there_is_none() {
        let grid = Grid::new().await;
        grid.import(&[("A", 0, 1.0)]).await.unwrap();
        let (other, mut watcher) = shard(&grid).await;
        assert_eq!(said(&mut watcher).unwrap().version, 0);
        other.catalog.find(DATASET).await.unwrap();
        assert!(told(&mut watcher).is_empty(), "the answer has it");

        let log = grid.path().join("_delta_log");
        let away = grid.path().join("away");
        std::fs::rename(&log, &away).unwrap();
        let (other, mut watcher) = shard(&grid).await;
        assert_eq!(said(&mut watcher).unwrap_err().code(), Code::UnknownDataset);
        std::fs::rename(&away, &log).unwrap();
        other.catalog.find(DATASET).await.unwrap();
        assert!(told(&mut watcher)[0].everything);

        let entry = log.join("00000000000000000000.json");
        let right = std::fs::read(&entry).unwrap();
        std::fs::write(&entry, &right[..right.len() / 2]).unwrap();
        let (other, mut watcher) = shard(&grid).await;
        assert_eq!(said(&mut watcher).unwrap_err().code(), Code::DataCorrupt);
        std::fs::write(&entry, right).unwrap();
        other.catalog.find(DATASET).await.unwrap();
        assert!(told(&mut watcher).is_empty(), "it was not followed");
        assert_eq!(said(&mut follow(&other).await).unwrap().version, 0);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_next_life_lists_what_the_last_one_has_left_and_opens_only_what_has_changed_since() {
        let grid = Grid::new().await;
        grid.import(&[("A", 0, 1.0)]).await.unwrap();
        grid.shard.catalog.leave().await.unwrap();
        let (other, mut watcher) = shard(&grid).await;
        let listed = other.describe(false).await.unwrap().datasets;
        assert_eq!(listed, grid.shard.describe(false).await.unwrap().datasets);
        assert_eq!(listed, [said(&mut watcher).unwrap()]);
        // Nothing of the table was read: a damaged entry is not noticed before somebody asks for the dataset.
        let entry = grid.path().join("_delta_log/00000000000000000000.json");
        let right = std::fs::read(&entry).unwrap();
        std::fs::write(&entry, b"").unwrap();
        let (damaged, mut of_damaged) = shard(&grid).await;
        assert_eq!(listed, [said(&mut of_damaged).unwrap()]);
        assert_eq!(damaged.describe(false).await.unwrap().datasets, listed);
        assert_eq!(damaged.catalog.find(DATASET).await.map(|_| ()).unwrap_err().code(), Code::DataCorrupt);
        std::fs::write(&entry, right).unwrap();
        // A commit after the list is told as it is, and one before it is in the list.
        grid.import(&[("B", 7, 1.0)]).await.unwrap();
        other.catalog.find(DATASET).await.unwrap();
        assert_eq!(told(&mut watcher)[0].spans[0].symbol, "B");
        let (late, mut watcher) = shard(&grid).await;
        assert_eq!(said(&mut watcher).unwrap().version, 1);
        late.catalog.find(DATASET).await.unwrap();
        assert!(told(&mut watcher).is_empty());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_table_that_needs_a_checkpoint_is_not_left_so_the_next_life_finds_it() {
        let grid = Grid::new().await;
        for ts in 0..=CHECKPOINT_COMMITS_MIN as i64 {
            grid.import(&[("A", ts, 1.0)]).await.unwrap();
        }
        grid.shard.catalog.leave().await.unwrap();
        let other = idle(&grid).await;
        other.describe(false).await.unwrap();
        assert_eq!(other.context_upkeep().len(), 1);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_closed_table_whose_folder_somebody_removed_is_missed_and_not_made_anew() {
        let grid = Grid::new().await;
        grid.import(&[("A", 0, 1.0)]).await.unwrap();
        grid.shard.catalog.close_all();
        std::fs::remove_dir_all(grid.path()).unwrap();
        for error in [
            grid.shard.catalog.find(DATASET).await.map(|_| ()).unwrap_err(),
            grid.import(&[("A", 1, 1.0)]).await.map(|_| ()).unwrap_err(),
        ] {
            assert_eq!(error.code(), Code::DataCorrupt, "{error}");
            assert!(error.hint_text().contains("restart the shards"), "{error}");
        }
        assert!(!grid.path().exists());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_name_that_nobody_wrote_to_is_not_kept() {
        let grid = Grid::new().await;
        let (catalog, name) = (&grid.shard.catalog, "d.never".parse().unwrap());
        assert_eq!(catalog.find("d.never").await.map(|_| ()).unwrap_err().code(), Code::UnknownDataset);
        let before = catalog.len();
        let table = catalog.entry(&name);
        catalog.close_all();
        assert_eq!(catalog.len(), before + 1, "somebody may be about to make it");
        drop(table);
        drop(catalog.entry(&name));
        catalog.close_all();
        assert_eq!(catalog.len(), before);
    }
}
