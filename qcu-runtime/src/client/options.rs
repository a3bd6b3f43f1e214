//! How a client behaves.

use std::{sync::Arc, time::Duration};

/// How a client behaves. The default suits a person; a unit gives its name.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// Name of the unit that calls; heads use it for fairness and telemetry.
    pub unit: Option<String>,
    /// How long [`Client::connect`] looks for a head that answers.
    pub connect_timeout: Duration,
    /// Longest time of one call, all attempts together.
    pub deadline: Duration,
    /// Longest time of one attempt of a question or a publish. After this time the head or its shard has probably lost the call. If
    /// the client sends a publish again while the shard still works on the first, the shard acknowledges both together. It does
    /// not bound reads, because nobody knows the size of an answer beforehand.
    pub attempt: Duration,
    /// Tells whether the grid has ended for good. `None` for a grid far away, which may always come back.
    pub ended: Option<Ended>,
}

/// Tells whether a grid has ended for good. The client asks whenever every head has failed; if the grid has ended, the call ends at
/// once and not at its deadline.
#[derive(Clone)]
pub struct Ended(Arc<dyn Fn() -> bool + Send + Sync>);

impl Ended {
    /// `ask` must not block.
    #[must_use]
    pub fn new(ask: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(ask))
    }

    pub(crate) fn now(&self) -> bool {
        (self.0)()
    }
}

impl std::fmt::Debug for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ended")
    }
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            unit: None,
            connect_timeout: Duration::from_secs(5),
            deadline: Duration::from_secs(60),
            // a publish waits for a disk, two seconds for other shards, one for a head that does not keep up
            attempt: Duration::from_secs(10),
            ended: None,
        }
    }
}
