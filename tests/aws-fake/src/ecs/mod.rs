//! ECS: its calls, and what happens by itself.

mod clusters;
mod definitions;
mod deployments;
mod events;
mod find;
mod life;
mod lists;
mod rollout;
mod runs;
mod scheduler;
mod services;
mod show;
mod tagging;
mod tags;
mod updates;

use serde_json::Value;

pub(crate) use clusters::make as make_cluster;
pub(crate) use events::render as render_event;
pub(crate) use life::{forget as forget_task, settle as settle_task, step as step_task, stop as stop_task};
pub(crate) use rollout::soon as look_soon;
pub(crate) use scheduler::look;

use crate::fail::{Answer, Fail};
use crate::kept::Region;
use crate::time::Ctx;

/// Answers a call.
pub(crate) fn handle(ctx: &mut Ctx, region: &mut Region, op: &str, body: &Value) -> Answer {
    match op {
        "CreateCluster" => clusters::create(ctx, region, body),
        "DescribeClusters" => clusters::describe(region, body),
        "ListClusters" => clusters::list(region, body),
        "DescribeCapacityProviders" => clusters::providers(region, body),
        "PutAccountSettingDefault" => clusters::setting(ctx, region, body),
        "RegisterTaskDefinition" => definitions::register(ctx, region, body),
        "DeregisterTaskDefinition" => definitions::deregister(ctx, region, body),
        "DescribeTaskDefinition" => definitions::describe(ctx, region, body),
        "ListTaskDefinitions" => definitions::list(region, body),
        "CreateService" => services::create(ctx, region, body),
        "UpdateService" => updates::update(ctx, region, body),
        "DeleteService" => updates::delete(ctx, region, body),
        "DescribeServices" => lists::describe(ctx, region, body),
        "ListServices" => lists::list(ctx, region, body),
        "ListServicesByNamespace" => lists::by_namespace(ctx, region, body),
        "ListServiceDeployments" => deployments::list(ctx, region, body),
        "DescribeServiceDeployments" => deployments::describe(ctx, region, body),
        "RunTask" => runs::run(ctx, region, body),
        "StopTask" => runs::stop(ctx, region, body),
        "ListTasks" => runs::list(region, body),
        "DescribeTasks" => runs::describe(ctx, region, body),
        "TagResource" => tagging::tag(ctx, region, body),
        "UntagResource" => tagging::untag(ctx, region, body),
        "ListTagsForResource" => tagging::list(region, body),
        _ => Err(Fail::not_faked(format!("ECS {op}"))),
    }
}
