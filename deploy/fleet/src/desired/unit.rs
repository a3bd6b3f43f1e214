//! `units/NAME.json`: one deployed strategy. `trellis deploy` writes it; the words are those of the unit's manifest.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    grid::{Grid, read_need},
    names::is_sha256,
    read::{Fields, Sheet, flag, list, object, such, text, whole},
};
use crate::class::{self, Need, Size};

/// Longest name of a unit, as in its manifest.
const UNIT_BYTES_MAX: usize = 63;
/// Longest name of a partition.
const PARTITION_BYTES_MAX: usize = 31;
/// Most partitions of a unit. Each is a service.
const PARTITIONS_MAX: usize = 1_000;
/// Longest window. A longer one is a unit that should always run.
const WINDOW_NS_MAX: i64 = 2 * 86_400 * 1_000_000_000;
/// Longest name of an ECS service.
const SERVICE_BYTES_MAX: usize = 255;
/// Folder of bundles in their bucket. The role of units may read nothing else.
const BUNDLES: &str = "bundles/";

/// A deployed strategy.
#[derive(Clone, Debug, PartialEq)]
pub struct Unit {
    /// Its name.
    pub unit: String,
    /// `sha256:...` of its bundle.
    pub digest: String,
    /// When it was deployed, nanoseconds since 1970. A task that began before has the bundle before.
    pub deployed_ns: i64,
    /// The bundle's key in S3.
    pub bundle: String,
    /// Python file with the strategy, in the bundle.
    pub module: String,
    /// The strategy's function.
    pub function: String,
    /// The size of its task.
    pub size: Size,
    /// When it runs.
    pub schedule: Schedule,
    /// How long its task exists for a session, nanoseconds; `None`: always.
    pub window_ns: Option<i64>,
    /// Its partitions, each a service. Empty: one service.
    pub partitions: Vec<String>,
}

/// When a unit runs, as in its manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// Some time after each session's close.
    AtClose {
        /// The calendar whose close counts.
        calendar: String,
        /// Time after the close, nanoseconds.
        delay_ns: i64,
    },
    /// As soon as these units have published the session.
    After(Vec<String>),
    /// Only when a person asks for it.
    Manual,
}

impl Unit {
    /// The names of its services, after `GRID-unit-`, with the partition of each.
    pub fn names(&self) -> impl Iterator<Item = (String, Option<&str>)> {
        let whole = self.partitions.is_empty().then(|| (service_part(&self.unit, None), None));
        let parts =
            self.partitions.iter().map(|part| (service_part(&self.unit, Some(part)), Some(part.as_str())));
        whole.into_iter().chain(parts)
    }
}

/// A unit's name as part of a service's name. ECS takes no dot; no name of a unit has a capital letter, so the result is unique.
fn service_part(unit: &str, partition: Option<&str>) -> String {
    let unit = unit.replace('.', "-DOT-");
    partition.map_or(unit.clone(), |partition| format!("{unit}-PART-{partition}"))
}

/// Reads the file of the unit that its name says.
pub(super) fn read(sheet: &Sheet, json: &str, stem: &str, grid: &Grid) -> Option<Unit> {
    let mut f = sheet.object(json)?;
    let unit = f.need("unit", |s, p, v| such(s, p, v, "a unit's name, [a-z0-9][a-z0-9_.-]{0,62}", is_unit));
    if let Some(unit) = &unit
        && unit != stem
    {
        f.wrong::<()>("unit", format!("is {unit:?}, but the file is {stem}.json"));
    }
    let environment = f.need("environment", text);
    if let Some(other) = environment.filter(|name| *name != grid.environment) {
        f.wrong::<()>("environment", format!("is {other:?}, but this grid is {:?}", grid.environment));
    }
    let digest = f.need("digest", |s, p, v| such(s, p, v, "a digest, sha256: and 64 hex digits", is_sha256));
    let bundle =
        f.need("bundle", |s, p, v| such(s, p, v, "a key below bundles/", |key| key.starts_with(BUNDLES)));
    if let (Some(digest), Some(bundle)) = (&digest, &bundle)
        && !bundle.contains(digest.trim_start_matches("sha256:"))
    {
        f.wrong::<()>("bundle", "does not contain the digest: a bundle is found by its contents");
    }
    let deployed_ns = f.need("deployed_ns", |s, p, v| whole(s, p, v, 1, i64::MAX as u64));
    let module = f
        .need("module", |s, p, v| such(s, p, v, "a Python file of the bundle", |name| name.ends_with(".py")));
    let function = f.need("function", text);
    let size = read_size(&mut f, grid);
    let schedule = f.need("schedule", read_schedule);
    let window = f.may("window", duration);
    if window.is_some() && !matches!(schedule, Some(Schedule::AtClose { .. })) {
        f.wrong::<()>(
            "window",
            "needs a schedule at_close: without a time, nobody knows when to start the task",
        );
    }
    if window.is_some_and(|window| !(1..=WINDOW_NS_MAX).contains(&window)) {
        f.wrong::<()>("window", "is above 0 and at most 2d; a unit that needs more should always run");
    }
    let partitions = f.may("partitions", |s, p, v| {
        list(s, p, v, |s, p, v| such(s, p, v, "a partition's name, [a-z0-9][a-z0-9_-]{0,30}", is_partition))
    });
    if let Some(partitions) = &partitions {
        let unique: BTreeSet<_> = partitions.iter().collect();
        if unique.len() != partitions.len() || partitions.is_empty() || partitions.len() > PARTITIONS_MAX {
            f.wrong::<()>("partitions", format!("are 1 to {PARTITIONS_MAX} names, each once"));
        }
    }
    f.end();
    let unit = Unit {
        unit: unit?,
        digest: digest?,
        deployed_ns: deployed_ns? as i64,
        bundle: bundle?,
        module: module?,
        function: function?,
        size: size?,
        schedule: schedule?,
        window_ns: window,
        partitions: partitions.unwrap_or_default(),
    };
    let longest = unit.names().map(|(name, _)| format!("{}-unit-{name}", grid.grid).len()).max();
    if longest.is_some_and(|bytes| bytes > SERVICE_BYTES_MAX) {
        return sheet
            .wrong("unit", format!("makes a service's name of more than {SERVICE_BYTES_MAX} letters"));
    }
    Some(unit)
}

