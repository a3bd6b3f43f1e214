//! One read: split by symbol over the heads of its dataset, the parts asked for at once, the answers merged.

use std::time::Duration;

use futures::{
    FutureExt as _,
    future::{BoxFuture, try_join_all},
};
use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use trellis_fabric::{channel::PeerChannel, retry::Pauses};
use trellis_proto::{
    Code, DatasetName, Error, Result, SeriesQuery, Symbols, pb, pb::head_client::HeadClient, placement,
    query::SYMBOLS_MAX,
};

use super::{answer::Answer, get, grid::Client, merge, spreads::Spread};

/// First pause while heads disagree about a dataset's symbols or schema; it doubles. They disagree until a publish has reached them all.
const DISAGREE_MIN: Duration = Duration::from_millis(20);
/// Longest such pause.
const DISAGREE_MAX: Duration = Duration::from_millis(500);

/// What one head is asked, and the head that serves it.
struct Ask {
    head: String,
    query: SeriesQuery,
}

impl Client {
    /// Reads the rows of `query`, in the order of (symbol, ts). The client splits the query by symbol over the heads that serve
    /// the dataset.
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
        let asks = self.split(query, deadline).await?;
        let parts =
            try_join_all(asks.iter().map(|ask| self.read_part(&ask.head, &ask.query, deadline))).await?;
        // the numbers of the newest version are those for the next read
        let newest = parts.iter().map(|(_, receipt)| receipt).max_by_key(|r| (r.version_max, r.spread));
        if let Some(newest) = newest.filter(|newest| newest.spread > 0) {
            self.spreads.told(&query.dataset, newest.into());
        }
        let parts = match query.as_of {
            None => self.aligned(&asks, parts, deadline).await?,
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

    /// One query for each head that serves some of the symbols, or several for one with very many.
    async fn split(&self, query: &SeriesQuery, deadline: Instant) -> Result<Vec<Ask>> {
        let heads = self.heads.live();
        let dataset = query.dataset.as_str();
        let serving = match &heads[..] {
            [] => Vec::new(),
            [only] => vec![only.as_str()],
            several => {
                let Spread { heads, copies } = self.spread(&query.dataset, deadline).await?;
                placement::heads_for(several, dataset, heads, copies, &self.reader)
            }
        };
        let whole =
            || Ask { head: serving.first().copied().unwrap_or_default().to_owned(), query: query.clone() };
        let listed;
        let symbols = match &query.symbols {
            Symbols::List(symbols) => symbols,
            // one head answers with all that there are, without a list
            Symbols::All if serving.len() < 2 => return Ok(vec![whole()]),
            Symbols::All => {
                listed = self.symbols_by(&query.dataset, deadline).await?;
                &listed
            }
        };
        let shares = placement::share(&serving, dataset, symbols);
        let asks = shares.into_iter().flat_map(|(head, symbols)| {
            let ask = |symbols: &[_]| {
                let symbols = Symbols::List(symbols.to_vec());
                Ask { head: head.to_owned(), query: SeriesQuery { symbols, ..query.clone() } }
            };
            symbols.chunks(SYMBOLS_MAX).map(ask).collect::<Vec<_>>()
        });
        let asks: Vec<Ask> = asks.collect();
        // without symbols there are no rows, but a head still answers with the schema
        Ok(if asks.is_empty() { vec![whole()] } else { asks })
    }

    /// How many heads serve a dataset. A client that does not know asks the first of them; later each answer tells it.
    async fn spread(&self, dataset: &DatasetName, deadline: Instant) -> Result<Spread> {
        if let Some(spread) = self.spreads.of(dataset) {
            return Ok(spread);
        }
        let request = pb::DescribeRequest { dataset: dataset.to_string() };
        let call = |mut head: HeadClient<PeerChannel>, request| async move { head.describe(request).await };
        let reply = self.ask(dataset.as_str(), deadline, request, call).await?;
        let spread = Spread::from(&reply.datasets.into_iter().next().unwrap_or_default());
        self.spreads.told(dataset, spread);
        Ok(spread)
    }

    /// Brings the parts of a latest answer to one knowledge time: the least that all heads had. While a publish is on its way, some
    /// heads have applied it and others have not, and their parts together would show half of the publish. A publish that was
    /// acknowledged before the read began is on every head, so the answer has it in any case, unless a shard could not be
    /// reached at the acknowledgement. Stale parts stay as they are: they have no common time to go back to.
    async fn aligned(
        &self,
        asks: &[Ask],
        parts: Vec<(merge::Part, pb::Receipt)>,
        deadline: Instant,
    ) -> Result<Vec<(merge::Part, pb::Receipt)>> {
        let least = parts.iter().map(|(_, receipt)| receipt.known_through_ns).min();
        let stale = parts.iter().any(|(_, receipt)| receipt.stale);
        let Some(known_through) = least.filter(|_| !stale) else { return Ok(parts) };
        let again = asks.iter().zip(parts).map(|(Ask { head, query }, (part, receipt))| async move {
            if receipt.known_through_ns == known_through {
                return Ok((part, receipt));
            }
            let past = SeriesQuery { as_of: Some(known_through), ..query.clone() };
            let (part, second) = self.read_part(head, &past, deadline).await?;
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

    async fn read_part(
        &self,
        head: &str,
        query: &SeriesQuery,
        deadline: Instant,
    ) -> Result<(merge::Part, pb::Receipt)> {
        let heads = &self.heads;
        let attempt = |head: String, left: Duration| async move {
            let (part, receipt) =
                get::do_get(heads.read_channel(&head)?, MetadataMap::new(), query, left).await?;
            heads.has_read(receipt.bytes);
            heads.told_map(receipt.heads_version);
            Ok((part, receipt))
        };
        heads.call(query.dataset.as_str(), Some(head), deadline, Duration::MAX, attempt).await
    }
}
