//! The other end: the shards that this head knows, how each is called, and the map of their ownership. Knows no series.
//!
//! | file | subject |
//! | --- | --- |
//! | `shard` | one shard: its name and address, its link, its calls, its description of itself |
//! | `following` | the datasets of one shard whose changes this head is told of |
//! | `registry` | all shards, the ownership map over them, and the signal that something has changed |

mod following;
mod registry;
mod shard;

pub(crate) use following::{Stage, Wish, left};
pub(crate) use registry::Shards;
pub(crate) use shard::{Generation, Link, Shard};
