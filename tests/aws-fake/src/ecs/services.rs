//! CreateService, and what it checks. UpdateService checks the same.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{find, rollout, show, tags};
use crate::fail::{Answer, Fail, read};
use crate::kept::{
    Breaker, Capacity, Cluster, Definition, Policy, Region, Revision, Service, State, Threshold,
};
use crate::time::Ctx;

/// What CreateService and UpdateService have in common.
#[derive(Deserialize, Clone)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Asked {
    pub(crate) cluster: Option<String>,
    pub(crate) service_name: Option<String>,
    pub(crate) service: Option<String>,
    pub(crate) task_definition: Option<String>,
    pub(crate) availability_zone_rebalancing: Option<String>,
    pub(crate) service_registries: Option<Value>,
    pub(crate) desired_count: Option<i64>,
    pub(crate) client_token: Option<String>,
    pub(crate) launch_type: Option<String>,
    pub(crate) capacity_provider_strategy: Option<Vec<Item>>,
    pub(crate) platform_version: Option<String>,
    pub(crate) deployment_configuration: Option<Configuration>,
    pub(crate) network_configuration: Option<Value>,
    pub(crate) health_check_grace_period_seconds: Option<u32>,
    pub(crate) scheduling_strategy: Option<String>,
    pub(crate) deployment_controller: Option<Controller>,
    #[serde(default)]
    pub(crate) tags: Vec<tags::Tag>,
    #[serde(rename = "enableECSManagedTags")]
    pub(crate) enable_ecs_managed_tags: Option<bool>,
    pub(crate) propagate_tags: Option<String>,
    pub(crate) enable_execute_command: Option<bool>,
    pub(crate) force_new_deployment: Option<bool>,
}

#[derive(Deserialize, Clone)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Item {
    capacity_provider: String,
    #[serde(default)]
    weight: u32,
    #[serde(default)]
    base: u32,
}

#[derive(Deserialize, Clone)]
#[serde(deny_unknown_fields)]
pub(crate) struct Controller {
    r#type: String,
}

#[derive(Deserialize, Clone)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Configuration {
    deployment_circuit_breaker: Option<CircuitBreaker>,
    maximum_percent: Option<u32>,
    minimum_healthy_percent: Option<u32>,
    strategy: Option<String>,
    bake_time_in_minutes: Option<u32>,
}

#[derive(Deserialize, Clone)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct CircuitBreaker {
    enable: bool,
    rollback: bool,
    reset_on_healthy_task: Option<bool>,
    threshold_configuration: Option<ThresholdConfiguration>,
}

#[derive(Deserialize, Clone)]
#[serde(deny_unknown_fields)]
struct ThresholdConfiguration {
    r#type: String,
    value: u32,
}

/// Subnets and security groups of one service, at most.
const SUBNETS: usize = 16;
const GROUPS: usize = 5;

/// The strategy: names that the cluster has, of one kind.
pub(crate) fn strategy(cluster: &Cluster, items: &[Item]) -> Result<Vec<(String, u32, u32)>, Fail> {
    let mut kinds = Vec::new();
    for item in items {
        let Some(kind) = cluster.capacity(&item.capacity_provider) else {
            return Err(Fail::invalid(format!(
                "The specified capacity provider '{}' was not found. Specify a valid capacity provider and try again.",
                item.capacity_provider
            )));
        };
        kinds.push(kind == Capacity::Managed);
        if item.weight > 1000 || item.base > 100_000 {
            return Err(Fail::invalid("The weight must be 0 to 1000, and the base 0 to 100000."));
        }
    }
    if kinds.contains(&true) && kinds.contains(&false) {
        return Err(Fail::invalid(
            "The specified capacity provider strategy cannot contain a mix of Fargate and managed instances capacity providers.",
        ));
    }
    if items.iter().all(|item| item.weight == 0) {
        return Err(Fail::invalid(
            "A capacity provider strategy must have at least one item with a weight above 0.",
        ));
    }
    if items.iter().filter(|item| item.base > 0).count() > 1 {
        return Err(Fail::invalid("Only one capacity provider in a strategy can have a base."));
    }
    Ok(items.iter().map(|item| (item.capacity_provider.clone(), item.weight, item.base)).collect())
}

