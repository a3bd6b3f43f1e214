//! Who the peers are now: a watch of a sorted, deduplicated set.
//!
//! | URL | meaning |
//! | --- | --- |
//! | `static://a:1,b:2` | these, for ever |
//! | `grpc://host:port` | this one; a name is resolved by whoever connects |
//! | `dns://NAME[:port]` | SRV records of NAME; if it has none, its A and AAAA records with `port` (or the default) |
//! | `dns://NAME?server=IP:PORT` | the same, asked of that server instead of the system's |
//!
//! DNS changes rarely and fails often, in ways that say nothing of the peers: so a set once known is kept
//! through every failure (NXDOMAIN too: it is what a name server answers while its zone is being replaced),
//! and a failure is logged when it begins and when it ends. Peers that are really gone show themselves at the
//! connection.

mod dns;
mod plan;
mod url;

use std::{fmt, sync::Arc, time::Duration};

use tokio::sync::watch;

pub use url::{BadUrl, Source};

/// Port of names without one and without SRV records.
pub const DEFAULT_PORT: u16 = 7400;

/// The set of peers at one time, sorted and without duplicates.
pub type Peers = Arc<[Peer]>;

/// Where a peer listens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Peer {
    /// `host:port`, `1.2.3.4:5` or `[::1]:5`.
    pub addr: String,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.addr)
    }
}

/// How often is asked. The default is right for the grid; tests shorten it.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Port of names without one; [`DEFAULT_PORT`].
    pub default_port: u16,
    /// Answers are trusted at least this long, whatever their TTL. A TTL of 0 is legal and would make the
    /// watch spin; one second is as fast as a fleet of tens of thousands should ask its resolvers.
    pub ttl_min: Duration,
    /// Answers are asked again at the latest after this, whatever their TTL: a mistaken TTL of a day must not
    /// outlive a coffee.
    pub ttl_max: Duration,
    /// First wait after a failure; doubled up to `retry_max`.
    pub retry_min: Duration,
    /// Longest wait after failures.
    pub retry_max: Duration,
    /// One query to one server.
    pub query_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            default_port: DEFAULT_PORT,
            ttl_min: Duration::from_secs(1),
            ttl_max: Duration::from_secs(300),
            retry_min: Duration::from_millis(500),
            retry_max: Duration::from_secs(15),
            query_timeout: Duration::from_secs(2),
        }
    }
}

/// Why a watch could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// The URL is wrong.
    #[error(transparent)]
    Url(#[from] BadUrl),
    /// The system's resolver configuration cannot be used.
    #[error("resolver: {0}")]
    Resolver(String),
    /// There were no peers in time; see [`first`].
    #[error("no peers at {url} after {waited:?}")]
    None {
        /// What was asked.
        url: String,
        /// How long was waited.
        waited: Duration,
    },
}

/// Watches the peers at `url`. Needs a Tokio runtime; does not wait.
///
/// A `static` or `grpc` set is there at once and never changes; a `dns` set is empty until the first answer
/// and never becomes empty again. The watch ends when the last receiver is dropped.
///
/// # Errors
/// [`DiscoveryError::Url`], [`DiscoveryError::Resolver`]: both are configuration, not the network.
pub fn watch(url: &str, options: &Options) -> Result<watch::Receiver<Peers>, DiscoveryError> {
    match Source::parse(url, options.default_port)? {
        Source::Fixed(peers) => {
            let (sender, receiver) = watch::channel(Peers::from(peers));
            // kept open, so that waiting for a change waits instead of failing
            tokio::spawn(async move { sender.closed().await });
            Ok(receiver)
        }
        Source::Dns(query) => {
            let resolver = dns::Resolver::new(&query, options)?;
            let (sender, receiver) = watch::channel(Peers::default());
            tokio::spawn(dns::follow(url.to_owned(), resolver, query, *options, sender));
            Ok(receiver)
        }
    }
}

/// Waits until a watch has peers, at most `timeout`. Cancel safe.
///
/// # Errors
/// [`DiscoveryError::None`].
pub async fn first(
    url: &str,
    receiver: &mut watch::Receiver<Peers>,
    timeout: Duration,
) -> Result<Peers, DiscoveryError> {
    match tokio::time::timeout(timeout, receiver.wait_for(|peers| !peers.is_empty())).await {
        Ok(Ok(peers)) => Ok(peers.clone()),
        _ => Err(DiscoveryError::None { url: url.to_owned(), waited: timeout }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_static_set_is_there_at_once_and_its_watch_stays_open() {
        let mut peers = watch("static://b:2,a:1,b:2", &Options::default()).unwrap();
        let addrs: Vec<String> = peers.borrow().iter().map(Peer::to_string).collect();
        assert_eq!(addrs, ["a:1", "b:2"]);
        let first = first("static", &mut peers, Duration::from_secs(5)).await.unwrap();
        assert_eq!(first.len(), 2);
        assert!(!peers.has_changed().unwrap(), "the sender lives");
    }

    #[tokio::test]
    async fn a_wrong_url_is_told_at_once() {
        let error = watch("cloudmap://namespace/service", &Options::default()).unwrap_err();
        assert!(error.to_string().contains("not built in"), "{error}");
    }
}
