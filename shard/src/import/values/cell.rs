//! From the text of a cell to a value of a field's type.
//!
//! The value is exactly the one in the cell, or the cell is refused. A number with more digits than its type holds is refused, unless
//! the caller named the type (`types`): then the value is the nearest one.

use std::{borrow::Cow, collections::BTreeSet};

use trellis_proto::{FieldType, spec::FieldSpec};

use super::{
    clock::{Clock, Reason, by_forms, compact_day, iso},
    number::{self, Notation},
};

/// A cell, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Example {
    pub(crate) text: String,
    pub(crate) line: u64,
}

/// A value of a field.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Cell<'a> {
    Null,
    Float(f64),
    Float32(f32),
    Int(i64),
    Int32(i32),
    Bool(bool),
    Text(&'a str),
    /// Nanoseconds, UTC.
    Time(i64),
}

/// A field of the dataset, and how its cells are read.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) spec: FieldSpec,
    /// The caller named the type: numbers that it does not hold become the nearest that it does, and 1 and 0 are bools.
    pub(crate) nearest: bool,
}

/// How cells are read, besides their type.
#[derive(Debug, Clone)]
pub(crate) struct Reading {
    /// How the cells of time fields are read.
    pub(crate) clock: Clock,
    /// Words that stand for a missing value, beside the empty cell.
    pub(crate) null: BTreeSet<String>,
    pub(crate) notation: Notation,
}

/// The reason for a number with more digits than its type holds.
pub(crate) const NOT_HELD: &str = "does not hold it";
pub(crate) const BEYOND_32: &str = "beyond the integers of 32 bits";

impl Reading {
    pub(crate) fn is_null(&self, text: &str) -> bool {
        text.is_empty() || (!self.null.is_empty() && self.null.contains(text))
    }

    /// Reads `text` as a value of `field`. Spaces around it are ignored, except in text fields.
    pub(crate) fn cell<'a>(&self, text: &'a str, field: &Wanted) -> Result<Cell<'a>, Reason> {
        let FieldSpec { data_type, nullable, .. } = field.spec;
        let trimmed = text.trim_ascii();
        if self.is_null(trimmed) || is_no_value(trimmed, data_type) {
            return missing(nullable);
        }
        let cell = match data_type {
            FieldType::Float64 => match infinity(trimmed) {
                Some(value) => Cell::Float(value),
                None => float64(&self.plain(trimmed)?, field.nearest)?,
            },
            FieldType::Float32 => match infinity(trimmed) {
                Some(value) => Cell::Float32(value as f32),
                None => float32(&self.plain(trimmed)?, field.nearest)?,
            },
            FieldType::Int64 => Cell::Int(self.whole(trimmed)?),
            FieldType::Int32 => Cell::Int32(i32::try_from(self.whole(trimmed)?).map_err(|_| BEYOND_32)?),
            FieldType::Bool => Cell::Bool(boolean(trimmed, field.nearest).ok_or("neither true nor false")?),
            FieldType::String => Cell::Text(text),
            FieldType::Timestamp => Cell::Time(self.time(trimmed)?),
        };
        cell.checked(nullable)
    }

    fn plain<'a>(&self, text: &'a str) -> Result<Cow<'a, str>, Reason> {
        match self.notation.read(text) {
            Some(written) => Ok(written.plain),
            None => Err(not_a_number(text)),
        }
    }

    fn whole(&self, text: &str) -> Result<i64, Reason> {
        Ok(number::whole(&self.plain(text)?).ok_or("not a whole number")??)
    }

    pub(crate) fn time(&self, text: &str) -> Result<i64, Reason> {
        if let Ok(value) = text.parse::<i64>() {
            return self.day(value);
        }
        let by_iso = iso(text).map(|stamp| stamp.when()).transpose()?;
        let by_form = by_forms(&self.clock.forms, text);
        let when = match (by_iso, by_form) {
            (Some(a), Ok(b)) if a != b => {
                return Err("ISO 8601 and a form of --ts-format read it as different times".into());
            }
            (Some(when), _) | (None, Ok(when)) => when,
            (None, Err(_)) => {
                return Err("not a date or time of ISO 8601, nor of a form of --ts-format".into());
            }
        };
        self.clock.resolve(when)
    }

    /// `20160810` as a value of a time field.
    pub(crate) fn day(&self, value: i64) -> Result<i64, Reason> {
        let day = compact_day(value).ok_or("an integer is a time only as yyyymmdd here")?;
        self.clock.resolve(super::clock::When::Day(day))
    }
}

