//! The sessions of an exchange, from a reviewed file: `calendars/XNYS.json`.
//!
//! A unit's own program computes the sessions from rules. This file says until when somebody has looked at them; after that day `fleet`
//! starts nothing and says so, instead of starting tasks on a holiday.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{Datelike, NaiveDate, NaiveTime, TimeZone, Utc, Weekday};
use chrono_tz::Tz;

use super::read::{Sheet, list, one_of, such, table, text};

/// The calendar in which every UTC day is a session. It needs no file.
pub const ALWAYS: &str = "24/7";

/// The sessions of an exchange.
#[derive(Clone, Debug, PartialEq)]
pub struct Calendar {
    zone: Tz,
    close: NaiveTime,
    from: NaiveDate,
    until: NaiveDate,
    weekdays: BTreeSet<u32>,
    closed: BTreeSet<NaiveDate>,
    early: BTreeMap<NaiveDate, NaiveTime>,
    /// Counted once: a plan asks it for each unit.
    sessions_a_month: f64,
}

/// A date that the calendar's file does not cover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uncovered(pub NaiveDate);

impl Calendar {
    /// When the session of a date closes, nanoseconds UTC; `None` if the date is no session.
    ///
    /// # Errors
    /// [`Uncovered`] if nobody has said.
    pub fn close_ns(&self, date: NaiveDate) -> Result<Option<i64>, Uncovered> {
        if !(self.from..=self.until).contains(&date) {
            return Err(Uncovered(date));
        }
        if !self.weekdays.contains(&date.weekday().num_days_from_monday()) || self.closed.contains(&date) {
            return Ok(None);
        }
        let close = date.and_time(*self.early.get(&date).unwrap_or(&self.close));
        let local = self.zone.from_local_datetime(&close).latest().ok_or(Uncovered(date))?;
        Ok(Some(local.with_timezone(&Utc).timestamp_nanos_opt().ok_or(Uncovered(date))?))
    }

    /// The last date that somebody has looked at.
    #[must_use]
    pub fn until(&self) -> NaiveDate {
        self.until
    }

    /// Sessions of a month on average, over the dates that the file covers.
    #[must_use]
    pub fn sessions_a_month(&self) -> f64 {
        self.sessions_a_month
    }

    fn count(&self) -> f64 {
        let dates = || self.from.iter_days().take_while(|date| *date <= self.until);
        let sessions = dates().filter(|date| matches!(self.close_ns(*date), Ok(Some(_)))).count();
        sessions as f64 / dates().count().max(1) as f64 * DAYS_A_MONTH
    }
}

/// Days of a month on average.
pub const DAYS_A_MONTH: f64 = 365.25 / 12.0;

/// Reads the file of the calendar that its name says.
pub(crate) fn read(sheet: &Sheet, json: &str, stem: &str) -> Option<Calendar> {
    let mut f = sheet.object(json)?;
    let name = f.need("calendar", text);
    if let Some(name) = name.filter(|name| name != stem) {
        f.wrong::<()>("calendar", format!("is {name:?}, but the file is {stem}.json"));
    }
    let zone = f.need("zone", |s, p, v| {
        let zone = such(s, p, v, "a time zone such as America/New_York", |zone| zone.parse::<Tz>().is_ok())?;
        zone.parse::<Tz>().ok()
    });
    let close = f.need("close", time);
    let from = f.need("from", date);
    let until = f.need("until", date);
    let days = [
        ("mon", Weekday::Mon),
        ("tue", Weekday::Tue),
        ("wed", Weekday::Wed),
        ("thu", Weekday::Thu),
        ("fri", Weekday::Fri),
        ("sat", Weekday::Sat),
        ("sun", Weekday::Sun),
    ];
    let weekdays = f.need("weekdays", |s, p, v| list(s, p, v, |s, p, v| one_of(s, p, v, &days)));
    let closed = f.need("closed", |s, p, v| list(s, p, v, date));
    let early = f.may("early", |s, p, v| {
        let early = table(s, p, v, |s, p, key, v| {
            let Ok(date) = key.parse::<NaiveDate>() else { return s.wrong(p, "is not a date, 2026-11-27") };
            Some((date, time(s, p, v)?))
        })?;
        Some(early.into_values().collect::<BTreeMap<_, _>>())
    });
    if let (Some(from), Some(until)) = (from, until)
        && until < from
    {
        f.wrong::<()>("until", "is before from");
    }
    f.end();
    let calendar = Calendar {
        zone: zone?,
        close: close?,
        from: from?,
        until: until?,
        weekdays: weekdays?.into_iter().map(|day| day.num_days_from_monday()).collect(),
        closed: closed?.into_iter().collect(),
        early: early.unwrap_or_default(),
        sessions_a_month: 0.0,
    };
    Some(Calendar { sessions_a_month: calendar.count(), ..calendar })
}

fn date(sheet: &Sheet, path: &str, value: serde_json::Value) -> Option<NaiveDate> {
    let date =
        such(sheet, path, value, "a date such as 2026-11-27", |text| text.parse::<NaiveDate>().is_ok())?;
    date.parse().ok()
}

fn time(sheet: &Sheet, path: &str, value: serde_json::Value) -> Option<NaiveTime> {
    let parse = |text: &str| NaiveTime::parse_from_str(text, "%H:%M").ok();
    let time = such(sheet, path, value, "a time of day such as 16:00", |text| parse(text).is_some())?;
    parse(&time)
}
