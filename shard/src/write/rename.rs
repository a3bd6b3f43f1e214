//! A dataset gets another name.
//!
//! A name is a folder with a log of its own, so a rename is more than one commit. It has three steps. Each step can be repeated,
//! and after each step the lake reads right:
//!
//! 1. The old table is marked: it is about to move. From then on it is read as before, and nobody writes to it.
//! 2. The new table is made in one commit, from copies of the old files. It is marked with its origin.
//! 3. The old table is dropped.
//!
//! If the shard dies in between, the first mark stays. The home of the old table then finishes the rename, with its upkeep or
//! when it is asked again. Between the second step and the third, both names can be read. At least one name always can.

use std::sync::Arc;

use serde_json::{Map, json};
use trellis_proto::{Code, DatasetName, DatasetSpec, Error, Result, pb};

use super::{
    committer::Committers,
    request::{Change, ChangeKind},
    writer::CONFLICTS_MAX,
};
use crate::{
    catalog::Catalog,
    error::store_error,
    files::{Life, delta_schema, stats_of, table_properties},
    table::{Actions, Committed, CommittedRun, Definition, MOVING_PROPERTY, Snapshot, Table, not_dropped},
};

/// Table property: the dataset and version that this one was copied from.
const MOVED_PROPERTY: &str = "trellis.moved_from";

/// Gives a dataset of this shard another name.
pub(crate) async fn rename_dataset(
    catalog: &Catalog,
    committers: &Committers,
    from: &DatasetName,
    to: &DatasetName,
    id: String,
    by: String,
) -> Result<pb::DatasetChange> {
    let (table, snapshot) = catalog.find_any(from.as_str()).await?;
    if !snapshot.life.dropped {
        let begin = Change { id: String::new(), by: by.clone(), kind: ChangeKind::BeginRename(to.clone()) };
        committers.of(&table).change(begin).await?;
    }
    finish_rename(catalog, committers, &table, to, id, by).await
}

/// Goes on with a rename that has begun.
pub(crate) async fn finish_rename(
    catalog: &Catalog,
    committers: &Committers,
    table: &Arc<Table>,
    to: &DatasetName,
    id: String,
    by: String,
) -> Result<pb::DatasetChange> {
    let committer = committers.of(table);
    // If the dataset is dropped already, the last step only asks whether this rename dropped it.
    if let Some(snapshot) = not_dropped(&table.refresh().await?)
        && let Err(error) = match snapshot.check_moves(to) {
            Ok(()) => copy_to(catalog, table, snapshot, to).await,
            Err(error) => Err(error),
        }
    {
        if error.code() == Code::Conflict {
            committer.change(Change { id: String::new(), by, kind: ChangeKind::CancelRename }).await?;
        }
        return Err(error);
    }
    committer.change(Change { id, by, kind: ChangeKind::EndRename(to.clone()) }).await?;
    let (_, made) = catalog.find(to.as_str()).await?;
    Ok(pb::DatasetChange { dataset: to.to_string(), version: made.version, files_rewritten: 0 })
}

