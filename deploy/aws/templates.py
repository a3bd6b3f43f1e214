"""Reads the templates of cfn/ as plain values: `!Sub x` becomes {"Fn::Sub": x}, as in CloudFormation's JSON."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import yaml

CFN = pathlib.Path(__file__).resolve().parent / "cfn"
# in the order in which they are deployed
NAMES = ("account", "network", "data", "cluster", "telemetry")


class Loader(yaml.SafeLoader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        # CloudFormation refuses what PyYAML would resolve
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError(f"line {self.peek_event().start_mark.line + 1}: CloudFormation knows no aliases")
        return super().compose_node(parent, index)


def _function(loader: Loader, name: str, node: yaml.Node) -> dict[str, Any]:
    if isinstance(node, yaml.ScalarNode):
        value: Any = loader.construct_scalar(node)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        value = loader.construct_mapping(node, deep=True)
    if name == "GetAtt" and isinstance(value, str):
        value = value.split(".", 1)
    return {name if name in ("Ref", "Condition") else f"Fn::{name}": value}


Loader.add_multi_constructor("!", _function)


def load(name: str) -> dict[str, Any]:
    return yaml.load((CFN / f"{name}.yaml").read_text(), Loader)


def walk(value: Any) -> Iterator[Any]:
    """The value and all values in it."""
    yield value
    if isinstance(value, dict):
        for inner in value.values():
            yield from walk(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from walk(inner)


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