impl<'a> Cell<'a> {
    /// Refuses NaN and infinity where the field must have a value.
    pub(crate) fn checked(self, nullable: bool) -> Result<Cell<'a>, Reason> {
        let finite = match self {
            Cell::Float(value) => value.is_finite(),
            Cell::Float32(value) => value.is_finite(),
            Cell::Null | Cell::Int(_) | Cell::Int32(_) | Cell::Bool(_) | Cell::Text(_) | Cell::Time(_) => {
                true
            }
        };
        if finite || nullable { Ok(self) } else { Err("not finite, and the field may not be null".into()) }
    }
}

pub(crate) fn missing(nullable: bool) -> Result<Cell<'static>, Reason> {
    if nullable { Ok(Cell::Null) } else { Err("the value is missing, and the field may not be null".into()) }
}

/// The number as a float of 64 bits.
pub(crate) fn float64(plain: &str, nearest: bool) -> Result<Cell<'static>, Reason> {
    let (value, same) = number::float64(plain).ok_or("not a number")?;
    match (same, value.is_finite()) {
        (true, _) => Ok(Cell::Float(value)),
        (false, true) if nearest => Ok(Cell::Float(value)),
        (false, true) => Err(format!("float64 {NOT_HELD}: it would become {value}").into()),
        (false, false) => Err("beyond the floats of 64 bits".into()),
    }
}

/// The number as a float of 32 bits.
pub(crate) fn float32(plain: &str, nearest: bool) -> Result<Cell<'static>, Reason> {
    let (value, same) = number::float32(plain).ok_or("not a number")?;
    match (same, value.is_finite()) {
        (true, _) => Ok(Cell::Float32(value)),
        (false, true) if nearest => Ok(Cell::Float32(value)),
        (false, true) => Err(format!("float32 {NOT_HELD}: it would become {value}").into()),
        (false, false) => Err("beyond the floats of 32 bits".into()),
    }
}

/// `NaN` among numbers and `NaT` among times, which is how pandas, R and NumPy write a missing one.
pub(crate) fn is_no_value(text: &str, data_type: FieldType) -> bool {
    match data_type {
        FieldType::Float64 | FieldType::Float32 | FieldType::Int64 | FieldType::Int32 => is_nan(text),
        FieldType::Timestamp => text == "NaT",
        FieldType::Bool | FieldType::String => false,
    }
}

pub(crate) fn is_nan(text: &str) -> bool {
    text.trim_start_matches(['+', '-']).eq_ignore_ascii_case("nan")
}

pub(crate) fn infinity(text: &str) -> Option<f64> {
    let word = text.strip_prefix(['+', '-']).unwrap_or(text);
    let infinite = word.eq_ignore_ascii_case("inf") || word.eq_ignore_ascii_case("infinity");
    infinite.then_some(if text.starts_with('-') { f64::NEG_INFINITY } else { f64::INFINITY })
}

fn not_a_number(text: &str) -> Reason {
    if number::forms_of(text).is_some() {
        return Cow::Borrowed("a number in another notation");
    }
    Cow::Borrowed("not a number")
}

/// 1 and 0 are numbers, unless the caller named the type.
fn boolean(text: &str, named: bool) -> Option<bool> {
    match text {
        "1" if named => Some(true),
        "0" if named => Some(false),
        _ => boolean_word(text),
    }
}

