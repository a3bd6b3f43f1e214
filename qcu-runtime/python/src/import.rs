//! Imports files into a dataset: reads and checks them, and publishes them part by part.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow_array::{
    cast::AsArray,
    types::{Int32Type, TimestampNanosecondType},
};
use chrono::NaiveDate;
use pyo3::{prelude::*, types::PyDict};
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use trellis_fabric::clock::now_ns;
use trellis_proto::{
    Code, DatasetName, DatasetSpec, Error, Symbol, TimeRange, pb,
    query::{SYMBOLS_MAX, SeriesQuery, Symbols},
    time::format_time,
};
use trellis_qcu::{
    run::{attempt_id, new_instance},
    unit::{Calendar, date_of},
};
use trellis_shard::import::{self, FieldChoice, Import, ImportSpec, Phase};

use crate::{
    client::Client,
    dict,
    error::{OrRaise, Result},
    run::publish_recorded,
    runtime::{bug, wait_telling},
};

/// The progress: step, file, rows, bytes, bytes in all.
type Told = (&'static str, String, u64, u64, u64);

/// Most sessions, symbols and days of each kind that the sample names; it only counts the others.
const NAMED_MAX: usize = 10;

/// Reads `files` by `options` (JSON of the import's options) and publishes their rows, all or nothing for each knowledge time. With
/// `dry_run` it publishes nothing. It calls `show(step, file, rows, bytes, bytes_total)` a few times each second.
#[pyfunction]
#[allow(clippy::too_many_arguments)] // only the package calls it
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
        if let Some(calendar) = &spec.calendar {
            Calendar::named(calendar)?;
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
    let made = Made::of(&files, options, fields);
    let brought = bring_in(client, dataset, files, spec, run_id, made, tell);
    let (import, acks) = wait_telling(py, tick, brought)?;
    let result = PyDict::new(py);
    result.set_item("dataset", import.spec.dataset.as_str())?;
    result.set_item("rows", import.rows)?;
    result.set_item("symbols", import.symbols.len())?;
    result.set_item("first_ts_ns", import.first_ts)?;
    result.set_item("last_ts_ns", import.last_ts)?;
    result.set_item("quarantined", import.problems_total)?;
    result.set_item("notes", &import.notes)?;
    let sample = import.sample.iter().map(|field| {
        let item = PyDict::new(py);
        item.set_item("field", &field.field)?;
        item.set_item("type", field.data_type.name())?;
        item.set_item("column", &field.column)?;
        item.set_item("missing", field.missing)?;
        item.set_item("first", &field.first)?;
        Ok(item)
    });
    result.set_item("ts_columns", &import.ts_columns)?;
    result.set_item("symbol_columns", &import.symbol_columns)?;
    result.set_item("sample", sample.collect::<PyResult<Vec<_>>>()?)?;
    let calendar = import.spec.settings.calendar.as_deref().map(Calendar::named).transpose().or_raise(py)?;
    if let Some(calendar) = calendar {
        result.set_item("calendar", coverage(py, &import, calendar)?)?;
    }
    result.set_item("publishes", acks.iter().map(|a| dict::ack(py, a)).collect::<PyResult<Vec<_>>>()?)?;
    Ok(result)
}

/// Compares the days of the import with the sessions of its calendar: the sessions without a row, the symbols that lack sessions between
/// their first and last, and the days that are no sessions.
fn coverage<'py>(py: Python<'py>, import: &Import, calendar: Calendar) -> PyResult<Bound<'py, PyDict>> {
    let mut by_symbol: BTreeMap<&str, BTreeSet<NaiveDate>> = BTreeMap::new();
    let (mut all, mut other, mut rows_on_other_days) = (BTreeSet::new(), BTreeSet::new(), 0_u64);
    for batch in import.batches() {
        let symbols = batch.column(0).as_string::<i32>();
        let times = batch.column(1).as_primitive::<TimestampNanosecondType>();
        for row in 0..batch.num_rows() {
            let Some(day) = date_of(times.value(row)) else { continue };
            if calendar.is_session(day) {
                all.insert(day);
                by_symbol.entry(symbols.value(row)).or_default().insert(day);
            } else {
                other.insert(day);
                rows_on_other_days += 1;
            }
        }
    }
    let sessions: BTreeSet<NaiveDate> = match (all.first(), all.last()) {
        (Some(&first), Some(&last)) => calendar.range(first, last).chain([last]).collect(),
        _ => BTreeSet::new(),
    };
    let absent = |days: &BTreeSet<NaiveDate>| match (days.first(), days.last()) {
        (Some(&first), Some(&last)) => sessions.range(first..=last).count() - days.len(),
        _ => 0,
    };
    let missing: Vec<String> = sessions.difference(&all).map(ToString::to_string).collect();
    let other: Vec<String> = other.iter().map(ToString::to_string).collect();
    let mut gaps: Vec<(&str, usize)> =
        by_symbol.iter().map(|(symbol, days)| (*symbol, absent(days))).filter(|(_, n)| *n > 0).collect();
    gaps.sort_by_key(|(symbol, n)| (std::cmp::Reverse(*n), *symbol));
    let dict = PyDict::new(py);
    dict.set_item("calendar", calendar.name())?;
    dict.set_item("sessions", sessions.len())?;
    dict.set_item("sessions_missing", missing.len())?;
    dict.set_item("missing", &missing[..missing.len().min(NAMED_MAX)])?;
    dict.set_item("symbols_with_gaps", gaps.len())?;
    dict.set_item("gaps", gaps.into_iter().take(NAMED_MAX).collect::<Vec<_>>())?;
    dict.set_item("rows_on_other_days", rows_on_other_days)?;
    dict.set_item("other_days", &other[..other.len().min(NAMED_MAX)])?;
    Ok(dict)
}

