//! Numbers as people write them: marks between thousands, a decimal comma, signs of currency, percent, `1.2M`, `(12.5)`.
//! Pure. A notation is read only if the caller names it. For hints this file finds the notations that a cell needs.
//!
//! A number is brought to one plain form (`-1234.5e3`) as text, never through a float, so that nothing is rounded. From that text
//! follows whether a float holds the number.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// A sign around a number that is read where the caller says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NumberSign {
    /// `$10`, `10 €`, `USD 10`: the number, without its currency. One currency in a column.
    Currency,
    /// `12%`: 0.12.
    Percent,
    /// `1.2K`, `3M`, `2B`, `1T`: thousands, millions, (American) billions and trillions.
    Suffix,
    /// `(12.5)`: -12.5.
    Parentheses,
    /// `12-`: -12.
    TrailingMinus,
}

impl NumberSign {
    /// Every sign, with the name that people write.
    pub const ALL: [(Self, &'static str); 5] = [
        (Self::Currency, "currency"),
        (Self::Percent, "percent"),
        (Self::Suffix, "suffix"),
        (Self::Parentheses, "parentheses"),
        (Self::TrailingMinus, "trailing-minus"),
    ];
}

/// A set of [`NumberSign`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Signs(u8);

impl Signs {
    const ALL: Self = Self(u8::MAX);

    pub(crate) fn of(signs: &[NumberSign]) -> Self {
        signs.iter().fold(Self::default(), |set, &sign| set.with(sign))
    }

    fn with(self, sign: NumberSign) -> Self {
        Self(self.0 | 1 << sign as u8)
    }

    fn has(self, sign: NumberSign) -> bool {
        self.0 & (1 << sign as u8) != 0
    }

    pub(crate) fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(crate) fn any(self) -> bool {
        self.0 != 0
    }

    /// The signs as the option takes them: `currency,percent`.
    pub(crate) fn names(self) -> String {
        let named = NumberSign::ALL.iter().filter(|(sign, _)| self.has(*sign));
        named.map(|(_, name)| *name).collect::<Vec<_>>().join(",")
    }
}

/// What stands before a fraction, and between thousands. Any space is `' '`, any apostrophe `'\''`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Marks {
    pub(crate) decimal: char,
    pub(crate) thousands: Option<char>,
}

/// The marks that hints know, the plainer first.
const KNOWN: [Marks; 10] = [
    Marks { decimal: '.', thousands: None },
    Marks { decimal: '.', thousands: Some(',') },
    Marks { decimal: ',', thousands: None },
    Marks { decimal: ',', thousands: Some('.') },
    Marks { decimal: '.', thousands: Some('\'') },
    Marks { decimal: ',', thousands: Some('\'') },
    Marks { decimal: '.', thousands: Some(' ') },
    Marks { decimal: ',', thousands: Some(' ') },
    Marks { decimal: '.', thousands: Some('_') },
    Marks { decimal: ',', thousands: Some('_') },
];

/// The notations of [`KNOWN`] that read some cells, by their positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Forms(u16);

impl Forms {
    pub(crate) const ALL: Self = Self((1 << KNOWN.len()) - 1);

    pub(crate) fn both(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    pub(crate) fn has_points_between_thousands(self) -> bool {
        let is = |marks: &Marks| marks.thousands == Some('.');
        KNOWN.iter().position(is).is_some_and(|i| self.0 & (1 << i) != 0)
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The plainest, and the plainest of those that read `example` as another number.
    pub(crate) fn choices(self, example: &str) -> Vec<(Marks, String)> {
        let mut found: Vec<(Marks, String)> = Vec::new();
        for (_, marks) in KNOWN.iter().enumerate().filter(|(i, _)| self.0 & (1 << i) != 0) {
            let Some(written) = (Notation { marks: *marks, signs: Signs::ALL }).read(example) else {
                continue;
            };
            let value = simplest(&written.plain);
            if !found.iter().any(|(_, known)| *known == value) {
                found.push((*marks, value));
            }
        }
        found
    }
}

/// How numbers are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Notation {
    pub(crate) marks: Marks,
    pub(crate) signs: Signs,
}

impl Default for Notation {
    fn default() -> Self {
        Self { marks: KNOWN[0], signs: Signs::default() }
    }
}

/// A number in its plain form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Written<'a> {
    /// `[+-]digits[.digits][e[+-]digits]`
    pub(crate) plain: Cow<'a, str>,
    /// Signs that stood around it.
    pub(crate) signs: Signs,
    pub(crate) currency: Option<&'a str>,
}

