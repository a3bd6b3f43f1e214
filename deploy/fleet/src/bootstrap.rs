//! What CloudFormation cannot set in an account: step 9 of the runbook (`deploy/aws/README.md`). Each step first looks, or is one that AWS
//! lets repeat, so the whole may be repeated.

use std::fmt;

use aws_config::SdkConfig;
use aws_sdk_ecs::types::SettingName;
use aws_smithy_types::error::display::DisplayErrorContext;
use serde::Serialize;

use crate::{
    aws::{Door, Query, Refusal, bootstrap_role, element},
    desired::{Desired, Kind},
    model::Place,
};

/// IAM is one for all Regions, and signs with this one.
const IAM_REGION: &str = "us-east-1";
/// Version of IAM's API.
const IAM: &str = "2010-05-08";
/// Version of EC2's API.
const EC2: &str = "2016-11-15";
/// Days until AWS retires a task: the longest there is.
const RETIREMENT_DAYS: &str = "14";
/// The tag of managed instances that the event window is for: see `cfn/cluster.yaml`.
const WINDOW_TAG: &str = "trellis:event-window";
/// When instances may be replaced: from Saturday morning to Sunday evening (UTC) no exchange of the runbook trades.
const WINDOW: [(&str, &str); 4] = [
    ("TimeRange.1.StartWeekDay", "saturday"),
    ("TimeRange.1.StartHour", "4"),
    ("TimeRange.1.EndWeekDay", "sunday"),
    ("TimeRange.1.EndHour", "18"),
];

/// A step, done or not.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// The account.
    pub account: String,
    /// What was to do.
    pub what: String,
    /// Whether it was so before.
    pub was_so: bool,
    /// Why it is not done.
    pub failed: Option<String>,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { account, what, was_so, failed } = self;
        match (failed, was_so) {
            (Some(why), _) => write!(f, "{account}: FAILED: {what}: {why}"),
            (None, true) => write!(f, "{account}: was so: {what}"),
            (None, false) => write!(f, "{account}: set: {what}"),
        }
    }
}

/// Sets everything in every account of the desired state, and NAU metrics of the VPC if one is named.
pub async fn run(door: &Door, desired: &Desired, vpc: Option<&str>) -> Vec<Step> {
    let mut steps = Vec::new();
    for account in &desired.grid.accounts {
        let place = &account.place;
        let config = door.assume(place, &bootstrap_role(&desired.grid.grid, place)).await;
        let mut add = |what: String, done: Result<bool, String>| {
            let (was_so, failed) = match done {
                Ok(was_so) => (was_so, None),
                Err(why) => (false, Some(why)),
            };
            steps.push(Step { account: place.account.clone(), what, was_so, failed });
        };
        add("outbound web identity federation is on".into(), federation(door, &config).await);
        for (name, value) in [
            (SettingName::TagResourceAuthorization, "on"),
            (SettingName::FargateTaskRetirementWaitPeriod, RETIREMENT_DAYS),
        ] {
            let what = format!("the ECS setting {} is {value}", name.as_str());
            add(what, setting(&config, name, value).await);
        }
        let what =
            format!("instances with the tag {WINDOW_TAG}={} are replaced on weekends", desired.grid.grid);
        add(what, window(door, &config, place, &desired.grid.grid).await);
        if let Some(vpc) = vpc.filter(|_| account.kind == Kind::Core) {
            add(
                format!("network address units of {vpc} are counted"),
                units(door, &config, place, vpc).await,
            );
        }
    }
    steps
}

fn why(refusal: Refusal) -> String {
    if refusal.code.is_empty() { refusal.message } else { format!("{}: {}", refusal.code, refusal.message) }
}

async fn federation(door: &Door, config: &SdkConfig) -> Result<bool, String> {
    let action = "EnableOutboundWebIdentityFederation";
    let query = Query { service: "iam", region: IAM_REGION, action, version: IAM, parameters: vec![] };
    match query.send(door, config).await {
        Ok(_) => Ok(false),
        Err(refusal) if refusal.code.starts_with("FeatureEnabled") => Ok(true),
        Err(refusal) => Err(why(refusal)),
    }
}

async fn setting(config: &SdkConfig, name: SettingName, value: &str) -> Result<bool, String> {
    let ecs = aws_sdk_ecs::Client::new(config);
    let listed = ecs.list_account_settings().name(name.clone()).effective_settings(true).send().await;
    let listed = listed.map_err(|error| format!("{}", DisplayErrorContext(error)))?;
    if listed.settings().iter().any(|each| each.name() == Some(&name) && each.value() == Some(value)) {
        return Ok(true);
    }
    let put = ecs.put_account_setting_default().name(name).value(value).send().await;
    put.map(|_| false).map_err(|error| format!("{}", DisplayErrorContext(error)))
}

async fn window(door: &Door, config: &SdkConfig, place: &Place, grid: &str) -> Result<bool, String> {
    let name = format!("{grid}-weekend");
    let query = |action, parameters| Query {
        service: "ec2",
        region: &place.region,
        action,
        version: EC2,
        parameters,
    };
    let filter = vec![("Filter.1.Name", "event-window-name".to_owned()), ("Filter.1.Value.1", name.clone())];
    let found = query("DescribeInstanceEventWindows", filter).send(door, config).await.map_err(why)?;
    let id = match element(&found, "instanceEventWindowId") {
        Some(_) if found.contains(&format!("<key>{WINDOW_TAG}</key>")) => return Ok(true),
        Some(id) => id,
        None => {
            let mut parameters = vec![("Name", name)];
            parameters.extend(WINDOW.iter().map(|(key, value)| (*key, (*value).to_owned())));
            let made =
                query("CreateInstanceEventWindow", parameters).send(door, config).await.map_err(why)?;
            element(&made, "instanceEventWindowId").ok_or("EC2 told no id of the window")?
        }
    };
    let tag = vec![
        ("InstanceEventWindowId", id),
        ("AssociationTarget.InstanceTag.1.Key", WINDOW_TAG.to_owned()),
        ("AssociationTarget.InstanceTag.1.Value", grid.to_owned()),
    ];
    query("AssociateInstanceEventWindow", tag).send(door, config).await.map(|_| false).map_err(why)
}

async fn units(door: &Door, config: &SdkConfig, place: &Place, vpc: &str) -> Result<bool, String> {
    let query = Query {
        service: "ec2",
        region: &place.region,
        action: "ModifyVpcAttribute",
        version: EC2,
        parameters: vec![
            ("VpcId", vpc.to_owned()),
            ("EnableNetworkAddressUsageMetrics.Value", "true".to_owned()),
        ],
    };
    query.send(door, config).await.map(|_| false).map_err(why)
}
