//! A bound on the bytes of all publishes in memory.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use trellis_fabric::bound::Bound;
use trellis_proto::{Code, Error, Result};

static PUBLISH_BYTES: Bound = Bound::new("shard.publish_bytes");

/// The bound, and how many bytes are taken.
#[derive(Debug)]
pub(crate) struct Pending {
    taken: AtomicUsize,
    most: usize,
}

/// The bytes that one publish has taken. It goes with the rows and is dropped with them, and so gives the bytes back.
#[derive(Debug)]
pub(crate) struct Held {
    pending: Arc<Pending>,
    taken: usize,
}

impl Pending {
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { taken: AtomicUsize::new(0), most })
    }

    /// Nothing yet, of one publish.
    pub(crate) fn held(self: &Arc<Self>) -> Held {
        Held { pending: self.clone(), taken: 0 }
    }
}

impl Held {
    /// What it has taken.
    pub(crate) fn bytes(&self) -> usize {
        self.taken
    }

    /// Takes `bytes` more. If they are refused, it has what it had before.
    ///
    /// # Errors
    /// [`Code::Overloaded`] if that exceeds the bound.
    pub(crate) fn add(&mut self, bytes: usize) -> Result<()> {
        let more = |taken: usize| taken.checked_add(bytes).filter(|all| *all <= self.pending.most);
        if self.pending.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_err() {
            PUBLISH_BYTES.hit();
            return Err(Error::new(
                Code::Overloaded,
                format!("publishes of {} bytes are being written already", self.pending.most),
            )
            .hint("try again in a moment"));
        }
        self.taken += bytes;
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.pending.taken.fetch_sub(self.taken, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_can_be_taken_again() {
        let pending = Pending::new(10);
        let mut first = pending.held();
        first.add(8).unwrap();
        let mut second = pending.held();
        for much in [3, usize::MAX] {
            assert_eq!(second.add(much).unwrap_err().code(), Code::Overloaded);
        }
        // What was refused is not taken.
        second.add(2).unwrap();
        drop((first, second));
        pending.held().add(10).unwrap();
    }
}
