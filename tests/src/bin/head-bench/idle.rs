//! One reader of an idle head: each read is of a chunk that the head has not cached. The same chunk is also fetched from the
//! shard directly, in random order.
//!
//! Measured: the ratio of the two median times, and the time of the same read from memory.
//!
//! Expected: the time of the shard plus the cost of a call to the head. If nothing is in flight, a fetch does not wait for
//! others to join.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use trellis_fabric::{
    channel::{ChannelOptions, PeerChannel, connect_traced},
    limited,
};
use trellis_proto::{
    ownership::OwnershipMap,
    pb::{self, fetch_reply::Reply, shard_client::ShardClient},
    ticket,
};
use trellis_tests::rng::Rng;

use crate::{
    Bench, SHARDS,
    figure::{Figure, median},
    load::{self, milliseconds},
    market::{CLOSE, DAYS, name},
};

const SEED: u64 = 26;
/// Number of chunks, each of another symbol.
const CHUNKS: usize = 200;
/// The first chunks open files and connections, and do not count.
const WARM_UP: usize = 50;
const CACHE: &str = "512MiB";

/// The shards and their ownership.
struct Shards {
    channels: Vec<(String, u64, PeerChannel)>,
    owners: OwnershipMap,
}

impl Shards {
    async fn connect(bench: &Bench) -> Result<Self> {
        let (mut channels, mut owns) = (Vec::new(), Vec::new());
        for index in 0..SHARDS {
            let addr = bench.grid.shard(index).context("a shard is away")?.to_string();
            let channel = connect_traced(&addr, &ChannelOptions::of_unit("idle"))?;
            let request = pb::ShardDescribeRequest { ownership_only: true };
            let told = ShardClient::new(channel.clone()).describe(request).await?.into_inner();
            owns.push((told.shard.clone(), told.owns));
            channels.push((told.shard, told.epoch, channel));
        }
        Ok(Self { channels, owners: OwnershipMap::build(&owns)? })
    }

    /// Rows of one chunk, at its shard.
    async fn fetch(&self, range: pb::ChunkRange, ts: i64) -> Result<u64> {
        let owner = self.owners.owner(&range.dataset, &range.symbol, ts).context("nobody owns it")?;
        let (_, epoch, channel) =
            self.channels.iter().find(|(shard, ..)| shard == owner).context("no such shard")?;
        let request = pb::FetchRequest { ranges: vec![range], epoch: *epoch, ..Default::default() };
        let mut replies = limited!(ShardClient::new(channel.clone())).fetch(request).await?.into_inner();
        let mut rows = 0;
        while let Some(reply) = replies.message().await? {
            match reply.reply {
                Some(Reply::Batch(batch)) => {
                    rows +=
                        batch.runs.iter().flat_map(|run| &run.rows).map(|rows| u64::from(*rows)).sum::<u64>();
                }
                other => anyhow::bail!("the shard answered {other:?}"),
            }
        }
        Ok(rows)
    }
}

pub(crate) async fn run(bench: &Bench) -> Result<Vec<Figure>> {
    let market = &bench.market;
    let head = bench.head(CACHE).await?;
    let (pool, shards) = (head.connect("idle", 1).await?, Shards::connect(bench).await?);
    let mut rng = Rng::new(SEED);
    let (mut cold, mut direct, mut hot) = (Vec::new(), Vec::new(), Vec::new());
    for symbol in 0..CHUNKS {
        let day = rng.below(DAYS as usize) as i64;
        let query = market.query_chunk(symbol, day, CLOSE)?;
        let first = market.chunk_of(day);
        let range = pb::ChunkRange {
            dataset: query.dataset.to_string(),
            symbol: name(symbol),
            fields: CLOSE.iter().map(ToString::to_string).collect(),
            first,
            end: first + 1,
            schema: 0,
        };
        let ticket = ticket::encode(&query);
        let through_head = async {
            let at = Instant::now();
            let (_, receipt) = load::read(pool.get(), ticket.clone()).await?;
            anyhow::Ok((milliseconds(at), receipt.rows))
        };
        let at_shard = async {
            let at = Instant::now();
            let rows = shards.fetch(range, market.spec.chunk.start(first)).await?;
            anyhow::Ok((milliseconds(at), rows))
        };
        let (one, other) = if rng.once_in(2) {
            let one = through_head.await?;
            (one, at_shard.await?)
        } else {
            let other = at_shard.await?;
            (through_head.await?, other)
        };
        ensure!(one.1 == other.1, "{} rows through the head, {} at the shard", one.1, other.1);
        let at = Instant::now();
        load::read(pool.get(), ticket.clone()).await?;
        if symbol >= WARM_UP {
            cold.push(one.0);
            direct.push(other.0);
            hot.push(milliseconds(at));
        }
    }
    let calls = head.stats().await?.upstream_calls;
    ensure!(calls == CHUNKS as u64, "{calls} upstream calls for {CHUNKS} chunks");
    let [cold_ms, direct_ms, hot_ms] = [cold, direct, hot].map(median);
    Ok(vec![
        Figure::lower("idle: cold read of one chunk / its shard asked directly", cold_ms / direct_ms, "x")
            .peer("Fetch of the same chunk, from the shard")
            .detail(json!({
                "seed": SEED, "chunks": CHUNKS - WARM_UP, "cold_ms": cold_ms, "direct_ms": direct_ms,
                "from_memory_ms": hot_ms, "added_ms": cold_ms - direct_ms,
            })),
    ])
}
