//! How channels are tuned.

use std::{sync::Arc, time::Duration};

/// Largest message in either direction, on every client and server. Data travels in messages of 256 KiB to 1 MiB. The limit must be
/// above the largest row batch that a client may publish, and low enough that one peer cannot make a process allocate
/// without bound. tonic's own default for receiving is 4 MiB.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Largest HTTP/2 frame. The sender writes each frame with one `writev`, so large frames cost fewer system calls. 256 KiB already gives
/// most of the gain; 1 MiB is a whole message in one frame.
pub const FRAME_BYTES_MAX: u32 = 1 << 20;

/// Bytes that a sender may have in flight on one stream. 512 KiB are enough on loopback (0.99 of TCP). 16 MiB is 10 Gbit/s x 13 ms of
/// round trip, which is more than the distance of any two zones of a region.
pub const STREAM_WINDOW_BYTES: u32 = 16 << 20;

/// Bytes that a sender may have in flight on one connection: enough for a few streams at full speed beside a slow one.
pub const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;

/// Longest time to connect. A peer that does not accept within it counts as gone. Inside a VPC a handshake takes well under 10 ms, and
/// the kernel repeats a lost SYN after 1 s.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How often a connection is probed, also an idle one. Both ends notice within interval and timeout that a host has vanished without a
/// FIN. Servers of the grid answer any number of probes. The interval is below the 350 s after which AWS load balancers
/// forget a flow.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);

/// How long a probe may stay unanswered.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// How to make a channel. The default is right for all of the grid; tests shorten the times.
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
