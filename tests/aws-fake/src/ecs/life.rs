//! The life of a task: each step, how long it takes, what goes with it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{events, rollout};
use crate::faults::Failing;
use crate::kept::{Capacity, End, Note, Owner, Region, Revision, Status, Tags, Task, hex};
use crate::time::{Ctx, Due};

/// What a new task is made of.
pub(crate) struct Seed {
    pub(crate) revision: Arc<Revision>,
    pub(crate) owner: Option<Owner>,
    pub(crate) group: String,
    pub(crate) started_by: Option<String>,
    pub(crate) overrides: Option<serde_json::Value>,
    pub(crate) tags: Tags,
    pub(crate) provider: Arc<str>,
}

/// Why a task cannot start now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NoStart {
    /// Too many tasks of the cluster are in PROVISIONING.
    Provisioning,
    /// A quota binds, or the provider is not of this cluster.
    Placement(&'static str, String),
}

/// Starts a task.
pub(crate) fn start(
    ctx: &mut Ctx,
    region: &mut Region,
    cluster: &Arc<str>,
    seed: Seed,
) -> Result<u64, NoStart> {
    let Some(home) = region.clusters.get_mut(cluster) else {
        return Err(NoStart::Placement("RESOURCE:CLUSTER", "The cluster is gone.".into()));
    };
    if home.provisioning >= region.quotas.provisioning {
        return Err(NoStart::Provisioning);
    }
    let Some(capacity) = home.capacity(&seed.provider) else {
        let text = format!("The capacity provider {} is not of this cluster.", seed.provider);
        return Err(NoStart::Placement("RESOURCE:CAPACITY", text));
    };
    let cpu = seed.revision.definition.size.0;
    let most = match capacity {
        Capacity::Fargate => region.quotas.fargate_vcpu,
        Capacity::Spot => region.quotas.spot_vcpu,
        Capacity::Managed => region.quotas.managed_vcpu,
    };
    let used = region.used.of(capacity);
    if (*used + cpu) as f64 > most * 1024.0 {
        let text = "You've reached the limit on the number of vCPUs you can run concurrently.";
        return Err(NoStart::Placement("RESOURCE:CPU", text.into()));
    }
    *used += cpu;
    // a task waits for its launch in PROVISIONING
    let launch = if capacity == Capacity::Managed { ctx.now } else { region.launches.reserve(ctx.now) };
    let id = ctx.serial();
    home.provisioning += 1;
    home.pending += 1;
    home.by_family.insert((seed.revision.definition.family.clone(), id));
    let task = Task {
        id,
        healthy: seed.revision.definition.health_check.then_some(false),
        revision: seed.revision,
        owner: seed.owner,
        group: seed.group,
        started_by: seed.started_by,
        overrides: seed.overrides,
        tags: seed.tags,
        provider: seed.provider,
        capacity,
        status: Status::Provisioning,
        ending: None,
        settled: false,
        version: 1,
        created: ctx.now,
        started: None,
        stopping: None,
        stopped: None,
    };
    let note = Note::Task(Box::new(task.clone()));
    home.tasks.insert(id, task);
    events::send(ctx, region, cluster, note);
    let wait = ctx.draw_time(&ctx.set.times.provisioning, "provisioning", id);
    ctx.at(launch + wait, Due::Step { region: region.index, cluster: cluster.clone(), task: id, version: 1 });
    Ok(id)
}

/// Brings a task into a state, and tells everybody.
fn enter(ctx: &mut Ctx, region: &mut Region, cluster: &Arc<str>, id: u64, status: Status) {
    let Some(home) = region.clusters.get_mut(cluster) else { return };
    let Some(task) = home.tasks.get_mut(&id) else { return };
    let before = task.status;
    task.status = status;
    task.version += 1;
    home.provisioning -= usize::from(before == Status::Provisioning);
    home.pending -= usize::from(before.is_pending());
    home.pending += usize::from(status.is_pending());
    home.running -= usize::from(before == Status::Running);
    home.running += usize::from(status == Status::Running);
    match status {
        Status::Running => task.started = Some(ctx.now),
        Status::Stopping => task.stopping = Some(ctx.now),
        Status::Stopped => task.stopped = Some(ctx.now),
        _ => {}
    }
    let note = Note::Task(Box::new(task.clone()));
    let (version, owner) = (task.version, task.owner.clone());
    let wait = match status {
        Status::Provisioning | Status::Running | Status::Stopped => None,
        Status::Pending => Some(ctx.draw_time(&ctx.set.times.pending, "pending", id)),
        Status::Activating => Some(ctx.draw_time(&ctx.set.times.activating, "activating", id)),
        Status::Deactivating => Some(ctx.draw_time(&ctx.set.times.deactivating, "deactivating", id)),
        Status::Stopping => Some(if task.started.is_some() {
            ctx.draw_time(&ctx.set.times.stopping, "stopping", id).min(task.definition().stop_timeout)
        } else {
            std::time::Duration::ZERO
        }),
        Status::Deprovisioning => Some(ctx.draw_time(&ctx.set.times.deprovisioning, "deprovisioning", id)),
    };
    if let Some(wait) = wait {
        ctx.after(wait, Due::Step { region: region.index, cluster: cluster.clone(), task: id, version });
    }
    if before == Status::Provisioning
        && let Some((service, serial)) = home.waiting.pop_front()
    {
        ctx.at(ctx.now, Due::Schedule { region: region.index, cluster: cluster.clone(), service, serial });
    }
    events::send(ctx, region, cluster, note);
    if let Some(owner) = owner {
        rollout::soon(ctx, region.index, cluster, &owner.service, owner.serial);
    }
}

