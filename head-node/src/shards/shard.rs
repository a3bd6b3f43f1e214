//! One shard: its name and ownership, whether it can be reached, and how it is called.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tonic::Status;
use trellis_fabric::{
    channel::{PeerChannel, Pool},
    limited,
};
use trellis_proto::{Code, Error, Result, Side, pb, pb::shard_client::ShardClient};

use super::following::Following;

/// A shard that does not describe itself within this time is away.
const DESCRIBE_TIMEOUT: Duration = Duration::from_secs(5);

/// A gapless stretch of one shard's log of one dataset. A new one begins with every loss of the log. Unique over all; 0 is none.
pub(crate) type Generation = u64;

/// Whether a shard can be asked.
#[derive(Debug, Clone)]
pub(crate) enum Link {
    /// The head is connecting, or checks what it holds against the shard. Readers wait for it.
    Syncing,
    /// The head follows the shard's log without a gap.
    Live,
    /// The last attempt to reach it failed, with this error. The head tries again in the background.
    Away(Error),
}

/// One shard.
#[derive(Debug)]
pub(crate) struct Shard {
    /// The shard's name.
    pub(crate) id: Arc<str>,
    pub(crate) addr: String,
    /// Tells it from every other shard that this head has found, also from an earlier one of the same name.
    pub(crate) number: u64,
    pool: Pool,
    pub(crate) link: watch::Sender<Link>,
    owns: Mutex<Vec<pb::Ownership>>,
    /// The ownership epoch of its last description.
    epoch: AtomicU64,
    /// The datasets whose changes it tells this head.
    pub(crate) following: Following,
    /// Notified when a flight to this shard has been given up: its call may be of no use any more.
    pub(crate) flights_cancelled: Notify,
    /// Notified when the log may be lost or late: the head then begins a new session of the log.
    pub(crate) suspect: Notify,
}

impl Shard {
    /// The shard that says `said` of itself at `addr`.
    pub(super) fn new(said: pb::ShardDescription, addr: String, pool: Pool, number: u64) -> Self {
        Self {
            id: said.shard.into(),
            addr,
            number,
            pool,
            link: watch::Sender::new(Link::Syncing),
            owns: Mutex::new(said.owns),
            epoch: AtomicU64::new(said.epoch),
            following: Following::default(),
            flights_cancelled: Notify::new(),
            suspect: Notify::new(),
        }
    }

    /// The connections to it.
    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
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
    /// A client for one call whose answer has about `expected` bytes, over a connection with room for them.
    pub(crate) fn fetch_client(&self, expected: u64) -> ShardClient<PeerChannel> {
        limited!(ShardClient::new(self.pool.get(expected)))
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

    /// The error of a read that needs this shard while it is away.
    pub(crate) fn away(&self, why: &str) -> Error {
        Error::new(Code::Unavailable, format!("shard {} at {} is away: {why}", self.id, self.addr))
            .side(Side::Shard)
            .shard(&self.id)
            .hint("try again in a moment; reads with allow_stale, or of an as_of in the past, may be answered from memory")
    }

    /// Takes the shard's description of its ownership. Returns whether it has changed: the caller then says that the map has changed.
    pub(super) fn take_description(&self, said: &pb::ShardDescription) -> bool {
        let changed = {
            let mut owns = self.owns.lock();
            let changed = *owns != said.owns || self.epoch.load(Relaxed) != said.epoch;
            owns.clone_from(&said.owns);
            self.epoch.store(said.epoch, Relaxed);
            changed
        };
        if changed {
            tracing::info!(shard = %self.id, epoch = said.epoch, "ownership has changed");
        }
        changed
    }

    /// Waits until the head has failed to reach the shard. Cancel safe.
    pub(crate) async fn gone(&self) -> Error {
        let mut link = self.link.subscribe();
        match link.wait_for(|link| matches!(link, Link::Away(_))).await {
            Ok(link) => match &*link {
                Link::Away(error) => error.clone(),
                _ => self.away("it has been lost"),
            },
            Err(_) => self.away("it has left the grid"),
        }
    }

    /// The answer of a call, for which the head waits at most `limit`, and only as long as the shard can be asked. `what` says what the
    /// shard has not done then: it "did not ..." in time. Cancel safe.
    ///
    /// # Errors
    /// The shard's, or [`Code::Unavailable`].
    pub(crate) async fn answer<T>(
        &self,
        what: &str,
        limit: Duration,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<T> {
        tokio::select! {
            answer = tokio::time::timeout(limit, call) => match answer {
                Ok(Ok(answer)) => Ok(answer),
                Ok(Err(status)) => Err(match Error::from_status(&status) {
                    error if error.place().2.is_empty() => error.shard(&self.id),
                    error => error,
                }),
                Err(_) => Err(self.away(&format!("it did not {what} within {limit:?}"))),
            },
            error = self.gone() => Err(error),
        }
    }

    /// Asks the shard what it owns and, unless `ownership_only`, which datasets it has. Cancel safe.
    ///
    /// # Errors
    /// The shard's, or [`Code::Unavailable`] after [`DESCRIBE_TIMEOUT`].
    pub(crate) async fn describe(&self, ownership_only: bool) -> Result<pb::ShardDescription> {
        let said = describe(&self.pool, ownership_only).await;
        said.map_err(|error| match error.code() {
            Code::Unavailable => self.away(error.message()),
            _ => error.shard(&self.id),
        })
    }
}

/// Asks a shard to describe itself.
///
/// # Errors
/// The shard's, or [`Code::Unavailable`] after [`DESCRIBE_TIMEOUT`].
pub(super) async fn describe(pool: &Pool, ownership_only: bool) -> Result<pb::ShardDescription> {
    let mut client: ShardClient<PeerChannel> = limited!(ShardClient::new(pool.first()));
    let ask = client.describe(pb::ShardDescribeRequest { ownership_only });
    match tokio::time::timeout(DESCRIBE_TIMEOUT, ask).await {
        Ok(Ok(said)) => Ok(said.into_inner()),
        Ok(Err(status)) => Err(Error::from_status(&status)),
        Err(_) => Err(Error::new(
            Code::Unavailable,
            format!("it did not say who it is within {DESCRIBE_TIMEOUT:?}"),
        )),
    }
}
