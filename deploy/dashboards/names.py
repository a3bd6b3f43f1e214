"""Every metric, label and span that a panel or an alert names. A rename in the code is one line here.

A metric's Prometheus name follows from its name, unit and kind, by the rules that Prometheus and
VictoriaMetrics share.
"""

from __future__ import annotations

import dataclasses
import re

UNITS = {"s": "seconds", "By": "bytes", "1": "ratio"}


@dataclasses.dataclass(frozen=True)
class Metric:
    """An instrument of the code."""

    name: str
    unit: str = ""
    kind: str = "counter"

    def __str__(self) -> str:
        """Its name in Prometheus, without the suffixes of a histogram."""
        words = re.split(r"[._]", self.name)
        unit = UNITS.get(self.unit, "")
        if unit and (self.unit != "1" or self.kind == "gauge") and unit not in words:
            words.append(unit)
        if self.kind == "counter":
            words.append("total")
        return "_".join(words)

    @property
    def bucket(self) -> str:
        return f"{self}_bucket"

    @property
    def count(self) -> str:
        return f"{self}_count"

    @property
    def sum(self) -> str:
        return f"{self}_sum"


def counter(name: str, unit: str = "") -> Metric:
    return Metric(name, unit)


def gauge(name: str, unit: str = "") -> Metric:
    return Metric(name, unit, "gauge")


def seconds(name: str) -> Metric:
    """A histogram of durations."""
    return Metric(name, "s", "histogram")


# head-node/src/metrics.rs
READS = counter("trellis.head.reads")
READS_FAILED = counter("trellis.head.reads.failed")
READS_STALE = counter("trellis.head.reads.stale")
READS_SHED = counter("trellis.head.reads.shed")
READ_BYTES = counter("trellis.head.io", "By")
READ_DURATION = seconds("trellis.head.read.duration")
QUEUE_DURATION = seconds("trellis.head.queue.duration")
CHUNKS = counter("trellis.head.chunks")
UPSTREAM_CALLS = counter("trellis.head.upstream.calls")
UPSTREAM_ROWS = counter("trellis.head.upstream.rows")
ROWS_UNION = counter("trellis.head.rows.union")
EVICTIONS = counter("trellis.head.evictions")
INVALIDATIONS = counter("trellis.head.invalidations")
CLAIMS_SHED = counter("trellis.head.claims.shed")
MEMORY = gauge("trellis.head.memory", "By")

# shard/src/metrics.rs
FETCHES = counter("trellis.shard.fetches")
FETCH_DURATION = seconds("trellis.shard.fetch.duration")
PUBLISHES = counter("trellis.shard.publishes")
COMMITS = counter("trellis.shard.commits")
CONFLICTS = counter("trellis.shard.conflicts")
WRITE_DURATION = seconds("trellis.shard.write.duration")
PUBLISH_DURATION = seconds("trellis.shard.publish.duration")
APPLY_DURATION = seconds("trellis.shard.apply.duration")
STORE_DURATION = seconds("trellis.shard.store.request.duration")
STORE_BYTES = counter("trellis.shard.store.io", "By")
WATCHERS = gauge("trellis.shard.watchers")

# qcu-runtime/src/metrics.rs
RUN_DURATION = seconds("trellis.run.duration")
RUN_LAST_SUCCESS = gauge("trellis.run.last_success", "s")  # seconds since 1970
RUN_STEP_DURATION = seconds("trellis.run.step.duration")
RUN_CPU = counter("trellis.run.cpu.time", "s")
RUN_MEMORY = Metric("trellis.run.memory.peak", "By", "histogram")

# fabric: every process
SERVER_CALLS = seconds("rpc.server.call.duration")
CLIENT_CALLS = seconds("rpc.client.call.duration")
TELEMETRY_DROPPED = counter("trellis.telemetry.dropped")

CODE = [value for value in list(globals().values()) if isinstance(value, Metric)]

# the collector, from spans (connector span_metrics)
SPAN_DURATION = seconds("traces.span.metrics.duration")
# the collector, of itself
COLLECTOR_QUEUE = gauge("otelcol_exporter_queue_size")
COLLECTOR_QUEUE_MAX = gauge("otelcol_exporter_queue_capacity")
COLLECTOR_REFUSED = [
    counter(f"otelcol_receiver_refused_{items}") for items in ("spans", "metric_points", "log_records")
]

COLLECTOR = [SPAN_DURATION, COLLECTOR_QUEUE, COLLECTOR_QUEUE_MAX, *COLLECTOR_REFUSED]

# labels: attributes of the code, with _ for the dot
DATASET = "trellis_dataset"  # of reads alone: the first datasets of each head, and "others"
SOURCE = "trellis_source"  # hit, joined, fetched
STATE = "trellis_state"  # resident, in_flight, pinned, budget
QUEUE = "trellis_queue"  # admission, egress, memory, shard
OUTCOME = "trellis_outcome"  # of a read: served, failed, left; of an attempt at a run: succeeded, failed, ...
STEP = "trellis_step"  # read, compute, publish
OPERATION = "trellis_operation"
DIRECTION = "trellis_direction"  # read, write
METHOD = "rpc_method"
STATUS = "rpc_response_status_code"
ERROR = "error_type"  # only calls that are the server's own fault have it
SIGNAL = "signal"  # spans, logs, metrics
# of every series, because the resource has them
INSTANCE = "service_instance_id"  # of a unit: its name
SERVICE = "service_name"

LABELS = [
    DATASET,
    SOURCE,
    STATE,
    QUEUE,
    OUTCOME,
    STEP,
    OPERATION,
    DIRECTION,
    METHOD,
    STATUS,
    ERROR,
    SIGNAL,
    INSTANCE,
]

# labels of the collector: of its span metrics, and of its metrics of itself
SPAN = "span_name"
EXPORTER = "exporter"

# values of OUTCOME
SERVED, LEFT = "served", "left"
SUCCEEDED = "succeeded"

# services
HEAD, SHARD, QCU = "trellis-head", "trellis-shard", "trellis-qcu"

# methods
PUBLISH = "trellis.v1.Shard/Publish"
UNIT_RENEW = "trellis.v1.Head/RenewLease"
UNIT_PUBLISH = "arrow.flight.protocol.FlightService/DoPut"
UNIT_READ = "arrow.flight.protocol.FlightService/DoGet"
# the status of a call that another publisher's lease fences
FENCED = "FAILED_PRECONDITION"
