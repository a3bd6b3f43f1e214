//! The engine answers the services: it reads chunks, lists datasets and symbols, and finds the home shard of a write.
//!
//! | file | subject |
//! | --- | --- |
//! | `facade` | [`Engine`]: the methods that the services call |
//! | `reading` | one read: chunks are taken, joined or claimed, and waited for |
//! | `fetch` | the queue of claims of each shard, and the calls that fetch them |
//! | `traces` | the traces of flights; [`crate::held`] has the flights themselves, in its claim maps |
//! | `describe` | asking every shard which datasets it has |
//! | `waits` | how long reads wait in the queues of the head |
//! | `core` | the parts that make an engine |

mod core;
mod describe;
mod facade;
mod fetch;
mod reading;
mod traces;
mod waits;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;

pub(crate) use facade::{Engine, EngineConfig};
pub(crate) use reading::{ReadQuery, Reading, SeriesChunks};
pub(crate) use waits::WaitQueue;
