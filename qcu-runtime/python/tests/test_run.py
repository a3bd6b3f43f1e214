"""Strategies that run in this process: their inputs, their answers, and publishing."""

import contextlib
import functools
import importlib
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import numpy as np
import pytest
from conftest import EXAMPLES, WAIT_S, cli

import trellis
from trellis._values import to_ns
from trellis.deploy import Until, deploy_strategies, load_strategies
from trellis.errors import BadRequest, BadRows, Forbidden, NotArrived, StrategyError, UnknownDataset
from trellis.importing import import_files

SESSION = "2016-08-10"
PRICES = trellis.series("equities.daily", ["close"], symbols=["AMZN", "KO"], lookback="3 sessions")


def declare(name, function, *, inputs=None, **output):
    function.__name__ = function.__qualname__ = "compute"
    declared = trellis.output(f"tests.{name}", **(output or {"score": "float64"}))
    return trellis.strategy(name, inputs={"px": PRICES} if inputs is None else inputs, output=declared)(function)


def ledger(grid, symbol):
    """The ledger's rows of a unit or another writer, oldest first."""
    return grid.read("trellis.runs", symbols=[symbol]).arrow().to_pylist()


def test_the_momentum_example_is_what_pandas_computes(grid):
    mom = load_strategies(str(EXAMPLES / "momentum.py"))[0]
    result = mom.run(session=SESSION, grid=grid)
    close = grid.read("equities.daily", ["close"], end="2016-08-11").wide("close").pandas().iloc[-260:]
    expected = close.iloc[-21] / close.iloc[-252] - 1
    got = result.pandas().set_index("symbol").score
    there = expected.dropna()
    np.testing.assert_allclose(got.loc[list(there.index)].to_numpy(), there.to_numpy())
    assert len(result) == len(got) and set(result.pandas().ts.astype(str)) == {"2016-08-10 00:00:00+00:00"}


def test_a_labelled_column_goes_to_its_symbols(grid):
    def compute(ctx, px):
        close = px.wide("close")[-1]
        return ctx.frame(symbol=close.symbols, score=close.pandas().sort_values(ascending=close["AMZN"] > close["KO"]))

    got = declare("labelled", compute).run(session=SESSION, grid=grid).pandas().set_index("symbol").score
    close = grid.read("equities.daily", ["close"], ["AMZN", "KO"], start=SESSION, end="2016-08-11")
    assert got.to_dict() == close.pandas().set_index("symbol").close.to_dict()


@pytest.mark.parametrize(
    ("kind", "given", "read"),
    [
        ("int64", [1.0, 2.0], [1, 2]),
        ("int64", [Decimal("1.00"), None], [1, None]),
        ("float64", [Decimal("0.1"), 2], [0.1, 2.0]),
        ("float32", [0.5, 2], [0.5, 2.0]),
        ("float64", [float("inf"), 1.0], [float("inf"), 1.0]),
        ("int64", [1.5, 2.0], "1.5"),
        ("float64", [2**53 + 1, 2], "9007199254740993"),
        ("int32", [2**40, 1], "1099511627776"),
        ("float32", [0.1, 1.0], "float32"),
        ("float64!", [float("inf"), 1.0], "infinity"),
        ("int64", [True, False], "expected int64"),
        ("timestamp", [20160810, 20160811], "expected timestamp"),
    ],
    ids=range(12),
)
def test_values_become_the_declared_type_whole_or_not_at_all(grid, kind, given, read):
    strategy = declare("typed_values", lambda ctx, px: ctx.frame(symbol=["A", "B"], x=given), x=kind)
    if isinstance(read, list):
        assert strategy.run(session=SESSION, grid=grid).arrow()["x"].to_pylist() == read
        return
    with pytest.raises(BadRows, match=read):
        strategy.run(session=SESSION, grid=grid)


def test_a_lambda_and_a_partial_run_as_any_other(grid):
    twice = functools.partial(lambda factor, ctx, px: ctx.frame(symbol=["A"], score=[factor * 1.0]), 2)
    strategy = trellis.strategy("twice", inputs={"px": PRICES}, output=trellis.output("tests.twice", score="float64"))
    assert strategy(twice).run(session=SESSION, grid=grid, publish=True).published["rows"] == 1