async fn bring_in(
    client: &trellis_qcu::client::Client,
    dataset: DatasetName,
    files: Vec<PathBuf>,
    options: ImportSpec,
    run_id: Option<String>,
    made: Made,
    tell: watch::Sender<Told>,
) -> Result<(Import, Vec<pb::PublishAck>)> {
    let mut stored = None;
    let existing = match client.describe(Some(&dataset)).await {
        Ok(found) => {
            let found = found.into_iter().next();
            stored = found.as_ref().and_then(|d| d.first_ts_ns.zip(d.last_ts_ns));
            found.and_then(|d| d.spec).map(DatasetSpec::try_from).transpose()?
        }
        Err(error) if error.code() == Code::UnknownDataset => None,
        Err(error) => return Err(error),
    };
    let tell = Arc::new(tell);
    let (dry_run, retract) = (options.dry_run, options.retract);
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
    if retract && dry_run {
        check_held(client, &import).await?;
    }
    if !retract {
        import.check_span(stored).map_err(Error::from)?;
    }
    let mut acks = Vec::new();
    let record = if dry_run { pb::RunRecord::default() } else { made.record().await? };
    for part in import.parts.iter().filter(|_| !dry_run) {
        tell.send_replace(("publishing", String::new(), part.rows, 0, 0));
        let run_id = match &run_id {
            // each part is a publish of its own, with its own id
            Some(id) if import.parts.len() > 1 => format!("{id}-{}", acks.len()),
            Some(id) => id.clone(),
            // each attempt has its own id: the shard itself finds the rows that it already has, and whether they still hold
            None if part.known_at_ns.is_none() => format!("{}-{}", part.run_id(), attempt_id()),
            None => part.run_id(),
        };
        let header = pb::PublishHeader {
            dataset: import.spec.dataset.to_string(),
            kind: pb::PublishKind::Import.into(),
            run_id,
            instance: format!("import-{}", std::process::id()),
            spec: Some((&import.spec).into()),
            known_at_ns: part.known_at_ns,
            retract,
            // each part also has its own row in the ledger
            record: Some(match acks.is_empty() {
                true => record.clone(),
                false => pb::RunRecord { started_ns: now_ns(), ..record.clone() },
            }),
            ..Default::default()
        };
        let ack = publish_recorded(client, header, part.batches.clone()).await;
        acks.push(ack.map_err(|error| partly(error, &acks, import.parts.len()))?);
    }
    Ok((import, acks))
}

