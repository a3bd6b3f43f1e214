//! A service's state changed: what is next for it, and where it stands among the others.

use std::time::Duration;

use super::{
    engine::{CHANGES_MAX, CHECK_AFTER, CHECK_MAX, CONSISTENT, Engine, PAUSE_MAX, ROLLOUT_MAX},
    state::{Order, Registries},
    step::{Name, Seen, Step, Wait, Wish, step},
    waves::{Spot, Standing},
};
use crate::{call::Status, model::Role, pace::Purpose};

/// How long to wait after this many failures in a row.
pub(super) fn pause(tries: u32) -> Duration {
    Duration::from_secs(1 << tries.min(6)).min(PAUSE_MAX)
}

fn is_moving(step: &Step) -> bool {
    matches!(step, Step::Wait(Wait::Rollout | Wait::Drain))
}

impl Engine {
    /// The name of its Cloud Map service, as far as it is known.
    fn registry(&self, cluster: usize, registry: &str) -> Name {
        let cluster = &self.clusters[cluster];
        match &cluster.registries {
            _ if !self.mode.change => Name::Known(registry.to_owned()),
            Registries::Refused(why) => Name::Refused(why.clone()),
            Registries::Known(known) => known.get(registry).map_or_else(
                || {
                    Name::Refused(format!(
                        "the namespace {}.{} has no Cloud Map service {registry}: update the stack cluster of {0}",
                        cluster.name, self.target.domain
                    ))
                },
                |arn| Name::Known(arn.clone()),
            ),
            _ => Name::Asked,
        }
    }

    fn decide(&self, id: usize, now: Duration) -> Step {
        let entry = &self.entries[id];
        if let Some(why) = &entry.refused {
            return Step::Refused(why.clone());
        }
        let place = self.clusters[entry.cluster].place;
        let mut registry = None;
        let mut definition = &Name::Asked;
        let mut elsewhere = false;
        if let Wish::Be(service, _) = &entry.wish {
            if let Some(found) = self.definitions.get(&(place, service.family.clone())) {
                definition = &found.state;
            }
            registry = service.registry.as_ref().map(|name| self.registry(entry.cluster, name));
            let twins = self.twins.get(&entry.name);
            elsewhere = twins.is_some_and(|twins| twins.iter().any(|twin| *twin != id && self.runs(*twin)));
        }
        let again = self.mode.again && !entry.redone;
        let step = step(
            &self.target.grid,
            &entry.wish,
            &entry.seen,
            (definition, registry.as_ref()),
            elsewhere,
            again,
        );
        let waited = entry.waiting.map_or(Duration::ZERO, |since| now - since);
        match step {
            Step::Wait(Wait::Rollout) if waited >= ROLLOUT_MAX => Step::Failed(format!(
                "does not run after {} minutes{}",
                ROLLOUT_MAX.as_secs() / 60,
                if entry.note.is_empty() { String::new() } else { format!("; ECS says: {}", entry.note) }
            )),
            step if step.is_change() && entry.changes >= CHANGES_MAX => Step::Refused(format!(
                "was changed {CHANGES_MAX} times and is still not as wanted: somebody else changes it back"
            )),
            step => step,
        }
    }

    /// Whether a service that is not wanted here may still have a task.
    fn runs(&self, id: usize) -> bool {
        let entry = &self.entries[id];
        match &entry.seen {
            Seen::Unknown => entry.wish == Wish::Gone,
            Seen::Present(present) if entry.wish == Wish::Gone => {
                present.status == Status::Active && present.desired + present.running + present.pending > 0
            }
            _ => false,
        }
    }

    pub(super) fn see(&mut self, id: usize, seen: Seen, now: Duration) {
        let ran = self.runs(id);
        self.entries[id].seen = seen;
        self.touch(id, now);
        if ran && !self.runs(id) {
            let twins = self.twins.get(&self.entries[id].name).cloned().unwrap_or_default();
            for twin in twins.into_iter().filter(|twin| *twin != id) {
                self.touch(twin, now);
            }
        }
    }

    /// Takes a description, unless it is older than what our own change told.
    pub(super) fn described(&mut self, id: usize, seen: Seen, now: Duration) {
        let entry = &mut self.entries[id];
        entry.looked = Some(now);
        let fresh = entry.wrote.map(|wrote| wrote + CONSISTENT).filter(|fresh| now < *fresh);
        if let Some(fresh) = fresh {
            let before = std::mem::replace(&mut self.entries[id].seen, seen);
            if self.decide(id, now).is_change() {
                self.entries[id].seen = before;
                self.set_timer(id, Some(fresh));
                return;
            }
            let seen = std::mem::replace(&mut self.entries[id].seen, before);
            self.see(id, seen, now);
        } else {
            self.see(id, seen, now);
        }
    }

    pub(super) fn touch(&mut self, id: usize, now: Duration) {
        let step = self.decide(id, now);
        let entry = &mut self.entries[id];
        let cluster = entry.cluster;
        if is_moving(&step) {
            if !is_moving(&entry.step) {
                (entry.waiting, entry.checks) = (Some(now), 0);
                self.clusters[cluster].moving += 1;
            }
        } else if is_moving(&entry.step) {
            self.clusters[cluster].moving -= 1;
            // a deployment that took too long has waited, and may still come
            if !matches!(step, Step::Failed(_)) {
                entry.waiting = None;
            }
        }
        match (entry.step.is_final(), step.is_final()) {
            (false, true) => self.unfinal -= 1,
            (true, false) => self.unfinal += 1,
            _ => {}
        }
        let standing = match &step {
            Step::Settled => Standing::Settled,
            Step::Failed(_) | Step::Refused(_) => Standing::Failed,
            _ => Standing::Pending,
        };
        if let Some(spot) = entry.spot.filter(|_| standing != entry.standing) {
            self.waves.set(spot, entry.standing, standing);
        }
        entry.standing = standing;
        entry.was_settled |= step == Step::Settled;
        entry.step = step;
        self.note_away(id);
        self.enqueue(id, now);
    }

