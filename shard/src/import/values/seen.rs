//! What the cells of a column look like, and the type that the column gets. Pure.
//!
//! The type is that of most cells, not the narrowest that holds every cell. Otherwise one `n/a` among a million prices would make
//! text of all prices, without an error, and the strategy that multiplies them would fail a week later. Here the `n/a` is a bad row
//! with a line number. A caller that wants text says so (`types`).
//!
//! A type is chosen only if it keeps the values of the cells. If a column would become text although its cells look like numbers or
//! dates in another notation, it is refused, and the error names the option that reads it.

use trellis_proto::FieldType;

use super::{
    cell::{Example, Reading, boolean_word, infinity, is_nan},
    clock::iso,
    number::{self, Forms, Signs},
    stamps::Dates,
};

/// Words that usually stand for a missing value. They are neither text nor numbers; only `--null` reads them.
const WORDS: [&str; 14] =
    ["null", "none", "na", "n/a", "#n/a", "#na", "<na>", "nil", "missing", "-", "--", "?", ".", "n.a."];

/// Letters of texts that stand for a missing number in a column of numbers: `N/D`, `n.m.`, `no data`. In other columns they are
/// states and tickers.
const STAND_INS: [&str; 8] =
    ["na", "nd", "nm", "null", "nodata", "notavailable", "notapplicable", "notmeaningful"];

/// Most different texts that may stand for missing numbers in one column; a column with more is text.
const STAND_INS_MAX: usize = 3;

/// Most different words that are remembered for the hint.
const WORDS_SHOWN: usize = 4;

/// Cells of one kind.
#[derive(Debug, Clone, Default)]
struct Cells {
    count: u64,
    first: Option<Example>,
}

impl Cells {
    fn take(&mut self, text: &str, line: u64) {
        self.count += 1;
        if self.first.is_none() {
            self.first = Some(Example { text: text.to_owned(), line });
        }
    }

    fn add(&mut self, other: &Self) {
        self.count += other.count;
        if self.first.is_none() {
            self.first.clone_from(&other.first);
        }
    }
}

/// The counts of a column's cells by what they look like.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// The file says that the column is text: it becomes another type only if its cells are clearly no text.
    text_column: bool,
    /// The file says that the column is a number: the notation of its cells means nothing.
    number_column: bool,
    pub(crate) missing: u64,
    ints: u64,
    floats: u64,
    infinite: u64,
    times: u64,
    bools: u64,
    pub(crate) texts: u64,
    /// How many of the numbers are like `007` and `01.10`: codes, not numbers.
    padded: Cells,
    /// How many of the floats are like `12E5`, which may be a code.
    coded: Cells,
    /// How many of the integers are like `+491234567`.
    signed: Cells,
    /// The first different texts, each with its cells.
    first_texts: Vec<(String, u64)>,
    /// There are more different texts than these.
    many_texts: bool,
    /// How many of the texts are like `0x10`.
    hex: u64,
    /// How many of the texts are one number with something beside it, and how many of these numbers have a fraction.
    measures: u64,
    fractional_measures: u64,
    /// How many of the texts begin with a digit and have more digits than letters.
    digital: u64,
    /// How many numbers only the notation reads that the caller gave.
    noted: u64,
    /// The first of these numbers with a sign, and the number in its simplest notation.
    pub(crate) signed_by: Option<(Example, String)>,
    /// Numbers in another notation than the caller gave.
    pub(crate) other: u64,
    pub(crate) other_example: Option<Example>,
    /// The forms of all numbers, also of those in another notation.
    pub(crate) forms: Forms,
    pub(crate) signs: Signs,
    currency: Option<String>,
    pub(crate) currencies: Option<(String, String)>,
    pub(crate) words: Vec<String>,
    word_cells: u64,
    /// Dates in other forms than ISO 8601.
    pub(crate) dates: Dates,
    /// Numbers that are no integer of 64 bits.
    fractions: u64,
    beyond_int32: u64,
    beyond_float32: u64,
    pub(crate) beyond_float64: Option<Example>,
    pub(crate) odd_text: Option<Example>,
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            text_column: false,
            number_column: false,
            missing: 0,
            ints: 0,
            floats: 0,
            infinite: 0,
            times: 0,
            bools: 0,
            texts: 0,
            padded: Cells::default(),
            coded: Cells::default(),
            signed: Cells::default(),
            first_texts: Vec::new(),
            many_texts: false,
            hex: 0,
            measures: 0,
            fractional_measures: 0,
            digital: 0,
            noted: 0,
            signed_by: None,
            other: 0,
            other_example: None,
            forms: Forms::ALL,
            signs: Signs::default(),
            currency: None,
            currencies: None,
            words: Vec::new(),
            word_cells: 0,
            dates: Dates::default(),
            fractions: 0,
            beyond_int32: 0,
            beyond_float32: 0,
            beyond_float64: None,
            odd_text: None,
        }
    }
}

