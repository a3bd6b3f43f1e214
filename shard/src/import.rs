//! The parse step of `trellis import`: local CSV and Parquet files in; checked, sorted rows and a dataset's spec out. It
//! knows no lake and no network: the caller publishes what comes out.
//!
//! Files are read twice where the types of their columns are not known: once to look at every cell, once for the values.
//! Reading once and guessing from the first rows is what makes a loader fail at row 400,000, or worse, not fail.
//!
//! A bad row is never mended and never dropped in silence. Either nothing is imported and the first bad rows are shown
//! with file, line, column and reason, or (with a quarantine) the good rows are kept and all bad ones written there.
//!
//! * [`Import`], [`read`], the order of the steps: this file. `options`: [`ImportSpec`].
//! * `plan`: the fields and their types. `source`: which files are what; gzip, zip, Parquet. `records`: CSV records with their real lines.
//! * `header`: which column is what, by name. `clock`: times. `cell`: values and types.
//! * `text`, `columnar`: rows from CSV and from Parquet. `table`: sort, doubles, batches, chunk, digest.
//! * `problem`: bad rows and errors. `quarantine`: where bad rows go.

mod cell;
mod clock;
mod columnar;
mod header;
mod options;
mod plan;
mod problem;
mod quarantine;
mod records;
mod source;
mod table;
mod text;

use std::{
    collections::HashSet,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use arrow_array::RecordBatch;
use sha2::{Digest, Sha256};
use trellis_proto::{ChunkSpan, DatasetName, DatasetSpec, Symbol, spec::FieldSpec};

use self::{
    clock::Clock,
    header::Header,
    options::Checked,
    plan::{Kinds, Surveyed},
    problem::{BadRows, QUARANTINE_ROWS_MAX},
    source::Source,
    table::Table,
    text::{Role, Target},
};

pub use self::{
    options::{FieldChoice, ImportSpec, PROBLEMS_SHOWN, Repeats, TsUnit},
    problem::{ImportError, Problem},
};

/// Rows between two reports of progress: some tens of milliseconds.
const PROGRESS_ROWS: u64 = 16_384;

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
    let checked = options::check_options(spec, existing)?;
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
            plan::check_fits(&surveyed, &sources, existing, &mut notes)?;
            existing.fields.clone()
        }
        None => plan::new_fields(&surveyed, &sources, spec, &checked, &mut notes)?,
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
