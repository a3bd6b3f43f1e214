//! Where the lake's bytes are: a local folder or S3.
//!
//! The stock local object store never syncs, so an acknowledged commit could be lost with the power. [`DurableLocal`]
//! returns from a write only when it is on the disk: write a temporary file, sync it, then link (create) or rename
//! (overwrite) it into place, then sync the folder. Multipart writes are collected and go the same way.
//!
//! A file has its content when its name appears. But the name appears a moment before the folder is synced, and a cut of the power in
//! between takes it away again. No order of calls avoids that. So a shard that finds a new entry of a log syncs the folder itself
//! before it believes the entry: see [`Settle`]. Other tools do not.

use std::{fs, io::Write, ops::Range, path::PathBuf, sync::Arc};

use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result,
    UploadPart,
    aws::{AmazonS3Builder, S3ConditionalPut},
    local::LocalFileSystem,
    path::Path,
    prefix::PrefixStore,
};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;
use trellis_proto::{Code, DatasetName};
use url::Url;

use super::{
    footers::{FOOTERS_BYTES_MAX, Footer, Footers},
    metered::Metered,
};
use crate::{
    budget::{Budget, WORK_BYTES_MAX},
    error::store_error,
};

/// Requests to the store at once; more wait. A request has a connection, or at most two files (one that is written, and its folder), and
/// does not outlive its answer. So they have no more than 128 descriptors: the eighth of the usual 1,024 that servers do not
/// give to connections. More requests at once would not move more bytes.
pub(crate) const REQUESTS_MAX: usize = 64;

/// The suffix of a file while it is written.
pub(crate) const STAGED_SUFFIX: &str = ".staged";

/// The folder of the shards' own files in the lake.
const OWN_FOLDER: &str = "_trellis";

/// A store in which a name may be seen before it is durable.
#[async_trait::async_trait]
pub(crate) trait Settle: std::fmt::Debug + Send + Sync {
    /// Returns when the file stays, whatever happens to the machine.
    async fn settle(&self, location: &Path) -> Result<()>;
}

/// The lake: one folder or prefix with one table in each child.
#[derive(Debug, Clone)]
pub(crate) struct Lake {
    root: Arc<dyn ObjectStore>,
    /// `None`: what can be seen is durable.
    names: Option<Arc<dyn Settle>>,
    url: Url,
    prefix: Path,
    /// Calls of the Delta kernel that are under way.
    calls: TaskTracker,
    /// For requests to the store.
    requests: Arc<Semaphore>,
    budget: Budget,
    footers: Arc<Footers<Footer>>,
}

/// One dataset's folder in the store.
#[derive(Debug, Clone)]
pub(crate) struct Folder {
    /// Paths relative to the dataset's folder.
    pub(crate) files: Arc<dyn ObjectStore>,
    /// Paths from the root of the disk or bucket.
    pub(crate) root: Arc<dyn ObjectStore>,
    names: Option<Arc<dyn Settle>>,
    prefix: Path,
    pub(crate) url: Url,
    /// Calls of the Delta kernel that are under way, in the whole lake.
    pub(crate) calls: TaskTracker,
    requests: Arc<Semaphore>,
    /// For work on the files of the whole lake.
    pub(crate) budget: Budget,
    pub(crate) footers: Arc<Footers<Footer>>,
}

impl Folder {
    /// A file of this folder as error messages name it.
    pub(crate) fn file_name(&self, path: &str) -> String {
        match self.url.to_file_path() {
            Ok(dir) => dir.join(path).to_string_lossy().into_owned(),
            Err(()) => format!("{}{path}", self.url),
        }
    }

    /// Returns when a file that can be seen stays, whatever happens to the machine.
    pub(crate) async fn settle(&self, path: &Path) -> Result<()> {
        match &self.names {
            Some(names) => {
                let _request = self.requests.acquire().await;
                names.settle(&self.prefix.parts().chain(path.parts()).collect()).await
            }
            None => Ok(()),
        }
    }
}

impl Lake {
    /// Opens the lake at `url`: `file:///folder/` or `s3://bucket/prefix`, the latter with the standard `AWS_*` variables.
    pub(crate) fn open(url: &Url) -> trellis_proto::Result<Self> {
        let refuse = |why: String| {
            trellis_proto::Error::new(Code::InvalidRequest, format!("the lake {url} cannot be used: {why}"))
        };
        let root: Arc<dyn ObjectStore> = match url.scheme() {
            "file" => {
                let disk = Arc::new(DurableLocal::default());
                return Self::over(disk.clone(), Some(disk), url);
            }
            "s3" => Arc::new(
                AmazonS3Builder::from_env()
                    .with_url(url.as_str())
                    .with_conditional_put(S3ConditionalPut::ETagMatch)
                    .build()
                    .map_err(|e| refuse(e.to_string()))?,
            ),
            other => return Err(refuse(format!("{other}:// is not supported"))),
        };
        Self::over(root, None, url)
    }