/// Refuses to retract rows that do not hold, as a shard does in an import that is no dry run.
async fn check_held(client: &trellis_qcu::client::Client, import: &Import) -> Result<()> {
    let spec = &import.spec;
    let mut missing = BTreeSet::new();
    for batch in import.batches() {
        let (symbols, times) = (batch.column(0).as_string::<i32>(), batch.column(1));
        let times = times.as_primitive::<TimestampNanosecondType>();
        missing.extend((0..batch.num_rows()).map(|row| (symbols.value(row).to_owned(), times.value(row))));
    }
    let there: BTreeSet<Symbol> = client.symbols(&spec.dataset).await?.into_iter().collect();
    let symbols: Vec<Symbol> = import.symbols.iter().filter(|s| there.contains(*s)).cloned().collect();
    for symbols in symbols.chunks(SYMBOLS_MAX) {
        let query = SeriesQuery {
            fields: spec.fields.iter().take(1).map(|field| field.name.clone()).collect(),
            range: TimeRange { start: Some(import.first_ts), end: import.last_ts.checked_add(1) },
            ..SeriesQuery::new(spec.dataset.clone(), Symbols::List(symbols.to_vec()))
        };
        for batch in client.read(&query).await?.batches {
            let (symbols, times) = (batch.column(0).as_dictionary::<Int32Type>(), batch.column(1));
            let names = symbols.values().as_string::<i32>();
            let times = times.as_primitive::<TimestampNanosecondType>();
            for row in 0..batch.num_rows() {
                let name = symbols.key(row).map_or("", |key| names.value(key));
                missing.remove(&(name.to_owned(), times.value(row)));
            }
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let named = missing.iter().take(NAMED_MAX);
    let named: Vec<String> = named.map(|(symbol, ts)| format!("{symbol} at {}", format_time(*ts))).collect();
    let more = match missing.len() - named.len() {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    Err(Error::new(Code::BadRows, format!("{} has no row of {}{more}", spec.dataset, named.join("; "))).hint(
        "a retraction names the symbol and the exact time of a row that is read now; what was retracted before is not",
    ))
}

/// Says which parts are in the dataset and which are not, if one of several parts fails.
fn partly(error: Error, acks: &[pb::PublishAck], parts: usize) -> Error {
    let Some(last) = acks.last() else { return error };
    let message = format!(
        "{}; of {parts} knowledge times the first {} are in (version {}), and the others are not",
        error.message(),
        acks.len(),
        last.version
    );
    let then = "import the same files again: what is in is not written twice, and the others follow";
    let hint =
        [error.hint_text(), then].into_iter().filter(|hint| !hint.is_empty()).collect::<Vec<_>>().join("; ");
    let (dataset, symbol, shard) = error.place();
    Error::new(error.code(), message)
        .hint(hint)
        .dataset(dataset)
        .symbol(symbol)
        .shard(shard)
        .side(error.whose())
}

/// Most files of an import that the ledger lists one by one. For more files it has one digest.
const FILES_LISTED_MAX: usize = 64;

/// The files of an import and how they were read, for the ledger.
struct Made {
    files: Vec<PathBuf>,
    started_ns: i64,
    /// Who imported the files, and with which options, as JSON.
    how: String,
}

impl Made {
    fn of(files: &[PathBuf], options: &str, fields: Option<&str>) -> Self {
        let options: serde_json::Value = serde_json::from_str(options).unwrap_or_default();
        let how = serde_json::json!({"by": new_instance(), "options": options, "fields": fields});
        Self { files: files.to_vec(), started_ns: now_ns(), how: how.to_string() }
    }

    async fn record(self) -> Result<pb::RunRecord> {
        let files = self.files;
        let inputs = tokio::task::spawn_blocking(move || receipts(&files)).await.map_err(bug)?;
        Ok(pb::RunRecord { started_ns: self.started_ns, code_digest: self.how, inputs, ..Default::default() })
    }
}

/// A receipt for each file: its name, and in the place of a dataset the digest of its bytes.
fn receipts(files: &[PathBuf]) -> Vec<pb::InputReceipt> {
    let mut digests = files.iter().map(|file| (file.display().to_string(), digest(file)));
    let receipt =
        |(name, dataset): (String, String)| pb::InputReceipt { name, dataset, ..Default::default() };
    let mut receipts: Vec<_> = digests.by_ref().take(FILES_LISTED_MAX).map(receipt).collect();
    let rest: Vec<String> = digests.map(|(_, digest)| digest).collect();
    if !rest.is_empty() {
        let all = format!("sha256:{:x}", Sha256::digest(rest.concat()));
        receipts.push(receipt((format!("and {} more files", rest.len()), all)));
    }
    receipts
}

fn digest(file: &Path) -> String {
    let mut hash = Sha256::new();
    match File::open(file).and_then(|mut file| std::io::copy(&mut file, &mut hash)) {
        Ok(_) => format!("sha256:{:x}", hash.finalize()),
        // the file was there a moment ago
        Err(error) => format!("unknown:{error}"),
    }
}
