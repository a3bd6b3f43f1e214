"""`connect` and `Grid`: where a researcher starts."""

from __future__ import annotations

import getpass
import json
import os
import pathlib
import threading
import uuid
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from . import _inside, _trellis, local
from ._arguments import field_list, symbol_list, text
from ._declaration import Declaration
from ._time import format_ns, to_end, to_session, to_start
from .errors import BadRequest, Closed, Unavailable, UnknownDataset
from .frame import Frame

__all__ = ["Dataset", "Grid", "connect"]

_Client = _trellis.Client

CONNECT_TIMEOUT_S = 5.0
# of one call, retries included; large first reads of a cold grid take seconds, not minutes
DEADLINE_S = 120.0
# of answers kept for reads that repeat, in each grid; one answer takes a quarter of it at most
PINNED_BYTES_MAX = 64 << 20

_DAY_NS = 86_400_000_000_000


def connect(url: str | None = None, *, unit: str | None = None, timeout: float = CONNECT_TIMEOUT_S) -> Grid:
    """Connects to a grid.

    Args:
        url: where the grid is:

            * `grpc://host:port`: one head node; `static://a:1,b:2`: several; `dns://name`: found by DNS;
            * `embedded:///folder`: the grid of that folder. Several processes may open one folder: the first runs the
              grid in itself, the others join it. The folder is made when something is written, not by reading.
              `embedded://` alone is `./.trellis`.

            Default: the variable TRELLIS_URL; else the grid of this folder, `./.trellis`: that of `trellis up` if there
            is one, else `embedded://`.
        unit: a name under which requests are counted and queued fairly.
        timeout: seconds to wait for the grid to answer.

    Raises:
        Unavailable: nobody answers there; or this folder's grid is one of `trellis up`, and it is not running.
        BadRequest: not a URL of a grid; or a strategy that runs asks for one.
    """
    _inside.refuse_grid("connect()")
    named = url or os.environ.get("TRELLIS_URL")
    if named and not named.startswith("embedded:"):
        return Grid(named, _Remote(named, unit, timeout))
    folder = _embedded_folder(named or "embedded://")
    if not named:
        found = local.started(folder)
        if found is None and local.was_up(folder):
            raise Unavailable(
                f"the grid of this folder is not running (its data is in {folder})",
                hint="start it with `trellis up`, or open its data in this process: "
                f'trellis.connect("embedded://{folder}"), or TRELLIS_URL=embedded://{folder}',
            )
        if found is not None and found["kind"] == "up":
            return Grid(found["url"], _Remote(found["url"], unit, timeout, local.lock_file(folder)))
    return Grid(f"embedded://{folder}", _Embedded(folder, unit, timeout))


def _embedded_folder(url: str) -> pathlib.Path:
    path = url.removeprefix("embedded:").removeprefix("//")
    folder = pathlib.Path(path or local.STATE)
    return folder.expanduser().resolve()


class _Remote:
    """A grid that runs elsewhere. A call to one of this machine, which holds `lock`, ends with it."""

    def __init__(self, url: str, unit: str | None, timeout: float, lock: pathlib.Path | None = None) -> None:
        self.url = url
        self.client = _trellis.Client(url, unit, timeout, DEADLINE_S, lock)

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(self.client, *args)

    def close(self) -> None:
        pass


# what is about a dataset that is there: it needs no folder where there is none
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


class _Embedded:
    """A grid in this process, or in another one that opened the folder first. Where there is none yet, the first call
    that writes makes one, folder and all."""

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
            # of another process: a call ends when that process does
            lock = None if self.ours else local.lock_file(self.folder)
            try:
                self.client = _Client(url, self.unit, self.timeout, DEADLINE_S, lock)
            except BaseException as error:
                # it may have ended since it was found: then somebody else is to be found, or we are
                again = isinstance(error, Unavailable) and not self.ours and not self.runs(url)
                self.close()
                if not again:
                    raise
            else:
                self.url = url
                return

    def runs(self, url: str) -> bool:
        """Whether the grid that listens there is the folder's."""
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
        """If the process that ran the grid has ended, somebody else runs it now, perhaps we. Whether it is so."""
        with self.lock:
            if self.ours or (self.client is not None and self.runs(self.url)):
                return False
            self.open()
            return True

    def nothing(self, dataset: str) -> UnknownDataset:
        unset = "" if os.environ.get("TRELLIS_URL") else ", and TRELLIS_URL is not set"
        return UnknownDataset(
            f"there is no dataset {dataset}: nothing has been imported in {self.folder}{unset}",
            hint=f"`trellis import {dataset} FILE` brings it in; trellis.connect(URL) names another grid",
            code="UNKNOWN_DATASET",
            dataset=dataset,
        )

    def close(self) -> None:
        if self.ours:
            local.close_embedded(self.folder)


