//! Wire types, clients and servers. `proto/trellis/v1/*.proto` is their documentation.
//!
//! They are generated, and kept in the tree: the compiler of .proto files and its dependencies take 40 CPU seconds of each first build.
//! `tests/wire.rs` checks that they are what the .proto files give, and remakes them.
#![allow(missing_docs, unreachable_pub, clippy::all)]

include!("../generated/trellis.v1.rs");
