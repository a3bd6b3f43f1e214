//! Which calls come next.

use std::{collections::HashSet, time::Duration};

use super::{
    engine::{Engine, GATHER, IN_FLIGHT_MAX, SWEEP_EVERY},
    outcome::Outcome,
    state::{Listing, Queue, Registries},
    step::{Name, Seen, Step, Wish},
};
use crate::{
    call::{Call, Create, DESCRIBE_MAX, What},
    model::Service,
    pace::{Category, Purpose},
};

/// Which call an answer belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ticket {
    /// A page of a cluster.
    List(usize),
    /// Descriptions.
    Describe(usize, Vec<usize>),
    /// A change of a service.
    Change(usize),
    /// A definition of a place.
    Definition(usize, String),
    /// A namespace of a cluster, or its services.
    Registries(usize),
    /// A queue of a cluster, or its messages.
    Queue(usize),
    /// Messages that are deleted.
    Forget(usize),
}

/// What to do now.
#[derive(Debug, Default)]
pub struct Next {
    /// Calls to send.
    pub calls: Vec<(Ticket, Call)>,
    /// When to ask again, if no answer comes before.
    pub wake: Option<Duration>,
    /// The end, if this is it.
    pub outcome: Option<Outcome>,
}

impl Next {
    fn wake(&mut self, at: Duration) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }
}

impl Engine {
    /// Says what to do now.
    pub fn next(&mut self, now: Duration) -> Next {
        let mut next = Next::default();
        if self.gave_up.is_some() {
            next.outcome = self.outcome(now);
            return next;
        }
        self.fire(now);
        for place in 0..self.places.len() {
            if self.pauses[place].until > now {
                next.wake(self.pauses[place].until);
                continue;
            }
            self.next_changes(place, now, &mut next);
            self.next_definitions(place, now, &mut next);
        }
        for cluster in 0..self.clusters.len() {
            if self.pauses[self.clusters[cluster].place].until <= now {
                self.next_lists(cluster, now, &mut next);
                self.next_looks(cluster, now, &mut next);
                self.next_registries(cluster, now, &mut next);
                self.next_events(cluster, now, &mut next);
            }
        }
        if let Some((at, _)) = self.timers.first() {
            next.wake(*at);
        }
        if let Some((at, ..)) = self.schedule.front().filter(|_| self.mode.keep) {
            next.wake(*at);
        }
        if next.calls.is_empty() {
            next.outcome = self.outcome(now);
        }
        next
    }

    fn fire(&mut self, now: Duration) {
        while let Some((_, name, desired)) = self.schedule.pop_front_if(|(at, ..)| *at <= now) {
            for id in self.twins.get(&name).cloned().unwrap_or_default() {
                if let Wish::Be(service, _) = &mut self.entries[id].wish {
                    std::sync::Arc::make_mut(service).desired = desired;
                    self.touch(id, now);
                }
            }
        }
        while let Some((at, id)) = self.timers.first().copied().filter(|(at, _)| *at <= now) {
            self.timers.remove(&(at, id));
            self.entries[id].timer = None;
            if self.entries[id].step.is_change() {
                self.touch(id, now);
            } else {
                self.entries[id].checks += 1;
                // a deployment may have taken too long
                self.touch(id, now);
                if !self.entries[id].step.is_final() {
                    self.look(id, now);
                }
            }
        }
    }

    fn is_surveyed(&mut self) -> bool {
        self.surveyed = self.surveyed
            || self.describing == 0
                && self.clusters.iter().all(|cluster| {
                    let listed = cluster.listed_once || matches!(cluster.listing, Listing::Refused(_));
                    listed && cluster.look.is_empty()
                });
        self.surveyed
    }

    fn take(
        &mut self,
        place: usize,
        category: Category,
        purpose: Purpose,
        now: Duration,
        next: &mut Next,
    ) -> bool {
        if self.in_flight[place] >= IN_FLIGHT_MAX {
            return false;
        }
        match self.pace.bucket(&self.places[place], category, now).take(now, purpose) {
            Ok(()) => true,
            Err(later) => {
                next.wake(later);
                false
            }
        }
    }

