"""Strategies: a pure function of a session and its declared inputs, with everything the grid needs to run it.

A strategy sees no clock and reads nothing that it did not declare. So it can be run for any session, in a notebook, by
`trellis run`, or as a deployed unit, with the same result bit for bit: the inputs are read as they were known at the
run's `as_of`, and declared inputs can be fetched while Python is still importing.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import os
import pathlib
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from . import _trellis
from ._time import format_ns, to_end, to_session, to_start
from .errors import BadRequest

if TYPE_CHECKING:
    from .frame import Frame
    from .grid import Grid

__all__ = ["Context", "Output", "Schedule", "Series", "Strategy", "after", "at_close", "output", "series", "strategy"]

_SESSIONS = re.compile(r"\s*(\d+)\s*sessions?\s*")
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(hour|day|week)s?\s*")


def _process_started() -> float:
    """When this process began: whatever it has imported, it did after that."""
    # of a name with spaces and parentheses only the last one ends it
    ticks = int(pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")


# a process that is forked off later has the modules of this one
PROCESS_STARTED = _process_started()
# until a strategy is deployed, its manifest has no file and no digest; the check needs some
_UNDEPLOYED = {"module": "undeployed.py", "code_digest": "undeployed"}


@dataclass(frozen=True)
class Series:
    """One declared input. Make it with `trellis.series`, or with a strategy's `.series`."""

    dataset: str
    fields: tuple[str, ...]
    symbols: tuple[str, ...]
    # exactly one of the two
    lookback: dict[str, Any] | None
    start: int | None

    def _manifest(self, name: str) -> dict[str, Any]:
        span = {"since": format_ns(self.start)} if self.lookback is None else {"lookback": self.lookback}
        symbols = "*" if self.symbols == ("*",) else list(self.symbols)
        return {
            "name": name,
            "dataset": self.dataset,
            "fields": list(self.fields),
            "symbols": symbols,
            **span,
            "as_of": "latest",
        }


@dataclass(frozen=True)
class Output:
    """The dataset that a strategy publishes. Make it with `trellis.output`."""

    dataset: str
    # name, type, nullable
    fields: tuple[tuple[str, str, bool], ...]


@dataclass(frozen=True)
class Schedule:
    """When sessions are due. Make it with `trellis.at_close` or `trellis.after`."""

    calendar: str
    delay: str = "0s"
    # after: the strategies waited for, by name and output; empty for at_close
    units: tuple[tuple[str, str], ...] = ()

    def _manifest(self) -> dict[str, Any]:
        if self.units:
            return {"kind": "after", "units": [{"unit": u, "dataset": d} for u, d in self.units]}
        return {"kind": "at_close", "calendar": self.calendar, "delay": self.delay}


def series(
    dataset: str,
    fields: list[str] | tuple[str, ...] | str = (),
    *,
    symbols: Any = "*",
    lookback: str | None = None,
    start: Any = None,
) -> Series:
    """Declares an input.

    Args:
        dataset: `equities.daily`.
        fields: which; none named is all.
        symbols: a symbol, a list of symbols, or "*" for all there are.
        lookback: how far back from the session, itself included: "260 sessions", "90 days".
        start: instead of lookback, a fixed first day.

    The input ends with the session: it never holds a row of a later one. `px.wide("close")` of it has every session of
    the lookback, 260 for "260 sessions", whatever rows there are, and a column for every symbol in a list of symbols;
    NaN where there is no row.
    """
    if (lookback is None) == (start is None):
        raise BadRequest(
            f"series({dataset!r}) needs a lookback or a start, and not both", hint='lookback="260 sessions"'
        )
    return Series(dataset, field_list(fields), symbol_list(symbols), _lookback(lookback), to_start(start))