    /// A lake in any object store; `names`: that store, if a name in it may be seen before it is durable.
    pub(crate) fn over(
        root: Arc<dyn ObjectStore>,
        names: Option<Arc<dyn Settle>>,
        url: &Url,
    ) -> trellis_proto::Result<Self> {
        let mut url = url.clone();
        if !url.path().ends_with('/') {
            url.set_path(&format!("{}/", url.path()));
        }
        let prefix = Path::from_url_path(url.path()).map_err(|e| {
            trellis_proto::Error::new(Code::InvalidRequest, format!("the lake {url} cannot be used: {e}"))
        })?;
        let requests = Arc::new(Semaphore::new(REQUESTS_MAX));
        Ok(Self {
            root: Arc::new(Metered::new(root, requests.clone())),
            names,
            url,
            prefix,
            calls: TaskTracker::new(),
            requests,
            budget: Budget::new(WORK_BYTES_MAX),
            footers: Arc::new(Footers::new(FOOTERS_BYTES_MAX)),
        })
    }

    /// The same lake, with `bytes` of memory for work on its files.
    pub(crate) fn within(self, bytes: u64) -> Self {
        Self { budget: Budget::new(bytes), ..self }
    }

    /// A file of a shard's own. It is beside the tables, in a folder that has no name of a dataset.
    fn own(&self, name: &str) -> Path {
        self.prefix.clone().join(OWN_FOLDER).join(name)
    }

    /// Reads a file of a shard's own; `None`: it is not there.
    pub(crate) async fn read_own(&self, name: &str) -> trellis_proto::Result<Option<Bytes>> {
        let path = self.own(name);
        let failed = |e| store_error("reading", path.as_ref(), &e);
        match self.root.get(&path).await {
            Ok(found) => found.bytes().await.map(Some).map_err(failed),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(failed(e)),
        }
    }

    /// Writes a file of a shard's own, in the place of the one before.
    pub(crate) async fn write_own(&self, name: &str, bytes: Bytes) -> trellis_proto::Result<()> {
        let path = self.own(name);
        let put = self.root.put(&path, bytes.into()).await;
        put.map(|_| ()).map_err(|e| store_error("writing", path.as_ref(), &e))
    }

    /// Whether each look costs a request.
    pub(crate) fn is_remote(&self) -> bool {
        self.url.scheme() != "file"
    }

    /// The folder of one dataset, whether or not it is there.
    pub(crate) fn folder(&self, dataset: &DatasetName) -> Folder {
        let prefix = self.prefix.clone().join(dataset.as_str());
        let mut url = self.url.clone();
        url.set_path(&format!("{}{}/", url.path(), dataset));
        Folder {
            files: Arc::new(PrefixStore::new(self.root.clone(), prefix.clone())),
            root: self.root.clone(),
            names: self.names.clone(),
            prefix,
            url,
            calls: self.calls.clone(),
            requests: self.requests.clone(),
            budget: self.budget.clone(),
            footers: self.footers.clone(),
        }
    }

    /// Waits for the calls of the Delta kernel that are under way. Cancel safe.
    pub(crate) async fn settle(&self) {
        self.calls.close();
        self.calls.wait().await;
    }

    /// Copies a file of one dataset into the folder of another; without moving its bytes, if the store can.
    pub(crate) async fn copy(&self, from: &DatasetName, to: &DatasetName, file: &str) -> Result<()> {
        let path = |dataset: &DatasetName| {
            let folder = self.prefix.clone().join(dataset.as_str());
            file.split('/').fold(folder, |path, part| path.join(part))
        };
        self.root.copy(&path(from), &path(to)).await
    }

    /// The names of the lake's folders that are valid names of datasets. A folder need not have a table.
    pub(crate) async fn datasets(&self) -> trellis_proto::Result<Vec<DatasetName>> {
        let listed = self
            .root
            .list_with_delimiter(Some(&self.prefix))
            .await
            .map_err(|e| store_error("listing", self.url.as_str(), &e))?;
        Ok(listed
            .common_prefixes
            .iter()
            .filter_map(|path| path.filename())
            .filter_map(|name| DatasetName::new(name).ok())
            .collect())
    }
}

/// The local file system. A write is on the disk when it returns.
#[derive(Debug, Default)]
pub(crate) struct DurableLocal {
    inner: Arc<LocalFileSystem>,
}

impl std::fmt::Display for DurableLocal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DurableLocal({})", self.inner)
    }
}

fn io_error(source: std::io::Error) -> Error {
    Error::Generic { store: "DurableLocal", source: Box::new(source) }
}

fn sync_dir(dir: &std::path::Path) -> std::io::Result<()> {
    fs::File::open(dir)?.sync_all()
}

/// `mkdir -p` that syncs the parent of each folder it makes.
fn make_dirs(dir: &std::path::Path) -> std::io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let Some(parent) = dir.parent() else { return Ok(()) };
    make_dirs(parent)?;
    match fs::create_dir(dir) {
        Ok(()) => sync_dir(parent),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(e),
    }
}

