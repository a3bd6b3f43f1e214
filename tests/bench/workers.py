"""Clients of a target: the processes, and the object that drives them.

`Workers` starts `python workers.py TARGET CLIENTS WORLD` in the bench's environment. That process imports
the target's libraries once and forks into the clients; commands and answers are lines of JSON on its
stdin and stdout. Clients start together, at a time of the machine's monotonic clock that is late enough for
the command to reach all of them.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import threading
import time
import traceback
from importlib import metadata
from pathlib import Path
from typing import Any

# Seconds for a command to reach every client, and for threads to start. On a busy machine it may be too
# short: a late client begins at once.
LEAD_S = {"time": 0.03, "herd": 0.5}
# Seconds for a client to answer one command; filling PostgreSQL takes tens of seconds.
ANSWER_S = 300


class WorkerError(Exception):
    """A client failed at a command."""


class Workers:
    """Drives the clients of one target."""

    def __init__(self, python: Path, target: str, clients: int, world: Path, log: Path) -> None:
        self.log = log
        with log.open("w") as stderr:
            self.process = subprocess.Popen(
                [str(python), __file__, target, str(clients), str(world)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        hello = self._answer()
        self.title: str = hello["title"]
        self.versions: dict[str, str] = hello["versions"]

    def call(self, **command: Any) -> Any:
        print(json.dumps(command), file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        line = self.process.stdout.readline()
        if not line:
            tail = self.log.read_text().strip().splitlines()[-1:]
            raise WorkerError(tail[0] if tail else "its process ended")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer["answer"]

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


# --- in the bench's environment


class _Client:
    """The process of one client: it does one command after the other."""

    def __init__(self, target: Any) -> None:
        self.target = target

    def load(self) -> None:
        self.target.load()

    def connect(self) -> None:
        self.target.connect()

    def ask(self, question: dict[str, Any]) -> int:
        return self.target.ask(question)

    def time(self, question: dict[str, Any], at: float, span: float) -> tuple[list[float], float]:
        """Reads from time `at` on for `span` seconds, at least once: the seconds of each read and of all."""
        taken = []
        first = _sleep_until(at)
        while True:
            began = time.monotonic()
            self.target.ask(question)
            ended = time.monotonic()
            taken.append(ended - began)
            if ended - first >= span:
                return taken, ended - first

    def herd(self, questions: list[dict[str, Any]], at: float) -> tuple[int, float]:
        """Sends all reads at once, a thread for each. Returns the rows of all, and the end of the last."""
        rows, ended, failed = [], [], []

        def one(question: dict[str, Any]) -> None:
            try:
                _sleep_until(at)
                rows.append(self.target.ask(question))
                ended.append(time.monotonic())
            except Exception as error:
                failed.append(error)

        threads = [threading.Thread(target=one, args=(question,)) for question in questions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failed:
            raise failed[0]
        return sum(rows), max(ended)

    def run(self, pipe: Any) -> None:
        while True:
            try:
                method, arguments = pipe.recv()
            except EOFError:
                return
            try:
                pipe.send((True, getattr(self, method)(*arguments)))
            except Exception as error:
                traceback.print_exc()
                pipe.send((False, f"{type(error).__name__}: {error}"))


def _sleep_until(at: float) -> float:
    """When it is awake."""
    time.sleep(max(0.0, at - time.monotonic()))
    return time.monotonic()


class _Parent:
    """The process that forks the clients and passes commands on."""

    def __init__(self, target: Any, clients: int) -> None:
        fork = multiprocessing.get_context("fork")
        self.pipes = []
        for _ in range(clients):
            ours, theirs = fork.Pipe()
            fork.Process(target=_client, args=(target, theirs, [*self.pipes, ours]), daemon=True).start()
            theirs.close()
            self.pipes.append(ours)

    def each(self, method: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
        """Sends a command to as many clients as there are arguments, at the same time."""
        asked = self.pipes[: len(arguments)]
        for pipe, of_pipe in zip(asked, arguments, strict=True):
            pipe.send((method, of_pipe))
        answers = []
        for pipe in asked:
            if not pipe.poll(ANSWER_S):
                raise WorkerError(f"a client did not answer {method} in {ANSWER_S} s")
            answers.append(pipe.recv())
        for fine, answer in answers:
            if not fine:
                raise WorkerError(answer)
        return [answer for _, answer in answers]

    def load(self) -> None:
        self.each("load", [()])

    def connect(self) -> None:
        self.each("connect", [()] * len(self.pipes))

    def ask(self, question: dict[str, Any]) -> list[int]:
        """The number of rows that each client got."""
        return self.each("ask", [(question,)] * len(self.pipes))

    def time(self, question: dict[str, Any], clients: int, span: float) -> dict[str, float]:
        at = time.monotonic() + LEAD_S["time"]
        answers = self.each("time", [(question, at, span)] * clients)
        return {
            "p50": statistics.median(seconds for taken, _ in answers for seconds in taken),
            "rate": sum(len(taken) / all_seconds for taken, all_seconds in answers),
        }

    def herd(self, questions: list[list[dict[str, Any]]]) -> dict[str, float]:
        """A list of questions for each client."""
        at = time.monotonic() + LEAD_S["herd"]
        answers = self.each("herd", [(of_client, at) for of_client in questions])
        return {"rows": sum(rows for rows, _ in answers), "seconds": max(ended for _, ended in answers) - at}


def _client(target: Any, pipe: Any, inherited: list[Any]) -> None:
    # else a client would keep its own pipes and those of others open
    for other in inherited:
        other.close()
    _Client(target).run(pipe)


def main() -> None:
    from targets import TARGETS

    # libraries may print, so answers go to a copy of stdout
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    name, clients, world = sys.argv[1:]
    target = TARGETS[name](json.loads(Path(world).read_text()))
    parent = _Parent(target, int(clients))
    versions = {package: metadata.version(package) for package in target.packages}
    print(json.dumps({"answer": {"title": target.title, "versions": versions}}), file=answers, flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = {"answer": getattr(parent, command.pop("do"))(**command)}
        except WorkerError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
