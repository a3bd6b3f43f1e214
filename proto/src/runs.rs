//! The run ledger, `trellis.runs`: makes the record of each kind of write from its request and its answer. Pure.
//!
//! The head that passes a write on makes its record. If the head cannot append it, the client makes it, too. Both are the
//! same row, because they have the same key (`unit`, `started_ns`).

use serde_json::{Map, Value, json};

use crate::{
    name::{NAME_BYTES_MAX, Symbol},
    pb,
};

/// The ledger's name.
pub const LEDGER: &str = "trellis.runs";
/// Datasets whose names begin so belong to the grid: nobody may publish to them, and the grid's writes to them are not
/// recorded.
pub const OWN_PREFIX: &str = "trellis.";

/// Facts about a write that are not in its request and answer.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seen<'a> {
    /// The user who asked, if the request does not say.
    pub by: &'a str,
    /// When the request arrived.
    pub asked_ns: i64,
    /// When the answer was sent.
    pub answered_ns: i64,
    /// 32 hex digits, or empty.
    pub trace_id: &'a str,
}

/// The name of an outcome, in the ledger and in the output of `qcu`: `succeeded`, `failed`, ...
#[must_use]
pub fn outcome_name(outcome: pb::RunOutcome) -> &'static str {
    match outcome {
        pb::RunOutcome::Unspecified => "unspecified",
        pb::RunOutcome::Succeeded => "succeeded",
        pb::RunOutcome::Failed => "failed",
        pb::RunOutcome::TimedOut => "timed_out",
        pb::RunOutcome::OutOfMemory => "out_of_memory",
        pb::RunOutcome::Refused => "refused",
        pb::RunOutcome::Cancelled => "cancelled",
    }
}

/// The record of an acknowledged publish. Values that the header's record lacks come from the header.
#[must_use]
pub fn published(header: &pb::PublishHeader, ack: &pb::PublishAck, seen: &Seen<'_>) -> pb::RunRecord {
    let given = header.record.clone().unwrap_or_default();
    let or = |given: String, other: &str| if given.is_empty() { other.to_owned() } else { given };
    let by = or(header.instance.clone(), seen.by);
    let how = || match header.code_digest.is_empty() {
        true if header.retract => told(&by, json!({"retract": true})),
        true => told(&by, json!({})),
        false if header.unit.is_empty() => told(&by, json!({"code_digest": header.code_digest})),
        false => header.code_digest.clone(),
    };
    pb::RunRecord {
        run_id: or(header.run_id.clone(), &format!("import-{}", ack.version)),
        unit: symbol_of(header),
        session: header.session.clone(),
        partition: header.partition.clone(),
        attempt: given.attempt.max(1),
        started_ns: if given.started_ns == 0 { seen.asked_ns } else { given.started_ns },
        epoch: if ack.epoch == 0 { header.epoch } else { ack.epoch },
        code_digest: if given.code_digest.is_empty() { how() } else { given.code_digest },
        inputs: if given.inputs.is_empty() { header.inputs.clone() } else { given.inputs },
        rows: ack.rows,
        user_us: given.user_us,
        system_us: given.system_us,
        rss_max_bytes: given.rss_max_bytes,
        trace_id: or(given.trace_id, seen.trace_id),
        ..done(&header.dataset, ack.version, seen)
    }
}

