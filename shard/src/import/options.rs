//! What the caller says about the files, and whether it makes sense.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use chrono::NaiveDate;
use serde::{Deserialize, Serialize};
use trellis_proto::{DatasetSpec, FieldName, FieldType, Symbol};

use super::{cell::Reading, clock::Zone, header::snake_case, problem::ImportError};

/// Bad rows that are shown where the caller does not say how many.
pub const PROBLEMS_SHOWN: usize = 20;

/// How files are to be understood. The names are those of the options of `trellis import`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImportSpec {
    /// The symbol of every row, for files of one instrument. Excludes `symbol_column`.
    pub symbol: Option<String>,
    /// The column that holds the symbol, as the file or the lower snake case calls it. Absent: `symbol` or `ticker`.
    pub symbol_column: Option<String>,
    /// The column that holds the event time; the empty name is a nameless column. Absent: `ts`, `timestamp`, `date` or
    /// `datetime`.
    pub ts_column: Option<String>,
    /// Unit of integer times. Absent: only ISO 8601 and `yyyymmdd` are understood.
    pub ts_unit: Option<TsUnit>,
    /// IANA zone of times that carry no offset.
    pub tz: String,
    /// The day that units of a day count in, as `2014-05-01`. Absent: the one date in the file's name.
    pub date: Option<String>,
    /// Knowledge time of all rows, nanoseconds UTC. Absent: the time of the commit. Excludes `known_at_column`.
    pub known_at_ns: Option<i64>,
    /// The column that holds each row's knowledge time; same forms as `ts`.
    pub known_at_column: Option<String>,
    /// The columns to import, in this order, with their fields. Empty: all, named by their headers in lower snake case.
    pub fields: Vec<FieldChoice>,
    /// Names of the columns of CSV files without a header; `_` leaves one out.
    pub columns: Vec<String>,
    /// Types of fields that are not what their cells look like: `float64`, `float32`, `int64`, `int32`, `bool`, `string`,
    /// `timestamp`.
    pub types: BTreeMap<FieldName, String>,
    /// Fields of a new dataset that may not be null (nor NaN nor infinite). All others may.
    pub required: Vec<FieldName>,
    /// Words that stand for a missing value, beside the empty cell. Not in keys: `NA` is a ticker.
    pub null: Vec<String>,
    /// Separator of cells.
    pub delimiter: char,
    /// What to do with rows of the same symbol and time.
    pub repeats: Repeats,
    /// Chunk of a new dataset, nanoseconds. Absent: 64 days for daily rows, 4 days for bars of a second or longer, an
    /// hour for ticks, by the median step between rows of one symbol.
    pub chunk_ns: Option<i64>,
    /// Where bad rows are written while the good ones are kept. Absent: one bad row refuses the import.
    pub quarantine: Option<PathBuf>,
    /// How many bad rows are shown, the first by file and line.
    pub problems_shown: usize,
}

impl Default for ImportSpec {
    fn default() -> Self {
        Self {
            symbol: None,
            symbol_column: None,
            ts_column: None,
            ts_unit: None,
            tz: "UTC".to_owned(),
            date: None,
            known_at_ns: None,
            known_at_column: None,
            fields: Vec::new(),
            columns: Vec::new(),
            types: BTreeMap::new(),
            required: Vec::new(),
            null: Vec::new(),
            delimiter: ',',
            repeats: Repeats::Refuse,
            chunk_ns: None,
            quarantine: None,
            problems_shown: PROBLEMS_SHOWN,
        }
    }
}

/// A column and the field it becomes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldChoice {
    /// The field.
    pub field: FieldName,
    /// The column, as the file or the lower snake case calls it.
    pub column: String,
}

impl FieldChoice {
    /// Reads `last=Close,volume`; a name alone is both the column and, in lower snake case, the field.
    ///
    /// # Errors
    /// [`ImportError::Options`] if a field is no field name.
    pub fn parse_list(list: &str) -> Result<Vec<Self>, ImportError> {
        list.split(',')
            .map(|item| {
                let item = item.trim();
                let (field, column) = match item.split_once('=') {
                    Some((field, column)) => (field.trim().to_owned(), column.trim()),
                    None => (snake_case(item), item),
                };
                let field = FieldName::new(&field).map_err(|e| {
                    ImportError::options(format!("--fields {item}: {}", e.message()), e.hint_text())
                })?;
                Ok(Self { field, column: column.to_owned() })
            })
            .collect()
    }
}

