"""`connect` and `Grid`: the calls of a grid."""

from __future__ import annotations

import getpass
import os
import pathlib
import uuid
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from . import _trellis
from ._code import inside
from ._declaration import Declaration
from ._grids import Embedded, Pinned, Remote, local
from ._values import field_list, format_ns, symbol_list, text, to_end, to_session, to_start, whole
from .errors import BadRequest, Closed, Unavailable
from .frame import Frame

__all__ = ["Dataset", "Grid", "connect"]

_Client = _trellis.Client

CONNECT_TIMEOUT_S = 5.0
_DAY_NS = 86_400_000_000_000


def connect(url: str | None = None, *, unit: str | None = None, timeout: float = CONNECT_TIMEOUT_S) -> Grid:
    """Connects to a grid.

    Args:
        url: the address of the grid:

            * `grpc://host:port`: one head node; `static://a:1,b:2`: several; `dns://name`: found by DNS;
              `cloudmap://namespace/service`: found by AWS Cloud Map;
            * `embedded:///folder`: the grid of that folder. If several processes open one folder, the first runs the
              grid inside itself and the others connect to it. A write makes the folder; a read does not.
              `embedded://` alone means `./.trellis`.

            Default: the variable TRELLIS_URL; else the grid of `./.trellis`: the one that `trellis up` runs there, or
            `embedded://`.
        unit: the name under which the grid counts requests and queues them fairly.
        timeout: seconds to wait for the grid to answer.

    Raises:
        Unavailable: the grid does not answer; or `trellis up` made the grid of this folder and does not run now.
        BadRequest: it is not the URL of a grid; or a strategy calls this while it runs.
    """
    inside.refuse_grid("connect()")
    if url is not None and not isinstance(url, str):
        raise BadRequest(
            f"url must be text, not {type(url).__name__} {url!r}",
            hint='"grpc://host:port", or "embedded:///folder"; without it this folder\'s grid is meant',
        )
    named = url or os.environ.get("TRELLIS_URL")
    if named and not named.startswith("embedded:"):
        return Grid(named, Remote(named, unit, timeout))
    folder = _embedded_folder(named or "embedded://")
    if not named:
        found = local.started(folder)
        if found is None and local.was_up(folder):
            raise Unavailable(
                f"the grid of this folder is not running (its data is in {folder})",
                hint="start it with `trellis up`, or open the data in this process: "
                f'trellis.connect("embedded://{folder}"), or TRELLIS_URL=embedded://{folder}',
            )
        if found is not None and found["kind"] == "up":
            return Grid(found["url"], Remote(found["url"], unit, timeout, local.lock_file(folder)))
    return Grid(f"embedded://{folder}", Embedded(folder, unit, timeout))


def _embedded_folder(url: str) -> pathlib.Path:
    path = url.removeprefix("embedded:").removeprefix("//")
    folder = pathlib.Path(path or local.STATE)
    return folder.expanduser().resolve()


class Dataset(dict[str, Any]):
    """The description of a dataset: a dict of plain values with a readable repr."""

    def __repr__(self) -> str:
        fields = ", ".join(f"{f['name']} {f['type']}{'' if f['nullable'] else '!'}" for f in self["fields"])
        return (
            f"{self['dataset']}: {fields}\n"
            f"  {self['rows']:,} rows, {self['symbols']:,} symbols, {self['first']} … {self['last']}, "
            f"version {self['version']}, complete through {self['watermark'] or 'an unknown time'}"
        )


