//! One publish on one head: rows as Flight messages, the acknowledgement back.

use std::time::Duration;

use arrow_array::RecordBatch;
use arrow_flight::{FlightData, FlightDescriptor, SchemaAsIpc, flight_service_client::FlightServiceClient};
use arrow_ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteContext, IpcWriteOptions};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use bytes::Bytes;
use futures::stream;
use prost::Message;
use tonic::Request;
use trellis_fabric::{channel::PeerChannel, limited};
use trellis_proto::{Code, Error, Result, pb};

use super::failure::of_status;

/// Arrow bytes of one message, about. Large messages cost less, and small ones let other calls on the connection go on.
const MESSAGE_BYTES: usize = 1 << 20;

/// The messages of a publish: made once, sent once for each attempt. Cloning is cheap.
#[derive(Clone)]
pub(crate) struct Messages(Vec<FlightData>);

impl Messages {
    /// Bytes of the bodies.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.iter().map(|message| message.data_body.len() as u64).sum()
    }
}

/// Frames the header and the rows. Batches must share one schema. Dictionary columns are sent as plain values, because each message
/// of a publish must be readable alone on its way to the shard.
pub(crate) fn messages(
    header: &pb::PublishHeader,
    schema: &SchemaRef,
    batches: &[RecordBatch],
) -> Result<Messages> {
    let plain = plain(schema);
    let options = IpcWriteOptions::default();
    let mut first = FlightData::from(SchemaAsIpc::new(&plain, &options));
    first.flight_descriptor = Some(FlightDescriptor::new_cmd(header.encode_to_vec()));
    let mut out = vec![first];

    let generator = IpcDataGenerator::default();
    let mut tracker = DictionaryTracker::new(false);
    let mut compression = IpcWriteContext::default();
    for batch in batches {
        if batch.schema() != *schema {
            return Err(bad("the batches have different schemas"));
        }
        let columns = batch.columns().iter().zip(plain.fields());
        let columns = columns.map(|(column, field)| arrow_cast::cast(column, field.data_type()));
        let columns = columns.collect::<Result<Vec<_>, _>>().map_err(|e| bad(&e.to_string()))?;
        let batch = RecordBatch::try_new(plain.clone(), columns).map_err(|e| bad(&e.to_string()))?;
        let rows = rows_of_a_message(&batch);
        for start in (0..batch.num_rows()).step_by(rows) {
            let slice = batch.slice(start, rows.min(batch.num_rows() - start));
            let (_, encoded) = generator
                .encode(&slice, &mut tracker, &options, &mut compression)
                .map_err(|e| bad(&e.to_string()))?;
            out.push(FlightData::from(encoded));
        }
    }
    Ok(Messages(out))
}

fn rows_of_a_message(batch: &RecordBatch) -> usize {
    let bytes: usize = batch.columns().iter().map(|c| c.to_data().get_slice_memory_size().unwrap_or(0)).sum();
    let a_row = (bytes / batch.num_rows().max(1)).max(1);
    (MESSAGE_BYTES / a_row).max(1)
}

fn plain(schema: &SchemaRef) -> SchemaRef {
    let fields: Vec<Field> = schema
        .fields()
        .iter()
        .map(|field| match field.data_type() {
            DataType::Dictionary(_, values) => {
                Field::new(field.name(), values.as_ref().clone(), field.is_nullable())
            }
            _ => field.as_ref().clone(),
        })
        .collect();
    std::sync::Arc::new(Schema::new(fields))
}

/// Sends the messages and waits for the acknowledgement. If the future is dropped before, the publish may or may not have happened:
/// send it again with the same run id.
pub(crate) async fn do_put(
    channel: PeerChannel,
    messages: Messages,
    timeout: Duration,
) -> Result<pb::PublishAck> {
    let mut client = limited!(FlightServiceClient::new(channel));
    let mut request = Request::new(stream::iter(messages.0));
    request.set_timeout(timeout);
    let mut replies = client.do_put(request).await.map_err(|status| of_status(&status))?.into_inner();
    let mut ack: Option<Bytes> = None;
    while let Some(reply) = replies.message().await.map_err(|status| of_status(&status))? {
        ack = Some(reply.app_metadata).filter(|ack| !ack.is_empty()).or(ack);
    }
    let ack = ack
        .ok_or_else(|| Error::new(Code::Unavailable, "the head ended a publish without acknowledging it"))?;
    pb::PublishAck::decode(ack)
        .map_err(|e| Error::new(Code::Unavailable, format!("the acknowledgement cannot be understood: {e}")))
}

fn bad(what: &str) -> Error {
    Error::new(Code::BadRows, format!("the rows cannot be sent: {what}"))
}

#[cfg(test)]
mod tests {
    use super::super::merge::tests::{Row, part, rows};
    use super::*;
    use arrow_array::cast::AsArray;
    use arrow_flight::decode::FlightRecordBatchStream;
    use futures::TryStreamExt;

    #[tokio::test]
    async fn what_is_sent_is_what_any_flight_server_reads() {
        let world: Vec<Row> = (0..90_000).map(|i| (format!("S{}", i / 9_000), i, Some(i as f64))).collect();
        let part = part(&world, 40_000, &[]);
        let header = pb::PublishHeader { dataset: "a.b".into(), run_id: "r".into(), ..Default::default() };
        let messages = messages(&header, &part.schema, &part.batches).unwrap();
        assert!(messages.0.len() > 3, "large batches go as several messages");
        let cmd = messages.0[0].flight_descriptor.clone().unwrap().cmd;
        assert_eq!(pb::PublishHeader::decode(cmd).unwrap(), header);

        let sent =
            FlightRecordBatchStream::new_from_flight_data(stream::iter(messages.0.into_iter().map(Ok)));
        let got: Vec<RecordBatch> = sent.try_collect().await.unwrap();
        assert_eq!(got.iter().map(RecordBatch::num_rows).sum::<usize>(), world.len());
        let symbols: Vec<&str> =
            got.iter().flat_map(|b| b.column(0).as_string::<i32>().iter().flatten()).collect();
        assert!(symbols.iter().zip(rows(&part.batches)).all(|(a, b)| *a == b.0));
    }
}
