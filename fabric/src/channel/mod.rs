//! Channels to peers, tuned alike for every client of the grid.
//!
//! The *receiver* announces HTTP/2 flow control and frame sizes. Series flow to clients, so the client's settings decide how fast
//! answers move: with 16 connections and default frames, bulk answers reach 0.56 of what loopback TCP moves; with large frames
//! and windows they reach 0.99. A window of 64 KiB brings a single connection down to 0.22.
//!
//! A [`Pool`] holds the connections to one peer. One HTTP/2 connection is one task on one core at either end, so parallel bulk
//! reads gain from several connections, and small reads do not. The pool opens a further connection only under load.
//!
//! | file | subject |
//! | --- | --- |
//! | `options` | limits and times, each with its reason |
//! | `connect` | lazy and immediate channels to an address |
//! | `traced` | trace context and unit on every call; how a lost connection is told |
//! | `load` | bytes in flight by connection, and the choice of a connection |
//! | `pool` | the connections to one peer |
//! | `failure` | why a peer cannot be reached |

mod connect;
mod failure;
mod load;
mod options;
mod pool;
mod traced;

pub use connect::{PeerChannel, connect, connect_now, connect_traced};
pub use failure::{Reason, Unreachable};
pub use load::CONNECTIONS_MAX;
pub use options::{
    CONNECT_TIMEOUT, CONNECTION_WINDOW_BYTES, ChannelOptions, FRAME_BYTES_MAX, KEEPALIVE_INTERVAL,
    KEEPALIVE_TIMEOUT, MESSAGE_BYTES_MAX, STREAM_WINDOW_BYTES,
};
pub use pool::Pool;
pub use traced::{Call, Traced};

pub use crate::rpc::UNIT;

/// Puts the grid's message limits on a generated client or server: `limited!(ShardClient::new(channel))`.
#[macro_export]
macro_rules! limited {
    ($end:expr) => {
        $end.max_decoding_message_size($crate::channel::MESSAGE_BYTES_MAX)
            .max_encoding_message_size($crate::channel::MESSAGE_BYTES_MAX)
    };
}
