//! The rows of a commit: those that are published, those of an older definition, and those of the run ledger. Pure.
//!
//! | file | subject |
//! | --- | --- |
//! | `append` | published rows, checked and sorted |
//! | `convert` | rows of an older definition made anew |
//! | `ledger` | the rows of the run ledger |

mod append;
mod convert;
mod ledger;

#[cfg(test)]
pub(crate) use self::append::rows_schema;
pub(crate) use self::{
    append::{PROBLEMS_MAX, Rows, check_columns, made_bytes, retractions},
    convert::converted,
    ledger::{LEDGER_RECORDS_MAX, ledger_rows, ledger_spec},
};
