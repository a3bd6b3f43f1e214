//! A head node: it answers reads of time series, from its cache if it can and from the shards if it must, and passes publishes on to the
//! shards that commit them.
//!
//! It is not a store: every row that it keeps is on a shard, too. It does not decide which publishes are allowed; the home shard does.
//!
//! The rooms. Each folder has one subject, and others import from its door, `mod.rs`. A room imports only from rooms below it.
//!
//! | room | subject |
//! | --- | --- |
//! | `edge/` | gRPC in: Arrow Flight, `DoGet`, `DoPut`, and `trellis.v1.Head` |
//! | `engine/` | one read, from the question to its chunks: taken, joined or claimed, and fetched |
//! | `follow/` | finding the shards, and applying the log of each to the chunks that are held |
//! | `held/` | the data that is held: claims, chunks, series, datasets, the cache |
//! | `shards/` | the other end: each shard, and the map of their ownership |
//! | `limits/` | the memory budget, and turns that units share fairly |
//! | `answer/` | the content of an answer: the plan of a request, the cut of a chunk, the framing of messages (pure) |
//!
//! The life of a read: `edge/doget` reads the request, `answer/plan` checks and limits it, `engine/reading` has its chunks,
//! `answer/slice` cuts them by event time and knowledge time, and `answer/frame` frames them when `limits` give room and a turn.
//!
//! At the top: `head` is one head as its services share it, `members` are the heads of the grid, `ledger` records each write, `stats` and `metrics` count, [`config`] reads
//! the configuration, and `error` encodes errors at the edge.
//!
//! ## Words
//!
//! * **Claim**: a chunk of one series that one read has asked a shard for. Other reads of the chunk join it.
//! * **Flight**: the fetch of a run of adjacent claimed chunks. It belongs to the head, not to the read that claimed them.
//! * **Stake**: one read's interest in a flight. When the last stake is given back, the flight has a grace and is then given up.
//! * **Slot**: a place in a series that holds one ready chunk, from its insertion until it is evicted or replaced.
//! * **Generation**: a gapless stretch of one shard's log. Chunks that were fetched or checked in the current generation, and that no
//!   change has touched since, are the latest.
//! * **Poison**: a mark on a chunk in flight that a change has overtaken. Reads that joined before may use the chunk, later reads do
//!   not join it, and it is not stored if it turns out to be older than the change.

mod answer;
pub mod config;
mod edge;
mod engine;
mod error;
mod follow;
mod head;
mod held;
mod ledger;
mod limits;
mod members;
mod metrics;
mod shards;
mod stats;

use std::{sync::Arc, time::Duration};

use futures::{FutureExt as _, future::BoxFuture};
use tokio::net::TcpListener;
use tonic::service::Routes;
use trellis_fabric::{
    channel::MESSAGE_BYTES_MAX,
    discovery::{self, Watch},
    serve::{self, CancellationToken},
};
use trellis_proto::{Code, DESCRIPTOR_SET, Error, Result, pb::head_server::HeadServer};

pub use config::Config;

use crate::{
    edge::{ArrowFlight, PUT, Service},
    engine::{Engine, EngineConfig},
    head::HeadNode,
    members::Members,
};

/// While a head is not ready, it logs at this interval what it waits for: often enough for somebody who watches a start, and rarely
/// enough for a night.
const NOT_READY_EVERY: Duration = Duration::from_secs(5);

/// A head node that has started: it follows its shards and can serve.
pub struct Head {
    node: Arc<HeadNode>,
    config: Config,
}

impl Head {
    /// Starts a head: from here on it looks for its shards and follows their logs. Needs a Tokio runtime.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] if the discovery URL is not one.
    pub fn start(config: Config) -> Result<Self> {
        let shards = watch(&config.shards_url, "shards")?;
        let heads = config.heads_url.as_deref().map(|url| watch(url, "heads")).transpose()?;
        let members = Members::new(heads.map(|heads| heads.peers));
        let engine = Engine::start(
            EngineConfig {
                head_id: config.id.clone(),
                budget_bytes: config.cache_bytes,
                grace: config.grace,
            },
            shards,
        );
        Ok(Self { node: HeadNode::new(config.clone(), engine, members), config })
    }

