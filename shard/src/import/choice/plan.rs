//! Chooses the fields and their types: from the survey of all files, and from the dataset if it exists. Pure.

use std::collections::BTreeMap;

use trellis_proto::{DatasetSpec, FieldName, FieldType, spec::FieldSpec};

use super::{advice::Advice, survey::Surveyed};
use crate::import::{
    source::Source,
    told::ImportError,
    values::{Dates, Seen, Stamps, Trouble, Verdict, Wanted},
};

/// The survey of all sources together.
pub(crate) struct Found {
    /// Fields in the order they are met.
    pub(crate) seen: Vec<(FieldName, Seen)>,
    typed: BTreeMap<FieldName, FieldType>,
    pub(crate) stamps: Stamps,
    pub(crate) known: Dates,
    semicolon: bool,
}

impl Found {
    /// # Errors
    /// A field that is of one type in one typed file and of another in the next.
    pub(crate) fn of(surveyed: &[Surveyed]) -> Result<Self, ImportError> {
        let mut found = Self {
            seen: Vec::new(),
            typed: BTreeMap::new(),
            stamps: Stamps::default(),
            known: Dates::default(),
            semicolon: false,
        };
        for each in surveyed {
            for (name, seen) in &each.seen {
                match found.seen.iter_mut().find(|(known, _)| known == name) {
                    Some((_, all)) => all.add(seen),
                    None => found.seen.push((name.clone(), seen.clone())),
                }
            }
            for (name, of_file) in &each.typed {
                let Some(of_file) = *of_file else { continue };
                let before = found.typed.get(name).copied().unwrap_or(of_file);
                let both = before.common(of_file).ok_or_else(|| conflict(name, before, of_file))?;
                found.typed.insert(name.clone(), both);
            }
            found.stamps.add(&each.stamps);
            found.known.add(&each.known);
            found.semicolon |= each.semicolon;
        }
        Ok(found)
    }

    fn names(&self) -> impl Iterator<Item = &FieldName> {
        self.seen.iter().map(|(name, _)| name)
    }
}

fn conflict(field: &FieldName, a: FieldType, b: FieldType) -> ImportError {
    ImportError::options(
        format!("the field {field} is {a} in one file and {b} in another"),
        format!("import the files into two datasets, or leave {field} out with --fields"),
    )
}

/// The fields of the dataset after the import: those that it has, wider if a cell needs it, then the new ones in the order of the
/// files.
pub(crate) fn fields(
    found: &Found,
    surveyed: &[Surveyed],
    sources: &[Source],
    existing: Option<&DatasetSpec>,
    advice: &Advice<'_>,
    notes: &mut Vec<String>,
) -> Result<Vec<Wanted>, ImportError> {
    let (spec, checked) = (advice.spec, advice.checked);
    if let Some(absent) =
        checked.types.keys().chain(&spec.required).find(|named| !found.names().any(|n| n == *named))
    {
        return Err(ImportError::options(
            format!("--types or --required names the field {absent}, which no file has"),
            format!("the fields are {}", list(found.names())),
        ));
    }
    for (name, seen) in &found.seen {
        if let Some((one, other)) = &seen.currencies
            && checked.types.get(name) != Some(&FieldType::String)
        {
            return Err(ImportError::options(
                format!(
                    "the field {name} has amounts in {one} and in {other}; without their currencies they say less"
                ),
                format!("import them into two fields or datasets, or keep it as text: --types {name}=string"),
            ));
        }
    }
    let mut fields = Vec::new();
    for field in existing.map(|e| e.fields.as_slice()).unwrap_or_default() {
        fields.push(known_field(field, found, advice, notes)?);
    }
    for (name, seen) in &found.seen {
        if existing.is_some_and(|e| e.field(name.as_str()).is_some()) {
            continue;
        }
        let nullable = !spec.required.contains(name);
        let Some((data_type, nearest)) = new_type(name, seen, found, advice, notes)? else { continue };
        if let Some(existing) = existing {
            notes.push(format!(
                "new field {name} ({data_type}): missing in the rows that {} has",
                existing.dataset
            ));
        }
        fields.push(Wanted { spec: FieldSpec { name: name.clone(), data_type, nullable }, nearest });
    }
    note_missing(surveyed, sources, &fields, notes)?;
    Ok(fields)
}