/// The type of a column, or why it has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// No cell has a value.
    Nothing,
    Type(FieldType),
    /// It would become text, or lose values.
    Refused(Trouble),
}

/// The reason why no type keeps the values of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Its numbers are written in another notation.
    Notation,
    /// Its dates are written in another form.
    Dates,
    /// Nothing but words for missing values.
    Words,
    /// `007` beside `1.5`, or `01.10`.
    Padded,
    /// `12E5` alone.
    Coded,
    /// Nothing but `+49`.
    Signed,
    /// `0x10`.
    Hex,
    /// `12.5x`.
    Measures,
}

impl Seen {
    pub(crate) fn of_text_column() -> Self {
        Self { text_column: true, ..Self::default() }
    }

    pub(crate) fn of_number_column() -> Self {
        Self { number_column: true, ..Self::default() }
    }

    pub(crate) fn look(&mut self, text: &str, line: u64, reading: &Reading) {
        let text = text.trim_ascii();
        let example = || Some(Example { text: text.to_owned(), line });
        if reading.is_null(text) || is_nan(text) || text == "NaT" {
            self.missing += 1;
        } else if let Some(written) = reading.notation.read(text) {
            let plain: &str = &written.plain;
            if plain == text && number::is_plain(text) {
                self.forms = self.forms.both(number::forms_of_plain(text));
            } else {
                self.noted += 1;
                if let Some((forms, _)) = number::forms_of(text) {
                    self.forms = self.forms.both(forms);
                }
            }
            self.number(text, plain, line);
            if written.signs.any() && self.signed_by.is_none() {
                self.signed_by = example().map(|example| (example, number::simplest(plain)));
            }
            if let Some(found) = written.currency {
                self.currency(found);
            }
        } else if infinity(text).is_some() {
            self.infinite += 1;
        } else if iso(text).is_some() || reading.clock.forms.iter().any(|form| form.read(text).is_some()) {
            self.times += 1;
        } else if boolean_word(text).is_some() {
            self.bools += 1;
        } else if WORDS.iter().any(|word| text.eq_ignore_ascii_case(word)) {
            self.word_cells += 1;
            if self.words.len() < WORDS_SHOWN && !self.words.iter().any(|known| known == text) {
                self.words.push(text.to_owned());
            }
        } else if let Some((forms, signs)) = number::forms_of(text) {
            self.other += 1;
            self.forms = self.forms.both(forms);
            self.signs = self.signs.and(signs);
            if self.other_example.is_none() {
                self.other_example = example();
            }
        } else if !self.dates.look(text, line) {
            self.texts += 1;
            self.text(text, 1);
            self.hex += u64::from(is_hex(text));
            let fraction = measure(text);
            self.measures += u64::from(fraction.is_some());
            self.fractional_measures += u64::from(fraction == Some(true));
            self.digital += u64::from(is_digital(text));
            if self.odd_text.is_none() {
                self.odd_text = example();
            }
        }
    }

    fn text(&mut self, text: &str, cells: u64) {
        if let Some((_, count)) = self.first_texts.iter_mut().find(|(known, _)| known == text) {
            *count += cells;
        } else if self.first_texts.len() < STAND_INS_MAX {
            self.first_texts.push((text.to_owned(), cells));
        } else {
            self.many_texts = true;
        }
    }

