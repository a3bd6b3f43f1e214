//! One constructor for channels, so that every client of the grid is tuned alike.

use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint};

use super::{
    failure::{Reason, Unreachable},
    options::{ChannelOptions, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT},
    traced::Traced,
};
use crate::{
    coalesce::Coalesced,
    connector::{Connector, boxed, tcp},
};

/// A channel that adds trace context and unit to every call. All clients of the grid use it.
pub type PeerChannel = Traced<Channel>;

/// A lazy channel to `addr` (`host:port`, `1.2.3.4:5`, `[::1]:5`). It connects at the first call, and again after
/// a loss. While the peer refuses, each call fails at once with `UNAVAILABLE`, whose source
/// [`Reason::of`] reads; it does not queue. Needs a Tokio runtime.
///
/// # Errors
/// [`Reason::Address`] if `addr` cannot be an authority.
pub fn connect(addr: &str, options: &ChannelOptions) -> Result<Channel, Unreachable> {
    Ok(endpoint(addr, options)?.connect_with_connector_lazy(connector(options)))
}

/// Like [`connect`], with trace context and unit on every call.
///
/// # Errors
/// Those of [`connect`].
pub fn connect_traced(addr: &str, options: &ChannelOptions) -> Result<PeerChannel, Unreachable> {
    Ok(Traced::new(connect(addr, options)?, options.unit.as_deref()))
}

/// Like [`connect`], but connects now, so the caller learns at once whether the peer is there. Cancel safe.
///
/// # Errors
/// [`Unreachable`] with the reason.
pub async fn connect_now(addr: &str, options: &ChannelOptions) -> Result<Channel, Unreachable> {
    let connected = endpoint(addr, options)?.connect_with_connector(connector(options)).await;
    connected.map_err(|error| Unreachable::new(addr, Reason::of(&error)))
}

/// As tonic's own connector, but small writes are sent together.
fn connector(options: &ChannelOptions) -> Connector {
    boxed(tcp(options.connect_timeout), |stream: TokioIo<tokio::net::TcpStream>| {
        Coalesced::new(stream.into_inner())
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
