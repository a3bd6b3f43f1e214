//! What a dataset is: its fields, their types, its chunk; and the Arrow schemas that follow from it.

use std::{fmt, sync::Arc};

use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};

use crate::{
    Code, Error, Result,
    name::{DatasetName, FieldName},
    pb,
    time::ChunkSpan,
};

/// Most fields of one dataset: bounds messages, and what a claim has to track for each chunk.
pub const FIELDS_MAX: usize = 1_024;

/// Longest value of a setting: zones and calendars have names of some tens of bytes.
pub const SETTING_BYTES_MAX: usize = 64;

/// Type of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FieldType {
    /// 64 bit float.
    Float64,
    /// 64 bit signed integer.
    Int64,
    /// Boolean.
    Bool,
    /// UTF-8 text.
    String,
    /// 32 bit float.
    Float32,
    /// 32 bit signed integer.
    Int32,
    /// Nanoseconds, UTC.
    Timestamp,
}

impl FieldType {
    /// Every type, with the name that people write.
    pub const ALL: [(FieldType, &'static str); 7] = [
        (Self::Float64, "float64"),
        (Self::Int64, "int64"),
        (Self::Bool, "bool"),
        (Self::String, "string"),
        (Self::Float32, "float32"),
        (Self::Int32, "int32"),
        (Self::Timestamp, "timestamp"),
    ];

    /// The name that people write: `float64`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Float64 => "float64",
            Self::Int64 => "int64",
            Self::Bool => "bool",
            Self::String => "string",
            Self::Float32 => "float32",
            Self::Int32 => "int32",
            Self::Timestamp => "timestamp",
        }
    }

    /// Reads [`Self::name`].
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] naming the types there are.
    pub fn parse(name: &str) -> Result<Self> {
        Self::ALL.iter().find(|(_, known)| *known == name).map(|(t, _)| *t).ok_or_else(|| {
            Error::new(Code::InvalidRequest, format!("{name:?} is not a field type"))
                .hint("the types are float64, float32, int64, int32, bool, string and timestamp")
        })
    }

    /// The Arrow type on the wire.
    #[must_use]
    pub fn to_arrow(self) -> DataType {
        match self {
            Self::Float64 => DataType::Float64,
            Self::Int64 => DataType::Int64,
            Self::Bool => DataType::Boolean,
            Self::String => DataType::Utf8,
            Self::Float32 => DataType::Float32,
            Self::Int32 => DataType::Int32,
            Self::Timestamp => time_type(),
        }
    }

    /// The field type that holds values of an Arrow type exactly as they are on the wire; `None` for all others.
    #[must_use]
    pub fn from_arrow(data_type: &DataType) -> Option<Self> {
        Self::ALL.iter().find(|(t, _)| t.to_arrow() == *data_type).map(|(t, _)| *t)
    }

    /// Bytes of one value; of a string a guess, for estimates.
    #[must_use]
    pub fn width(self) -> usize {
        match self {
            Self::Float64 | Self::Int64 | Self::Timestamp => 8,
            Self::Float32 | Self::Int32 => 4,
            Self::Bool => 1,
            Self::String => 16,
        }
    }

    fn wire(self) -> pb::FieldType {
        match self {
            Self::Float64 => pb::FieldType::Float64,
            Self::Int64 => pb::FieldType::Int64,
            Self::Bool => pb::FieldType::Bool,
            Self::String => pb::FieldType::String,
            Self::Float32 => pb::FieldType::Float32,
            Self::Int32 => pb::FieldType::Int32,
            Self::Timestamp => pb::FieldType::Timestamp,
        }
    }

    fn from_wire(wire: pb::FieldType) -> Result<Self> {
        Ok(match wire {
            pb::FieldType::Unspecified => {
                return Err(Error::new(Code::InvalidRequest, "a field has no type"));
            }
            pb::FieldType::Float64 => Self::Float64,
            pb::FieldType::Int64 => Self::Int64,
            pb::FieldType::Bool => Self::Bool,
            pb::FieldType::String => Self::String,
            pb::FieldType::Float32 => Self::Float32,
            pb::FieldType::Int32 => Self::Int32,
            pb::FieldType::Timestamp => Self::Timestamp,
        })
    }
}

impl fmt::Display for FieldType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// `timestamp[ns, UTC]`, the type of `ts`, `known_at` and timestamp fields on the wire.
#[must_use]
pub fn time_type() -> DataType {
    DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into()))
}

/// `dictionary<int32, utf8>`, the type of `symbol` in answers. 32 bit keys: a universe may have more than 32,767 symbols.
#[must_use]
pub fn symbol_type() -> DataType {
    DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8))
}

/// A value column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldSpec {
    /// Its name.
    pub name: FieldName,
    /// Its type.
    pub data_type: FieldType,
    /// Whether a row may lack it. Where not, NaN and infinities are refused too.
    pub nullable: bool,
}