/// Unit of integer times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TsUnit {
    /// Seconds since 1970, UTC.
    S,
    /// Milliseconds since 1970, UTC.
    Ms,
    /// Microseconds since 1970, UTC.
    Us,
    /// Nanoseconds since 1970, UTC.
    Ns,
    /// Seconds since midnight by the clock of the zone.
    SOfDay,
    /// Milliseconds since midnight by the clock of the zone.
    MsOfDay,
    /// Microseconds since midnight by the clock of the zone.
    UsOfDay,
    /// Nanoseconds since midnight by the clock of the zone.
    NsOfDay,
}

impl TsUnit {
    /// Every unit, with the name that people write.
    pub const ALL: [(TsUnit, &'static str); 8] = [
        (Self::S, "s"),
        (Self::Ms, "ms"),
        (Self::Us, "us"),
        (Self::Ns, "ns"),
        (Self::SOfDay, "s-of-day"),
        (Self::MsOfDay, "ms-of-day"),
        (Self::UsOfDay, "us-of-day"),
        (Self::NsOfDay, "ns-of-day"),
    ];

    /// Reads the name that people write.
    ///
    /// # Errors
    /// [`ImportError::Options`] naming the units there are.
    pub fn parse(name: &str) -> Result<Self, ImportError> {
        Self::ALL.iter().find(|(_, known)| *known == name).map(|(unit, _)| *unit).ok_or_else(|| {
            ImportError::options(
                format!("{name:?} is not a unit of time"),
                format!("the units are {}", Self::ALL.map(|(_, name)| name).join(", ")),
            )
        })
    }

    pub(crate) fn ns(self) -> i64 {
        match self {
            Self::S | Self::SOfDay => 1_000_000_000,
            Self::Ms | Self::MsOfDay => 1_000_000,
            Self::Us | Self::UsOfDay => 1_000,
            Self::Ns | Self::NsOfDay => 1,
        }
    }

    pub(crate) fn of_day(self) -> bool {
        matches!(self, Self::SOfDay | Self::MsOfDay | Self::UsOfDay | Self::NsOfDay)
    }
}

/// What to do with rows of the same symbol and time in one import.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Repeats {
    /// The first, in the order of the files and their lines, is good; the others are bad rows.
    #[default]
    Refuse,
    /// The second gets the time plus a nanosecond, the third plus two, in the order of the files: for ticks whose clock
    /// is coarser than they are.
    Spread,
}

/// Options that have been checked.
pub(crate) struct Checked {
    pub(crate) reading: Reading,
    pub(crate) date: Option<NaiveDate>,
    pub(crate) types: BTreeMap<FieldName, FieldType>,
}

pub(crate) fn check_options(
    spec: &ImportSpec,
    existing: Option<&DatasetSpec>,
) -> Result<Checked, ImportError> {
    let refuse = |message: &str, hint: &str| Err(ImportError::options(message, hint));
    if spec.symbol.is_some() && spec.symbol_column.is_some() {
        return refuse("--symbol and --symbol-column exclude each other", "");
    }
    if spec.known_at_ns.is_some() && spec.known_at_column.is_some() {
        return refuse("--known-at and --known-at-column exclude each other", "");
    }
    if !spec.delimiter.is_ascii() || matches!(spec.delimiter, '"' | '\r' | '\n') {
        return refuse("--delimiter is one ASCII character, not a quote and not a line end", "");
    }
    if spec.date.is_some() && !spec.ts_unit.is_some_and(TsUnit::of_day) {
        return refuse(
            "--date is for times within a day",
            "say --ts-unit ms-of-day (or s-, us-, ns-of-day) too",
        );
    }
    if existing.is_some() && !(spec.types.is_empty() && spec.required.is_empty() && spec.chunk_ns.is_none()) {
        return refuse(
            "--types, --required and --chunk are for a new dataset; this one is there already",
            "",
        );
    }
    if let Some(symbol) = &spec.symbol {
        Symbol::new(symbol).map_err(|e| ImportError::options(format!("--symbol: {}", e.message()), ""))?;
    }
    let zone = spec.tz.parse().map_err(|_| {
        ImportError::options(
            format!("--tz: there is no time zone {:?}", spec.tz),
            "zones are named as in America/New_York, Europe/London, UTC",
        )
    })?;
    let date = match &spec.date {
        None => None,
        Some(text) => Some(text.parse::<NaiveDate>().map_err(|_| {
            ImportError::options(format!("--date: {text:?} is not a date"), "write it as 2014-05-01")
        })?),
    };
    let mut types = BTreeMap::new();
    for (field, name) in &spec.types {
        let data_type = FieldType::parse(name).map_err(|e| {
            ImportError::options(format!("--types {field}={name}: {}", e.message()), e.hint_text())
        })?;
        types.insert(field.clone(), data_type);
    }
    let null: BTreeSet<String> = spec.null.iter().cloned().collect();
    Ok(Checked { reading: Reading { zone: Zone(zone), null }, date, types })
}
