//! A watch of the current peers.

use tokio::sync::watch;

use super::{
    cloud_map::CloudMap,
    dns,
    doubt::Doubt,
    follow::{Ask, Trouble, follow},
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
    /// AWS cannot be asked: no region, or half of a key.
    #[error("cloudmap://: {0}")]
    CloudMap(String),
}

/// The peers, now and later.
#[derive(Clone, Debug)]
pub struct Watch {
    /// The set; each change of it is seen here.
    pub peers: watch::Receiver<Peers>,
    /// Where to tell that the set may be wrong.
    pub doubt: Doubt,
    /// Why nobody is found.
    pub trouble: Trouble,
}

/// A set that somebody else keeps, and that no doubt changes.
impl From<watch::Receiver<Peers>> for Watch {
    fn from(peers: watch::Receiver<Peers>) -> Self {
        Self { peers, doubt: Doubt::default(), trouble: Trouble::default() }
    }
}

/// Watches the peers at `url`. Needs a Tokio runtime; does not wait.
///
/// A `static` or `grpc` set is there at once and never changes. A `dns` or `cloudmap` set is empty until the first answer, and never empty
/// after it.
/// The watch ends when the last receiver is dropped.
///
/// # Errors
/// [`DiscoveryError`]: configuration, never the network.
pub fn watch(url: &str, options: &Options) -> Result<Watch, DiscoveryError> {
    match Source::parse(url, options.default_port)? {
        Source::Fixed(peers) => {
            let (sender, receiver) = watch::channel(Peers::from(peers));
            // keeps the watch open, so that a receiver that waits for a change gets no error
            tokio::spawn(async move { sender.closed().await });
            Ok(receiver.into())
        }
        Source::Dns(query) => {
            let resolver = dns::Resolver::new(query, options).map_err(DiscoveryError::Resolver)?;
            Ok(start(url, resolver, options))
        }
        Source::CloudMap(query) => {
            let service = CloudMap::new(query, options).map_err(DiscoveryError::CloudMap)?;
            Ok(start(url, service, options))
        }
    }
}

fn start(url: &str, asked: impl Ask, options: &Options) -> Watch {
    let (sender, peers) = watch::channel(Peers::default());
    let (doubt, trouble) = (Doubt::default(), Trouble::default());
    tokio::spawn(follow(url.to_owned(), asked, *options, sender, doubt.clone(), trouble.clone()));
    Watch { peers, doubt, trouble }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_static_set_is_there_at_once_and_its_watch_stays_open() {
        let peers = watch("static://b:2,a:1,b:2", &Options::default()).unwrap().peers;
        let addrs: Vec<String> = peers.borrow().iter().map(ToString::to_string).collect();
        assert_eq!(addrs, ["a:1", "b:2"]);
        assert!(!peers.has_changed().unwrap(), "the sender lives");
    }

    #[tokio::test]
    async fn a_wrong_url_is_told_at_once() {
        let error = watch("dns://head-{0..", &Options::default()).unwrap_err();
        assert!(error.to_string().contains("`{` without `}`"), "{error}");
        let nothing_set = Options { variable: |_| None, ..Options::default() };
        let error = watch("cloudmap://namespace/service", &nothing_set).unwrap_err();
        assert!(error.to_string().contains("set AWS_REGION"), "{error}");
    }
}