    fn number(&mut self, text: &str, plain: &str, line: u64) {
        let digits = plain.trim_start_matches(['-', '+']);
        let is_int = digits.bytes().all(|b| b.is_ascii_digit()) && plain.parse::<i64>().is_ok();
        self.ints += u64::from(is_int);
        self.floats += u64::from(!is_int);
        if !self.number_column {
            let whole = digits.split(['.', 'e', 'E']).next().unwrap_or_default();
            if whole.len() > 1 && whole.starts_with('0') {
                self.padded.take(text, line);
            }
            let code = |b: u8| b.is_ascii_digit() || b == b'e' || b == b'E';
            if !is_int && text.bytes().all(code) && text.contains(['e', 'E']) {
                self.coded.take(text, line);
            }
            if is_int && text.starts_with('+') {
                self.signed.take(text, line);
            }
        }
        match number::whole(plain) {
            Some(Ok(value)) => self.beyond_int32 += u64::from(i32::try_from(value).is_err()),
            Some(Err(_)) | None => self.fractions += 1,
        }
        self.beyond_float32 += u64::from(!number::float32(plain).is_some_and(|(_, same)| same));
        if self.beyond_float64.is_none() && !number::float64(plain).is_some_and(|(_, same)| same) {
            self.beyond_float64 = Some(Example { text: text.to_owned(), line });
        }
    }

    fn currency(&mut self, found: &str) {
        match &self.currency {
            None => self.currency = Some(found.to_owned()),
            Some(known) if known != found && self.currencies.is_none() => {
                self.currencies = Some((known.clone(), found.to_owned()));
            }
            Some(_) => {}
        }
    }

    /// Adds the counts of the same column in another file.
    pub(crate) fn add(&mut self, other: &Self) {
        self.text_column |= other.text_column;
        self.missing += other.missing;
        self.ints += other.ints;
        self.floats += other.floats;
        self.infinite += other.infinite;
        self.times += other.times;
        self.bools += other.bools;
        self.texts += other.texts;
        self.padded.add(&other.padded);
        self.coded.add(&other.coded);
        self.signed.add(&other.signed);
        for (text, cells) in &other.first_texts {
            self.text(text, *cells);
        }
        self.many_texts |= other.many_texts;
        self.hex += other.hex;
        self.measures += other.measures;
        self.fractional_measures += other.fractional_measures;
        self.digital += other.digital;
        self.noted += other.noted;
        self.other += other.other;
        self.forms = self.forms.both(other.forms);
        self.signs = self.signs.and(other.signs);
        self.word_cells += other.word_cells;
        self.fractions += other.fractions;
        self.beyond_int32 += other.beyond_int32;
        self.beyond_float32 += other.beyond_float32;
        for word in &other.words {
            if self.words.len() < WORDS_SHOWN && !self.words.contains(word) {
                self.words.push(word.clone());
            }
        }
        if let Some(found) = &other.currency {
            self.currency(found);
        }
        for (mine, theirs) in [
            (&mut self.other_example, &other.other_example),
            (&mut self.beyond_float64, &other.beyond_float64),
            (&mut self.odd_text, &other.odd_text),
        ] {
            if mine.is_none() {
                mine.clone_from(theirs);
            }
        }
        if self.signed_by.is_none() {
            self.signed_by.clone_from(&other.signed_by);
        }
        if self.currencies.is_none() {
            self.currencies.clone_from(&other.currencies);
        }
        self.dates.add(&other.dates);
    }

    fn numbers(&self) -> u64 {
        let numbers = self.ints + self.floats + self.other;
        // `inf` may be a word. In a column of numbers it is a number.
        if numbers > 0 { numbers + self.infinite } else { 0 }
    }

    /// Whether most of its cells are numbers, in this notation or another.
    pub(crate) fn is_numeric(&self) -> bool {
        let numbers = self.numbers();
        numbers > 0
            && numbers >= self.times + self.dates.cells
            && numbers >= self.bools
            && (numbers >= self.texts || self.has_stand_ins())
    }

