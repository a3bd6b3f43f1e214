"""Starts the grid under test, and handles the folder and the processes of a bench."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from report import Failure, say

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "target" / "bench"
PROFILE = os.environ.get("PROFILE", "demo")
ROUNDS = int(os.environ.get("ROUNDS", "7"))
# Seconds for which one target is timed in one round.
SPAN = float(os.environ.get("SPAN", "0.25"))
# Seconds for a server to end after SIGTERM.
STOP_S = 30


def program(name: str) -> str:
    """The path of a command in the wheel's environment."""
    return str(ROOT / ".venv" / "bin" / name)


def built(name: str) -> str | None:
    """Builds a binary of the crate `tests`: its path; None, and a printed line, if the build fails."""
    # Built with the packages of `make wheel`, whose dependencies are compiled already with the same features.
    packages = ("tests", "head", "shard", "qcu", "python")
    command = ["cargo", "build", "-q", "--profile", PROFILE, "--bin", name]
    command += [word for package in packages for word in ("-p", f"trellis-{package}")]
    done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        say(f"  skipped: {name} cannot be built: {done.stderr.strip().splitlines()[-1]}")
        return None
    folder = {"dev": "debug"}.get(PROFILE, PROFILE)
    return str(ROOT / "target" / folder / name)


def start(
    command: list[str], *, cpus: str | None = None, user: str | None = None, **options: Any
) -> subprocess.Popen:
    """Starts a process that ends when this process ends, however that happens."""
    prefix = ["setpriv", "--pdeathsig", "TERM"]
    if user:
        prefix += ["--reuid", user, "--regid", user, "--clear-groups"]
    if cpus:
        prefix = ["taskset", "-c", cpus, *prefix]
    return subprocess.Popen([*prefix, *command], **options)


def stop(process: subprocess.Popen, how: signal.Signals = signal.SIGTERM) -> None:
    """Sends SIGTERM to a process, and kills it if it does not end."""
    if process.poll() is None:
        process.send_signal(how)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def grid(state: Path, cpus: str | None = None) -> Iterator[Grid]:
    """Runs `trellis up` on the data of the folder `state`: one head with an empty cache, one shard."""
    log = state.with_suffix(".log")
    with log.open("w") as stderr:
        command = [program("trellis"), "up", "--json", "--state", str(state)]
        process = start(command, cpus=cpus, stdout=subprocess.PIPE, stderr=stderr, text=True)
    try:
        line = process.stdout.readline()
        if not line:
            raise Failure(f"the grid did not start: {log.read_text().strip()}")
        yield Grid(json.loads(line))
    finally:
        stop(process)


class Grid:
    def __init__(self, ready: dict[str, Any]) -> None:
        self.url: str = ready["url"]
        self.head: str = ready["heads"][0]
        self.lake = Path(ready["state"]) / "lake"

    def load(self, dataset: str, path: Path) -> None:
        subprocess.run(
            [program("trellis"), "import", dataset, str(path)],
            check=True,
            env={**os.environ, "TRELLIS_URL": self.url},
            stdout=subprocess.DEVNULL,
        )

    def files(self, dataset: str) -> list[str]:
        """The Parquet files of the dataset's table."""
        from deltalake import DeltaTable

        folder = self.lake / dataset
        return [str(folder / Path(uri).name) for uri in DeltaTable(str(folder)).file_uris()]


@contextlib.contextmanager
def pinned(cpus: set[int]) -> Iterator[None]:
    """Runs this process and its children on these cores; at the end on the former ones again."""
    before = os.sched_getaffinity(0)
    _pin(cpus)
    try:
        yield
    finally:
        _pin(before)


def _pin(cpus: set[int]) -> None:
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # the command's name, in parentheses, may contain anything
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    left = [os.getpid()]
    while left:
        process = left.pop()
        left += children.get(process, [])
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{process}/task"):
                with contextlib.suppress(OSError):
                    os.sched_setaffinity(int(thread), cpus)
