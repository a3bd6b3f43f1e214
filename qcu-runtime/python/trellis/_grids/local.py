"""The state folder of a grid on this machine: its files, and the lock by which processes find the running grid.

At most one process runs the grid of a folder: the holder of the lock `grid.lock`, which writes its address into that
file. It is `trellis up`, or a process with an embedded grid, such as a notebook. Any other process that opens the
folder connects to the holder. The lock is the kernel's (`flock`): it ends with its process, so no lock is ever stale.
Both kinds of grid serve the same lake: `trellis up` finds the data that a notebook imported, and the other way round.

    grid.lock        {"pid", "url", "kind"}; locked while the grid runs
    lake/            the tables, one folder for each dataset: Delta Lake, open to polars, DuckDB, Spark
    grid.json        of `trellis up`: the line that it printed when it was ready
    processes.json   of `trellis up`: the present state of its processes
    units/           deployed units, one file each; `trellis up` watches the folder
    done/            the results of units that were deployed for one session; these do not run again
    ran/             the result of each unit's last run, one file each
    bundles/         sources of deployed strategies, by digest
    logs/            one file for each process; `trellis up --detach` itself logs to up.log
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

from .. import _trellis
from ..errors import Conflict, Unavailable

# the default state folder, below the current folder
STATE = ".trellis"
# `holder` takes the lock for an instant, to look; `take_lock` tries for longer than that.
LOCK_TRY_S = 1.0
# from taking the lock to serving: opening a lake with long logs and starting processes takes a while
START_WAIT_S = 60.0
_POLL_S = 0.02


def lock_file(state: str | os.PathLike[str]) -> pathlib.Path:
    """The lock of a state folder."""
    return pathlib.Path(state, "grid.lock")


def take_lock(state: pathlib.Path) -> int | None:
    """Takes the folder's lock, so that this process may run its grid.

    Returns a descriptor to keep open, or None if another process has the lock.
    """
    state.mkdir(parents=True, exist_ok=True)
    lock = os.open(lock_file(state), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    deadline = time.monotonic() + LOCK_TRY_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _contents(lock)
            # a process that only looks does not write into the file
            if holder is not None or time.monotonic() > deadline:
                os.close(lock)
                return None
            time.sleep(_POLL_S)
        else:
            os.ftruncate(lock, 0)
            return lock


def announce(lock: int, url: str, kind: str) -> None:
    """Writes the holder's address into the lock file, for the processes that wait for it."""
    os.pwrite(lock, json.dumps({"pid": os.getpid(), "url": url, "kind": kind}).encode(), 0)


def holder(state: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The process that runs the folder's grid: pid, url (empty while it starts) and kind. None: no process does."""
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
    """Like `holder`, but after waiting for a grid that is starting.

    Raises:
        Unavailable: the process that holds the folder did not get ready.
    """
    deadline = time.monotonic() + START_WAIT_S
    while (found := holder(state)) is not None and not found["url"]:
        if time.monotonic() > deadline:
            raise Unavailable(
                f"a process holds {state} and is not ready after {START_WAIT_S:.0f} s",
                hint=f"find it with: fuser {lock_file(state)}",
            )
        time.sleep(_POLL_S)
    return found


def has_grid(state: str | os.PathLike[str]) -> bool:
    """Whether the folder has a lake, or a process that is making one."""
    return pathlib.Path(state, "lake").is_dir() or holder(state) is not None


def was_up(state: str | os.PathLike[str]) -> bool:
    """Whether `trellis up` has run in the folder: it leaves logs there."""
    return pathlib.Path(state, "logs").is_dir()


def write_json(path: pathlib.Path, value: Any) -> None:
    """Replaces a file at once: a reader sees the old or the new content, never a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(json.dumps(value, indent=1) + "\n")
    fresh.replace(path)


def read_json(path: pathlib.Path) -> Any:
    """The value that `write_json` wrote; None if there is none."""
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
    """Runs the grid of `folder` in this process, or finds the process that runs it.

    Returns the address, and whether this process runs the grid.

    Raises:
        Unavailable: the process that holds the folder did not get ready.
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
    """Ends one use of the folder's grid; the last one stops the grid. Acknowledged publishes are already on disk."""
    with _guard:
        held = _held.get(folder)
        if held is None:
            return
        held.users -= 1
        if held.users <= 0:
            del _held[folder]
            _stop(held)


def close_all() -> None:
    """Stops all embedded grids of this process, when it exits."""
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
    # The parent runs these grids and keeps its locks: only this process's copies of the descriptors are closed.
    _guard = threading.Lock()
    for held in _held.values():
        os.close(held.lock)
        held.grid.forget()
    _held.clear()


os.register_at_fork(after_in_child=_forget_after_fork)


def must_hold(state: pathlib.Path) -> int:
    """Like `take_lock`, but for a process that must run the grid itself.

    Raises:
        Conflict: another process runs the folder's grid.
    """
    lock = take_lock(state)
    if lock is not None:
        return lock
    found = holder(state) or {"pid": 0, "url": "", "kind": "another"}
    what = {"up": "`trellis up`", "embedded": "a process with an embedded grid"}.get(found["kind"], "a process")
    where = f" at {found['url']}" if found["url"] else ""
    other = "choose another folder with --state"
    raise Conflict(
        f"another process already runs the grid of {state}: {what}, pid {found['pid']}{where}",
        hint=f"close the grid there (`g.close()`), end that process, or {other}"
        if found["kind"] == "embedded"
        else f"connect to it, stop it with `trellis down`, or {other}",
    )
