"""The alerts. Each has series that make it fire and series that must not, which promtool replays."""

from __future__ import annotations

import dataclasses
import re

import names as n
import panels as p

# Where the runbook is read. An anchor is the alert's name in kebab case.
RUNBOOK = "deploy/README.md"

# A page wakes somebody; a ticket waits for the morning.
PAGE, TICKET = "page", "ticket"

# a series, and its values of each minute in promtool's notation: "0+10x90" rises by 10 for 90 minutes
Series = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Alert:
    """One alert."""

    name: str
    severity: str
    lasts: str  # how long the expression must hold
    expr: str
    summary: str
    labels: dict[str, str]  # of the alert in the example
    example: list[Series]  # fires after 60 minutes
    calm: list[Series]  # never fires

    @property
    def anchor(self) -> str:
        return re.sub(r"(?<!^)(?=[A-Z])", "-", self.name).lower()


BY_INSTANCE = (n.INSTANCE,)
AT_FAULT = p.unequal(n.ERROR, "")
LOSES_LEASE = f'{n.METHOD}=~"{n.UNIT_PUBLISH}|{n.UNIT_RENEW}"'


def five(metric: n.Metric | str, *conditions: str, by: tuple[str, ...] = BY_INSTANCE) -> str:
    """A rate over five minutes."""
    return p.rate(metric, *conditions, by=by, window="[5m]")


def hour(metric: n.Metric | str, *conditions: str) -> str:
    return p.rate(metric, *conditions, by=BY_INSTANCE, window="[1h]")


def p99(metric: n.Metric, *conditions: str) -> str:
    return p.quantile(0.99, metric, *conditions, by=BY_INSTANCE, window="[5m]")


def missing(service: str, part: str) -> str:
    """Fewer than `part` of the processes of 15 minutes ago report."""
    now, before = (p.processes(p.equal(n.SERVICE, service), offset=offset) for offset in ("", "15m"))
    return f"({now} or 0 * {before}) < {part} * {before}"


# --- series of the examples


def series(metric: n.Metric | str, values: str, *labels: dict[str, str]) -> Series:
    pairs = {key: value for part in labels for key, value in part.items()}
    return f"{metric}{{{','.join(p.equal(key, value) for key, value in pairs.items())}}}", values


HEAD = {n.SERVICE: n.HEAD, n.INSTANCE: "head-0"}
SHARD = {n.SERVICE: n.SHARD, n.INSTANCE: "shard-0"}
UNIT = {n.SERVICE: n.QCU, n.INSTANCE: "mom"}
COLLECTOR = {n.SERVICE: "trellis-collector", n.INSTANCE: "c"}
ZIPKIN = COLLECTOR | {n.EXPORTER: "zipkin"}
OK = {n.STATUS: "OK"}
RENEW = {n.METHOD: n.UNIT_RENEW}
FAILED = {n.OUTCOME: "failed"}


def reporting(process: dict[str, str], values: str = "0x90") -> Series:
    return series(n.TELEMETRY_DROPPED, values, process, {n.SIGNAL: "spans"})


def reads(part: n.Metric, step: int) -> list[Series]:
    """A thousand reads a minute, of which `step` are of a kind."""
    return [series(n.READS, "0+1000x90", HEAD), series(part, f"0+{step}x90", HEAD)]


def durations(metric: n.Metric, bound: str, *labels: dict[str, str]) -> list[Series]:
    """A hundred a minute, all up to `bound` seconds: 1 or 60."""
    counts = {"1": "0+100x90" if bound == "1" else "0x90", "60": "0+100x90", "+Inf": "0+100x90"}
    return [series(metric.bucket, values, *labels, {"le": le}) for le, values in counts.items()]


def held(pinned: int) -> list[Series]:
    """A head whose readers hold a part of its budget of 100."""
    states = {"pinned": f"{pinned}x90", "budget": "100x90"}
    return [series(n.MEMORY, values, HEAD, {n.STATE: state}) for state, values in states.items()]


def chunks(evicted: int) -> list[Series]:
    """A head that fetches nine chunks in ten."""
    by_source = [
        series(n.CHUNKS, values, HEAD, {n.SOURCE: source})
        for source, values in {"hit": "0+10x90", "fetched": "0+90x90"}.items()
    ]
    return [*by_source, series(n.EVICTIONS, f"0+{evicted}x90", HEAD)]


