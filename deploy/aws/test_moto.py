"""The templates applied: moto's CloudFormation makes what it can, and its API shows what came of it.

moto makes a part of the types. The others are named in NOT_IN_MOTO. A stack that contains them would fail at its first
reference to one, so the test takes them out, and puts a text in place of each reference.
"""

from __future__ import annotations

import copy
import ipaddress
import json
import os
from collections.abc import Iterator
from typing import Any
from unittest import mock

import boto3
import pytest
from moto import mock_aws
from moto.cloudformation.parsing import get_model_map
from templates import NAMES, load

REGION = "eu-central-1"
OWNER, UNITS = "111111111111", "222222222222"
ORGANISATION = "o-abcdefghij"

# Types of our templates that moto 5.2.5 does not make from a template, and why. cfn-lint and rules.py check them.
NOT_IN_MOTO = {
    "AWS::ApplicationAutoScaling::ScalableTarget": "no such type",
    "AWS::ApplicationAutoScaling::ScalingPolicy": "no such type",
    "AWS::CloudWatch::Alarm": "no such type",
    "AWS::CloudWatch::MetricStream": "no such type",
    "AWS::EC2::SecurityGroupEgress": "no such type",
    "AWS::EC2::VPCCidrBlock": "no such type; without it moto refuses the subnets of units, which go, too",
    "AWS::ECS::CapacityProvider": "no such type; its API ends with a server error for managed instances",
    "AWS::ECS::ClusterCapacityProviderAssociations": "no such type",
    "AWS::ECS::Daemon": "no such type",
    "AWS::ECS::DaemonTaskDefinition": "no such type",
    "AWS::KinesisFirehose::DeliveryStream": "no such type",
    "AWS::Logs::AccountPolicy": "no such type",
    "AWS::Logs::Destination": "no such type",
    "AWS::Oam::Link": "no such type",
    "AWS::Oam::Sink": "no such type",
    "AWS::RAM::ResourceShare": "no such type",
    "AWS::S3::BucketPolicy": "no such type",
    "AWS::SNS::TopicPolicy": "no such type",
    "AWS::SQS::QueuePolicy": "no such type",
    "AWS::ServiceDiscovery::PrivateDnsNamespace": "no such type",
    "AWS::ServiceDiscovery::Service": "no such type",
}

# Types that moto knows, but makes wrongly.
WRONG_IN_MOTO = {
    "AWS::ElasticLoadBalancingV2::Listener": "moto makes every load balancer one for HTTP, and refuses TCP",
}
# Properties that moto reads in another form than CloudFormation's, and fails.
NOT_IN_MOTO_PROPERTIES = {("AWS::KMS::Key", "Tags")}

PARAMETERS: dict[str, dict[str, str]] = {
    "account": {
        "OrganizationId": ORGANISATION,
        "DeployerPrincipal": "arn:aws:iam::333333333333:role/pipeline",
        "BootstrapPrincipal": "arn:aws:iam::333333333333:role/platform",
    },
    "network": {
        "Domain": "trellis.internal",
        "OrganizationId": ORGANISATION,
        "ShareWith": "arn:aws:organizations::333333333333:ou/o-abcdefghij/ou-abcd-12345678",
        "Zones": "eu-central-1a,eu-central-1b,eu-central-1c",
        "S3PrefixList": "pl-6ea54007",
        "VendorService": "com.amazonaws.vpce.eu-central-1.vpce-svc-0123456789abcdef0",
    },
    "data": {"OrganizationId": ORGANISATION},
    "cluster": {
        "Flower": "peony",
        "Kind": "core",
        "Domain": "trellis.internal",
        "LakeBucket": f"trellis-lake-{OWNER}-{REGION}",
        "BundleBucket": f"trellis-bundles-{OWNER}-{REGION}",
        "RegistryAccount": OWNER,
        "GeneralInstances": "yes",
        "MemoryInstances": "yes",
        "GpuInstanceTypes": "g6.xlarge",
    },
    "telemetry": {
        "Flower": "peony",
        "OrganizationId": ORGANISATION,
        "CollectorImage": "registry/trellis/collector@sha256:" + "0" * 64,
        "VendorEndpoint": "https://otlp.example.com",
        "VendorSecret": f"arn:aws:secretsmanager:{REGION}:{OWNER}:secret:trellis/vendor",
    },
}


