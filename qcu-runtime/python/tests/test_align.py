"""Operands and columns with labels are aligned as pandas aligns them, or refused; never taken by position."""

import datetime as dt
import pickle
from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trellis import Row, Wide
from trellis._columns import frame_of, make_frame
from trellis.errors import BadRequest, BadRows

# enough examples for every kind of overlap; no deadline, because a busy machine is slow
few = settings(max_examples=25, deadline=None)
LETTERS = "ABCDEF"
DAYS = [f"2020-01-0{d}" for d in range(1, 7)]
VALUES = st.one_of(st.just(np.nan), st.integers(-8, 8).map(float))
SYMBOLS = st.lists(st.sampled_from(LETTERS), unique=True, min_size=1)
OPERATORS = st.sampled_from(
    [
        lambda a, b: a + b,
        lambda a, b: a - b,
        lambda a, b: a * b,
        lambda a, b: a / b,
        np.maximum,
        lambda a, b: b - a,
    ]
)


@st.composite
def rows(draw):
    symbols = tuple(draw(SYMBOLS))
    return Row(symbols, np.array(draw(st.lists(VALUES, min_size=len(symbols), max_size=len(symbols)))))


@st.composite
def matrices(draw):
    days, symbols = sorted(draw(st.sets(st.sampled_from(DAYS), min_size=1))), sorted(draw(SYMBOLS))
    size = len(days) * len(symbols)
    values = np.array(draw(st.lists(VALUES, min_size=size, max_size=size))).reshape(len(days), len(symbols))
    return Wide(np.array(days, dtype="datetime64[ns]"), tuple(symbols), values)


def same_row(row, series):
    assert isinstance(row, Row)
    series = series.reindex(list(row.symbols))
    np.testing.assert_array_equal(row.values, series.to_numpy(dtype=float))


def same_matrix(wide, frame):
    assert isinstance(wide, Wide)
    frame = frame.reindex(columns=list(wide.symbols)).sort_index()
    np.testing.assert_array_equal(wide.index, frame.index.tz_localize(None).to_numpy())
    np.testing.assert_array_equal(wide.values, frame.to_numpy(dtype=float))


@few
@given(rows(), rows(), OPERATORS)
def test_a_row_and_a_series_are_aligned_by_symbol_whichever_comes_first(a, b, operator):
    left, right = a.pandas(), b.pandas()
    left, right = left.align(right)
    expected = operator(left, right)
    for x, y in ((a, b), (a, b.pandas()), (a.pandas(), b)):
        result = operator(x, y)
        assert set(result.symbols) == set(a.symbols) | set(b.symbols)
        same_row(result, expected)


@few
@given(matrices(), matrices(), OPERATORS, st.randoms(use_true_random=False))
def test_a_matrix_and_a_data_frame_are_aligned_by_session_and_symbol_whichever_comes_first(a, b, operator, chance):
    left, right = a.pandas().align(b.pandas())
    expected = operator(left, right)
    shuffled = b.pandas()
    shuffled = shuffled.loc[chance.sample(list(shuffled.index), len(shuffled)), ::-1]
    naive = shuffled.tz_localize(None)
    dates, texts = naive.copy(), naive.copy()
    dates.index, texts.index = naive.index.date, naive.index.strftime("%Y-%m-%d")
    for other in (b, shuffled, naive, dates, texts):
        same_matrix(operator(a, other), expected)
        if other is not b:
            same_matrix(operator(other, a), operator(right, left))


@few
@given(matrices(), rows(), OPERATORS)
def test_a_row_beside_a_matrix_goes_to_its_symbols(wide, row, operator):
    frame, series = wide.pandas().align(row.pandas(), axis=1)
    with np.errstate(all="ignore"):
        expected = pd.DataFrame(operator(frame.to_numpy(), series.to_numpy()), frame.index, frame.columns)
    with np.errstate(all="ignore"):
        for other in (row, row.pandas()):
            same_matrix(operator(wide, other), expected)


