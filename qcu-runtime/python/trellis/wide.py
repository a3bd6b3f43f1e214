"""`Wide`, a matrix of sessions x symbols, and `Row`, one value for each symbol: most strategies compute with these.

`Wide` is one contiguous float64 matrix with its two axes. Both classes are numpy operands: every operator and ufunc
works, and so do `np.where` and `np.clip`.

Operands with labels are aligned first, as pandas does: another Row or Wide, a pandas Series indexed by symbol (or,
beside a Wide, by session), a pandas DataFrame with sessions down and symbols across. The result has the union of the
labels, NaN where one side has no value. Operands that cannot be aligned are refused. Numpy arrays and lists have no
labels and are taken by position, as numpy takes them.

Reductions skip NaN, as pandas does. No operation changes its operands: `row *= 2` makes a new Row.
"""

from __future__ import annotations

import datetime as dt
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from . import _trellis
from ._values import (
    Labelled,
    align,
    floats,
    format_ns,
    is_pandas,
    labelled,
    library,
    names,
    pick,
    places,
    read_only,
    sessions,
    spread,
    to_end,
    to_ns,
    to_start,
)
from .errors import BadRequest, UnknownSession, UnknownSymbol, missing_package

__all__ = ["Row", "Wide"]

_DAY_NS = 86_400_000_000_000
_LAST_NS = 2**63 - 1

_REDUCTIONS: dict[str, Callable[..., Any]] = {
    "mean": np.nanmean,
    "sum": np.nansum,
    "std": np.nanstd,
    "var": np.nanvar,
    "min": np.nanmin,
    "max": np.nanmax,
    "median": np.nanmedian,
}

# in these, a symbol that one mask lacks counts as False
_LOGICAL = (np.bitwise_and, np.bitwise_or, np.bitwise_xor, np.logical_and, np.logical_or, np.logical_xor)
# functions of numpy that work value by value but are not ufuncs
_ELEMENTWISE = (np.where, np.clip, np.nan_to_num, np.round, np.isclose)


def _reduce(name: str, values: np.ndarray, axis: int | None, **options: Any) -> Any:
    # The mean of an all-NaN column is NaN, without a warning. The minimum of an empty column is NaN, too: numpy raises.
    if values.size == 0 and name in ("min", "max"):
        shape = () if axis is None else tuple(n for i, n in enumerate(values.shape) if i != axis % values.ndim)
        return np.full(shape, np.nan)[()]
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return _REDUCTIONS[name](values, axis=axis, **options)


