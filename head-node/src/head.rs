//! One head, as its services share it: the engine, the ledger, the limits, the counters.

use std::{
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::RwLock;
use trellis_fabric::telemetry;
use trellis_proto::{Code, DatasetName, Result, SeriesQuery, Symbols, pb};

use crate::{
    answer::{AnswerLimits, Facts, Plan, STEP_BYTES, Shape},
    config::Config,
    engine::Engine,
    held::Dataset,
    ledger::Ledger,
    limits::{Fair, TurnLimits},
    members::Members,
    metrics::{METER, Metrics, Read},
    stats::{DatasetCounts, Stats},
};

/// Most bytes of one unit's messages that are framed and not yet written to a socket. Enough for several messages on every core; few
/// enough that another unit waits for a millisecond of work, and not for everything that one unit has asked for.
const EGRESS_UNIT_BYTES: u64 = 2 << 20;

/// The same of all units together: one unit leaves half of it, so that another unit need not wait for a turn.
const EGRESS_BYTES: u64 = 2 * EGRESS_UNIT_BYTES;

/// Added to the bytes of each message, for the request, a system call and wake-ups. To move this many bytes costs less than those, but
/// with this figure sixteen small answers of one unit still get their turns at once.
const EGRESS_TURN_BYTES: u64 = 32 << 10;

/// A message that is not written after this time waits for its reader, and not for the head.
const EGRESS_LEASE: Duration = Duration::from_millis(1);

/// Large answers may pin this part of the memory budget while they are read and sent.
const ADMISSION_SHARE: u64 = 2;

/// An answer that takes longer than this has a slow reader. Its turn ends, so that the unit's other answers need not wait for it.
const ADMISSION_LEASE: Duration = Duration::from_secs(10);

/// Most shapes that are kept of one dataset: more than the combinations of fields that strategies ask for.
const SHAPES_MAX: usize = 64;

/// How long an error about an unknown symbol waits for the symbols of all shards, among which the one that was meant may be.
const HINT_WAIT: Duration = Duration::from_secs(1);

/// One head node, shared by its services.
pub(crate) struct HeadNode {
    config: Config,
    engine: Engine,
    limits: AnswerLimits,
    stats: Arc<Stats>,
    metrics: Metrics,
    admission: Fair,
    egress: Fair,
    shapes: RwLock<HashMap<DatasetName, Vec<CachedShape>>>,
    ledger: Arc<Ledger>,
    members: Members,
    draining: AtomicBool,
}

struct CachedShape {
    schema: u64,
    fields: Vec<usize>,
    known_at: bool,
    shape: Arc<Shape>,
}

impl HeadNode {
    pub(crate) fn new(config: Config, engine: Engine, members: Members) -> Arc<Self> {
        let admitted = (config.cache_bytes / ADMISSION_SHARE).max(STEP_BYTES);
        // one unit may hold half of it, so that its slow readers delay only that unit
        let admission = TurnLimits {
            bytes: admitted,
            unit_bytes: admitted / 2,
            turn_bytes: 0,
            lease: Some(ADMISSION_LEASE),
        };
        let egress = TurnLimits {
            bytes: EGRESS_BYTES,
            unit_bytes: EGRESS_UNIT_BYTES,
            turn_bytes: EGRESS_TURN_BYTES,
            lease: Some(EGRESS_LEASE),
        };
        let stats = Arc::new(Stats::default());
        Arc::new_cyclic(|this: &Weak<Self>| Self {
            limits: AnswerLimits { rows: config.answer_rows_max, bytes: config.answer_bytes_max },
            metrics: {
                let this = this.clone();
                let engine: Read = Arc::new(move || Some(this.upgrade()?.engine.stats()));
                Metrics::new(&telemetry::meter(METER), &stats, &engine)
            },
            stats,
            admission: Fair::new(admission),
            egress: Fair::new(egress),
            shapes: RwLock::default(),
            ledger: Ledger::new(engine.clone()),
            members,
            draining: AtomicBool::new(false),
            config,
            engine,
        })
    }

    pub(crate) fn id(&self) -> &str {
        &self.config.id
    }
    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }
    pub(crate) fn limits(&self) -> AnswerLimits {
        self.limits
    }
    pub(crate) fn stats(&self) -> &Stats {
        &self.stats
    }
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }
    /// Turns to pin the chunks of large answers.
    pub(crate) fn admission(&self) -> &Fair {
        &self.admission
    }
    /// Turns to frame and send messages.
    pub(crate) fn egress(&self) -> &Fair {
        &self.egress
    }

    /// The heads of the grid.
    pub(crate) fn members(&self) -> &Members {
        &self.members
    }

    pub(crate) fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// From here on new requests are refused.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Relaxed);
    }
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Relaxed)
    }

    /// Plans a request for a dataset.
    pub(crate) async fn plan(&self, dataset: &Dataset, query: &SeriesQuery) -> Result<Plan> {
        let (symbols, all) = match &query.symbols {
            Symbols::All => {
                let symbols = self.engine.symbols(&query.dataset).await?;
                let all = symbols.len() as u64;
                (symbols, all)
            }
            Symbols::List(asked) => {
                let symbols = self.engine.symbols_with(&query.dataset, asked).await?;
                let all = dataset.symbols.max(symbols.len() as u64);
                (symbols, all)
            }
        };
        let facts = Facts {
            spec: &dataset.spec,
            rows: dataset.rows,
            first_ts: dataset.first_ts,
            last_ts: dataset.last_ts,
            symbols: &symbols,
            symbols_of_all: all,
        };
        let planned = Plan::new(query, facts, self.limits);
        let unknown = planned.as_ref().is_err_and(|error| error.code() == Code::UnknownSymbol);
        if !unknown || query.symbols == Symbols::All {
            return planned;
        }
        // only the shards that would own the symbol were asked: another one may have the symbol that was meant
        match tokio::time::timeout(HINT_WAIT, self.engine.symbols(&query.dataset)).await {
            Ok(Ok(symbols)) => {
                let facts = Facts { symbols: &symbols, symbols_of_all: symbols.len() as u64, ..facts };
                Plan::new(query, facts, self.limits)
            }
            Ok(Err(_)) | Err(_) => planned,
        }
    }

    /// The shape of answers with these fields, kept as long as the dataset's spec stays the same.
    pub(crate) fn shape(&self, dataset: &Dataset, fields: &[usize], known_at: bool) -> Arc<Shape> {
        let schema = dataset.schema;
        let is = |cached: &&CachedShape| {
            cached.schema == schema && cached.fields == fields && cached.known_at == known_at
        };
        let name = &dataset.spec.dataset;
        if let Some(cached) = self.shapes.read().get(name).and_then(|shapes| shapes.iter().find(is)) {
            return cached.shape.clone();
        }
        let shape = Arc::new(Shape::new(&dataset.spec, fields, known_at));
        let mut all = self.shapes.write();
        let shapes = all.entry(name.clone()).or_default();
        if shapes.len() >= SHAPES_MAX {
            shapes.remove(0);
        }
        shapes.push(CachedShape { schema, fields: fields.to_vec(), known_at, shape: shape.clone() });
        shape
    }

    /// Counters since the head started.
    pub(crate) fn describe_stats(&self) -> pb::HeadStats {
        let (answers, engine) = (&self.stats.answers, self.engine.stats());
        let counts = self.engine.dataset_counts();
        let datasets = self.stats.datasets().into_iter().map(|(name, stats)| {
            let below = counts.binary_search_by(|below| below.dataset.cmp(&name)).ok().map(|at| &counts[at]);
            let of_engine = |read: fn(&DatasetCounts) -> u64| below.map_or(0, read);
            pb::DatasetStats {
                requests: stats.answers.requests.get(),
                rows_asked: stats.answers.rows.get(),
                rows_fetched: of_engine(|below| below.rows_fetched),
                rows_union: of_engine(|below| below.rows_union),
                chunks_hit: stats.answers.chunks_hit.get(),
                chunks_joined: of_engine(|below| below.chunks_joined),
                chunks_fetched: of_engine(|below| below.chunks_fetched),
                upstream_calls: of_engine(|below| below.upstream_calls),
                bytes_sent: stats.answers.bytes.get(),
                busy_us: stats.answers.busy_us.get(),
                dataset: name.to_string(),
            }
        });
        pb::HeadStats {
            head: self.id().to_owned(),
            requests: answers.requests.get(),
            requests_failed: answers.failed.get(),
            rows_asked: answers.rows.get(),
            rows_fetched: engine.rows_fetched,
            rows_union: engine.rows_union,
            chunks_hit: answers.chunks_hit.get(),
            // The engine counts these two when a read is planned, so that reads that still wait are in them.
            chunks_joined: engine.chunks_joined,
            chunks_fetched: engine.chunks_fetched,
            upstream_calls: engine.upstream_calls,
            bytes_sent: answers.bytes.get(),
            bytes_fetched: engine.bytes_fetched,
            resident_bytes: engine.resident_bytes,
            in_flight_bytes: engine.in_flight_bytes,
            pinned_bytes: engine.pinned_bytes,
            budget_bytes: engine.budget_bytes,
            invalidations: engine.invalidations,
            poisoned_flights: engine.poisoned_flights,
            stale_answers: answers.stale.get(),
            evictions: engine.evictions,
            shed: answers.shed.get(),
            busy_us: answers.busy_us.get(),
            datasets: datasets.collect(),
            state: self.config.state.clone().unwrap_or_default(),
        }
    }
}
