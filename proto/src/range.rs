//! A range of event time: pure.

/// A half-open range `[start, end)` of event time; an absent bound is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct TimeRange {
    /// First nanosecond inside; `None`: from the beginning.
    pub start: Option<i64>,
    /// First nanosecond after; `None`: to the end.
    pub end: Option<i64>,
}

impl TimeRange {
    /// Everything.
    pub const ALL: Self = Self { start: None, end: None };

    /// Whether `ts` lies inside.
    #[must_use]
    pub fn contains(&self, ts: i64) -> bool {
        self.start.is_none_or(|start| start <= ts) && self.end.is_none_or(|end| ts < end)
    }

    /// What lies in both; possibly empty.
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
        // An empty intersection is written with equal bounds, so that every TimeRange is a valid one.
        match (start, end) {
            (Some(s), Some(e)) if e < s => Self { start: Some(s), end: Some(s) },
            _ => Self { start, end },
        }
    }

    /// Whether no nanosecond lies inside.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        matches!((self.start, self.end), (Some(start), Some(end)) if end <= start)
    }
}
