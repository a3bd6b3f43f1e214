//! The shard's process.
fn main() {}
