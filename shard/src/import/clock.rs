//! Times in text and integers, to nanoseconds of UTC.
//!
//! The forms are a closed list of ISO 8601, parsed here rather than by `arrow_cast::parse::string_to_datetime`, which
//! cannot say whether a local time does not exist or happens twice, and takes a leap second for the second after it.
//! `01/02/2016` is refused: nobody but its author knows which month that is.

use std::borrow::Cow;

use chrono::{MappedLocalTime, NaiveDate, NaiveDateTime, NaiveTime, TimeDelta, TimeZone};
use chrono_tz::Tz;

use super::TsUnit;

/// Why a value is refused, without the value.
pub(crate) type Reason = Cow<'static, str>;

const OUTSIDE: &str = "the time is outside the years 1678 to 2261, which nanoseconds can hold";
const NOT_ISO: &str =
    "not a date or time of ISO 8601 (2016-08-10, 2016-08-10T14:30:00.25, with Z or an offset)";
const NANOS_OF_DAY: i64 = 86_400_000_000_000;

/// Local times of one zone.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Zone(pub(crate) Tz);

impl Zone {
    /// The instant of a local time.
    pub(crate) fn instant(self, local: NaiveDateTime) -> Result<i64, Reason> {
        if self.0 == Tz::UTC {
            return local.and_utc().timestamp_nanos_opt().ok_or(OUTSIDE.into());
        }
        match self.0.from_local_datetime(&local) {
            MappedLocalTime::Single(at) => at.timestamp_nanos_opt().ok_or(OUTSIDE.into()),
            MappedLocalTime::None => {
                Err(format!("the time does not exist in {}: clocks were put forward", self.0).into())
            }
            MappedLocalTime::Ambiguous(first, second) => Err(format!(
                "the time happens twice in {}, at {} and at {}: write it with its offset, or in UTC",
                self.0,
                first.naive_utc().and_utc().format("%H:%M:%SZ"),
                second.naive_utc().and_utc().format("%H:%M:%SZ"),
            )
            .into()),
        }
    }

    /// The instant of an ISO date (its midnight) or time.
    pub(crate) fn text(self, text: &str) -> Result<i64, Reason> {
        let (local, offset_s) = iso(text).ok_or(NOT_ISO)?;
        match offset_s {
            None => self.instant(local),
            Some(offset) => local
                .checked_sub_signed(TimeDelta::seconds(offset.into()))
                .and_then(|utc| utc.and_utc().timestamp_nanos_opt())
                .ok_or(OUTSIDE.into()),
        }
    }

    /// The midnight of a day written `20160810`; `None` if it is none.
    pub(crate) fn compact_day(self, value: i64) -> Option<Result<i64, Reason>> {
        let year = i32::try_from(value / 10_000).ok().filter(|y| (1000..=9999).contains(y))?;
        let (month, day) = (u32::try_from(value / 100 % 100).ok()?, u32::try_from(value % 100).ok()?);
        let day = NaiveDate::from_ymd_opt(year, month, day)?;
        Some(self.instant(day.and_time(NaiveTime::MIN)))
    }

    /// The instant of nanoseconds since 1970 by the clock on the wall.
    pub(crate) fn wall(self, ns: i64) -> Result<i64, Reason> {
        if self.0 == Tz::UTC {
            return Ok(ns);
        }
        self.instant(chrono::DateTime::from_timestamp_nanos(ns).naive_utc())
    }
}

/// How the values of a key column become instants.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    pub(crate) zone: Zone,
    pub(crate) unit: Option<TsUnit>,
    /// For units that count within a day.
    pub(crate) day: Option<NaiveDate>,
}

impl Clock {
    pub(crate) fn text(&self, text: &str) -> Result<i64, Reason> {
        match integer(text) {
            Some(value) => self.integer(value),
            None if self.unit.is_none() => self.zone.text(text),
            None => Err("not an integer, though a unit is given".into()),
        }
    }

    pub(crate) fn integer(&self, value: i64) -> Result<i64, Reason> {
        let Some(unit) = self.unit else {
            return self.zone.compact_day(value).unwrap_or(Err(
                "an integer is a time only with its unit (--ts-unit s, ms, us, ns or ms-of-day) or as yyyymmdd".into(),
            ));
        };
        let ns = value.checked_mul(unit.ns());
        if !unit.of_day() {
            return ns.ok_or(OUTSIDE.into());
        }
        let day = self.day.ok_or("the day is not known")?;
        let ns = ns.filter(|ns| (0..NANOS_OF_DAY).contains(ns)).ok_or("not within a day")?;
        self.zone.instant(day.and_time(NaiveTime::MIN) + TimeDelta::nanoseconds(ns))
    }
}

