"""The Python side of a deployed unit: a child of `qcu` that runs one strategy, session after session.

The parent does everything that must survive a crash of the strategy: the lease, deadlines, retries, publishing,
telemetry. The child does only the work that needs Python. Descriptor 3 is a SOCK_SEQPACKET socket. Each packet is one
JSON object; tables travel beside it as sealed memfds. The parent speaks first. The child exits when the parent closes
the socket.

    {"op": "load", "bundle", "module", "unit", "function"}  ->  {"ok": "loaded"}
    {"op": "run", "session", "run_id", "as_of", "inputs"}   ->  {"ok": "result", "columns"} and a table
    either                                                  ->  {"error": {"kind", "type", "message", "traceback"}}
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import traceback
from typing import Any

CHANNEL_FD = 3
MESSAGE_BYTES_MAX = 128 * 1024
# one descriptor for each input
INPUTS_MAX = 64


def main() -> None:
    channel = socket.socket(fileno=CHANNEL_FD)
    os.set_inheritable(CHANNEL_FD, False)
    # Import before reading the first packet: the parent prefetches inputs meanwhile.
    from trellis import run
    from trellis._code import traceback_of

    strategy = None
    while True:
        packet, fds, _, _ = socket.recv_fds(channel, MESSAGE_BYTES_MAX, INPUTS_MAX)
        if not packet:
            return
        request = json.loads(packet)
        try:
            if request["op"] == "load":
                strategy = _load(request)
                _send(channel, {"ok": "loaded"})
            else:
                _run(channel, strategy, request, fds)
        except BaseException as error:  # SystemExit too: a run whose strategy exits has failed
            failure = {
                "kind": "raised",
                "type": type(error).__name__,
                "message": (run.exit_told(error) if isinstance(error, SystemExit) else str(error))[: 16 * 1024],
                "traceback": traceback_of(error),
            }
            # The log gets every frame; the report has only the frames of the strategy.
            traceback.print_exception(error)
            _send(channel, {"error": failure})


def _load(request: dict[str, Any]) -> Any:
    from trellis._code import inside
    from trellis.deploy import load_module
    from trellis.strategy import Strategy

    with inside.running(request["module"]):
        module = load_module(os.path.join(request["bundle"], request["module"]))
    strategy = getattr(module, request["function"], None)
    if not isinstance(strategy, Strategy) or strategy.name != request["unit"]:
        raise LookupError(f"{request['module']} has no strategy {request['unit']} named {request['function']}")
    return strategy


def _run(channel: socket.socket, strategy: Any, request: dict[str, Any], fds: list[int]) -> None:
    from trellis import Context, _trellis, run

    inputs = {}
    for declared, fd in zip(request["inputs"], fds, strict=True):
        # map_table owns the descriptor from here on; the table stays mapped as long as the Frame lives
        name, window = declared["name"], declared["window"]
        span = (window["calendar"], window["start_ns"], window["end_ns"])
        inputs[name] = run.input_frame(strategy, name, _trellis.map_table(fd), declared["receipt"], span)

    def progress(done: float | None, total: float | None, note: str | None) -> None:
        packet = {"op": "progress", "done": done, "total": total, "note": note}
        _send(channel, {k: v for k, v in packet.items() if v is not None})

    context = Context(strategy.name, request["session"], progress)
    frame = run.call(strategy, context, inputs)
    table = _trellis.table_to_fd(frame._rows)
    try:
        _send(channel, {"ok": "result", "columns": frame.columns}, [table])
    finally:
        os.close(table)


def _send(channel: socket.socket, packet: dict[str, Any], fds: list[int] | None = None) -> None:
    data = json.dumps(packet, ensure_ascii=False).encode(errors="replace")
    # Flush the strategy's prints: buffered lines belong to this run, not to the next one.
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    if fds:
        socket.send_fds(channel, [data], fds)
    else:
        channel.send(data)


if __name__ == "__main__":
    main()
