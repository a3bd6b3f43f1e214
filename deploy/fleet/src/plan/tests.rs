use std::collections::BTreeSet;

use serde_json::json;

use super::*;
use crate::{
    desired::{Desired, Unit, tests::example},
    ledger::Ledger,
    model::Role,
};

fn desired() -> Desired {
    Desired::parse(&example()).unwrap()
}

#[test]
fn the_example_is_a_plan_that_can_be_applied() {
    let plan = plan(&desired(), &Ledger::default());
    assert!(plan.is_applicable(), "{plan}");
    assert_eq!(plan.services.len(), 8);
    assert!(plan.changes.iter().all(|change| change.kind == ChangeKind::Add));
    let of = |name: &str| plan.services.iter().find(|service| service.name == name).unwrap();
    assert_eq!(of("trellis-head-0").cluster, "peony");
    assert_eq!(of("trellis-head-0").registry.as_deref(), Some("head"));
    assert_eq!((of("trellis-unit-mom_12_1").desired, of("trellis-unit-combo").desired), (0, 1));
    assert_eq!(of("trellis-unit-combo").provider, "FARGATE_SPOT");
    assert_eq!(of("trellis-unit-risk").provider, "tulip-general");
    assert_eq!(of("trellis-unit-risk").tags["cost-center"], "research");
    assert!(plan.services.iter().all(|service| plan.definitions.contains_key(&service.definition)));
    assert!(plan.services.iter().all(|service| service.family.ends_with(&service.definition)));
}

#[test]
fn a_plan_that_was_applied_changes_nothing() {
    let first = plan(&desired(), &Ledger::default());
    let second = plan(&desired(), &first.ledger);
    assert_eq!(second.changes, []);
    assert_eq!(second.price.change, 0.0);
    assert_eq!(second.services, first.services);
}

#[test]
fn each_kind_of_change_is_told() {
    let first = plan(&desired(), &Ledger::default());
    let mut files = example();
    let combo = files.remove("units/combo.json").unwrap();
    files.insert("units/new.json".to_owned(), combo.replace("\"combo\"", "\"new\""));
    let other = files["units/mom_12_1.json"].replace("1795931000000000000", "1795931001000000000");
    files.insert("units/mom_12_1.json".to_owned(), other);
    let grid = files["grid.json"].replace(
        r#"{"flower": "tulip", "account": "222222222222", "providers": ["general"]}"#,
        r#"{"flower": "tulip", "account": "222222222222", "providers": ["general"], "drain": true},
           {"flower": "violet", "account": "222222222222", "providers": ["general"]}"#,
    );
    let drained = Desired::parse(&files).unwrap();
    let changed = plan(&drained, &first.ledger);
    let kinds: Vec<_> = changed.changes.iter().map(|change| (change.service.as_str(), change.kind)).collect();
    assert_eq!(
        kinds,
        [
            ("trellis-unit-combo", ChangeKind::Remove),
            ("trellis-unit-mom_12_1", ChangeKind::Change),
            ("trellis-unit-new", ChangeKind::Add),
        ]
    );
    files.insert("grid.json".to_owned(), grid);
    let moved = plan(&Desired::parse(&files).unwrap(), &first.ledger);
    let risk = moved.changes.iter().find(|change| change.service == "trellis-unit-risk").unwrap();
    assert_eq!(risk.kind, ChangeKind::Move);
    assert_eq!(risk.to.as_ref().unwrap().flower, "violet");
    assert!(risk.why.contains("drained"), "{}", risk.why);
}

/// A unit's definition does not name its bundle.
#[test]
fn a_unit_that_was_deployed_anew_must_have_a_new_deployment() {
    let first = plan(&desired(), &Ledger::default());
    let of = |plan: &Plan, name: &str| {
        let found = plan.services.iter().find(|service| service.name == name).unwrap();
        (found.definition.clone(), found.deployed_after_ms)
    };
    let mut files = example();
    let anew = files["units/risk.json"].replace("1795931000000000000", "1795931001000000000");
    files.insert("units/risk.json".to_owned(), anew);
    let second = plan(&Desired::parse(&files).unwrap(), &first.ledger);
    let (definition, after) = of(&first, "trellis-unit-risk");
    assert_eq!(after, Some(1_795_931_000_000));
    assert_eq!(of(&second, "trellis-unit-risk"), (definition, Some(1_795_931_001_000)));
    assert_eq!(second.changes.len(), 1);
    assert!(second.changes[0].why.contains("deployed anew"));
    assert_eq!(of(&second, "trellis-head-0").1, None);
}

