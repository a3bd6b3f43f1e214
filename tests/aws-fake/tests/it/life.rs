//! Tasks and deployments in time.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};
use trellis_aws_fake::{Failing, Settings};

use crate::client::{Client, REGION, UNITS, service};

#[test]
fn a_task_goes_through_its_states_and_the_service_becomes_steady() {
    let mut client = Client::consistent();
    let name = client.definition("unit");
    client.ecs("CreateService", service("momentum", &name)).unwrap();
    let mut seen = Vec::new();
    for _ in 0..180 {
        client.wait(1);
        let status =
            client.tasks("momentum").first().map(|task| task["lastStatus"].as_str().unwrap().to_owned());
        if let Some(status) = status
            && seen.last() != Some(&status)
        {
            seen.push(status);
        }
    }
    assert_eq!(seen, ["PROVISIONING", "PENDING", "RUNNING"]);
    let made = client.service("momentum");
    assert_eq!(made["deployments"][0]["rolloutState"], "COMPLETED");
    assert_eq!((&made["runningCount"], &made["pendingCount"]), (&json!(1), &json!(0)));
    assert!(made["events"][0]["message"].as_str().unwrap().contains("has reached a steady state"));
}

#[test]
fn a_read_may_be_behind_a_write_but_not_for_long() {
    let lag = Duration::from_secs(5)..Duration::from_secs(6);
    let mut client = Client::new(Settings { lag, ..Settings::default() });
    let name = client.definition("unit");
    client.ecs("CreateService", service("momentum", &name)).unwrap();
    let asked = json!({"cluster": "tulip", "services": ["momentum"]});
    let answer = client.ecs("DescribeServices", asked.clone()).unwrap();
    assert_eq!(answer["failures"][0]["reason"], "MISSING");
    assert_eq!(client.ecs("ListServices", json!({"cluster": "tulip"})).unwrap()["serviceArns"], json!([]));
    client.wait(6);
    assert_eq!(client.service("momentum")["desiredCount"], 1);
    client
        .ecs("UpdateService", json!({"cluster": "tulip", "service": "momentum", "desiredCount": 0}))
        .unwrap();
    assert_eq!(client.service("momentum")["desiredCount"], 1);
    client.wait(6);
    assert_eq!(client.service("momentum")["desiredCount"], 0);
}

#[test]
fn three_failures_open_the_circuit_breaker() {
    let mut client = Client::consistent();
    let name = client.definition("unit");
    client.world.fail_tasks("unit", Failing::NoImage, 1.0);
    client.ecs("CreateService", service("momentum", &name)).unwrap();
    client.wait(1200);
    let made = client.service("momentum");
    assert_eq!(made["deployments"][0]["rolloutState"], "FAILED");
    assert_eq!(made["deployments"][0]["failedTasks"], 3);
    assert_eq!(made["runningCount"], 0);
    // a new deployment of what works runs
    client.world.fail_tasks("unit", Failing::NoImage, 0.0);
    let force = json!({"cluster": "tulip", "service": "momentum", "forceNewDeployment": true});
    client.ecs("UpdateService", force).unwrap();
    client.wait(200);
    assert_eq!(client.service("momentum")["deployments"][0]["rolloutState"], "COMPLETED");
}

#[test]
fn a_failed_deployment_rolls_back_when_asked_to() {
    let mut client = Client::consistent();
    let good = client.definition("unit");
    let mut body = service("momentum", &good);
    body["deploymentConfiguration"]["deploymentCircuitBreaker"]["rollback"] = json!(true);
    client.ecs("CreateService", body).unwrap();
    client.wait(200);
    let bad = client.definition("broken");
    client.world.fail_tasks("broken", Failing::Exits(3), 1.0);
    let update = json!({"cluster": "tulip", "service": "momentum", "taskDefinition": bad});
    client.ecs("UpdateService", update).unwrap();
    client.wait(1500);
    let made = client.service("momentum");
    assert!(made["taskDefinition"].as_str().unwrap().ends_with(&good), "{made}");
    assert_eq!(made["deployments"][0]["rolloutState"], "COMPLETED");
    assert_eq!(made["runningCount"], 1);
}

