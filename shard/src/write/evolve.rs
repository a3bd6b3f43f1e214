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

use trellis_proto::{Code, DatasetSpec, Error, Result, spec::Evolved};

use super::{convert::converted, writer::Writer};
use crate::{
    error::lost_task,
    files::{DataFile, FileRef, Life, WrittenFile, check_spec, read_all, spec_difference, write_file},
    table::{Actions, Snapshot},
};

/// What a commit has to hold besides its own actions, so that the table becomes another one.
#[derive(Debug)]
pub(super) struct Evolution {
    pub(super) spec: Arc<DatasetSpec>,
    /// Stored differently from now on.
    removes: Vec<FileRef>,
    /// In their place.
    pub(super) adds: Vec<WrittenFile>,
}

impl Evolution {
    /// Adds the new definition and the files that are written anew.
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
    /// Writes anew what is stored differently once the table has become `evolved`, one file at a time.
    ///
    /// # Errors
    /// [`Code::Conflict`] naming a value that the wider type does not hold; nothing is left behind then.
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
        let rows = read_all(&before.spec, &[file]).await?;
        let (old, new) = (before.spec.clone(), evolved.clone());
        let rows = tokio::task::spawn_blocking(move || converted(&old, &new, &rows))
            .await
            .map_err(|e| lost_task("converting rows", e))??;
        write_file(&self.table.log.folder, &Arc::new(evolved.spec.clone()), rows, true).await
    }

    /// What the dataset must become to be what a unit declares; `None`: it is so already.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] if the declaration leaves something out, is narrower or another one. Not a conflict, as it is for
    /// rows: who asks for a lease waits for a conflict to pass.
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
        let why = spec_difference(now, given).unwrap_or_else(|| "it is another one".to_owned());
        Err(refuse(&format!("{} exists with another schema: {why}", self.table.name)))
    }
}

/// What the dataset must become to hold what is `given` as well; `None`: it holds it as it is.
///
/// # Errors
/// [`Code::Conflict`] if there is no such dataset.
pub(super) fn wider(have: &DatasetSpec, given: &DatasetSpec) -> Result<Option<Evolved>> {
    let wide = have.widened(given)?;
    Ok((!have.agrees_with(&wide)).then(|| Evolved::by_name(have, wide)))
}
