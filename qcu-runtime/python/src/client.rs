//! The grid's client for Python. Every call waits without the interpreter, and returns Arrow or plain values.

use std::{
    fs::{File, TryLockError},
    io::ErrorKind,
    mem::ManuallyDrop,
    path::{Path, PathBuf},
    time::Duration,
};

use pyo3::{prelude::*, types::PyDict};
use trellis_proto::{
    DatasetName, Error, FieldName, FieldType, SeriesQuery, Symbols, TimeRange, pb, spec::FieldSpec,
};
use trellis_qcu::{
    client::{Client as Inner, ClientOptions, Ended},
    unit::Calendar,
};

use crate::{
    arrow::Rows,
    dict,
    error::{OrRaise, Result},
    runtime::{forked, wait},
};

/// A connection to the heads of a grid. Made by `trellis.connect`.
#[pyclass(frozen, module = "trellis._trellis")]
pub(crate) struct Client {
    // dropped only in the process that made it: a dropped connection wakes tasks, and a forked child has no tasks
    inner: ManuallyDrop<Inner>,
    pid: u32,
    url: String,
    ended: Option<Ended>,
}

impl Client {
    /// The client, in the process that made it.
    pub(crate) fn inner(&self, py: Python<'_>) -> PyResult<&Inner> {
        if self.pid == std::process::id() { Ok(&self.inner) } else { Err(forked(py)) }
    }
}

impl Client {
    /// Another client of the same grid, which calls in the name of `unit`. Call it inside the runtime.
    pub(crate) fn in_name_of(&self, unit: &str) -> Result<Inner> {
        let ended = self.ended.clone();
        let options = ClientOptions { unit: Some(unit.to_owned()), ended, ..ClientOptions::default() };
        Inner::lazy(&self.url, &options)
    }
}

/// Whether the process that wrote `url` into the lock file of its state folder has ended: the kernel has taken the lock from
/// it, or another process has the lock now.
fn has_ended(lock: &Path, url: &str) -> bool {
    let file = match File::open(lock) {
        Ok(file) => file,
        Err(error) => return error.kind() == ErrorKind::NotFound,
    };
    match file.try_lock_shared() {
        Ok(()) => true,
        Err(TryLockError::WouldBlock) => std::fs::read_to_string(lock)
            .is_ok_and(|told| !told.is_empty() && !told.contains(&format!("\"{url}\""))),
        Err(TryLockError::Error(_)) => false,
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if self.pid == std::process::id() {
            // SAFETY: dropped once, here, and never used after.
            unsafe { ManuallyDrop::drop(&mut self.inner) };
        }
    }
}

#[pymethods]
impl Client {
    /// Connects, and waits at most `connect_timeout_s` for a head that answers. `deadline_s` bounds each later call. A call to a grid of
    /// this machine also ends when the process that holds the lock file `lock` ends.
    #[new]
    #[pyo3(signature = (url, unit, connect_timeout_s, deadline_s, lock=None))]
    fn new(
        py: Python<'_>,
        url: &str,
        unit: Option<String>,
        connect_timeout_s: f64,
        deadline_s: f64,
        lock: Option<PathBuf>,
    ) -> PyResult<Self> {
        let seconds = |s: f64| Duration::try_from_secs_f64(s).unwrap_or(Duration::MAX);
        let ended = lock.map(|lock| {
            let url = url.to_owned();
            Ended::new(move || has_ended(&lock, &url))
        });
        let options = ClientOptions {
            unit,
            ended: ended.clone(),
            connect_timeout: seconds(connect_timeout_s),
            deadline: seconds(deadline_s),
            ..ClientOptions::default()
        };
        let inner = wait(py, Inner::connect(url, options))?;
        Ok(Self { inner: ManuallyDrop::new(inner), pid: std::process::id(), url: url.to_owned(), ended })
    }

    /// Addresses of the heads.
    #[getter]
    fn heads(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        Ok(self.inner(py)?.heads())
    }