def _lookback(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    if match := _SESSIONS.fullmatch(text):
        return {"sessions": int(match[1])}
    if match := _DURATION.fullmatch(text):
        return {"duration": match[1] + match[2][0]}
    try:
        _trellis.parse_duration(text)
    except BadRequest:
        raise BadRequest(f"lookback={text!r} is no span", hint='lookback="260 sessions", or "90 days"') from None
    return {"duration": text}


def field_list(fields: Any) -> tuple[Any, ...]:
    """A tuple of fields from what people give: a name, or a list, an array, an Index of names; None and () are all."""
    if fields is None:
        return ()
    if isinstance(fields, str):
        return (fields,)
    if not _is_list(fields):
        raise BadRequest(f"fields must be the name of a field or a list of names, not {fields!r}")
    return tuple(str(f) if isinstance(f, str) else f for f in fields)


def _is_list(names: Any) -> bool:
    # a DataFrame would give its columns' names, an array of no dimension nothing
    return hasattr(names, "__iter__") and not isinstance(names, Mapping) and getattr(names, "ndim", 1) == 1


def symbol_list(symbols: Any) -> tuple[str, ...]:
    """A tuple of symbols from what people give: None and "*" are all, one name is a list of one, [] is refused."""
    if symbols is None or (isinstance(symbols, str) and symbols == "*"):
        return ("*",)
    if isinstance(symbols, str):
        return (symbols,)
    if not _is_list(symbols):
        raise BadRequest(f'symbols must be a symbol, a list of them, or "*", not {symbols!r}')
    listed = tuple(str(s) if isinstance(s, str) else s for s in symbols)
    wrong = [s for s in listed if not isinstance(s, str)]
    if wrong:
        raise BadRequest(f"symbols must be strings, not {wrong[0]!r}")
    if not listed:
        raise BadRequest("the list of symbols is empty", hint='symbols="*" reads every symbol')
    return listed


def output(dataset: str, /, **fields: str) -> Output:
    """Declares what a strategy publishes: a dataset and its fields, `score="float64"`.

    Types: float64, float32, int64, int32, bool, string, timestamp. A value may be missing (None, NaN) unless the type
    ends with "!": `weight="float64!"` refuses rows without a weight, and infinite weights.
    """
    if not fields:
        raise BadRequest(f"output({dataset!r}) declares no field", hint='output("signals.x", score="float64")')
    return Output(dataset, tuple((n, t.rstrip("!?"), not t.endswith("!")) for n, t in fields.items()))


def at_close(calendar: str, *, delay: str = "0s") -> Schedule:
    """Due when a session of the exchange calendar has closed, `delay` later: `at_close("XNYS", delay="20m")`."""
    return Schedule(calendar, delay)


def after(*strategies: Strategy) -> Schedule:
    """Due when each of `strategies` has published the session."""
    if not strategies or not all(isinstance(s, Strategy) for s in strategies):
        raise BadRequest("after() takes the strategies to wait for", hint="schedule=trellis.after(mom)")
    calendars = {s.calendar for s in strategies}
    if len(calendars) > 1:
        raise BadRequest(f"after() waits for strategies of different calendars: {', '.join(sorted(calendars))}")
    return Schedule(calendars.pop(), units=tuple((s.name, s.output.dataset) for s in strategies))


class Context:
    """What a strategy is told besides its inputs.

    Attributes:
        session: the session's date, `2016-08-10`. The only time a strategy knows.
        name: the strategy's name.
    """

    def __init__(
        self,
        name: str,
        session: str,
        progress: Callable[[float | None, float | None, str | None], None] | None = None,
    ) -> None:
        self.name = name
        self.session = session
        self._progress = progress

    def progress(self, done: float | None = None, total: float | None = None, note: str | None = None) -> None:
        """Says how far the run has come; people see it in `trellis status` and the log. Costs a packet a call."""
        if self._progress is not None:
            self._progress(done, total, note)

    def frame(self, **columns: Any) -> Frame:
        """The output: `symbol`, the declared fields, and `ts` where a row's time is not the session itself.

        A column is a numpy array, a list, a pandas or polars Series, an Arrow array, a `Row` of a wide matrix, or one
        value for all rows. A `Row` and a pandas Series indexed by symbol are put into the order of the column `symbol`,
        and refused if their symbols are not exactly those; a pandas Series whose index is 0, 1, 2 ... is taken by
        position, as arrays are, and any other is refused.

        Values become the declared types where that loses nothing: whole floats and decimals become integers, integers
        and decimals the float that shows the same number; a float64 becomes a float32 only where that is the same
        number, and booleans are no numbers. NaN is a missing value.
        """
        from ._columns import make_frame

        return make_frame(columns)

    def __repr__(self) -> str:
        return f"Context({self.name!r}, session={self.session!r})"


class Place(NamedTuple):
    """Where a strategy was declared: the module whose top level ran, the file of its code, and which file that was."""

    module: str
    file: str
    version: Any


def file_version(path: str | os.PathLike[str]) -> Any:
    """What tells a file from what lies there after an edit; None where there is no file."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    # not st_mtime: a file that is moved to the place of another keeps that
    return stat.st_ino, stat.st_ctime_ns, stat.st_size


class Strategy:
    """A function and its declarations. Calling it calls the function; `run` runs it as the grid does."""

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str,
        inputs: dict[str, Series],
        output: Output,
        schedule: Schedule | None,
        retries: int,
        timeout: str,
        cpu: float,
        memory: str,
        declared_in: Place,
    ) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.name = name
        self.inputs = inputs
        self.output = output
        self.schedule = schedule
        self.retries = retries
        self.timeout = timeout
        self.cpu = cpu
        self.memory = memory
        self._declared_in = declared_in

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def series(self, *fields: str, symbols: Any = "*", lookback: str = "1 sessions") -> Series:
        """This strategy's output as another's input: `mom.series(lookback="5 sessions")`. No fields named: all."""
        names = fields or tuple(name for name, _, _ in self.output.fields)
        return series(self.output.dataset, names, symbols=symbols, lookback=lookback)

    def run(
        self,
        *,
        session: Any,
        grid: Grid | None = None,
        as_of: Any = None,
        publish: bool = False,
        take_over: bool = False,
    ) -> Frame:
        """Runs for one session in this process: same inputs, same checks as a deployed unit. Answers the output.

        Args:
            session: a date.
            grid: default `trellis.connect()`.
            as_of: read the inputs as they were known then; default now.
            publish: publish the output too, as the unit would. It replaces what was published for the session; the same
                rows as the last publish change nothing. Each such run is in the ledger, `trellis.runs`, failed or not,
                with the digest of its code: `sha256:` of a file that is as it was imported, and of the local modules
                that it imports, as a deploy says it; else, a notebook's cells for one, `live:sha256:` of what is in
                memory, which is the function and all that it refers to: closures, helpers, globals, arguments of a
                partial. Files that a strategy opens and variables of the environment are in neither.
            take_over: publish even though a deployed process of this unit runs, or though the dataset has been another
                unit's output, which it ceases to be. A process of this unit is fenced by it, says so in
                `trellis status`, and goes on with the sessions that become due after that.

        Raises:
            StrategyError: the function raised or exited, or its output is not what was declared.
            Forbidden: the dataset is another unit's output.
            Conflict: a process of this unit runs; the message names it.
        """
        __tracebackhide__ = True  # notebooks leave the frame out
        from .run import run_here

        return run_here(self, to_session(session), grid, to_end(as_of, "as_of"), publish, take_over)

    @property
    def calendar(self) -> str:
        """The calendar of its sessions."""
        return self.schedule.calendar if self.schedule else "XNYS"

    def _attribute(self) -> str:
        """The name under which its module has it; before it has, or in a notebook, its function's."""
        named = next((name for name, value in _top_level(self) if value is self), _name_of(self.function))
        return named if named.isidentifier() else "strategy"  # a lambda has no name

    def manifest(self, module: str | None = None, code_digest: str | None = None) -> dict[str, Any]:
        """Everything declared, as plain values, in the form that `qcu` reads."""
        given = {"module": module, "code_digest": code_digest}
        code = _UNDEPLOYED | {name: value for name, value in given.items() if value is not None}
        return {
            "version": 1,
            "unit": self.name,
            "function": self._attribute(),
            "schedule": self.schedule._manifest() if self.schedule else {"kind": "manual"},
            "calendar": self.calendar,
            "retries": self.retries,
            "timeout": self.timeout,
            "cpu": float(self.cpu),
            "memory": self.memory,
            "inputs": [declared._manifest(name) for name, declared in self.inputs.items()],
            "output": {
                "dataset": self.output.dataset,
                "fields": {n: t + "?" * nullable for n, t, nullable in self.output.fields},
            },
            **code,
        }

    def __reduce__(self) -> Any:
        if not any(value is self for _, value in _top_level(self)):
            raise TypeError(
                f"strategy {self.name} has no name at the top of a module and cannot be pickled: give it one, so that "
                "another process finds it there"
            )
        return _by_name, (self._declared_in.module, self._attribute())

    def __repr__(self) -> str:
        reads = ", ".join(f"{name}={s.dataset}" for name, s in self.inputs.items())
        return f"<strategy {self.name}: {reads} -> {self.output.dataset}>"


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
        inputs: what it reads, by the function's argument names.
        output: what it publishes.
        schedule: when sessions are due; None: only when asked for.
        retries: how often a failed run is tried again.
        timeout: longest run, "10m".
        cpu, memory: what a run may use: cores, bytes ("4G").

    Raises:
        BadRequest: now, where the declaration is, rather than in production.
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
            f"strategy {name}: {_name_of(function)}() cannot be called with its inputs: {mismatch}",
            hint=f"it takes ({wanted})",
        ) from None


