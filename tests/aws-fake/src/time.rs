//! Time and chance. Both are functions of what the world was given: `now`, and the seed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat};

use crate::counters::Counters;
use crate::faults::Faults;
use crate::settings::Settings;

/// What happens by itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Due {
    /// A task takes its next step, unless its state changed since.
    Step { region: usize, cluster: Arc<str>, task: u64, version: u32 },
    /// A task counts as healthy.
    Settle { region: usize, cluster: Arc<str>, task: u64, version: u32 },
    /// A stopped task is forgotten.
    ForgetTask { region: usize, cluster: Arc<str>, task: u64 },
    /// The scheduler looks at a service.
    Schedule { region: usize, cluster: Arc<str>, service: Arc<str>, serial: u64 },
    /// An inactive service is forgotten.
    ForgetService { region: usize, cluster: Arc<str>, service: Arc<str>, serial: u64 },
    /// A deregistered instance is forgotten by Cloud Map.
    ForgetInstance { region: usize, service: Arc<str>, instance: Arc<str> },
}

/// Time, chance, what is to come, and what is written down. Each part of the world gets it in hand.
#[derive(Debug)]
pub(crate) struct Ctx {
    pub(crate) set: Settings,
    pub(crate) now: Duration,
    pub(crate) counters: Counters,
    pub(crate) faults: Faults,
    /// Set by a call that changed something.
    pub(crate) changed: bool,
    /// When the keys end that AssumeRole gave.
    pub(crate) keys: BTreeMap<String, Duration>,
    due: BinaryHeap<Reverse<(Duration, u64, Due)>>,
    serial: u64,
}

impl Ctx {
    pub(crate) fn new(set: Settings) -> Self {
        Self {
            set,
            now: Duration::ZERO,
            counters: Counters::default(),
            faults: Faults::default(),
            changed: false,
            keys: BTreeMap::new(),
            due: BinaryHeap::new(),
            serial: 0,
        }
    }

    /// The next number. Numbers are never used twice.
    pub(crate) fn serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    pub(crate) fn at(&mut self, at: Duration, what: Due) {
        let serial = self.serial();
        self.due.push(Reverse((at.max(self.now), serial, what)));
    }

    pub(crate) fn after(&mut self, delay: Duration, what: Due) {
        self.at(self.now + delay, what);
    }

    /// The next event that is due by `until`, and the clock moves to it.
    pub(crate) fn next(&mut self, until: Duration) -> Option<Due> {
        if self.due.peek().is_none_or(|Reverse((at, ..))| *at > until) {
            return None;
        }
        let Reverse((at, _, what)) = self.due.pop()?;
        self.now = at;
        Some(what)
    }

    /// When the next event is due.
    pub(crate) fn next_at(&self) -> Option<Duration> {
        self.due.peek().map(|Reverse((at, ..))| *at)
    }

    /// A number that is a function of the seed, of what it is for and of whom.
    pub(crate) fn draw(&self, what: &str, whom: u64) -> u64 {
        let mut hash = mix(self.set.seed);
        for byte in what.bytes() {
            hash = mix(hash ^ u64::from(byte));
        }
        mix(hash ^ whom)
    }

    /// A time in the range. The start, if the range is empty.
    pub(crate) fn draw_time(&self, range: &Range<Duration>, what: &str, whom: u64) -> Duration {
        let span = range.end.saturating_sub(range.start).as_nanos() as u64;
        if span == 0 {
            return range.start;
        }
        range.start + Duration::from_nanos(self.draw(what, whom) % span)
    }

    /// True for a share of all `whom`.
    pub(crate) fn draw_share(&self, share: f64, what: &str, whom: u64) -> bool {
        ((self.draw(what, whom) >> 11) as f64 / (1u64 << 53) as f64) < share
    }

    /// Seconds since 1970, as AWS JSON has them.
    pub(crate) fn stamp(&self, at: Duration) -> f64 {
        ((self.set.epoch as f64 + at.as_secs_f64()) * 1000.0).round() / 1000.0
    }

    /// The same as a text of ISO 8601.
    pub(crate) fn text(&self, at: Duration) -> String {
        iso(Duration::from_secs(self.set.epoch) + at)
    }
}

/// A one-to-one function on numbers that leaves no pattern (the finisher of SplitMix64).
pub(crate) fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// An id in the form of a UUID, a function of a number.
pub(crate) fn uuid(id: u64) -> String {
    let (a, b) = (mix(id), mix(!id));
    format!(
        "{:08x}-{:04x}-4{:03x}-a{:03x}-{:012x}",
        a >> 32,
        (a >> 16) & 0xffff,
        a & 0xfff,
        b >> 52,
        b & 0xffff_ffff_ffff
    )
}

/// A time since 1970 as `2026-11-30T12:00:00.000Z`.
pub(crate) fn iso(since: Duration) -> String {
    let time = DateTime::from_timestamp(since.as_secs() as i64, since.subsec_nanos()).unwrap_or_default();
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_order_of_time_and_then_of_making() {
        let mut ctx = Ctx::new(Settings::default());
        let due = |task| Due::ForgetTask { region: 0, cluster: "peony".into(), task };
        ctx.after(Duration::from_secs(2), due(1));
        ctx.after(Duration::from_secs(1), due(2));
        ctx.after(Duration::from_secs(2), due(3));
        assert_eq!(ctx.next(Duration::from_secs(1)), Some(due(2)));
        assert_eq!(ctx.next(Duration::from_secs(1)), None);
        assert_eq!(ctx.next(Duration::from_secs(9)), Some(due(1)));
        assert_eq!(ctx.next(Duration::from_secs(9)), Some(due(3)));
        assert_eq!(ctx.now, Duration::from_secs(2));
    }

    #[test]
    fn a_share_is_a_share() {
        let ctx = Ctx::new(Settings::default());
        let hits = (0..10_000).filter(|i| ctx.draw_share(0.3, "test", *i)).count();
        assert!((2_800..3_200).contains(&hits), "{hits}");
    }
}
