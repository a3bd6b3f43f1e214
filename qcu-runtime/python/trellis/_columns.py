"""Converts what a strategy returns into rows, without an Arrow library for Python."""

from __future__ import annotations

import decimal
from typing import Any

import numpy as np

from . import _trellis
from ._values import datetime64_ns, is_pandas, library, to_ns
from .errors import BadRequest, BadRows, StrategyError
from .frame import Frame
from .wide import Row, Wide

_KEYS = ("symbol", "ts")
# types of polars whose Arrow form other libraries do not read
_ONLY_POLARS = ("Null", "Int128", "UInt128")
_INT64 = range(-(2**63), 2**63)


def make_frame(columns: dict[str, Any]) -> Frame:
    """Makes a Frame of columns. The declared output is checked later, before a publish.

    A labelled column (a Row, a pandas Series) is aligned with the column `symbol`, or refused.

    Raises:
        BadRows: columns of different lengths or labels, or values that no field type holds.
    """
    columns = {name: list(value) if hasattr(value, "__next__") else value for name, value in columns.items()}
    columns = _aligned(columns)
    return Frame(_trellis.make_rows([(name, *_plain(name, value)) for name, value in columns.items()]))


def frame_of(answer: Any) -> Frame:
    """Makes a Frame of a strategy's answer: a Frame of `ctx.frame`, a dict of columns, or a table of another library.

    Raises:
        StrategyError: the answer is none of these.
        BadRows: its columns do not fit each other.
    """
    if isinstance(answer, Frame):
        return answer
    if isinstance(answer, dict):
        return make_frame(answer)
    if is_pandas(answer, "DataFrame"):
        return make_frame(_columns_of_pandas(answer))
    if library(answer) == "polars" and hasattr(answer, "get_columns"):
        return make_frame({s.name: s for s in answer.get_columns()})
    if library(answer) == "pyarrow" and hasattr(answer, "column_names"):
        _once(answer.column_names)
        return make_frame({n: answer.column(n) for n in answer.column_names})
    if answer is None:
        raise StrategyError("the strategy returned nothing", hint="end it with: return ctx.frame(symbol=..., ...)")
    raise StrategyError(
        f"the strategy returned {type(answer).__name__}",
        hint="return ctx.frame(...), a dict of columns, or a pandas, polars or pyarrow table",
    )


def _once(names: list[Any]) -> None:
    twice = next((n for i, n in enumerate(names) if n in names[:i]), None)
    if twice is not None:
        raise BadRows(f"column {twice} is there twice", hint="keep one of them, or rename it")


def _columns_of_pandas(table: Any) -> dict[str, Any]:
    """The columns of a DataFrame. An index with labels becomes columns too; an index of integers is left out."""
    if table.columns.nlevels > 1:
        raise BadRows("the columns of the DataFrame are a MultiIndex", hint="give it one level: symbol, and the fields")
    _once([str(name) for name in table.columns])
    index = table.index
    if index.nlevels > 1 or index.name in _KEYS:
        wrong = next((n for n in index.names if n not in _KEYS), None)
        if wrong is not None or any(n in table.columns for n in index.names):
            raise BadRows(
                f"the index of the DataFrame has the levels {', '.join(map(str, index.names))}",
                hint="it may have the levels symbol and ts if no column is named so; .reset_index(drop=True) drops it",
            )
        table = table.reset_index()
    elif index.dtype.kind == "O" and all(isinstance(label, str) for label in index):
        if "symbol" not in table.columns:
            table = table.rename_axis(index="symbol").reset_index()
        elif list(index) != list(table["symbol"]):
            raise BadRows(
                "the DataFrame has symbols as its index and others as its column symbol",
                hint=".reset_index(drop=True) drops the index",
            )
    elif len(index) and index.dtype.kind not in "iu":
        raise BadRows(
            f"the index of the DataFrame holds {index.dtype}, and is named {index.name!r}"
            if index.name
            else f"the index of the DataFrame holds {index.dtype}, and has no name",
            hint=".rename_axis('ts') makes it the column ts, .reset_index(drop=True) drops it",
        )
    # the columns of one table belong together: align them by position from here on
    table = table.reset_index(drop=True)
    return {str(name): table.iloc[:, i] for i, name in enumerate(table.columns)}


def _aligned(columns: dict[str, Any]) -> dict[str, Any]:
    """The columns, with the labelled ones brought to the order of the column `symbol`."""
    given = columns.get("symbol")
    labelled = [n for n, v in columns.items() if n != "symbol" and (isinstance(v, Row) or is_pandas(v, "Series"))]
    if not labelled:
        return columns
    if given is None:
        named = next((n for n in labelled if isinstance(columns[n], Row) or _of_text(columns[n].index)), None)
        if named is None:
            return columns
        raise BadRows(
            f"column {named} has symbols of its own, and there is no column symbol",
            hint="add the column: symbol=...; the other columns are then aligned with it",
        )
    symbols = _symbols(given)
    align = {
        name: _align_row(name, columns[name], symbols)
        if isinstance(columns[name], Row)
        else _align_series(name, columns[name], given, symbols)
        for name in labelled
    }
    return {**columns, **align}


