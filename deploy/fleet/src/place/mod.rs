//! Placement: the account and the cluster of each service. Pure.
//!
//! 1. A service that the ledger knows stays where it is, unless that place is drained or gone, or its new size does not fit there.
//! 2. Every other one, in order of names: heads and shards go to the account of the network, where the namespaces are; units to
//!    the accounts of units, whose order for this unit is weighted rendezvous hashing. So a new account takes its share of new units and
//!    moves none.
//! 3. The first account that has room for the task in every quota gets it, in its first cluster with room; if no cluster has room, the
//!    next flower is opened there.
//! 4. Shards of the same series are never in the same zone of the same cluster.
//!
//! Each step looks at one service, the accounts, and the clusters of one account. None looks at the other services.

use std::collections::{BTreeMap, BTreeSet, HashMap};

pub mod flowers;
#[cfg(test)]
mod properties;
mod quota;
mod rank;
#[cfg(test)]
mod tests;
mod types;

pub use self::{
    quota::{FULL_PERCENT, INSTANCES_PER_NAME, Load, OF_ACCOUNT, Quota, filled},
    rank::ranked,
    types::{Ask, Item, Opening, Placed, Refusal, Seat},
};
use crate::{
    class::Provider,
    desired::{Account, Grid, Kind},
    ledger::{Entry, Ledger},
    model::Role,
};

/// A cluster while services are placed.
struct Cluster {
    flower: String,
    account: usize,
    providers: BTreeSet<Provider>,
    drain: bool,
    services: u64,
    registered: BTreeMap<Role, u64>,
}

/// An account while services are placed.
struct Site<'g> {
    account: &'g Account,
    used: Load,
    limit: Load,
    /// What was refused and would be here.
    wanted: Load,
    /// Its clusters that may have room, in the order in which they are filled.
    open: Vec<usize>,
}

struct State<'g> {
    grid: &'g Grid,
    sites: Vec<Site<'g>>,
    clusters: Vec<Cluster>,
    by_flower: HashMap<String, usize>,
    taken: BTreeSet<String>,
    address_units: u64,
    address_units_wanted: u64,
    /// Cluster and zone of the services that hold the same series.
    apart: HashMap<String, Vec<(usize, String)>>,
    placed: Placed,
}

/// Finds a place for every item.
#[must_use]
pub fn place(grid: &Grid, items: &[Item], ledger: &Ledger) -> Placed {
    let mut state = State::new(grid, ledger);
    let mut grown = Vec::new();
    let mut new = Vec::new();
    for item in items {
        let Some(entry) = ledger.get(&item.service) else {
            new.push(item);
            continue;
        };
        match state.cannot_stay(item, entry) {
            Some(why) => {
                state.placed.moved.insert(item.service.clone(), why);
                new.push(item);
            }
            None if entry.size == item.size => state.stay(item, entry),
            None => grown.push((item, entry)),
        }
    }
    for (item, entry) in grown {
        let cluster = state.by_flower[&entry.cluster];
        let load = Load::of(&item.size);
        let site = &state.sites[state.clusters[cluster].account];
        match site.used.over(&load, &site.limit).next() {
            None => state.stay(item, entry),
            Some(quota) => {
                let why = format!("its new size does not fit: {} of {}", quota.title(), entry.place.account);
                state.placed.moved.insert(item.service.clone(), why);
                new.push(item);
            }
        }
    }
    new.sort_unstable_by(|a, b| a.service.cmp(&b.service));
    for item in new {
        state.settle(item);
    }
    state.finish()
}

impl<'g> State<'g> {
    fn new(grid: &'g Grid, ledger: &Ledger) -> Self {
        let site = |account| Site {
            account,
            used: Load::default(),
            limit: Load::limit(account),
            wanted: Load::default(),
            open: Vec::new(),
        };
        let mut state = Self {
            grid,
            sites: grid.accounts.iter().map(site).collect(),
            clusters: Vec::new(),
            by_flower: HashMap::new(),
            taken: grid.retired.clone(),
            address_units: 0,
            address_units_wanted: 0,
            apart: HashMap::new(),
            placed: Placed::default(),
        };
        for flower in &grid.flowers {
            let account = grid.accounts.iter().position(|account| account.place.account == flower.account);
            if let Some(account) = account {
                state.add_cluster(&flower.flower, account, flower.providers.clone(), flower.drain);
            }
        }
        // a cluster that the file has forgotten may still exist
        state.taken.extend(ledger.entries().map(|entry| entry.cluster.clone()));
        state
    }

