//! One read: split over the heads by symbol, the parts asked for at once, the answers merged.

use std::{collections::BTreeMap, time::Duration};

use futures::{
    FutureExt as _,
    future::{BoxFuture, try_join_all},
};
use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use trellis_fabric::retry::Pauses;
use trellis_proto::{Code, Error, Result, SeriesQuery, Symbol, Symbols, pb, placement};

use super::{answer::Answer, get, grid::Client, merge};

/// First pause while heads disagree about a dataset's symbols or schema; it doubles. They disagree until a publish has reached them all.
const DISAGREE_MIN: Duration = Duration::from_millis(20);
/// Longest such pause.
const DISAGREE_MAX: Duration = Duration::from_millis(500);

impl Client {
    /// Reads the rows of `query`, in the order of (symbol, ts). The client splits the query over the heads by symbol.
    ///
    /// # Errors
    /// A head's own error (unknown names, too large, ...), or the last retryable error at the deadline. A read never answers
    /// only a part of the rows.
    pub fn read<'a>(&'a self, query: &'a SeriesQuery) -> BoxFuture<'a, Result<Answer>> {
        // boxed, so that it is compiled here and not once more in every program that polls it
        self.read_agreed(query).boxed()
    }

    /// Reads again until the heads agree on the dataset's symbols and schema.
    async fn read_agreed(&self, query: &SeriesQuery) -> Result<Answer> {
        let deadline = self.end();
        let mut pauses = Pauses::new(DISAGREE_MIN, DISAGREE_MAX);
        loop {
            let error = match self.read_once(query, deadline).await {
                // one head listed the symbol, another does not know it yet: the publish is on its way
                Err(error) if error.code() == Code::UnknownSymbol && query.symbols == Symbols::All => error,
                // one head answered before the dataset was changed, another after
                Err(error) if error.code() == Code::StaleSchema => error,
                other => return other,
            };
            let pause = pauses.next_pause();
            // as much time as the pause must be left for the read after it
            if Instant::now() + pause * 2 >= deadline {
                let why = format!("the heads disagree about what {} is: {}", query.dataset, error.message());
                return Err(Error::new(Code::Unavailable, why).dataset(&query.dataset));
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn read_once(&self, query: &SeriesQuery, deadline: Instant) -> Result<Answer> {
        let queries = self.split(query, deadline).await?;
        let parts = try_join_all(queries.iter().map(|query| self.read_part(query, deadline))).await?;
        let parts = match query.as_of {
            None => self.aligned(&queries, parts, deadline).await?,
            Some(_) => parts,
        };
        let (parts, receipts): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        let rows: u64 = receipts.iter().map(|receipt: &pb::Receipt| receipt.rows).sum();
        if query.rows_max > 0 && rows > query.rows_max {
            return Err(Error::new(
                Code::TooLarge,
                format!("the answer has {rows} rows; at most {} were asked for", query.rows_max),
            )
            .hint("ask for fewer symbols or a shorter range")
            .dataset(&query.dataset));
        }
        let whole = if parts.len() > 1 {
            // a merge copies every row, so it runs on a thread that serves nobody else
            tokio::task::spawn_blocking(move || merge::merge(parts))
                .await
                .map_err(|e| Error::new(Code::Internal, format!("merging answers: {e}")))??
        } else {
            merge::merge(parts)?
        };
        Ok(Answer { schema: whole.schema, batches: whole.batches, receipts })
    }

    /// One query for each head that owns some of the symbols.
    async fn split(&self, query: &SeriesQuery, deadline: Instant) -> Result<Vec<SeriesQuery>> {
        let heads = self.heads.live();
        if heads.len() < 2 {
            return Ok(vec![query.clone()]);
        }
        let listed;
        let symbols = match &query.symbols {
            Symbols::List(symbols) => symbols,
            Symbols::All => {
                listed = self.symbols_by(&query.dataset, deadline).await?;
                &listed
            }
        };
        let mut by_head: BTreeMap<&str, Vec<Symbol>> = BTreeMap::new();
        for symbol in symbols {
            if let Some(head) = placement::head_of(&heads, query.dataset.as_str(), symbol.as_str()) {
                by_head.entry(head).or_default().push(symbol.clone());
            }
        }
        if by_head.is_empty() {
            // without symbols there are no rows, but a head still answers with the schema
            return Ok(vec![query.clone()]);
        }
        let part = |symbols| SeriesQuery { symbols: Symbols::List(symbols), ..query.clone() };
        let pieces = by_head.into_values().flat_map(|symbols| {
            let pieces = symbols.chunks(trellis_proto::query::SYMBOLS_MAX).map(<[Symbol]>::to_vec);
            pieces.collect::<Vec<_>>()
        });
        Ok(pieces.map(part).collect())
    }

    /// Brings the parts of a latest answer to one knowledge time: the least that all heads had. While a publish is on its way, some
    /// heads have applied it and others have not, and their parts together would show half of the publish. A publish that was
    /// acknowledged before the read began is on every head, so the answer has it in any case, unless a shard could not be
    /// reached at the acknowledgement. Stale parts stay as they are: they have no common time to go back to.
    async fn aligned(
        &self,
        queries: &[SeriesQuery],
        parts: Vec<(merge::Part, pb::Receipt)>,
        deadline: Instant,
    ) -> Result<Vec<(merge::Part, pb::Receipt)>> {
        let least = parts.iter().map(|(_, receipt)| receipt.known_through_ns).min();
        let stale = parts.iter().any(|(_, receipt)| receipt.stale);
        let Some(known_through) = least.filter(|_| !stale) else { return Ok(parts) };
        let again = queries.iter().zip(parts).map(|(query, (part, receipt))| async move {
            if receipt.known_through_ns == known_through {
                return Ok((part, receipt));
            }
            let past = SeriesQuery { as_of: Some(known_through), ..query.clone() };
            let (part, second) = self.read_part(&past, deadline).await?;
            let merged = pb::Receipt {
                as_of_ns: None,
                known_through_ns: known_through,
                // counts of the first read: the second finds the chunks in the head's memory
                chunks_hit: receipt.chunks_hit,
                chunks_joined: receipt.chunks_joined,
                chunks_fetched: receipt.chunks_fetched,
                rows_fetched: receipt.rows_fetched + second.rows_fetched,
                elapsed_us: receipt.elapsed_us + second.elapsed_us,
                queued_us: receipt.queued_us + second.queued_us,
                ..second
            };
            Ok((part, merged))
        });
        try_join_all(again).await
    }

    async fn read_part(&self, query: &SeriesQuery, deadline: Instant) -> Result<(merge::Part, pb::Receipt)> {
        // `split` chose one head for all symbols of a part
        let symbol = match &query.symbols {
            Symbols::List(symbols) => symbols.first().map_or("", Symbol::as_str),
            Symbols::All => "",
        };
        let heads = &self.heads;
        let live = heads.live();
        let owner = placement::head_of(&live, query.dataset.as_str(), symbol);
        let attempt = |head: String, left: Duration| async move {
            let (part, receipt) =
                get::do_get(heads.read_channel(&head)?, MetadataMap::new(), query, left).await?;
            heads.has_read(receipt.bytes);
            Ok((part, receipt))
        };
        heads.call(query.dataset.as_str(), owner, deadline, Duration::MAX, attempt).await
    }
}