/// The longer first: `A$` ends `CA$` too.
const CODES: &[&str] = &[
    "US$", "CA$", "AU$", "HK$", "NZ$", "NT$", "MX$", "C$", "A$", "S$", "R$", "Rs.", "Rs", "kr", "zł", "Kč",
    "Ft", "RUB", "TRY", "GBX", "THB", "ILS", "TWD", "IDR", "MYR", "PHP", "AED", "SAR", "CLP", "COP", "ARS",
    "EGP", "VND", "KWD", "QAR", "RON", "ISK", "NGN", "USD", "EUR", "GBP", "JPY", "CHF", "CAD", "AUD", "NZD",
    "CNY", "INR", "SEK", "NOK", "DKK", "PLN", "CZK", "HUF", "BRL", "MXN", "ZAR", "HKD", "SGD", "KRW",
];

/// Not `¢`, which would be a hundredth.
fn currency_at(text: &str, start: bool) -> Option<(&str, &str)> {
    let found = CODES
        .iter()
        .find(|code| if start { text.strip_prefix(**code) } else { text.strip_suffix(**code) }.is_some());
    let length = match found {
        Some(code) => code.len(),
        None => {
            let c = if start { text.chars().next() } else { text.chars().next_back() }?;
            if !matches!(c, '$' | '£' | '¥' | '\u{20a0}'..='\u{20cf}') {
                return None;
            }
            c.len_utf8()
        }
    };
    Some(if start {
        (&text[..length], trim(&text[length..]))
    } else {
        (&text[text.len() - length..], trim(&text[..text.len() - length]))
    })
}

/// The hyphen, and the signs that stand for it in print.
const MINUS: [char; 5] = ['-', '\u{2212}', '\u{2012}', '\u{2013}', '\u{ff0d}'];

fn space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\u{a0}' | '\u{2007}' | '\u{2009}' | '\u{202f}')
}

fn trim(text: &str) -> &str {
    text.trim_matches(space)
}

/// A mark as it is compared: all spaces are one, all apostrophes are one.
pub(crate) fn mark(c: char) -> char {
    match c {
        '\u{a0}' | '\u{2007}' | '\u{2009}' | '\u{202f}' => ' ',
        '\u{2019}' => '\'',
        other => other,
    }
}

/// Whether the text is `[+-]digits[.digits][e[+-]digits]`. `5.` and `.5` are plain, too, because many tools write them.
pub(crate) fn is_plain(text: &str) -> bool {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (mantissa, exponent) = match unsigned.find(['e', 'E']) {
        Some(at) => (&unsigned[..at], Some(&unsigned[at + 1..])),
        None => (unsigned, None),
    };
    let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    digits(whole)
        && digits(fraction)
        && whole.len() + fraction.len() > 0
        && exponent.is_none_or(|e| {
            let e = e.strip_prefix(['+', '-']).unwrap_or(e);
            !e.is_empty() && e.len() <= 4 && digits(e)
        })
}

