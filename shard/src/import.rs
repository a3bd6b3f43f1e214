//! The parse step of `trellis import`: local CSV and Parquet files in; checked, sorted rows and a dataset's spec out. It
//! knows no lake and no network: the caller publishes what comes out.
//!
//! Files are read twice where the types of their columns are not known: once to look at every cell, once for the values.
//! Reading once and guessing from the first rows is what makes a loader fail at row 400,000, or worse, not fail.
//!
//! A bad row is never mended and never dropped in silence. Either nothing is imported and the first bad rows are shown
//! with file, line, column and reason, or (with a quarantine) the good rows are kept and all bad ones written there.
//!
//! * [`ImportSpec`], [`Import`], [`read`]: this file.
//! * `source`: which files are what; gzip, zip, Parquet. `records`: CSV records with their real lines.
//! * `header`: which column is what, by name. `clock`: times. `cell`: values and types.
//! * `text`, `columnar`: rows from CSV and from Parquet. `table`: sort, doubles, batches, chunk, digest.
//! * `problem`: bad rows and errors. `quarantine`: where bad rows go.

mod cell;
mod clock;
mod columnar;
mod header;
mod problem;
mod quarantine;
mod records;
mod source;
mod table;
mod text;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use arrow_array::RecordBatch;
use chrono::NaiveDate;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use trellis_proto::{ChunkSpan, DatasetName, DatasetSpec, FieldName, FieldType, Symbol, spec::FieldSpec};

use self::{
    cell::{Reading, Seen, common},
    clock::{Clock, Zone},
    header::Header,
    problem::{BadRows, QUARANTINE_ROWS_MAX},
    source::Source,
    table::Table,
    text::{Role, Target},
};

pub use self::problem::{ImportError, Problem};

/// Bad rows that are shown where the caller does not say how many.
pub const PROBLEMS_SHOWN: usize = 20;

/// Rows between two reports of progress: some tens of milliseconds.
const PROGRESS_ROWS: u64 = 16_384;

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
                    None => (header::snake_case(item), item),
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

    fn ns(self) -> i64 {
        match self {
            Self::S | Self::SOfDay => 1_000_000_000,
            Self::Ms | Self::MsOfDay => 1_000_000,
            Self::Us | Self::UsOfDay => 1_000,
            Self::Ns | Self::NsOfDay => 1,
        }
    }

    fn of_day(self) -> bool {
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

/// What an import is made of.
#[derive(Debug)]
pub struct Import {
    /// The dataset as it is, or is to be made.
    pub spec: DatasetSpec,
    /// The rows. One part, unless rows carry knowledge times of their own: then one for each, in ascending order, and
    /// each is to be published by itself, in this order.
    pub parts: Vec<Part>,
    /// Good rows, of all parts.
    pub rows: u64,
    /// Bad rows, the first of them; they are in the quarantine.
    pub problems: Vec<Problem>,
    /// How many bad rows there are.
    pub problems_total: u64,
    /// Least event time, nanoseconds UTC.
    pub first_ts: i64,
    /// Greatest event time, nanoseconds UTC.
    pub last_ts: i64,
    /// Symbols with rows, sorted.
    pub symbols: Vec<Symbol>,
    /// SHA-256 over the spec and the sorted rows of all parts, in hexadecimal: the same for the same rows, however files
    /// order or pack them.
    pub content_digest: String,
    /// What the caller should tell its user: columns that were missing or empty.
    pub notes: Vec<String>,
}

impl Import {
    /// The batches of all parts.
    pub fn batches(&self) -> impl Iterator<Item = &RecordBatch> {
        self.parts.iter().flat_map(|part| &part.batches)
    }
}

/// Rows of one knowledge time: one publish.
#[derive(Debug, Clone)]
pub struct Part {
    /// When the rows became known, nanoseconds UTC. Absent: at the commit.
    pub known_at_ns: Option<i64>,
    /// The rows, in the schema of [`DatasetSpec::rows_schema`], sorted by (symbol, ts), each key once.
    pub batches: Vec<RecordBatch>,
    /// How many.
    pub rows: u64,
    /// SHA-256 over spec, knowledge time and rows, in hexadecimal.
    pub digest: String,
}

impl Part {
    /// The id to publish under: importing the same rows again is then acknowledged as done, not stored twice.
    #[must_use]
    pub fn run_id(&self) -> String {
        format!("import-{}", self.digest)
    }
}

/// How far an import has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress<'a> {
    /// What is being done.
    pub phase: Phase,
    /// The file at work; empty while sorting.
    pub file: &'a str,
    /// Rows seen in this phase.
    pub rows: u64,
    /// Bytes of files read, of all phases.
    pub bytes: u64,
    /// Bytes that all phases will have read.
    pub bytes_total: u64,
}

