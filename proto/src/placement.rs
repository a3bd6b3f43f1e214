//! Chooses the head that serves a series, the shard that owns it, and the shard that writes a dataset. Pure. Every process
//! of every build must agree, so the hash is fixed (XXH3-64, seed 0) and checked by golden vectors.
//!
//! Heads are chosen by rendezvous hashing of the *series*, not of the time. So all requests for a symbol meet on one head,
//! whatever their range, and a head that joins or leaves moves only its own share. Shards own declared regions instead:
//! adding a process does not move data.

use std::cmp::Reverse;

use twox_hash::XxHash3_64;

use crate::{
    error::{Code, Error, Result},
    pb,
    range::TimeRange,
};

/// Slots of the symbol ring.
pub const SLOTS: u32 = 1 << 16;

/// The slot of the 16 bit ring that a symbol falls on.
#[must_use]
pub fn symbol_slot(symbol: &str) -> u16 {
    (XxHash3_64::oneshot(symbol.as_bytes()) >> 48) as u16
}

fn score(peer: &str, key: &[&str]) -> u64 {
    // Zero bytes separate the parts. No name has one, so ("ab", "c") and ("a", "bc") differ.
    let mut bytes = Vec::with_capacity(128);
    bytes.extend_from_slice(peer.as_bytes());
    for part in key {
        bytes.push(0);
        bytes.extend_from_slice(part.as_bytes());
    }
    XxHash3_64::oneshot(&bytes)
}

fn best<'a>(peers: &'a [String], key: &[&str]) -> Option<&'a str> {
    // The name breaks a tie, so that the order of the list does not matter.
    peers.iter().map(String::as_str).max_by_key(|peer| (score(peer, key), Reverse(*peer)))
}

/// `peers` from best to worst for `key`. The first serves the key; the next ones take over if it cannot be reached.
#[must_use]
pub fn rank<'a>(peers: &'a [String], key: &str) -> Vec<&'a str> {
    let mut ranked: Vec<&str> = peers.iter().map(String::as_str).collect();
    ranked.sort_by_key(|peer| (Reverse(score(peer, &[key])), *peer));
    ranked
}

/// The head that serves a series; `None` without heads.
#[must_use]
pub fn head_of<'a>(heads: &'a [String], dataset: &str, symbol: &str) -> Option<&'a str> {
    best(heads, &[dataset, symbol])
}

/// The shard that commits to a dataset; `None` without shards.
#[must_use]
pub fn home<'a>(shards: &'a [String], dataset: &str) -> Option<&'a str> {
    best(shards, &[dataset])
}

/// The owner of each part of (dataset x symbol x event time). No part has two. A dataset that no pattern matches has no owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnershipMap {
    regions: Vec<Region>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Region {
    shard: String,
    pattern: Pattern,
    symbols: SymbolSet,
    range: TimeRange,
}

/// Ordered from most to least specific: of the patterns that match a dataset, the most specific decides.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Pattern {
    Exact(String),
    /// The pattern without its `*`; a longer one is more specific.
    Prefix(Reverse<usize>, String),
}

impl Pattern {
    fn new(text: &str) -> Result<Self> {
        match text.strip_suffix('*') {
            Some(prefix) if !prefix.contains('*') && (prefix.is_empty() || prefix.ends_with('.')) => {
                Ok(Self::Prefix(Reverse(prefix.len()), prefix.to_owned()))
            }
            None if !text.is_empty() && !text.contains('*') => Ok(Self::Exact(text.to_owned())),
            _ => Err(Error::new(Code::InvalidRequest, format!("{text:?} is not a dataset pattern"))
                .hint("use *, equities.* or a full name")),
        }
    }

