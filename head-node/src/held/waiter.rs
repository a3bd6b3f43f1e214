//! Waiting for flights, and leaving them.
//!
//! A flight belongs to the head. A reader that waits for one holds a stake in it, counted in the claim map; dropping the reader at
//! any point gives its stakes back and disturbs nobody. When the last stake of an unfinished flight is given back, the flight has a
//! grace in which others may still join. Then it is given up, unless it is on its way in a call that others wait for: what comes
//! anyway is kept, and may be joined as long as the call goes on. There is no deadline of a flight: its readers have deadlines, and
//! it lasts as long as the last of them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use futures::task::AtomicWaker;

/// Woken when every stake of one reader in one series is settled, or one has failed.
#[derive(Debug, Default)]
pub(crate) struct Waiter {
    pending: AtomicUsize,
    broken: AtomicBool,
    waker: AtomicWaker,
}

impl Waiter {
    /// `stakes` more to wait for. Called before the series is let go of, so that none can be settled earlier.
    pub(crate) fn expect(&self, stakes: usize) {
        self.pending.fetch_add(stakes, Ordering::AcqRel);
    }

    /// Every chunk of one stake has come or failed.
    pub(crate) fn settled(&self) {
        if self.pending.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.waker.wake();
        }
    }

    /// A chunk of one stake has failed: its reader may not have to wait for the others.
    pub(crate) fn broke(&self) {
        self.broken.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// Ready when it is worth looking at the series again. Cancel safe.
    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.waker.register(cx.waker());
        if self.pending.load(Ordering::Acquire) == 0 || self.broken.swap(false, Ordering::AcqRel) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

/// What the claim maps keep of a reader.
pub(crate) type WaiterRef = Arc<Waiter>;
