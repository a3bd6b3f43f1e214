"""Rules for templates that cfn-lint does not know. Each takes a template and gives its findings; none: all is well."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from templates import listed, walk

Template = dict[str, Any]
Rule = Callable[[Template], Iterator[str]]

RULES: dict[str, Rule] = {}

# The drain deadline of the binaries (TRELLIS_DRAIN_MS), and the seconds to cut late requests and to flush telemetry.
DRAIN_S, AFTER_DRAIN_S = 10, 10
FARGATE_STOP_MAX_S = 120
# ECS's own default is 0.5 x desired, at least 3; a count says what is meant.
BREAKER_COUNT_MAX = 10
# CloudFormation takes a longer template only from a bucket.
TEMPLATE_BYTES_MAX = 51_200

# Actions for which AWS knows no resource to name. An Allow of anything else must name one.
NO_RESOURCE = {
    "ec2:AssociateInstanceEventWindow",
    "ec2:CreateInstanceEventWindow",
    "ec2:CreateNetworkInterface",
    "ec2:DeleteNetworkInterface",
    "ec2:DescribeInstanceEventWindows",
    "ec2:DescribeNetworkInterfaces",
    "ec2:DescribeSubnets",
    "ecr:GetAuthorizationToken",
    "ecs:DeregisterTaskDefinition",
    "ecs:ListAccountSettings",
    "ecs:ListClusters",
    "ecs:ListServices",
    "ecs:ListTaskDefinitions",
    "ecs:PutAccountSettingDefault",
    "iam:EnableOutboundWebIdentityFederation",
    "iam:GetOutboundWebIdentityFederationInfo",
    "servicediscovery:DiscoverInstances",
    "servicediscovery:DiscoverInstancesRevision",
    "servicediscovery:ListNamespaces",
    "servicediscovery:ListServices",
    "servicequotas:GetServiceQuota",
    "servicequotas:ListServiceQuotas",
    "sts:GetWebIdentityToken",
    # reads that `fleet` makes of all clusters of an account
    "ecs:DescribeCapacityProviders",
    "ecs:DescribeClusters",
    "ecs:DescribeServiceDeployments",
    "ecs:DescribeServices",
    "ecs:DescribeTaskDefinition",
    "ecs:DescribeTasks",
    "ecs:ListServiceDeployments",
    "ecs:ListTagsForResource",
    "ecs:ListTasks",
}
# These services assume a role without saying for which resource, so a condition on the source would lock them out.
NO_SOURCE = {
    "ec2.amazonaws.com",
    "ecs.amazonaws.com",
    "lambda.amazonaws.com",
    "streams.metrics.cloudwatch.amazonaws.com",
}
# What runs as such a role is code of ours or of a researcher.
RUNS_CODE = {"ecs-tasks.amazonaws.com", "lambda.amazonaws.com"}
# namespaces of CloudWatch with metrics for each service or task
GROW_BY_UNIT = {"AWS/ECS", "ECS/ContainerInsights"}
ORGANISATION = {"aws:PrincipalOrgID", "aws:SourceAccount", "aws:SourceArn", "kms:EncryptionContext:aws:logs:arn"}


def rule(function: Rule) -> Rule:
    RULES[function.__name__] = function
    return function


def of(template: Template, *kinds: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, resource in template["Resources"].items():
        if resource["Type"] in kinds:
            yield name, resource.get("Properties", {})


def text(value: Any) -> str:
    """A value with its functions, to look for what is written in it."""
    return value if isinstance(value, str) else json.dumps(value)


def keys(condition: dict[str, Any]) -> set[str]:
    return {key for operator in condition.values() for key in operator}


def containers(template: Template) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, task in of(template, "AWS::ECS::TaskDefinition", "AWS::ECS::DaemonTaskDefinition"):
        for container in task["ContainerDefinitions"]:
            yield f"{name}.{container['Name']}", container


# --- clusters and services


@rule
def associations_name_fargate_alone(template: Template) -> Iterator[str]:
    """ECS refuses a managed instances provider here, at deployment."""
    for name, association in of(template, "AWS::ECS::ClusterCapacityProviderAssociations"):
        for provider in association["CapacityProviders"]:
            if provider not in ("FARGATE", "FARGATE_SPOT"):
                yield f"{name}: {text(provider)} cannot be associated; a managed instances provider names its cluster"


@rule
def managed_instances_name_their_cluster(template: Template) -> Iterator[str]:
    for name, provider in of(template, "AWS::ECS::CapacityProvider"):
        if "ClusterName" not in provider:
            yield f"{name}: ClusterName is missing; a managed instances provider exists inside of one cluster only"
        if provider["ManagedInstancesProvider"].get("PropagateTags") != "CAPACITY_PROVIDER":
            yield f"{name}: without tags on its instances no event window finds them"


@rule
def services_of_one_task_stop_before_they_start(template: Template) -> Iterator[str]:
    """A unit has one publisher: at no time two tasks. A service that scales is no such service."""
    scaled = {
        text(target.get("ResourceId")) for _, target in of(template, "AWS::ApplicationAutoScaling::ScalableTarget")
    }
    for name, service in of(template, "AWS::ECS::Service"):
        if any(f'"{name}"' in target for target in scaled):
            continue
        how = service.get("DeploymentConfiguration", {})
        if (how.get("MinimumHealthyPercent"), how.get("MaximumPercent")) != (0, 100):
            yield f"{name}: 0 and 100 percent are needed, so that the old task ends before the new one starts"
        if service.get("AvailabilityZoneRebalancing") != "DISABLED":
            yield f"{name}: AvailabilityZoneRebalancing must be DISABLED; the default starts a second task first"


@rule
def deployments_break_off(template: Template) -> Iterator[str]:
    for name, service in of(template, "AWS::ECS::Service"):
        breaker = service.get("DeploymentConfiguration", {}).get("DeploymentCircuitBreaker", {})
        if breaker.get("Enable") is not True:
            yield f"{name}: no circuit breaker; a task that cannot start is started for ever"
        threshold = breaker.get("ThresholdConfiguration", {})
        if threshold.get("Type") != "COUNT" or not 1 <= threshold.get("Value", 0) <= BREAKER_COUNT_MAX:
            yield f"{name}: the circuit breaker needs a count from 1 to {BREAKER_COUNT_MAX}"


@rule
def stops_take_longer_than_the_drain(template: Template) -> Iterator[str]:
    for name, container in containers(template):
        stop = container.get("StopTimeout", 0)
        if not DRAIN_S + AFTER_DRAIN_S <= stop <= FARGATE_STOP_MAX_S:
            yield f"{name}: StopTimeout {stop} s, not {DRAIN_S + AFTER_DRAIN_S} s (drain) to {FARGATE_STOP_MAX_S} s"


@rule
def tasks_run_on_fargate_and_on_managed_instances(template: Template) -> Iterator[str]:
    for name, task in of(template, "AWS::ECS::TaskDefinition"):
        if set(task.get("RequiresCompatibilities", [])) != {"FARGATE", "MANAGED_INSTANCES"}:
            yield f"{name}: needs both FARGATE and MANAGED_INSTANCES, or a service cannot move from one to the other"
        if task.get("NetworkMode") != "awsvpc":
            yield f"{name}: needs awsvpc"


@rule
def containers_are_closed(template: Template) -> Iterator[str]:
    daemons = {name for name, _ in of(template, "AWS::ECS::DaemonTaskDefinition")}
    for name, container in containers(template):
        if container.get("ReadonlyRootFilesystem") is not True:
            yield f"{name}: the root file system can be written"
        # the host agent loads eBPF programs
        if name.split(".")[0] not in daemons:
            if container.get("LinuxParameters", {}).get("Capabilities", {}).get("Drop") != ["ALL"]:
                yield f"{name}: keeps capabilities"
            if container.get("Privileged"):
                yield f"{name}: is privileged"
        image = container["Image"]
        pattern = (
            template["Parameters"].get(image.get("Ref"), {}).get("AllowedPattern", "")
            if isinstance(image, dict)
            else image
        )
        if "@sha256:" not in pattern:
            yield f"{name}: its image is not named by digest"
        for variable in container.get("Environment", []):
            if re.search(r"SECRET|PASSWORD|TOKEN|AUTHORIZATION", variable["Name"]):
                yield f"{name}: {variable['Name']} is read by all who describe the task; use Secrets"
        log = container.get("LogConfiguration", {})
        if log.get("Options", {}).get("mode") != "non-blocking":
            yield f"{name}: a slow log would block the process"


# --- network


@rule
def nothing_is_public(template: Template) -> Iterator[str]:
    for name, resource in template["Resources"].items():
        if resource["Type"] in (
            "AWS::EC2::InternetGateway",
            "AWS::EC2::EIP",
            "AWS::EC2::NatGateway",
            "AWS::EC2::EgressOnlyInternetGateway",
        ):
            yield f"{name}: a way to the internet"
    for name, subnet in of(template, "AWS::EC2::Subnet"):
        if subnet.get("MapPublicIpOnLaunch") is not False:
            yield f"{name}: MapPublicIpOnLaunch must be false"
    for name, service in of(template, "AWS::ECS::Service"):
        if service["NetworkConfiguration"]["AwsvpcConfiguration"].get("AssignPublicIp") != "DISABLED":
            yield f"{name}: AssignPublicIp must be DISABLED"
    for name, balancer in of(template, "AWS::ElasticLoadBalancingV2::LoadBalancer"):
        if balancer.get("Scheme") != "internal":
            yield f"{name}: must be internal"


@rule
def connections_are_named(template: Template) -> Iterator[str]:
    groups = list(of(template, "AWS::EC2::SecurityGroup"))
    single = list(of(template, "AWS::EC2::SecurityGroupIngress", "AWS::EC2::SecurityGroupEgress"))
    for name, group in groups:
        if not group.get("SecurityGroupEgress"):
            yield f"{name}: without a rule of egress, EC2 allows all"
        single += [
            (name, each) for each in [*group.get("SecurityGroupIngress", []), *group.get("SecurityGroupEgress", [])]
        ]
    for name, each in single:
        if each.get("CidrIp") == "0.0.0.0/0" or "CidrIpv6" in each:
            yield f"{name}: open to every address"
        if str(each.get("IpProtocol")) == "-1" and each.get("CidrIp") != "127.0.0.1/32":
            yield f"{name}: open on every port"


@rule
def endpoints_serve_the_organisation(template: Template) -> Iterator[str]:
    for name, endpoint in of(template, "AWS::EC2::VPCEndpoint"):
        service = text(endpoint["ServiceName"])
        # tokens' public keys are asked for without an identity; another firm's endpoint takes no policy
        if service.endswith('sts-oidc"}') or "VendorService" in service:
            continue
        if "aws:PrincipalOrgID" not in text(endpoint.get("PolicyDocument", "")):
            yield f"{name}: serves callers of other organisations"


# --- rights


def identity(template: Template) -> Iterator[tuple[str, dict[str, Any]]]:
    """Statements about what a role may do."""
    for name, policy in of(template, "AWS::IAM::ManagedPolicy"):
        yield from ((name, statement) for statement in policy["PolicyDocument"]["Statement"])
    for name, role in of(template, "AWS::IAM::Role"):
        for policy in role.get("Policies", []):
            yield from ((name, statement) for statement in policy["PolicyDocument"]["Statement"])


@rule
def rights_are_narrow(template: Template) -> Iterator[str]:
    for name, statement in identity(template):
        where = f"{name}.{statement.get('Sid', '')}"
        if statement["Effect"] != "Allow":
            continue
        if "NotAction" in statement or "NotResource" in statement:
            yield f"{where}: allows all but something"
        actions = listed(statement.get("Action", []))
        for action in actions:
            if action.endswith("*"):
                yield f"{where}: {action} also allows what AWS adds later"
        if "*" in listed(statement.get("Resource", "*")):
            for action in sorted(set(actions) - NO_RESOURCE):
                yield f"{where}: {action} on every resource"
        if "iam:PassRole" in actions and "iam:PassedToService" not in keys(statement.get("Condition", {})):
            yield f"{where}: gives a role to any service"


@rule
def conditions_on_all_values_need_one(template: Template) -> Iterator[str]:
    """IAM holds ForAllValues for true if the request does not have the key at all."""
    for name, statement in identity(template):
        condition = statement.get("Condition", {})
        if statement["Effect"] != "Allow":
            continue
        there = {key for key, absent in condition.get("Null", {}).items() if str(absent).lower() == "false"}
        for operator, tested in condition.items():
            if operator.startswith("ForAllValues:"):
                for key in sorted(set(tested) - there):
                    yield f"{name}.{statement.get('Sid', '')}: a request without {key} is allowed"


@rule
def roles_are_bound(template: Template) -> Iterator[str]:
    for name, role in of(template, "AWS::IAM::Role"):
        for statement in role["AssumeRolePolicyDocument"]["Statement"]:
            service = statement["Principal"].get("Service")
            if service not in NO_SOURCE and not statement.get("Condition"):
                yield f"{name}: {service or 'a principal'} may assume it for anybody"
            if service in RUNS_CODE and "PermissionsBoundary" not in role:
                yield f"{name}: code runs as this role, so it needs the boundary"
        for policy in role.get("ManagedPolicyArns", []):
            if "FullAccess" in text(policy) or "Administrator" in text(policy):
                yield f"{name}: {text(policy)}"


@rule
def resources_open_for_the_organisation_alone(template: Template) -> Iterator[str]:
    """Policies of resources: who is not named by an account of ours must meet a condition."""
    own = {"AWS::IAM::Role", "AWS::IAM::ManagedPolicy"}
    for name, resource in template["Resources"].items():
        if resource["Type"] in own:
            continue
        if resource["Type"] == "AWS::EC2::VPCEndpoint" and "LayersOfImages" in text(resource):
            statements = [
                each
                for each in resource["Properties"]["PolicyDocument"]["Statement"]
                if each["Sid"] != "LayersOfImages"
            ]
        else:
            statements = [
                each for each in walk(resource.get("Properties", {})) if isinstance(each, dict) and "Effect" in each
            ]
        for statement in statements:
            principal = statement.get("Principal")
            ours = isinstance(principal, dict) and "AWS::AccountId" in text(principal.get("AWS", ""))
            if statement["Effect"] == "Allow" and not ours and not keys(statement.get("Condition", {})) & ORGANISATION:
                yield f"{name}.{statement.get('Sid', '')}: open for others than the organisation"


@rule
def names_of_iam_are_for_one_region(template: Template) -> Iterator[str]:
    """IAM knows a name in all Regions, so the second Region's stack would find it taken. A flower is in one Region."""
    kinds = {
        "AWS::IAM::Role": "RoleName",
        "AWS::IAM::ManagedPolicy": "ManagedPolicyName",
        "AWS::IAM::InstanceProfile": "InstanceProfileName",
    }
    for kind, key in kinds.items():
        for name, resource in of(template, kind):
            told = text(resource.get(key, ""))
            if "${AWS::Region}" not in told and "${Flower}" not in told:
                yield f"{name}: {key} names neither a Region nor a flower"


