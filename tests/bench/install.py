"""Installs the peers: their clients in an environment of the bench, their servers from Debian's packages."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from grid import OUT, ROOT
from report import say

ENVIRONMENT = OUT / "venv"
PYTHON = ENVIRONMENT / "bin" / "python"
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
WHEEL = ROOT / "qcu-runtime" / "python"
# Seconds for the download of packages.
FETCH_S = 600


def clients() -> None:
    """Makes the environment with the wheel and every client that can be installed."""
    stamp = ENVIRONMENT / "stamp"
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    say(f"== setting up {ENVIRONMENT.relative_to(ROOT)}")
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)], check=True)
    site = sysconfig.get_path("purelib", vars={"base": str(ENVIRONMENT)})
    (Path(site) / "trellis.pth").write_text(f"{WHEEL}\n")
    pip = [str(PYTHON), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    if _fetched([*pip, "-r", str(REQUIREMENTS)]):
        stamp.write_text(wanted)
        return
    # one missing client must not prevent the others; without a stamp, the next run tries again
    for line in REQUIREMENTS.read_text().splitlines():
        if line and not line.startswith("#") and not _fetched([*pip, line]):
            say(f"  {line} cannot be installed: its targets will be skipped")


def _fetched(command: list[str]) -> bool:
    try:
        return subprocess.run(command, stdout=subprocess.DEVNULL, timeout=FETCH_S).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def servers() -> None:
    """Installs Redis and PostgreSQL if they are missing, and if this user may do it."""
    if redis() and postgres():
        return
    script = ROOT / ".ci" / "install-test-peers"
    if os.geteuid() != 0:
        say(f"  Redis or PostgreSQL is missing: run `{script.relative_to(ROOT)} bench` as root")
        return
    say("== installing Redis and PostgreSQL")
    if not _fetched([str(script), "bench"]):
        say("  they cannot be installed: what is missing will be skipped")


def redis() -> str | None:
    """The path of a server's program."""
    return shutil.which("redis-server")


def postgres() -> Path | None:
    """The folder with the programs of the newest PostgreSQL."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None
