//! What a process of the grid needs before its own work starts.
//!
//! It is: configuration from the environment, telemetry, discovery of peers, channels to them, a gRPC server
//! around given services, and an orderly end. It is not: anything that knows a series, a dataset or a unit's
//! work. Every outside crate with an operational surface (hickory, OpenTelemetry and its exporters) is reached
//! through here only.
//!
//! | file | subject |
//! | --- | --- |
//! | [`env`] | typed variables, all problems reported at once; `env/cli.rs`: `--help`, `--check`, `--version` |
//! | [`telemetry`] | logs to stderr, OTLP push; `telemetry/export.rs`: bounded queues with counted drops; `telemetry/ecs.rs`: who this task is; `telemetry/context.rs`: W3C context in and out |
//! | [`discovery`] | a watch of the current peers; `discovery/url.rs` and `discovery/plan.rs` are pure; `discovery/dns.rs` asks |
//! | [`channel`] | tuned client channels, a small pool per peer, trace context on every call |
//! | [`serve`] | a tonic server from a bound listener until a signal; `serve/request.rs`: what wraps each request; `serve/conn.rs`: connections that can be cut |
//! | [`shutdown`] | the signal, and a gate that knows who is still inside |
//! | `testing` | (feature `testing`) an OTLP receiver that keeps what it got |
//!
//! Order in a `main`: [`env::cli`], the service's own config, [`telemetry::Telemetry::init`] inside the Tokio
//! runtime, bind, [`serve::serve`] with [`shutdown::signal`], [`telemetry::Telemetry::shutdown`].

pub mod channel;
pub mod discovery;
pub mod env;
mod rpc;
pub mod serve;
pub mod shutdown;
pub mod telemetry;
#[cfg(feature = "testing")]
pub mod testing;
