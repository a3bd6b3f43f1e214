//! The ledger: where each service was put. It decides: a service stays where it is until somebody drains that place.
//!
//! A file of JSON lines, one for each service, in order of their names, so that a review sees what changed. It is written whole, to a file
//! beside it that then takes its name: a reader never sees half of it. If it is lost, [`Ledger::from_tags`] makes it again.

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufWriter, Write as _},
    path::Path,
};

use serde::{Deserialize, Serialize};

use crate::{
    class::{Arch, Provider, Size},
    model::{Place, Role},
};

/// Tag with the grid's name, without which the deployer's role may not touch a service.
pub const TAG_GRID: &str = "trellis:grid";
/// Tag with the role's word.
pub const TAG_ROLE: &str = "trellis:role";
/// Tag with the zone of a service that must be in that one.
pub const TAG_ZONE: &str = "trellis:zone";
/// Where a service is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The service's name.
    pub service: String,
    /// What it is for.
    pub role: Role,
    /// Its account and Region.
    pub place: Place,
    /// Its cluster.
    pub cluster: String,
    /// Its zone, if it must be in that one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// The size of its task.
    pub size: Size,
    /// The hash of its task definition.
    pub definition: String,
    /// When it was deployed, nanoseconds since 1970, if it is a unit. A ledger that was made from tags does not know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deployed_ns: Option<i64>,
}

/// Where each service is, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    entries: BTreeMap<String, Entry>,
}

/// A service as ECS tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// Its name.
    pub service: String,
    /// Its account and Region.
    pub place: Place,
    /// Its cluster.
    pub cluster: String,
    /// The family of its task definition. The size and the hash are in it; a tag with them would be old after an update.
    pub family: String,
    /// Its capacity provider, if ECS tells it.
    pub provider: Option<String>,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

impl Ledger {
    /// Reads the file; `None` if there is none.
    ///
    /// # Errors
    /// What is wrong, with the file and the line.
    pub fn read(path: &Path) -> Result<Option<Self>, String> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(format!("the ledger {} cannot be read: {error}", path.display())),
        };
        let read = Self::parse(&text);
        read.map(Some).map_err(|why| {
            format!("the ledger {}: {why}; make it again from the tags of the services", path.display())
        })
    }

    /// Reads the text of the file.
    ///
    /// # Errors
    /// What is wrong, with the line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut ledger = Self::default();
        for (i, line) in text.lines().enumerate() {
            let entry: Entry =
                serde_json::from_str(line).map_err(|error| format!("line {}: {error}", i + 1))?;
            let name = entry.service.clone();
            if ledger.entries.insert(name.clone(), entry).is_some() {
                return Err(format!("line {}: {name} is there twice", i + 1));
            }
        }
        Ok(ledger)
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// Why it could not be written. The file is then as it was.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let beside = path.with_extension("new");
        let mut file = BufWriter::new(File::create(&beside)?);
        for entry in self.entries.values() {
            serde_json::to_writer(&mut file, entry)?;
            file.write_all(b"\n")?;
        }
        // on the disk before it takes the name: otherwise a loss of power may leave an empty ledger
        file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        fs::rename(&beside, path)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()
    }

    /// The ledger that the services themselves tell, and what could not be understood: services of this grid without our tags, and
    /// services that are in two clusters, of which the first in order of account and cluster counts.
    pub fn from_tags(grid: &str, observed: impl IntoIterator<Item = Observed>) -> (Self, Vec<String>) {
        let mut observed: Vec<_> = observed.into_iter().collect();
        observed.sort_by(|a, b| (&a.service, &a.place, &a.cluster).cmp(&(&b.service, &b.place, &b.cluster)));
        let (mut ledger, mut problems) = (Self::default(), Vec::new());
        for one in observed {
            if one.tags.get(TAG_GRID).is_none_or(|name| name != grid) {
                continue;
            }
            let at = format!("{} in {} of {}", one.service, one.cluster, one.place.account);
            let role = one.tags.get(TAG_ROLE).and_then(|word| Role::of(word));
            let made = parse_family(&one.family, &one.cluster, one.provider.as_deref());
            let (Some(role), Some((size, definition))) = (role, made) else {
                problems.push(format!(
                    "{at} has no tag {TAG_ROLE}, or its task definition {} is not fleet's; it is left alone",
                    one.family
                ));
                continue;
            };
            if let Some(first) = ledger.entries.get(&one.service) {
                problems.push(format!("{at} is also in {} of {}", first.cluster, first.place.account));
                continue;
            }
            ledger.insert(Entry {
                zone: one.tags.get(TAG_ZONE).cloned(),
                service: one.service,
                role,
                place: one.place,
                cluster: one.cluster,
                size,
                definition,
                deployed_ns: None,
            });
        }
        (ledger, problems)
    }

    /// Puts a service where the entry says.
    pub fn insert(&mut self, entry: Entry) {
        self.entries.insert(entry.service.clone(), entry);
    }

    /// Where a service is.
    #[must_use]
    pub fn get(&self, service: &str) -> Option<&Entry> {
        self.entries.get(service)
    }

    /// The entries in order of their names.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing was put anywhere.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl Entry {
    /// The tags from which, with the service's name, place and task definition, it can be made again.
    #[must_use]
    pub fn tags(&self, grid: &str) -> BTreeMap<String, String> {
        let fixed = [(TAG_GRID, grid.to_owned()), (TAG_ROLE, self.role.word().to_owned())];
        let zone = self.zone.clone().map(|zone| (TAG_ZONE, zone));
        fixed.into_iter().chain(zone).map(|(key, value)| (key.to_owned(), value)).collect()
    }

    /// Whether nothing happens to a service that is so and shall be as `after`.
    #[must_use]
    pub fn is_same(&self, after: &Self) -> bool {
        let known = Self { deployed_ns: self.deployed_ns.or(after.deployed_ns), ..self.clone() };
        known == *after
    }
}

/// The size and the hash that a family of ours ends with: `-CPU-MEMORY[-gpuN]-ARCH-HASH`.
fn parse_family(family: &str, cluster: &str, provider: Option<&str>) -> Option<(Size, String)> {
    let mut parts = family.rsplit('-').peekable();
    let definition = parts.next()?.to_owned();
    let arch = parts.next()?;
    let arch = [Arch::X86, Arch::Arm].into_iter().find(|each| each.name().eq_ignore_ascii_case(arch))?;
    let gpu = parts.next_if(|part| part.starts_with("gpu"));
    let gpu = gpu.map_or(Some(0), |part| part.trim_start_matches("gpu").parse().ok())?;
    let (memory, cpu) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let all = [Provider::Fargate, Provider::FargateSpot, Provider::General, Provider::Memory, Provider::Gpu];
    let provider = match provider {
        Some(name) => all.into_iter().find(|each| each.in_cluster(cluster) == name)?,
        None if gpu > 0 => Provider::Gpu,
        None => Provider::Fargate,
    };
    Some((Size { cpu, memory, gpu, arch, provider }, definition))
}
