//! One dataset: the description that its shards give together, its series, its parts, and its counters.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use parking_lot::{Mutex, MutexGuard, RwLock};
use trellis_proto::{DatasetName, DatasetSpec, Error, Result, Symbol, pb, placement};

use super::{
    chunk::ColumnLayout,
    claims::{ColumnSet, Standing},
    part::{Described, Part},
    series::Series,
    symbols::SymbolLists,
};
use crate::shards::{Link, Shard};

/// Bytes that a chunk takes besides its rows, for estimates of a fetch.
const CHUNK_OVERHEAD: f64 = 700.0;
/// Weight of one message in the running average of rows per chunk.
const DENSITY_WEIGHT: f64 = 0.05;

/// A dataset as all its shards together describe it. A snapshot: a later change makes a new one.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// Its name, fields and settings.
    pub spec: Arc<DatasetSpec>,
    /// The shards' number for this spec.
    pub(crate) schema: u64,
    /// Newest version that any shard has announced.
    pub version: u64,
    /// The knowledge time that every shard has reached.
    pub known_through: i64,
    /// Event time up to which it is complete, if a shard says so.
    pub watermark: Option<i64>,
    /// Least event time of any row; `None`: no rows.
    pub first_ts: Option<i64>,
    /// Greatest event time of any row; `None`: no rows.
    pub last_ts: Option<i64>,
    /// Rows stored, every known version counted.
    pub rows: u64,
    /// Symbols of all shards together.
    pub symbols: u64,
    /// The shard that commits to it.
    pub home: String,
    /// Whether no shard was being brought up to date when `known_through` was taken. Only then does it cover every publish that had been
    /// acknowledged.
    pub(crate) settled: bool,
}

impl Dataset {
    /// How many times the heads that serve it exist.
    pub(crate) fn copies(&self) -> u32 {
        self.spec.settings.copies.unwrap_or(1)
    }

    /// How many heads serve it in each copy.
    pub(crate) fn spread(&self) -> u32 {
        if let Some(spread) = self.spec.settings.spread {
            return spread;
        }
        let width: usize = self.spec.fields.iter().map(|field| field.data_type.width()).sum();
        placement::spread(self.rows, width as u64)
    }
}

impl From<&Dataset> for pb::DatasetDescription {
    fn from(dataset: &Dataset) -> Self {
        Self {
            spec: Some((&*dataset.spec).into()),
            version: dataset.version,
            known_through_ns: dataset.known_through,
            watermark_ns: dataset.watermark,
            first_ts_ns: dataset.first_ts,
            last_ts_ns: dataset.last_ts,
            rows: dataset.rows,
            symbols: dataset.symbols,
            home: dataset.home.clone(),
            schema: dataset.schema,
            dropped: false,
            spread: dataset.spread(),
            copies: dataset.copies(),
        }
    }
}

/// Counters since the head started, of one dataset or of all together.
#[derive(Debug, Default)]
pub(crate) struct TableCounters {
    pub(crate) rows_fetched: AtomicU64,
    pub(crate) rows_union: AtomicU64,
    pub(crate) chunks_joined: AtomicU64,
    pub(crate) chunks_fetched: AtomicU64,
    pub(crate) upstream_calls: AtomicU64,
    /// The counters of all datasets together; `None` in these themselves. They keep what dropped datasets counted, and an export reads
    /// them without a look at each dataset.
    all: Option<Arc<TableCounters>>,
}

impl TableCounters {
    /// Adds to a counter of this dataset, and to the one of all datasets together.
    pub(crate) fn add(&self, counter: fn(&Self) -> &AtomicU64, n: u64) {
        counter(self).fetch_add(n, Relaxed);
        if let Some(all) = &self.all {
            counter(all).fetch_add(n, Relaxed);
        }
    }
}

/// One dataset in this head, as long as its spec stays the same. A dataset with another spec is another table, so that chunks of the two
/// specs never meet.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) name: DatasetName,
    pub(crate) spec: Arc<DatasetSpec>,
    /// The shards' number for this spec.
    pub(crate) schema: u64,
    pub(crate) layout: ColumnLayout,
    snapshot: RwLock<Arc<Dataset>>,
    parts: RwLock<BTreeMap<String, Arc<Part>>>,
    series: RwLock<HashMap<Symbol, Arc<Series>>>,
    symbols: Mutex<SymbolLists>,
    /// Average rows of a chunk, as the bits of an `f64`; 0: no chunk has come yet.
    density: AtomicU64,
    pub(crate) counters: Arc<TableCounters>,
    /// Somebody has asked for it since the head last looked.
    asked: AtomicBool,
}

