//! How often discovery asks.

use std::time::Duration;

/// Port of names without one and without SRV records.
pub const DEFAULT_PORT: u16 = 7400;

/// How often discovery asks. The default is right for the grid; tests shorten the times.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Port of names without one; [`DEFAULT_PORT`].
    pub default_port: u16,
    /// Shortest time between two look-ups, whatever the TTL. A TTL of 0 is legal and would make the watch ask without pause. A fleet
    /// of tens of thousands should not ask its resolvers more often than once a second.
    pub ttl_min: Duration,
    /// Longest time between two look-ups, whatever the TTL, so that a TTL of a day that was set by mistake does no harm.
    pub ttl_max: Duration,
    /// Shortest time from a look-up to one that is asked for by a doubt, and as much again at random: thousands of clients see at the
    /// same moment that a peer has gone, and a peer may be away for hours.
    pub doubt_min: Duration,
    /// First wait after a failure; it doubles up to `retry_max`. Each is shortened at random, at most by half.
    pub retry_min: Duration,
    /// Longest wait after failures.
    pub retry_max: Duration,
    /// Longest time of one query to one server.
    pub query_timeout: Duration,
    /// One of several names that is not found for this long is gone. It is longer than the 15 s for which resolvers keep Cloud Map's
    /// answer that a name does not exist: so one wrong answer, kept by a resolver, takes no peer away.
    pub gone_after: Duration,
    /// The same while more than half of the names are not found. Then the zone is more likely at fault than the peers.
    pub gone_many_after: Duration,
    /// Reads a variable of the environment: AWS's own, for credentials and the region.
    pub variable: fn(&str) -> Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            default_port: DEFAULT_PORT,
            ttl_min: Duration::from_secs(1),
            ttl_max: Duration::from_secs(300),
            doubt_min: Duration::from_secs(5),
            retry_min: Duration::from_millis(500),
            retry_max: Duration::from_secs(15),
            query_timeout: Duration::from_secs(2),
            gone_after: Duration::from_secs(20),
            gone_many_after: Duration::from_secs(300),
            variable: |name| std::env::var(name).ok(),
        }
    }
}
