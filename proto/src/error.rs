//! The error of the grid, and the one table of its codes.
//!
//! An error has a message, the side that must act, whether a retry may help, and a hint. It travels as the `details` of a
//! gRPC status (an [`pb::ErrorDetail`]), so that a client gets the same error that the shard made. A plain gRPC client
//! sees the status code and the message. Several codes of the grid share one status code, so the details are needed to
//! read the code back. A status without details (of a proxy, of the transport) becomes the nearest code.
//!
//! A status travels in the headers of HTTP, whose size every receiver limits. A receiver that gets more breaks the connection, with all
//! other calls on it. So the sender cuts every text of an error.

use std::fmt;

use prost::Message;

use crate::{pb, range::TimeRange};

/// Most bytes of an error's message in a status, of its hint, and of each name of its place. The message and the hint are sent twice: once
/// for every client, where a byte may take three, and once in the details, where three bytes take four. Together all is less than 8 KiB,
/// the least limit among receivers (gRPC's own libraries; the limit of ours is 16 KiB).
const MESSAGE_BYTES_MAX: usize = 1_024;
/// See [`MESSAGE_BYTES_MAX`].
const HINT_BYTES_MAX: usize = 512;
/// See [`MESSAGE_BYTES_MAX`]. No name is longer.
const PLACE_BYTES_MAX: usize = 128;

/// Result with the grid's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

