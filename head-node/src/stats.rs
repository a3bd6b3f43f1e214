//! Counters since the head started: of its answers, and the figures of the engine.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use opentelemetry::KeyValue;
use parking_lot::RwLock;
use trellis_proto::{Code, DatasetName};

/// Figures of the engine since the head started.
#[derive(Debug, Clone, Default)]
pub(crate) struct EngineStats {
    /// Rows received from shards, all known versions counted.
    pub(crate) rows_fetched: u64,
    /// Rows in the union of all ranges that were ever asked for.
    pub(crate) rows_union: u64,
    /// Chunks of answers that other reads had claimed.
    pub(crate) chunks_joined: u64,
    /// Chunks of answers that had to be claimed.
    pub(crate) chunks_fetched: u64,
    /// Fetch calls.
    pub(crate) upstream_calls: u64,
    /// Message bytes that they received.
    pub(crate) bytes_fetched: u64,
    /// Bytes in the cache.
    pub(crate) resident_bytes: u64,
    /// Bytes reserved for chunks on their way.
    pub(crate) in_flight_bytes: u64,
    /// Bytes that only readers hold.
    pub(crate) pinned_bytes: u64,
    /// The limit of resident, in-flight and pinned bytes together.
    pub(crate) budget_bytes: u64,
    /// Chunks that changes have closed or patched.
    pub(crate) invalidations: u64,
    /// Flights that a change overtook.
    pub(crate) poisoned_flights: u64,
    /// Flights that all readers left.
    pub(crate) cancelled_flights: u64,
    /// Chunks evicted.
    pub(crate) evictions: u64,
    /// Claims refused for lack of memory.
    pub(crate) shed: u64,
    /// Batched checks after lost logs.
    pub(crate) confirms: u64,
}

/// The engine's figures of one dataset.
#[derive(Debug, Clone)]
pub(crate) struct DatasetCounts {
    pub(crate) dataset: DatasetName,
    pub(crate) rows_fetched: u64,
    pub(crate) rows_union: u64,
    pub(crate) chunks_joined: u64,
    pub(crate) chunks_fetched: u64,
    pub(crate) upstream_calls: u64,
}

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Counters of answers.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    pub(crate) requests: Counter,
    pub(crate) failed: Counter,
    pub(crate) cancelled: Counter,
    pub(crate) rows: Counter,
    pub(crate) rows_fetched: Counter,
    pub(crate) bytes: Counter,
    pub(crate) chunks_hit: Counter,
    pub(crate) chunks_joined: Counter,
    pub(crate) chunks_fetched: Counter,
    pub(crate) stale: Counter,
    /// Refused because there was no room.
    pub(crate) shed: Counter,
    pub(crate) busy_us: Counter,
}

/// The figures of one answer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answer {
    pub(crate) rows: u64,
    pub(crate) rows_fetched: u64,
    pub(crate) bytes: u64,
    pub(crate) chunks_hit: u64,
    pub(crate) chunks_joined: u64,
    pub(crate) chunks_fetched: u64,
    /// Time in the head's own queues.
    pub(crate) queued: Duration,
    pub(crate) stale: bool,
}

impl Answer {
    /// How the slowest of its chunks was had: `hit`, `joined` or `fetched`.
    pub(crate) fn source(&self) -> &'static str {
        match (self.chunks_fetched, self.chunks_joined) {
            (0, 0) => "hit",
            (0, _) => "joined",
            _ => "fetched",
        }
    }
}

/// How an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Served,
    Failed(Code),
    /// The client left first.
    Left,
}

impl Outcome {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Served => "served",
            Self::Failed(_) => "failed",
            Self::Left => "left",
        }
    }
}

impl Answers {
    fn add(&self, answer: &Answer, outcome: Outcome, took: Duration) {
        self.requests.add(1);
        match outcome {
            Outcome::Served => {}
            Outcome::Failed(code) => {
                self.failed.add(1);
                self.shed.add(u64::from(code == Code::Overloaded));
            }
            Outcome::Left => self.cancelled.add(1),
        }
        self.rows.add(answer.rows);
        self.rows_fetched.add(answer.rows_fetched);
        self.bytes.add(answer.bytes);
        self.chunks_hit.add(answer.chunks_hit);
        self.chunks_joined.add(answer.chunks_joined);
        self.chunks_fetched.add(answer.chunks_fetched);
        self.stale.add(u64::from(answer.stale));
        self.busy_us.add(took.as_micros() as u64);
    }
}

