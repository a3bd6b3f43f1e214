//! Exchange calendars: which dates are sessions, and when each opens and closes. Pure.
//!
//! Sessions come from *rules* (weekday holidays, observed days, half days) and a list of exceptions that no rule gives:
//! funerals of state, storms, attacks. A table of dates would be exact and finite; rules reach into the future, which a
//! schedule needs, at the price that a closure announced after this build is unknown to it. The test compares the rules
//! with a published calendar day by day, so the two approaches check each other.
//!
//! A calendar starts at its first supported date; earlier dates are no sessions.

use chrono::{Datelike, Days, NaiveDate, NaiveTime, Weekday};
use trellis_proto::{Code, Error, Result};

/// One trading day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    /// The date in the exchange's own time zone; the name of the session.
    pub date: NaiveDate,
    /// Start of trading, nanoseconds UTC.
    pub open_ns: i64,
    /// End of trading, nanoseconds UTC.
    pub close_ns: i64,
}

/// A named calendar. Cheap to copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Calendar {
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    NewYork,
    Always,
}

const KNOWN: [(&str, Kind); 2] = [("XNYS", Kind::NewYork), ("24/7", Kind::Always)];

/// The longest run of dates without a session that a search crosses. The longest there was is six (2001-09-11..16);
/// beyond this the search has left the calendar's range.
const GAP_DAYS_MAX: u32 = 31;

impl Calendar {
    /// The calendar of that name: `XNYS` (New York Stock Exchange, from 1990) or `24/7` (every UTC day).
    ///
    /// # Errors
    /// `InvalidRequest`, listing the known names.
    pub fn named(name: &str) -> Result<Calendar> {
        KNOWN.iter().find(|(known, _)| *known == name).map(|&(_, kind)| Calendar { kind }).ok_or_else(|| {
            Error::new(Code::InvalidRequest, format!("there is no calendar `{name}`"))
                .hint(format!("known calendars: {}", Self::names().join(", ")))
        })
    }

    /// The names that [`Calendar::named`] knows.
    #[must_use]
    pub fn names() -> Vec<&'static str> {
        KNOWN.iter().map(|(name, _)| *name).collect()
    }

    /// This calendar's name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        KNOWN.iter().find(|(_, kind)| *kind == self.kind).map_or("", |(name, _)| *name)
    }

    /// The first date that it knows; `None` if it knows all.
    #[must_use]
    pub fn begins(&self) -> Option<NaiveDate> {
        match self.kind {
            Kind::NewYork => NaiveDate::from_ymd_opt(new_york::FIRST_YEAR, 1, 1),
            Kind::Always => None,
        }
    }

    /// Is that date a session?
    #[must_use]
    pub fn is_session(&self, date: NaiveDate) -> bool {
        match self.kind {
            Kind::NewYork => new_york::is_session(date),
            Kind::Always => true,
        }
    }

    /// The session of that date, if it is one.
    #[must_use]
    pub fn session(&self, date: NaiveDate) -> Option<Session> {
        if !self.is_session(date) {
            return None;
        }
        let (open_ns, close_ns) = match self.kind {
            Kind::NewYork => new_york::hours(date)?,
            Kind::Always => (midnight_ns(date)?, midnight_ns(date.succ_opt()?)?),
        };
        Some(Session { date, open_ns, close_ns })
    }

    /// The first session after `date` (exclusive). `None` outside the calendar's range.
    #[must_use]
    pub fn next(&self, date: NaiveDate) -> Option<NaiveDate> {
        self.search(date, NaiveDate::succ_opt)
    }

    /// The last session before `date` (exclusive). `None` outside the calendar's range.
    #[must_use]
    pub fn previous(&self, date: NaiveDate) -> Option<NaiveDate> {
        self.search(date, NaiveDate::pred_opt)
    }

    /// `date` if it is a session, else the last one before it.
    #[must_use]
    pub fn at_or_before(&self, date: NaiveDate) -> Option<NaiveDate> {
        if self.is_session(date) { Some(date) } else { self.previous(date) }
    }

    /// The session `n` sessions after (before, if negative) `session`; `offset(s, 0)` is `s`. `None` if `session` is
    /// none, or the result lies outside the calendar's range.
    #[must_use]
    pub fn offset(&self, session: NaiveDate, n: i64) -> Option<NaiveDate> {
        if !self.is_session(session) {
            return None;
        }
        let mut date = session;
        for _ in 0..n.unsigned_abs() {
            date = if n > 0 { self.next(date) } else { self.previous(date) }?;
        }
        Some(date)
    }

    /// The sessions in `[start, end)`, ascending.
    pub fn range(&self, start: NaiveDate, end: NaiveDate) -> impl Iterator<Item = NaiveDate> + use<> {
        let calendar = *self;
        start.iter_days().take_while(move |date| *date < end).filter(move |date| calendar.is_session(*date))
    }

    /// The newest session whose close is at or before `at_ns` less `delay_ns`.
    #[must_use]
    pub fn newest_closed(&self, at_ns: i64, delay_ns: i64) -> Option<Session> {
        let at_ns = at_ns.saturating_sub(delay_ns);
        // a session of date D can close at most a day after D's UTC midnight ends
        let mut date = self.at_or_before(date_of(at_ns)?)?;
        loop {
            let session = self.session(date)?;
            if session.close_ns <= at_ns {
                return Some(session);
            }
            date = self.previous(date)?;
        }
    }

    fn search(&self, from: NaiveDate, step: impl Fn(&NaiveDate) -> Option<NaiveDate>) -> Option<NaiveDate> {
        let mut date = from;
        for _ in 0..GAP_DAYS_MAX {
            date = step(&date)?;
            if self.is_session(date) {
                return Some(date);
            }
        }
        None
    }
}