/// The definition, if it may run there.
pub(crate) fn definition(
    region: &Region,
    cluster: &Cluster,
    name: &str,
    providers: &[(String, u32, u32)],
    launch_type: Option<&str>,
) -> Result<Arc<Definition>, Fail> {
    let found = find::definition(region, name).map_err(|_| Fail::client("TaskDefinition not found."))?;
    if found.deregistered.is_some() {
        return Err(Fail::client("TaskDefinition is inactive"));
    }
    let mut kinds: Vec<&str> = Vec::from_iter(launch_type);
    for (name, ..) in providers {
        kinds.extend(cluster.capacity(name).map(Capacity::launch_type));
    }
    for kind in kinds {
        if !found.compatible.iter().any(|each| each == kind) {
            return Err(Fail::invalid(format!("Task definition does not support launch_type {kind}.")));
        }
    }
    Ok(found.clone())
}

/// The network fits the definition.
pub(crate) fn network(definition: &Definition, network: Option<Value>) -> Result<Value, Fail> {
    match (definition.awsvpc, network) {
        (true, None) => Err(Fail::invalid(
            "Network Configuration must be provided when networkMode 'awsvpc' is specified.",
        )),
        (false, Some(_)) => Err(Fail::invalid(
            "Network Configuration is not valid for the given networkMode of this task definition.",
        )),
        (false, None) => Ok(Value::Null),
        (true, Some(given)) => {
            let vpc = &given["awsvpcConfiguration"];
            let count = |key: &str| vpc[key].as_array().map_or(0, Vec::len);
            if count("subnets") == 0 {
                return Err(Fail::invalid("subnets can not be empty."));
            }
            if count("subnets") > SUBNETS || count("securityGroups") > GROUPS {
                return Err(Fail::invalid("subnets can have at most 16 items, securityGroups at most 5."));
            }
            Ok(given)
        }
    }
}

/// The registry is one of Cloud Map in the same account: ECS does not register into a shared namespace.
pub(crate) fn registries(region: &Region, given: Option<Value>) -> Result<Value, Fail> {
    let Some(given) = given else { return Ok(json!([])) };
    let items = given.as_array().ok_or_else(|| Fail::invalid("serviceRegistries must be a list."))?;
    if items.len() > 1 {
        return Err(Fail::invalid("service registries can have at most 1 items."));
    }
    for item in items {
        let arn = item["registryArn"].as_str().unwrap_or_default();
        if region.registry(arn).is_none() {
            return Err(Fail::invalid(format!(
                "The service registry {arn} is not in this account and Region. Amazon ECS does not register services into \
                 shared AWS Cloud Map namespaces."
            )));
        }
    }
    Ok(given)
}

