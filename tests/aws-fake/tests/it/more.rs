//! Lists, tasks by themselves, tags, quotas of launches, and what counts as wasted.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use trellis_aws_fake::{Category, Failing, Quotas, Settings, Times, World, serve};

use crate::client::{Client, REGION, Refused, UNITS, service};

fn names(arns: &Value) -> Vec<String> {
    arns.as_array()
        .unwrap()
        .iter()
        .map(|arn| arn.as_str().unwrap().rsplit('/').next().unwrap().to_owned())
        .collect()
}

fn many(count: usize) -> Client {
    let mut client = Client::consistent();
    let name = client.definition("unit");
    for i in 0..count {
        if i > 40 {
            client.wait(1);
        }
        client.ecs("CreateService", service(&format!("unit-{i:03}"), &name)).unwrap();
    }
    client
}

#[test]
fn pages_of_services_hold_each_once_though_some_go_meanwhile() {
    let mut client = many(25);
    let first = client.ecs("ListServices", json!({"cluster": "tulip"})).unwrap();
    assert_eq!(names(&first["serviceArns"]).len(), 10);
    // the last of the page is the token; it goes, and so does one of the next page
    for gone in ["unit-009", "unit-015"] {
        assert!(client.world.delete_by_hand(UNITS, REGION, "tulip", gone));
    }
    let next = json!({"cluster": "tulip", "maxResults": 100, "nextToken": first["nextToken"]});
    let second = client.ecs("ListServices", next).unwrap();
    assert!(second.get("nextToken").is_none());
    let all: Vec<String> = [names(&first["serviceArns"]), names(&second["serviceArns"])].concat();
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
    assert_eq!(all.len(), 24);
    let refused = client.ecs("ListServices", json!({"cluster": "tulip", "maxResults": 101})).unwrap_err();
    assert_eq!(refused.code(), "InvalidParameterException");
}

#[test]
fn ten_services_are_described_at_once_and_not_eleven() {
    let mut client = many(11);
    let ask = |count: usize| {
        let all: Vec<String> = (0..count).map(|i| format!("unit-{i:03}")).collect();
        json!({"cluster": "tulip", "services": all})
    };
    assert_eq!(client.ecs("DescribeServices", ask(10)).unwrap()["services"].as_array().unwrap().len(), 10);
    assert_eq!(client.ecs("DescribeServices", ask(11)).unwrap_err().code(), "InvalidParameterException");
}

#[test]
fn launches_keep_to_the_rate_of_fargate() {
    let mut client = Client::consistent();
    let quotas = Quotas { launch_burst: 2, launch_rate: 0.1, ..Default::default() };
    client.world.set_quotas(UNITS, REGION, quotas);
    let name = client.definition("unit");
    for i in 0..6 {
        client.ecs("CreateService", service(&format!("unit-{i}"), &name)).unwrap();
    }
    let left = |client: &Client| {
        client
            .world
            .tasks(UNITS, REGION, "tulip")
            .iter()
            .filter(|(_, status)| *status != "PROVISIONING")
            .count()
    };
    // 20 seconds are the longest that a launched task stays in PROVISIONING, 4 the longest before the scheduler looks
    client.wait(24);
    assert!((2..=4).contains(&left(&client)), "{}", left(&client));
    client.wait(40);
    assert_eq!(left(&client), 6);
}

#[test]
fn tasks_wait_when_too_many_are_in_provisioning() {
    let mut client = Client::consistent();
    client.world.set_quotas(UNITS, REGION, Quotas { provisioning: 3, ..Default::default() });
    let name = client.definition("unit");
    for i in 0..20 {
        client.ecs("CreateService", service(&format!("unit-{i}"), &name)).unwrap();
    }
    for _ in 0..300 {
        client.wait(1);
        let tasks = client.world.tasks(UNITS, REGION, "tulip");
        assert!(tasks.iter().filter(|(_, status)| *status == "PROVISIONING").count() <= 3);
    }
    let tasks = client.world.tasks(UNITS, REGION, "tulip");
    assert_eq!(tasks.iter().filter(|(_, status)| *status == "RUNNING").count(), 20);
}

