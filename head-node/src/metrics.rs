//! Every instrument of the head: names, units, attributes, in one place.
//!
//! Counters are read when they are exported, from the counters that `Stats` also answers with, so that a request pays for
//! them once. Only durations are recorded as they happen.

use std::{
    pin::Pin,
    sync::{Arc, Weak},
    task::Poll,
    time::{Duration, Instant},
};

use opentelemetry::{
    KeyValue,
    metrics::{AsyncInstrument, Histogram, Meter},
};
use trellis_fabric::telemetry;

use crate::{
    engine::EngineStats,
    head::HeadNode,
    stats::{Answers, DatasetStats, Outcome},
};

/// Seconds: from a hit in memory to a cold read of years.
const DURATION_BOUNDS: [f64; 14] =
    [0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0];

/// The queues of a head.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Queue {
    /// Large answers, for their share of the memory.
    Admission,
    /// Messages, for their turn to be framed and sent.
    Egress,
    /// What is asked of shards and what is framed, for room in the budget.
    Memory,
    /// Claims, for a call to their shard.
    Shard,
}

impl Queue {
    fn name(self) -> &'static str {
        match self {
            Self::Admission => "admission",
            Self::Egress => "egress",
            Self::Memory => "memory",
            Self::Shard => "shard",
        }
    }
}

/// How long it was waited in each queue.
#[derive(Debug)]
pub(crate) struct Waits {
    duration: Histogram<f64>,
}

impl Waits {
    pub(crate) fn new() -> Self {
        let duration = telemetry::meter("trellis-head")
            .f64_histogram("trellis.head.queue.duration")
            .with_unit("s")
            .with_description(
                "Time in a queue of the head, by queue: admission, egress and memory of what had to wait, shard of every claim.",
            )
            .with_boundaries(DURATION_BOUNDS.into())
            .build();
        Self { duration }
    }

    pub(crate) fn record(&self, queue: Queue, waited: Duration) {
        self.duration.record(waited.as_secs_f64(), &[KeyValue::new("trellis.queue", queue.name())]);
    }

    /// Waits for `turn` and says how long it took. What comes at once is not recorded and costs no look at the clock; what is
    /// given up is recorded when it is.
    pub(crate) async fn of<F: Future>(&self, queue: Queue, mut turn: Pin<&mut F>) -> (F::Output, Duration) {
        if let Poll::Ready(turn) = futures::poll!(turn.as_mut()) {
            return (turn, Duration::ZERO);
        }
        let wait = Wait { waits: self, queue, since: Instant::now() };
        let turn = turn.await;
        (turn, wait.since.elapsed())
    }
}

/// Recorded when dropped.
struct Wait<'a> {
    waits: &'a Waits,
    queue: Queue,
    since: Instant,
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.waits.record(self.queue, self.since.elapsed());
    }
}

/// The instruments of one head.
pub(crate) struct Metrics {
    duration: Histogram<f64>,
}

impl Metrics {
    /// Makes the instruments; those that are read on export read from `head` for as long as it lives.
    pub(crate) fn new(head: Weak<HeadNode>) -> Self {
        let meter = telemetry::meter("trellis-head");
        of_answers(&meter, &head);
        of_engine(&meter, &head);
        of_datasets(&meter, &head);
        let duration = meter
            .f64_histogram("trellis.head.read.duration")
            .with_unit("s")
            .with_description("Time from a read's arrival to its last message, by dataset and outcome.")
            .with_boundaries(DURATION_BOUNDS.into())
            .build();
        Self { duration }
    }

    /// A read has ended.
    pub(crate) fn answered(&self, dataset: Option<&DatasetStats>, outcome: Outcome, took: Duration) {
        if !telemetry::exporting() {
            return;
        }
        let outcome = KeyValue::new("trellis.outcome", outcome.name());
        match dataset {
            Some(dataset) => {
                self.duration.record(took.as_secs_f64(), &[dataset.attributes[0].clone(), outcome])
            }
            None => self.duration.record(took.as_secs_f64(), &[outcome]),
        }
    }
}

