//! Chooses the heads that serve a dataset, the head among them that serves a series, and the shard that writes a dataset. Pure. Every
//! process of every build must agree, so the hash is fixed (XXH3-64, seed 0) and checked by golden vectors.
//!
//! Rendezvous hashing of the *dataset* names its heads, and of the *series* the one of them that serves it; the time has no part in it.
//! So all requests for a symbol meet on one head, whatever their range, a read of everything asks a few heads, and a head that joins or
//! leaves moves only its own share. Shards own declared [regions](crate::ownership) instead: adding a process does not move data.

use std::{cmp::Reverse, collections::BTreeMap};

use twox_hash::XxHash3_64;

use crate::name::Symbol;

/// Slots of the symbol ring.
pub const SLOTS: u32 = 1 << 16;
/// Least bytes of a dataset for each of its heads. A network of 10 Gbit/s carries them in 3.4 ms: to split them again wins a reader no
/// more than half of that, and costs every read of everything another call.
pub const HEAD_BYTES: u64 = 4 << 20;
/// Most heads of a dataset, reached at 1 GiB. A read of everything asks all of them at once, also if it is for one row of each symbol, and
/// hashes each symbol once for each of them.
pub const SPREAD_MAX: u32 = 256;

/// Most copies of a dataset's heads. With a copy for every 31 of 2,000 heads, one head has 1/64 of the readers: 625 of 40,000.
pub const COPIES_MAX: u32 = 64;

/// Bytes of a row beside its fields: its two times.
const TIMES_BYTES: u64 = 16;

/// The slot of the 16 bit ring that a symbol falls on.
#[must_use]
pub fn symbol_slot(symbol: &str) -> u16 {
    (XxHash3_64::oneshot(symbol.as_bytes()) >> 48) as u16
}

/// Hashes peers for one key after another.
#[derive(Default)]
struct Scores {
    bytes: Vec<u8>,
}

impl Scores {
    fn of(&mut self, peer: &str, key: &[&str]) -> u64 {
        #[cfg(test)]
        tests::HASHES.with(|hashes| hashes.set(hashes.get() + 1));
        // Zero bytes separate the parts. No name has one, so ("ab", "c") and ("a", "bc") differ.
        self.bytes.clear();
        self.bytes.extend_from_slice(peer.as_bytes());
        for part in key {
            self.bytes.push(0);
            self.bytes.extend_from_slice(part.as_bytes());
        }
        XxHash3_64::oneshot(&self.bytes)
    }

    /// The best peer. The name breaks a tie, so that the order of the list does not matter.
    fn best<'a>(&mut self, peers: impl Iterator<Item = &'a str>, key: &[&str]) -> Option<&'a str> {
        peers.max_by_key(|peer| (self.of(peer, key), Reverse(*peer)))
    }
}

/// Each peer behind what sorts it: the best is the least.
fn scored<'a>(peers: &'a [String], key: &str) -> Vec<(Reverse<u64>, &'a str)> {
    let mut scores = Scores::default();
    peers.iter().map(|peer| (Reverse(scores.of(peer, &[key])), peer.as_str())).collect()
}

/// `peers` from best to worst for `key`. The first serves the key; the next ones take over if it cannot be reached.
#[must_use]
pub fn rank<'a>(peers: &'a [String], key: &str) -> Vec<&'a str> {
    let mut scored = scored(peers, key);
    scored.sort_unstable();
    scored.into_iter().map(|(_, peer)| peer).collect()
}

/// How many heads serve a dataset of `rows` rows, whose fields take `row_bytes` a row: a power of two, from 1 to [`SPREAD_MAX`]. The
/// number grows with the dataset. So each head of a large dataset serves at least [`HEAD_BYTES`], and less than twice that until the
/// number is [`SPREAD_MAX`].
#[must_use]
pub fn spread(rows: u64, row_bytes: u64) -> u32 {
    let bytes = rows.saturating_mul(row_bytes.saturating_add(TIMES_BYTES));
    let heads = (bytes / HEAD_BYTES).clamp(1, u64::from(SPREAD_MAX));
    1 << heads.ilog2()
}

