//! The shards: who they are, what they own, whether they can be reached.
//!
//! One task for each peer of the discovery set: it asks who is there, follows the shard's log ([`crate::watch`]), and starts again when
//! the connection is lost. The first attempt after a loss is immediate, and readers wait for it; once it has failed, the shard is away,
//! and readers that need it are refused at once.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use trellis_fabric::{
    channel::{PeerChannel, Pool},
    discovery::{Peer, Peers},
    limited,
};
use trellis_proto::{Code, Error, Result, Side, TimeRange, pb, pb::shard_client::ShardClient};

use crate::{claims::Generation, fetch::Queue, state::Core, watch as log};

/// A shard that does not say who it is within this time is away.
const DESCRIBE_TIMEOUT: Duration = Duration::from_secs(5);
/// First wait after a failed attempt to reach a shard; doubled up to [`RETRY_MAX`], with jitter.
const RETRY_MIN: Duration = Duration::from_millis(50);
/// Longest wait: a shard that comes back is found within this time.
const RETRY_MAX: Duration = Duration::from_secs(2);

/// What stands between this head and a shard.
#[derive(Debug, Clone)]
pub(crate) enum Link {
    /// It is being reached, or brought up to date with: worth waiting for.
    Syncing,
    /// Its log is being followed without a gap.
    Live,
    /// It could not be reached; tried again in the background.
    Away(Error),
}

/// One shard.
#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) id: Arc<str>,
    pub(crate) addr: String,
    pool: Pool,
    pub(crate) link: watch::Sender<Link>,
    owns: Mutex<Vec<pb::Ownership>>,
    /// The ownership epoch that it was described with.
    epoch: AtomicU64,
    /// The current gapless stretch of its log.
    generation: AtomicU64,
    pub(crate) queue: Mutex<Queue>,
    /// Some flight has been cancelled.
    pub(crate) flights_cancelled: Notify,
    /// Somebody suspects that the log was lost, or the description is old.
    pub(crate) suspect: Notify,
}

impl Shard {
    pub(crate) fn generation(&self) -> Generation {
        self.generation.load(Relaxed)
    }
    pub(crate) fn set_generation(&self, generation: Generation) {
        self.generation.store(generation, Relaxed);
    }
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Relaxed)
    }
    pub(crate) fn owns(&self) -> Vec<pb::Ownership> {
        self.owns.lock().clone()
    }
    pub(crate) fn client(&self) -> ShardClient<PeerChannel> {
        limited!(ShardClient::new(self.pool.first()))
    }
    /// For one call that is to bring `expected` bytes, over a connection that has room for them.
    pub(crate) fn fetch_client(&self, expected: u64) -> ShardClient<PeerChannel> {
        limited!(ShardClient::new(self.pool.get(expected)))
    }
    pub(crate) fn channel(&self) -> PeerChannel {
        self.pool.get(0)
    }

    pub(crate) fn set_link(&self, core: &Core, link: Link) {
        self.link.send_replace(link);
        core.notify();
    }

    /// Waits until the shard can be asked, at most `timeout`. Cancel safe.
    ///
    /// # Errors
    /// Why it cannot.
    pub(crate) async fn live(&self, timeout: Duration) -> Result<()> {
        let mut link = self.link.subscribe();
        let settled = link.wait_for(|link| !matches!(link, Link::Syncing));
        match tokio::time::timeout(timeout, settled).await {
            Ok(Ok(link)) => match &*link {
                Link::Away(error) => Err(error.clone()),
                _ => Ok(()),
            },
            _ => Err(self.away("it has not been brought up to date in time")),
        }
    }

    /// The error of a shard that cannot be asked.
    pub(crate) fn away(&self, why: &str) -> Error {
        Error::new(Code::Unavailable, format!("shard {} at {} is away: {why}", self.id, self.addr))
            .side(Side::Shard)
            .shard(&self.id)
            .hint("try again in a moment; reads with allow_stale, or of an as_of in the past, may be answered from memory")
    }

    /// Takes what the shard says of itself. Whether what it owns has changed.
    pub(crate) fn redescribed(&self, core: &Core, said: &pb::ShardDescription) {
        let changed = {
            let mut owns = self.owns.lock();
            let changed = *owns != said.owns || self.epoch.load(Relaxed) != said.epoch;
            owns.clone_from(&said.owns);
            self.epoch.store(said.epoch, Relaxed);
            changed
        };
        if changed {
            tracing::info!(shard = %self.id, epoch = said.epoch, "ownership has changed");
            core.rebuild_ownership();
        }
    }

    /// Asks the shard what it is now. Cancel safe.
    ///
    /// # Errors
    /// The shard's, or [`Code::Unavailable`] after [`DESCRIBE_TIMEOUT`].
    pub(crate) async fn describe(&self, ownership_only: bool) -> Result<pb::ShardDescription> {
        describe(&mut self.client(), ownership_only, &self.addr).await
    }
}

