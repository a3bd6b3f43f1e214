//! Accepted connections that can be cut.
//!
//! tonic's server ends connections gracefully and then waits for them without limit, in tasks of its own. From outside only the
//! transport can be ended: reads and writes of a cut connection fail, so its task returns and drops the requests. The
//! alternative was an accept loop over hyper, which would have to rebuild tonic's timeouts, error recovery and connection info.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::Stream;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    time::Sleep,
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::{Connected, TcpConnectInfo};

use super::seats::{Seat, Seats};
use crate::{
    coalesce::Coalesced,
    telemetry::{self, metrics::UpDownCounter},
};

/// Pause after a failed accept. Usually there are no file descriptors left; this lasts until a connection closes, and an immediate
/// retry would spin.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// How long a client may take for the first bytes of HTTP/2. They leave it at once, so it is only the time of a slow network or of a
/// busy client. A client that never sends them has no ping to answer, and would keep its descriptor for ever.
const PREFACE_WAIT: Duration = Duration::from_secs(10);

/// Bytes by which a connection of HTTP/2 begins.
const PREFACE_BYTES: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();

/// Descriptors that a process may have if the system does not tell: its usual default.
const DESCRIPTORS_USUAL: usize = 1_024;

/// How many files and connections this process may have open.
pub(super) fn descriptors() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a whole `rlimit` of this function.
    match unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } {
        0 => usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX),
        _ => DESCRIPTORS_USUAL,
    }
}

/// The accepted connections of `listener`, without end and without errors. Cancelling `cut` cuts each of them. A connection
/// without a seat is closed at once, so its client goes elsewhere and does not wait.
pub(super) fn incoming(
    listener: TcpListener,
    cut: CancellationToken,
    seats: Arc<Seats>,
) -> impl Stream<Item = Result<Conn, io::Error>> + Send {
    let open = telemetry::meter("trellis-fabric")
        .i64_up_down_counter("trellis.server.connections")
        .with_unit("{connection}")
        .with_description("Connections that clients have open.")
        .build();
    let state = (listener, cut, open, seats, false);
    futures::stream::unfold(state, |(listener, cut, open, seats, mut full)| async move {
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let seat = match seats.take(peer.ip()) {
                        Ok(seat) => seat,
                        Err(why) => {
                            // Once, and not for each connection of a flood.
                            if !std::mem::replace(&mut full, true) {
                                tracing::warn!(%peer, ?why, "too many connections are open; more are closed");
                            }
                            continue;
                        }
                    };
                    full = false;
                    // Nagle's algorithm would hold a small answer back until the peer's delayed ack: 40 ms instead of 1
                    if let Err(error) = stream.set_nodelay(true) {
                        tracing::debug!(%error, "cannot set TCP_NODELAY");
                    }
                    // a token for each connection: polling it takes a lock that connections should not share
                    let cancelled = Box::pin(cut.child_token().cancelled_owned());
                    let stream = Coalesced::new(stream);
                    let conn = Conn {
                        stream,
                        cut: Cut::Armed(cancelled),
                        preface: Preface::awaited(),
                        _seat: seat,
                        _counted: Counted::new(&open),
                    };
                    return Some((Ok(conn), (listener, cut, open, seats, full)));
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
    preface: Preface,
    _seat: Seat,
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

/// The first bytes of HTTP/2.
enum Preface {
    Awaited { left: usize, late: Pin<Box<Sleep>> },
    Arrived,
}

impl Preface {
    fn awaited() -> Self {
        Self::Awaited { left: PREFACE_BYTES, late: Box::pin(tokio::time::sleep(PREFACE_WAIT)) }
    }

    /// Counts bytes that have arrived. An error once they are late.
    fn poll_late(&mut self, arrived: usize, cx: &mut Context<'_>) -> Result<(), io::Error> {
        let Self::Awaited { left, late } = self else { return Ok(()) };
        *left = left.saturating_sub(arrived);
        if *left == 0 {
            *self = Self::Arrived;
        } else if late.as_mut().poll(cx).is_ready() {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the client did not begin with HTTP/2 in time",
            ));
        }
        Ok(())
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
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.preface.poll_late(buf.filled().len() - before, cx)?;
        polled
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

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// A server's side of a connection on which the client has sent `bytes`, all read.
    async fn accepted(bytes: usize, seats: &Arc<Seats>) -> (TcpStream, Conn) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut incoming = std::pin::pin!(incoming(listener, CancellationToken::new(), seats.clone()));
        let mut conn = incoming.next().await.unwrap().unwrap();
        for _ in 0..bytes {
            client.write_all(b"P").await.unwrap();
            conn.read_u8().await.unwrap();
        }
        (client, conn)
    }

    #[tokio::test]
    async fn a_client_that_does_not_finish_the_first_bytes_of_http_2_is_closed_however_it_drips() {
        for bytes in [0, 1, PREFACE_BYTES - 1] {
            let (_client, mut conn) = accepted(bytes, &Seats::new(80)).await;
            tokio::time::pause();
            let began = tokio::time::Instant::now();
            let error = conn.read_u8().await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{bytes}");
            assert!(began.elapsed() <= PREFACE_WAIT + Duration::from_millis(1), "{:?}", began.elapsed());
            tokio::time::resume();
        }
        let (_client, mut conn) = accepted(PREFACE_BYTES, &Seats::new(80)).await;
        tokio::time::pause();
        assert!(tokio::time::timeout(100 * PREFACE_WAIT, conn.read_u8()).await.is_err(), "it may be idle");
    }

    #[tokio::test]
    async fn a_connection_without_a_seat_is_closed_and_one_that_ends_gives_its_seat_back() {
        // One seat: of two descriptors one is the reserve.
        let seats = Seats::new(2);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut incoming = std::pin::pin!(incoming(listener, CancellationToken::new(), seats));
        let _first = TcpStream::connect(address).await.unwrap();
        let served = incoming.next().await.unwrap().unwrap();
        let mut second = TcpStream::connect(address).await.unwrap();
        let mut byte = [0];
        tokio::select! {
            _ = incoming.next() => panic!("a connection beyond the last seat is served"),
            read = second.read(&mut byte) => assert!(matches!(read, Ok(0) | Err(_))),
        }
        drop(served);
        let _third = TcpStream::connect(address).await.unwrap();
        incoming.next().await.unwrap().unwrap();
    }
}
