"""Trellis: a quant compute grid.

    import trellis

    g = trellis.connect()
    px = g.read("equities.daily", ["close"], symbols="AMZN", start="2006-08-10", end="2016-08-10")
    px.pandas(), px.polars(), px.arrow(), px.wide("close"), px.receipt

Reads start at `Grid`, programs at `strategy`. No thread starts before `connect`.

| modules | subject |
| --- | --- |
| `grid`, `frame`, `wide` | calls of a grid; the rows of an answer; a matrix of sessions x symbols |
| `errors` | every error |
| `strategy`, `run` | strategies, and how one runs for a session |
| `_declaration`, `_context`, `_columns` | what a strategy declares, what it gets, and what it returns, as rows |
| `_child` | the child process of `qcu` that runs a deployed strategy |
| `deploy` | bundles and units: what `trellis deploy` does |
| `submit` | what `trellis deploy --env` does: bundles in S3, files for `fleet` |
| `importing` | the import of files; `trellis import` |
| `_demo`, `_market` | `make demo` and the stock market that it generates |
| `_trellis` | the Rust side; its stub is `_trellis.pyi` |

| rooms | subject |
| --- | --- |
| `cli` | the command `trellis`: arguments, output, exit codes; `trellis dataset ...`; the processes of `trellis up` |
| `_code` | a strategy's code: its files, its digest in memory, what it may not do while it runs, its tracebacks |
| `_grids` | where calls of a grid go; the state folder of a local grid; answers as of a fixed time |
| `_values` | arguments, times and labels are checked and converted; tables become text |

A room is a folder. Its `__init__.py` exports the names that other modules may use.
"""

from __future__ import annotations

import atexit as _atexit

from . import _trellis, errors
from ._context import Context
from ._declaration import Output, Schedule, Series, after, at_close, output, series
from ._grids import local as _local
from .errors import TrellisError
from .frame import Frame, Receipt
from .grid import Dataset, Grid, connect
from .strategy import Strategy, strategy
from .wide import Row, Wide

__version__: str = _trellis.__version__

__all__ = [
    "Context",
    "Dataset",
    "Frame",
    "Grid",
    "Output",
    "Receipt",
    "Row",
    "Schedule",
    "Series",
    "Strategy",
    "TrellisError",
    "Wide",
    "__version__",
    "after",
    "at_close",
    "connect",
    "errors",
    "output",
    "series",
    "strategy",
]


def _end() -> None:
    _local.close_all()
    _trellis.shutdown()


_atexit.register(_end)
