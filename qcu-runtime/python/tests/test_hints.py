"""Doing what a hint says helps: each test makes an error and follows its hint."""

import copy
import os
import pathlib
import re
import subprocess
import sys

import pytest
from conftest import cli

import trellis
from trellis._code import frames_of
from trellis._values import format_table
from trellis.errors import BadRequest, StrategyError, TrellisError, Unavailable
from trellis.importing import import_files


def strategy(body=lambda ctx, px: ctx.frame(symbol=px.symbols, score=1.0), **changed):
    body.__name__ = "body"
    declared = {
        "inputs": {"px": trellis.series("equities.daily", "close", symbols=["KO"], lookback="2 sessions")},
        "output": trellis.output("tests.hints", score="float64"),
    }
    return trellis.strategy("hints", **{**declared, **changed})(body)


def series(**changed):
    return trellis.series("equities.daily", "close", **changed)


READ = "g.read('equities.daily', 'close', 'KO', start='2016-08-08', end='2016-08-11')"


@pytest.mark.parametrize(
    ("mistake", "hint", "typed"),
    [
        ("g.read('equities.daily', 'Close')", "close", "g.read('equities.daily', 'close')"),
        ("g.read('equities.daily', 'clsoe')", "did you mean close?", "g.read('equities.daily', 'close')"),
        ("g.read('equities.daily', 'known_at')", "known_at=True", "g.read('equities.daily', 'close', known_at=True)"),
        ("g.read('equities.daily', 'symbol')", "leave it out", "g.read('equities.daily')"),
        ("g.read('Equities Daily')", "joined by dots", "g.read('equities.daily')"),
        ("g.read('Equities.Daily')", "equities.daily", "g.read('equities.daily')"),
        ("g.read('equities.dialy')", "did you mean equities.daily?", "g.read('equities.daily')"),
        ("g.read('equities.daily', symbols='ko')", "did you mean KO?", "g.read('equities.daily', symbols='KO')"),
        ("g.read('equities.daily', symbols='KO,AMZN')", '["KO", "AMZN"]', "g.read('equities.daily', symbols=%s)"),
        ("g.read('equities.daily', symbols=['*', 'KO'])", '["*"]', "g.read('equities.daily', symbols=%s)"),
        ("g.read('equities.daily', symbols=[])", 'symbols="*"', "g.read('equities.daily', %s)"),
        ("g.read('equities.daily', start='x')", "2016-08-10T13:30:00Z", "g.read('equities.daily', start='%s')"),
        (f"{READ}.write('xls')", "arrow", f"{READ}.write('%s')"),
        (f"{READ}.wide('clsoe')", "close", f"{READ}.wide('%s')"),
        ("strategy(lambda ctx: None)", "it takes (ctx, px)", "strategy(lambda ctx, px: None)"),
        ("strategy().run(session='2016-08-13', grid=g)", "2016-08-12", "strategy().run(session='%s', grid=g)"),
        ("strategy().run(session=None, grid=g)", 'session="2016-08-10"', "strategy().run(%s, grid=g)"),
        (
            "strategy().run(session='2016-08-10', grid=g, take_over=True)",
            "publish=True",
            "strategy().run(session='2016-08-10', grid=g, take_over=True, %s)",
        ),
        ("series(lookback='sessions')", 'lookback="260 sessions"', "series(%s)"),
        ("series()", 'lookback="260 sessions"', "series(%s)"),
        ("strategy(timeout='10')", "20m", "strategy(timeout='%s')"),
        ("trellis.output('tests.x')", 'output("signals.x", score="float64")', "trellis.%s"),
        ("strategy(output=trellis.output('tests.x', a='double'))", "float64", "strategy()"),
        ("strategy(schedule=trellis.at_close('NYSE'))", "XNYS", "strategy(schedule=trellis.at_close('%s'))"),
        ("trellis.after()", "schedule=trellis.after(mom)", "strategy(%s)"),
        ("g.read('equities.daily', start='2016-08')", "2016-08-01", "g.read('equities.daily', start='%s')"),
        ("trellis.connect(5)", "embedded:///folder", "trellis.connect('%s').close()"),
    ],
)
def test_a_hint_in_python_helps_when_it_is_typed(grid, mistake, hint, typed):
    names = {"g": grid, "trellis": trellis, "strategy": strategy, "series": series, "mom": strategy()}
    with pytest.raises(TrellisError) as told:
        eval(mistake, names)
    assert hint in told.value.hint, told.value
    eval(typed.replace("%s", hint), names)