# --- data


@rule
def logs_end(template: Template) -> Iterator[str]:
    for name, group in of(template, "AWS::Logs::LogGroup"):
        if "RetentionInDays" not in group:
            yield f"{name}: kept for ever"
        if "KmsKeyId" not in group:
            yield f"{name}: not encrypted with the account's key"


@rule
def data_is_encrypted(template: Template) -> Iterator[str]:
    needs = {
        "AWS::SQS::Queue": ("SqsManagedSseEnabled", "KmsMasterKeyId"),
        "AWS::SNS::Topic": ("KmsMasterKeyId",),
        "AWS::Kinesis::Stream": ("StreamEncryption",),
        "AWS::KinesisFirehose::DeliveryStream": ("DeliveryStreamEncryptionConfigurationInput",),
        "AWS::S3::Bucket": ("BucketEncryption",),
        "AWS::ECR::Repository": ("EncryptionConfiguration",),
    }
    for kind, properties in needs.items():
        for name, resource in of(template, kind):
            if not any(resource.get(each) for each in properties):
                yield f"{name}: not encrypted ({' or '.join(properties)})"
    for name, key in of(template, "AWS::KMS::Key"):
        if key.get("EnableKeyRotation") is not True:
            yield f"{name}: the key is never rotated"


@rule
def buckets_are_private(template: Template) -> Iterator[str]:
    tls = {
        text(policy["Bucket"])
        for _, policy in of(template, "AWS::S3::BucketPolicy")
        if any(
            each["Effect"] == "Deny" and "aws:SecureTransport" in text(each)
            for each in policy["PolicyDocument"]["Statement"]
        )
    }
    for name, bucket in of(template, "AWS::S3::Bucket"):
        block = bucket.get("PublicAccessBlockConfiguration", {})
        if len(block) != 4 or not all(value is True for value in block.values()):
            yield f"{name}: public access is not blocked"
        if text({"Ref": name}) not in tls:
            yield f"{name}: can be read without TLS"


