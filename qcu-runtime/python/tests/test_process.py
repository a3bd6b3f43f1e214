"""The Python process around the grid: signals, forks, threads, exits, two processes on one folder."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from conftest import WAIT_S

import trellis

SERVER = textwrap.dedent(
    """
    import socket, sys
    # accepts connections and never answers, so that reads wait
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    print(listener.getsockname()[1], flush=True)
    kept = []
    while True:
        kept.append(listener.accept())
        print("called", flush=True)
    """
)


def python(code, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def finished(process):
    out, err = process.communicate(timeout=WAIT_S)
    return process.returncode, out, err


def test_ctrl_c_ends_a_wait_at_once():
    with python(SERVER) as server:
        port = server.stdout.readline().strip()
        waiting = python(
            """
            import sys, trellis
            print("waiting", flush=True)
            trellis.connect("grpc://127.0.0.1:" + sys.argv[1], timeout=1200)
            """,
            port,
        )
        assert waiting.stdout.readline() == "waiting\n"
        assert server.stdout.readline() == "called\n"  # it is inside the wait
        waiting.send_signal(signal.SIGINT)
        # a wait that went on would last for ten times as long
        status, _, err = finished(waiting)
        server.kill()
    assert "KeyboardInterrupt" in err and status != 0


def test_a_grid_that_is_not_there_is_told_in_time():
    before = time.monotonic()
    with pytest.raises(trellis.errors.Unavailable, match=r"127\.0\.0\.1:9") as refused:
        trellis.connect("grpc://127.0.0.1:9", timeout=1)
    assert refused.value.retryable and "trellis up" in refused.value.hint
    assert time.monotonic() - before < 20
    for url in ("ftp://x", "grpc://", "nonsense"):
        with pytest.raises(trellis.errors.BadRequest):
            trellis.connect(url)


def test_a_fork_is_told_and_may_connect_anew(folder, grid):
    status, out, err = finished(
        python(
            """
            import os, sys, trellis
            grid = trellis.connect("embedded://" + sys.argv[1])
            child = os.fork()
            if child == 0:
                try:
                    grid.read("equities.daily", ["close"], "AMZN")
                except trellis.errors.ForkedProcess as error:
                    print("told:", error, flush=True)
                with trellis.connect("embedded://" + sys.argv[1]) as own:
                    print(len(own.read("equities.daily", ["close"], "AMZN", "2016-08-08", "2016-08-11")), flush=True)
                sys.exit(0)
            _, status = os.waitpid(child, 0)
            print(os.waitstatus_to_exitcode(status), len(grid.datasets()) > 0)
            """,
            str(folder),
        )
    )
    assert status == 0, err
    told, _, rows, parent = out.splitlines()
    assert "fork" in told and rows == "3" and parent == "0 True"


def test_a_second_process_joins_and_takes_over_when_the_first_ends(tmp_path, market_files):
    first = python(
        """
        import sys, trellis
        from trellis.importing import import_files
        grid = trellis.connect("embedded://" + sys.argv[1])
        import_files(grid, "t.amzn", [sys.argv[2]], symbol="AMZN", ts_column="Date")
        print("ready", flush=True)
        sys.stdin.read()
        """,
        str(tmp_path),
        str(market_files / "AMZN.csv"),
        stdin=subprocess.PIPE,
    )
    assert first.stdout.readline() == "ready\n", first.stderr.read()
    with trellis.connect(f"embedded://{tmp_path}") as grid:
        rows = len(grid.read("t.amzn"))
        assert rows > 3000
        status, _, err = finished(first)
        assert status == 0, err
        assert len(grid.read("t.amzn")) == rows


HOLDER = """
    import sys, trellis
    from trellis.importing import import_files
    grid = trellis.connect("embedded://" + sys.argv[1])
    import_files(grid, "t.amzn", [sys.argv[2]], symbol="AMZN", ts_column="Date")
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("waiting", [False, True], ids=["between two calls", "while a call waits"])
def test_a_client_takes_over_at_once_when_the_process_that_ran_the_grid_is_killed(
    tmp_path, market_files, monkeypatch, waiting
):
    # a call that waited for its deadline would exceed this test's time
    monkeypatch.setattr("trellis._grids.link.DEADLINE_S", 100 * WAIT_S)
    holder = python(HOLDER, str(tmp_path), str(market_files / "AMZN.csv"), stdin=subprocess.PIPE)
    assert holder.stdout.readline() == "ready\n", holder.stderr.read()
    with trellis.connect(f"embedded://{tmp_path}") as grid:
        rows = len(grid.read("t.amzn"))
        answers = []
        reader = threading.Thread(target=lambda: answers.append(len(grid.read("t.amzn"))), daemon=True)
        if waiting:
            # it accepts calls and does not answer them
            holder.send_signal(signal.SIGSTOP)
            reader.start()
        holder.kill()
        holder.wait()
        if not waiting:
            reader.start()
        reader.join(WAIT_S)
        assert answers == [rows] and rows > 3000


def test_threads_read_at_the_same_time(grid):
    expected = grid.read("equities.daily", ["open"], "*").arrow()
    wrong = []

    def work():
        for _ in range(5):
            if grid.read("equities.daily", ["open"], "*").arrow() != expected:
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert not wrong and not any(t.is_alive() for t in threads)


@pytest.mark.parametrize("end", ["", "grid.close()", "del grid", "sys.exit(0)", "raise SystemExit"])
def test_the_interpreter_ends_however_the_grid_was_left(tmp_path, end):
    status, _, err = finished(
        python(
            f"""
            import pathlib, sys, threading, trellis
            pathlib.Path(sys.argv[1], "lake").mkdir()
            grid = trellis.connect("embedded://" + sys.argv[1])
            grid.datasets()
            threading.Thread(target=grid.datasets, daemon=True).start()
            {end}
            """,
            str(tmp_path),
        )
    )
    assert (status, err) == (0, "")


def test_importing_starts_nothing():
    status, out, _ = finished(
        python(
            """
            import os, sys, trellis
            threads = os.listdir("/proc/self/task")
            loaded = [m for m in ("pandas", "polars", "pyarrow") if m in sys.modules]
            print(len(threads), loaded)
            """,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )
    )
    assert status == 0 and out == "1 []\n"


@pytest.mark.parametrize("package", ["pandas", "polars", "pyarrow"])
def test_a_missing_package_is_named_with_the_command(grid, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    px = grid.read("equities.daily", ["close"], "AMZN", start="2016-08-10")
    with pytest.raises(trellis.errors.MissingPackage, match=package) as missing:
        {"pandas": px.pandas, "polars": px.polars, "pyarrow": px.arrow}[package]()
    assert missing.value.hint == f"pip install {package}"
    assert len(px.wide("close")) > 0 and px.write("csv")


def test_a_collector_that_is_away_costs_telemetry_and_nothing_else(tmp_path):
    before = time.monotonic()
    status, out, _ = finished(
        python(
            """
            import pathlib, sys, trellis
            pathlib.Path(sys.argv[1], "lake").mkdir()
            with trellis.connect("embedded://" + sys.argv[1]) as grid:
                print(grid.datasets())
            """,
            str(tmp_path),
            env={**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"},
        )
    )
    assert (status, out) == (0, "[]\n") and time.monotonic() - before < 30
