//! Time as the grid knows it: signed nanoseconds since 1970-01-01T00:00:00Z, half-open ranges, aligned chunks.
//! Integers only; the calendar arithmetic of parsing is chrono's.

use std::ops::Range;

use chrono::{DateTime, NaiveDate, NaiveDateTime, SecondsFormat, TimeZone, Utc};

use crate::{Code, Error, Result};

/// Nanoseconds of a second.
pub const SECOND_NS: i64 = 1_000_000_000;
/// Nanoseconds of a UTC day.
pub const DAY_NS: i64 = 86_400 * SECOND_NS;

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

    /// # Errors
    /// [`Code::InvalidRequest`] if `end < start`. Equal bounds are a range without a nanosecond, which is allowed.
    pub fn new(start: Option<i64>, end: Option<i64>) -> Result<Self> {
        if let (Some(start), Some(end)) = (start, end)
            && end < start
        {
            return Err(Error::new(
                Code::InvalidRequest,
                format!("the range ends ({}) before it starts ({})", format_time(end), format_time(start)),
            )
            .hint("ranges are [start, end): give the earlier time as start"));
        }
        Ok(Self { start, end })
    }

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

/// The `chunk` setting of a dataset: the aligned span of event time that is fetched, cached and invalidated as one.
/// Chunk `k` covers `[k * span, (k + 1) * span)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChunkSpan(i64);

impl ChunkSpan {
    /// Shortest span: a chunk is bookkeeping of some hundred bytes, so it must be able to hold more than a row or two.
    pub const MIN_NS: i64 = SECOND_NS;

    /// # Errors
    /// [`Code::InvalidRequest`] if `span_ns` is shorter than [`Self::MIN_NS`].
    pub fn new(span_ns: i64) -> Result<Self> {
        if span_ns < Self::MIN_NS {
            return Err(Error::new(
                Code::InvalidRequest,
                format!("a chunk of {span_ns} ns is too short: the least is one second"),
            ));
        }
        Ok(Self(span_ns))
    }

    /// Length in nanoseconds.
    #[must_use]
    pub fn ns(self) -> i64 {
        self.0
    }

    /// The chunk that `ts` lies in.
    #[must_use]
    pub fn chunk_of(self, ts: i64) -> i64 {
        ts.div_euclid(self.0)
    }

    /// First nanosecond of chunk `k`, saturating at the ends of time.
    #[must_use]
    pub fn start(self, k: i64) -> i64 {
        k.saturating_mul(self.0)
    }

    /// First nanosecond after chunk `k`, saturating at the ends of time.
    #[must_use]
    pub fn end(self, k: i64) -> i64 {
        k.saturating_add(1).saturating_mul(self.0)
    }

    /// `(start, end)` of chunk `k`.
    #[must_use]
    pub fn range(self, k: i64) -> (i64, i64) {
        (self.start(k), self.end(k))
    }

    /// The chunks that `[start, end)` touches; none if it is empty.
    #[must_use]
    pub fn cover(self, start: i64, end: i64) -> Range<i64> {
        if end <= start {
            let k = self.chunk_of(start);
            return k..k;
        }
        self.chunk_of(start)..self.chunk_of(end - 1) + 1
    }
}

/// Reads a time: an ISO 8601 date or date-time (`2016-08-10`, `2016-08-10T13:30`, `2016-08-10 13:30:00.5`, with `Z` or
/// an offset; without one it is UTC) or integer nanoseconds.
///
/// # Errors
/// [`Code::InvalidRequest`] for anything else, and for times outside the years 1678 to 2261 (64 bit nanoseconds).
pub fn parse_time(text: &str) -> Result<i64> {
    let text = text.trim();
    let bad = |why: &str| {
        Error::new(Code::InvalidRequest, format!("{text:?} is not a time: {why}"))
            .hint("use ISO 8601 (2016-08-10 or 2016-08-10T13:30:00Z; UTC unless it says otherwise) or integer nanoseconds")
    };
    let digits = text.strip_prefix('-').unwrap_or(text);
    if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
        // 20160810 would be 20 milliseconds after 1970: certainly a date somebody meant.
        if digits.len() <= 8 && digits.len() >= 4 && !text.starts_with('-') {
            return Err(bad("a number is nanoseconds since 1970, and this one is too small to be meant so"));
        }
        return text.parse().map_err(|_| bad("the nanoseconds do not fit 64 bits"));
    }
    let out_of_range = || bad("it is outside the years 1678 to 2261");
    if let Ok(date) = NaiveDate::parse_from_str(text, "%Y-%m-%d") {
        let midnight = date.and_hms_opt(0, 0, 0).ok_or_else(out_of_range)?;
        return midnight.and_utc().timestamp_nanos_opt().ok_or_else(out_of_range);
    }
    let spaced = text.replacen(' ', "T", 1);
    if let Ok(time) = DateTime::parse_from_rfc3339(&spaced) {
        return time.timestamp_nanos_opt().ok_or_else(out_of_range);
    }
    for form in ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M"] {
        let naive = NaiveDateTime::parse_from_str(spaced.strip_suffix('Z').unwrap_or(&spaced), form);
        if let Ok(time) = naive {
            return time.and_utc().timestamp_nanos_opt().ok_or_else(out_of_range);
        }
    }
    Err(bad("no known form"))
}

