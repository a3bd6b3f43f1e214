"""The link of a `Grid`: it passes calls to a grid that runs elsewhere, or to the embedded grid of a folder."""

from __future__ import annotations

import json
import os
import pathlib
import threading
from collections.abc import Callable
from typing import Any

from .. import _trellis
from ..errors import Unavailable, UnknownDataset
from . import local

_Client = _trellis.Client

# the deadline of one call, retries included; the first large read of a cold grid takes seconds, not minutes
DEADLINE_S = 120.0


class Remote:
    """A connection to a grid that runs elsewhere. If its process holds `lock`, calls end when that process does."""

    def __init__(self, url: str, unit: str | None, timeout: float, lock: pathlib.Path | None = None) -> None:
        self.url = url
        self.client = _trellis.Client(url, unit, timeout, DEADLINE_S, lock)

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(self.client, *args)

    def close(self) -> None:
        pass


# calls whose first argument is a dataset that must exist: without a grid in the folder they are refused
_OF_A_DATASET = (
    _Client.read,
    _Client.describe,
    _Client.symbols,
    _Client.sessions,
    _Client.alter,
    _Client.drop,
    _Client.rename,
    _trellis.end_ownership,
)


class Embedded:
    """A connection to the grid of a folder, which runs in this process or in the one that opened the folder first.

    If there is no grid yet, the first call that writes makes it, with its folder.
    """

    def __init__(self, folder: pathlib.Path, unit: str | None, timeout: float) -> None:
        self.folder, self.unit, self.timeout = folder, unit, timeout
        self.lock = threading.Lock()
        self.client: _trellis.Client | None = None
        self.url, self.ours = "", False
        if local.has_grid(folder):
            self.open()

    def open(self) -> None:
        while True:
            url, self.ours = local.open_embedded(self.folder)
            # if another process runs the grid, calls end when that process does
            lock = None if self.ours else local.lock_file(self.folder)
            try:
                self.client = _Client(url, self.unit, self.timeout, DEADLINE_S, lock)
            except BaseException as error:
                # The process may have ended since it was found: try again, with its successor or as the successor.
                again = isinstance(error, Unavailable) and not self.ours and not self.runs(url)
                self.close()
                if not again:
                    raise
            else:
                self.url = url
                return

    def runs(self, url: str) -> bool:
        """Whether the folder's grid listens at `url`."""
        found = local.holder(self.folder)
        return found is not None and found["url"] == url

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        if self.ours:
            return function(self.client, *args)
        if self.client is None and not local.has_grid(self.folder):
            asked = _dataset_asked(function, args)
            if asked is not None:
                raise self.nothing(asked)
            if function in (_Client.describe, _Client.stats):
                return []
        self.follow()
        while True:
            try:
                return function(self.client, *args)
            except Unavailable:
                if not self.follow():
                    raise

    def follow(self) -> bool:
        """Opens the folder again if the process that ran its grid has ended. Returns whether it did."""
        with self.lock:
            if self.ours or (self.client is not None and self.runs(self.url)):
                return False
            self.open()
            return True

    def nothing(self, dataset: str) -> UnknownDataset:
        unset = "" if os.environ.get("TRELLIS_URL") else ", and TRELLIS_URL is not set"
        return UnknownDataset(
            f"there is no dataset {dataset}: nothing has been imported in {self.folder}{unset}",
            hint=f"import it with `trellis import {dataset} FILE`, or connect to another grid: trellis.connect(URL)",
            code="UNKNOWN_DATASET",
            dataset=dataset,
        )

    def close(self) -> None:
        if self.ours:
            local.close_embedded(self.folder)


def _dataset_asked(function: Callable[..., Any], args: tuple[Any, ...]) -> str | None:
    """The dataset that must exist for a call; None for calls about no dataset, and calls that make it."""
    if function is _trellis.prefetch:
        return next((i["dataset"] for i in json.loads(args[0])["inputs"]), None)
    return args[0] if args and function in _OF_A_DATASET else None
