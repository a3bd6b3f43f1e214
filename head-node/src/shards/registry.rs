//! All shards that this head knows, and the map of their ownership.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use trellis_fabric::channel::Pool;
use trellis_proto::{Code, DatasetName, Error, Result, Side, Symbol, TimeRange, ownership::OwnershipMap, pb};

use super::shard::{Generation, Link, Shard, describe};

/// Most peers that an error names of those that have not been reached.
const UNREACHED_NAMED_MAX: usize = 3;

/// The map of what the shards own that have been found, or why there is none.
#[derive(Debug)]
pub(crate) struct Ownership {
    /// Grows with every change.
    pub(crate) epoch: u64,
    map: Result<OwnershipMap>,
    /// Names a part of the data that none of them owns.
    gap: Option<Error>,
}

/// The map, and whether something has changed since it was built.
#[derive(Debug)]
struct Built {
    ownership: Arc<Ownership>,
    outdated: bool,
}

/// A peer that does not say which shard it is.
#[derive(Debug)]
enum Unreached {
    /// The first attempt is under way.
    Trying,
    Failed(Error),
}

/// The shards by name, and their ownership map.
#[derive(Debug)]
pub(crate) struct Shards {
    by_name: RwLock<BTreeMap<String, Arc<Shard>>>,
    built: RwLock<Built>,
    /// The peers, by address, of which no shard is known.
    unreached: RwLock<BTreeMap<String, Unreached>>,
    /// The processes that say that they are the shard of a name: their addresses, and the life of each.
    processes: Mutex<BTreeMap<String, BTreeMap<String, String>>>,
    /// Counts the changes of shards, their links, the map, and the datasets that shards have described.
    changed: watch::Sender<u64>,
    numbers: AtomicU64,
}

impl Shards {
    pub(crate) fn new() -> Self {
        let none = Error::new(Code::Unavailable, "no shard has been found yet");
        Self {
            by_name: RwLock::default(),
            built: RwLock::new(Built {
                ownership: Arc::new(Ownership { epoch: 0, map: Err(none), gap: None }),
                outdated: false,
            }),
            unreached: RwLock::default(),
            processes: Mutex::default(),
            changed: watch::Sender::new(0),
            numbers: AtomicU64::new(1),
        }
    }

    pub(crate) fn all(&self) -> Vec<Arc<Shard>> {
        self.by_name.read().values().cloned().collect()
    }

    pub(crate) fn get(&self, id: &str) -> Option<Arc<Shard>> {
        self.by_name.read().get(id).cloned()
    }

    /// The map as of now. It is built when somebody asks for it: thousands of shards that are found at a start cost one map and not
    /// thousands.
    pub(crate) fn ownership(&self) -> Arc<Ownership> {
        {
            let built = self.built.read();
            if !built.outdated {
                return Arc::clone(&built.ownership);
            }
        }
        let mut built = self.built.write();
        // of those that come at once, one builds
        if std::mem::take(&mut built.outdated) {
            built.ownership = Arc::new(self.build(&built.ownership));
        }
        Arc::clone(&built.ownership)
    }

    /// What a head that is not [settled](Self::settled) waits for, for people: one shard, and how many more of its kind.
    pub(crate) fn missing(&self) -> String {
        let counted = |what: String, count: usize| match count {
            1 => what,
            _ => format!("{what}, and {} more", count - 1),
        };
        let unreached = self.unreached.read();
        let mut trying = unreached.iter().filter(|(_, of)| matches!(of, Unreached::Trying));
        if let Some((addr, _)) = trying.next() {
            return counted(format!("the shard at {addr}, which has not answered yet"), 1 + trying.count());
        }
        drop(unreached);
        let shards = self.all();
        let mut syncing = shards.iter().filter(|shard| matches!(&*shard.link.borrow(), Link::Syncing));
        if let Some(shard) = syncing.next() {
            let what = format!("{} at {}, whose log is not followed yet", shard.id, shard.addr);
            return counted(what, 1 + syncing.count());
        }
        match self.whole() {
            Err(error) => error.message().to_owned(),
            Ok(()) => "a shard that is not away".to_owned(),
        }
    }

    /// Refuses a question about all of the data while a part of it has no owner that has been found.
    ///
    /// # Errors
    /// [`Code::Unavailable`] that names the peers that have not been reached.
    pub(crate) fn whole(&self) -> Result<()> {
        let ownership = self.ownership();
        ownership.map.as_ref().map_err(|error| self.incomplete(error.message()))?;
        match &ownership.gap {
            Some(gap) => Err(self.incomplete(gap.message())),
            None => Ok(()),
        }
    }

