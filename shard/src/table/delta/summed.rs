//! A store that writes down the checksum of a checkpoint before it writes the checkpoint. The Delta kernel writes through it.
//!
//! The checksum is in the name of an empty file beside the checkpoint. Two shards may write a checkpoint of one version with other
//! bytes, and one of them replaces that of the other. Each has its checksum there before its bytes, so whatever bytes are there have
//! one.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::{
    CopyOptions, DynObjectStore, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, path::Path,
};

use super::listing::{Kind, checksum_path, log_file};
use crate::files::{Collected, checksum_text};

/// The store.
#[derive(Debug)]
pub(super) struct Summed {
    inner: Arc<DynObjectStore>,
}

impl Summed {
    pub(super) fn new(inner: Arc<DynObjectStore>) -> Self {
        Self { inner }
    }
}

impl std::fmt::Display for Summed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.fmt(f)
    }
}

async fn put(
    store: &DynObjectStore,
    path: &Path,
    payload: PutPayload,
    options: PutOptions,
) -> Result<PutResult> {
    let kind = path.filename().and_then(log_file);
    if matches!(kind, Some((_, Kind::Checkpoint { .. }))) {
        let bytes = Bytes::from(payload.clone());
        store.put(&checksum_path(path, &checksum_text(&bytes)), PutPayload::new()).await?;
    }
    store.put_opts(path, payload, options).await
}

#[async_trait::async_trait]
impl ObjectStore for Summed {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        put(self.inner.as_ref(), location, payload, opts).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        _: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let (inner, path) = (self.inner.clone(), location.clone());
        let write = move |parts: Vec<Bytes>| {
            let (inner, path) = (inner.clone(), path.clone());
            async move { put(inner.as_ref(), &path, parts.into_iter().collect(), PutOptions::default()).await }
        };
        Ok(Box::new(Collected::new(write)))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
