"""The fake, asked by boto3: its answers have the shapes of AWS's models, and are moto's where moto is right.

Both witnesses were written by others, so the fake cannot agree with our own client's faults unseen.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import boto3
import botocore.model
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from moto import mock_aws

ROOT = Path(__file__).resolve().parents[2]
REGION = "eu-central-1"
UNITS = "222222222222"
# Codes that every service may answer; the models of the calls do not list them.
COMMON = {"ThrottlingException", "Throttling", "ValidationError", "NotFaked"}

# Cloud Map has two protocols. The Rust SDK speaks JSON, boto3 would speak CBOR, so it is told what to prefer.
JSON_FIRST = ("json", "query", "ec2")

Client = Callable[[str], Any]


@pytest.fixture(autouse=True)
def json_first() -> Iterator[None]:
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": REGION}
    with (
        mock.patch.object(botocore.model, "PRIORITY_ORDERED_SUPPORTED_PROTOCOLS", JSON_FIRST),
        mock.patch.dict(os.environ, keys),
    ):
        yield


@pytest.fixture(scope="module")
def fake() -> Iterator[Callable[..., str]]:
    """Starts fakes, in which ten minutes pass in a second unless told otherwise. Returns their addresses."""
    build = ["cargo", "build", "--quiet", "--package", "trellis-aws-fake", "--example", "serve"]
    subprocess.run(build, cwd=ROOT, check=True)
    started = []

    def start(speed: int = 600) -> str:
        program = ROOT / "target" / "debug" / "examples" / "serve"
        process = subprocess.Popen(
            [program, str(speed)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout
        return process.stdout.readline().strip()

    yield start
    for process in started:
        process.communicate()


def matches(model: Any, shape: Any, value: Any, at: str) -> None:
    """Fails if a value does not have the shape, or has a member that the model does not know."""
    kind = shape.type_name
    if kind == "structure":
        assert isinstance(value, dict), at
        unknown = set(value) - set(shape.members)
        assert not unknown, f"{at} has {unknown}, which the model does not know"
        missing = set(shape.required_members) - set(value)
        assert not missing, f"{at} lacks {missing}"
        for key, inner in value.items():
            matches(model, shape.members[key], inner, f"{at}.{key}")
    elif kind == "list":
        assert isinstance(value, list), at
        for index, inner in enumerate(value):
            matches(model, shape.member, inner, f"{at}[{index}]")
    elif kind == "map":
        assert isinstance(value, dict), at
        for key, inner in value.items():
            matches(model, shape.value, inner, f"{at}.{key}")
    elif kind == "string":
        assert isinstance(value, str), f"{at} is {value!r}"
        assert not shape.enum or value in shape.enum, f"{at} is {value!r}, not one of {shape.enum}"
    elif kind in ("integer", "long"):
        assert isinstance(value, int) and not isinstance(value, bool), f"{at} is {value!r}"
    elif kind == "boolean":
        assert isinstance(value, bool), f"{at} is {value!r}"
    elif kind in ("timestamp", "double", "float"):
        assert isinstance(value, int | float), f"{at} is {value!r}"
    else:
        raise AssertionError(f"{at}: nobody wrote how to check {kind}")


def checked(url: str, account: str) -> Client:
    """Clients of the fake whose every answer is compared with the model."""

    def client(service: str) -> Any:
        made = boto3.client(
            service,
            REGION,
            endpoint_url=url,
            aws_access_key_id=f"ASIA{account}0001",
            aws_secret_access_key="secret",
            config=Config(inject_host_prefix=False, retries={"total_max_attempts": 1}),
        )

        def compare(operation_model: Any, response_dict: dict[str, Any], **_: Any) -> None:
            if service == "sts":  # XML; botocore's parser reads it or fails
                return
            body = json.loads(response_dict["body"] or "{}")
            name = operation_model.name
            if response_dict["status_code"] == 200:
                if operation_model.output_shape is not None:
                    matches(operation_model.service_model, operation_model.output_shape, body, name)
            else:
                code = body["__type"].rsplit("#")[-1]
                known = {shape.name: shape for shape in operation_model.error_shapes}
                assert code in known or code in COMMON, f"{name} does not fail with {code}"
                if code in known:
                    status = known[code].metadata.get("error", {}).get("httpStatusCode", 400)
                    assert response_dict["status_code"] == status, f"{name}: {code}"

        made.meta.events.register(f"before-parse.{made.meta.service_model.service_id.hyphenize()}", compare)
        return made

    return client


def moto(service: str) -> Any:
    """moto keeps accounts apart, and gives one to whoever assumes a role of it."""
    told = boto3.client("sts", REGION).assume_role(
        RoleArn=f"arn:aws:iam::{UNITS}:role/test", RoleSessionName="test"
    )
    keys = told["Credentials"]
    return boto3.client(
        service,
        REGION,
        aws_access_key_id=keys["AccessKeyId"],
        aws_secret_access_key=keys["SecretAccessKey"],
        aws_session_token=keys["SessionToken"],
        config=Config(inject_host_prefix=False),
    )


def code(call: Callable[..., Any], **parameters: Any) -> str:
    with pytest.raises(ClientError) as refused:
        call(**parameters)
    return str(refused.value.response["Error"]["Code"])


def definition(family: str, **more: Any) -> dict[str, Any]:
    return {
        "family": family,
        "networkMode": "awsvpc",
        "requiresCompatibilities": ["FARGATE"],
        "cpu": "1024",
        "memory": "2048",
        "executionRoleArn": f"arn:aws:iam::{UNITS}:role/execution",
        "containerDefinitions": [
            {
                "name": "unit",
                "image": "registry/qcu@sha256:0",
                "stopTimeout": 30,
                "environment": [{"name": "A", "value": "b"}],
            }
        ],
        **more,
    }


def service(name: str, cluster: str, task_definition: str, **more: Any) -> dict[str, Any]:
    return {
        "cluster": cluster,
        "serviceName": name,
        "taskDefinition": task_definition,
        "desiredCount": 1,
        "clientToken": f"{name}-1",
        "capacityProviderStrategy": [{"capacityProvider": "FARGATE", "weight": 1}],
        "availabilityZoneRebalancing": "DISABLED",
        "deploymentConfiguration": {
            "minimumHealthyPercent": 0,
            "maximumPercent": 100,
            "deploymentCircuitBreaker": {
                "enable": True,
                "rollback": False,
                "thresholdConfiguration": {"type": "COUNT", "value": 3},
            },
        },
        "networkConfiguration": {"awsvpcConfiguration": {"subnets": ["subnet-1"]}},
        "propagateTags": "SERVICE",
        "tags": [{"key": "trellis:unit", "value": name}],
        **more,
    }


def project(answer: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: answer.get(key) for key in keys}


def network(client: Client) -> dict[str, Any]:
    """moto looks whether subnet and security group exist; the fake has no EC2."""
    subnet, group = "subnet-1", "sg-1"
    if client is moto:
        ec2 = client("ec2")
        vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
        subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.0.0.0/24")["Subnet"]["SubnetId"]
        group = ec2.create_security_group(GroupName="units", Description="units", VpcId=vpc)["GroupId"]
    return {"awsvpcConfiguration": {"subnets": [subnet], "securityGroups": [group]}}


def of_ecs(client: Client) -> list[Any]:
    """Calls of ECS whose answers moto gives as AWS does. Returns what is to be the same."""
    ecs = client("ecs")
    where = network(client)
    out: list[Any] = []
    made = ecs.create_cluster(clusterName="rose")["cluster"]
    out.append(project(made, "clusterArn", "clusterName", "status", "activeServicesCount"))
    out.append(sorted(arn for arn in ecs.list_clusters()["clusterArns"] if arn.endswith("rose")))
    described = ecs.describe_clusters(clusters=["rose", "lily"])
    out.append([each["clusterName"] for each in described["clusters"]])
    out.append([project(each, "arn", "reason") for each in described["failures"]])

    fields = ("taskDefinitionArn", "family", "revision", "status", "networkMode", "cpu", "memory")
    for _ in range(2):
        task = ecs.register_task_definition(**definition("unit"))["taskDefinition"]
        out.append(project(task, *fields, "requiresCompatibilities", "volumes", "placementConstraints"))
        out.append(
            project(
                task["containerDefinitions"][0], "name", "image", "essential", "stopTimeout", "environment"
            )
        )
    out.append(ecs.describe_task_definition(taskDefinition="unit")["taskDefinition"]["revision"])
    out.append(ecs.describe_task_definition(taskDefinition="unit:1")["taskDefinition"]["revision"])
    out.append(ecs.list_task_definitions(familyPrefix="unit")["taskDefinitionArns"])
    out.append(code(ecs.describe_task_definition, taskDefinition="unit:9"))
    ecs.deregister_task_definition(taskDefinition="unit:1")
    out.append(ecs.list_task_definitions(familyPrefix="unit")["taskDefinitionArns"])

    for name in ("b", "a", "c"):
        made = ecs.create_service(**service(name, "rose", "unit:2", networkConfiguration=where))["service"]
        out.append(
            project(
                made, "serviceArn", "serviceName", "clusterArn", "status", "desiredCount", "taskDefinition"
            )
        )
        out.append(made["tags"])
        out.append(project(made, "schedulingStrategy", "propagateTags", "loadBalancers", "serviceRegistries"))
    # moto gives one page, whatever its size is to be
    pages = ecs.get_paginator("list_services").paginate(cluster="rose", PaginationConfig={"PageSize": 2})
    out.append(sorted(arn for page in pages for arn in page["serviceArns"]))
    described = ecs.describe_services(cluster="rose", services=["a", "z"], include=["TAGS"])
    out.append([(each["serviceName"], each["tags"]) for each in described["services"]])
    # moto's ARN of what is missing has no cluster
    out.append([(each["arn"].rsplit("/")[-1], each["reason"]) for each in described["failures"]])
    out.append(ecs.update_service(cluster="rose", service="a", desiredCount=0)["service"]["desiredCount"])
    arn = ecs.describe_services(cluster="rose", services=["a"])["services"][0]["serviceArn"]
    ecs.tag_resource(resourceArn=arn, tags=[{"key": "more", "value": "x"}])
    out.append(sorted(each["key"] for each in ecs.list_tags_for_resource(resourceArn=arn)["tags"]))
    ecs.untag_resource(resourceArn=arn, tagKeys=["more"])
    out.append([each["key"] for each in ecs.list_tags_for_resource(resourceArn=arn)["tags"]])

    out.append(code(ecs.describe_services, cluster="lily", services=["a"]))
    out.append(code(ecs.update_service, cluster="rose", service="z", desiredCount=0))
    out.append(code(ecs.delete_service, cluster="rose", service="b"))
    out.append(code(ecs.delete_service, cluster="rose", service="z"))
    out.append(code(ecs.create_service, **service("d", "rose", "unit:9")))
    out.append(code(ecs.create_service, **service("d", "lily", "unit:2")))
    ecs.delete_service(cluster="rose", service="a")
    return out


def of_cloud_map(client: Client) -> list[Any]:
    names = client("servicediscovery")
    out: list[Any] = []
    names.create_private_dns_namespace(Name="rose.trellis.internal", Vpc="vpc-1")
    (namespace,) = [each for each in names.list_namespaces()["Namespaces"] if each["Name"].startswith("rose")]
    out.append(project(namespace, "Name", "Type"))
    found = names.get_namespace(Id=namespace["Id"])["Namespace"]
    out.append((project(found, "Name", "Type"), found["Arn"].split(":")[:5]))
    dns = {"RoutingPolicy": "MULTIVALUE", "DnsRecords": [{"Type": "A", "TTL": 10}]}
    made = names.create_service(
        Name="head",
        NamespaceId=namespace["Id"],
        DnsConfig=dns,
        HealthCheckCustomConfig={"FailureThreshold": 1},
    )["Service"]
    out.append((made["Name"], made["DnsConfig"]["DnsRecords"], made["DnsConfig"]["RoutingPolicy"]))
    out.append(made["Arn"].split(":")[:5])
    out.append(names.get_service(Id=made["Id"])["Service"]["Name"])
    chosen = [{"Name": "NAMESPACE_ID", "Values": [namespace["Id"]]}]
    out.append([each["Name"] for each in names.list_services(Filters=chosen)["Services"]])
    for index in range(3):
        attributes = {"AWS_INSTANCE_IPV4": f"10.0.0.{index}", "ECS_SERVICE_NAME": f"head-{index % 2}"}
        names.register_instance(ServiceId=made["Id"], InstanceId=f"i{index}", Attributes=attributes)
    listed = names.list_instances(ServiceId=made["Id"])["Instances"]
    out.append(sorted((each["Id"], each["Attributes"]["AWS_INSTANCE_IPV4"]) for each in listed))
    names.deregister_instance(ServiceId=made["Id"], InstanceId="i0")
    out.append(sorted(each["Id"] for each in names.list_instances(ServiceId=made["Id"])["Instances"]))
    out.append(code(names.deregister_instance, ServiceId=made["Id"], InstanceId="i9"))
    out.append(code(names.get_service, Id="srv-0000000000000000"))
    out.append(code(names.discover_instances, NamespaceName="nobody.internal", ServiceName="head"))
    return out


def of_sts(client: Client) -> list[Any]:
    sts = client("sts")
    told = sts.assume_role(RoleArn=f"arn:aws:iam::{UNITS}:role/trellis/deployer", RoleSessionName="fleet")
    keys = told["Credentials"]
    return [
        sts.get_caller_identity()["Account"],
        len(keys["AccessKeyId"]),
        keys["AccessKeyId"][:4],
        told["AssumedRoleUser"]["AssumedRoleId"].split(":")[1],
    ]


@pytest.mark.parametrize("scenario", [of_ecs, of_cloud_map, of_sts])
def test_the_fake_answers_as_moto_does(
    fake: Callable[..., str], scenario: Callable[[Client], list[Any]]
) -> None:
    ours = scenario(checked(fake(), UNITS))
    with mock_aws():
        theirs = scenario(moto)
    assert ours == theirs


def test_a_service_lives_and_its_events_come(fake: Callable[..., str]) -> None:
    """What moto does not do at all: here the models of AWS are the only witness."""
    client = checked(fake(), UNITS)
    ecs, sqs = client("ecs"), client("sqs")
    ecs.register_task_definition(
        **definition("unit", requiresCompatibilities=["FARGATE", "MANAGED_INSTANCES"])
    )
    ecs.create_service(**service("momentum", "tulip", "unit"))
    ecs.get_waiter("services_stable").wait(
        cluster="tulip", services=["momentum"], WaiterConfig={"Delay": 0.1}
    )
    queue = sqs.get_queue_url(QueueName="trellis-tulip-events")["QueueUrl"]
    seen: list[str] = []
    while "SERVICE_STEADY_STATE" not in seen:
        got = sqs.receive_message(
            QueueUrl=queue, MaxNumberOfMessages=10, WaitTimeSeconds=20, MessageSystemAttributeNames=["All"]
        )
        messages = got["Messages"]
        for message in messages:
            event = json.loads(message["Body"])
            assert event["source"] == "aws.ecs" and event["detail"]["clusterArn"].endswith("cluster/tulip")
            seen.append(event["detail"].get("eventName") or event["detail"]["lastStatus"])
        entries = [{"Id": str(i), "ReceiptHandle": each["ReceiptHandle"]} for i, each in enumerate(messages)]
        assert len(sqs.delete_message_batch(QueueUrl=queue, Entries=entries)["Successful"]) == len(messages)
    sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["All"])

    tasks = ecs.list_tasks(cluster="tulip", serviceName="momentum")["taskArns"]
    (task,) = ecs.describe_tasks(cluster="tulip", tasks=tasks, include=["TAGS"])["tasks"]
    assert task["tags"] == [{"key": "trellis:unit", "value": "momentum"}]
    (brief,) = ecs.list_service_deployments(cluster="tulip", service="momentum")["serviceDeployments"]
    ecs.describe_service_deployments(serviceDeploymentArns=[brief["serviceDeploymentArn"]])
    ecs.describe_capacity_providers(cluster="tulip")
    ecs.put_account_setting_default(name="containerInsights", value="enabled")
    run = {"cluster": "tulip", "taskDefinition": "unit", "count": 2, "clientToken": "once"}
    ran = ecs.run_task(
        **run, networkConfiguration=network(client), overrides={"containerOverrides": [{"name": "unit"}]}
    )
    assert len(ran["tasks"]) == 2
    ecs.stop_task(cluster="tulip", task=ran["tasks"][0]["taskArn"], reason="enough")
    ecs.update_service(cluster="tulip", service="momentum", forceNewDeployment=True)
    ecs.delete_service(cluster="tulip", service="momentum", force=True)
    ecs.get_waiter("services_inactive").wait(
        cluster="tulip", services=["momentum"], WaiterConfig={"Delay": 0.1}
    )


def test_names_of_tasks_are_found(fake: Callable[..., str]) -> None:
    client = checked(fake(), "111111111111")
    ecs, names = client("ecs"), client("servicediscovery")
    operation = names.create_private_dns_namespace(Name="peony.trellis.internal", Vpc="vpc-1")["OperationId"]
    done = names.get_operation(OperationId=operation)["Operation"]
    dns = {"DnsRecords": [{"Type": "A", "TTL": 10}]}
    made = names.create_service(Name="head", NamespaceId=done["Targets"]["NAMESPACE"], DnsConfig=dns)[
        "Service"
    ]
    ecs.register_task_definition(**definition("head"))
    ecs.create_service(**service("head-1", "peony", "head", serviceRegistries=[{"registryArn": made["Arn"]}]))
    ecs.get_waiter("services_stable").wait(cluster="peony", services=["head-1"], WaiterConfig={"Delay": 0.1})
    asked = {"NamespaceName": "peony.trellis.internal", "ServiceName": "head"}
    found: list[Any] = []
    while not found:
        found = names.discover_instances(**asked)["Instances"]
    assert found[0]["Attributes"]["ECS_SERVICE_NAME"] == "head-1"
    assert names.discover_instances_revision(**asked)["InstancesRevision"] > 1


def test_too_many_calls_are_throttled_as_boto3_knows_it(fake: Callable[..., str]) -> None:
    ecs = checked(fake(speed=1), UNITS)("ecs")
    with pytest.raises(ClientError) as refused:
        for _ in range(1_000):  # the bucket holds 20, and gets one a second
            ecs.register_task_definition(**definition("unit"))
    assert refused.value.response["Error"]["Code"] == "ThrottlingException"
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400
