//! The users of a set of peers tell discovery that a peer did not answer.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::Notify;

/// Most peers whose doubts wait for discovery. It takes them within milliseconds; a user whose doubt is left out raises it again at its
/// next failed call.
const DOUBTED_MAX: usize = 256;

/// Tells discovery that a peer did not answer. A name may have a long TTL, and Docker's server says 600 s. Without a doubt, users would
/// look for a peer that has moved at its old address until the TTL is over. After a doubt discovery asks the names of that peer again
/// soon, and at most every [`Options::doubt_min`](super::Options::doubt_min).
#[derive(Clone, Debug, Default)]
pub struct Doubt(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    addrs: Mutex<BTreeSet<String>>,
    raised: Notify,
}

impl Doubt {
    /// The peer at `addr` did not answer.
    pub fn raise(&self, addr: &str) {
        let mut addrs = self.0.addrs.lock().unwrap_or_else(PoisonError::into_inner);
        if addrs.len() < DOUBTED_MAX && !addrs.contains(addr) {
            addrs.insert(addr.to_owned());
        }
        drop(addrs);
        self.0.raised.notify_one();
    }

    /// Returns the peers that were doubted since the last return, at least one. Cancel safe.
    pub(super) async fn raised(&self) -> BTreeSet<String> {
        loop {
            let addrs = std::mem::take(&mut *self.0.addrs.lock().unwrap_or_else(PoisonError::into_inner));
            if !addrs.is_empty() {
                return addrs;
            }
            self.0.raised.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_peer_is_doubted_once_and_the_waiting_doubts_are_bounded() {
        let doubt = Doubt::default();
        for n in 0..2 * DOUBTED_MAX {
            doubt.raise("a:1");
            doubt.raise(&format!("b:{n}"));
        }
        let raised = doubt.raised().await;
        assert_eq!(raised.len(), DOUBTED_MAX);
        assert!(raised.contains("a:1"));
        doubt.raise("c:1");
        assert_eq!(doubt.raised().await, BTreeSet::from(["c:1".to_owned()]), "taken doubts are gone");
    }
}
