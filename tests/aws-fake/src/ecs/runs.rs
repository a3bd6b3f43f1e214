//! Tasks by themselves: RunTask, StopTask, ListTasks, DescribeTasks.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

use super::life::{self, NoStart, Seed};
use super::services::{self, Item};
use super::{clusters, find, show, tags};
use crate::fail::{Answer, Fail, read};
use crate::kept::{End, Region, Revision, hex, number};
use crate::page::{limit, page};
use crate::time::Ctx;

/// Tasks of one RunTask, and of one DescribeTasks.
const RUN: i64 = 10;
const DESCRIBED: usize = 100;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Run {
    cluster: Option<String>,
    task_definition: String,
    capacity_provider_strategy: Option<Vec<Item>>,
    launch_type: Option<String>,
    count: Option<i64>,
    group: Option<String>,
    network_configuration: Option<Value>,
    overrides: Option<Value>,
    platform_version: Option<String>,
    propagate_tags: Option<String>,
    started_by: Option<String>,
    #[serde(default)]
    tags: Vec<tags::Tag>,
    client_token: Option<String>,
    #[serde(rename = "enableECSManagedTags")]
    #[allow(dead_code)]
    managed_tags: Option<bool>,
    #[allow(dead_code)]
    enable_execute_command: Option<bool>,
}