def _symbols(given: Any) -> list[Any]:
    if isinstance(given, str):
        return [given]
    for convert in ("to_pylist", "to_list", "tolist"):
        if hasattr(given, convert):
            return getattr(given, convert)()
    return list(given) if hasattr(given, "__iter__") else [given]


def _of_text(index: Any) -> bool:
    return index.nlevels == 1 and len(index) > 0 and all(isinstance(label, str) for label in index)


def _align_row(name: str, row: Row, symbols: list[Any]) -> Row:
    if list(row.symbols) == symbols:
        return row
    _same_labels(name, list(row.symbols), symbols, f"{name}.reindex(symbols), NaN for symbols that it lacks")
    return row.reindex(symbols)


def _align_series(name: str, series: Any, given: Any, symbols: list[Any]) -> Any:
    index = series.index
    keyed = is_pandas(given, "Series")
    if (keyed and index.equals(given.index)) or len(series) == len(symbols) == 0:
        return series
    if _of_text(index):
        if list(index) != symbols:
            _same_labels(name, list(index), symbols, f"{name}.reindex(symbols), NaN for symbols that it lacks")
            series = series.reindex(symbols)
        return series
    if keyed and index.is_unique and given.index.is_unique and set(index) == set(given.index):
        return series.reindex(given.index)
    if not keyed and is_pandas(index, "RangeIndex") and index.start == 0 and index.step == 1:
        return series
    if index.nlevels > 1:
        by = "a MultiIndex"
    else:
        by = f"{index.dtype} such as {index[0]!s}" if len(index) else str(index.dtype)
    raise BadRows(
        f"column {name} is a pandas Series indexed by {by}, not by the symbols of the rows",
        hint=f"{name}.to_numpy() if its values are in the order of the column symbol, or index it by symbol",
    )


def _same_labels(name: str, have: list[str], symbols: list[Any], fix: str) -> None:
    """Refuses labels that are not exactly the symbols of the rows, or are there twice."""
    for labels, whose in ((have, f"column {name}"), (symbols, "column symbol")):
        if len(set(labels)) < len(labels):
            twice = next(s for i, s in enumerate(labels) if s in labels[:i])
            raise BadRows(
                f"column {name} is labelled by symbol, and {whose} has {twice!r} twice",
                hint=f"{name}.to_numpy() (of a Row: .values) if its values are in the order of the column symbol",
            )
    for labels, others, whose, other in (
        (symbols, have, f"column {name}", "column symbol"),
        (have, symbols, "column symbol", f"column {name}"),
    ):
        lacking = next((s for s in labels if s not in set(others)), None)
        if lacking is not None:
            raise BadRows(f"{whose} has no symbol {lacking!r}, which {other} has", hint=fix)


# a column as the extension takes it: its kind, its data, and a mask of the rows that have a value
_Plain = tuple[str, Any, Any]


def _plain(name: str, value: Any) -> _Plain:
    if isinstance(value, Wide):
        raise BadRows(f"column {name} is a whole matrix", hint="take one row of it: w[-1]")
    if isinstance(value, Row):
        return _numpy(name, value.values, None)
    if hasattr(value, "columns"):
        raise BadRows(f"column {name} is a whole table", hint='take one column of it: table["score"]')
    if library(value) == "pandas" and hasattr(value, "to_numpy") and hasattr(value, "dtype"):
        return _pandas(name, value)
    if library(value) == "xarray":
        raise BadRows(f"column {name} has labels of xarray", hint=f"{name}.to_series(), a pandas Series")
    if library(value) == "polars" and str(getattr(value, "dtype", "")) in _ONLY_POLARS:
        return _list(name, "list", value.to_list())
    if hasattr(value, "__arrow_c_array__") or hasattr(value, "__arrow_c_stream__"):
        return ("arrow", value, None)
    if library(value) == "pyarrow" and hasattr(value, "as_py"):
        value = value.as_py()
    if isinstance(value, np.ma.MaskedArray):
        return _numpy(name, np.ma.getdata(value), ~np.ma.getmaskarray(value))
    if isinstance(value, np.ndarray) and value.ndim > 0:
        return _numpy(name, value, None)
    if isinstance(value, dict):
        raise BadRows(
            f"column {name} is a dict", hint=f"make it a list in the order of the rows: [{name}[s] for s in symbols]"
        )
    if hasattr(value, "__iter__") and not isinstance(value, str | bytes | np.ndarray):
        return _list(name, "list", list(value))
    return _list(name, "scalar", [value.item() if isinstance(value, np.ndarray) else value])


