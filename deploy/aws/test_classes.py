"""classes.json and prices.json, against the images, the binaries and the templates."""

from __future__ import annotations

import copy
import json
import pathlib
import re
from typing import Any

import jsonschema
import pytest
import rules
from templates import load

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CLASSES = json.loads((HERE / "classes.json").read_text())
SCHEMA = json.loads((HERE / "classes.schema.json").read_text())
PRICES = json.loads((HERE / "prices.json").read_text())
SIZING = CLASSES["sizing"]
SOURCES = {"head-node": "head-node", "shard": "shard", "qcu": "qcu-runtime"}


def size(declares: dict[str, Any]) -> dict[str, Any]:
    """The rule of `sizing.why`, written as plainly as possible."""
    cpu, memory, arch = declares["cpu"], declares["memory_gb"], declares.get("arch")
    if declares.get("gpu"):
        return {"provider": SIZING["gpu_provider"], "cpu": cpu, "memory_gb": memory}
    if cpu > SIZING["fargate_vcpu_max"] or memory > SIZING["fargate_memory_gb_max"]:
        much = memory / cpu >= SIZING["large_memory_gb_per_vcpu_min"] and arch == SIZING["large_memory_arch"]
        return {
            "provider": SIZING["large_memory_provider" if much else "large_provider"],
            "cpu": cpu,
            "memory_gb": memory,
        }
    fits = [
        (row["cpu"], gb) for row in SIZING["fargate"] for gb in row["memory_gb"] if row["cpu"] >= cpu and gb >= memory
    ]
    provider = "FARGATE_SPOT" if declares.get("spot") else "FARGATE"
    return {"provider": provider, "cpu": min(fits)[0], "memory_gb": min(fits)[1]}


def test_the_classes_keep_their_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(CLASSES, SCHEMA, cls=jsonschema.Draft202012Validator)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("service.minimum_healthy_percent", 100),
        ("service.maximum_percent", 200),
        ("service.availability_zone_rebalancing", "ENABLED"),
        ("service.circuit_breaker.type", "BOUNDED_PERCENT"),
        ("service.requires_compatibilities", ["FARGATE"]),
        ("service.assign_public_ip", "ENABLED"),
        ("service.readonly_root", False),
        ("classes.unit.desired", 2),
        ("classes.unit.stop_timeout_seconds", 121),
        ("classes.head.providers", ["EC2"]),
        ("classes.head.health_check.command", ["CMD-SHELL", "true"]),
        ("classes.head.unknown", 1),
    ],
)
def test_a_class_that_breaks_a_rule_is_refused(path: str, value: Any) -> None:
    broken = copy.deepcopy(CLASSES)
    *parents, last = path.split(".")
    inner = broken
    for key in parents:
        inner = inner[key]
    inner[last] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, SCHEMA, cls=jsonschema.Draft202012Validator)


@pytest.mark.parametrize("name", CLASSES["classes"])
def test_a_task_is_not_killed_while_it_drains(name: str) -> None:
    assert CLASSES["drain_seconds"] == rules.DRAIN_S
    assert CLASSES["classes"][name]["stop_timeout_seconds"] >= CLASSES["drain_seconds"] + rules.AFTER_DRAIN_S


def test_no_class_with_a_server_runs_on_spot() -> None:
    for name, each in CLASSES["classes"].items():
        assert each["spot"] == ("FARGATE_SPOT" in each["providers"])
        assert not (each["spot"] and each["port"]), name


@pytest.mark.parametrize("name", CLASSES["classes"])
def test_the_image_is_as_the_class_says(name: str) -> None:
    """The same health check and port as in the image; an image that declares none has none here."""
    each = CLASSES["classes"][name]
    stage = (ROOT / "deploy/images/Dockerfile").read_text().split(f" AS {each['image']}\n")[1].split("\nFROM ")[0]
    found = re.search(r"HEALTHCHECK --interval=(\d+)s --timeout=(\d+)s --start-period=(\d+)s CMD (\[.*\])", stage)
    check = each["health_check"]
    told = found and {
        "command": ["CMD", *json.loads(found[4])],
        **{f"{key}_seconds": int(found[n]) for n, key in ((1, "interval"), (2, "timeout"), (3, "start_period"))},
    }
    assert told == (check and {key: value for key, value in check.items() if key != "retries"})
    port = re.search(r"EXPOSE (\d+)", stage)
    assert (int(port[1]) if port else None) == each["port"]
    assert f"/usr/local/bin/{each['image']}" in stage.split("ENTRYPOINT")[1]


