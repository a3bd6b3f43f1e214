use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::*;
use crate::{
    call::{Answer, Call, Fault, Kind, Present, Rollout, Status, What},
    model::{Place, Role, Service},
    observe::{Event, Happened},
    pace::{Category, Overrides},
};

const NAME: &str = "trellis-unit-a";

fn place() -> Place {
    Place { account: "1".into(), region: "r".into() }
}

/// One unit that is wanted in tulip, beside the cluster violet.
fn engine() -> Engine {
    let service = Service {
        name: NAME.into(),
        role: Role::Unit,
        place: place(),
        cluster: "tulip".into(),
        zone: None,
        family: "f".into(),
        definition: "1".into(),
        provider: "FARGATE".into(),
        desired: 1,
        registry: None,
        deployed_after_ms: None,
        grace_seconds: None,
        tags: [(GRID_TAG.to_owned(), "trellis".to_owned())].into(),
    };
    let target = Target {
        grid: "trellis".into(),
        clusters: vec![(place(), "tulip".into()), (place(), "violet".into())],
        services: vec![service],
        definitions: [("f".to_owned(), Arc::new(serde_json::Value::Null))].into(),
        ..Target::default()
    };
    Engine::new(target, Mode { remove: true, ..Mode::default() }, Overrides::default(), Duration::ZERO)
}

fn present(desired: u32) -> Present {
    Present {
        status: Status::Active,
        definition: "arn:aws:ecs:r:1:task-definition/f:1".into(),
        desired,
        running: 1,
        pending: 0,
        provider: Some("FARGATE".into()),
        registry: None,
        deployment: "ecs-svc/1".into(),
        rollout: Rollout::Completed,
        failed_tasks: 0,
        reason: String::new(),
        deployed_ms: 1_000,
        created_ms: 1_000,
        tags: [(GRID_TAG.to_owned(), "trellis".to_owned())].into(),
        messages: Vec::new(),
    }
}

/// Answers calls until there are none, and returns the changes.
fn drive(engine: &mut Engine, answer: impl Fn(&What) -> Result<Answer, Fault>) -> Vec<What> {
    let mut changes = Vec::new();
    for second in 0..60 {
        let now = Duration::from_secs(second);
        let calls: Vec<(Ticket, Call)> = engine.next(now).calls;
        for (ticket, call) in calls {
            if call.what.category() == Category::ServiceModify {
                changes.push(call.what.clone());
            }
            let told = answer(&call.what);
            engine.answer(now, now, ticket, &call, told);
        }
    }
    changes
}

fn denied() -> Result<Answer, Fault> {
    Err(Fault { kind: Kind::Denied, message: "no right".into() })
}

fn names(names: &[&str]) -> Result<Answer, Fault> {
    Ok(Answer::Names(names.iter().map(|name| (*name).to_owned()).collect(), None))
}

fn told(what: &What, violet: impl Fn(&What) -> Result<Answer, Fault>) -> Result<Answer, Fault> {
    match what {
        What::ListServices { cluster, .. } | What::DescribeServices { cluster, .. }
            if cluster == "violet" =>
        {
            violet(what)
        }
        What::ListServices { .. } => names(&[]),
        What::DescribeServices { .. } => Ok(Answer::Services(BTreeMap::new())),
        What::FindDefinition { .. } => Ok(Answer::Definition(Some("arn:f".into()))),
        What::CreateService(_) => Ok(Answer::Service(present(1))),
        _ => Ok(Answer::Found(None)),
    }
}

#[test]
fn a_survey_that_failed_in_one_cluster_changes_nothing() {
    let mut engine = engine();
    let changes = drive(&mut engine, |what| told(what, |_| denied()));
    assert!(changes.is_empty(), "{changes:?}");
    let outcome = engine.next(Duration::from_secs(60)).outcome;
    assert!(matches!(&outcome, Some(Outcome::Unavailable(why)) if why.contains("violet")), "{outcome:?}");
}

#[test]
fn a_unit_whose_other_copy_cannot_be_looked_at_is_not_started() {
    let mut one = engine();
    let changes = drive(&mut one, |what| {
        told(what, |what| match what {
            What::ListServices { .. } => names(&[NAME]),
            _ => denied(),
        })
    });
    assert!(changes.is_empty(), "{changes:?}");
    let mut other = engine();
    assert_eq!(drive(&mut other, |what| told(what, |_| names(&[]))).len(), 1, "without a copy it is started");
}

#[test]
fn an_old_event_of_a_stopped_task_does_not_make_a_running_one_stopped() {
    let mut engine = engine();
    let violet = engine.add(1, NAME.into(), Role::Unit, Wish::Gone);
    engine.see(violet, Seen::Present(present(0)), Duration::ZERO);
    assert_eq!(engine.entries[violet].step, Step::Wait(Wait::Drain));
    let event = Event {
        account: "1".into(),
        region: "r".into(),
        cluster: "violet".into(),
        service: NAME.into(),
        at_ms: 2_000,
        what: Happened::Stopped("of an hour ago".into()),
    };
    engine.event(&event, Duration::ZERO);
    assert_eq!(engine.entries[violet].step, Step::Wait(Wait::Drain));
    assert!(engine.entries[violet].in_look, "it is looked at");
}
