//! The plan: every service as it should be, what changes, what it costs, and what cannot be. Pure.

mod again;
mod make;
mod price;
#[cfg(test)]
mod tests;
mod text;
mod types;
mod why;

pub use self::{
    again::{Run, STARTED_BY, again},
    make::{plan, plan_with},
    price::{Month, Prices, prices},
    types::{Calls, Change, ChangeKind, Plan, Price},
    why::{Explanation, Filling, explain},
};
