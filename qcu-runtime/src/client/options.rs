//! How a client behaves.

use std::{sync::Arc, time::Duration};

/// How a client behaves. `ClientOptions::default()` suits a person; a unit names itself.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// Name of the unit on whose behalf calls are made; for fairness and telemetry.
    pub unit: Option<String>,
    /// How long [`Client::connect`] looks for a head that answers.
    pub connect_timeout: Duration,
    /// All attempts of one call together.
    pub deadline: Duration,
    /// One attempt of a question or a publish: a head that has not answered for so long has lost it, or its shard has. A
    /// publish that is sent again while the first is still at work is acknowledged with it. Not of a read, whose size nobody
    /// knows yet.
    pub attempt: Duration,
    /// How to know that the grid has ended and nobody comes back at its address. A grid far away may always come back.
    pub ended: Option<Ended>,
}

/// Says whether a grid has ended for good. Asked whenever every head has failed: a call then ends at once, and not at its
/// deadline.
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
            // a publish waits for a disk, two seconds for other shards, five for a head that does not keep up
            attempt: Duration::from_secs(10),
            ended: None,
        }
    }
}