pub(crate) fn boolean_word(text: &str) -> Option<bool> {
    if text.eq_ignore_ascii_case("true") {
        Some(true)
    } else if text.eq_ignore_ascii_case("false") {
        Some(false)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use trellis_proto::FieldName;

    use super::*;

    fn reading() -> Reading {
        let clock =
            Clock { zone: None, unit: None, day: None, forms: Arc::default(), dates: None, moments: false };
        Reading { clock, null: BTreeSet::from(["NA".to_owned()]), notation: Notation::default() }
    }

    fn wanted(data_type: FieldType, nullable: bool, nearest: bool) -> Wanted {
        Wanted { spec: FieldSpec { name: FieldName::new("x").unwrap(), data_type, nullable }, nearest }
    }

    #[test]
    fn cells_are_read_exactly_or_refused() {
        let reading = reading();
        let read = |text, data_type| reading.cell(text, &wanted(data_type, true, false));
        assert_eq!(read(" 1.5 ", FieldType::Float64), Ok(Cell::Float(1.5)));
        assert_eq!(read("-Inf", FieldType::Float64), Ok(Cell::Float(f64::NEG_INFINITY)));
        assert_eq!(read("1234.0", FieldType::Int64), Ok(Cell::Int(1234)));
        assert_eq!(read("9007199254740993", FieldType::Int64), Ok(Cell::Int(9_007_199_254_740_993)));
        assert_eq!(read("9007199254740993.0", FieldType::Int64), Ok(Cell::Int(9_007_199_254_740_993)));
        assert_eq!(read(" a ", FieldType::String), Ok(Cell::Text(" a ")));
        assert_eq!(read("nan", FieldType::String), Ok(Cell::Text("nan")));
        assert_eq!(read("20160810", FieldType::Timestamp), Ok(Cell::Time(1_470_787_200_000_000_000)));
        for (text, data_type) in [
            ("NA", FieldType::String),
            ("nan", FieldType::Float64),
            ("NaN", FieldType::Int64),
            ("NaT", FieldType::Timestamp),
        ] {
            assert_eq!(read(text, data_type), Ok(Cell::Null), "{text} as {data_type}");
        }
        for (text, data_type) in [
            ("1.5", FieldType::Int64),
            ("1e300", FieldType::Int64),
            ("99999999999999999999", FieldType::Int64),
            ("2147483648", FieldType::Int32),
            ("1e39", FieldType::Float32),
            ("0.123456789", FieldType::Float32),
            ("9007199254740993", FieldType::Float64),
            ("12345678901234567890.12", FieldType::Float64),
            ("1e400", FieldType::Float64),
            ("1,000", FieldType::Float64),
            ("1_000", FieldType::Int64),
            ("0x10", FieldType::Int64),
            ("12%", FieldType::Float64),
            ("yes", FieldType::Bool),
            ("0", FieldType::Bool),
            ("12", FieldType::Timestamp),
            ("9999-12-31", FieldType::Timestamp),
        ] {
            assert!(read(text, data_type).is_err(), "{text} as {data_type}");
        }
        let nearest = |text, data_type| reading.cell(text, &wanted(data_type, true, true));
        assert_eq!(nearest("9007199254740993", FieldType::Float64), Ok(Cell::Float(9_007_199_254_740_992.0)));
        assert!(nearest("1e400", FieldType::Float64).is_err());
        assert_eq!(nearest("0", FieldType::Bool), Ok(Cell::Bool(false)));
    }

    #[test]
    fn a_field_that_may_not_be_null_has_a_finite_value() {
        let field = wanted(FieldType::Float64, false, false);
        for text in ["", "NA", "nan", "inf", "-Infinity"] {
            assert!(reading().cell(text, &field).is_err(), "{text}");
        }
        assert_eq!(reading().cell("1", &field), Ok(Cell::Float(1.0)));
    }
}
