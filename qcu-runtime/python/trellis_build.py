"""PEP 517 build backend: maturin's, plus the grid's own programs in the wheel.

One `pip install` gives `import trellis`, the command `trellis`, and the programs `head-node`, `shard` and `qcu` that
`trellis up` starts. maturin packs an extension or a program, but not both. So this backend builds the programs first
and copies them to `trellis.data/scripts/`, which maturin installs into the environment's `bin` as data scripts.

The programs and the extension are built by one cargo call. Separate calls would unify features differently, and cargo
would compile the dependencies they share twice. maturin's own call afterwards finds everything built.

`TRELLIS_PROFILE` names the cargo profile (default `demo`).
`maturin develop` does not use this backend and installs no programs: use `pip install -e`.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sysconfig

import maturin
from maturin import (  # noqa: F401  re-exported: hooks that this backend does not change
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_wheel,
)

prepare_metadata_for_build_editable = prepare_metadata_for_build_wheel

HERE = pathlib.Path(__file__).resolve().parent
SCRIPTS = HERE / "trellis.data" / "scripts"
PACKAGES = ["trellis-python", "trellis-head", "trellis-shard", "trellis-qcu"]
PROGRAMS = ["head-node", "shard", "qcu"]

# Without build isolation, maturin's program is in this environment, which may not be activated.
os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])

# maturin refuses to start, even for metadata, when the folder of `[tool.maturin] data` is missing.
SCRIPTS.mkdir(parents=True, exist_ok=True)


def _profile():
    return os.environ.get("TRELLIS_PROFILE", "demo")


def _build_programs():
    packages = [flag for package in PACKAGES for flag in ("-p", package)]
    command = ["cargo", "build", "--locked", "--profile", _profile(), "--lib", "--bins", *packages]
    build = subprocess.run(
        [*command, "--message-format", "json-render-diagnostics"],
        cwd=HERE,  # where .cargo/config.toml of the workspace applies
        stdout=subprocess.PIPE,
        text=True,
    )
    if build.returncode != 0:
        raise SystemExit(f"cargo build failed with exit status {build.returncode}; its messages are above")
    messages = [json.loads(line) for line in build.stdout.splitlines() if line.startswith("{")]
    built = {m["target"]["name"]: m["executable"] for m in messages if m.get("executable")}
    for program in PROGRAMS:
        # A running program cannot be overwritten in place (ETXTBSY): write beside it, then rename.
        fresh = SCRIPTS / f".{program}.new"
        shutil.copy2(built[program], fresh)
        fresh.replace(SCRIPTS / program)


def _with_profile(config_settings):
    settings = dict(config_settings or {})
    if "maturin.build-args" not in settings and "build-args" not in settings:
        given = os.environ.get("MATURIN_PEP517_ARGS", "")
        settings["maturin.build-args"] = f"--locked --profile {_profile()} {given}".strip()
    return settings


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    _build_programs()
    return maturin.build_wheel(wheel_directory, _with_profile(config_settings), metadata_directory)


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    _build_programs()
    return maturin.build_editable(wheel_directory, _with_profile(config_settings), metadata_directory)
