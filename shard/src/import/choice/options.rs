//! Whether what the caller says about the files makes sense.

use std::collections::{BTreeMap, BTreeSet};

use chrono::NaiveDate;
use trellis_proto::{DatasetSpec, FieldName, FieldType, Symbol};

use super::spec::{ImportSpec, Repeats};
use crate::import::{
    told::ImportError,
    values::{self, Clock, DateZone, Form, Marks, Notation, Reading, Signs, TsUnit, Zone},
};

/// Options that have been checked.
pub(crate) struct Checked {
    pub(crate) reading: Reading,
    /// Reads the event times; without the day in a file's name.
    pub(crate) clock: Clock,
    pub(crate) date: Option<NaiveDate>,
    pub(crate) types: BTreeMap<FieldName, FieldType>,
    /// Absent: it follows from the file.
    pub(crate) delimiter: Option<u8>,
    pub(crate) name_pattern: Option<NamePattern>,
}

/// Where the symbol stands in a file's name.
#[derive(Debug, Clone)]
pub(crate) struct NamePattern {
    /// The texts between `*` and `{}`.
    texts: Vec<String>,
    /// The position of the gap that is the symbol.
    symbol: usize,
}

impl NamePattern {
    fn parse(text: &str) -> Result<Self, ImportError> {
        let refuse = || {
            Err(ImportError::options(
                format!("--symbol-from-name {text:?} does not say where the symbol is"),
                "write {} for it, and * for anything else: --symbol-from-name '{}' takes the whole name, 'WIKI-{}' \
                 what follows WIKI-",
            ))
        };
        if text.matches("{}").count() != 1 {
            return refuse();
        }
        let texts = text.replace("{}", "*").split('*').map(str::to_owned).collect();
        let before = text.find("{}").map_or("", |at| &text[..at]);
        Ok(Self { texts, symbol: before.matches('*').count() })
    }

    /// The symbol in `name`, if there is one way to find it.
    pub(crate) fn symbol<'a>(&self, name: &'a str) -> Option<&'a str> {
        let mut found: Option<&str> = None;
        let mut rest = name.strip_prefix(self.texts[0].as_str())?;
        for (gap, text) in self.texts[1..].iter().enumerate() {
            let last = gap + 2 == self.texts.len();
            let end = if last { rest.strip_suffix(text.as_str())?.len() } else { rest.find(text.as_str())? };
            if gap == self.symbol {
                found = Some(&rest[..end]);
            }
            rest = &rest[end + text.len()..];
        }
        found.filter(|symbol| !symbol.is_empty())
    }
}

fn zone(option: &str, name: &str) -> Result<chrono_tz::Tz, ImportError> {
    name.parse().map_err(|_| {
        ImportError::options(
            format!("{option}: there is no time zone {name:?}"),
            "zones are named as in America/New_York, Europe/London, UTC",
        )
    })
}

/// A mark as the caller typed it: itself or its name.
fn typed_mark(option: &str, text: &str, known: &[char]) -> Result<char, ImportError> {
    let refuse = || {
        let names: Vec<&str> = known.iter().map(|&c| mark_name(c)).collect();
        ImportError::options(
            format!("{option} {text:?} is no mark of numbers"),
            format!("it is one of {}", names.join(" ")),
        )
    };
    let mut chars = text.chars();
    let found = match text {
        "space" => ' ',
        "apostrophe" => '\'',
        "comma" => ',',
        "dot" | "point" => '.',
        "underscore" => '_',
        _ => values::mark(chars.next().filter(|_| chars.next().is_none()).ok_or_else(refuse)?),
    };
    known.contains(&found).then_some(found).ok_or_else(refuse)
}

/// A mark as it can be typed.
pub(crate) fn mark_name(mark: char) -> &'static str {
    match mark {
        ' ' => "space",
        '\'' => "apostrophe",
        ',' => ",",
        '_' => "_",
        _ => ".",
    }
}

fn typed_delimiter(text: &str) -> Result<u8, ImportError> {
    let one = match text {
        "tab" | "\\t" => Some('\t'),
        "comma" => Some(','),
        "semicolon" => Some(';'),
        "space" => Some(' '),
        _ => {
            let mut chars = text.chars();
            chars.next().filter(|_| chars.next().is_none())
        }
    };
    one.filter(|c| c.is_ascii() && !matches!(c, '"' | '\r' | '\n'))
        .and_then(|c| u8::try_from(c).ok())
        .ok_or_else(|| {
            ImportError::options(
                format!("--delimiter {text:?} is no separator"),
                "it is one ASCII character, not a quote and not a line end; a tab is --delimiter tab",
            )
        })
}