/// Midnight UTC at the start of `date`, nanoseconds. `None` outside 1677..2262, where nanoseconds do not reach.
#[must_use]
pub fn midnight_ns(date: NaiveDate) -> Option<i64> {
    date.and_time(NaiveTime::MIN).and_utc().timestamp_nanos_opt()
}

/// The UTC date that the nanosecond lies in.
#[must_use]
pub fn date_of(ns: i64) -> Option<NaiveDate> {
    let days = ns.div_euclid(trellis_proto::time::DAY_NS);
    NaiveDate::from_ymd_opt(1970, 1, 1)?.checked_add_signed(chrono::TimeDelta::try_days(days)?)
}

/// A session's name, `2016-08-10`.
///
/// # Errors
/// `InvalidRequest` for anything that is not an ISO date.
pub fn parse_session(text: &str) -> Result<NaiveDate> {
    text.parse().map_err(|_| {
        Error::new(Code::InvalidRequest, format!("`{text}` is not a session"))
            .hint("a session is an ISO date such as 2016-08-10")
    })
}

/// New York Stock Exchange. Regular hours 09:30-16:00 local; half days close at 13:00 (14:00 before 1993).
mod new_york {
    use super::*;

    pub(super) const FIRST_YEAR: i32 = 1990;
    const OPEN_MIN: i64 = 9 * 60 + 30;
    const CLOSE_MIN: i64 = 16 * 60;

    /// Full days without trading that no rule gives.
    const CLOSURES: [(i32, u32, u32); 11] = [
        (1994, 4, 27), // funeral of Richard Nixon
        (2001, 9, 11), // attacks of 11 September
        (2001, 9, 12),
        (2001, 9, 13),
        (2001, 9, 14),
        (2004, 6, 11),  // mourning for Ronald Reagan
        (2007, 1, 2),   // mourning for Gerald Ford
        (2012, 10, 29), // hurricane Sandy
        (2012, 10, 30),
        (2018, 12, 5), // mourning for George H. W. Bush
        (2025, 1, 9),  // mourning for Jimmy Carter
    ];

    /// Half days that no rule gives.
    const HALF_DAYS: [(i32, u32, u32); 3] = [(1997, 12, 26), (1999, 12, 31), (2003, 12, 26)];

    pub(super) fn is_session(date: NaiveDate) -> bool {
        date.year() >= FIRST_YEAR
            && !matches!(date.weekday(), Weekday::Sat | Weekday::Sun)
            && !is_holiday(date)
            && !CLOSURES.contains(&(date.year(), date.month(), date.day()))
    }

