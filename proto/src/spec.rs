//! The definition of a dataset: its fields, their types, its chunk; and the Arrow schemas that follow from them.

use std::{borrow::Cow, fmt, sync::Arc};

use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use prost::Message;
use twox_hash::XxHash3_64;

use crate::{
    error::{Code, Error, Result},
    name::{DatasetName, FieldName, Suggest},
    pb,
    placement::{COPIES_MAX, SPREAD_MAX},
    time::ChunkSpan,
};

/// Most fields of one dataset. It bounds messages, and the fields that a claim tracks for each chunk.
pub const FIELDS_MAX: usize = 1_024;

/// Longest value of a setting in bytes; names of zones and calendars have a few tens of bytes.
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
    /// [`Code::InvalidRequest`] that lists the types.
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

    /// Whether values of this type can be converted to `wider` without a change. Only [`Self::Int64`] to
    /// [`Self::Float64`] is not certain: some values beyond 2^53 change, so each value is checked there.
    #[must_use]
    pub fn widens_to(self, wider: Self) -> bool {
        self == wider
            || matches!(
                (self, wider),
                (Self::Int32, Self::Int64 | Self::Float64) | (Self::Int64 | Self::Float32, Self::Float64)
            )
    }

    /// The narrowest type that holds the values of both types; `None` if there is none.
    #[must_use]
    pub fn common(self, other: Self) -> Option<Self> {
        let holds = |wider: &Self| self.widens_to(*wider) && other.widens_to(*wider);
        [self, other, Self::Float64].into_iter().find(holds)
    }

    /// Bytes of one value, for estimates; for a string a guess.
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
    /// Whether a row may lack the value. If not, NaN and infinities are refused, too.
    pub nullable: bool,
}

impl FieldSpec {
    fn arrow(&self) -> Field {
        Field::new(self.name.as_str(), self.data_type.to_arrow(), self.nullable)
    }
}

/// The definition of a dataset. Only [`DatasetSpec::widened`] and [`DatasetSpec::altered`] change it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatasetSpec {
    /// Its name.
    pub dataset: DatasetName,
    /// Its value columns: at least one, each name once.
    pub fields: Vec<FieldSpec>,
    /// Its chunk.
    pub chunk: ChunkSpan,
    /// Its settings.
    pub settings: Settings,
}

/// A dataset's settings: about times, and about the heads that serve it. In a publisher's spec, an absent setting means "as the dataset
/// has it".
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// Exchange calendar of the rows' dates: `XNYS`.
    pub calendar: Option<String>,
    /// IANA zone whose local midnights mean dates: an import changes such a time to midnight UTC of its date.
    pub date_zone: Option<String>,
    /// How many times the heads that serve it exist, from 1 to [`COPIES_MAX`]; `None`: once.
    pub copies: Option<u32>,
    /// How many heads serve it in each copy, from 1 to [`SPREAD_MAX`]; `None`: by its size.
    pub spread: Option<u32>,
}

impl Settings {
    /// Each setting with the name that people write.
    fn named(&self) -> [(&'static str, Option<Cow<'_, str>>); 4] {
        let number = |value: Option<u32>| value.map(|value| Cow::Owned(value.to_string()));
        [
            ("calendar", self.calendar.as_deref().map(Cow::Borrowed)),
            ("date_zone", self.date_zone.as_deref().map(Cow::Borrowed)),
            ("copies", number(self.copies)),
            ("spread", number(self.spread)),
        ]
    }

