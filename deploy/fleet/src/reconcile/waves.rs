//! The order of a roll-out: collectors, shards, heads, units; of each definition first one service, then some of its cluster, then a
//! tenth, then the rest. A wave opens when the one before it has settled; too many failures stop everything behind them.
//!
//! A service's wave depends on the plan alone. So a `fleet` that starts anew finds what the one before it has done, and goes on.

use std::collections::BTreeMap;

use crate::model::{Role, Service};

/// Waves of a definition: canary, cluster, tenth, rest.
pub(super) const STAGES: usize = 4;
/// Most services of the second wave: enough to see a fault of one in fifty, and half a minute of calls.
pub(super) const CLUSTER_WAVE_MAX: usize = 100;
/// The third wave ends at this share of all services of the definition.
pub(super) const TENTH: f64 = 0.1;
/// The share of a wave that must have settled before the next opens. The last ones are still starting, and are counted later.
pub(super) const SETTLED_SHARE: f64 = 0.9;
/// The largest share of failed services among those that are decided. More stops the roll-out.
pub const FAILED_RATIO_MAX: f64 = 0.02;
/// Fewer failures than this stop nothing behind the canary: units fail by themselves, too.
pub(super) const FAILED_MIN: usize = 3;

/// How a service stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) enum Standing {
    /// Not decided.
    #[default]
    Pending,
    /// As wanted.
    Settled,
    /// It failed.
    Failed,
}

/// A service's wave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Spot {
    /// Its role: the first order.
    pub role: Role,
    /// Its wave.
    pub stage: u8,
    group: u32,
}

/// Why a roll-out stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stop {
    /// What was rolled.
    pub group: String,
    /// In which wave.
    pub stage: &'static str,
    /// Failed services of the wave.
    pub failed: usize,
    /// Decided services of the wave.
    pub decided: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    total: usize,
    settled: usize,
    failed: usize,
}

#[derive(Clone, Debug)]
struct Group {
    name: String,
    stages: [Count; STAGES],
    open: usize,
}

/// The waves of a plan.
#[derive(Clone, Debug, Default)]
pub(super) struct Waves {
    groups: Vec<Group>,
    /// By role: services that are not settled or failed.
    undecided: BTreeMap<Role, usize>,
    /// By role: failures stop the roles behind it, too.
    stopped: BTreeMap<Role, usize>,
    ignore_failed: bool,
}

/// The name of a wave.
#[must_use]
pub(super) fn stage_name(stage: usize) -> &'static str {
    ["canary", "cluster", "tenth", "rest"].get(stage).copied().unwrap_or("rest")
}

/// What rolls together: the services of a definition. Shards that own what their files say have a definition each, so they roll with
/// their role.
fn group_of(service: &Service) -> String {
    match service.role {
        Role::Shard => "all shards".to_owned(),
        _ => service.family.clone(),
    }
}

/// A number that spreads a group's services over clusters and zones, and does not change.
fn order(service: &Service) -> u64 {
    twox_hash::XxHash3_64::oneshot(format!("{}/{}", service.cluster, service.name).as_bytes())
}

