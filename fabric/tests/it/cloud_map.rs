//! Discovery with a real server of Cloud Map's API, and with one that counts what is asked.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    sync::watch,
};
use trellis_fabric::discovery::{Options, Watch, watch};

use crate::{
    moto::{Moto, REGION},
    witness::{Log, WAIT_MAX, until},
};

fn options(variable: fn(&str) -> Option<String>) -> Options {
    Options {
        ttl_min: Duration::from_millis(20),
        ttl_max: Duration::from_millis(20),
        doubt_min: Duration::from_millis(20),
        retry_min: Duration::from_millis(20),
        retry_max: Duration::from_millis(100),
        variable,
        ..Options::default()
    }
}

/// Any key will do where nobody compares it.
fn some_key(name: &str) -> Option<String> {
    name.contains("ACCESS_KEY").then(|| "key".to_owned())
}

fn at(address: &str, service: &str, more: &str) -> Watch {
    let url = format!("cloudmap://peony.internal/{service}?region={REGION}&endpoint={address}{more}");
    watch(&url, &options(some_key)).unwrap()
}

#[tokio::test]
async fn heads_are_found_by_cloud_map_and_filtered_and_followed() {
    let (log, _guard) = Log::listen();
    let Some(moto) = Moto::start().await else { return };
    let id = moto.service("peony.internal", "head").await;
    let zone = |ip: &str, zone: &str| json!({"AWS_INSTANCE_IPV4": ip, "AVAILABILITY_ZONE": zone});
    moto.register(&id, "h0", zone("10.0.0.1", "a")).await;
    let mut with_port = zone("10.0.0.2", "b");
    with_port["AWS_INSTANCE_PORT"] = json!("7401");
    moto.register(&id, "h1", with_port).await;

    let Watch { mut peers, doubt, .. } = at(moto.address(), "head", "");
    until(&mut peers, &["10.0.0.1:7400", "10.0.0.2:7401"]).await;
    let mut in_b = at(moto.address(), "head", "&attr.AVAILABILITY_ZONE=b").peers;
    until(&mut in_b, &["10.0.0.2:7401"]).await;
    let mut all = at(moto.address(), "head", "&health=all&port=99").peers;
    until(&mut all, &["10.0.0.1:99", "10.0.0.2:7401"]).await;

    // a new one shows by the revision
    moto.register(&id, "h2", zone("10.0.0.3", "c")).await;
    until(&mut peers, &["10.0.0.1:7400", "10.0.0.2:7401", "10.0.0.3:7400"]).await;
    // so does one that is deregistered
    moto.cloud_map("DeregisterInstance", json!({"ServiceId": id, "InstanceId": "h0"})).await;
    until(&mut peers, &["10.0.0.2:7401", "10.0.0.3:7400"]).await;
    // health does not change the revision; a doubt has the list read again
    let sick = json!({"ServiceId": id, "InstanceId": "h1", "Status": "UNHEALTHY"});
    moto.cloud_map("UpdateInstanceCustomHealthStatus", sick).await;
    doubt.raise("10.0.0.2:7401");
    until(&mut peers, &["10.0.0.3:7400"]).await;
    log.until("reported dead", 1).await;
    assert!(all.borrow().iter().any(|peer| peer.addr == "10.0.0.2:7401"), "health=all keeps it");

    // nobody is left: the last peers stay
    moto.cloud_map("DeregisterInstance", json!({"ServiceId": id, "InstanceId": "h2"})).await;
    log.until("no instance that the URL asks for", 1).await;
    assert_eq!(peers.borrow().len(), 1);

    let nowhere = at(moto.address(), "shard", "");
    log.until("no service shard in the namespace peony.internal in eu-west-1", 1).await;
    assert!(nowhere.trouble.last().unwrap().contains("no service shard"));
    let url = format!("cloudmap://tulip/head?region={REGION}&endpoint={}", moto.address());
    let _nowhere = watch(&url, &options(some_key)).unwrap();
    log.until("no namespace tulip in eu-west-1", 1).await;
}

