//! The rows of one chunk: every known row of some columns, immutable, in one allocation of its own.
//!
//! A shard sends one message for many chunks of many series. A slice of the message would keep all of it alive until the last reader of
//! any of its chunks is gone. So on arrival the head copies each chunk, all its columns, into one buffer of exactly their size, and drops
//! the message. To let chunks share the message, counted once, was rejected: an eviction would free nothing while another chunk of the
//! message stays, so that a full cache could not make room. The allocation counts itself in [`Memory`] until its last holder is gone;
//! every [`Buffer`] that is handed out shares it.

use std::{collections::HashMap, ops::Range, sync::Arc};

use arrow_array::{Array, RecordBatch, cast::AsArray, types::TimestampNanosecondType};
use arrow_buffer::{BooleanBuffer, BooleanBufferBuilder, Buffer, MutableBuffer, NullBuffer, ScalarBuffer};
use arrow_schema::SchemaRef;
use bytes::Bytes;
use trellis_proto::{Code, DatasetSpec, Error, FieldType, Result, Side, fetch::ChunkRun};

use super::claims::{ColumnSet, Payload};
use crate::{
    answer::{Column, KnownAt, Source, Values},
    limits::Memory,
};

/// Buffers inside an allocation start at multiples of this.
const ALIGN: usize = 64;
/// The same inside a small allocation, of which padding would be a large part. Arrow itself asks for 8.
const ALIGN_SMALL: usize = 8;
/// Allocations of fewer bytes are small.
const SMALL_BYTES: usize = 4 << 10;

/// Bytes that a chunk takes besides its buffers: the struct, reference counts, the rounding of the allocator.
const CHUNK_BYTES: u64 = 320;
/// Bytes that each column of a chunk takes besides its buffers.
const COLUMN_BYTES: u64 = 80;

/// Bits of a [`ColumnSet`].
const BITS: usize = u128::BITS as usize;

/// The fields of a dataset that each bit of a [`ColumnSet`] stands for. It is one field, unless the dataset has more than 128: then it is
/// as many adjacent fields as needed, which are fetched and kept together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ColumnLayout {
    fields: usize,
    per_bit: usize,
}

impl ColumnLayout {
    pub(crate) fn of(fields: usize) -> Self {
        Self { fields, per_bit: fields.div_ceil(BITS).max(1) }
    }

    /// The set of columns for the fields at these positions.
    pub(crate) fn columns(&self, fields: &[usize]) -> ColumnSet {
        ColumnSet(fields.iter().fold(0, |set, field| set | 1 << (field / self.per_bit)))
    }

    /// The positions of the fields in these columns, ascending.
    pub(crate) fn fields(&self, columns: ColumnSet) -> Vec<usize> {
        (0..self.fields).filter(|field| columns.0 >> (field / self.per_bit) & 1 == 1).collect()
    }
}

/// One field that a chunk holds.
#[derive(Debug, Clone)]
struct Field {
    /// Its position in the dataset's spec.
    position: u16,
    data_type: FieldType,
    column: Column,
}

/// The rows of one chunk.
#[derive(Debug)]
pub(crate) struct Chunk {
    memory: Arc<Memory>,
    columns: ColumnSet,
    version: u64,
    known_through: i64,
    rows: u32,
    /// Whether some event time occurs more than once, or some row is a retraction.
    corrected: bool,
    /// Which rows are retractions; `None`: none is. Boxed, because it is rare and chunks are many.
    retracted: Option<Box<BooleanBuffer>>,
    ts: ScalarBuffer<i64>,
    known_at: KnownAt,
    /// Ascending by position.
    fields: Box<[Field]>,
    bytes: u64,
}

/// The description of a chunk beside its rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stamp {
    pub(crate) columns: ColumnSet,
    pub(crate) version: u64,
    pub(crate) known_through: i64,
}

impl Chunk {
    /// Its bytes in [`Memory`]: 0 if it has no rows (all empty chunks of one run share one allocation).
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
    /// The field at this position of the dataset's spec, if the chunk has it.
    pub(crate) fn field(&self, position: usize) -> Option<&Column> {
        let found = self.fields.binary_search_by_key(&position, |field| usize::from(field.position));
        found.ok().map(|i| &self.fields[i].column)
    }

    /// A chunk without rows.
    pub(crate) fn empty(memory: &Arc<Memory>, stamp: Stamp) -> Arc<Self> {
        Arc::new(Self {
            memory: Arc::clone(memory),
            columns: stamp.columns,
            version: stamp.version,
            known_through: stamp.known_through,
            rows: 0,
            corrected: false,
            retracted: None,
            ts: ScalarBuffer::from(Vec::new()),
            known_at: KnownAt::Constant(i64::MIN),
            fields: Box::default(),
            bytes: 0,
        })
    }

