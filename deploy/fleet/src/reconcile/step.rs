//! What one service needs next. Pure: the wish, what was seen, what AWS knows of names, and nothing else.

use std::sync::Arc;

use crate::{
    call::{Change, Present, Rollout, Status, family},
    model::Service,
};

/// The tag whose value is the grid's name. Without it a service is not ours.
pub const GRID_TAG: &str = "trellis:grid";

/// What is known of a service.
#[derive(Clone, Debug, PartialEq)]
pub enum Seen {
    /// Nothing yet.
    Unknown,
    /// It does not exist. The time is when the one before it was created, if ECS still remembers it.
    Absent(Option<i64>),
    /// It exists.
    Present(Present),
}

/// What is wanted.
#[derive(Clone, Debug, PartialEq)]
pub enum Wish {
    /// The service, and that its deployment began no earlier than this (milliseconds since 1970): a roll without a change.
    Be(Arc<Service>, Option<i64>),
    /// That it does not exist.
    Gone,
}

/// A name of AWS that a service needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    /// It is not known yet: somebody asks.
    Asked,
    /// Known.
    Known(String),
    /// It cannot be had.
    Refused(String),
}

/// What is next.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// It must be looked at.
    Look,
    /// It is as wanted.
    Settled,
    /// Nothing to do but wait.
    Wait(Wait),
    /// CreateService with the ARNs of the task definition and of the Cloud Map service.
    Create(String, Option<String>),
    /// UpdateService.
    Update(Change),
    /// DeleteService.
    Delete,
    /// The deployment was broken off, or takes too long.
    Failed(String),
    /// Nobody may touch it, or AWS does not take it.
    Refused(String),
}

/// What a service waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Its task definition or its Cloud Map service.
    Names,
    /// Its deployment.
    Rollout,
    /// Its task to end, so that it can be deleted.
    Drain,
    /// The service of the same name that was deleted.
    Deleted,
    /// The same service elsewhere: a unit runs once.
    Elsewhere,
}

impl Step {
    /// Whether it is a call that changes something.
    #[must_use]
    pub fn is_change(&self) -> bool {
        matches!(self, Self::Create(..) | Self::Update(_) | Self::Delete)
    }

    /// Whether nothing more will happen.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Settled | Self::Failed(_) | Self::Refused(_))
    }
}

/// Says what is next. `definition` and `registry` are asked only for what is wanted; `elsewhere` is whether a service of the same name
/// still runs in another cluster; `again` starts a deployment that was broken off once more.
#[must_use]
pub fn step(
    grid: &str,
    wish: &Wish,
    seen: &Seen,
    names: (&Name, Option<&Name>),
    elsewhere: bool,
    again: bool,
) -> Step {
    match (wish, seen) {
        (_, Seen::Unknown) => Step::Look,
        (Wish::Gone, Seen::Absent(_)) => Step::Settled,
        (Wish::Gone, Seen::Present(present)) => remove(grid, present),
        (Wish::Be(..), Seen::Absent(_)) if elsewhere => Step::Wait(Wait::Elsewhere),
        (Wish::Be(..), Seen::Absent(_)) => match known(names) {
            Ok((definition, registry)) => Step::Create(definition, registry),
            Err(step) => step,
        },
        // a move that was broken off: its other half goes first
        (Wish::Be(service, _), Seen::Present(present))
            if elsewhere
                && present.status == Status::Active
                && present.desired == 0
                && service.desired > 0 =>
        {
            Step::Wait(Wait::Elsewhere)
        }
        (Wish::Be(service, since), Seen::Present(present)) => {
            keep(grid, service, *since, present, names, again)
        }
    }
}

fn known((definition, registry): (&Name, Option<&Name>)) -> Result<(String, Option<String>), Step> {
    let one = |name: &Name| match name {
        Name::Asked => Err(Step::Wait(Wait::Names)),
        Name::Known(arn) => Ok(arn.clone()),
        Name::Refused(why) => Err(Step::Refused(why.clone())),
    };
    Ok((one(definition)?, registry.map(one).transpose()?))
}

