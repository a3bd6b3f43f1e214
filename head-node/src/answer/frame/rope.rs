//! A queue of output bytes: small runs are copied into one piece, large buffers are pieces of their own.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// A queue of bytes in the order written. Copies that follow each other come out as one piece.
#[derive(Debug, Default)]
pub(crate) struct Rope {
    done: VecDeque<Bytes>,
    tail: BytesMut,
}

impl Rope {
    /// Makes room for `bytes` to be copied without a reallocation.
    pub(crate) fn reserve(&mut self, bytes: usize) {
        self.tail.reserve(bytes);
    }

    pub(crate) fn copy(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
    }

    /// Copies the same bytes `count` times.
    pub(crate) fn repeat<const N: usize>(&mut self, value: [u8; N], count: usize) {
        let from = self.tail.len();
        self.tail.resize(from + N * count, 0);
        for slot in self.tail[from..].chunks_exact_mut(N) {
            slot.copy_from_slice(&value);
        }
    }

    pub(crate) fn share(&mut self, bytes: Bytes) {
        self.close();
        self.done.push_back(bytes);
    }

    /// Ends the current piece: later copies come out as another one.
    pub(crate) fn close(&mut self) {
        if !self.tail.is_empty() {
            self.done.push_back(self.tail.split().freeze());
        }
    }

    /// The next piece that is complete.
    pub(crate) fn pop(&mut self) -> Option<Bytes> {
        self.done.pop_front()
    }
}
