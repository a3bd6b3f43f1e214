"""The four dashboards: their panels and expressions."""

from __future__ import annotations

import dataclasses

import names as n
from names import Metric

# the window of rates, in a form that each kind of page replaces
WINDOW = "[$__rate_interval]"
# the variable of the dashboard of one strategy
CHOSEN = "$unit"

# an expression and the legend of its series
Line = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Panel:
    """One panel."""

    title: str
    unit: str  # Grafana's name: short, s, bytes, percentunit, ops
    about: str
    lines: tuple[Line, ...]
    kind: str = "timeseries"  # or stat
    width: int = 8  # of 24


@dataclasses.dataclass(frozen=True)
class Dashboard:
    """One dashboard: rows of panels, each with a title."""

    name: str
    title: str
    about: str
    rows: list[tuple[str, list[Panel]]]


def panel(title: str, unit: str, about: str, *lines: Line) -> Panel:
    return Panel(title, unit, about, lines)


def number(title: str, unit: str, about: str, *lines: Line, width: int = 4) -> Panel:
    """A panel with the newest value alone."""
    return Panel(title, unit, about, lines, "stat", width)


def select(metric: Metric | str, *conditions: str) -> str:
    return f"{metric}{{{','.join(conditions)}}}" if conditions else f"{metric}"


def equal(label: str, value: str) -> str:
    return f'{label}="{value}"'


def unequal(label: str, value: str) -> str:
    return f'{label}!="{value}"'


def legend(*labels: str) -> str:
    return " ".join(f"{{{{{label}}}}}" for label in labels)


def total(what: str, *by: str) -> str:
    return f"sum by ({', '.join(by)}) ({what})" if by else f"sum({what})"


def rate(metric: Metric | str, *conditions: str, by: tuple[str, ...] = (), window: str = WINDOW) -> str:
    """How often per second, added up over all series with the same `by`."""
    return total(f"rate({select(metric, *conditions)}{window})", *by)


def rates(metric: Metric | str, *conditions: str, by: tuple[str, ...]) -> Line:
    return rate(metric, *conditions, by=by), legend(*by)


def or_zero(part: str, whole: str) -> str:
    """0, and not nothing, where there is a whole: for events that are rare."""
    return f"{part} or 0 * {whole}"


def share(part: str, whole: str) -> str:
    """A ratio. It is 0 while the whole is 0."""
    return or_zero(f"{part} / ({whole} > 0)", whole)


def quantile(q: float, metric: Metric, *conditions: str, by: tuple[str, ...] = (), window: str = WINDOW) -> str:
    """A quantile of a histogram. VictoriaMetrics keeps an exponential histogram in buckets with the label
    `vmrange`, and an explicit one in buckets with `le`: the label that a series lacks is empty."""
    buckets = total(f"increase({select(metric.bucket, *conditions)}{window})", "le", "vmrange", *by)
    return f"histogram_quantile({q}, {buckets})"


def processes(*conditions: str, offset: str = "") -> str:
    """How many processes of each service report. Every process counts the telemetry that it lost."""
    reporting = select(n.TELEMETRY_DROPPED, equal(n.SIGNAL, "spans"), *conditions)
    return f"count by ({n.SERVICE}) ({reporting}{' offset ' + offset if offset else ''})"


def grown(window: str, metric: Metric | str, *conditions: str, by: tuple[str, ...]) -> str:
    """How many more than a window ago. Unlike increase() it counts the first event of a series, and for rare
    events that one matters. It also counts for processes that have ended meanwhile."""
    now = f"last_over_time({select(metric, *conditions)}[{window}])"
    before = f"last_over_time({select(metric, *conditions)}[{window}] offset {window})"
    return total(f"clamp_min({now} - ({before} or 0 * {now}), 0)", *by)


UNITS = equal(n.SERVICE, n.QCU)
NOT_SUCCEEDED = unequal(n.OUTCOME, n.SUCCEEDED)
SERVED = equal(n.OUTCOME, n.SERVED)


def since_success(*conditions: str) -> Line:
    """Seconds since each unit's last successful attempt, of units that have reported within a day."""
    return f"time() - {last_success('1d', *conditions)}", legend(n.INSTANCE)


def last_success(window: str, *conditions: str) -> str:
    """When each unit last succeeded, if it has reported that within a window. A process that has started again reports
    it from its next success on."""
    reported = select(n.RUN_LAST_SUCCESS, UNITS, *conditions)
    return f"max by ({n.INSTANCE}) (max_over_time({reported}[{window}]))"


def attempts(*conditions: str) -> Line:
    by = (n.INSTANCE, n.OUTCOME)
    return grown("1h", n.RUN_DURATION.count, UNITS, *conditions, by=by), legend(*by)


