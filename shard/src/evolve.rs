//! A dataset becomes another one: wider with the rows or the unit that need it, altered, dropped or renamed by somebody.
//!
//! The definition changes in one commit, together with everything that depends on it. What is stored differently from then on
//! (a field's name or type, a field that is gone) is written anew, file by file, in that commit: no file is ever read with
//! another type than its own, here or by other tools. A field that is merely new costs a line of the log, because files
//! without a column are read as if it were null everywhere, by Delta's rules.
//!
//! Rejected: to keep the old files and convert when they are read. It costs nothing at once, but every other reader of the
//! lake fails on a column of two types.
//!
//! Each definition has a number, its *revision*. A head states what it has planned with, so rows of one definition are never
//! taken for rows of another, not even where a field was dropped and another one of its name was added.
//!
//! A dropped table is a table without rows that says so: its log goes on. So a version says more than the ones before it
//! whatever happened in between, and a dataset that takes the name later is a later version of the same table. Runs that
//! were committed before its first version are not its own.

use std::sync::Arc;

use arrow_array::{
    Array, ArrayRef, Float64Array, RecordBatch, cast::AsArray, new_null_array, types::Int64Type,
};
use arrow_schema::{Field, Schema};
use serde_json::{Map, Value, json};
use trellis_proto::{
    Code, DatasetName, DatasetSpec, Error, FieldType, Result, pb,
    spec::{Alteration, Evolved, FieldSpec},
    time::format_time,
};

use crate::{
    committer::{CONFLICTS_MAX, Task},
    delta::{Actions, Definition, LogFile},
    error::{internal, lost_task},
    file::{DataFile, WrittenFile, write_file},
    rename::MOVING_PROPERTY,
    schema::{self, Life},
    table::{self, CommittedRun, Snapshot},
    upkeep::read_all,
};

/// A request to change a dataset.
#[derive(Debug)]
pub(crate) struct Change {
    /// Asked again with the same, it is answered again.
    pub(crate) id: String,
    /// Who asks; for people.
    pub(crate) by: String,
    pub(crate) what: What,
}

/// What is to become of it.
#[derive(Debug)]
pub(crate) enum What {
    Alter(Alteration),
    Drop,
    /// The steps of a rename, see [`crate::rename`]: the mark that it begins, its end, its end without success.
    Move(DatasetName),
    Moved(DatasetName),
    Stay,
}

/// What a commit has to hold besides its own actions, so that the table becomes another one.
#[derive(Debug)]
pub(crate) struct Evolution {
    pub(crate) spec: Arc<DatasetSpec>,
    /// Stored differently from now on.
    removes: Vec<LogFile>,
    /// In their place.
    pub(crate) adds: Vec<WrittenFile>,
}

impl Evolution {
    /// Adds the new definition and the files that are written anew.
    pub(crate) fn describe(&self, actions: &mut Actions, before: &Snapshot, now_ms: i64) {
        let life = Life { revision: before.life.revision + 1, ..before.life };
        actions.redefine(&before.definition, &self.spec, &life);
        for file in &self.removes {
            actions.remove(file, false, now_ms);
        }
        for file in &self.adds {
            actions.add(&file.file, &file.stats, false, now_ms);
        }
    }
}

impl Task {
    /// Writes anew what is stored differently once the table has become `evolved`, one file at a time.
    ///
    /// # Errors
    /// [`Code::Conflict`] naming a value that the wider type does not hold; nothing is left behind then.
    pub(crate) async fn evolution(&self, before: &Snapshot, evolved: Evolved) -> Result<Evolution> {
        schema::check_spec(&evolved.spec)?;
        let mut evolution =
            Evolution { spec: Arc::new(evolved.spec.clone()), removes: Vec::new(), adds: Vec::new() };
        if !evolved.rewrites(&before.spec) {
            return Ok(evolution);
        }
        let evolved = Arc::new(evolved);
        for file in &before.files {
            match self.anew(before, &evolved, file).await {
                Ok(anew) => {
                    evolution.removes.push(file.file.clone());
                    evolution.adds.push(anew);
                }
                Err(error) => {
                    self.discard(&evolution.adds).await;
                    return Err(error.dataset(&self.table.name));
                }
            }
        }
        Ok(evolution)
    }

