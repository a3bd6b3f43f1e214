//! How many heads serve a dataset, as far as a client knows.
//!
//! Any head answers any read, so a client that knows older numbers gets the same rows. It only asks heads that do not hold them yet.

use std::time::Duration;

use moka::sync::Cache;
use trellis_proto::{DatasetName, pb};

/// Most datasets whose numbers a client keeps, a few hundred bytes each. If there are more, the client asks again for the
/// descriptions of those that it rarely reads.
const DATASETS_MAX: u64 = 4_096;
/// The client forgets the numbers that nobody has used for this long, and asks for them again. A strategy that reads so rarely
/// does not notice the question.
const IDLE: Duration = Duration::from_secs(3_600);

/// How many heads serve a dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Spread {
    /// Heads in each copy.
    pub(crate) heads: u32,
    /// Copies. 0 is one.
    pub(crate) copies: u32,
}

impl From<&pb::DatasetDescription> for Spread {
    fn from(described: &pb::DatasetDescription) -> Self {
        Self { heads: described.spread, copies: described.copies }
    }
}

impl From<&pb::Receipt> for Spread {
    fn from(receipt: &pb::Receipt) -> Self {
        Self { heads: receipt.spread, copies: receipt.copies }
    }
}

/// The numbers of the datasets that a client reads. Clones share them.
#[derive(Clone)]
pub(crate) struct Spreads {
    known: Cache<DatasetName, Spread>,
}

impl Default for Spreads {
    fn default() -> Self {
        Self { known: Cache::builder().max_capacity(DATASETS_MAX).time_to_idle(IDLE).build() }
    }
}

impl Spreads {
    /// The numbers that a head has told, if they are known.
    pub(crate) fn of(&self, dataset: &DatasetName) -> Option<Spread> {
        self.known.get(dataset)
    }

    /// A head has told the numbers.
    pub(crate) fn told(&self, dataset: &DatasetName, spread: Spread) {
        if self.of(dataset) != Some(spread) {
            self.known.insert(dataset.clone(), spread);
        }
    }
}
