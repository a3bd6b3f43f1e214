//! SQS, STS, Cloud Map, rates and faults.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use trellis_aws_fake::{Category, Settings};

use crate::client::{Client, OWNER, REGION, Refused, UNITS, between, service};

const QUEUE: &str = "https://sqs.eu-central-1.amazonaws.com/222222222222/trellis-tulip-events";

/// Receives and deletes until nothing comes. Returns the events.
fn drain(client: &mut Client) -> Vec<Value> {
    let mut events = Vec::new();
    loop {
        let got =
            client.sqs("ReceiveMessage", json!({"QueueUrl": QUEUE, "MaxNumberOfMessages": 10})).unwrap();
        let Some(messages) = got["Messages"].as_array() else { return events };
        let entries: Vec<Value> = messages
            .iter()
            .enumerate()
            .map(|(i, each)| json!({"Id": i.to_string(), "ReceiptHandle": each["ReceiptHandle"]}))
            .collect();
        let deleted =
            client.sqs("DeleteMessageBatch", json!({"QueueUrl": QUEUE, "Entries": entries})).unwrap();
        assert_eq!(deleted["Successful"].as_array().unwrap().len(), messages.len());
        events.extend(
            messages.iter().map(|each| serde_json::from_str(each["Body"].as_str().unwrap()).unwrap()),
        );
    }
}

fn names(events: &[Value]) -> Vec<String> {
    let name = |event: &Value| {
        let detail = &event["detail"];
        detail["eventName"].as_str().or(detail["lastStatus"].as_str()).unwrap().to_owned()
    };
    events.iter().map(name).collect()
}

#[test]
fn events_of_a_new_service_come_to_the_queue_of_its_cluster() {
    let mut client = Client::consistent();
    let url = client.sqs("GetQueueUrl", json!({"QueueName": "trellis-tulip-events"})).unwrap();
    assert_eq!(url["QueueUrl"], QUEUE);
    let name = client.definition("unit");
    client.ecs("CreateService", service("momentum", &name)).unwrap();
    client.wait(200);
    let events = drain(&mut client);
    let mut told = names(&events);
    told.sort();
    let all = [
        "PENDING",
        "PROVISIONING",
        "RUNNING",
        "SERVICE_DEPLOYMENT_COMPLETED",
        "SERVICE_DEPLOYMENT_IN_PROGRESS",
        "SERVICE_STEADY_STATE",
    ];
    assert_eq!(told, all);
    for event in &events {
        assert_eq!(event["account"], UNITS);
        assert_eq!(event["source"], "aws.ecs");
        match event["detail-type"].as_str().unwrap() {
            "ECS Task State Change" => assert_eq!(event["detail"]["group"], "service:momentum"),
            "ECS Deployment State Change" | "ECS Service Action" => {
                assert_eq!(event["resources"][0], client.service("momentum")["serviceArn"]);
            }
            other => panic!("{other}"),
        }
    }
}

#[test]
fn a_message_that_is_not_deleted_comes_again() {
    let mut client = Client::consistent();
    let name = client.definition("unit");
    client.ecs("CreateService", service("momentum", &name)).unwrap();
    client.wait(5);
    let ask = json!({"QueueUrl": QUEUE, "MaxNumberOfMessages": 10, "VisibilityTimeout": 30, "MessageSystemAttributeNames": ["All"]});
    let first = client.sqs("ReceiveMessage", ask.clone()).unwrap();
    let message = &first["Messages"][0];
    assert_eq!(message["Attributes"]["ApproximateReceiveCount"], "1");
    let id = message["MessageId"].clone();
    let has = |answer: &Value| {
        answer["Messages"].as_array().into_iter().flatten().find(|each| each["MessageId"] == id).cloned()
    };
    client.wait(20);
    assert_eq!(has(&client.sqs("ReceiveMessage", ask.clone()).unwrap()), None);
    client.wait(10);
    let again = has(&client.sqs("ReceiveMessage", ask).unwrap()).unwrap();
    assert_eq!(again["Attributes"]["ApproximateReceiveCount"], "2");
    assert_eq!(again["Body"], message["Body"]);
}

