//! A shard over loopback gRPC: one binary, because linking it costs more than running it.

#![allow(clippy::unwrap_used, reason = "a test may panic, and so may its helpers")]

mod changes;
mod commits;
mod crash;
mod object_store;
mod reads;
mod support;
mod watching;
