//! The manifest of a deployed unit: the JSON file that a deployment writes beside the strategy's source, and that `qcu` reads.
//!
//! Parsing happens once and is strict. It refuses unknown keys, empty names, an input that is there twice, an empty lookback. Each
//! error names the key and the expected value: the person who reads it deployed the file minutes ago and can correct it.
//! `tests/golden/unit.json` is a complete example; the wheel writes exactly that form.

use std::{fmt, path::Path, time::Duration};

use serde::{Deserialize, Serialize};
use trellis_fabric::env::parse_bytes;
use trellis_proto::{
    ChunkSpan, Code, DatasetName, DatasetSpec, Error, FieldName, FieldType, Result, Symbols,
    spec::{FieldSpec, Settings},
    time::{DAY_NS, parse_duration, parse_time},
};

use super::calendar::Calendar;

/// Version of the form. A file of another version is refused.
const VERSION: u32 = 1;
/// Longest name of a unit.
const UNIT_BYTES_MAX: usize = 63;
/// Most inputs of a unit. Each travels to the child as a file descriptor, and one message carries at most 253 of those.
pub(crate) const INPUTS_MAX: usize = 64;
/// Most retries: a failure that lasts longer does not pass by itself.
const RETRIES_MAX: u32 = 20;
/// Most sessions of a lookback: a hundred years of daily sessions.
const LOOKBACK_SESSIONS_MAX: u32 = 26_000;
/// Chunk of the datasets that units publish: 64 days.
const OUTPUT_CHUNK_NS: i64 = 64 * DAY_NS;

/// A deployed unit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`VERSION`].
    pub version: u32,
    /// Name of the unit: `[a-z0-9][a-z0-9_.-]{0,62}`.
    pub unit: String,
    /// Python file with the strategy, relative to the folder of this file.
    pub module: String,
    /// Name of the strategy's function in the module.
    pub function: String,
    /// When it runs.
    pub schedule: Schedule,
    /// Calendar of its sessions, `XNYS` or `24/7`.
    pub calendar: String,
    /// Further attempts after a failed one.
    #[serde(default)]
    pub retries: u32,
    /// Longest time of one attempt in the strategy, `10m`.
    #[serde(default = "ten_minutes")]
    pub timeout: String,
    /// Cores that the strategy may keep busy: the size of the thread pools of numerical libraries.
    #[serde(default = "one")]
    pub cpu: f64,
    /// Memory that the strategy may use: `4G`, `512MiB` or a number of bytes. A single letter counts in powers of 1024.
    #[serde(default = "four_gigabytes")]
    pub memory: Bytes,
    /// What the strategy reads, in the order of the function's arguments.
    #[serde(default)]
    pub inputs: Vec<InputSpec>,
    /// What the strategy publishes.
    pub output: OutputSpec,
    /// Digest of the strategy's code and lock file.
    pub code_digest: String,
}

/// When a unit runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Schedule {
    /// Some time after each session's close.
    AtClose {
        /// The calendar whose close counts.
        calendar: String,
        /// Time after the close: `20m`.
        #[serde(default = "no_delay")]
        delay: String,
    },
    /// As soon as all of these units have published the session.
    After {
        /// The units upstream.
        units: Vec<Upstream>,
    },
    /// Only when a person asks for it.
    Manual,
}

/// A unit upstream, and the dataset that it publishes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    /// Its name.
    pub unit: String,
    /// Its output.
    pub dataset: DatasetName,
}

/// One declared input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputSpec {
    /// Name of the function's argument.
    pub name: String,
    /// The dataset that it reads.
    pub dataset: DatasetName,
    /// Its fields; an empty list means all.
    #[serde(default)]
    pub fields: Vec<FieldName>,
    /// Its symbols.
    #[serde(default)]
    pub symbols: SymbolsSpec,
    /// How far back from the session; the session itself is always included. Without `lookback` and `since`: the session alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lookback: Option<Lookback>,
    /// Instead of `lookback`: from this time on, for every session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Up to this time, if the session ends later. Exclusive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// Knowledge time of the read.
    #[serde(default)]
    pub as_of: AsOf,
}