fn is_ours(grid: &str, present: &Present) -> Result<(), Step> {
    match present.tags.get(GRID_TAG) {
        Some(tag) if tag == grid => Ok(()),
        _ => Err(Step::Refused(format!(
            "a service of this name exists without the tag {GRID_TAG}={grid}: somebody else made it; delete it or rename yours"
        ))),
    }
}

fn remove(grid: &str, present: &Present) -> Step {
    if present.status != Status::Active {
        return Step::Settled;
    }
    // somebody else's service is not ours to remove
    if is_ours(grid, present).is_err() {
        return Step::Settled;
    }
    if present.desired > 0 {
        return Step::Update(Change { desired: Some(0), ..Change::default() });
    }
    if present.running + present.pending > 0 { Step::Wait(Wait::Drain) } else { Step::Delete }
}

fn keep(
    grid: &str,
    service: &Service,
    since: Option<i64>,
    present: &Present,
    names: (&Name, Option<&Name>),
    again: bool,
) -> Step {
    match present.status {
        Status::Draining => return Step::Wait(Wait::Deleted),
        // the caller tells a deleted one as absent
        Status::Inactive => return Step::Look,
        Status::Active => {}
    }
    if let Err(refused) = is_ours(grid, present) {
        return refused;
    }
    let other_definition = family(&present.definition) != service.family;
    let other_registry = present.registry.is_some() != service.registry.is_some();
    let mut change = Change {
        desired: (present.desired != service.desired).then_some(service.desired),
        // some answers do not tell the provider; what is not told is not compared
        provider: present
            .provider
            .as_ref()
            .filter(|provider| **provider != service.provider)
            .map(|_| service.provider.clone()),
        force: since.is_some_and(|since| present.deployed_ms < since),
        ..Change::default()
    };
    if other_definition || other_registry {
        match known(names) {
            Ok((definition, registry)) => {
                change.definition = other_definition.then_some(definition);
                change.registry = other_registry.then_some(registry);
            }
            Err(step) => return step,
        }
    }
    if change != Change::default() {
        return Step::Update(change);
    }
    match present.rollout {
        Rollout::Completed => Step::Settled,
        // a service that should run nothing has nothing to start
        Rollout::InProgress | Rollout::Failed if service.desired == 0 && present.running == 0 => {
            Step::Settled
        }
        Rollout::InProgress => Step::Wait(Wait::Rollout),
        Rollout::Failed if again => Step::Update(Change { force: true, ..Change::default() }),
        Rollout::Failed if present.reason.is_empty() => {
            Step::Failed(format!("{} tasks failed and ECS broke off", present.failed_tasks))
        }
        Rollout::Failed => Step::Failed(present.reason.clone()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::model::{Place, Role};

    fn service(image: u8, desired: u32, registry: bool) -> Service {
        Service {
            name: "trellis-unit-a".into(),
            role: Role::Unit,
            place: Place { account: "1".into(), region: "r".into() },
            cluster: "tulip".into(),
            zone: None,
            family: format!("trellis-tulip-unit-{image}"),
            definition: image.to_string(),
            provider: "FARGATE".into(),
            desired,
            registry: registry.then(|| "head".to_owned()),
            deployed_after_ms: None,
            grace_seconds: None,
            tags: BTreeMap::new(),
        }
    }

    fn present(image: u8, desired: u32, rollout: Rollout, ours: bool) -> Present {
        Present {
            status: Status::Active,
            definition: format!("arn:aws:ecs:r:1:task-definition/trellis-tulip-unit-{image}:7"),
            desired,
            running: desired,
            pending: 0,
            provider: Some("FARGATE".into()),
            registry: None,
            deployment: "ecs-svc/1".into(),
            rollout,
            failed_tasks: 0,
            reason: String::new(),
            deployed_ms: 1_000,
            created_ms: 1_000,
            tags: ours.then(|| (GRID_TAG.to_owned(), "trellis".to_owned())).into_iter().collect(),
            messages: Vec::new(),
        }
    }

    /// What AWS makes of a step, once ECS has started and stopped its tasks.
    fn done(step: &Step, wish: &Wish, seen: &Seen) -> Seen {
        match (step, wish, seen) {
            (Step::Create(definition, registry), Wish::Be(service, _), _) => Seen::Present(Present {
                definition: definition.clone(),
                registry: registry.clone(),
                deployed_ms: 9_000,
                ..present(0, service.desired, Rollout::Completed, true)
            }),
            (Step::Update(change), _, Seen::Present(before)) => {
                let mut after = before.clone();
                after.definition = change.definition.clone().unwrap_or(after.definition);
                after.desired = change.desired.unwrap_or(after.desired);
                after.registry = change.registry.clone().unwrap_or(after.registry);
                (after.running, after.rollout, after.deployed_ms) =
                    (after.desired, Rollout::Completed, 9_000);
                Seen::Present(after)
            }
            (Step::Delete, ..) => Seen::Absent(Some(1_000)),
            _ => seen.clone(),
        }
    }

    fn seen() -> impl Strategy<Value = Seen> {
        let rollout = prop_oneof![Just(Rollout::Completed), Just(Rollout::InProgress), Just(Rollout::Failed)];
        prop_oneof![
            Just(Seen::Absent(None)),
            (0_u8..3, 0_u32..2, rollout, any::<bool>()).prop_map(|(image, desired, rollout, ours)| {
                Seen::Present(present(image, desired, rollout, ours))
            }),
        ]
    }

    proptest! {
        #[test]
        fn two_changes_at_most_lead_to_the_end_and_no_change_is_made_twice(
            mut seen in seen(),
            gone in any::<bool>(),
            image in 0_u8..3,
            desired in 0_u32..2,
            registry in any::<bool>(),
            since in prop::option::of(0_i64..8_000),
        ) {
            let wish = if gone { Wish::Gone } else { Wish::Be(Arc::new(service(image, desired, registry)), since) };
            let definition = Name::Known(format!("arn:aws:ecs:r:1:task-definition/trellis-tulip-unit-{image}:1"));
            let named = Name::Known("arn:registry".into());
            let next = |seen: &Seen| step("trellis", &wish, seen, (&definition, registry.then_some(&named)), false, false);
            let foreign = matches!(&seen, Seen::Present(present) if present.tags.is_empty());
            let mut changes = Vec::new();
            while next(&seen).is_change() {
                let change = next(&seen);
                prop_assert!(!changes.contains(&change), "{change:?} again");
                seen = done(&change, &wish, &seen);
                changes.push(change);
            }
            prop_assert!(changes.len() <= 2, "{changes:?}");
            prop_assert!(!foreign || changes.is_empty(), "a service of somebody else is not touched: {changes:?}");
            if !foreign && !changes.is_empty() {
                prop_assert_eq!(next(&seen), Step::Settled);
            }
            if let (Wish::Gone, [.., last]) = (&wish, &changes[..]) {
                prop_assert_eq!(last, &Step::Delete);
            }
        }
    }

    #[test]
    fn a_service_that_still_has_a_task_is_not_deleted() {
        let mut draining = present(1, 0, Rollout::Completed, true);
        draining.running = 1;
        let names = (&Name::Asked, None);
        let next = |present: &Present| {
            step("trellis", &Wish::Gone, &Seen::Present(present.clone()), names, false, false)
        };
        assert_eq!(next(&draining), Step::Wait(Wait::Drain));
        draining.running = 0;
        assert_eq!(next(&draining), Step::Delete);
    }

    #[test]
    fn a_unit_that_runs_elsewhere_is_not_created_here() {
        let wish = Wish::Be(Arc::new(service(1, 1, false)), None);
        let known = Name::Known("arn".into());
        let next = |elsewhere| step("trellis", &wish, &Seen::Absent(None), (&known, None), elsewhere, false);
        assert_eq!(next(true), Step::Wait(Wait::Elsewhere));
        assert_eq!(next(false), Step::Create("arn".into(), None));
    }

    #[test]
    fn a_unit_that_was_stopped_here_for_a_move_waits_for_its_other_copy() {
        let wish = Wish::Be(Arc::new(service(1, 1, false)), None);
        let known = Name::Known("arn".into());
        let stopped = Seen::Present(present(1, 0, Rollout::Completed, true));
        let next = |elsewhere| step("trellis", &wish, &stopped, (&known, None), elsewhere, false);
        assert_eq!(next(true), Step::Wait(Wait::Elsewhere));
        assert_eq!(next(false), Step::Update(Change { desired: Some(1), ..Change::default() }));
    }
}