/// What an import does at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Looking at the columns.
    Survey,
    /// Reading rows.
    Read,
    /// Sorting, checking for doubles, making batches.
    Sort,
}

/// Counts rows and bytes, and reports now and then.
struct Ticker<'a> {
    report: &'a mut dyn FnMut(Progress<'_>),
    phase: Phase,
    file: String,
    rows: u64,
    bytes: Arc<AtomicU64>,
    bytes_total: u64,
}

impl Ticker<'_> {
    fn start(&mut self, phase: Phase, file: &str) {
        if self.phase != phase {
            self.rows = 0;
        }
        self.phase = phase;
        file.clone_into(&mut self.file);
        self.tell();
    }

    fn tick(&mut self) {
        self.rows += 1;
        if self.rows.is_multiple_of(PROGRESS_ROWS) {
            self.tell();
        }
    }

    fn tell(&mut self) {
        (self.report)(Progress {
            phase: self.phase,
            file: &self.file,
            rows: self.rows,
            // the directory of an archive is read once more than once
            bytes: self.bytes.load(Ordering::Relaxed).min(self.bytes_total),
            bytes_total: self.bytes_total,
        });
    }

    fn bytes(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.bytes)
    }

    fn add_bytes(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Options that have been checked.
struct Checked {
    reading: Reading,
    date: Option<NaiveDate>,
    types: BTreeMap<FieldName, FieldType>,
}

/// One source after the survey.
struct Surveyed {
    header: Header,
    kinds: Kinds,
}

/// What a survey found of each field.
enum Kinds {
    Text(Vec<(FieldName, Seen)>),
    Columnar(Vec<(FieldName, Option<FieldType>)>),
}

/// Reads `files` as rows of `dataset`. `existing` is the dataset's spec if it is there: its types then rule, columns it
/// lacks are refused, and fields that no file has are null. Blocks: call it where blocking is allowed.
///
/// # Errors
/// [`ImportError`]; nothing has been imported then. With a quarantine, bad rows are no error unless no good row is left.
pub fn read(
    dataset: &DatasetName,
    files: &[PathBuf],
    spec: &ImportSpec,
    existing: Option<&DatasetSpec>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Import, ImportError> {
    let checked = check_options(spec, existing)?;
    let sources = open_all(files)?;
    let types_known = existing.is_some();
    let mut ticker = Ticker {
        report: progress,
        phase: Phase::Survey,
        file: String::new(),
        rows: 0,
        bytes: Arc::default(),
        bytes_total: bytes_to_read(&sources, types_known),
    };

    let mut surveyed = Vec::with_capacity(sources.len());
    for source in &sources {
        ticker.start(Phase::Survey, &source.name);
        surveyed.push(survey(source, spec, &checked, types_known, &mut ticker)?);
    }
    let mut notes = Vec::new();
    let fields = match existing {
        Some(existing) => {
            check_fits(&surveyed, &sources, existing, &mut notes)?;
            existing.fields.clone()
        }
        None => new_fields(&surveyed, &sources, spec, &checked, &mut notes)?,
    };
    if fields.is_empty() {
        return Err(ImportError::options(
            "no column is left to be a field",
            "a row is a symbol, a time and fields",
        ));
    }

    let keep = if spec.quarantine.is_some() { QUARANTINE_ROWS_MAX } else { spec.problems_shown };
    let mut bad = BadRows::new(keep);
    let mut table = Table::new(fields.iter().map(|field| field.data_type));
    for (number, (source, surveyed)) in (0..).zip(sources.iter().zip(&surveyed)) {
        ticker.start(Phase::Read, &source.name);
        if let Kinds::Columnar(types) = &surveyed.kinds {
            columnar::check_types(source, types, &fields)?;
        }
        let target = target(number, source, &surveyed.header, &fields, spec, &checked, &mut table)?;
        if source.is_parquet() {
            columnar::read(source, &target, &mut table, &mut bad, &mut ticker)?;
        } else {
            text::read(source, spec, &target, &mut table, &mut bad, &mut ticker)?;
        }
    }

    ticker.start(Phase::Sort, "");
    let file_of = |number: u32| sources[number as usize].name.clone();
    let ts_column = |number: u32| {
        let header = &surveyed[number as usize].header;
        header.names[header.ts].clone()
    };
    let rows_read = table.rows();
    let rows = table.check(spec.repeats, &ts_column, &file_of, &mut bad);
    let problems = first_problems(&bad, spec.problems_shown, &file_of);
    match &spec.quarantine {
        None if bad.total > 0 => {
            return Err(ImportError::Rows { problems, total: bad.total, good: rows.rows() as u64 });
        }
        Some(path) if bad.total <= QUARANTINE_ROWS_MAX as u64 => {
            quarantine::write(path, &sources, spec, &bad)?;
        }
        Some(_) => {
            return Err(ImportError::TooLarge {
                message: format!(
                    "{} rows are bad; a quarantine takes {QUARANTINE_ROWS_MAX}. The first: {}",
                    bad.total,
                    problems.first().map(ToString::to_string).unwrap_or_default()
                ),
            });
        }
        None => {}
    }
    let Some((first_ts, last_ts)) = rows.span() else {
        return Err(match (&spec.quarantine, rows_read + bad.total as usize) {
            (_, 0) => ImportError::Empty { message: format!("no file has rows ({})", names_of(&sources)) },
            (Some(path), bad) => ImportError::Empty {
                message: format!("all {bad} rows are bad; they are in {}", path.display()),
            },
            (None, _) => ImportError::Empty { message: "no row is left".to_owned() },
        });
    };
    let chunk = match existing {
        Some(existing) => existing.chunk,
        None => ChunkSpan::new(spec.chunk_ns.unwrap_or_else(|| rows.chunk_ns()))
            .map_err(|e| ImportError::options(format!("--chunk: {}", e.message()), e.hint_text()))?,
    };
    let dataset_spec = DatasetSpec::new(dataset.clone(), fields, chunk)
        .map_err(|e| ImportError::options(e.message(), e.hint_text()))?;
    let (good, symbols) = (rows.rows() as u64, rows.symbols());
    let parts = rows.parts(&dataset_spec, spec.known_at_ns)?;
    Ok(Import {
        content_digest: digest_of(&parts),
        spec: dataset_spec,
        parts,
        rows: good,
        problems,
        problems_total: bad.total,
        first_ts,
        last_ts,
        symbols,
        notes,
    })
}

fn digest_of(parts: &[Part]) -> String {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update(&part.digest);
    }
    format!("{:x}", digest.finalize())
}

fn names_of(sources: &[Source]) -> String {
    let names: Vec<&str> = sources.iter().map(|source| source.name.as_str()).collect();
    names.join(", ")
}

fn first_problems(bad: &BadRows, shown: usize, file_of: &dyn Fn(u32) -> String) -> Vec<Problem> {
    let problem = |(place, bad): (&(u32, u64), &problem::Bad)| Problem {
        file: file_of(place.0),
        line: place.1,
        column: bad.column.clone(),
        value: bad.value.clone(),
        reason: bad.reason.clone(),
    };
    bad.iter().take(shown).map(problem).collect()
}

fn check_options(spec: &ImportSpec, existing: Option<&DatasetSpec>) -> Result<Checked, ImportError> {
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

fn open_all(files: &[PathBuf]) -> Result<Vec<Source>, ImportError> {
    if files.is_empty() {
        return Err(ImportError::options("no file is named", ""));
    }
    let mut named = HashSet::new();
    let mut sources = Vec::new();
    for path in files {
        let real = path.canonicalize().unwrap_or_else(|_| path.clone());
        if !named.insert(real) {
            return Err(ImportError::options(format!("{} is named twice", path.display()), ""));
        }
        sources.extend(source::sources(path)?);
    }
    Ok(sources)
}

fn bytes_to_read(sources: &[Source], types_known: bool) -> u64 {
    let size = |source: &Source| std::fs::metadata(&source.path).map_or(0, |m| m.len());
    let times = |source: &Source| if types_known || source.is_parquet() { 1 } else { 2 };
    let mut seen = HashSet::new();
    let first = sources.iter().filter(|source| seen.insert(&source.path));
    first.map(|source| size(source) * times(source)).sum()
}

fn survey(
    source: &Source,
    spec: &ImportSpec,
    checked: &Checked,
    types_known: bool,
    ticker: &mut Ticker<'_>,
) -> Result<Surveyed, ImportError> {
    if source.is_parquet() {
        let (header, types) = columnar::survey(source, spec)?;
        return Ok(Surveyed { header, kinds: Kinds::Columnar(types) });
    }
    let (header, seen) = text::survey(source, spec, &checked.reading, !types_known, ticker)?;
    Ok(Surveyed { header, kinds: Kinds::Text(seen) })
}

/// The fields of a dataset that is not there yet: the columns of all files, in the order they are met.
fn new_fields(
    surveyed: &[Surveyed],
    sources: &[Source],
    spec: &ImportSpec,
    checked: &Checked,
    notes: &mut Vec<String>,
) -> Result<Vec<FieldSpec>, ImportError> {
    let mut order: Vec<FieldName> = Vec::new();
    let mut seen: BTreeMap<FieldName, Seen> = BTreeMap::new();
    let mut typed: BTreeMap<FieldName, FieldType> = BTreeMap::new();
    let conflict = |field: &FieldName, a: FieldType, b: FieldType| {
        ImportError::options(
            format!("the field {field} is {a} in one file and {b} in another"),
            format!("say --types {field}=string (or another type), or import the files into two datasets"),
        )
    };
    for Surveyed { header, kinds } in surveyed {
        for (name, _) in &header.fields {
            if !order.contains(name) {
                order.push(name.clone());
            }
        }
        match kinds {
            Kinds::Text(columns) => {
                for (name, found) in columns {
                    seen.entry(name.clone()).or_default().add(found);
                }
            }
            Kinds::Columnar(columns) => {
                for (name, found) in columns {
                    let Some(found) = *found else { continue };
                    let before = typed.get(name).copied().unwrap_or(found);
                    let both = common(before, found).ok_or_else(|| conflict(name, before, found))?;
                    typed.insert(name.clone(), both);
                }
            }
        }
    }
    for named in checked.types.keys().chain(&spec.required) {
        if !order.contains(named) {
            return Err(ImportError::options(
                format!("--types or --required names the field {named}, which no file has"),
                format!("the fields are {}", list(&order)),
            ));
        }
    }
    let mut fields = Vec::with_capacity(order.len());
    for name in order {
        let text = seen.get(&name).and_then(Seen::field_type);
        let columnar = typed.get(&name).copied();
        let found = match (text, columnar) {
            (Some(a), Some(b)) => Some(common(a, b).ok_or_else(|| conflict(&name, a, b))?),
            (a, b) => a.or(b),
        };
        let data_type = match (checked.types.get(&name), found) {
            (Some(said), _) => *said,
            (None, Some(found)) => found,
            (None, None) => {
                notes.push(format!("the field {name} has no value in any row; it is taken as float64"));
                FieldType::Float64
            }
        };
        let nullable = !spec.required.contains(&name);
        fields.push(FieldSpec { name, data_type, nullable });
    }
    note_missing(surveyed, sources, &fields, notes)?;
    Ok(fields)
}

/// Every column must be a field of the dataset that is there.
fn check_fits(
    surveyed: &[Surveyed],
    sources: &[Source],
    existing: &DatasetSpec,
    notes: &mut Vec<String>,
) -> Result<(), ImportError> {
    for (Surveyed { header, .. }, source) in surveyed.iter().zip(sources) {
        for (name, column) in &header.fields {
            if existing.field(name.as_str()).is_none() {
                let known: Vec<FieldName> = existing.fields.iter().map(|f| f.name.clone()).collect();
                return Err(ImportError::options(
                    format!(
                        "the column {:?} of {} would be the field {name}, which {} does not have",
                        header.names[*column], source.name, existing.dataset
                    ),
                    format!(
                        "its fields are {}; choose and rename columns with --fields, or import into a new dataset",
                        list(&known)
                    ),
                ));
            }
        }
    }
    note_missing(surveyed, sources, &existing.fields, notes)
}

/// A field that a file lacks is null in its rows, or refuses the import.
fn note_missing(
    surveyed: &[Surveyed],
    sources: &[Source],
    fields: &[FieldSpec],
    notes: &mut Vec<String>,
) -> Result<(), ImportError> {
    for (Surveyed { header, .. }, source) in surveyed.iter().zip(sources) {
        for field in fields {
            if header.fields.iter().any(|(name, _)| *name == field.name) {
                continue;
            }
            if !field.nullable {
                return Err(ImportError::options(
                    format!(
                        "{} has no column for the field {}, which may not be null",
                        source.name, field.name
                    ),
                    format!(
                        "if it has another name there, say --fields {}=ITS_NAME and the others",
                        field.name
                    ),
                ));
            }
            notes.push(format!(
                "{} has no column for the field {}: null in its rows",
                source.name, field.name
            ));
        }
    }
    Ok(())
}

fn list(names: &[FieldName]) -> String {
    names.iter().map(FieldName::as_str).collect::<Vec<_>>().join(", ")
}

fn target<'a>(
    number: u32,
    source: &Source,
    header: &'a Header,
    fields: &'a [FieldSpec],
    spec: &ImportSpec,
    checked: &'a Checked,
    table: &mut Table,
) -> Result<Target<'a>, ImportError> {
    let mut roles = vec![Role::Skip; header.names.len()];
    for (name, column) in &header.fields {
        if let Some(place) = fields.iter().position(|field| field.name == *name) {
            roles[*column] = Role::Field(place);
        }
    }
    if let Some(column) = header.symbol {
        roles[column] = Role::Symbol;
    }
    roles[header.ts] = Role::Ts;
    if let Some(column) = header.known_at {
        roles[column] = Role::KnownAt;
    }
    let symbol = match &spec.symbol {
        Some(name) => {
            Some(table.symbol(name).map_err(|e| ImportError::options(format!("--symbol: {e}"), ""))?)
        }
        None => None,
    };
    let of_day = spec.ts_unit.is_some_and(TsUnit::of_day);
    let day = if of_day { checked.date.or_else(|| source.date_in_name()) } else { None };
    if of_day && day.is_none() {
        return Err(ImportError::file(
            &source.name,
            "its times count within a day, and its name does not hold one date",
            "say --date 2014-05-01, or name the file like 20140501_quote.csv",
        ));
    }
    let zone = checked.reading.zone;
    // a knowledge time is a moment, not a time of the file's day
    let known_unit = spec.ts_unit.filter(|unit| !unit.of_day());
    Ok(Target {
        number,
        header,
        roles,
        fields,
        symbol,
        ts: Clock { zone, unit: spec.ts_unit, day },
        known_at: Clock { zone, unit: known_unit, day: None },
        reading: &checked.reading,
    })
}
