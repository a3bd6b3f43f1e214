"""The code of a strategy: its files, its digest in memory, what it may not do while it runs, and its tracebacks."""

from . import inside
from .live import live_digest
from .sources import OURS, reached_by, set_since
from .tracebacks import frames_of, printable, traceback_of

__all__ = [
    "OURS",
    "frames_of",
    "inside",
    "live_digest",
    "printable",
    "reached_by",
    "set_since",
    "traceback_of",
]
