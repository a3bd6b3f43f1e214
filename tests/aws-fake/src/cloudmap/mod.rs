//! Cloud Map: its calls, and what DNS would answer.

mod api;
mod discover;

pub(crate) use api::handle;
pub(crate) use discover::Asked;