    fn send(&mut self, place: usize, ticket: Ticket, what: What, next: &mut Next) {
        self.count(&what);
        self.in_flight[place] += 1;
        next.calls.push((ticket, Call { place: self.places[place].clone(), what }));
    }

    fn next_changes(&mut self, place: usize, now: Duration, next: &mut Next) {
        if !self.is_surveyed() {
            return;
        }
        while let Some((id, purpose)) = self.first_ready(place) {
            if !self.take(place, Category::ServiceModify, purpose, now, next) {
                return;
            }
            let Some(what) = self.change(id) else { continue };
            self.entries[id].busy = true;
            self.touch(id, now);
            self.send(place, Ticket::Change(id), what, next);
        }
    }

    fn change(&mut self, id: usize) -> Option<What> {
        let entry = &mut self.entries[id];
        let (cluster, name) = (self.clusters[entry.cluster].name.clone(), entry.name.clone());
        match (&entry.step, &entry.wish) {
            (Step::Create(definition, registry), Wish::Be(service, _)) => {
                let network = self.target.networks.get(&service.place.account).cloned().unwrap_or_default();
                let before = match entry.seen {
                    Seen::Absent(Some(created)) => created,
                    _ => 0,
                };
                Some(What::CreateService(Box::new(Create {
                    token: token(service, before),
                    service: service.clone(),
                    definition: definition.clone(),
                    registry: registry.clone(),
                    subnets: network.subnets(service.zone.as_deref()),
                    security_groups: network.security_groups.get(&service.role).cloned().unwrap_or_default(),
                })))
            }
            (Step::Update(change), _) => Some(What::UpdateService { cluster, name, change: change.clone() }),
            (Step::Delete, _) => Some(What::DeleteService { cluster, name }),
            _ => None,
        }
    }

    fn next_definitions(&mut self, place: usize, now: Duration, next: &mut Next) {
        let families: Vec<String> = self.asked[place].iter().cloned().collect();
        for family in families {
            let Some(definition) = self.definitions.get(&(place, family.clone())) else { continue };
            let (category, what) = if definition.missing {
                let body = definition.body.clone();
                (Category::DefinitionModify, What::Register { family: family.clone(), body })
            } else {
                (Category::DefinitionRead, What::FindDefinition { family: family.clone() })
            };
            if self.take(place, category, Purpose::Roll, now, next) {
                self.asked[place].remove(&family);
                self.send(place, Ticket::Definition(place, family), what, next);
            }
        }
    }

    fn next_lists(&mut self, cluster: usize, now: Duration, next: &mut Next) {
        let place = self.clusters[cluster].place;
        if let Listing::Due(at) = self.clusters[cluster].listing {
            if at > now {
                // a sweep that comes later keeps nobody waiting
                if self.mode.keep {
                    next.wake(at);
                }
                return;
            }
            self.clusters[cluster].listing =
                Listing::Pages { page: None, busy: false, names: HashSet::new() };
        }
        let Listing::Pages { page, busy: false, .. } = &self.clusters[cluster].listing else { return };
        let page = page.clone();
        if self.clusters[cluster].listed_once && !self.take_sweep(place, now, next) {
            return;
        }
        if !self.take(place, Category::ServiceRead, Purpose::Roll, now, next) {
            return;
        }
        if let Listing::Pages { busy, .. } = &mut self.clusters[cluster].listing {
            *busy = true;
        }
        let what = What::ListServices { cluster: self.clusters[cluster].name.clone(), page };
        self.send(place, Ticket::List(cluster), what, next);
    }

    fn take_sweep(&mut self, place: usize, now: Duration, next: &mut Next) -> bool {
        match self.sweeps[place].take(now, Purpose::Roll) {
            Ok(()) => true,
            Err(later) => {
                next.wake(later);
                false
            }
        }
    }

