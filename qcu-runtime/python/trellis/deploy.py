"""Deploys strategies: loads a strategy's file, bundles its code, and makes it a unit of the local grid.

A *bundle* is a folder with the file, the local modules that it imports, and a list of the installed packages that they
import. Its name is the SHA-256 of these contents, so a unit runs the deployed code even if the sources change later.
A *unit* is a small file in the state folder that points into a bundle. `trellis up` watches these files and runs a
`qcu` process for each.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

from . import _trellis
from ._code import inside, live_digest, reached_by, set_since, traceback_of
from ._declaration import PROCESS_STARTED, Declaration, file_version, source_file, strategies_of
from ._grids import local
from .errors import BadRequest, Conflict, StrategyError, TrellisError, Unavailable

LOCK_FILE = "packages.lock"
# From writing the unit's file to the unit's first status. `trellis up` notices the file within a fraction of a second,
# but a publisher that was killed a moment ago keeps the lease for fifteen seconds.
STARTED_WAIT_S = 30.0
# `trellis up` gives a running unit ten seconds to drain, then kills it.
STOPPED_WAIT_S = 20.0
_POLL_S = 0.1


def load_module(path: str | os.PathLike[str]) -> ModuleType:
    """Imports a strategy's file under its own name. It can import the modules of its folder."""
    file = pathlib.Path(path).resolve()
    folder, name = str(file.parent), file.stem
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__file__", None) == str(file):
        return known
    if known is not None or name in sys.stdlib_module_names:
        raise BadRequest(
            f"{file} would hide the module {name} ({getattr(known, '__file__', None) or 'of the standard library'})",
            hint="give the file another name",
        )
    if folder not in sys.path:
        sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise BadRequest(f"{file} is not a Python file", hint="strategies are in .py files")
    module = importlib.util.module_from_spec(spec)
    # registered before it runs, because a module that it imports may import it
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def load_strategies(target: str) -> list[Any]:
    """The strategies (`trellis.Strategy`) of `FILE` or `FILE:unit`.

    Raises:
        BadRequest: no such file, or no such strategy in it.
        StrategyError: the file raises when it is imported.
    """
    path, _, wanted = target.partition(":")
    if not os.path.isfile(path):
        raise BadRequest(f"there is no file {path}")
    if not path.endswith(".py"):
        raise BadRequest(f"{path} is not a Python file", hint="strategies are in .py files")
    try:
        with inside.running(path):
            module = load_module(path)
    except TrellisError:
        raise
    except (Exception, SystemExit) as error:
        what = (
            f"exits with {error.code!r}" if isinstance(error, SystemExit) else f"raises {type(error).__name__}: {error}"
        )
        raise StrategyError(f"{path} {what} when it is imported", traceback=traceback_of(error)) from error
    found = strategies_of(module)
    if not found:
        raise BadRequest(f"{path} defines no strategy", hint="decorate a function with @trellis.strategy(...)")
    if not wanted:
        return found
    chosen = [s for s in found if wanted in (s.name, s._attribute())]
    if not chosen:
        names = ", ".join(s.name for s in found)
        raise BadRequest(f"{path} has no strategy {wanted}", hint=f"it has {names}")
    return chosen


def bundle_of(file: pathlib.Path) -> tuple[dict[str, bytes], str]:
    """The contents of a bundle, by file name, and their digest."""
    reached = reached_by(file)
    sources = {LOCK_FILE: _packages(reached.installed).encode()}
    elsewhere = {}
    for path, folder in reached.files.items():
        # A library of the researcher in another folder is not copied, but it counts in the digest.
        place = sources if folder == file.parent else elsewhere
        place[path.relative_to(folder).as_posix()] = path.read_bytes()
    digest = hashlib.sha256()
    for kind, files in (("", sources), ("elsewhere/", elsewhere)):
        for name in sorted(files):
            digest.update(f"{kind}{name}\0{len(files[name])}\0".encode())
            digest.update(files[name])
    return sources, digest.hexdigest()


