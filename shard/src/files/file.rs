//! One Parquet file: how it is written, opened and read.
//!
//! Sizes are chosen for reads of one symbol. A read decodes at least a page, so a page has 4,096 rows (0.2 ms for six columns). A
//! row group has 65,536 rows: that keeps the page index small, and bounds what one read of a column fetches. The positions of rows
//! come from the file's index, and the page index narrows them by time. So there is no row filter.
//!
//! Every byte of a file that a shard wrote is compared with its [`checksum`](super::checksum) before it is decoded.

use std::{
    io::{self, Write},
    ops::Range,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use arrow_array::{
    Array, ArrayRef, BooleanArray, NullArray, RecordBatch, StringArray, cast::AsArray, types::Int64Type,
};
use arrow_schema::{ArrowError, DataType, Field, Schema};
use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::BoxFuture};
use object_store::{ObjectStore, ObjectStoreExt, PutPayload, path::Path};
use parquet::{
    arrow::{
        ArrowWriter, ParquetRecordBatchStreamBuilder, ProjectionMask,
        arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, RowSelection},
        async_reader::{AsyncFileReader, MetadataFetch},
    },
    basic::{Compression, Encoding},
    errors::ParquetError,
    file::{
        metadata::{
            FileMetaData, KeyValue, PageIndexPolicy, ParquetMetaData, ParquetMetaDataBuilder,
            ParquetMetaDataReader, ParquetMetaDataWriter,
        },
        page_index::column_index::ColumnIndexMetaData,
        properties::{EnabledStatistics, WriterProperties},
        writer::TrackedWrite,
    },
    schema::types::ColumnPath,
};
use serde_json::{Map, Value, json};
use tokio::sync::Mutex;
use tracing::Span;
use trellis_proto::{DatasetSpec, Result};

use super::{
    checksum::{PAGES_KEY, Pages, Tail, differ},
    footers::{Footer, Footers, Page},
    index::{Builder, FOOTER_KEY, FOOTER_RUN_ROWS_MIN, FileIndex},
    schema::{KNOWN_AT_NS, RETRACTED, SYMBOL, TS_NS, exact_column, exact_schema, to_lake, wire_field},
    store::Folder,
};
use crate::{
    budget::Budget,
    error::{corrupt, internal, lost_task, parquet_error, store_error},
    metrics,
};

/// Rows of a row group.
pub(crate) const ROW_GROUP_ROWS: usize = 65_536;
/// Rows of a page.
pub(crate) const PAGE_ROWS: usize = 4_096;
/// Most rows of a file; a larger import makes several. 8 Mi rows of six columns are 200-400 MB in memory, 60-150 MB on disk.
pub(crate) const FILE_ROWS_MAX: usize = 8 << 20;
/// Rows decoded at once when a whole file is read.
const BATCH_ROWS: usize = 65_536;
/// Bytes that the read of the footer fetches: enough in one read for files of up to a few hundred row groups.
const FOOTER_BYTES: usize = 64 << 10;

/// Bytes of a row beside its fields: the symbol with its offset, both times, and a share of the bit maps.
const ROW_KEY_BYTES: usize = 32;
/// How many times as large as the file its rows are, decoded, if their types do not say more.
const DECODED_TIMES: u64 = 4;
/// Bytes of the reading of a file, however few rows it has: its footer, and a record batch with its buffers.
const FILE_READ_BYTES: u64 = 32 << 10;

/// How the log names a data file: its path within the dataset's folder, and its size in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileRef {
    pub(crate) path: String,
    pub(crate) size: u64,
}

/// A data file of a table.
#[derive(Debug)]
pub(crate) struct DataFile {
    pub(crate) file: FileRef,
    pub(crate) index: Arc<FileIndex>,
    path: Path,
    /// Its name in error messages.
    pub(crate) name: String,
    store: Arc<dyn ObjectStore>,
    /// The memory for reading it.
    pub(crate) budget: Budget,
    footers: Arc<Footers<Footer>>,
    /// Its number there.
    number: u64,
    /// Held while its footer is loaded: all who need it wait for one reading.
    loading: Mutex<()>,
    longest: OnceLock<usize>,
}

/// Estimated bytes of a footer in memory. It is read with the first rows.
const FOOTER_KEPT_BYTES: usize = 8_192;

