"""Aligns operands by their labels. A labelled operand is aligned or refused; it is never taken by position.

`Labelled` is the common form of the operands of `Row` and `Wide`. A pandas Series or DataFrame becomes one. A polars
Series has no labels, so it is refused. Numbers, numpy arrays and lists have no labels either: they are taken by
position, as numpy takes them.
"""

from __future__ import annotations

import datetime as dt
import decimal
import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from ..errors import BadRequest
from .times import datetime64_ns, to_ns

# float64 holds every integer up to this one
EXACT_MAX = 2**53
_NUMBERS = "biuf"
_PLAIN = (np.ndarray, np.generic, bool, int, float, complex, str, bytes, list, tuple, dt.date, dt.timedelta, type(None))


class Labelled(NamedTuple):
    """Values and their labels: by symbol, by session, or by both."""

    values: np.ndarray
    symbols: tuple[str, ...] | None
    # sorted, datetime64[ns]
    index: np.ndarray | None


def is_pandas(value: Any, kind: str) -> bool:
    """Whether `value` is an object of that class of pandas, `Series` say. Does not import pandas."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(value, getattr(pandas, kind))


def library(value: Any) -> str:
    """The name of the package that defines the value's type."""
    return type(value).__module__.partition(".")[0]


def labelled(value: Any) -> Labelled | None:
    """The value with its labels; None for numbers, arrays and lists, which have none.

    Raises:
        BadRequest: the labels cannot be aligned, or the type is unknown.
    """
    own = getattr(value, "_labelled", None)
    if own is not None:
        return own()
    if is_pandas(value, "Series"):
        return _series(value)
    if is_pandas(value, "DataFrame"):
        return _data_frame(value)
    if isinstance(value, _PLAIN):
        return None
    kind = f"{library(value)} {type(value).__name__}"
    if library(value) in ("pandas", "polars", "pyarrow"):
        raise BadRequest(
            f"a {kind} has no symbols to align by",
            hint="pass .to_numpy() if its values are in the order of .symbols, or a pandas Series indexed by symbol",
        )
    raise BadRequest(
        f"a {kind} cannot be an operand here",
        hint="operands are numbers, numpy arrays, Row, Wide, and pandas Series and DataFrames labelled by symbol",
    )


def names(labels: Iterable[Any], what: str) -> tuple[str, ...]:
    """The labels as symbols.

    Raises:
        BadRequest: a label is not text, or is there twice.
    """
    if getattr(labels, "nlevels", 1) > 1:
        raise BadRequest(f"{what} has a MultiIndex", hint="keep the level of symbols: .droplevel(...) or .unstack()")
    found = tuple(labels)
    wrong = next((s for s in found if not isinstance(s, str)), None)
    if wrong is not None:
        raise BadRequest(f"{what} is labelled by {type(wrong).__name__} {wrong!r}, not by symbols", hint=_BY_POSITION)
    places(found, what)
    return found


_BY_POSITION = "index it by symbol, or pass .to_numpy() if its values are in the order of .symbols"


def places(symbols: tuple[str, ...], what: str) -> dict[str, int]:
    """The position of each symbol.

    Raises:
        BadRequest: the labels have a symbol twice, so it would name two values.
    """
    found = {s: i for i, s in enumerate(symbols)}
    if len(found) < len(symbols):
        twice = next(s for i, s in enumerate(symbols) if found[s] != i)
        raise BadRequest(f"{what} has the symbol {twice!r} twice", hint="keep one of them")
    return found


def numbers(values: Any, what: str) -> np.ndarray:
    """Values of pandas as an array of numbers; a missing value becomes NaN.

    Raises:
        BadRequest: a value is not a number, or float64 cannot hold it.
    """
    if isinstance(values.dtype, np.dtype) and values.dtype.kind in _NUMBERS:
        return np.asarray(values)
    missing = np.asarray(values.isna())
    plain = np.asarray(values, dtype=object)
    if not missing.any() and all(isinstance(v, bool | np.bool_) for v in plain.ravel()):
        return plain.astype(bool)
    try:
        # numpy would also accept text that looks like a number
        if any(isinstance(v, str | bytes) for v in plain[~missing]):
            raise TypeError
        found = np.where(missing, np.nan, plain).astype(np.float64)
    except (TypeError, ValueError):
        raise BadRequest(
            f"{what} holds {values.dtype}, which is not a number type", hint="convert it to a number type first"
        ) from None
    for at in np.flatnonzero(~missing.ravel()):
        changed(plain.ravel()[at], found.ravel()[at], what)
    return found