class _Operand(NDArrayOperatorsMixin):
    """The part of Row and Wide that numpy and pandas see."""

    # above the priority of pandas: `series * row` then calls this class, and is aligned like `row * series`
    __array_priority__ = 2000
    __pandas_priority__ = 5000

    symbols: tuple[str, ...]
    values: np.ndarray

    @property
    def dtype(self) -> np.dtype:
        """The type of the values."""
        return self.values.dtype

    def _labelled(self) -> Labelled:
        raise NotImplementedError

    def __bool__(self) -> bool:
        kind = type(self).__name__
        raise BadRequest(
            f"a {kind} of many values is neither true nor false, but `and`, `or`, `not`, `a < x < b`, `if` and "
            f"`max(a, b)` need one truth value",
            hint="for each value: (a > 0) & (b > 0), |, ~, np.maximum(a, b); for all: .values.all(), .values.any()",
        )

    def _refuse_libraries(self) -> None:
        """Refuses to give values without labels to a library that would match them to its own labels by position."""
        caller = sys._getframe(2).f_globals.get("__name__", "").partition(".")[0]
        if caller in ("numpy", "pandas", "polars"):
            self._refuse(caller)

    def _refuse(self, library: str) -> None:
        # not a ValueError: pandas catches that and then takes the values by position
        raise TypeError(
            f"{library} would take a {type(self).__name__} by position: pass .pandas(), which keeps the labels, or "
            f".values, which has none; for several, np.stack([a, b]) compares the labels"
        )

    def __arrow_array__(self, type: Any = None) -> Any:
        self._refuse("pyarrow")

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        self._refuse_libraries()
        return np.array(self.values, dtype=dtype) if copy else np.asarray(self.values, dtype=dtype)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if method != "__call__" or kwargs.get("out") is not None:
            return NotImplemented
        if "where" in kwargs:
            raise BadRequest(f"np.{ufunc.__name__}(where=...) is not aligned", hint="use np.where")
        if ufunc is np.matmul:
            return _product(*inputs)
        return _apply(ufunc, inputs, kwargs, absent=False if ufunc in _LOGICAL else np.nan)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if function in _ELEMENTWISE and (function is not np.where or len(args) == 3):
            named = next((k for k, v in kwargs.items() if _may_have_labels(v)), None)
            if named is not None:
                raise BadRequest(
                    f"np.{function.__name__}({named}=...) is not aligned", hint="pass it without its name, by position"
                )
            if function is np.where:
                # for a symbol that the condition lacks, the condition is False
                return _apply(function, args, kwargs, absent=(False, np.nan, np.nan))
            return _apply(function, args, {k: v for k, v in kwargs.items() if k != "copy"})
        whole: list[Labelled] = []
        args, kwargs = _unwrapped(args, whole), _unwrapped(kwargs, whole)
        rows = {x.symbols for x in whole}
        times = [x.index for x in whole if x.index is not None]
        if len(rows) > 1 or any(not np.array_equal(times[0], other) for other in times[1:]):
            fix = "align them first: a.reindex(b.symbols); or pass" if len(rows) > 1 else "their sessions differ: pass"
            raise BadRequest(
                f"np.{function.__name__} takes arrays by position, and these have different labels",
                hint=f"{fix} .values if positions are meant",
            )
        return function(*args, **kwargs)


def _in_place(operator: str) -> Any:
    def operate(self: Any, other: Any) -> Any:
        return getattr(self, operator)(other)

    return operate


# `row *= 2` means `row = row * 2`, as with numbers
for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "matmul"):
    setattr(_Operand, f"__i{_name}__", _in_place(f"__{_name}__"))


