//! The classes of services and the sizes of tasks, as `deploy/aws/classes.json` gives them. Pure.

use std::{collections::BTreeMap, sync::OnceLock};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// ECS counts processors in 1/1024.
const CPU_UNITS: f64 = 1024.0;
const GIB: f64 = (1_u64 << 30) as f64;
/// Largest task of a managed instance: 192 vCPUs (ECS). More is a slip of the keyboard.
const MANAGED_VCPU_MAX: f64 = 192.0;
/// Most memory of a task: 32 TiB is more than any instance has.
const MANAGED_GIB_MAX: f64 = 32_768.0;
/// Memory for each vCPU of the instances that `general` and `gpu` mostly start (m7i, g6), in MiB.
const GENERAL_MIB_PER_VCPU: u32 = 4 << 10;
/// Memory for each vCPU of the instances that `memory` starts (r7gd), in MiB.
const MEMORY_MIB_PER_VCPU: u32 = 8 << 10;
/// vCPUs of an instance for each of its GPUs (g6.xlarge).
const VCPUS_PER_GPU: u32 = 4;

/// Everything that `classes.json` says.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Classes {
    #[serde(rename = "comment")]
    _comment: String,
    /// Seconds that a process drains for at most.
    pub drain_seconds: u32,
    /// What holds for every service.
    pub service: ServiceSettings,
    classes: BTreeMap<String, Class>,
    sizing: Sizing,
    #[serde(rename = "sizing_cases")]
    _sizing_cases: Value,
}

/// What holds for every service: the arguments of CreateService that do not depend on it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceSettings {
    /// 0: the old task ends before the new one starts.
    pub minimum_healthy_percent: i32,
    /// 100.
    pub maximum_percent: i32,
    /// `DISABLED`. ECS would refuse a service of at most 100 percent otherwise.
    pub availability_zone_rebalancing: String,
    /// After how many failed tasks a deployment is broken off.
    pub circuit_breaker: CircuitBreaker,
    /// `awsvpc`.
    pub network_mode: String,
    /// `DISABLED`.
    pub assign_public_ip: String,
    /// Where a task of a Fargate size can run.
    pub requires_compatibilities: Vec<String>,
    /// Whether the root file system is read-only.
    pub readonly_root: bool,
    /// Linux capabilities that the container lacks.
    pub drop_capabilities: Vec<String>,
    /// `non-blocking`.
    pub log_mode: String,
    /// `SERVICE`: tasks bear the tags of their service.
    pub propagate_tags: String,
    #[serde(rename = "why")]
    _why: String,
}

/// After how many failed tasks a deployment is broken off.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CircuitBreaker {
    /// `COUNT`.
    #[serde(rename = "type")]
    pub kind: String,
    /// How many.
    pub value: i32,
    /// Whether ECS then goes back to the deployment before.
    pub rollback: bool,
}

/// What a head, a shard or a unit gets.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Class {
    /// Name of its image.
    pub image: String,
    #[serde(rename = "cluster_kind")]
    _cluster_kind: String,
    #[serde(rename = "desired")]
    _desired: u32,
    /// Seconds from SIGTERM to SIGKILL.
    pub stop_timeout_seconds: u32,
    /// Health check of the container, if it has a server.
    pub health_check: Option<HealthCheck>,
    /// Port of its server.
    pub port: Option<u16>,
    /// Name of its Cloud Map service, without the namespace.
    pub registry: Option<String>,
    /// Where it may run.
    pub providers: Vec<Provider>,
    /// Whether it may run on Spot.
    pub spot: bool,
    #[serde(rename = "arch")]
    _arch: Vec<Arch>,
    /// Its size, if the class fixes it.
    pub size: Option<FixedSize>,
    /// Paths that the process writes to.
    pub writable: Vec<String>,
    /// Variables with the same value for all.
    pub environment: BTreeMap<String, String>,
    /// Variables whose values `fleet` knows.
    pub environment_of_service: Vec<String>,
    #[serde(rename = "why")]
    _why: String,
}

/// Health check of a container.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthCheck {
    /// `CMD` and the command.
    pub command: Vec<String>,
    /// Seconds between two checks.
    pub interval_seconds: u32,
    /// Seconds that a check may take.
    pub timeout_seconds: u32,
    /// Seconds after the start in which a failure does not count.
    pub start_period_seconds: u32,
    /// Failures that make the container unhealthy.
    pub retries: u32,
}

/// A size that a class fixes.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FixedSize {
    /// vCPUs.
    pub cpu: f64,
    /// GiB.
    pub memory_gb: f64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sizing {
    fargate_vcpu_max: f64,
    fargate_memory_gb_max: f64,
    gpu_provider: Provider,
    large_provider: Provider,
    large_memory_provider: Provider,
    large_memory_gb_per_vcpu_min: f64,
    large_memory_arch: Arch,
    fargate: Vec<FargateSizes>,
    #[serde(rename = "why")]
    _why: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FargateSizes {
    cpu: f64,
    memory_gb: Vec<f64>,
}

/// Architecture of a processor, as ECS names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Arch {
    /// Intel and AMD.
    #[default]
    #[serde(rename = "X86_64")]
    X86,
    /// Graviton.
    #[serde(rename = "ARM64")]
    Arm,
}

