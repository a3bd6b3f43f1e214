//! Who owns what: the regions that shards declare, and the shard that owns each series at each time. Pure.
//!
//! Regions of one dataset pattern are cut into cells of the symbol ring. A cell keeps its owners in order of time, and a listed symbol
//! keeps its own. So a look-up costs one hash of the symbol and one binary search, however many shards and patterns there are, and a
//! map is built in the time of a sort.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap},
};

use crate::{
    error::{Code, Error, Result},
    pb,
    placement::{SLOTS, symbol_slot},
    range::TimeRange,
    time::format_time,
};

const HOLE_HINT: &str = "every slot of the ring needs an owner at every time";

/// The owner of each part of (dataset x symbol x event time). No part has two. A dataset that no pattern matches has no owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnershipMap {
    regions: Regions,
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

    /// Like [`Self::build`], but some of the shards may be missing. If a region has no owner, the error that names it comes with the map.
    ///
    /// # Errors
    /// [`Code::Conflict`] that names the region with several owners, and the shards.
    pub fn build_with_gaps(shards: &[(String, Vec<pb::Ownership>)]) -> Result<(Self, Option<Error>)> {
        let (regions, gap) = Regions::new(shards)?;
        if regions.shards.is_empty() {
            return Err(Error::new(Code::Unavailable, "no shard has declared its regions yet"));
        }
        Ok((Self { regions }, gap))
    }

    /// The shards that own `symbol` of `dataset`, in order of time, each with its part; `None` if a time has no owner.
    #[must_use]
    pub fn all_owners(&self, dataset: &str, symbol: &str) -> Option<Vec<(TimeRange, &str)>> {
        let spans = self.regions.spans(dataset, symbol);
        hole(spans).is_none().then(|| self.named(spans, TimeRange::ALL))
    }

    /// The shards that own `symbol` of `dataset` within `range`, in order of time, with the part of `range` that each owns.
    /// Empty if no pattern matches the dataset.
    #[must_use]
    pub fn owners(&self, dataset: &str, symbol: &str, range: TimeRange) -> Vec<(TimeRange, &str)> {
        self.named(self.regions.spans(dataset, symbol), range)
    }

    /// The shard that owns `symbol` of `dataset` at `ts`.
    #[must_use]
    pub fn owner(&self, dataset: &str, symbol: &str, ts: i64) -> Option<&str> {
        let spans = self.regions.spans(dataset, symbol);
        let after = spans.partition_point(|span| span.from() <= ts);
        let span = spans[..after].last().filter(|span| span.range.contains(ts))?;
        Some(self.regions.name(span))
    }

    /// The shards that may have series of a dataset, in order of their names: those with a part of the pattern that names it best.
    #[must_use]
    pub fn shards_of(&self, dataset: &str) -> BTreeSet<&str> {
        let Some(owned) = self.regions.of(dataset) else { return BTreeSet::new() };
        let ring = owned.ring.iter().flat_map(|cell| cell.spans.iter());
        let listed = owned.listed.values().flatten();
        ring.chain(listed).map(|span| self.regions.name(span)).collect()
    }

    fn named(&self, spans: &[Span], range: TimeRange) -> Vec<(TimeRange, &str)> {
        let parts = spans.iter().map(|span| (span.range.intersect(&range), self.regions.name(span)));
        parts.filter(|(part, _)| !part.is_empty()).collect()
    }
}

/// The regions of one shard: its part of an [`OwnershipMap`], decided by the same rules. It may have gaps.
///
/// A shard knows its own regions alone. So a shard that owns `*`, beside another one that owns `equities.*`, names both: the
/// narrower pattern with an empty list of symbols.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedRegions {
    regions: Regions,
}

impl OwnedRegions {
    /// The regions that `shard` says it owns.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] if a region makes no sense; [`Code::Conflict`] if two of them overlap.
    pub fn new(shard: &str, owns: &[pb::Ownership]) -> Result<Self> {
        let (regions, _) = Regions::new(&[(shard.to_owned(), owns.to_vec())])?;
        Ok(Self { regions })
    }

    /// Whether the shard owns any event time of `symbol`.
    #[must_use]
    pub fn owns(&self, dataset: &str, symbol: &str) -> bool {
        !self.regions.spans(dataset, symbol).is_empty()
    }