/// The record of an alteration.
#[must_use]
pub fn altered(
    request: &pb::AlterDatasetRequest,
    change: &pb::DatasetChange,
    seen: &Seen<'_>,
) -> pb::RunRecord {
    let kind = |kind: pb::FieldType| kind.as_str_name().trim_start_matches("FIELD_TYPE_").to_lowercase();
    let mut how = Map::new();
    let mut tell = |what: &str, of: Vec<Value>| {
        if !of.is_empty() {
            how.insert(what.to_owned(), Value::Array(of));
        }
    };
    tell("drop", request.drop.iter().map(|field| json!(field)).collect());
    tell("rename", request.rename.iter().map(|r| json!([r.from, r.to])).collect());
    tell("widen", request.widen.iter().map(|w| json!([w.field, kind(w.r#type())])).collect());
    tell("add", request.add.iter().map(|field| json!([field.name, kind(field.r#type())])).collect());
    for (what, setting) in [("calendar", &request.calendar), ("date_zone", &request.date_zone)] {
        if let Some(setting) = setting {
            how.insert(what.to_owned(), json!(setting));
        }
    }
    for (what, setting) in [("copies", request.copies), ("spread", request.spread)] {
        if let Some(setting) = setting {
            how.insert(what.to_owned(), json!(setting));
        }
    }
    changed("alter", &request.dataset, (&request.id, &request.by), Value::Object(how), change, seen)
}

/// The record of a drop.
#[must_use]
pub fn dropped(
    request: &pb::DropDatasetRequest,
    change: &pb::DatasetChange,
    seen: &Seen<'_>,
) -> pb::RunRecord {
    changed("drop", &request.dataset, (&request.id, &request.by), json!({}), change, seen)
}

/// The record of a rename, under the old name.
#[must_use]
pub fn renamed(
    request: &pb::RenameDatasetRequest,
    change: &pb::DatasetChange,
    seen: &Seen<'_>,
) -> pb::RunRecord {
    let how = json!({"to": request.to});
    changed("rename", &request.dataset, (&request.id, &request.by), how, change, seen)
}

/// The record of the end of an ownership.
#[must_use]
pub fn released(request: &pb::AcquireLeaseRequest, granted: &pb::Lease, seen: &Seen<'_>) -> pb::RunRecord {
    let by = if request.instance.is_empty() { seen.by } else { &request.instance };
    let how = if request.take_over { json!({"take_over": true}) } else { json!({}) };
    pb::RunRecord {
        run_id: format!("release-{}", granted.epoch),
        unit: symbol("release", &request.dataset),
        attempt: 1,
        started_ns: seen.asked_ns,
        epoch: granted.epoch,
        code_digest: told(by, how),
        trace_id: seen.trace_id.to_owned(),
        output_version: None,
        ..done(&request.dataset, 0, seen)
    }
}

fn changed(
    what: &str,
    dataset: &str,
    (id, by): (&str, &str),
    how: Value,
    change: &pb::DatasetChange,
    seen: &Seen<'_>,
) -> pb::RunRecord {
    let id = if id.is_empty() { format!("{what}-{}", change.version) } else { id.to_owned() };
    pb::RunRecord {
        run_id: id,
        unit: symbol(what, dataset),
        attempt: 1,
        started_ns: seen.asked_ns,
        code_digest: told(if by.is_empty() { seen.by } else { by }, how),
        trace_id: seen.trace_id.to_owned(),
        ..done(&change.dataset, change.version, seen)
    }
}

fn done(dataset: &str, version: u64, seen: &Seen<'_>) -> pb::RunRecord {
    pb::RunRecord {
        outcome: pb::RunOutcome::Succeeded.into(),
        finished_ns: seen.answered_ns,
        output_dataset: dataset.to_owned(),
        output_version: Some(version),
        ..pb::RunRecord::default()
    }
}

/// The user and the options, in the place of a digest of code.
fn told(by: &str, how: Value) -> String {
    let mut all = json!({"by": by});
    if let (Value::Object(all), Value::Object(how)) = (&mut all, how) {
        all.extend(how);
    }
    all.to_string()
}

/// The ledger's symbol for a publish: its unit, or `import:DATASET`.
fn symbol_of(header: &pb::PublishHeader) -> String {
    match cut(&header.unit) {
        unit if Symbol::new(unit).is_ok() => unit.to_owned(),
        _ => symbol("import", &header.dataset),
    }
}

/// The ledger's symbol for a write by no unit: `import:equities.daily`. No unit's name has a colon.
fn symbol(what: &str, dataset: &str) -> String {
    cut(&format!("{what}:{dataset}")).to_owned()
}

/// The text, cut to the longest length of a symbol.
fn cut(name: &str) -> &str {
    &name[..name.floor_char_boundary(NAME_BYTES_MAX)]
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEEN: Seen<'_> = Seen { by: "10.0.0.1:4711", asked_ns: 5, answered_ns: 9, trace_id: "t" };

    fn how(record: &pb::RunRecord) -> Value {
        serde_json::from_str(&record.code_digest).unwrap()
    }

    #[test]
    fn a_publish_is_recorded_with_what_its_publisher_knows_and_what_the_shard_said() {
        let header = pb::PublishHeader {
            dataset: "signals.mom".into(),
            kind: pb::PublishKind::Session.into(),
            session: "2016-08-10".into(),
            partition: "us".into(),
            run_id: "r1".into(),
            unit: "mom".into(),
            instance: "somebody".into(),
            epoch: 3,
            code_digest: "sha256:1".into(),
            inputs: vec![pb::InputReceipt { name: "px".into(), ..Default::default() }],
            record: Some(pb::RunRecord {
                // the header decides the unit, the session and the dataset
                run_id: "other".into(),
                unit: "other".into(),
                output_dataset: "other".into(),
                outcome: pb::RunOutcome::Failed.into(),
                error: "other".into(),
                attempt: 2,
                started_ns: 4,
                user_us: 7,
                rss_max_bytes: 8,
                ..Default::default()
            }),
            ..Default::default()
        };
        let ack = pb::PublishAck { version: 6, rows: 500, ..Default::default() };
        let expected = pb::RunRecord {
            run_id: "r1".into(),
            unit: "mom".into(),
            session: "2016-08-10".into(),
            partition: "us".into(),
            attempt: 2,
            started_ns: 4,
            finished_ns: 9,
            outcome: pb::RunOutcome::Succeeded.into(),
            error: String::new(),
            epoch: 3,
            code_digest: "sha256:1".into(),
            inputs: header.inputs.clone(),
            output_dataset: "signals.mom".into(),
            output_version: Some(6),
            rows: 500,
            user_us: 7,
            system_us: 0,
            rss_max_bytes: 8,
            trace_id: "t".into(),
        };
        assert_eq!(published(&header, &ack, &SEEN), expected);
        let granted = pb::PublishAck { epoch: 12, ..ack };
        assert_eq!(published(&header, &granted, &SEEN).epoch, 12, "its own lease's");
        let later = Seen { asked_ns: 50, answered_ns: 51, ..SEEN };
        assert_eq!(published(&header, &granted, &later).started_ns, 4, "sent again, it is the same row");
    }

    #[test]
    fn a_publish_that_says_nothing_of_itself_is_recorded_with_who_and_when() {
        let header = pb::PublishHeader { dataset: "d.a".into(), ..Default::default() };
        let ack = pb::PublishAck { version: 6, ..Default::default() };
        let record = published(&header, &ack, &SEEN);
        assert_eq!((record.unit.as_str(), record.run_id.as_str()), ("import:d.a", "import-6"));
        assert_eq!((record.attempt, record.started_ns, record.finished_ns), (1, 5, 9));
        assert_eq!(how(&record), json!({"by": "10.0.0.1:4711"}));
        let loader = pb::PublishHeader {
            instance: "loader".into(),
            code_digest: "v2".into(),
            run_id: "mine".into(),
            ..header.clone()
        };
        let record = published(&loader, &ack, &SEEN);
        assert_eq!(record.run_id, "mine");
        assert_eq!(how(&record), json!({"by": "loader", "code_digest": "v2"}));
        let retracting = pb::PublishHeader { retract: true, ..header };
        assert_eq!(how(&published(&retracting, &ack, &SEEN))["retract"], true);
    }

    #[test]
    fn whatever_a_unit_is_called_its_record_has_a_symbol() {
        for unit in [String::new(), "*".into(), "é".repeat(100), "x".repeat(256), "a b".into()] {
            let header = pb::PublishHeader { dataset: "d.a".into(), unit, ..Default::default() };
            let record = published(&header, &pb::PublishAck::default(), &SEEN);
            assert!(Symbol::new(&record.unit).is_ok(), "{:?}", record.unit);
        }
        assert!(Symbol::new(symbol("release", &format!("d.{}", "a".repeat(126)))).is_ok());
    }

    #[test]
    fn changes_of_a_dataset_are_recorded_with_who_asked_and_for_what() {
        let change = pb::DatasetChange { dataset: "d.b".into(), version: 4, files_rewritten: 1 };
        let request = pb::AlterDatasetRequest {
            dataset: "d.a".into(),
            id: "i".into(),
            by: "me".into(),
            drop: vec!["x".into()],
            rename: vec![pb::FieldRename { from: "y".into(), to: "z".into() }],
            widen: vec![pb::FieldWidening { field: "v".into(), r#type: pb::FieldType::Float64.into() }],
            add: vec![pb::Field { name: "n".into(), r#type: pb::FieldType::Int64.into(), nullable: true }],
            calendar: Some("XNYS".into()),
            date_zone: None,
            copies: Some(2),
            spread: None,
        };
        let record = altered(&request, &change, &SEEN);
        assert_eq!((record.unit.as_str(), record.run_id.as_str()), ("alter:d.a", "i"));
        assert_eq!(
            (record.started_ns, record.output_version, record.outcome()),
            (5, Some(4), pb::RunOutcome::Succeeded)
        );
        let asked = json!({
            "by": "me", "drop": ["x"], "rename": [["y", "z"]], "widen": [["v", "float64"]], "add": [["n", "int64"]],
            "calendar": "XNYS", "copies": 2,
        });
        assert_eq!(how(&record), asked);

        let request =
            pb::RenameDatasetRequest { dataset: "d.a".into(), to: "d.b".into(), ..Default::default() };
        let record = renamed(&request, &change, &SEEN);
        assert_eq!((record.unit.as_str(), record.run_id.as_str()), ("rename:d.a", "rename-4"));
        assert_eq!(record.output_dataset, "d.b");
        assert_eq!(how(&record), json!({"by": "10.0.0.1:4711", "to": "d.b"}));

        let record =
            dropped(&pb::DropDatasetRequest { dataset: "d.b".into(), ..Default::default() }, &change, &SEEN);
        assert_eq!(record.unit, "drop:d.b");

        let request =
            pb::AcquireLeaseRequest { dataset: "d.a".into(), instance: "me".into(), ..Default::default() };
        let record = released(&request, &pb::Lease { epoch: 7, ..Default::default() }, &SEEN);
        assert_eq!(
            (record.unit.as_str(), record.run_id.as_str(), record.epoch),
            ("release:d.a", "release-7", 7)
        );
        assert_eq!((record.output_version, how(&record)), (None, json!({"by": "me"})));
    }
}
