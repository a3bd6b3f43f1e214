//! Every instrument of a shard, in one place.

use opentelemetry::{
    global,
    metrics::{Counter, Histogram, UpDownCounter},
};

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
    pub(crate) fetch_ms: Histogram<f64>,
    /// Publishes committed.
    pub(crate) publishes: Counter<u64>,
    /// Commits; publishes / commits is the size of a group.
    pub(crate) commits: Counter<u64>,
    /// Commits lost to another writer.
    pub(crate) conflicts: Counter<u64>,
    /// Time to sort, encode and store the rows of one commit.
    pub(crate) write_ms: Histogram<f64>,
    /// Time of a publish from its header to its acknowledgement.
    pub(crate) publish_ms: Histogram<f64>,
    /// Watchers connected.
    pub(crate) watchers: UpDownCounter<i64>,
    /// Files merged by compaction.
    pub(crate) files_compacted: Counter<u64>,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let meter = global::meter("trellis-shard");
        let counter = |name: &'static str, unit: &'static str, what: &'static str| {
            meter.u64_counter(name).with_unit(unit).with_description(what).build()
        };
        let millis = |name: &'static str, what: &'static str| {
            meter.f64_histogram(name).with_unit("ms").with_description(what).build()
        };
        Self {
            fetches: counter("trellis.shard.fetches", "{call}", "fetch calls"),
            ranges: counter("trellis.shard.ranges", "{range}", "ranges of fetch calls"),
            rows_sent: counter("trellis.shard.rows_sent", "{row}", "rows sent in answer to fetches"),
            fetch_ms: millis("trellis.shard.fetch.duration", "arrival of a fetch to its last message"),
            publishes: counter("trellis.shard.publishes", "{publish}", "publishes committed"),
            commits: counter("trellis.shard.commits", "{commit}", "commits of rows"),
            conflicts: counter("trellis.shard.conflicts", "{commit}", "commits lost to another writer"),
            write_ms: millis(
                "trellis.shard.write.duration",
                "sorting, encoding and storing the rows of a commit",
            ),
            publish_ms: millis(
                "trellis.shard.publish.duration",
                "header of a publish to its acknowledgement",
            ),
            watchers: meter
                .i64_up_down_counter("trellis.shard.watchers")
                .with_unit("{watcher}")
                .with_description("watchers connected")
                .build(),
            files_compacted: counter("trellis.shard.files_compacted", "{file}", "files merged by compaction"),
        }
    }
}