    fn matches(&self, dataset: &str) -> bool {
        match self {
            Self::Exact(name) => name == dataset,
            Self::Prefix(_, prefix) => dataset.starts_with(prefix),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum SymbolSet {
    Slots {
        start: u32,
        end: u32,
    },
    /// Sorted.
    List(Vec<String>),
}

impl SymbolSet {
    fn contains(&self, symbol: &str, slot: u32) -> bool {
        match self {
            Self::Slots { start, end } => (*start..*end).contains(&slot),
            Self::List(list) => list.binary_search_by(|s| s.as_str().cmp(symbol)).is_ok(),
        }
    }
}

impl OwnershipMap {
    /// Builds the map from the regions that each shard declares.
    ///
    /// Within one dataset pattern, the hash ranges of all shards must cover the ring at every time without overlap. A symbol
    /// in a list is not on the ring, and may be listed only once for each time. Of several patterns that match a dataset,
    /// only the most specific counts.
    ///
    /// # Errors
    /// [`Code::Conflict`] that names the region with several owners or with none, and the shards.
    pub fn build(shards: &[(String, Vec<pb::Ownership>)]) -> Result<Self> {
        match Self::build_with_gaps(shards)? {
            (map, None) => Ok(map),
            (_, Some(gap)) => Err(gap),
        }
    }

    /// As [`Self::build`], but some of the shards may be missing: with the map comes the error that names a region without an owner, if
    /// there is one.
    ///
    /// # Errors
    /// [`Code::Conflict`] that names the region with several owners, and the shards.
    pub fn build_with_gaps(shards: &[(String, Vec<pb::Ownership>)]) -> Result<(Self, Option<Error>)> {
        let mut regions = Vec::new();
        for (shard, owns) in shards {
            for region in owns {
                regions.push(Region::new(shard, region).map_err(|error| error.shard(shard))?);
            }
        }
        if regions.is_empty() {
            return Err(Error::new(Code::Unavailable, "no shard has declared its regions yet"));
        }
        regions.sort_by(|a, b| (&a.pattern, &a.shard).cmp(&(&b.pattern, &b.shard)));
        let mut gap = None;
        for group in regions.chunk_by(|a, b| a.pattern == b.pattern) {
            check_overlaps(group)?;
            gap = gap.or_else(|| find_gap(group));
        }
        Ok((Self { regions }, gap))
    }

    /// The shards that own `symbol` of `dataset`, in order of time, each with its part; `None` if a time has no owner.
    #[must_use]
    pub fn all_owners(&self, dataset: &str, symbol: &str) -> Option<Vec<(TimeRange, &str)>> {
        let owners = self.owners(dataset, symbol, TimeRange::ALL);
        // no two of them overlap, so that each begins where the one before ends
        let adjoin =
            owners.windows(2).all(|pair| pair[0].0.end.is_some() && pair[0].0.end == pair[1].0.start);
        let whole = adjoin
            && owners.first().is_some_and(|(part, _)| part.start.is_none())
            && owners.last().is_some_and(|(part, _)| part.end.is_none());
        whole.then_some(owners)
    }

    /// The shards that own `symbol` of `dataset` within `range`, in order of time, with the part of `range` that each owns.
    /// Empty if no pattern matches the dataset.
    #[must_use]
    pub fn owners(&self, dataset: &str, symbol: &str, range: TimeRange) -> Vec<(TimeRange, &str)> {
        let mut owners: Vec<(TimeRange, &str)> = regions_of(&self.regions, dataset, symbol)
            .map(|region| (region.range.intersect(&range), region.shard.as_str()))
            .filter(|(part, _)| !part.is_empty())
            .collect();
        owners.sort_by_key(|(part, _)| part.start.unwrap_or(i64::MIN));
        owners
    }

    /// The shard that owns `symbol` of `dataset` at `ts`.
    #[must_use]
    pub fn owner(&self, dataset: &str, symbol: &str, ts: i64) -> Option<&str> {
        let mut regions = regions_of(&self.regions, dataset, symbol);
        regions.find(|region| region.range.contains(ts)).map(|region| region.shard.as_str())
    }
}

/// The regions of one shard: its part of an [`OwnershipMap`], decided by the same rules. It may have gaps.
///
/// A shard knows its own regions alone. So a shard that owns `*`, beside another one that owns `equities.*`, names both: the
/// narrower pattern with an empty list of symbols.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedRegions {
    regions: Vec<Region>,
}

impl OwnedRegions {
    /// The regions that `shard` says it owns.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] if a region makes no sense.
    pub fn new(shard: &str, owns: &[pb::Ownership]) -> Result<Self> {
        let mut regions = owns.iter().map(|region| Region::new(shard, region)).collect::<Result<Vec<_>>>()?;
        regions.sort_by(|a, b| a.pattern.cmp(&b.pattern));
        Ok(Self { regions })
    }

    /// Whether the shard owns any event time of `symbol`.
    #[must_use]
    pub fn owns(&self, dataset: &str, symbol: &str) -> bool {
        regions_of(&self.regions, dataset, symbol).next().is_some()
    }

    /// Whether the shard owns all event times `[start, end)` of `symbol`; `false` for an empty range.
    #[must_use]
    pub fn owns_all(&self, dataset: &str, symbol: &str, start: i64, end: i64) -> bool {
        let mut ranges: Vec<TimeRange> =
            regions_of(&self.regions, dataset, symbol).map(|region| region.range).collect();
        ranges.sort_by_key(|range| range.start);
        // In order of their starts: the first gap ends what is owned.
        let mut reached = start;
        for range in ranges {
            if range.end.is_some_and(|end| end <= reached) {
                continue;
            }
            if !range.contains(reached) {
                break;
            }
            reached = range.end.unwrap_or(i64::MAX);
        }
        start < end && reached >= end
    }
}

/// The regions, one for each span of time, that a series of a dataset falls in. `regions` are in the order of their patterns.
fn regions_of<'a>(regions: &'a [Region], dataset: &str, symbol: &str) -> impl Iterator<Item = &'a Region> {
    let slot = u32::from(symbol_slot(symbol));
    let pattern = regions.iter().map(|region| &region.pattern).find(|pattern| pattern.matches(dataset));
    let holds =
        move |region: &&Region| Some(&region.pattern) == pattern && region.symbols.contains(symbol, slot);
    let is_list = |region: &Region| matches!(region.symbols, SymbolSet::List(_));
    let listed = regions.iter().filter(holds).any(is_list);
    regions.iter().filter(holds).filter(move |region| is_list(region) == listed)
}

