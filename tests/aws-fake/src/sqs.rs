//! SQS: standard queues. A message is delivered at least once, in any order.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use md5::{Digest, Md5};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::ecs::render_event;
use crate::fail::{Answer, Fail, read};
use crate::kept::{Queue, RETENTION, Region};
use crate::time::{Ctx, mix, uuid};

/// As the cluster's template sets it.
const VISIBILITY: Duration = Duration::from_secs(60);
/// Messages of one call, and seconds of a long poll, at most.
const BATCH: usize = 10;
const LONGEST_POLL: i64 = 20;
const LONGEST_VISIBILITY: i64 = 43_200;
/// A delivery chooses among this many of the oldest messages, so they come out of order.
const WINDOW: usize = 40;

impl Queue {
    fn delete(&mut self, handle: &str) -> Result<bool, Fail> {
        let invalid = || {
            Fail::new(
                "ReceiptHandleIsInvalid",
                400,
                format!("The input receipt handle \"{handle}\" is not valid."),
            )
        };
        let mut parts = handle.split('-').map(|part| u64::from_str_radix(part, 16));
        let (Some(Ok(serial)), Some(Ok(received)), Some(Ok(check)), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(invalid());
        };
        if check != mix(serial ^ mix(received)) {
            return Err(invalid());
        }
        // an old handle may fail to delete a message that was received again; this one deletes it, as AWS mostly does
        let Some(message) = self.messages.remove(&serial) else { return Ok(false) };
        self.visible.remove(&(message.visible, serial));
        Ok(true)
    }
}

pub(crate) fn handle(ctx: &mut Ctx, region: &mut Region, op: &str, body: &Value) -> Answer {
    match op {
        "GetQueueUrl" => url(region, body),
        "GetQueueAttributes" => attributes(ctx, region, body),
        "ReceiveMessage" => receive(ctx, region, body),
        "DeleteMessage" => delete(ctx, region, body),
        "DeleteMessageBatch" => delete_batch(ctx, region, body),
        _ => Err(Fail::not_faked(format!("SQS {op}"))),
    }
}

fn gone() -> Fail {
    Fail::new("QueueDoesNotExist", 400, "The specified queue does not exist.")
}

fn queue<'a>(region: &'a mut Region, url: &str) -> Result<&'a mut Queue, Fail> {
    let mut parts = url.rsplit('/');
    let (name, account) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    if account != &*region.account {
        return Err(Fail::new("AccessDenied", 403, "Access to the resource is denied."));
    }
    region.queues.by_name.get_mut(name).ok_or_else(gone)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Url {
    queue_name: String,
    #[serde(rename = "QueueOwnerAWSAccountId")]
    owner: Option<String>,
}

