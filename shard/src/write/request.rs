//! What a dataset's committer is asked for.

use std::{ops::Range, sync::Arc, time::Duration};

use serde_json::Value;
use tokio::sync::oneshot;
use trellis_proto::{DatasetName, DatasetSpec, Result, pb, spec::Alteration};

use super::append::Rows;
use crate::{
    files::{FileRef, WrittenFile},
    table::{Holder, SessionKey},
};

/// Longest run id, session partition, code digest and name of a person, in bytes: the log keeps them.
pub(crate) const ID_BYTES_MAX: usize = 256;

/// What may be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Right {
    /// The holder of the lease with this epoch.
    Session { unit: String, epoch: u64 },
    /// Who may be granted the lease now: taken, used and given back in one commit.
    Once { holder: Holder, take_over: bool },
    /// It is no unit's output. With a knowledge time of its own, or that of the commit.
    Import { known_at: Option<i64> },
    /// The shard itself.
    Ledger,
}

/// What a publish means to rows that are there already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Its rows stand for themselves: a row of the same key is corrected, others stay.
    Adds,
    /// Its rows are all that holds of these event times. With a partition: all that holds of what the partition has published.
    Replaces(Range<i64>),
    /// Its rows are keys: what the dataset has there no longer holds.
    Retracts,
}

/// Checked rows on their way into the table.
#[derive(Debug)]
pub(crate) struct Publish {
    pub(crate) right: Right,
    /// What the rows were checked against; the table is made with it if it is not there.
    pub(crate) spec: Arc<DatasetSpec>,
    pub(crate) rows: Rows,
    /// Empty: not idempotent.
    pub(crate) run_id: String,
    pub(crate) digest: String,
    /// Which session and partition it publishes; `None` of imports and the ledger.
    pub(crate) session: Option<SessionKey>,
    pub(crate) watermark: Option<i64>,
    pub(crate) effect: Effect,
    /// For people: goes into the commit's metadata.
    pub(crate) note: Value,
}

impl Publish {
    /// Whether it goes into a commit of its own. An import with its own knowledge time, or one that retracts, is checked against
    /// what is known of its symbols, and what it would be grouped with is not known yet. A publish with its own lease fences the
    /// others.
    pub(crate) fn goes_alone(&self) -> bool {
        matches!(self.right, Right::Import { known_at: Some(_) } | Right::Once { .. })
            || self.effect == Effect::Retracts
    }

    /// What a partition's publish stands for; `None` for all others.
    pub(super) fn partition(&self) -> Option<&SessionKey> {
        self.session.as_ref().filter(|key| !key.partition.is_empty())
    }
}

/// Who waits for an acknowledgement.
pub(super) type Reply = oneshot::Sender<Result<pb::PublishAck>>;

/// A publish that is not judged yet.
pub(super) type Waiting = (Box<Publish>, Reply);

/// A request for the lease. What it may be answered, by code: [`Code::Conflict`] while another instance holds it, which passes
/// by itself; [`Code::PermissionDenied`] if it is another unit's output, and [`Code::InvalidRequest`] if the dataset has another
/// schema, which do not; [`Code::Unavailable`] while it is not known whether another instance still lives, and if the table was
/// changed under the request too often, which asking again settles.
#[derive(Debug)]
pub(crate) struct Acquisition {
    pub(crate) holder: Holder,
    pub(crate) ttl: Duration,
    pub(crate) take_over: bool,
    /// Makes the dataset if it is not there; if it is, must match.
    pub(crate) spec: Option<Arc<DatasetSpec>>,
}

/// A request to change a dataset.
#[derive(Debug)]
pub(crate) struct Change {
    /// Asked again with the same, it is answered again.
    pub(crate) id: String,
    /// Who asks; for people.
    pub(crate) by: String,
    pub(crate) kind: ChangeKind,
}

/// How a dataset changes.
#[derive(Debug)]
pub(crate) enum ChangeKind {
    Alter(Alteration),
    Drop,
    /// The steps of a rename, see [`rename`](super::rename): it begins, it has been done, it is given up.
    BeginRename(DatasetName),
    EndRename(DatasetName),
    CancelRename,
}

/// Files that replace others with the same rows.
#[derive(Debug)]
pub(crate) struct Rewrite {
    pub(crate) removes: Vec<FileRef>,
    pub(crate) adds: Vec<WrittenFile>,
}