def _dataset_asked(function: Callable[..., Any], args: tuple[Any, ...]) -> str | None:
    """The dataset that must be there for a call; None for what is about none, or makes it."""
    if function is _trellis.prefetch:
        return next((i["dataset"] for i in json.loads(args[0])["inputs"]), None)
    return args[0] if args and function in _OF_A_DATASET else None


class _Pinned:
    """Answers as of a fixed time, kept for reads that repeat: what was known then does not change.

    The dataset itself may: an answer that is kept has the fields that it was read with, until the dataset is altered or
    dropped from here. Only an answer whose receipt says that everything known at that time is in it. Least recently
    used go first.
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


class Dataset(dict[str, Any]):
    """What a dataset is: a dict of plain values that shows itself as text."""

    def __repr__(self) -> str:
        fields = ", ".join(f"{f['name']} {f['type']}{'' if f['nullable'] else '!'}" for f in self["fields"])
        return (
            f"{self['dataset']}: {fields}\n"
            f"  {self['rows']:,} rows, {self['symbols']:,} symbols, {self['first']} … {self['last']}, "
            f"version {self['version']}, complete through {self['watermark'] or 'nobody said'}"
        )


class Grid:
    """A connection to a grid. Cheap calls, safe from any thread; `close()` or `with` when it should end early."""

    def __init__(self, url: str, link: Any) -> None:
        self.url = url
        self._link = link
        self._pinned = _Pinned()
        self._finalizer = weakref.finalize(self, link.close)

    def _check_usable(self) -> None:
        if not self._finalizer.alive:
            raise Closed(f"the grid {self.url} was closed", hint="trellis.connect() again")
        _inside.refuse_grid("a grid")

    def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        self._check_usable()
        return self._link.call(function, *args)

    def read(
        self,
        dataset: str,
        fields: Any = (),
        symbols: Any = "*",
        start: Any = None,
        end: Any = None,
        as_of: Any = None,
        *,
        known_at: bool = False,
        allow_stale: bool = False,
        rows_max: int = 0,
    ) -> Frame:
        """Reads the rows of `symbols` in [start, end), sorted by symbol and time.

        Args:
            dataset: `equities.daily`.
            fields: a field or a list of them, in the order wanted; none is all.
            symbols: a symbol, a list of symbols, or "*" (or None) for all there are. An empty list is refused: a list
                that came out empty by mistake must not read the world.
            start, end: event time, start inclusive, end exclusive; None is open, and so is a bound beyond 64 bit
                nanoseconds (year 9999). ISO strings, dates, datetimes (UTC where they have no zone),
                `pandas.Timestamp`s, `numpy.datetime64`s, or integer nanoseconds; an integer that looks like a date
                (20160810) is refused.
            as_of: the rows as they were known at that time; None, and year 9999, is the latest. Such an answer is kept
                for a while: asking again in this process costs nothing (and has the same fields, should somebody else
                alter the dataset meanwhile).
            known_at: add the column `known_at`.
            allow_stale: while a shard is away, accept rows that cannot be confirmed as the latest; the receipt says so.
            rows_max: refuse a larger answer; 0 is the grid's own limit.

        Raises:
            UnknownDataset, UnknownField, UnknownSymbol: with the nearest names.
            BadRequest: an end before its start, a malformed time.
            TooLarge: more rows than allowed.
            Unavailable: try again.
        """
        question = (
            text(dataset, "dataset"),
            tuple(text(f, "fields") for f in field_list(fields)),
            tuple(symbol_list(symbols)),
            to_start(start),
            to_end(end),
            to_end(as_of, "as_of"),
            known_at,
            allow_stale,
            rows_max,
        )
        # an answer that is kept is one of a grid too
        self._check_usable()
        _, _, asked, start_ns, end_ns, as_of_ns, *_ = question
        # as of a time after all time is the latest
        pinned = as_of_ns is not None
        answer = self._pinned.get(question) if pinned else None
        if answer is None:
            answer = self._call(_Client.read, *question)
            if pinned:
                self._pinned.put(question, *answer)
        rows, receipt = answer
        # no session after the day of knowledge can have rows: an end beyond it is open
        known = receipt["known_through_ns"] if as_of_ns is None else as_of_ns
        end_ns = end_ns if end_ns is not None and end_ns <= known + _DAY_NS else None
        window = (receipt["calendar"] or None, start_ns, end_ns)
        return Frame(rows, receipt, window, () if asked == ("*",) else asked)

    def datasets(self) -> list[str]:
        """Names of all datasets, sorted."""
        return sorted(d["dataset"] for d in self._call(_Client.describe, None))

    def describe(self, dataset: str | None = None) -> Any:
        """What a dataset is and how far it has come; without a name, a list of all."""
        if dataset is None:
            return self._described()
        return _dataset(self._call(_Client.describe, text(dataset, "dataset"))[0])

    def _described(self, deadline_s: float | None = None) -> list[dict[str, Any]]:
        found = self._call(_Client.describe, None, deadline_s)
        return sorted(map(_dataset, found), key=lambda d: d["dataset"])

    def symbols(self, dataset: str) -> list[str]:
        """The symbols of a dataset, sorted."""
        return self._call(_Client.symbols, text(dataset, "dataset"))

    def sessions(self, dataset: str, start: Any = None, end: Any = None) -> list[str]:
        """The days in [start, end) for which the dataset has rows, `2016-08-10`, ascending."""
        found = self._call(_Client.sessions, text(dataset, "dataset"), to_start(start), to_end(end))
        return [str(format_ns(ns)) for ns in found]

    def release(self, dataset: str, *, take_over: bool = False) -> None:
        """Ends a unit's ownership of its output: rows can then be imported into it, it can be altered, and any unit may
        publish to it next. The rows stay.

        Args:
            take_over: even though a process of the unit runs; it ends.

        Raises:
            Conflict: a process of the unit runs.
        """
        self._call(_trellis.end_ownership, text(dataset, "dataset"), take_over)

    def alter(
        self,
        dataset: str,
        *,
        add: Mapping[str, str] | None = None,
        widen: Mapping[str, str] | None = None,
        rename: Mapping[str, str] | None = None,
        drop: Iterable[str] = (),
        calendar: str | None = None,
        date_zone: str | None = None,
    ) -> dict[str, Any]:
        """Changes what a dataset is, as one version of it.

        Every row stays, with its knowledge time. Reads have the fields as they are now, whatever their `as_of`. Fields
        are dropped first, then renamed, widened and added. All but an addition or a setting writes the dataset's files
        anew, which takes about as long as importing them did.

        Args:
            add: new fields and their types, missing in every row so far: `{"adv": "float64"}`.
            widen: fields and their wider types: int32 to int64 or float64, int64 and float32 to float64. Refused if a
                stored whole number is beyond 2^53, which float64 does not hold.
            rename: fields and their new names.
            drop: fields to drop. Older versions of the table have them as long as their files stay.
            calendar: whose sessions the rows' dates are: "XNYS"; "" for none.
            date_zone: where a local midnight names a date: "America/New_York"; "" for none.

        Returns:
            The dataset, its version after the change, and how many files were rewritten.

        Raises:
            Forbidden: the dataset is a unit's output: what the unit declares changes it.
            UnknownField, BadRequest: no such field, or no such change.
            Conflict: a stored value that the wider type does not hold.
        """
        if isinstance(drop, str):
            drop = [drop]
        fields = [(text(f, "add"), text(t, "add")) for f, t in (add or {}).items()]
        done = self._call(
            _Client.alter,
            text(dataset, "dataset"),
            uuid.uuid4().hex,
            _who(),
            [text(f, "drop") for f in drop],
            [(text(f, "rename"), text(t, "rename")) for f, t in (rename or {}).items()],
            [(text(f, "widen"), text(t, "widen")) for f, t in (widen or {}).items()],
            [(f, t.rstrip("!?"), not t.endswith("!")) for f, t in fields],
            calendar,
            date_zone,
        )
        self._pinned.forget(dataset)
        return done

    def drop(self, dataset: str) -> dict[str, Any]:
        """Ends a dataset: reads of it are refused, and its name is free for another one.

        Its table stays in the lake as one without rows. What it had is read there by an older version, which Delta
        readers take (`polars.scan_delta(folder, version=...)`), for as long as no other dataset takes the name; after
        that for seven days from the drop.

        Returns:
            The dataset, and the version that ended it; the one before has its rows.

        Raises:
            Forbidden: the dataset is a unit's output.
        """
        done = self._call(_Client.drop, text(dataset, "dataset"), uuid.uuid4().hex, _who())
        self._pinned.forget(dataset)
        return done

    def rename(self, dataset: str, to: str) -> dict[str, Any]:
        """Gives a dataset another name, which must be free.

        Its rows keep their knowledge times; its versions begin anew.

        The files are copied within the lake, on a disk without moving a byte. While that goes on the dataset is read
        under its old name, and nothing can be written to it.

        Returns:
            The dataset by its new name, and its version.

        Raises:
            Forbidden: the dataset is a unit's output.
            Conflict: there is a dataset of the new name.
        """
        done = self._call(_Client.rename, text(dataset, "dataset"), text(to, "to"), uuid.uuid4().hex, _who())
        self._pinned.forget(dataset)
        self._pinned.forget(to)
        return done

    def stats(self) -> list[dict[str, Any]]:
        """Counters of each head node since it started; `trellis status` prints them as a table."""
        return self._call(_Client.stats)

    def deploy(
        self, *strategies: Declaration, session: Any = None, take_over: bool = False, wait: bool = False
    ) -> list[dict[str, Any]]:
        """Deploys strategies to this grid, which must be one of `trellis up` on this machine: as `trellis deploy`.

        Args:
            strategies: of .py files; what a notebook defines has no file that could be deployed.
            session: run for this session and end; None: by the schedule.
            take_over: publish even though a process of the unit runs, or the dataset was another unit's output.
            wait: with a session, wait until each unit has run; without, until it has said what it waits for.

        Answers, for each, its name, digest, `status` (what it does) and `last_run`.

        Raises:
            BadRequest: this grid runs no units.
            StrategyError, Conflict, Unavailable: a unit failed.
        """
        from .deploy import Until, deploy_strategies, failure

        units = deploy_strategies(
            list(strategies),
            self._state(),
            session=None if session is None else to_session(session),
            take_over=take_over,
            until=Until.ENDED if wait else Until.STARTED,
        )
        if failed := next((unit for unit in units if unit["state"] == "failed"), None):
            raise failure(failed)
        return units

    def undeploy(self, *units: str) -> None:
        """Takes units, by name, out of service, and waits until their processes have ended: as `trellis undeploy`.

        What they published stays, and their outputs stay theirs (`release` ends that).

        Raises:
            BadRequest: one of them is not deployed, or this grid runs no units.
        """
        from .deploy import undeploy_units

        undeploy_units(units, self._state())

    def _state(self) -> pathlib.Path:
        """The folder of the `trellis up` that runs this grid, which deploys write to."""
        state = self._folder_of_up()
        if state is None:
            raise BadRequest(
                f"the grid {self.url} runs no units: it is not one of `trellis up` on this machine",
                hint="start one with `trellis up` (after `g.close()` if it is of the same folder), connect() to it, "
                "and deploy there",
            )
        return state

    def _folder_of_up(self) -> pathlib.Path | None:
        told = {head["state"] for head in self.stats()} - {""}
        state = pathlib.Path(told.pop()) if told else None
        found = local.holder(state) if state is not None else None
        # a folder of that name may be there on another machine too
        same = found is not None and not _ports(found["url"]).isdisjoint(_ports(self._link.url))
        return state if same else None

    def close(self) -> None:
        """Ends the connection; an embedded grid stops when its last connection in this process is closed."""
        self._finalizer()

    def __enter__(self) -> Grid:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError(
            f"a Grid is a connection of this process and cannot be pickled: call trellis.connect({self.url!r}) there"
        )

    def __repr__(self) -> str:
        return f"<trellis grid {self.url}{'' if self._finalizer.alive else ' (closed)'}>"


def _who() -> str:
    """Who asks, for the log of a change."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # a container's user without a name
        return f"uid {os.getuid()}"


def _ports(url: str) -> set[str]:
    """Of a URL's heads. The same head may be called localhost or 127.0.0.1."""
    return {address.rpartition(":")[2] for address in url.partition("://")[2].split(",")}


def _dataset(reply: dict[str, Any]) -> Dataset:
    return Dataset(
        dataset=reply["dataset"],
        fields=[{"name": n, "type": t, "nullable": null} for n, t, null in reply["fields"]],
        rows=reply["rows"],
        symbols=reply["symbols"],
        first=format_ns(reply["first_ts_ns"]),
        last=format_ns(reply["last_ts_ns"]),
        version=reply["version"],
        known_through=format_ns(reply["known_through_ns"]),
        watermark=format_ns(reply["watermark_ns"]),
        chunk_ns=reply["chunk_ns"],
        calendar=reply["calendar"],
        date_zone=reply["date_zone"],
        home=reply["home"],
    )
