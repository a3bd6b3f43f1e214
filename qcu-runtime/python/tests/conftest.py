"""Fixtures and helpers of the tests: an embedded grid with a small generated market, real prices if they are on the
machine, and grids of processes."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

import trellis
from trellis import _market
from trellis.importing import import_files

TRELLIS = [sys.executable, "-m", "trellis.cli"]
REPOSITORY = pathlib.Path(__file__).resolve().parents[3]
EXAMPLES = pathlib.Path(__file__).resolve().parents[1] / "examples"
# long, because the machine may compile at the same time
WAIT_S = 120


@pytest.fixture(autouse=True)
def no_grid_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRELLIS_URL", raising=False)


@pytest.fixture(scope="session")
def market() -> dict[str, list[dict[str, Any]]]:
    """The generated market as rows, by symbol."""
    return {
        symbol: [dict(zip(_market.HEADER, row, strict=True)) for row in rows]
        for symbol, rows in _market.generate().items()
    }


@pytest.fixture(scope="session")
def market_files(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("market")
    _market.write(folder)
    return folder


def import_market(grid: trellis.Grid, files: pathlib.Path) -> None:
    fields = "open,high,low,close,volume,split"
    import_files(grid, "equities.daily", [files / "market.csv"], symbol_column="Name", ts_column="Date", fields=fields)
    for symbol in _market.SINGLE:
        import_files(grid, "equities.daily", [files / f"{symbol}.csv"], symbol=symbol, ts_column="Date", fields=fields)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The state folder of the shared embedded grid."""
    return tmp_path_factory.mktemp("grid")


@pytest.fixture(scope="session")
def grid(folder: pathlib.Path, market_files: pathlib.Path) -> Iterator[trellis.Grid]:
    """A shared embedded grid with `equities.daily`. Tests that publish or import use other dataset names."""
    with trellis.connect(f"embedded://{folder}") as grid:
        import_market(grid, market_files)
        yield grid


@pytest.fixture
def empty(tmp_path: pathlib.Path) -> Iterator[trellis.Grid]:
    """An embedded grid for one test."""
    with trellis.connect(f"embedded://{tmp_path / 'grid'}") as grid:
        yield grid


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real prices; skips the test if there is none."""
    for place in (os.environ.get("TRELLIS_SHARED_DATA"), REPOSITORY.parent / "shared" / "data"):
        if place and pathlib.Path(place, "daily").is_dir():
            return pathlib.Path(place)
    pytest.skip("real prices are not here: set TRELLIS_SHARED_DATA to the folder that has daily/wiki")


class Processes:
    """A grid that `trellis up` runs."""

    def __init__(self, state: pathlib.Path, heads: int, shards: int) -> None:
        self.state = state
        argv = [*TRELLIS, "up", "--heads", str(heads), "--shards", str(shards), "--state", str(state), "--json"]
        self.stderr = open(state.with_suffix(".stderr"), "w+b")  # noqa: SIM115 closed by stop()
        self.up = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=self.stderr)
        assert self.up.stdout is not None
        line = self.up.stdout.readline()
        assert line, self.said()
        self.info: dict[str, Any] = json.loads(line)

    def said(self) -> str:
        self.stderr.seek(0)
        return self.stderr.read().decode(errors="replace")

    def environment(self) -> dict[str, str]:
        return {**os.environ, "TRELLIS_URL": self.info["url"]}

    def processes(self) -> dict[str, dict[str, Any]]:
        return {p["name"]: p for p in json.loads((self.state / "processes.json").read_text())}

    def stop(self) -> int:
        self.up.send_signal(signal.SIGTERM)
        status = self.up.wait(WAIT_S)
        self.stderr.close()
        return status


@pytest.fixture(scope="session")
def processes(tmp_path_factory: pytest.TempPathFactory, market_files: pathlib.Path) -> Iterator[Processes]:
    """Two heads and three shards as processes, with `equities.daily`."""
    running = Processes(tmp_path_factory.mktemp("up") / "state", 2, 3)
    with trellis.connect(running.info["url"]) as grid:
        import_market(grid, market_files)
    yield running
    if running.up.poll() is None:
        running.stop()


def cli(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs the command line in a new process."""
    return subprocess.run([*TRELLIS, *arguments], capture_output=True, text=True, timeout=WAIT_S, **options)
