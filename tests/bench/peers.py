"""The same reads from the grid and from systems that one would use in its place, by one and by 16 Python
clients, on all cores and all on one. In each round every target is timed once, in random order; a figure is
the median over the rounds of the ratio inside each.
"""

from __future__ import annotations

import contextlib
import random
import statistics
from collections.abc import Callable
from pathlib import Path

import market
from grid import OUT, ROUNDS, SPAN, pinned
from market import LARGE, QUESTIONS, Question
from report import Report, aligned, number, say
from stage import Stage, agree, stage, wire

CLIENTS = 16
# The end of a cell's name if everything runs on one core.
ONE_CORE = ", one core"
# The systems that one would use in the place of a grid.
ALTERNATIVES = ["ArcticDb", "Polars", "PolarsSymbol", "DuckDb", "DuckDbSymbol", "Postgres"]
TARGETS = ["Wheel", "WheelAgain", "StockFlight", "ArrowFlight", "RedisAnswer", *ALTERNATIVES]
OURS = {"Wheel", "WheelAgain", "StockFlight"}
# Not asked for several symbols: each would be a file.
ONE_SYMBOL = {"PolarsSymbol", "DuckDbSymbol"}
# Bar: how many times slower than the wheel each alternative is at least, with one client.
SLOWER = 5.0
# Bars: the ratio of the wheel's p50 to that of a GET of the exact answer; the second is for a repeated read.
OF_REDIS, OF_REDIS_REPEATED = 1.1, 0.1
# Bar: the ratio of the requests per second of 16 stock clients to those of a C++ server, for large answers.
OF_ARROW_FLIGHT = 1.0


class Cell:
    """One read by a number of clients on given cores: each target's p50 and rate, for each round."""

    def __init__(self, question: str, clients: int, placement: str) -> None:
        self.question, self.clients, self.placement = question, clients, placement
        self.rounds: dict[str, list[dict[str, float]]] = {}

    def measure(self, stage: Stage, chance: random.Random) -> None:
        targets = [target for target in stage.workers if asks(target, QUESTIONS[self.question])]
        for _ in range(ROUNDS):
            for target in chance.sample(targets, len(targets)):
                timed = stage.workers[target].call(
                    do="time", question=wire(QUESTIONS[self.question]), clients=self.clients, span=SPAN
                )
                self.rounds.setdefault(target, []).append(timed)

    def median(self, target: str, what: str) -> float:
        return statistics.median(timed[what] for timed in self.rounds[target])

    def ratio(self, of: str, to: str, what: str) -> float:
        pairs = zip(self.rounds[of], self.rounds[to], strict=True)
        return statistics.median(a[what] / b[what] for a, b in pairs)

    def name(self) -> str:
        return f"{self.question}, {self.clients} client{'s' * (self.clients > 1)}{self.placement}"


def asks(target: str, question: Question) -> bool:
    return target not in ONE_SYMBOL or len(question.symbols) == 1


def table(folder: Path, state: Path) -> None:
    title = f"the same questions of the grid and its alternatives, Python clients: medians of {ROUNDS} rounds"
    report = Report("peers", title)
    asked = [(question, clients) for question in QUESTIONS for clients in (1, CLIENTS)]
    cells = [Cell(*what, placement) for placement in ("", ONE_CORE) for what in asked]
    with stage(folder, state) as on:
        on.copy_symbols({q.dataset: q.symbols for q in QUESTIONS.values() if q.symbols})
        on.copy_answers(list(QUESTIONS.values()))
        on.open(TARGETS, CLIENTS)
        for question in QUESTIONS.values():
            rows = {
                target: workers.call(do="ask", question=wire(question))
                for target, workers in on.workers.items()
                if asks(target, question)
            }
            agree(question.name, {**rows, "expected": [market.ROWS[question.name]] * CLIENTS})
        chance = random.Random(market.SEED)
        for cell in cells:
            with pinned({0}) if cell.placement else contextlib.nullcontext():
                cell.measure(on, chance)
        report.versions = on.versions
        titles = {target: workers.title for target, workers in on.workers.items()}
    one, many = [c for c in cells if c.clients == 1], [c for c in cells if c.clients > 1]
    _matrix("one client, p50 ms", one, titles, lambda cell, target: 1e3 * cell.median(target, "p50"))
    _matrix(f"{CLIENTS} clients, requests/s", many, titles, lambda cell, target: cell.median(target, "rate"))
    for cell in cells:
        _figures(report, cell, titles)
    report.close(OUT)


def _matrix(
    title: str, cells: list[Cell], titles: dict[str, str], value: Callable[[Cell, str], float]
) -> None:
    rows = [[title, *(cell.question + cell.placement for cell in cells)]]
    for target, name in titles.items():
        rows.append([name, *(number(value(c, target)) if target in c.rounds else "-" for c in cells)])
    say("\n".join(aligned(rows)) + "\n")


def _figures(report: Report, cell: Cell, titles: dict[str, str]) -> None:
    alone = cell.clients == 1
    what, scale, unit = ("p50", 1e3, "ms") if alone else ("rate", 1, "rps")

    def add(of: str, to: str, better: str, bar: float | None = None) -> None:
        """The ratio of two targets. Without a bar, as on one core, it is only in the matrix."""
        if of not in cell.rounds or to not in cell.rounds:
            return
        bar = None if cell.placement else bar
        report.add(
            f"{cell.name()}: {titles[of]} / {titles[to]}",
            cell.ratio(of, to, what),
            "x",
            bar=bar,
            better=better,
            peer=titles[to if of in OURS else of],
            detail={
                "seed": market.SEED,
                unit: round(scale * cell.median(of, what), 3),
                f"peer's {unit}" if of in OURS else f"ours {unit}": round(scale * cell.median(to, what), 3),
            },
            shown=bar is not None,
        )

    if not alone:
        add("StockFlight", "ArrowFlight", "higher", OF_ARROW_FLIGHT if cell.question in LARGE else None)
        for target in sorted(set(titles) - OURS):
            add("Wheel", target, "higher")
        return
    add("Wheel", "RedisAnswer", "lower", OF_REDIS)
    if cell.question == "2,520 rows":
        add("WheelAgain", "RedisAnswer", "lower", OF_REDIS_REPEATED)
    for target in ("StockFlight", "ArrowFlight"):
        add("Wheel", target, "lower")
    for target in ALTERNATIVES:
        add(target, "Wheel", "higher", SLOWER)
