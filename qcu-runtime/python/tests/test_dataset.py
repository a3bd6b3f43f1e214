"""A dataset is changed by imports and by hand, and readers and other tools see the change."""

import json
import subprocess
import threading

import deltalake
import duckdb
import polars as pl
import pytest
from conftest import TRELLIS

import trellis
from trellis.errors import BadRequest, Conflict, Forbidden, TrellisError, UnknownDataset, UnknownField
from trellis.importing import import_files

DAILY = "prices.daily"


@pytest.fixture
def lake(empty, tmp_path):
    """The dataset's folder in the lake."""
    return str(tmp_path / "grid" / "lake" / DAILY)


def bring(grid, tmp_path, name, text, **options):
    file = tmp_path / name
    file.write_text(text)
    return import_files(grid, DAILY, [file], **options)


def opened_by_others(lake):
    """The rows as three independent libraries read them, which must agree: (symbol, session, other columns)."""
    frame = pl.read_delta(lake).sort("symbol", "ts_ns").drop("ts", "known_at", "known_at_ns", "retracted", strict=False)
    table = deltalake.DeltaTable(lake)
    assert pl.from_arrow(table.to_pyarrow_table()).sort("symbol", "ts_ns").select(frame.columns).equals(frame)
    files = table.file_uris()
    columns = ", ".join(frame.columns)
    if files:
        sql = f"select {columns} from read_parquet({files!r}, union_by_name = true) order by symbol, ts_ns"
        assert duckdb.sql(sql).fetchall() == frame.rows()
    return frame


def test_a_field_is_widened_added_renamed_and_dropped_for_us_and_for_others(empty, tmp_path, lake):
    bring(empty, tmp_path, "a.csv", "symbol,ts,n\nA,2020-01-02,10\nB,2020-01-02,11\n", types={"n": "int64"})
    before = empty.describe(DAILY)

    done = empty.alter(DAILY, widen={"n": "float64"})
    assert (done["version"], done["files_rewritten"]) == (before["version"] + 1, 1)
    assert empty.read(DAILY).polars()["n"].to_list() == [10.0, 11.0]
    assert opened_by_others(lake)["n"].to_list() == [10.0, 11.0]
    assert pl.read_delta(lake).schema["n"] == pl.Float64

    done = empty.alter(DAILY, add={"note": "string", "at": "timestamp"})
    assert done["files_rewritten"] == 0
    assert empty.read(DAILY).polars().select("n", "note", "at").rows() == [(10.0, None, None), (11.0, None, None)]
    assert pl.read_delta(lake)["note"].to_list() == [None, None]

    as_of = empty.describe(DAILY)["known_through"]
    kept = empty.read(DAILY, "n", as_of=as_of)
    empty.alter(DAILY, rename={"n": "price"}, drop=["at"])
    with pytest.raises(UnknownField, match="price"):
        empty.read(DAILY, "n", as_of=as_of)
    assert empty.read(DAILY, "price", as_of=as_of).polars()["price"].equals(kept.polars()["n"].rename("price"))
    assert opened_by_others(lake).columns == ["symbol", "ts_ns", "price", "note"]
    history = deltalake.DeltaTable(lake).history()
    assert [entry["operation"] for entry in history][:3] == ["ALTER"] * 3

    # two fields swap their names, and the values go with the names
    empty.alter(DAILY, add={"other": "float64"})
    empty.alter(DAILY, rename={"price": "other", "other": "price"})
    assert empty.read(DAILY).polars().select("price", "other").rows() == [(None, 10.0), (None, 11.0)]


def test_settings_are_set_and_taken_back(empty, tmp_path):
    bring(empty, tmp_path, "a.csv", "symbol,ts,n\nA,2020-01-02,10\n")
    empty.alter(DAILY, calendar="XNYS", date_zone="America/New_York")
    assert (empty.describe(DAILY)["calendar"], empty.describe(DAILY)["date_zone"]) == ("XNYS", "America/New_York")
    assert empty.read(DAILY).polars().height == 1
    empty.alter(DAILY, date_zone="")
    assert (empty.describe(DAILY)["calendar"], empty.describe(DAILY)["date_zone"]) == ("XNYS", None)
    for wrong in ({"calendar": "XNYX"}, {"date_zone": "America/New_Yrok"}):
        with pytest.raises(BadRequest):
            empty.alter(DAILY, **wrong)


