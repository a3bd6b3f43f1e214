//! From the text of a cell to a value of a field's type; and, where the type is not known yet, what the cells of a
//! column look like.
//!
//! A type is chosen by majority, not as the narrowest that holds every cell: one `n/a` among a million prices would turn
//! the prices into text, silently, and the strategy that multiplies them fails a week later. With a majority the `n/a`
//! is a bad row with a line number. Whoever wants text says so (`types`).

use std::{borrow::Cow, collections::BTreeSet};

use trellis_proto::FieldType;

use super::clock::{Reason, Zone, iso};

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

/// Largest integer up to which every one has its own float64.
const FLOAT_EXACT_MAX: f64 = 9_007_199_254_740_992.0;

/// What cells are read by, beside their type.
#[derive(Debug, Clone)]
pub(crate) struct Reading {
    pub(crate) zone: Zone,
    /// Words that stand for a missing value, beside the empty cell.
    pub(crate) null: BTreeSet<String>,
}

impl Reading {
    fn is_null(&self, text: &str) -> bool {
        text.is_empty() || (!self.null.is_empty() && self.null.contains(text))
    }

    /// Reads `text` as a value of `data_type`. Spaces around it are no part of it, except of text.
    pub(crate) fn cell<'a>(
        &self,
        text: &'a str,
        data_type: FieldType,
        nullable: bool,
    ) -> Result<Cell<'a>, Reason> {
        let trimmed = text.trim_ascii();
        if self.is_null(trimmed) {
            return missing(nullable);
        }
        let cell = match data_type {
            FieldType::Float64 => Cell::Float(float(trimmed)?),
            FieldType::Float32 => Cell::Float32(narrow(float(trimmed)?)?),
            FieldType::Int64 => Cell::Int(int(trimmed)?),
            FieldType::Int32 => {
                Cell::Int32(i32::try_from(int(trimmed)?).map_err(|_| "beyond the integers of 32 bits")?)
            }
            FieldType::Bool => Cell::Bool(boolean(trimmed).ok_or("neither true nor false")?),
            FieldType::String => Cell::Text(text),
            FieldType::Timestamp => Cell::Time(self.time(trimmed)?),
        };
        cell.checked(nullable)
    }

    fn time(&self, text: &str) -> Result<i64, Reason> {
        match text.parse::<i64>() {
            Ok(day) => {
                self.zone.compact_day(day).unwrap_or(Err("an integer is a time only as yyyymmdd here".into()))
            }
            Err(_) => self.zone.text(text),
        }
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

fn float(text: &str) -> Result<f64, Reason> {
    text.parse().map_err(|_| not_a_number(text))
}

/// A number with a fraction for an integer is refused, `1234.0` is not.
pub(crate) fn whole(value: f64) -> Result<i64, Reason> {
    if value.fract() == 0.0 && value.abs() <= FLOAT_EXACT_MAX {
        // exact: a whole number within 2^53
        return Ok(value as i64);
    }
    Err("not a whole number".into())
}

/// The nearest float of 32 bits.
pub(crate) fn narrow(value: f64) -> Result<f32, Reason> {
    let narrow = value as f32;
    if value.is_finite() && !narrow.is_finite() {
        Err("beyond the floats of 32 bits".into())
    } else {
        Ok(narrow)
    }
}

fn int(text: &str) -> Result<i64, Reason> {
    match text.parse::<i64>() {
        Ok(value) => Ok(value),
        Err(e)
            if matches!(
                e.kind(),
                std::num::IntErrorKind::PosOverflow | std::num::IntErrorKind::NegOverflow
            ) =>
        {
            Err("beyond the integers of 64 bits".into())
        }
        Err(_) => whole(float(text)?),
    }
}

fn not_a_number(text: &str) -> Reason {
    let digits = text.bytes().any(|b| b.is_ascii_digit());
    if digits && text.contains(',') {
        return Cow::Borrowed(
            "not a number: write it without separators between thousands, and with a decimal point",
        );
    }
    if digits && (text.ends_with('%') || text.starts_with(['$', '€', '£'])) {
        return Cow::Borrowed("not a number: write it without its sign of unit");
    }
    Cow::Borrowed("not a number")
}

fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" => Some(true),
        "0" => Some(false),
        _ => boolean_word(text),
    }
}

fn boolean_word(text: &str) -> Option<bool> {
    if text.eq_ignore_ascii_case("true") {
        Some(true)
    } else if text.eq_ignore_ascii_case("false") {
        Some(false)
    } else {
        None
    }
}

/// How many cells of a column look like what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    ints: u64,
    floats: u64,
    times: u64,
    bools: u64,
    texts: u64,
    /// Of the integers, those like `007`: codes, not numbers.
    padded: u64,
}

impl Seen {
    pub(crate) fn look(&mut self, text: &str, reading: &Reading) {
        let text = text.trim_ascii();
        if reading.is_null(text) {
            return;
        }
        if text.parse::<i64>().is_ok() {
            self.ints += 1;
            let digits = text.trim_start_matches(['-', '+']);
            self.padded += u64::from(digits.len() > 1 && digits.starts_with('0'));
        } else if text.parse::<f64>().is_ok() {
            self.floats += 1;
        } else if iso(text).is_some() {
            self.times += 1;
        } else if boolean_word(text).is_some() {
            self.bools += 1;
        } else {
            self.texts += 1;
        }
    }

