#!/usr/bin/env python3
"""Proves that the grid of compose.yaml works in containers, also while parts of it are stopped, cut off and killed.

    .venv/bin/python deploy/check.py          after `make wheel`; as root, on Debian, with Go 1.26 and Maven

It installs and starts Docker if no engine answers, makes the base image where no registry does, builds the images from
what is built already, and runs the grid under a name and ports of its own, with the collector and a page for each
signal. The programs of these are built in the folder TELEMETRY_DIR, or in target/telemetry, unless they are there. It
prints what each step proved, takes everything down, and ends with a line of counts. The logs of a failed run are in
target/deploy-logs, the pictures of the pages in target/deploy-pictures.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import trellis
from trellis import _market
from trellis.deploy import load_strategies
from trellis.errors import TrellisError, Unavailable

ROOT = pathlib.Path(__file__).resolve().parent.parent
LOGS, PICTURES = ROOT / "target" / "deploy-logs", ROOT / "target" / "deploy-pictures"
TELEMETRY = pathlib.Path(os.environ.get("TELEMETRY_DIR", ROOT / "target" / "telemetry"))
EXAMPLES = ROOT / "qcu-runtime" / "python" / "examples"
PROJECT = "trellis-check"
HEADS, SHARDS, UNITS = (
    ["head-0", "head-1"],
    ["shard-0", "shard-1", "shard-2"],
    ["qcu-momentum", "qcu-combo", "qcu-flaky"],
)
PORTS = [17400, 17401]
URL = ",".join(f"127.0.0.1:{port}" for port in PORTS)
PAGES = ["victoria-metrics", "victoria-logs", "zipkin"]
PAGE_PORTS = {"METRICS_PORT": 18428, "LOGS_PORT": 19428, "TRACES_PORT": 19411}
METRICS, STREAMS, TRACES = (f"http://127.0.0.1:{port}" for port in PAGE_PORTS.values())
# how many processes of each service push telemetry
PROCESSES = {"trellis-head": len(HEADS), "trellis-shard": len(SHARDS), "trellis-qcu": len(UNITS)}
SESSIONS, SESSION_AFTER = ["2016-08-09", "2016-08-10"], "2016-08-11"

# A container starts within seconds; on a busy machine within a minute. Store, shards, heads and import start one after
# the other.
START_WAIT_S = 300.0
# after a process has come back, the others find it by DNS and retry with pauses of up to 15 s
RECOVER_WAIT_S = 60.0
# longest time of one command of docker, above every stop_grace_period; building images is not bounded by it
COMMAND_WAIT_S = 120.0
# how long the loops go on before and after a fault
LOOP_BEFORE_S, LOOP_AFTER_S = 2.0, 5.0
KILLS, PUBLISHES_BETWEEN_KILLS = 2, 3
# an export that fails is tried again for 2 s, and spans wait up to 5 s for their export: some are lost in this time
COLLECTOR_AWAY_S = 15.0
# a page answers a question within milliseconds; on a busy machine within seconds
PAGE_WAIT_S = 20.0


class Failed(Exception):
    """A step did not prove what it should."""


def need(condition: Any, why: str) -> None:
    if not condition:
        raise Failed(why)


def run(*command: Any, wait: float | None = COMMAND_WAIT_S, env: dict[str, str] | None = None) -> str:
    """Runs a command to its end and returns its stdout."""
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=wait,
        cwd=ROOT,
        env={**os.environ, **(env or {})},
    )
    if done.returncode != 0:
        raise Failed(f"{' '.join(map(str, command))} exited with {done.returncode}: {done.stderr.strip()[-2000:]}")
    return done.stdout.strip()


def until(what: str, ready: Callable[[], Any], wait: float = RECOVER_WAIT_S) -> Any:
    """Asks again and again until the answer is true. An `Unavailable` grid or page counts as a no."""
    deadline = time.monotonic() + wait
    last = ""
    while True:
        try:
            if answer := ready():
                return answer
        except (Unavailable, OSError) as error:
            last = f": {error}"
        if time.monotonic() > deadline:
            raise Failed(f"{what} did not happen within {wait:.0f} s{last}")
        time.sleep(0.25)


# --- the engine and the images


def answers(*command: str) -> bool:
    with contextlib.suppress(OSError):
        return subprocess.run(command, capture_output=True).returncode == 0
    return False


def install(**packages: str) -> None:
    """Installs the Debian packages of programs that are missing."""
    missing = [package for program, package in packages.items() if shutil.which(program) is None]
    if not missing:
        return
    print(f"installing {' '.join(missing)}", flush=True)
    # the packages must not start services: this script starts the engine itself
    policy = pathlib.Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        run("apt-get", "update", "-qq", wait=None)
        quiet = {"DEBIAN_FRONTEND": "noninteractive"}
        run("apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing, wait=None, env=quiet)
    finally:
        if ours:
            policy.unlink()


@contextlib.contextmanager
def engine() -> Iterator[str]:
    """A Docker engine: the running one, or one that is started here and ended with this script. Yields what it is."""
    if answers("docker", "info"):
        yield "was running"
        return
    install(dockerd="docker.io", debootstrap="debootstrap")
    if not answers("docker", "compose", "version"):
        install(**{"docker-compose": "docker-compose"})
    LOGS.mkdir(parents=True, exist_ok=True)
    with open(LOGS / "dockerd.log", "wb") as log:
        dockerd = subprocess.Popen(["dockerd"], stdout=log, stderr=log)
    try:
        until("the start of dockerd", lambda: answers("docker", "info"))
        yield "started here"
    finally:
        dockerd.terminate()
        dockerd.wait(COMMAND_WAIT_S)


# --- the grid


class Grid:
    """The containers of compose.yaml under this script's own name and ports."""

    def __init__(self) -> None:
        v2 = answers("docker", "compose", "version")
        self.compose = ["docker", "compose"] if v2 else ["docker-compose"]
        file = str(ROOT / "deploy" / "compose.yaml")
        self.base = [*self.compose, "-p", PROJECT, "-f", file, "--profile", "telemetry"]
        self.env = {f"TRELLIS_PORT_{i}": str(port) for i, port in enumerate(PORTS)}
        self.env |= {name: str(port) for name, port in PAGE_PORTS.items()}
        self.env["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://collector:4317"
        self.env["TRELLIS_SESSIONS"] = ",".join(SESSIONS)
        self.collector_is_back = 0.0

    def __call__(self, *arguments: str) -> str:
        return run(*self.base, *arguments, env=self.env)

    def container(self, service: str) -> str:
        """The id of a service's container, also of one that has ended."""
        mine = [f"label=com.docker.compose.project={PROJECT}", f"label=com.docker.compose.service={service}"]
        ids = run("docker", "ps", "-aq", *(part for each in mine for part in ("--filter", each))).split()
        need(len(ids) == 1, f"{service} has {len(ids)} containers")
        return ids[0]

    def inspect(self, service: str) -> dict[str, Any]:
        return json.loads(run("docker", "inspect", self.container(service)))[0]

    def exit_code(self, service: str) -> int | None:
        state = self.inspect(service)["State"]
        return state["ExitCode"] if state["Status"] == "exited" else None

    def log(self, service: str) -> str:
        done = subprocess.run(["docker", "logs", self.container(service)], capture_output=True, text=True)
        return done.stdout + done.stderr

    def keep_logs(self) -> None:
        LOGS.mkdir(parents=True, exist_ok=True)
        for service in [*HEADS, *SHARDS, *UNITS, "store", "import", "units", "collector", *PAGES]:
            with contextlib.suppress(Failed):
                (LOGS / f"{service}.log").write_text(self.log(service))
        with contextlib.suppress(Failed):
            (LOGS / "containers.txt").write_text(run("docker", "ps", "-a"))


# --- the pages


def ask(url: str, **question: Any) -> str:
    with urllib.request.urlopen(f"{url}?{urllib.parse.urlencode(question)}", timeout=PAGE_WAIT_S) as answer:
        return answer.read().decode()


def by_service(metric: str) -> dict[str, float]:
    """The value of an expression of VictoriaMetrics for each service. By default it hides the newest half minute."""
    answer = json.loads(ask(f"{METRICS}/api/v1/query", query=metric, latency_offset="1s"))
    return {series["metric"]["service_name"]: float(series["value"][1]) for series in answer["data"]["result"]}


def lines_of(query: str, since: float) -> list[dict[str, str]]:
    """What VictoriaLogs answers."""
    answer = ask(f"{STREAMS}/select/logsql/query", query=query, start=since)
    return [json.loads(line) for line in answer.splitlines()]


def services_of(trace: list[dict[str, Any]]) -> set[str]:
    return {span["localEndpoint"]["serviceName"] for span in trace}


BY_SERVICE = '* | stats by ("service.name") count() lines'


def arrived(since: float, logs_of: set[str]) -> str:
    """Waits until metrics of every process, traces of every service, and logs of some are there from after `since`."""
    reports = f'timestamp(trellis_telemetry_dropped_total{{signal="spans"}}) > {since}'
    until(
        "the arrival of metrics",
        lambda: PROCESSES.items() <= by_service(f"count by (service_name) ({reports})").items(),
    )
    until(
        "the arrival of logs",
        lambda: logs_of <= {line["service.name"] for line in lines_of(BY_SERVICE, since)},
    )

    def traces(**question: Any) -> list[list[dict[str, Any]]]:
        now = time.time()
        window = dict(endTs=int(now * 1000), lookback=int((now - since) * 1000), limit=20)
        return json.loads(ask(f"{TRACES}/zipkin/api/v2/traces", **window, **question))

    until(
        "the arrival of a trace from a run to the store",
        lambda: any(
            PROCESSES.keys() <= services_of(trace) for trace in traces(serviceName="trellis-qcu", spanName="run")
        ),
        START_WAIT_S,
    )
    line = lines_of('"run succeeded" trace_id:* | limit 1', since)[0]
    # spans of other processes may come before those of the unit, and a line before its trace
    until(
        f"the arrival of the unit's spans in the trace of {line}",
        lambda: "trellis-qcu" in services_of(json.loads(ask(f"{TRACES}/zipkin/api/v2/trace/{line['trace_id']}"))),
    )
    return f"metrics of {sum(PROCESSES.values())} processes, logs, a trace from a unit to the store, also by a log line"


def rows_of(frame: trellis.Frame) -> list[str]:
    return frame.write("csv").decode().splitlines()[1:]


def digest(grid: trellis.Grid, dataset: str, **question: Any) -> tuple[int, str]:
    """The number of rows of an answer and the digest of all its values."""
    frame = grid.read(dataset, **question)
    return len(frame), hashlib.sha256(frame.write("csv")).hexdigest()


class Loop:
    """Calls `each` in a thread until the end of the `with`. Counts the calls and keeps the errors."""

    def __init__(self, each: Callable[[int], None]) -> None:
        self.each, self.calls, self.errors = each, 0, []
        self.longest = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def _work(self) -> None:
        while not self._stop.is_set():
            started = time.monotonic()
            try:
                self.each(self.calls)
            except Exception as error:  # the step judges them
                self.errors.append(error)
            self.longest = max(self.longest, time.monotonic() - started)
            self.calls += 1

    def __enter__(self) -> Loop:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


@trellis.strategy(
    "ticks",
    inputs=dict(px=trellis.series("equities.history", ["close"], symbols="AAPL", lookback="1 sessions")),
    output=trellis.output("check.ticks", day="int64"),
)
def ticks(ctx, px):
    return ctx.frame(symbol=["A", "B", "C"], day=int(str(ctx.session).replace("-", "")))


# --- the steps. Each returns what it proved.


def starts(compose: Grid) -> str:
    # it waits until the heads are ready
    run(*compose.base, "up", "-d", "--no-build", env=compose.env, wait=START_WAIT_S)
    until("the end of the import", lambda: compose.exit_code("import") is not None, START_WAIT_S)
    need(compose.exit_code("import") == 0, f"the import failed:\n{compose.log('import')[-2000:]}")
    told = compose.log("import").splitlines()[-1]
    need(f"TRELLIS_URL=static://{URL}" in told, f"the import does not tell the URL: {told}")
    return told


def imported(grid: trellis.Grid) -> str:
    made = _market.generate()
    symbols = grid.symbols("equities.daily")
    need(symbols == sorted(made), f"the symbols differ: {symbols}")
    frame = grid.read("equities.daily", ["close"])
    need(len(frame) == sum(map(len, made.values())), f"{len(frame)} rows")
    # shard-2 owns AAPL and AMZN by name: each row must come once
    for symbol in ("AAPL", "AMZN", "WMT"):
        got = rows_of(grid.read("equities.daily", ["close"], symbols=[symbol]))
        closes = [float(line.split(",")[-1]) for line in got]
        need(closes == [float(row[4]) for row in made[symbol]], f"{symbol} differs from the files")
    # the owner changes on 2012-01-21
    history = rows_of(grid.read("equities.history", ["close"], symbols=["GOOGL"]))
    need(
        [float(line.split(",")[-1]) for line in history] == [float(row[4]) for row in made["GOOGL"]], "history differs"
    )
    return f"{len(frame):,} rows of {len(symbols)} symbols, split by hash, list, pattern and time, equal the files"


def published(compose: Grid, grid: trellis.Grid, sessions: list[str]) -> str:
    mom, combo = load_strategies(str(EXAMPLES / "momentum.py"))[0], load_strategies(str(EXAMPLES / "combo.py"))[0]
    for strategy in (mom, combo):
        dataset = strategy.output.dataset
        until(
            f"the publish of {dataset}",
            lambda dataset=dataset: dataset in grid.datasets() and set(sessions) <= set(grid.sessions(dataset)),
            START_WAIT_S,
        )
    for strategy in (mom, combo):
        for session in sessions:
            day = dict(start=session, end=f"{session}T23:59:59")
            got, want = grid.read(strategy.output.dataset, **day), strategy.run(session=session, grid=grid)
            same = rows_of(got) == rows_of(want) or _values(got) == _values(want)
            need(same, f"{strategy.name} {session}: {rows_of(got)[:3]} is not {rows_of(want)[:3]}")
    return f"momentum and combo of {len(sessions)} sessions equal a run in this process"


def _values(frame: trellis.Frame) -> list[tuple[str, str]]:
    """Symbol and value of each row, in the columns' names."""
    header, *lines = frame.write("csv").decode().splitlines()
    names = header.split(",")
    symbol, value = names.index("symbol"), len(names) - 1
    return sorted((cells[symbol], cells[value]) for cells in (line.split(",") for line in lines))


def retried(compose: Grid, grid: trellis.Grid) -> str:
    until(
        "the publish of flaky", lambda: "signals.flaky" in grid.datasets() and len(grid.sessions("signals.flaky")) == 2
    )
    ledger = json.loads(grid.read("trellis.runs", symbols=["flaky"]).write("json"))
    first = sorted((row["attempt"], row["outcome"]) for row in ledger if row["session"] == SESSIONS[0])
    # On a busy machine a further attempt may fail because the lease was not renewed in time.
    outcomes = [outcome for _, outcome in first]
    need(outcomes[0] == "failed" and outcomes[-1] == "succeeded", f"the ledger has {first}")
    need([attempt for attempt, _ in first] == list(range(1, len(first) + 1)), f"the ledger has {first}")
    return f"flaky failed, was tried again and published; the ledger has its {len(first)} attempts"


def hardened(compose: Grid) -> str:
    for service in [*HEADS, *SHARDS, *UNITS, "store", "collector", *PAGES]:
        container = compose.inspect(service)
        need(container["Config"]["User"] == "10001:10001", f"{service} runs as {container['Config']['User']!r}")
        need(container["HostConfig"]["ReadonlyRootfs"], f"{service} can write to its root file system")
        need(container["HostConfig"]["CapDrop"] == ["ALL"], f"{service} has capabilities")
        bound = [each["HostIp"] for ports in container["HostConfig"]["PortBindings"].values() for each in ports or []]
        need(set(bound) <= {"127.0.0.1"}, f"{service} is published on {bound}")
    for service in [*HEADS, *SHARDS]:
        healthy = lambda service=service: compose.inspect(service)["State"]["Health"]["Status"] == "healthy"  # noqa: E731
        until(f"the health of {service}", healthy)
    return (
        "no process is root, writes to its root file system or has capabilities; ports are on loopback only; "
        "heads and shards say that they are healthy"
    )


QUESTIONS: list[tuple[str, dict[str, Any]]] = [
    ("equities.daily", dict(fields=["close"])),
    ("equities.daily", dict(fields=["open", "volume"], symbols=["AMZN", "WMT", "XOM"], start="2010-01-01")),
    ("equities.history", dict(fields=["close"], start="2011-06-01", end="2012-06-01")),
    ("signals.mom_12_1", dict()),
]


def reading(grid: trellis.Grid) -> Loop:
    """A loop of reads whose answers must not change."""
    right = [digest(grid, dataset, **question) for dataset, question in QUESTIONS]

    def each(n: int) -> None:
        dataset, question = QUESTIONS[n % len(QUESTIONS)]
        got = digest(grid, dataset, **question)
        need(got == right[n % len(QUESTIONS)], f"{dataset} {question} changed to {got[0]} rows")

    return Loop(each)


def collector_killed(compose: Grid, grid: trellis.Grid) -> str:
    days = iter(str(day) for day in _market.sessions() if "2010-01-01" <= str(day) <= "2011-12-31")
    lost = "sum by (service_name) (trellis_telemetry_dropped_total)"
    before = by_service(lost)

    def publish(_n: int) -> None:
        ticks.run(session=next(days), grid=grid, publish=True)

    with reading(grid) as reads, Loop(publish) as publishes:
        time.sleep(LOOP_BEFORE_S)
        run("docker", "kill", "-s", "KILL", compose.container("collector"))
        time.sleep(COLLECTOR_AWAY_S)
        need(not compose.inspect("collector")["State"]["Running"], "the collector runs")
        compose("start", "collector")
        back = compose.collector_is_back = time.time()
        time.sleep(LOOP_AFTER_S)
    # units log, and trace, only what they run: another session. Heads and shards have nothing to log
    compose.env["TRELLIS_SESSIONS"] = ",".join([*SESSIONS, SESSION_AFTER])
    compose("up", "-d", "--no-build", "--no-deps", "qcu-momentum")
    until("drops of heads and shards", lambda: {"trellis-head", "trellis-shard"} <= more(before, by_service(lost)))
    told = arrived(back, {"trellis-qcu"})
    for what, loop in (("reads", reads), ("publishes", publishes)):
        need(not loop.errors, f"{len(loop.errors)} of {loop.calls} {what} failed, first: {loop.errors[:1]}")
    return (
        f"the collector was away for {COLLECTOR_AWAY_S:.0f} s under {reads.calls} reads and {publishes.calls} "
        f"publishes: 0 failed, the longest took {max(reads.longest, publishes.longest):.2f} s; drops are counted; "
        f"then came {told}"
    )


def logs_again(compose: Grid) -> str:
    """Heads have logged the faults of shards since. head-1 has not ended since the collector was away."""
    query = '"service.instance.id":head-1 | stats count() lines'
    lines = lambda: int(lines_of(query, compose.collector_is_back)[0]["lines"])  # noqa: E731
    until("logs of head-1", lines)
    return f"{lines()} lines of head-1 have arrived since the collector came back"


def more(before: dict[str, float], now: dict[str, float]) -> set[str]:
    return {service for service, value in now.items() if value > before.get(service, 0)}


def pictures() -> str:
    install(chromium="chromium")
    here = ROOT / "deploy" / "pictures"
    run(sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", here / "requirements.txt")
    return run(sys.executable, here / "take.py", PICTURES, METRICS, STREAMS, TRACES)


def head_stopped(compose: Grid, grid: trellis.Grid) -> str:
    with reading(grid) as loop:
        time.sleep(LOOP_BEFORE_S)
        compose("stop", "head-0")
        need(compose.exit_code("head-0") == 0, f"head-0 exited with {compose.exit_code('head-0')}")
        time.sleep(LOOP_AFTER_S)
        compose("start", "head-0")
        time.sleep(LOOP_AFTER_S)
    need(not loop.errors, f"{len(loop.errors)} of {loop.calls} reads failed, first: {loop.errors[:1]}")
    return f"head-0 drained and came back under {loop.calls} reads: 0 failed, the longest took {loop.longest:.2f} s"


def shard_cut_off(compose: Grid, grid: trellis.Grid) -> str:
    network, container = f"{PROJECT}_grid", compose.container("shard-1")
    outcomes: list[str] = []
    known = [digest(grid, dataset, **question) for dataset, question in QUESTIONS]
    # no head has this field yet, so only shard-1 can answer
    anew = dict(fields=["high"], symbols=["GOOGL"], start="2015-01-01")
    rows, late = [row for row in _market.generate()["GOOGL"] if row[0] >= anew["start"]], []

    def needs_the_shard(_n: int) -> None:
        try:
            got = rows_of(grid.read("equities.history", **anew))
        except Unavailable as error:
            late.append(f"refused ({error.message})")
            time.sleep(0.25)
            return
        right = [float(line.split(",")[-1]) for line in got] == [float(row[2]) for row in rows]
        late.append("right" if right else "wrong")

    run("docker", "network", "disconnect", network, container)
    cut = time.monotonic()
    with reading_anew(grid, known, outcomes), Loop(needs_the_shard):
        try:
            time.sleep(LOOP_AFTER_S)
            need("right" not in late, "a head answered without the shard")
        finally:
            run("docker", "network", "connect", "--alias", "shard", "--alias", "shard-1", network, container)
        back = time.monotonic()
        until("a read of shard-1 after its return", lambda: "right" in late)
        took = time.monotonic() - back
    need("wrong" not in outcomes + late, "a read was answered with wrong rows")
    until(
        "right answers to all", lambda: [digest(grid, dataset, **question) for dataset, question in QUESTIONS] == known
    )
    return (
        f"shard-1 was off the network for {back - cut:.0f} s: {outcomes.count('right')} reads from memory were right, "
        f"{outcomes.count('refused')} refused, none wrong; what only shard-1 has was read {took:.1f} s after its return"
    )


def reading_anew(grid: trellis.Grid, right: list[tuple[int, str]], outcomes: list[str]) -> Loop:
    """A loop of reads that may be refused, but not be wrong."""

    def each(n: int) -> None:
        which = n % len(QUESTIONS)
        dataset, question = QUESTIONS[which]
        try:
            outcomes.append("right" if digest(grid, dataset, **question) == right[which] else "wrong")
        except Unavailable:
            outcomes.append("refused")

    return Loop(each)


def unit_killed(compose: Grid, grid: trellis.Grid) -> str:
    days = [str(day) for day in _market.sessions() if "2016-06-01" <= str(day) <= "2016-06-30"]
    compose.env["TRELLIS_SESSIONS"] = ",".join(days)
    compose("up", "-d", "--no-build", "--no-deps", "qcu-momentum", "qcu-combo")

    def done() -> int:
        return len([day for day in grid.sessions("signals.mom_12_1") if day in days])

    until("the first of many sessions", lambda: done() >= 2, START_WAIT_S)
    run("docker", "kill", "-s", "KILL", compose.container("qcu-momentum"))
    at = done()
    compose("start", "qcu-momentum")
    started = time.monotonic()
    published(compose, grid, days)
    took = time.monotonic() - started
    ledger = json.loads(grid.read("trellis.runs", symbols=["mom_12_1"]).write("json"))
    versions: dict[str, set[int]] = {}
    for row in ledger:
        if row["outcome"] == "succeeded" and row["session"] in days:
            versions.setdefault(row["session"], set()).add(row["output_version"])
    twice = [day for day, found in versions.items() if len(found) != 1]
    need(
        sorted(versions) == days and not twice,
        f"sessions {twice or sorted(set(days) - set(versions))} are not there once",
    )
    return f"momentum was killed after {at} of {len(days)} sessions and went on: each is published once ({took:.0f} s)"


def publisher_killed(compose: Grid, grid: trellis.Grid) -> str:
    days = [str(day) for day in _market.sessions() if str(day) >= "2012-01-01"]
    acknowledged: dict[str, int] = {}
    refused = 0
    place = iter(days)
    day = next(place)

    def each(_n: int) -> None:
        nonlocal day, refused
        try:
            ack = ticks.run(session=day, grid=grid, publish=True).published
        except TrellisError as error:
            refused += 1
            if not error.retryable:
                raise
            return
        acknowledged[day] = ack["version"]
        day = next(place)

    each(0)
    home = grid.describe("check.ticks")["home"]
    need(home == "shard-0", f"the home of check.ticks is {home}")
    with Loop(each) as loop:
        for kill in range(KILLS):
            enough = len(acknowledged) + PUBLISHES_BETWEEN_KILLS
            until(f"publishes before kill {kill + 1}", lambda enough=enough: len(acknowledged) >= enough or loop.errors)
            compose("kill", "-s", "KILL", "shard-0")
            compose("start", "shard-0")
        enough = len(acknowledged) + PUBLISHES_BETWEEN_KILLS
        until("publishes after the last kill", lambda: len(acknowledged) >= enough or loop.errors)
    need(not loop.errors, f"a publish failed for good: {loop.errors[:1]}")
    until("a read after the kills", lambda: len(grid.read("check.ticks")))
    lines = rows_of(grid.read("check.ticks"))
    counts: dict[str, int] = {}
    for line in lines:
        counts[line.split(",")[-1]] = counts.get(line.split(",")[-1], 0) + 1
    wrong = [day for day in acknowledged if counts.get(day.replace("-", "")) != 3]
    need(not wrong, f"acknowledged publishes are lost or doubled: {wrong}")

    def recorded() -> bool:
        ledger = json.loads(grid.read("trellis.runs", symbols=["ticks"]).write("json"))
        return set(acknowledged) <= {row["session"] for row in ledger if row["outcome"] == "succeeded"}

    # shard-0 is the ledger's home, too: the heads record a publish when they reach it again
    until("the record of every acknowledged publish", recorded)
    return (
        f"shard-0 was killed {KILLS} times under a loop of publishes: {len(acknowledged)} were acknowledged, "
        f"{refused} refused, 0 lost, 0 doubled; the ledger has them all"
    )


def still_right(compose: Grid, grid: trellis.Grid) -> str:
    told = imported(grid)
    published(compose, grid, SESSIONS)
    again = run(*compose.base, "run", "--rm", "trellis", "status", "--json", env=compose.env)
    heads = json.loads(again.splitlines()[-1])["heads"]
    need(len(heads) == 2, f"the command line inside the network sees {len(heads)} heads")
    return f"after all this {told}; `trellis status` in a container sees both heads by DNS"


def drains(compose: Grid) -> str:
    started = time.monotonic()
    compose("stop", *UNITS, *HEADS, *SHARDS, "store")
    took = time.monotonic() - started
    codes = {service: compose.exit_code(service) for service in [*UNITS, *HEADS, *SHARDS, "store"]}
    need(set(codes.values()) == {0}, f"exit codes {codes}")
    return f"all processes drained after SIGTERM and exited with 0, in {took:.1f} s"


def main() -> int:
    os.environ.pop("TRELLIS_URL", None)
    # a publish while the ledger's shard is killed; a step looks at the ledger later
    warnings.filterwarnings("ignore", message=".*not recorded in the run ledger yet")
    shutil.rmtree(LOGS, ignore_errors=True)
    passed = failed = 0
    began, began_at = time.monotonic(), time.time()

    def step(name: str, prove: Callable[[], str]) -> bool:
        nonlocal passed, failed
        started = time.monotonic()
        try:
            told = prove()
        except Exception as error:
            failed += 1
            print(f"FAILED {name}: {error if isinstance(error, Failed) else repr(error)}", flush=True)
            return False
        passed += 1
        print(f"ok     {name} ({time.monotonic() - started:.0f} s): {told}", flush=True)
        return True

    def telemetry() -> str:
        run(ROOT / "deploy" / "images" / "telemetry" / "build", TELEMETRY, wait=None)
        env = {"TELEMETRY_DIR": str(TELEMETRY)}
        return ", ".join(run(ROOT / "deploy" / "images" / "telemetry" / "images", wait=None, env=env).splitlines()[-4:])

    def images() -> str:
        run(ROOT / "deploy" / "images" / "base", wait=None)
        return ", ".join(run(ROOT / "deploy" / "images" / "build", wait=None).splitlines()[-5:])

    with contextlib.ExitStack() as stack:
        if (
            step("engine", lambda: f"docker answers; it {stack.enter_context(engine())}")
            and step("images", images)
            and step("telemetry images", telemetry)
        ):
            compose = Grid()
            stack.callback(compose, "down", "-v", "--remove-orphans", "-t", "20")
            stack.callback(lambda: failed and compose.keep_logs())
            if step("up", lambda: starts(compose)):
                with trellis.connect(f"static://{URL}", unit="check") as grid:
                    step("import", lambda: imported(grid))
                    step("units", lambda: published(compose, grid, SESSIONS))
                    step("a unit that fails", lambda: retried(compose, grid))
                    step("containers", lambda: hardened(compose))
                    step("telemetry", lambda: arrived(began_at, set(PROCESSES)))
                    step("the collector killed", lambda: collector_killed(compose, grid))
                    step("pictures", pictures)
                    step("a head stopped", lambda: head_stopped(compose, grid))
                    step("a shard cut off", lambda: shard_cut_off(compose, grid))
                    step("a unit killed", lambda: unit_killed(compose, grid))
                    step("a shard killed", lambda: publisher_killed(compose, grid))
                    step("logs again", lambda: logs_again(compose))
                    step("still right", lambda: still_right(compose, grid))
                step("the drain", lambda: drains(compose))
    if failed:
        print(f"logs are in {LOGS.relative_to(ROOT)}")
    print(f"in {time.monotonic() - began:.0f} s")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    # docker and its containers must be taken down after SIGTERM, too
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
