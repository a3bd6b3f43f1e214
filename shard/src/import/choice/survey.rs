//! One file after the survey: its columns, and what their cells look like.

use trellis_proto::{FieldName, FieldType};

use super::header::Header;
use crate::import::values::{Dates, Seen, Stamps};

/// The fields of a file; a column of nothing but nulls may have no type.
pub(crate) type Types = Vec<(FieldName, Option<FieldType>)>;

/// One source after the survey.
pub(crate) struct Surveyed {
    pub(crate) header: Header,
    /// What the cells look like: all cells of text columns, and those cells of typed columns that a field may not hold.
    pub(crate) seen: Vec<(FieldName, Seen)>,
    /// Types of typed columns; empty for text.
    pub(crate) typed: Types,
    pub(crate) stamps: Stamps,
    /// Knowledge times of text that are not ISO 8601.
    pub(crate) known: Dates,
    /// The zone that a typed file names for its times.
    pub(crate) zone: Option<String>,
    /// Its cells are separated by semicolons, as in files with decimal commas.
    pub(crate) semicolon: bool,
}
