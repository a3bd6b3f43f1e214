"""The answers of a strategy: columns of every library are taken, others are refused."""

import datetime as dt
import json
import pickle
from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from trellis import Row
from trellis._columns import frame_of, make_frame
from trellis.errors import BadRows, StrategyError

SYMBOLS = ["A", "B", "C"]


@pytest.mark.parametrize(
    "column",
    [
        [1.5, None, 3.0],
        (1.5, float("nan"), 3.0),
        np.array([1.5, np.nan, 3.0]),
        np.array([9.0, 1.5, 9.0, np.nan, 9.0, 3.0])[1::2],
        np.array([1.5, np.nan, 3.0], dtype=">f8"),
        np.array([1.5, np.nan, 3.0], dtype=np.float16),
        np.ma.array([1.5, 7.0, 3.0], mask=[False, True, False]),
        np.array([1.5, None, 3.0], dtype=object),
        pd.Series([1.5, None, 3.0]),
        pd.Series([1.5, None, 3.0], dtype="Float64"),
        pl.Series([1.5, None, 3.0]),
        pa.array([1.5, None, 3.0]),
        pa.chunked_array([[1.5], [None, 3.0]]),
        Row(tuple(SYMBOLS), np.array([1.5, np.nan, 3.0])),
        (x for x in [1.5, None, 3.0]),
        [Decimal("1.5"), None, Decimal(3)],
        [1.5, pd.NA, 3],
        np.array([1.5, pd.NA, Decimal("3.00")], dtype=object),
        pd.Series([1.5, pd.NA, 3.0], dtype=object),
        pd.Series([1.5, None, 3.0], dtype="double[pyarrow]"),
        pd.Series([Decimal("1.5"), None, Decimal(3)], dtype=pd.ArrowDtype(pa.decimal128(10, 2))),
        pl.Series([Decimal("1.5"), None, Decimal(3)]),
        pa.array([Decimal("1.5"), None, Decimal(3)], pa.decimal128(10, 2)),
        pa.array([Decimal("1.5"), None, Decimal(3)], pa.decimal256(50, 2)),
    ],
    ids=lambda c: type(c).__module__ + "." + type(c).__name__,
)
def test_a_column_of_any_library_is_the_same_column(column):
    frame = make_frame({"symbol": SYMBOLS, "x": column})
    assert frame.arrow().column("x").cast("float64").to_pylist() == [1.5, None, 3.0]


@pytest.mark.parametrize(
    "column",
    [
        SYMBOLS,
        tuple(SYMBOLS),
        np.array(SYMBOLS),
        np.array(SYMBOLS, dtype=object),
        pd.Series(SYMBOLS),
        pd.Series(SYMBOLS, dtype="category"),
        pl.Series(SYMBOLS),
        pl.Series(SYMBOLS, dtype=pl.Categorical),
        pa.array(SYMBOLS),
        pa.array(SYMBOLS).dictionary_encode(),
        pd.Index(SYMBOLS),
        pd.Series(SYMBOLS, dtype=pd.ArrowDtype(pa.string())),
        pd.Series(SYMBOLS, dtype="string"),
        pa.array(SYMBOLS, pa.string_view()),
        pl.Series(SYMBOLS, dtype=pl.Enum(SYMBOLS)),
    ],
    ids=lambda c: type(c).__module__ + "." + type(c).__name__,
)
def test_symbols_of_any_library_are_the_same_symbols(column):
    frame = make_frame({"symbol": column, "x": 1})
    assert frame.arrow().column("symbol").cast("string").to_pylist() == SYMBOLS


@pytest.mark.parametrize(
    "column",
    [
        [dt.date(2020, 1, 1), None],
        [dt.datetime(2020, 1, 1, tzinfo=dt.UTC), None],
        np.array(["2020-01-01", "NaT"], dtype="datetime64[D]"),
        pd.Series(pd.to_datetime(["2020-01-01", None])),
        pd.Series(pd.to_datetime(["2020-01-01", None], utc=True)),
        pd.DatetimeIndex(["2020-01-01", None], tz="UTC"),
        pd.Series([pd.Timestamp("2020-01-01"), pd.NaT], dtype=object),
        [np.datetime64("2020-01-01"), np.datetime64("NaT")],
        pd.Series([dt.datetime(2020, 1, 1), None], dtype="timestamp[us][pyarrow]"),
        *(pa.array([dt.datetime(2020, 1, 1), None], pa.timestamp(unit)) for unit in ("s", "ms", "us", "ns")),
        pa.array([dt.date(2020, 1, 1), None], pa.date32()),
        pa.array([dt.date(2020, 1, 1), None], pa.date64()),
        pl.Series([dt.date(2020, 1, 1), None]),
        pl.Series([dt.datetime(2020, 1, 1, tzinfo=dt.UTC), None]).dt.convert_time_zone("Europe/Paris"),
    ],
    ids=lambda c: type(c).__module__ + "." + type(c).__name__,
)
def test_times_of_any_library_are_the_same_times(column):
    frame = make_frame({"symbol": ["A", "B"], "when": column})
    assert frame.dtypes["when"] == "timestamp"
    assert frame.arrow().column("when").cast("int64").to_pylist() == [1577836800000000000, None]


