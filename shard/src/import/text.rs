//! Rows from CSV text: a survey of the header and the cells, then the values.

use std::{io::Read, str};

use trellis_proto::FieldName;

use super::{
    choice::{Checked, Header, ImportSpec, Surveyed, delimiter_name, has_time, resolve, shell, snake_case},
    rows::{Record, Target, rows},
    source::{RECORD_BYTES_MAX, RecordError, Records, Source},
    table::{Rows, Table},
    told::{Bad, BadRows, ImportError, Ticker},
    values::{Cell, Clock, Example, Reading, Reason, Seen, Stamps, Wanted, iso},
};

/// Most lines that are searched for a header if the first line is none.
const PREAMBLE_LINES_MAX: u64 = 100;

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

type Text<'a> = Records<&'a mut dyn Read>;

/// A text whose header has been read.
struct Started<'a> {
    records: Text<'a>,
    names: Vec<String>,
    delimiter: u8,
    /// The line of the header; 0 if the caller named the columns.
    line: u64,
    /// The fault in the header's quotes, if there is one.
    quotes: Option<&'static str>,
}

/// Opens the text and reads its header, or takes the names that were given.
fn start<'a>(
    source: &Source,
    text: &'a mut dyn Read,
    spec: &ImportSpec,
    checked: &Checked,
) -> Result<Started<'a>, ImportError> {
    let failed = |e| failed(source, e);
    let mut delimiter = checked.delimiter.unwrap_or(source.delimiter());
    let mut records = Records::new(text, delimiter);
    for _ in 0..spec.skip_rows.unwrap_or(0) {
        if !records.skip_line().map_err(failed)? {
            break;
        }
    }
    if let Some(said) = said_delimiter(&records.peek_line().map_err(failed)?) {
        records.skip_line().map_err(failed)?;
        delimiter = checked.delimiter.unwrap_or(said);
        records.set_delimiter(delimiter);
    }
    if spec.skip_rows.is_none() {
        check_comments(source, &mut records)?;
    }
    if !spec.columns.is_empty() {
        return Ok(Started { records, names: spec.columns.clone(), delimiter, line: 0, quotes: None });
    }
    if !records.next().map_err(failed)? {
        return Err(ImportError::file(
            &source.name,
            "is empty",
            "a CSV file has at least a line of column names",
        ));
    }
    let names = cells(&records).ok_or_else(|| {
        ImportError::file(&source.name, format!("line {} is not UTF-8", records.line()), "save it as UTF-8")
    })?;
    if names.iter().any(|name| name.contains('\0')) {
        return Err(ImportError::file(
            &source.name,
            "has zero bytes between its letters, as UTF-16 has",
            "save it as UTF-8",
        ));
    }
    let (line, quotes) = (records.line(), records.wrong_quotes());
    Ok(Started { records, names, delimiter, line, quotes })
}

fn cells<R: Read>(records: &Records<R>) -> Option<Vec<String>> {
    (0..records.cells()).map(|i| str::from_utf8(records.cell(i)).ok().map(str::to_owned)).collect()
}

/// `sep=;`, which Excel writes and reads above the header.
fn said_delimiter(line: &str) -> Option<u8> {
    let line = line.trim().trim_matches('"');
    let said =
        line.get(..4).filter(|start| start.eq_ignore_ascii_case("sep=")).and_then(|_| line.get(4..))?;
    let mut chars = said.chars();
    match (chars.next(), chars.next()) {
        (Some(c), None) if c.is_ascii() && c != '"' => u8::try_from(c).ok(),
        // The separator is a tab, which was trimmed.
        (None, _) => Some(b'\t'),
        _ => None,
    }
}

/// Refuses comment lines above the header: the caller must say where they end.
fn check_comments(source: &Source, records: &mut Text<'_>) -> Result<(), ImportError> {
    let first = records.peek_line().map_err(|e| failed(source, e))?;
    if !first.starts_with('#') || has_time(&split(&first)) {
        return Ok(());
    }
    let (mut lines, mut last) = (0, first);
    while last.starts_with('#') && lines < PREAMBLE_LINES_MAX {
        let is_header = has_time(&split(&last));
        if is_header || !records.skip_line().map_err(|e| failed(source, e))? {
            break;
        }
        lines += 1;
        last = records.peek_line().map_err(|e| failed(source, e))?;
    }
    Err(ImportError::file(
        &source.name,
        format!("its first {lines} lines start with #, as comments do"),
        format!("if they stand above the header, say --skip-rows {lines}"),
    ))
}