    /// Name and both values of the first setting that differs. A setting that is absent on either side does not differ.
    #[must_use]
    pub fn difference<'a>(&'a self, given: &'a Self) -> Option<(&'static str, Cow<'a, str>, Cow<'a, str>)> {
        let pairs = self.named().into_iter().zip(given.named());
        pairs.into_iter().find_map(|((name, have), (_, given))| match (have, given) {
            (Some(have), Some(given)) if have != given => Some((name, have, given)),
            _ => None,
        })
    }

    /// Why a setting is not possible, and what would be.
    fn problem(&self) -> Option<(String, String)> {
        for (name, value) in [("calendar", &self.calendar), ("date_zone", &self.date_zone)] {
            let Some(value) = value else { continue };
            let plain = value.bytes().all(|b| b.is_ascii_alphanumeric() || b"_/+-".contains(&b));
            if value.is_empty() || value.len() > SETTING_BYTES_MAX || !plain {
                let hint = "a calendar has a name such as XNYS, a zone one such as America/New_York";
                return Some((format!("the {name} {value:?} is not a name"), hint.to_owned()));
            }
        }
        for (name, value, most) in [("copies", self.copies, COPIES_MAX), ("spread", self.spread, SPREAD_MAX)]
        {
            if value.is_some_and(|value| !(1..=most).contains(&value)) {
                let hint = format!("{name} is a number of 1 to {most}; 0 takes the setting back");
                return Some((format!("{name} cannot be {}", value.unwrap_or_default()), hint));
            }
        }
        None
    }
}

impl DatasetSpec {
    /// # Errors
    /// [`Code::InvalidRequest`] if there is no field, a repeated name, or more than [`FIELDS_MAX`].
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
    /// [`Code::InvalidRequest`] if a calendar or a zone is not a name (letters, digits and `_/+-`, at most [`SETTING_BYTES_MAX`]), or a
    /// number is out of its range.
    pub fn with_settings(self, settings: Settings) -> Result<Self> {
        if let Some((why, hint)) = settings.problem() {
            return Err(Error::new(Code::InvalidRequest, why).hint(hint).dataset(&self.dataset));
        }
        Ok(Self { settings, ..self })
    }

    /// A number that differs if the spec or `revision` differs. It shows that a request was planned with another spec.
    #[must_use]
    pub fn fingerprint(&self, revision: u64) -> u64 {
        let mut bytes = pb::DatasetSpec::from(self).encode_to_vec();
        bytes.extend_from_slice(&revision.to_le_bytes());
        // 0 stands for "any"
        XxHash3_64::oneshot(&bytes).max(1)
    }

