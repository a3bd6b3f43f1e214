//! The users of a set of peers tell discovery that a peer did not answer.

use std::sync::Arc;

use tokio::sync::Notify;

/// Tells discovery that a peer did not answer. A name may have a long TTL, and Docker's server says 600 s: without a doubt a peer that has
/// moved would be looked for at its old address until the TTL is over. After a doubt discovery asks again soon, and at most every
/// [`Options::doubt_min`](super::Options::doubt_min).
#[derive(Clone, Debug, Default)]
pub struct Doubt(Arc<Notify>);

impl Doubt {
    /// A peer did not answer.
    pub fn raise(&self) {
        self.0.notify_one();
    }

    /// Returns at the first doubt since the last return. Cancel safe.
    pub(super) async fn raised(&self) {
        self.0.notified().await;
    }
}
