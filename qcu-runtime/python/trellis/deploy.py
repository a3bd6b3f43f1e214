"""From a strategy's file to a unit of the local grid.

A *bundle* is the file, the local modules it imports, and a list of the installed packages that they name, in a folder
named by the SHA-256 of all that: what runs is what was deployed, however the sources change afterwards. The
*unit* is a small file in the state folder that points into a bundle; `trellis up` watches for those, and runs a `qcu`
process for each.
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

from . import _inside, _trellis, local
from ._declaration import PROCESS_STARTED, Declaration, file_version, source_file, strategies_of
from ._imports import reached_by, set_since
from ._live import live_digest
from .errors import BadRequest, Conflict, StrategyError, TrellisError, Unavailable, traceback_of

LOCK_FILE = "packages.lock"
# From writing the unit's file to the first it says of itself: `up` looks every fraction of a second. A publisher that
# was killed a moment ago has the lease for fifteen seconds more.
STARTED_WAIT_S = 30.0
# A run that is under way is drained for ten seconds, then killed.
STOPPED_WAIT_S = 20.0
_POLL_S = 0.1


def load_module(path: str | os.PathLike[str]) -> ModuleType:
    """Imports a strategy's file, the modules beside it included, under its own name."""
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
    # under its name before it runs: a module that it imports may import it
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
        with _inside.running(path):
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
    """What a strategy's file needs, by name, and the digest of it all."""
    reached = reached_by(file)
    sources = {LOCK_FILE: _packages(reached.installed).encode()}
    elsewhere = {}
    for path, folder in reached.files.items():
        # A library of the researcher's that lies elsewhere is not copied: it is found there, and is a part of the code.
        place = sources if folder == file.parent else elsewhere
        place[path.relative_to(folder).as_posix()] = path.read_bytes()
    digest = hashlib.sha256()
    for kind, files in (("", sources), ("elsewhere/", elsewhere)):
        for name in sorted(files):
            digest.update(f"{kind}{name}\0{len(files[name])}\0".encode())
            digest.update(files[name])
    return sources, digest.hexdigest()


def code_digest(strategy: Declaration) -> str:
    """What code a run in this process is of, for the ledger.

    * `sha256:...`: of a file, the local modules that it imports and the versions of the packages that these name; what
      deploying it says.
    * `live:sha256:...`: of what is in memory, for what no file tells: a notebook's cell or a prompt, a strategy that a
      function made, a file (or a module that it imports) that was written to when it might have been imported already,
      or whose constants or functions were set to others since. `_live` says what that covers.
    * `unknown:...`: why it cannot be told.
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
        # of objects of anybody's make: the run goes on
        return f"unknown:what is in memory cannot be told ({type(error).__name__})"


def _edited(strategy: Declaration, file: pathlib.Path, files: Iterable[pathlib.Path]) -> bool:
    """Whether one of the files may be another than the one that was imported.

    Its own had been when the strategy was declared. When another was, nobody knows: not before this process began.
    """
    own = file_version(file) != strategy._declared_in.version
    return own or any(path.stat().st_ctime > PROCESS_STARTED for path in files if path != file)


def make_bundle(strategy: Declaration, state: pathlib.Path) -> tuple[pathlib.Path, str, str]:
    """Writes the bundle of a strategy's file: its folder, the file in it, and the digest."""
    file = pathlib.Path(source_file(strategy)).resolve()
    if _edited(strategy, file, [file]):
        raise BadRequest(
            f"{file.name} was edited after it was imported: its new code would be deployed with what strategy "
            f"{strategy.name} declared before",
            hint="import it again, importlib.reload(module), then deploy; or `trellis deploy FILE`",
        )
    sources, digest = bundle_of(file)
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
            if not folder.is_dir():  # else somebody else deployed the same a moment ago
                raise
    return folder, file.name, f"sha256:{digest}"