impl Region {
    fn new(shard: &str, wire: &pb::Ownership) -> Result<Self> {
        let symbols = match &wire.symbols {
            None => SymbolSet::Slots { start: 0, end: SLOTS },
            Some(pb::ownership::Symbols::HashRange(pb::HashRange { start, end })) => {
                if start >= end || *end > SLOTS {
                    return Err(Error::new(
                        Code::InvalidRequest,
                        format!(
                            "{shard} declares the hash range [{start}, {end}), which is not within [0, {SLOTS})"
                        ),
                    ));
                }
                SymbolSet::Slots { start: *start, end: *end }
            }
            Some(pb::ownership::Symbols::List(list)) => {
                let mut list = list.symbols.clone();
                list.sort_unstable();
                list.dedup();
                SymbolSet::List(list)
            }
        };
        Ok(Self {
            shard: shard.to_owned(),
            pattern: Pattern::new(&wire.dataset_pattern)?,
            symbols,
            range: TimeRange::new(wire.start_ns, wire.end_ns)?,
        })
    }
}

/// Refuses overlaps among the regions of one pattern.
fn check_overlaps(group: &[Region]) -> Result<()> {
    for (i, a) in group.iter().enumerate() {
        for b in &group[i + 1..] {
            let symbols = match (&a.symbols, &b.symbols) {
                (SymbolSet::Slots { start: s, end: e }, SymbolSet::Slots { start, end }) => {
                    s.max(start) < e.min(end)
                }
                (SymbolSet::List(x), SymbolSet::List(y)) => x.iter().any(|s| y.binary_search(s).is_ok()),
                _ => false,
            };
            if symbols && !a.range.intersect(&b.range).is_empty() {
                return Err(Error::new(
                    Code::Conflict,
                    format!("{} and {} both own a part of {}", a.shard, b.shard, describe(a)),
                )
                .hint("give every part of the data to one shard"));
            }
        }
    }
    Ok(())
}