    /// Position and spec of the field `name`.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<(usize, &FieldSpec)> {
        self.fields.iter().enumerate().find(|(_, field)| field.name.as_str() == name)
    }

    /// The dataset, widened to hold its own rows and those of `wanted`. A field of both has the wider type. A field that only
    /// `wanted` has comes last and may be missing. Fields and settings that `wanted` leaves out stay. A required field stays
    /// required.
    ///
    /// # Errors
    /// [`Code::Conflict`] if the two do not fit: types without a common wider type, another chunk, another setting.
    pub fn widened(&self, wanted: &Self) -> Result<Self> {
        let refuse = |why: String| {
            Err(Error::new(Code::Conflict, format!("{} exists with another schema: {why}", self.dataset))
                .dataset(&self.dataset)
                .hint("use the schema of the dataset, use another dataset, or change it with `trellis dataset alter`"))
        };
        if self.chunk != wanted.chunk {
            return refuse(format!("its chunk is {} ns, not {} ns", self.chunk.ns(), wanted.chunk.ns()));
        }
        if let Some((setting, have, given)) = self.settings.difference(&wanted.settings) {
            return refuse(format!("its {setting} is {have}, not {given}"));
        }
        let mut fields = self.fields.clone();
        for other in &wanted.fields {
            let Some((i, mine)) = self.field(other.name.as_str()) else {
                fields.push(FieldSpec { nullable: true, ..other.clone() });
                continue;
            };
            match mine.data_type.common(other.data_type) {
                Some(data_type) => fields[i].data_type = data_type,
                None => {
                    return refuse(format!(
                        "its field {} is {}, not {}",
                        mine.name, mine.data_type, other.data_type
                    ));
                }
            }
        }
        Self::new(self.dataset.clone(), fields, self.chunk)?.with_settings(self.settings.clone())
    }

    /// Whether rows that fit `given` fit the dataset: it has the same fields in any order, each as strict or stricter, and no
    /// setting differs.
    #[must_use]
    pub fn agrees_with(&self, given: &Self) -> bool {
        self.chunk == given.chunk
            && self.settings.difference(&given.settings).is_none()
            && self.fields.len() == given.fields.len()
            && given.fields.iter().all(|field| {
                self.field(field.name.as_str()).is_some_and(|(_, mine)| {
                    mine.data_type == field.data_type && (mine.nullable || !field.nullable)
                })
            })
    }

    /// The dataset after an alteration.
    ///
    /// # Errors
    /// [`Code::UnknownField`] for an unknown field, [`Code::InvalidRequest`] for a change that is not possible.
    pub fn altered(&self, change: &Alteration) -> Result<Evolved> {
        let refuse = |why: String| Error::new(Code::InvalidRequest, why).dataset(&self.dataset);
        let most = [change.drop.len(), change.rename.len(), change.widen.len(), change.add.len()];
        if let Some(many) = most.into_iter().find(|many| *many > FIELDS_MAX) {
            let why = format!("an alteration names {many} fields; at most {FIELDS_MAX} are allowed");
            return Err(Error::new(Code::TooLarge, why).dataset(&self.dataset));
        }
        let mut fields: Vec<(FieldSpec, Option<usize>)> =
            self.fields.iter().cloned().enumerate().map(|(i, field)| (field, Some(i))).collect();
        let find = |fields: &[(FieldSpec, Option<usize>)], name: &FieldName| {
            let names = || fields.iter().map(|(field, _)| field.name.as_str());
            names().position(|known| known == name.as_str()).ok_or_else(|| {
                let error = Error::new(Code::UnknownField, format!("{} has no field {name}", self.dataset))
                    .dataset(&self.dataset);
                error.hint(Suggest::default().among(name.as_str(), "fields", names()))
            })
        };
        for name in &change.drop {
            let at = find(&fields, name)?;
            fields.remove(at);
        }
        if fields.is_empty() && change.add.is_empty() {
            return Err(refuse(format!("{} would have no field left", self.dataset))
                .hint("drop the whole dataset with `trellis dataset drop`"));
        }
        // all at once, so that two fields can swap their names
        let mut renamed = fields.clone();
        for (from, to) in &change.rename {
            renamed[find(&fields, from)?].0.name = to.clone();
        }
        let mut fields = renamed;
        for (name, wider) in &change.widen {
            let at = find(&fields, name)?;
            let field = &mut fields[at].0;
            if !field.data_type.widens_to(*wider) {
                return Err(refuse(format!(
                    "{name} is {}, which cannot become {wider} without changing values",
                    field.data_type
                ))
                .hint("int32 becomes int64 or float64, int64 and float32 become float64; for any other change, add a field"));
            }
            field.data_type = *wider;
        }
        for field in &change.add {
            if !field.nullable {
                return Err(refuse(format!(
                    "the new field {} would be missing in every present row",
                    field.name
                ))
                .hint("add it as a field that may be missing, without `!`"));
            }
            fields.push((field.clone(), None));
        }
        let settings = Settings {
            calendar: change.calendar.clone().unwrap_or_else(|| self.settings.calendar.clone()),
            date_zone: change.date_zone.clone().unwrap_or_else(|| self.settings.date_zone.clone()),
            copies: change.copies.unwrap_or(self.settings.copies),
            spread: change.spread.unwrap_or(self.settings.spread),
        };
        let (fields, from) = fields.into_iter().unzip();
        let spec = Self::new(self.dataset.clone(), fields, self.chunk)?.with_settings(settings)?;
        Ok(Evolved { spec, from })
    }

    /// Schema of an answer with the fields at `fields`: `symbol` (dictionary), `ts`, the fields, then `known_at` if asked for.
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

    /// Schema of a chunk run between shard and head: `ts`, `known_at`, then the fields at `fields`. Each may be
    /// null, whatever the spec says, because a retraction has no values.
    #[must_use]
    pub fn chunk_schema(&self, fields: &[usize]) -> SchemaRef {
        let mut columns =
            vec![Field::new("ts", time_type(), false), Field::new("known_at", time_type(), false)];
        columns.extend(fields.iter().map(|&i| self.fields[i].arrow().with_nullable(true)));
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

    /// Schema of the rows in a change event: as [`Self::rows_schema`], with `known_at` after `ts`, and each field nullable.
    #[must_use]
    pub fn change_schema(&self) -> SchemaRef {
        let mut columns = vec![
            Field::new("symbol", DataType::Utf8, false),
            Field::new("ts", time_type(), false),
            Field::new("known_at", time_type(), false),
        ];
        columns.extend(self.fields.iter().map(|field| field.arrow().with_nullable(true)));
        Arc::new(Schema::new(columns))
    }
}