async fn describe(
    client: &mut ShardClient<PeerChannel>,
    ownership_only: bool,
    addr: &str,
) -> Result<pb::ShardDescription> {
    let ask = client.describe(pb::ShardDescribeRequest { ownership_only });
    match tokio::time::timeout(DESCRIBE_TIMEOUT, ask).await {
        Ok(Ok(said)) => Ok(said.into_inner()),
        Ok(Err(status)) => Err(Error::from_status(&status)),
        Err(_) => {
            Err(Error::new(Code::Unavailable, format!("the shard at {addr} did not say who it is in time")))
        }
    }
}

/// Keeps one task for each peer, until `stop`.
pub(crate) async fn follow_peers(
    core: Arc<Core>,
    mut peers: watch::Receiver<Peers>,
    stop: CancellationToken,
) {
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
                let stop = stop.child_token();
                tokio::spawn(follow_peer(Arc::clone(&core), peer.clone(), stop.clone()));
                stop
            });
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = peers.changed() => if changed.is_err() {
                // nobody will say anything new: what there is stays
                stop.cancelled().await;
                return;
            },
        }
    }
}

/// Finds out who is at `peer` and follows it, until `stop`.
async fn follow_peer(core: Arc<Core>, peer: Peer, stop: CancellationToken) {
    let mut shard: Option<Arc<Shard>> = None;
    tokio::select! {
        () = stop.cancelled() => {}
        () = reach(&core, &peer, &mut shard) => {}
    }
    if let Some(shard) = shard {
        shard.set_link(&core, Link::Away(shard.away("it has left the grid")));
        core.remove_shard(&shard);
    }
}

async fn reach(core: &Arc<Core>, peer: &Peer, known: &mut Option<Arc<Shard>>) {
    let mut position = log::Position::default();
    let mut wait = RETRY_MIN;
    loop {
        let error = match identify(core, peer, known).await {
            Ok(shard) => {
                let ended = log::follow(core, &shard, &mut position).await;
                if ended.was_live {
                    // it was there a moment ago: the next attempt is immediate, and readers wait for it
                    wait = RETRY_MIN;
                    tracing::info!(shard = %shard.id, error = %ended.error, "the log of a shard was lost");
                    shard.set_link(core, Link::Syncing);
                    continue;
                }
                ended.error
            }
            Err(error) => error,
        };
        match known {
            Some(shard) => {
                tracing::warn!(shard = %shard.id, %error, "a shard is away");
                shard.set_link(core, Link::Away(shard.away(error.message())));
            }
            None => tracing::warn!(%peer, %error, "a shard cannot be reached"),
        }
        // jitter, so that the heads of a fleet do not come back in step
        tokio::time::sleep(wait.mul_f64(0.5 + jitter())).await;
        wait = (wait * 2).min(RETRY_MAX);
    }
}

/// In `[0, 1)`; good enough to spread retries.
pub(crate) fn jitter() -> f64 {
    (uuid::Uuid::new_v4().as_u128() >> 75) as f64 / (1u64 << 53) as f64
}

/// The shard at a peer: the known one, if it is still it.
async fn identify(core: &Arc<Core>, peer: &Peer, known: &mut Option<Arc<Shard>>) -> Result<Arc<Shard>> {
    let pool = match known {
        Some(shard) => shard.pool.clone(),
        None => Pool::connect(&peer.addr, &core.channels)
            .map_err(|error| Error::new(Code::InvalidRequest, error.to_string()))?,
    };
    let mut client: ShardClient<PeerChannel> = limited!(ShardClient::new(pool.first()));
    let said = describe(&mut client, true, &peer.addr).await?;
    if said.shard.is_empty() {
        return Err(Error::new(Code::DataCorrupt, format!("the shard at {peer} has no name")));
    }
    if let Some(shard) = known {
        if *shard.id == *said.shard {
            shard.redescribed(core, &said);
            return Ok(Arc::clone(shard));
        }
        tracing::warn!(%peer, was = %shard.id, now = said.shard, "another shard answers at this address");
        core.remove_shard(shard);
    }
    let shard = Arc::new(Shard {
        id: said.shard.into(),
        addr: peer.addr.clone(),
        pool,
        link: watch::Sender::new(Link::Syncing),
        owns: Mutex::new(said.owns),
        epoch: AtomicU64::new(said.epoch),
        generation: AtomicU64::new(core.next_generation()),
        queue: Mutex::default(),
        flights_cancelled: Notify::new(),
        suspect: Notify::new(),
    });
    core.add_shard(&shard);
    *known = Some(Arc::clone(&shard));
    Ok(shard)
}

/// Names the range that a shard's error kept from being read.
pub(crate) fn about(error: Error, shard: &Shard, dataset: &str, symbol: &str, range: (i64, i64)) -> Error {
    let range = TimeRange { start: Some(range.0), end: Some(range.1) };
    error.shard(&shard.id).dataset(dataset).symbol(symbol).range(range)
}
