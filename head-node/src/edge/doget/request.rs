//! A `DoGet` request, read and checked.

use std::{
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use arrow_flight::Ticket;
use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;
use http_body_util::BodyExt;
use prost::Message;
use tonic::body::Body;
use trellis_fabric::channel::UNIT;
use trellis_proto::{
    Code, Error, Result, SeriesQuery,
    ticket::{self, TICKET_BYTES_MAX},
};

use crate::error;

/// Most bytes of a request: a ticket with the prefixes of gRPC and protobuf.
const FRAME_BYTES_MAX: usize = TICKET_BYTES_MAX + 64;

/// The unit of a request that names none.
const NOBODY: &str = "anonymous";

/// Longest name of a unit.
const UNIT_BYTES_MAX: usize = 128;

fn invalid(why: impl Into<String>) -> Error {
    Error::new(Code::InvalidRequest, why)
}

/// The unit that makes the request. Turns are shared between units.
pub(super) fn unit(headers: &HeaderMap) -> Result<Arc<str>> {
    match headers.get(&UNIT) {
        None => Ok(NOBODY.into()),
        Some(unit) => match unit.to_str() {
            Ok(unit) if !unit.is_empty() && unit.len() <= UNIT_BYTES_MAX => Ok(unit.into()),
            _ => Err(invalid(format!("the metadata {UNIT} is not a unit's name"))),
        },
    }
}

/// gRPC's timeout: up to eight digits and a unit of time.
pub(super) fn timeout(headers: &HeaderMap) -> Result<Option<Duration>> {
    let Some(value) = headers.get("grpc-timeout") else { return Ok(None) };
    let refuse = || invalid(format!("grpc-timeout {value:?} is not a time"));
    let text = value.to_str().map_err(|_| refuse())?;
    let (digits, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(refuse)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(refuse());
    }
    let n: u64 = digits.parse().map_err(|_| refuse())?;
    Ok(Some(match unit {
        "H" => Duration::from_secs(n * 3_600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return Err(refuse()),
    }))
}

/// `future`, or [`error::deadline`] if it takes longer than until `deadline`.
pub(super) async fn within<T, F>(deadline: Option<Instant>, future: Pin<&mut F>) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    match deadline {
        None => future.await,
        Some(at) => {
            tokio::time::timeout_at(at.into(), future).await.unwrap_or_else(|_| Err(error::deadline()))
        }
    }
}

/// Reads the one message of the request as a query.
pub(super) async fn query(body: Body) -> Result<SeriesQuery> {
    let message = message(body).await?;
    let ticket = Ticket::decode(message)
        .map_err(|error| invalid(format!("the request is no Flight ticket: {error}")))?;
    ticket::decode(&ticket.ticket)
}

async fn message(mut body: Body) -> Result<Bytes> {
    let mut bytes = Bytes::new();
    let mut more: Option<BytesMut> = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|status| Error::from_status(&status))?;
        let Ok(data) = frame.into_data() else { continue };
        let so_far = more.as_ref().map_or(bytes.len(), BytesMut::len);
        if so_far + data.len() > FRAME_BYTES_MAX {
            return Err(Error::new(Code::TooLarge, format!("a ticket has at most {TICKET_BYTES_MAX} bytes")));
        }
        if so_far == 0 {
            // nearly always the only frame
            bytes = data;
        } else {
            more.get_or_insert_with(|| BytesMut::from(bytes.as_ref())).extend_from_slice(&data);
        }
    }
    unframe(more.map_or(bytes, BytesMut::freeze))
}

fn unframe(mut bytes: Bytes) -> Result<Bytes> {
    if bytes.len() < 5 {
        return Err(invalid("the request has no message"));
    }
    if bytes.get_u8() != 0 {
        return Err(invalid("the request is compressed").hint("send requests uncompressed"));
    }
    let len = bytes.get_u32() as usize;
    if len != bytes.len() {
        return Err(invalid(format!(
            "the request's message should have {len} bytes and has {}",
            bytes.len()
        )));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn deadlines_are_read_in_all_of_grpcs_units() {
        let read = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", HeaderValue::from_static(text));
            timeout(&headers)
        };
        assert_eq!(read("2H").unwrap(), Some(Duration::from_secs(7_200)));
        assert_eq!(read("99999999S").unwrap(), Some(Duration::from_secs(99_999_999)));
        assert_eq!(read("250m").unwrap(), Some(Duration::from_millis(250)));
        assert_eq!(read("1n").unwrap(), Some(Duration::from_nanos(1)));
        for bad in ["", "S", "1", "1x", "123456789S", "-1S"] {
            assert_eq!(read(bad).unwrap_err().code(), Code::InvalidRequest, "{bad}");
        }
        assert_eq!(timeout(&HeaderMap::new()).unwrap(), None);
    }

    #[tokio::test]
    async fn a_body_that_is_not_one_ticket_is_refused() {
        async fn code(bytes: impl Into<Bytes>) -> Code {
            query(Body::new(http_body_util::Full::new(bytes.into()))).await.unwrap_err().code()
        }
        let framed = |message: &[u8]| {
            let mut bytes = vec![0];
            bytes.extend_from_slice(&(message.len() as u32).to_be_bytes());
            bytes.extend_from_slice(message);
            bytes
        };
        assert_eq!(code("").await, Code::InvalidRequest);
        assert_eq!(code("abc").await, Code::InvalidRequest);
        assert_eq!(code(framed(b"")).await, Code::InvalidRequest);
        assert_eq!(code(framed(&[0xff; 9])).await, Code::InvalidRequest);
        assert_eq!(code(framed(&Ticket::new("garbage").encode_to_vec())).await, Code::InvalidRequest);
        let mut compressed = framed(b"x");
        compressed[0] = 1;
        assert_eq!(code(compressed).await, Code::InvalidRequest);
        let mut short = framed(b"xyz");
        short.pop();
        assert_eq!(code(short).await, Code::InvalidRequest);
        assert_eq!(code(vec![0; FRAME_BYTES_MAX + 1]).await, Code::TooLarge);
        let ticket = Ticket::new(r#"{"dataset": "equities.daily", "symbols": ["AMZN"]}"#).encode_to_vec();
        let query = query(Body::new(http_body_util::Full::new(framed(&ticket).into()))).await.unwrap();
        assert_eq!(query.dataset.as_str(), "equities.daily");
    }
}
