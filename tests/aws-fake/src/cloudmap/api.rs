//! The calls that make, change and list.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::fail::{Answer, Fail, read};
use crate::kept::{CloudMap, Namespace, Region, Registry};
use crate::page::page;
use crate::time::{Ctx, mix};

pub(crate) fn handle(ctx: &mut Ctx, region: &mut Region, op: &str, body: &Value) -> Answer {
    match op {
        "CreatePrivateDnsNamespace" => create_namespace(ctx, region, body, "DNS_PRIVATE"),
        "CreateHttpNamespace" => create_namespace(ctx, region, body, "HTTP"),
        "GetOperation" => operation(ctx, region, body),
        "GetNamespace" => get_namespace(ctx, region, body),
        "ListNamespaces" => list_namespaces(ctx, region, body),
        "CreateService" => create(ctx, region, body),
        "GetService" => get(ctx, region, body),
        "ListServices" => list(ctx, region, body),
        "DeleteService" => delete(ctx, region, body),
        "RegisterInstance" => register(ctx, region, body),
        "DeregisterInstance" => deregister(ctx, region, body),
        "ListInstances" => instances(region, body),
        "UpdateInstanceCustomHealthStatus" => health(ctx, region, body),
        _ => Err(Fail::not_faked(format!("Cloud Map {op}"))),
    }
}

fn invalid(message: impl Into<String>) -> Fail {
    Fail::new("InvalidInput", 400, message)
}

fn no_service() -> Fail {
    Fail::new("ServiceNotFound", 404, "No service with that ID.")
}

fn arn(region: &Region, kind: &str, id: &str) -> String {
    format!("arn:aws:servicediscovery:{}:{}:{kind}/{id}", region.name, region.account)
}

