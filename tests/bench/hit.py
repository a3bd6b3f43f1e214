"""Warm hits read by the Rust client, compared with gRPC and loopback TCP alone: `hit-bench`.

Its JSON has a ratio under each key `A_of_B_p50` and `A_of_B_rps`. All ratios are written. The table shows
only those that fit the size of the answer: small answers compared with the echo, large ones with TCP.
"""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path
from typing import Any

from grid import OUT, ROUNDS, SPAN, built, grid, start, stop
from market import LARGE, QUESTIONS, SEED
from report import Report
from versions import WIRE, ours

# Cores of the servers, and of the client.
PLACEMENTS = {"two cores": ("1", "0"), "one core": ("0", "0")}
# (placement, question, connections, ratio). `drain` reads the answer and drops it, as the TCP floor does.
BARS = {
    ("two cores", "2,520 rows", "1", "hit_of_echo_p50"): 1.15,
    ("one core", "2,520 rows", "1", "hit_of_echo_p50"): 1.8,
    ("two cores", "2,520 rows", "16", "hit_of_echo_rps"): 0.70,
    ("two cores", "98,280 x 6", "16", "drain_of_tcp_rps"): 0.95,
}
FLOORS = {"echo": "tonic unary echo", "tcp": "loopback TCP"}


def table(state: Path) -> None:
    title = f"hit path, Rust client: medians of {ROUNDS} rounds, ratios inside each round"
    report = Report("hit", title, ours(WIRE))
    bench = built("hit-bench")
    if bench is None:
        return
    chance = random.Random(SEED)
    for placement, (servers, client) in PLACEMENTS.items():
        floor = start([bench, "floor"], cpus=servers, stdout=subprocess.PIPE, text=True)
        try:
            with grid(state, servers) as running:
                floors = floor.stdout.readline().split()
                for question in QUESTIONS.values():
                    command = ["taskset", "-c", client, bench, "run", running.head, *floors]
                    command += [question.ticket(), str(ROUNDS), str(SPAN), str(chance.getrandbits(32))]
                    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                    _report(report, placement, question.name, json.loads(done.stdout))
        finally:
            stop(floor)
    report.close(OUT)


def _shown(question: str, connections: str) -> set[str]:
    if question in LARGE:
        return {"drain_of_tcp_rps", "hit_of_tcp_rps"}
    return {"hit_of_echo_p50"} if connections == "1" else {"hit_of_echo_rps"}


def _report(report: Report, placement: str, question: str, measured: dict[str, Any]) -> None:
    cases = {key: value for key, value in measured.items() if isinstance(value, dict)}
    shared = {key: value for key, value in measured.items() if key not in cases}
    for connections, case in cases.items():
        for key, value in case.items():
            target, of, rest = key.partition("_of_")
            if not of:
                continue
            floor, _, what = rest.partition("_")
            made_of = {
                name: case[name] for name in case if name.startswith((f"{target}_{what}", f"{floor}_{what}"))
            }
            report.add(
                f"{question}, {connections} conn, {placement}: {target} / {floor}, {what}",
                value,
                "x",
                bar=BARS.get((placement, question, connections, key)),
                better="lower" if what == "p50" else "higher",
                peer=FLOORS.get(floor, floor),
                detail={**{name: round(number, 1) for name, number in made_of.items()}, **shared},
                shown=key in _shown(question, connections),
            )