@few
@given(matrices(), st.data())
def test_a_series_of_sessions_beside_a_matrix_goes_to_its_sessions(wide, data):
    days = data.draw(st.lists(st.sampled_from(DAYS), unique=True, min_size=1))
    values = data.draw(st.lists(VALUES, min_size=len(days), max_size=len(days)))
    series = pd.Series(values, index=pd.DatetimeIndex(days, tz="UTC"))
    same_matrix(wide * series, wide.pandas().mul(series, axis=0))
    same_matrix(series * wide, wide.pandas().mul(series, axis=0))


@few
@given(rows(), rows(), rows())
def test_where_and_clip_are_aligned_too(a, b, c):
    union = sorted(set(a.symbols) | set(b.symbols) | set(c.symbols))
    x, y = b.pandas().reindex(union), c.pandas().reindex(union)
    expected = pd.Series(np.where((a.pandas() > 0).reindex(union, fill_value=False), x, y), index=union)
    for condition, left in ((a > 0, b), (a.pandas() > 0, b), (a > 0, b.pandas())):
        result = np.where(condition, left, c)
        assert set(result.symbols) == set(union)
        same_row(result, expected)
    same_row(np.clip(a, -1, 1), a.pandas().clip(-1, 1))


@few
@given(rows(), rows(), rows())
def test_a_mask_with_symbols_is_aligned_by_them(a, b, c):
    mask = Row(a.symbols, a.values > 0)
    shuffled = mask[::-1]
    for with_labels in (mask, shuffled, shuffled.pandas()):
        assert a[with_labels].pandas().equals(a.pandas()[a.pandas() > 0])
    both = (a > 0) & (b > 0)
    expected = (a.pandas() > 0) & (b.pandas() > 0)
    assert both.values.dtype == bool and both.pandas().equals(expected.reindex(list(both.symbols)))
    if set(c.symbols) - set(a.symbols):
        with pytest.raises(BadRequest, match="the mask has no symbol"):
            c[mask]


def test_a_mask_with_labels_is_aligned_in_a_matrix():
    wide = Wide(np.array(DAYS[:2], "M8[ns]"), ("A", "B"), np.array([[1.0, 2], [3, 4]]))
    assert wide[pd.Series([True, False], index=["B", "A"])].symbols == ("B",)
    assert wide[Row(("B", "A"), np.array([False, True]))].symbols == ("A",)
    assert wide[pd.Series([True, False], index=pd.to_datetime(DAYS[:2])[::-1])].sessions == DAYS[1:2]
    turned = (wide.pandas() > 2)[["B", "A"]][::-1]
    for mask in (wide > 2, turned):
        np.testing.assert_array_equal(wide[mask].values, [[np.nan, np.nan], [3, 4]])


def test_a_mask_leaves_the_matrix_its_labels():
    wide = Wide(np.array(DAYS[:2], "M8[ns]"), ("A", "B"), np.array([[1.0, 2], [3, 4]]))
    last = wide[-1:][wide > 3]
    assert last.sessions == DAYS[1:2] and last.symbols == ("A", "B")
    np.testing.assert_array_equal(last.values, [[np.nan, 4]])


def test_where_leaves_missing_what_the_chosen_side_lacks():
    both = Row(("A", "B"), np.array([True, True]))
    chosen = np.where(both, Row(("A",), np.array([True])), both)
    assert chosen["A"] == 1.0 and np.isnan(chosen["B"])
    with pytest.raises(BadRequest, match="not a number"):
        np.where(both, ROW, None)


def test_products_sum_over_symbols():
    a, b = Row(("A", "B"), np.array([1.0, 2])), Row(("B", "A"), np.array([10.0, 20]))
    wide = Wide(np.array(DAYS[:2], "M8[ns]"), ("A", "B"), np.array([[1.0, 2], [3, 4]]))
    assert a @ b == a @ b.pandas() == 40.0
    np.testing.assert_array_equal(wide @ b, [40.0, 100.0])
    np.testing.assert_array_equal(wide @ np.array([1.0, 2.0]), [5.0, 11.0])
    with pytest.raises(TypeError, match="by position"):
        a.pandas() @ b
    with pytest.raises(BadRequest):
        a @ wide


