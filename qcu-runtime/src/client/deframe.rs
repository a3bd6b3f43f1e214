//! Takes the bytes of a `DoGet` response body apart: gRPC length prefixes, `FlightData` fields, Arrow bodies. Pure.
//!
//! Why not tonic's codec: it collects each message in one growing buffer, which copies every byte. The body then lies at an arbitrary
//! place of that buffer, and Arrow copies it again if it is misaligned. This parser copies the body of a message exactly once, from
//! the transport's frames into a buffer of its exact size, aligned for Arrow; all arrays share that buffer. The price is a small
//! parser for one message type of four fields. It skips unknown fields, as protobuf demands.

use arrow_buffer::{Buffer, MutableBuffer};
use bytes::{Buf, Bytes};
use trellis_proto::{Code, Error, Result};

/// Longest message; every server of the grid keeps to it.
pub(crate) const MESSAGE_BYTES_MAX: usize = trellis_fabric::channel::MESSAGE_BYTES_MAX;
/// Longest field other than the body: an Arrow header (a few hundred bytes for each column) or a receipt.
const SMALL_BYTES_MAX: usize = 4 << 20;

const DATA_HEADER: u64 = 2;
const APP_METADATA: u64 = 3;
const DATA_BODY: u64 = 1000;

/// One `FlightData`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) header: Vec<u8>,
    pub(crate) metadata: Vec<u8>,
    pub(crate) body: Option<Buffer>,
}

/// Takes pieces of any size and gives whole frames.
#[derive(Debug)]
pub(crate) struct Deframer {
    state: State,
    frame: Frame,
    /// Bytes of the current message that are not consumed yet.
    left: usize,
}

#[derive(Debug)]
enum State {
    /// Collecting the five bytes before a message.
    Prefix { bytes: [u8; 5], filled: usize },
    /// Reading a field's key.
    Key(Varint),
    /// Reading the length of a length-delimited field.
    Length { field: u64, length: Varint },
    /// Copying a short field.
    Small { field: u64, need: usize, bytes: Vec<u8> },
    /// Copying the body into its final place.
    Body { need: usize, bytes: MutableBuffer },
    /// Passing over an unknown field.
    Skip { need: usize },
    /// Passing over an unknown varint.
    SkipVarint(Varint),
}

#[derive(Debug, Default, Clone, Copy)]
struct Varint {
    value: u64,
    shift: u32,
}

impl Varint {
    /// Takes one byte. Returns the value after the last byte.
    fn push(&mut self, byte: u8) -> Result<Option<u64>> {
        if self.shift > 63 {
            return Err(corrupt("a varint of more than ten bytes"));
        }
        self.value |= u64::from(byte & 0x7f) << self.shift;
        self.shift += 7;
        Ok((byte & 0x80 == 0).then_some(self.value))
    }
}

fn corrupt(what: &str) -> Error {
    // the fault lies in a proxy or a broken peer, not in stored data, so another head may answer well
    Error::new(Code::Unavailable, format!("the head node's answer cannot be understood: {what}"))
}

impl Deframer {
    pub(crate) fn new() -> Self {
        Self { state: State::Prefix { bytes: [0; 5], filled: 0 }, frame: Frame::default(), left: 0 }
    }

    /// Whether the input may end here.
    pub(crate) fn is_between_messages(&self) -> bool {
        matches!(self.state, State::Prefix { filled: 0, .. })
    }

    /// Consumes from `input` up to the end of a frame, or all of it. Call again with the same `input` after a frame.
    ///
    /// # Errors
    /// Input that no peer of the grid sends: compressed messages, messages over the limit, malformed protobuf.
    pub(crate) fn next(&mut self, input: &mut Bytes) -> Result<Option<Frame>> {
        loop {
            // the length says where a message ends; it must not end inside a field
            if self.left == 0 && matches!(self.state, State::Key(Varint { shift: 0, .. })) {
                self.state = State::Prefix { bytes: [0; 5], filled: 0 };
                return Ok(Some(std::mem::take(&mut self.frame)));
            }
            if input.is_empty() {
                return Ok(None);
            }
            self.step(input)?;
        }
    }

