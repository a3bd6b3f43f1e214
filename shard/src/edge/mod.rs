//! gRPC in: wire types become the grid's own types, and answers become wire types again. The shard decides.
//!
//! | file | subject |
//! | --- | --- |
//! | `service` | the calls of `trellis.v1.Shard` |
//! | `receive`, `pending` | receiving a publish; the bytes of all publishes in memory |
//! | `watch` | the stream of one watcher |

mod pending;
mod receive;
mod service;
mod watch;

pub(crate) use self::service::Service;