def test_nothing_is_changed_in_place():
    row = before = Row(("A", "B"), np.array([1.0, 2]))
    row *= pd.Series({"B": 10.0, "A": 5.0})
    assert dict(row.items()) == {"A": 5.0, "B": 20.0} and dict(before.items()) == {"A": 1.0, "B": 2.0}
    values = np.ones(2)
    with pytest.raises(TypeError):
        values *= row
    gaps = Row(("A", "B"), np.array([np.nan, 2]))
    assert np.nan_to_num(gaps, copy=False)["A"] == 0.0
    for write in (lambda: np.copyto(gaps, row), lambda: np.clip(gaps, 0, 1, gaps), lambda: np.put(gaps, 0, 1.0)):
        with pytest.raises(ValueError, match="read-only"):
            write()
    np.testing.assert_array_equal(gaps.values, [np.nan, 2])


ROW = Row(("A", "B"), np.array([1.0, 2.0]))
WIDE = Wide(np.array(DAYS[:2], "M8[ns]"), ("A", "B"), np.array([[1.0, 2], [3, 4]]))


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (pl.Series([1.0, 2.0]), "no symbols to align by"),
        (pl.DataFrame({"symbol": ["A", "B"], "x": [1.0, 2.0]}), "no symbols to align by"),
        (pd.Index([1.0, 2.0]), "no symbols to align by"),
        (pd.Series([1.0, 2.0]), "labelled by int 0"),
        (pd.Series([1.0, 2.0], index=[5, 3]), "labelled by int 5"),
        (pd.Series([1.0, 2.0], index=["A", "A"]), "the symbol 'A' twice"),
        (pd.Series([1.0, 2.0], index=pd.MultiIndex.from_tuples([("A", 1), ("B", 1)])), "MultiIndex"),
        (pd.Series(["x", "y"], index=["A", "B"]), "not a number"),
        (pd.Series(["1_0", "nan"], index=["A", "B"]), "not a number"),
        (pd.Series([Decimal("0.1234567890123456789"), 1], index=["A", "B"]), "0.1234567890123456789"),
        (pd.DataFrame({"A": [1.0], "B": [2.0]}), "sessions down"),
        (pd.DataFrame([[1.0]], index=["A"], columns=pd.to_datetime(DAYS[:1])), "other way round|sessions down"),
        (pd.DataFrame([[1.0], [2.0]], index=pd.to_datetime([DAYS[0]] * 2), columns=["A"]), "2020-01-01 twice"),
        (pd.DataFrame([[1.0, 2.0]], index=pd.to_datetime(DAYS[:1]), columns=["A", "A"]), "'A' twice"),
        (pd.DataFrame([[1.0]], index=pd.DatetimeIndex(DAYS[:1], tz="America/New_York"), columns=["A"]), "midnights of"),
        ({"A": 1.0}, "dict"),
        ("A", "'A' is not a number"),
        (np.array(["1", "2"]), "not a number"),
    ],
    ids=range(18),
)
@pytest.mark.parametrize("ours", [ROW, WIDE], ids=["row", "wide"])
def test_what_cannot_be_aligned_is_refused_in_one_sentence_whichever_comes_first(ours, other, told):
    with pytest.raises(BadRequest, match=told) as refused:
        ours * other
    assert "\n" not in refused.value.message and refused.value.hint
    # pandas passes an Index on as an array of its values
    if not isinstance(other, pd.Index):
        with pytest.raises((BadRequest, TypeError, ValueError)):
            other * ours
    with pytest.raises(BadRequest):
        np.where(ours > 0, ours, other)


def test_a_series_of_times_is_no_partner_of_a_row():
    with pytest.raises(BadRequest, match="no label in common"):
        ROW * pd.Series([1.0, 2.0], index=pd.to_datetime(DAYS[:2]))