impl Notation {
    /// The number that `text` is, spaces around it aside.
    pub(crate) fn read<'a>(&self, text: &'a str) -> Option<Written<'a>> {
        let text = trim(text);
        let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
        let bare = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        if bare || (self.marks.decimal == '.' && is_plain(text)) {
            return Some(Written { plain: Cow::Borrowed(text), signs: Signs::default(), currency: None });
        }
        self.decorated(text)
    }

    fn decorated<'a>(&self, text: &'a str) -> Option<Written<'a>> {
        let (mut rest, mut used, mut currency, mut minus, mut signed) =
            (text, Signs::default(), None, false, false);
        let mut sign = |rest: &mut &'a str, minus: &mut bool| {
            if signed {
                return;
            }
            if let Some(after) = rest.strip_prefix(MINUS) {
                (*rest, *minus, signed) = (trim(after), true, true);
            } else if let Some(after) = rest.strip_prefix('+') {
                (*rest, signed) = (trim(after), true);
            }
        };
        if self.signs.has(NumberSign::Parentheses)
            && let Some(inside) = rest.strip_prefix('(').and_then(|r| r.strip_suffix(')'))
        {
            (rest, minus) = (trim(inside), true);
            used = used.with(NumberSign::Parentheses);
        } else {
            sign(&mut rest, &mut minus);
        }
        if self.signs.has(NumberSign::Currency)
            && let Some((found, after)) = currency_at(rest, true)
        {
            (currency, rest) = (Some(found), after);
            if !minus {
                sign(&mut rest, &mut minus);
            }
        }
        if self.signs.has(NumberSign::TrailingMinus)
            && !minus
            && let Some(before) = rest.strip_suffix('-')
        {
            (rest, minus) = (trim(before), true);
            used = used.with(NumberSign::TrailingMinus);
        }
        if self.signs.has(NumberSign::Currency)
            && currency.is_none()
            && let Some((found, before)) = currency_at(rest, false)
        {
            (currency, rest) = (Some(found), before);
        }
        if currency.is_some() {
            used = used.with(NumberSign::Currency);
        }
        let mut shift = 0;
        if self.signs.has(NumberSign::Percent)
            && let Some(before) = rest.strip_suffix('%')
        {
            (rest, shift) = (trim(before), -2);
            used = used.with(NumberSign::Percent);
        } else if self.signs.has(NumberSign::Suffix)
            && let Some((before, zeros)) = suffix(rest)
        {
            (rest, shift) = (before, zeros);
            used = used.with(NumberSign::Suffix);
        }
        let mut plain = self.body(rest, shift)?;
        if minus {
            plain.insert(0, '-');
        }
        Some(Written { plain: Cow::Owned(plain), signs: used, currency })
    }

    /// Digits with marks, and an exponent, as plain text times a power of ten.
    fn body(&self, text: &str, shift: i32) -> Option<String> {
        let (mantissa, exponent) = match text.find(['e', 'E']) {
            Some(at) => {
                let exponent = text[at + 1..].parse::<i32>().ok().filter(|e| e.abs() < 10_000)?;
                (&text[..at], exponent)
            }
            None => (text, 0),
        };
        let (whole, fraction) = match mantissa.split_once(self.marks.decimal) {
            Some((whole, fraction)) => (whole, fraction),
            None => (mantissa, ""),
        };
        let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
        let mut plain = if digits(whole) { whole.to_owned() } else { ungroup(whole, self.marks.thousands?)? };
        if !digits(fraction) || plain.len() + fraction.len() == 0 {
            return None;
        }
        if mantissa.len() > whole.len() {
            plain.push('.');
            plain.push_str(fraction);
        }
        let exponent = exponent + shift;
        if exponent != 0 {
            plain.push_str(&format!("e{exponent}"));
        }
        Some(plain)
    }
}

fn suffix(text: &str) -> Option<(&str, i32)> {
    const SUFFIXES: [(&str, i32); 8] =
        [("bn", 9), ("mn", 6), ("tn", 12), ("mm", 6), ("k", 3), ("m", 6), ("b", 9), ("t", 12)];
    SUFFIXES.iter().find_map(|(name, zeros)| {
        let at = text.len().checked_sub(name.len())?;
        let (before, end) = (text.get(..at)?, text.get(at..)?);
        end.eq_ignore_ascii_case(name).then(|| (trim(before), *zeros))
    })
}