/// Makes the table of the new name, unless it has been made.
async fn copy_to(catalog: &Catalog, table: &Table, from: &Snapshot, to: &DatasetName) -> Result<()> {
    let target = catalog.entry(to);
    let log = &target.log;
    let origin = format!("{}@{}", from.spec.dataset, from.version);
    for _ in 0..CONFLICTS_MAX {
        let there = target.refresh().await?;
        if let Some(live) = not_dropped(&there) {
            return match live.definition.properties.get(MOVED_PROPERTY) {
                Some(made_of) if *made_of == origin => Ok(()),
                _ => Err(Error::new(Code::Conflict, format!("there is a dataset {to} already"))
                    .dataset(to)
                    .hint("drop that one first, or choose another name")),
            };
        }
        for file in &from.files {
            let copied = catalog.lake.copy(&from.spec.dataset, to, &file.file.path).await;
            copied.map_err(|e| store_error("copying to", &log.folder.file_name(&file.file.path), &e))?;
        }
        let now_ms = target.context.clock.now_ms();
        let version = there.as_ref().map_or(0, |there| there.version + 1);
        let life = Life {
            revision: there.as_ref().map_or(0, |there| there.life.revision + 1),
            since: version,
            dropped: false,
        };
        let spec = Arc::new(DatasetSpec { dataset: to.clone(), ..DatasetSpec::clone(&from.spec) });
        let mut properties = from.definition.properties.clone();
        properties.remove(MOVING_PROPERTY);
        properties.extend(table_properties(&spec, &life));
        properties.insert(MOVED_PROPERTY.to_owned(), origin.clone());
        let definition = Definition {
            id: uuid::Uuid::new_v4().to_string(),
            name: Some(to.to_string()),
            properties,
            schema: delta_schema(&spec),
            created_ms: from.definition.created_ms,
        };
        let info = Map::from_iter([("trellis".to_owned(), json!({"moved_from": origin}))]);
        let mut actions = Actions::new("RENAME", info, now_ms);
        actions.begin(&definition, there.is_none());
        for file in &from.files {
            actions.add(&file.file, &stats_of(&file.index), true, now_ms);
        }
        for (id, run) in table.all_runs() {
            actions.run(&id, &CommittedRun { version, ..run }, now_ms);
        }
        // All runs, imports and changes by hand have this version now. The judge compares these versions.
        if from.imported.is_some() {
            actions.imported(version, now_ms);
        }
        if from.altered.is_some() {
            actions.altered(version, now_ms);
        }
        if from.watermark.is_some() {
            actions.watermark(from.watermark, now_ms);
        }
        if log.commit(version, &actions).await? == Committed::Yes {
            target.refresh().await?;
            return Ok(());
        }
    }
    Err(Error::new(Code::Unavailable, format!("others are writing to {to}; try again")).dataset(to))
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;
    use crate::testing::{Grid, When};

    async fn begin(grid: &Grid, from: &DatasetName, to: &DatasetName, id: &str) -> Result<pb::DatasetChange> {
        rename_dataset(&grid.shard.catalog, &grid.shard.committers, from, to, id.to_owned(), "ada".to_owned())
            .await
    }

    async fn finish(grid: &Grid, to: &DatasetName, id: &str) -> Result<pb::DatasetChange> {
        let (catalog, committers) = (&grid.shard.catalog, &grid.shard.committers);
        finish_rename(catalog, committers, &grid.table(), to, id.to_owned(), "ada".to_owned()).await
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_rename_that_dies_at_any_point_leaves_one_name_or_is_finished() {
        let (from, to) = (DatasetName::new("d.a").unwrap(), DatasetName::new("d.b").unwrap());
        for (part, when) in [
            ("d.a/_delta_log", When::Before),
            ("d.a/_delta_log", When::After),
            ("d.b/_delta_log", When::Before),
            ("d.b/_delta_log", When::After),
        ] {
            let grid = Grid::new().await;
            for i in 0..3 {
                grid.import(&[("A", i, i as f64)]).await.unwrap();
            }
            grid.probe.fail(part, ErrorKind::Other, when);
            begin(&grid, &from, &to, "r").await.unwrap_err();
            let grid = grid.restart().await;
            let mut found = Vec::new();
            for name in ["d.a", "d.b"] {
                if let Ok((_, snapshot)) = grid.shard.catalog.find(name).await {
                    found.push(snapshot.rows());
                }
            }
            assert!(!found.is_empty() && found.iter().all(|rows| *rows == 3), "{part} {when:?}: {found:?}");
            begin(&grid, &from, &to, "r").await.unwrap();
            assert!(grid.shard.catalog.find("d.a").await.is_err());
            let (_, snapshot) = grid.shard.catalog.find("d.b").await.unwrap();
            assert_eq!((snapshot.rows(), snapshot.files.len()), (3, 3));
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_rename_that_the_upkeep_ends_first_is_answered_all_the_same() {
        let (from, to) = (DatasetName::new("d.a").unwrap(), DatasetName::new("d.b").unwrap());
        let grid = Grid::new().await;
        grid.import(&[("A", 1, 1.0)]).await.unwrap();
        let table = grid.table();
        let begin_only =
            Change { id: String::new(), by: "ada".to_owned(), kind: ChangeKind::BeginRename(to.clone()) };
        grid.shard.committers.of(&table).change(begin_only).await.unwrap();
        finish(&grid, &to, "").await.unwrap();
        let asked = finish(&grid, &to, "r").await;
        assert_eq!(asked.unwrap().dataset, "d.b");
        let other = DatasetName::new("d.c").unwrap();
        let asked = finish(&grid, &other, "r").await;
        assert_eq!(asked.unwrap_err().code(), Code::UnknownDataset);
        begin(&grid, &from, &to, "r2").await.unwrap();
        // another dataset of the old name is not the one that was to be renamed
        grid.import(&[("A", 2, 2.0)]).await.unwrap();
        let asked = finish(&grid, &to, "r3").await;
        assert_eq!(asked.unwrap_err().code(), Code::Unavailable);
        assert!(grid.shard.catalog.find("d.a").await.is_ok());
    }
}
