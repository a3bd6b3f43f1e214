//! Times in text and integers, to nanoseconds of UTC.
//!
//! The forms are a closed list of ISO 8601, parsed here rather than by `arrow_cast::parse::string_to_datetime`, which
//! cannot say whether a local time does not exist or happens twice, and takes a leap second for the second after it.
//! `01/02/2016` is read only by a form that the caller gives, because only its author knows which part is the month.

use std::{borrow::Cow, sync::Arc};

use chrono::{
    MappedLocalTime, NaiveDate, NaiveDateTime, NaiveTime, TimeDelta, TimeZone, Timelike,
    format::{Item, Parsed, StrftimeItems},
};
use chrono_tz::Tz;

use super::{number, unit::TsUnit};
use crate::files::readable_ts;

/// The reason why a value is refused, without the value.
pub(crate) type Reason = Cow<'static, str>;

pub(crate) const OUTSIDE: &str = "the time is outside the years 1678 to 2261, which nanoseconds can hold";
const NOT_ISO: &str =
    "not a date or time of ISO 8601 (2016-08-10, 2016-08-10T14:30:00.25, with Z or an offset)";
const NO_FORM: &str = "none of the forms of --ts-format";
const NANOS_OF_DAY: i64 = 86_400_000_000_000;

/// The form name that stands for ISO 8601 among the forms that the caller gives.
pub(crate) const ISO: &str = "iso";

/// A time as it is written, before a zone makes it an instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// A date without a time.
    Day(NaiveDate),
    /// A local time.
    Local(NaiveDateTime),
    /// Nanoseconds, UTC.
    At(i64),
}

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

    fn resolve(self, when: When) -> Result<i64, Reason> {
        match when {
            When::Day(day) => self.instant(day.and_time(NaiveTime::MIN)),
            When::Local(local) => self.instant(local),
            When::At(ns) => Ok(ns),
        }
    }
}

/// The day written `20160810`; `None` if it is none.
pub(crate) fn compact_day(value: i64) -> Option<NaiveDate> {
    let year = i32::try_from(value / 10_000).ok().filter(|y| (1000..=9999).contains(y))?;
    let (month, day) = (u32::try_from(value / 100 % 100).ok()?, u32::try_from(value % 100).ok()?);
    NaiveDate::from_ymd_opt(year, month, day)
}

/// Dates named by the local midnights of a zone: its sessions, written as instants.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DateZone(pub(crate) Tz);

impl DateZone {
    /// The midnight UTC of the date that `when` names. A day whose clocks skip midnight is named by its first moment; one
    /// that has two midnights, by either.
    fn date(self, when: When, zone: Option<Zone>) -> Result<i64, Reason> {
        let day = match (when, zone) {
            (When::Day(day), _) => Some(day),
            (When::Local(local), None) => self.named_by_wall(local),
            (When::Local(local), Some(zone)) => self.named_by(zone.instant(local)?),
            (When::At(ns), _) => self.named_by(ns),
        };
        let day = day.ok_or_else(|| {
            format!("not a midnight of {}, and so no date of its (see --date-zone)", self.0)
        })?;
        day.and_time(NaiveTime::MIN).and_utc().timestamp_nanos_opt().ok_or(OUTSIDE.into())
    }

    fn named_by(self, ns: i64) -> Option<NaiveDate> {
        let local =
            |ns: i64| self.0.from_utc_datetime(&chrono::DateTime::from_timestamp_nanos(ns).naive_utc());
        let at = local(ns).naive_local();
        let first = || ns.checked_sub(1).is_some_and(|before| local(before).date_naive() < at.date());
        (at.time() == NaiveTime::MIN || first()).then(|| at.date())
    }

    fn named_by_wall(self, local: NaiveDateTime) -> Option<NaiveDate> {
        if local.time() == NaiveTime::MIN {
            return Some(local.date());
        }
        let at = self.0.from_local_datetime(&local).earliest()?;
        self.named_by(at.timestamp_nanos_opt()?)
    }
}