    /// Rows and receipt.
    #[pyo3(signature = (dataset, fields, symbols, start_ns, end_ns, as_of_ns, known_at, allow_stale, rows_max))]
    #[allow(clippy::too_many_arguments)] // one call of ours, with all of a ticket's fields
    fn read<'py>(
        &self,
        py: Python<'py>,
        dataset: &str,
        fields: Vec<String>,
        symbols: Vec<String>,
        start_ns: Option<i64>,
        end_ns: Option<i64>,
        as_of_ns: Option<i64>,
        known_at: bool,
        allow_stale: bool,
        rows_max: u64,
    ) -> PyResult<(Rows, Bound<'py, PyDict>)> {
        let query = || {
            Ok(SeriesQuery {
                dataset: DatasetName::new(dataset)?,
                fields: fields.iter().map(FieldName::new).collect::<Result<_>>()?,
                symbols: Symbols::new(&symbols)?,
                range: TimeRange::new(start_ns, end_ns)?,
                as_of: as_of_ns,
                allow_stale,
                known_at,
                rows_max,
            })
        };
        let query = query().or_raise(py)?;
        let answer = wait(py, self.inner(py)?.read(&query))?;
        let receipt = dict::receipt(py, &answer.receipt())?;
        Ok((Rows::new(answer.schema, answer.batches), receipt))
    }

    /// Describes all datasets, or one. The deadline is `deadline_s`, or that of any call.
    #[pyo3(signature = (dataset, deadline_s=None))]
    fn describe<'py>(
        &self,
        py: Python<'py>,
        dataset: Option<&str>,
        deadline_s: Option<f64>,
    ) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let dataset = dataset.map(DatasetName::new).transpose().or_raise(py)?;
        let mut client = self.inner(py)?.clone();
        if let Some(deadline) = deadline_s {
            client = client.with_deadline(Duration::from_secs_f64(deadline));
        }
        let found = wait(py, client.describe(dataset.as_ref()))?;
        found.iter().map(|d| dict::description(py, d)).collect()
    }

    /// The symbols of a dataset, sorted.
    fn symbols(&self, py: Python<'_>, dataset: &str) -> PyResult<Vec<String>> {
        let dataset = DatasetName::new(dataset).or_raise(py)?;
        let symbols = wait(py, self.inner(py)?.symbols(&dataset))?;
        Ok(symbols.iter().map(ToString::to_string).collect())
    }

    /// Midnights of the sessions that have rows, nanoseconds.
    fn sessions(
        &self,
        py: Python<'_>,
        dataset: &str,
        start_ns: Option<i64>,
        end_ns: Option<i64>,
    ) -> PyResult<Vec<i64>> {
        let dataset = DatasetName::new(dataset).or_raise(py)?;
        let range = TimeRange::new(start_ns, end_ns).or_raise(py)?;
        wait(py, self.inner(py)?.sessions(&dataset, range))
    }

    /// Changes a dataset's fields and settings.
    #[pyo3(signature = (dataset, id, by, drop, rename, widen, add, calendar, date_zone, copies, spread))]
    #[allow(clippy::too_many_arguments)] // one call of ours, with all of an alteration's parts
    fn alter<'py>(
        &self,
        py: Python<'py>,
        dataset: &str,
        id: String,
        by: String,
        drop: Vec<String>,
        rename: Vec<(String, String)>,
        widen: Vec<(String, String)>,
        add: Vec<(String, String, bool)>,
        calendar: Option<String>,
        date_zone: Option<String>,
        copies: Option<u32>,
        spread: Option<u32>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let request = || -> Result<pb::AlterDatasetRequest> {
            if let Some(name) = calendar.as_deref().filter(|name| !name.is_empty()) {
                Calendar::named(name)?;
            }
            let field = |name: &str, data_type: &str, nullable: bool| {
                let data_type = FieldType::parse(data_type)?;
                Ok::<_, Error>(pb::Field::from(&FieldSpec {
                    name: FieldName::new(name)?,
                    data_type,
                    nullable,
                }))
            };
            let widen = widen.iter().map(|(name, data_type)| {
                let field = field(name, data_type, true)?;
                Ok(pb::FieldWidening { r#type: field.r#type, field: field.name })
            });
            Ok(pb::AlterDatasetRequest {
                dataset: DatasetName::new(dataset)?.to_string(),
                id,
                by,
                drop,
                rename: rename.into_iter().map(|(from, to)| pb::FieldRename { from, to }).collect(),
                widen: widen.collect::<Result<_>>()?,
                add: add.iter().map(|(n, t, nullable)| field(n, t, *nullable)).collect::<Result<_>>()?,
                calendar: calendar.clone(),
                date_zone,
                copies,
                spread,
            })
        };
        let request = request().or_raise(py)?;
        dict::change(py, &wait(py, self.inner(py)?.alter_dataset(request))?)
    }

    /// Drops a dataset.
    fn drop<'py>(
        &self,
        py: Python<'py>,
        dataset: &str,
        id: String,
        by: String,
    ) -> PyResult<Bound<'py, PyDict>> {
        let dataset = DatasetName::new(dataset).or_raise(py)?.to_string();
        let request = pb::DropDatasetRequest { dataset, id, by };
        dict::change(py, &wait(py, self.inner(py)?.drop_dataset(request))?)
    }

    /// Gives a dataset another name.
    fn rename<'py>(
        &self,
        py: Python<'py>,
        dataset: &str,
        to: &str,
        id: String,
        by: String,
    ) -> PyResult<Bound<'py, PyDict>> {
        let name = |name: &str| Ok(DatasetName::new(name)?.to_string());
        let (dataset, to) = (name(dataset).or_raise(py)?, name(to).or_raise(py)?);
        let request = pb::RenameDatasetRequest { dataset, id, by, to };
        dict::change(py, &wait(py, self.inner(py)?.rename_dataset(request))?)
    }

    /// Counters of every head that answers.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let stats = wait(py, self.inner(py)?.stats())?;
        stats.iter().map(|s| dict::head_stats(py, s)).collect()
    }
}
