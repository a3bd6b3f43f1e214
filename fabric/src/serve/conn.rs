//! Accepted connections that can be cut.
//!
//! tonic's server ends connections gracefully and then waits for them without limit, in tasks of its own. From outside only the
//! transport can be ended: reads and writes of a cut connection fail, so its task returns and drops the requests. The
//! alternative was an accept loop over hyper, which would have to rebuild tonic's timeouts, error recovery and connection info.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures::Stream;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::{
    coalesce::Coalesced,
    telemetry::{self, metrics::UpDownCounter},
};

/// Pause after a failed accept. Usually there are no file descriptors left; this lasts until a connection closes, and an immediate
/// retry would spin.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// The accepted connections of `listener`, without end and without errors. Cancelling `cut` cuts each of them.
pub(super) fn incoming(
    listener: TcpListener,
    cut: CancellationToken,
) -> impl Stream<Item = Result<Conn, io::Error>> + Send {
    let open = telemetry::meter("trellis-fabric")
        .i64_up_down_counter("trellis.server.connections")
        .with_unit("{connection}")
        .with_description("Connections that clients have open.")
        .build();
    futures::stream::unfold((listener, cut, open), |(listener, cut, open)| async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    // Nagle's algorithm would hold a small answer back until the peer's delayed ack: 40 ms instead of 1
                    if let Err(error) = stream.set_nodelay(true) {
                        tracing::debug!(%error, "cannot set TCP_NODELAY");
                    }
                    // a token for each connection: polling it takes a lock that connections should not share
                    let cancelled = Box::pin(cut.child_token().cancelled_owned());
                    let stream = Coalesced::new(stream);
                    let conn = Conn { stream, cut: Cut::Armed(cancelled), _counted: Counted::new(&open) };
                    return Some((Ok(conn), (listener, cut, open)));
                }
                Err(error) => {
                    tracing::warn!(%error, retry_ms = ACCEPT_RETRY.as_millis() as u64, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    })
}

/// A connection.
pub(super) struct Conn {
    stream: Coalesced<TcpStream>,
    cut: Cut,
    _counted: Counted,
}

/// Counts a connection until it is dropped.
struct Counted(UpDownCounter<i64>);

impl Counted {
    fn new(open: &UpDownCounter<i64>) -> Self {
        open.add(1, &[]);
        Self(open.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.add(-1, &[]);
    }
}

enum Cut {
    /// Armed -> Done when the token is cancelled.
    Armed(Pin<Box<WaitForCancellationFutureOwned>>),
    Done,
}

impl Conn {
    fn poll_cut(&mut self, cx: &mut Context<'_>) -> Result<(), io::Error> {
        if let Cut::Armed(cancelled) = &mut self.cut
            && cancelled.as_mut().poll(cx).is_ready()
        {
            self.cut = Cut::Done;
        }
        match self.cut {
            Cut::Armed(_) => Ok(()),
            Cut::Done => Err(io::Error::new(io::ErrorKind::ConnectionAborted, "cut at the end of the drain")),
        }
    }
}

// Reads and writes both check for the cut. A connection usually waits in a read, but if its peer does not take what the server sends,
// it waits in a write.

impl AsyncRead for Conn {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll_cut(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Conn {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_cut(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_cut(cx)?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_cut(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Connected for Conn {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.get_ref().connect_info()
    }
}