class Row(_Operand):
    """A cross-section: one value for each symbol.

    `row["AMZN"]` is one value; `row[mask]`, `row[["AMZN", "KO"]]` and `row[:10]` are rows. A mask with symbols (a Row,
    a pandas Series) is aligned by them. `symbols[i]` is the symbol of `values[i]`.
    """

    def __init__(self, symbols: tuple[str, ...], values: np.ndarray) -> None:
        if labelled(values) is not None:
            raise BadRequest("the values of a Row must not have labels", hint="pass .to_numpy(), or .values")
        self.symbols = _each_once(symbols, "the Row")
        self.values = np.asarray(values)
        if self.values.shape != (len(self.symbols),):
            raise BadRequest(f"a Row of {len(self.symbols)} symbols has values of shape {self.values.shape}")

    def _labelled(self) -> Labelled:
        return Labelled(self.values, self.symbols, None)

    @property
    def shape(self) -> tuple[int]:
        """The number of symbols."""
        return (len(self.symbols),)

    def __len__(self) -> int:
        return len(self.symbols)

    def __iter__(self) -> Iterator[Any]:
        self._refuse_libraries()
        return iter(self.values)

    def __contains__(self, symbol: object) -> bool:
        """Whether it has the symbol."""
        if not isinstance(symbol, str):
            raise BadRequest(
                f"`in` looks for a symbol, and {symbol!r} is not one", hint="to look for a value: in row.values"
            )
        return symbol in self.symbols

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return self.values[_position(self.symbols, key)]
        if isinstance(key, int | np.integer):
            self._refuse_libraries()
            return self.values[key]
        picked = np.arange(len(self.symbols))[_picked(self.symbols, key)]
        return Row(tuple(self.symbols[i] for i in picked), self.values[picked])

    def items(self) -> Iterator[tuple[str, Any]]:
        """Pairs of symbol and value."""
        return zip(self.symbols, self.values, strict=True)

    def dropna(self) -> Row:
        """The Row without the symbols whose value is NaN."""
        return self[~np.isnan(self.values)]

    def rank(self, *, descending: bool = False) -> Row:
        """Ranks: 1 for the least value, the average rank for ties, NaN for NaN."""
        ranks = np.full(len(self.values), np.nan)
        there = np.flatnonzero(~np.isnan(self.values))
        _, inverse, counts = np.unique(self.values[there], return_inverse=True, return_counts=True)
        last = np.cumsum(counts[::-1])[::-1] if descending else np.cumsum(counts)
        ranks[there] = (last - (counts - 1) / 2)[inverse]
        return Row(self.symbols, ranks)

    def reindex(self, symbols: Any) -> Row:
        """The values of `symbols`, in that order; NaN for symbols that this Row lacks."""
        wanted = _wanted(symbols)
        return Row(wanted, pick(self.values, places(self.symbols, "the Row"), wanted, np.nan))

    def pandas(self) -> Any:
        """A `pandas.Series` indexed by symbol."""
        return _pandas().Series(self.values.copy(), index=list(self.symbols))

    def mean(self) -> float:
        """Mean, without NaN."""
        return float(_reduce("mean", self.values, None))

    def sum(self) -> float:
        """Sum, without NaN."""
        return float(_reduce("sum", self.values, None))

    def std(self, ddof: int = 1) -> float:
        """Standard deviation, without NaN."""
        return float(_reduce("std", self.values, None, ddof=ddof))

    def min(self) -> float:
        """Least value."""
        return float(_reduce("min", self.values, None))

    def max(self) -> float:
        """Greatest value."""
        return float(_reduce("max", self.values, None))

    def median(self) -> float:
        """Median of the values that are there."""
        return float(_reduce("median", self.values, None))

    def __repr__(self) -> str:
        shown = [f"{s}: {v:.6g}" for s, v in list(self.items())[:8]]
        rest = len(self) - len(shown)
        return f"Row({', '.join(shown)}{f', … {rest} more' if rest else ''})"