@pytest.mark.parametrize("name", CLASSES["classes"])
def test_every_variable_of_a_class_is_known_to_its_binary(name: str) -> None:
    each = CLASSES["classes"][name]
    source = "".join(
        path.read_text()
        for crate in (SOURCES[each["image"]], "fabric")
        for path in (ROOT / crate / "src").rglob("*.rs")
    )
    for variable in [*each["environment"], *each["environment_of_service"]]:
        if variable.startswith("TRELLIS_"):
            assert f'"{variable}"' in source, variable


def test_a_head_has_half_as_much_memory_again_as_its_budget() -> None:
    head = CLASSES["classes"]["head"]
    assert int(head["environment"]["TRELLIS_CACHE_BYTES"].removesuffix("GiB")) * 1.5 <= head["size"]["memory_gb"]


@pytest.mark.parametrize("name", CLASSES["classes"])
def test_a_class_finds_its_cluster_its_name_and_its_capacity(name: str) -> None:
    """What a class names is in the cluster's template."""
    each, cluster = CLASSES["classes"][name], load("cluster")
    resources = cluster["Resources"]
    assert each["cluster_kind"] in cluster["Parameters"]["Kind"]["AllowedValues"]
    names = {r["Properties"]["Name"] for r in resources.values() if r["Type"] == "AWS::ServiceDiscovery::Service"}
    assert each["registry"] is None or each["registry"] in names
    assert f"{name.title()}Role" in resources
    assert f"{name.title()}Log" in resources
    providers = {"FARGATE", "FARGATE_SPOT"}
    for resource in resources.values():
        if resource["Type"] == "AWS::ECS::CapacityProvider":
            providers.add(resource["Properties"]["Name"]["Fn::Sub"].removeprefix("${Flower}-"))
    assert set(each["providers"]) <= providers
    assert (
        SIZING["large_memory_gb_per_vcpu_min"]
        == resources["MemoryProvider"]["Properties"]["ManagedInstancesProvider"]["InstanceLaunchTemplate"][
            "InstanceRequirements"
        ]["MemoryGiBPerVCpu"]["Min"]
    )


def test_a_class_with_a_size_has_one_that_fargate_knows() -> None:
    for name, each in CLASSES["classes"].items():
        if each["size"]:
            assert size(each["size"]) == {"provider": "FARGATE", **each["size"]}, name


@pytest.mark.parametrize("case", CLASSES["sizing_cases"], ids=lambda case: json.dumps(case["declares"]))
def test_sizing_cases_follow_the_rule(case: dict[str, Any]) -> None:
    assert size(case["declares"]) == case["gives"]


def test_the_table_of_fargate_is_that_of_aws() -> None:
    """AWS's rule: from 2, 4 or 8 times the vCPUs in steps; 16 vCPUs and 120 GB at most (API reference of ECS)."""
    table = {row["cpu"]: row["memory_gb"] for row in SIZING["fargate"]}
    steps = {1: (2, 8, 1), 2: (4, 16, 1), 4: (8, 30, 1), 8: (16, 60, 4), 16: (32, 120, 8)}
    assert table.pop(0.25) == [0.5, 1, 2]
    assert table.pop(0.5) == [1, 2, 3, 4]
    assert table == {cpu: list(range(low, high + 1, step)) for cpu, (low, high, step) in steps.items()}
    assert SIZING["fargate_vcpu_max"] == max(steps)
    assert SIZING["fargate_memory_gb_max"] == max(table[16])


def test_every_price_has_a_source() -> None:
    seen = set()
    for price in PRICES["prices"]:
        assert (price["name"], price["arch"]) not in seen
        seen.add((price["name"], price["arch"]))
        assert price["value"] >= 0
        assert len(price["source"]) > 10