    fn add_cluster(
        &mut self,
        flower: &str,
        account: usize,
        providers: BTreeSet<Provider>,
        drain: bool,
    ) -> usize {
        let cluster = self.clusters.len();
        self.by_flower.insert(flower.to_owned(), cluster);
        self.taken.insert(flower.to_owned());
        if !drain {
            self.sites[account].open.push(cluster);
        }
        let flower = flower.to_owned();
        self.clusters.push(Cluster {
            flower,
            account,
            providers,
            drain,
            services: 0,
            registered: BTreeMap::new(),
        });
        cluster
    }

    /// Why a service must leave the place that the ledger says.
    fn cannot_stay(&self, item: &Item, entry: &Entry) -> Option<String> {
        let Some(&cluster) = self.by_flower.get(&entry.cluster) else {
            return Some(format!("{} is no longer in grid.json", entry.cluster));
        };
        let cluster = &self.clusters[cluster];
        let account = self.sites[cluster.account].account;
        if account.place != entry.place {
            Some(format!("{} is in {} now", entry.cluster, account.place.account))
        } else if cluster.drain || account.drain {
            Some(format!("{} is drained", if account.drain { &entry.place.account } else { &entry.cluster }))
        } else if account.kind != Kind::of(item.role) {
            Some(format!("{} does not run a {}", entry.place.account, item.role.word()))
        } else if item.size.provider.is_managed() && !cluster.providers.contains(&item.size.provider) {
            Some(format!("{} has no provider {}", entry.cluster, item.size.provider.word()))
        } else if let Some(apart) = &item.apart {
            let seat = entry.zone.as_ref().map(|zone| (self.by_flower[&entry.cluster], zone.clone()));
            let both = self.apart.get(apart).zip(seat.as_ref()).is_some_and(|(all, seat)| all.contains(seat));
            match seat {
                Some((_, zone)) if both || !account.subnets.contains_key(&zone) => Some(format!(
                    "another shard of the same series is in {zone} of {}, or the zone is gone",
                    entry.cluster
                )),
                Some(_) => None,
                None => {
                    Some("it must be in one zone now, apart from the shards of the same series".to_owned())
                }
            }
        } else {
            None
        }
    }

    fn stay(&mut self, item: &Item, entry: &Entry) {
        let cluster = self.by_flower[&entry.cluster];
        let zone = entry.zone.clone().filter(|_| item.apart.is_some());
        self.take(item, cluster, zone);
    }

    fn take(&mut self, item: &Item, cluster: usize, zone: Option<String>) {
        let Cluster { flower, account, services, registered, .. } = &mut self.clusters[cluster];
        let site = &mut self.sites[*account];
        site.used.add(&Load::of(&item.size));
        self.address_units += 1;
        *services += 1;
        if Kind::of(item.role) == Kind::Core {
            *registered.entry(item.role).or_default() += 1;
        }
        if let (Some(apart), Some(zone)) = (&item.apart, &zone) {
            self.apart.entry(apart.clone()).or_default().push((cluster, zone.clone()));
        }
        let account = site.account.place.account.clone();
        self.placed.seats.insert(item.service.clone(), Seat { account, flower: flower.clone(), zone });
    }

    /// Finds a place for a service that has none.
    fn settle(&mut self, item: &Item) {
        let ranked = ranked(self.grid, item.role, &item.service);
        let load = Load::of(&item.size);
        let room = self.address_units < filled(self.grid.address_units);
        for &site in ranked.iter().filter(|_| room) {
            if self.sites[site].used.over(&load, &self.sites[site].limit).next().is_some() {
                continue;
            }
            if let Some((cluster, zone)) = self.cluster_for(item, site).or_else(|| self.open(item, site)) {
                self.take(item, cluster, zone);
                return;
            }
        }
        self.refuse(item, &ranked, &load);
    }

    /// The first cluster of an account that has room, and the zone if the service needs one.
    fn cluster_for(&mut self, item: &Item, site: usize) -> Option<(usize, Option<String>)> {
        let full = filled(self.sites[site].account.quotas.services_per_cluster);
        let mut open = std::mem::take(&mut self.sites[site].open);
        // a full cluster is not looked at again
        open.retain(|&cluster| self.clusters[cluster].services < full);
        self.sites[site].open = open;
        self.sites[site].open.iter().find_map(|&cluster| {
            if !self.has_room(item, cluster) {
                return None;
            }
            match &item.apart {
                None => Some((cluster, None)),
                Some(apart) => self.free_zone(apart, cluster).map(|zone| (cluster, Some(zone))),
            }
        })
    }