/// Credentials of a role with the two rights, and those of a user without any.
static ROLE: OnceLock<[String; 3]> = OnceLock::new();
static USER: OnceLock<[String; 2]> = OnceLock::new();

fn role(name: &str) -> Option<String> {
    let [key, secret, token] = ROLE.get()?;
    match name {
        "AWS_ACCESS_KEY_ID" => Some(key.clone()),
        "AWS_SECRET_ACCESS_KEY" => Some(secret.clone()),
        "AWS_SESSION_TOKEN" => Some(token.clone()),
        _ => None,
    }
}

fn forger(name: &str) -> Option<String> {
    if name == "AWS_SECRET_ACCESS_KEY" { Some("guessed".to_owned()) } else { role(name) }
}

fn user(name: &str) -> Option<String> {
    let [key, secret] = USER.get()?;
    match name {
        "AWS_ACCESS_KEY_ID" => Some(key.clone()),
        "AWS_SECRET_ACCESS_KEY" => Some(secret.clone()),
        _ => None,
    }
}

/// moto computes each signature anew, with botocore.
#[tokio::test]
async fn a_role_with_two_rights_finds_heads_and_a_wrong_signature_and_a_missing_right_are_told() {
    let (log, _guard) = Log::listen();
    let Some(moto) = Moto::start().await else { return };
    let id = moto.service("peony.internal", "head").await;
    moto.register(&id, "h0", json!({"AWS_INSTANCE_IPV4": "10.0.0.1"})).await;

    let rights = json!({"Version": "2012-10-17", "Statement": [{
        "Effect": "Allow", "Resource": "*",
        "Action": ["servicediscovery:DiscoverInstances", "servicediscovery:DiscoverInstancesRevision"],
    }]})
    .to_string();
    let trust = json!({"Version": "2012-10-17", "Statement": [{
        "Effect": "Allow", "Principal": {"Service": "ecs-tasks.amazonaws.com"}, "Action": "sts:AssumeRole",
    }]})
    .to_string();
    let make_role =
        [("Action", "CreateRole"), ("RoleName", "head"), ("AssumeRolePolicyDocument", &trust), VERSION];
    let [arn] = moto.form("iam", &make_role, ["Arn"]).await;
    let give = [
        ("Action", "PutRolePolicy"),
        ("RoleName", "head"),
        ("PolicyName", "find"),
        ("PolicyDocument", &rights),
        VERSION,
    ];
    moto.form("iam", &give, []).await;
    let assume =
        [("Action", "AssumeRole"), ("RoleArn", &arn), ("RoleSessionName", "task"), ("Version", "2011-06-15")];
    let elements = ["AccessKeyId", "SecretAccessKey", "SessionToken"];
    ROLE.set(moto.form("sts", &assume, elements).await).unwrap();
    moto.form("iam", &[("Action", "CreateUser"), ("UserName", "guest"), VERSION], []).await;
    let key = [("Action", "CreateAccessKey"), ("UserName", "guest"), VERSION];
    USER.set(moto.form("iam", &key, ["AccessKeyId", "SecretAccessKey"]).await).unwrap();
    moto.check_rights().await;

    let url = format!("cloudmap://peony.internal/head?region={REGION}&endpoint={}", moto.address());
    let mut peers = watch(&url, &options(role)).unwrap().peers;
    until(&mut peers, &["10.0.0.1:7400"]).await;

    let forged = watch(&url, &options(forger)).unwrap();
    log.until("AWS does not accept the credentials (SignatureDoesNotMatch)", 1).await;
    assert!(forged.peers.borrow().is_empty());

    let guest = watch(&url, &options(user)).unwrap();
    log.until("AWS refuses servicediscovery:DiscoverInstancesRevision: User: arn:aws:iam", 1).await;
    log.until("The policy of the role needs servicediscovery:DiscoverInstances and", 1).await;
    assert!(guest.peers.borrow().is_empty());
    assert_eq!(log.count("look-up failed"), 2, "each failure is told once");
}

const VERSION: (&str, &str) = ("Version", "2010-05-08");