def code_digest(strategy: Declaration) -> str:
    """The digest of a strategy's code as it runs in this process, for the run ledger.

    * `sha256:...`: of the file, the local modules that it imports and the versions of the packages that these import.
      A deploy gives the same digest.
    * `live:sha256:...`: of the code in memory, if the files do not tell: for a notebook cell or a prompt, for a
      strategy that a function made, if a file may have been written to after its import, or if other code has set one
      of its constants or functions. `_code/live.py` says what it covers.
    * `unknown:...`: there is no digest, for the reason given.
    """
    try:
        file = pathlib.Path(source_file(strategy)).resolve()
        files = reached_by(file).files
        if not _edited(strategy, file, files) and not any(set_since(path) for path in files):
            return f"sha256:{bundle_of(file)[1]}"
    except (BadRequest, OSError, SyntaxError, ValueError):
        pass
    try:
        return f"live:sha256:{live_digest(strategy)}"
    except Exception as error:
        # objects in memory may raise anything when they are pickled; the run goes on
        return f"unknown:the code in memory has no digest ({type(error).__name__})"


def _edited(strategy: Declaration, file: pathlib.Path, files: Iterable[pathlib.Path]) -> bool:
    """Whether one of the files may have changed since its import.

    The strategy's own file was imported when the strategy was declared. The time of the other imports is not known, so
    those files must not have changed since this process started.
    """
    own = file_version(file) != strategy._declared_in.version
    return own or any(path.stat().st_ctime > PROCESS_STARTED for path in files if path != file)


def sources_of(strategy: Declaration) -> tuple[pathlib.Path, dict[str, bytes], str]:
    """The file of a strategy, the contents of its bundle, by file name, and their digest.

    Raises:
        BadRequest: the strategy is not the one of its file.
    """
    file = pathlib.Path(source_file(strategy)).resolve()
    if _edited(strategy, file, [file]):
        raise BadRequest(
            f"{file.name} was edited after it was imported: its new code would be deployed with the old declaration "
            f"of strategy {strategy.name}",
            hint="import it again with importlib.reload(module), then deploy; or use `trellis deploy FILE`",
        )
    return file, *bundle_of(file)


def make_bundle(strategy: Declaration, state: pathlib.Path) -> tuple[pathlib.Path, str, str]:
    """Writes the bundle of a strategy. Returns its folder, the name of the strategy's file in it, and the digest."""
    file, sources, digest = sources_of(strategy)
    folder = state / "bundles" / digest
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = pathlib.Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
        try:
            for name, content in sources.items():
                target = fresh / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
            fresh.chmod(0o755)
            fresh.rename(folder)
        except OSError:
            shutil.rmtree(fresh, ignore_errors=True)
            if not folder.is_dir():  # another process may have deployed the same code at the same time
                raise
    return folder, file.name, f"sha256:{digest}"


