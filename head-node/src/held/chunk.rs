//! The payload of a chunk: every known row of some columns, immutable, in one allocation of its own.
//!
//! What a shard sends is one message for many chunks of many series; a slice of it would keep the whole message alive for
//! as long as its smallest reader. So each chunk is copied out on arrival, all its columns into one buffer of exactly their
//! size, and the message is dropped. (To count the message once and let its chunks share it was rejected: what is evicted
//! would free nothing while a neighbour stays, so that a full cache could not make room.) The allocation counts itself in
//! [`Memory`] until its last holder is gone, whoever that is: every [`Buffer`] handed out shares it.

use std::{collections::HashMap, ops::Range, sync::Arc};

use arrow_array::{Array, RecordBatch, cast::AsArray, types::TimestampNanosecondType};
use arrow_buffer::{BooleanBuffer, BooleanBufferBuilder, Buffer, MutableBuffer, NullBuffer, ScalarBuffer};
use arrow_schema::SchemaRef;
use bytes::Bytes;
use trellis_proto::{Code, DatasetSpec, Error, FieldType, Result, Side, fetch::ChunkRun};

use super::claims::{ColumnSet, Payload};
use crate::limits::Memory;

/// Buffers inside an allocation start at multiples of this...
const ALIGN: usize = 64;
/// ...but for small allocations, where padding would be a good part of them: Arrow itself asks for 8.
const ALIGN_SMALL: usize = 8;
/// What is small.
const SMALL_BYTES: usize = 4 << 10;

/// What a chunk takes besides its buffers: the chunk, its columns' headers, reference counts, allocator rounding.
const CHUNK_BYTES: u64 = 320;
/// As [`CHUNK_BYTES`], of each column.
const COLUMN_BYTES: u64 = 80;

/// Bits of a [`ColumnSet`].
const BITS: usize = u128::BITS as usize;

/// Which fields of a dataset a bit of a [`ColumnSet`] stands for: one, unless the dataset has more than 128; then as many
/// adjacent ones as it takes, which are fetched and kept together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ColumnLayout {
    fields: usize,
    per_bit: usize,
}

impl ColumnLayout {
    pub(crate) fn of(fields: usize) -> Self {
        Self { fields, per_bit: fields.div_ceil(BITS).max(1) }
    }

    /// The columns that hold the fields at these positions.
    pub(crate) fn columns(&self, fields: &[usize]) -> ColumnSet {
        ColumnSet(fields.iter().fold(0, |set, field| set | 1 << (field / self.per_bit)))
    }

    /// The positions of the fields that columns hold, ascending.
    pub(crate) fn fields(&self, columns: ColumnSet) -> Vec<usize> {
        (0..self.fields).filter(|field| columns.0 >> (field / self.per_bit) & 1 == 1).collect()
    }
}

/// The knowledge times of a chunk's rows.
#[derive(Debug, Clone)]
pub(crate) enum KnownAt {
    /// Every row was learned at this moment.
    Constant(i64),
    /// One for each row.
    PerRow(ScalarBuffer<i64>),
}

impl KnownAt {
    fn at(&self, row: usize) -> i64 {
        match self {
            Self::Constant(at) => *at,
            Self::PerRow(at) => at[row],
        }
    }
}

/// Values of one field, as Arrow lays them out; row 0 is the chunk's first row.
#[derive(Debug, Clone)]
pub(crate) enum Values {
    /// Of equal width.
    Fixed(Buffer),
    /// One bit each.
    Bits(BooleanBuffer),
    /// Text: one offset more than rows, from 0, and what they point into.
    Text(ScalarBuffer<i32>, Buffer),
}

/// One field of one chunk.
#[derive(Debug, Clone)]
pub(crate) struct Column {
    field: u16,
    data_type: FieldType,
    nulls: Option<Box<NullBuffer>>,
    values: Values,
}

impl Column {
    /// Which values are there; `None`: all.
    pub(crate) fn nulls(&self) -> Option<&NullBuffer> {
        self.nulls.as_deref()
    }
    /// The values; where a null is, anything.
    pub(crate) fn values(&self) -> &Values {
        &self.values
    }
}

/// The rows of one chunk.
#[derive(Debug)]
pub(crate) struct Chunk {
    memory: Arc<Memory>,
    columns: ColumnSet,
    version: u64,
    known_through: i64,
    rows: u32,
    corrected: bool,
    /// Which rows are retractions; `None`: none is. Boxed, because it is rare and chunks are many.
    retracted: Option<Box<BooleanBuffer>>,
    ts: ScalarBuffer<i64>,
    known_at: KnownAt,
    /// Ascending by field.
    fields: Box<[Column]>,
    bytes: u64,
}

