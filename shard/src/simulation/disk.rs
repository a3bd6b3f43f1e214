//! The object store of a simulation: one for all shards, in memory.
//!
//! Every operation of a shard's own tasks waits until the scheduler releases it, with one of four outcomes: done; done, but the
//! answer is lost; not done; not done yet, although the shard is told that it failed. Operations on other threads are done at once:
//! those of the Delta kernel, and those that decode data files. These threads cannot wait without stopping the whole runtime.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    ops::Range,
    sync::Arc,
    thread::{self, ThreadId},
};

use bytes::Bytes;
use chrono::DateTime;
use futures::{FutureExt, StreamExt, stream, stream::BoxStream};
use object_store::{
    Attributes, CopyOptions, Error, GetOptions, GetRange, GetResult, GetResultPayload, ListResult,
    MultipartUpload, ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, Result, UploadPart, path::Path,
};
use parking_lot::Mutex;
use tokio::{sync::oneshot, time::Instant};

use super::seed::Seed;
use crate::files::Settle;

/// One in this many reads is flipped, so that a shard reads a file's tail and then a wrong page of it.
const FLIPPED_ONE_IN: usize = 3;

/// One operation.
#[derive(Debug, Clone)]
pub(super) enum Op {
    Put {
        path: Path,
        bytes: Bytes,
        create: bool,
    },
    Get {
        path: Path,
        range: Option<GetRange>,
    },
    Ranges {
        path: Path,
        ranges: Vec<Range<u64>>,
    },
    List {
        prefix: Option<Path>,
    },
    Folders {
        prefix: Option<Path>,
    },
    Delete {
        path: Path,
    },
    /// Makes an object durable that can be seen.
    Settle {
        path: Path,
    },
}

impl Op {
    pub(super) fn writes(&self) -> bool {
        matches!(self, Self::Put { .. } | Self::Delete { .. })
    }

    /// The first byte that it reads of an object.
    fn reads_from(&self) -> Option<u64> {
        match self {
            Self::Get { range: Some(GetRange::Bounded(range)), .. } => Some(range.start),
            Self::Get { range: Some(GetRange::Offset(n) | GetRange::Suffix(n)), .. } => Some(*n),
            Self::Get { range: None, .. } => Some(0),
            Self::Ranges { ranges, .. } => Some(ranges.first().map_or(0, |range| range.start)),
            _ => None,
        }
    }

    fn reads_rows(&self) -> bool {
        match self {
            Self::Get { path, .. } | Self::Ranges { path, .. } => {
                path.as_ref().ends_with(".parquet") && !path.as_ref().contains("_delta_log")
            }
            _ => false,
        }
    }
}

impl std::fmt::Display for Op {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let root = Path::default();
        match self {
            Self::Put { path, create: true, .. } => write!(f, "create {path}"),
            Self::Put { path, create: false, .. } => write!(f, "put {path}"),
            Self::Get { path, .. } => write!(f, "get {path}"),
            Self::Ranges { path, .. } => write!(f, "get ranges of {path}"),
            Self::List { prefix } => write!(f, "list {}", prefix.as_ref().unwrap_or(&root)),
            Self::Folders { prefix } => write!(f, "list folders of {}", prefix.as_ref().unwrap_or(&root)),
            Self::Delete { path } => write!(f, "delete {path}"),
            Self::Settle { path } => write!(f, "settle {path}"),
        }
    }
}

/// The result of an operation.
#[derive(Debug)]
pub(super) enum Answer {
    Done,
    Got { meta: ObjectMeta, range: Range<u64>, bytes: Bytes },
    Ranges(Vec<Bytes>),
    Listed(Vec<ObjectMeta>),
    Folders(ListResult),
}

/// An operation that waits to be released.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) id: u64,
    /// The life of the shard that began it.
    pub(super) life: usize,
    pub(super) op: Op,
    pub(super) since: Instant,
    /// It is half done: its object can be seen and is not durable.
    pub(super) shown: bool,
    reply: oneshot::Sender<Result<Answer>>,
}

impl Waiting {
    pub(super) fn answer(self, answer: Result<Answer>) {
        // The caller may have left meanwhile.
        let _ = self.reply.send(answer);
    }
}

/// An error that says nothing about whether the operation took place.
pub(super) fn lost() -> Error {
    Error::Generic { store: "Disk", source: Box::new(io::Error::from(io::ErrorKind::ConnectionReset)) }
}

