"""Running a strategy: the same steps in a notebook, on the command line, and in the child of `qcu`."""

from __future__ import annotations

import json
import os
import pathlib
import traceback
import warnings
from types import TracebackType
from typing import TYPE_CHECKING, Any

from . import _inside, _trellis
from ._columns import frame_of
from ._imports import OURS, is_own
from .errors import BadRequest, StrategyError, TrellisError
from .frame import Frame
from .strategy import Context, Strategy

if TYPE_CHECKING:
    from .grid import Grid

# of a traceback's end: enough for any stack that a person reads
TRACEBACK_BYTES_MAX = 32 * 1024
# of a write that is done
UNRECORDED = "It is not in the ledger yet, which is away: the grid goes on trying to record it."
_HEADER = "Traceback (most recent call last):\n"


def call(strategy: Strategy, context: Context, inputs: dict[str, Frame]) -> Frame:
    """Calls the strategy's function and makes a Frame of its answer. What it raises passes through."""
    process = os.getpid()
    try:
        with _inside.running(f"strategy {strategy.name}"):
            return frame_of(strategy.function(context, **inputs))
    finally:
        # the strategy has forked: the copy must not answer as well, or its result would be published
        if os.getpid() != process:
            os._exit(1)


def input_frame(
    strategy: Strategy, name: str, rows: _trellis.Rows, receipt: dict[str, Any], window: tuple[Any, ...]
) -> Frame:
    """An input: its window is a matrix's sessions, and the symbols that were listed have a column each."""
    symbols = strategy.inputs[name].symbols
    return Frame(rows, receipt, window, () if symbols == ("*",) else symbols)


def run_here(
    strategy: Strategy, session: str, grid: Grid | None, as_of_ns: int | None, publish: bool, take_over: bool
) -> Frame:
    """`Strategy.run`."""
    __tracebackhide__ = True  # notebooks leave the frame out
    from .grid import connect

    if take_over and not publish:
        raise BadRequest(
            "take_over is about publishing, and nothing is published",
            hint="publish=True (`--publish`), or no take_over",
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
        # a grid that is away records nothing
        if publish and not error.retryable:
            _record(grid, manifest, session, prefetched, error)
        raise
    if publish:
        frame.published = grid._call(_trellis.publish_run, manifest, session, prefetched, frame._rows, take_over)
        grid._pinned.forget(strategy.output.dataset)
        if not frame.published["recorded"]:
            warnings.warn(f"{strategy.name} is published. {UNRECORDED}", stacklevel=3)
    return frame


def _compute(strategy: Strategy, manifest: str, session: str, prefetched: _trellis.Prefetched) -> Frame:
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
    return Frame(_trellis.check_result(manifest, session, frame._rows))


def _record(
    grid: Grid, manifest: str, session: str, prefetched: _trellis.Prefetched | None, error: TrellisError
) -> None:
    told = f"{error}\n{getattr(error, 'traceback', '')}".rstrip()
    try:
        grid._call(_trellis.record_failed, manifest, session, prefetched, told)
    except TrellisError as unrecorded:
        error.add_note(f"the failure is not in the ledger: {unrecorded}")


def _failed(strategy: Strategy, session: str, error: BaseException) -> StrategyError:
    told = error.message if isinstance(error, TrellisError) else f"{type(error).__name__}: {error}"
    if isinstance(error, SystemExit):
        told = exit_told(error)
    return StrategyError(
        _text(f"strategy {strategy.name}, session {session}: {told}"),
        hint=error.hint if isinstance(error, TrellisError) else "",
        traceback=traceback_of(error),
    )


def exit_told(error: SystemExit) -> str:
    """A strategy that exits has failed."""
    return f"the strategy called sys.exit({error.code!r})"


def traceback_of(error: BaseException) -> str:
    """The traceback as text, its last 32 KiB: the strategy's own frames, without ours and those of libraries.

    TRELLIS_TRACEBACK=1 has all of them, and the exceptions behind this one.
    """
    if os.environ.get("TRELLIS_TRACEBACK", "0") != "0":
        lines = traceback.format_exception(error)
    else:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if is_own(frame.filename)]
        # a SyntaxError has a place, and no frame
        lines = [_HEADER, *traceback.format_list(own), *traceback.format_exception_only(error)]
    return _text("".join(lines)).encode()[-TRACEBACK_BYTES_MAX:].decode(errors="ignore")


def _text(told: str) -> str:
    """Text that can be written: a name of a file that is no UTF-8 has halves of characters in Python."""
    return told.encode(errors="backslashreplace").decode()


def frames_of(text: str) -> str:
    """Of a traceback its frames: what is above them is the same in all, and what is below is the message."""
    lines = text.splitlines()
    # a message may have an indented line, too: its hint
    last = max((i for i, line in enumerate(lines) if line.startswith(("  File ", "    "))), default=-1)
    return "".join(f"{line}\n" for line in lines[: last + 1] if line != _HEADER.strip())


def _without_ours(entries: TracebackType | None) -> TracebackType | None:
    """A traceback between the strategy's first frame and the last that is not ours."""
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
