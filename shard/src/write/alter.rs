//! Changes that somebody asks for by hand: a dataset is altered or dropped, or a rename takes its next step.

use serde_json::{Map, Value, json};
use trellis_proto::{Code, Error, Result, pb, spec::Alteration};

use super::{
    request::{Change, ChangeKind},
    writer::{CONFLICTS_MAX, Writer},
};
use crate::{
    files::Life,
    table::{Actions, CommittedRun, Definition, MOVING_PROPERTY},
};

impl Writer {
    /// Makes a change.
    pub(super) async fn change(&mut self, change: &Change) -> Result<pb::DatasetChange> {
        for _ in 0..CONFLICTS_MAX {
            let Some(before) = self.look().await? else { return Err(self.unknown()) };
            if let Some(done) = self.table.run(&change.id).filter(|_| !change.id.is_empty()) {
                return Ok(self.changed(done.version, done.rows));
            }
            if before.life.dropped {
                return match &change.kind {
                    // The upkeep finishes renames too, and may have been first.
                    ChangeKind::EndRename(to) if before.moved_to(to) => Ok(self.changed(before.version, 0)),
                    _ => Err(self.unknown()),
                };
            }
            let places = matches!(&change.kind, ChangeKind::Alter(alteration) if alteration.only_places());
            if !places {
                before.lease.check_unowned(self.table.name.as_str())?;
            }
            let now_ms = self.table.context.clock.now_ms();
            let version = before.version + 1;
            let mut definition = Definition::clone(&before.definition);
            let mut life = before.life;
            let mut evolution = None;
            let (operation, note) = match &change.kind {
                ChangeKind::Alter(alteration) => {
                    before.check_stays()?;
                    let evolved = before.spec.altered(alteration)?;
                    if evolved.spec == *before.spec {
                        return Err(Error::new(
                            Code::InvalidRequest,
                            format!("{} is so already: nothing was changed", self.table.name),
                        )
                        .dataset(&self.table.name));
                    }
                    evolution = Some(self.evolution(&before, evolved).await?);
                    ("ALTER", change_note(alteration))
                }
                ChangeKind::Drop => {
                    before.check_stays()?;
                    ("DROP", Value::Null)
                }
                ChangeKind::BeginRename(to) if before.moving() == Some(to.as_str()) => {
                    return Ok(self.changed(before.version, 0));
                }
                ChangeKind::BeginRename(to) => {
                    before.check_stays()?;
                    definition.properties.insert(MOVING_PROPERTY.to_owned(), to.to_string());
                    ("RENAME", json!({"to": to.as_str()}))
                }
                ChangeKind::CancelRename => {
                    definition.properties.insert(MOVING_PROPERTY.to_owned(), String::new());
                    ("RENAME", json!({"to": null}))
                }
                ChangeKind::EndRename(to) => {
                    before.check_moves(to)?;
                    ("RENAME", json!({"to": to.as_str()}))
                }
            };
            let info = json!({"by": change.by, "id": change.id, "change": note});
            let mut actions = Actions::new(operation, Map::from_iter([("trellis".to_owned(), info)]), now_ms);
            if let Some(evolution) = &evolution {
                evolution.describe(&mut actions, &before, now_ms);
            } else {
                let ends = matches!(change.kind, ChangeKind::Drop | ChangeKind::EndRename(_));
                if ends {
                    life = Life { revision: life.revision + 1, dropped: true, ..life };
                }
                actions.redefine(&definition, &before.spec, &life);
                for file in before.files.iter().filter(|_| ends) {
                    actions.remove(&file.file, true, now_ms);
                }
            }
            if matches!(change.kind, ChangeKind::Alter(_)) && !places {
                // The same rows published again are a new commit: the stored ones may lack a value now.
                actions.altered(version, now_ms);
            }
            let written = evolution.as_ref().map_or(&[][..], |evolution| evolution.adds.as_slice());
            if !change.id.is_empty() {
                actions.run(&change.id, &CommittedRun::of_change(version, written.len() as u64), now_ms);
            }
            if self.commit(version, &actions, written).await?.is_some() {
                self.look().await?;
                return Ok(self.changed(version, written.len() as u64));
            }
        }
        Err(Error::new(Code::Unavailable, "others are writing to the dataset; try again")
            .dataset(&self.table.name))
    }