/// Most datasets that metrics name: those that a head was first asked for. More lines than this cannot be told apart on a page, and two
/// thousand heads make 64,000 series of them at most.
pub(crate) const DATASETS_NAMED_MAX: usize = 32;

/// Counters of one dataset.
#[derive(Debug)]
pub(crate) struct DatasetStats {
    pub(crate) answers: Answers,
    /// Its name, for metrics and spans.
    pub(crate) attributes: [KeyValue; 1],
    /// Metrics name it.
    named: bool,
}

#[derive(Debug, Default)]
struct Datasets {
    all: HashMap<DatasetName, Arc<DatasetStats>>,
    named: Vec<Arc<DatasetStats>>,
}

/// Counters of the whole head.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    pub(crate) answers: Answers,
    datasets: RwLock<Datasets>,
    /// Requests for datasets that metrics do not name, and requests that failed before their dataset was found.
    others: Counter,
}

impl Stats {
    /// The counters of a dataset, made if they are new. The caller has found the dataset: a name that a request made up gets no counters.
    pub(crate) fn dataset(&self, name: &DatasetName) -> Arc<DatasetStats> {
        if let Some(stats) = self.datasets.read().all.get(name) {
            return stats.clone();
        }
        let mut datasets = self.datasets.write();
        let Datasets { all, named } = &mut *datasets;
        let new = || {
            let attributes = [KeyValue::new("trellis.dataset", name.to_string())];
            let is_named = named.len() < DATASETS_NAMED_MAX;
            let stats = Arc::new(DatasetStats { answers: Answers::default(), attributes, named: is_named });
            if is_named {
                named.push(stats.clone());
            }
            stats
        };
        all.entry(name.clone()).or_insert_with(new).clone()
    }

    /// Counts an answer. `dataset` is `None` if the request failed before its dataset was found.
    pub(crate) fn add(
        &self,
        dataset: Option<&DatasetStats>,
        answer: &Answer,
        outcome: Outcome,
        took: Duration,
    ) {
        self.answers.add(answer, outcome, took);
        if let Some(dataset) = dataset {
            dataset.answers.add(answer, outcome, took);
        }
        if !dataset.is_some_and(|dataset| dataset.named) {
            self.others.add(1);
        }
    }

    /// Requests of each dataset that metrics name, and of all others together.
    pub(crate) fn requests(&self) -> (Vec<Arc<DatasetStats>>, u64) {
        (self.datasets.read().named.clone(), self.others.get())
    }

    /// All datasets asked for, by name.
    pub(crate) fn datasets(&self) -> Vec<(DatasetName, Arc<DatasetStats>)> {
        let mut all: Vec<_> = self.datasets.read().all.iter().map(|(n, s)| (n.clone(), s.clone())).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_counts_for_the_head_and_for_its_dataset() {
        let stats = Stats::default();
        let daily = stats.dataset(&DatasetName::new("equities.daily").unwrap());
        let answer = Answer { rows: 5, chunks_hit: 2, ..Answer::default() };
        stats.add(Some(&daily), &answer, Outcome::Served, Duration::from_micros(70));
        stats.add(None, &Answer::default(), Outcome::Failed(Code::Overloaded), Duration::ZERO);
        assert_eq!((stats.answers.requests.get(), daily.answers.requests.get()), (2, 1));
        assert_eq!((stats.answers.failed.get(), stats.answers.shed.get()), (1, 1));
        assert_eq!((daily.answers.rows.get(), daily.answers.busy_us.get()), (5, 70));
        assert_eq!(stats.datasets().len(), 1);
        let (named, others) = stats.requests();
        assert_eq!((named.len(), others), (1, 1), "a request without a dataset is one of the others");
    }
}