    fn is_holiday(date: NaiveDate) -> bool {
        let (year, month, day, weekday) = (date.year(), date.month(), date.day(), date.weekday());
        let monday = weekday == Weekday::Mon;
        let nth = day.div_ceil(7); // which of its weekday in the month
        match month {
            // New Year's Day; on a Sunday it is observed on Monday, on a Saturday not at all (the year's books close).
            // Martin Luther King Day since 1998.
            1 => day == 1 || (day == 2 && monday) || (year >= 1998 && monday && nth == 3),
            2 => monday && nth == 3, // Washington's Birthday
            3 | 4 => Some(date) == good_friday(year),
            5 => monday && day > 24, // Memorial Day: the last Monday
            6 => year >= 2022 && observed(date, 6, 19), // Juneteenth
            7 => observed(date, 7, 4), // Independence Day
            9 => monday && nth == 1, // Labor Day
            11 => weekday == Weekday::Thu && nth == 4, // Thanksgiving
            12 => observed(date, 12, 25), // Christmas
            _ => false,
        }
    }

    /// Is `date` where the holiday `month`-`day` is kept: on the day, on Friday for a Saturday, on Monday for a Sunday?
    fn observed(date: NaiveDate, month: u32, day: u32) -> bool {
        if date.month() != month {
            return false;
        }
        match date.weekday() {
            Weekday::Fri => date.day() == day || date.day() + 1 == day,
            Weekday::Mon => date.day() == day || date.day() == day + 1,
            _ => date.day() == day,
        }
    }

    fn is_half_day(date: NaiveDate) -> bool {
        let (year, month, day, weekday) = (date.year(), date.month(), date.day(), date.weekday());
        match month {
            // The day before Independence Day. Where that is a Wednesday, the Friday after it took its place until 2012.
            7 if year >= 1995 => match (day, weekday) {
                (3, Weekday::Wed) => year >= 2013,
                (3, _) => true,
                (5, Weekday::Fri) => year < 2013,
                _ => false,
            },
            11 => year >= 1992 && weekday == Weekday::Fri && (23..=29).contains(&day), // after Thanksgiving
            12 => day == 24 || HALF_DAYS.contains(&(year, month, day)),
            _ => false,
        }
    }

    /// Opening and closing of a session, nanoseconds UTC.
    pub(super) fn hours(date: NaiveDate) -> Option<(i64, i64)> {
        const MINUTE_NS: i64 = 60_000_000_000;
        let close_min = match is_half_day(date) {
            true if date.year() < 1993 => 14 * 60,
            true => 13 * 60,
            false => CLOSE_MIN,
        };
        // UTC is ahead of New York; sessions lie clear of the small hours in which the clocks change
        let utc_ahead_min = if is_summer_time(date)? { 4 * 60 } else { 5 * 60 };
        let midnight = midnight_ns(date)?;
        let at = |minutes: i64| midnight.checked_add((minutes + utc_ahead_min) * MINUTE_NS);
        Some((at(OPEN_MIN)?, at(close_min)?))
    }

    /// United States daylight saving time: since 2007 from the second Sunday of March to the first of November, from
    /// 1987 to 2006 from the first Sunday of April to the last of October.
    fn is_summer_time(date: NaiveDate) -> Option<bool> {
        let year = date.year();
        let sunday = |month, nth| NaiveDate::from_weekday_of_month_opt(year, month, Weekday::Sun, nth);
        let (start, end) = if year >= 2007 {
            (sunday(3, 2)?, sunday(11, 1)?)
        } else {
            (sunday(4, 1)?, sunday(10, 5).or_else(|| sunday(10, 4))?)
        };
        Some(start <= date && date < end)
    }

