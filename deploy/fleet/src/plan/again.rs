//! Runs sessions of a unit again, all of its partitions or some: RunTask, because only a task takes other variables than its definition. Pure.

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::types::Plan;
use crate::{
    class::classes,
    definition::unit_files,
    desired::Desired,
    model::{Place, Role, Service},
};

/// `startedBy` of the tasks, by which ListTasks finds them.
pub const STARTED_BY: &str = "trellis-again";
/// Hex digits of a client token; ECS takes 64 characters.
const TOKEN_DIGITS: usize = 32;

/// A call of RunTask.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// Its account and Region.
    pub place: Place,
    /// The service whose work it does.
    pub service: String,
    /// The body of RunTask, AWS's own names. `taskDefinition` is a family: ECS takes its newest revision.
    pub body: Value,
}

/// The calls that run `sessions` of a unit again. `partitions` empty: all of them. `attempt` tells a second wish from a repeated call:
/// ECS answers a call with the same token with the same task.
///
/// The tasks end when they are done. One whose service still runs waits for the lease of the unit, and then says who has it.
///
/// # Errors
/// The unit, session or partition that does not exist.
pub fn again(
    desired: &Desired,
    plan: &Plan,
    unit: &str,
    sessions: &[chrono::NaiveDate],
    partitions: &[String],
    attempt: u32,
) -> Result<Vec<Run>, String> {
    let known = desired.units.get(unit).ok_or_else(|| format!("there is no file units/{unit}.json"))?;
    if sessions.is_empty() {
        return Err("name at least one session, such as 2026-11-30".to_owned());
    }
    if let Some(missing) = partitions.iter().find(|wanted| !known.partitions.contains(wanted)) {
        let all = known.partitions.join(", ");
        return Err(format!(
            "{unit} has no partition {missing}; it has {}",
            if all.is_empty() { "none" } else { &all }
        ));
    }
    let sessions: Vec<String> = sessions.iter().map(ToString::to_string).collect();
    let chosen = known.names().filter(|(_, part)| {
        partitions.is_empty() || part.is_some_and(|part| partitions.iter().any(|wanted| wanted == part))
    });
    chosen
        .map(|(name, _)| {
            let name = desired.service(Role::Unit, &name);
            let service = plan.services.iter().find(|service| service.name == name);
            let service = service.ok_or_else(|| format!("{name} has no place; see the plan"))?;
            Ok(Run {
                place: service.place.clone(),
                body: body(desired, service, &sessions.join(","), attempt),
                service: name,
            })
        })
        .collect()
}

fn body(desired: &Desired, service: &Service, sessions: &str, attempt: u32) -> Value {
    let network = desired.network(service);
    let variable = |name: &str, value: &str| json!({"name": name, "value": value});
    let token = Sha256::digest(format!("{}\0{sessions}\0{}\0{attempt}", service.name, service.definition));
    let token: String = format!("{token:x}").chars().take(TOKEN_DIGITS).collect();
    let tags: Vec<_> = service.tags.iter().map(|(key, value)| json!({"key": key, "value": value})).collect();
    json!({
        "cluster": service.cluster,
        "taskDefinition": service.family,
        "capacityProviderStrategy": [{"capacityProvider": service.provider, "weight": 1}],
        "count": 1,
        "clientToken": token,
        "startedBy": STARTED_BY,
        "networkConfiguration": {"awsvpcConfiguration": {
            "subnets": network.as_ref().map(|network| network.subnets.clone()).unwrap_or_default(),
            "securityGroups": network.map(|network| network.security_groups).unwrap_or_default(),
            "assignPublicIp": classes().service.assign_public_ip,
        }},
        "overrides": {"containerOverrides": [{
            "name": service.role.word(),
            "environment": [
                variable("TRELLIS_SESSIONS", sessions),
                variable("TRELLIS_EXIT_WHEN_DONE", "true"),
                // a deployment of its own: only a new one publishes a session again
                variable("TRELLIS_DEPLOYMENT", &token),
                // the task is no service's, so it cannot find its file by the service's name
                variable("TRELLIS_UNIT_FILE", &format!("{}{}.json", unit_files(desired), service.name)),
            ],
        }]},
        "tags": tags,
    })
}