#[test]
fn a_task_that_may_not_start_waits_for_its_quota() {
    let mut client = Client::consistent();
    let quotas = trellis_aws_fake::Quotas { fargate_vcpu: 1.0, ..Default::default() };
    client.world.set_quotas(UNITS, REGION, quotas);
    let name = client.definition("unit");
    client.ecs("CreateService", service("first", &name)).unwrap();
    client.wait(10);
    client.ecs("CreateService", service("second", &name)).unwrap();
    client.wait(300);
    let second = client.service("second");
    assert_eq!(second["runningCount"], 0);
    assert!(second["events"][0]["message"].as_str().unwrap().contains("limit on the number of vCPUs"));
    client.ecs("DeleteService", json!({"cluster": "tulip", "service": "first", "force": true})).unwrap();
    client.wait(1200);
    assert_eq!(client.service("second")["runningCount"], 1);
}

#[test]
fn an_interrupted_task_is_replaced() {
    let mut client = Client::consistent();
    let name = client.definition("unit");
    let mut body = service("momentum", &name);
    body["capacityProviderStrategy"][0]["capacityProvider"] = json!("FARGATE_SPOT");
    client.ecs("CreateService", body).unwrap();
    client.wait(200);
    let before = client.tasks("momentum")[0]["taskArn"].clone();
    assert!(client.world.interrupt(UNITS, REGION, "tulip", "momentum"));
    let answer = client.ecs("DescribeTasks", json!({"cluster": "tulip", "tasks": [before]})).unwrap();
    assert_eq!(answer["tasks"][0]["stopCode"], "SpotInterruption");
    client.wait(200);
    let after = &client.tasks("momentum")[0];
    assert_ne!(after["taskArn"], before);
    assert_eq!(after["lastStatus"], "RUNNING");
}

#[test]
fn the_same_seed_is_the_same_world() {
    let run = |seed| {
        let mut client = Client::new(Settings { seed, ..Settings::default() });
        let name = client.definition("unit");
        for i in 0..20 {
            client.ecs("CreateService", service(&format!("unit-{i}"), &name)).unwrap();
        }
        client.wait(60);
        (0..20).map(|i| client.service(&format!("unit-{i}"))).collect::<Vec<Value>>()
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    /// Whatever is done to services with 0/100, no two tasks of one are in a state in which their processes may run.
    #[test]
    fn a_service_of_one_task_never_runs_two(
        seed in any::<u64>(),
        deeds in prop::collection::vec((0u8..7, 0usize..3, 1u64..120), 1..40),
    ) {
        let mut client = Client::new(Settings { seed, ..Settings::default() });
        let definitions = [client.definition("unit"), client.definition("unit"), client.definition("bad")];
        client.world.fail_tasks("bad", Failing::Exits(1), 0.7);
        for (deed, which, seconds) in deeds {
            let name = format!("unit-{which}");
            let update = |body: Value| {
                let mut all = json!({"cluster": "tulip", "service": name});
                all.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
                all
            };
            // calls may be refused, as the state of the service makes it
            let _ = match deed {
                0 | 1 => client.ecs("CreateService", service(&name, &definitions[0])),
                2 => client.ecs("UpdateService", update(json!({"taskDefinition": definitions[seconds as usize % 3]}))),
                3 => client.ecs("UpdateService", update(json!({"forceNewDeployment": true}))),
                4 => client.ecs("UpdateService", update(json!({"desiredCount": seconds % 2}))),
                5 => client.ecs("DeleteService", update(json!({"force": true}))),
                _ => {
                    client.world.interrupt(UNITS, REGION, "tulip", &name);
                    Ok(json!({}))
                }
            };
            for _ in 0..seconds {
                client.now += Duration::from_secs(1);
                client.world.advance(client.now);
                let mut running: BTreeMap<String, usize> = BTreeMap::new();
                for (service, status) in client.world.tasks(UNITS, REGION, "tulip") {
                    if ["RUNNING", "DEACTIVATING"].contains(&status) {
                        *running.entry(service).or_default() += 1;
                    }
                }
                prop_assert!(running.values().all(|count| *count == 1), "{running:?}");
            }
        }
    }
}