    /// The same chunk with the rows of a commit in their places. `rows` are those of this symbol and this chunk.
    ///
    /// # Errors
    /// [`Code::DataCorrupt`] if the rows do not have the types of their schema.
    pub(crate) fn patched(
        self: &Arc<Self>,
        rows: &ChangeRows,
        layout: ColumnLayout,
        stamp: Stamp,
        spec: &DatasetSpec,
    ) -> Result<Arc<Self>> {
        let fields = fields_of(layout, self.columns, spec);
        let theirs = Rows::of_change(rows, &fields)?;
        if self.rows == 0 {
            return Ok(pack(&self.memory, stamp, &fields, &[theirs], &[(0, 0..rows.batch.num_rows())]));
        }
        let mine = Rows::of_chunk(self, &fields);
        let order = interleave(&mine, &theirs);
        Ok(pack(&self.memory, stamp, &fields, &[mine, theirs], &order))
    }

    /// A chunk that has only the rows of a commit.
    ///
    /// # Errors
    /// Those of [`Self::patched`].
    pub(crate) fn planted(
        memory: &Arc<Memory>,
        rows: &ChangeRows,
        layout: ColumnLayout,
        stamp: Stamp,
        spec: &DatasetSpec,
    ) -> Result<Arc<Self>> {
        Self::empty(memory, stamp).patched(rows, layout, stamp, spec)
    }
}

impl Payload for Arc<Chunk> {
    fn columns(&self) -> ColumnSet {
        self.columns
    }
    fn version(&self) -> u64 {
        self.version
    }
    fn known_through(&self) -> i64 {
        self.known_through
    }
    fn rows(&self) -> u32 {
        self.rows
    }
    fn same_rows(&self, other: &Self) -> bool {
        if self.rows != other.rows || self.ts != other.ts || self.retracted != other.retracted {
            return false;
        }
        match (&self.known_at, &other.known_at) {
            _ if self.rows == 0 => true,
            (KnownAt::Constant(a), KnownAt::Constant(b)) => a == b,
            (KnownAt::PerRow(a), KnownAt::PerRow(b)) => a == b,
            // equal times would have been found to be constant in both
            _ => false,
        }
    }
    fn join(&self, other: &Self) -> Self {
        let stamp = Stamp {
            columns: self.columns.union(other.columns),
            version: self.version.max(other.version),
            known_through: self.known_through.max(other.known_through),
        };
        if self.rows == 0 {
            return Chunk::empty(&self.memory, stamp);
        }
        let mut held: Vec<&Field> = self.fields.iter().collect();
        held.extend(other.fields.iter().filter(|field| self.field(usize::from(field.position)).is_none()));
        held.sort_by_key(|field| field.position);
        let fields: Vec<_> = held.iter().map(|field| (field.position, field.data_type)).collect();
        let rows = Rows {
            ts: &self.ts,
            known_at: self.known_at.clone(),
            retracted: self.retracted.as_deref().cloned(),
            columns: held.into_iter().map(|field| field.column.clone()).collect(),
        };
        pack(&self.memory, stamp, &fields, &[rows], &[(0, 0..self.rows as usize)])
    }
}

impl Source for Arc<Chunk> {
    fn ts(&self) -> &ScalarBuffer<i64> {
        &self.ts
    }
    fn known_at(&self) -> &KnownAt {
        &self.known_at
    }
    fn corrected(&self) -> bool {
        self.corrected
    }
    fn retracted(&self) -> Option<&BooleanBuffer> {
        self.retracted.as_deref()
    }
    fn column(&self, position: usize) -> &Column {
        // a bug of the engine; to serve wrong values would be worse
        self.field(position)
            .unwrap_or_else(|| panic!("a chunk came without field {position}, which was asked for"))
    }
}

/// The bytes of one chunk, counted from their allocation until the last reader drops them.
#[derive(Debug)]
struct Counted {
    data: MutableBuffer,
    bytes: u64,
    memory: Arc<Memory>,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        self.data.as_slice()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.memory.freed(self.bytes);
    }
}

type FieldAt = (u16, FieldType);

fn fields_of(layout: ColumnLayout, columns: ColumnSet, spec: &DatasetSpec) -> Vec<FieldAt> {
    layout.fields(columns).into_iter().map(|field| (field as u16, spec.fields[field].data_type)).collect()
}

/// Rows of a commit, in the change schema.
#[derive(Debug, Clone)]
pub(crate) struct ChangeRows {
    pub(crate) batch: RecordBatch,
    /// Which are retractions; `None`: none is.
    pub(crate) retracted: Option<BooleanBuffer>,
}

