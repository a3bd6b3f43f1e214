"""Submits strategies to production: each one's bundle goes to S3, and its file into the folder that `fleet` applies.

A *bundle* is one zip with the strategy's file, the local modules that it imports, the list of the installed packages
that they import, and the unit's manifest. Its name is its SHA-256. The unit's file, `units/NAME.json`, names the
bundle and says what its task needs. A person reviews and commits that file; then `fleet apply` starts the unit.
"""

from __future__ import annotations

import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from . import _trellis
from ._code import reached_by
from ._declaration import Declaration
from .deploy import load_strategies, sources_of
from .errors import BadRequest

MANIFEST = "unit.json"
# `fleet` refuses other keys: the role of units may read nothing else
_KEYS = "bundles/"
# what a person may write into a unit's file; a class has the size, so the fields of the size do not stand beside it
_KEPT = ("spot", "window", "partitions")
_KEPT_WITHOUT_CLASS = ("gpu", "arch")


@dataclass
class Fleet:
    """What a deploy needs to know of the folder that `fleet` applies."""

    folder: pathlib.Path
    environment: str
    region: str
    bucket: str
    prefix: str


def read_fleet(folder: str | os.PathLike[str], environment: str) -> Fleet:
    """Reads `grid.json` of a fleet's folder.

    Raises:
        BadRequest: there is none, or it is another environment's.
    """
    file = pathlib.Path(folder, "grid.json")
    hint = "--fleet, or TRELLIS_FLEET_DIR, names the folder with grid.json and units/ that `fleet` applies"
    try:
        grid = json.loads(file.read_text())
    except FileNotFoundError:
        raise BadRequest(f"there is no file {file}", hint=hint) from None
    except (OSError, ValueError) as error:
        raise BadRequest(f"{file} cannot be read: {error}", hint=hint) from None
    fields = grid if isinstance(grid, dict) else {}
    if missing := [n for n in ("environment", "region", "bundles") if not isinstance(fields.get(n), str)]:
        raise BadRequest(f"{file} has no {missing[0]}", hint=hint)
    if grid["environment"] != environment:
        raise BadRequest(
            f"{file} is of the environment {grid['environment']}, not of {environment}",
            hint=f"--env {grid['environment']}, or another --fleet",
        )
    bucket, _, prefix = grid["bundles"].removeprefix("s3://").partition("/")
    if not grid["bundles"].startswith("s3://") or not bucket or not f"{prefix}/".startswith(_KEYS):
        raise BadRequest(
            f"{file}: bundles is {grid['bundles']}, not s3://BUCKET/bundles", hint="units may read no other keys"
        )
    return Fleet(pathlib.Path(folder), environment, grid["region"], bucket, prefix)


def load_targets(targets: Sequence[str]) -> list[Any]:
    """The strategies of `FILE`, `FILE:unit`, or every file of a folder."""
    found: list[Any] = []
    for target in targets:
        if not os.path.isdir(target):
            found += load_strategies(target)
            continue
        files = sorted(pathlib.Path(target).glob("*.py"))
        of_files = [s for file in files for s in _strategies_in(file)]
        if not of_files:
            raise BadRequest(f"no file of the folder {target} defines a strategy")
        found += of_files
    return found


def _strategies_in(file: pathlib.Path) -> list[Any]:
    try:
        found = load_strategies(str(file))
    except BadRequest as error:
        # a library beside the strategies
        if "defines no strategy" in error.message:
            return []
        raise
    # a file may import a strategy of another one
    return [s for s in found if os.path.realpath(s._declared_in.file) == os.path.realpath(file)]


def submit_strategies(
    strategies: Sequence[Declaration], fleet: Fleet, *, show: Callable[[str], None] = lambda _note: None
) -> list[dict[str, Any]]:
    """Puts the bundle of each strategy, then writes the unit's files; all or none of the files.

    Returns for each unit its name, its digests, the bundle's URL, whether the bundle was put now, and the unit's file.

    Raises:
        BadRequest: a strategy cannot be submitted; nothing was put then.
        Forbidden, Unavailable: S3 does not take a bundle; no file was written then.
    """
    names = [s.name for s in strategies]
    if twice := next((n for n in names if names.count(n) > 1), None):
        raise BadRequest(f"two strategies are named {twice}")
    packed = [_packed(strategy) for strategy in strategies]
    units = [
        {
            "unit": manifest["unit"],
            "digest": f"sha256:{digest}",
            "code_digest": manifest["code_digest"],
            "bundle": f"s3://{fleet.bucket}/{fleet.prefix}/{digest}.zip",
            "file": str(fleet.folder / "units" / f"{manifest['unit']}.json"),
        }
        for manifest, _, digest in packed
    ]
    contents = [
        _unit_file(fleet, strategy, manifest, digest, names)
        for strategy, (manifest, _, digest) in zip(strategies, packed, strict=True)
    ]
    for unit, (_, bundle, _) in zip(units, packed, strict=True):
        show(f"{unit['unit']}: {len(bundle):,} bytes")
        unit["put"] = _trellis.put_object(unit["bundle"], fleet.region, bundle)
    _write_all({pathlib.Path(unit["file"]): text for unit, text in zip(units, contents, strict=True)})
    return units


