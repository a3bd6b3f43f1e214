"""A grid of real processes: started, read by other clients, deployed to, damaged, and stopped."""

import contextlib
import csv
import gzip
import json
import os
import pathlib
import signal
import subprocess
import time

import pyarrow as pa
import pyarrow.flight as flight
import pytest
from conftest import EXAMPLES, TRELLIS, WAIT_S, Processes, cli

import trellis
from trellis._grids import local
from trellis._values import to_ns
from trellis.cli import main
from trellis.cli.commands import _unit_cells
from trellis.cli.up import Up
from trellis.deploy import load_strategies
from trellis.errors import BadRequest, Conflict, Unavailable
from trellis.importing import import_files

pytestmark = pytest.mark.processes
SESSION = "2016-08-10"
STRATEGY = """
import os, sys, time
import numpy as np
import trellis

@trellis.strategy({name!r}, output=trellis.output("tests.{output}", x="float64!"), retries=0, timeout="20s",
    inputs=dict(px=trellis.series("equities.daily", ["close"], symbols={symbols}, lookback="2 sessions")))
def compute(ctx, px):
    print("a line of the strategy's own")
    {body}
"""


def until(condition, what):
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError, KeyError):
            if value := condition():
                return value
        time.sleep(0.05)
    raise AssertionError(f"not within {WAIT_S} s: {what}")


def deploying(processes, tmp_path, name, body, output=None, symbols=("AMZN", "KO")):
    source = tmp_path / f"{name}.py"
    source.write_text(STRATEGY.format(name=name, body=body, output=output or name, symbols=list(symbols)))
    return ["deploy", str(source), "--session", SESSION, "--state", str(processes.state)]


def deploy(processes, tmp_path, name, body, *options, output=None):
    return cli(*deploying(processes, tmp_path, name, body, output), "--json", *options)


def ended(processes, name):
    def now():
        process = processes.processes()[name]
        return process if process["state"] in ("finished", "failed") else None

    return until(now, f"the end of {name}")


def test_the_first_line_is_the_fixed_interface(processes):
    assert set(processes.info) == {"url", "heads", "shards", "state"}
    assert len(processes.info["heads"]) == 2 and len(processes.info["shards"]) == 3
    assert processes.info["url"] == "static://" + ",".join(processes.info["heads"])
    assert pathlib.Path(processes.info["state"]) == processes.state.resolve()


def test_a_flight_client_with_nothing_of_ours_reads_by_json(processes, shared_data):
    path = shared_data / "daily" / "wiki" / "WIKI-AMZN.csv.gz"
    with trellis.connect(processes.info["url"]) as grid:
        import_files(grid, "wiki.daily", [path], symbol="AMZN", ts_column="Date", fields="close=Close")
    ticket = {
        "dataset": "wiki.daily",
        "fields": ["close"],
        "symbols": ["AMZN"],
        "start": "2006-08-10",
        "end": "2016-08-10",
        "as_of": None,
    }
    with gzip.open(path, "rt", newline="") as file:
        expected = [
            (to_ns(r["Date"], "Date"), float(r["Close"]))
            for r in csv.DictReader(file)
            if "2006-08-10" <= r["Date"] < "2016-08-10"
        ]
    for head in processes.info["heads"]:
        with flight.connect(f"grpc://{head}") as client:
            table = client.do_get(flight.Ticket(json.dumps(ticket))).read_all()
        got = list(zip(table["ts"].cast("int64").to_pylist(), table["close"].to_pylist(), strict=True))
        assert got == expected
        assert set(table["symbol"].to_pylist()) == {"AMZN"}