/// A file written, but not yet part of the table.
#[derive(Debug)]
pub(crate) struct WrittenFile {
    pub(crate) file: FileRef,
    pub(crate) index: Arc<FileIndex>,
    pub(crate) stats: Value,
}

/// Writes exact rows, sorted by (symbol, ts, known_at), as a new file. `retractable`: the table has the column `retracted`. The file
/// is on the disk when this returns, and readers do not see it until a commit names it.
///
/// Not cancel safe: a dropped call may leave a file behind, which the upkeep removes later.
pub(crate) async fn write_file(
    folder: &Folder,
    spec: &Arc<DatasetSpec>,
    rows: RecordBatch,
    retractable: bool,
) -> Result<WrittenFile> {
    let spec = spec.clone();
    let encode = move || -> Result<(Encoded, FileIndex, Value)> {
        let mut builder = Builder::default();
        builder.push(
            rows.column(0).as_string(),
            rows.column(1).as_primitive(),
            rows.column(2).as_primitive(),
            Some(rows.column(3).as_boolean()),
        )?;
        let index = builder.finish();
        debug_assert!(index.sorted, "rows are sorted before they are written");
        debug_assert!(retractable || !index.retracts(), "the column is added with the first retraction");
        let lake = to_lake(&spec, &rows, retractable)?;
        let stats = stats(&lake, &index);
        Ok((encode(&lake, &index)?, index, stats))
    };
    let (encoded, index, stats) =
        tokio::task::spawn_blocking(encode).await.map_err(|e| lost_task("writing Parquet", e))??;
    let path = encoded.tail.file_name();
    let size = encoded.bytes.len() as u64;
    folder
        .files
        .put(&Path::from(path.as_str()), PutPayload::from(encoded.bytes))
        .await
        .map_err(|e| store_error("writing", &folder.file_name(&path), &e))?;
    Ok(WrittenFile { file: FileRef { path, size }, index: Arc::new(index), stats })
}

/// A file in memory.
struct Encoded {
    bytes: Vec<u8>,
    tail: Tail,
}

fn encode(lake: &RecordBatch, index: &FileIndex) -> Result<Encoded> {
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_data_page_row_count_limit(PAGE_ROWS)
        .set_write_batch_size(PAGE_ROWS / 4)
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_column_index_truncate_length(None)
        .set_statistics_truncate_length(None)
        .set_dictionary_enabled(false);
    for field in lake.schema().fields() {
        let column = ColumnPath::from(field.name().as_str());
        match field.data_type() {
            DataType::Utf8 => properties = properties.set_column_dictionary_enabled(column, true),
            DataType::Int64 | DataType::Int32 | DataType::Timestamp(..) => {
                properties = properties.set_column_encoding(column, Encoding::DELTA_BINARY_PACKED);
            }
            _ => {}
        }
    }
    if index.rows as usize >= index.runs.len() * FOOTER_RUN_ROWS_MIN {
        let text = serde_json::to_string(index).map_err(|e| internal("writing a file's index", e))?;
        properties =
            properties.set_key_value_metadata(Some(vec![KeyValue::new(FOOTER_KEY.to_owned(), text)]));
    }
    let failed = |e: ParquetError| internal("writing Parquet", e);
    let mut out = Vec::with_capacity(lake.get_array_memory_size() / 2 + FOOTER_BYTES);
    let mut writer =
        ArrowWriter::try_new(&mut out, lake.schema(), Some(properties.build())).map_err(failed)?;
    writer.write(lake).map_err(failed)?;
    let metadata = writer.close().map_err(failed)?;
    with_checksums(out, &metadata)
}

