"""The modules of terraform/ deploy exactly the templates: `terraform test` with a mock of the provider.

Needs terraform 1.7 or newer, and the provider hashicorp/aws: from a registry, or from the folder TERRAFORM_MIRROR.
"""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess

import pytest
from templates import NAMES, load

HERE = pathlib.Path(__file__).resolve().parent
# beside the places that terraform knows itself
MIRRORS = [
    os.environ.get("TERRAFORM_MIRROR"),
    *(each.parent for each in pathlib.Path("/opt").glob("*/registry.terraform.io")),
]


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A copy of the modules with the provider installed."""
    if not shutil.which("terraform"):
        pytest.skip("terraform is not installed: the modules are not tested")
    work = tmp_path_factory.mktemp("terraform")
    for folder in ("cfn", "terraform"):
        shutil.copytree(HERE / folder, work / folder)
    mirror = next(filter(None, MIRRORS), None)
    (work / "rc").write_text(
        f'provider_installation {{\n  filesystem_mirror {{ path = "{mirror}" }}\n}}\n' if mirror else ""
    )
    told = terraform(work / "terraform/example", "init", "-backend=false", "-input=false")
    if told.returncode:
        if "Failed to query available provider packages" in told.stderr:
            pytest.skip("the provider hashicorp/aws cannot be had here: the modules are not tested")
        pytest.fail(told.stdout + told.stderr)
    return work / "terraform/example"


def terraform(folder: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "TF_CLI_CONFIG_FILE": str(folder.parents[1] / "rc"), "TF_IN_AUTOMATION": "1"}
    command = ["terraform", f"-chdir={folder}", *arguments, "-no-color"]
    return subprocess.run(command, env=env, capture_output=True, text=True)


def test_there_is_a_module_for_each_template() -> None:
    modules = {path.parent.name for path in (HERE / "terraform").glob("*/main.tf")}
    assert modules == {*NAMES, "example"}


def test_the_example_gives_parameters_that_the_templates_know() -> None:
    """Terraform itself would find out from AWS, at the first apply."""
    text = (HERE / "terraform/example/main.tf").read_text()
    given = {
        "account": r"account = \{(.*?)\n  \}",
        "network": r'module "network" \{.*?parameters = \{(.*?)\n  \}',
        "cluster": r"\n  cluster = \{(.*?)\n  \}",
        "telemetry": r'module "telemetry" \{.*?parameters = \{(.*?)\n  \}',
    }
    for name, pattern in given.items():
        found = re.search(pattern, text, re.S)
        assert found, name
        keys = set(re.findall(r"^\s+([A-Z]\w+)\s+=", found[1], re.M))
        parameters = load(name)["Parameters"]
        assert keys, name
        assert keys <= set(parameters), name
        if name != "cluster":
            needed = {key for key, each in parameters.items() if "Default" not in each} - {"Grid", "Flower"}
            assert needed <= keys, name


def test_modules_are_formatted() -> None:
    if not shutil.which("terraform"):
        pytest.skip("terraform is not installed: the modules are not tested")
    told = subprocess.run(
        ["terraform", "fmt", "-check", "-recursive", str(HERE / "terraform")], capture_output=True, text=True
    )
    assert told.returncode == 0, told.stdout


def test_modules_deploy_the_templates(example: pathlib.Path) -> None:
    told = terraform(example, "test")
    assert told.returncode == 0, told.stdout + told.stderr
    assert "3 passed, 0 failed" in told.stdout