    /// Two days before Easter Sunday (Gregorian computus of Meeus, Jones and Butcher).
    fn good_friday(year: i32) -> Option<NaiveDate> {
        let (a, b, c) = (year % 19, year / 100, year % 100);
        let h = (19 * a + b - b / 4 - (b - (b + 8) / 25 + 1) / 3 + 15) % 30;
        let l = (32 + 2 * (b % 4) + 2 * (c / 4) - h - c % 4) % 7;
        let m = (a + 11 * h + 22 * l) / 451;
        let n = h + l - 7 * m + 114;
        let (month, day) = (u32::try_from(n / 31).ok()?, u32::try_from(n % 31 + 1).ok()?);
        NaiveDate::from_ymd_opt(year, month, day)?.checked_sub_days(Days::new(2))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn day(text: &str) -> NaiveDate {
        text.parse().unwrap()
    }

    /// (date, open, close) of every line of a published calendar, or `None` with a line on stderr where there is none.
    fn published(name: &str) -> Option<Vec<Session>> {
        let root = std::env::var_os("TRELLIS_SHARED_DATA").map_or_else(
            || std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data"),
            std::path::PathBuf::from,
        );
        let path = root.join("reference/calendars").join(name);
        let Ok(file) = std::fs::File::open(&path) else {
            eprintln!("SKIPPED: no reference calendar at {} (set TRELLIS_SHARED_DATA)", path.display());
            return None;
        };
        let mut text = String::new();
        flate2::read::GzDecoder::new(file).read_to_string(&mut text).unwrap();
        let ns = |t: &str| t.parse::<chrono::DateTime<chrono::Utc>>().unwrap().timestamp_nanos_opt().unwrap();
        let sessions = text.lines().skip(1).map(|line| {
            let cells: Vec<&str> = line.split(',').collect();
            Session { date: day(&cells[0][..10]), open_ns: ns(cells[1]), close_ns: ns(cells[2]) }
        });
        Some(sessions.collect())
    }

    fn agrees_with(calendar: &str, file: &str) {
        let Some(want) = published(file) else { return };
        let calendar = Calendar::named(calendar).unwrap();
        let (first, last) = (want[0].date, want[want.len() - 1].date);
        let got: Vec<Session> = calendar
            .range(first, last.succ_opt().unwrap())
            .map(|date| calendar.session(date).unwrap())
            .collect();
        let differences: Vec<_> = want
            .iter()
            .filter(|s| !got.contains(s))
            .map(|s| ("missing", s))
            .chain(got.iter().filter(|s| !want.contains(s)).map(|s| ("too many", s)))
            .collect();
        assert!(differences.is_empty(), "{} differences, first: {:?}", differences.len(), &differences[..1]);
        assert!(want.len() > 300);
    }

    #[test]
    fn new_york_agrees_with_the_published_calendar_in_every_session_and_hour() {
        agrees_with("XNYS", "xnys.csv.gz");
    }

    #[test]
    fn every_day_agrees_with_the_published_calendar() {
        agrees_with("24/7", "24-7.csv.gz");
    }

    #[test]
    fn sessions_are_found_across_weekends_holidays_and_closures() {
        let c = Calendar::named("XNYS").unwrap();
        assert_eq!(c.next(day("2001-09-10")), Some(day("2001-09-17")));
        assert_eq!(c.previous(day("2016-09-06")), Some(day("2016-09-02")));
        assert_eq!(c.at_or_before(day("2016-08-13")), Some(day("2016-08-12")));
        assert_eq!(c.offset(day("2016-08-10"), 0), Some(day("2016-08-10")));
        assert_eq!(c.offset(day("2016-08-10"), -259), Some(day("2015-07-31")));
        assert_eq!(c.offset(day("2015-07-31"), 259), Some(day("2016-08-10")));
        assert_eq!(c.offset(day("2016-08-13"), 1), None, "a Saturday is no session to count from");
        assert_eq!(c.previous(day("1990-01-02")), None);
    }

    #[test]
    fn a_session_is_newest_closed_from_its_close_and_delay_on() {
        let c = Calendar::named("XNYS").unwrap();
        let close = c.session(day("2016-08-10")).unwrap().close_ns;
        let delay = 20 * 60 * 1_000_000_000;
        assert_eq!(c.newest_closed(close + delay, delay).unwrap().date, day("2016-08-10"));
        assert_eq!(c.newest_closed(close + delay - 1, delay).unwrap().date, day("2016-08-09"));
    }

    #[test]
    fn an_unknown_calendar_is_refused_with_the_known_names() {
        let error = Calendar::named("XLON").unwrap_err().to_string();
        assert!(error.contains("XLON"), "{error}");
    }
}