#[derive(Debug)]
struct Object {
    bytes: Bytes,
    at_ms: i64,
}

impl Answer {
    /// Flips one bit of what was read; `choice` says which.
    fn flip(&mut self, choice: usize) {
        let parts = match self {
            Self::Got { bytes, .. } => std::slice::from_mut(bytes),
            Self::Ranges(parts) => parts.as_mut_slice(),
            Self::Done | Self::Listed(_) | Self::Folders(_) => return,
        };
        let bits: usize = parts.iter().map(|part| part.len() * 8).sum();
        let mut bit = choice % bits.max(1);
        for part in parts {
            if bit < part.len() * 8 {
                let mut flipped = part.to_vec();
                flipped[bit / 8] ^= 1 << (bit % 8);
                *part = flipped.into();
                return;
            }
            bit -= part.len() * 8;
        }
    }
}

/// How a shard's reads of files go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reads {
    Whole,
    /// Reads of rows on other threads fail.
    Fail,
    /// One bit is wrong in some reads. The number chooses them.
    Flipped(u64),
}

/// The store.
#[derive(Debug)]
pub(super) struct Disk {
    /// The thread that runs the shards' tasks.
    thread: ThreadId,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    now_ms: i64,
    objects: BTreeMap<Path, Object>,
    waiting: Vec<Waiting>,
    arrivals: u64,
    /// How reads go, by the life of a shard; whole if it is not here. A shard begins a new life when it starts.
    reads: BTreeMap<usize, Reads>,
    /// Objects whose names can be seen and are not durable yet.
    unsettled: BTreeSet<Path>,
    /// Lives that have ended: their operations do nothing any more.
    ended: BTreeSet<usize>,
}

