//! What breaks: faults on request, and what people do by hand.

use std::sync::Arc;
use std::time::Duration;

use crate::ecs::{look_soon, stop_task};
use crate::faults::Failing;
use crate::kept::{Capacity, End, State, Status};
use crate::world::World;

/// Faults of the service, until they are set otherwise.
impl World {
    /// This share of events never comes.
    pub fn lose_events(&mut self, share: f64) {
        self.ctx.faults.events_lost = share;
    }

    /// This share of events comes twice.
    pub fn double_events(&mut self, share: f64) {
        self.ctx.faults.events_twice = share;
    }

    /// This share of the tasks of a family fails. A share of 0 repairs it.
    pub fn fail_tasks(&mut self, family: &str, how: Failing, share: f64) {
        self.ctx.faults.failing.insert(family.into(), (how, share));
    }

    /// An account (all, if none is named) keeps this share of its rates; 1 repairs it.
    pub fn throttle(&mut self, account: Option<&str>, share: f64) {
        self.ctx.faults.throttle.insert(account.unwrap_or_default().into(), share);
    }

    /// This share of calls is applied, and the caller sees a broken connection.
    pub fn lose_answers(&mut self, share: f64) {
        self.ctx.faults.answers_lost = share;
    }

    /// The next call of this name is applied, and the caller sees a broken connection.
    pub fn lose_next_answer(&mut self, op: &str) {
        self.ctx.faults.lose_next.push(op.into());
    }

    /// Until a time, no call of the account (all, if none is named) arrives. What runs, goes on.
    pub fn go_away(&mut self, account: Option<&str>, until: Duration) {
        self.ctx.faults.away.insert(account.unwrap_or_default().into(), until);
    }
}

/// What people do by hand, and what AWS does to tasks. False if there is no such service or task.
impl World {
    fn find(
        &mut self,
        account: &str,
        region: &str,
        cluster: &str,
        service: &str,
    ) -> Option<(usize, Arc<str>, Arc<str>, u64)> {
        let index = self.place(account, region);
        let home = self.regions[index].clusters.get(cluster)?;
        let found = home.services.get(service).filter(|each| each.state == State::Active)?;
        Some((index, home.name.clone(), found.name.clone(), found.serial))
    }

    /// Somebody deletes a service.
    pub fn delete_by_hand(&mut self, account: &str, region: &str, cluster: &str, service: &str) -> bool {
        let Some((index, cluster, service, serial)) = self.find(account, region, cluster, service) else {
            return false;
        };
        if let Some(home) = self.regions[index].clusters.get_mut(&cluster)
            && let Some(found) = home.services.get_mut(&service)
        {
            home.active -= 1;
            found.state = State::Draining;
            found.desired = 0;
        }
        look_soon(&mut self.ctx, index, &cluster, &service, serial);
        true
    }

    /// Somebody sets the desired count.
    pub fn scale_by_hand(
        &mut self,
        account: &str,
        region: &str,
        cluster: &str,
        service: &str,
        desired: u32,
    ) -> bool {
        let Some((index, cluster, service, serial)) = self.find(account, region, cluster, service) else {
            return false;
        };
        if let Some(found) =
            self.regions[index].clusters.get_mut(&cluster).and_then(|home| home.services.get_mut(&service))
        {
            found.desired = desired;
            found.steady = false;
        }
        look_soon(&mut self.ctx, index, &cluster, &service, serial);
        true
    }

    /// Somebody sets a tag, or removes it.
    pub fn retag_by_hand(
        &mut self,
        account: &str,
        region: &str,
        cluster: &str,
        service: &str,
        key: &str,
        value: Option<&str>,
    ) -> bool {
        let Some((index, cluster, service, _)) = self.find(account, region, cluster, service) else {
            return false;
        };
        if let Some(found) =
            self.regions[index].clusters.get_mut(&cluster).and_then(|home| home.services.get_mut(&service))
        {
            match value {
                Some(value) => found.tags.insert(key.into(), value.into()),
                None => found.tags.remove(key),
            };
        }
        true
    }

    /// The running tasks of a service end as AWS ends them: a Spot interruption on FARGATE_SPOT, a retirement of the host elsewhere.
    pub fn interrupt(&mut self, account: &str, region: &str, cluster: &str, service: &str) -> bool {
        let Some((index, cluster, service, _)) = self.find(account, region, cluster, service) else {
            return false;
        };
        let place = &mut self.regions[index];
        let Some(home) = place.clusters.get(&cluster) else { return false };
        let tasks = home.services.get(&service).map(|found| found.tasks.clone()).unwrap_or_default();
        let mut any = false;
        for id in tasks {
            let Some(task) = place.clusters.get(&cluster).and_then(|home| home.tasks.get(&id)) else {
                continue;
            };
            if task.status != Status::Running {
                continue;
            }
            let (code, reason) = match task.capacity {
                Capacity::Spot => ("SpotInterruption", "Your Spot Task was interrupted."),
                Capacity::Fargate => (
                    "ServiceSchedulerInitiated",
                    "ECS is performing maintenance on the underlying infrastructure",
                ),
                Capacity::Managed => ("TerminationNotice", "The container instance is draining."),
            };
            any |= stop_task(
                &mut self.ctx,
                place,
                &cluster,
                id,
                End { code, reason: reason.into(), exit: None, failed: false },
            );
        }
        any
    }
}

/// What a test looks at without a call.
impl World {
    /// The tasks of services in a cluster that are not STOPPED: `(service, last status)`.
    pub fn tasks(&self, account: &str, region: &str, cluster: &str) -> Vec<(String, &'static str)> {
        let place = self.regions.iter().find(|place| &*place.account == account && &*place.name == region);
        let tasks = place.and_then(|place| place.clusters.get(cluster)).map(|home| home.tasks.values());
        let live = tasks.into_iter().flatten().filter(|task| task.status < Status::Stopped);
        live.filter_map(|task| Some((task.owner.as_ref()?.service.to_string(), task.status.name()))).collect()
    }
}
