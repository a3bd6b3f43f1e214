"""Prepares the targets of a table: starts servers, fills stores, connects clients."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import install
import market
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.flight as flight
import pyarrow.parquet as pq
import servers
from grid import Grid, grid
from market import Question
from report import Failure, say
from versions import WIRE, ours
from workers import WorkerError, Workers

# The server of a target, if it is not the grid.
SERVERS = {
    "RedisAnswer": "redis",
    "RedisSeries": "redis",
    "Postgres": "postgres",
    "ArrowFlight": "flight",
    "ArrowFlightSeries": "flight-series",
}

# As the lake's files have them.
ROW_GROUP = 65_536


def wire(question: Question) -> dict[str, Any]:
    """As the clients are told."""
    return {**asdict(question), "ticket": question.ticket()}


class Stage:
    """The connected clients of the targets, and the reasons why other targets are missing."""

    def __init__(self, folder: Path, state: Path, running: Grid, cleanup: contextlib.ExitStack) -> None:
        self.folder, self.running, self.cleanup = folder, running, cleanup
        self.workers: dict[str, Workers] = {}
        self.world: dict[str, Any] = {
            "kept": str(state.parent),
            "grid": running.url,
            "head": running.head,
            "lake": {dataset: running.files(dataset) for dataset in (market.DAILY, market.MINUTE)},
            "symbols": str(folder / "symbols"),
            "answers": str(folder / "answers"),
        }
        self.versions = ours(WIRE)

    def copy_symbols(self, symbols: dict[str, list[str]]) -> None:
        """Writes a Parquet file for each symbol, as a user of polars may keep them."""
        for dataset, names in symbols.items():
            folder = self.folder / "symbols" / dataset
            folder.mkdir(parents=True)
            for name in names:
                rows = pq.read_table(self.world["lake"][dataset], filters=pc.field("symbol") == name)
                rows = rows.select(["symbol", "ts", *market.OHLCV])
                pq.write_table(rows, folder / f"{name}.parquet", compression="zstd", row_group_size=ROW_GROUP)

    def copy_answers(self, questions: list[Question]) -> None:
        """Stores the exact answers of the head, each in one batch."""
        folder = self.folder / "answers"
        folder.mkdir()
        with flight.connect(f"grpc://{self.running.head}") as client:
            for question in questions:
                reader = client.do_get(flight.Ticket(question.ticket().encode()))
                answer = reader.read_all().unify_dictionaries().combine_chunks()
                with pa.ipc.new_stream(folder / f"{question.name}.arrow", answer.schema) as writer:
                    writer.write_table(answer)

    def open(self, targets: list[str], clients: int) -> None:
        """Starts servers and clients, and fills stores. A target that cannot run is skipped with a line."""
        install.clients()
        install.servers()
        logs = self.folder / "logs"
        logs.mkdir()
        missing = {name: self._serve(name, logs) for name in {SERVERS[t] for t in targets if t in SERVERS}}
        world = self.folder / "world.json"
        world.write_text(json.dumps(self.world))
        for target in targets:
            try:
                if why := missing.get(SERVERS.get(target, "")):
                    raise WorkerError(why)
                workers = Workers(install.PYTHON, target, clients, world, logs / f"{target}.log")
                self.cleanup.callback(workers.close)
                workers.call(do="load")
                workers.call(do="connect")
            except WorkerError as error:
                say(f"  {target} is skipped: {error}")
                continue
            self.workers[target] = workers
            self.versions |= workers.versions
        if "Wheel" not in self.workers:
            raise Failure("the wheel itself cannot be asked: there is nothing to compare with")

    def _serve(self, name: str, logs: Path) -> str:
        """Starts a server and stores its address; or returns the reason why it cannot run."""
        log = logs / f"{name}.log"
        enter = {
            "redis": lambda: servers.redis(log),
            "postgres": lambda: servers.postgres(log),
            "flight": lambda: servers.arrow_flight(self.folder / "answers", log),
            "flight-series": lambda: servers.arrow_flight(self.folder / "symbols", log),
        }[name]
        try:
            self.world[name] = self.cleanup.enter_context(enter())
        except OSError as error:
            return str(error)
        self.versions |= servers.versions(name)
        return ""


@contextlib.contextmanager
def stage(folder: Path, state: Path) -> Iterator[Stage]:
    folder.mkdir()
    with contextlib.ExitStack() as cleanup:
        running = cleanup.enter_context(grid(state))
        yield Stage(folder, state, running, cleanup)


def agree(what: str, rows: dict[str, Any]) -> None:
    """Fails if targets returned different numbers of rows."""
    if len({json.dumps(count) for count in rows.values()}) > 1:
        raise Failure(f"the targets disagree about the rows of {what}: {rows}")
