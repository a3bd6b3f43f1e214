//! A watch of the current peers.

use tokio::sync::watch;

use super::{
    dns,
    options::Options,
    peer::Peers,
    url::{BadUrl, Source},
};

/// Why there is no watch.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// The URL is wrong.
    #[error(transparent)]
    Url(#[from] BadUrl),
    /// The system's resolver configuration cannot be used.
    #[error("resolver: {0}")]
    Resolver(String),
}

/// Watches the peers at `url`. Needs a Tokio runtime; does not wait.
///
/// A `static` or `grpc` set is there at once and never changes. A `dns` set is empty until the first answer, and never empty after it.
/// The watch ends when the last receiver is dropped.
///
/// # Errors
/// [`DiscoveryError::Url`], [`DiscoveryError::Resolver`]: both are configuration, not the network.
pub fn watch(url: &str, options: &Options) -> Result<watch::Receiver<Peers>, DiscoveryError> {
    match Source::parse(url, options.default_port)? {
        Source::Fixed(peers) => {
            let (sender, receiver) = watch::channel(Peers::from(peers));
            // keeps the watch open, so that a receiver that waits for a change gets no error
            tokio::spawn(async move { sender.closed().await });
            Ok(receiver)
        }
        Source::Dns(query) => {
            let resolver = dns::Resolver::new(&query, options).map_err(DiscoveryError::Resolver)?;
            let (sender, receiver) = watch::channel(Peers::default());
            tokio::spawn(dns::follow(url.to_owned(), resolver, query, *options, sender));
            Ok(receiver)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_static_set_is_there_at_once_and_its_watch_stays_open() {
        let peers = watch("static://b:2,a:1,b:2", &Options::default()).unwrap();
        let addrs: Vec<String> = peers.borrow().iter().map(ToString::to_string).collect();
        assert_eq!(addrs, ["a:1", "b:2"]);
        assert!(!peers.has_changed().unwrap(), "the sender lives");
    }

    #[tokio::test]
    async fn a_wrong_url_is_told_at_once() {
        let error = watch("cloudmap://namespace/service", &Options::default()).unwrap_err();
        assert!(error.to_string().contains("not built in"), "{error}");
    }
}
