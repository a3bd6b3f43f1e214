//! The contract of the grid: what travels between clients, head nodes, shards and units, and nothing that runs.
//!
//! * [`pb`]: the wire types, generated from `proto/trellis/v1/*.proto` (read those first: every field, unit and limit
//!   is commented there), with gRPC clients and servers.
//! * [`name`], [`time`], `range`, [`query`], [`spec`]: strict types. What arrives is checked once, on receipt, by `TryFrom` the
//!   wire type; what is made inside is right by construction.
//! * [`fetch`]: what shards answer, checked against what they were asked.
//! * [`ticket`]: `SeriesRequest` as a Flight ticket, protobuf or JSON.
//! * [`error`]: the one error, and the one table between our codes and gRPC's.
//! * [`runs`]: the record that the run ledger has of each kind of write: pure.
//! * [`placement`]: which head serves a series and which shard owns it: pure, with golden vectors.

pub mod error;
pub mod fetch;
pub mod name;
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

/// The compiled contract, for gRPC reflection and the golden test.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/trellis.v1.bin"));
