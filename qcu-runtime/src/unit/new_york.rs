//! The rules of the New York Stock Exchange. Pure.
//!
//! Regular hours are 09:30 to 16:00 local time; half days close at 13:00 (14:00 before 1993).

use chrono::{Datelike, Days, NaiveDate, Weekday};

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
    let nth = day.div_ceil(7); // the first, second, ... of its weekday in the month
    match month {
        // New Year's Day: a Sunday is kept on Monday, a Saturday not at all, because the year's books close.
        // Martin Luther King Day, since 1998.
        1 => day == 1 || (day == 2 && monday) || (year >= 1998 && monday && nth == 3),
        2 => monday && nth == 3, // Washington's Birthday
        3 | 4 => Some(date) == good_friday(year),
        5 => monday && day > 24,                    // Memorial Day: the last Monday
        6 => year >= 2022 && observed(date, 6, 19), // Juneteenth
        7 => observed(date, 7, 4),                  // Independence Day
        9 => monday && nth == 1,                    // Labor Day
        11 => weekday == Weekday::Thu && nth == 4,  // Thanksgiving
        12 => observed(date, 12, 25),               // Christmas
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
        // The day before Independence Day. If that was a Wednesday, the half day was the Friday after, until 2012.
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

/// Opening and closing of a session, in minutes after the date's midnight UTC.
pub(super) fn hours(date: NaiveDate) -> Option<(i64, i64)> {
    let close_min = match is_half_day(date) {
        true if date.year() < 1993 => 14 * 60,
        true => 13 * 60,
        false => CLOSE_MIN,
    };
    // UTC is ahead of New York; the clocks change at night, when there is no session
    let utc_ahead_min = if is_summer_time(date)? { 4 * 60 } else { 5 * 60 };
    Some((OPEN_MIN + utc_ahead_min, close_min + utc_ahead_min))
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
