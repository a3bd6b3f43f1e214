//! What answers, faults and events change.

use std::{collections::HashSet, time::Duration};

use super::{
    choose::Ticket,
    engine::{Engine, PAUSE_MAX, POLL_EMPTY, SILENT_MAX, SWEEP_EVERY},
    state::{Entry, Listing, Pause, Queue, Registries},
    step::{Name, Seen, Step, Wait, Wish},
    touch::pause,
};
use crate::{
    call::{Answer, Call, Fault, Kind, Present, Rollout, Status},
    model::Role,
    observe::{Event, Happened, read},
    pace::Category,
};

/// Tries of a service against a quota that is used up.
const QUOTA_TRIES_MAX: u32 = 5;

impl Engine {
    /// Takes the answer to a call that was sent at `sent`.
    pub fn answer(
        &mut self,
        now: Duration,
        sent: Duration,
        ticket: Ticket,
        call: &Call,
        answer: Result<Answer, Fault>,
    ) {
        let place = self.places.iter().position(|each| *each == call.place).unwrap_or_default();
        self.in_flight[place] -= 1;
        match &answer {
            Err(Fault { kind: Kind::Unavailable, message }) => self.silence(place, message, now),
            Err(Fault { kind: Kind::Throttled, .. }) => {
                self.tally.throttled += 1;
                let category = call.what.category();
                self.pace.bucket(&call.place, category, now).throttled(sent, now);
                if category == Category::ServiceRead {
                    self.sweeps[place].throttled(sent, now);
                }
            }
            _ => self.pauses[place] = Pause::default(),
        }
        match ticket {
            Ticket::List(cluster) => self.listed(cluster, answer, now),
            Ticket::Describe(cluster, ids) => self.descriptions(cluster, &ids, answer, now),
            Ticket::Change(id) => self.changed(id, answer, now),
            Ticket::Definition(place, family) => self.defined(place, family, answer, now),
            Ticket::Registries(cluster) => self.registered(cluster, answer, now),
            Ticket::Queue(cluster) => self.received(cluster, answer, now),
            // messages that stay come again, and tell nothing new
            Ticket::Forget(_) => {}
        }
    }

    fn silence(&mut self, place: usize, message: &str, now: Duration) {
        let pause_now = &mut self.pauses[place];
        let since = *pause_now.since.get_or_insert(now);
        // the calls that were under way fail together, and count once
        if pause_now.until <= now {
            pause_now.tries += 1;
            pause_now.until = now + pause(pause_now.tries);
        }
        if now - since >= SILENT_MAX {
            let place = &self.places[place];
            self.gave_up = Some(format!(
                "no answer from account {} in {} for {} minutes: {message}",
                place.account,
                place.region,
                SILENT_MAX.as_secs() / 60
            ));
        }
    }

    fn listed(&mut self, cluster: usize, answer: Result<Answer, Fault>, now: Duration) {
        let first = !self.clusters[cluster].listed_once;
        let Listing::Pages { page, busy, names } = &mut self.clusters[cluster].listing else { return };
        *busy = false;
        match answer {
            Ok(Answer::Names(found, token)) => {
                names.extend(found.iter().cloned());
                let more = token.is_some();
                *page = token;
                for name in found {
                    self.found(cluster, name, first, now);
                }
                if !more {
                    let names = match &mut self.clusters[cluster].listing {
                        Listing::Pages { names, .. } => std::mem::take(names),
                        _ => HashSet::new(),
                    };
                    self.after_listing(cluster, now);
                    self.not_found(cluster, &names, now);
                }
            }
            Ok(_) => {}
            Err(fault) if matches!(fault.kind, Kind::Throttled | Kind::Unavailable) => {}
            Err(fault) if first => {
                let each = &self.clusters[cluster];
                let place = &self.places[each.place];
                let why = format!(
                    "cannot list cluster {} of account {} in {}: {fault}; is the stack cluster deployed there?",
                    each.name, place.account, place.region
                );
                // nobody knows what runs there, and it may be what another cluster is about to start
                self.gave_up.get_or_insert(why.clone());
                self.clusters[cluster].listing = Listing::Refused(why.clone());
                self.all_of(cluster, |entry| entry.refused = Some(why.clone()), now);
            }
            // what was known stays; the next sweep tries again
            Err(_) => self.after_listing(cluster, now),
        }
    }

    fn all_of(&mut self, cluster: usize, mut what: impl FnMut(&mut Entry), now: Duration) {
        for id in 0..self.entries.len() {
            if self.entries[id].cluster == cluster {
                what(&mut self.entries[id]);
                self.touch(id, now);
            }
        }
    }

