"""How much of its budget a head's cache can still use after ten million insertions by several writers.

The cache is private to the head's crate, so a test of that crate fills it, and prints what it then holds.
"""

from __future__ import annotations

import json
import subprocess

from grid import OUT, PROFILE, ROOT
from report import Failure, Report
from versions import STORE, ours

TEST = "capacity_after_ten_million_insertions"
USABLE = 0.98


def table() -> None:
    report = Report("capacity", "a head's cache after ten million insertions", ours(STORE))
    command = ["cargo", "test", "-q", "--profile", PROFILE, "-p", "trellis-head", "--lib"]
    command += ["--", "--ignored", "--nocapture", TEST]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    told = next((line for line in done.stdout.splitlines() if line.startswith("{")), None)
    if told is None:
        raise Failure(f"{TEST} ended with {done.returncode} and told nothing")
    measured = json.loads(told)
    report.add(
        "usable capacity after 10^7 insertions / budget",
        measured["resident_bytes"] / measured["budget_bytes"],
        "x",
        bar=USABLE,
        better="higher",
        peer="the budget",
        detail=measured,
    )
    report.close(OUT)
