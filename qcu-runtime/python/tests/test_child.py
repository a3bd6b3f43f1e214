"""The Python child of `qcu`: the tests send it packets over a socket and tables in sealed memfds, as `qcu` does."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from conftest import WAIT_S

from trellis import _trellis
from trellis._columns import make_frame

SOURCE = """
import sys, os
import trellis

@trellis.strategy("unit", output=trellis.output("tests.unit", x="float64"),
    inputs=dict(px=trellis.series("a.b", ["close"], lookback="1 session")))
def compute(ctx, px):
    what = px.arrow()["what"][0].as_py()
    if what == "raise": raise KeyError("close")
    if what == "exit": sys.exit(3)
    if what == "die": os._exit(4)
    if what == "nothing": return None
    if what == "connect": trellis.connect("embedded://")
    if what == "progress": ctx.progress(1, 2, "half")
    assert px.receipt.rows == 1 and ctx.session == "2016-08-10"
    return ctx.frame(symbol=["A"], x=px.wide("close")[-1])
"""

RECEIPT = {
    "dataset": "a.b", "calendar": "", "as_of_ns": 5, "known_through_ns": 5, "version_min": 1, "version_max": 1,
    "watermark_ns": None, "rows": 1, "bytes": 8, "chunks_hit": 0, "chunks_joined": 0, "chunks_fetched": 1,
    "rows_fetched": 1, "shards": ["shard-0"], "stale": False, "elapsed_us": 10, "queued_us": 0, "head": "head-0",
}  # fmt: skip


class Parent:
    def __init__(self, folder):
        self.folder = folder
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(WAIT_S)
        # the child gets the socket as descriptor 3
        again = f"os.execv({sys.executable!r}, [{sys.executable!r}, '-m', 'trellis._child'])"
        start = f"import os; os.dup2({theirs.fileno()}, 3); {again}"
        self.child = subprocess.Popen([sys.executable, "-c", start], pass_fds=[theirs.fileno()], stdout=subprocess.PIPE)
        theirs.close()

    def ask(self, packet, tables=()):
        fds = [_trellis.table_to_fd(t._rows) for t in tables]
        socket.send_fds(self.socket, [json.dumps(packet).encode()], fds)
        for fd in fds:
            os.close(fd)
        return self.hear()

    def hear(self):
        packet, fds, _, _ = socket.recv_fds(self.socket, 1 << 17, 8)
        return (json.loads(packet) if packet else None), fds

    def load(self, module="unit.py", unit="unit", function="compute"):
        packet = {"op": "load", "bundle": str(self.folder), "module": module, "unit": unit, "function": function}
        return self.ask(packet)[0]

    def run(self, what):
        ts = np.zeros(1, dtype="datetime64[ns]")
        table = make_frame({"symbol": ["A"], "ts": ts, "close": [2.5], "what": [what]})
        window = {"calendar": "24/7", "start_ns": 0, "end_ns": 86_400_000_000_000}
        inputs = [{"name": "px", "receipt": RECEIPT, "window": window}]
        packet = {
            "op": "run",
            "session": "2016-08-10",
            "run_id": "0" * 32,
            "as_of": "x",
            "partition": "",
            "inputs": inputs,
        }
        return self.ask(packet, [table])


@pytest.fixture
def parent(tmp_path):
    (tmp_path / "unit.py").write_text(SOURCE)
    parent = Parent(tmp_path)
    yield parent
    parent.socket.close()
    assert parent.child.wait(WAIT_S) is not None


def test_a_run_is_a_table_in_and_a_table_out(parent):
    assert parent.load() == {"ok": "loaded"}
    for _ in range(3):
        reply, (fd,) = parent.run("go")
        assert reply == {"ok": "result", "columns": ["symbol", "x"]}
        assert pa.table(_trellis.map_table(fd)).to_pylist() == [{"symbol": "A", "x": 2.5}]


def test_progress_comes_before_the_result(parent):
    parent.load()
    reply, _ = parent.run("progress")
    assert reply == {"op": "progress", "done": 1, "total": 2, "note": "half"}
    assert parent.hear()[0]["ok"] == "result"


@pytest.mark.parametrize(
    ("what", "kind", "message"),
    [
        ("raise", "KeyError", "close"),
        ("exit", "SystemExit", "sys.exit(3)"),
        ("nothing", "StrategyError", "nothing"),
        ("connect", "BadRequest", "strategy unit calls connect() while it runs"),
    ],
)
def test_a_failed_run_is_told_and_the_next_one_works(parent, what, kind, message):
    parent.load()
    error = parent.run(what)[0]["error"]
    assert (error["kind"], error["type"]) == ("raised", kind) and message in error["message"]
    if what != "nothing":
        assert "unit.py" in error["traceback"] and "_child.py" not in error["traceback"]
    assert parent.run("go")[0]["ok"] == "result"


def test_a_child_that_dies_closes_the_socket(parent):
    parent.load()
    assert parent.run("die")[0] is None
    assert parent.child.wait(WAIT_S) == 4


@pytest.mark.parametrize(
    ("load", "kind"),
    [
        (dict(module="nowhere.py"), "FileNotFoundError"),
        (dict(function="nope"), "LookupError"),
        (dict(unit="x"), "LookupError"),
    ],
)
def test_a_strategy_that_cannot_be_loaded_is_told(parent, load, kind):
    assert parent.load(**load)["error"]["type"] == kind


def test_the_parent_closing_means_exit(parent):
    parent.load()
    parent.socket.close()
    assert parent.child.wait(WAIT_S) == 0
