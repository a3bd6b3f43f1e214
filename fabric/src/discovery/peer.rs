//! A peer, and a set of peers.

use std::{fmt, sync::Arc};

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
