"""Writes scale.md: what the target fleet asks of AWS and of its own processes.

python deploy/aws/scale.py            writes scale.md, from constants.json, prices.json and classes.json
python deploy/aws/scale.py --check    exit code 1 if scale.md is not what it would write
"""

from __future__ import annotations

import json
import math
import pathlib
import re
import sys
import types
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PAGE = HERE / "scale.md"
HOURS = json.loads((HERE / "prices.json").read_text())["hours_a_month"]
MONTH_S = HOURS * 3600
DAYS = HOURS / 24
CLASSES = json.loads((HERE / "classes.json").read_text())["classes"]
PRICES = {
    (each["name"], each["arch"]): each["value"] for each in json.loads((HERE / "prices.json").read_text())["prices"]
}

Constants = types.SimpleNamespace
GROWS = "**grows**"


def constants() -> tuple[Constants, list[dict[str, Any]]]:
    told = json.loads((HERE / "constants.json").read_text())
    values = dict(told["fleet"])
    for each in told["constants"]:
        if "read" in each:
            file, pattern = each["read"]
            found = set(re.findall(pattern, (ROOT / file).read_text()))
            if len(found) != 1:
                where = f"{file} has {len(found)} values like {pattern}"
                sys.exit(f"{each['name']}: {where}; name the new place in constants.json")
            each["value"] = int(found.pop().replace("_", ""))
        values[each["name"]] = each["value"]
    return Constants(**values), told["constants"]


def n(value: float) -> str:
    """At most three digits that count, with commas."""
    if value == 0:
        return "0"
    digits = 2 - math.floor(math.log10(abs(value)))
    value = round(value, digits)
    return f"{value:,.{max(0, digits)}f}".rstrip("0").rstrip(".") if digits > 0 else f"{value:,.0f}"


def section(title: str, text: str, head: list[str], rows: list[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]]
    return [f"## {title}", "", *([text, ""] if text else []), *lines, ""]


def fargate(arch: str, vcpu: float, gb: float, spot: str = "") -> float:
    """USD a month of one task."""
    return HOURS * (vcpu * PRICES[f"fargate_{spot}vcpu_hour", arch] + gb * PRICES[f"fargate_{spot}gb_hour", arch])


def looks_s(c: Constants) -> float:
    return min(c.looks, c.datasets) / (c.poll_ms / 1000)


def lists_s(c: Constants) -> float:
    return 1 / c.list_page_s + c.search_lists / c.search_s


def at_rest(c: Constants) -> list[str]:
    processes = c.units + c.heads + c.shards
    dns = c.dns_queries / c.ttl_s
    renewals = c.units * c.lease_renewals / c.lease_ttl_s
    pairs = c.heads * c.shards
    listed_min = math.ceil(c.datasets / c.list_names) * c.list_page_s / 60
    points = c.series / c.metrics_s
    cores = points * processes / c.points_core_s
    seen = f"no process learns by DNS of more than {c.dns_answers} heads or shards"
    return section(
        "Work at rest",
        "",
        ["each second", "one process", "the fleet", "note", ""],
        [
            [
                "DNS queries",
                n(dns),
                n(dns * processes),
                f"an interface may send {c.resolver_packets_s:,}; {seen}",
                "fixed",
            ],
            [
                "renewals of leases, at a head",
                n(renewals / c.heads),
                n(renewals),
                "each also at a shard; not stored",
                "units / heads",
            ],
            [
                "heartbeats into a head",
                n(c.shards / c.heartbeat_s),
                n(pairs / c.heartbeat_s),
                "from each shard it knows",
                GROWS,
            ],
            ["tables that a shard looks at", n(looks_s(c)), n(looks_s(c) * c.shards), "one GET each", "fixed"],
            [
                "LISTs of a shard",
                n(lists_s(c)),
                n(lists_s(c) * c.shards),
                f"all names each {n(listed_min)} minutes",
                "fixed",
            ],
            ["reads of the scrubber", n(1 / c.scrub_s), n(c.shards / c.scrub_s), "one GET each", "fixed"],
            ["new tokens", n(2 / c.token_s), n(2 * c.units / c.token_s), "STS publishes no rate for them", "fixed"],
            ["metric points", n(points), n(points * processes), f"{n(cores)} cores of collectors", "fixed"],
        ],
    )


