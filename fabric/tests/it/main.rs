//! Tests of the crate over real sockets. They are one binary, because linking is most of the cost. Telemetry has its own
//! binaries, because it is installed once per process.
#![allow(missing_docs, clippy::unwrap_used)] // a test may panic

mod cloud_map;
mod discovery;
mod knot;
mod moto;
mod relay;
mod serve;
#[path = "../service/mod.rs"]
mod service;
mod skip;
mod witness;
