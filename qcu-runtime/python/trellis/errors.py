"""Every error that Trellis raises, and the one table from the grid's codes to them.

An error says what went wrong and, in its hint, what to do. All errors derive from `TrellisError`. Some also derive from
a built-in exception (`BadRequest` is a `ValueError`, `UnknownSymbol` a `KeyError`), so that code without knowledge of
Trellis handles them sensibly.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "BadRequest",
    "BadRows",
    "Cancelled",
    "Closed",
    "Conflict",
    "DataCorrupt",
    "Fenced",
    "Forbidden",
    "ForkedProcess",
    "Internal",
    "MissingPackage",
    "NotArrived",
    "Overloaded",
    "StorageFull",
    "StrategyError",
    "TooLarge",
    "TrellisError",
    "Unavailable",
    "UnknownDataset",
    "UnknownField",
    "UnknownSession",
    "UnknownSymbol",
]


class TrellisError(Exception):
    """Base of all errors of the grid.

    Attributes:
        message: what went wrong, in one sentence, with names.
        hint: what to do about it, or "".
        code: the grid's code, `UNKNOWN_FIELD`; "" for errors that never left this process.
        dataset, symbol, shard: the place of the error, or "".
        retryable: whether the same call may succeed later, unchanged.
        exit_code: the exit code of the command line.
    """

    exit_code = 1

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        code: str = "",
        dataset: str = "",
        symbol: str = "",
        shard: str = "",
        retryable: bool = False,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code
        self.dataset = dataset
        self.symbol = symbol
        self.shard = shard
        self.retryable = retryable

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # keyword-only arguments do not survive the default pickling of exceptions
        return (_rebuild, (type(self), self.message, self.__dict__))


def _rebuild(cls: type[TrellisError], message: str, state: dict[str, Any]) -> TrellisError:
    error = cls(message)
    error.__dict__.update(state)
    return error


class BadRequest(TrellisError, ValueError):
    """The request makes no sense as it stands: an end before its start, a malformed time, an empty list of symbols."""

    exit_code = 3


class UnknownDataset(TrellisError, KeyError):
    """No dataset of that name."""

    exit_code = 3


class UnknownField(TrellisError, KeyError):
    """The dataset has no such field."""

    exit_code = 3


class UnknownSymbol(TrellisError, KeyError):
    """The dataset has never had a row of that symbol."""

    exit_code = 3


class UnknownSession(TrellisError, KeyError):
    """The matrix has no such session: its calendar has none on that day, or the matrix does not reach that far."""

    exit_code = 3


class TooLarge(TrellisError):
    """The answer or the publish exceeds a limit, which the message names: ask for less."""

    exit_code = 3


class BadRows(TrellisError, ValueError):
    """The rows do not fit the dataset: schema, keys, nulls."""

    exit_code = 3


class Forbidden(TrellisError):
    """The caller may not do this; the message names the rule."""

    exit_code = 3


class Fenced(TrellisError):
    """Somebody else holds the right to publish: a newer epoch has won."""

    exit_code = 5


class Conflict(TrellisError):
    """It conflicts with existing data: the run id with other rows, another schema, the lease of another unit."""

    exit_code = 5


class Unavailable(TrellisError):
    """A head node or a shard is away, restarting or too slow. Try again."""

    exit_code = 4


class Overloaded(Unavailable):
    """The grid is shedding load. Try again later."""


class StorageFull(Unavailable):
    """The store cannot take the write now."""


class NotArrived(TrellisError):
    """An input of a run does not reach the session yet. Run the session again when the rows are there."""

    exit_code = 4


class Cancelled(TrellisError):
    """The caller gave up the call before it was answered."""

    exit_code = 4


class DataCorrupt(TrellisError):
    """Stored data cannot be read."""


class Internal(TrellisError):
    """A bug in Trellis."""


class StrategyError(TrellisError):
    """A strategy raised, exited, or returned something that is not its declared output.

    `traceback` is text with the frames of the strategy's own code, without those of Trellis; "" if there is none.
    """

    exit_code = 3

    def __init__(self, message: str, *, traceback: str = "", **place: Any) -> None:
        super().__init__(message, **place)
        self.traceback = traceback


class MissingPackage(TrellisError, ImportError):
    """An optional package is needed for this call."""

    exit_code = 2


class ForkedProcess(TrellisError, RuntimeError):
    """The grid was connected before `os.fork()`; its connections and threads do not exist in the child."""

    exit_code = 2


class Closed(TrellisError, RuntimeError):
    """The grid was closed."""

    exit_code = 2


_BY_CODE: dict[str, type[TrellisError]] = {
    "INVALID_REQUEST": BadRequest,
    "UNKNOWN_DATASET": UnknownDataset,
    "UNKNOWN_FIELD": UnknownField,
    "UNKNOWN_SYMBOL": UnknownSymbol,
    "TOO_LARGE": TooLarge,
    "PERMISSION_DENIED": Forbidden,
    "BAD_ROWS": BadRows,
    "FENCED": Fenced,
    "CONFLICT": Conflict,
    "UNAVAILABLE": Unavailable,
    "OVERLOADED": Overloaded,
    "DEADLINE_EXCEEDED": Unavailable,
    "CANCELLED": Cancelled,
    "STALE_EPOCH": Unavailable,
    "STALE_SCHEMA": Unavailable,
    "NOT_ARRIVED": NotArrived,
    "STORAGE_FULL": StorageFull,
    "DATA_CORRUPT": DataCorrupt,
    "INTERNAL": Internal,
}


def _from_code(
    code: str, message: str, hint: str, dataset: str, symbol: str, shard: str, retryable: bool
) -> TrellisError:
    """Makes the exception for an error of the grid. The extension calls it."""
    cls = _BY_CODE.get(code, Internal)
    return cls(message, hint=hint, code=code, dataset=dataset, symbol=symbol, shard=shard, retryable=retryable)


def missing_package(package: str, what: str) -> MissingPackage:
    return MissingPackage(f"{what} needs {package}, which is not installed", hint=f"pip install {package}")
