//! Chooses the head that serves a series, and the shard that writes a dataset. Pure. Every process of every build must agree, so the
//! hash is fixed (XXH3-64, seed 0) and checked by golden vectors.
//!
//! Heads are chosen by rendezvous hashing of the *series*, not of the time. So all requests for a symbol meet on one head,
//! whatever their range, and a head that joins or leaves moves only its own share. Shards own declared
//! [regions](crate::ownership) instead: adding a process does not move data.

use std::cmp::Reverse;

use twox_hash::XxHash3_64;

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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(prefix: &str, n: usize) -> Vec<String> {
        (0..n).map(|i| format!("{prefix}-{i}")).collect()
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

    }
}
