//! Receives a publish: its header, then its rows within their limits. Chooses the spec that the rows are checked against.

use std::{sync::Arc, time::Instant};

use arrow_array::RecordBatch;
use chrono::NaiveDate;
use serde_json::json;
use tonic::Streaming;
use trellis_proto::{Code, DatasetName, DatasetSpec, Error, Result, pb, runs::OWN_PREFIX, time::DAY_NS};

use crate::{
    error::lost_task,
    files::check_spec,
    shard::Shard,
    table::{Holder, SessionKey},
    wire::Decoder,
    write::{Effect, Held, ID_BYTES_MAX, Pending, Publish, Right, Rows, check_columns, made_bytes},
};

/// Receives, checks and commits one publish.
///
/// # Errors
/// Every reason that the contract names. Nothing is committed then, unless the error says that the outcome is not known.
pub(super) async fn publish(
    shard: &Arc<Shard>,
    pending: &Arc<Pending>,
    mut messages: Streaming<pb::PublishMessage>,
) -> Result<pb::PublishAck> {
    let started = Instant::now();
    let first = messages.message().await.map_err(|e| Error::from_status(&e))?;
    let Some(pb::publish_message::Message::Header(header)) = first.and_then(|m| m.message) else {
        return Err(Error::new(Code::InvalidRequest, "a publish begins with its header"));
    };
    let name = DatasetName::new(&header.dataset)?;
    let ack = checked(shard, pending, &name, header, messages).await.map_err(|e| e.dataset(&name))?;
    shard.metrics.publish.record(started.elapsed().as_secs_f64(), &[]);
    Ok(ack)
}

async fn checked(
    shard: &Arc<Shard>,
    pending: &Arc<Pending>,
    name: &DatasetName,
    header: pb::PublishHeader,
    mut messages: Streaming<pb::PublishMessage>,
) -> Result<pb::PublishAck> {
    check_header(&header)?;
    shard.check_home(name)?;
    let limits = &shard.config.limits;
    let (right, within, rows_max, bytes_max) = match header.kind() {
        pb::PublishKind::Unspecified => {
            return Err(Error::new(Code::InvalidRequest, "the publish says neither session nor import"));
        }
        pb::PublishKind::Session => {
            let right = match &header.once {
                None => Right::Session { unit: header.unit.clone(), epoch: header.epoch },
                Some(once) => Right::Once {
                    holder: Holder { unit: header.unit.clone(), instance: header.instance.clone() },
                    take_over: once.take_over,
                },
            };
            (right, Some(session(&header.session)?), limits.publish_rows_max, limits.publish_bytes_max)
        }
        pb::PublishKind::Import => {
            let right = Right::Import { known_at: header.known_at_ns };
            (right, None, limits.import_rows_max, limits.import_bytes_max)
        }
    };
    let given = header.spec.clone().map(DatasetSpec::try_from).transpose()?;
    let spec = match header.retract {
        // A dataset that is not there has nothing to retract.
        true => shard.catalog.find(name.as_str()).await?.1.spec.clone(),
        false => spec_for(shard, name, &right, given).await?,
    };
    if spec.fields.len() > limits.columns_max {
        let text = format!("{} fields; a publish has at most {}", spec.fields.len(), limits.columns_max);
        return Err(Error::new(Code::TooLarge, text));
    }

    // The columns that the rows have: those of keys are no fields.
    let columns = match header.retract {
        true => Arc::new(DatasetSpec { fields: Vec::new(), ..DatasetSpec::clone(&spec) }),
        false => spec.clone(),
    };
    let mut arrived = Arrived {
        columns,
        decoder: Decoder::default(),
        batches: Vec::new(),
        rows: 0,
        held: pending.held(),
        most: Most { kind: kind(&right), rows: rows_max, bytes: bytes_max },
    };
    let mut received = 0;
    loop {
        let ipc = match next(&mut messages).await? {
            pb::publish_message::Message::Ipc(ipc) => ipc,
            pb::publish_message::Message::End(end) if end.messages == received => break,
            pb::publish_message::Message::End(end) => {
                let text = format!("the publish has {} messages, and {received} arrived", end.messages);
                return Err(Error::new(Code::Unavailable, text));
            }
            pb::publish_message::Message::Header(_) => {
                return Err(Error::new(
                    Code::InvalidRequest,
                    "a publish has one header, then Arrow messages",
                ));
            }
        };
        received += 1;
        // A malformed buffer may panic inside the decoder. On another thread the panic becomes an error.
        arrived = tokio::task::spawn_blocking(move || arrived.with(&ipc))
            .await
            .map_err(|_| Error::new(Code::BadRows, "the rows are not valid Arrow IPC"))??;
    }
    let Arrived { columns, decoder, batches, held, .. } = arrived;
    let Some(schema) = decoder.schema().cloned() else {
        return Err(Error::new(Code::BadRows, "the publish has no schema, and so no rows"));
    };
    // The scope does not have the dataset's name, because the name may change.
    let scope = format!("{}\0{}\0{}", header.kind, header.session, header.partition);
    let effect = match within.clone() {
        Some(range) => Effect::Replaces(range),
        None if header.retract => Effect::Retracts,
        None => Effect::Adds,
    };
    let (rows, digest, held) = {
        let check = move || -> Result<(Rows, String, Held)> {
            let rows = Rows::check(&columns, &schema, batches, within)?;
            let digest = rows.digest(&scope)?;
            Ok((rows, digest, held))
        };
        tokio::task::spawn_blocking(check).await.map_err(|e| lost_task("checking rows", e))??
    };
    if matches!(right, Right::Import { .. }) && rows.len() == 0 {
        return Err(Error::new(Code::BadRows, "the import has no rows"));
    }
    let watermark = match (&right, header.watermark_ns) {
        (_, Some(watermark)) => Some(watermark),
        (Right::Session { .. } | Right::Once { .. }, None) => Some(session(&header.session)?.end),
        (Right::Import { .. } | Right::Ledger, None) => None,
    };
    let note = note(&header, rows.len());
    let session = match right {
        Right::Session { .. } | Right::Once { .. } => {
            Some(SessionKey { session: header.session, partition: header.partition })
        }
        Right::Import { .. } | Right::Ledger => None,
    };
    let run_id = header.run_id;
    let publish =
        Publish { right, spec, rows, run_id, digest, session, watermark, effect, note, _held: Some(held) };
    shard.committers.of(&shard.catalog.entry(name)).publish(publish).await
}