@pytest.mark.parametrize("join", [np.concatenate, np.stack, np.vstack, np.column_stack], ids=lambda f: f.__name__)
def test_functions_that_take_arrays_by_position_refuse_other_labels(join):
    join((ROW, ROW))
    for other in (ROW[::-1], ROW[::-1].pandas(), pl.Series([1.0, 2.0])):
        with pytest.raises(BadRequest):
            join((ROW, other))


def test_an_operand_that_is_given_by_name_is_not_taken_by_position():
    low = pd.Series({"B": 5.0, "A": 0.0})
    assert dict(np.clip(ROW, low, None).items()) == {"A": 1.0, "B": 5.0}
    for call in (
        lambda: np.clip(ROW, a_min=low, a_max=None),
        lambda: np.clip(ROW, min=ROW[::-1]),
        lambda: np.add(ROW, 1, where=ROW[::-1] > 1),
    ):
        with pytest.raises(BadRequest, match="not aligned"):
            call()


def test_an_array_without_labels_beside_different_labels_is_refused():
    with pytest.raises(BadRequest, match="without labels"):
        np.where(ROW > 0, ROW[::-1], np.array([1.0, 2.0]))
    np.testing.assert_array_equal((ROW * np.array([2.0, 3.0])).values, [2.0, 6.0])
    for masked in (np.ma.array([1.0, 2.0], mask=[True, False]), np.ma.array([1, 2], mask=[True, False])):
        assert np.isnan((ROW * masked)["A"]) and (ROW * masked)["B"] == 4.0


@pytest.mark.parametrize(
    "take",
    [
        lambda row: pd.Series({"B": 1.0, "A": 2.0}).dot(row),
        lambda row: pd.DataFrame({"x": [1.0, 2.0]}, index=["B", "A"]).assign(y=row),
        lambda row: pd.Series(row),
        lambda row: pd.Series({"B": 1.0, "A": 2.0}).where([True, False], row),
        lambda row: pl.Series(row),
        lambda row: pl.DataFrame({"x": [1.0, 2.0]}).with_columns(y=row),
        lambda row: pd.DataFrame([row, row[::-1]], columns=["A", "B"]),
        lambda row: pd.DataFrame.from_records([row, row[::-1]]),
        lambda row: pd.DataFrame(WIDE),
        lambda row: pl.DataFrame([row, row[::-1]]),
        lambda row: np.mean([row, row[::-1]], axis=0),
        lambda row: np.mean([pd.Series({"B": 1.0, "A": 2.0}), row], axis=0),
        lambda row: pa.array(row),
        lambda row: pa.table({"symbol": ["B", "A"], "score": row}),
        lambda row: pa.table([row], names=["score"]),
    ],
    ids=range(15),
)
def test_libraries_that_would_take_a_row_by_position_get_none(take):
    with pytest.raises((BadRequest, TypeError, ValueError)):
        take(ROW)
    assert pd.Series(ROW.values, index=ROW.symbols)["B"] == 2.0


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: bool(x),
        lambda x: (x > 0) and x,
        lambda x: not (x > 0),
        lambda x: 0 < x < 3,
        lambda x: max(x, x * 2),
        lambda x: 1.0 if x > 0 else 0.0,
    ],
    ids=range(6),
)
@pytest.mark.parametrize("ours", [ROW, ROW[:1], WIDE], ids=["row", "row_of_one", "wide"])
def test_many_values_are_neither_true_nor_false(ours, ask):
    with pytest.raises(BadRequest, match="neither true nor false"):
        ask(ours)


def test_in_asks_for_a_label():
    assert "A" in ROW and "C" not in ROW and "A" in WIDE and "C" not in WIDE
    assert DAYS[1] in WIDE and dt.date(2020, 1, 1) in WIDE and DAYS[2] not in WIDE
    for ours in (ROW, WIDE):
        with pytest.raises(BadRequest):
            1.0 in ours  # noqa: B015


def test_a_label_names_one_value():
    for twice in (
        lambda: Row(("A", "A"), np.zeros(2)),
        lambda: ROW[["A", "A"]],
        lambda: WIDE[["A", "A"]],
        lambda: WIDE.loc[[DAYS[0], DAYS[0]]],
    ):
        with pytest.raises(BadRequest):
            twice()