impl FieldSpec {
    fn arrow(&self) -> Field {
        Field::new(self.name.as_str(), self.data_type.to_arrow(), self.nullable)
    }
}

/// What a dataset is, fixed when it is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatasetSpec {
    /// Its name.
    pub dataset: DatasetName,
    /// Its value columns, at least one, no name twice.
    pub fields: Vec<FieldSpec>,
    /// Its chunk.
    pub chunk: ChunkSpan,
    /// What it says of its times.
    pub settings: Settings,
}

/// What a dataset says of its times. In a publisher's spec a setting that is absent means "as the dataset has it".
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// Exchange calendar whose sessions the dates of the rows are: `XNYS`.
    pub calendar: Option<String>,
    /// IANA zone whose local midnights name dates: an import makes such a time the midnight UTC of its date.
    pub date_zone: Option<String>,
}

impl Settings {
    /// Each setting with the name that people write.
    fn named(&self) -> [(&'static str, Option<&str>); 2] {
        [("calendar", self.calendar.as_deref()), ("date_zone", self.date_zone.as_deref())]
    }

    /// Name and both values of the first setting that `given` has otherwise; what `given` leaves out never differs, nor does
    /// what is not set here.
    #[must_use]
    pub fn difference<'a>(&'a self, given: &'a Self) -> Option<(&'static str, &'a str, &'a str)> {
        let pairs = self.named().into_iter().zip(given.named());
        pairs.into_iter().find_map(|((name, have), (_, given))| match (have, given) {
            (Some(have), Some(given)) if have != given => Some((name, have, given)),
            _ => None,
        })
    }
}

impl DatasetSpec {
    /// # Errors
    /// [`Code::InvalidRequest`] if there is no field, a name twice, or more than [`FIELDS_MAX`].
    pub fn new(dataset: DatasetName, fields: Vec<FieldSpec>, chunk: ChunkSpan) -> Result<Self> {
        let refuse = |why: String| Err(Error::new(Code::InvalidRequest, why).dataset(&dataset));
        if fields.is_empty() {
            return refuse(format!("{dataset} has no fields"));
        }
        if fields.len() > FIELDS_MAX {
            return refuse(format!(
                "{dataset} has {} fields; at most {FIELDS_MAX} are allowed",
                fields.len()
            ));
        }
        let mut names: Vec<&str> = fields.iter().map(|f| f.name.as_str()).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return refuse(format!("{dataset} has the field {} twice", twice[0]));
        }
        Ok(Self { dataset, fields, chunk, settings: Settings::default() })
    }

    /// The same dataset with these settings.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] if a setting is no name: letters, digits and `_/+-`, at most [`SETTING_BYTES_MAX`].
    pub fn with_settings(self, settings: Settings) -> Result<Self> {
        for (name, value) in settings.named() {
            let Some(value) = value else { continue };
            let plain = value.bytes().all(|b| b.is_ascii_alphanumeric() || b"_/+-".contains(&b));
            if value.is_empty() || value.len() > SETTING_BYTES_MAX || !plain {
                return Err(Error::new(Code::InvalidRequest, format!("the {name} {value:?} is no name"))
                    .hint("a calendar is named as XNYS, a zone as America/New_York")
                    .dataset(&self.dataset));
            }
        }
        Ok(Self { settings, ..self })
    }

    /// Position and spec of the field `name`.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<(usize, &FieldSpec)> {
        self.fields.iter().enumerate().find(|(_, field)| field.name.as_str() == name)
    }

    /// Schema of an answer with the fields at `fields`: `symbol` (dictionary), `ts`, the fields, then `known_at` if asked.
    #[must_use]
    pub fn answer_schema(&self, fields: &[usize], known_at: bool) -> SchemaRef {
        let mut columns =
            vec![Field::new("symbol", symbol_type(), false), Field::new("ts", time_type(), false)];
        columns.extend(fields.iter().map(|&i| self.fields[i].arrow()));
        if known_at {
            columns.push(Field::new("known_at", time_type(), false));
        }
        Arc::new(Schema::new(columns))
    }

    /// Schema of a chunk run between shard and head: `ts`, `known_at`, then the fields at `fields`.
    #[must_use]
    pub fn chunk_schema(&self, fields: &[usize]) -> SchemaRef {
        let mut columns =
            vec![Field::new("ts", time_type(), false), Field::new("known_at", time_type(), false)];
        columns.extend(fields.iter().map(|&i| self.fields[i].arrow()));
        Arc::new(Schema::new(columns))
    }

    /// Schema of published rows: `symbol` (utf8), `ts`, every field.
    #[must_use]
    pub fn rows_schema(&self) -> SchemaRef {
        let mut columns =
            vec![Field::new("symbol", DataType::Utf8, false), Field::new("ts", time_type(), false)];
        columns.extend(self.fields.iter().map(FieldSpec::arrow));
        Arc::new(Schema::new(columns))
    }

    /// Schema of the rows in a change event: as [`Self::rows_schema`], with `known_at` after `ts`.
    #[must_use]
    pub fn change_schema(&self) -> SchemaRef {
        let mut columns = vec![
            Field::new("symbol", DataType::Utf8, false),
            Field::new("ts", time_type(), false),
            Field::new("known_at", time_type(), false),
        ];
        columns.extend(self.fields.iter().map(FieldSpec::arrow));
        Arc::new(Schema::new(columns))
    }
}