/// An alteration of a dataset. Its parts are done in this order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Alteration {
    /// Fields to drop.
    pub drop: Vec<FieldName>,
    /// Fields and their new names.
    pub rename: Vec<(FieldName, FieldName)>,
    /// Fields and their wider types.
    pub widen: Vec<(FieldName, FieldType)>,
    /// New fields.
    pub add: Vec<FieldSpec>,
    /// The new calendar, or that there is none; `None`: no change.
    pub calendar: Option<Option<String>>,
    /// The new zone of its dates, likewise.
    pub date_zone: Option<Option<String>>,
    /// The new number of copies, likewise.
    pub copies: Option<Option<u32>>,
    /// The new number of heads in each copy, likewise.
    pub spread: Option<Option<u32>>,
}

impl Alteration {
    /// Whether it changes only which heads serve the dataset, and no row, field or date.
    #[must_use]
    pub fn only_places(&self) -> bool {
        let Self { copies, spread, .. } = *self;
        *self == Self { copies, spread, ..Self::default() }
    }
}

impl TryFrom<pb::AlterDatasetRequest> for Alteration {
    type Error = Error;

    fn try_from(wire: pb::AlterDatasetRequest) -> Result<Self> {
        Ok(Self {
            drop: wire.drop.into_iter().map(FieldName::new).collect::<Result<_>>()?,
            rename: wire
                .rename
                .into_iter()
                .map(|rename| Ok((FieldName::new(rename.from)?, FieldName::new(rename.to)?)))
                .collect::<Result<_>>()?,
            widen: wire
                .widen
                .into_iter()
                .map(|widen| {
                    let data_type = FieldType::from_wire(widen.r#type())?;
                    Ok((FieldName::new(widen.field)?, data_type))
                })
                .collect::<Result<_>>()?,
            add: wire.add.into_iter().map(FieldSpec::try_from).collect::<Result<_>>()?,
            calendar: wire.calendar.map(|name| (!name.is_empty()).then_some(name)),
            date_zone: wire.date_zone.map(|name| (!name.is_empty()).then_some(name)),
            copies: wire.copies.map(|copies| (copies != 0).then_some(copies)),
            spread: wire.spread.map(|spread| (spread != 0).then_some(spread)),
        })
    }
}

/// A dataset after a change, and where its fields' values come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evolved {
    /// The new spec.
    pub spec: DatasetSpec,
    /// For each field its position before the change; `None`: it is new, and missing in every present row.
    pub from: Vec<Option<usize>>,
}

impl Evolved {
    /// The change from `old` to `spec` by [`DatasetSpec::widened`]: fields with the same name are the same.
    #[must_use]
    pub fn by_name(old: &DatasetSpec, spec: DatasetSpec) -> Self {
        let from = spec.fields.iter().map(|f| old.field(f.name.as_str()).map(|(i, _)| i)).collect();
        Self { spec, from }
    }

    /// Whether the rows of `old` must be rewritten. A new field does not need it: old rows do not have it.
    #[must_use]
    pub fn rewrites(&self, old: &DatasetSpec) -> bool {
        let kept = self.from.iter().flatten().count();
        let as_it_was = |(field, from): (&FieldSpec, &Option<usize>)| {
            from.is_none_or(|i| {
                old.fields[i].name == field.name && old.fields[i].data_type == field.data_type
            })
        };
        kept < old.fields.len() || !self.spec.fields.iter().zip(&self.from).all(as_it_was)
    }
}

impl TryFrom<pb::DatasetSpec> for DatasetSpec {
    type Error = Error;

