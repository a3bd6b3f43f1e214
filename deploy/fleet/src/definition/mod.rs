//! Task definitions: the body of RegisterTaskDefinition, in AWS's own names. Pure, and the same text on every machine.
//!
//! How many there are: one for each flower, role, architecture and size. So the target (40,000 units of two sizes in 12 clusters, 2,000 heads
//! and 2,000 shards in 3) has 30, and RegisterTaskDefinition, one a second for an account, does not bind. That works because no
//! definition says who a task is: a unit, a head and a shard take their name from that of their service, which the task metadata endpoint
//! tells, and a shard its part of the symbols from its place among the names.
//!
//! Shards whose regions `shards.json` lists are the exception: what a shard owns is in the environment, so each has a definition of its own.
//! For 2,000 of them that is 42 minutes at 80 percent of the rate, at the first start and for each new image.

#[cfg(test)]
mod tests;

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::{
    class::{Class, Size, classes},
    desired::Desired,
    model::Role,
    text,
};

/// Hex digits of a definition's hash: 64 bits, for some thousands of definitions.
const HASH_DIGITS: usize = 16;
/// Folder of the units' files beside the bundles.
const UNIT_FILES: &str = "units";

/// A rendered task definition.
#[derive(Clone, Debug, PartialEq)]
pub struct Definition {
    /// `GRID-FLOWER-ROLE-SIZE-HASH`.
    pub family: String,
    /// The first 16 hex digits of the SHA-256 of its text without the family.
    pub hash: String,
    /// The body of RegisterTaskDefinition.
    pub body: Value,
}

/// What a definition is made for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target<'a> {
    /// What runs.
    pub role: Role,
    /// Its account.
    pub account: &'a str,
    /// Its cluster.
    pub flower: &'a str,
    /// Its size.
    pub size: Size,
    /// The namespace whose heads a unit asks, or whose shards a head asks.
    pub upstream: Option<&'a str>,
    /// What [`own`] gives.
    pub own: Vec<(String, String)>,
}

/// The variables that not every task of a role has. Its name is none of them.
#[must_use]
pub fn own(desired: &Desired, role: Role, index: usize) -> Vec<(String, String)> {
    match role {
        Role::Shard => {
            let count = ("TRELLIS_SHARD_COUNT".to_owned(), desired.shards.count.to_string());
            let owns =
                desired.shards.owns.get(index).map(|owns| ("TRELLIS_OWNS".to_owned(), owns.json.clone()));
            [count].into_iter().chain(owns).collect()
        }
        Role::Head => {
            let cache =
                desired.heads.cache.map(|bytes| ("TRELLIS_CACHE_BYTES".to_owned(), bytes.to_string()));
            cache.into_iter().collect()
        }
        Role::Unit | Role::Collector => Vec::new(),
    }
}

/// Renders a definition.
#[must_use]
pub fn render(desired: &Desired, target: &Target<'_>) -> Definition {
    let grid = &desired.grid;
    let role = target.role.word();
    let class = classes().class(role);
    let Target { account, flower, size, .. } = target;
    let aws = partition(&grid.region);
    let role_arn = |name: &str| {
        format!("arn:{aws}:iam::{account}:role/trellis/{0}/tasks/{0}-{flower}-{name}", grid.grid)
    };
    // ECS checks the size and the resources against each entry. A task that Fargate cannot run names managed instances alone.
    let compatible = match size.provider.is_managed() {
        true => json!(["MANAGED_INSTANCES"]),
        false => json!(classes().service.requires_compatibilities),
    };
    let mut body = Map::new();
    let mut put = |key: &str, value: Value| body.insert(key.to_owned(), value);
    put("networkMode", json!(classes().service.network_mode));
    put("requiresCompatibilities", compatible);
    put("cpu", json!(size.cpu.to_string()));
    put("memory", json!(size.memory.to_string()));
    put("runtimePlatform", json!({"cpuArchitecture": size.arch.name(), "operatingSystemFamily": "LINUX"}));
    put("executionRoleArn", json!(role_arn("execution")));
    put("taskRoleArn", json!(role_arn(role)));
    put("containerDefinitions", json!([container(desired, target, class)]));
    put("volumes", class.writable.iter().map(|path| json!({"name": volume(path)})).collect());
    put("tags", json!([{"key": "trellis:grid", "value": grid.grid}]));
    let body = Value::Object(body);
    let digest = Sha256::digest(text::of(&body).as_bytes());
    let hash: String = format!("{digest:x}").chars().take(HASH_DIGITS).collect();
    let family = family_of(&grid.grid, flower, target.role, size, &hash);
    let mut body = body;
    body["family"] = json!(family);
    Definition { family, hash, body }
}

