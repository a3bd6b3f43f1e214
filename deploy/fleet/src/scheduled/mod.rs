//! Units whose tasks exist only for a session: when each starts and ends. Pure.
//!
//! A unit with a window has no task until shortly before its session is due, and none after the window: its service goes from 0 to 1 and
//! back to 0. Units that are due at the same moment cannot all start in it: an account takes [`CALLS_S`] calls a second. So
//! the starts are spread before the moment, each as late as the others allow; 10,000 units of an account begin 42 minutes early. The
//! ends come after the windows, in the slots that no start needs.
//!
//! What a service should be at a moment depends on that moment and the files alone, so a `fleet` that was away knows it again.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, NaiveDate};

#[cfg(test)]
mod tests;

use crate::{
    desired::{ALWAYS, Calendar, DAYS_A_MONTH, Desired, Schedule, Unit},
    model::{Role, Service},
};

const SECOND_NS: i64 = 1_000_000_000;
const DAY_NS: i64 = 86_400 * SECOND_NS;
const HOUR_NS: f64 = 3.6e12;

/// Calls that change a service, a second of an account: 80 percent of the 5 that AWS gives. Fargate starts 20 tasks a second, so it
/// does not bind.
pub const CALLS_S: i64 = 4;
/// Time from the call until the unit waits for its session: Fargate starts the task, the image is pulled, Python imports. Assumed; a late
/// unit runs late, it does not fail.
pub const LEAD_NS: i64 = 180 * SECOND_NS;
/// Days before and after a moment that a timetable looks at: more than the longest window and the longest spread.
const HORIZON_DAYS: i64 = 3;
const SLOT_NS: i64 = SECOND_NS / CALLS_S;

/// When a service's number of tasks changes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Event {
    /// The moment, nanoseconds UTC.
    pub at_ns: i64,
    /// The service.
    pub service: String,
    /// 0 or 1.
    pub desired: u32,
}

/// A session of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Window {
    /// When the unit runs: the close and its delay, nanoseconds UTC.
    pub due_ns: i64,
    /// When its task may end.
    pub end_ns: i64,
    /// The session.
    pub session: NaiveDate,
}

/// When the tasks around a moment start and end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Timetable {
    /// By service: starts and ends, in order of time.
    spans: BTreeMap<String, Vec<(i64, i64)>>,
    /// Sentences that name a calendar and a date that its file does not cover: nothing starts on that date.
    pub uncovered: BTreeSet<String>,
}

/// The windows of a unit whose moments are in `[from_ns, to_ns)`; none for a unit that always runs. A date that the calendar does not
/// cover has none, and is told in `uncovered`.
fn windows(
    desired: &Desired,
    unit: &Unit,
    (from_ns, to_ns): (i64, i64),
    uncovered: &mut BTreeSet<String>,
) -> Result<Vec<Window>, String> {
    let (Some(window_ns), Schedule::AtClose { calendar: name, delay_ns }) = (unit.window_ns, &unit.schedule)
    else {
        return Ok(Vec::new());
    };
    let mut close = |date: NaiveDate| match desired.calendars.get(name) {
        Some(calendar) => Ok(calendar.close_ns(date).unwrap_or_else(|missing| {
            uncovered.insert(format!(
                "calendars/{name}.json says nothing about {}; it ends at {}",
                missing.0,
                calendar.until()
            ));
            None
        })),
        None if name == ALWAYS => {
            let next = date.succ_opt().and_then(|next| next.and_hms_opt(0, 0, 0));
            Ok(next.and_then(|midnight| midnight.and_utc().timestamp_nanos_opt()))
        }
        None => Err(format!("there is no file calendars/{name}.json")),
    };
    // the close of a date is at most a day before or after its UTC midnight
    let first = date_of(from_ns.saturating_sub(*delay_ns).saturating_sub(2 * DAY_NS))?;
    let last = date_of(to_ns.saturating_sub(*delay_ns).saturating_add(DAY_NS))?;
    let mut windows = Vec::new();
    for session in first.iter_days().take_while(|date| *date <= last) {
        let Some(close_ns) = close(session)? else { continue };
        let due_ns = close_ns + delay_ns;
        if (from_ns..to_ns).contains(&due_ns) {
            windows.push(Window { due_ns, end_ns: due_ns + window_ns, session });
        }
    }
    Ok(windows)
}