    /// Whether its texts stand for missing numbers, as far as one can see: there are numbers, and few different texts, each
    /// beginning with a sign (`#N/A N/A`, `(null)`), one of [`STAND_INS`], or repeated among as many numbers. `A`, `A`, `3` are
    /// ratings.
    fn has_stand_ins(&self) -> bool {
        let many = self.numbers() >= self.texts;
        let word = |(text, count): &(String, u64)| {
            let letters: String =
                text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect();
            (many && *count > 1)
                || !text.starts_with(char::is_alphanumeric)
                || STAND_INS.contains(&letters.as_str())
        };
        self.numbers() > 0 && !self.many_texts && self.texts > 0 && self.first_texts.iter().all(word)
    }

    /// How many cells of a CSV column are numbers, if some are.
    pub(crate) fn numbers_among_texts(&self) -> Option<u64> {
        Some(self.numbers()).filter(|&numbers| numbers > 0 && self.texts > 0 && !self.text_column)
    }

    /// The words that may stand for a missing value.
    pub(crate) fn missing_words(&self) -> Vec<String> {
        let texts = self.first_texts.iter().filter(|_| self.has_stand_ins()).map(|(text, _)| text);
        self.words.iter().chain(texts).cloned().collect()
    }

    /// Whether some cells are true or false.
    pub(crate) fn has_bools(&self) -> bool {
        self.bools > 0
    }

    /// Whether some cells are numbers.
    pub(crate) fn has_numbers(&self) -> bool {
        self.numbers() > 0
    }

    /// The cell that is a code and no number, if there is one.
    pub(crate) fn code(&self, trouble: Trouble) -> Option<&Example> {
        match trouble {
            Trouble::Padded => self.padded.first.as_ref(),
            Trouble::Coded => self.coded.first.as_ref(),
            Trouble::Signed => self.signed.first.as_ref(),
            Trouble::Notation | Trouble::Dates | Trouble::Words | Trouble::Hex | Trouble::Measures => None,
        }
    }

    /// Why its numbers, written back, would not be its cells: they may be codes. A float may be written `1e5`.
    pub(crate) fn codes(&self, float: bool) -> Option<Trouble> {
        if self.padded.count > 0 {
            Some(Trouble::Padded)
        } else if !float && self.coded.count > 0 && self.coded.count == self.floats {
            Some(Trouble::Coded)
        } else if !float && self.signed.count > 0 && self.signed.count == self.ints && self.floats == 0 {
            Some(Trouble::Signed)
        } else {
            None
        }
    }

    /// Whether it is text whose cells are plain numbers or times, which its file says is text.
    pub(crate) fn is_text_of(&self) -> Option<FieldType> {
        if !self.text_column || self.texts + self.bools + self.other + self.word_cells + self.dates.cells > 0
        {
            return None;
        }
        match (self.numbers(), self.times) {
            (0, 0) => None,
            (_, 0) if self.codes(false).is_some() => None,
            (_, 0) if self.floats + self.infinite > 0 => Some(FieldType::Float64),
            (_, 0) => Some(FieldType::Int64),
            (0, _) => Some(FieldType::Timestamp),
            _ => None,
        }
    }

    /// Whether it is text whose cells are dates in other forms than ISO 8601.
    pub(crate) fn is_text_of_dates(&self) -> bool {
        self.text_column
            && self.dates.cells > 0
            && self.dates.cells >= self.texts + self.numbers() + self.bools
    }

    /// Whether all its numbers may be read with points between thousands, and some have one: `1.234`.
    pub(crate) fn may_have_points_between_thousands(&self) -> bool {
        self.floats > 0 && self.forms.has_points_between_thousands()
    }

    /// Whether the column is text because its integers have leading zeros.
    pub(crate) fn is_codes(&self) -> bool {
        self.padded.count > 0 && self.is_numeric()
    }

