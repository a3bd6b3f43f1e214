"""The state folder: where a grid on this machine keeps its data, and how processes find the one that runs there.

A folder has at most one grid: the process that holds the lock `grid.lock` runs it, and has written into that file where
it listens. `trellis up` is such a process; so is a notebook with an embedded grid. Whoever else opens the folder joins.
The lock is the kernel's (`flock`): it is gone with its process, however that ends, so there are no stale locks. Both
kinds of grid serve the same lake: what a notebook imported is there when `trellis up` runs, and the other way round.

    grid.lock        {"pid", "url", "kind"}; locked while the grid runs
    lake/            the tables, one folder a dataset: Delta Lake, open to polars, DuckDB, Spark
    grid.json        of `trellis up`: what it printed when it was ready
    processes.json   of `trellis up`: its processes as they are now
    units/           deployed units, one file each; `trellis up` watches the folder
    done/            of units deployed for one session, how it ended; those do not run again
    ran/             how each unit's last run ended, one file each
    bundles/         their sources, by content
    logs/            one file a process; up.log is that of `trellis up --detach`
"""

from __future__ import annotations

import fcntl
import json
import os
import pathlib
import threading
import time
from dataclasses import dataclass
from typing import Any

from . import _trellis
from .errors import Conflict, Unavailable

# the default state folder, in the current one
STATE = ".trellis"
# A process that only looks takes the lock for an instant; whoever wants to keep it tries for longer than that.
LOCK_TRY_S = 1.0
# from taking the lock to serving: opening a lake with long logs, some processes
START_WAIT_S = 60.0
_POLL_S = 0.02


def lock_file(state: str | os.PathLike[str]) -> pathlib.Path:
    """The lock of a state folder."""
    return pathlib.Path(state, "grid.lock")


def take_lock(state: pathlib.Path) -> int | None:
    """Makes this process the one that runs the folder's grid: a descriptor to keep open. None: another one does."""
    state.mkdir(parents=True, exist_ok=True)
    lock = os.open(lock_file(state), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    deadline = time.monotonic() + LOCK_TRY_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _contents(lock)
            # a holder that has written is no looker
            if holder is not None or time.monotonic() > deadline:
                os.close(lock)
                return None
            time.sleep(_POLL_S)
        else:
            os.ftruncate(lock, 0)
            return lock


def announce(lock: int, url: str, kind: str) -> None:
    """Tells those who wait for the lock's holder where it listens."""
    os.pwrite(lock, json.dumps({"pid": os.getpid(), "url": url, "kind": kind}).encode(), 0)


def holder(state: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Who runs a grid in the folder: pid, url, kind; a process that is still starting has no url. None: nobody."""
    try:
        lock = os.open(lock_file(state), os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _contents(lock) or {"pid": 0, "url": "", "kind": ""}
    else:
        return None
    finally:
        os.close(lock)


def _contents(lock: int) -> dict[str, Any] | None:
    try:
        return json.loads(os.pread(lock, 65_536, 0))
    except ValueError:
        return None


def started(state: str | os.PathLike[str]) -> dict[str, Any] | None:
    """As `holder`, when the grid that starts there has started.

    Raises:
        Unavailable: the process that holds the folder does not get ready.
    """
    deadline = time.monotonic() + START_WAIT_S
    while (found := holder(state)) is not None and not found["url"]:
        if time.monotonic() > deadline:
            raise Unavailable(
                f"a process holds {state} and does not get ready", hint=f"see which: fuser {lock_file(state)}"
            )
        time.sleep(_POLL_S)
    return found


def has_grid(state: str | os.PathLike[str]) -> bool:
    """Whether there is anything to open: a lake, or a process that makes one."""
    return pathlib.Path(state, "lake").is_dir() or holder(state) is not None


def was_up(state: str | os.PathLike[str]) -> bool:
    """Whether the folder is one of `trellis up`, which keeps logs there."""
    return pathlib.Path(state, "logs").is_dir()


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a file that readers see as it was or as it will be, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(json.dumps(value, indent=1) + "\n")
    fresh.replace(path)


def read_json(path: pathlib.Path) -> Any:
    """What `write_json` wrote; None if there is nothing."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None


@dataclass
class _Held:
    grid: Any
    url: str
    lock: int
    users: int


_held: dict[pathlib.Path, _Held] = {}
_guard = threading.Lock()


def open_embedded(folder: pathlib.Path) -> tuple[str, bool]:
    """Runs the grid of `folder` in this process, or finds the process that does: where it listens, and is it ours.

    Raises:
        Unavailable: the process that holds the folder does not get ready.
    """
    with _guard:
        if held := _held.get(folder):
            held.users += 1
            return held.url, True
        while (lock := take_lock(folder)) is None:
            if found := started(folder):
                return found["url"], False
        try:
            grid = _trellis.Embedded(str(folder / "lake"))
        except BaseException:
            os.close(lock)
            raise
        announce(lock, grid.url, "embedded")
        _held[folder] = _Held(grid, grid.url, lock, 1)
        return grid.url, True


def close_embedded(folder: pathlib.Path) -> None:
    """Gives up one use of the folder's grid; the last one stops it. Acknowledged publishes are on disk already."""
    with _guard:
        held = _held.get(folder)
        if held is None:
            return
        held.users -= 1
        if held.users <= 0:
            del _held[folder]
            _stop(held)


def close_all() -> None:
    """Stops the embedded grids of this process; at its exit."""
    with _guard:
        while _held:
            _stop(_held.popitem()[1])


def _stop(held: _Held) -> None:
    try:
        held.grid.stop()
    finally:
        os.close(held.lock)


def _forget_after_fork() -> None:
    global _guard
    # The parent runs these grids. Closing our copies of the descriptors leaves its locks alone.
    _guard = threading.Lock()
    for held in _held.values():
        os.close(held.lock)
        held.grid.forget()
    _held.clear()


os.register_at_fork(after_in_child=_forget_after_fork)


def must_hold(state: pathlib.Path) -> int:
    """As `take_lock`, for whoever cannot join.

    Raises:
        Conflict: another process runs a grid there.
    """
    lock = take_lock(state)
    if lock is not None:
        return lock
    found = holder(state) or {"pid": 0, "url": "", "kind": "another"}
    what = {"up": "`trellis up`", "embedded": "a process with an embedded grid"}.get(found["kind"], "a process")
    where = f" at {found['url']}" if found["url"] else ""
    other = "choose another folder with --state"
    raise Conflict(
        f"a grid runs in {state} already: {what}, pid {found['pid']}{where}",
        hint=f"close the grid there (`g.close()`), end that process, or {other}"
        if found["kind"] == "embedded"
        else f"connect to it, stop it with `trellis down`, or {other}",
    )
