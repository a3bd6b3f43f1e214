//! The answer to a read: rows and receipts.

use std::collections::BTreeSet;

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use trellis_proto::pb;

/// Rows sorted by (symbol, ts), in Arrow, and the receipts of the heads.
#[derive(Debug, Clone)]
pub struct Answer {
    /// `symbol` (dictionary of utf8, int32 keys), `ts`, the fields in the order of the request, `known_at` if requested.
    pub schema: SchemaRef,
    /// The rows. All batches share one dictionary of symbols. May be empty.
    pub batches: Vec<RecordBatch>,
    /// One for each head that the client asked.
    pub receipts: Vec<pb::Receipt>,
}

impl Answer {
    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.batches.iter().map(RecordBatch::num_rows).sum()
    }

    /// The receipts as one. Counts are sums. Claims are those that hold for all heads: the least `known_through` and watermark, and stale
    /// if any is stale. `spread` and `copies` are the greatest. `elapsed_us` and `queued_us` are those of the slowest head, and `head` lists all heads.
    #[must_use]
    pub fn receipt(&self) -> pb::Receipt {
        merge_receipts(&self.receipts)
    }
}

pub(crate) fn merge_receipts(receipts: &[pb::Receipt]) -> pb::Receipt {
    let Some((first, rest)) = receipts.split_first() else { return pb::Receipt::default() };
    let mut all = first.clone();
    let mut shards: BTreeSet<String> = all.shards.drain(..).collect();
    let mut heads = BTreeSet::from([all.head.clone()]);
    for one in rest {
        all.known_through_ns = all.known_through_ns.min(one.known_through_ns);
        all.version_min = all.version_min.min(one.version_min);
        all.version_max = all.version_max.max(one.version_max);
        all.watermark_ns = all.watermark_ns.zip(one.watermark_ns).map(|(a, b)| a.min(b));
        all.rows += one.rows;
        all.bytes += one.bytes;
        all.chunks_hit += one.chunks_hit;
        all.chunks_joined += one.chunks_joined;
        all.chunks_fetched += one.chunks_fetched;
        all.rows_fetched += one.rows_fetched;
        all.stale |= one.stale;
        all.elapsed_us = all.elapsed_us.max(one.elapsed_us);
        all.queued_us = all.queued_us.max(one.queued_us);
        all.spread = all.spread.max(one.spread);
        all.copies = all.copies.max(one.copies);
        shards.extend(one.shards.iter().cloned());
        heads.insert(one.head.clone());
    }
    all.shards = shards.into_iter().collect();
    all.head = heads.into_iter().collect::<Vec<_>>().join(",");
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_merged_receipt_claims_only_what_every_head_claims() {
        let a = pb::Receipt {
            known_through_ns: 10,
            version_min: 3,
            version_max: 9,
            watermark_ns: Some(7),
            rows: 2,
            chunks_hit: 1,
            shards: vec!["s2".into(), "s1".into()],
            elapsed_us: 5,
            queued_us: 4,
            head: "b".into(),
            spread: 4,
            ..Default::default()
        };
        let b = pb::Receipt {
            known_through_ns: 8,
            version_min: 4,
            version_max: 11,
            watermark_ns: Some(9),
            rows: 3,
            stale: true,
            shards: vec!["s1".into()],
            elapsed_us: 9,
            queued_us: 1,
            head: "a".into(),
            spread: 8,
            ..Default::default()
        };
        let all = merge_receipts(&[a.clone(), b]);
        assert_eq!((all.known_through_ns, all.version_min, all.version_max), (8, 3, 11));
        assert_eq!((all.watermark_ns, all.rows, all.stale), (Some(7), 5, true));
        assert_eq!(all.spread, 8);
        assert_eq!((all.elapsed_us, all.queued_us), (9, 4));
        assert_eq!((all.shards, all.head.as_str()), (vec!["s1".to_owned(), "s2".to_owned()], "a,b"));
        let silent = pb::Receipt { watermark_ns: None, ..a.clone() };
        assert_eq!(merge_receipts(&[a, silent]).watermark_ns, None);
    }
}
