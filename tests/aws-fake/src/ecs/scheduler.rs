//! The service scheduler: it starts and stops tasks until a service is as it should be.

use std::sync::Arc;

use super::life::{self, NoStart, Seed};
use super::rollout::{hold, with};
use super::{events, show};
use crate::kept::{End, Note, Owner, Region, Revision, Rollout, Service, State, Status, Tags, Task, hex};
use crate::time::{Ctx, Due};

/// The scheduler looks at a service.
pub(crate) fn look(ctx: &mut Ctx, region: &mut Region, cluster: &Arc<str>, name: &Arc<str>, serial: u64) {
    with(ctx, region, cluster, name, serial, |ctx, region, service| match service.state {
        State::Active => balance(ctx, region, cluster, service),
        State::Draining => drain(ctx, region, cluster, service),
        State::Inactive => {}
    });
}

fn tasks<'a>(region: &'a Region, cluster: &Arc<str>, service: &'a Service) -> impl Iterator<Item = &'a Task> {
    let home = region.clusters.get(cluster);
    service.tasks.iter().filter_map(move |id| home?.tasks.get(id))
}

fn stop_for(ctx: &mut Ctx, region: &mut Region, cluster: &Arc<str>, service: &mut Service, id: u64) {
    let deployment = service.deployments.first().map_or(0, |each| each.id);
    let reason = format!("Scaling activity initiated by (deployment {})", show::deployment_id(deployment));
    if life::stop(
        ctx,
        region,
        cluster,
        id,
        End { code: "ServiceSchedulerInitiated", reason, exit: None, failed: false },
    ) {
        let serial = ctx.serial();
        service.say(ctx.now, serial, format!("has stopped 1 running tasks: (task {}).", hex(id)));
    }
}

fn drain(ctx: &mut Ctx, region: &mut Region, cluster: &Arc<str>, service: &mut Service) {
    let live: Vec<u64> =
        tasks(region, cluster, service).filter(|t| t.ending.is_none()).map(|t| t.id).collect();
    for id in live {
        stop_for(ctx, region, cluster, service, id);
    }
    if tasks(region, cluster, service).all(|task| task.status >= Status::Stopping) {
        service.state = State::Inactive;
        let forget = Due::ForgetService {
            region: region.index,
            cluster: cluster.clone(),
            service: service.name.clone(),
            serial: service.serial,
        };
        ctx.after(ctx.set.times.inactive, forget);
    }
}

fn balance(ctx: &mut Ctx, region: &mut Region, cluster: &Arc<str>, service: &mut Service) {
    let Some(primary) = service.deployments.first() else { return };
    let (primary, revision, halted) =
        (primary.id, primary.revision.clone(), primary.rollout == Rollout::Failed);
    let (mut old, mut new) = (Vec::new(), Vec::new());
    let (mut live, mut healthy) = (0u32, 0u32);
    for task in tasks(region, cluster, service) {
        // a task that is stopping still runs: it counts, so that the new one of a 0/100 service does not run beside it
        live += u32::from(task.status < Status::Deprovisioning);
        if task.ending.is_none() {
            let counts = task.settled && task.status == Status::Running;
            healthy += u32::from(counts);
            let of_primary = task.owner.as_ref().is_some_and(|owner| owner.deployment == primary);
            if of_primary { &mut new } else { &mut old }.push((counts, task.id));
        }
    }
    let desired = service.desired;
    let least = (desired * service.policy.minimum).div_ceil(100);
    let most = desired * service.policy.maximum / 100;

    // those that do not count go first
    old.sort_unstable();
    if !halted || desired == 0 {
        for (counts, id) in old {
            if counts && healthy <= least {
                continue;
            }
            healthy -= u32::from(counts);
            stop_for(ctx, region, cluster, service, id);
        }
    }
    new.sort_unstable();
    let surplus = new.len().saturating_sub(desired as usize);
    for (_, id) in new.drain(..surplus) {
        stop_for(ctx, region, cluster, service, id);
    }

    while (new.len() as u32) < desired && live < most && !halted && ctx.now >= service.not_before {
        match start_for(ctx, region, cluster, service, &revision, primary) {
            Some(id) => {
                new.push((false, id));
                live += 1;
            }
            None => break,
        }
    }
    steady(ctx, region, cluster, service);
}