def _inner(function: Any) -> Any:
    """The function in a `functools.partial`."""
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _name_of(function: Any) -> str:
    inner = _inner(function)
    return getattr(inner, "__name__", type(inner).__name__)


def _declaring() -> Place:
    """The place whose top level runs now: that of a strategy that is declared meanwhile.

    Not the module of its function, which may be a partial of another's, or a wrapper that another module made.
    """
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_locals is frame.f_globals:
            file = frame.f_code.co_filename
            return Place(frame.f_globals.get("__name__", ""), file, file_version(file))
        frame = frame.f_back
    return Place("", "", None)


def _by_name(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


def _top_level(strategy: Strategy) -> list[tuple[str, Any]]:
    """The names and values of the module that declares a strategy."""
    return list(getattr(sys.modules.get(strategy._declared_in.module), "__dict__", {}).items())


def strategies_of(module: Any) -> list[Strategy]:
    """The strategies that a module defines itself, in order; not the ones it imports from others."""
    found = [v for v in vars(module).values() if isinstance(v, Strategy)]
    own = [s for s in found if s._declared_in.module == module.__name__]
    return list(dict.fromkeys(own or found))


def source_file(strategy: Strategy) -> str:
    """The file that a strategy was written in, where importing the file makes it.

    Raises:
        BadRequest: there is none.
    """
    module, file, _ = strategy._declared_in
    path = getattr(sys.modules.get(module), "__file__", None)
    named = any(value is strategy for _, value in _top_level(strategy))
    # code that was typed after `python -i file.py` is of its module, and not of the file
    if not named or not path or os.path.realpath(path) != os.path.realpath(file):
        raise BadRequest(
            f"strategy {strategy.name} has no name at the top of a file: it was defined in a notebook cell, a prompt "
            "or a function; only files can be deployed",
            hint="move it to the top of a .py file and import it from there",
        )
    return path
