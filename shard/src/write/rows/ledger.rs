//! The run ledger, `trellis.runs`: an ordinary dataset with a row for each attempt of each run. Pure.
//!
//! Its symbol is the unit, its `ts` the start of the attempt. A record that is sent twice becomes a second version of one
//! row, which readers see once.

use std::{collections::HashMap, sync::Arc};

use arrow_array::{
    ArrayRef, Int64Array, RecordBatch, StringArray,
    builder::{Int64Builder, StringBuilder},
};
use serde_json::json;
use trellis_proto::{
    ChunkSpan, Code, DatasetName, DatasetSpec, Error, FieldType, Result, Symbol,
    name::FieldName,
    pb,
    runs::{LEDGER, outcome_name},
    spec::FieldSpec,
    time::{DAY_NS, format_time},
};

use super::append::{Rows, rows_schema, unreadable};
use crate::{
    error::internal,
    files::{readable_ts, wire_time},
};

/// Most records of one call.
pub(crate) const LEDGER_RECORDS_MAX: usize = 10_000;

const FIELDS: [(&str, FieldType, bool); 16] = [
    ("run_id", FieldType::String, false),
    ("session", FieldType::String, false),
    ("partition", FieldType::String, false),
    ("attempt", FieldType::Int64, false),
    ("finished", FieldType::Timestamp, false),
    ("outcome", FieldType::String, false),
    ("error", FieldType::String, false),
    ("epoch", FieldType::Int64, false),
    ("code_digest", FieldType::String, false),
    ("inputs", FieldType::String, false),
    ("output_dataset", FieldType::String, false),
    ("output_version", FieldType::Int64, true),
    ("rows", FieldType::Int64, false),
    ("user_us", FieldType::Int64, false),
    ("system_us", FieldType::Int64, false),
    ("rss_max_bytes", FieldType::Int64, false),
];
const TRACE_ID: &str = "trace_id";

/// The spec of the ledger.
pub(crate) fn ledger_spec() -> Result<DatasetSpec> {
    let field =
        |name: &str, data_type, nullable| Ok(FieldSpec { name: FieldName::new(name)?, data_type, nullable });
    let mut fields =
        FIELDS.iter().map(|(name, t, nullable)| field(name, *t, *nullable)).collect::<Result<Vec<_>>>()?;
    fields.push(field(TRACE_ID, FieldType::String, false)?);
    DatasetSpec::new(DatasetName::new(LEDGER)?, fields, ChunkSpan::new(64 * DAY_NS)?)
}

/// Records as rows of the ledger.
///
/// # Errors
/// [`Code::InvalidRequest`] naming the invalid record.
pub(crate) fn ledger_rows(spec: &DatasetSpec, records: &[pb::RunRecord]) -> Result<Rows> {
    let mut starts: HashMap<(&str, i64), usize> = HashMap::new();
    let mut kept: Vec<&pb::RunRecord> = Vec::with_capacity(records.len());
    for (i, record) in records.iter().enumerate() {
        let refuse = |why: &str| {
            Err(Error::new(Code::InvalidRequest, format!("run record {i}: {why}")).dataset(LEDGER))
        };
        if Symbol::new(&record.unit).is_err() {
            return refuse("the unit's name is not valid");
        }
        // An attempt that failed before its inputs were read has no run id.
        if record.run_id.is_empty() && record.outcome() == pb::RunOutcome::Succeeded {
            return refuse("it succeeded and has no run id");
        }
        if record.outcome() == pb::RunOutcome::Unspecified {
            return refuse("it has no outcome");
        }
        if !readable_ts(record.started_ns) {
            return refuse(&format!("its start {} {}", format_time(record.started_ns), unreadable()));
        }
        // Two versions of a row that became known at the same time have no order, and no reader could choose.
        match starts.insert((&record.unit, record.started_ns), i) {
            None => kept.push(record),
            Some(before) if records[before] == *record => {}
            Some(before) => {
                return refuse(&format!(
                    "record {before} is of {} at {}, too, and is another one; send them one after the other",
                    record.unit,
                    format_time(record.started_ns)
                ));
            }
        }
    }
    let records = kept;
    let text = |value: &dyn Fn(&pb::RunRecord) -> String| -> ArrayRef {
        let mut builder = StringBuilder::new();
        records.iter().for_each(|r| builder.append_value(value(r)));
        Arc::new(builder.finish())
    };
    let whole = |value: &dyn Fn(&pb::RunRecord) -> u64| -> ArrayRef {
        Arc::new(Int64Array::from_iter_values(records.iter().map(|r| value(r).min(i64::MAX as u64) as i64)))
    };
    let mut versions = Int64Builder::new();
    records.iter().for_each(|r| versions.append_option(r.output_version.map(|v| v as i64)));
    let finished = Int64Array::from_iter_values(records.iter().map(|r| r.finished_ns));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(records.iter().map(|r| &r.unit))),
        Arc::new(Int64Array::from_iter_values(records.iter().map(|r| r.started_ns))),
        text(&|r| r.run_id.clone()),
        text(&|r| r.session.clone()),
        text(&|r| r.partition.clone()),
        whole(&|r| u64::from(r.attempt)),
        wire_time(&finished),
        text(&|r| outcome_name(r.outcome()).to_owned()),
        text(&|r| r.error.clone()),
        whole(&|r| r.epoch),
        text(&|r| r.code_digest.clone()),
        text(&|r| inputs(&r.inputs)),
        text(&|r| r.output_dataset.clone()),
        Arc::new(versions.finish()),
        whole(&|r| r.rows),
        whole(&|r| r.user_us),
        whole(&|r| r.system_us),
        whole(&|r| r.rss_max_bytes),
        text(&|r| r.trace_id.clone()),
    ];
    let batch =
        RecordBatch::try_new(rows_schema(spec), columns).map_err(|e| internal("building ledger rows", e))?;
    Rows::trusted(&batch)
}

