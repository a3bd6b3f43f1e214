//! Calls of ECS.

use std::collections::BTreeMap;

use aws_sdk_ecs::{
    Client,
    types::{
        AssignPublicIp, AvailabilityZoneRebalancing, AwsVpcConfiguration, CapacityProviderStrategyItem,
        DeploymentCircuitBreaker, DeploymentConfiguration, DeploymentRolloutState, NetworkConfiguration,
        PropagateTags, Service, ServiceField, ServiceRegistry, Tag, ThresholdConfiguration, ThresholdType,
    },
};
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::{DateTime, body::SdkBody};
use serde_json::{Value, json};

use super::fault::fault;
use crate::{
    call::{Answer, Change, Create, Fault, Kind, Present, Rollout, Status},
    class::classes,
    reconcile::GRID_TAG,
};

/// Names of a page of ListServices (AWS: 100 at most).
const PAGE: i32 = 100;
/// Messages of a service that are kept.
const MESSAGES_MAX: usize = 5;

pub(super) async fn list(ecs: &Client, cluster: &str, page: Option<String>) -> Result<Answer, Fault> {
    let answer = ecs.list_services().cluster(cluster).max_results(PAGE).set_next_token(page).send().await;
    let answer = answer.map_err(|error| fault(&error))?;
    let names =
        answer.service_arns().iter().filter_map(|arn| arn.rsplit('/').next()).map(str::to_owned).collect();
    Ok(Answer::Names(names, answer.next_token().map(str::to_owned)))
}

pub(super) async fn describe(ecs: &Client, cluster: &str, names: &[String]) -> Result<Answer, Fault> {
    let call = ecs.describe_services().cluster(cluster).set_services(Some(names.to_vec()));
    let answer = call.include(ServiceField::Tags).send().await.map_err(|error| fault(&error))?;
    let found = answer
        .services()
        .iter()
        .map(|service| (service.service_name().unwrap_or_default().to_owned(), present(service)));
    Ok(Answer::Services(found.collect()))
}

pub(super) async fn create(ecs: &Client, create: &Create) -> Result<Answer, Fault> {
    let Create { service, definition, registry, subnets, security_groups, token } = create;
    let settings = &classes().service;
    let threshold = ThresholdConfiguration::builder()
        .r#type(ThresholdType::from(settings.circuit_breaker.kind.as_str()))
        .value(settings.circuit_breaker.value)
        .build()
        .map_err(built)?;
    let breaker = DeploymentCircuitBreaker::builder()
        .enable(true)
        .rollback(settings.circuit_breaker.rollback)
        .threshold_configuration(threshold)
        .build();
    let deployment = DeploymentConfiguration::builder()
        .minimum_healthy_percent(settings.minimum_healthy_percent)
        .maximum_percent(settings.maximum_percent)
        .deployment_circuit_breaker(breaker)
        .build();
    let network = AwsVpcConfiguration::builder()
        .set_subnets(Some(subnets.clone()))
        .set_security_groups(Some(security_groups.clone()))
        .assign_public_ip(AssignPublicIp::from(settings.assign_public_ip.as_str()))
        .build()
        .map_err(built)?;
    let rebalancing = AvailabilityZoneRebalancing::from(settings.availability_zone_rebalancing.as_str());
    let tags = service.tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build());
    let registries = registry.as_ref().map(|arn| vec![ServiceRegistry::builder().registry_arn(arn).build()]);
    let answer = ecs
        .create_service()
        .cluster(&service.cluster)
        .service_name(&service.name)
        .task_definition(definition)
        .desired_count(i32::try_from(service.desired).unwrap_or(i32::MAX))
        .client_token(token)
        .capacity_provider_strategy(strategy(&service.provider)?)
        .deployment_configuration(deployment)
        .availability_zone_rebalancing(rebalancing)
        .network_configuration(NetworkConfiguration::builder().awsvpc_configuration(network).build())
        .set_service_registries(registries)
        .set_health_check_grace_period_seconds(
            service.grace_seconds.and_then(|grace| i32::try_from(grace).ok()),
        )
        .propagate_tags(PropagateTags::from(settings.propagate_tags.as_str()))
        .set_tags(Some(tags.collect()))
        .send()
        .await
        .map_err(|error| fault(&error))?;
    changed(answer.service())
}

pub(super) async fn update(
    ecs: &Client,
    cluster: &str,
    name: &str,
    change: &Change,
) -> Result<Answer, Fault> {
    let strategy = change.provider.as_ref().map(|provider| strategy(provider)).transpose()?;
    let registries = change.registry.as_ref().map(|registry| {
        let one = registry.as_ref().map(|arn| ServiceRegistry::builder().registry_arn(arn).build());
        one.into_iter().collect()
    });
    // a new strategy needs a new deployment
    let force = change.force || strategy.is_some();
    let answer = ecs
        .update_service()
        .cluster(cluster)
        .service(name)
        .set_task_definition(change.definition.clone())
        .set_desired_count(change.desired.and_then(|desired| i32::try_from(desired).ok()))
        .set_capacity_provider_strategy(strategy.map(|strategy| vec![strategy]))
        .set_service_registries(registries)
        .set_force_new_deployment(force.then_some(true))
        .send()
        .await
        .map_err(|error| fault(&error))?;
    changed(answer.service())
}

