//! What a service learns of its tasks: deployments begin, fail and are rolled back. Nothing here starts or stops a task.

use std::sync::Arc;

use super::{events, show};
use crate::kept::{Deployment, Note, Owner, Region, Revision, Rollout, Service, Task};
use crate::time::{Ctx, Due};

/// Failures in a row after which ECS says that a service cannot start its tasks.
const IMPAIRED: u32 = 3;

/// The scheduler will look at a service after a short time.
pub(crate) fn soon(ctx: &mut Ctx, region: usize, cluster: &Arc<str>, service: &Arc<str>, serial: u64) {
    let chance = ctx.serial();
    let wait = ctx.draw_time(&ctx.set.times.scheduler, "scheduler", chance);
    ctx.after(wait, Due::Schedule { region, cluster: cluster.clone(), service: service.clone(), serial });
}

/// A new primary deployment of a service.
pub(crate) fn deploy(
    ctx: &mut Ctx,
    region: &mut Region,
    cluster: &Arc<str>,
    service: &mut Service,
    revision: Arc<Revision>,
    rollback: bool,
) {
    let id = ctx.serial();
    let name = show::deployment_id(id);
    let reason = if rollback {
        format!("ECS deployment circuit breaker: rolling back to deploymentId {name}.")
    } else {
        format!("ECS deployment {name} in progress.")
    };
    let deployment = Deployment {
        id,
        revision,
        created: ctx.now,
        updated: ctx.now,
        finished: None,
        failed: 0,
        in_a_row: 0,
        rollout: Rollout::InProgress,
        reason: reason.clone(),
        rollback,
    };
    // deployments that have no task any more are not kept
    let tasks = &service.tasks;
    if let Some(home) = region.clusters.get(cluster) {
        let has_task = |deployment: u64| {
            tasks
                .iter()
                .filter_map(|id| home.tasks.get(id))
                .any(|task| task.owner.as_ref().is_some_and(|owner| owner.deployment == deployment))
        };
        service.deployments.retain(|each| has_task(each.id));
    }
    service.deployments.insert(0, deployment);
    service.steady = false;
    service.not_before = ctx.now;
    service.retry = ctx.set.times.retry;
    let note = Note::Deployment {
        service: service.name.clone(),
        deployment: id,
        name: "SERVICE_DEPLOYMENT_IN_PROGRESS",
        reason,
    };
    events::send(ctx, region, cluster, note);
    soon(ctx, region.index, cluster, &service.name, service.serial);
}

/// Runs `work` on a service that is taken out of its cluster meanwhile.
pub(super) fn with<T>(
    ctx: &mut Ctx,
    region: &mut Region,
    cluster: &Arc<str>,
    name: &Arc<str>,
    serial: u64,
    work: impl FnOnce(&mut Ctx, &mut Region, &mut Service) -> T,
) -> Option<T> {
    let services = &mut region.clusters.get_mut(cluster)?.services;
    if services.get(name)?.serial != serial {
        return None;
    }
    let mut service = services.remove(name)?;
    let out = work(ctx, region, &mut service);
    region.clusters.get_mut(cluster)?.services.insert(name.clone(), service);
    Some(out)
}

/// No task starts for a while; each time for longer.
pub(super) fn hold(ctx: &mut Ctx, region: &Region, cluster: &Arc<str>, service: &mut Service) {
    service.not_before = ctx.now + service.retry;
    service.retry = (service.retry * 2).min(ctx.set.times.retry_most);
    let due = Due::Schedule {
        region: region.index,
        cluster: cluster.clone(),
        service: service.name.clone(),
        serial: service.serial,
    };
    ctx.at(service.not_before, due);
}

/// A task of a deployment became healthy.
pub(crate) fn healthy(region: &mut Region, cluster: &Arc<str>, owner: &Owner) {
    let service = region.clusters.get_mut(cluster).and_then(|home| home.services.get_mut(&owner.service));
    let Some(service) = service.filter(|service| service.serial == owner.serial) else { return };
    let reset = service.policy.breaker.as_ref().is_none_or(|breaker| breaker.reset);
    if let Some(deployment) = service.deployments.iter_mut().find(|each| each.id == owner.deployment)
        && reset
    {
        deployment.in_a_row = 0;
    }
}

/// A task fails before it became healthy. It counts at once, so that the next one does not start before it counts.
pub(crate) fn task_failed(ctx: &mut Ctx, region: &mut Region, cluster: &Arc<str>, owner: &Owner) {
    with(ctx, region, cluster, &owner.service, owner.serial, |ctx, region, service| {
        failed(ctx, region, cluster, service, owner.deployment);
    });
}

/// A task has stopped: its service forgets it.
pub(crate) fn task_ended(ctx: &mut Ctx, region: &mut Region, cluster: &Arc<str>, task: &Task) {
    let Some(owner) = &task.owner else { return };
    with(ctx, region, cluster, &owner.service, owner.serial, |ctx, region, service| {
        service.tasks.retain(|id| *id != task.id);
        service.past.push_front(task.id);
        service.past.truncate(Service::PAST);
        service.steady = false;
        soon(ctx, region.index, cluster, &service.name, service.serial);
    });
}

fn failed(ctx: &mut Ctx, region: &mut Region, cluster: &Arc<str>, service: &mut Service, deployment: u64) {
    let (desired, breaker) = (service.desired, service.policy.breaker.clone());
    let primary = service.deployments.first().is_some_and(|each| each.id == deployment);
    let Some(one) = service.deployments.iter_mut().find(|each| each.id == deployment) else { return };
    one.failed += 1;
    one.in_a_row += 1;
    one.updated = ctx.now;
    let in_a_row = one.in_a_row;
    let trips = breaker.as_ref().is_some_and(|breaker| one.in_a_row >= breaker.failures(desired));
    if primary && one.rollout == Rollout::InProgress && trips {
        one.rollout = Rollout::Failed;
        one.finished = Some(ctx.now);
        one.reason = "ECS deployment circuit breaker: tasks failed to start.".into();
        let reason = one.reason.clone();
        let (serial, id) = (ctx.serial(), show::deployment_id(deployment));
        service.say(ctx.now, serial, format!("(deployment {id}) deployment failed: tasks failed to start."));
        let name = service.name.clone();
        events::send(
            ctx,
            region,
            cluster,
            Note::Deployment { service: name, deployment, name: "SERVICE_DEPLOYMENT_FAILED", reason },
        );
        if let (true, Some(good)) = (breaker.is_some_and(|breaker| breaker.rollback), service.good.clone()) {
            deploy(ctx, region, cluster, service, good, true);
        }
        return;
    }
    if in_a_row >= IMPAIRED {
        let serial = ctx.serial();
        service.say(ctx.now, serial, "is unable to consistently start tasks successfully.");
        let name = service.name.clone();
        events::send(
            ctx,
            region,
            cluster,
            Note::Action { service: name, kind: "WARN", name: "SERVICE_TASK_START_IMPAIRED", reason: None },
        );
    }
    hold(ctx, region, cluster, service);
}