def test_inputs_end_with_the_session_and_start_with_the_lookback(grid):
    seen = {}

    def compute(ctx, px):
        seen["days"], seen["session"], seen["receipt"] = px.wide("close").index, ctx.session, px.receipt
        return ctx.frame(symbol=px.symbols, score=1.0)

    declare("window", compute).run(session=SESSION, grid=grid)
    assert [str(d)[:10] for d in seen["days"]] == ["2016-08-08", "2016-08-09", "2016-08-10"]
    assert seen["session"] == SESSION and seen["receipt"].as_of is not None


def test_a_run_publishes_what_readers_then_see_and_again_is_the_same(grid):
    price = declare("published", lambda ctx, px: ctx.frame(symbol=px.symbols, score=px.wide("close")[-1]))
    first = price.run(session=SESSION, grid=grid, publish=True)
    assert first.published["rows"] == 2 and not first.published["duplicate"]
    assert grid.read("tests.published").arrow().column("score").to_pylist() == first.arrow()["score"].to_pylist()
    again = price.run(session=SESSION, grid=grid, publish=True, as_of=None)
    assert again.published["duplicate"] and again.published["version"] == first.published["version"]
    runs = ledger(grid, "published")
    assert [run["outcome"] for run in runs] == ["succeeded", "succeeded"]
    assert runs[0]["run_id"] != runs[1]["run_id"], "each attempt that a person makes is one of its own"


def test_a_correction_leaves_what_was_known_readable(grid):
    def version(value):
        def compute(ctx, px):
            return ctx.frame(symbol=["A", "B"], score=[value, value + 1])

        return declare("corrected", compute, inputs={"px": PRICES})

    first = version(1.0).run(session=SESSION, grid=grid, publish=True)
    known = first.published["known_at_ns"]
    second = version(5.0).run(session=SESSION, grid=grid, publish=True)
    assert second.published["known_at_ns"] > known and second.published["version"] > first.published["version"]
    scores = lambda as_of: grid.read("tests.corrected", as_of=as_of).arrow()["score"].to_pylist()  # noqa: E731
    assert scores(None) == [5.0, 6.0]
    assert scores(known) == scores(second.published["known_at_ns"] - 1) == [1.0, 2.0]
    assert scores(known - 1) == []


def test_one_strategys_signal_is_anothers_input(grid):
    first = declare("upstream", lambda ctx, px: ctx.frame(symbol=px.symbols, score=px.wide("close")[-1]))
    first.run(session=SESSION, grid=grid, publish=True)
    second = declare(
        "downstream",
        lambda ctx, s: ctx.frame(symbol=s.symbols, score=s.wide("score")[-1] * 2),
        inputs={"s": first.series(lookback="1 session")},
    )
    doubled = second.run(session=SESSION, grid=grid).arrow()["score"].to_pylist()
    assert doubled == [2 * v for v in grid.read("tests.upstream").arrow()["score"].to_pylist()]


def test_a_strategy_that_raises_is_told_with_its_own_traceback(grid):
    def compute(ctx, px):
        return px.wide("close")["NOSUCH"]

    with pytest.raises(StrategyError, match=r"raises.*2016-08-10.*NOSUCH") as failed:
        declare("raises", compute).run(session=SESSION, grid=grid)
    assert 'return px.wide("close")["NOSUCH"]' in failed.value.traceback
    assert "trellis/run.py" not in failed.value.traceback
    assert failed.value.__cause__ is not None


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda ctx: ctx.frame(symbol=["A"], scor=[1.0]), "scor"),
        (lambda ctx: ctx.frame(symbol=["A"]), "score"),
        (lambda ctx: ctx.frame(score=[1.0]), "symbol"),
        (lambda ctx: ctx.frame(symbol=["A"], score=["high"]), "score"),
        (lambda ctx: ctx.frame(symbol=["A", "A"], score=[1.0, 2.0]), "A"),
        (lambda ctx: ctx.frame(symbol=["A", None], score=[1.0, 2.0]), "symbol"),
        (lambda ctx: ctx.frame(symbol=["A"], score=[1.0], extra=[1]), "extra"),
        (lambda ctx: ctx.frame(symbol=["A"], score=[1.0], ts=np.array(["2016-08-12"], "datetime64[D]")), "2016-08-12"),
        (lambda ctx: None, "nothing"),
        (lambda ctx: 42, "int"),
    ],
    ids=range(10),
)
def test_an_answer_that_is_not_the_declared_output_is_refused(grid, answer, told):
    refused = declare("refused", lambda ctx, px: answer(ctx))
    with pytest.raises((BadRows, StrategyError), match=told):
        refused.run(session=SESSION, grid=grid, publish=True)
    assert "tests.refused" not in grid.datasets()