/// Puts the checksums of the pages into the footer. The pages' positions are known only when the file is closed, so its tail is
/// written once more.
fn with_checksums(mut bytes: Vec<u8>, metadata: &ParquetMetaData) -> Result<Encoded> {
    let failed = |e: ParquetError| internal("writing a Parquet file's checksums", e);
    // The page index follows the last page.
    let chunks = metadata.row_groups().iter().flat_map(|group| group.columns());
    let indexes = chunks.flat_map(|chunk| [chunk.column_index_offset(), chunk.offset_index_offset()]);
    let end = indexes.flatten().min().ok_or_else(|| internal("writing Parquet", "it has no page index"))?;
    bytes.truncate(end.unsigned_abs() as usize);
    let pages = Pages::of(metadata, &bytes).map_err(|e| internal("writing a Parquet file's checksums", e))?;
    let file = metadata.file_metadata();
    let mut pairs = file.key_value_metadata().cloned().unwrap_or_default();
    pairs.push(KeyValue::new(PAGES_KEY.to_owned(), pages.text()));
    let file = FileMetaData::new(
        file.version(),
        file.num_rows(),
        file.created_by().map(str::to_owned),
        Some(pairs),
        file.schema_descr_ptr(),
        file.column_orders().cloned(),
    );
    let metadata = ParquetMetaDataBuilder::new(file)
        .set_row_groups(metadata.row_groups().to_vec())
        .set_column_index(metadata.column_index().cloned())
        .set_offset_index(metadata.offset_index().cloned())
        .build();
    let mut tail = After { skip: bytes.len(), written: Vec::with_capacity(FOOTER_BYTES) };
    let mut tracked = TrackedWrite::new(&mut tail);
    tracked.write_all(&bytes).map_err(|e| failed(e.into()))?;
    ParquetMetaDataWriter::new_with_tracked(tracked, &metadata).finish().map_err(failed)?;
    bytes.extend_from_slice(&tail.written);
    Ok(Encoded { bytes, tail: Tail::of(&tail.written) })
}

/// Keeps what is written after the first `skip` bytes: the library counts positions by what it has written.
struct After {
    skip: usize,
    written: Vec<u8>,
}

impl Write for After {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let skipped = self.skip.min(bytes.len());
        self.skip -= skipped;
        self.written.extend_from_slice(&bytes[skipped..]);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Statistics by which other tools skip files. This shard uses the index.
fn stats(lake: &RecordBatch, index: &FileIndex) -> Value {
    let mut nulls = Map::new();
    for (field, column) in lake.schema().fields().iter().zip(lake.columns()) {
        nulls.insert(field.name().clone(), json!(column.null_count()));
    }
    let mut stats = stats_of(index);
    stats["nullCount"] = json!(nulls);
    stats
}

/// The statistics that the index has.
pub(crate) fn stats_of(index: &FileIndex) -> Value {
    let (mut min, mut max) = (Map::new(), Map::new());
    let mut bounds = |name: &str, least: Value, greatest: Value| {
        min.insert(name.to_owned(), least);
        max.insert(name.to_owned(), greatest);
    };
    let time = |ns: i64| {
        let at = chrono::DateTime::from_timestamp_micros(ns.div_euclid(1_000));
        at.map_or(Value::Null, |t| json!(t.to_rfc3339_opts(chrono::SecondsFormat::Micros, true)))
    };
    if let (Some(first), Some(last)) = (index.runs.first(), index.runs.last()) {
        bounds(SYMBOL, json!(first.symbol.as_str()), json!(last.symbol.as_str()));
        bounds("ts", time(index.first_ts), time(index.last_ts));
        bounds(TS_NS, json!(index.first_ts), json!(index.last_ts));
        bounds("known_at", time(index.known_min), time(index.known_max));
        bounds(KNOWN_AT_NS, json!(index.known_min), json!(index.known_max));
    }
    json!({"numRecords": index.rows, "minValues": min, "maxValues": max})
}

/// What one scan has read.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Files, each as often as it was read.
    pub(crate) files: AtomicU64,
    /// Row groups, read at least in part.
    pub(crate) row_groups: AtomicU64,
    /// Bytes from the store, without those of footers.
    pub(crate) bytes: AtomicU64,
}

#[derive(Clone)]
struct FileReader {
    store: Arc<dyn ObjectStore>,
    path: Path,
    size: u64,
    tally: Arc<Tally>,
    checksums: Option<Arc<Pages>>,
}

fn external(error: object_store::Error) -> ParquetError {
    ParquetError::External(Box::new(error))
}

impl AsyncFileReader for FileReader {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes, ParquetError>> {
        async move {
            let mut one = self.get_byte_ranges(vec![range]).await?;
            one.pop().ok_or_else(|| ParquetError::General("the store gave no bytes".to_owned()))
        }
        .boxed()
    }

