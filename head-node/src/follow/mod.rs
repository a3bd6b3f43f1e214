//! Following the shards: finding them, reading the log of each, and applying its changes to what the head holds.
//!
//! | file | subject |
//! | --- | --- |
//! | `peers` | one task for each peer that discovery names |
//! | `watch` | one session of a shard's log, and the check of what is held after a gap |
//! | `changes` | one change, applied to the chunks that are held |

mod changes;
mod peers;
mod watch;

pub(crate) use peers::follow_peers;
pub(crate) use watch::Follower;
