//! A dataset as it is now, and how it came to be: the Delta log of its table, the newest snapshot of it, and the spans that each
//! commit touched.
//!
//! Every commit becomes visible in one way, whoever made it: a refresh reads the next entry of the log, builds the next snapshot,
//! and tells the watchers.
//!
//! | file or room | subject |
//! | --- | --- |
//! | `table` | one dataset, version by version |
//! | `kept` | what the shard keeps of a dataset, also while its table is closed |
//! | `snapshot` | a dataset at one version |
//! | `delta` | the Delta log of a table |
//! | `txns` | what checkpoints keep, too |
//! | `lease` | the lease as the table has it |
//! | `runs` | the runs that were committed |
//! | `touched` | the spans that a commit touched |
//! | `history` | the spans of past commits |
//! | `change` | the event that tells watchers of a commit |
//! | `context` | what all tables of a shard share |
//! | `unopened` | the datasets that do not open |

mod change;
mod context;
mod delta;
mod history;
mod kept;
mod lease;
mod runs;
mod snapshot;
#[expect(clippy::module_inception, reason = "the room is named after its main type")]
mod table;
mod touched;
mod txns;
mod unopened;

pub(crate) use self::{
    context::Context,
    delta::{Actions, Committed, Definition, Log},
    kept::Kept,
    lease::{Grant, Holder, StoredLease, TTL_DEFAULT},
    runs::{CommittedRun, SessionKey},
    snapshot::{MOVING_PROPERTY, Snapshot, not_dropped},
    table::{CHECKPOINT_COMMITS_MIN, Table},
    unopened::Unopened,
};
