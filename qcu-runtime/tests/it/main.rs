//! Tests that need processes or sockets. They are one binary, so that it is linked once.

// clippy allows it in test functions only, not in their helpers
#![allow(clippy::unwrap_used)]

mod client;
mod fake;
mod service;
mod supervisor;
