"""Strategies: the decorator `strategy`, and `Strategy`, which can be called and run.

A strategy is a pure function of a session and its declared inputs. It sees no clock and reads only what it declares, so
a notebook, `trellis run` and a deployed unit get the same result, bit for bit.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import _trellis
from ._declaration import Declaration, Output, Place, Schedule, Series, file_version, name_of
from ._values import to_end, to_session
from .errors import BadRequest

if TYPE_CHECKING:
    from .frame import Frame
    from .grid import Grid

__all__ = ["Strategy", "strategy"]


class Strategy(Declaration):
    """A function and its declarations. Calling it calls the function; `run` runs it as the grid does."""

    def run(
        self,
        session: Any,
        *,
        grid: Grid | None = None,
        as_of: Any = None,
        publish: bool = False,
        take_over: bool = False,
    ) -> Frame:
        """Runs for one session in this process, with the inputs and checks of a deployed unit. Returns the output.

        Args:
            session: a date.
            grid: default `trellis.connect()`.
            as_of: read the inputs as they were known at that time; default now.
            publish: also publish the output, as the unit would. It replaces the earlier output for the session;
                publishing the same rows again changes nothing. Each such run is recorded in the ledger, `trellis.runs`,
                also if it fails, with the digest of its code. `sha256:...` is the digest of an unchanged file and the
                local modules that it imports, the same as of a deploy. `live:sha256:...` is the digest of code in
                memory, such as notebook cells: the function and everything it refers to (closures, helpers, globals,
                arguments of a partial). Neither covers files that a strategy opens or environment variables.
            take_over: publish even though a deployed process of this unit runs, or the dataset is another unit's
                output. The dataset is then this unit's output. A running process of this unit is fenced: it says so in
                `trellis status`, and goes on with the next session.

        Raises:
            NotArrived: the rows of an input do not reach the session yet. Nothing is run, published or recorded.
            StrategyError: the function raised or exited, or its output does not fit the declaration.
            Forbidden: the dataset is another unit's output.
            Conflict: a process of this unit runs; the message names it.
        """
        __tracebackhide__ = True  # notebooks do not show this frame
        from .run import run_here

        return run_here(self, to_session(session), grid, to_end(as_of, "as_of"), publish, take_over)


def strategy(
    name: str,
    *,
    inputs: dict[str, Series],
    output: Output,
    schedule: Schedule | None = None,
    retries: int = 3,
    timeout: str = "10m",
    cpu: float = 1,
    memory: str = "4G",
) -> Callable[[Callable[..., Any]], Strategy]:
    """Makes a function a strategy. The function is called as `function(ctx, **inputs)`, each input a `Frame`.

    Args:
        name: the unit's name, `mom_12_1`: lower case letters, digits, `_`, `.`, `-`.
        inputs: the series that it reads, by the function's argument names.
        output: the dataset that it publishes.
        schedule: when sessions are due; None: it runs only when asked to.
        retries: how often a failed run is tried again.
        timeout: the longest time of a run, "10m".
        cpu, memory: the cores and bytes ("4G") that a run may use.

    Raises:
        BadRequest: the declaration is wrong. It is checked here, before anything runs.
    """
    if not isinstance(output, Output):
        raise BadRequest(f"strategy {name}: output must be made with trellis.output(...)")
    for argument, declared in inputs.items():
        if not isinstance(declared, Series):
            raise BadRequest(f"strategy {name}: input {argument} must be made with trellis.series(...)")

    def declare(function: Callable[..., Any]) -> Strategy:
        _check_signature(name, function, inputs)
        declared = Strategy(
            function,
            name=name,
            inputs=dict(inputs),
            output=output,
            schedule=schedule,
            retries=retries,
            timeout=timeout,
            cpu=cpu,
            memory=memory,
            declared_in=_declaring(),
        )
        _trellis.check_manifest(json.dumps(declared.manifest()))
        return declared

    return declare


def _check_signature(name: str, function: Callable[..., Any], inputs: dict[str, Series]) -> None:
    try:
        inspect.signature(function).bind(None, **dict.fromkeys(inputs))
    except TypeError as mismatch:
        wanted = ", ".join(["ctx", *inputs])
        raise BadRequest(
            f"strategy {name}: {name_of(function)}() cannot be called with its inputs: {mismatch}",
            hint=f"it takes ({wanted})",
        ) from None


def _declaring() -> Place:
    """The place whose top level is running: a strategy declared meanwhile belongs to it.

    The module of the function would not do: the function may be a partial or a wrapper that another module made.
    """
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_locals is frame.f_globals:
            file = frame.f_code.co_filename
            return Place(frame.f_globals.get("__name__", ""), file, file_version(file))
        frame = frame.f_back
    return Place("", "", None)
