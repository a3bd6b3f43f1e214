//! Who may take how much: the one memory budget of the head, and turns in the order of fairness between units.
//!
//! | file | subject |
//! | --- | --- |
//! | `memory` | gauges of everything in memory, reservations, room for answers |
//! | `fair` | a fair queue over units, and turns that are limited in bytes |

mod fair;
mod memory;

pub(crate) use fair::{Fair, FairQueue, Turn, TurnLimits, Verdict};
#[cfg(test)]
pub(crate) use memory::SLOT_BYTES;
pub(crate) use memory::{Memory, OpenRequest, Reservation};