impl Table {
    /// A dataset that was not known before. What it counts is also counted in `all`.
    pub(crate) fn new(spec: DatasetSpec, schema: u64, version: u64, all: &Arc<TableCounters>) -> Self {
        let counters = TableCounters { all: Some(Arc::clone(all)), ..TableCounters::default() };
        Self::counted(spec, schema, version, Arc::new(counters))
    }

    fn counted(spec: DatasetSpec, schema: u64, version: u64, counters: Arc<TableCounters>) -> Self {
        let spec = Arc::new(spec);
        let dataset = Dataset {
            spec: Arc::clone(&spec),
            schema,
            version,
            known_through: i64::MIN,
            watermark: None,
            first_ts: None,
            last_ts: None,
            rows: 0,
            symbols: 0,
            home: String::new(),
            settled: false,
        };
        Self {
            name: spec.dataset.clone(),
            layout: ColumnLayout::of(spec.fields.len()),
            spec,
            schema,
            snapshot: RwLock::new(Arc::new(dataset)),
            parts: RwLock::default(),
            series: RwLock::default(),
            symbols: Mutex::default(),
            density: AtomicU64::new(0),
            counters,
            asked: AtomicBool::new(true),
        }
    }

    /// The same dataset with another spec since `version`. The descriptions of the shards stay. The parts are copies, so that the
    /// standings of the two tables advance apart.
    pub(crate) fn redefined(&self, spec: DatasetSpec, schema: u64, version: u64) -> Self {
        let parts = self.parts.read();
        let part = |part: &Arc<Part>| Part::new(&part.shard, part.standing(), part.described());
        let parts = parts.iter().map(|(id, of)| (id.clone(), Arc::new(part(of)))).collect();
        let table = Self {
            parts: RwLock::new(parts),
            ..Self::counted(spec, schema, version, Arc::clone(&self.counters))
        };
        table.refresh();
        table
    }

    /// Somebody asks for it.
    pub(crate) fn ask(&self) {
        // a read alone, usually: readers of many cores share the line
        if !self.asked.load(Relaxed) {
            self.asked.store(true, Relaxed);
        }
    }

    /// Whether somebody has asked for it since the last call.
    pub(crate) fn take_asked(&self) -> bool {
        self.asked.swap(false, Relaxed)
    }

    /// Whether no chunk is held or on its way.
    pub(crate) fn is_empty(&self) -> bool {
        self.series.read().values().all(|series| series.lock().claims.is_empty())
    }

    /// The dataset as of now.
    pub(crate) fn dataset(&self) -> Arc<Dataset> {
        Arc::clone(&self.snapshot.read())
    }

    pub(crate) fn part(&self, shard: &str) -> Option<Arc<Part>> {
        self.parts.read().get(shard).cloned()
    }

    pub(crate) fn parts(&self) -> Vec<Arc<Part>> {
        self.parts.read().values().cloned().collect()
    }

    /// Takes a shard's description of the dataset; [`Self::refresh`] makes it part of the snapshot. The part's standing is set only if the
    /// part is new: later it advances when the changes that it covers have been applied.
    pub(crate) fn describe(
        &self,
        shard: &Arc<Shard>,
        standing: Standing,
        said: &pb::DatasetDescription,
    ) -> Arc<Part> {
        let part = {
            let mut parts = self.parts.write();
            let new = |described| Arc::new(Part::new(shard, standing, described));
            let part = parts.entry(shard.id.to_string()).or_insert_with(|| new(Described::default()));
            if !Arc::ptr_eq(&part.shard, shard) {
                *part = new(part.described());
            }
            Arc::clone(part)
        };
        part.describe(said);
        part
    }

    /// Makes the snapshot anew from the descriptions of the shards.
    pub(crate) fn refresh(&self) {
        // locked from here to the end, so that the newest state is written last
        let mut snapshot = self.snapshot.write();
        let parts = self.parts();
        let mut dataset = Dataset {
            symbols: 0,
            known_through: i64::MAX,
            first_ts: None,
            last_ts: None,
            ..(**snapshot).clone()
        };
        for part in &parts {
            let described = part.described();
            if described.version >= dataset.version {
                dataset.version = described.version;
                dataset.watermark = described.watermark;
                dataset.rows = described.rows;
                dataset.home = described.home;
            }
            // the union of the bounds: a bound that is too wide costs an empty chunk, one that is too narrow would lose rows
            dataset.first_ts = dataset.first_ts.into_iter().chain(described.first_ts).min();
            dataset.last_ts = dataset.last_ts.into_iter().chain(described.last_ts).max();
            dataset.symbols += described.symbols;
            dataset.known_through = dataset.known_through.min(part.standing().known_through);
        }
        *snapshot = Arc::new(dataset);
    }

