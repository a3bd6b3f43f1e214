"""Versions of the measured software, for `versions` in the figures."""

from __future__ import annotations

import subprocess
import tomllib

from grid import ROOT

# Crates between a read and its answer, on both sides of the wire.
WIRE = ("tonic", "h2", "hyper", "tokio", "prost", "arrow-flight", "arrow-ipc")
# Crates that a head keeps chunks with, and that shards read them with.
STORE = ("moka", "buoyant_kernel", "parquet")


def ours(crates: tuple[str, ...] = ()) -> dict[str, str]:
    """Versions of the grid: its revision, the compiler, and these crates from `Cargo.lock`."""
    revision = _says("git", "describe", "--always", "--dirty", "--exclude", "*", "--abbrev=12")
    told = {"trellis": revision, "rustc": _says("rustc", "--version").removeprefix("rustc ")}
    locked: dict[str, list[str]] = {}
    for package in tomllib.loads((ROOT / "Cargo.lock").read_text())["package"]:
        locked.setdefault(package["name"], []).append(package["version"])
    told |= {crate: ", ".join(locked.get(crate, [])) for crate in crates}
    return {name: version for name, version in told.items() if version}


def _says(*command: str) -> str:
    """The one line that a command prints; "" if it fails, like git outside of a clone."""
    try:
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