/// `"*"` or a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum SymbolsSpec {
    /// `"*"`.
    All(Star),
    /// The symbols, by name.
    List(Vec<String>),
}

/// The text `*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Star {
    /// Every symbol.
    #[serde(rename = "*")]
    Star,
}

impl Default for SymbolsSpec {
    fn default() -> Self {
        Self::All(Star::Star)
    }
}

/// A span back from a session: `{"sessions": 260}` or `{"duration": "10d"}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lookback {
    /// A number of sessions of the unit's calendar, with the session of the run.
    Sessions(u32),
    /// A time before the midnight after the session.
    Duration(String),
}

/// Which knowledge time an input is read at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AsOf {
    /// The latest when the run starts, pinned for the whole run.
    #[default]
    Latest,
    /// The session's close and this much time: `{"close": "20m"}`.
    Close(String),
}

/// What a unit publishes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputSpec {
    /// The dataset; the unit is its only publisher.
    pub dataset: DatasetName,
    /// Columns beside `symbol` and `ts`: name to type (`float64`, `int64`, `bool`, `string`, `float32`, `int32`,
    /// `timestamp`), with a `?` at the end where the value may be missing: `"float64?"`.
    pub fields: Columns,
}

/// Names and types of columns, in the order in which they were written: it is the order of the dataset's schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Columns(pub Vec<(FieldName, String)>);

/// A number of bytes, written as a number or with a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