/// The next message. A stream that ends without its end message broke off, and is refused as a whole.
async fn next(messages: &mut Streaming<pb::PublishMessage>) -> Result<pb::publish_message::Message> {
    let message = messages.message().await.map_err(|e| Error::from_status(&e))?;
    match message.map(|m| m.message) {
        Some(Some(message)) => Ok(message),
        Some(None) => Err(Error::new(Code::InvalidRequest, "a message of the publish is empty")),
        None => Err(Error::new(Code::Unavailable, "the publish broke off before its end")),
    }
}

fn kind(right: &Right) -> &'static str {
    match right {
        Right::Session { .. } | Right::Once { .. } => "publish",
        Right::Import { .. } => "import",
        Right::Ledger => "record",
    }
}

/// Most rows and bytes of one publish.
struct Most {
    kind: &'static str,
    rows: usize,
    bytes: usize,
}

impl Most {
    fn exceeded(&self, most: usize, what: &str) -> Error {
        Error::new(Code::TooLarge, format!("the {} has more than {most} {what}", self.kind))
            .hint("send it in several parts, each with a run id of its own")
    }
}

/// What has arrived of one publish.
struct Arrived {
    columns: Arc<DatasetSpec>,
    decoder: Decoder,
    batches: Vec<RecordBatch>,
    rows: usize,
    held: Held,
    most: Most,
}

impl Arrived {
    /// Adds a message. Counts the memory that its rows need here, before it is taken: for the message, and for the plain text that is made
    /// of it.
    fn with(mut self, ipc: &pb::IpcMessage) -> Result<Self> {
        let Self { columns, decoder, batches, rows, held, most } = &mut self;
        let mut take = |bytes: usize| match held.bytes().checked_add(bytes) {
            Some(all) if all <= most.bytes => held.add(bytes),
            _ => Err(most.exceeded(most.bytes, "bytes, with its text written out for each row")),
        };
        take(ipc.data_body.len() + ipc.data_header.len())?;
        let first = decoder.schema().is_none();
        let batch = decoder.read(ipc, &mut take)?;
        if let (true, Some(schema)) = (first, decoder.schema()) {
            check_columns(columns, schema)?;
        }
        let Some(batch) = batch else { return Ok(self) };
        *rows = rows.saturating_add(batch.num_rows());
        if *rows > most.rows {
            return Err(most.exceeded(most.rows, "rows"));
        }
        take(made_bytes(&batch))?;
        batches.push(batch);
        Ok(self)
    }
}

