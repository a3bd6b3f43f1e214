//! Following the shards: finding them, reading the log of each, and applying its changes to what the head holds.
//!
//! | file | subject |
//! | --- | --- |
//! | `peers` | one task for each peer that discovery names |
//! | `follower` | the shards, the holdings, and the names of the datasets that the head follows |
//! | `interest` | the datasets that the head follows: which it begins to follow, and which it leaves |
//! | `watch` | one session of a shard's log, and the check of what is held after a gap |
//! | `changes` | one change, applied to the chunks that are held |

mod changes;
mod follower;
mod interest;
mod peers;
mod watch;

pub(crate) use follower::{Follower, Interest};
#[cfg(test)]
pub(crate) use interest::IDLE_MAX;
pub(crate) use interest::LIVE_WAIT;
pub(crate) use peers::follow_peers;
