"""Compares the matrix with pandas: same values, same alignment."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trellis import Frame, Row, Wide
from trellis._columns import make_frame
from trellis._values import to_ns
from trellis.errors import BadRequest, UnknownSession, UnknownSymbol

DAYS = np.array(["2020-01-01", "2020-01-02", "2020-01-03", "2020-01-06"], dtype="datetime64[ns]")


def frame_of(series):
    """A Frame of {symbol: {day: value}}."""
    rows = sorted((s, d, v) for s, values in series.items() for d, v in values.items())
    symbols, days, values = zip(*rows, strict=True)
    return make_frame({"symbol": list(symbols), "ts": np.array(days, dtype="datetime64[ns]"), "x": list(values)})


def random_series(seed):
    rng = np.random.default_rng(seed)
    days = np.arange("2020-01-01", "2020-03-01", dtype="datetime64[D]")
    chosen = {}
    for i in range(rng.integers(1, 12)):
        mine = days[rng.random(len(days)) < rng.random()]
        if len(mine):
            values = rng.normal(size=len(mine))
            chosen[f"S{i}"] = {d: None if rng.random() < 0.1 else v for d, v in zip(mine, values, strict=True)}
    return chosen or {"S": {days[0]: 1.0}}


@pytest.mark.parametrize("seed", range(60))
def test_a_matrix_is_pandas_pivot(seed):
    frame = frame_of(random_series(seed))
    wide = frame.wide("x")
    pivot = frame.pandas().astype({"symbol": str}).pivot(index="ts", columns="symbol", values="x")
    assert list(wide.symbols) == list(pivot.columns)
    assert (wide.index == pivot.index.tz_localize(None).to_numpy()).all()
    np.testing.assert_array_equal(wide.values, pivot.to_numpy(dtype=float))
    assert wide.values.flags["C_CONTIGUOUS"]
    pd.testing.assert_frame_equal(wide.pandas(), pivot, check_freq=False, check_column_type=False)


@pytest.mark.parametrize("seed", range(20))
def test_operands_are_aligned_as_pandas_aligns_them(seed):
    a, b = frame_of(random_series(seed)).wide("x"), frame_of(random_series(seed + 1000)).wide("x")
    result, expected = a - 2 * b, a.pandas() - 2 * b.pandas()
    expected = expected[sorted(expected.columns)]
    assert list(result.symbols) == list(expected.columns)
    np.testing.assert_array_equal(result.values, expected.to_numpy())
    row, series = a[-1] / b[-1], a.pandas().iloc[-1] / b.pandas().iloc[-1]
    np.testing.assert_array_equal(row.values, series.sort_index().to_numpy())


@pytest.mark.parametrize("name", ["mean", "sum", "std", "var", "min", "max", "median"])
def test_reductions_are_pandas_reductions(name):
    wide = frame_of(random_series(5)).wide("x")
    for axis in (0, 1):
        got = np.asarray(getattr(wide, name)(axis=axis))
        expected = getattr(wide.pandas(), name)(axis=axis).to_numpy()
        np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_the_momentum_of_the_design_is_one_line():
    rng = np.random.default_rng(1)
    close = Wide(DAYS, ("A", "B"), rng.random((4, 2)))
    score = close[-2] / close[-4] - 1
    assert isinstance(score, Row) and score.symbols == ("A", "B")
    np.testing.assert_allclose(score.values, close.values[2] / close.values[0] - 1)
    z = (score - score.mean()) / score.std()
    assert abs(z.sum()) < 1e-12 and isinstance(z / abs(z).sum(), Row)


def test_a_row_is_picked_by_symbol_mask_and_slice():
    row = Row(("A", "B", "C"), np.array([1.0, np.nan, 3.0]))
    assert row["C"] == 3.0 and row[0] == 1.0
    assert row[row > 2].symbols == ("C",)
    assert row[:2].symbols == ("A", "B")
    assert row.dropna().symbols == ("A", "C")
    assert row.reindex(["C", "X"]).values[0] == 3.0
    assert dict(row.dropna().items()) == {"A": 1.0, "C": 3.0}
    with pytest.raises(UnknownSymbol, match="X"):
        row["X"]


def test_ranks_are_pandas_ranks():
    values = np.array([3.0, 1.0, np.nan, 3.0, 2.0])
    row = Row(tuple("ABCDE"), values)
    np.testing.assert_array_equal(row.rank().values, pd.Series(values).rank().to_numpy())
    np.testing.assert_array_equal(row.rank(descending=True).values, pd.Series(values).rank(ascending=False).to_numpy())
    for plain in (
        np.array([0, 1, 2], np.uint8),
        np.array([2**53, 2**53 + 1, 2**53 + 2]),
        np.array([False, True, True]),
    ):
        ranks = Row(tuple("ABC"), plain).rank(descending=True)
        np.testing.assert_array_equal(ranks.values, pd.Series(plain).rank(ascending=False).to_numpy())


def test_a_history_that_is_too_short_is_an_error_that_says_so():
    wide = Wide(DAYS, ("A",), np.zeros((4, 1)))
    with pytest.raises(IndexError, match="there are 4"):
        wide[-252]
    assert len(wide[-252:]) == 4


def test_shifting_leaves_nan_where_nothing_was():
    wide = Wide(DAYS, ("A",), np.arange(4.0).reshape(4, 1))
    for n in (-9, -2, 0, 1, 9):
        np.testing.assert_array_equal(wide.shift(n).values, wide.pandas().shift(n).to_numpy())


def test_only_numbers_make_a_matrix():
    frame = make_frame({"symbol": ["A"], "ts": DAYS[:1], "name": ["x"], "flag": [True]})
    assert frame.wide("flag").values[0, 0] == 1.0
    with pytest.raises(BadRequest, match="name"):
        frame.wide("name")
    with pytest.raises(BadRequest, match="symbol, ts, name, flag"):
        frame.wide("close")


def test_no_rows_make_an_empty_matrix():
    frame = make_frame({"symbol": [], "ts": np.array([], dtype="datetime64[ns]"), "x": np.array([])})
    assert frame.wide("x").shape == (0, 0)
    assert len(frame.pandas()) == 0


# --- aligned to a calendar

# sessions of the New York exchange; the fourth was a holiday, the ninth and tenth a weekend
JULY = [f"2016-07-{d:02}" for d in (1, 5, 6, 7, 8, 11, 12, 13, 14, 15)]


def windowed(series, start=None, end=None, calendar="XNYS", named=()):
    rows = sorted((s, d, v) for s, values in series.items() for d, v in values.items())
    columns = {
        "symbol": [s for s, _, _ in rows],
        "ts": np.array([d for _, d, _ in rows], dtype="datetime64[ns]"),
        "x": np.array([v for _, _, v in rows], dtype=float),
    }
    return Frame(make_frame(columns)._rows, None, (calendar, to_ns(start, "start"), to_ns(end, "end")), named)


SERIES = st.dictionaries(
    st.sampled_from("ABC"), st.dictionaries(st.sampled_from(JULY), st.integers(0, 9), min_size=1), max_size=3
)


@settings(deadline=None)
@given(SERIES, st.booleans(), st.booleans(), st.sets(st.sampled_from("BX")))
def test_a_window_has_every_session_of_the_calendar_whatever_rows_there_are(series, from_start, to_end, named):
    days = sorted({d for values in series.values() for d in values})
    frame = windowed(series, JULY[0] if from_start else None, "2016-07-16" if to_end else None, named=tuple(named))
    wide = frame.wide("x")
    if days:
        first, last = JULY.index(days[0]), JULY.index(days[-1])
        expected = JULY[0 if from_start else first : None if to_end else last + 1]
    else:
        expected = JULY if from_start and to_end else []
    symbols = sorted(set(series) | named)
    assert wide.sessions == expected and list(wide.symbols) == symbols and wide.calendar == "XNYS"
    table = pd.DataFrame(series, dtype=float).reindex(index=expected, columns=symbols)
    np.testing.assert_array_equal(wide.values, table.to_numpy())
    union = frame.wide("x", calendar=None)
    assert union.sessions == days and union.calendar is None


def test_a_lookback_of_260_sessions_has_260_rows_with_one_row_or_none():
    start, end = "2015-07-31", "2016-08-11"
    for series in ({}, {"A": {"2016-08-10": 1.0}}, {"A": {"2015-07-31": 1.0}, "B": {"2016-08-10": 2.0}}):
        wide = windowed(series, start, end, named=("A",)).wide("x")
        assert len(wide) == 260 and "A" in wide.symbols
        score = wide[-21] / wide[-252] - 1
        assert np.isnan(score["A"])


def test_a_row_on_a_day_that_is_no_session_is_refused_with_the_way_out():
    frame = windowed({"A": {"2016-07-01": 1.0}, "B": {"2016-07-04": 2.0}})
    with pytest.raises(BadRequest, match=r"B has a row on 2016-07-04, which is no session of XNYS") as refused:
        frame.wide("x")
    assert "calendar=None" in refused.value.hint and len(frame.wide("x", calendar=None)) == 2
    assert frame.wide("x", calendar="24/7").sessions == ["2016-07-01", "2016-07-02", "2016-07-03", "2016-07-04"]
    with pytest.raises(BadRequest, match="begins on 1990-01-01"):
        windowed({"A": {"1989-12-29": 1.0}}).wide("x")
    with pytest.raises(BadRequest, match="no calendar `XMARS`"):
        frame.wide("x", calendar="XMARS")


def test_a_side_that_starts_before_the_calendar_goes_from_the_first_row():
    assert windowed({"A": {"2016-07-05": 1.0}}, "1900-01-01", "2016-07-07").wide("x").sessions == JULY[1:3]


def test_rows_with_a_time_of_day_are_not_aligned_to_sessions():
    wide = windowed({"A": {"2016-07-04T14:30": 1.0, "2016-07-05": 2.0}}, "2016-07-01", "2016-07-08").wide("x")
    assert wide.calendar is None and wide.sessions == ["2016-07-04T14:30:00Z", "2016-07-05"]
    assert wide["2016-07-04T14:30"]["A"] == 1.0


def test_a_session_is_named_by_its_date_and_one_that_is_not_there_says_why():
    wide = windowed({"A": {"2016-07-01": 1.0, "2016-07-15": 2.0}}).wide("x")
    assert wide["2016-07-15"]["A"] == 2.0 and np.isnan(wide["2016-07-05"]["A"])
    for key, why in [
        ("2016-07-04", "not a session of XNYS"),
        ("2016-07-18", "outside of the sessions of this matrix, 2016-07-01 … 2016-07-15"),
        ("2016-07-05T12:00", "not a session of XNYS"),
    ]:
        for pick in (wide.__getitem__, wide.loc.__getitem__):
            with pytest.raises(UnknownSession, match=why):
                pick(key)
    union = windowed({"A": {"2016-07-01": 1.0, "2016-07-15": 2.0}}, calendar=None).wide("x")
    with pytest.raises(UnknownSession, match="has no row in this matrix"):
        union["2016-07-05"]
    with pytest.raises(UnknownSymbol, match="2016-13-01"):
        wide["2016-13-01"]


def test_the_calendar_goes_where_every_session_goes():
    wide = windowed({"A": {"2016-07-01": 1.0, "2016-07-15": 2.0}}).wide("x")
    assert "10 sessions of XNYS" in repr(wide)
    for same in (wide * 2, wide.shift(1), wide[-3:], wide.ffill(), wide - wide[-3:], wide.loc["2016-07-05":]):
        assert same.calendar == "XNYS"
    for other in (wide[::2], wide[:2] - wide[-2:], wide[np.arange(10) > 3]):
        assert other.calendar is None


def test_gaps_are_filled_and_values_counted_as_pandas_does():
    wide = frame_of(random_series(3)).wide("x")
    pd.testing.assert_frame_equal(wide.ffill().pandas(), wide.pandas().ffill())
    np.testing.assert_array_equal(wide.count().values, wide.pandas().count().to_numpy())


def test_an_integer_that_a_float_does_not_hold_is_no_number_of_a_matrix():
    frame = make_frame({"symbol": ["A"], "ts": DAYS[:1], "n": [2**53 + 1], "m": [2**53]})
    assert frame.wide("m").values[0, 0] == 2.0**53
    with pytest.raises(BadRequest, match="9007199254740993"):
        frame.wide("n")
