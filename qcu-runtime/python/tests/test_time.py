import datetime as dt
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trellis._values import datetime64_ns, format_ns, to_end, to_ns, to_session, to_start
from trellis.errors import BadRequest

DAY = 1_470_787_200_000_000_000


@pytest.mark.parametrize(
    "value",
    [
        "2016-08-10",
        "2016-08-10T00:00Z",
        "2016-08-10T02:00:00+02:00",
        dt.date(2016, 8, 10),
        dt.datetime(2016, 8, 10),
        dt.datetime(2016, 8, 10, tzinfo=dt.UTC),
        dt.datetime(2016, 8, 10, 2, tzinfo=dt.timezone(dt.timedelta(hours=2))),
        pd.Timestamp("2016-08-10"),
        pd.Timestamp("2016-08-10", tz="UTC"),
        pd.Timestamp("2016-08-09 20:00", tz="America/New_York"),
        np.datetime64("2016-08-10"),
        np.datetime64(DAY, "ns"),
        DAY,
        np.int64(DAY),
        np.datetime64(DAY // 3_600_000_000_000, "h"),
        pd.Timestamp("2016-08-10").as_unit("s"),
    ],
    ids=repr,
)
def test_every_form_of_a_moment_is_the_same_moment(value):
    assert to_ns(value, "start") == DAY


def test_nothing_is_rounded():
    assert to_ns(pd.Timestamp(DAY + 1, unit="ns"), "t") == DAY + 1
    assert to_ns(dt.datetime(2262, 4, 11, 23, 47, 16, 854775, tzinfo=dt.UTC), "t") == 9223372036854775000
    assert to_ns(dt.datetime(1950, 1, 3, 0, 0, 0, 1), "t") == -630979199999999000
    assert to_ns(None, "t") is None


@pytest.mark.parametrize(
    "value",
    [
        *("yesterday", "", "2016-13-01", "20160810T000000", True, np.True_, 1.5, [], dt.time(9), b"2016-08-10"),
        *(dt.datetime(9999, 1, 1), 2**63, np.datetime64("NaT"), np.timedelta64(10**18, "ns"), pd.NaT, pd.NA),
        *(pd.Timedelta(10**18, "ns"), pd.Period("2016-08-10"), np.datetime64(5, "ns") - np.datetime64(1, "ns")),
    ],
    ids=repr,
)
def test_what_is_no_moment_is_refused_with_the_arguments_name(value):
    with pytest.raises(BadRequest, match="start"):
        to_ns(value, "start")


FAR = [
    "9999-12-31",
    dt.date(9999, 12, 31),
    dt.datetime(9999, 12, 31),
    dt.datetime(9999, 12, 31, tzinfo=dt.timezone(dt.timedelta(hours=-5))),
    *(np.datetime64("9999-12-31").astype(f"M8[{unit}]") for unit in ("Y", "M", "W", "D", "h", "m", "s", "ms", "us")),
    pd.Timestamp("9999-12-31"),
    pd.Timestamp("9999-12-31", tz="Asia/Tokyo"),
    2**63,
]


@pytest.mark.parametrize("value", FAR, ids=repr)
def test_a_time_beyond_all_time_is_refused_by_its_value_and_is_all_there_is_as_a_bound(value):
    with pytest.raises(BadRequest, match=r"start.*(99\d\d|9223372036854775808).*nanoseconds"):
        to_ns(value, "start")
    assert to_end(value) is None and to_start(value) == 2**63 - 1


@pytest.mark.parametrize("value", ["0001-01-01", dt.date(1, 1, 1), np.datetime64("-5000", "Y"), -(2**63) - 1], ids=repr)
def test_a_bound_before_all_time_is_the_first_moment(value):
    assert to_start(value) == to_end(value) == -(2**63)
    with pytest.raises(BadRequest):
        to_ns(value, "start")


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (20160810, '"2016-08-10"'),
        (2018, '"2018-01-01"'),
        (201608, '"2016-08-01"'),
        (20160810143000, '"2016-08-10T14:30:00"'),
        (1470787200, "as seconds it is 2016-08-10"),
        (1470787200_000, "as milliseconds it is 2016-08-10"),
        (1, "ISO 8601"),
    ],
)
@pytest.mark.parametrize("form", [int, np.int64, str])
@pytest.mark.parametrize("door", [lambda v: to_ns(v, "start"), to_start, lambda v: to_end(v, "start"), to_session])
def test_an_integer_that_looks_like_a_date_is_refused_with_the_fix_at_every_door(value, hint, form, door):
    with pytest.raises(BadRequest, match=r"start|session") as refused:
        door(form(value))
    assert hint in refused.value.hint and str(value) in refused.value.message


def test_integers_that_are_nanoseconds_stay_so():
    for ns in (0, -1, -20160810, 10**17, 2**63 - 1):
        assert to_ns(ns, "t") == ns


@settings(deadline=None)
@given(st.integers(-(2**63) + 1, 2**63 - 1), st.sampled_from(["W", "D", "h", "m", "s", "ms", "us", "ns", "ps", "fs"]))
def test_numpys_times_are_exact_or_refused_whatever_their_unit(count, unit):
    value = np.datetime64(count, unit)
    seconds = {"W": 604800, "D": 86400, "h": 3600, "m": 60}
    ns = Fraction({"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}.get(unit, seconds.get(unit, 0) * 10**9)) * count
    if unit in ("ps", "fs"):
        ns = Fraction(count, {"ps": 10**3, "fs": 10**6}[unit])
    if ns.denominator == 1 and -(2**63) < ns < 2**63:
        assert to_ns(value, "t") == ns and datetime64_ns(np.array([value]), "t").tolist() == [ns]
    else:
        for convert in (lambda: to_ns(value, "t"), lambda: datetime64_ns(np.array([value]), "t")):
            with pytest.raises(BadRequest, match="nanosecond"):
                convert()


def test_sessions_are_dates():
    assert to_session("2016-08-10") == to_session(dt.date(2016, 8, 10)) == "2016-08-10"
    for bad in ["2016-08-10T09:30", None, "soon"]:
        with pytest.raises(BadRequest, match="session"):
            to_session(bad)


def test_moments_are_written_as_short_as_they_are():
    assert format_ns(DAY) == "2016-08-10"
    assert format_ns(DAY + 1) == "2016-08-10T00:00:00.000000001Z"
    assert format_ns(None) is None
