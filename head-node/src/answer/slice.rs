//! The exact cut of one chunk, by event time and by knowledge time.
//!
//! A chunk holds every known version of its rows, sorted by `(ts, known_at)`. Of each `ts` in `[start, end)` an answer has the version
//! with the greatest `known_at` that is not after `as_of`, unless that version is a retraction. Two facts make the common cut cheap. In a
//! chunk without corrections and retractions each row stands for itself, so no grouping is needed. And if no single row is left out, the
//! cut is one contiguous run, which the framer copies or shares as a block. Corrected rows break a run: the cut then calls back with each
//! run between them, in order.
//!
//! The alternative, a boolean mask and the `filter` kernel, allocates new arrays for every chunk, also for a chunk without corrections.

use std::ops::Range;

use arrow_buffer::BooleanBuffer;

use super::column::KnownAt;

/// The rows to keep of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    /// Event time, nanoseconds, inclusive.
    pub(crate) start: i64,
    /// Event time, nanoseconds, exclusive.
    pub(crate) end: i64,
    /// Knowledge time, nanoseconds, inclusive; `None`: the latest.
    pub(crate) as_of: Option<i64>,
}

/// Calls `keep` with the runs of rows in `window`, ascending, none empty, no two adjacent.
///
/// `ts` is sorted. `corrected` says that some `ts` occurs more than once, or that some row is a retraction; `retracted` says which rows
/// are retractions.
pub(crate) fn cut(
    ts: &[i64],
    known: &KnownAt,
    corrected: bool,
    retracted: Option<&BooleanBuffer>,
    window: &Window,
    mut keep: impl FnMut(Range<u32>),
) {
    let range = in_range(ts, window.start, window.end);
    if range.is_empty() {
        return;
    }
    let whole = |range: Range<usize>| range.start as u32..range.end as u32;
    match (corrected, window.as_of, known) {
        (false, None, _) => return keep(whole(range)),
        (false, Some(as_of), KnownAt::Constant(at)) => {
            if *at <= as_of {
                keep(whole(range));
            }
            return;
        }
        (false, Some(as_of), KnownAt::PerRow(at)) if at[range.clone()].iter().all(|at| *at <= as_of) => {
            return keep(whole(range));
        }
        _ => {}
    }

    let as_of = window.as_of.unwrap_or(i64::MAX);
    let mut run: Option<Range<u32>> = None;
    let mut row = range.start;
    while row < range.end {
        // one group: all versions of one event time, oldest knowledge first
        let event = ts[row];
        let mut pick = None;
        while row < range.end && ts[row] == event {
            if known.at(row) <= as_of {
                pick = Some(row as u32);
            }
            row += 1;
        }
        let Some(pick) = pick else { continue };
        if retracted.is_some_and(|retracted| retracted.value(pick as usize)) {
            continue;
        }
        match &mut run {
            Some(run) if run.end == pick => run.end += 1,
            _ => {
                if let Some(done) = run.replace(pick..pick + 1) {
                    keep(done);
                }
            }
        }
    }
    if let Some(run) = run {
        keep(run);
    }
}

