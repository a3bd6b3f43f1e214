//! What CreateService and RegisterTaskDefinition refuse.

use serde_json::{Value, json};

use crate::client::{Client, OWNER, REGION, Refused, UNITS, definition, service};

/// Changes a good request, and expects a refusal that says this.
fn refused(change: impl FnOnce(&mut Value), code: &str, says: &str) {
    let mut client = Client::consistent();
    let name = client.definition("unit");
    let mut body = service("momentum", &name);
    change(&mut body);
    let Err(Refused::Error(status, got, message)) = client.ecs("CreateService", body) else {
        panic!("not refused: {says}");
    };
    assert_eq!((status, got.as_str()), (400, code), "{message}");
    assert!(message.contains(says), "{message}");
}

#[test]
fn a_good_service_is_made_as_it_was_asked_for() {
    let mut client = Client::consistent();
    let name = client.definition("unit");
    let answer = client.ecs("CreateService", service("momentum", &name)).unwrap();
    let made = &answer["service"];
    assert_eq!(made["serviceArn"], format!("arn:aws:ecs:{REGION}:{UNITS}:service/tulip/momentum"));
    assert_eq!(made["status"], "ACTIVE");
    assert_eq!(made["availabilityZoneRebalancing"], "DISABLED");
    assert_eq!(made["deploymentConfiguration"]["maximumPercent"], 100);
    assert_eq!(
        made["deploymentConfiguration"]["deploymentCircuitBreaker"]["thresholdConfiguration"]["value"],
        3
    );
    assert_eq!(made["capacityProviderStrategy"][0]["capacityProvider"], "FARGATE");
    assert!(made.get("launchType").is_none());
    assert_eq!(made["tags"], json!([{"key": "trellis:unit", "value": "momentum"}]));
    assert_eq!(client.service("momentum"), *made);
}

#[test]
fn one_task_at_most_and_rebalancing_exclude_each_other() {
    let says = "availabilityZoneRebalancing";
    refused(|body| body["availabilityZoneRebalancing"] = json!("ENABLED"), "InvalidParameterException", says);
    let absent = |body: &mut Value| drop(body.as_object_mut().unwrap().remove("availabilityZoneRebalancing"));
    refused(absent, "InvalidParameterException", says);
}

#[test]
fn a_strategy_and_a_launch_type_exclude_each_other() {
    refused(|body| body["launchType"] = json!("FARGATE"), "InvalidParameterException", "Specifying both");
}

#[test]
fn a_task_of_a_launch_type_names_no_provider() {
    let mut client = Client::consistent();
    let name = client.definition("unit");
    let mut body = service("momentum", &name);
    body.as_object_mut().unwrap().remove("capacityProviderStrategy");
    body["launchType"] = json!("FARGATE");
    client.ecs("CreateService", body).unwrap();
    client.ecs("CreateService", service("other", &name)).unwrap();
    client.wait(10);
    assert_eq!(client.service("momentum")["launchType"], "FARGATE");
    assert!(client.tasks("momentum")[0].get("capacityProviderName").is_none());
    assert_eq!(client.tasks("other")[0]["capacityProviderName"], "FARGATE");
}

#[test]
fn a_strategy_has_known_providers_of_one_kind() {
    let strategy = |names: &[&str]| {
        let items: Value = names.iter().map(|name| json!({"capacityProvider": name, "weight": 1})).collect();
        move |body: &mut Value| body["capacityProviderStrategy"] = items
    };
    refused(strategy(&["rose-general"]), "InvalidParameterException", "was not found");
    refused(strategy(&["FARGATE", "tulip-general"]), "InvalidParameterException", "mix");
}

#[test]
fn what_is_not_there_is_named() {
    refused(|body| body["cluster"] = json!("rose"), "ClusterNotFoundException", "Cluster not found");
    refused(|body| body["taskDefinition"] = json!("unit:7"), "ClientException", "TaskDefinition not found");
    let network = |body: &mut Value| drop(body.as_object_mut().unwrap().remove("networkConfiguration"));
    refused(network, "InvalidParameterException", "Network Configuration must be provided");
    let percent = |body: &mut Value| body["deploymentConfiguration"]["minimumHealthyPercent"] = json!(100);
    refused(percent, "InvalidParameterException", "block deployments");
}

#[test]
fn a_service_cannot_register_in_another_accounts_namespace() {
    let mut client = Client::consistent();
    let namespace = client.world.namespace(OWNER, REGION, "peony.trellis.internal");
    let registry = client.world.registry(OWNER, REGION, &namespace, "head").unwrap();
    client.world.share(OWNER, REGION, &namespace, UNITS);
    let name = client.definition("head");
    let mut body = service("head-1", &name);
    body["serviceRegistries"] = json!([{"registryArn": registry}]);
    let refused = client.ecs("CreateService", body.clone()).unwrap_err();
    assert_eq!(refused.code(), "InvalidParameterException");
    // in its own account it can
    client.account = OWNER.into();
    client.world.cluster(OWNER, REGION, "tulip", &[]);
    client.definition("head");
    client.ecs("CreateService", body).unwrap();
}

