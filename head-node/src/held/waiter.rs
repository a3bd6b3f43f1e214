//! Waking a reader when its stakes are settled.
//!
//! A flight belongs to the head. A read that waits for a flight has a stake in it, counted in the claim map. A read can be dropped at any
//! point: its stakes are given back, and no other read is disturbed. When the last stake of an unfinished flight is given back, the
//! flight has a grace, in which other reads may still join. After the grace it is given up, unless it is on its way in a call that other
//! reads wait for: then its chunks are kept when they come, and may be joined as long as the call goes on. A flight has no deadline. Its
//! readers have deadlines, and it lasts as long as the last of them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use futures::task::AtomicWaker;

/// Wakes one read when all its stakes in one series are settled, or when a chunk has failed.
#[derive(Debug, Default)]
pub(crate) struct Waiter {
    pending: AtomicUsize,
    broken: AtomicBool,
    waker: AtomicWaker,
}

impl Waiter {
    /// Adds `stakes` to wait for. Called under the lock of the series, so that none of them is settled earlier.
    pub(crate) fn expect(&self, stakes: usize) {
        self.pending.fetch_add(stakes, Ordering::AcqRel);
    }

    /// Every chunk of one stake has come or failed.
    pub(crate) fn settled(&self) {
        if self.pending.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.waker.wake();
        }
    }

    /// A chunk of one stake has failed: its read may not have to wait for the other chunks.
    pub(crate) fn broke(&self) {
        self.broken.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// Ready when all stakes are settled, or when a chunk has failed since the last poll. Cancel safe.
    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.waker.register(cx.waker());
        if self.pending.load(Ordering::Acquire) == 0 || self.broken.swap(false, Ordering::AcqRel) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

/// The handle of a read in the claim maps.
pub(crate) type WaiterRef = Arc<Waiter>;