@pytest.mark.parametrize(
    ("declared", "told"), [({"memory": "lots"}, "`lots` is not a size such as 4G"), ({"retries": -1}, "-1")]
)
def test_a_declaration_that_makes_no_sense_is_not_told_to_be_deployed_again(declared, told):
    with pytest.raises(BadRequest, match=re.escape(told)) as wrong:
        strategy(**declared)
    assert "deploy" not in str(wrong.value)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("localhost:7400", "grpc://localhost:7400"),
        ("http://localhost:7400", "use grpc://HOST:PORT"),
        ("nonsense", "embedded:///FOLDER"),
        ("grpc://localhost:99999", "port from 1 to 65535"),
        ("static://", "host:port"),
    ],
)
def test_what_is_no_address_of_a_grid_is_told_at_once_with_the_forms(url, told):
    with pytest.raises(BadRequest) as refused:
        trellis.connect(url)
    assert told in str(refused.value) and url in str(refused.value)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("grpc://127.0.0.1:9", "Connection refused"),
        ("grpc://nosuch.invalid:7400", "lookup address|in time"),
        ("dns://nosuch.invalid", "discovery finds no head"),
    ],
)
def test_a_grid_that_is_away_is_told_with_its_address_and_the_reason(url, told):
    with pytest.raises(Unavailable, match=told) as away:
        trellis.connect(url, timeout=1)
    assert url in away.value.message and "trellis up" in away.value.hint


BROKEN = """
import numpy as np
import trellis

def helper(px):
    return {expression}

@trellis.strategy("broken", output=trellis.output("tests.broken", x="float64"),
    inputs=dict(px=trellis.series("equities.daily", "close", symbols=["KO"], lookback="2 sessions")))
def broken(ctx, px):
    return helper(px)
"""


def written(tmp_path, text, name="broken.py"):
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)


@pytest.mark.parametrize(
    ("expression", "told"),
    [
        ("px.wide('clsoe')", "there is no field clsoe"),
        ("np.linalg.inv(np.zeros((2, 3)))", "LinAlgError"),
        ("nowhere", "NameError: name 'nowhere' is not defined"),
    ],
)
def test_a_strategys_error_is_one_line_and_the_strategys_own_frames(tmp_path, folder, grid, expression, told):
    file = written(tmp_path, BROKEN.format(expression=expression))
    env = {**os.environ, "TRELLIS_URL": f"embedded://{folder}"}
    done = cli("run", file, "--session", "2016-08-10", env=env)
    lines = done.stderr.splitlines()
    assert done.returncode == 3 and lines[0].startswith("trellis: strategy broken, session 2016-08-10: ")
    assert told in lines[0]
    places = [line.strip() for line in lines if line.startswith("  File")]
    assert places == [f'File "{file}", line 11, in broken', f'File "{file}", line 6, in helper']
    whole = cli("run", file, "--session", "2016-08-10", "--traceback", env=env)
    assert "Traceback (most recent call last)" in whole.stderr or "trellis/" in whole.stderr
    assert len(whole.stderr) > len(done.stderr)


@pytest.mark.parametrize(
    ("text", "told", "place"),
    [
        ("import trellis\nx = = 1\n", "SyntaxError: invalid syntax", "line 2"),
        ("import trellis\n\nimport nothing_of_this\n", "ModuleNotFoundError: No module named", "line 3"),
        ("def f():\nreturn\n", "IndentationError", "line 2"),
    ],
)
def test_a_file_that_cannot_be_imported_is_told_in_one_line_with_its_place(tmp_path, text, told, place):
    file = written(tmp_path, text)
    for command in (["run", file, "--session", "2016-08-10"], ["deploy", file, "--no-wait", "--state", str(tmp_path)]):
        done = cli(*command)
        lines = done.stderr.splitlines()
        assert done.returncode == 3 and told in lines[0] and "broken.py" in lines[0], done.stderr
        assert sum(line.startswith("  File") for line in lines) == 1 and place in lines[1] and len(lines) <= 5


