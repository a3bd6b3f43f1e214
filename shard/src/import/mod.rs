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
//! | `spec` | what the caller says, as data |
//! | `options` | whether what the caller says makes sense |
//! | `names` | names of columns as field names, and texts as a shell takes them |
//! | `source` | which files are what: gzip, zip, Parquet, CSV |
//! | `records` | CSV records with their real lines |
//! | `header` | which column is the symbol, the time or a field, by its name |
//! | `seen` | what the cells of a column look like |
//! | `stamps` | in which forms the times of a column are written |
//! | `survey` | one file after the first reading: its columns and what their cells look like |
//! | `plan` | the fields and their types |
//! | `clock` | times to nanoseconds |
//! | `number` | numbers as people write them |
//! | `cell` | the text of a cell as a value of a type |
//! | `text` | rows from CSV |
//! | `columnar` | rows from Parquet |
//! | `rows` | a row from the cells of one record, alike for both |
//! | `table` | the good rows: sorts, finds doubles, makes batches, chooses the chunk, digests |
//! | `result` | what an import gives back |
//! | `sample` | a sample of each field as the import understood it |
//! | `progress` | how far the import has come |
//! | `problem` | errors of rows, files and options |
//! | `advice` | hints: which options read a refused column or row |
//! | `quarantine` | the bad rows as a CSV file |

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