impl Timetable {
    /// The timetable around a moment, for the services of a plan.
    ///
    /// # Errors
    /// A calendar that has no file, or a moment that is no date.
    pub fn around(desired: &Desired, services: &[Service], at_ns: i64) -> Result<Self, String> {
        let (from_ns, to_ns) = (at_ns - HORIZON_DAYS * DAY_NS, at_ns + HORIZON_DAYS * DAY_NS);
        let mut of_service: BTreeMap<String, &Unit> = BTreeMap::new();
        for unit in desired.units.values().filter(|unit| unit.window_ns.is_some()) {
            for (name, _) in unit.names() {
                of_service.insert(desired.service(Role::Unit, &name), unit);
            }
        }
        let mut of_unit: BTreeMap<&str, Vec<Window>> = BTreeMap::new();
        let mut uncovered = BTreeSet::new();
        let mut by_account: BTreeMap<&str, Vec<(Window, &str)>> = BTreeMap::new();
        let mut spans: BTreeMap<String, Vec<(i64, i64)>> = BTreeMap::new();
        for service in services {
            let Some(unit) = of_service.get(&service.name) else { continue };
            // a unit without a session in this time has no task, and is not one that always runs
            spans.insert(service.name.clone(), Vec::new());
            if !of_unit.contains_key(unit.unit.as_str()) {
                of_unit.insert(&unit.unit, windows(desired, unit, (from_ns, to_ns), &mut uncovered)?);
            }
            let account = by_account.entry(&service.place.account).or_default();
            account.extend(of_unit[unit.unit.as_str()].iter().map(|window| (*window, service.name.as_str())));
        }
        for windows in by_account.into_values() {
            for (service, start, end) in spread(windows) {
                let of = spans.entry(service.to_owned()).or_default();
                match of.last_mut() {
                    // the task of the session before still exists
                    Some(last) if start <= last.1 => last.1 = last.1.max(end),
                    _ => of.push((start, end)),
                }
            }
        }
        Ok(Self { spans, uncovered })
    }

    /// How many tasks a service has at a moment; `None` if it has no windows.
    #[must_use]
    pub fn desired(&self, service: &str, at_ns: i64) -> Option<u32> {
        let spans = self.spans.get(service)?;
        Some(u32::from(spans.iter().any(|(start, end)| (*start..*end).contains(&at_ns))))
    }

    /// All changes in `[from_ns, to_ns)`, in order of time.
    #[must_use]
    pub fn events(&self, from_ns: i64, to_ns: i64) -> Vec<Event> {
        let mut events = Vec::new();
        for (service, spans) in &self.spans {
            for (start, end) in spans {
                for (at_ns, desired) in [(*start, 1), (*end, 0)] {
                    if (from_ns..to_ns).contains(&at_ns) {
                        events.push(Event { at_ns, service: service.clone(), desired });
                    }
                }
            }
        }
        events.sort();
        events
    }
}

/// The start and the end of each window of one account, so that no two calls are in the same slot. In order of starts for each service.
fn spread(mut windows: Vec<(Window, &str)>) -> Vec<(&str, i64, i64)> {
    // the last moment first: each start takes the last slot that is free
    windows.sort_unstable_by(|a, b| (b.0.due_ns, b.1).cmp(&(a.0.due_ns, a.1)));
    let mut taken = BTreeSet::new();
    let mut starts = Vec::with_capacity(windows.len());
    let mut next = i64::MAX;
    for (window, service) in windows {
        let slot = (window.due_ns - LEAD_NS).div_euclid(SLOT_NS).min(next - 1);
        next = slot;
        taken.insert(slot);
        starts.push((window, service, slot));
    }
    starts.sort_unstable_by_key(|(window, service, _)| (window.end_ns, *service));
    let mut spans = Vec::with_capacity(starts.len());
    let mut free = i64::MIN;
    for (window, service, start) in starts {
        free = free.max(-(-window.end_ns).div_euclid(SLOT_NS));
        while taken.contains(&free) {
            free += 1;
        }
        spans.push((service, start * SLOT_NS, free * SLOT_NS));
        free += 1;
    }
    spans.sort_unstable();
    spans
}

fn date_of(ns: i64) -> Result<NaiveDate, String> {
    let seconds = ns.div_euclid(SECOND_NS);
    DateTime::from_timestamp(seconds, 0)
        .map(|at| at.date_naive())
        .ok_or_else(|| format!("{seconds} s is no date"))
}

/// Hours of a month in which the task of a unit exists; `None`: always. The spread of the starts comes on top.
#[must_use]
pub fn hours_a_month(desired: &Desired, unit: &Unit) -> Option<f64> {
    let window_ns = unit.window_ns?;
    let Schedule::AtClose { calendar, .. } = &unit.schedule else { return None };
    let sessions = desired.calendars.get(calendar).map_or(DAYS_A_MONTH, Calendar::sessions_a_month);
    Some(sessions * (window_ns + LEAD_NS) as f64 / HOUR_NS)
}
