//! One `DoGet` on one head: the request, the stream, Arrow, the receipt.

use std::{collections::HashMap, future::poll_fn, pin::pin, sync::Arc, time::Duration};

use arrow_array::ArrayRef;
use arrow_buffer::Buffer;
use arrow_ipc::{
    MessageHeader, convert::fb_to_schema, reader::RecordBatchDecoder, reader::read_dictionary,
    root_as_message,
};
use arrow_schema::{ArrowError, SchemaRef};
use bytes::{BufMut, Bytes, BytesMut};
use http_body::Body as _;
use prost::Message as _;
use tonic::{Status, body::Body, metadata::MetadataMap};
use tower::Service;
use trellis_proto::{Code, Error, Result, SeriesQuery, pb, ticket};

use super::{
    deframe::Deframer,
    deframe::Frame,
    failure::{of_status, of_transport},
    merge::Part,
};

const DO_GET: &str = "/arrow.flight.protocol.FlightService/DoGet";

/// Reads the whole answer of one head. Dropping the future cancels the call at the head.
///
/// `channel` carries the call, and `metadata` goes with it. The head learns that the client wants the answer within `timeout`; the
/// caller enforces the timeout.
///
/// # Errors
/// The head's own error, or `Unavailable` for a stream that breaks or ends before its receipt.
pub(crate) async fn do_get<S>(
    mut channel: S,
    metadata: MetadataMap,
    query: &SeriesQuery,
    timeout: Duration,
) -> Result<(Part, pb::Receipt)>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Error: std::error::Error + 'static,
{
    let request = request(metadata, query, timeout)?;
    poll_fn(|cx| channel.poll_ready(cx)).await.map_err(|e| of_transport(&e))?;
    let response = channel.call(request).await.map_err(|e| of_transport(&e))?;
    if response.status() != http::StatusCode::OK {
        return Err(Error::new(Code::Unavailable, format!("the head answers HTTP {}", response.status()))
            .hint("is that address a head node's?"));
    }
    if let Some(status) = Status::from_header_map(response.headers()) {
        // a head that fails before the first message sends the status in the headers
        ok(&status)?;
    }

    let mut body = pin!(response.into_body());
    let mut deframer = Deframer::new();
    let mut decoder = Decoder::default();
    let mut status = None;
    while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        let frame = frame.map_err(|status| of_status(&status))?;
        match frame.into_data() {
            Ok(mut data) => {
                while let Some(message) = deframer.next(&mut data)? {
                    decoder.push(message)?;
                }
            }
            Err(frame) => status = frame.trailers_ref().and_then(Status::from_header_map).or(status),
        }
    }
    let broken = || Error::new(Code::Unavailable, "the head's answer broke off");
    ok(&status.ok_or_else(broken)?)?;
    if !deframer.is_between_messages() {
        return Err(broken());
    }
    decoder.finish()
}

fn request(metadata: MetadataMap, query: &SeriesQuery, timeout: Duration) -> Result<http::Request<Body>> {
    let ticket = arrow_flight::Ticket { ticket: ticket::encode(query) };
    let mut message = BytesMut::with_capacity(5 + ticket.encoded_len());
    let length = u32::try_from(ticket.encoded_len())
        .map_err(|_| Error::new(Code::TooLarge, "the list of symbols is too long for one request"))?;
    message.put_u8(0);
    message.put_u32(length);
    let internal = |e: &dyn std::fmt::Display| Error::new(Code::Internal, format!("building a request: {e}"));
    ticket.encode(&mut message).map_err(|e| internal(&e))?;

    let mut request = http::Request::new(Body::new(Once(Some(message.freeze()))));
    *request.method_mut() = http::Method::POST;
    *request.version_mut() = http::Version::HTTP_2;
    *request.uri_mut() = http::Uri::from_static(DO_GET);
    *request.headers_mut() = metadata.into_headers();
    let headers = request.headers_mut();
    headers.insert(http::header::TE, http::HeaderValue::from_static("trailers"));
    headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/grpc"));
    // gRPC allows at most eight digits
    let timeout = format!("{}m", timeout.as_millis().clamp(1, 99_999_999));
    let timeout = http::HeaderValue::from_str(&timeout).map_err(|e| internal(&e))?;
    headers.insert("grpc-timeout", timeout);
    Ok(request)
}

