//! Time: signed nanoseconds since 1970-01-01T00:00:00Z, half-open ranges, aligned chunks. All arithmetic is on integers;
//! parsing uses chrono.

use std::ops::Range;

use chrono::{DateTime, NaiveDate, NaiveDateTime, NaiveTime, SecondsFormat, TimeZone, Utc};

use crate::{
    error::{Code, Error, Result},
    range::TimeRange,
};

/// Nanoseconds of a second.
pub const SECOND_NS: i64 = 1_000_000_000;
/// Nanoseconds of a UTC day.
pub const DAY_NS: i64 = 86_400 * SECOND_NS;

impl TimeRange {
    /// # Errors
    /// [`Code::InvalidRequest`] if `end < start`. Equal bounds are allowed: the range is empty.
    pub fn new(start: Option<i64>, end: Option<i64>) -> Result<Self> {
        if let (Some(start), Some(end)) = (start, end)
            && end < start
        {
            return Err(Error::new(
                Code::InvalidRequest,
                format!("the range ends ({}) before it starts ({})", format_time(end), format_time(start)),
            )
            .hint("ranges are [start, end): the start must be the earlier time"));
        }
        Ok(Self { start, end })
    }
}

/// The `chunk` setting of a dataset: the aligned span of event time that is fetched, cached and invalidated as one.
/// Chunk `k` covers `[k * span, (k + 1) * span)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChunkSpan(i64);

impl ChunkSpan {
    /// Shortest span. Each chunk costs a few hundred bytes of bookkeeping, so it should hold more than a row or two.
    pub const MIN_NS: i64 = SECOND_NS;