/// `1,234,567` without its marks; also `12,34,567`, as in India. Groups of other lengths are no thousands.
fn ungroup(text: &str, thousands: char) -> Option<String> {
    let groups: Vec<&str> = text.split(|c| mark(c) == thousands).collect();
    let (first, rest) = groups.split_first()?;
    let (last, middle) = rest.split_last()?;
    let digits = |group: &&str| group.bytes().all(|b| b.is_ascii_digit());
    let by = |length: usize| middle.iter().all(|g| g.len() == length) && (1..=length).contains(&first.len());
    let sound = groups.iter().all(digits) && last.len() == 3 && (by(3) || by(2)) && !first.starts_with('0');
    sound.then(|| groups.concat())
}

/// Which marks read `text` as a number, whatever signs are around it, and which signs those are.
pub(crate) fn forms_of(text: &str) -> Option<(Forms, Signs)> {
    let (mut forms, mut signs) = (0, Signs::default());
    for (i, marks) in KNOWN.iter().enumerate() {
        if let Some(written) = (Notation { marks: *marks, signs: Signs::ALL }).read(text) {
            forms |= 1 << i;
            signs = signs.and(written.signs);
        }
    }
    (forms != 0).then_some((Forms(forms), signs))
}

/// Like [`forms_of`] for a number in the plain form, which most cells are.
pub(crate) fn forms_of_plain(text: &str) -> Forms {
    let with = |decimal: char| {
        let of = KNOWN.iter().enumerate().filter(|(_, marks)| marks.decimal == decimal);
        Forms(of.fold(0, |forms, (i, _)| forms | 1 << i))
    };
    match (text.contains(['e', 'E']), text.split_once('.')) {
        (false, None) => Forms::ALL,
        // no group between thousands
        (false, Some((_, fraction))) if fraction.len() != 3 => with('.'),
        _ => forms_of(text).map_or(Forms::ALL, |(forms, _)| forms),
    }
}

/// The reason for an integer that no type holds.
pub(crate) const BEYOND: &str = "beyond the integers of 64 bits";