def test_in_python_the_exception_shows_the_strategys_frames_and_not_ours(tmp_path, grid):
    from trellis.deploy import load_strategies

    broken = load_strategies(written(tmp_path, BROKEN.format(expression="px.wide('clsoe')"), "broken_too.py"))[0]
    with pytest.raises(StrategyError) as told:
        broken.run(session="2016-08-10", grid=grid)
    cause, files = told.value.__cause__.__traceback__, []
    while cause is not None:
        files.append(cause.tb_frame.f_code.co_filename)
        cause = cause.tb_next
    assert files == [str(tmp_path / "broken_too.py")] * 2
    assert frames_of(told.value.traceback).count("File") == 2
    # a notebook leaves out frames with this mark
    hidden = [f.f_locals.get("__tracebackhide__") for f, _ in _frames(told.value.__traceback__)][1:]
    assert hidden and all(hidden)


def _frames(entry):
    while entry is not None:
        yield entry.tb_frame, entry.tb_lineno
        entry = entry.tb_next


def test_a_table_fits_the_terminal_and_is_whole_elsewhere():
    header = ["name", *(f"c{i}" for i in range(12)), "note"]
    rows = [["x" * 30, *(f"{i:,}" for i in range(1_000_000, 1_000_012)), "word " * 20]] * 2
    whole = format_table(header, rows).splitlines()
    assert len(whole[0]) < len(whole[1]) and "x" * 30 in whole[1] and "word " * 19 in whole[1]
    for width in (200, 120, 80, 40, 20):
        for line in format_table(header, rows, width=width).splitlines():
            assert len(line) <= width
    narrow = format_table(header, rows, width=80)
    # a number is shown whole or not at all
    assert re.findall(r"[\d,]{5,}", narrow.splitlines()[1]) and "…" in narrow
    assert all(len(number) == 9 for number in re.findall(r"[\d,]{5,}", narrow))


def test_status_on_a_terminal_is_no_wider_than_it(processes):
    import pty

    main, side = pty.openpty()
    argv = [sys.executable, "-m", "trellis.cli", "status", "--state", str(processes.state)]
    with subprocess.Popen(argv, stdout=side, env={**os.environ, "COLUMNS": "90"}):
        os.close(side)
        text = b""
        try:
            while part := os.read(main, 65_536):
                text += part
        except OSError:  # the other side is closed
            pass
    os.close(main)
    lines = text.decode().replace("\r", "").splitlines()
    assert any("equities.daily" in line for line in lines)
    assert [line for line in lines if len(line) > 90 and not line.startswith("grid ")] == []
    pids = [p["pid"] for p in processes.processes().values() if p["pid"]]
    assert pathlib.Path(f"/proc/{pids[0]}").exists() and any(f" {pids[0]} " in line for line in lines)


@pytest.mark.parametrize(
    ("pandas", "ours"),
    [
        ("px.head()", "px.pandas().head()"),
        ("px.close", "px.pandas().close"),
        ("px['close']", "px.pandas()['close']"),
        ("px.iloc[0]", "px.polars()[0]"),
        ("px.close", "px.wide('close')"),
    ],
)
def test_a_habit_of_pandas_is_told_what_to_write(grid, pandas, ours):
    px = grid.read("equities.daily", "close", "KO", start="2016-08-08", end="2016-08-11")
    with pytest.raises((AttributeError, TypeError)) as told:
        eval(pandas, {"px": px})
    assert ours[2 : ours.index("(")] in str(told.value)
    eval(ours, {"px": px})


def test_a_frame_is_no_sequence_and_answers_probes_of_libraries(grid):
    px = grid.read("equities.daily", "close", "KO", start="2016-08-08", end="2016-08-11")
    with pytest.raises(TypeError, match="not iterable"):
        list(px)
    assert not hasattr(px, "_repr_png_") and not hasattr(px, "__array__") and copy.copy(px).columns == px.columns


def test_a_folder_and_a_missing_file_are_told_apart(grid, tmp_path, monkeypatch):
    (tmp_path / "prices").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadRequest, match="prices is a folder") as told:
        import_files(grid, "tests.no", ["prices"])
    assert told.value.hint.endswith("prices/*.csv")
    with pytest.raises(BadRequest, match=r"there is no file px\.csv") as told:
        import_files(grid, "tests.no", ["px.csv"])
    assert str(tmp_path) in told.value.hint


def test_the_session_of_a_run_needs_no_name(grid):
    assert len(strategy().run("2016-08-10", grid=grid)) == 1