impl Arch {
    /// As ECS names it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::X86 => "X86_64",
            Self::Arm => "ARM64",
        }
    }
}

/// Where a task runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Provider {
    /// Fargate on demand.
    #[serde(rename = "FARGATE")]
    Fargate,
    /// Fargate Spot: AWS may stop the task at any time, with two minutes' notice.
    #[serde(rename = "FARGATE_SPOT")]
    FargateSpot,
    /// Managed instances for large tasks.
    #[serde(rename = "general")]
    General,
    /// Managed Graviton instances with much memory.
    #[serde(rename = "memory")]
    Memory,
    /// Managed instances with GPUs.
    #[serde(rename = "gpu")]
    Gpu,
}

impl Provider {
    /// As `classes.json` and `grid.json` name it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Fargate => "FARGATE",
            Self::FargateSpot => "FARGATE_SPOT",
            Self::General => "general",
            Self::Memory => "memory",
            Self::Gpu => "gpu",
        }
    }

    /// Whether each cluster has its own.
    #[must_use]
    pub fn is_managed(self) -> bool {
        matches!(self, Self::General | Self::Memory | Self::Gpu)
    }

    /// The capacity provider's name in the cluster of a flower.
    #[must_use]
    pub fn in_cluster(self, flower: &str) -> String {
        if self.is_managed() { format!("{flower}-{}", self.word()) } else { self.word().to_owned() }
    }
}

/// What a strategy or an operator asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Need {
    /// vCPUs, above 0.
    pub cpu: f64,
    /// Bytes, above 0.
    pub memory: u64,
    /// GPUs.
    pub gpu: u32,
    /// Architecture of its processor.
    pub arch: Arch,
    /// Whether it may run on Spot.
    pub spot: bool,
}

/// The size of a task, in ECS's units, and where it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Size {
    /// In 1/1024 of a vCPU.
    pub cpu: u32,
    /// MiB.
    pub memory: u32,
    /// GPUs.
    pub gpu: u32,
    /// Architecture of its processor.
    pub arch: Arch,
    /// Where it runs.
    pub provider: Provider,
}

/// The classes.
///
/// # Panics
/// Never: a test reads the file that is compiled in.
#[must_use]
pub fn classes() -> &'static Classes {
    static CLASSES: OnceLock<Classes> = OnceLock::new();
    CLASSES.get_or_init(|| {
        serde_json::from_str(include_str!("../../../aws/classes.json")).expect("a test reads classes.json")
    })
}

impl Classes {
    /// The class `head`, `shard` or `unit`.
    ///
    /// # Panics
    /// For another name.
    #[must_use]
    pub fn class(&self, name: &str) -> &Class {
        &self.classes[name]
    }
}

/// The smallest size that holds what is needed.
///
/// # Errors
/// What no provider has.
pub fn size(need: &Need) -> Result<Size, String> {
    let sizing = &classes().sizing;
    let Need { cpu, gpu, arch, spot, .. } = *need;
    let gib = need.memory as f64 / GIB;
    if cpu > MANAGED_VCPU_MAX || gib > MANAGED_GIB_MAX {
        return Err(format!("no instance has {cpu} vCPUs and {gib} GiB"));
    }
    let managed = |provider| Size {
        cpu: (cpu * CPU_UNITS).ceil() as u32,
        memory: (gib * 1024.0).ceil() as u32,
        gpu,
        arch,
        provider,
    };
    if gpu > 0 {
        return Ok(managed(sizing.gpu_provider));
    }
    if cpu > sizing.fargate_vcpu_max || gib > sizing.fargate_memory_gb_max {
        let much = gib / cpu >= sizing.large_memory_gb_per_vcpu_min && arch == sizing.large_memory_arch;
        return Ok(managed(if much { sizing.large_memory_provider } else { sizing.large_provider }));
    }
    let provider = if spot { Provider::FargateSpot } else { Provider::Fargate };
    let rows = sizing.fargate.iter().filter(|row| row.cpu >= cpu);
    let fits =
        rows.flat_map(|row| row.memory_gb.iter().map(|gb| (row.cpu, *gb))).filter(|(_, gb)| *gb >= gib);
    let least = fits.min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
    match least {
        Some((cpu, gb)) => {
            Ok(Size { cpu: (cpu * CPU_UNITS) as u32, memory: (gb * 1024.0) as u32, gpu, arch, provider })
        }
        None => Err(format!("no size of Fargate holds {cpu} vCPUs and {gib} GiB")),
    }
}

/// vCPUs of managed instances that a task takes: of its processors and its memory what takes more of an instance, in whole vCPUs. ECS
/// chooses the instances, so it is an estimate. 0 for Fargate.
#[must_use]
pub fn instance_vcpus(size: &Size) -> u32 {
    let memory = match size.provider {
        Provider::Fargate | Provider::FargateSpot => return 0,
        Provider::General | Provider::Gpu => size.memory.div_ceil(GENERAL_MIB_PER_VCPU),
        Provider::Memory => size.memory.div_ceil(MEMORY_MIB_PER_VCPU),
    };
    size.cpu.div_ceil(1024).max(memory).max(size.gpu * VCPUS_PER_GPU)
}

#[cfg(test)]
mod tests;