class Wide(_Operand):
    """One field as a matrix, sessions down and symbols across.

    Attributes:
        index: the sessions as midnights, ascending, `datetime64[ns]` (UTC). If rows have a time of day: their times.
        symbols: the symbols, each once; sorted if the matrix comes from a read.
        values: `len(index) x len(symbols)`, float64, C order, NaN where there is no row or no value. A matrix of a read
            is read-only: `.values.copy()` gives one to write to.
        calendar: the calendar, if the index has every session of it; None if the index has only the times with rows.

    `w[-21]` is the row of 21 sessions ago, `w[-252:]` the last year, `w["AMZN"]` one symbol's values, `w["2016-08-10"]`
    the row of that session (unless a symbol has that name). `w.loc["2016-01-01":"2016-08-10"]` is a range of dates,
    both ends included, as in pandas. A mask with labels is aligned by them.
    """

    def __init__(
        self, index: np.ndarray, symbols: tuple[str, ...], values: np.ndarray, calendar: str | None = None
    ) -> None:
        if labelled(values) is not None:
            raise BadRequest("the values of a Wide must not have labels", hint="pass .to_numpy(), or .values")
        self.index = _ascending(index)
        self.symbols = _each_once(symbols, "the Wide")
        self.values = np.asarray(values)
        self.calendar = calendar
        if self.values.shape != self.shape:
            raise BadRequest(f"a Wide of {self.shape} sessions and symbols has values of shape {self.values.shape}")

    def _labelled(self) -> Labelled:
        return Labelled(self.values, self.symbols, self.index)

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of sessions and of symbols."""
        return (len(self.index), len(self.symbols))

    @property
    def sessions(self) -> list[str]:
        """The sessions as text, `2016-08-10`."""
        return [str(format_ns(ns)) for ns in self.index.view(np.int64).tolist()]

    @property
    def loc(self) -> _Loc:
        """Parts by label: `w.loc["2016-08-10"]`, `w.loc["2016-01-01":]`, `w.loc["2016-08-10", "AMZN"]`."""
        return _Loc(self)

    def __len__(self) -> int:
        return len(self.index)

    def __contains__(self, label: object) -> bool:
        """Whether it has the symbol, or the session of that date."""
        if isinstance(label, str) and (label in self.symbols or not _is_time(label)):
            return label in self.symbols
        try:
            self._session(label)
        except UnknownSession:
            return False
        return True

    def __iter__(self) -> Iterator[Row]:
        self._refuse_libraries()
        return (Row(self.symbols, values) for values in self.values)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            if key not in self.symbols and _is_time(key):
                return self._row(self._session(key))
            return self.values[:, _position(self.symbols, key)]
        if isinstance(key, dt.date | np.datetime64):
            return self._row(self._session(key))
        if isinstance(key, int | np.integer) and not isinstance(key, bool):
            self._refuse_libraries()
            sessions = len(self.index)
            if not -sessions <= key < sessions:
                _trellis.check_integer_time(max(int(key), 0), "session")
                raise IndexError(
                    f"session {key} does not exist: there are {sessions} sessions. Declare a longer lookback, or check "
                    f"len() for a short history"
                )
            return self._row(key)
        if isinstance(key, slice) and any(isinstance(b, str | dt.date | np.datetime64) for b in (key.start, key.stop)):
            return self.loc[key]
        key = key.to_list() if is_pandas(key, "Index") else key
        of = None if isinstance(key, slice) else labelled(key)
        if of is not None:
            return self._masked(of)
        if isinstance(key, list | tuple | np.ndarray) and len(key) and all(isinstance(s, str) for s in key):
            at = [_position(self.symbols, s) for s in key]
            return Wide(self.index, tuple(key), self.values[:, at], self.calendar)
        if isinstance(key, slice) or (isinstance(key, np.ndarray) and key.ndim == 1 and key.dtype.kind in "biu"):
            # a selection in another order, or with gaps, no longer has every session
            whole = isinstance(key, slice) and key.step in (None, 1)
            return Wide(self.index[key], self.symbols, self.values[key], self.calendar if whole else None)
        raise TypeError(f"a Wide is indexed by session number, date, slice, mask, symbol or symbols, not {key!r}")

    def _row(self, at: int) -> Row:
        return Row(self.symbols, self.values[at])

    def _masked(self, mask: Labelled) -> Wide:
        """Applies a mask with labels: it selects sessions or symbols, or puts NaN where a mask of values is False."""
        if mask.values.dtype != bool:
            raise BadRequest(f"a mask holds True and False, not {mask.values.dtype}")
        if mask.index is None:
            at = np.flatnonzero(_mask(self.symbols, mask))
            return Wide(self.index, tuple(self.symbols[i] for i in at), self.values[:, at], self.calendar)
        if mask.symbols is None:
            place = np.searchsorted(mask.index, self.index)
            there = place < len(mask.index)
            there[there] = mask.index[place[there]] == self.index[there]
            if not there.all():
                raise BadRequest(f"the mask has no session {_day(self.index[np.flatnonzero(~there)[0]])}")
            return self[mask.values[place, 0]]
        known = np.isin(mask.index, self.index)
        mask = Labelled(mask.values[known], mask.symbols, mask.index[known])
        kept = spread(mask, self.symbols, self.index, False)
        return Wide(self.index, self.symbols, np.where(kept, self.values, np.nan), self.calendar)

    def _session(self, key: Any) -> int:
        """The position of a session, by its date."""
        ns = to_ns(_no_position(key), "session")
        assert ns is not None
        times = self.index.view(np.int64)
        at = int(np.searchsorted(times, ns))
        if at < len(times) and times[at] == ns:
            return at
        raise UnknownSession(self._absent(ns))

    def _absent(self, ns: int) -> str:
        day = format_ns(ns)
        if not len(self.index):
            return f"{day} is not in this matrix: it has no sessions"
        span = f"{_day(self.index[0])} … {_day(self.index[-1])}"
        if self.calendar and (ns % _DAY_NS or not _trellis.is_session(self.calendar, ns)):
            return f"{day} is not a session of {self.calendar}"
        if not self.index[0] <= np.datetime64(ns, "ns") <= self.index[-1]:
            return f"{day} is outside of the sessions of this matrix, {span}"
        return f"{day} has no row in this matrix; the times with rows are within {span}"

    def ffill(self) -> Wide:
        """Replaces NaN with the last value before it."""
        rows = np.where(np.isnan(self.values), -1, np.arange(len(self))[:, None])
        last = np.maximum.accumulate(rows, axis=0) if len(self) else rows
        filled = np.take_along_axis(self.values, np.maximum(last, 0), axis=0) if len(self) else self.values
        return Wide(self.index, self.symbols, np.where(last < 0, np.nan, filled), self.calendar)

    def count(self) -> Row:
        """The number of values of each symbol, without NaN."""
        return Row(self.symbols, (~np.isnan(self.values)).sum(axis=0))

    def reindex(self, symbols: Any) -> Wide:
        """The columns of `symbols`, in that order; NaN for symbols that this matrix lacks."""
        wanted = _wanted(symbols)
        values = pick(self.values, places(self.symbols, "the Wide"), wanted, np.nan)
        return Wide(self.index, wanted, values, self.calendar)

    def shift(self, sessions: int = 1) -> Wide:
        """Moves values `sessions` later (earlier, if negative); NaN where no value moves to."""
        moved = np.full(self.shape, np.nan)
        if 0 <= sessions < len(self):
            moved[sessions:] = self.values[: len(self) - sessions]
        elif -len(self) < sessions < 0:
            moved[:sessions] = self.values[-sessions:]
        return Wide(self.index, self.symbols, moved, self.calendar)

    def pandas(self) -> Any:
        """A `pandas.DataFrame` with the index `ts` (UTC) and a column for each symbol."""
        pd = _pandas()
        index = pd.DatetimeIndex(self.index, tz="UTC", name="ts")
        return pd.DataFrame(self.values.copy(), index=index, columns=pd.Index(list(self.symbols), name="symbol"))

    def _reduced(self, name: str, axis: int | None, **options: Any) -> Any:
        result = _reduce(name, self.values, axis, **options)
        if axis is None:
            return float(result)
        return Row(self.symbols, result) if axis == 0 else result

    def mean(self, axis: int | None = 0) -> Any:
        """axis 0 (default): a `Row`, over sessions. axis 1: an array, over symbols. None: one number. Skips NaN."""
        return self._reduced("mean", axis)

    def sum(self, axis: int | None = 0) -> Any:
        """Like `mean`."""
        return self._reduced("sum", axis)

    def std(self, axis: int | None = 0, ddof: int = 1) -> Any:
        """Like `mean`."""
        return self._reduced("std", axis, ddof=ddof)

    def var(self, axis: int | None = 0, ddof: int = 1) -> Any:
        """Like `mean`."""
        return self._reduced("var", axis, ddof=ddof)

    def min(self, axis: int | None = 0) -> Any:
        """Like `mean`."""
        return self._reduced("min", axis)

    def max(self, axis: int | None = 0) -> Any:
        """Like `mean`."""
        return self._reduced("max", axis)

    def median(self, axis: int | None = 0) -> Any:
        """Like `mean`."""
        return self._reduced("median", axis)

    def __repr__(self) -> str:
        if not len(self.index):
            return f"Wide(no sessions x {len(self.symbols)} symbols)"
        of = f" of {self.calendar}" if self.calendar else ""
        span = f"{_day(self.index[0])} … {_day(self.index[-1])}"
        return f"Wide({len(self.index)} sessions{of} {span} x {len(self.symbols)} symbols)"


class _Loc:
    """`Wide.loc`."""

    def __init__(self, wide: Wide) -> None:
        self._wide = wide

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, tuple):
            if len(key) != 2:
                raise BadRequest(f"w.loc takes sessions and symbols, not {len(key)} labels")
            part = self[key[0]]
            if isinstance(key[1], slice):
                if key[1] == slice(None):
                    return part
                raise BadRequest(
                    "a slice of symbols is not supported", hint='name them: w.loc["2016-08-10", ["AMZN", "KO"]]'
                )
            return part[key[1]]
        wide = self._wide
        if isinstance(key, slice):
            if key.step is not None:
                raise BadRequest("a slice of dates cannot have a step")
            times = wide.index.view(np.int64)
            start, stop = to_start(_no_position(key.start)), to_end(_no_position(key.stop), "stop")
            first = 0 if start is None else int(np.searchsorted(times, start))
            # the last date is included, with its whole day
            last = len(times) if stop is None else int(np.searchsorted(times, min(stop + _span(stop), _LAST_NS)))
            return wide[first : max(first, last)]
        if isinstance(key, str | dt.date | np.datetime64):
            return wide._row(wide._session(key))
        if isinstance(key, list | tuple | np.ndarray) or library(key) == "pandas":
            at = np.array([wide._session(one) for one in key], dtype=np.intp)
            return Wide(wide.index[at], wide.symbols, wide.values[at])
        raise BadRequest(f"w.loc takes dates, not {key!r}", hint='w.loc["2016-08-10"]; positions are w[-1], w[-252:]')


def _no_position(key: Any) -> Any:
    """Refuses an integer as a date: it would mean nanoseconds, but its author means a position."""
    if isinstance(key, int | np.integer):
        raise BadRequest(
            f"the labels are dates, and {key} is not one",
            hint="use positions without loc: w[-1], w[-252:]; after dates: w.loc[a:b][:-1]",
        )
    return key


def _ascending(index: Any) -> np.ndarray:
    """Checks the index of a matrix: dates, shift(), ffill() and alignment rely on its order."""
    if not (isinstance(index, np.ndarray) and index.dtype == "datetime64[ns]"):
        times, order = sessions(index, "the Wide")
        index = times[np.argsort(order)]
    if not (index[1:] > index[:-1]).all():
        raise BadRequest(
            "the sessions of a Wide must be in ascending order without duplicates, and these are not",
            hint="to reverse, use w.values[::-1], or w.pandas()[::-1] which keeps the sessions",
        )
    return index


def _each_once(symbols: Any, what: str) -> tuple[str, ...]:
    symbols = tuple(symbols)
    if len(set(symbols)) < len(symbols):
        places(symbols, what)
    return symbols


def _span(stop: int) -> int:
    """The length in nanoseconds that a bound includes: a day for a midnight, else only the time itself."""
    return 1 if stop % _DAY_NS else _DAY_NS


def _day(time: np.datetime64) -> str:
    return str(format_ns(int(np.datetime64(time, "ns").view(np.int64))))


def _is_time(text: str) -> bool:
    try:
        to_ns(text, "session")
    except BadRequest:
        return False
    return True


def _position(symbols: tuple[str, ...], symbol: str) -> int:
    try:
        return symbols.index(symbol)
    except ValueError:
        raise UnknownSymbol(f"symbol {symbol!r} is not among the {len(symbols)} symbols here", symbol=symbol) from None


def _picked(symbols: tuple[str, ...], key: Any) -> Any:
    """The index of a Row in the form that numpy takes."""
    if isinstance(key, slice):
        return key
    key = key.to_list() if is_pandas(key, "Index") else key
    mask = labelled(key)
    if mask is not None:
        return _mask(symbols, mask)
    if len(key) and all(isinstance(s, str) for s in key):
        return [_position(symbols, s) for s in key]
    return key


def _mask(symbols: tuple[str, ...], mask: Labelled) -> np.ndarray:
    """A mask of symbols in the order of `symbols`."""
    if mask.symbols is None or mask.index is not None:
        raise BadRequest("the mask has sessions, but a Row needs one of symbols", hint="take one row of it: mask[-1]")
    if mask.values.dtype != bool:
        raise BadRequest(f"a mask holds True and False, not {mask.values.dtype}")
    here = places(mask.symbols, "the mask")
    absent = next((s for s in symbols if s not in here), None)
    if absent is not None:
        raise BadRequest(f"the mask has no symbol {absent!r}", hint="make the mask from the same symbols")
    return pick(mask.values, here, symbols, False)


def _wanted(symbols: Any) -> tuple[str, ...]:
    if isinstance(symbols, str):
        raise BadRequest(f"reindex takes a list of symbols, not {symbols!r}", hint=f"reindex([{symbols!r}])")
    return names(symbols, "the list of symbols")


def _may_have_labels(value: Any) -> bool:
    return isinstance(value, _Operand) or library(value) in ("pandas", "polars")


def _unwrapped(value: Any, found: list[Labelled]) -> Any:
    """Arguments of a numpy function without their labels. The labelled operands are appended to `found`."""
    if isinstance(value, list | tuple):
        return type(value)([_unwrapped(v, found) for v in value])
    if isinstance(value, dict):
        return {k: _unwrapped(v, found) for k, v in value.items()}
    if _may_have_labels(value):
        of = labelled(value)
        assert of is not None
        found.append(of)
        return read_only(of.values)
    return value


def _apply(function: Any, inputs: tuple[Any, ...], kwargs: dict[str, Any], *, absent: Any = np.nan) -> Any:
    arrays, symbols, index = align(inputs, absent=absent)
    down = 0 if index is None else len(index)
    if down > 1 and any(np.shape(x) == (down,) for x in inputs if not _may_have_labels(x)):
        # such as w.mean(axis=1): numpy would match it to the symbols if there are as many of them
        raise BadRequest(
            f"an array of {down} values without labels stands beside {down} sessions x {len(symbols)} symbols",
            hint="use x[:, None] if it has a value for each session, trellis.Row(w.symbols, x) if for each symbol",
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        result = function(*arrays, **kwargs)
    # the union of two parts of a calendar may lack sessions, so the result keeps the calendar only of its own index
    whole = (x.calendar for x in inputs if isinstance(x, Wide) and x.calendar and np.array_equal(x.index, index))
    calendar = next(whole, None)

    def labels(values: Any) -> Any:
        values = np.asarray(values)
        if values.dtype.kind not in "biuf":
            raise BadRequest(f"np.{function.__name__} gives {values.dtype}, which is not a number type")
        if values.shape == (len(symbols),) and index is None:
            return Row(symbols, values)
        if index is not None and values.shape == (len(index), len(symbols)):
            return Wide(index, symbols, values, calendar)
        raise BadRequest(f"shapes do not fit: {[getattr(x, 'shape', np.shape(x)) for x in inputs]}")

    return tuple(labels(r) for r in result) if isinstance(result, tuple) else labels(result)


def _product(left: Any, right: Any) -> Any:
    """`@`: sums over symbols. Two rows give a number; a matrix and a row give an array, one value for each session."""
    of_left, of_right = labelled(left), labelled(right)
    if of_right is not None and of_right.index is not None:
        raise BadRequest(
            "@ sums over symbols, and a matrix on the right has sessions in their place", hint="write wide @ row"
        )
    arrays, _, _ = align((left, right))
    if of_left is not None and of_left.symbols is None:
        raise BadRequest("@ sums over symbols, and the left operand has none")
    with np.errstate(invalid="ignore"):
        result = np.matmul(floats(np.asarray(arrays[0]), "the left operand"), np.asarray(arrays[1]))
    return float(result) if np.ndim(result) == 0 else result


def _pandas() -> Any:
    try:
        import pandas
    except ImportError:
        raise missing_package("pandas", ".pandas()") from None
    return pandas
