//! A bound that is reached: every time a metric counts it, and now and then a line says so.

use std::{
    sync::{Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use opentelemetry::{KeyValue, metrics::Counter};

use crate::telemetry;

/// Shortest time between two lines about one bound: an overload must not fill the log.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// A bound beyond which work is refused or dropped. Make one `static` of each.
#[derive(Debug)]
pub struct Bound {
    name: &'static str,
    told: Mutex<Told>,
}

impl Bound {
    /// A bound with the name that the metric and the log have.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        Self { name, told: Mutex::new(Told { at: None, hits: 0 }) }
    }

    /// The bound has refused or dropped something.
    pub fn hit(&self) {
        if telemetry::measuring() {
            static HITS: OnceLock<Counter<u64>> = OnceLock::new();
            let made = || {
                telemetry::meter("trellis-fabric")
                    .u64_counter("trellis.bound.hits")
                    .with_unit("{hit}")
                    .with_description("work refused or dropped because a bound was reached, by bound")
                    .build()
            };
            HITS.get_or_init(made).add(1, &[KeyValue::new("trellis.bound", self.name)]);
        }
        let due = self.told.lock().unwrap_or_else(PoisonError::into_inner).hit(Instant::now());
        if let Some(hits) = due {
            tracing::warn!(bound = self.name, hits, "a bound is reached: work is refused or dropped");
        }
    }
}

/// When a bound was last told of, and the hits since then. Pure.
#[derive(Debug)]
struct Told {
    at: Option<Instant>,
    hits: u64,
}

impl Told {
    /// One more hit. Returns the hits to tell of, if a line is due.
    fn hit(&mut self, now: Instant) -> Option<u64> {
        self.hits += 1;
        if self.at.is_some_and(|at| now.saturating_duration_since(at) < TOLD_EVERY) {
            return None;
        }
        self.at = Some(now);
        Some(std::mem::take(&mut self.hits))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_hit_is_told_at_once_and_the_others_together() {
        let begin = Instant::now();
        let mut told = Told { at: None, hits: 0 };
        assert_eq!(told.hit(begin), Some(1));
        for ms in 1..1_000 {
            assert_eq!(told.hit(begin + Duration::from_millis(ms)), None);
        }
        assert_eq!(told.hit(begin + TOLD_EVERY), Some(1_000), "no hit is left out");
    }
}
