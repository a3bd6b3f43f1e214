//! Seeded choices for tests, so that a failure is repeated by its printed seed (SplitMix64: Steele, Lea and Flood, 2014).

/// A source of choices.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// From a seed that the caller names wherever it reports what came of it.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// From the variable `TRELLIS_SEED`, or from `default`; printed, so that a failing run names its seed.
    #[must_use]
    pub fn seeded(default: u64) -> Self {
        let seed = std::env::var("TRELLIS_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(default);
        println!("TRELLIS_SEED={seed}");
        Self(seed)
    }

    /// As [`Self::seeded`], with another seed in every run unless the variable gives one.
    #[must_use]
    pub fn by_chance() -> Self {
        use std::hash::{BuildHasher, RandomState};
        // the keys of a new state are the system's random numbers
        Self::seeded(RandomState::new().hash_one(()))
    }

    /// Another source, whose choices do not depend on how many this one makes from now on: one for each task.
    #[must_use]
    pub fn fork(&mut self) -> Self {
        Self(self.bits())
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `[0, n)`; `n` is positive.
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// True once in `n` times.
    pub fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// One of `items`, which are not empty.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }
}
