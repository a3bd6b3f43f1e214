"""Reads from an embedded grid: every form of the call and of the answer, and every wrong call."""

import datetime as dt
import pickle

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from conftest import import_market

import trellis
from trellis.errors import BadRequest, Closed, TooLarge, UnknownDataset, UnknownField, UnknownSymbol

PRICES = "equities.daily"
TEN_YEARS = {"start": "2006-08-10", "end": "2016-08-10"}


def rows(frame):
    return list(zip(*(c.to_pylist() for c in frame.arrow().columns), strict=True))


def test_an_answer_is_the_rows_of_the_file(grid, market):
    px = grid.read(PRICES, ["close", "volume"], symbols=["AMZN"], **TEN_YEARS)
    expected = [
        (float(r["Close"]), int(r["Volume"])) for r in market["AMZN"] if "2006-08-10" <= r["Date"] < "2016-08-10"
    ]
    assert px.columns == ["symbol", "ts", "close", "volume"]
    assert [row[2:] for row in rows(px)] == expected
    assert len(px) == len(expected) and px.symbols == ["AMZN"]


@pytest.mark.parametrize(
    "ends",
    [
        ("2006-08-10", "2016-08-10"),
        (dt.date(2006, 8, 10), dt.datetime(2016, 8, 10)),
        (pd.Timestamp("2006-08-10"), np.datetime64("2016-08-10")),
        (1155168000000000000, 1470787200000000000),
    ],
    ids=lambda e: type(e[0]).__name__,
)
def test_times_may_be_given_in_any_form(grid, ends):
    expected = grid.read(PRICES, ["close"], "AMZN", "2006-08-10", "2016-08-10")
    assert grid.read(PRICES, ["close"], "AMZN", *ends).arrow() == expected.arrow()


def test_one_name_and_a_list_of_one_are_the_same(grid):
    one = grid.read(PRICES, "close", "AMZN", **TEN_YEARS)
    assert one.arrow() == grid.read(PRICES, ["close"], ["AMZN"], **TEN_YEARS).arrow()
    assert one.arrow() == grid.read(PRICES, ("close",), pd.Index(["AMZN"]), **TEN_YEARS).arrow()


def test_only_a_read_as_of_a_fixed_time_is_kept_for_the_next_that_repeats_it(grid, monkeypatch):
    def requests():
        return sum(head["requests"] for head in grid.stats())

    def read(**more):
        return grid.read(PRICES, ["close"], "AMZN", **TEN_YEARS, **more)

    latest = read()
    at = latest.receipt.known_through
    pinned, before = read(as_of=at), requests()
    again = read(as_of=at)
    assert requests() == before and again.arrow() == pinned.arrow() == latest.arrow()
    assert again.receipt == pinned.receipt
    read()
    assert requests() == before + 1, "the latest may have changed"
    # rows with this knowledge time may still be added, so the answer is not final
    later = "2100-01-01"
    read(as_of=later), read(as_of=later)
    assert requests() == before + 3

    monkeypatch.setattr("trellis._grids.pinned.PINNED_BYTES_MAX", pinned.nbytes)
    read(as_of=at, known_at=True)
    assert requests() == before + 4
    read(as_of=at)
    assert requests() == before + 4, "an answer that is too large to keep pushes nothing out"


def test_all_symbols_are_all_symbols(grid, market):
    for symbols in ("*", None, ["*"]):
        px = grid.read(PRICES, ["close"], symbols, start="2016-08-10", end="2016-08-11")
        assert px.symbols == sorted(s for s, rs in market.items() if any(r["Date"] == "2016-08-10" for r in rs))
    assert grid.symbols(PRICES) == sorted(market)


def test_rows_are_sorted_by_symbol_and_time_whatever_was_asked(grid):
    px = grid.read(PRICES, ["close"], symbols=["XOM", "AAPL", "JPM", "AAPL"], **TEN_YEARS).pandas()
    assert px.equals(px.sort_values(["symbol", "ts"]))
    assert list(px.symbol.unique()) == ["AAPL", "JPM", "XOM"]


def test_no_fields_are_all_fields_and_known_at_is_extra(grid):
    px = grid.read(PRICES, symbols="AMZN", start="2016-08-01", end="2016-08-03", known_at=True)
    assert px.columns == ["symbol", "ts", "open", "high", "low", "close", "volume", "split", "known_at"]
    assert grid.read(PRICES, ["volume", "close"], "AMZN", **TEN_YEARS).columns[2:] == ["volume", "close"]


