#!/usr/bin/env python3
"""Takes the pictures of the pages of a running grid, and fails if a page is empty.

    make compose TELEMETRY=1                 in another shell, until the units have published
    .venv/bin/pip install -r deploy/pictures/requirements.txt
    .venv/bin/python deploy/pictures/take.py [FOLDER [METRICS_URL LOGS_URL TRACES_URL]]

Needs Chromium (apt-get install chromium). It looks at what the pages show, not at the pictures: panels with series,
lines of the log, spans of a trace through unit, head and shard. FOLDER is the one of this file, the pages are those of
compose.yaml.
"""

from __future__ import annotations

import json
import pathlib
import shutil
import sys
import time
import urllib.request

from playwright.sync_api import Page, sync_playwright

HERE = pathlib.Path(__file__).resolve().parent
URLS = ["http://127.0.0.1:8428", "http://127.0.0.1:9428", "http://127.0.0.1:9411"]
SERVICES = ["trellis-qcu", "trellis-head", "trellis-shard"]

# a page draws within a second; on a busy machine within half a minute
DRAWN_WAIT_MS = 60_000
# as large as a page of the README shows them
SIZE = {"width": 1400, "height": 900}
# nothing else asks the network, and the user may be root
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-sync"]
# the first rows of the dashboard "the grid": one panel has nothing to show if no read has failed
PANELS = ["Processes", "Reads", "Answers", "Publishes"]
LINES_MIN = 10

# In each panel: its title, and how many series its legend names.
DRAWN_PANELS = """() => Object.fromEntries([...document.querySelectorAll('.vm-predefined-panel')].map(panel => [
    panel.querySelector('.vm-predefined-panel-header').textContent.trim(),
    panel.querySelectorAll('.vm-legend-item').length]))"""
DRAWN_LINES = "() => document.querySelectorAll('.vm-group-logs-row').length"
# How many rows of the trace are spans of each service: their text is "service: name".
DRAWN_SPANS = """services => {
    const leaves = [...document.querySelectorAll('*')].filter(each => !each.children.length);
    const rows = service => leaves.filter(leaf => leaf.textContent.startsWith(service + ': ')).length;
    return Object.fromEntries(services.map(service => [service, rows(service)]));
}"""


def drawn(page: Page, url: str, script: str, whole, argument=None):
    """What a page shows as soon as `whole` says that it is enough."""
    page.goto(url)
    deadline = time.monotonic() + DRAWN_WAIT_MS / 1000
    while not whole(shown := page.evaluate(script, argument)):
        if time.monotonic() > deadline:
            sys.exit(f"{url} is empty, or a part of it is: it shows {shown}")
        page.wait_for_timeout(200)
    return shown


def newest_run(traces: str) -> str:
    """The id of the newest trace of a unit's run that goes through head and shard."""
    query = f"{traces}/zipkin/api/v2/traces?serviceName=trellis-qcu&spanName=run&limit=20"
    with urllib.request.urlopen(query) as answer:
        found = json.load(answer)
    whole = [trace for trace in found if {span["localEndpoint"]["serviceName"] for span in trace} >= set(SERVICES)]
    if not whole:
        sys.exit(f"{query} has no trace through {', '.join(SERVICES)}, but {len(found)} others")
    return max(whole, key=lambda trace: trace[0]["timestamp"])[0]["traceId"]


def main(folder: str = str(HERE), metrics: str = URLS[0], logs: str = URLS[1], traces: str = URLS[2]) -> None:
    target = pathlib.Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    chromium = shutil.which("chromium") or sys.exit("chromium is missing: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport=SIZE)
        panels = drawn(
            page,
            f"{metrics}/vmui/#/dashboards?g0.range_input=15m&g0.relative_time=last_15_minutes",
            DRAWN_PANELS,
            lambda shown: all(shown.get(title) for title in PANELS),
        )
        page.screenshot(path=target / "metrics.png")
        lines = drawn(
            page,
            f"{logs}/select/vmui/#/?query=*&g0.range_input=15m&g0.relative_time=last_15_minutes",
            DRAWN_LINES,
            lambda shown: shown >= LINES_MIN,
        )
        page.screenshot(path=target / "logs.png")
        spans = drawn(
            page,
            f"{traces}/zipkin/traces/{newest_run(traces)}",
            DRAWN_SPANS,
            lambda shown: all(shown.values()),
            SERVICES,
        )
        page.screenshot(path=target / "traces.png")
        browser.close()
    shown = f"{sum(panels.values())} series in {len(panels)} panels, {lines} log lines, {sum(spans.values())} spans"
    print(f"pictures of {shown}: {target}")


if __name__ == "__main__":
    main(*sys.argv[1:])
