"""What a strategy may not do while it runs, and where its prints go.

A strategy reads what it declares, and nothing else: a grid that it connects to by itself is another one where it is
deployed, or an empty one, and its answer would be wrong without a word. So while its function or its file runs, in that
thread, in the threads that these start and in what they give to thread pools, `connect()` and the calls of a `Grid` are
refused; and a run that was refused one has failed, even if it went on without.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from .errors import BadRequest

_MARK = "_trellis_inside"
_start = threading.Thread.start
_submit = ThreadPoolExecutor.submit
_guard = threading.Lock()


class _Running:
    """A strategy's function or file that runs; threads that it started outlive it as ordinary ones."""

    def __init__(self, what: str) -> None:
        self.what, self.ended = what, False
        self.refused: BadRequest | None = None


@contextlib.contextmanager
def running(what: str) -> Iterator[None]:
    """`what` is running in this thread: "strategy mom_12_1", or a file."""
    _mark_threads()
    mine = _Running(what)
    failed = None
    try:
        with _marked(mine):
            yield
    except BaseException as error:
        failed = error
        raise
    finally:
        mine.ended = True
        # The strategy went on without what it wanted to read, as far as it came. Ctrl-C stays what it is.
        went_on = failed is None or isinstance(failed, Exception)
        if mine.refused is not None and failed is not mine.refused and went_on:
            raise mine.refused


@contextlib.contextmanager
def _marked(mark: _Running) -> Iterator[None]:
    thread = threading.current_thread()
    before = getattr(thread, _MARK, None)
    setattr(thread, _MARK, mark)
    try:
        yield
    finally:
        setattr(thread, _MARK, before)


def _mark() -> _Running | None:
    mark = getattr(threading.current_thread(), _MARK, None)
    return None if mark is None or mark.ended else mark


def refuse_grid(call: str) -> None:
    """Refuses to speak to a grid inside a strategy. Its run has failed by that, whatever the strategy does about it.

    Raises:
        BadRequest: why, and what to do instead.
    """
    mark = _mark()
    if mark is not None:
        mark.refused = BadRequest(
            f"{mark.what} calls {call} while it runs: it would read what it does not declare, of another grid where "
            "it is deployed",
            hint="declare what it reads, inputs=dict(px=trellis.series(...)), and use that argument; what opens a grid "
            'outside of it goes under `if __name__ == "__main__":`',
        )
        raise mark.refused


def _mark_threads() -> None:
    with _guard:
        if threading.Thread.start is _start:
            threading.Thread.start = _start_marked  # type: ignore[method-assign]
            ThreadPoolExecutor.submit = _submit_marked  # type: ignore[method-assign]


def _start_marked(thread: threading.Thread) -> None:
    mark = _mark()
    if mark is not None:
        setattr(thread, _MARK, mark)
    _start(thread)


def _submit_marked(pool: ThreadPoolExecutor, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
    # its threads may have been started before
    mark = _mark()
    work = function if mark is None else functools.partial(_call_marked, mark, function)
    return _submit(pool, work, *args, **kwargs)


def _call_marked(mark: _Running, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with _marked(mark):
        return function(*args, **kwargs)


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
