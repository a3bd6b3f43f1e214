//! Replies of the grid as plain Python dicts, one function for each message. Python code never sees a protobuf type.

use pyo3::{prelude::*, types::PyDict};
use trellis_proto::{DatasetSpec, pb};

use crate::error::OrRaise;

/// `dict!(py, value; a, b, c)`: a dict of the named fields.
macro_rules! dict {
    ($py:expr, $from:expr; $($field:ident),* $(,)?) => {{
        let dict = PyDict::new($py);
        $(dict.set_item(stringify!($field), &$from.$field)?;)*
        dict
    }};
}

pub(crate) fn receipt<'py>(py: Python<'py>, receipt: &pb::Receipt) -> PyResult<Bound<'py, PyDict>> {
    Ok(dict!(py, receipt;
        dataset, calendar, as_of_ns, known_through_ns, version_min, version_max, watermark_ns, rows, bytes, chunks_hit,
        chunks_joined, chunks_fetched, rows_fetched, shards, stale, elapsed_us, queued_us, head))
}

pub(crate) fn description<'py>(py: Python<'py>, d: &pb::DatasetDescription) -> PyResult<Bound<'py, PyDict>> {
    let dict = dict!(py, d;
        version, known_through_ns, watermark_ns, first_ts_ns, last_ts_ns, rows, symbols, home, spread, copies);
    if let Some(spec) = d.spec.clone().map(DatasetSpec::try_from).transpose().or_raise(py)? {
        let fields = spec.fields.iter().map(|f| (f.name.as_str(), f.data_type.name(), f.nullable));
        dict.set_item("dataset", spec.dataset.as_str())?;
        dict.set_item("fields", fields.collect::<Vec<_>>())?;
        dict.set_item("chunk_ns", spec.chunk.ns())?;
        dict.set_item("calendar", spec.settings.calendar)?;
        dict.set_item("date_zone", spec.settings.date_zone)?;
    }
    Ok(dict)
}

pub(crate) fn head_stats<'py>(py: Python<'py>, stats: &pb::HeadStats) -> PyResult<Bound<'py, PyDict>> {
    let head = dict!(py, stats;
        head, requests, requests_failed, rows_asked, rows_fetched, rows_union, chunks_hit, chunks_joined,
        chunks_fetched, upstream_calls, bytes_sent, bytes_fetched, resident_bytes, in_flight_bytes, pinned_bytes,
        budget_bytes, invalidations, poisoned_flights, stale_answers, evictions, shed, busy_us, state);
    let datasets = stats.datasets.iter().map(|d| {
        Ok(dict!(py, d;
            dataset, requests, rows_asked, rows_fetched, rows_union, chunks_hit, chunks_joined, chunks_fetched,
            upstream_calls, bytes_sent, busy_us))
    });
    head.set_item("datasets", datasets.collect::<PyResult<Vec<_>>>()?)?;
    Ok(head)
}

pub(crate) fn change<'py>(py: Python<'py>, change: &pb::DatasetChange) -> PyResult<Bound<'py, PyDict>> {
    Ok(dict!(py, change; dataset, version, files_rewritten))
}

pub(crate) fn ack<'py>(py: Python<'py>, ack: &pb::PublishAck) -> PyResult<Bound<'py, PyDict>> {
    Ok(dict!(py, ack; dataset, version, known_at_ns, rows, duplicate, shard, retracted, recorded))
}
