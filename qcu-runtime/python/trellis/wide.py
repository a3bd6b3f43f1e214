"""Sessions x symbols: what most strategies compute with.

`Wide` is one contiguous float64 matrix with its two axes; `Row` is one value a symbol. Both are numpy operands: every
operator and ufunc works, and two of them are aligned by symbol (and a pair of matrices by session) first, as pandas
does: the union, NaN where one side has nothing. Reductions skip NaN, as pandas does. Nothing here mutates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from .errors import BadRequest, UnknownSymbol, _missing

__all__ = ["Row", "Wide"]

_REDUCTIONS: dict[str, Callable[..., Any]] = {
    "mean": np.nanmean,
    "sum": np.nansum,
    "std": np.nanstd,
    "var": np.nanvar,
    "min": np.nanmin,
    "max": np.nanmax,
    "median": np.nanmedian,
}


def _reduce(name: str, values: np.ndarray, axis: int | None, **options: Any) -> Any:
    # An all-NaN column has no mean. That is NaN, not news; an empty one likewise, where numpy would raise.
    if values.size == 0 and name in ("min", "max"):
        shape = () if axis is None else tuple(n for i, n in enumerate(values.shape) if i != axis % values.ndim)
        return np.full(shape, np.nan)[()]
    with np.errstate(all="ignore"):
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            return _REDUCTIONS[name](values, axis=axis, **options)


class Row(NDArrayOperatorsMixin):
    """One value a symbol: a cross-section.

    `row["AMZN"]` is one value, `row[mask]` and `row[:10]` are rows; `symbols` and `values` go together.
    """

    __array_priority__ = 1000

    def __init__(self, symbols: tuple[str, ...], values: np.ndarray) -> None:
        self.symbols = symbols
        self.values = values

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.array(self.values, dtype=dtype) if copy else np.asarray(self.values, dtype=dtype)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        return _apply(ufunc, method, inputs, kwargs)

    @property
    def shape(self) -> tuple[int]:
        """Symbols."""
        return (len(self.symbols),)

    def __len__(self) -> int:
        return len(self.symbols)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return self.values[_position(self.symbols, key)]
        if isinstance(key, int | np.integer):
            return self.values[key]
        key = np.asarray(key) if isinstance(key, Row) else key
        picked = np.arange(len(self.symbols))[key]
        return Row(tuple(self.symbols[i] for i in picked), self.values[picked])

    def items(self) -> Iterator[tuple[str, Any]]:
        """Pairs of symbol and value."""
        return zip(self.symbols, self.values, strict=True)

    def dropna(self) -> Row:
        """Without the symbols that have no value."""
        return self[~np.isnan(self.values)]

    def rank(self, *, descending: bool = False) -> Row:
        """1 for the least value, the average rank for ties, NaN for NaN."""
        ranks = np.full(len(self.values), np.nan)
        there = np.flatnonzero(~np.isnan(self.values))
        values = -self.values[there] if descending else self.values[there]
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        last = np.cumsum(counts)
        ranks[there] = (last - (counts - 1) / 2)[inverse]
        return Row(self.symbols, ranks)

    def reindex(self, symbols: Any) -> Row:
        """The values of `symbols`, in that order; NaN for the ones that are not here."""
        wanted = tuple(symbols)
        here = {s: i for i, s in enumerate(self.symbols)}
        values = np.full(len(wanted), np.nan)
        for to, symbol in enumerate(wanted):
            if (at := here.get(symbol)) is not None:
                values[to] = self.values[at]
        return Row(wanted, values)

    def pandas(self) -> Any:
        """A `pandas.Series` indexed by symbol."""
        return _pandas().Series(self.values, index=list(self.symbols))

    def mean(self) -> float:
        """Mean of the values that are there."""
        return float(_reduce("mean", self.values, None))

    def sum(self) -> float:
        """Sum of the values that are there."""
        return float(_reduce("sum", self.values, None))

    def std(self, ddof: int = 1) -> float:
        """Standard deviation of the values that are there."""
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


class Wide(NDArrayOperatorsMixin):
    """One field as a matrix, sessions down and symbols across.

    Attributes:
        index: event times, ascending, `datetime64[ns]` (UTC).
        symbols: sorted.
        values: `len(index) x len(symbols)`, float64, C order, NaN where there is no row or no value. Read-only where
            it comes from a read: `.values.copy()` gives one to write to.

    `w[-21]` is the row of 21 sessions ago, `w[-252:]` the last year, `w["AMZN"]` one symbol's values.
    """

    __array_priority__ = 1001

    def __init__(self, index: np.ndarray, symbols: tuple[str, ...], values: np.ndarray) -> None:
        self.index = index
        self.symbols = symbols
        self.values = values

    @property
    def shape(self) -> tuple[int, int]:
        """Sessions, symbols."""
        return (len(self.index), len(self.symbols))

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.array(self.values, dtype=dtype) if copy else np.asarray(self.values, dtype=dtype)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        return _apply(ufunc, method, inputs, kwargs)

    def __len__(self) -> int:
        return len(self.index)

    def __iter__(self) -> Iterator[Row]:
        return (Row(self.symbols, values) for values in self.values)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return self.values[:, _position(self.symbols, key)]
        if isinstance(key, int | np.integer):
            sessions = len(self.index)
            if not -sessions <= key < sessions:
                raise IndexError(
                    f"session {key} is out of reach: there are {sessions}. Ask for a longer lookback, or handle a "
                    f"short history with len()"
                )
            return Row(self.symbols, self.values[key])
        if isinstance(key, slice) or (isinstance(key, np.ndarray) and key.ndim == 1):
            return Wide(self.index[key], self.symbols, self.values[key])
        if isinstance(key, list) and all(isinstance(s, str) for s in key):
            at = [_position(self.symbols, s) for s in key]
            return Wide(self.index, tuple(key), self.values[:, at])
        raise TypeError(f"a Wide is indexed by session number, slice, mask, symbol or symbols, not {key!r}")

    def shift(self, sessions: int = 1) -> Wide:
        """Values of `sessions` earlier (later, if negative), NaN where there are none."""
        moved = np.full(self.shape, np.nan)
        if 0 <= sessions < len(self):
            moved[sessions:] = self.values[: len(self) - sessions]
        elif -len(self) < sessions < 0:
            moved[:sessions] = self.values[-sessions:]
        return Wide(self.index, self.symbols, moved)

    def pandas(self) -> Any:
        """A `pandas.DataFrame`, index `ts` (UTC), a column a symbol."""
        pd = _pandas()
        index = pd.DatetimeIndex(self.index, tz="UTC", name="ts")
        return pd.DataFrame(self.values, index=index, columns=pd.Index(list(self.symbols), name="symbol"))

    def _reduced(self, name: str, axis: int | None, **options: Any) -> Any:
        result = _reduce(name, self.values, axis, **options)
        if axis is None:
            return float(result)
        return Row(self.symbols, result) if axis == 0 else result

    def mean(self, axis: int | None = 0) -> Any:
        """axis 0 (default): a `Row`, over sessions. axis 1: an array, over symbols. None: one number. Skips NaN."""
        return self._reduced("mean", axis)

    def sum(self, axis: int | None = 0) -> Any:
        """As `mean`."""
        return self._reduced("sum", axis)

    def std(self, axis: int | None = 0, ddof: int = 1) -> Any:
        """As `mean`."""
        return self._reduced("std", axis, ddof=ddof)

    def var(self, axis: int | None = 0, ddof: int = 1) -> Any:
        """As `mean`."""
        return self._reduced("var", axis, ddof=ddof)

    def min(self, axis: int | None = 0) -> Any:
        """As `mean`."""
        return self._reduced("min", axis)

    def max(self, axis: int | None = 0) -> Any:
        """As `mean`."""
        return self._reduced("max", axis)

    def median(self, axis: int | None = 0) -> Any:
        """As `mean`."""
        return self._reduced("median", axis)

    def __repr__(self) -> str:
        if not len(self.index):
            return f"Wide(no sessions x {len(self.symbols)} symbols)"
        first, last = (np.datetime_as_string(t, unit="auto") for t in (self.index[0], self.index[-1]))
        return f"Wide({len(self.index)} sessions {first} … {last} x {len(self.symbols)} symbols)"


def _position(symbols: tuple[str, ...], symbol: str) -> int:
    try:
        return symbols.index(symbol)
    except ValueError:
        raise UnknownSymbol(f"symbol {symbol!r} is not among the {len(symbols)} here", symbol=symbol) from None


def _apply(ufunc: np.ufunc, method: str, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if method != "__call__" or kwargs.get("out") is not None:
        return NotImplemented
    labelled = [x for x in inputs if isinstance(x, Row | Wide)]
    symbols = _union([x.symbols for x in labelled])
    matrices = [x for x in labelled if isinstance(x, Wide)]
    index = matrices[0].index if matrices else None
    if index is not None and any(not np.array_equal(x.index, index) for x in matrices):
        index = np.unique(np.concatenate([x.index for x in matrices]))

    def aligned(x: Any) -> Any:
        if isinstance(x, Row):
            return x.values if x.symbols == symbols else x.reindex(symbols).values
        if isinstance(x, Wide) and index is not None:
            in_place = x.symbols == symbols and np.array_equal(x.index, index)
            return x.values if in_place else _spread(x, index, symbols)
        return x

    with np.errstate(divide="ignore", invalid="ignore"):
        result = ufunc(*[aligned(x) for x in inputs], **kwargs)

    def labels(values: Any) -> Any:
        values = np.asarray(values)
        if values.shape == (len(symbols),) and index is None:
            return Row(symbols, values)
        if index is not None and values.shape == (len(index), len(symbols)):
            return Wide(index, symbols, values)
        raise BadRequest(f"shapes do not fit: {[getattr(x, 'shape', np.shape(x)) for x in inputs]}")

    return tuple(labels(r) for r in result) if isinstance(result, tuple) else labels(result)


def _union(axes: list[tuple[str, ...]]) -> tuple[str, ...]:
    first = axes[0]
    if all(a == first for a in axes):
        return first
    # by bytes, the order in which the grid sorts symbols
    return tuple(sorted({s for a in axes for s in a}, key=lambda s: s.encode()))


def _spread(wide: Wide, index: np.ndarray, symbols: tuple[str, ...]) -> np.ndarray:
    columns = {s: i for i, s in enumerate(wide.symbols)}
    values = np.full((len(index), len(symbols)), np.nan)
    rows = np.searchsorted(index, wide.index)
    to = np.array([i for i, s in enumerate(symbols) if s in columns], dtype=np.intp)
    of = [columns[symbols[i]] for i in to]
    values[np.ix_(rows, to)] = wide.values[:, of]
    return values


def _pandas() -> Any:
    try:
        import pandas
    except ImportError:
        raise _missing("pandas", ".pandas()") from None
    return pandas
