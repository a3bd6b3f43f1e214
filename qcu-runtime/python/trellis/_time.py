"""Whatever names a moment, as nanoseconds since 1970-01-01T00:00:00Z.

A date is its midnight, UTC. A datetime without a time zone is taken as UTC: prices and sessions are kept in UTC
throughout, and refusing `datetime(2016, 8, 10)` where `date(2016, 8, 10)` works would only teach people to write
`.replace(tzinfo=utc)` without thinking. Strings are ISO 8601 (`2016-08-10`, `2016-08-10T14:30Z`, `...+02:00`).
"""

from __future__ import annotations

import datetime as dt
from typing import Any

from . import _trellis
from .errors import BadRequest

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)
_RANGE = range(-(2**63), 2**63)


def to_ns(value: Any, name: str) -> int | None:
    """`value` in nanoseconds; None stays None. `name` is the argument's, for the error."""
    if value is None:
        return None
    ns = _to_ns(value, name)
    if ns not in _RANGE:
        raise BadRequest(f"{name}={value!r} is outside of what 64 bit nanoseconds hold (1677-09-21 to 2262-04-11)")
    return ns


def _to_ns(value: Any, name: str) -> int:
    if isinstance(value, str):
        return _trellis.parse_time(value, name)
    if isinstance(value, bool):
        raise BadRequest(f"{name} must be a time, not {value!r}")
    if isinstance(value, int):
        return value
    if value != value:  # NaT of any library, NaN
        raise BadRequest(f"{name} must be a time, not {value!r}")
    if isinstance(value, dt.datetime):
        as_unit = getattr(value, "as_unit", None)  # pandas.Timestamp: a datetime with nanoseconds of its own
        if as_unit is not None:
            return int(as_unit("ns").value)
        if value.tzinfo is None:
            value = value.replace(tzinfo=dt.UTC)
        return (value - _EPOCH) // _MICROSECOND * 1000
    if isinstance(value, dt.date):
        return (value - _EPOCH.date()).days * 86_400_000_000_000
    if type(value).__module__ == "numpy":
        if type(value).__name__ == "datetime64":
            ns = value.astype("datetime64[ns]")
            if ns != value:
                raise BadRequest(f"{name}={value!r} is not a time that nanoseconds hold")
            return int(ns.astype("int64"))
        if hasattr(value, "__index__"):
            return int(value)
    raise BadRequest(
        f"{name} must be a time, not {type(value).__name__} {value!r}",
        hint="give an ISO string, a date, a datetime, a pandas.Timestamp, or integer nanoseconds",
    )


def to_session(value: Any, name: str = "session") -> str:
    """A session, `2016-08-10`, from an ISO date, a date, or a moment at midnight UTC."""
    ns = to_ns(value, name)
    if ns is None:
        raise BadRequest(f"{name} is missing", hint='sessions are dates: session="2016-08-10"')
    day, rest = divmod(ns, 86_400_000_000_000)
    if rest:
        raise BadRequest(f"{name}={value!r} has a time of day; sessions are dates")
    return (_EPOCH.date() + dt.timedelta(days=day)).isoformat()


def format_ns(ns: int | None) -> str | None:
    """The shortest ISO 8601 form of a moment; None stays None."""
    return None if ns is None else _trellis.format_time(ns)
