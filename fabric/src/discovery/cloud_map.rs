//! Asks AWS Cloud Map which instances a service has.
//!
//! `DiscoverInstancesRevision` first: one number, which rises when an instance is registered or deregistered. Only if it has changed,
//! `DiscoverInstances`: the whole list. The health of an instance does not change the number, so the list is also read again each
//! [`WHOLE_MAX`], and when a peer is reported dead.
//!
//! The load of a fleet in one account and region: 4,000 servers that poll each [`POLL`] ask for 400 revisions a second, and AWS allows
//! 3,000. They ask for 67 lists a second, and AWS allows 1,000. While instances change all the time, they ask for 400 lists a second.
//! While each server doubts a peer all the time (`doubt_min`), they ask for 540. Units do not poll, because there are tens of thousands
//! of them: they are given `dns://`.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::{
    follow::Ask,
    options::Options,
    plan::{Answer, Failure},
    url::CloudMapQuery,
};
use crate::aws::{Aws, CallError};

/// Time between two look-ups. The health of an instance takes about 30 s to show in Cloud Map, so a shorter time finds little earlier.
const POLL: Duration = Duration::from_secs(10);
/// The whole list is read at least this often, because the revision says nothing about health.
const WHOLE_MAX: Duration = Duration::from_secs(60);
/// Most instances of one answer, and of one service of Cloud Map. There is no second page.
const INSTANCES_MAX: usize = 1000;
/// The API, before the name of a call.
const API: &str = "Route53AutoNaming_v20170314";
/// Its name for signatures and in the names of rights.
const SERVICE: &str = "servicediscovery";

/// Asks for the instances of one service.
pub(super) struct CloudMap {
    aws: Aws,
    query: CloudMapQuery,
    names: Vec<String>,
    poll: Duration,
    known: Mutex<Option<Known>>,
}

/// The last list.
#[derive(Clone)]
struct Known {
    revision: i64,
    read: Instant,
    answer: Answer,
}

impl CloudMap {
    /// # Errors
    /// Those of [`Aws::new`].
    pub(super) fn new(query: CloudMapQuery, options: &Options) -> Result<Self, String> {
        let (region, endpoint) = (query.region.as_deref(), query.endpoint.as_deref());
        let aws = Aws::new(SERVICE, "data-", region, endpoint, options.variable)?;
        let names = vec![format!("{}/{}", query.namespace, query.service)];
        Ok(Self { aws, query, names, poll: POLL.min(options.ttl_max), known: Mutex::default() })
    }

    async fn call(&self, call: &'static str, body: &Value) -> Result<Value, Failure> {
        let answer = self.aws.call(&format!("{API}.{call}"), body).await;
        answer.map_err(|error| failure(call, error, &self.query, self.aws.region()))
    }

    /// The service that is asked about, as every call names it.
    fn named(&self) -> Map<String, Value> {
        let CloudMapQuery { namespace, service, owner, .. } = &self.query;
        let mut body = Map::new();
        body.insert("NamespaceName".to_owned(), json!(namespace));
        body.insert("ServiceName".to_owned(), json!(service));
        if let Some(owner) = owner {
            body.insert("OwnerAccount".to_owned(), json!(owner));
        }
        body
    }

    fn whole(&self) -> Value {
        let mut body = self.named();
        body.insert("MaxResults".to_owned(), json!(INSTANCES_MAX));
        body.insert(
            "HealthStatus".to_owned(),
            json!(if self.query.unhealthy_too { "ALL" } else { "HEALTHY" }),
        );
        if !self.query.attributes.is_empty() {
            body.insert("QueryParameters".to_owned(), json!(self.query.attributes));
        }
        Value::Object(body)
    }
}

impl Ask for CloudMap {
    fn names(&self) -> &[String] {
        &self.names
    }

    async fn ask(&self, _name: usize, doubted: bool) -> Result<Answer, Failure> {
        let now = self.call("DiscoverInstancesRevision", &Value::Object(self.named())).await?;
        let now = revision(&now).ok_or_else(|| incomplete("InstancesRevision"))?;
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let same = known.filter(|known| !doubted && known.revision == now && is_fresh(known.read.elapsed()));
        if let Some(known) = same {
            return Ok(known.answer);
        }
        let read = Instant::now();
        let list = self.call("DiscoverInstances", &self.whole()).await?;
        let endpoints = endpoints(&list, self.query.port)?;
        if endpoints.is_empty() {
            *self.known.lock().unwrap_or_else(PoisonError::into_inner) = None;
            return Err(Failure::NotFound(NOBODY));
        }
        let answer = Answer { endpoints, ttl: self.poll };
        // a list that is older or newer than the revision before it is read again; ministack's lists have no revision
        let settled = revision(&list).is_none_or(|listed| listed == now);
        let known = settled.then(|| Known { revision: now, read, answer: answer.clone() });
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = known;
        Ok(answer)
    }
}

