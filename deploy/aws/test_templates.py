"""The templates of cfn/: cfn-lint's rules, our own, and what they import from one another.

.venv/bin/python -m pytest -q deploy/aws
"""

from __future__ import annotations

import copy
import pathlib
import re
from collections.abc import Callable
from typing import Any

import cfnlint.api
import pytest
import rules
import yaml
from cfnlint.config import ManualArgs
from templates import CFN, NAMES, Loader, load, walk

ROOT = pathlib.Path(__file__).resolve().parents[2]
Template = dict[str, Any]
Break = Callable[[Template], None]


def lint(text: str) -> list[str]:
    # E3006 and the like depend on the Region; a Region is a value, so a usual one is enough
    found = cfnlint.api.lint(text, config=ManualArgs(regions=["us-east-1"], include_checks=["I"]))
    return [f"{match.rule.id} line {match.linenumber}: {match.message}" for match in found]


def findings(template: Template) -> dict[str, list[str]]:
    found = {name: list(rule(template)) for name, rule in rules.RULES.items()}
    return {name: told for name, told in found.items() if told}


@pytest.fixture(scope="module")
def templates() -> dict[str, Template]:
    return {name: load(name) for name in NAMES}


def test_every_template_is_listed() -> None:
    assert {path.stem for path in CFN.iterdir()} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_cfn_lint_finds_nothing(name: str) -> None:
    assert lint((CFN / f"{name}.yaml").read_text()) == []


def test_cfn_lint_knows_managed_instances() -> None:
    """Or it would find nothing because it looks at nothing."""
    text = (CFN / "cluster.yaml").read_text()
    broken = text.replace("BareMetal: excluded", "BareMetal: sometimes").replace("DrainPercent: 5", "DrainPercents: 5")
    found = "\n".join(lint(broken))
    assert "'sometimes' is not one of" in found
    assert "DrainPercents" in found


@pytest.mark.parametrize("name", NAMES)
def test_our_rules_find_nothing(name: str, templates: dict[str, Template]) -> None:
    assert findings(templates[name]) == {}


# --- each rule, and a copy of a template that breaks it


def at(template: Template, path: str) -> Any:
    value: Any = template["Resources"]
    for step in filter(None, path.split(".")):
        value = value[int(step) if step.isdigit() else step]
    return value


def put(path: str, value: Any) -> Break:
    def change(template: Template) -> None:
        parent, _, key = path.rpartition(".")
        at(template, parent)[int(key) if key.isdigit() else key] = value

    return change


def drop(path: str) -> Break:
    def change(template: Template) -> None:
        parent, _, key = path.rpartition(".")
        del at(template, parent)[key]

    return change


def unit_service(**changed: Any) -> Break:
    """A service of one task, as `fleet` creates them, but for what is changed."""
    service = {
        "Cluster": {"Ref": "Cluster"},
        "AvailabilityZoneRebalancing": "DISABLED",
        "DeploymentConfiguration": {
            "MinimumHealthyPercent": 0,
            "MaximumPercent": 100,
            "DeploymentCircuitBreaker": {
                "Enable": True,
                "Rollback": True,
                "ThresholdConfiguration": {"Type": "COUNT", "Value": 3},
            },
        },
        "NetworkConfiguration": {"AwsvpcConfiguration": {"AssignPublicIp": "DISABLED"}},
    }
    return put("Unit", {"Type": "AWS::ECS::Service", "Properties": {**service, **changed}})


def open_role(template: Template) -> None:
    del at(template, "UnitRole.Properties.AssumeRolePolicyDocument.Statement.0")["Condition"]


