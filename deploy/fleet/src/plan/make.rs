//! Makes a plan from the desired state and the ledger.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{
    price::{Prices, prices},
    types::{Calls, Change, ChangeKind, Plan, Price, RATE_PERCENT},
};
use crate::{
    class::{Size, classes},
    definition::{Target, own, render},
    desired::{Desired, Unit},
    ledger::{Entry, Ledger},
    model::{Place, Role, Service},
    place::{Item, Placed, Refusal, Seat, place},
    scheduled,
};

/// RegisterTaskDefinition, calls a second of an account (AWS, sustained).
const DEFINITIONS_S: f64 = 1.0;
/// CreateService, UpdateService and DeleteService together, calls a second of an account (AWS, sustained).
const SERVICES_S: f64 = 5.0;

const NS_A_MS: i64 = 1_000_000;

/// What a service is made of, before it has a place.
pub(super) struct Part<'d> {
    pub(super) item: Item,
    index: usize,
    unit: Option<&'d Unit>,
}

/// Plans with the price list that is compiled in.
#[must_use]
pub fn plan(desired: &Desired, ledger: &Ledger) -> Plan {
    plan_with(desired, ledger, prices())
}

/// Plans.
#[must_use]
pub fn plan_with(desired: &Desired, ledger: &Ledger, prices: &Prices) -> Plan {
    let parts = parts(desired);
    let items: Vec<Item> = parts.values().map(|part| part.item.clone()).collect();
    let placed = place(&desired.grid, &items, ledger);
    let mut refused = placed.refused.clone();
    let upstream = upstream(desired, &placed, &mut refused);
    let mut plan = Plan {
        services: Vec::with_capacity(parts.len()),
        definitions: BTreeMap::new(),
        changes: Vec::new(),
        openings: placed.openings.clone(),
        refused,
        asks: placed.asks.clone(),
        price: Price { currency: prices.currency.clone(), list: prices.list(), ..Price::default() },
        calls: BTreeMap::new(),
        ledger: Ledger::default(),
    };
    let mut rendered = HashMap::new();
    for (service, part) in &parts {
        let Some(seat) = placed.seats.get(service) else { continue };
        let role = part.item.role;
        let target = Target {
            role,
            account: &seat.account,
            flower: &seat.flower,
            size: part.item.size,
            upstream: upstream.of(role, &seat.flower),
            own: own(desired, role, part.index),
        };
        let (family, hash) = rendered
            .entry(target)
            .or_insert_with_key(|target| {
                let made = render(desired, target);
                plan.definitions.insert(made.hash.clone(), made.body);
                (made.family, made.hash)
            })
            .clone();
        let entry = Entry {
            service: service.clone(),
            role,
            place: Place { account: seat.account.clone(), region: desired.grid.region.clone() },
            cluster: seat.flower.clone(),
            zone: seat.zone.clone(),
            size: part.item.size,
            definition: hash,
            deployed_ns: part.unit.map(|unit| unit.deployed_ns),
        };
        plan.price.after.add(prices, &seat.account, &entry.size, hours(desired, prices, part.unit));
        plan.services.push(service_of(desired, &entry, family, part.unit));
        plan.ledger.insert(entry);
    }
    for entry in ledger.entries() {
        let unit = parts.get(&entry.service).and_then(|part| part.unit);
        plan.price.before.add(prices, &entry.place.account, &entry.size, hours(desired, prices, unit));
    }
    plan.price.change = plan.price.after.total - plan.price.before.total;
    plan.changes = changes(&plan, ledger, &placed, &parts);
    plan.calls = calls(&plan, ledger);
    plan
}

/// Every service of the desired state, by name.
pub(super) fn parts(desired: &Desired) -> BTreeMap<String, Part<'_>> {
    let mut parts = BTreeMap::new();
    let mut add = |role, name: &str, size: Size, apart, index, unit| {
        let service = desired.service(role, name);
        let item = Item { service: service.clone(), role, size, apart };
        parts.insert(service, Part { item, index, unit });
    };
    for index in 0..desired.heads.count as usize {
        add(Role::Head, &index.to_string(), desired.heads.size, None, index, None);
    }
    let shared = shared_series(desired);
    for index in 0..desired.shards.count as usize {
        let series = desired.shards.owns.get(index).map(|owns| owns.series.as_str());
        let apart = series.filter(|series| shared.contains(series)).map(ToOwned::to_owned);
        add(Role::Shard, &index.to_string(), desired.shards.size, apart, index, None);
    }
    for unit in desired.units.values() {
        for (name, _) in unit.names() {
            add(Role::Unit, &name, unit.size, None, 0, Some(unit));
        }
    }
    parts
}

/// What more than one shard holds.
fn shared_series(desired: &Desired) -> BTreeSet<&str> {
    let mut seen = BTreeSet::new();
    let all = desired.shards.owns.iter().map(|owns| owns.series.as_str());
    all.filter(|series| !seen.insert(*series)).collect()
}

/// Whom a service asks: the flower whose namespace has it.
struct Upstream {
    shards: Option<String>,
    heads: Vec<String>,
}

impl Upstream {
    /// For units of one flower always the same one, so that they share a task definition.
    fn of(&self, role: Role, flower: &str) -> Option<&str> {
        match role {
            Role::Head => self.shards.as_deref(),
            Role::Unit => {
                let score =
                    |head: &&String| twox_hash::XxHash3_64::oneshot(format!("{flower}\0{head}").as_bytes());
                self.heads.iter().max_by_key(score).map(String::as_str)
            }
            Role::Shard | Role::Collector => None,
        }
    }
}