/// Either a class of the grid, or the size itself.
fn read_size(f: &mut Fields<'_>, grid: &Grid) -> Option<Size> {
    let need = if f.has("class") {
        let class = f.need("class", text);
        for name in ["cpu", "memory", "gpu", "arch"].into_iter().filter(|name| f.has(name)) {
            f.wrong::<()>(name, "stands beside a class, which has it");
        }
        // they are read all the same, so that they are not called unknown
        let spot = f.may("spot", flag);
        for name in ["cpu", "memory", "gpu", "arch"] {
            f.may(name, |_, _, _| Some(()));
        }
        let class = class?;
        let Some(need) = grid.classes.get(&class) else {
            let known: Vec<_> = grid.classes.keys().map(String::as_str).collect();
            return f
                .wrong("class", format!("{class:?} is none of the grid's classes: {}", known.join(", ")));
        };
        Need { spot: spot.unwrap_or(need.spot), ..*need }
    } else {
        read_need(f)?
    };
    class::size(&need).map_err(|why| f.wrong::<()>("cpu", why)).ok()
}

fn read_schedule(sheet: &Sheet, path: &str, value: serde_json::Value) -> Option<Schedule> {
    let mut f = object(sheet, path, value)?;
    let schedule = match f.need("kind", text)?.as_str() {
        "at_close" => {
            let calendar = f.need("calendar", text);
            let delay = f.may("delay", duration);
            calendar.map(|calendar| Schedule::AtClose { calendar, delay_ns: delay.unwrap_or(0) })
        }
        "after" => {
            let units = f.need("units", |s, p, v| {
                list(s, p, v, |s, p, v| {
                    let mut f = object(s, p, v)?;
                    let unit = f.need("unit", text);
                    f.need("dataset", text);
                    f.end();
                    unit
                })
            });
            if units.as_ref().is_some_and(Vec::is_empty) {
                f.wrong::<()>("units", "is empty");
            }
            units.map(Schedule::After)
        }
        "manual" => Some(Schedule::Manual),
        other => f.wrong("kind", format!("is {other:?}; one of at_close, after, manual is expected")),
    };
    f.end();
    schedule
}

/// A time as people write it, `20m`, in nanoseconds.
pub(super) fn duration(sheet: &Sheet, path: &str, value: serde_json::Value) -> Option<i64> {
    let text = text(sheet, path, value)?;
    match trellis_proto::time::parse_duration(&text) {
        Ok(ns) => Some(ns),
        Err(error) => sheet.wrong(path, format!("{}; {}", error.message(), error.hint_text())),
    }
}

/// What no unit's file alone shows: the upstream of each is there, and its calendar.
///
/// `deployed` says whether there is a file of a unit, `known` of a calendar. Answers the unit, the field and the mistake.
pub(super) fn check_together(
    units: &BTreeMap<String, Unit>,
    deployed: impl Fn(&str) -> bool,
    known: impl Fn(&str) -> bool,
) -> Vec<(String, String, String)> {
    let mut wrong = Vec::new();
    for unit in units.values() {
        match &unit.schedule {
            Schedule::After(upstream) => {
                for (i, name) in upstream.iter().enumerate().filter(|(_, name)| !deployed(name)) {
                    let why = format!("{name:?} is not deployed here, so this unit would wait for ever");
                    wrong.push((unit.unit.clone(), format!("schedule.units[{i}].unit"), why));
                }
            }
            Schedule::AtClose { calendar, .. } if unit.window_ns.is_some() && !known(calendar) => {
                let why = format!(
                    "there is no file calendars/{calendar}.json, so nobody knows when to start the task"
                );
                wrong.push((unit.unit.clone(), "schedule.calendar".to_owned(), why));
            }
            Schedule::AtClose { .. } | Schedule::Manual => {}
        }
    }
    wrong
}

fn is_unit(text: &str) -> bool {
    text.len() <= UNIT_BYTES_MAX
        && text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_.-".contains(&b))
}

fn is_partition(text: &str) -> bool {
    text.len() <= PARTITION_BYTES_MAX && is_unit(text) && !text.contains('.')
}
