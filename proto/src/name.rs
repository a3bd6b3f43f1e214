//! Names. They are checked when they are made, so every value of these types is a valid name.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::error::{Code, Error, Result};

/// Longest dataset, field or symbol name in bytes. It bounds every key, message and metric label made of names.
pub const NAME_BYTES_MAX: usize = 128;

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $check:path) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks and takes the name.
            ///
            /// # Errors
            /// [`Code::InvalidRequest`] that names the broken rule.
            pub fn new(name: impl AsRef<str>) -> Result<Self> {
                let name = name.as_ref();
                $check(name)?;
                Ok(Self(Arc::from(name)))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(name: &str) -> Result<Self> {
                Self::new(name)
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;
            fn try_from(name: String) -> Result<Self> {
                Self::new(name)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.as_ref().to_owned()
            }
        }
    };
}

name_type!(
    /// A dataset: dot-separated parts of `[a-z0-9_]`, at least two, none empty: `equities.daily`. It is also the name
    /// of the table's folder in the lake, so it must be a plain file name everywhere.
    DatasetName,
    check_dataset
);
name_type!(
    /// A value column: `[a-z_][a-z0-9_]*`, and none of [`RESERVED_FIELDS`].
    FieldName,
    check_field
);
name_type!(
    /// One instrument of a dataset: any text of 1 to 128 bytes without control characters; case matters. `*` alone is
    /// refused because it means "every symbol" in requests.
    Symbol,
    check_symbol
);

/// Columns that every dataset has beside its fields, on the wire or in the lake.
pub const RESERVED_FIELDS: [&str; 5] = ["symbol", "ts", "ts_ns", "known_at", "known_at_ns"];

fn check_length(what: &str, name: &str) -> Result<()> {
    if name.is_empty() {
        return Err(Error::new(Code::InvalidRequest, format!("a {what} name is empty")));
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(Error::new(
            Code::InvalidRequest,
            format!("a {what} name has {} bytes; at most {NAME_BYTES_MAX} are allowed", name.len()),
        ));
    }
    Ok(())
}

fn check_dataset(name: &str) -> Result<()> {
    check_length("dataset", name)?;
    let plain = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    };
    if name.split('.').count() < 2 || !name.split('.').all(plain) {
        // the given name in a valid form if there is one, else an example
        let parts: Vec<String> = name.split('.').map(plain_form).filter(|part| !part.is_empty()).collect();
        let example = if parts.len() < 2 { "equities.daily".to_owned() } else { parts.join(".") };
        return Err(Error::new(Code::InvalidRequest, format!("{name:?} is not a dataset name")).hint(
            format!("use at least two parts of lower case letters, digits and _, joined by dots: {example}"),
        ));
    }
    Ok(())
}

fn check_field(name: &str) -> Result<()> {
    check_length("field", name)?;
    if RESERVED_FIELDS.contains(&name) {
        return Err(Error::new(Code::InvalidRequest, format!("{name:?} is not a field"))
            .hint("leave it out: symbol and ts come with every answer, and known_at by known_at=True (`--known-at`)"));
    }
    let mut bytes = name.bytes();
    let first = bytes.next().is_some_and(|b| b.is_ascii_lowercase() || b == b'_');
    if !first || !bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_') {
        return Err(Error::new(Code::InvalidRequest, format!("{name:?} is not a field name")).hint(
            match plain_form(name) {
                plain if plain.starts_with(|c: char| c.is_ascii_lowercase()) => {
                    format!("fields are written in lower case: {plain}")
                }
                _ => "use lower case letters, digits and _, not starting with a digit: adj_close".to_owned(),
            },
        ));
    }
    Ok(())
}

/// A valid name like the given text: `adj_close` for `Adj Close`.
fn plain_form(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
    name.chars().map(plain).collect::<String>().trim_matches('_').to_owned()
}

