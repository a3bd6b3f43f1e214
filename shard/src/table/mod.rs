//! A dataset as it is now, and how it came to be: the Delta log of its table, the newest snapshot of it, the spans that each commit
//! touched, and the log of changes that heads follow.
//!
//! Every commit becomes visible in one way, whoever made it: a refresh reads the next entry of the log, builds the next snapshot,
//! and tells the watchers.
//!
//! | file | subject |
//! | --- | --- |
//! | `catalog`, `opened`, `kept` | the datasets of the lake; which tables are open; what is kept of the others |
//! | `left` | the descriptions that a shard leaves for its next life |
//! | `table`, `snapshot` | one dataset, version by version; one dataset at one version |
//! | `delta`, `listing`, `entry` | the Delta log: reads and commits; its files; the actions of one entry |
//! | `summed` | checksums of checkpoints |
//! | `txns`, `lease`, `runs` | what checkpoints keep; the lease as it is stored; committed runs |
//! | `touched`, `history`, `change` | the spans of a commit; those of past commits; the event that tells watchers |
//! | `watch_log`, `context` | the log of changes and its watchers; what all tables of a shard share |
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
    watch_log::{Subscription, WatchLog},
};
