//! UpdateService and DeleteService.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

use super::services::{self, Asked, shadowed};
use super::{find, rollout, show};
use crate::fail::{Answer, Fail, read};
use crate::kept::{Region, Revision, Service, State};
use crate::time::Ctx;

fn service<'a>(region: &'a Region, cluster: &str, name: &str) -> Result<&'a Service, Fail> {
    let cluster = find::cluster(region, Some(cluster))?;
    let name = find::short(region, "service", name).ok_or_else(Fail::service)?;
    cluster.services.get(name).ok_or_else(Fail::service)
}

pub(crate) fn update(ctx: &mut Ctx, region: &mut Region, body: &Value) -> Answer {
    let asked: Asked = read(body)?;
    for (given, name) in [
        (asked.client_token.is_some(), "clientToken"),
        (asked.launch_type.is_some(), "launchType"),
        (!asked.tags.is_empty(), "tags"),
        (asked.service_name.is_some(), "serviceName"),
        (asked.scheduling_strategy.is_some(), "schedulingStrategy"),
    ] {
        if given {
            return Err(Fail::not_faked(format!("UpdateService has no {name}")));
        }
    }
    let home = find::cluster_name(region, asked.cluster.as_deref())?;
    let old = service(region, &home, asked.service.as_deref().unwrap_or_default())?;
    if old.state != State::Active {
        return Err(Fail::new("ServiceNotActiveException", 400, "Service was not ACTIVE."));
    }
    let cluster = find::cluster(region, Some(&home))?;
    let primary = old.deployments.first().ok_or_else(Fail::service)?.revision.clone();
    let strategy = match &asked.capacity_provider_strategy {
        Some(items) => services::strategy(cluster, items)?,
        None => primary.strategy.clone(),
    };
    // a service with a launch type gets a strategy by an update, and loses the type
    let launch_type = primary.launch_type.clone().filter(|_| asked.capacity_provider_strategy.is_none());
    let definition = match &asked.task_definition {
        Some(name) => services::definition(region, cluster, name, &strategy, launch_type.as_deref())?,
        None => primary.definition.clone(),
    };
    let network =
        asked.network_configuration.clone().or(Some(primary.network.clone()).filter(|old| !old.is_null()));
    let registries = match &asked.service_registries {
        Some(_) => services::registries(region, asked.service_registries.clone())?,
        None => primary.registries.clone(),
    };
    let revision = Revision {
        network: services::network(&definition, network)?,
        registries,
        definition,
        strategy,
        launch_type,
        platform_version: asked.platform_version.clone().unwrap_or_else(|| primary.platform_version.clone()),
    };
    let policy = services::policy(&asked, Some(&old.policy))?;
    let desired = match asked.desired_count {
        None => old.desired,
        Some(count) if (0..=5000).contains(&count) => count as u32,
        Some(_) => return Err(Fail::invalid("desiredCount is between 0 and 5000.")),
    };
    let deploys = asked.force_new_deployment == Some(true) || !revision.same(&primary);
    ctx.changed = deploys || desired != old.desired || policy != old.policy;

    let name = old.name.clone();
    let Some(mut service) = region.clusters.get_mut(&home).and_then(|home| home.services.remove(&name))
    else {
        return Err(Fail::service());
    };
    if ctx.changed {
        shadowed(ctx, &mut service);
        service.steady = false;
        service.desired = desired;
        service.policy = policy;
        service.not_before = ctx.now;
        if deploys {
            rollout::deploy(ctx, region, &home, &mut service, Arc::new(revision), false);
        } else {
            rollout::soon(ctx, region.index, &home, &name, service.serial);
        }
    }
    // AWS does not promise the tags here
    let shown = show::service(ctx, region, find::cluster(region, Some(&home))?, &service, false);
    if let Some(home) = region.clusters.get_mut(&home) {
        home.services.insert(name, service);
    }
    Ok(json!({"service": shown}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Delete {
    cluster: Option<String>,
    service: String,
    force: Option<bool>,
}

pub(crate) fn delete(ctx: &mut Ctx, region: &mut Region, body: &Value) -> Answer {
    let asked: Delete = read(body)?;
    let home = find::cluster_name(region, asked.cluster.as_deref())?;
    let old = service(region, &home, &asked.service)?;
    if old.state == State::Inactive {
        return Err(Fail::service());
    }
    if old.state == State::Active && old.desired > 0 && asked.force != Some(true) {
        return Err(Fail::invalid("The service cannot be stopped while it is scaled above 0."));
    }
    let name = old.name.clone();
    if old.state == State::Active
        && let Some(cluster) = region.clusters.get_mut(&home)
        && let Some(service) = cluster.services.get_mut(&name)
    {
        cluster.active -= 1;
        shadowed(ctx, service);
        service.state = State::Draining;
        service.desired = 0;
        ctx.changed = true;
        let serial = service.serial;
        rollout::soon(ctx, region.index, &home, &name, serial);
    }
    let service = service(region, &home, &name)?;
    Ok(json!({"service": show::service(ctx, region, find::cluster(region, Some(&home))?, service, true)}))
}
