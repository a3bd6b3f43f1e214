"""`connect()` finds the right grid, and looking for one leaves no files behind."""

import pytest
from conftest import EXAMPLES, WAIT_S, Processes, cli

import trellis
from trellis._grids import local
from trellis.cli.up import Up
from trellis.deploy import load_strategies
from trellis.errors import Conflict, Unavailable, UnknownDataset
from trellis.importing import import_files


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def bring_in(grid, market_files):
    return import_files(grid, "t.amzn", [market_files / "AMZN.csv"], symbol="AMZN", ts_column="Date")["rows"]


@pytest.mark.parametrize("url", [None, "embedded://", "embedded:///{here}/typo/path"])
def test_reading_where_nothing_is_says_so_and_makes_no_folder(here, url):
    with trellis.connect(url and url.format(here=here)) as grid:
        for look in (grid.read, grid.describe, grid.symbols, grid.sessions):
            with pytest.raises(UnknownDataset, match=r"t\.amzn.*nothing has been imported in /") as unknown:
                look("t.amzn")
            assert "trellis import t.amzn" in unknown.value.hint and unknown.value.code == "UNKNOWN_DATASET"
        assert (grid.datasets(), grid.describe(), grid.stats()) == ([], [], [])
        with pytest.raises(UnknownDataset, match=r"equities\.daily"):
            load_strategies(str(EXAMPLES / "momentum.py"))[0].run(session="2016-08-10", grid=grid)
        for change in (grid.drop, grid.alter, lambda name: grid.rename(name, "t.other"), grid.release):
            with pytest.raises(UnknownDataset):
                change("t.amzn")
    assert list(here.iterdir()) == []


def test_the_variable_is_named_where_it_would_have_helped(here, monkeypatch):
    with pytest.raises(UnknownDataset, match="TRELLIS_URL is not set"):
        trellis.connect().read("a.b")
    monkeypatch.setenv("TRELLIS_URL", f"embedded://{here}/x")
    with pytest.raises(UnknownDataset) as unknown:
        trellis.connect().read("a.b")
    assert "TRELLIS_URL" not in str(unknown.value)


def test_the_command_line_makes_no_folder_by_reading(here):
    for command in (["read", "a.b"], ["status"], ["run", str(EXAMPLES / "momentum.py"), "--session", "2016-08-10"]):
        done = cli(*command, cwd=here)
        assert done.returncode in (3, 4) and done.stderr.startswith("trellis: "), done
        assert list(here.iterdir()) == []


def test_writing_makes_the_folder_and_whoever_looked_before_sees_it(market_files):
    early, writer = trellis.connect(), trellis.connect()
    rows = bring_in(writer, market_files)
    with early, writer, trellis.connect() as late:
        assert len(early.read("t.amzn")) == len(late.read("t.amzn")) == rows


@pytest.mark.processes
def test_a_notebook_and_up_share_the_folders_lake_one_after_the_other(here, market_files, monkeypatch):
    # a call to a grid that has ended must not wait for its deadline
    monkeypatch.setattr("trellis._grids.link.DEADLINE_S", 100 * WAIT_S)
    state = here / local.STATE
    with trellis.connect() as notebook:
        rows = bring_in(notebook, market_files)
        with pytest.raises(Conflict, match="embedded grid") as taken:
            Up(state, 1, 1, print).run(lambda _: None)
        assert "g.close()" in taken.value.hint
    up = Processes(state, 1, 2)
    try:
        left = trellis.connect()
        assert left.url == up.info["url"] and len(left.read("t.amzn")) == rows
    finally:
        up.stop()
    with left, pytest.raises(Unavailable, match="connection to the head failed"):
        left.read("t.amzn")

    with pytest.raises(Unavailable, match="is not running") as refused:
        trellis.connect()
    assert "trellis up" in refused.value.hint
    # do as the hint says
    with trellis.connect(f"embedded://{state}") as grid:
        assert f'trellis.connect("{grid.url}")' in refused.value.hint
        assert len(grid.read("t.amzn")) == rows
        assert bring_in(grid, market_files) == rows
    with pytest.raises(Unavailable, match="is not running"):
        trellis.connect()


def test_who_finds_a_grid_that_ends_at_that_moment_runs_it_itself(market_files, monkeypatch):
    with trellis.connect() as writer:
        rows = bring_in(writer, market_files)
    ended = [("grpc://127.0.0.1:9", False)]
    found = local.open_embedded
    monkeypatch.setattr(local, "open_embedded", lambda folder: ended.pop() if ended else found(folder))
    with trellis.connect("embedded://.trellis", timeout=1.0) as grid:
        assert len(grid.read("t.amzn")) == rows
