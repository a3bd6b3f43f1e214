//! What this shard answers for. Pure.

use trellis_proto::{Code, Error, Result, ownership::OwnedRegions, pb};

/// The regions of (dataset x symbol x event time) that this shard owns.
///
/// A head plans its requests with the regions of all shards. This is one shard's part of them, so that the shard refuses a
/// request by an outdated plan, instead of answering it with a hole.
#[derive(Debug, Clone)]
pub(crate) struct Ownership {
    wire: Vec<pb::Ownership>,
    regions: OwnedRegions,
}

impl Ownership {
    /// The regions of `shard`.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] if there are none, or if one makes no sense.
    pub(crate) fn new(shard: &str, wire: Vec<pb::Ownership>) -> Result<Self> {
        if wire.is_empty() {
            return Err(Error::new(Code::InvalidRequest, "ownership: this shard owns nothing"));
        }
        let regions = OwnedRegions::new(shard, &wire)?;
        Ok(Self { wire, regions })
    }

    /// The regions as the shard tells heads of them.
    pub(crate) fn wire(&self) -> &[pb::Ownership] {
        &self.wire
    }

    /// Whether this shard owns any event time of `symbol`.
    pub(crate) fn owns(&self, dataset: &str, symbol: &str) -> bool {
        self.regions.owns(dataset, symbol)
    }

    /// Whether this shard owns all of `[start, end)` of `symbol`.
    pub(crate) fn owns_all(&self, dataset: &str, symbol: &str, start: i64, end: i64) -> bool {
        self.regions.owns_all(dataset, symbol, start, end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::split_ring;

    #[test]
    fn an_even_split_gives_every_symbol_to_exactly_one_shard() {
        let shards: Vec<_> =
            (0..3).map(|i| Ownership::new("s", split_ring(i, 3).unwrap()).unwrap()).collect();
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
        let owns = Ownership::new("s", vec![region(Some(0), Some(10)), region(Some(10), Some(20))]).unwrap();
        assert!(owns.owns_all("fx.minute", "EURUSD", 5, 15));
        assert!(!owns.owns_all("fx.minute", "EURUSD", 5, 25));
        assert!(!owns.owns_all("fx.minute", "EURUSD", -1, 5));
        assert!(!owns.owns("equities.daily", "EURUSD"));
    }
}