#[test]
fn events_are_lost_and_doubled_on_request() {
    let count = |set: &dyn Fn(&mut Client)| {
        let mut client = Client::consistent();
        set(&mut client);
        let name = client.definition("unit");
        for i in 0..30 {
            client.ecs("CreateService", service(&format!("unit-{i}"), &name)).unwrap();
        }
        client.wait(200);
        drain(&mut client).len()
    };
    let all = count(&|_| {});
    assert_eq!(all, 30 * 6);
    let half = count(&|client| client.world.lose_events(0.5));
    assert!((60..120).contains(&half), "{half}");
    let twice = count(&|client| client.world.double_events(1.0));
    assert_eq!(twice, 2 * all);
}

#[test]
fn a_queue_is_not_read_from_another_account() {
    let mut client = Client::consistent();
    client.account = OWNER.into();
    assert_eq!(
        client.sqs("ReceiveMessage", json!({"QueueUrl": QUEUE})).unwrap_err().code(),
        "com.amazonaws.sqs#AccessDenied"
    );
    let ask = json!({"QueueName": "trellis-tulip-events"});
    assert_eq!(client.sqs("GetQueueUrl", ask).unwrap_err().code(), "com.amazonaws.sqs#QueueDoesNotExist");
}

#[test]
fn an_assumed_role_acts_in_its_account() {
    let mut client = Client::consistent();
    client.account = OWNER.into();
    let role = "Action=AssumeRole&RoleSessionName=fleet&RoleArn=arn%3Aaws%3Aiam%3A%3A222222222222%3Arole%2Ftrellis%2Fdeployer";
    let answer = client.sts(role).unwrap();
    let key = between(&answer, "<AccessKeyId>", "</AccessKeyId>");
    assert_eq!((key.len(), &key[..16]), (20, "ASIA222222222222"));
    assert!(answer.contains("assumed-role/deployer/fleet"), "{answer}");
    client.account = UNITS.into();
    let me = client.sts("Action=GetCallerIdentity").unwrap();
    assert_eq!(between(&me, "<Account>", "</Account>"), UNITS);
    let refused = client.sts("Action=AssumeRole&RoleSessionName=fleet&RoleArn=deployer").unwrap_err();
    assert_eq!(refused.code(), "ValidationError");
}

#[test]
fn keys_of_an_assumed_role_end() {
    let mut client = Client::consistent();
    let role = "Action=AssumeRole&RoleSessionName=fleet&DurationSeconds=900&RoleArn=arn:aws:iam::222222222222:role/a";
    client.key = between(&client.sts(role).unwrap(), "<AccessKeyId>", "</AccessKeyId>");
    client.wait(899);
    client.ecs("ListClusters", json!({})).unwrap();
    client.wait(1);
    assert_eq!(client.ecs("ListClusters", json!({})).unwrap_err().code(), "ExpiredTokenException");
    assert_eq!(client.sts("Action=GetCallerIdentity").unwrap_err().code(), "ExpiredToken");
}

#[test]
fn a_category_shares_its_bucket_and_gets_tokens_back() {
    let mut client = Client::consistent();
    let list = |client: &mut Client| client.ecs("ListServices", json!({"cluster": "tulip"}));
    let describe =
        |client: &mut Client| client.ecs("DescribeServices", json!({"cluster": "tulip", "services": ["a"]}));
    for _ in 0..50 {
        list(&mut client).unwrap();
        describe(&mut client).unwrap();
    }
    let refused = list(&mut client).unwrap_err();
    assert_eq!(refused, Refused::Error(400, "ThrottlingException".into(), "Rate exceeded".into()));
    assert_eq!(describe(&mut client).unwrap_err(), refused);
    // another category, and another account, have their own
    client.ecs("ListClusters", json!({})).unwrap();
    client.account = OWNER.into();
    client.world.cluster(OWNER, REGION, "tulip", &[]);
    list(&mut client).unwrap();
    client.account = UNITS.into();
    client.wait(1);
    for _ in 0..20 {
        list(&mut client).unwrap();
    }
    assert_eq!(list(&mut client).unwrap_err(), refused);
    let reads = client
        .world
        .counters()
        .sum(|account, category, _| account == UNITS && category == Category::ServiceRead);
    assert_eq!((reads.calls, reads.throttled), (123, 3));
}