/// The family of a definition: what it is for, its size, and its hash.
#[must_use]
pub fn family_of(grid: &str, flower: &str, role: Role, size: &Size, hash: &str) -> String {
    let gpu = if size.gpu > 0 { format!("-gpu{}", size.gpu) } else { String::new() };
    let arch = size.arch.name().to_ascii_lowercase();
    format!("{grid}-{flower}-{}-{}-{}{gpu}-{arch}-{hash}", role.word(), size.cpu, size.memory)
}

fn container(desired: &Desired, target: &Target<'_>, class: &Class) -> Value {
    let grid = &desired.grid;
    let settings = &classes().service;
    let role = target.role.word();
    let mut container = json!({
        "name": role,
        "image": grid.images[&class.image],
        "essential": true,
        "readonlyRootFilesystem": settings.readonly_root,
        "stopTimeout": class.stop_timeout_seconds,
        "linuxParameters": {"capabilities": {"drop": settings.drop_capabilities}},
        "environment": environment(desired, target, class),
        "logConfiguration": {
            "logDriver": "awslogs",
            "options": {
                "awslogs-group": format!("/trellis/{}/{}/{role}", grid.grid, target.flower),
                "awslogs-region": grid.region,
                "awslogs-stream-prefix": role,
                "mode": settings.log_mode,
            },
        },
        "mountPoints": class.writable.iter().map(|path| {
            json!({"sourceVolume": volume(path), "containerPath": path, "readOnly": false})
        }).collect::<Vec<_>>(),
    });
    if let Some(port) = class.port {
        container["portMappings"] = json!([{"containerPort": port, "hostPort": port, "protocol": "tcp"}]);
    }
    if let Some(check) = &class.health_check {
        container["healthCheck"] = json!({
            "command": check.command,
            "interval": check.interval_seconds,
            "timeout": check.timeout_seconds,
            "startPeriod": check.start_period_seconds,
            "retries": check.retries,
        });
    }
    if target.size.gpu > 0 {
        container["resourceRequirements"] = json!([{"type": "GPU", "value": target.size.gpu.to_string()}]);
    }
    container
}

/// The variables in order of their names, each as ECS wants it.
fn environment(desired: &Desired, target: &Target<'_>, class: &Class) -> Value {
    let grid = &desired.grid;
    let mut all = class.environment.clone();
    all.insert("OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(), grid.telemetry.clone());
    all.insert("AWS_REGION".to_owned(), grid.region.clone());
    let upstream = target.upstream.unwrap_or_default();
    match target.role {
        Role::Head => {
            all.insert("TRELLIS_SHARDS".to_owned(), format!("cloudmap://{upstream}.{}/shard", grid.domain));
            all.insert(
                "TRELLIS_HEADS".to_owned(),
                format!("cloudmap://{}.{}/head", target.flower, grid.domain),
            );
        }
        Role::Shard => {
            all.insert("TRELLIS_LAKE".to_owned(), grid.lake.clone());
        }
        Role::Unit => {
            let port = classes().class("head").port.unwrap_or_default();
            all.insert("TRELLIS_URL".to_owned(), format!("dns://head.{upstream}.{}:{port}", grid.domain));
            // the task appends the name of its service
            all.insert("TRELLIS_UNIT_FILE".to_owned(), unit_files(desired));
        }
        Role::Collector => {}
    }
    all.extend(target.own.iter().cloned());
    all.into_iter().map(|(name, value)| json!({"name": name, "value": value})).collect()
}

/// Where the files of units are: `s3://BUCKET/bundles/units/`. A unit's own is `SERVICE.json`.
#[must_use]
pub fn unit_files(desired: &Desired) -> String {
    format!("{}/{UNIT_FILES}/", desired.grid.bundles)
}

/// The partition of AWS that a Region is in, as ARNs name it.
fn partition(region: &str) -> &'static str {
    match region {
        _ if region.starts_with("cn-") => "aws-cn",
        _ if region.starts_with("us-gov-") => "aws-us-gov",
        _ => "aws",
    }
}

/// A volume's name for a path: `/var/tmp` is `var-tmp`.
fn volume(path: &str) -> String {
    path.trim_matches('/').replace('/', "-")
}
