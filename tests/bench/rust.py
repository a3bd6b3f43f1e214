"""Tables that Rust programs measure: each figure on their stdout is a line of the table."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

from grid import OUT, built
from report import Failure, Report, say
from versions import STORE, WIRE, ours


def table(name: str, title: str, bench: str, arguments: Callable[[Path], list[object]]) -> None:
    """Runs `bench` with the arguments that `arguments` makes of the folder of the programs."""
    report = Report(name, title, ours(WIRE + STORE))
    binary = built(bench)
    if binary is None:
        return
    command = [binary, *map(str, arguments(Path(binary).parent))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        for line in running.stdout:
            figure = _figure(line)
            if figure is None:
                say("  " + line.rstrip())
            else:
                report.take(figure)
    report.close(OUT)
    if running.returncode:
        raise Failure(f"{bench} ended with {running.returncode}")


def _figure(line: str) -> dict | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) and {"name", "value", "unit"} <= value.keys() else None