    /// A name is in a cluster's list.
    fn found(&mut self, cluster: usize, name: String, first: bool, now: Duration) {
        let id = match self.index.get(&(cluster, name.clone())) {
            Some(id) => *id,
            None => {
                // other services of the grid in the cluster are made by CloudFormation: GRID-gateway, GRID-sampler
                let own = name.strip_prefix(&self.target.grid).and_then(|rest| rest.strip_prefix('-'));
                let role = own.and_then(|rest| rest.split('-').next()).and_then(Role::of);
                let Some(role) = role else { return };
                self.add(cluster, name, role, Wish::Gone)
            }
        };
        if first {
            self.look(id, now);
        } else if self.entries[id].looked.is_none_or(|looked| now - looked >= SWEEP_EVERY) {
            let entry = &mut self.entries[id];
            if !std::mem::replace(&mut entry.in_sweep, true) {
                self.clusters[cluster].sweep.insert(id);
            }
        }
    }

    /// What the whole list of a cluster does not have.
    fn not_found(&mut self, cluster: usize, names: &HashSet<String>, now: Duration) {
        for id in 0..self.entries.len() {
            let entry = &self.entries[id];
            if entry.cluster != cluster || names.contains(&entry.name) {
                continue;
            }
            match &entry.seen {
                Seen::Unknown => self.see(id, Seen::Absent(None), now),
                // it may have been made after its page was read: only a description tells
                Seen::Present(present) if present.status == Status::Active => self.look(id, now),
                _ => {}
            }
        }
    }

    fn descriptions(&mut self, cluster: usize, ids: &[usize], answer: Result<Answer, Fault>, now: Duration) {
        self.describing -= 1;
        match answer {
            Ok(Answer::Services(mut found)) => {
                for id in ids {
                    let seen = match found.remove(&self.entries[*id].name) {
                        Some(present) if present.status == Status::Inactive => {
                            Seen::Absent(Some(present.created_ms))
                        }
                        Some(present) => Seen::Present(present),
                        None => Seen::Absent(None),
                    };
                    self.described(*id, seen, now);
                }
            }
            Ok(_) => {}
            Err(fault) if matches!(fault.kind, Kind::Throttled | Kind::Unavailable) => {
                ids.iter().for_each(|id| self.look(*id, now));
                self.clusters[cluster].look_since = now;
            }
            Err(fault) => {
                for id in ids {
                    self.entries[*id].refused = Some(format!("cannot be described: {fault}"));
                    self.touch(*id, now);
                }
            }
        }
    }

    fn changed(&mut self, id: usize, answer: Result<Answer, Fault>, now: Duration) {
        let entry = &mut self.entries[id];
        entry.busy = false;
        let fault = match answer {
            Ok(Answer::Service(mut present)) => {
                // ECS need not tell them in the answer to a change
                if present.tags.is_empty() {
                    match (&entry.step, &entry.wish, &entry.seen) {
                        (Step::Create(..), Wish::Be(service, _), _) => present.tags = service.tags.clone(),
                        (_, _, Seen::Present(before)) => present.tags = before.tags.clone(),
                        _ => {}
                    }
                }
                if matches!(&entry.step, Step::Update(change) if change.force) {
                    entry.redone = true;
                    // once is enough, also where this machine's clock is ahead of AWS's
                    if let Wish::Be(_, since) = &mut entry.wish {
                        *since = None;
                    }
                }
                (entry.wrote, entry.tries) = (Some(now), 0);
                entry.changes += 1;
                return self.see(id, Seen::Present(present), now);
            }
            Ok(_) => return self.touch(id, now),
            Err(fault) => fault,
        };
        if fault.kind == Kind::Throttled {
            return self.touch(id, now);
        }
        entry.tries += 1;
        entry.hold = now + pause(entry.tries);
        self.tally.wasted += 1;
        match fault.kind {
            // what became of it is not known, or not what we thought
            Kind::Unavailable | Kind::Exists | Kind::Missing | Kind::Draining => {
                if fault.kind == Kind::Exists && entry.tries > QUOTA_TRIES_MAX {
                    entry.refused = Some(format!("{fault}"));
                }
                if fault.kind == Kind::Missing && entry.wish == Wish::Gone {
                    return self.see(id, Seen::Absent(None), now);
                }
                entry.seen = Seen::Unknown;
                self.touch(id, now);
                self.look(id, now);
            }
            Kind::Quota if entry.tries <= QUOTA_TRIES_MAX => {
                entry.note = fault.message;
                self.touch(id, now);
            }
            Kind::Quota => self.refuse(id, format!("{fault}; ask AWS for a higher quota"), now),
            Kind::Denied => {
                let why = format!("{fault}; the deployer role of cfn/account.yaml lacks this right");
                self.refuse(id, why, now);
            }
            Kind::Refused | Kind::Throttled => self.refuse(id, fault.message, now),
        }
    }