/// Writes a time so that [`parse_time`] reads it back: a date if it is a midnight, else a date-time in UTC.
#[must_use]
pub fn format_time(ns: i64) -> String {
    let time = Utc.timestamp_nanos(ns);
    if ns.rem_euclid(DAY_NS) == 0 {
        return time.format("%Y-%m-%d").to_string();
    }
    time.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

/// Reads a duration: a number and one of `ns`, `us`, `ms`, `s`, `m`, `h`, `d`, `w`: `20m`, `64d`, `1.5h`. In nanoseconds,
/// not negative.
///
/// # Errors
/// [`Code::InvalidRequest`] for anything else, and for durations over 292 years.
pub fn parse_duration(text: &str) -> Result<i64> {
    let text = text.trim();
    let bad = || {
        Error::new(Code::InvalidRequest, format!("{text:?} is not a duration"))
            .hint("use a number and ns, us, ms, s, m, h, d or w: 20m, 64d, 1.5h")
    };
    let split = text.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(bad)?;
    let (number, unit) = text.split_at(split);
    let unit_ns: i64 = match unit {
        "ns" => 1,
        "us" => 1_000,
        "ms" => 1_000_000,
        "s" => SECOND_NS,
        "m" => 60 * SECOND_NS,
        "h" => 3_600 * SECOND_NS,
        "d" => DAY_NS,
        "w" => 7 * DAY_NS,
        _ => return Err(bad()),
    };
    let number = number.trim();
    if let Ok(whole) = number.parse::<u32>() {
        return i64::from(whole).checked_mul(unit_ns).ok_or_else(bad);
    }
    let value: f64 = number.parse().map_err(|_| bad())?;
    let ns = value * unit_ns as f64;
    if !ns.is_finite() || ns < 0.0 || ns >= i64::MAX as f64 {
        return Err(bad());
    }
    Ok(ns.round() as i64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_are_read_in_the_forms_people_write() {
        let day = 1_470_787_200 * SECOND_NS;
        for (text, ns) in [
            ("2016-08-10", day),
            ("2016-08-10T00:00", day),
            ("2016-08-10 00:00:00Z", day),
            ("2016-08-10T02:00:00+02:00", day),
            ("2016-08-10T13:30:00.5", day + 48_600 * SECOND_NS + 500_000_000),
            ("1470787200000000000", day),
            ("-1", -1),
            ("0", 0),
            ("1969-12-31", -DAY_NS),
        ] {
            assert_eq!(parse_time(text).unwrap(), ns, "{text}");
        }
        for bad in [
            "",
            "yesterday",
            "20160810",
            "2016",
            "2016-13-01",
            "2016-02-30",
            "99999999999999999999",
            "1500-01-01",
        ] {
            assert_eq!(parse_time(bad).unwrap_err().code(), Code::InvalidRequest, "{bad:?}");
        }
    }

    #[test]
    fn durations_are_a_number_and_a_unit() {
        assert_eq!(parse_duration("20m").unwrap(), 1_200 * SECOND_NS);
        assert_eq!(parse_duration("64d").unwrap(), 64 * DAY_NS);
        assert_eq!(parse_duration("1.5h").unwrap(), 5_400 * SECOND_NS);
        for bad in ["", "20", "m", "-5m", "5 parsecs", "999999999w", "NaNs", "infs"] {
            assert!(parse_duration(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_range_that_ends_before_it_starts_is_refused() {
        let error = TimeRange::new(Some(1), Some(0)).unwrap_err();
        assert_eq!(error.code(), Code::InvalidRequest);
        assert!(TimeRange::new(Some(1), Some(1)).unwrap().is_empty());
        assert!(!TimeRange::ALL.is_empty());
    }

    proptest! {
        #[test]
        fn format_reads_back(ns in any::<i64>()) {
            prop_assert_eq!(parse_time(&format_time(ns)).unwrap(), ns);
        }

        #[test]
        fn every_time_lies_in_its_chunk(ts in -(1i64 << 62)..1i64 << 62, span in ChunkSpan::MIN_NS..1i64 << 56) {
            let span = ChunkSpan::new(span).unwrap();
            let (start, end) = span.range(span.chunk_of(ts));
            prop_assert!(start <= ts && ts < end);
        }

        #[test]
        fn cover_is_the_least_run_of_chunks(start in -(1i64 << 60)..1i64 << 60, length in 0i64..1 << 50, span in ChunkSpan::MIN_NS..1i64 << 50) {
            let (span, end) = (ChunkSpan::new(span).unwrap(), start + length);
            let cover = span.cover(start, end);
            if length == 0 {
                prop_assert!(cover.is_empty());
            } else {
                prop_assert!(span.start(cover.start) <= start && start < span.end(cover.start));
                prop_assert!(span.start(cover.end - 1) < end && end <= span.end(cover.end - 1));
            }
        }

        #[test]
        fn an_intersection_contains_what_both_contain(
            a in proptest::array::uniform4(proptest::option::of(-50i64..50)), ts in -60i64..60,
        ) {
            let range = |s: Option<i64>, e: Option<i64>| TimeRange::new(s.min(e.or(s)), e).unwrap_or(TimeRange { start: e, end: s });
            let (x, y) = (range(a[0], a[1]), range(a[2], a[3]));
            prop_assert_eq!(x.intersect(&y).contains(ts), x.contains(ts) && y.contains(ts));
        }
    }
}
