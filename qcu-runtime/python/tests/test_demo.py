"""The errors of the demo when it cannot run. (`make demo` itself shows that it runs.)"""

import pathlib
import subprocess
import sys

from conftest import WAIT_S


def demo(*arguments: str, cwd: pathlib.Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "trellis._demo", *arguments]
    return subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=WAIT_S)


def test_a_folder_that_is_not_there_is_told_before_anything_starts(tmp_path):
    done = demo("--data", "nowhere", cwd=tmp_path)
    assert done.returncode == 3 and "nowhere" in done.stderr and "DATA=" in done.stderr
    assert not (tmp_path / ".trellis").exists()


def test_a_folder_without_the_files_is_told_with_what_is_missing_and_all_is_stopped(tmp_path):
    (tmp_path / "data").mkdir()
    done = demo("--data", "data", cwd=tmp_path)
    assert done.returncode == 3 and "sp500_5yr.csv.gz" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / ".trellis" / "demo" / "grid.json").exists()