#[test]
fn a_roll_stops_the_old_task_before_the_new_one_starts() {
    // longer in STOPPING than the scheduler needs to look
    let times = Times { stopping: Duration::from_secs(15)..Duration::from_secs(16), ..Times::default() };
    let lag = Duration::ZERO..Duration::ZERO;
    let mut client = Client::new(Settings { times, lag, ..Settings::default() });
    let first = client.definition("unit");
    client.ecs("CreateService", service("unit-000", &first)).unwrap();
    client.wait(200);
    let old = client.tasks("unit-000")[0]["taskArn"].clone();
    let new = client.definition("unit");
    let update = json!({"cluster": "tulip", "service": "unit-000", "taskDefinition": new});
    client.ecs("UpdateService", update).unwrap();
    let mut replaced = false;
    for _ in 0..200 {
        client.wait(1);
        let ask = json!({"cluster": "tulip", "tasks": [old]});
        let status =
            client.ecs("DescribeTasks", ask).unwrap()["tasks"][0]["lastStatus"].as_str().unwrap().to_owned();
        let others = client.tasks("unit-000").iter().filter(|task| task["taskArn"] != old).count();
        if ["RUNNING", "STOPPING"].contains(&status.as_str()) {
            assert_eq!(others, 0, "the old one is {status}");
        }
        replaced |= others == 1;
    }
    assert!(replaced);
    let made = client.service("unit-000");
    assert_eq!(made["deployments"].as_array().unwrap().len(), 1);
    assert!(made["taskDefinition"].as_str().unwrap().ends_with(&new));
    assert_eq!(made["deployments"][0]["rolloutState"], "COMPLETED");
}

#[test]
fn a_service_with_room_for_two_starts_the_new_task_first() {
    let mut client = Client::consistent();
    let name = client.definition("unit");
    let mut body = service("head", &name);
    body["deploymentConfiguration"] = json!({"minimumHealthyPercent": 100, "maximumPercent": 200});
    client.ecs("CreateService", body).unwrap();
    client.wait(200);
    client
        .ecs("UpdateService", json!({"cluster": "tulip", "service": "head", "forceNewDeployment": true}))
        .unwrap();
    for _ in 0..300 {
        client.wait(1);
        let tasks = client.world.tasks(UNITS, REGION, "tulip");
        assert!(tasks.iter().any(|(_, status)| *status == "RUNNING"));
    }
    assert_eq!(client.service("head")["deployments"].as_array().unwrap().len(), 1);
}

#[test]
fn a_task_that_never_becomes_healthy_is_a_failure() {
    let mut client = Client::consistent();
    let mut definition = crate::client::definition("unit");
    definition["containerDefinitions"][0]["healthCheck"] = json!({"command": ["CMD", "probe"]});
    client.ecs("RegisterTaskDefinition", definition).unwrap();
    client.world.fail_tasks("unit", Failing::Unhealthy, 1.0);
    client.ecs("CreateService", service("momentum", "unit")).unwrap();
    client.wait(2000);
    let made = client.service("momentum");
    assert_eq!(made["deployments"][0]["rolloutState"], "FAILED");
    let ask = json!({"cluster": "tulip", "serviceName": "momentum", "desiredStatus": "STOPPED"});
    let stopped = client.ecs("ListTasks", ask).unwrap();
    let tasks =
        client.ecs("DescribeTasks", json!({"cluster": "tulip", "tasks": stopped["taskArns"]})).unwrap();
    assert_eq!(tasks["tasks"].as_array().unwrap().len(), 3);
    assert_eq!(tasks["tasks"][0]["stoppedReason"], "Task failed container health checks");
}