fn check_symbol(name: &str) -> Result<()> {
    check_length("symbol", name)?;
    if name == "*" {
        return Err(Error::new(Code::InvalidRequest, "\"*\" is not a symbol: it means every symbol"));
    }
    if name.chars().any(char::is_control) {
        return Err(Error::new(Code::InvalidRequest, format!("the symbol {name:?} has a control character")));
    }
    Ok(())
}

/// Names for a message: the first few, and how many more there are. A dataset may have thousands.
#[must_use]
pub fn listed(names: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    const SHOWN: usize = 20;
    let mut text = String::new();
    let mut more = 0;
    for (i, name) in names.into_iter().enumerate() {
        match i {
            0 => text.push_str(name.as_ref()),
            1..SHOWN => text.extend([", ", name.as_ref()]),
            _ => more += 1,
        }
    }
    if more > 0 { format!("{text} and {more} more") } else { text }
}

/// Most work of the suggestions of one request, counted in letters that are looked at or compared. It is enough for one wrong name
/// beside 100,000 known ones of eight letters, and takes some milliseconds.
const SUGGEST_WORK_MAX: usize = 1 << 20;
/// Work of a comparison besides its letters: it allocates.
const COMPARE_WORK: usize = 64;

/// Makes the hints of one request about names that are not known. All of them share one bound. An error beyond it has no hint, so
/// many wrong names, or one beside 100,000 known names, do not keep a thread.
#[derive(Debug)]
pub struct Suggest {
    work_left: usize,
}

impl Default for Suggest {
    fn default() -> Self {
        Self { work_left: SUGGEST_WORK_MAX }
    }
}

impl Suggest {
    /// The hint for a wrong name beside few known ones: the nearest, or all. Empty when the bound is reached.
    #[must_use]
    pub fn among<'a>(
        &mut self,
        wrong: &str,
        what: &str,
        known: impl Iterator<Item = &'a str> + Clone,
    ) -> String {
        let hint = match self.nearest(wrong, known.clone()) {
            Some(near) => format!("did you mean {near}?"),
            None if self.work_left == 0 => return String::new(),
            None => format!("its {what} are {}", listed(known)),
        };
        self.work_left = self.work_left.saturating_sub(hint.len());
        hint
    }

    /// The known name nearest to `wrong`, if a typing error is likely: for every four letters begun it allows one change,
    /// addition, removal or swap of neighbours. Upper and lower case are the same. It looks at no name after the bound is reached.
    #[must_use]
    pub fn nearest<'a>(&mut self, wrong: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
        if wrong.len() > NAME_BYTES_MAX {
            return None;
        }
        let wrong = wrong.to_lowercase();
        let (length, letters) = (wrong.chars().count(), letters(&wrong));
        let limit = 1 + length / 4;
        let mut known = known.into_iter();
        let mut best = None;
        while self.work_left > 0 {
            let Some(name) = known.next() else { break };
            let mut work = 1 + name.len();
            let theirs = self::letters(name);
            // a letter that the other name lacks is one change at least
            let apart = (letters & !theirs).count_ones().max((theirs & !letters).count_ones());
            if name.chars().count().abs_diff(length) <= limit && apart as usize <= limit {
                work += COMPARE_WORK + wrong.len() * name.len();
                let distance = strsim::osa_distance(&wrong, &name.to_lowercase());
                if distance <= limit && best.is_none_or(|best| (distance, name) < best) {
                    best = Some((distance, name));
                }
            }
            self.work_left = self.work_left.saturating_sub(work);
        }
        best.map(|(_, name)| name)
    }
}

