//! The Python process that runs a strategy: how it is started and supervised, and the protocol that `qcu` speaks with it.
//!
//! The supervisor hands a run to the child and reports every way in which the child can end. `protocol` is the contract of both
//! sides; its Python side is `trellis/_child.py`.
//!
//! | file | subject |
//! | --- | --- |
//! | `supervisor` | [`Child`]: starts, loads the strategy, and runs it until its limit of time or of memory |
//! | `outcome` | every way in which an attempt can end, its limits and its use |
//! | `process` | one process: its end, its group, its memory and processor time |
//! | `spawn` | exec of the interpreter, always from the same thread |
//! | `logs` | stdout and stderr, line by line |
//! | `ipc` | packets with descriptors, tables in sealed memfds |
//! | `protocol` | the packets, as types |

mod ipc;
mod logs;
mod outcome;
mod process;
mod protocol;
mod spawn;
mod supervisor;

pub use ipc::{read_table, write_table};
pub use outcome::{Finished, Limits, Outcome, Returned, Usage};
pub(crate) use protocol::{CHILD_MODULE, InputHeader, receipt_json};
pub use protocol::{Done, Progress, ProgressOp, Raised, Reply, Request};
pub use spawn::ChildCommand;
pub use supervisor::Child;
