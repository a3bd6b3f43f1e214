"""The command line: formats, exit codes, and the use of stdout and stderr."""

import json

import pandas as pd
import pyarrow as pa
import pyarrow.ipc
import pytest
from conftest import EXAMPLES, cli

AMZN = ["equities.daily", "--fields", "close", "--symbols", "AMZN", "--start", "2016-08-01", "--end", "2016-08-11"]


@pytest.fixture
def at(folder, grid):
    """The environment in which the command line uses the shared grid."""
    import os

    return {"env": {**os.environ, "TRELLIS_URL": f"embedded://{folder}"}}


def test_reading_as_csv_is_rows_on_stdout_and_the_receipt_on_stderr(at, market):
    done = cli("read", *AMZN, "--format", "csv", **at)
    expected = [r for r in market["AMZN"] if "2016-08-01" <= r["Date"] < "2016-08-11"]
    lines = done.stdout.splitlines()
    assert lines[0] == "symbol,ts,close"
    assert lines[1:] == [f"AMZN,{r['Date']},{float(r['Close'])}" for r in expected]
    assert done.returncode == 0 and "equities.daily v" in done.stderr and "ms" in done.stderr


def test_every_format_has_the_same_rows(at, tmp_path):
    closes = {}
    for form in ("csv", "json", "parquet", "arrow"):
        out = tmp_path / f"px.{form}"
        assert cli("read", *AMZN, "--out", str(out), **at).returncode == 0
        closes[form] = {
            "csv": lambda p: pd.read_csv(p).close,
            "json": lambda p: pd.DataFrame(json.loads(p.read_text())).close,
            "parquet": lambda p: pd.read_parquet(p).close,
            "arrow": lambda p: pa.ipc.open_file(p).read_all().to_pandas().close,
        }[form](out).tolist()
    assert len(closes["csv"]) == 8
    assert closes["csv"] == closes["json"] == closes["parquet"] == closes["arrow"]
    printed = cli("read", *AMZN, "--json", **at)
    assert [r["close"] for r in json.loads(printed.stdout)] == closes["csv"]
    assert json.loads(printed.stderr)["rows"] == 8


def test_a_table_shows_the_ends_of_a_long_answer(at):
    done = cli("read", "equities.daily", "--fields", "close", "--symbols", "AMZN", **at)
    assert done.stdout.splitlines()[0].split() == ["symbol", "ts", "close"]
    assert "2006-02-08" in done.stdout and "2018-02-07" in done.stdout and "left out" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["read", "no.such"], 3, "no.such"),
        (["read", "equities.daily", "--fields", "clsoe"], 3, "clsoe"),
        (["read", "equities.daily", "--symbols", "NOSUCH"], 3, "NOSUCH"),
        (["read", "equities.daily", "--symbols", ""], 3, "the list of symbols is empty"),
        (["read", "equities.daily", "--start", "2016-01-01", "--end", "2015-01-01"], 3, "2015-01-01"),
        (["read", "equities.daily", "--start", "whenever"], 3, "whenever"),
        (["read", *AMZN, "--out", "/nowhere/px.csv"], 3, "/nowhere/px.csv"),
        (["read", *AMZN, "--out", "px.xyz"], 3, "format"),
        (["import", "a.b", __file__, "--types", "x=string,x=float64"], 3, "--types names x twice"),
        (["read"], 2, "DATASET"),
        (["read", *AMZN, "--format", "xml"], 2, "xml"),
        (["fly"], 2, "fly"),
        ([], 2, "COMMAND"),
        (["run", "nowhere.py", "--session", "2016-08-10"], 3, "nowhere.py"),
        (["run", str(EXAMPLES / "momentum.py"), "--session", "2016-08-13"], 3, "2016-08-13"),
        (["run", str(EXAMPLES / "momentum.py"), "--session", "2027-01-04"], 4, "equities.daily has come to 20"),
        (["run", str(EXAMPLES / "momentum.py") + ":nope", "--session", "2016-08-10"], 3, "mom_12_1"),
        (["deploy", str(EXAMPLES / "momentum.py"), "--state", "/tmp/no-grid-is-here"], 4, "trellis up"),
    ],
    ids=lambda a: " ".join(a) if isinstance(a, list) else None,
)
def test_each_mistake_has_its_exit_code_and_one_message(at, arguments, status, told):
    done = cli(*arguments, **at)
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    assert told in done.stderr and "Traceback" not in done.stderr


def test_errors_are_json_where_json_is_asked_for(at):
    done = cli("read", "equities.daily", "--fields", "clsoe", "--json", **at)
    told = json.loads(done.stderr)
    assert told["error"] == "UnknownField" and told["code"] == "UNKNOWN_FIELD" and done.returncode == 3


def test_a_grid_that_is_away_is_exit_code_4():
    import os

    done = cli("status", env={**os.environ, "TRELLIS_URL": "grpc://127.0.0.1:9"})
    assert done.returncode == 4 and "127.0.0.1:9" in done.stderr


def test_running_prints_the_output_and_publishes_only_if_told(at, tmp_path):
    source = tmp_path / "price.py"
    source.write_text(
        "import trellis\n"
        "@trellis.strategy('cli_price', output=trellis.output('tests.cli_price', price='float64'),\n"
        "    inputs=dict(px=trellis.series('equities.daily', 'close', symbols='KO', lookback='1 session')))\n"
        "def price(ctx, px):\n"
        "    print('hello from the strategy')\n"
        "    return ctx.frame(symbol=px.symbols, price=px.wide('close')[-1])\n"
    )
    dry = cli("run", str(source), "--session", "2016-08-10", "--format", "csv", **at)
    assert dry.returncode == 0, dry.stderr
    assert dry.stdout.splitlines()[-1].startswith("KO,2016-08-10,")
    assert cli("read", "tests.cli_price", **at).returncode == 3
    published = cli("run", str(source), "--session", "2016-08-10", "--publish", "--format", "csv", **at)
    assert published.returncode == 0 and "published 1 rows to tests.cli_price" in published.stderr
    assert cli("read", "tests.cli_price", "--format", "csv", **at).stdout.splitlines()[1] == dry.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("raise RuntimeError('not today')", "not today"),
        ("import sys; sys.exit(7)", "7"),
        ("import nothing_of_this", ""),
    ],
)
def test_a_file_that_does_not_import_is_bad_input_with_its_traceback(at, tmp_path, body, told):
    source = tmp_path / "broken.py"
    source.write_text(f"import trellis\n{body}\n")
    done = cli("deploy", str(source), "--no-wait", "--state", str(tmp_path), **at)
    assert done.returncode == 3 and told in done.stderr and "broken.py" in done.stderr
    assert "line 2" in done.stderr and "trellis/deploy.py" not in done.stderr


def test_help_names_every_command():
    done = cli("--help")
    assert done.returncode == 0
    for command in ("up", "status", "import", "read", "run", "deploy"):
        assert f"    {command} " in done.stdout
        assert "--json" in cli(command, "--help").stdout
    assert cli("--version").stdout.startswith("trellis 0.")
