//! The store of the Delta kernel, which knows no checksums. It gives the kernel only bytes of the log that are those that were written,
//! and writes down the checksum of a checkpoint before it writes the checkpoint.
//!
//! The checksum is in the name of an empty file beside the checkpoint. Two shards may write a checkpoint of one version with other
//! bytes, and one of them replaces that of the other. Each has its checksum there before its bytes, so whatever bytes are there have
//! one.

use std::{collections::HashMap, ops::Range, sync::Arc};

use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use object_store::{
    CopyOptions, DynObjectStore, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
    memory::InMemory, path::Path,
};
use parking_lot::Mutex;

use super::{
    entry::check_entry,
    listing::{Kind, LOG_FOLDER, Listing, LogFile, Said, checksum_path, log_file},
};
use crate::files::{Checked, Collected, checksum_text};

/// The store, for one call of the kernel.
#[derive(Debug)]
pub(super) struct Summed {
    inner: Arc<DynObjectStore>,
    /// The log, as it was listed before the call.
    listing: Arc<Listing>,
    /// The files of checkpoints that the call has read. The kernel reads each in several ranges.
    read: Mutex<HashMap<Path, Bytes>>,
}

impl Summed {
    pub(super) fn new(inner: Arc<DynObjectStore>, listing: Arc<Listing>) -> Self {
        Self { inner, listing, read: Mutex::default() }
    }

    /// The bytes of a file of the log, which are those that were written; `None`: it is another file.
    async fn checked(&self, location: &Path) -> Result<Option<Bytes>> {
        let kind = location.filename().and_then(log_file).filter(|_| folder(location).is_some());
        let bytes = match kind {
            Some((_, Kind::Entry)) => {
                let bytes = self.inner.get(location).await?.bytes().await?;
                check_entry(&bytes).map_err(|why| differs(format!("{location}: {why}")))?;
                bytes
            }
            Some((_, Kind::Checkpoint { .. })) => {
                if let Some(bytes) = self.read.lock().get(location) {
                    return Ok(Some(bytes.clone()));
                }
                let (bytes, _) = checkpoint_file(self.inner.as_ref(), &self.listing, location).await?;
                self.read.lock().insert(location.clone(), bytes.clone());
                bytes
            }
            Some((_, Kind::Checksum)) | None => return Ok(None),
        };
        Ok(Some(bytes))
    }
}

/// Why bytes are not those that were written.
#[derive(Debug)]
pub(super) struct Differs(String);

impl std::fmt::Display for Differs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Differs {}

fn differs(why: String) -> Error {
    Error::Generic { store: "log", source: Box::new(Differs(why)) }
}

/// Reads a file of a checkpoint whole, and compares it with the checksums beside it if it has any.
///
/// # Errors
/// [`Differs`], in an error of the store. The others are those of the store.
pub(super) async fn checkpoint_file(
    store: &DynObjectStore,
    listing: &Listing,
    path: &Path,
) -> Result<(Bytes, Checked)> {
    let bytes = store.get(path).await?.bytes().await?;
    let sum = checksum_text(&bytes);
    let said = match listing.says(path, &sum) {
        Some(said @ (Said::Nothing | Said::Same)) => said,
        // Another shard may have written it since the listing, and its checksum before.
        Some(Said::Other) | None => {
            let log = folder(path).unwrap_or_default();
            list_log(store, &log).await?.says(path, &sum).unwrap_or(Said::Other)
        }
    };
    match said {
        Said::Nothing => Ok((bytes, Checked::NoChecksums)),
        Said::Same => Ok((bytes, Checked::Whole)),
        Said::Other => {
            Err(differs("its bytes are not those that were written: their checksum differs".to_owned()))
        }
    }
}

/// The folder of a log, in which the file `path` is. The store begins at the lake or at the table.
fn folder(path: &Path) -> Option<Path> {
    let parts: Vec<_> = path.parts().collect();
    let (_, folder) = parts.split_last()?;
    (folder.last()?.as_ref() == LOG_FOLDER).then(|| folder.iter().cloned().collect())
}

/// Lists the log that is in the folder `prefix`.
pub(super) async fn list_log(store: &DynObjectStore, prefix: &Path) -> Result<Listing> {
    let mut listed = store.list(Some(prefix));
    let mut files = Vec::new();
    while let Some(meta) = listed.next().await {
        let meta = meta?;
        // Other tools put folders of their own here.
        let mut rest = meta.location.prefix_match(prefix).into_iter().flatten();
        let name = rest.next().filter(|_| rest.next().is_none());
        let Some((version, kind)) = name.and_then(|name| log_file(name.as_ref())) else { continue };
        let modified_ms = meta.last_modified.timestamp_millis();
        files.push(LogFile { version, kind, path: meta.location.clone(), modified_ms, size: meta.size });
    }
    files.sort_unstable_by(|a, b| (a.version, &a.path).cmp(&(b.version, &b.path)));
    Ok(Listing { files })
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
        let checked = if options.head { None } else { self.checked(location).await? };
        let Some(bytes) = checked else { return self.inner.get_opts(location, options).await };
        let held = InMemory::new();
        held.put(location, bytes.into()).await?;
        held.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let Some(bytes) = self.checked(location).await? else {
            return self.inner.get_ranges(location, ranges).await;
        };
        let held = InMemory::new();
        held.put(location, bytes.into()).await?;
        held.get_ranges(location, ranges).await
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
