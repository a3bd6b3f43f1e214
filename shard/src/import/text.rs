//! Rows from CSV text: first a look at the header and at what the columns hold, then the values.

use std::{io::Read, str};

use trellis_proto::{FieldName, spec::FieldSpec};

use super::{
    ImportSpec, Ticker,
    cell::{Cell, Reading, Seen},
    clock::{Clock, iso},
    header::{Header, resolve},
    problem::{Bad, BadRows, ImportError},
    records::{RECORD_BYTES_MAX, RecordError, Records},
    source::Source,
    table::{Key, Table},
};

/// What one file's rows become.
pub(crate) struct Target<'a> {
    pub(crate) number: u32,
    pub(crate) header: &'a Header,
    /// For each column of the file.
    pub(crate) roles: Vec<Role>,
    /// Every field of the dataset.
    pub(crate) fields: &'a [FieldSpec],
    /// The symbol of all rows, where it is one.
    pub(crate) symbol: Option<u32>,
    pub(crate) ts: Clock,
    pub(crate) known_at: Clock,
    pub(crate) reading: &'a Reading,
}

/// What a column is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Skip,
    Symbol,
    Ts,
    KnownAt,
    /// The field at this position of the dataset.
    Field(usize),
}

fn failed(source: &Source, error: RecordError) -> ImportError {
    match error {
        RecordError::Io(e) => source.failed(&e),
        RecordError::TooLong(line) => ImportError::file(
            &source.name,
            format!("the row that starts on line {line} is longer than {} KiB", RECORD_BYTES_MAX >> 10),
            "a quote is probably opened there and never closed",
        ),
    }
}

fn delimiter(spec: &ImportSpec) -> u8 {
    // checked to be ASCII with the options
    u8::try_from(spec.delimiter).unwrap_or(b',')
}

/// Opens the text and reads its header, or takes the names that were given.
fn start<'a>(
    source: &Source,
    text: &'a mut dyn Read,
    spec: &ImportSpec,
) -> Result<(Records<&'a mut dyn Read>, Vec<String>), ImportError> {
    let mut records = Records::new(text, delimiter(spec));
    if !spec.columns.is_empty() {
        return Ok((records, spec.columns.clone()));
    }
    if !records.next().map_err(|e| failed(source, e))? {
        return Err(ImportError::file(
            &source.name,
            "is empty",
            "a CSV file has at least a line of column names",
        ));
    }
    let mut names = Vec::with_capacity(records.cells());
    for i in 0..records.cells() {
        let name = str::from_utf8(records.cell(i)).map_err(|_| {
            ImportError::file(
                &source.name,
                format!("line {} is not UTF-8", records.line()),
                "save it as UTF-8",
            )
        })?;
        names.push(name.to_owned());
    }
    check_names(source, &names, spec.delimiter)?;
    Ok((records, names))
}

fn check_names(source: &Source, names: &[String], delimiter: char) -> Result<(), ImportError> {
    if let [only] = names
        && let Some(other) = [';', '\t', '|', ','].into_iter().find(|&c| c != delimiter && only.contains(c))
    {
        return Err(ImportError::file(
            &source.name,
            format!("its first line has one column, {only:?}"),
            format!("if its cells are separated by {other:?}, say --delimiter {other:?}"),
        ));
    }
    let value = |name: &&String| {
        let name = name.trim();
        iso(name).is_some() || (name.parse::<f64>().is_ok() && name.bytes().any(|b| b.is_ascii_digit()))
    };
    if let Some(value) = names.iter().find(value) {
        return Err(ImportError::file(
            &source.name,
            format!("its first line holds values ({value:?}) instead of column names"),
            format!("name its {} columns with --columns, _ for one to leave out", names.len()),
        ));
    }
    Ok(())
}

