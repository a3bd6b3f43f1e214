"""A cold herd: 64 workers, 8 processes of 8 threads, read one symbol at the same moment, each another window.

Every round reads a symbol that the head has not seen. The alternatives are warm: their files are in the page
cache, and Redis and the C++ Flight server have the series in memory.
"""

from __future__ import annotations

import random
import statistics
from pathlib import Path

import market
import numpy as np
import trellis
from grid import OUT, ROUNDS
from market import DAILY, DAILY_SYMBOLS, MINUTE, OHLCV, Question
from report import Report, aligned, number, say
from stage import Stage, agree, stage, wire

PROCESSES, THREADS = 8, 8
# Redis with the exact answer is left out: no window is read twice, so no client could have stored it.
TARGETS = [
    "Wheel",
    "ArrowFlightSeries",
    "RedisSeries",
    "ArcticDb",
    "Polars",
    "PolarsSymbol",
    "DuckDb",
    "DuckDbSymbol",
    "Postgres",
]
# The least and the greatest part of the span that one window has. The windows overlap, as those of many
# strategies on one stock do.
WINDOW = (0.05, 1.0)
OF_BEST = 0.8
# Largest ratio of the rows that the head fetched to the union of the windows.
FETCHED = 1.03
# Symbols of the minute dataset: one for the hit path, one to warm connections up, one for each round.
MINUTE_SYMBOLS = market.minute_symbols(2 + ROUNDS)


def windows(dataset: str, symbol: str, chance: random.Random) -> tuple[list[Question], int]:
    """A window for each worker, and the rows of their union. Windows of minutes are within the last year."""
    at = market.times(dataset)
    if dataset == MINUTE:
        at = at[-market.ROWS["98,280 x 6"] :]
    union = np.zeros(len(at), dtype=bool)
    questions = []
    for _ in range(PROCESSES * THREADS):
        rows = round(chance.uniform(*WINDOW) * len(at))
        first = chance.randint(0, len(at) - rows)
        union[first : first + rows] = True
        fields = ["close"] if dataset == DAILY else OHLCV
        start, end = int(at[first]), int(at[first + rows - 1]) + 1_000
        questions.append(Question("", dataset, fields, [symbol], start, end))
    return questions, int(union.sum())


def table(folder: Path, state: Path) -> None:
    title = f"cold herd: {PROCESSES * THREADS} windows of one symbol at once, medians of {ROUNDS} rounds"
    report = Report("herd64", title)
    symbols = {DAILY: DAILY_SYMBOLS[: 2 + ROUNDS][1:], MINUTE: MINUTE_SYMBOLS[1:]}
    with stage(folder, state) as on:
        on.copy_symbols(symbols)
        on.open(TARGETS, PROCESSES)
        report.versions = on.versions
        for dataset, names in symbols.items():
            _herd(report, on, dataset, names)
    report.close(OUT)


def _herd(report: Report, on: Stage, dataset: str, symbols: list[str]) -> None:
    chance = random.Random(market.SEED)
    totals: dict[str, list[float]] = {target: [] for target in on.workers}
    amplified, asked = [], []
    # the first round opens files and connections, and does not count
    for number_of_round, symbol in enumerate(symbols):
        questions, union = windows(dataset, symbol, chance)
        shares = [list(map(wire, questions[n::PROCESSES])) for n in range(PROCESSES)]
        rows = {}
        for target in chance.sample(sorted(on.workers), len(on.workers)):
            before = _fetched(on, dataset)
            done = on.workers[target].call(do="herd", questions=shares)
            rows[target] = done["rows"]
            if number_of_round == 0:
                continue
            totals[target].append(done["seconds"] * 1e3)
            if target == "Wheel":
                amplified.append((_fetched(on, dataset) - before) / union)
                asked.append(done["rows"] / union)
        agree(f"a herd on {symbol}", rows)
    titles = {target: workers.title for target, workers in on.workers.items()}
    medians = {target: statistics.median(of) for target, of in totals.items()}
    body = [[titles[target], number(ms), number(min(totals[target]))] for target, ms in medians.items()]
    say("\n".join(aligned([[dataset, "total ms", "best round"], *body])) + "\n")
    alternatives = [target for target in medians if target != "Wheel"]
    best = min(alternatives, key=medians.__getitem__, default=None)
    for target in alternatives:
        pairs = zip(totals["Wheel"], totals[target], strict=True)
        report.add(
            f"{dataset}: total / {titles[target]}" + (", the best alternative" if target == best else ""),
            statistics.median(ours / theirs for ours, theirs in pairs),
            "x",
            bar=OF_BEST if target == best else None,
            peer=titles[target],
            detail={
                "seed": market.SEED,
                "ours_ms": round(medians["Wheel"], 2),
                "theirs_ms": round(medians[target], 2),
            },
        )
    report.add(
        f"{dataset}: rows fetched upstream / union of the windows",
        statistics.median(amplified),
        "x",
        bar=FETCHED,
        peer="union of the windows",
        detail={
            "rows asked / union": round(statistics.median(asked), 1),
            "worst round": round(max(amplified), 3),
        },
    )


def _fetched(on: Stage, dataset: str) -> int:
    """Rows of a dataset that the grid's heads have fetched from shards."""
    with trellis.connect(on.running.url) as connected:
        counts = [
            d["rows_fetched"]
            for head in connected.stats()
            for d in head["datasets"]
            if d["dataset"] == dataset
        ]
    return sum(counts)