/// The heads that serve a dataset, from first to last: the best `spread` of `heads`, at least one if there is one, at most all. The heads
/// of a smaller spread are the first ones of a larger.
#[must_use]
pub fn heads_of<'a>(heads: &'a [String], dataset: &str, spread: u32) -> Vec<&'a str> {
    let mut scored = scored(heads, dataset);
    let spread = usize::try_from(spread).unwrap_or(usize::MAX).max(1);
    if spread < scored.len() {
        scored.select_nth_unstable(spread);
        scored.truncate(spread);
    }
    scored.sort_unstable();
    scored.into_iter().map(|(_, head)| head).collect()
}

/// The heads that serve a dataset to `reader`, from first to last: those of one of `copies` sets, `spread` heads each. A reader is always in
/// the same copy. Copy `k` of `n` has the heads of ranks `k`, `k + n`, ..., so no head is in two copies, and the heads of a smaller spread
/// are the first ones of a larger. If there are fewer heads than copies, there are as many copies as heads.
#[must_use]
pub fn heads_for<'a>(
    heads: &'a [String],
    dataset: &str,
    spread: u32,
    copies: u32,
    reader: &str,
) -> Vec<&'a str> {
    let copies = usize::try_from(copies).unwrap_or(usize::MAX).clamp(1, heads.len().max(1));
    let spread = usize::try_from(spread).unwrap_or(usize::MAX).max(1);
    let all = u32::try_from(spread.saturating_mul(copies)).unwrap_or(u32::MAX);
    let copy = XxHash3_64::oneshot(reader.as_bytes()) % copies as u64;
    heads_of(heads, dataset, all).into_iter().skip(copy as usize).step_by(copies).collect()
}

/// The symbols that each of a dataset's heads serves, in the order given. `serving`: see [`heads_of`]. A head without a symbol is left out.
#[must_use]
pub fn share<'a>(serving: &[&'a str], dataset: &str, symbols: &[Symbol]) -> BTreeMap<&'a str, Vec<Symbol>> {
    let mut shares: BTreeMap<&str, Vec<Symbol>> = BTreeMap::new();
    let mut scores = Scores::default();
    for symbol in symbols {
        let head = match serving {
            [only] => Some(*only),
            several => scores.best(several.iter().copied(), &[dataset, symbol.as_str()]),
        };
        if let Some(head) = head {
            shares.entry(head).or_default().push(symbol.clone());
        }
    }
    shares
}

/// Names a sorted list of heads: the same number for the same list in every process, and never 0, which stands for no list.
#[must_use]
pub fn heads_version(heads: &[String]) -> u64 {
    XxHash3_64::oneshot(heads.join("\0").as_bytes()).max(1)
}