/// The cells of a line by any usual separator.
fn split(line: &str) -> Vec<String> {
    line.split([',', ';', '\t', '|']).map(|cell| cell.trim().trim_matches('"').to_owned()).collect()
}

/// The roles of the columns, or what is wrong with a header that cannot be one.
fn header_of(source: &Source, spec: &ImportSpec, started: &mut Started<'_>) -> Result<Header, ImportError> {
    if !spec.columns.is_empty() {
        return resolve(&source.name, &started.names, spec);
    }
    let other = match started.names.as_slice() {
        [only] => [';', '\t', '|', ',', ' ']
            .into_iter()
            .find(|&c| u32::from(c) != u32::from(started.delimiter) && only.trim().contains(c)),
        _ => None,
    };
    let first = started.names.first().cloned().unwrap_or_default();
    let separated = |other: char| {
        ImportError::file(
            &source.name,
            format!("its first line has one column, {first:?}"),
            format!("if a {} separates its cells, say --delimiter {}", word(other), delimiter_name(other)),
        )
    };
    if let Some(other) = other
        && has_time(&by(&first, other))
    {
        return Err(separated(other));
    }
    let found = check_names(source, started).and_then(|()| resolve(&source.name, &started.names, spec));
    if found.is_ok() || has_time(&started.names) {
        return match started.quotes {
            None => found,
            Some(why) => Err(ImportError::file(
                &source.name,
                format!("line {}: {why}", started.line),
                "mend the header",
            )),
        };
    }
    let above = started.names.clone();
    if let Some((line, separator, names)) = find_header(source, started)? {
        // yfinance writes the names of the fields, below them the tickers, and below these the name of the time.
        let time = names.iter().position(|name| !name.is_empty());
        if let Some(time) = time
            && names.iter().enumerate().all(|(i, name)| i == time || name.is_empty())
            && names.len() == above.len()
            && names.len() > 1
        {
            let mut columns = above;
            columns[time].clone_from(&names[time]);
            return Err(ImportError::file(
                &source.name,
                format!(
                    "its first line is no header: the time is named on line {line}, and nothing beside it"
                ),
                format!("say --skip-rows {line} --columns {}", shell(&distinct(&columns).join(","))),
            ));
        }
        let delimiter = match separator {
            Some(c) => format!(" --delimiter {}", delimiter_name(c)),
            None => String::new(),
        };
        return Err(ImportError::file(
            &source.name,
            format!("its first line is no header, and line {line} looks like one"),
            format!("say --skip-rows {}{delimiter}", line - 1),
        ));
    }
    match other {
        Some(other) if other != ' ' => Err(separated(other)),
        _ => found,
    }
}

fn check_names(source: &Source, started: &Started<'_>) -> Result<(), ImportError> {
    let names = &started.names;
    let value = |name: &&String| {
        let name = name.trim();
        iso(name).is_some() || (name.parse::<f64>().is_ok() && name.bytes().any(|b| b.is_ascii_digit()))
    };
    if let Some(value) = names.iter().find(value).filter(|_| !has_time(names)) {
        return Err(ImportError::file(
            &source.name,
            format!("its first line holds values ({value:?}) instead of column names"),
            format!("name its {} columns with --columns, _ for one to leave out", names.len()),
        ));
    }
    let twice =
        names.iter().enumerate().find(|(i, name)| !name.trim().is_empty() && names[..*i].contains(name));
    if let Some((i, name)) = twice {
        let first = names.iter().position(|n| n == name).unwrap_or_default();
        return Err(ImportError::file(
            &source.name,
            format!("has the column {name:?} twice, as columns {} and {}", first + 1, i + 1),
            format!(
                "rename one in the file, or name the columns yourself, _ for one to leave out: --skip-rows {} \
                 --columns {}",
                started.line,
                shell(&distinct(names).join(","))
            ),
        ));
    }
    Ok(())
}

fn word(delimiter: char) -> &'static str {
    match delimiter {
        ';' => "semicolon",
        '\t' => "tab",
        '|' => "bar",
        ' ' => "space",
        _ => "comma",
    }
}

/// The names, each once and without commas.
fn distinct(names: &[String]) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for name in names {
        let mut name = if name.contains(',') { snake_case(name) } else { name.trim().to_owned() };
        if name.is_empty() {
            name.push('_');
        }
        while name != "_" && found.contains(&name) {
            name.push_str("_2");
        }
        found.push(name);
    }
    found
}

/// A line further down that looks like the header: its number, its separator if that is not the one in use, its cells.
type LaterHeader = (u64, Option<char>, Vec<String>);

