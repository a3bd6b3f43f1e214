//! A dataset gets another name.
//!
//! A name is a folder with a log of its own, so no single commit can do it. It goes in three steps; each can be made again,
//! and each leaves a lake that reads right:
//!
//! 1. The old table says that it moves. From then on it is read as before, and nobody writes to it.
//! 2. The new table is made in one commit, of copies of the old one's files. It says where it comes from.
//! 3. The old table is dropped.
//!
//! Who dies on the way leaves the mark of the first step; the home of the old table goes on from there when it is asked again,
//! and with its upkeep. Between the second step and the third the rows can be read under both names, and at no time under
//! none.

use std::sync::Arc;

use serde_json::{Map, json};
use trellis_proto::{Code, DatasetName, DatasetSpec, Error, Result, pb};

use crate::{
    catalog::Dataset,
    committer::CONFLICTS_MAX,
    delta::{Actions, Committed, Definition},
    error::store_error,
    evolve::{Change, What},
    file,
    schema::{self, Life},
    shard::Shard,
    table::{self, ALTERED, IMPORTED, Snapshot, WATERMARK},
};

/// Table property: the name that the dataset is about to get; empty: none.
pub(crate) const MOVING_PROPERTY: &str = "trellis.moving";
/// Table property: the dataset and version that this one was copied from.
const MOVED_PROPERTY: &str = "trellis.moved_from";

impl Snapshot {
    /// The name that the dataset is about to get.
    pub(crate) fn moving(&self) -> Option<&str> {
        let to = self.definition.properties.get(MOVING_PROPERTY).map(String::as_str);
        to.filter(|to| !to.is_empty() && !self.life.dropped)
    }

    /// Refuses to end a dataset that is not about to get the name `to`: another one was made under the old name.
    ///
    /// # Errors
    /// [`Code::Unavailable`]: asked again, the rename begins anew.
    pub(crate) fn check_moves(&self, to: &DatasetName) -> Result<()> {
        if self.moving() == Some(to.as_str()) {
            return Ok(());
        }
        let name = &self.spec.dataset;
        let what = format!("{name} is not the dataset any more that was to be renamed to {to}");
        Err(Error::new(Code::Unavailable, what).dataset(name))
    }

    /// Whether this dataset is no more because it got the name `to`.
    pub(crate) fn moved_to(&self, to: &DatasetName) -> bool {
        self.life.dropped
            && self.definition.properties.get(MOVING_PROPERTY).is_some_and(|name| name == to.as_str())
    }

    /// Refuses to write to a dataset that is about to get another name.
    ///
    /// # Errors
    /// [`Code::Unavailable`]: it passes by itself.
    pub(crate) fn check_stays(&self) -> Result<()> {
        let Some(to) = self.moving() else { return Ok(()) };
        let name = &self.spec.dataset;
        Err(Error::new(Code::Unavailable, format!("{name} is being renamed to {to}")).dataset(name))
    }
}

impl Shard {
    /// Gives a dataset of this shard another name.
    pub(crate) async fn rename(
        &self,
        from: &DatasetName,
        to: &DatasetName,
        id: String,
        by: String,
    ) -> Result<pb::DatasetChange> {
        let (dataset, snapshot) = self.catalog.find_any(from.as_str()).await?;
        if !snapshot.life.dropped {
            let mark = Change { id: String::new(), by: by.clone(), what: What::Move(to.clone()) };
            self.catalog.committer(&dataset).change(mark).await?;
        }
        self.finish_rename(&dataset, to, id, by).await
    }

    /// Goes on with a rename that has been marked.
    pub(crate) async fn finish_rename(
        &self,
        dataset: &Dataset,
        to: &DatasetName,
        id: String,
        by: String,
    ) -> Result<pb::DatasetChange> {
        let committer = self.catalog.committer(dataset);
        // of one that is dropped already the last step is only asked whether it was this rename
        if let Some(snapshot) = table::live(&dataset.table.refresh().await?)
            && let Err(error) = match snapshot.check_moves(to) {
                Ok(()) => self.copy_to(dataset, snapshot, to).await,
                Err(error) => Err(error),
            }
        {
            if error.code() == Code::Conflict {
                let stay = Change { id: String::new(), by, what: What::Stay };
                committer.change(stay).await?;
            }
            return Err(error);
        }
        committer.change(Change { id, by, what: What::Moved(to.clone()) }).await?;
        let (_, made) = self.catalog.find(to.as_str()).await?;
        Ok(pb::DatasetChange { dataset: to.to_string(), version: made.version, files_rewritten: 0 })
    }

    /// Makes the table of the new name, unless that has been done.
    async fn copy_to(&self, dataset: &Dataset, from: &Snapshot, to: &DatasetName) -> Result<()> {
        let target = self.catalog.entry(to);
        let log = &target.table.log;
        let origin = format!("{}@{}", from.spec.dataset, from.version);
        for _ in 0..CONFLICTS_MAX {
            let there = target.table.refresh().await?;
            if let Some(live) = table::live(&there) {
                return match live.definition.properties.get(MOVED_PROPERTY) {
                    Some(made_of) if *made_of == origin => Ok(()),
                    _ => Err(Error::new(Code::Conflict, format!("there is a dataset {to} already"))
                        .dataset(to)
                        .hint("drop that one first, or choose another name")),
                };
            }
            for file in &from.files {
                let copied = self.catalog.lake.copy(&from.spec.dataset, to, &file.file.path).await;
                copied.map_err(|e| store_error("copying to", &log.file_name(&file.file.path), &e))?;
            }
            let now_ms = target.table.shared.clock.now_ms();
            let version = there.as_ref().map_or(0, |there| there.version + 1);
            let life = Life {
                revision: there.as_ref().map_or(0, |there| there.life.revision + 1),
                since: version,
                dropped: false,
            };
            let spec = Arc::new(DatasetSpec { dataset: to.clone(), ..DatasetSpec::clone(&from.spec) });
            let mut properties = from.definition.properties.clone();
            properties.remove(MOVING_PROPERTY);
            properties.extend(schema::properties(&spec, &life));
            properties.insert(MOVED_PROPERTY.to_owned(), origin.clone());
            let definition = Definition {
                id: uuid::Uuid::new_v4().to_string(),
                name: Some(to.to_string()),
                properties,
                schema: schema::delta_schema(&spec),
                created_ms: from.definition.created_ms,
            };
            let info = Map::from_iter([("trellis".to_owned(), json!({"moved_from": origin}))]);
            let mut actions = Actions::new("RENAME", info, now_ms);
            actions.begin(&definition, there.is_none());
            for file in &from.files {
                actions.add(&file.file, &file::stats_of(&file.index), true, now_ms);
            }
            for (id, run) in dataset.table.all_runs() {
                let app = table::run_txn(
                    &id,
                    &run.digest,
                    run.known_at,
                    run.rows,
                    run.session.as_ref(),
                    run.retracted,
                );
                actions.txn(&app, version as i64, now_ms);
            }
            // All runs have this version now: none of them is later than the last import or change.
            for (app, known) in [(IMPORTED, from.imported), (ALTERED, from.altered)] {
                if known.is_some() {
                    actions.txn(app, version as i64, now_ms);
                }
            }
            if let Some(watermark) = from.watermark {
                actions.txn(WATERMARK, watermark, now_ms);
            }
            if log.commit(version, &actions).await? == Committed::Yes {
                target.table.refresh().await?;
                return Ok(());
            }
        }
        Err(Error::new(Code::Unavailable, format!("others are writing to {to}; try again")).dataset(to))
    }
}
