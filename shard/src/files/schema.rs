//! A dataset in the lake: its columns, and the table properties that hold its spec.
//!
//! Delta Lake has no nanoseconds that every tool reads, so each time is stored twice: in microseconds under its own name, for people
//! and for other tools, and exactly, as int64 nanoseconds, under `<name>_ns`. The shard reads only the exact column. The table's
//! properties have the spec: fields, nullability, chunk.
//!
//! A *retraction* is a row that says that an earlier row no longer holds: the same `symbol` and `ts`, a later `known_at`, no values,
//! and `retracted` true. A table that was made before there were retractions gets the column with its first one, and its older
//! files never have it. Rows without the column are no retractions.
//!
//! Rows have one of three shapes:
//!
//! * *wire*: `symbol`, `ts`, fields. Clients send and get these.
//! * *exact*: `symbol`, `ts_ns`, `known_at_ns`, `retracted`, fields in wire types. The shard sorts, merges and cuts these.
//! * *lake*: the columns of the Parquet files.

use std::{collections::HashMap, sync::Arc};

use arrow_array::{
    Array, ArrayRef, Int64Array, RecordBatch, TimestampMicrosecondArray, TimestampNanosecondArray,
    cast::AsArray,
    types::{Int64Type, TimestampNanosecondType},
};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use serde_json::{Value, json};
use trellis_proto::{
    ChunkSpan, Code, DatasetName, DatasetSpec, Error, FieldType, Result,
    name::FieldName,
    spec::{FieldSpec, Settings},
    time::DAY_NS,
};

use crate::error::internal;

/// Table property that holds the spec.
pub(crate) const SPEC_PROPERTY: &str = "trellis.spec";
/// Table property that holds the chunk, in nanoseconds, for people.
pub(crate) const CHUNK_PROPERTY: &str = "trellis.chunk_ns";
/// Chunk of a table that another tool made.
const FOREIGN_CHUNK_NS: i64 = 64 * DAY_NS;

/// The exact columns that every file has besides the fields.
pub(crate) const SYMBOL: &str = "symbol";
pub(crate) const TS_NS: &str = "ts_ns";
pub(crate) const KNOWN_AT_NS: &str = "known_at_ns";
/// The column that tells retractions from rows.
pub(crate) const RETRACTED: &str = "retracted";
/// Columns of exact rows before the fields.
pub(crate) const EXACT_KEYS: usize = 4;

/// Name of the column that holds a field exactly.
pub(crate) fn exact_column(field: &FieldSpec) -> String {
    match field.data_type {
        FieldType::Timestamp => format!("{}_ns", field.name),
        _ => field.name.to_string(),
    }
}

/// Refuses specs whose columns would collide: a field `retracted`, or a timestamp field `x` beside a field `x_ns`.
pub(crate) fn check_spec(spec: &DatasetSpec) -> Result<()> {
    if spec.field(RETRACTED).is_some() {
        return Err(Error::new(
            Code::InvalidRequest,
            format!(
                "a field of {} is named {RETRACTED}, which is how the lake marks retractions",
                spec.dataset
            ),
        )
        .dataset(&spec.dataset)
        .hint("give the field another name"));
    }
    for field in spec.fields.iter().filter(|f| f.data_type == FieldType::Timestamp) {
        let exact = exact_column(field);
        if spec.field(&exact).is_some() {
            return Err(Error::new(
                Code::InvalidRequest,
                format!("the timestamp field {} is stored beside its nanoseconds as {exact}, which is a field too", field.name),
            )
            .dataset(&spec.dataset)
            .hint("rename one of the two"));
        }
    }
    Ok(())
}

/// Exact rows: `symbol` (utf8), `ts_ns`, `known_at_ns`, `retracted`, then every field in its wire type. Each field may be null here,
/// because a retraction has no values. Required values were checked when the rows came.
pub(crate) fn exact_schema(spec: &DatasetSpec) -> SchemaRef {
    let mut columns = vec![
        Field::new(SYMBOL, DataType::Utf8, false),
        Field::new(TS_NS, DataType::Int64, false),
        Field::new(KNOWN_AT_NS, DataType::Int64, false),
        Field::new(RETRACTED, DataType::Boolean, false),
    ];
    columns.extend(spec.fields.iter().map(|f| Field::new(f.name.as_str(), f.data_type.to_arrow(), true)));
    Arc::new(Schema::new(columns))
}

