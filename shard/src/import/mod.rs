//! The parse step of `trellis import`: local CSV and Parquet files in; checked, sorted rows and a dataset's spec out. This room
//! knows no lake and no network: the caller publishes the rows.
//!
//! Files are read twice: once to look at every cell, once for the values. A loader that reads once and guesses types from the first
//! rows fails at row 400,000, or it reads wrong values without an error. Here a type is chosen only if it keeps the value of every
//! cell. A value that no type keeps is refused. So is a value in a notation that the caller did not name; the error names the
//! option that reads it.
//!
//! A bad row is never repaired, and never dropped in silence. Either nothing is imported, and the first bad rows are shown with
//! file, line, column and reason; or, with a quarantine, the good rows are imported and all bad rows are written to a file.
//!
//! Callers outside of the crate use what this door exports.
//!
//! | file or room | subject |
//! | --- | --- |
//! | `read` | the order of the steps |
//! | `text` | rows from CSV |
//! | `columnar` | rows from Parquet |
//! | `rows` | a row from the cells of one record, alike for both |
//! | `table` | the good rows: sorts, finds doubles, makes batches, chooses the chunk, digests |
//! | `sample` | a sample of each field as the import understood it |
//! | `quarantine` | the bad rows as a CSV file |
//! | `choice` | what is decided before a row is made: options, columns, fields and types |
//! | `source` | where the bytes come from |
//! | `values` | what the text of a cell means |
//! | `told` | what the user is told: progress, problems, the result |

mod choice;
mod columnar;
mod quarantine;
mod read;
mod rows;
mod sample;
mod source;
mod table;
mod text;
mod told;
mod values;

pub use self::{
    choice::{FieldChoice, ImportSpec, PROBLEMS_SHOWN, Repeats},
    read::read,
    told::{FieldSample, Import, ImportError, Part, Phase, Problem, Progress},
    values::{NumberSign, TsUnit},
};
