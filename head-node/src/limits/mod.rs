//! The limits of the head: one memory budget for everything, and turns that units share fairly.
//!
//! | file | subject |
//! | --- | --- |
//! | `memory` | gauges of everything in memory, reservations, room for answers |
//! | `fair` | a fair queue over units, and turns limited in bytes |

mod fair;
mod memory;

pub(crate) use fair::{Fair, FairQueue, Turn, TurnLimits, Verdict};
#[cfg(test)]
pub(crate) use memory::SLOT_BYTES;
pub(crate) use memory::{Memory, OpenRequest, Reservation};