def mean(histogram: Metric, *conditions: str, by: tuple[str, ...]) -> Line:
    """The mean since the process started: for what happens once a day."""
    parts = (total(select(part, *conditions), *by) for part in (histogram.sum, histogram.count))
    return " / ".join(parts), legend(*by)


# --- a panel of two dashboards

failed_runs = panel(
    "Attempts that did not succeed",
    "short",
    "By unit and outcome, in the hour before. An attempt may be tried again: the run ledger, trellis.runs, "
    "has the last one.",
    attempts(NOT_SUCCEEDED),
)


# --- the grid

load = [
    number(
        "Processes",
        "short",
        "Processes of each service that report: heads, shards, units (trellis-qcu), notebooks (trellis-python).",
        (processes(), legend(n.SERVICE)),
        width=12,
    ),
    number("Reads", "ops", "Reads per second, of all heads.", (rate(n.READS), "reads")),
    number("Answers", "Bps", "Arrow bytes of answers per second.", (rate(n.READ_BYTES), "bytes")),
    number("Publishes", "ops", "Publishes per second, of all shards.", (rate(n.PUBLISHES), "publishes")),
]

reads = [
    panel(
        "Reads by dataset",
        "ops",
        "Reads per second. Each head names the first datasets that it was asked for; `others` are all others together.",
        rates(n.READS, by=(n.DATASET,)),
    ),
    panel(
        "Duration of reads",
        "s",
        "From arrival to the last message, of reads that were served.",
        *[(quantile(q, n.READ_DURATION, SERVED), f"p{q * 100:g}") for q in (0.5, 0.9, 0.99)],
    ),
    panel(
        "Reads that failed, were refused or are stale",
        "percentunit",
        "Share of all reads. Refused: no room in the memory. Stale: rows not confirmed as the latest, "
        "because a shard cannot be reached.",
        (share(rate(n.READS_FAILED), rate(n.READS)), "failed"),
        (share(rate(n.READS_SHED), rate(n.READS)), "refused"),
        (share(rate(n.READS_STALE), rate(n.READS)), "stale"),
    ),
]

calls = [
    panel(
        "Calls by method",
        "ops",
        "Calls per second that heads and shards served.",
        rates(n.SERVER_CALLS.count, by=(n.METHOD,)),
    ),
    panel(
        "Calls that did not end with OK",
        "ops",
        "By method and status. FAILED_PRECONDITION: another publisher holds the lease.",
        rates(n.SERVER_CALLS.count, unequal(n.STATUS, "OK"), by=(n.METHOD, n.STATUS)),
    ),
    panel(
        "p99 by method",
        "s",
        "Duration of calls at the server. Watch is left out: it lasts as long as its connection.",
        (
            quantile(0.99, n.SERVER_CALLS, f'{n.METHOD}!~".*/Watch"', by=(n.METHOD,)),
            legend(n.METHOD),
        ),
    ),
]

units_and_telemetry = [
    failed_runs,
    panel(
        "Telemetry lost",
        "ops",
        "Spans, log records and metric exports per second that a process dropped before the collector had them.",
        rates(n.TELEMETRY_DROPPED, by=(n.SERVICE, n.SIGNAL)),
    ),
    panel(
        "The collector's queues",
        "percentunit",
        "How full the queue of each exporter is. A full queue loses telemetry.",
        (
            f"max by ({n.SERVICE}, {n.EXPORTER}) ({n.COLLECTOR_QUEUE} / {n.COLLECTOR_QUEUE_MAX})",
            legend(n.SERVICE, n.EXPORTER),
        ),
    ),
]

spans = [
    Panel(
        "p99 by span",
        "s",
        "From the spans, before any is sampled. The points are exemplars: each is a trace.",
        (
            (
                quantile(0.99, n.SPAN_DURATION, f'{n.SPAN}!~".*/Watch"', by=(n.SERVICE, n.SPAN)),
                legend(n.SERVICE, n.SPAN),
            ),
        ),
        width=24,
    )
]

# --- head nodes

answers = [
    panel(
        "Chunks from memory",
        "percentunit",
        "Share of the chunks of answers that the head had, or that another read was fetching already. It "
        "is low after a start, after a publish to a dataset that everybody reads, and while more is read "
        "than fits into the memory.",
        (
            share(
                rate(n.CHUNKS, unequal(n.SOURCE, "fetched"), by=(n.INSTANCE,)),
                rate(n.CHUNKS, by=(n.INSTANCE,)),
            ),
            legend(n.INSTANCE),
        ),
    ),
    panel(
        "Chunks by source",
        "ops",
        "hit: in memory. joined: another read was fetching it. fetched: asked of a shard for this read.",
        rates(n.CHUNKS, by=(n.SOURCE,)),
    ),
    panel(
        "Duration of reads by head",
        "s",
        "p99 of reads that were served.",
        (quantile(0.99, n.READ_DURATION, SERVED, by=(n.INSTANCE,)), legend(n.INSTANCE)),
    ),
]