impl ChangeRows {
    pub(crate) fn slice(&self, rows: Range<usize>) -> Self {
        Self {
            batch: self.batch.slice(rows.start, rows.len()),
            retracted: self.retracted.as_ref().map(|bits| bits.slice(rows.start, rows.len())),
        }
    }
}

/// Rows to copy from: their keys, and a column for each field.
struct Rows<'a> {
    ts: &'a [i64],
    known_at: KnownAt,
    /// Which are retractions; `None`: none is.
    retracted: Option<BooleanBuffer>,
    columns: Vec<Column>,
}

/// Makes a column from an Arrow array. It shares the array's buffers.
///
/// # Errors
/// [`Code::DataCorrupt`] if the array is not of this type.
fn column_of(array: &dyn Array, data_type: FieldType) -> Result<Column> {
    use arrow_array::types::{Float32Type, Float64Type, Int32Type, Int64Type};
    if *array.data_type() != data_type.to_arrow() {
        return Err(corrupt(format!("a {data_type} field came as {}", array.data_type())));
    }
    let fixed = |values: &Buffer| Values::Fixed(values.clone());
    let values = match data_type {
        FieldType::Float64 => fixed(array.as_primitive::<Float64Type>().values().inner()),
        FieldType::Float32 => fixed(array.as_primitive::<Float32Type>().values().inner()),
        FieldType::Int64 => fixed(array.as_primitive::<Int64Type>().values().inner()),
        FieldType::Int32 => fixed(array.as_primitive::<Int32Type>().values().inner()),
        FieldType::Timestamp => fixed(array.as_primitive::<TimestampNanosecondType>().values().inner()),
        FieldType::Bool => Values::Bits(array.as_boolean().values().clone()),
        FieldType::String => {
            let text = array.as_string::<i32>();
            Values::Text(text.offsets().inner().clone(), text.values().clone())
        }
    };
    Ok(Column { nulls: array.nulls().cloned().map(Box::new), values })
}

impl<'a> Rows<'a> {
    fn of_chunk(chunk: &'a Chunk, fields: &[FieldAt]) -> Self {
        let held = fields.iter().filter_map(|(position, _)| chunk.field(usize::from(*position)));
        let columns = held.cloned().collect();
        let retracted = chunk.retracted.as_deref().cloned();
        Self { ts: &chunk.ts, known_at: chunk.known_at.clone(), retracted, columns }
    }

    /// The rows of a batch in which `ts` is column `keys`, `known_at` the next one, and field `i` is column `at(i)`.
    fn of_batch(
        batch: &'a RecordBatch,
        retracted: Option<BooleanBuffer>,
        keys: usize,
        fields: &[FieldAt],
        at: impl Fn(usize) -> usize,
    ) -> Result<Self> {
        let ts = time(batch, keys)?;
        let known_at = KnownAt::PerRow(time(batch, keys + 1)?.clone());
        let columns = fields
            .iter()
            .enumerate()
            .map(|(i, (_, data_type))| column_of(batch.column(at(i)).as_ref(), *data_type))
            .collect::<Result<_>>()?;
        Ok(Self { ts, known_at, retracted, columns })
    }

    fn of_change(rows: &'a ChangeRows, fields: &[FieldAt]) -> Result<Self> {
        Self::of_batch(&rows.batch, rows.retracted.clone(), 1, fields, |i| 3 + usize::from(fields[i].0))
    }

    /// Whether any of these rows is a retraction.
    fn retracts(&self, rows: &Range<usize>) -> bool {
        self.retracted.as_ref().is_some_and(|bits| bits.slice(rows.start, rows.len()).count_set_bits() > 0)
    }
}

fn time(batch: &RecordBatch, column: usize) -> Result<&ScalarBuffer<i64>> {
    let array = batch.column(column).as_primitive_opt::<TimestampNanosecondType>();
    match array {
        Some(array) if array.null_count() == 0 => Ok(array.values()),
        _ => Err(corrupt("a time column has nulls or is not of nanoseconds")),
    }
}

/// Two sorted sets of rows merged by (ts, known_at): runs of rows of set 0 or 1. A key that is in both is taken from the first.
fn interleave(a: &Rows<'_>, b: &Rows<'_>) -> Vec<(usize, Range<usize>)> {
    let mut order: Vec<(usize, Range<usize>)> = Vec::new();
    let mut push = |source: usize, row: usize| match order.last_mut() {
        Some((last, run)) if *last == source && run.end == row => run.end += 1,
        _ => order.push((source, row..row + 1)),
    };
    let (mut i, mut j) = (0, 0);
    while i < a.ts.len() || j < b.ts.len() {
        let mine = a.ts.get(i).map(|ts| (*ts, a.known_at.at(i)));
        let theirs = b.ts.get(j).map(|ts| (*ts, b.known_at.at(j)));
        match (mine, theirs) {
            (Some(x), Some(y)) if x == y => j += 1,
            (Some(x), Some(y)) if y < x => {
                push(1, j);
                j += 1;
            }
            (Some(_), _) => {
                push(0, i);
                i += 1;
            }
            _ => {
                push(1, j);
                j += 1;
            }
        }
    }
    order
}

