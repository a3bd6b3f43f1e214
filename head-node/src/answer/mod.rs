//! An answer's content: which rows a request gets, and the bytes that carry them. Pure: no task, no clock, no I/O.
//!
//! | file | subject |
//! | --- | --- |
//! | `column` | the columns of a chunk, as Arrow lays them out |
//! | `plan` | a request checked against its dataset: fields, symbols, range, size |
//! | `slice` | the exact cut of one chunk, by event time and by knowledge time |
//! | `frame` | rows of many chunks as Arrow IPC messages, in Flight, in gRPC |

mod column;
mod frame;
mod plan;
mod slice;

pub(crate) use column::{Column, KnownAt, Values};
pub(crate) use frame::{Framer, LAST_MESSAGE_BYTES, MESSAGE_BYTES, PROBE_BYTES, Shape, Source};
pub(crate) use plan::{
    AnswerLimits, Facts, Plan, STEP_BYTES, Step, field_positions, too_many_bytes, too_many_rows,
};
pub(crate) use slice::Window;
