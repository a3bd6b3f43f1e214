"""Where calls of a `Grid` go: to a grid elsewhere, to the grid of a folder, or to an answer that is kept."""

from . import local
from .link import Embedded, Remote
from .pinned import Pinned

__all__ = [
    "Embedded",
    "Pinned",
    "Remote",
    "local",
]