def test_an_output_is_its_units_until_another_takes_it_over(grid):
    def unit(name, value):
        def compute(ctx, px):
            return ctx.frame(symbol=["A"], score=[value])

        output = trellis.output("tests.owned", score="float64")
        return trellis.strategy(name, inputs={"px": PRICES}, output=output)(compute)

    unit("owner", 1.0).run(session=SESSION, grid=grid, publish=True)
    renamed = unit("renamed", 2.0)
    with pytest.raises(Forbidden, match=r"tests\.owned is the output of unit owner") as refused:
        renamed.run(session=SESSION, grid=grid, publish=True)
    assert "take_over=True" in refused.value.hint
    assert grid.read("tests.owned").arrow()["score"].to_pylist() == [1.0]
    renamed.run(session=SESSION, grid=grid, publish=True, take_over=True)
    assert grid.read("tests.owned").arrow()["score"].to_pylist() == [2.0]
    with pytest.raises(BadRequest, match="nothing would be published"):
        renamed.run(session=SESSION, grid=grid, take_over=True)
    with pytest.raises(Forbidden, match=r"tests\.owned is the output of unit renamed"):
        unit("owner", 3.0).run(session=SESSION, grid=grid, publish=True)


def test_missing_values_are_published_only_where_they_may_be(grid):
    def compute(ctx, px):
        return ctx.frame(symbol=["A", "B"], score=[1.0, np.nan])

    loose = declare("loose", compute).run(session=SESSION, grid=grid, publish=True)
    assert grid.read("tests.loose").arrow()["score"].to_pylist() == [1.0, None] and loose.published
    with pytest.raises(BadRows, match=r"score.*symbol B"):
        declare("strict", compute, score="float64!").run(session=SESSION, grid=grid, publish=True)


def test_what_cannot_be_run_says_why(grid):
    ok = declare("ok", lambda ctx, px: ctx.frame(symbol=["A"], score=1.0))
    with pytest.raises(BadRequest, match="2016-08-13"):
        ok.run(session="2016-08-13", grid=grid)  # a Saturday
    with pytest.raises(BadRequest, match="session"):
        ok.run(session="soon", grid=grid)
    lost = declare("lost", lambda ctx, px: None, inputs={"px": trellis.series("no.such", lookback="1 session")})
    with pytest.raises(UnknownDataset, match=r"no\.such"):
        lost.run(session=SESSION, grid=grid)


def test_a_run_reads_as_of_what_it_is_told(grid):
    empty = declare("past", lambda ctx, px: ctx.frame(symbol=["A"], score=float(len(px))))
    assert empty.run(session=SESSION, grid=grid, as_of="2001-01-01").arrow()["score"].to_pylist() == [0.0]
    assert to_ns("2001-01-01", "t") > 0


def test_a_run_whose_input_has_not_arrived_is_refused_and_leaves_nothing(empty, tmp_path):
    def import_prices(*days):
        file = tmp_path / "prices.csv"
        file.write_text("symbol,ts,close\n" + "".join(f"A,{day},1.5\n" for day in days))
        import_files(empty, "tests.prices", [file])

    def runs():
        return sorted((row["session"], row["outcome"]) for row in ledger(empty, "late"))

    import_prices("2016-08-08", "2016-08-09")
    inputs = {"px": trellis.series("tests.prices", ["close"], lookback="2 sessions")}
    late = declare("late", lambda ctx, px: ctx.frame(symbol=["A"], score=[float(len(px))]), inputs=inputs)
    late.run(session="2016-08-09", grid=empty, publish=True)
    # that day's rows, a session of next year, and one of the year after
    for session in ("2016-08-10", "2017-01-04", "2018-01-04"):
        for publish in (False, True):
            with pytest.raises(NotArrived) as refused:
                late.run(session=session, grid=empty, publish=publish)
            told = f"input px has not arrived for {session}: tests.prices has come to 2016-08-09"
            assert refused.value.message == told and refused.value.retryable
    assert runs() == [("2016-08-09", "succeeded")]
    assert str(empty.describe("tests.late")["watermark"]).startswith("2016-08-10")
    import_prices("2016-08-10")
    assert late.run(session="2016-08-10", grid=empty, publish=True).pandas().score.tolist() == [2.0]
    assert runs() == [("2016-08-09", "succeeded"), ("2016-08-10", "succeeded")]


