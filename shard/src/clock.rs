//! The wall clock as a value. Knowledge times and dates for people come from it, and correctness does not depend on it. A simulation
//! gives every shard a clock of its own that is minutes off and jumps.

use std::{fmt, sync::Arc};

/// A wall clock. It may jump, forward and back.
#[derive(Clone)]
pub(crate) struct WallClock(Arc<dyn Fn() -> i64 + Send + Sync>);

impl WallClock {
    /// The machine's clock.
    pub(crate) fn system() -> Self {
        Self(Arc::new(trellis_fabric::clock::now_ns))
    }

    #[cfg(test)]
    pub(crate) fn of(now_ns: impl Fn() -> i64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(now_ns))
    }

    /// Nanoseconds since 1970, UTC.
    pub(crate) fn now_ns(&self) -> i64 {
        (self.0)()
    }

    /// Milliseconds since 1970, UTC.
    pub(crate) fn now_ms(&self) -> i64 {
        self.now_ns().div_euclid(1_000_000)
    }
}

impl fmt::Debug for WallClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WallClock")
    }
}
