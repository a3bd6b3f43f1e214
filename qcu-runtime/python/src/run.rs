//! A run in this process. It uses the pieces of `qcu`: plan and read the inputs, check the output, publish it.

use std::time::{Duration, Instant};

use arrow_array::RecordBatch;
use pyo3::{prelude::*, types::PyDict};
use tracing::{Instrument, Span, info_span};
use trellis_fabric::{clock::now_ns, telemetry};
use trellis_proto::{DatasetName, pb, runs};
use trellis_qcu::{
    metrics::{self, Step},
    run::{self, Prefetched as Inner, attempt_id, beside, new_instance},
    unit::{self, Manifest, parse_session, plan},
};

use crate::{
    arrow::Rows,
    client::Client,
    dict,
    error::{OrRaise, Result},
    runtime::{detached, wait},
};

/// The inputs of one run, read at one knowledge time.
#[pyclass(frozen, module = "trellis._trellis")]
pub(crate) struct Prefetched {
    inner: Inner,
    started_ns: i64,
    /// When its run began.
    began: Instant,
    // one trace for the reads and the publish, whatever the interpreter does in between
    span: Span,
}

/// Name, rows, receipt, window.
type GivenInput<'py> = (String, Rows, Bound<'py, PyDict>, (String, Option<i64>, Option<i64>));

#[pymethods]
impl Prefetched {
    /// Name, rows, receipt and window (calendar, start, end) of each input, in the order of the declaration.
    fn inputs<'py>(&self, py: Python<'py>) -> PyResult<Vec<GivenInput<'py>>> {
        let inputs = self.inner.inputs.iter().map(|input| {
            let answer = &input.answer;
            let rows = Rows::new(answer.schema.clone(), answer.batches.clone());
            let window = (input.window.calendar.clone(), input.window.start_ns, input.window.end_ns);
            Ok((input.name.clone(), rows, dict::receipt(py, &answer.receipt())?, window))
        });
        inputs.collect()
    }

    /// Identity of the run and its attempt. Every attempt of a person has its own identity, so that the result of an edited strategy is
    /// a correction.
    #[getter]
    fn run_id(&self) -> &str {
        &self.inner.run_id
    }
}

/// Checks a unit's manifest (JSON), and whether the unit can run for a session. Returns the manifest in its canonical form.
#[pyfunction]
#[pyo3(signature = (manifest, session=None))]
pub(crate) fn check_manifest(py: Python<'_>, manifest: &str, session: Option<&str>) -> PyResult<String> {
    let checked = || {
        let manifest = Manifest::parse(manifest)?;
        if let Some(session) = session {
            plan(&manifest, parse_session(session)?)?;
        }
        manifest.to_json()
    };
    checked().or_raise(py)
}

/// Checks a result. Returns the rows in the declared types, sorted. Refuses rows that do not fit, with every reason.
#[pyfunction]
pub(crate) fn check_output(py: Python<'_>, manifest: &str, session: &str, rows: &Rows) -> PyResult<Rows> {
    let batch = detached(py, || {
        let manifest = Manifest::parse(manifest)?;
        let spec = manifest.output_spec()?;
        unit::check_output(&manifest.unit, &spec, parse_session(session)?, rows.schema(), rows.batches())
    })?;
    Ok(Rows::new(batch.schema(), vec![batch]))
}

/// Reads the inputs of a unit for a session, all at once and at one knowledge time.
#[pyfunction]
pub(crate) fn prefetch(
    py: Python<'_>,
    client: &Client,
    manifest: &str,
    session: &str,
    as_of_ns: Option<i64>,
) -> PyResult<Prefetched> {
    let parsed = || Ok((Manifest::parse(manifest)?, parse_session(session)?));
    let (manifest, session) = parsed().or_raise(py)?;
    let started_ns = now_ns();
    let client = client.inner(py)?;
    let span = info_span!("run", unit = %manifest.unit, %session);
    let began = Instant::now();
    let read = wait(py, run::prefetch(client, &manifest, session, "", as_of_ns).instrument(span.clone()));
    metrics::step_ended(Step::Read, began.elapsed());
    let mut inner = read?;
    inner.run_id = format!("{}-{}", inner.run_id, attempt_id());
    Ok(Prefetched { inner, started_ns, began, span })
}

/// Publishes checked rows as the unit's output for the session, under a lease of the publish's own, and records the run.
/// Returns the acknowledgement: the rows are durable, and visible to readers.
#[pyfunction]
pub(crate) fn publish_run<'py>(
    py: Python<'py>,
    client: &Client,
    manifest: &str,
    session: &str,
    prefetched: &Prefetched,
    rows: &Rows,
    take_over: bool,
) -> PyResult<Bound<'py, PyDict>> {
    let manifest = Manifest::parse(manifest).or_raise(py)?;
    // in the unit's own name, whatever name the reads had: a head refuses a publish in another unit's name
    client.inner(py)?;
    let published = async {
        let client = client.in_name_of(&manifest.unit)?;
        publish(&client, &manifest, session, prefetched, rows, take_over).await
    };
    let began = Instant::now();
    let published = wait(py, published.instrument(prefetched.span.clone()));
    metrics::step_ended(Step::Publish, began.elapsed());
    let outcome = if published.is_ok() { pb::RunOutcome::Succeeded } else { pb::RunOutcome::Failed };
    metrics::attempt_ended(outcome, prefetched.began.elapsed());
    dict::ack(py, &published?)
}

