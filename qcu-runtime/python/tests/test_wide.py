"""The matrix against pandas: what pandas would give, aligned as pandas aligns."""

import numpy as np
import pandas as pd
import pytest

from trellis import Row, Wide
from trellis._columns import make_frame
from trellis.errors import BadRequest, UnknownSymbol

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
