//! The time of day.

use std::time::SystemTime;

/// The time, nanoseconds UTC. 0 if the clock is before 1970.
pub fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
