//! One run of a unit for one session: it reads the inputs, has the child compute, checks the result, publishes it under the
//! unit's lease, and records the attempt in the ledger. A notebook runs the same steps in its own process.
//!
//! | file | subject |
//! | --- | --- |
//! | `runner` | `Runner`: the attempts of a run, step by step |
//! | `prefetch` | the inputs, read at one knowledge time; the identity of a run |
//! | `digest` | a digest of rows; pure |
//! | `lease` | the right to publish: taken, renewed, lost, given back |
//! | `ledger` | records of attempts |
//! | `report` | how a run ended |
//! | `status` | what a unit says of itself while it works |
//! | `identity` | names of processes and attempts |

mod digest;
mod identity;
mod lease;
mod ledger;
mod prefetch;
mod report;
mod runner;
mod status;

pub use identity::{attempt_id, beside, new_instance};
pub(crate) use lease::{HeldLease, LeaseRequest, TTL};
pub use prefetch::{Input, Prefetched, prefetch, run_id};
pub(crate) use report::Report;
pub use runner::Unit;
pub(crate) use runner::{RETRY_MIN, Runner};
pub(crate) use status::{Status, StatusSink, first_line, utc_seconds};
