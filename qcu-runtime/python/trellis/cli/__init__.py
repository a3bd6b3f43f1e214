"""The command `trellis`, and what it alone does."""

from .commands import main, stats_table
from .up import log_tail

__all__ = [
    "log_tail",
    "main",
    "stats_table",
]