def test_a_publish_of_a_flight_client_with_nothing_of_ours_is_in_the_ledger(processes, tmp_path):
    file = tmp_path / "prices.csv"
    file.write_text("symbol,ts,close\nA,2016-08-09,1.5\n")
    name = "tests.by_flight"
    with trellis.connect(processes.info["url"]) as grid:
        import_files(grid, name, [file], symbol_column="symbol", fields="close=close")
        # a PublishHeader: field 1 is the dataset, field 2 the kind (an import)
        command = b"\x0a" + bytes([len(name)]) + name.encode() + b"\x10\x02"
        rows = pa.record_batch(
            {
                "symbol": pa.array(["A"]),
                "ts": pa.array([to_ns("2016-08-10", "ts")], pa.timestamp("ns", "UTC")),
                "close": pa.array([2.5]),
            }
        )
        with flight.connect(f"grpc://{processes.info['heads'][1]}") as client:
            writer, reader = client.do_put(flight.FlightDescriptor.for_command(command), rows.schema)
            with writer:
                writer.write_batch(rows)
                writer.done_writing()
                assert reader.read() is not None
        assert grid.read(name, ["close"]).arrow()["close"].to_pylist() == [1.5, 2.5]
        ours, raw = grid.read("trellis.runs", symbols=[f"import:{name}"]).arrow().to_pylist()
    assert json.loads(ours["code_digest"])["options"] == {"symbol_column": "symbol"}
    assert (raw["outcome"], raw["output_version"], raw["rows"]) == ("succeeded", ours["output_version"] + 1, 1)
    assert json.loads(raw["code_digest"])["by"].startswith("127.0.0.1:")


def test_garbage_from_a_flight_client_is_refused_and_the_grid_goes_on(processes):
    good = json.dumps({"dataset": "equities.daily", "fields": ["close"], "symbols": ["KO"]})
    with flight.connect(f"grpc://{processes.info['heads'][0]}") as client:
        for garbage in (
            b"",
            b"{",
            b"\xff" * 100,
            b'{"dataset": 7}',
            b'{"dataset": "equities.daily", "symbol": ["KO"]}',
        ):
            with pytest.raises((flight.FlightError, ValueError, KeyError, OSError)):
                client.do_get(flight.Ticket(garbage)).read_all()
        assert client.do_get(flight.Ticket(good)).read_all().num_rows > 2000


def test_every_head_gives_the_same_rows_and_one_serves_a_small_dataset(processes):
    with trellis.connect(processes.info["url"]) as grid:
        whole = grid.read("equities.daily", ["close"], "*")
        assert whole.receipt.heads in (("head-0",), ("head-1",))
        assert whole.receipt.shards == ("shard-0", "shard-1", "shard-2")
    for head in processes.info["heads"]:
        with trellis.connect(f"grpc://{head}") as one:
            assert one.read("equities.daily", ["close"], "*").arrow() == whole.arrow()


def test_the_examples_run_as_units_and_one_reads_the_other(processes):
    files = [str(EXAMPLES / f"{name}.py") for name in ("momentum", "combo", "amzn_long")]
    done = cli("deploy", *files, "--session", SESSION, "--state", str(processes.state), "--json")
    assert done.returncode == 0, done.stderr
    units = json.loads(done.stdout)
    assert [u["unit"] for u in units] == ["mom_12_1", "combo", "amzn_trend"]
    assert all(u["digest"].startswith("sha256:") for u in units)
    for unit in units:
        process = ended(processes, unit["unit"])
        assert process["state"] == "finished" and process["last_run"]["outcome"] == "succeeded", process
    with trellis.connect(processes.info["url"]) as grid:
        mom, combo = (grid.read(f"signals.{n}") for n in ("mom_12_1", "combo"))
        assert len(mom) == 19 and abs(combo.wide("weight")[-1]).sum() == pytest.approx(1.0)
        assert set(combo.symbols) == set(mom.wide("score")[-1].dropna().symbols)
        expected = load_strategies(files[0])[0].run(session=SESSION, grid=grid)
        assert mom.arrow().column("score").to_pylist() == expected.arrow().column("score").to_pylist()
    bundle = processes.state / "bundles" / units[1]["digest"].removeprefix("sha256:")
    assert sorted(p.name for p in bundle.iterdir()) == ["combo.json", "combo.py", "momentum.py", "packages.lock"]


