//! The datasets of the lake. Each is opened once and kept.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use futures::StreamExt;
use parking_lot::RwLock;
use trellis_proto::{Code, DatasetName, Error, Result, name::nearest};

use super::{context::Context, delta::Log, snapshot::Snapshot, table::Table};
use crate::files::Lake;

/// Tables opened at once at start.
const OPEN_PARALLEL: usize = 8;

/// All datasets.
#[derive(Debug)]
pub(crate) struct Catalog {
    pub(crate) lake: Lake,
    context: Arc<Context>,
    tables: RwLock<BTreeMap<DatasetName, Arc<Table>>>,
}

impl Catalog {
    pub(crate) fn new(lake: Lake, context: Arc<Context>) -> Self {
        Self { lake, context, tables: RwLock::default() }
    }

    /// Opens every table of the lake. A table that does not open is logged, and opened again when somebody asks for it. The others
    /// are served.
    ///
    /// # Errors
    /// The lake cannot be listed.
    pub(crate) async fn load(&self) -> Result<()> {
        let names = self.lake.datasets().await?;
        futures::stream::iter(names)
            .for_each_concurrent(OPEN_PARALLEL, |name| async move {
                match self.entry(&name).load().await {
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
    /// [`Code::UnknownDataset`], or the reason why it cannot be read.
    pub(crate) async fn find(&self, name: &str) -> Result<(Arc<Table>, Arc<Snapshot>)> {
        let (table, snapshot) = self.find_any(name).await?;
        if snapshot.life.dropped {
            return Err(self.unknown(name));
        }
        Ok((table, snapshot))
    }

    fn unknown(&self, name: &str) -> Error {
        let error = Error::new(Code::UnknownDataset, format!("there is no dataset {name:?}")).dataset(name);
        let names = self.names();
        match nearest(name, names.iter().map(DatasetName::as_str)) {
            Some(near) => error.hint(format!("did you mean {near}?")),
            None => error,
        }
    }

    /// As [`Self::find`], and also finds a dropped dataset.
    pub(crate) async fn find_any(&self, name: &str) -> Result<(Arc<Table>, Arc<Snapshot>)> {
        let valid = DatasetName::new(name).map_err(|e| {
            let error = Error::new(Code::UnknownDataset, format!("there is no dataset {name:?}"));
            error.dataset(name).hint(e.message())
        })?;
        let held = self.tables.read().get(&valid).cloned();
        let table = match held {
            Some(table) => Some(table),
            // Look before it is kept: a made-up name is not kept. All callers then share one `Table`, so watchers are told of each
            // version once, and in order.
            None if self.log(&valid).exists().await? => Some(self.entry(&valid)),
            None => None,
        };
        let snapshot = match &table {
            Some(table) => table.refresh().await?,
            None => None,
        };
        table.zip(snapshot).ok_or_else(|| self.unknown(name))
    }

    /// The dataset, even if its table is not there yet.
    pub(crate) fn entry(&self, name: &DatasetName) -> Arc<Table> {
        if let Some(held) = self.tables.read().get(name) {
            return held.clone();
        }
        let made = Arc::new(Table::new(name, self.log(name), self.context.clone()));
        self.tables.write().entry(name.clone()).or_insert(made).clone()
    }

    /// Every dataset that is known here.
    pub(crate) fn all(&self) -> Vec<Arc<Table>> {
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
        let there = |table: &Table| table.snapshot().is_some_and(|snapshot| !snapshot.life.dropped);
        tables.iter().filter(|(_, table)| there(table)).map(|(name, _)| name.clone()).collect()
    }

    fn forget(&self, name: &DatasetName) {
        self.tables.write().remove(name);
    }

    fn log(&self, name: &DatasetName) -> Log {
        Log::new(name, self.lake.folder(name))
    }
}