impl Waves {
    /// Plans the waves. The answer has a spot for each service, in their order. With `ignore_failed` failures stop nothing.
    #[must_use]
    pub(super) fn new<'a>(
        services: impl Iterator<Item = &'a Service>,
        ignore_failed: bool,
    ) -> (Self, Vec<Spot>) {
        let services: Vec<&Service> = services.collect();
        let mut members: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (index, service) in services.iter().enumerate() {
            members.entry(group_of(service)).or_default().push(index);
        }
        let mut waves = Self { ignore_failed, ..Self::default() };
        let mut spots = vec![Spot { role: Role::Unit, stage: 0, group: 0 }; services.len()];
        for (name, mut members) in members {
            members.sort_by_key(|index| (order(services[*index]), &services[*index].name));
            let first = services[members[0]];
            let mut group = Group { name, stages: Default::default(), open: 0 };
            let tenth = (members.len() as f64 * TENTH).ceil() as usize;
            // the canary's neighbours first, so that the second wave is one cluster
            let (near, far): (Vec<usize>, Vec<usize>) = members[1..].iter().partition(|index| {
                let each = services[**index];
                (&each.place, &each.cluster) == (&first.place, &first.cluster)
            });
            let near_wave = near.len().min(CLUSTER_WAVE_MAX);
            let staged = [(members[0], 0)]
                .into_iter()
                .chain(near[..near_wave].iter().map(|index| (*index, 1)))
                .chain({
                    let mut rest: Vec<usize> = near[near_wave..].iter().chain(&far).copied().collect();
                    rest.sort_by_key(|index| (order(services[*index]), &services[*index].name));
                    let tenth = tenth.saturating_sub(1 + near_wave);
                    rest.into_iter()
                        .enumerate()
                        .map(move |(at, index)| (index, if at < tenth { 2 } else { 3 }))
                });
            let number = u32::try_from(waves.groups.len()).unwrap_or(u32::MAX);
            for (index, stage) in staged {
                group.stages[stage].total += 1;
                spots[index] =
                    Spot { role: first.role, stage: u8::try_from(stage).unwrap_or(u8::MAX), group: number };
            }
            *waves.undecided.entry(first.role).or_default() += members.len();
            waves.groups.push(group);
        }
        for group in &mut waves.groups {
            group.advance(ignore_failed);
        }
        (waves, spots)
    }

    /// A service's standing changed.
    pub(super) fn set(&mut self, spot: Spot, from: Standing, to: Standing) {
        let group = &mut self.groups[spot.group as usize];
        let was = group.stop(self.ignore_failed).is_some();
        let count = &mut group.stages[spot.stage as usize];
        let undecided = self.undecided.entry(spot.role).or_default();
        match from {
            Standing::Pending => *undecided -= 1,
            Standing::Settled => count.settled -= 1,
            Standing::Failed => count.failed -= 1,
        }
        match to {
            Standing::Pending => *undecided += 1,
            Standing::Settled => count.settled += 1,
            Standing::Failed => count.failed += 1,
        }
        group.advance(self.ignore_failed);
        let is = group.stop(self.ignore_failed).is_some();
        let stopped = self.stopped.entry(spot.role).or_default();
        match (was, is) {
            (false, true) => *stopped += 1,
            (true, false) => *stopped -= 1,
            _ => {}
        }
    }

    /// Whether a service may be changed.
    #[must_use]
    pub(super) fn is_open(&self, spot: Spot) -> bool {
        let group = &self.groups[spot.group as usize];
        let before = |map: &BTreeMap<Role, usize>| map.range(..spot.role).all(|(_, count)| *count == 0);
        spot.stage as usize <= group.open
            && group.stop(self.ignore_failed).is_none()
            && before(&self.undecided)
            && before(&self.stopped)
    }

    /// What stopped, if anything did.
    #[must_use]
    pub(super) fn stops(&self) -> Vec<Stop> {
        self.groups.iter().filter_map(|group| group.stop(self.ignore_failed)).collect()
    }
}

impl Group {
    fn advance(&mut self, ignore_failed: bool) {
        while self.open + 1 < STAGES && self.stop(ignore_failed).is_none() {
            let Count { total, settled, failed } = self.stages[self.open];
            let needed = if self.open == 0 { total } else { (total as f64 * SETTLED_SHARE).ceil() as usize };
            if settled + failed < needed {
                return;
            }
            self.open += 1;
        }
    }

