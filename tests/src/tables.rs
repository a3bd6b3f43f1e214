//! Reads the files of a lake without the code under test: the Delta log line by line, and the rows with other readers.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

/// A publish of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommittedRun {
    /// Run id.
    pub run_id: String,
    /// The epoch of the publish; 0 for an import.
    pub epoch: u64,
    /// Rows.
    pub rows: u64,
    /// The session; empty for an import.
    pub session: String,
    /// The knowledge time of its first input, if it has inputs.
    pub read_as_of: Option<i64>,
}

/// One entry of a table's log: a commit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Commit {
    /// Its version.
    pub version: u64,
    /// `WRITE`, `GRANT`, `OPTIMIZE`, ...
    pub operation: String,
    /// Publishes that it committed.
    pub runs: Vec<CommittedRun>,
    /// The epoch that it granted, if any.
    pub granted: Option<u64>,
    /// Data files that it added.
    pub adds: Vec<String>,
    /// Data files that it removed.
    pub removes: Vec<String>,
}

/// Every commit of the table in `folder`, from version 0 on.
///
/// # Errors
/// An entry that cannot be read, or a gap between versions.
pub fn commits(folder: &Path) -> Result<Vec<Commit>> {
    let log = folder.join("_delta_log");
    let mut paths: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(&log).with_context(|| log.display().to_string())? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.len() == 25 && name.ends_with(".json") {
            paths.push(path);
        }
    }
    paths.sort();
    let mut commits = Vec::new();
    for (version, path) in paths.iter().enumerate() {
        let version = version as u64;
        let expected = log.join(format!("{version:020}.json"));
        ensure!(*path == expected, "{} is missing", expected.display());
        let text = std::fs::read_to_string(path)?;
        commits.push(commit(version, &text).with_context(|| path.display().to_string())?);
    }
    Ok(commits)
}

fn commit(version: u64, text: &str) -> Result<Commit> {
    let mut commit = Commit { version, ..Commit::default() };
    let text_of = |value: &Value| value.as_str().map(str::to_owned).context("a text is missing");
    for line in text.lines() {
        let action: Value = serde_json::from_str(line)?;
        if let Some(info) = action.get("commitInfo") {
            commit.operation = text_of(&info["operation"])?;
            for run in info["trellis"].as_array().into_iter().flatten() {
                commit.runs.push(CommittedRun {
                    run_id: text_of(&run["run_id"])?,
                    epoch: run["epoch"].as_u64().unwrap_or(0),
                    rows: run["rows"].as_u64().context("a publish without rows")?,
                    session: run["session"].as_str().unwrap_or_default().to_owned(),
                    read_as_of: run["inputs"][0]["as_of_ns"].as_i64(),
                });
            }
            commit.granted = info["trellis"]["lease"]["epoch"].as_u64();
        } else if let Some(add) = action.get("add") {
            commit.adds.push(text_of(&add["path"])?);
        } else if let Some(remove) = action.get("remove") {
            commit.removes.push(text_of(&remove["path"])?);
        }
    }
    Ok(commit)
}

/// Number of data files that the table has after `commits`.
#[must_use]
pub fn live_files(commits: &[Commit]) -> usize {
    let adds: usize = commits.iter().map(|commit| commit.adds.len()).sum();
    adds - commits.iter().map(|commit| commit.removes.len()).sum::<usize>()
}

/// Checks rules that every log must keep: each run is committed once, epochs are granted one after the other, and each
/// publish has the newest epoch of its time.
///
/// # Errors
/// The first commit that breaks a rule.
pub fn check_log(commits: &[Commit]) -> Result<BTreeMap<String, u64>> {
    let mut newest = 0;
    let mut versions = BTreeMap::new();
    for commit in commits {
        if let Some(epoch) = commit.granted {
            ensure!(epoch == newest + 1, "version {}: epoch {epoch} granted after {newest}", commit.version);
            newest = epoch;
        }
        for run in &commit.runs {
            ensure!(
                run.epoch == 0 || run.epoch == newest,
                "version {}: run {} was accepted with epoch {} while {newest} was the newest",
                commit.version,
                run.run_id,
                run.epoch
            );
            let before = versions.insert(run.run_id.clone(), commit.version);
            ensure!(
                before.is_none(),
                "run {} was committed twice: as {before:?} and {}",
                run.run_id,
                commit.version
            );
        }
    }
    Ok(versions)
}

/// A stored row: one known version.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct StoredRow {
    /// Symbol.
    pub symbol: String,
    /// Event time, nanoseconds.
    pub ts_ns: i64,
    /// Knowledge time, nanoseconds.
    pub known_at_ns: i64,
    /// Fields, in the order asked.
    pub values: Vec<Option<f64>>,
}

/// Reads the tables in `folders` with the Python package `deltalake` and with polars, which must agree. Returns the rows of
/// each table with `fields`. If Python lacks these packages, prints a line and returns `None`; in CI that is an error.
///
/// # Errors
/// When a table cannot be opened, or the readers do not agree.
pub fn foreign_rows(folders: &[PathBuf], fields: &[&str]) -> Result<Option<Vec<Vec<StoredRow>>>> {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.venv/bin/python");
    let has = |python: &Path| {
        let mut probe = Command::new(python);
        probe.args(["-c", "import deltalake, polars"]).stderr(Stdio::null());
        probe.status().is_ok_and(|status| status.success())
    };
    if !has(&python) {
        ensure!(std::env::var("CI").is_err(), "{} has no deltalake and polars: make setup", python.display());
        println!("skipped: no foreign reader ({} has no deltalake and polars)", python.display());
        return Ok(None);
    }
    let out = Command::new(&python)
        .args(["-c", include_str!("foreign.py"), &fields.join(",")])
        .args(folders)
        .stdin(Stdio::null())
        .output()?;
    if !out.status.success() {
        bail!("the foreign reader failed:\n{}", String::from_utf8_lossy(&out.stderr));
    }
    Ok(Some(serde_json::from_slice(&out.stdout)?))
}
