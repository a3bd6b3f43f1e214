"""Figures as JSON objects, and tables for people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

# A figure, in the order of its keys. `better` is "lower" or "higher"; `bar` and `peer` may be absent.
KEYS = ("name", "value", "unit", "bar", "better", "peer", "detail", "versions")


class Failure(Exception):
    """A table cannot be measured, for the reason in the message. The other tables go on."""


def say(*words: object) -> None:
    print(*words, flush=True)


def aligned(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    """Rows of equal length as lines: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [
            first.ljust(widths[0]),
            *(c.rjust(w) for c, w in zip(others, widths[1:], strict=True)),
        ]
        yield "  " + "  ".join(cells).rstrip()


def number(value: float) -> str:
    """Three significant digits, and no exponent."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"


class Report:
    """The figures of one table."""

    def __init__(self, table: str, title: str, versions: dict[str, str] | None = None) -> None:
        self.table = table
        self.versions = versions or {}
        self.figures: list[dict[str, Any]] = []
        self.shown: set[int] = set()
        say(f"\n{title}")

    def add(
        self,
        name: str,
        value: float,
        unit: str,
        *,
        bar: float | None = None,
        better: str = "lower",
        peer: str = "",
        detail: dict[str, Any] | None = None,
        shown: bool = True,
    ) -> None:
        """Adds a figure; `detail` has its parts. A figure that is not `shown` is only written."""
        if shown:
            self.shown.add(len(self.figures))
        figure = (name, round(value, 4), unit, bar, better, peer, detail or {}, {})
        self._keep(dict(zip(KEYS, figure, strict=True)))

    def take(self, figure: dict[str, Any]) -> None:
        """A figure that another program measured."""
        self.shown.add(len(self.figures))
        self._keep(figure)

    def _keep(self, figure: dict[str, Any]) -> None:
        self.figures.append({**figure, "versions": {**self.versions, **(figure.get("versions") or {})}})

    def close(self, out: Path) -> None:
        """Prints the figures, and writes them to `out/TABLE.json`."""
        rows = [("figure", "value", "", "bar", "", "")]
        for figure in (self.figures[n] for n in sorted(self.shown)):
            bar, value = figure.get("bar"), figure["value"]
            bounds = {"lower": "<=", "higher": ">="}
            rows.append(
                (
                    figure["name"],
                    number(value),
                    figure["unit"],
                    "" if bar is None else f"{bounds[figure['better']]} {bar:g}",
                    "" if bar is None else ("met" if self.met(figure) else "NOT MET"),
                    ", ".join(f"{key} {_short(of)}" for key, of in (figure.get("detail") or {}).items()),
                )
            )
        if not self.shown:
            return
        # the parts of a figure may have any length, so they are printed after the columns
        for line, row in zip(aligned([row[:-1] for row in rows]), rows, strict=True):
            say(f"{line}   {row[-1]}".rstrip())
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{self.table}.json").write_text(json.dumps(self.figures, indent=1) + "\n")

    @staticmethod
    def met(figure: dict[str, Any]) -> bool:
        value, bar = figure["value"], figure["bar"]
        return value <= bar if figure["better"] == "lower" else value >= bar


def _short(value: object) -> str:
    return (
        number(value) if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
    )