fn url(region: &Region, body: &Value) -> Answer {
    let asked: Url = read(body)?;
    if asked.owner.is_some_and(|owner| *owner != *region.account)
        || !region.queues.by_name.contains_key(&asked.queue_name)
    {
        return Err(gone());
    }
    let url = format!("https://sqs.{}.amazonaws.com/{}/{}", region.name, region.account, asked.queue_name);
    Ok(json!({"QueueUrl": url}))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Attributes {
    queue_url: String,
    #[serde(default)]
    #[allow(dead_code)]
    attribute_names: Vec<String>,
}

fn attributes(ctx: &Ctx, region: &mut Region, body: &Value) -> Answer {
    let asked: Attributes = read(body)?;
    let now = ctx.now;
    let queue = queue(region, &asked.queue_url)?;
    let hidden = queue.visible.range((now, u64::MAX)..).count();
    Ok(json!({"Attributes": {
        "ApproximateNumberOfMessages": (queue.len() - hidden).to_string(),
        "ApproximateNumberOfMessagesNotVisible": hidden.to_string(),
        "VisibilityTimeout": VISIBILITY.as_secs().to_string(),
        "MessageRetentionPeriod": RETENTION.as_secs().to_string(),
    }}))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Receive {
    queue_url: String,
    max_number_of_messages: Option<i64>,
    visibility_timeout: Option<i64>,
    wait_time_seconds: Option<i64>,
    #[serde(default)]
    message_system_attribute_names: Vec<String>,
    #[serde(default)]
    attribute_names: Vec<String>,
    #[serde(default)]
    #[allow(dead_code)]
    message_attribute_names: Vec<String>,
}

/// How long a request may wait for a message.
pub(crate) fn long_poll(request: &Request<Bytes>) -> Duration {
    let receives =
        request.headers().get("x-amz-target").is_some_and(|target| target == "AmazonSQS.ReceiveMessage");
    let asked: Option<Receive> = receives.then(|| serde_json::from_slice(request.body()).ok()).flatten();
    let seconds = asked.and_then(|asked| asked.wait_time_seconds).unwrap_or(0);
    Duration::from_secs(seconds.clamp(0, LONGEST_POLL) as u64)
}

/// Whether the queue that a ReceiveMessage names has a message now.
pub(crate) fn has_message(now: Duration, region: &mut Region, request: &Request<Bytes>) -> bool {
    let asked: Option<Receive> = serde_json::from_slice(request.body()).ok();
    let queue = asked.and_then(|asked| queue(region, &asked.queue_url).ok());
    queue.is_none_or(|queue| queue.visible.first().is_some_and(|(at, _)| *at <= now))
}

/// Answers at once, also to a long poll: the clock is in the caller's hand. `serve` waits.
fn receive(ctx: &mut Ctx, region: &mut Region, body: &Value) -> Answer {
    let asked: Receive = read(body)?;
    let invalid = |name: &str| {
        Fail::new("InvalidParameterValue", 400, format!("Value for parameter {name} is invalid."))
    };
    let most = asked.max_number_of_messages.unwrap_or(1);
    if !(1..=BATCH as i64).contains(&most) {
        return Err(invalid("MaxNumberOfMessages"));
    }
    if !(0..=LONGEST_POLL).contains(&asked.wait_time_seconds.unwrap_or(0)) {
        return Err(invalid("WaitTimeSeconds"));
    }
    let visibility = asked.visibility_timeout.unwrap_or(VISIBILITY.as_secs() as i64);
    if !(0..=LONGEST_VISIBILITY).contains(&visibility) {
        return Err(invalid("VisibilityTimeout"));
    }
    let until = ctx.now + Duration::from_secs(visibility as u64);
    let (now, chance) = (ctx.now, ctx.serial());
    let from = queue(region, &asked.queue_url)?;
    let mut window: Vec<(Duration, u64)> =
        from.visible.range(..=(now, u64::MAX)).take(WINDOW).copied().collect();
    window.sort_by_key(|(_, serial)| ctx.draw("order", mix(*serial) ^ chance));
    let mut taken = Vec::new();
    for (visible, serial) in window {
        if taken.len() == most as usize {
            break;
        }
        let Some(message) = from.messages.get_mut(&serial) else { continue };
        from.visible.remove(&(visible, serial));
        if message.sent + RETENTION <= now {
            from.messages.remove(&serial);
            continue;
        }
        message.visible = until;
        message.received += 1;
        from.visible.insert((until, serial));
        taken.push((
            serial,
            message.received,
            message.sent,
            message.event,
            message.cluster.clone(),
            message.note.clone(),
        ));
    }
    ctx.changed = !taken.is_empty();
    let counts = asked.message_system_attribute_names.iter().chain(&asked.attribute_names).next().is_some();
    let messages: Vec<Value> = taken
        .into_iter()
        .map(|(serial, received, sent, event, cluster, note)| {
            let text = render_event(ctx, region, &cluster, event, sent, &note).to_string();
            let check = mix(serial ^ mix(u64::from(received)));
            let mut out = json!({
                "MessageId": uuid(serial),
                "ReceiptHandle": format!("{serial:x}-{received:x}-{check:x}"),
                "MD5OfBody": digest(&text),
                "Body": text,
            });
            if counts {
                out["Attributes"] = json!({
                    "ApproximateReceiveCount": received.to_string(),
                    "SentTimestamp": ((ctx.stamp(sent) * 1000.0) as u64).to_string(),
                });
            }
            out
        })
        .collect();
    Ok(if messages.is_empty() { json!({}) } else { json!({"Messages": messages}) })
}

/// MD5 of a body: clients compare it.
fn digest(text: &str) -> String {
    Md5::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Delete {
    queue_url: String,
    receipt_handle: String,
}

fn delete(ctx: &mut Ctx, region: &mut Region, body: &Value) -> Answer {
    let asked: Delete = read(body)?;
    ctx.changed = queue(region, &asked.queue_url)?.delete(&asked.receipt_handle)?;
    Ok(json!({}))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct DeleteBatch {
    queue_url: String,
    entries: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Entry {
    id: String,
    receipt_handle: String,
}

fn delete_batch(ctx: &mut Ctx, region: &mut Region, body: &Value) -> Answer {
    let asked: DeleteBatch = read(body)?;
    if asked.entries.is_empty() {
        return Err(Fail::new(
            "EmptyBatchRequest",
            400,
            "There should be at least one entry in the request.",
        ));
    }
    if asked.entries.len() > BATCH {
        return Err(Fail::new(
            "TooManyEntriesInBatchRequest",
            400,
            "Maximum number of entries per request are 10.",
        ));
    }
    let ids: BTreeSet<&String> = asked.entries.iter().map(|entry| &entry.id).collect();
    if ids.len() < asked.entries.len() {
        return Err(Fail::new("BatchEntryIdsNotDistinct", 400, "Two or more entries have the same Id."));
    }
    let (mut done, mut failed) = (Vec::new(), Vec::new());
    let from = queue(region, &asked.queue_url)?;
    for entry in &asked.entries {
        match from.delete(&entry.receipt_handle) {
            Ok(deleted) => {
                ctx.changed |= deleted;
                done.push(json!({"Id": entry.id}));
            }
            Err(why) => failed
                .push(json!({"Id": entry.id, "SenderFault": true, "Code": why.code, "Message": why.message})),
        }
    }
    Ok(json!({"Successful": done, "Failed": failed}))
}