impl Manifest {
    /// Reads and checks the file of a unit.
    ///
    /// # Errors
    /// `InvalidRequest` naming the file, the key and what was expected.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| {
            Error::new(
                Code::InvalidRequest,
                format!("the unit's file {} cannot be read: {e}", path.display()),
            )
            .hint("deploying the strategy writes it")
        })?;
        Self::parse(&text).map_err(|e| {
            let hint = Some(e.hint_text()).filter(|hint| !hint.is_empty());
            Error::new(e.code(), format!("{}: {}", path.display(), e.message()))
                .hint(hint.unwrap_or("deploy it again with this version of trellis"))
        })
    }

    /// Reads and checks the JSON of a unit.
    ///
    /// # Errors
    /// `InvalidRequest` naming the key and what was expected.
    pub fn parse(json: &str) -> Result<Self> {
        let manifest: Self = serde_json::from_str(json)
            .map_err(|e| Error::new(Code::InvalidRequest, format!("not a unit: {e}")))?;
        manifest.check()?;
        Ok(manifest)
    }

    /// The manifest as JSON, in the form that [`Manifest::parse`] reads.
    ///
    /// # Errors
    /// `Internal`, never in practice.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string_pretty(self)
            .map_err(|e| Error::new(Code::Internal, format!("writing a unit: {e}")))
    }

    /// Checks the rules that the types do not hold.
    ///
    /// # Errors
    /// `InvalidRequest` naming the key and what was expected.
    pub fn check(&self) -> Result<()> {
        if self.version != VERSION {
            return Err(refuse("version", &format!("{} is not {VERSION}", self.version))
                .hint("deploy it again with this version of trellis"));
        }
        check_unit("unit", &self.unit)?;
        check_module(&self.module)?;
        check_identifier("function", &self.function)?;
        self.calendar()?;
        self.check_schedule()?;
        self.timeout()?;
        if self.retries > RETRIES_MAX {
            return Err(refuse("retries", &format!("{} is more than {RETRIES_MAX}", self.retries)));
        }
        if !(self.cpu.is_finite() && self.cpu > 0.0) {
            return Err(refuse("cpu", &format!("{} is not a number of cores", self.cpu)));
        }
        if self.memory.0 == 0 {
            return Err(refuse("memory", "it is 0 bytes; a run needs some memory"));
        }
        if self.code_digest.is_empty() {
            return Err(refuse("code_digest", "is empty"));
        }
        if self.inputs.len() > INPUTS_MAX {
            return Err(refuse("inputs", &format!("{} are more than {INPUTS_MAX}", self.inputs.len())));
        }
        for (i, input) in self.inputs.iter().enumerate() {
            if self.inputs[..i].iter().any(|other| other.name == input.name) {
                return Err(refuse("inputs", &format!("the name `{}` is there twice", input.name)));
            }
            input.check()?;
        }
        self.output_spec().map(|_| ())
    }

    /// The calendar of the unit's sessions.
    ///
    /// # Errors
    /// `InvalidRequest` for an unknown name.
    pub fn calendar(&self) -> Result<Calendar> {
        Calendar::named(&self.calendar).map_err(|e| refuse("calendar", e.message()).hint(e.hint_text()))
    }

    /// Longest time of one attempt.
    ///
    /// # Errors
    /// `InvalidRequest` if the text is no duration, or the duration is zero.
    pub fn timeout(&self) -> Result<Duration> {
        let ns = duration("timeout", &self.timeout)?;
        match u64::try_from(ns) {
            Ok(ns) if ns > 0 => Ok(Duration::from_nanos(ns)),
            _ => Err(refuse("timeout", "it is zero; a run needs some time")),
        }
    }

    /// The output dataset with its settings, as the lease request creates it.
    ///
    /// # Errors
    /// `InvalidRequest` for an unknown type, or if there is no field.
    pub fn output_spec(&self) -> Result<DatasetSpec> {
        let settings = Settings { calendar: Some(self.calendar.clone()), ..Settings::default() };
        self.output.spec()?.with_settings(settings)
    }

    fn check_schedule(&self) -> Result<()> {
        match &self.schedule {
            Schedule::AtClose { calendar, delay } => {
                if *calendar != self.calendar {
                    let why = format!("`{calendar}` is not the unit's calendar, `{}`", self.calendar);
                    return Err(refuse("schedule.calendar", &why));
                }
                duration("schedule.delay", delay).map(|_| ())
            }
            Schedule::After { units } if units.is_empty() => Err(refuse("schedule.units", "is empty")),
            Schedule::After { units } => {
                units.iter().try_for_each(|up| check_unit("schedule.units", &up.unit))
            }
            Schedule::Manual => Ok(()),
        }
    }
}

impl InputSpec {
    fn check(&self) -> Result<()> {
        check_identifier("inputs.name", &self.name)?;
        self.symbols()?;
        match (&self.lookback, &self.since) {
            (Some(_), Some(_)) => {
                return Err(
                    refuse(&self.key("since"), "the input has a lookback, too").hint("give one of the two")
                );
            }
            (Some(Lookback::Sessions(n)), _) if !(1..=LOOKBACK_SESSIONS_MAX).contains(n) => {
                let why = format!(
                    "{n} sessions; from 1 (the session itself) to {LOOKBACK_SESSIONS_MAX} are possible"
                );
                return Err(refuse(&self.key("lookback"), &why));
            }
            (Some(Lookback::Duration(text)), _) if duration(&self.key("lookback"), text)? == 0 => {
                return Err(refuse(&self.key("lookback"), "it is zero, so the input would have no rows"));
            }
            _ => {}
        }
        for (key, time) in [("since", &self.since), ("until", &self.until)] {
            if let Some(time) = time {
                parse_time(time).map_err(|e| refuse(&self.key(key), e.message()).hint(e.hint_text()))?;
            }
        }
        if let AsOf::Close(delay) = &self.as_of {
            duration(&self.key("as_of"), delay)?;
        }
        Ok(())
    }