/// Reads the header and, if `types`, looks at every cell of every field.
pub(crate) fn survey(
    source: &Source,
    spec: &ImportSpec,
    reading: &Reading,
    types: bool,
    ticker: &mut Ticker<'_>,
) -> Result<(Header, Vec<(FieldName, Seen)>), ImportError> {
    let bytes = ticker.bytes();
    source.read(&bytes, |text| {
        let (mut records, names) = start(source, text, spec)?;
        let header = resolve(&source.name, &names, spec)?;
        let mut seen = vec![Seen::default(); header.fields.len()];
        while types && records.next().map_err(|e| failed(source, e))? {
            ticker.tick();
            if records.cells() != names.len() || records.open_quote() {
                continue;
            }
            for ((_, column), seen) in header.fields.iter().zip(&mut seen) {
                if let Ok(cell) = str::from_utf8(records.cell(*column)) {
                    seen.look(cell, reading);
                }
            }
        }
        let seen = header.fields.iter().map(|(name, _)| name.clone()).zip(seen).collect();
        Ok((header, seen))
    })
}

/// Reads every row into `table`, and what is wrong into `bad`.
pub(crate) fn read(
    source: &Source,
    spec: &ImportSpec,
    target: &Target<'_>,
    table: &mut Table,
    bad: &mut BadRows,
    ticker: &mut Ticker<'_>,
) -> Result<(), ImportError> {
    let bytes = ticker.bytes();
    source.read(&bytes, |text| {
        let (mut records, _) = start(source, text, spec)?;
        while records.next().map_err(|e| failed(source, e))? {
            ticker.tick();
            let place = (target.number, records.line());
            match row(&records, target, table) {
                Ok((key, cells)) => table.push(key, place, &cells)?,
                Err(wrong) => bad.add(place, || wrong),
            }
        }
        Ok(())
    })
}

/// The first thing that is wrong, from the left, makes the row bad.
fn row<'a, R: Read>(
    records: &'a Records<R>,
    target: &Target<'_>,
    table: &mut Table,
) -> Result<(Key, Vec<Cell<'a>>), Bad> {
    if records.open_quote() {
        return Err(Bad::row("a quote is opened and never closed"));
    }
    if records.cells() != target.roles.len() {
        return Err(Bad::row(format!("{} cells instead of {}", records.cells(), target.roles.len())));
    }
    let mut cells = vec![Cell::Null; target.fields.len()];
    let (mut symbol, mut ts, mut known_at) = (target.symbol, 0, None);
    for (i, role) in target.roles.iter().enumerate() {
        if *role == Role::Skip {
            continue;
        }
        let column = || target.header.names[i].as_str();
        let text = str::from_utf8(records.cell(i))
            .map_err(|_| Bad::cell(column(), &String::from_utf8_lossy(records.cell(i)), "not UTF-8"))?;
        let wrong = |reason| Bad::cell(column(), text, reason);
        match *role {
            Role::Skip => {}
            Role::Symbol => symbol = Some(table.symbol(present(text).map_err(wrong)?).map_err(wrong)?),
            Role::Ts => ts = present(text).and_then(|t| target.ts.text(t)).map_err(wrong)?,
            Role::KnownAt => {
                known_at = Some(present(text).and_then(|t| target.known_at.text(t)).map_err(wrong)?);
            }
            Role::Field(field) => {
                let FieldSpec { data_type, nullable, .. } = target.fields[field];
                cells[field] = target.reading.cell(text, data_type, nullable).map_err(wrong)?;
            }
        }
    }
    // every header has a column for the symbol, or the target a constant
    let symbol = symbol.ok_or_else(|| Bad::row("the symbol is missing"))?;
    Ok((Key { symbol, ts, known_at }, cells))
}

/// A key cell without the spaces around it. Words for missing values do not count: NA and TRUE are tickers.
pub(crate) fn present(text: &str) -> Result<&str, super::clock::Reason> {
    let text = text.trim_ascii();
    if text.is_empty() { Err("the key is missing".into()) } else { Ok(text) }
}

/// Hands each record of the source, by line, as it stands in the file.
pub(crate) fn raw_rows(
    source: &Source,
    spec: &ImportSpec,
    mut each: impl FnMut(u64, &str) -> Result<(), ImportError>,
) -> Result<(), ImportError> {
    source.read(&std::sync::Arc::default(), |text| {
        let (mut records, _) = start(source, text, spec)?;
        while records.next().map_err(|e| failed(source, e))? {
            each(records.line(), &String::from_utf8_lossy(records.raw()))?;
        }
        Ok(())
    })
}
