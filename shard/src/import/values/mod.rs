//! What the text of a cell means: times, numbers and words, the values of the types, and what all cells of a column have in common.
//!
//! | file | subject |
//! | --- | --- |
//! | `unit` | units of times that are numbers |
//! | `clock` | times to nanoseconds |
//! | `number` | numbers as people write them |
//! | `cell` | the text of a cell as a value of a type |
//! | `stamps` | in which forms the times of a column are written |
//! | `seen` | what the cells of a column look like |

mod cell;
mod clock;
mod number;
mod seen;
mod stamps;
mod unit;

pub(crate) use self::{
    cell::{BEYOND_32, Cell, Example, NOT_HELD, Reading, Wanted, float32, float64, missing},
    clock::{Clock, Count, DateZone, Form, ISO, OUTSIDE, Reason, Stamp, When, Zone, iso},
    number::{BEYOND, Forms, Marks, Notation, Signs, mark, whole},
    seen::{Seen, Trouble, Verdict},
    stamps::{Dates, Stamps, told},
};
pub use self::{number::NumberSign, unit::TsUnit};