    fn has_room(&self, item: &Item, cluster: usize) -> bool {
        let cluster = &self.clusters[cluster];
        let quotas = &self.sites[cluster.account].account.quotas;
        let offers = !item.size.provider.is_managed() || cluster.providers.contains(&item.size.provider);
        let of_name = cluster.registered.get(&item.role).copied().unwrap_or(0);
        let of_namespace = cluster.registered.values().sum::<u64>();
        let names = Kind::of(item.role) == Kind::Unit
            || of_name < filled(INSTANCES_PER_NAME) && of_namespace < filled(quotas.instances_per_namespace);
        offers && names && cluster.services < filled(quotas.services_per_cluster)
    }

    /// The zone of a cluster that has none of these services, and of those the one that has fewest of them in other clusters.
    fn free_zone(&self, apart: &str, cluster: usize) -> Option<String> {
        let none = Vec::new();
        let seats = self.apart.get(apart).unwrap_or(&none);
        let zones = self.sites[self.clusters[cluster].account].account.subnets.iter();
        let free = zones.filter(|(zone, subnets)| {
            !subnets.is_empty() && !seats.iter().any(|(other, used)| *other == cluster && used == *zone)
        });
        let zone =
            free.min_by_key(|(zone, _)| (seats.iter().filter(|(_, used)| used == *zone).count(), *zone));
        zone.map(|(zone, _)| zone.clone())
    }

    /// The next flower, in an account that has no cluster with room.
    fn open(&mut self, item: &Item, site: usize) -> Option<(usize, Option<String>)> {
        if !self.offers(site, item.size.provider) {
            return None;
        }
        let theirs = self.clusters.iter().filter(|cluster| cluster.account == site);
        let providers: BTreeSet<_> = theirs.flat_map(|cluster| cluster.providers.iter().copied()).collect();
        let flower = flowers::next(&self.taken)?;
        let account = self.sites[site].account;
        let cluster = self.add_cluster(&flower, site, providers.clone(), false);
        let (account, kind) = (account.place.account.clone(), account.kind);
        self.placed.openings.push(Opening { flower, account, kind, providers });
        let zone = item.apart.as_ref().map(|apart| self.free_zone(apart, cluster));
        match zone {
            None => Some((cluster, None)),
            Some(zone) => Some((cluster, Some(zone?))),
        }
    }

    /// Says what binds in the account that the service would be in: the first one with such a provider.
    fn refuse(&mut self, item: &Item, ranked: &[usize], load: &Load) {
        let why = match ranked.iter().copied().find(|&site| self.offers(site, item.size.provider)) {
            None if ranked.is_empty() => {
                format!("no account that is not drained runs a {}", item.role.word())
            }
            None => format!(
                "no cluster of an account that runs a {} has the provider {}; create it and name it in flowers[].providers",
                item.role.word(),
                item.size.provider.word()
            ),
            Some(site) => {
                let account = &self.sites[site].account.place.account;
                let binding = self.sites[site].used.over(load, &self.sites[site].limit).next();
                let quota = match binding {
                    Some(quota) => quota,
                    None if self.address_units >= filled(self.grid.address_units) => Quota::AddressUnits,
                    None => Quota::Flowers,
                };
                let (title, field) = (quota.title(), quota.field());
                let why = format!("{title} of {account} is used to {FULL_PERCENT} percent ({field})");
                self.sites[site].wanted.add(load);
                self.address_units_wanted += 1;
                why
            }
        };
        self.placed.refused.push(Refusal { service: item.service.clone(), why });
    }

    /// Whether a cluster of the account has such a provider.
    fn offers(&self, site: usize, provider: Provider) -> bool {
        let theirs = || self.clusters.iter().filter(|cluster| cluster.account == site);
        !provider.is_managed() || theirs().any(|cluster| cluster.providers.contains(&provider))
    }

    fn finish(mut self) -> Placed {
        for site in &self.sites {
            let Site { account, used, limit, wanted, .. } = site;
            let q = &account.quotas;
            let have = [q.fargate_vcpu, q.fargate_spot_vcpu, q.ec2_vcpu, q.ec2_gpu_vcpu, q.interfaces];
            for (slot, quota) in OF_ACCOUNT.into_iter().enumerate() {
                let all = used.0[slot] + wanted.0[slot];
                if wanted.0[slot] > 0 && all > limit.0[slot] {
                    let account = account.place.account.clone();
                    self.placed.asks.push(Ask { quota, account, have: have[slot], ask: quota.ask(all) });
                }
            }
        }
        let units = self.address_units + self.address_units_wanted;
        if self.address_units_wanted > 0 && units > filled(self.grid.address_units) {
            let owner = self.grid.accounts.iter().find(|account| account.kind == Kind::Core);
            let account = owner.map(|owner| owner.place.account.clone()).unwrap_or_default();
            let (quota, have) = (Quota::AddressUnits, self.grid.address_units);
            self.placed.asks.push(Ask { quota, account, have, ask: quota.ask(units) });
        }
        self.placed
    }
}
