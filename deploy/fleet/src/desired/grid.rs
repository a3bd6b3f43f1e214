//! `grid.json`: the accounts, the clusters, the images.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::names::{is_account, is_domain, is_flower, is_grid, is_http, is_id, is_image, is_label, is_s3};
use super::read::{Fields, Sheet, bytes, flag, list, object, one_of, positive, such, table, text, whole};
use crate::{
    class::{Arch, Need, Provider},
    model::{Place, Role},
};

/// Longest text of a tag of AWS.
const TAG_VALUE_MAX: usize = 256;
/// Tags of an ECS service: 50, of which ours are at most 10.
const TAGS_MAX: usize = 40;
/// Largest quota that a file may name: more is a slip of the keyboard.
const QUOTA_MAX: u64 = 10_000_000;
/// Least of what a cluster can hold: with less, 80 percent of it would be nothing, and every service would open a new cluster.
const PER_CLUSTER_MIN: u64 = 10;
/// Largest weight of an account.
const WEIGHT_MAX: u64 = 1_000;

/// What the grid stands on.
#[derive(Clone, Debug, PartialEq)]
pub struct Grid {
    /// Its name, with which all names begin: the parameter `Grid` of the templates.
    pub grid: String,
    /// What `trellis deploy --env` names: `prod`.
    pub environment: String,
    /// The private domain. A flower's names are in `FLOWER.DOMAIN`.
    pub domain: String,
    /// The Region. A second Region is a second folder.
    pub region: String,
    /// The tables: `s3://BUCKET/tables`.
    pub lake: String,
    /// The bundles: `s3://BUCKET/bundles`.
    pub bundles: String,
    /// Where everything pushes OTLP.
    pub telemetry: String,
    /// Quota of network address units of the VPC. Each task takes one.
    pub address_units: u64,
    /// By name (`head-node`, `shard`, `qcu`): the image by digest.
    pub images: BTreeMap<String, String>,
    /// Sizes by name, for units that name one.
    pub classes: BTreeMap<String, Need>,
    /// The accounts.
    pub accounts: Vec<Account>,
    /// The clusters that exist.
    pub flowers: Vec<Flower>,
    /// Names of clusters that were deleted. They are not used again.
    pub retired: BTreeSet<String>,
    /// Tags of every service, for the reader's own accounting.
    pub tags: BTreeMap<String, String>,
}

/// An account.
#[derive(Clone, Debug, PartialEq)]
pub struct Account {
    /// Its number, and the Region.
    pub place: Place,
    /// What it may run.
    pub kind: Kind,
    /// Its share of new units beside the other accounts.
    pub weight: u64,
    /// Its quotas.
    pub quotas: Quotas,
    /// Subnets by zone.
    pub subnets: BTreeMap<String, Vec<String>>,
    /// Security groups by role.
    pub security_groups: BTreeMap<Role, Vec<String>>,
    /// Whether everything in it moves elsewhere.
    pub drain: bool,
}

/// What an account or a cluster runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Heads and shards: the account has the network and the namespaces.
    Core,
    /// Units.
    Unit,
}

impl Kind {
    /// Where a role runs.
    #[must_use]
    pub fn of(role: Role) -> Self {
        match role {
            Role::Head | Role::Shard | Role::Collector => Self::Core,
            Role::Unit => Self::Unit,
        }
    }
}

/// What AWS allows in an account. `fleet` fills each to 80 percent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quotas {
    /// vCPUs of Fargate on demand.
    pub fargate_vcpu: u64,
    /// vCPUs of Fargate Spot.
    pub fargate_spot_vcpu: u64,
    /// vCPUs of EC2's standard instances: managed instances.
    pub ec2_vcpu: u64,
    /// vCPUs of EC2's G and VT instances: managed instances with GPUs.
    pub ec2_gpu_vcpu: u64,
    /// Network interfaces. Each task has one.
    pub interfaces: u64,
    /// Services of a cluster.
    pub services_per_cluster: u64,
    /// Instances of a Cloud Map namespace.
    pub instances_per_namespace: u64,
}

/// A cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flower {
    /// Its name.
    pub flower: String,
    /// Its account.
    pub account: String,
    /// Its managed instances.
    pub providers: BTreeSet<Provider>,
    /// Whether everything in it moves elsewhere.
    pub drain: bool,
}

impl Grid {
    /// The account of a number.
    #[must_use]
    pub fn account(&self, account: &str) -> Option<&Account> {
        self.accounts.iter().find(|each| each.place.account == account)
    }
}

