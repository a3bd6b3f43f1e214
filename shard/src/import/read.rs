//! The order of the steps: look at every file, choose the fields, read the values, sort.

use std::{collections::HashSet, path::PathBuf};

use sha2::{Digest, Sha256};
use trellis_proto::{
    ChunkSpan, DatasetName, DatasetSpec, FieldName,
    spec::{FieldSpec, Settings},
    time::{DAY_NS, format_time},
};

use super::{
    choice::{self, Advice, Checked, Found, Header, ImportSpec, Surveyed},
    columnar, quarantine,
    rows::{Role, Target},
    sample,
    source::{self, Source},
    table::Table,
    text,
    told::{
        Bad, BadRows, Import, ImportError, Part, Phase, Problem, Progress, QUARANTINE_ROWS_MAX, Ticker,
        chunks_of,
    },
    values::{Clock, Count, Form, ISO, TsUnit, Verdict, Wanted},
};
use crate::scan::CHUNKS_MAX;

/// A chunk so long that one read can take all possible times: 853,000 chunks of 6 hours.
const FAR_CHUNK_NS: i64 = DAY_NS / 4;

/// The year 1970.
const YEAR_NS: i64 = 365 * DAY_NS;

/// Reads `files` as rows of `dataset`. `existing` is the dataset's spec if it is there: its fields then rule. One of them
/// is wider in the answer's spec if a cell asks for it (`int64` to `float64`), columns that it lacks are new fields at the end,
/// and fields that no file has are null. Blocks: call it where blocking is allowed.
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
    let mut checked = choice::check_options(spec, existing)?;
    if let Some(path) = &spec.quarantine {
        quarantine::check(path, files)?;
    }
    let mut notes = Vec::new();
    let sources = open_all(files, spec, &mut notes)?;
    let mut ticker = Ticker::new(progress, bytes_to_read(&sources));

    let mut surveyed = Vec::with_capacity(sources.len());
    for source in &sources {
        ticker.start(Phase::Survey, &source.name);
        surveyed.push(if source.is_parquet() {
            columnar::survey(source, spec, &checked, existing, &mut ticker)?
        } else {
            text::survey(source, spec, &checked, &mut ticker)?
        });
    }
    let found = Found::of(&surveyed)?;
    checked.clock.moments = found.stamps.has_local_times();
    check_unit(spec, &found)?;
    notes.extend(notes_of_times(spec, &found, existing));
    let advice =
        Advice { spec, checked: &checked, seen: &found.seen, stamps: &found.stamps, known: &found.known };
    let fields = match spec.retract {
        true => Vec::new(),
        false => choice::fields(&found, &surveyed, &sources, existing, &advice, &mut notes)?,
    };
    // A file with a header alone is reported as empty.
    let empty = found.seen.first().filter(|(_, seen)| seen.verdict() == Verdict::Nothing);
    if fields.is_empty() && !spec.retract && empty.is_none_or(|(_, seen)| seen.missing > 0) {
        return Err(ImportError::options(
            "no column is left to be a field",
            match empty {
                Some((name, _)) => format!("{name} has no values: to have it, say --types {name}=float64"),
                None => "a row is a symbol, a time and fields".to_owned(),
            },
        ));
    }
    notes.extend(note_of_midnights(&checked, &found, &surveyed));

    let keep = if spec.quarantine.is_some() { QUARANTINE_ROWS_MAX } else { spec.problems_shown };
    let mut bad = BadRows::new(keep);
    let mut table = Table::new(fields.iter().map(|field| field.spec.data_type));
    for (number, (source, surveyed)) in (0..).zip(sources.iter().zip(&surveyed)) {
        ticker.start(Phase::Read, &source.name);
        columnar::check_types(source, &surveyed.typed, &fields)?;
        let target = target(number, source, &surveyed.header, &fields, spec, &checked, &mut table)?;
        if source.is_parquet() {
            columnar::read(source, &target, &mut table, &mut bad, &mut ticker)?;
        } else {
            text::read(source, spec, &checked, &target, &mut table, &mut bad, &mut ticker)?;
        }
    }

    ticker.start(Phase::Sort, "");
    let file_of = |number: u32| sources[number as usize].name.clone();
    let ts_column = |number: u32| surveyed[number as usize].header.ts_name();
    let rows_read = table.rows();
    let rows = table.check(spec.repeats, &ts_column, &file_of, &mut bad);
    let problems = first_problems(&bad, spec.problems_shown, &file_of);
    match &spec.quarantine {
        None if bad.total > 0 => {
            let new = |name: &FieldName| existing.is_none_or(|e| e.field(name.as_str()).is_none());
            let hint = advice.rows(&fields, &new, &problems);
            return Err(ImportError::Rows { problems, total: bad.total, good: rows.rows() as u64, hint });
        }
        Some(path) if bad.total <= QUARANTINE_ROWS_MAX as u64 && !spec.dry_run => {
            quarantine::write(path, &sources, spec, &checked, &bad)?;
        }
        Some(_) if bad.total <= QUARANTINE_ROWS_MAX as u64 => {}
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
    if let Some(unit) = spec.ts_unit.filter(|unit| !unit.of_day() && *unit != TsUnit::Excel)
        && (0..YEAR_NS).contains(&last_ts)
    {
        let name = TsUnit::ALL.iter().find(|(known, _)| *known == unit).map_or("", |(_, name)| name);
        notes.push(format!("no time is later than 1970: is --ts-unit {name} the unit of the numbers?"));
    }
    let chunk = match existing {
        Some(existing) => existing.chunk,
        None => {
            let chunk = |ns| {
                ChunkSpan::new(ns)
                    .map_err(|e| ImportError::options(format!("--chunk: {}", e.message()), e.hint_text()))
            };
            let fitting = chunk(spec.chunk_ns.unwrap_or_else(|| rows.chunk_ns()))?;
            if spec.chunk_ns.is_none() && chunks_of(fitting, first_ts, last_ts) > CHUNKS_MAX {
                notes.push(format!(
                    "the times reach from {} to {}: is the farthest meant?",
                    format_time(first_ts),
                    format_time(last_ts)
                ));
                chunk(FAR_CHUNK_NS)?
            } else {
                fitting
            }
        }
    };
    if rows.replaced > 0 {
        notes.push(format!("{} rows gave way to later ones of the same symbol and time", rows.replaced));
    }
    let settings = existing.map_or_else(
        || Settings {
            calendar: spec.calendar.clone(),
            date_zone: spec.date_zone.clone(),
            ..Settings::default()
        },
        |existing| existing.settings.clone(),
    );
    let dataset_spec = match existing.filter(|_| spec.retract) {
        Some(existing) => existing.clone(),
        None => {
            let fields: Vec<FieldSpec> = fields.into_iter().map(|field| field.spec).collect();
            DatasetSpec::new(dataset.clone(), fields, chunk)
                .and_then(|spec| spec.with_settings(settings))
                .map_err(|e| ImportError::options(e.message(), e.hint_text()))?
        }
    };
    let (good, symbols) = (rows.rows() as u64, rows.symbols());
    let parts = rows.parts(&dataset_spec, spec.known_at_ns)?;
    Ok(Import {
        rows: good,
        problems,
        problems_total: bad.total,
        first_ts,
        last_ts,
        symbols,
        notes,
        sample: if spec.retract { Vec::new() } else { sample::of(&dataset_spec, &parts, &surveyed) },
        ts_columns: columns_of(&surveyed, |header| Some(header.ts_name())),
        symbol_columns: columns_of(&surveyed, |header| header.symbol.map(|at| header.names[at].clone())),
        content_digest: digest_of(&parts),
        spec: dataset_spec,
        parts,
    })
}