/// The shard that commits to a dataset; `None` without shards.
#[must_use]
pub fn home<'a>(shards: &'a [String], dataset: &str) -> Option<&'a str> {
    Scores::default().best(shards.iter().map(String::as_str), &[dataset])
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, collections::BTreeSet};

    use proptest::prelude::*;

    use super::*;

    thread_local! {
        /// Hashes of peers that this thread has computed.
        pub(super) static HASHES: Cell<u64> = const { Cell::new(0) };
    }

    const DATASETS: [&str; 3] = ["equities.daily", "signals.mom_12_1", "trellis.runs"];
    const SYMBOLS: [&str; 4] = ["AMZN", "AAPL", "BRK.B", "EURUSD"];

    fn names(prefix: &str, n: usize) -> Vec<String> {
        (0..n).map(|i| format!("{prefix}-{i}")).collect()
    }

    fn symbols(n: usize) -> Vec<Symbol> {
        (0..n).map(|i| Symbol::new(format!("S{i}")).unwrap()).collect()
    }

    /// The head of each symbol, in their order.
    fn placed<'a>(heads: &'a [String], dataset: &str, spread: u32, symbols: &[Symbol]) -> Vec<&'a str> {
        let shares = share(&heads_of(heads, dataset, spread), dataset, symbols);
        let heads = shares.iter().flat_map(|(head, its)| its.iter().map(|symbol| (symbol.as_str(), *head)));
        let heads: BTreeMap<&str, &str> = heads.collect();
        symbols.iter().map(|symbol| heads[symbol.as_str()]).collect()
    }

    /// Golden vectors: a build with another placement would split the caches of the fleet, or ask the wrong shard. They were
    /// made with Python's `xxhash` package, not with this code.
    #[test]
    fn placement_is_the_same_in_every_build() {
        assert_eq!(SYMBOLS.map(symbol_slot), [64107, 57264, 39095, 44794]);
        let shards = names("shard", 3);
        assert_eq!(
            DATASETS.map(|dataset| home(&shards, dataset).unwrap()),
            ["shard-2", "shard-1", "shard-0"]
        );
        let asked = SYMBOLS.map(|symbol| Symbol::new(symbol).unwrap());
        let three = names("head", 3);
        let of_all = placed(&three, "equities.daily", SPREAD_MAX, &asked);
        assert_eq!(of_all, ["head-1", "head-1", "head-2", "head-0"]);
        assert_eq!(heads_version(&three), 11_962_099_217_670_581_350);
        let ten = names("head", 10);
        assert_eq!(DATASETS.map(|dataset| heads_of(&ten, dataset, 4)), GOLDEN_HEADS);
        assert_eq!(DATASETS.map(|dataset| placed(&ten, dataset, 4, &asked)), GOLDEN_SHARES);
    }
    const GOLDEN_HEADS: [[&str; 4]; 3] = [
        ["head-9", "head-6", "head-5", "head-8"],
        ["head-8", "head-5", "head-6", "head-0"],
        ["head-3", "head-8", "head-7", "head-1"],
    ];
    const GOLDEN_SHARES: [[&str; 4]; 3] = [
        ["head-9", "head-5", "head-5", "head-6"],
        ["head-0", "head-8", "head-8", "head-6"],
        ["head-1", "head-1", "head-7", "head-8"],
    ];

    #[test]
    fn a_read_of_everything_in_a_large_fleet_hashes_each_head_once_and_each_symbol_once_for_each_head_it_may_be_on()
     {
        let (heads, symbols) = (names("head", 2_000), symbols(20_000));
        let hashes = |spread| {
            let before = HASHES.get();
            let asked = share(&heads_of(&heads, "equities.daily", spread), "equities.daily", &symbols);
            assert_eq!(asked.len(), spread as usize);
            HASHES.get() - before
        };
        assert_eq!(hashes(1), 2_000);
        assert_eq!(hashes(16), 2_000 + 16 * 20_000);
        let before = HASHES.get();
        assert_eq!(rank(&heads, "equities.daily")[..16], heads_of(&heads, "equities.daily", 16));
        assert_eq!(HASHES.get() - before, 4_000, "no head is hashed twice for one order");
    }

    #[test]
    fn a_dataset_has_a_head_for_every_few_megabytes_and_never_too_many() {
        // 5 numbers a row
        assert_eq!([0, 1, 149_796].map(|rows| spread(rows, 40)), [1, 1, 1]);
        assert_eq!([149_797, 1_260_000, 19_173_962].map(|rows| spread(rows, 40)), [2, 16, 256]);
        assert_eq!([u64::MAX, 1 << 40].map(|rows| spread(rows, 40)), [SPREAD_MAX; 2]);
    }

    #[test]
    fn a_spread_that_doubles_moves_half_of_the_series() {
        let (heads, symbols) = (names("head", 100), symbols(4_000));
        for spread in [1, 2, 4, 8, 16, 32] {
            let before = placed(&heads, "equities.daily", spread, &symbols);
            let after = placed(&heads, "equities.daily", spread * 2, &symbols);
            let moved = before.iter().zip(&after).filter(|(before, after)| before != after).count();
            // each series moves with probability 1/2: the deviation is 32
            assert!((1_800..2_200).contains(&moved), "from {spread}: {moved} of 4000");
        }
    }

    /// The copy of each reader was computed with Python's `xxhash`, too.
    #[test]
    fn a_reader_keeps_to_one_copy_in_every_build() {
        let ten = names("head", 10);
        let ranks = heads_of(&ten, "equities.daily", 10);
        let copies = ["mom_12_1", "combo", "a", "b"]
            .map(|reader| heads_for(&ten, "equities.daily", 2, 3, reader))
            .map(|heads| ranks.iter().position(|head| *head == heads[0]).unwrap());
        assert_eq!(copies, [2, 1, 1, 2]);
    }

    #[test]
    fn readers_share_the_copies_evenly_and_no_head_is_in_two_of_them() {
        let heads = names("head", 200);
        let (spread, copies) = (4, 8);
        let mut readers: BTreeMap<Vec<&str>, u32> = BTreeMap::new();
        for reader in 0..8_000 {
            let its = heads_for(&heads, "equities.daily", spread, copies, &format!("unit-{reader}"));
            *readers.entry(its).or_default() += 1;
        }
        assert_eq!(readers.len(), copies as usize);
        assert!(readers.values().all(|n| (850..1_150).contains(n)), "{readers:?}");
        let of_copies: BTreeSet<&str> = readers.keys().flatten().copied().collect();
        assert_eq!(of_copies.len(), (spread * copies) as usize, "no head is in two copies");
    }

    proptest! {
        /// One copy is the whole of [`heads_of`]; more are apart, as large as there are heads for, and grow at their ends.
        #[test]
        fn copies_are_disjoint_parts_of_the_ranking(
            n in 0usize..20, spread in 1u32..8, copies in 0u32..30, readers in proptest::collection::vec("[a-z]{1,4}", 1..20)
        ) {
            let heads = names("head", n);
            let ranked = heads_of(&heads, "d.a", u32::MAX);
            let mut seen: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
            for reader in &readers {
                let its = heads_for(&heads, "d.a", spread, copies, reader);
                let count = (copies.max(1) as usize).min(n.max(1));
                prop_assert_eq!(its.is_empty(), n == 0);
                prop_assert!(its.len() <= spread as usize && its.len() >= (n / count).min(spread as usize));
                prop_assert_eq!(&heads_for(&heads, "d.a", spread + 1, copies, reader)[..its.len()], &its[..]);
                if count == 1 {
                    prop_assert_eq!(&its, &heads_of(&heads, "d.a", spread));
                }
                for head in &its {
                    let same = seen.entry(head).or_insert_with(|| its.clone());
                    prop_assert_eq!(&*same, &its, "a head is in one copy");
                    prop_assert!(ranked.contains(head));
                }
            }
        }

        #[test]
        fn the_heads_of_a_smaller_spread_are_the_first_of_a_larger(
            n in 0usize..40, small in 0u32..50, more in 0u32..50, dataset in "[a-z]{1,8}",
        ) {
            let heads = names("head", n);
            let (few, many) = (heads_of(&heads, &dataset, small), heads_of(&heads, &dataset, small + more));
            prop_assert_eq!(few.len(), n.min(small.max(1) as usize));
            prop_assert_eq!(&few[..], &many[..few.len()]);
            let ranked = rank(&heads, &dataset);
            prop_assert_eq!(&many[..], &ranked[..many.len()]);
        }

        /// The best that stay keep their order, so one head at most takes the place of one that has left.
        #[test]
        fn a_head_that_leaves_moves_only_its_own_share(
            n in 2usize..20, spread in 1u32..24, gone in any::<prop::sample::Index>(), dataset in "[a-z]{1,8}",
        ) {
            let heads = names("head", n);
            let gone = &heads[gone.index(n)];
            let rest: Vec<String> = heads.iter().filter(|head| *head != gone).cloned().collect();
            let set = |heads| heads_of(heads, &dataset, spread).into_iter().collect::<BTreeSet<_>>();
            let (before, after) = (set(&heads), set(&rest));
            prop_assert!(before.difference(&after).all(|head| head == gone));
            prop_assert!(after.difference(&before).count() <= usize::from(before.contains(gone.as_str())));

            let symbols = symbols(40);
            let new: Vec<&str> = after.difference(&before).copied().collect();
            let (was, is) = (placed(&heads, &dataset, spread, &symbols), placed(&rest, &dataset, spread, &symbols));
            for (was, is) in was.iter().zip(is) {
                // to another head only from the one that has left, or to the one that takes its place
                prop_assert!(*was == is || was == gone || new.contains(&is));
            }
        }

        #[test]
        fn a_spread_is_a_power_of_two_and_never_falls_as_a_dataset_grows(
            rows in any::<u64>(), more in any::<u64>(), row_bytes in 0u64..100_000,
        ) {
            let (small, large) = (spread(rows, row_bytes), spread(rows.saturating_add(more), row_bytes));
            prop_assert!(small.is_power_of_two() && small <= large && large <= SPREAD_MAX);
        }

        #[test]
        fn the_order_of_the_list_does_not_matter(n in 1usize..20, spread in 1u32..24, symbol in "[A-Z]{1,5}") {
            let (heads, mut turned) = (names("head", n), names("head", n));
            turned.reverse();
            let symbol = [Symbol::new(symbol).unwrap()];
            prop_assert_eq!(placed(&heads, "a.b", spread, &symbol), placed(&turned, "a.b", spread, &symbol));
            prop_assert_eq!(rank(&heads, "a.b"), rank(&turned, "a.b"));
        }
    }
}