def test_ranges_may_be_open_or_empty(grid, market):
    assert len(grid.read(PRICES, ["close"], "TSLA")) == len(market["TSLA"])
    assert len(grid.read(PRICES, ["close"], "TSLA", end="2016-08-10")) == sum(
        r["Date"] < "2016-08-10" for r in market["TSLA"]
    )
    for start, end in [("2016-08-10", "2016-08-10"), ("2090-01-01", None), (None, "1950-01-01")]:
        nothing = grid.read(PRICES, ["close"], "TSLA", start, end)
        assert len(nothing) == 0 and nothing.columns == ["symbol", "ts", "close"]
        assert len(nothing.pandas()) == len(nothing.polars()) == len(nothing.arrow()) == 0
        assert nothing.wide("close").shape == (0, 1)
        assert "0 rows" in repr(nothing)


def test_the_libraries_see_the_same_rows(grid):
    px = grid.read(PRICES, ["close", "volume"], symbols=["AMZN", "KO"], **TEN_YEARS)
    arrow, pandas, polars = px.arrow(), px.pandas(), px.polars()
    assert isinstance(arrow, pa.Table) and isinstance(polars, pl.DataFrame) and isinstance(pandas, pd.DataFrame)
    assert pandas.close.tolist() == polars["close"].to_list() == arrow["close"].to_pylist()
    assert pandas.symbol.tolist() == polars["symbol"].to_list() == arrow["symbol"].to_pylist()
    assert str(pandas.ts.dtype) == "datetime64[ns, UTC]" and polars["ts"].dtype == pl.Datetime("ns", "UTC")
    assert (pandas.ts.astype("int64").to_numpy() == polars["ts"].to_physical().to_numpy()).all()
    assert pandas.volume.dtype == np.int64
    # only through the Arrow interface
    assert pl.DataFrame(px).equals(polars) and pa.table(px) == arrow
    (total,) = duckdb.sql("select count(*), sum(volume) from arrow").fetchall()
    assert total == (len(px), pandas.volume.sum())


def test_missing_values_are_what_each_library_calls_missing(grid):
    px = grid.read(PRICES, ["close", "split"], symbols=["LEH", "TSLA"], start="2011-09-14", end="2011-09-17")
    wide = px.wide("close")
    assert wide.symbols == ("LEH", "TSLA") and np.isnan(wide["LEH"][-1]) and not np.isnan(wide["TSLA"]).any()


def test_the_receipt_says_what_was_read_and_what_it_cost(empty, market_files):
    # a new grid: earlier reads would cost nothing
    import_market(empty, market_files)
    grid = empty
    first = grid.read(PRICES, ["high"], "DIS", **TEN_YEARS).receipt
    again = grid.read(PRICES, ["high"], "DIS", **TEN_YEARS).receipt
    assert first.dataset == PRICES and first.rows == again.rows > 2000 and first.rows_fetched >= first.rows
    assert first.chunks_fetched > 0 and again.chunks_fetched == 0 and again.chunks_hit == first.chunks_fetched
    assert again.rows_fetched == 0 and first.shards == ("shard-0",) and first.heads == ("head-0",)
    assert not first.stale and first.as_of is None
    pinned = grid.read(PRICES, ["high"], "DIS", **TEN_YEARS, as_of=first.known_through)
    assert pinned.receipt.as_of == first.known_through
    assert "2,5" in str(first) and "ms" in str(first)


def test_a_frame_shows_its_rows_and_its_receipt(grid):
    px = grid.read(PRICES, ["close"], "AMZN", **TEN_YEARS)
    text, page = repr(px), px._repr_html_()
    assert text.splitlines()[0].split() == ["symbol", "ts", "close"]
    assert "2006-08-10" in text and "2016-08-09" in text and "…" in text and str(px.receipt) in text
    assert page.count("<tr>") == 12 and "rows" in page
    assert len(text.splitlines()) == 13


@pytest.mark.parametrize(
    ("question", "error", "told"),
    [
        (dict(dataset="equities.dayly"), UnknownDataset, "equities.dayly"),
        (dict(dataset="no such name"), BadRequest, "no such name"),
        (dict(dataset=7), BadRequest, "dataset"),
        (dict(fields=["clsoe"]), UnknownField, "clsoe"),
        (dict(fields=["close", "close"]), BadRequest, "close"),
        (dict(fields=[3]), BadRequest, "fields"),
        (dict(symbols=["AMZN", "NOSUCH"]), UnknownSymbol, "NOSUCH"),
        (dict(symbols=[]), BadRequest, "empty"),
        (dict(symbols={}), BadRequest, "symbols"),
        (dict(symbols=[1]), BadRequest, "symbols"),
        (dict(symbols=["*", "AMZN"]), BadRequest, r"\*"),
        (dict(symbols=[""]), BadRequest, "symbol"),
        (dict(start="2016-08-10", end="2006-08-10"), BadRequest, "2006-08-10"),
        (dict(start="last year"), BadRequest, "start"),
        (dict(end=1.5), BadRequest, "end"),
        (dict(as_of="never"), BadRequest, "as_of"),
        (dict(rows_max=10), TooLarge, "10"),
    ],
    ids=str,
)
def test_a_wrong_question_has_one_clear_answer_and_the_grid_goes_on(grid, question, error, told):
    whole = dict(dataset=PRICES, fields=["close"], symbols=["AMZN"]) | question
    with pytest.raises(error, match=told) as refused:
        grid.read(**whole)
    assert isinstance(refused.value, trellis.TrellisError) and not refused.value.retryable
    assert len(grid.read(PRICES, ["close"], "AMZN", **TEN_YEARS)) > 2500


