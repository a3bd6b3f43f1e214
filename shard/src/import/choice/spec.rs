//! The options of an import, as data.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};
use trellis_proto::FieldName;

use super::names::snake_case;
use crate::import::{
    told::ImportError,
    values::{NumberSign, TsUnit},
};

/// Bad rows that are shown by default.
pub const PROBLEMS_SHOWN: usize = 20;

/// How files are to be understood. The names are those of the options of `trellis import`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImportSpec {
    /// The symbol of every row, for files of one instrument. Excludes the other ways to say it.
    pub symbol: Option<String>,
    /// The symbol is in the file's name: `{}` stands for it, `*` for anything else, as in `WIKI-{}`. The name is taken
    /// without its folder and its suffixes.
    pub symbol_from_name: Option<String>,
    /// Each column but the time is a symbol, and its cells are this field.
    pub wide: Option<FieldName>,
    /// The column that holds the symbol, as the file or the lower snake case calls it. Absent: `symbol` or `ticker`.
    pub symbol_column: Option<String>,
    /// The column that holds the event time; the empty name is a nameless column; `Date,Time` are two columns. Absent: `ts`,
    /// `timestamp`, `date` or `datetime`.
    pub ts_column: Option<String>,
    /// Unit of times that are numbers. Absent: only ISO 8601 and `yyyymmdd` are understood.
    pub ts_unit: Option<TsUnit>,
    /// Forms of times in text, as of `strptime`: `%d/%m/%Y`; `iso` is ISO 8601. Empty: ISO 8601 and `yyyymmdd`.
    pub ts_format: Vec<String>,
    /// IANA zone of times that carry no offset; a column of nothing but dates stays so. Absent: UTC.
    pub tz: Option<String>,
    /// IANA zone whose local midnights name dates: such a time becomes the midnight UTC of its date, and any other is bad. A
    /// new dataset keeps it; of one that is there, its own setting rules.
    pub date_zone: Option<String>,
    /// Exchange calendar of a new dataset.
    pub calendar: Option<String>,
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
    /// What stands before a fraction: `.` or `,`. Absent: a point.
    pub decimal: Option<String>,
    /// What stands between thousands: `,`, `.`, `space`, `apostrophe` or `_`. Absent: nothing.
    pub thousands: Option<String>,
    /// Signs around numbers that are read.
    pub notation: Vec<NumberSign>,
    /// Separator of cells: a character, or `tab`. Absent: a comma; of `.tsv` files a tab; or what a first line `sep=;` says.
    pub delimiter: Option<String>,
    /// Lines of each CSV file that stand above its header, or above its rows where `columns` names them.
    pub skip_rows: Option<u64>,
    /// Members of archives to import. Empty: every `.csv` and `.tsv`, or else every `.txt`.
    pub member: Vec<String>,
    /// What to do with rows of the same symbol and time.
    pub repeats: Repeats,
    /// Chunk of a new dataset, nanoseconds. Absent: 64 days for daily rows, 4 days for bars of a second or longer, an
    /// hour for ticks, by the median step between rows of one symbol.
    pub chunk_ns: Option<i64>,
    /// Where bad rows are written while the good ones are kept. Absent: one bad row refuses the import.
    pub quarantine: Option<PathBuf>,
    /// How many bad rows are shown, the first by file and line.
    pub problems_shown: usize,
    /// Nothing is written, the quarantine neither.
    pub dry_run: bool,
    /// The files name symbol and time of rows that no longer hold; their other columns are not read.
    pub retract: bool,
}

impl Default for ImportSpec {
    fn default() -> Self {
        Self {
            symbol: None,
            symbol_from_name: None,
            wide: None,
            symbol_column: None,
            ts_column: None,
            ts_unit: None,
            ts_format: Vec::new(),
            tz: None,
            date_zone: None,
            calendar: None,
            date: None,
            known_at_ns: None,
            known_at_column: None,
            fields: Vec::new(),
            columns: Vec::new(),
            types: BTreeMap::new(),
            required: Vec::new(),
            null: Vec::new(),
            decimal: None,
            thousands: None,
            notation: Vec::new(),
            delimiter: None,
            skip_rows: None,
            member: Vec::new(),
            repeats: Repeats::Refuse,
            chunk_ns: None,
            quarantine: None,
            problems_shown: PROBLEMS_SHOWN,
            dry_run: false,
            retract: false,
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
    /// The last, in the order of the files and their lines, is the row; how many it replaces is told.
    Last,
}
