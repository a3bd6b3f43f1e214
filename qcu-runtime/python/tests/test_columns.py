"""What a strategy may answer with: columns of every library, and what is refused."""

import datetime as dt
import json

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
        ({"symbol": SYMBOLS, "x": [1.0, "two", 3.0]}, "x"),
        ({"symbol": SYMBOLS, "x": [{}, {}, {}]}, "dict"),
        ({"symbol": SYMBOLS, "x": {"A": 1.0}}, "dict"),
        ({"symbol": SYMBOLS, "x": np.array([1j, 2j, 3j])}, "complex"),
        ({"symbol": SYMBOLS, "x": Row(("A", "C", "B"), np.zeros(3))}, "another matrix"),
    ],
)
def test_what_is_no_column_is_refused_by_name(columns, told):
    with pytest.raises(BadRows, match=told):
        make_frame(columns)


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
    assert pa.ipc.open_file(frame.write("arrow")).read_all() == frame.arrow()
    assert pl.read_parquet(frame.write("parquet"))["n"].to_list() == [2**62, -1]