#[test]
fn an_account_is_throttled_harder_on_request() {
    let mut client = Client::consistent();
    client.world.throttle(Some(UNITS), 0.1);
    let good = (0..100).filter(|_| client.ecs("ListServices", json!({"cluster": "tulip"})).is_ok()).count();
    assert_eq!(good, 10);
}

#[test]
fn an_answer_is_lost_after_the_call_was_applied() {
    let mut client = Client::consistent();
    let name = client.definition("unit");
    client.world.lose_next_answer("CreateService");
    assert_eq!(client.ecs("CreateService", service("momentum", &name)).unwrap_err(), Refused::Lost);
    assert_eq!(client.service("momentum")["status"], "ACTIVE");
    // the same request again is answered, because of its token
    client.ecs("CreateService", service("momentum", &name)).unwrap();
}

#[test]
fn nothing_answers_while_it_is_away() {
    let mut client = Client::consistent();
    client.world.go_away(Some(UNITS), Duration::from_secs(60));
    assert_eq!(client.ecs("ListClusters", json!({})).unwrap_err(), Refused::Lost);
    client.wait(60);
    client.ecs("ListClusters", json!({})).unwrap();
}

#[test]
fn drift_by_hand_is_seen() {
    let mut client = Client::consistent();
    let name = client.definition("unit");
    for name_of in ["a", "b", "c"] {
        client.ecs("CreateService", service(name_of, &name)).unwrap();
    }
    assert!(client.world.scale_by_hand(UNITS, REGION, "tulip", "a", 0));
    assert!(client.world.retag_by_hand(UNITS, REGION, "tulip", "b", "trellis:unit", Some("other")));
    assert!(client.world.delete_by_hand(UNITS, REGION, "tulip", "c"));
    assert!(!client.world.delete_by_hand(UNITS, REGION, "tulip", "d"));
    assert_eq!(client.service("a")["desiredCount"], 0);
    assert_eq!(client.service("b")["tags"][0]["value"], "other");
    assert_eq!(client.service("c")["status"], "DRAINING");
}

/// A core cluster with a namespace, and heads in it.
fn heads(count: usize) -> Client {
    let mut client = Client::new(Settings { lag: Duration::ZERO..Duration::ZERO, ..Settings::default() });
    client.account = OWNER.into();
    client.world.cluster(OWNER, REGION, "tulip", &[]);
    let namespace = client.world.namespace(OWNER, REGION, "peony.trellis.internal");
    let registry = client.world.registry(OWNER, REGION, &namespace, "head").unwrap();
    let mut definition = crate::client::definition("head");
    definition["containerDefinitions"][0]["healthCheck"] = json!({"command": ["CMD", "probe"]});
    client.ecs("RegisterTaskDefinition", definition).unwrap();
    for i in 0..count {
        let mut body = service(&format!("head-{i}"), "head");
        body["serviceRegistries"] = json!([{"registryArn": registry}]);
        client.ecs("CreateService", body).unwrap();
    }
    client
}

fn discover(client: &mut Client, more: Value) -> Result<Value, Refused> {
    let mut body = json!({"NamespaceName": "peony.trellis.internal", "ServiceName": "head"});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    client.map("DiscoverInstances", body)
}

#[test]
fn tasks_are_found_by_name_when_they_are_healthy_and_not_before() {
    let mut client = heads(1);
    let mut seen = Vec::new();
    for _ in 0..240 {
        client.wait(1);
        let all = discover(&mut client, json!({"HealthStatus": "ALL"})).unwrap();
        let healthy = discover(&mut client, json!({})).unwrap();
        let count = |answer: &Value| answer["Instances"].as_array().unwrap().len();
        let state = (count(&all), count(&healthy));
        if seen.last() != Some(&state) {
            seen.push(state);
        }
    }
    assert_eq!(seen, [(0, 0), (1, 0), (1, 1)]);
    let found = discover(&mut client, json!({})).unwrap()["Instances"][0].clone();
    let task = client.tasks("head-0")[0].clone();
    assert_eq!(found["Attributes"]["ECS_SERVICE_NAME"], "head-0");
    assert_eq!(
        found["Attributes"]["AWS_INSTANCE_IPV4"],
        task["containers"][0]["networkInterfaces"][0]["privateIpv4Address"]
    );
    // and no longer when they are gone
    client.ecs("DeleteService", json!({"cluster": "tulip", "service": "head-0", "force": true})).unwrap();
    client.wait(120);
    assert_eq!(discover(&mut client, json!({"HealthStatus": "ALL"})).unwrap()["Instances"], json!([]));
}