def test_an_array_of_the_sessions_is_not_taken_as_one_of_the_symbols():
    for mean in (WIDE.mean(axis=1), list(WIDE.mean(axis=1))):
        for mistaken in (lambda x: WIDE - x, lambda x: x / WIDE, lambda x: np.where(WIDE > 1, WIDE, x)):
            with pytest.raises(BadRequest, match="2 values without labels stands beside 2 sessions"):
                mistaken(mean)
    np.testing.assert_array_equal((WIDE - WIDE.mean(axis=1)[:, None]).values, [[-0.5, 0.5], [-0.5, 0.5]])
    np.testing.assert_array_equal((WIDE * Row(WIDE.symbols, np.array([1.0, 2.0]))).values, [[1, 4], [3, 8]])
    longer = Wide(np.array(DAYS[:3], "M8[ns]"), ("A", "B"), np.ones((3, 2)))
    np.testing.assert_array_equal((longer * np.array([1.0, 2.0])).values, [[1, 2]] * 3)


def test_integers_that_a_float_would_change_are_refused():
    big = pd.Series({"A": 2**53 + 1, "C": 1})
    with pytest.raises(BadRequest, match="9007199254740993"):
        ROW + big  # the other operand lacks B, and NaN needs a float
    with pytest.raises(BadRequest, match="9007199254740993"):
        Row(("A",), np.array([2**53 + 1])).reindex(["A", "B"])


def test_rows_and_matrices_are_what_they_say():
    for wrong in (
        lambda: Row(("A",), np.zeros(2)),
        lambda: Row(("A", "B"), ROW[::-1]),
        lambda: Row(("A",), pd.Series([1])),
    ):
        with pytest.raises(BadRequest):
            wrong()
    with pytest.raises(BadRequest):
        ROW.reindex(ROW)
    for value in (ROW, WIDE):
        back = pickle.loads(pickle.dumps(value))
        assert back.symbols == value.symbols and np.array_equal(back.values, value.values)


# --- outputs


@few
@given(st.permutations(LETTERS), st.permutations(LETTERS))
def test_columns_that_have_symbols_are_put_into_the_order_of_the_rows(order, other):
    value = {s: float(i) for i, s in enumerate(LETTERS)}
    row = Row(tuple(other), np.array([value[s] for s in other]))
    table = pd.DataFrame({"symbol": list(order), "score": [value[s] for s in order]})
    for symbol in (list(order), tuple(order), np.array(order), pd.Series(order), pd.Index(order), pl.Series(order)):
        for score in (row, row.pandas(), row.pandas().astype("Float64"), row.pandas().sort_values()):
            got = make_frame({"symbol": symbol, "score": score}).arrow().to_pylist()
            assert [(r["symbol"], r["score"]) for r in got] == [(s, value[s]) for s in order]
    by_score = table.sort_values("score", ascending=False)
    for symbol, score in ((table.symbol, by_score.score), (by_score.symbol, table.score), (by_score.symbol, row)):
        got = make_frame({"symbol": symbol, "score": score}).arrow().to_pylist()
        assert {r["symbol"]: r["score"] for r in got} == value


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        (dict(symbol=["A", "B"], x=pd.Series([1.0, 2.0], index=["A", "C"])), "no symbol 'B'"),
        (dict(symbol=["A"], x=pd.Series([1.0, 2.0], index=["A", "B"])), "no symbol 'B'"),
        (dict(symbol=["A", "B"], x=pd.Series([1.0, 2.0], index=["A", "A"])), "twice"),
        (dict(symbol=["A", "A"], x=pd.Series([1.0, 2.0], index=["A", "B"])), "twice"),
        (dict(symbol=["A", "B"], x=pd.Series([1.0, 2.0], index=pd.to_datetime(DAYS[:2]))), "2020-01-01"),
        (dict(symbol=["A", "B"], x=pd.Series([1.0, 2.0], index=[1, 0])), "int64"),
        (dict(symbol=["A", "B"], x=pd.Series([1.0, 2.0])[::-1]), "int64"),
        (dict(symbol=pd.Series(["A", "B"], index=[7, 9]), x=pd.Series([1.0, 2.0])), "int64"),
        (dict(symbol=pd.Series(["A", "B", "C"])[1:], x=pd.Series([1.0, 2.0, 3.0])[:-1]), "int64"),
        (dict(symbol=pd.Series(["A", "B", "C"]), x=pd.Series([1.0, 2.0])), "int64"),
        (
            dict(symbol=["A", "B"], x=pd.Series([1.0, 2.0], index=pd.MultiIndex.from_product([["A"], [1, 2]]))),
            "MultiIndex",
        ),
        (dict(symbol=["A", "B"], x=Row(("A", "C"), np.zeros(2))), "no symbol 'B'"),
        (dict(x=ROW, y=ROW[::-1]), "no column symbol"),
        (dict(x=ROW.pandas()), "no column symbol"),
        (dict(symbol=["A", "B"], x=pd.DataFrame({"x": [1.0, 2.0]})), "whole table"),
        (dict(symbol=["A", "B"], x=pl.DataFrame({"x": [1.0, 2.0]})), "whole table"),
    ],
    ids=range(16),
)
def test_a_column_with_other_labels_is_refused_by_name(columns, told):
    with pytest.raises(BadRows, match=told) as refused:
        make_frame(columns)
    assert "column" in refused.value.message and refused.value.hint


