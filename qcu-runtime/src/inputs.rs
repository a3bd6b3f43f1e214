//! From a session and a unit's declared inputs to requests, and from requests to rows.
//!
//! [`plan`] is pure; [`prefetch`] asks the grid. An input covers `[midnight UTC of the first session of its lookback,
//! midnight UTC after the session)`, so a daily row stamped anywhere in a session's UTC day is inside, and nothing of the
//! next session is.
//!
//! **Pinning.** A run is repeatable only if everything it reads is read at a stated knowledge time. So before reading
//! "the latest", the run asks how far each dataset is known and reads as of exactly that: the parts of an answer that
//! come from different heads then agree, and reading again later gives the same rows. A head whose claim of the latest
//! is younger than the pin simply asks its shard.

use std::collections::BTreeMap;

use chrono::NaiveDate;
use futures::future::try_join_all;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use trellis_proto::{
    Code, DatasetName, Error, Result, SeriesQuery, TimeRange, pb, time::DAY_NS, time::parse_duration,
    time::parse_time,
};

use crate::{
    calendar::{Calendar, midnight_ns},
    client::{Answer, Client},
    digest,
    manifest::{AsOf, InputSpec, Lookback, Manifest},
};

/// One input, read.
#[derive(Debug, Clone)]
pub struct Input {
    /// Its name in the unit.
    pub name: String,
    /// Its rows and receipts.
    pub answer: Answer,
    /// Which sessions it covers, whatever rows there are.
    pub window: Window,
}

/// The sessions of an input: those of a calendar in `[start_ns, end_ns)`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// The dataset's calendar, if it has one, else the unit's.
    pub calendar: String,
    /// First nanosecond inside.
    pub start_ns: Option<i64>,
    /// First nanosecond after.
    pub end_ns: Option<i64>,
}

/// Everything a run reads.
#[derive(Debug, Clone)]
pub struct Prefetched {
    /// In the order of the unit.
    pub inputs: Vec<Input>,
    /// The latest knowledge time that any input was read at; `None` without inputs.
    pub as_of_ns: Option<i64>,
    /// Identity of the run: equal for equal unit, session, partition, code and input rows. See [`run_id`].
    pub run_id: String,
}