def connections(c: Constants) -> list[str]:
    def memory(count: float) -> str:
        return f"{n(count * c.connection_kib / 1024)} MiB"

    of_unit = c.dns_answers * c.connections_max
    from_units = c.units * c.dns_answers / c.heads
    of_head = f"{n(from_units)} from units (at most {n(from_units * c.connections_max)})"
    catalog = c.datasets * c.dataset_kib / 1024
    return section(
        "Connections and memory",
        "",
        ["process", "connections", "their memory", "other memory at rest", ""],
        [
            ["unit", f"to {c.dns_answers} heads; at most {n(of_unit)}", memory(of_unit), "", "fixed"],
            [
                "head",
                f"{of_head}, {n(c.shards)} to shards",
                memory(from_units + c.shards),
                f"{c.idle_mb} MB, and its budget",
                GROWS,
            ],
            [
                "shard",
                f"{n(c.heads)} from heads",
                memory(c.heads),
                f"{c.idle_mb} MB, and {n(catalog)} MiB for the list of datasets",
                GROWS,
            ],
        ],
    )


def calls(c: Constants) -> list[str]:
    account = c.units / c.unit_accounts
    write_min = account / (c.service_writes_s * c.rate_used) / 60
    define_min = account / (c.definition_writes_s * c.rate_used) / 60
    reads = c.units / c.list_page + c.units / c.describe_page
    sweep_min = reads / c.unit_accounts / (c.service_reads_s * c.sweep_share) / 60
    names = (c.heads + c.shards) * c.route53_changes_registration
    classes = f"; by class it is {c.task_definitions} calls"
    return section(
        "Calls of `fleet`",
        f"{c.unit_accounts} accounts of {n(account)} units each, at {n(c.rate_used * 100)} % of the published rates.",
        ["what", "calls", "minutes"],
        [
            ["create all units", n(c.units), n(write_min)],
            ["start all tasks, at Fargate's rate", "", n(account / c.fargate_starts_s / 60)],
            ["roll all units (UpdateService)", n(c.units), n(write_min)],
            [f"register a task definition for each unit{classes}", n(c.units), n(define_min)],
            [f"look at every service, with {n(c.sweep_share * 100)} % of the reads", n(reads), n(sweep_min)],
            [
                "register all heads and shards again (changes of Route 53)",
                n(names),
                n(names / c.route53_changes_s / 60),
            ],
        ],
    )


def quotas(c: Constants) -> list[str]:
    def ask(value: float, step: int) -> list[str]:
        return [f"{value:,.0f}", f"{math.ceil(value * c.quota_room / step) * step:,}"]

    units, owner = "each account of units", "the network's account"
    account = c.units / c.unit_accounts
    owners = c.heads + c.shards
    core = c.heads * CLASSES["head"]["size"]["cpu"] + c.shards * CLASSES["shard"]["size"]["cpu"]
    enough = f"enough with {c.core_flowers} core flowers"
    rate_min = account / (4 * c.service_writes_s * c.rate_used) / 60
    return section(
        "Quotas to ask for",
        f"What is used, times {c.quota_room}, because the alarms are at 80 %. Ask in each account and Region.",
        ["quota", "where", "default", "used", "ask for"],
        [
            ["Fargate on-demand vCPUs", units, "6", *ask(account * c.unit_vcpu, 500)],
            ["Fargate on-demand vCPUs", owner, "6", *ask(core, 500)],
            ["Fargate Spot vCPUs", units, "6", "the units that allow it", "the same as on demand"],
            [
                "EC2 vCPUs, standard and G",
                "where managed instances are",
                "by account",
                "what units declare",
                "the plan's sum",
            ],
            ["network interfaces", units, "5,000", *ask(account, 500)],
            ["network interfaces", owner, "5,000", *ask(owners, 500)],
            ["network address units of the VPC", owner, "64,000", *ask(c.units + owners, 16_000)],
            ["accounts that share the VPC", owner, "100", n(c.unit_accounts), "enough"],
            [
                "services of a cluster",
                units,
                "5,000",
                n(c.units / c.unit_flowers),
                f"enough with {c.unit_flowers} flowers",
            ],
            ["instances of a namespace", owner, "2,000", n(owners / c.core_flowers), enough],
            ["instances of a name", owner, "1,000, fixed", n(c.heads / c.core_flowers), enough],
            [
                "Create-, Update-, DeleteService a second",
                units,
                "5",
                "5",
                f"20: a roll then takes {n(rate_min)} minutes",
            ],
        ],
    )