macro_rules! codes {
    ($($(#[$doc:meta])* $code:ident => $grpc:ident, $retry:expr, $exit:expr, $side:ident;)*) => {
        /// The kind of an error. `error.proto` says when each code is used.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Code { $($(#[$doc])* $code,)* }

        impl Code {
            /// Every code.
            pub const ALL: &'static [Code] = &[$(Code::$code,)*];

            /// Its gRPC status code.
            #[must_use]
            pub fn grpc(self) -> tonic::Code {
                match self { $(Code::$code => tonic::Code::$grpc,)* }
            }

            /// Whether the same request may succeed when tried again.
            #[must_use]
            pub fn retryable(self) -> bool {
                match self { $(Code::$code => $retry,)* }
            }

            /// The exit code of a process that ends with this error: 1 bug, 3 bad input, 4 unavailable, 5 fenced or
            /// conflicting.
            #[must_use]
            pub fn exit_code(self) -> u8 {
                match self { $(Code::$code => $exit,)* }
            }

            /// The side that must act, unless the error says otherwise.
            #[must_use]
            pub fn side(self) -> Side {
                match self { $(Code::$code => Side::$side,)* }
            }

            fn wire(self) -> pb::ErrorCode {
                match self { $(Code::$code => pb::ErrorCode::$code,)* }
            }

            fn from_wire(code: pb::ErrorCode) -> Option<Self> {
                match code { pb::ErrorCode::Unspecified => None, $(pb::ErrorCode::$code => Some(Code::$code),)* }
            }
        }
    };
}

codes! {
    /// The request makes no sense; the same one fails again.
    InvalidRequest => InvalidArgument, false, 3, Caller;
    /// No such dataset.
    UnknownDataset => NotFound, false, 3, Caller;
    /// The dataset has no such field.
    UnknownField => NotFound, false, 3, Caller;
    /// The dataset has no such symbol.
    UnknownSymbol => NotFound, false, 3, Caller;
    /// A limit is exceeded: ask for less.
    TooLarge => OutOfRange, false, 3, Caller;
    /// The caller may not do this.
    PermissionDenied => PermissionDenied, false, 3, Caller;
    /// The rows do not fit the dataset.
    BadRows => InvalidArgument, false, 3, Caller;
    /// The epoch is not the newest, or the caller does not hold the lease.
    Fenced => FailedPrecondition, false, 5, Caller;
    /// The request conflicts with existing data.
    Conflict => AlreadyExists, false, 5, Caller;
    /// A process or the store cannot be reached; try again, here or elsewhere.
    Unavailable => Unavailable, true, 4, Shard;
    /// The process sheds load; try again later.
    Overloaded => ResourceExhausted, true, 4, Head;
    /// The deadline has passed.
    DeadlineExceeded => DeadlineExceeded, true, 4, Head;
    /// The caller gave up.
    Cancelled => Cancelled, false, 4, Caller;
    /// The head's ownership map is out of date.
    StaleEpoch => Aborted, true, 4, Head;
    /// The store cannot take writes now.
    StorageFull => ResourceExhausted, true, 4, Shard;
    /// Stored data cannot be read.
    DataCorrupt => DataLoss, false, 1, Shard;
    /// A bug in Trellis.
    Internal => Internal, false, 1, Head;
    /// The dataset's fields have changed since the request was planned.
    StaleSchema => Aborted, true, 4, Head;
    /// An input of a run does not reach the session yet: run the session later.
    NotArrived => FailedPrecondition, true, 4, Caller;
}

impl Code {
    /// The nearest code for a gRPC status without details.
    #[must_use]
    pub fn from_grpc(code: tonic::Code) -> Self {
        match code {
            tonic::Code::InvalidArgument => Self::InvalidRequest,
            tonic::Code::NotFound => Self::UnknownDataset,
            tonic::Code::OutOfRange => Self::TooLarge,
            tonic::Code::PermissionDenied | tonic::Code::Unauthenticated => Self::PermissionDenied,
            tonic::Code::FailedPrecondition => Self::Fenced,
            tonic::Code::AlreadyExists => Self::Conflict,
            tonic::Code::Unavailable => Self::Unavailable,
            tonic::Code::ResourceExhausted => Self::Overloaded,
            tonic::Code::DeadlineExceeded => Self::DeadlineExceeded,
            tonic::Code::Cancelled => Self::Cancelled,
            tonic::Code::Aborted => Self::StaleEpoch,
            tonic::Code::DataLoss => Self::DataCorrupt,
            tonic::Code::Ok | tonic::Code::Unknown | tonic::Code::Unimplemented | tonic::Code::Internal => {
                Self::Internal
            }
        }
    }
}

/// The side that must act.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// The caller.
    Caller,
    /// The head node.
    Head,
    /// A shard.
    Shard,
    /// The researcher's code.
    Strategy,
}

/// An error: its code, message, hint, place and side. Cheap to clone, because a flight gives one to many waiters.
#[derive(Clone, PartialEq, Eq)]
pub struct Error(Box<Inner>);

#[derive(Clone, PartialEq, Eq)]
struct Inner {
    code: Code,
    side: Side,
    message: String,
    hint: String,
    dataset: String,
    symbol: String,
    shard: String,
    range: TimeRange,
}

impl Error {
    /// An error of `code`; `message` is one sentence with names, without a full stop.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            code,
            side: code.side(),
            message: message.into(),
            hint: String::new(),
            dataset: String::new(),
            symbol: String::new(),
            shard: String::new(),
            range: TimeRange::ALL,
        }))
    }

    /// Sets the hint: what the reader of the error can do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = hint.into();
        self
    }

    /// Sets the dataset that the error is about.
    #[must_use]
    pub fn dataset(mut self, dataset: impl AsRef<str>) -> Self {
        self.0.dataset = dataset.as_ref().to_owned();
        self
    }

    /// Sets the symbol that the error is about.
    #[must_use]
    pub fn symbol(mut self, symbol: impl AsRef<str>) -> Self {
        self.0.symbol = symbol.as_ref().to_owned();
        self
    }

    /// Sets the shard that the error is about.
    #[must_use]
    pub fn shard(mut self, shard: impl AsRef<str>) -> Self {
        self.0.shard = shard.as_ref().to_owned();
        self
    }

    /// Sets the range that the error is about.
    #[must_use]
    pub fn range(mut self, range: TimeRange) -> Self {
        self.0.range = range;
        self
    }

    /// Sets the side that must act, if it is not the code's usual side.
    #[must_use]
    pub fn side(mut self, side: Side) -> Self {
        self.0.side = side;
        self
    }

    /// The code.
    #[must_use]
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// The message: one sentence.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The hint; may be empty.
    #[must_use]
    pub fn hint_text(&self) -> &str {
        &self.0.hint
    }

    /// The dataset, symbol and shard that the error is about; empty if there is none.
    #[must_use]
    pub fn place(&self) -> (&str, &str, &str) {
        (&self.0.dataset, &self.0.symbol, &self.0.shard)
    }

    /// The side that must act.
    #[must_use]
    pub fn whose(&self) -> Side {
        self.0.side
    }

    /// Whether the same request may succeed when tried again.
    #[must_use]
    pub fn retryable(&self) -> bool {
        self.0.code.retryable()
    }

    /// Reads the error from a status. A status without details becomes the nearest code.
    #[must_use]
    pub fn from_status(status: &tonic::Status) -> Self {
        if let Ok(detail) = pb::ErrorDetail::decode(status.details())
            && let Some(error) = Self::from_detail(&detail)
        {
            return error;
        }
        let code = match status.code() {
            // a server of tonic sends this when the caller's deadline has passed
            tonic::Code::Cancelled if status.message() == tonic::TimeoutExpired(()).to_string() => {
                Code::DeadlineExceeded
            }
            code => Code::from_grpc(code),
        };
        Self::new(code, status.message())
    }

    fn from_detail(detail: &pb::ErrorDetail) -> Option<Self> {
        let code = Code::from_wire(detail.code())?;
        let side = match detail.side() {
            pb::ErrorSide::Unspecified => code.side(),
            pb::ErrorSide::Caller => Side::Caller,
            pb::ErrorSide::Head => Side::Head,
            pb::ErrorSide::Shard => Side::Shard,
            pb::ErrorSide::Strategy => Side::Strategy,
        };
        Some(
            Self::new(code, detail.message.clone())
                .side(side)
                .hint(detail.hint.clone())
                .dataset(&detail.dataset)
                .symbol(&detail.symbol)
                .shard(&detail.shard)
                .range(TimeRange { start: detail.start_ns, end: detail.end_ns }),
        )
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        if !self.0.hint.is_empty() {
            write!(f, "; {}", self.0.hint)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} ({:?}): {self}", self.0.code, self.0.side)?;
        for (what, value) in
            [("dataset", &self.0.dataset), ("symbol", &self.0.symbol), ("shard", &self.0.shard)]
        {
            if !value.is_empty() {
                write!(f, " {what}={value}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

impl From<Error> for pb::ErrorDetail {
    fn from(error: Error) -> Self {
        let Inner { code, side, message, hint, dataset, symbol, shard, range } = *error.0;
        let side = match side {
            Side::Caller => pb::ErrorSide::Caller,
            Side::Head => pb::ErrorSide::Head,
            Side::Shard => pb::ErrorSide::Shard,
            Side::Strategy => pb::ErrorSide::Strategy,
        };
        Self {
            code: code.wire().into(),
            side: side.into(),
            message,
            hint,
            dataset,
            symbol,
            shard,
            start_ns: range.start,
            end_ns: range.end,
        }
    }
}

impl From<pb::ErrorDetail> for Error {
    fn from(detail: pb::ErrorDetail) -> Self {
        Self::from_detail(&detail).unwrap_or_else(|| Self::new(Code::Internal, detail.message))
    }
}

/// The text, or its beginning and its length if it has more than `most` bytes.
fn cut(text: &mut String, most: usize) {
    if text.len() <= most {
        return;
    }
    let left_out = format!(" ... ({} bytes)", text.len());
    text.truncate(text.floor_char_boundary(most - left_out.len()));
    text.push_str(&left_out);
}

impl From<Error> for tonic::Status {
    /// Cuts the texts, so that they fit into the headers of HTTP.
    fn from(mut error: Error) -> Self {
        let Inner { message, hint, dataset, symbol, shard, .. } = &mut *error.0;
        cut(message, MESSAGE_BYTES_MAX);
        cut(hint, HINT_BYTES_MAX);
        for place in [dataset, symbol, shard] {
            cut(place, PLACE_BYTES_MAX);
        }
        let (code, text) = (error.code().grpc(), error.to_string());
        Self::with_details(code, text, pb::ErrorDetail::from(error).encode_to_vec().into())
    }
}

impl From<tonic::Status> for Error {
    fn from(status: tonic::Status) -> Self {
        Self::from_status(&status)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The least limit of a receiver, counted as HTTP/2 does: 32 bytes for each header beside its name and value.
    const HEADERS_BYTES_MAX: usize = 8 << 10;

    fn headers_bytes(status: tonic::Status) -> usize {
        let response = status.into_http::<()>();
        response.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum()
    }

    fn text() -> impl Strategy<Value = String> {
        // with bytes that take three, as every byte that is not plain ASCII
        let part = prop_oneof![
            Just("column_1, "),
            Just("\u{e9}"),
            Just("\u{1f600}"),
            Just("%"),
            Just(" "),
            Just("\n")
        ];
        (prop::collection::vec(part, 0..40), 0usize..600)
            .prop_map(|(parts, times)| parts.concat().repeat(times))
    }

    proptest! {
        #[test]
        fn an_error_of_any_length_fits_into_the_headers_of_every_receiver(
            message in text(), hint in text(), dataset in text(), symbol in text(), shard in text(),
        ) {
            let range = TimeRange { start: Some(i64::MIN), end: Some(i64::MAX) };
            let error = Error::new(Code::BadRows, message.clone())
                .hint(hint.clone()).dataset(&dataset).symbol(&symbol).shard(&shard).range(range);
            let status = tonic::Status::from(error.clone());
            let read = Error::from_status(&status);
            prop_assert!(headers_bytes(status) <= HEADERS_BYTES_MAX);
            prop_assert_eq!((read.code(), read.whose()), (error.code(), error.whose()));
            for (whole, read, most) in [(&message, read.message(), MESSAGE_BYTES_MAX), (&hint, read.hint_text(), HINT_BYTES_MAX)] {
                let whole_bytes = format!(" ... ({} bytes)", whole.len());
                match read.strip_suffix(&whole_bytes) {
                    Some(beginning) if whole.len() > most => prop_assert!(whole.starts_with(beginning) && read.len() > most - 4),
                    _ => prop_assert_eq!(whole, read),
                }
            }
        }
    }

    #[test]
    fn the_limits_leave_room_for_the_worst_text() {
        let long = |bytes: usize| "\u{7f}".repeat(2 * bytes);
        let error = Error::new(Code::BadRows, long(MESSAGE_BYTES_MAX))
            .hint(long(HINT_BYTES_MAX))
            .dataset(long(PLACE_BYTES_MAX))
            .symbol(long(PLACE_BYTES_MAX))
            .shard(long(PLACE_BYTES_MAX));
        let bytes = headers_bytes(error.into());
        assert!((7_000..=HEADERS_BYTES_MAX).contains(&bytes), "{bytes}");
    }

    #[test]
    fn every_code_survives_the_way_through_grpc_and_the_wire() {
        for &code in Code::ALL {
            let error = Error::new(code, "what happened")
                .hint("what to do")
                .dataset("equities.daily")
                .symbol("AMZN")
                .shard("shard-1")
                .range(TimeRange { start: Some(-1), end: Some(5) })
                .side(Side::Strategy);
            let status = tonic::Status::from(error.clone());
            assert_eq!(status.code(), code.grpc());
            assert_eq!(Error::from(status), error);
            assert_eq!(Error::from(pb::ErrorDetail::from(error.clone())), error);
        }
    }

    #[test]
    fn every_wire_code_but_unspecified_is_ours() {
        let wire = (0..i32::MAX).map_while(|i| pb::ErrorCode::try_from(i).ok());
        assert_eq!(wire.count(), Code::ALL.len() + 1);
    }

    #[test]
    fn a_deadline_that_passed_at_the_server_is_a_deadline() {
        let status = tonic::Status::cancelled(tonic::TimeoutExpired(()).to_string());
        assert_eq!(Error::from(status).code(), Code::DeadlineExceeded);
    }

    #[test]
    fn a_status_of_somebody_else_keeps_its_retryability() {
        for code in [tonic::Code::Unavailable, tonic::Code::ResourceExhausted, tonic::Code::DeadlineExceeded]
        {
            assert!(Error::from(tonic::Status::new(code, "proxy")).retryable(), "{code:?}");
        }
        for code in [tonic::Code::InvalidArgument, tonic::Code::Unimplemented, tonic::Code::Internal] {
            assert!(!Error::from(tonic::Status::new(code, "proxy")).retryable(), "{code:?}");
        }
    }

    #[test]
    fn the_message_ends_with_what_to_do() {
        let error =
            Error::new(Code::UnknownField, "equities.daily has no field clsoe").hint("did you mean close?");
        assert_eq!(error.to_string(), "equities.daily has no field clsoe; did you mean close?");
    }
}
