//! All shards that this head knows, and the map of their ownership.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use parking_lot::RwLock;
use tokio::sync::watch;
use trellis_fabric::channel::Pool;
use trellis_proto::{Code, Error, Result, pb, placement::OwnershipMap};

use super::shard::{Generation, Link, Shard, describe};

/// The ownership map, or why there is none.
#[derive(Debug)]
pub(crate) struct Ownership {
    /// Grows with every change.
    pub(crate) epoch: u64,
    pub(crate) map: Result<OwnershipMap>,
}

/// The shards by name, and their ownership map.
#[derive(Debug)]
pub(crate) struct Shards {
    by_name: RwLock<BTreeMap<String, Arc<Shard>>>,
    ownership: RwLock<Arc<Ownership>>,
    /// Counts the changes of shards, their links, the map, and the datasets that shards have described.
    changed: watch::Sender<u64>,
    numbers: AtomicU64,
}

impl Shards {
    pub(crate) fn new() -> Self {
        let none = Error::new(Code::Unavailable, "no shard has been found yet");
        Self {
            by_name: RwLock::default(),
            ownership: RwLock::new(Arc::new(Ownership { epoch: 0, map: Err(none) })),
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

    pub(crate) fn ownership(&self) -> Arc<Ownership> {
        Arc::clone(&self.ownership.read())
    }

    pub(crate) fn next_generation(&self) -> Generation {
        self.numbers.fetch_add(1, Relaxed)
    }

    /// Asks the shard at `addr` for its name and ownership. Returns the `known` shard, with its ownership up to date, if it has that
    /// name. Otherwise returns a new shard, which the caller must [add](Self::add). Cancel safe.
    ///
    /// # Errors
    /// [`Code::Unavailable`] if the shard does not answer in time, [`Code::DataCorrupt`] if it has no name.
    pub(crate) async fn identify(
        &self,
        addr: &str,
        pool: Pool,
        known: Option<&Arc<Shard>>,
    ) -> Result<Arc<Shard>> {
        let said = describe(&pool, true, addr).await?;
        if said.shard.is_empty() {
            return Err(Error::new(Code::DataCorrupt, format!("the shard at {addr} has no name")));
        }
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
        self.rebuild_ownership();
    }

    /// Takes a shard out, unless another one has its name by now. Returns whether it was there. The caller rebuilds the map when it
    /// has let go of the shard's datasets.
    pub(crate) fn remove(&self, shard: &Arc<Shard>) -> bool {
        let mut by_name = self.by_name.write();
        let there = by_name.get(&*shard.id).is_some_and(|known| Arc::ptr_eq(known, shard));
        if there {
            by_name.remove(&*shard.id);
        }
        there
    }

    /// Takes a shard's description of its ownership, and rebuilds the map if it has changed.
    pub(crate) fn redescribe(&self, shard: &Shard, said: &pb::ShardDescription) {
        if shard.take_description(said) {
            self.rebuild_ownership();
        }
    }

    pub(crate) fn set_link(&self, shard: &Shard, link: Link) {
        shard.link.send_replace(link);
        self.notify();
    }

    /// Builds the map anew. While the shards leave a hole or overlap there is no map, and no read is answered: half of an answer, or
    /// one of two, would look whole.
    pub(crate) fn rebuild_ownership(&self) {
        let mut ownership = self.ownership.write();
        let was_whole = ownership.map.is_ok();
        let owns: Vec<_> = self.all().iter().map(|shard| (shard.id.to_string(), shard.owns())).collect();
        let map = OwnershipMap::build(&owns).map_err(|error| {
            // At a start the map becomes whole shard by shard. Reads say why they fail until it is.
            if was_whole {
                tracing::error!(%error, shards = owns.len(), "the shards do not own everything exactly once");
            } else {
                tracing::warn!(%error, shards = owns.len(), "the shards found so far do not own everything exactly once");
            }
            Error::new(
                Code::Unavailable,
                format!("the shards do not own everything exactly once: {}", error.message()),
            )
            .hint("try again; if it stays, look at what the shards are configured to own")
        });
        *ownership = Arc::new(Ownership { epoch: ownership.epoch + 1, map });
        drop(ownership);
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
