//! Sends small writes that follow each other as one.
//!
//! A gRPC request is two frames from two tasks, HEADERS and then DATA, and HTTP/2 flushes after each. That would be two system calls,
//! two packets and two wake-ups of the peer, which can do nothing with the first. So before a small write is sent, the
//! tasks that are ready run once, and their bytes go out with it. No timer is involved. A large write is not copied, and the small
//! write after it, the end of an answer, goes out at once.
//!
//! Nagle's algorithm does the same in the kernel, but it waits for the peer's acknowledgement: tens of milliseconds.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Most bytes that are held back. A request, or the end of an answer, has a few hundred bytes. A much larger write is worth a
/// system call of its own.
const HELD_MAX: usize = 4 << 10;

/// A connection that sends small writes together. The flush sends them, as `AsyncWrite` demands.
#[derive(Debug)]
pub(crate) struct Coalesced<T> {
    inner: T,
    held: BytesMut,
    /// Whether the flush may send at once: other tasks have run since the last write, or need not run.
    yielded: bool,
}

impl<T: AsyncWrite + Unpin> Coalesced<T> {
    pub(crate) fn new(inner: T) -> Self {
        Self { inner, held: BytesMut::new(), yielded: false }
    }

    pub(crate) fn get_ref(&self) -> &T {
        &self.inner
    }

    fn poll_send_held(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            let sent = ready!(Pin::new(&mut self.inner).poll_write(cx, &self.held))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.held.advance(sent);
        }
        self.yielded = false;
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Coalesced<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Coalesced<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let len: usize = bufs.iter().map(|buf| buf.len()).sum();
        if this.held.len() + len <= HELD_MAX {
            for buf in bufs {
                this.held.extend_from_slice(buf);
            }
            return Poll::Ready(Ok(len));
        }
        this.yielded = true;
        // in order, and in one call: first the held bytes, then these
        while !this.held.is_empty() {
            let mut all = Vec::with_capacity(1 + bufs.len());
            all.push(IoSlice::new(&this.held));
            all.extend(bufs.iter().map(|buf| IoSlice::new(buf)));
            let sent = ready!(Pin::new(&mut this.inner).poll_write_vectored(cx, &all))?;
            drop(all);
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let of_held = sent.min(this.held.len());
            this.held.advance(of_held);
            if sent > of_held {
                return Poll::Ready(Ok(sent - of_held));
            }
        }
        Pin::new(&mut this.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.held.is_empty() {
            if !self.yielded {
                self.yielded = true;
                // polled again after the tasks that are ready now
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            ready!(self.poll_send_held(cx))?;
        }
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send_held(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    /// Takes as many bytes per call as it is told, or is not ready; notes the calls.
    #[derive(Debug, Default)]
    struct Sink {
        takes: Vec<usize>,
        calls: Vec<Vec<u8>>,
    }

    impl AsyncWrite for Sink {
        fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            self.poll_write_vectored(cx, &[IoSlice::new(buf)])
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bufs: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let take = self.takes.pop().unwrap_or(usize::MAX);
            if take == 0 {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let mut all: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
            all.truncate(take);
            self.calls.push(all.clone());
            Poll::Ready(Ok(all.len()))
        }

        fn is_write_vectored(&self) -> bool {
            true
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn two_frames_of_two_tasks_are_one_write() {
        let mut io = Coalesced::new(Sink::default());
        io.write_all(b"headers").await.unwrap();
        let mut polls = 0;
        poll_fn(|cx| {
            polls += 1;
            if polls == 2 {
                // what another task had ready
                assert!(Pin::new(&mut io).poll_write(cx, b" and data").is_ready());
            }
            Pin::new(&mut io).poll_flush(cx)
        })
        .await
        .unwrap();
        assert_eq!(io.inner.calls, [b"headers and data".to_vec()]);
    }

    #[tokio::test]
    async fn what_is_large_takes_along_what_is_held_and_is_not_held_itself() {
        let mut io = Coalesced::new(Sink::default());
        io.write_all(b"small").await.unwrap();
        io.write_all(&[7; HELD_MAX]).await.unwrap();
        assert_eq!(io.inner.calls.len(), 1, "before any flush");
        assert_eq!(io.inner.calls[0].len(), 5 + HELD_MAX);
    }

    #[tokio::test]
    async fn what_ends_a_long_answer_is_not_held_back() {
        let mut io = Coalesced::new(Sink::default());
        io.write_all(&[7; 2 * HELD_MAX]).await.unwrap();
        io.flush().await.unwrap();
        io.write_all(b"trailers").await.unwrap();
        assert!(poll_fn(|cx| Poll::Ready(Pin::new(&mut io).poll_flush(cx).is_ready())).await);
        assert_eq!(io.inner.calls[1], b"trailers");
        io.write_all(b"another one").await.unwrap();
        assert!(poll_fn(|cx| Poll::Ready(Pin::new(&mut io).poll_flush(cx).is_pending())).await);
    }

    #[tokio::test]
    async fn a_shutdown_sends_what_is_held() {
        let (near, mut far) = duplex(64);
        let mut io = Coalesced::new(near);
        io.write_all(b"bye").await.unwrap();
        io.shutdown().await.unwrap();
        let mut got = Vec::new();
        far.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"bye");
    }

    proptest! {
        /// Whatever the sizes, and however little the connection takes at a time: the same bytes in the same order.
        #[test]
        fn nothing_is_lost_or_changes_places(
            writes in proptest::collection::vec((0..2 * HELD_MAX, any::<bool>()), 1..20),
            takes in proptest::collection::vec(prop_oneof![Just(0), 1..3 * HELD_MAX], 0..60),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let mut io = Coalesced::new(Sink { takes, calls: Vec::new() });
                let mut expected = Vec::new();
                for (n, (len, flush)) in writes.into_iter().enumerate() {
                    let bytes: Vec<u8> = (0..len).map(|i| (i + 31 * n) as u8).collect();
                    io.write_all(&bytes).await.unwrap();
                    expected.extend(bytes);
                    if flush {
                        io.flush().await.unwrap();
                        assert_eq!(io.inner.calls.concat(), expected);
                    }
                }
                io.flush().await.unwrap();
                assert_eq!(io.inner.calls.concat(), expected);
            });
        }
    }
}
