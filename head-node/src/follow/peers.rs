//! One task for each peer that discovery names.
//!
//! The task asks which shard is at the peer, follows the shard's log ([`super::watch`]), and starts again when the connection is lost.
//! The first attempt after a loss is immediate, and readers wait for it. When it fails the shard is away, and reads that need it fail
//! at once.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;
use trellis_fabric::{
    channel::{ChannelOptions, Pool},
    discovery::{Doubt, Peer, Watch},
    retry::Pauses,
};
use trellis_proto::{Code, Error, Result};

use super::{follower::Follower, watch::Position};
use crate::shards::{Link, Shard};

/// First pause after a failed attempt to reach a shard; it doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(50);
/// Longest pause: a shard that comes back is found within this time.
const RETRY_MAX: Duration = Duration::from_secs(2);

/// Keeps one task for each peer, until `stop`.
pub(crate) async fn follow_peers(follower: Arc<Follower>, watch: Watch, stop: CancellationToken) {
    let Watch { mut peers, doubt, .. } = watch;
    let channels = ChannelOptions::of_unit(follower.head_id.as_str());
    let mut running: HashMap<Peer, CancellationToken> = HashMap::new();
    loop {
        let now = Arc::clone(&peers.borrow_and_update());
        running.retain(|peer, stop| {
            let stays = now.contains(peer);
            if !stays {
                tracing::info!(%peer, "a shard has left the peers");
                stop.cancel();
            }
            stays
        });
        for peer in now.iter() {
            running.entry(peer.clone()).or_insert_with(|| {
                follower.shards.trying(&peer.addr);
                let stop = stop.child_token();
                let (follower, channels, doubt) = (Arc::clone(&follower), channels.clone(), doubt.clone());
                tokio::spawn(follow_peer(follower, channels, doubt, peer.clone(), stop.clone()));
                stop
            });
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = peers.changed() => if changed.is_err() {
                // discovery has ended: the peers that are there stay
                stop.cancelled().await;
                return;
            },
        }
    }
}

/// Finds the shard at `peer` and follows it, until `stop`.
async fn follow_peer(
    follower: Arc<Follower>,
    channels: ChannelOptions,
    doubt: Doubt,
    peer: Peer,
    stop: CancellationToken,
) {
    let mut shard: Option<Arc<Shard>> = None;
    tokio::select! {
        () = stop.cancelled() => {}
        () = reach(&follower, &channels, &doubt, &peer, &mut shard) => {}
    }
    follower.shards.reached(&peer.addr);
    follower.shards.silent(&peer.addr);
    if let Some(shard) = shard {
        follower.shards.set_link(&shard, Link::Away(shard.away("it has left the grid")));
        forget(&follower, &shard);
    }
}

async fn reach(
    follower: &Follower,
    channels: &ChannelOptions,
    doubt: &Doubt,
    peer: &Peer,
    known: &mut Option<Arc<Shard>>,
) {
    let shards = &follower.shards;
    let mut position = Position::default();
    let mut pauses = Pauses::new(RETRY_MIN, RETRY_MAX);
    loop {
        let error = match identify(follower, channels, peer, known).await {
            Ok(shard) => {
                let ended = follower.follow(&shard, &mut position).await;
                if ended.was_live {
                    // it was there a moment ago: the next attempt is immediate, and readers wait for it
                    pauses.reset();
                    tracing::info!(shard = %shard.id, error = %ended.error, "the log of a shard was lost");
                    shards.set_link(&shard, Link::Syncing);
                    continue;
                }
                ended.error
            }
            Err(error) => error,
        };
        doubt.raise(&peer.addr);
        match known {
            Some(shard) => {
                tracing::warn!(shard = %shard.id, %error, "a shard is away");
                shards.set_link(shard, Link::Away(shard.away(error.message())));
            }
            None => {
                tracing::warn!(%peer, %error, "a shard cannot be reached");
                shards.failed(&peer.addr, &error);
            }
        }
        tokio::time::sleep(pauses.next_pause()).await;
    }
}

/// The shard at a peer: the `known` one, if it is still there.
///
/// # Errors
/// Those of [`crate::shards::Shards::identify`]; [`Code::InvalidRequest`] if the peer's address is not one.
async fn identify(
    follower: &Follower,
    channels: &ChannelOptions,
    peer: &Peer,
    known: &mut Option<Arc<Shard>>,
) -> Result<Arc<Shard>> {
    let pool = match known {
        Some(shard) => shard.pool().clone(),
        None => Pool::connect(&peer.addr, channels)
            .map_err(|error| Error::new(Code::InvalidRequest, error.to_string()))?,
    };
    let shard = follower.shards.identify(&peer.addr, pool, known.as_ref()).await?;
    if let Some(before) = known {
        if Arc::ptr_eq(before, &shard) {
            return Ok(shard);
        }
        tracing::warn!(%peer, was = %before.id, now = %shard.id, "another shard answers at this address");
        forget(follower, before);
    }
    follower.shards.add(&shard);
    follower.shards.reached(&peer.addr);
    *known = Some(Arc::clone(&shard));
    Ok(shard)
}

/// Takes a shard out of the grid, with its part of each dataset.
fn forget(follower: &Follower, shard: &Arc<Shard>) {
    if follower.shards.remove(shard) {
        for table in follower.holdings.tables().all() {
            table.forget(shard);
        }
        follower.shards.ownership_changed();
    }
}
