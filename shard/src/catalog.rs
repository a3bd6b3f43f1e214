//! The datasets of the lake: found, opened once, kept.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures::StreamExt;
use parking_lot::RwLock;
use trellis_proto::{Code, DatasetName, Error, Result, name::nearest};

use crate::{
    committer::Committer,
    delta::Log,
    metrics::Metrics,
    store::Lake,
    table::{Shared, Snapshot, Table},
};

/// Tables opened at once at start.
const OPEN_PARALLEL: usize = 8;

/// All datasets.
#[derive(Debug)]
pub(crate) struct Catalog {
    pub(crate) lake: Lake,
    pub(crate) shared: Arc<Shared>,
    apply_wait: Duration,
    metrics: Arc<Metrics>,
    tables: RwLock<BTreeMap<DatasetName, Arc<Dataset>>>,
}

/// A dataset and, once it is needed, its committer.
#[derive(Debug)]
pub(crate) struct Dataset {
    pub(crate) table: Arc<Table>,
    committer: OnceLock<Committer>,
}

impl Catalog {
    pub(crate) fn new(lake: Lake, shared: Arc<Shared>, apply_wait: Duration, metrics: Arc<Metrics>) -> Self {
        Self { lake, shared, apply_wait, metrics, tables: RwLock::default() }
    }

    /// Opens every table of the lake. One that does not open is logged and tried again when it is asked for: the others are
    /// served.
    ///
    /// # Errors
    /// The lake cannot be listed.
    pub(crate) async fn load(&self) -> Result<()> {
        let names = self.lake.datasets().await?;
        futures::stream::iter(names)
            .for_each_concurrent(OPEN_PARALLEL, |name| async move {
                let dataset = self.entry(&name);
                match dataset.table.load().await {
                    Ok(Some(_)) => {}
                    Ok(None) => self.forget(&name),
                    Err(error) => tracing::error!(dataset = %name, %error, "a dataset does not open"),
                }
            })
            .await;
        Ok(())
    }

    /// The dataset and its newest snapshot.
    ///
    /// # Errors
    /// [`Code::UnknownDataset`], or what keeps it from being read.
    pub(crate) async fn find(&self, name: &str) -> Result<(Arc<Dataset>, Arc<Snapshot>)> {
        let (dataset, snapshot) = self.find_any(name).await?;
        if snapshot.life.dropped {
            return Err(self.unknown(name));
        }
        Ok((dataset, snapshot))
    }

    fn unknown(&self, name: &str) -> Error {
        let error = Error::new(Code::UnknownDataset, format!("there is no dataset {name:?}")).dataset(name);
        let names = self.names();
        match nearest(name, names.iter().map(DatasetName::as_str)) {
            Some(near) => error.hint(format!("did you mean {near}?")),
            None => error,
        }
    }

    /// As [`Self::find`], also of a dataset that was dropped.
    pub(crate) async fn find_any(&self, name: &str) -> Result<(Arc<Dataset>, Arc<Snapshot>)> {
        let valid = DatasetName::new(name).map_err(|e| {
            let error = Error::new(Code::UnknownDataset, format!("there is no dataset {name:?}"));
            error.dataset(name).hint(e.message())
        })?;
        let held = self.tables.read().get(&valid).cloned();
        let dataset = match held {
            Some(dataset) => Some(dataset),
            // Looked for before it is kept: a name that somebody made up is not. Then opened by the one object that everybody
            // shares, so that each version is told to the watchers once, and in order.
            None if self.log(&valid).exists().await? => Some(self.entry(&valid)),
            None => None,
        };
        let snapshot = match &dataset {
            Some(dataset) => dataset.table.refresh().await?,
            None => None,
        };
        dataset.zip(snapshot).ok_or_else(|| self.unknown(name))
    }

    /// The dataset, whether or not its table is there: to make it.
    pub(crate) fn entry(&self, name: &DatasetName) -> Arc<Dataset> {
        if let Some(held) = self.tables.read().get(name) {
            return held.clone();
        }
        let made = Arc::new(self.dataset(name));
        self.tables.write().entry(name.clone()).or_insert(made).clone()
    }

    /// Every dataset that is known here.
    pub(crate) fn all(&self) -> Vec<Arc<Dataset>> {
        self.tables.read().values().cloned().collect()
    }

    /// Looks for datasets that another shard or tool has made.
    pub(crate) async fn discover(&self) -> Result<()> {
        let known: BTreeSet<DatasetName> = self.tables.read().keys().cloned().collect();
        for name in self.lake.datasets().await? {
            if !known.contains(&name)
                && let Err(error) = self.find(name.as_str()).await
                && error.code() != Code::UnknownDataset
            {
                tracing::warn!(dataset = %name, %error, "a new dataset does not open");
            }
        }
        Ok(())
    }

    fn names(&self) -> Vec<DatasetName> {
        let tables = self.tables.read();
        let there = |d: &Dataset| d.table.snapshot().is_some_and(|snapshot| !snapshot.life.dropped);
        tables.iter().filter(|(_, d)| there(d)).map(|(name, _)| name.clone()).collect()
    }

    fn forget(&self, name: &DatasetName) {
        self.tables.write().remove(name);
    }

    fn dataset(&self, name: &DatasetName) -> Dataset {
        let table = Table::new(name, self.log(name), self.shared.clone());
        Dataset { table: Arc::new(table), committer: OnceLock::new() }
    }

    fn log(&self, name: &DatasetName) -> Log {
        Log::new(name, self.lake.folder(name))
    }

    /// The dataset's committer, which is started when it is first asked for.
    pub(crate) fn committer(&self, dataset: &Dataset) -> Committer {
        dataset
            .committer
            .get_or_init(|| Committer::start(dataset.table.clone(), self.apply_wait, self.metrics.clone()))
            .clone()
    }
}
