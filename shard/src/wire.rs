//! Arrow IPC messages, one at a time, as they travel in our own protobuf messages.

use std::{collections::HashMap, sync::Arc};

use arrow_array::{ArrayRef, BooleanArray, RecordBatch};
use arrow_buffer::{BooleanBuffer, Buffer};
use arrow_ipc::{
    MessageHeader,
    writer::{DictionaryTracker, IpcDataGenerator, IpcWriteContext, IpcWriteOptions},
};
use arrow_schema::SchemaRef;
use bytes::Bytes;
use trellis_proto::{Code, Error, Result, pb};

use crate::error::internal;

/// Header and body of a record batch without dictionaries, uncompressed.
pub(crate) fn encode(batch: &RecordBatch) -> Result<(Bytes, Bytes)> {
    let mut tracker = DictionaryTracker::new(true);
    let (_, data) = IpcDataGenerator::default()
        .encode(batch, &mut tracker, &IpcWriteOptions::default(), &mut IpcWriteContext::default())
        .map_err(|e| internal("framing rows", e))?;
    Ok((data.ipc_message.into(), data.arrow_data.into()))
}

/// One bit for each row: whether it is a retraction. Empty if none is.
pub(crate) fn bits(retracted: &BooleanArray) -> Bytes {
    if retracted.true_count() == 0 {
        return Bytes::new();
    }
    // The column may be a slice that does not begin at a byte: collect its bits anew.
    let bits = BooleanBuffer::collect_bool(retracted.len(), |row| retracted.value(row));
    Bytes::copy_from_slice(&bits.values()[..retracted.len().div_ceil(8)])
}

/// Reads a publish's messages: a schema, then dictionaries and record batches.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    schema: Option<SchemaRef>,
    dictionaries: HashMap<i64, ArrayRef>,
}

impl Decoder {
    /// Reads one message; a record batch is returned.
    ///
    /// # Errors
    /// [`Code::BadRows`] for anything that is not Arrow IPC in that order.
    pub(crate) fn read(&mut self, message: &pb::IpcMessage) -> Result<Option<RecordBatch>> {
        let bad = |why: String| Error::new(Code::BadRows, format!("the rows are not valid Arrow IPC: {why}"));
        let header = arrow_ipc::root_as_message(&message.data_header).map_err(|e| bad(e.to_string()))?;
        let body = Buffer::from(message.data_body.clone());
        let before = || bad("a batch came before the schema".to_owned());
        match header.header_type() {
            MessageHeader::Schema => {
                let schema = header.header_as_schema().ok_or_else(|| bad("an empty schema".to_owned()))?;
                if schema.fields().is_none() {
                    return Err(bad("a schema without fields".to_owned()));
                }
                self.schema = Some(Arc::new(arrow_ipc::convert::fb_to_schema(schema)));
                Ok(None)
            }
            MessageHeader::DictionaryBatch => {
                let schema = self.schema.as_ref().ok_or_else(before)?;
                let batch = header
                    .header_as_dictionary_batch()
                    .ok_or_else(|| bad("an empty dictionary".to_owned()))?;
                arrow_ipc::reader::read_dictionary(
                    &body,
                    batch,
                    schema,
                    &mut self.dictionaries,
                    &header.version(),
                )
                .map_err(|e| bad(e.to_string()))?;
                Ok(None)
            }
            MessageHeader::RecordBatch => {
                let schema = self.schema.clone().ok_or_else(before)?;
                let batch =
                    header.header_as_record_batch().ok_or_else(|| bad("an empty batch".to_owned()))?;
                arrow_ipc::reader::read_record_batch(
                    &body,
                    batch,
                    schema,
                    &self.dictionaries,
                    None,
                    &header.version(),
                )
                .map(Some)
                .map_err(|e| bad(e.to_string()))
            }
            other => Err(bad(format!("a message of the kind {other:?}"))),
        }
    }

    /// The schema, once its message has come.
    pub(crate) fn schema(&self) -> Option<&SchemaRef> {
        self.schema.as_ref()
    }
}
