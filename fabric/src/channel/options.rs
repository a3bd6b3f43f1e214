//! How channels are tuned.

use std::{sync::Arc, time::Duration};

/// Largest message in either direction, on every client and server. Data goes in messages of 256 KiB to 1
/// MiB; this only has to be above the largest single row batch a client may publish, and low enough that one
/// peer cannot make us allocate without bound. tonic's own default for receiving is 4 MiB.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// One `writev` of the sender per frame: large frames cost fewer system calls. 256 KiB already gives most of
/// it; 1 MiB is a whole message of ours in one frame.
pub const FRAME_BYTES_MAX: u32 = 1 << 20;

/// Bytes a sender may have in flight on one stream. 512 KiB sufficed on loopback (0.99 of TCP); 16 MiB is 10
/// Gbit/s x 13 ms of round trip, more than any two zones of a region are apart.
pub const STREAM_WINDOW_BYTES: u32 = 16 << 20;

/// As above for the connection: a few streams at full speed beside one that is read slowly.
pub const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;

/// A peer that does not accept within this is treated as gone. Inside a VPC a handshake takes well under 10
/// ms; one lost SYN is retried after 1 s.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// An idle or waiting connection is probed this often: a host that vanished without a FIN is noticed within
/// interval + timeout. Servers of the grid answer any number of pings; it is also below the 350 s after which
/// AWS load balancers forget a flow.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);

/// How long a probe may stay unanswered.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// How a channel is made. The default is right for all of the grid; tests shorten times.
#[derive(Clone, Debug)]
pub struct ChannelOptions {
    /// Name of the calling unit, sent as `trellis-unit` with every call through [`super::Traced`].
    pub unit: Option<Arc<str>>,
    /// See [`CONNECT_TIMEOUT`].
    pub connect_timeout: Duration,
    /// See [`STREAM_WINDOW_BYTES`].
    pub stream_window_bytes: u32,
    /// See [`CONNECTION_WINDOW_BYTES`].
    pub connection_window_bytes: u32,
    /// See [`FRAME_BYTES_MAX`].
    pub frame_bytes_max: u32,
}

impl Default for ChannelOptions {
    fn default() -> Self {
        Self {
            unit: None,
            connect_timeout: CONNECT_TIMEOUT,
            stream_window_bytes: STREAM_WINDOW_BYTES,
            connection_window_bytes: CONNECTION_WINDOW_BYTES,
            frame_bytes_max: FRAME_BYTES_MAX,
        }
    }
}

impl ChannelOptions {
    /// The default options of a named unit.
    pub fn of_unit(unit: impl Into<Arc<str>>) -> Self {
        Self { unit: Some(unit.into()), ..Self::default() }
    }
}