/// An integer, also as `1470787200.0`, which is how a column with gaps leaves pandas.
fn integer(text: &str) -> Option<i64> {
    let digits = match text.split_once('.') {
        Some((whole, zeros)) if !zeros.is_empty() && zeros.bytes().all(|b| b == b'0') => whole,
        Some(_) => return None,
        None => text,
    };
    digits.parse().ok()
}

/// A date, or a date and a time, with the offset in seconds if there is one.
pub(crate) fn iso(text: &str) -> Option<(NaiveDateTime, Option<i32>)> {
    let date = text.get(..10)?;
    let b = date.as_bytes();
    if b[4] != b'-' || b[7] != b'-' {
        return None;
    }
    let day = NaiveDate::from_ymd_opt(
        i32::try_from(number(&date[..4])?).ok()?,
        number(&date[5..7])?,
        number(&date[8..])?,
    )?;
    let rest = &text[10..];
    if rest.is_empty() {
        return Some((day.and_time(NaiveTime::MIN), None));
    }
    let (time, offset) = time_and_offset(rest.strip_prefix(['T', 't', ' '])?)?;
    Some((day.and_time(time), offset))
}

/// `HH:MM[:SS[.fraction]][ ][Z|UTC|±HH[[:]MM]]`
fn time_and_offset(text: &str) -> Option<(NaiveTime, Option<i32>)> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != ':' && c != '.').unwrap_or(text.len());
    let (clock, zone) = (&text[..end], text[end..].trim_start_matches(' '));
    let (hms, fraction) = match clock.split_once('.') {
        Some((hms, fraction)) if hms.len() == 8 => (hms, fraction),
        Some(_) => return None,
        None => (clock, "0"),
    };
    let b = hms.as_bytes();
    let seconds = match b.len() {
        5 => 0,
        8 if b[5] == b':' => number(&hms[6..])?,
        _ => return None,
    };
    if b[2] != b':' || fraction.is_empty() || fraction.len() > 9 {
        return None;
    }
    let nanos = number(fraction)? * 10_u32.pow(9 - u32::try_from(fraction.len()).ok()?);
    let time = NaiveTime::from_hms_nano_opt(number(&hms[..2])?, number(&hms[3..5])?, seconds, nanos)?;
    Some((time, offset(zone)?))
}

/// The outer `None`: no offset can be read.
fn offset(zone: &str) -> Option<Option<i32>> {
    if zone.is_empty() {
        return Some(None);
    }
    if zone.eq_ignore_ascii_case("z") || zone == "UTC" {
        return Some(Some(0));
    }
    let (sign, digits) = match zone.split_at_checked(1)? {
        ("+", digits) => (1, digits),
        ("-", digits) => (-1, digits),
        _ => return None,
    };
    let (hours, minutes) = match digits.len() {
        2 => (digits, "00"),
        4 => digits.split_at_checked(2)?,
        5 if digits.as_bytes()[2] == b':' => (digits.get(..2)?, digits.get(3..)?),
        _ => return None,
    };
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    if hours > 15 || minutes > 59 {
        return None;
    }
    Some(Some(sign * i32::try_from(hours * 3600 + minutes * 60).ok()?))
}

