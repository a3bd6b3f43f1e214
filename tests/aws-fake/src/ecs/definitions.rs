//! Task definitions.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{find, show, tags};
use crate::fail::{Answer, Fail, read};
use crate::kept::{Definition, Region};
use crate::page::{limit, page};
use crate::time::Ctx;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(dead_code)] // the body is kept as it came; this is its form
struct Register {
    family: String,
    container_definitions: Vec<Value>,
    task_role_arn: Option<String>,
    execution_role_arn: Option<String>,
    network_mode: Option<String>,
    #[serde(default)]
    volumes: Vec<Value>,
    #[serde(default)]
    placement_constraints: Vec<Value>,
    #[serde(default)]
    requires_compatibilities: Vec<String>,
    cpu: Option<String>,
    memory: Option<String>,
    #[serde(default)]
    tags: Vec<tags::Tag>,
    pid_mode: Option<String>,
    ipc_mode: Option<String>,
    ephemeral_storage: Option<Storage>,
    runtime_platform: Option<Value>,
    enable_fault_injection: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Storage {
    size_in_gi_b: u32,
}

/// Containers of a task, and bytes of a task definition, at most.
const CONTAINERS: usize = 10;
const BYTES: usize = 64 * 1024;
/// What Fargate allows: the seconds of a stop timeout, and the GiB of a task's disk.
const STOP_TIMEOUT: std::ops::RangeInclusive<u64> = 2..=120;
const DISK: std::ops::RangeInclusive<u32> = 21..=200;
/// The stop timeout of a container that names none.
const STOP_DEFAULT: u64 = 30;

/// Whether Fargate has this pair of CPU units and MiB.
pub(crate) fn fargate_pair(cpu: u64, memory: u64) -> bool {
    let gib = |from: u64, to: u64, step: u64| {
        memory.is_multiple_of(1024)
            && (from..=to).contains(&(memory / 1024))
            && (memory / 1024 - from).is_multiple_of(step)
    };
    match cpu {
        256 => memory == 512 || gib(1, 2, 1),
        512 => gib(1, 4, 1),
        1024 => gib(2, 8, 1),
        2048 => gib(4, 16, 1),
        4096 => gib(8, 30, 1),
        8192 => gib(16, 60, 4),
        16384 => gib(32, 120, 8),
        _ => false,
    }
}

/// Reads `"1024"`, `"1 vCPU"` and `".5 vcpu"` as CPU units, and `"2048"` and `"2 GB"` as MiB.
fn amount(text: Option<&str>, unit: &str) -> Result<u64, Fail> {
    let Some(text) = text else { return Ok(0) };
    let lower = text.to_lowercase();
    let read = match lower.strip_suffix(unit) {
        Some(number) => number.trim().parse::<f64>().ok().map(|number| (number * 1024.0) as u64),
        None => lower.trim().parse().ok(),
    };
    read.ok_or_else(|| Fail::client(format!("Invalid 'cpu' or 'memory' setting for task: {text}")))
}

pub(crate) fn register(ctx: &mut Ctx, region: &mut Region, body: &Value) -> Answer {
    let asked: Register = read(body)?;
    let wellformed = |name: &str| {
        !name.is_empty()
            && name.len() <= 255
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))
    };
    if !wellformed(&asked.family) {
        return Err(Fail::client("Invalid family: letters, digits, hyphens and underscores, 255 at most."));
    }
    if body.to_string().len() > BYTES {
        return Err(Fail::client("Actual length exceeds the maximum size of a task definition."));
    }
    if asked.container_definitions.is_empty() || asked.container_definitions.len() > CONTAINERS {
        return Err(Fail::client("Container definitions should have between 1 and 10 items."));
    }
    let fargate = asked.requires_compatibilities.iter().any(|each| each == "FARGATE");
    for each in &asked.requires_compatibilities {
        if !["EC2", "FARGATE", "EXTERNAL", "MANAGED_INSTANCES"].contains(&each.as_str()) {
            return Err(Fail::client(format!("Invalid compatibility: {each}")));
        }
    }
    let size = (amount(asked.cpu.as_deref(), "vcpu")?, amount(asked.memory.as_deref(), "gb")?);
    let awsvpc = asked.network_mode.as_deref() == Some("awsvpc");
    if fargate {
        if !awsvpc {
            return Err(Fail::client("Fargate only supports network mode 'awsvpc'."));
        }
        for (number, name) in [(size.0, "cpu"), (size.1, "memory")] {
            if number == 0 {
                return Err(Fail::client(format!(
                    "Fargate requires that '{name}' be defined at the task level."
                )));
            }
        }
        if !fargate_pair(size.0, size.1) {
            return Err(Fail::client(format!(
                "No Fargate configuration exists for given values: {} CPU, {} memory. See the Amazon ECS documentation \
                 for the valid values.",
                size.0, size.1
            )));
        }
        if asked.ephemeral_storage.is_some_and(|disk| !DISK.contains(&disk.size_in_gi_b)) {
            return Err(Fail::client("Ephemeral storage must be between 21 and 200 GiB."));
        }
    }
    let mut stop_timeout = 0;
    let mut health_check = false;
    let mut names = std::collections::BTreeSet::new();
    for each in &asked.container_definitions {
        let name = each["name"].as_str().unwrap_or_default();
        if !wellformed(name) || each["image"].as_str().unwrap_or_default().is_empty() {
            return Err(Fail::client("Container.name and Container.image should not be null or empty."));
        }
        if !names.insert(name) {
            return Err(Fail::client("Container names must be unique."));
        }
        let timeout = each["stopTimeout"].as_u64().unwrap_or(STOP_DEFAULT);
        if fargate && !STOP_TIMEOUT.contains(&timeout) {
            return Err(Fail::client("stopTimeout must be between 2 and 120 seconds on Fargate."));
        }
        if fargate && each["privileged"] == true {
            return Err(Fail::client("Fargate does not support privileged containers."));
        }
        let logs = each["logConfiguration"]["logDriver"] == "awslogs";
        let secrets = each["secrets"].as_array().is_some_and(|all| !all.is_empty());
        if fargate && (logs || secrets) && asked.execution_role_arn.is_none() {
            return Err(Fail::client(
                "Fargate requires task definition to have execution role ARN to support log driver awslogs.",
            ));
        }
        if each["essential"] != false {
            stop_timeout = stop_timeout.max(timeout);
            health_check |= each["healthCheck"]["command"].is_array();
        }
    }
    if asked.container_definitions.iter().all(|each| each["essential"] == false) {
        return Err(Fail::client("At least one container must be essential."));
    }
    let mut kept = body.clone();
    if let Value::Object(map) = &mut kept {
        map.remove("tags");
        for (key, number) in [("cpu", size.0), ("memory", size.1)] {
            if number > 0 {
                map.insert(key.into(), json!(number.to_string()));
            }
        }
        for each in map.get_mut("containerDefinitions").and_then(Value::as_array_mut).into_iter().flatten() {
            for (key, value) in [
                ("cpu", json!(0)),
                ("essential", json!(true)),
                ("environment", json!([])),
                ("mountPoints", json!([])),
                ("portMappings", json!([])),
                ("volumesFrom", json!([])),
            ] {
                if let Value::Object(each) = each {
                    each.entry(key).or_insert(value);
                }
            }
        }
    }
    let compatible = if asked.requires_compatibilities.is_empty() {
        vec!["EC2".into()]
    } else {
        asked.requires_compatibilities
    };
    let tags = tags::checked(asked.tags)?;
    let family: Arc<str> = asked.family.into();
    let revisions = region.families.entry(family.clone()).or_default();
    let definition = Arc::new(Definition {
        family,
        revision: revisions.len() as u32 + 1,
        body: kept,
        tags,
        registered: ctx.now,
        deregistered: None,
        size,
        awsvpc,
        compatible,
        health_check,
        stop_timeout: Duration::from_secs(stop_timeout),
    });
    revisions.push(definition.clone());
    ctx.changed = true;
    let shown = show::definition(ctx, region, &definition);
    Ok(json!({"taskDefinition": shown, "tags": show::tags(&definition.tags)}))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Describe {
    task_definition: String,
    #[serde(default)]
    include: Vec<String>,
}