class Grid:
    """A connection to a grid. Any thread may call it. `close()` or `with` ends it early."""

    def __init__(self, url: str, link: Any) -> None:
        self.url = url
        self._link = link
        self._pinned = Pinned()
        self._finalizer = weakref.finalize(self, link.close)

    def _check_usable(self) -> None:
        if not self._finalizer.alive:
            raise Closed(f"the grid {self.url} was closed", hint="call trellis.connect() again")
        inside.refuse_grid("a grid")

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
            fields: a field or a list of fields, in the order of the answer's columns; none means all.
            symbols: a symbol, a list of symbols, or "*" (or None) for all. An empty list is refused: a list that is
                empty by mistake must not read every symbol.
            start, end: event time, start inclusive, end exclusive. None means no bound, and so does a time beyond 64
                bit nanoseconds (year 9999). Times are ISO strings, dates, datetimes (UTC if they have no zone),
                `pandas.Timestamp`, `numpy.datetime64`, or integer nanoseconds. An integer that looks like a date
                (20160810) is refused.
            as_of: knowledge time: the rows as they were known then. None, or year 9999, means the latest. An answer as
                of a fixed time is kept for a while: the same read in this process costs nothing, and has the same
                fields even if another process alters the dataset meanwhile.
            known_at: add the column `known_at`.
            allow_stale: if a shard cannot be reached, accept rows that may not be the latest; the receipt says so.
            rows_max: refuse an answer with more rows; 0 means the grid's own limit.

        Raises:
            UnknownDataset, UnknownField, UnknownSymbol: there is none; the message has the nearest names.
            BadRequest: the end is before the start, or a time is malformed.
            TooLarge: the answer has too many rows.
            Unavailable: a head or a shard cannot be reached; try again.
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
        # a closed Grid, or a running strategy, gets no kept answer either
        self._check_usable()
        _, _, asked, start_ns, end_ns, as_of_ns, *_ = question
        # None also for a time after 2262: that is the latest
        pinned = as_of_ns is not None
        answer = self._pinned.get(question) if pinned else None
        if answer is None:
            answer = self._call(_Client.read, *question)
            if pinned:
                self._pinned.put(question, *answer)
        rows, receipt = answer
        # Sessions after the day of knowledge have no rows: an end beyond it is no bound.
        known = receipt["known_through_ns"] if as_of_ns is None else as_of_ns
        end_ns = end_ns if end_ns is not None and end_ns <= known + _DAY_NS else None
        window = (receipt["calendar"] or None, start_ns, end_ns)
        return Frame(rows, receipt, window, () if asked == ("*",) else asked)

    def datasets(self) -> list[str]:
        """Names of all datasets, sorted."""
        return sorted(d["dataset"] for d in self._call(_Client.describe, None))

    def describe(self, dataset: str | None = None) -> Any:
        """A dataset's fields, settings, size and version; without a name, a list of all datasets."""
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
        """Ends a unit's ownership of its output.

        Imports and alterations are then allowed, and any unit may publish to it next. The rows stay.

        Args:
            take_over: do it even if a process of the unit runs; that process then ends.

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
        copies: int | None = None,
        spread: int | None = None,
    ) -> dict[str, Any]:
        """Changes a dataset's fields and settings, all in one version.

        Every row stays, with its knowledge time. Every read then has the new fields, whatever its `as_of`. Fields are
        dropped first, then renamed, widened and added. Only new fields and settings are quick: any other change
        rewrites the dataset's files, which takes about as long as importing them.

        Args:
            add: new fields and their types: `{"adv": "float64"}`. Their values are missing in all present rows.
            widen: fields and their wider types: int32 to int64 or float64, int64 and float32 to float64. Refused if a
                stored whole number is beyond 2^53, which float64 does not hold.
            rename: fields and their new names.
            drop: fields to drop. Older versions of the table have them until their files are removed.
            calendar: exchange calendar of the rows' dates: "XNYS"; "" for none.
            date_zone: zone whose local midnights mean dates: "America/New_York"; "" for none.
            copies: how many times the heads that serve it exist, 1 to 64, so that many readers share them; each reader
                keeps to one copy. 0: once.
            spread: how many heads serve it in each copy, 1 to 256; 0: by its size. These two may be changed of a unit's
                output, too.

        Returns:
            The dataset, its version after the change, and how many files were rewritten.

        Raises:
            Forbidden: the dataset is a unit's output: only the unit's declaration changes it.
            UnknownField, BadRequest: there is no such field, or no such change.
            Conflict: the wider type cannot hold a stored value.
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
            whole(copies, "copies"),
            whole(spread, "spread"),
        )
        self._pinned.forget(dataset)
        return done

    def drop(self, dataset: str) -> dict[str, Any]:
        """Ends a dataset: reads of it are refused, and its name is free for another dataset.

        Its table stays in the lake without rows. Delta readers can still read an older version of it
        (`polars.scan_delta(folder, version=...)`) until another dataset takes the name, and for seven days from the
        drop in any case.

        Returns:
            The dataset, and the version that ended it; the version before has its rows.

        Raises:
            Forbidden: the dataset is a unit's output.
        """
        done = self._call(_Client.drop, text(dataset, "dataset"), uuid.uuid4().hex, _who())
        self._pinned.forget(dataset)
        return done

    def rename(self, dataset: str, to: str) -> dict[str, Any]:
        """Gives a dataset another name, which must be free.

        Its rows keep their knowledge times; its versions start again.

        The files are copied within the lake; on a disk no bytes are moved. Until that is done, the dataset is read
        under its old name and cannot be written to.

        Returns:
            The dataset's new name, and its version.

        Raises:
            Forbidden: the dataset is a unit's output.
            Conflict: a dataset has the new name.
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
        """Deploys strategies, as `trellis deploy` does. `trellis up` must run this grid on this machine.

        Args:
            strategies: strategies of .py files. A notebook's own strategies have no file and cannot be deployed.
            session: run for this session and end; None: run by the schedule.
            take_over: publish even if a process of the unit runs, or the dataset is another unit's output.
            wait: with a session, wait until each unit has run; without one, until it has a status.

        Returns for each unit its name, digest, `status` and `last_run`.

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
        """Takes units out of service, as `trellis undeploy` does, and waits until their processes have ended.

        Their published rows stay, and their outputs stay their own (`release` ends the ownership).

        Raises:
            BadRequest: a unit is not deployed, or this grid runs no units.
        """
        from .deploy import undeploy_units

        undeploy_units(units, self._state())

    def _state(self) -> pathlib.Path:
        """The state folder of the `trellis up` that runs this grid. Deploys write to it."""
        state = self._folder_of_up()
        if state is None:
            raise BadRequest(
                f"the grid {self.url} runs no units: `trellis up` on this machine does not run it",
                hint="start a grid with `trellis up` (if it is the same folder, call `g.close()` first), connect() to "
                "it, and deploy there",
            )
        return state

    def _folder_of_up(self) -> pathlib.Path | None:
        told = {head["state"] for head in self.stats()} - {""}
        state = pathlib.Path(told.pop()) if told else None
        found = local.holder(state) if state is not None else None
        # the head may run on another machine, where a folder has the same name
        same = found is not None and not _ports(found["url"]).isdisjoint(_ports(self._link.url))
        return state if same else None

    def close(self) -> None:
        """Ends the connection. An embedded grid stops with its last connection in this process."""
        self._finalizer()

    def __enter__(self) -> Grid:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError(
            f"a Grid is a connection of this process and cannot be pickled: call trellis.connect({self.url!r}) in the "
            "other process"
        )

    def __repr__(self) -> str:
        return f"<trellis grid {self.url}{'' if self._finalizer.alive else ' (closed)'}>"


def _who() -> str:
    """The user's name, for the log of a change."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # in a container the user may have no name
        return f"uid {os.getuid()}"


def _ports(url: str) -> set[str]:
    """The ports of a URL's heads. Hosts do not count: one head may be localhost or 127.0.0.1."""
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
        spread=reply["spread"],
        copies=reply["copies"],
    )