    /// Whether the shard owns all event times `[start, end)` of `symbol`; `false` for an empty range.
    #[must_use]
    pub fn owns_all(&self, dataset: &str, symbol: &str, start: i64, end: i64) -> bool {
        let mut reached = start;
        for span in self.regions.spans(dataset, symbol) {
            if span.range.contains(reached) {
                reached = span.range.end.unwrap_or(i64::MAX);
            }
        }
        start < end && reached >= end
    }
}

/// Regions by dataset pattern. Of the patterns that match a dataset, the most specific decides.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Regions {
    shards: Vec<String>,
    exact: HashMap<String, Owned>,
    /// The owners by pattern, without its `*`: such a key is empty, or ends with a dot.
    prefixes: HashMap<String, Owned>,
}

/// The owners of the datasets that one pattern matches.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Owned {
    /// The cells in the order of their first slots. A cell reaches to the next one, the last one to the end of the ring.
    ring: Vec<Cell>,
    /// The owners of listed symbols, which are not on the ring.
    listed: HashMap<String, Box<[Span]>>,
}

/// Slots of the ring with the same owners.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Cell {
    first: u32,
    spans: Box<[Span]>,
}

/// A time and its owner. Spans that stand together are in order of time and do not overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    range: TimeRange,
    /// Its place in [`Regions::shards`].
    shard: u32,
}

impl Span {
    fn from(&self) -> i64 {
        self.range.start.unwrap_or(i64::MIN)
    }

    fn overlaps(&self, other: &Self) -> bool {
        !self.range.intersect(&other.range).is_empty()
    }
}

