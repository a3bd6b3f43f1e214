//! Bytes at rest: where the lake's files are, and how a dataset's rows stand in Parquet. This room knows no log and no versions.
//!
//! | file | subject |
//! | --- | --- |
//! | `store` | a local folder or S3, and when a write is on the disk |
//! | `metered` | the store as telemetry sees it |
//! | `schema` | the columns of a dataset in the lake, and the table properties that say what a dataset is |
//! | `file` | one Parquet file: written, opened, read |
//! | `footers` | the footers of data files in memory |
//! | `checksum` | how bytes are compared with what was written |
//! | `index` | which rows of a file belong to which symbol |
//! | `rows` | sorting and joining rows |

mod checksum;
mod file;
mod footers;
mod index;
mod metered;
mod rows;
mod schema;
mod store;

#[cfg(test)]
pub(crate) use self::store::{DurableLocal, REQUESTS_MAX, Settle};
pub(crate) use self::{
    checksum::{CHECKSUM_LEN, checksum_text},
    file::{
        Checked, DataFile, FILE_ROWS_MAX, FileRef, Tally, WrittenFile, check_file, retractions, stats_of,
        write_file,
    },
    index::FileIndex,
    rows::{MERGE_COPIES, join_exact, read_all, sort_by_key, sort_order},
    schema::{
        EXACT_KEYS, KNOWN_AT_NS, Life, RETRACTED, SYMBOL, TS_MAX, TS_MIN, TS_NS, check_spec, delta_schema,
        exact_column, exact_schema, exact_time, has_retracted_column, readable_ts, spec_difference, spec_of,
        table_properties, wire_field, wire_time,
    },
    store::{Collected, Folder, Lake, sweep_staged},
};
