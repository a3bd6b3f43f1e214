//! Channels to peers: one constructor, so that every client of the grid is tuned alike.
//!
//! HTTP/2 flow control and frame sizes are announced by the *receiver*. Series flow to clients, so it is the
//! client's settings that decide how fast answers move: at 16 connections and default frames bulk answers
//! reach 0.56 of what loopback TCP moves, with large frames and windows 0.99; a 64 KiB window brings a single
//! one down to 0.22.
//!
//! A [`Pool`] is the connections to one peer: one HTTP/2 connection is one task on one core at either end, so
//! parallel bulk reads gain from several, small ones do not. It opens a further one only under load.

mod failure;
mod pool;
mod traced;

use std::{sync::Arc, time::Duration};

use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use tonic::transport::{Channel, Endpoint};
use tower::{Service, ServiceExt};

pub use failure::{Reason, Unreachable};
pub use pool::{CONNECTIONS_MAX, Pool};
pub use traced::{Call, Traced};

use crate::coalesce::Coalesced;
pub use crate::rpc::UNIT;

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
    /// Name of the calling unit, sent as `trellis-unit` with every call through [`Traced`].
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

/// A channel that carries trace context and unit: what clients of the grid are made over.
pub type PeerChannel = Traced<Channel>;

/// A lazy channel to `addr` (`host:port`, `1.2.3.4:5`, `[::1]:5`): connects at the first call and again after
/// a loss. While the peer refuses, each call fails at once with `UNAVAILABLE` (see
/// [`Unreachable::of_status`]); it does not queue. Needs a Tokio runtime.
///
/// # Errors
/// [`Reason::Address`] if `addr` cannot be an authority.
pub fn connect(addr: &str, options: &ChannelOptions) -> Result<Channel, Unreachable> {
    Ok(endpoint(addr, options)?.connect_with_connector_lazy(connector(options)))
}

/// As [`connect`], with trace context and unit on every call.
///
/// # Errors
/// As [`connect`].
pub fn connect_traced(addr: &str, options: &ChannelOptions) -> Result<PeerChannel, Unreachable> {
    Ok(Traced::new(connect(addr, options)?, options.unit.as_deref()))
}

/// As [`connect`], but connects now, and so tells at once that nobody is there. Cancel safe.
///
/// # Errors
/// [`Unreachable`] with the reason.
pub async fn connect_now(addr: &str, options: &ChannelOptions) -> Result<Channel, Unreachable> {
    let connected = endpoint(addr, options)?.connect_with_connector(connector(options)).await;
    connected.map_err(|error| Unreachable::new(addr, Reason::of(&error)))
}

/// As tonic's own, but for what it does with small writes. Of a name with several addresses each is tried for its part of the
/// time, so that one that does not answer leaves some for the next.
fn connector(
    options: &ChannelOptions,
) -> impl Service<
    http::Uri,
    Response = TokioIo<Coalesced<tokio::net::TcpStream>>,
    Error: std::error::Error + Send + Sync,
    Future: Send,
> + Send
+ 'static {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(options.connect_timeout));
    tcp.map_response(|stream: TokioIo<tokio::net::TcpStream>| {
        TokioIo::new(Coalesced::new(stream.into_inner()))
    })
}

fn endpoint(addr: &str, options: &ChannelOptions) -> Result<Endpoint, Unreachable> {
    let unusable = || Unreachable::new(addr, Reason::Address);
    let authority: http::uri::Authority = addr.parse().map_err(|_| unusable())?;
    if authority.port_u16().is_none() || addr.contains('@') {
        return Err(unusable());
    }
    let endpoint = Endpoint::from_shared(format!("http://{authority}")).map_err(|_| unusable())?;
    Ok(endpoint
        .connect_timeout(options.connect_timeout)
        .max_frame_size(options.frame_bytes_max)
        .initial_stream_window_size(options.stream_window_bytes)
        .initial_connection_window_size(options.connection_window_bytes)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true))
}

/// Puts the grid's message limits on a generated client or server: `limited!(ShardClient::new(channel))`.
#[macro_export]
macro_rules! limited {
    ($end:expr) => {
        $end.max_decoding_message_size($crate::channel::MESSAGE_BYTES_MAX)
            .max_encoding_message_size($crate::channel::MESSAGE_BYTES_MAX)
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn addresses_are_authorities_with_a_port() {
        let options = ChannelOptions::default();
        for addr in ["127.0.0.1:1", "[::1]:1", "head-0.peony.internal:7400"] {
            assert!(connect(addr, &options).is_ok(), "{addr}");
        }
        for addr in
            ["", "host", "host:port", "a b:1", "http://host:1", "user@host:1", "host:99999", "host:1/path"]
        {
            assert_eq!(connect(addr, &options).err().map(|e| e.reason), Some(Reason::Address), "{addr}");
        }
    }
}