/// The first of the following lines that names a time column.
fn find_header(source: &Source, started: &mut Started<'_>) -> Result<Option<LaterHeader>, ImportError> {
    for line in started.line + 1..started.line + PREAMBLE_LINES_MAX {
        let text = started.records.peek_line().map_err(|e| failed(source, e))?;
        if has_time(&split(&text)) {
            let found = [',', ';', '\t', '|'].into_iter().find(|&c| has_time(&by(&text, c)));
            let names = by(&text, found.unwrap_or(','));
            return Ok(Some((line, found.filter(|&c| u32::from(c) != u32::from(started.delimiter)), names)));
        }
        if !started.records.skip_line().map_err(|e| failed(source, e))? {
            break;
        }
    }
    Ok(None)
}

fn by(line: &str, delimiter: char) -> Vec<String> {
    line.split(delimiter).map(|cell| cell.trim().trim_matches('"').to_owned()).collect()
}

/// Reads the header and looks at every cell of every field and of the time.
pub(crate) fn survey(
    source: &Source,
    spec: &ImportSpec,
    checked: &Checked,
    ticker: &mut Ticker<'_>,
) -> Result<Surveyed, ImportError> {
    let bytes = ticker.bytes();
    source.read(&bytes, |text| {
        let mut started = start(source, text, spec, checked)?;
        let header = header_of(source, spec, &mut started)?;
        let width = started.names.len();
        let records = &mut started.records;
        let mut seen = vec![Seen::default(); header.fields.len()];
        let (mut stamps, mut known) = (Stamps::default(), Stamps::default());
        let mut unnamed: Vec<Option<Example>> = vec![None; header.left_out.len()];
        while records.next().map_err(|e| failed(source, e))? {
            ticker.tick();
            if records.cells() != width || records.wrong_quotes().is_some() {
                continue;
            }
            if is_header(records, &header) {
                continue;
            }
            let (line, cell) = (records.line(), |column: usize| str::from_utf8(records.cell(column)));
            for (found, &column) in unnamed.iter_mut().zip(&header.left_out) {
                let text = cell(column).map_or("?", str::trim_ascii);
                let index = column == 0 || started.names[column].trim() == "Unnamed: 0";
                let counts = index && text.bytes().all(|b| b.is_ascii_digit());
                let tells = !text.is_empty() && !counts && !spec.retract;
                if found.is_none() && tells {
                    *found = Some(Example { text: text.to_owned(), line });
                }
            }
            for (place, seen) in seen.iter_mut().enumerate() {
                for &column in header.columns_of(place) {
                    if let Ok(cell) = cell(column) {
                        seen.look(cell, line, &checked.reading);
                    }
                }
            }
            if let Some(Ok(text)) = header.known_at.map(cell) {
                known.look(text, line, &checked.clock);
            }
            match (cell(header.ts), header.time.map(cell)) {
                (Ok(date), None) => stamps.look(date, line, &checked.clock),
                (Ok(date), Some(Ok(time))) => {
                    stamps.look(&joined(date, time), line, &checked.clock);
                }
                _ => {}
            }
        }
        if let Some((column, example)) = header.left_out.iter().zip(unnamed).find_map(|(c, e)| Some((*c, e?)))
        {
            return Err(nameless(source, &header, (&started.names, started.line), column, &example));
        }
        let seen: Vec<(FieldName, Seen)> =
            header.fields.iter().map(|(name, _)| name.clone()).zip(seen).collect();
        let semicolon = started.delimiter == b';';
        Ok(Surveyed { header, seen, typed: Vec::new(), stamps, known: known.dates, zone: None, semicolon })
    })
}

/// The error for a nameless column that is no index: its values would be lost.
fn nameless(
    source: &Source,
    header: &Header,
    (names, line): (&[String], u64),
    column: usize,
    example: &Example,
) -> ImportError {
    let named = |name: &str| {
        let mut names = names.to_vec();
        for &place in &header.left_out {
            "_".clone_into(&mut names[place]);
        }
        name.clone_into(&mut names[column]);
        format!("--skip-rows {line} --columns {}", shell(&distinct(&names).join(",")))
    };
    ImportError::file(
        &source.name,
        format!("column {} has no name, and values: {:?} on line {}", column + 1, example.text, example.line),
        format!(
            "to have it, say {}; to leave it out, {}",
            named(&format!("column_{}", column + 1)),
            named("_")
        ),
    )
}