    /// The symbols of the input.
    ///
    /// # Errors
    /// `InvalidRequest` for an empty list or a bad name.
    pub fn symbols(&self) -> Result<Symbols> {
        match &self.symbols {
            SymbolsSpec::All(_) => Ok(Symbols::All),
            SymbolsSpec::List(list) => {
                Symbols::new(list).map_err(|e| refuse(&self.key("symbols"), e.message()).hint(e.hint_text()))
            }
        }
    }

    fn key(&self, key: &str) -> String {
        format!("inputs.{}.{key}", self.name)
    }
}

impl OutputSpec {
    /// The output dataset, without settings.
    ///
    /// # Errors
    /// `InvalidRequest` for an unknown type, or if there is no field.
    pub fn spec(&self) -> Result<DatasetSpec> {
        let fields = self.fields.0.iter().map(|(name, text)| {
            let (text, nullable) = match text.strip_suffix('?') {
                Some(text) => (text, true),
                None => (text.as_str(), false),
            };
            let data_type = FieldType::parse(text)
                .map_err(|e| refuse(&format!("output.fields.{name}"), e.message()).hint(e.hint_text()))?;
            Ok(FieldSpec { name: name.clone(), data_type, nullable })
        });
        let fields = fields.collect::<Result<Vec<_>>>()?;
        DatasetSpec::new(self.dataset.clone(), fields, ChunkSpan::new(OUTPUT_CHUNK_NS)?)
            .map_err(|e| refuse("output", e.message()))
    }
}

fn refuse(key: &str, why: &str) -> Error {
    Error::new(Code::InvalidRequest, format!("{key}: {why}"))
}

fn duration(key: &str, text: &str) -> Result<i64> {
    parse_duration(text).map_err(|e| refuse(key, e.message()).hint(e.hint_text()))
}

fn check_unit(key: &str, unit: &str) -> Result<()> {
    let first = unit.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let rest = unit.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_.-".contains(&b));
    if first && rest && unit.len() <= UNIT_BYTES_MAX {
        return Ok(());
    }
    Err(refuse(key, &format!("`{unit}` is not a unit's name"))
        .hint("lower-case letters, digits, `_`, `.` and `-`, at most 63, a letter or digit first"))
}

fn check_identifier(key: &str, name: &str) -> Result<()> {
    let first = name.chars().next().is_some_and(|c| c.is_alphabetic() || c == '_');
    if first && name.chars().all(|c| c.is_alphanumeric() || c == '_') {
        return Ok(());
    }
    Err(refuse(key, &format!("`{name}` is not a Python name")))
}

fn check_module(module: &str) -> Result<()> {
    let path = Path::new(module);
    let inside = path.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    if inside && path.extension().is_some_and(|extension| extension == "py") {
        return Ok(());
    }
    Err(refuse("module", &format!("`{module}` is not a Python file inside the unit's folder")))
}

fn ten_minutes() -> String {
    "10m".to_owned()
}

fn one() -> f64 {
    1.0
}

fn four_gigabytes() -> Bytes {
    Bytes(4 << 30)
}

fn no_delay() -> String {
    "0s".to_owned()
}

impl Serialize for Columns {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, text)| (name, text)))
    }
}

impl<'de> Deserialize<'de> for Columns {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct InOrder;
        impl<'de> serde::de::Visitor<'de> for InOrder {
            type Value = Columns;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of column names and types")
            }

