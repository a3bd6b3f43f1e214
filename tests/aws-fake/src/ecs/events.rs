//! What EventBridge tells of ECS, as AWS's documentation shows it.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::show;
use crate::kept::{Note, Region};
use crate::time::{Ctx, mix, uuid};

/// Puts an event into the queue of the cluster: once, or as often as the faults say.
pub(crate) fn send(ctx: &mut Ctx, region: &mut Region, cluster: &Arc<str>, note: Note) {
    let id = ctx.serial();
    let mut copies = 1;
    if ctx.draw_share(ctx.faults.events_lost, "event lost", id) {
        copies = 0;
    } else if ctx.draw_share(ctx.faults.events_twice, "event twice", id) {
        copies = 2;
    }
    for copy in 0..copies {
        let delay = ctx.draw_time(&ctx.set.times.event, "event", mix(id) ^ copy);
        let (at, now) = (ctx.now + delay, ctx.now);
        let queue = format!("{}-{cluster}-events", ctx.set.grid);
        if let Some(queue) = region.queues.by_name.get_mut(queue.as_str()) {
            let serial = ctx.serial();
            queue.send(at, now, serial, id, cluster.clone(), note.clone());
        }
    }
}

/// The event as a message's body.
pub(crate) fn render(ctx: &Ctx, region: &Region, cluster: &str, id: u64, at: Duration, note: &Note) -> Value {
    let cluster_arn = region.arn("cluster", cluster);
    let (kind, resource, detail) = match note {
        Note::Task(task) => (
            "ECS Task State Change",
            region.arn("task", &format!("{cluster}/{}", task.hex())),
            show::task(region, cluster, task, &|at| json!(ctx.text(at))),
        ),
        Note::Deployment { service, deployment, name, reason } => (
            "ECS Deployment State Change",
            region.arn("service", &format!("{cluster}/{service}")),
            json!({
                "eventType": if *name == "SERVICE_DEPLOYMENT_FAILED" { "ERROR" } else { "INFO" },
                "eventName": name,
                // AWS's own example lacks it; recorded events of 2025 have it
                "clusterArn": cluster_arn,
                "deploymentId": show::deployment_id(*deployment),
                "updatedAt": ctx.text(at),
                "reason": reason,
            }),
        ),
        Note::Action { service, kind, name, reason } => {
            let mut detail = json!({
                "eventType": kind, "eventName": name, "clusterArn": cluster_arn, "createdAt": ctx.text(at),
            });
            if let Some(reason) = reason {
                detail["reason"] = json!(reason);
            }
            ("ECS Service Action", region.arn("service", &format!("{cluster}/{service}")), detail)
        }
    };
    json!({
        "version": "0",
        "id": uuid(id),
        "detail-type": kind,
        "source": "aws.ecs",
        "account": &*region.account,
        "time": ctx.text(at),
        "region": &*region.name,
        "resources": [resource],
        "detail": detail,
    })
}
