"""Runs a strategy for a session: the same steps in a notebook, on the command line and in the child of `qcu`."""

from __future__ import annotations

import json
import os
import pathlib
import warnings
from types import TracebackType
from typing import TYPE_CHECKING, Any

from . import _trellis
from ._code import OURS, inside, printable, traceback_of
from ._columns import frame_of
from ._context import Context
from ._declaration import Declaration
from .errors import BadRequest, StrategyError, TrellisError
from .frame import Frame

if TYPE_CHECKING:
    from .grid import Grid

# said of a write that is committed
UNRECORDED = "It is not recorded in the run ledger yet: the ledger cannot be reached, and the grid keeps trying."


def call(strategy: Declaration, context: Context, inputs: dict[str, Frame]) -> Frame:
    """Calls the strategy's function and makes a Frame of its answer. Exceptions of the function pass through."""
    process = os.getpid()
    try:
        with inside.running(f"strategy {strategy.name}"):
            return frame_of(strategy.function(context, **inputs))
    finally:
        # a child that the strategy forked must not return from here, or its result would be published as well
        if os.getpid() != process:
            os._exit(1)


def input_frame(
    strategy: Declaration, name: str, rows: _trellis.Rows, receipt: dict[str, Any], window: tuple[Any, ...]
) -> Frame:
    """An input as a Frame. `window` has the sessions of its matrix; symbols declared by name get a column each."""
    symbols = strategy.inputs[name].symbols
    return Frame(rows, receipt, window, () if symbols == ("*",) else symbols)


def run_here(
    strategy: Declaration, session: str, grid: Grid | None, as_of_ns: int | None, publish: bool, take_over: bool
) -> Frame:
    """`Strategy.run`."""
    __tracebackhide__ = True  # notebooks do not show this frame
    from .grid import connect

    if take_over and not publish:
        raise BadRequest(
            "take_over needs publish: nothing would be published",
            hint="add publish=True (`--publish`), or leave take_over out",
        )

    if grid is None:
        with connect(unit=strategy.name) as own:
            return run_here(strategy, session, own, as_of_ns, publish, take_over)
    from .deploy import code_digest

    manifest = json.dumps(strategy.manifest(code_digest=code_digest(strategy) if publish else None))
    prefetched = None
    try:
        prefetched = grid._call(_trellis.prefetch, manifest, session, as_of_ns)
        frame = _compute(strategy, manifest, session, prefetched)
    except TrellisError as error:
        # a grid that cannot be reached records nothing
        if publish and not error.retryable:
            _record(grid, manifest, session, prefetched, error)
        raise
    if publish:
        frame.published = grid._call(_trellis.publish_run, manifest, session, prefetched, frame._rows, take_over)
        grid._pinned.forget(strategy.output.dataset)
        if not frame.published["recorded"]:
            warnings.warn(f"{strategy.name} is published. {UNRECORDED}", stacklevel=3)
    return frame


def _compute(strategy: Declaration, manifest: str, session: str, prefetched: _trellis.Prefetched) -> Frame:
    __tracebackhide__ = True
    inputs = {
        name: input_frame(strategy, name, rows, receipt, window) for name, rows, receipt, window in prefetched.inputs()
    }
    try:
        frame = call(strategy, Context(strategy.name, session), inputs)
    except KeyboardInterrupt:
        raise
    except (Exception, SystemExit) as error:
        failed = _failed(strategy, session, error)
        raise failed from error.with_traceback(_without_ours(error.__traceback__))
    return Frame(_trellis.check_output(manifest, session, frame._rows))


def _record(
    grid: Grid, manifest: str, session: str, prefetched: _trellis.Prefetched | None, error: TrellisError
) -> None:
    told = f"{error}\n{getattr(error, 'traceback', '')}".rstrip()
    try:
        grid._call(_trellis.record_failed, manifest, session, prefetched, told)
    except TrellisError as unrecorded:
        error.add_note(f"the failure could not be recorded in the run ledger: {unrecorded}")


def _failed(strategy: Declaration, session: str, error: BaseException) -> StrategyError:
    told = error.message if isinstance(error, TrellisError) else f"{type(error).__name__}: {error}"
    if isinstance(error, SystemExit):
        told = exit_told(error)
    return StrategyError(
        printable(f"strategy {strategy.name}, session {session}: {told}"),
        hint=error.hint if isinstance(error, TrellisError) else "",
        traceback=traceback_of(error),
    )


def exit_told(error: SystemExit) -> str:
    """The message of a run whose strategy called sys.exit."""
    return f"the strategy called sys.exit({error.code!r})"


def _without_ours(entries: TracebackType | None) -> TracebackType | None:
    """The traceback without the frames of Trellis at its start and its end."""
    while entries is not None and _is_ours(entries):
        entries = entries.tb_next
    last, entry = None, entries
    while entry is not None:
        last = entry if not _is_ours(entry) else last
        entry = entry.tb_next
    if last is not None:
        last.tb_next = None
    return entries


def _is_ours(entry: TracebackType) -> bool:
    return pathlib.Path(entry.tb_frame.f_code.co_filename).is_relative_to(OURS)
