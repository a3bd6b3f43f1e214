//! What a reconciliation aims at.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde_json::Value;

use crate::{
    desired::Desired,
    model::{Place, Role, Service},
    plan::Plan,
};

/// What should run, and where it can.
#[derive(Clone, Debug, Default)]
pub struct Target {
    /// Name of the grid. All names begin with it.
    pub grid: String,
    /// The private domain: a cluster's namespace is `FLOWER.DOMAIN`.
    pub domain: String,
    /// Every cluster of the grid, with its place. Services of the grid in them that are not wanted are removed.
    pub clusters: Vec<(Place, String)>,
    /// What should run.
    pub services: Vec<Service>,
    /// The bodies of RegisterTaskDefinition, by family.
    pub definitions: BTreeMap<String, Arc<Value>>,
    /// By account: where tasks get addresses.
    pub networks: BTreeMap<String, Network>,
    /// Counts that change later: when (since the start of the engine), which service, and the count.
    pub schedule: Vec<(Duration, String, u32)>,
}

impl Target {
    /// The aim of a plan.
    #[must_use]
    pub fn new(desired: &Desired, plan: &Plan) -> Self {
        let grid = &desired.grid;
        let place = |account: &str| Place { account: account.to_owned(), region: grid.region.clone() };
        let networks = grid.accounts.iter().map(|account| {
            let (subnets, security_groups) = (account.subnets.clone(), account.security_groups.clone());
            (account.place.account.clone(), Network { subnets, security_groups })
        });
        let definitions = plan
            .definitions
            .values()
            .filter_map(|body| Some((body.get("family")?.as_str()?.to_owned(), Arc::new(body.clone()))));
        Self {
            grid: grid.grid.clone(),
            domain: grid.domain.clone(),
            clusters: grid.flowers.iter().map(|each| (place(&each.account), each.flower.clone())).collect(),
            services: plan.services.clone(),
            definitions: definitions.collect(),
            networks: networks.collect(),
            schedule: Vec::new(),
        }
    }
}

/// Where tasks of an account get addresses.
#[derive(Clone, Debug, Default)]
pub struct Network {
    /// Subnets by zone.
    pub subnets: BTreeMap<String, Vec<String>>,
    /// Security groups by role.
    pub security_groups: BTreeMap<Role, Vec<String>>,
}

impl Network {
    /// Subnets of a zone, or all.
    #[must_use]
    pub fn subnets(&self, zone: Option<&str>) -> Vec<String> {
        let chosen = self.subnets.iter().filter(|(each, _)| zone.is_none_or(|zone| zone == each.as_str()));
        chosen.flat_map(|(_, subnets)| subnets.iter().cloned()).collect()
    }
}

/// How to go about it.
#[derive(Clone, Debug)]
pub struct Mode {
    /// Whether anything may change. Otherwise it only looks.
    pub change: bool,
    /// Whether services that are not wanted may go.
    pub remove: bool,
    /// Whether it goes on for ever, and repairs what changes.
    pub keep: bool,
    /// Whether deployments that ECS broke off are tried again, once.
    pub again: bool,
    /// Whether failures stop nothing.
    pub ignore_failed: bool,
    /// Shards that may be away at the same time: their series cannot be read meanwhile.
    pub shards_at_once: usize,
    /// Services that start anew, unless their deployment began later than this (milliseconds since 1970).
    pub roll: Option<(Selection, i64)>,
}

impl Default for Mode {
    fn default() -> Self {
        let (change, remove, keep, again, ignore_failed) = (true, false, false, false, false);
        Self { change, remove, keep, again, ignore_failed, shards_at_once: 1, roll: None }
    }
}

/// Some of the services. What is none selects all.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Selection {
    /// By role.
    pub role: Option<Role>,
    /// By cluster.
    pub cluster: Option<String>,
    /// By account.
    pub account: Option<String>,
    /// By name of the service.
    pub name: Option<String>,
}

impl Selection {
    /// Whether it selects a service.
    #[must_use]
    pub fn has(&self, service: &Service) -> bool {
        self.role.is_none_or(|role| role == service.role)
            && self.cluster.as_ref().is_none_or(|cluster| *cluster == service.cluster)
            && self.account.as_ref().is_none_or(|account| *account == service.place.account)
            && self.name.as_ref().is_none_or(|name| *name == service.name)
    }
}