def test_fields_and_symbols_may_be_arrays(grid):
    expected = grid.read(PRICES, ["close", "volume"], ["AMZN", "KO"], **TEN_YEARS).arrow()
    for make in (np.array, pd.Index, pd.Series, tuple):
        assert grid.read(PRICES, make(["close", "volume"]), make(["AMZN", "KO"]), **TEN_YEARS).arrow() == expected


@pytest.mark.parametrize("far", ["9999-12-31", dt.date(9999, 12, 31), np.datetime64("9999-12-31"), 2**63], ids=repr)
def test_a_bound_beyond_all_time_is_all_there_is(grid, far):
    all_of_it = grid.read(PRICES, ["close"], "AMZN")
    got = grid.read(PRICES, ["close"], "AMZN", start=dt.date(1, 1, 1), end=far, as_of=far)
    assert got.arrow() == all_of_it.arrow() and got.receipt.as_of is None and "latest" in str(got.receipt)
    assert len(grid.read(PRICES, ["close"], "AMZN", start=far)) == 0
    assert len(grid.read(PRICES, ["close"], "AMZN", as_of=dt.date(1, 1, 1))) == 0


@pytest.mark.parametrize("bound", ["start", "end", "as_of"])
@pytest.mark.parametrize("number", [20160810, 2018, 1470787200])
def test_an_integer_that_looks_like_a_date_is_refused(grid, bound, number):
    with pytest.raises(BadRequest, match=f"{bound}.*{number}"):
        grid.read(PRICES, ["close"], "AMZN", **{bound: number})


def test_what_can_be_pickled_is_and_a_grid_says_why_not(grid):
    px = grid.read(PRICES, ["close"], ["AMZN", "KO"], **TEN_YEARS)
    back = pickle.loads(pickle.dumps(px))
    assert back.arrow() == px.arrow() and back.receipt == px.receipt
    assert back.wide("close").symbols == px.wide("close").symbols
    with pytest.raises(TypeError, match=r"cannot be pickled: call trellis\.connect\("):
        pickle.dumps(grid)


def test_nothing_was_known_before_it_was_brought_in(grid):
    assert len(grid.read(PRICES, ["close"], "AMZN", as_of="2000-01-01")) == 0


def test_datasets_describe_themselves(grid, market):
    described = grid.describe(PRICES)
    assert PRICES in grid.datasets()
    assert described["rows"] == sum(map(len, market.values())) and described["symbols"] == len(market)
    assert (described["first"], described["last"]) == ("2006-02-08", "2018-02-07")
    assert {"name": "close", "type": "float64", "nullable": True} in described["fields"]
    assert "equities.daily" in repr(described) and described in grid.describe()
    with pytest.raises(UnknownDataset, match=r"equities\.nothing"):
        grid.describe("equities.nothing")


def test_sessions_are_the_days_with_rows(grid, market):
    days = sorted({r["Date"] for rs in market.values() for r in rs})
    assert grid.sessions(PRICES) == days
    assert grid.sessions(PRICES, "2016-08-08", "2016-08-11") == ["2016-08-08", "2016-08-09", "2016-08-10"]


def test_heads_count_what_they_do(grid):
    before = grid.stats()[0]
    grid.read(PRICES, ["low"], "XOM", **TEN_YEARS)
    after = grid.stats()[0]
    assert after["requests"] == before["requests"] + 1 and after["rows_asked"] > before["rows_asked"]
    assert {d["dataset"] for d in after["datasets"]} >= {PRICES}


def test_a_closed_grid_says_that_it_is_closed(tmp_path):
    with trellis.connect(f"embedded://{tmp_path}") as grid:
        assert grid.datasets() == []
        other = trellis.connect(f"embedded://{tmp_path}")
    with pytest.raises(Closed):
        grid.datasets()
    assert other.datasets() == [] and "(closed)" in repr(grid) and "(closed)" not in repr(other)
    other.close()
    other.close()


def test_memory_that_columns_share_is_counted_once(grid):
    px = grid.read(PRICES)
    keys, width = 4, 8  # bytes of a symbol; of a time, a float or an integer
    values = len(px) * (keys + width * (len(px.columns) - 1))
    assert len(px.arrow()["close"].chunks) > 1, "one message would prove nothing"
    assert values <= px.nbytes < 1.1 * values