def test_a_run_publishes_in_its_own_name_whatever_name_reads_go_by(grid, folder):
    mine = declare("named", lambda ctx, px: ctx.frame(symbol=["A"], score=1.0))
    with trellis.connect(f"embedded://{folder}", unit="somebody") as other:
        assert mine.run(session=SESSION, grid=other, publish=True).published["rows"] == 1


def test_a_file_is_deployed_by_its_strategy_and_a_cell_is_not(tmp_path):
    mom = load_strategies(str(EXAMPLES / "momentum.py"))[0]
    units = deploy_strategies([mom], tmp_path, until=Until.WRITTEN)
    assert units[0]["unit"] == "mom_12_1" and (tmp_path / units[0]["manifest"]).is_file()
    exec(compile("def f(ctx, px): ...", "<cell>", "exec"), cell := {"__name__": "no_such_module"})
    typed = trellis.strategy("typed", inputs={"px": PRICES}, output=trellis.output("tests.typed", x="float64"))(
        cell["f"]
    )
    (tmp_path / "units" / "mom_12_1.json").unlink()
    with pytest.raises(BadRequest, match="notebook"):
        deploy_strategies([mom, typed], tmp_path, until=Until.WRITTEN)
    assert not list((tmp_path / "units").iterdir()), "all or none"


def test_twenty_edits_of_one_session_are_twenty_versions_and_the_same_rows_one(grid):
    versions, known = [], []
    for edit in range(20):
        edited = declare("loop", lambda ctx, px, edit=edit: ctx.frame(symbol=["A"], score=[float(edit % 19)]))
        for _ in range(2):
            published = edited.run(session=SESSION, grid=grid, publish=True).published
            versions.append(published["version"])
        known.append(published["known_at_ns"])
    assert versions[0::2] == versions[1::2] == list(range(versions[0], versions[0] + 20))
    assert grid.read("tests.loop").arrow()["score"].to_pylist() == [0.0], "the last edit went back to the first rows"
    assert grid.read("tests.loop", as_of=known[18]).arrow()["score"].to_pylist() == [18.0]
    assert len(ledger(grid, "loop")) == 40


SCRIPT = """
import sys
import trellis

@trellis.strategy("again", inputs={}, output=trellis.output("tests.again", score="float64"))
def again(ctx):
    return ctx.frame(symbol=["A"], score=[float(sys.argv[1])])

if __name__ == "__main__":
    print(again.run(session="2016-08-10", publish=True).published["version"])
"""


def test_the_same_script_publishes_run_after_run(tmp_path):
    (tmp_path / "again.py").write_text(SCRIPT)

    def run(value):
        argv = [sys.executable, "again.py", str(value)]
        environment = {**os.environ, "TRELLIS_URL": "embedded://grid"}
        done = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=WAIT_S)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    assert [run(value) for value in (1, 1, 2, 1)] == [0, 0, 1, 2]


def test_what_a_unit_publishes_is_not_imported_into_until_it_is_released(grid, tmp_path):
    owned = declare("imported_into", lambda ctx, px: ctx.frame(symbol=["A"], score=[1.0]))
    owned.run(session=SESSION, grid=grid, publish=True)
    file = tmp_path / "more.csv"
    file.write_text("symbol,ts,score\nB,2016-08-09,2.0\n")
    with pytest.raises(Forbidden, match=r"tests\.imported_into is the output of unit imported_into") as refused:
        import_files(grid, "tests.imported_into", [file])
    assert "trellis dataset release tests.imported_into" in refused.value.hint
    grid.release("tests.imported_into")
    assert import_files(grid, "tests.imported_into", [file])["rows"] == 1
    assert len(ledger(grid, "release:tests.imported_into")) == 1
    # the same rows as before the import must be published again
    assert not owned.run(session=SESSION, grid=grid, publish=True).published["duplicate"]


