"""`Context`: the first argument of a strategy's function."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .frame import Frame


class Context:
    """What a strategy is told besides its inputs.

    Attributes:
        session: the session's date, `2016-08-10`. The only time a strategy knows.
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
        """Says how far the run has come; people see it in `trellis status` and the log. Costs a packet a call."""
        if self._progress is not None:
            self._progress(done, total, note)

    def frame(self, **columns: Any) -> Frame:
        """The output: `symbol`, the declared fields, and `ts` where a row's time is not the session itself.

        A column is a numpy array, a list, a pandas or polars Series, an Arrow array, a `Row` of a wide matrix, or one
        value for all rows. A `Row` and a pandas Series indexed by symbol are put into the order of the column `symbol`,
        and refused if their symbols are not exactly those; a pandas Series whose index is 0, 1, 2 ... is taken by
        position, as arrays are, and any other is refused.

        Values become the declared types where that loses nothing: whole floats and decimals become integers, integers
        and decimals the float that shows the same number; a float64 becomes a float32 only where that is the same
        number, and booleans are no numbers. NaN is a missing value.
        """
        from ._columns import make_frame

        return make_frame(columns)

    def __repr__(self) -> str:
        return f"Context({self.name!r}, session={self.session!r})"
