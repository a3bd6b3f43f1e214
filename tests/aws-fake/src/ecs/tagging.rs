//! TagResource, UntagResource, ListTagsForResource: tags of services, clusters and tasks.

use serde::Deserialize;
use serde_json::{Value, json};

use super::services::shadowed;
use super::tags::{MOST, Tag, checked};
use super::{find, show};
use crate::fail::{Answer, Fail, read};
use crate::kept::{Region, State, Tags, number};
use crate::time::Ctx;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Change {
    resource_arn: String,
    #[serde(default)]
    tags: Vec<Tag>,
    #[serde(default)]
    tag_keys: Vec<String>,
}

pub(crate) fn tag(ctx: &mut Ctx, region: &mut Region, body: &Value) -> Answer {
    let asked: Change = read(body)?;
    let new = checked(asked.tags)?;
    change(ctx, region, &asked.resource_arn, |tags| {
        let mut all = tags.clone();
        all.extend(new);
        if all.len() > MOST {
            return Err(Fail::invalid("Tags can have at most 50 items."));
        }
        *tags = all;
        Ok(())
    })
}

pub(crate) fn untag(ctx: &mut Ctx, region: &mut Region, body: &Value) -> Answer {
    let asked: Change = read(body)?;
    change(ctx, region, &asked.resource_arn, |tags| {
        tags.retain(|key, _| !asked.tag_keys.contains(key));
        Ok(())
    })
}

fn change(
    ctx: &mut Ctx,
    region: &mut Region,
    arn: &str,
    work: impl FnOnce(&mut Tags) -> Result<(), Fail>,
) -> Answer {
    let Some((kind, cluster, name)) = parse(region, arn) else {
        return Err(Fail::invalid("Invalid arn."));
    };
    let gone = || Fail::invalid("The specified resource cannot be found.");
    let home = region.clusters.get_mut(&*cluster).ok_or_else(Fail::cluster)?;
    match kind {
        "cluster" => {
            let before = home.tags.clone();
            work(&mut home.tags)?;
            ctx.changed = home.tags != before;
        }
        "service" => {
            let service = home.services.get_mut(&*name).filter(|each| each.state != State::Inactive);
            let service = service.ok_or_else(Fail::service)?;
            let mut tags = service.tags.clone();
            work(&mut tags)?;
            if tags != service.tags {
                shadowed(ctx, service);
                service.tags = tags;
                ctx.changed = true;
            }
        }
        "task" => {
            let found = number(&name).and_then(|id| home.tasks.get_mut(&id)).ok_or_else(gone)?;
            let before = found.tags.clone();
            work(&mut found.tags)?;
            ctx.changed = found.tags != before;
        }
        other => return Err(Fail::not_faked(format!("tags of a {other}"))),
    }
    Ok(json!({}))
}

/// The kind, the cluster and the name of what an ARN of this Region names.
fn parse(region: &Region, arn: &str) -> Option<(&'static str, String, String)> {
    for kind in ["cluster", "service", "task"] {
        if let Some(path) = arn.strip_prefix(&region.arn(kind, "")) {
            let (cluster, name) = path.split_once('/').unwrap_or((path, ""));
            return Some((kind, cluster.to_owned(), name.to_owned()));
        }
    }
    arn.starts_with(&region.arn("task-definition", ""))
        .then(|| ("task definition", String::new(), arn.to_owned()))
}

pub(crate) fn list(region: &Region, body: &Value) -> Answer {
    let asked: Change = read(body)?;
    let (kind, cluster, name) =
        parse(region, &asked.resource_arn).ok_or_else(|| Fail::invalid("Invalid arn."))?;
    if kind == "task definition" {
        let definition = find::definition(region, &name)?;
        return Ok(json!({"tags": show::tags(&definition.tags)}));
    }
    let home = region.clusters.get(&*cluster).ok_or_else(Fail::cluster)?;
    let found = match kind {
        "cluster" => Some(&home.tags),
        "service" => home.services.get(&*name).map(|each| &each.tags),
        _ => number(&name).and_then(|id| home.tasks.get(&id)).map(|each| &each.tags),
    };
    let tags = found.ok_or_else(|| Fail::invalid("The specified resource cannot be found."))?;
    Ok(json!({"tags": show::tags(tags)}))
}