            fn visit_map<M: serde::de::MapAccess<'de>>(
                self,
                mut map: M,
            ) -> std::result::Result<Columns, M::Error> {
                let mut columns = Vec::new();
                while let Some(column) = map.next_entry()? {
                    columns.push(column);
                }
                Ok(Columns(columns))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

impl Serialize for Bytes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(u64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Number(bytes) => Ok(Self(bytes)),
            Written::Text(text) => parse_bytes(&text).map(Self).ok_or_else(|| {
                serde::de::Error::custom(format!("`{text}` is not a size such as 4G or 512MiB"))
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLDEN: &str = include_str!("../../tests/golden/unit.json");

    fn with(change: impl FnOnce(&mut serde_json::Value)) -> Result<Manifest> {
        let mut json: serde_json::Value = serde_json::from_str(GOLDEN).unwrap();
        change(&mut json);
        Manifest::parse(&json.to_string())
    }

    #[test]
    fn the_golden_unit_reads_and_writes_back_the_same() {
        let unit = Manifest::parse(GOLDEN).unwrap();
        assert_eq!(unit.unit, "mom_12_1");
        assert_eq!(unit.memory, Bytes(4 << 30));
        assert_eq!(unit.timeout().unwrap(), Duration::from_secs(600));
        assert_eq!(unit.inputs[0].lookback, Some(Lookback::Sessions(260)));
        assert_eq!(unit.inputs[0].symbols().unwrap(), Symbols::All);
        let output = unit.output_spec().unwrap();
        assert_eq!(output.fields.len(), 2);
        assert_eq!(output.fields[0].name.as_str(), "score", "columns keep their order");
        assert!(!output.fields[0].nullable && output.fields[1].nullable);
        assert_eq!(unit.to_json().unwrap().trim(), GOLDEN.trim());
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let unit = with(|json| {
            for key in ["retries", "timeout", "cpu", "memory", "inputs"] {
                json.as_object_mut().unwrap().remove(key);
            }
        });
        let unit = unit.unwrap();
        assert_eq!((unit.retries, unit.cpu, unit.memory), (0, 1.0, Bytes(4 << 30)));
        assert!(unit.inputs.is_empty());
    }

    #[test]
    fn each_mistake_is_refused_with_its_key() {
        type Change = fn(&mut serde_json::Value);
        let mistakes: Vec<(&str, Change)> = vec![
            ("version", |j| j["version"] = 2.into()),
            ("unit", |j| j["unit"] = "Mom".into()),
            ("module", |j| j["module"] = "../mom.py".into()),
            ("module", |j| j["module"] = "mom.txt".into()),
            ("function", |j| j["function"] = "a b".into()),
            ("calendar", |j| j["calendar"] = "XLON".into()),
            ("schedule.calendar", |j| j["schedule"]["calendar"] = "24/7".into()),
            ("schedule.delay", |j| j["schedule"]["delay"] = "soon".into()),
            ("schedule.units", |j| j["schedule"] = serde_json::json!({"kind": "after", "units": []})),
            ("timeout", |j| j["timeout"] = "0s".into()),
            ("retries", |j| j["retries"] = 1000.into()),
            ("cpu", |j| j["cpu"] = 0.into()),
            ("memory", |j| j["memory"] = 0.into()),
            ("parsecs", |j| j["memory"] = "4 parsecs".into()),
            ("inputs", |j| j["inputs"][1]["name"] = "px".into()),
            ("inputs.px.symbols", |j| j["inputs"][0]["symbols"] = serde_json::json!([])),
            ("inputs.px.lookback", |j| j["inputs"][0]["lookback"] = serde_json::json!({"sessions": 0})),
            ("inputs.px.since", |j| j["inputs"][0]["since"] = "2016-01-01".into()),
            ("inputs.px.until", |j| j["inputs"][0]["until"] = "late".into()),
            ("output.fields.score", |j| j["output"]["fields"]["score"] = "decimal".into()),
            ("output", |j| j["output"]["fields"] = serde_json::json!({})),
            ("extra", |j| j["extra"] = 1.into()),
            ("extra", |j| j["inputs"][0]["extra"] = 1.into()),
            ("code_digest", |j| j["code_digest"] = "".into()),
        ];
        for (key, change) in mistakes {
            let error = with(change).unwrap_err();
            assert_eq!(error.code(), Code::InvalidRequest);
            assert!(error.to_string().contains(key), "{key}: {error}");
        }
    }
}