@rule
def data_outlives_its_stack(template: Template) -> Iterator[str]:
    for name, resource in template["Resources"].items():
        if resource["Type"] in ("AWS::S3::Bucket", "AWS::KMS::Key", "AWS::ECR::Repository"):
            for policy in ("DeletionPolicy", "UpdateReplacePolicy"):
                if resource.get(policy) != "Retain":
                    yield f"{name}: {policy} must be Retain"


@rule
def images_do_not_change(template: Template) -> Iterator[str]:
    for name, repository in of(template, "AWS::ECR::Repository"):
        if repository.get("ImageTagMutability") != "IMMUTABLE":
            yield f"{name}: a tag can be moved to another image"


# --- what would grow, or feed itself


@rule
def nothing_is_billed_by_unit(template: Template) -> Iterator[str]:
    for name, stream in of(template, "AWS::CloudWatch::MetricStream"):
        namespaces = {each["Namespace"] for each in stream.get("IncludeFilters", [])}
        if not namespaces or namespaces & GROW_BY_UNIT:
            yield f"{name}: streams metrics of every service"
    for name, cluster in of(template, "AWS::ECS::Cluster"):
        if {"Name": "containerInsights", "Value": "disabled"} not in cluster.get("ClusterSettings", []):
            yield f"{name}: Container Insights bills metrics of every task"
    for name, log in of(template, "AWS::EC2::FlowLog"):
        if log.get("TrafficType") != "REJECT":
            yield f"{name}: logs every connection of every unit"