    /// Resolves when the head follows the log of each shard, or has failed to reach it once. It may be awaited while the head serves.
    pub fn ready(&self) -> impl Future<Output = ()> + Send + 'static {
        let node = Arc::clone(&self.node);
        async move { node.engine().ready().await }
    }

    /// Serves on `listener` until `shutdown` resolves. Then it refuses new requests as retryable, and finishes the answers in flight, for
    /// at most the configured time.
    ///
    /// # Errors
    /// [`Code::Unavailable`] if the listener fails.
    pub fn serve(
        self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> BoxFuture<'static, Result<()>> {
        self.serve_until(listener, shutdown.boxed())
    }

    /// The work of [`Self::serve`]. Its types are fixed and its future is boxed here: so this crate compiles it, and not each program that
    /// polls it.
    fn serve_until(
        self,
        listener: TcpListener,
        shutdown: BoxFuture<'static, ()>,
    ) -> BoxFuture<'static, Result<()>> {
        async move {
            let Self { node, config } = self;
            let service = HeadServer::new(Service::new(node.clone()))
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(MESSAGE_BYTES_MAX);
            let routes = Routes::new(ArrowFlight::new(node.clone())).add_service(service);
            let ready = CancellationToken::new();
            let options = serve::Options {
                descriptor_sets: vec![DESCRIPTOR_SET],
                services: vec!["trellis.v1.Head".to_owned(), "arrow.flight.protocol.FlightService".to_owned()],
                endless: Vec::new(),
                large: vec![PUT.to_owned(), "/trellis.v1.Head/RecordRuns".to_owned()],
                ready: Some(ready.clone()),
                draining: CancellationToken::new(),
            };
            // It stays ready when it loses a shard later: it answers from memory, and the other heads have lost that shard, too.
            let following = {
                let engine = node.engine().clone();
                async move {
                    let tell = || tracing::warn!(waits_for = engine.waits_for(), "not ready: reads are refused");
                    until_ready(engine.ready(), tell).await;
                    ready.cancel();
                    std::future::pending::<()>().await;
                }
            };
            let shutdown = async move {
                shutdown.await;
                node.drain();
            };
            tracing::info!(head = config.id, shards = config.shards_url, addr = ?listener.local_addr().ok(), "serving");
            let served = tokio::select! {
                served = serve::serve(listener, routes, options, shutdown, config.drain) => served,
                () = following => unreachable!("it never ends"),
            };
            served.map(drop).map_err(|error| Error::new(Code::Unavailable, error.to_string()))
        }
        .boxed()
    }
}

/// The peers at `url`.
fn watch(url: &str, who: &str) -> Result<Watch> {
    discovery::watch(url, &discovery::Options::default()).map_err(|error| {
        Error::new(Code::InvalidRequest, format!("the {who} cannot be found: {error}"))
            .hint("give static://HOST:PORT,HOST:PORT, dns://NAME:PORT or cloudmap://NAMESPACE/SERVICE")
    })
}

/// Waits for `ready`, and calls `tell` every [`NOT_READY_EVERY`] meanwhile.
async fn until_ready(ready: impl Future<Output = ()>, mut tell: impl FnMut()) {
    let mut ready = std::pin::pin!(ready);
    while tokio::time::timeout(NOT_READY_EVERY, &mut ready).await.is_err() {
        tell();
    }
}

/// A whole head: starts it and serves until `shutdown` resolves. See [`Head`].
///
/// # Errors
/// Those of [`Head::start`] and [`Head::serve`].
pub async fn run(
    config: Config,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<()> {
    Head::start(config)?.serve(listener, shutdown).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_head_that_is_not_ready_says_so_again_and_again_until_it_is() {
        let told = std::cell::Cell::new(0);
        let ready = tokio::time::sleep(NOT_READY_EVERY * 4 - Duration::from_millis(1));
        until_ready(ready, || told.set(told.get() + 1)).await;
        assert_eq!(told.get(), 3);
        until_ready(std::future::ready(()), || panic!("it is ready")).await;
    }
}
