//! What the parts of the crate do over real sockets. One binary, because linking is most of its cost;
//! telemetry has binaries of its own, because it is installed once per process.
#![allow(missing_docs, clippy::unwrap_used)] // a test may panic

mod discovery;
mod knot;
mod serve;
#[path = "../service/mod.rs"]
mod service;
