//! From what is wanted and what was seen to the next calls. Pure: the time is given, and calls are values.
//!
//! Nothing is remembered between two programs. What is wanted is in files, what is so is in AWS, and a service's name is its identity, so
//! a `fleet` that starts anew after a death finds out where the one before it stood.

mod answer;
mod choose;
mod engine;
mod outcome;
mod progress;
mod state;
mod step;
mod target;
#[cfg(test)]
mod tests;
mod touch;
mod waves;

pub use self::{
    choose::{Next, Ticket},
    engine::{Engine, Tally},
    outcome::Outcome,
    progress::{Progress, Row},
    step::{GRID_TAG, Name, Seen, Step, Wait, Wish, step},
    target::{Mode, Network, Selection, Target},
    waves::{FAILED_RATIO_MAX, Stop},
};
