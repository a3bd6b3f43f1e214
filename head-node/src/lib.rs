//! A head node: answers reads of time series, from its cache where it can, from the shards where it must, and relays
//! publishes to the shards that commit them.
//!
//! It is not a store: it keeps nothing that a shard does not have, and it decides nothing about what may be published.
//!
//! The life of a read, file by file:
//!
//! | step | file |
//! | --- | --- |
//! | a request arrives, over Arrow Flight | [`flight_service`]; `DoGet` in [`doget`] |
//! | it is checked against what the dataset has, and limited | [`plan`] (pure) |
//! | its chunks are taken, joined or claimed | [`engine`] and the files it names |
//! | they are cut by event time and knowledge time | [`slice`] (pure) |
//! | each message waits for room and for its unit's turn | [`fair`], `memory` |
//! | and is framed as Arrow IPC in Flight in gRPC, as the client takes them | [`frame`] (pure), `doget/pump.rs` |
//! | what it cost is counted | [`stats`], [`metrics`] |
//!
//! Beside it: [`put`] relays a publish, [`ledger`] records each write, [`service`] answers what is not about rows, [`head`] is
//! what all of these share, [`config`] what a head is told, [`error`] how errors look at the edge.

mod cache;
mod changes;
mod chunk;
mod claims;
pub mod config;
mod datasets;
mod doget;
pub mod engine;
mod error;
mod fair;
mod fetch;
mod flight;
mod flight_service;
mod frame;
mod head;
mod ledger;
mod memory;
mod metrics;
mod plan;
mod put;
mod reading;
mod series;
mod service;
mod shards;
mod slice;
mod state;
mod stats;
mod union;
mod watch;

use std::sync::Arc;

use tokio::net::TcpListener;
use tonic::service::Routes;
use trellis_fabric::{
    channel::MESSAGE_BYTES_MAX,
    discovery,
    serve::{self, CancellationToken},
};
use trellis_proto::{Code, DESCRIPTOR_SET, Error, Result, pb::head_server::HeadServer};

pub use config::Config;

use crate::{
    engine::{Engine, EngineConfig},
    flight_service::Flight,
    head::HeadNode,
    service::Service,
};

/// A head node that has started: it watches its shards and can serve.
pub struct Head {
    node: Arc<HeadNode>,
    config: Config,
}

impl Head {
    /// Starts a head: from here on it looks for its shards and follows what they tell. Needs a Tokio runtime.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] if the discovery URL is not one.
    pub fn start(config: Config) -> Result<Self> {
        let shards =
            discovery::watch(&config.shards_url, &discovery::Options::default()).map_err(|error| {
                Error::new(Code::InvalidRequest, format!("the shards cannot be found: {error}"))
                    .hint("give static://HOST:PORT,HOST:PORT or dns://NAME:PORT")
            })?;
        let engine = Engine::start(
            EngineConfig {
                head_id: config.id.clone(),
                budget_bytes: config.cache_bytes,
                grace: config.grace,
            },
            shards,
        );
        Ok(Self { node: HeadNode::new(config.clone(), engine), config })
    }

    /// Resolves when the head knows all of its shards and what they have. It may be awaited while the head serves.
    pub fn ready(&self) -> impl Future<Output = ()> + Send + 'static {
        let node = Arc::clone(&self.node);
        async move { node.engine().ready().await }
    }

    /// Serves on `listener` until `shutdown` resolves; then answers in flight may finish, for at most the
    /// configured time, and new requests are refused as retryable.
    ///
    /// # Errors
    /// A listener that fails.
    pub async fn serve(self, listener: TcpListener, shutdown: impl Future<Output = ()>) -> Result<()> {
        let Self { node, config } = self;
        let service = HeadServer::new(Service::new(node.clone()))
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let routes = Routes::new(Flight::new(node.clone())).add_service(service);
        let options = serve::Options {
            descriptor_sets: vec![DESCRIPTOR_SET],
            services: vec!["trellis.v1.Head".to_owned(), "arrow.flight.protocol.FlightService".to_owned()],
            endless: Vec::new(),
            draining: CancellationToken::new(),
        };
        let shutdown = async {
            shutdown.await;
            node.drain();
        };
        tracing::info!(head = config.id, shards = config.shards_url, addr = ?listener.local_addr().ok(), "serving");
        serve::serve(listener, routes, options, shutdown, config.drain)
            .await
            .map(drop)
            .map_err(|error| Error::new(Code::Unavailable, error.to_string()))
    }
}

/// A whole head: starts it and serves until `shutdown` resolves. See [`Head`].
///
/// # Errors
/// As [`Head::start`] and [`Head::serve`].
pub async fn run(config: Config, listener: TcpListener, shutdown: impl Future<Output = ()>) -> Result<()> {
    Head::start(config)?.serve(listener, shutdown).await
}
