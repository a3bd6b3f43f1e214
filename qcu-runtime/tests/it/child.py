"""A child process for tests. It speaks the protocol with only the standard library.

The partition, or the function, says what it does.
"""

import ctypes
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time

FDS_MAX = 64
HOARD = []
SEALS = 0x000F  # F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE
F_ADD_SEALS = 1033


def send(channel, message, fds=()):
    data = message if isinstance(message, bytes) else json.dumps(message).encode()
    socket.send_fds(channel, [data], list(fds)) if fds else channel.send(data)


def raised(kind, message):
    return {"error": {"kind": "raised", "type": kind, "message": message, "traceback": "Traceback ..."}}


def write_pid():
    with open("pid", "w") as f:
        f.write(str(os.getpid()))
    os.rename("pid", "child.pid")


def run(channel, request, fds, function):
    mode = request["partition"] or function.replace("_", " ")
    if mode == "echo":  # returns its first input
        print("hello from the strategy", flush=True)
        send(channel, {"op": "progress", "done": 1, "total": 2, "note": "half"})
        send(channel, {"ok": "result", "columns": ["symbol", "ts", "close"]}, fds[:1])
    elif mode == "echo and exit":
        send(channel, {"ok": "result", "columns": ["symbol", "ts", "close"]}, fds[:1])
        os._exit(0)
    elif mode == "hoard and echo":
        HOARD.append(b"x" * (200 << 20))
        send(channel, {"ok": "result", "columns": ["symbol", "ts", "close"]}, fds[:1])
    elif mode == "raise":
        send(channel, raised("KeyError", "'close'"))
    elif mode == "memory error":
        send(channel, raised("MemoryError", ""))
    elif mode == "segv":
        print("about to crash", file=sys.stderr, flush=True)
        ctypes.string_at(0)
    elif mode == "exit 3":
        os._exit(3)
    elif mode == "loop":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        write_pid()
        while True:
            pass
    elif mode == "wait":  # waits for a file, then returns its first input
        write_pid()
        while not os.path.exists("go"):
            time.sleep(0.01)
        send(channel, {"ok": "result", "columns": ["symbol", "ts", "close"]}, fds[:1])
    elif mode == "grandchild":
        sleeper = subprocess.Popen(["sleep", "300"])
        print(f"sleeper {sleeper.pid}", flush=True)
        send(channel, {"op": "progress", "note": str(sleeper.pid)})
        time.sleep(300)
    elif mode == "memory":
        hoard = []
        while True:
            hoard.append(b"x" * (8 << 20))
    elif mode == "unsealed":
        fd = os.memfd_create("x", os.MFD_ALLOW_SEALING)
        os.write(fd, b"x" * 4096)
        send(channel, {"ok": "result", "columns": []}, [fd])
    elif mode == "not arrow":
        fd = os.memfd_create("x", os.MFD_ALLOW_SEALING)
        os.write(fd, b"x" * 4096)
        fcntl.fcntl(fd, F_ADD_SEALS, SEALS)
        send(channel, {"ok": "result", "columns": []}, [fd])
    elif mode == "no table":
        send(channel, {"ok": "result", "columns": []})
    elif mode == "other columns":
        send(channel, {"ok": "result", "columns": ["a"]}, fds[:1])
    elif mode == "garbage":
        send(channel, b"not json")
    elif mode == "loaded again":
        send(channel, {"ok": "loaded"})
    elif mode == "close":
        channel.close()
        time.sleep(300)
    elif mode == "environment":
        kept = [k for k in os.environ if k.startswith(("TRELLIS_", "AWS_", "OTEL_"))]
        send(channel, raised(",".join(kept) or "none", os.environ.get("OMP_NUM_THREADS", "")))


def main():
    channel = socket.socket(fileno=3)
    function = ""
    while True:
        data, fds, _, _ = socket.recv_fds(channel, 1 << 17, FDS_MAX)
        if not data:
            return
        request = json.loads(data)
        if request["op"] == "load":
            function = request["function"]
            if request["module"] == "missing.py":
                send(channel, raised("ModuleNotFoundError", "No module named 'numpyy'"))
            else:
                send(channel, {"ok": "loaded"})
        else:
            run(channel, request, fds, function)
        for fd in fds:
            os.close(fd)


main()
