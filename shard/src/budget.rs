//! The memory for work on files. Scans, compactions, changes of a dataset and the Delta kernel's calls take their share before they read,
//! and give it back when what they made is gone. So however many of them come together, the shard's memory has a bound.
//!
//! Nobody who has a share waits for another one. So each of them ends.

use std::sync::Arc;
#[cfg(test)]
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes by which shares are counted: a semaphore counts to four billion.
const UNIT_BYTES: u64 = 1 << 10;

/// The memory of a shard that is not told otherwise. One compaction takes at most half of it.
pub(crate) const WORK_BYTES_MAX: u64 = 512 << 20;

/// The memory, and who waits for it.
#[derive(Debug, Clone)]
pub(crate) struct Budget {
    free: Arc<Semaphore>,
    /// Units.
    most: u32,
    #[cfg(test)]
    peak: Arc<AtomicU64>,
}

/// The part of the memory that one piece of work has. It is given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    permit: OwnedSemaphorePermit,
}

impl Budget {
    pub(crate) fn new(bytes: u64) -> Self {
        let most = u32::try_from(bytes / UNIT_BYTES).unwrap_or(u32::MAX).max(1);
        Self {
            free: Arc::new(Semaphore::new(most as usize)),
            most,
            #[cfg(test)]
            peak: Arc::default(),
        }
    }

    /// All bytes of the budget.
    pub(crate) fn bytes(&self) -> u64 {
        u64::from(self.most) * UNIT_BYTES
    }

    /// Waits until `bytes` are free, in the order of those who wait. Work that needs more than there is gets all of it, and is alone.
    pub(crate) async fn take(&self, bytes: u64) -> Share {
        let permit = Arc::clone(&self.free).acquire_many_owned(self.units(bytes)).await;
        let share = Share { permit: permit.expect("the semaphore is never closed") };
        #[cfg(test)]
        self.peak.fetch_max(self.taken(), Ordering::Relaxed);
        share
    }

    fn units(&self, bytes: u64) -> u32 {
        u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX).clamp(1, self.most)
    }

    /// Bytes that are taken now.
    #[cfg(test)]
    pub(crate) fn taken(&self) -> u64 {
        (self.most as usize - self.free.available_permits()) as u64 * UNIT_BYTES
    }

    /// Most bytes that were taken at once.
    #[cfg(test)]
    pub(crate) fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }
}

impl Share {
    /// Gives back what is beyond `bytes`.
    pub(crate) fn shrink(&mut self, bytes: u64) {
        let keeps = usize::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(usize::MAX);
        drop(self.permit.split(self.permit.num_permits().saturating_sub(keeps)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_waits_until_its_share_is_free_and_the_largest_is_alone() {
        let budget = Budget::new(10 << 10);
        let mut first = budget.take(6 << 10).await;
        let mut second = Box::pin(budget.take(u64::MAX));
        assert!(futures::poll!(&mut second).is_pending());
        // It came later, and waits, although there is room for it.
        let mut third = Box::pin(budget.take(1));
        assert!(futures::poll!(&mut third).is_pending());
        first.shrink(1 << 10);
        assert_eq!(budget.taken(), 10 << 10, "the second has what is free already");
        assert!(futures::poll!(&mut second).is_pending());
        drop(first);
        let all = second.await;
        assert!(futures::poll!(&mut third).is_pending());
        drop(all);
        third.await;
        assert_eq!((budget.taken(), budget.peak()), (0, 10 << 10));
    }
}
