//! How long reads wait in the queues of the head.

use std::{
    pin::Pin,
    task::Poll,
    time::{Duration, Instant},
};

use opentelemetry::{KeyValue, metrics::Histogram};

use crate::metrics;

/// The queues of a head.
#[derive(Debug, Clone, Copy)]
pub(crate) enum WaitQueue {
    /// Large answers wait for their share of the memory.
    Admission,
    /// Messages wait for their unit's turn to be framed and sent.
    Egress,
    /// Fetches and messages wait for room in the budget.
    Memory,
    /// Claims wait for a call to their shard.
    Shard,
}

impl WaitQueue {
    fn name(self) -> &'static str {
        match self {
            Self::Admission => "admission",
            Self::Egress => "egress",
            Self::Memory => "memory",
            Self::Shard => "shard",
        }
    }
}

/// Records the time spent in each queue.
#[derive(Debug)]
pub(crate) struct Waits {
    duration: Histogram<f64>,
}

impl Waits {
    pub(crate) fn new() -> Self {
        Self { duration: metrics::queue_duration() }
    }

    pub(crate) fn record(&self, queue: WaitQueue, waited: Duration) {
        self.duration.record(waited.as_secs_f64(), &[KeyValue::new("trellis.queue", queue.name())]);
    }

    /// Waits for `turn` and returns the time that it took. A turn that is ready at once is not recorded and costs no look at the
    /// clock. A wait that is cancelled is recorded when it is dropped.
    pub(crate) async fn of<F: Future>(
        &self,
        queue: WaitQueue,
        mut turn: Pin<&mut F>,
    ) -> (F::Output, Duration) {
        if let Poll::Ready(turn) = futures::poll!(turn.as_mut()) {
            return (turn, Duration::ZERO);
        }
        let wait = Wait { waits: self, queue, since: Instant::now() };
        let turn = turn.await;
        (turn, wait.since.elapsed())
    }
}

/// One wait. Recorded when dropped.
struct Wait<'a> {
    waits: &'a Waits,
    queue: WaitQueue,
    since: Instant,
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.waits.record(self.queue, self.since.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_turn_that_is_ready_at_once_has_not_waited() {
        let waits = Waits::new();
        let (turn, waited) = waits.of(WaitQueue::Egress, std::pin::pin!(async { 1 })).await;
        assert_eq!((turn, waited), (1, Duration::ZERO));
        let later = std::pin::pin!(async {
            tokio::task::yield_now().await;
            2
        });
        let (turn, waited) = waits.of(WaitQueue::Egress, later).await;
        assert!(turn == 2 && waited > Duration::ZERO);
    }
}