def without(template: dict[str, Any], parameters: dict[str, str]) -> dict[str, Any]:
    """The template without what moto cannot make. A reference to such a resource becomes a text."""
    template = copy.deepcopy(template)
    gone = {
        name
        for name, each in template["Resources"].items()
        if each["Type"] in NOT_IN_MOTO or each["Type"] in WRONG_IN_MOTO
    }
    if "UnitAddressesA" in gone:
        gone |= {f"Unit{kind}{zone}" for kind in ("Subnet", "Routes") for zone in "ABC"}
    for name in gone:
        del template["Resources"][name]
    for resource in template["Resources"].values():
        resource.pop("DependsOn", None)
        for kind, key in NOT_IN_MOTO_PROPERTIES:
            if resource["Type"] == kind:
                resource["Properties"].pop(key, None)
    # moto also computes the outputs whose condition does not hold
    other = {"core": "Unit", "unit": "Core"}.get(parameters.get("Kind", ""))
    template["Outputs"] = {
        key: each for key, each in template["Outputs"].items() if not other or each.get("Condition") != other
    }

    def clean(value: Any) -> Any:
        if isinstance(value, list):
            return [clean(each) for each in value]
        if not isinstance(value, dict):
            return value
        if value.get("Ref") in gone or (value.get("Fn::GetAtt") or [None])[0] in gone:
            return "not-in-moto"
        if isinstance(value.get("Fn::Sub"), str):
            text = value["Fn::Sub"]
            for name in gone:
                text = text.replace(f"${{{name}}}", "not-in-moto").replace(f"${{{name}.Arn}}", "not-in-moto")
            return {"Fn::Sub": text}
        if "Fn::Select" in value and "Fn::Cidr" in value["Fn::Select"][1]:
            index, (_, count, bits) = value["Fn::Select"][0], value["Fn::Select"][1]["Fn::Cidr"]
            core = ipaddress.ip_network(template["Parameters"]["CoreCidr"]["Default"])
            return [str(each) for each in core.subnets(new_prefix=32 - bits)][:count][index]
        return {key: clean(inner) for key, inner in value.items()}

    return clean(template)


def client(service: str, account: str) -> Any:
    """moto keeps accounts apart, and gives one to whoever assumes a role of it."""
    told = boto3.client("sts", REGION).assume_role(RoleArn=f"arn:aws:iam::{account}:role/test", RoleSessionName="test")
    keys = told["Credentials"]
    return boto3.client(
        service,
        REGION,
        aws_access_key_id=keys["AccessKeyId"],
        aws_secret_access_key=keys["SecretAccessKey"],
        aws_session_token=keys["SessionToken"],
    )


def apply(account: str, name: str, **parameters: str) -> dict[str, str]:
    """Creates the stack. Returns its outputs."""
    cloudformation = client("cloudformation", account)
    stack = f"trellis-{parameters.get('Flower', name)}"
    given = {"Grid": "trellis", **PARAMETERS[name], **parameters}
    cloudformation.create_stack(
        StackName=stack,
        TemplateBody=json.dumps(without(load(name), given)),
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in given.items()],
        Capabilities=["CAPABILITY_NAMED_IAM"],
    )
    told = cloudformation.describe_stacks(StackName=stack)["Stacks"][0]
    assert told["StackStatus"] == "CREATE_COMPLETE"
    return {each["OutputKey"]: each["OutputValue"] for each in told.get("Outputs", [])}


@pytest.fixture(scope="module")
def applied() -> Iterator[dict[str, dict[str, str]]]:
    """The grid of one Region: a core cluster with collectors in the owner's account, a cluster of units in another."""
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": REGION}
    with mock.patch.dict(os.environ, keys), mock_aws():
        out = {"account": apply(OWNER, "account"), "network": apply(OWNER, "network"), "data": apply(OWNER, "data")}
        shared = {
            "VpcId": out["network"]["VpcId"],
            "InstanceSecurityGroup": out["network"]["InstanceSecurityGroup"],
            "Subnets": out["network"]["CoreSubnets"],
        }
        out["peony"] = apply(OWNER, "cluster", **shared)
        out["telemetry"] = apply(OWNER, "telemetry")
        out["account of units"] = apply(UNITS, "account")
        out["tulip"] = apply(UNITS, "cluster", Flower="tulip", Kind="unit", **shared)
        yield out


def test_what_moto_cannot_make_is_listed_and_no_more() -> None:
    with mock_aws():
        known = set(get_model_map())
    used = {resource["Type"] for name in NAMES for resource in load(name)["Resources"].values()}
    assert used - known == set(NOT_IN_MOTO)
    assert set(WRONG_IN_MOTO) <= used & known


def test_the_network_has_no_way_out_but_endpoints(applied: dict[str, dict[str, str]]) -> None:
    ec2, vpc = client("ec2", OWNER), applied["network"]["VpcId"]
    mine = [{"Name": "vpc-id", "Values": [vpc]}]
    subnets = ec2.describe_subnets(Filters=mine)["Subnets"]
    assert sorted(each["CidrBlock"] for each in subnets) == ["10.0.0.0/20", "10.0.16.0/20", "10.0.32.0/20"]
    assert not any(each["MapPublicIpOnLaunch"] for each in subnets)
    routes = [route for table in ec2.describe_route_tables(Filters=mine)["RouteTables"] for route in table["Routes"]]
    # the VPC itself, and S3 through its endpoint
    assert {route.get("DestinationCidrBlock", route["GatewayId"][:5]) for route in routes} == {"10.0.0.0/18", "vpce-"}
    assert ec2.describe_internet_gateways()["InternetGateways"] == []
    services = {
        each["ServiceName"].removeprefix(f"com.amazonaws.{REGION}.")
        for each in ec2.describe_vpc_endpoints()["VpcEndpoints"]
    }
    assert {"s3", "ecr.api", "ecr.dkr", "logs", "ecs", "sts", "sts-oidc", "data-servicediscovery"} <= services


