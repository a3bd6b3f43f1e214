//! The data that the head holds: chunks, claims on the missing ones, and the shards' description of each dataset.
//!
//! | file | subject |
//! | --- | --- |
//! | `claims` | pure: which chunks of one series are ready, in flight, or waited for; here each is fetched only once |
//! | `chunk` | the rows of one chunk, in one allocation |
//! | `waiter` | waking a reader when its stakes are settled |
//! | `asked` | the ranges of one series that were ever asked for |
//! | `part` | one shard's part of one dataset, and how far it is known |
//! | `series` | one series: its claim map under its lock, and its routes |
//! | `symbols` | the symbols of one dataset, as each shard lists its own |
//! | `datasets` | one dataset: its series, its parts, its symbols, its counters |
//! | `tables` | the datasets by name, as their shards describe them |
//! | `routes` | which shard owns which chunks of a series |
//! | `cache` | the order of use of all slots, and eviction |
//! | `holdings` | the datasets that the head follows, the memory, the cache, and carrying out the effects of a claim map |

mod asked;
mod cache;
mod chunk;
mod claims;
mod datasets;
mod holdings;
mod part;
mod routes;
mod series;
mod symbols;
mod tables;
mod waiter;

pub(crate) use chunk::{ChangeRows, Chunk, RunShape, Stamp, decode, retractions};
pub(crate) use claims::{
    ChunkOutcome, Claim, ClaimPlan, ColumnSet, Event, FlightId, Payload, Standing, Taken, Token, Want,
};
#[cfg(test)]
pub(crate) use claims::{ISLAND_ROWS_MAX, model};
pub(crate) use datasets::{Dataset, Table};
pub(crate) use holdings::Holdings;
pub(crate) use part::Part;
pub(crate) use routes::{Unrouted, chunks_owned, routes_of};
pub(crate) use series::{Route, Series, SeriesEffects};
pub(crate) use tables::Tables;
pub(crate) use waiter::Waiter;
