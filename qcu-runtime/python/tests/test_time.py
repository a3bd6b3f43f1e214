import datetime as dt

import numpy as np
import pandas as pd
import pytest

from trellis._time import format_ns, to_ns, to_session
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
    ["yesterday", "", "2016-13-01", True, 1.5, [], dt.datetime(9999, 1, 1), 2**63, np.datetime64("NaT"), pd.NaT],
    ids=repr,
)
def test_what_is_no_moment_is_refused_with_the_arguments_name(value):
    with pytest.raises(BadRequest, match="start"):
        to_ns(value, "start")


def test_sessions_are_dates():
    assert to_session("2016-08-10") == to_session(dt.date(2016, 8, 10)) == "2016-08-10"
    for bad in ["2016-08-10T09:30", None, "soon"]:
        with pytest.raises(BadRequest, match="session"):
            to_session(bad)


def test_moments_are_written_as_short_as_they_are():
    assert format_ns(DAY) == "2016-08-10"
    assert format_ns(DAY + 1) == "2016-08-10T00:00:00.000000001Z"
    assert format_ns(None) is None
