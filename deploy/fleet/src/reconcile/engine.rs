//! The reconciler's memory: what is wanted, what was seen, and what waits.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use super::{
    state::{Cluster, Definition, Entry, Listing, Order, Pause, Queue, Registries},
    step::{Name, Seen, Step, Wish},
    target::{Mode, Target},
    waves::{Spot, Standing, Waves},
};
use crate::{
    call::What,
    model::{Place, Role, Service},
    pace::{Bucket, Category, Overrides, Pace},
};

/// A description may be older than a change by this much. Until then it cannot undo what the change's own answer told.
pub(super) const CONSISTENT: Duration = Duration::from_secs(30);
/// After this a service that waits is looked at, in case its events were lost. Most tasks have started by then.
pub(super) const CHECK_AFTER: Duration = Duration::from_secs(120);
/// Looks at a waiting service become rarer, up to this.
pub(super) const CHECK_MAX: Duration = Duration::from_secs(600);
/// After this a deployment counts as failed. ECS breaks off after three failed tasks, but not when no task can be placed.
pub(super) const ROLLOUT_MAX: Duration = Duration::from_secs(1_800);
/// Services are collected for this long, because one call describes ten.
pub(super) const GATHER: Duration = Duration::from_secs(5);
/// From the end of a sweep to the next.
pub(super) const SWEEP_EVERY: Duration = Duration::from_secs(900);
/// Share of the read rate that a sweep may use.
const SWEEP_SHARE: f64 = 0.5;
/// From an empty queue to the next look into it.
pub(super) const POLL_EMPTY: Duration = Duration::from_secs(5);
/// Longest pause after failures.
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(60);
/// After this long without one answer from a place the program gives up.
pub(super) const SILENT_MAX: Duration = Duration::from_secs(600);
/// Calls under way in a place. At the highest rates (20 a second) and the longest wait for an answer (30 s) there are no more.
pub(super) const IN_FLIGHT_MAX: usize = 600;
/// Changes of one service in one run. More mean that somebody else changes it back, or that AWS drops a value.
pub(super) const CHANGES_MAX: u32 = 8;

/// The reconciler.
pub struct Engine {
    pub(super) target: Target,
    pub(super) mode: Mode,
    pub(super) places: Vec<Place>,
    pub(super) clusters: Vec<Cluster>,
    pub(super) entries: Vec<Entry>,
    pub(super) index: HashMap<(usize, String), usize>,
    /// By name: the entries that are wanted and those that are not.
    pub(super) twins: HashMap<String, Vec<usize>>,
    pub(super) definitions: BTreeMap<(usize, String), Definition>,
    pub(super) waves: Waves,
    pub(super) pace: Pace,
    pub(super) sweeps: Vec<Bucket>,
    pub(super) ready: Vec<BTreeMap<Order, BTreeSet<usize>>>,
    pub(super) timers: BTreeSet<(Duration, usize)>,
    pub(super) in_flight: Vec<usize>,
    pub(super) pauses: Vec<Pause>,
    /// By place: families to find, or to register.
    pub(super) asked: Vec<BTreeSet<String>>,
    /// Shards that are away because of us.
    pub(super) away: BTreeSet<usize>,
    pub(super) unfinal: usize,
    /// Every cluster was listed and every service described once. Before that a change might be the wrong one.
    pub(super) surveyed: bool,
    pub(super) describing: usize,
    pub(super) gave_up: Option<String>,
    pub(super) schedule: VecDeque<(Duration, String, u32)>,
    pub(super) tally: Tally,
}

/// Calls that were sent.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// By name.
    pub calls: BTreeMap<&'static str, u64>,
    /// Refused for their rate.
    pub throttled: u64,
    /// Changes that changed nothing: refused, or answered with an error.
    pub wasted: u64,
}