/// How the values of a time column become instants.
#[derive(Debug, Clone)]
pub(crate) struct Clock {
    /// The zone of times that name none. `None`: the caller named no zone, and such times are in UTC. A date without a time
    /// is that date in every zone.
    pub(crate) zone: Option<Zone>,
    pub(crate) unit: Option<TsUnit>,
    /// The day of times in a unit that counts within a day.
    pub(crate) day: Option<NaiveDate>,
    /// The forms of times that are text. Empty: ISO 8601, and `yyyymmdd`.
    pub(crate) forms: Arc<[Form]>,
    /// Times are dates of this zone.
    pub(crate) dates: Option<DateZone>,
    /// Whether a date without a time is the midnight of the zone. It is if local times stand beside the dates.
    pub(crate) moments: bool,
}

impl Clock {
    pub(crate) fn resolve(&self, when: When) -> Result<i64, Reason> {
        let zone = self.zone.filter(|_| self.moments || !matches!(when, When::Day(_)));
        let ns = match self.dates {
            Some(dates) => dates.date(when, self.zone)?,
            None => zone.unwrap_or(Zone(Tz::UTC)).resolve(when)?,
        };
        if readable_ts(ns) { Ok(ns) } else { Err(OUTSIDE.into()) }
    }

    pub(crate) fn text(&self, text: &str) -> Result<i64, Reason> {
        self.resolve(self.written(text)?)
    }

    pub(crate) fn integer(&self, value: i64) -> Result<i64, Reason> {
        self.text(&value.to_string())
    }

    /// The time as it is written, before a zone is applied.
    pub(crate) fn written(&self, text: &str) -> Result<When, Reason> {
        if self.unit.is_some() {
            return self.counted(text);
        }
        if !self.forms.is_empty() {
            return by_forms(&self.forms, text);
        }
        match integer(text) {
            None => iso(text).ok_or(NOT_ISO)?.when(),
            Some(value) => compact_day(value).map(When::Day).ok_or_else(|| Count::of(value).reason()),
        }
    }

    /// A number of units, whole or not; more digits than a nanosecond are none.
    fn counted(&self, text: &str) -> Result<When, Reason> {
        let unit = self.unit.ok_or("no unit is given")?;
        if !number::is_plain(text) || text.contains(['e', 'E']) {
            return Err("not a number of units, though --ts-unit is given".into());
        }
        if unit == TsUnit::Excel {
            return excel(text);
        }
        if !unit.of_day() && looks_like_a_date(text) {
            return Err(
                "a calendar date and not a number of units: leave out --ts-unit, or give its form with \
                        --ts-format"
                    .into(),
            );
        }
        let shift = unit.ns().ilog10();
        let ns = number::whole(&format!("{text}e{shift}"))
            .ok_or("a fraction of a nanosecond")?
            .map_err(|_| OUTSIDE)?;
        if !unit.of_day() {
            return Ok(When::At(ns));
        }
        let day = self.day.ok_or("the day is not known")?;
        if !(0..NANOS_OF_DAY).contains(&ns) {
            return Err("not within a day".into());
        }
        Ok(When::Local(day.and_time(NaiveTime::MIN) + TimeDelta::nanoseconds(ns)))
    }
}

/// The possible meanings of an integer that is no time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Count {
    /// A date, and perhaps a time, that this form reads.
    Calendar(&'static str),
    Excel,
    Units(TsUnit),
    Unclear,
}

impl Count {
    pub(crate) fn of(value: i64) -> Self {
        if let Some(form) = calendar(&value.to_string()) {
            return Self::Calendar(form);
        }
        match value {
            // 1954 to 2091
            20_000..=70_000 => Self::Excel,
            v => match v.unsigned_abs().to_string().len() {
                9 | 10 => Self::Units(TsUnit::S),
                12 | 13 => Self::Units(TsUnit::Ms),
                15 | 16 => Self::Units(TsUnit::Us),
                18 | 19 => Self::Units(TsUnit::Ns),
                _ => Self::Unclear,
            },
        }
    }

