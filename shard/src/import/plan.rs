//! Which fields the rows will have, of which types: from what the survey saw of all files, or from the dataset that is
//! there. Pure.

use std::collections::BTreeMap;

use trellis_proto::{DatasetSpec, FieldName, FieldType, spec::FieldSpec};

use super::{
    cell::{Seen, common},
    columnar,
    header::Header,
    options::{Checked, ImportSpec},
    problem::ImportError,
    source::Source,
};

/// One source after the survey.
pub(crate) struct Surveyed {
    pub(crate) header: Header,
    pub(crate) kinds: Kinds,
}

/// What a survey found of each field.
pub(crate) enum Kinds {
    Text(Vec<(FieldName, Seen)>),
    Columnar(columnar::Types),
}

/// The fields of a dataset that is not there yet: the columns of all files, in the order they are met.
pub(crate) fn new_fields(
    surveyed: &[Surveyed],
    sources: &[Source],
    spec: &ImportSpec,
    checked: &Checked,
    notes: &mut Vec<String>,
) -> Result<Vec<FieldSpec>, ImportError> {
    let mut order: Vec<FieldName> = Vec::new();
    let mut seen: BTreeMap<FieldName, Seen> = BTreeMap::new();
    let mut typed: BTreeMap<FieldName, FieldType> = BTreeMap::new();
    let conflict = |field: &FieldName, a: FieldType, b: FieldType| {
        ImportError::options(
            format!("the field {field} is {a} in one file and {b} in another"),
            format!("say --types {field}=string (or another type), or import the files into two datasets"),
        )
    };
    for Surveyed { header, kinds } in surveyed {
        for (name, _) in &header.fields {
            if !order.contains(name) {
                order.push(name.clone());
            }
        }
        match kinds {
            Kinds::Text(columns) => {
                for (name, found) in columns {
                    seen.entry(name.clone()).or_default().add(found);
                }
            }
            Kinds::Columnar(columns) => {
                for (name, found) in columns {
                    let Some(found) = *found else { continue };
                    let before = typed.get(name).copied().unwrap_or(found);
                    let both = common(before, found).ok_or_else(|| conflict(name, before, found))?;
                    typed.insert(name.clone(), both);
                }
            }
        }
    }
    for named in checked.types.keys().chain(&spec.required) {
        if !order.contains(named) {
            return Err(ImportError::options(
                format!("--types or --required names the field {named}, which no file has"),
                format!("the fields are {}", list(&order)),
            ));
        }
    }
    let mut fields = Vec::with_capacity(order.len());
    for name in order {
        let text = seen.get(&name).and_then(Seen::field_type);
        let columnar = typed.get(&name).copied();
        let found = match (text, columnar) {
            (Some(a), Some(b)) => Some(common(a, b).ok_or_else(|| conflict(&name, a, b))?),
            (a, b) => a.or(b),
        };
        let data_type = match (checked.types.get(&name), found) {
            (Some(said), _) => *said,
            (None, Some(found)) => found,
            (None, None) => {
                notes.push(format!("the field {name} has no value in any row; it is taken as float64"));
                FieldType::Float64
            }
        };
        let nullable = !spec.required.contains(&name);
        fields.push(FieldSpec { name, data_type, nullable });
    }
    note_missing(surveyed, sources, &fields, notes)?;
    Ok(fields)
}

/// Every column must be a field of the dataset that is there.
pub(crate) fn check_fits(
    surveyed: &[Surveyed],
    sources: &[Source],
    existing: &DatasetSpec,
    notes: &mut Vec<String>,
) -> Result<(), ImportError> {
    for (Surveyed { header, .. }, source) in surveyed.iter().zip(sources) {
        for (name, column) in &header.fields {
            if existing.field(name.as_str()).is_none() {
                let known: Vec<FieldName> = existing.fields.iter().map(|f| f.name.clone()).collect();
                return Err(ImportError::options(
                    format!(
                        "the column {:?} of {} would be the field {name}, which {} does not have",
                        header.names[*column], source.name, existing.dataset
                    ),
                    format!(
                        "its fields are {}; choose and rename columns with --fields, or import into a new dataset",
                        list(&known)
                    ),
                ));
            }
        }
    }
    note_missing(surveyed, sources, &existing.fields, notes)
}

/// A field that a file lacks is null in its rows, or refuses the import.
fn note_missing(
    surveyed: &[Surveyed],
    sources: &[Source],
    fields: &[FieldSpec],
    notes: &mut Vec<String>,
) -> Result<(), ImportError> {
    for (Surveyed { header, .. }, source) in surveyed.iter().zip(sources) {
        for field in fields {
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
    }
    Ok(())
}

fn list(names: &[FieldName]) -> String {
    names.iter().map(FieldName::as_str).collect::<Vec<_>>().join(", ")
}