/// Ordered from most to least specific.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Pattern<'a> {
    Exact(&'a str),
    /// The pattern without its `*`; a longer one is more specific.
    Prefix(Reverse<usize>, &'a str),
}

impl<'a> Pattern<'a> {
    fn new(text: &'a str) -> Result<Self> {
        match text.strip_suffix('*') {
            Some(prefix) if !prefix.contains('*') && (prefix.is_empty() || prefix.ends_with('.')) => {
                Ok(Self::Prefix(Reverse(prefix.len()), prefix))
            }
            None if !text.is_empty() && !text.contains('*') => Ok(Self::Exact(text)),
            _ => Err(Error::new(Code::InvalidRequest, format!("{text:?} is not a dataset pattern"))
                .hint("use *, equities.* or a full name")),
        }
    }
}

/// What the shards declare for one pattern.
#[derive(Debug, Default)]
struct Declared<'a> {
    ring: Vec<Slots>,
    listed: Vec<(&'a str, Span)>,
}

/// A part of the ring for a time.
#[derive(Debug, Clone, Copy)]
struct Slots {
    start: u32,
    end: u32,
    span: Span,
}

impl Regions {
    /// Indexes the regions of the shards. If a part of the ring has no owner, the error that names it comes with them. Of several such
    /// parts the error names that of the most specific pattern.
    fn new(shards: &[(String, Vec<pb::Ownership>)]) -> Result<(Self, Option<Error>)> {
        let mut regions = Self::default();
        let mut patterns: BTreeMap<Pattern, Declared> = BTreeMap::new();
        for (shard, owns) in shards.iter().filter(|(_, owns)| !owns.is_empty()) {
            let number = regions.shards.len() as u32;
            regions.shards.push(shard.clone());
            for region in owns {
                declare(&mut patterns, number, shard, region).map_err(|error| error.shard(shard))?;
            }
        }
        let mut gap = None;
        for (pattern, declared) in patterns {
            let text = match &pattern {
                Pattern::Exact(name) => (*name).to_owned(),
                Pattern::Prefix(_, prefix) => format!("{prefix}*"),
            };
            let owned = Owned {
                ring: ring(declared.ring).map_err(|both| regions.overlap(both, &text))?,
                listed: listed(declared.listed).map_err(|both| regions.overlap(both, &text))?,
            };
            gap = gap.or_else(|| regions.gap(&owned.ring, &text));
            match pattern {
                Pattern::Exact(name) => regions.exact.insert(name.to_owned(), owned),
                Pattern::Prefix(_, prefix) => regions.prefixes.insert(prefix.to_owned(), owned),
            };
        }
        Ok((regions, gap))
    }

    fn name(&self, span: &Span) -> &str {
        &self.shards[span.shard as usize]
    }

    /// The owners of a series, in order of time. Empty if no pattern matches the dataset.
    fn spans(&self, dataset: &str, symbol: &str) -> &[Span] {
        let Some(owned) = self.of(dataset) else { return &[] };
        if let Some(spans) = owned.listed.get(symbol) {
            return spans;
        }
        let slot = u32::from(symbol_slot(symbol));
        let after = owned.ring.partition_point(|cell| cell.first <= slot);
        owned.ring[..after].last().map_or(&[], |cell| &cell.spans)
    }

    fn of(&self, dataset: &str) -> Option<&Owned> {
        let mut ends = dataset.rmatch_indices('.').map(|(i, _)| i + 1).chain([0]);
        self.exact.get(dataset).or_else(|| ends.find_map(|end| self.prefixes.get(&dataset[..end])))
    }

    fn overlap(&self, both: Overlap, pattern: &str) -> Error {
        let Overlap { what, one, other } = both;
        let (a, b) = (self.name(&one), self.name(&other));
        let (a, b) = (a.min(b), a.max(b));
        let when = times(&one.range.intersect(&other.range));
        Error::new(Code::Conflict, format!("{a} and {b} both own {what} of {pattern}{when}"))
            .hint("give every part of the data to one shard")
    }

    /// The error of the first part of the ring that nobody owns at some time. It names who owns what is beside it.
    fn gap(&self, ring: &[Cell], pattern: &str) -> Option<Error> {
        let (i, at) = ring.iter().enumerate().find_map(|(i, cell)| Some((i, hole(&cell.spans)?)))?;
        let cell = &ring[i];
        let end = ring.get(i + 1).map_or(SLOTS, |next| next.first);
        // The neighbours of the hole: in time if its cell has an owner at some time, otherwise on the ring.
        let (before, after) = if cell.spans.is_empty() {
            let last = ring[..i].last().and_then(|cell| cell.spans.last());
            (last, ring.get(i + 1).and_then(|cell| cell.spans.first()))
        } else {
            (at.checked_sub(1).and_then(|i| cell.spans.get(i)), cell.spans.get(at))
        };
        let missing = TimeRange {
            start: before.filter(|_| !cell.spans.is_empty()).and_then(|span| span.range.end),
            end: after.filter(|_| !cell.spans.is_empty()).and_then(|span| span.range.start),
        };
        let mut message =
            format!("nobody owns the hash range [{}, {end}) of {pattern}{}", cell.first, times(&missing));
        let sides = [(before, "before"), (after, "after")];
        for (side, word) in sides.into_iter().filter_map(|(side, word)| Some((side?, word))) {
            message = format!("{message}; {} owns what comes {word} it", self.name(side));
        }
        Some(Error::new(Code::Conflict, message).hint(HOLE_HINT))
    }
}

/// Two spans that own the same.
struct Overlap {
    what: String,
    one: Span,
    other: Span,
}

/// The place of the first span that does not begin where the one before ends; `None`: the spans cover all of time.
fn hole(spans: &[Span]) -> Option<usize> {
    let mut reached = Some(i64::MIN);
    for (i, span) in spans.iter().enumerate() {
        if reached.is_some_and(|reached| span.from() > reached) {
            return Some(i);
        }
        reached = span.range.end;
    }
    reached.map(|_| spans.len())
}

fn times(range: &TimeRange) -> String {
    let from = range.start.map(|start| format!(" from {}", format_time(start)));
    let until = range.end.map(|end| format!(" until {}", format_time(end)));
    format!("{}{}", from.unwrap_or_default(), until.unwrap_or_default())
}

fn declare<'a>(
    patterns: &mut BTreeMap<Pattern<'a>, Declared<'a>>,
    number: u32,
    shard: &str,
    region: &'a pb::Ownership,
) -> Result<()> {
    let span = Span { range: TimeRange::new(region.start_ns, region.end_ns)?, shard: number };
    let declared = patterns.entry(Pattern::new(&region.dataset_pattern)?).or_default();
    let (start, end) = match &region.symbols {
        None => (0, SLOTS),
        Some(pb::ownership::Symbols::HashRange(pb::HashRange { start, end })) => (*start, *end),
        Some(pb::ownership::Symbols::List(list)) => {
            let mut symbols: Vec<&str> = list.symbols.iter().map(String::as_str).collect();
            symbols.sort_unstable();
            symbols.dedup();
            if !span.range.is_empty() {
                declared.listed.extend(symbols.into_iter().map(|symbol| (symbol, span)));
            }
            return Ok(());
        }
    };
    if start >= end || end > SLOTS {
        let why =
            format!("{shard} declares the hash range [{start}, {end}), which is not within [0, {SLOTS})");
        return Err(Error::new(Code::InvalidRequest, why));
    }
    if !span.range.is_empty() {
        declared.ring.push(Slots { start, end, span });
    }
    Ok(())
}