/// Whether a list of this age is the whole truth while its revision does not change.
fn is_fresh(age: Duration) -> bool {
    age < WHOLE_MAX
}

/// What a list without instances says.
const NOBODY: &str = "no instance that the URL asks for is registered";

fn revision(answer: &Value) -> Option<i64> {
    answer.get("InstancesRevision").and_then(Value::as_i64)
}

fn incomplete(what: &str) -> Failure {
    Failure::Unanswered(format!("Cloud Map: an answer without {what}"))
}

/// The addresses of a list, with the port that an instance registered, or `port`.
fn endpoints(list: &Value, port: u16) -> Result<Vec<(IpAddr, u16)>, Failure> {
    let instances = list.get("Instances").and_then(Value::as_array);
    let instances = instances.ok_or_else(|| incomplete("Instances"))?;
    instances.iter().map(|instance| endpoint(instance, port)).collect()
}

/// A peer whose address is unknown is a hole in the set: the list is refused, and the last good set is kept.
fn endpoint(instance: &Value, port: u16) -> Result<(IpAddr, u16), Failure> {
    let attribute =
        |key: &str| instance.get("Attributes").and_then(|all| all.get(key)).and_then(Value::as_str);
    let unusable = |what: String| {
        let id = instance.get("InstanceId").and_then(Value::as_str).unwrap_or("without an id");
        let text = format!("instance {id} has no usable address: {what}; register it with AWS_INSTANCE_IPV4");
        Failure::Refused { code: "no_address", text }
    };
    let ip = match (attribute("AWS_INSTANCE_IPV4"), attribute("AWS_INSTANCE_IPV6")) {
        (Some(v4), _) => v4.parse::<Ipv4Addr>().map(IpAddr::from).map_err(|_| unusable(v4.to_owned()))?,
        (None, Some(v6)) => v6.parse::<Ipv6Addr>().map(IpAddr::from).map_err(|_| unusable(v6.to_owned()))?,
        (None, None) => return Err(unusable("no AWS_INSTANCE_IPV4 and no AWS_INSTANCE_IPV6".to_owned())),
    };
    let port = match attribute("AWS_INSTANCE_PORT") {
        None => port,
        Some(port) => port
            .parse()
            .ok()
            .filter(|port| *port > 0)
            .ok_or_else(|| unusable(format!("AWS_INSTANCE_PORT {port}")))?,
    };
    Ok((ip, port))
}