fn durable_put(path: &std::path::Path, parts: &[Bytes], create: bool) -> Result<()> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io_error(std::io::Error::other("the path has no folder")));
    };
    let staged =
        dir.join(format!(".{}.{}{STAGED_SUFFIX}", name.to_string_lossy(), uuid::Uuid::new_v4().simple()));
    let write = || -> std::io::Result<()> {
        make_dirs(dir)?;
        let mut file = fs::OpenOptions::new().write(true).create_new(true).open(&staged)?;
        for part in parts {
            file.write_all(part)?;
        }
        file.sync_all()?;
        if create {
            // Put-if-absent: a link fails if the name is taken, and the file appears with all of its content.
            fs::hard_link(&staged, path)?;
            let _ = fs::remove_file(&staged);
        } else {
            fs::rename(&staged, path)?;
        }
        sync_dir(dir)
    };
    write().map_err(|e| {
        let _ = fs::remove_file(&staged);
        if create && e.kind() == std::io::ErrorKind::AlreadyExists {
            Error::AlreadyExists { path: path.to_string_lossy().into_owned(), source: Box::new(e) }
        } else {
            io_error(e)
        }
    })
}

async fn durable_put_off_thread(path: PathBuf, parts: Vec<Bytes>, create: bool) -> Result<PutResult> {
    tokio::task::spawn_blocking(move || durable_put(&path, &parts, create))
        .await
        .map_err(|e| io_error(std::io::Error::other(e)))??;
    Ok(PutResult { e_tag: None, version: None })
}

/// A multipart write, collected in memory. Only checkpoints are written in parts, some megabytes at most.
pub(crate) struct Collected<F> {
    parts: Vec<Bytes>,
    write: F,
}

impl<F> Collected<F> {
    /// `write` writes all parts at once.
    pub(crate) fn new(write: F) -> Self {
        Self { parts: Vec::new(), write }
    }
}

impl<F> std::fmt::Debug for Collected<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Collected").field("parts", &self.parts.len()).finish_non_exhaustive()
    }
}

#[async_trait::async_trait]
impl<F, W> MultipartUpload for Collected<F>
where
    F: Fn(Vec<Bytes>) -> W + Send + Sync,
    W: Future<Output = Result<PutResult>> + Send,
{
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.parts.extend(data);
        Box::pin(std::future::ready(Ok(())))
    }

    async fn complete(&mut self) -> Result<PutResult> {
        (self.write)(std::mem::take(&mut self.parts)).await
    }

    async fn abort(&mut self) -> Result<()> {
        self.parts.clear();
        Ok(())
    }
}

#[async_trait::async_trait]
impl ObjectStore for DurableLocal {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let create = match opts.mode {
            PutMode::Create => true,
            PutMode::Overwrite => false,
            PutMode::Update(_) => {
                return Err(Error::NotSupported { source: "conditional update of a local file".into() });
            }
        };
        let path = self.inner.path_to_filesystem(location)?;
        durable_put_off_thread(path, payload.iter().cloned().collect(), create).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        _: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let path = self.inner.path_to_filesystem(location)?;
        Ok(Box::new(Collected::new(move |parts| durable_put_off_thread(path.clone(), parts, false))))
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
        // A reader of the folder must not take staged files for files of the table.
        self.inner
            .list(prefix)
            .filter(|meta| {
                let staged = meta.as_ref().is_ok_and(|m| m.location.as_ref().ends_with(STAGED_SUFFIX));
                std::future::ready(!staged)
            })
            .boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await?;
        self.sync(to).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.inner.rename_opts(from, to, options).await?;
        self.sync(to).await
    }
}

impl DurableLocal {
    async fn sync(&self, location: &Path) -> Result<()> {
        let path = self.inner.path_to_filesystem(location)?;
        tokio::task::spawn_blocking(move || {
            fs::File::open(&path)?.sync_all()?;
            path.parent().map_or(Ok(()), sync_dir)
        })
        .await
        .map_err(|e| io_error(std::io::Error::other(e)))?
        .map_err(io_error)
    }
}

#[async_trait::async_trait]
impl Settle for DurableLocal {
    async fn settle(&self, location: &Path) -> Result<()> {
        self.sync(location).await
    }
}

/// Removes staged files in a local folder that are older than `age`: their writers are gone.
pub(crate) async fn sweep_staged(url: &Url, age: std::time::Duration) {
    let Ok(dir) = url.to_file_path() else { return };
    let sweep = move || {
        for dir in [dir.clone(), dir.join("_delta_log")] {
            let Ok(entries) = fs::read_dir(&dir) else { continue };
            for entry in entries.flatten() {
                let old = entry
                    .metadata()
                    .and_then(|meta| meta.modified())
                    .is_ok_and(|at| at.elapsed().is_ok_and(|elapsed| elapsed > age));
                if old && entry.file_name().to_string_lossy().ends_with(STAGED_SUFFIX) {
                    let _ = fs::remove_file(entry.path());
                }
            }
        }
    };
    // Nothing depends on it: the next start removes what is left.
    let _ = tokio::task::spawn_blocking(sweep).await;
}