/// Rows as Parquet files hold them, in a table that has the column `retracted` or not.
pub(crate) fn lake_schema(spec: &DatasetSpec, retractable: bool) -> SchemaRef {
    let micros = || DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let mut columns = vec![
        Field::new(SYMBOL, DataType::Utf8, false),
        Field::new("ts", micros(), false),
        Field::new(TS_NS, DataType::Int64, false),
        Field::new("known_at", micros(), false),
        Field::new(KNOWN_AT_NS, DataType::Int64, false),
    ];
    if retractable {
        columns.push(Field::new(RETRACTED, DataType::Boolean, true));
    }
    for field in &spec.fields {
        // Without retractions a column is nullable as its field is.
        let nullable = retractable || field.nullable;
        if field.data_type == FieldType::Timestamp {
            columns.push(Field::new(field.name.as_str(), micros(), nullable));
            columns.push(Field::new(exact_column(field), DataType::Int64, nullable));
        } else {
            columns.push(Field::new(field.name.as_str(), field.data_type.to_arrow(), nullable));
        }
    }
    Arc::new(Schema::new(columns))
}

/// Exact rows to lake rows, for a table that has the column `retracted` or not.
pub(crate) fn to_lake(spec: &DatasetSpec, exact: &RecordBatch, retractable: bool) -> Result<RecordBatch> {
    let ts = exact.column(1).as_primitive::<Int64Type>();
    let known_at = exact.column(2).as_primitive::<Int64Type>();
    let mut columns: Vec<ArrayRef> = vec![
        exact.column(0).clone(),
        micros(ts),
        exact.column(1).clone(),
        micros(known_at),
        exact.column(2).clone(),
    ];
    if retractable {
        columns.push(exact.column(3).clone());
    }
    for (field, column) in spec.fields.iter().zip(&exact.columns()[EXACT_KEYS..]) {
        if field.data_type == FieldType::Timestamp {
            let ns = column.as_primitive::<TimestampNanosecondType>().reinterpret_cast::<Int64Type>();
            columns.push(micros(&ns));
            columns.push(Arc::new(ns));
        } else {
            columns.push(column.clone());
        }
    }
    RecordBatch::try_new(lake_schema(spec, retractable), columns)
        .map_err(|e| internal("building lake rows", e))
}

/// Microseconds, rounded down, so that times before 1970 stay in order.
fn micros(ns: &Int64Array) -> ArrayRef {
    let us: TimestampMicrosecondArray = ns.unary(|v| v.div_euclid(1_000));
    Arc::new(us.with_timezone("UTC"))
}

/// Nanoseconds as the wire's `timestamp[ns, UTC]`, without a copy.
pub(crate) fn wire_time(ns: &Int64Array) -> ArrayRef {
    Arc::new(ns.reinterpret_cast::<TimestampNanosecondType>().with_timezone("UTC"))
}

/// A field's column as read from a file, in its wire type.
pub(crate) fn wire_field(field: &FieldSpec, column: &ArrayRef) -> Result<ArrayRef> {
    let wire = field.data_type.to_arrow();
    if *column.data_type() == wire {
        return Ok(column.clone());
    }
    match (field.data_type, column.data_type()) {
        (FieldType::Timestamp, DataType::Int64) => Ok(wire_time(column.as_primitive())),
        // Another tool wrote the same values in another layout (large strings, dictionaries, microseconds).
        _ => arrow_cast::cast(column, &wire).map_err(|e| {
            Error::new(
                Code::DataCorrupt,
                format!("the column {} holds {} instead of {}: {e}", field.name, column.data_type(), wire),
            )
        }),
    }
}