def test_an_import_is_in_the_ledger_with_who_and_what(grid, tmp_path):
    file = tmp_path / "prices.csv"
    file.write_text("symbol,ts,score\nB,2016-08-09,2.0\n")
    done = import_files(grid, "tests.by_hand", [file], symbol_column="symbol")
    (run,) = ledger(grid, "import:tests.by_hand")
    assert (run["outcome"], run["rows"], run["output_version"]) == ("succeeded", 1, done["version"])
    assert json.loads(run["code_digest"])["options"] == {"symbol_column": "symbol"}
    assert f" pid {os.getpid()} " in json.loads(run["code_digest"])["by"]
    (read,) = json.loads(run["inputs"])
    assert read["name"] == str(file) and read["dataset"].startswith("sha256:")


def test_the_ledger_says_which_code_a_run_was(grid, tmp_path, monkeypatch):
    def digest(strategy):
        strategy.run(session=SESSION, grid=grid, publish=True)
        return ledger(grid, strategy.name)[-1]["code_digest"]

    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / "coded_in_a_file.py"
    text = SCRIPT.replace("again", "coded").replace("float(sys.argv[1])", "1.0")
    file.write_text(text)
    module = importlib.import_module("coded_in_a_file")
    deployed = grid_free_digest(module.coded)
    assert digest(module.coded) == deployed and deployed.startswith("sha256:")
    # the file is edited but not imported again: the running code is not the code of the file
    file.write_text(text.replace("1.0", "2.0"))
    ran = digest(module.coded)
    assert ran.startswith("live:sha256:") and ran == digest(module.coded)

    cell = {"__name__": "__main__", "trellis": trellis}
    source = text[text.index("@trellis") : text.index("if __name__")].replace("coded", "celled")
    exec(compile(source, "<cell 1>", "exec"), cell)
    cells = digest(cell["celled"])
    assert cells.startswith("live:sha256:") and cells == digest(cell["celled"]) != ran


def grid_free_digest(strategy):
    from trellis.deploy import code_digest

    return code_digest(strategy)


def test_a_run_that_was_to_publish_and_failed_is_in_the_ledger(grid):
    def compute(ctx, px):
        raise KeyError("close")

    failing = declare("fails_on_record", compute)
    with pytest.raises(StrategyError):
        failing.run(session=SESSION, grid=grid)
    with pytest.raises(StrategyError):
        failing.run(session=SESSION, grid=grid, publish=True)
    (run,) = ledger(grid, "fails_on_record")
    assert run["outcome"] == "failed" and "KeyError" in run["error"] and run["run_id"]


def test_a_message_that_is_no_text_is_told_all_the_same(grid):
    def compute(ctx, px):
        raise ValueError("caf\udce9")

    with pytest.raises(StrategyError, match=r"caf\\udce9"):
        declare("surrogate", compute).run(session=SESSION, grid=grid, publish=True)
    assert "udce9" in ledger(grid, "surrogate")[0]["error"]


def test_a_process_that_a_strategy_forks_off_publishes_nothing(grid):
    def compute(ctx, px):
        child = os.fork()
        if child:
            os.waitpid(child, 0)
        return ctx.frame(symbol=["A"], score=[1.0 if child else 2.0])

    assert declare("forks", compute).run(session=SESSION, grid=grid, publish=True).published["version"] == 0
    assert len(ledger(grid, "forks")) == 1


def test_an_answer_that_is_kept_has_the_fields_of_a_dataset_that_grew_here(empty, tmp_path):
    for name, text in (("one", "x"), ("two", "x,y")):
        values = ",".join("1.5" for _ in text.split(","))
        (tmp_path / f"{name}.csv").write_text(f"symbol,ts,{text}\nA,2016-08-0{len(text)},{values}\n")
    import_files(empty, "tests.grows", [tmp_path / "one.csv"])
    now = empty.read("tests.grows").receipt.known_through
    assert empty.read("tests.grows", as_of=now).columns == ["symbol", "ts", "x"]
    import_files(empty, "tests.grows", [tmp_path / "two.csv"])
    assert empty.read("tests.grows", as_of=now).columns == ["symbol", "ts", "x", "y"]


