"""Runs every test, Rust and Python, and closes with one line: `N passed, N failed`.

Both runners always run, so that one failure does not hide another. Exit code 0 only if nothing failed and
both ended well.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CARGO = re.compile(r"^test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored")
# a line of a test that lacks a peer: its runner counts it as passed
SKIPPED = re.compile(r"^skipped: ")
PYTEST = re.compile(r"(\d+) (passed|failed|error|errors|skipped)")


def stream(command: list[str], **env: str) -> tuple[int, list[str]]:
    """Runs `command`. Shows its output as it comes, and returns it."""
    print("==", " ".join(command), flush=True)
    lines = []
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        for line in process.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            lines.append(line)
    return process.returncode, lines


def main() -> int:
    passed = failed = skipped = 0
    # Tests of whole grids start the real programs. Built together with the tests, they have the tests'
    # features, and nothing is compiled twice. Built alone, tokio lacks `test-util` and is built again.
    stream(["cargo", "build", "--workspace", "--bins", "--tests", "--quiet"])
    # without the prefix TRELLIS_: programs refuse unknown variables with it
    programs = {"GRID_BIN_DIR": str(ROOT / "target/debug")}
    rust, lines = stream(["cargo", "test", "--workspace", "--no-fail-fast", "--quiet"], **programs)
    for match in filter(None, map(CARGO.match, lines)):
        ok, bad, ignored = map(int, match.groups())
        passed, failed, skipped = passed + ok, failed + bad, skipped + ignored
    lacking = sum(1 for line in lines if SKIPPED.match(line))
    passed, skipped = passed - lacking, skipped + lacking
    if rust and not failed:
        failed += 1  # did not compile, or a test binary died
    # Tests wait for processes most of the time. Those of a file share a grid.
    pytest = [str(ROOT / ".venv/bin/python"), "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile"]
    python, lines = stream([*pytest, "qcu-runtime/python/tests"])
    counts = {word: int(n) for n, word in PYTEST.findall(lines[-1] if lines else "")}
    bad = sum(counts.get(word, 0) for word in ("failed", "error", "errors"))
    passed, skipped = passed + counts.get("passed", 0), skipped + counts.get("skipped", 0)
    failed += bad or (1 if python else 0)
    tail = f", {skipped} skipped" if skipped else ""
    print(f"{passed} passed, {failed} failed{tail}")
    return 1 if failed or rust or python else 0


if __name__ == "__main__":
    sys.exit(main())
