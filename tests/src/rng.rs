//! Seeded random choices for tests: the printed seed repeats a failure (SplitMix64: Steele, Lea and Flood, 2014).

/// A source of choices.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// A generator with a given seed. The caller must name the seed in its reports.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A generator with the seed of the variable `TRELLIS_SEED`, or with `default`. Prints the seed, so that a failing run names it.
    #[must_use]
    pub fn seeded(default: u64) -> Self {
        let seed = std::env::var("TRELLIS_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(default);
        println!("TRELLIS_SEED={seed}");
        Self(seed)
    }

    /// Like [`Self::seeded`], but without the variable every run has another seed.
    #[must_use]
    pub fn by_chance() -> Self {
        use std::hash::{BuildHasher, RandomState};
        // a new state gets its keys from the system's random numbers
        Self::seeded(RandomState::new().hash_one(()))
    }

    /// Another source, for a task: its choices do not depend on the later choices of this one.
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

    /// One of `items`, which must not be empty.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }
}