GAPS = """
import trellis

@trellis.strategy("gaps", output=trellis.output("tests.gaps", matrix="string"), retries=0, timeout="20s",
    inputs=dict(px=trellis.series("gaps.daily", ["close"], symbols=["A", "B", "X"], lookback="6 sessions")))
def gaps(ctx, px):
    w = px.wide("close")
    return ctx.frame(symbol=w.symbols, matrix=[f"{w.calendar} {w.sessions} {w[s].tolist()}" for s in w.symbols])
"""


def test_a_unit_and_a_notebook_have_the_same_matrix_whatever_rows_there_are(processes, tmp_path):
    (tmp_path / "gaps.csv").write_text(
        "date,symbol,close\n2016-07-01,X,9\n2016-08-04,A,1\n2016-08-09,A,2\n2016-08-09,B,3\n2016-08-10,B,4\n"
    )
    (tmp_path / "gaps.py").write_text(GAPS)
    with trellis.connect(processes.info["url"]) as grid:
        import_files(grid, "gaps.daily", [tmp_path / "gaps.csv"])
        done = cli("deploy", str(tmp_path / "gaps.py"), "--session", SESSION, "--state", str(processes.state), "--json")
        assert done.returncode == 0, done.stderr
        assert ended(processes, "gaps")["state"] == "finished"
        unit = grid.read("tests.gaps").arrow()
        notebook = load_strategies(str(tmp_path / "gaps.py"))[0].run(session=SESSION, grid=grid).arrow()
        assert unit["matrix"].to_pylist() == notebook["matrix"].to_pylist()
        days = ["2016-08-03", "2016-08-04", "2016-08-05", "2016-08-08", "2016-08-09", "2016-08-10"]
        values = [[None, 1, None, None, 2, None], [None, None, None, None, 3, 4], [None] * 6]
        told = [[float("nan") if v is None else float(v) for v in row] for row in values]
        assert unit["matrix"].to_pylist() == [f"XNYS {days} {row}" for row in told]
        read = grid.read("gaps.daily", "close", ["A", "B", "X"], start="2016-08-03", end="2016-08-11")
        wide = read.wide("close", calendar="XNYS")
        assert [f"XNYS {wide.sessions} {wide[s].tolist()}" for s in "ABX"] == unit["matrix"].to_pylist()


def test_the_same_source_is_the_same_bundle(processes, tmp_path):
    body = "return ctx.frame(symbol=px.symbols, x=px.wide('close')[-1])"
    first = json.loads(deploy(processes, tmp_path, "same", body).stdout)[0]
    assert ended(processes, "same")["last_run"]["duplicate"] is False
    again = json.loads(deploy(processes, tmp_path, "same", body).stdout)[0]
    assert again["digest"] == first["digest"]
    run = until(lambda: (p := ended(processes, "same"))["deployed_ns"] == again["deployed_ns"] and p, "the second run")
    assert run["last_run"]["duplicate"] is True
    other = json.loads(deploy(processes, tmp_path, "same", body + "  # changed").stdout)[0]
    assert other["digest"] != first["digest"]


@pytest.mark.parametrize(
    ("name", "body", "told"),
    [
        ("raises", "raise ValueError('no good')", "no good"),
        ("exits", "sys.exit(9)", "9"),
        ("dies", "os._exit(11)", "11"),
        ("crashes", "os.kill(os.getpid(), 11)", "SIGSEGV"),
        ("wrong", "return ctx.frame(symbol=['A'], y=[1.0])", "y"),
        ("missing", "return ctx.frame(symbol=['A'], x=[np.nan])", "x"),
        ("none", "return None", "nothing"),
    ],
)
def test_a_unit_that_fails_is_told_and_publishes_nothing(processes, tmp_path, name, body, told):
    deploy(processes, tmp_path, name, body)
    process = ended(processes, name)
    assert process["state"] == "failed" and told in json.dumps(process), process
    assert "a line of the strategy" in pathlib.Path(process["log"]).read_text()
    with trellis.connect(processes.info["url"]) as grid:
        assert f"tests.{name}" not in grid.datasets() or len(grid.read(f"tests.{name}")) == 0
        assert len(grid.read("equities.daily", ["close"], "KO")) > 2000