/// A server that answers as Cloud Map does with a list of one instance, and remembers what it was asked.
struct Counting {
    address: String,
    revision: Arc<watch::Sender<i64>>,
    asked: watch::Receiver<Vec<(String, Value)>>,
}

impl Counting {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let revision = Arc::new(watch::Sender::new(1));
        let (asking, asked) = watch::channel(Vec::new());
        let now = revision.clone();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut read = Vec::new();
                let (head, body) = loop {
                    stream.read_buf(&mut read).await.unwrap();
                    let text = String::from_utf8(read.clone()).unwrap();
                    if let Some((head, body)) = text.split_once("\r\n\r\n")
                        && let Ok(body) = serde_json::from_str::<Value>(body)
                    {
                        break (head.to_ascii_lowercase(), body);
                    }
                };
                let call = head.split("route53autonaming_v20170314.").nth(1).unwrap();
                let call = call.split("\r\n").next().unwrap().to_owned();
                let revision = *now.borrow();
                let mut answer = json!({"InstancesRevision": revision});
                if call == "discoverinstances" {
                    let ip = format!("10.0.0.{revision}");
                    answer["Instances"] =
                        json!([{"InstanceId": "h", "Attributes": {"AWS_INSTANCE_IPV4": ip}}]);
                }
                asking.send_modify(|asked| asked.push((call, body)));
                let answer = answer.to_string();
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{answer}",
                    answer.len()
                );
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        Self { address, revision, asked }
    }

    /// Waits until `call` has been asked `times` times or more.
    async fn asked(&mut self, call: &str, times: usize) {
        let enough =
            |asked: &Vec<(String, Value)>| asked.iter().filter(|(name, _)| name == call).count() >= times;
        let waited = tokio::time::timeout(WAIT_MAX, self.asked.wait_for(enough)).await.is_ok();
        assert!(waited, "{call} was not asked {times} times: {:?}", self.asked.borrow());
    }

    fn count(&self, call: &str) -> usize {
        self.asked.borrow().iter().filter(|(name, _)| name == call).count()
    }
}

#[tokio::test]
async fn the_list_is_asked_for_only_when_its_revision_has_changed() {
    let mut server = Counting::start().await;
    let mut peers = at(&server.address, "head", "&owner=111122223333&attr.team=a").peers;
    until(&mut peers, &["10.0.0.1:7400"]).await;
    server.asked("discoverinstancesrevision", 5).await;
    assert_eq!(server.count("discoverinstances"), 1);
    server.revision.send_replace(2);
    until(&mut peers, &["10.0.0.2:7400"]).await;
    let polls = server.count("discoverinstancesrevision");
    server.asked("discoverinstancesrevision", polls + 3).await;
    assert_eq!(server.count("discoverinstances"), 2);

    let asked = server.asked.borrow().clone();
    let named =
        json!({"NamespaceName": "peony.internal", "ServiceName": "head", "OwnerAccount": "111122223333"});
    let mut whole = named.clone();
    whole["MaxResults"] = json!(1000);
    whole["HealthStatus"] = json!("HEALTHY");
    whole["QueryParameters"] = json!({"team": "a"});
    for (call, body) in asked {
        assert_eq!(body, if call == "discoverinstances" { whole.clone() } else { named.clone() }, "{call}");
    }
}

#[tokio::test]
async fn without_credentials_the_error_says_where_they_could_come_from() {
    let (log, _guard) = Log::listen();
    let server = Counting::start().await;
    // a metadata service that is not one: nobody listens on port 9
    let none: fn(&str) -> Option<String> =
        |name| (name == "AWS_METADATA_ENDPOINT").then(|| "http://127.0.0.1:9".to_owned());
    let url = format!("cloudmap://peony.internal/head?region={REGION}&endpoint={}", server.address);
    let found = watch(&url, &options(none)).unwrap();
    log.until("give the task a role, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", 1).await;
    assert!(found.trouble.last().unwrap().contains("no AWS credentials"));
    assert!(server.asked.borrow().is_empty());
}
