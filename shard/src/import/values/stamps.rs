//! The forms of times that are not ISO 8601: which forms of `--ts-format` read all times of a column. Pure.

use std::collections::BTreeSet;

use chrono::{Offset, TimeZone};

use super::{
    cell::Example,
    clock::{Clock, Count, Form, ISO, Stamp, When, compact_day, iso},
    number,
};

/// Forms of dates that hints know, with the day before the month and after it. Only the data can tell which of the two is meant, or
/// else its author.
const DATES: [&str; 28] = [
    "%d/%m/%Y",
    "%m/%d/%Y",
    "%d.%m.%Y",
    "%m.%d.%Y",
    "%d-%m-%Y",
    "%m-%d-%Y",
    "%Y/%m/%d",
    "%Y/%d/%m",
    "%Y.%m.%d",
    "%Y.%d.%m",
    "%Y-%m-%d",
    "%Y-%d-%m",
    "%d/%m/%y",
    "%m/%d/%y",
    "%d.%m.%y",
    "%d-%m-%y",
    "%m-%d-%y",
    "%d-%b-%Y",
    "%d-%b-%y",
    "%d %b %Y",
    "%b %d, %Y",
    "%b %d %Y",
    "%a %b %d %Y",
    "%d %B %Y",
    "%B %d, %Y",
    "%B %d %Y",
    "%Y%m%d",
    "%Y-%m",
];

/// What may follow the date.
const TIMES: [&str; 9] = [
    "",
    " %H:%M",
    " %H%M",
    " %H:%M:%S.%f",
    " %I:%M %p",
    " %I:%M:%S %p",
    "T%H:%M:%S.%f",
    " %H%M%S",
    " %H:%M:%S %z",
];

/// Most groups of cells in a hint; each group has a form of its own.
const GROUPS_MAX: usize = 3;

fn known() -> &'static [(String, Form)] {
    static KNOWN: std::sync::LazyLock<Vec<(String, Form)>> = std::sync::LazyLock::new(|| {
        let mut known = vec![(ISO.to_owned(), Form::parse(ISO))];
        for time in TIMES {
            known.extend(DATES.iter().map(|date| {
                let text = format!("{date}{time}");
                let form = Form::parse(&text);
                (text, form)
            }));
        }
        known.into_iter().filter_map(|(text, form)| Some((text, form.ok()?))).collect()
    });
    &KNOWN
}

/// Whether a cell may be a date in some form: it has digits, and separators or the name of a month.
fn is_date_like(text: &str) -> bool {
    let b = text.as_bytes();
    (6..=40).contains(&b.len())
        && b.iter().filter(|c| c.is_ascii_digit()).count() >= 3
        && b.iter().any(|c| matches!(c, b'/' | b'.' | b'-' | b' ' | b','))
}

/// Cells that the same forms read.
#[derive(Debug, Clone)]
struct Group {
    /// The forms, by their positions in [`known`].
    forms: Vec<usize>,
    example: Example,
}

/// Dates and times that are not ISO 8601.
#[derive(Debug, Clone, Default)]
pub(crate) struct Dates {
    pub(crate) cells: u64,
    groups: Vec<Group>,
    misses: u32,
}

/// Most cells without a date. After that the import does not try the column any more, because it tries each cell with a
/// hundred forms.
const MISSES_MAX: u32 = 64;

impl Dates {
    /// Adds a cell; `false` if it is no date in any form.
    pub(crate) fn look(&mut self, text: &str, line: u64) -> bool {
        if !is_date_like(text) || (self.groups.is_empty() && self.misses > MISSES_MAX) {
            return false;
        }
        let reads = |&form: &usize| known()[form].1.read(text).is_some();
        for group in &mut self.groups {
            let left: Vec<usize> = group.forms.iter().copied().filter(reads).collect();
            if !left.is_empty() {
                group.forms = left;
                self.cells += 1;
                return true;
            }
        }
        if self.groups.len() >= GROUPS_MAX {
            return false;
        }
        let forms: Vec<usize> = (0..known().len()).filter(reads).collect();
        if forms.is_empty() {
            self.misses += 1;
            return false;
        }
        self.cells += 1;
        self.groups.push(Group { forms, example: Example { text: text.to_owned(), line } });
        true
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.cells += other.cells;
        for theirs in &other.groups {
            let shared = |mine: &Group| -> Vec<usize> {
                mine.forms.iter().copied().filter(|form| theirs.forms.contains(form)).collect()
            };
            if let Some(mine) = self.groups.iter_mut().find(|mine| !shared(mine).is_empty()) {
                mine.forms = shared(mine);
            } else if self.groups.len() < GROUPS_MAX {
                self.groups.push(theirs.clone());
            }
        }
    }

