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
//! | file | subject |
//! | --- | --- |
//! | `read` | the order of the steps |
//! | `spec`, `options`, `names` | what the caller says; whether it makes sense; names as fields and in a shell |
//! | `source`, `records` | which files are what: gzip, zip, Parquet; CSV records with their real lines |
//! | `header`, `seen`, `stamps`, `survey` | which column is what, by name; what cells look like; how times are written; all of that of one file |
//! | `plan` | the fields and their types |
//! | `clock`, `number`, `cell` | times; numbers as people write them; values of a type |
//! | `text`, `columnar`, `rows` | records of CSV; of Parquet; rows from a record |
//! | `table` | sorts, finds doubles, makes batches, chooses the chunk, digests |
//! | `result`, `sample`, `progress` | what comes out; what was understood; how far the import has come |
//! | `problem`, `advice`, `quarantine` | bad rows and errors; what to do about them; where bad rows go |

mod advice;
mod cell;
mod clock;
mod columnar;
mod header;
mod names;
mod number;
mod options;
mod plan;
mod problem;
mod progress;
mod quarantine;
mod read;
mod records;
mod result;
mod rows;
mod sample;
mod seen;
mod source;
mod spec;
mod stamps;
mod survey;
mod table;
mod text;

pub use self::{
    number::NumberSign,
    problem::{ImportError, Problem},
    progress::{Phase, Progress},
    read::read,
    result::{FieldSample, Import, Part},
    spec::{FieldChoice, ImportSpec, PROBLEMS_SHOWN, Repeats, TsUnit},
};
