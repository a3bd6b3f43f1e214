"""A cache of answers as of a fixed time, for reads that repeat."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

from .. import _trellis

# the bytes of kept answers of each Grid; one answer may take a quarter of it
PINNED_BYTES_MAX = 64 << 20


class Pinned:
    """A cache of answers as of a fixed time: such an answer does not change.

    It keeps only answers whose receipt says that they have everything known at that time. A kept answer has the fields
    of its first read until this Grid alters or drops the dataset. The least recently used answers go first.
    """

    def __init__(self) -> None:
        self.answers: OrderedDict[tuple[Any, ...], tuple[_trellis.Rows, dict[str, Any]]] = OrderedDict()
        self.nbytes = 0
        self.lock = threading.Lock()

    def get(self, question: tuple[Any, ...]) -> tuple[_trellis.Rows, dict[str, Any]] | None:
        with self.lock:
            answer = self.answers.get(question)
            if answer is not None:
                self.answers.move_to_end(question)
            return answer

    def put(self, question: tuple[Any, ...], rows: _trellis.Rows, reply: dict[str, Any]) -> None:
        final = reply["known_through_ns"] == reply["as_of_ns"] and not reply["stale"]
        if not final or rows.nbytes > PINNED_BYTES_MAX // 4:
            return
        with self.lock:
            if question not in self.answers:
                self.nbytes += rows.nbytes
            self.answers[question] = rows, reply
            while self.nbytes > PINNED_BYTES_MAX:
                _, (oldest, _) = self.answers.popitem(last=False)
                self.nbytes -= oldest.nbytes

    def forget(self, dataset: str) -> None:
        with self.lock:
            for question in [question for question in self.answers if question[0] == dataset]:
                rows, _ = self.answers.pop(question)
                self.nbytes -= rows.nbytes