/// Digits only: `str::parse` would take a sign.
fn number(digits: &str) -> Option<u32> {
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use arrow_cast::parse::string_to_timestamp_nanos;
    use proptest::prelude::*;

    use super::*;

    const UTC: Zone = Zone(Tz::UTC);
    const NEW_YORK: Zone = Zone(Tz::America__New_York);

    #[test]
    fn every_accepted_form_is_the_instant_that_arrow_reads() {
        for text in [
            "1950-01-03",
            "2016-08-10T14:30:00",
            "2016-08-10 14:30:00.25",
            "2016-08-10T14:30:00.123456789Z",
            "2016-08-10T14:30:00-04:00",
            "2016-08-10 14:30:00+0530",
            "2016-08-10 14:30:00 -08",
        ] {
            assert_eq!(UTC.text(text), Ok(string_to_timestamp_nanos(text).unwrap()), "{text}");
        }
        assert_eq!(UTC.text("2016-08-10 14:30"), UTC.text("2016-08-10T14:30:00"));
        assert_eq!(UTC.text("2016-08-10 14:30:00 UTC"), UTC.text("2016-08-10T14:30:00Z"));
    }

    #[test]
    fn other_forms_are_refused() {
        for text in [
            "",
            "2016",
            "2016-8-10",
            "08/10/2016",
            "2016-02-30",
            "2016-08-10T",
            "2016-08-10T24:00:00",
            "2016-08-10T14",
            "2016-08-10T14:30:60",
            "2016-08-10T14:30:00.",
            "2016-08-10T14:30.5",
            "2016-08-10T14:30:00.1234567890",
            "2016-08-10X14:30:00",
            "2016-08-10T14:30:00 EST",
            "2016-08-10T+1:30:00",
            "2016-08-10T14:30:00+99:00",
            "2016-08-1é",
            "٢016-08-10",
        ] {
            assert!(UTC.text(text).is_err(), "{text:?}");
        }
        assert_eq!(UTC.text("1066-10-14").unwrap_err(), OUTSIDE);
    }

    #[test]
    fn local_times_follow_the_zone_and_its_changes() {
        assert_eq!(NEW_YORK.text("2016-08-10 09:30"), UTC.text("2016-08-10T13:30:00"));
        assert_eq!(NEW_YORK.text("2016-12-10 09:30"), UTC.text("2016-12-10T14:30:00"));
        assert_eq!(NEW_YORK.text("2016-12-10 09:30Z"), UTC.text("2016-12-10T09:30:00"));
        let gap = NEW_YORK.text("2016-03-13 02:30").unwrap_err();
        assert!(gap.contains("does not exist in America/New_York"), "{gap}");
        let fold = NEW_YORK.text("2016-11-06 01:30").unwrap_err();
        assert!(
            fold.contains("05:30:00Z") && fold.contains("06:30:00Z") && fold.contains("offset"),
            "{fold}"
        );
    }

    #[test]
    fn integers_need_a_unit_unless_they_are_days() {
        let clock = |unit, day| Clock { zone: UTC, unit, day };
        let day = NaiveDate::from_ymd_opt(2014, 5, 1);
        assert_eq!(clock(None, None).text("20160810"), UTC.text("2016-08-10"));
        assert!(clock(None, None).text("20161310").unwrap_err().contains("--ts-unit"));
        assert!(clock(None, None).text("1470787200").unwrap_err().contains("--ts-unit"));
        assert_eq!(clock(Some(TsUnit::S), None).text("1470787200"), UTC.text("2016-08-10"));
        assert_eq!(clock(Some(TsUnit::S), None).text("20160810"), Ok(20_160_810_000_000_000));
        assert_eq!(clock(Some(TsUnit::Ms), None).text("1470787200000.0"), UTC.text("2016-08-10"));
        assert!(clock(Some(TsUnit::S), None).text("1.5").is_err());
        assert!(clock(Some(TsUnit::S), None).text("2016-08-10").is_err());
        assert!(clock(Some(TsUnit::S), None).text("9223372036854775807").is_err());
        assert_eq!(clock(Some(TsUnit::MsOfDay), day).text("60000"), UTC.text("2014-05-01T00:01:00"));
        assert!(clock(Some(TsUnit::MsOfDay), day).text("86400000").is_err());
        assert!(clock(Some(TsUnit::MsOfDay), day).text("-1").is_err());
    }

    proptest! {
        #[test]
        fn what_chrono_writes_is_read_back(ns in any::<i64>(), offset_min in -14 * 60..=14 * 60_i32) {
            let at = chrono::DateTime::from_timestamp_nanos(ns);
            let offset = chrono::FixedOffset::east_opt(offset_min * 60).unwrap();
            prop_assert_eq!(UTC.text(&at.to_rfc3339()), Ok(ns));
            prop_assert_eq!(UTC.text(&at.with_timezone(&offset).to_rfc3339()), Ok(ns));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,40}", tail in "[0-9:. TZ+-]{0,30}") {
            let _ = UTC.text(&text);
            let _ = UTC.text(&format!("2016-08-10{tail}"));
        }
    }
}