#[test]
fn run_task_runs_ten_at_most_and_once_for_a_token() {
    let mut client = Client::consistent();
    client.definition("unit");
    let network = service("", "")["networkConfiguration"].clone();
    let ask = |count: u32, token: &str| {
        json!({
            "cluster": "tulip", "taskDefinition": "unit", "count": count, "clientToken": token, "startedBy": "run-1",
            "networkConfiguration": network,
            "capacityProviderStrategy": [{"capacityProvider": "FARGATE_SPOT", "weight": 1}],
            "overrides": {"containerOverrides": [{"name": "unit", "environment": [{"name": "SESSION", "value": "today"}]}]},
        })
    };
    let first = client.ecs("RunTask", ask(10, "a")).unwrap();
    assert_eq!(client.ecs("RunTask", ask(10, "a")).unwrap()["tasks"], first["tasks"]);
    assert_eq!(client.ecs("RunTask", ask(9, "a")).unwrap_err().code(), "ConflictException");
    assert_eq!(client.ecs("RunTask", ask(11, "b")).unwrap_err().code(), "InvalidParameterException");
    let task = &first["tasks"][0];
    assert_eq!(task["capacityProviderName"], "FARGATE_SPOT");
    assert_eq!(task["overrides"]["containerOverrides"][0]["environment"][0]["value"], "today");
    let listed =
        client.ecs("ListTasks", json!({"cluster": "tulip", "startedBy": "run-1", "maxResults": 4})).unwrap();
    let next = json!({"cluster": "tulip", "startedBy": "run-1", "nextToken": listed["nextToken"]});
    let rest = client.ecs("ListTasks", next).unwrap();
    let all = [names(&listed["taskArns"]), names(&rest["taskArns"])].concat();
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 10);
    client.wait(100);
    client.ecs("StopTask", json!({"cluster": "tulip", "task": all[0], "reason": "enough"})).unwrap();
    assert_eq!(
        client.ecs("ListTasks", json!({"cluster": "tulip"})).unwrap()["taskArns"].as_array().unwrap().len(),
        9
    );
    client.wait(60);
    let stopped = client.ecs("DescribeTasks", json!({"cluster": "tulip", "tasks": [all[0]]})).unwrap();
    assert_eq!(
        (&stopped["tasks"][0]["stopCode"], &stopped["tasks"][0]["stoppedReason"]),
        (&json!("UserInitiated"), &json!("enough"))
    );
    // an hour later nobody remembers
    client.wait(3600);
    let gone = client.ecs("DescribeTasks", json!({"cluster": "tulip", "tasks": [all[0]]})).unwrap();
    assert_eq!(gone["failures"][0]["reason"], "MISSING");
}

#[test]
fn a_change_that_changes_nothing_is_wasted() {
    let mut client = many(1);
    let update =
        json!({"cluster": "tulip", "service": "unit-000", "desiredCount": 1, "taskDefinition": "unit:1"});
    client.ecs("UpdateService", update).unwrap();
    let arn = client.service("unit-000")["serviceArn"].clone();
    let tag = json!({"resourceArn": arn, "tags": [{"key": "trellis:unit", "value": "unit-000"}]});
    client.ecs("TagResource", tag).unwrap();
    client.ecs("DeleteService", json!({"cluster": "tulip", "service": "unit-000", "force": true})).unwrap();
    client.ecs("DeleteService", json!({"cluster": "tulip", "service": "unit-000", "force": true})).unwrap();
    let wasted = |client: &Client, name: &str| client.world.counters().sum(|_, _, op| op == name).wasted;
    let all = ["CreateService", "UpdateService", "TagResource", "DeleteService", "ListServices"];
    assert_eq!(all.map(|name| wasted(&client, name)), [0, 1, 1, 1, 0]);
}

