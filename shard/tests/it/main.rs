//! A shard over loopback gRPC: one binary, because linking it costs more than running it.

mod commits;
mod crash;
mod reads;
mod support;
mod watching;