/// A separator as it can be typed.
pub(crate) fn delimiter_name(delimiter: char) -> String {
    match delimiter {
        '\t' => "tab".to_owned(),
        ' ' => "space".to_owned(),
        ',' => ",".to_owned(),
        other => format!("'{other}'"),
    }
}

fn check_symbol_options(spec: &ImportSpec) -> Result<(), ImportError> {
    let ways = [
        ("--symbol", spec.symbol.is_some()),
        ("--symbol-column", spec.symbol_column.is_some()),
        ("--symbol-from-name", spec.symbol_from_name.is_some()),
        ("--wide", spec.wide.is_some()),
    ];
    let said: Vec<&str> = ways.iter().filter(|(_, said)| *said).map(|(name, _)| *name).collect();
    if let [first, second, ..] = said.as_slice() {
        return Err(ImportError::options(
            format!("{first} and {second} exclude each other"),
            "each says where the symbol is: leave out one",
        ));
    }
    if spec.wide.is_some() && !spec.fields.is_empty() {
        return Err(ImportError::options(
            "--wide and --fields exclude each other",
            "with --wide every column but the time is a symbol",
        ));
    }
    if let Some(symbol) = &spec.symbol {
        Symbol::new(symbol).map_err(|e| ImportError::options(format!("--symbol: {}", e.message()), ""))?;
    }
    Ok(())
}

fn check_time_options(spec: &ImportSpec) -> Result<(), ImportError> {
    let refuse = |message: &str, hint: &str| Err(ImportError::options(message, hint));
    if spec.known_at_ns.is_some() && spec.known_at_column.is_some() {
        return refuse("--known-at and --known-at-column exclude each other", "leave out one");
    }
    let of_day = spec.ts_unit.is_some_and(TsUnit::of_day);
    if spec.date.is_some() && !of_day {
        return refuse(
            "--date is for times within a day",
            "say --ts-unit ms-of-day (or s-, us-, ns-of-day) too, or leave --date out",
        );
    }
    if spec.ts_unit.is_some() && !spec.ts_format.is_empty() {
        return refuse(
            "--ts-unit and --ts-format exclude each other",
            "times are numbers of a unit, or text of a form",
        );
    }
    if spec.date_zone.is_some() && of_day {
        return refuse("--date-zone is for dates, and --ts-unit says times within a day", "leave out one");
    }
    Ok(())
}

/// Refuses options about values: a retraction has none.
fn check_retraction(spec: &ImportSpec, existing: Option<&DatasetSpec>) -> Result<(), ImportError> {
    if !spec.retract {
        return Ok(());
    }
    if existing.is_none() {
        return Err(ImportError::options(
            "--retract: there is no such dataset, so no row of it to retract",
            "name the dataset that has the rows; `trellis dataset list` shows all",
        ));
    }
    let of_values = [
        ("--fields", !spec.fields.is_empty()),
        ("--types", !spec.types.is_empty()),
        ("--wide", spec.wide.is_some()),
        ("--repeats", spec.repeats != Repeats::Refuse),
        ("--quarantine", spec.quarantine.is_some()),
    ];
    match of_values.into_iter().find(|(_, said)| *said) {
        Some((option, _)) => Err(ImportError::options(
            format!("{option} says nothing of rows that are retracted"),
            format!("leave {option} out: of each row the symbol and the time are read"),
        )),
        None => Ok(()),
    }
}

