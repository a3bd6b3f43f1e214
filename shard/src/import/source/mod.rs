//! Where the bytes come from: the files that the user named, and the records of a CSV text.
//!
//! | file | subject |
//! | --- | --- |
//! | `open` | which files are what: gzip, zip, Parquet, CSV |
//! | `records` | CSV records with their real lines |

mod open;
mod records;

pub(crate) use self::{
    open::{Source, is_archive, sources},
    records::{RECORD_BYTES_MAX, RecordError, Records, quoted},
};