/// Whether a record is the header again, as in files that were joined.
fn is_header<R: Read>(records: &Records<R>, header: &Header) -> bool {
    let same = |(column, name): (usize, &String)| {
        let cell = records.cell(column).trim_ascii();
        cell == name.as_bytes() || (cell.is_empty() && header.left_out.contains(&column))
    };
    records.cells() == header.names.len() && header.names.iter().enumerate().all(same)
}

fn joined(date: &str, time: &str) -> String {
    format!("{} {}", date.trim_ascii(), time.trim_ascii())
}

/// Reads every row into `table`, and what is wrong into `bad`.
pub(crate) fn read(
    source: &Source,
    spec: &ImportSpec,
    checked: &Checked,
    target: &Target<'_>,
    table: &mut Table,
    bad: &mut BadRows,
    ticker: &mut Ticker<'_>,
) -> Result<(), ImportError> {
    let bytes = ticker.bytes();
    source.read(&bytes, |text| {
        let mut records = start(source, text, spec, checked)?.records;
        while records.next().map_err(|e| failed(source, e))? {
            ticker.tick();
            let place = (target.number, records.line());
            match row(&records, target, table) {
                Ok(found) => table.push_all(&found, place)?,
                Err(wrong) => bad.add(place, || wrong),
            }
        }
        Ok(())
    })
}

fn row<'a, R: Read>(
    records: &'a Records<R>,
    target: &Target<'_>,
    table: &mut Table,
) -> Result<Rows<'a>, Bad> {
    if let Some(why) = records.wrong_quotes() {
        return Err(Bad::row(why));
    }
    if records.cells() != target.roles.len() {
        return Err(Bad::row(format!("{} cells instead of {}", records.cells(), target.roles.len())));
    }
    if is_header(records, target.header) {
        return Err(Bad::row("the header stands here again"));
    }
    if holds_a_row(records, target) {
        return Err(Bad::row("a whole row stands within its quotes: one of them opens or closes by mistake"));
    }
    rows(&TextRecord(records), target, table)
}

/// Whether a line within quotes would be a row by itself, with as many cells and a time where the time is, and no quote before
/// that: a cell of several lines may end there.
fn holds_a_row<R: Read>(records: &Records<R>, target: &Target<'_>) -> bool {
    records.lines_within().any(|cells| {
        let time = cells.get(target.header.ts).and_then(|cell| str::from_utf8(cell).ok());
        cells.len() == target.roles.len()
            && cells.iter().take(target.header.ts + 1).all(|cell| !cell.contains(&b'"'))
            && time.is_some_and(|time| target.ts.text(time.trim_ascii()).is_ok())
    })
}

struct TextRecord<'a, R>(&'a Records<R>);

impl<'a, R: Read> TextRecord<'a, R> {
    fn text(&self, column: usize) -> Result<&'a str, Reason> {
        str::from_utf8(self.0.cell(column)).map_err(|_| "not UTF-8".into())
    }
}

impl<'a, R: Read> Record<'a> for TextRecord<'a, R> {
    fn symbol(&self, column: usize, table: &mut Table) -> Result<u32, Reason> {
        table.symbol(present(self.text(column)?)?)
    }

    fn time(&self, column: usize, clock: &Clock) -> Result<i64, Reason> {
        clock.text(present(self.text(column)?)?)
    }

    fn date_and_time(&self, date: usize, time: usize, clock: &Clock) -> Result<i64, Reason> {
        clock.text(&joined(present(self.text(date)?)?, present(self.text(time)?)?))
    }

    fn cell(&self, column: usize, field: &Wanted, reading: &Reading) -> Result<Cell<'a>, Reason> {
        reading.cell(self.text(column)?, field)
    }

    fn shown(&self, column: usize) -> String {
        String::from_utf8_lossy(self.0.cell(column)).into_owned()
    }
}

/// A key cell without the spaces around it. Words for missing values do not count: NA and TRUE are tickers.
pub(crate) fn present(text: &str) -> Result<&str, Reason> {
    let text = text.trim_ascii();
    if text.is_empty() { Err("the key is missing".into()) } else { Ok(text) }
}

/// Gives each record of the source, with its line, as it stands in the file.
pub(crate) fn raw_rows(
    source: &Source,
    spec: &ImportSpec,
    checked: &Checked,
    mut each: impl FnMut(u64, &str) -> Result<(), ImportError>,
) -> Result<(), ImportError> {
    source.read(&std::sync::Arc::default(), |text| {
        let mut records = start(source, text, spec, checked)?.records;
        while records.next().map_err(|e| failed(source, e))? {
            each(records.line(), &String::from_utf8_lossy(records.raw()))?;
        }
        Ok(())
    })
}