    fn get_byte_ranges(
        &mut self,
        ranges: Vec<Range<u64>>,
    ) -> BoxFuture<'_, Result<Vec<Bytes>, ParquetError>> {
        async move {
            let Some(checksums) = &self.checksums else { return self.read(&ranges).await };
            let whole = ranges.iter().map(|range| checksums.around(range)).collect::<Result<Vec<_>, _>>();
            let whole = whole.map_err(ParquetError::General)?;
            let read = self.read(&whole).await?;
            let parts = ranges.iter().zip(&whole).zip(read).map(|((range, whole), bytes)| {
                checksums.check(whole, &bytes).map_err(ParquetError::General)?;
                let start = (range.start - whole.start) as usize;
                Ok(bytes.slice(start..start + (range.end - range.start) as usize))
            });
            parts.collect()
        }
        .boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        _: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, Result<Arc<ParquetMetaData>, ParquetError>> {
        async move {
            let size = self.size;
            let reader = ParquetMetaDataReader::new()
                .with_page_index_policy(PageIndexPolicy::Optional)
                .with_prefetch_hint(Some(FOOTER_BYTES.min(size as usize)));
            Ok(Arc::new(reader.load_and_finish(Fetcher(self), size).await?))
        }
        .boxed()
    }
}

impl FileReader {
    async fn read(&self, ranges: &[Range<u64>]) -> Result<Vec<Bytes>, ParquetError> {
        self.tally.bytes.fetch_add(ranges.iter().map(|range| range.end - range.start).sum(), Relaxed);
        self.store.get_ranges(&self.path, ranges).await.map_err(external)
    }

    /// The footer and the page index of a file that a shard wrote, checked by the file's name.
    async fn checked_metadata(&self, tail: Tail) -> Result<ParquetMetaData, ParquetError> {
        let general = |why: String| ParquetError::General(why);
        let start = self.size.checked_sub(tail.len).ok_or_else(|| general("it is cut".to_owned()))?;
        let bytes = self.store.get_range(&self.path, start..self.size).await.map_err(external)?;
        if !tail.is(&bytes) {
            return Err(general(differ(start, self.size)));
        }
        let reader = ParquetMetaDataReader::new().with_page_index_policy(PageIndexPolicy::Optional);
        reader.load_and_finish(InMemory { start, bytes }, self.size).await
    }
}

struct Fetcher<'a>(&'a mut FileReader);

impl MetadataFetch for Fetcher<'_> {
    fn fetch(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes, ParquetError>> {
        self.0.get_bytes(range)
    }
}

/// The bytes of a file from `start` on.
struct InMemory {
    start: u64,
    bytes: Bytes,
}

impl MetadataFetch for InMemory {
    fn fetch(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes, ParquetError>> {
        let end = self.start + self.bytes.len() as u64;
        let bytes = if range.start < self.start || range.end > end || range.is_empty() {
            Err(ParquetError::General(format!("its footer names bytes {} to {}", range.start, range.end)))
        } else {
            Ok(self.bytes.slice((range.start - self.start) as usize..(range.end - self.start) as usize))
        };
        std::future::ready(bytes).boxed()
    }
}

/// What a check of a whole file found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Checked {
    /// Every byte is as it was written.
    Whole,
    /// Another tool or an earlier release wrote the file, and it has no checksums.
    NoChecksums,
}

/// Compares every byte of a file with its checksum, in reads of at most `piece` bytes (or one page). Calls `pause` before each read.
///
/// # Errors
/// [`trellis_proto::Code::DataCorrupt`] naming the file and its first bytes that differ; or the store's error.
pub(crate) async fn check_file<F: Future<Output = ()>>(
    folder: &Folder,
    file: &FileRef,
    piece: u64,
    pause: impl Fn() -> F,
) -> Result<Checked> {
    let name = folder.file_name(&file.path);
    let failed = |e: ParquetError| parquet_error(&name, &e);
    let (store, path) = (folder.files.clone(), Path::from(file.path.as_str()));
    let mut reader = FileReader { store, path, size: file.size, tally: Arc::default(), checksums: None };
    pause().await;
    let Some(tail) = Tail::by_name(&file.path) else {
        // At least the file must be there, with a footer.
        reader.get_metadata(None).await.map_err(failed)?;
        return Ok(Checked::NoChecksums);
    };
    let metadata = reader.checked_metadata(tail).await.map_err(failed)?;
    let pages = pages_of(&metadata, file.size - tail.len).map_err(failed)?;
    let pieces = pages.pieces(piece);
    reader.checksums = Some(Arc::new(pages));
    for piece in pieces {
        pause().await;
        reader.get_bytes(piece).await.map_err(failed)?;
    }
    Ok(Checked::Whole)
}