/// The rows with `start <= ts < end`. Chunks inside a long range are whole, and take only two comparisons.
fn in_range(ts: &[i64], start: i64, end: i64) -> Range<usize> {
    let (Some(first), Some(last)) = (ts.first(), ts.last()) else { return 0..0 };
    let from = if *first >= start { 0 } else { ts.partition_point(|t| *t < start) };
    let to = if *last < end { ts.len() } else { ts.partition_point(|t| *t < end) };
    from..to.max(from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn rows(ts: &[i64], known: &KnownAt, corrected: bool, window: &Window) -> Vec<u32> {
        rows_of(ts, known, corrected, None, window)
    }

    fn rows_of(
        ts: &[i64],
        known: &KnownAt,
        corrected: bool,
        retracted: Option<&BooleanBuffer>,
        window: &Window,
    ) -> Vec<u32> {
        let mut rows = Vec::new();
        let mut last_end = None;
        cut(ts, known, corrected, retracted, window, |run| {
            assert!(!run.is_empty());
            assert_ne!(last_end, Some(run.start), "adjacent runs are one run");
            last_end = Some(run.end);
            rows.extend(run);
        });
        rows
    }

    const NONE: [u32; 0] = [];

    /// The plain definition: of each event time the row of the greatest knowledge time that is not too late.
    fn oracle(ts: &[i64], known: &[i64], retracted: &[bool], window: &Window) -> Vec<u32> {
        let mut best: BTreeMap<i64, (i64, u32)> = BTreeMap::new();
        for (row, (t, at)) in ts.iter().zip(known).enumerate() {
            if *t < window.start || *t >= window.end || window.as_of.is_some_and(|as_of| *at > as_of) {
                continue;
            }
            let entry = best.entry(*t).or_insert((*at, row as u32));
            if *at >= entry.0 {
                *entry = (*at, row as u32);
            }
        }
        best.into_values().map(|(_, row)| row).filter(|row| !retracted[*row as usize]).collect()
    }

    #[test]
    fn an_uncorrected_chunk_is_one_run() {
        let ts = [10, 20, 30, 40];
        let all = Window { start: i64::MIN, end: i64::MAX, as_of: None };
        let mut runs = Vec::new();
        cut(&ts, &KnownAt::PerRow(vec![1, 9, 2, 3].into()), false, None, &all, |run| {
            runs.push((run.start, run.end))
        });
        assert_eq!(runs, [(0, 4)]);
    }

    #[test]
    fn the_start_is_in_and_the_end_is_out() {
        let ts = [10, 20, 30, 40];
        let window = |start, end| Window { start, end, as_of: None };
        assert_eq!(rows(&ts, &KnownAt::Constant(0), false, &window(20, 40)), [1, 2]);
        assert_eq!(rows(&ts, &KnownAt::Constant(0), false, &window(20, 20)), NONE);
        assert_eq!(rows(&ts, &KnownAt::Constant(0), false, &window(11, 20)), NONE);
        assert_eq!(rows(&ts, &KnownAt::Constant(0), false, &window(41, 99)), NONE);
        assert_eq!(rows(&[], &KnownAt::Constant(0), false, &window(0, 99)), NONE);
        assert_eq!(rows(&ts, &KnownAt::Constant(0), false, &window(30, 20)), NONE);
    }

    #[test]
    fn a_correction_is_seen_from_its_knowledge_time_on() {
        let ts = [10, 20, 20, 30];
        let known = KnownAt::PerRow(vec![1, 1, 5, 1].into());
        let as_of = |as_of| Window { start: 0, end: 99, as_of };
        assert_eq!(rows(&ts, &known, true, &as_of(Some(0))), NONE);
        assert_eq!(rows(&ts, &known, true, &as_of(Some(1))), [0, 1, 3]);
        assert_eq!(rows(&ts, &known, true, &as_of(Some(4))), [0, 1, 3]);
        assert_eq!(rows(&ts, &known, true, &as_of(Some(5))), [0, 2, 3]);
        assert_eq!(rows(&ts, &known, true, &as_of(None)), [0, 2, 3]);
    }

    #[test]
    fn a_retraction_hides_its_row_from_its_knowledge_time_until_the_row_comes_back() {
        let ts = [10, 10, 10, 20];
        let known = KnownAt::PerRow(vec![1, 3, 5, 1].into());
        let retracted = BooleanBuffer::from(vec![false, true, false, false]);
        let as_of = |as_of| {
            let window = Window { start: 0, end: 99, as_of };
            rows_of(&ts, &known, true, Some(&retracted), &window)
        };
        assert_eq!(as_of(Some(2)), [0, 3]);
        assert_eq!(as_of(Some(3)), [3]);
        assert_eq!(as_of(Some(5)), [2, 3]);
        assert_eq!(as_of(None), [2, 3]);
    }

    proptest! {
        #[test]
        fn every_cut_is_the_oracles(
            groups in prop::collection::vec(
                (1i64..4, prop::collection::btree_map(0i64..12, prop::bool::weighted(0.2), 1..4)), 0..30),
            start in -2i64..70, len in 0i64..70, as_of in prop::option::of(-1i64..13), constant in any::<bool>(),
        ) {
            let (mut ts, mut known, mut retractions, mut now) = (Vec::new(), Vec::new(), Vec::new(), 0);
            for (step, versions) in groups {
                now += step;
                for (at, retracted) in versions {
                    if constant && ts.last() == Some(&now) { continue; }
                    ts.push(now);
                    known.push(if constant { 6 } else { at });
                    retractions.push(retracted && !constant);
                }
            }
            let retracted = BooleanBuffer::from(retractions.as_slice());
            let some = Some(&retracted).filter(|retracted| retracted.count_set_bits() > 0);
            let corrected = ts.windows(2).any(|w| w[0] == w[1]) || some.is_some();
            let window = Window { start, end: start + len, as_of };
            let want = oracle(&ts, &known, &retractions, &window);
            let of_rows = KnownAt::PerRow(known.clone().into());
            prop_assert_eq!(&rows_of(&ts, &of_rows, corrected, some, &window), &want);
            // saying "corrected" of a chunk that is not costs time, never correctness
            prop_assert_eq!(&rows_of(&ts, &of_rows, true, Some(&retracted), &window), &want);
            if constant {
                prop_assert_eq!(&rows(&ts, &KnownAt::Constant(6), false, &window), &want);
            }
        }
    }
}