def _packed(strategy: Declaration) -> tuple[dict[str, Any], bytes, str]:
    """A strategy's manifest, its bundle and the bundle's SHA-256."""
    file, sources, code_digest = sources_of(strategy)
    for path, folder in reached_by(file).files.items():
        if folder != file.parent:
            raise BadRequest(
                f"strategy {strategy.name} imports {path}, which is outside of the folder of {file.name}: the bundle "
                "would lack it",
                hint=f"move it into {file.parent}, or install it as a package of the image",
            )
    checked = _trellis.check_manifest(json.dumps(strategy.manifest(file.name, f"sha256:{code_digest}")))
    bundle, digest = _trellis.pack_bundle(sources | {MANIFEST: checked.encode()})
    return json.loads(checked), bundle, digest


def _unit_file(
    fleet: Fleet, strategy: Declaration, manifest: dict[str, Any], digest: str, together: Sequence[str]
) -> str:
    """The text of a unit's file. What a person wrote into the one before stays."""
    name = manifest["unit"]
    path = fleet.folder / "units" / f"{name}.json"
    for upstream in manifest["schedule"].get("units", []):
        if upstream["unit"] not in together and not path.with_name(f"{upstream['unit']}.json").exists():
            raise BadRequest(
                f"strategy {name} runs after {upstream['unit']}, which is not deployed to {fleet.environment}: it "
                "would wait for ever",
                hint=f"deploy {upstream['unit']}, too",
            )
    before: dict[str, Any] = {}
    if path.exists():
        try:
            before = dict(json.loads(path.read_text()))
        except (TypeError, ValueError) as error:
            raise BadRequest(
                f"{path} is no JSON of a unit: {error}",
                hint="correct it or remove it; a deploy keeps what people set in it",
            ) from None
    kept = _KEPT if "class" in before else (*_KEPT_WITHOUT_CLASS, *_KEPT)
    size = {"class": before["class"]} if "class" in before else _size(strategy)
    unit = {
        "unit": name,
        "environment": fleet.environment,
        "digest": f"sha256:{digest}",
        "bundle": f"{fleet.prefix}/{digest}.zip",
        "deployed_ns": time.time_ns(),
        "module": manifest["module"],
        "function": manifest["function"],
        **size,
        "schedule": manifest["schedule"],
        **{field: before[field] for field in kept if field in before},
    }
    return json.dumps(unit, indent=2) + "\n"


def _size(strategy: Declaration) -> dict[str, Any]:
    cpu = float(strategy.cpu)
    return {"cpu": int(cpu) if cpu.is_integer() else cpu, "memory": strategy.memory}


def _write_all(texts: dict[pathlib.Path, str]) -> None:
    """Writes all files or, if one cannot be written, none."""
    fresh = {path: path.with_name(f".{path.name}.{os.getpid()}") for path in texts}
    before = {path: path.read_bytes() if path.exists() else None for path in texts}
    done = []
    try:
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh[path].write_text(text)
        for path in texts:
            fresh[path].replace(path)
            done.append(path)
    except BaseException:
        for path in done:
            old = before[path]
            path.unlink() if old is None else path.write_bytes(old)
        for path in fresh.values():
            path.unlink(missing_ok=True)
        raise


def told(units: Sequence[dict[str, Any]], fleet: Fleet) -> Iterator[str]:
    """What was done, and what to do next, for people."""
    for unit in units:
        put = "put" if unit["put"] else "already there:"
        yield f"{unit['unit']}  {unit['digest'][:19]}  {put} {unit['bundle']}"
        yield f"wrote {unit['file']}"
    yield (
        f"next: commit the change of {fleet.folder / 'units'}; once it is merged, the pipeline runs `fleet apply`, "
        f"which starts the new code in {fleet.environment}"
    )