def test_a_drop_frees_the_name_and_keeps_what_there_was_in_the_lake(empty, tmp_path, lake):
    text = "symbol,ts,n\nA,2020-01-02,10\n"
    first = bring(empty, tmp_path, "a.csv", text)
    assert empty.read(DAILY).polars().height == 1
    done = empty.drop(DAILY)
    for ask in (empty.read, empty.describe, empty.symbols, empty.drop):
        with pytest.raises(UnknownDataset):
            ask(DAILY)
    assert DAILY not in empty.datasets()
    assert pl.read_delta(lake).height == 0
    assert pl.read_delta(lake, version=done["version"] - 1)["n"].to_list() == [10]
    # importing the same file again is a new import, not a duplicate
    again = bring(empty, tmp_path, "a.csv", text)
    assert not again["duplicate"] and again["version"] > first["version"]
    assert empty.read(DAILY).polars()["n"].to_list() == [10]
    assert pl.read_delta(lake)["n"].to_list() == [10]


def test_a_renamed_dataset_has_its_rows_and_their_knowledge_times(empty, tmp_path, lake):
    text = "symbol,ts,n\nA,2020-01-02,10\n"
    bring(empty, tmp_path, "a.csv", text)
    before = empty.read(DAILY, known_at=True).polars()
    empty.rename(DAILY, "prices.eod")
    assert empty.read("prices.eod", known_at=True).polars().equals(before)
    assert "prices.eod" in empty.datasets() and DAILY not in empty.datasets()
    with pytest.raises(UnknownDataset):
        empty.read(DAILY)
    assert pl.read_delta(lake).height == 0
    assert pl.read_delta(lake.replace(DAILY, "prices.eod"))["n"].to_list() == [10]
    # the old name is free; a new dataset under it cannot be renamed to the taken name
    bring(empty, tmp_path, "b.csv", text)
    with pytest.raises(Conflict, match="already"):
        empty.rename(DAILY, "prices.eod")
    assert empty.read(DAILY).polars().height == 1
    bring(empty, tmp_path, "c.csv", "symbol,ts,n\nA,2020-01-03,11\n")
    assert empty.read(DAILY).polars().height == 2


def test_a_units_output_is_changed_by_what_the_unit_declares(empty):
    def strategy(values, **fields):
        @trellis.strategy("widens", inputs={}, output=trellis.output("signals.widens", **fields))
        def compute(ctx):
            return ctx.frame(symbol=["A"], **values)

        return compute

    strategy({"score": [1]}, score="int64").run(session="2020-01-02", grid=empty, publish=True)
    with pytest.raises(Forbidden, match="widens"):
        empty.alter("signals.widens", widen={"score": "float64"})
    with pytest.raises(Forbidden, match="widens"):
        empty.drop("signals.widens")
    wider = strategy({"score": [0.5], "rank": [7]}, score="float64", rank="int64")
    wider.run(session="2020-01-03", grid=empty, publish=True)
    assert empty.read("signals.widens").polars().select("score", "rank").rows() == [(1.0, None), (0.5, 7)]
    with pytest.raises(TrellisError, match="rank"):
        strategy({"score": [0.5]}, score="float64").run(session="2020-01-06", grid=empty, publish=True)