pub(super) fn read(sheet: &Sheet, json: &str) -> Option<Grid> {
    let mut f = sheet.object(json)?;
    let grid = f.need("grid", |s, p, v| such(s, p, v, "a grid's name, [a-z][a-z0-9]{1,11}", is_grid));
    let environment =
        f.need("environment", |s, p, v| such(s, p, v, "a name of small letters and digits", is_label));
    let domain = f.need("domain", |s, p, v| such(s, p, v, "a domain such as trellis.internal", is_domain));
    let region = f.need("region", |s, p, v| such(s, p, v, "a Region such as eu-central-1", is_label));
    let bucket = "s3://BUCKET/PREFIX without a slash at the end";
    let lake = f.need("lake", |s, p, v| such(s, p, v, bucket, is_s3));
    let bundles = f.need("bundles", |s, p, v| such(s, p, v, bucket, is_s3));
    let telemetry = f.need("telemetry", |s, p, v| such(s, p, v, "http:// or https://", is_http));
    let address_units = f.need("address_units", |s, p, v| whole(s, p, v, 1, QUOTA_MAX));
    let images = f.need("images", read_images);
    let classes = f.may("classes", |s, p, v| {
        table(s, p, v, |s, path, _, v| {
            let mut f = object(s, path, v)?;
            let need = read_need(&mut f);
            f.end();
            need
        })
    });
    let accounts = f.need("accounts", |s, p, v| {
        list(s, p, v, |s, p, v| read_account(s, p, v, region.as_deref().unwrap_or_default()))
    });
    let flowers = f.need("flowers", |s, p, v| list(s, p, v, read_flower));
    let retired = f.may("retired", |s, p, v| {
        list(s, p, v, |s, p, v| such(s, p, v, "a flower, [a-z]{3,14}(-[2-9])?", is_flower))
    });
    let tags = f.may("tags", read_tags);
    f.end();
    let grid = Grid {
        grid: grid?,
        environment: environment?,
        domain: domain?,
        region: region?,
        lake: lake?,
        bundles: bundles?,
        telemetry: telemetry?,
        address_units: address_units?,
        images: images?,
        classes: classes.unwrap_or_default(),
        accounts: accounts?,
        flowers: flowers?,
        retired: retired.unwrap_or_default().into_iter().collect(),
        tags: tags.unwrap_or_default(),
    };
    check(sheet, &grid);
    Some(grid)
}

/// What one field alone does not show.
fn check(sheet: &Sheet, grid: &Grid) {
    let mut accounts = BTreeSet::new();
    for (i, account) in grid.accounts.iter().enumerate() {
        if !accounts.insert(&account.place.account) {
            sheet.wrong::<()>(&format!("accounts[{i}].account"), "is there twice");
        }
    }
    if grid.accounts.iter().filter(|account| account.kind == Kind::Core).count() != 1 {
        sheet.wrong::<()>("accounts", "exactly one account has the role owner: the one of the network");
    }
    let mut flowers = BTreeSet::new();
    for (i, flower) in grid.flowers.iter().enumerate() {
        let path = |field: &str| format!("flowers[{i}].{field}");
        if !flowers.insert(&flower.flower) {
            sheet.wrong::<()>(&path("flower"), "is there twice");
        }
        if grid.retired.contains(&flower.flower) {
            sheet.wrong::<()>(
                &path("flower"),
                "is retired: its metrics and log groups would be mixed with the old ones",
            );
        }
        if grid.account(&flower.account).is_none() {
            sheet.wrong::<()>(&path("account"), format!("{} is none of the accounts", flower.account));
        }
    }
}

fn read_images(sheet: &Sheet, path: &str, value: serde_json::Value) -> Option<BTreeMap<String, String>> {
    let images = table(sheet, path, value, |s, p, _, v| {
        such(s, p, v, "an image by digest, REGISTRY/NAME@sha256:..., because a tag can move", is_image)
    })?;
    let wanted = ["head-node", "shard", "qcu"];
    for name in wanted.iter().filter(|name| !images.contains_key(**name)) {
        sheet.wrong::<()>(&format!("{path}.{name}"), "is missing");
    }
    for name in images.keys().filter(|name| !wanted.contains(&name.as_str())) {
        sheet.wrong::<()>(
            &format!("{path}.{name}"),
            format!("is unknown; the images are {}", wanted.join(", ")),
        );
    }
    Some(images)
}

/// The fields `cpu`, `memory`, `gpu`, `arch`, `spot`.
pub(super) fn read_need(f: &mut Fields<'_>) -> Option<Need> {
    let cpu = f.need("cpu", positive);
    let memory = f.need("memory", bytes);
    let gpu = f.may("gpu", |s, p, v| whole(s, p, v, 0, 16));
    let arch = f.may("arch", read_arch);
    let spot = f.may("spot", flag);
    Some(Need {
        cpu: cpu?,
        memory: memory?,
        gpu: gpu.unwrap_or(0) as u32,
        arch: arch.unwrap_or_default(),
        spot: spot.unwrap_or(false),
    })
}

pub(super) fn read_arch(sheet: &Sheet, path: &str, value: serde_json::Value) -> Option<Arch> {
    one_of(sheet, path, value, &[(Arch::X86.name(), Arch::X86), (Arch::Arm.name(), Arch::Arm)])
}