fn check_header(header: &pb::PublishHeader) -> Result<()> {
    let refuse = |why: String| Err(Error::new(Code::InvalidRequest, why));
    if header.dataset.starts_with(OWN_PREFIX) {
        return Err(Error::new(
            Code::PermissionDenied,
            format!("datasets named {OWN_PREFIX}* are written by the grid itself"),
        ));
    }
    for (what, text) in [
        ("run id", &header.run_id),
        ("partition", &header.partition),
        ("code digest", &header.code_digest),
        ("unit", &header.unit),
        ("instance", &header.instance),
    ] {
        if text.len() > ID_BYTES_MAX || text.chars().any(char::is_control) {
            return refuse(format!(
                "the {what} is longer than {ID_BYTES_MAX} bytes or has control characters"
            ));
        }
    }
    if header.kind() == pb::PublishKind::Session {
        if header.retract {
            return refuse(
                "only an import retracts by itself; a session is published again whole".to_owned(),
            );
        }
        for (what, text) in [("run id", &header.run_id), ("unit", &header.unit)] {
            if text.is_empty() {
                return refuse(format!("a publish of a session needs a {what}"));
            }
        }
        if header.once.is_some() && (header.epoch != 0 || header.instance.is_empty()) {
            return refuse("a publish that takes its own lease has an instance, and no epoch".to_owned());
        }
        if header.known_at_ns.is_some() {
            return refuse("only an import has a knowledge time of its own".to_owned());
        }
    }
    Ok(())
}

/// Event times of a session: its date, midnight to midnight, UTC.
fn session(text: &str) -> Result<std::ops::Range<i64>> {
    let date = NaiveDate::parse_from_str(text, "%Y-%m-%d").ok();
    let start = date
        .and_then(|d| d.and_hms_opt(0, 0, 0))
        .and_then(|midnight| midnight.and_utc().timestamp_nanos_opt());
    match start.and_then(|start| Some(start..start.checked_add(DAY_NS)?)) {
        Some(range) => Ok(range),
        None => Err(Error::new(Code::InvalidRequest, format!("the session {text:?} is not a date"))
            .hint("write it as 2016-08-10")),
    }
}

/// The spec that the rows are checked against: the spec that the publish gives, with fields required where the dataset requires
/// them; or else that of the dataset. The committer converts the rows to the dataset's spec at the time of the commit.
async fn spec_for(
    shard: &Shard,
    name: &DatasetName,
    right: &Right,
    given: Option<DatasetSpec>,
) -> Result<Arc<DatasetSpec>> {
    if given.as_ref().is_some_and(|spec| spec.dataset != *name) {
        return Err(Error::new(Code::InvalidRequest, "the spec is that of another dataset"));
    }
    match shard.catalog.find(name.as_str()).await {
        Ok((_, snapshot)) => match given {
            None => Ok(snapshot.spec.clone()),
            Some(mut given) => {
                check_spec(&given)?;
                let wide = snapshot.spec.widened(&given)?;
                for field in &mut given.fields {
                    let required = wide.field(field.name.as_str()).is_some_and(|(_, wide)| !wide.nullable);
                    field.nullable &= !required;
                }
                Ok(Arc::new(given))
            }
        },
        Err(error) if error.code() == Code::UnknownDataset => match (right, given) {
            (Right::Import { .. } | Right::Once { .. }, Some(spec)) => {
                check_spec(&spec)?;
                Ok(Arc::new(spec))
            }
            (Right::Import { .. }, None) => {
                Err(error.hint("an import that makes a dataset says what it is: give its spec"))
            }
            (Right::Once { .. }, None) => {
                Err(error.hint("a publish that takes its own lease says what the dataset is: give its spec"))
            }
            (Right::Session { .. } | Right::Ledger, _) => {
                Err(error.hint("acquire the lease with the dataset's spec first: that makes it"))
            }
        },
        Err(error) => Err(error),
    }
}

/// The note about a publish in the commit, for people who read the log.
fn note(header: &pb::PublishHeader, rows: usize) -> serde_json::Value {
    let inputs: Vec<_> = header
        .inputs
        .iter()
        .map(|i| json!({"name": i.name, "dataset": i.dataset, "version": i.version, "as_of_ns": i.as_of_ns, "rows": i.rows}))
        .collect();
    json!({
        "run_id": header.run_id, "unit": header.unit, "session": header.session, "partition": header.partition,
        "epoch": header.epoch, "code_digest": header.code_digest, "inputs": inputs, "rows": rows,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_a_utc_day() {
        let day = session("1969-12-31").unwrap();
        assert_eq!(day, -DAY_NS..0);
        for wrong in ["", "2016-8", "10.08.2016", "2016-02-30", "9999-01-01"] {
            assert_eq!(session(wrong).unwrap_err().code(), Code::InvalidRequest, "{wrong}");
        }
    }
}