def changed(before: Any, after: float, what: str) -> None:
    """Refuses an integer that float64 changed, and a decimal that is not the shortest text of any float64."""
    if isinstance(before, int | np.integer) and int(before) != after:
        raise BadRequest(f"{what} holds {before}, which float64 would make {int(after)}")
    if isinstance(before, decimal.Decimal) and before.is_finite() and decimal.Decimal(repr(float(after))) != before:
        raise BadRequest(f"{what} holds the decimal {before}, which float64 cannot hold exactly", hint="round it")


def floats(values: np.ndarray, what: str) -> np.ndarray:
    """An array as float64, which has NaN; an integer that would change is refused."""
    if values.dtype.kind in "iu" and values.size and (values.max() > EXACT_MAX or values.min() < -EXACT_MAX):
        for value in values.ravel():
            changed(value, float(value), what)
    return values.astype(np.float64)


def _series(series: Any) -> Labelled:
    what = "the pandas Series"
    if getattr(series.index, "nlevels", 1) == 1 and _are_times(series.index):
        index, order = sessions(series.index, what)
        return Labelled(numbers(series, what)[order, None], None, index)
    return Labelled(numbers(series, what), names(series.index, what), None)


def _data_frame(frame: Any) -> Labelled:
    what = "the pandas DataFrame"
    if any(getattr(axis, "nlevels", 1) > 1 for axis in (frame.index, frame.columns)):
        raise BadRequest(f"{what} has a MultiIndex", hint="unstack it to sessions down and symbols across")
    if not _are_times(frame.index):
        turned = len(frame.columns) > 0 and _are_times(frame.columns)
        raise BadRequest(
            f"{what} is not sessions down and symbols across: its index begins with {next(iter(frame.index), None)!r}",
            hint="sessions and symbols are swapped: pass df.T"
            if turned
            else "index it by session, with a column a symbol",
        )
    index, order = sessions(frame.index, what)
    symbols = names(frame.columns, f"{what}'s columns")
    columns = [numbers(frame.iloc[:, i], f"{what}'s column {s}") for i, s in enumerate(symbols)]
    values = np.column_stack(columns) if columns else np.empty((len(index), 0))
    return Labelled(values[order], symbols, index)


def _are_times(labels: Any) -> bool:
    if getattr(labels.dtype, "kind", "") == "M":
        return True
    first = next(iter(labels), None)
    if isinstance(first, str):
        try:
            to_ns(first, "session")
        except BadRequest:
            return False
        return True
    return isinstance(first, dt.date)