/// What the files call a column, each name once.
fn columns_of(surveyed: &[Surveyed], name: impl Fn(&Header) -> Option<String>) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for found in surveyed.iter().filter_map(|each| name(&each.header)) {
        if !names.contains(&found) {
            names.push(found);
        }
    }
    names
}

/// Refuses to count dates as units since 1970.
fn check_unit(spec: &ImportSpec, found: &Found) -> Result<(), ImportError> {
    let unit = spec.ts_unit.filter(|unit| !unit.of_day());
    match unit.and_then(|_| found.stamps.calendar()) {
        Some(form) => Err(ImportError::options(
            "every time is a calendar date written as a number, and --ts-unit says numbers of units",
            format!("leave out --ts-unit, and say --ts-format {form}"),
        )),
        None => Ok(()),
    }
}

/// Notes on times that are read in a way that the caller may not expect.
fn notes_of_times(spec: &ImportSpec, found: &Found, existing: Option<&DatasetSpec>) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(tz) = spec.tz.as_ref().filter(|_| found.stamps.has_dates_alone()) {
        notes.push(format!("every time is a date and stays it: --tz {tz} moves times, and no dates"));
    }
    if let Some(zone) = &spec.date_zone
        && let Some(existing) = existing.filter(|existing| existing.settings.date_zone.is_none())
    {
        let name = &existing.dataset;
        notes.push(format!(
            "--date-zone {zone} is of this import alone, as {name} has no such setting; it has with: trellis dataset \
             alter {name} --date-zone {zone}"
        ));
    }
    let units: Vec<String> =
        found.stamps.counts().filter(|c| matches!(c, Count::Units(_))).filter_map(Count::option).collect();
    if spec.ts_unit.is_some() && units.len() > 1 {
        notes.push(format!(
            "the numbers of the times are as long as those of several units ({}): if they are of several, import \
             them apart",
            units.join(", ")
        ));
    }
    notes
}