    /// The type that most cells have, if it keeps their values.
    pub(crate) fn verdict(&self) -> Verdict {
        let numbers = self.numbers();
        let times = self.times + self.dates.cells;
        let texts = match numbers {
            0 => self.texts + self.infinite,
            _ if self.has_stand_ins() && !self.text_column => 0,
            _ => self.texts,
        };
        let most = numbers.max(times).max(self.bools).max(texts);
        if most == 0 {
            return match (self.word_cells, self.text_column) {
                (0, _) => Verdict::Nothing,
                (_, false) => Verdict::Refused(Trouble::Words),
                (_, true) => Verdict::Type(FieldType::String),
            };
        }
        if numbers == most {
            return self.number_verdict();
        }
        if self.text_column {
            return Verdict::Type(FieldType::String);
        }
        if times == most {
            let refused = self.dates.cells >= self.times && self.dates.cells > 0;
            return if refused {
                Verdict::Refused(Trouble::Dates)
            } else {
                Verdict::Type(FieldType::Timestamp)
            };
        }
        if self.bools == most {
            return Verdict::Type(FieldType::Bool);
        }
        if self.hex > 0 && self.hex == self.texts {
            return Verdict::Refused(Trouble::Hex);
        }
        if self.fractional_measures > 0 && self.measures == self.texts {
            return Verdict::Refused(Trouble::Measures);
        }
        Verdict::Type(FieldType::String)
    }

    /// A text, if all begin with digits: numbers that nothing reads, or codes.
    pub(crate) fn is_digits(&self) -> Option<&Example> {
        self.odd_text.as_ref().filter(|_| self.texts > 0 && self.digital == self.texts)
    }

    fn number_verdict(&self) -> Verdict {
        let plain = self.ints + self.floats;
        if self.other > 0 && (self.other >= plain || self.text_column) {
            return Verdict::Refused(Trouble::Notation);
        }
        if self.text_column && self.word_cells > 0 {
            return Verdict::Refused(Trouble::Words);
        }
        if self.text_column && self.noted == 0 {
            return Verdict::Type(FieldType::String);
        }
        match self.codes(false) {
            Some(Trouble::Padded) if self.floats + self.noted == 0 => {
                return Verdict::Type(FieldType::String);
            }
            Some(trouble) => return Verdict::Refused(trouble),
            None => {}
        }
        Verdict::Type(self.number_type())
    }

    /// The type of its numbers.
    pub(crate) fn number_type(&self) -> FieldType {
        if self.floats + self.infinite > 0 { FieldType::Float64 } else { FieldType::Int64 }
    }

    /// Whether some cells are times.
    pub(crate) fn has_times(&self) -> bool {
        self.times > 0
    }

    /// The type to which `have` is widened to hold the cells too; `have` itself if it holds them, or if no wider type does.
    pub(crate) fn widen(&self, have: FieldType) -> FieldType {
        let floats = self.fractions + self.infinite > 0;
        match have {
            _ if self.numbers() == 0 => have,
            FieldType::Int64 | FieldType::Int32 if floats => FieldType::Float64,
            FieldType::Int32 if self.beyond_int32 > 0 => FieldType::Int64,
            FieldType::Float32 if self.beyond_float32 > 0 => FieldType::Float64,
            FieldType::Float64
            | FieldType::Int64
            | FieldType::Int32
            | FieldType::Float32
            | FieldType::Bool
            | FieldType::String
            | FieldType::Timestamp => have,
        }
    }
}

/// Whether a text is one number with a sign or a word beside it (`12.5x`, `<5`, `1.2 million`), and whether that has a fraction.
fn measure(text: &str) -> Option<bool> {
    const BESIDE_MAX: usize = 8;
    let start = text.find(|c: char| c.is_ascii_digit())?;
    let end = text.rfind(|c: char| c.is_ascii_digit())? + 1;
    let (before, digits, after) = (&text[..start], &text[start..end], &text[end..]);
    let short = before.chars().count() + after.chars().count() <= BESIDE_MAX;
    let plain = digits.bytes().all(|b| b.is_ascii_digit() || b"., '".contains(&b))
        && !before.ends_with(char::is_alphabetic);
    let mut parts = digits.split(['.', ',']);
    let fraction = (parts.next(), parts.next(), parts.next());
    (short && plain && digits.matches(['.', ',', ' ', '\'']).count() < 4)
        .then_some(matches!(fraction, (Some(_), Some(_), None)))
}

