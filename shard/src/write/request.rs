//! The requests to a dataset's committer.

use std::{ops::Range, sync::Arc, time::Duration};

use serde_json::Value;
use tokio::sync::oneshot;
use trellis_proto::{DatasetName, DatasetSpec, Result, pb, spec::Alteration};

use super::{pending::Held, rows::Rows};
use crate::{
    files::{FileRef, WrittenFile},
    table::{Holder, SessionKey},
};

/// Longest run id, session partition, code digest and name of a person, in bytes: the log keeps them.
pub(crate) const ID_BYTES_MAX: usize = 256;

/// The right by which somebody publishes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Right {
    /// The unit holds the lease with this epoch.
    Session { unit: String, epoch: u64 },
    /// The publish takes a lease, uses it and gives it back, all in one commit.
    Once { holder: Holder, take_over: bool },
    /// The dataset is no unit's output. Without a knowledge time of its own, the import gets that of the commit.
    Import { known_at: Option<i64> },
    /// The shard itself records runs.
    Ledger,
}

/// What a publish does to the rows that the dataset has already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Effect {
    /// A row of the same key is corrected. All other rows stay.
    Adds,
    /// Rows with these event times that the publish lacks are retracted. If the publish has a partition, only the rows that
    /// this partition published are.
    Replaces(Range<i64>),
    /// Its rows are keys, and the rows with these keys are retracted.
    Retracts,
}

/// Checked rows to be committed.
#[derive(Debug)]
pub(crate) struct Publish {
    pub(crate) right: Right,
    /// The spec that the rows were checked against. A table that is not there is made with it.
    pub(crate) spec: Arc<DatasetSpec>,
    pub(crate) rows: Rows,
    /// If it is empty, the same publish sent twice is committed twice.
    pub(crate) run_id: String,
    pub(crate) digest: String,
    /// The session and partition that it publishes; imports and the ledger have none.
    pub(crate) session: Option<SessionKey>,
    pub(crate) watermark: Option<i64>,
    pub(crate) effect: Effect,
    /// For people: the commit's metadata has it.
    pub(crate) note: Value,
    /// The memory that its rows count for; `None` for rows that the shard made.
    pub(crate) _held: Option<Held>,
}

impl Publish {
    /// Whether it needs a commit of its own. An import that retracts or has its own knowledge time is checked against the rows of
    /// the table, which lack those of its group. A publish with its own lease fences the others.
    pub(crate) fn goes_alone(&self) -> bool {
        matches!(self.right, Right::Import { known_at: Some(_) } | Right::Once { .. })
            || self.effect == Effect::Retracts
    }

    /// The session and partition; `None` if it has no partition.
    pub(super) fn partition(&self) -> Option<&SessionKey> {
        self.session.as_ref().filter(|key| !key.partition.is_empty())
    }
}

/// Sends the answer to the publisher.
pub(super) type Reply = oneshot::Sender<Result<pb::PublishAck>>;

/// A publish that is not judged yet.
pub(super) type Waiting = (Box<Publish>, Reply);

/// A request for the lease. It may be refused with
///
/// * [`Code::Conflict`]: another instance holds the lease. That passes by itself.
/// * [`Code::PermissionDenied`]: the dataset is another unit's output.
/// * [`Code::InvalidRequest`]: the dataset has another schema.
/// * [`Code::Unavailable`]: the shard does not know yet whether another instance lives, or others changed the table too often
///   meanwhile. Ask again.
///
/// [`Code::Conflict`]: trellis_proto::Code::Conflict
/// [`Code::PermissionDenied`]: trellis_proto::Code::PermissionDenied
/// [`Code::InvalidRequest`]: trellis_proto::Code::InvalidRequest
/// [`Code::Unavailable`]: trellis_proto::Code::Unavailable
#[derive(Debug)]
pub(crate) struct Acquisition {
    pub(crate) holder: Holder,
    pub(crate) ttl: Duration,
    pub(crate) take_over: bool,
    /// A dataset that is not there is made with it. One that is there must match it.
    pub(crate) spec: Option<Arc<DatasetSpec>>,
}

/// A request to change a dataset.
#[derive(Debug)]
pub(crate) struct Change {
    /// A change that comes again with the same id is answered as the first time.
    pub(crate) id: String,
    /// The person who asks, for other people.
    pub(crate) by: String,
    pub(crate) kind: ChangeKind,
}

/// How a dataset changes.
#[derive(Debug)]
pub(crate) enum ChangeKind {
    Alter(Alteration),
    Drop,
    /// The three steps of a rename, see [`rename`](super::rename): begin it, end it after the copy is made, or give it up.
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