fn known_field(
    field: &FieldSpec,
    found: &Found,
    advice: &Advice<'_>,
    notes: &mut Vec<String>,
) -> Result<Wanted, ImportError> {
    let (name, have, checked) = (&field.name, field.data_type, advice.checked);
    let seen = found.seen.iter().find(|(known, _)| known == name).map(|(_, seen)| seen);
    let data_type = match (checked.types.get(name), seen) {
        (Some(said), _) if have.common(*said) == Some(*said) => *said,
        (Some(said), _) => {
            return Err(ImportError::options(
                format!("--types {name}={said}: the field is {have}, and values would change"),
                "leave it out, import into a new dataset, or choose other columns with --fields",
            ));
        }
        (None, Some(seen)) => {
            let float = matches!(have, FieldType::Float64 | FieldType::Float32);
            let number = float || matches!(have, FieldType::Int64 | FieldType::Int32);
            // The field has numbers: a sign before each of them makes no code.
            let codes = seen.codes(float).filter(|trouble| number && !matches!(trouble, Trouble::Signed));
            if let Some(trouble) = codes {
                return Err(advice.refusal_of_codes(name, seen, trouble, Some(have)));
            }
            seen.widen(have)
        }
        (None, None) => have,
    };
    if data_type != have {
        notes.push(format!("the field {name} widens from {have} to {data_type}"));
    }
    // In a bool field that exists, 1 and 0 are true and false.
    let nearest = checked.types.contains_key(name) || data_type == FieldType::Bool;
    Ok(Wanted { spec: FieldSpec { data_type, ..field.clone() }, nearest })
}

fn new_type(
    name: &FieldName,
    seen: &Seen,
    found: &Found,
    advice: &Advice<'_>,
    notes: &mut Vec<String>,
) -> Result<Option<(FieldType, bool)>, ImportError> {
    if let Some(said) = advice.checked.types.get(name) {
        return Ok(Some((*said, true)));
    }
    let text = match seen.verdict() {
        Verdict::Refused(trouble) => return Err(advice.refusal(name, seen, trouble)),
        Verdict::Type(data_type) => Some(data_type),
        Verdict::Nothing => None,
    };
    let of_all = match (text, found.typed.get(name).copied()) {
        (Some(a), Some(b)) => Some(a.common(b).ok_or_else(|| conflict(name, a, b))?),
        (a, b) => a.or(b),
    };
    let Some(data_type) = of_all else {
        if advice.spec.required.contains(name) {
            // Each of its rows is bad.
            return Ok(Some((FieldType::Float64, false)));
        }
        // A type that no value needs would refuse later values.
        notes.push(format!(
            "the column of {name} has no values yet: it becomes a field with the first file that has some; --types \
             {name}=float64 makes it one now"
        ));
        return Ok(None);
    };
    if data_type == FieldType::String {
        if seen.is_codes() {
            notes.push(format!("the field {name} is text: its numbers have leading zeros"));
        } else if let Some(of) = seen.is_text_of() {
            notes.push(format!(
                "the field {name} is text in its file, and its cells are {of}: --types {name}={of} reads them so"
            ));
        } else if seen.is_text_of_dates() {
            notes.push(format!(
                "the field {name} is text in its file, and its cells are dates: to read them, {}, and --types \
                 {name}=timestamp",
                advice.forms(&seen.dates)
            ));
        } else if let Some(example) = seen.is_digits() {
            notes.push(format!(
                "the field {name} is text, and its cells are digits for the most part: {:?}",
                example.text
            ));
        } else if let words = seen.missing_words()
            && !words.is_empty()
        {
            let words = words.iter().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(", ");
            notes.push(format!("the field {name} keeps {words} as text; --null says that it means missing"));
        } else if let Some(numbers) = seen.numbers_among_texts() {
            notes.push(format!(
                "the field {name} is text, and {numbers} of its cells are numbers; if the texts mean missing values, say \
                 --null for each"
            ));
        }
    }
    if let Some((example, value)) = seen.signed_by.as_ref().filter(|_| data_type != FieldType::String) {
        notes.push(format!(
            "the field {name} is read by --notation, {:?} as {value}; to keep it as text: --types {name}=string",
            example.text
        ));
    }
    if data_type == FieldType::Float64
        && advice.spec.decimal.is_none()
        && found.semicolon
        && seen.may_have_points_between_thousands()
    {
        notes.push(format!(
            "the field {name} is read with its points before fractions; if they stand between thousands, say \
             --decimal , --thousands ."
        ));
    }
    Ok(Some((data_type, false)))
}

/// A field that a file lacks is null in its rows, or refuses the import.
fn note_missing(
    surveyed: &[Surveyed],
    sources: &[Source],
    fields: &[Wanted],
    notes: &mut Vec<String>,
) -> Result<(), ImportError> {
    for (Surveyed { header, .. }, source) in surveyed.iter().zip(sources) {
        for field in fields.iter().map(|field| &field.spec) {
            if header.fields.iter().any(|(name, _)| *name == field.name) {
                continue;
            }
            if !field.nullable {
                return Err(ImportError::options(
                    format!(
                        "{} has no column for the field {}, which may not be null",
                        source.name, field.name
                    ),
                    format!(
                        "if it has another name there, say --fields {}=ITS_NAME and the others",
                        field.name
                    ),
                ));
            }
            notes.push(format!(
                "{} has no column for the field {}: null in its rows",
                source.name, field.name
            ));
        }
        for column in &header.left_out {
            notes.push(format!("{}: left out {}, an index", source.name, header.names[*column]));
        }
    }
    Ok(())
}

fn list<'a>(names: impl Iterator<Item = &'a FieldName>) -> String {
    names.map(FieldName::as_str).collect::<Vec<_>>().join(", ")
}
