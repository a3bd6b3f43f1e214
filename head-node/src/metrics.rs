//! Every instrument of the head: names, units, attributes, in one place.
//!
//! Counters are read on export, from the counters of [`crate::stats`], so that a request counts only once. Only durations are recorded as
//! they happen.

use std::{sync::Arc, time::Duration};

use opentelemetry::{
    KeyValue,
    metrics::{Histogram, Meter},
};
use trellis_fabric::telemetry;
use trellis_proto::DatasetName;

use crate::stats::{Answers, DatasetStats, EngineStats, Outcome};

/// Seconds, from a hit in memory to a cold read of years: for a collector that cannot take exponential histograms.
const DURATION_BOUNDS: [f64; 14] =
    [0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0];

/// The time that reads wait in the queues of the head.
pub(crate) fn queue_duration() -> Histogram<f64> {
    telemetry::meter("trellis-head")
        .f64_histogram("trellis.head.queue.duration")
        .with_unit("s")
        .with_description(
            "Time in a queue of the head, by queue: admission, egress and memory of what had to wait, shard of every claim.",
        )
        .with_boundaries(DURATION_BOUNDS.into())
        .build()
}

/// Reads figures on export; `None` when their head is gone.
pub(crate) type Read<T> = Arc<dyn Fn() -> Option<T> + Send + Sync>;
/// The counters of every dataset that was asked for.
pub(crate) type OfDatasets = Vec<(DatasetName, Arc<DatasetStats>)>;

/// The instruments of one head.
pub(crate) struct Metrics {
    duration: Histogram<f64>,
}

impl Metrics {
    /// Makes the instruments. Counters and gauges are read from `answers` and `engine` on export.
    pub(crate) fn new(answers: &Read<OfDatasets>, engine: &Read<EngineStats>) -> Self {
        let meter = telemetry::meter("trellis-head");
        of_answers(&meter, answers);
        of_engine(&meter, engine);
        of_datasets(&meter, engine);
        let duration = meter
            .f64_histogram("trellis.head.read.duration")
            .with_unit("s")
            .with_description(
                "Time from a read's arrival to its last message, by dataset, outcome and how the slowest chunk was had.",
            )
            .with_boundaries(DURATION_BOUNDS.into())
            .build();
        Self { duration }
    }

    /// A read has ended.
    pub(crate) fn answered(
        &self,
        dataset: Option<&DatasetStats>,
        source: &'static str,
        outcome: Outcome,
        took: Duration,
    ) {
        if !telemetry::measuring() {
            return;
        }
        let outcome = KeyValue::new("trellis.outcome", outcome.name());
        let source = KeyValue::new("trellis.source", source);
        let took = took.as_secs_f64();
        match dataset {
            Some(dataset) => self.duration.record(took, &[dataset.attributes[0].clone(), outcome, source]),
            None => self.duration.record(took, &[outcome, source]),
        }
    }
}

/// A counter of answers for each dataset.
fn of_answers(meter: &Meter, answers: &Read<OfDatasets>) {
    type Count = fn(&Answers) -> u64;
    let counters: [(&'static str, &'static str, &'static str, Count); 6] = [
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
        let answers = answers.clone();
        let counter = meter.u64_observable_counter(name).with_unit(unit).with_description(about);
        let _observed = counter
            .with_callback(move |observer| {
                for (_, dataset) in answers().into_iter().flatten() {
                    observer.observe(read(&dataset.answers), &dataset.attributes);
                }
            })
            .build();
    }
    let answers = answers.clone();
    let _observed = meter
        .u64_observable_counter("trellis.head.chunks")
        .with_unit("{chunk}")
        .with_description("Series chunks of answers, by how they were had: hit, joined, fetched.")
        .with_callback(move |observer| {
            for (_, dataset) in answers().into_iter().flatten() {
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

/// The counters and gauges of the engine.
fn of_engine(meter: &Meter, engine: &Read<EngineStats>) {
    type Count = fn(&EngineStats) -> u64;
    let counters: [(&'static str, &'static str, &'static str, Count); 10] = [
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
        let engine = engine.clone();
        let counter = meter.u64_observable_counter(name).with_unit(unit).with_description(about);
        let _observed = counter
            .with_callback(move |observer| {
                if let Some(stats) = engine() {
                    observer.observe(read(&stats), &[]);
                }
            })
            .build();
    }
    let gauges: [(&'static str, Count); 4] = [
        ("resident", |s| s.resident_bytes),
        ("in_flight", |s| s.in_flight_bytes),
        ("pinned", |s| s.pinned_bytes),
        ("budget", |s| s.budget_bytes),
    ];
    let engine = engine.clone();
    let _observed = meter
        .u64_observable_gauge("trellis.head.memory")
        .with_unit("By")
        .with_description(
            "Memory: chunks resident and in flight; what readers pin, with answers and requests; the budget of all three.",
        )
        .with_callback(move |observer| {
            let Some(stats) = engine() else { return };
            for (state, read) in gauges {
                observer.observe(read(&stats), &[KeyValue::new("trellis.state", state)]);
            }
        })
        .build();
}

/// For each dataset, the rows fetched for each row asked for.
fn of_datasets(meter: &Meter, engine: &Read<EngineStats>) {
    let engine = engine.clone();
    let _observed = meter
        .f64_observable_gauge("trellis.head.amplification")
        .with_unit("1")
        .with_description("Rows received from shards per row in the union of all ranges asked.")
        .with_callback(move |observer| {
            let Some(stats) = engine() else { return };
            for dataset in stats.datasets.iter().filter(|d| d.rows_union > 0) {
                let amplification = dataset.rows_fetched as f64 / dataset.rows_union as f64;
                let attribute = KeyValue::new("trellis.dataset", dataset.dataset.to_string());
                observer.observe(amplification, &[attribute]);
            }
        })
        .build();
}
