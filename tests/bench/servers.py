"""Servers of the peers, as context managers: each has a free loopback port and its own folder."""

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

# Seconds from the start of a server to its first answer.
READY_S = 30
# PostgreSQL's cache is large enough for all tables, like the grid's.
SHARED_BUFFERS = "1GB"
# 64 threads of the herd, and some other connections.
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
    """The output of a program, with which it tells its version."""
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
    """Runs Redis, in memory only. Yields its address."""
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
    """Runs a new cluster of PostgreSQL, without fsync unless `settings` change that. Yields its URI."""
    programs = install.postgres()
    if not programs:
        raise OSError("PostgreSQL is not installed")
    # PostgreSQL refuses to run as root, and its user must be able to reach its folder
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
        # PostgreSQL accepts connections before it serves them
        ask = [str(programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
        _wait("PostgreSQL", process, lambda: subprocess.run(ask).returncode == 0)
        yield f"postgresql://bench@127.0.0.1:{port}/postgres"
    finally:
        if process:
            # SIGINT ends open connections; SIGTERM would wait for them
            stop(process, signal.SIGINT)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def arrow_flight(tables: Path, log: Path) -> Iterator[str]:
    """Runs Arrow Flight's C++ server with the tables of a folder. Yields its address."""
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
