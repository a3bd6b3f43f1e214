//! Pauses between attempts, with jitter.
//!
//! Processes that failed together must not come back together, so every pause is random between half of a length and all of it.
//! The length doubles from one attempt to the next.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};

/// Pauses between attempts, for ever: the first is at most `min` long, each may be twice as long as the one before, none is longer
/// than `max`.
#[derive(Debug)]
pub struct Pauses {
    lengths: ExponentialBuilder,
    next: ExponentialBackoff,
}

impl Pauses {
    /// Begins with `min`. No pause is longer than `max`, nor than `min` if that is more.
    pub fn new(min: Duration, max: Duration) -> Self {
        // the library adds between nothing and the length itself, so it gets the halves
        let lengths = ExponentialBuilder::new()
            .with_min_delay(min / 2)
            .with_max_delay(max.max(min) / 2)
            .with_jitter()
            .without_max_times();
        Self { lengths, next: lengths.build() }
    }

    /// How long to wait before the next attempt.
    pub fn next_pause(&mut self) -> Duration {
        // without a number of times there is always a next one
        self.next.next().unwrap_or_default()
    }

    /// Begins with the shortest again, after a success.
    pub fn reset(&mut self) {
        self.next = self.lengths.build();
    }
}

/// One pause: between half of `length` and all of it.
pub fn jittered(length: Duration) -> Duration {
    Pauses::new(length, length).next_pause()
}

/// A random time between nothing and `span`.
pub fn up_to(span: Duration) -> Duration {
    jittered(span * 2).saturating_sub(span)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The library computes in 32-bit floats.
    const EPSILON: f64 = 1e-6;

    proptest! {
        #[test]
        fn each_pause_is_between_half_and_all_of_a_length_that_doubles_up_to_the_longest(
            min_ms in 1_u64..10_000,
            longest in 1_u32..1_000,
            times in 1_usize..40,
        ) {
            let min = Duration::from_millis(min_ms);
            let max = min * longest;
            let mut pauses = Pauses::new(min, max);
            for round in 0..2 {
                let mut length = min;
                for _ in 0..times {
                    let pause = pauses.next_pause();
                    prop_assert!(pause >= length.mul_f64(0.5 - EPSILON), "{round}: {pause:?} of {length:?}");
                    prop_assert!(pause <= length.mul_f64(1.0 + EPSILON), "{round}: {pause:?} of {length:?}");
                    length = (length * 2).min(max);
                }
                pauses.reset();
            }
        }

        #[test]
        fn one_pause_is_between_half_and_all(ms in 0_u64..100_000) {
            let length = Duration::from_millis(ms);
            let pause = jittered(length);
            prop_assert!(pause >= length / 2 && pause <= length.mul_f64(1.0 + EPSILON));
            prop_assert!(up_to(length) <= length.mul_f64(1.0 + 2.0 * EPSILON));
        }
    }

    #[test]
    fn two_processes_do_not_pause_alike() {
        let pauses = || -> Vec<Duration> {
            let mut pauses = Pauses::new(Duration::from_secs(1), Duration::from_secs(60));
            (0..8).map(|_| pauses.next_pause()).collect()
        };
        assert_ne!(pauses(), pauses());
    }
}