/// A task takes its next step.
pub(crate) fn step(ctx: &mut Ctx, region: &mut Region, cluster: &Arc<str>, id: u64, version: u32) {
    let Some(task) = region.clusters.get(cluster).and_then(|home| home.tasks.get(&id)) else { return };
    if task.version != version {
        return;
    }
    let family = task.definition().family.clone();
    let registry = task.revision.registry().map(str::to_owned);
    let failing = match ctx.faults.failing.get(&*family) {
        Some((how, share)) if ctx.draw_share(*share, "fails", id) => Some(*how),
        _ => None,
    };
    match task.status {
        Status::Provisioning => enter(ctx, region, cluster, id, Status::Pending),
        Status::Pending if failing == Some(Failing::NoImage) => {
            let image = &task.definition().body["containerDefinitions"][0]["image"];
            let reason =
                format!("CannotPullContainerError: pull image manifest has been retried: {image}: not found");
            stop(
                ctx,
                region,
                cluster,
                id,
                End { code: "TaskFailedToStart", reason, exit: None, failed: true },
            );
        }
        Status::Pending if registry.is_some() => enter(ctx, region, cluster, id, Status::Activating),
        Status::Pending => run(ctx, region, cluster, id, failing),
        Status::Activating => {
            let attributes = attributes(region, cluster, task);
            let healthy = task.healthy != Some(false);
            let arn = registry.unwrap_or_default();
            match region.map.register(ctx, &region.quotas, &arn, &hex(id), attributes, healthy) {
                Ok(()) => run(ctx, region, cluster, id, failing),
                Err(why) => {
                    let reason = format!("Unable to register in Cloud Map: {}", why.message);
                    stop(
                        ctx,
                        region,
                        cluster,
                        id,
                        End { code: "TaskFailedToStart", reason, exit: None, failed: true },
                    );
                }
            }
        }
        Status::Running => {
            let end = match failing {
                Some(Failing::Exits(code)) => End {
                    code: "EssentialContainerExited",
                    reason: "Essential container in task exited".into(),
                    exit: Some(code),
                    failed: true,
                },
                _ => End {
                    code: "ServiceSchedulerInitiated",
                    reason: "Task failed container health checks".into(),
                    exit: Some(143),
                    failed: true,
                },
            };
            stop(ctx, region, cluster, id, end);
        }
        Status::Deactivating => enter(ctx, region, cluster, id, Status::Stopping),
        Status::Stopping => enter(ctx, region, cluster, id, Status::Deprovisioning),
        Status::Deprovisioning => ended(ctx, region, cluster, id),
        Status::Stopped => {}
    }
}

fn run(ctx: &mut Ctx, region: &mut Region, cluster: &Arc<str>, id: u64, failing: Option<Failing>) {
    enter(ctx, region, cluster, id, Status::Running);
    let Some(task) = region.clusters.get(cluster).and_then(|home| home.tasks.get(&id)) else { return };
    let (region, cluster, version) = (region.index, cluster.clone(), task.version);
    let checked = task.healthy.is_some();
    let settle =
        if checked { ctx.draw_time(&ctx.set.times.healthy, "healthy", id) } else { ctx.set.times.settled };
    match failing {
        Some(Failing::Exits(_)) => {
            ctx.after(std::time::Duration::from_secs(1), Due::Step { region, cluster, task: id, version });
        }
        // longer than a health check would need
        Some(Failing::Unhealthy) if checked => {
            ctx.after(ctx.set.times.healthy.end * 3, Due::Step { region, cluster, task: id, version });
        }
        _ => ctx.after(settle, Due::Settle { region, cluster, task: id, version }),
    }
}