pub(crate) fn describe(ctx: &Ctx, region: &Region, body: &Value) -> Answer {
    let asked: Describe = read(body)?;
    let definition = find::definition(region, &asked.task_definition)?;
    let mut out = json!({"taskDefinition": show::definition(ctx, region, definition)});
    if asked.include.iter().any(|each| each == "TAGS") {
        out["tags"] = show::tags(&definition.tags);
    }
    Ok(out)
}

pub(crate) fn deregister(ctx: &mut Ctx, region: &mut Region, body: &Value) -> Answer {
    let asked: Describe = read(body)?;
    if !asked.task_definition.contains(':') {
        return Err(Fail::client("Please specify the full task definition: family:revision."));
    }
    let old = find::definition(region, &asked.task_definition)
        .map_err(|_| Fail::client("The specified task definition does not exist."))?
        .clone();
    let new = Arc::new(Definition {
        deregistered: old.deregistered.or(Some(ctx.now)),
        family: old.family.clone(),
        body: old.body.clone(),
        tags: old.tags.clone(),
        compatible: old.compatible.clone(),
        ..*old
    });
    ctx.changed = old.deregistered.is_none();
    if let Some(slot) =
        region.families.get_mut(&old.family).and_then(|all| all.get_mut(old.revision as usize - 1))
    {
        *slot = new.clone();
    }
    Ok(json!({"taskDefinition": show::definition(ctx, region, &new)}))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct List {
    family_prefix: Option<String>,
    status: Option<String>,
    sort: Option<String>,
    next_token: Option<String>,
    max_results: Option<i64>,
}

pub(crate) fn list(region: &Region, body: &Value) -> Answer {
    let asked: List = read(body)?;
    let inactive = asked.status.as_deref() == Some("INACTIVE");
    let mut all: Vec<String> = Vec::new();
    for (family, revisions) in &region.families {
        // "prefix" is its name; AWS compares the whole family
        if asked.family_prefix.as_deref().is_none_or(|wanted| wanted == &**family) {
            let chosen = revisions.iter().filter(|each| each.deregistered.is_some() == inactive);
            all.extend(chosen.map(|each| region.arn("task-definition", &each.name())));
        }
    }
    if asked.sort.as_deref() == Some("DESC") {
        all.reverse();
    }
    let skip: usize =
        asked.next_token.as_deref().unwrap_or("0").parse().map_err(|_| Fail::invalid("Invalid token."))?;
    let items = all.into_iter().enumerate().skip(skip);
    let (arns, next) = page(items, limit(asked.max_results, 100, 100)?, |index| (index + 1).to_string());
    Ok(json!({"taskDefinitionArns": arns, "nextToken": next}))
}