def test_a_shard_hears_heads_alone(applied: dict[str, dict[str, str]]) -> None:
    groups = client("ec2", OWNER).describe_security_groups(GroupIds=[applied["network"]["ShardSecurityGroup"]])
    allowed = groups["SecurityGroups"][0]["IpPermissions"]
    assert [(each["FromPort"], each["ToPort"]) for each in allowed] == [(7400, 7400)]
    assert [pair["GroupId"] for pair in allowed[0]["UserIdGroupPairs"]] == [applied["network"]["HeadSecurityGroup"]]


def test_clusters_are_named_after_flowers_in_their_accounts(applied: dict[str, dict[str, str]]) -> None:
    for account, flower in ((OWNER, "peony"), (UNITS, "tulip")):
        assert client("ecs", account).list_clusters()["clusterArns"] == [
            f"arn:aws:ecs:{REGION}:{account}:cluster/{flower}"
        ]


def test_only_a_core_cluster_has_roles_of_heads_and_shards(applied: dict[str, dict[str, str]]) -> None:
    def tasks(account: str) -> set[str]:
        roles = client("iam", account).list_roles(PathPrefix="/trellis/trellis/tasks/")["Roles"]
        return {each["RoleName"] for each in roles}

    core = {f"trellis-peony-{each}" for each in ("execution", "head", "shard", "collector-execution")}
    assert tasks(OWNER) == core
    assert tasks(UNITS) == {"trellis-tulip-execution", "trellis-tulip-unit"}


def test_every_role_of_a_task_has_the_boundary_of_its_account(applied: dict[str, dict[str, str]]) -> None:
    for account, name in ((OWNER, "account"), (UNITS, "account of units")):
        iam = client("iam", account)
        for role in iam.list_roles(PathPrefix="/trellis/trellis/tasks/")["Roles"]:
            bound = iam.get_role(RoleName=role["RoleName"])["Role"]["PermissionsBoundary"]["PermissionsBoundaryArn"]
            assert bound == applied[name]["TaskBoundaryArn"]
            assert account in bound


def test_every_log_group_ends(applied: dict[str, dict[str, str]]) -> None:
    # moto drops the key of a log group; rules.py asks for it
    for account, count in ((OWNER, 6), (UNITS, 1)):
        groups = client("logs", account).describe_log_groups()["logGroups"]
        assert len(groups) == count
        for group in groups:
            assert group["retentionInDays"] in (14, 30), group["logGroupName"]


def test_events_of_a_cluster_reach_its_queue(applied: dict[str, dict[str, str]]) -> None:
    events = client("events", UNITS)
    (rule,) = events.list_rules()["Rules"]
    prefixes = [f"arn:aws:ecs:{REGION}:{UNITS}:{kind}/tulip/" for kind in ("service", "task")]
    assert json.loads(rule["EventPattern"])["resources"] == [{"prefix": prefix} for prefix in prefixes]
    (target,) = events.list_targets_by_rule(Rule=rule["Name"])["Targets"]
    assert target["Arn"] == f"arn:aws:sqs:{REGION}:{UNITS}:trellis-tulip-events"


def test_collectors_stand_behind_an_internal_load_balancer(applied: dict[str, dict[str, str]]) -> None:
    (balancer,) = client("elbv2", OWNER).describe_load_balancers()["LoadBalancers"]
    assert (balancer["Scheme"], balancer["LoadBalancerName"]) == ("internal", "peony-otlp")
    targets = client("elbv2", OWNER).describe_target_groups()["TargetGroups"]
    assert sorted((each["Port"], each["HealthCheckPort"]) for each in targets) == [(4317, "13133"), (4318, "13133")]
    assert applied["telemetry"]["Endpoint"] == "http://otlp.trellis.internal:4317"
    services = client("ecs", OWNER).list_services(cluster="peony")["serviceArns"]
    assert {each.rsplit("/", 1)[1] for each in services} == {"trellis-gateway", "trellis-sampler"}


def test_images_and_data_are_where_clusters_look_for_them(applied: dict[str, dict[str, str]]) -> None:
    assert applied["data"]["LakeBucket"] == PARAMETERS["cluster"]["LakeBucket"]
    assert applied["data"]["BundleBucket"] == PARAMETERS["cluster"]["BundleBucket"]
    repositories = client("ecr", OWNER).describe_repositories()["repositories"]
    assert {each["repositoryName"] for each in repositories} == {
        f"trellis/{each}" for each in ("head-node", "shard", "qcu", "collector")
    }
    assert {each["imageTagMutability"] for each in repositories} == {"IMMUTABLE"}