impl Disk {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { thread: thread::current().id(), state: Mutex::default() })
    }

    /// The time that writes are stamped with.
    pub(super) fn set_time(&self, now_ms: i64) {
        self.state.lock().now_ms = now_ms;
    }

    /// The store as one life of a shard sees it.
    pub(super) fn port(self: &Arc<Self>, life: usize) -> Port {
        Port { disk: self.clone(), life }
    }

    /// From now on, reads of this life go so.
    pub(super) fn set_reads(&self, life: usize, reads: Reads) {
        self.state.lock().reads.insert(life, reads);
    }

    /// Does an operation of a life, as its reads go.
    pub(super) fn perform_for(&self, life: usize, op: &Op) -> Result<Answer> {
        let reads = self.state.lock().reads.get(&life).copied();
        let mut answer = self.perform(op)?;
        if let Some(Reads::Flipped(choice)) = reads
            && let Some(first) = op.reads_from()
        {
            let choice = Seed::new(choice ^ first).below(usize::MAX);
            if choice.is_multiple_of(FLIPPED_ONE_IN) {
                answer.flip(choice / FLIPPED_ONE_IN);
            }
        }
        Ok(answer)
    }

    /// The waiting operations: id, life, and since when.
    pub(super) fn waiting(&self) -> Vec<(u64, usize, Instant)> {
        self.state.lock().waiting.iter().map(|w| (w.id, w.life, w.since)).collect()
    }

    /// What some lives wait for, in an order that does not depend on which thread came first: by life, then by the
    /// operation as `name` puts it, then by what is written.
    pub(super) fn ordered(&self, lives: &[usize], name: impl Fn(&str) -> String) -> Vec<u64> {
        let state = self.state.lock();
        let mut ordered: Vec<_> = state
            .waiting
            .iter()
            .filter(|w| lives.contains(&w.life))
            .map(|w| {
                let written = match &w.op {
                    Op::Put { bytes, .. } => bytes.clone(),
                    _ => Bytes::new(),
                };
                (w.life, name(&w.op.to_string()), written, w.id)
            })
            .collect();
        ordered.sort();
        ordered.into_iter().map(|w| w.3).collect()
    }

    pub(super) fn take(&self, id: u64) -> Option<Waiting> {
        let mut state = self.state.lock();
        let position = state.waiting.iter().position(|w| w.id == id)?;
        Some(state.waiting.remove(position))
    }

    /// Ends a life, and returns its waiting operations, which are never answered.
    pub(super) fn end(&self, life: usize) -> Vec<Op> {
        let mut state = self.state.lock();
        state.ended.insert(life);
        let (gone, kept) = std::mem::take(&mut state.waiting).into_iter().partition(|w| w.life == life);
        state.waiting = kept;
        let gone: Vec<Waiting> = gone;
        gone.into_iter().map(|w| w.op).collect()
    }

    /// The bytes of an object.
    pub(super) fn read(&self, path: &str) -> Option<Bytes> {
        self.state.lock().objects.get(&Path::from(path)).map(|object| object.bytes.clone())
    }

    pub(super) fn holds(&self, path: &str) -> bool {
        self.state.lock().objects.contains_key(&Path::from(path))
    }

    /// Does the first half of creating an object: others see it. A cut of the power takes it away, unless it has been
    /// settled before.
    pub(super) fn show(&self, op: &Op) -> bool {
        let Op::Put { path, create: true, .. } = op else { return false };
        let shown = self.perform(op).is_ok();
        if shown {
            self.state.lock().unsettled.insert(path.clone());
        }
        shown
    }

    /// Puts a waiting operation back.
    pub(super) fn put_back(&self, waiting: Waiting) {
        self.state.lock().waiting.push(waiting);
    }

    /// Takes away what is not durable, and returns the number of these objects.
    pub(super) fn cut_power(&self) -> usize {
        let mut state = self.state.lock();
        let gone = std::mem::take(&mut state.unsettled);
        for path in &gone {
            state.objects.remove(path);
        }
        gone.len()
    }

    /// Does an operation.
    pub(super) fn perform(&self, op: &Op) -> Result<Answer> {
        let mut state = self.state.lock();
        match op {
            Op::Put { path, bytes, create } => {
                if *create && state.objects.contains_key(path) {
                    return Err(Error::AlreadyExists {
                        path: path.to_string(),
                        source: Box::new(io::Error::from(io::ErrorKind::AlreadyExists)),
                    });
                }
                let at_ms = state.now_ms;
                state.objects.insert(path.clone(), Object { bytes: bytes.clone(), at_ms });
                Ok(Answer::Done)
            }
            Op::Get { path, range } => {
                let object = state.find(path)?;
                let all = object.bytes.len() as u64;
                let range = match range {
                    None => 0..all,
                    Some(range) => range.as_range(all).map_err(|e| Error::Generic {
                        store: "Disk",
                        source: Box::new(io::Error::other(e.to_string())),
                    })?,
                };
                let bytes = object.bytes.slice(range.start as usize..range.end as usize);
                Ok(Answer::Got { meta: meta(path, object), range, bytes })
            }
            Op::Ranges { path, ranges } => {
                let object = state.find(path)?;
                let cut = |r: &Range<u64>| object.bytes.slice(r.start as usize..r.end as usize);
                Ok(Answer::Ranges(ranges.iter().map(cut).collect()))
            }
            Op::List { prefix } => Ok(Answer::Listed(
                state.under(prefix.as_ref()).map(|(path, object)| meta(path, object)).collect(),
            )),
            Op::Folders { prefix } => {
                let root = Path::default();
                let depth = prefix.as_ref().unwrap_or(&root).parts().count();
                let mut folders = BTreeSet::new();
                let mut objects = Vec::new();
                for (path, object) in state.under(prefix.as_ref()) {
                    if path.parts().count() > depth + 1 {
                        folders.insert(path.parts().take(depth + 1).collect::<Path>());
                    } else {
                        objects.push(meta(path, object));
                    }
                }
                Ok(Answer::Folders(ListResult { common_prefixes: folders.into_iter().collect(), objects }))
            }
            Op::Delete { path } => {
                state.objects.remove(path);
                Ok(Answer::Done)
            }
            Op::Settle { path } => {
                state.unsettled.remove(path);
                Ok(Answer::Done)
            }
        }
    }
}

impl State {
    fn find(&self, path: &Path) -> Result<&Object> {
        self.objects.get(path).ok_or_else(|| Error::NotFound {
            path: path.to_string(),
            source: Box::new(io::Error::from(io::ErrorKind::NotFound)),
        })
    }

    fn under<'a>(&'a self, prefix: Option<&'a Path>) -> impl Iterator<Item = (&'a Path, &'a Object)> {
        self.objects.iter().filter(move |(path, _)| {
            prefix
                .is_none_or(|prefix| path.prefix_match(prefix).is_some_and(|mut rest| rest.next().is_some()))
        })
    }
}