/// The set of a name's ASCII characters, in lower case.
fn letters(name: &str) -> u128 {
    name.bytes().filter(u8::is_ascii).fold(0, |set, b| set | 1 << b.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_names_a_message_has_the_first_and_the_number_of_the_others() {
        let names = |count: usize| (0..count).map(|i| format!("f{i}"));
        assert_eq!(listed(names(0)), "");
        assert_eq!(listed(names(2)), "f0, f1");
        assert!(listed(names(20)).ends_with(", f18, f19"));
        assert!(listed(names(1_000)).ends_with(", f19 and 980 more"));
    }

    #[test]
    fn dataset_names_are_plain_file_names() {
        for good in ["equities.daily", "signals.mom_12_1", "a.b.c", "trellis.runs"] {
            assert_eq!(DatasetName::new(good).unwrap().as_str(), good);
        }
        for bad in
            ["", "equities", "Equities.daily", "equities.", ".daily", "a..b", "a/b.c", "../x.y", "a.b c"]
        {
            assert_eq!(DatasetName::new(bad).unwrap_err().code(), Code::InvalidRequest, "{bad:?}");
        }
        assert!(DatasetName::new(format!("a.{}", "b".repeat(NAME_BYTES_MAX))).is_err());
    }

    #[test]
    fn reserved_columns_are_not_fields() {
        for name in RESERVED_FIELDS {
            assert!(FieldName::new(name).is_err(), "{name}");
        }
        assert!(FieldName::new("adj_close").is_ok());
        assert!(FieldName::new("2close").is_err());
    }

    #[test]
    fn symbols_keep_their_case_and_refuse_the_wildcard() {
        assert_eq!(Symbol::new("BRK.B").unwrap().as_str(), "BRK.B");
        assert!(Symbol::new("*").is_err());
        assert!(Symbol::new("A\nB").is_err());
        assert!(Symbol::new("").is_err());
    }

    #[test]
    fn a_typing_error_finds_its_name() {
        let nearest =
            |wrong, known: &[&'static str]| Suggest::default().nearest(wrong, known.iter().copied());
        let known = &["close", "open", "high", "low", "volume"];
        assert_eq!(nearest("clsoe", known), Some("close"));
        assert_eq!(nearest("Volume", known), Some("volume"));
        assert_eq!(nearest("dividend", known), None);
        assert_eq!(nearest("amzn", &["AMZN", "AAPL"]), Some("AMZN"));
    }

    #[test]
    fn a_suggestion_beside_100_000_names_finds_the_nearest_and_a_request_has_a_bounded_number() {
        let names: Vec<String> = (0..100_000).map(|i| format!("S{i:05}")).collect();
        let looked_at = std::cell::Cell::new(0);
        let known = || names.iter().map(String::as_str).inspect(|_| looked_at.set(looked_at.get() + 1));
        let mut suggest = Suggest::default();
        assert_eq!(suggest.nearest("ZZTOP", known()), None);
        assert_eq!(looked_at.get(), 100_000, "one wrong name is compared with all");
        let hints: Vec<String> =
            (0..100_000).map(|i| suggest.among(&format!("Q{i:05}"), "symbols", known())).collect();
        assert!(looked_at.get() < SUGGEST_WORK_MAX, "{} names for one request", looked_at.get());
        assert!(hints.iter().map(String::len).sum::<usize>() <= SUGGEST_WORK_MAX);
        assert_eq!(hints.last().map(String::as_str), Some(""));
    }

    #[test]
    fn a_name_that_is_too_long_is_compared_with_none() {
        let known = std::iter::from_fn(|| -> Option<&str> { panic!("a name was looked at") });
        assert_eq!(Suggest::default().nearest(&"x".repeat(NAME_BYTES_MAX + 1), known), None);
    }

    proptest::proptest! {
        /// The search passes over some names without a comparison. No comparison would have found any of these names.
        #[test]
        fn the_nearest_of_few_names_is_that_of_comparing_all(wrong in "[a-eA-E0.]{1,9}", known in proptest::collection::vec("[a-eA-E0.]{1,9}", 0..20)) {
            let limit = 1 + wrong.len() / 4;
            let all = known.iter().map(|name| (strsim::osa_distance(&wrong.to_lowercase(), &name.to_lowercase()), name.as_str()));
            let expected = all.filter(|(distance, _)| *distance <= limit).min().map(|(_, name)| name);
            proptest::prop_assert_eq!(Suggest::default().nearest(&wrong, known.iter().map(String::as_str)), expected);
        }
    }
}