def month(c: Constants) -> list[str]:
    def task(name: str) -> tuple[str, float]:
        size = CLASSES[name]["size"]
        return f"{name}s, {size['cpu']} vCPUs and {size['memory_gb']} GB, Graviton", fargate("ARM64", *size.values())

    head, head_usd = task("head")
    shard, shard_usd = task("shard")
    unit = f"units, {c.unit_vcpu} vCPU and {c.unit_gb} GB"
    x86 = c.units * fargate("X86_64", c.unit_vcpu, c.unit_gb)
    arm = c.units * fargate("ARM64", c.unit_vcpu, c.unit_gb)
    spot = c.units * fargate("X86_64", c.unit_vcpu, c.unit_gb, "spot_")
    get, put = PRICES["s3_get_1000", None] / 1000, PRICES["s3_put_1000", None] / 1000
    looks, lists, scrubs = looks_s(c) * c.shards, lists_s(c) * c.shards, c.shards / c.scrub_s
    commit = c.puts_publish * put + c.gets_publish * get
    publishes = c.units * c.publishes_day
    across = c.units * c.unit_reads_gb_day * (1 - 1 / c.zones)
    lines = (c.units + c.heads + c.shards) * c.lines_minute / 60 * c.line_bytes
    endpoints = (HERE / "cfn/network.yaml").read_text().count("VpcEndpointType: Interface")
    endpoint_usd = endpoints * c.zones * HOURS * PRICES["endpoint_zone_hour", None]
    return section(
        "Price of a month",
        "In USD, from `prices.json`. Every task runs all day, but where a row says otherwise.",
        ["what", "how much", "a month"],
        [
            [f"{unit}, Fargate x86", n(c.units), n(x86)],
            [f"{unit}, Fargate Graviton", n(c.units), n(arm)],
            [f"{unit}, Fargate Spot x86", n(c.units), n(spot)],
            [f"{unit}, Fargate x86, an hour a day (scheduled)", n(c.units), n(x86 / 24)],
            [head, n(c.heads), n(c.heads * head_usd)],
            [shard, n(c.shards), n(c.shards * shard_usd)],
            ["S3: shards look at tables", f"{n(looks)} GETs a second", n(looks * MONTH_S * get)],
            ["S3: shards list and search", f"{n(lists)} LISTs a second", n(lists * MONTH_S * put)],
            ["S3: the scrubber", f"{n(scrubs)} GETs a second", n(scrubs * MONTH_S * get)],
            ["S3: publishes", f"{n(publishes)} a day", n(publishes * DAYS * commit)],
            ["reads from zone to zone", f"{n(across)} GB a day", n(across * DAYS * PRICES["zone_to_zone_gb", None])],
            [
                "lines in CloudWatch",
                f"{n(lines / 1e6)} MB a second",
                n(lines * MONTH_S / 1e9 * PRICES["logs_gb", None]),
            ],
            ["endpoints of AWS", f"{endpoints} in {c.zones} zones", n(endpoint_usd)],
        ],
    )


def render() -> str:
    c, listed = constants()
    kinds = {"code": "in the code", "measured": "measured", "published": "published", "assumed": "**assumed**"}
    rows = [[e["name"], f"{e['value']:,}", e["unit"], kinds[e["kind"]], e["source"]] for e in listed]
    out = [
        "# What the target asks for",
        "",
        f"{c.units:,} units, {c.heads:,} heads, {c.shards:,} shards, {c.datasets:,} datasets.",
        "`scale.py` writes this page from the constants at its end. It is arithmetic: nobody has run such a fleet.",
        f"{GROWS} marks work of one process that grows with the fleet. The design forbids that: such a row is a defect",
        "of today's code.",
        "",
        *at_rest(c),
        *connections(c),
        *calls(c),
        *quotas(c),
        *month(c),
        *section("Constants", "", ["constant", "value", "unit", "", "source"], rows),
    ]
    return "\n".join(out).rstrip("\n") + "\n"


if __name__ == "__main__":
    text = render()
    if "--check" in sys.argv[1:]:
        sys.exit(0 if PAGE.read_text() == text else f"{PAGE} is old: python deploy/aws/scale.py")
    PAGE.write_text(text)
