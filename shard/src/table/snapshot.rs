//! A dataset at one version.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use trellis_proto::{Code, DatasetName, DatasetSpec, Error, Result, Symbol, pb};

use super::{context::Context, delta::Definition, lease::StoredLease};
use crate::files::{DataFile, Life};

/// Table property: the name that the dataset is about to get; empty if there is none.
pub(crate) const MOVING_PROPERTY: &str = "trellis.moving";

/// A dataset at one version.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) version: u64,
    pub(crate) spec: Arc<DatasetSpec>,
    pub(crate) life: Life,
    /// The [`DatasetSpec::fingerprint`] of the spec.
    pub(crate) schema: u64,
    /// The definition in the log.
    pub(crate) definition: Arc<Definition>,
    /// Whether the table has the column `retracted`. A table that was made before there were retractions gets it with its first
    /// retraction.
    pub(crate) retractable: bool,
    pub(crate) files: Vec<Arc<DataFile>>,
    /// The symbols that this shard owns and that have rows, even if all of those are retracted.
    pub(crate) symbols: Arc<BTreeSet<Symbol>>,
    /// Every later commit has a greater knowledge time, except an import with a knowledge time of its own.
    pub(crate) known_through: i64,
    pub(crate) watermark: Option<i64>,
    pub(crate) lease: StoredLease,
    /// When this process learned of the lease's epoch, by the clock of the table's leases.
    pub(crate) lease_learned: Duration,
    /// About how many bytes its parts take in memory.
    pub(crate) bytes: usize,
    /// Version of the newest import. It may have replaced rows of earlier publishes.
    pub(crate) imported: Option<u64>,
    /// Version of the newest change by hand. It may have changed rows of earlier publishes and imports.
    pub(crate) altered: Option<u64>,
}

impl Snapshot {
    /// Rows of all files.
    pub(crate) fn rows(&self) -> u64 {
        self.files.iter().map(|f| f.index.rows).sum()
    }

    /// Least and greatest event time of any row.
    pub(crate) fn bounds(&self) -> Option<(i64, i64)> {
        let filled = || self.files.iter().filter(|f| f.index.rows > 0);
        let first = filled().map(|f| f.index.first_ts).min()?;
        let last = filled().map(|f| f.index.last_ts).max()?;
        Some((first, last))
    }

    /// The description that heads get.
    pub(crate) fn describe(&self, context: &Context) -> pb::DatasetDescription {
        let bounds = self.bounds();
        pb::DatasetDescription {
            spec: Some(pb::DatasetSpec::from(self.spec.as_ref())),
            version: self.version,
            known_through_ns: self.known_through,
            watermark_ns: self.watermark,
            first_ts_ns: bounds.map(|b| b.0),
            last_ts_ns: bounds.map(|b| b.1),
            rows: self.rows(),
            symbols: self.symbols.len() as u64,
            home: context.home(self.spec.dataset.as_str()).to_owned(),
            schema: self.schema,
            dropped: self.life.dropped,
            spread: 0,
            copies: 0,
        }
    }

    /// The name that the dataset is about to get.
    pub(crate) fn moving(&self) -> Option<&str> {
        let to = self.definition.properties.get(MOVING_PROPERTY).map(String::as_str);
        to.filter(|to| !to.is_empty() && !self.life.dropped)
    }

    /// Refuses to end a dataset that is not about to get the name `to`: it is another dataset under the old name.
    ///
    /// # Errors
    /// [`Code::Unavailable`]: the rename begins anew when it is asked for again.
    pub(crate) fn check_moves(&self, to: &DatasetName) -> Result<()> {
        if self.moving() == Some(to.as_str()) {
            return Ok(());
        }
        let name = &self.spec.dataset;
        let what = format!("{name} is not the dataset any more that was to be renamed to {to}");
        Err(Error::new(Code::Unavailable, what).dataset(name))
    }

    /// Whether this dataset was dropped because it got the name `to`.
    pub(crate) fn moved_to(&self, to: &DatasetName) -> bool {
        self.life.dropped
            && self.definition.properties.get(MOVING_PROPERTY).is_some_and(|name| name == to.as_str())
    }

    /// Refuses to write to a dataset that is about to get another name.
    ///
    /// # Errors
    /// [`Code::Unavailable`]: the rename ends by itself.
    pub(crate) fn check_stays(&self) -> Result<()> {
        let Some(to) = self.moving() else { return Ok(()) };
        let name = &self.spec.dataset;
        Err(Error::new(Code::Unavailable, format!("{name} is being renamed to {to}")).dataset(name))
    }
}

/// The snapshot, unless its dataset was dropped.
pub(crate) fn not_dropped(snapshot: &Option<Arc<Snapshot>>) -> Option<&Arc<Snapshot>> {
    snapshot.as_ref().filter(|snapshot| !snapshot.life.dropped)
}