    /// A shard whose second or later deployment is under way cannot be read.
    fn note_away(&mut self, id: usize) {
        let entry = &self.entries[id];
        if entry.role != Role::Shard {
            return;
        }
        let again = match &entry.seen {
            // the first deployment begins with the service
            Seen::Present(present) => present.deployed_ms > present.created_ms + 1_000,
            _ => false,
        };
        let updating = entry.busy && matches!(entry.step, Step::Update(_));
        if updating || again && entry.step == Step::Wait(Wait::Rollout) {
            self.away.insert(id);
        } else {
            self.away.remove(&id);
        }
    }

    /// Puts it where the next call, the next look or the next answer finds it.
    fn enqueue(&mut self, id: usize, now: Duration) {
        let entry = &mut self.entries[id];
        let place = self.clusters[entry.cluster].place;
        if let Some(order) = entry.ready.take()
            && let Some(set) = self.ready[place].get_mut(&order)
        {
            set.remove(&id);
            if set.is_empty() {
                self.ready[place].remove(&order);
            }
        }
        let wanted = matches!(entry.wish, Wish::Be(..));
        if entry.busy {
            return self.set_timer(id, None);
        }
        match &entry.step {
            step if step.is_change() => {
                if !self.mode.change || !(wanted || self.mode.remove) {
                    return self.set_timer(id, None);
                }
                if entry.hold > now {
                    let hold = entry.hold;
                    return self.set_timer(id, Some(hold));
                }
                let order = self.order(id);
                self.entries[id].ready = Some(order);
                self.ready[place].entry(order).or_default().insert(id);
                self.set_timer(id, None);
            }
            Step::Wait(Wait::Rollout | Wait::Drain | Wait::Deleted) => {
                let after = match entry.checks {
                    0 => CHECK_AFTER,
                    checks => (CHECK_AFTER / 2 * (1 << (checks - 1).min(4))).min(CHECK_MAX),
                };
                let after = if entry.step == Step::Wait(Wait::Deleted) { CONSISTENT } else { after };
                self.set_timer(id, Some(now + after));
            }
            Step::Wait(Wait::Names) => {
                self.set_timer(id, None);
                if let Wish::Be(service, _) = &self.entries[id].wish {
                    let key = (place, service.family.clone());
                    if let Some(definition) = self.definitions.get_mut(&key)
                        && definition.state == Name::Asked
                    {
                        if definition.waiting.is_empty() {
                            self.asked[place].insert(key.1);
                        }
                        definition.waiting.push(id);
                    }
                }
            }
            _ => self.set_timer(id, None),
        }
    }

    fn order(&self, id: usize) -> Order {
        let entry = &self.entries[id];
        // removals of what is not needed any more come last, units first
        let (role, last) = match entry.role {
            Role::Collector => (0, 3),
            Role::Shard => (1, 2),
            Role::Head => (2, 1),
            Role::Unit => (3, 0),
        };
        let moves = self.twins.get(&entry.name).is_some_and(|twins| twins.len() > 1);
        let rank = match (&entry.wish, &entry.step) {
            (Wish::Gone, _) if moves => role * 4,
            (Wish::Gone, _) => 16 + last,
            (_, Step::Create(..)) => role * 4 + 1,
            _ => role * 4 + 2,
        };
        let lane = u8::from(!entry.was_settled);
        let spot: Option<Spot> = entry.spot.filter(|_| lane > 0);
        Order { lane, rank, spot }
    }

    /// The first service that may be changed.
    pub(super) fn first_ready(&self, place: usize) -> Option<(usize, Purpose)> {
        self.ready[place].iter().find_map(|(order, ids)| {
            let id = *ids.first()?;
            let entry = &self.entries[id];
            let open = order.spot.is_none_or(|spot| self.waves.is_open(spot));
            let away = entry.role == Role::Shard
                && matches!((&entry.wish, &entry.step), (Wish::Be(..), Step::Update(_)))
                && self.away.len() >= self.mode.shards_at_once;
            let purpose = if order.lane == 0 { Purpose::Repair } else { Purpose::Roll };
            (open && !away).then_some((id, purpose))
        })
    }

    pub(super) fn set_timer(&mut self, id: usize, at: Option<Duration>) {
        if let Some(before) = std::mem::replace(&mut self.entries[id].timer, at) {
            self.timers.remove(&(before, id));
        }
        if let Some(at) = at {
            self.timers.insert((at, id));
        }
    }

    /// It must be described.
    pub(super) fn look(&mut self, id: usize, now: Duration) {
        let entry = &mut self.entries[id];
        if std::mem::replace(&mut entry.in_look, true) {
            return;
        }
        let cluster = &mut self.clusters[entry.cluster];
        if cluster.look.is_empty() {
            cluster.look_since = now;
        }
        cluster.look.insert(id);
    }
}