/// What a payload says of itself besides its rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stamp {
    pub(crate) columns: ColumnSet,
    pub(crate) version: u64,
    pub(crate) known_through: i64,
}

impl Chunk {
    /// What it counts as in [`Memory`]: nothing if it has no rows (all empty chunks of one arrival are one).
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
    pub(crate) fn ts(&self) -> &ScalarBuffer<i64> {
        &self.ts
    }
    /// The field at this position of the spec, if it is held.
    pub(crate) fn field(&self, field: usize) -> Option<&Column> {
        self.fields.binary_search_by_key(&field, |c| usize::from(c.field)).ok().map(|i| &self.fields[i])
    }

    /// A chunk that is known to have no rows.
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

    /// The same chunk with the rows of a commit put in their places: one symbol's and one chunk's part of it.
    ///
    /// # Errors
    /// [`Code::DataCorrupt`] if the rows are not what their schema says.
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

    /// A chunk of nothing but the rows of a commit.
    ///
    /// # Errors
    /// As [`Self::patched`].
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
            // one of them would have been found constant
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
        let mut columns: Vec<&Column> = self.fields.iter().collect();
        columns.extend(other.fields.iter().filter(|c| self.field(usize::from(c.field)).is_none()));
        columns.sort_by_key(|c| c.field);
        let fields: Vec<_> = columns.iter().map(|c| (c.field, c.data_type)).collect();
        let rows = Rows {
            ts: &self.ts,
            known: self.known_at.clone(),
            retracted: self.retracted.as_deref().cloned(),
            parts: columns.into_iter().map(Part::of_column).collect(),
        };
        pack(&self.memory, stamp, &fields, &[rows], &[(0, 0..self.rows as usize)])
    }
}

/// The bytes of one chunk, counted from allocation to the last reader's drop.
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
    /// Some of them.
    pub(crate) fn slice(&self, rows: Range<usize>) -> Self {
        Self {
            batch: self.batch.slice(rows.start, rows.len()),
            retracted: self.retracted.as_ref().map(|bits| bits.slice(rows.start, rows.len())),
        }
    }
}

/// Rows to copy from: the keys, and for each field its values.
struct Rows<'a> {
    ts: &'a [i64],
    known: KnownAt,
    /// Which are retractions; `None`: none is.
    retracted: Option<BooleanBuffer>,
    parts: Vec<Part<'a>>,
}

struct Part<'a> {
    nulls: Option<&'a NullBuffer>,
    values: PartValues<'a>,
}