upstream = [
    panel(
        "Amplification",
        "short",
        "Rows received from shards for each row in the union of all ranges asked, since the head started. "
        "1 is the least, and the bar is 1.03. It grows if chunks are evicted and fetched again.",
        (
            f"{total(str(n.UPSTREAM_ROWS), n.INSTANCE)} / ({total(str(n.ROWS_UNION), n.INSTANCE)} > 0)",
            legend(n.INSTANCE),
        ),
    ),
    panel(
        "Calls to shards",
        "ops",
        "Fetches per second, by head.",
        rates(n.UPSTREAM_CALLS, by=(n.INSTANCE,)),
    ),
    panel(
        "Chunks given up",
        "ops",
        "Evicted: others needed the room. Closed: a publish changed them.",
        (rate(n.EVICTIONS), "evicted"),
        (rate(n.INVALIDATIONS), "closed by a change"),
    ),
]

pinned, budget = (select(n.MEMORY, equal(n.STATE, state)) for state in ("pinned", "budget"))
held_by_readers = f"{total(pinned, n.INSTANCE)} / {total(budget, n.INSTANCE)}"

memory = [
    panel(
        "Memory by use",
        "bytes",
        "resident: chunks. in_flight: chunks that are being fetched. pinned: what readers hold, with "
        "answers and requests. The budget bounds their sum.",
        (total(str(n.MEMORY), n.STATE), legend(n.STATE)),
    ),
    panel(
        "Memory that readers hold",
        "percentunit",
        "Share of the budget. A slow reader keeps its answer in memory until it has read it.",
        (held_by_readers, legend(n.INSTANCE)),
    ),
    panel(
        "Readers that left",
        "ops",
        "Reads per second whose client went away before the end of the answer, by head.",
        (
            or_zero(
                rate(n.READ_DURATION.count, equal(n.OUTCOME, n.LEFT), by=(n.INSTANCE,)),
                rate(n.READ_DURATION.count, by=(n.INSTANCE,)),
            ),
            legend(n.INSTANCE),
        ),
    ),
]

queues = [
    panel(
        "Time in queues",
        "s",
        "p99 by queue. admission: large answers wait for their share of memory. egress: messages wait for "
        "their unit's turn. memory: fetches and messages wait for room in the budget. shard: claims wait "
        "for a call.",
        (quantile(0.99, n.QUEUE_DURATION, by=(n.QUEUE,)), legend(n.QUEUE)),
    ),
    panel(
        "Waits",
        "ops",
        "Per second and queue. What need not wait in admission, egress and memory is not counted.",
        rates(n.QUEUE_DURATION.count, by=(n.QUEUE,)),
    ),
    panel(
        "Claims refused",
        "ops",
        "Per second, for lack of memory, by head.",
        rates(n.CLAIMS_SHED, by=(n.INSTANCE,)),
    ),
]

# --- publishing

units = [
    panel(
        "Time since the last success",
        "s",
        "Of each unit that has reported a success within a day.",
        since_success(),
    ),
    failed_runs,
    panel(
        "Publishes that were refused",
        "ops",
        "Per second, by shards. FAILED_PRECONDITION: another publisher has fenced this one. "
        "PERMISSION_DENIED: the dataset is the output of another unit.",
        rates(
            n.SERVER_CALLS.count,
            equal(n.SERVICE, n.SHARD),
            equal(n.METHOD, n.PUBLISH),
            unequal(n.STATUS, "OK"),
            by=(n.STATUS,),
        ),
    ),
]

commits = [
    panel(
        "Publishes in a commit",
        "short",
        "Publishes that share one commit, on average. It is more than 1 if publishes arrive faster than "
        "the store commits.",
        (
            f"{rate(n.PUBLISHES, by=(n.INSTANCE,))} / ({rate(n.COMMITS, by=(n.INSTANCE,))} > 0)",
            legend(n.INSTANCE),
        ),
    ),
    panel(
        "Publishes and commits",
        "ops",
        "Per second, of all shards. Lost: another writer of the table was first, and the shard tries again.",
        (rate(n.PUBLISHES), "publishes"),
        (rate(n.COMMITS), "commits"),
        (or_zero(rate(n.CONFLICTS), rate(n.COMMITS)), "lost to another writer"),
    ),
    panel(
        "Duration of a publish",
        "s",
        "Publish: from its header to its acknowledgement. Write: sorts, encodes and stores the rows of a commit.",
        (quantile(0.5, n.PUBLISH_DURATION), "publish p50"),
        (quantile(0.99, n.PUBLISH_DURATION), "publish p99"),
        (quantile(0.99, n.WRITE_DURATION), "write p99"),
    ),
]

