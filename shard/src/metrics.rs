//! Every instrument of a shard, in one place. Durations are in seconds, sizes in bytes.

use std::{sync::OnceLock, time::Instant};

use opentelemetry::{
    KeyValue, global,
    metrics::{Counter, Histogram, Meter, UpDownCounter},
};
use trellis_fabric::telemetry;

/// The instruments. Without an OTLP endpoint each costs a branch.
#[derive(Debug)]
pub(crate) struct Metrics {
    /// Fetch calls.
    pub(crate) fetches: Counter<u64>,
    /// Ranges of fetch calls.
    pub(crate) ranges: Counter<u64>,
    /// Rows sent in answer to fetches.
    pub(crate) rows_sent: Counter<u64>,
    /// Time of a fetch from its arrival to its last message.
    pub(crate) fetch: Histogram<f64>,
    /// Publishes committed.
    pub(crate) publishes: Counter<u64>,
    /// Commits; publishes / commits is the size of a group.
    pub(crate) commits: Counter<u64>,
    /// Commits lost to another writer.
    pub(crate) conflicts: Counter<u64>,
    /// Time to sort, encode and store the rows of one commit.
    pub(crate) write: Histogram<f64>,
    /// Time of a publish from its header to its acknowledgement.
    pub(crate) publish: Histogram<f64>,
    /// Time from a commit until every head that watches has applied it.
    pub(crate) apply: Histogram<f64>,
    /// Watchers connected.
    pub(crate) watchers: UpDownCounter<i64>,
    /// Files merged by compaction.
    pub(crate) files_compacted: Counter<u64>,
    /// Groups of publishes that met a clock that is not right.
    pub(crate) clock_alarms: Counter<u64>,
    /// Files found damaged by the check in the background, each once in a round.
    pub(crate) files_damaged: Counter<u64>,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let meter = global::meter(METER);
        let counter = |name, unit, what| counter(&meter, name, unit, what);
        let seconds = |name, what| seconds(&meter, name, what);
        Self {
            fetches: counter("trellis.shard.fetches", "{call}", "fetch calls"),
            ranges: counter("trellis.shard.ranges", "{range}", "ranges of fetch calls"),
            rows_sent: counter("trellis.shard.rows_sent", "{row}", "rows sent in answer to fetches"),
            fetch: seconds("trellis.shard.fetch.duration", "arrival of a fetch to its last message"),
            publishes: counter("trellis.shard.publishes", "{publish}", "publishes committed"),
            commits: counter("trellis.shard.commits", "{commit}", "commits of rows"),
            conflicts: counter("trellis.shard.conflicts", "{commit}", "commits lost to another writer"),
            write: seconds(
                "trellis.shard.write.duration",
                "sorting, encoding and storing the rows of a commit",
            ),
            publish: seconds("trellis.shard.publish.duration", "header of a publish to its acknowledgement"),
            apply: seconds(
                "trellis.shard.apply.duration",
                "commit until every head that watches has applied it",
            ),
            watchers: meter
                .i64_up_down_counter("trellis.shard.watchers")
                .with_unit("{watcher}")
                .with_description("watchers connected")
                .build(),
            files_compacted: counter("trellis.shard.files_compacted", "{file}", "files merged by compaction"),
            clock_alarms: counter(
                "trellis.shard.clock_alarms",
                "{commit}",
                "commits refused because the clock jumped ahead, or whose dataset is ahead of the clock",
            ),
            files_damaged: counter(
                "trellis.shard.files_damaged",
                "{file}",
                "files found damaged by the check in the background",
            ),
        }
    }
}

const METER: &str = "trellis-shard";

fn counter(meter: &Meter, name: &'static str, unit: &'static str, what: &'static str) -> Counter<u64> {
    meter.u64_counter(name).with_unit(unit).with_description(what).build()
}

fn seconds(meter: &Meter, name: &'static str, what: &'static str) -> Histogram<f64> {
    meter.f64_histogram(name).with_unit("s").with_description(what).build()
}

/// The instruments of the store, below everything that knows a shard.
struct Store {
    requests: Histogram<f64>,
    io: Counter<u64>,
    files: Counter<u64>,
    row_groups: Counter<u64>,
    rows_doubled: Counter<u64>,
}

/// `None` while no metrics are exported.
fn store() -> Option<&'static Store> {
    static STORE: OnceLock<Store> = OnceLock::new();
    let made = || {
        let meter = global::meter(METER);
        Store {
            requests: seconds(
                &meter,
                "trellis.shard.store.request.duration",
                "requests to the store, by operation",
            ),
            io: counter(&meter, "trellis.shard.store.io", "By", "bytes read from and written to the store"),
            files: counter(
                &meter,
                "trellis.shard.files_read",
                "{file}",
                "Parquet files read, at least in part",
            ),
            row_groups: counter(
                &meter,
                "trellis.shard.row_groups_read",
                "{row_group}",
                "row groups read, at least in part",
            ),
            rows_doubled: counter(
                &meter,
                "trellis.shard.rows_doubled",
                "{row}",
                "rows left out of answers: another of their symbol has the same ts and known_at",
            ),
        }
    };
    telemetry::measuring().then(|| STORE.get_or_init(made))
}

/// A request to the store has ended.
pub(crate) fn store_request(operation: &'static str, started: Instant) {
    if let Some(store) = store() {
        let operation = KeyValue::new("trellis.operation", operation);
        store.requests.record(started.elapsed().as_secs_f64(), &[operation]);
    }
}

/// The direction of bytes between a shard and the store.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Direction {
    Read,
    Write,
}

/// Bytes came from the store, or went there.
pub(crate) fn store_io(direction: Direction, bytes: u64) {
    if let Some(store) = store() {
        let direction = match direction {
            Direction::Read => "read",
            Direction::Write => "write",
        };
        store.io.add(bytes, &[KeyValue::new("trellis.direction", direction)]);
    }
}

/// A Parquet file has been read.
pub(crate) fn file_read(row_groups: u64) {
    if let Some(store) = store() {
        store.files.add(1, &[]);
        store.row_groups.add(row_groups, &[]);
    }
}

/// Rows were left out of an answer.
pub(crate) fn rows_doubled(rows: u64) {
    if let Some(store) = store() {
        store.rows_doubled.add(rows, &[]);
    }
}
