//! What those who look for a name get: from the API, and from DNS.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::fail::{Answer, Fail, read};
use crate::kept::{CloudMap, Instance, Registry};
use crate::time::{Ctx, mix};

/// Addresses in one answer of DNS.
const ANSWERS: usize = 8;
/// Instances of one DiscoverInstances: when not asked, and at most.
const DEFAULT: i64 = 100;
const MOST: i64 = 1000;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Discover {
    namespace_name: String,
    service_name: String,
    max_results: Option<i64>,
    #[serde(default)]
    query_parameters: BTreeMap<String, String>,
    #[serde(default)]
    optional_parameters: BTreeMap<String, String>,
    health_status: Option<String>,
    owner_account: Option<String>,
}

impl CloudMap {
    fn named(
        &mut self,
        caller: &str,
        owner: &str,
        namespace: &str,
        name: &str,
    ) -> Result<&mut Registry, Fail> {
        let found = self.namespaces.values().find(|each| each.name == namespace);
        let found = found.filter(|each| caller == owner || each.shared.contains(caller));
        let id = found.map(|each| each.id.clone());
        let id =
            id.ok_or_else(|| Fail::new("NamespaceNotFound", 404, format!("No namespace {namespace}.")))?;
        let service = self.by_name.get(&(id, name.to_owned())).and_then(|id| self.services.get_mut(id));
        service.ok_or_else(|| Fail::new("ServiceNotFound", 404, format!("No service {name} in {namespace}.")))
    }

    /// The addresses that DNS answers for a name: 8 of the healthy ones by chance; if none is healthy, 8 of all.
    pub(crate) fn dns(&mut self, ctx: &mut Ctx, namespace: &str, name: &str) -> Vec<String> {
        let chance = ctx.serial();
        let Ok(service) = self.named("", "", namespace, name) else { return Vec::new() };
        let now = ctx.now;
        let shown: Vec<&Instance> = service.instances.values().filter(|each| each.shown(now)).collect();
        let healthy: Vec<&Instance> = shown.iter().copied().filter(|each| each.healthy(now)).collect();
        let mut answer = if healthy.is_empty() { shown } else { healthy };
        let address = |each: &Instance| each.attributes.get("AWS_INSTANCE_IPV4").cloned().unwrap_or_default();
        answer.sort_by_key(|each| {
            let number = address(each).bytes().fold(chance, |hash, byte| mix(hash ^ u64::from(byte)));
            ctx.draw("dns", number)
        });
        answer.into_iter().take(ANSWERS).map(address).collect()
    }
}

/// A question, and who asks whom.
pub(crate) struct Asked {
    asked: Discover,
    caller: String,
    owner: String,
    revision_only: bool,
}

impl Asked {
    pub(crate) fn read(caller: &str, op: &str, body: &Value) -> Result<Self, Fail> {
        let asked: Discover = read(body)?;
        let owner = asked.owner_account.clone().unwrap_or_else(|| caller.to_owned());
        Ok(Self { asked, caller: caller.into(), owner, revision_only: op == "DiscoverInstancesRevision" })
    }

    /// The account that has the namespace.
    pub(crate) fn owner(&self) -> &str {
        &self.owner
    }

    pub(crate) fn answer(&self, ctx: &mut Ctx, map: &mut CloudMap) -> Answer {
        let asked = &self.asked;
        let chance = ctx.serial();
        let now = ctx.now;
        let service = map.named(&self.caller, &self.owner, &asked.namespace_name, &asked.service_name)?;
        let revision = service.revision(now);
        if self.revision_only {
            return Ok(json!({"InstancesRevision": revision}));
        }
        let most = asked.max_results.unwrap_or(DEFAULT);
        if !(1..=MOST).contains(&most) {
            return Err(Fail::new("InvalidInput", 400, "MaxResults must be between 1 and 1000."));
        }
        let has = |each: &Instance, wanted: &BTreeMap<String, String>| {
            wanted.iter().all(|(key, value)| each.attributes.get(key) == Some(value))
        };
        let mut found: Vec<_> = service
            .instances
            .iter()
            .filter(|(_, each)| each.shown(now) && has(each, &asked.query_parameters))
            .collect();
        if found.iter().any(|(_, each)| has(each, &asked.optional_parameters)) {
            found.retain(|(_, each)| has(each, &asked.optional_parameters));
        }
        let any = found.iter().any(|(_, each)| each.healthy(now));
        match asked.health_status.as_deref().unwrap_or("HEALTHY") {
            "ALL" => {}
            "HEALTHY" => found.retain(|(_, each)| each.healthy(now)),
            "UNHEALTHY" => found.retain(|(_, each)| !each.healthy(now)),
            "HEALTHY_OR_ELSE_ALL" => found.retain(|(_, each)| !any || each.healthy(now)),
            other => return Err(Fail::new("InvalidInput", 400, format!("Invalid HealthStatus: {other}"))),
        }
        found.sort_by_key(|(id, _)| {
            let number = id.bytes().fold(chance, |hash, byte| mix(hash ^ u64::from(byte)));
            ctx.draw("discover", number)
        });
        let instances: Vec<Value> = found
            .into_iter()
            .take(most as usize)
            .map(|(id, each)| {
                json!({
                    "InstanceId": &**id,
                    "NamespaceName": asked.namespace_name,
                    "ServiceName": asked.service_name,
                    "HealthStatus": if each.healthy(now) { "HEALTHY" } else { "UNHEALTHY" },
                    "Attributes": each.attributes,
                })
            })
            .collect();
        Ok(json!({"Instances": instances, "InstancesRevision": revision}))
    }
}