    pub(crate) fn example(&self) -> Option<&Example> {
        self.groups.first().map(|group| &group.example)
    }

    /// The options that read the cells, in one list for each group. If a group has a choice, each of its options says what
    /// the example would be.
    pub(crate) fn options(&self) -> Vec<Vec<(String, String)>> {
        self.groups
            .iter()
            .map(|group| {
                let mut choices: Vec<(String, String, When)> = Vec::new();
                for &form in &group.forms {
                    let (text, form) = &known()[form];
                    let Some(Ok(when)) = form.read(&group.example.text) else { continue };
                    if !choices.iter().any(|(_, _, known)| *known == when) {
                        choices.push((text.clone(), told(when), when));
                    }
                }
                choices.into_iter().map(|(form, told, _)| (form, told)).collect()
            })
            .collect()
    }
}

/// A time in words.
pub(crate) fn told(when: When) -> String {
    match when {
        When::Day(day) => day.format("%-d %B %Y").to_string(),
        When::Local(at) => at.format("%-d %B %Y %H:%M:%S").to_string(),
        When::At(ns) => trellis_proto::time::format_time(ns),
    }
}

/// How the cells of a time column are written.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stamps {
    iso: u64,
    days: u64,
    counts: BTreeSet<Count>,
    pub(crate) dates: Dates,
    /// Cells that are a date without a time, by the caller's forms.
    bare: u64,
    /// Cells that are a local time.
    local: u64,
    /// Written offsets of cells that are midnights by them, in seconds.
    midnights: BTreeSet<i32>,
    /// Cells that are no midnight by their own offset.
    others: u64,
}

impl Stamps {
    pub(crate) fn look(&mut self, text: &str, line: u64, clock: &Clock) {
        let text = text.trim_ascii();
        if clock.zone.is_some() {
            match clock.written(text) {
                Ok(When::Day(_)) => self.bare += 1,
                Ok(When::Local(_)) => self.local += 1,
                Ok(When::At(_)) | Err(_) => {}
            }
        }
        if text.is_empty() || clock.forms.iter().any(|form| form.read(text).is_some()) {
            return;
        }
        // a fraction of a unit, or of a day of Excel
        let whole = text.split_once('.').filter(|_| number::is_plain(text)).map_or(text, |(whole, _)| whole);
        if let Ok(value) = whole.parse::<i64>() {
            match compact_day(value) {
                Some(_) => self.days += 1,
                None => {
                    self.counts.insert(Count::of(value));
                }
            }
        } else if let Some(stamp) = iso(text) {
            self.iso += 1;
            self.midnight(stamp);
        } else {
            self.dates.look(text, line);
        }
    }

    /// Adds a time of a typed file, with its offset.
    pub(crate) fn look_at(&mut self, stamp: Stamp) {
        self.iso += 1;
        self.midnight(stamp);
    }

    fn midnight(&mut self, stamp: Stamp) {
        match stamp.offset_s {
            None if !stamp.timed => {}
            Some(offset) if stamp.at.time() == chrono::NaiveTime::MIN => {
                self.midnights.insert(offset);
            }
            Some(_) | None => self.others += 1,
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.iso += other.iso;
        self.days += other.days;
        self.counts.extend(&other.counts);
        self.bare += other.bare;
        self.local += other.local;
        self.midnights.extend(&other.midnights);
        self.others += other.others;
        self.dates.add(&other.dates);
    }

    pub(crate) fn has_days(&self) -> bool {
        self.days > 0
    }

    pub(crate) fn has_iso(&self) -> bool {
        self.iso > 0
    }

    /// The possible meanings of the integers that are no days.
    pub(crate) fn counts(&self) -> impl Iterator<Item = Count> {
        self.counts.iter().copied()
    }

    /// Whether there are local times. A date in the same column is then a midnight.
    pub(crate) fn has_local_times(&self) -> bool {
        self.local > 0
    }

    /// Whether every time is a date.
    pub(crate) fn has_dates_alone(&self) -> bool {
        self.bare > 0 && self.local == 0
    }

    /// The form of calendar dates, if every cell is one that is written as a number.
    pub(crate) fn calendar(&self) -> Option<&'static str> {
        match (self.days, self.counts.iter().collect::<Vec<_>>().as_slice()) {
            (0, [Count::Calendar(form)]) if self.iso + self.dates.cells == 0 => Some(form),
            _ => None,
        }
    }