    async fn anew(
        &self,
        before: &Snapshot,
        evolved: &Arc<Evolved>,
        file: &Arc<DataFile>,
    ) -> Result<WrittenFile> {
        let rows = read_all(&before.spec, &[file]).await?;
        let (old, new) = (before.spec.clone(), evolved.clone());
        let rows = tokio::task::spawn_blocking(move || rows_as(&old, &new, &rows))
            .await
            .map_err(|e| lost_task("converting rows", e))??;
        write_file(&self.table.log, &Arc::new(evolved.spec.clone()), rows, true).await
    }

    /// What the dataset must become to hold what is `given` as well; `None`: it holds it as it is.
    ///
    /// # Errors
    /// [`Code::Conflict`] if there is no such dataset.
    pub(crate) fn wider(have: &DatasetSpec, given: &DatasetSpec) -> Result<Option<Evolved>> {
        let wide = have.widened(given)?;
        Ok((!have.agrees_with(&wide)).then(|| Evolved::by_name(have, wide)))
    }

    /// Makes a change that somebody asked for.
    pub(crate) async fn change(&mut self, change: &Change) -> Result<pb::DatasetChange> {
        for _ in 0..CONFLICTS_MAX {
            let Some(before) = self.look().await? else { return Err(self.unknown()) };
            if let Some(done) = self.table.run(&change.id).filter(|_| !change.id.is_empty()) {
                return Ok(self.changed(done.version, done.rows));
            }
            if before.life.dropped {
                return match &change.what {
                    // The upkeep goes on with a rename too, and may have ended it first.
                    What::Moved(to) if before.moved_to(to) => Ok(self.changed(before.version, 0)),
                    _ => Err(self.unknown()),
                };
            }
            before.lease.check_unowned(self.table.name.as_str())?;
            let now_ms = self.table.shared.clock.now_ms();
            let version = before.version + 1;
            let mut definition = Definition::clone(&before.definition);
            let mut life = before.life;
            let mut evolution = None;
            let (operation, told) = match &change.what {
                What::Alter(alteration) => {
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
                    ("ALTER", told(alteration))
                }
                What::Drop => {
                    before.check_stays()?;
                    ("DROP", Value::Null)
                }
                What::Move(to) if before.moving() == Some(to.as_str()) => {
                    return Ok(self.changed(before.version, 0));
                }
                What::Move(to) => {
                    before.check_stays()?;
                    definition.properties.insert(MOVING_PROPERTY.to_owned(), to.to_string());
                    ("RENAME", json!({"to": to.as_str()}))
                }
                What::Stay => {
                    definition.properties.insert(MOVING_PROPERTY.to_owned(), String::new());
                    ("RENAME", json!({"to": null}))
                }
                What::Moved(to) => {
                    before.check_moves(to)?;
                    ("RENAME", json!({"to": to.as_str()}))
                }
            };
            let info = json!({"by": change.by, "id": change.id, "change": told});
            let mut actions = Actions::new(operation, Map::from_iter([("trellis".to_owned(), info)]), now_ms);
            if let Some(evolution) = &evolution {
                evolution.describe(&mut actions, &before, now_ms);
            } else {
                let ends = matches!(change.what, What::Drop | What::Moved(_));
                if ends {
                    life = Life { revision: life.revision + 1, dropped: true, ..life };
                }
                actions.redefine(&definition, &before.spec, &life);
                for file in before.files.iter().filter(|_| ends) {
                    actions.remove(&file.file, true, now_ms);
                }
            }
            if matches!(change.what, What::Alter(_)) {
                // What was written before is not what is there now: the same rows again are to be committed.
                actions.txn(table::ALTERED, version as i64, now_ms);
            }
            let written = evolution.as_ref().map_or(&[][..], |evolution| evolution.adds.as_slice());
            if !change.id.is_empty() {
                let rewritten = written.len() as u64;
                actions.txn(
                    &table::run_txn(&change.id, "", CommittedRun::OF_CHANGE, rewritten, None, 0),
                    version as i64,
                    now_ms,
                );
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

/// A change, for those who read the log.
fn told(change: &Alteration) -> Value {
    let pairs = |pairs: Vec<(String, String)>| Map::from_iter(pairs.into_iter().map(|(k, v)| (k, json!(v))));
    let names: Vec<&str> = change.drop.iter().map(|name| name.as_str()).collect();
    let rename = change.rename.iter().map(|(from, to)| (from.to_string(), to.to_string()));
    let widen = change.widen.iter().map(|(name, t)| (name.to_string(), t.to_string()));
    let add = change.add.iter().map(|field| (field.name.to_string(), field.data_type.to_string()));
    let mut told = Map::from_iter([
        ("drop".to_owned(), json!(names)),
        ("rename".to_owned(), json!(pairs(rename.collect()))),
        ("widen".to_owned(), json!(pairs(widen.collect()))),
        ("add".to_owned(), json!(pairs(add.collect()))),
    ]);
    told.retain(|_, value| !matches!(value, Value::Array(v) if v.is_empty()) && *value != json!({}));
    for (name, setting) in [("calendar", &change.calendar), ("date_zone", &change.date_zone)] {
        if let Some(setting) = setting {
            told.insert(name.to_owned(), json!(setting));
        }
    }
    Value::Object(told)
}

/// Rows of `old` as rows of what it has become. Their columns are those of the fields, in order, after `symbol`, `ts_ns` and
/// whatever else each row has.
///
/// # Errors
/// [`Code::Conflict`] naming a value that the wider type does not hold.
pub(crate) fn rows_as(old: &DatasetSpec, new: &Evolved, rows: &RecordBatch) -> Result<RecordBatch> {
    let keys = rows.num_columns() - old.fields.len();
    let mut columns: Vec<ArrayRef> = rows.columns()[..keys].to_vec();
    let mut fields = rows.schema().fields()[..keys].to_vec();
    // whether a field requires a value, in rows of this kind
    let nullable = |i: usize| rows.schema().field(keys + i).is_nullable();
    for (field, from) in new.spec.fields.iter().zip(&new.from) {
        let (column, may_lack) = match from {
            Some(i) => (widened(&old.fields[*i], field, rows.column(keys + i), rows)?, nullable(*i)),
            None => (new_null_array(&field.data_type.to_arrow(), rows.num_rows()), true),
        };
        fields.push(Arc::new(Field::new(field.name.as_str(), field.data_type.to_arrow(), may_lack)));
        columns.push(column);
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(|e| internal("converting rows", e))
}

fn widened(old: &FieldSpec, new: &FieldSpec, column: &ArrayRef, rows: &RecordBatch) -> Result<ArrayRef> {
    if old.data_type == new.data_type {
        return Ok(column.clone());
    }
    if (old.data_type, new.data_type) != (FieldType::Int64, FieldType::Float64) {
        return arrow_cast::cast(column, &new.data_type.to_arrow())
            .map_err(|e| internal("widening a field", e));
    }
    let values = column.as_primitive::<Int64Type>();
    let exact = |value: i64| (value as f64) as i128 == i128::from(value);
    if let Some(i) = (0..values.len()).find(|&i| values.is_valid(i) && !exact(values.value(i))) {
        let symbol = rows.column(0).as_string::<i32>().value(i);
        let ts = rows.column(1).as_primitive::<Int64Type>().value(i);
        return Err(Error::new(
            Code::Conflict,
            format!(
                "{} cannot become float64: {} ({symbol} at {}) is a whole number that float64 does not hold",
                old.name,
                values.value(i),
                format_time(ts)
            ),
        )
        .symbol(symbol)
        .hint("keep the field as int64, and put other numbers into another field or dataset"));
    }
    let floats: Float64Array = values.unary(|v| v as f64);
    Ok(Arc::new(floats))
}

#[cfg(test)]
mod tests {
    use std::{io::ErrorKind, time::Duration};

    use proptest::prelude::*;
    use trellis_proto::FieldName;

    use super::*;
    use crate::{
        testing::{Grid, When, spec},
        upkeep::remove_unneeded,
    };

    fn renamed() -> Change {
        let name = |text: &str| FieldName::new(text).unwrap();
        let rename = vec![(name("value"), name("price"))];
        let what = What::Alter(Alteration { rename, ..Alteration::default() });
        Change { id: "change-1".to_owned(), by: "ada".to_owned(), what }
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
            let dataset = grid.dataset();
            grid.shard.catalog.committer(&dataset).change(renamed()).await.unwrap_err();
            let grid = grid.restart().await;
            let name = if made { "price" } else { "value" };
            assert_eq!(names_and_rows(&grid).await, (name.to_owned(), 3), "{part} {when:?}");
            // asked again, it is made once
            let dataset = grid.dataset();
            let done = grid.shard.catalog.committer(&dataset).change(renamed()).await.unwrap();
            assert_eq!((done.version, done.files_rewritten), (3, 3));
            assert_eq!(names_and_rows(&grid).await, ("price".to_owned(), 3));
            remove_unneeded(&grid.shard, &dataset).await.unwrap();
            assert_eq!(grid.data_files(), 3, "nothing is left behind");
        }
    }

    proptest! {
        #[test]
        fn a_widened_whole_number_is_the_same_or_refused(
            values in prop::collection::vec(
                prop_oneof![8 => -(1_i64 << 53)..=1 << 53, 1 => any::<i64>(), 1 => Just(1_i64 << 60), 1 => Just(i64::MIN)], 1..20,
            ),
        ) {
            let of = |data_type| {
                let mut spec = spec();
                spec.fields[0].data_type = data_type;
                spec
            };
            let (old, new) = (of(FieldType::Int64), of(FieldType::Float64));
            let columns: Vec<ArrayRef> = vec![
                Arc::new(arrow_array::StringArray::from(vec!["A"; values.len()])),
                Arc::new(arrow_array::Int64Array::from_iter_values(0..values.len() as i64)),
                Arc::new(arrow_array::Int64Array::from(values.clone())),
            ];
            let rows = RecordBatch::try_new(crate::append::rows_schema(&old), columns).unwrap();
            match rows_as(&old, &Evolved::by_name(&old, new), &rows) {
                Ok(rows) => {
                    let floats = rows.column(2).as_primitive::<arrow_array::types::Float64Type>();
                    for (float, value) in floats.values().iter().zip(&values) {
                        prop_assert_eq!(*float as i128, i128::from(*value));
                    }
                }
                Err(error) => prop_assert!(
                    values.iter().any(|v| *v as f64 as i128 != i128::from(*v) && error.message().contains(&v.to_string()))
                ),
            }
        }
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
            grid.shard.rename(&from, &to, "r".to_owned(), "ada".to_owned()).await.unwrap_err();
            let grid = grid.restart().await;
            let mut found = Vec::new();
            for name in ["d.a", "d.b"] {
                if let Ok((_, snapshot)) = grid.shard.catalog.find(name).await {
                    found.push(snapshot.rows());
                }
            }
            assert!(!found.is_empty() && found.iter().all(|rows| *rows == 3), "{part} {when:?}: {found:?}");
            grid.shard.rename(&from, &to, "r".to_owned(), "ada".to_owned()).await.unwrap();
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
        let dataset = grid.dataset();
        let mark = Change { id: String::new(), by: "ada".to_owned(), what: What::Move(to.clone()) };
        grid.shard.catalog.committer(&dataset).change(mark).await.unwrap();
        grid.shard.finish_rename(&dataset, &to, String::new(), String::new()).await.unwrap();
        let asked = grid.shard.finish_rename(&dataset, &to, "r".to_owned(), "ada".to_owned()).await;
        assert_eq!(asked.unwrap().dataset, "d.b");
        let other = DatasetName::new("d.c").unwrap();
        let asked = grid.shard.finish_rename(&dataset, &other, "r".to_owned(), "ada".to_owned()).await;
        assert_eq!(asked.unwrap_err().code(), Code::UnknownDataset);
        grid.shard.rename(&from, &to, "r2".to_owned(), "ada".to_owned()).await.unwrap();
        // another dataset of the old name is not the one that was to be renamed
        grid.import(&[("A", 2, 2.0)]).await.unwrap();
        let asked = grid.shard.finish_rename(&dataset, &to, "r3".to_owned(), "ada".to_owned()).await;
        assert_eq!(asked.unwrap_err().code(), Code::Unavailable);
        assert!(grid.shard.catalog.find("d.a").await.is_ok());
    }
}
