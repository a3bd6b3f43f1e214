//! From the cuts of chunks to the bytes of an answer.
//!
//! An answer is a schema message, one dictionary message with the symbols, and record batches. Three things decide its cost. The encoder
//! of arrow-flight offers none of them: it sizes a slice by the whole buffers under it (a 40 KB slice of a large table becomes 21
//! messages), and tonic's codec copies each message once more.
//!
//! * **One message for many slices.** Ten years of daily prices are 57 chunks of 44 rows; 500 symbols are 500 slices. Their rows go into
//!   one record batch, written straight into the buffer that the transport sends: each byte is copied once.
//! * **No copy of a large slice.** A run of [`SHARE_BYTES_MIN`] or more goes out as the cache's own buffer, between two pieces of
//!   written bytes. Its chunk is pinned until the transport has sent it.
//! * **Messages of a good size** ([`MESSAGE_BYTES`]), whatever the sizes of the slices: small slices are gathered, large ones divided.
//!
//! Nothing is framed before it is asked for. So a reader that stops reading holds the pieces that were asked for ([`Shape::probe`] says
//! how those can be few bytes) and the chunks that were pushed but not framed. Encoded answers are not kept: framing takes a few
//! microseconds of a request's hundred.

mod header;
mod rope;
#[cfg(test)]
mod tests;

use std::{ops::Range, sync::Arc};

use arrow_buffer::{BooleanBuffer, BooleanBufferBuilder, Buffer, ScalarBuffer, bit_util};
use arrow_flight::{FlightData, SchemaAsIpc};
use arrow_ipc::writer::IpcWriteOptions;
use arrow_schema::{DataType, SchemaRef};
use bytes::Bytes;
use prost::Message;
use trellis_proto::{DatasetSpec, FieldType, Symbol};

use self::{
    header::{ALIGN, BodyLayout, DICTIONARY_ALIGN, Headers},
    rope::Rope,
};
use super::{
    column::{Column, KnownAt, Values},
    slice::{self, Window},
};

/// Wanted size of a message's body. Between 256 KiB and 1 MiB the throughput is the same. With smaller messages the cost per message
/// shows; with larger ones, clients that assemble messages copy more than their CPU caches hold.
pub(crate) const MESSAGE_BYTES: usize = 512 << 10;

/// Rows up to this size at the end of an answer go out as one message, rather than as a full message and a small one.
pub(crate) const LAST_MESSAGE_BYTES: usize = 1 << 20;

/// A run of values of at least this length is shared, not copied: a shared piece costs an HTTP/2 frame, a system call and two
/// allocations, about as much as to copy 64 KiB.
pub(crate) const SHARE_BYTES_MIN: usize = 64 << 10;

/// Bytes of a piece that finds out whether the reader has room, see [`Shape::probe`]. Many smaller DATA frames that the reader does not
/// read look like an attack to h2, which then closes the connection (`DEFAULT_DATA_FRAME_OVERHEAD_THRESHOLD` of 0.4.20).
pub(crate) const PROBE_BYTES: usize = 256;

/// A chunk, as the framer reads it. `held::Chunk` implements it; tests and the bench bring their own.
///
/// A clone keeps the chunk's memory, and its bytes in the head's gauges, for as long as it lives.
pub(crate) trait Source: Clone + Send + Sync + 'static {
    /// Event times, sorted.
    fn ts(&self) -> &ScalarBuffer<i64>;
    fn known_at(&self) -> &KnownAt;
    /// Whether some event time occurs more than once, or some row is a retraction.
    fn corrected(&self) -> bool;
    /// Which rows are retractions; `None`: none is.
    fn retracted(&self) -> Option<&BooleanBuffer>;
    /// The field at this position of the dataset's spec; one of those asked for.
    fn column(&self, field: usize) -> &Column;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Fixed(usize),
    Bits,
    Text,
}

