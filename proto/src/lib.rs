//! The contract of the grid: the messages between clients, head nodes, shards and units, and the pure code that all of them
//! share.
//!
//! * [`pb`]: the wire types, generated from `proto/trellis/v1/*.proto`, with gRPC clients and servers. Read the .proto
//!   files first: they comment every field, unit and limit.
//! * [`name`], [`time`], `range`, [`query`], [`spec`]: strict types. A wire type is checked once, on
//!   receipt, by `TryFrom`; a value made inside a process is valid by construction.
//! * [`fetch`]: a shard's replies to a fetch, checked against the request.
//! * [`ticket`]: `SeriesRequest` as a Flight ticket, protobuf or JSON.
//! * [`error`]: the error of the grid, and the one table of its codes.
//! * [`runs`]: the run ledger's record of each kind of write: pure.
//! * [`ownership`]: which shard owns each part of a series, from the regions that the shards declare: pure.
//! * [`placement`]: which heads serve a dataset, which of them serves a series, and which shard is the dataset's home: pure, with
//!   golden vectors.

pub mod error;
pub mod fetch;
pub mod name;
pub mod ownership;
pub mod pb;
pub mod placement;
pub mod query;
mod range;
pub mod runs;
pub mod spec;
pub mod ticket;
pub mod time;

pub use error::{Code, Error, Result, Side};
pub use name::{DatasetName, FieldName, Symbol};
pub use query::{SeriesQuery, Symbols};
pub use range::TimeRange;
pub use spec::{DatasetSpec, FieldType};
pub use time::ChunkSpan;

/// The compiled contract, for gRPC reflection.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!("../generated/trellis.v1.bin");