/// Nanoseconds out of a timestamp column in wire type.
pub(crate) fn exact_time(column: &TimestampNanosecondArray) -> Int64Array {
    column.reinterpret_cast::<Int64Type>()
}

/// Delta's name of an Arrow type that occurs in a lake schema.
fn delta_type(data_type: &DataType) -> &'static str {
    match data_type {
        DataType::Float64 => "double",
        DataType::Float32 => "float",
        DataType::Int64 => "long",
        DataType::Int32 => "integer",
        DataType::Boolean => "boolean",
        DataType::Timestamp(..) => "timestamp",
        _ => "string",
    }
}

/// The `schemaString` of a Delta table for a dataset, with the column `retracted`.
pub(crate) fn delta_schema(spec: &DatasetSpec) -> String {
    let fields: Vec<Value> = lake_schema(spec, true)
        .fields()
        .iter()
        .map(|f| {
            json!({"name": f.name(), "type": delta_type(f.data_type()), "nullable": f.is_nullable(), "metadata": {}})
        })
        .collect();
    json!({"type": "struct", "fields": fields}).to_string()
}

/// Which of its datasets a table holds, and which definition of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Life {
    /// Grows with every definition.
    pub(crate) revision: u64,
    /// The version at which the dataset was made. Runs before it belong to a dataset that was dropped.
    pub(crate) since: u64,
    /// The dataset was dropped.
    pub(crate) dropped: bool,
}

/// The table properties that hold the spec of a dataset.
pub(crate) fn table_properties(spec: &DatasetSpec, life: &Life) -> Vec<(String, String)> {
    let fields: Vec<Value> = spec
        .fields
        .iter()
        .map(|f| json!({"name": f.name.as_str(), "type": f.data_type.name(), "nullable": f.nullable}))
        .collect();
    vec![
        (SPEC_PROPERTY.to_owned(), {
            let Settings { calendar, date_zone, copies, spread } = &spec.settings;
            let Life { revision, since, dropped } = life;
            json!({
                "fields": fields, "chunk_ns": spec.chunk.ns(), "calendar": calendar, "date_zone": date_zone,
                "copies": copies, "spread": spread,
                "revision": revision, "since": since, "dropped": dropped,
            })
            .to_string()
        }),
        (CHUNK_PROPERTY.to_owned(), spec.chunk.ns().to_string()),
    ]
}

#[derive(serde::Deserialize)]
struct StoredSpec {
    fields: Vec<StoredField>,
    chunk_ns: i64,
    calendar: Option<String>,
    date_zone: Option<String>,
    copies: Option<u32>,
    spread: Option<u32>,
    #[serde(default)]
    revision: u64,
    #[serde(default)]
    since: u64,
    #[serde(default)]
    dropped: bool,
}

#[derive(serde::Deserialize)]
struct StoredField {
    name: String,
    r#type: String,
    nullable: bool,
}

/// Least event time of a row: the first midnight that 64 bit nanoseconds hold. The day of an earlier row would begin before them.
pub(crate) const TS_MIN: i64 = i64::MIN / DAY_NS * DAY_NS;
/// Greatest event time of a row. No range of times has the one after it in it, because its end would lie beyond 64 bits.
pub(crate) const TS_MAX: i64 = i64::MAX - 1;

/// Whether a row with this event time can be read back.
pub(crate) fn readable_ts(ts: i64) -> bool {
    (TS_MIN..=TS_MAX).contains(&ts)
}