/// Daily rows of many sources are local midnights written as instants; read as instants, each zone and each change of
/// clocks makes them other rows than the same days of another source.
fn note_of_midnights(checked: &Checked, found: &Found, surveyed: &[Surveyed]) -> Option<String> {
    let (offsets, likely) = found.stamps.local_midnights().filter(|_| checked.clock.dates.is_none())?;
    let labelled = surveyed.iter().find_map(|each| each.zone.as_deref());
    let shown: Vec<String> = offsets
        .iter()
        .map(|offset| {
            format!(
                "{}{:02}:{:02}",
                if *offset < 0 { '-' } else { '+' },
                offset.abs() / 3_600,
                offset.abs() / 60 % 60
            )
        })
        .collect();
    Some(format!(
        "every time is a midnight at {}: if they name dates, say --date-zone {}",
        shown.join(" or "),
        labelled.or(likely).unwrap_or("and the zone of their exchange")
    ))
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
    let problem = |(place, bad): (&(u32, u64), &Bad)| Problem {
        file: file_of(place.0),
        line: place.1,
        column: bad.column.clone(),
        value: bad.value.clone(),
        reason: bad.reason.clone(),
    };
    bad.iter().take(shown).map(problem).collect()
}

fn open_all(
    files: &[PathBuf],
    spec: &ImportSpec,
    notes: &mut Vec<String>,
) -> Result<Vec<Source>, ImportError> {
    if files.is_empty() {
        return Err(ImportError::options("no file is named", "name the files to import"));
    }
    if !spec.member.is_empty() && !files.iter().any(|path| source::is_archive(path)) {
        return Err(ImportError::options(
            "--member chooses from an archive, and no file is a .zip",
            "leave it out",
        ));
    }
    let mut named = HashSet::new();
    let mut sources = Vec::new();
    for path in files {
        let real = path.canonicalize().unwrap_or_else(|_| path.clone());
        if !named.insert(real) {
            return Err(ImportError::options(format!("{} is named twice", path.display()), "name it once"));
        }
        sources.extend(source::sources(path, &spec.member, notes)?);
    }
    let text_only = [
        ("--delimiter", spec.delimiter.is_some()),
        ("--columns", !spec.columns.is_empty()),
        ("--skip-rows", spec.skip_rows.is_some()),
    ];
    if let Some((option, _)) = text_only.iter().find(|(_, said)| *said)
        && sources.iter().all(Source::is_parquet)
    {
        return Err(ImportError::options(
            format!("{option} is for CSV files, and every file is Parquet"),
            "leave it out",
        ));
    }
    Ok(sources)
}

/// Text is read twice.
fn bytes_to_read(sources: &[Source]) -> u64 {
    let size = |source: &Source| std::fs::metadata(&source.path).map_or(0, |m| m.len());
    let times = |source: &Source| if source.is_parquet() { 1 } else { 2 };
    let mut seen = HashSet::new();
    let first = sources.iter().filter(|source| seen.insert(&source.path));
    first.map(|source| size(source) * times(source)).sum()
}

fn target<'a>(
    number: u32,
    source: &Source,
    header: &'a Header,
    fields: &'a [Wanted],
    spec: &ImportSpec,
    checked: &'a Checked,
    table: &mut Table,
) -> Result<Target<'a>, ImportError> {
    let mut roles = vec![Role::Skip; header.names.len()];
    for (place, (name, _)) in header.fields.iter().enumerate() {
        let Some(field) = fields.iter().position(|field| field.spec.name == *name) else { continue };
        for &column in header.columns_of(place) {
            roles[column] = if header.tickers.is_empty() {
                Role::Field(field)
            } else {
                let symbol = table.symbol(&header.names[column]);
                Role::Ticker(
                    field,
                    symbol.map_err(|e| ImportError::file(&source.name, e, "rename the column"))?,
                )
            };
        }
    }
    if let Some(column) = header.symbol {
        roles[column] = Role::Symbol;
    }
    roles[header.ts] = Role::Ts;
    if let Some(column) = header.time {
        roles[column] = Role::Time;
    }
    if let Some(column) = header.known_at {
        roles[column] = Role::KnownAt;
    }
    let symbol = match (&spec.symbol, &checked.name_pattern) {
        (Some(name), _) => Some(name.as_str()),
        (None, Some(pattern)) => Some(pattern.symbol(source.title()).ok_or_else(|| {
            ImportError::file(
                &source.name,
                format!(
                    "its name, {:?}, is not {:?}",
                    source.title(),
                    spec.symbol_from_name.as_deref().unwrap_or_default()
                ),
                "--symbol-from-name '{}' takes the whole name",
            )
        })?),
        (None, None) => None,
    };
    let symbol = match symbol {
        Some(name) => Some(
            table
                .symbol(name)
                .map_err(|e| ImportError::file(&source.name, format!("the symbol {name:?}: {e}"), ""))?,
        ),
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
    // A knowledge time is an instant: neither a time of the file's day nor a date of a zone.
    let unit = spec.ts_unit.filter(|unit| !unit.of_day());
    let mut forms = checked.clock.forms.to_vec();
    if !forms.is_empty() && !spec.ts_format.iter().any(|form| form == ISO) {
        forms.extend(Form::parse(ISO).ok());
    }
    Ok(Target {
        number,
        header,
        roles,
        fields,
        symbol,
        ts: Clock { day, ..checked.clock.clone() },
        known_at: Clock { unit, forms: forms.into(), dates: None, moments: true, ..checked.clock.clone() },
        reading: &checked.reading,
    })
}
