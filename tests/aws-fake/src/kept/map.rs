//! The namespaces of Cloud Map, their services and instances.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::fail::Fail;
use crate::settings::Quotas;
use crate::time::{Ctx, Due, mix};

/// The namespaces and services of an account in a Region.
#[derive(Debug, Default)]
pub(crate) struct CloudMap {
    pub(crate) region: usize,
    pub(crate) namespaces: BTreeMap<Arc<str>, Namespace>,
    pub(crate) services: BTreeMap<Arc<str>, Registry>,
    /// `(namespace id, name)` to the service's id.
    pub(crate) by_name: BTreeMap<(Arc<str>, String), Arc<str>>,
    /// Operations always succeed: what they were, and their targets.
    pub(crate) operations: BTreeMap<String, (&'static str, Duration, Value)>,
}

#[derive(Debug)]
pub(crate) struct Namespace {
    pub(crate) id: Arc<str>,
    pub(crate) name: String,
    pub(crate) kind: &'static str,
    pub(crate) created: Duration,
    pub(crate) instances: usize,
    pub(crate) services: usize,
    /// Accounts that it is shared with.
    pub(crate) shared: BTreeSet<String>,
}

/// A service of Cloud Map.
#[derive(Debug)]
pub(crate) struct Registry {
    pub(crate) id: Arc<str>,
    pub(crate) name: String,
    pub(crate) namespace: Arc<str>,
    pub(crate) created: Duration,
    pub(crate) dns: Value,
    pub(crate) custom_health: bool,
    pub(crate) creator: Option<String>,
    pub(crate) instances: BTreeMap<Arc<str>, Instance>,
    /// Times at which the revision grows.
    pub(crate) changes: BTreeSet<(Duration, u64)>,
    pub(crate) revision: u64,
}

#[derive(Debug, Clone)]
pub(crate) struct Instance {
    pub(crate) attributes: BTreeMap<String, String>,
    /// Answers have it from here on.
    pub(crate) visible: Duration,
    /// And no longer from here on.
    pub(crate) gone: Option<Duration>,
    /// Its health before a time, and from it on.
    pub(crate) health: (bool, Duration, bool),
}

impl Instance {
    pub(crate) fn shown(&self, now: Duration) -> bool {
        self.visible <= now && self.gone.is_none_or(|gone| now < gone)
    }

    pub(crate) fn healthy(&self, now: Duration) -> bool {
        if now < self.health.1 { self.health.0 } else { self.health.2 }
    }
}

impl Registry {
    /// What answers show changes at `at`.
    pub(crate) fn change(&mut self, at: Duration, serial: u64) {
        self.changes.insert((at, serial));
    }

    pub(crate) fn revision(&mut self, now: Duration) -> u64 {
        while self.changes.first().is_some_and(|(at, _)| *at <= now) {
            self.changes.pop_first();
            self.revision += 1;
        }
        self.revision
    }
}

impl CloudMap {
    pub(crate) fn new(region: usize) -> Self {
        Self { region, ..Self::default() }
    }

    /// A namespace for DNS in a VPC. Returns its id.
    pub(crate) fn make_namespace(&mut self, ctx: &mut Ctx, name: &str, kind: &'static str) -> Arc<str> {
        let id: Arc<str> = format!("ns-{:016x}", mix(ctx.serial())).into();
        let namespace = Namespace {
            id: id.clone(),
            name: name.into(),
            kind,
            created: ctx.now,
            instances: 0,
            services: 0,
            shared: BTreeSet::new(),
        };
        self.namespaces.insert(id.clone(), namespace);
        id
    }

    /// A service of a namespace. Returns its id; none if there is no such namespace.
    pub(crate) fn make_service(
        &mut self,
        ctx: &mut Ctx,
        namespace: &str,
        name: &str,
        dns: Value,
        custom_health: bool,
        creator: Option<String>,
    ) -> Option<Arc<str>> {
        let home = self.namespaces.get_mut(namespace)?;
        home.services += 1;
        let id: Arc<str> = format!("srv-{:016x}", mix(ctx.serial())).into();
        let service = Registry {
            id: id.clone(),
            name: name.into(),
            namespace: home.id.clone(),
            created: ctx.now,
            dns,
            custom_health,
            creator,
            instances: BTreeMap::new(),
            changes: BTreeSet::new(),
            revision: 1,
        };
        self.by_name.insert((home.id.clone(), name.into()), id.clone());
        self.services.insert(id.clone(), service);
        Some(id)
    }

