"""Runs the commands and code of the documents, in order, from an empty folder."""

import ast
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from conftest import EXAMPLES, REPOSITORY, WAIT_S, cli

import trellis

pytestmark = pytest.mark.processes
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# `make` builds the checkout for minutes, and its target `test` runs this test; there is no collector of that name
LEFT_OUT = ("make ", "export OTEL_")

# runs all blocks in one interpreter, like a notebook
NOTEBOOK = """
import pathlib, re, subprocess, sys
names = {}
for kind, text in eval(sys.stdin.read()):
    print("---", kind, text, sep="\\n", flush=True)
    if kind == "sh":
        subprocess.run(["bash", "-euo", "pipefail", "-c", text], check=True, stdin=subprocess.DEVNULL)
        continue
    # a block that begins with a file's name is written to that file
    if named := re.match(r"# (\\w+\\.py)\\n", text):
        pathlib.Path(named[1]).write_text(text)
    else:
        exec(compile(text, "<block>", "exec"), names)
"""


def blocks(text):
    return [(kind, body) for kind, body in BLOCK.findall(text) if kind and not body.startswith(LEFT_OUT)]


def environment():
    path = os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "PYTHONPATH": "."}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A new folder for all tests of this file; its grid is stopped at the end."""
    folder = tmp_path_factory.mktemp("newcomer")
    yield folder
    cli("down", cwd=folder)


def played(folder, parts):
    done = subprocess.run(
        [sys.executable, "-c", NOTEBOOK],
        input=repr(parts), cwd=folder, env=environment(), capture_output=True, text=True, timeout=2 * WAIT_S,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_readmes_blocks_run_as_they_are_from_an_empty_folder(folder):
    parts = blocks((REPOSITORY / "README.md").read_text())
    assert [kind for kind, _ in parts] == ["sh", "sh", *["python"] * 3, "sh", "python", "sh", "python"]
    assert parts[-2] == ("sh", "trellis down\n")
    said = played(folder, parts)
    assert re.search(r"succeeded: \d\d rows of 2016-08-10 in signals.mom_12_1, version \d", said)
    assert "waits for equities.daily (input px) to reach" in said
    assert "the grid has ended" in said


def test_the_packages_and_the_examples_own_lines_run_as_they_are(folder):
    code = re.search(r"\n\n((?: {4}.*\n|\n)+)", trellis.__doc__ + "\n")[1]
    usage = [line for file in sorted(EXAMPLES.glob("*.py"))
             for line in ast.get_docstring(ast.parse(file.read_text())).splitlines()
             if line.startswith("trellis ")]  # fmt: skip
    assert usage and "g.read" in code
    shutil.copytree(EXAMPLES, folder / "examples", dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    # else the README's unit would run on and own the output of the examples
    shutil.rmtree(folder / ".trellis" / "units")
    lines = "".join(f"{line.removeprefix('    ')}\n" for line in code.splitlines())
    played(folder, [("sh", "trellis up --detach"), ("python", lines), ("sh", "\n".join(usage)), ("sh", "trellis down")])


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.py")), ids=lambda file: file.stem)
def test_every_example_says_how_it_is_run(file):
    assert f"trellis run examples/{file.name} --session" in ast.get_docstring(ast.parse(file.read_text()))
