"""Versions of what is measured here, for the figures' `versions`."""

from __future__ import annotations

import subprocess
import tomllib

from grid import ROOT

# Between a question and its answer, on either side of the wire.
WIRE = ("tonic", "h2", "hyper", "tokio", "prost", "arrow-flight", "arrow-ipc")
# What a head keeps chunks with, and what its shards read them with.
STORE = ("moka", "buoyant_kernel", "parquet")


def ours(crates: tuple[str, ...] = ()) -> dict[str, str]:
    """Of the grid: its revision, the compiler, and these crates as `Cargo.lock` has them."""
    revision = _says("git", "describe", "--always", "--dirty", "--exclude", "*", "--abbrev=12")
    told = {"trellis": revision, "rustc": _says("rustc", "--version").removeprefix("rustc ")}
    locked: dict[str, list[str]] = {}
    for package in tomllib.loads((ROOT / "Cargo.lock").read_text())["package"]:
        locked.setdefault(package["name"], []).append(package["version"])
    told |= {crate: ", ".join(locked.get(crate, [])) for crate in crates}
    return {name: version for name, version in told.items() if version}


def _says(*command: str) -> str:
    """The only line of a command; nothing where it cannot be asked, as git outside of a clone."""
    try:
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
