//! The read path: which rows a head's ranges ask for, read in waves of bounded size, cut at chunk boundaries and framed. And
//! the rows of a dataset that hold now, which publishes and the list of sessions ask for.
//!
//! | file | subject |
//! | --- | --- |
//! | `chunks` | a call from its ranges to its answers |
//! | `plan` | the ranges as waves of bounded size |
//! | `read` | the rows of a wave, out of the files |
//! | `cut` | the rows of a wave as messages |
//! | `live` | the rows that hold now |

mod chunks;
mod cut;
mod live;
mod plan;
mod read;

pub(crate) use self::{
    chunks::{Untaken, read_chunks},
    cut::{failed, refused},
    live::{Key, Newest, Retractable, file_touches, sessions},
    plan::{CHUNKS_MAX, RangeRequest},
};