def test_the_heads_of_a_dataset_are_a_setting_also_of_a_units_output(empty):
    @trellis.strategy("spread_out", inputs={}, output=trellis.output("tests.spread_out", x="float64"))
    def spread_out(ctx):
        return ctx.frame(symbol=["A"], x=[1.0])

    first = spread_out.run(session="2016-08-10", grid=empty, publish=True)
    assert (empty.describe("tests.spread_out")["copies"], empty.describe("tests.spread_out")["spread"]) == (1, 1)
    assert empty.alter("tests.spread_out", copies=3)["files_rewritten"] == 0
    assert empty.alter("tests.spread_out", spread=2)["version"] == 2 + first.published["version"]
    assert (empty.describe("tests.spread_out")["copies"], empty.describe("tests.spread_out")["spread"]) == (3, 2)
    # the rows are as they were, also for the unit
    assert empty.read("tests.spread_out").pandas().x.tolist() == [1.0]
    again = spread_out.run(session="2016-08-10", grid=empty, publish=True)
    assert again.published["version"] == first.published["version"]
    empty.alter("tests.spread_out", copies=0, spread=0)
    assert (empty.describe("tests.spread_out")["copies"], empty.describe("tests.spread_out")["spread"]) == (1, 1)
    for wrong in ({"copies": 65}, {"spread": 257}, {"copies": -1}, {"copies": 1.5}, {"spread": "2"}):
        with pytest.raises(BadRequest, match=next(iter(wrong))):
            empty.alter("tests.spread_out", **wrong)
    with pytest.raises(Forbidden, match="spread_out"):
        empty.alter("tests.spread_out", copies=2, calendar="XNYS")


def test_readers_see_the_old_fields_or_the_new_ones_and_never_a_mixture(empty, tmp_path):
    symbols = [f"S{i:03}" for i in range(40)]
    text = "symbol,ts,a,b\n" + "".join(f"{s},2020-01-{day:02},1,2\n" for s in symbols for day in range(1, 29))
    bring(empty, tmp_path, "a.csv", text, types={"a": "int64", "b": "int64"})
    over, wrong, reads = threading.Event(), [], [0]

    def read():
        while not over.is_set():
            frame = empty.read(DAILY, "a", as_of=None).polars()
            values = set(frame["a"].to_list())
            reads[0] += 1
            if frame.height != len(symbols) * 28 or values not in ({1}, {2}):
                wrong.append((frame.height, values))

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for _ in range(6):
        empty.alter(DAILY, rename={"a": "b", "b": "a"})
    empty.alter(DAILY, widen={"a": "float64"})
    over.set()
    for reader in readers:
        reader.join()
    assert not wrong and reads[0] > 10


def command(folder, *args, code=0, stdin=""):
    done = subprocess.run(
        [*TRELLIS, "dataset", *args],
        cwd=folder, capture_output=True, text=True, timeout=120, input=stdin, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def test_the_commands_say_what_they_did(tmp_path):
    (tmp_path / "a.csv").write_text("symbol,ts,n\nA,2020-01-02,10\n")
    with trellis.connect(f"embedded://{tmp_path / '.trellis'}") as grid:
        import_files(grid, DAILY, [tmp_path / "a.csv"], types={"n": "int64"})
        told = command(tmp_path, "alter", DAILY, "--widen", "n=float64", "--add", "note=string", "--calendar", "XNYS")
        assert told == f"{DAILY}: n float64, note string, version 1\n"
        assert "calendar: XNYS" in command(tmp_path, "show", DAILY)
        assert json.loads(command(tmp_path, "show", DAILY, "--json"))["version"] == 1
        assert DAILY in command(tmp_path, "list")
        done = json.loads(
            command(tmp_path, "alter", DAILY, "--rename-field", "n=price", "--drop-field", "note", "--json")
        )
        assert done["version"] == 2 and [f["name"] for f in done["fields"]] == ["price"]
        assert "no change was given" in command(tmp_path, "alter", DAILY, code=3)
        assert "write it as name=value" in command(tmp_path, "alter", DAILY, "--add", "x", code=3)
        assert "did you mean price?" in command(tmp_path, "alter", DAILY, "--drop-field", "prize", code=3)
        assert "add --yes" in command(tmp_path, "drop", DAILY, code=3)
        assert "version 2 of its table" in command(tmp_path, "drop", DAILY, "--yes")
        assert "there is no dataset" in command(tmp_path, "show", DAILY, code=3)