    /// The dataset with its knowledge time as of now: the least of the shards that can be asked (of all, if none can).
    pub(crate) fn described(&self) -> Arc<Dataset> {
        let (mut live, mut all) = (i64::MAX, i64::MAX);
        let mut settled = true;
        for part in self.parts.read().values() {
            let known_through = part.standing().known_through;
            all = all.min(known_through);
            match &*part.shard.link.borrow() {
                Link::Live => live = live.min(known_through),
                Link::Syncing => settled = false,
                Link::Away(_) => {}
            }
        }
        let known_through = if live < i64::MAX { live } else { all };
        // after the knowledge time, so that the bounds are at least as new
        let dataset = self.dataset();
        if dataset.known_through == known_through && dataset.settled == settled {
            return dataset;
        }
        Arc::new(Dataset { known_through, settled, ..(*dataset).clone() })
    }

    /// Removes the part of a shard that has left the grid, or that cannot say what the dataset is.
    pub(crate) fn forget(&self, shard: &Shard) {
        let mut parts = self.parts.write();
        if parts.get(&*shard.id).is_some_and(|part| part.shard.number == shard.number) {
            parts.remove(&*shard.id);
            self.symbols.lock().leave(&shard.id);
        }
    }

    /// The series of these symbols, in their order. Those that nobody has asked for before are made.
    pub(crate) fn series_of(&self, symbols: &[Symbol]) -> Vec<Arc<Series>> {
        let known: Vec<Option<Arc<Series>>> = {
            let series = self.series.read();
            symbols.iter().map(|symbol| series.get(symbol).cloned()).collect()
        };
        let made = |symbol: &Symbol| {
            let mut series = self.series.write();
            let new = || Arc::new(Series::new(symbol.clone()));
            Arc::clone(series.entry(symbol.clone()).or_insert_with(new))
        };
        let each = known.into_iter().zip(symbols);
        each.map(|(known, symbol)| known.unwrap_or_else(|| made(symbol))).collect()
    }

    /// The series of a symbol, if it was ever asked for.
    pub(crate) fn series(&self, symbol: &str) -> Option<Arc<Series>> {
        self.series.read().get(symbol).cloned()
    }

    pub(crate) fn all_series(&self) -> Vec<Arc<Series>> {
        self.series.read().values().cloned().collect()
    }

    /// The symbols, as the shards have listed them. The lock is held for as long as a list is merged, never across an await.
    pub(crate) fn symbols(&self) -> MutexGuard<'_, SymbolLists> {
        self.symbols.lock()
    }

    /// Expected bytes of `chunks` chunks of one series.
    pub(crate) fn expected_bytes(&self, chunks: u64, columns: ColumnSet) -> u64 {
        let width: usize = 16
            + self
                .layout
                .fields(columns)
                .iter()
                .map(|f| self.spec.fields[*f].data_type.width())
                .sum::<usize>();
        (chunks as f64 * (self.expected_rows() * width as f64 + CHUNK_OVERHEAD)) as u64
    }

    fn expected_rows(&self) -> f64 {
        let learned = f64::from_bits(self.density.load(Relaxed));
        if learned > 0.0 {
            return learned;
        }
        let dataset = self.dataset();
        match (dataset.first_ts, dataset.last_ts) {
            (Some(first), Some(last)) => {
                let chunks = (self.spec.chunk.chunk_of(last) - self.spec.chunk.chunk_of(first) + 1) as f64;
                dataset.rows as f64 / (chunks * dataset.symbols.max(1) as f64)
            }
            _ => 1.0,
        }
    }

    /// Learns the average rows of a chunk from chunks that have come with `rows` rows together.
    pub(crate) fn learn(&self, chunks: usize, rows: u64) {
        if chunks == 0 {
            return;
        }
        let seen = (rows as f64 / chunks as f64).max(1e-3);
        let before = f64::from_bits(self.density.load(Relaxed));
        let after = if before > 0.0 { before + (seen - before) * DENSITY_WEIGHT } else { seen };
        // two updates at once may lose one observation
        self.density.store(after.to_bits(), Relaxed);
    }
}

/// The spec in a description.
///
/// # Errors
/// [`trellis_proto::Code::InvalidRequest`] if there is none, or it is not valid.
pub(crate) fn spec_of(said: &pb::DatasetDescription) -> Result<DatasetSpec> {
    said.spec
        .clone()
        .ok_or_else(|| {
            Error::new(trellis_proto::Code::InvalidRequest, "a dataset is described without its spec")
        })?
        .try_into()
}
