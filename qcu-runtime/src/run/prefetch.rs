//! The inputs of one run: read at one knowledge time, and the run's identity, which follows from them.
//!
//! **Pinning.** A run is repeatable only if it reads everything at a stated knowledge time. So before it reads "the latest", the run
//! asks up to which time each dataset is known, and reads as of exactly that time. The parts of an answer from different heads then
//! agree, and a later read gives the same rows. A head that knows the dataset only up to an earlier time asks its shard.

use std::collections::{BTreeMap, BTreeSet};

use chrono::NaiveDate;
use futures::future::try_join_all;
use sha2::{Digest, Sha256};
use trellis_proto::{Code, DatasetName, Error, Result, pb};

use super::digest;
use crate::{
    client::{Answer, Client},
    unit::{Coverage, Manifest, Window, late_input, plan},
};

/// One input, read.
#[derive(Debug, Clone)]
pub struct Input {
    /// Its name in the unit.
    pub name: String,
    /// Its rows and receipts.
    pub answer: Answer,
    /// The sessions that it covers, also those without rows.
    pub window: Window,
}

/// Everything a run reads.
#[derive(Debug, Clone)]
pub struct Prefetched {
    /// The inputs, in the order of the unit.
    pub inputs: Vec<Input>,
    /// The latest knowledge time of all inputs; `None` without inputs.
    pub as_of_ns: Option<i64>,
    /// Identity of the run: the same for the same unit, session, partition, code and input rows. See [`run_id`].
    pub run_id: String,
}

impl Prefetched {
    /// The receipts of the inputs, for the publish and the ledger.
    #[must_use]
    pub fn receipts(&self) -> Vec<pb::InputReceipt> {
        let receipts = self.inputs.iter().map(|input| {
            let receipt = input.answer.receipt();
            pb::InputReceipt {
                name: input.name.clone(),
                dataset: receipt.dataset,
                version: receipt.version_max,
                as_of_ns: receipt.as_of_ns.unwrap_or(receipt.known_through_ns),
                rows: receipt.rows,
            }
        });
        receipts.collect()
    }
}

/// Reads every input of `session`, all at once. `as_of_ns` is the knowledge time of the inputs that read the latest, if given.
///
/// # Errors
/// Those of [`plan`] and of the reads, naming the input; `NotArrived` if an input does not reach the session yet. Cancel safe.
pub async fn prefetch(
    client: &Client,
    manifest: &Manifest,
    session: NaiveDate,
    partition: &str,
    as_of_ns: Option<i64>,
) -> Result<Prefetched> {
    let mut queries = plan(manifest, session)?;
    let datasets: BTreeSet<DatasetName> = queries.iter().map(|query| query.dataset.clone()).collect();
    let described = datasets.into_iter().map(|dataset| async move {
        let found = client.describe(Some(&dataset)).await?;
        Ok::<_, Error>((dataset, found.into_iter().next().unwrap_or_default()))
    });
    let described: BTreeMap<_, _> = try_join_all(described).await?.into_iter().collect();
    let reached: Vec<Coverage> =
        queries.iter().map(|query| Coverage::of(&described[&query.dataset])).collect();
    if let Some(late) = late_input(manifest, manifest.calendar()?, &reached, session) {
        return Err(late.refusal(session));
    }
    for query in queries.iter_mut().filter(|q| q.as_of.is_none()) {
        let through = described[&query.dataset].known_through_ns;
        query.as_of = as_of_ns.or((through > 0).then_some(through));
    }
    let reads = manifest.inputs.iter().zip(&queries).map(|(spec, query)| async move {
        let answer = client.read(query).await.map_err(|e| in_input(&e, &spec.name))?;
        let of_dataset = answer.receipt().calendar;
        let calendar = if of_dataset.is_empty() { manifest.calendar.clone() } else { of_dataset };
        let window = Window { calendar, start_ns: query.range.start, end_ns: query.range.end };
        Ok::<_, Error>(Input { name: spec.name.clone(), answer, window })
    });
    let inputs = try_join_all(reads).await?;
    let as_of_ns = queries.iter().filter_map(|q| q.as_of).max();
    let run_id = {
        let (manifest, inputs, partition) = (manifest.clone(), inputs.clone(), partition.to_owned());
        let digest = tokio::task::spawn_blocking(move || run_id(&manifest, session, &partition, &inputs));
        digest.await.map_err(|e| Error::new(Code::Internal, format!("digest of the inputs: {e}")))?
    };
    Ok(Prefetched { inputs, as_of_ns, run_id })
}

fn in_input(error: &Error, name: &str) -> Error {
    let (dataset, symbol, shard) = error.place();
    let mut named = Error::new(error.code(), format!("input {name}: {}", error.message()))
        .hint(error.hint_text())
        .side(error.whose());
    if !dataset.is_empty() {
        named = named.dataset(dataset);
    }
    if !symbol.is_empty() {
        named = named.symbol(symbol);
    }
    if !shard.is_empty() {
        named = named.shard(shard);
    }
    named
}

/// Identity of a run: 32 hex digits, a digest of unit, session, partition, code, output form and the *rows* of the inputs.
///
/// A strategy is a pure function of those, so the id stands for the result before it is computed. A unit that is killed after its
/// publish was committed, and started again, computes the same id, and the shard acknowledges the publish that it already has.
/// The digest covers rows and not versions: a version changes with every commit to the dataset, even if nothing changes
/// that the run reads, and it differs between heads. If inputs or code have changed, the id differs and the publish is a
/// correction. If only the result has changed, the strategy is no pure function, and the shard refuses the second result. All
/// attempts of one run share its id; the ledger counts them.
///
/// The caller appends what separates one request to run from another: a unit its deployment, a person's run its attempt.
#[must_use]
pub fn run_id(manifest: &Manifest, session: NaiveDate, partition: &str, inputs: &[Input]) -> String {
    let mut hash = Sha256::new();
    let mut text = |part: &str| {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    };
    text("trellis run 1");
    text(&manifest.unit);
    text(&session.to_string());
    text(partition);
    text(&manifest.code_digest);
    text(&manifest.function);
    text(manifest.output.dataset.as_str());
    for (name, data_type) in &manifest.output.fields.0 {
        text(name.as_str());
        text(data_type);
    }
    for input in inputs {
        hash.update((input.name.len() as u64).to_le_bytes());
        hash.update(input.name.as_bytes());
        hash.update(digest::rows(&input.answer.schema, &input.answer.batches));
    }
    digest::hex(&hash.finalize()[..16])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_run_id_names_unit_session_partition_and_code() {
        let day = |text: &str| text.parse().unwrap();
        let unit = Manifest::parse(include_str!("../../tests/golden/unit.json")).unwrap();
        let (a, session) = (unit, day("2016-08-10"));
        let id = run_id(&a, session, "", &[]);
        assert_eq!(id.len(), 32);
        assert_eq!(id, run_id(&a, session, "", &[]));
        let mut other = a.clone();
        other.code_digest.push('x');
        let mut renamed = a.clone();
        renamed.unit = "mom_12_2".into();
        for different in [
            run_id(&other, session, "", &[]),
            run_id(&renamed, session, "", &[]),
            run_id(&a, day("2016-08-11"), "", &[]),
            run_id(&a, session, "p1", &[]),
        ] {
            assert_ne!(id, different);
        }
    }
}
