//! Services, tasks, definitions as the API shows them.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::kept::{Cluster, Definition, Deployment, Region, Revision, Rollout, Service, Status, Tags, Task};
use crate::time::{Ctx, mix, uuid};

/// `ecs-svc/` and 19 digits.
pub(crate) fn deployment_id(id: u64) -> String {
    format!("ecs-svc/{:019}", mix(id) % 10_000_000_000_000_000_000)
}

/// Tags as ECS has them.
pub(crate) fn tags(tags: &Tags) -> Value {
    tags.iter().map(|(key, value)| json!({"key": key, "value": value})).collect()
}

fn put(to: &mut Value, key: &str, value: Value) {
    if let Value::Object(map) = to {
        map.insert(key.into(), value);
    }
}

fn strategy(revision: &Revision) -> Value {
    let items = &revision.strategy;
    items
        .iter()
        .map(|(name, weight, base)| json!({"capacityProvider": name, "weight": weight, "base": base}))
        .collect()
}

fn placement(to: &mut Value, revision: &Revision) {
    match &revision.launch_type {
        Some(kind) => put(to, "launchType", json!(kind)),
        None => put(to, "capacityProviderStrategy", strategy(revision)),
    }
    put(to, "platformVersion", json!(revision.platform_version));
    put(to, "platformFamily", json!("Linux"));
    if !revision.network.is_null() {
        put(to, "networkConfiguration", revision.network.clone());
    }
}

fn counts(cluster: &Cluster, tasks: &[u64], deployment: Option<u64>) -> (usize, usize) {
    let mut counts = (0, 0);
    for task in tasks.iter().filter_map(|id| cluster.tasks.get(id)) {
        let owner = task.owner.as_ref().map(|owner| owner.deployment);
        if deployment.is_some() && deployment != owner {
            continue;
        }
        if task.status.is_pending() {
            counts.1 += 1;
        } else if task.status == Status::Running {
            counts.0 += 1;
        }
    }
    counts
}

/// A service; with its tags if asked for.
pub(crate) fn service(
    ctx: &Ctx,
    region: &Region,
    cluster: &Cluster,
    service: &Service,
    with_tags: bool,
) -> Value {
    let (running, pending) = counts(cluster, &service.tasks, None);
    let path = format!("{}/{}", cluster.name, service.name);
    let policy = &service.policy;
    let mut out = json!({
        "serviceArn": region.arn("service", &path),
        "serviceName": &*service.name,
        "clusterArn": region.arn("cluster", &cluster.name),
        "loadBalancers": [],
        "serviceRegistries": [],
        "status": service.state.name(),
        "desiredCount": service.desired,
        "runningCount": running,
        "pendingCount": pending,
        "deploymentConfiguration": policy.configuration,
        "deployments": [],
        "roleArn": format!("arn:aws:iam::{}:role/aws-service-role/ecs.amazonaws.com/AWSServiceRoleForECS", region.account),
        "events": service.events.iter().map(|(at, id, text)| json!({
            "id": uuid(*id), "createdAt": ctx.stamp(*at), "message": text,
        })).collect::<Vec<_>>(),
        "createdAt": ctx.stamp(service.created),
        "placementConstraints": [],
        "placementStrategy": [],
        "schedulingStrategy": "REPLICA",
        "deploymentController": {"type": "ECS"},
        "enableECSManagedTags": policy.managed_tags,
        "propagateTags": policy.propagate,
        "enableExecuteCommand": policy.execute,
        "availabilityZoneRebalancing": if policy.rebalancing { "ENABLED" } else { "DISABLED" },
    });
    if let Some(grace) = policy.grace {
        put(&mut out, "healthCheckGracePeriodSeconds", json!(grace));
    }
    if let Some(primary) = service.deployments.first() {
        placement(&mut out, &primary.revision);
        put(
            &mut out,
            "taskDefinition",
            json!(region.arn("task-definition", &primary.revision.definition.name())),
        );
        if primary.revision.registries.is_array() {
            put(&mut out, "serviceRegistries", primary.revision.registries.clone());
        }
        put(&mut out, "currentServiceDeployment", json!(service_deployment_arn(region, &path, primary.id)));
    }
    let deployments = service.deployments.iter().enumerate();
    let deployments = deployments.map(|(i, each)| deployment(ctx, region, cluster, service, each, i == 0));
    put(&mut out, "deployments", deployments.collect());
    if with_tags {
        put(&mut out, "tags", tags(&service.tags));
    }
    out
}

/// The ARN of a deployment as ListServiceDeployments has it.
pub(crate) fn service_deployment_arn(region: &Region, path: &str, id: u64) -> String {
    region.arn("service-deployment", &format!("{path}/{:021}", mix(id)))
}

