//! The check of a lake's files, without a grid.

use pyo3::prelude::*;
use tokio_util::task::AbortOnDropHandle;
use trellis_proto::Error;

use crate::{
    error::{OrRaise, name},
    runtime::{bug, services, wait},
};

/// Counts of datasets, files, bytes, and files without checksums.
type Counts = (u64, u64, u64, u64);
/// Code, dataset, message and hint of an error.
type Problem = (String, String, String, String);

/// Compares every file of the lake with its checksums. Returns counts, and what is wrong.
#[pyfunction]
pub(crate) fn check_lake(py: Python<'_>, lake: &str) -> PyResult<(Counts, Vec<Problem>)> {
    let lake = trellis_shard::config::lake_url(lake).or_raise(py)?;
    let checked = async move { trellis_shard::check_lake(&lake).await };
    let checked = AbortOnDropHandle::new(services(py)?.spawn(checked));
    let report = wait(py, async { checked.await.map_err(bug)? })?;
    let problem = |error: &Error| {
        let told = [error.place().0, error.message(), error.hint_text()].map(str::to_owned);
        let [dataset, message, hint] = told;
        (name(error.code()), dataset, message, hint)
    };
    let counts = (report.datasets, report.files, report.bytes, report.without_checksums);
    Ok((counts, report.problems.iter().map(problem).collect()))
}
