"""Plain values: arguments are checked, times and labels are converted, tables become text."""

from .arguments import field_list, symbol_list, text, whole
from .labels import (
    Labelled,
    align,
    floats,
    is_pandas,
    labelled,
    library,
    names,
    pick,
    places,
    read_only,
    sessions,
    spread,
)
from .table import format_table
from .times import datetime64_ns, format_ns, to_end, to_ns, to_session, to_start

__all__ = [
    "Labelled",
    "align",
    "datetime64_ns",
    "field_list",
    "floats",
    "format_ns",
    "format_table",
    "is_pandas",
    "labelled",
    "library",
    "names",
    "pick",
    "places",
    "read_only",
    "sessions",
    "spread",
    "symbol_list",
    "text",
    "to_end",
    "to_ns",
    "to_session",
    "to_start",
    "whole",
]