/// The inputs of a run as JSON: they are a list, and a field is one value.
fn inputs(receipts: &[pb::InputReceipt]) -> String {
    let list: Vec<_> = receipts
        .iter()
        .map(|r| {
            json!({"name": r.name, "dataset": r.dataset, "version": r.version, "as_of_ns": r.as_of_ns, "rows": r.rows})
        })
        .collect();
    json!(list).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_records_of_one_unit_and_start_are_one_or_refused() {
        let record = |unit: &str, started_ns, run_id: &str| pb::RunRecord {
            run_id: run_id.to_owned(),
            unit: unit.to_owned(),
            started_ns,
            outcome: pb::RunOutcome::Succeeded.into(),
            ..pb::RunRecord::default()
        };
        let spec = ledger_spec().unwrap();
        let rows = |records: &[pb::RunRecord]| ledger_rows(&spec, records);
        let beside = [record("mom", 1, "a"), record("mom", 2, "b"), record("rev", 1, "c")];
        assert_eq!(rows(&beside).unwrap().len(), 3);
        assert_eq!(rows(&[record("mom", 1, "a"), record("mom", 1, "a")]).unwrap().len(), 1);
        let error = rows(&[record("mom", 1, "a"), record("mom", 1, "b")]).unwrap_err();
        assert_eq!(error.code(), Code::InvalidRequest);
        assert!(error.message().starts_with("run record 1: record 0 is of mom at"), "{error}");
        let error = rows(&[record("mom", i64::MAX, "a")]).unwrap_err();
        assert!(error.message().contains("could not be read back"), "{error}");
    }

    #[test]
    fn a_record_becomes_a_row_of_the_ledger() {
        let record = pb::RunRecord {
            run_id: "r1".to_owned(),
            unit: "mom".to_owned(),
            outcome: pb::RunOutcome::Succeeded.into(),
            ..pb::RunRecord::default()
        };
        let spec = ledger_spec().unwrap();
        assert_eq!(ledger_rows(&spec, std::slice::from_ref(&record)).unwrap().len(), 1);
        let nameless = pb::RunRecord { run_id: String::new(), ..record.clone() };
        assert_eq!(
            ledger_rows(&spec, std::slice::from_ref(&nameless)).unwrap_err().code(),
            Code::InvalidRequest
        );
        let early = pb::RunRecord { outcome: pb::RunOutcome::Failed.into(), ..nameless };
        assert_eq!(ledger_rows(&spec, &[early]).unwrap().len(), 1, "it failed before its inputs were read");
        let unnamed = pb::RunRecord { unit: String::new(), ..record };
        assert_eq!(ledger_rows(&spec, &[unnamed]).unwrap_err().code(), Code::InvalidRequest);
    }
}
