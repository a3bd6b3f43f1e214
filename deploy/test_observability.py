"""The collector's configurations, the dashboards and the alerts, against the real programs.

    .venv/bin/python -m pytest -q deploy/test_observability.py

Needs Prometheus with promtool (apt-get install prometheus) and what deploy/images/telemetry/build makes, in
target/telemetry or in the folder that TELEMETRY_DIR names.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import gzip
import http.server
import json
import math
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

DEPLOY = pathlib.Path(__file__).resolve().parent
ROOT = DEPLOY.parent
sys.path.insert(0, str(DEPLOY / "dashboards"))

import make  # noqa: E402
import names  # noqa: E402
import panels  # noqa: E402

import alerts  # noqa: E402

TELEMETRY = pathlib.Path(os.environ.get("TELEMETRY_DIR", ROOT / "target/telemetry"))
# long, because the machine may compile at the same time
WAIT_S = 120.0
GRID_S = 300.0
# All panels together have this long to show something. The page asks at points of time five seconds apart, so it shows
# a sample up to five seconds after it came.
PAGE_S = 15.0


def installed(name: str) -> str:
    """A program of a Debian package."""
    path = shutil.which(name)
    assert path, f"{name} is missing: apt-get install prometheus"
    return path


def built(name: str) -> str:
    """A program of deploy/images/telemetry."""
    path = TELEMETRY / name
    assert path.exists(), f"{path} is missing: deploy/images/telemetry/build --only {name}"
    return str(path)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def until(what: str, ask: Callable[[], Any], wait_s: float = WAIT_S) -> Any:
    """Asks until the answer is true."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            if answer := ask():
                return answer
        except OSError:
            pass
        assert time.monotonic() < deadline, f"{what}: not within {wait_s:.0f} s"
        time.sleep(0.1)


@contextlib.contextmanager
def running(log: pathlib.Path, *command: str, **environment: str) -> Iterator[None]:
    """Runs a program. Its log is in the error if it ends by itself."""
    with open(log, "wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **environment})
    try:
        yield
        assert process.poll() is None, f"{command[0]} has ended:\n{log.read_text()[-4000:]}"
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=20) as answer:
        return json.load(answer)


def alive(url: str) -> bool:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return answer.status == 200


# --- without running anything


def test_the_files_are_made_from_their_source() -> None:
    differ = [path.name for path, text in make.files().items() if not path.exists() or path.read_text() != text]
    assert not differ, "run deploy/dashboards/make.py"


def code() -> str:
    folders = [ROOT / name / "src" for name in ("fabric", "head-node", "shard", "qcu-runtime")]
    return "\n".join(path.read_text() for folder in folders for path in folder.rglob("*.rs"))


def test_every_metric_and_label_exists_in_the_code() -> None:
    text = code()
    missing = [metric.name for metric in names.CODE if f'"{metric.name}"' not in text]
    missing += [label for label in names.LABELS if not re.search(f'"{label.replace("_", "[._]")}"', text)]
    assert not missing


def test_every_metric_that_is_named_is_used() -> None:
    used = "\n".join(make.files().values())
    unused = [str(metric) for metric in [*names.CODE, *names.COLLECTOR] if str(metric) not in used]
    assert not unused


def test_every_alert_has_its_paragraph_in_the_runbook() -> None:
    pages = [DEPLOY / "README.md"]
    runbook = "".join(path.read_text() for path in pages if path.exists())
    titles = re.findall(r"^#+ (.*)$", runbook, re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles}
    missing = [alert.name for group in alerts.ALERTS.values() for alert in group if alert.anchor not in anchors]
    assert not missing
    links = set(re.findall(r"\]\(#([^)]*)\)", runbook))
    assert links <= anchors


def test_promtool_accepts_the_rules_and_each_alert_fires_only_on_its_example() -> None:
    for command in (["check", "rules", "trellis.yaml"], ["test", "rules", "trellis.test.yaml"]):
        done = subprocess.run([installed("promtool"), *command], cwd=DEPLOY / "alerts", capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["gateway", "sampler", "local"])