shards = [
    panel("Fetches by shard", "ops", "Per second.", rates(n.FETCHES, by=(n.INSTANCE,))),
    panel(
        "Duration of a fetch",
        "s",
        "p99, from its arrival to its last message.",
        (quantile(0.99, n.FETCH_DURATION, by=(n.INSTANCE,)), legend(n.INSTANCE)),
    ),
    panel(
        "Watchers",
        "short",
        "Connections of heads that follow each shard's changes.",
        (total(str(n.WATCHERS), n.INSTANCE), legend(n.INSTANCE)),
    ),
]

store = [
    panel(
        "Until every head has a change",
        "s",
        "p99, from a commit until every head that watches has applied it. The bar is 1 s.",
        (quantile(0.99, n.APPLY_DURATION), "p99"),
    ),
    panel(
        "Duration of requests to the store",
        "s",
        "p99, by operation.",
        (quantile(0.99, n.STORE_DURATION, by=(n.OPERATION,)), legend(n.OPERATION)),
    ),
    panel(
        "Bytes to and from the store",
        "Bps",
        "Per second, of all shards.",
        rates(n.STORE_BYTES, by=(n.DIRECTION,)),
    ),
]

# --- one strategy

# a unit's name is the instance of its process
_unit = f'{n.INSTANCE}=~"{CHOSEN}"'

runs = [
    panel("Attempts", "short", "By outcome, in the hour before.", attempts(_unit)),
    panel("Time since the last success", "s", "As its process reports it.", since_success(_unit)),
    panel(
        "Duration of an attempt",
        "s",
        "Mean since the unit's process started, by outcome.",
        mean(n.RUN_DURATION, UNITS, _unit, by=(n.INSTANCE, n.OUTCOME)),
    ),
]

inside = [
    panel(
        "Duration of its steps",
        "s",
        "Mean since the unit's process started. read: its inputs. compute: the strategy. publish: its result.",
        mean(n.RUN_STEP_DURATION, UNITS, _unit, by=(n.INSTANCE, n.STEP)),
    ),
    panel(
        "Processor time",
        "s",
        "Of the strategy's process, for each attempt, since the unit's process started.",
        (
            f"{total(select(n.RUN_CPU, UNITS, _unit), n.INSTANCE)} / "
            f"{total(select(n.RUN_DURATION.count, UNITS, _unit), n.INSTANCE)}",
            legend(n.INSTANCE),
        ),
    ),
    panel(
        "Largest memory",
        "bytes",
        "Resident memory of the strategy's process: mean of its attempts' peaks.",
        mean(n.RUN_MEMORY, UNITS, _unit, by=(n.INSTANCE,)),
    ),
]

unit_calls = [
    panel(
        "Calls by method",
        "short",
        "Since the unit's process started. DoGet reads, DoPut publishes, RenewLease keeps the lease.",
        (
            total(select(n.CLIENT_CALLS.count, UNITS, _unit), n.INSTANCE, n.METHOD),
            legend(n.INSTANCE, n.METHOD),
        ),
    ),
    panel(
        "Duration of its reads and publishes",
        "s",
        "Mean since the unit's process started, as the unit sees them.",
        mean(
            n.CLIENT_CALLS,
            UNITS,
            _unit,
            f'{n.METHOD}=~"{n.UNIT_READ}|{n.UNIT_PUBLISH}"',
            by=(n.INSTANCE, n.METHOD),
        ),
    ),
    panel(
        "Calls by status",
        "short",
        "Since the unit's process started. UNAVAILABLE is tried again. FAILED_PRECONDITION: another "
        "publisher holds the lease.",
        (
            total(select(n.CLIENT_CALLS.count, UNITS, _unit), n.INSTANCE, n.STATUS),
            legend(n.INSTANCE, n.STATUS),
        ),
    ),
]

DASHBOARDS = [
    Dashboard(
        "grid",
        "Trellis: the grid",
        "Is the grid serving, and is anything wrong? Start here.",
        [
            ("Processes and load", load),
            ("Reads", reads),
            ("Calls", calls),
            ("Units and telemetry", units_and_telemetry),
            ("Where time goes", spans),
        ],
    ),
    Dashboard(
        "head",
        "Trellis: head nodes",
        "Does a head answer from memory, and if not, what does it wait for?",
        [
            ("Answers", answers),
            ("Upstream", upstream),
            ("Memory and slow readers", memory),
            ("Queues", queues),
        ],
    ),
    Dashboard(
        "publishing",
        "Trellis: publishing",
        "Do units publish in time, and do commits keep up?",
        [("Units", units), ("Commits", commits), ("Shards", shards), ("Freshness and the store", store)],
    ),
    Dashboard(
        "strategy",
        "Trellis: one strategy's day",
        "What one unit did. Choose the unit above, and a day as the time range.",
        [("Runs", runs), ("Inside its runs", inside), ("Its calls", unit_calls)],
    ),
]