    fn refuse(&mut self, id: usize, why: String, now: Duration) {
        self.entries[id].refused = Some(why);
        self.touch(id, now);
    }

    fn defined(&mut self, place: usize, family: String, answer: Result<Answer, Fault>, now: Duration) {
        match answer {
            Ok(Answer::Definition(Some(arn))) => self.named(place, &family, Name::Known(arn), now),
            Ok(_) => {
                if let Some(definition) = self.definitions.get_mut(&(place, family.clone())) {
                    definition.missing = true;
                }
                self.asked[place].insert(family);
            }
            Err(fault) if matches!(fault.kind, Kind::Throttled | Kind::Unavailable) => {
                self.asked[place].insert(family);
            }
            Err(fault) => {
                let why = format!("task definition {family}: {fault}");
                self.named(place, &family, Name::Refused(why), now);
            }
        }
    }

    fn registered(&mut self, cluster: usize, answer: Result<Answer, Fault>, now: Duration) {
        let each = &mut self.clusters[cluster];
        each.registries_busy = false;
        each.registries = match answer {
            Ok(Answer::Found(Some(namespace))) => Registries::Services(namespace),
            Ok(Answer::Registries(known)) => Registries::Known(known),
            Ok(_) => Registries::Refused(format!(
                "there is no namespace {}.{}: deploy the stack cluster of {0} with Kind=core",
                each.name, self.target.domain
            )),
            Err(fault) if matches!(fault.kind, Kind::Throttled | Kind::Unavailable) => return,
            Err(fault) => Registries::Refused(format!("the names of {} cannot be read: {fault}", each.name)),
        };
        if matches!(each.registries, Registries::Known(_) | Registries::Refused(_)) {
            for id in 0..self.entries.len() {
                if self.entries[id].cluster == cluster && self.entries[id].step == Step::Wait(Wait::Names) {
                    self.touch(id, now);
                }
            }
        }
    }

    fn received(&mut self, cluster: usize, answer: Result<Answer, Fault>, now: Duration) {
        let each = &mut self.clusters[cluster];
        each.queue_busy = false;
        each.poll = now;
        match answer {
            Ok(Answer::Found(Some(url))) => each.queue = Queue::Url(url),
            // without events the looks at what waits tell the same, later
            Ok(Answer::Found(None)) => each.queue = Queue::Absent,
            Ok(Answer::Messages(messages)) => {
                if messages.is_empty() {
                    each.poll = now + POLL_EMPTY;
                    return;
                }
                each.forget.push_back(messages.iter().map(|(_, receipt)| receipt.clone()).collect());
                for event in messages.iter().filter_map(|(body, _)| read(body)) {
                    self.event(&event, now);
                }
            }
            Ok(_) => {}
            Err(fault) if fault.kind == Kind::Throttled => {}
            Err(_) => each.poll = now + PAUSE_MAX,
        }
    }

    /// Takes an event. One that is old, doubled, or of another deployment changes nothing.
    pub fn event(&mut self, event: &Event, now: Duration) {
        let Some(cluster) = self.clusters.iter().position(|cluster| {
            let place = &self.places[cluster.place];
            (&cluster.name, &place.account, &place.region) == (&event.cluster, &event.account, &event.region)
        }) else {
            return;
        };
        let Some(id) = self.index.get(&(cluster, event.service.clone())).copied() else { return };
        let entry = &mut self.entries[id];
        let Seen::Present(present) = &entry.seen else { return };
        if event.at_ms < present.deployed_ms {
            return;
        }
        let settled = entry.step.is_final();
        let mut present: Present = present.clone();
        match &event.what {
            Happened::Completed(deployment) if *deployment == present.deployment => {
                if present.rollout != Rollout::InProgress {
                    return;
                }
                (present.rollout, present.running, present.pending) =
                    (Rollout::Completed, present.desired, 0);
                self.see(id, Seen::Present(present), now);
            }
            Happened::Failed(deployment, reason) if *deployment == present.deployment => {
                (present.rollout, present.reason) = (Rollout::Failed, reason.clone());
                self.see(id, Seen::Present(present), now);
            }
            Happened::Began(deployment) if *deployment == present.deployment => {}
            // somebody else deployed
            Happened::Completed(_) | Happened::Failed(..) | Happened::Began(_) => self.look(id, now),
            Happened::Stopped(reason) => {
                entry.note = reason.clone();
                // Where none should run the last may have stopped, or one of long ago: the first events of a queue are old. A settled
                // one gets another task from ECS, unless somebody set the count to zero.
                if present.desired == 0 || settled {
                    self.look(id, now);
                }
            }
            Happened::Steady if !settled => self.look(id, now),
            Happened::Trouble(what) => entry.note = what.clone(),
            Happened::Steady | Happened::Running => {}
        }
    }
}
