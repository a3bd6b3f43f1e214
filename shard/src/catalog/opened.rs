//! Which tables stay open: those that were used last, as far as their memory allows. Pure.

use std::{collections::BTreeMap, ops::Bound, time::Duration};

use trellis_proto::DatasetName;

/// Open tables by name.
#[derive(Debug)]
pub(super) struct Opened<T> {
    bytes_max: usize,
    idle_max: Duration,
    bytes: usize,
    by_name: BTreeMap<DatasetName, Open<T>>,
    /// The names in the order of their last use. Each use has a number.
    by_use: BTreeMap<u64, DatasetName>,
    uses: u64,
}

#[derive(Debug)]
struct Open<T> {
    table: T,
    bytes: usize,
    used: u64,
    at: Duration,
}

impl<T: Clone> Opened<T> {
    pub(super) fn new(bytes_max: usize, idle_max: Duration) -> Self {
        let (by_name, by_use) = (BTreeMap::new(), BTreeMap::new());
        Self { bytes_max, idle_max, bytes: 0, by_name, by_use, uses: 0 }
    }

    /// A table that takes `bytes` is used. Returns those that are closed for it: never the one that is used.
    pub(super) fn used(
        &mut self,
        name: &DatasetName,
        table: &T,
        bytes: usize,
        now: Duration,
    ) -> Vec<(DatasetName, T)> {
        self.close(name);
        self.uses += 1;
        self.by_use.insert(self.uses, name.clone());
        self.by_name.insert(name.clone(), Open { table: table.clone(), bytes, used: self.uses, at: now });
        self.bytes += bytes;
        let mut closed = Vec::new();
        while self.bytes > self.bytes_max && self.by_name.len() > 1 {
            closed.extend(self.close_oldest());
        }
        closed
    }

    /// Closes the tables that nobody has used for long.
    pub(super) fn close_idle(&mut self, now: Duration) -> Vec<(DatasetName, T)> {
        let mut closed = Vec::new();
        while let Some(oldest) = self.by_use.values().next()
            && self.by_name.get(oldest).is_none_or(|open| open.at + self.idle_max <= now)
        {
            closed.extend(self.close_oldest());
        }
        closed
    }

    /// The `count` open tables after `last`, in turns: after the last one comes the first.
    pub(super) fn turn(&self, last: &mut Option<DatasetName>, count: usize) -> Vec<DatasetName> {
        turn(&self.by_name, last, count)
    }

    fn close_oldest(&mut self) -> Option<(DatasetName, T)> {
        let (_, name) = self.by_use.pop_first()?;
        self.close(&name).map(|table| (name, table))
    }

    fn close(&mut self, name: &DatasetName) -> Option<T> {
        let open = self.by_name.remove(name)?;
        self.by_use.remove(&open.used);
        self.bytes -= open.bytes;
        Some(open.table)
    }
}

/// The `count` names after `last`, in turns: after the last one comes the first. No name comes twice.
pub(super) fn turn<T>(
    names: &BTreeMap<DatasetName, T>,
    last: &mut Option<DatasetName>,
    count: usize,
) -> Vec<DatasetName> {
    let from = last.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
    let after = names.range::<DatasetName, _>((from, Bound::Unbounded));
    let found: Vec<DatasetName> =
        after.chain(names).take(count.min(names.len())).map(|(name, _)| name.clone()).collect();
    *last = found.last().cloned();
    found
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn name(i: u8) -> DatasetName {
        format!("d.n{i}").parse().unwrap()
    }

    #[derive(Debug, Clone)]
    enum Step {
        Use { table: u8, bytes: usize },
        Wait { s: u64 },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0..6u8, 1..60usize).prop_map(|(table, bytes)| Step::Use { table, bytes }),
            1 => (0..20u64).prop_map(|s| Step::Wait { s }),
        ]
    }

    proptest! {
        /// A plain list, the last used table at its end, closes the same tables.
        #[test]
        fn the_tables_that_were_used_last_stay_open(steps in proptest::collection::vec(step(), 0..80)) {
            const MOST: usize = 100;
            let idle = Duration::from_secs(30);
            let mut opened = Opened::new(MOST, idle);
            let mut list: Vec<(u8, usize, Duration)> = Vec::new();
            let mut now = Duration::ZERO;
            for step in steps {
                let closed = match step {
                    Step::Use { table, bytes } => {
                        list.retain(|open| open.0 != table);
                        list.push((table, bytes, now));
                        opened.used(&name(table), &table, bytes, now)
                    }
                    Step::Wait { s } => {
                        now += Duration::from_secs(s);
                        opened.close_idle(now)
                    }
                };
                let mut expected = Vec::new();
                while list.len() > 1 && list.iter().map(|open| open.1).sum::<usize>() > MOST
                    || matches!(step, Step::Wait { .. }) && list.first().is_some_and(|open| open.2 + idle <= now)
                {
                    expected.push(list.remove(0).0);
                }
                prop_assert_eq!(closed.into_iter().map(|(_, table)| table).collect::<Vec<_>>(), expected);
                let all: BTreeSet<_> = list.iter().map(|open| name(open.0)).collect();
                prop_assert_eq!(opened.turn(&mut None, 10).into_iter().collect::<BTreeSet<_>>(), all);
                prop_assert_eq!(opened.bytes, list.iter().map(|open| open.1).sum::<usize>());
            }
        }

        #[test]
        fn every_name_gets_its_turn_and_none_twice_in_one(count in 0..40u8, each in 1..50usize) {
            let names: BTreeMap<DatasetName, ()> = (0..count).map(|i| (name(i), ())).collect();
            let (mut last, mut seen) = (None, BTreeSet::new());
            for _ in 0..names.len().div_ceil(each) {
                let found = turn(&names, &mut last, each);
                prop_assert_eq!(found.len(), names.len().min(each));
                prop_assert_eq!(found.iter().collect::<BTreeSet<_>>().len(), found.len());
                seen.extend(found);
            }
            prop_assert_eq!(seen, names.into_keys().collect::<BTreeSet<_>>());
        }
    }
}
