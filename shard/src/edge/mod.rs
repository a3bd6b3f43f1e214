//! gRPC in: wire types become the grid's own types, and answers become wire types again. The shard decides.
//!
//! | file | subject |
//! | --- | --- |
//! | `service` | the calls of `trellis.v1.Shard` |
//! | `receive` | receiving a publish |
//! | `watch` | the stream of one watcher |

mod receive;
mod service;
mod watch;

pub(crate) use self::service::Service;
