//! A deployed unit as it is declared: its manifest, when it is due, what it reads, and what it may publish.
//!
//! Everything here is pure, but for the one function that reads the manifest's file.
//!
//! | file | subject |
//! | --- | --- |
//! | `manifest` | the unit's JSON file, checked |
//! | `calendar` | sessions of exchanges |
//! | `new_york` | the rules of the New York Stock Exchange |
//! | `schedule` | which session is due |
//! | `inputs` | from a session and declared inputs to requests |
//! | `output` | a strategy's result, checked against the declaration |
//! | `lossless` | a column in another type, every value unchanged |

mod calendar;
mod inputs;
mod lossless;
mod manifest;
mod new_york;
mod output;
mod schedule;

pub use calendar::{Calendar, Session, date_of, midnight_ns, parse_session};
pub use inputs::{Window, plan};
pub use lossless::{decimals_to_numbers, is_decimal, times_to_ns};
pub(crate) use manifest::INPUTS_MAX;
pub use manifest::{
    AsOf, Bytes, Columns, InputSpec, Lookback, Manifest, OutputSpec, Schedule, Star, SymbolsSpec, Upstream,
};
pub use output::check_output;
pub(crate) use schedule::{
    Coverage, Due, Published, ScheduleFacts, catch_up_from, due, late_input, named_is_ready,
};
