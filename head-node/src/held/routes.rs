//! Which shard owns which chunks of a series.

use std::{ops::Range, sync::Arc};

use trellis_proto::{Code, Error};

use super::{
    datasets::Table,
    series::{Route, Series},
};
use crate::shards::Shards;

/// Why a series has no routes.
#[derive(Debug)]
pub(crate) enum Unrouted {
    /// An owner has not described the dataset, which may be new: the head can ask for a description.
    Undescribed(Error),
    Error(Error),
}

/// The routes of a series: which shard is asked for which chunks, in order. Kept with the series until the ownership map changes.
///
/// # Errors
/// [`Code::Unavailable`] while there is no valid map, while a part of the series has no owner that has been found, or while an owner has
/// not described the dataset; [`Code::Conflict`] if the shards divide a chunk.
pub(crate) fn routes_of(shards: &Shards, table: &Table, series: &Series) -> Result<Arc<[Route]>, Unrouted> {
    let ownership = shards.ownership();
    if let Some(routes) = series.routes_at(ownership.epoch) {
        return Ok(routes);
    }
    let owners = shards.owners(&ownership, &table.name, &series.symbol).map_err(Unrouted::Error)?;
    let span = table.spec.chunk;
    let mut routes = Vec::with_capacity(owners.len());
    for (range, shard) in owners {
        let aligned = |t: i64| span.start(span.chunk_of(t)) == t;
        if !range.start.is_none_or(aligned) || !range.end.is_none_or(aligned) {
            let message =
                format!("the part of shard {shard} begins or ends inside a chunk of {}", table.name);
            return Err(Unrouted::Error(
                Error::new(Code::Conflict, message).dataset(&table.name).shard(shard),
            ));
        }
        let part = table.part(shard).ok_or_else(|| {
            let message = format!("shard {shard} does not know {} yet", table.name);
            Unrouted::Undescribed(Error::new(Code::Unavailable, message).dataset(&table.name).shard(shard))
        })?;
        let start = range.start.map_or(i64::MIN, |t| span.chunk_of(t));
        let end = range.end.map_or(i64::MAX, |t| span.chunk_of(t));
        routes.push(Route { chunks: start..end, part });
    }
    let routes: Arc<[Route]> = routes.into();
    series.keep_routes(ownership.epoch, &routes);
    Ok(routes)
}

/// The chunks of a series that a shard owns.
///
/// # Errors
/// Those of [`routes_of`].
pub(crate) fn chunks_owned(
    shards: &Shards,
    table: &Table,
    series: &Series,
    shard: &str,
) -> Result<Vec<Range<i64>>, Unrouted> {
    let routes = routes_of(shards, table, series)?;
    let owned = routes.iter().filter(|route| *route.part.shard.id == *shard);
    Ok(owned.map(|route| route.chunks.clone()).collect())
}