/// The checksums of the pages, from the footer; `len`: the bytes before the tail.
fn pages_of(metadata: &ParquetMetaData, len: u64) -> Result<Pages, ParquetError> {
    let pairs = metadata.file_metadata().key_value_metadata();
    let text = pairs.and_then(|pairs| pairs.iter().find(|pair| pair.key == PAGES_KEY));
    let text = text.and_then(|pair| pair.value.as_deref());
    Pages::parse(metadata, text, len).map_err(ParquetError::General)
}

impl DataFile {
    /// About how many bytes it takes in memory.
    pub(crate) fn bytes(&self) -> usize {
        let names = self.file.path.len() + self.path.as_ref().len() + self.name.len();
        FOOTER_KEPT_BYTES + names + self.index.bytes()
    }

    /// A file whose index is known.
    pub(crate) fn new(folder: &Folder, file: FileRef, index: Arc<FileIndex>) -> Self {
        Self {
            path: Path::from(file.path.as_str()),
            name: folder.file_name(&file.path),
            store: folder.files.clone(),
            budget: folder.budget.clone(),
            number: folder.footers.file(),
            footers: folder.footers.clone(),
            loading: Mutex::default(),
            file,
            index,
            longest: OnceLock::new(),
        }
    }

    /// Most rows of one symbol; more if the file is not sorted.
    pub(crate) fn longest(&self) -> usize {
        let runs = || self.index.runs.iter().map(|run| (run.end - run.start) as usize).max().unwrap_or(0);
        *self.longest.get_or_init(|| if self.index.sorted { runs() } else { self.index.rows as usize })
    }

    /// Opens a file that another process wrote, and indexes it: from its footer, or by reading its key columns.
    ///
    /// # Errors
    /// [`trellis_proto::Code::DataCorrupt`] naming the file.
    pub(crate) async fn open(folder: &Folder, file: FileRef) -> Result<Self> {
        let mut opened = Self::new(folder, file, Arc::default());
        let footer = opened.footer().await?;
        let stored = footer
            .metadata
            .metadata()
            .file_metadata()
            .key_value_metadata()
            .and_then(|pairs| pairs.iter().find(|pair| pair.key == FOOTER_KEY))
            .and_then(|pair| pair.value.as_deref());
        let index = match stored {
            Some(text) => serde_json::from_str(text).map_err(|e| corrupt(&opened.name, e))?,
            None => opened.build_index().await?,
        };
        opened.index = Arc::new(index);
        Ok(opened)
    }

    async fn build_index(&self) -> Result<FileIndex> {
        let mut columns = [SYMBOL, TS_NS, KNOWN_AT_NS].map(str::to_owned).to_vec();
        columns.extend(self.may_retract().await?.then(|| RETRACTED.to_owned()));
        let rows = self.footer().await?.metadata.metadata().file_metadata().num_rows().unsigned_abs();
        let _share = self.budget.take(rows.saturating_mul(ROW_KEY_BYTES as u64)).await;
        let batches = self.read(&columns, None).await?;
        let name = self.name.clone();
        let build = move || -> Result<FileIndex> {
            let mut builder = Builder::default();
            for batch in &batches {
                let symbols = text_column(&name, batch.column(0))?;
                let (Some(ts), Some(known_at)) = (
                    batch.column(1).as_primitive_opt::<Int64Type>(),
                    batch.column(2).as_primitive_opt::<Int64Type>(),
                ) else {
                    return Err(corrupt(&name, "ts_ns and known_at_ns are not int64"));
                };
                if symbols.null_count() + ts.null_count() + known_at.null_count() > 0 {
                    return Err(corrupt(&name, "symbol, ts_ns or known_at_ns has nulls"));
                }
                let retracted =
                    batch.columns().get(3).map(|column| retractions(&name, column)).transpose()?;
                builder.push(&symbols, ts, known_at, retracted.as_ref()).map_err(|e| corrupt(&name, e))?;
            }
            Ok(builder.finish())
        };
        tokio::task::spawn_blocking(build).await.map_err(|e| lost_task("indexing a file", e))?
    }