def _packages(imported: set[str]) -> str:
    """The installed packages that a bundle's files import, and trellis, with their versions: one a line."""
    owners = _owners()
    used = {owner for name in imported | {"numpy"} for owner in owners.get(name, ())} | {"trellis"}
    lines = [f"python=={platform.python_version()}"]
    for owner in sorted(used):
        try:
            lines.append(f"{owner}=={importlib.metadata.version(owner)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return "\n".join(lines) + "\n"


# cached: reading the list of installed packages is slow
@functools.cache
def _owners() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


class Until(enum.Enum):
    """How long a deploy waits."""

    # until the units' files are written; no running grid is needed
    WRITTEN = "written"
    # until each unit has said what it does
    STARTED = "started"
    # until each unit that is deployed for a session has run for it, and the others have started
    ENDED = "ended"


def deploy_strategies(
    strategies: Sequence[Declaration],
    state: str | os.PathLike[str],
    *,
    session: str | None = None,
    take_over: bool = False,
    until: Until = Until.STARTED,
    show: Callable[[str], None] = lambda _note: None,
) -> list[dict[str, Any]]:
    """Deploys to the grid that runs in `state`, or that will run there.

    Returns for each unit its name, its digest and whether the deploy ended its schedule. If the deploy waited, also the
    unit's state (`failure` makes an error of `failed`), its `status` and its `last_run`.

    Raises:
        Unavailable: no grid of `trellis up` runs there.
    """
    state = pathlib.Path(state).resolve()
    names = [s.name for s in strategies]
    if twice := next((n for n in names if names.count(n) > 1), None):
        raise BadRequest(f"two strategies are named {twice}")
    found = local.started(state) if until is not Until.WRITTEN else None
    if until is not Until.WRITTEN and (found is None or found["kind"] != "up"):
        raise Unavailable(
            f"no grid runs in {state} that could run units",
            hint="start it with `trellis up`, or write the units without waiting: --no-wait",
        )
    units, files = [], []
    for strategy in strategies:
        folder, module, digest = make_bundle(strategy, state)
        manifest = folder / f"{strategy.name}.json"
        checked = _trellis.check_manifest(json.dumps(strategy.manifest(module, digest)), session)
        local.write_json(manifest, json.loads(checked))
        unit = {
            "unit": strategy.name,
            "digest": digest,
            "manifest": str(manifest.relative_to(state)),
            "session": session,
            "take_over": take_over,
            # a second deploy of the same code is a new one: it runs again
            "deployed_ns": time.time_ns(),
        }
        file = state / "units" / f"{strategy.name}.json"
        files.append((file, dict(unit)))
        before = local.read_json(file)
        units.append(unit | {"ended_schedule": bool(session and before and not before["session"])})
    # all or none: every strategy has been checked by now
    for path, unit in files:
        local.write_json(path, unit)
    if until is not Until.WRITTEN:
        for unit in units:
            unit |= _watched(state, unit, until, show)
    return units


def _watched(state: pathlib.Path, unit: dict[str, Any], until: Until, show: Callable[[str], None]) -> dict[str, Any]:
    """Waits for a unit. Returns the state of its process then."""
    deadline = time.monotonic() + STARTED_WAIT_S
    while True:
        if local.holder(state) is None:
            raise Unavailable(
                f"the grid in {state} has ended", hint="the units are deployed; the next `trellis up` starts them"
            )
        process = next((p for p in process_list(state) if p.get("deployed_ns") == unit["deployed_ns"]), None)
        status = (process or {}).get("status") or {}
        if process is not None:
            told = {name: process[name] for name in ("state", "note", "status", "last_run", "exit_status", "log")}
            if process["state"] in ("finished", "failed"):
                return told
            if status.get("state") not in (None, "starting"):
                if until is Until.STARTED or not unit["session"]:
                    return told
                deadline = float("inf")
        show(f"{unit['unit']} {status.get('note', 'starts')}")
        if time.monotonic() > deadline:
            why = (process or {}).get("note") or status.get("note") or "`trellis up` has not started it"
            raise Unavailable(f"unit {unit['unit']} was deployed, but does not run: {why}", hint="see `trellis status`")
        time.sleep(_POLL_S)


def undeploy_units(
    units: Sequence[str], state: str | os.PathLike[str], *, show: Callable[[str], None] = lambda _note: None
) -> None:
    """Removes units from the grid of the folder `state`, and waits until their processes have ended.

    A running unit gets the time of a drain. Published rows stay, and the outputs stay the units' own.

    Raises:
        BadRequest: a unit is not deployed; none is removed then.
        Unavailable: a process does not end.
    """
    state = pathlib.Path(state).resolve()
    files = {unit: state / "units" / f"{unit}.json" for unit in units}
    if missing := [unit for unit, file in files.items() if not file.exists()]:
        there = sorted(file.stem for file in (state / "units").glob("*.json"))
        raise BadRequest(
            f"no unit {missing[0]} is deployed in {state}",
            hint=f"deployed units: {', '.join(there)}" if there else "no unit is deployed there",
        )
    for file in files.values():
        file.unlink(missing_ok=True)
    deadline = time.monotonic() + STOPPED_WAIT_S
    while local.holder(state) is not None:
        running = [p["name"] for p in process_list(state) if p["role"] == "qcu" and p["name"] in files]
        if not running:
            return
        show(f"{running[0]} ends")
        if time.monotonic() > deadline:
            raise Unavailable(
                f"unit {running[0]} is undeployed, but its process does not end", hint="see `trellis status`"
            )
        time.sleep(_POLL_S)


def failure(unit: dict[str, Any]) -> TrellisError:
    """The error of a unit that `deploy_strategies` returned as failed."""
    run = unit["last_run"] or {}
    told = f"unit {unit['unit']} failed: {unit['note']}"
    hint = f"its log is {unit['log']}"
    match run.get("exit_code", unit["exit_status"]):
        case 4:
            return Unavailable(told, hint=hint)
        case 5:
            return Conflict(told, hint=hint)
        case _:
            # the first line is the message, the rest is the traceback of the strategy
            _, _, trace = (run.get("error") or "").partition("\n")
            return StrategyError(told, hint=hint, traceback=trace and trace.rstrip() + "\n")


def process_list(state: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The present processes of the grid that runs in `state`."""
    return local.read_json(pathlib.Path(state, "processes.json")) or []
