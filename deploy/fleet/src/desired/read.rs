//! Reads JSON field by field, and keeps every mistake instead of the first.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// One mistake in a file of the desired state.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mistake {
    /// The file, relative to the folder: `units/mom.json`.
    pub file: String,
    /// The field: `accounts[1].weight`; empty for the file as a whole.
    pub field: String,
    /// What is wrong, and what would be right.
    pub what: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.field.as_str() {
            "" => write!(f, "{}: {}", self.file, self.what),
            field => write!(f, "{}: {field}: {}", self.file, self.what),
        }
    }
}

/// A file that is being read, with its mistakes.
pub(crate) struct Sheet {
    file: String,
    mistakes: RefCell<Vec<Mistake>>,
}

impl Sheet {
    pub(crate) fn new(file: impl Into<String>) -> Self {
        Self { file: file.into(), mistakes: RefCell::default() }
    }

    /// Keeps a mistake. Returns `None`, so that a reader can end with it.
    pub(crate) fn wrong<T>(&self, field: &str, what: impl Into<String>) -> Option<T> {
        let mistake = Mistake { file: self.file.clone(), field: field.to_owned(), what: what.into() };
        self.mistakes.borrow_mut().push(mistake);
        None
    }

    pub(crate) fn mistakes(self) -> Vec<Mistake> {
        self.mistakes.into_inner()
    }

    /// The object that the whole file is.
    pub(crate) fn object(&self, text: &str) -> Option<Fields<'_>> {
        match serde_json::from_str::<Strict>(text) {
            Ok(Strict(value)) => object(self, "", value),
            Err(error) => self.wrong("", format!("is not JSON: {error}")),
        }
    }
}

/// The fields of an object. [`Fields::end`] refuses those that nobody asked for.
pub(crate) struct Fields<'s> {
    sheet: &'s Sheet,
    path: String,
    left: Map<String, Value>,
    known: Vec<&'static str>,
}

/// What reads a value: the file, the path of the field, the value. `None` after a mistake that it has kept.
pub(crate) trait Read<T>: FnOnce(&Sheet, &str, Value) -> Option<T> {}
impl<T, F: FnOnce(&Sheet, &str, Value) -> Option<T>> Read<T> for F {}

impl Fields<'_> {
    pub(crate) fn path(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.left.contains_key(name)
    }

    /// Keeps a mistake about one of the fields.
    pub(crate) fn wrong<T>(&self, name: &str, what: impl Into<String>) -> Option<T> {
        self.sheet.wrong(&self.path(name), what)
    }

    /// A field that must be there.
    pub(crate) fn need<T>(&mut self, name: &'static str, read: impl Read<T>) -> Option<T> {
        self.known.push(name);
        match self.left.remove(name) {
            Some(value) => read(self.sheet, &self.path(name), value),
            None => self.wrong(name, "is missing"),
        }
    }

    /// A field that may be left out.
    pub(crate) fn may<T>(&mut self, name: &'static str, read: impl Read<T>) -> Option<T> {
        self.known.push(name);
        let value = self.left.remove(name)?;
        read(self.sheet, &self.path(name), value)
    }

    /// Refuses what is left.
    pub(crate) fn end(self) {
        let known = self.known.join(", ");
        for name in self.left.keys() {
            let path = if self.path.is_empty() { name.clone() } else { format!("{}.{name}", self.path) };
            self.sheet.wrong::<()>(&path, format!("is unknown; the fields here are {known}"));
        }
    }
}

pub(crate) fn object<'s>(sheet: &'s Sheet, path: &str, value: Value) -> Option<Fields<'s>> {
    match value {
        Value::Object(left) => Some(Fields { sheet, path: path.to_owned(), left, known: Vec::new() }),
        other => sheet.wrong(path, format!("is {}; an object is expected", kind(&other))),
    }
}

pub(crate) fn text(sheet: &Sheet, path: &str, value: Value) -> Option<String> {
    match value {
        Value::String(text) if !text.is_empty() => Some(text),
        Value::String(_) => sheet.wrong(path, "is empty"),
        other => sheet.wrong(path, format!("is {}; a text is expected", kind(&other))),
    }
}

