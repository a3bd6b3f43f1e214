//! Which ECS task this is, as resource attributes. A failure is logged, and telemetry then lacks a few attributes.

use opentelemetry::KeyValue;
use serde_json::Value;

use crate::task;

/// Resource attributes of the task, after OpenTelemetry's conventions for AWS ECS. Blocks for at most about a second.
pub(super) fn attributes(base: &str) -> Result<Vec<KeyValue>, String> {
    Ok(describe(&task::metadata(base)?))
}

/// Attributes from task metadata. Leaves out missing ones. Pure.
fn describe(task: &Value) -> Vec<KeyValue> {
    let mut attributes =
        vec![KeyValue::new("cloud.provider", "aws"), KeyValue::new("cloud.platform", "aws_ecs")];
    let known = [
        ("AvailabilityZone", "cloud.availability_zone"),
        ("Cluster", "aws.ecs.cluster.arn"),
        ("TaskARN", "aws.ecs.task.arn"),
        ("Family", "aws.ecs.task.family"),
        ("Revision", "aws.ecs.task.revision"),
        ("ServiceName", "aws.ecs.service.name"),
    ];
    for (field, attribute) in known {
        if let Some(value) = task.get(field).and_then(Value::as_str).filter(|value| !value.is_empty()) {
            attributes.push(KeyValue::new(attribute, value.to_owned()));
        }
    }
    if let Some(launch_type) = task.get("LaunchType").and_then(Value::as_str) {
        attributes.push(KeyValue::new("aws.ecs.launchtype", launch_type.to_ascii_lowercase()));
    }
    // arn:aws:ecs:REGION:ACCOUNT:task/CLUSTER/ID
    let arn: Vec<&str> = task.get("TaskARN").and_then(Value::as_str).unwrap_or_default().split(':').collect();
    if let [_, _, _, region, account, ..] = arn[..] {
        attributes.push(KeyValue::new("cloud.region", region.to_owned()));
        attributes.push(KeyValue::new("cloud.account.id", account.to_owned()));
    }
    attributes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_tells_who_it_is() {
        let attributes = describe(&serde_json::from_str(task::tests::TASK).unwrap());
        let find = |key: &str| {
            attributes.iter().find(|kv| kv.key.as_str() == key).map(|kv| kv.value.as_str().into_owned())
        };
        assert_eq!(find("aws.ecs.task.family").as_deref(), Some("head"));
        assert_eq!(find("aws.ecs.service.name").as_deref(), Some("trellis-head-0"));
        assert_eq!(find("aws.ecs.launchtype").as_deref(), Some("fargate"));
        assert_eq!(find("cloud.region").as_deref(), Some("us-west-2"));
        assert_eq!(find("cloud.account.id").as_deref(), Some("111122223333"));
    }
}
