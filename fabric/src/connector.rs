//! Makes the connections of the grid's channels, and those on which telemetry is exported.

use std::time::Duration;

use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tower::{BoxError, Service, ServiceExt, util::BoxCloneSyncService};

/// Makes the connections of a channel. One type for all channels, because all of HTTP/2 is compiled once for each type of connection.
pub(crate) type Connector = BoxCloneSyncService<http::Uri, TokioIo<Box<dyn Connection>>, BoxError>;

/// A connection, plain or encrypted.
pub(crate) trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// Connects by TCP. If a name has several addresses, each gets its part of the time, so that an address that does not answer leaves
/// time for the next.
pub(crate) fn tcp(timeout: Duration) -> HttpConnector {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(timeout));
    tcp
}

/// A connector as a [`Connector`], whose connections pass through `wrap`.
pub(crate) fn boxed<S, C>(
    connector: S,
    wrap: impl Fn(S::Response) -> C + Clone + Send + Sync + 'static,
) -> Connector
where
    S: Service<http::Uri, Error: Into<BoxError>, Future: Send> + Clone + Send + Sync + 'static,
    C: Connection + 'static,
{
    let wrapped = connector.map_response(move |stream| {
        let boxed: Box<dyn Connection> = Box::new(wrap(stream));
        TokioIo::new(boxed)
    });
    BoxCloneSyncService::new(wrapped.map_err(Into::into))
}