BROKEN: list[tuple[str, str, Break]] = [
    (
        "associations_name_fargate_alone",
        "cluster",
        lambda t: at(t, "FargateProviders.Properties.CapacityProviders").append({"Ref": "GeneralProvider"}),
    ),
    ("managed_instances_name_their_cluster", "cluster", drop("MemoryProvider.Properties.ClusterName")),
    (
        "managed_instances_name_their_cluster",
        "cluster",
        put("GpuProvider.Properties.ManagedInstancesProvider.PropagateTags", "NONE"),
    ),
    (
        "services_of_one_task_stop_before_they_start",
        "cluster",
        lambda t: (
            unit_service()(t),
            at(t, "Unit.Properties.DeploymentConfiguration").update(MinimumHealthyPercent=100, MaximumPercent=200),
        ),
    ),
    ("services_of_one_task_stop_before_they_start", "cluster", unit_service(AvailabilityZoneRebalancing="ENABLED")),
    ("services_of_one_task_stop_before_they_start", "telemetry", drop("GatewayScaling")),
    (
        "deployments_break_off",
        "telemetry",
        put("GatewayService.Properties.DeploymentConfiguration.DeploymentCircuitBreaker", {"Enable": False}),
    ),
    (
        "deployments_break_off",
        "telemetry",
        drop("SamplerService.Properties.DeploymentConfiguration.DeploymentCircuitBreaker.ThresholdConfiguration"),
    ),
    (
        "stops_take_longer_than_the_drain",
        "telemetry",
        put("GatewayTask.Properties.ContainerDefinitions.0.StopTimeout", rules.DRAIN_S),
    ),
    (
        "stops_take_longer_than_the_drain",
        "cluster",
        put("HostAgentTask.Properties.ContainerDefinitions.0.StopTimeout", 300),
    ),
    (
        "tasks_run_on_fargate_and_on_managed_instances",
        "telemetry",
        put("SamplerTask.Properties.RequiresCompatibilities", ["FARGATE"]),
    ),
    ("tasks_run_on_fargate_and_on_managed_instances", "telemetry", put("SamplerTask.Properties.NetworkMode", "host")),
    (
        "containers_are_closed",
        "telemetry",
        drop("GatewayTask.Properties.ContainerDefinitions.0.ReadonlyRootFilesystem"),
    ),
    ("containers_are_closed", "telemetry", drop("GatewayTask.Properties.ContainerDefinitions.0.LinuxParameters")),
    (
        "containers_are_closed",
        "telemetry",
        put("GatewayTask.Properties.ContainerDefinitions.0.Image", "collector:latest"),
    ),
    (
        "containers_are_closed",
        "telemetry",
        lambda t: at(t, "GatewayTask.Properties.ContainerDefinitions.0.Environment").append(
            {"Name": "VENDOR_AUTHORIZATION", "Value": "Bearer 1"}
        ),
    ),
    (
        "containers_are_closed",
        "cluster",
        put("HostAgentTask.Properties.ContainerDefinitions.0.LogConfiguration.Options.mode", "blocking"),
    ),
    ("nothing_is_public", "network", put("Gateway", {"Type": "AWS::EC2::InternetGateway"})),
    ("nothing_is_public", "network", put("UnitSubnetB.Properties.MapPublicIpOnLaunch", True)),
    (
        "nothing_is_public",
        "telemetry",
        drop("GatewayService.Properties.NetworkConfiguration.AwsvpcConfiguration.AssignPublicIp"),
    ),
    ("nothing_is_public", "telemetry", put("Balancer.Properties.Scheme", "internet-facing")),
    ("connections_are_named", "network", drop("UnitSecurityGroup.Properties.SecurityGroupEgress")),
    (
        "connections_are_named",
        "network",
        put("EndpointSecurityGroup.Properties.SecurityGroupIngress.0.CidrIp", "0.0.0.0/0"),
    ),
    ("connections_are_named", "network", put("UnitToHead.Properties.IpProtocol", "-1")),
    ("endpoints_serve_the_organisation", "network", drop("EcrApiEndpoint.Properties.PolicyDocument")),
    (
        "rights_are_narrow",
        "cluster",
        put("UnitRole.Properties.Policies.0.PolicyDocument.Statement.1.Action", "s3:*"),
    ),
    ("rights_are_narrow", "cluster", put("ShardRole.Properties.Policies.0.PolicyDocument.Statement.0.Resource", "*")),
    (
        "rights_are_narrow",
        "account",
        lambda t: next(
            s
            for s in at(t, "DeployerRole.Properties.Policies.0.PolicyDocument.Statement")
            if s["Action"] == "iam:PassRole"
        ).pop("Condition"),
    ),
    (
        "conditions_on_all_values_need_one",
        "cluster",
        drop("UnitRole.Properties.Policies.0.PolicyDocument.Statement.0.Condition.Null"),
    ),
    ("roles_are_bound", "cluster", drop("HeadRole.Properties.PermissionsBoundary")),
    ("roles_are_bound", "cluster", open_role),
    (
        "roles_are_bound",
        "cluster",
        put(
            "UnitRole.Properties.ManagedPolicyArns",
            [{"Fn::Sub": "arn:${AWS::Partition}:iam::aws:policy/AmazonS3FullAccess"}],
        ),
    ),
    (
        "resources_open_for_the_organisation_alone",
        "data",
        drop("HeadImages.Properties.RepositoryPolicyText.Statement.0.Condition"),
    ),
    (
        "resources_open_for_the_organisation_alone",
        "cluster",
        drop("EventsPolicy.Properties.PolicyDocument.Statement.0.Condition"),
    ),
    ("names_of_iam_are_for_one_region", "account", put("TaskBoundary.Properties.ManagedPolicyName", "task-boundary")),
    ("names_of_iam_are_for_one_region", "cluster", put("UnitRole.Properties.RoleName", {"Fn::Sub": "${Grid}-unit"})),
    ("logs_end", "cluster", drop("UnitLog.Properties.RetentionInDays")),
    ("logs_end", "network", drop("RefusedLog.Properties.KmsKeyId")),
    ("data_is_encrypted", "cluster", put("Events.Properties.SqsManagedSseEnabled", False)),
    ("data_is_encrypted", "data", drop("Lake.Properties.BucketEncryption")),
    ("data_is_encrypted", "account", put("Key.Properties.EnableKeyRotation", False)),
    ("buckets_are_private", "data", put("Lake.Properties.PublicAccessBlockConfiguration.BlockPublicPolicy", False)),
    ("buckets_are_private", "data", drop("BundlesPolicy")),
    ("data_outlives_its_stack", "data", drop("Lake.DeletionPolicy")),
    ("images_do_not_change", "data", put("QcuImages.Properties.ImageTagMutability", "MUTABLE")),
    (
        "nothing_is_billed_by_unit",
        "telemetry",
        lambda t: at(t, "MetricStream.Properties.IncludeFilters").append({"Namespace": "AWS/ECS"}),
    ),
    ("nothing_is_billed_by_unit", "cluster", drop("Cluster.Properties.ClusterSettings")),
    ("nothing_is_billed_by_unit", "network", put("Refused.Properties.TrafficType", "ALL")),
    ("logs_do_not_feed_themselves", "telemetry", drop("OwnLogSubscription.Properties.SelectionCriteria")),
    ("parameters_are_checked", "cluster", lambda t: t["Parameters"]["Flower"].pop("AllowedPattern")),
    ("a_region_is_a_value", "network", put("S3Endpoint.Properties.ServiceName", "com.amazonaws.eu-west-1.s3")),
    ("a_region_is_a_value", "cluster", put("UnitRole.Properties.Path", "/123456789012/")),
]