    /// Whether the file may have retractions: it has the column `retracted`, and its statistics do not exclude them.
    async fn may_retract(&self) -> Result<bool> {
        use parquet::file::statistics::Statistics;
        let footer = self.footer().await?;
        let metadata = &footer.metadata;
        let column = metadata.schema().column_with_name(RETRACTED);
        if column.is_none_or(|(_, field)| *field.data_type() != DataType::Boolean) {
            return Ok(false);
        }
        let columns = metadata.metadata().file_metadata().schema_descr();
        let Some(column) = columns.columns().iter().position(|c| c.path().string() == RETRACTED) else {
            return Ok(false);
        };
        let none = |statistics: Option<&Statistics>| match statistics {
            Some(Statistics::Boolean(bounds)) => bounds.max_opt() == Some(&false),
            _ => false,
        };
        Ok(!metadata.metadata().row_groups().iter().all(|group| none(group.column(column).statistics())))
    }

    /// Those of the rows `[start, end)` of a run that may have event times in `[from, to)`; exact to the page. Wider if the file has
    /// no page index or is not sorted.
    pub(crate) async fn narrow(&self, start: u32, end: u32, from: i64, to: i64) -> Result<Range<u32>> {
        if !self.index.sorted {
            return Ok(start..end);
        }
        let footer = self.footer().await?;
        let pages = &footer.pages;
        let first = pages.partition_point(|page| page.end <= start);
        let after = pages.partition_point(|page| page.start < end);
        let hit = |page: &&Page| page.last_ts >= from && page.first_ts < to;
        // A page may have rows of several symbols. Its bounds are then wider than those of the run, never narrower.
        let mut hits = pages[first..after].iter().filter(hit);
        let Some(least) = hits.next() else {
            return Ok(if pages.is_empty() { start..end } else { start..start });
        };
        let last = hits.next_back().unwrap_or(least);
        Ok(least.start.max(start)..last.end.min(end))
    }

    /// Reads `columns`, in this order, of the given row ranges, which are ascending and disjoint; without ranges, of every row. By
    /// Delta's rules a field that the file lacks is null: it was added to the table later.
    ///
    /// I/O and decoding run on a blocking thread, because decoding keeps a core busy for milliseconds.
    pub(crate) async fn read(
        &self,
        columns: &[String],
        ranges: Option<Vec<Range<usize>>>,
    ) -> Result<Vec<RecordBatch>> {
        self.read_for(columns, ranges, &Arc::default()).await
    }