/// A counter of answers for each dataset.
fn of_answers(meter: &Meter, head: &Weak<HeadNode>) {
    type Read = fn(&Answers) -> u64;
    let counters: [(&'static str, &'static str, &'static str, Read); 6] = [
        ("trellis.head.reads", "{read}", "Reads.", |a| a.requests.get()),
        ("trellis.head.reads.failed", "{read}", "Reads that ended with an error.", |a| a.failed.get()),
        (
            "trellis.head.reads.stale",
            "{read}",
            "Reads answered with rows not confirmed as the latest.",
            |a| a.stale.get(),
        ),
        ("trellis.head.reads.shed", "{read}", "Reads refused for lack of room.", |a| a.shed.get()),
        ("trellis.head.rows", "{row}", "Rows of answers.", |a| a.rows.get()),
        ("trellis.head.io", "By", "Arrow bytes of answers.", |a| a.bytes.get()),
    ];
    for (name, unit, about, read) in counters {
        let head = head.clone();
        let counter = meter.u64_observable_counter(name).with_unit(unit).with_description(about);
        let _observed = counter
            .with_callback(move |observer| {
                let Some(head) = head.upgrade() else { return };
                for (_, dataset) in head.stats().datasets() {
                    observer.observe(read(&dataset.answers), &dataset.attributes);
                }
            })
            .build();
    }
    let head = head.clone();
    let _observed = meter
        .u64_observable_counter("trellis.head.chunks")
        .with_unit("{chunk}")
        .with_description("Series chunks of answers, by how they were had: hit, joined, fetched.")
        .with_callback(move |observer| {
            let Some(head) = head.upgrade() else { return };
            for (_, dataset) in head.stats().datasets() {
                let by_source = |source, n| {
                    let source = KeyValue::new("trellis.source", source);
                    observer.observe(n, &[dataset.attributes[0].clone(), source]);
                };
                by_source("hit", dataset.answers.chunks_hit.get());
                by_source("joined", dataset.answers.chunks_joined.get());
                by_source("fetched", dataset.answers.chunks_fetched.get());
            }
        })
        .build();
}

/// What the engine counts, and its gauges.
fn of_engine(meter: &Meter, head: &Weak<HeadNode>) {
    type Read = fn(&EngineStats) -> u64;
    let counters: [(&'static str, &'static str, &'static str, Read); 10] = [
        ("trellis.head.upstream.calls", "{call}", "Calls to shards for chunks.", |s| s.upstream_calls),
        ("trellis.head.upstream.rows", "{row}", "Rows received from shards.", |s| s.rows_fetched),
        ("trellis.head.upstream.io", "By", "Arrow bytes received from shards.", |s| s.bytes_fetched),
        ("trellis.head.rows.union", "{row}", "Rows in the union of all ranges asked.", |s| s.rows_union),
        ("trellis.head.invalidations", "{chunk}", "Chunks closed by a change.", |s| s.invalidations),
        ("trellis.head.flights.poisoned", "{flight}", "Fetches overtaken by a change.", |s| {
            s.poisoned_flights
        }),
        ("trellis.head.evictions", "{chunk}", "Chunks that gave way to others.", |s| s.evictions),
        ("trellis.head.flights.cancelled", "{flight}", "Fetches that everybody left.", |s| {
            s.cancelled_flights
        }),
        ("trellis.head.claims.shed", "{claim}", "Claims refused for lack of memory.", |s| s.shed),
        ("trellis.head.confirms", "{call}", "Checks of what is held after a lost log.", |s| s.confirms),
    ];
    for (name, unit, about, read) in counters {
        let head = head.clone();
        let counter = meter.u64_observable_counter(name).with_unit(unit).with_description(about);
        let _observed = counter.with_callback(move |observer| observe(&head, observer, read)).build();
    }
    let gauges: [(&'static str, Read); 4] = [
        ("resident", |s| s.resident_bytes),
        ("in_flight", |s| s.in_flight_bytes),
        ("pinned", |s| s.pinned_bytes),
        ("budget", |s| s.budget_bytes),
    ];
    let head = head.clone();
    let _observed = meter
        .u64_observable_gauge("trellis.head.memory")
        .with_unit("By")
        .with_description(
            "Memory: chunks resident and in flight; what readers pin, with answers and requests; the budget of all three.",
        )
        .with_callback(move |observer| {
            let Some(head) = head.upgrade() else { return };
            let stats = head.engine().stats();
            for (state, read) in gauges {
                observer.observe(read(&stats), &[KeyValue::new("trellis.state", state)]);
            }
        })
        .build();
}

/// What the head fetched of each dataset for what it was asked.
fn of_datasets(meter: &Meter, head: &Weak<HeadNode>) {
    let head = head.clone();
    let _observed = meter
        .f64_observable_gauge("trellis.head.amplification")
        .with_unit("1")
        .with_description("Rows received from shards per row in the union of all ranges asked.")
        .with_callback(move |observer| {
            let Some(head) = head.upgrade() else { return };
            for dataset in head.engine().stats().datasets.iter().filter(|d| d.rows_union > 0) {
                let amplification = dataset.rows_fetched as f64 / dataset.rows_union as f64;
                let attribute = KeyValue::new("trellis.dataset", dataset.dataset.to_string());
                observer.observe(amplification, &[attribute]);
            }
        })
        .build();
}

fn observe(head: &Weak<HeadNode>, observer: &dyn AsyncInstrument<u64>, read: fn(&EngineStats) -> u64) {
    if let Some(head) = Weak::upgrade(head) {
        let head: Arc<HeadNode> = head;
        observer.observe(read(&head.engine().stats()), &[]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_comes_at_once_has_not_waited() {
        let waits = Waits::new();
        let (turn, waited) = waits.of(Queue::Egress, std::pin::pin!(async { 1 })).await;
        assert_eq!((turn, waited), (1, Duration::ZERO));
        let later = std::pin::pin!(async {
            tokio::task::yield_now().await;
            2
        });
        let (turn, waited) = waits.of(Queue::Egress, later).await;
        assert!(turn == 2 && waited > Duration::ZERO);
    }
}
