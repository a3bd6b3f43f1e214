"""`make bench`: figures of a local grid beside floors and peers, in one run on one machine.

Prints tables, and writes `target/bench/*.json`: arrays of {name, value, unit, bar, better, peer, detail,
versions}. Figures are ratios inside a round, then the median over rounds; absolute times of a shared machine
mean little. A peer that is not installed is skipped with a line.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "target" / "bench"
PROFILE = os.environ.get("PROFILE", "demo")
ROUNDS = int(os.environ.get("ROUNDS", "7"))
# Seconds that one target is timed for in one round.
SPAN = float(os.environ.get("SPAN", "0.4"))
SYMBOL = "AMZN"
# The last ten years of the market: 2,520 sessions, more or less.
QUESTION = {
    "dataset": "equities.daily",
    "fields": ["close"],
    "symbols": [SYMBOL],
    "start": "2008-02-08",
    "end": "2018-02-08",
}


def say(*words: object) -> None:
    print(*words, flush=True)


def program(name: str) -> str:
    return str(ROOT / ".venv" / "bin" / name)


class Grid:
    """`trellis up` in a folder of its own, pinned to `cpus`."""

    def __init__(self, folder: Path, cpus: str, heads: int = 1, shards: int = 1) -> None:
        command = ["taskset", "-c", cpus, program("trellis"), "up", "--json", "--state", str(folder)]
        command += ["--heads", str(heads), "--shards", str(shards)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"the grid did not start; its logs are in {folder}/logs")
        self.ready = json.loads(line)
        self.url = self.ready["url"]
        self.head = self.ready["heads"][0]
        self.head = self.head if isinstance(self.head, str) else self.head["listen"]
        self.state = Path(self.ready["state"])

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=60)


def load(grid: Grid, market: Path) -> None:
    for path in sorted(market.glob("*.csv")):
        header = path.open().readline().strip().split(",")
        command = [
            program("trellis"),
            "import",
            "equities.daily",
            str(path),
            "--ts-column",
            header[0] if "date" in header[0].lower() else "date",
        ]
        symbol = next((name for name in header if name.lower() in ("symbol", "name", "ticker")), None)
        command += ["--symbol-column", symbol] if symbol else ["--symbol", path.stem]
        subprocess.run(
            command, check=True, env={**os.environ, "TRELLIS_URL": grid.url}, stdout=subprocess.DEVNULL
        )


class Report:
    def __init__(self) -> None:
        self.figures: list[dict] = []

    def add(
        self, name: str, value: float, unit: str, bar: float | None, better: str, peer: str, detail: dict
    ) -> None:
        versions = detail.pop("versions", {})
        self.figures.append(
            {
                "name": name,
                "value": round(value, 4),
                "unit": unit,
                "bar": bar,
                "better": better,
                "peer": peer,
                "detail": detail,
                "versions": versions,
            }
        )
        met = (
            ""
            if bar is None
            else ("  met" if (value <= bar if better == "lower" else value >= bar) else "  NOT MET")
        )
        say(
            f"  {name:<52} {value:>10.3f} {unit:<4} {'' if bar is None else f'bar {bar}':<10}{met}   {detail}"
        )

    def write(self, table: str) -> None:
        OUT.mkdir(parents=True, exist_ok=True)
        (OUT / f"{table}.json").write_text(json.dumps(self.figures, indent=1) + "\n")


def hit_against_echo(market: Path, folder: Path) -> None:
    """A warm hit of ten years of one symbol, decoded by the Rust client, against an empty tonic call."""
    report = Report()
    say("\nhit latency: ten years of closes of one symbol, decoded by the Rust client / tonic unary echo")
    bench = str(ROOT / "target" / PROFILE / "hit-bench")
    for placement, servers, client, p50_bar in (("two cores", "1", "0", 1.15), ("one core", "0", "0", 1.8)):
        grid = Grid(folder / placement.replace(" ", "-"), servers)
        echo = subprocess.Popen(["taskset", "-c", servers, bench, "echo"], stdout=subprocess.PIPE, text=True)
        try:
            load(grid, market)
            address = echo.stdout.readline().strip()
            command = [
                "taskset",
                "-c",
                client,
                bench,
                "run",
                grid.head,
                address,
                json.dumps(QUESTION),
                str(ROUNDS),
                str(SPAN),
            ]
            figures = json.loads(
                subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            )
            one, many = figures["1"], figures["16"]
            detail = {
                "rows": figures["rows"],
                "echo_us": round(one["echo_p50_us"], 1),
                "hit_us": round(one["hit_p50_us"], 1),
            }
            report.add(
                f"hit p50, 1 client, {placement}",
                one["p50_ratio"],
                "x",
                p50_bar,
                "lower",
                "tonic unary echo",
                detail,
            )
            detail = {"rows": figures["rows"], "hit_rps": round(many["hit_rps"])}
            bar = 0.70 if placement == "two cores" else None
            report.add(
                f"hit requests/s, 16 connections, {placement}",
                many["rps_ratio"],
                "x",
                bar,
                "higher",
                "tonic unary echo",
                detail,
            )
        finally:
            echo.kill()
            grid.stop()
    report.write("hit")


def same_question(market: Path, folder: Path) -> None:
    """The same question asked of the wheel, and of polars and DuckDB on the same Parquet files."""
    import trellis

    report = Report()
    say(
        "\nthe same question: one Python client, p50 of each target per round, ratio to ours inside the round"
    )
    grid = Grid(folder / "same-question", "0,1")
    try:
        load(grid, market)
        g = trellis.connect(grid.url)
        q = QUESTION

        def ours() -> int:
            return len(
                g.read(q["dataset"], q["fields"], symbols=q["symbols"], start=q["start"], end=q["end"])
            )

        targets = {"trellis": ours}
        files = [
            str(f)
            for f in (grid.state / "lake" / "equities.daily").rglob("*.parquet")
            if "_delta_log" not in f.parts
        ]
        try:
            import polars as pl

            lo, hi = (pl.lit(q[k]).str.to_datetime(time_unit="us", time_zone="UTC") for k in ("start", "end"))

            def polars() -> int:
                scan = pl.scan_parquet(files).filter(
                    (pl.col("symbol") == SYMBOL) & (pl.col("ts") >= lo) & (pl.col("ts") < hi)
                )
                return scan.select("symbol", "ts", "close").sort("ts").collect().height

            targets["polars"] = polars
        except ImportError:
            say("  polars is not installed: skipped")
        try:
            import duckdb

            connection = duckdb.connect()
            connection.execute("set timezone = 'UTC'")

            def duck() -> int:
                sql = (
                    f"select symbol, ts, close from read_parquet({files}) where symbol = '{SYMBOL}' "
                    f"and ts >= '{q['start']}'::timestamptz and ts < '{q['end']}'::timestamptz order by ts"
                )
                return connection.execute(sql).arrow().read_all().num_rows

            targets["duckdb"] = duck
        except ImportError:
            say("  DuckDB is not installed: skipped")

        rows = {name: ask() for name, ask in targets.items()}
        if len(set(rows.values())) != 1:
            sys.exit(f"the targets disagree about the number of rows: {rows}")
        p50s: dict[str, list[float]] = {name: [] for name in targets}
        shuffle = random.Random(7)
        for _ in range(ROUNDS):
            for name in shuffle.sample(sorted(targets), len(targets)):
                taken, began = [], time.perf_counter()
                while time.perf_counter() - began < SPAN:
                    at = time.perf_counter()
                    targets[name]()
                    taken.append(time.perf_counter() - at)
                p50s[name].append(statistics.median(taken) * 1e3)
        for name in targets:
            ratios = [theirs / mine for theirs, mine in zip(p50s[name], p50s["trellis"], strict=True)]
            detail = {"rows": rows[name], "p50_ms": round(statistics.median(p50s[name]), 3)}
            if name != "trellis":
                detail["versions"] = {name: metadata.version(name)}
                report.add(
                    f"{name} / trellis, 2,520 rows",
                    statistics.median(ratios),
                    "x",
                    5.0,
                    "higher",
                    name,
                    detail,
                )
            else:
                report.add("trellis, 2,520 rows, p50", detail["p50_ms"], "ms", None, "lower", "", detail)
        g.close()
    finally:
        grid.stop()
    report.write("same-question")


def main() -> None:
    say("== building hit-bench")
    subprocess.run(
        ["cargo", "build", "-q", "--profile", PROFILE, "-p", "trellis-tests", "--bin", "hit-bench"],
        cwd=ROOT,
        check=True,
    )
    with tempfile.TemporaryDirectory(prefix="trellis-bench-") as temporary:
        folder = Path(temporary)
        market = folder / "market"
        subprocess.run(
            [program("python"), "-m", "trellis._market", str(market), "--seed", "7"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        hit_against_echo(market, folder)
        same_question(market, folder)
    say(f"\nwritten: {OUT}/*.json")


if __name__ == "__main__":
    main()