/// Whether a text begins with a digit, a sign aside, and has more digits than letters.
fn is_digital(text: &str) -> bool {
    let digits = text.bytes().filter(u8::is_ascii_digit).count();
    let letters = text.chars().filter(|c| c.is_alphabetic()).count();
    text.trim_start_matches(|c: char| !c.is_alphanumeric()).starts_with(|c: char| c.is_ascii_digit())
        && digits > letters
}

/// Whether a text looks like `0x1f` and has at most as many digits as an integer. An address or a hash has more.
fn is_hex(text: &str) -> bool {
    let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    digits.is_some_and(|d| (1..=16).contains(&d.len()) && d.bytes().all(|b| b.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::import::values::{Clock, Notation};

    fn seen(cells: &[&str], mut seen: Seen) -> Seen {
        let clock = Clock {
            zone: None,
            unit: None,
            day: None,
            forms: std::sync::Arc::default(),
            dates: None,
            moments: false,
        };
        let null = BTreeSet::from(["NA".to_owned()]);
        let reading = Reading { clock, null, notation: Notation::default() };
        cells.iter().zip(2..).for_each(|(cell, line)| seen.look(cell, line, &reading));
        seen
    }

    fn verdict(cells: &[&str]) -> Verdict {
        seen(cells, Seen::default()).verdict()
    }

    #[test]
    fn a_column_has_the_type_of_most_of_its_cells() {
        for (cells, data_type) in [
            (&["1", "2", ""][..], FieldType::Int64),
            (&["1", "2.5", "NA"], FieldType::Float64),
            (&["9007199254740993", "NaN", "nan"], FieldType::Int64),
            (&["1", "inf"], FieldType::Float64),
            (&["1234.0"], FieldType::Float64),
            (&["1e5", "1.5"], FieldType::Float64),
            (&["1e+05", "2"], FieldType::Float64),
            (&["1", "n/a"], FieldType::Int64),
            (&["1", "n/a", "n/a", "null"], FieldType::Int64),
            (&["1", "2", "$3"], FieldType::Int64),
            (&["1", "a", "b"], FieldType::String),
            (&["Infinity", "Nan", "Apple"], FieldType::String),
            (&["Infinity"], FieldType::String),
            (&["007", "013"], FieldType::String),
            (&["yes", "no"], FieldType::String),
            (&["T", "F"], FieldType::String),
            (&["1", "0"], FieldType::Int64),
            (&["3M", "Apple", "Ford"], FieldType::String),
            (&["0", "0.5", ".5", "-0.5", "0e5"], FieldType::Float64),
            (&["+1", "-2", "0"], FieldType::Int64),
            (&["+1.5", "+2"], FieldType::Float64),
            (&["1.5", "#N/A N/A", "#N/A N/A", "(null)"], FieldType::Float64),
            (&["1", "no data", "no data"], FieldType::Int64),
            (&["1", "2", "late", "late"], FieldType::Int64),
            (&["1", "A", "A", "B"], FieldType::String),
            (&["3", "A", "A"], FieldType::String),
            (&["2", "ok", "ok", "late", "late"], FieldType::String),
            (&["3", "A", "B"], FieldType::String),
            (&["1", "A", "A", "B", "B", "C", "C", "D", "D"], FieldType::String),
            (&["TRUE", "FALSE", "0"], FieldType::Bool),
            (&["True", "false"], FieldType::Bool),
            (&["2016-08-10", "2016-08-10T10:00:00Z"], FieldType::Timestamp),
            (&["20160810", "20160811"], FieldType::Int64),
            (&["99999999999999999999"], FieldType::Float64),
        ] {
            assert_eq!(verdict(cells), Verdict::Type(data_type), "{cells:?}");
        }
        assert_eq!(verdict(&["", "NA", "NaN"]), Verdict::Nothing);
    }

    #[test]
    fn a_column_in_another_notation_is_never_text() {
        for cells in [
            &["1,050.5", "1,234,567"][..],
            &["10,5"],
            &["1.234,56"],
            &["$10"],
            &["10 €", "11 €"],
            &["12%"],
            &["1.2K", "3M", "4B"],
            &["(12.5)", "1"],
            &["12-"],
            &["1'234"],
            &["1 234"],
            &["1_000"],
            &["1,000", "N/A", "N/A", "N/A"],
        ] {
            assert_eq!(verdict(cells), Verdict::Refused(Trouble::Notation), "{cells:?}");
            let text = seen(cells, Seen::of_text_column());
            assert_eq!(text.verdict(), Verdict::Refused(Trouble::Notation), "{cells:?}");
        }
        assert_eq!(verdict(&["null", "N/A"]), Verdict::Refused(Trouble::Words));
        assert_eq!(verdict(&["01/02/2016", "n/a"]), Verdict::Refused(Trouble::Dates));
        for cells in [&["007", "1.5"][..], &["01.10", "10.10"], &["00123.5"], &["037833E10", "594918104"]] {
            assert_eq!(verdict(cells), Verdict::Refused(Trouble::Padded), "{cells:?}");
        }
        assert_eq!(verdict(&["12E5", "77"]), Verdict::Refused(Trouble::Coded));
        assert_eq!(verdict(&["+491234567", "+491234568"]), Verdict::Refused(Trouble::Signed));
        assert_eq!(verdict(&["0x10", "0xff"]), Verdict::Refused(Trouble::Hex));
        for cells in
            [&["12.5x", "3x"][..], &["1.2 million"], &["~10", "<0.5"], &["10.5*"], &["USX 1.5"], &["1,2 Mio"]]
        {
            assert_eq!(verdict(cells), Verdict::Refused(Trouble::Measures), "{cells:?}");
        }
        for cells in [
            &["10Y", "2Y"][..],
            &["v1.2"],
            &["A1", "B2"],
            &["12.5x", "other"],
            &["1.2.3"],
            &["2016Q1"],
            &["101-16"],
        ] {
            assert_eq!(verdict(cells), Verdict::Type(FieldType::String), "{cells:?}");
        }
        assert!(seen(&["101-16", "99-08+"], Seen::default()).is_digits().is_some());
        assert!(seen(&["A1", "2"], Seen::default()).is_digits().is_none());
    }

    #[test]
    fn text_of_a_typed_file_stays_text() {
        for (cells, of) in [
            (&["1.5", "2"][..], Some(FieldType::Float64)),
            (&["037833", "1"], None),
            (&["1", "2"], Some(FieldType::Int64)),
            (&["2016-08-10"], Some(FieldType::Timestamp)),
            (&["a"], None),
        ] {
            let seen = seen(cells, Seen::of_text_column());
            assert_eq!(seen.verdict(), Verdict::Type(FieldType::String), "{cells:?}");
            assert_eq!(seen.is_text_of(), of, "{cells:?}");
        }
    }

    #[test]
    fn a_field_widens_only_for_cells_that_it_cannot_hold() {
        use FieldType::{Float32, Float64, Int32, Int64, String};
        for (have, cells, becomes) in [
            (Int64, &["1", "2.0", "NaN"][..], Int64),
            (Int64, &["1", "2.5"], Float64),
            (Int64, &["inf", "1"], Float64),
            (Int32, &["1"], Int32),
            (Int32, &["3000000000"], Int64),
            (Float32, &["0.1", "16777216"], Float32),
            (Float32, &["0.123456789"], Float64),
            (Float64, &["1"], Float64),
            (Int64, &["a"], Int64),
            (String, &["1.5"], String),
        ] {
            assert_eq!(seen(cells, Seen::default()).widen(have), becomes, "{have} {cells:?}");
        }
    }
}