pub(super) async fn delete(ecs: &Client, cluster: &str, name: &str) -> Result<Answer, Fault> {
    let answer = ecs.delete_service().cluster(cluster).service(name).send().await;
    changed(answer.map_err(|error| fault(&error))?.service())
}

pub(super) async fn find_definition(ecs: &Client, family: &str) -> Result<Answer, Fault> {
    match ecs.describe_task_definition().task_definition(family).send().await {
        Ok(answer) => {
            let arn = answer.task_definition().and_then(|found| found.task_definition_arn());
            Ok(Answer::Definition(arn.map(str::to_owned)))
        }
        // "Unable to describe task definition."
        Err(SdkError::ServiceError(error)) if error.err().meta().code() == Some("ClientException") => {
            Ok(Answer::Definition(None))
        }
        Err(error) => Err(fault(&error)),
    }
}

/// The body is AWS's own JSON, and goes as it is: no field is lost on the way through types.
pub(super) async fn register(ecs: &Client, grid: &str, family: &str, body: &Value) -> Result<Answer, Fault> {
    let mut body = body.clone();
    // without the tag the role may not register it
    if body.get("tags").is_none() {
        body["tags"] = json!([{"key": GRID_TAG, "value": grid}]);
    }
    let text = body.to_string();
    let answer = ecs
        .register_task_definition()
        .family(family)
        .set_container_definitions(Some(Vec::new()))
        .customize()
        .mutate_request(move |request| {
            request.headers_mut().insert("content-length", text.len().to_string());
            *request.body_mut() = SdkBody::from(text.as_str());
        })
        .send()
        .await
        .map_err(|error| fault(&error))?;
    let arn = answer.task_definition().and_then(|made| made.task_definition_arn());
    Ok(Answer::Definition(arn.map(str::to_owned)))
}

fn strategy(provider: &str) -> Result<CapacityProviderStrategyItem, Fault> {
    CapacityProviderStrategyItem::builder().capacity_provider(provider).weight(1).build().map_err(built)
}

fn built(error: impl std::fmt::Display) -> Fault {
    Fault { kind: Kind::Refused, message: format!("{error}: this is a bug of fleet") }
}

fn changed(service: Option<&Service>) -> Result<Answer, Fault> {
    let lacks = || Fault { kind: Kind::Unavailable, message: "ECS answered without the service".into() };
    service.map(|service| Answer::Service(present(service))).ok_or_else(lacks)
}

fn millis(time: Option<&DateTime>) -> i64 {
    time.and_then(|time| time.to_millis().ok()).unwrap_or_default()
}

fn count(count: i32) -> u32 {
    u32::try_from(count).unwrap_or_default()
}

fn present(service: &Service) -> Present {
    let newest = service.deployments().iter().find(|deployment| deployment.status() == Some("PRIMARY"));
    let strategy = service.capacity_provider_strategy();
    let status = match service.status() {
        Some("DRAINING") => Status::Draining,
        Some("INACTIVE") => Status::Inactive,
        _ => Status::Active,
    };
    let rollout = match newest.and_then(|deployment| deployment.rollout_state()) {
        Some(DeploymentRolloutState::Failed) => Rollout::Failed,
        Some(DeploymentRolloutState::InProgress) => Rollout::InProgress,
        Some(_) => Rollout::Completed,
        // older services and some fakes do not tell: what runs is done
        None if count(service.running_count()) >= count(service.desired_count()) => Rollout::Completed,
        None => Rollout::InProgress,
    };
    let tags: BTreeMap<String, String> = service
        .tags()
        .iter()
        .filter_map(|tag| Some((tag.key()?.to_owned(), tag.value().unwrap_or_default().to_owned())))
        .collect();
    Present {
        status,
        definition: service.task_definition().unwrap_or_default().to_owned(),
        desired: count(service.desired_count()),
        running: count(service.running_count()),
        pending: count(service.pending_count()),
        provider: strategy.first().map(|item| item.capacity_provider().to_owned()),
        registry: service
            .service_registries()
            .first()
            .and_then(|each| each.registry_arn())
            .map(str::to_owned),
        deployment: newest.and_then(|deployment| deployment.id()).unwrap_or_default().to_owned(),
        rollout,
        failed_tasks: newest.map_or(0, |deployment| count(deployment.failed_tasks())),
        reason: newest
            .and_then(|deployment| deployment.rollout_state_reason())
            .unwrap_or_default()
            .to_owned(),
        deployed_ms: newest.map_or(0, |deployment| millis(deployment.created_at())),
        created_ms: millis(service.created_at()),
        tags,
        messages: service
            .events()
            .iter()
            .take(MESSAGES_MAX)
            .filter_map(|event| event.message().map(str::to_owned))
            .collect(),
    }
}