/// Cuts the ring at every bound of a region.
fn ring(mut regions: Vec<Slots>) -> std::result::Result<Vec<Cell>, Overlap> {
    let bounds = regions.iter().flat_map(|region| [region.start, region.end]);
    let mut cuts: Vec<u32> = bounds.filter(|bound| *bound < SLOTS).chain([0]).collect();
    cuts.sort_unstable();
    cuts.dedup();
    regions.sort_unstable_by_key(|region| region.start);
    let mut regions = regions.into_iter().peekable();
    // the regions that hold the slot, by their first time, and the slots where they end
    let mut open: BTreeMap<i64, Slots> = BTreeMap::new();
    let mut ends: BinaryHeap<Reverse<(u32, i64)>> = BinaryHeap::new();
    let mut cells = Vec::with_capacity(cuts.len());
    for first in cuts {
        while let Some(Reverse((_, from))) = ends.peek().filter(|Reverse((end, _))| *end <= first) {
            open.remove(from);
            ends.pop();
        }
        while let Some(region) = regions.next_if(|region| region.start == first) {
            let from = region.span.from();
            let beside = [open.range(..=from).next_back(), open.range(from..).next()];
            if let Some((_, other)) =
                beside.into_iter().flatten().find(|(_, o)| o.span.overlaps(&region.span))
            {
                let end = region.end.min(other.end);
                let what = format!("the hash range [{first}, {end})");
                return Err(Overlap { what, one: other.span, other: region.span });
            }
            open.insert(from, region);
            ends.push(Reverse((region.end, from)));
        }
        cells.push(Cell { first, spans: open.values().map(|region| region.span).collect() });
    }
    Ok(cells)
}