def _packages(imported: set[str]) -> str:
    """The installed packages that a bundle's files import by name, and ours, with their versions."""
    owners = _owners()
    used = {owner for name in imported | {"numpy"} for owner in owners.get(name, ())} | {"trellis"}
    lines = [f"python=={platform.python_version()}"]
    for owner in sorted(used):
        try:
            lines.append(f"{owner}=={importlib.metadata.version(owner)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return "\n".join(lines) + "\n"


# reading what is installed takes a while
@functools.cache
def _owners() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


class Until(enum.Enum):
    """How far a deploy is watched."""

    # the units' files are there; nobody need run
    WRITTEN = "written"
    # each unit has said what it does
    STARTED = "started"
    # each unit that was deployed for a session has run for it; the others have started
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
    """Deploys to the grid that runs in `state`, or will.

    Answers each unit's name and digest, and whether its schedule has ended by it; where it was watched, its state
    (`failed`: `failure` says how), what it said of itself (`status`) and of its run (`last_run`).

    Raises:
        Unavailable: no grid runs there that would start the units.
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
            # deploying the same again is a wish to run it again
            "deployed_ns": time.time_ns(),
        }
        file = state / "units" / f"{strategy.name}.json"
        files.append((file, dict(unit)))
        before = local.read_json(file)
        units.append(unit | {"ended_schedule": bool(session and before and not before["session"])})
    # all or none: the one that is refused has been by now
    for path, unit in files:
        local.write_json(path, unit)
    if until is not Until.WRITTEN:
        for unit in units:
            unit |= _watched(state, unit, until, show)
    return units


def _watched(state: pathlib.Path, unit: dict[str, Any], until: Until, show: Callable[[str], None]) -> dict[str, Any]:
    """The process of the unit, when it is as far."""
    deadline = time.monotonic() + STARTED_WAIT_S
    while True:
        if local.holder(state) is None:
            raise Unavailable(f"the grid in {state} has ended", hint="the units are deployed: `trellis up` starts them")
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
            why = (process or {}).get("note") or status.get("note") or "`trellis up` has not noticed it"
            raise Unavailable(f"unit {unit['unit']} was deployed, but does not run: {why}", hint="see `trellis status`")
        time.sleep(_POLL_S)


def undeploy_units(
    units: Sequence[str], state: str | os.PathLike[str], *, show: Callable[[str], None] = lambda _note: None
) -> None:
    """Takes units out of the grid that runs in `state`, or will, and waits until their processes have ended.

    A run that is under way has the time of a drain; what is published stays, and the output stays the unit's.

    Raises:
        BadRequest: one of them is not deployed; all stay.
        Unavailable: a process does not end.
    """
    state = pathlib.Path(state).resolve()
    files = {unit: state / "units" / f"{unit}.json" for unit in units}
    if missing := [unit for unit, file in files.items() if not file.exists()]:
        there = sorted(file.stem for file in (state / "units").glob("*.json"))
        raise BadRequest(
            f"no unit {missing[0]} is deployed in {state}",
            hint=f"deployed are {', '.join(there)}" if there else "none is",
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
            raise Unavailable(f"unit {running[0]} is undeployed, but does not end", hint="see `trellis status`")
        time.sleep(_POLL_S)


def failure(unit: dict[str, Any]) -> TrellisError:
    """What went wrong with a unit that `deploy_strategies` answered as failed."""
    run = unit["last_run"] or {}
    told = f"unit {unit['unit']} failed: {unit['note']}"
    hint = f"its log is {unit['log']}"
    match run.get("exit_code", unit["exit_status"]):
        case 4:
            return Unavailable(told, hint=hint)
        case 5:
            return Conflict(told, hint=hint)
        case _:
            # the unit puts the strategy's traceback behind the sentence
            _, _, trace = (run.get("error") or "").partition("\n")
            return StrategyError(told, hint=hint, traceback=trace and trace.rstrip() + "\n")


def process_list(state: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The processes of the grid that runs in `state`, as they are now."""
    return local.read_json(pathlib.Path(state, "processes.json")) or []
