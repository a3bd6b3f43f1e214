//! A shard: serves whole chunks of the datasets in a lake, and commits what is published to them.

pub mod config;
pub mod import;

pub use config::Config;

use std::future::Future;

use tokio::net::TcpListener;
use trellis_proto::Result;

/// Serves until `shutdown` resolves, then finishes the calls in flight, for at most `config.drain`.
///
/// # Errors
/// A lake that cannot be opened, or a listener that fails.
pub async fn run(
    config: Config,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<()> {
    tracing::info!(shard = config.id, lake = %config.lake, addr = ?listener.local_addr().ok(), "starting");
    shutdown.await;
    Ok(())
}
