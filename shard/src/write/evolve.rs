//! A dataset changes its definition: a publish or a unit needs a wider one, or a person alters, drops or renames it.
//!
//! The definition changes in one commit, together with everything that depends on it. If a field gets another name or type, or is
//! dropped, that commit also replaces the files, written anew one by one. So neither this shard nor another tool ever reads a
//! column of two types. A new field costs a line of the log: by Delta's rules, a file without the column has nulls there.
//!
//! Rejected: to keep the old files and convert them when they are read. The change would be free, but every other reader of the
//! lake fails on a column of two types.
//!
//! Each definition has a number, its *revision*. A head sends the revision that it planned with. So it never takes rows of one
//! definition for rows of another, even if a field was dropped and a new field has its name.
//!
//! A dropped dataset leaves a table without rows that says so, and the log of the table goes on. So versions grow whatever happens
//! in between, and a dataset that takes the name later is a later version of the same table. The runs that were committed before
//! its first version do not belong to it.

use std::sync::Arc;

use trellis_proto::{Code, DatasetSpec, Error, Result, spec::Evolved};

use super::{rows::converted, writer::Writer};
use crate::{
    error::lost_task,
    files::{
        DataFile, FileRef, Life, MERGE_COPIES, WrittenFile, check_spec, read_all, spec_difference, write_file,
    },
    table::{Actions, Snapshot},
};

/// What a commit adds to its actions so that the table gets another definition.
#[derive(Debug)]
pub(super) struct Evolution {
    pub(super) spec: Arc<DatasetSpec>,
    /// Files with the old columns.
    removes: Vec<FileRef>,
    /// The files that replace them.
    pub(super) adds: Vec<WrittenFile>,
}

impl Evolution {
    /// Adds the new definition and the new files to a commit.
    pub(super) fn describe(&self, actions: &mut Actions, before: &Snapshot, now_ms: i64) {
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

impl Writer {
    /// Writes the files anew whose columns differ in `evolved`, one after the other.
    ///
    /// # Errors
    /// [`Code::Conflict`] naming a value that the wider type does not hold. The new files are removed then.
    pub(super) async fn evolution(&self, before: &Snapshot, evolved: Evolved) -> Result<Evolution> {
        check_spec(&evolved.spec)?;
        let mut evolution =
            Evolution { spec: Arc::new(evolved.spec.clone()), removes: Vec::new(), adds: Vec::new() };
        if !evolved.rewrites(&before.spec) {
            return Ok(evolution);
        }
        let evolved = Arc::new(evolved);
        for file in &before.files {
            match self.rewritten(before, &evolved, file).await {
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

    async fn rewritten(
        &self,
        before: &Snapshot,
        evolved: &Arc<Evolved>,
        file: &Arc<DataFile>,
    ) -> Result<WrittenFile> {
        let _share = file.budget.take(file.decoded_bytes(&before.spec).saturating_mul(MERGE_COPIES)).await;
        let rows = read_all(&before.spec, &[file]).await?;
        let (old, new) = (before.spec.clone(), evolved.clone());
        let rows = tokio::task::spawn_blocking(move || converted(&old, &new, &rows))
            .await
            .map_err(|e| lost_task("converting rows", e))??;
        write_file(&self.table.log.folder, &Arc::new(evolved.spec.clone()), rows, true).await
    }

    /// The definition that a unit declares; `None`: the dataset has it already.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] if the declaration lacks a field, or has a narrower or another type. For a publish that is a
    /// conflict. Here it is not: a unit waits for a conflict to pass, and this one does not pass.
    pub(super) fn declared(&self, have: &DatasetSpec, given: &DatasetSpec) -> Result<Option<Evolved>> {
        let refuse = |why: &str| {
            Error::new(Code::InvalidRequest, why).dataset(&self.table.name).hint(
                "declare the fields that the dataset has, and more if need be; publish to another dataset; or change this one \
                 with `trellis dataset alter`",
            )
        };
        let evolved = wider(have, given).map_err(|error| refuse(error.message()))?;
        let now = evolved.as_ref().map_or(have, |evolved| &evolved.spec);
        if now.agrees_with(given) {
            return Ok(evolved);
        }
        let why = spec_difference(now, given).unwrap_or_else(|| "the two differ".to_owned());
        Err(refuse(&format!("{} exists with another schema: {why}", self.table.name)))
    }
}

/// The narrowest definition that holds both; `None`: that is `have`.
///
/// # Errors
/// [`Code::Conflict`] if none does.
pub(super) fn wider(have: &DatasetSpec, given: &DatasetSpec) -> Result<Option<Evolved>> {
    let wide = have.widened(given)?;
    Ok((!have.agrees_with(&wide)).then(|| Evolved::by_name(have, wide)))
}