/// Refuses options that contradict the settings of an existing dataset.
fn check_against(spec: &ImportSpec, existing: &DatasetSpec) -> Result<(), ImportError> {
    if !spec.required.is_empty() || spec.chunk_ns.is_some() {
        return Err(ImportError::options(
            format!("--required and --chunk are for a new dataset; {} is there already", existing.dataset),
            "leave them out, or import into a new dataset",
        ));
    }
    for (option, given, has) in [
        ("--calendar", &spec.calendar, &existing.settings.calendar),
        ("--date-zone", &spec.date_zone, &existing.settings.date_zone),
    ] {
        match (given, has) {
            (Some(given), Some(has)) if given != has => {
                return Err(ImportError::options(
                    format!("{option} {given}: {} has {has}", existing.dataset),
                    format!("leave {option} out, or import into a new dataset"),
                ));
            }
            (Some(given), None) if option == "--calendar" => {
                return Err(ImportError::options(
                    format!(
                        "{option} {given} is for a new dataset; {} is there without one",
                        existing.dataset
                    ),
                    format!("set it once: trellis dataset alter {} --calendar {given}", existing.dataset),
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

pub(crate) fn check_options(
    spec: &ImportSpec,
    existing: Option<&DatasetSpec>,
) -> Result<Checked, ImportError> {
    check_symbol_options(spec)?;
    check_time_options(spec)?;
    check_retraction(spec, existing)?;
    if let Some(existing) = existing {
        check_against(spec, existing)?;
    }
    let tz = spec.tz.as_deref().map(|name| zone("--tz", name)).transpose()?.map(Zone);
    let setting = existing.and_then(|e| e.settings.date_zone.as_deref());
    let of_day = spec.ts_unit.is_some_and(TsUnit::of_day);
    let date_zone = spec.date_zone.as_deref().or(setting.filter(|_| !of_day));
    let dates = date_zone.map(|name| zone("--date-zone", name)).transpose()?.map(DateZone);
    let date = match &spec.date {
        None => None,
        Some(text) => Some(text.parse::<NaiveDate>().map_err(|_| {
            ImportError::options(format!("--date: {text:?} is not a date"), "write it as 2014-05-01")
        })?),
    };
    let mut forms = Vec::with_capacity(spec.ts_format.len());
    for text in &spec.ts_format {
        forms.push(Form::parse(text).map_err(|why| {
            ImportError::options(
                format!("--ts-format {text:?}: {why}"),
                "a form is written as for strptime: %d/%m/%Y, '%Y%m%d %H:%M:%S.%f', iso",
            )
        })?);
    }
    let mut types = BTreeMap::new();
    for (field, name) in &spec.types {
        let data_type = FieldType::parse(name).map_err(|e| {
            ImportError::options(format!("--types {field}={name}: {}", e.message()), e.hint_text())
        })?;
        types.insert(field.clone(), data_type);
    }
    let decimal = match &spec.decimal {
        Some(text) => typed_mark("--decimal", text, &['.', ','])?,
        None => '.',
    };
    let thousands = match &spec.thousands {
        Some(text) => Some(typed_mark("--thousands", text, &[',', '.', ' ', '\'', '_'])?),
        None => None,
    };
    if thousands == Some(decimal) {
        return Err(ImportError::options(
            format!("{decimal:?} cannot stand both before a fraction and between thousands"),
            if decimal == '.' { "say --decimal , too" } else { "say another --thousands, or leave it out" },
        ));
    }
    let notation = Notation { marks: Marks { decimal, thousands }, signs: Signs::of(&spec.notation) };
    let clock = Clock { zone: tz, unit: None, day: None, forms: forms.into(), dates: None, moments: false };
    Ok(Checked {
        clock: Clock { unit: spec.ts_unit, dates, ..clock.clone() },
        reading: Reading { clock, null: spec.null.iter().cloned().collect::<BTreeSet<_>>(), notation },
        date,
        types,
        delimiter: spec.delimiter.as_deref().map(typed_delimiter).transpose()?,
        name_pattern: spec.symbol_from_name.as_deref().map(NamePattern::parse).transpose()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_symbol_is_where_the_pattern_says() {
        for (pattern, name, symbol) in [
            ("{}", "AMZN", Some("AMZN")),
            ("{}", "BRK.B", Some("BRK.B")),
            ("WIKI-{}", "WIKI-AMZN", Some("AMZN")),
            ("WIKI-{}", "AMZN", None),
            ("WIKI-{}", "WIKI-", None),
            ("*-{}-*", "WIKI-AIG-2009-quandl", Some("AIG")),
            ("{}_*", "AAPL_2016_08", Some("AAPL")),
        ] {
            assert_eq!(NamePattern::parse(pattern).unwrap().symbol(name), symbol, "{pattern} {name}");
        }
        assert!(NamePattern::parse("WIKI").is_err() && NamePattern::parse("{}{}").is_err());
    }
}
