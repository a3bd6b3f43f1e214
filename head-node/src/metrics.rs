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

use crate::stats::{Answers, EngineStats, Outcome, Stats};

/// The name of the head's meter.
pub(crate) const METER: &str = "trellis-head";

/// Stands for all datasets that metrics do not name. It is no dataset: a dataset's name has a dot.
const OTHERS: &str = "others";

/// Seconds, from a hit in memory to a cold read of years: for a collector that cannot take exponential histograms.
const DURATION_BOUNDS: [f64; 14] =
    [0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0];

/// The time that reads wait in the queues of the head.
pub(crate) fn queue_duration() -> Histogram<f64> {
    telemetry::meter(METER)
        .f64_histogram("trellis.head.queue.duration")
        .with_unit("s")
        .with_description(
            "Time in a queue of the head, by queue: admission, egress and memory of what had to wait, shard of every claim.",
        )
        .with_boundaries(DURATION_BOUNDS.into())
        .build()
}

/// Reads the engine's figures on export; `None` when their head is gone.
pub(crate) type Read = Arc<dyn Fn() -> Option<EngineStats> + Send + Sync>;

/// The instruments of one head.
pub(crate) struct Metrics {
    duration: Histogram<f64>,
}

impl Metrics {
    /// Makes the instruments. Counters and gauges are read from `stats`, as long as it lives, and from `engine` on export.
    pub(crate) fn new(meter: &Meter, stats: &Arc<Stats>, engine: &Read) -> Self {
        of_answers(meter, stats);
        of_engine(meter, engine);
        let duration = meter
            .f64_histogram("trellis.head.read.duration")
            .with_unit("s")
            .with_description(
                "Time from a read's arrival to its last message, by outcome and how the slowest chunk was had.",
            )
            .with_boundaries(DURATION_BOUNDS.into())
            .build();
        Self { duration }
    }

    /// A read has ended.
    pub(crate) fn answered(&self, source: &'static str, outcome: Outcome, took: Duration) {
        if telemetry::measuring() {
            self.record(source, outcome, took);
        }
    }

    fn record(&self, source: &'static str, outcome: Outcome, took: Duration) {
        let outcome = KeyValue::new("trellis.outcome", outcome.name());
        self.duration.record(took.as_secs_f64(), &[outcome, KeyValue::new("trellis.source", source)]);
    }
}

/// The counters of answers. Only the number of reads names datasets, and only some of them: a fleet has a hundred thousand, and each is a
/// series at each head. A read's span names its dataset, and `trellis.v1.Head/Stats` has the figures of each.
fn of_answers(meter: &Meter, stats: &Arc<Stats>) {
    type Count = fn(&Answers) -> u64;
    let reads = Arc::downgrade(stats);
    let _observed = meter
        .u64_observable_counter("trellis.head.reads")
        .with_unit("{read}")
        .with_description(
            "Reads, by dataset: the first that the head was asked for, and all others together.",
        )
        .with_callback(move |observer| {
            let Some(stats) = reads.upgrade() else { return };
            let (named, others) = stats.requests();
            for dataset in named {
                observer.observe(dataset.answers.requests.get(), &dataset.attributes);
            }
            observer.observe(others, &[KeyValue::new("trellis.dataset", OTHERS)]);
        })
        .build();
    let counters: [(&'static str, &'static str, &'static str, Count); 5] = [
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
        let stats = Arc::downgrade(stats);
        let counter = meter.u64_observable_counter(name).with_unit(unit).with_description(about);
        let _observed = counter
            .with_callback(move |observer| {
                if let Some(stats) = stats.upgrade() {
                    observer.observe(read(&stats.answers), &[]);
                }
            })
            .build();
    }
    let chunks = Arc::downgrade(stats);
    let _observed = meter
        .u64_observable_counter("trellis.head.chunks")
        .with_unit("{chunk}")
        .with_description("Series chunks of answers, by how they were had: hit, joined, fetched.")
        .with_callback(move |observer| {
            let Some(stats) = chunks.upgrade() else { return };
            let Answers { chunks_hit, chunks_joined, chunks_fetched, .. } = &stats.answers;
            for (source, n) in [("hit", chunks_hit), ("joined", chunks_joined), ("fetched", chunks_fetched)] {
                observer.observe(n.get(), &[KeyValue::new("trellis.source", source)]);
            }
        })
        .build();
}

/// The counters and gauges of the engine.
fn of_engine(meter: &Meter, engine: &Read) {
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

#[cfg(test)]
mod tests {
    use trellis_fabric::testing::Meters;
    use trellis_proto::{Code, DatasetName};

    use super::*;
    use crate::stats::{Answer, DATASETS_NAMED_MAX};

    #[test]
    fn ten_thousand_datasets_make_no_more_series_than_the_named_ones() {
        let (meters, stats) = (Meters::new(), Arc::new(Stats::default()));
        let engine: Read = Arc::new(|| Some(EngineStats::default()));
        let metrics = Metrics::new(&meters.meter(METER), &stats, &engine);
        let read = |dataset: usize| {
            let dataset = stats.dataset(&DatasetName::new(format!("d.n{dataset}")).unwrap());
            for outcome in [Outcome::Served, Outcome::Failed(Code::Overloaded), Outcome::Left] {
                for (chunks_fetched, chunks_joined) in [(0, 0), (0, 1), (1, 0)] {
                    let answer = Answer { chunks_fetched, chunks_joined, ..Answer::default() };
                    stats.add(Some(&dataset), &answer, outcome, Duration::ZERO);
                    metrics.record(answer.source(), outcome, Duration::ZERO);
                }
            }
        };
        (0..DATASETS_NAMED_MAX).for_each(read);
        let few = meters.series();
        (DATASETS_NAMED_MAX..10_000).for_each(read);
        let many = meters.series();
        assert_eq!(few, many);
        assert_eq!(many["trellis.head.reads"], DATASETS_NAMED_MAX + 1);
        assert_eq!(many["trellis.head.read.duration"], 9, "three outcomes of three sources");
        let named: u64 = stats.requests().0.iter().map(|dataset| dataset.answers.requests.get()).sum();
        assert_eq!(named + stats.requests().1, 90_000, "each read counts in one of the series");
    }
}