def lost(conflicts: int) -> list[Series]:
    """A shard that loses some of a hundred commits a minute."""
    return [
        series(n.COMMITS, f"0+{100 - conflicts}x90", SHARD),
        series(n.CONFLICTS, f"0+{conflicts}x90", SHARD),
    ]


def queue(size: int) -> list[Series]:
    return [series(n.COLLECTOR_QUEUE, f"{size}x90", ZIPKIN), series(n.COLLECTOR_QUEUE_MAX, "100x90", ZIPKIN)]


SERVER, CLIENT, RUNS = n.SERVER_CALLS.count, n.CLIENT_CALLS.count, n.RUN_DURATION.count

HEADS = [
    Alert(
        "CallsFailing",
        PAGE,
        "5m",
        f"{five(SERVER, AT_FAULT, by=(n.SERVICE, n.INSTANCE))} / {five(SERVER, by=(n.SERVICE, n.INSTANCE))} > 0.01",
        "More than 1 % of the calls of {{ $labels.service_instance_id }} fail by its own fault",
        HEAD,
        [
            series(SERVER, "0+90x90", HEAD, OK),
            series(SERVER, "0+10x90", HEAD, {n.STATUS: "INTERNAL", n.ERROR: "INTERNAL"}),
        ],
        # the callers' fault
        [series(SERVER, "0+90x90", HEAD, OK), series(SERVER, "0+90x90", HEAD, {n.STATUS: "NOT_FOUND"})],
    ),
    Alert(
        "HeadRefusesReads",
        PAGE,
        "10m",
        f"{five(n.READS_SHED)} > 0",
        "Head {{ $labels.service_instance_id }} refuses reads for lack of memory",
        {n.INSTANCE: "head-0"},
        reads(n.READS_SHED, 1),
        reads(n.READS_SHED, 0),
    ),
    Alert(
        "HeadReadsStale",
        PAGE,
        "10m",
        f"{five(n.READS_STALE)} / {five(n.READS)} > 0.01",
        "Head {{ $labels.service_instance_id }} answers with rows that it cannot confirm as the latest",
        {n.INSTANCE: "head-0"},
        reads(n.READS_STALE, 20),
        reads(n.READS_STALE, 5),
    ),
    Alert(
        "HeadReadsSlow",
        TICKET,
        "15m",
        f"{p99(n.READ_DURATION, p.SERVED)} > 5",
        "One read in a hundred takes more than 5 s at head {{ $labels.service_instance_id }}",
        {n.INSTANCE: "head-0"},
        durations(n.READ_DURATION, "60", HEAD, {n.OUTCOME: n.SERVED}),
        durations(n.READ_DURATION, "1", HEAD, {n.OUTCOME: n.SERVED}),
    ),
    Alert(
        "HeadMemoryHeldByReaders",
        TICKET,
        "10m",
        f"{p.held_by_readers} > 0.5",
        "Slow readers hold more than half of the memory of head {{ $labels.service_instance_id }}",
        {n.INSTANCE: "head-0"},
        held(60),
        held(40),
    ),
    Alert(
        "HeadTooSmall",
        TICKET,
        "30m",
        f"{hour(n.CHUNKS, p.unequal(n.SOURCE, 'fetched'))} / {hour(n.CHUNKS)} < 0.5 and {hour(n.EVICTIONS)} > 0.1",
        "Head {{ $labels.service_instance_id }} evicts chunks and fetches most of what it answers",
        {n.INSTANCE: "head-0"},
        chunks(80),
        chunks(0),
    ),
    Alert(
        "HeadMissing",
        PAGE,
        "5m",
        missing(n.HEAD, "1"),
        "Fewer heads report than 15 minutes ago",
        {n.SERVICE: n.HEAD},
        [reporting(HEAD), reporting(HEAD | {n.INSTANCE: "head-1"}, "0x45 _x45")],
        [reporting(HEAD)],
    ),
]

