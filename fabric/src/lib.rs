//! What a process of the grid needs before its own work starts.
//!
//! This crate has configuration from the environment, telemetry, discovery of peers, channels to them, a gRPC server around given
//! services, and an orderly end. It knows no series, no dataset and no unit's work. Every outside crate
//! with an operational surface (hickory, OpenTelemetry and its exporters) is reached through this crate only.
//!
//! | room or file | subject |
//! | --- | --- |
//! | [`mod@env`] | typed variables, all problems told at once; `--help`, `--check`, `--probe`, `--probe-ready`, `--version` |
//! | [`telemetry`] | logs to stderr, traces, metrics and logs pushed by OTLP |
//! | [`discovery`] | a watch of the current peers |
//! | [`channel`] | tuned client channels, a small pool for each peer |
//! | [`serve`] | a tonic server from a bound listener until a signal |
//! | [`retry`] | pauses between attempts, with jitter |
//! | [`single`] | one call for all who have the same question at the same time |
//! | [`clock`] | the time of day |
//! | [`alloc`] | the allocators |
//! | `aws` | signed calls of an AWS API |
//! | [`objects`] | objects in S3 by their URL: read, put |
//! | [`bound`] | a bound that is reached: a metric and a line |
//! | [`process`] | the one shape of every `main` |
//! | `probe` | `--probe` and `--probe-ready`: whether the server of this container lives, and whether it is ready |
//! | [`shutdown`] | the signal that ends a process |
//! | `task` | which ECS task this is |
//! | `gate` | knows which requests still run |
//! | `rpc` | the span and the duration of one RPC, at either end |
//! | `connector` | connections of channels and of exports, of one type |
//! | `coalesce` | small writes of a connection, sent as one |
//! | `testing` (feature `testing`) | an OTLP receiver that keeps what it got |

pub mod alloc;
mod aws;
pub mod bound;
pub mod channel;
pub mod clock;
mod coalesce;
mod connector;
pub mod discovery;
pub mod env;
mod gate;
pub mod objects;
mod probe;
pub mod process;
pub mod retry;
mod rpc;
pub mod serve;
pub mod shutdown;
pub mod single;
mod task;
pub mod telemetry;
#[cfg(feature = "testing")]
pub mod testing;
