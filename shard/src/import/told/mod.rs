//! What the user is told: how far the import has come, what is wrong, and what came out.
//!
//! | file | subject |
//! | --- | --- |
//! | `progress` | how far the import has come |
//! | `problem` | errors of rows, files and options |
//! | `result` | what an import gives back |

mod problem;
mod progress;
mod result;

pub(crate) use self::{
    problem::{Bad, BadRows, Place, QUARANTINE_ROWS_MAX, REPEATED},
    progress::Ticker,
    result::chunks_of,
};
pub use self::{
    problem::{ImportError, Problem},
    progress::{Phase, Progress},
    result::{FieldSample, Import, Part},
};
