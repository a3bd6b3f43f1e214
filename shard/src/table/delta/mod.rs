//! The Delta log of a table: its files, the actions of an entry, commits and checkpoints. Only this room knows the Delta kernel.
//!
//! | file | subject |
//! | --- | --- |
//! | `log` | reads an entry, commits an entry, writes checkpoints |
//! | `entry` | the actions of one entry |
//! | `listing` | the files of the log, and which of them nobody needs any more |
//! | `summed` | the store of the kernel: compares what it reads with checksums, and writes the checksum of each checkpoint |

mod entry;
mod listing;
mod log;
mod summed;

#[cfg(test)]
pub(crate) use self::entry::parse_entry;
pub(crate) use self::{
    entry::{Actions, Definition, Entry, Region, Txn},
    log::{Committed, Log, State},
};
