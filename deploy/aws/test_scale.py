"""scale.md is what scale.py writes, and the numbers that people ask AWS for follow from the target."""

from __future__ import annotations

import json
import re

import pytest
import scale


def test_the_page_is_what_the_script_writes() -> None:
    assert scale.PAGE.read_text() == scale.render(), "python deploy/aws/scale.py"


def test_every_constant_says_where_it_is_from_and_is_used() -> None:
    source = (scale.HERE / "scale.py").read_text()
    told = json.loads((scale.HERE / "constants.json").read_text())
    for each in told["constants"]:
        assert each["kind"] in ("code", "measured", "published", "assumed"), each["name"]
        assert len(each["source"]) >= 8, each["name"]
        assert ("value" in each) != ("read" in each), each["name"]
        assert f"c.{each['name']}" in source, f"{each['name']} is not used"
        if each["kind"] == "published":
            assert "read 20" in each["source"] or "OpenTelemetry" in each["source"], each["name"]
    for name in told["fleet"]:
        assert f"c.{name}" in source, f"{name} is not used"


def test_a_constant_of_the_code_that_moved_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    told = json.loads((scale.HERE / "constants.json").read_text())
    moved = next(each for each in told["constants"] if each["name"] == "lease_ttl_s")
    moved["read"][1] = "const AGE: Duration = Duration::from_secs\\((\\d+)\\)"
    (tmp_path / "constants.json").write_text(json.dumps(told))
    monkeypatch.setattr(scale, "HERE", tmp_path)
    with pytest.raises(SystemExit, match=r"lease_ttl_s: qcu-runtime/src/run/lease\.rs has 0 values"):
        scale.constants()


def test_the_quotas_of_the_page_hold_the_target() -> None:
    """What is asked for is at least what is used."""
    page = scale.PAGE.read_text()
    rows = re.findall(
        r"^\| (.+?) \| .+? \| .+? \| ([\d,]+) \| ([\d,]+)[ |:]",
        page.split("## Quotas to ask for")[1].split("## Price")[0],
        re.M,
    )
    assert len(rows) >= 5
    for name, used, asked in rows:
        assert int(used.replace(",", "")) <= int(asked.replace(",", "")), name


@pytest.mark.parametrize(
    ("value", "told"),
    [(0, "0"), (0.3, "0.3"), (0.00222, "0.00222"), (7.333, "7.33"), (40000, "40,000"), (147234, "147,000")],
)
def test_numbers_have_three_digits(value: float, told: str) -> None:
    assert scale.n(value) == told
