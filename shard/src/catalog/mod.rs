//! The datasets of the lake: which there are, and which of their tables are open.
//!
//! | file | subject |
//! | --- | --- |
//! | `catalog` | the datasets by name |
//! | `opened` | which tables stay open |
//! | `left` | the descriptions that a shard leaves for its next life |

#[expect(clippy::module_inception, reason = "the room is named after its main type")]
mod catalog;
mod left;
mod opened;

pub(crate) use self::catalog::{Catalog, Turn};
