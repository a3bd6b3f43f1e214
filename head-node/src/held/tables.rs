//! Datasets by name, as their shards describe them.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
};

use parking_lot::Mutex;
use trellis_proto::{Code, DatasetName, Error, Result, pb::DatasetDescription};

use super::datasets::{Table, TableCounters, spec_of};

/// Datasets by name.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    known: parking_lot::RwLock<HashMap<DatasetName, Arc<Table>>>,
    /// Datasets that were dropped, with the version that ended each. A description of an earlier version is out of date.
    dropped: Mutex<HashMap<DatasetName, u64>>,
    counters: Arc<TableCounters>,
}

/// What has become of a dataset by a description.
#[derive(Debug, Default)]
pub(crate) struct Described {
    /// `None`: it is dropped.
    pub(crate) now: Option<Arc<Table>>,
    /// The table that it had, if it is another one now.
    pub(super) before: Option<Arc<Table>>,
}

impl Tables {
    /// No datasets. What they will count is also counted in `counters`.
    pub(crate) fn new(counters: &Arc<TableCounters>) -> Self {
        Self { counters: Arc::clone(counters), ..Self::default() }
    }

    pub(crate) fn get(&self, name: &DatasetName) -> Option<Arc<Table>> {
        self.known.read().get(name).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Table>> {
        self.known.read().values().cloned().collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.known.read().len()
    }

    /// Forgets a dataset, also that it was dropped, unless its table is in use or holds something. Returns whether it is gone.
    pub(crate) fn forget_unused(&self, name: &DatasetName) -> bool {
        let mut known = self.known.write();
        if let Entry::Occupied(entry) = known.entry(name.clone()) {
            // nobody gets the table while the map is locked
            if Arc::strong_count(entry.get()) > 1 || !entry.get().is_empty() {
                return false;
            }
            entry.remove();
        }
        self.dropped.lock().remove(name);
        true
    }

    /// The table of a dataset as a shard describes it, made if it is new. A later version with another spec makes another table. An
    /// earlier version changes nothing, and its rows must not be read with the table's spec.
    ///
    /// # Errors
    /// [`Code::Conflict`] if the dataset is known with another spec at the same version; [`Code::InvalidRequest`] if the description
    /// is not valid.
    pub(crate) fn take(&self, said: &DatasetDescription) -> Result<Described> {
        let spec = spec_of(said)?;
        let is = |table: &Table| table.schema == said.schema && *table.spec == spec;
        let same = |table: &Arc<Table>| Described { now: Some(Arc::clone(table)), before: None };
        if let Some(table) = self.get(&spec.dataset).filter(|table| is(table) && !said.dropped) {
            return Ok(same(&table));
        }
        let mut known = self.known.write();
        let mut dropped = self.dropped.lock();
        if dropped.get(&spec.dataset).is_some_and(|end| said.version <= *end) {
            return Ok(Described::default());
        }
        let before = known.get(&spec.dataset).cloned();
        let now = match &before {
            Some(table) if said.dropped && said.version < table.dataset().version => return Ok(same(table)),
            _ if said.dropped => None,
            Some(table) if is(table) || said.version < table.dataset().version => return Ok(same(table)),
            Some(table) if said.version == table.dataset().version => {
                let message = format!("shards disagree on what {} is", spec.dataset);
                return Err(Error::new(Code::Conflict, message).dataset(&spec.dataset));
            }
            Some(table) => Some(table.redefined(spec.clone(), said.schema, said.version)),
            None => Some(Table::new(spec.clone(), said.schema, said.version, &self.counters)),
        };
        let now = now.map(Arc::new);
        match &now {
            Some(table) => {
                dropped.remove(&spec.dataset);
                known.insert(spec.dataset.clone(), Arc::clone(table));
            }
            None => {
                dropped.insert(spec.dataset.clone(), said.version);
                known.remove(&spec.dataset);
            }
        }
        Ok(Described { now, before })
    }
}
