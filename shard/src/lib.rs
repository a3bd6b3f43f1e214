//! A shard: serves whole chunks of the datasets in a lake, tells heads what changed, and commits what is published.
//!
//! It is not a query engine: it answers in whole chunks, with every known version of every row, and leaves cutting, `as_of`
//! and caching to the head nodes. It owns a part of the symbols for reading, and is *home* to some datasets for writing; the
//! lake itself is shared by all shards, and any tool that reads Delta Lake reads it.
//!
//! A folder is a room: one subject, and one door, `mod.rs`. The rooms are layers; each uses only those below it in this table.
//!
//! | room or file | subject |
//! | --- | --- |
//! | `edge` | gRPC in |
//! | `upkeep` | what a shard does unasked: polls, merges files, writes checkpoints, removes old files |
//! | `scrub` | compares the lake's bytes with their checksums |
//! | `shard` | the calls of a shard, in the grid's own types |
//! | `write` | one commit: publishes, leases, changes of a dataset, the run ledger |
//! | `scan` | the read path |
//! | `catalog` | the datasets of the lake, and which of their tables are open |
//! | `table` | a dataset as it is now, and its log |
//! | `watch_log` | the log of changes, and who follows it |
//! | `files` | bytes at rest: the store, Parquet files, the lake's columns |
//! | `budget` | the memory for work on files |
//! | [`config`] | the settings of a shard, and its limits |
//! | `ownership` | the regions that this shard answers for |
//! | `metrics` | every instrument of the shard |
//! | `wire` | Arrow messages |
//! | `clock` | the time of day |
//! | `error` | the errors of libraries as errors of the grid |
//! | [`import`] | rows out of CSV and Parquet files; uses of other rooms only what a row and a chunk may be |
//! | `simulation` | tests: two shards in a hostile, deterministic world |

pub mod config;
pub mod import;

mod budget;
mod catalog;
mod clock;
mod edge;
mod error;
mod files;
mod metrics;
mod ownership;
mod scan;
mod scrub;
mod shard;
#[cfg(test)]
mod simulation;
mod table;
#[cfg(test)]
mod testing;
mod upkeep;
mod watch_log;
mod wire;
mod write;

use std::{future::Future, time::Duration};

use futures::{FutureExt as _, future::BoxFuture};
use tokio::net::TcpListener;
use trellis_fabric::{channel::MESSAGE_BYTES_MAX, serve};
use trellis_proto::{Code, Error, Result, pb::shard_server::ShardServer};

pub use config::Config;
pub use scrub::{Report, check_lake};

/// Full name of the service, as health and reflection list it.
const SERVICE: &str = "trellis.v1.Shard";
/// How long a shard that stops waits for the Delta kernel's calls. A checkpoint that is cut short is written after the next start.
const SETTLE_WAIT: Duration = Duration::from_secs(3);

/// Opens the lake, then serves until `shutdown` resolves, then finishes the calls in flight, for at most `config.drain`.
///
/// The caller has bound the listener, so that its address is known. Calls wait in its backlog until the lake is open.
///
/// Not cancel safe: a dropped `run` does not end open connections.
///
/// # Errors
/// A configuration that makes no sense, a lake that cannot be listed, or a listener that fails.
pub async fn run(
    config: Config,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<()> {
    run_and(config, listener, shutdown, || {}).await
}

/// Like [`run`], but calls `ready` once, when the lake is open and the shard begins to answer.
///
/// # Errors
/// Those of [`run`].
pub fn run_and(
    config: Config,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send + 'static,
    ready: impl FnOnce() + Send + 'static,
) -> BoxFuture<'static, Result<()>> {
    run_until(config, listener, shutdown.boxed(), Box::new(ready))
}

/// The work of [`run_and`]. Its types are fixed and its future is boxed here: so this crate compiles it, and not each program that
/// polls it.
fn run_until(
    config: Config,
    listener: TcpListener,
    shutdown: BoxFuture<'static, ()>,
    ready: Box<dyn FnOnce() + Send>,
) -> BoxFuture<'static, Result<()>> {
    async move {
        let drain = config.drain;
        let shard = shard::Shard::open(config).await?;
        let upkeep = upkeep::Upkeep::start(shard.clone());
        let server = ShardServer::new(edge::Service::new(shard.clone()))
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let options = serve::Options {
            descriptor_sets: vec![trellis_proto::DESCRIPTOR_SET],
            services: vec![SERVICE.to_owned()],
            endless: vec![format!("/{SERVICE}/Watch")],
            large: ["Publish", "Fetch", "Confirm", "RecordRuns"]
                .map(|call| format!("/{SERVICE}/{call}"))
                .to_vec(),
            ..serve::Options::default()
        };
        let mut routes = tonic::service::Routes::builder();
        routes.add_service(server);
        ready();
        let drained = serve::serve(listener, routes.routes(), options, shutdown, drain)
            .await
            .map_err(|e| Error::new(Code::Unavailable, e.to_string()));
        upkeep.stop().await;
        if tokio::time::timeout(SETTLE_WAIT, shard.catalog.lake.settle()).await.is_err() {
            tracing::warn!("the Delta kernel is still reading or writing a table's log at the end");
        }
        let drained = drained?;
        if !drained.late.is_empty() {
            tracing::warn!(late = ?drained.late, "calls were cut at the end of the drain");
        }
        Ok(())
    }
    .boxed()
}
