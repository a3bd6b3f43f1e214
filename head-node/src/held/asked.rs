//! The ranges of event time that were ever asked of one series. The head had to fetch at least their union.

/// Most intervals kept for one series. Beyond that the two nearest are joined. Rows in the gap between them are then not counted when
/// they are first asked for: the union is a little too small, and the amplification that is computed from it a little too large.
const INTERVALS_MAX: usize = 64;

/// Sorted, disjoint, not adjacent half-open intervals.
#[derive(Debug, Default)]
pub(crate) struct AskedRanges(Vec<(i64, i64)>);

impl AskedRanges {
    /// Whether all of `[start, end)` was asked for before.
    pub(crate) fn has(&self, start: i64, end: i64) -> bool {
        let first = self.0.partition_point(|(_, e)| *e < start);
        end <= start || self.0.get(first).is_some_and(|(s, e)| *s <= start && end <= *e)
    }

    /// Adds `[start, end)`; calls `new` with the parts of it that were not asked for before, ascending.
    pub(crate) fn add(&mut self, start: i64, end: i64, mut new: impl FnMut(i64, i64)) {
        if end <= start {
            return;
        }
        // the first interval that touches or follows
        let from = self.0.partition_point(|(_, e)| *e < start);
        let mut to = from;
        let (mut low, mut high) = (start, end);
        let mut at = start;
        while let Some(&(s, e)) = self.0.get(to).filter(|(s, _)| *s <= end) {
            if at < s {
                new(at, s);
            }
            at = at.max(e);
            low = low.min(s);
            high = high.max(e);
            to += 1;
        }
        if at < end {
            new(at, end);
        }
        if to == from + 1 && self.0[from] == (low, high) {
            return;
        }
        self.0.splice(from..to, [(low, high)]);
        if self.0.len() > INTERVALS_MAX {
            let nearest = (1..self.0.len()).min_by_key(|i| self.0[*i].0.saturating_sub(self.0[*i - 1].1));
            if let Some(i) = nearest {
                self.0[i - 1].1 = self.0[i].1;
                self.0.remove(i);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_wider_question_adds_only_what_is_new() {
        let mut asked = AskedRanges::default();
        let mut new = Vec::new();
        asked.add(10, 20, |s, e| new.push((s, e)));
        asked.add(30, 40, |s, e| new.push((s, e)));
        asked.add(0, 50, |s, e| new.push((s, e)));
        asked.add(5, 45, |s, e| new.push((s, e)));
        assert_eq!(new, [(10, 20), (30, 40), (0, 10), (20, 30), (40, 50)]);
        assert_eq!(asked.0, [(0, 50)]);
    }

    proptest! {
        #[test]
        fn the_new_parts_are_those_of_a_set_of_points(ranges in proptest::collection::vec((0i64..60, 0i64..20), 0..40)) {
            let mut asked = AskedRanges::default();
            let mut set = std::collections::BTreeSet::new();
            for (start, length) in ranges {
                let mut new = Vec::new();
                let had = asked.has(start, start + length);
                asked.add(start, start + length, |s, e| new.extend(s..e));
                let expected: Vec<i64> = (start..start + length).filter(|t| set.insert(*t)).collect();
                prop_assert_eq!(had, expected.is_empty());
                prop_assert_eq!(new, expected);
            }
        }

        #[test]
        fn it_stays_bounded_and_never_counts_twice(ranges in proptest::collection::vec((0i64..100_000, 1i64..20), 0..300)) {
            let mut asked = AskedRanges::default();
            let mut set = std::collections::BTreeSet::new();
            for (start, length) in ranges {
                asked.add(start, start + length, |s, e| (s..e).for_each(|t| assert!(set.insert(t))));
                prop_assert!(asked.0.len() <= INTERVALS_MAX);
            }
        }
    }
}
