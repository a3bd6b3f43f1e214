"""`make bench`: figures of a local grid, compared with floors and alternatives in one run on one machine.

`run.py [TABLE...]` prints tables, and writes `target/bench/TABLE.json`: arrays of {name, value, unit,
bar, better, peer, detail, versions}. Figures are ratios inside a round, then the median over rounds;
absolute times of a shared machine mean little. A peer that cannot be installed is skipped with a line.

| table | subject | file |
| --- | --- | --- |
| hit | warm reads by the Rust client, compared with gRPC and TCP alone | `hit` |
| peers | the same reads by Python clients from the grid and its alternatives | `peers` |
| herd64 | 64 overlapping windows of one symbol at once | `herd64` |
| scenarios | a head under load: memory, fairness, freshness | `rust` |
| publish | publishes, compared with Delta tables and PostgreSQL | `publish` |
| telemetry | hits and publishes with telemetry on, compared with off | `rust` |
| scale | a shard with up to 40,000 small datasets; only if it is asked for: it takes long | `rust` |
| soak | a thousand outputs for TRELLIS_SOAK_SECONDS: does a process grow? Runs only if it is named | `rust` |

The variables ROUNDS (7) and SPAN (0.25: seconds for a target in a round) set the length of a run;
SCALE_COUNTS has the numbers of datasets of `scale`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import herd64
import hit
import market
import peers
import publish
import rust
from grid import OUT, ROOT, ROUNDS, SPAN, grid
from report import Failure, say

# Tables that take long, and are measured only if they are asked for.
LONG = {"scale", "soak"}
# Seconds for which `scale` publishes, and for which it watches an idle shard.
SCALE_SECONDS = 30
# Seconds of the table `soak`.
SOAK = float(os.environ.get("TRELLIS_SOAK_SECONDS", "60"))


class Prices:
    """The folder with the benches' prices in a lake. It is made when the first table needs it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: Path | None = None

    def state(self) -> Path:
        if self.made is None:
            say("== making prices, and importing them")
            self.made = self.folder / "state"
            with grid(self.made) as running:
                for dataset, symbols in (
                    (market.DAILY, market.DAILY_SYMBOLS),
                    (market.MINUTE, herd64.MINUTE_SYMBOLS),
                ):
                    path = self.folder / f"{dataset}.parquet"
                    market.write(path, dataset, symbols)
                    running.load(dataset, path)
                    path.unlink()
        return self.made


def tables(folder: Path) -> dict[str, Callable[[], None]]:
    prices = Prices(folder)
    return {
        "hit": lambda: hit.table(prices.state()),
        "peers": lambda: peers.table(folder / "peers", prices.state()),
        "herd64": lambda: herd64.table(folder / "herd64", prices.state()),
        "scenarios": lambda: rust.table(
            "scenarios", "a head node under load", "head-bench", lambda programs: [programs / "head-node"]
        ),
        "telemetry": lambda: telemetry(folder / "telemetry"),
        "publish": lambda: publish.table(folder / "publish"),
        "scale": lambda: scale(folder / "scale"),
        "soak": lambda: rust.table(
            "soak", "does a process grow?", "soak-bench", lambda _: [SOAK, folder / "soak"]
        ),
    }


def scale(folder: Path) -> None:
    counts = os.environ.get("SCALE_COUNTS", "10 1000 10000 40000").split()
    title = "a shard with many small datasets"
    rust.table("scale", title, "scale-bench", lambda _: [folder, SCALE_SECONDS, *counts])


def telemetry(folder: Path) -> None:
    """`OTEL_COLLECTOR`: the endpoint of a collector; without it the bench drops what is exported."""
    title = f"what telemetry costs: medians of {ROUNDS} rounds, ratios to telemetry off inside each round"
    collector = [os.environ["OTEL_COLLECTOR"]] if "OTEL_COLLECTOR" in os.environ else []
    rust.table("telemetry", title, "telemetry-bench", lambda _: [ROUNDS, SPAN, folder, *collector])


def main(wanted: list[str]) -> None:
    # ends by unwinding, so that every server is stopped
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="trellis-bench-") as temporary:
        known = tables(Path(temporary))
        if unknown := set(wanted) - known.keys():
            sys.exit(f"no table {', '.join(sorted(unknown))}: there are {', '.join(known)}")
        failed = 0
        for name in wanted or [name for name in known if name not in LONG]:
            try:
                known[name]()
            except (Failure, subprocess.CalledProcessError) as failure:
                say(f"  FAILED: {failure}")
                failed += 1
    say(f"\nwritten: {OUT.relative_to(ROOT)}/*.json, in {time.monotonic() - began:.0f} s")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