    fn step(&mut self, input: &mut Bytes) -> Result<()> {
        let before = input.len();
        let counted = !matches!(self.state, State::Prefix { .. });
        match &mut self.state {
            State::Prefix { bytes, filled } => {
                let n = (5 - *filled).min(input.len());
                input.copy_to_slice(&mut bytes[*filled..*filled + n]);
                *filled += n;
                if *filled == 5 {
                    if bytes[0] != 0 {
                        return Err(corrupt("a compressed message, which was not asked for"));
                    }
                    let length = u32::from_be_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]) as usize;
                    if length > MESSAGE_BYTES_MAX {
                        return Err(corrupt(&format!("a message of {length} bytes")));
                    }
                    self.left = length;
                    self.state = State::Key(Varint::default());
                }
            }
            State::Key(key) => {
                if let Some(key) = key.push(input.get_u8())? {
                    let field = key >> 3;
                    self.state = match key & 7 {
                        2 => State::Length { field, length: Varint::default() },
                        _ if matches!(field, DATA_HEADER | APP_METADATA | DATA_BODY) => {
                            return Err(corrupt("a field of FlightData has another type"));
                        }
                        0 => State::SkipVarint(Varint::default()),
                        1 => State::Skip { need: 8 },
                        5 => State::Skip { need: 4 },
                        other => return Err(corrupt(&format!("protobuf wire type {other}"))),
                    };
                }
            }
            State::Length { field, length } => {
                let field = *field;
                if let Some(length) = length.push(input.get_u8())? {
                    let rest = self.left - (before - input.len());
                    let need = usize::try_from(length).ok().filter(|need| *need <= rest);
                    let need = need.ok_or_else(|| corrupt("a field longer than its message"))?;
                    self.state = match field {
                        DATA_BODY => State::Body { need, bytes: MutableBuffer::with_capacity(need) },
                        DATA_HEADER | APP_METADATA if need > SMALL_BYTES_MAX => {
                            return Err(corrupt(&format!("a header of {need} bytes")));
                        }
                        DATA_HEADER | APP_METADATA => {
                            State::Small { field, need, bytes: Vec::with_capacity(need) }
                        }
                        _ => State::Skip { need },
                    };
                }
            }
            State::Small { need, bytes, .. } => {
                let n = (*need - bytes.len()).min(input.len());
                bytes.extend_from_slice(&input[..n]);
                input.advance(n);
            }
            State::Body { need, bytes } => {
                let n = (*need - bytes.len()).min(input.len());
                bytes.extend_from_slice(&input[..n]);
                input.advance(n);
            }
            State::Skip { need } => {
                let n = (*need).min(input.len());
                input.advance(n);
                *need -= n;
            }
            State::SkipVarint(value) => {
                if value.push(input.get_u8())?.is_some() {
                    self.state = State::Key(Varint::default());
                }
            }
        }
        if counted {
            let used = before - input.len();
            self.left = self.left.checked_sub(used).ok_or_else(|| corrupt("a field cut by its message"))?;
        }
        self.close_field();
        Ok(())
    }

    /// Moves a complete field into the frame, also an empty one.
    fn close_field(&mut self) {
        let done = match &self.state {
            State::Small { need, bytes, .. } => bytes.len() == *need,
            State::Body { need, bytes } => bytes.len() == *need,
            State::Skip { need } => *need == 0,
            _ => false,
        };
        if !done {
            return;
        }
        match std::mem::replace(&mut self.state, State::Key(Varint::default())) {
            State::Small { field: DATA_HEADER, bytes, .. } => self.frame.header = bytes,
            State::Small { bytes, .. } => self.frame.metadata = bytes,
            State::Body { bytes, .. } => self.frame.body = Some(bytes.into()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use arrow_flight::{FlightData, FlightDescriptor};
    use bytes::BufMut;
    use proptest::prelude::*;
    use prost::Message;

    use super::*;

    fn wire(messages: &[FlightData]) -> Vec<u8> {
        let mut out = Vec::new();
        for message in messages {
            out.put_u8(0);
            out.put_u32(message.encoded_len() as u32);
            message.encode(&mut out).unwrap();
        }
        out
    }

    fn deframe(wire: &[u8], cuts: &[usize]) -> Result<Vec<Frame>> {
        let mut deframer = Deframer::new();
        let (mut frames, mut from) = (vec![], 0);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (wire.len() + 1)).collect();
        cuts.push(wire.len());
        cuts.sort_unstable();
        for cut in cuts {
            let mut chunk = Bytes::copy_from_slice(&wire[from..cut]);
            from = cut;
            while let Some(frame) = deframer.next(&mut chunk)? {
                frames.push(frame);
            }
        }
        assert!(deframer.is_between_messages());
        Ok(frames)
    }

    fn message() -> impl Strategy<Value = FlightData> {
        let bytes = |n| proptest::collection::vec(any::<u8>(), 0..n);
        (bytes(40), bytes(20), bytes(3_000), any::<bool>()).prop_map(
            |(header, metadata, body, descriptor)| FlightData {
                flight_descriptor: descriptor.then(|| FlightDescriptor::new_cmd(vec![7; 300])),
                data_header: header.into(),
                app_metadata: metadata.into(),
                data_body: body.into(),
            },
        )
    }

    proptest! {
        #[test]
        fn frames_are_the_messages_however_the_bytes_are_cut(
            messages in proptest::collection::vec(message(), 0..5),
            cuts in proptest::collection::vec(any::<usize>(), 0..40),
        ) {
            let frames = deframe(&wire(&messages), &cuts).unwrap();
            prop_assert_eq!(frames.len(), messages.len());
            for (frame, message) in frames.iter().zip(&messages) {
                prop_assert_eq!(&frame.header[..], &message.data_header[..]);
                prop_assert_eq!(&frame.metadata[..], &message.app_metadata[..]);
                let body = frame.body.as_ref().map_or(&[][..], |body| body.as_slice());
                prop_assert_eq!(body, &message.data_body[..]);
                if let Some(body) = &frame.body {
                    prop_assert_eq!(body.as_ptr() as usize % 64, 0);
                }
            }
        }

        #[test]
        fn garbage_is_refused_or_waited_for_but_never_panics(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut deframer = Deframer::new();
            let mut input = Bytes::from(bytes);
            while let Ok(Some(_)) = deframer.next(&mut input) {}
        }
    }

    #[test]
    fn a_compressed_or_oversized_message_is_refused() {
        for prefix in [[1, 0, 0, 0, 0], [0, 0xff, 0xff, 0xff, 0xff]] {
            let mut input = Bytes::copy_from_slice(&prefix);
            assert!(Deframer::new().next(&mut input).is_err());
        }
    }
}
