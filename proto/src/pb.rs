//! Generated wire types, clients and servers. `proto/trellis/v1/*.proto` is their documentation.
#![allow(missing_docs, unreachable_pub, clippy::all)]

tonic::include_proto!("trellis.v1");