/// The error of a slot of one pattern that nobody owns at some time.
fn find_gap(group: &[Region]) -> Option<Error> {
    // Every slot must be covered at every time. Slots and times are cut at every bound of a region, so that each
    // cell is either wholly inside a region or wholly outside.
    let slots: Vec<&Region> = group.iter().filter(|r| matches!(r.symbols, SymbolSet::Slots { .. })).collect();
    let mut cuts = vec![0, SLOTS];
    let mut times = vec![i64::MIN];
    for region in &slots {
        if let SymbolSet::Slots { start, end } = region.symbols {
            cuts.extend([start, end]);
        }
        times.extend([region.range.start, region.range.end].into_iter().flatten());
    }
    cuts.sort_unstable();
    cuts.dedup();
    times.sort_unstable();
    times.dedup();
    for cell in cuts.windows(2) {
        for &ts in &times {
            let owned = slots.iter().any(|r| r.symbols.contains("", cell[0]) && r.range.contains(ts));
            if !owned {
                let message = format!(
                    "nobody owns the hash range [{}, {}) of {}",
                    cell[0],
                    cell[1],
                    describe(&group[0])
                );
                let hint = "every slot of the ring needs an owner for all of time";
                return Some(Error::new(Code::Conflict, message).hint(hint));
            }
        }
    }
    None
}