/// Copies rows into an allocation of their own.
fn pack(
    memory: &Arc<Memory>,
    stamp: Stamp,
    fields: &[FieldAt],
    sources: &[Rows<'_>],
    order: &[(usize, Range<usize>)],
) -> Arc<Chunk> {
    let rows: usize = order.iter().map(|(_, run)| run.len()).sum();
    if rows == 0 {
        return Chunk::empty(memory, stamp);
    }
    let constant = constant_of(sources, order);
    let retracts = order.iter().any(|(s, run)| sources[*s].retracts(run));
    let nulls: Vec<usize> = (0..fields.len())
        .map(|f| {
            order
                .iter()
                .filter_map(|(s, run)| {
                    Some(sources[*s].columns[f].nulls.as_ref()?.slice(run.start, run.len()).null_count())
                })
                .sum()
        })
        .collect();

    // the exact size first, so that there is one allocation without spare bytes
    let bits = rows.div_ceil(8);
    let mut sizes = vec![rows * 8];
    if constant.is_none() {
        sizes.push(rows * 8);
    }
    if retracts {
        sizes.push(bits);
    }
    for (f, nulls) in nulls.iter().enumerate() {
        if *nulls > 0 {
            sizes.push(bits);
        }
        match sources[order[0].0].columns[f].values {
            Values::Fixed(_) => sizes.push(rows * fields[f].1.width()),
            Values::Bits(_) => sizes.push(bits),
            Values::Text(..) => {
                sizes.push((rows + 1) * 4);
                sizes.push(order.iter().map(|(s, run)| text_range(&sources[*s].columns[f], run).len()).sum());
            }
        }
    }
    let align = if sizes.iter().sum::<usize>() < SMALL_BYTES { ALIGN_SMALL } else { ALIGN };
    let total = sizes.iter().map(|size| size.next_multiple_of(align)).sum::<usize>();

    let mut data = MutableBuffer::with_capacity(total);
    let mut places: Vec<Range<usize>> = Vec::with_capacity(sizes.len());
    let mut place = |data: &mut MutableBuffer, start: usize| {
        places.push(start..data.len());
        data.resize(data.len().next_multiple_of(align), 0);
    };
    for (s, run) in order {
        data.extend_from_slice(&sources[*s].ts[run.clone()]);
    }
    place(&mut data, 0);
    if constant.is_none() {
        let start = data.len();
        for (s, run) in order {
            match &sources[*s].known_at {
                KnownAt::PerRow(known_at) => data.extend_from_slice(&known_at[run.clone()]),
                KnownAt::Constant(at) => data.extend(std::iter::repeat_n(*at, run.len())),
            }
        }
        place(&mut data, start);
    }
    if retracts {
        let mut retracted = BooleanBufferBuilder::new(rows);
        for (s, run) in order {
            match &sources[*s].retracted {
                Some(bits) => retracted.append_buffer(&bits.slice(run.start, run.len())),
                None => retracted.append_n(run.len(), false),
            }
        }
        let start = data.len();
        data.extend_from_slice(&retracted.as_slice()[..bits]);
        place(&mut data, start);
    }
    for (f, nulls) in nulls.iter().enumerate() {
        if *nulls > 0 {
            let mut valid = BooleanBufferBuilder::new(rows);
            for (s, run) in order {
                match &sources[*s].columns[f].nulls {
                    Some(nulls) => valid.append_buffer(&nulls.inner().slice(run.start, run.len())),
                    None => valid.append_n(run.len(), true),
                }
            }
            let start = data.len();
            data.extend_from_slice(&valid.as_slice()[..bits]);
            place(&mut data, start);
        }
        let start = data.len();
        match sources[order[0].0].columns[f].values {
            Values::Fixed(_) => {
                let width = fields[f].1.width();
                for (s, run) in order {
                    if let Values::Fixed(values) = &sources[*s].columns[f].values {
                        data.extend_from_slice(&values[run.start * width..run.end * width]);
                    }
                }
            }
            Values::Bits(_) => {
                let mut values = BooleanBufferBuilder::new(rows);
                for (s, run) in order {
                    if let Values::Bits(part) = &sources[*s].columns[f].values {
                        values.append_buffer(&part.slice(run.start, run.len()));
                    }
                }
                data.extend_from_slice(&values.as_slice()[..bits]);
            }
            Values::Text(..) => {
                let mut end = 0i32;
                data.push(end);
                for (s, run) in order {
                    if let Values::Text(offsets, _) = &sources[*s].columns[f].values {
                        let base = end - offsets[run.start];
                        data.extend(offsets[run.start + 1..=run.end].iter().map(|offset| offset + base));
                        end = offsets[run.end] + base;
                    }
                }
                place(&mut data, start);
                let start = data.len();
                for (s, run) in order {
                    let column = &sources[*s].columns[f];
                    if let Values::Text(_, text) = &column.values {
                        data.extend_from_slice(&text[text_range(column, run)]);
                    }
                }
                place(&mut data, start);
                continue;
            }
        }
        place(&mut data, start);
    }

    let bytes = data.capacity() as u64 + CHUNK_BYTES + fields.len() as u64 * COLUMN_BYTES;
    memory.allocated(bytes);
    let buffer = Buffer::from(Bytes::from_owner(Counted { data, bytes, memory: Arc::clone(memory) }));
    let mut places = places.into_iter();
    let mut next = || {
        places
            .next()
            .map_or_else(|| buffer.slice_with_length(0, 0), |p| buffer.slice_with_length(p.start, p.len()))
    };
    let ts = ScalarBuffer::<i64>::new(next(), 0, rows);
    let known_at = match constant {
        Some(at) => KnownAt::Constant(at),
        None => KnownAt::PerRow(ScalarBuffer::new(next(), 0, rows)),
    };
    let retracted = retracts.then(|| Box::new(BooleanBuffer::new(next(), 0, rows)));
    let fields = fields
        .iter()
        .zip(&nulls)
        .map(|((position, data_type), nulls)| {
            let nulls = (*nulls > 0).then(|| Box::new(NullBuffer::new(BooleanBuffer::new(next(), 0, rows))));
            let values = match data_type {
                FieldType::Bool => Values::Bits(BooleanBuffer::new(next(), 0, rows)),
                FieldType::String => Values::Text(ScalarBuffer::new(next(), 0, rows + 1), next()),
                _ => Values::Fixed(next()),
            };
            Field { position: *position, data_type: *data_type, column: Column { nulls, values } }
        })
        .collect();
    Arc::new(Chunk {
        memory: Arc::clone(memory),
        columns: stamp.columns,
        version: stamp.version,
        known_through: stamp.known_through,
        rows: rows as u32,
        corrected: retracts || ts.windows(2).any(|w| w[0] == w[1]),
        retracted,
        ts,
        known_at,
        fields,
        bytes,
    })
}

fn text_range(column: &Column, run: &Range<usize>) -> Range<usize> {
    match &column.values {
        Values::Text(offsets, _) => offsets[run.start] as usize..offsets[run.end] as usize,
        _ => 0..0,
    }
}

fn constant_of(sources: &[Rows<'_>], order: &[(usize, Range<usize>)]) -> Option<i64> {
    let (source, run) = order.first()?;
    let first = sources[*source].known_at.at(run.start);
    order
        .iter()
        .all(|(s, run)| match &sources[*s].known_at {
            KnownAt::Constant(at) => *at == first,
            KnownAt::PerRow(known_at) => known_at[run.clone()].iter().all(|at| *at == first),
        })
        .then_some(first)
}

fn corrupt(message: impl Into<String>) -> Error {
    Error::new(Code::DataCorrupt, message).side(Side::Shard)
}

/// Reads one Arrow IPC record batch message.
///
/// # Errors
/// [`Code::DataCorrupt`].
pub(crate) fn decode(header: &[u8], body: Bytes, schema: SchemaRef) -> Result<RecordBatch> {
    let message =
        arrow_ipc::root_as_message(header).map_err(|e| corrupt(format!("not an Arrow message: {e}")))?;
    let batch = message.header_as_record_batch().ok_or_else(|| corrupt("not an Arrow record batch"))?;
    // Arrow's reader does not check that a buffer lies in the body: it would panic
    let inside = |buffer: &arrow_ipc::Buffer| {
        let end = buffer.offset().checked_add(buffer.length());
        buffer.offset() >= 0 && buffer.length() >= 0 && end.is_some_and(|end| end as usize <= body.len())
    };
    if !batch.buffers().into_iter().flatten().all(inside) {
        return Err(corrupt("an Arrow record batch goes on after its body ends"));
    }
    let body = Buffer::from(body);
    arrow_ipc::reader::read_record_batch(&body, batch, schema, &HashMap::new(), None, &message.version())
        .map_err(|e| corrupt(format!("an Arrow record batch does not read: {e}")))
}

/// Reads the bits that say which of `rows` rows are retractions; `None`: none is.
///
/// # Errors
/// [`Code::DataCorrupt`] if the bits are for another number of rows.
pub(crate) fn retractions(bits: &Bytes, rows: usize) -> Result<Option<BooleanBuffer>> {
    match bits.len() {
        0 => Ok(None),
        len if len == rows.div_ceil(8) => Ok(Some(BooleanBuffer::new(Buffer::from(bits.clone()), 0, rows))),
        len => Err(corrupt(format!("{len} bytes say which of {rows} rows are retractions"))),
    }
}

/// How to read the rows of the runs that come for one set of columns.
#[derive(Debug, Clone)]
pub(crate) struct RunShape {
    pub(crate) columns: ColumnSet,
    /// Schema of the message: ts, known_at, the fields.
    schema: SchemaRef,
    fields: Vec<FieldAt>,
    spec: Arc<DatasetSpec>,
}

impl RunShape {
    pub(crate) fn new(spec: &Arc<DatasetSpec>, layout: ColumnLayout, columns: ColumnSet) -> Self {
        let positions = layout.fields(columns);
        let schema = spec.chunk_schema(&positions);
        Self { columns, schema, fields: fields_of(layout, columns, spec), spec: Arc::clone(spec) }
    }

    /// The names of the fields to ask the shard for.
    pub(crate) fn names(&self) -> Vec<String> {
        self.fields
            .iter()
            .map(|(field, _)| self.spec.fields[usize::from(*field)].name.as_str().to_owned())
            .collect()
    }

    /// Reads the record batch of runs that have `rows` rows together.
    ///
    /// # Errors
    /// [`Code::DataCorrupt`] if it is no record batch, or has another number of rows.
    pub(crate) fn decode(&self, header: &[u8], body: Bytes, rows: u64) -> Result<RecordBatch> {
        let batch = decode(header, body, Arc::clone(&self.schema))?;
        match batch.num_rows() as u64 == rows {
            true => Ok(batch),
            false => Err(corrupt(format!("{} rows came for chunks that have {rows}", batch.num_rows()))),
        }
    }

    /// Begins to divide a record batch into the chunks of its runs, run by run.
    ///
    /// # Errors
    /// [`Code::DataCorrupt`] if a column is not of its type, or if the length of `retracted` is not the number of rows.
    pub(crate) fn unpack<'a>(
        &'a self,
        memory: &'a Arc<Memory>,
        rows: &'a RecordBatch,
        retracted: &Bytes,
    ) -> Result<Unpack<'a>> {
        let retracted = retractions(retracted, rows.num_rows())?;
        Ok(Unpack {
            shape: self,
            memory,
            known_at: time(rows, 1)?,
            rows: Rows::of_batch(rows, retracted, 0, &self.fields, |i| 2 + i)?,
            row: 0,
        })
    }
}