@pytest.mark.parametrize(
    ("rule", "name", "change"), BROKEN, ids=[f"{rule}-{n}" for n, (rule, _, _) in enumerate(BROKEN)]
)
def test_a_template_that_breaks_a_rule_is_found(
    rule: str, name: str, change: Break, templates: dict[str, Template]
) -> None:
    broken = copy.deepcopy(templates[name])
    change(broken)
    assert set(findings(broken)) == {rule}


def test_every_rule_has_a_template_that_breaks_it() -> None:
    assert {rule for rule, _, _ in BROKEN} == set(rules.RULES)


def test_a_service_of_one_task_that_keeps_the_rules_is_accepted(templates: dict[str, Template]) -> None:
    whole = copy.deepcopy(templates["cluster"])
    unit_service()(whole)
    assert findings(whole) == {}


# --- between templates


def imports(template: Template) -> set[str]:
    found = set()
    for value in walk(template):
        if isinstance(value, dict) and "Fn::ImportValue" in value:
            found.add(value["Fn::ImportValue"]["Fn::Sub"])
    return found


def exports(template: Template) -> set[str]:
    return {output["Export"]["Name"]["Fn::Sub"] for output in template["Outputs"].values() if "Export" in output}


def test_what_is_imported_is_exported_before(templates: dict[str, Template]) -> None:
    known: set[str] = set()
    for name in NAMES:
        assert imports(templates[name]) <= known, name
        known |= exports(templates[name])


def test_a_cluster_takes_the_network_as_parameters(templates: dict[str, Template]) -> None:
    """It also stands in accounts that cannot import from the network's."""
    assert all("-account-" in each for each in imports(templates["cluster"]) | imports(templates["account"]))


def test_templates_are_short_enough_to_be_sent_as_text() -> None:
    for name in NAMES:
        assert (CFN / f"{name}.yaml").stat().st_size <= rules.TEMPLATE_BYTES_MAX, name


def test_aliases_of_yaml_are_refused() -> None:
    with pytest.raises(yaml.YAMLError, match="line 2: CloudFormation knows no aliases"):
        yaml.load("a: &x {b: 1}\nc: *x\n", Loader)


def test_the_drain_deadline_is_that_of_the_binaries() -> None:
    told = re.findall(r'Var::or\("TRELLIS_DRAIN_MS", "(\d+)"', (ROOT / "fabric/src/env/var.rs").read_text())
    assert told == [str(rules.DRAIN_S * 1000)]


def test_ports_are_those_of_the_images_and_of_the_collector(templates: dict[str, Template]) -> None:
    dockerfile = (ROOT / "deploy/images/Dockerfile").read_text()
    port = {int(each) for each in re.findall(r"TRELLIS_LISTEN=0\.0\.0\.0:(\d+)", dockerfile)}
    rule = at(templates["network"], "UnitToHeadIn.Properties")
    assert port == {rule["FromPort"]} == {rule["ToPort"]}
    for name in ("gateway", "sampler"):
        ports = {
            int(each)
            for each in re.findall(r"endpoint: 0\.0\.0\.0:(\d+)", (ROOT / f"deploy/collector/{name}.yaml").read_text())
        }
        task = at(templates["telemetry"], f"{name.title()}Task.Properties.ContainerDefinitions.0")
        assert ports <= {each["ContainerPort"] for each in task["PortMappings"]}
        # what the configuration needs from the environment, it gets
        needed = set(re.findall(r"\$\{env:([A-Z_]+)\}", (ROOT / f"deploy/collector/{name}.yaml").read_text()))
        given = {each["Name"] for each in [*task["Environment"], *task["Secrets"]]}
        assert needed <= given, name