def test_the_collector_accepts_its_configurations(name: str) -> None:
    done = subprocess.run(
        [built("otelcol"), "validate", "--config", str(DEPLOY / f"collector/{name}.yaml")],
        env={"SAMPLER_HOST": "samplers.internal", "VENDOR_OTLP_ENDPOINT": "https://otlp.example.com"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


# --- a grid's metrics on a real Prometheus


@contextlib.contextmanager
def collector(folder: pathlib.Path, name: str, *overrides: str, **environment: str) -> Iterator[tuple[int, int]]:
    """Runs the collector with one of its configurations, on free ports. Gives those of gRPC and HTTP."""
    grpc, web, health = free_port(), free_port(), free_port()
    ports = [
        f"receivers::otlp::protocols::grpc::endpoint: 127.0.0.1:{grpc}",
        f"extensions::health_check::endpoint: 127.0.0.1:{health}",
    ]
    if name != "sampler":
        ports.append(f"receivers::otlp::protocols::http::endpoint: 127.0.0.1:{web}")
    command = [built("otelcol"), "--config", str(DEPLOY / f"collector/{name}.yaml")]
    for override in [*ports, *overrides]:
        command += ["--config", f"yaml:{override}"]
    with running(folder / f"{name}.log", *command, **environment):
        until(f"the collector ({name})", lambda: alive(f"http://127.0.0.1:{health}/"))
        yield grpc, web


def open_metrics(victoria: str, start: float, end: float) -> str:
    """Everything that VictoriaMetrics has, as promtool reads it. Histograms get `le` instead of `vmrange`."""
    query = urllib.parse.urlencode({"match[]": '{__name__!=""}', "start": start, "end": end})
    with urllib.request.urlopen(f"{victoria}/api/v1/export?{query}", timeout=60) as answer:
        exported = [json.loads(line) for line in answer]
    # a series is its name and labels; values by time
    found: dict[tuple[Any, ...], dict[int, float]] = collections.defaultdict(dict)
    ranges: dict[tuple[Any, ...], dict[int, list[tuple[float, float]]]] = collections.defaultdict(dict)
    for one in exported:
        labels = dict(one["metric"])
        name, upper = labels.pop("__name__"), labels.pop("vmrange", None)
        series = (name, *sorted(labels.items()))
        for value, stamp in zip(one["values"], one["timestamps"], strict=True):
            if upper is None:
                found[series][stamp] = value
            else:
                ranges[series].setdefault(stamp, []).append((float(upper.split("...")[1]), value))
    bounds = {f"{bound:g}": bound for bound in (10 ** (exponent / 4) for exponent in range(-24, 45))}
    for series, stamps in ranges.items():
        for stamp, points in stamps.items():
            for le, bound in {**bounds, "+Inf": math.inf}.items():
                found[(*series, ("le", le))][stamp] = sum(value for upper, value in points if upper <= bound)
    lines = []
    for (name, *labels), values in sorted(found.items()):
        pairs = ",".join(f"{key}={json.dumps(text)}" for key, text in labels)
        lines += [f"{name}{{{pairs}}} {value} {stamp / 1000}" for stamp, value in sorted(values.items())]
    return "\n".join([*lines, "# EOF", ""])


@dataclasses.dataclass
class Observed:
    """What a grid's metrics show."""

    ask: Callable[[str], list[Any]]  # on Prometheus
    on_page: dict[str, list[Any]]  # by VictoriaMetrics' expression


ALL = [expr for dashboard in panels.DASHBOARDS for expr in make.expressions(dashboard)]


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    """Runs a grid whose metrics go through the collector and VictoriaMetrics into a Prometheus."""
    folder = tmp_path_factory.mktemp("observed")
    port = free_port()
    victoria = f"http://127.0.0.1:{port}"
    pages = [
        f"-storageDataPath={folder / 'victoria'}",
        f"-httpListenAddr=127.0.0.1:{port}",
        "-opentelemetry.usePrometheusNaming",
        # by default it hides the newest half minute
        "-search.latencyOffset=1s",
        f"-vmui.customDashboardsPath={DEPLOY / 'dashboards/vmui'}",
    ]
    start = time.time() - 5
    with running(folder / "victoria.log", built("victoria-metrics"), *pages):
        until("VictoriaMetrics", lambda: alive(f"{victoria}/health"))
        titles = {page["title"] for page in get(f"{victoria}/vmui/custom-dashboards")["dashboardsSettings"]}
        assert titles == {dashboard.title for dashboard in panels.DASHBOARDS}
        fast = ["connectors::span_metrics::metrics_flush_interval: 1s"]
        with collector(folder, "local", *fast, METRICS_URL=victoria) as (grpc, _):
            environment = {
                **os.environ,
                "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{grpc}",
                "OTEL_METRIC_EXPORT_INTERVAL": "1000",
                "OTEL_BSP_SCHEDULE_DELAY": "500",
            }
            environment.pop("TRELLIS_URL", None)
            grid = subprocess.run(
                [sys.executable, str(DEPLOY / "observed_grid.py")],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=GRID_S,
            )
            assert grid.returncode == 0, grid.stdout + grid.stderr
            # the collector reports its own queues each five seconds
            query = f"{victoria}/api/v1/query?query={names.COLLECTOR_QUEUE}"
            until("the collector's own metrics", lambda: get(query)["data"]["result"])
            alive(f"{victoria}/internal/force_flush")
        end = time.time()

        def page(expr: str) -> list[Any]:
            # a step of a minute may have none in the short life of this grid
            asked = expr.replace(":1m]", ":1s]")
            query = urllib.parse.urlencode({"query": asked, "start": start, "end": time.time(), "step": "5s"})
            return get(f"{victoria}/api/v1/query_range?{query}")["data"]["result"]

        on_page = {expr: page(expr) for expr in map(make.in_vmui, ALL)}
        deadline = time.monotonic() + PAGE_S
        while time.monotonic() < deadline and (empty := [expr for expr, found in on_page.items() if not found]):
            time.sleep(0.5)
            on_page |= {expr: page(expr) for expr in empty}
        text = folder / "metrics.txt"
        text.write_text(open_metrics(victoria, start, end))
    data = folder / "prometheus"
    blocks = [
        installed("promtool"),
        "tsdb",
        "create-blocks-from",
        "openmetrics",
        "--quiet",
        str(text),
        str(data),
    ]
    done = subprocess.run(blocks, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (folder / "prometheus.yml").write_text("")
    port = free_port()
    command = [
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={data}",
        "--storage.tsdb.retention.time=1y",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with running(folder / "prometheus.log", installed("prometheus"), *command):
        until("Prometheus", lambda: alive(f"http://127.0.0.1:{port}/-/ready"))

        def ask(expr: str) -> list[Any]:
            # at the end, and when a whole minute has passed since
            found = []
            for moment in (end, end + 90):
                query = urllib.parse.urlencode({"query": expr, "time": moment})
                found += get(f"http://127.0.0.1:{port}/api/v1/query?{query}")["data"]["result"]
            return found

        yield Observed(ask, on_page)


EXPRESSIONS = [
    pytest.param(expr, id=f"{dashboard.name}: {panel.title} {i}")
    for dashboard in panels.DASHBOARDS
    for _, row in dashboard.rows
    for panel in row
    for i, (expr, _) in enumerate(panel.lines)
]


@pytest.mark.parametrize("expr", EXPRESSIONS)
def test_every_panel_shows_something(observed: Observed, expr: str) -> None:
    found = observed.ask(expr.replace(panels.WINDOW, "[5m]").replace(panels.CHOSEN, ".+"))
    values = [float(series["value"][1]) for series in found]
    assert [value for value in values if not math.isnan(value)], f"no value in Prometheus: {expr}"
    assert observed.on_page[make.in_vmui(expr)], f"no value in VictoriaMetrics: {expr}"


@pytest.mark.parametrize(
    "alert", [alert for group in alerts.ALERTS.values() for alert in group], ids=lambda alert: alert.name
)
def test_every_alert_is_an_expression_that_prometheus_evaluates(observed: Observed, alert: alerts.Alert) -> None:
    observed.ask(alert.expr)


# --- production: a gateway and a sampler before a vendor


class Vendor:
    """Takes OTLP as JSON, and keeps it."""

    def __init__(self) -> None:
        self.received: dict[str, list[Any]] = collections.defaultdict(list)
        vendor = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                # the collector's own metrics are protobuf
                if self.headers["content-type"] == "application/json":
                    vendor.received[self.path].append((self.headers, json.loads(body)))
                else:
                    vendor.received["own"].append(body)
                self.send_response(200)
                self.send_header("content-type", self.headers["content-type"])
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def spans(self) -> dict[str, set[str]]:
        """The names of the spans of each trace."""
        traces: dict[str, set[str]] = collections.defaultdict(set)
        for _, body in self.received["/v1/traces"]:
            for resource in body["resourceSpans"]:
                for scope in resource["scopeSpans"]:
                    for span in scope["spans"]:
                        traces[span["traceId"]].add(span["name"])
        return traces

    def metrics(self, name: str) -> list[Any]:
        return [
            metric
            for _, body in self.received["/v1/metrics"]
            for resource in body["resourceMetrics"]
            for scope in resource["scopeMetrics"]
            for metric in scope["metrics"]
            if metric["name"] == name
        ]


def post(port: int, path: str, body: Any) -> None:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert answer.status == 200


def span(trace: int, name: str, ms: int, *, service: str = "trellis-head", error: bool = False) -> Any:
    """A trace of one span that ends now."""
    end = time.time_ns()
    return {
        "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": service}}]},
        "scopeSpans": [
            {
                "spans": [
                    {
                        "traceId": f"{trace:032x}",
                        "spanId": f"{trace % 2**64:016x}",
                        "name": name,
                        "kind": 2,
                        "startTimeUnixNano": str(end - ms * 1_000_000),
                        "endTimeUnixNano": str(end),
                        "status": {"code": 2} if error else {},
                    }
                ]
            }
        ],
    }


