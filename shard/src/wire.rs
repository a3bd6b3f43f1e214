//! Arrow IPC messages, one at a time, as they travel in our own protobuf messages.

use std::{collections::HashMap, sync::Arc};

use arrow_array::{Array, ArrayRef, BooleanArray, RecordBatch};
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
    /// Reads one message; a record batch is returned. `take` is asked for memory before the decoder makes anything that is longer than
    /// the message.
    ///
    /// # Errors
    /// [`Code::BadRows`] for anything that is not Arrow IPC in that order, and the errors of `take`.
    pub(crate) fn read(
        &mut self,
        message: &pb::IpcMessage,
        take: &mut impl FnMut(usize) -> Result<()>,
    ) -> Result<Option<RecordBatch>> {
        let bad = |why: String| Error::new(Code::BadRows, format!("the rows are not valid Arrow IPC: {why}"));
        let header = arrow_ipc::root_as_message(&message.data_header).map_err(|e| bad(e.to_string()))?;
        let body = Buffer::from(message.data_body.clone());
        let before = || bad("a batch came before the schema".to_owned());
        match header.header_type() {
            MessageHeader::Schema if self.schema.is_some() => Err(bad("a second schema".to_owned())),
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
                // More values for a dictionary are a new dictionary, with the old values too.
                if let (true, Some(old)) = (batch.isDelta(), self.dictionaries.get(&batch.id())) {
                    take(old.to_data().get_slice_memory_size().map_err(|e| bad(e.to_string()))?)?;
                }
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

#[cfg(test)]
mod tests {
    use arrow_array::{DictionaryArray, types::Int32Type};
    use arrow_ipc::writer::DictionaryHandling;

    use super::*;

    #[test]
    fn more_values_for_a_dictionary_are_counted_with_the_old_values_before_they_are_joined() {
        let options = IpcWriteOptions::default().with_dictionary_handling(DictionaryHandling::Delta);
        let (generator, mut tracker) = (IpcDataGenerator::default(), DictionaryTracker::new(false));
        let long = "x".repeat(100_000);
        let batch = |values: &[&str]| {
            let column: DictionaryArray<Int32Type> = values.iter().copied().collect();
            RecordBatch::try_from_iter([("symbol", Arc::new(column) as ArrayRef)]).unwrap()
        };
        let (first, second) = (batch(&[&long]), batch(&[&long, "y"]));
        let schema =
            generator.schema_to_bytes_with_dictionary_tracker(&first.schema(), &mut tracker, &options);
        let mut messages = vec![schema];
        for batch in [first, second] {
            let (dictionaries, rows) =
                generator.encode(&batch, &mut tracker, &options, &mut IpcWriteContext::default()).unwrap();
            messages.extend(dictionaries);
            messages.push(rows);
        }
        let mut decoder = Decoder::default();
        let mut taken = Vec::new();
        for message in messages {
            let message = pb::IpcMessage {
                data_header: message.ipc_message.into(),
                data_body: message.arrow_data.into(),
            };
            let mut take = |bytes| {
                taken.push(bytes);
                Ok(())
            };
            decoder.read(&message, &mut take).unwrap();
        }
        assert_eq!(taken.len(), 1, "{taken:?}");
        assert!(taken[0] >= long.len(), "{taken:?}");
    }
}