#[test]
fn a_draining_service_is_no_longer_changed() {
    let mut client = many(1);
    client.wait(200);
    client.ecs("DeleteService", json!({"cluster": "tulip", "service": "unit-000", "force": true})).unwrap();
    let update = json!({"cluster": "tulip", "service": "unit-000", "desiredCount": 1});
    assert_eq!(client.ecs("UpdateService", update).unwrap_err().code(), "ServiceNotActiveException");
}

#[test]
fn writes_soon_after_one_another_are_seen_within_the_longest_lag() {
    let lag = Duration::from_secs(3)..Duration::from_secs(4);
    let mut client = Client::new(Settings { lag, ..Settings::default() });
    let name = client.definition("unit");
    client.ecs("CreateService", service("momentum", &name)).unwrap();
    client.wait(10);
    // a write a second: readers still see what is four seconds old
    for count in 1..20 {
        client
            .ecs("UpdateService", json!({"cluster": "tulip", "service": "momentum", "desiredCount": count}))
            .unwrap();
        client.wait(1);
        let seen = client.service("momentum")["desiredCount"].as_i64().unwrap();
        assert!(seen >= count - 4, "{seen} after {count}");
    }
}

#[test]
fn tags_have_limits() {
    let mut client = many(1);
    let arn = client.service("unit-000")["serviceArn"].clone();
    let tags = |count: usize| -> Value {
        (0..count).map(|i| json!({"key": format!("k{i}"), "value": "v"})).collect()
    };
    client.ecs("TagResource", json!({"resourceArn": arn, "tags": tags(49)})).unwrap();
    let refused = client.ecs("TagResource", json!({"resourceArn": arn, "tags": tags(50)})).unwrap_err();
    assert_eq!(refused.code(), "InvalidParameterException");
    client.ecs("UntagResource", json!({"resourceArn": arn, "tagKeys": ["trellis:unit"]})).unwrap();
    client.ecs("TagResource", json!({"resourceArn": arn, "tags": tags(50)})).unwrap();
    let reserved = json!({"resourceArn": arn, "tags": [{"key": "aws:x", "value": "v"}]});
    assert_eq!(client.ecs("TagResource", reserved).unwrap_err().code(), "InvalidParameterException");
}

#[test]
fn discovery_is_throttled_in_its_own_way() {
    let rates = vec![(Category::Discover, 1, 1.0)];
    let mut client = Client::new(Settings { rates, ..Settings::default() });
    let ask = json!({"NamespaceName": "a", "ServiceName": "b"});
    assert_eq!(client.map("DiscoverInstances", ask.clone()).unwrap_err().code(), "NamespaceNotFound");
    let refused = client.map("DiscoverInstances", ask).unwrap_err();
    assert!(
        matches!(&refused, Refused::Error(429, code, _) if code == "RequestLimitExceeded"),
        "{refused:?}"
    );
}

/// What a socket gets back for a call of ListClusters: the first line, or nothing if the connection broke.
async fn over_http(address: std::net::SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "POST / HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-type: application/x-amz-json-1.1\r\n\
         x-amz-target: AmazonEC2ContainerServiceV20141113.ListClusters\r\n\
         authorization: AWS4-HMAC-SHA256 Credential=ASIA{UNITS}0001/20261130/{REGION}/ecs/aws4_request, SignedHeaders=host, \
         Signature=0\r\ncontent-length: 2\r\n\r\n{{}}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    // a reset is an answer, too
    let _ = stream.read_to_string(&mut answer).await;
    answer.lines().next().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn behind_a_socket_a_lost_answer_is_a_broken_connection() {
    let world = Arc::new(Mutex::new(World::new(Settings::default())));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(world.clone(), listener));
    assert_eq!(over_http(address).await, "HTTP/1.1 200 OK");
    world.lock().unwrap().lose_next_answer("ListClusters");
    assert_eq!(over_http(address).await, "");
    assert_eq!(over_http(address).await, "HTTP/1.1 200 OK");
    let calls = world.lock().unwrap().counters().all();
    assert_eq!((calls.calls, calls.lost), (3, 1));
}
