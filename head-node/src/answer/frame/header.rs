//! The bytes before the body of a message: the Arrow IPC header (a flatbuffer that says where in the body each buffer lies), inside the
//! protobuf layout of `FlightData`, inside gRPC's length prefix.
//!
//! ```text
//! 0x00 len:u32be | 0x12 len header | [0x1a len app_metadata] | 0xc2 0x3e len body
//! gRPC prefix    | field 2         |  field 3                | field 1000
//! ```
//!
//! Written by hand because prost, and every codec of tonic's, would copy the body into its own buffer once more.

use arrow_ipc::{
    Buffer, DictionaryBatchBuilder, FieldNode, MessageBuilder, MessageHeader, MetadataVersion,
    RecordBatchBuilder,
};
use flatbuffers::{FlatBufferBuilder, UnionWIPOffset, WIPOffset};

use super::rope::Rope;

/// Each buffer of a record batch starts at a multiple of this. The format asks for 8 and recommends 64, the width of the widest vector
/// registers.
pub(crate) const ALIGN: usize = 64;

/// The same for a dictionary. With 64, padding would be most of a small dictionary.
pub(crate) const DICTIONARY_ALIGN: usize = 8;

/// Most bytes of the prefixes of gRPC and protobuf: 5, and three times a tag and a length.
pub(crate) const PREFIX_BYTES_MAX: usize = 5 + 3 * (2 + 5);

/// Where the buffers of one batch lie.
#[derive(Debug, Default)]
pub(crate) struct BodyLayout {
    nodes: Vec<FieldNode>,
    buffers: Vec<Buffer>,
    body: usize,
}

impl BodyLayout {
    pub(crate) fn clear(&mut self) {
        self.nodes.clear();
        self.buffers.clear();
        self.body = 0;
    }

    pub(crate) fn column(&mut self, rows: usize, nulls: usize) {
        self.nodes.push(FieldNode::new(rows as i64, nulls as i64));
    }

    pub(crate) fn buffer(&mut self, len: usize, align: usize) {
        self.buffers.push(Buffer::new(self.body as i64, len as i64));
        self.body += len.next_multiple_of(align);
    }

    /// Bytes of the body, padding included.
    pub(crate) fn body(&self) -> usize {
        self.body
    }
}

/// Writes the padding after a buffer of `len` bytes.
pub(crate) fn pad(rope: &mut Rope, len: usize, align: usize) {
    rope.copy(&[0; ALIGN][..len.next_multiple_of(align) - len]);
}

/// First capacity of a header: enough for a dozen columns.
const HEADER_BYTES: usize = 1 << 10;

/// Builds headers, and uses its memory again for the next one.
#[derive(Default)]
pub(crate) struct Headers<'a>(Option<FlatBufferBuilder<'a>>);

impl<'a> Headers<'a> {
    fn builder(&mut self) -> &mut FlatBufferBuilder<'a> {
        let builder = self.0.get_or_insert_with(|| FlatBufferBuilder::with_capacity(HEADER_BYTES));
        builder.reset();
        builder
    }

    /// The header of a record batch.
    pub(crate) fn record_batch(&mut self, rows: usize, layout: &BodyLayout) -> &[u8] {
        let builder = self.builder();
        let batch = batch(builder, rows, layout).as_union_value();
        finish(builder, MessageHeader::RecordBatch, batch, layout)
    }

    /// The header of dictionary 0, whole, not a delta.
    pub(crate) fn dictionary(&mut self, values: usize, layout: &BodyLayout) -> &[u8] {
        let builder = self.builder();
        let data = batch(builder, values, layout);
        let mut dictionary = DictionaryBatchBuilder::new(builder);
        dictionary.add_id(0);
        dictionary.add_data(data);
        let dictionary = dictionary.finish().as_union_value();
        finish(builder, MessageHeader::DictionaryBatch, dictionary, layout)
    }
}

fn batch<'a>(
    builder: &mut FlatBufferBuilder<'a>,
    rows: usize,
    layout: &BodyLayout,
) -> WIPOffset<arrow_ipc::RecordBatch<'a>> {
    let buffers = builder.create_vector(&layout.buffers);
    let nodes = builder.create_vector(&layout.nodes);
    let mut batch = RecordBatchBuilder::new(builder);
    batch.add_length(rows as i64);
    batch.add_nodes(nodes);
    batch.add_buffers(buffers);
    batch.finish()
}

fn finish<'b>(
    builder: &'b mut FlatBufferBuilder<'_>,
    kind: MessageHeader,
    header: WIPOffset<UnionWIPOffset>,
    layout: &BodyLayout,
) -> &'b [u8] {
    let mut message = MessageBuilder::new(builder);
    message.add_version(MetadataVersion::V5);
    message.add_header_type(kind);
    message.add_bodyLength(layout.body as i64);
    message.add_header(header);
    let message = message.finish();
    builder.finish(message, None);
    builder.finished_data()
}

/// Writes a message up to its body; `body` bytes must follow.
pub(crate) fn open(rope: &mut Rope, header: &[u8], app_metadata: &[u8], body: usize) {
    let mut prefix = [0u8; PREFIX_BYTES_MAX];
    let mut at = 5;
    let mut tag = |at: &mut usize, tag: &[u8], len: usize| {
        let from = *at;
        prefix[from..from + tag.len()].copy_from_slice(tag);
        *at += tag.len();
        let mut rest = len;
        while rest >= 0x80 {
            prefix[*at] = rest as u8 | 0x80;
            rest >>= 7;
            *at += 1;
        }
        prefix[*at] = rest as u8;
        *at += 1;
    };
    tag(&mut at, &[0x12], header.len());
    let after_header = at;
    if !app_metadata.is_empty() {
        tag(&mut at, &[0x1a], app_metadata.len());
    }
    let after_metadata = at;
    if body > 0 {
        tag(&mut at, &[0xc2, 0x3e], body);
    }
    let message = (at - 5) + header.len() + app_metadata.len() + body;
    prefix[1..5].copy_from_slice(&(message as u32).to_be_bytes());
    rope.copy(&prefix[..after_header]);
    rope.copy(header);
    rope.copy(&prefix[after_header..after_metadata]);
    rope.copy(app_metadata);
    rope.copy(&prefix[after_metadata..at]);
}