fn describe(region: &Region) -> String {
    match &region.pattern {
        Pattern::Exact(name) => name.clone(),
        Pattern::Prefix(_, prefix) => format!("{prefix}*"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(prefix: &str, n: usize) -> Vec<String> {
        (0..n).map(|i| format!("{prefix}-{i}")).collect()
    }

    fn owns(pattern: &str, start: u32, end: u32) -> pb::Ownership {
        pb::Ownership {
            dataset_pattern: pattern.into(),
            symbols: Some(pb::ownership::Symbols::HashRange(pb::HashRange { start, end })),
            start_ns: None,
            end_ns: None,
        }
    }

    fn lists(pattern: &str, symbols: &[&str]) -> pb::Ownership {
        let symbols = symbols.iter().map(|s| (*s).to_owned()).collect();
        pb::Ownership {
            dataset_pattern: pattern.into(),
            symbols: Some(pb::ownership::Symbols::List(pb::SymbolList { symbols })),
            start_ns: None,
            end_ns: None,
        }
    }

    /// Golden vectors: a build with another placement would split the caches of the fleet, or ask the wrong shard. They were
    /// made with Python's `xxhash` package, not with this code.
    #[test]
    fn placement_is_the_same_in_every_build() {
        let slots: Vec<u16> = ["AMZN", "AAPL", "BRK.B", "EURUSD"].iter().map(|s| symbol_slot(s)).collect();
        assert_eq!(slots, GOLDEN_SLOTS);
        let heads = names("head", 3);
        let chosen: Vec<&str> = ["AMZN", "AAPL", "BRK.B", "EURUSD"]
            .iter()
            .map(|s| head_of(&heads, "equities.daily", s).unwrap())
            .collect();
        assert_eq!(chosen, GOLDEN_HEADS);
        let shards = names("shard", 3);
        let homes: Vec<&str> = ["equities.daily", "signals.mom_12_1", "trellis.runs"]
            .iter()
            .map(|d| home(&shards, d).unwrap())
            .collect();
        assert_eq!(homes, GOLDEN_HOMES);
    }
    const GOLDEN_SLOTS: [u16; 4] = [64107, 57264, 39095, 44794];
    const GOLDEN_HEADS: [&str; 4] = ["head-1", "head-1", "head-2", "head-0"];
    const GOLDEN_HOMES: [&str; 3] = ["shard-2", "shard-1", "shard-0"];

    #[test]
    fn a_hole_and_an_overlap_are_refused_by_name() {
        let whole =
            [("a".to_owned(), vec![owns("*", 0, 100)]), ("b".to_owned(), vec![owns("*", 100, SLOTS)])];
        let map = OwnershipMap::build(&whole).unwrap();
        assert!(map.owner("equities.daily", "AMZN", 0).is_some());

        let hole = [("a".to_owned(), vec![owns("*", 0, 100)]), ("b".to_owned(), vec![owns("*", 101, SLOTS)])];
        let error = OwnershipMap::build(&hole).unwrap_err();
        assert_eq!(error.code(), Code::Conflict);
        assert!(error.message().contains("[100, 101)"), "{error}");

        let overlap =
            [("a".to_owned(), vec![owns("*", 0, 101)]), ("b".to_owned(), vec![owns("*", 100, SLOTS)])];
        let error = OwnershipMap::build(&overlap).unwrap_err();
        assert!(error.message().contains("a and b both own"), "{error}");
    }

    proptest! {
        /// The map of some of the shards gives each series to the same shards as the whole map, or to nobody.
        #[test]
        fn without_some_shards_the_series_of_the_others_keep_their_owners(
            cut in 1u32..SLOTS,
            ts in -5i64..5,
            there in prop::collection::vec(any::<bool>(), 4),
            symbol in "[A-Z]{1,4}",
        ) {
            let part = |start, end, start_ns, end_ns| pb::Ownership { start_ns, end_ns, ..owns("*", start, end) };
            let all = [
                ("a".to_owned(), vec![part(0, cut, None, Some(ts))]),
                ("b".to_owned(), vec![part(0, cut, Some(ts), None)]),
                ("c".to_owned(), vec![part(cut, SLOTS, None, None), lists("*", &["A"])]),
                ("d".to_owned(), vec![owns("d.*", 0, SLOTS)]),
            ];
            let some: Vec<_> = all.iter().zip(&there).filter(|(_, there)| **there).map(|(shard, _)| shard.clone()).collect();
            let whole = OwnershipMap::build(&all).unwrap();
            let built = OwnershipMap::build_with_gaps(&some);
            prop_assert_eq!(built.is_err(), some.is_empty());
            let Ok((map, gap)) = built else { return Ok(()) };
            prop_assert_eq!(gap.is_some(), OwnershipMap::build(&some).is_err());
            let expected = whole.all_owners("a.b", &symbol).unwrap();
            let known = |owner: &&str| some.iter().any(|(shard, _)| shard == owner);
            let reached = expected.iter().all(|(_, owner)| known(owner));
            // a listed symbol is on the ring if nobody who has been found lists it
            if symbol != "A" || there[2] {
                prop_assert_eq!(map.all_owners("a.b", &symbol), reached.then_some(expected));
            }
        }
    }

    #[test]
    fn the_most_specific_pattern_decides() {
        let map = OwnershipMap::build(&[
            ("all".to_owned(), vec![owns("*", 0, SLOTS)]),
            ("equities".to_owned(), vec![owns("equities.*", 0, SLOTS)]),
            ("daily".to_owned(), vec![owns("equities.daily", 0, SLOTS)]),
        ])
        .unwrap();
        assert_eq!(map.owner("signals.mom", "A", 0), Some("all"));
        assert_eq!(map.owner("equities.minute", "A", 0), Some("equities"));
        assert_eq!(map.owner("equities.daily", "A", 0), Some("daily"));
    }

    #[test]
    fn a_listed_symbol_leaves_the_ring() {
        let map = OwnershipMap::build(&[
            ("ring".to_owned(), vec![owns("*", 0, SLOTS)]),
            ("hot".to_owned(), vec![lists("*", &["AMZN"])]),
        ])
        .unwrap();
        assert_eq!(map.owner("a.b", "AMZN", 0), Some("hot"));
        assert_eq!(map.owner("a.b", "AAPL", 0), Some("ring"));
    }

    #[test]
    fn time_splits_a_series_between_shards_in_order() {
        let part = |start_ns, end_ns| pb::Ownership { start_ns, end_ns, ..owns("*", 0, SLOTS) };
        let map = OwnershipMap::build(&[
            ("new".to_owned(), vec![part(Some(100), None)]),
            ("old".to_owned(), vec![part(None, Some(100))]),
        ])
        .unwrap();
        let owners = map.owners("a.b", "A", TimeRange::new(Some(50), Some(150)).unwrap());
        assert_eq!(
            owners,
            [
                (TimeRange { start: Some(50), end: Some(100) }, "old"),
                (TimeRange { start: Some(100), end: Some(150) }, "new"),
            ]
        );
        let gap = [("old".to_owned(), vec![part(None, Some(100))])];
        assert!(OwnershipMap::build(&gap).is_err());
    }

    proptest! {
        #[test]
        fn a_head_that_leaves_moves_only_its_own_series(n in 2usize..8, gone in any::<prop::sample::Index>(), symbol in "[A-Z]{1,5}") {
            let heads = names("head", n);
            let before = head_of(&heads, "equities.daily", &symbol).unwrap().to_owned();
            let gone = heads[gone.index(n)].clone();
            let rest: Vec<String> = heads.into_iter().filter(|h| *h != gone).collect();
            let after = head_of(&rest, "equities.daily", &symbol).unwrap();
            prop_assert!(before == gone || before == after);
        }

        #[test]
        fn the_order_of_the_list_does_not_matter(n in 1usize..8, symbol in "[A-Z]{1,5}") {
            let (heads, mut turned) = (names("head", n), names("head", n));
            turned.reverse();
            prop_assert_eq!(head_of(&heads, "a.b", &symbol), head_of(&turned, "a.b", &symbol));
            prop_assert_eq!(rank(&heads, &symbol), rank(&turned, &symbol));
        }

        /// Each shard names every pattern, as one must where another shard owns a narrower one.
        #[test]
        fn a_shard_owns_what_the_map_gives_it(
            cuts in prop::collection::vec((0u32..=SLOTS, -5i64..5), 3),
            listed in prop::collection::vec(any::<prop::sample::Index>(), 3),
            start in -8i64..8,
            length in 1i64..8,
        ) {
            let (patterns, datasets) = (["*", "a.*", "a.b"], ["a.b", "a.c", "b.b"]);
            let symbols = ["AMZN", "AAPL", "BRK.B"];
            let mut shards: Vec<_> = names("shard", 3).into_iter().map(|shard| (shard, Vec::new())).collect();
            for ((pattern, (slot, ts)), listed) in patterns.iter().zip(cuts).zip(listed) {
                let part = |start, end, start_ns, end_ns| pb::Ownership { start_ns, end_ns, ..owns(pattern, start, end) };
                // The ring is divided at a slot. The part after the slot is divided once more, at a time.
                if slot > 0 {
                    shards[0].1.push(part(0, slot, None, None));
                }
                if slot < SLOTS {
                    shards[1].1.push(part(slot, SLOTS, None, Some(ts)));
                    shards[2].1.push(part(slot, SLOTS, Some(ts), None));
                }
                let owner = listed.index(3);
                for (i, (_, regions)) in shards.iter_mut().enumerate() {
                    // No question below asks for EURUSD: a shard does not know the lists of the others.
                    let symbols: &[&str] = if i == owner { &["EURUSD"] } else { &[] };
                    regions.push(lists(pattern, symbols));
                }
            }
            let map = OwnershipMap::build(&shards).unwrap();
            for (shard, owns) in &shards {
                let owned = OwnedRegions::new(shard, owns).unwrap();
                for (dataset, symbol) in datasets.iter().flat_map(|d| symbols.iter().map(move |s| (*d, *s))) {
                    let all = map.owners(dataset, symbol, TimeRange::ALL);
                    prop_assert_eq!(owned.owns(dataset, symbol), all.iter().any(|(_, owner)| owner == shard));
                    let range = TimeRange { start: Some(start), end: Some(start + length) };
                    let owners = map.owners(dataset, symbol, range);
                    let alone = owners.iter().all(|(_, owner)| owner == shard);
                    prop_assert_eq!(owned.owns_all(dataset, symbol, start, start + length), alone);
                }
            }
        }

        #[test]
        fn every_symbol_has_exactly_one_owner(cuts in proptest::collection::btree_set(1u32..SLOTS, 0..5), symbol in ".{1,6}") {
            let mut bounds = vec![0];
            bounds.extend(cuts);
            bounds.push(SLOTS);
            let shards: Vec<_> = bounds.windows(2).enumerate()
                .map(|(i, w)| (format!("shard-{i}"), vec![owns("*", w[0], w[1])])).collect();
            let map = OwnershipMap::build(&shards).unwrap();
            prop_assert_eq!(map.owners("a.b", &symbol, TimeRange::ALL).len(), 1);
        }
    }
}
