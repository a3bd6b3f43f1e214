//! ListServiceDeployments and DescribeServiceDeployments: of deployments that the service still has.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{find, show};
use crate::fail::{Answer, Fail, read};
use crate::kept::{Deployment, Region, Rollout, Service};
use crate::time::Ctx;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct List {
    cluster: Option<String>,
    service: String,
    #[serde(default)]
    status: Vec<String>,
    #[allow(dead_code)]
    next_token: Option<String>,
    #[allow(dead_code)]
    max_results: Option<i64>,
}

pub(crate) fn list(ctx: &Ctx, region: &Region, body: &Value) -> Answer {
    let asked: List = read(body)?;
    let name = find::cluster_name(region, asked.cluster.as_deref())?;
    let cluster = find::cluster(region, Some(&name))?;
    let service = find::short(region, "service", &asked.service).and_then(|name| cluster.services.get(name));
    let service = service.and_then(|service| service.seen(ctx.now)).ok_or_else(Fail::service)?;
    let all = service.deployments.iter().map(|each| shown(ctx, region, &name, service, each));
    let chosen = all.filter(|each| {
        asked.status.is_empty() || asked.status.iter().any(|status| each["status"] == status.as_str())
    });
    Ok(json!({"serviceDeployments": chosen.collect::<Vec<_>>()}))
}

fn shown(ctx: &Ctx, region: &Region, cluster: &str, service: &Service, one: &Deployment) -> Value {
    let path = format!("{cluster}/{}", service.name);
    let status = match (one.rollout, one.rollback) {
        (Rollout::InProgress, false) => "IN_PROGRESS",
        (Rollout::InProgress, true) => "ROLLBACK_IN_PROGRESS",
        (Rollout::Completed, false) => "SUCCESSFUL",
        (Rollout::Completed, true) => "ROLLBACK_SUCCESSFUL",
        (Rollout::Failed, false) => "STOPPED",
        (Rollout::Failed, true) => "ROLLBACK_FAILED",
    };
    let mut out = json!({
        "serviceDeploymentArn": show::service_deployment_arn(region, &path, one.id),
        "serviceArn": region.arn("service", &path),
        "clusterArn": region.arn("cluster", cluster),
        "createdAt": ctx.stamp(one.created),
        "startedAt": ctx.stamp(one.created),
        "targetServiceRevisionArn": region.arn("service-revision", &format!("{path}/{}", one.id)),
        "status": status,
        "statusReason": one.reason,
    });
    if let Some(at) = one.finished {
        out["finishedAt"] = json!(ctx.stamp(at));
    }
    out
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Describe {
    service_deployment_arns: Vec<String>,
}

pub(crate) fn describe(ctx: &Ctx, region: &Region, body: &Value) -> Answer {
    let asked: Describe = read(body)?;
    let (mut found, mut failures) = (Vec::new(), Vec::new());
    for arn in &asked.service_deployment_arns {
        let path = arn.strip_prefix(&region.arn("service-deployment", "")).unwrap_or_default();
        let mut parts = path.split('/');
        let (cluster, name) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let service = region.clusters.get(cluster).and_then(|cluster| cluster.services.get(name));
        let one = service.and_then(|service| {
            let all = service.deployments.iter().map(|each| shown(ctx, region, cluster, service, each));
            all.into_iter().find(|each| each["serviceDeploymentArn"] == arn.as_str())
        });
        match one {
            Some(mut one) => {
                // the brief form names the revision; this one shows its counts, too
                if let Value::Object(map) = &mut one
                    && let Some(revision) = map.remove("targetServiceRevisionArn")
                {
                    map.insert("targetServiceRevision".into(), json!({"arn": revision}));
                }
                found.push(one);
            }
            None => failures.push(json!({"arn": arn, "reason": "MISSING"})),
        }
    }
    Ok(json!({"serviceDeployments": found, "failures": failures}))
}
