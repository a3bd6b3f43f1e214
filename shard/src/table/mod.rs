//! A dataset as it is now, and how it came to be: the Delta log of its table, the newest snapshot of it, the spans that each commit
//! touched, and the log of changes that heads follow.
//!
//! Every commit becomes visible in one way, whoever made it: a refresh reads the next entry of the log, builds the next snapshot,
//! and tells the watchers.
//!
//! | file | subject |
//! | --- | --- |
//! | `catalog` | the datasets of the lake |
//! | `opened` | which tables stay open |
//! | `kept` | what the shard keeps of a dataset, also while its table is closed |
//! | `left` | the descriptions that a shard leaves for its next life |
//! | `table` | one dataset, version by version |
//! | `snapshot` | a dataset at one version |
//! | `delta` | the Delta log of a table: reads an entry, commits an entry, writes checkpoints |
//! | `listing` | the files of the log, and which of them nobody needs any more |
//! | `entry` | the actions of one entry of the log |
//! | `summed` | a store that writes the checksum of each checkpoint |
//! | `txns` | what checkpoints keep, too |
//! | `lease` | the lease as the table has it |
//! | `runs` | the runs that were committed |
//! | `touched` | the spans that a commit touched |
//! | `history` | the spans of past commits |
//! | `change` | the event that tells watchers of a commit |
//! | `watch_log` | the log of changes, and its watchers |
//! | `context` | what all tables of a shard share |
//! | `unopened` | the datasets that do not open |

mod catalog;
mod change;
mod context;
mod delta;
mod entry;
mod history;
mod kept;
mod lease;
mod left;
mod listing;
mod opened;
mod runs;
mod snapshot;
mod summed;
#[expect(clippy::module_inception, reason = "the room is named after its main type")]
mod table;
mod touched;
mod txns;
mod unopened;
mod watch_log;

pub(crate) use self::{
    catalog::{Catalog, Turn},
    context::Context,
    delta::{Committed, Log},
    entry::{Actions, Definition},
    lease::{Grant, Holder, StoredLease, TTL_DEFAULT},
    runs::{CommittedRun, SessionKey},
    snapshot::{MOVING_PROPERTY, Snapshot, not_dropped},
    table::{CHECKPOINT_COMMITS_MIN, Table},
    unopened::Unopened,
    watch_log::{News, Subscription, WatchLog},
};