    /// The options that read it.
    pub(crate) fn option(self) -> Option<String> {
        let option = match self {
            Self::Calendar(form) => return Some(format!("--ts-format {form}")),
            Self::Excel => "--ts-unit excel",
            Self::Units(TsUnit::S) => "--ts-unit s",
            Self::Units(TsUnit::Ms) => "--ts-unit ms",
            Self::Units(TsUnit::Us) => "--ts-unit us",
            Self::Units(_) => "--ts-unit ns",
            Self::Unclear => return None,
        };
        Some(option.to_owned())
    }

    fn reason(self) -> Reason {
        match self {
            Self::Calendar(form) => {
                return format!("a calendar date written as a number is read by its form (--ts-format {form})").into();
            }
            Self::Excel => "an integer is a time only with its unit; days of Excel are --ts-unit excel",
            Self::Units(_) | Self::Unclear => {
                "an integer is a time only with its unit (--ts-unit s, ms, us, ns or ms-of-day) or as yyyymmdd"
            }
        }
        .into()
    }
}

/// The form by which digits are a calendar date of our time: `2016`, `201608` to `20160810093000`.
pub(crate) fn calendar(digits: &str) -> Option<&'static str> {
    const YEARS: std::ops::RangeInclusive<u32> = 1_900..=2_100;
    const FORMS: [(usize, &str); 6] =
        [(4, "%Y"), (6, "%Y%m"), (8, "%Y%m%d"), (10, "%Y%m%d%H"), (12, "%Y%m%d%H%M"), (14, "%Y%m%d%H%M%S")];
    let (_, form) = FORMS.iter().find(|(length, _)| *length == digits.len())?;
    let part = |at: usize, length: usize, absent: u32| match digits.get(at..at + length) {
        Some(part) => number(part),
        None => Some(absent),
    };
    let year = part(0, 4, 0).filter(|year| YEARS.contains(year))?;
    let day = NaiveDate::from_ymd_opt(i32::try_from(year).ok()?, part(4, 2, 1)?, part(6, 2, 1)?)?;
    day.and_hms_opt(part(8, 2, 0)?, part(10, 2, 0)?, part(12, 2, 0)?).map(|_| *form)
}

/// `20160810093000`
fn compact_time(digits: &str) -> bool {
    digits.len() == 14 && NaiveDateTime::parse_from_str(digits, "%Y%m%d%H%M%S").is_ok()
}

/// Eight or fourteen digits that are a day of our time.
fn looks_like_a_date(text: &str) -> bool {
    let digits = text.strip_suffix(".0").unwrap_or(text);
    let plain = digits.bytes().all(|b| b.is_ascii_digit());
    let day = |digits: &str| {
        digits.parse().ok().filter(|d| (19_000_000..22_000_000).contains(d)).and_then(compact_day).is_some()
    };
    plain && (digits.len() == 8 && day(digits) || compact_time(digits) && day(&digits[..8]))
}

/// Days since the last of 1899, as Excel and LibreOffice count; a fraction is a time, to the millisecond.
fn excel(text: &str) -> Result<When, Reason> {
    // the day after the 29 February 1900 that never was
    const FIRST: f64 = 61.0;
    // 2261
    const LAST: f64 = 132_000.0;
    const MS_OF_DAY: f64 = 86_400_000.0;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let days: f64 = whole.parse().map_err(|_| "not a number of days")?;
    if !(FIRST..LAST).contains(&days) {
        return Err("not a day of Excel from 1900-03-01 to 2261".into());
    }
    let epoch = NaiveDate::from_ymd_opt(1899, 12, 30).ok_or(OUTSIDE)?;
    let day = epoch + TimeDelta::days(days as i64);
    let part: f64 = format!("0.{fraction}0").parse().map_err(|_| "not a number of days")?;
    let ms = (part * MS_OF_DAY).round() as i64;
    if ms == 0 {
        return Ok(When::Day(day));
    }
    Ok(When::Local(day.and_time(NaiveTime::MIN) + TimeDelta::milliseconds(ms)))
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

/// A form of times that the caller gives, as of `strptime`.
#[derive(Debug, Clone)]
pub(crate) struct Form {
    items: Option<Vec<Item<'static>>>,
    timed: bool,
    month: bool,
    day: bool,
    /// For each run of digits from the left, how many they are where numbers stand side by side: `%Y%m%d` does not say where
    /// the month of `2016111` ends.
    runs: Vec<Option<usize>>,
}

/// The runs of digits of a pattern, up to a fraction or an offset, which have any length.
fn runs(pattern: &str) -> Vec<Option<usize>> {
    let long = ["%T", "%R", "%F", "%D"].into_iter().zip(["%H:%M:%S", "%H:%M", "%Y-%m-%d", "%m/%d/%y"]);
    let pattern = long.fold(pattern.replace("%%", " "), |text, (short, long)| text.replace(short, long));
    let mut runs = Vec::new();
    // numbers and digits of the run, and digits in all
    let mut run = (0, 0);
    let mut end = |run: &mut (usize, usize)| {
        if run.0 > 0 {
            runs.push((run.0 > 1).then_some(run.1));
        }
        *run = (0, 0);
    };
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        let width = match c {
            '%' => match chars.next() {
                // a year of two digits is no year of four
                Some('Y') => {
                    run.0 += 1;
                    4
                }
                Some('j') => 3,
                Some('y' | 'm' | 'd' | 'e' | 'H' | 'I' | 'M' | 'S') => 2,
                Some('.' | 'z') | None => break,
                Some(_) => 0,
            },
            c => usize::from(c.is_ascii_digit()),
        };
        match width {
            0 => end(&mut run),
            width => run = (run.0 + 1, run.1 + width),
        }
    }
    end(&mut run);
    runs
}