/// A record batch that is being divided.
pub(crate) struct Unpack<'a> {
    shape: &'a RunShape,
    memory: &'a Arc<Memory>,
    rows: Rows<'a>,
    known_at: &'a [i64],
    /// First row of the next run.
    row: usize,
}

impl Unpack<'_> {
    /// The chunks of the next run.
    ///
    /// # Errors
    /// [`Code::DataCorrupt`] if its rows break the contract: a row is outside its chunk, or out of order.
    pub(crate) fn next(&mut self, run: &ChunkRun, stamp: Stamp) -> Result<Vec<Arc<Chunk>>> {
        let mut from = self.row;
        self.row += run.rows() as usize;
        let mut empty = None;
        run.chunks()
            .zip(&run.chunk_rows)
            .map(|(k, rows)| {
                let rows = from..from + *rows as usize;
                from = rows.end;
                if rows.is_empty() {
                    // all empty chunks of a run share one
                    return Ok(Arc::clone(empty.get_or_insert_with(|| Chunk::empty(self.memory, stamp))));
                }
                self.check(k, rows.clone())?;
                let (source, order) = (std::slice::from_ref(&self.rows), [(0, rows)]);
                Ok(pack(self.memory, stamp, &self.shape.fields, source, &order))
            })
            .collect()
    }

    fn check(&self, k: i64, rows: Range<usize>) -> Result<()> {
        let (start, end) = self.shape.spec.chunk.range(k);
        let (ts, known_at) = (&self.rows.ts[rows.clone()], &self.known_at[rows]);
        // the first and the last row are enough if the rows are sorted, which is checked next
        if ts.first().is_some_and(|t| *t < start) || ts.last().is_some_and(|t| *t >= end) {
            return Err(corrupt(format!("a row of chunk {k} lies outside it")));
        }
        match ts.windows(2).zip(known_at.windows(2)).all(|(t, k)| (t[0], k[0]) < (t[1], k[1])) {
            true => Ok(()),
            false => Err(corrupt(format!("the rows of chunk {k} are not sorted, or one is there twice"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Weak;

    use arrow_array::{Float64Array, TimestampNanosecondArray};
    use arrow_ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteContext, IpcWriteOptions};
    use trellis_proto::{ChunkSpan, spec::FieldSpec, time::SECOND_NS};

    use super::*;

    /// A message as it was received, and whether anybody still has it.
    struct Message(Vec<u8>, #[allow(dead_code)] Arc<()>);

    impl AsRef<[u8]> for Message {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }

    /// Rows at these `seconds`, all known at 1, each with the `value`, or all without one.
    fn message(shape: &RunShape, seconds: &[i64], value: Option<f64>) -> (Vec<u8>, Bytes, Weak<()>) {
        let time = |at: Vec<i64>| Arc::new(TimestampNanosecondArray::from(at).with_timezone("UTC"));
        let rows = RecordBatch::try_new(
            Arc::clone(&shape.schema),
            vec![
                time(seconds.iter().map(|at| at * SECOND_NS).collect()),
                time(vec![1; seconds.len()]),
                Arc::new(seconds.iter().map(|_| value).collect::<Float64Array>()),
            ],
        )
        .unwrap();
        let (_, data) = IpcDataGenerator::default()
            .encode(
                &rows,
                &mut DictionaryTracker::new(true),
                &IpcWriteOptions::default(),
                &mut IpcWriteContext::default(),
            )
            .unwrap();
        let held = Arc::new(());
        let gone = Arc::downgrade(&held);
        (data.ipc_message, Bytes::from_owner(Message(data.arrow_data, held)), gone)
    }

    fn shape() -> RunShape {
        let field =
            FieldSpec { name: "close".parse().unwrap(), data_type: FieldType::Float64, nullable: true };
        let span = ChunkSpan::new(10 * SECOND_NS).unwrap();
        let spec = DatasetSpec::new("equities.daily".parse().unwrap(), vec![field], span).unwrap();
        RunShape::new(&Arc::new(spec), ColumnLayout::of(1), ColumnSet(1))
    }

    fn run(range: usize, first: i64, chunk_rows: &[u32]) -> ChunkRun {
        ChunkRun { range, first, chunk_rows: chunk_rows.to_vec() }
    }

    const STAMP: Stamp = Stamp { columns: ColumnSet(1), version: 1, known_through: 1 };

    #[test]
    fn a_chunk_that_stays_keeps_nothing_of_its_message() {
        let (memory, shape) = (Memory::new(1 << 20), shape());
        let seconds: Vec<i64> = (0..1_000).collect();
        let (header, body, received) = message(&shape, &seconds, Some(7.0));
        let bytes = body.len() as u64;
        let batch = shape.decode(&header, body, 1_000).unwrap();
        let mut unpack = shape.unpack(&memory, &batch, &Bytes::new()).unwrap();
        let chunks = unpack.next(&run(0, 0, &[10; 100]), STAMP).unwrap();
        drop(unpack);
        drop(batch);
        assert!(received.upgrade().is_none(), "the message is gone");
        let all = memory.pinned();
        let stays = Arc::clone(&chunks[50]);
        drop(chunks);
        assert_eq!((memory.pinned(), all), (stays.bytes(), stays.bytes() * 100));
        assert!(stays.bytes() < bytes / 10, "{} of {bytes}", stays.bytes());
        assert_eq!(stays.ts().first(), Some(&(500 * SECOND_NS)));
        drop(stays);
        assert_eq!(memory.pinned(), 0);
    }

    #[test]
    fn each_run_is_read_from_its_own_rows_and_refused_alone() {
        let (memory, shape) = (Memory::new(1 << 20), shape());
        // two chunks; one whose last row is of the next; one row twice; nothing; one row
        let seconds = [0, 9, 10, 21, 29, 30, 5, 5, 40];
        for value in [Some(7.0), None] {
            let (header, body, _) = message(&shape, &seconds, value);
            let batch = shape.decode(&header, body, 9).unwrap();
            let mut unpack = shape.unpack(&memory, &batch, &Bytes::new()).unwrap();
            let mut next = |run: &ChunkRun| -> Result<Vec<(u32, Vec<i64>, usize)>> {
                let chunks = unpack.next(run, STAMP)?;
                let seen = chunks.iter().map(|chunk| {
                    let nulls = chunk.field(0).and_then(|c| c.nulls.as_deref().map(NullBuffer::null_count));
                    (chunk.rows, chunk.ts().iter().map(|ts| ts / SECOND_NS).collect(), nulls.unwrap_or(0))
                });
                Ok(seen.collect())
            };
            let nulls = |rows: usize| if value.is_none() { rows } else { 0 };
            assert_eq!(
                next(&run(0, 0, &[2, 1])).unwrap(),
                [(2, vec![0, 9], nulls(2)), (1, vec![10], nulls(1))]
            );
            let why = |result: Result<_>| result.unwrap_err().message().to_owned();
            assert_eq!(why(next(&run(1, 2, &[3]))), "a row of chunk 2 lies outside it");
            assert_eq!(
                why(next(&run(2, 0, &[2]))),
                "the rows of chunk 0 are not sorted, or one is there twice"
            );
            assert_eq!(next(&run(3, 7, &[0, 0])).unwrap(), [(0, vec![], 0), (0, vec![], 0)]);
            assert_eq!(next(&run(4, 4, &[1])).unwrap(), [(1, vec![40], nulls(1))]);
        }
    }

    #[test]
    fn retractions_stay_with_their_rows_from_the_message_into_chunks_and_through_changes() {
        let (memory, shape) = (Memory::new(1 << 20), shape());
        let (header, body, _) = message(&shape, &[0, 1, 2, 10, 11, 20], Some(7.0));
        let batch = shape.decode(&header, body, 6).unwrap();
        // the rows at 1 and at 11
        let bits = Bytes::from_static(&[0b01_0010]);
        let chunks =
            shape.unpack(&memory, &batch, &bits).unwrap().next(&run(0, 0, &[3, 2, 1]), STAMP).unwrap();
        let retracted = |chunk: &Chunk| -> Vec<usize> {
            chunk.retracted.iter().flat_map(|bits| bits.set_indices().collect::<Vec<_>>()).collect()
        };
        let of: Vec<_> = chunks.iter().map(|chunk| (retracted(chunk), chunk.corrected)).collect();
        assert_eq!(of, [(vec![1], true), (vec![1], true), (vec![], false)]);
        assert!(chunks[2].retracted.is_none(), "a chunk without retractions has no bits");

        // a change takes the row at 2 back and brings the one at 1 again
        let spec = &shape.spec;
        let time = |at: [i64; 2]| Arc::new(TimestampNanosecondArray::from(at.to_vec()).with_timezone("UTC"));
        let batch = RecordBatch::try_new(
            spec.change_schema(),
            vec![
                Arc::new(arrow_array::StringArray::from(vec!["A", "A"])),
                time([SECOND_NS, 2 * SECOND_NS]),
                time([5, 5]),
                Arc::new(Float64Array::from(vec![Some(8.0), None])),
            ],
        )
        .unwrap();
        let change = ChangeRows { batch, retracted: Some(BooleanBuffer::from(vec![false, true])) };
        let patched = chunks[0].patched(&change, ColumnLayout::of(1), STAMP, spec).unwrap();
        assert_eq!(patched.ts().iter().map(|ts| ts / SECOND_NS).collect::<Vec<_>>(), [0, 1, 1, 2, 2]);
        assert_eq!(retracted(&patched), [1, 4]);
        assert_eq!(retracted(&patched.join(&patched)), [1, 4]);
        assert!(!patched.same_rows(&chunks[0]));
        let planted = Chunk::planted(&memory, &change, ColumnLayout::of(1), STAMP, spec).unwrap();
        assert_eq!(retracted(&planted), [1]);

        let wrong = shape.unpack(&memory, &change_of(&shape), &Bytes::from_static(&[1, 2])).err().unwrap();
        assert_eq!(wrong.message(), "2 bytes say which of 1 rows are retractions");
    }

    fn change_of(shape: &RunShape) -> RecordBatch {
        let (header, body, _) = message(shape, &[0], None);
        shape.decode(&header, body, 1).unwrap()
    }

    #[test]
    fn bytes_that_are_no_record_batch_of_these_columns_are_refused() {
        let shape = shape();
        let (header, body, _) = message(&shape, &[1, 2], Some(7.0));
        let why = |header: &[u8], body: &Bytes, rows: u64| {
            let error = shape.decode(header, body.clone(), rows).unwrap_err();
            assert_eq!(error.code(), Code::DataCorrupt);
            error.message().to_owned()
        };
        assert_eq!(why(&header, &body, 3), "2 rows came for chunks that have 3");
        assert!(why(b"no", &body, 2).starts_with("not an Arrow message"));
        let cut = why(&header, &body.slice(..16), 2);
        assert_eq!(cut, "an Arrow record batch goes on after its body ends");
    }
}