/// Percentages, circuit breaker, rebalancing and the rest, on top of what was.
pub(crate) fn policy(asked: &Asked, before: Option<&Policy>) -> Result<Policy, Fail> {
    let given = asked.deployment_configuration.as_ref();
    if let Some(other) = given.and_then(|given| given.strategy.as_deref()).filter(|kind| *kind != "ROLLING") {
        return Err(Fail::not_faked(format!("the deployment strategy {other}")));
    }
    let part =
        |new: Option<u32>, old: fn(&Policy) -> u32, default: u32| new.or(before.map(old)).unwrap_or(default);
    let minimum = part(given.and_then(|given| given.minimum_healthy_percent), |old| old.minimum, 100);
    let maximum = part(given.and_then(|given| given.maximum_percent), |old| old.maximum, 200);
    if maximum == 0 || maximum < minimum {
        return Err(Fail::invalid("maximumPercent must be above 0 and not below minimumHealthyPercent."));
    }
    if minimum == 100 && maximum == 100 {
        return Err(Fail::invalid(
            "Both maximumPercent and minimumHealthyPercent cannot be 100 as this will block deployments.",
        ));
    }
    let rebalancing = match asked.availability_zone_rebalancing.as_deref() {
        Some("ENABLED") => true,
        Some("DISABLED") => false,
        Some(other) => return Err(Fail::invalid(format!("Invalid availabilityZoneRebalancing: {other}"))),
        // AWS: a new service has it, an update keeps what was
        None => before.is_none_or(|old| old.rebalancing),
    };
    if rebalancing && maximum <= 100 {
        return Err(Fail::invalid(
            "The maximumPercent must be greater than 100 when availabilityZoneRebalancing is ENABLED, which is its default.",
        ));
    }
    let breaker = match given.and_then(|given| given.deployment_circuit_breaker.clone()) {
        Some(given) if given.enable => Some(breaker(&given)?),
        Some(_) => None,
        None => before.and_then(|old| old.breaker.clone()),
    };
    let propagate =
        asked.propagate_tags.clone().or(before.map(|old| old.propagate.clone())).unwrap_or("NONE".into());
    if !["SERVICE", "TASK_DEFINITION", "NONE"].contains(&propagate.as_str()) {
        return Err(Fail::invalid(format!("Invalid propagateTags: {propagate}")));
    }
    let mut configuration = json!({
        "strategy": "ROLLING",
        "bakeTimeInMinutes": given.and_then(|given| given.bake_time_in_minutes).unwrap_or(0),
        "maximumPercent": maximum,
        "minimumHealthyPercent": minimum,
        "deploymentCircuitBreaker": {"enable": false, "rollback": false},
    });
    if let Some(breaker) = &breaker {
        let mut shown =
            json!({"enable": true, "rollback": breaker.rollback, "resetOnHealthyTask": breaker.reset});
        let (kind, value) = match breaker.threshold {
            Threshold::Count(value) => ("COUNT", value),
            Threshold::Bounded(value) => ("BOUNDED_PERCENT", value),
            Threshold::Unbounded(value) => ("UNBOUNDED_PERCENT", value),
        };
        shown["thresholdConfiguration"] = json!({"type": kind, "value": value});
        configuration["deploymentCircuitBreaker"] = shown;
    }
    Ok(Policy {
        minimum,
        maximum,
        breaker,
        configuration,
        rebalancing,
        grace: asked.health_check_grace_period_seconds.or(before.and_then(|old| old.grace)),
        propagate,
        managed_tags: asked.enable_ecs_managed_tags.unwrap_or(before.is_some_and(|old| old.managed_tags)),
        execute: asked.enable_execute_command.unwrap_or(before.is_some_and(|old| old.execute)),
    })
}

fn breaker(given: &CircuitBreaker) -> Result<Breaker, Fail> {
    let threshold = match &given.threshold_configuration {
        None => Threshold::Bounded(50), // AWS: half of the desired count, between 3 and 200
        Some(given) => match given.r#type.as_str() {
            "COUNT" if given.value > 0 => Threshold::Count(given.value),
            "BOUNDED_PERCENT" if given.value > 0 => Threshold::Bounded(given.value),
            "UNBOUNDED_PERCENT" if given.value > 0 => Threshold::Unbounded(given.value),
            other => return Err(Fail::invalid(format!("Invalid threshold: {other} {}", given.value))),
        },
    };
    Ok(Breaker { rollback: given.rollback, reset: given.reset_on_healthy_task.unwrap_or(true), threshold })
}

/// Readers see the service as it is now for a while longer. If they do not see its last change yet, they will see that one and this one
/// together.
pub(crate) fn shadowed(ctx: &mut Ctx, service: &mut Service) {
    if service.shadow.as_ref().is_some_and(|(hidden, _)| ctx.now < *hidden) {
        return;
    }
    service.shadow = None;
    let before = Box::new(service.clone());
    service.shadow = shadow(ctx, Some(before));
}

fn shadow(ctx: &mut Ctx, before: Option<Box<Service>>) -> Option<(Duration, Option<Box<Service>>)> {
    let serial = ctx.serial();
    let until = ctx.now + ctx.draw_time(&ctx.set.lag, "lag", serial);
    (until > ctx.now).then_some((until, before))
}

