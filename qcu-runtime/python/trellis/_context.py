"""`Context`: the first argument of a strategy's function."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .frame import Frame


class Context:
    """What a strategy gets besides its inputs: the session, and calls for its output and its progress.

    Attributes:
        session: the session's date, `2016-08-10`. It is the only time that a strategy knows.
        name: the strategy's name.
    """

    def __init__(
        self,
        name: str,
        session: str,
        progress: Callable[[float | None, float | None, str | None], None] | None = None,
    ) -> None:
        self.name = name
        self.session = session
        self._progress = progress

    def progress(self, done: float | None = None, total: float | None = None, note: str | None = None) -> None:
        """Reports how far the run has come, for `trellis status` and the log. Each call sends one packet."""
        if self._progress is not None:
            self._progress(done, total, note)

    def frame(self, **columns: Any) -> Frame:
        """Makes the output. Columns are `symbol`, the declared fields, and `ts` if the rows are not all at the session.

        A column is a numpy array, a list, a pandas or polars Series, an Arrow array, a `Row` of a wide matrix, or one
        value for all rows. A `Row` and a pandas Series indexed by symbol are brought to the order of the column
        `symbol`, and refused if they do not have exactly its symbols. A pandas Series with the index 0, 1, 2 ... is
        taken by position, like an array. A Series with any other index is refused.

        Values are converted to the declared types if nothing is lost: whole floats and decimals to integers, integers
        and decimals to the float that prints as the same number. A float64 becomes a float32 only if both are the same
        number. Booleans are not numbers. NaN is a missing value.
        """
        from ._columns import make_frame

        return make_frame(columns)

    def __repr__(self) -> str:
        return f"Context({self.name!r}, session={self.session!r})"
