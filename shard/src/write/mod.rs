//! One commit: what a dataset's committer is asked for, who may ask for it, and how it becomes the next version of the table.
//! A publish is durable when its log entry is in the lake: `writer` returns then, and only then the publisher is told.
//!
//! | file | subject |
//! | --- | --- |
//! | `request` | publishes, leases, changes and rewrites that the committer is asked for |
//! | `committer` | one task for each dataset that makes its commits, one after the other |
//! | `writer` | makes one commit at the next version; `table/delta` writes its entry to the log |
//! | `publish` | a group of publishes as one commit |
//! | `judge` | whether a publish may go into the commit |
//! | `accepted` | a publish that may |
//! | `grant` | leases as commits |
//! | `lease` | who may be granted a lease |
//! | `alter` | changes of a dataset by hand |
//! | `evolve` | another definition of a dataset, and its files made anew |
//! | `convert` | rows of an older definition made anew |
//! | `rename` | a dataset gets another name |
//! | `append` | published rows, checked and sorted |
//! | `ledger` | the rows of the run ledger |
//! | `room` | whether the rows of a publish can be read back in one message |
//! | `pending` | a bound on the bytes of all publishes in memory |

mod accepted;
mod alter;
mod append;
mod committer;
mod convert;
mod evolve;
mod grant;
mod judge;
mod lease;
mod ledger;
mod pending;
mod publish;
mod rename;
mod request;
mod room;
mod writer;

#[cfg(test)]
pub(crate) use self::append::rows_schema;
pub(crate) use self::{
    append::{Rows, check_columns, made_bytes},
    committer::Committers,
    lease::granted_ttl,
    ledger::{LEDGER_RECORDS_MAX, ledger_rows, ledger_spec},
    pending::{Held, Pending},
    rename::{finish_rename, rename_dataset},
    request::{Acquisition, Change, ChangeKind, Effect, ID_BYTES_MAX, Publish, Rewrite, Right},
};