fn meta(path: &Path, object: &Object) -> ObjectMeta {
    ObjectMeta {
        location: path.clone(),
        last_modified: DateTime::from_timestamp_millis(object.at_ms).unwrap(),
        size: object.bytes.len() as u64,
        e_tag: None,
        version: None,
    }
}

/// The store as one life of a shard sees it.
#[derive(Debug, Clone)]
pub(super) struct Port {
    disk: Arc<Disk>,
    life: usize,
}

impl Port {
    async fn ask(&self, op: Op) -> Result<Answer> {
        if thread::current().id() != self.disk.thread {
            let fails = {
                let state = self.disk.state.lock();
                let unreadable = state.reads.get(&self.life) == Some(&Reads::Fail);
                state.ended.contains(&self.life) || op.reads_rows() && unreadable
            };
            return if fails { Err(lost()) } else { self.disk.perform_for(self.life, &op) };
        }
        let (reply, answer) = oneshot::channel();
        {
            let mut state = self.disk.state.lock();
            let id = state.arrivals;
            if !state.ended.contains(&self.life) {
                state.arrivals += 1;
                state.waiting.push(Waiting {
                    id,
                    life: self.life,
                    op,
                    since: Instant::now(),
                    shown: false,
                    reply,
                });
            }
        }
        match answer.await {
            Ok(answer) => answer,
            // This life has ended.
            Err(_) => std::future::pending().await,
        }
    }
}

#[async_trait::async_trait]
impl Settle for Port {
    async fn settle(&self, location: &Path) -> Result<()> {
        self.ask(Op::Settle { path: location.clone() }).await.map(|_| ())
    }
}

impl std::fmt::Display for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Port")
    }
}

fn other(answer: &Answer) -> Error {
    Error::Generic { store: "Disk", source: format!("not an answer to this: {answer:?}").into() }
}

#[async_trait::async_trait]
impl ObjectStore for Port {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let create = match opts.mode {
            PutMode::Create => true,
            PutMode::Overwrite => false,
            PutMode::Update(_) => return Err(Error::NotSupported { source: "conditional update".into() }),
        };
        self.ask(Op::Put { path: location.clone(), bytes: payload.into(), create }).await?;
        Ok(PutResult { e_tag: None, version: None })
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        _: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        Ok(Box::new(Upload { port: self.clone(), path: location.clone(), parts: Vec::new() }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        match self.ask(Op::Get { path: location.clone(), range: options.range }).await? {
            Answer::Got { meta, range, bytes } => Ok(GetResult {
                payload: GetResultPayload::Stream(stream::once(async move { Ok(bytes) }).boxed()),
                meta,
                range,
                attributes: Attributes::default(),
            }),
            answer => Err(other(&answer)),
        }
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        match self.ask(Op::Ranges { path: location.clone(), ranges: ranges.to_vec() }).await? {
            Answer::Ranges(bytes) => Ok(bytes),
            answer => Err(other(&answer)),
        }
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let port = self.clone();
        locations
            .then(move |location| {
                let port = port.clone();
                async move {
                    let path = location?;
                    port.ask(Op::Delete { path: path.clone() }).await.map(|_| path)
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (port, prefix) = (self.clone(), prefix.cloned());
        let listed = async move {
            match port.ask(Op::List { prefix }).await {
                Ok(Answer::Listed(found)) => stream::iter(found.into_iter().map(Ok)).left_stream(),
                Ok(answer) => stream::iter([Err(other(&answer))]).right_stream(),
                Err(error) => stream::iter([Err(error)]).right_stream(),
            }
        };
        listed.into_stream().flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        match self.ask(Op::Folders { prefix: prefix.cloned() }).await? {
            Answer::Folders(listed) => Ok(listed),
            answer => Err(other(&answer)),
        }
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(Error::NotSupported { source: "copies: a shard makes none".into() })
    }
}

/// A multipart write, done whole when it is completed.
#[derive(Debug)]
struct Upload {
    port: Port,
    path: Path,
    parts: Vec<Bytes>,
}

#[async_trait::async_trait]
impl MultipartUpload for Upload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.parts.extend(data.iter().cloned());
        Box::pin(std::future::ready(Ok(())))
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let bytes = Bytes::from(self.parts.concat());
        self.port.ask(Op::Put { path: self.path.clone(), bytes, create: false }).await?;
        Ok(PutResult { e_tag: None, version: None })
    }

    async fn abort(&mut self) -> Result<()> {
        Ok(())
    }
}