    /// The offsets of midnights, if every time with an offset is one and not all are of UTC, and a zone that has them.
    pub(crate) fn local_midnights(&self) -> Option<(Vec<i32>, Option<&'static str>)> {
        const ZONES: [(&[i32], &str); 12] = [
            (&[-5, -4], "America/New_York"),
            (&[-6, -5], "America/Chicago"),
            (&[-8, -7], "America/Los_Angeles"),
            (&[-3, -2], "America/Sao_Paulo"),
            (&[0, 1], "Europe/London"),
            (&[1, 2], "Europe/Berlin"),
            (&[2, 3], "Europe/Athens"),
            (&[3], "Europe/Moscow"),
            (&[8], "Asia/Hong_Kong"),
            (&[9], "Asia/Tokyo"),
            (&[10, 11], "Australia/Sydney"),
            (&[12, 13], "Pacific/Auckland"),
        ];
        if self.midnights.iter().all(|offset| *offset == 0) || self.others > 0 {
            return None;
        }
        let offsets: Vec<i32> = self.midnights.iter().copied().collect();
        let named = |(hours, _): &&(&[i32], &str)| {
            self.midnights.iter().all(|offset| hours.iter().any(|hour| hour * 3_600 == *offset))
        };
        let zone = match offsets.as_slice() {
            [19_800] => Some("Asia/Kolkata"),
            _ => ZONES.iter().find(named).map(|(_, zone)| *zone).or_else(|| self.some_zone()),
        };
        Some((offsets, zone))
    }
}

impl Stamps {
    /// A zone that has had these offsets in recent years.
    fn some_zone(&self) -> Option<&'static str> {
        let has = |zone: &&chrono_tz::Tz| {
            let at = |month| chrono::NaiveDate::from_ymd_opt(2023, month, 1)?.and_hms_opt(0, 0, 0);
            let offsets: BTreeSet<i32> = [1, 7]
                .into_iter()
                .filter_map(at)
                .map(|at| zone.offset_from_utc_datetime(&at).fix().local_minus_utc())
                .collect();
            zone.name().contains('/')
                && !zone.name().starts_with("Etc/")
                && self.midnights.is_subset(&offsets)
        };
        chrono_tz::TZ_VARIANTS.iter().find(has).map(|zone| zone.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dates(cells: &[&str]) -> Vec<Vec<String>> {
        let mut dates = Dates::default();
        for (cell, line) in cells.iter().zip(2..) {
            assert!(dates.look(cell, line), "{cell}");
        }
        let options = dates.options().into_iter();
        options.map(|group| group.into_iter().map(|(form, _)| form).collect()).collect()
    }

    #[test]
    fn forms_are_those_that_read_every_cell() {
        for (cells, forms) in [
            (&["01/02/2016", "13/02/2016"][..], &["%d/%m/%Y"][..]),
            (&["01/02/2016", "02/13/2016"], &["%m/%d/%Y"]),
            (&["01/02/2016", "03/04/2016"], &["%d/%m/%Y", "%m/%d/%Y"]),
            (&["10.08.2016"], &["%d.%m.%Y", "%m.%d.%Y"]),
            (&["2016/08/20"], &["%Y/%m/%d"]),
            (&["20-Aug-2016", "1-Sep-2016"], &["%d-%b-%Y"]),
            (&["August 10, 2016", "Jul 1, 2016"], &["%B %d, %Y"]),
            (&["10/20/2016 1:30 PM"], &["%m/%d/%Y %I:%M %p"]),
            (&["20/10/2016 09:30:00.25"], &["%d/%m/%Y %H:%M:%S.%f"]),
            (&["20160810 093000"], &["%Y%m%d %H%M%S"]),
        ] {
            assert_eq!(dates(cells), [forms], "{cells:?}");
        }
        assert_eq!(dates(&["20/10/2016", "20-Oct-2016"]), [["%d/%m/%Y"], ["%d-%b-%Y"]]);
    }
}
