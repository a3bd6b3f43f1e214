//! A client as small as it gets: it writes requests by hand, so that no SDK agrees with the fake by chance.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use serde_json::{Value, json};
use trellis_aws_fake::{Lost, Settings, World};

pub(crate) const REGION: &str = "eu-central-1";
pub(crate) const UNITS: &str = "222222222222";
pub(crate) const OWNER: &str = "111111111111";

/// What a call came to.
#[derive(Debug, PartialEq)]
pub(crate) enum Refused {
    /// Status, code, message.
    Error(u16, String, String),
    /// The connection broke.
    Lost,
}

impl Refused {
    pub(crate) fn code(&self) -> &str {
        match self {
            Refused::Error(_, code, _) => code,
            Refused::Lost => "lost",
        }
    }
}

pub(crate) struct Client {
    pub(crate) world: World,
    pub(crate) now: Duration,
    pub(crate) account: String,
    /// The key to sign with; if empty, one that never ends.
    pub(crate) key: String,
}

impl Client {
    pub(crate) fn new(settings: Settings) -> Self {
        let mut world = World::new(settings);
        world.cluster(UNITS, REGION, "tulip", &["tulip-general"]);
        Self { world, now: Duration::ZERO, account: UNITS.into(), key: String::new() }
    }

    /// Without waits for consistency, for tests of something else.
    pub(crate) fn consistent() -> Self {
        Self::new(Settings { lag: Duration::ZERO..Duration::ZERO, ..Settings::default() })
    }

    pub(crate) fn wait(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        self.world.advance(self.now);
    }

    fn post(&mut self, service: &str, target: &str, kind: &str, body: String) -> Result<Bytes, Refused> {
        let key = if self.key.is_empty() { format!("ASIA{}0001", self.account) } else { self.key.clone() };
        let credential = format!("{key}/20261130/{REGION}/{service}/aws4_request");
        let mut request = Request::post("https://fake/")
            .header(
                "authorization",
                format!("AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders=host, Signature=0"),
            )
            .header("content-type", kind);
        if !target.is_empty() {
            request = request.header("x-amz-target", target);
        }
        let response = self.world.handle(self.now, &request.body(body.into()).unwrap());
        if response.extensions().get::<Lost>().is_some() {
            return Err(Refused::Lost);
        }
        let status = response.status().as_u16();
        if status == 200 {
            return Ok(response.into_body());
        }
        let text = String::from_utf8_lossy(response.body()).into_owned();
        let (code, message) = match serde_json::from_str::<Value>(&text) {
            Ok(body) => {
                (body["__type"].as_str().unwrap().to_owned(), body["message"].as_str().unwrap().to_owned())
            }
            Err(_) => (between(&text, "<Code>", "</Code>"), text),
        };
        Err(Refused::Error(status, code, message))
    }

    fn json(
        &mut self,
        service: &str,
        prefix: &str,
        version: &str,
        op: &str,
        body: &Value,
    ) -> Result<Value, Refused> {
        let kind = format!("application/x-amz-json-{version}");
        let answer = self.post(service, &format!("{prefix}.{op}"), &kind, body.to_string())?;
        Ok(serde_json::from_slice(&answer).unwrap())
    }

    pub(crate) fn ecs(&mut self, op: &str, body: Value) -> Result<Value, Refused> {
        self.json("ecs", "AmazonEC2ContainerServiceV20141113", "1.1", op, &body)
    }

    pub(crate) fn map(&mut self, op: &str, body: Value) -> Result<Value, Refused> {
        self.json("servicediscovery", "Route53AutoNaming_v20170314", "1.1", op, &body)
    }

    pub(crate) fn sqs(&mut self, op: &str, body: Value) -> Result<Value, Refused> {
        self.json("sqs", "AmazonSQS", "1.0", op, &body)
    }

    pub(crate) fn sts(&mut self, form: &str) -> Result<String, Refused> {
        let kind = "application/x-www-form-urlencoded";
        let answer = self.post("sts", "", kind, format!("{form}&Version=2011-06-15"))?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    /// Registers a definition of a unit. Returns `family:revision`.
    pub(crate) fn definition(&mut self, family: &str) -> String {
        let answer = self.ecs("RegisterTaskDefinition", definition(family)).unwrap();
        let task = &answer["taskDefinition"];
        format!("{}:{}", task["family"].as_str().unwrap(), task["revision"])
    }

    /// The service as DescribeServices shows it.
    pub(crate) fn service(&mut self, name: &str) -> Value {
        let answer = self
            .ecs("DescribeServices", json!({"cluster": "tulip", "services": [name], "include": ["TAGS"]}));
        answer.unwrap()["services"][0].clone()
    }

    /// The tasks of a service that should run, as DescribeTasks shows them.
    pub(crate) fn tasks(&mut self, name: &str) -> Vec<Value> {
        let listed = self.ecs("ListTasks", json!({"cluster": "tulip", "serviceName": name})).unwrap();
        if listed["taskArns"].as_array().unwrap().is_empty() {
            return Vec::new();
        }
        let tasks =
            self.ecs("DescribeTasks", json!({"cluster": "tulip", "tasks": listed["taskArns"]})).unwrap();
        tasks["tasks"].as_array().unwrap().clone()
    }
}

pub(crate) fn between(text: &str, from: &str, to: &str) -> String {
    text.split_once(from)
        .and_then(|(_, rest)| rest.split_once(to))
        .map(|(text, _)| text.to_owned())
        .unwrap_or_default()
}

pub(crate) fn definition(family: &str) -> Value {
    json!({
        "family": family,
        "networkMode": "awsvpc",
        "requiresCompatibilities": ["FARGATE", "MANAGED_INSTANCES"],
        "cpu": "1024",
        "memory": "2048",
        "executionRoleArn": "arn:aws:iam::222222222222:role/execution",
        "containerDefinitions": [{"name": "unit", "image": "registry/qcu@sha256:0", "stopTimeout": 30}],
    })
}

/// A service of one task, as `fleet` makes them.
pub(crate) fn service(name: &str, definition: &str) -> Value {
    json!({
        "cluster": "tulip",
        "serviceName": name,
        "taskDefinition": definition,
        "desiredCount": 1,
        "clientToken": format!("{name}-1"),
        "capacityProviderStrategy": [{"capacityProvider": "FARGATE", "weight": 1}],
        "availabilityZoneRebalancing": "DISABLED",
        "deploymentConfiguration": {
            "minimumHealthyPercent": 0, "maximumPercent": 100,
            "deploymentCircuitBreaker": {
                "enable": true, "rollback": false, "thresholdConfiguration": {"type": "COUNT", "value": 3},
            },
        },
        "networkConfiguration": {"awsvpcConfiguration": {"subnets": ["subnet-1"], "securityGroups": ["sg-1"]}},
        "propagateTags": "SERVICE",
        "tags": [{"key": "trellis:unit", "value": name}],
    })
}