impl Engine {
    /// Begins. Every cluster is listed first.
    #[must_use]
    pub fn new(target: Target, mode: Mode, rates: Overrides, now: Duration) -> Self {
        let mut places: Vec<Place> = target.clusters.iter().map(|(place, _)| place.clone()).collect();
        places.sort();
        places.dedup();
        let pace = Pace::new(rates);
        let sweeps = places.iter().map(|place| {
            let mut rate = pace.rate(place, Category::ServiceRead);
            rate.per_second *= SWEEP_SHARE;
            Bucket::new(rate, now)
        });
        let sweeps = sweeps.collect();
        let clusters = target.clusters.iter().map(|(place, name)| Cluster {
            place: places.iter().position(|each| each == place).unwrap_or_default(),
            name: name.clone(),
            listing: Listing::Due(now),
            listed_once: false,
            registries: Registries::Unasked,
            registries_busy: false,
            registers: false,
            queue: Queue::Unasked,
            queue_busy: false,
            poll: now,
            forget: VecDeque::new(),
            look: BTreeSet::new(),
            look_since: now,
            sweep: BTreeSet::new(),
            moving: 0,
        });
        let (waves, spots) = Waves::new(target.services.iter(), mode.ignore_failed);
        let mut engine = Self {
            clusters: clusters.collect(),
            entries: Vec::with_capacity(target.services.len()),
            index: HashMap::new(),
            twins: HashMap::new(),
            definitions: BTreeMap::new(),
            waves,
            pace,
            sweeps,
            ready: places.iter().map(|_| BTreeMap::new()).collect(),
            timers: BTreeSet::new(),
            in_flight: vec![0; places.len()],
            pauses: vec![Pause::default(); places.len()],
            asked: vec![BTreeSet::new(); places.len()],
            away: BTreeSet::new(),
            unfinal: 0,
            surveyed: false,
            describing: 0,
            gave_up: None,
            schedule: VecDeque::new(),
            tally: Tally::default(),
            places,
            mode,
            target,
        };
        let mut schedule = engine.target.schedule.clone();
        schedule.sort();
        engine.schedule = schedule.into();
        for (service, spot) in engine.target.services.clone().into_iter().zip(spots) {
            engine.want(service, spot);
        }
        engine
    }

    fn want(&mut self, service: Service, spot: Spot) {
        let found = self.clusters.iter().position(|cluster| {
            cluster.name == service.cluster && self.places[cluster.place] == service.place
        });
        let cluster = found.unwrap_or_default();
        let since =
            self.mode.roll.as_ref().filter(|(selection, _)| selection.has(&service)).map(|(_, since)| *since);
        let since = since.max(service.deployed_after_ms);
        let (name, role) = (service.name.clone(), service.role);
        self.clusters[cluster].registers |= service.registry.is_some();
        let key = (self.clusters[cluster].place, service.family.clone());
        let body = self.target.definitions.get(&service.family).cloned();
        self.definitions.entry(key).or_insert_with(|| Definition {
            state: match body {
                // who only looks shows what would be done, and needs no ARN for that
                Some(_) if !self.mode.change => Name::Known(service.family.clone()),
                Some(_) => Name::Asked,
                None => Name::Refused(format!(
                    "the plan has no task definition {}: this is a bug of fleet",
                    service.family
                )),
            },
            body: body.unwrap_or_default(),
            missing: false,
            waiting: Vec::new(),
        });
        let id = self.add(cluster, name, role, Wish::Be(Arc::new(service), since));
        let entry = &mut self.entries[id];
        entry.spot = Some(spot);
        if found.is_none() {
            entry.refused =
                Some("the plan puts it into a cluster that it does not list: this is a bug of fleet".into());
        }
    }

    pub(super) fn add(&mut self, cluster: usize, name: String, role: Role, wish: Wish) -> usize {
        let id = self.entries.len();
        self.index.insert((cluster, name.clone()), id);
        self.twins.entry(name.clone()).or_default().push(id);
        self.unfinal += 1;
        self.entries.push(Entry {
            cluster,
            name,
            role,
            wish,
            seen: Seen::Unknown,
            step: Step::Look,
            standing: Standing::Pending,
            spot: None,
            busy: false,
            wrote: None,
            looked: None,
            hold: Duration::ZERO,
            timer: None,
            ready: None,
            in_look: false,
            in_sweep: false,
            waiting: None,
            checks: 0,
            tries: 0,
            changes: 0,
            was_settled: false,
            redone: false,
            refused: None,
            note: String::new(),
        });
        id
    }

    /// The calls so far.
    #[must_use]
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    pub(super) fn count(&mut self, what: &What) {
        *self.tally.calls.entry(what.name()).or_default() += 1;
    }
}