    fn changed(&self, version: u64, files_rewritten: u64) -> pb::DatasetChange {
        pb::DatasetChange { dataset: self.table.name.to_string(), version, files_rewritten }
    }

    fn unknown(&self) -> Error {
        Error::new(Code::UnknownDataset, format!("there is no dataset {}", self.table.name))
            .dataset(&self.table.name)
    }
}

/// A change as the log tells it to people.
fn change_note(change: &Alteration) -> Value {
    let pairs = |pairs: Vec<(String, String)>| Map::from_iter(pairs.into_iter().map(|(k, v)| (k, json!(v))));
    let names: Vec<&str> = change.drop.iter().map(|name| name.as_str()).collect();
    let rename = change.rename.iter().map(|(from, to)| (from.to_string(), to.to_string()));
    let widen = change.widen.iter().map(|(name, t)| (name.to_string(), t.to_string()));
    let add = change.add.iter().map(|field| (field.name.to_string(), field.data_type.to_string()));
    let mut note = Map::from_iter([
        ("drop".to_owned(), json!(names)),
        ("rename".to_owned(), json!(pairs(rename.collect()))),
        ("widen".to_owned(), json!(pairs(widen.collect()))),
        ("add".to_owned(), json!(pairs(add.collect()))),
    ]);
    note.retain(|_, value| !matches!(value, Value::Array(v) if v.is_empty()) && *value != json!({}));
    for (name, setting) in [("calendar", &change.calendar), ("date_zone", &change.date_zone)] {
        if let Some(setting) = setting {
            note.insert(name.to_owned(), json!(setting));
        }
    }
    for (name, setting) in [("copies", &change.copies), ("spread", &change.spread)] {
        if let Some(setting) = setting {
            note.insert(name.to_owned(), json!(setting));
        }
    }
    Value::Object(note)
}

#[cfg(test)]
mod tests {
    use std::{io::ErrorKind, time::Duration};

    use trellis_proto::FieldName;

    use super::*;
    use crate::{
        files::read_all,
        testing::{Grid, When},
        upkeep::remove_unneeded,
    };

    fn renamed() -> Change {
        let name = |text: &str| FieldName::new(text).unwrap();
        let rename = vec![(name("value"), name("price"))];
        let kind = ChangeKind::Alter(Alteration { rename, ..Alteration::default() });
        Change { id: "change-1".to_owned(), by: "ada".to_owned(), kind }
    }

    async fn names_and_rows(grid: &Grid) -> (String, usize) {
        let (_, snapshot) = grid.shard.catalog.find("d.a").await.unwrap();
        let files: Vec<_> = snapshot.files.iter().collect();
        let rows = read_all(&snapshot.spec, &files).await.unwrap();
        (snapshot.spec.fields[0].name.to_string(), rows.num_rows())
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_change_that_dies_at_any_point_is_made_whole_or_not_at_all() {
        for (part, when, made) in [
            (".parquet", When::Before, false),
            (".parquet", When::After, false),
            ("_delta_log", When::Before, false),
            ("_delta_log", When::After, true),
        ] {
            let grid = Grid::with(|config| config.upkeep.retention = Duration::ZERO).await;
            for i in 0..3 {
                grid.import(&[("A", i, i as f64)]).await.unwrap();
            }
            grid.probe.fail(part, ErrorKind::Other, when);
            let table = grid.table();
            grid.shard.committers.of(&table).change(renamed()).await.unwrap_err();
            let grid = grid.restart().await;
            let name = if made { "price" } else { "value" };
            assert_eq!(names_and_rows(&grid).await, (name.to_owned(), 3), "{part} {when:?}");
            // asked again, it is made once
            let table = grid.table();
            let done = grid.shard.committers.of(&table).change(renamed()).await.unwrap();
            assert_eq!((done.version, done.files_rewritten), (3, 3));
            assert_eq!(names_and_rows(&grid).await, ("price".to_owned(), 3));
            remove_unneeded(&grid.shard, &table).await.unwrap();
            assert_eq!(grid.data_files(), 3, "nothing is left behind");
        }
    }
}