def test_the_output_of_another_unit_is_published_only_by_taking_it_over(processes, tmp_path):
    body = "return ctx.frame(symbol=px.symbols, x=1.0)"
    deploy(processes, tmp_path, "owner", body)
    assert ended(processes, "owner")["state"] == "finished"
    deploy(processes, tmp_path, "renamed", body, output="owner")
    refused = ended(processes, "renamed")
    assert refused["state"] == "failed" and "tests.owner is the output of unit owner" in refused["note"], refused
    taken = json.loads(deploy(processes, tmp_path, "renamed", body, "--take-over", output="owner").stdout)[0]
    run = until(lambda: (p := ended(processes, "renamed"))["deployed_ns"] == taken["deployed_ns"] and p, "the run")
    assert run["state"] == "finished", run


def test_a_deploy_that_waits_prints_the_result_and_exits_as_the_run_did(processes, tmp_path):
    body = "return ctx.frame(symbol=px.symbols, x=1.0)"
    done = cli(*deploying(processes, tmp_path, "waited", body), "--wait")
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.startswith("waited  sha256:") and "succeeded: 2 rows of 2016-08-10 in tests.waited" in done.stdout
    )
    failed = cli(*deploying(processes, tmp_path, "waited_bad", "raise ValueError('no good')"), "--wait")
    assert failed.returncode == 3 and "waited_bad" in failed.stdout and "failed: " in failed.stdout
    assert "raised ValueError: no good" in failed.stderr and 'waited_bad.py", line' in failed.stderr
    assert "Traceback" not in failed.stderr and "trellis/run.py" not in failed.stderr
    saturday = [w.replace(SESSION, "2016-08-13") for w in deploying(processes, tmp_path, "waited_no_day", body)]
    refused = cli(*saturday, "--wait")
    assert refused.returncode == 3 and "2016-08-13 is no session of XNYS" in refused.stderr, refused
    assert not (processes.state / "units" / "waited_no_day.json").exists()
    refused = cli(*deploying(processes, tmp_path, "waited_other", body, output="waited"), "--wait")
    assert refused.returncode == 3 and "tests.waited is the output of unit waited" in refused.stderr, refused