impl Form {
    /// `iso`, or a pattern such as `%d/%m/%Y %H:%M`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text == ISO {
            return Ok(Self { items: None, timed: true, month: true, day: true, runs: Vec::new() });
        }
        let mut pattern = String::new();
        let mut letters = String::new();
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            if c != '%' {
                pattern.push(c);
                continue;
            }
            let mut letter = chars.next().ok_or("it ends with %")?;
            if letter == '-' {
                letter = chars.next().ok_or("it ends with %-")?;
            }
            match letter {
                '.' if chars.next_if_eq(&'f').is_some() => pattern.push_str("%.f"),
                // as Python means it: the digits after the point
                'f' if pattern.ends_with('.') => {
                    pattern.pop();
                    pattern.push_str("%.f");
                }
                'f' => return Err("%f stands after a point: %S.%f".to_owned()),
                'Z' => {
                    return Err(
                        "%Z would not be looked at: give the zone with --tz, or an offset with %z".to_owned()
                    );
                }
                'Y' | 'y' | 'm' | 'd' | 'e' | 'b' | 'h' | 'B' | 'a' | 'A' | 'H' | 'I' | 'M' | 'S' | 'p'
                | 'z' | 'T' | 'R' | 'F' | 'D' | 'j' | '%' => pattern.extend(['%', letter]),
                other => return Err(format!("%{other} is not known")),
            }
            letters.push(letter);
        }
        let has = |any: &[char]| letters.contains(any);
        let year = has(&['Y', 'y', 'F', 'D']);
        let month = has(&['m', 'b', 'h', 'B', 'F', 'D', 'j']);
        let day = has(&['d', 'e', 'F', 'D', 'j']);
        if !year || (day && !month) {
            return Err(
                "it does not say the date: a form has %Y (or %y), and with %d also %m (or %b)".to_owned()
            );
        }
        let hour = has(&['H', 'T', 'R']) || (has(&['I']) && has(&['p']));
        if !hour && has(&['I', 'M', 'S', 'p', 'z']) {
            return Err("it does not say the hour: %H, or %I with %p".to_owned());
        }
        let items = StrftimeItems::new(&pattern).parse_to_owned().map_err(|_| "it is no form".to_owned())?;
        Ok(Self { items: Some(items), timed: hour, month, day, runs: runs(&pattern) })
    }

    pub(crate) fn read(&self, text: &str) -> Option<Result<When, Reason>> {
        let Some(items) = &self.items else { return iso(text).map(|stamp| stamp.when()) };
        // chrono would cut what is finer than a nanosecond
        let fine = |part: &str| part.bytes().take_while(u8::is_ascii_digit).count() > 9;
        if text.split('.').skip(1).any(fine) {
            return None;
        }
        let digits = text.split(|c: char| !c.is_ascii_digit()).filter(|run| !run.is_empty());
        if self.runs.iter().zip(digits).any(|(full, run)| full.is_some_and(|full| run.len() != full)) {
            return None;
        }
        let mut parsed = Parsed::new();
        chrono::format::parse(&mut parsed, text, items.iter()).ok()?;
        if !self.month {
            parsed.set_month(1).ok()?;
        }
        if !self.day {
            parsed.set_day(1).ok()?;
        }
        let day = parsed.to_naive_date().ok()?;
        if !self.timed {
            return Some(Ok(When::Day(day)));
        }
        if parsed.minute().is_none() {
            parsed.set_minute(0).ok()?;
        }
        let time = parsed.to_naive_time().ok().filter(|t| t.nanosecond() < 1_000_000_000)?;
        Some(Stamp { at: day.and_time(time), offset_s: parsed.offset(), timed: true }.when())
    }
}

