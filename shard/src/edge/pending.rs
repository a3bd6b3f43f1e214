//! A bound on the bytes of all publishes in memory. Pure.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use trellis_proto::{Code, Error, Result};

/// The bound, and how many bytes are taken.
#[derive(Debug)]
pub(super) struct Pending {
    taken: AtomicUsize,
    most: usize,
}

/// The bytes that one publish has taken. They are given back when it is dropped.
#[derive(Debug)]
pub(super) struct Guard {
    pending: Arc<Pending>,
    taken: usize,
}

impl Pending {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { taken: AtomicUsize::new(0), most })
    }

    pub(super) fn guard(self: &Arc<Self>) -> Guard {
        Guard { pending: self.clone(), taken: 0 }
    }
}

impl Guard {
    /// Takes `bytes` more.
    ///
    /// # Errors
    /// [`Code::Overloaded`] if that exceeds the bound.
    pub(super) fn add(&mut self, bytes: usize) -> Result<()> {
        let before = self.pending.taken.fetch_add(bytes, Ordering::Relaxed);
        self.taken += bytes;
        if before + bytes > self.pending.most {
            return Err(Error::new(
                Code::Overloaded,
                format!("publishes of {} bytes are being written already", self.pending.most),
            )
            .hint("try again in a moment"));
        }
        Ok(())
    }
}

impl Drop for Guard {
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
        let mut first = pending.guard();
        first.add(8).unwrap();
        assert_eq!(pending.guard().add(3).unwrap_err().code(), Code::Overloaded);
        drop(first);
        pending.guard().add(10).unwrap();
    }
}