def test_a_deploy_that_waits_says_for_what_and_an_interrupt_ends_the_wait_and_not_the_unit(processes, tmp_path):
    unit = deploying(processes, tmp_path, "waits_for_rows", "return ctx.frame(symbol=px.symbols, x=1.0)")
    argv = [*TRELLIS, *(word.replace(SESSION, "2027-01-04") for word in unit), "--wait"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as waiting:
        waits = "deploying: waits_for_rows waits for equities.daily (input px) to reach 2027-01-04"
        assert any(line.startswith(waits) for line in waiting.stderr)
        waiting.send_signal(signal.SIGINT)
        _, told = waiting.communicate(timeout=WAIT_S)
        assert waiting.returncode == 128 + signal.SIGINT and "Traceback" not in told
        assert "`trellis undeploy waits_for_rows` ends it" in told
    assert processes.processes()["waits_for_rows"]["state"] == "running"
    assert cli("undeploy", "waits_for_rows", "--state", str(processes.state)).returncode == 0


def test_a_deploy_never_says_that_it_runs_and_a_failure_is_told_where_the_unit_is(processes, tmp_path):
    done = cli(*deploying(processes, tmp_path, "fails_later", "raise ValueError('no good')"))
    assert "fails_later  sha256:" in done.stdout and "running" not in done.stdout
    assert ended(processes, "fails_later")["state"] == "failed"
    shown = next(li for li in cli("status", "--state", str(processes.state)).stdout.splitlines() if "fails_later" in li)
    assert "failed" in shown and "2016-08-10 failed at 2" in shown and "raised ValueError: no good" in shown


def test_a_unit_by_schedule_says_what_it_waits_for(processes):
    done = cli("deploy", str(EXAMPLES / "amzn_short.py"), "--wait", "--state", str(processes.state))
    waits = "waits for equities.daily (input px) to reach 20"
    assert done.returncode == 0 and f"deployed: {waits}" in done.stdout, done
    assert "it has come to 2018-02-07" in done.stdout
    told = json.loads(cli("status", "--state", str(processes.state), "--json").stdout)
    status = next(p for p in told["processes"] if p["name"] == "amzn_vol")["status"]
    assert status["state"] == "waiting" and waits in status["note"] and status["session"] > "2018-02-07"
    assert waits in cli("status", "--state", str(processes.state)).stdout
    once = cli("deploy", str(EXAMPLES / "amzn_short.py"), "--session", "2016-08-10", "--state", str(processes.state))
    assert "amzn_vol ran by its schedule until now" in once.stderr, once


def test_the_last_run_of_a_unit_is_told_though_its_process_is_a_new_one(tmp_path, monkeypatch):
    monkeypatch.setattr("trellis.cli.up.find_program", str)
    monkeypatch.setattr(Up, "_start", lambda up, child: None)
    unit = {"unit": "daily", "digest": "sha256:00", "manifest": "daily.json", "session": None, "deployed_ns": 1}
    local.write_json(tmp_path / "units" / "daily.json", unit)
    run = {"outcome": "succeeded", "session": SESSION, "finished_at": "2016-08-10T20:20:05Z", "rows": 2, "version": 7}
    up = Up(tmp_path, 1, 1, print)
    up._watch_units()
    up._said(up.children[0], json.dumps({**run, "error_line": ""}).encode())

    again = Up(tmp_path, 1, 1, print)
    again._watch_units()
    told = again.children[0].describe()
    assert told["last_run"] is None and told["previous_run"]["version"] == 7
    assert _unit_cells(told)[-1] == "2016-08-10 succeeded at 2016-08-10T20:20:05Z: 2 rows, version 7"


def test_progress_of_a_strategy_is_in_the_status(processes, tmp_path):
    body = "ctx.progress(3, 10, 'pairs'); time.sleep(100)"
    cli(*deploying(processes, tmp_path, "slow", body))
    status = until(lambda: (s := processes.processes()["slow"]["status"]) and s.get("progress") and s, "progress")
    assert status["note"] == "runs 2016-08-10: 3 of 10: pairs" and status["state"] == "running"
    # while the unit runs, a notebook is refused with a hint how to end it
    with trellis.connect(processes.info["url"]) as grid, pytest.raises(Conflict) as refused:
        grid.release("tests.slow")
    assert "`trellis undeploy slow`" in refused.value.hint
    done = cli("undeploy", "slow", "--state", str(processes.state))
    assert (done.returncode, done.stdout) == (0, "undeployed slow\n"), done
    assert "slow" not in processes.processes()
    again = cli("undeploy", "slow", "--state", str(processes.state))
    assert again.returncode == 3 and "no unit slow is deployed" in again.stderr


def test_a_grid_deploys_to_itself_wherever_the_caller_stands(processes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    body = "return ctx.frame(symbol=px.symbols, x=1.0)"
    strategy = load_strategies(deploying(processes, tmp_path, "of_grid", body)[1])[0]
    with trellis.connect(processes.info["url"]) as grid:
        unit = grid.deploy(strategy, session=SESSION, wait=True)[0]
        assert unit["last_run"]["outcome"] == "succeeded" and len(grid.read("tests.of_grid")) == 2
    assert processes.processes()["of_grid"]["deployed_ns"] == unit["deployed_ns"]
    assert not (tmp_path / ".trellis").exists()
    with trellis.connect("embedded://") as grid, pytest.raises(BadRequest, match="runs no units") as refused:
        grid.deploy(strategy)
    assert "trellis up" in refused.value.hint
    by_url = cli("deploy", deploying(processes, tmp_path, "of_url", body)[1], "--no-wait", env=processes.environment())
    assert by_url.returncode == 0 and (processes.state / "units" / "of_url.json").exists(), by_url.stderr


def test_what_was_deployed_for_a_session_runs_once_unless_it_is_deployed_again(tmp_path, market_files):
    body = "return ctx.frame(symbol=px.symbols, x=1.0)"
    first = Processes(tmp_path / "state", 1, 1)
    try:
        with trellis.connect(first.info["url"]) as grid:
            fields = "open,high,low,close,volume,split"
            import_files(grid, "equities.daily", [market_files / "market.csv"], symbol_column="Name", ts_column="Date",
                         fields=fields)  # fmt: skip
        body = "return ctx.frame(symbol=['KO'], x=1.0)"
        good = deploying(first, tmp_path, "once", body, symbols=["KO"])
        bad = deploying(first, tmp_path, "once_bad", "raise ValueError('no good')", symbols=["KO"])
        assert (cli(*good, "--wait").returncode, cli(*bad, "--wait").returncode) == (0, 3)
        before = {name: ended(first, name) for name in ("once", "once_bad")}
    finally:
        first.stop()
    again = Processes(tmp_path / "state", 1, 1)
    try:
        after = {name: ended(again, name) for name in before}
        for name, process in after.items():
            assert (process["state"], process["last_run"], process["pid"]) == (
                before[name]["state"], before[name]["last_run"], None,
            )  # fmt: skip
        assert "once: starting" not in again.said()
        with trellis.connect(again.info["url"]) as grid:
            runs = len(grid.read("trellis.runs"))
        rerun = json.loads(cli(*good, "--wait", "--json").stdout)[0]
        assert rerun["last_run"]["outcome"] == "succeeded"
        with trellis.connect(again.info["url"]) as grid:
            assert len(grid.read("trellis.runs")) == runs + 1
    finally:
        again.stop()


def test_a_detached_grid_is_ready_when_the_command_returns_and_ends_on_demand(tmp_path):
    state = tmp_path / "state"
    started = cli("up", "--detach", "--state", str(state), "--json")
    assert started.returncode == 0, started.stderr
    with trellis.connect(json.loads(started.stdout)["url"]) as grid:
        assert grid.datasets() == []
    second = cli("up", "--detach", "--state", str(state))
    assert second.returncode == 5 and "already" in second.stderr and "trellis down" in second.stderr
    assert cli("down", "--state", str(state)).stdout == "the grid has ended\n"
    assert cli("down", "--state", str(state)).stdout == "no grid of `trellis up` runs here\n"
    assert cli("status", "--state", str(state)).returncode == 4


def test_status_shows_the_processes_although_a_shard_is_away(processes, monkeypatch, capsys):
    def away(grid, deadline_s):
        raise Unavailable("shard shard-1 at 127.0.0.1:9 is away")

    monkeypatch.setattr(trellis.Grid, "_described", away)
    assert main(["status", "--state", str(processes.state)]) == 0
    text = capsys.readouterr().out
    assert "shard-2" in text and "the datasets cannot be listed now: shard shard-1 at 127.0.0.1:9 is away" in text


def test_status_shows_processes_datasets_and_counters(processes):
    told = json.loads(cli("status", "--state", str(processes.state), "--json").stdout)
    assert {p["name"] for p in told["processes"]} >= {"head-0", "head-1", "shard-0", "shard-1", "shard-2"}
    assert {d["dataset"] for d in told["datasets"]} >= {"equities.daily"}
    assert len(told["heads"]) == 2
    text = cli("status", "--state", str(processes.state)).stdout
    assert "minimal union" in text and "equities.daily" in text and "running" in text


@pytest.mark.parametrize("name", ["shard-1", "head-0"])
def test_a_process_that_is_killed_is_started_again_where_it_was(processes, name):
    before = processes.processes()[name]
    os.kill(before["pid"], signal.SIGKILL)

    def back():
        now = processes.processes()[name]
        return now if now["state"] == "running" and now["pid"] not in (None, before["pid"]) else None

    after = until(back, f"{name} again")
    assert after["listen"] == before["listen"] and after["restarts"] == before["restarts"] + 1

    def whole():
        with contextlib.suppress(trellis.errors.Unavailable), trellis.connect(processes.info["url"]) as grid:
            return len(grid.read("equities.daily", ["close"], "*"))

    assert until(whole, "an answer") > 50_000
    assert name in processes.said()


def test_a_second_grid_on_the_folder_is_refused(processes):
    done = cli("up", "--state", str(processes.state), "--json")
    assert done.returncode == 5 and str(processes.up.pid) in done.stderr


def test_an_embedded_client_joins_the_processes(processes):
    with trellis.connect(f"embedded://{processes.state}") as grid:
        assert len(grid.read("equities.daily", ["close"], "KO")) > 2000
        assert len(grid.stats()) == 2


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_behind_however_it_ends(tmp_path, how):
    running = Processes(tmp_path / "state", 1, 2)
    pids = [p["pid"] for p in running.processes().values()]
    assert len(pids) == 3
    running.up.send_signal(how)
    assert running.up.wait(WAIT_S) == (0 if how != signal.SIGKILL else -signal.SIGKILL)

    def gone():
        return not any(pathlib.Path(f"/proc/{pid}").exists() for pid in pids)

    until(gone, "the end of every process")
    if how != signal.SIGKILL:
        assert not (tmp_path / "state" / "grid.json").exists()
    # the folder is free, and its data is still there
    again = Processes(tmp_path / "state", 1, 2)
    assert again.stop() == 0


def test_wrong_counts_are_refused(tmp_path):
    for heads, shards in ((0, 1), (1, 0), (1, 1000)):
        with pytest.raises(BadRequest):
            Up(tmp_path, heads, shards, print)


def test_a_grid_that_cannot_start_says_why_and_leaves_nothing(tmp_path):
    state = tmp_path / "state"
    state.mkdir()
    (state / "lake").write_text("not a folder")
    done = subprocess.run([*TRELLIS, "up", "--state", str(state)], capture_output=True, text=True, timeout=WAIT_S)
    assert done.returncode in (3, 4) and "lake" in done.stderr and "Traceback" not in done.stderr


def test_a_person_publishes_over_a_unit_that_runs_and_the_unit_goes_on(processes, tmp_path):
    source = tmp_path / "taken.py"
    text = STRATEGY.format(
        name="taken", output="taken", symbols=["AMZN", "KO"], body='return ctx.frame(symbol=["A"], x=[1.0])'
    )
    source.write_text(text.replace("retries=0,", 'retries=0, schedule=trellis.at_close("XNYS"),'))
    assert cli("deploy", str(source), "--state", str(processes.state)).returncode == 0
    (taken,) = load_strategies(str(source))
    with trellis.connect(processes.info["url"]) as grid:

        def runs_again():
            try:
                taken.run(session=SESSION, grid=grid, publish=True)
            except Conflict as running:
                assert "tests.taken is published by a running process of unit taken (" in running.message
                return True
            return False

        assert until(runs_again, "the unit holds its lease")
        taken.run(session=SESSION, grid=grid, publish=True, take_over=True)
        assert grid.read("tests.taken").arrow()["x"].to_pylist() == [1.0]
        until(runs_again, "the unit has taken the next epoch")
        assert grid.read("tests.taken").arrow()["x"].to_pylist() == [1.0]
    unit = processes.processes()["taken"]
    assert (unit["state"], unit["restarts"]) == ("running", 0)
