//! The datasets that do not open: a list of datasets without them would look whole.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use trellis_proto::{DatasetName, Error, pb};

/// Most of them in one description. A few tell an operator what is wrong; if the store is away, each dataset of a shard may be one.
const TOLD_MAX: usize = 16;

/// The datasets that are in the lake and that this shard has never described, each with the reason why its table does not open.
#[derive(Debug, Default)]
pub(crate) struct Unopened {
    errors: Mutex<BTreeMap<DatasetName, Error>>,
}

impl Unopened {
    pub(super) fn add(&self, name: &DatasetName, error: Error) {
        self.errors.lock().insert(name.clone(), error.dataset(name));
    }

    pub(crate) fn has(&self, name: &DatasetName) -> bool {
        self.errors.lock().contains_key(name)
    }

    pub(super) fn remove(&self, name: &DatasetName) {
        let mut errors = self.errors.lock();
        // every look at a table comes here
        if !errors.is_empty() {
            errors.remove(name);
        }
    }

    /// The first of them.
    pub(crate) fn told(&self) -> Vec<pb::ErrorDetail> {
        self.errors.lock().values().take(TOLD_MAX).cloned().map(pb::ErrorDetail::from).collect()
    }
}

#[cfg(test)]
mod tests {
    use crate::{shard::Shard, testing::Grid};

    /// Datasets that a shard names as unopened, with the reasons.
    async fn unopened(shard: &Shard) -> Vec<(String, String)> {
        let said = shard.describe(true).await.unwrap().unopened;
        said.into_iter().map(|of| (of.dataset, of.message)).collect()
    }

    #[tokio::test]
    async fn a_dataset_that_does_not_open_is_named_in_every_list_that_lacks_it() {
        let grid = Grid::new().await;
        grid.import(&[("A", 0, 1.0)]).await.unwrap();
        let entry = grid.path().join("_delta_log/00000000000000000000.json");
        let bytes = std::fs::read(&entry).unwrap();
        std::fs::write(&entry, &bytes[..bytes.len() / 2]).unwrap();

        let other = grid.beside().await;
        assert_eq!(other.describe(false).await.unwrap().datasets, []);
        let told = unopened(&other).await;
        assert_eq!((told.len(), told[0].0.as_str()), (1, "d.a"));
        assert!(told[0].1.contains("00000000000000000000.json"), "{told:?}");
        assert_eq!(unopened(&grid.shard).await, [], "it has opened the dataset before");

        std::fs::write(&entry, &bytes).unwrap();
        let said = other.describe(false).await.unwrap();
        assert_eq!((said.datasets.len(), said.unopened.len()), (1, 0));
    }

    #[tokio::test]
    async fn a_dataset_that_was_moved_out_of_the_lake_is_not_missed() {
        let grid = Grid::new().await;
        grid.import(&[("A", 0, 1.0)]).await.unwrap();
        std::fs::write(grid.path().join("_delta_log/00000000000000000000.json"), "{").unwrap();
        let other = grid.beside().await;
        other.describe(false).await.unwrap();
        assert_eq!(unopened(&other).await.len(), 1);
        std::fs::remove_dir_all(grid.path()).unwrap();
        other.catalog.look(&"d.a".parse().unwrap()).await.unwrap();
        assert_eq!(unopened(&other).await, []);
    }
}