    /// Like [`Self::read`], but adds to the `tally` of a scan.
    pub(crate) async fn read_for(
        &self,
        columns: &[String],
        ranges: Option<Vec<Range<usize>>>,
        tally: &Arc<Tally>,
    ) -> Result<Vec<RecordBatch>> {
        let footer = self.footer().await?;
        let metadata = footer.metadata.clone();
        let reader = self.reader(tally, footer.checksums.clone());
        let mut positions = Vec::with_capacity(columns.len());
        let mut lacking = Vec::new();
        for (i, column) in columns.iter().enumerate() {
            match metadata.schema().index_of(column) {
                Ok(position) => positions.push(position),
                Err(_) if [SYMBOL, TS_NS, KNOWN_AT_NS].contains(&column.as_str()) => {
                    return Err(corrupt(&self.name, format!("it has no column {column}")));
                }
                Err(_) => lacking.push((i, Field::new(column, DataType::Null, true))),
            }
        }
        let total = metadata.metadata().file_metadata().num_rows().unsigned_abs() as usize;
        if ranges.as_ref().and_then(|r| r.last()).is_some_and(|last| last.end > total) {
            return Err(corrupt(&self.name, format!("it has {total} rows, fewer than its index says")));
        }
        let groups = row_groups(metadata.metadata(), ranges.as_deref());
        tally.files.fetch_add(1, Relaxed);
        tally.row_groups.fetch_add(groups, Relaxed);
        metrics::file_read(groups);
        let (handle, span) = (tokio::runtime::Handle::current(), Span::current());
        let decode = move || -> Result<Vec<RecordBatch>, ParquetError> {
            let mask = ProjectionMask::roots(metadata.parquet_schema(), positions.iter().copied());
            let mut builder =
                ParquetRecordBatchStreamBuilder::new_with_metadata(reader, metadata).with_projection(mask);
            builder = match ranges {
                Some(ranges) => {
                    let rows: usize = ranges.iter().map(ExactSizeIterator::len).sum();
                    builder
                        .with_row_selection(RowSelection::from_consecutive_ranges(ranges.into_iter(), total))
                        .with_batch_size(rows.clamp(1, BATCH_ROWS))
                }
                None => builder.with_batch_size(BATCH_ROWS.min(total.max(1))),
            };
            // Decoded columns are in the file's order. Restore the caller's order.
            let mut in_file = positions.clone();
            in_file.sort_unstable();
            in_file.dedup();
            let order: Vec<usize> =
                positions.iter().map(|p| in_file.binary_search(p).unwrap_or_default()).collect();
            let mut stream = builder.build()?;
            let mut batches = Vec::new();
            while let Some(batch) = handle.block_on(stream.next()) {
                batches.push(with_nulls(&batch?.project(&order)?, &lacking)?);
            }
            Ok(batches)
        };
        tokio::task::spawn_blocking(move || span.in_scope(decode))
            .await
            .map_err(|e| lost_task("decoding a file", e))?
            .map_err(|e| parquet_error(&self.name, &e))
    }

    /// All rows, exact, in the file's order.
    pub(crate) async fn read_exact(&self, spec: &DatasetSpec) -> Result<Vec<RecordBatch>> {
        let retracts = self.index.retracts();
        let mut columns = vec![SYMBOL.to_owned(), TS_NS.to_owned(), KNOWN_AT_NS.to_owned()];
        columns.extend(retracts.then(|| RETRACTED.to_owned()));
        columns.extend(spec.fields.iter().map(exact_column));
        let schema = exact_schema(spec);
        let exact = |batch: RecordBatch| -> Result<RecordBatch> {
            let symbols = text_column(&self.name, batch.column(0))?;
            let mut exact: Vec<ArrayRef> =
                vec![Arc::new(symbols), batch.column(1).clone(), batch.column(2).clone()];
            exact.push(Arc::new(match retracts {
                true => retractions(&self.name, batch.column(3))?,
                false => BooleanArray::from(vec![false; batch.num_rows()]),
            }));
            let fields = &batch.columns()[3 + usize::from(retracts)..];
            for (field, column) in spec.fields.iter().zip(fields) {
                exact.push(wire_field(field, column)?);
            }
            RecordBatch::try_new(schema.clone(), exact).map_err(|e| corrupt(&self.name, e))
        };
        self.read(&columns, None).await?.into_iter().map(exact).collect()
    }

    fn reader(&self, tally: &Arc<Tally>, checksums: Option<Arc<Pages>>) -> FileReader {
        let (store, path, tally) = (self.store.clone(), self.path.clone(), tally.clone());
        FileReader { store, path, size: self.file.size, tally, checksums }
    }

    async fn footer(&self) -> Result<Arc<Footer>> {
        if let Some(footer) = self.footers.get(self.number) {
            return Ok(footer);
        }
        let _one = self.loading.lock().await;
        if let Some(footer) = self.footers.get(self.number) {
            return Ok(footer);
        }
        let footer = Arc::new(self.load_footer().await.map_err(|e| parquet_error(&self.name, &e))?);
        let bytes = footer.metadata.metadata().memory_size() + footer.pages.len() * size_of::<Page>();
        self.footers.put(self.number, footer.clone(), bytes);
        Ok(footer)
    }

    /// An estimate of the bytes of its rows, decoded: as wide as their types say, or as the file's encodings usually spare.
    pub(crate) fn decoded_bytes(&self, spec: &DatasetSpec) -> u64 {
        let fields: usize = spec.fields.iter().map(|field| field.data_type.width()).sum();
        let rows = self.index.rows.saturating_mul((ROW_KEY_BYTES + fields) as u64);
        FILE_READ_BYTES + rows.max(self.file.size.saturating_mul(DECODED_TIMES))
    }