    /// Takes in what was seen of the same column in another file.
    pub(crate) fn add(&mut self, other: &Self) {
        self.ints += other.ints;
        self.floats += other.floats;
        self.times += other.times;
        self.bools += other.bools;
        self.texts += other.texts;
        self.padded += other.padded;
    }

    /// The type that most cells have; `None` if there is no cell with a value.
    pub(crate) fn field_type(&self) -> Option<FieldType> {
        let numbers = self.ints + self.floats;
        let most = numbers.max(self.times).max(self.bools).max(self.texts);
        if most == 0 {
            None
        } else if numbers == most && self.floats > 0 {
            Some(FieldType::Float64)
        } else if numbers == most && self.padded > 0 {
            Some(FieldType::String)
        } else if numbers == most {
            Some(FieldType::Int64)
        } else if self.times == most {
            Some(FieldType::Timestamp)
        } else if self.bools == most {
            Some(FieldType::Bool)
        } else {
            Some(FieldType::String)
        }
    }
}

/// The narrowest type for a column that has one type in one file and another in the next; `None` if there is none.
pub(crate) fn common(a: FieldType, b: FieldType) -> Option<FieldType> {
    use FieldType::{Float32, Float64, Int32, Int64};
    match (a, b) {
        _ if a == b => Some(a),
        (Int32, Int64) | (Int64, Int32) => Some(Int64),
        (Float32 | Float64 | Int32 | Int64, Float32 | Float64 | Int32 | Int64) => Some(Float64),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading() -> Reading {
        Reading { zone: Zone(chrono_tz::Tz::UTC), null: BTreeSet::from(["NA".to_owned()]) }
    }

    fn type_of(cells: &[&str]) -> Option<FieldType> {
        let mut seen = Seen::default();
        cells.iter().for_each(|cell| seen.look(cell, &reading()));
        seen.field_type()
    }

    #[test]
    fn a_column_has_the_type_of_most_of_its_cells() {
        assert_eq!(type_of(&["1", "2", ""]), Some(FieldType::Int64));
        assert_eq!(type_of(&["1", "2.5", "NA"]), Some(FieldType::Float64));
        assert_eq!(type_of(&["1234.0"]), Some(FieldType::Float64));
        assert_eq!(type_of(&["1", "n/a"]), Some(FieldType::Int64));
        assert_eq!(type_of(&["1", "a", "b"]), Some(FieldType::String));
        assert_eq!(type_of(&["007", "013"]), Some(FieldType::String));
        assert_eq!(type_of(&["0", "0.5", "00.5"]), Some(FieldType::Float64));
        assert_eq!(type_of(&["True", "false"]), Some(FieldType::Bool));
        assert_eq!(type_of(&["2016-08-10", "2016-08-10T10:00:00Z"]), Some(FieldType::Timestamp));
        assert_eq!(type_of(&["99999999999999999999"]), Some(FieldType::Float64));
        assert_eq!(type_of(&["", "NA"]), None);
    }

    #[test]
    fn cells_are_read_exactly_or_refused() {
        let read = |text, data_type| reading().cell(text, data_type, true);
        assert_eq!(read(" 1.5 ", FieldType::Float64), Ok(Cell::Float(1.5)));
        assert_eq!(read("1234.0", FieldType::Int64), Ok(Cell::Int(1234)));
        assert_eq!(read("9007199254740993", FieldType::Int64), Ok(Cell::Int(9_007_199_254_740_993)));
        assert_eq!(read(" a ", FieldType::String), Ok(Cell::Text(" a ")));
        assert_eq!(read("20160810", FieldType::Timestamp), Ok(Cell::Time(1_470_787_200_000_000_000)));
        assert_eq!(read("NA", FieldType::String), Ok(Cell::Null));
        assert!(matches!(read("nan", FieldType::Float64), Ok(Cell::Float(v)) if v.is_nan()));
        for (text, data_type) in [
            ("1.5", FieldType::Int64),
            ("1e300", FieldType::Int64),
            ("99999999999999999999", FieldType::Int64),
            ("2147483648", FieldType::Int32),
            ("1e39", FieldType::Float32),
            ("1,000", FieldType::Float64),
            ("12%", FieldType::Float64),
            ("yes", FieldType::Bool),
            ("12", FieldType::Timestamp),
        ] {
            assert!(read(text, data_type).is_err(), "{text} as {data_type}");
        }
    }

    #[test]
    fn a_field_that_may_not_be_null_has_a_finite_value() {
        for text in ["", "NA", "nan", "inf", "-Infinity"] {
            assert!(reading().cell(text, FieldType::Float64, false).is_err(), "{text}");
        }
        assert_eq!(reading().cell("1", FieldType::Float64, false), Ok(Cell::Float(1.0)));
    }
}
