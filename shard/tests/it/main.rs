//! Tests of a shard over loopback gRPC. They are one binary, because linking takes longer than running.

#![allow(clippy::unwrap_used, reason = "a test may panic, and so may its helpers")]

mod changes;
mod commits;
mod crash;
mod object_store;
mod reads;
mod support;
mod watching;
