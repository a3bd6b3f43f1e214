"""Published tables are open to others: the lake folder, read by libraries that have nothing of ours."""

import deltalake
import duckdb
import polars as pl
import pytest

import trellis


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
    assert {"symbol", "ts", "ts_ns", "known_at", "known_at_ns"} <= {f.name for f in opened.schema().fields}


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
