//! A range of event time: pure.

/// A half-open range `[start, end)` of event time; an absent bound means no bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct TimeRange {
    /// The first nanosecond inside; `None`: no bound.
    pub start: Option<i64>,
    /// The first nanosecond after the range; `None`: no bound.
    pub end: Option<i64>,
}

impl TimeRange {
    /// All times.
    pub const ALL: Self = Self { start: None, end: None };

    /// Whether `ts` lies inside.
    #[must_use]
    pub fn contains(&self, ts: i64) -> bool {
        self.start.is_none_or(|start| start <= ts) && self.end.is_none_or(|end| ts < end)
    }

    /// The intersection of both ranges; possibly empty.
    #[must_use]
    pub fn intersect(&self, other: &Self) -> Self {
        let start = match (self.start, other.start) {
            (Some(a), Some(b)) => Some(a.max(b)),
            (a, b) => a.or(b),
        };
        let end = match (self.end, other.end) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        // An empty intersection gets equal bounds, so that every TimeRange is valid.
        match (start, end) {
            (Some(s), Some(e)) if e < s => Self { start: Some(s), end: Some(s) },
            _ => Self { start, end },
        }
    }

    /// Whether the range has no nanosecond.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        matches!((self.start, self.end), (Some(start), Some(end)) if end <= start)
    }
}