fn done(ctx: &mut Ctx, map: &mut CloudMap, kind: &'static str, targets: Value) -> Value {
    let id = format!("{:016x}{:016x}", mix(ctx.serial()), ctx.serial());
    map.operations.insert(id.clone(), (kind, ctx.now, targets));
    ctx.changed = true;
    json!({"OperationId": id})
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
#[allow(dead_code)]
struct CreateNamespace {
    name: String,
    creator_request_id: Option<String>,
    description: Option<String>,
    vpc: Option<String>,
    #[serde(default)]
    tags: Value,
    properties: Option<Value>,
}

fn create_namespace(ctx: &mut Ctx, region: &mut Region, body: &Value, kind: &'static str) -> Answer {
    let asked: CreateNamespace = read(body)?;
    if kind == "DNS_PRIVATE" && asked.vpc.is_none() {
        return Err(invalid("Vpc is required."));
    }
    if region.map.namespaces.values().any(|each| each.name == asked.name) {
        return Err(Fail::new("NamespaceAlreadyExists", 400, "The namespace exists."));
    }
    let id = region.map.make_namespace(ctx, &asked.name, kind);
    Ok(done(ctx, &mut region.map, "CREATE_NAMESPACE", json!({"NAMESPACE": &*id})))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Operation {
    operation_id: String,
    #[allow(dead_code)]
    owner_account: Option<String>,
}

fn operation(ctx: &Ctx, region: &Region, body: &Value) -> Answer {
    let asked: Operation = read(body)?;
    let found = region.map.operations.get(&asked.operation_id);
    let (kind, at, targets) =
        found.ok_or_else(|| Fail::new("OperationNotFound", 404, "No operation with that ID."))?;
    Ok(json!({"Operation": {
        "Id": asked.operation_id, "Type": kind, "Status": "SUCCESS", "Targets": targets,
        "CreateDate": ctx.stamp(*at), "UpdateDate": ctx.stamp(*at),
    }}))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Id {
    id: String,
}

fn namespace(ctx: &Ctx, region: &Region, each: &Namespace) -> Value {
    json!({
        "Id": &*each.id,
        "Arn": arn(region, "namespace", &each.id),
        "ResourceOwner": &*region.account,
        "Name": each.name,
        "Type": each.kind,
        "ServiceCount": each.services,
        "CreateDate": ctx.stamp(each.created),
        "Properties": {"HttpProperties": {"HttpName": each.name}},
    })
}

fn get_namespace(ctx: &Ctx, region: &Region, body: &Value) -> Answer {
    let asked: Id = read(body)?;
    let found = region.map.namespaces.get(CloudMap::id_of(&asked.id));
    let found = found.ok_or_else(|| Fail::new("NamespaceNotFound", 404, "No namespace with that ID."))?;
    Ok(json!({"Namespace": namespace(ctx, region, found)}))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct List {
    next_token: Option<String>,
    max_results: Option<i64>,
    #[serde(default)]
    filters: Vec<Filter>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Filter {
    name: String,
    values: Vec<String>,
    condition: Option<String>,
}

impl List {
    fn page(&self) -> Result<usize, Fail> {
        match self.max_results.unwrap_or(100) {
            most @ 1..=100 => Ok(most as usize),
            _ => Err(invalid("MaxResults must be between 1 and 100.")),
        }
    }

    fn chosen(&self, key: &str, value: &str) -> Result<bool, Fail> {
        let mut all = true;
        for filter in self.filters.iter().filter(|filter| filter.name == key) {
            match filter.condition.as_deref().unwrap_or("EQ") {
                "EQ" | "IN" => all &= filter.values.iter().any(|wanted| wanted == value),
                other => return Err(Fail::not_faked(format!("the condition {other}"))),
            }
        }
        Ok(all)
    }
}

fn list_namespaces(ctx: &Ctx, region: &Region, body: &Value) -> Answer {
    let asked: List = read(body)?;
    let after = asked.next_token.clone().unwrap_or_default();
    let mut all = Vec::new();
    for (id, each) in region.map.namespaces.iter().filter(|(id, _)| ***id > *after) {
        if asked.chosen("TYPE", each.kind)? && asked.chosen("NAME", &each.name)? {
            all.push((id, namespace(ctx, region, each)));
        }
    }
    let (found, next) = page(all.into_iter(), asked.page()?, |id| id.to_string());
    Ok(with_token("Namespaces", found, next))
}

fn with_token(name: &str, found: Vec<Value>, next: Option<String>) -> Value {
    let mut out = json!({ name: found });
    if let Some(next) = next {
        out["NextToken"] = json!(next);
    }
    out
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
#[allow(dead_code)]
struct Create {
    name: String,
    namespace_id: Option<String>,
    creator_request_id: Option<String>,
    description: Option<String>,
    dns_config: Option<Value>,
    health_check_custom_config: Option<Value>,
    #[serde(default)]
    tags: Value,
    r#type: Option<String>,
}

fn service(ctx: &Ctx, region: &Region, each: &Registry) -> Value {
    let mut out = json!({
        "Id": &*each.id,
        "Arn": arn(region, "service", &each.id),
        "ResourceOwner": &*region.account,
        "CreatedByAccount": &*region.account,
        "Name": each.name,
        "NamespaceId": &*each.namespace,
        "InstanceCount": each.instances.values().filter(|each| each.gone.is_none()).count(),
        "Type": if each.dns.is_null() { "HTTP" } else { "DNS_HTTP" },
        "CreateDate": ctx.stamp(each.created),
    });
    if !each.dns.is_null() {
        out["DnsConfig"] = each.dns.clone();
    }
    if each.custom_health {
        out["HealthCheckCustomConfig"] = json!({"FailureThreshold": 1});
    }
    if let Some(creator) = &each.creator {
        out["CreatorRequestId"] = json!(creator);
    }
    out
}

fn create(ctx: &mut Ctx, region: &mut Region, body: &Value) -> Answer {
    let asked: Create = read(body)?;
    let id = asked
        .namespace_id
        .as_deref()
        .or(asked.dns_config.as_ref().and_then(|dns| dns["NamespaceId"].as_str()));
    let id: Arc<str> = CloudMap::id_of(id.unwrap_or_default()).into();
    if !region.map.namespaces.contains_key(&id) {
        return Err(Fail::new("NamespaceNotFound", 404, "No namespace with that ID."));
    }
    if let Some(old) =
        region.map.by_name.get(&(id.clone(), asked.name.clone())).and_then(|id| region.map.services.get(id))
    {
        let again = asked.creator_request_id.is_some() && old.creator == asked.creator_request_id;
        let answer = json!({"Service": service(ctx, region, old)});
        let exists =
            Fail::new("ServiceAlreadyExists", 400, format!("The service {} exists: {}.", old.name, old.id));
        return if again { Ok(answer) } else { Err(exists) };
    }
    let mut dns = asked.dns_config.unwrap_or_default();
    if let Value::Object(map) = &mut dns {
        map.entry("RoutingPolicy").or_insert(json!("MULTIVALUE"));
        map.insert("NamespaceId".into(), json!(&*id));
    }
    let health = asked.health_check_custom_config.is_some();
    let made = region.map.make_service(ctx, &id, &asked.name, dns, health, asked.creator_request_id);
    ctx.changed = true;
    let made = made.and_then(|id| region.map.services.get(&id)).ok_or_else(no_service)?;
    Ok(json!({"Service": service(ctx, region, made)}))
}

fn get(ctx: &Ctx, region: &Region, body: &Value) -> Answer {
    let asked: Id = read(body)?;
    let found = region.map.services.get(CloudMap::id_of(&asked.id)).ok_or_else(no_service)?;
    Ok(json!({"Service": service(ctx, region, found)}))
}

fn list(ctx: &Ctx, region: &Region, body: &Value) -> Answer {
    let asked: List = read(body)?;
    let after = asked.next_token.clone().unwrap_or_default();
    let mut all = Vec::new();
    for (id, each) in region.map.services.iter().filter(|(id, _)| ***id > *after) {
        if asked.chosen("NAMESPACE_ID", &each.namespace)? {
            let mut shown = service(ctx, region, each);
            if let Value::Object(map) = &mut shown {
                map.remove("NamespaceId");
                map.remove("CreatorRequestId");
            }
            all.push((id, shown));
        }
    }
    let (found, next) = page(all.into_iter(), asked.page()?, |id| id.to_string());
    Ok(with_token("Services", found, next))
}

fn delete(ctx: &mut Ctx, region: &mut Region, body: &Value) -> Answer {
    let asked: Id = read(body)?;
    let id: Arc<str> = CloudMap::id_of(&asked.id).into();
    let found = region.map.services.get(&id).ok_or_else(no_service)?;
    if found.instances.values().any(|each| each.gone.is_none()) {
        return Err(Fail::new("ResourceInUse", 409, "The service has registered instances."));
    }
    if let Some(old) = region.map.services.remove(&id) {
        if let Some(namespace) = region.map.namespaces.get_mut(&old.namespace) {
            namespace.services -= 1;
        }
        region.map.by_name.remove(&(old.namespace, old.name));
    }
    ctx.changed = true;
    Ok(json!({}))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Register {
    service_id: String,
    instance_id: String,
    #[allow(dead_code)]
    creator_request_id: Option<String>,
    #[serde(default)]
    attributes: BTreeMap<String, String>,
    status: Option<String>,
}

/// Attributes of an instance, at most.
const ATTRIBUTES: usize = 30;

fn register(ctx: &mut Ctx, region: &mut Region, body: &Value) -> Answer {
    let asked: Register = read(body)?;
    if asked.attributes.len() > ATTRIBUTES {
        return Err(invalid("An instance has 30 attributes at most."));
    }
    let healthy = asked.attributes.get("AWS_INIT_HEALTH_STATUS").is_none_or(|status| status == "HEALTHY");
    region.map.register(
        ctx,
        &region.quotas,
        &asked.service_id,
        &asked.instance_id,
        asked.attributes,
        healthy,
    )?;
    let targets = json!({"INSTANCE": asked.instance_id, "SERVICE": CloudMap::id_of(&asked.service_id)});
    Ok(done(ctx, &mut region.map, "REGISTER_INSTANCE", targets))
}

fn deregister(ctx: &mut Ctx, region: &mut Region, body: &Value) -> Answer {
    let asked: Register = read(body)?;
    if !region.map.services.contains_key(CloudMap::id_of(&asked.service_id)) {
        return Err(no_service());
    }
    if !region.map.deregister(ctx, &asked.service_id, &asked.instance_id) {
        return Err(Fail::new("InstanceNotFound", 404, "No instance with that ID."));
    }
    let targets = json!({"INSTANCE": asked.instance_id, "SERVICE": CloudMap::id_of(&asked.service_id)});
    Ok(done(ctx, &mut region.map, "DEREGISTER_INSTANCE", targets))
}

fn health(ctx: &mut Ctx, region: &mut Region, body: &Value) -> Answer {
    let asked: Register = read(body)?;
    let found = region.map.services.get(CloudMap::id_of(&asked.service_id)).ok_or_else(no_service)?;
    if !found.custom_health {
        return Err(Fail::new("CustomHealthNotFound", 404, "The service has no custom health check."));
    }
    let healthy = match asked.status.as_deref() {
        Some("HEALTHY") => true,
        Some("UNHEALTHY") => false,
        _ => return Err(invalid("Status must be HEALTHY or UNHEALTHY.")),
    };
    if !region.map.set_health(ctx, &asked.service_id, &asked.instance_id, healthy) {
        return Err(Fail::new("InstanceNotFound", 404, "No instance with that ID."));
    }
    ctx.changed = true;
    Ok(json!({}))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Instances {
    service_id: String,
    next_token: Option<String>,
    max_results: Option<i64>,
}

fn instances(region: &Region, body: &Value) -> Answer {
    let asked: Instances = read(body)?;
    let found = region.map.services.get(CloudMap::id_of(&asked.service_id)).ok_or_else(no_service)?;
    let after = asked.next_token.clone().unwrap_or_default();
    let list = List { next_token: None, max_results: asked.max_results, filters: Vec::new() };
    let all = found.instances.iter().filter(|(id, each)| ***id > *after && each.gone.is_none());
    let items = all.map(|(id, each)| (id, json!({"Id": &**id, "Attributes": each.attributes})));
    let (shown, next) = page(items, list.page()?, |id| id.to_string());
    Ok(with_token("Instances", shown, next))
}