    fn stop(&self, ignore_failed: bool) -> Option<Stop> {
        if ignore_failed {
            return None;
        }
        self.stages.iter().enumerate().find_map(|(stage, count)| {
            let decided = count.settled + count.failed;
            let few = if stage == 0 { 1 } else { FAILED_MIN };
            let over = count.failed >= few && count.failed as f64 > FAILED_RATIO_MAX * decided as f64;
            over.then(|| Stop {
                group: self.name.clone(),
                stage: stage_name(stage),
                failed: count.failed,
                decided,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::Place;

    fn service(role: Role, index: usize, cluster: usize, family: &str) -> Service {
        Service {
            name: format!("trellis-{}-{index}", role.word()),
            role,
            place: Place { account: format!("{:012}", cluster % 4), region: "eu-central-1".into() },
            cluster: format!("flower{cluster}"),
            zone: None,
            family: family.into(),
            definition: family.into(),
            provider: "FARGATE".into(),
            desired: 1,
            registry: None,
            deployed_after_ms: None,
            grace_seconds: None,
            tags: BTreeMap::new(),
        }
    }

    fn units(count: usize) -> Vec<Service> {
        (0..count).map(|index| service(Role::Unit, index, index % 12, "a")).collect()
    }

    fn open(waves: &Waves, spots: &[Spot]) -> Vec<usize> {
        (0..spots.len()).filter(|index| waves.is_open(spots[*index])).collect()
    }

    fn settle(waves: &mut Waves, spots: &[Spot], stage: u8) {
        for spot in spots.iter().filter(|spot| spot.stage == stage) {
            waves.set(*spot, Standing::Pending, Standing::Settled);
        }
    }

    #[test]
    fn a_definition_goes_to_one_unit_then_to_its_cluster_then_to_a_tenth_then_to_all() {
        let services = units(12_000);
        let (mut waves, spots) = Waves::new(services.iter(), false);
        let canary = open(&waves, &spots);
        assert_eq!(canary.len(), 1);
        settle(&mut waves, &spots, 0);
        let second = open(&waves, &spots);
        assert_eq!(second.len(), 1 + CLUSTER_WAVE_MAX);
        assert!(second.iter().all(|index| services[*index].cluster == services[canary[0]].cluster));
        settle(&mut waves, &spots, 1);
        assert_eq!(open(&waves, &spots).len(), 1_200);
        settle(&mut waves, &spots, 2);
        assert_eq!(open(&waves, &spots).len(), 12_000);
    }

    #[test]
    fn a_canary_that_fails_stops_everything_behind_it() {
        let services = units(500);
        let (mut waves, spots) = Waves::new(services.iter(), false);
        let canary = open(&waves, &spots)[0];
        waves.set(spots[canary], Standing::Pending, Standing::Failed);
        assert_eq!(open(&waves, &spots), [0_usize; 0]);
        let stop = Stop { group: "a".into(), stage: "canary", failed: 1, decided: 1 };
        assert_eq!(waves.stops(), [stop]);
        let (mut waves, spots) = Waves::new(services.iter(), true);
        waves.set(spots[canary], Standing::Pending, Standing::Failed);
        assert!(open(&waves, &spots).len() > 1, "failures may be ignored by will");
    }

    #[test]
    fn a_few_failures_stop_nothing_and_more_than_the_ratio_stop_all() {
        let services = units(12_000);
        let (mut waves, spots) = Waves::new(services.iter(), false);
        (0..3).for_each(|stage| settle(&mut waves, &spots, stage));
        let rest: Vec<_> = spots.iter().filter(|spot| spot.stage == 3).collect();
        for spot in &rest[..98] {
            waves.set(**spot, Standing::Pending, Standing::Settled);
        }
        for spot in &rest[98..100] {
            waves.set(**spot, Standing::Pending, Standing::Failed);
        }
        assert_eq!(waves.stops(), []);
        waves.set(*rest[100], Standing::Pending, Standing::Failed);
        assert_eq!(waves.stops()[0].failed, 3);
        // a failed one that comes right after all opens it again
        waves.set(*rest[100], Standing::Failed, Standing::Settled);
        assert_eq!(waves.stops(), []);
    }

    #[test]
    fn units_wait_for_heads_and_heads_for_shards() {
        let services = [
            service(Role::Unit, 0, 0, "u"),
            service(Role::Head, 0, 1, "h"),
            service(Role::Shard, 0, 1, "s"),
            service(Role::Collector, 0, 1, "c"),
        ];
        let (mut waves, spots) = Waves::new(services.iter(), false);
        for expected in [3, 2, 1, 0] {
            assert!(waves.is_open(spots[expected]));
            assert!((0..expected).all(|later| !waves.is_open(spots[later])), "{expected}");
            waves.set(spots[expected], Standing::Pending, Standing::Settled);
        }
    }

    proptest! {
        #[test]
        fn waves_end_and_do_not_depend_on_the_order_or_on_a_restart(
            clusters in prop::collection::vec((0_usize..5, 0_usize..3, 0_usize..4), 1..300),
            done in 0_usize..300,
        ) {
            let roles = [Role::Collector, Role::Shard, Role::Head, Role::Unit];
            let services: Vec<_> = clusters
                .iter()
                .enumerate()
                .map(|(index, (cluster, family, role))| service(roles[*role], index, *cluster, &format!("f{family}")))
                .collect();
            let (mut waves, spots) = Waves::new(services.iter(), false);
            let (_, again) = Waves::new(services.iter(), false);
            prop_assert_eq!(&spots, &again);
            let (mut settled, mut total) = (vec![false; services.len()], 0);
            while total < services.len() {
                let open: Vec<_> = (0..services.len()).filter(|i| !settled[*i] && waves.is_open(spots[*i])).collect();
                prop_assert!(!open.is_empty(), "{total} of {}", services.len());
                for index in open {
                    waves.set(spots[index], Standing::Pending, Standing::Settled);
                    (settled[index], total) = (true, total + 1);
                    if total == done {
                        // another `fleet` sees what is settled, and opens the same
                        let mut other = Waves::new(services.iter(), false).0;
                        for index in (0..services.len()).filter(|index| settled[*index]) {
                            other.set(spots[index], Standing::Pending, Standing::Settled);
                        }
                        for spot in &spots {
                            prop_assert_eq!(waves.is_open(*spot), other.is_open(*spot));
                        }
                    }
                }
            }
        }
    }
}
