"""`Frame`: the rows of an answer. `Receipt`: the facts about the read."""

from __future__ import annotations

import html
import shutil
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from . import _trellis
from ._values import format_ns, format_table
from .errors import BadRequest, missing_package
from .wide import Wide

__all__ = ["Frame", "Receipt"]

_HEAD, _TAIL = 5, 5
# the width of a repr if there is no terminal, and the most columns of an HTML table
_WIDTH, _HTML_COLUMNS = 120, 20
_COUNTS = (
    "version_min",
    "version_max",
    "rows",
    "bytes",
    "chunks_hit",
    "chunks_joined",
    "chunks_fetched",
    "rows_fetched",
    "stale",
)


@dataclass(frozen=True)
class Receipt:
    """The facts about a read. Keep it beside a result: it says exactly which data was read, and what the read cost.

    Attributes:
        dataset: the dataset that was read.
        calendar: the dataset's exchange calendar, or None.
        as_of: the knowledge time asked for, or None for the latest.
        known_through: reading again with `as_of=known_through` always gives the same rows.
        version_min, version_max: the oldest and the newest version of the dataset among the parts of the answer.
        watermark: event time up to which the shards say that the series are complete, or None.
        rows, bytes: the size of the answer.
        chunks_hit, chunks_joined, chunks_fetched: chunks answered from memory, from a fetch of another read that was
            already running, and from a fetch of this read.
        rows_fetched: rows that the heads fetched from shards for this read.
        shards, heads: the shards and heads that answered.
        stale: the rows may not be the latest (only with `allow_stale`).
        elapsed_ms: the time of the slowest head.
        queued_ms: the longest time that the read waited in a busy head's queues.
    """

    dataset: str
    calendar: str | None
    as_of: str | None
    known_through: str
    version_min: int
    version_max: int
    watermark: str | None
    rows: int
    bytes: int
    chunks_hit: int
    chunks_joined: int
    chunks_fetched: int
    rows_fetched: int
    shards: tuple[str, ...]
    heads: tuple[str, ...]
    stale: bool
    elapsed_ms: float
    queued_ms: float

    @classmethod
    def _of(cls, reply: dict[str, Any]) -> Receipt:
        return cls(
            dataset=reply["dataset"],
            calendar=reply["calendar"] or None,
            as_of=format_ns(reply["as_of_ns"]),
            known_through=format_ns(reply["known_through_ns"]) or "",
            watermark=format_ns(reply["watermark_ns"]),
            shards=tuple(reply["shards"]),
            heads=tuple(reply["head"].split(",")),
            elapsed_ms=reply["elapsed_us"] / 1000,
            queued_ms=reply["queued_us"] / 1000,
            **{name: reply[name] for name in _COUNTS},
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {f.name: list(v) if isinstance(v := getattr(self, f.name), tuple) else v for f in fields(self)}

    def __str__(self) -> str:
        when = f"as of {self.as_of}" if self.as_of else f"latest, as of {self.known_through}"
        versions = {self.version_min, self.version_max}
        version = "-".join(str(v) for v in sorted(versions))
        parts = [
            f"{self.dataset} v{version} {when}",
            f"{self.rows:,} rows",
            _size(self.bytes),
            f"chunks: {self.chunks_hit} hit, {self.chunks_joined} joined, {self.chunks_fetched} fetched",
            f"{self.elapsed_ms:.1f} ms",
        ]
        if self.stale:
            parts.append("STALE")
        return " · ".join(parts)


class Frame:
    """Rows sorted by (symbol, ts), with the columns `symbol`, `ts` (UTC), the fields, and `known_at` if asked for.

    The data is Arrow and stays outside of Python. Any library with the Arrow C interface takes a Frame as it is:
    `polars.DataFrame(frame)`, `pyarrow.table(frame)`, `duckdb.sql("from frame")` after `frame = px.arrow()`. `arrow()`,
    `polars()` and `pandas()` do the same; `wide()` makes a matrix of sessions x symbols.
    """

    def __init__(
        self,
        rows: _trellis.Rows,
        receipt: dict[str, Any] | None = None,
        window: tuple[str | None, int | None, int | None] = (None, None, None),
        named: tuple[str, ...] = (),
    ) -> None:
        self._rows = rows
        self._reply = receipt
        # sessions (a calendar, a start and an end) and symbols that a matrix has even without rows
        self._window = window
        self._named = named
        self._receipt: Receipt | None = None
        # set by Strategy.run(publish=True): the acknowledgement of the publish
        self.published: dict[str, Any] | None = None

    @property
    def receipt(self) -> Receipt | None:
        """The facts about the read; None for rows that no read returned."""
        # made on first use: most programs never look at it
        if self._receipt is None and self._reply is not None:
            self._receipt = Receipt._of(self._reply)
        return self._receipt

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return [name for name, _ in self._rows.columns]

    @property
    def dtypes(self) -> dict[str, str]:
        """The type of each column, by the names that `trellis.output` takes."""
        return dict(self._rows.columns)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self._rows.nbytes

    @property
    def symbols(self) -> list[str]:
        """The symbols that have rows here, sorted."""
        _, values, _ = self._rows.column("symbol")
        if isinstance(values, list):
            return sorted(set(values), key=str.encode)
        codes, names = values
        used = np.unique(_array(codes, np.int32, len(self)))
        return sorted({names[i] for i in used}, key=str.encode)

    def __getattr__(self, name: str) -> Any:
        # only for names that a Frame does not have; names with an underscore are probes of other libraries
        if name.startswith("_"):
            raise AttributeError(name)
        if name in self.columns:
            told = (
                f"the column {name} of a Frame is in .pandas(), .polars() and .arrow(); .wide({name!r}) is its matrix"
            )
        else:
            told = f"a Frame has no {name}: it is no DataFrame; .pandas() and .polars() make one of its rows"
        raise AttributeError(told, name=name, obj=self)

    def __getitem__(self, key: Any) -> Any:
        raise TypeError(f"a Frame is no DataFrame: write .pandas()[{key!r}], or .wide(field) for a matrix")

    # without it, a loop over a Frame would ask for items
    __iter__ = None

    def __len__(self) -> int:
        return len(self._rows)

    def __reduce__(self) -> Any:
        return (_unpickled, (self._rows.write("arrow"), self._reply, self._window, self._named, self.published))

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self._rows.__arrow_c_stream__(requested_schema)

    def __arrow_c_schema__(self) -> object:
        return self._rows.__arrow_c_schema__()

    def arrow(self) -> Any:
        """A `pyarrow.Table`, sharing the memory."""
        try:
            import pyarrow
        except ImportError:
            raise missing_package("pyarrow", ".arrow()") from None
        # `pyarrow.table` imports pandas to check for a DataFrame: half a second in a new process
        return pyarrow.RecordBatchReader.from_stream(self).read_all()

    def polars(self) -> Any:
        """A `polars.DataFrame`. `symbol` becomes text, so that it joins with other text; the rest shares the memory."""
        try:
            import polars
        except ImportError:
            raise missing_package("polars", ".polars()") from None
        return polars.DataFrame(self).with_columns(polars.col(polars.Categorical).cast(polars.String))

    def pandas(self) -> Any:
        """A `pandas.DataFrame` with its own memory. `symbol` is categorical, times `datetime64[ns, UTC]`, text `str`.

        Missing floats and texts are NaN. A column with missing integers or booleans has the nullable type of pandas,
        `Int64` or `boolean`.
        """
        try:
            import pandas as pd
        except ImportError:
            raise missing_package("pandas", ".pandas()") from None
        return pd.DataFrame({name: self._pandas_column(pd, name) for name in self.columns}, copy=False)

    def _pandas_column(self, pd: Any, name: str) -> Any:
        kind, values, valid = self._rows.column(name)
        rows = len(self)

        def array(buffer: Any, dtype: Any) -> np.ndarray:
            return _array(buffer, dtype, rows).copy()  # a copy, because the grid's memory is read-only

        missing = None if valid is None else _array(valid, np.uint8, rows) == 0
        if kind == "symbol":
            codes, names = values
            return pd.Categorical.from_codes(array(codes, np.int32), categories=pd.Index(names))
        if kind == "string":
            return _pandas_text(pd, values)
        if kind == "timestamp":
            times = array(values, np.int64).view("datetime64[ns]")
            if missing is not None:
                times = np.where(missing, np.datetime64("NaT", "ns"), times)
            return pd.DatetimeIndex(times, tz="UTC")
        if kind in ("float64", "float32"):
            numbers = array(values, np.dtype(kind))
            return numbers if missing is None else np.where(missing, np.nan, numbers).astype(kind)
        plain = array(values, np.uint8).astype(bool) if kind == "bool" else array(values, kind)
        if missing is None:
            return plain
        masked = pd.arrays.BooleanArray if kind == "bool" else pd.arrays.IntegerArray
        return masked(plain, missing)

    def wide(self, field: str, *, calendar: Any = ...) -> Wide:
        """One field as a matrix of sessions x symbols, float64, NaN where there is no row or no value.

        The matrix has every session of a calendar, also those without rows. An input of a strategy has exactly the
        sessions of its declared window. A read has the sessions in [start, end). It begins with the first row if start
        is open, before 1970 or before the calendar; it ends with the last row if end is open or after the known data.
        Symbols that the read or the declaration names have a column in any case.

        Rows with a time of day have no sessions: the index is then the times that have rows.

        Args:
            field: a field of numbers or of booleans (1 and 0).
            calendar: the calendar: "XNYS", "24/7"; None for only the times that have rows. The default is the
                dataset's calendar; if it has none, a strategy's input uses the strategy's calendar and a read uses the
                times that have rows.

        Raises:
            BadRequest: a row is on a day without a session, or float64 cannot hold an integer.
        """
        if not isinstance(field, str):
            raise BadRequest(f"wide() takes the name of one field, not {field!r}")
        own, start_ns, end_ns = self._window
        name = own if calendar is ... else calendar
        if name is not None and not isinstance(name, str):
            raise BadRequest(f"calendar must be the name of one, or None, not {name!r}")
        index, symbols, values, aligned = self._rows.wide(field, name, start_ns, end_ns, list(self._named))
        sessions = len(index) // 8
        times = _array(index, np.int64, sessions).view("datetime64[ns]")
        matrix = _array(values, np.float64, sessions * len(symbols)).reshape(sessions, len(symbols))
        return Wide(times, tuple(symbols), matrix, name if aligned else None)

    def write(self, format: str, path: Any = None) -> bytes | None:
        """Writes the rows as `csv`, `json`, `arrow` (IPC file) or `parquet` (needs pyarrow) to a file; without a path,
        returns the bytes.

        Missing values are empty in CSV and null in JSON. JSON cannot express NaN and the infinities: they are the texts
        "NaN", "Infinity" and "-Infinity" there.
        """
        if format == "parquet":
            return self._write_parquet(path)
        if format not in ("csv", "json", "arrow"):
            raise BadRequest(f"{format!r} is not a format", hint="the formats are csv, json, arrow and parquet")
        return self._rows.write(format, path)

    def _write_parquet(self, path: Any) -> bytes | None:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError:
            raise missing_package("pyarrow", "the format parquet") from None
        sink = pa.BufferOutputStream() if path is None else path
        pq.write_table(pa.table(self), sink, compression="zstd")
        return sink.getvalue().to_pybytes() if path is None else None

    def _cells(self) -> tuple[list[str], list[list[str]], int]:
        """The header, the rows to show, and the number of rows left out after the first `_HEAD`."""
        left_out = max(0, len(self) - _HEAD - _TAIL)
        cells = self._rows.cells(_HEAD, _TAIL)
        return self.columns, [["" if c is None else c for c in row] for row in cells], left_out

    def __repr__(self) -> str:
        header, rows, left_out = self._cells()
        width = shutil.get_terminal_size((_WIDTH, 24)).columns
        table = format_table(header, rows, gap_after=_HEAD if left_out else None, width=width)
        shape = f"{len(self):,} rows x {len(header)} columns"
        return "\n".join([table, str(self.receipt) if self.receipt else shape])

    def _repr_html_(self) -> str:
        header, rows, left_out = self._cells()
        if len(header) > _HTML_COLUMNS:
            half = _HTML_COLUMNS // 2
            header, *rows = ([*row[:half], "…", *row[-half:]] for row in (header, *rows))
        cells = ["<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in rows]
        if left_out:
            cells.insert(_HEAD, f'<tr><td colspan="{len(header)}">… {left_out:,} more …</td></tr>')
        head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
        note = str(self.receipt) if self.receipt else f"{len(self):,} rows x {len(self.columns)} columns"
        return (
            f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(cells)}</tbody></table>"
            f"<small>{html.escape(note)}</small>"
        )


def _unpickled(ipc: bytes, reply: Any, window: Any, named: tuple[str, ...], published: dict[str, Any] | None) -> Frame:
    frame = Frame(_trellis.rows_of_ipc(ipc), reply, window, named)
    frame.published = published
    return frame


def _pandas_text(pd: Any, values: list[str | None]) -> Any:
    """A column of text with the type that pandas infers for text: `str` since pandas 3, `object` before."""
    return pd.Series(values, dtype=pd.Series(["text"]).dtype)


def _array(buffer: Any, dtype: Any, length: int) -> np.ndarray:
    # numpy refuses a buffer of no bytes
    return np.frombuffer(buffer, dtype=dtype) if length else np.empty(0, dtype=dtype)


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")