    fn next_looks(&mut self, cluster: usize, now: Duration, next: &mut Next) {
        let place = self.clusters[cluster].place;
        loop {
            let each = &self.clusters[cluster];
            let due = each.look_since + GATHER;
            let urgent = each.look.len() >= DESCRIBE_MAX || !each.look.is_empty() && due <= now;
            if !urgent && !each.look.is_empty() {
                next.wake(due);
            }
            if !urgent && (each.sweep.is_empty() || !self.take_sweep(place, now, next)) {
                return;
            }
            if !self.take(place, Category::ServiceRead, Purpose::Repair, now, next) {
                return;
            }
            let each = &mut self.clusters[cluster];
            let mut ids: Vec<usize> = each.look.iter().copied().take(DESCRIBE_MAX).collect();
            ids.iter().for_each(|id| _ = each.look.remove(id));
            each.look_since = now;
            let more: Vec<usize> = each.sweep.iter().copied().take(DESCRIBE_MAX - ids.len()).collect();
            more.iter().for_each(|id| _ = each.sweep.remove(id));
            ids.extend(more);
            for id in &ids {
                (self.entries[*id].in_look, self.entries[*id].in_sweep) = (false, false);
                // it may have been in both
                self.clusters[cluster].sweep.remove(id);
                self.clusters[cluster].look.remove(id);
            }
            ids.sort_unstable();
            ids.dedup();
            let names = ids.iter().map(|id| self.entries[*id].name.clone()).collect();
            self.describing += 1;
            let what = What::DescribeServices { cluster: self.clusters[cluster].name.clone(), names };
            self.send(place, Ticket::Describe(cluster, ids), what, next);
        }
    }

    fn next_registries(&mut self, cluster: usize, now: Duration, next: &mut Next) {
        let each = &self.clusters[cluster];
        let place = each.place;
        if !each.registers || each.registries_busy || !self.mode.change {
            return;
        }
        let what = match &each.registries {
            Registries::Unasked => {
                What::FindNamespace { name: format!("{}.{}", each.name, self.target.domain) }
            }
            Registries::Services(namespace) => What::FindRegistries { namespace: namespace.clone() },
            Registries::Known(_) | Registries::Refused(_) => return,
        };
        if self.take(place, Category::CloudMap, Purpose::Roll, now, next) {
            self.clusters[cluster].registries_busy = true;
            self.send(place, Ticket::Registries(cluster), what, next);
        }
    }

    fn next_events(&mut self, cluster: usize, now: Duration, next: &mut Next) {
        let place = self.clusters[cluster].place;
        if let (Some(receipts), Queue::Url(url)) =
            (self.clusters[cluster].forget.front().cloned(), &self.clusters[cluster].queue)
        {
            let url = url.clone();
            if self.take(place, Category::Queue, Purpose::Repair, now, next) {
                self.clusters[cluster].forget.pop_front();
                self.send(place, Ticket::Forget(cluster), What::Forget { url, receipts }, next);
            }
        }
        let each = &self.clusters[cluster];
        // nobody waits for an event
        if each.moving == 0 && !self.mode.keep || each.queue_busy || !self.mode.change {
            return;
        }
        if each.poll > now {
            return next.wake(each.poll);
        }
        let what = match &each.queue {
            Queue::Unasked => What::FindQueue { name: format!("{}-{}-events", self.target.grid, each.name) },
            Queue::Url(url) => What::Receive { url: url.clone() },
            Queue::Absent => return,
        };
        if self.take(place, Category::Queue, Purpose::Roll, now, next) {
            self.clusters[cluster].queue_busy = true;
            self.send(place, Ticket::Queue(cluster), what, next);
        }
    }

    /// The next sweep of a cluster.
    pub(super) fn after_listing(&mut self, cluster: usize, now: Duration) {
        self.clusters[cluster].listing = Listing::Due(now + SWEEP_EVERY);
        self.clusters[cluster].listed_once = true;
    }

    /// A definition is known or refused.
    pub(super) fn named(&mut self, place: usize, family: &str, state: Name, now: Duration) {
        let Some(definition) = self.definitions.get_mut(&(place, family.to_owned())) else { return };
        definition.state = state;
        for id in std::mem::take(&mut definition.waiting) {
            self.touch(id, now);
        }
    }
}

/// The same for each try of the same creation, and another one for the next service of the name: 36 characters at most.
fn token(service: &Service, before: i64) -> String {
    use sha2::Digest as _;
    let text = serde_json::to_string(service).unwrap_or_default();
    let digest = sha2::Sha256::digest(format!("{before}/{text}").as_bytes());
    format!("{digest:x}").chars().take(32).collect()
}
