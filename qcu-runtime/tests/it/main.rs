//! What needs processes or sockets. One binary, so that it links once.

mod client;
mod fake;
mod service;
mod supervisor;