fn read_account(sheet: &Sheet, path: &str, value: serde_json::Value, region: &str) -> Option<Account> {
    let mut f = object(sheet, path, value)?;
    let account =
        f.need("account", |s, p, v| such(s, p, v, "an account's number of twelve digits", is_account));
    let kind = f.need("role", |s, p, v| one_of(s, p, v, &[("owner", Kind::Core), ("units", Kind::Unit)]));
    let weight = f.may("weight", |s, p, v| whole(s, p, v, 1, WEIGHT_MAX));
    let quotas = f.need("quotas", read_quotas);
    let subnets = f.need("subnets", |s, p, v| {
        let subnets = table(s, p, v, |s, p, _, v| {
            list(s, p, v, |s, p, v| such(s, p, v, "a subnet, subnet-...", |id| is_id(id, "subnet-")))
        })?;
        if subnets.values().all(Vec::is_empty) {
            return s.wrong(p, "is empty: a task needs a subnet");
        }
        Some(subnets)
    });
    let security_groups = f.need("security_groups", |s, p, v| {
        let groups = table(s, p, v, |s, p, _, v| {
            list(s, p, v, |s, p, v| such(s, p, v, "a security group, sg-...", |id| is_id(id, "sg-")))
        })?;
        let mut by_role = BTreeMap::new();
        for (role, ids) in groups {
            match role.as_str() {
                "head" => by_role.insert(Role::Head, ids),
                "shard" => by_role.insert(Role::Shard, ids),
                "unit" => by_role.insert(Role::Unit, ids),
                _ => return s.wrong(&format!("{p}.{role}"), "is unknown; the roles are head, shard, unit"),
            };
        }
        Some(by_role)
    });
    let drain = f.may("drain", flag);
    if let (Some(kind), Some(groups)) = (kind, &security_groups) {
        for role in [Role::Head, Role::Shard, Role::Unit].into_iter().filter(|role| Kind::of(*role) == kind) {
            if groups.get(&role).is_none_or(Vec::is_empty) {
                f.wrong::<()>("security_groups", format!("has none for the role {}", role.word()));
            }
        }
    }
    f.end();
    Some(Account {
        place: Place { account: account?, region: region.to_owned() },
        kind: kind?,
        weight: weight.unwrap_or(1),
        quotas: quotas?,
        subnets: subnets?,
        security_groups: security_groups?,
        drain: drain.unwrap_or(false),
    })
}

fn read_quotas(sheet: &Sheet, path: &str, value: serde_json::Value) -> Option<Quotas> {
    let mut f = object(sheet, path, value)?;
    let mut quota = |name| f.need(name, |s, p, v| whole(s, p, v, 0, QUOTA_MAX));
    let quotas = [
        quota("fargate_vcpu"),
        quota("fargate_spot_vcpu"),
        quota("ec2_vcpu"),
        quota("ec2_gpu_vcpu"),
        quota("interfaces"),
        f.need("services_per_cluster", |s, p, v| whole(s, p, v, PER_CLUSTER_MIN, QUOTA_MAX)),
        f.need("instances_per_namespace", |s, p, v| whole(s, p, v, PER_CLUSTER_MIN, QUOTA_MAX)),
    ];
    f.end();
    let [fargate, spot, ec2, gpu, interfaces, services, instances] = quotas;
    Some(Quotas {
        fargate_vcpu: fargate?,
        fargate_spot_vcpu: spot?,
        ec2_vcpu: ec2?,
        ec2_gpu_vcpu: gpu?,
        interfaces: interfaces?,
        services_per_cluster: services?,
        instances_per_namespace: instances?,
    })
}

fn read_flower(sheet: &Sheet, path: &str, value: serde_json::Value) -> Option<Flower> {
    let mut f = object(sheet, path, value)?;
    let flower = f.need("flower", |s, p, v| such(s, p, v, "a flower, [a-z]{3,14}(-[2-9])?", is_flower));
    let account = f.need("account", text);
    let managed = [Provider::General, Provider::Memory, Provider::Gpu].map(|each| (each.word(), each));
    let providers = f.may("providers", |s, p, v| list(s, p, v, |s, p, v| one_of(s, p, v, &managed)));
    let drain = f.may("drain", flag);
    f.end();
    Some(Flower {
        flower: flower?,
        account: account?,
        providers: providers.unwrap_or_default().into_iter().collect(),
        drain: drain.unwrap_or(false),
    })
}

fn read_tags(sheet: &Sheet, path: &str, value: serde_json::Value) -> Option<BTreeMap<String, String>> {
    let tags = table(sheet, path, value, |s, p, key, v| {
        if key.starts_with("trellis:") || key.starts_with("aws:") || key.is_empty() || key.len() > 128 {
            return s.wrong(
                p,
                "is not a key of your own: it is empty, too long, or begins with trellis: or aws:",
            );
        }
        such(s, p, v, "a text of at most 256 characters", |text| text.len() <= TAG_VALUE_MAX)
    })?;
    if tags.len() > TAGS_MAX {
        return sheet.wrong(
            path,
            format!("are {}; ECS takes 50 for a service, {TAGS_MAX} of them yours", tags.len()),
        );
    }
    Some(tags)
}