/// The layout that all answers with the same dataset, fields and options share. Made once.
#[derive(Debug)]
pub(crate) struct Shape {
    /// Position in the dataset's spec, and layout.
    fields: Vec<(usize, Kind)>,
    known_at: bool,
    /// Bytes of a row without its text.
    row_bytes: usize,
    has_text: bool,
    schema_message: Bytes,
}

impl Shape {
    pub(crate) fn new(spec: &DatasetSpec, fields: &[usize], known_at: bool) -> Self {
        let schema_message = schema_message(&spec.answer_schema(fields, known_at));
        let fields: Vec<_> = fields.iter().map(|&i| (i, kind(spec.fields[i].data_type))).collect();
        let fixed = |(_, kind): &(usize, Kind)| match kind {
            Kind::Fixed(width) => *width,
            Kind::Bits => 1,
            Kind::Text => size_of::<i32>(),
        };
        let row_bytes = size_of::<i32>()
            + size_of::<i64>()
            + fields.iter().map(fixed).sum::<usize>()
            + if known_at { size_of::<i64>() } else { 0 };
        let has_text = fields.iter().any(|(_, kind)| *kind == Kind::Text);
        Self { fields, known_at, row_bytes, has_text, schema_message }
    }

    /// Bytes of a row without its text: a lower bound of its bytes on the wire.
    pub(crate) fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// A small piece of the answer's beginning, from `sent` on; `None` if too few bytes are left. hyper asks for one piece before the
    /// reader's window has room, and for the next one when there was room. So a piece that is asked for after this one can be sent at
    /// once, and until then an answer that waits for its reader holds few bytes.
    pub(crate) fn probe(&self, sent: usize) -> Option<Bytes> {
        let end = sent + PROBE_BYTES;
        (end <= self.schema_message.len()).then(|| self.schema_message.slice(sent..end))
    }
}

fn kind(field: FieldType) -> Kind {
    match field {
        FieldType::Float64 | FieldType::Int64 | FieldType::Timestamp => Kind::Fixed(8),
        FieldType::Float32 | FieldType::Int32 => Kind::Fixed(4),
        FieldType::Bool => Kind::Bits,
        FieldType::String => Kind::Text,
    }
}

/// The schema as a gRPC message.
fn schema_message(schema: &SchemaRef) -> Bytes {
    debug_assert!(
        matches!(schema.field(0).data_type(), DataType::Dictionary(_, _)),
        "the only dictionary, id 0"
    );
    let data = FlightData::from(SchemaAsIpc::new(schema, &IpcWriteOptions::default())).encode_to_vec();
    let mut message = Vec::with_capacity(5 + data.len());
    message.push(0);
    message.extend_from_slice(&(data.len() as u32).to_be_bytes());
    message.extend_from_slice(&data);
    message.into()
}

/// Totals of the messages framed so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Framed {
    /// Rows.
    pub(crate) rows: u64,
    /// Body bytes of record batches.
    pub(crate) bytes: u64,
    /// Record batches.
    pub(crate) batches: u64,
}

/// A chunk with rows in the answer, and the position of its symbol.
struct KeyedChunk<S> {
    key: i32,
    source: S,
}

/// Rows of one chunk. `chunk` counts from the answer's first chunk on.
#[derive(Debug, Clone)]
struct Cut {
    chunk: usize,
    rows: Range<u32>,
}

impl Cut {
    fn len(&self) -> usize {
        self.rows.len()
    }
    fn range(&self) -> Range<usize> {
        self.rows.start as usize..self.rows.end as usize
    }
}

/// Frames one answer: [`Framer::begin`], then [`Framer::push`] for each chunk in order, [`Framer::frame`] whenever [`Framer::is_full`],
/// and [`Framer::finish`] at the end. [`Framer::pop`] hands out the bytes. Chunks may be pushed before `begin`.
pub(crate) struct Framer<S> {
    shape: Arc<Shape>,
    begun: bool,
    chunks: Vec<KeyedChunk<S>>,
    /// Number of `chunks[0]`.
    first_chunk: usize,
    /// Pushed and not yet framed.
    cuts: Vec<Cut>,
    /// Rows and bytes of `cuts`.
    rows: usize,
    bytes: usize,
    /// The cuts of the message being framed, and where its buffers lie. Kept so that their memory is used again.
    taken: Vec<Cut>,
    layout: BodyLayout,
    headers: Headers<'static>,
    rope: Rope,
    framed: Framed,
}