fn upstream(desired: &Desired, placed: &Placed, refused: &mut Vec<Refusal>) -> Upstream {
    let flowers = |role: Role, count: u64| {
        let names = (0..count).map(|index| desired.service(role, &index.to_string()));
        let seats = names.filter_map(|name| placed.seats.get(&name).map(|seat| seat.flower.clone()));
        seats.collect::<BTreeSet<_>>()
    };
    let shards = flowers(Role::Shard, desired.shards.count);
    if shards.len() > 1 {
        let all: Vec<_> = shards.iter().map(String::as_str).collect();
        refused.push(Refusal {
            service: desired.service(Role::Head, "0"),
            why: format!(
                "the shards are in {} namespaces ({}), and TRELLIS_SHARDS of a head names one. Have fewer shards, or ask for more \
                 instances per namespace",
                all.len(),
                all.join(", ")
            ),
        });
    }
    let heads = flowers(Role::Head, desired.heads.count).into_iter().collect();
    Upstream { shards: shards.into_iter().next(), heads }
}

/// Hours of a month in which the task of a unit exists.
fn hours(desired: &Desired, prices: &Prices, unit: Option<&Unit>) -> f64 {
    match unit.and_then(|unit| scheduled::hours_a_month(desired, unit)) {
        Some(hours) => hours.min(prices.hours),
        None => prices.hours,
    }
}

fn service_of(desired: &Desired, entry: &Entry, family: String, unit: Option<&Unit>) -> Service {
    let class = classes().class(entry.role.word());
    let check = class.health_check.as_ref();
    let mut tags = desired.grid.tags.clone();
    tags.extend(entry.tags(&desired.grid.grid));
    Service {
        name: entry.service.clone(),
        role: entry.role,
        place: entry.place.clone(),
        cluster: entry.cluster.clone(),
        zone: entry.zone.clone(),
        family,
        definition: entry.definition.clone(),
        provider: entry.size.provider.in_cluster(&entry.cluster),
        // one whose task exists only for a session is started by its schedule
        desired: u32::from(unit.is_none_or(|unit| unit.window_ns.is_none())),
        registry: class.registry.clone(),
        deployed_after_ms: unit.map(|unit| unit.deployed_ns / NS_A_MS),
        grace_seconds: check.map(|check| check.start_period_seconds),
        tags,
    }
}

pub(super) fn seat(entry: &Entry) -> Seat {
    Seat { account: entry.place.account.clone(), flower: entry.cluster.clone(), zone: entry.zone.clone() }
}

fn changes(plan: &Plan, ledger: &Ledger, placed: &Placed, parts: &BTreeMap<String, Part<'_>>) -> Vec<Change> {
    let mut changes = Vec::new();
    for after in plan.ledger.entries() {
        let before = ledger.get(&after.service);
        let (kind, why) = match before {
            None => (ChangeKind::Add, "it is new".to_owned()),
            Some(before) if seat(before) != seat(after) || before.place != after.place => {
                let why = placed.moved.get(&after.service).cloned();
                (ChangeKind::Move, why.unwrap_or_else(|| "its zone has changed".to_owned()))
            }
            Some(before) if before.is_same(after) => continue,
            Some(before) => (ChangeKind::Change, difference(before, after)),
        };
        changes.push(Change {
            service: after.service.clone(),
            role: after.role,
            kind,
            from: before.map(seat),
            to: Some(seat(after)),
            why,
        });
    }
    for before in ledger.entries().filter(|entry| !parts.contains_key(&entry.service)) {
        changes.push(Change {
            service: before.service.clone(),
            role: before.role,
            kind: ChangeKind::Remove,
            from: Some(seat(before)),
            to: None,
            why: "no file asks for it any more".to_owned(),
        });
    }
    changes.sort_by(|a, b| a.service.cmp(&b.service));
    changes
}

fn difference(before: &Entry, after: &Entry) -> String {
    if before.deployed_ns.is_some() && before.deployed_ns != after.deployed_ns {
        "it was deployed anew".to_owned()
    } else if before.size != after.size {
        "its size is another one".to_owned()
    } else {
        "its task definition is another one".to_owned()
    }
}

fn calls(plan: &Plan, ledger: &Ledger) -> BTreeMap<String, Calls> {
    let known: BTreeSet<_> = ledger.entries().map(|entry| entry.definition.as_str()).collect();
    let mut calls: BTreeMap<String, Calls> = BTreeMap::new();
    let mut counted = BTreeSet::new();
    for service in &plan.services {
        if !known.contains(service.definition.as_str()) && counted.insert(&service.definition) {
            calls.entry(service.place.account.clone()).or_default().definitions += 1;
        }
    }
    for change in &plan.changes {
        let (from, to) = match change.kind {
            ChangeKind::Add | ChangeKind::Change => (None, change.to.as_ref()),
            ChangeKind::Move | ChangeKind::Remove => (change.from.as_ref(), change.to.as_ref()),
        };
        for seat in from.into_iter().chain(to) {
            calls.entry(seat.account.clone()).or_default().services += 1;
        }
    }
    for calls in calls.values_mut() {
        let minutes = |calls: u64, rate: f64| calls as f64 / (rate * RATE_PERCENT / 100.0) / 60.0;
        calls.minutes = minutes(calls.definitions, DEFINITIONS_S).max(minutes(calls.services, SERVICES_S));
    }
    calls
}