def sessions(labels: Any, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels that are times, sorted, and the order that sorts them.

    Raises:
        BadRequest: a label is not a time, a time is there twice, or the labels are midnights of a zone other than UTC.
    """
    zone = getattr(labels, "tz", None)
    if zone is not None:
        utc, local = labels.tz_convert("UTC"), labels.tz_localize(None)
        if len(labels) and (utc != utc.normalize()).any() and (local == local.normalize()).all():
            raise BadRequest(
                f"{what} is indexed by midnights of {zone}; the label of a session is its date at midnight UTC",
                hint="drop the time zone of the index: df.tz_localize(None)",
            )
        labels = utc.tz_localize(None)
    if getattr(getattr(labels, "dtype", None), "kind", "") == "M":
        times = np.asarray(labels)
        if np.isnat(times).any():
            raise BadRequest(f"{what} has no time in its index at row {int(np.flatnonzero(np.isnat(times))[0])}")
        ns = datetime64_ns(times, f"{what}'s index")
    else:
        ns = np.array([to_ns(label, f"{what}'s index") for label in labels], dtype=np.int64)
    order = np.argsort(ns, kind="stable")
    ns = ns[order]
    twice = np.flatnonzero(ns[1:] == ns[:-1])
    if len(twice):
        at = np.datetime_as_string(ns[twice[0]].view("datetime64[ns]"), unit="auto")
        raise BadRequest(f"{what} has the session {at} twice", hint="keep one of them")
    return ns.view("datetime64[ns]"), order


class Aligned(NamedTuple):
    """Operands brought to one shape, and the labels of that shape."""

    arrays: list[Any]
    symbols: tuple[str, ...]
    index: np.ndarray | None


def align(operands: Iterable[Any], *, absent: Any = np.nan) -> Aligned:
    """Brings operands to the union of their labels.

    `absent` stands where an operand has no value: one value for all operands, or a tuple with one for each.

    Raises:
        BadRequest: labels cannot be aligned, an array without labels stands beside operands whose labels differ, or a
            value is not a number.
    """
    operands = [x.astype(np.float64).filled(np.nan) if isinstance(x, np.ma.MaskedArray) else x for x in operands]
    found = [labelled(x) for x in operands]
    for x, of in zip(operands, found, strict=True):
        # np.clip takes None as "no bound"
        if of is None and x is not None and np.asarray(x).dtype.kind not in _NUMBERS:
            raise BadRequest(
                f"{type(x).__name__} {str(x)[:40]!r} is not a number", hint="write a missing number as np.nan"
            )
    there = [x for x in found if x is not None]
    symbols = _union([x.symbols for x in there if x.symbols is not None])
    matrices = [x.index for x in there if x.index is not None]
    if matrices and all(x.index is None or x.symbols is None for x in there):
        raise BadRequest("a Row is labelled by symbol and the pandas Series by session: they have no label in common")
    index = matrices[0] if matrices else None
    if any(not np.array_equal(other, index) for other in matrices):
        index = np.unique(np.concatenate(matrices))
    moved = [x is not None and not _in_place(x, symbols, index) for x in found]
    unnamed = next((x for x, of in zip(operands, found, strict=True) if of is None and np.ndim(x) > 0), None)
    if any(moved) and unnamed is not None:
        raise BadRequest(
            f"an array of {np.size(unnamed)} values without labels stands beside operands of different labels",
            hint="align the labelled operands first: a.reindex(b.symbols)",
        )
    absents = absent if isinstance(absent, tuple) else (absent,) * len(operands)
    arrays = [
        x if of is None else spread(of, symbols, index, none) if move else read_only(of.values)
        for x, of, move, none in zip(operands, found, moved, absents, strict=True)
    ]
    return Aligned(arrays, symbols, index)


def read_only(values: np.ndarray) -> np.ndarray:
    """A read-only view of the values."""
    view = values.view()
    view.flags.writeable = False
    return view


def _in_place(x: Labelled, symbols: tuple[str, ...], index: np.ndarray | None) -> bool:
    named = x.symbols is None or x.symbols == symbols
    return named and (x.index is None or (index is not None and np.array_equal(x.index, index)))


def _union(axes: list[tuple[str, ...]]) -> tuple[str, ...]:
    first = axes[0]
    if all(a == first for a in axes):
        return first
    # the grid sorts symbols by their bytes
    return tuple(sorted({s for a in axes for s in a}, key=lambda s: s.encode()))


def spread(x: Labelled, symbols: tuple[str, ...], index: np.ndarray | None, absent: Any) -> np.ndarray:
    """The values at the places that `symbols` and `index` give them; `absent` at the other places.

    `symbols` and `index` contain all labels of `x`.
    """
    values = x.values
    if x.symbols is not None and x.symbols != symbols:
        values = pick(values, places(x.symbols, "an operand"), symbols, absent)
    if x.index is not None and index is not None and not np.array_equal(x.index, index):
        wider = _empty((len(index), values.shape[1]), values, absent)
        wider[np.searchsorted(index, x.index)] = values
        values = wider
    return values


def pick(values: np.ndarray, here: dict[str, int], symbols: tuple[str, ...], absent: Any) -> np.ndarray:
    """The values of `symbols` along the last axis, in that order; `absent` for symbols that are not in `here`."""
    of = np.array([here.get(s, -1) for s in symbols], dtype=np.intp)
    if len(of) and of.min() >= 0:
        return values[..., of]
    wider = _empty((*values.shape[:-1], len(symbols)), values, absent)
    there = of >= 0
    wider[..., there] = values[..., of[there]]
    return wider


def _empty(shape: tuple[int, ...], values: np.ndarray, absent: Any) -> np.ndarray:
    if isinstance(absent, bool) and values.dtype == bool:
        return np.full(shape, absent)
    floats(values, "an operand with symbols missing")
    return np.full(shape, np.nan)