def test_a_series_that_only_counts_its_rows_is_taken_by_position():
    frame = make_frame({"symbol": ["B", "A"], "x": pd.Series([1.0, 2.0])})
    assert frame.arrow()["x"].to_pylist() == [1.0, 2.0]
    some = pd.DataFrame({"symbol": ["A", "B", "C"], "x": [1.0, 2.0, 3.0]}).iloc[1:]
    assert make_frame({"symbol": some.symbol, "x": some.x}).arrow()["x"].to_pylist() == [2.0, 3.0]


def test_a_filter_that_leaves_nothing_leaves_no_rows():
    scores = pd.Series([1.0, 2.0], index=["A", "B"])
    none, rows, table = scores[scores > 9], ROW[ROW > 9], WITHOUT[WITHOUT.x > 9]
    for frame in (
        make_frame({"symbol": none.index, "score": none}),
        make_frame({"symbol": list(none.index), "score": none.sort_values()}),
        make_frame({"symbol": rows.symbols, "score": rows}),
        frame_of(table),
        frame_of(table.rename_axis("symbol")),
        frame_of(table.reset_index(names="symbol")),
    ):
        assert len(frame) == 0 and frame.columns[0] == "symbol"


WITHOUT = pd.DataFrame({"x": [1.0, 2.0]}, index=["A", "B"])


@pytest.mark.parametrize(
    "table",
    [
        WITHOUT,
        WITHOUT.rename_axis("symbol"),
        WITHOUT.rename_axis("ticker"),
        WITHOUT.rename_axis("symbol").reset_index(),
        WITHOUT.rename_axis("symbol").reset_index().set_index("symbol", drop=False).rename_axis(None),
        WITHOUT.rename_axis("symbol").reset_index().iloc[::-1],
    ],
    ids=range(6),
)
def test_a_data_frames_index_of_symbols_is_its_symbols(table):
    got = frame_of(table).arrow().to_pylist()
    assert sorted((r["symbol"], r["x"]) for r in got) == [("A", 1.0), ("B", 2.0)]


def test_a_data_frames_index_of_times_is_its_times():
    table = pd.DataFrame({"symbol": ["A", "B"], "x": [1.0, 2.0]}, index=pd.DatetimeIndex(DAYS[:2], name="ts"))
    assert frame_of(table).columns == ["ts", "symbol", "x"]
    both = table.reset_index().set_index(["symbol", "ts"])
    assert frame_of(both).columns == ["symbol", "ts", "x"]