fn start_for(
    ctx: &mut Ctx,
    region: &mut Region,
    cluster: &Arc<str>,
    service: &mut Service,
    revision: &Arc<Revision>,
    deployment: u64,
) -> Option<u64> {
    let owner = Owner { service: service.name.clone(), serial: service.serial, deployment };
    let seed = Seed {
        revision: revision.clone(),
        owner: Some(owner),
        group: format!("service:{}", service.name),
        started_by: Some(show::deployment_id(deployment)),
        overrides: None,
        tags: if service.policy.propagate == "SERVICE" { service.tags.clone() } else { Tags::new() },
        provider: provider(region, cluster, service, revision),
    };
    let serial = ctx.serial();
    match life::start(ctx, region, cluster, seed) {
        Ok(id) => {
            service.tasks.push(id);
            service.steady = false;
            service.say(ctx.now, serial, format!("has started 1 tasks: (task {}).", hex(id)));
            Some(id)
        }
        Err(NoStart::Provisioning) => {
            if let Some(home) = region.clusters.get_mut(cluster) {
                home.waiting.push_back((service.name.clone(), service.serial));
            }
            None
        }
        Err(NoStart::Placement(reason, text)) => {
            service.say(ctx.now, serial, format!("was unable to place a task. Reason: {text}"));
            let note = Note::Action {
                service: service.name.clone(),
                kind: "ERROR",
                name: "SERVICE_TASK_PLACEMENT_FAILURE",
                reason: Some(reason.into()),
            };
            events::send(ctx, region, cluster, note);
            hold(ctx, region, cluster, service);
            None
        }
    }
}

/// The provider of the next task: those with a base first, then by weight.
fn provider(region: &Region, cluster: &Arc<str>, service: &Service, revision: &Revision) -> Arc<str> {
    let count =
        |name: &str| tasks(region, cluster, service).filter(|task| &*task.provider == name).count() as u32;
    let below = revision.strategy.iter().find(|(name, _, base)| count(name) < *base);
    let weighted = || {
        let items = revision.strategy.iter().filter(|(_, weight, _)| *weight > 0);
        items.min_by(|a, b| (count(&a.0) * b.1, &a.0).cmp(&(count(&b.0) * a.1, &b.0)))
    };
    match below.or_else(weighted) {
        Some((name, ..)) => name.as_str().into(),
        None => revision.launch_type.as_deref().unwrap_or("FARGATE").into(),
    }
}

fn steady(ctx: &mut Ctx, region: &mut Region, cluster: &Arc<str>, service: &mut Service) {
    let Some(primary) = service.deployments.first().map(|each| each.id) else { return };
    let mut count = 0;
    for task in tasks(region, cluster, service) {
        let mine = task.owner.as_ref().is_some_and(|owner| owner.deployment == primary);
        if !mine || !task.settled || task.ending.is_some() {
            return;
        }
        count += 1;
    }
    if count != service.desired || service.steady {
        return;
    }
    service.steady = true;
    service.retry = ctx.set.times.retry;
    service.deployments.truncate(1);
    let serial = ctx.serial();
    let now = ctx.now;
    let mut completed = None;
    if let Some(primary) = service.deployments.first_mut()
        && primary.rollout == Rollout::InProgress
    {
        primary.rollout = Rollout::Completed;
        primary.updated = now;
        primary.finished = Some(now);
        primary.reason = format!("ECS deployment {} completed.", show::deployment_id(primary.id));
        service.good = Some(primary.revision.clone());
        completed = Some((primary.id, primary.reason.clone()));
    }
    let name = service.name.clone();
    if let Some((deployment, reason)) = completed {
        let text = format!("(deployment {}) deployment completed.", show::deployment_id(deployment));
        service.say(now, serial, text);
        let note = Note::Deployment {
            service: name.clone(),
            deployment,
            name: "SERVICE_DEPLOYMENT_COMPLETED",
            reason,
        };
        events::send(ctx, region, cluster, note);
    }
    service.say(now, !serial, "has reached a steady state.");
    let note = Note::Action { service: name, kind: "INFO", name: "SERVICE_STEADY_STATE", reason: None };
    events::send(ctx, region, cluster, note);
}
