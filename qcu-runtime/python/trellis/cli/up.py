"""`trellis up`: runs a grid of processes on this machine, and restarts those that die.

One thread does everything. It wakes up on signals, on output of a child, and a few times a second. A child that dies is
started again with its old address; the delay grows each time that it dies early. Children die when this process ends,
however that happens: the kernel signals them when the *thread* that started them ends (`PR_SET_PDEATHSIG`). This is
another reason to have one thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import json
import os
import pathlib
import selectors
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from typing import Any

from .._grids import local
from ..errors import BadRequest, Conflict, TrellisError, Unavailable

# from starting a server to its ready line; opening a lake with long logs takes seconds
READY_WAIT_S = 60.0
# time for running calls to finish after a process is told to end
DRAIN_MS = 10_000
# a process that has not ended this long after the signal is stuck
KILL_AFTER_S = DRAIN_MS / 1000 + 2
# how often the units' folder and due restarts are checked
TICK_S = 0.2
# delays of restarts: the first is nearly at once; a process that cannot run is tried twice a minute
BACKOFF_S = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
# a process that ran for this long starts well: its next restart is quick again
HEALTHY_S = 60.0
LOG_TAIL_LINES = 15
# The TRELLIS_* variables that each kind of program gets from this process's environment. The programs refuse variables
# that they do not know, to catch misspelt ones, so the others are left out.
HANDED_ON = {
    "shard": ["TRELLIS_LOG", "TRELLIS_LOG_FORMAT"],
    "head": [
        "TRELLIS_LOG",
        "TRELLIS_LOG_FORMAT",
        "TRELLIS_CACHE_BYTES",
        "TRELLIS_ANSWER_BYTES",
        "TRELLIS_ANSWER_ROWS",
        "TRELLIS_GRACE_MS",
    ],
    "qcu": ["TRELLIS_LOG", "TRELLIS_LOG_FORMAT"],
}
_PR_SET_PDEATHSIG = 1
# looked up here because nothing may be imported between fork and exec
_PRCTL = ctypes.CDLL(None, use_errno=True).prctl


class State(enum.Enum):
    """The state of a child: starting -> running -> (waiting -> starting) | finished | failed; stopping from any."""

    STARTING = "starting"
    RUNNING = "running"
    # died, and will be started again
    WAITING = "waiting"
    STOPPING = "stopping"
    # ended, with nothing left to do
    FINISHED = "finished"
    # will not be started again: its configuration or its code is wrong
    FAILED = "failed"


class Child:
    """One process of the grid."""

    def __init__(self, name: str, role: str, argv: list[str], env: dict[str, str], log: pathlib.Path) -> None:
        self.name = name
        self.role = role
        self.argv = argv
        self.env = env
        self.log = log
        self.state = State.WAITING
        self.process: subprocess.Popen[bytes] | None = None
        self.listen = ""
        self.note = ""
        self.restarts = 0
        self.soon_deaths = 0
        self.started = 0.0
        self.due = 0.0
        self.output = b""
        # of a unit: its file in units/, its last status, its last run, and its exit status
        self.unit: dict[str, Any] | None = None
        self.status: dict[str, Any] | None = None
        self.last_run: dict[str, Any] | None = None
        # the last run of the unit's earlier processes
        self.previous_run: dict[str, Any] | None = None
        self.exit_status: int | None = None

    def describe(self) -> dict[str, Any]:
        """Its entry in processes.json, which `trellis status` shows."""
        running = self.process is not None and self.process.poll() is None
        return {
            "name": self.name,
            "role": self.role,
            "state": self.state.value,
            "pid": self.process.pid if running and self.process else None,
            "listen": self.listen,
            "restarts": self.restarts,
            "note": self.note,
            "log": str(self.log),
            **(self._of_unit(self.unit) if self.unit else {}),
        }

    def _of_unit(self, unit: dict[str, Any]) -> dict[str, Any]:
        return {
            "session": unit.get("session"),
            "deployed_ns": unit["deployed_ns"],
            "digest": unit["digest"],
            "status": self.status,
            "last_run": self.last_run,
            "previous_run": self.previous_run,
            "exit_status": self.exit_status,
        }


class Up:
    """The grid of one state folder."""

    def __init__(self, state: pathlib.Path, heads: int, shards: int, say: Callable[[str], None]) -> None:
        for what, count in (("heads", heads), ("shards", shards)):
            if not 1 <= count <= 64:
                raise BadRequest(f"--{what} {count}: a grid on one machine may have 1 to 64")
        self.state = state.resolve()
        self.counts = (heads, shards)
        self.say = say
        self.children: list[Child] = []
        self.selector = selectors.DefaultSelector()
        self.ending = False
        self.url = ""
        self.described: Any = None
        self.lock: int | None = None

    def run(self, on_ready: Callable[[dict[str, Any]], None]) -> None:
        """Starts everything, calls `on_ready`, keeps it running until SIGTERM or SIGINT, stops everything."""
        self.lock = local.must_hold(self.state)
        local.announce(self.lock, "", "up")
        (self.state / "logs").mkdir(parents=True, exist_ok=True)
        woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.selector.register(woken, selectors.EVENT_READ, None)
        before = signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        handlers = {s: signal.signal(s, self._on_signal) for s in (signal.SIGTERM, signal.SIGINT)}
        handlers[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
        try:
            info = self._start_all()
            if not self.ending:
                local.announce(self.lock, self.url, "up")
                local.write_json(self.state / "grid.json", info)
                on_ready(info)
            while not self.ending:
                self._step()
        finally:
            self._stop_all()
            for name in ("grid.json", "processes.json"):
                (self.state / name).unlink(missing_ok=True)
            signal.set_wakeup_fd(before)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            os.close(self.lock)

    def _on_signal(self, number: int, _frame: object) -> None:
        if not self.ending:
            self.say(f"{signal.Signals(number).name}: stopping")
        self.ending = True

    # --- starting

    def _start_all(self) -> dict[str, Any]:
        heads, shards = self.counts
        lake = self.state / "lake"
        lake.mkdir(exist_ok=True)
        shard_children = []
        for i in range(shards):
            env = {"TRELLIS_LAKE": str(lake), "TRELLIS_SHARD_INDEX": str(i), "TRELLIS_SHARD_COUNT": str(shards)}
            shard_children.append(self._server(f"shard-{i}", "shard", "shard", env))
        self._await_ready(shard_children)
        peers = "static://" + ",".join(c.listen for c in shard_children)
        head_children = [
            self._server(f"head-{i}", "head", "head-node", {"TRELLIS_SHARDS": peers, "TRELLIS_STATE": str(self.state)})
            for i in range(heads)
        ]
        self._await_ready(head_children)
        addresses = [c.listen for c in head_children]
        self.url = "static://" + ",".join(addresses)
        return {
            "url": self.url,
            "heads": addresses,
            "shards": [c.listen for c in shard_children],
            "state": str(self.state),
            "pid": os.getpid(),
        }

    def _server(self, name: str, role: str, program: str, env: dict[str, str]) -> Child:
        listen = {"TRELLIS_ID": name, "TRELLIS_LISTEN": "127.0.0.1:0", "TRELLIS_DRAIN_MS": str(DRAIN_MS)}
        child = Child(name, role, [find_program(program)], {**listen, **env}, self._log(name))
        self.children.append(child)
        self._start(child)
        return child

    def _log(self, name: str) -> pathlib.Path:
        return self.state / "logs" / f"{name}.log"

    def _await_ready(self, children: list[Child]) -> None:
        deadline = time.monotonic() + READY_WAIT_S
        while not self.ending and any(c.state is not State.RUNNING for c in children):
            self._step()
            for child in children:
                if child.state in (State.WAITING, State.FAILED) or child.note:
                    raise self._did_not_start(child, child.note)
            if time.monotonic() > deadline:
                late = next(c for c in children if c.state is not State.RUNNING)
                raise self._did_not_start(late, f"not ready after {READY_WAIT_S:.0f} s")

    def _did_not_start(self, child: Child, why: str) -> TrellisError:
        return Unavailable(f"{child.name} did not start: {why}\n{log_tail(child.log)}", hint=f"its log is {child.log}")

    def _start(self, child: Child) -> None:
        parent = os.getpid()

        def die_with_parent() -> None:
            _PRCTL(_PR_SET_PDEATHSIG, signal.SIGTERM)
            # the parent may have died before the call took effect
            if os.getppid() != parent:
                os._exit(1)

        try:
            with open(child.log, "ab") as log:
                child.process = subprocess.Popen(
                    child.argv,
                    env=environment(child.role, child.env),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    # Ctrl-C in the terminal must reach this process only: it stops the children in order
                    process_group=0,
                    preexec_fn=die_with_parent,
                )
        except OSError as error:
            # The program may just be replaced, or the disk be full: the other processes go on.
            child.note = f"cannot be started: {error}"
            self._try_again(child)
            return
        assert child.process.stdout is not None
        os.set_blocking(child.process.stdout.fileno(), False)
        self.selector.register(child.process.stdout, selectors.EVENT_READ, child)
        child.output = b""
        child.started = time.monotonic()
        child.state = State.STARTING
        child.note = ""
        child.status = child.exit_status = None

    # --- running

    def _step(self) -> None:
        for key, _ in self.selector.select(TICK_S):
            if key.data is None:
                with contextlib.suppress(BlockingIOError):
                    os.read(key.fd, 4096)
            else:
                self._read(key.data)
        for child in self.children:
            if child.process is not None and child.process.poll() is not None:
                self._ended(child)
        if not self.ending and self.url:
            self._watch_units()
            now = time.monotonic()
            for child in self.children:
                if child.state is State.WAITING and child.due <= now:
                    child.restarts += 1
                    self._start(child)
        described = [c.describe() for c in self.children]
        if described != self.described:
            self.described = described
            local.write_json(self.state / "processes.json", described)

    def _read(self, child: Child) -> None:
        process = child.process
        if process is None or process.stdout is None:
            return
        try:
            data = os.read(process.stdout.fileno(), 65_536)
        except BlockingIOError:
            return
        if not data:
            self._close_output(child)
            return
        with open(child.log, "ab") as log:
            log.write(data)
        child.output += data
        *lines, child.output = child.output.split(b"\n")
        for line in lines:
            self._said(child, line)

    def _said(self, child: Child, line: bytes) -> None:
        """Handles a line of JSON from a child: it is ready, or a unit's status, or the result of a unit's run."""
        try:
            said = json.loads(line)
            if "status" in said:
                child.status = said["status"]
            elif "outcome" in said:
                child.last_run = said
                local.write_json(self._ran(child.name), said)
            elif said["ready"] and child.state is State.STARTING:
                if "listen" in said:
                    child.listen = said["listen"]
                    # other processes know the address: the next process must have the same
                    child.env["TRELLIS_LISTEN"] = child.listen
                child.state = State.RUNNING
        except (ValueError, KeyError, TypeError):
            child.note = f"printed a line that is not JSON of the grid: {line[:200]!r}"

    def _close_output(self, child: Child) -> None:
        if child.process is not None and child.process.stdout is not None:
            with contextlib.suppress(KeyError, ValueError):
                self.selector.unregister(child.process.stdout)
            child.process.stdout.close()
            child.process.stdout = None

    def _ended(self, child: Child) -> None:
        assert child.process is not None
        self._read(child)
        self._close_output(child)
        status, child.process = child.process.returncode, None
        lived = time.monotonic() - child.started
        if child.state is State.STOPPING:
            return
        how = f"ended by {signal.Signals(-status).name}" if status < 0 else f"exited with {status}"
        child.note = f"{how} after {lived:.1f} s" + (last_words(child) if status > 0 else "")
        child.status, child.exit_status = None, status
        if child.role == "qcu" and status == 0:
            child.state, child.note = State.FINISHED, ""
            self._remember(child)
            return
        # After exit codes 2, 3 and 5 a restart would fail the same way. A unit that was deployed for one session has
        # made all its attempts.
        if child.unit is not None and (status in (2, 3, 5) or (status > 0 and child.unit.get("session"))):
            if child.last_run and child.last_run.get("error"):
                child.note = child.last_run["error_line"]
            child.state = State.FAILED
            self._remember(child)
            self.say(f"{child.name} {child.note}; not started again\n{log_tail(child.log)}")
            return
        if lived > HEALTHY_S:
            child.soon_deaths = 0
        self._try_again(child)

    def _remember(self, child: Child) -> None:
        """Writes down the end of a unit that was deployed for one session: it does not run again with the next grid."""
        run = child.last_run
        if child.unit and child.unit.get("session") and run and run["outcome"] != "cancelled":
            ended = {"state": child.state.value, "note": child.note, "last_run": run, "exit_status": child.exit_status}
            local.write_json(self._done(child.name), {"deployed_ns": child.unit["deployed_ns"], **ended})

    def _done(self, unit: str) -> pathlib.Path:
        return self.state / "done" / f"{unit}.json"

    def _ran(self, unit: str) -> pathlib.Path:
        return self.state / "ran" / f"{unit}.json"

    def _try_again(self, child: Child) -> None:
        delay = BACKOFF_S[min(child.soon_deaths, len(BACKOFF_S) - 1)]
        child.soon_deaths += 1
        child.state = State.WAITING
        child.due = time.monotonic() + delay
        if self.url:
            self.say(f"{child.name} {child.note}; starting it again in {delay:g} s (log: {child.log})")

    def _watch_units(self) -> None:
        units: dict[str, Any] = {}
        for path in sorted((self.state / "units").glob("*.json")):
            unit = local.read_json(path)
            if isinstance(unit, dict) and unit.get("unit"):
                units[unit["unit"]] = unit
        for child in [c for c in self.children if c.role == "qcu"]:
            wanted = units.pop(child.name, None)
            if wanted == child.unit:
                continue
            if child.process is not None:
                # the new process starts when the old one has ended: one publisher at a time
                if child.state is not State.STOPPING:
                    child.state = State.STOPPING
                    child.process.terminate()
                    child.due = time.monotonic() + KILL_AFTER_S
                elif time.monotonic() > child.due:
                    kill_group(child.process)
                if wanted is not None:
                    units[child.name] = None
                continue
            self.children.remove(child)
            if wanted is not None:
                units[child.name] = wanted
        for unit in filter(None, units.values()):
            child = Child(
                unit["unit"], "qcu", [find_program("qcu")], self._unit_env(unit), self._log(f"qcu-{unit['unit']}")
            )
            child.unit = unit
            child.previous_run = local.read_json(self._ran(child.name))
            self.children.append(child)
            done = local.read_json(self._done(child.name))
            # done/ counts only for the same deploy: a new deploy runs again
            if done and unit.get("session") and done["deployed_ns"] == unit["deployed_ns"]:
                child.state, child.note = State(done["state"]), done["note"]
                child.last_run, child.exit_status = done["last_run"], done["exit_status"]
                continue
            self.say(f"{child.name}: starting, code {unit['digest'][:19]}")
            self._start(child)

    def _unit_env(self, unit: dict[str, Any]) -> dict[str, str]:
        env = {
            "TRELLIS_URL": self.url,
            "TRELLIS_UNIT_FILE": str(self.state / unit["manifest"]),
            "TRELLIS_PYTHON": sys.executable,
            "TRELLIS_DRAIN_MS": str(DRAIN_MS),
            "TRELLIS_DEPLOYMENT": str(unit["deployed_ns"]),
        }
        if unit.get("session"):
            env |= {"TRELLIS_SESSIONS": unit["session"], "TRELLIS_EXIT_WHEN_DONE": "true"}
        if unit.get("take_over"):
            env["TRELLIS_TAKE_OVER"] = "true"
        return env

    # --- stopping

    def _stop_all(self) -> None:
        # Clients stop before their servers, so that no last call fails.
        for role in ("qcu", "head", "shard"):
            stopping = [c for c in self.children if c.role == role and c.process is not None]
            for child in stopping:
                child.state = State.STOPPING
                child.process.terminate()  # type: ignore[union-attr]
            deadline = time.monotonic() + KILL_AFTER_S
            for child in stopping:
                assert child.process is not None
                try:
                    child.process.wait(max(0.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    self.say(f"{child.name} did not stop within {KILL_AFTER_S:.0f} s: killed")
                    kill_group(child.process)
                    child.process.wait()
                self._close_output(child)


def detached(state: pathlib.Path, heads: int, shards: int) -> dict[str, Any]:
    """Starts `trellis up` in the background. Returns the line that it prints when it is ready.

    Raises:
        Unavailable, Conflict, BadRequest: it ended instead; the message is its own.
    """
    state.mkdir(parents=True, exist_ok=True)
    log = state / "up.log"
    argv = [sys.executable, "-m", "trellis.cli", "up", "--heads", str(heads), "--shards", str(shards)]
    with open(log, "wb") as stderr:
        up = subprocess.Popen(
            [*argv, "--state", str(state), "--json"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,
        )
    assert up.stdout is not None
    line = up.stdout.readline()
    if line:
        return json.loads(line)
    kinds = {2: BadRequest, 3: BadRequest, 5: Conflict}
    try:
        told = json.loads(log.read_text().splitlines()[-1])
    except (ValueError, IndexError):
        told = {"message": f"the grid did not start\n{log_tail(log)}"}
    raise kinds.get(up.wait(), Unavailable)(told["message"], hint=told.get("hint", ""))


def end(state: pathlib.Path) -> bool:
    """Stops the `trellis up` of a folder, and waits until it has ended. False: none runs there."""
    found = local.holder(state)
    if found is None or found["kind"] != "up":
        return False
    os.kill(found["pid"], signal.SIGTERM)
    deadline = time.monotonic() + 2 * KILL_AFTER_S
    while (now := local.holder(state)) is not None and now["pid"] == found["pid"]:
        if time.monotonic() > deadline:
            raise Unavailable(f"`trellis up`, pid {found['pid']}, does not end", hint=f"kill -9 {found['pid']}")
        time.sleep(TICK_S)
    return True


def environment(role: str, given: dict[str, str]) -> dict[str, str]:
    """The environment of a program of the grid: this process's, without variables that the program refuses."""
    ours = {name for name in os.environ if name.startswith("TRELLIS_") and name not in HANDED_ON[role]}
    return {**{name: value for name, value in os.environ.items() if name not in ours}, **given}


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Sends SIGKILL to a child and to everything that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def find_program(name: str) -> str:
    """The path of a program of the grid: in this Python environment, else on the PATH."""
    beside = pathlib.Path(sysconfig.get_path("scripts"), name)
    found = str(beside) if beside.is_file() else shutil.which(name)
    if not found:
        raise Unavailable(
            f"the program {name} is not installed in this environment",
            hint="install the wheel with `pip install`, not with `maturin develop`, which leaves programs out",
        )
    return found


def last_words(child: Child) -> str:
    """The last line of a program's log, if it is the program's own message about its end."""
    tail = _log_lines(child.log)
    said = tail[-1] if tail else ""
    return f": {said}" if said.startswith(f"{pathlib.Path(child.argv[0]).name}: ") else ""


def log_tail(path: pathlib.Path) -> str:
    """The last lines of a log, indented for a message."""
    return "\n".join(f"    | {line}" for line in _log_lines(path))


def _log_lines(path: pathlib.Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
    except OSError:
        return []