enum PartValues<'a> {
    Fixed(&'a [u8], usize),
    Bits(&'a BooleanBuffer),
    Text(&'a [i32], &'a [u8]),
}

fn width(data_type: FieldType) -> usize {
    data_type.width()
}

impl<'a> Part<'a> {
    fn of_column(column: &'a Column) -> Self {
        let values = match &column.values {
            Values::Fixed(buffer) => PartValues::Fixed(buffer.as_slice(), width(column.data_type)),
            Values::Bits(bits) => PartValues::Bits(bits),
            Values::Text(offsets, text) => PartValues::Text(offsets, text.as_slice()),
        };
        Self { nulls: column.nulls(), values }
    }

    fn of_array(array: &'a dyn Array, data_type: FieldType) -> Result<Self> {
        use arrow_array::types::{Float32Type, Float64Type, Int32Type, Int64Type};
        if *array.data_type() != data_type.to_arrow() {
            return Err(corrupt(format!("a {data_type} field came as {}", array.data_type())));
        }
        let width = width(data_type);
        let values = match data_type {
            FieldType::Float64 => {
                PartValues::Fixed(array.as_primitive::<Float64Type>().values().inner(), width)
            }
            FieldType::Float32 => {
                PartValues::Fixed(array.as_primitive::<Float32Type>().values().inner(), width)
            }
            FieldType::Int64 => PartValues::Fixed(array.as_primitive::<Int64Type>().values().inner(), width),
            FieldType::Int32 => PartValues::Fixed(array.as_primitive::<Int32Type>().values().inner(), width),
            FieldType::Timestamp => {
                PartValues::Fixed(array.as_primitive::<TimestampNanosecondType>().values().inner(), width)
            }
            FieldType::Bool => PartValues::Bits(array.as_boolean().values()),
            FieldType::String => {
                let text = array.as_string::<i32>();
                PartValues::Text(text.offsets(), text.values().as_slice())
            }
        };
        Ok(Self { nulls: array.nulls(), values })
    }
}

impl<'a> Rows<'a> {
    fn of_chunk(chunk: &'a Chunk, fields: &[FieldAt]) -> Self {
        let parts = fields
            .iter()
            .filter_map(|(field, _)| chunk.field(usize::from(*field)))
            .map(Part::of_column)
            .collect();
        let retracted = chunk.retracted.as_deref().cloned();
        Self { ts: &chunk.ts, known: chunk.known_at.clone(), retracted, parts }
    }

    /// Of a batch with `ts` and `known_at` at `keys` and the `i`th field at `at(i)`.
    fn of_batch(
        batch: &'a RecordBatch,
        retracted: Option<BooleanBuffer>,
        keys: usize,
        fields: &[FieldAt],
        at: impl Fn(usize) -> usize,
    ) -> Result<Self> {
        let ts = time(batch, keys)?;
        let known = KnownAt::PerRow(time(batch, keys + 1)?.clone());
        let parts = fields
            .iter()
            .enumerate()
            .map(|(i, (_, data_type))| Part::of_array(batch.column(at(i)).as_ref(), *data_type))
            .collect::<Result<_>>()?;
        Ok(Self { ts, known, retracted, parts })
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

/// The order of (ts, known_at) over two sorted sets of rows, as runs. A key that is in both is taken from the first.
fn interleave(a: &Rows<'_>, b: &Rows<'_>) -> Vec<(usize, Range<usize>)> {
    let mut order: Vec<(usize, Range<usize>)> = Vec::new();
    let mut push = |source: usize, row: usize| match order.last_mut() {
        Some((last, run)) if *last == source && run.end == row => run.end += 1,
        _ => order.push((source, row..row + 1)),
    };
    let (mut i, mut j) = (0, 0);
    while i < a.ts.len() || j < b.ts.len() {
        let mine = a.ts.get(i).map(|ts| (*ts, a.known.at(i)));
        let theirs = b.ts.get(j).map(|ts| (*ts, b.known.at(j)));
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
                    Some(sources[*s].parts[f].nulls?.slice(run.start, run.len()).null_count())
                })
                .sum()
        })
        .collect();

    // exact size first, so that there is one allocation and nothing to spare in it
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
        match sources[order[0].0].parts[f].values {
            PartValues::Fixed(_, width) => sizes.push(rows * width),
            PartValues::Bits(_) => sizes.push(bits),
            PartValues::Text(..) => {
                sizes.push((rows + 1) * 4);
                sizes.push(order.iter().map(|(s, run)| text_range(&sources[*s].parts[f], run).len()).sum());
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
            match &sources[*s].known {
                KnownAt::PerRow(known) => data.extend_from_slice(&known[run.clone()]),
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
                match sources[*s].parts[f].nulls {
                    Some(nulls) => valid.append_buffer(&nulls.inner().slice(run.start, run.len())),
                    None => valid.append_n(run.len(), true),
                }
            }
            let start = data.len();
            data.extend_from_slice(&valid.as_slice()[..bits]);
            place(&mut data, start);
        }
        let start = data.len();
        match sources[order[0].0].parts[f].values {
            PartValues::Fixed(..) => {
                for (s, run) in order {
                    if let PartValues::Fixed(values, width) = sources[*s].parts[f].values {
                        data.extend_from_slice(&values[run.start * width..run.end * width]);
                    }
                }
            }
            PartValues::Bits(_) => {
                let mut values = BooleanBufferBuilder::new(rows);
                for (s, run) in order {
                    if let PartValues::Bits(part) = sources[*s].parts[f].values {
                        values.append_buffer(&part.slice(run.start, run.len()));
                    }
                }
                data.extend_from_slice(&values.as_slice()[..bits]);
            }
            PartValues::Text(..) => {
                let mut end = 0i32;
                data.push(end);
                for (s, run) in order {
                    if let PartValues::Text(offsets, _) = sources[*s].parts[f].values {
                        let base = end - offsets[run.start];
                        data.extend(offsets[run.start + 1..=run.end].iter().map(|offset| offset + base));
                        end = offsets[run.end] + base;
                    }
                }
                place(&mut data, start);
                let start = data.len();
                for (s, run) in order {
                    let part = &sources[*s].parts[f];
                    if let PartValues::Text(_, text) = part.values {
                        data.extend_from_slice(&text[text_range(part, run)]);
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
        .map(|((field, data_type), nulls)| {
            let nulls = (*nulls > 0).then(|| Box::new(NullBuffer::new(BooleanBuffer::new(next(), 0, rows))));
            let values = match data_type {
                FieldType::Bool => Values::Bits(BooleanBuffer::new(next(), 0, rows)),
                FieldType::String => Values::Text(ScalarBuffer::new(next(), 0, rows + 1), next()),
                _ => Values::Fixed(next()),
            };
            Column { field: *field, data_type: *data_type, nulls, values }
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

fn text_range(part: &Part<'_>, run: &Range<usize>) -> Range<usize> {
    match part.values {
        PartValues::Text(offsets, _) => offsets[run.start] as usize..offsets[run.end] as usize,
        _ => 0..0,
    }
}

fn constant_of(sources: &[Rows<'_>], order: &[(usize, Range<usize>)]) -> Option<i64> {
    let (source, run) = order.first()?;
    let first = sources[*source].known.at(run.start);
    order
        .iter()
        .all(|(s, run)| match &sources[*s].known {
            KnownAt::Constant(at) => *at == first,
            KnownAt::PerRow(known) => known[run.clone()].iter().all(|at| *at == first),
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
    // the reader does not look whether a buffer lies in the body: it would panic
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

/// Which of so many rows are retractions, as it is told beside them.
///
/// # Errors
/// [`Code::DataCorrupt`] if it is told of another number of rows.
pub(crate) fn retractions(bits: &Bytes, rows: usize) -> Result<Option<BooleanBuffer>> {
    match bits.len() {
        0 => Ok(None),
        len if len == rows.div_ceil(8) => Ok(Some(BooleanBuffer::new(Buffer::from(bits.clone()), 0, rows))),
        len => Err(corrupt(format!("{len} bytes say which of {rows} rows are retractions"))),
    }
}

/// What the rows of runs are to be read as.
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

    /// Names of the fields to ask for.
    pub(crate) fn names(&self) -> Vec<String> {
        self.fields
            .iter()
            .map(|(field, _)| self.spec.fields[usize::from(*field)].name.as_str().to_owned())
            .collect()
    }

    /// Reads the record batch of runs that have so many rows together.
    ///
    /// # Errors
    /// [`Code::DataCorrupt`] if it is not one, or has another number of rows.
    pub(crate) fn decode(&self, header: &[u8], body: Bytes, rows: u64) -> Result<RecordBatch> {
        let batch = decode(header, body, Arc::clone(&self.schema))?;
        match batch.num_rows() as u64 == rows {
            true => Ok(batch),
            false => Err(corrupt(format!("{} rows came for chunks that have {rows}", batch.num_rows()))),
        }
    }

    /// Divides a record batch into the chunks of its runs, run by run.
    ///
    /// # Errors
    /// [`Code::DataCorrupt`] if a column is not of its type, or if `retracted` is not of these rows.
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
    /// [`Code::DataCorrupt`] if its rows are not as the contract says: outside their chunk, or out of order.
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
                    // all empty chunks of a run are one
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
        // sorted, as the second check says
        if ts.first().is_some_and(|t| *t < start) || ts.last().is_some_and(|t| *t >= end) {
            return Err(corrupt(format!("a row of chunk {k} lies outside it")));
        }
        match ts.windows(2).zip(known_at.windows(2)).all(|(t, k)| (t[0], k[0]) < (t[1], k[1])) {
            true => Ok(()),
            false => Err(corrupt(format!("the rows of chunk {k} are not sorted, or one is there twice"))),
        }
    }
}

/// A reader's hold on one chunk of an answer. While any clone, or any buffer got from one, lives, the chunk's memory does, and counts
/// as pinned if the cache has let it go.
#[derive(Debug, Clone)]
pub(crate) struct ChunkRef {
    chunk: Arc<Chunk>,
    known_through: i64,
}

impl ChunkRef {
    pub(crate) fn new(chunk: Arc<Chunk>, known_through: i64) -> Self {
        Self { chunk, known_through }
    }
    /// Rows, all known versions counted.
    pub(crate) fn rows(&self) -> usize {
        self.chunk.rows as usize
    }
    /// Event times, sorted.
    pub(crate) fn ts(&self) -> &ScalarBuffer<i64> {
        &self.chunk.ts
    }
    /// Knowledge times; of equal event times ascending.
    pub(crate) fn known_at(&self) -> &KnownAt {
        &self.chunk.known_at
    }
    /// The field at this position *of the dataset's spec*; `None` only if it was not asked for.
    pub(crate) fn field(&self, field: usize) -> Option<&Column> {
        self.chunk.field(field)
    }
    /// Whether some event time occurs more than once, or some row is a retraction.
    pub(crate) fn corrected(&self) -> bool {
        self.chunk.corrected
    }
    /// Which rows are retractions; `None`: none is.
    pub(crate) fn retracted(&self) -> Option<&BooleanBuffer> {
        self.chunk.retracted.as_deref()
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

    /// Rows at so many seconds, all known at 1, of value 7 or none.
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
                    let nulls = chunk.field(0).and_then(|c| c.nulls().map(NullBuffer::null_count));
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
    fn what_is_not_a_record_batch_of_these_columns_is_refused() {
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
