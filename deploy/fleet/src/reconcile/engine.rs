//! From what is wanted and what was seen to the next calls. Pure: the time is given, and calls are values.
//!
//! Nothing is remembered between two programs. What is wanted is in files, what is so is in AWS, and a service's name is its identity, so
//! a `fleet` that starts anew after a death finds out where the one before it stood.

mod answer;
mod choose;
mod outcome;
mod state;
mod step;
mod target;
#[cfg(test)]
mod tests;
mod touch;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use self::state::{Cluster, Definition, Entry, Listing, Order, Pause, Queue, Registries};
pub use self::{
    choose::{Next, Ticket},
    step::{GRID_TAG, Name, Seen, Step, Wait, Wish, step},
    target::{Mode, Network, Selection, Target},
};
use crate::{
    call::What,
    model::{Place, Role},
    pace::{Bucket, Category, Overrides, Pace},
    waves::{Spot, Standing, Stop, Waves},
};

/// A description may be older than a change by this much. Until then it cannot undo what the change's own answer told.
const CONSISTENT: Duration = Duration::from_secs(30);
/// After this a service that waits is looked at, in case its events were lost. Most tasks have started by then.
const CHECK_AFTER: Duration = Duration::from_secs(120);
/// Looks at a waiting service become rarer, up to this.
const CHECK_MAX: Duration = Duration::from_secs(600);
/// After this a deployment counts as failed. ECS breaks off after three failed tasks, but not when no task can be placed.
const ROLLOUT_MAX: Duration = Duration::from_secs(1_800);
/// Services are collected for this long, because one call describes ten.
const GATHER: Duration = Duration::from_secs(5);
/// From the end of a sweep to the next.
const SWEEP_EVERY: Duration = Duration::from_secs(900);
/// Share of the read rate that a sweep may use.
const SWEEP_SHARE: f64 = 0.5;
/// From an empty queue to the next look into it.
const POLL_EMPTY: Duration = Duration::from_secs(5);
/// Longest pause after failures.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// After this long without one answer from a place the program gives up.
const SILENT_MAX: Duration = Duration::from_secs(600);
/// Calls under way in a place. At the highest rates (20 a second) and the longest wait for an answer (30 s) there are no more.
const IN_FLIGHT_MAX: usize = 600;
/// Changes of one service in one run. More mean that somebody else changes it back, or that AWS drops a value.
const CHANGES_MAX: u32 = 8;

/// The reconciler.
pub struct Engine {
    target: Target,
    mode: Mode,
    places: Vec<Place>,
    clusters: Vec<Cluster>,
    entries: Vec<Entry>,
    index: HashMap<(usize, String), usize>,
    /// By name: the entries that are wanted and those that are not.
    twins: HashMap<String, Vec<usize>>,
    definitions: BTreeMap<(usize, String), Definition>,
    waves: Waves,
    pace: Pace,
    sweeps: Vec<Bucket>,
    ready: Vec<BTreeMap<Order, BTreeSet<usize>>>,
    timers: BTreeSet<(Duration, usize)>,
    in_flight: Vec<usize>,
    pauses: Vec<Pause>,
    /// By place: families to find, or to register.
    asked: Vec<BTreeSet<String>>,
    /// Shards that are away because of us.
    away: BTreeSet<usize>,
    unfinal: usize,
    /// Every cluster was listed and every service described once. Before that a change might be the wrong one.
    surveyed: bool,
    describing: usize,
    gave_up: Option<String>,
    schedule: VecDeque<(Duration, String, u32)>,
    tally: Tally,
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

/// How it ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Everything is as wanted, but the services that are named, with the reason.
    Done(Vec<(String, String)>),
    /// Too much failed.
    Stopped(Vec<Stop>, Vec<(String, String)>),
    /// AWS does not answer.
    Unavailable(String),
}

/// How far it is.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Services that should be.
    pub wanted: usize,
    /// As wanted.
    pub settled: usize,
    /// Being started or stopped by ECS.
    pub moving: usize,
    /// Failed, or refused by AWS.
    pub failed: usize,
    /// Not wanted, and still there.
    pub extra: usize,
    /// Changes that are still to be sent, at least.
    pub changes_left: usize,
    /// Changes a second, at present, of all places.
    pub per_second: f64,
    /// At least this long until the last change is sent.
    pub left: Duration,
}

/// One service, for showing.
#[derive(Clone, Debug)]
pub struct Row {
    /// Its place.
    pub place: Place,
    /// Its cluster.
    pub cluster: String,
    /// Its name.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// Whether it is wanted.
    pub wanted: bool,
    /// What is known.
    pub seen: Seen,
    /// What is next.
    pub step: Step,
    /// What ECS said last.
    pub note: String,
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

    fn want(&mut self, service: crate::model::Service, spot: Spot) {
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

    fn add(&mut self, cluster: usize, name: String, role: Role, wish: Wish) -> usize {
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

    /// Every service that is wanted or was found.
    pub fn rows(&self) -> impl Iterator<Item = Row> + '_ {
        self.entries.iter().map(|entry| Row {
            place: self.places[self.clusters[entry.cluster].place].clone(),
            cluster: self.clusters[entry.cluster].name.clone(),
            name: entry.name.clone(),
            role: entry.role,
            wanted: matches!(entry.wish, Wish::Be(..)),
            seen: entry.seen.clone(),
            step: entry.step.clone(),
            note: entry.note.clone(),
        })
    }

    /// Why a cluster could not be listed, if one could not.
    #[must_use]
    pub fn unlisted(&self) -> Option<&str> {
        self.clusters.iter().find_map(|cluster| match &cluster.listing {
            Listing::Refused(why) => Some(why.as_str()),
            _ => None,
        })
    }

    /// The calls so far.
    #[must_use]
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let mut progress = Progress::default();
        let mut left = vec![0_usize; self.places.len()];
        for entry in &self.entries {
            let wanted = matches!(entry.wish, Wish::Be(..));
            progress.wanted += usize::from(wanted);
            match &entry.step {
                Step::Settled => progress.settled += usize::from(wanted),
                Step::Failed(_) | Step::Refused(_) => progress.failed += 1,
                Step::Wait(Wait::Rollout) => progress.moving += 1,
                Step::Wait(Wait::Names) => left[self.clusters[entry.cluster].place] += 1,
                step if step.is_change() && (wanted || self.mode.remove) => {
                    // a removal is two changes
                    let count = if wanted || matches!(step, Step::Delete) { 1 } else { 2 };
                    left[self.clusters[entry.cluster].place] += count;
                }
                _ => {}
            }
            if !wanted && entry.step != Step::Settled {
                progress.extra += 1;
            }
        }
        for (place, count) in left.into_iter().enumerate() {
            let per_second = self.pace.per_second(&self.places[place], Category::ServiceModify);
            progress.changes_left += count;
            if count > 0 {
                progress.per_second += per_second;
                progress.left = progress.left.max(Duration::from_secs_f64(count as f64 / per_second));
            }
        }
        progress
    }

    fn count(&mut self, what: &What) {
        *self.tally.calls.entry(what.name()).or_default() += 1;
    }
}
