//! The client of a grid: finds the heads, splits a request over them, merges the answers, tries again elsewhere.
//!
//! Two times bound every call: [`ClientOptions::attempt`] bounds one attempt, [`ClientOptions::deadline`] all of them together.
//! The client repeats a call only if the error may pass ([`trellis_proto::Error::retryable`]). A read changes nothing, and a publish
//! carries its run id, so the client may send both twice. A caller may drop every future at any point; a publish whose
//! future was dropped may or may not have happened.
//!
//! | file | subject |
//! | --- | --- |
//! | `options` | how a client behaves |
//! | `grid` | [`Client`]: connecting, and one question that goes from head to head |
//! | `read` | one read: split by symbol, asked of the heads of its dataset, merged |
//! | `calls` | every other question: descriptions, leases, publishes, dataset changes, the ledger |
//! | `spreads` | how many heads serve a dataset, as far as the client knows |
//! | `heads` | the heads that the client knows, their connections, the retry loop |
//! | `map` | whether these are all heads of a head's map, or those that discovery finds; pure |
//! | `failure` | failures of a call as the grid's errors |
//! | `get`, `deframe` | one read on one head; the receive loop |
//! | `put` | one publish on one head |
//! | `merge`, `answer` | the answers of several heads as one; pure |

mod answer;
mod calls;
mod deframe;
mod failure;
mod get;
mod grid;
mod heads;
mod map;
mod merge;
mod options;
mod put;
mod read;
mod spreads;

pub use answer::Answer;
pub use grid::Client;
pub use options::{ClientOptions, Ended};

/// Answers in the form in which heads send them, for the tests of other rooms.
#[cfg(test)]
pub(crate) mod testing {
    pub(crate) use super::merge::tests::{Row, part};
}
