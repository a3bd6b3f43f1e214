"""Guards a running strategy: it may not call a grid, and its prints go to stderr.

A strategy may read only the inputs that it declares. If it connected to a grid by itself, a deployed unit would read
another grid, or an empty one, and its answer would be silently wrong. So `connect()` and the calls of a `Grid` are
refused while a strategy's function or file runs: in its thread, in threads that it starts, and in work that it submits
to thread pools. A run in which a call was refused fails, even if the strategy catches the error.
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

from ..errors import BadRequest

_MARK = "_trellis_inside"
_start = threading.Thread.start
_submit = ThreadPoolExecutor.submit
_guard = threading.Lock()


class _Running:
    """One running function or file of a strategy. Threads that outlive it are no longer guarded."""

    def __init__(self, what: str) -> None:
        self.what, self.ended = what, False
        self.refused: BadRequest | None = None


@contextlib.contextmanager
def running(what: str) -> Iterator[None]:
    """Guards the body of the `with` in this thread. `what` names it: "strategy mom_12_1", or a file."""
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
        # The strategy caught the refusal, or failed because of it: report the refusal. A KeyboardInterrupt passes on.
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
    """Refuses a call of a grid inside a strategy. The run then fails, even if the strategy catches the error.

    Raises:
        BadRequest: a strategy is running in this thread.
    """
    mark = _mark()
    if mark is not None:
        mark.refused = BadRequest(
            f"{mark.what} calls {call} while it runs: a strategy may read only its declared inputs, and a deployed "
            "unit would read another grid",
            hint="declare the input, inputs=dict(px=trellis.series(...)), and use that argument; code of the file that "
            'opens a grid for other purposes goes under `if __name__ == "__main__":`',
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
    # the pool may have started its threads before the strategy ran
    mark = _mark()
    work = function if mark is None else functools.partial(_call_marked, mark, function)
    return _submit(pool, work, *args, **kwargs)


def _call_marked(mark: _Running, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with _marked(mark):
        return function(*args, **kwargs)


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Sends everything that Python or C code prints meanwhile to stderr, so that stdout has the result alone."""
    sys.stdout.flush()
    stdout = os.dup(1)
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        # C libraries print through a buffer of their own
        ctypes.CDLL(None).fflush(None)
        os.dup2(stdout, 1)
        os.close(stdout)
