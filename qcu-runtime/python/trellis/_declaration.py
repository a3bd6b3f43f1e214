"""What a strategy declares: its inputs, its output, its schedule, and the file that its code is in."""

from __future__ import annotations

import functools
import importlib
import os
import pathlib
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from . import _trellis
from ._values import field_list, format_ns, symbol_list, to_start
from .errors import BadRequest

__all__ = ["Declaration", "Output", "Schedule", "Series", "after", "at_close", "output", "series"]

_SESSIONS = re.compile(r"\s*(\d+)\s*sessions?\s*")
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(hour|day|week)s?\s*")


def _process_started() -> float:
    """When this process started, in seconds since 1970. It has imported nothing before that."""
    # the name of the program stands in parentheses and may contain some: the last one ends it
    ticks = int(pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")


# a forked process has the modules of its parent, so it keeps the parent's time
PROCESS_STARTED = _process_started()
# placeholders: check_manifest needs a file and a digest, and a strategy has none before it is deployed
_UNDEPLOYED = {"module": "undeployed.py", "code_digest": "undeployed"}


@dataclass(frozen=True)
class Series:
    """One declared input. Make it with `trellis.series`, or with a strategy's `.series`."""

    dataset: str
    fields: tuple[str, ...]
    symbols: tuple[str, ...]
    # exactly one of `lookback` and `start` is set
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
    # of `after`: the names and outputs of the strategies to wait for; empty for `at_close`
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
        fields: the fields to read; none means all.
        symbols: a symbol, a list of symbols, or "*" for all.
        lookback: how far back from the session, which counts too: "260 sessions", "90 days".
        start: instead of lookback, a fixed first day.

    The input ends with the session: it never has a row of a later session. `px.wide("close")` of it has every session
    of the lookback (260 for "260 sessions") and a column for every listed symbol, NaN where there is no row.
    """
    if (lookback is None) == (start is None):
        raise BadRequest(f"series({dataset!r}) needs either a lookback or a start", hint='lookback="260 sessions"')
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
        raise BadRequest(
            f"lookback={text!r} is not a length of time", hint='lookback="260 sessions", or "90 days"'
        ) from None
    return {"duration": text}


def output(dataset: str, /, **fields: str) -> Output:
    """Declares what a strategy publishes: a dataset and its fields, `score="float64"`.

    Types: float64, float32, int64, int32, bool, string, timestamp. A value may be missing (None, NaN). If the type ends
    with "!", it may not: `weight="float64!"` refuses rows without a weight, and infinite weights.
    """
    if not fields:
        raise BadRequest(f"output({dataset!r}) declares no field", hint='output("signals.x", score="float64")')
    return Output(dataset, tuple((n, t.rstrip("!?"), not t.endswith("!")) for n, t in fields.items()))


def at_close(calendar: str, *, delay: str = "0s") -> Schedule:
    """Due when a session of the exchange calendar has closed, `delay` later: `at_close("XNYS", delay="20m")`."""
    return Schedule(calendar, delay)


def after(*strategies: Declaration) -> Schedule:
    """Due when each of `strategies` has published the session."""
    if not strategies or not all(isinstance(s, Declaration) for s in strategies):
        raise BadRequest("after() takes the strategies to wait for", hint="schedule=trellis.after(mom)")
    calendars = {s.calendar for s in strategies}
    if len(calendars) > 1:
        raise BadRequest(f"after() waits for strategies of different calendars: {', '.join(sorted(calendars))}")
    return Schedule(calendars.pop(), units=tuple((s.name, s.output.dataset) for s in strategies))


class Place(NamedTuple):
    """Where a strategy was declared: the module whose top level ran, its file, and the version of the file."""

    module: str
    file: str
    version: Any


def file_version(path: str | os.PathLike[str]) -> Any:
    """A value that changes when the file is edited or replaced; None if there is no file."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    # not st_mtime: a file that is moved here keeps its old one
    return stat.st_ino, stat.st_ctime_ns, stat.st_size


class Declaration:
    """A function and everything that the grid needs to run it. `trellis.Strategy` adds the running."""

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
        """This strategy's output as an input: `mom.series(lookback="5 sessions")`. No fields mean all."""
        names = fields or tuple(name for name, _, _ in self.output.fields)
        return series(self.output.dataset, names, symbols=symbols, lookback=lookback)

    @property
    def calendar(self) -> str:
        """The calendar of its sessions."""
        return self.schedule.calendar if self.schedule else "XNYS"

    def _attribute(self) -> str:
        """The name of the strategy in its module; before it has one, the name of its function."""
        named = next((name for name, value in _top_level(self) if value is self), name_of(self.function))
        return named if named.isidentifier() else "strategy"  # the name of a lambda is not an identifier

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
                f"strategy {self.name} cannot be pickled: it has no name at the top of a module, under which another "
                "process could find it"
            )
        return _by_name, (self._declared_in.module, self._attribute())

    def __repr__(self) -> str:
        reads = ", ".join(f"{name}={s.dataset}" for name, s in self.inputs.items())
        return f"<strategy {self.name}: {reads} -> {self.output.dataset}>"


def _inner(function: Any) -> Any:
    """The function inside a `functools.partial`, or the function itself."""
    while isinstance(function, functools.partial):
        function = function.func
    return function


def name_of(function: Any) -> str:
    inner = _inner(function)
    return getattr(inner, "__name__", type(inner).__name__)


def _by_name(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


def _top_level(strategy: Declaration) -> list[tuple[str, Any]]:
    """The names and values of the module that declares a strategy."""
    return list(getattr(sys.modules.get(strategy._declared_in.module), "__dict__", {}).items())


def strategies_of(module: Any) -> list[Any]:
    """The strategies that a module declares, in order. Imported ones count only if it declares none."""
    found = [v for v in vars(module).values() if isinstance(v, Declaration)]
    own = [s for s in found if s._declared_in.module == module.__name__]
    return list(dict.fromkeys(own or found))


def source_file(strategy: Declaration) -> str:
    """The file that declares a strategy, so that importing the file gives the strategy.

    Raises:
        BadRequest: there is no such file.
    """
    module, file, _ = strategy._declared_in
    path = getattr(sys.modules.get(module), "__file__", None)
    named = any(value is strategy for _, value in _top_level(strategy))
    # code typed at the prompt of `python -i file.py` is in the module, but not in the file
    if not named or not path or os.path.realpath(path) != os.path.realpath(file):
        raise BadRequest(
            f"strategy {strategy.name} has no name at the top of a file: it was defined in a notebook cell, a prompt "
            "or a function, and only strategies of files can be deployed",
            hint="move it to the top of a .py file and import it from there",
        )
    return path