@pytest.mark.parametrize(
    ("column", "kind", "values"),
    [
        (np.array([1, 2, 3], dtype=np.int32), "int32", [1, 2, 3]),
        ([1, 2, None], "int64", [1, 2, None]),
        (pd.Series([1, None, 3], dtype="Int64"), "int64", [1, None, 3]),
        (np.array([True, False, True]), "bool", [True, False, True]),
        (pd.Series([True, None, False], dtype="boolean"), "bool", [True, None, False]),
        (["x", None, "z"], "string", ["x", None, "z"]),
        (7, "int64", [7, 7, 7]),
        (np.float64(0.5), "float64", [0.5] * 3),
        ("same", "string", ["same"] * 3),
        (True, "bool", [True] * 3),
        ([Decimal("2.00"), 3, None], "int64", [2, 3, None]),
        ([1, float("nan"), 3], "int64", [1, None, 3]),
        (pd.Series([1, None, 3], dtype="int64[pyarrow]"), "int64", [1, None, 3]),
        (pa.scalar(7), "int64", [7, 7, 7]),
        ([Decimal("sNaN"), Decimal("1.5"), Decimal("NaN")], "float64", [None, 1.5, None]),
        (pl.Series([None] * 3), "Null", [None] * 3),
        (pl.Series([1, None, 3], dtype=pl.Int128), "int64", [1, None, 3]),
    ],
    ids=repr,
)
def test_values_keep_their_types_and_one_value_serves_all_rows(column, kind, values):
    frame = make_frame({"symbol": SYMBOLS, "x": column})
    assert frame.dtypes["x"] == kind
    assert frame.arrow().column("x").to_pylist() == values


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"symbol": SYMBOLS, "x": [1.0, 2.0]}, "symbol has 3 values, x has 2"),
        ({"symbol": SYMBOLS, "x": np.zeros((3, 2))}, "2 dimensions"),
        ({"symbol": SYMBOLS, "x": pd.Timestamp("2020-01-01")}, "one time for all rows"),
        ({"symbol": SYMBOLS, "x": [1.0, "two", 3.0]}, "x"),
        ({"symbol": SYMBOLS, "x": [{}, {}, {}]}, "dict"),
        ({"symbol": SYMBOLS, "x": {"A": 1.0}}, "dict"),
        ({"symbol": SYMBOLS, "x": np.array([1j, 2j, 3j])}, "complex"),
        ({"symbol": SYMBOLS, "x": [2**53 + 1, 0.5, 1]}, "9007199254740993"),
        ({"symbol": SYMBOLS, "x": [2**63, 0, 1]}, "9223372036854775808"),
        ({"symbol": SYMBOLS, "x": np.array([2**64 - 1, 0, 1], dtype=np.uint64)}, "18446744073709551615"),
        ({"symbol": SYMBOLS, "x": [1, True, 3]}, "booleans"),
        ({"symbol": SYMBOLS, "x": [Decimal("0.1234567890123456789"), 1, 2]}, "0.1234567890123456789"),
        ({"symbol": SYMBOLS, "x": pa.array([Decimal("0.1234567890123456789")] * 3)}, "0.1234567890123456789"),
        ({"symbol": SYMBOLS, "x": pd.Series(pd.to_timedelta([1, 2, 3]))}, "timedelta"),
        ({"symbol": SYMBOLS, "x": [np.timedelta64(1, "ns")] * 3}, "timedelta"),
        ({"symbol": SYMBOLS, "x": pl.Series([2**63, 2, 3], dtype=pl.Int128)}, "9223372036854775808"),
        ({"symbol": SYMBOLS, "x": Row(("A", "C", "D"), np.zeros(3))}, "no symbol 'B'"),
    ],
)
def test_what_is_no_column_is_refused_by_name(columns, told):
    with pytest.raises(BadRows, match=told):
        make_frame(columns)


FAR = dt.datetime(9999, 12, 31)


