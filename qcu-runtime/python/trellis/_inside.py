"""What a strategy may not do while it runs, and where its prints go.

A strategy reads what it declares, and nothing else: a grid that it connects to by itself is another one where it is
deployed, or an empty one, and its answer would be wrong without a word. So while its function or its file runs, in that
thread and in the threads that these start, `connect()` and the calls of a `Grid` are refused.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Iterator

from .errors import BadRequest

_MARK = "_trellis_inside"
_start = threading.Thread.start
_guard = threading.Lock()


class _Running:
    """A strategy's function or file that runs; threads that it started outlive it as ordinary ones."""

    def __init__(self, what: str) -> None:
        self.what, self.ended = what, False


@contextlib.contextmanager
def running(what: str) -> Iterator[None]:
    """`what` is running in this thread: "strategy mom_12_1", or a file."""
    _mark_started_threads()
    thread, mine = threading.current_thread(), _Running(what)
    before = getattr(thread, _MARK, None)
    setattr(thread, _MARK, mine)
    try:
        yield
    finally:
        mine.ended = True
        setattr(thread, _MARK, before)


def refuse_grid(call: str) -> None:
    """Refuses to speak to a grid inside a strategy.

    Raises:
        BadRequest: why, and what to do instead.
    """
    mark = getattr(threading.current_thread(), _MARK, None)
    if mark is not None and not mark.ended:
        raise BadRequest(
            f"{mark.what} calls {call} while it runs: it would read what it does not declare, of another grid where "
            "it is deployed",
            hint="declare what it reads, inputs=dict(px=trellis.series(...)), and use that argument; what opens a grid "
            'outside of it goes under `if __name__ == "__main__":`',
        )


def _mark_started_threads() -> None:
    with _guard:
        if threading.Thread.start is _start:
            threading.Thread.start = _start_marked  # type: ignore[method-assign]


def _start_marked(thread: threading.Thread) -> None:
    mark = getattr(threading.current_thread(), _MARK, None)
    if mark is not None and not mark.ended:
        setattr(thread, _MARK, mark)
    _start(thread)


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """What is printed meanwhile, by Python or by C, goes to stderr: stdout is for the result."""
    sys.stdout.flush()
    stdout = os.dup(1)
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        # what a C library has printed is in a buffer of its own
        ctypes.CDLL(None).fflush(None)
        os.dup2(stdout, 1)
        os.close(stdout)