pub(crate) fn create(ctx: &mut Ctx, region: &mut Region, body: &Value) -> Answer {
    let asked: Asked = read(body)?;
    let name = asked.service_name.clone().unwrap_or_default();
    let wellformed = name.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
    if name.is_empty() || name.len() > 255 || !wellformed {
        return Err(Fail::invalid(
            "Invalid service name: letters, digits, hyphens and underscores, 255 at most.",
        ));
    }
    if asked.client_token.as_ref().is_some_and(|token| {
        token.is_empty() || token.len() > 36 || !token.bytes().all(|byte| (33..=126).contains(&byte))
    }) {
        return Err(Fail::invalid("clientToken has 1 to 36 ASCII characters."));
    }
    let home = find::cluster_name(region, asked.cluster.as_deref())?;
    let cluster = find::cluster(region, Some(&home))?;
    match cluster.services.get(name.as_str()) {
        Some(old) if old.state == State::Active => {
            let same = asked.client_token.is_some()
                && old.token.as_ref().is_some_and(|(token, asked_then)| {
                    asked.client_token.as_ref() == Some(token) && **asked_then == *body
                });
            if same {
                return Ok(json!({"service": show::service(ctx, region, cluster, old, true)}));
            }
            return Err(Fail::invalid("Creation of service was not idempotent."));
        }
        Some(old) if old.state == State::Draining => {
            return Err(Fail::invalid("Unable to Start a service that is still Draining."));
        }
        _ => {}
    }
    if cluster.active >= region.quotas.services {
        return Err(Fail::client(format!(
            "You have reached the limit of {} services per cluster (L-9EF96962).",
            region.quotas.services
        )));
    }
    if asked.scheduling_strategy.as_deref().is_some_and(|kind| kind != "REPLICA") {
        return Err(Fail::not_faked("a scheduling strategy besides REPLICA"));
    }
    if asked.deployment_controller.as_ref().is_some_and(|controller| controller.r#type != "ECS") {
        return Err(Fail::not_faked("a deployment controller besides ECS"));
    }
    let desired = asked.desired_count.filter(|count| (0..=5000).contains(count));
    let desired =
        desired.ok_or_else(|| Fail::invalid("desiredCount is required, between 0 and 5000."))? as u32;
    if asked.launch_type.is_some() && asked.capacity_provider_strategy.is_some() {
        return Err(Fail::invalid(
            "Specifying both a launch type and capacity provider strategy is not supported. Remove one and try again.",
        ));
    }
    let strategy = match (&asked.capacity_provider_strategy, &asked.launch_type) {
        (Some(items), _) => strategy(cluster, items)?,
        (None, Some(kind)) if kind == "FARGATE" => Vec::new(),
        (None, Some(kind)) => return Err(Fail::not_faked(format!("the launch type {kind}"))),
        (None, None) => vec![("FARGATE".to_owned(), 1, 0)],
    };
    let task_definition =
        asked.task_definition.as_deref().ok_or_else(|| Fail::invalid("TaskDefinition can not be blank."))?;
    let definition = definition(region, cluster, task_definition, &strategy, asked.launch_type.as_deref())?;
    let revision = Revision {
        network: network(&definition, asked.network_configuration.clone())?,
        registries: registries(region, asked.service_registries.clone())?,
        definition,
        strategy,
        launch_type: asked.launch_type.clone(),
        platform_version: asked.platform_version.clone().unwrap_or_else(|| "LATEST".into()),
    };
    let policy = policy(&asked, None)?;
    let tags = tags::checked(asked.tags)?;
    let serial = ctx.serial();
    let name: Arc<str> = name.into();
    let mut service = Service {
        name: name.clone(),
        serial,
        state: State::Active,
        created: ctx.now,
        desired,
        policy,
        tags,
        deployments: Vec::new(),
        good: None,
        tasks: Vec::new(),
        past: VecDeque::new(),
        events: VecDeque::new(),
        token: asked.client_token.map(|token| (token, Arc::new(body.clone()))),
        steady: false,
        not_before: ctx.now,
        retry: ctx.set.times.retry,
        shadow: None,
    };
    rollout::deploy(ctx, region, &home, &mut service, Arc::new(revision), false);
    let shown = show::service(ctx, region, find::cluster(region, Some(&home))?, &service, true);
    if let Some(cluster) = region.clusters.get_mut(&home) {
        let before = cluster.services.remove(&name).map(Box::new);
        service.shadow = shadow(ctx, before);
        cluster.services.insert(name, service);
        cluster.active += 1;
    }
    ctx.changed = true;
    Ok(json!({"service": shown}))
}
