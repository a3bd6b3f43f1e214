"""Converts arguments that are times to nanoseconds since 1970-01-01T00:00:00Z, and back to text.

A date means its midnight in UTC. A datetime without a time zone is taken as UTC, because the grid keeps prices and
sessions in UTC. (If `datetime(2016, 8, 10)` were refused, people would only learn to write `.replace(tzinfo=utc)`
without thinking.) Strings are ISO 8601 (`2016-08-10`, `2016-08-10T14:30Z`, `...+02:00`).

An integer is nanoseconds. An integer that looks like a date or like another unit (20160810, 2018, seconds or
milliseconds since 1970) is refused: `check_integer` in `proto/src/time.rs` has this rule for the whole grid.

Nanoseconds in 64 bits reach from 1677-09-21 to 2262-04-11. A time outside of that is an error. Only bounds are an
exception: a start before 1677, and an end or `as_of` after 2262, mean "no bound".
"""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np

from .. import _trellis
from ..errors import BadRequest

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)
_MIN, _MAX = -(2**63), 2**63 - 1
_REACH = "64 bit nanoseconds, which reach from 1677-09-21 to 2262-04-11"

# nanoseconds in each unit of numpy; years and months have no fixed length and are converted to days first
_UNITS = {
    "W": 604_800_000_000_000,
    "D": 86_400_000_000_000,
    "h": 3_600_000_000_000,
    "m": 60_000_000_000,
    "s": 1_000_000_000,
    "ms": 1_000_000,
    "us": 1_000,
    "ns": 1,
}
# units finer than a nanosecond: how many make one nanosecond
_PARTS = {"ps": 10**3, "fs": 10**6, "as": 10**9}


def to_ns(value: Any, name: str) -> int | None:
    """`value` in nanoseconds; None stays None. Errors call it `name`."""
    if value is None:
        return None
    ns = _to_ns(value, name)
    if not _MIN <= ns <= _MAX:
        raise BadRequest(f"{name}={_shown(value)} is outside of {_REACH}")
    return ns


def to_start(value: Any, name: str = "start") -> int | None:
    """`value` as the start of a range. A time before 1677 becomes the first nanosecond, one after 2262 the last."""
    return None if value is None else max(_MIN, min(_to_ns(value, name), _MAX))


def to_end(value: Any, name: str = "end") -> int | None:
    """`value` as the end of a range, or as `as_of`. A time after 2262 becomes None: no bound."""
    if value is None:
        return None
    ns = _to_ns(value, name)
    return None if ns > _MAX else max(_MIN, ns)


def _to_ns(value: Any, name: str) -> int:
    """Nanoseconds, without a check of the range."""
    if isinstance(value, str):
        return _trellis.parse_time(value, name)
    if isinstance(value, bool | np.bool_):
        raise BadRequest(f"{name} must be a time, not {value!r}")
    if isinstance(value, np.datetime64):
        return _datetime64(value, name)
    # a numpy timedelta64 is an instance of np.integer
    if isinstance(value, int | np.integer) and not isinstance(value, np.timedelta64):
        if 0 < value < 1 << 100:
            _trellis.check_integer_time(int(value), name)
        return int(value)
    if type(value).__name__ in ("NaTType", "NAType") or value != value:
        raise BadRequest(f"{name} must be a time, not {value!r}")
    if isinstance(value, dt.datetime):
        if hasattr(value, "as_unit"):  # pandas.Timestamp: it may have nanoseconds
            return _datetime64(value.to_datetime64(), name)
        if value.tzinfo is None:
            value = value.replace(tzinfo=dt.UTC)
        return (value - _EPOCH) // _MICROSECOND * 1000
    if isinstance(value, dt.date):
        return (value - _EPOCH.date()).days * _UNITS["D"]
    raise BadRequest(
        f"{name} must be a time, not {type(value).__name__} {value!r}",
        hint="give an ISO string, a date, a datetime, a pandas.Timestamp, or integer nanoseconds",
    )


def _datetime64(value: np.datetime64, name: str) -> int:
    if np.isnat(value):
        raise BadRequest(f"{name} must be a time, not NaT")
    count, each, parts = _counted(np.asarray(value))
    ns, rest = divmod(int(count) * each, parts)
    if rest:
        raise BadRequest(f"{name}={_shown(value)} lies between two nanoseconds")
    return ns


def _counted(times: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Times of any unit of numpy as integers, then `each` and `parts`: one integer is `each / parts` nanoseconds."""
    unit, step = np.datetime_data(times.dtype)
    if unit in ("Y", "M"):
        times, unit, step = times.astype("datetime64[D]"), "D", 1
    counts = times.astype(times.dtype.newbyteorder("=")).view(np.int64)
    if unit in _PARTS:
        return counts, step, _PARTS[unit]
    if unit not in _UNITS:
        raise BadRequest("a datetime64 without a unit is not a time", hint='give it a unit: np.datetime64(..., "ns")')
    return counts, step * _UNITS[unit], 1


def datetime64_ns(times: np.ndarray, name: str) -> np.ndarray:
    """An array of datetime64 of any unit as int64 nanoseconds. The caller masks NaT, whose result is arbitrary.

    Raises:
        BadRequest: 64 bit nanoseconds cannot hold a time; numpy's own cast would wrap around.
    """
    counts, each, parts = _counted(np.atleast_1d(times))
    there = ~np.isnat(np.atleast_1d(times))
    if parts > 1:
        bad = there & (counts * each % parts != 0)
        if not bad.any():
            return counts * each // parts
        raise BadRequest(f"{name}: {_shown(times[np.flatnonzero(bad)[0]])} lies between two nanoseconds")
    bad = there & ((counts > _MAX // each) | (counts < -(_MAX // each)))
    if bad.any():
        raise BadRequest(f"{name}: {_shown(times[np.flatnonzero(bad)[0]])} is outside of {_REACH}")
    return np.where(there, counts, 0) * each


def _shown(value: Any) -> str:
    return str(value) if isinstance(value, np.datetime64 | dt.date) else repr(value)


def to_session(value: Any, name: str = "session") -> str:
    """A session, `2016-08-10`, from an ISO date, a date, or a moment at midnight UTC."""
    ns = to_ns(value, name)
    if ns is None:
        raise BadRequest(f"{name} is missing", hint='sessions are dates: session="2016-08-10"')
    day, rest = divmod(ns, _UNITS["D"])
    if rest:
        raise BadRequest(f"{name}={_shown(value)} has a time of day; sessions are dates")
    return (_EPOCH.date() + dt.timedelta(days=day)).isoformat()


def format_ns(ns: int | None) -> str | None:
    """The shortest ISO 8601 form of a moment; None stays None."""
    return None if ns is None else _trellis.format_time(ns)
