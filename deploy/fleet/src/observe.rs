//! Events of ECS, as EventBridge puts them into a queue. They are hints: one that is lost, doubled or late changes nothing but the time
//! at which `fleet` learns the same from a description.

use serde::Deserialize;

/// What an event says of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The account.
    pub account: String,
    /// The Region.
    pub region: String,
    /// The cluster.
    pub cluster: String,
    /// The service.
    pub service: String,
    /// When, in milliseconds since 1970, by AWS's clock.
    pub at_ms: i64,
    /// What happened.
    pub what: Happened,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happened {
    /// The deployment with this id ended well.
    Completed(String),
    /// A deployment was broken off. Its id and the reason.
    Failed(String, String),
    /// A deployment began. Its id.
    Began(String),
    /// A task of the service ended, for this reason.
    Stopped(String),
    /// A task of the service runs.
    Running,
    /// The service has all its tasks.
    Steady,
    /// ECS has trouble with it.
    Trouble(String),
}

#[derive(Deserialize)]
struct Envelope {
    account: String,
    region: String,
    time: chrono::DateTime<chrono::Utc>,
    #[serde(rename = "detail-type")]
    kind: String,
    #[serde(default)]
    resources: Vec<String>,
    detail: Detail,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Detail {
    event_name: String,
    deployment_id: String,
    reason: String,
    cluster_arn: String,
    group: String,
    last_status: String,
    stopped_reason: String,
}

/// Reads a message. None if it is of another kind, or of no service: a message that cannot be read tells nothing, and the sweep
/// sees what it would have told.
#[must_use]
pub fn read(body: &str) -> Option<Event> {
    let event: Envelope = serde_json::from_str(body).ok()?;
    let detail = event.detail;
    let last = |arn: &str| arn.rsplit('/').next().map(str::to_owned);
    let of_service = event.resources.iter().find_map(|arn| {
        // arn:aws:ecs:REGION:ACCOUNT:service/CLUSTER/NAME
        let (_, path) = arn.split_once(":service/")?;
        let (cluster, name) = path.split_once('/')?;
        Some((cluster.to_owned(), name.to_owned()))
    });
    let (cluster, service, what) = match event.kind.as_str() {
        "ECS Deployment State Change" => {
            let (cluster, service) = of_service?;
            let what = match detail.event_name.as_str() {
                "SERVICE_DEPLOYMENT_COMPLETED" => Happened::Completed(detail.deployment_id),
                "SERVICE_DEPLOYMENT_FAILED" => Happened::Failed(detail.deployment_id, detail.reason),
                "SERVICE_DEPLOYMENT_IN_PROGRESS" => Happened::Began(detail.deployment_id),
                _ => return None,
            };
            (cluster, service, what)
        }
        "ECS Service Action" => {
            let (cluster, service) = of_service?;
            let what = match detail.event_name.as_str() {
                "SERVICE_STEADY_STATE" => Happened::Steady,
                name => {
                    Happened::Trouble(if detail.reason.is_empty() { name.to_owned() } else { detail.reason })
                }
            };
            (cluster, service, what)
        }
        "ECS Task State Change" => {
            let service = detail.group.strip_prefix("service:")?.to_owned();
            let what = match detail.last_status.as_str() {
                "STOPPED" => Happened::Stopped(detail.stopped_reason),
                "RUNNING" => Happened::Running,
                _ => return None,
            };
            (last(&detail.cluster_arn)?, service, what)
        }
        _ => return None,
    };
    let at_ms = event.time.timestamp_millis();
    Some(Event { account: event.account, region: event.region, cluster, service, at_ms, what })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn body(kind: &str, resource: &str, detail: &serde_json::Value) -> String {
        json!({
            "version": "0", "id": "dd00f42f-dc6f-4b68-9fb4-6d8e5b9f3a1b", "detail-type": kind, "source": "aws.ecs",
            "account": "111122223333", "time": "2026-11-30T12:31:14Z", "region": "eu-central-1",
            "resources": [resource], "detail": detail,
        })
        .to_string()
    }

    const SERVICE: &str = "arn:aws:ecs:eu-central-1:111122223333:service/tulip/trellis-unit-a";

    #[test]
    fn a_deployment_that_ended_names_its_service() {
        let detail = json!({"eventType": "INFO", "eventName": "SERVICE_DEPLOYMENT_COMPLETED", "deploymentId": "ecs-svc/1",
            "updatedAt": "2026-11-30T12:31:12Z", "reason": "ECS deployment ecs-svc/1 completed."});
        let event = read(&body("ECS Deployment State Change", SERVICE, &detail)).unwrap();
        assert_eq!((event.cluster.as_str(), event.service.as_str()), ("tulip", "trellis-unit-a"));
        assert_eq!(event.what, Happened::Completed("ecs-svc/1".into()));
    }

    #[test]
    fn a_task_that_stopped_names_its_service_by_its_group() {
        let task = "arn:aws:ecs:eu-central-1:111122223333:task/tulip/0123";
        let mut detail = json!({"clusterArn": "arn:aws:ecs:eu-central-1:111122223333:cluster/tulip", "lastStatus": "STOPPED",
            "desiredStatus": "STOPPED", "group": "service:trellis-unit-a", "stoppedReason": "Essential container exited", "version": 7});
        let event = read(&body("ECS Task State Change", task, &detail)).unwrap();
        assert_eq!(event.what, Happened::Stopped("Essential container exited".into()));
        detail["group"] = json!("family:by-hand");
        assert_eq!(read(&body("ECS Task State Change", task, &detail)), None);
    }

    proptest! {
        #[test]
        fn no_message_breaks_it(text in ".{0,200}", cut in 0_usize..400) {
            let _ = read(&text);
            let detail = json!({"eventName": "SERVICE_STEADY_STATE"});
            let whole = body("ECS Service Action", SERVICE, &detail);
            prop_assert!(read(&whole[..cut.min(whole.len() - 1)]).is_none());
        }
    }
}