    pub(crate) fn share(&mut self, namespace: &str, account: &str) {
        if let Some(namespace) = self.namespaces.get_mut(namespace) {
            namespace.shared.insert(account.into());
        }
    }

    /// Whether there is a namespace of this name, id or ARN.
    pub(crate) fn has_namespace(&self, name: &str) -> bool {
        self.namespace(name).is_some()
    }

    pub(crate) fn namespace(&self, name: &str) -> Option<&Namespace> {
        let short = name.rsplit('/').next().unwrap_or(name);
        self.namespaces.get(short).or_else(|| self.namespaces.values().find(|each| each.name == short))
    }

    pub(crate) fn id_of(arn: &str) -> &str {
        arn.rsplit('/').next().unwrap_or(arn)
    }

    /// Registers an instance, or writes over it. Answers show it after a while; its health, too.
    pub(crate) fn register(
        &mut self,
        ctx: &mut Ctx,
        quotas: &Quotas,
        service: &str,
        id: &str,
        attributes: BTreeMap<String, String>,
        healthy: bool,
    ) -> Result<(), Fail> {
        let unknown = || Fail::new("ServiceNotFound", 404, "No service with that ID.");
        let service = self.services.get_mut(Self::id_of(service)).ok_or_else(unknown)?;
        let namespace = self.namespaces.get_mut(&service.namespace).ok_or_else(unknown)?;
        let old = service.instances.get(id).filter(|old| old.gone.is_none());
        if old.is_none() {
            let full = |what: &str, most| {
                Fail::new(
                    "ResourceLimitExceeded",
                    400,
                    format!("The {what} has its limit of {most} instances."),
                )
            };
            if namespace.instances >= quotas.namespace_instances {
                return Err(full("namespace", quotas.namespace_instances));
            }
            let count = service.instances.values().filter(|each| each.gone.is_none()).count();
            if count >= quotas.service_instances {
                return Err(full("service", quotas.service_instances));
            }
            namespace.instances += 1;
        }
        let serial = ctx.serial();
        let visible = ctx.now + ctx.draw_time(&ctx.set.times.discovery, "visible", serial);
        let visible = old.map_or(visible, |old| old.visible);
        service.change(visible, serial);
        let instance = Instance { attributes, visible, gone: None, health: (healthy, ctx.now, healthy) };
        service.instances.insert(id.into(), instance);
        Ok(())
    }

    /// Takes an instance out. False if it is not there.
    pub(crate) fn deregister(&mut self, ctx: &mut Ctx, service: &str, id: &str) -> bool {
        let Some(service) = self.services.get_mut(Self::id_of(service)) else { return false };
        let serial = ctx.serial();
        let gone = ctx.now + ctx.draw_time(&ctx.set.times.discovery, "gone", serial);
        let Some(instance) = service.instances.get_mut(id).filter(|each| each.gone.is_none()) else {
            return false;
        };
        instance.gone = Some(gone);
        service.change(gone, serial);
        if let Some(namespace) = self.namespaces.get_mut(&service.namespace) {
            namespace.instances -= 1;
        }
        let due =
            Due::ForgetInstance { region: self.region, service: service.id.clone(), instance: id.into() };
        ctx.at(gone, due);
        true
    }

    /// Health as ECS or UpdateInstanceCustomHealthStatus reports it. False if there is no such instance.
    pub(crate) fn set_health(&mut self, ctx: &mut Ctx, service: &str, id: &str, healthy: bool) -> bool {
        let Some(service) = self.services.get_mut(Self::id_of(service)) else { return false };
        let serial = ctx.serial();
        let from = ctx.now + ctx.draw_time(&ctx.set.times.discovery, "health", serial);
        let now = ctx.now;
        let Some(instance) = service.instances.get_mut(id).filter(|each| each.gone.is_none()) else {
            return false;
        };
        instance.health = (instance.healthy(now), from, healthy);
        service.change(from, serial);
        true
    }

    /// Nothing shows the instance any more.
    pub(crate) fn forget(&mut self, now: Duration, service: &str, id: &str) {
        if let Some(service) = self.services.get_mut(service)
            && service.instances.get(id).is_some_and(|each| each.gone.is_some_and(|gone| gone <= now))
        {
            service.instances.remove(id);
        }
    }
}