def test_a_strategy_that_exits_has_failed_with_its_own_frames(grid):
    def compute(ctx, px):
        sys.exit(7)

    with pytest.raises(StrategyError, match=r"called sys\.exit\(7\)") as failed:
        declare("exits", compute).run(session=SESSION, grid=grid)
    assert "sys.exit(7)" in failed.value.traceback and "trellis/run.py" not in failed.value.traceback


def test_a_grid_is_refused_inside_a_strategy_and_in_the_threads_that_it_starts(grid, folder):
    def in_a_thread(work):
        told = []

        def target():
            try:
                work()
            except BadRequest as error:
                told.append(error)

        thread = threading.Thread(target=target)
        thread.start()
        thread.join()
        if told:
            raise told[0]

    def swallowed(work):
        with contextlib.suppress(BadRequest):
            work()

    pool = ThreadPoolExecutor(1)
    pool.submit(int).result()  # start the thread of the pool now

    url = f"embedded://{folder}"
    # kept answers of earlier reads are refused, too
    grid.read("equities.daily", ["close"], as_of="2016-08-01")
    for work in (
        lambda: trellis.connect(url),
        lambda: grid.datasets(),
        lambda: grid.read("equities.daily", ["close"], as_of="2016-08-01"),
    ):
        for through in (lambda work: work(), in_a_thread, lambda work: pool.submit(work).result(), swallowed):
            inside = declare("reaches_out", lambda ctx, px, work=work, through=through: through(work))
            with pytest.raises(StrategyError, match=r"strategy reaches_out calls .* while it runs") as refused:
                inside.run(session=SESSION, grid=grid)
            assert "declare the input" in refused.value.hint
            assert not ledger_has(grid, "reaches_out")

    # a KeyboardInterrupt passes on, even if the strategy caught a refusal before it
    def interrupted(ctx, px):
        with contextlib.suppress(Exception):
            grid.datasets()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        declare("interrupted", interrupted).run(session=SESSION, grid=grid)
    # other threads may call the grid at the same time
    entered, leave = threading.Event(), threading.Event()

    def waits(ctx, px):
        entered.set()
        assert leave.wait(WAIT_S)
        return ctx.frame(symbol=["A"], score=[1.0])

    running = threading.Thread(target=declare("waits", waits).run, kwargs={"session": SESSION, "grid": grid})
    running.start()
    assert entered.wait(WAIT_S)
    with trellis.connect(url) as other:
        assert "equities.daily" in other.datasets()
    leave.set()
    running.join()
    assert "equities.daily" in pool.submit(grid.datasets).result()
    pool.shutdown()


def ledger_has(grid, symbol):
    return "trellis.runs" in grid.datasets() and symbol in grid.symbols("trellis.runs")


PRINTS = """
import ctypes
import os
import trellis

print("at import")

@trellis.strategy("prints", inputs={}, output=trellis.output("tests.prints", score="float64"))
def prints(ctx):
    print("of Python")
    os.write(1, b"of a system call\\n")
    ctypes.CDLL(None).puts(b"of C")
    return ctx.frame(symbol=["A"], score=[1.0])
"""


def test_what_a_strategy_prints_is_not_in_the_result(tmp_path):
    (tmp_path / "prints.py").write_text(PRINTS)
    environment = {**os.environ, "TRELLIS_URL": f"embedded://{tmp_path / 'grid'}"}
    done = cli("run", str(tmp_path / "prints.py"), "--session", SESSION, "--format", "csv", env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["symbol,ts,score", "A,2016-08-10T00:00:00Z,1.0"] or done.stdout.count("\n") == 2
    assert all(line in done.stderr for line in ("at import", "of Python", "of a system call", "of C"))


def test_a_file_that_connects_when_it_is_imported_is_refused(tmp_path):
    (tmp_path / "connects.py").write_text("import trellis\n\ng = trellis.connect()\n")
    done = cli("run", str(tmp_path / "connects.py"), "--session", SESSION, cwd=tmp_path)
    assert done.returncode == 3 and "connects.py calls connect() while it runs" in done.stderr
    assert not (tmp_path / ".trellis").exists()
