"""Other tools can read the tables in the lake: these tests read them with independent libraries."""

import itertools
import json
import random
import shutil

import deltalake
import duckdb
import polars as pl
import pytest

import trellis
from trellis import cli
from trellis.importing import import_files


@pytest.fixture(scope="module")
def table(grid, folder):
    @trellis.strategy(
        "open_table",
        inputs={"px": trellis.series("equities.daily", ["close"], symbols=["AMZN", "KO"], lookback="1 session")},
        output=trellis.output("signals.open", score="float64", rank="int64"),
    )
    def compute(ctx, px):
        score = px.wide("close")[-1]
        return ctx.frame(symbol=score.symbols, score=score, rank=score.rank().values.astype("int64"))

    for session in ("2016-08-09", "2016-08-10"):
        compute.run(session=session, grid=grid, publish=True)
    return str(folder / "lake" / "signals.open")


def known(grid):
    return grid.read("signals.open").polars().select(pl.col("symbol").cast(pl.String), "score", "rank").rows()


def test_the_deltalake_package_opens_it(grid, table):
    opened = deltalake.DeltaTable(table)
    rows = pl.from_arrow(opened.to_pyarrow_table()).sort("symbol", "ts").select("symbol", "score", "rank").rows()
    assert rows == known(grid)
    assert {"symbol", "ts", "ts_ns", "known_at", "known_at_ns", "retracted"} <= {f.name for f in opened.schema().fields}


def test_polars_opens_it(grid, table):
    frame = pl.read_delta(table).sort("symbol", "ts")
    assert frame.select("symbol", "score", "rank").rows() == known(grid)
    assert (frame["ts_ns"] == frame["ts"].dt.epoch("ns")).all()


def test_duckdb_opens_its_files(grid, table):
    files = deltalake.DeltaTable(table).file_uris()
    rows = duckdb.sql(f"select symbol, score, rank from read_parquet({files!r}) order by symbol, ts").fetchall()
    assert rows == known(grid)


def test_old_versions_stay_readable(table):
    opened = deltalake.DeltaTable(table)
    newest = opened.version()
    opened.load_as_version(newest - 1)
    assert opened.to_pyarrow_table().num_rows == 2


@pytest.fixture
def republished(empty, tmp_path):
    """A session published many times, each time with other symbols, and the published sets."""

    @trellis.strategy(
        "republished",
        inputs={"px": trellis.series("r.px", ["close"], lookback="1 session")},
        output=trellis.output("r.out", score="float64!"),
    )
    def compute(ctx, px):
        rows = px.pandas()
        rows = rows[rows["close"] > 0]
        return ctx.frame(symbol=[str(symbol) for symbol in rows["symbol"]], score=rows["close"].to_numpy())

    rng, published = random.Random(5), []
    for number in range(12):
        # a symbol with a price of 0 is not in the output
        rows = {symbol: rng.choice([0, 0, number + 1]) for symbol in "ABCDEF"}
        path = tmp_path / f"{number}.csv"
        path.write_text(
            "symbol,date,close\n" + "".join(f"{symbol},2025-01-10,{close}.0\n" for symbol, close in rows.items())
        )
        # importing the same prices again is another import
        import_files(empty, "r.px", [path], run_id=f"prices {number}")
        compute.run(session="2025-01-10", grid=empty, publish=True)
        published.append(sorted((symbol, float(close)) for symbol, close in rows.items() if close > 0))
    return empty, str(tmp_path / "grid" / "lake" / "r.out"), published


def scores(frame):
    return sorted(frame.polars().select(pl.col("symbol").cast(pl.String), "score").rows())


def test_a_session_published_again_is_the_new_truth_whole_and_the_past_stays(republished):
    grid, table, published = republished
    assert scores(grid.read("r.out")) == published[-1]
    times = sorted(pl.read_delta(table)["known_at_ns"].unique().to_list())
    # an empty set that retracts nothing leaves no row with its knowledge time
    told = [rows for number, rows in enumerate(published) if rows or (number and published[number - 1])]
    assert [scores(grid.read("r.out", as_of=known_at)) for known_at in times] == told
    assert any(set(s for s, _ in before) - set(s for s, _ in after) for before, after in itertools.pairwise(told))


def test_other_readers_see_what_the_grid_reads_as_of_any_time_by_the_documented_rule(republished):
    grid, table, _ = republished
    frame = pl.read_delta(table)
    files = deltalake.DeltaTable(table).file_uris()
    assert frame["retracted"].any() and not frame["retracted"].all()
    assert frame.filter("retracted")["score"].null_count() == frame["retracted"].sum()
    times = frame["known_at_ns"].unique().to_list()
    rng = random.Random(9)
    for _ in range(25):
        as_of = rng.choice(times) + rng.choice([-1, 0, 1, 10**6])
        expected = scores(grid.read("r.out", as_of=as_of))
        newest = frame.filter(pl.col("known_at_ns") <= as_of).sort("known_at_ns").group_by("symbol", "ts_ns").last()
        holds = newest.filter(~pl.col("retracted").fill_null(False))
        assert sorted(holds.select(pl.col("symbol").cast(pl.String), "score").rows()) == expected
        found = duckdb.sql(
            f"""select symbol, score from read_parquet({files!r}, union_by_name=true) where known_at_ns <= {as_of}
            qualify row_number() over (partition by symbol, ts_ns order by known_at_ns desc) = 1
                and retracted is not true"""
        )
        assert sorted(found.fetchall()) == expected
        table_rows = deltalake.DeltaTable(table).to_pyarrow_table().to_pandas()
        table_rows = table_rows[table_rows["known_at_ns"] <= as_of].sort_values("known_at_ns")
        table_rows = table_rows.groupby(["symbol", "ts_ns"]).tail(1)
        table_rows = table_rows[~table_rows["retracted"].fillna(False).astype(bool)]
        assert sorted(zip(table_rows["symbol"], table_rows["score"], strict=True)) == expected


def test_the_doctor_names_a_damaged_file_and_those_without_checksums(grid, table, folder, tmp_path, capsys):
    lake = tmp_path / "lake"
    shutil.copytree(folder / "lake", lake)
    assert cli.main(["doctor", "--lake", str(lake)]) == 0
    assert "every byte that has a checksum is as it was written" in capsys.readouterr().out
    other = pl.DataFrame({"symbol": ["A"], "ts_ns": [1], "known_at_ns": [1], "close": [1.0]})
    other.write_delta(str(lake / "others.daily"))
    assert cli.main(["doctor", "--lake", str(lake), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["without_checksums"] == 2
    damaged = max((lake / "equities.daily").glob("*.parquet"), key=lambda path: path.stat().st_size)
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 4
    damaged.write_bytes(data)
    assert cli.main(["doctor", "--lake", str(lake)]) == 1
    told = capsys.readouterr()
    assert f"equities.daily: DATA_CORRUPT: {damaged}" in told.out
    assert "1 files are damaged or missing" in told.err
    assert cli.main(["doctor", "--lake", str(tmp_path / "none")]) == 3