pub(crate) fn run(ctx: &mut Ctx, region: &mut Region, body: &Value) -> Answer {
    let asked: Run = read(body)?;
    let home = find::cluster_name(region, asked.cluster.as_deref())?;
    let cluster = find::cluster(region, Some(&home))?;
    let count = asked.count.unwrap_or(1);
    if !(1..=RUN).contains(&count) {
        return Err(Fail::invalid("count must be between 1 and 10."));
    }
    if asked.launch_type.is_some() && asked.capacity_provider_strategy.is_some() {
        return Err(Fail::invalid(
            "Specifying both a launch type and capacity provider strategy is not supported. Remove one and try again.",
        ));
    }
    // AWS remembers client tokens for a day, the fake for ever
    if let Some((before, ids)) = asked.client_token.as_ref().and_then(|token| cluster.run_tokens.get(token)) {
        if **before != *body {
            return Err(Fail::new(
                "ConflictException",
                400,
                "The clientToken is already in use with a different request.",
            ));
        }
        let tasks = ids.iter().filter_map(|id| cluster.tasks.get(id));
        let tasks: Vec<Value> =
            tasks.map(|task| show::task(region, &home, task, &|at| json!(ctx.stamp(at)))).collect();
        return Ok(json!({"tasks": tasks, "failures": []}));
    }
    let strategy = match &asked.capacity_provider_strategy {
        Some(items) => services::strategy(cluster, items)?,
        None => vec![("FARGATE".to_owned(), 1, 0)],
    };
    let definition = services::definition(
        region,
        cluster,
        &asked.task_definition,
        &strategy,
        asked.launch_type.as_deref(),
    )?;
    let mut tags = tags::checked(asked.tags)?;
    if asked.propagate_tags.as_deref() == Some("TASK_DEFINITION") {
        tags.extend(definition.tags.clone());
    }
    let provider: Arc<str> =
        strategy.iter().max_by_key(|item| item.1).map_or("FARGATE", |item| &item.0).into();
    let family = definition.family.clone();
    let revision = Arc::new(Revision {
        network: services::network(&definition, asked.network_configuration)?,
        registries: json!([]),
        definition,
        strategy,
        launch_type: asked.launch_type,
        platform_version: asked.platform_version.unwrap_or_else(|| "LATEST".into()),
    });
    let (mut ids, mut tasks, mut failures) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..count {
        let seed = Seed {
            revision: revision.clone(),
            owner: None,
            group: asked.group.clone().unwrap_or_else(|| format!("family:{family}")),
            started_by: asked.started_by.clone(),
            overrides: asked.overrides.clone(),
            tags: tags.clone(),
            provider: provider.clone(),
        };
        match life::start(ctx, region, &home, seed) {
            Ok(id) => {
                ctx.changed = true;
                ids.push(id);
                if let Some(task) = region.clusters.get(&home).and_then(|home| home.tasks.get(&id)) {
                    tasks.push(show::task(region, &home, task, &|at| json!(ctx.stamp(at))));
                }
            }
            Err(NoStart::Provisioning) => {
                failures.push(json!({"reason": "Capacity is unavailable at this time."}))
            }
            Err(NoStart::Placement(reason, detail)) => {
                failures.push(json!({"reason": reason, "detail": detail}))
            }
        }
    }
    if let (Some(token), Some(home)) = (asked.client_token, region.clusters.get_mut(&home)) {
        home.run_tokens.insert(token, (Arc::new(body.clone()), ids));
    }
    Ok(json!({"tasks": tasks, "failures": failures}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Stop {
    cluster: Option<String>,
    task: String,
    reason: Option<String>,
}

pub(crate) fn stop(ctx: &mut Ctx, region: &mut Region, body: &Value) -> Answer {
    let asked: Stop = read(body)?;
    let home = find::cluster_name(region, asked.cluster.as_deref())?;
    let unknown = || Fail::invalid("The referenced task was not found.");
    let id = number(&asked.task).ok_or_else(unknown)?;
    if !find::cluster(region, Some(&home))?.tasks.contains_key(&id) {
        return Err(unknown());
    }
    let reason = asked.reason.unwrap_or_else(|| "Task stopped by user".into());
    ctx.changed =
        life::stop(ctx, region, &home, id, End { code: "UserInitiated", reason, exit: None, failed: false });
    let task = region.clusters.get(&home).and_then(|home| home.tasks.get(&id)).ok_or_else(unknown)?;
    Ok(json!({"task": show::task(region, &home, task, &|at| json!(ctx.stamp(at)))}))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct List {
    cluster: Option<String>,
    family: Option<String>,
    next_token: Option<String>,
    max_results: Option<i64>,
    started_by: Option<String>,
    service_name: Option<String>,
    desired_status: Option<String>,
    launch_type: Option<String>,
}

pub(crate) fn list(region: &Region, body: &Value) -> Answer {
    let asked: List = read(body)?;
    let cluster = find::cluster(region, asked.cluster.as_deref())?;
    let ended = match asked.desired_status.as_deref() {
        None | Some("RUNNING") => false,
        Some("STOPPED") => true,
        Some(_) => return Err(Fail::invalid("desiredStatus must be RUNNING or STOPPED.")),
    };
    if asked.launch_type.is_some() {
        return Err(Fail::not_faked("launchType of ListTasks"));
    }
    let after = match &asked.next_token {
        Some(token) => Bound::Excluded(number(token).ok_or_else(|| Fail::invalid("Invalid token."))?),
        None => Bound::Unbounded,
    };
    let above = |id: &u64| match after {
        Bound::Excluded(last) => *id > last,
        _ => true,
    };
    let mut chosen: Box<dyn Iterator<Item = u64>> = match (&asked.service_name, &asked.family) {
        (Some(name), None) => {
            let service = find::short(region, "service", name).and_then(|name| cluster.services.get(name));
            let service = service.ok_or_else(Fail::service)?;
            let all: BTreeSet<u64> = service.tasks.iter().chain(&service.past).copied().collect();
            Box::new(all.into_iter().filter(|id| cluster.tasks.contains_key(id)))
        }
        (None, Some(family)) => {
            let family: Arc<str> = family.as_str().into();
            let range = (family.clone(), 0)..=(family, u64::MAX);
            Box::new(cluster.by_family.range(range).map(|(_, id)| *id))
        }
        (None, None) if ended => Box::new(cluster.ended.range((after, Bound::Unbounded)).copied()),
        (None, None) => Box::new(cluster.tasks.range((after, Bound::Unbounded)).map(|(id, _)| *id)),
        (Some(_), Some(_)) => return Err(Fail::invalid("Specify serviceName or family, not both.")),
    };
    if let Some(by) = asked.started_by {
        chosen = Box::new(chosen.filter(move |id| {
            cluster.tasks.get(id).is_some_and(|task| task.started_by.as_ref() == Some(&by))
        }));
    }
    let chosen = chosen.filter(|id| above(id) && cluster.ended.contains(id) == ended);
    let items = chosen.map(|id| (id, region.arn("task", &format!("{}/{}", cluster.name, hex(id)))));
    let (arns, next) = page(items, limit(asked.max_results, 100, 100)?, |id| hex(*id));
    Ok(json!({"taskArns": arns, "nextToken": next}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Describe {
    cluster: Option<String>,
    tasks: Vec<String>,
    #[serde(default)]
    include: Vec<String>,
}

pub(crate) fn describe(ctx: &Ctx, region: &Region, body: &Value) -> Answer {
    let asked: Describe = read(body)?;
    let cluster = find::cluster(region, asked.cluster.as_deref())?;
    if asked.tasks.is_empty() || asked.tasks.len() > DESCRIBED {
        return Err(Fail::invalid("Tasks must have between 1 and 100 elements."));
    }
    let with_tags = asked.include.iter().any(|each| each == "TAGS");
    let (mut found, mut failures) = (Vec::new(), Vec::new());
    for name in &asked.tasks {
        match number(name).and_then(|id| cluster.tasks.get(&id)) {
            Some(task) => {
                let mut out = show::task(region, &cluster.name, task, &|at| json!(ctx.stamp(at)));
                out["tags"] = if with_tags { show::tags(&task.tags) } else { json!([]) };
                found.push(out);
            }
            None => failures.push(clusters::missing(region, "task", &format!("{}/{name}", cluster.name))),
        }
    }
    Ok(json!({"tasks": found, "failures": failures}))
}
