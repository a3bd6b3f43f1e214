"""What a strategy answers, as rows of its declared output. No Arrow library is needed for it."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _trellis
from ._time import to_ns
from .errors import BadRequest, BadRows, StrategyError
from .frame import Frame
from .wide import Row, Wide


def make_frame(columns: dict[str, Any]) -> Frame:
    """Columns as a Frame. Whether it fits what is declared is checked once, where it is published from.

    Raises:
        BadRows: columns of different lengths, or values that no field type holds.
    """
    _check_alignment(columns)
    return Frame(_trellis.make_rows([(name, *_plain(name, value)) for name, value in columns.items()]))


def frame_of(answer: Any) -> Frame:
    """What a strategy's function returned, as a Frame: of `ctx.frame`, a dict of columns, or a table of any library.

    Raises:
        StrategyError: it is none of these.
        BadRows: its columns do not fit.
    """
    if isinstance(answer, Frame):
        return answer
    if isinstance(answer, dict):
        return make_frame(answer)
    kind = type(answer).__module__.partition(".")[0]
    if kind == "pandas" and hasattr(answer, "columns"):
        return make_frame({str(name): answer[name] for name in answer.columns})
    if kind == "polars" and hasattr(answer, "get_columns"):
        return make_frame({s.name: s for s in answer.get_columns()})
    if kind == "pyarrow" and hasattr(answer, "column_names"):
        return make_frame({n: answer.column(n) for n in answer.column_names})
    if answer is None:
        raise StrategyError("the strategy returned nothing", hint="end it with: return ctx.frame(symbol=..., ...)")
    raise StrategyError(
        f"the strategy returned {type(answer).__name__}",
        hint="return ctx.frame(...), a dict of columns, or a pandas, polars or pyarrow table",
    )


def _check_alignment(columns: dict[str, Any]) -> None:
    """A Row beside the symbols of another matrix would be silently wrong: same length, other order."""
    symbols = columns.get("symbol")
    if isinstance(symbols, str) or symbols is None:
        return
    for name, value in columns.items():
        if isinstance(value, Row) and value.symbols != tuple(symbols):
            raise BadRows(
                f"column {name} has the symbols of another matrix than the column symbol",
                hint=f"symbol={name}.symbols, or align it with {name}.reindex(symbols)",
            )


# kind, data, mask of what is there: as the extension takes a column
_Plain = tuple[str, Any, Any]


def _plain(name: str, value: Any) -> _Plain:
    if isinstance(value, Wide):
        raise BadRows(f"column {name} is a whole matrix", hint="take one row of it: w[-1]")
    if isinstance(value, Row):
        return _numpy(name, value.values, None)
    library = type(value).__module__.partition(".")[0]
    if library == "pandas" and hasattr(value, "to_numpy"):
        return _pandas(name, value)
    if hasattr(value, "__arrow_c_array__") or hasattr(value, "__arrow_c_stream__"):
        return ("arrow", value, None)
    if isinstance(value, np.ma.MaskedArray):
        return _numpy(name, np.ma.getdata(value), ~np.ma.getmaskarray(value))
    if isinstance(value, np.ndarray) and value.ndim > 0:
        return _numpy(name, value, None)
    if isinstance(value, dict):
        raise BadRows(f"column {name} is a dict", hint="give its values as a list, and its keys as symbol=")
    if hasattr(value, "__iter__") and not isinstance(value, str | bytes | np.ndarray):
        return _list(name, "list", list(value))
    return _list(name, "scalar", [value.item() if isinstance(value, np.ndarray) else value])


def _pandas(name: str, value: Any) -> _Plain:
    # not by pandas' own Arrow export, which needs pyarrow
    missing = np.asarray(value.isna())
    if str(value.dtype) in ("category", "str", "string") or value.dtype == object:
        return _list(name, "list", [None if gone else v for v, gone in zip(value, missing, strict=True)])
    if getattr(value.dtype, "tz", None) is not None:
        value = value.dt.tz_convert("UTC").dt.tz_localize(None) if hasattr(value, "dt") else value.tz_convert(None)
    dtype = getattr(value.dtype, "numpy_dtype", None)
    if dtype is None:
        return _numpy(name, value.to_numpy(), None)
    return _numpy(name, value.to_numpy(dtype=dtype, na_value=dtype.type(0)), ~missing if missing.any() else None)


def _list(name: str, kind: str, values: list[Any]) -> _Plain:
    values = [v.item() if isinstance(v, np.generic) and v.dtype.kind != "M" else v for v in values]
    if any(hasattr(v, "year") or isinstance(v, np.datetime64) for v in values):  # dates of any library
        there = [v is not None and v == v for v in values]  # NaT is not itself
        try:
            times = [to_ns(v, name) if t else 0 for v, t in zip(values, there, strict=True)]
        except BadRequest as error:
            raise BadRows(f"column {name}: {error.message}") from None
        if kind == "scalar":
            raise BadRows(f"column {name} is one time for all rows", hint="give a list or an array of times")
        return ("time", np.array(times, dtype=np.int64), np.array(there, dtype=np.uint8))
    for v in values:
        if not (v is None or isinstance(v, str | bool | int | float)):
            raise BadRows(f"column {name} holds {type(v).__name__} {v!r}, which no field type holds")
    return (kind, values, None)


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
        array = array.astype("datetime64[ns]").view(np.int64)
        form = "time"
    elif array.dtype == np.float16:
        array = array.astype(np.float32)
    elif kind not in "fiu" or array.dtype.itemsize > 8:
        raise BadRows(f"column {name} has numpy type {array.dtype}, which no field type holds")
    native = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    return (form, native, None if valid is None else np.ascontiguousarray(valid, dtype=np.uint8))