    async fn load_footer(&self) -> Result<Footer, ParquetError> {
        let mut reader = self.reader(&Arc::default(), None);
        let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Optional);
        let (metadata, checksums) = match Tail::by_name(&self.file.path) {
            Some(tail) => {
                let metadata = reader.checked_metadata(tail).await?;
                let checksums = pages_of(&metadata, self.file.size - tail.len)?;
                (ArrowReaderMetadata::try_new(Arc::new(metadata), options)?, Some(Arc::new(checksums)))
            }
            None => (ArrowReaderMetadata::load_async(&mut reader, options).await?, None),
        };
        let pages = pages(metadata.metadata());
        Ok(Footer { metadata, pages, checksums })
    }
}

impl Drop for DataFile {
    fn drop(&mut self) {
        self.footers.forget(self.number);
    }
}

/// How many row groups have rows of `ranges`, which are ascending and disjoint; without ranges, all.
fn row_groups(metadata: &ParquetMetaData, ranges: Option<&[Range<usize>]>) -> u64 {
    let Some(ranges) = ranges else { return metadata.num_row_groups() as u64 };
    let mut end = 0;
    let groups = metadata.row_groups().iter().filter(|group| {
        let start = end;
        end += group.num_rows().unsigned_abs() as usize;
        let next = ranges.partition_point(|range| range.end <= start);
        ranges.get(next).is_some_and(|range| range.start < end)
    });
    groups.count() as u64
}

/// Puts in columns of nulls at their positions, which ascend.
fn with_nulls(rows: &RecordBatch, lacking: &[(usize, Field)]) -> Result<RecordBatch, ArrowError> {
    if lacking.is_empty() {
        return Ok(rows.clone());
    }
    let (mut fields, mut columns) = (rows.schema().fields().to_vec(), rows.columns().to_vec());
    for (at, field) in lacking {
        fields.insert(*at, Arc::new(field.clone()));
        columns.insert(*at, Arc::new(NullArray::new(rows.num_rows())));
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}

/// A text column. Other tools write large texts, views and dictionaries as well.
fn text_column(name: &str, column: &ArrayRef) -> Result<StringArray> {
    let text = arrow_cast::cast(column, &DataType::Utf8).map_err(|e| corrupt(name, e))?;
    Ok(text.as_string::<i32>().clone())
}

/// The column `retracted`; a row with a null is no retraction.
pub(crate) fn retractions(name: &str, column: &ArrayRef) -> Result<BooleanArray> {
    let retracted = column
        .as_boolean_opt()
        .ok_or_else(|| corrupt(name, format!("{RETRACTED} is {}", column.data_type())))?;
    Ok(match retracted.nulls() {
        Some(told) => BooleanArray::new(retracted.values() & told.inner(), None),
        None => retracted.clone(),
    })
}

/// The pages of `ts_ns`; empty if the file has no page index.
fn pages(metadata: &ParquetMetaData) -> Vec<Page> {
    let columns = metadata.file_metadata().schema_descr();
    let Some(column) = columns.columns().iter().position(|c| c.path().string() == TS_NS) else {
        return Vec::new();
    };
    let (Some(bounds), Some(offsets)) = (metadata.column_index(), metadata.offset_index()) else {
        return Vec::new();
    };
    let mut pages = Vec::new();
    let mut base = 0_u32;
    for (group, row_group) in metadata.row_groups().iter().enumerate() {
        let rows = row_group.num_rows().unsigned_abs() as u32;
        let (Some(ColumnIndexMetaData::INT64(bounds)), Some(offsets)) = (
            bounds.get(group).and_then(|columns| columns.get(column)),
            offsets.get(group).and_then(|columns| columns.get(column)),
        ) else {
            return Vec::new();
        };
        let locations = offsets.page_locations();
        for (i, location) in locations.iter().enumerate() {
            let end = locations.get(i + 1).map_or(rows, |next| next.first_row_index as u32);
            let (Some(&first_ts), Some(&last_ts)) = (bounds.min_value(i), bounds.max_value(i)) else {
                return Vec::new();
            };
            pages.push(Page {
                start: base + location.first_row_index as u32,
                end: base + end,
                first_ts,
                last_ts,
            });
        }
        base += rows;
    }
    pages
}