    /// # Errors
    /// [`Code::InvalidRequest`] if `span_ns` is shorter than [`Self::MIN_NS`].
    pub fn new(span_ns: i64) -> Result<Self> {
        if span_ns < Self::MIN_NS {
            return Err(Error::new(
                Code::InvalidRequest,
                format!("a chunk of {span_ns} ns is too short: the shortest is one second"),
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

/// The range of 64 bit nanoseconds, for messages.
pub const REACH: &str = "64 bit nanoseconds, which reach from 1677-09-21 to 2262-04-11";

/// Least positive integer that is taken as nanoseconds: 1973-03-03. People write smaller numbers as something else: a date
/// in digits (20160810), a year, or seconds, milliseconds or microseconds since 1970.
pub const INTEGER_NS_MIN: i64 = 100_000_000_000_000_000;

const FORMS: &str =
    "use ISO 8601 (2016-08-10 or 2016-08-10T13:30:00Z; UTC unless it says otherwise) or integer nanoseconds";

/// Checks an integer that is meant as a time, for every place of the grid that takes times. Zero, negative integers and
/// those from [`INTEGER_NS_MIN`] on are nanoseconds since 1970. The integers between are refused, and so are integers beyond
/// 64 bits that are a date in digits (`20160810143059123456`).
///
/// # Errors
/// [`Code::InvalidRequest`] with a hint about the time that was probably meant.
pub fn check_integer(number: i128) -> Result<()> {
    let Ok(ns) = i64::try_from(number) else {
        return match date_in_digits(&number.to_string()) {
            Some(date) => Err(Error::new(
                Code::InvalidRequest,
                format!("{number} is not a time: an integer is nanoseconds since 1970, and this one is beyond 64 bits"),
            )
            .hint(for_date(&date))),
            None => Ok(()),
        };
    };
    if ns <= 0 || ns >= INTEGER_NS_MIN {
        return Ok(());
    }
    let as_ns = Utc.timestamp_nanos(ns).to_rfc3339_opts(SecondsFormat::AutoSi, true);
    let message =
        format!("{ns} is not a time: an integer is nanoseconds since 1970, and this one would be {as_ns}");
    Err(Error::new(Code::InvalidRequest, message).hint(meant_by(ns)))
}

fn for_date(date: &str) -> String {
    format!("for that date write \"{date}\"")
}

/// The date, or date and time, that the digits are without separators.
fn date_in_digits(digits: &str) -> Option<String> {
    // chrono reads digits greedily, so the separators are put in first
    let part = |range: Range<usize>| digits.get(range).unwrap_or("");
    let date = match digits.len() {
        4 => format!("{digits}-01-01"),
        6 => format!("{}-{}-01", part(0..4), part(4..6)),
        8 | 12 | 14 | 17 | 20 | 23 => format!("{}-{}-{}", part(0..4), part(4..6), part(6..8)),
        _ => return None,
    };
    let of_day = match digits.len() {
        12 => format!("T{}:{}:00", part(8..10), part(10..12)),
        14 => format!("T{}:{}:{}", part(8..10), part(10..12), part(12..14)),
        17 | 20 | 23 => {
            format!("T{}:{}:{}.{}", part(8..10), part(10..12), part(12..14), part(14..digits.len()))
        }
        _ => String::new(),
    };
    let text = format!("{date}{of_day}");
    let years = "1000".."3000";
    (years.contains(&part(0..4)) && parse_ns(&text).is_ok()).then_some(text)
}

/// A hint about the time that is probably meant by `number`.
fn meant_by(number: i64) -> String {
    if let Some(date) = date_in_digits(&number.to_string()) {
        return for_date(&date);
    }
    let units = [("seconds", SECOND_NS), ("milliseconds", 1_000_000), ("microseconds", 1_000)];
    let plausible = units.iter().find_map(|(unit, ns)| {
        let scaled = number.checked_mul(*ns).filter(|ns| *ns >= INTEGER_NS_MIN)?;
        Some(format!(
            "as {unit} it is {}: write that, or multiply by {ns}",
            Utc.timestamp_nanos(scaled).to_rfc3339_opts(SecondsFormat::AutoSi, true)
        ))
    });
    plausible.unwrap_or_else(|| FORMS.to_owned())
}

/// Reads a time: an ISO 8601 date or date-time (`2016-08-10`, `2016-08-10T13:30`, `2016-08-10 13:30:00.5`, with `Z` or
/// an offset; without one it is UTC) or integer nanoseconds, by the rule of [`check_integer`].
///
/// # Errors
/// [`Code::InvalidRequest`] for anything else, and for times that 64 bit nanoseconds do not hold.
pub fn parse_time(text: &str) -> Result<i64> {
    i64::try_from(parse_ns(text)?)
        .map_err(|_| Error::new(Code::InvalidRequest, format!("{text:?} is outside of {REACH}")))
}

/// Like [`parse_time`], without a check of the range: for bounds.
///
/// # Errors
/// [`Code::InvalidRequest`] if the text is not a time.
pub fn parse_ns(text: &str) -> Result<i128> {
    let text = text.trim();
    let bad =
        |why: &str| Error::new(Code::InvalidRequest, format!("{text:?} is not a time: {why}")).hint(FORMS);
    let digits = text.strip_prefix('-').unwrap_or(text);
    if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
        let number: i128 = text.parse().map_err(|_| bad("it has too many digits"))?;
        check_integer(number)?;
        return Ok(number);
    }
    let ns = |time: DateTime<Utc>| {
        i128::from(time.timestamp()) * i128::from(SECOND_NS) + i128::from(time.timestamp_subsec_nanos())
    };
    if let Ok(date) = NaiveDate::parse_from_str(text, "%Y-%m-%d") {
        return Ok(ns(date.and_time(NaiveTime::MIN).and_utc()));
    }
    let spaced = text.replacen(' ', "T", 1);
    if let Ok(time) = DateTime::parse_from_rfc3339(&spaced) {
        return Ok(ns(time.to_utc()));
    }
    for form in ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M"] {
        let naive = NaiveDateTime::parse_from_str(spaced.strip_suffix('Z').unwrap_or(&spaced), form);
        if let Ok(time) = naive {
            return Ok(ns(time.and_utc()));
        }
    }
    let shape: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    match shape.as_str() {
        "0000-00" => {
            Err(bad("it has no day").hint(format!("for the first day of that month write {text}-01")))
        }
        _ if shape.starts_with("0000-00-00")
            && NaiveDate::parse_from_str(&text[..10], "%Y-%m-%d").is_err() =>
        {
            Err(bad("there is no such day"))
        }
        _ => Err(bad("its form is unknown")),
    }
}

/// A time as the start of a range. A time before the range of 64 bits becomes the first nanosecond, one after it the last.
#[must_use]
pub fn start_bound(ns: i128) -> i64 {
    i64::try_from(ns).unwrap_or(if ns < 0 { i64::MIN } else { i64::MAX })
}

/// A time as the end of a range, or as a knowledge time. A time after the range of 64 bits means no bound.
#[must_use]
pub fn end_bound(ns: i128) -> Option<i64> {
    i64::try_from(ns).ok().or((ns < 0).then_some(i64::MIN))
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
    fn a_day_that_does_not_exist_and_a_month_are_told_apart_from_an_unknown_form() {
        let told = |text: &str| {
            let error = parse_time(text).unwrap_err();
            (error.message().to_owned(), error.hint_text().to_owned())
        };
        for text in ["2016-13-01", "2016-02-30T10:00:00Z"] {
            assert!(told(text).0.ends_with("is not a time: there is no such day"), "{:?}", told(text));
        }
        let (message, hint) = told("2016-08");
        assert!(message.ends_with("it has no day") && hint.ends_with("write 2016-08-01"), "{message} {hint}");
        for text in ["yesterday", "08/10/2016", "2016-08-10x", "2016é08-10", "०१२३-०१-०१"] {
            assert!(told(text).0.ends_with("its form is unknown"), "{:?}", told(text));
        }
    }

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
    fn an_integer_that_is_a_date_or_of_another_unit_is_refused_with_what_was_meant() {
        for (number, hint) in [
            (2018, "write \"2018-01-01\""),
            (201_608, "write \"2016-08-01\""),
            (20_160_810, "write \"2016-08-10\""),
            (201_608_101_430, "write \"2016-08-10T14:30:00\""),
            (20_160_810_143_059, "write \"2016-08-10T14:30:59\""),
            (20_160_810_143_059_123, "write \"2016-08-10T14:30:59.123\""),
            (20_160_810_143_059_123_456, "write \"2016-08-10T14:30:59.123456\""),
            (1_470_787_200, "as seconds it is 2016-08-10T00:00:00Z"),
            (1_470_787_200_000, "as milliseconds it is 2016-08-10T00:00:00Z"),
            (1_470_787_200_000_000, "as microseconds it is 2016-08-10T00:00:00Z"),
            (1, "ISO 8601"),
            (20_169_999, "ISO 8601"),
        ] {
            let error = check_integer(number).unwrap_err();
            assert!(error.message().contains(&number.to_string()), "{error}");
            assert!(error.hint_text().contains(hint), "{number}: {error}");
            assert_eq!(parse_time(&number.to_string()).unwrap_err().to_string(), error.to_string());
        }
        for nanoseconds in [0, -1, -20_160_810, INTEGER_NS_MIN, 1_470_787_200 * SECOND_NS, i64::MAX] {
            check_integer(nanoseconds.into()).unwrap();
        }
    }

    #[test]
    fn a_time_beyond_all_time_is_an_error_by_its_name_and_a_bound_stops_there() {
        for text in ["9999-12-31", "9999-12-31T23:59:59Z", "2262-04-12", "9223372036854775808"] {
            assert!(parse_time(text).unwrap_err().message().contains(text), "{text}");
            let ns = parse_ns(text).unwrap();
            assert_eq!((start_bound(ns), end_bound(ns)), (i64::MAX, None), "{text}");
        }
        for text in ["1500-01-01", "0001-01-01", "1677-09-21", "-9223372036854775809"] {
            assert!(parse_time(text).unwrap_err().message().contains(text), "{text}");
            let ns = parse_ns(text).unwrap();
            assert_eq!((start_bound(ns), end_bound(ns)), (i64::MIN, Some(i64::MIN)), "{text}");
        }
        let inside = parse_ns("2016-08-10").unwrap();
        assert_eq!(
            (i128::from(start_bound(inside)), end_bound(inside).map(i128::from)),
            (inside, Some(inside))
        );
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