/// A request body of one frame.
struct Once(Option<Bytes>);

impl http_body::Body for Once {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Status>>> {
        std::task::Poll::Ready(self.0.take().map(|bytes| Ok(http_body::Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::SizeHint::with_exact(self.0.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}

fn ok(status: &Status) -> Result<()> {
    if status.code() == tonic::Code::Ok { Ok(()) } else { Err(of_status(status)) }
}

/// Arrow messages in, batches and the receipt out.
#[derive(Default)]
struct Decoder {
    schema: Option<SchemaRef>,
    dictionaries: HashMap<i64, ArrayRef>,
    batches: Vec<arrow_array::RecordBatch>,
    receipt: Option<pb::Receipt>,
}

impl Decoder {
    fn push(&mut self, frame: Frame) -> Result<()> {
        if self.receipt.is_some() {
            return Err(garbled("something after the receipt"));
        }
        if !frame.header.is_empty() {
            self.ipc(&frame.header, frame.body.unwrap_or_else(|| Buffer::from(&[0_u8; 0])))?;
        }
        if !frame.metadata.is_empty() {
            let receipt = pb::Receipt::decode(&frame.metadata[..]).map_err(|e| garbled(&e.to_string()))?;
            self.receipt = Some(receipt);
        }
        Ok(())
    }

    fn ipc(&mut self, header: &[u8], body: Buffer) -> Result<()> {
        let arrow = |e: ArrowError| garbled(&e.to_string());
        let message = root_as_message(header).map_err(|e| garbled(&e.to_string()))?;
        let version = message.version();
        match message.header_type() {
            MessageHeader::Schema => {
                let schema = message.header_as_schema().ok_or_else(|| garbled("a schema without one"))?;
                self.schema = Some(Arc::new(fb_to_schema(schema)));
            }
            MessageHeader::DictionaryBatch => {
                let batch = message.header_as_dictionary_batch().filter(|batch| batch.data().is_some());
                let batch = batch.ok_or_else(|| garbled("a dictionary without values"))?;
                let schema = self.schema()?;
                read_dictionary(&body, batch, &schema, &mut self.dictionaries, &version).map_err(arrow)?;
            }
            MessageHeader::RecordBatch => {
                let batch = message.header_as_record_batch().ok_or_else(|| garbled("a batch without one"))?;
                let batch =
                    RecordBatchDecoder::try_new(&body, batch, self.schema()?, &self.dictionaries, &version)
                        .and_then(RecordBatchDecoder::read_record_batch)
                        .map_err(arrow)?;
                // the last message carries the receipt and may have no rows
                if batch.num_rows() > 0 {
                    self.batches.push(batch);
                }
            }
            other => return Err(garbled(&format!("an Arrow message of kind {other:?}"))),
        }
        Ok(())
    }

    fn schema(&self) -> Result<SchemaRef> {
        self.schema.clone().ok_or_else(|| garbled("rows before the schema"))
    }

    fn finish(self) -> Result<(Part, pb::Receipt)> {
        let schema = self.schema()?;
        let receipt = self.receipt.ok_or_else(|| {
            // only the receipt says that the answer is whole
            Error::new(Code::Unavailable, "the head's answer ended without a receipt")
        })?;
        let rows: usize = self.batches.iter().map(arrow_array::RecordBatch::num_rows).sum();
        if receipt.rows != rows as u64 {
            let why = format!("{rows} rows arrived, but the receipt says {}", receipt.rows);
            return Err(garbled(&why));
        }
        Ok((Part { schema, batches: self.batches }, receipt))
    }
}

fn garbled(what: &str) -> Error {
    Error::new(Code::Unavailable, format!("the head's answer cannot be understood: {what}"))
}