    fn try_from(wire: pb::DatasetSpec) -> Result<Self> {
        let fields = wire.fields.into_iter().map(FieldSpec::try_from).collect::<Result<_>>()?;
        let said = |value: String| (!value.is_empty()).then_some(value);
        let number = |value: u32| (value != 0).then_some(value);
        let settings = Settings {
            calendar: said(wire.calendar),
            date_zone: said(wire.date_zone),
            copies: number(wire.copies),
            spread: number(wire.spread),
        };
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
            copies: spec.settings.copies.unwrap_or_default(),
            spread: spec.settings.spread.unwrap_or_default(),
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
    use proptest::prelude::*;

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
    fn the_number_of_heads_is_a_setting_within_its_limits() {
        let plain = spec(&[("x", FieldType::Float64)]).unwrap();
        let set =
            |copies, spread| plain.clone().with_settings(Settings { copies, spread, ..Settings::default() });
        let both = set(Some(COPIES_MAX), Some(SPREAD_MAX)).unwrap();
        assert_eq!(DatasetSpec::try_from(pb::DatasetSpec::from(&both)).unwrap(), both);
        for wrong in [set(Some(0), None), set(Some(COPIES_MAX + 1), None), set(None, Some(SPREAD_MAX + 1))] {
            assert_eq!(wrong.unwrap_err().code(), Code::InvalidRequest);
        }
        let change = |copies, spread| {
            let wire = pb::AlterDatasetRequest { copies, spread, ..Default::default() };
            Alteration::try_from(wire).unwrap()
        };
        let fewer = both.altered(&change(Some(2), Some(0))).unwrap();
        assert_eq!((fewer.spec.settings.copies, fewer.spec.settings.spread), (Some(2), None));
        assert!(!fewer.rewrites(&both));
        assert!(change(Some(2), None).only_places());
        let more = Alteration { calendar: Some(None), ..change(Some(2), None) };
        assert!(!more.only_places());
    }

    #[test]
    fn settings_round_trip_and_are_names() {
        let zone = |zone: &str| Settings {
            calendar: Some("XNYS".into()),
            date_zone: Some(zone.into()),
            ..Settings::default()
        };
        let plain = spec(&[("close", FieldType::Float64)]).unwrap();
        let set = plain.clone().with_settings(zone("America/New_York")).unwrap();
        assert_eq!(DatasetSpec::try_from(pb::DatasetSpec::from(&set)).unwrap(), set);
        assert!(plain.clone().with_settings(zone("America/New York")).is_err());
        assert!(plain.clone().with_settings(zone(&"x".repeat(SETTING_BYTES_MAX + 1))).is_err());
        assert_eq!(set.settings.difference(&plain.settings), None);
        assert_eq!(plain.settings.difference(&set.settings), None);
        let other = zone("Europe/London");
        assert_eq!(
            set.settings.difference(&other),
            Some(("date_zone", "America/New_York".into(), "Europe/London".into()))
        );
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

    fn any_type() -> impl Strategy<Value = FieldType> {
        (0..FieldType::ALL.len()).prop_map(|i| FieldType::ALL[i].0)
    }

    fn any_spec() -> impl Strategy<Value = DatasetSpec> {
        let field = prop::option::of((any_type(), any::<bool>()));
        prop::collection::vec(field, 5).prop_filter_map("no field", |fields| {
            let names = ["a", "b", "c", "d", "e"];
            let fields = names.iter().zip(fields).filter_map(|(name, field)| {
                let (data_type, nullable) = field?;
                Some(FieldSpec { name: FieldName::new(*name).ok()?, data_type, nullable })
            });
            let chunk = ChunkSpan::new(64 * DAY_NS).ok()?;
            DatasetSpec::new(DatasetName::new("equities.daily").ok()?, fields.collect(), chunk).ok()
        })
    }

    /// The table of wider types, written out.
    const HOLDS: [(FieldType, &[FieldType]); 7] = [
        (FieldType::Float64, &[FieldType::Float64, FieldType::Int64, FieldType::Float32, FieldType::Int32]),
        (FieldType::Int64, &[FieldType::Int64, FieldType::Int32]),
        (FieldType::Bool, &[FieldType::Bool]),
        (FieldType::String, &[FieldType::String]),
        (FieldType::Float32, &[FieldType::Float32]),
        (FieldType::Int32, &[FieldType::Int32]),
        (FieldType::Timestamp, &[FieldType::Timestamp]),
    ];

    proptest! {
        #[test]
        fn a_widened_dataset_holds_both_and_nothing_else(have in any_spec(), wanted in any_spec()) {
            let holds = |wide: FieldType, narrow: FieldType| {
                HOLDS.iter().any(|(t, narrower)| *t == wide && narrower.contains(&narrow))
            };
            let possible = wanted.fields.iter().all(|field| match have.field(field.name.as_str()) {
                Some((_, mine)) => HOLDS
                    .iter()
                    .any(|(_, both)| both.contains(&mine.data_type) && both.contains(&field.data_type)),
                None => true,
            });
            let widened = have.widened(&wanted);
            prop_assert_eq!(widened.is_ok(), possible, "{:?}", widened);
            let Ok(widened) = widened else { return Ok(()) };
            // the old fields keep their places
            for (old, new) in have.fields.iter().zip(&widened.fields) {
                prop_assert!(old.name == new.name && old.nullable == new.nullable);
                prop_assert!(holds(new.data_type, old.data_type));
            }
            for field in &wanted.fields {
                let (_, new) = widened.field(field.name.as_str()).unwrap();
                prop_assert!(holds(new.data_type, field.data_type));
            }
            let only_wanted = wanted.fields.iter().filter(|f| have.field(f.name.as_str()).is_none()).count();
            prop_assert_eq!(widened.fields.len(), have.fields.len() + only_wanted);
            // widening a second time, or with a narrower spec, changes nothing
            prop_assert_eq!(widened.widened(&wanted).unwrap(), widened.clone());
            prop_assert_eq!(widened.widened(&have).unwrap(), widened.clone());
            let evolved = Evolved::by_name(&have, widened.clone());
            let retyped = have.fields.iter().zip(&widened.fields).any(|(a, b)| a.data_type != b.data_type);
            prop_assert_eq!(evolved.rewrites(&have), retyped);
        }
    }

    #[test]
    fn an_alteration_says_where_each_fields_values_come_from() {
        let name = |n: &str| FieldName::new(n).unwrap();
        let have = spec(&[("a", FieldType::Int64), ("b", FieldType::Int32), ("c", FieldType::Bool)]).unwrap();
        let added = FieldSpec { name: name("d"), data_type: FieldType::String, nullable: true };
        let change = Alteration {
            drop: vec![name("c")],
            rename: vec![(name("a"), name("b")), (name("b"), name("a"))],
            widen: vec![(name("b"), FieldType::Float64)],
            add: vec![added.clone()],
            ..Alteration::default()
        };
        let evolved = have.altered(&change).unwrap();
        let told: Vec<_> = evolved.spec.fields.iter().map(|f| (f.name.as_str(), f.data_type)).collect();
        assert_eq!(told, [("b", FieldType::Float64), ("a", FieldType::Int32), ("d", FieldType::String)]);
        assert_eq!(evolved.from, [Some(0), Some(1), None]);
        assert!(evolved.rewrites(&have));
        let only_new = have.altered(&Alteration { add: vec![added], ..Alteration::default() }).unwrap();
        assert!(!only_new.rewrites(&have));
    }

    #[test]
    fn an_alteration_that_cannot_be_made_says_why() {
        let name = |n: &str| FieldName::new(n).unwrap();
        let have = spec(&[("close", FieldType::Float64), ("volume", FieldType::Int64)]).unwrap();
        let none = Alteration::default();
        let new = |n: &str, nullable| FieldSpec { name: name(n), data_type: FieldType::Bool, nullable };
        for (change, code) in [
            (Alteration { drop: vec![name("clsoe")], ..none.clone() }, Code::UnknownField),
            (Alteration { rename: vec![(name("x"), name("y"))], ..none.clone() }, Code::UnknownField),
            (
                Alteration { rename: vec![(name("close"), name("volume"))], ..none.clone() },
                Code::InvalidRequest,
            ),
            (
                Alteration { widen: vec![(name("close"), FieldType::Int64)], ..none.clone() },
                Code::InvalidRequest,
            ),
            (Alteration { drop: vec![name("close"), name("volume")], ..none.clone() }, Code::InvalidRequest),
            (Alteration { add: vec![new("open", false)], ..none.clone() }, Code::InvalidRequest),
            (Alteration { add: vec![new("close", true)], ..none.clone() }, Code::InvalidRequest),
        ] {
            let error = have.altered(&change).unwrap_err();
            assert_eq!(error.code(), code, "{change:?}: {error}");
        }
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