def count_of(value: int, started: int) -> Any:
    """A cumulative counter."""
    point = {"asInt": str(value), "timeUnixNano": str(time.time_ns()), "startTimeUnixNano": str(started)}
    counter = {"aggregationTemporality": 2, "isMonotonic": True, "dataPoints": [point]}
    metrics = [{"name": "trellis.probe.count", "sum": counter}]
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "probe"}}]}
    return {"resourceMetrics": [{"resource": resource, "scopeMetrics": [{"metrics": metrics}]}]}


READ, PUT = names.UNIT_READ, names.UNIT_PUBLISH
# traces that are kept whatever the share
KEPT = [
    span(1, READ, 5, error=True),
    span(2, READ, 1500),
    span(3, PUT, 5),
    span(4, "run", 5, service=names.QCU),
    span(5, READ, 5, service=names.QCU),
]
ORDINARY = 2000


def test_gateway_and_sampler_keep_what_matters_and_count_everything(tmp_path: pathlib.Path) -> None:
    vendor = Vendor()
    fast = "processors::tail_sampling::decision_wait: 2s"
    as_json = "exporters::otlp_http/vendor::encoding: json"
    environment = {
        "VENDOR_OTLP_ENDPOINT": vendor.url,
        "VENDOR_AUTHORIZATION": "secret",
        "SAMPLE_PERCENT": "10",
    }
    with collector(tmp_path, "sampler", fast, as_json, **environment) as (sampler, _):
        overrides = [
            as_json,
            "connectors::span_metrics::metrics_flush_interval: 1s",
            f'exporters::load_balancing/traces::resolver::dns::port: "{sampler}"',
            f'exporters::load_balancing/metrics::resolver::dns::port: "{sampler}"',
        ]
        with collector(tmp_path, "gateway", *overrides, SAMPLER_HOST="localhost", **environment) as (_, web):
            # as random as ids are: the share is taken by their hash
            ids = random.Random(0)
            rest = [span(ids.getrandbits(128), READ, 5) for _ in range(ORDINARY)]
            post(web, "/v1/traces", {"resourceSpans": [*KEPT, *rest]})
            started = time.time_ns()
            for value in (10, 25):
                post(web, "/v1/metrics", count_of(value, started))
                time.sleep(1.5)

            def whole() -> bool:
                kept = set(vendor.spans())
                return {f"{trace:032x}" for trace in range(1, 6)} <= kept and len(kept) > 5

            until("the traces that are kept", whole)
            until("span metrics", lambda: vendor.metrics("traces.span.metrics.duration"))
            until("a delta", lambda: len(vendor.metrics("trellis.probe.count")) >= 2)
    ordinary = len(vendor.spans()) - len(KEPT)
    # 10 % of 2,000 are 200; the deviation is 13
    assert 120 < ordinary < 280
    points = [
        point
        for metric in vendor.metrics("traces.span.metrics.duration")
        for point in metric["histogram"]["dataPoints"]
    ]
    # before any is sampled, and as deltas
    assert sum(int(point.get("count", 0)) for point in points) == ORDINARY + len(KEPT)
    assert all(m["histogram"]["aggregationTemporality"] == 1 for m in vendor.metrics("traces.span.metrics.duration"))
    assert any(exemplar["traceId"] for point in points for exemplar in point.get("exemplars", []))
    deltas = [int(m["sum"]["dataPoints"][0].get("asInt", 0)) for m in vendor.metrics("trellis.probe.count")]
    assert sum(deltas) == 25
    assert all(headers["authorization"] == "secret" for headers, _ in vendor.received["/v1/traces"])