/// What went wrong, whose fault it is, and what to do.
fn failure(call: &'static str, error: CallError, query: &CloudMapQuery, region: &str) -> Failure {
    let CloudMapQuery { namespace, service, owner, .. } = query;
    let (status, code, message) = match error {
        CallError::NoCredentials(text) => return Failure::Refused { code: "no_credentials", text },
        CallError::Unanswered(why) => {
            return Failure::Unanswered(format!("Cloud Map: {why}; is {region} a region that has it?"));
        }
        CallError::Refused { status, code, message } => (status, code, message),
    };
    let whose = owner.as_ref().map_or_else(
        || {
            "the account of the credentials; for a namespace that another account shares, add owner=ACCOUNT"
                .to_owned()
        },
        |owner| format!("account {owner}"),
    );
    let (kind, text) = match code.as_str() {
        "AccessDeniedException" | "AccessDenied" => (
            "access_denied",
            format!(
                "AWS refuses {SERVICE}:{call}: {message} The policy of the role needs {SERVICE}:DiscoverInstances and \
                 {SERVICE}:DiscoverInstancesRevision"
            ),
        ),
        "NamespaceNotFound" => ("no_namespace", format!("no namespace {namespace} in {region}, in {whose}")),
        "ServiceNotFound" => (
            "no_service",
            format!("no service {service} in the namespace {namespace} in {region}, in {whose}"),
        ),
        "UnrecognizedClientException"
        | "InvalidClientTokenId"
        | "InvalidSignatureException"
        | "SignatureDoesNotMatch"
        | "IncompleteSignature"
        | "ExpiredTokenException"
        | "ExpiredToken"
        | "RequestExpired" => (
            "bad_credentials",
            format!(
                "AWS does not accept the credentials ({code}): {message} The keys are wrong, expired or of another region than \
                 {region}, or this machine's clock is wrong"
            ),
        ),
        "RequestLimitExceeded" | "ThrottlingException" | "Throttling" => {
            return Failure::Unanswered(format!("Cloud Map allows no more requests now ({code}): {message}"));
        }
        _ if status >= 500 => return Failure::Unanswered(format!("Cloud Map: {status} {code}: {message}")),
        _ => ("refused", format!("AWS refuses {SERVICE}:{call}: {status} {code}: {message}")),
    };
    Failure::Refused { code: kind, text }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn query() -> CloudMapQuery {
        CloudMapQuery {
            namespace: "peony.internal".to_owned(),
            service: "head".to_owned(),
            unhealthy_too: false,
            attributes: std::collections::BTreeMap::new(),
            owner: None,
            port: 7400,
            region: None,
            endpoint: None,
        }
    }

    fn refused(status: u16, code: &str) -> Failure {
        let error =
            CallError::Refused { status, code: code.to_owned(), message: "not authorized.".to_owned() };
        failure("DiscoverInstances", error, &query(), "eu-west-1")
    }

    #[test]
    fn each_error_says_what_to_do() {
        let says = |failure: Failure, parts: &[&str]| {
            let text = failure.to_string();
            assert!(matches!(failure, Failure::Refused { .. }), "{text}");
            assert!(parts.iter().all(|part| text.contains(part)), "{text}");
        };
        says(
            refused(400, "AccessDeniedException"),
            &[
                "refuses servicediscovery:DiscoverInstances",
                "role needs",
                "servicediscovery:DiscoverInstancesRevision",
            ],
        );
        says(
            refused(400, "NamespaceNotFound"),
            &["no namespace peony.internal in eu-west-1", "owner=ACCOUNT"],
        );
        says(refused(400, "ServiceNotFound"), &["no service head", "peony.internal", "eu-west-1"]);
        says(
            refused(403, "InvalidSignatureException"),
            &["does not accept the credentials", "clock", "region"],
        );
        says(refused(400, "InvalidInput"), &["InvalidInput", "not authorized."]);
        says(
            failure("x", CallError::NoCredentials("no AWS credentials: none".to_owned()), &query(), "r"),
            &["no AWS credentials"],
        );
    }

    #[test]
    fn health_shows_although_the_revision_stays() {
        assert!(is_fresh(WHOLE_MAX - POLL) && !is_fresh(WHOLE_MAX));
    }

    #[test]
    fn what_time_heals_is_no_refusal() {
        for (status, code) in
            [(400, "RequestLimitExceeded"), (400, "ThrottlingException"), (503, "x"), (500, "y")]
        {
            assert!(matches!(refused(status, code), Failure::Unanswered(_)), "{code}");
        }
    }

    #[test]
    fn an_instance_without_an_address_is_no_silent_hole() {
        let list =
            |attributes: Value| json!({"Instances": [{"InstanceId": "i-1", "Attributes": attributes}]});
        for attributes in [
            json!({}),
            json!({"AWS_INSTANCE_CNAME": "a.b"}),
            json!({"AWS_INSTANCE_IPV4": "a.b"}),
            json!({"AWS_INSTANCE_IPV4": "10.0.0.1", "AWS_INSTANCE_PORT": "0"}),
        ] {
            let text = endpoints(&list(attributes), 1).unwrap_err().to_string();
            assert!(text.contains("instance i-1 has no usable address"), "{text}");
        }
        assert!(endpoints(&json!({}), 1).is_err());
    }

    proptest! {
        #[test]
        fn every_instance_of_a_list_is_a_peer(
            instances in prop::collection::vec((any::<IpAddr>(), prop::option::of(1_u16..)), 0..40),
        ) {
            let listed: Vec<Value> = instances
                .iter()
                .map(|(ip, port)| {
                    let key = if ip.is_ipv4() { "AWS_INSTANCE_IPV4" } else { "AWS_INSTANCE_IPV6" };
                    let mut attributes = json!({key: ip.to_string()});
                    if let Some(port) = port {
                        attributes["AWS_INSTANCE_PORT"] = json!(port.to_string());
                    }
                    json!({"InstanceId": "i", "Attributes": attributes})
                })
                .collect();
            let expected: Vec<(IpAddr, u16)> =
                instances.iter().map(|(ip, port)| (*ip, port.unwrap_or(7400))).collect();
            prop_assert_eq!(endpoints(&json!({"Instances": listed}), 7400).unwrap(), expected);
        }
    }
}
