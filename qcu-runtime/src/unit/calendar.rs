//! Exchange calendars: which dates are sessions, and when each opens and closes. Pure.
//!
//! Sessions come from *rules* (weekday holidays, observed days, half days) and a list of exceptions that no rule gives: funerals of
//! state, storms, attacks. A table of dates would be exact, but it would end some day. Rules have no end, and a schedule needs
//! sessions of the future. The price: a program does not know a closure that was announced after its build. A test compares the rules
//! with a published calendar day by day.
//!
//! A calendar starts at its first supported date; earlier dates are no sessions.

use chrono::{NaiveDate, NaiveTime};
use trellis_proto::{
    Code, Error, Result,
    time::{DAY_NS, SECOND_NS},
};

use super::new_york;

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

/// Most dates without a session that a search crosses. The longest real gap is six dates (2001-09-11..16); after this many the
/// search has left the calendar's range.
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

    /// The first date of the calendar; `None` if it has every date.
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
            Kind::NewYork => {
                let (open_min, close_min) = new_york::hours(date)?;
                let midnight = midnight_ns(date)?;
                let at = |minutes: i64| midnight.checked_add(minutes * 60 * SECOND_NS);
                (at(open_min)?, at(close_min)?)
            }
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

    /// The session `n` sessions after `session`, or before it if `n` is negative; `offset(s, 0)` is `s`. `None` if `session` is no
    /// session, or the result lies outside the calendar's range.
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
        // a session can close up to a day after its UTC date has ended
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
    let days = ns.div_euclid(DAY_NS);
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

#[cfg(test)]
mod tests {
    use std::io::{Read, Write as _};

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
            // not by a macro, whose lines the test runner keeps from the output; tests/run.py counts them
            let why = format!("no reference calendar at {} (set TRELLIS_SHARED_DATA)", path.display());
            let _ = writeln!(std::io::stderr(), "\nskipped: {name}: {why}");
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
