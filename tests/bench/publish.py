"""Publishes: results of 500 rows, each durable before it is acknowledged, by 1, 100 and 1,000 publishers.

Every publisher has its own output and publishes one session after the other. The peers write the same rows:
the Python package `deltalake` to Delta tables (a commit for each result; a few processes take the tables in
turn), and PostgreSQL to tables (a transaction for each result, a connection for each publisher). All of them
sync to disk: PostgreSQL by default (`fsync`, `synchronous_commit`), `deltalake` by a sync of the files and
folders of each commit, which the package itself does not do; its figure without the sync is shown as well.
Only the grid also checks the rows, fences the publisher, stores a result that is sent twice once, and tells
every connected reader.

`publish.py ROLE ARGUMENT...` is a client of a peer; `table` starts it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import os
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

ROWS = 500
PUBLISHERS = (1, 100, 1000)
# Seconds for which one target is timed.
SECONDS = float(os.environ.get("PUBLISH_SECONDS", "10"))
# Processes that write with `deltalake`, or have the connections to PostgreSQL. Two for each core keep the
# cores busy while others wait for the disk; more processes only take turns.
PROCESSES = 2 * (os.cpu_count() or 1)
DAY_US = 86_400_000_000
# Midnight of the first session, 2016-01-01.
FIRST_SESSION = 16_801 * DAY_US
# Microseconds from 1970 to 2000, where PostgreSQL's time begins.
POSTGRES_EPOCH = 10_957 * DAY_US
SYMBOLS = [f"S{i:03}" for i in range(ROWS)]


def scores(session: int) -> Iterator[float]:
    return (math.sin(session * ROWS + i) for i in range(ROWS))


def timed(publish: Callable[[], None], seconds: float) -> dict[str, Any]:
    """Publishes one result after the other until the time is over."""
    taken, began = [], time.perf_counter()
    at = began
    while at - began < seconds:
        publish()
        now = time.perf_counter()
        taken.append(now - at)
        at = now
    return {"taken": taken, "seconds": at - began}


def answer(result: dict[str, Any]) -> None:
    print(json.dumps(result), flush=True)


def begin() -> None:
    """Reports that this client is ready, and waits for the others."""
    answer({"ready": True})
    sys.stdin.readline()


# --- clients of the peers, each a process --------------------------------------------------------------


def sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def delta(folder: str, first: str, tables: str, seconds: str, durable: str) -> None:
    """Appends to tables in turn; `durable` is 1 or 0."""
    import pyarrow as pa
    from deltalake import DeltaTable, write_deltalake

    def rows(session: int) -> pa.Table:
        midnight = FIRST_SESSION + session * DAY_US
        known_at = time.time_ns() // 1000
        times = [pa.array([t] * ROWS, pa.timestamp("us", "UTC")) for t in (midnight, known_at)]
        columns = [pa.array(SYMBOLS), *times, pa.array(scores(session))]
        return pa.table(columns, names=["symbol", "ts", "known_at", "score"])

    opened = []
    for table in range(int(first), int(first) + int(tables)):
        path = Path(folder) / f"out_{table}"
        write_deltalake(str(path), rows(0))
        opened.append((path, DeltaTable(str(path))))
    turns = itertools.cycle(opened)
    sessions = itertools.count(1)

    def publish() -> None:
        path, table = next(turns)
        write_deltalake(table, rows(next(sessions)), mode="append")
        if durable == "1":
            log = path / "_delta_log"
            entry = log / f"{table.version():020}.json"
            for line in entry.read_text().splitlines():
                if added := json.loads(line).get("add"):
                    sync(path / added["path"])
            for written in (path, entry, log):
                sync(written)

    publish()
    begin()
    answer(timed(publish, float(seconds)))


def binary_rows(session: int) -> bytes:
    """The rows in the format of `COPY ... (FORMAT BINARY)`."""
    times = [t - POSTGRES_EPOCH for t in (FIRST_SESSION + session * DAY_US, time.time_ns() // 1000)]
    row = struct.Struct(">hi4siqiqid")
    body = b"".join(
        row.pack(4, 4, symbol.encode(), 8, times[0], 8, times[1], 8, score)
        for symbol, score in zip(SYMBOLS, scores(session), strict=True)
    )
    return b"PGCOPY\n\xff\r\n\0" + bytes(8) + body + b"\xff\xff"


def postgres(uri: str, first: str, tables: str, seconds: str, key: str) -> None:
    """Copies into tables, one connection for each; `key`: what follows the columns of a table."""
    asyncio.run(copy(uri, range(int(first), int(first) + int(tables)), float(seconds), key))


async def copy(uri: str, tables: range, seconds: float, key: str) -> None:
    import psycopg

    columns = "symbol text not null, ts timestamptz not null, known_at timestamptz not null, score float8"
    sessions = itertools.count()

    async def publish(connection: psycopg.AsyncConnection, table: int) -> None:
        into = f"COPY out_{table} (symbol, ts, known_at, score) FROM STDIN (FORMAT BINARY)"
        async with connection.cursor() as cursor, cursor.copy(into) as writing:
            await writing.write(binary_rows(next(sessions)))

    connections = []
    for table in tables:
        # Each statement is a transaction.
        connection = await psycopg.AsyncConnection.connect(uri, autocommit=True)
        await connection.execute(f"CREATE TABLE out_{table} ({columns}{key})")
        await publish(connection, table)
        connections.append((connection, table))
    begin()
    taken, began = [], time.perf_counter()

    async def work(connection: psycopg.AsyncConnection, table: int) -> None:
        while (at := time.perf_counter()) - began < seconds:
            await publish(connection, table)
            taken.append(time.perf_counter() - at)

    await asyncio.gather(*(work(*one) for one in connections))
    answer({"taken": taken, "seconds": time.perf_counter() - began})
    for connection, _ in connections:
        await connection.close()


ROLES = {"delta": delta, "postgres": postgres}


# --- the table -----------------------------------------------------------------------------------------


def together(python: str, role: str, where: str, publishers: int, *more: object) -> dict[str, float]:
    """Divides the publishers among processes, which start together."""
    from grid import start, stop
    from report import Failure

    processes = min(publishers, PROCESSES)
    bounds = [publishers * i // processes for i in range(processes + 1)]
    clients = []
    try:
        for first, end in itertools.pairwise(bounds):
            arguments = [python, __file__, role, where, first, end - first, SECONDS, *more]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            clients.append(start(list(map(str, arguments)), **pipes))
        for client in clients:
            if "ready" not in client.stdout.readline():
                raise Failure("a client was not set up")
        for client in clients:
            client.stdin.write("\n")
            client.stdin.flush()
        answers = [json.loads(client.stdout.readline()) for client in clients]
    finally:
        for client in clients:
            stop(client)
    taken = sorted(itertools.chain.from_iterable(answer["taken"] for answer in answers))
    seconds = max(answer["seconds"] for answer in answers)
    return {
        "rate": len(taken) / seconds,
        "p50_ms": statistics.median(taken) * 1e3,
        "p99_ms": taken[round((len(taken) - 1) * 0.99)] * 1e3,
        "publishes": len(taken),
        "processes": processes,
    }


def table(folder: Path) -> None:
    """Measures, prints and writes."""
    from grid import OUT, built
    from report import Report, say
    from versions import STORE, WIRE, ours

    binary = built("publish-bench")
    if binary is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    report = Report("publish", "publishes of 500 rows, durable and acknowledged", ours(WIRE + STORE))
    for publishers in PUBLISHERS:
        ours = grid(binary, folder, publishers, report)
        for peer, measured in peers(folder, publishers):
            report.add(
                f"{peer}, publishers {publishers}, acknowledged publishes/s",
                measured["rate"],
                "1/s",
                better="higher",
                peer=peer,
                detail={key: value for key, value in measured.items() if key != "rate"},
            )
            report.add(
                f"trellis / {peer}, publishers {publishers}, publishes/s",
                ours / measured["rate"],
                "x",
                better="higher",
                peer=peer,
            )
        say(f"  {publishers} publishers: done")
    report.close(OUT)


def grid(binary: str, folder: Path, publishers: int, report: Any) -> float:
    """Publishes a second of a head and a shard."""
    command = [binary, str(publishers), str(SECONDS), str(folder / f"trellis-{publishers}")]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    for figure in figures:
        report.take(figure)
    return figures[0]["value"]


def peers(folder: Path, publishers: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Measures the peers that are installed, one after the other."""
    import install
    import servers
    from report import Failure, say

    for durable, name in ((1, "deltalake, synced"), (0, "deltalake, not synced")):
        tables = folder / f"delta-{publishers}-{durable}"
        measured = together(sys.executable, "delta", str(tables), publishers, durable)
        yield name, {**measured, "version": metadata.version("deltalake")}

    settings = {"fsync": "on", "synchronous_commit": "on", "max_connections": publishers + 16}
    keys = {"PostgreSQL": "", "PostgreSQL with a primary key": ", primary key (symbol, ts, known_at)"}
    for name, key in keys.items():
        try:
            with servers.postgres(folder / f"postgres-{publishers}.log", **settings) as uri:
                measured = together(str(install.PYTHON), "postgres", uri, publishers, key)
        except (Failure, OSError) as error:
            say(f"  {name} skipped: {error}")
            continue
        yield name, {**measured, "version": servers.version(install.postgres() / "postgres")}


if __name__ == "__main__":
    ROLES[sys.argv[1]](*sys.argv[2:])