/// Reads the spec back from a table's properties, or, for a table that another tool made, from its schema.
pub(crate) fn spec_of(
    dataset: &DatasetName,
    properties: &HashMap<String, String>,
    schema_json: &str,
) -> Result<(DatasetSpec, Life)> {
    let refuse = |why: String| {
        Error::new(Code::DataCorrupt, format!("the table of {dataset} is not a dataset: {why}"))
            .dataset(dataset)
    };
    if let Some(stored) = properties.get(SPEC_PROPERTY) {
        let stored: StoredSpec = serde_json::from_str(stored)
            .map_err(|e| refuse(format!("its property {SPEC_PROPERTY} does not read: {e}")))?;
        let fields = stored
            .fields
            .into_iter()
            .map(|f| {
                Ok(FieldSpec {
                    name: FieldName::new(&f.name)?,
                    data_type: FieldType::parse(&f.r#type)?,
                    nullable: f.nullable,
                })
            })
            .collect::<Result<_>>()?;
        let StoredSpec { calendar, date_zone, copies, spread, .. } = stored;
        let settings = Settings { calendar, date_zone, copies, spread };
        let spec = DatasetSpec::new(dataset.clone(), fields, ChunkSpan::new(stored.chunk_ns)?)?;
        let life = Life { revision: stored.revision, since: stored.since, dropped: stored.dropped };
        return Ok((spec.with_settings(settings)?, life));
    }
    let schema: Value =
        serde_json::from_str(schema_json).map_err(|e| refuse(format!("its schema does not read: {e}")))?;
    let columns = schema["fields"].as_array().cloned().unwrap_or_default();
    let name_of = |column: &Value| column["name"].as_str().unwrap_or_default().to_owned();
    for needed in [SYMBOL, TS_NS, KNOWN_AT_NS] {
        if !columns.iter().any(|c| name_of(c) == needed) {
            return Err(refuse(format!("it has no column {needed}")));
        }
    }
    let mut fields = Vec::new();
    for column in &columns {
        let name = name_of(column);
        if [SYMBOL, "ts", TS_NS, "known_at", KNOWN_AT_NS].contains(&name.as_str())
            || name == RETRACTED && column["type"] == "boolean"
        {
            continue;
        }
        let data_type = match column["type"].as_str() {
            Some("double") => FieldType::Float64,
            Some("float") => FieldType::Float32,
            Some("long") => FieldType::Int64,
            Some("integer") => FieldType::Int32,
            Some("boolean") => FieldType::Bool,
            Some("string") => FieldType::String,
            _ => return Err(refuse(format!("its column {name} has the type {}", column["type"]))),
        };
        let nullable = column["nullable"].as_bool().unwrap_or(true);
        fields.push(FieldSpec { name: FieldName::new(&name)?, data_type, nullable });
    }
    Ok((DatasetSpec::new(dataset.clone(), fields, ChunkSpan::new(FOREIGN_CHUNK_NS)?)?, Life::default()))
}

/// Whether a table with this schema has the column `retracted`, and not a field of that name.
pub(crate) fn has_retracted_column(spec: &DatasetSpec, schema_json: &str) -> bool {
    let schema: Value = serde_json::from_str(schema_json).unwrap_or_default();
    let has = |c: &Value| c["name"] == RETRACTED && c["type"] == "boolean";
    spec.field(RETRACTED).is_none() && schema["fields"].as_array().is_some_and(|all| all.iter().any(has))
}

/// Says how two specs of one dataset differ; `None` if they do not. Settings that `given` leaves out do not differ.
pub(crate) fn spec_difference(have: &DatasetSpec, given: &DatasetSpec) -> Option<String> {
    let describe =
        |f: &FieldSpec| format!("{} {}{}", f.name, f.data_type, if f.nullable { "" } else { " not null" });
    if have.chunk != given.chunk {
        return Some(format!("its chunk is {} ns, not {} ns", have.chunk.ns(), given.chunk.ns()));
    }
    if let Some((setting, have, given)) = have.settings.difference(&given.settings) {
        return Some(format!("its {setting} is {have}, not {given}"));
    }
    for (i, field) in have.fields.iter().enumerate() {
        match given.fields.get(i) {
            Some(other) if other == field => {}
            Some(other) => {
                return Some(format!(
                    "its field {} is `{}`, not `{}`",
                    i + 1,
                    describe(field),
                    describe(other)
                ));
            }
            None => return Some(format!("it has the field `{}`, which is not given", describe(field))),
        }
    }
    given.fields.get(have.fields.len()).map(|extra| format!("it has no field `{}`", describe(extra)))
}
