//! Bundles of strategies that are submitted to production: packed, and put into S3.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use pyo3::{prelude::*, types::PyBytes};
use trellis_fabric::objects::{ObjectUrl, Objects};
use trellis_proto::{Code, Error};
use trellis_qcu::bundle::{error_of, pack, sha256};

use crate::{error::OrRaise, runtime::wait};

/// How long a person waits for S3.
const PATIENCE: Duration = Duration::from_secs(30);

/// Packs the files of a bundle, by name. Returns the bundle and its SHA-256.
#[pyfunction]
pub(crate) fn pack_bundle<'py>(
    py: Python<'py>,
    files: BTreeMap<String, Vec<u8>>,
) -> PyResult<(Bound<'py, PyBytes>, String)> {
    let bundle = pack(&files).or_raise(py)?;
    Ok((PyBytes::new(py, &bundle), sha256(&bundle)))
}

/// Puts an object unless it is there. Returns whether it was put.
#[pyfunction]
pub(crate) fn put_object(py: Python<'_>, url: &str, region: &str, content: &[u8]) -> PyResult<bool> {
    let url = ObjectUrl::parse(url).map_err(|why| Error::new(Code::InvalidRequest, why)).or_raise(py)?;
    let objects = Objects::open(&url.bucket, Some(region), None).map_err(|e| error_of(&e)).or_raise(py)?;
    let content = Bytes::copy_from_slice(content);
    wait(py, async move { objects.put_new(&url.key, &content, PATIENCE).await.map_err(|e| error_of(&e)) })
}
