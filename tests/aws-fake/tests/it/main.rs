//! The fake, through its one door.

#![allow(clippy::unwrap_used)] // a test may panic

mod client;
mod create;
mod life;
mod more;
mod others;
mod scale;