@pytest.mark.parametrize(
    ("table", "told"),
    [
        (pd.DataFrame([[1.0, 2.0, "A"]], columns=["x", "x", "symbol"]), "x is there twice"),
        (WITHOUT.assign(symbol=["B", "A"]), "others as its column symbol"),
        (WITHOUT.rename_axis("symbol").assign(symbol=["A", "B"]), "levels symbol"),
        (WITHOUT.assign(symbol=["A", "B"]).set_index(pd.to_datetime(DAYS[:2])), "has no name"),
        (WITHOUT.assign(symbol=["A", "B"]).set_index(pd.DatetimeIndex(DAYS[:2], name="Date")), "is named 'Date'"),
        (pd.DataFrame([[1.0]], index=pd.MultiIndex.from_tuples([("A", 1)], names=["symbol", "n"])), "levels symbol, n"),
        (pd.DataFrame([[1.0]], columns=pd.MultiIndex.from_tuples([("x", 1)])), "MultiIndex"),
    ],
    ids=range(7),
)
def test_a_data_frame_that_can_be_read_two_ways_is_refused(table, told):
    with pytest.raises(BadRows, match=told):
        frame_of(table)


def test_dates_pick_sessions_inclusive_as_in_pandas():
    wide = Wide(np.array(DAYS, "M8[ns]"), ("A", "B"), np.arange(12.0).reshape(6, 2))
    for key in (DAYS[2], dt.date(2020, 1, 3), np.datetime64(DAYS[2]), pd.Timestamp(DAYS[2])):
        assert dict(wide[key].items()) == dict(wide.loc[key].items()) == {"A": 4.0, "B": 5.0}
    assert wide.loc[DAYS[1] : DAYS[3]].sessions == wide[DAYS[1] : DAYS[3]].sessions == DAYS[1:4]
    assert wide.loc["1500-01-01":"9999-12-31"].sessions == wide.loc[:"2262-04-11"].sessions == DAYS
    assert wide.loc[: DAYS[1]].sessions == DAYS[:2] and wide.loc["2019-01-01":].sessions == DAYS
    assert wide.loc[DAYS[1], "B"] == 3.0 and wide.loc[[DAYS[0], DAYS[4]]].sessions == [DAYS[0], DAYS[4]]
    named = Wide(wide.index, ("2020-01-01", "B"), wide.values)
    np.testing.assert_array_equal(named["2020-01-01"], wide.values[:, 0])


def test_a_position_is_no_date():
    wide = Wide(np.array(DAYS, "M8[ns]"), ("A", "B"), np.arange(12.0).reshape(6, 2))
    for mistaken in (
        lambda: wide.loc[-2:],
        lambda: wide.loc[:3],
        lambda: wide[DAYS[1] : -1],
        lambda: wide.loc[DAYS[1] : np.int64(4)],
        lambda: wide.loc[[0, 1]],
        lambda: wide.loc[-1],
    ):
        with pytest.raises(BadRequest) as refused:
            mistaken()
        assert "w[-252:]" in refused.value.hint


def test_the_sessions_of_a_matrix_ascend():
    wide = Wide(np.array(DAYS, "M8[ns]"), ("A", "B"), np.arange(12.0).reshape(6, 2))
    for mistaken in (
        lambda: wide[::-1],
        lambda: wide[np.array([3, 1])],
        lambda: wide.loc[[DAYS[4], DAYS[0]]],
        lambda: Wide(wide.index[::-1], wide.symbols, wide.values),
    ):
        with pytest.raises(BadRequest, match="ascend"):
            mistaken()
    for index in (DAYS, pd.DatetimeIndex(DAYS, tz="UTC"), np.array(DAYS, "M8[D]")):
        np.testing.assert_array_equal(Wide(index, wide.symbols, wide.values).index, wide.index)
    with pytest.raises(BadRequest, match="3000-01-01"):
        Wide(np.array(["3000-01-01"], "M8[D]"), ("A",), np.ones((1, 1)))
    with pytest.raises(BadRequest, match="20160810"):
        wide[20160810]
    assert wide[::2].sessions == DAYS[::2] and wide[np.array([1, 3])].sessions == [DAYS[1], DAYS[3]]