fn deployment(
    ctx: &Ctx,
    region: &Region,
    cluster: &Cluster,
    service: &Service,
    one: &Deployment,
    primary: bool,
) -> Value {
    let (running, pending) = counts(cluster, &service.tasks, Some(one.id));
    let mut out = json!({
        "id": deployment_id(one.id),
        "status": if primary { "PRIMARY" } else { "ACTIVE" },
        "taskDefinition": region.arn("task-definition", &one.revision.definition.name()),
        "desiredCount": if primary && one.rollout != Rollout::Failed { service.desired } else { 0 },
        "pendingCount": pending,
        "runningCount": running,
        "failedTasks": one.failed,
        "createdAt": ctx.stamp(one.created),
        "updatedAt": ctx.stamp(one.updated),
        "rolloutState": match one.rollout {
            Rollout::InProgress => "IN_PROGRESS",
            Rollout::Completed => "COMPLETED",
            Rollout::Failed => "FAILED",
        },
        "rolloutStateReason": one.reason,
    });
    placement(&mut out, &one.revision);
    out
}

/// A task, with times in the form of the API or of events.
pub(crate) fn task(region: &Region, cluster: &str, task: &Task, time: &dyn Fn(Duration) -> Value) -> Value {
    let definition = task.definition();
    let arn = region.arn("task", &format!("{cluster}/{}", task.hex()));
    let zone = format!("{}{}", region.name, task.zone());
    let health = match task.healthy {
        Some(true) => "HEALTHY",
        Some(false) => "UNHEALTHY",
        None => "UNKNOWN",
    };
    let interface = json!({
        "attachmentId": uuid(task.id ^ 1), "privateIpv4Address": task.address(),
    });
    let end = task.ending.as_ref();
    let containers: Vec<Value> = definition.body["containerDefinitions"].as_array().into_iter().flatten().map(|each| {
        let mut out = json!({
            "containerArn": region.arn("container", &format!("{cluster}/{}/{}", task.hex(), uuid(task.id ^ 2))),
            "taskArn": arn,
            "name": each["name"],
            "image": each["image"],
            "lastStatus": task.status.name(),
            "networkInterfaces": [interface],
            "healthStatus": health,
            "cpu": each["cpu"].as_u64().unwrap_or(0).to_string(),
        });
        if let Some(exit) = end.and_then(|end| end.exit).filter(|_| task.status >= Status::Deprovisioning) {
            put(&mut out, "exitCode", json!(exit));
        }
        out
    }).collect();
    let mut out = json!({
        "attachments": [{
            "id": uuid(task.id ^ 1),
            "type": if definition.awsvpc { "ElasticNetworkInterface" } else { "None" },
            "status": if task.status == Status::Provisioning { "PRECREATED" } else { "ATTACHED" },
            "details": [{"name": "privateIPv4Address", "value": task.address()}],
        }],
        "attributes": [{"name": "ecs.cpu-architecture", "value": if definition.arm() { "arm64" } else { "x86_64" }}],
        "availabilityZone": zone,
        "clusterArn": region.arn("cluster", cluster),
        "connectivity": "CONNECTED",
        "containers": containers,
        "cpu": definition.size.0.to_string(),
        "memory": definition.size.1.to_string(),
        "createdAt": time(task.created),
        "desiredStatus": task.desired(),
        "enableExecuteCommand": false,
        "group": task.group,
        "healthStatus": health,
        "lastStatus": task.status.name(),
        "launchType": task.capacity.launch_type(),
        "overrides": task.overrides.clone().unwrap_or_else(|| json!({"containerOverrides": []})),
        "platformVersion": "1.4.0",
        "platformFamily": "Linux",
        "taskArn": arn,
        "taskDefinitionArn": region.arn("task-definition", &definition.name()),
        "version": task.version,
    });
    if task.revision.launch_type.is_none() {
        put(&mut out, "capacityProviderName", json!(&*task.provider));
    }
    if let Some(by) = &task.started_by {
        put(&mut out, "startedBy", json!(by));
    }
    if let Some(end) = end {
        put(&mut out, "stopCode", json!(end.code));
        put(&mut out, "stoppedReason", json!(end.reason));
    }
    for (key, at) in [("startedAt", task.started), ("stoppingAt", task.stopping), ("stoppedAt", task.stopped)]
    {
        if let Some(at) = at {
            put(&mut out, key, time(at));
        }
    }
    out
}

/// A task definition.
pub(crate) fn definition(ctx: &Ctx, region: &Region, definition: &Definition) -> Value {
    let mut out = definition.body.clone();
    put(&mut out, "taskDefinitionArn", json!(region.arn("task-definition", &definition.name())));
    put(&mut out, "revision", json!(definition.revision));
    let status = if definition.deregistered.is_some() { "INACTIVE" } else { "ACTIVE" };
    put(&mut out, "status", json!(status));
    put(&mut out, "compatibilities", json!(definition.compatible));
    put(&mut out, "registeredAt", json!(ctx.stamp(definition.registered)));
    if let Some(at) = definition.deregistered {
        put(&mut out, "deregisteredAt", json!(ctx.stamp(at)));
    }
    let defaults: Map<String, Value> = [("volumes", json!([])), ("placementConstraints", json!([]))]
        .map(|(k, v)| (k.into(), v))
        .into_iter()
        .collect();
    if let Value::Object(map) = &mut out {
        for (key, value) in defaults {
            map.entry(key).or_insert(value);
        }
    }
    out
}
