//! What a process of the grid needs before its own work starts.
//!
//! It is: configuration from the environment, telemetry, discovery of peers, channels to them, a gRPC server
//! around given services, and an orderly end. It is not: anything that knows a series, a dataset or a unit's
//! work. Every outside crate with an operational surface (hickory, OpenTelemetry and its exporters) is
//! reached through here only.
//!
//! * [`mod@env`]: typed variables, all problems told at once. `cli.rs`: `--help`, `--check`, `--version`;
//!   `size.rs`: `512MiB`
//! * [`telemetry`]: logs to stderr, OTLP push. `settings.rs`: the standard variables (pure); `export.rs`: bounded
//!   queues, counted losses; `ecs.rs`: which task this is; `context.rs`: W3C context in and out
//! * [`discovery`]: a watch of the current peers. `url.rs` and `plan.rs` decide (pure), `dns.rs` asks
//! * [`channel`]: tuned client channels, a small pool per peer. `traced.rs`: what goes with every call, and how losses
//!   are told; `failure.rs`: why a peer cannot be reached
//! * [`serve`]: a tonic server from a bound listener until a signal. `request.rs`: what wraps each request; `conn.rs`:
//!   connections that can be cut
//! * `coalesce`: small writes of a connection, as one; `rpc`: the span of one RPC, at either end; [`alloc`]: the allocator
//! * [`shutdown`]: the signal, and a gate that knows who is still inside
//! * `testing` (feature `testing`): an OTLP receiver that keeps what it got
//!
//! Order in a `main`: [`env::cli`], the service's own config, [`telemetry::Telemetry::init`] inside the Tokio
//! runtime, bind, [`serve::serve`] with [`shutdown::signal`], [`telemetry::Telemetry::shutdown`].

pub mod alloc;
pub mod channel;
mod coalesce;
pub mod discovery;
pub mod env;
mod rpc;
pub mod serve;
pub mod shutdown;
pub mod telemetry;
#[cfg(feature = "testing")]
pub mod testing;
