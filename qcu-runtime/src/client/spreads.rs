//! How many heads serve a dataset, as far as a client knows.
//!
//! Any head answers any read, so a client that knows an older number gets the same rows. It only asks heads that do not hold them yet.

use std::time::Duration;

use moka::sync::Cache;
use trellis_proto::DatasetName;

/// Most datasets whose number a client keeps, a few hundred bytes each. If there are more, the client asks again for the
/// descriptions of those that it rarely reads.
const DATASETS_MAX: u64 = 4_096;
/// The client forgets a number that nobody has used for this long, and asks for it again. A strategy that reads so rarely
/// does not notice the question.
const IDLE: Duration = Duration::from_secs(3_600);

/// The numbers of the datasets that a client reads. Clones share them.
#[derive(Clone)]
pub(crate) struct Spreads {
    known: Cache<DatasetName, u32>,
}

impl Default for Spreads {
    fn default() -> Self {
        Self { known: Cache::builder().max_capacity(DATASETS_MAX).time_to_idle(IDLE).build() }
    }
}

impl Spreads {
    /// The number that a head has told, if it is known.
    pub(crate) fn of(&self, dataset: &DatasetName) -> Option<u32> {
        self.known.get(dataset)
    }

    /// A head has told the number.
    pub(crate) fn told(&self, dataset: &DatasetName, spread: u32) {
        if self.of(dataset) != Some(spread) {
            self.known.insert(dataset.clone(), spread);
        }
    }
}