#[test]
fn dns_answers_eight_and_the_api_all() {
    let mut client = heads(20);
    client.wait(300);
    assert_eq!(discover(&mut client, json!({})).unwrap()["Instances"].as_array().unwrap().len(), 20);
    assert_eq!(
        discover(&mut client, json!({"MaxResults": 3})).unwrap()["Instances"].as_array().unwrap().len(),
        3
    );
    let mut all = BTreeSet::new();
    for _ in 0..40 {
        let answer = client.world.dns(OWNER, REGION, "peony.trellis.internal", "head");
        assert_eq!(answer.iter().collect::<BTreeSet<_>>().len(), 8);
        all.extend(answer);
    }
    assert_eq!(all.len(), 20);
}

#[test]
fn a_revision_changes_when_the_answer_does() {
    let mut client = heads(1);
    let body = json!({"NamespaceName": "peony.trellis.internal", "ServiceName": "head"});
    let mut before = (Value::Null, BTreeSet::new());
    let mut changes = 0;
    for _ in 0..240 {
        client.wait(1);
        let revision =
            client.map("DiscoverInstancesRevision", body.clone()).unwrap()["InstancesRevision"].clone();
        let answer = discover(&mut client, json!({"HealthStatus": "ALL"})).unwrap();
        let states: BTreeSet<String> = answer["Instances"]
            .as_array()
            .unwrap()
            .iter()
            .map(|each| each["HealthStatus"].to_string())
            .collect();
        if states != before.1 {
            assert_ne!(revision, before.0);
            changes += 1;
        }
        before = (revision, states);
    }
    assert_eq!(changes, 2);
}

#[test]
fn a_namespace_of_another_account_is_found_when_it_is_shared() {
    let mut client = heads(1);
    client.wait(240);
    client.account = UNITS.into();
    assert_eq!(discover(&mut client, json!({})).unwrap_err().code(), "NamespaceNotFound");
    let owner = json!({"OwnerAccount": OWNER});
    assert_eq!(discover(&mut client, owner.clone()).unwrap_err().code(), "NamespaceNotFound");
    client.account = OWNER.into();
    let listed = client.map("ListNamespaces", json!({})).unwrap();
    let id = listed["Namespaces"][0]["Id"].as_str().unwrap().to_owned();
    client.world.share(OWNER, REGION, &id, UNITS);
    client.account = UNITS.into();
    assert_eq!(discover(&mut client, owner).unwrap()["Instances"].as_array().unwrap().len(), 1);
}

#[test]
fn a_namespace_has_its_quota_of_instances() {
    let mut client = Client::consistent();
    let quotas = trellis_aws_fake::Quotas { namespace_instances: 2, ..Default::default() };
    client.world.set_quotas(UNITS, REGION, quotas);
    let namespace = client.world.namespace(UNITS, REGION, "tulip.trellis.internal");
    let made = client.map("CreateService", json!({"Name": "head", "NamespaceId": namespace})).unwrap();
    let register = |client: &mut Client, id: &str| {
        let body = json!({"ServiceId": made["Service"]["Id"], "InstanceId": id, "Attributes": {"AWS_INSTANCE_IPV4": "10.0.0.1"}});
        client.map("RegisterInstance", body)
    };
    register(&mut client, "a").unwrap();
    register(&mut client, "b").unwrap();
    register(&mut client, "b").unwrap();
    assert_eq!(register(&mut client, "c").unwrap_err().code(), "ResourceLimitExceeded");
    client.map("DeregisterInstance", json!({"ServiceId": made["Service"]["Id"], "InstanceId": "a"})).unwrap();
    register(&mut client, "c").unwrap();
    let refused = client.map("DeleteService", json!({"Id": made["Service"]["Id"]})).unwrap_err();
    assert!(matches!(&refused, Refused::Error(409, code, _) if code == "ResourceInUse"), "{refused:?}");
}
