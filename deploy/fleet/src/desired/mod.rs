//! The desired state: a folder of reviewed files. Reading it names every mistake, with file and field.
//!
//! | file | contents |
//! | --- | --- |
//! | `grid.json` | the grid: its Region, domain, accounts with their quotas, clusters, images |
//! | `heads.json`, `shards.json` | how many, how large, and what a shard owns |
//! | `units/NAME.json` | a deployed strategy, as `trellis deploy` writes it |
//! | `calendars/NAME.json` | the sessions of an exchange, for units whose tasks exist only for a session |
//!
//! Collectors are not here: the template `deploy/aws/cfn/telemetry.yaml` has them.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

mod calendar;
mod core;
mod grid;
mod names;
mod read;
#[cfg(test)]
pub(crate) mod tests;
mod unit;

use self::read::Sheet;
pub use self::{
    calendar::{ALWAYS, Calendar, DAYS_A_MONTH, Uncovered},
    core::{Heads, Owns, Shards},
    grid::{Account, Flower, Grid, Kind, Quotas},
    read::Mistake,
    unit::{Schedule, Unit},
};
use crate::model::{Role, Service};

/// What should run.
#[derive(Clone, Debug, PartialEq)]
pub struct Desired {
    /// What the grid stands on.
    pub grid: Grid,
    /// The heads.
    pub heads: Heads,
    /// The shards.
    pub shards: Shards,
    /// The units by name.
    pub units: BTreeMap<String, Unit>,
    /// The calendars by name.
    pub calendars: BTreeMap<String, Calendar>,
}

/// Where the task of a service has its network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// Its subnets.
    pub subnets: Vec<String>,
    /// Its security groups.
    pub security_groups: Vec<String>,
}

/// The files of a desired state: names relative to the folder, and contents.
pub type Files = BTreeMap<String, String>;

impl Desired {
    /// Reads a folder.
    ///
    /// # Errors
    /// Every mistake, in order of files and fields.
    pub fn read(folder: &Path) -> Result<Self, Vec<Mistake>> {
        let mut files = Files::new();
        let mut mistakes = Vec::new();
        for name in ["grid.json", "heads.json", "shards.json"] {
            // a file that is missing is told by `parse`
            keep(&mut files, &mut mistakes, name.to_owned(), fs::read_to_string(folder.join(name)));
        }
        for inner in ["units", "calendars"] {
            match names(&folder.join(inner)) {
                Ok(names) => {
                    for name in names {
                        let text = fs::read_to_string(folder.join(inner).join(&name));
                        keep(&mut files, &mut mistakes, format!("{inner}/{name}"), text);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => mistakes.push(whole(inner, format!("cannot be read: {error}"))),
            }
        }
        match Self::parse(&files) {
            Ok(desired) if mistakes.is_empty() => Ok(desired),
            Ok(_) => Err(mistakes),
            Err(more) => {
                mistakes.extend(more);
                mistakes.sort();
                Err(mistakes)
            }
        }
    }

    /// Reads the contents of the files.
    ///
    /// # Errors
    /// Every mistake, in order of files and fields.
    pub fn parse(files: &Files) -> Result<Self, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        let grid = one(files, &mut mistakes, "grid.json", grid::read);
        let heads = one(files, &mut mistakes, "heads.json", core::read_heads);
        let shards = one(files, &mut mistakes, "shards.json", core::read_shards);
        let mut calendars = BTreeMap::new();
        let mut units = BTreeMap::new();
        for name in files.keys() {
            match name.split_once('/') {
                Some(("calendars", file)) if file.ends_with(".json") => {
                    let stem = file.trim_end_matches(".json");
                    let read = |s: &Sheet, json: &str| calendar::read(s, json, stem);
                    if let Some(calendar) = one(files, &mut mistakes, name, read) {
                        calendars.insert(stem.to_owned(), calendar);
                    }
                }
                Some(("units", file)) if file.ends_with(".json") => {
                    let stem = file.trim_end_matches(".json");
                    // without the grid nobody knows its classes; its own mistakes come first
                    let Some(grid) = &grid else { continue };
                    if let Some(unit) =
                        one(files, &mut mistakes, name, |s, json| unit::read(s, json, stem, grid))
                    {
                        units.insert(stem.to_owned(), unit);
                    }
                }
                None if matches!(name.as_str(), "grid.json" | "heads.json" | "shards.json") => {}
                _ => mistakes.push(whole(name, "is no file of a desired state: a unit is units/NAME.json")),
            }
        }
        let known = |name: &str| name == ALWAYS || files.contains_key(&format!("calendars/{name}.json"));
        let here: BTreeMap<_, _> = units;
        let unread = |name: &str| files.contains_key(&format!("units/{name}.json"));
        for (unit, field, what) in unit::check_together(&here, unread, known) {
            mistakes.push(Mistake { file: format!("units/{unit}.json"), field, what });
        }
        mistakes.sort();
        match (grid, heads, shards) {
            (Some(grid), Some(heads), Some(shards)) if mistakes.is_empty() => {
                Ok(Self { grid, heads, shards, units: here, calendars })
            }
            _ => Err(mistakes),
        }
    }

    /// Where the task of a service has its network interface; `None` if its account is not in the files.
    #[must_use]
    pub fn network(&self, service: &Service) -> Option<Network> {
        let account = self.grid.account(&service.place.account)?;
        let chosen =
            account.subnets.iter().filter(|(zone, _)| service.zone.as_ref().is_none_or(|only| only == *zone));
        Some(Network {
            subnets: chosen.flat_map(|(_, subnets)| subnets.clone()).collect(),
            security_groups: account.security_groups.get(&service.role)?.clone(),
        })
    }

    /// The name of the ECS service of a part of the grid.
    #[must_use]
    pub fn service(&self, role: Role, name: &str) -> String {
        format!("{}-{}-{name}", self.grid.grid, role.word())
    }
}

fn one<T>(
    files: &Files,
    mistakes: &mut Vec<Mistake>,
    name: &str,
    read: impl FnOnce(&Sheet, &str) -> Option<T>,
) -> Option<T> {
    let Some(text) = files.get(name) else {
        mistakes.push(whole(name, "is missing"));
        return None;
    };
    let sheet = Sheet::new(name);
    let value = read(&sheet, text);
    let found = sheet.mistakes();
    let good = found.is_empty();
    mistakes.extend(found);
    value.filter(|_| good)
}

fn whole(file: &str, what: impl Into<String>) -> Mistake {
    Mistake { file: file.to_owned(), field: String::new(), what: what.into() }
}

fn keep(files: &mut Files, mistakes: &mut Vec<Mistake>, name: String, text: io::Result<String>) {
    match text {
        Ok(text) => {
            files.insert(name, text);
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => mistakes.push(whole(&name, format!("cannot be read: {error}"))),
    }
}

/// The files of a folder. Those of editors and of git, whose names begin with a dot, do not count.
fn names(folder: &PathBuf) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}