impl Prefetched {
    /// What the run read, for the publish and the ledger.
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

/// The request of each input for `session`. Those that read the latest have no `as_of` yet.
///
/// # Errors
/// `InvalidRequest` if `session` is none of the unit's calendar, or a lookback leaves the calendar.
pub fn plan(manifest: &Manifest, session: NaiveDate) -> Result<Vec<SeriesQuery>> {
    let calendar = manifest.calendar()?;
    if !calendar.is_session(session) {
        let mut error = Error::new(
            Code::InvalidRequest,
            format!("{session} is no session of {}, the calendar of {}", calendar.name(), manifest.unit),
        );
        if let Some(before) = calendar.previous(session) {
            error = error.hint(format!("the session before it is {before}"));
        }
        return Err(error);
    }
    manifest.inputs.iter().map(|input| query(input, calendar, session)).collect()
}

fn query(input: &InputSpec, calendar: Calendar, session: NaiveDate) -> Result<SeriesQuery> {
    let outside = |what: &str| {
        Error::new(Code::InvalidRequest, format!("input {}: {what}", input.name)).dataset(&input.dataset)
    };
    let midnight =
        midnight_ns(session).ok_or_else(|| outside("the session is beyond what nanoseconds reach"))?;
    let mut end = midnight.saturating_add(DAY_NS);
    let start = match (&input.since, &input.lookback) {
        (Some(since), _) => parse_time(since)?,
        (None, Some(Lookback::Sessions(n))) => {
            let first = calendar.offset(session, 1 - i64::from(*n)).and_then(midnight_ns);
            first.ok_or_else(|| {
                outside(&format!(
                    "{n} sessions back from {session} is before the calendar {} begins",
                    calendar.name()
                ))
            })?
        }
        (None, Some(Lookback::Duration(text))) => end.saturating_sub(parse_duration(text)?),
        (None, None) => midnight,
    };
    if let Some(until) = &input.until {
        end = end.min(parse_time(until)?);
    }
    let as_of = match &input.as_of {
        AsOf::Latest => None,
        AsOf::Close(delay) => {
            let close = calendar.session(session).ok_or_else(|| outside("no such session"))?.close_ns;
            Some(close.saturating_add(parse_duration(delay)?))
        }
    };
    Ok(SeriesQuery {
        fields: input.fields.clone(),
        // a session before `since` reads nothing
        range: TimeRange { start: Some(start), end: Some(end.max(start)) },
        as_of,
        ..SeriesQuery::new(input.dataset.clone(), input.symbols()?)
    })
}

/// Reads every input of `session`, all at once. `as_of_ns` overrides the knowledge time of inputs that read the latest.
///
/// # Errors
/// Those of [`plan`] and of the reads, naming the input. Cancel safe.
pub async fn prefetch(
    client: &Client,
    manifest: &Manifest,
    session: NaiveDate,
    partition: &str,
    as_of_ns: Option<i64>,
) -> Result<Prefetched> {
    let mut queries = plan(manifest, session)?;
    let latest: BTreeMap<DatasetName, ()> =
        queries.iter().filter(|q| q.as_of.is_none()).map(|q| (q.dataset.clone(), ())).collect();
    let pins = match as_of_ns {
        Some(pin) => latest.into_keys().map(|dataset| (dataset, Some(pin))).collect::<BTreeMap<_, _>>(),
        None => {
            let pins = latest.into_keys().map(|dataset| async move {
                let known = client.describe(Some(&dataset)).await?;
                let through = known.first().map(|d| d.known_through_ns).filter(|through| *through > 0);
                Ok::<_, Error>((dataset, through))
            });
            try_join_all(pins).await?.into_iter().collect()
        }
    };
    for query in queries.iter_mut().filter(|q| q.as_of.is_none()) {
        query.as_of = pins.get(&query.dataset).copied().flatten();
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
/// A strategy is a pure function of those, so the id stands for the result before it is computed: a unit that is killed
/// after its publish was committed and started again computes the same id, and the shard acknowledges what is already
/// there. Rows, not versions, are digested: a version moves whenever anything is committed to the dataset, though
/// nothing that the run reads has changed, and it differs between heads. If inputs or code did change, the id differs and
/// the publish is a correction. If neither did but the result does, the strategy is no pure function, and the shard refuses
/// the second result. Attempts of one run share its id; the ledger counts them.
///
/// Whoever runs adds what tells one wish to run from another: a unit its deployment, a person's run each attempt.
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

    fn unit() -> Manifest {
        Manifest::parse(include_str!("../tests/golden/unit.json")).unwrap()
    }

    fn day(text: &str) -> NaiveDate {
        text.parse().unwrap()
    }

    #[test]
    fn a_lookback_counts_sessions_and_includes_the_session() {
        let queries = plan(&unit(), day("2016-08-10")).unwrap();
        let range = queries[0].range;
        // 259 sessions before 2016-08-10 is 2015-07-31
        assert_eq!(range.start, midnight_ns(day("2015-07-31")));
        assert_eq!(range.end, midnight_ns(day("2016-08-11")));
        assert_eq!(queries[0].as_of, None);
    }

    #[test]
    fn since_and_until_bound_an_input_and_close_pins_it() {
        let queries = plan(&unit(), day("2016-08-10")).unwrap();
        let q = &queries[1];
        assert_eq!(q.range.start, midnight_ns(day("2006-08-10")));
        assert_eq!(q.range.end, midnight_ns(day("2016-08-11")));
        assert_eq!(q.as_of, Some(parse_time("2016-08-10T20:20:00Z").unwrap()));
        let later = plan(&unit(), day("2016-08-12")).unwrap();
        assert_eq!(later[1].range.end, midnight_ns(day("2016-08-11")), "until caps");
        let before = plan(&unit(), day("2006-01-03")).unwrap();
        assert!(before[1].range.is_empty(), "a session before since reads nothing");
    }

    #[test]
    fn without_lookback_an_input_is_the_session_alone_and_durations_count_back_from_its_end() {
        let mut unit = unit();
        unit.inputs[0].lookback = None;
        let session = day("2016-08-10");
        assert_eq!(plan(&unit, session).unwrap()[0].range.start, midnight_ns(session));
        unit.inputs[0].lookback = Some(Lookback::Duration("10d".into()));
        assert_eq!(plan(&unit, session).unwrap()[0].range.start, midnight_ns(day("2016-08-01")));
    }

    #[test]
    fn a_day_without_session_is_refused_with_the_session_before() {
        let error = plan(&unit(), day("2016-08-13")).unwrap_err();
        assert_eq!(error.code(), Code::InvalidRequest);
        assert!(error.to_string().contains("2016-08-12"), "{error}");
        assert!(plan(&unit(), day("1990-06-01")).unwrap_err().to_string().contains("begins"));
    }

    #[test]
    fn the_run_id_names_unit_session_partition_and_code() {
        let (a, session) = (unit(), day("2016-08-10"));
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