impl<S: Source> Framer<S> {
    /// An answer without any bytes yet.
    pub(crate) fn new(shape: Arc<Shape>) -> Self {
        Self {
            shape,
            begun: false,
            chunks: Vec::new(),
            first_chunk: 0,
            cuts: Vec::new(),
            rows: 0,
            bytes: 0,
            taken: Vec::new(),
            layout: BodyLayout::default(),
            headers: Headers::default(),
            rope: Rope::default(),
            framed: Framed::default(),
        }
    }

    /// Begins the answer, unless it has begun: writes the schema and the dictionary of `symbols`. The keys of pushed chunks are
    /// positions in `symbols`. The first `sent` bytes of the answer have left already.
    pub(crate) fn begin(&mut self, symbols: &[Symbol], sent: usize) {
        if !std::mem::replace(&mut self.begun, true) {
            self.open(symbols, sent);
        }
    }

    /// Makes room for `chunks` more chunks.
    pub(crate) fn reserve(&mut self, chunks: usize) {
        self.chunks.reserve(chunks);
        self.cuts.reserve(chunks);
    }

    /// Adds the rows in `window` of a chunk of the symbol at `key`. Returns their number.
    pub(crate) fn push(&mut self, key: usize, source: &S, window: &Window) -> usize {
        let chunk = self.first_chunk + self.chunks.len();
        let before = self.cuts.len();
        slice::cut(source.ts(), source.known_at(), source.corrected(), source.retracted(), window, |rows| {
            self.cuts.push(Cut { chunk, rows });
        });
        if self.cuts.len() == before {
            return 0;
        }
        self.chunks.push(KeyedChunk { key: key as i32, source: source.clone() });
        let (mut rows, mut bytes) = (0, 0);
        for cut in &self.cuts[before..] {
            rows += cut.len();
            bytes += self.bytes_of(cut);
        }
        self.rows += rows;
        self.bytes += bytes;
        rows
    }

