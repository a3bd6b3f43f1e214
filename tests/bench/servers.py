"""Servers of the peers: each on a free loopback port, in a folder of its own, for as long as a `with`."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import install
from grid import start, stop

# From its start until a server answers.
READY_S = 30
# PostgreSQL's cache holds all of the benches' tables, as the grid's does.
SHARED_BUFFERS = "1GB"
# 64 threads of the herd, and what else is connected.
CONNECTIONS = 160


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def _wait(what: str, process: subprocess.Popen, ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + READY_S
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise OSError(f"{what} did not start")
        time.sleep(0.05)


def _accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def version(program: str | Path) -> str:
    """What a program says of itself."""
    return subprocess.run(
        [program, "--version"], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()


def versions(server: str) -> dict[str, str]:
    """Name and version of a server's program; the Flight server's is pyarrow's."""
    if server == "redis":
        told = version(install.redis())
        return {"redis-server": told.partition("v=")[2].split()[0]}
    if server == "postgres":
        return {"postgresql": version(install.postgres() / "postgres").split()[2]}
    return {}


@contextlib.contextmanager
def redis(log: Path) -> Iterator[str]:
    """Redis, in memory only. Its address."""
    program = install.redis()
    if not program:
        raise OSError("redis-server is not installed")
    port = free_port()
    command = [
        program,
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--appendonly",
        "no",
    ]
    with log.open("w") as out:
        process = start(command, stdout=out, stderr=out)
    try:
        _wait("Redis", process, lambda: _accepts(port))
        yield f"127.0.0.1:{port}"
    finally:
        stop(process)


@contextlib.contextmanager
def postgres(log: Path, **settings: object) -> Iterator[str]:
    """A new cluster of PostgreSQL, without fsync unless `settings` say otherwise. Its URI."""
    programs = install.postgres()
    if not programs:
        raise OSError("PostgreSQL is not installed")
    # it refuses to run as root, and its user must be able to reach its folder
    user = "postgres" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="trellis-bench-postgres-"))
    if user:
        shutil.chown(folder, user, user)
    port = free_port()
    process = None
    try:
        with log.open("w") as out:
            initialise = [programs / "initdb", "-D", folder / "data", "-U", "bench", "-A", "trust", "-N"]
            command = start(list(map(str, initialise)), user=user, stdout=out, stderr=out, cwd=folder)
            if command.wait():
                raise OSError(f"initdb failed: {log.read_text().strip().splitlines()[-1]}")
            all_settings = {
                "port": port,
                "listen_addresses": "127.0.0.1",
                "unix_socket_directories": folder,
                "shared_buffers": SHARED_BUFFERS,
                "max_connections": CONNECTIONS,
                "max_wal_size": "4GB",
                "fsync": "off",
                **settings,
            }
            command = [str(programs / "postgres"), "-D", str(folder / "data")]
            for name, value in all_settings.items():
                command += ["-c", f"{name}={value}"]
            process = start(command, user=user, stdout=out, stderr=out, cwd=folder)
        # it accepts connections before it serves them
        ask = [str(programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
        _wait("PostgreSQL", process, lambda: subprocess.run(ask).returncode == 0)
        yield f"postgresql://bench@127.0.0.1:{port}/postgres"
    finally:
        if process:
            # SIGINT: open connections are ended, not waited for
            stop(process, signal.SIGINT)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def arrow_flight(tables: Path, log: Path) -> Iterator[str]:
    """Arrow Flight's C++ server, which holds the tables of a folder. Its address."""
    program = Path(__file__).with_name("flight_server.py")
    with log.open("w") as out:
        process = start(
            [str(install.PYTHON), str(program), str(tables)], stdout=subprocess.PIPE, stderr=out, text=True
        )
    try:
        address = process.stdout.readline().strip()
        if not address:
            raise OSError("the Arrow Flight server did not start")
        yield address
    finally:
        stop(process, signal.SIGKILL)