impl TryFrom<pb::DatasetSpec> for DatasetSpec {
    type Error = Error;

    fn try_from(wire: pb::DatasetSpec) -> Result<Self> {
        let fields = wire.fields.into_iter().map(FieldSpec::try_from).collect::<Result<_>>()?;
        let said = |value: String| (!value.is_empty()).then_some(value);
        let settings = Settings { calendar: said(wire.calendar), date_zone: said(wire.date_zone) };
        Self::new(DatasetName::new(wire.dataset)?, fields, ChunkSpan::new(wire.chunk_ns)?)?
            .with_settings(settings)
    }
}

impl From<&DatasetSpec> for pb::DatasetSpec {
    fn from(spec: &DatasetSpec) -> Self {
        Self {
            dataset: spec.dataset.to_string(),
            fields: spec.fields.iter().map(pb::Field::from).collect(),
            chunk_ns: spec.chunk.ns(),
            calendar: spec.settings.calendar.clone().unwrap_or_default(),
            date_zone: spec.settings.date_zone.clone().unwrap_or_default(),
        }
    }
}

impl TryFrom<pb::Field> for FieldSpec {
    type Error = Error;

    fn try_from(wire: pb::Field) -> Result<Self> {
        let data_type = FieldType::from_wire(wire.r#type())?;
        Ok(Self { name: FieldName::new(wire.name)?, data_type, nullable: wire.nullable })
    }
}

impl From<&FieldSpec> for pb::Field {
    fn from(field: &FieldSpec) -> Self {
        Self { name: field.name.to_string(), r#type: field.data_type.wire().into(), nullable: field.nullable }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::DAY_NS;

    fn spec(fields: &[(&str, FieldType)]) -> Result<DatasetSpec> {
        let fields = fields
            .iter()
            .map(|(name, data_type)| FieldSpec {
                name: FieldName::new(name).unwrap(),
                data_type: *data_type,
                nullable: true,
            })
            .collect();
        DatasetSpec::new(DatasetName::new("equities.daily")?, fields, ChunkSpan::new(64 * DAY_NS)?)
    }

    #[test]
    fn a_spec_round_trips_through_the_wire() {
        let all: Vec<_> = FieldType::ALL.iter().map(|(t, name)| (*name, *t)).collect();
        let spec = spec(&all).unwrap();
        assert_eq!(DatasetSpec::try_from(pb::DatasetSpec::from(&spec)).unwrap(), spec);
    }

    #[test]
    fn settings_round_trip_and_are_names() {
        let zone = |zone: &str| Settings { calendar: Some("XNYS".into()), date_zone: Some(zone.into()) };
        let plain = spec(&[("close", FieldType::Float64)]).unwrap();
        let set = plain.clone().with_settings(zone("America/New_York")).unwrap();
        assert_eq!(DatasetSpec::try_from(pb::DatasetSpec::from(&set)).unwrap(), set);
        assert!(plain.clone().with_settings(zone("America/New York")).is_err());
        assert!(plain.clone().with_settings(zone(&"x".repeat(SETTING_BYTES_MAX + 1))).is_err());
        assert_eq!(set.settings.difference(&plain.settings), None);
        assert_eq!(plain.settings.difference(&set.settings), None);
        let other = zone("Europe/London");
        assert_eq!(set.settings.difference(&other), Some(("date_zone", "America/New_York", "Europe/London")));
    }

    #[test]
    fn every_type_is_found_by_its_arrow_type_and_its_name() {
        for (data_type, name) in FieldType::ALL {
            assert_eq!(FieldType::from_arrow(&data_type.to_arrow()), Some(data_type));
            assert_eq!(FieldType::parse(name).unwrap(), data_type);
            assert_eq!(data_type.name(), name);
        }
        assert!(FieldType::parse("decimal").is_err());
    }

    #[test]
    fn a_spec_without_fields_or_with_one_twice_is_refused() {
        assert!(spec(&[]).is_err());
        assert!(spec(&[("close", FieldType::Float64), ("close", FieldType::Int64)]).is_err());
    }

    #[test]
    fn answers_have_symbol_time_fields_and_then_knowledge_time() {
        let spec = spec(&[("open", FieldType::Float64), ("close", FieldType::Float64)]).unwrap();
        let names: Vec<_> =
            spec.answer_schema(&[1], true).fields().iter().map(|f| f.name().clone()).collect();
        assert_eq!(names, ["symbol", "ts", "close", "known_at"]);
    }
}
