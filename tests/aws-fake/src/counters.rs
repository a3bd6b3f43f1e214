//! What was called, and what came of it.

use std::collections::BTreeMap;

use crate::buckets::Category;

/// The calls of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// All of them, refused ones included.
    pub calls: u64,
    /// Refused because the bucket was empty.
    pub throttled: u64,
    /// Refused for any other reason.
    pub refused: u64,
    /// Calls that should change something, were answered, and changed nothing.
    pub wasted: u64,
    /// Calls whose answer the caller never saw, applied or not.
    pub lost: u64,
}

impl std::ops::AddAssign for Calls {
    fn add_assign(&mut self, other: Self) {
        self.calls += other.calls;
        self.throttled += other.throttled;
        self.refused += other.refused;
        self.wasted += other.wasted;
        self.lost += other.lost;
    }
}

/// All calls by `(account, Region, category, call)`.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    by: BTreeMap<(String, String, Category, String), Calls>,
}

impl Counters {
    pub(crate) fn of(&mut self, account: &str, region: &str, category: Category, op: &str) -> &mut Calls {
        self.by.entry((account.into(), region.into(), category, op.into())).or_default()
    }

    /// Each kind of call that was made.
    pub fn iter(&self) -> impl Iterator<Item = (&(String, String, Category, String), &Calls)> {
        self.by.iter()
    }

    /// The sum over those that `which` chooses by account, category and call.
    pub fn sum(&self, which: impl Fn(&str, Category, &str) -> bool) -> Calls {
        let mut sum = Calls::default();
        for ((account, _, category, op), calls) in &self.by {
            if which(account, *category, op) {
                sum += *calls;
            }
        }
        sum
    }

    /// The sum over all calls.
    pub fn all(&self) -> Calls {
        self.sum(|_, _, _| true)
    }
}
