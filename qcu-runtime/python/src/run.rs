//! A run in this process, by the pieces that `qcu` uses: plan and read the inputs, check the output, publish it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pyo3::{prelude::*, types::PyDict};
use tracing::{Instrument, Span, info_span};
use trellis_fabric::telemetry;
use trellis_proto::pb;
use trellis_qcu::{
    calendar::parse_session,
    inputs::{self, Prefetched as Inner},
    lease::{Claim, HeldLease, TTL},
    manifest::Manifest,
    output,
    run::new_instance,
};

use crate::{
    arrow::Rows,
    client::Client,
    dict,
    error::{OrRaise, Result},
    runtime::{bug, detached, wait},
};

/// How long to wait for a lease that a deployed unit may be about to give back.
const LEASE_PATIENCE: Duration = Duration::from_secs(3);

/// The inputs of one run, read at one knowledge time.
#[pyclass(frozen, module = "trellis._trellis")]
pub(crate) struct Prefetched {
    inner: Inner,
    started_ns: i64,
    // reads and publish are one trace, whatever the interpreter does in between
    span: Span,
}

/// Name, rows, receipt, window.
type GivenInput<'py> = (String, Rows, Bound<'py, PyDict>, (String, Option<i64>, Option<i64>));

#[pymethods]
impl Prefetched {
    /// Name, rows, receipt and window (calendar, start, end) of each input, in the order declared.
    fn inputs<'py>(&self, py: Python<'py>) -> PyResult<Vec<GivenInput<'py>>> {
        let inputs = self.inner.inputs.iter().map(|input| {
            let answer = &input.answer;
            let rows = Rows::new(answer.schema.clone(), answer.batches.clone());
            let window = (input.window.calendar.clone(), input.window.start_ns, input.window.end_ns);
            Ok((input.name.clone(), rows, dict::receipt(py, &answer.receipt())?, window))
        });
        inputs.collect()
    }

    /// Identity of the run.
    #[getter]
    fn run_id(&self) -> &str {
        &self.inner.run_id
    }
}

/// Checks a unit's manifest (JSON) and answers it in its canonical form.
#[pyfunction]
pub(crate) fn check_manifest(py: Python<'_>, manifest: &str) -> PyResult<String> {
    Manifest::parse(manifest).and_then(|manifest| manifest.to_json()).or_raise(py)
}

/// What a run may publish: the rows in the declared types, sorted. Refuses what does not fit, with every reason.
#[pyfunction]
pub(crate) fn check_result(py: Python<'_>, manifest: &str, session: &str, rows: &Rows) -> PyResult<Rows> {
    let batch = detached(py, || {
        let manifest = Manifest::parse(manifest)?;
        let spec = manifest.output_spec()?;
        output::validate(&manifest.unit, &spec, parse_session(session)?, rows.schema(), rows.batches())
    })?;
    Ok(Rows::new(batch.schema(), vec![batch]))
}

fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
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
    let inner =
        wait(py, inputs::prefetch(client, &manifest, session, "", as_of_ns).instrument(span.clone()))?;
    Ok(Prefetched { inner, started_ns, span })
}

/// Publishes checked rows as the unit's output for the session, under a lease of this call's own, and records the run.
/// Answers the acknowledgement: durable, and visible to readers.
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
    // in the unit's own name, whatever name the reads went by: a head lets nobody publish in another's
    client.inner(py)?;
    let published = async {
        let client = client.in_name_of(&manifest.unit)?;
        publish(&client, &manifest, session, prefetched, rows, take_over).await
    };
    let ack = wait(py, published.instrument(prefetched.span.clone()))?;
    dict::ack(py, &ack)
}

async fn publish(
    client: &trellis_qcu::client::Client,
    manifest: &Manifest,
    session: &str,
    prefetched: &Prefetched,
    rows: &Rows,
    take_over: bool,
) -> Result<pb::PublishAck> {
    let spec = manifest.output_spec()?;
    let dataset = spec.dataset.to_string();
    let claim = Claim { unit: manifest.unit.clone(), instance: new_instance(), spec, take_over, ttl: TTL };
    let lease = HeldLease::acquire(client, claim, LEASE_PATIENCE).await?;
    let header = pb::PublishHeader {
        dataset,
        kind: pb::PublishKind::Session.into(),
        session: session.to_owned(),
        run_id: prefetched.inner.run_id.clone(),
        unit: manifest.unit.clone(),
        instance: lease.claim().instance.clone(),
        epoch: lease.epoch()?,
        code_digest: manifest.code_digest.clone(),
        inputs: prefetched.inner.receipts(),
        ..Default::default()
    };
    let published = client.publish(header.clone(), rows.batches().to_vec()).await;
    lease.release().await;
    let ack = published?;
    let record = pb::RunRecord {
        run_id: header.run_id,
        unit: header.unit,
        session: header.session,
        attempt: 1,
        started_ns: prefetched.started_ns,
        finished_ns: now_ns(),
        outcome: pb::RunOutcome::Succeeded.into(),
        epoch: header.epoch,
        code_digest: header.code_digest,
        inputs: header.inputs,
        output_dataset: ack.dataset.clone(),
        output_version: Some(ack.version),
        rows: ack.rows,
        trace_id: telemetry::traceparent()
            .unwrap_or_default()
            .split('-')
            .nth(1)
            .unwrap_or_default()
            .to_owned(),
        ..Default::default()
    };
    client.record_runs(vec![record]).await.map_err(|e| {
        bug(format!(
            "the output is published (version {}), but the run is not in the ledger: {e}",
            ack.version
        ))
    })?;
    Ok(ack)
}