@rule
def logs_do_not_feed_themselves(template: Template) -> Iterator[str]:
    for name, policy in of(template, "AWS::Logs::AccountPolicy"):
        told = text(policy.get("SelectionCriteria", ""))
        for function in ("forward-logs", "forward-metrics"):
            if "NOT IN" not in told or function not in told:
                yield f"{name}: takes the log of {function}, which grows with what it takes"


# --- the template itself


@rule
def parameters_are_checked(template: Template) -> Iterator[str]:
    for name, parameter in template["Parameters"].items():
        if not parameter.get("Description"):
            yield f"{name}: no description"
        bounds = {"AllowedPattern", "AllowedValues", "MinValue"} & set(parameter)
        if parameter["Type"] in ("String", "Number") and not bounds:
            yield f"{name}: takes anything"


@rule
def a_region_is_a_value(template: Template) -> Iterator[str]:
    for value in walk({key: template.get(key) for key in ("Resources", "Outputs", "Conditions")}):
        if not isinstance(value, str):
            continue
        # identity and access management answers in us-east-1, whatever the Region
        for region in set(re.findall(r"\b(?:us|eu|ap|sa|ca|me|af|il)-[a-z]+-\d\b", value)) - {"us-east-1"}:
            yield f"{region} is named"
        if re.search(r"(?<!\d)\d{12}(?!\d)", value):
            yield f"an account is named: {value}"
        if "arn:aws" in value:
            yield f"a partition is named: {value}"
