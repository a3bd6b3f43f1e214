//! The wall clock as a value. Knowledge times and dates for people come from it, and the order of commits does not depend on it. A
//! simulation gives every shard a clock of its own that is minutes off and jumps.
//!
//! A wall clock that jumps ahead would mark rows as known in the future, and every later row of the dataset later still, for good.
//! So it is compared with a clock that nobody sets, and a publish waits until it is right again.

use std::{fmt, sync::Arc};

use parking_lot::Mutex;
use tokio::time::Instant;
use trellis_proto::{
    Code, Error, Result,
    time::{SECOND_NS, format_time},
};

/// How far the wall clock may jump ahead. To set a clock right may take a jump: `ntpd` itself refuses one of more than 1,000 seconds.
/// The bound is also how far ahead of the true time knowledge times can get by one jump.
pub(crate) const JUMP_MAX_NS: i64 = 1_200 * SECOND_NS;
/// Time between two warnings about a clock.
const WARN_EVERY_NS: i64 = 60 * SECOND_NS;

type Read = Arc<dyn Fn() -> i64 + Send + Sync>;

/// A wall clock. It may jump, forward and back.
#[derive(Clone)]
pub(crate) struct WallClock {
    wall: Read,
    /// Nanoseconds from some moment on. Nobody sets this clock, and it goes on while the machine is suspended.
    steady: Read,
    state: Arc<Mutex<State>>,
}

struct State {
    /// The clocks when they last agreed.
    agreed: Reading,
    /// The steady clock at the last warning.
    warned: Option<i64>,
}

/// Both clocks at one moment.
#[derive(Debug, Clone, Copy)]
struct Reading {
    wall: i64,
    steady: i64,
}

impl Reading {
    /// How far the wall clock has jumped ahead since `before`. Negative: back.
    fn jumped(self, before: Self) -> i64 {
        let by = |now: i64, before: i64| i128::from(now) - i128::from(before);
        let jumped = by(self.wall, before.wall) - by(self.steady, before.steady);
        i64::try_from(jumped).unwrap_or(if jumped < 0 { i64::MIN } else { i64::MAX })
    }
}

impl WallClock {
    /// The machine's clock.
    pub(crate) fn system() -> Self {
        Self::from(Arc::new(trellis_fabric::clock::now_ns), Arc::new(since_boot_ns))
    }

    /// A wall clock for tests, beside the runtime's time.
    #[cfg(test)]
    pub(crate) fn of(now_ns: impl Fn() -> i64 + Send + Sync + 'static) -> Self {
        let start = Instant::now();
        Self::from(Arc::new(now_ns), Arc::new(move || start.elapsed().as_nanos() as i64))
    }

    fn from(wall: Read, steady: Read) -> Self {
        let agreed = Reading { wall: wall(), steady: steady() };
        Self { wall, steady, state: Arc::new(Mutex::new(State { agreed, warned: None })) }
    }

    /// Nanoseconds since 1970, UTC.
    pub(crate) fn now_ns(&self) -> i64 {
        (self.wall)()
    }

    /// Milliseconds since 1970, UTC.
    pub(crate) fn now_ms(&self) -> i64 {
        self.now_ns().div_euclid(1_000_000)
    }

    /// Like [`Self::now_ns`], for the knowledge times of a commit.
    ///
    /// # Errors
    /// [`Code::Unavailable`]: the clock has jumped ahead by more than [`JUMP_MAX_NS`] since it was last right.
    pub(crate) fn for_commit(&self) -> Result<i64> {
        let now = Reading { wall: (self.wall)(), steady: (self.steady)() };
        let mut state = self.state.lock();
        let jumped = now.jumped(state.agreed);
        if jumped <= JUMP_MAX_NS {
            state.agreed = now;
            return Ok(now.wall);
        }
        drop(state);
        let right = now.wall.saturating_sub(jumped);
        let what = format!(
            "this shard's clock has jumped ahead by {} s, from {} to {}: no rows are committed, because their knowledge \
             times would lie in the future",
            jumped / SECOND_NS,
            format_time(right),
            format_time(now.wall)
        );
        self.warn(&what);
        Err(Error::new(Code::Unavailable, what).hint(
            "set the machine's clock right; if it is right now, and was wrong before, restart the shard",
        ))
    }

    /// Warns about the clock, at most once a minute.
    pub(crate) fn warn(&self, what: &str) {
        let now = (self.steady)();
        let mut state = self.state.lock();
        if state.warned.is_none_or(|at| now.saturating_sub(at) >= WARN_EVERY_NS) {
            state.warned = Some(now);
            drop(state);
            tracing::warn!("{what}");
        }
    }
}

/// Nanoseconds since the machine started, with the time in which it was suspended: a laptop that sleeps has not jumped. Where the
/// system does not tell, nanoseconds since the first call.
fn since_boot_ns() -> i64 {
    static FIRST: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    let told = std::fs::read_to_string("/proc/uptime").ok();
    let seconds = told.and_then(|text| text.split(' ').next()?.parse::<f64>().ok());
    seconds.map_or_else(|| FIRST.elapsed().as_nanos() as i64, |s| (s * SECOND_NS as f64) as i64)
}

impl fmt::Debug for WallClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WallClock")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::*;

    #[test]
    fn a_jump_ahead_is_refused_until_the_clock_is_right_again() {
        let (wall, steady) = (Arc::new(AtomicI64::new(1_000)), Arc::new(AtomicI64::new(0)));
        let read = |clock: &Arc<AtomicI64>| -> Read {
            let clock = clock.clone();
            Arc::new(move || clock.load(Ordering::SeqCst))
        };
        let clock = WallClock::from(read(&wall), read(&steady));
        let pass = |wall_ns: i64, steady_ns: i64| {
            wall.fetch_add(wall_ns, Ordering::SeqCst);
            steady.fetch_add(steady_ns, Ordering::SeqCst);
            clock.for_commit()
        };
        // Time passes: a day, in which nobody publishes, is no jump.
        pass(86_400 * SECOND_NS, 86_400 * SECOND_NS).unwrap();
        // Back, and ahead by what is allowed.
        pass(-5 * JUMP_MAX_NS, 0).unwrap();
        pass(JUMP_MAX_NS, 0).unwrap();
        let error = pass(JUMP_MAX_NS + 1, 0).unwrap_err();
        assert_eq!(error.code(), Code::Unavailable);
        assert!(error.message().contains("jumped ahead by 1200 s"), "{error}");
        // It stays refused however long it lasts, and however often it is asked for.
        pass(7 * SECOND_NS, 7 * SECOND_NS).unwrap_err();
        pass(3 * 86_400 * SECOND_NS, 3 * 86_400 * SECOND_NS).unwrap_err();
        assert_eq!(pass(-JUMP_MAX_NS, 0).unwrap(), wall.load(Ordering::SeqCst));
    }

    #[test]
    fn the_steady_clock_of_this_machine_goes_on() {
        let first = since_boot_ns();
        assert!(first > 0 && since_boot_ns() >= first);
        WallClock::system().for_commit().unwrap();
    }
}
