//! Files into a dataset: read and checked here, published part by part.

use std::{path::PathBuf, sync::Arc};

use pyo3::{prelude::*, types::PyDict};
use tokio::sync::watch;
use trellis_proto::{Code, DatasetName, DatasetSpec, Error, pb};
use trellis_shard::import::{self, FieldChoice, Import, ImportSpec, Phase};

use crate::{
    client::Client,
    dict,
    error::{OrRaise, Result},
    runtime::{bug, wait_telling},
};

/// What progress is told as: step, file, rows, bytes, bytes in all.
type Told = (&'static str, String, u64, u64, u64);

/// Reads `files` by `options` (JSON of the import's options) and publishes their rows, all or nothing for each
/// knowledge time. `show(step, file, rows, bytes, bytes_total)` is called some times a second.
#[pyfunction]
#[allow(clippy::too_many_arguments)] // one call of ours
pub(crate) fn import_files<'py>(
    py: Python<'py>,
    client: &Client,
    dataset: &str,
    files: Vec<PathBuf>,
    options: &str,
    fields: Option<&str>,
    run_id: Option<String>,
    show: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyDict>> {
    let parsed = || {
        let mut spec: ImportSpec = serde_json::from_str(options)
            .map_err(|e| Error::new(Code::InvalidRequest, format!("the options of the import: {e}")))?;
        if let Some(fields) = fields {
            spec.fields = FieldChoice::parse_list(fields)?;
        }
        Ok((DatasetName::new(dataset)?, spec))
    };
    let (dataset, spec) = parsed().or_raise(py)?;
    let (tell, told) = watch::channel::<Told>(("reading", String::new(), 0, 0, 0));
    let told = std::sync::Mutex::new(told);
    let show = show.clone().unbind();
    let tick = |py: Python<'_>| -> PyResult<()> {
        let mut told = told.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !told.has_changed().unwrap_or(false) {
            return Ok(());
        }
        let (step, file, rows, bytes, total) = told.borrow_and_update().clone();
        show.call1(py, (step, file, rows, bytes, total)).map(|_| ())
    };
    let client = client.inner(py)?;
    let (import, acks) = wait_telling(py, tick, bring_in(client, dataset, files, spec, run_id, tell))?;
    let result = PyDict::new(py);
    result.set_item("dataset", import.spec.dataset.as_str())?;
    result.set_item("rows", import.rows)?;
    result.set_item("symbols", import.symbols.len())?;
    result.set_item("first_ts_ns", import.first_ts)?;
    result.set_item("last_ts_ns", import.last_ts)?;
    result.set_item("quarantined", import.problems_total)?;
    result.set_item("notes", &import.notes)?;
    result.set_item("publishes", acks.iter().map(|a| dict::ack(py, a)).collect::<PyResult<Vec<_>>>()?)?;
    Ok(result)
}

async fn bring_in(
    client: &trellis_qcu::client::Client,
    dataset: DatasetName,
    files: Vec<PathBuf>,
    options: ImportSpec,
    run_id: Option<String>,
    tell: watch::Sender<Told>,
) -> Result<(Import, Vec<pb::PublishAck>)> {
    let existing = match client.describe(Some(&dataset)).await {
        Ok(found) => found.into_iter().next().and_then(|d| d.spec).map(DatasetSpec::try_from).transpose()?,
        Err(error) if error.code() == Code::UnknownDataset => None,
        Err(error) => return Err(error),
    };
    let tell = Arc::new(tell);
    let reading = Arc::clone(&tell);
    let read = move || {
        let mut report = |p: import::Progress<'_>| {
            let step = match p.phase {
                Phase::Survey => "looking at",
                Phase::Read => "reading",
                Phase::Sort => "sorting",
            };
            reading.send_replace((step, p.file.to_owned(), p.rows, p.bytes, p.bytes_total));
        };
        import::read(&dataset, &files, &options, existing.as_ref(), &mut report).map_err(Error::from)
    };
    let import = tokio::task::spawn_blocking(read).await.map_err(bug)??;
    let mut acks = Vec::new();
    for part in &import.parts {
        tell.send_replace(("publishing", String::new(), part.rows, 0, 0));
        let run_id = match &run_id {
            // parts are publishes of their own: one id each
            Some(id) if import.parts.len() > 1 => format!("{id}-{}", acks.len()),
            Some(id) => id.clone(),
            None => part.run_id(),
        };
        let header = pb::PublishHeader {
            dataset: import.spec.dataset.to_string(),
            kind: pb::PublishKind::Import.into(),
            run_id,
            instance: format!("import-{}", std::process::id()),
            spec: Some((&import.spec).into()),
            known_at_ns: part.known_at_ns,
            ..Default::default()
        };
        acks.push(client.publish(header, part.batches.clone()).await?);
    }
    Ok((import, acks))
}