/// The one reading of `text` by any of `forms`.
pub(crate) fn by_forms(forms: &[Form], text: &str) -> Result<When, Reason> {
    let mut found = None;
    for when in forms.iter().filter_map(|form| form.read(text)) {
        let when = when?;
        if found.is_some_and(|other| other != when) {
            return Err("two forms of --ts-format read it as different times".into());
        }
        found = Some(when);
    }
    found.ok_or(NO_FORM.into())
}

/// A date, with or without a time and an offset, as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) at: NaiveDateTime,
    pub(crate) offset_s: Option<i32>,
    pub(crate) timed: bool,
}

impl Stamp {
    pub(crate) fn when(self) -> Result<When, Reason> {
        Ok(match self.offset_s {
            None if self.timed => When::Local(self.at),
            None => When::Day(self.at.date()),
            Some(offset) => When::At(
                self.at
                    .checked_sub_signed(TimeDelta::seconds(offset.into()))
                    .and_then(|utc| utc.and_utc().timestamp_nanos_opt())
                    .ok_or(OUTSIDE)?,
            ),
        })
    }
}

/// A date, or a date and a time, with the offset if there is one. The date may be written `20160810` before a time.
pub(crate) fn iso(text: &str) -> Option<Stamp> {
    let b = text.as_bytes();
    let dashed = b.get(4) == Some(&b'-');
    let (date, rest) = text.split_at_checked(if dashed { 10 } else { 8 })?;
    let (month, day) =
        if dashed { (date.get(5..7)?, date.get(8..)?) } else { (date.get(4..6)?, date.get(6..)?) };
    if dashed && b[7] != b'-' || !dashed && rest.is_empty() {
        return None;
    }
    let day =
        NaiveDate::from_ymd_opt(i32::try_from(number(date.get(..4)?)?).ok()?, number(month)?, number(day)?)?;
    if rest.is_empty() {
        return Some(Stamp { at: day.and_time(NaiveTime::MIN), offset_s: None, timed: false });
    }
    let (time, offset_s) = time_and_offset(rest.strip_prefix(['T', 't', ' '])?)?;
    Some(Stamp { at: day.and_time(time), offset_s, timed: true })
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

    fn at(zone: Tz, text: &str) -> Result<i64, Reason> {
        Zone(zone).resolve(iso(text).ok_or(NOT_ISO)?.when()?)
    }

    fn utc(text: &str) -> Result<i64, Reason> {
        at(Tz::UTC, text)
    }

    fn new_york(text: &str) -> Result<i64, Reason> {
        at(Tz::America__New_York, text)
    }

    fn clock(unit: Option<TsUnit>) -> Clock {
        Clock {
            zone: None,
            unit,
            day: NaiveDate::from_ymd_opt(2014, 5, 1),
            forms: Arc::default(),
            dates: None,
            moments: false,
        }
    }

    fn formed(forms: &[&str]) -> Clock {
        Clock { forms: forms.iter().map(|f| Form::parse(f).unwrap()).collect(), ..clock(None) }
    }

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
            assert_eq!(utc(text), Ok(string_to_timestamp_nanos(text).unwrap()), "{text}");
        }
        assert_eq!(utc("2016-08-10 14:30"), utc("2016-08-10T14:30:00"));
        assert_eq!(utc("2016-08-10 14:30:00 UTC"), utc("2016-08-10T14:30:00Z"));
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
            assert!(utc(text).is_err(), "{text:?}");
        }
        assert_eq!(utc("1066-10-14").unwrap_err(), OUTSIDE);
    }

    #[test]
    fn local_times_follow_the_zone_and_its_changes() {
        assert_eq!(new_york("2016-08-10 09:30"), utc("2016-08-10T13:30:00"));
        assert_eq!(new_york("2016-12-10 09:30"), utc("2016-12-10T14:30:00"));
        assert_eq!(new_york("2016-12-10 09:30Z"), utc("2016-12-10T09:30:00"));
        let gap = new_york("2016-03-13 02:30").unwrap_err();
        assert!(gap.contains("does not exist in America/New_York"), "{gap}");
        let fold = new_york("2016-11-06 01:30").unwrap_err();
        assert!(
            fold.contains("05:30:00Z") && fold.contains("06:30:00Z") && fold.contains("offset"),
            "{fold}"
        );
    }

    #[test]
    fn integers_need_a_unit_unless_they_are_days() {
        let read = |unit, text: &str| clock(unit).text(text);
        assert_eq!(read(None, "20160810"), utc("2016-08-10"));
        assert_eq!(read(Some(TsUnit::S), "1470787200"), utc("2016-08-10"));
        assert_eq!(read(Some(TsUnit::Ms), "1470787200000.0"), utc("2016-08-10"));
        assert_eq!(read(Some(TsUnit::S), "1470787200.25"), utc("2016-08-10T00:00:00.25Z"));
        assert_eq!(read(Some(TsUnit::MsOfDay), "60000"), utc("2014-05-01T00:01:00"));
        assert_eq!(read(Some(TsUnit::Excel), "42592"), utc("2016-08-10"));
        assert_eq!(read(Some(TsUnit::Excel), "42592.3958333333"), utc("2016-08-10T09:30:00"));
        for (unit, text) in [
            (Some(TsUnit::Ns), "1.5"),
            (Some(TsUnit::S), "2016-08-10"),
            (Some(TsUnit::S), "1.47e9"),
            (Some(TsUnit::S), "9223372036854775807"),
            (Some(TsUnit::S), "-9223372037"),
            (Some(TsUnit::S), "20160810"),
            (Some(TsUnit::Us), "20160810093000"),
            (Some(TsUnit::MsOfDay), "86400000"),
            (Some(TsUnit::MsOfDay), "-1"),
            (Some(TsUnit::Excel), "60"),
            (None, "20161310"),
        ] {
            assert!(read(unit, text).is_err(), "{text}");
        }
        for (text, option) in [
            ("2016", "--ts-format %Y"),
            ("201608", "--ts-format %Y%m"),
            ("42592", "--ts-unit excel"),
            ("20160810093000", "%Y%m%d%H%M%S"),
            ("201608100930", "--ts-format %Y%m%d%H%M)"),
            ("2016081009", "--ts-format %Y%m%d%H)"),
            ("1470787200", "--ts-unit"),
            ("146707200000", "--ts-unit"),
        ] {
            let reason = read(None, text).unwrap_err();
            assert!(reason.contains(option), "{reason}");
        }
    }

    #[test]
    fn a_form_reads_what_it_says_and_nothing_else() {
        for (form, text, time) in [
            ("%d/%m/%Y", "01/02/2016", "2016-02-01"),
            ("%m/%d/%Y", "1/2/2016", "2016-01-02"),
            ("%d.%m.%y", "10.08.16", "2016-08-10"),
            ("%d-%b-%Y", "10-aug-2016", "2016-08-10"),
            ("%B %d, %Y", "August 10, 2016", "2016-08-10"),
            ("%Y%m", "201608", "2016-08-01"),
            ("%Y", "2016", "2016-01-01"),
            ("%Y%m%d %H%M%S", "20160810 093000", "2016-08-10T09:30:00Z"),
            ("%d/%m/%Y %H:%M:%S.%f", "10/08/2016 09:30:00.25", "2016-08-10T09:30:00.25Z"),
            ("%m/%d/%Y %I:%M %p", "8/10/2016 1:30 PM", "2016-08-10T13:30:00Z"),
            ("%Y/%m/%d %H:%M %z", "2016/08/10 09:30 -0400", "2016-08-10T13:30:00Z"),
            ("iso", "2016-08-10", "2016-08-10"),
        ] {
            assert_eq!(formed(&[form]).text(text), utc(time), "{form}");
        }
        let both = formed(&["%d/%m/%Y", "%m/%d/%Y"]);
        assert_eq!(both.text("13/02/2016"), utc("2016-02-13"));
        assert_eq!(both.text("02/02/2016"), utc("2016-02-02"));
        assert!(both.text("01/02/2016").unwrap_err().contains("two forms"));
        for text in ["31/02/2016", "10/08/2016 09:30", "2016-08-10", "10/08/16", "10/08/9999"] {
            assert!(formed(&["%d/%m/%Y"]).text(text).is_err(), "{text}");
        }
        assert!(formed(&["%d/%m/%Y %H:%M:%S.%f"]).text("10/08/2016 09:30:00.1234567890").is_err());
        for (form, text) in [
            ("%Y%m%d", "2016111"),
            ("%Y%m%d", "2016 1 1"),
            ("%Y%m%d %H%M%S", "20160810 10000"),
            ("%Y%m%d%H%M%S", "2016081093000"),
            ("%d/%m/%Y %H%M", "1/2/2016 930"),
            ("20%y%m%d", "2016111"),
            ("%Y%j", "201611"),
        ] {
            assert!(formed(&[form]).text(text).is_err(), "{form} {text}");
        }
        for (form, text) in [
            ("%d/%m/%Y %H%M", "1/2/2016 0930"),
            ("%Y%m%d %T", "20160201 9:30:00"),
            ("20%y%m%d %R", "20160201 09:30"),
            ("%d%b%Y %H%M%S.%f", "1Feb2016 093000.0"),
        ] {
            assert_eq!(formed(&[form]).text(text), utc("2016-02-01T09:30:00Z"), "{form}");
        }
        for form in
            ["", "%d/%m", "%H:%M", "%Q", "%Y-%d", "%Y%m%d %I:%M", "%Y %S,%f", "%Y-%m-%d %H:%M %Z", "%"]
        {
            assert!(Form::parse(form).is_err(), "{form}");
        }
    }

    #[test]
    fn a_local_midnight_names_its_date_also_where_clocks_change_at_midnight() {
        let dated = |zone, text: &str| Clock { dates: Some(DateZone(zone)), ..clock(None) }.text(text);
        for (zone, text, date) in [
            (Tz::America__New_York, "2023-03-10 00:00:00-05:00", "2023-03-10"),
            (Tz::America__New_York, "2023-03-13 00:00:00-04:00", "2023-03-13"),
            (Tz::America__New_York, "2023-03-13T04:00:00Z", "2023-03-13"),
            (Tz::America__New_York, "2023-03-13", "2023-03-13"),
            (Tz::America__New_York, "20230313", "2023-03-13"),
            (Tz::America__New_York, "2023-03-13 00:00:00", "2023-03-13"),
            (Tz::Asia__Tokyo, "2023-03-12T15:00:00Z", "2023-03-13"),
            // no midnight on that day
            (Tz::America__Sao_Paulo, "2018-11-04 01:00:00-02:00", "2018-11-04"),
            (Tz::America__Sao_Paulo, "2018-11-04 00:00:00-03:00", "2018-11-04"),
            (Tz::America__Sao_Paulo, "2018-11-04 00:00:00", "2018-11-04"),
            (Tz::America__Sao_Paulo, "2018-11-04 01:00:00", "2018-11-04"),
            (Tz::Africa__Cairo, "2023-04-28 01:00:00+03:00", "2023-04-28"),
            (Tz::Asia__Beirut, "2022-03-27 01:00:00+03:00", "2022-03-27"),
            // two midnights
            (Tz::America__Havana, "2022-11-06 00:00:00-04:00", "2022-11-06"),
            (Tz::America__Havana, "2022-11-06 00:00:00-05:00", "2022-11-06"),
            (Tz::America__Havana, "2022-11-06 00:00:00", "2022-11-06"),
        ] {
            assert_eq!(dated(zone, text), utc(date), "{zone} {text}");
        }
        for (zone, text) in [
            (Tz::America__New_York, "2023-03-13 00:00:00-05:00"),
            (Tz::America__New_York, "2023-03-13 16:00:00"),
            (Tz::America__New_York, "2023-03-13 00:00:00Z"),
            (Tz::America__Sao_Paulo, "2018-11-04 02:00:00-02:00"),
            (Tz::America__Sao_Paulo, "2018-11-05 01:00:00-02:00"),
        ] {
            assert!(dated(zone, text).is_err(), "{zone} {text}");
        }
        let said =
            Clock { zone: Some(Zone(Tz::UTC)), dates: Some(DateZone(Tz::America__New_York)), ..clock(None) };
        assert_eq!(said.text("2023-03-13 04:00:00"), utc("2023-03-13"));
        assert!(said.text("2023-03-13 00:00:00").is_err());
    }

    #[test]
    fn a_zone_moves_times_and_no_dates() {
        let there = Clock { zone: Some(Zone(Tz::America__New_York)), ..clock(None) };
        assert_eq!(there.text("2016-08-10 09:30"), utc("2016-08-10T13:30:00Z"));
        assert_eq!(there.text("2016-08-10"), utc("2016-08-10"));
        assert_eq!(there.text("20160810"), utc("2016-08-10"));
        let beside = Clock { moments: true, ..there };
        assert_eq!(beside.text("2016-08-10"), utc("2016-08-10T04:00:00Z"));
    }

    #[test]
    fn no_time_is_one_that_a_day_or_a_range_does_not_have() {
        for text in
            ["2262-04-11T23:47:16.854775807Z", "1677-09-21T00:12:43.145224192Z", "1677-09-21T23:59:59Z"]
        {
            assert!(utc(text).is_ok() && clock(None).text(text).is_err(), "{text}");
        }
        for text in ["2262-04-11T23:47:16.854775806Z", "1677-09-22"] {
            assert!(clock(None).text(text).is_ok(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn the_first_moment_of_every_day_of_every_zone_names_it(day in 0..20_000_i64, zone in 0..chrono_tz::TZ_VARIANTS.len()) {
            let zone = chrono_tz::TZ_VARIANTS[zone];
            let date = NaiveDate::from_ymd_opt(1970, 1, 1).unwrap() + TimeDelta::days(day);
            // slow: half a minute at a time, as some old offsets are, through the two days around it
            let start = date.and_time(NaiveTime::MIN).and_utc().timestamp() - 86_400;
            let local = |s: i64| zone.timestamp_opt(s, 0).unwrap().naive_local();
            let Some(first) = (start..start + 2 * 86_400).step_by(30).find(|&s| local(s).date() == date) else {
                // the day was left out, at a change of the date line
                return Ok(());
            };
            let clock = Clock { dates: Some(DateZone(zone)), unit: Some(TsUnit::Ms), ..clock(None) };
            prop_assert_eq!(clock.text(&(first * 1_000).to_string()), utc(&date.to_string()));
            let later = ((first + 60) * 1_000).to_string();
            if local(first + 60).time() != NaiveTime::MIN {
                prop_assert!(clock.text(&later).is_err());
            }
        }

        #[test]
        fn what_chrono_writes_is_read_back(ns in any::<i64>(), offset_min in -14 * 60..=14 * 60_i32) {
            let at = chrono::DateTime::from_timestamp_nanos(ns);
            let offset = chrono::FixedOffset::east_opt(offset_min * 60).unwrap();
            prop_assert_eq!(utc(&at.to_rfc3339()), Ok(ns));
            prop_assert_eq!(utc(&at.with_timezone(&offset).to_rfc3339()), Ok(ns));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,40}", tail in "[0-9:. TZ+-]{0,30}") {
            let _ = utc(&text);
            let _ = utc(&format!("2016-08-10{tail}"));
        }
    }
}