/// Records that a run has failed before its publish.
#[pyfunction]
pub(crate) fn record_failed(
    py: Python<'_>,
    client: &Client,
    manifest: &str,
    session: &str,
    prefetched: Option<&Prefetched>,
    error: &str,
) -> PyResult<()> {
    let manifest = Manifest::parse(manifest).or_raise(py)?;
    let client = client.inner(py)?;
    let record = pb::RunRecord {
        outcome: pb::RunOutcome::Failed.into(),
        error: error.to_owned(),
        ..record(&manifest, session, prefetched)
    };
    if let Some(prefetched) = prefetched {
        metrics::attempt_ended(pb::RunOutcome::Failed, prefetched.began.elapsed());
    }
    wait(py, async { client.record_runs(vec![record]).await.map(|_| ()) })
}

/// The record of a run, as far as it is known before its end.
fn record(manifest: &Manifest, session: &str, prefetched: Option<&Prefetched>) -> pb::RunRecord {
    let now = now_ns();
    pb::RunRecord {
        run_id: prefetched.map(|p| p.inner.run_id.clone()).unwrap_or_default(),
        unit: manifest.unit.clone(),
        session: session.to_owned(),
        attempt: 1,
        started_ns: prefetched.map_or(now, |p| p.started_ns),
        finished_ns: now,
        code_digest: manifest.code_digest.clone(),
        inputs: prefetched.map(|p| p.inner.receipts()).unwrap_or_default(),
        output_dataset: manifest.output.dataset.to_string(),
        trace_id: telemetry::trace_id(),
        ..Default::default()
    }
}

async fn publish(
    client: &trellis_qcu::client::Client,
    manifest: &Manifest,
    session: &str,
    prefetched: &Prefetched,
    rows: &Rows,
    take_over: bool,
) -> Result<pb::PublishAck> {
    let header = pb::PublishHeader {
        dataset: manifest.output.dataset.to_string(),
        kind: pb::PublishKind::Session.into(),
        session: session.to_owned(),
        run_id: prefetched.inner.run_id.clone(),
        unit: manifest.unit.clone(),
        instance: new_instance(),
        code_digest: manifest.code_digest.clone(),
        inputs: prefetched.inner.receipts(),
        spec: Some((&manifest.output_spec()?).into()),
        once: Some(pb::PublishOnce { take_over }),
        record: Some(pb::RunRecord {
            started_ns: prefetched.started_ns,
            trace_id: telemetry::trace_id(),
            ..Default::default()
        }),
        ..Default::default()
    };
    match publish_recorded(client, header, rows.batches().to_vec()).await {
        Ok(ack) => Ok(ack),
        Err(error) => {
            let outcome = if error.retryable() { pb::RunOutcome::Failed } else { pb::RunOutcome::Refused };
            let run = pb::RunRecord {
                outcome: outcome.into(),
                error: error.to_string(),
                started_ns: beside(prefetched.started_ns),
                ..record(manifest, session, Some(prefetched))
            };
            if let Err(unrecorded) = client.record_runs(vec![run]).await {
                tracing::warn!(error = %unrecorded, "a run is missing from the ledger");
            }
            Err(error)
        }
    }
}

/// How long the caller of a committed publish waits for a ledger that the head could not reach. The head goes on trying after it.
const RECORD_TIMEOUT: Duration = Duration::from_secs(5);

/// Publishes, and records the publish if the head could not. `recorded` says whether it is in the ledger.
///
/// # Errors
/// The publish's. A committed publish never fails because of the ledger.
pub(crate) async fn publish_recorded(
    client: &trellis_qcu::client::Client,
    header: pb::PublishHeader,
    batches: Vec<RecordBatch>,
) -> Result<pb::PublishAck> {
    let mut ack = client.publish(header.clone(), batches).await?;
    if !ack.recorded {
        let seen = runs::Seen { answered_ns: now_ns(), ..Default::default() };
        let record = runs::published(&header, &ack, &seen);
        match client.with_deadline(RECORD_TIMEOUT).record_runs(vec![record]).await {
            Ok(_) => ack.recorded = true,
            Err(error) => tracing::warn!(%error, "a publish is not in the ledger yet"),
        }
    }
    Ok(ack)
}

/// Ends a unit's ownership of a dataset: the dataset is no unit's output from then on.
#[pyfunction]
pub(crate) fn end_ownership(py: Python<'_>, client: &Client, dataset: &str, take_over: bool) -> PyResult<()> {
    let dataset = DatasetName::new(dataset).or_raise(py)?;
    let client = client.inner(py)?;
    wait(py, async {
        let request = pb::AcquireLeaseRequest {
            dataset: dataset.to_string(),
            instance: new_instance(),
            take_over,
            ..Default::default()
        };
        client.acquire_lease(request).await.map(|_| ())
    })
}
