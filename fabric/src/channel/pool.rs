//! Which of a peer's connections a call goes over.
//!
//! Every call counts on its connection for the bytes that its caller expects of it, or for what its answer has
//! brought so far, if that is more: an answer that has brought much usually brings more. A call takes the first
//! connection on which it has room ([`CONNECTION_BUDGET_BYTES`]). So calls one after the other stay on the first,
//! which is warm, whatever their size, and a peer with tens of thousands of clients has one connection to each;
//! a further one is opened when the open ones have no room, and stays.

use std::sync::Arc;

use super::{
    connect::{PeerChannel, connect_traced},
    failure::Unreachable,
    load::{CALL_BYTES_MIN, CONNECTIONS_MAX, InFlight, Load},
    options::ChannelOptions,
};

/// Lazy connections to one peer, as many as the load asks for. Clones share them.
#[derive(Clone, Debug)]
pub struct Pool {
    channels: Arc<[PeerChannel]>,
    load: Arc<Load>,
}

impl Pool {
    /// A pool of connections to `addr`, none of which is made yet.
    ///
    /// # Errors
    /// As [`super::connect`].
    pub fn connect(addr: &str, options: &ChannelOptions) -> Result<Self, Unreachable> {
        let channels =
            (0..CONNECTIONS_MAX).map(|_| connect_traced(addr, options)).collect::<Result<_, _>>()?;
        Ok(Self { channels, load: Arc::default() })
    }

    /// A connection for one call of which `expected` bytes are expected, 0 if nobody knows. It counts as long as the
    /// channel, a clone of it or an answer over it is there.
    pub fn get(&self, expected: u64) -> PeerChannel {
        let in_flight = InFlight::on(&self.load, expected.max(CALL_BYTES_MIN));
        let channel = self.channels[in_flight.lane].clone();
        channel.counted(in_flight)
    }

    /// The first connection, uncounted: for what must stay in order.
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