PUBLISHING = [
    Alert(
        "ShardMissing",
        PAGE,
        "5m",
        missing(n.SHARD, "1"),
        "Fewer shards report than 15 minutes ago",
        {n.SERVICE: n.SHARD},
        # the only shard: nothing is left to count
        [reporting(SHARD, "0x45 _x45")],
        [reporting(SHARD)],
    ),
    Alert(
        "UnitsMissing",
        PAGE,
        "5m",
        missing(n.QCU, "0.95"),
        "More than 5 % of the units that reported 15 minutes ago do not report",
        {n.SERVICE: n.QCU},
        [reporting(UNIT, "0x45 _x45")],
        [reporting(UNIT)],
    ),
    Alert(
        "UnitFailing",
        PAGE,
        "0m",
        p.grown("1h", RUNS, p.UNITS, p.NOT_SUCCEEDED, by=BY_INSTANCE)
        + f" > 0 unless {p.last_success('1h')} > time() - 3600",
        "Unit {{ $labels.service_instance_id }} failed in the last hour and did not succeed",
        {n.INSTANCE: "mom"},
        # its first attempt that failed, an hour after its last success
        [series(RUNS, "_x50 1x40", UNIT, FAILED), series(n.RUN_LAST_SUCCESS, "0x90", UNIT)],
        # a success two minutes later
        [series(RUNS, "_x50 1x40", UNIT, FAILED), series(n.RUN_LAST_SUCCESS, f"_x52 {52 * 60}x38", UNIT)],
    ),
    Alert(
        "UnitFenced",
        PAGE,
        "0m",
        # a new process of a unit is refused the lease until the old one has given it back: that is no fence
        p.grown("15m", CLIENT, p.UNITS, LOSES_LEASE, p.equal(n.STATUS, n.FENCED), by=BY_INSTANCE) + " > 0",
        "Another publisher has fenced unit {{ $labels.service_instance_id }}",
        {n.INSTANCE: "mom"},
        [series(CLIENT, "_x55 1x35", UNIT, RENEW, {n.STATUS: n.FENCED})],
        [series(CLIENT, "1x90", UNIT, RENEW, {n.STATUS: n.FENCED})],
    ),
    Alert(
        "PublishSlow",
        PAGE,
        "10m",
        f"{p99(n.PUBLISH_DURATION)} > 10",
        "One publish in a hundred takes more than 10 s at shard {{ $labels.service_instance_id }}",
        {n.INSTANCE: "shard-0"},
        durations(n.PUBLISH_DURATION, "60", SHARD),
        durations(n.PUBLISH_DURATION, "1", SHARD),
    ),
    Alert(
        "CommitsLost",
        TICKET,
        "15m",
        f"{five(n.CONFLICTS)} / ({five(n.COMMITS)} + {five(n.CONFLICTS)}) > 0.2",
        "Shard {{ $labels.service_instance_id }} loses one commit in five to another writer",
        {n.INSTANCE: "shard-0"},
        lost(40),
        lost(10),
    ),
]

TELEMETRY = [
    Alert(
        "NothingArrives",
        PAGE,
        "10m",
        f"absent({n.TELEMETRY_DROPPED})",
        "No process of the grid has reported for ten minutes",
        {},
        [],
        [reporting(HEAD)],
    ),
    Alert(
        "TelemetryLost",
        TICKET,
        "15m",
        f"{five(n.TELEMETRY_DROPPED, by=(n.SERVICE, n.SIGNAL))} > 0",
        "Processes of {{ $labels.service_name }} lose {{ $labels.signal }} before the collector has them",
        {n.SERVICE: n.HEAD, n.SIGNAL: "spans"},
        [reporting(HEAD, "0+1x90")],
        [reporting(HEAD, "7x90")],
    ),
    Alert(
        "CollectorQueueFilling",
        PAGE,
        "5m",
        f"max by ({n.SERVICE}, {n.INSTANCE}, {n.EXPORTER}) ({n.COLLECTOR_QUEUE} / {n.COLLECTOR_QUEUE_MAX}) > 0.5",
        "A queue of {{ $labels.service_name }} is half full: exporter {{ $labels.exporter }}",
        ZIPKIN,
        queue(60),
        queue(40),
    ),
    Alert(
        "CollectorRefuses",
        PAGE,
        "5m",
        " or ".join(f"{five(refused, by=(n.SERVICE,))} > 0" for refused in n.COLLECTOR_REFUSED),
        "{{ $labels.service_name }} refuses telemetry: its memory limiter is at work",
        {n.SERVICE: "trellis-collector"},
        [series(n.COLLECTOR_REFUSED[0], "0+1x90", COLLECTOR)],
        [series(n.COLLECTOR_REFUSED[0], "0x90", COLLECTOR)],
    ),
]

ALERTS = {"heads": HEADS, "publishing": PUBLISHING, "telemetry": TELEMETRY}
