//! One commit: what a dataset's committer is asked for, who may ask for it, and how it becomes the next version of the table.
//! A publish is durable when its log entry is in the lake: `writer` returns then, and only then the publisher is told.
//!
//! | file or room | subject |
//! | --- | --- |
//! | `request` | publishes, leases, changes and rewrites that the committer is asked for |
//! | `committer` | one task for each dataset that makes its commits, one after the other |
//! | `writer` | makes one commit at the next version; `table/delta` writes its entry to the log |
//! | `publish` | publishes as commits: a group of them, and whether each may go into it |
//! | `grant` | leases as commits |
//! | `lease` | who may be granted a lease |
//! | `alter` | changes of a dataset by hand |
//! | `evolve` | another definition of a dataset, and its files made anew |
//! | `rename` | a dataset gets another name |
//! | `rows` | the rows of a commit: checked, converted, or of the run ledger |
//! | `pending` | a bound on the bytes of all publishes in memory |

mod alter;
mod committer;
mod evolve;
mod grant;
mod lease;
mod pending;
mod publish;
mod rename;
mod request;
mod rows;
mod writer;

#[cfg(test)]
pub(crate) use self::rows::rows_schema;
pub(crate) use self::{
    committer::Committers,
    lease::granted_ttl,
    pending::{Held, Pending},
    rename::{finish_rename, rename_dataset},
    request::{Acquisition, Change, ChangeKind, Effect, ID_BYTES_MAX, Publish, Rewrite, Right},
    rows::{LEDGER_RECORDS_MAX, Rows, check_columns, ledger_rows, ledger_spec, made_bytes},
};
