//! What this shard answers for. Pure.

use trellis_proto::{Code, Error, Result, TimeRange, pb, placement};

/// The regions of (dataset x symbol x event time) that a shard owns.
///
/// The heads' [`placement::OwnershipMap`] decides over all shards; this is one shard's part of it, so that a request by an
/// outdated map is noticed instead of answered with a hole.
#[derive(Debug, Clone)]
pub(crate) struct Ownership {
    wire: Vec<pb::Ownership>,
    regions: Vec<Region>,
}

#[derive(Debug, Clone)]
struct Region {
    pattern: String,
    symbols: Symbols,
    range: TimeRange,
}

#[derive(Debug, Clone)]
enum Symbols {
    Slots {
        start: u32,
        end: u32,
    },
    /// Sorted.
    List(Vec<String>),
}

impl Ownership {
    /// # Errors
    /// [`Code::InvalidRequest`] if a region makes no sense.
    pub(crate) fn new(wire: Vec<pb::Ownership>) -> Result<Self> {
        let refuse = |why: String| Error::new(Code::InvalidRequest, format!("ownership: {why}"));
        if wire.is_empty() {
            return Err(refuse("this shard owns nothing".to_owned()));
        }
        let regions = wire
            .iter()
            .map(|region| {
                let prefix = region.dataset_pattern.strip_suffix('*');
                let sound = match prefix {
                    Some(prefix) => !prefix.contains('*') && (prefix.is_empty() || prefix.ends_with('.')),
                    None => !region.dataset_pattern.is_empty() && !region.dataset_pattern.contains('*'),
                };
                if !sound {
                    return Err(refuse(format!("{:?} is not a dataset pattern", region.dataset_pattern))
                        .hint("use *, equities.* or a full name"));
                }
                let symbols = match &region.symbols {
                    None => Symbols::Slots { start: 0, end: placement::SLOTS },
                    Some(pb::ownership::Symbols::HashRange(range)) => {
                        if range.start >= range.end || range.end > placement::SLOTS {
                            return Err(refuse(format!("slots [{}, {}) are none", range.start, range.end)));
                        }
                        Symbols::Slots { start: range.start, end: range.end }
                    }
                    Some(pb::ownership::Symbols::List(list)) => {
                        let mut list = list.symbols.clone();
                        list.sort_unstable();
                        Symbols::List(list)
                    }
                };
                Ok(Region {
                    pattern: region.dataset_pattern.clone(),
                    symbols,
                    range: TimeRange::new(region.start_ns, region.end_ns)?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self { wire, regions })
    }

    /// As it is told to heads.
    pub(crate) fn wire(&self) -> &[pb::Ownership] {
        &self.wire
    }

    /// Whether any time of `symbol` is owned.
    pub(crate) fn owns(&self, dataset: &str, symbol: &str) -> bool {
        self.regions_of(dataset, symbol).next().is_some()
    }

    /// Whether all of `[start, end)` of `symbol` is owned.
    pub(crate) fn owns_range(&self, dataset: &str, symbol: &str, start: i64, end: i64) -> bool {
        // Walks from region to region; each step reaches further, so there are at most as many as regions.
        let mut reached = start;
        for _ in 0..=self.regions.len() {
            if reached >= end && end > start {
                return true;
            }
            let next = self
                .regions_of(dataset, symbol)
                .filter(|r| r.range.contains(reached))
                .map(|r| r.range.end.unwrap_or(i64::MAX))
                .max();
            match next {
                Some(i64::MAX) => return true,
                Some(next) if next > reached => reached = next,
                _ => return false,
            }
        }
        false
    }

    fn regions_of<'a>(&'a self, dataset: &'a str, symbol: &'a str) -> impl Iterator<Item = &'a Region> {
        let slot = u32::from(placement::symbol_slot(symbol));
        self.regions.iter().filter(move |region| {
            let matches = match region.pattern.strip_suffix('*') {
                Some(prefix) => dataset.starts_with(prefix),
                None => region.pattern == dataset,
            };
            matches
                && match &region.symbols {
                    Symbols::Slots { start, end } => (*start..*end).contains(&slot),
                    Symbols::List(list) => list.binary_search_by(|s| s.as_str().cmp(symbol)).is_ok(),
                }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::split_ring;

    #[test]
    fn an_even_split_gives_every_symbol_to_exactly_one_shard() {
        let shards: Vec<_> = (0..3).map(|i| Ownership::new(split_ring(i, 3).unwrap()).unwrap()).collect();
        for symbol in ["AMZN", "AAPL", "EURUSD", "a b"] {
            assert_eq!(shards.iter().filter(|s| s.owns("equities.daily", symbol)).count(), 1);
        }
    }

    #[test]
    fn adjacent_times_are_owned_as_one() {
        let region = |start, end| pb::Ownership {
            dataset_pattern: "fx.*".to_owned(),
            symbols: None,
            start_ns: start,
            end_ns: end,
        };
        let owns = Ownership::new(vec![region(Some(0), Some(10)), region(Some(10), Some(20))]).unwrap();
        assert!(owns.owns_range("fx.minute", "EURUSD", 5, 15));
        assert!(!owns.owns_range("fx.minute", "EURUSD", 5, 25));
        assert!(!owns.owns_range("fx.minute", "EURUSD", -1, 5));
        assert!(!owns.owns("equities.daily", "EURUSD"));
    }
}
