"""`trellis import`: files into a dataset."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import _trellis
from ._time import format_ns, to_ns
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
    """Brings CSV (.csv, .tsv, .txt, these as .gz, .zip) and Parquet files into a dataset; makes it if it is not there.

    No value is changed on the way. A type is inferred only if every cell of the column, written back, is the same
    value; what is written in a way that was not said is refused, with the option that reads it. In a dataset that is
    there, a field widens (int64 to float64) if a cell asks for it and every value stays exact, and a new column is a
    new field. A column without a single value is no field yet.

    Args:
        symbol: the symbol of all rows, where no column holds it.
        symbol_column: column with the symbol; default `symbol` or `ticker`.
        symbol_from_name: pattern of the file's name with `{}` for the symbol and `*` for anything else: "WIKI-{}".
        wide: the field that the cells are, in files of dates x symbols.
        ts_column: column with the event time; default `ts`, `timestamp`, `date` or `datetime`; "Date,Time" are two.
        ts_unit: of times that are numbers: "s", "ms", "us", "ns" since 1970, "excel" days, "s-of-day", "ms-of-day", ...
        ts_format: form of times that are text, as of `strptime`: "%d/%m/%Y"; several may be given, "iso" among them.
        tz: zone of times that name none; default UTC. A column of nothing but dates stays so.
        date: the day of times within a day; default the one in the file's name.
        date_zone: zone whose local midnights name dates: such a time becomes the midnight UTC of its date, and any
            other is a bad row. A new dataset keeps it.
        calendar: exchange calendar of a new dataset, "XNYS".
        known_at: when the rows became known; default the time of the commit.
        known_at_column: column with each row's knowledge time.
        fields: which columns, and the names of their fields: "last=Close,volume"; default every column.
        columns: names of the columns of CSV files without a header; "_" leaves one out.
        types: types of fields that are not what their cells look like, {"id": "string"}; a float type that is named
            takes the nearest float of a number with more digits than it holds.
        required: fields of a new dataset that may not be missing.
        null: texts that stand for a missing value, beside the empty cell and, among numbers, NaN.
        decimal: what stands before a fraction: "." (default) or ",".
        thousands: what stands between thousands: ",", ".", "space", "apostrophe" or "_"; default nothing.
        notation: signs around numbers that are read: "currency" ($10), "percent" (12% is 0.12), "suffix" (1.2K, 3M,
            2B), "parentheses" ((12.5) is -12.5), "trailing-minus" (12-).
        delimiter: between cells: a character or "tab"; default a comma, of .tsv files a tab.
        skip_rows: lines of each CSV file above its header.
        member: members of .zip files to import; default every .csv and .tsv, or else every .txt.
        repeats: rows of one symbol and time: "refuse" (default), "spread" (a nanosecond apart), "last" (it wins).
        chunk: span of a new dataset's chunks, "64d".
        quarantine: keep the good rows, and write the bad ones to this file.
        run_id: identity of the import. Without one, the same rows again add nothing while they still hold, and are a
            correction once something else was written over them.
        dry_run: only look: nothing is written, and no dataset is made.
        retract: the files name symbol and time of rows that no longer hold; other columns are not read. These rows are
            gone from the latest, and stay readable by `as_of`. A row that the dataset does not have refuses all.
        show: told in words how far it is.

    Returns:
        What was imported. `ts_columns` and `symbol_columns` are the columns that the keys are from, as the files call
        them (none: an option says the symbol). `sample` says of each field its type, its column, how many rows lack it
        and its first values; `calendar` (where the dataset has one) compares the days with its sessions; `notes` is
        what else to know.

    Raises:
        BadRows: with file, line, column and reason of the first bad rows; nothing was imported.
        BadRequest: the options do not fit the files, or each other.
    """
    missing = [str(f) for f in files if not os.path.isfile(f)]
    if missing:
        raise BadRequest(f"there is no file {missing[0]}")
    if dry_run and run_id is not None:
        raise BadRequest("a dry run has no run id", hint="leave out --run-id or --dry-run")
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