/// A text of which `holds` is true; `like` says what is expected.
pub(crate) fn such(
    sheet: &Sheet,
    path: &str,
    value: Value,
    like: &str,
    holds: impl Fn(&str) -> bool,
) -> Option<String> {
    let text = text(sheet, path, value)?;
    if holds(&text) { Some(text) } else { sheet.wrong(path, format!("{text:?} is not {like}")) }
}

pub(crate) fn flag(sheet: &Sheet, path: &str, value: Value) -> Option<bool> {
    value.as_bool().or_else(|| sheet.wrong(path, format!("is {}; true or false is expected", kind(&value))))
}

/// A whole number from `least` to `most`.
pub(crate) fn whole(sheet: &Sheet, path: &str, value: Value, least: u64, most: u64) -> Option<u64> {
    match value.as_u64().filter(|number| (least..=most).contains(number)) {
        Some(number) => Some(number),
        None => sheet.wrong(path, format!("is {value}; a whole number from {least} to {most} is expected")),
    }
}

/// A number above 0.
pub(crate) fn positive(sheet: &Sheet, path: &str, value: Value) -> Option<f64> {
    match value.as_f64().filter(|number| number.is_finite() && *number > 0.0) {
        Some(number) => Some(number),
        None => sheet.wrong(path, format!("is {value}; a number above 0 is expected")),
    }
}

/// A size as people write it, `4G`, or a number of bytes.
pub(crate) fn bytes(sheet: &Sheet, path: &str, value: Value) -> Option<u64> {
    let size = match &value {
        Value::String(text) => trellis_fabric::env::parse_bytes(text),
        other => other.as_u64(),
    };
    size.filter(|bytes| *bytes > 0)
        .or_else(|| sheet.wrong(path, format!("is {value}; a size such as 4G or 512MiB is expected")))
}

/// One of the given words.
pub(crate) fn one_of<T: Copy>(sheet: &Sheet, path: &str, value: Value, words: &[(&str, T)]) -> Option<T> {
    let text = text(sheet, path, value)?;
    let found = words.iter().find(|(word, _)| *word == text).map(|(_, meaning)| *meaning);
    found.or_else(|| {
        let all: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        sheet.wrong(path, format!("is {text:?}; one of {} is expected", all.join(", ")))
    })
}

/// A list. An entry with a mistake is left out; the mistake is kept.
pub(crate) fn list<T>(
    sheet: &Sheet,
    path: &str,
    value: Value,
    mut entry: impl FnMut(&Sheet, &str, Value) -> Option<T>,
) -> Option<Vec<T>> {
    match value {
        Value::Array(values) => {
            let numbered = values.into_iter().enumerate();
            Some(numbered.filter_map(|(i, value)| entry(sheet, &format!("{path}[{i}]"), value)).collect())
        }
        other => sheet.wrong(path, format!("is {}; a list is expected", kind(&other))),
    }
}

/// An object whose keys are names that the reader chose.
pub(crate) fn table<T>(
    sheet: &Sheet,
    path: &str,
    value: Value,
    mut entry: impl FnMut(&Sheet, &str, &str, Value) -> Option<T>,
) -> Option<BTreeMap<String, T>> {
    let fields = object(sheet, path, value)?.left.into_iter();
    let read = fields.filter_map(|(key, value)| {
        let path = format!("{path}.{key}");
        let value = entry(sheet, &path, &key, value)?;
        Some((key, value))
    });
    Some(read.collect())
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// JSON in which no object has a key twice. serde_json would take the last of two values, and half of a badly merged file would be lost.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Self)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<Value, A::Error> {
        let mut all = Vec::new();
        while let Some(Strict(value)) = values.next_element()? {
            all.push(value);
        }
        Ok(all.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let (mut all, mut seen) = (Map::new(), BTreeSet::new());
        while let Some(key) = fields.next_key::<String>()? {
            if !seen.insert(key.clone()) {
                return Err(A::Error::custom(format!("the key {key:?} is there twice")));
            }
            let Strict(value) = fields.next_value()?;
            all.insert(key, value);
        }
        Ok(Value::Object(all))
    }
}
