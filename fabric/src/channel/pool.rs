//! The connections to one peer, and the choice of one for each call.
//!
//! A call counts on its connection for the bytes that its caller expects, or for the bytes that its answer has brought so far, if
//! those are more: an answer that has brought much usually brings more. A call takes the first connection that has room for it
//! (`load.rs`). So calls that follow each other stay on the first connection, which is warm, and a peer with tens of thousands
//! of clients has one connection to each. The pool opens a further connection if the open ones have no room, and keeps it.

use std::sync::Arc;

use super::{
    connect::{PeerChannel, connect_traced},
    failure::Unreachable,
    load::{CALL_BYTES_MIN, CONNECTIONS_MAX, InFlight, Load},
    options::ChannelOptions,
};

/// Lazy connections to one peer. Clones share them.
#[derive(Clone, Debug)]
pub struct Pool {
    channels: Arc<[PeerChannel]>,
    load: Arc<Load>,
}

impl Pool {
    /// A pool of connections to `addr`, none of which is made yet.
    ///
    /// # Errors
    /// Those of [`super::connect`].
    pub fn connect(addr: &str, options: &ChannelOptions) -> Result<Self, Unreachable> {
        let channels =
            (0..CONNECTIONS_MAX).map(|_| connect_traced(addr, options)).collect::<Result<_, _>>()?;
        Ok(Self { channels, load: Arc::default() })
    }

    /// A connection for one call that is expected to bring `expected` bytes, 0 if unknown. The call counts until the channel, its clones
    /// and its answers are dropped.
    pub fn get(&self, expected: u64) -> PeerChannel {
        let in_flight = InFlight::on(&self.load, expected.max(CALL_BYTES_MIN));
        let channel = self.channels[in_flight.lane].clone();
        channel.counted(in_flight)
    }

    /// The first connection, for calls that must stay in order. They do not count.
    pub fn first(&self) -> PeerChannel {
        self.channels[0].clone()
    }
}

#[cfg(test)]
mod tests {
    use super::{super::load::CONNECTION_BUDGET_BYTES as BUDGET, *};

    fn pool() -> Pool {
        Pool::connect("127.0.0.1:1", &ChannelOptions::default()).unwrap()
    }

    #[tokio::test]
    async fn small_calls_share_a_connection_and_large_ones_have_their_own() {
        let pool = pool();
        let small: Vec<_> = (0..16).map(|_| pool.get(0)).collect();
        assert_eq!(*pool.load.lanes(), [BUDGET, 0, 0, 0]);
        let large: Vec<_> = (0..3).map(|_| pool.get(5 * BUDGET)).collect();
        assert_eq!(*pool.load.lanes(), [BUDGET, 5 * BUDGET, 5 * BUDGET, 5 * BUDGET]);
        let over = pool.get(BUDGET);
        assert_eq!(pool.load.lanes()[0], 2 * BUDGET, "all are busy: the least loaded");
        drop((small, large, over));
        assert_eq!(*pool.load.lanes(), [0; CONNECTIONS_MAX]);
    }

    #[tokio::test]
    async fn a_channel_counts_until_its_last_clone_is_gone_and_the_first_does_not() {
        let pool = pool();
        let first = pool.first();
        assert_eq!(*pool.load.lanes(), [0; CONNECTIONS_MAX]);
        let channel = pool.get(0);
        let clone = channel.clone();
        drop((first, channel));
        assert_eq!(pool.load.lanes()[0], CALL_BYTES_MIN);
        drop(clone);
        assert_eq!(pool.load.lanes()[0], 0);
    }
}