/// The scheduler counts a task as healthy.
pub(crate) fn settle(ctx: &mut Ctx, region: &mut Region, cluster: &Arc<str>, id: u64, version: u32) {
    let Some(home) = region.clusters.get_mut(cluster) else { return };
    let Some(task) = home.tasks.get_mut(&id) else { return };
    if task.version != version || task.settled {
        return;
    }
    task.settled = true;
    let owner = task.owner.clone();
    if task.healthy == Some(false) {
        task.healthy = Some(true);
        task.version += 1;
        let (note, registry) =
            (Note::Task(Box::new(task.clone())), task.revision.registry().map(str::to_owned));
        events::send(ctx, region, cluster, note);
        if let Some(arn) = registry {
            region.map.set_health(ctx, &arn, &hex(id), true);
        }
    }
    if let Some(owner) = owner {
        rollout::healthy(region, cluster, &owner);
        rollout::soon(ctx, region.index, cluster, &owner.service, owner.serial);
    }
}

/// Ends a task. False if it is ending already, or unknown.
pub(crate) fn stop(ctx: &mut Ctx, region: &mut Region, cluster: &Arc<str>, id: u64, end: End) -> bool {
    let Some(home) = region.clusters.get_mut(cluster) else { return false };
    let Some(task) = home.tasks.get_mut(&id) else { return false };
    if task.ending.is_some() {
        return false;
    }
    let mut end = end;
    if task.started.is_some() && end.exit.is_none() {
        end.exit = Some(143); // ended by SIGTERM
    }
    let failed = (end.failed && !task.settled).then(|| task.owner.clone()).flatten();
    task.ending = Some(end);
    home.ended.insert(id);
    let registry = task.revision.registry().map(str::to_owned);
    let next = match task.status {
        Status::Provisioning => Status::Deprovisioning,
        Status::Running if registry.is_some() => Status::Deactivating,
        _ => Status::Stopping,
    };
    if let Some(arn) = registry.filter(|_| task.status == Status::Running) {
        region.map.deregister(ctx, &arn, &hex(id));
    }
    enter(ctx, region, cluster, id, next);
    if let Some(owner) = failed {
        rollout::task_failed(ctx, region, cluster, &owner);
    }
    true
}

fn ended(ctx: &mut Ctx, region: &mut Region, cluster: &Arc<str>, id: u64) {
    enter(ctx, region, cluster, id, Status::Stopped);
    let Some(task) = region.clusters.get(cluster).and_then(|home| home.tasks.get(&id)) else { return };
    let (capacity, cpu) = (task.capacity, task.definition().size.0);
    let task = task.clone();
    *region.used.of(capacity) -= cpu;
    ctx.after(
        ctx.set.times.stopped,
        Due::ForgetTask { region: region.index, cluster: cluster.clone(), task: id },
    );
    rollout::task_ended(ctx, region, cluster, &task);
}

/// A stopped task can no longer be described.
pub(crate) fn forget(region: &mut Region, cluster: &Arc<str>, id: u64) {
    let Some(home) = region.clusters.get_mut(cluster) else { return };
    if let Some(task) = home.tasks.remove(&id) {
        home.by_family.remove(&(task.definition().family.clone(), id));
        home.ended.remove(&id);
    }
}

/// What ECS says of a task in Cloud Map.
fn attributes(region: &Region, cluster: &Arc<str>, task: &Task) -> BTreeMap<String, String> {
    let service = task.owner.as_ref().map_or("", |owner| &*owner.service);
    let registry = task.revision.registries.get(0).cloned().unwrap_or_default();
    let mut out = BTreeMap::from(
        [
            ("AVAILABILITY_ZONE", format!("{}{}", region.name, task.zone())),
            ("AWS_INSTANCE_IPV4", task.address()),
            ("ECS_CLUSTER_NAME", cluster.to_string()),
            ("ECS_SERVICE_NAME", service.to_owned()),
            ("ECS_TASK_DEFINITION_FAMILY", task.definition().family.to_string()),
            ("REGION", region.name.to_string()),
        ]
        .map(|(key, value)| (key.to_owned(), value)),
    );
    if let Some(port) = registry["port"].as_u64().or_else(|| registry["containerPort"].as_u64()) {
        out.insert("AWS_INSTANCE_PORT".into(), port.to_string());
    }
    out
}