@pytest.mark.parametrize(
    "column",
    [
        [FAR],
        [FAR.date()],
        [np.datetime64("9999-12-31")],
        np.array(["9999-12-31"], "M8[s]"),
        np.array(["9999"], "M8[Y]"),
        pd.Series([FAR]),
        pd.Series([FAR]).astype("M8[s]").dt.tz_localize("Asia/Tokyo"),
        pd.Series([FAR], dtype="timestamp[us][pyarrow]"),
        pl.Series([FAR]),
        pl.Series([FAR.date()]),
        pa.array([FAR], pa.timestamp("s")),
        pa.array([FAR], pa.timestamp("us")),
        pa.array([FAR.date()], pa.date32()),
        pa.array([FAR.date()], pa.date64()),
    ],
    ids=range(14),
)
def test_a_time_that_nanoseconds_do_not_hold_is_refused_by_its_value(column):
    with pytest.raises(BadRows, match=r"column x.*9999.*nanoseconds"):
        make_frame({"symbol": ["A"], "x": column})


def test_a_strategys_own_array_may_change_afterwards():
    values = np.array([1.0, 2.0, 3.0])
    frame = make_frame({"symbol": SYMBOLS, "x": values})
    values[:] = 0.0
    assert frame.arrow().column("x").to_pylist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    "answer",
    [
        {"symbol": SYMBOLS, "x": [1.0, 2.0, 3.0]},
        pd.DataFrame({"symbol": SYMBOLS, "x": [1.0, 2.0, 3.0]}),
        pl.DataFrame({"symbol": SYMBOLS, "x": [1.0, 2.0, 3.0]}),
        pa.table({"symbol": SYMBOLS, "x": [1.0, 2.0, 3.0]}),
    ],
    ids=lambda a: type(a).__module__,
)
def test_a_table_of_any_library_is_an_answer(answer):
    assert frame_of(answer).arrow().column("x").to_pylist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("answer", [None, 1, "x", [1, 2]], ids=repr)
def test_what_is_no_table_is_refused_with_what_to_write(answer):
    with pytest.raises(StrategyError) as refused:
        frame_of(answer)
    assert "ctx.frame" in refused.value.hint


def test_text_forms_are_exact():
    frame = make_frame(
        {
            "symbol": ['a,"b"', "B"],
            "ts": np.array(["2020-01-01", "2020-01-02T03:04:05.000000006"], dtype="datetime64[ns]"),
            "x": [0.1 + 0.2, None],
            "n": [2**62, -1],
        }
    )
    assert frame.write("csv") == (
        b'symbol,ts,x,n\n"a,""b""",2020-01-01T00:00:00Z,0.30000000000000004,4611686018427387904\n'
        b"B,2020-01-02T03:04:05.000000006Z,,-1\n"
    )
    assert [row["n"] for row in json.loads(frame.write("json"))] == [2**62, -1]
    floats = make_frame({"symbol": ["A", "B", "C"], "x": [np.inf, -np.inf, None]})
    assert [row["x"] for row in json.loads(floats.write("json"))] == ["Infinity", "-Infinity", None]
    assert [float(x) for x in ("Infinity", "-Infinity")] == floats.arrow()["x"].to_pylist()[:2]
    assert pa.ipc.open_file(frame.write("arrow")).read_all() == frame.arrow()
    assert pl.read_parquet(frame.write("parquet"))["n"].to_list() == [2**62, -1]


def test_text_is_of_one_type_with_and_without_gaps_and_everything_may_be_written_to():
    columns = {"symbol": ["A", "B"], "ts": np.array(["2020-01-01"] * 2, "M8[D]"), "x": [0.5, 1.5], "n": [1, 2]}
    whole = make_frame({**columns, "t": ["x", "y"], "b": [True, False]}).pandas()
    gaps = make_frame({**columns, "t": ["x", None], "b": [True, None]}).pandas()
    assert whole.t.dtype == gaps.t.dtype == pd.Series(["x"]).dtype and gaps.t.isna().tolist() == [False, True]
    for frame in (whole, gaps):
        for name in ("x", "n", "t", "b", "ts"):
            values = frame[name].array
            values[0] = values[0]
        frame.x.to_numpy()
        frame.loc[0, "x"] = 9.0
        assert frame.x[0] == 9.0


def test_polars_joins_with_plain_text():
    read = make_frame({"symbol": pa.array(SYMBOLS).dictionary_encode(), "x": [1.0, 2.0, 3.0]})
    names = pl.DataFrame({"symbol": SYMBOLS, "sector": ["s", "t", "u"]})
    assert read.polars().join(names, on="symbol")["sector"].to_list() == ["s", "t", "u"]


def test_a_frame_is_pickled_whole():
    frame = make_frame({"symbol": SYMBOLS, "x": [1.0, None, 3.0], "when": [dt.date(2020, 1, 1)] * 3})
    back = pickle.loads(pickle.dumps(frame))
    assert back.arrow() == frame.arrow() and back.receipt is None
