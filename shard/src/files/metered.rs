//! The store as telemetry sees it: every request has a duration and, inside of a traced call, a span. There is a bound on requests at
//! once, and so on files and connections.

use std::{ops::Range, sync::Arc, time::Instant};

use bytes::Bytes;
use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use object_store::{
    CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result, path::Path,
};
use tokio::sync::Semaphore;
use tracing::{Instrument as _, Span, field::Empty};
use trellis_fabric::telemetry;

use crate::metrics::{self, Direction};

/// A store whose requests are measured.
#[derive(Debug)]
pub(super) struct Metered {
    inner: Arc<dyn ObjectStore>,
    requests: Arc<Semaphore>,
}

impl Metered {
    /// `requests`: one permit for each request that may be made at once.
    pub(super) fn new(inner: Arc<dyn ObjectStore>, requests: Arc<Semaphore>) -> Self {
        Self { inner, requests }
    }

    /// Makes one request when there is room for it.
    async fn request<T>(
        &self,
        operation: &'static str,
        path: &Path,
        bytes: impl FnOnce(&T) -> Option<(Direction, u64)>,
        asked: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        // An error is impossible: nobody closes the semaphore.
        let _room = self.requests.acquire().await;
        request(operation, path, bytes, asked).await
    }
}

/// The answer with its bytes in memory: its file or connection is closed.
async fn read_whole(got: GetResult) -> Result<GetResult> {
    let (meta, range, attributes) = (got.meta.clone(), got.range.clone(), got.attributes.clone());
    let bytes = got.bytes().await?;
    let payload = GetResultPayload::Stream(stream::once(std::future::ready(Ok(bytes))).boxed());
    Ok(GetResult { payload, meta, range, attributes })
}

impl std::fmt::Display for Metered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.fmt(f)
    }
}

/// The span of a request, if a traced call makes it. The shard's own rounds are not traced: they would be traces without end.
fn span(operation: &'static str, path: &Path) -> Span {
    if !telemetry::traced() {
        return Span::none();
    }
    tracing::info_span!(
        target: "trellis::store",
        "store",
        otel.name = operation,
        otel.kind = "client",
        otel.status_code = Empty,
        trellis.operation = operation,
        trellis.path = path.as_ref(),
        trellis.bytes = Empty,
    )
}

/// Makes one request.
async fn request<T>(
    operation: &'static str,
    path: &Path,
    bytes: impl FnOnce(&T) -> Option<(Direction, u64)>,
    asked: impl Future<Output = Result<T>>,
) -> Result<T> {
    let started = Instant::now();
    let span = span(operation, path);
    let answer = asked.instrument(span.clone()).await;
    metrics::store_request(operation, started);
    match &answer {
        Ok(answer) => {
            if let Some((direction, bytes)) = bytes(answer) {
                metrics::store_io(direction, bytes);
                span.record("trellis.bytes", bytes);
            }
        }
        Err(object_store::Error::NotFound { .. }) => {}
        Err(_) => drop(span.record("otel.status_code", "ERROR")),
    }
    answer
}

#[async_trait::async_trait]
impl ObjectStore for Metered {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let sent = payload.content_length() as u64;
        let put = self.inner.put_opts(location, payload, opts);
        self.request("put", location, |_| Some((Direction::Write, sent)), put).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.request("put_multipart", location, |_| None, self.inner.put_multipart_opts(location, opts)).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let head = options.head;
        let operation = if head { "head" } else { "get" };
        let bytes = |got: &GetResult| (!head).then(|| (Direction::Read, got.range.end - got.range.start));
        let get = self.inner.get_opts(location, options);
        let whole = async move {
            let got = get.await?;
            if head { Ok(got) } else { read_whole(got).await }
        };
        self.request(operation, location, bytes, whole).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let bytes =
            |got: &Vec<Bytes>| Some((Direction::Read, got.iter().map(|bytes| bytes.len() as u64).sum()));
        self.request("get", location, bytes, self.inner.get_ranges(location, ranges)).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let mut asked = Instant::now();
        let deleted = self.inner.delete_stream(locations);
        deleted
            .inspect(move |_| {
                metrics::store_request("delete", asked);
                asked = Instant::now();
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        measured_list(self.inner.list(prefix))
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        measured_list(self.inner.list_with_offset(prefix, offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let root = Path::default();
        let listed = self.inner.list_with_delimiter(prefix);
        self.request("list", prefix.unwrap_or(&root), |_| None, listed).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.request("copy", from, |()| None, self.inner.copy_opts(from, to, options)).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.request("rename", from, |()| None, self.inner.rename_opts(from, to, options)).await
    }
}

/// A listing is one request, however many objects it has. It ends when its last object is taken, or when it is dropped.
fn measured_list(listed: BoxStream<'static, Result<ObjectMeta>>) -> BoxStream<'static, Result<ObjectMeta>> {
    struct Listing(Instant);
    impl Drop for Listing {
        fn drop(&mut self) {
            metrics::store_request("list", self.0);
        }
    }
    let listing = Listing(Instant::now());
    listed.inspect(move |_| _ = &listing).boxed()
}
