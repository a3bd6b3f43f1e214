"""Running a strategy: the same steps in a notebook, on the command line, and in the child of `qcu`."""

from __future__ import annotations

import json
import traceback
from typing import TYPE_CHECKING, Any

from . import _inside, _trellis
from ._columns import frame_of
from .errors import BadRequest, StrategyError, TrellisError
from .frame import Frame
from .strategy import Context, Strategy

if TYPE_CHECKING:
    from .grid import Grid

# of a traceback's end: enough for any stack that a person reads
TRACEBACK_BYTES_MAX = 32 * 1024


def call(strategy: Strategy, context: Context, inputs: dict[str, Frame]) -> Frame:
    """Calls the strategy's function and makes a Frame of its answer. What it raises passes through."""
    with _inside.running(f"strategy {strategy.name}"):
        return frame_of(strategy.function(context, **inputs))


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
    from .grid import connect

    if take_over and not publish:
        raise BadRequest("take_over is about publishing, and nothing is published", hint="publish too, or leave it out")

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
    return frame


def _compute(strategy: Strategy, manifest: str, session: str, prefetched: _trellis.Prefetched) -> Frame:
    inputs = {
        name: input_frame(strategy, name, rows, receipt, window) for name, rows, receipt, window in prefetched.inputs()
    }
    try:
        frame = call(strategy, Context(strategy.name, session), inputs)
    except KeyboardInterrupt:
        raise
    except (Exception, SystemExit) as error:
        raise _failed(strategy, session, error) from error
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
        f"strategy {strategy.name}, session {session}: {told}",
        hint=error.hint if isinstance(error, TrellisError) else "",
        traceback=traceback_of(error),
    )


def exit_told(error: SystemExit) -> str:
    """A strategy that exits has failed."""
    return f"the strategy called sys.exit({error.code!r})"


def traceback_of(error: BaseException) -> str:
    """The traceback as text from the strategy's own frames on, and its last 32 KiB only."""
    entries = error.__traceback__
    while entries is not None and _is_ours(entries.tb_frame.f_globals):
        entries = entries.tb_next
    lines = traceback.format_exception(type(error), error, entries or error.__traceback__)
    return "".join(lines).encode()[-TRACEBACK_BYTES_MAX:].decode(errors="ignore")


def _is_ours(names: dict[str, Any]) -> bool:
    module = names.get("__name__", "")
    return module.partition(".")[0] in ("trellis", "importlib", "runpy") or (
        module == "__main__" and (names.get("__package__") == "trellis")
    )