#[test]
fn shards_in_several_namespaces_are_refused_because_a_head_finds_one() {
    let mut files = example();
    files.insert("shards.json".to_owned(), r#"{"count": 801}"#.to_owned());
    let grid = files["grid.json"].replace("\"fargate_vcpu\": 100,", "\"fargate_vcpu\": 100000,");
    files.insert("grid.json".to_owned(), grid);
    let plan = plan(&Desired::parse(&files).unwrap(), &Ledger::default());
    assert_eq!(plan.openings.len(), 1, "a name of Cloud Map takes 1,000, filled to 80 percent");
    assert!(plan.refused[0].why.contains("2 namespaces"), "{plan}");
    assert!(!plan.is_applicable());
}

#[test]
fn an_explanation_says_where_why_and_what_binds() {
    let desired = desired();
    let first = plan(&desired, &Ledger::default());
    let told = explain(&desired, &first.ledger, "trellis-unit-risk").unwrap().to_string();
    assert!(told.contains("in tulip of 222222222222: the ledger has it there"), "{told}");
    assert!(told.contains("quotas.ec2_vcpu: 32.0 of 51.0  one more does not fit"), "{told}");
    let new = explain(&desired, &Ledger::default(), "trellis-head-0").unwrap().to_string();
    assert!(new.contains("in peony of 111111111111: it is new"), "{new}");
    assert_eq!(explain(&desired, &first.ledger, "trellis-unit-none"), None);
}

#[test]
fn a_plan_with_a_refusal_names_the_increase_and_cannot_be_applied() {
    let mut files = example();
    let risk = files["units/risk.json"].clone();
    files.insert(
        "units/more.json".to_owned(),
        risk.replace("\"risk\"", "\"more\"").replace("risk.py", "more.py"),
    );
    let desired = Desired::parse(&files).unwrap();
    let plan = plan(&desired, &Ledger::default());
    let told = plan.to_string();
    assert!(
        told.contains("trellis-unit-risk: EC2: Running On-Demand Standard instances (vCPUs) of 222222222222"),
        "{told}"
    );
    assert!(told.contains("64 -> 100, then change quotas.ec2_vcpu"), "{told}");
    assert!(told.contains("cannot be applied"), "{told}");
    let fits_nowhere = explain(&desired, &Ledger::default(), "trellis-unit-risk").unwrap();
    assert!(fits_nowhere.why.contains("quotas.ec2_vcpu"), "{fits_nowhere}");
}

#[test]
fn the_price_of_a_change_is_the_difference() {
    let first = plan(&desired(), &Ledger::default());
    let mut files = example();
    files.remove("units/risk.json");
    let without = plan(&Desired::parse(&files).unwrap(), &first.ledger);
    // 32 vCPUs of a managed instance
    let risk = 32.0 * 0.0535 * 730.0;
    assert!((without.price.change + risk).abs() < 0.01, "{:?}", without.price.change);
    assert!((first.price.after.by_provider["general"] - risk).abs() < 0.01);
    let sum: f64 = first.price.after.by_account.values().sum();
    assert!((sum - first.price.after.total).abs() < 0.01);
}

#[test]
fn a_task_that_exists_for_its_sessions_costs_those_hours() {
    let month = |window: &str| {
        let mut files = example();
        files.insert(
            "units/mom_12_1.json".to_owned(),
            files["units/mom_12_1.json"].replace(",\n  \"window\": \"1h\"", window),
        );
        plan(&Desired::parse(&files).unwrap(), &Ledger::default()).price.after.by_provider["FARGATE"]
    };
    let always = month("");
    let hour = month(",\n  \"window\": \"1h\"");
    let hourly = 0.03238 + 4.0 * 0.00356;
    // 502 sessions in two years, an hour and three minutes each
    let hours = 502.0 / 730.0 * (365.25 / 12.0) * 1.05;
    assert!((always - hour - hourly * (730.0 - hours)).abs() < 0.01, "{always} {hour}");
}

/// 40,000 units, with the sizes that the example names: how many task definitions, calls and minutes it takes.
#[test]
fn the_targets_units_need_some_dozens_of_definitions() {
    let mut desired = desired();
    let small = desired.units["mom_12_1"].clone();
    let cheap = desired.units["combo"].clone();
    desired.units.clear();
    for i in 0..40_000 {
        let of = if i % 4 == 0 { &cheap } else { &small };
        let unit = Unit {
            unit: format!("u{i}"),
            schedule: crate::desired::Schedule::Manual,
            window_ns: None,
            ..of.clone()
        };
        desired.units.insert(unit.unit.clone(), unit);
    }
    desired.grid.address_units = 64_000;
    let account = desired.grid.accounts.pop().unwrap();
    desired.grid.flowers.pop();
    for i in 0..4 {
        let mut account = account.clone();
        account.place.account = format!("22222222222{i}");
        account.quotas.fargate_vcpu = 12_500;
        account.quotas.fargate_spot_vcpu = 12_500;
        account.quotas.interfaces = 15_000;
        desired.grid.accounts.push(account);
    }
    let plan = plan(&desired, &Ledger::default());
    assert_eq!(plan.refused, []);
    assert_eq!((plan.services.len(), plan.openings.len()), (40_005, 12));
    let of_units: BTreeSet<_> = plan
        .services
        .iter()
        .filter(|service| service.role == Role::Unit)
        .map(|service| &service.definition)
        .collect();
    assert_eq!(of_units.len(), 24, "two sizes in each of twelve clusters");
    for i in 0..4 {
        let calls = &plan.calls[&format!("22222222222{i}")];
        assert!(calls.definitions <= 6 && (9_700..10_300).contains(&calls.services), "{calls:?}");
        assert!((40.0..43.0).contains(&calls.minutes), "4 calls a second: {calls:?}");
    }
}

#[test]
fn some_partitions_run_again_as_tasks_of_their_own() {
    let mut files = example();
    let unit = files["units/mom_12_1.json"]
        .replace("\"window\"", "\"partitions\": [\"us\", \"eu\", \"asia\"], \"window\"");
    files.insert("units/mom_12_1.json".to_owned(), unit);
    let desired = Desired::parse(&files).unwrap();
    let plan = plan(&desired, &Ledger::default());
    let sessions = ["2026-11-27".parse().unwrap(), "2026-11-30".parse().unwrap()];
    let again = |partitions: &[&str], attempt| {
        let partitions: Vec<_> = partitions.iter().map(|part| (*part).to_owned()).collect();
        super::again(&desired, &plan, "mom_12_1", &sessions, &partitions, attempt)
    };
    assert_eq!(again(&[], 0).unwrap().len(), 3);
    let runs = again(&["us", "asia"], 0).unwrap();
    let names: Vec<_> = runs.iter().map(|run| run.service.as_str()).collect();
    assert_eq!(names, ["trellis-unit-mom_12_1-PART-us", "trellis-unit-mom_12_1-PART-asia"]);
    let variables = &runs[0].body["overrides"]["containerOverrides"][0]["environment"];
    assert_eq!(variables[0], json!({"name": "TRELLIS_SESSIONS", "value": "2026-11-27,2026-11-30"}));
    assert_eq!(runs[0].body["count"], 1);
    assert!(
        runs[0].body["networkConfiguration"]["awsvpcConfiguration"]["subnets"].as_array().unwrap().len() == 3
    );
    assert_eq!(again(&["us"], 0).unwrap()[0], runs[0], "the same wish is the same call");
    assert_ne!(again(&["us"], 1).unwrap()[0].body["clientToken"], runs[0].body["clientToken"]);
    assert!(again(&["mars"], 0).unwrap_err().contains("us, eu, asia"));
}