def _pandas(name: str, value: Any) -> _Plain:
    # pandas' own Arrow export needs pyarrow, so only Arrow-backed columns go that way
    if type(value.dtype).__name__ == "ArrowDtype":
        return ("arrow", getattr(value, "array", value).__arrow_array__(), None)
    missing = np.asarray(value.isna())
    if str(value.dtype) in ("category", "str", "string") or value.dtype == object:
        return _list(name, "list", [None if gone else v for v, gone in zip(value, missing, strict=True)])
    if getattr(value.dtype, "tz", None) is not None:
        value = value.dt.tz_convert("UTC").dt.tz_localize(None) if hasattr(value, "dt") else value.tz_convert(None)
    dtype = getattr(value.dtype, "numpy_dtype", None)
    if dtype is None:
        return _numpy(name, np.asarray(value), None)
    return _numpy(name, value.to_numpy(dtype=dtype, na_value=dtype.type(0)), ~missing if missing.any() else None)


def _list(name: str, kind: str, values: list[Any]) -> _Plain:
    values = [_value(name, v) for v in values]
    if any(hasattr(v, "year") or isinstance(v, np.datetime64) for v in values):  # dates of any library
        try:
            times = [0 if v is None else to_ns(v, name) for v in values]
        except BadRequest as error:
            raise BadRows(f"column {name}: {error.message}", hint=error.hint) from None
        if kind == "scalar":
            raise BadRows(f"column {name} is one time for all rows", hint="give a list or an array of times")
        return ("time", np.array(times, dtype=np.int64), np.array([v is not None for v in values], dtype=np.uint8))
    kinds = {type(v) for v in values if v is not None}
    if bool in kinds and len(kinds) > 1:
        raise BadRows(f"column {name} holds booleans and other values", hint="one column holds one kind of value")
    if kinds == {int, float}:
        changed = next((v for v in values if isinstance(v, int) and int(float(v)) != v), None)
        if changed is not None:
            raise BadRows(f"column {name} holds {changed} beside fractions: a float64 would change it")
    return (kind, values, None)


def _value(name: str, value: Any) -> Any:
    """A value of a list as None, bool, int, float, str, or a time.

    Raises:
        BadRows: the value is of another type.
    """
    if isinstance(value, np.datetime64):
        return None if np.isnat(value) else value
    if isinstance(value, np.generic) and not isinstance(value, np.timedelta64):
        value = value.item()
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return None
    if isinstance(value, decimal.Decimal):
        value = _of_decimal(name, value)
    if isinstance(value, float) and value != value:
        return None
    if isinstance(value, bool) or hasattr(value, "year"):
        return value
    for plain in (int, float, str):
        if isinstance(value, plain):
            if plain is int and value not in _INT64:
                raise BadRows(f"column {name} holds {value}, which is beyond int64")
            return plain(value)
    raise BadRows(f"column {name} holds {type(value).__name__} {value!r}, which no field type holds")


def _of_decimal(name: str, value: decimal.Decimal) -> int | float:
    """A decimal as an integer if it is whole, else as the float whose shortest text equals it."""
    if not value.is_finite():
        # float() refuses a signalling NaN
        return float("nan") if value.is_nan() else float(value)
    if value == value.to_integral_value():
        return int(value)
    if decimal.Decimal(repr(float(value))) == value:
        return float(value)
    raise BadRows(f"column {name} holds the decimal {value}, which float64 cannot hold exactly", hint="round it")


def _numpy(name: str, array: np.ndarray, valid: np.ndarray | None) -> _Plain:
    if array.ndim != 1:
        raise BadRows(f"column {name} has {array.ndim} dimensions, {array.shape}; a column has one")
    kind = array.dtype.kind
    if kind in "UOTb":
        values = array.tolist()
        if valid is not None:
            values = [v if there else None for v, there in zip(values, valid, strict=True)]
        return _list(name, "list", values)
    form = "buffer"
    if kind == "M":
        valid = ~np.isnat(array) if valid is None else valid & ~np.isnat(array)
        try:
            array = datetime64_ns(np.where(valid, array, np.datetime64("NaT")), f"column {name}")
        except BadRequest as error:
            raise BadRows(error.message, hint=error.hint) from None
        form = "time"
    elif array.dtype == np.float16:
        array = array.astype(np.float32)
    elif kind not in "fiu" or array.dtype.itemsize > 8:
        raise BadRows(f"column {name} has numpy type {array.dtype}, which no field type holds")
    native = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    return (form, native, None if valid is None else np.ascontiguousarray(valid, dtype=np.uint8))