/// The significant digits of a plain number, and the power of ten of the first. No digits: zero.
fn significant(plain: &str) -> (String, i64) {
    let unsigned = plain.trim_start_matches(['+', '-']);
    let (mantissa, exponent) = match unsigned.find(['e', 'E']) {
        Some(at) => (&unsigned[..at], unsigned[at + 1..].parse().unwrap_or(0_i64)),
        None => (unsigned, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all = format!("{whole}{fraction}");
    let zeros = all.len() - all.trim_start_matches('0').len();
    let first = exponent + whole.len() as i64 - 1 - zeros as i64;
    (all.trim_matches('0').to_owned(), first)
}

/// The whole number that a plain number is, however it is written: `1234.0`, `1.2e3`. `None`: it has a fraction.
pub(crate) fn whole(plain: &str) -> Option<Result<i64, &'static str>> {
    if let Ok(value) = plain.parse::<i64>() {
        return Some(Ok(value));
    }
    let fraction = plain.split_once('.').map_or("", |(_, fraction)| fraction);
    if fraction.bytes().any(|b| matches!(b, b'1'..=b'9')) && !plain.contains(['e', 'E']) {
        return None;
    }
    let (digits, first) = significant(plain);
    if digits.is_empty() {
        return Some(Ok(0));
    }
    if first < digits.len() as i64 - 1 {
        return None;
    }
    if first > 18 {
        return Some(Err(BEYOND));
    }
    let zeros = "0".repeat((first + 1) as usize - digits.len());
    let minus = if plain.starts_with('-') { "-" } else { "" };
    Some(format!("{minus}{digits}{zeros}").parse().map_err(|_| BEYOND))
}

/// The float, and whether it says the same: written with as many digits, it is the same number.
pub(crate) fn float64(plain: &str) -> Option<(f64, bool)> {
    // any number within these bounds with so many digits has its own float64
    const DIGITS: usize = 15;
    const POWERS: std::ops::Range<i64> = -300..300;
    let value: f64 = plain.parse().ok()?;
    if plain.len() <= DIGITS && !plain.contains(['e', 'E']) {
        return Some((value, true));
    }
    let (digits, first) = significant(plain);
    let sure = digits.len() <= DIGITS && POWERS.contains(&first);
    Some((
        value,
        sure || says(
            &digits,
            first,
            value.is_finite(),
            |n| format!("{:.n$e}", value.abs()),
            || format!("{:e}", value.abs()),
        ),
    ))
}

/// Like [`float64`], but of 32 bits.
pub(crate) fn float32(plain: &str) -> Option<(f32, bool)> {
    // as of 64 bits
    const DIGITS: usize = 6;
    let value: f32 = plain.parse().ok()?;
    if plain.len() <= DIGITS && !plain.contains(['e', 'E']) {
        return Some((value, true));
    }
    let (digits, first) = significant(plain);
    Some((
        value,
        says(
            &digits,
            first,
            value.is_finite(),
            |n| format!("{:.n$e}", value.abs()),
            || format!("{:e}", value.abs()),
        ),
    ))
}

/// Whether a float is the number of these significant digits: rounded to as many, or in its shortest form.
/// Both are asked: where the float lies exactly between two such numbers, rounding takes the even one and the shortest form
/// may take the other.
fn says(
    digits: &str,
    first: i64,
    finite: bool,
    rounded: impl Fn(usize) -> String,
    shortest: impl Fn() -> String,
) -> bool {
    // no float has more significant digits than this
    const DIGITS_MAX: usize = 770;
    if digits.is_empty() {
        return true;
    }
    if !finite || digits.len() > DIGITS_MAX {
        return false;
    }
    let same = |written: &str| significant(written) == (digits.to_owned(), first);
    same(&rounded(digits.len() - 1)) || same(&shortest())
}

/// A plain number as a person would write it, for hints.
pub(crate) fn simplest(plain: &str) -> String {
    match (whole(plain), float64(plain)) {
        (Some(Ok(value)), _) => value.to_string(),
        (_, Some((value, _))) => value.to_string(),
        _ => plain.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn notation(decimal: char, thousands: Option<char>, signs: Signs) -> Notation {
        Notation { marks: Marks { decimal, thousands }, signs }
    }

    fn read(notation: Notation, text: &str) -> Option<String> {
        notation.read(text).map(|w| simplest(&w.plain))
    }

    #[test]
    fn marks_are_read_as_said_and_not_otherwise() {
        let english = notation('.', Some(','), Signs::default());
        let german = notation(',', Some('.'), Signs::default());
        for (notation, text, value) in [
            (english, "1,234,567", Some("1234567")),
            (english, "1,050.5", Some("1050.5")),
            (english, "-12,34,567", Some("-1234567")),
            (english, "1234.5", Some("1234.5")),
            (english, "10,5", None),
            (english, "1,23,4", None),
            (english, "0,123", None),
            (english, ",123", None),
            (german, "1.234,56", Some("1234.56")),
            (german, "10,5", Some("10.5")),
            (german, "1.234", Some("1234")),
            (german, "10.5", None),
            (notation('.', Some('\''), Signs::default()), "1’234.5", Some("1234.5")),
            (notation(',', Some(' '), Signs::default()), "1\u{202f}234,5", Some("1234.5")),
            (Notation::default(), "1,234", None),
            (Notation::default(), "1_000", None),
            (Notation::default(), "0x10", None),
            (Notation::default(), "inf", None),
            (Notation::default(), "\u{2212}5", Some("-5")),
        ] {
            assert_eq!(read(notation, text).as_deref(), value, "{text}");
        }
    }

    #[test]
    fn signs_are_read_as_said_and_not_otherwise() {
        for (text, value) in [
            ("$10", "10"),
            ("-$10.5", "-10.5"),
            ("$-10", "-10"),
            ("10 €", "10"),
            ("USD 10", "10"),
            ("12%", "0.12"),
            ("12.5 %", "0.125"),
            ("1.2K", "1200"),
            ("3m", "3000000"),
            ("2.5B", "2500000000"),
            ("$1.2bn", "1200000000"),
            ("(12.5)", "-12.5"),
            ("($3)", "-3"),
            ("12-", "-12"),
        ] {
            assert_eq!(read(notation('.', None, Signs::ALL), text).as_deref(), Some(value), "{text}");
            assert_eq!(read(Notation::default(), text), None, "{text}");
        }
        for text in ["-(3)", "(-3)", "--3", "-3-", "%", "K", "$", "()", "3MK", "5¢"] {
            assert_eq!(read(notation('.', None, Signs::ALL), text), None, "{text}");
        }
    }

    #[test]
    fn a_float_holds_what_it_writes_back() {
        for text in
            ["0.1", "1.00", "-0", "1e5", "0.10000000000000001", "123456789012345678e-3", "1e22", "5e-324"]
        {
            let held = float64(text).unwrap().1;
            assert_eq!(held, text != "123456789012345678e-3", "{text}");
        }
        for text in
            ["12345678901234567890.12", "9007199254740993", "1e400", "1e-400", "0.1234567890123456789"]
        {
            assert!(!float64(text).unwrap().1, "{text}");
        }
        // exactly between ..3.2 and ..3.3: Python writes the first, Rust the second
        for text in ["1486493739716873.2", "1486493739716873.3"] {
            assert!(float64(text).unwrap().1, "{text}");
        }
        assert!(!float64("1486493739716873.26").unwrap().1);
        assert!(float32("0.1").unwrap().1 && !float32("0.123456789").unwrap().1);
    }

    #[test]
    fn whole_numbers_are_exact_in_every_spelling() {
        assert_eq!(whole("9007199254740993.0"), Some(Ok(9_007_199_254_740_993)));
        assert_eq!(whole("1.2e3"), Some(Ok(1_200)));
        assert_eq!(whole("-9223372036854775808"), Some(Ok(i64::MIN)));
        assert_eq!(whole("-0.0"), Some(Ok(0)));
        assert_eq!(whole("1.5"), None);
        assert_eq!(whole("1e-1"), None);
        assert!(whole("9223372036854775808").unwrap().is_err() && whole("1e300").unwrap().is_err());
    }

    proptest! {
        #[test]
        fn every_float_that_is_written_is_held(value in any::<f64>().prop_filter("finite", |v| v.is_finite())) {
            for text in [format!("{value}"), format!("{value:e}"), format!("{value:.16e}")] {
                prop_assert!(float64(&text).unwrap().1, "{}", text);
                prop_assert_eq!(float64(&text).unwrap().0.to_bits(), value.to_bits());
            }
        }

        #[test]
        fn a_grouped_number_is_the_number(value in any::<i64>(), mark in prop::sample::select(vec![',', '.', '\'', ' ', '_'])) {
            let digits = value.unsigned_abs().to_string();
            let mut grouped = String::new();
            for (i, c) in digits.chars().enumerate() {
                if i > 0 && (digits.len() - i) % 3 == 0 {
                    grouped.push(mark);
                }
                grouped.push(c);
            }
            if value < 0 {
                grouped.insert(0, '-');
            }
            let decimal = if mark == '.' { ',' } else { '.' };
            let written = notation(decimal, Some(mark), Signs::default());
            let plain = written.read(&grouped).unwrap().plain.into_owned();
            prop_assert_eq!(whole(&plain), Some(Ok(value)));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,20}", near in "[-+(]{0,2}[$€%]?[0-9.,' ]{0,9}[eEkKmM%)-]{0,2}") {
            for text in [text, near] {
                if let Some((forms, _)) = forms_of(&text) {
                    prop_assert!(!forms.choices(&text).is_empty());
                }
            }
        }
    }
}