    /// The shards that own a series, in order of time, each with its part.
    ///
    /// # Errors
    /// [`Code::Unavailable`] that names the peers that have not been reached, if a part of the series has no owner that has been found.
    pub(crate) fn owners<'a>(
        &self,
        ownership: &'a Ownership,
        dataset: &DatasetName,
        symbol: &Symbol,
    ) -> Result<Vec<(TimeRange, &'a str)>> {
        let placed = |error: Error| error.dataset(dataset).symbol(symbol);
        let map = ownership.map.as_ref().map_err(|error| placed(self.incomplete(error.message())))?;
        map.all_owners(dataset.as_str(), symbol.as_str()).ok_or_else(|| {
            placed(self.incomplete(&format!("none that has been reached owns all of {symbol} of {dataset}")))
        })
    }

    /// The shards that may have series of a dataset; all of them, while the map does not say.
    pub(crate) fn serving(&self, dataset: &DatasetName) -> Vec<Arc<Shard>> {
        let ownership = self.ownership();
        match &ownership.map {
            Ok(map) => map.shards_of(dataset.as_str()).into_iter().filter_map(|id| self.get(id)).collect(),
            Err(_) => self.all(),
        }
    }

    /// Whether the map says that a shard may have series of a dataset. While the map is in error, it says so of no shard.
    pub(crate) fn serves(&self, ownership: &Ownership, shard: &Shard, dataset: &DatasetName) -> bool {
        ownership.map.as_ref().is_ok_and(|map| map.shards_of(dataset.as_str()).contains(&*shard.id))
    }

    fn incomplete(&self, why: &str) -> Error {
        let unreached = self.unreached.read();
        let named = unreached.iter().take(UNREACHED_NAMED_MAX).map(|(addr, of)| match of {
            Unreached::Trying => format!("{addr} has not answered yet"),
            Unreached::Failed(error) => format!("{addr} is away: {}", error.message()),
        });
        let mut message = format!("the shards do not own everything exactly once: {why}");
        for named in named {
            message = format!("{message}; the shard at {named}");
        }
        if unreached.len() > UNREACHED_NAMED_MAX {
            message = format!("{message}; and {} more", unreached.len() - UNREACHED_NAMED_MAX);
        }
        let error = Error::new(Code::Unavailable, message).side(Side::Shard);
        match unreached.first_key_value() {
            Some((addr, _)) => error.shard(addr).hint("try again in a moment"),
            None => error.hint("try again; if it stays, look at what the shards are configured to own"),
        }
    }

    /// Whether every peer has been reached or has failed once, and a shard can be asked.
    pub(crate) fn settled(&self) -> bool {
        let trying = self.unreached.read().values().any(|of| matches!(of, Unreached::Trying));
        let shards = self.all();
        let links = || shards.iter().map(|shard| shard.link.borrow());
        !trying
            && self.ownership().map.is_ok()
            && links().any(|link| matches!(&*link, Link::Live))
            && !links().any(|link| matches!(&*link, Link::Syncing))
    }

    /// A peer of which no shard is known is being asked for the first time.
    pub(crate) fn trying(&self, addr: &str) {
        self.unreached.write().insert(addr.to_owned(), Unreached::Trying);
    }

    /// A peer of which no shard is known cannot be asked.
    pub(crate) fn failed(&self, addr: &str, error: &Error) {
        self.unreached.write().insert(addr.to_owned(), Unreached::Failed(error.clone()));
        self.notify();
    }

    /// A peer is a shard, or has left the peers.
    pub(crate) fn reached(&self, addr: &str) {
        if self.unreached.write().remove(addr).is_some() {
            self.notify();
        }
    }

    /// The process at `addr` says that it is the shard `name`, in its life `incarnation`.
    ///
    /// # Errors
    /// [`Code::Unavailable`] with both addresses while another process says the same: two tasks may run for a moment while one replaces
    /// the other. The head ends the log of the shard that it knows by the name, so that the task of this shard finds the other process,
    /// too.
    fn names_itself(&self, name: &str, addr: &str, incarnation: &str) -> Result<()> {
        let other = {
            let mut processes = self.processes.lock();
            let named = processes.entry(name.to_owned()).or_default();
            named.insert(addr.to_owned(), incarnation.to_owned());
            named.iter().find(|(_, life)| *life != incarnation).map(|(other, _)| other.clone())
        };
        let Some(other) = other else { return Ok(()) };
        if let Some(known) = self.get(name).filter(|known| known.addr != addr) {
            known.suspect.notify_one();
        }
        let message = format!("two processes are shard {name}: at {addr} and at {other}");
        let hint = "end one of them, or give each its own TRELLIS_SHARD_INDEX or TRELLIS_ID";
        Err(Error::new(Code::Unavailable, message).side(Side::Shard).shard(name).hint(hint))
    }

    /// The process at `addr` does not answer, or has left the peers: it is no shard any more.
    pub(crate) fn silent(&self, addr: &str) {
        self.processes.lock().retain(|_, named| {
            named.remove(addr);
            !named.is_empty()
        });
    }

    pub(crate) fn next_generation(&self) -> Generation {
        self.numbers.fetch_add(1, Relaxed)
    }

    /// Asks the shard at `addr` for its name and ownership. Returns the `known` shard, with its ownership up to date, if it has that
    /// name. Otherwise returns a new shard, which the caller must [add](Self::add). Cancel safe.
    ///
    /// # Errors
    /// [`Code::Unavailable`] if the shard does not answer in time, or if another process has its name; [`Code::DataCorrupt`] if it has no
    /// name.
    pub(crate) async fn identify(
        &self,
        addr: &str,
        pool: Pool,
        known: Option<&Arc<Shard>>,
    ) -> Result<Arc<Shard>> {
        let said = match describe(&pool, true).await {
            Ok(said) => said,
            Err(error) => {
                self.silent(addr);
                return Err(error);
            }
        };
        if said.shard.is_empty() {
            return Err(Error::new(Code::DataCorrupt, format!("the shard at {addr} has no name")));
        }
        self.names_itself(&said.shard, addr, &said.incarnation)?;
        if let Some(known) = known.filter(|known| *known.id == *said.shard) {
            self.redescribe(known, &said);
            return Ok(Arc::clone(known));
        }
        Ok(Arc::new(Shard::new(said, addr.to_owned(), pool, self.next_generation())))
    }

    /// Adds a shard, in the place of an earlier one of its name.
    pub(crate) fn add(&self, shard: &Arc<Shard>) {
        let before = self.by_name.write().insert(shard.id.to_string(), Arc::clone(shard));
        if let Some(before) = before.filter(|before| before.addr != shard.addr) {
            tracing::warn!(shard = %shard.id, was = before.addr, now = shard.addr, "a shard has moved");
        }
        self.ownership_changed();
    }

    /// Takes a shard out, unless another one has its name by now. Returns whether it was there. The caller says that the map has changed
    /// when it has let go of the shard's datasets.
    pub(crate) fn remove(&self, shard: &Arc<Shard>) -> bool {
        let mut by_name = self.by_name.write();
        let there = by_name.get(&*shard.id).is_some_and(|known| Arc::ptr_eq(known, shard));
        if there {
            by_name.remove(&*shard.id);
        }
        there
    }

    /// Takes a shard's description of its ownership. If it has changed, the map has.
    pub(crate) fn redescribe(&self, shard: &Shard, said: &pb::ShardDescription) {
        if shard.take_description(said) {
            self.ownership_changed();
        }
    }

    pub(crate) fn set_link(&self, shard: &Shard, link: Link) {
        shard.link.send_replace(link);
        self.notify();
    }

    /// A part of the data without an owner is not read, because half of an answer would look whole. If a part has two owners there is
    /// no map, and no read is answered: one of two answers would be as good as the other.
    fn build(&self, before: &Ownership) -> Ownership {
        let was_whole = before.map.is_ok() && before.gap.is_none();
        let shards = self.all();
        let owns: Vec<_> = shards.iter().map(|shard| (shard.id.to_string(), shard.owns())).collect();
        let (map, gap) = match OwnershipMap::build_with_gaps(&owns) {
            Ok((map, gap)) => (Ok(map), gap),
            Err(error) => (Err(error), None),
        };
        if let Some(error) = map.as_ref().err().or(gap.as_ref()) {
            // At a start the map becomes whole shard by shard. Reads say why they fail until it is.
            let met: BTreeSet<&str> = shards.iter().map(|shard| shard.addr.as_str()).collect();
            if was_whole {
                tracing::error!(%error, shards = owns.len(), "the shards do not own everything exactly once");
            } else if self.unreached.read().keys().any(|addr| !met.contains(addr.as_str())) {
                tracing::debug!(%error, shards = owns.len(), "not every shard has been found yet");
            } else {
                tracing::warn!(%error, shards = owns.len(), "the shards found so far do not own everything exactly once");
            }
        }
        Ownership { epoch: before.epoch + 1, map, gap }
    }

    /// The shards, what they own, or the datasets that they have described have changed: the map is built anew when it is asked for.
    pub(crate) fn ownership_changed(&self) {
        self.built.write().outdated = true;
        self.notify();
    }

    /// Wakes everybody who waits for a change.
    pub(crate) fn notify(&self) {
        self.changed.send_modify(|n| *n += 1);
    }

    /// Changes with every change of shards, their links, the map, or the datasets that shards have described.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_that_is_not_ready_names_the_shard_that_it_waits_for() {
        let shards = Shards::new();
        assert!(shards.missing().ends_with("no shard has been found yet"), "{}", shards.missing());
        for addr in ["10.0.0.1:7400", "10.0.0.2:7400", "10.0.0.3:7400"] {
            shards.trying(addr);
        }
        let waits_for = "the shard at 10.0.0.1:7400, which has not answered yet, and 2 more";
        assert_eq!(shards.missing(), waits_for);
        for addr in ["10.0.0.1:7400", "10.0.0.2:7400", "10.0.0.3:7400"] {
            shards.failed(addr, &Error::new(Code::Unavailable, "connection refused"));
        }
        let told = shards.missing();
        assert!(told.contains("10.0.0.1:7400 is away: connection refused"), "{told}");
    }
}