/// The owners of each listed symbol.
fn listed(mut all: Vec<(&str, Span)>) -> std::result::Result<HashMap<String, Box<[Span]>>, Overlap> {
    all.sort_unstable_by_key(|(symbol, span)| (*symbol, span.from()));
    let mut by_symbol = HashMap::new();
    for of_symbol in all.chunk_by(|(a, _), (b, _)| a == b) {
        let symbol = of_symbol[0].0;
        let spans: Box<[Span]> = of_symbol.iter().map(|(_, span)| *span).collect();
        if let Some(both) = spans.windows(2).find(|both| both[0].overlaps(&both[1])) {
            return Err(Overlap { what: symbol.to_owned(), one: both[0], other: both[1] });
        }
        by_symbol.insert(symbol.to_owned(), spans);
    }
    Ok(by_symbol)
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

    #[test]
    fn a_refusal_names_both_sides() {
        let part = |start, end, start_ns, end_ns| pb::Ownership { start_ns, end_ns, ..owns("*", start, end) };
        let refused = |a: pb::Ownership, b: pb::Ownership| {
            let shards = [("a".to_owned(), vec![a]), ("b".to_owned(), vec![b])];
            OwnershipMap::build(&shards).unwrap_err().message().to_owned()
        };
        assert_eq!(
            refused(owns("*", 0, 100), owns("*", 101, SLOTS)),
            "nobody owns the hash range [100, 101) of *; a owns what comes before it; b owns what comes after it"
        );
        let (day, next) = (Some(86_400_000_000_000), Some(172_800_000_000_000));
        assert_eq!(
            refused(part(0, SLOTS, None, day), part(0, SLOTS, next, None)),
            "nobody owns the hash range [0, 65536) of * from 1970-01-02 until 1970-01-03; a owns what comes before it; \
             b owns what comes after it"
        );
        assert_eq!(
            refused(part(0, 200, None, next), part(100, SLOTS, day, None)),
            "a and b both own the hash range [100, 200) of * from 1970-01-02 until 1970-01-03"
        );
        assert_eq!(refused(lists("*", &["A", "B"]), lists("*", &["B"])), "a and b both own B of *");
    }

    /// What a map must say, found by looking at every region.
    struct Slow {
        shards: Vec<(String, Vec<pb::Ownership>)>,
    }

    impl Slow {
        /// The regions of the pattern that names a dataset best.
        fn regions_of(&self, dataset: &str) -> Vec<(&str, &pb::Ownership)> {
            let matches = |o: &&pb::Ownership| {
                let pattern = &o.dataset_pattern;
                pattern == dataset
                    || pattern.strip_suffix('*').is_some_and(|prefix| dataset.starts_with(prefix))
            };
            let all =
                || self.shards.iter().flat_map(|(shard, owns)| owns.iter().map(move |o| (shard.as_str(), o)));
            let matching = all().map(|(_, o)| o).filter(matches).map(|o| o.dataset_pattern.as_str());
            let pattern = matching.max_by_key(|pattern| (!pattern.ends_with('*'), pattern.len()));
            all().filter(|(_, o)| Some(o.dataset_pattern.as_str()) == pattern).collect()
        }

        fn shards_of(&self, dataset: &str) -> BTreeSet<&str> {
            let lists_none = |o: &pb::Ownership| match &o.symbols {
                Some(pb::ownership::Symbols::List(list)) => list.symbols.is_empty(),
                _ => false,
            };
            let empty = |o: &pb::Ownership| TimeRange::new(o.start_ns, o.end_ns).unwrap().is_empty();
            let regions = self.regions_of(dataset).into_iter();
            regions.filter(|(_, o)| !empty(o) && !lists_none(o)).map(|(shard, _)| shard).collect()
        }

        fn owners(&self, dataset: &str, symbol: &str, ts: i64) -> Vec<&str> {
            let regions = self.regions_of(dataset);
            let of_pattern = || regions.iter().copied();
            let lists = |o: &pb::Ownership| match &o.symbols {
                Some(pb::ownership::Symbols::List(list)) => list.symbols.iter().any(|s| s == symbol),
                _ => false,
            };
            let time = |o: &pb::Ownership| TimeRange { start: o.start_ns, end: o.end_ns };
            let any_time = |o: &pb::Ownership| lists(o) && !time(o).is_empty();
            let listed = of_pattern().any(|(_, o)| any_time(o));
            let slot = u32::from(symbol_slot(symbol));
            let holds = |o: &pb::Ownership| match &o.symbols {
                Some(pb::ownership::Symbols::HashRange(range)) => {
                    !listed && (range.start..range.end).contains(&slot)
                }
                _ => lists(o),
            };
            of_pattern().filter(|(_, o)| holds(o) && time(o).contains(ts)).map(|(shard, _)| shard).collect()
        }
    }

    fn regions() -> impl Strategy<Value = pb::Ownership> {
        let pattern = prop::sample::select(vec!["*", "a.*", "a.b.*", "a.b.c"]);
        let bound = prop::option::weighted(0.4, -2i64..=2);
        let slots = (0u32..4, 1u32..=4).prop_map(|(first, n)| {
            let quarter = SLOTS / 4;
            pb::ownership::Symbols::HashRange(pb::HashRange {
                start: first * quarter,
                end: (first + n).min(4) * quarter,
            })
        });
        let list = prop::sample::subsequence(vec!["A".to_owned(), "B".to_owned(), "C".to_owned()], 0..=2)
            .prop_map(|symbols| pb::ownership::Symbols::List(pb::SymbolList { symbols }));
        let symbols = prop_oneof![3 => slots, 1 => list];
        (pattern, symbols, bound.clone(), bound).prop_map(|(pattern, symbols, a, b)| {
            let (start_ns, end_ns) = if a.zip(b).is_some_and(|(a, b)| b < a) { (b, a) } else { (a, b) };
            pb::Ownership { dataset_pattern: pattern.to_owned(), symbols: Some(symbols), start_ns, end_ns }
        })
    }

    proptest! {
        /// The index answers as a look at every region does, and refuses a map exactly if something has two owners.
        #[test]
        fn the_index_says_what_the_regions_say(
            declared in prop::collection::vec((0usize..3, regions()), 1..7),
        ) {
            let mut shards: Vec<_> = names("shard", 3).into_iter().map(|shard| (shard, Vec::new())).collect();
            for (shard, region) in declared {
                shards[shard].1.push(region);
            }
            let slow = Slow { shards: shards.clone() };
            let built = OwnershipMap::build_with_gaps(&shards);
            // the other 32 symbols fall on every quarter of the ring
            let symbols: Vec<String> = ["A", "B", "C"].into_iter().map(str::to_owned).chain((0..32).map(|i| format!("S{i}"))).collect();
            let (mut doubled, mut missing) = (false, false);
            // each dataset has a pattern that is the most specific one for it
            for dataset in ["x", "a.x", "a.b.x", "a.b.c"] {
                if let Ok((map, _)) = &built {
                    prop_assert_eq!(map.shards_of(dataset), slow.shards_of(dataset));
                }
                for symbol in &symbols {
                    let mut at = Vec::new();
                    for ts in -3..3 {
                        let owners = slow.owners(dataset, symbol, ts);
                        doubled |= owners.len() > 1;
                        if let Ok((map, _)) = &built {
                            prop_assert_eq!(map.owner(dataset, symbol, ts), owners.first().copied());
                        }
                        at.push(owners.first().copied());
                    }
                    let on_ring = !["A", "B", "C"].contains(&symbol.as_str());
                    let matched = shards.iter().flat_map(|(_, owns)| owns).any(|o| {
                        let pattern = &o.dataset_pattern;
                        pattern == dataset || pattern.strip_suffix('*').is_some_and(|prefix| dataset.starts_with(prefix))
                    });
                    missing |= matched && on_ring && at.iter().any(Option::is_none);
                    if let Ok((map, _)) = &built {
                        prop_assert_eq!(map.all_owners(dataset, symbol).is_some(), at.iter().all(Option::is_some));
                        let owners = map.owners(dataset, symbol, TimeRange { start: Some(-3), end: Some(3) });
                        let flat: Vec<_> = (-3..3).map(|ts| owners.iter().find(|(part, _)| part.contains(ts)).map(|(_, shard)| *shard)).collect();
                        prop_assert_eq!(flat, at);
                    }
                }
            }
            match built {
                Err(error) => prop_assert!(doubled, "{}", error),
                Ok((_, gap)) => {
                    prop_assert!(!doubled);
                    prop_assert_eq!(gap.is_some(), missing);
                }
            }
        }
    }

    #[test]
    fn two_thousand_shards_own_each_of_ten_thousand_series_once() {
        let shards = 2_000;
        let bound = |i: u32| (u64::from(SLOTS) * u64::from(i) / u64::from(shards)) as u32;
        let all: Vec<_> = (0..shards)
            .map(|i| {
                let listed = (0..5).map(|k| format!("L{}", 5 * i + k)).collect();
                let listed = pb::ownership::Symbols::List(pb::SymbolList { symbols: listed });
                let region = pb::Ownership { symbols: Some(listed), ..owns("a.*", 0, 1) };
                (
                    format!("shard-{i}"),
                    vec![owns("*", bound(i), bound(i + 1)), region, owns("a.*", bound(i), bound(i + 1))],
                )
            })
            .collect();
        let map = OwnershipMap::build(&all).unwrap();
        for n in 0..10_000 {
            let (symbol, listed) = (format!("S{n}"), format!("L{n}"));
            let slot = u32::from(symbol_slot(&symbol));
            let i = (0..shards).find(|i| (bound(*i)..bound(i + 1)).contains(&slot)).unwrap();
            assert_eq!(
                map.all_owners("a.b", &symbol).unwrap(),
                [(TimeRange::ALL, format!("shard-{i}").as_str())]
            );
            assert_eq!(
                map.all_owners("a.b", &listed).unwrap(),
                [(TimeRange::ALL, format!("shard-{}", n / 5).as_str())]
            );
        }
    }

    proptest! {
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