#[test]
fn the_same_token_makes_one_service_and_another_request_is_not_the_same() {
    let mut client = Client::consistent();
    let name = client.definition("unit");
    let body = service("momentum", &name);
    client.ecs("CreateService", body.clone()).unwrap();
    client.ecs("CreateService", body.clone()).unwrap();
    assert_eq!(client.world.counters().sum(|_, _, op| op == "CreateService").wasted, 1);
    let mut other = body.clone();
    other["desiredCount"] = json!(0);
    assert_eq!(client.ecs("CreateService", other).unwrap_err().code(), "InvalidParameterException");
    let mut other = body;
    other["clientToken"] = json!("another");
    assert_eq!(client.ecs("CreateService", other).unwrap_err().code(), "InvalidParameterException");
    assert_eq!(client.world.counters().sum(|_, _, op| op == "CreateService").refused, 2);
}

#[test]
fn a_name_is_free_when_the_old_service_has_drained() {
    let mut client = Client::consistent();
    let name = client.definition("unit");
    let body = service("momentum", &name);
    client.ecs("CreateService", body.clone()).unwrap();
    client.wait(200);
    let asked = json!({"cluster": "tulip", "service": "momentum"});
    let refused = client.ecs("DeleteService", asked.clone()).unwrap_err();
    assert_eq!(refused.code(), "InvalidParameterException");
    let mut forced = asked;
    forced["force"] = json!(true);
    assert_eq!(client.ecs("DeleteService", forced).unwrap()["service"]["status"], "DRAINING");
    assert_eq!(client.ecs("ListServices", json!({"cluster": "tulip"})).unwrap()["serviceArns"], json!([]));
    let again = client.ecs("CreateService", body.clone()).unwrap_err();
    assert!(matches!(&again, Refused::Error(400, _, text) if text.contains("Draining")), "{again:?}");
    client.wait(120);
    assert_eq!(client.service("momentum")["status"], "INACTIVE");
    client.ecs("CreateService", body).unwrap();
    assert_eq!(client.service("momentum")["status"], "ACTIVE");
}

#[test]
fn a_cluster_has_its_quota_of_services() {
    let mut client = Client::consistent();
    let quotas = trellis_aws_fake::Quotas { services: 2, ..Default::default() };
    client.world.set_quotas(UNITS, REGION, quotas);
    let name = client.definition("unit");
    client.ecs("CreateService", service("a", &name)).unwrap();
    client.ecs("CreateService", service("b", &name)).unwrap();
    let refused = client.ecs("CreateService", service("c", &name)).unwrap_err();
    assert!(
        matches!(&refused, Refused::Error(400, _, text) if text.contains("services per cluster")),
        "{refused:?}"
    );
}

#[test]
fn fargate_has_its_sizes() {
    let mut client = Client::consistent();
    for (cpu, memory, good) in [
        ("256", "512", true),
        ("256", "2048", true),
        ("256", "3072", false),
        ("1 vCPU", "2 GB", true),
        ("1024", "1024", false),
        ("1024", "65536", false),
        ("8192", "20480", true),
        ("8192", "18432", false),
        ("16384", "122880", true),
        ("16384", "126976", false),
        ("32768", "122880", false),
    ] {
        let mut body = definition("unit");
        body["cpu"] = json!(cpu);
        body["memory"] = json!(memory);
        let answer = client.ecs("RegisterTaskDefinition", body);
        assert_eq!(answer.is_ok(), good, "{cpu} {memory} {answer:?}");
    }
    // without Fargate, any size
    let mut body = definition("large");
    body["requiresCompatibilities"] = json!(["MANAGED_INSTANCES"]);
    body["cpu"] = json!("65536");
    body["memory"] = json!("524288");
    client.wait(30);
    client.ecs("RegisterTaskDefinition", body).unwrap();
    let refused = client.ecs("CreateService", service("large", "large")).unwrap_err();
    assert!(
        matches!(&refused, Refused::Error(_, _, text) if text.contains("launch_type FARGATE")),
        "{refused:?}"
    );
}

#[test]
fn what_the_fake_does_not_do_it_says() {
    let mut client = Client::consistent();
    let name = client.definition("unit");
    let mut body = service("momentum", &name);
    body["loadBalancers"] = json!([{"targetGroupArn": "x"}]);
    assert_eq!(client.ecs("CreateService", body).unwrap_err().code(), "NotFaked");
    assert_eq!(client.ecs("CreateTaskSet", json!({})).unwrap_err().code(), "NotFaked");
}
