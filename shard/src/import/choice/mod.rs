//! What is decided before a row is made: what the caller says, which column is what, and the fields with their types.
//!
//! | file | subject |
//! | --- | --- |
//! | `spec` | what the caller says, as data |
//! | `options` | whether what the caller says makes sense |
//! | `names` | names of columns as field names, and texts as a shell takes them |
//! | `header` | which column is the symbol, the time or a field, by its name |
//! | `survey` | one file after the first reading: its columns and what their cells look like |
//! | `plan` | the fields and their types |
//! | `advice` | hints: which options read a refused column or row |

mod advice;
mod header;
mod names;
mod options;
mod plan;
mod spec;
mod survey;

pub use self::spec::{FieldChoice, ImportSpec, PROBLEMS_SHOWN, Repeats};
pub(crate) use self::{
    advice::Advice,
    header::{Header, has_time, resolve},
    names::{shell, snake_case},
    options::{Checked, check_options, delimiter_name},
    plan::{Found, fields},
    survey::{Surveyed, Types},
};