    /// Whether there are rows for a message that need not wait for more rows.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes > LAST_MESSAGE_BYTES
    }

    /// Rows pushed so far.
    pub(crate) fn rows(&self) -> u64 {
        self.framed.rows + self.rows as u64
    }

    /// Bytes pushed so far, without padding.
    pub(crate) fn bytes(&self) -> u64 {
        self.framed.bytes + self.bytes as u64
    }

    /// Bytes pushed and not yet framed, without padding.
    pub(crate) fn bytes_left(&self) -> u64 {
        self.bytes as u64
    }

    /// Bytes of a row without its text.
    pub(crate) fn row_bytes(&self) -> usize {
        self.shape.row_bytes
    }

    /// Totals of the messages framed so far.
    pub(crate) fn framed(&self) -> Framed {
        self.framed
    }

    /// Frames one message of about [`MESSAGE_BYTES`].
    pub(crate) fn frame(&mut self) {
        self.take(MESSAGE_BYTES);
        self.batch(|_| Vec::new());
    }

    /// Frames the rows that are left as one message, with the receipt that `receipt` makes of the totals. Only when not
    /// [`Framer::is_full`].
    pub(crate) fn finish(&mut self, receipt: impl FnOnce(Framed) -> Vec<u8>) {
        debug_assert!(!self.is_full());
        self.take(usize::MAX);
        self.batch(receipt);
    }

    /// Drops everything that was pushed and not framed.
    pub(crate) fn forget(&mut self) {
        self.first_chunk += self.chunks.len();
        (self.chunks, self.cuts) = (Vec::new(), Vec::new());
        (self.rows, self.bytes) = (0, 0);
    }

    /// Ends the answer early: [`Framer::pop`] hands out every message that was framed, whole.
    pub(crate) fn abandon(&mut self) {
        self.rope.close();
    }

    /// The next bytes for the transport.
    pub(crate) fn pop(&mut self) -> Option<Bytes> {
        self.rope.pop()
    }

    fn source(&self, cut: &Cut) -> &S {
        &self.chunks[cut.chunk - self.first_chunk].source
    }

    fn bytes_of(&self, cut: &Cut) -> usize {
        let mut bytes = cut.len() * self.shape.row_bytes;
        if self.shape.has_text {
            for (field, _) in &self.shape.fields {
                if let Values::Text(offsets, _) = &self.source(cut).column(*field).values {
                    bytes += text(offsets, cut.range()).len();
                }
            }
        }
        bytes
    }

    /// The number of the cut's rows that fit `budget` bytes.
    fn rows_within(&self, cut: &Cut, budget: usize) -> usize {
        if !self.shape.has_text {
            return cut.len().min(budget / self.shape.row_bytes);
        }
        let (mut fits, mut too_many) = (0, cut.len() + 1);
        while too_many - fits > 1 {
            let middle = fits + (too_many - fits) / 2;
            let head = Cut { chunk: cut.chunk, rows: cut.rows.start..cut.rows.start + middle as u32 };
            if self.bytes_of(&head) <= budget { fits = middle } else { too_many = middle }
        }
        fits
    }

    /// Moves cuts for a message of at most `budget` bytes (but at least one row) from `cuts` to `taken`.
    fn take(&mut self, mut budget: usize) {
        self.taken.clear();
        let mut whole = 0;
        let mut divided = None;
        for cut in &self.cuts {
            let bytes = self.bytes_of(cut);
            if bytes <= budget {
                budget -= bytes;
                whole += 1;
                continue;
            }
            let rows = self.rows_within(cut, budget).max(usize::from(whole == 0));
            if rows > 0 {
                divided = Some(cut.rows.start + rows as u32);
            }
            break;
        }
        if whole == self.cuts.len() {
            std::mem::swap(&mut self.taken, &mut self.cuts);
            return;
        }
        self.taken.extend(self.cuts.drain(..whole));
        if let Some(at) = divided {
            let rest = &mut self.cuts[0];
            self.taken.push(Cut { chunk: rest.chunk, rows: rest.rows.start..at });
            rest.rows.start = at;
            if rest.rows.is_empty() {
                self.cuts.remove(0);
            }
        }
    }

    /// Frames the record batch of the cuts in `taken`, and drops the chunks that no further cut needs.
    fn batch(&mut self, receipt: impl FnOnce(Framed) -> Vec<u8>) {
        let rows: usize = self.taken.iter().map(Cut::len).sum();
        let bytes: usize = self.taken.iter().map(|cut| self.bytes_of(cut)).sum();
        self.rows -= rows;
        self.bytes -= bytes;

        let nulls = self.lay_out(rows);
        self.framed.rows += rows as u64;
        self.framed.bytes += self.layout.body() as u64;
        self.framed.batches += 1;
        let metadata = receipt(self.framed);

        let header = self.headers.record_batch(rows, &self.layout);
        self.rope.reserve(header::PREFIX_BYTES_MAX + header.len() + metadata.len() + self.layout.body());
        header::open(&mut self.rope, header, &metadata, self.layout.body());
        self.write(rows, &nulls);
        self.rope.close();

        let first_needed = self.cuts.first().map_or(self.first_chunk + self.chunks.len(), |cut| cut.chunk);
        self.chunks.drain(..first_needed - self.first_chunk);
        self.first_chunk = first_needed;
    }

    /// Fills `layout`; returns the number of nulls of each field.
    fn lay_out(&mut self, rows: usize) -> Vec<usize> {
        let mut layout = std::mem::take(&mut self.layout);
        layout.clear();
        let plain = |layout: &mut BodyLayout, width: usize| {
            layout.column(rows, 0);
            layout.buffer(0, ALIGN);
            layout.buffer(rows * width, ALIGN);
        };
        plain(&mut layout, size_of::<i32>());
        plain(&mut layout, size_of::<i64>());
        let mut nulls = Vec::with_capacity(self.shape.fields.len());
        for (field, kind) in &self.shape.fields {
            let (mut null_count, mut text_bytes) = (0, 0);
            for cut in &self.taken {
                let column = self.source(cut).column(*field);
                if let Some(nulls) = column.nulls.as_ref().filter(|nulls| nulls.null_count() > 0) {
                    null_count += nulls.slice(cut.range().start, cut.len()).null_count();
                }
                if let Values::Text(offsets, _) = &column.values {
                    text_bytes += text(offsets, cut.range()).len();
                }
            }
            nulls.push(null_count);
            layout.column(rows, null_count);
            layout.buffer(if null_count > 0 { bit_util::ceil(rows, 8) } else { 0 }, ALIGN);
            match kind {
                Kind::Fixed(width) => layout.buffer(rows * width, ALIGN),
                Kind::Bits => layout.buffer(bit_util::ceil(rows, 8), ALIGN),
                Kind::Text => {
                    layout.buffer((rows + 1) * size_of::<i32>(), ALIGN);
                    layout.buffer(text_bytes, ALIGN);
                }
            }
        }
        if self.shape.known_at {
            plain(&mut layout, size_of::<i64>());
        }
        self.layout = layout;
        nulls
    }

    /// Writes the body that `layout` describes.
    fn write(&mut self, rows: usize, nulls: &[usize]) {
        let mut rope = std::mem::take(&mut self.rope);
        for cut in &self.taken {
            let key = self.chunks[cut.chunk - self.first_chunk].key;
            rope.repeat(key.to_le_bytes(), cut.len());
        }
        header::pad(&mut rope, rows * size_of::<i32>(), ALIGN);

        for cut in &self.taken {
            let source = self.source(cut);
            copy_or_share(&mut rope, source, source.ts().inner(), scaled(cut, size_of::<i64>()));
        }
        header::pad(&mut rope, rows * size_of::<i64>(), ALIGN);

        for ((field, kind), nulls) in self.shape.fields.iter().zip(nulls) {
            let field = *field;
            if *nulls > 0 {
                self.bits(&mut rope, rows, |bits, cut, source| match &source.column(field).nulls {
                    Some(nulls) => append(bits, nulls.inner(), cut.range()),
                    None => bits.append_n(cut.len(), true),
                });
            }
            match kind {
                Kind::Fixed(width) => {
                    for cut in &self.taken {
                        let source = self.source(cut);
                        if let Values::Fixed(values) = &source.column(field).values {
                            copy_or_share(&mut rope, source, values, scaled(cut, *width));
                        }
                    }
                    header::pad(&mut rope, rows * width, ALIGN);
                }
                Kind::Bits => self.bits(&mut rope, rows, |bits, cut, source| {
                    if let Values::Bits(values) = &source.column(field).values {
                        append(bits, values, cut.range());
                    }
                }),
                Kind::Text => self.text(&mut rope, rows, field),
            }
        }

        if self.shape.known_at {
            for cut in &self.taken {
                match self.source(cut).known_at() {
                    KnownAt::Constant(at) => rope.repeat(at.to_le_bytes(), cut.len()),
                    KnownAt::PerRow(at) => {
                        for at in &at[cut.range()] {
                            rope.copy(&at.to_le_bytes());
                        }
                    }
                }
            }
            header::pad(&mut rope, rows * size_of::<i64>(), ALIGN);
        }
        self.rope = rope;
    }

    /// Gathers bits before it writes them, because the cuts have different alignments. Bits are a 64th of the bytes of values.
    fn bits(&self, rope: &mut Rope, rows: usize, add: impl Fn(&mut BooleanBufferBuilder, &Cut, &S)) {
        let mut bits = BooleanBufferBuilder::new(rows);
        for cut in &self.taken {
            add(&mut bits, cut, self.source(cut));
        }
        let bytes = &bits.as_slice()[..bit_util::ceil(rows, 8)];
        rope.copy(bytes);
        header::pad(rope, bytes.len(), ALIGN);
    }

    fn text(&self, rope: &mut Rope, rows: usize, field: usize) {
        let mut end = 0i32;
        rope.copy(&end.to_le_bytes());
        for cut in &self.taken {
            if let Values::Text(offsets, _) = &self.source(cut).column(field).values {
                let range = cut.range();
                let shift = end - offsets[range.start];
                for offset in &offsets[range.start + 1..=range.end] {
                    rope.copy(&(offset + shift).to_le_bytes());
                }
                end = offsets[range.end] + shift;
            }
        }
        header::pad(rope, (rows + 1) * size_of::<i32>(), ALIGN);
        for cut in &self.taken {
            let source = self.source(cut);
            if let Values::Text(offsets, data) = &source.column(field).values {
                copy_or_share(rope, source, data, text(offsets, cut.range()));
            }
        }
        header::pad(rope, end as usize, ALIGN);
    }

    /// Writes the schema and the dictionary, which leave together with the first batch.
    fn open(&mut self, symbols: &[Symbol], sent: usize) {
        let bytes: usize = symbols.iter().map(|symbol| symbol.as_str().len()).sum();
        self.layout.clear();
        self.layout.column(symbols.len(), 0);
        self.layout.buffer(0, DICTIONARY_ALIGN);
        self.layout.buffer((symbols.len() + 1) * size_of::<i32>(), DICTIONARY_ALIGN);
        self.layout.buffer(bytes, DICTIONARY_ALIGN);

        let (rope, body) = (&mut self.rope, self.layout.body());
        let header = self.headers.dictionary(symbols.len(), &self.layout);
        rope.reserve(self.shape.schema_message.len() + header::PREFIX_BYTES_MAX + header.len() + body);
        rope.copy(&self.shape.schema_message[sent..]);
        header::open(rope, header, &[], body);
        let mut end = 0i32;
        rope.copy(&end.to_le_bytes());
        for symbol in symbols {
            end += symbol.as_str().len() as i32;
            rope.copy(&end.to_le_bytes());
        }
        header::pad(rope, (symbols.len() + 1) * size_of::<i32>(), DICTIONARY_ALIGN);
        for symbol in symbols {
            rope.copy(symbol.as_str().as_bytes());
        }
        header::pad(rope, bytes, DICTIONARY_ALIGN);
    }
}

/// A buffer of a chunk on its way out, which pins the chunk.
struct PinnedBuffer<S> {
    buffer: Buffer,
    _pin: S,
}

impl<S> AsRef<[u8]> for PinnedBuffer<S> {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

/// Writes bytes of a chunk's buffer, by a copy or by sharing the buffer.
fn copy_or_share<S: Source>(rope: &mut Rope, source: &S, buffer: &Buffer, range: Range<usize>) {
    if range.len() < SHARE_BYTES_MIN {
        return rope.copy(&buffer[range]);
    }
    let buffer = buffer.slice_with_length(range.start, range.len());
    rope.share(Bytes::from_owner(PinnedBuffer { buffer, _pin: source.clone() }));
}

fn scaled(cut: &Cut, width: usize) -> Range<usize> {
    let rows = cut.range();
    rows.start * width..rows.end * width
}

/// The bytes that the rows' text takes.
fn text(offsets: &[i32], rows: Range<usize>) -> Range<usize> {
    offsets[rows.start] as usize..offsets[rows.end] as usize
}

fn append(bits: &mut BooleanBufferBuilder, from: &BooleanBuffer, rows: Range<usize>) {
    let at = from.offset();
    bits.append_packed_range(at + rows.start..at + rows.end, from.values());
}
