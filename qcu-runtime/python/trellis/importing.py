"""Imports CSV and Parquet files into a dataset."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import _trellis
from ._values import format_ns, to_ns
from .errors import BadRequest
from .run import UNRECORDED

if TYPE_CHECKING:
    from .grid import Grid

__all__ = ["import_files"]


def import_files(
    grid: Grid,
    dataset: str,
    files: Sequence[str | os.PathLike[str]],
    *,
    symbol: str | None = None,
    symbol_column: str | None = None,
    symbol_from_name: str | None = None,
    wide: str | None = None,
    ts_column: str | None = None,
    ts_unit: str | None = None,
    ts_format: str | Sequence[str] | None = None,
    tz: str | None = None,
    date: str | None = None,
    date_zone: str | None = None,
    calendar: str | None = None,
    known_at: Any = None,
    known_at_column: str | None = None,
    fields: str | None = None,
    columns: Sequence[str] | None = None,
    types: Mapping[str, str] | None = None,
    required: Sequence[str] | None = None,
    null: str | Sequence[str] | None = None,
    decimal: str | None = None,
    thousands: str | None = None,
    notation: str | Sequence[str] | None = None,
    delimiter: str | None = None,
    skip_rows: int | None = None,
    member: str | Sequence[str] | None = None,
    repeats: str | None = None,
    chunk: str | None = None,
    quarantine: str | os.PathLike[str] | None = None,
    run_id: str | None = None,
    dry_run: bool = False,
    retract: bool = False,
    show: Callable[[str], None] = lambda _note: None,
) -> dict[str, Any]:
    """Imports CSV (.csv, .tsv, .txt, each also as .gz or .zip) and Parquet files. Makes the dataset if it is missing.

    The import changes no value. A type is inferred only if every cell of the column, written back, is the same value.
    A cell in another notation is refused, and the error names the option that reads it. In an existing dataset a field
    widens (int64 to float64) if a cell needs it and every value stays exact, and a new column becomes a new field. A
    column without any value becomes no field.

    Args:
        symbol: the symbol of all rows, where no column holds it.
        symbol_column: the column with the symbol; default `symbol` or `ticker`.
        symbol_from_name: pattern of the file's name with `{}` for the symbol and `*` for anything else: "WIKI-{}".
        wide: the files are tables of dates x symbols, and their cells are this field.
        ts_column: column with the event time; default `ts`, `timestamp`, `date` or `datetime`. "Date,Time" means two
            columns.
        ts_unit: unit of times that are numbers: "s", "ms", "us", "ns" since 1970, "excel" days, "s-of-day",
            "ms-of-day", ...
        ts_format: format of times that are text, as for `strptime`: "%d/%m/%Y". A list of several may contain "iso".
        tz: zone of times that name none; default UTC. It does not apply to a column of dates.
        date: the day of times within a day; default the one in the file's name.
        date_zone: zone whose local midnights mean dates. Such a time becomes midnight UTC of its date; a row with any
            other time is bad. A new dataset keeps the zone.
        calendar: exchange calendar of a new dataset, "XNYS".
        known_at: when the rows became known; default the time of the commit.
        known_at_column: column with each row's knowledge time.
        fields: the columns to import, and the names of their fields: "last=Close,volume"; default every column.
        columns: names of the columns of CSV files without a header; "_" leaves one out.
        types: types of fields whose cells look like another type, {"id": "string"}. With a float type given here, a
            number with too many digits becomes the nearest float.
        required: fields of a new dataset that may not be missing.
        null: texts that mean a missing value. An empty cell and, among numbers, NaN always do.
        decimal: the decimal sign: "." (default) or ",".
        thousands: the sign between thousands: ",", ".", "space", "apostrophe" or "_"; default none.
        notation: signs around numbers to accept: "currency" ($10), "percent" (12% is 0.12), "suffix" (1.2K, 3M,
            2B), "parentheses" ((12.5) is -12.5), "trailing-minus" (12-).
        delimiter: the sign between cells: a character or "tab"; default a comma, in .tsv files a tab.
        skip_rows: lines of each CSV file above its header.
        member: members of .zip files to import; default every .csv and .tsv, or if there are none every .txt.
        repeats: rows of the same symbol and time: "refuse" (default), "spread" them a nanosecond apart, or keep the
            "last".
        chunk: length of a new dataset's chunks, "64d".
        quarantine: keep the good rows, and write the bad ones to this file.
        run_id: identity of the import. Without one, importing the same rows again adds nothing while they are the
            latest. If something else was written over them since, they become a correction.
        dry_run: only check: nothing is written, and no dataset is made.
        retract: the files name the symbol and time of rows to retract; other columns are not read. The rows disappear
            from the latest data and stay readable by `as_of`. If the dataset lacks one of them, all are refused.
        show: called with a line of text about the progress.

    Returns:
        A summary of the import. `ts_columns` and `symbol_columns` are the files' columns with time and symbol (no
        symbol column: an option gave the symbol). `sample` has each field's type, column, number of missing values and
        first values. `calendar`, if the dataset has one, compares the days with its sessions. `notes` has further
        remarks.

    Raises:
        BadRows: some rows are bad; the message has file, line, column and reason of the first ones. Nothing was
            imported.
        BadRequest: the options do not fit the files, or each other.
    """
    missing = [str(f) for f in files if not os.path.isfile(f)]
    if missing:
        raise _no_file(missing[0])
    if dry_run and run_id is not None:
        raise BadRequest("a dry run cannot have a run id", hint="leave out --run-id or --dry-run")
    options = {
        "symbol": symbol,
        "symbol_column": symbol_column,
        "symbol_from_name": symbol_from_name,
        "wide": wide,
        "ts_column": ts_column,
        "ts_unit": ts_unit,
        "ts_format": _several(ts_format),
        "tz": tz,
        "date": date,
        "date_zone": date_zone,
        "calendar": calendar,
        "known_at_ns": None if known_at is None else to_ns(known_at, "known_at"),
        "known_at_column": known_at_column,
        "columns": columns,
        "types": types,
        "required": required,
        "null": _several(null),
        "decimal": decimal,
        "thousands": thousands,
        "notation": _several(notation),
        "delimiter": delimiter,
        "skip_rows": skip_rows,
        "member": _several(member),
        "repeats": repeats,
        "chunk_ns": None if chunk is None else _trellis.parse_duration(chunk),
        "quarantine": None if quarantine is None else os.fspath(quarantine),
        "dry_run": dry_run or None,
        "retract": retract or None,
    }
    given = json.dumps({name: value for name, value in options.items() if value is not None})

    def told(step: str, file: str, rows: int, done: int, total: int) -> None:
        share = f", {done / total:.0%}" if total else ""
        show(f"{step} {os.path.basename(file)} {rows:,} rows{share}".replace("  ", " "))

    paths = [os.fspath(f) for f in files]
    result = grid._call(_trellis.import_files, dataset, paths, given, fields, run_id, told)
    grid._pinned.forget(dataset)
    last = result["publishes"][-1] if result["publishes"] else None
    if not all(ack["recorded"] for ack in result["publishes"]):
        result["notes"].append(UNRECORDED)
    return {
        "dataset": result["dataset"],
        "dry_run": dry_run,
        "rows": result["rows"],
        "symbols": result["symbols"],
        "first": format_ns(result["first_ts_ns"]),
        "last": format_ns(result["last_ts_ns"]),
        "version": last and last["version"],
        "known_at": last and format_ns(last["known_at_ns"]),
        "duplicate": bool(last) and all(ack["duplicate"] for ack in result["publishes"]),
        "quarantined": result["quarantined"],
        "ts_columns": result["ts_columns"],
        "symbol_columns": result["symbol_columns"],
        "sample": result["sample"],
        "calendar": result.get("calendar"),
        "notes": result["notes"],
    }


def _several(given: str | Sequence[str] | None) -> list[str] | None:
    if given is None:
        return None
    return [given] if isinstance(given, str) else list(given)


def _no_file(path: str) -> BadRequest:
    if os.path.isdir(path):
        return BadRequest(f"{path} is a folder", hint=f"name its files: {os.path.join(path, '*.csv')}")
    return BadRequest(
        f"there is no file {path}", hint=f"this folder is {os.getcwd()}" if not os.path.isabs(path) else ""
    )
