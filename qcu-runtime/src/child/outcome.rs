//! The end of an attempt in the child, its limits and its use.

use std::{io, time::Duration};

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;

use super::protocol::Raised;

/// Every way in which an attempt in the child can end.
#[derive(Debug)]
pub enum Outcome {
    /// The strategy returned a table. It fits the protocol; nobody has checked yet whether it fits the unit.
    Returned(Returned),
    /// The strategy (or its import) raised.
    Raised(Raised),
    /// The process ended by itself without an answer.
    Exited {
        /// Its exit code.
        code: i32,
    },
    /// A signal that the supervisor did not send ended the process.
    Killed {
        /// Its number.
        signal: i32,
    },
    /// The child did not reply in time.
    TimedOut {
        /// The limit.
        after: Duration,
    },
    /// The child used more memory than allowed.
    OutOfMemory {
        /// The memory that it had.
        bytes: u64,
        /// The memory that it was allowed.
        limit: u64,
    },
    /// The child broke the protocol.
    Protocol {
        /// How.
        violation: String,
    },
    /// The operating system failed: no process, no descriptor.
    System {
        /// Its error.
        error: io::Error,
    },
}

/// A table that a strategy returned. The batches keep its memory mapped.
#[derive(Debug, Clone)]
pub struct Returned {
    /// The schema of the batches.
    pub schema: SchemaRef,
    /// The rows.
    pub batches: Vec<RecordBatch>,
}

/// The limits of one attempt.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Longest time from the request to the reply.
    pub time: Duration,
    /// Most anonymous memory.
    pub memory_bytes: u64,
}

/// What one attempt used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processor time in the strategy, microseconds.
    pub user_us: u64,
    /// Processor time in the kernel for it, microseconds.
    pub system_us: u64,
    /// Largest resident memory seen.
    pub rss_max_bytes: u64,
}

/// The end of an attempt.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub outcome: Outcome,
    /// What it used.
    pub usage: Usage,
    /// The last lines that it printed, for the error of a crash.
    pub tail: Vec<String>,
    /// Lines that were not recorded because there were too many.
    pub lines_dropped: u64,
    /// Whether the child took the request. If not, it had ended before it read it.
    pub taken: bool,
}

impl Outcome {
    /// Whether another attempt may end differently. After a result, a broken protocol or too much memory it does not.
    #[must_use]
    pub fn retryable(&self) -> bool {
        match self {
            Self::Raised(raised) => raised.class != "MemoryError",
            Self::Exited { .. } | Self::Killed { .. } | Self::TimedOut { .. } | Self::System { .. } => true,
            Self::Returned(_) | Self::OutOfMemory { .. } | Self::Protocol { .. } => false,
        }
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Returned(_) => write!(f, "returned"),
            Self::Raised(raised) => write!(f, "raised {}: {}", raised.class, raised.message),
            Self::Exited { code } => write!(f, "ended the process with exit code {code}"),
            Self::Killed { signal } => write!(f, "was ended by {}", signal_name(*signal)),
            Self::TimedOut { after } => write!(f, "did not return within {after:?}"),
            Self::OutOfMemory { bytes, limit } => {
                write!(f, "used {} MiB of memory; {} MiB are allowed", bytes >> 20, limit >> 20)
            }
            Self::Protocol { violation } => write!(f, "broke the child protocol: {violation}"),
            Self::System { error } => write!(f, "could not be run: {error}"),
        }
    }
}

fn signal_name(signal: i32) -> String {
    let name = match signal {
        libc::SIGSEGV => "SIGSEGV, a crash in native code",
        libc::SIGABRT => "SIGABRT, an abort in native code",
        libc::SIGBUS => "SIGBUS, a crash in native code",
        libc::SIGILL => "SIGILL, an instruction this processor does not have",
        libc::SIGFPE => "SIGFPE, an arithmetic trap",
        libc::SIGKILL => "SIGKILL, perhaps the kernel's out-of-memory killer",
        libc::SIGTERM => "SIGTERM",
        _ => return format!("signal {signal}"),
    };
    name.to_owned()
}
