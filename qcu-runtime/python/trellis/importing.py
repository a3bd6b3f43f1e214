"""`trellis import`: files into a dataset."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from . import _trellis
from ._time import format_ns, to_ns
from .errors import BadRequest

if TYPE_CHECKING:
    from .grid import Grid

__all__ = ["import_files"]


def import_files(
    grid: Grid,
    dataset: str,
    files: Sequence[str | os.PathLike[str]],
    *,
    fields: str | None = None,
    run_id: str | None = None,
    known_at: Any = None,
    chunk: str | None = None,
    show: Callable[[str], None] = lambda _note: None,
    **options: Any,
) -> dict[str, Any]:
    """Brings CSV (.csv, .csv.gz, .zip) and Parquet files into a dataset, which is made if it is not there.

    Args:
        fields: which columns, and the names of their fields: "last=Close,volume"; default every column.
        run_id: identity of the import; default a digest of its rows, so that the same import twice is one.
        known_at: when the rows became known; default the time of the commit.
        chunk: span of a new dataset's chunks, "64d".
        show: told in words how far it is.
        options: as on the command line: `symbol`, `symbol_column`, `ts_column`, `ts_unit`, `tz`, `date`,
            `columns`, `types`, `required`, `null`, `delimiter`, `repeats`, `quarantine`, `known_at_column`.

    Raises:
        BadRows: with file, line, column and reason of the first bad rows; nothing was imported.
        BadRequest: the options do not fit the files, or each other.
    """
    missing = [str(f) for f in files if not os.path.isfile(f)]
    if missing:
        raise BadRequest(f"there is no file {missing[0]}")
    given = {name: value for name, value in options.items() if value not in (None, [], {}, "")}
    if known_at is not None:
        given["known_at_ns"] = to_ns(known_at, "known_at")
    if chunk is not None:
        given["chunk_ns"] = _trellis.parse_duration(chunk)

    def told(step: str, file: str, rows: int, done: int, total: int) -> None:
        share = f", {done / total:.0%}" if total else ""
        show(f"{step} {os.path.basename(file)} {rows:,} rows{share}".replace("  ", " "))

    paths = [os.fspath(f) for f in files]
    result = grid._call(_trellis.import_files, dataset, paths, json.dumps(given), fields, run_id, told)
    last = result["publishes"][-1]
    return {
        "dataset": result["dataset"],
        "rows": result["rows"],
        "symbols": result["symbols"],
        "first": format_ns(result["first_ts_ns"]),
        "last": format_ns(result["last_ts_ns"]),
        "version": last["version"],
        "known_at": format_ns(last["known_at_ns"]),
        "duplicate": all(ack["duplicate"] for ack in result["publishes"]),
        "quarantined": result["quarantined"],
        "notes": result["notes"],
    }
