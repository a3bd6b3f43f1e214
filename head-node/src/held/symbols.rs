//! The symbols of one dataset, as each shard lists its own.
//!
//! A symbol that was listed once stays: only a change of everything takes it away. So a read of listed symbols needs no list that is up to
//! date, and no shard but those that have its rows. Only who asks for all symbols, or for one that no list has, needs the newest lists.
//! Pure, but for the calls that it keeps.

use std::{collections::BTreeMap, sync::Arc};

use trellis_fabric::single::Single;
use trellis_proto::{Result, Symbol};

/// Tells how new a list is: it grows with every change that may have added a symbol.
pub(crate) type Stamp = u64;

/// The calls that list the symbols of one shard. The result says whether the list came, and how new it is.
pub(crate) type Listing = Single<(Stamp, Result<()>)>;

/// The symbols of one dataset.
#[derive(Debug, Default)]
pub(crate) struct SymbolLists {
    by_shard: BTreeMap<Arc<str>, SymbolList>,
    /// All listed symbols, sorted; `None`: the lists have changed since.
    listed: Option<Arc<[Symbol]>>,
    /// The epoch of the ownership map at which every shard's list was the newest.
    whole_at: Option<u64>,
}

/// The symbols of one shard.
#[derive(Debug, Default)]
struct SymbolList {
    stamp: Stamp,
    listing: Listing,
    /// Sorted.
    list: Vec<Symbol>,
    /// No symbol can have been added since it was listed.
    newest: bool,
}

impl SymbolLists {
    /// All listed symbols, sorted. A shard may have more.
    pub(crate) fn listed(&mut self) -> Arc<[Symbol]> {
        let merged = || {
            let mut all: Vec<Symbol> = self.by_shard.values().flat_map(|of| &of.list).cloned().collect();
            all.sort_unstable();
            all.dedup();
            all.into()
        };
        Arc::clone(self.listed.get_or_insert_with(merged))
    }

    /// Every symbol of every shard, sorted, if nothing has changed since [`Self::note_whole`].
    pub(crate) fn whole(&mut self, epoch: u64) -> Option<Arc<[Symbol]>> {
        (self.whole_at == Some(epoch)).then(|| self.listed())
    }

    /// `shards` are all shards at this epoch of the ownership map. If the list of each is the newest, the listed symbols are all, until one
    /// of the lists is outdated.
    pub(crate) fn note_whole<'a>(&mut self, epoch: u64, mut shards: impl Iterator<Item = &'a str>) {
        if shards.all(|shard| self.is_newest(shard)) {
            self.whole_at = Some(epoch);
        }
    }

    /// Whether every symbol of a shard is listed.
    pub(crate) fn is_newest(&self, shard: &str) -> bool {
        self.by_shard.get(shard).is_some_and(|of| of.newest)
    }

    /// How new a list of a shard must be that is asked for now, and the calls for it.
    pub(crate) fn listing(&mut self, shard: &Arc<str>) -> (Stamp, Listing) {
        let of = self.by_shard.entry(Arc::clone(shard)).or_default();
        (of.stamp, of.listing.clone())
    }

    /// Takes a list that was asked for at `stamp`. Its symbols are known from now on, even if others may have been added since.
    pub(crate) fn take(&mut self, shard: &Arc<str>, stamp: Stamp, mut list: Vec<Symbol>) {
        list.sort_unstable();
        let of = self.by_shard.entry(Arc::clone(shard)).or_default();
        of.newest = of.stamp == stamp;
        if of.list != list {
            of.list = list;
            self.listed = None;
        }
    }

    /// A change of a shard has rows of these symbols; `None`: it may have rows of any.
    pub(crate) fn may_grow<'a>(&mut self, shard: &Arc<str>, symbols: Option<impl Iterator<Item = &'a str>>) {
        let of = self.by_shard.entry(Arc::clone(shard)).or_default();
        let known = |symbol: &str| of.list.binary_search_by(|known| known.as_str().cmp(symbol)).is_ok();
        let stays = of.newest && symbols.is_some_and(|mut symbols| symbols.all(known));
        if !stays {
            of.stamp += 1;
            of.newest = false;
            self.whole_at = None;
        }
    }

    /// A shard has left the grid.
    pub(crate) fn leave(&mut self, shard: &str) {
        if self.by_shard.remove(shard).is_some() {
            self.listed = None;
        }
    }

    /// A shard's change of everything: symbols may be gone, and others may have come.
    pub(crate) fn forget(&mut self, shard: &Arc<str>) {
        self.may_grow(shard, None::<std::iter::Empty<&str>>);
        if let Some(of) = self.by_shard.get_mut(shard) {
            of.list = Vec::new();
            self.listed = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn symbols(names: &[&str]) -> Vec<Symbol> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    fn take(lists: &mut SymbolLists, shard: &Arc<str>, names: &[&str]) {
        let (stamp, _) = lists.listing(shard);
        lists.take(shard, stamp, symbols(names));
    }

    #[test]
    fn a_change_outdates_the_list_of_its_shard_alone_and_only_by_a_new_symbol() {
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let mut lists = SymbolLists::default();
        take(&mut lists, &a, &["A", "C"]);
        take(&mut lists, &b, &["B"]);
        lists.note_whole(7, ["a", "b"].into_iter());
        assert_eq!(*lists.whole(7).unwrap(), *symbols(&["A", "B", "C"]));
        assert!(lists.whole(8).is_none(), "another shard may have come");

        lists.may_grow(&a, Some(["C", "A"].into_iter()));
        lists.may_grow(&a, Some(std::iter::empty()));
        assert!(lists.whole(7).is_some());
        lists.may_grow(&a, Some(["D"].into_iter()));
        assert!(lists.whole(7).is_none() && !lists.is_newest("a") && lists.is_newest("b"));
        assert_eq!(*lists.listed(), *symbols(&["A", "B", "C"]), "what was listed stays known");
        lists.forget(&a);
        assert_eq!(*lists.listed(), *symbols(&["B"]));
    }

    #[test]
    fn a_list_that_a_change_has_overtaken_is_not_the_newest() {
        let a: Arc<str> = "a".into();
        let mut lists = SymbolLists::default();
        let (stamp, _) = lists.listing(&a);
        lists.may_grow(&a, Some(["B"].into_iter()));
        lists.take(&a, stamp, symbols(&["A"]));
        assert!(!lists.is_newest("a"));
        assert_eq!(*lists.listed(), *symbols(&["A"]));
        take(&mut lists, &a, &["B", "A"]);
        assert!(lists.is_newest("a"));
        assert_eq!(*lists.listed(), *symbols(&["A", "B"]));
    }
}
