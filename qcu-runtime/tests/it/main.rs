//! What needs processes or sockets. One binary, so that it links once.

// clippy allows it in test functions only, not in their helpers
#![allow(clippy::unwrap_used)]

mod client;
mod fake;
mod service;
mod supervisor;
